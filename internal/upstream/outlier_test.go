package upstream

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"countersign/internal/memnet"
)

// judging are settings for n targets with Envoy's defaults and our floor.
func judging(n int) *Settings {
	s := weighing(RoundRobin, same(n, 1)...)
	s.Outlier = &Outlier{Consecutive5xx: 5, ConsecutiveLocal: 5, Interval: 10 * time.Second, BaseTime: 30 * time.Second, MaxTime: 100 * time.Second, MaxPercent: 50}
	return s
}

func out(p *Pool) (n int) {
	for _, m := range p.members {
		if m.ejected.Load() != 0 {
			n++
		}
	}
	return n
}

func TestEjection(t *testing.T) {
	repeat := func(n int, o Outcome) (out []Outcome) {
		for range n {
			out = append(out, o)
		}
		return out
	}
	for _, tt := range []struct {
		name  string
		set   func(*Outlier)
		heard []Outcome
		out   bool
	}{
		{"four answers 5xx", nil, repeat(4, ServerError), false},
		{"five answers 5xx", nil, repeat(5, ServerError), true},
		{"five answers 503", nil, repeat(5, GatewayError), true},
		{"a good one between", nil, append(append(repeat(4, ServerError), Answered), repeat(4, ServerError)...), false},
		{"four failures", nil, repeat(4, Failed), false},
		{"five failures", nil, repeat(5, Failed), true},
		{"an error between failures is an answer", nil, append(append(repeat(4, Failed), ServerError), repeat(4, Failed)...), false},
		{"failures are no answers", nil, append(append(repeat(4, ServerError), Failed), repeat(4, ServerError)[:0]...), false},
		{"gateway failures not counted apart", nil, append(repeat(4, GatewayError), Answered), false},
		{"gateway failures counted apart", func(x *Outlier) { x.ConsecutiveGateway = 2 }, repeat(2, GatewayError), true},
		{"a 500 between gateway failures", func(x *Outlier) { x.ConsecutiveGateway = 2 }, []Outcome{GatewayError, ServerError, GatewayError}, false},
		{"5xx not counted", func(x *Outlier) { x.Consecutive5xx = 0 }, repeat(50, ServerError), false},
		{"failures not counted", func(x *Outlier) { x.ConsecutiveLocal = 0 }, repeat(50, Failed), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := judging(4)
			if tt.set != nil {
				tt.set(s.Outlier)
			}
			p := still(t, s)
			for _, o := range tt.heard {
				p.members[1].Report(o, time.Millisecond)
			}
			if got := out(p) == 1; got != tt.out {
				t.Errorf("ejected is %v, expected %v", got, tt.out)
			}
			if got := choose(p, 40, anything)[p.members[1].Address] == 0; got != tt.out {
				t.Errorf("left out is %v, expected %v", got, tt.out)
			}
		})
	}
	for status, want := range map[int]Outcome{200: Answered, 101: Answered, 404: Answered, 499: Answered, 500: ServerError, 501: ServerError, 502: GatewayError, 503: GatewayError, 504: GatewayError, 505: ServerError, 599: ServerError} {
		if got := OutcomeOf(status); got != want {
			t.Errorf("%d: %d, expected %d", status, got, want)
		}
	}
}

// TestFloor shows that enough targets always stay.
func TestFloor(t *testing.T) {
	fail := func(p *Pool) {
		for range 20 {
			for _, m := range p.members {
				m.Report(Failed, time.Millisecond)
			}
		}
	}
	for _, tt := range []struct{ n, percent, want int }{{1, 50, 0}, {2, 50, 1}, {3, 50, 1}, {4, 50, 2}, {10, 50, 5}, {10, 10, 1}, {9, 10, 0}} {
		t.Run(fmt.Sprintf("H15/%d targets, %d percent", tt.n, tt.percent), func(t *testing.T) {
			s := judging(tt.n)
			s.Outlier.MaxPercent = tt.percent
			p := still(t, s)
			fail(p)
			if got := out(p); got != tt.want {
				t.Errorf("%d are out, expected %d", got, tt.want)
			}
		})
	}
	t.Run("H15/the last one that is well", func(t *testing.T) {
		s := judging(4)
		s.Health = &Health{Interval: time.Hour, Timeout: time.Second}
		p := still(t, s)
		for _, m := range p.members[1:] {
			m.down.Store(true)
		}
		p.changed()
		for range 20 {
			p.members[0].Report(Failed, time.Millisecond)
		}
		if out(p) != 0 {
			t.Error("the only target that passes its check was ejected")
		}
	})
	t.Run("targets that are not in use do not count", func(t *testing.T) {
		s := judging(4)
		s.Targets[2].State, s.Targets[3].Weight = Draining, 0
		p := still(t, s)
		fail(p)
		if out(p) != 1 || p.members[2].ejected.Load() != 0 || p.members[3].ejected.Load() != 0 {
			t.Errorf("%d of the two in use are out, expected one", out(p))
		}
	})
}

func TestEjectionTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := judging(4)
		s.SlowStart = 20 * time.Second
		w.Apply([]*Settings{s})()
		w.ticking(t)
		p := w.Pool("p")
		m := p.members[0]
		eject := func() time.Duration {
			for range 5 {
				m.Report(Failed, 0)
			}
			if m.ejected.Load() == 0 {
				t.Fatal("not ejected")
			}
			began := time.Now()
			for m.ejected.Load() != 0 {
				time.Sleep(100 * time.Millisecond)
			}
			synctest.Wait()
			return time.Since(began)
		}
		// It ends when it is looked at next, once a second.
		near := func(got, want time.Duration) bool { return got >= want && got <= want+1100*time.Millisecond }
		for i, want := range []time.Duration{30 * time.Second, 60 * time.Second, 90 * time.Second, 100 * time.Second} {
			if got := eject(); !near(got, want) {
				t.Errorf("ejection %d lasts %s, expected %s", i+1, got, want)
			}
			if i == 0 {
				if n := choose(p, 3100, anything)[m.Address]; n < 90 || n > 150 {
					t.Errorf("the target is back with %d of 3100 requests, expected a tenth of its share", n)
				}
			}
		}
		time.Sleep(25 * time.Second) // two intervals: two are forgiven
		if got := eject(); !near(got, 90*time.Second) {
			t.Errorf("after two quiet intervals it lasts %s, expected 90s", got)
		}
		time.Sleep(2 * time.Minute)
		if got := eject(); !near(got, 30*time.Second) {
			t.Errorf("after a long quiet time it lasts %s, expected 30s", got)
		}
		w.Apply(nil)()
		for _, want := range []string{"target is ejected", "5 failures in a row", "target is back"} {
			if !strings.Contains(w.log.String(), want) {
				t.Errorf("the log does not say %q", want)
			}
		}
	})
}

func TestSuccessRate(t *testing.T) {
	for _, tt := range []struct {
		name       string
		n, volume  int
		bad        int // percent of failures at the first
		rest       int // at the others
		want       int
		unconfined bool
	}{
		{"one fails half the time", 10, 200, 50, 0, 1, false},
		{"all fail half the time", 10, 200, 50, 50, 0, false},
		{"too few targets", 4, 200, 50, 0, 0, false},
		{"too few requests", 10, 90, 50, 0, 0, false},
		{"all is well", 10, 200, 0, 0, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := judging(tt.n)
				s.Outlier.Rate = &SuccessRate{Hosts: 5, Requests: 100, Factor: 1900}
				p := still(t, s)
				p.tidy(time.Now())
				for i, m := range p.members {
					percent := tt.rest
					if i == 0 {
						percent = tt.bad
					}
					for k := range tt.volume {
						if k%2 == 0 && k*percent/100 != (k+2)*percent/100 || percent == 50 && k%2 == 0 {
							m.Report(ServerError, 0)
						} else {
							m.Report(Answered, 0)
						}
					}
				}
				time.Sleep(9 * time.Second)
				p.tidy(time.Now())
				if out(p) != 0 {
					t.Error("ejected before the interval was over")
				}
				time.Sleep(time.Second)
				p.tidy(time.Now())
				if got := out(p); got != tt.want || got == 1 && p.members[0].ejected.Load() == 0 {
					t.Errorf("%d are out, expected %d", got, tt.want)
				}
			})
		})
	}
}

// TestFlapping turns four of five targets off and on each second: requests must always find the one that stays.
func TestFlapping(t *testing.T) {
	t.Run("H15", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var up atomic.Int32 // bits
			up.Store(31)
			network := new(memnet.Network)
			r := NewRegistry(func(ctx context.Context, n, address string) (net.Conn, error) {
				if i := strings.IndexByte("abcde", address[0]); up.Load()&(1<<i) == 0 {
					return nil, fmt.Errorf("%s is off", address)
				}
				return network.Dial(ctx, n, address)
			}, slog.New(slog.DiscardHandler))
			w := &world{Registry: r, net: network}
			for _, a := range []string{"a:1", "b:1", "c:1", "d:1", "e:1"} {
				w.listen(t, a, answering(ok, ok, ok))
			}
			s := named(w1, w1, w1, w1, w1)
			s.Outlier = judging(1).Outlier
			s.Health = &Health{Interval: time.Second, Timeout: time.Second, Healthy: 2, Unhealthy: 2}
			s.SlowStart = 5 * time.Second
			r.Apply([]*Settings{s})()
			t.Cleanup(func() { r.Apply(nil)() })
			w.ticking(t)
			failed := 0
			for second := range 300 {
				up.Store(int32(1<<(second%5) | 1<<((second/7)%5)))
				for range 50 {
					time.Sleep(20 * time.Millisecond)
					c, err := r.Pool("p").Acquire(context.Background())
					if err != nil {
						failed++
						continue
					}
					c.Discard()
				}
			}
			if failed > 0 {
				t.Errorf("%d of 15000 requests found no target, and one was there all the time", failed)
			}
			up.Store(31)
			time.Sleep(3 * time.Minute)
			near(t, s, choose(r.Pool("p"), 1000, anything), 1000, 0.05)
		})
	})
}
