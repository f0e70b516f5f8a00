package daemon_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// inClear is a listener without TLS; LISTENER, ROUTE and UPSTREAM stand for more settings.
const inClear = `
ops: {listen: 127.0.0.1:0}
TRUST
listeners:
  plain:
    listen: 127.0.0.1:0
    protocol: http
    LISTENER
    hosts: [{names: [a.test], routes: [{upstream: api ROUTE}]}]
upstreams:
  api: {UPSTREAM}
`

func clearOf(listener, route, upstream string) string {
	return strings.NewReplacer("TRUST", "", "LISTENER", listener, " ROUTE", route, "UPSTREAM", upstream).Replace(inClear)
}

// connect opens a connection in clear text that lasts no longer than the test may.
func (w *world) connect(t testing.TB, listener string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c := must(net.Dial("tcp", w.addr(listener)))(t)
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c, bufio.NewReader(c)
}

// once sends bytes and reads one answer.
func once(t testing.TB, c net.Conn, r *bufio.Reader, request string) reply {
	t.Helper()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	got, err := readReply(r, method)
	if err != nil {
		t.Fatalf("no answer to %.60q: %v", request, err)
	}
	return got
}

const heardOf = "forwarded: {mode: append, trusted: [127.0.0.0/8], client_address: x_forwarded_for}"

// TestForwardedApart: the clients of one connection from a trusted proxy are kept apart by the addresses that it gives.
func TestForwardedApart(t *testing.T) {
	t.Run("E32/a connection that carried a body", func(t *testing.T) {
		w := newWorld(t)
		b := newRecorder(t, nil)
		w.start(clearOf(heardOf, "", fmt.Sprintf(`targets: ["http://%s"]`, b.addr)), "")
		c, r := w.connect(t, "plain")
		once(t, c, r, "POST /mallory HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 198.51.100.77\r\nContent-Length: 1\r\n\r\nx")
		for _, victim := range []string{"203.0.113.5", "203.0.113.6"} {
			once(t, c, r, "GET /victim HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: "+victim+"\r\n\r\n")
		}
		once(t, c, r, "GET /mallory HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 198.51.100.77\r\n\r\n")
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.conns) != 2 {
			t.Fatalf("%d connections to the target, expected one of mallory's and one for those without a body", len(b.conns))
		}
		if got := b.conns[0].bytes(); strings.Contains(got, "/victim") || strings.Count(got, "/mallory") != 2 {
			t.Errorf("mallory's connection carried %q", got)
		}
	})
	t.Run("D15/the record of a request that cannot be read", func(t *testing.T) {
		w := newWorld(t)
		b := echo(t, "api", nil)
		w.start(clearOf(heardOf, "", fmt.Sprintf(`targets: ["http://%s"]`, b.addr)), "")
		c, r := w.connect(t, "plain")
		if got := once(t, c, r, "GET /first HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 198.51.100.77\r\n\r\n"); got.StatusCode != 200 {
			t.Fatal(got.StatusCode)
		}
		if got := once(t, c, r, "GET /second HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 203.0.113.5\r\nBad Header: x\r\n\r\n"); got.StatusCode != 400 {
			t.Fatal(got.StatusCode)
		}
		if m := w.find(t, "path=/first"); !strings.HasPrefix(fmt.Sprint(m["client"]), "198.51.100.77") {
			t.Errorf("the first request is of %v", m["client"])
		}
		if m := w.find(t, "status=400"); m["client"] != c.LocalAddr().String() { // its own X-Forwarded-For was not read
			t.Errorf("the refused request is of %v, expected that of the connection, %v", m["client"], c.LocalAddr())
		}
	})
	t.Run("D15/the record of a refused stream", func(t *testing.T) {
		w := newWorld(t)
		b := echo(t, "api", nil)
		w.start(strings.Replace(behindProxy, "FORWARDED", heardOf, 1), b.addr)
		c := w.h2(t, w.client("a.test", w.ca.Client("edge")))
		if status, _, _, err := c.do("GET", "a.test", "/first", nil, "X-Forwarded-For", "10.9.9.9"); status != 200 || err != nil {
			t.Fatal(status, err)
		}
		if status, _, _, err := c.do("TRACE", "a.test", "/second", nil, "X-Forwarded-For", "10.1.1.1"); status == 200 || err != nil {
			t.Fatal(status, err)
		}
		w.find(t, "path=/first")
		if m := w.find(t, "path=/second"); strings.HasPrefix(fmt.Sprint(m["client"]), "10.9.9.9") {
			t.Errorf("the refused request is of %v, who made the one before", m["client"])
		}
	})
}

const behindProxy = `
ops: {listen: 127.0.0.1:0}
trust_stores:
  clients: {ca_bundle: {file: clients.pem}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    FORWARDED
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes: [{upstream: api, allow: 'connection.client_ip == "10.9.9.9"'}]
upstreams: {api: {targets: ["http://BACKEND"]}}
`

// TestForwardedStale: what a proxy said of a client holds for the request that it said it with, and not after a reload
// that takes its trust away, on connections that stay open.
func TestForwardedStale(t *testing.T) {
	for _, version := range []string{"http/1.1", "h2"} {
		t.Run("D15/"+version, func(t *testing.T) {
			w := newWorld(t)
			b := echo(t, "api", nil)
			w.start(strings.Replace(behindProxy, "FORWARDED", heardOf, 1), b.addr)
			conf := w.client("a.test", w.ca.Client("edge"))
			var ask func(from string) int
			if version == "h2" {
				c := w.h2(t, conf)
				ask = func(from string) int {
					var fields []string
					if from != "" {
						fields = []string{"X-Forwarded-For", from}
					}
					status, _, _, err := c.do("GET", "a.test", "/", nil, fields...)
					if err != nil {
						t.Fatal(err)
					}
					return status
				}
			} else {
				c := must(w.dial("public", conf))(t)
				r := bufio.NewReader(c)
				ask = func(from string) int {
					if from != "" {
						from = "X-Forwarded-For: " + from + "\r\n"
					}
					return once(t, c, r, "GET / HTTP/1.1\r\nHost: a.test\r\n"+from+"\r\n").StatusCode
				}
			}
			for i, tt := range []struct {
				from   string
				status int
			}{{"10.1.1.1", http.StatusForbidden}, {"10.9.9.9", http.StatusOK}, {"", http.StatusForbidden}, {"10.9.9.9", http.StatusOK}} {
				if got := ask(tt.from); got != tt.status {
					t.Errorf("request %d, of %q: %d, expected %d", i, tt.from, got, tt.status)
				}
			}
			w.reload(strings.Replace(behindProxy, "FORWARDED", "", 1), b.addr)
			for _, from := range []string{"", "10.9.9.9", ""} {
				if got := ask(from); got != http.StatusForbidden {
					t.Errorf("the proxy is trusted no more, of %q: %d, expected 403", from, got)
				}
			}
		})
	}
}
