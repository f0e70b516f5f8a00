package h2

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"countersign/internal/message"
	"countersign/internal/reason"
)

var ok200 = []message.Field{field(":status", "200")}

// TestZeroWindow: a peer that grants no window holds its own stream only, and that as long as the caller lets it.
func TestZeroWindow(t *testing.T) {
	t.Run("F09/window of nought", func(t *testing.T) {
		errs := make(chan error, 200)
		streams := make(chan *Stream, 200)
		bubble(t, Settings{}, func(s *Stream) {
			if string(s.Request.Path) == "/" {
				streams <- s
				errs <- s.WriteHead(ok200, make([]byte, 1<<20), true)
				return
			}
			answer(s)
		}, func(p *raw) {
			errs, streams = make(chan error, 200), make(chan *Stream, 200)
			must(t, p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
			for i := range 99 {
				p.headers(uint32(2*i+1), true, get()...)
			}
			synctest.Wait()
			if len(errs) != 0 || p.conn.Streams() != 99 || p.conn.WritingSince() != 0 {
				t.Fatalf("%d of %d streams ended, writing since %d", len(errs), p.conn.Streams(), p.conn.WritingSince())
			}
			// Others are served meanwhile.
			p.headers(1001, true, ":method", "GET", ":scheme", "https", ":path", "/big/0", ":authority", "a.test")
			if got := p.head(1001); got != " x-trailer=yes" {
				t.Errorf("got %q", got)
			}
			for range 99 {
				must(t, (<-streams).SetWriteDeadline(time.Unix(1, 0)))
			}
			for range 99 {
				if err := <-errs; !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("a write ended with %v", err)
				}
			}
			p.want("RST_STREAM 1 INTERNAL_ERROR")
			synctest.Wait()
			if n := p.conn.Streams(); n != 0 {
				t.Errorf("%d streams left", n)
			}
		})
	})
	t.Run("F09/window byte by byte", func(t *testing.T) {
		bubble(t, Settings{}, func(s *Stream) { _ = s.WriteHead(ok200, make([]byte, 100_000), true) }, func(p *raw) {
			must(t, p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
			p.headers(1, true, get()...)
			for range 2000 {
				if p.fr.WriteWindowUpdate(1, 1) != nil {
					break
				}
			}
			p.want("GOAWAY 1 ENHANCE_YOUR_CALM")
			if why := p.ends(); why.Reason != reason.H2EnhanceYourCalm {
				t.Error(why)
			}
		})
	})
	t.Run("F02/nothing is read", func(t *testing.T) {
		errs := make(chan error, 2)
		bubble(t, Settings{}, func(s *Stream) {
			var err error
			for err == nil {
				_, err = s.Write(make([]byte, 64<<10))
			}
			errs <- err
		}, func(p *raw) {
			errs = make(chan error, 2)
			p.mu.Lock()
			p.deaf = true
			p.mu.Unlock()
			must(t, p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30}))
			must(t, p.fr.WriteWindowUpdate(0, 1<<30))
			p.headers(1, true, get()...)
			p.headers(3, true, get()...)
			time.Sleep(time.Minute)
			synctest.Wait()
			since := p.conn.WritingSince()
			if age := time.Now().UnixMilli() - since; since == 0 || age < 50_000 {
				t.Fatalf("writing since %d, that is %d ms", since, age)
			}
			p.conn.Abort()
			if why := p.ends(); why.Reason != reason.ShutdownForced {
				t.Error(why)
			}
			isRefusal(t, <-errs, reason.ShutdownForced)
			isRefusal(t, <-errs, reason.ShutdownForced)
			p.mu.Lock()
			p.deaf = false
			p.mu.Unlock()
			time.Sleep(2 * time.Second)
		})
	})
	t.Run("F15/deadline of the stream that writes", func(t *testing.T) {
		var err error
		var one *Stream
		bubble(t, Settings{}, func(s *Stream) {
			if s.ID() > 1 {
				answer(s)
				return
			}
			one = s
			for err == nil {
				_, err = s.Write(make([]byte, 64<<10))
			}
		}, func(p *raw) {
			p.mu.Lock()
			p.deaf = true
			p.mu.Unlock()
			must(t, p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30}))
			must(t, p.fr.WriteWindowUpdate(0, 1<<30))
			p.headers(1, true, get()...)
			time.Sleep(time.Minute)
			synctest.Wait()
			must(t, one.SetWriteDeadline(time.Unix(1, 0)))
			p.headers(3, true, get()...)
			synctest.Wait()
			p.mu.Lock()
			p.deaf = false
			p.mu.Unlock()
			time.Sleep(2 * time.Second)
			if got := p.head(3); !strings.HasPrefix(got, "200") {
				t.Errorf("another stream got %q", got)
			}
			p.want("RST_STREAM 1 INTERNAL_ERROR")
			p.never("END")
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the write ended with %v", err)
			}
		})
	})
}

