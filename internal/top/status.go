package top

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"

	"countersign/internal/reason"
)

// Status is what an instance did between two samples. A nil number is not known.
type Status struct {
	Time   time.Time `json:"time"`
	Source string    `json:"source"`
	// Seconds are those between the samples; 0 where there is one only, and then there are no rates.
	Seconds float64  `json:"seconds"`
	Uptime  *float64 `json:"uptime_seconds"`
	// Restarted says that the instance began anew between the samples.
	Restarted   bool        `json:"restarted,omitempty"`
	Handshakes  Count       `json:"handshakes"`
	Refused     Count       `json:"handshakes_refused"`
	Resumed     Count       `json:"handshakes_resumed"`
	Requests    Count       `json:"requests"`
	Failed      Count       `json:"requests_failed"`
	Connections *float64    `json:"connections"`
	Request     Times       `json:"request_seconds"`
	Handshake   Times       `json:"handshake_seconds"`
	Pressure    *float64    `json:"memory_pressure"`
	Reload      *float64    `json:"last_reload_success"`
	Dropped     Count       `json:"log_lines_dropped"`
	Conditions  []Condition `json:"conditions"`
	Reasons     []Reason    `json:"reasons"`
	Listeners   []Listener  `json:"listeners"`
	Upstreams   []Upstream  `json:"upstreams"`
	Targets     []Target    `json:"targets"`
	// Freshest are lines of the journal, newest first; nil where it is not known.
	Freshest []string `json:"freshest"`
}

// Count is how often something happened: per second between the samples, and ever.
type Count struct {
	Rate  *float64 `json:"per_second"`
	Total *float64 `json:"total"`
}

// Times are quantiles, in seconds, estimated from a histogram of what ended between the samples, or ever where there is one
// sample only.
type Times struct {
	P50 *float64 `json:"p50"`
	P99 *float64 `json:"p99"`
}

// Condition is something that needs the operator.
type Condition struct {
	Code  string  `json:"code"`
	Count float64 `json:"count"`
}

// Reason is one of the ways in which handshakes or requests ended that is not a good one.
type Reason struct {
	Of     string `json:"of"` // handshake or request
	Reason string `json:"reason"`
	Count
}

// Listener is what one listener did.
type Listener struct {
	Name        string   `json:"name"`
	Connections *float64 `json:"connections"`
	Handshakes  Count    `json:"handshakes"`
	Refused     Count    `json:"handshakes_refused"`
	Requests    Count    `json:"requests"`
	Failed      Count    `json:"requests_failed"`
	Times       Times    `json:"request_seconds"`
}

// Upstream is what the targets of one upstream did together.
type Upstream struct {
	Name     string   `json:"name"`
	Requests Count    `json:"requests"`
	Errors   Count    `json:"server_errors"`
	Pending  *float64 `json:"pending"`
	FailOpen *float64 `json:"fail_open"`
	Times    Times    `json:"response_seconds"`
}

// Target is the state of one target.
type Target struct {
	Upstream string   `json:"upstream"`
	Target   string   `json:"target"`
	State    string   `json:"state"` // healthy, unhealthy, ejected or empty for unknown
	Busy     *float64 `json:"exchanges"`
	Open     *float64 `json:"connections"`
	Idle     *float64 `json:"idle_connections"`
}

