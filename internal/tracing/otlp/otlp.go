// Package otlp sends spans to a collector of OpenTelemetry (OTLP over HTTP). It is not of the data plane: traffic hands it
// copies through a queue that is bounded, and what does not fit, or cannot be sent, is dropped and counted.
package otlp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"

	"countersign/internal/certs"
	"countersign/internal/tracing"
)

// Bounds of what waits, and of waiting.
const (
	maxWaiting  = 2048 // requests; each is at most some 4 KiB
	maxBatch    = 256  // requests
	maxDelay    = time.Second
	exchange    = 10 * time.Second // of one attempt to send
	lastAttempt = 30 * time.Second // to begin sending the same again
	flushTime   = 3 * time.Second  // of what is left, at the end
	silence     = time.Minute      // between two lines about one trouble
	maxAnswer   = 64 << 10
	maxText     = 256 // of an error
)

// Config is what an Exporter needs.
type Config struct {
	Log *slog.Logger
	// Panicked is told of panics that were caught.
	Panicked func()
	// Version is the program's; empty for unknown.
	Version string
}

// Exporter takes requests that are traced and sends them. It is made by New and ended by Close; until Use names a collector
// it takes nothing. It is a prometheus.Collector of what became of them.
type Exporter struct {
	c       Config
	delay   time.Duration // maxDelay, but in tests
	current atomic.Pointer[route]

	mu     sync.Mutex // serialises Use and Close
	ended  bool
	routes sync.WaitGroup

	exported, dropped, failed atomic.Uint64 // requests
}

// New makes an Exporter that takes nothing yet.
func New(c Config) *Exporter { return &Exporter{c: c, delay: maxDelay} }

// Use names the collector that spans go to from now on; nil for none. One that is the same as before is left alone; what
// waits for another one is still sent there, for as long as flushTime allows.
func (e *Exporter) Use(s *tracing.Settings) {
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.current.Load()
	if e.ended || old == nil && s == nil || old != nil && s != nil && old.id == s.ID {
		return
	}
	var next *route
	if s != nil {
		next = e.newRoute(s)
	}
	e.current.Store(next)
	if old != nil {
		old.end(context.Background())
	}
}

// Close sends what waits and ends everything, within ctx and flushTime.
func (e *Exporter) Close(ctx context.Context) {
	e.mu.Lock()
	e.ended = true
	if old := e.current.Swap(nil); old != nil {
		old.end(ctx)
	}
	e.mu.Unlock()
	e.routes.Wait()
}

// Take copies what is known of a request, if there is room for it. It never waits.
func (e *Exporter) Take(end *tracing.End) {
	r := e.current.Load()
	if r == nil {
		return
	}
	if len(r.waiting) == cap(r.waiting) { // asked before anything is copied
		e.dropped.Add(1)
		return
	}
	select {
	case r.waiting <- copyOf(end):
	default:
		e.dropped.Add(1)
	}
}

var outcomes = prometheus.NewDesc("countersign_traces_total",
	"Traced requests by what became of their spans: exported, dropped because too many waited, failed because the collector did not take them.", []string{"outcome"}, nil)

// Describe implements prometheus.Collector.
func (e *Exporter) Describe(ch chan<- *prometheus.Desc) { ch <- outcomes }

// Collect implements prometheus.Collector.
func (e *Exporter) Collect(ch chan<- prometheus.Metric) {
	for outcome, n := range map[string]*atomic.Uint64{"exported": &e.exported, "dropped": &e.dropped, "failed": &e.failed} {
		ch <- prometheus.MustNewConstMetric(outcomes, prometheus.CounterValue, float64(n.Load()), outcome)
	}
}

// route is the way to one collector.
type route struct {
	e       *Exporter
	id      string
	waiting chan *span
	stop    chan struct{}
	ctx     context.Context // of sending
	cancel  context.CancelFunc

	client   *http.Client
	exporter *otlptrace.Exporter
	maker    *maker

	troubled time.Time // when trouble was told of last
}

func (e *Exporter) newRoute(s *tracing.Settings) *route {
	r := &route{e: e, id: s.ID, waiting: make(chan *span, maxWaiting), stop: make(chan struct{}), client: newClient(s)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	headers := map[string]string{} // not nil: those of the environment are for other programs
	if s.Authorization != "" {
		headers["Authorization"] = s.Authorization
	}
	r.exporter = otlptrace.NewUnstarted(otlptracehttp.NewClient(otlptracehttp.WithEndpointURL(s.URL), otlptracehttp.WithHTTPClient(r.client),
		otlptracehttp.WithHeaders(headers), otlptracehttp.WithCompression(otlptracehttp.GzipCompression), otlptracehttp.WithEncoding(otlptracehttp.EncodingProtobuf),
		otlptracehttp.WithMaxResponseSize(maxAnswer),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: true, InitialInterval: time.Second, MaxInterval: 10 * time.Second, MaxElapsedTime: lastAttempt})))
	attributes := []attribute.KeyValue{attribute.String("service.name", "countersign")}
	if e.c.Version != "" {
		attributes = append(attributes, attribute.String("service.version", e.c.Version))
	}
	if name, err := os.Hostname(); err == nil {
		attributes = append(attributes, attribute.String("host.name", clean(name)), attribute.String("service.instance.id", clean(name)+":"+strconv.Itoa(os.Getpid())))
	}
	r.maker = newMaker(resource.NewSchemaless(attributes...))
	e.routes.Add(1)
	go r.run()
	return r
}

