package upstream

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"testing"
	"time"
)

// still makes a pool whose targets are never dialled.
func still(t testing.TB, s *Settings) *Pool {
	r := NewRegistry(func(context.Context, string, string) (net.Conn, error) { panic("dialled") }, slog.New(slog.NewTextHandler(io.Discard, nil)))
	r.Apply([]*Settings{s})()
	t.Cleanup(func() { r.Apply(nil)() })
	return r.Pool(s.Name)
}

// weighing are settings with one target for each weight.
func weighing(b Balance, weights ...int) *Settings {
	s := settings("p")
	s.Balance, s.Wire = b, "w"
	for i, w := range weights {
		s.Targets = append(s.Targets, TargetSettings{Address: fmt.Sprintf("10.0.%d.%d:443", i/250, i%250), Weight: w})
	}
	return s
}

func same(n, weight int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = weight
	}
	return out
}

// choose makes n choices and counts them by target.
func choose(p *Pool, n int, ch func(i int) Choice) map[string]int {
	out := map[string]int{}
	v := p.view.Load()
	for i := range n {
		c := ch(i)
		out[v.picks[p.pick(v, &c, 0)].Address]++
	}
	return out
}

func anything(int) Choice { return Choice{} }

func keys(i int) Choice { return Choice{Hash: Hash(fmt.Append(nil, "key ", i)), HasHash: true} }

func clients(i int) Choice { return Choice{Client: Hash(fmt.Append(nil, "client ", i))} }

func TestRoundRobin(t *testing.T) {
	t.Run("equal weights", func(t *testing.T) {
		p := still(t, weighing(RoundRobin, 7, 7, 7))
		if p.view.Load().turns != nil {
			t.Error("a schedule is kept where turns are enough")
		}
		for a, n := range choose(p, 300, anything) {
			if n != 100 {
				t.Errorf("%s: %d of 300", a, n)
			}
		}
	})
	for _, weights := range [][]int{{5, 1, 1}, {1, 2, 3, 4}, {999, 1}, {997, 991, 3, 1, 1}, {2, 1, 1, 1, 1, 1, 1, 1, 1, 1}} {
		t.Run(fmt.Sprint(weights), func(t *testing.T) {
			p := still(t, weighing(RoundRobin, weights...))
			v := p.view.Load()
			sum := 0
			for _, w := range weights {
				sum += w
			}
			got := make([]int, len(weights))
			for turn := 1; turn <= 20*sum; turn++ {
				got[p.pick(v, new(Choice), 0)]++
				for i, w := range weights {
					want := float64(turn) * float64(w) / float64(sum)
					if math.Abs(float64(got[i])-want) > 1.5 {
						t.Fatalf("after %d turns target %d has %d, expected %.1f", turn, i, got[i], want)
					}
					if turn%sum == 0 && got[i] != turn/sum*w {
						t.Fatalf("after %d turns target %d has %d, expected exactly %d", turn, i, got[i], turn/sum*w)
					}
				}
			}
		})
	}
	t.Run("the rare target keeps its turn when the view changes", func(t *testing.T) {
		p := still(t, weighing(RoundRobin, 100, 1))
		got := map[string]int{}
		for range 101 * 3 {
			for a, n := range choose(p, 10, anything) {
				got[a] += n
			}
			p.changed()
		}
		if n := got["10.0.0.1:443"]; n < 28 || n > 32 {
			t.Errorf("%d of %d turns, expected 30", n, 3030)
		}
	})
	t.Run("the clock does not run over", func(t *testing.T) {
		p := still(t, weighing(RoundRobin, 3, 2, 1))
		s := p.view.Load().turns
		for i := range s.heap {
			s.heap[i].due += math.MaxUint64/2 - 2*span/1000
		}
		got := choose(p, 6*1000, anything)
		if fmt.Sprint(got) != "map[10.0.0.0:443:3000 10.0.0.1:443:2000 10.0.0.2:443:1000]" || s.clock > math.MaxUint64/4 {
			t.Errorf("%v, clock %d", got, s.clock)
		}
	})
}

func TestLeastRequestsWeighted(t *testing.T) {
	p := still(t, weighing(LeastRequests, 6, 3, 1))
	v := p.view.Load()
	for range 100 {
		v.picks[p.pick(v, new(Choice), 0)].busy.Add(1)
	}
	for i, want := range []int32{60, 30, 10} {
		if got := v.picks[i].busy.Load(); got < want-1 || got > want+1 {
			t.Errorf("target %d has %d of 100 exchanges, expected %d", i, got, want)
		}
	}
}

