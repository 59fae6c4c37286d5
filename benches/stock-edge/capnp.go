package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Cap'n Proto as far as the tunnel needs it: messages of one segment, structs, texts and lists of structs, written front
// to back and read in place.

const (
	word = 8
	// messageBytesMax bounds what a connector may announce.
	messageBytesMax = 1 << 20
	pointerStruct   = 0
	pointerList     = 1
	pointerOther    = 3
	elementByte     = 2
	elementStruct   = 7
)

var errMalformed = errors.New("malformed Cap'n Proto message")

// builder is a framed message in the making: its table of segments, then the segment.
type builder struct{ bytes []byte }

func newBuilder(prefix []byte, capacity int) *builder {
	b := &builder{bytes: make([]byte, len(prefix)+word, len(prefix)+capacity)}
	copy(b.bytes, prefix)
	return b
}

// alloc appends zeroed words and returns where they begin.
func (b *builder) alloc(words int) int {
	at := len(b.bytes)
	b.bytes = append(b.bytes, make([]byte, words*word)...)
	return at
}

// finish writes the table of segments for what follows the prefix.
func (b *builder) finish(prefix int) []byte {
	binary.LittleEndian.PutUint32(b.bytes[prefix+4:], uint32((len(b.bytes)-prefix-word)/word))
	return b.bytes
}

func (b *builder) put16(at int, value uint16) { binary.LittleEndian.PutUint16(b.bytes[at:], value) }
func (b *builder) put32(at int, value uint32) { binary.LittleEndian.PutUint32(b.bytes[at:], value) }

func (b *builder) pointer(at, kind, target int, high uint32) {
	offset := (target - at - word) / word
	b.put32(at, uint32(offset)<<2|uint32(kind))
	b.put32(at+4, high)
}

// structure appends a struct that the pointer at `at` points to, and returns where its data and its pointers begin.
func (b *builder) structure(at, data, pointers int) (int, int) {
	target := b.alloc(data + pointers)
	b.pointer(at, pointerStruct, target, uint32(data)|uint32(pointers)<<16)
	return target, target + data*word
}

// text appends a Text; Data where it is not terminated by a zero.
func (b *builder) text(at int, text string, terminated bool) {
	length := len(text)
	if terminated {
		length++
	}
	target := b.alloc((length + word - 1) / word)
	copy(b.bytes[target:], text)
	b.pointer(at, pointerList, target, elementByte|uint32(length)<<3)
}

// list appends a list of structs without data, and returns where the pointers of the first begin.
func (b *builder) list(at, count, data, pointers int) int {
	words := count * (data + pointers)
	target := b.alloc(1 + words)
	b.pointer(at, pointerList, target, elementStruct|uint32(words)<<3)
	b.put32(target, uint32(count)<<2)
	b.put32(target+4, uint32(data)|uint32(pointers)<<16)
	return target + word
}

// structReader is a struct in a segment; fields beyond what was sent are zero.
type structReader struct {
	segment        []byte
	data, pointers int // where they begin
	dataBytes      int
	pointerCount   int
}

// frameBytes returns the length of the framed message at the front of `bytes`, 0 while that is not known.
func frameBytes(bytes []byte) (int, error) {
	if len(bytes) < word {
		return 0, nil
	}
	if binary.LittleEndian.Uint32(bytes) != 0 {
		return 0, errors.New("a message of several segments")
	}
	words := int64(binary.LittleEndian.Uint32(bytes[4:]))
	if words*word > messageBytesMax {
		return 0, fmt.Errorf("a message of %d bytes", words*word)
	}
	return word + int(words)*word, nil
}

// readFrame reads one framed message.
func readFrame(from io.Reader) ([]byte, error) {
	head := make([]byte, word)
	if _, err := io.ReadFull(from, head); err != nil {
		return nil, err
	}
	length, err := frameBytes(head)
	if err != nil {
		return nil, err
	}
	frame := make([]byte, length)
	copy(frame, head)
	_, err = io.ReadFull(from, frame[word:])
	return frame, err
}

