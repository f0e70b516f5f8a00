package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.opentelemetry.io/otel/sdk/resource"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	wire "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"countersign/internal/identity"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/testpki"
	"countersign/internal/tracing"
	"countersign/internal/trust"
	"countersign/internal/upstream"
)

// receiver is a collector: it takes OTLP over HTTP as anybody's would.
type receiver struct {
	*httptest.Server
	mu      sync.Mutex
	spans   []*wire.Span
	service map[string]string
	header  http.Header
	status  int           // to answer; 0 for 200
	hold    chan struct{} // until closed no request is answered; nil for none
	once    sync.Once
	asked   chan struct{} // has one for each request
}

func receive(t *testing.T, start func(*httptest.Server), change ...func(*receiver)) *receiver {
	r := &receiver{service: map[string]string{}, asked: make(chan struct{}, 1000)}
	for _, f := range change {
		f(r)
	}
	r.Server = httptest.NewUnstartedServer(r)
	r.Config.ErrorLog = log.New(io.Discard, "", 0)
	start(r.Server)
	t.Cleanup(func() {
		r.release()
		r.Close()
	})
	return r
}

// release answers what is held.
func (r *receiver) release() {
	if r.hold != nil {
		r.once.Do(func() { close(r.hold) })
	}
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.asked <- struct{}{}
	if r.hold != nil {
		<-r.hold
	}
	if r.status != 0 {
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(r.status)
		_, _ = io.WriteString(w, "no \x1b[31m"+strings.Repeat("x", 1000))
		return
	}
	body := io.Reader(q.Body)
	if q.Header.Get("Content-Encoding") == "gzip" {
		body, _ = gzip.NewReader(q.Body)
	}
	raw, err := io.ReadAll(body)
	var m collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(raw, &m)
	}
	if err != nil || q.Method != "POST" || q.URL.Path != "/v1/traces" || q.Header.Get("Content-Type") != "application/x-protobuf" {
		http.Error(w, "not OTLP", http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.header = q.Header
	for _, rs := range m.ResourceSpans {
		for _, a := range rs.Resource.Attributes {
			r.service[a.Key] = a.Value.GetStringValue()
		}
		for _, ss := range rs.ScopeSpans {
			r.spans = append(r.spans, ss.Spans...)
		}
	}
}

func (r *receiver) taken() []*wire.Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.spans
}

// wait waits until n spans were received.
func (r *receiver) wait(t *testing.T, n int) []*wire.Span {
	t.Helper()
	until(t, func() bool { return len(r.taken()) >= n })
	return r.taken()
}

func until(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not come about in 20 s")
		}
	}
}

type text struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *text) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *text) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

func newExporter(t *testing.T) (*Exporter, *text) {
	log := &text{}
	e := New(Config{Log: slog.New(slog.NewTextHandler(log, nil)), Panicked: func() { t.Error("a panic was caught") }, Version: "v1.2.3"})
	e.delay = 10 * time.Millisecond
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		e.Close(ctx)
	})
	return e, log
}

// outcome is how many requests became what.
func (e *Exporter) outcome() [3]uint64 {
	return [3]uint64{e.exported.Load(), e.dropped.Load(), e.failed.Load()}
}

// request is a traced request of client to a target, and what is known of it.
func request(client identity.Client) *tracing.End {
	set := &tracing.Settings{Rate: 1, Identity: true}
	start := time.Now().Add(-time.Second)
	s := &tracing.Span{}
	s.Begin(set, nil, false)
	s.Asked, s.Answered = start.Add(100*time.Millisecond), start.Add(900*time.Millisecond)
	r := &record.Request{Start: start, Status: 200, TargetStatus: 200, Reason: reason.Completed, Upstream: "api", Target: "10.1.2.3:9443", BytesIn: 3, BytesOut: 5, Rule: 2,
		SentTime: 200 * time.Millisecond, TargetTime: 800 * time.Millisecond}
	r.Keep([]byte("GET"), []byte("api.test:8443"), []byte("/a"))
	return &tracing.End{Span: s, Request: r, Client: client, Listener: "public", Ref: "0123456789abcdef", Peer: "192.0.2.7:1234", TLS: "TLS 1.3", SNI: "api.test"}
}

func settings(r *receiver) *tracing.Settings {
	return &tracing.Settings{ID: r.URL, URL: r.URL + "/v1/traces"}
}

func values(s *wire.Span) map[string]string {
	m := map[string]string{}
	for _, a := range s.Attributes {
		if m[a.Key] = a.Value.GetStringValue(); m[a.Key] == "" {
			m[a.Key] = a.Value.String()
		}
	}
	return m
}