func TestP2C(t *testing.T) {
	p := still(t, weighing(P2C, 1, 1, 1))
	v := p.view.Load()
	report := func(slow Outcome, took time.Duration) {
		for i, m := range v.picks {
			o, d := Answered, 10*time.Millisecond
			if i == 0 {
				o, d = slow, took
			}
			m.Report(o, d)
		}
	}
	first := v.picks[0].Address
	t.Run("the slow one gets what nobody else is there for", func(t *testing.T) {
		report(Answered, time.Second)
		if n := choose(p, 3000, anything)[first]; n != 0 {
			t.Errorf("%d of 3000 choices, and both others are idle", n)
		}
		for _, m := range v.picks[1:] {
			m.busy.Store(200)
			defer m.busy.Store(0)
		}
		if n := choose(p, 3000, anything)[first]; n < 1800 || n > 2200 {
			t.Errorf("%d of 3000 choices, expected two thirds when the others are busier", n)
		}
	})
	t.Run("failing fast is not being fast", func(t *testing.T) {
		for range 50 {
			report(Failed, time.Microsecond)
			report(GatewayError, time.Microsecond)
		}
		if n := choose(p, 3000, anything)[first]; n != 0 {
			t.Errorf("%d of 3000 choices", n)
		}
	})
	t.Run("failing fast for a minute is not", func(t *testing.T) {
		var l latency
		now := int64(time.Hour)
		l.observe(time.Second, false, now)
		for range 60 {
			now += int64(time.Second)
			l.observe(time.Millisecond, true, now)
		}
		if got := math.Float64frombits(l.average.Load()); got != float64(time.Second) {
			t.Errorf("the average is %s", time.Duration(got))
		}
		l.observe(time.Millisecond, false, now)
		if got := math.Float64frombits(l.average.Load()); got > float64(10*time.Millisecond) {
			t.Errorf("the average is %s after a good answer, and the last one was a minute ago", time.Duration(got))
		}
	})
	t.Run("what was slow long ago is tried again", func(t *testing.T) {
		now := time.Now().Add(5 * time.Minute).UnixNano()
		if a, b := v.picks[0].load(now), v.picks[1].load(now); a > 1.01*b {
			t.Errorf("load %.0f against %.0f five minutes later", a, b)
		}
	})
	t.Run("weights", func(t *testing.T) {
		p := still(t, weighing(P2C, 9, 1))
		v := p.view.Load()
		for range 1000 {
			v.picks[p.pick(v, new(Choice), 0)].busy.Add(1)
		}
		if n := v.picks[1].busy.Load(); n < 90 || n > 110 {
			t.Errorf("%d of 1000 exchanges, expected 100", n)
		}
	})
}

// near fails unless every target has its share of n, give or take a part of it.
func near(t *testing.T, s *Settings, got map[string]int, n int, tolerance float64) {
	t.Helper()
	sum := 0
	for _, x := range s.Targets {
		sum += x.Weight
	}
	for _, x := range s.Targets {
		want := float64(n) * float64(x.Weight) / float64(sum)
		if math.Abs(float64(got[x.Address])-want) > tolerance*want {
			t.Errorf("%s (weight %d): %d of %d, expected %.0f give or take %.0f %%", x.Address, x.Weight, got[x.Address], n, want, tolerance*100)
		}
	}
}

func TestShares(t *testing.T) {
	for _, tt := range []struct {
		name      string
		b         Balance
		ch        func(int) Choice
		tolerance float64
	}{
		{"random", Random, anything, 0.05},
		{"maglev", Maglev, keys, 0.06},
		{"maglev without a key", Maglev, anything, 0.05},
		{"ring", RingHash, keys, 0.30},
		{"ring without a key", RingHash, anything, 0.05},
		{"client certificate", RoundRobin, clients, 0.05},
	} {
		for _, weights := range [][]int{{1, 1, 1}, {4, 2, 1, 1}, same(10, 5)} {
			t.Run(fmt.Sprint(tt.name, weights), func(t *testing.T) {
				s := weighing(tt.b, weights...)
				if tt.name == "client certificate" {
					s.Sticky = &Sticky{Client: true}
				}
				near(t, s, choose(still(t, s), 100_000, tt.ch), 100_000, tt.tolerance)
			})
		}
	}
}

