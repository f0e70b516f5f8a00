package record

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/internal/reason"
)

// traffic are the metrics of what passes, besides those by reason.
type traffic struct {
	handshakeTimes *prometheus.HistogramVec
	resumed        *prometheus.CounterVec
	responses      *prometheus.CounterVec
	answers        *prometheus.CounterVec
	answerTimes    *prometheus.HistogramVec

	upstreams atomic.Pointer[upstreamShares]
}

// shortTimes are the buckets of what should take milliseconds.
var shortTimes = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// init makes the metrics and registers them.
func (t *traffic) init(r *prometheus.Registry) {
	t.handshakeTimes = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "countersign_handshake_duration_seconds",
		Help: "Time that accepted TLS handshakes took, the client's part of it included.", Buckets: shortTimes}, []string{"listener"})
	t.resumed = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "countersign_handshakes_resumed_total",
		Help: "Accepted TLS handshakes that resumed a session; the certificate was verified again all the same."}, []string{"listener"})
	t.responses = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "countersign_responses_total",
		Help: "Ended requests by listener and class of the status that the client got: 1xx to 5xx, or none for no answer."}, []string{"listener", "class"})
	t.answers = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "countersign_upstream_responses_total",
		Help: "Ended requests by upstream and class of the status that its target answered: 1xx to 5xx, or none for no answer."}, []string{"upstream", "class"})
	t.answerTimes = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "countersign_upstream_response_duration_seconds",
		Help: "Time from sending a request to a target to the head of its response.", Buckets: shortTimes}, []string{"upstream"})
	r.MustRegister(t.handshakeTimes, t.resumed, t.responses, t.answers, t.answerTimes)
}

// classes are the labels for classes of status codes, by their first digit. 0 stands for no answer.
var classes = [...]string{"none", "1xx", "2xx", "3xx", "4xx", "5xx"}

// byClass are counters by class of status code.
type byClass [len(classes)]prometheus.Counter

func newByClass(v *prometheus.CounterVec, name string) (c byClass) {
	for i, class := range classes {
		c[i] = v.WithLabelValues(name, class)
	}
	return c
}

func (c *byClass) inc(status int) {
	class := status / 100
	if class < 1 || class >= len(c) {
		class = 0 // what is no status was not sent
	}
	c[class].Inc()
}

// upstreamShare is one upstream's share of the book, with its metrics resolved.
type upstreamShare struct {
	answers byClass
	times   prometheus.Observer
}

// upstreamShares are those of the upstreams of the configuration in force, and of the one before it: requests under way
// end as those of the upstream they began with.
type upstreamShares struct{ now, before map[string]*upstreamShare }

// Upstreams says which upstreams there are, by their names in the configuration. Requests for others have no metrics of
// their own, so that labels come from configuration only. Call it from one goroutine.
func (b *Book) Upstreams(names []string) {
	t, next := &b.traffic, &upstreamShares{now: make(map[string]*upstreamShare, len(names))}
	for _, name := range names {
		next.now[name] = &upstreamShare{newByClass(t.answers, name), t.answerTimes.WithLabelValues(name)}
	}
	old := t.upstreams.Load()
	if old != nil {
		next.before = old.now
	}
	t.upstreams.Store(next)
	if old == nil {
		return
	}
	for name := range old.before {
		if next.share(name) == nil { // else a thousand reloads would leave the names of a thousand configurations
			t.answers.DeletePartialMatch(prometheus.Labels{"upstream": name})
			t.answerTimes.DeleteLabelValues(name)
		}
	}
}

func (s *upstreamShares) share(name string) *upstreamShare {
	if s == nil {
		return nil
	}
	if share := s.now[name]; share != nil {
		return share
	}
	return s.before[name]
}

// answered counts what came back from a target for a request that had an upstream.
func (t *traffic) answered(r *Request) {
	share := t.upstreams.Load().share(r.Upstream)
	if share == nil {
		return
	}
	status := r.TargetStatus
	if r.TargetTime > 0 {
		if status == 0 {
			status = r.Status
		}
		share.times.Observe(max(r.TargetTime-r.SentTime, 0).Seconds())
	}
	share.answers.inc(status)
}

// byReason are the counters of one listener by reason, each resolved when it is first needed: of most reasons there is
// never one.
type byReason struct {
	vec  *prometheus.CounterVec
	of   *Listener
	rows [reason.Count]atomic.Pointer[prometheus.Counter]
}

func (c *byReason) inc(why reason.Reason) {
	row := &c.rows[min(int(why), reason.Count-1)]
	counter := row.Load()
	if counter == nil {
		made := c.of.counter(c.vec, why.String())
		counter = &made
		row.Store(counter)
	}
	(*counter).Inc()
}

// queues collects how much waits for each output when it is asked for.
type queues struct{ book *Book }

var queueDesc = prometheus.NewDesc("countersign_log_queue_bytes", "Bytes of log lines that wait for an output to take them.", []string{"output"}, nil)

func (q queues) Describe(ch chan<- *prometheus.Desc) { ch <- queueDesc }

func (q queues) Collect(ch chan<- prometheus.Metric) {
	seen := make(map[string]bool)
	for _, o := range *q.book.outputs.Load() {
		if seen[o.Name] {
			continue // two outputs of different settings may lead to one place
		}
		seen[o.Name] = true
		o.mu.Lock()
		waiting := len(o.pending)
		o.mu.Unlock()
		ch <- prometheus.MustNewConstMetric(queueDesc, prometheus.GaugeValue, float64(waiting), o.Name)
	}
}
