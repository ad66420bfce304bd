// kubelet-client speaks to a kubelet as the API server does, with the client library that kubectl uses.
//
//	kubelet-client [flags] exec NAMESPACE/POD/CONTAINER COMMAND...
//	kubelet-client [flags] attach NAMESPACE/POD/CONTAINER
//	kubelet-client [flags] port-forward NAMESPACE/POD PORT
//
// Standard streams are the command's, the container's or the connection's. It ends with the command's exit code.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
)

var (
	server    = flag.String("server", "https://127.0.0.1:10250", "the kubelet's API")
	tty       = flag.Bool("t", false, "on a terminal of its own")
	stdin     = flag.Bool("i", false, "with standard input")
	size      = flag.String("size", "", "COLUMNSxROWS of the terminal")
	websocket = flag.Bool("websocket", false, "exec and attach by WebSocket instead of SPDY")
)

func main() {
	flag.Parse()
	err := run(flag.Args())
	var ended exec.CodeExitError
	switch {
	case errors.As(err, &ended):
		os.Exit(ended.Code)
	case err != nil:
		fmt.Fprintln(os.Stderr, "kubelet-client:", err)
		os.Exit(125)
	}
}

func run(words []string) error {
	switch {
	case len(words) > 2 && words[0] == "exec":
		return stream("exec", words[1], url.Values{"command": words[2:]})
	case len(words) == 2 && words[0] == "attach":
		return stream("attach", words[1], url.Values{})
	case len(words) == 3 && words[0] == "port-forward":
		return forward(words[1], words[2])
	}
	return errors.New("say exec, attach or port-forward; see the head of main.go")
}

// The certificate is one that the kubelet made for itself a moment ago.
func config() *rest.Config {
	return &rest.Config{Host: *server, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

func endpoint(verb, target string, query url.Values) (*url.URL, error) {
	address, err := url.Parse(*server)
	if err != nil {
		return nil, err
	}
	address.Path, address.RawQuery = "/"+verb+"/"+target, query.Encode()
	return address, nil
}

func stream(verb, target string, query url.Values) error {
	options := remotecommand.StreamOptions{Stdout: os.Stdout, Tty: *tty}
	query.Set("output", "1")
	if *stdin {
		query.Set("input", "1")
		options.Stdin = os.Stdin
	}
	if *tty {
		query.Set("tty", "1")
	} else {
		query.Set("error", "1")
		options.Stderr = os.Stderr
	}
	if *size != "" {
		one, err := oneSize(*size)
		if err != nil {
			return err
		}
		options.TerminalSizeQueue = one
	}
	address, err := endpoint(verb, target, query)
	if err != nil {
		return err
	}
	executor, err := executor(address)
	if err != nil {
		return err
	}
	return executor.StreamWithContext(context.Background(), options)
}

func executor(address *url.URL) (remotecommand.Executor, error) {
	if *websocket {
		return remotecommand.NewWebSocketExecutor(config(), http.MethodGet, address.String())
	}
	return remotecommand.NewSPDYExecutor(config(), http.MethodPost, address)
}

// sizes tells one size, once.
type sizes chan *remotecommand.TerminalSize

func oneSize(text string) (sizes, error) {
	wanted := &remotecommand.TerminalSize{}
	if _, err := fmt.Sscanf(text, "%dx%d", &wanted.Width, &wanted.Height); err != nil {
		return nil, fmt.Errorf("-size %s: %w", text, err)
	}
	queue := make(sizes, 1)
	queue <- wanted
	return queue, nil
}

func (queue sizes) Next() *remotecommand.TerminalSize { return <-queue }

// forward carries one connection: standard input to the port, what comes back to standard output.
func forward(target, port string) error {
	address, err := endpoint("portForward", target, nil)
	if err != nil {
		return err
	}
	transport, upgrader, err := spdy.RoundTripperFor(config())
	if err != nil {
		return err
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, address)
	stop, ready := make(chan struct{}), make(chan struct{})
	said := &strings.Builder{}
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:" + port}, stop, ready, nil, said)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- forwarder.ForwardPorts() }()
	select {
	case err := <-ended:
		return err
	case <-ready:
	}
	err = carry(forwarder)
	close(stop)
	if err := errors.Join(err, <-ended); err != nil {
		return err
	}
	if said.Len() > 0 {
		return errors.New(strings.TrimSpace(said.String()))
	}
	return nil
}

func carry(forwarder *portforward.PortForwarder) error {
	ports, err := forwarder.GetPorts()
	if err != nil {
		return err
	}
	connection, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
	if err != nil {
		return err
	}
	defer connection.Close()
	if _, err := io.Copy(connection, os.Stdin); err != nil {
		return err
	}
	if err := connection.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, connection)
	return err
}
