package upstream

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"time"
)

// settle makes the members what the configuration and the last answers of the resolver say, and takes over from old, which
// may be nil, the targets that are in both. Call it with p.mu held.
func (p *Pool) settle(old *Pool) {
	now := time.Now()
	known := make(map[string]*Target)
	if old != nil {
		old.mu.Lock()
		for _, m := range old.members {
			known[m.Address] = m.Target
		}
		old.mu.Unlock()
	}
	had := make(map[string]*member, len(p.members))
	for _, m := range p.members {
		had[m.Address] = m
		known[m.Address] = m.Target
	}
	first := len(known) == 0 // what a pool begins with does not start slowly: nobody else would take the traffic
	var next []*member
	seen := make(map[string]bool, len(p.Targets))
	add := func(conf *TargetSettings, address string) *Target {
		if seen[address] || len(next) == maxTargets {
			return nil
		}
		seen[address] = true
		m := had[address]
		if m == nil || m.conf != conf {
			if m != nil && m.stop != nil {
				m.stop()
			}
			m = &member{Target: known[address], conf: conf}
			if m.Target == nil {
				m.Target = newTarget(address)
				if p.SlowStart > 0 && !first {
					m.risen.Store(now.UnixNano())
				}
			}
			if p.Sticky != nil && p.Sticky.Cookie != "" {
				m.id = p.Sticky.id(p.Name, address)
				m.kept.Store(m.id)
			}
		}
		delete(had, address)
		next = append(next, m)
		return m.Target
	}
	for i := range p.Targets {
		conf := &p.Targets[i]
		host, port, _ := net.SplitHostPort(conf.Address)
		answer := p.answers[host]
		if len(answer) == 0 || !p.DNS.All {
			if t := add(conf, conf.Address); t != nil {
				t.unknown.Store(len(answer) == 0 && p.names != nil && isName(host))
				if len(answer) > 0 {
					t.addrs.Store(joined(answer, port))
				}
			}
			continue
		}
		for _, a := range *joined(answer, port) {
			add(conf, a.String())
		}
	}
	for _, m := range had {
		if m.stop != nil {
			m.stop()
		}
		if m.owner.Load() == p {
			m.end()
		}
	}
	p.members = next
	for _, m := range next {
		m.owner.Store(p)
		if p.Health == nil {
			m.down.Store(false)
		}
		if p.Outlier == nil {
			m.ejected.Store(0)
		}
		m.drained.Store(m.conf.State != Active || m.conf.Weight == 0)
		if m.drained.Load() {
			m.closeIdle(time.Time{})
			m.tidySessions(time.Time{}, 0)
		}
		if p.Health != nil && m.stop == nil && m.conf.State != Disabled && !p.stopped {
			var ctx context.Context
			ctx, m.stop = context.WithCancel(p.ctx)
			soon := p.Health.soon()
			p.checks.Go(func() { p.watch(ctx, m.Target, soon) })
		}
	}
	p.rebuild(now)
}

// maxTargets bounds the targets of a pool, those that a resolver names included.
const maxTargets = 4096

func joined(addrs []netip.Addr, port string) *[]netip.AddrPort {
	n, _ := net.LookupPort("tcp", port) // a number, which the compiler of the configuration has seen to
	out := make([]netip.AddrPort, len(addrs))
	for i, a := range addrs {
		out[i] = netip.AddrPortFrom(a, uint16(n))
	}
	return &out
}

// changed makes a new view after something about a target changed. When many change at once, one view serves them all.
func (p *Pool) changed() {
	asked := p.changes.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.built < asked {
		p.rebuild(time.Now())
	}
}

// well reports whether nothing is known against the target.
func (t *Target) well() bool { return !t.down.Load() && t.ejected.Load() == 0 && !t.unknown.Load() }

// rebuild makes the view. Call it with p.mu held.
func (p *Pool) rebuild(now time.Time) {
	p.built = p.changes.Load()
	v := new(view)
	type group struct{ priority, well, total int }
	var groups []group
	widest := 1
	for _, m := range p.members {
		if m.conf.State != Active || m.conf.Weight == 0 {
			continue
		}
		i := slices.IndexFunc(groups, func(g group) bool { return g.priority == m.conf.Priority })
		if i < 0 {
			i = len(groups)
			groups = append(groups, group{priority: m.conf.Priority})
		}
		groups[i].total++
		v.total++
		if m.well() {
			groups[i].well++
			v.healthy++
		}
		widest = max(widest, m.conf.Weight)
	}
	slices.SortFunc(groups, func(a, b group) int { return a.priority - b.priority })
	// The first group that is well enough; else the first of which health can be believed; else the first, whatever is said
	// about it.
	use := slices.IndexFunc(groups, func(g group) bool {
		return g.well > 0 && g.well*100 >= p.Failover*g.total && g.well*100 >= p.Panic*g.total
	})
	if use < 0 {
		use = slices.IndexFunc(groups, func(g group) bool { return g.well > 0 && g.well*100 >= p.Panic*g.total })
		if use < 0 {
			use, v.open = 0, len(groups) > 0
		}
	}
	p.ramping = false
	var out []*member
	for _, m := range p.members {
		if m.conf.State != Active || m.conf.Weight == 0 {
			continue
		}
		switch {
		case m.conf.Priority == groups[use].priority && (v.open || m.well()):
			v.picks = append(v.picks, m)
			v.weights = append(v.weights, p.weight(m, now))
		case m.well():
			v.rest = append(v.rest, m)
		default:
			out = append(out, m)
		}
	}
	v.rest = append(v.rest, out...)
	if len(groups) > 0 {
		v.group = groups[use].priority
	}
	if p.Sticky != nil && p.Sticky.Cookie != "" {
		v.stuck = make(map[uint64]*member, len(p.members))
		for _, m := range p.members {
			if m.conf.State != Disabled && (v.open || m.well()) {
				v.stuck[m.id] = m
			}
		}
	}
	v.arrange(p.Balance, uint32(widest)*unit, len(p.members), p.view.Load())
	p.view.Store(v)
	if p.queue != nil {
		p.queue.wake()
	}
}

