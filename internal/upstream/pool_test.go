package upstream

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"countersign/internal/memnet"
	"countersign/internal/reason"
)

// world is targets in memory: those in up take connections, the others refuse them.
type world struct {
	*Registry
	net *memnet.Network
	log *bytes.Buffer
}

// newWorld makes a registry whose targets are in memory. In a bubble of synctest its time is false as well.
func newWorld(t *testing.T, up ...string) *world {
	w := &world{net: new(memnet.Network), log: new(bytes.Buffer)}
	w.Registry = NewRegistry(w.net.Dial, slog.New(slog.NewTextHandler(w.log, nil)))
	t.Cleanup(func() { w.Apply(nil)() })
	for _, a := range up {
		w.listen(t, a, answering(slices.Repeat([]string{ok}, 1000)...))
	}
	return w
}

func (w *world) listen(t *testing.T, address string, f func(net.Conn)) net.Listener {
	l, err := w.net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	return l
}

// ticking calls Tidy once a second, as the program does.
func (w *world) ticking(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
				w.Tidy(time.Now())
			}
		}
	}()
}

// spread acquires n times and counts where it leads.
func (w *world) spread(t *testing.T, n int) string {
	t.Helper()
	got := map[string]int{}
	for range n {
		c, err := w.Pool("p").Acquire(t.Context())
		if err != nil {
			got[reasonOf(err).String()]++
			continue
		}
		got[c.Target.Address]++
		c.Discard()
	}
	var out []string
	for _, a := range slices.Sorted(maps.Keys(got)) {
		out = append(out, fmt.Sprintf("%s=%d", strings.TrimSuffix(a, ":1"), got[a]))
	}
	return strings.Join(out, " ")
}

// named are settings with targets a:1, b:1 and so on.
func named(conf ...TargetSettings) *Settings {
	s := settings("p")
	for i, x := range conf {
		if x.Address == "" {
			x.Address = string(rune('a'+i)) + ":1"
		}
		s.Targets = append(s.Targets, x)
	}
	s.Wire, s.MaxConnections = "w", 100
	return s
}

func w(weight int) TargetSettings { return TargetSettings{Weight: weight} }

func TestStates(t *testing.T) {
	for _, tt := range []struct {
		name string
		conf []TargetSettings
		down string // addresses that fail their check
		set  func(*Settings)
		want string
	}{
		{name: "weight 0 gets nothing new", conf: []TargetSettings{w(1), w(0), w(1)}, want: "a=30 c=30"},
		{name: "draining", conf: []TargetSettings{w(1), {Weight: 1, State: Draining}}, want: "a=60"},
		{name: "disabled", conf: []TargetSettings{w(1), {Weight: 1, State: Disabled}}, want: "a=60"},
		{name: "nobody is left by configuration", conf: []TargetSettings{w(0), {Weight: 1, State: Draining}, {Weight: 1, State: Disabled}}, want: "upstream_no_target=60"},
		{name: "draining is not used when the rest is down", conf: []TargetSettings{w(1), {Weight: 1, State: Draining}}, down: "a", want: "a=60"},
		{name: "down", conf: []TargetSettings{w(1), w(1), w(1)}, down: "b", want: "a=30 c=30"},
		{name: "H15/all down: all are tried", conf: []TargetSettings{w(1), w(1)}, down: "ab", want: "a=30 b=30"},
		{name: "the second priority waits", conf: []TargetSettings{w(1), {Weight: 1, Priority: 1}}, want: "a=60"},
		{name: "the second priority is used", conf: []TargetSettings{w(1), {Weight: 1, Priority: 1}}, down: "a", want: "b=60"},
		{name: "one of two is enough", conf: []TargetSettings{w(1), w(1), {Weight: 1, Priority: 1}}, down: "a", want: "b=60"},
		{name: "one of two is not enough", conf: []TargetSettings{w(1), w(1), {Weight: 1, Priority: 1}}, down: "a", set: func(s *Settings) { s.Failover = 60 }, want: "c=60"},
		{name: "one of two, and the second is gone", conf: []TargetSettings{w(1), w(1), {Weight: 1, Priority: 1}}, down: "ac", set: func(s *Settings) { s.Failover = 60 }, want: "b=60"},
		{name: "all priorities down: the first is tried", conf: []TargetSettings{w(1), {Weight: 1, Priority: 1}}, down: "ab", want: "a=60"},
		{name: "priorities need not follow each other", conf: []TargetSettings{{Weight: 1, Priority: 7}, {Weight: 1, Priority: 3}}, want: "b=60"},
		{name: "no panic at the threshold", conf: []TargetSettings{w(1), w(1)}, down: "b", set: func(s *Settings) { s.Panic = 50 }, want: "a=60"},
		{name: "panic below the threshold", conf: []TargetSettings{w(1), w(1), w(1)}, down: "bc", set: func(s *Settings) { s.Panic = 50 }, want: "a=20 b=20 c=20"},
		{name: "failover goes before panic", conf: []TargetSettings{w(1), w(1), w(1), {Weight: 1, Priority: 1}}, down: "bc", set: func(s *Settings) { s.Panic = 50 }, want: "d=60"},
		{name: "panic of all priorities", conf: []TargetSettings{w(1), w(1), w(1), {Weight: 1, Priority: 1}}, down: "bcd", set: func(s *Settings) { s.Panic = 50 }, want: "a=20 b=20 c=20"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "a:1", "b:1", "c:1", "d:1")
				s := named(tt.conf...)
				s.Health = &Health{Interval: time.Hour, Timeout: time.Second, Healthy: 1, Unhealthy: 1}
				if tt.set != nil {
					tt.set(s)
				}
				w.Apply([]*Settings{s})()
				p := w.Pool("p")
				for _, m := range p.members {
					m.down.Store(strings.Contains(tt.down, m.Address[:1]))
				}
				p.changed()
				if got := w.spread(t, 60); got != tt.want {
					t.Errorf("got %s, expected %s", got, tt.want)
				}
			})
		})
	}
}

