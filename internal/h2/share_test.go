package h2

import (
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"countersign/internal/message"
	"countersign/internal/reason"
)

// lives fails unless s, which waits for its answer, gets it, and the connection takes new streams.
func (p *raw) lives(s *Stream) {
	p.t.Helper()
	p.headers(s.ID(), true, ":status", "204")
	synctest.Wait()
	must(p.t, s.SetReadDeadline(time.Now().Add(time.Second)))
	var resp message.Response
	if err := s.ReadResponse(&resp); err != nil || resp.Status != 204 {
		p.t.Errorf("another stream: %d, %v", resp.Status, err)
	}
	s.Release()
	if p.conn.Room() <= 0 {
		p.t.Errorf("room for %d", p.conn.Room())
	}
	p.never("GOAWAY")
	p.never("END")
}

// TestSharedBudget: what a client can have a target do ends its own streams only, however often.
func TestSharedBudget(t *testing.T) {
	const n = 1000
	noise := func(n int) string { // that no compression makes smaller
		b := make([]byte, n)
		for i := range b {
			b[i] = "!#$%&'*+;<>?@^`{|}~"[rand.N(19)]
		}
		return string(b)
	}(28 << 10)
	for _, test := range []struct {
		name   string
		n      int
		method string
		end    bool // of the request
		answer func(p *raw, id uint32)
	}{
		{"F15/early answers", n, "POST", false, func(p *raw, id uint32) {
			p.headers(id, true, ":status", "401")
			_ = p.fr.WriteRSTStream(id, http2.ErrCodeNo)
		}},
		{"F15/refused streams", n, "POST", false, func(p *raw, id uint32) { _ = p.fr.WriteRSTStream(id, http2.ErrCodeRefusedStream) }},
		{"F15/malformed heads", n, "GET", true, func(p *raw, id uint32) { p.headers(id, true, ":status", "200", "X", "y") }},
		{"F15/too large heads", n, "GET", true, func(p *raw, id uint32) {
			pairs := []string{":status", "302"}
			for range 11 {
				pairs = append(pairs, "a", noise[:3<<10])
			}
			p.headers(id, true, pairs...)
		}},
		{"F15/far too large heads", 400, "GET", true, func(p *raw, id uint32) {
			b := p.block(":status", "302", "a", noise, "b", noise, "c", noise)
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b[:16<<10], EndStream: true})
			for b = b[16<<10:]; len(b) > 0; {
				part := b[:min(len(b), 16<<10)]
				b = b[len(part):]
				_ = p.fr.WriteContinuation(id, len(b) == 0, part)
			}
		}},
		{"F15/DATA after HEAD", n, "HEAD", true, func(p *raw, id uint32) {
			p.headers(id, false, ":status", "200")
			p.send(id, true, "body")
		}},
		{"F15/more than content-length", n, "GET", true, func(p *raw, id uint32) {
			p.headers(id, false, ":status", "200", "content-length", "1")
			p.send(id, true, "body")
		}},
		{"F15/less than content-length", n, "GET", true, func(p *raw, id uint32) {
			p.headers(id, false, ":status", "200", "content-length", "9")
			p.send(id, true, "body")
		}},
		{"F15/tiny frames that nobody reads", 10, "GET", true, func(p *raw, id uint32) {
			p.headers(id, false, ":status", "200")
			for range 500 {
				p.send(id, false, "tick")
			}
			synctest.Wait()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			target(t, Settings{}, func(p *raw) {
				p.hello()
				other := p.ask("GET", nil, true)
				for range test.n {
					s := p.ask(test.method, nil, test.end)
					test.answer(p, s.ID())
					synctest.Wait()
					s.Release()
				}
				synctest.Wait()
				p.lives(other)
			})
		})
	}
	t.Run("F18/a target that floods gets no new streams", func(t *testing.T) {
		target(t, Settings{}, func(p *raw) {
			p.hello()
			other := p.ask("GET", nil, true)
			reserved, err := p.conn.Open()
			must(t, err)
			for range capacity + 10 {
				must(t, p.fr.WritePing(false, [8]byte{}))
				synctest.Wait()
			}
			if _, err := p.conn.Open(); !errors.Is(err, ErrGoingAway) {
				t.Errorf("Open: %v", err)
			}
			if err := reserved.WriteHead([]message.Field{field(":method", "GET")}, nil, true); !errors.Is(err, ErrGoingAway) || !reserved.Unprocessed() {
				t.Errorf("WriteHead: %v", err)
			}
			reserved.Release()
			p.headers(1, false, ":status", "200")
			p.send(1, true, "here")
			synctest.Wait()
			var resp message.Response
			must(t, other.ReadResponse(&resp))
			if b, ok := other.Buffered(); !ok || string(b) != "here" {
				t.Errorf("%q", b)
			}
			other.Release()
			if why := p.ends(); why != nil {
				t.Error(why)
			}
		})
	})
}

