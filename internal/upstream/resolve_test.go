package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"countersign/internal/reason"
)

// names is a resolver of a test.
type names struct {
	mu    sync.Mutex
	ask   func(ctx context.Context, host string) ([]netip.Addr, error)
	asked []time.Time
}

func (n *names) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	n.asked = append(n.asked, time.Now())
	ask := n.ask
	n.mu.Unlock()
	return ask(ctx, host)
}

func (n *names) set(f func(context.Context, string) ([]netip.Addr, error)) {
	n.mu.Lock()
	n.ask = f
	n.mu.Unlock()
}

// always answers with the same addresses.
func always(addrs ...string) func(context.Context, string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, a := range addrs {
		out = append(out, netip.MustParseAddr(a))
	}
	return func(context.Context, string) ([]netip.Addr, error) { return out, nil }
}

func failing(err error) func(context.Context, string) ([]netip.Addr, error) {
	return func(context.Context, string) ([]netip.Addr, error) { return nil, err }
}

func hanging(ctx context.Context, _ string) ([]netip.Addr, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// resolving is a pool with the target api.test:1, and static ones.
func resolving(t *testing.T, all bool, ask func(context.Context, string) ([]netip.Addr, error), static ...string) (*world, *names) {
	w := newWorld(t, "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1")
	n := &names{ask: ask}
	w.SetResolver(n)
	s := settings("p", append([]string{"api.test:1"}, static...)...)
	s.Wire, s.MaxConnections, s.DNS = "w", 100, DNS{All: all, Refresh: 30 * time.Second}
	w.Apply([]*Settings{s})()
	t.Cleanup(func() {
		w.Apply(nil)()
		time.Sleep(time.Hour) // lookups that do not end when they are told to
	})
	synctest.Wait()
	return w, n
}

func TestNames(t *testing.T) {
	in := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
	}
	in("every address is a target", func(t *testing.T) {
		w, _ := resolving(t, true, always("10.0.0.2", "10.0.0.1", "10.0.0.1", "::ffff:10.0.0.2", "0.0.0.0", "224.0.0.1"))
		if got := w.spread(t, 10); got != "10.0.0.1=5 10.0.0.2=5" {
			t.Error(got)
		}
	})
	in("a name is one target", func(t *testing.T) {
		w, _ := resolving(t, false, always("10.0.0.2", "10.0.0.1"))
		if got := w.spread(t, 10); got != "api.test=10" {
			t.Error(got)
		}
	})
	in("H17/addresses change", func(t *testing.T) {
		w, n := resolving(t, true, always("10.0.0.1", "10.0.0.2"))
		kept, left := acquire(t, w.Pool("p")), acquire(t, w.Pool("p"))
		if kept.Target.Address != "10.0.0.2:1" {
			kept, left = left, kept
		}
		for _, c := range []*Conn{kept, left} {
			if err := exchange(t, c); err != nil {
				t.Fatal(err)
			}
		}
		n.set(always("10.0.0.2", "10.0.0.3"))
		time.Sleep(35 * time.Second)
		if got := w.spread(t, 10); got != "10.0.0.2=5 10.0.0.3=5" {
			t.Error(got)
		}
		// What is under way goes on, and is not used again.
		if err := exchange(t, left); err != nil {
			t.Errorf("an exchange with the old address: %v", err)
		}
		left.Release(true, time.Now())
		kept.Release(true, time.Now())
		if left.Target.open != 0 || kept.Target.open != 1 {
			t.Errorf("%d connections to the old address, %d to the one that stayed, expected 0 and 1", left.Target.open, kept.Target.open)
		}
	})
	for name, ask := range map[string]func(context.Context, string) ([]netip.Addr, error){
		"H17/NXDOMAIN":            failing(&net.DNSError{Err: "no such host", IsNotFound: true}),
		"H17/empty":               always(),
		"H17/nothing that can be": always("0.0.0.0", "::", "ff02::1"),
		"H17/time-out":            hanging,
		"F22/the resolver panics": func(context.Context, string) ([]netip.Addr, error) { panic("out of order") },
		"F22/the resolver ignores": func(context.Context, string) ([]netip.Addr, error) {
			time.Sleep(10 * time.Minute)
			return nil, errors.New("late")
		},
	} {
		for _, all := range []bool{true, false} {
			in(fmt.Sprintf("%s, all=%v", name, all), func(t *testing.T) {
				w, n := resolving(t, all, always("10.0.0.1"))
				n.set(ask)
				time.Sleep(time.Hour)
				want := "10.0.0.1=4"
				if !all {
					want = "api.test=4"
				}
				began := time.Now()
				if got := w.spread(t, 4); got != want || time.Since(began) != 0 {
					t.Errorf("the last good answer is not kept: %s after %s", got, time.Since(began))
				}
				if st := w.PoolStats()[0]; fmt.Sprint(st.Unresolved) != "[api.test]" && !strings.HasSuffix(name, "ignores") {
					t.Errorf("the statistics do not say so: %v", st.Unresolved)
				}
				n.set(always("10.0.0.2"))
				time.Sleep(11 * time.Minute)
				if all {
					if got := w.spread(t, 4); got != "10.0.0.2=4" {
						t.Errorf("when the resolver is well again: %s", got)
					}
				}
				if st := w.PoolStats()[0]; len(st.Unresolved) != 0 {
					t.Errorf("the statistics still say so: %v", st.Unresolved)
				}
				w.Apply(nil)()
				if lines := strings.Count(w.log.String(), "cannot be resolved;"); lines != 1 && !strings.HasSuffix(name, "ignores") {
					t.Errorf("%d lines in the log about it, expected 1", lines)
				}
			})
		}
	}
	in("F22/never resolved, others serve", func(t *testing.T) {
		w, _ := resolving(t, false, hanging, "10.0.0.3:1")
		dial := w.Pool("p").dial
		w.Pool("p").dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == "api.test:1" {
				t.Error("a request was sent to the name")
			}
			return dial(ctx, network, address)
		}
		began := time.Now()
		if got := w.spread(t, 10); got != "10.0.0.3=10" || time.Since(began) != 0 {
			t.Errorf("%s after %s", got, time.Since(began))
		}
	})
	in("F22/never resolved, and nobody else", func(t *testing.T) {
		w, _ := resolving(t, true, hanging)
		if _, err := w.Pool("p").Acquire(context.Background()); reasonOf(err) != reason.UpstreamConnectFailed {
			t.Error(err)
		}
	})
	in("resolved at last", func(t *testing.T) {
		w, n := resolving(t, true, hanging, "10.0.0.3:1")
		n.set(always("10.0.0.1"))
		time.Sleep(11 * time.Second) // not a whole refresh
		if got := w.spread(t, 10); got != "10.0.0.1=5 10.0.0.3=5" {
			t.Error(got)
		}
	})
	in("F22/a huge answer", func(t *testing.T) {
		var many []string
		for i := range 5000 {
			many = append(many, fmt.Sprintf("10.1.%d.%d", i/250, i%250))
		}
		w, _ := resolving(t, true, always(many...))
		if n := len(w.Pool("p").members); n != maxAddresses {
			t.Errorf("%d targets, expected %d", n, maxAddresses)
		}
		w.Apply(nil)()
		if !strings.Contains(w.log.String(), "too many addresses") {
			t.Error("the log does not say so")
		}
	})
	in("an address that is configured too", func(t *testing.T) {
		w, _ := resolving(t, true, always("10.0.0.1", "10.0.0.2"), "10.0.0.2:1")
		if got := len(w.Pool("p").members); got != 2 {
			t.Errorf("%d targets, expected 2", got)
		}
	})
	in("how often", func(t *testing.T) {
		_, n := resolving(t, true, always("10.0.0.1"))
		time.Sleep(10 * time.Minute)
		n.mu.Lock()
		defer n.mu.Unlock()
		if k := len(n.asked); k < 20 || k > 22 {
			t.Errorf("asked %d times in ten minutes, expected every 30 s", k)
		}
	})
	in("a reload keeps the answer", func(t *testing.T) {
		w, n := resolving(t, true, always("10.0.0.1", "10.0.0.2"))
		n.set(hanging)
		s := *w.Pool("p").Settings
		s.ID, s.Connect = "2", 3*time.Second
		before := w.Pool("p").members[0].Target
		w.Apply([]*Settings{&s})()
		if got := w.spread(t, 10); got != "10.0.0.1=5 10.0.0.2=5" {
			t.Error(got)
		}
		if w.Pool("p").members[0].Target != before {
			t.Error("the target is another one")
		}
	})
}