func TestWhatIsNotSent(t *testing.T) {
	t.Run("while no collector is named", func(t *testing.T) {
		e, _ := newExporter(t)
		e.Use(nil)
		e.Take(request(identity.Client{}))
		if e.outcome() != [3]uint64{} {
			t.Error(e.outcome())
		}
	})
	t.Run("what there is no room for, and nobody waits", func(t *testing.T) {
		r := receive(t, (*httptest.Server).Start, func(r *receiver) { r.hold = make(chan struct{}) })
		e, _ := newExporter(t)
		e.delay = time.Minute // nothing is sent before the batch is full
		e.Use(settings(r))
		end := request(identity.Client{})
		for range maxBatch { // it is sent, and the answer does not come
			e.Take(end)
		}
		<-r.asked
		const more = 500
		for range maxWaiting + more {
			e.Take(end)
		}
		if got := e.outcome(); got != [3]uint64{0, more, 0} {
			t.Errorf("exported, dropped, failed: %v", got)
		}
		if n := testing.AllocsPerRun(100, func() { e.Take(end) }); n != 0 {
			t.Errorf("%v allocations for what is dropped", n)
		}
		r.release()
		until(t, func() bool { return e.exported.Load() == maxBatch+maxWaiting })
		if got := e.dropped.Load(); got != more+101 {
			t.Errorf("%d were dropped", got)
		}
		const want = `
# HELP countersign_traces_total Traced requests by what became of their spans: exported, dropped because too many waited, failed because the collector did not take them.
# TYPE countersign_traces_total counter
countersign_traces_total{outcome="dropped"} 601
countersign_traces_total{outcome="exported"} 2304
countersign_traces_total{outcome="failed"} 0
`
		if err := testutil.CollectAndCompare(e, strings.NewReader(want)); err != nil {
			t.Error(err)
		}
	})
	for name, status := range map[string]int{"a collector that refuses": 403, "a collector that sends elsewhere": 307} {
		t.Run(name, func(t *testing.T) {
			r := receive(t, (*httptest.Server).Start, func(r *receiver) { r.status = status })
			e, log := newExporter(t)
			e.Use(settings(r))
			for range 3 {
				failed := e.failed.Load()
				e.Take(request(identity.Client{}))
				until(t, func() bool { return e.failed.Load() > failed })
			}
			if got := e.outcome(); got != [3]uint64{0, 0, 3} || len(r.asked) != 3 {
				t.Errorf("exported, dropped, failed: %v; %d requests", got, len(r.asked))
			}
			if said := log.String(); strings.Count(said, "\n") != 1 || strings.Contains(said, "\x1b") || len(said) > 1000 || !strings.Contains(said, "spans cannot be sent") {
				t.Errorf("%d bytes: %q", len(said), said)
			}
		})
	}
	t.Run("a collector that is not there keeps nobody waiting at the end", func(t *testing.T) {
		e, _ := newExporter(t)
		e.Use(&tracing.Settings{ID: "x", URL: "http://127.0.0.1:1/v1/traces"})
		e.Take(request(identity.Client{}))
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		e.Close(ctx)
		if got := e.outcome(); got[0] != 0 || got[2] != 1 {
			t.Error(got)
		}
		e.Take(request(identity.Client{}))
		e.Use(&tracing.Settings{ID: "y", URL: "http://127.0.0.1:1/v1/traces"})
		if e.current.Load() != nil {
			t.Error("something was begun after the end")
		}
	})
	t.Run("F16/what makes it panic, and it goes on", func(t *testing.T) {
		r := receive(t, (*httptest.Server).Start)
		e, log := newExporter(t)
		caught := make(chan struct{}, 1)
		e.c.Panicked = func() { caught <- struct{}{} }
		e.Use(settings(r))
		e.current.Load().waiting <- nil
		<-caught
		until(t, func() bool { return e.failed.Load() == 1 })
		e.Take(request(identity.Client{}))
		r.wait(t, 2)
		if !strings.Contains(log.String(), "panic while sending spans") {
			t.Error(log)
		}
	})
	t.Run("one that does not answer is waited for as long as said", func(t *testing.T) {
		r := receive(t, (*httptest.Server).Start, func(r *receiver) { r.hold = make(chan struct{}) })
		e, _ := newExporter(t)
		e.Use(settings(r))
		e.Take(request(identity.Client{}))
		<-r.asked
		done := make(chan struct{})
		go func() {
			e.Close(context.Background())
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(flushTime + 20*time.Second):
			t.Fatal("it is waited for without end")
		}
	})
}

