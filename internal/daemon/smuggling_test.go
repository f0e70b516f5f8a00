package daemon_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/internal/testpki"
)

// recorder is a target on raw TCP: it keeps every byte it is sent, and can answer with any.
type recorder struct {
	t    testing.TB
	addr string

	mu       sync.Mutex
	conns    []*recorded
	turns    int      // requests read so far, whatever was reset
	requests []string // METHOD target, in order
	scripts  map[string]script
	fallback script // for paths without one of their own
}

// script answers a request whose head was read. It reports whether the connection goes on.
type script func(c *recorded, r *http.Request) bool

// recorded is one connection to the recorder.
type recorded struct {
	net.Conn
	r *bufio.Reader

	mu     sync.Mutex
	in     bytes.Buffer
	ended  chan struct{} // closed when nothing more can be read
	during string        // the last target asked for
	turn   int           // when it was
}

func (c *recorded) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	c.in.Write(p[:n])
	c.mu.Unlock()
	return n, err
}

func (c *recorded) bytes() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.in.String()
}

// record starts a recorder, over TLS if conf is not nil.
func newRecorder(t testing.TB, conf *tls.Config) *recorder {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &recorder{t: t, addr: l.Addr().String(), scripts: make(map[string]script), fallback: plain}
	t.Cleanup(func() {
		l.Close()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, c := range b.conns {
			c.Close()
		}
	})
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			if conf != nil {
				raw = tls.Server(raw, conf)
			}
			c := &recorded{Conn: raw, ended: make(chan struct{})}
			c.r = bufio.NewReader(c)
			b.mu.Lock()
			b.conns = append(b.conns, c)
			b.mu.Unlock()
			go b.serve(c)
		}
	}()
	return b
}

func (b *recorder) serve(c *recorded) {
	defer close(c.ended)
	defer c.Close()
	for {
		r, err := http.ReadRequest(c.r)
		if err != nil {
			return
		}
		b.mu.Lock()
		b.requests = append(b.requests, r.Method+" "+r.RequestURI)
		do := b.scripts[r.URL.Path]
		if do == nil {
			do = b.fallback
		}
		b.turns++
		c.mu.Lock()
		c.during, c.turn = r.RequestURI, b.turns
		c.mu.Unlock()
		b.mu.Unlock()
		if !do(c, r) {
			return
		}
	}
}

// plain reads the body and says what was asked and how long the body was.
func plain(c *recorded, r *http.Request) bool {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return false
	}
	say := fmt.Sprintf("%s %s %d", r.Method, r.RequestURI, len(body))
	_, err = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(say), say)
	return err == nil
}

// raw answers with bytes, whatever is asked, and goes on if more says so.
func raw(answer string, more bool) script {
	return func(c *recorded, r *http.Request) bool {
		_, _ = io.Copy(io.Discard, r.Body)
		_, err := io.WriteString(c, answer)
		return more && err == nil
	}
}

// on sets what happens for a path.
func (b *recorder) on(path string, do script) {
	b.mu.Lock()
	b.scripts[path] = do
	b.mu.Unlock()
}

// otherwise sets what happens for every other path.
func (b *recorder) otherwise(do script) {
	b.mu.Lock()
	b.fallback = do
	b.mu.Unlock()
}

// reset forgets what was recorded, and closes nothing.
func (b *recorder) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests = nil
	for _, c := range b.conns {
		c.mu.Lock()
		c.in.Reset()
		c.mu.Unlock()
	}
}

// open is how many connections have not ended.
func (b *recorder) open() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.conns {
		select {
		case <-c.ended:
		default:
			n++
		}
	}
	return n
}

// got is every byte since reset.
func (b *recorder) got() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all strings.Builder
	for _, c := range b.conns {
		all.WriteString(c.bytes())
	}
	return all.String()
}

func (b *recorder) asked() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.requests)
}

