package main

import (
	"context"
	"errors"
	"fmt"

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