func TestSpans(t *testing.T) {
	pki := testpki.New(t)
	alice := pki.Client("alice")
	id, err := identity.FromChain([]*x509.Certificate{alice.Cert, pki.Cert})
	if err != nil {
		t.Fatal(err)
	}
	r := receive(t, (*httptest.Server).Start)
	e, _ := newExporter(t)
	set := settings(r)
	set.Authorization = "Bearer secret"
	e.Use(set)
	sent := func(t *testing.T, end *tracing.End, n int) []*wire.Span {
		before := len(r.taken())
		e.Take(end)
		return r.wait(t, before+n)[before:]
	}
	t.Run("a request and its exchange", func(t *testing.T) {
		end := request(identity.Present(id))
		spans := sent(t, end, 2)
		client, server := spans[0], spans[1]
		if server.Kind != wire.Span_SPAN_KIND_SERVER || client.Kind != wire.Span_SPAN_KIND_CLIENT || server.Name != "GET" ||
			!bytes.Equal(server.TraceId, end.Span.Trace[:]) || !bytes.Equal(server.SpanId, end.Span.ID[:]) || len(server.ParentSpanId) != 0 ||
			!bytes.Equal(client.TraceId, end.Span.Trace[:]) || !bytes.Equal(client.SpanId, end.Span.Target[:]) || !bytes.Equal(client.ParentSpanId, end.Span.ID[:]) {
			t.Errorf("%v\n%v", server, client)
		}
		start := end.Request.Start.UnixNano()
		if server.StartTimeUnixNano != uint64(start) || client.StartTimeUnixNano != uint64(start+1e8) || client.EndTimeUnixNano != uint64(start+9e8) ||
			len(client.Events) != 2 || client.Events[0].TimeUnixNano != uint64(start+2e8) || client.Events[1].TimeUnixNano != uint64(start+8e8) {
			t.Errorf("times: %v\n%v", server, client)
		}
		sum := id.Fingerprint()
		got := values(server)
		for key, want := range map[string]string{"url.path": "/a", "url.scheme": "https", "server.address": "api.test", "client.address": "192.0.2.7", "network.peer.address": "192.0.2.7",
			"tls.client.subject": id.Subject(), "tls.client.issuer": id.Issuer(), "countersign.client.serial": id.SerialHex(), "tls.client.hash.sha256": strings.ToUpper(hex.EncodeToString(sum[:])),
			"tls.protocol.version": "1.3", "countersign.reason": "completed", "countersign.listener": "public", "countersign.ref": "0123456789abcdef", "countersign.upstream": "api",
			"http.request.method": "GET", "network.protocol.version": "1.1", "error.type": ""} {
			if got[key] != want {
				t.Errorf("%s: %q, expected %q", key, got[key], want)
			}
		}
		if got := values(client); got["server.address"] != "10.1.2.3" || server.Status.GetCode() != wire.Status_STATUS_CODE_UNSET || client.Status.GetCode() != wire.Status_STATUS_CODE_UNSET {
			t.Errorf("%v %v", got, client.Status)
		}
		if r.service["service.name"] != "countersign" || r.service["service.version"] != "v1.2.3" || r.header.Get("Authorization") != "Bearer secret" {
			t.Errorf("%v %v", r.service, r.header)
		}
	})
	t.Run("without identity", func(t *testing.T) {
		end := request(identity.Present(id))
		end.Span.Identity = false
		for _, s := range sent(t, end, 2) {
			if text := s.String(); strings.Contains(text, "alice") || strings.Contains(text, id.SerialHex()) || strings.Contains(text, "tls.client.hash") {
				t.Errorf("the client is named: %s", text)
			}
		}
	})
	t.Run("a parent", func(t *testing.T) {
		end := request(identity.Client{})
		end.Span.Continued, end.Span.Parent, end.Span.State = true, [8]byte{1, 2}, []byte("a=1,b=2")
		spans := sent(t, end, 2)
		if server := spans[1]; !bytes.Equal(server.ParentSpanId, end.Span.Parent[:]) || server.TraceState != "a=1,b=2" {
			t.Errorf("%v", server)
		}
	})
	t.Run("refused before a target was asked", func(t *testing.T) {
		end := request(identity.Client{})
		end.Span.Asked, end.Span.Answered = time.Time{}, time.Time{}
		end.Request.Status, end.Request.Reason, end.Request.Upstream, end.Request.TargetStatus = 404, reason.RouteNotFound, "", 0
		if s := sent(t, end, 1)[0]; s.Kind != wire.Span_SPAN_KIND_SERVER || values(s)["error.type"] != "route_not_found" || s.Status.GetCode() != wire.Status_STATUS_CODE_UNSET {
			t.Errorf("%v", s)
		}
	})
	t.Run("a target that fails", func(t *testing.T) {
		end := request(identity.Client{})
		end.Request.Status, end.Request.Reason, end.Request.TargetStatus, end.Request.TargetTime = 502, reason.UpstreamClosed, 0, 0
		spans := sent(t, end, 2)
		if spans[0].Status.GetCode() != wire.Status_STATUS_CODE_ERROR || spans[1].Status.GetCode() != wire.Status_STATUS_CODE_ERROR || values(spans[0])["error.type"] != "upstream_closed" {
			t.Errorf("%v\n%v", spans[0], spans[1])
		}
	})
	t.Run("F13/what strangers send cannot break it", func(t *testing.T) {
		end := request(identity.Client{})
		end.Request.Keep([]byte("G\xffT\x1b"), []byte("\xfe\xff"), append([]byte("/\xc3\x28\x00\n\u202e"), bytes.Repeat([]byte("x"), 4000)...))
		end.SNI, end.Peer, end.Span.Continued, end.Span.State, end.Span.Parent = "\xff", "@", true, []byte("\xff=,,"), [8]byte{1}
		spans := sent(t, end, 2)
		got := values(spans[1])
		if spans[1].Name != "HTTP" || got["http.request.method"] != "_OTHER" || got["http.request.method_original"] != `G\xffT\x1b` ||
			!strings.HasPrefix(got["url.path"], `/\xc3(\x00\x0a\xe2\x80\xae`) || len(spans[1].String()) > 4096 {
			t.Errorf("%d bytes: %v", len(spans[1].String()), got)
		}
		if e.failed.Load() != 0 {
			t.Error("the batch was refused")
		}
	})
	t.Run("another collector", func(t *testing.T) {
		other := receive(t, (*httptest.Server).Start)
		before := e.current.Load()
		again := *set
		e.Use(&again)
		if e.current.Load() != before {
			t.Error("settings that mean the same begin anew")
		}
		e.Take(request(identity.Client{}))
		n := len(r.taken())
		e.Use(settings(other))
		e.Take(request(identity.Client{}))
		e.Close(context.Background())
		if len(r.taken()) != n+2 && len(r.taken()) != n || len(other.taken()) != 2 || e.dropped.Load() != 0 || e.failed.Load() != 0 {
			t.Errorf("the old one got %d, the new one %d; %v", len(r.taken())-n, len(other.taken()), e.outcome())
		}
	})
}

