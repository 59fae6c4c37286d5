// Stock-edge is an edge of cloudflared's tunnel protocol on an unmodified quic-go with its defaults: the QUIC library, and
// with it the acknowledgements, windows and packet sizes, of the connector that it is compared with. It is a peer of
// benches and tests, not a product: any tunnel and any secret is taken, and every visitor's request goes to whichever
// connector has registered, whatever its host. WebSockets, messages of several Cap'n Proto segments, datagrams and HTTP/2
// between edge and connector are not spoken; no stock connector needs the latter three for HTTP over QUIC.
//
//	go build -o stock-edge .
//	stock-edge -ca edge-ca.pem [-listen 127.0.0.1:0] [-visitors 127.0.0.1:0]
//
// The certificate of the authority that connectors have to trust is written to the file named by -ca. The first line on
// standard output says where it listens: {"edge":"127.0.0.1:1","visitors":"127.0.0.1:2"}. A line follows for each
// registration ({"registered":"<connector>","index":0}), each connection lost and each configuration that a connector
// announces. SIGTERM or SIGINT ends it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
)

const (
	// maxIdleTimeout is above the 5 s of connectors, so that theirs holds.
	maxIdleTimeout = 10 * time.Second
	// streamsOpenedByConnector are the control stream and short RPC streams.
	streamsOpenedByConnector = 16
	// headTimeout ends visitors that do not send a request.
	headTimeout = 10 * time.Second
)

func main() {
	ca := flag.String("ca", "", "file to write the authority's certificate to")
	listen := flag.String("listen", "127.0.0.1:0", "UDP address for connectors")
	visitors := flag.String("visitors", "127.0.0.1:0", "TCP address for visitors, HTTP/1.1")
	version := flag.Bool("version", false, "say which QUIC library this is")
	flag.Parse()
	if *version {
		fmt.Println("stock-edge", libraryVersion())
		return
	}
	if err := run(*ca, *listen, *visitors); err != nil {
		fmt.Fprintln(os.Stderr, "stock-edge:", err)
		os.Exit(1)
	}
}

func run(ca, listen, visitors string) error {
	if ca == "" {
		return errors.New("-ca is missing")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	tlsConfig, err := certificate(ca)
	if err != nil {
		return err
	}
	address, err := net.ResolveUDPAddr("udp", listen)
	if err != nil {
		return err
	}
	socket, err := net.ListenUDP("udp", address)
	if err != nil {
		return err
	}
	transport := &quic.Transport{Conn: socket}
	defer transport.Close()
	listener, err := transport.Listen(tlsConfig, &quic.Config{
		MaxIdleTimeout:     maxIdleTimeout,
		MaxIncomingStreams: streamsOpenedByConnector,
		EnableDatagrams:    true,
	})
	if err != nil {
		return err
	}
	public, err := net.Listen("tcp", visitors)
	if err != nil {
		return err
	}
	edge := &edge{}
	server := &http.Server{Handler: edge, ReadHeaderTimeout: headTimeout}
	report(map[string]any{"edge": socket.LocalAddr().String(), "visitors": public.Addr().String()})
	failed := make(chan error, 2)
	go func() { failed <- edge.accept(ctx, listener) }()
	go func() { failed <- server.Serve(public) }()
	select {
	case <-ctx.Done():
		return server.Close()
	case err := <-failed:
		return err
	}
}

func libraryVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == "github.com/quic-go/quic-go" {
				return "quic-go " + module.Version
			}
		}
	}
	return "quic-go of unknown version"
}

// edge knows the connections that have registered.
type edge struct {
	mutex      sync.Mutex
	registered []*connector
	next       int
}

func (e *edge) accept(ctx context.Context, listener *quic.Listener) error {
	for {
		conn, err := listener.Accept(ctx)
		if err != nil {
			return err
		}
		go e.serve(&connector{conn: conn, edge: e})
	}
}

// serve answers what a connector asks until its connection ends. Its first stream is the control stream.
func (e *edge) serve(c *connector) {
	for control := true; ; control = false {
		stream, err := c.conn.AcceptStream(context.Background())
		if err != nil {
			break
		}
		go c.answer(stream, control)
	}
	if e.remove(c) {
		report(map[string]any{"lost": c.conn.RemoteAddr().String()})
	}
}

func (e *edge) add(c *connector) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	e.registered = append(e.registered, c)
}

// remove returns whether it was there.
func (e *edge) remove(c *connector) bool {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	for i, other := range e.registered {
		if other == c {
			e.registered = append(e.registered[:i:i], e.registered[i+1:]...)
			return true
		}
	}
	return false
}

// take returns one connection after the other, held until its inFlight is done; nil where there is none.
func (e *edge) take() *connector {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	if len(e.registered) == 0 {
		return nil
	}
	e.next = (e.next + 1) % len(e.registered)
	c := e.registered[e.next]
	c.inFlight.Add(1)
	return c
}

var output sync.Mutex

func report(line map[string]any) {
	output.Lock()
	defer output.Unlock()
	// Nobody can be told if standard output is closed.
	_ = json.NewEncoder(os.Stdout).Encode(line)
}
