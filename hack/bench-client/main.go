// bench-client sends CRI requests to one endpoint and prints, as JSON, how long each took (milliseconds).
//
//	bench-client --endpoint unix:///run/crisp/crisp.sock COMMAND
//
//	up    N pods of one container each, --parallel at a time; they stay
//	down  stops and removes every pod of ours
//	exec  N times ExecSync of `true` in one running container
//	list  N times each List and Status request
//	await until N pods of ours are listed, from a runtime that may not be there yet
//	pull, remove-image IMAGE
//	remove-container, remove-pod ID
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var (
	endpoint     = flag.String("endpoint", "", "unix:// address of the runtime")
	count        = flag.Int("n", 30, "how many")
	parallel     = flag.Int("parallel", 1, "pods at a time")
	image        = flag.String("image", "", "image of the pods' containers")
	logs         = flag.String("logs", "/var/tmp", "directory for the containers' logs")
	cgroupParent = flag.String("cgroup-parent", "", "cgroup that the pods are put below")
	hostNetwork  = flag.Bool("host-network", false, "pods on the host's network")
	exited       = flag.Int("exited", 0, "containers of each pod beside the one that runs, whose command has ended")
	containerRun = flag.String("command", "/pause", "what the pods' containers run, words parted by spaces")
)

const maxMessage = 16 << 20

// client is both services of one runtime, and what was measured by them.
type client struct {
	cri.RuntimeServiceClient
	cri.ImageServiceClient

	lock    sync.Mutex
	samples map[string][]float64
}

func dial() (*client, *grpc.ClientConn, error) {
	conn, err := grpc.NewClient(*endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
	if err != nil {
		return nil, nil, err
	}
	return &client{
		RuntimeServiceClient: cri.NewRuntimeServiceClient(conn),
		ImageServiceClient:   cri.NewImageServiceClient(conn),
		samples:              map[string][]float64{},
	}, conn, nil
}

// timed adds how long `call` took to the samples of `name`.
func (c *client) timed(name string, call func() error) error {
	began := time.Now()
	if err := call(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	took := float64(time.Since(began).Microseconds()) / 1000
	c.lock.Lock()
	defer c.lock.Unlock()
	c.samples[name] = append(c.samples[name], took)
	return nil
}

// spread runs `work` for 0..n-1, `*parallel` at a time, and gives the first error.
func spread(n int, work func(int) error) error {
	jobs := make(chan int)
	failures := make(chan error, n)
	var workers sync.WaitGroup
	for range max(*parallel, 1) {
		workers.Go(func() {
			for job := range jobs {
				if err := work(job); err != nil {
					failures <- err
				}
			}
		})
	}
	for job := range n {
		jobs <- job
	}
	close(jobs)
	workers.Wait()
	select {
	case err := <-failures:
		return err
	default:
		return nil
	}
}

func run(ctx context.Context, c *client, command string, args []string) error {
	argument := func() (string, error) {
		if len(args) != 1 {
			return "", fmt.Errorf("%s takes one argument", command)
		}
		return args[0], nil
	}
	switch command {
	case "up":
		return c.up(ctx)
	case "down":
		return c.down(ctx)
	case "exec":
		return c.exec(ctx)
	case "list":
		return c.list(ctx)
	}
	subject, err := argument()
	if err != nil {
		return err
	}
	switch command {
	case "pull":
		return c.timed("PullImage", func() error {
			_, err := c.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: subject}})
			return err
		})
	case "remove-image":
		return c.timed("RemoveImage", func() error {
			_, err := c.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: subject}})
			return err
		})
	case "remove-container":
		_, err := c.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: subject})
		return err
	case "remove-pod":
		_, err := c.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: subject})
		return err
	}
	return fmt.Errorf("no command is called %q", command)
}

func main() {
	flag.Parse()
	if flag.NArg() == 0 || !strings.HasPrefix(*endpoint, "unix://") {
		fmt.Fprintln(os.Stderr, "usage: bench-client --endpoint unix://PATH COMMAND")
		flag.PrintDefaults()
		os.Exit(2)
	}
	if flag.Arg(0) == "await" {
		if err := awaitPods(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	c, _, err := dial()
	if err == nil {
		// The first request pays for the connection.
		if _, err = c.Version(context.Background(), &cri.VersionRequest{}); err == nil {
			err = run(context.Background(), c, flag.Arg(0), flag.Args()[1:])
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if len(c.samples) > 0 {
		_ = json.NewEncoder(os.Stdout).Encode(c.samples)
	}
}
