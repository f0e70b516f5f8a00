package limit

import (
	"sync"
	"sync/atomic"
	"time"

	"countersign/internal/reason"
)

// Settings are the limits of one scope: a listener, a host, a route, or the connections of a listener.
type Settings struct {
	// Name identifies the scope across configurations: what was counted under it goes on counting when numbers change.
	Name        string
	Rates       []RateSettings
	Concurrency []ConcurrencySettings
}

// RateSettings let in Requests in each Every, and Burst at once.
type RateSettings struct {
	Per      Per
	Requests int
	Every    time.Duration
	Burst    int
	// ExceptLocal says that loopback addresses are not refused.
	ExceptLocal bool
	// Reason is what a refusal is called; reason.RateLimited if unset.
	Reason reason.Reason
}

// ConcurrencySettings let Requests be under way at once.
type ConcurrencySettings struct {
	Per      Per
	Requests int
	// ExceptLocal says that loopback addresses are counted, and not refused.
	ExceptLocal bool
	// Reason is what a refusal is called; reason.ConcurrencyLimited if unset.
	Reason reason.Reason
}

// Gate is the limits of one scope in force. A nil Gate limits nothing.
type Gate struct {
	rates []ratedGate
	caps  []cappedGate
}

type ratedGate struct {
	RateSettings
	rate *Rate
}

type cappedGate struct {
	ConcurrencySettings
	count *Concurrency
}

// Count is how many of a client's are under way by the gate's own count of addresses; 0 where it has none.
func (g *Gate) Count(c *Client) int {
	if g != nil {
		for i := range g.caps {
			if g.caps[i].Per == Address {
				return g.caps[i].count.Count(c.Address)
			}
		}
	}
	return 0
}

// Pass is what one request, or one connection, has taken of the gates it went through. The zero value has gone through
// none. It is used by one goroutine at a time, and again after Leave.
type Pass struct{ taken []taken }

type taken struct {
	rate  *Rate        // or
	count *Concurrency // is not nil
	key   Key
}

// Enter goes through g. If it is refused it says why and when to try again (0 where nobody can tell), and everything that
// p has taken, of this gate and of those before it, is given back: what is refused costs the client nothing.
func (p *Pass) Enter(g *Gate, c *Client, now time.Time) (retry time.Duration, why reason.Reason) {
	if g == nil {
		return 0, reason.Unset
	}
	for i := range g.caps {
		l := &g.caps[i]
		key := l.Per.key(c)
		if l.ExceptLocal && c.Local {
			l.count.enter(key, maxDebt)
		} else if !l.count.Enter(key) {
			p.undo()
			return 0, l.Reason
		}
		p.taken = append(p.taken, taken{count: l.count, key: key})
	}
	for i := range g.rates {
		l := &g.rates[i]
		if l.ExceptLocal && c.Local {
			continue
		}
		key := l.Per.key(c)
		wait, ok := l.rate.Take(key, now)
		if !ok {
			p.undo()
			return wait, l.Reason
		}
		p.taken = append(p.taken, taken{rate: l.rate, key: key})
	}
	return 0, reason.Unset
}

// Leave ends what was entered. It may be called more than once.
func (p *Pass) Leave() { p.end(false) }

func (p *Pass) undo() { p.end(true) }

func (p *Pass) end(undo bool) {
	for i := range p.taken {
		t := &p.taken[i]
		if t.count != nil {
			t.count.Leave(t.key)
		} else if undo {
			t.rate.give(t.key)
		}
		*t = taken{}
	}
	p.taken = p.taken[:0]
}

// RetryAfter is wait in whole seconds as the header Retry-After has it (RFC 9110 section 10.2.3): at least 1.
func RetryAfter(wait time.Duration) int {
	return int(max((wait+time.Second-1)/time.Second, 1))
}

// Registry holds the gates of the configuration in force by name. What they count lives here, beside the configuration,
// and outlasts a reload. Use NewRegistry.
type Registry struct {
	mu    sync.Mutex // serialises Apply and its retire
	gates atomic.Pointer[map[string]*Gate]
	names map[string]bool // of the latest configuration
}

// NewRegistry makes an empty registry.
func NewRegistry() *Registry {
	r := new(Registry)
	r.gates.Store(&map[string]*Gate{})
	return r
}

// Gate finds a gate by name, nil if there is none.
func (r *Registry) Gate(name string) *Gate {
	if name == "" {
		return nil
	}
	return (*r.gates.Load())[name]
}

// Apply puts settings in force. Gates that are not named any more are found until retire is called, as pools are: call it
// a while after the configuration was swapped. The n-th limit of one kind in a scope is the same one whatever its numbers.
func (r *Registry) Apply(settings []*Settings) (retire func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := *r.gates.Load()
	next := make(map[string]*Gate, len(old)+len(settings))
	for name, g := range old {
		next[name] = g
	}
	r.names = make(map[string]bool, len(settings))
	for _, s := range settings {
		next[s.Name] = newGate(s, old[s.Name])
		r.names[s.Name] = true
	}
	r.gates.Store(&next)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		kept := make(map[string]*Gate, len(r.names))
		for name, g := range *r.gates.Load() {
			if r.names[name] { // by the latest configuration, which may be another one by now
				kept[name] = g
			}
		}
		r.gates.Store(&kept)
	}
}

// Tidy gives back memory that is not needed now. Call it about once a minute.
func (r *Registry) Tidy(now time.Time) {
	for _, g := range *r.gates.Load() {
		for i := range g.rates {
			g.rates[i].rate.Tidy(now)
		}
		for i := range g.caps {
			g.caps[i].count.Tidy()
		}
	}
}

// newGate makes the gate of s with what old has counted.
func newGate(s *Settings, old *Gate) *Gate {
	if old == nil {
		old = new(Gate)
	}
	g := new(Gate)
	var rates, caps [Certificate + 1]int // how many of each kind there were
	for _, l := range s.Rates {
		if l.Reason == reason.Unset {
			l.Reason = reason.RateLimited
		}
		rate := old.nthRate(l.Per, rates[l.Per])
		if rates[l.Per]++; rate == nil {
			rate = NewRate(l.Requests, l.Every, l.Burst)
		} else {
			rate.Set(l.Requests, l.Every, l.Burst)
		}
		g.rates = append(g.rates, ratedGate{l, rate})
	}
	for _, l := range s.Concurrency {
		if l.Reason == reason.Unset {
			l.Reason = reason.ConcurrencyLimited
		}
		count := old.nthCount(l.Per, caps[l.Per])
		if caps[l.Per]++; count == nil {
			count = NewConcurrency(l.Requests)
		} else {
			count.Set(l.Requests)
		}
		g.caps = append(g.caps, cappedGate{l, count})
	}
	return g
}

func (g *Gate) nthRate(p Per, n int) *Rate {
	for i := range g.rates {
		if g.rates[i].Per == p {
			if n == 0 {
				return g.rates[i].rate
			}
			n--
		}
	}
	return nil
}

func (g *Gate) nthCount(p Per, n int) *Concurrency {
	for i := range g.caps {
		if g.caps[i].Per == p {
			if n == 0 {
				return g.caps[i].count
			}
			n--
		}
	}
	return nil
}
