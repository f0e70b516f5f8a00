package daemon_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	wire "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"countersign/internal/testpki"
)

// collected are the spans that a collector was sent.
type collected struct {
	*httptest.Server
	mu    sync.Mutex
	spans []*wire.Span
}

func collect(t *testing.T) *collected {
	c := &collected{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m collector.ExportTraceServiceRequest
		z, err := gzip.NewReader(r.Body)
		if err == nil {
			var raw []byte
			if raw, err = io.ReadAll(z); err == nil {
				err = proto.Unmarshal(raw, &m)
			}
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, rs := range m.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				c.spans = append(c.spans, ss.Spans...)
			}
		}
	}))
	t.Cleanup(c.Close)
	return c
}

// of waits for n spans whose path, or that of their parent, is path.
func (c *collected) of(t *testing.T, path string, n int) (server, client *wire.Span) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c.mu.Lock()
		for _, s := range c.spans {
			if attribute(s, "url.path") == path {
				server = s
			}
		}
		for _, s := range c.spans {
			if server != nil && bytes.Equal(s.ParentSpanId, server.SpanId) {
				client = s
			}
		}
		c.mu.Unlock()
		if server != nil && (client != nil) == (n == 2) {
			return server, client
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %d spans of %s", n, path)
		}
	}
}

func (c *collected) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.spans)
}

func attribute(s *wire.Span, key string) string {
	for _, a := range s.Attributes {
		if a.Key == key {
			return a.Value.GetStringValue()
		}
	}
	return ""
}

const traced = `
tracing: {otlp: "COLLECTOR", sample: SAMPLE, parent_sampled: PARENT}
trust_stores:
  clients:
    ca_bundle: {file: clients.pem}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes: [{match: {path: /here}, respond: {status: 204}}, {match: {path: /two/*}, upstream: two}, {upstream: api}]
  plain:
    listen: 127.0.0.1:0
    protocol: http
    forwarded: {mode: append, trusted: [127.0.0.1/32]}
    hosts: [{names: [a.test], routes: [{upstream: api}]}]
upstreams:
  api: {targets: ["http://BACKEND"]}
  two: {targets: ["http://BACKEND"], protocol_version: http2}
`

func tracedConf(c *collected, sample, parent string) string {
	return strings.NewReplacer("COLLECTOR", c.URL, "SAMPLE", sample, "PARENT", parent).Replace(traced)
}

const (
	strangeID     = "0af7651916cd43dd8448eb211c80319c"
	strangeParent = "00-" + strangeID + "-b7ad6b7169203331-01"
)