// Compare tells what an instance did between two samples; before may be nil.
func Compare(source string, before, now *Sample) *Status {
	s := &Status{Time: now.At.UTC(), Source: source, Conditions: []Condition{}, Reasons: []Reason{}, Listeners: []Listener{}, Upstreams: []Upstream{}, Targets: []Target{}}
	d := delta{now: now}
	if before != nil {
		if d.seconds = now.At.Sub(before.At).Seconds(); d.seconds > 0 {
			d.before = before
		}
	}
	start := now.sum("process_start_time_seconds", nil)
	if start != nil {
		s.Uptime = ptr(math.Max(0, float64(now.At.UnixNano())/1e9-*start))
		if d.before != nil {
			if old := before.sum("process_start_time_seconds", nil); old != nil && *old != *start {
				s.Restarted, d.before, d.seconds = true, nil, 0
			}
		}
	}
	s.Seconds = d.seconds
	if d.before == nil {
		s.Seconds = 0
	}
	const handshakes, requests = "countersign_handshakes_total", "countersign_requests_total"
	refused := func(l labels) bool { return bad(l["reason"]) }
	s.Handshakes, s.Refused = d.count(handshakes, nil), d.count(handshakes, refused)
	s.Resumed = d.count("countersign_handshakes_resumed_total", nil)
	s.Requests, s.Failed = d.count(requests, nil), d.count(requests, refused)
	s.Connections = now.sum("countersign_connections", nil)
	s.Request, s.Handshake = d.times("countersign_request_duration_seconds", nil), d.times("countersign_handshake_duration_seconds", nil)
	s.Pressure, s.Reload = now.sum("countersign_memory_pressure", nil), now.sum("countersign_last_reload_success", nil)
	s.Dropped = d.count("countersign_log_dropped_total", nil)
	for _, code := range now.values("countersign_condition", "code") {
		if n := now.sum("countersign_condition", is("code", code)); n != nil && *n > 0 {
			s.Conditions = append(s.Conditions, Condition{code, *n})
		}
	}
	for of, name := range map[string]string{"handshake": handshakes, "request": requests} {
		for _, code := range now.values(name, "reason") {
			if c := d.count(name, is("reason", code)); bad(code) && c.Total != nil && *c.Total > 0 {
				s.Reasons = append(s.Reasons, Reason{of, code, c})
			}
		}
	}
	slices.SortFunc(s.Reasons, func(a, b Reason) int { return cmp.Or(cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Of, b.Of)) })
	for _, name := range now.values("countersign_connections", "listener") {
		this := is("listener", name)
		and := func(l labels) bool { return this(l) && refused(l) }
		s.Listeners = append(s.Listeners, Listener{name, now.sum("countersign_connections", this), d.count(handshakes, this), d.count(handshakes, and),
			d.count(requests, this), d.count(requests, and), d.times("countersign_request_duration_seconds", this)})
	}
	for _, name := range union(now.values("countersign_upstream_pending", "upstream"), now.values("countersign_upstream_responses_total", "upstream")) {
		this := is("upstream", name)
		s.Upstreams = append(s.Upstreams, Upstream{name, d.count("countersign_upstream_responses_total", this),
			d.count("countersign_upstream_responses_total", func(l labels) bool { return this(l) && l["class"] == "5xx" }),
			now.sum("countersign_upstream_pending", this), now.sum("countersign_upstream_fail_open", this), d.times("countersign_upstream_response_duration_seconds", this)})
	}
	const open = "countersign_upstream_connections"
	for _, name := range now.values(open, "upstream") {
		for _, target := range now.valuesOf(open, "target", is("upstream", name)) {
			this := func(l labels) bool { return l["upstream"] == name && l["target"] == target }
			t := Target{Upstream: name, Target: target, Busy: now.sum("countersign_upstream_exchanges", this), Open: now.sum(open, this), Idle: now.sum("countersign_upstream_idle_connections", this)}
			healthy, ejected := now.sum("countersign_upstream_healthy", this), now.sum("countersign_upstream_ejected", this)
			switch {
			case ejected != nil && *ejected > 0:
				t.State = "ejected"
			case healthy != nil && *healthy > 0:
				t.State = "healthy"
			case healthy != nil:
				t.State = "unhealthy"
			}
			s.Targets = append(s.Targets, t)
		}
	}
	return s
}

// bad reports whether a code is one of an end that is not a good one. A code of another version of the program is not known
// to be good.
func bad(code string) bool {
	r, ok := reason.Parse(code)
	return !ok || !r.Good()
}

func ptr(v float64) *float64 { return &v }

// labels are those of one series.
type labels map[string]string

func labelsOf(m *dto.Metric) labels {
	l := make(labels, len(m.Label))
	for _, p := range m.Label {
		l[p.GetName()] = p.GetValue()
	}
	return l
}

func is(name, value string) func(labels) bool {
	return func(l labels) bool { return l[name] == value }
}

// each calls f for the series of a metric that which takes; nil takes all.
func (s *Sample) each(name string, which func(labels) bool, f func(labels, *dto.Metric)) {
	for _, m := range s.families[name].GetMetric() {
		if l := labelsOf(m); which == nil || which(l) {
			f(l, m)
		}
	}
}

// numbers calls f for the values of series. What is not a number is left out.
func (s *Sample) numbers(name string, which func(labels) bool, f func(series string, v float64)) {
	s.each(name, which, func(_ labels, m *dto.Metric) {
		v := math.NaN()
		switch {
		case m.Counter != nil:
			v = m.Counter.GetValue()
		case m.Gauge != nil:
			v = m.Gauge.GetValue()
		case m.Untyped != nil:
			v = m.Untyped.GetValue()
		}
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			f(seriesOf(m), v)
		}
	})
}