// weight is the target's weight at now, in thousandths. In slow start it grows evenly from a tenth. Where keys belong to
// targets it does not: they would move with every step.
func (p *Pool) weight(m *member, now time.Time) uint32 {
	full := uint32(m.conf.Weight) * unit
	risen := m.risen.Load()
	if p.SlowStart == 0 || risen == 0 || p.Balance == Maglev || p.Balance == RingHash {
		return full
	}
	since := now.Sub(time.Unix(0, risen))
	if since >= p.SlowStart {
		m.risen.Store(0)
		return full
	}
	p.ramping = true
	return uint32(float64(full) * max(0.1, float64(since)/float64(p.SlowStart)))
}

// tidy closes connections that have been idle too long, brings ejected targets back, and goes on with slow starts.
func (p *Pool) tidy(now time.Time) {
	for _, m := range p.renewed(now) {
		m.closeIdle(now.Add(-p.Keepalive))
		m.tidySessions(now.Add(-p.Keepalive), p.Idle)
	}
}

// renewed brings what changes with time up to now, and returns the members.
func (p *Pool) renewed(now time.Time) []*member {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.Outlier != nil && p.ctx.Err() == nil {
		p.judge(now)
	}
	if p.ramping {
		p.rebuild(now)
	}
	return p.members
}

// Stats are the connections of one target, and what is thought of it.
type Stats struct {
	Upstream, Target string
	// Open counts connections, Idle those that nobody uses, Busy the exchanges under way.
	Open, Idle, Busy int
	// Healthy is what the health check says, Ejected what the target's own answers say.
	Healthy, Ejected bool
	// State is what the configuration says, Weight and Priority too. Weight is that in force, in slow start less.
	State    State
	Weight   float64
	Priority int
}

// Stats lists every target, for metrics.
func (r *Registry) Stats() []Stats {
	var out []Stats
	now := time.Now()
	for name, p := range *r.pools.Load() {
		p.mu.Lock()
		for _, m := range p.members {
			s := Stats{Upstream: name, Target: m.Address, Busy: int(m.busy.Load()), Healthy: !m.down.Load(), Ejected: m.ejected.Load() != 0,
				State: m.conf.State, Weight: float64(m.conf.Weight), Priority: m.conf.Priority}
			if s.State == Active && s.Weight > 0 {
				s.Weight = float64(p.weight(m, now)) / unit
			}
			m.mu.Lock()
			s.Open, s.Idle = m.open, len(m.idle)
			m.mu.Unlock()
			out = append(out, s)
		}
		p.mu.Unlock()
	}
	return out
}

// PoolStats are the limits of one pool and what they did, and which of its targets are used.
type PoolStats struct {
	Upstream string
	// Active counts the exchanges under way to targets that the pool has now, Pending the acquisitions that wait.
	Active, Pending int
	// Healthy and Total count the targets that the configuration wants used; Priority is the group in use, FailOpen that
	// health is ignored.
	Healthy, Total, Priority int
	FailOpen                 bool
	// QueueFull, QueueTimeouts and CircuitOpen count refusals: no room to wait, waited too long, max_requests reached with
	// nowhere to wait. Ejections counts targets ejected, Retries and RetriesRefused what the retry budget allowed.
	QueueFull, QueueTimeouts, CircuitOpen, Ejections, Retries, RetriesRefused uint64
	// Unresolved are the names whose last lookup failed.
	Unresolved []string
}

// PoolStats lists every pool, for metrics. Counters begin again when a pool's settings change.
func (r *Registry) PoolStats() []PoolStats {
	var out []PoolStats
	for name, p := range *r.pools.Load() {
		v, n := p.view.Load(), &p.counts
		s := PoolStats{Upstream: name, Active: p.busy(), Healthy: v.healthy, Total: v.total, Priority: v.group, FailOpen: v.open,
			QueueFull: n.full.Load(), QueueTimeouts: n.timeouts.Load(), CircuitOpen: n.open.Load(), Ejections: n.ejections.Load(),
			Retries: n.retries.Load(), RetriesRefused: n.refused.Load()}
		if p.queue != nil {
			s.Pending = int(p.queue.length.Load())
		}
		p.mu.Lock()
		for host := range p.lost {
			s.Unresolved = append(s.Unresolved, host)
		}
		p.mu.Unlock()
		slices.Sort(s.Unresolved)
		out = append(out, s)
	}
	return out
}

// busy counts the exchanges under way.
func (p *Pool) busy() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, m := range p.members {
		n += int(m.busy.Load())
	}
	return n
}