// TestPassedOver shows what is tried when a target cannot be reached.
func TestPassedOver(t *testing.T) {
	t.Run("to the next, and the one that is down last", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, "c:1")
			s := named(w1, w1, w1)
			s.Health = &Health{Interval: time.Hour, Timeout: time.Second}
			w.Apply([]*Settings{s})()
			w.Pool("p").members[2].down.Store(true)
			w.Pool("p").changed()
			if got := w.spread(t, 10); got != "c=10" {
				t.Error(got)
			}
		})
	})
	t.Run("H24/not for ever", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dials := 0
			r := NewRegistry(func(ctx context.Context, _, _ string) (net.Conn, error) {
				dials++
				<-ctx.Done()
				return nil, ctx.Err()
			}, slog.New(slog.DiscardHandler))
			s := weighing(RoundRobin, same(50, 1)...)
			r.Apply([]*Settings{s})()
			defer func() { r.Apply(nil)() }()
			began := time.Now()
			_, err := r.Pool("p").Acquire(context.Background())
			if took := time.Since(began); reasonOf(err) != reason.UpstreamConnectTimeout || took != 2*s.Connect || dials != 2 {
				t.Errorf("%v after %s and %d attempts, expected two waits of %s", err, took, dials, s.Connect)
			}
		})
	})
	t.Run("a limit does not lead to targets that are down", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, "a:1", "b:1")
			s := named(w1, w1)
			s.MaxConnections, s.Health = 1, &Health{Interval: time.Hour, Timeout: time.Second}
			w.Apply([]*Settings{s})()
			w.Pool("p").members[1].down.Store(true)
			w.Pool("p").changed()
			c, err := w.Pool("p").Acquire(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Discard()
			if got := w.spread(t, 3); got != "upstream_busy=3" {
				t.Error(got)
			}
		})
	})
	t.Run("E25/a target that was tried comes last", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			for _, b := range []Balance{RoundRobin, LeastRequests, P2C, Random, Maglev, RingHash} {
				w := newWorld(t, "a:1", "b:1")
				s := named(w1, w1)
				s.Balance = b
				w.Apply([]*Settings{s})()
				p := w.Pool("p")
				for i := range 20 {
					ch := keys(i)
					ch.Tried = []*Target{p.members[0].Target}
					c, err := p.AcquireFor(context.Background(), ch)
					if err != nil || c.Target != p.members[1].Target {
						t.Fatalf("balance %d: %v", b, err)
					}
					c.Discard()
				}
				ch := Choice{Tried: []*Target{p.members[0].Target, p.members[1].Target}}
				c, err := p.AcquireFor(context.Background(), ch)
				if err != nil {
					t.Fatalf("balance %d: with all tried before: %v", b, err)
				}
				c.Discard()
				w.Apply(nil)()
			}
		})
	})
}

var w1 = w(1)

