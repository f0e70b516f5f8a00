package daemon_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// silent is the address of a target that takes connections and says nothing.
func silent(t testing.TB) string {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	}()
	return l.Addr().String()
}

// TestDeadlineConnecting: the time for the whole exchange runs while a target is connected to, too.
func TestDeadlineConnecting(t *testing.T) {
	w := newWorld(t)
	const secured = `tls: {server_name: api.internal, trust_store: internal}, timeouts: {connect: 15s, response: 30s`
	addr := silent(t)
	w.start(strings.NewReplacer("TRUST", "trust_stores: {internal: {ca_bundle: {file: servers.pem}}}", "LISTENER", "",
		"{upstream: api ROUTE}", "{match: {path: /http1}, upstream: one}, {match: {path: /http2}, upstream: two}, {match: {path: /grpc}, upstream: grpc}, {match: {path: /queue}, upstream: queue}",
		"api: {UPSTREAM}", `one: {targets: ["https://BACKEND"], `+secured+`, total: 500ms}}
  two: {targets: ["https://BACKEND"], protocol_version: http2, `+secured+`, total: 500ms}}
  grpc: {targets: ["https://BACKEND"], protocol_version: http2, `+secured+`}}
  queue: {targets: ["https://BACKEND"], max_pending: 5, queue_timeout: 10s, `+secured+`, total: 500ms}}`).Replace(inClear), addr)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, path := range []string{"/http1", "/http2", "/queue", "/grpc"} {
		c, r := w.connect(t, "plain")
		wg.Go(func() {
			began := time.Now()
			more := ""
			if path == "/grpc" {
				more = "Content-Type: application/grpc\r\nGrpc-Timeout: 500m\r\n"
			}
			if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: a.test\r\n"+more+"\r\n"); err != nil {
				t.Error(err)
				return
			}
			got, err := readReply(r, "GET")
			took := time.Since(began)
			switch {
			case err != nil:
				t.Errorf("H15 %s: %v after %v", path, err, took)
			case path == "/grpc" && (got.StatusCode != 200 || got.Header.Get("Grpc-Status") != "4"): // DEADLINE_EXCEEDED
				t.Errorf("H15 %s: %d, grpc-status %q", path, got.StatusCode, got.Header.Get("Grpc-Status"))
			case path != "/grpc" && got.StatusCode != http.StatusGatewayTimeout:
				t.Errorf("H15 %s: %d %.200s, expected 504", path, got.StatusCode, got.body)
			case took > 10*time.Second:
				t.Errorf("H15 %s: answered after %v, and there were 500 ms", path, took)
			}
		})
	}
}

// TestDeadlineOfClient: a time that the client chose, and a body that it does not send, say nothing about a target.
func TestDeadlineOfClient(t *testing.T) {
	const head = "POST /slow HTTP/1.1\r\nHost: a.test\r\nContent-Type: application/grpc\r\n"
	for name, tt := range map[string]struct{ request, more string }{
		"no time":           {head + "Grpc-Timeout: 1n\r\nContent-Length: 5\r\n\r\nx", ""},
		"half a body":       {head + "Grpc-Timeout: 100m\r\nContent-Length: 5\r\n\r\nx", ""},
		"a slow answer":     {head + "Grpc-Timeout: 100m\r\nContent-Length: 1\r\n\r\nx", ""},
		"half a plain body": {"POST /slow HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nx", ", timeouts: {total: 100ms}"},
	} {
		t.Run("H15/"+name, func(t *testing.T) {
			w := newWorld(t)
			targets := [2]*recorder{newRecorder(t, nil), newRecorder(t, nil)}
			release := make(chan struct{})
			t.Cleanup(func() { close(release) })
			for _, b := range targets {
				b.on("/slow", func(c *recorded, r *http.Request) bool {
					<-release
					return false
				})
			}
			w.start(clearOf("", "", fmt.Sprintf(`targets: ["http://%s", "http://%s"], outlier: on%s`, targets[0].addr, targets[1].addr, tt.more)), "")
			var wg sync.WaitGroup
			for range 14 {
				c, r := w.connect(t, "plain")
				wg.Go(func() {
					if _, err := io.WriteString(c, tt.request); err != nil {
						t.Error(err)
						return
					}
					if got, err := readReply(r, "POST"); err != nil || got.StatusCode == 200 && got.Header.Get("Grpc-Status") != "4" {
						t.Errorf("%v %v, expected that the time is over", got, err)
					}
				})
			}
			wg.Wait()
			for name, value := range w.scrape(t) {
				if strings.HasPrefix(name, "countersign_upstream_ejected{") && value != "0" {
					t.Errorf("%s %s", name, value)
				}
			}
			if s := w.ops.String(); strings.Contains(s, "ejected") {
				t.Errorf("a client has put out a target that is well:\n%s", s)
			}
		})
	}
}

