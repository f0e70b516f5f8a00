// Package h1 owns the HTTP/1.1 wire on both sides: strict reading of heads and bodies, and writing of framing
// (RFC 9112). Where the RFC leaves room for two readings it refuses. It does not decide where a message goes.
package h1

import (
	"bytes"
	"errors"
	"io"
	"sync"

	"countersign/internal/message"
	"countersign/internal/reason"
)

// Limits bound one message. The zero value of a field means no limit, except HeadBytes, which must be set.
type Limits struct {
	HeadBytes int   // whole head, start line included
	Fields    int   // number of header fields
	BodyBytes int64 // decoded body of a request
	// Mitigation says what happens to requests that deviate from RFC 9112. Responses are always read strictly.
	Mitigation message.Mitigation
}

// Reader reads messages from one connection. Heads are parsed in place in its buffer, so a head is valid until the next
// one is read. Between messages, when nothing is buffered, it holds no buffer at all.
type Reader struct {
	src    io.Reader
	limits Limits
	pool   *sync.Pool
	buf    *[]byte
	r, w   int // unread bytes are (*buf)[r:w]
	one    [1]byte
	bare   bool // the lines of the last head ended in LF alone
	body   Body

	trailers []message.Field // of body, see Body.CollectTrailers
}

// Reset makes the reader read from src and drops whatever was buffered. Responses says that it is used for a target's
// responses: they are read with a large buffer, so that an ordinary body comes along with its head.
func (d *Reader) Reset(src io.Reader, limits Limits, responses bool) {
	d.Release()
	d.src, d.limits, d.pool = src, limits, &small
	if responses {
		d.pool = &large
	}
}

const (
	smallBuffer = 4 << 10
	largeBuffer = 32 << 10
	slack       = 4 << 10 // room behind the largest head, so that reading can go on into the body
	front       = 1 << 10 // room before responses, so that another head fits there (Body.BufferedBehind)
)

var (
	small = sync.Pool{New: func() any { b := make([]byte, smallBuffer); return &b }}
	large = sync.Pool{New: func() any { b := make([]byte, largeBuffer); return &b }}
)

// Release gives the buffer back. Buffered bytes are lost.
func (d *Reader) Release() {
	if d.buf != nil {
		switch len(*d.buf) {
		case smallBuffer:
			small.Put(d.buf)
		case largeBuffer:
			large.Put(d.buf)
		}
	}
	d.buf, d.r, d.w = nil, 0, 0
}

// Buffered is the number of bytes that have been read from the connection and not been used.
func (d *Reader) Buffered() int { return d.w - d.r }

// Wait blocks until a byte is there, holding no buffer while it does.
func (d *Reader) Wait() error {
	if d.Buffered() > 0 {
		return nil
	}
	d.Release()
	// One byte first: a TLS connection decrypts the whole record then, and the rest is read without another system call.
	for {
		n, err := d.src.Read(d.one[:])
		if n == 1 {
			d.buf = d.pool.Get().(*[]byte)
			(*d.buf)[0] = d.one[0]
			d.r, d.w = 0, 1
			return nil
		}
		if err != nil {
			return err
		}
	}
}

var crlf = []byte("\r\n")

// errFull means that a head does not fit its limit.
var errFull = errors.New("h1: head exceeds its limit")

// fill reads more bytes behind those that are buffered, growing the buffer up to the head limit.
func (d *Reader) fill() error {
	if d.buf == nil {
		if d.buf = d.pool.Get().(*[]byte); d.pool == &large {
			d.r, d.w = front, front
		}
	}
	b := *d.buf
	if d.w == len(b) {
		switch {
		case d.r > 0:
			copy(b, b[d.r:d.w])
			d.w -= d.r
			d.r = 0
		case len(b) >= d.limits.HeadBytes+slack:
			return errFull
		default:
			// For a large head only; it goes when nothing is buffered any more.
			big := make([]byte, d.limits.HeadBytes+slack)
			n := copy(big, b[:d.w])
			d.Release()
			d.buf, d.w, b = &big, n, big
		}
	}
	for range 16 { // a reader that returns nothing and no error is broken
		n, err := d.src.Read(b[d.w:])
		d.w += n
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// head returns the bytes of the next head, from its first byte through the empty line, and consumes them. It refuses
// bare LF as soon as it is seen, so that a client that never sends CRLF is answered and does not wait for a time-out.
// Modes that are not strict take it if every line of the head ends so, and get a copy with CR LF: where only some lines
// do, one reader sees the end of a line where another sees a part of a value.
func (d *Reader) head(tooLarge, bad reason.Reason) ([]byte, error) {
	line, seen := 0, 0 // offsets from d.r: start of the current line, and up to where was searched
	bare := false
	for {
		if d.buf != nil {
			b := (*d.buf)[d.r:d.w]
			for {
				i := bytes.IndexByte(b[seen:], '\n')
				if i < 0 {
					seen = len(b)
					break
				}
				end := seen + i
				if end+1 > d.limits.HeadBytes { // first, so that the answer does not depend on how the bytes were cut
					return nil, refuse(tooLarge, "", "")
				}
				if bare || end == line || b[end-1] != '\r' {
					switch {
					case line == 0 && d.limits.Mitigation != message.Strictest:
						bare = true
					case !bare:
						return nil, refuse(bad, "line ends of CR LF", "a bare LF")
					case end > line && b[end-1] == '\r':
						return nil, refuse(bad, "line ends all alike", "CR LF and bare LF")
					case end == line:
						d.r += end + 1
						d.bare = true
						return bytes.ReplaceAll(b[:end+1], []byte("\n"), crlf), nil
					}
				} else if end-line == 1 {
					d.r += end + 1
					d.bare = false
					return b[:end+1], nil
				}
				line, seen = end+1, end+1
			}
			if len(b) > d.limits.HeadBytes {
				return nil, refuse(tooLarge, "", "")
			}
		}
		if err := d.fill(); err != nil {
			if err == errFull {
				return nil, refuse(tooLarge, "", "")
			}
			return nil, err
		}
	}
}

func refuse(r reason.Reason, expected, found string) error {
	return &reason.Refusal{Reason: r, Expected: expected, Found: found}
}

// cutLine cuts the first line, without its CR LF, off head. Every line of a head ends in CR LF (see Reader.head).
func cutLine(head []byte) (line, rest []byte) {
	i := bytes.IndexByte(head, '\n')
	return head[:i-1], head[i+1:]
}

// fields parses the header lines of head into dst; limit is the greatest number, or 0.
func fields(dst []message.Field, head []byte, limit int, bad reason.Reason) ([]message.Field, error) {
	for {
		line, rest := cutLine(head)
		if len(line) == 0 {
			return dst, nil
		}
		head = rest
		if limit > 0 && len(dst) == limit {
			return dst, refuse(reason.HeaderTooMany, "", "")
		}
		colon := bytes.IndexByte(line, ':')
		if colon < 0 {
			return dst, refuse(bad, "name: value", "a header line without a colon")
		}
		name, val := line[:colon], line[colon+1:]
		if !message.IsToken(name) { // also catches folding and space before the colon
			return dst, refuse(bad, "a header name of token characters", "other characters in it, or a folded line")
		}
		for len(val) > 0 && (val[0] == ' ' || val[0] == '\t') {
			val = val[1:]
		}
		for len(val) > 0 && (val[len(val)-1] == ' ' || val[len(val)-1] == '\t') {
			val = val[:len(val)-1]
		}
		if !message.IsValue(val) {
			return dst, refuse(bad, "a header value without control characters", "a control character")
		}
		dst = append(dst, message.Field{Name: name, Value: val})
	}
}