// root returns the struct that a framed message holds.
func root(frame []byte) (structReader, error) {
	return readStruct(frame[word:], 0)
}

func readStruct(segment []byte, at int) (structReader, error) {
	if at < 0 || at+word > len(segment) {
		return structReader{}, errMalformed
	}
	low := binary.LittleEndian.Uint32(segment[at:])
	high := binary.LittleEndian.Uint32(segment[at+4:])
	if low == 0 && high == 0 {
		return structReader{segment: segment}, nil
	}
	if low&3 != pointerStruct {
		return structReader{}, errMalformed
	}
	r := structReader{segment: segment, data: at + word + int(int32(low)>>2)*word}
	r.dataBytes = int(high&0xffff) * word
	r.pointers = r.data + r.dataBytes
	r.pointerCount = int(high >> 16)
	if r.data < 0 || r.pointers+r.pointerCount*word > len(segment) {
		return structReader{}, errMalformed
	}
	return r, nil
}

func (r structReader) uint16(at int) uint16 {
	if at+2 > r.dataBytes {
		return 0
	}
	return binary.LittleEndian.Uint16(r.segment[r.data+at:])
}

func (r structReader) uint32(at int) uint32 {
	if at+4 > r.dataBytes {
		return 0
	}
	return binary.LittleEndian.Uint32(r.segment[r.data+at:])
}

func (r structReader) uint64(at int) uint64 {
	return uint64(r.uint32(at)) | uint64(r.uint32(at+4))<<32
}

func (r structReader) structure(pointer int) (structReader, error) {
	if pointer >= r.pointerCount {
		return structReader{segment: r.segment}, nil
	}
	return readStruct(r.segment, r.pointers+pointer*word)
}

// list returns where the content of a list begins, its element size and their count (or words, for structs).
func (r structReader) list(pointer int) (at int, element, count uint32, err error) {
	if pointer >= r.pointerCount {
		return 0, 0, 0, nil
	}
	place := r.pointers + pointer*word
	low := binary.LittleEndian.Uint32(r.segment[place:])
	high := binary.LittleEndian.Uint32(r.segment[place+4:])
	if low == 0 && high == 0 {
		return 0, 0, 0, nil
	}
	if low&3 != pointerList {
		return 0, 0, 0, errMalformed
	}
	at = place + word + int(int32(low)>>2)*word
	if at < 0 || at > len(r.segment) {
		return 0, 0, 0, errMalformed
	}
	return at, high & 7, high >> 3, nil
}

// data returns a Data in place.
func (r structReader) bytes(pointer int) ([]byte, error) {
	at, element, count, err := r.list(pointer)
	if err != nil || count == 0 {
		return nil, err
	}
	if element != elementByte || at+int(count) > len(r.segment) {
		return nil, errMalformed
	}
	return r.segment[at : at+int(count)], nil
}

// text returns a Text without its zero.
func (r structReader) text(pointer int) (string, error) {
	bytes, err := r.bytes(pointer)
	if err != nil || len(bytes) == 0 {
		return "", err
	}
	if bytes[len(bytes)-1] != 0 {
		return "", errMalformed
	}
	return string(bytes[:len(bytes)-1]), nil
}

// structures calls `each` with all structs of a list.
func (r structReader) structures(pointer int, each func(structReader) error) error {
	at, element, words, err := r.list(pointer)
	if err != nil || at == 0 {
		return err
	}
	if element != elementStruct || at+word+int(words)*word > len(r.segment) {
		return errMalformed
	}
	count := int(binary.LittleEndian.Uint32(r.segment[at:]) >> 2)
	shape := binary.LittleEndian.Uint32(r.segment[at+4:])
	dataWords, pointers := int(shape&0xffff), int(shape>>16)
	if count > messageBytesMax || count*(dataWords+pointers) > int(words) {
		return errMalformed
	}
	at += word
	for range count {
		item := structReader{segment: r.segment, data: at, dataBytes: dataWords * word}
		item.pointers = at + item.dataBytes
		item.pointerCount = pointers
		if err := each(item); err != nil {
			return err
		}
		at = item.pointers + pointers*word
	}
	return nil
}
