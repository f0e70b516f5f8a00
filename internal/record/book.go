package record

import (
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/internal/reason"
)

// Which says which requests get a log line. Refused handshakes always get one.
type Which uint8

// The choices of log.requests.
const (
	All Which = iota
	Refused
	None
	Errors // Refused, and every status from 400 on
)

// Book is where records go: a log and a set of metrics. Its methods may be called from any goroutine.
type Book struct {
	Registry *prometheus.Registry

	which   atomic.Uint32
	outputs atomic.Pointer[[]*output]
	more    atomic.Bool // some output shows what KeepMore copies
	tell    atomic.Pointer[func(Trouble)]
	sink    atomic.Pointer[Sink]

	perReason atomic.Int64 // lines per second about bad ends for one reason
	floods    [reason.Count]flood

	dropped     *prometheus.CounterVec
	failures    *prometheus.CounterVec
	suppressed  *prometheus.CounterVec
	handshakes  *prometheus.CounterVec
	requests    *prometheus.CounterVec
	durations   *prometheus.HistogramVec
	connections *prometheus.GaugeVec
	ends        *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	panics      prometheus.Counter
	shadows     *prometheus.CounterVec
	lenient     *prometheus.CounterVec
	desync      *prometheus.CounterVec
	traffic     traffic

	listenersMu sync.Mutex
	listeners   map[string]*Listener

	issuersMu sync.Mutex
	issuers   map[string]bool // that have a row in lenient
}

// maxIssuers bounds the rows of lenient: issuers come from certificates.
const maxIssuers = 200

// NewBook makes a book whose log lines are JSON and go to out until a Plan says otherwise, written by one goroutine for
// each output that ends with Close.
func NewBook(out io.Writer) *Book {
	b := &Book{
		Registry: prometheus.NewRegistry(),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "countersign_log_dropped_total",
			Help: "Log lines dropped because their output was too slow or failed."}, []string{"output"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "countersign_log_errors_total",
			Help: "Failed attempts to write to a log output; each is repeated."}, []string{"output"}),
		suppressed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "countersign_log_suppressed_total",
			Help: "Log lines about one reason beyond log.per_reason in a second, by reason."}, []string{"reason"}),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "countersign_handshakes_total",
			Help: "Ended handshakes by listener and reason; reason completed is an accepted one."}, []string{"listener", "reason"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "countersign_requests_total",
			Help: "Ended requests, and connections without requests, by listener and reason."}, []string{"listener", "reason"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "countersign_request_duration_seconds",
			Help:    "Time from the first byte of a request to the end of its response.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}}, []string{"listener"}),
		connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "countersign_connections",
			Help: "Open client connections."}, []string{"listener"}),
		ends: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "countersign_connection_ends_total",
			Help: "Connections that ended between requests, by listener and reason."}, []string{"listener", "reason"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "countersign_bytes_total",
			Help: "Bytes on the wire by listener and direction (in: from clients)."}, []string{"listener", "direction"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{Name: "countersign_panics_total",
			Help: "Panics caught; each is a bug, and ended one connection."}),
	}
	b.shadows = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "countersign_shadow_refusals_total",
		Help: "Handshakes and requests that were let through and that a shadow setting would have refused, by listener and reason."}, []string{"listener", "reason"})
	b.lenient = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "countersign_lenient_acceptances_total",
		Help: "Clients let in only because accept.eku is lenient, by trust store, issuer of the client certificate and what it took. Issuers beyond the first 200 count as other."},
		[]string{"trust_store", "issuer", "lenient"})
	b.desync = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "countersign_desync_requests_total",
		Help: "Requests that deviate from RFC 9112, by listener, classification and reason, passed on or not."}, []string{"listener", "classification", "reason"})
	b.issuers, b.listeners = make(map[string]bool), make(map[string]*Listener)
	b.traffic.init(b.Registry)
	b.Registry.MustRegister(queues{b}, b.shadows, b.lenient, b.desync, b.dropped, b.failures, b.suppressed, b.handshakes, b.requests, b.durations, b.connections, b.ends, b.bytes, b.panics)
	b.perReason.Store(defaultPerReason)
	b.outputs.Store(&[]*output{b.newOutput(Settings{Name: "stdout"}, stream{out})})
	return b
}

// Log sets which requests get a line in outputs that do not say so themselves.
func (b *Book) Log(w Which) { b.which.Store(uint32(w)) }

// settle notes what the outputs want.
func (b *Book) settle() {
	more := false
	for _, o := range *b.outputs.Load() {
		more = more || o.Format != JSON && o.Format != ALBConnection
	}
	b.more.Store(more)
}

// Panicked counts a caught panic.
func (b *Book) Panicked() { b.panics.Inc() }

// guarded calls f. A panic in it is counted and goes no further (F16).
func (b *Book) guarded(f func()) {
	defer func() {
		if recover() != nil {
			b.Panicked()
		}
	}()
	f()
}

