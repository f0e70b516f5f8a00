package upstream

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"countersign/internal/reason"
)

// tripping is a log that panics once, at a line with certain text.
type tripping struct {
	slog.Handler
	at string
	n  *atomic.Int32
}

func trip(log slog.Handler, at string) (*slog.Logger, *atomic.Int32) {
	h := tripping{log, at, new(atomic.Int32)}
	return slog.New(h), h.n
}

func (h tripping) Handle(ctx context.Context, r slog.Record) error {
	if strings.Contains(r.Message, h.at) && h.n.Add(1) == 1 {
		panic("boom")
	}
	return h.Handler.Handle(ctx, r)
}

// healthy says which targets of p are, as Stats has it and as the view of those to choose from has it.
func healthy(p *Pool) (stats, view int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.members {
		if !m.down.Load() {
			stats++
		}
	}
	return stats, p.view.Load().healthy
}

// TestPanicInTheBackground: a panic beside the requests costs one check, one lookup or one connection, and what was counted
// is counted no longer.
func TestPanicInTheBackground(t *testing.T) {
	in := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
	}
	// watching is a pool with health checks of a:1, which refuses connections, and of b:1.
	watching := func(t *testing.T, with func(w *world)) (*world, *Pool) {
		w := newWorld(t, "b:1")
		with(w)
		s := checked(named(w1, w1))
		s.Health.Path, s.Health.Interval = "", time.Second
		w.Apply([]*Settings{s})()
		return w, w.Pool("p")
	}
	in("F16/behind a health check", func(t *testing.T) {
		var n *atomic.Int32
		w, p := watching(t, func(w *world) { w.Registry.log, n = trip(w.Registry.log.Handler(), "target is unhealthy") })
		time.Sleep(10 * time.Second)
		if stats, view := healthy(p); stats != 1 || view != 1 || n.Load() != 1 {
			t.Errorf("%d and %d healthy targets after %d panics, expected 1, 1 and 1", stats, view, n.Load())
		}
		w.listen(t, "a:1", func(net.Conn) {})
		time.Sleep(10 * time.Second)
		if stats, view := healthy(p); stats != 2 || view != 2 {
			t.Errorf("the checks do not go on: %d and %d healthy targets", stats, view)
		}
		w.Apply(nil)()
		if !strings.Contains(w.log.String(), "panic behind a health check") {
			t.Errorf("the log does not say so: %s", w.log)
		}
	})
	in("F16/in the view that a health check changes", func(t *testing.T) {
		_, p := watching(t, func(*world) {})
		p.mu.Lock()
		p.members = append(p.members, nil)
		p.mu.Unlock()
		time.Sleep(10 * time.Second)
		p.mu.Lock()
		p.members = p.members[:2]
		p.mu.Unlock()
		if _, view := healthy(p); view != 2 {
			t.Fatalf("the view has changed: %d healthy targets", view)
		}
		time.Sleep(2 * time.Second)
		if stats, view := healthy(p); stats != 1 || view != 1 {
			t.Errorf("the next check does not make up for it: %d and %d healthy targets", stats, view)
		}
	})
	in("F16/the dialer of a health check", func(t *testing.T) {
		var sick atomic.Bool
		sick.Store(true)
		w, p := watching(t, func(w *world) {
			dial := w.dial
			w.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				if sick.Load() {
					panic("boom")
				}
				return dial(ctx, network, address)
			}
		})
		time.Sleep(10 * time.Second)
		if stats, _ := healthy(p); stats != 0 {
			t.Errorf("%d healthy targets, expected none", stats)
		}
		sick.Store(false)
		w.listen(t, "a:1", func(net.Conn) {})
		time.Sleep(10 * time.Second)
		if stats, view := healthy(p); stats != 2 || view != 2 {
			t.Errorf("the checks do not go on: %d and %d healthy targets", stats, view)
		}
	})
	in("F16/behind a lookup", func(t *testing.T) {
		w, names := resolving(t, true, always("10.0.0.1"))
		var n *atomic.Int32
		p := w.Pool("p")
		p.log, n = trip(p.log.Handler(), "name has other addresses")
		names.set(always("10.0.0.2"))
		time.Sleep(32 * time.Second)
		if got := w.spread(t, 2); n.Load() != 1 || got != "10.0.0.1=2" {
			t.Errorf("%s after %d panics", got, n.Load())
		}
		time.Sleep(lookupTime + time.Second)
		if got := w.spread(t, 2); got != "10.0.0.2=2" {
			t.Errorf("the next lookup does not make up for it: %s", got)
		}
		names.set(func(context.Context, string) ([]netip.Addr, error) { panic("boom") })
		time.Sleep(time.Minute)
		names.set(always("10.0.0.3"))
		time.Sleep(time.Minute)
		if got := w.spread(t, 2); got != "10.0.0.3=2" {
			t.Errorf("lookups do not go on: %s", got)
		}
	})
	in("F16/the dialer of one address", func(t *testing.T) {
		w, _ := resolving(t, false, always("10.0.0.1", "10.0.0.2", "10.0.0.3"))
		p := w.Pool("p")
		dial, panics := p.dial, 0
		p.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != "10.0.0.2:1" {
				panics++
				panic("boom")
			}
			return dial(ctx, network, address)
		}
		for range 20 {
			c := acquire(t, p)
			if got := c.RemoteAddr().String(); got != "10.0.0.2:1" {
				t.Errorf("connected to %s", got)
			}
			c.Discard()
		}
		if panics == 0 {
			t.Error("it never panicked")
		}
	})
	for _, addrs := range [][]string{nil, {"10.0.0.1"}, {"10.0.0.1", "10.0.0.2"}} {
		in("F16/the dialer of all addresses/"+strings.Join(addrs, " "), func(t *testing.T) {
			ask := always(addrs...)
			if addrs == nil {
				ask = failing(errors.New("no answer"))
			}
			w, _ := resolving(t, false, ask)
			p := w.Pool("p")
			p.MaxRequests, p.queue = 1, new(queue)
			dial := p.dial
			p.dial = func(context.Context, string, string) (net.Conn, error) { panic("boom") }
			for range 5 {
				if _, err := p.Acquire(t.Context()); reasonOf(err) != reason.UpstreamConnectFailed {
					t.Fatal(err)
				}
			}
			if m := p.members[0]; m.open != 0 || m.busy.Load() != 0 || p.active.Load() != 0 {
				t.Errorf("%d connections, %d exchanges, %d in the pool are counted", m.open, m.busy.Load(), p.active.Load())
			}
			p.dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return dial(ctx, network, "10.0.0.1:1")
			}
			acquire(t, p).Discard()
			w.Apply(nil)()
			if !strings.Contains(w.log.String(), "panic in a dialer") {
				t.Errorf("the log does not say so: %s", w.log)
			}
		})
	}
	in("F16/a connection of HTTP/2", func(t *testing.T) {
		w := newWorld(t)
		w.listen(t, "a:1", func(c net.Conn) { _, _ = c.Read(make([]byte, 1)); time.Sleep(time.Minute) })
		s := named(w1)
		s.HTTP2, s.MaxConnections = true, 1
		w.Apply([]*Settings{s})()
		p := w.Pool("p")
		dial := p.dial
		p.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dial(ctx, network, address)
			return &mute{Conn: c}, err
		}
		for range 3 { // each on a connection of its own, of which there may be one
			if _, err := p.Acquire(t.Context()); reasonOf(err) != reason.UpstreamClosed {
				t.Errorf("%v, expected %v", err, reason.UpstreamClosed)
			}
			synctest.Wait()
			if m := p.members[0]; m.open != 0 || m.busy.Load() != 0 || len(m.sessions) != 0 {
				t.Errorf("%d connections, %d exchanges, %d sessions are counted", m.open, m.busy.Load(), len(m.sessions))
			}
		}
		if n := strings.Count(w.log.String(), "panic in a connection to a target"); n != 3 {
			t.Errorf("%d lines about it: %s", n, w.log)
		}
		time.Sleep(2 * time.Minute) // what the target still does ends
	})
}

// mute is a connection that panics in every write.
type mute struct{ net.Conn }

func (*mute) Write([]byte) (int, error) { panic("boom") }
