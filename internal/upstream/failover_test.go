package upstream

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"countersign/internal/reason"
)

// refusing is the address of a target that takes no connection.
func refusing(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// speaking starts a target of HTTP/2 that takes so many streams at once, and says so late.
func speaking(t *testing.T, streams int) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	speak(t, l, streams)
	return l.Addr().String()
}

// speak is speaking at l.
func speak(t *testing.T, l net.Listener, streams int) {
	s := &http.Server{Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{MaxConcurrentStreams: streams}}
	s.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = s.Serve(late{l}) }()
	t.Cleanup(func() { s.Close() })
}

// late is a listener whose connections do not write before a while.
type late struct{ net.Listener }

type lateConn struct {
	net.Conn
	wait sync.Once
}

func (l late) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &lateConn{Conn: c}, err
}

func (c *lateConn) Write(p []byte) (int, error) {
	c.wait.Do(func() { time.Sleep(100 * time.Millisecond) })
	return c.Conn.Write(p)
}

// left is the context of a client that goes at the moment its turn comes.
type left struct{ context.Context }

func (left) Err() error { return context.Canceled }

// hole is the address of a target that no packet comes back from.
const hole = "192.0.2.1:1"

// holed makes the pool of s in a bubble, in which connections to hole are waited for in vain, and b:1 is a target of HTTP/2.
// dials counts those to hole.
func holed(t *testing.T, s *Settings) (p *Pool, dials *atomic.Int32) {
	t.Helper()
	dials = new(atomic.Int32)
	w := newWorld(t)
	l, err := w.net.Listen("tcp", "b:1")
	if err != nil {
		t.Fatal(err)
	}
	speak(t, l, 100)
	dial := w.dial
	w.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == hole {
			dials.Add(1)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return dial(ctx, network, address)
	}
	w.Apply([]*Settings{s})()
	t.Cleanup(func() {
		w.Apply(nil)()
		time.Sleep(time.Minute) // dials that are still under way
	})
	return w.Pool(s.Name), dials
}

// TestFailover: a target that cannot be reached costs those who meet it the time of one dial, and nobody else anything.
func TestFailover(t *testing.T) {
	in := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
	}
	for name, pending := range map[string]int{"without a queue": 0, "with a queue": 10} {
		t.Run("F17/to an idle connection, "+name, func(t *testing.T) {
			many := make([]string, 100)
			for i := range many {
				many[i] = ok
			}
			s := settings("p", refusing(t), serve(t, answering(many...)))
			s.MaxConnections, s.Keepalive, s.MaxPending, s.QueueTimeout = 5, time.Minute, pending, time.Second
			r, _ := registry(t, s)
			for i := range 40 {
				c, err := r.Pool("p").Acquire(context.Background())
				if err != nil {
					t.Fatalf("request %d: %v, and one target is well", i, err)
				}
				if err := exchange(t, c); err != nil {
					t.Fatalf("request %d: %v", i, err)
				}
				c.Release(true, time.Now())
			}
			for i, x := range r.Stats() {
				if x.Open != i || x.Idle != i || x.Busy != 0 { // none of the first, one of the second
					t.Errorf("%s: open %d, idle %d, busy %d; expected open %d, idle %d, busy 0", x.Target, x.Open, x.Idle, x.Busy, i, i)
				}
			}
		})
	}

	in("H15/one dial for all who wait", func(t *testing.T) {
		s := settings("p", hole)
		s.HTTP2, s.Connect = true, 400*time.Millisecond
		p, dials := holed(t, s)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				began := time.Now()
				_, err := p.Acquire(context.Background())
				if took := time.Since(began); reasonOf(err) != reason.UpstreamConnectTimeout || took > 2500*time.Millisecond { // 3.2 s one after the other
					t.Errorf("%v after %v", err, took)
				}
			})
		}
		wg.Wait()
		if n := dials.Load(); n > 2 {
			t.Errorf("%d connections for 8 requests at once", n)
		}
	})

	in("H15/the other target serves all", func(t *testing.T) {
		s := settings("p", hole, "b:1")
		s.HTTP2, s.Connect = true, 400*time.Millisecond
		p, _ := holed(t, s)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				began := time.Now()
				c, err := p.Acquire(context.Background())
				if took := time.Since(began); err != nil || took > 2500*time.Millisecond {
					t.Errorf("%v after %v", err, took)
				}
				if c != nil {
					c.Discard()
				}
			})
		}
		wg.Wait()
	})

	for version, http2 := range map[string]bool{"HTTP1": false, "HTTP2": true} {
		in("H15/who waits for a dial is counted/"+version, func(t *testing.T) {
			s := settings("p", hole, "b:1")
			s.HTTP2, s.Connect, s.MaxConnections, s.Balance = http2, 2*time.Second, 100, LeastRequests
			p, _ := holed(t, s)
			if c, err := p.AcquireFor(context.Background(), Choice{Tried: []*Target{p.members[0].Target}}); err != nil { // it has a session now
				t.Fatal(err)
			} else {
				c.Discard()
			}
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			defer wg.Wait()
			defer cancel()
			var served atomic.Int32
			for range 20 {
				time.Sleep(2 * time.Millisecond)
				wg.Go(func() {
					if c, err := p.Acquire(ctx); err == nil {
						served.Add(1)
						c.Discard()
					}
				})
			}
			for end := time.Now().Add(1500 * time.Millisecond); served.Load() < 16 && time.Now().Before(end); {
				time.Sleep(5 * time.Millisecond)
			}
			if n := served.Load(); n < 16 { // one waits for the hole, and a few who asked at the same time as another
				t.Errorf("%d of 20 requests were given to the target that has least to do", n)
			}
		})
	}

	t.Run("E25/the next priority before what was tried", func(t *testing.T) {
		first, second := serve(t, answering(ok)), serve(t, answering(ok))
		s := settings("p")
		s.Targets = []TargetSettings{{Address: first, Weight: 1}, {Address: second, Weight: 1, Priority: 1}}
		r, _ := registry(t, s)
		c := acquire(t, r.Pool("p"))
		if c.Target.Address != first {
			t.Fatalf("%s before %s, which is of the first priority", c.Target.Address, first)
		}
		again, err := r.Pool("p").AcquireFor(context.Background(), Choice{Tried: []*Target{c.Target}, Fresh: true})
		if err != nil || again.Target.Address != second {
			t.Fatalf("the retry went to %v (%v); expected %s", again, err, second)
		}
		last, err := r.Pool("p").AcquireFor(context.Background(), Choice{Tried: []*Target{c.Target, again.Target}, Fresh: true})
		if err != nil {
			t.Errorf("both were tried, and none is tried again: %v", err)
		}
		for _, c := range []*Conn{c, again, last} {
			c.Discard()
		}
	})
}