// newClient makes the client of one collector. There are no proxies, cookies or redirects; who may not be talked to is not.
func newClient(s *tracing.Settings) *http.Client {
	t := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: exchange}).DialContext,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: exchange, ResponseHeaderTimeout: exchange, IdleConnTimeout: time.Minute, MaxIdleConns: 1, MaxConnsPerHost: 1,
		DisableCompression: true, MaxResponseHeaderBytes: maxAnswer,
	}
	if w := s.TLS; w != nil {
		// As with targets: trust verifies, with our own rules, and crypto/tls is told to leave it to VerifyConnection.
		t.TLSClientConfig.ServerName, t.TLSClientConfig.InsecureSkipVerify = w.ServerName, true
		t.TLSClientConfig.VerifyConnection = func(cs tls.ConnectionState) error {
			if v := w.Store.VerifyServer(cs.PeerCertificates, w.ServerName, time.Now()); !v.Accepted {
				return fmt.Errorf("the collector's certificate is refused: %s: expected %s, found %s", v.Reason, v.Expected, v.Found)
			}
			return nil
		}
		t.TLSClientConfig.GetClientCertificate = func(req *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert, _ := certs.ClientFor(req, w.Certificates, time.Now()); cert != nil {
				return cert, nil
			}
			return new(tls.Certificate), nil
		}
	}
	return &http.Client{Transport: t, Timeout: exchange, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// end has the route send what waits, and stops it when ctx ends, or after flushTime.
func (r *route) end(ctx context.Context) {
	close(r.stop)
	ctx, done := context.WithTimeout(ctx, flushTime)
	r.e.routes.Add(1)
	go func() {
		defer r.e.routes.Done()
		defer r.e.guard()
		defer done()
		select {
		case <-ctx.Done():
		case <-r.ctx.Done():
		}
		r.cancel()
	}()
}

// run sends what comes until the route ends.
func (r *route) run() {
	defer r.e.routes.Done()
	defer r.e.guard()
	defer r.client.CloseIdleConnections()
	defer r.cancel()
	batch := make([]*span, 0, maxBatch)
	for {
		stopped := false
		select {
		case s := <-r.waiting:
			batch = append(batch, s)
			stopped = r.gather(&batch)
		case <-r.stop:
			stopped = true
		}
		for stopped && len(batch) < maxBatch && len(r.waiting) > 0 {
			batch = append(batch, <-r.waiting)
		}
		r.send(batch)
		left := len(batch) == maxBatch && len(r.waiting) > 0
		clear(batch)
		batch = batch[:0]
		if stopped && !left {
			return
		}
	}
}

// gather waits for more to send with the first, and reports whether the route has ended.
func (r *route) gather(batch *[]*span) (stopped bool) {
	late := time.NewTimer(r.e.delay)
	defer late.Stop()
	for len(*batch) < maxBatch {
		select {
		case s := <-r.waiting:
			*batch = append(*batch, s)
		case <-late.C:
			return false
		case <-r.stop:
			return true
		}
	}
	return false
}

// send makes spans of a batch and sends them.
func (r *route) send(batch []*span) {
	if len(batch) == 0 {
		return
	}
	n := uint64(len(batch))
	err := r.attempt(batch)
	if err == nil {
		r.e.exported.Add(n)
		return
	}
	failed := r.e.failed.Add(n)
	if now := time.Now(); now.Sub(r.troubled) >= silence {
		r.troubled = now
		r.e.c.Log.Warn("spans cannot be sent; they are dropped and counted, and requests go on", "failed", failed, "error", clean(err.Error()),
			"next", "check that the collector of tracing.otlp is up and takes OTLP over HTTP")
	}
}

// guard keeps a panic from being the end of the program.
func (e *Exporter) guard() {
	if v := recover(); v != nil {
		e.c.Panicked()
		e.c.Log.Error("panic in the way of spans", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
}

// attempt is send until it is over. A panic in it is counted and is an error (F16).
func (r *route) attempt(batch []*span) (err error) {
	defer func() {
		if v := recover(); v != nil {
			r.e.c.Panicked()
			r.e.c.Log.Error("panic while sending spans", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			err = errors.New("a bug of this program")
		}
	}()
	if r.ctx.Err() != nil {
		return r.ctx.Err()
	}
	return r.exporter.ExportSpans(r.ctx, r.maker.spans(batch))
}

// clean makes text of others fit for a line: printable, and not long.
func clean(text string) string {
	cut := text[:min(len(text), maxText)]
	quoted := strconv.QuoteToASCII(cut)
	if quoted = quoted[1 : len(quoted)-1]; len(cut) < len(text) {
		quoted += "..."
	}
	return quoted
}

var _ sdk.IDGenerator = (*maker)(nil)
