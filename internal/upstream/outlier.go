package upstream

import (
	"fmt"
	"math"
	"sync/atomic"
	"time"
)

// Outlier is how targets are ejected for what they answer, in Envoy's terms. Zero counts are not looked at.
type Outlier struct {
	// Consecutive5xx, ConsecutiveGateway and ConsecutiveLocal are how many in a row eject a target: answers of 500 and
	// above; answers 502, 503 and 504; and failures to get an answer at all.
	Consecutive5xx, ConsecutiveGateway, ConsecutiveLocal int
	// Interval is the time between looks at success rates, and after which a target that was not ejected is forgiven one
	// earlier ejection.
	Interval time.Duration
	// BaseTime is how long a target is out the first time; twice that the second, and so on, up to MaxTime.
	BaseTime, MaxTime time.Duration
	// MaxPercent is the most targets that may be out at a time. One that is well always stays.
	MaxPercent int
	// Rate ejects targets that succeed less often than the others; nil means not.
	Rate *SuccessRate
}

// SuccessRate ejects a target whose share of successes in an interval is below the mean of all by more than a multiple of
// the standard deviation.
type SuccessRate struct {
	// Hosts is how many targets must have had Requests in the interval.
	Hosts, Requests int
	// Factor is the multiple, in thousandths.
	Factor int
}

// Outcome is what an exchange with a target says about it.
type Outcome uint8

// The outcomes.
const (
	Answered     Outcome = iota // with a status below 500
	ServerError                 // with another 5xx
	GatewayError                // with 502, 503 or 504
	Failed                      // without the head of an answer: no connection, no reply in time, or not a whole one
)

// OutcomeOf is the outcome of an exchange with this status.
func OutcomeOf(status int) Outcome {
	switch {
	case status < 500:
		return Answered
	case status >= 502 && status <= 504:
		return GatewayError
	}
	return ServerError
}

// faults are what a target did wrong of late.
type faults struct {
	row5xx, rowGateway, rowLocal atomic.Int32 // in a row
	good, all                    atomic.Int32 // in this interval
	// Guarded by the owner's mu:
	ejections int       // not forgiven yet
	since     time.Time // it came back, or was last forgiven
}

func (f *faults) clear() {
	f.row5xx.Store(0)
	f.rowGateway.Store(0)
	f.rowLocal.Store(0)
}

// Report tells what an exchange with the target says about it, and how long its answer took. AcquireFor reports by itself
// that a target could not be reached.
func (t *Target) Report(o Outcome, took time.Duration) {
	p := t.owner.Load()
	if p.Balance == P2C {
		if o == Failed {
			took = max(took, p.Connect)
		}
		t.latency.observe(took, o != Answered, time.Now().UnixNano())
	}
	x := p.Outlier
	if x == nil {
		return
	}
	f := &t.faults
	if x.Rate != nil {
		f.all.Add(1)
		if o == Answered {
			f.good.Add(1)
		}
	}
	switch o {
	case Answered:
		if f.row5xx.Load()|f.rowGateway.Load()|f.rowLocal.Load() != 0 {
			f.clear()
		}
	case Failed:
		if reached(f.rowLocal.Add(1), x.ConsecutiveLocal) {
			p.eject(t, fmt.Sprintf("%d failures in a row", x.ConsecutiveLocal))
		}
	default:
		f.rowLocal.Store(0)
		n, gateway := f.row5xx.Add(1), int32(0)
		if o == GatewayError {
			gateway = f.rowGateway.Add(1)
		} else {
			f.rowGateway.Store(0)
		}
		switch {
		case reached(n, x.Consecutive5xx):
			p.eject(t, fmt.Sprintf("%d answers 5xx in a row", x.Consecutive5xx))
		case reached(gateway, x.ConsecutiveGateway):
			p.eject(t, fmt.Sprintf("%d answers 502, 503 or 504 in a row", x.ConsecutiveGateway))
		}
	}
}

// reached is true at each multiple of limit, so that a target that could not be ejected is not looked at for every answer.
func reached(n int32, limit int) bool { return limit > 0 && n > 0 && int(n)%limit == 0 }

// eject takes a target out for a while, if enough are left.
func (p *Pool) eject(t *Target, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.out(t, why, now) {
		p.rebuild(now)
	}
}

// out marks a target as ejected. Call it with p.mu held.
func (p *Pool) out(t *Target, why string, now time.Time) bool {
	if t.ejected.Load() != 0 || p.ctx.Err() != nil {
		return false
	}
	here, total, ejected, well := false, 0, 0, 0
	for _, m := range p.members {
		if m.conf.State != Active || m.conf.Weight == 0 {
			continue
		}
		total++
		switch {
		case m.Target == t:
			here = true
		case m.ejected.Load() != 0:
			ejected++
		case !m.down.Load():
			well++
		}
	}
	x := p.Outlier
	if !here || (ejected+1)*100 > x.MaxPercent*total || well == 0 {
		return false
	}
	t.faults.ejections++
	d := min(x.BaseTime*time.Duration(t.faults.ejections), x.MaxTime)
	t.ejected.Store(now.Add(d).UnixNano())
	p.counts.ejections.Add(1)
	p.log.Warn("target is ejected", "upstream", p.Name, "target", t.Address, "why", why, "for", d)
	return true
}

// judge brings targets back whose time is over, and looks at success rates once in an interval. Call it with p.mu held.
func (p *Pool) judge(now time.Time) {
	x, changed := p.Outlier, false
	for _, m := range p.members {
		if until := m.ejected.Load(); until != 0 && now.UnixNano() >= until {
			m.ejected.Store(0)
			m.faults.clear()
			m.faults.since = now
			if p.SlowStart > 0 {
				m.risen.Store(now.UnixNano())
			}
			changed = true
			p.log.Info("target is back", "upstream", p.Name, "target", m.Address)
		} else if f := &m.faults; until == 0 && f.ejections > 0 && now.Sub(f.since) >= x.Interval {
			f.ejections--
			f.since = now
		}
	}
	if p.swept.IsZero() {
		p.swept = now
	}
	if now.Sub(p.swept) >= x.Interval {
		p.swept = now
		if x.Rate != nil && p.compare(now) {
			changed = true
		}
	}
	if changed {
		p.rebuild(now)
	}
}

// compare ejects the targets that succeed much less often than the others. Call it with p.mu held.
func (p *Pool) compare(now time.Time) (changed bool) {
	type rate struct {
		t *Target
		r float64
	}
	var rates []rate
	sum := 0.0
	for _, m := range p.members {
		all, good := m.faults.all.Swap(0), m.faults.good.Swap(0)
		if m.ejected.Load() == 0 && all > 0 && int(all) >= p.Outlier.Rate.Requests {
			r := float64(good) / float64(all)
			rates = append(rates, rate{m.Target, r})
			sum += r
		}
	}
	if len(rates) < max(p.Outlier.Rate.Hosts, 2) {
		return false
	}
	mean, squares := sum/float64(len(rates)), 0.0
	for _, r := range rates {
		squares += (r.r - mean) * (r.r - mean)
	}
	floor := mean - math.Sqrt(squares/float64(len(rates)))*float64(p.Outlier.Rate.Factor)/1000
	for _, r := range rates {
		if r.r < floor && p.out(r.t, fmt.Sprintf("%.1f %% succeed, expected %.1f %% or more", r.r*100, floor*100), now) {
			changed = true
		}
	}
	return changed
}