func TestSlowStart(t *testing.T) {
	// share is what target a has of 1000 choices, of more than these: chance has less of a part in it.
	share := func(p *Pool) int { return (choose(p, 20_000, anything)["a:1"] + 10) / 20 }
	for _, b := range []Balance{RoundRobin, Random} {
		t.Run(fmt.Sprint("after its check succeeds, balance ", b), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "b:1")
				s := named(w1, w1)
				s.Balance, s.SlowStart = b, 100*time.Second
				s.Health = &Health{Interval: time.Second, Timeout: time.Second, Healthy: 1, Unhealthy: 1}
				w.Apply([]*Settings{s})()
				w.ticking(t)
				p := w.Pool("p")
				if n := share(p); n < 450 {
					t.Errorf("a has %d of 1000 choices at the start, where nobody starts slowly", n)
				}
				time.Sleep(2 * time.Second)
				if n := share(p); n != 0 {
					t.Fatalf("a is down and has %d of 1000 choices", n)
				}
				l := w.listen(t, "a:1", answering(ok))
				time.Sleep(1200 * time.Millisecond)
				began := time.Unix(0, p.members[0].risen.Load())
				for _, part := range []float64{0.1, 0.25, 0.5, 0.75} {
					time.Sleep(time.Until(began.Add(time.Duration(part * 100 * float64(time.Second)))))
					time.Sleep(1500 * time.Millisecond) // until it was looked at
					n, want := float64(share(p)), 1000*part/(1+part)
					if n < want-50 || n > want+60 {
						t.Errorf("at %.0f %% of the time it has %.0f of 1000 choices, expected %.0f", part*100, n, want)
					}
				}
				time.Sleep(30 * time.Second)
				if n := share(p); n < 450 || p.ramping || p.members[0].risen.Load() != 0 {
					t.Errorf("it has %d of 1000 choices at the end", n)
				}
				l.Close()
			})
		})
	}
	t.Run("added by a reload", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			before := named(TargetSettings{Address: "b:1", Weight: 1})
			before.SlowStart = 10 * time.Second
			w.Apply([]*Settings{before})()
			after := named(w1, w1)
			after.ID, after.SlowStart = "2", 10*time.Second
			w.Apply([]*Settings{after})()
			if n := share(w.Pool("p")); n < 80 || n > 100 {
				t.Errorf("the new target has %d of 1000 choices, expected 91", n)
			}
			for _, st := range w.Stats() {
				if want := map[string]float64{"a:1": 0.1, "b:1": 1}[st.Target]; st.Weight != want {
					t.Errorf("%s: weight %v in the statistics, expected %v", st.Target, st.Weight, want)
				}
			}
		})
	})
	t.Run("not where keys would move", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := weighing(Maglev, 1, 1)
			s.SlowStart = time.Minute
			p := still(t, s)
			p.members[0].risen.Store(time.Now().UnixNano())
			p.changed()
			near(t, s, choose(p, 10_000, keys), 10_000, 0.1)
		})
	})
}

// TestReload shows what a reload keeps when it changes targets.
func TestReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a:1", "b:1", "c:1")
		first := named(w1, w1, w1)
		first.Outlier = &Outlier{ConsecutiveLocal: 1, BaseTime: time.Minute, MaxTime: time.Hour, MaxPercent: 50, Interval: time.Hour}
		w.Apply([]*Settings{first})()
		old := w.Pool("p")
		at := func(p *Pool, i int) *Target { return p.members[i].Target }
		acquire := func(i int) *Conn {
			var others []*Target
			for k := range 3 {
				if k != i {
					others = append(others, at(old, k))
				}
			}
			c, err := old.AcquireFor(context.Background(), Choice{Tried: others})
			if err != nil || c.Target != at(old, i) {
				t.Fatal(err)
			}
			if err := exchange(t, c); err != nil {
				t.Fatal(err)
			}
			return c
		}
		var held []*Conn
		for i := range 3 {
			held = append(held, acquire(i), acquire(i))
		}
		for i := range 3 { // one idle and one busy at each
			held[2*i].Release(true, time.Now())
		}
		at(old, 1).Report(Failed, 0)

		second := named(TargetSettings{Weight: 5}, w1, TargetSettings{Weight: 1, State: Draining}, TargetSettings{Address: "d:1", Weight: 1})
		second.ID, second.Outlier = "2", first.Outlier
		retire := w.Apply([]*Settings{second})
		p := w.Pool("p")
		if p == old || at(p, 0) != at(old, 0) || at(p, 1) != at(old, 1) {
			t.Fatal("targets that stayed were not taken over")
		}
		if at(p, 1).ejected.Load() == 0 {
			t.Error("an ejection was forgotten")
		}
		retire()
		c, err := p.Acquire(context.Background())
		if err != nil || !c.Reused || c.Target != at(p, 0) {
			t.Errorf("no connection was kept: %v", err)
		}
		// Connections from before are given back to the pool as it is now.
		held[1].Release(true, time.Now())
		c.Release(true, time.Now())
		if n := len(at(p, 0).idle); n != 2 {
			t.Errorf("%d idle connections, expected two", n)
		}
		if n := len(at(old, 2).idle); n != 0 {
			t.Errorf("%d idle connections to a draining target", n)
		}
		held[5].Release(true, time.Now())
		if n := at(old, 2).open; n != 0 {
			t.Errorf("a draining target has %d connections after the last exchange", n)
		}

		third := named(w1)
		third.ID = "3"
		w.Apply([]*Settings{third})()
		if b := at(p, 1); !b.gone.Load() || len(b.idle) != 0 {
			t.Error("a target that was removed is still there")
		}
		held[3].Release(true, time.Now())
		if n := at(p, 1).open; n != 0 {
			t.Errorf("a removed target has %d connections after the last exchange", n)
		}

		fourth := named(w1)
		fourth.ID, fourth.Wire = "4", "other" // verified in another way
		before := at(w.Pool("p"), 0)
		w.Apply([]*Settings{fourth})()
		if at(w.Pool("p"), 0) == before || !before.gone.Load() || before.open != 0 {
			t.Error("A09/connections were kept though they were made under other settings")
		}
	})
}

