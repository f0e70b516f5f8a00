package h2

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"countersign/internal/memnet"
	"countersign/internal/message"
	"countersign/internal/reason"
)

// breaking is a connection that panics in so many writes, or in setting a read deadline so many times.
type breaking struct {
	net.Conn
	write, deadline atomic.Int32
}

func (b *breaking) Write(p []byte) (int, error) {
	if b.write.Add(-1) >= 0 {
		panic("boom")
	}
	return b.Conn.Write(p)
}

func (b *breaking) SetReadDeadline(t time.Time) error {
	if b.deadline.Add(-1) >= 0 {
		panic("boom")
	}
	return b.Conn.SetReadDeadline(t)
}

// TestPanicInTheConnection: a panic beside the handlers ends the connection with all of its streams, and leaves neither a
// lock held nor anybody waiting: in a bubble nothing may be left in the end.
func TestPanicInTheConnection(t *testing.T) {
	for name, test := range map[string]struct {
		// handler is that of a request with a body that does not end.
		handler func(s *Stream)
		// provoke has the panic come.
		provoke func(p *raw, nc *breaking, step chan struct{})
	}{
		"F16/flusher": {provoke: func(p *raw, nc *breaking, _ chan struct{}) {
			nc.write.Store(1)
			p.conn.GoAway()
		}},
		"F16/a write by a handler": {
			handler: func(s *Stream) { _ = s.WriteHead([]message.Field{field(":status", "200")}, []byte("body"), false) },
			provoke: func(p *raw, nc *breaking, step chan struct{}) {
				nc.write.Store(1)
				close(step)
			}},
		"F16/a write by the reading goroutine": {provoke: func(p *raw, nc *breaking, _ chan struct{}) {
			nc.write.Store(1)
			_ = p.fr.WritePing(false, [8]byte{})
		}},
		"F16/a deadline": {
			handler: func(s *Stream) {
				_ = s.setDeadline(&s.readDeadline, time.Now().Add(time.Second), func() { panic("boom") })
			},
			provoke: func(p *raw, nc *breaking, step chan struct{}) {
				close(step)
				time.Sleep(2 * time.Second)
			}},
		"F16/a handler that has returned": {
			handler: func(s *Stream) { s.Reset(http2.ErrCodeCancel) },
			provoke: func(p *raw, nc *breaking, step chan struct{}) {
				p.conn.GoAway()
				p.conn.GoAway()
				synctest.Wait()
				nc.deadline.Store(1) // the last stream's end ends the reading
				close(step)
			}},
		"F16/a handler that has returned, and what follows": {
			handler: func(s *Stream) { s.Reset(http2.ErrCodeCancel) },
			provoke: func(p *raw, nc *breaking, step chan struct{}) {
				p.conn.GoAway()
				p.conn.GoAway()
				synctest.Wait()
				nc.deadline.Store(2)
				close(step)
				synctest.Wait()
				p.conn.Abort() // nothing has ended the reading yet
			}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := memnet.Pipe("192.0.2.1:50000", "192.0.2.2:443")
				p := newRaw(t, ours)
				nc := &breaking{Conn: theirs}
				var panics []any
				step := make(chan struct{})
				read := make(chan error, 1)
				p.conn = Server(nc, Settings{Panicked: func(v any, stack []byte) { panics = append(panics, v) }}, func(s *Stream) {
					if test.handler != nil {
						<-step
						test.handler(s)
					}
					_, err := s.Read(make([]byte, 10))
					read <- err
				})
				go func() {
					err := p.conn.Serve()
					theirs.Close()
					p.served <- err
				}()
				_, _ = io.WriteString(ours, http2.ClientPreface)
				_ = p.fr.WriteSettings()
				p.headers(1, false, post()...)
				synctest.Wait()
				test.provoke(p, nc, step)
				if why := p.ends(); why == nil || why.Reason != reason.Internal {
					t.Errorf("Serve: %v, expected %v", why, reason.Internal)
				}
				if err := <-read; err == nil {
					t.Error("the stream can still be read")
				}
				if len(panics) != 1 || panics[0] != "boom" {
					t.Errorf("told of %v", panics)
				}
				p.conn.mu.Lock()
				defer p.conn.mu.Unlock()
				if c := p.conn; c.live != 0 || c.running != 0 || c.flushing || c.WritingSince() != 0 || len(c.streams) != 0 {
					t.Errorf("%d streams held, %d handlers, writing %v since %d, %d streams", c.live, c.running, c.flushing, c.WritingSince(), len(c.streams))
				}
			})
		})
	}
	t.Run("F16/whoever is told", func(t *testing.T) {
		bubble(t, Settings{Panicked: func(any, []byte) { panic("again") }}, func(s *Stream) {
			if s.Request.HasQuery {
				panic("boom")
			}
			answer(s)
		}, func(p *raw) {
			p.headers(1, true, ":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/?x")
			p.want("RST_STREAM 1 INTERNAL_ERROR")
			p.headers(3, true, get()...)
			if got := p.head(3); len(got) < 3 || got[:3] != "200" || p.conn.Streams() != 0 {
				t.Errorf("%q, %d streams", got, p.conn.Streams())
			}
		})
	})
}
