package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

const (
	headerPrefix = "HttpHeader:"
	// bufferBytes is what one read takes off a stream or a visitor.
	bufferBytes = 64 << 10
)

// dataPreamble begins both halves of a request's stream: signature and version.
var dataPreamble = []byte("\x0a\x36\xcd\x12\xa1\x3e01")

var buffers = sync.Pool{New: func() any { buffer := make([]byte, bufferBytes); return &buffer }}

type field struct{ key, value string }

// head is the response's head as a connector sends it.
type head struct {
	fault  string
	status int
	header http.Header
	// rest is the beginning of the body, which came in the same read.
	rest []byte
}

func (e *edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "" {
		http.Error(w, "only plain HTTP here", http.StatusNotImplemented)
		return
	}
	c := e.take()
	if c == nil {
		http.Error(w, "no connector has registered", http.StatusServiceUnavailable)
		return
	}
	defer c.inFlight.Done()
	stream, err := c.conn.OpenStreamSync(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	x := &exchange{w: w, r: r, stream: stream}
	defer context.AfterFunc(r.Context(), x.abort)()
	if err := x.run(); err != nil {
		gone := r.Context().Err() != nil
		x.abort()
		if x.begun || gone {
			panic(http.ErrAbortHandler)
		}
		report(map[string]any{"problem": err.Error()})
		http.Error(w, err.Error(), http.StatusBadGateway)
	}
}

// exchange is one request and its answer.
type exchange struct {
	w      http.ResponseWriter
	r      *http.Request
	stream *quic.Stream
	// begun says that the visitor has been sent a head.
	begun bool
}

// abort ends both directions of the stream where they have not ended.
func (x *exchange) abort() {
	x.stream.CancelWrite(0)
	x.stream.CancelRead(0)
}

func (x *exchange) run() error {
	if _, err := x.stream.Write(preamble(x.r)); err != nil {
		return err
	}
	uploaded := make(chan struct{})
	if x.r.ContentLength == 0 {
		close(uploaded)
		// A connector that has answered already may have asked for no more; the answer counts.
		_ = x.stream.Close()
	} else {
		// The answer may begin before the body has ended.
		if err := http.NewResponseController(x.w).EnableFullDuplex(); err != nil {
			return err
		}
		go func() {
			defer close(uploaded)
			if err := send(x.stream, x.r.Body); err != nil {
				x.stream.CancelWrite(0)
			}
		}()
	}
	err := x.download()
	select {
	case <-uploaded:
	default:
		// What is left of the body is of no use any more: neither the stream nor the visitor is waited for.
		x.stream.CancelWrite(0)
		if e := http.NewResponseController(x.w).SetReadDeadline(time.Now()); err == nil {
			err = e
		}
		<-uploaded
	}
	return err
}

// send copies a body to the stream and ends it.
func send(stream *quic.Stream, from io.Reader) error {
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	for {
		n, err := from.Read(*buffer)
		if n > 0 {
			if _, err := stream.Write((*buffer)[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return stream.Close()
		}
		if err != nil {
			return err
		}
	}
}

// download copies the answer to the visitor.
func (x *exchange) download() error {
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	head, err := x.readHead(*buffer)
	if err != nil {
		return err
	}
	for name, values := range head.header {
		x.w.Header()[name] = values
	}
	x.begun = true
	x.w.WriteHeader(head.status)
	// Whoever sends without a length may want to be heard before the end.
	flush := head.header.Get("Content-Length") == ""
	return x.receive(head.rest, *buffer, flush)
}

// receive copies what is left of the stream, beginning with what was read already.
func (x *exchange) receive(rest, buffer []byte, flush bool) error {
	var ended error
	for {
		if len(rest) > 0 {
			if _, err := x.w.Write(rest); err != nil {
				return err
			}
			if flush {
				if err := http.NewResponseController(x.w).Flush(); err != nil {
					return err
				}
			}
		}
		if ended == io.EOF {
			return nil
		}
		if ended != nil {
			return ended
		}
		var n int
		n, ended = x.stream.Read(buffer)
		rest = buffer[:n]
	}
}

// readHead reads up to the end of the response's head.
func (x *exchange) readHead(buffer []byte) (head, error) {
	have, need := 0, len(dataPreamble)+word
	for have < need {
		if need > len(buffer) {
			return head{}, errors.New("a response head of more than 64 KiB")
		}
		n, err := x.stream.Read(buffer[have:])
		have += n
		if have >= len(dataPreamble)+word {
			length, err := frameBytes(buffer[len(dataPreamble):])
			if err != nil {
				return head{}, err
			}
			need = len(dataPreamble) + length
		}
		if err != nil && have < need {
			return head{}, fmt.Errorf("the stream ended within the response head: %w", err)
		}
	}
	if string(buffer[:len(dataPreamble)]) != string(dataPreamble) {
		return head{}, fmt.Errorf("a response that begins with %x", buffer[:len(dataPreamble)])
	}
	h, err := parseHead(buffer[len(dataPreamble):need])
	h.rest = buffer[need:have]
	if err == nil && h.fault != "" {
		err = errors.New(h.fault)
	}
	return h, err
}

func parseHead(frame []byte) (head, error) {
	h := head{status: http.StatusBadGateway, header: make(http.Header)}
	response, err := root(frame)
	if err != nil {
		return h, err
	}
	if h.fault, err = response.text(0); err != nil {
		return h, err
	}
	err = response.structures(1, func(entry structReader) error {
		key, err := entry.text(0)
		if err != nil {
			return err
		}
		value, err := entry.text(1)
		if err != nil {
			return err
		}
		if name, is := strings.CutPrefix(key, headerPrefix); is {
			name = textproto.CanonicalMIMEHeaderKey(name)
			h.header[name] = append(h.header[name], value)
		} else if key == "HttpStatus" {
			h.status, err = strconv.Atoi(value)
		}
		return err
	})
	return h, err
}

// preamble writes signature, version and ConnectRequest of a request.
func preamble(r *http.Request) []byte {
	fields := make([]field, 0, len(r.Header)+4)
	fields = append(fields, field{"HttpMethod", r.Method}, field{"HttpHost", r.Host})
	for name, values := range r.Header {
		for _, value := range values {
			fields = append(fields, field{headerPrefix + name, value})
		}
	}
	switch {
	case r.ContentLength < 0:
		// Without one of the two a connector takes no body.
		fields = append(fields, field{headerPrefix + "Transfer-Encoding", "chunked"})
	case r.ContentLength > 0 && r.Header.Get("Content-Length") == "":
		length := strconv.FormatInt(r.ContentLength, 10)
		fields = append(fields, field{headerPrefix + "Content-Length", length})
	}
	b := newBuilder(dataPreamble, 2048)
	// The kind of request is left at zero, which is HTTP.
	_, pointers := b.structure(b.alloc(1), 1, 2)
	b.text(pointers, "http://"+r.Host+r.URL.RequestURI(), true)
	entry := b.list(pointers+word, len(fields), 0, 2)
	for _, field := range fields {
		b.text(entry, field.key, true)
		b.text(entry+word, field.value, true)
		entry += 2 * word
	}
	return b.finish(len(dataPreamble))
}