// TestUnread: as many streams as there can be, all full and none read, hold up no other, on neither side.
func TestUnread(t *testing.T) {
	t.Run("F15/of a target", func(t *testing.T) {
		target(t, Settings{}, func(p *raw) {
			p.hello(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1000})
			var unread []*Stream
			for p.conn.Room() > 1 {
				unread = append(unread, p.ask("GET", nil, true))
			}
			if len(unread) != defaultStreams-1 {
				t.Fatalf("%d streams", len(unread))
			}
			last := p.ask("GET", nil, true)
			granted := int64(defaultClientWindow)
			p.headers(last.ID(), false, ":status", "200")
			for _, s := range unread {
				p.headers(s.ID(), false, ":status", "200")
				for range defaultClientStreamWindow / frameSize {
					p.send(s.ID(), false, strings.Repeat("x", frameSize))
					granted -= frameSize
				}
			}
			for _, f := range p.seen() {
				if f == "WINDOW_UPDATE 0 8388608" {
					granted += 8 << 20
				}
			}
			if granted < defaultClientWindow/2 {
				t.Errorf("%d bytes left for others", granted)
			}
			p.send(last.ID(), true, "here")
			synctest.Wait()
			if b, ok := last.Buffered(); !ok || string(b) != "here" {
				t.Errorf("%q", b)
			}
			// One byte more is beyond its own window, and ends it alone.
			p.send(unread[0].ID(), false, "x")
			p.want("RST_STREAM 1 FLOW_CONTROL_ERROR")
			p.never("GOAWAY")
		})
	})
	t.Run("F15/of a client", func(t *testing.T) {
		stop := make(chan struct{})
		bubble(t, Settings{}, func(s *Stream) {
			if string(s.Request.Path) == "/wait" {
				<-stop
				return
			}
			got, _ := io.ReadAll(s)
			_ = s.WriteHead([]message.Field{field(":status", "200"), field("got", string(got))}, nil, true)
		}, func(p *raw) {
			stop = make(chan struct{})
			granted := defaultServerWindow
			for id := uint32(1); id < 61; id += 2 {
				p.headers(id, false, ":method", "POST", ":scheme", "https", ":authority", "a.test", ":path", "/wait")
				for range defaultServerStreamWindow / frameSize {
					p.send(id, false, strings.Repeat("x", frameSize))
					granted -= frameSize
				}
			}
			for _, f := range p.seen() {
				if f == "WINDOW_UPDATE 0 524288" {
					granted += 512 << 10
				}
			}
			if granted < defaultServerWindow/2 {
				t.Errorf("%d bytes left for others", granted)
			}
			p.headers(61, false, post()...)
			p.send(61, true, "hello")
			if got := p.head(61); got != "200 got=hello" {
				t.Errorf("got %q", got)
			}
			close(stop)
			p.never("GOAWAY")
		})
	})
}