// TestOwn shows when a client's own connection may be used again.
func TestOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a:1", "b:1")
		s := named(w1, w1)
		s.Balance = Maglev
		w.Apply([]*Settings{s})()
		p := w.Pool("p")
		rest := func(ch Choice) *Conn {
			c, err := p.AcquireFor(context.Background(), ch)
			if err != nil {
				t.Fatal(err)
			}
			if err := exchange(t, c); err != nil {
				t.Fatal(err)
			}
			if !c.Rest(time.Now()) {
				t.Fatal("it does not rest")
			}
			return c
		}
		ours := keys(0)
		c := rest(ours)
		var other Choice
		for i := 1; ; i++ {
			other = keys(i)
			if v := p.view.Load(); v.picks[p.pick(v, &other, 0)].Target != c.Target {
				break
			}
		}
		for name, ch := range map[string]Choice{"another key": other, "fresh": {Fresh: true}, "tried": {Tried: []*Target{c.Target}}} {
			if c.WakeFor(p, ch) {
				t.Errorf("%s: used again", name)
			}
		}
		c.Target.down.Store(true)
		if c.WakeFor(p, ours) {
			t.Error("used again to a target that is down")
		}
		c.Target.down.Store(false)
		if !c.WakeFor(p, ours) {
			t.Error("not used again for the same key")
		}
		if n := c.Target.busy.Load(); n != 1 {
			t.Errorf("%d exchanges under way, expected 1", n)
		}
		c.Discard()
		if n, m := c.Target.busy.Load(), c.Target.open; n != 0 || m != 0 {
			t.Errorf("%d exchanges, %d connections, expected none", n, m)
		}
	})
}

// TestTogether lets many views be asked for at once.
func TestTogether(t *testing.T) {
	s := weighing(RingHash, same(200, 1)...)
	p := still(t, s)
	done := make(chan struct{})
	for i := range 8 {
		go func() {
			defer func() { done <- struct{}{} }()
			for k := range 50 {
				m := p.members[(i*50+k)%200]
				m.down.Store(k%2 == 0)
				p.changed()
				choose(p, 10, keys)
			}
		}()
	}
	for range 8 {
		<-done
	}
	well := 0
	for _, m := range p.members {
		if m.well() {
			well++
		}
	}
	if v := p.view.Load(); v.healthy != well || len(v.picks) != well {
		t.Errorf("the view has %d healthy targets, expected %d", v.healthy, well)
	}
}

func BenchmarkAcquire(b *testing.B) {
	for _, n := range []int{3, 1000} {
		for name, balance := range map[string]Balance{"round_robin": RoundRobin, "least_requests": LeastRequests, "p2c": P2C, "random": Random, "maglev": Maglev, "ring_hash": RingHash} {
			for _, limited := range []bool{false, true} {
				if limited && name != "round_robin" {
					continue
				}
				r := NewRegistry(func(context.Context, string, string) (net.Conn, error) {
					c, _ := memnet.Pipe("a:1", "b:1")
					return c, nil
				}, slog.New(slog.DiscardHandler))
				s := weighing(balance, same(n, 1)...)
				s.MaxConnections = 10
				if limited {
					s.MaxRequests, s.MaxPending, s.QueueTimeout = 100, 100, time.Second
				}
				r.Apply([]*Settings{s})()
				p := r.Pool("p")
				now := time.Now()
				for i := range 20 * n {
					if c, err := p.AcquireFor(context.Background(), keys(i)); err == nil {
						c.Release(true, now)
					}
				}
				b.Run(fmt.Sprintf("%s/%d/limited=%v", name, n, limited), func(b *testing.B) {
					b.ReportAllocs()
					ch := keys(1)
					for b.Loop() {
						ch.Hash += 0x9e3779b97f4a7c15
						c, err := p.AcquireFor(context.Background(), ch)
						if err != nil {
							b.Fatal(err)
						}
						c.Target.Report(Answered, time.Millisecond)
						c.Release(true, now)
					}
				})
				r.Apply(nil)()
			}
		}
	}
}
