package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (c *client) running(ctx context.Context) ([]*cri.Container, error) {
	answer, err := c.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
		State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		return nil, err
	}
	if len(answer.GetContainers()) == 0 {
		return nil, errors.New("no container runs")
	}
	return answer.GetContainers(), nil
}

func (c *client) exec(ctx context.Context) error {
	containers, err := c.running(ctx)
	if err != nil {
		return err
	}
	request := &cri.ExecSyncRequest{ContainerId: containers[0].GetId(), Cmd: []string{"true"}, Timeout: 10}
	return spread(*count, func(int) error {
		return c.timed("ExecSync", func() error {
			answer, err := c.ExecSync(ctx, request)
			if err == nil && answer.GetExitCode() != 0 {
				err = fmt.Errorf("exit code %d: %s", answer.GetExitCode(), answer.GetStderr())
			}
			return err
		})
	})
}

func (c *client) list(ctx context.Context) error {
	containers, err := c.running(ctx)
	if err != nil {
		return err
	}
	one := containers[0].GetId()
	calls := []struct {
		name string
		call func() error
	}{
		{"ListContainers", func() error { _, err := c.ListContainers(ctx, &cri.ListContainersRequest{}); return err }},
		{"ListPodSandbox", func() error { _, err := c.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{}); return err }},
		{"ContainerStatus", func() error {
			_, err := c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: one})
			return err
		}},
		{"ListContainerStats", func() error { _, err := c.ListContainerStats(ctx, &cri.ListContainerStatsRequest{}); return err }},
		{"ListPodSandboxStats", func() error { _, err := c.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{}); return err }},
	}
	for _, each := range calls {
		for range *count {
			if err := c.timed(each.name, each.call); err != nil {
				return err
			}
		}
	}
	return nil
}

// awaitPods asks until the runtime answers with `*count` pods, and prints when that was (Unix time, nanoseconds).
func awaitPods(ctx context.Context) error {
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		// A new connection each time: one that was refused waits a second before it tries again.
		if n, err := listOnce(ctx); err == nil && n == *count {
			fmt.Println(time.Now().UnixNano())
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("no list of %d pods within a minute", *count)
}

func listOnce(ctx context.Context) (int, error) {
	if _, err := os.Stat(strings.TrimPrefix(*endpoint, "unix://")); err != nil {
		return 0, err
	}
	c, conn, err := dial()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	answer, err := c.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: ours}})
	return len(answer.GetItems()), err
}