// Close writes what is pending, waiting at most a second for each output, and ends the writers.
func (b *Book) Close() {
	var all sync.WaitGroup
	for _, o := range *b.outputs.Load() {
		all.Go(o.stop)
	}
	all.Wait()
}

// defaultPerReason is far above what a person reads, and keeps a flood of refusals from filling the disk.
const defaultPerReason = 1000

// flood counts the lines about one reason in one second.
type flood struct {
	second     atomic.Int64 // Unix time
	lines      atomic.Int64
	suppressed atomic.Int64 // not yet told of
}

// admit reports whether a line about why may be written. Ends that are nobody's fault always may. Of others there is a
// bound for each second; what is beyond it is counted, and told in one line.
func (b *Book) admit(why reason.Reason, now time.Time) bool {
	if why.Good() {
		return true
	}
	f, second := &b.floods[min(int(why), reason.Count-1)], now.Unix()
	if before := f.second.Load(); before != second && f.second.CompareAndSwap(before, second) {
		f.lines.Store(0)
	}
	if f.lines.Add(1) <= b.perReason.Load() {
		return true
	}
	if f.suppressed.Add(1) == 1 {
		time.AfterFunc(time.Second, func() { b.guarded(func() { b.subside(why) }) })
	}
	return false
}

// subside tells how many lines about why were not written.
func (b *Book) subside(why reason.Reason) {
	n, now := b.floods[min(int(why), reason.Count-1)].suppressed.Swap(0), time.Now()
	b.suppressed.WithLabelValues(why.String()).Add(float64(n))
	for _, o := range *b.outputs.Load() {
		b.guarded(func() { // one output's trouble is not the others'
			if o.Format == JSON {
				o.line(func(b []byte) []byte { return o.summary(b, now, why, n) })
			}
		})
	}
}

// summary appends the line that stands for n lines about why.
func (o *output) summary(b []byte, now time.Time, why reason.Reason, n int64) []byte {
	if o.Place == ToSyslog {
		b = o.Syslog.header(b, now, severityWarning, "suppressed")
	}
	b = append(b, `{"time":"`...)
	b = now.UTC().AppendFormat(b, albTime)
	b = append(b, `","kind":"suppressed"`...)
	b = number(b, "lines", n)
	b = text(b, "reason", why.String())
	return append(b, '}', '\n')
}

// Listener is one listener's share of the book, with its metrics resolved.
type Listener struct {
	book       *Book
	name       string
	handshakes [reason.Count]prometheus.Counter
	requests   [reason.Count]prometheus.Counter
	duration   prometheus.Observer
	open       prometheus.Gauge
	in, out    prometheus.Counter
	ends       byReason
	shadows    byReason
	responses  byClass
	handshake  prometheus.Observer
	resumed    prometheus.Counter

	mu   sync.Mutex
	gone bool // from the configuration: it has no series any more, and makes none
}

// Listener returns the share of a listener by name. Labels come from configuration only, and Listeners takes away those
// of an earlier one, so their number is bounded.
func (b *Book) Listener(name string) *Listener {
	b.listenersMu.Lock()
	defer b.listenersMu.Unlock()
	if l := b.listeners[name]; l != nil {
		return l
	}
	l := &Listener{book: b, name: name, duration: b.durations.WithLabelValues(name), open: b.connections.WithLabelValues(name),
		in: b.bytes.WithLabelValues(name, "in"), out: b.bytes.WithLabelValues(name, "out"),
		responses: newByClass(b.traffic.responses, name), handshake: b.traffic.handshakeTimes.WithLabelValues(name),
		resumed: b.traffic.resumed.WithLabelValues(name)}
	l.ends.vec, l.ends.of = b.ends, l
	l.shadows.vec, l.shadows.of = b.shadows, l
	for _, r := range reason.All() {
		l.handshakes[r] = b.handshakes.WithLabelValues(name, r.String())
		l.requests[r] = b.requests.WithLabelValues(name, r.String())
	}
	l.handshakes[reason.Unset] = l.handshakes[reason.Internal]
	l.requests[reason.Unset] = l.requests[reason.Internal]
	b.listeners[name] = l
	return l
}

// Listeners says which listeners there are, by their names in the configuration. Series of others end; what their last
// connections do is in the log alone.
func (b *Book) Listeners(names []string) {
	b.listenersMu.Lock()
	defer b.listenersMu.Unlock()
	for name, l := range b.listeners {
		if !slices.Contains(names, name) {
			l.end()
			delete(b.listeners, name)
		}
	}
}

// end takes away the series of a listener.
func (l *Listener) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone = true
	b, t := l.book, &l.book.traffic
	for _, v := range []interface{ DeletePartialMatch(prometheus.Labels) int }{b.handshakes, b.requests, b.durations, b.connections, b.ends, b.bytes,
		b.shadows, b.desync, t.handshakeTimes, t.resumed, t.responses} {
		v.DeletePartialMatch(prometheus.Labels{"listener": l.name})
	}
}

