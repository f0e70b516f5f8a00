package record

import (
	"io"
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
)

// Book is where records go: a log and a set of metrics. Its methods may be called from any goroutine.
type Book struct {
	Registry *prometheus.Registry

	which atomic.Uint32
	out   io.Writer

	mu      sync.Mutex
	pending []byte // lines not yet written
	spare   []byte
	wake    chan struct{}
	done    chan struct{}
	closed  bool

	dropped     prometheus.Counter
	handshakes  *prometheus.CounterVec
	requests    *prometheus.CounterVec
	durations   *prometheus.HistogramVec
	connections *prometheus.GaugeVec
	ends        *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	panics      prometheus.Counter
}

// maxPending bounds the lines that wait for a slow sink.
const maxPending = 4 << 20

// NewBook makes a book whose log lines go to out, written by one goroutine that ends with Close.
func NewBook(out io.Writer) *Book {
	b := &Book{
		Registry: prometheus.NewRegistry(),
		out:      out,
		pending:  make([]byte, 0, 64<<10), spare: make([]byte, 0, 64<<10),
		wake: make(chan struct{}, 1), done: make(chan struct{}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "countersign_log_dropped_total",
			Help: "Log lines dropped because the sink was too slow."}),
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
	b.Registry.MustRegister(b.dropped, b.handshakes, b.requests, b.durations, b.connections, b.ends, b.bytes, b.panics)
	go b.write()
	return b
}

// Log sets which requests get a line.
func (b *Book) Log(w Which) { b.which.Store(uint32(w)) }

// Panicked counts a caught panic.
func (b *Book) Panicked() { b.panics.Inc() }

// line adds what add appends to the pending lines, or drops it.
func (b *Book) line(add func([]byte) []byte) {
	first, kept := b.keep(add)
	switch {
	case !kept:
		b.dropped.Inc()
	case first:
		b.signal()
	}
}

func (b *Book) keep(add func([]byte) []byte) (first, kept bool) {
	b.mu.Lock()
	defer b.mu.Unlock() // also when add panics: others must be able to write on
	if len(b.pending) > maxPending || b.closed {
		return false, false
	}
	first = len(b.pending) == 0
	b.pending = add(b.pending)
	return first, true
}

func (b *Book) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// write is the goroutine that empties the pending lines.
func (b *Book) write() {
	defer close(b.done)
	for range b.wake {
		time.Sleep(2 * time.Millisecond) // lines of one moment leave in one write
		b.mu.Lock()
		lines, closed := b.pending, b.closed
		b.pending, b.spare = b.spare[:0], nil
		b.mu.Unlock()
		if len(lines) > 0 {
			_, _ = b.out.Write(lines) // a sink that fails is the operator's to see; traffic goes on
		}
		b.mu.Lock()
		if cap(lines) > 1<<20 {
			lines = make([]byte, 0, 64<<10) // give back what a burst needed
		}
		b.spare = lines
		more := len(b.pending) > 0
		b.mu.Unlock()
		if more {
			b.signal()
		} else if closed {
			return
		}
	}
}

// Close writes what is pending, waiting at most a second for the sink, and ends the writer.
func (b *Book) Close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.signal()
	select {
	case <-b.done:
	case <-time.After(time.Second):
	}
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
}

// Listener returns the share of a listener by name. Labels come from configuration only, so their number is bounded.
func (b *Book) Listener(name string) *Listener {
	l := &Listener{book: b, name: name, duration: b.durations.WithLabelValues(name), open: b.connections.WithLabelValues(name),
		in: b.bytes.WithLabelValues(name, "in"), out: b.bytes.WithLabelValues(name, "out")}
	for _, r := range reason.All() {
		l.handshakes[r] = b.handshakes.WithLabelValues(name, r.String())
		l.requests[r] = b.requests.WithLabelValues(name, r.String())
	}
	l.handshakes[reason.Unset] = l.handshakes[reason.Internal]
	l.requests[reason.Unset] = l.requests[reason.Internal]
	return l
}

// Opened and Closed count connections; Closed takes the bytes that passed.
func (l *Listener) Opened() { l.open.Inc() }

// Closed counts the end of a connection and the bytes it moved.
func (l *Listener) Closed(in, out int64) {
	l.open.Dec()
	l.in.Add(float64(in))
	l.out.Add(float64(out))
}

// Ended counts a connection that ended between requests.
func (l *Listener) Ended(why reason.Reason) {
	l.book.ends.WithLabelValues(l.name, why.String()).Inc()
}

// Handshake records the end of a handshake. Accepted ones are logged too unless log.requests is none or refused.
func (l *Listener) Handshake(h *Handshake) {
	if h.Kind == Tunnel {
		l.requests[h.Reason].Inc()
		l.duration.Observe(h.Duration.Seconds())
	} else {
		l.handshakes[h.Reason].Inc()
	}
	if h.Reason.Good() && Which(l.book.which.Load()) != All {
		return
	}
	h.Listener = l.name
	now := time.Now()
	l.book.line(func(b []byte) []byte { return h.append(b, now) })
}

// Request records the end of a request. ref and fragment are the connection's.
func (l *Listener) Request(r *Request, ref string, fragment []byte) {
	now := time.Now()
	l.requests[r.Reason].Inc()
	l.duration.Observe(now.Sub(r.Start).Seconds())
	switch Which(l.book.which.Load()) {
	case None:
		return
	case Refused:
		if r.Reason.Good() {
			return
		}
	}
	l.book.line(func(b []byte) []byte { return r.append(b, now, ref, fragment) })
}
