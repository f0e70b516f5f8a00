package h2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"countersign/internal/memnet"
	"countersign/internal/reason"
)

// raw is a peer that sends whatever frames a test wants. What the other side sends is read by a goroutine of its own,
// unless the test says that it does not read.
type raw struct {
	t    *testing.T
	nc   *memnet.Conn
	fr   *http2.Framer
	hbuf bytes.Buffer
	enc  *hpack.Encoder
	dec  *hpack.Decoder

	mu    sync.Mutex
	got   []string          // frames as text, in order
	heads map[uint32]string // the last head of a stream: "200 name=value ..."
	data  map[uint32]int    // bytes of DATA
	ended map[uint32]bool
	deaf  bool // does not read

	conn    *Conn
	served  chan error
	refused []*reason.Refusal
}

// bubble runs f with a server of handler and a raw client of it, in a bubble: nothing may be left running in the end.
func bubble(t *testing.T, s Settings, handler func(*Stream), f func(p *raw)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe("192.0.2.1:50000", "192.0.2.2:443")
		p := newRaw(t, ours)
		s.Refused = func(r *reason.Refusal) { p.refused = append(p.refused, r) }
		p.conn = Server(theirs, s, handler)
		go func() {
			err := p.conn.Serve()
			theirs.Close()
			p.served <- err
		}()
		_, _ = io.WriteString(ours, http2.ClientPreface)
		_ = p.fr.WriteSettings()
		_ = p.fr.WriteSettingsAck()
		synctest.Wait()
		p.forget()
		f(p)
		ours.Close()
		p.conn.Abort()
		synctest.Wait()
	})
}

func newRaw(t *testing.T, nc *memnet.Conn) *raw {
	p := &raw{t: t, nc: nc, fr: http2.NewFramer(nc, nc), heads: map[uint32]string{}, data: map[uint32]int{}, ended: map[uint32]bool{}, served: make(chan error, 1)}
	p.fr.AllowIllegalWrites = true
	p.enc = hpack.NewEncoder(&p.hbuf)
	p.dec = hpack.NewDecoder(4096, nil)
	go p.read()
	return p
}

func (p *raw) read() {
	for {
		for {
			p.mu.Lock()
			deaf := p.deaf
			p.mu.Unlock()
			if !deaf {
				break
			}
			time.Sleep(time.Second)
		}
		f, err := p.fr.ReadFrame()
		p.mu.Lock()
		if err != nil {
			p.got = append(p.got, "END")
			p.mu.Unlock()
			return
		}
		id := f.Header().StreamID
		switch f := f.(type) {
		case *http2.RSTStreamFrame:
			p.got = append(p.got, fmt.Sprintf("RST_STREAM %d %v", id, f.ErrCode))
		case *http2.GoAwayFrame:
			p.got = append(p.got, fmt.Sprintf("GOAWAY %d %v", f.LastStreamID, f.ErrCode))
		case *http2.PingFrame:
			p.got = append(p.got, fmt.Sprintf("PING %v %s", f.IsAck(), f.Data[:]))
		case *http2.SettingsFrame:
			p.got = append(p.got, fmt.Sprintf("SETTINGS %v", f.IsAck()))
		case *http2.WindowUpdateFrame:
			p.got = append(p.got, fmt.Sprintf("WINDOW_UPDATE %d %d", id, f.Increment))
		case *http2.DataFrame:
			p.got = append(p.got, fmt.Sprintf("DATA %d %d", id, len(f.Data())))
			p.data[id] += len(f.Data())
			p.ended[id] = p.ended[id] || f.StreamEnded()
		case *http2.HeadersFrame:
			fields, err := p.dec.DecodeFull(f.HeaderBlockFragment())
			text := ""
			for _, f := range fields {
				if f.Name == ":status" {
					text += f.Value
				} else {
					text += " " + f.Name + "=" + f.Value
				}
			}
			if err != nil {
				text = err.Error()
			}
			p.heads[id] = text
			p.got = append(p.got, fmt.Sprintf("HEADERS %d", id))
			p.ended[id] = p.ended[id] || f.StreamEnded()
		default:
			p.got = append(p.got, f.Header().Type.String())
		}
		p.mu.Unlock()
	}
}

func (p *raw) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got = nil
}

// seen waits until nothing happens any more and returns the frames since forget.
func (p *raw) seen() []string {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.got...)
}

func (p *raw) head(id uint32) string {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.heads[id]
}

func (p *raw) bytes(id uint32) int {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.data[id]
}

// want fails unless one of the frames seen is this.
func (p *raw) want(frame string) {
	p.t.Helper()
	got := p.seen()
	for _, g := range got {
		if g == frame {
			return
		}
	}
	p.t.Errorf("no %s among %v", frame, got)
}

func (p *raw) never(frame string) {
	p.t.Helper()
	for _, g := range p.seen() {
		if len(g) >= len(frame) && g[:len(frame)] == frame {
			p.t.Errorf("%s was sent", g)
		}
	}
}

// ends waits for Serve and returns its refusal.
func (p *raw) ends() *reason.Refusal {
	p.t.Helper()
	synctest.Wait()
	select {
	case err := <-p.served:
		if err == nil {
			return nil
		}
		var r *reason.Refusal
		if !errors.As(err, &r) {
			p.t.Fatalf("Serve: %v", err)
		}
		return r
	default:
		p.t.Fatal("the connection has not ended")
		return nil
	}
}

func (p *raw) lastRefused() reason.Reason {
	synctest.Wait()
	if len(p.refused) == 0 {
		return reason.Unset
	}
	return p.refused[len(p.refused)-1].Reason
}

// block encodes name, value pairs.
func (p *raw) block(pairs ...string) []byte {
	p.hbuf.Reset()
	for i := 0; i+1 < len(pairs); i += 2 {
		_ = p.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return append([]byte(nil), p.hbuf.Bytes()...)
}

func (p *raw) headers(id uint32, end bool, pairs ...string) {
	_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: end, EndHeaders: true, BlockFragment: p.block(pairs...)})
}

// get is the start of an ordinary request.
func get(more ...string) []string {
	return append([]string{":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/"}, more...)
}

func post(more ...string) []string {
	return append([]string{":method", "POST", ":scheme", "https", ":authority", "a.test", ":path", "/"}, more...)
}

func (p *raw) send(id uint32, end bool, data string) { _ = p.fr.WriteData(id, end, []byte(data)) }

// must is for calls of the test's own that cannot fail.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