func TestTLS(t *testing.T) {
	pki, wrong := testpki.New(t), testpki.New(t)
	server := pki.Server("collector.test", testpki.DNS("collector.test"))
	edge := pki.Client("edge").TLS()
	r := receive(t, func(s *httptest.Server) {
		s.TLS = &tls.Config{Certificates: []tls.Certificate{server.TLS()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pki.Pool()}
		s.StartTLS()
	})
	store := func(ca *testpki.Cert) *trust.Store {
		s, err := trust.NewStore("collectors", []*x509.Certificate{ca.Cert}, nil, nil, trust.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for name, row := range map[string]struct {
		ca    *testpki.Cert
		name  string
		certs []*tls.Certificate
		want  string
	}{
		"another CA":      {wrong, "collector.test", []*tls.Certificate{&edge}, "the collector's certificate is refused"},
		"another name":    {pki, "other.test", []*tls.Certificate{&edge}, "the collector's certificate is refused"},
		"no certificate":  {pki, "collector.test", nil, "spans cannot be sent"},
		"all is in order": {pki, "collector.test", []*tls.Certificate{&edge}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			e, log := newExporter(t)
			set := settings(r)
			set.TLS = &upstream.TLS{ServerName: row.name, Store: store(row.ca), Certificates: row.certs}
			e.Use(set)
			e.Take(request(identity.Client{}))
			until(t, func() bool { got := e.outcome(); return got[0]+got[2] == 1 && (got[0] == 1 || log.String() != "") })
			if got := e.outcome(); (got[0] == 1) != (row.want == "") || !strings.Contains(log.String(), row.want) {
				t.Errorf("%v %s", got, log)
			}
		})
	}
	t.Run("the CAs of this machine", func(t *testing.T) {
		e, log := newExporter(t)
		e.Use(settings(r))
		e.Take(request(identity.Client{}))
		until(t, func() bool { return e.failed.Load() == 1 && log.String() != "" })
		if !strings.Contains(log.String(), "certificate") {
			t.Error(log)
		}
	})
}

// BenchmarkTake is what a request that is traced costs the goroutine that serves it.
func BenchmarkTake(b *testing.B) {
	e := New(Config{})
	r := &route{waiting: make(chan *span, 1)}
	e.current.Store(r)
	end := request(identity.Client{})
	b.ReportAllocs()
	for b.Loop() {
		e.Take(end)
		<-r.waiting
	}
}

// BenchmarkSpans is what it costs the one that sends.
func BenchmarkSpans(b *testing.B) {
	m := newMaker(resource.Empty())
	batch := []*span{copyOf(request(identity.Client{}))}
	b.ReportAllocs()
	for b.Loop() {
		m.spans(batch)
	}
}
