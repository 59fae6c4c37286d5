package main

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"github.com/quic-go/quic-go"
)

// What RPC messages are, by their discriminants in rpc.capnp.
const (
	messageUnimplemented = 0
	messageAbort         = 1
	messageCall          = 2
	messageReturn        = 3
	messageFinish        = 4
	messageRelease       = 6
	messageBootstrap     = 8
	returnResults        = 0
	returnException      = 1
	senderHosted         = 1
	interfaceRegister    = 0xf71695ec7fe85497
	interfaceSessions    = 0x839445a59fb01686
	location             = "stock"
)

var rpcSignature = []byte{0x52, 0xbb, 0x82, 0x5c, 0xdb, 0x65}

// connector is one connection of a connector.
type connector struct {
	conn *quic.Conn
	edge *edge
	// inFlight counts requests; it only grows under the edge's mutex while the connection is registered.
	inFlight sync.WaitGroup
}

// answer is the edge's side of an RPC stream that the connector opened.
func (c *connector) answer(stream *quic.Stream, control bool) {
	defer stream.Close()
	if err := c.dispatch(stream, control); err != nil && err != io.EOF {
		report(map[string]any{"problem": err.Error(), "control": control})
		stream.CancelRead(0)
	}
}

func (c *connector) dispatch(stream *quic.Stream, control bool) error {
	if !control {
		signature := make([]byte, len(rpcSignature))
		if _, err := io.ReadFull(stream, signature); err != nil {
			return err
		}
		if string(signature) != string(rpcSignature) {
			return fmt.Errorf("a stream that begins with %x", signature)
		}
	}
	for {
		frame, err := readFrame(stream)
		if err != nil {
			return err
		}
		message, err := root(frame)
		if err != nil {
			return err
		}
		body, err := message.structure(0)
		if err != nil {
			return err
		}
		var answer []byte
		switch message.uint16(0) {
		case messageBootstrap:
			answer = bootstrapAnswer(body.uint32(0))
		case messageCall:
			answer, err = c.call(body)
		case messageAbort:
			return io.EOF
		case messageFinish, messageRelease, messageReturn, messageUnimplemented:
			// Nothing of ours is held for the connector, and it is asked nothing.
		default:
			return fmt.Errorf("an RPC message of kind %d", message.uint16(0))
		}
		if err != nil {
			return err
		}
		if _, err := stream.Write(answer); err != nil {
			return err
		}
	}
}

// call answers a call; pipelined on the bootstrap's answer or not, there is only one object to call.
func (c *connector) call(call structReader) ([]byte, error) {
	question, method, of := call.uint32(0), call.uint16(4), call.uint64(8)
	payload, err := call.structure(1)
	if err != nil {
		return nil, err
	}
	params, err := payload.structure(0)
	if err != nil {
		return nil, err
	}
	switch {
	case of == interfaceRegister && method == 0:
		return c.register(question, params)
	case of == interfaceRegister && method == 1:
		if c.edge.remove(c) {
			report(map[string]any{"unregistered": c.conn.RemoteAddr().String()})
			// A connector waits for the edge to close once what is in flight has ended.
			go func() {
				c.inFlight.Wait()
				_ = c.conn.CloseWithError(0, "")
			}()
		}
		return emptyAnswer(question), nil
	case of == interfaceRegister && method == 2:
		config, err := params.bytes(0)
		if err != nil {
			return nil, err
		}
		if !json.Valid(config) {
			return nil, fmt.Errorf("a configuration that is not JSON")
		}
		report(map[string]any{"configuration": json.RawMessage(config)})
		return emptyAnswer(question), nil
	case of == interfaceSessions && method == 1:
		return emptyAnswer(question), nil
	}
	return exceptionAnswer(question, "no such method here"), nil
}

func (c *connector) register(question uint32, params structReader) ([]byte, error) {
	index := params.uint16(0) & 0xff
	options, err := params.structure(2)
	if err != nil {
		return nil, err
	}
	client, err := options.structure(0)
	if err != nil {
		return nil, err
	}
	id, err := client.bytes(0)
	if err != nil {
		return nil, err
	}
	version, err := client.text(2)
	if err != nil {
		return nil, err
	}
	// Before the answer, so that whoever waits for the connector's own word finds it here.
	c.edge.add(c)
	report(map[string]any{"registered": fmt.Sprintf("%x", id), "index": index, "version": version})
	return registeredAnswer(question), nil
}

// answerTo begins a Return: message, Return, then Payload or Exception; returns where the pointers of that begin.
func answerTo(question uint32, kind uint16, data, pointers int) (*builder, int) {
	b := newBuilder(nil, 256)
	at, message := b.structure(b.alloc(1), 1, 1)
	b.put16(at, messageReturn)
	at, result := b.structure(message, 2, 1)
	b.put32(at, question)
	b.put16(at+6, kind)
	_, content := b.structure(result, data, pointers)
	return b, content
}

// bootstrapAnswer gives the connector capability 0 to call.
func bootstrapAnswer(question uint32) []byte {
	b, content := answerTo(question, returnResults, 0, 2)
	b.put32(content, pointerOther)
	table := b.list(content+word, 1, 1, 1)
	b.put16(table, senderHosted)
	return b.finish(0)
}

func emptyAnswer(question uint32) []byte {
	b, content := answerTo(question, returnResults, 0, 2)
	// A struct of no size points to just before itself (offset -1).
	b.put32(content, 0xffff_fffc)
	return b.finish(0)
}

func exceptionAnswer(question uint32, reason string) []byte {
	b, content := answerTo(question, returnException, 1, 2)
	b.text(content, reason, true)
	return b.finish(0)
}

// registeredAnswer says that the connection is registered: results, ConnectionResponse, ConnectionDetails.
func registeredAnswer(question uint32) []byte {
	b, content := answerTo(question, returnResults, 0, 2)
	_, results := b.structure(content, 0, 1)
	response, details := b.structure(results, 1, 1)
	b.put16(response, 1)
	_, fields := b.structure(details, 1, 2)
	b.text(fields, "stock-edge-conn.", false)
	b.text(fields+word, location, true)
	return b.finish(0)
}