// conn returns the connection on which target was asked for last, waiting for it.
func (b *recorder) conn(t testing.TB, target string) *recorded {
	t.Helper()
	for range 1000 {
		var found *recorded
		last := 0
		b.mu.Lock()
		for _, c := range b.conns {
			c.mu.Lock()
			if c.during == target && c.turn > last {
				found, last = c, c.turn
			}
			c.mu.Unlock()
		}
		b.mu.Unlock()
		if found != nil {
			return found
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s never reached the target", target)
	return nil
}

// carrier finds the connection that carried a request with this path.
func (b *recorder) carrier(path string) *recorded {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.conns {
		if strings.Contains(c.bytes(), path+" ") {
			return c
		}
	}
	return nil
}

// closed waits until the connection ended, and says after how long. It waits in steps: a machine that stands still takes one.
func (c *recorded) closed(t testing.TB, within time.Duration) time.Duration {
	t.Helper()
	start := time.Now()
	for range 100 {
		select {
		case <-c.ended:
			return time.Since(start)
		case <-time.After(within / 100):
		}
	}
	t.Errorf("the connection to the target is still open after %s", within)
	return time.Since(start)
}

const rawConf = `
ops: {listen: 127.0.0.1:0}
trust_stores:
  clients: {ca_bundle: {file: clients.pem}}
  internal: {ca_bundle: {file: servers.pem}}
listeners:
  plain:
    listen: 127.0.0.1:0
    protocol: http
    limits: {connections: 1000LIMITS}
    hosts: [{names: [a.test], routes: [{upstream: api}]}]
  tls:
    listen: 127.0.0.2:0
    protocol: https
    limits: {connections: 1000LIMITS}
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        identity_headers: [rfc9440, alb]
        routes: [{upstream: api}]
      - names: [off.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: off}
        identity_headers: [rfc9440, alb]
        routes: [{upstream: api}]
      - names: [b.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: request, trust_store: clients}
        identity_headers: [rfc9440, alb]
        routes: [{upstream: api}]
upstreams:
  api: {targets: ["http://BACKEND"], timeouts: {connect: 5sTIMEOUTS}}
`

// rig is a world with a recorder behind it.
type rig struct {
	*world
	b     *recorder
	alice *testpki.Cert
}

// newRig starts rawConf with more limits and upstream timeouts, each with a comma before it; the target speaks TLS if secure.
func newRig(t testing.TB, limits, timeouts string, secure bool) *rig {
	g := &rig{world: newWorld(t)}
	g.alice = g.ca.Client("alice")
	var conf *tls.Config
	c := strings.ReplaceAll(strings.ReplaceAll(rawConf, "LIMITS", limits), "TIMEOUTS", timeouts)
	if secure {
		conf = &tls.Config{Certificates: []tls.Certificate{g.server.TLS()}}
		c = strings.Replace(c, `["http://BACKEND"]`, `["https://BACKEND"], tls: {server_name: api.internal, trust_store: internal}`, 1)
	}
	g.b = newRecorder(t, conf)
	g.start(c, g.b.addr)
	return g
}

// listeners are the ways in.
var listeners = []string{"plain", "tls"}

// connect opens a connection to a listener, over TLS with alice's certificate where it wants one.
func (g *rig) connect(t testing.TB, listener string) net.Conn {
	t.Helper()
	var c net.Conn
	var err error
	if listener == "plain" {
		if c, err = net.Dial("tcp", g.addr(listener)); err == nil {
			t.Cleanup(func() { c.Close() })
		}
	} else {
		c, err = g.dial(listener, g.client("a.test", g.alice))
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// reply is what a client got.
type reply struct {
	*http.Response
	body string
	err  error // of the body
}

func readReply(r *bufio.Reader, method string) (reply, error) {
	resp, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		return reply{}, err
	}
	body, err := io.ReadAll(resp.Body)
	return reply{resp, string(body), err}, nil
}

// ask sends bytes on a new connection and reads one response. The connection stays open.
func (g *rig) ask(t testing.TB, listener, request string) (reply, net.Conn, *bufio.Reader) {
	t.Helper()
	c := g.connect(t, listener)
	go io.WriteString(c, request) // a refusal may come before all of it was taken
	r := bufio.NewReader(c)
	method, _, _ := strings.Cut(request, " ")
	got, err := readReply(r, method)
	if err != nil {
		t.Fatalf("%s: no response to %.80q: %v", listener, request, err)
	}
	return got, c, r
}

// ended fails unless the connection is closed without another byte.
func ended(t testing.TB, r *bufio.Reader) {
	t.Helper()
	if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil && errors.As(err, new(net.Error)) && err.(net.Error).Timeout() {
		t.Errorf("expected the end of the connection, found %q, %v", rest, err)
	}
}

var victims int

// victim asks for something of its own, several times, and must get that.
func (g *rig) victim(t testing.TB, listener string) {
	t.Helper()
	for range 2 {
		victims++
		path := fmt.Sprintf("/victim?%d", victims)
		got, c, _ := g.ask(t, listener, "GET "+path+" HTTP/1.1\r\nHost: a.test\r\n\r\n")
		c.Close()
		if got.StatusCode != 200 || got.body != "GET "+path+" 0" {
			t.Errorf("the next client got %d %q for %s", got.StatusCode, got.body, path)
		}
	}
}

// reasonOf finds the record of the request that an error page refers to.
func (g *rig) reasonOf(t testing.TB, got reply) string {
	t.Helper()
	_, ref, ok := strings.Cut(got.body, "reference: ")
	if !ok {
		t.Fatalf("no reference in %q", got.body)
	}
	return fmt.Sprint(g.record("ref=" + strings.TrimSpace(ref))["reason"])
}

// since finds a record behind a mark in the log that has all fields.
func (g *rig) since(t testing.TB, mark int, want ...string) map[string]any {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
	lines:
		for line := range strings.Lines(g.log.String()[mark:]) {
			var m map[string]any
			if json.Unmarshal([]byte(line), &m) != nil {
				continue
			}
			for _, kv := range want {
				if k, v, _ := strings.Cut(kv, "="); fmt.Sprint(m[k]) != v {
					continue lines
				}
			}
			return m
		}
		if time.Now().After(deadline) {
			log := g.log.String()[mark:]
			t.Fatalf("no record with %v in:\n%s", want, log[max(0, len(log)-2000):])
		}
	}
}

const hostLine = "Host: a.test\r\n"

func postTo(path, fields, body string) string {
	return "POST " + path + " HTTP/1.1\r\n" + hostLine + fields + "\r\n" + body
}

// TestE05 is for chunked bodies: the head is on its way to the target when the bad chunk comes, so the connection to the
// target ends, without an end of the body having been written.
func TestE05(t *testing.T) {
	g := newRig(t, "", "", false)
	for i, bad := range []string{"0x5\r\nhello", "+5\r\nhello", "-5\r\nhello", "5_\r\nhello", " 5\r\nhello", "5 \r\nhello", "fffffffffffffffff\r\nhello", "5\nhello", "5;a\nb\r\nhello", "5\r;\r\nhello", "5;" + strings.Repeat("x", 5000) + "\r\nhello",
		"5\r\nhelloXX", "5\r\nhello\n", "5\r\nhello!\r\n", "\r\n", "5\r\nhello\r\n0\r\nX : y\r\n", "5\r\nhello\r\n0\r\n X: y\r\n", "5\r\nhello\r\n0\r\n\n"} {
		for _, l := range listeners {
			t.Run(fmt.Sprintf("E05/%d/%s", i, l), func(t *testing.T) {
				g.victim(t, l) // so that there is a connection to be used again
				g.b.reset()
				path := fmt.Sprintf("/e05-%d-%s", i, l)
				got, _, r := g.ask(t, l, postTo(path, "Transfer-Encoding: chunked\r\n", bad+"\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: a.test\r\n\r\n"))
				if why := g.reasonOf(t, got); got.StatusCode != 400 || why != "chunk_invalid" || !got.Close {
					t.Errorf("%d %s close=%v", got.StatusCode, why, got.Close)
				}
				ended(t, r)
				g.victim(t, l)
				if s := g.b.got(); strings.Contains(s, "0\r\n\r\n") || strings.Contains(s, "/admin") {
					t.Errorf("reached the target: %q", s)
				}
				if c := g.b.carrier(path); c != nil { // nil if the chunk was seen before anything was sent
					c.closed(t, 2*time.Second)
					if _, after, _ := strings.Cut(c.bytes(), path+" "); strings.Count(after, "HTTP/1.1\r\n") != 1 {
						t.Errorf("used again: %q", c.bytes())
					}
				}
			})
		}
	}
}

// maxEarly bounds how often a connection may end with an answer for which nothing but a slow machine is the reason: who sends
// a body on has not come to say that it is all sent, and for us the target has answered early.
const maxEarly = 5

// TestE06 also stands for D05's requests: no trailer passes, and neither does its announcement.
func TestE06(t *testing.T) {
	g := newRig(t, "", "", false)
	for _, l := range listeners {
		for _, name := range []string{"Content-Length", "Transfer-Encoding", "Host", "Authorization", "X-Client-Cert", "X-Forwarded-For", "X-Harmless"} {
			t.Run("E06/"+name+"/"+l, func(t *testing.T) {
				request := postTo("/x", "Trailer: "+name+"\r\nTransfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n"+name+": 77spoof\r\n\r\n")
				g.b.reset()
				got, c, r := g.ask(t, l, request)
				for tries := 1; got.Close && tries < maxEarly; tries++ {
					ended(t, r)
					g.b.reset()
					got, c, r = g.ask(t, l, request)
				}
				if got.StatusCode != 200 || got.body != "POST /x 5" {
					t.Errorf("%d %q", got.StatusCode, got.body)
				}
				if s := g.b.got(); strings.Contains(s, "77spoof") || strings.Contains(s, "Trailer:") || !strings.HasSuffix(s, "hello\r\n0\r\n\r\n") {
					t.Errorf("%q", s)
				}
				if status, body, err := roundTrip(c, r, "GET /y HTTP/1.1\r\n"+hostLine+"\r\n"); status != 200 || body != "GET /y 0" {
					t.Errorf("the next request: %d %q %v", status, body, err)
				}
			})
		}
	}
}

func TestE11(t *testing.T) {
	g := newRig(t, "", "", false)
	for _, l := range listeners {
		for _, method := range []string{"GET", "HEAD", "DELETE", "OPTIONS", "PATCH", "PROPFIND"} {
			t.Run("E11/"+method+"/"+l, func(t *testing.T) {
				g.b.reset()
				got, c, r := g.ask(t, l, method+" /x HTTP/1.1\r\n"+hostLine+"Content-Length: 10\r\n\r\n0123456789")
				s := g.b.got()
				if got.StatusCode != 200 || strings.Count(s, "Content-Length: 10\r\n") != 1 || !strings.HasSuffix(s, "\r\n\r\n0123456789") {
					t.Errorf("%d, the target got %q", got.StatusCode, s)
				}
				if method == "GET" || method == "HEAD" { // content without a meaning: the connection ends behind it
					ended(t, r)
					c = g.connect(t, l)
					r = bufio.NewReader(c)
				}
				if status, body, err := roundTrip(c, r, "GET /y HTTP/1.1\r\n"+hostLine+"\r\n"); status != 200 || body != "GET /y 0" {
					t.Errorf("the next request: %d %q %v", status, body, err)
				}
			})
		}
	}
}

// TestE15: an offer of h2c is ignored, and nothing of it passes.
func TestE15(t *testing.T) {
	g := newRig(t, "", "", false)
	for _, l := range listeners {
		got, _, _ := g.ask(t, l, "GET /x HTTP/1.1\r\n"+hostLine+"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
		s := strings.ToLower(g.b.got())
		if got.StatusCode != 200 || strings.Contains(s, "upgrade") || strings.Contains(s, "http2-settings") || strings.Contains(s, "connection:") {
			t.Errorf("%s: %d, the target got %q", l, got.StatusCode, s)
		}
	}
}

// TestE19 is for what targets send: ambiguous responses are 502 and end the connection to the target; what is left behind
// a good one is nobody's answer.
func TestE19(t *testing.T) {
	for _, secure := range []bool{false, true} {
		g := newRig(t, "", "", secure)
		const ok, poison = "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
		for i, c := range []struct {
			name, method, answer string
			status               int
			reason, body         string
			reused               bool // the connection to the target may be used again
		}{
			{"cl-te", "GET", ok + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + poison, 502, "upstream_bad_response", "", false},
			{"te-cl", "GET", ok + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + poison, 502, "upstream_bad_response", "", false},
			{"two-cl", "GET", ok + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 502, "upstream_bad_response", "", false},
			{"same-cl", "GET", ok + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 502, "upstream_bad_response", "", false},
			{"unknown-te", "GET", ok + "Transfer-Encoding: xchunked\r\n\r\nhello", 502, "upstream_bad_response", "", false},
			{"te-http10", "GET", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 502, "upstream_bad_response", "", false},
			{"http09", "GET", "<html>\r\n\r\n", 502, "upstream_bad_response", "", false},
			{"nul", "GET", ok + "X: a\x00b\r\nContent-Length: 0\r\n\r\n", 502, "upstream_bad_response", "", false},
			{"bare-cr", "GET", ok + "X: a\rb\r\nContent-Length: 0\r\n\r\n", 502, "upstream_bad_response", "", false},
			{"bare-lf", "GET", "HTTP/1.1 200 OK\nContent-Length: 0\n\n", 502, "upstream_bad_response", "", false},
			{"fold", "GET", ok + "X: a\r\n b\r\nContent-Length: 0\r\n\r\n", 502, "upstream_bad_response", "", false},
			{"099", "GET", "HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n", 502, "upstream_bad_response", "", false},
			{"1000", "GET", "HTTP/1.1 1000 High\r\nContent-Length: 0\r\n\r\n", 502, "upstream_bad_response", "", false},
			{"list-cl", "GET", ok + "Content-Length: 5, 5\r\n\r\nhello", 502, "upstream_bad_response", "", false},
			{"empty-cl", "GET", ok + "Content-Length:\r\n\r\nhello", 502, "upstream_bad_response", "", false},
			{"plus-cl", "GET", ok + "Content-Length: +5\r\n\r\nhello", 502, "upstream_bad_response", "", false},
			{"huge-cl", "GET", ok + "Content-Length: 18446744073709551621\r\n\r\nhello", 502, "upstream_bad_response", "", false},
			{"gzip-te", "GET", ok + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + poison, 502, "upstream_bad_response", "", false},
			{"two-te", "GET", ok + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + poison, 502, "upstream_bad_response", "", false},
			{"space-colon", "GET", ok + "Content-Length : 5\r\n\r\nhello" + poison, 502, "upstream_bad_response", "", false},
			{"no-colon", "GET", ok + "hello\r\nContent-Length: 0\r\n\r\n", 502, "upstream_bad_response", "", false},
			{"empty-name", "GET", ok + ": x\r\nContent-Length: 0\r\n\r\n", 502, "upstream_bad_response", "", false},
			{"mixed-line-ends", "GET", ok + "Content-Length: 0\n\r\n" + poison, 502, "upstream_bad_response", "", false},
			{"large-head", "GET", ok + "X: " + strings.Repeat("y", 40<<10) + "\r\n\r\n", 502, "upstream_bad_response", "", false},
			{"many-fields", "GET", ok + strings.Repeat("X: y\r\n", 500) + "\r\n", 502, "upstream_bad_response", "", false},
			{"version-2", "GET", "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", 502, "upstream_bad_response", "", false},
			{"leading-line-end", "GET", "\r\n" + ok + "Content-Length: 0\r\n\r\n", 502, "upstream_bad_response", "", false},
			{"600", "GET", "HTTP/1.1 600 High\r\nContent-Length: 0\r\n\r\n", 502, "upstream_bad_response", "", false},
			{"phrase-control", "GET", "HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n", 502, "upstream_bad_response", "", false},
			{"304-bad-cl", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: x\r\n\r\n", 502, "upstream_bad_response", "", false},
			{"E20/bad-interim", "GET", "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + poison, 502, "upstream_bad_response", "", false},
			{"101", "GET", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n" + poison, 502, "upstream_bad_response", "", false},
			{"204-body", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 70\r\n\r\n" + poison, 204, "completed", "", false},
			{"204-chunked", "GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + poison, 204, "completed", "", false},
			{"304-body", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 50\r\n\r\n" + poison, 304, "completed", "", false},
			{"head-body", "HEAD", ok + "Content-Length: 50\r\n\r\n" + poison, 200, "completed", "", false},
			{"304-chunked", "GET", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + poison, 304, "completed", "", false},
			{"head-chunked-body", "HEAD", ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + poison, 200, "completed", "", false},
			{"surplus", "GET", ok + "Content-Length: 2\r\n\r\nok" + poison, 200, "completed", "ok", false},
			{"surplus-chunked", "GET", ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + poison, 200, "completed", "ok", false},
			{"surplus-crlf", "GET", ok + "Content-Length: 2\r\n\r\nok\r\n", 200, "completed", "ok", false},
			{"close", "GET", ok + "Connection: close\r\nContent-Length: 2\r\n\r\nok", 200, "completed", "ok", false},
			{"clean", "GET", ok + "Content-Length: 2\r\n\r\nok", 200, "completed", "ok", true},
			{"clean-chunked", "GET", ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: y\r\n\r\n", 200, "completed", "ok", true},
			{"clean-head", "HEAD", ok + "Content-Length: 2\r\n\r\n", 200, "completed", "", true},
			{"E20/five", "GET", strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: x\r\nConnection: close\r\n\r\n", 5) + ok + "Content-Length: 2\r\n\r\nok", 200, "completed", "ok", true},
			{"E20/six", "GET", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 6) + ok + "Content-Length: 2\r\n\r\nok", 502, "upstream_interim_flood", "", false},
			{"E20/flood", "GET", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 20000), 502, "upstream_interim_flood", "", false},
		} {
			for _, l := range listeners {
				t.Run(fmt.Sprintf("E19/%s/%s/secure=%v", c.name, l, secure), func(t *testing.T) {
					path := fmt.Sprintf("/e19-%d-%s", i, l)
					g.b.on(path, raw(c.answer, true))
					mark := len(g.log.String())
					got, conn, r := g.ask(t, l, c.method+" "+path+" HTTP/1.1\r\n"+hostLine+"\r\n")
					if got.StatusCode != c.status || c.status == 200 && got.body != c.body {
						t.Errorf("%d %q", got.StatusCode, got.body)
					}
					g.since(t, mark, "path="+path, "reason="+c.reason)
					if got.Header.Get("Link") != "" {
						t.Error("a field of an interim response in the final one")
					}
					// The same client, and others, get their own answers.
					if status, body, err := roundTrip(conn, r, "GET /mine HTTP/1.1\r\n"+hostLine+"\r\n"); status != 200 || body != "GET /mine 0" {
						t.Errorf("the next request of the client: %d %q %v", status, body, err)
					}
					g.victim(t, l)
					rc := g.b.carrier(path)
					if c.reused {
						select {
						case <-rc.ended:
							t.Error("the connection was not kept")
						case <-time.After(10 * time.Millisecond):
						}
						return
					}
					rc.closed(t, 2*time.Second)
					if _, after, _ := strings.Cut(rc.bytes(), path+" "); strings.Count(after, "HTTP/1.1\r\nHost") > 1 {
						t.Errorf("the connection was used again: %q", after)
					}
				})
			}
		}
	}
}

// TestE19Late: what comes while a connection waits in its pool is the answer to nothing.
func TestE19Late(t *testing.T) {
	for _, secure := range []bool{false, true} {
		g := newRig(t, "", "", secure)
		late := make(chan struct{}, 1)
		g.b.on("/late", func(c *recorded, r *http.Request) bool {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			time.Sleep(30 * time.Millisecond)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
			late <- struct{}{}
			return true
		})
		for _, l := range listeners {
			got, _, _ := g.ask(t, l, "GET /late HTTP/1.1\r\n"+hostLine+"\r\n")
			if got.body != "ok" {
				t.Errorf("%q", got.body)
			}
			<-late
			g.victim(t, l)
		}
	}
}

// TestE18: a hundred refused switches leave no connection to the target behind.
func TestE18(t *testing.T) {
	g := newRig(t, "", "", false)
	g.b.on("/switch", raw("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", true))
	c := g.connect(t, "plain")
	r := bufio.NewReader(c)
	for range 100 {
		if status, _, err := roundTrip(c, r, "GET /switch HTTP/1.1\r\n"+hostLine+"\r\n"); status != 502 || err != nil {
			t.Fatal(status, err)
		}
	}
	g.b.mu.Lock()
	conns := slices.Clone(g.b.conns)
	g.b.mu.Unlock()
	for _, rc := range conns {
		rc.closed(t, 2*time.Second)
	}
}

// TestE21: a response that was cut must not look complete.
func TestE21(t *testing.T) {
	for _, secure := range []bool{false, true} {
		g := newRig(t, "", "", secure)
		abort := func(answer string, fin bool) script {
			return func(c *recorded, r *http.Request) bool {
				io.WriteString(c, answer)
				time.Sleep(20 * time.Millisecond)
				under := c.Conn
				if tc, ok := under.(*tls.Conn); ok {
					under = tc.NetConn() // no close_notify
				}
				if !fin {
					_ = under.(*net.TCPConn).SetLinger(0)
				}
				under.Close()
				return false
			}
		}
		big := strings.Repeat("z", 200<<10)
		for i, c := range []struct {
			name, answer string
			fin          bool
		}{
			{"length", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello", true},
			{"length-large", "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + big, true},
			{"length-none", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", true},
			{"length-reset", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello", false},
			{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", true},
			{"chunked-large", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n32000\r\n" + big + "\r\n", true},
			{"chunked-last", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", true},
			{"chunked-bad", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n", true},
			{"chunked-reset", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", false},
			{"until-close-reset", "HTTP/1.1 200 OK\r\n\r\nhello", false},
			{"until-close-no-close-notify", "HTTP/1.1 200 OK\r\n\r\nhello", true},
		} {
			if c.name == "until-close-no-close-notify" && !secure {
				continue // an ordinary end on plain TCP
			}
			for _, l := range listeners {
				for _, version := range []string{"1.1", "1.0"} {
					t.Run(fmt.Sprintf("E21/%s/%s/%s/secure=%v", c.name, l, version, secure), func(t *testing.T) {
						path := fmt.Sprintf("/e21-%d-%s-%s", i, l, version)
						g.b.on(path, abort(c.answer, c.fin))
						conn := g.connect(t, l)
						io.WriteString(conn, "GET "+path+" HTTP/"+version+"\r\n"+hostLine+"\r\n")
						got, err := readReply(bufio.NewReader(conn), "GET")
						if err == nil && got.err == nil {
							t.Errorf("looks complete: %d %.40q", got.StatusCode, got.body)
						}
						g.since(t, 0, "path="+path, "reason=upstream_truncated")
						g.victim(t, l)
					})
				}
			}
		}
	}
}

// TestE22: an answer before the end of the upload. The rest of the upload is nobody's next request.
func TestE22(t *testing.T) {
	g := newRig(t, "", "", false)
	g.b.on("/early", func(c *recorded, r *http.Request) bool {
		io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
		time.Sleep(50 * time.Millisecond) // and does not read the body
		return false
	})
	inner := "GET /admin HTTP/1.1\r\nHost: a.test\r\n\r\n"
	body := strings.Repeat(inner, 1<<20/len(inner))
	for _, l := range listeners {
		for _, coding := range []string{"length", "chunked"} {
			t.Run("E22/"+coding+"/"+l, func(t *testing.T) {
				request := postTo("/early", fmt.Sprintf("Content-Length: %d\r\n", len(body)), body)
				if coding == "chunked" {
					request = postTo("/early", "Transfer-Encoding: chunked\r\n", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body))
				}
				// Half of it, and the rest only when the answer has come, as a client does that reads while it sends.
				conn := g.connect(t, l)
				go io.WriteString(conn, request[:len(request)/2])
				r := bufio.NewReader(conn)
				got, err := readReply(r, "POST")
				if err != nil || got.StatusCode != 401 || got.body != "no" || !got.Close {
					t.Fatalf("%v %v", got, err)
				}
				go io.WriteString(conn, request[len(request)/2:])
				ended(t, r)
				// As fast as it goes: the target's system may take all of it before the answer is seen.
				got, conn, r = g.ask(t, l, request)
				if got.StatusCode != 401 || got.body != "no" {
					t.Errorf("%d %q", got.StatusCode, got.body)
				}
				if !got.Close {
					if status, body, err := roundTrip(conn, r, "GET /mine HTTP/1.1\r\n"+hostLine+"\r\n"); status != 502 && body != "GET /mine 0" {
						t.Errorf("the next request of the client: %d %q %v", status, body, err) // 502: the target closed while it was in the pool
					}
				}
				if asked := g.b.asked(); slices.Contains(asked, "GET /admin") {
					t.Error("the upload was read as a request")
				}
				g.victim(t, l)
			})
		}
	}
}

func TestE23(t *testing.T) {
	g := newRig(t, "", "", false)
	g.b.on("/refuse", raw0("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"))
	g.b.on("/continue", func(c *recorded, r *http.Request) bool {
		io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
		return plain(c, r)
	})
	const go100 = "HTTP/1.1 100 Continue\r\n\r\n"
	for _, l := range listeners {
		for _, c := range []struct {
			name, head, body, want string // want: the beginning of everything that is sent to the client
			wait                   bool   // for 100 before the body
		}{
			{"waits", postTo("/x", "Expect: 100-continue\r\nContent-Length: 5\r\n", ""), "hello", go100 + "HTTP/1.1 200 ", true},
			{"chunked", postTo("/x", "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n", ""), "5\r\nhello\r\n0\r\n\r\n", go100 + "HTTP/1.1 200 ", true},
			{"case", postTo("/x", "expect: 100-CONTINUE\r\nContent-Length: 5\r\n", ""), "hello", go100 + "HTTP/1.1 200 ", true},
			{"target-too", postTo("/continue", "Expect: 100-continue\r\nContent-Length: 5\r\n", ""), "hello", go100 + "HTTP/1.1 200 ", true},
			{"does-not-wait", postTo("/x", "Expect: 100-continue\r\nContent-Length: 5\r\n", "hello"), "", "HTTP/1.1 200 ", false},
			{"no-body", "GET /x HTTP/1.1\r\n" + hostLine + "Expect: 100-continue\r\n\r\n", "", "HTTP/1.1 200 ", false},
			{"http10", "POST /x HTTP/1.0\r\n" + hostLine + "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n", "hello", "HTTP/1.1 200 ", false},
			{"refused-by-target", postTo("/refuse", "Expect: 100-continue\r\nContent-Length: 5\r\n", ""), "", go100 + "HTTP/1.1 401 ", false},
			{"odd", postTo("/x", "Expect: 100-continue, x\r\nContent-Length: 5\r\n", ""), "", "HTTP/1.1 417 ", false},
		} {
			t.Run("E23/"+c.name+"/"+l, func(t *testing.T) {
				g.b.reset()
				conn := g.connect(t, l)
				io.WriteString(conn, c.head)
				var got []byte
				p := make([]byte, 4096)
				if c.wait {
					n, err := conn.Read(p)
					if got = append(got, p[:n]...); string(got) != go100 {
						t.Fatalf("%q %v", got, err)
					}
				}
				io.WriteString(conn, c.body)
				for !strings.HasPrefix(string(got), c.want) {
					n, err := conn.Read(p)
					if got = append(got, p[:n]...); err != nil {
						t.Fatalf("expected %q, found %q, %v", c.want, got, err)
					}
				}
				if strings.Count(string(got), "100 Continue") > 1 {
					t.Errorf("%q", got)
				}
				if s := g.b.got(); strings.Contains(strings.ToLower(s), "expect") || c.name == "odd" && s != "" {
					t.Errorf("the target got %q", s)
				}
				if c.name == "refused-by-target" { // the client may now send its body, which nobody wants
					io.WriteString(conn, "GET /admin HTTP/1.1\r\nHost: a.test\r\n\r\n")
					g.b.conn(t, "/refuse").closed(t, 2*time.Second)
					if !strings.Contains(string(got), "Connection: close") || slices.Contains(g.b.asked(), "GET /admin") {
						t.Errorf("%q %v", got, g.b.asked())
					}
				}
				conn.Close()
				g.victim(t, l)
			})
		}
	}
}

// raw0 answers without reading the body and waits for the end.
func raw0(answer string) script {
	return func(c *recorded, r *http.Request) bool {
		io.WriteString(c, answer)
		io.Copy(io.Discard, c.r)
		return false
	}
}

func TestE24(t *testing.T) {
	g := newRig(t, "", "", false)
	g.b.on("/slow", func(c *recorded, r *http.Request) bool {
		time.Sleep(200 * time.Millisecond)
		return plain(c, r)
	})
	for _, l := range listeners {
		t.Run("E24/order/"+l, func(t *testing.T) {
			all := make([]string, 50)
			for i := range all {
				switch {
				case i == 10:
					all[i] = "GET /slow HTTP/1.1\r\n" + hostLine + "\r\n"
				case i%3 == 1:
					all[i] = postTo(fmt.Sprintf("/%d", i), "Content-Length: 5\r\n", "hello")
				case i%3 == 2:
					all[i] = postTo(fmt.Sprintf("/%d", i), "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n")
				default:
					all[i] = fmt.Sprintf("GET /%d HTTP/1.1\r\n%s\r\n", i, hostLine)
				}
			}
			conn := g.connect(t, l)
			io.WriteString(conn, strings.Join(all, ""))
			r := bufio.NewReader(conn)
			early := 0
			for i := range all {
				want := fmt.Sprintf("GET /%d 0", i)
				switch {
				case i == 10:
					want = "GET /slow 0"
				case i%3 > 0:
					want = fmt.Sprintf("POST /%d 5", i)
				}
				got, err := readReply(r, "GET")
				if err != nil || got.body != want {
					t.Fatalf("answer %d: %q %v, expected %q", i, got.body, err, want)
				}
				if got.Close && i%3 > 0 && early < maxEarly { // what is behind it is sent again, as any client would
					early++
					ended(t, r)
					conn = g.connect(t, l)
					io.WriteString(conn, strings.Join(all[i+1:], ""))
					r = bufio.NewReader(conn)
				}
			}
		})
		t.Run("E24/close/"+l, func(t *testing.T) {
			g.b.reset()
			conn := g.connect(t, l)
			io.WriteString(conn, "GET /1 HTTP/1.1\r\n"+hostLine+"\r\nGET /2 HTTP/1.1\r\nHost: a.test\r\nX : y\r\n\r\nGET /3 HTTP/1.1\r\n"+hostLine+"\r\n")
			r := bufio.NewReader(conn)
			first, err := readReply(r, "GET")
			if err != nil || first.body != "GET /1 0" {
				t.Errorf("%q %v", first.body, err)
			}
			if second, err := readReply(r, "GET"); err != nil || second.StatusCode != 400 {
				t.Errorf("%v %v", second, err)
			}
			ended(t, r)
			if asked := g.b.asked(); len(asked) != 1 {
				t.Errorf("the target was asked %v", asked)
			}
		})
	}
}

// TestE25: what a target may have processed is not sent again.
func TestE25(t *testing.T) {
	g := newRig(t, "", "", false)
	g.b.on("/dies", func(c *recorded, r *http.Request) bool {
		io.Copy(io.Discard, r.Body)
		return false
	})
	for _, l := range listeners {
		for _, request := range []string{postTo("/dies", "Content-Length: 5\r\n", "hello"), postTo("/dies", "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n")} {
			g.victim(t, l) // leaves a connection in the pool
			g.b.reset()
			got, _, _ := g.ask(t, l, request)
			if why := g.reasonOf(t, got); got.StatusCode != 502 || why != "upstream_closed" {
				t.Errorf("%s: %d %s", l, got.StatusCode, why)
			}
			if asked := g.b.asked(); len(asked) != 1 {
				t.Errorf("%s: attempts: %v", l, asked)
			}
		}
	}
}

func TestE26(t *testing.T) {
	g := newRig(t, ", header_bytes: 256KiB", "", false)
	many := strings.TrimSuffix(strings.Repeat("a=1&", 10001), "&")
	for _, l := range listeners {
		for _, q := range []string{"", "?", "?a=1;b=2&c=%zz", "?%", "?a=%00%0d%0a", "??", "?a?b", "?a=[]{}|\\^`\"<>", "?" + many} {
			g.b.reset()
			got, _, _ := g.ask(t, l, "GET /q"+q+" HTTP/1.1\r\n"+hostLine+"\r\n")
			if s := g.b.got(); got.StatusCode != 200 || !strings.HasPrefix(s, "GET /q"+q+" HTTP/1.1\r\nHost: a.test\r\n") {
				t.Errorf("%s: %.60q: %d, the target got %.200q", l, q, got.StatusCode, s)
			}
		}
	}
}

// TestForwardedAsSent: what the target gets is what the client sent, but for the documented set.
func TestForwardedAsSent(t *testing.T) { t.Run("E27/request as sent", forwardedAsSent) }

func forwardedAsSent(t *testing.T) {
	g := newRig(t, "", "", false)
	g.b.on("/gz", raw("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nETag: \"x\"\r\nContent-Length: 5\r\n\r\n\x1f\x8b\x00\xff\n", true))
	for _, l := range listeners {
		g.b.reset()
		got, _, _ := g.ask(t, l, "GET /gz HTTP/1.1\r\naccept: */*\r\n"+hostLine+"X-b:  two  words \r\nX-A:\r\nx-b: again\r\n\r\n")
		if got.body != "\x1f\x8b\x00\xff\n" || got.Header.Get("Content-Encoding") != "gzip" || got.ContentLength != 5 {
			t.Errorf("%v %q", got.Header, got.body)
		}
		want := "GET /gz HTTP/1.1\r\nHost: a.test\r\naccept: */*\r\nX-b: two  words\r\nX-A: \r\nx-b: again\r\nVia: 1.1 countersign\r\nX-Forwarded-For: 127.0.0.1\r\n"
		if s := g.b.got(); !strings.HasPrefix(s, want) || strings.Contains(s, "Accept-Encoding") {
			t.Errorf("%q", s)
		}
	}
}

// TestE30: the client's Host chooses no address.
func TestE30(t *testing.T) {
	g := newRig(t, "", "", false)
	ops := g.addr("ops")
	for _, l := range listeners {
		for _, request := range []string{
			"GET / HTTP/1.1\r\nHost: " + ops + "\r\n\r\n", "GET http://" + ops + "/ HTTP/1.1\r\nHost: " + ops + "\r\n\r\n", "GET http://" + ops + "/ HTTP/1.1\r\n" + hostLine + "\r\n",
			"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", "GET / HTTP/1.1\r\nHost: " + g.b.addr + "\r\n\r\n",
		} {
			g.b.reset()
			got, _, _ := g.ask(t, l, request)
			if got.StatusCode != 421 && got.StatusCode != 400 || g.b.got() != "" {
				t.Errorf("%s: %q: %d, the target got %q", l, request, got.StatusCode, g.b.got())
			}
		}
		g.b.reset()
		got, _, _ := g.ask(t, l, "GET / HTTP/1.1\r\nHost: A.TEST.:1\r\nX-Skipper-Proxy: "+ops+"\r\n\r\n")
		if got.body != "GET / 0" {
			t.Errorf("%s: %d %q", l, got.StatusCode, got.body)
		}
	}
}

func TestLoop(t *testing.T) { t.Run("E31/loop", loop) }

func loop(t *testing.T) {
	l, err := net.Listen("tcp", "127.31.0.9:0") // where nobody else is given the port meanwhile
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	g := &rig{world: newWorld(t)}
	g.start(`
ops: {listen: 127.0.0.1:0}
listeners:
  plain: {listen: BACKEND, protocol: http, hosts: [{names: [a.test], routes: [{upstream: self}]}]}
upstreams:
  self: {targets: ["http://BACKEND"]}
`, addr)
	for _, request := range []string{"GET /loop HTTP/1.1\r\n" + hostLine + "\r\n", postTo("/loop", "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"), "GET /loop HTTP/1.0\r\n" + hostLine + "\r\n"} {
		start := time.Now()
		got, _, _ := g.ask(t, "plain", request)
		if got.StatusCode != 508 || time.Since(start) > 5*time.Second {
			t.Errorf("%d after %s", got.StatusCode, time.Since(start))
		}
		g.record("reason=loop_detected", "path=/loop")
	}
}

// TestE32: a target that ignores bodies and keeps the connection answers what was in the body.
func TestE32(t *testing.T) {
	g := newRig(t, "", "", false)
	g.b.on("/static", func(c *recorded, r *http.Request) bool {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstatic")
		time.Sleep(20 * time.Millisecond)
		return true // what follows is the body, which is read as a request
	})
	for _, l := range listeners {
		inner := "GET /admin HTTP/1.1\r\nHost: a.test\r\n\r\n"
		for _, request := range []string{postTo("/static", fmt.Sprintf("Content-Length: %d\r\n", len(inner)), inner),
			postTo("/static", "Content-Length: 100000\r\n", inner+strings.Repeat("x", 100000-len(inner)))} {
			answered := make(chan struct{})
			g.b.on("/admin", func(c *recorded, r *http.Request) bool {
				defer close(answered)
				return plain(c, r)
			})
			g.b.reset()
			got, _, _ := g.ask(t, l, request)
			if got.body != "static" {
				t.Errorf("%q", got.body)
			}
			select {
			case <-answered:
			case <-g.b.carrier("/static").ended: // before the target had any of the body
			case <-time.After(30 * time.Second):
				t.Fatal("the connection to the target neither went on nor ended")
			}
			g.victim(t, l)
		}
	}
}