// TestNotBegun: whoever reads from a stream whose head was not sent learns why, and does not wait.
func TestNotBegun(t *testing.T) {
	head := func(more ...message.Field) []message.Field {
		return append([]message.Field{field(":method", "GET"), field(":scheme", "http"), field(":authority", "a.test"), field(":path", "/")}, more...)
	}
	for name, end := range map[string]func(p *raw){
		"E29/GOAWAY between Open and WriteHead": func(p *raw) { must(t, p.fr.WriteGoAway(1, 0, nil)) },
		"E29/end of the connection":             func(p *raw) { _ = p.nc.CloseWrite() },
	} {
		t.Run(name, func(t *testing.T) {
			target(t, Settings{}, func(p *raw) {
				p.hello()
				other := p.ask("GET", nil, true)
				s, err := p.conn.Open()
				must(t, err)
				end(p)
				synctest.Wait()
				must(t, s.SetReadDeadline(time.Now().Add(time.Second)))
				isRefusal(t, s.WriteHead(head(), nil, true), reason.UpstreamClosed)
				isRefusal(t, s.ReadResponse(new(message.Response)), reason.UpstreamClosed)
				_, err = s.Read(make([]byte, 1))
				isRefusal(t, err, reason.UpstreamClosed)
				if !s.Unprocessed() {
					t.Error("it was not processed")
				}
				s.Release()
				other.Release()
			})
		})
	}
	t.Run("F08/head larger than the target takes", func(t *testing.T) {
		target(t, Settings{}, func(p *raw) {
			p.hello(http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 8192})
			s, err := p.conn.Open()
			must(t, err)
			must(t, s.SetReadDeadline(time.Now().Add(time.Second)))
			isRefusal(t, s.WriteHead(head(field("cookie", strings.Repeat("x", 8000))), []byte("body"), true), reason.HeaderTooLarge)
			isRefusal(t, s.ReadResponse(new(message.Response)), reason.HeaderTooLarge)
			if s.Unprocessed() || len(p.seen()) != 0 {
				t.Errorf("unprocessed %v; sent %v", s.Unprocessed(), p.seen())
			}
			// 8192 bytes with 32 for each field: it fits.
			size := 0
			for _, f := range head() {
				size += len(f.Name) + len(f.Value) + 32
			}
			must(t, s.WriteHead(head(field("cookie", strings.Repeat("x", 8192-size-32-6))), nil, true))
			p.want("HEADERS 1")
			p.lives(s)
		})
	})
}

// TestReady: before the target has said how many streams it takes there is one at most.
func TestReady(t *testing.T) {
	ready := func(c *Conn) bool {
		select {
		case <-c.Ready():
			return true
		default:
			return false
		}
	}
	t.Run("settings", func(t *testing.T) {
		target(t, Settings{}, func(p *raw) {
			a, err := p.conn.Open()
			must(t, err)
			if _, err := p.conn.Open(); !errors.Is(err, ErrFull) || ready(p.conn) {
				t.Errorf("a second stream: %v, ready %v", err, ready(p.conn))
			}
			p.hello(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 3})
			if p.conn.Room() != 2 || !ready(p.conn) {
				t.Errorf("room for %d, ready %v", p.conn.Room(), ready(p.conn))
			}
			// Fewer than there are is no farewell.
			p.ask("GET", nil, true)
			must(t, p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1}))
			synctest.Wait()
			if _, err := p.conn.Open(); !errors.Is(err, ErrFull) || p.conn.Room() != 0 {
				t.Errorf("%v, room for %d", err, p.conn.Room())
			}
			a.Release()
		})
	})
	t.Run("end", func(t *testing.T) {
		target(t, Settings{}, func(p *raw) {
			_ = p.nc.CloseWrite()
			synctest.Wait()
			if p.conn.Room() >= 0 || !ready(p.conn) {
				t.Errorf("room for %d, ready %v", p.conn.Room(), ready(p.conn))
			}
		})
	})
	t.Run("farewell", func(t *testing.T) {
		target(t, Settings{}, func(p *raw) {
			p.conn.GoAway()
			synctest.Wait()
			if !ready(p.conn) {
				t.Error("who waits for it waits for ever")
			}
		})
	})
	t.Run("abort", func(t *testing.T) {
		target(t, Settings{}, func(p *raw) {
			p.conn.Abort()
			if !ready(p.conn) {
				t.Error("who waits for it waits for ever")
			}
		})
	})
}

// TestPanicKeepsStream: after a panic in a handler, what it started may still hold the stream, which becomes no other's.
func TestPanicKeepsStream(t *testing.T) {
	t.Run("F16/pump", func(t *testing.T) {
		var held []*Stream
		var errs atomic.Int32
		step := make(chan struct{})
		bubble(t, Settings{Panicked: func(any, []byte) {}}, func(s *Stream) {
			if s.Request.HasQuery {
				held = append(held, s)
				go func() {
					<-step
					if _, err := s.Read(make([]byte, 10)); err != nil && string(s.Request.Method) == "POST" {
						errs.Add(1)
					}
				}()
				panic("boom")
			}
			for _, other := range held {
				if s == other {
					t.Error("its storage serves another request")
				}
			}
			answer(s)
		}, func(p *raw) {
			step = make(chan struct{})
			id := uint32(1)
			for range 50 {
				p.headers(id, false, ":method", "POST", ":scheme", "https", ":authority", "a.test", ":path", "/?x")
				synctest.Wait()
				p.headers(id+2, true, get()...)
				synctest.Wait()
				id += 4
			}
			close(step)
			synctest.Wait()
			if n := errs.Load(); n != 50 {
				t.Errorf("%d of 50 learnt of the end", n)
			}
		})
	})
}