// TestStreamsAnnounced: no session is handed out for more exchanges than its target has said that it takes.
func TestStreamsAnnounced(t *testing.T) {
	s := settings("p", speaking(t, 10))
	s.HTTP2, s.MaxConnections = true, 100
	r, _ := registry(t, s)
	p := r.Pool("p")
	conns := make([]*Conn, 45)
	var wg sync.WaitGroup
	for i := range conns {
		wg.Go(func() {
			var err error
			if conns[i], err = p.Acquire(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	target := p.members[0].Target
	target.mu.Lock()
	n := len(target.sessions)
	for _, s := range target.sessions {
		if streams := s.mux.Streams(); streams > 10 {
			t.Errorf("%d streams on a session that takes 10", streams)
		}
	}
	target.mu.Unlock()
	if n < 5 || n > 6 {
		t.Errorf("%d sessions of 10 streams for %d exchanges, expected 5", n, len(conns))
	}
	for _, c := range conns {
		if c != nil {
			c.Discard()
		}
	}
	if x := r.Stats()[0]; x.Busy != 0 {
		t.Errorf("%d exchanges are counted, and all are over", x.Busy)
	}
}

// TestNobodyWants: who does not want a connection any more is told so, with a reason, and takes none away.
func TestNobodyWants(t *testing.T) {
	for name, pending := range map[string]int{"without a queue": 0, "with a queue": 10} {
		for version, http2 := range map[string]bool{"HTTP1": false, "HTTP2": true} {
			for state, reserved := range map[string]int{"room": 0, "no room": 1} {
				t.Run(name+", "+version+", "+state, func(t *testing.T) {
					s := settings("p", speaking(t, 10))
					s.HTTP2, s.MaxConnections, s.MaxPending, s.QueueTimeout = http2, 1, pending, time.Second
					r, _ := registry(t, s)
					p := r.Pool("p")
					if reserved > 0 {
						p.members[0].reserve(1)
					}
					gone, cancel := context.WithCancel(context.Background())
					cancel()
					for i := range 20 {
						ctx := gone
						if i%2 == 0 && pending == 0 {
							ctx = left{context.Background()}
						}
						c, err := p.AcquireFor(ctx, Choice{})
						var refusal *reason.Refusal
						switch {
						case c != nil: // it was there at once
							c.Discard()
						case !errors.As(err, &refusal) || refusal == nil || refusal.Reason == reason.Unset:
							t.Fatalf("neither a connection nor a reason: %#v", err)
						}
					}
					for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && r.Stats()[0].Busy > 0; {
						time.Sleep(time.Millisecond)
					}
					if x := r.Stats()[0]; x.Busy != 0 || x.Open > 1 {
						t.Errorf("open %d, busy %d, and nobody has a connection", x.Open, x.Busy)
					}
				})
			}
		}
	}
}

// TestScarce: a connection that one client alone may use is kept for it while there are enough of them, and not else.
func TestScarce(t *testing.T) {
	s := settings("p", serve(t, answering(ok)))
	s.MaxConnections = 4
	r, _ := registry(t, s)
	p := r.Pool("p")
	one, two, three := acquire(t, p), acquire(t, p), acquire(t, p)
	if three.Rest(time.Now()) {
		t.Error("F17: the third of four is kept for one client")
	}
	if !two.Rest(time.Now()) {
		t.Error("one of two connections is not kept, and four are allowed")
	}
	if !two.WakeFor(p, Choice{}) {
		t.Error("what was kept is lost")
	}
	one.Discard()
	two.Discard()
	if x := r.Stats()[0]; x.Open != 0 || x.Busy != 0 {
		t.Errorf("open %d, busy %d, and all are closed", x.Open, x.Busy)
	}
}