func TestTracing(t *testing.T) {
	w, b, c := newWorld(t), echo(t, "api", nil), collect(t)
	w.start(tracedConf(c, "1", "trusted"), b.addr)
	alice := w.ca.Client("alice")
	for _, row := range []struct{ name, path string }{{"HTTP/1.1 to HTTP/1.1", "/one"}, {"HTTP/1.1 to HTTP/2", "/two/one"}, {"HTTP/2 to HTTP/1.1", "/h2"}, {"HTTP/2 to HTTP/2", "/two/h2"}} {
		t.Run(row.name, func(t *testing.T) {
			var status int
			var err error
			if strings.HasPrefix(row.name, "HTTP/2") {
				h := w.h2(t, w.client("a.test", alice))
				status, _, _, err = h.do("GET", "a.test", row.path, nil, "traceparent", strangeParent, "tracestate", "a=1")
			} else {
				conn, derr := w.dial("public", w.client("a.test", alice))
				if derr != nil {
					t.Fatal(derr)
				}
				status, _, err = roundTrip(conn, bufio.NewReader(conn), "GET "+row.path+" HTTP/1.1\r\nHost: a.test\r\nTraceParent: "+strangeParent+"\r\nTracestate: a=1\r\n\r\n")
			}
			if err != nil || status != 200 {
				t.Fatal(status, err)
			}
			server, client := c.of(t, row.path, 2)
			if id := hex.EncodeToString(server.TraceId); id == strangeID || len(server.ParentSpanId) != 0 {
				t.Errorf("a stranger's parent is honoured: %v", server)
			}
			if got, want := b.last().Values("Traceparent"), "00-"+hex.EncodeToString(client.TraceId)+"-"+hex.EncodeToString(client.SpanId)+"-01"; len(got) != 1 || got[0] != want || b.last().Get("Tracestate") != "" {
				t.Errorf("the target was told %q and %q, expected %q", got, b.last()["Tracestate"], want)
			}
			if got := attribute(server, "tls.client.subject"); got != "CN=alice" || attribute(server, "countersign.reason") != "completed" || attribute(client, "server.address") != "127.0.0.1" ||
				client.StartTimeUnixNano < server.StartTimeUnixNano || client.EndTimeUnixNano > server.EndTimeUnixNano {
				t.Errorf("%v\n%v", server, client)
			}
		})
	}
	t.Run("answered here", func(t *testing.T) {
		if status, _, err := w.get("public", w.client("a.test", alice), "a.test", "/here"); err != nil || status != 204 {
			t.Fatal(status, err)
		}
		if server, _ := c.of(t, "/here", 1); attribute(server, "countersign.reason") != "answered_here" || attribute(server, "tls.client.subject") != "CN=alice" {
			t.Errorf("%v", server)
		}
	})
	t.Run("refused", func(t *testing.T) {
		if status, _, err := w.get("public", w.client("a.test", alice), "b.test", "/refused"); err != nil || status == 200 {
			t.Fatal(status, err)
		}
		if server, _ := c.of(t, "/refused", 1); attribute(server, "error.type") != "host_unknown" {
			t.Errorf("%v", server)
		}
	})
	for _, row := range []struct{ name, from, path string }{{"a trusted proxy's parent", "127.0.0.1", "/trusted"}, {"that of another address", "127.0.0.9", "/untrusted"}} {
		t.Run(row.name, func(t *testing.T) {
			d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(row.from)}}
			conn, err := d.Dial("tcp", w.addr("plain"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			status, _, err := roundTrip(conn, bufio.NewReader(conn), "GET "+row.path+" HTTP/1.1\r\nHost: a.test\r\ntraceparent: "+strangeParent+"\r\ntracestate: a=1\r\n\r\n")
			if err != nil || status != 200 {
				t.Fatal(status, err)
			}
			server, client := c.of(t, row.path, 2)
			trusted := row.path == "/trusted"
			if (hex.EncodeToString(server.TraceId) == strangeID) != trusted || (server.TraceState == "a=1") != trusted || (b.last().Get("Tracestate") == "a=1") != trusted ||
				!strings.Contains(b.last().Get("Traceparent"), hex.EncodeToString(client.SpanId)) {
				t.Errorf("%v, told %v", server, b.last())
			}
			// A parent that is not sampled decides too, where it is honoured.
			unsampled := strings.TrimSuffix(strangeParent, "01") + "00"
			status, _, err = roundTrip(conn, bufio.NewReader(conn), "GET "+row.path+"/not HTTP/1.1\r\nHost: a.test\r\ntraceparent: "+unsampled+"\r\n\r\n")
			if err != nil || status != 200 {
				t.Fatal(status, err)
			}
			if got := b.last().Get("Traceparent"); (got == unsampled) != trusted {
				t.Errorf("told %q", got)
			}
		})
	}
	t.Run("other settings", func(t *testing.T) {
		w.reload(tracedConf(c, "0", "trusted"), b.addr)
		n := c.count()
		if status, _, err := w.get("public", w.client("a.test", alice), "a.test", "/unsampled"); err != nil || status != 200 {
			t.Fatal(status, err)
		}
		if got := b.last().Get("Traceparent"); len(got) != 55 || !strings.HasSuffix(got, "-00") {
			t.Errorf("a target is told %q of a request that is not traced", got)
		}
		w.reload(strings.Replace(tracedConf(c, "1", "honour_from_anybody"), "PARENT", "", 1), b.addr)
		conn, err := w.dial("public", w.client("a.test", alice))
		if err != nil {
			t.Fatal(err)
		}
		if status, _, err := roundTrip(conn, bufio.NewReader(conn), "GET /anybody HTTP/1.1\r\nHost: a.test\r\ntraceparent: "+strangeParent+"\r\n\r\n"); err != nil || status != 200 {
			t.Fatal(status, err)
		}
		if server, _ := c.of(t, "/anybody", 2); hex.EncodeToString(server.TraceId) != strangeID {
			t.Errorf("%v", server)
		}
		_, without, _ := strings.Cut(traced, "\ntrust_stores")
		w.reload("trust_stores"+without, b.addr)
		if status, _, err := roundTrip(conn, bufio.NewReader(conn), "GET /off HTTP/1.1\r\nHost: a.test\r\ntraceparent: "+strangeParent+"\r\n\r\n"); err != nil || status != 200 {
			t.Fatal(status, err)
		}
		if got := b.last().Get("Traceparent"); got != strangeParent {
			t.Errorf("without tracing a target is told %q", got)
		}
		if got := c.count(); got > n+6 { // of the rows above, some may still have been under way
			t.Errorf("%d spans more", got-n)
		}
	})
}

