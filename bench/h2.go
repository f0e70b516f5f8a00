package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// streamWindow and connWindow are what a client of HTTP/2 lets the other side send. The latter is refilled when half of it
// is left, so rarely that it costs nobody anything.
const (
	streamWindow = 1 << 20
	connWindow   = 16 << 20
)

// h2conn is one connection of HTTP/2 and what is under way on it. One goroutine has it: it writes requests into a
// buffer, which leaves when there is nothing more to read, and reads answers as they come. That is less work for the load than a
// goroutine for each stream.
type h2conn struct {
	conn   *tls.Conn
	r      *bufio.Reader
	w      *bufio.Writer
	framer *http2.Framer
	dec    *hpack.Decoder
	enc    *hpack.Encoder
	block  bytes.Buffer
	next   uint32
	flows  []*flow
	// current is whose header block is being read; given counts what is still left of the connection's window.
	current *flow
	given   int
}

// flow is a request that was sent and its answer as far as it is there.
type flow struct {
	id     uint32
	began  time.Time
	status string
	length int
	body   []byte
	keep   bool
}

// dialH2 connects and waits for the settings of the other side.
func dialH2(c call) (*h2conn, error) {
	conf := c.config()
	conf.NextProtos = []string{"h2"}
	conn, err := dial(c.addr, conf)
	if err != nil {
		return nil, err
	}
	h := &h2conn{conn: conn, r: bufio.NewReaderSize(conn, 64<<10), w: bufio.NewWriterSize(conn, 16<<10), next: 1,
		given: 65535} // RFC 9113 section 6.9.2
	if got := conn.ConnectionState().NegotiatedProtocol; got != "h2" {
		conn.Close()
		return nil, fmt.Errorf("it chose the protocol %q; expected h2", got)
	}
	h.framer = http2.NewFramer(h.w, h.r)
	h.framer.SetReuseFrames()
	h.dec = hpack.NewDecoder(4096, h.field)
	h.enc = hpack.NewEncoder(&h.block)
	if err := h.greet(); err != nil {
		conn.Close()
		return nil, err
	}
	return h, nil
}

func (h *h2conn) greet() error {
	_, _ = h.w.WriteString(http2.ClientPreface)
	if err := h.framer.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: streamWindow}); err != nil {
		return err
	}
	if err := h.refill(); err != nil {
		return err
	}
	if err := h.w.Flush(); err != nil {
		return err
	}
	f, err := h.framer.ReadFrame()
	if err != nil {
		return err
	}
	settings, ok := f.(*http2.SettingsFrame)
	if !ok || settings.IsAck() {
		return fmt.Errorf("the first frame is %v; expected SETTINGS", f.Header())
	}
	return h.settle(settings)
}

// refill makes the connection's window as large as it was.
func (h *h2conn) refill() error {
	more := connWindow - h.given
	h.given = connWindow
	return h.framer.WriteWindowUpdate(0, uint32(more))
}

func (h *h2conn) settle(f *http2.SettingsFrame) error {
	if n, ok := f.Value(http2.SettingHeaderTableSize); ok {
		h.enc.SetMaxDynamicTableSizeLimit(min(n, 4096))
	}
	return h.framer.WriteSettingsAck()
}

// field takes a decoded header field.
func (h *h2conn) field(f hpack.HeaderField) {
	if f.Name == ":status" && h.current != nil {
		h.current.status = f.Value
	}
}

// send asks for path; more are fields besides those of every request. It leaves with the next wait at the latest.
func (h *h2conn) send(name, path string, keep bool, more ...hpack.HeaderField) error {
	h.block.Reset()
	for _, f := range append([]hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: name},
		{Name: ":path", Value: path},
		{Name: "user-agent", Value: "bench/1.0"}, {Name: "accept", Value: "*/*"}, {Name: "accept-encoding", Value: "gzip"}}, more...) {
		if err := h.enc.WriteField(f); err != nil {
			return err
		}
	}
	f := &flow{id: h.next, began: time.Now(), keep: keep}
	h.next += 2
	h.flows = append(h.flows, f)
	return h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: f.id, BlockFragment: h.block.Bytes(), EndStream: true, EndHeaders: true})
}

func (h *h2conn) flow(id uint32) (*flow, error) {
	k := slices.IndexFunc(h.flows, func(f *flow) bool { return f.id == id })
	if k < 0 {
		return nil, fmt.Errorf("a frame of stream %d, which is not open", id)
	}
	return h.flows[k], nil
}

// wait returns the next request whose answer is there.
func (h *h2conn) wait() (*flow, error) {
	for {
		if h.r.Buffered() == 0 {
			if err := h.w.Flush(); err != nil {
				return nil, err
			}
		}
		f, err := h.framer.ReadFrame()
		if err != nil {
			return nil, err
		}
		var end bool
		switch f := f.(type) {
		case *http2.HeadersFrame:
			if h.current, err = h.flow(f.StreamID); err == nil {
				_, err = h.dec.Write(f.HeaderBlockFragment())
			}
			if !f.HeadersEnded() {
				err = errors.New("a header block of more than one frame")
			}
			end = f.StreamEnded()
		case *http2.DataFrame:
			if h.current, err = h.flow(f.StreamID); err != nil {
				return nil, err
			}
			h.current.length += len(f.Data())
			if h.current.keep {
				h.current.body = append(h.current.body, f.Data()...)
			}
			if h.given -= int(f.Length); h.given < connWindow/2 {
				err = h.refill()
			}
			end = f.StreamEnded()
		case *http2.SettingsFrame:
			if !f.IsAck() {
				err = h.settle(f)
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				err = h.framer.WritePing(true, f.Data)
			}
		case *http2.RSTStreamFrame:
			err = fmt.Errorf("stream %d was reset: %v", f.StreamID, f.ErrCode)
		case *http2.GoAwayFrame:
			err = fmt.Errorf("GOAWAY: %v %.60q", f.ErrCode, f.DebugData())
		}
		if err != nil {
			return nil, err
		}
		if end {
			done := h.current
			h.flows = slices.DeleteFunc(h.flows, func(f *flow) bool { return f == done })
			return done, nil
		}
	}
}

// get is one request on a connection where nothing else is under way.
func (h *h2conn) get(path string, more ...hpack.HeaderField) ([]byte, error) {
	if err := h.send(host, path, true, more...); err != nil {
		return nil, err
	}
	f, err := h.wait()
	if err != nil {
		return nil, err
	}
	if f.status != "200" {
		return nil, fmt.Errorf("answer %.20q", f.status)
	}
	return f.body, nil
}

// multiplexed keeps some streams under way on each connection: a new one begins when one has ended. A unit is a request.
func multiplexed(c call, path string, streams, length int) opener {
	return func(int) (step, func(), error) {
		h, err := dialH2(c)
		if err != nil {
			return nil, nil, err
		}
		_ = h.conn.SetDeadline(time.Now().Add(lasting))
		for range streams {
			if err := h.send(host, path, false); err != nil {
				h.conn.Close()
				return nil, nil, err
			}
		}
		return func(t *tally) error {
			f, err := h.wait()
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return err
			}
			if f.status != "200" || f.length != length {
				return fmt.Errorf("answer %.20q of %d bytes; expected 200 and %d", f.status, f.length, length)
			}
			t.one(f.began)
			return h.send(host, path, false)
		}, func() { h.conn.Close() }, nil
	}
}