// TestEyeballs shows which of a name's addresses gets the connection.
func TestEyeballs(t *testing.T) {
	for _, tt := range []struct {
		name    string
		addrs   []string
		slow    string // never answers
		refused string
		want    string
		took    time.Duration
	}{
		{"H17/IPv6 first", []string{"10.0.0.1", "2001:db8::1"}, "", "", "[2001:db8::1]:1", 0},
		{"H17/IPv6 is a black hole", []string{"10.0.0.1", "2001:db8::1"}, "[2001:db8::1]:1", "", "10.0.0.1:1", head},
		{"H17/IPv6 refuses", []string{"10.0.0.1", "2001:db8::1"}, "", "[2001:db8::1]:1", "10.0.0.1:1", 0},
		{"only one", []string{"10.0.0.1"}, "", "", "10.0.0.1:1", 0},
		{"nobody", []string{"10.0.0.1", "2001:db8::1"}, "[2001:db8::1]:1 10.0.0.1:1", "", "", 2 * time.Second},
		{"all refuse", []string{"10.0.0.1", "2001:db8::1"}, "", "[2001:db8::1]:1 10.0.0.1:1", "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, _ := resolving(t, false, always(tt.addrs...))
				p := w.Pool("p")
				open := 0
				var mu sync.Mutex
				p.dial = func(ctx context.Context, _, address string) (net.Conn, error) {
					switch {
					case strings.Contains(tt.slow, address):
						<-ctx.Done()
						return nil, ctx.Err()
					case strings.Contains(tt.refused, address):
						return nil, errors.New("refused")
					}
					mu.Lock()
					open++
					mu.Unlock()
					c, _ := net.Pipe()
					return fake{c, address}, nil
				}
				began := time.Now()
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				defer cancel()
				c, err := p.connect(ctx, p.members[0].Target)
				if took := time.Since(began); took != tt.took {
					t.Errorf("it took %s, expected %s", took, tt.took)
				}
				got := ""
				if err == nil {
					got = c.(fake).address
					c.Close()
				}
				if got != tt.want {
					t.Errorf("connected to %q, expected %q (%v)", got, tt.want, err)
				}
			})
		})
	}
	if n := len(interleave(make([]netip.AddrPort, 100))); n != maxDials {
		t.Errorf("F17/%d addresses for one connection, expected at most %d", n, maxDials)
	}
}

type fake struct {
	net.Conn
	address string
}