// counter resolves a counter of the listener by its further labels. That of one that is gone counts for nobody.
func (l *Listener) counter(v *prometheus.CounterVec, labels ...string) prometheus.Counter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return prometheus.NewCounter(prometheus.CounterOpts{})
	}
	return v.WithLabelValues(append([]string{l.name}, labels...)...)
}

// Opened and Closed count connections; Closed takes the bytes that passed.
func (l *Listener) Opened() { l.open.Inc() }

// Closed counts the end of a connection and the bytes it moved.
func (l *Listener) Closed(in, out int64) {
	l.open.Dec()
	l.in.Add(float64(in))
	l.out.Add(float64(out))
}

// issuer returns the label for an issuer's name.
func (b *Book) issuer(name string) string {
	name = strings.ToValidUTF8(name[:min(len(name), maxText)], "?")
	b.issuersMu.Lock()
	defer b.issuersMu.Unlock()
	if !b.issuers[name] {
		if len(b.issuers) >= maxIssuers {
			return "other"
		}
		b.issuers[name] = true
	}
	return name
}

// Ended counts a connection that ended between requests.
func (l *Listener) Ended(why reason.Reason) {
	l.ends.inc(why)
}

// Handshake records the end of a handshake. Accepted ones are logged too unless log.requests is none or refused.
func (l *Listener) Handshake(h *Handshake) {
	switch h.Kind {
	case Tunnel:
		l.requests[h.Reason].Inc()
		l.duration.Observe(h.Duration.Seconds())
	case Begun:
		l.handshakes[h.Reason].Inc()
		if h.Reason == reason.Completed {
			l.handshake.Observe(h.Duration.Seconds())
			if h.Resumed {
				l.resumed.Inc()
			}
		}
		if h.Shadow != reason.Unset {
			l.shadows.inc(h.Shadow)
		}
		if who, ok := h.Identity.Identity(); ok && h.Lenient != "" {
			l.book.lenient.WithLabelValues(h.Store, l.book.issuer(who.Issuer()), h.Lenient).Inc()
		}
	}
	h.Listener = l.name
	now := time.Now()
	l.book.feedHandshake(h, now)
	if !l.book.admit(h.Reason, now) {
		return
	}
	for _, o := range *l.book.outputs.Load() {
		if o.NoConnections || o.Format == ALBConnection && h.Kind != Begun || !o.Format.Connections() || h.Reason.Good() && o.wants() != All {
			continue
		}
		o.line(func(b []byte) []byte {
			if o.Place == ToSyslog {
				b = o.Syslog.header(b, now, severity(h.Reason), "connection")
			}
			if o.Format == ALBConnection {
				return h.appendALB(b, now)
			}
			return h.append(b, now)
		})
	}
}

// wants returns which requests the output has lines for.
func (o *output) wants() Which {
	if o.Own {
		return o.Which
	}
	return Which(o.book.which.Load())
}

// takes reports whether the output has a line for r.
func (o *output) takes(r *Request) bool {
	if o.NoRequests || !o.Format.Requests() {
		return false
	}
	switch o.wants() {
	case None:
		return false
	case Refused:
		return !r.Reason.Good()
	case Errors:
		return !r.Reason.Good() || r.Status >= 400
	}
	return true
}

// More reports whether some output shows what Request.KeepMore copies.
func (l *Listener) More() bool { return l.book.more.Load() }

// Request records the end of a request. ref and fragment are the connection's.
func (l *Listener) Request(r *Request, ref string, fragment []byte) {
	now := time.Now()
	l.requests[r.Reason].Inc()
	l.duration.Observe(now.Sub(r.Start).Seconds())
	l.responses.inc(r.Status)
	if r.Upstream != "" {
		l.book.traffic.answered(r)
	}
	if r.Shadow != reason.Unset {
		l.shadows.inc(r.Shadow)
	}
	if r.Classification != "" {
		l.counter(l.book.desync, r.Classification, r.ClassificationReason).Inc()
	}
	l.book.feedRequest(r, ref, fragment, now)
	outputs := *l.book.outputs.Load()
	if len(outputs) == 1 && !outputs[0].takes(r) || !l.book.admit(r.Reason, now) {
		return
	}
	for _, o := range outputs {
		if !o.takes(r) {
			continue
		}
		o.line(func(b []byte) []byte {
			if o.Place == ToSyslog {
				b = o.Syslog.header(b, now, severity(r.Reason), "request")
			}
			switch o.Format {
			case ALBAccess:
				return r.appendALB(b, now, l.name, ref)
			case Combined:
				return r.appendCombined(b)
			}
			return r.append(b, now, ref, fragment)
		})
	}
}