// TestFewMove shows what happens to keys when one of ten targets goes, and that it is the same on every node.
func TestFewMove(t *testing.T) {
	const n = 20_000
	for _, tt := range []struct {
		name string
		b    Balance
		ch   func(int) Choice
		most float64 // of the keys of targets that stay
	}{
		{"maglev", Maglev, keys, 0.03},
		{"ring", RingHash, keys, 0},
		{"client certificate", LeastRequests, clients, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := weighing(tt.b, same(10, 1)...)
			s.Sticky = &Sticky{Client: true}
			p := still(t, s)
			where := func() (out [n]string) {
				v := p.view.Load()
				for i := range n {
					c := tt.ch(i)
					out[i] = v.picks[p.pick(v, &c, 0)].Address
				}
				return out
			}
			before := where()
			p.members[3].down.Store(true)
			p.changed()
			gone, after := p.members[3].Address, where()
			moved, stayed := 0, 0
			for i := range n {
				switch {
				case after[i] == gone:
					t.Fatal("a key leads to the target that is gone")
				case before[i] == gone:
				case before[i] != after[i]:
					moved++
				default:
					stayed++
				}
			}
			if share := float64(moved) / float64(moved+stayed); share > tt.most {
				t.Errorf("%.1f %% of the other targets' keys move, expected at most %.1f %%", share*100, tt.most*100)
			}
			p.members[3].down.Store(false)
			p.changed()
			if where() != before {
				t.Error("keys are elsewhere when the target is back")
			}

			rand.Shuffle(len(s.Targets), func(i, j int) { s.Targets[i], s.Targets[j] = s.Targets[j], s.Targets[i] })
			if p = still(t, s); where() != before {
				t.Error("keys depend on the order in which targets are listed")
			}
		})
	}
	// Nodes of different versions have to agree.
	for b, want := range map[Balance]string{Maglev: golden1, RingHash: golden2} {
		p := still(t, weighing(b, 3, 2, 1))
		got := ""
		v := p.view.Load()
		for i := range 24 {
			c := keys(i)
			got += fmt.Sprint(p.pick(v, &c, 0))
		}
		if got != want {
			t.Errorf("balance %d: keys lead to %s, expected %s", b, got, want)
		}
	}
}

const golden1, golden2 = "020200011111020210112001", "121001120211011020022020"

// TestAgain shows that a request that is tried again goes elsewhere.
func TestAgain(t *testing.T) {
	p := still(t, weighing(Maglev, 1, 1, 1, 1))
	v := p.view.Load()
	c := keys(2)
	seen := map[int]bool{}
	for again := range 20 {
		seen[p.pick(v, &c, again)] = true
	}
	if len(seen) != 4 {
		t.Errorf("20 choices for one key, and %d targets", len(seen))
	}
}

func BenchmarkPick(b *testing.B) {
	for _, n := range []int{3, 1000} {
		for name, balance := range map[string]Balance{"round_robin": RoundRobin, "least_requests": LeastRequests, "p2c": P2C, "random": Random, "maglev": Maglev, "ring_hash": RingHash} {
			for _, weighted := range []bool{false, true} {
				s := weighing(balance, same(n, 1)...)
				if weighted {
					for i := range s.Targets {
						s.Targets[i].Weight = 1 + i%7
					}
				}
				p := still(b, s)
				for _, m := range p.members { // as under load
					m.busy.Store(3)
				}
				b.Run(fmt.Sprintf("%s/%d/weighted=%v", name, n, weighted), func(b *testing.B) {
					b.ReportAllocs()
					ch := keys(1)
					for b.Loop() {
						ch.Hash += 0x9e3779b97f4a7c15
						v := p.view.Load()
						_ = p.pick(v, &ch, 0)
					}
				})
			}
		}
		s := weighing(RoundRobin, same(n, 1)...)
		s.Sticky = &Sticky{Client: true}
		p := still(b, s)
		b.Run(fmt.Sprintf("client_certificate/%d", n), func(b *testing.B) {
			ch := clients(1)
			for b.Loop() {
				v := p.view.Load()
				_ = p.pick(v, &ch, 0)
			}
		})
	}
}