// TestTracingAllocations: what is not traced costs nothing.
func TestTracingAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	bare := bareTLS(t)
	w, c := newWorld(t), collect(t)
	w.start(tracedConf(c, "0", "trusted"), quick(t, smallResponse))
	conn, err := w.dial("public", w.client("a.test", w.ca.Client("alice")))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Time{})
	call := newCaller(t, conn)
	got := math.Inf(1)
	for range 3 { // of which others may disturb one
		got = min(got, mallocs(5000, func() { call.call(t) }))
	}
	if got > bare+0.05 {
		t.Errorf("a request that is not traced allocates %.3f objects; expected at most the %.3f of crypto/tls itself", got, bare)
	}
}

// TestTracingStalled: a collector that answers nothing keeps no request waiting, nor the end for long.
func TestTracingStalled(t *testing.T) {
	w, b := newWorld(t), echo(t, "api", nil)
	stalled, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer stalled.Close()
	conf := strings.NewReplacer("COLLECTOR", "http://"+stalled.Addr().String(), "SAMPLE", "1", "PARENT", "ignore").Replace(traced)
	w.start("ops: {listen: 127.0.0.1:0}\n"+conf, b.addr)
	conn, err := net.Dial("tcp", w.addr("plain"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(60 * time.Second))
	r := bufio.NewReader(conn)
	for range 3000 { // more than may wait
		if status, _, err := roundTrip(conn, r, "GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n"); err != nil || status != 200 {
			t.Fatal(status, err)
		}
	}
	resp, err := http.Get("http://" + w.addr("ops") + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	for line := range strings.SplitSeq(string(text), "\n") {
		if n, ok := strings.CutPrefix(line, `countersign_traces_total{outcome="dropped"} `); ok && n != "0" {
			return
		}
	}
	t.Error("nothing was dropped, or that is not counted")
}

// TestTracingProxies: the parent of a proxy that is trusted by its certificate counts, and that of no other client, verified
// as it may be; nor does a parent of a request that is refused.
func TestTracingProxies(t *testing.T) {
	w, b, c := newWorld(t), echo(t, "api", nil), collect(t)
	conf := strings.Replace(tracedConf(c, "1", "trusted"), "        routes: [{match: {path: /here}", `        trusted_proxies: [{match: {sans: ["dns:edge1.cdn.test"]}, identity: rfc9440, trust_store: clients, missing: proxy}]
        routes: [{match: {path: /none}, allow: "false", upstream: api}, {match: {path: /here}`, 1)
	w.start(conf, b.addr)
	for name, row := range map[string]struct {
		client *testpki.Cert
		path   string
		status int
		spans  int
		want   bool
	}{
		"another client":      {w.ca.Client("alice"), "/alice", 200, 2, false},
		"the proxy":           {w.ca.Client("edge", testpki.DNS("edge1.cdn.test")), "/edge", 200, 2, true},
		"the proxy, refused":  {w.ca.Client("edge", testpki.DNS("edge1.cdn.test")), "/none", 403, 1, false},
		"the proxy, answered": {w.ca.Client("edge", testpki.DNS("edge1.cdn.test")), "/here", 204, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := w.dial("public", w.client("a.test", row.client))
			if err != nil {
				t.Fatal(err)
			}
			status, _, err := roundTrip(conn, bufio.NewReader(conn), "GET "+row.path+" HTTP/1.1\r\nHost: a.test\r\ntraceparent: "+strangeParent+"\r\n\r\n")
			if err != nil || status != row.status {
				t.Fatal(status, err)
			}
			if server, _ := c.of(t, row.path, row.spans); (hex.EncodeToString(server.TraceId) == strangeID) != row.want {
				t.Errorf("%v", server)
			}
		})
	}
}