// seriesOf names a series of a metric.
func seriesOf(m *dto.Metric) string {
	var b []byte
	for _, p := range m.Label {
		b = strconv.AppendQuote(append(strconv.AppendQuote(b, p.GetName()), '='), p.GetValue())
	}
	return string(b)
}

// sum adds up series; nil where there is none.
func (s *Sample) sum(name string, which func(labels) bool) (total *float64) {
	s.numbers(name, which, func(_ string, v float64) {
		if total == nil {
			total = new(float64)
		}
		*total += v
	})
	return total
}

// values are the values of a label, sorted.
func (s *Sample) values(name, label string) []string { return s.valuesOf(name, label, nil) }

func (s *Sample) valuesOf(name, label string, which func(labels) bool) (list []string) {
	s.each(name, which, func(l labels, _ *dto.Metric) { list = append(list, l[label]) })
	slices.Sort(list)
	return slices.Compact(list)
}

func union(a, b []string) []string {
	list := slices.Concat(a, b)
	slices.Sort(list)
	return slices.Compact(list)
}

// delta is the difference of two samples; before is nil where there is one only.
type delta struct {
	before, now *Sample
	seconds     float64
}

// count compares each series with itself: one that is gone, with its listener, takes its count along.
func (d *delta) count(name string, which func(labels) bool) (c Count) {
	if c.Total = d.now.sum(name, which); c.Total == nil || d.before == nil {
		return c
	}
	old, grown := make(map[string]float64), 0.0
	d.before.numbers(name, which, func(series string, v float64) { old[series] = v })
	d.now.numbers(name, which, func(series string, v float64) {
		if was := old[series]; was <= v { // else it was counted anew
			v -= was
		}
		grown += v
	})
	c.Rate = ptr(grown / d.seconds)
	return c
}

// times estimates quantiles of the histograms that which takes, together. They are as exact as their buckets: within one
// they are taken to be spread evenly, and what is beyond the last counts as its bound.
func (d *delta) times(name string, which func(labels) bool) Times {
	old, now := make(map[bucket]float64), make(map[float64]float64)
	if d.before != nil {
		d.before.buckets(name, which, func(b bucket, n float64) { old[b] = n })
	}
	d.now.buckets(name, which, func(b bucket, n float64) { now[b.bound] += math.Max(0, n-old[b]) })
	bounds := make([]float64, 0, len(now))
	for bound := range now {
		bounds = append(bounds, bound)
	}
	slices.Sort(bounds)
	quantile := func(q float64) *float64 {
		if len(bounds) == 0 || now[bounds[len(bounds)-1]] <= 0 {
			return nil
		}
		rank := q * now[bounds[len(bounds)-1]]
		low, below := 0.0, 0.0
		for _, bound := range bounds {
			n := now[bound]
			if n >= rank {
				if math.IsInf(bound, 1) {
					return ptr(low)
				}
				if n <= below {
					return ptr(bound)
				}
				return ptr(low + (bound-low)*(rank-below)/(n-below))
			}
			low, below = bound, n
		}
		return ptr(low)
	}
	return Times{quantile(0.5), quantile(0.99)}
}

// bucket is one of a histogram, by its upper bound.
type bucket struct {
	series string
	bound  float64
}

// buckets calls f for the cumulative counts of histograms.
func (s *Sample) buckets(name string, which func(labels) bool, f func(bucket, float64)) {
	s.each(name, which, func(_ labels, m *dto.Metric) {
		series := seriesOf(m)
		for _, b := range m.GetHistogram().GetBucket() {
			if bound := b.GetUpperBound(); !math.IsNaN(bound) {
				f(bucket{series, bound}, float64(b.GetCumulativeCount()))
			}
		}
		if h := m.Histogram; h != nil && len(h.Bucket) > 0 && !math.IsInf(h.Bucket[len(h.Bucket)-1].GetUpperBound(), 1) {
			f(bucket{series, math.Inf(1)}, float64(h.GetSampleCount()))
		}
	})
}

// contains is strings.Contains in any case of ASCII letters.
func contains(text, part string) bool {
	return strings.Contains(strings.ToLower(text), strings.ToLower(part))
}