// TestRetryAfterNothing: a request is sent again only if no byte of an answer came.
func TestRetryAfterNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		answer string
		sent   int
	}{
		"E25/nothing":            {"", 2},
		"E25/half a status line": {"HTTP/1.1 20", 1},
		"E25/half a head":        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Deleted: yes", 1},
		"E25/half a body":        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nde", 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a, b := newRecorder(t, nil), newRecorder(t, nil)
			for _, x := range []*recorder{a, b} {
				x.otherwise(func(c *recorded, _ *http.Request) bool {
					_, _ = io.WriteString(c, tt.answer)
					time.Sleep(50 * time.Millisecond)
					return false
				})
			}
			w.start(clearOf("", "", fmt.Sprintf(`targets: ["http://%s", "http://%s"], retries: {attempts: 1}`, a.addr, b.addr)), "")
			c, r := w.connect(t, "plain")
			if _, err := io.WriteString(c, "DELETE /order HTTP/1.1\r\nHost: a.test\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			got, err := readReply(r, "DELETE")
			if tt.answer == "" || !strings.Contains(tt.answer, "\r\n\r\n") {
				if err != nil || got.StatusCode != http.StatusBadGateway {
					t.Errorf("%v %v, expected 502", got, err)
				}
			}
			if n := len(a.asked()) + len(b.asked()); n != tt.sent {
				t.Errorf("sent %d times, expected %d", n, tt.sent)
			}
		})
	}
}

// TestOwnConnectionsScarce: connections that rest, kept for one client each, shut nobody out.
func TestOwnConnectionsScarce(t *testing.T) {
	const post = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\n\r\nx"
	for name, more := range map[string]string{"no queue": "", "a queue": ", max_pending: 10, queue_timeout: 2s"} {
		t.Run("F17/connections of HTTP1, "+name, func(t *testing.T) {
			w := newWorld(t)
			b := echo(t, "one", nil)
			w.start(clearOf("", "", fmt.Sprintf(`targets: ["http://%s"], max_connections: 3%s`, b.addr, more)), "")
			for i := range 6 { // all stay open
				c, r := w.connect(t, "plain")
				if got := once(t, c, r, post); got.StatusCode != 200 {
					t.Errorf("client %d, nothing under way: %d %.200s", i, got.StatusCode, got.body)
				}
			}
			c, r := w.connect(t, "plain")
			if got := once(t, c, r, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"); got.StatusCode != 200 {
				t.Errorf("nothing is under way, and a GET is answered %d %.200s", got.StatusCode, got.body)
			}
		})
	}
	t.Run("F17/streams of HTTP2", func(t *testing.T) {
		w := newWorld(t)
		b := echo(t, "one", nil)
		w.start(strings.Replace(twoHosts, "UPSTREAM", ", max_connections: 20", 1), b.addr)
		c := w.h2(t, w.client("a.test", w.ca.Client("alice")))
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { _, _, _, _ = c.do("POST", "a.test", "/x", strings.NewReader("hello")) })
		}
		wg.Wait()
		v := w.h2(t, w.client("a.test", w.ca.Client("bob")))
		if status, body, _, err := v.do("GET", "a.test", "/", nil); status != 200 || err != nil {
			t.Errorf("nothing is under way, and another client is answered %d %.200s %v", status, body, err)
		}
		kept := func() (n int) {
			for name, value := range w.scrape(t) {
				if strings.HasPrefix(name, "countersign_upstream_connections{") {
					n, _ = strconv.Atoi(value)
				}
			}
			return n
		}
		n := kept()
		for end := time.Now().Add(2 * time.Second); n > 5 && time.Now().Before(end); n = kept() {
			time.Sleep(20 * time.Millisecond)
		}
		if n == 0 || n > 5 { // four for alice, and that of the GET
			t.Errorf("%d connections to the target are kept for two clients, expected 1 to 5", n)
		}
	})
}