// TestTurns: streams that write at the same time get their turns, one frame each.
func TestTurns(t *testing.T) {
	bubble(t, Settings{}, func(s *Stream) { _ = s.WriteHead(ok200, make([]byte, 256<<10), true) }, func(p *raw) {
		must(t, p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}))
		for id := uint32(1); id < 8; id += 2 {
			p.headers(id, true, get()...) // the connection's window is used up by the first
		}
		p.seen()
		p.forget()
		must(t, p.fr.WriteWindowUpdate(0, 512<<10))
		var order []string
		for _, f := range p.seen() {
			if strings.HasPrefix(f, "DATA") {
				order = append(order, strings.Fields(f)[1])
			}
		}
		if len(order) < 16 {
			t.Fatal(order)
		}
		seen := map[string]int{}
		for _, id := range order[:16] {
			seen[id]++
		}
		for _, n := range seen {
			if n < 3 || n > 5 {
				t.Errorf("no fair turns: %v", order)
				break
			}
		}
		must(t, p.fr.WriteWindowUpdate(0, 1<<20))
		for id := uint32(1); id < 8; id += 2 {
			if n := p.bytes(id); n != 256<<10 || !p.ended[id] {
				t.Errorf("stream %d got %d", id, n)
			}
		}
	})
}

// TestPeerSettings: what the peer says of its windows and its table holds.
func TestPeerSettings(t *testing.T) {
	bubble(t, Settings{}, func(s *Stream) { _ = s.WriteHead(ok200, make([]byte, 100), true) }, func(p *raw) {
		must(t, p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}))
		p.headers(1, true, get()...)
		p.want("DATA 1 1")
		must(t, p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10}))
		p.want("DATA 1 9")
		must(t, p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 3})) // now below nought
		must(t, p.fr.WriteWindowUpdate(1, 7))
		must(t, p.fr.WriteWindowUpdate(1, 2))
		p.want("DATA 1 2")
		must(t, p.fr.WriteWindowUpdate(1, 1000))
		p.want("DATA 1 88")
		must(t, p.fr.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0}))
		p.seen()
		p.dec.SetAllowedMaxDynamicTableSize(0)
		p.headers(3, true, get()...)
		if got := p.head(3); got != "200" {
			t.Errorf("got %q", got)
		}
	})
}

// TestEncoding: large heads are split, secrets are never put into the table, names leave in lower case.
func TestEncoding(t *testing.T) {
	big := strings.Repeat("v", 40<<10)
	fields := []message.Field{field(":status", "200"), field("X-Big", big), field("Set-Cookie", "secret=1"), field("Server", "x"), field("Connection", "close"), field("Transfer-Encoding", "chunked")}
	bubble(t, Settings{}, func(s *Stream) { _ = s.WriteHead(fields, nil, true) }, func(p *raw) {
		p.dec.SetMaxStringLength(0)
		p.fr.ReadMetaHeaders = p.dec // joins CONTINUATION
		p.fr.MaxHeaderListSize = 1 << 20
		p.headers(1, true, get()...)
		p.headers(3, true, get()...)
		p.want("HEADERS")
	})
	c := newConn(nil, Settings{}, false)
	c.encode(1, fields[2:4], false)
	first := len(c.out)
	c.encode(1, fields[2:4], false)
	if again := len(c.out) - first; again < 9+9 || again >= first {
		t.Errorf("a cookie of 8 bytes and a known field took %d bytes", again)
	}
	if !strings.Contains(fmt.Sprintf("%q", c.out), `\x1f(`) { // never indexed, static name 55
		t.Errorf("%q", c.out)
	}
	for _, name := range []string{"Connection", "keep-alive", "Upgrade", "proxy-connection", "transfer-encoding"} {
		before := len(c.out)
		c.encode(1, []message.Field{field(name, "x")}, false)
		if len(c.out) != before+9 {
			t.Errorf("%s was sent", name)
		}
	}
}

