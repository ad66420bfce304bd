package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const graceSeconds = 10

// ours marks the pods that `down` removes.
var ours = map[string]string{"made-by": "bench-client"}

func (c *client) up(ctx context.Context) error {
	run := fmt.Sprintf("%d-%d", os.Getpid(), time.Now().UnixNano())
	began := time.Now()
	if err := spread(*count, func(i int) error { return c.podUp(ctx, fmt.Sprintf("bench-%s-%d", run, i)) }); err != nil {
		return err
	}
	c.samples["wall"] = []float64{float64(time.Since(began).Microseconds()) / 1000}
	return nil
}

// podUp is what the kubelet does for a pod of one container whose image is there.
func (c *client) podUp(ctx context.Context, name string) error {
	network := cri.NamespaceMode_POD
	if *hostNetwork {
		network = cri.NamespaceMode_NODE
	}
	namespaces := &cri.NamespaceOption{Network: network, Pid: cri.NamespaceMode_CONTAINER}
	logDirectory := filepath.Join(*logs, name)
	if err := os.MkdirAll(logDirectory, 0o755); err != nil {
		return err
	}
	sandbox := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		LogDirectory: logDirectory,
		Labels:       ours,
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    filepath.Join(*cgroupParent, name),
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: namespaces},
		},
	}
	if !*hostNetwork {
		sandbox.Hostname = "bench"
	}
	container := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "main"},
		Image:    &cri.ImageSpec{Image: *image},
		Command:  strings.Fields(*containerRun),
		LogPath:  "main.log",
		Linux: &cri.LinuxContainerConfig{
			Resources:       &cri.LinuxContainerResources{CpuShares: 102, MemoryLimitInBytes: 256 << 20},
			SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: namespaces},
		},
	}
	var podID, containerID string
	err := c.timed("pod up", func() error {
		if err := c.timed("RunPodSandbox", func() error {
			answer, err := c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox})
			podID = answer.GetPodSandboxId()
			return err
		}); err != nil {
			return err
		}
		if err := c.timed("CreateContainer", func() error {
			answer, err := c.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: podID, Config: container, SandboxConfig: sandbox})
			containerID = answer.GetContainerId()
			return err
		}); err != nil {
			return err
		}
		return c.timed("StartContainer", func() error {
			_, err := c.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: containerID})
			return err
		})
	})
	for i := 0; i < *exited && err == nil; i++ {
		err = c.ended(ctx, podID, sandbox, container, fmt.Sprintf("ended-%d", i))
	}
	return err
}

// ended is a container like `like` whose command ends at once.
func (c *client) ended(ctx context.Context, podID string, sandbox *cri.PodSandboxConfig, like *cri.ContainerConfig, name string) error {
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    like.Image,
		Command:  []string{"true"},
		LogPath:  name + ".log",
		Linux:    like.Linux,
	}
	made, err := c.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: podID, Config: config, SandboxConfig: sandbox})
	if err != nil {
		return err
	}
	_, err = c.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.GetContainerId()})
	return err
}

func (c *client) down(ctx context.Context) error {
	pods, err := c.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: ours}})
	if err != nil {
		return err
	}
	containers, err := c.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return err
	}
	of := map[string][]string{}
	for _, container := range containers.GetContainers() {
		of[container.GetPodSandboxId()] = append(of[container.GetPodSandboxId()], container.GetId())
	}
	began := time.Now()
	err = spread(len(pods.GetItems()), func(i int) error {
		pod := pods.GetItems()[i].GetId()
		return c.podDown(ctx, pod, of[pod])
	})
	c.samples["wall"] = []float64{float64(time.Since(began).Microseconds()) / 1000}
	return err
}

func (c *client) podDown(ctx context.Context, pod string, containers []string) error {
	return c.timed("pod down", func() error {
		for _, container := range containers {
			if err := c.timed("StopContainer", func() error {
				_, err := c.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: container, Timeout: graceSeconds})
				return err
			}); err != nil {
				return err
			}
		}
		if err := c.timed("StopPodSandbox", func() error {
			_, err := c.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod})
			return err
		}); err != nil {
			return err
		}
		return c.timed("RemovePodSandbox", func() error {
			_, err := c.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
			return err
		})
	})
}