// TestPanic: a handler that panics ends its own stream.
func TestPanic(t *testing.T) {
	t.Run("F16/handler", func(t *testing.T) {
		var value any
		var stack []byte
		s := Settings{Panicked: func(v any, st []byte) { value, stack = v, st }}
		bubble(t, s, func(s *Stream) {
			if s.Request.HasQuery {
				panic("boom")
			}
			answer(s)
		}, func(p *raw) {
			p.headers(1, true, ":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/?x")
			p.want("RST_STREAM 1 INTERNAL_ERROR")
			if value != "boom" || len(stack) == 0 {
				t.Error(value, len(stack))
			}
			p.headers(3, true, get()...)
			if got := p.head(3); !strings.HasPrefix(got, "200") {
				t.Errorf("got %q", got)
			}
		})
	})
}

// TestGoAway: what is under way finishes, then Serve returns nil.
func TestGoAway(t *testing.T) {
	t.Run("in two steps", func(t *testing.T) {
		step := make(chan struct{})
		bubble(t, Settings{}, func(s *Stream) { <-step; answer(s) }, func(p *raw) {
			step = make(chan struct{})
			p.headers(1, true, get()...)
			p.seen()
			p.conn.GoAway()
			p.want("GOAWAY 2147483647 NO_ERROR")
			p.want("PING false farewell")
			p.headers(3, true, get()...) // sent before the client knew
			p.seen()
			must(t, p.fr.WritePing(true, [8]byte([]byte(goAwayPing))))
			p.want("GOAWAY 3 NO_ERROR")
			p.headers(5, false, post()...)
			p.send(5, true, "ignored")
			p.seen()
			close(step)
			if a, b, c := p.head(1), p.head(3), p.head(5); !strings.HasPrefix(a, "200") || !strings.HasPrefix(b, "200") || c != "" {
				t.Errorf("%q %q %q", a, b, c)
			}
			if why := p.ends(); why != nil {
				t.Error(why)
			}
			p.want("END")
		})
	})
	t.Run("a client that does not answer", func(t *testing.T) {
		bubble(t, Settings{}, answer, func(p *raw) {
			p.conn.GoAway()
			p.seen()
			p.conn.GoAway()
			p.want("GOAWAY 0 NO_ERROR")
			if why := p.ends(); why != nil {
				t.Error(why)
			}
		})
	})
	t.Run("the client closes", func(t *testing.T) {
		bubble(t, Settings{}, answer, func(p *raw) {
			p.headers(1, true, get()...)
			p.seen()
			must(t, p.nc.CloseWrite())
			if why := p.ends(); why != nil {
				t.Error(why)
			}
			p.never("GOAWAY")
		})
	})
}

// TestWorkers: never more handlers than streams, also when streams are reset at once; idle ones end with Tidy.
func TestWorkers(t *testing.T) {
	var mu sync.Mutex
	now, most := 0, 0
	step := make(chan struct{})
	handler := func(s *Stream) {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		<-step
		mu.Lock()
		now--
		mu.Unlock()
		answer(s)
	}
	bubble(t, Settings{Streams: 5}, handler, func(p *raw) {
		step = make(chan struct{})
		id := uint32(1)
		for range 10 {
			for range 4 {
				p.headers(id, true, get()...)
				must(t, p.fr.WriteRSTStream(id, http2.ErrCodeCancel))
				id += 2
			}
			synctest.Wait()
		}
		p.headers(id, true, get()...) // waits for a worker
		synctest.Wait()
		if now > 5 || p.conn.Streams() > 6 {
			t.Errorf("%d handlers at once, %d streams", most, p.conn.Streams())
		}
		close(step)
		if got := p.head(id); !strings.HasPrefix(got, "200") || now != 0 || p.conn.Streams() != 0 {
			t.Errorf("%q, %d handlers, %d streams", got, now, p.conn.Streams())
		}
		p.conn.mu.Lock()
		idle := len(p.conn.idle)
		p.conn.mu.Unlock()
		p.conn.Tidy()
		p.conn.Tidy()
		if idle == 0 || idle > 5 || len(p.conn.idle) != 0 {
			t.Errorf("%d idle workers, %d after Tidy", idle, len(p.conn.idle))
		}
		if most > 5 {
			t.Errorf("%d handlers at once", most)
		}
	})
	t.Run("beyond the limit", func(t *testing.T) {
		step = make(chan struct{})
		bubble(t, Settings{Streams: 2}, handler, func(p *raw) {
			step = make(chan struct{})
			for id := uint32(1); id < 6; id += 2 {
				p.headers(id, true, get()...)
			}
			p.want("RST_STREAM 5 REFUSED_STREAM")
			close(step)
			p.seen()
			p.headers(7, true, get()...)
			if got := p.head(7); !strings.HasPrefix(got, "200") {
				t.Errorf("got %q", got)
			}
		})
	})
}
