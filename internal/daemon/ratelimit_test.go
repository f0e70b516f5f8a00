package daemon_test

import (
	"context"
	"crypto/tls"
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

// holder is a target that keeps requests for /hold and what is below it until it is told to let them go, or they end.
type holder struct {
	addr    string
	arrived chan string
	mu      sync.Mutex
	n       map[string]int // requests by path
	held    map[string]int // how many are kept now, by path
	gates   map[string]chan struct{}
}

func newHolder(t testing.TB) *holder {
	h := &holder{arrived: make(chan string, 1000), n: map[string]int{}, held: map[string]int{}, gates: map[string]chan struct{}{}}
	s := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		h.mu.Lock()
		h.n[r.URL.Path]++
		h.mu.Unlock()
		if strings.HasPrefix(r.URL.Path, "/hold") {
			h.hold(r.URL.Path, 1)
			defer h.hold(r.URL.Path, -1)
			h.arrived <- r.URL.Path
			select {
			case <-h.gate(r.URL.Path):
			case <-r.Context().Done():
				return
			}
			if strings.HasPrefix(r.URL.Path, "/hold/die") {
				panic(http.ErrAbortHandler)
			}
		}
		fmt.Fprintf(rw, "held %d", len(body))
	})}
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	h.addr = l.Addr().String()
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return h
}

func (h *holder) gate(path string) chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gates[path] == nil {
		h.gates[path] = make(chan struct{}, 100)
	}
	return h.gates[path]
}

// hold counts by more requests for path, and tells how many there are then.
func (h *holder) hold(path string, by int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held[path] += by
	return h.held[path]
}

// let lets a request for path go.
func (h *holder) let(path string) { h.gate(path) <- struct{}{} }

// begin makes a request and returns when it is at the target. The answer comes to the channel.
func (h *holder) begin(t testing.TB, l *line, method, path string, fields ...string) <-chan said {
	t.Helper()
	out := make(chan said, 1)
	host := l.conn.ConnectionState().ServerName
	go func() { out <- l.ask(method, host, path, "", fields...) }()
	select {
	case <-h.arrived:
	case got := <-out:
		t.Fatalf("answered before it was at the target: %v", got)
	case <-time.After(5 * time.Second):
		t.Fatal("the request did not arrive")
	}
	return out
}

// retryAfter is the header as a number, -1 if it is none.
func (s said) retryAfter() int {
	n, err := strconv.Atoi(s.header.Get("Retry-After"))
	if err != nil {
		return -1
	}
	return n
}

// reference is the one that an answer of ours names.
func (s said) reference() string {
	_, ref, _ := strings.Cut(s.body, "reference: ")
	return strings.TrimSpace(ref)
}

// TestRateLimits: who is told 429, when, and who is not.
func TestRateLimits(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	const rate = "requests: 2, every: 1h}]"
	conf := routes(b.addr, `
- {match: {path: /all/*}, upstream: api, rate_limits: [{per: route, `+rate+`}
- {match: {path: /address/*}, upstream: api, rate_limits: [{per: client_address, `+rate+`}
- {match: {path: /cert/*}, upstream: api, rate_limits: [{per: client_certificate, `+rate+`}
- {match: {path: /closed/*}, allow: 'client.common_name == "ops"', upstream: api, rate_limits: [{per: route, `+rate+`}
- {match: {path: /two/*}, upstream: api, rate_limits: [{per: route, requests: 100, every: 1h}, {per: client_address, `+rate+`}
- {match: {path: /here/*}, respond: {body: here}, rate_limits: [{per: route, `+rate+`}
- {match: {path: /reload/*}, upstream: api, rate_limits: [{per: route, `+rate+`}
- {match: {path: /busy}, upstream: busy}
- {match: {path: /burst/*}, upstream: api, rate_limits: [{per: route, requests: 1, every: 1h, burst: 5}]}
- {upstream: api}`, `
- {match: {path: /cert/*}, upstream: api, rate_limits: [{per: client_certificate, `+rate+`}
- {upstream: api}`, "  busy: {targets: [\"http://"+b.addr+"\"], max_requests: 1}")
	conf = strings.ReplaceAll(conf, "every: 1h}]\n", "every: 1h}]}\n")
	conf = strings.Replace(conf, "names: [b.test]", "names: [b.test]\n        rate_limits: [{per: host, requests: 6, every: 1h}]", 1)
	names := map[string]*tls.Config{}
	for _, name := range []string{"alice", "bob", "ops"} {
		cert := w.ca.Client(name)
		names[name], names[name+" at b"] = w.client("a.test", cert), w.client("b.test", cert)
	}
	names["nobody at b"] = w.client("b.test", nil)
	start := func(t *testing.T) {
		if w.main != nil {
			w.main.Shutdown(t.Context()) // what was counted goes with it
		}
		w.start(conf, "")
	}
	for _, version := range versions {
		start(t)
		t.Run(version, func(t *testing.T) {
			ask := func(t *testing.T, who string, last byte, target string) said {
				t.Helper()
				return w.line(t, version, names[who], last).get(target)
			}
			ok := func(t *testing.T, who string, last byte, target string) {
				t.Helper()
				if got := ask(t, who, last, target); got.status != 200 {
					t.Errorf("%s from .%d: %v", who, last, got)
				}
			}
			refused := func(t *testing.T, who string, last byte, target string, least, most int) {
				t.Helper()
				before := b.seen()
				got := ask(t, who, last, target)
				if n := got.retryAfter(); got.status != 429 || n < least || n > most || b.seen() != before || !strings.Contains(got.body, "rate_limited") {
					t.Errorf("%s from .%d: %v; expected 429 and from %d to %d", who, last, got, least, most)
				}
				w.find(t, "ref="+got.reference(), "reason=rate_limited", "fault=client", "status=429")
			}
			t.Run("F17/whoever asks", func(t *testing.T) {
				ok(t, "alice", 1, "/all/x")
				ok(t, "bob", 2, "/all/y")
				refused(t, "ops", 3, "/all/z", 1790, 1800)
				refused(t, "alice", 1, "/%61ll/%7a", 1790, 1800)
				ok(t, "alice", 1, "/other")
			})
			t.Run("F17/by address", func(t *testing.T) {
				ok(t, "alice", 1, "/address/x")
				ok(t, "bob", 1, "/address/x")
				refused(t, "ops", 1, "/address/x", 1790, 1800)
				ok(t, "alice", 2, "/address/x")
			})
			t.Run("F17/by certificate", func(t *testing.T) {
				ok(t, "alice", 1, "/cert/x")
				ok(t, "alice", 2, "/cert/x")
				refused(t, "alice", 3, "/cert/x", 1790, 1800)
				ok(t, "bob", 1, "/cert/x")
				ok(t, "nobody at b", 1, "/cert/x")
				ok(t, "nobody at b", 1, "/cert/x")
				refused(t, "nobody at b", 1, "/cert/x", 1790, 1800)
				ok(t, "nobody at b", 2, "/cert/x")
				ok(t, "alice at b", 1, "/cert/x")
			})
			t.Run("F17/of a host", func(t *testing.T) {
				ok(t, "bob at b", 1, "/") // with those before six: the one that was refused does not count
				ok(t, "bob at b", 9, "/")
				refused(t, "alice at b", 1, "/", 590, 600)
				ok(t, "alice", 1, "/")
			})
			t.Run("F17/who is refused by policy takes nothing", func(t *testing.T) {
				for range 5 {
					if got := ask(t, "alice", 1, "/closed/x"); got.status != 403 {
						t.Errorf("%v; expected 403", got)
					}
				}
				ok(t, "ops", 1, "/closed/x")
			})
			t.Run("F17/who is refused by one takes nothing of the other", func(t *testing.T) {
				for i := range 60 {
					if got := ask(t, "alice", 1, "/two/x"); i >= 2 && got.status != 429 {
						t.Fatal(got)
					}
				}
				for i := range byte(40) {
					ok(t, "alice", 10+i, "/two/x")
				}
			})
			t.Run("F17/answers of ours", func(t *testing.T) {
				ok(t, "alice", 1, "/here/x")
				ok(t, "alice", 1, "/here/x")
				refused(t, "alice", 1, "/here/x", 1790, 1800)
			})
			t.Run("F17/at once on one connection", func(t *testing.T) {
				l := w.line(t, version, names["alice"], 1)
				status := map[int]int{}
				if version == "HTTP1" {
					for range 20 {
						status[l.get("/burst/x").status]++
					}
				} else {
					var mu sync.Mutex
					var wg sync.WaitGroup
					for range 20 {
						wg.Go(func() {
							got := l.get("/burst/x")
							mu.Lock()
							defer mu.Unlock()
							status[got.status]++
						})
					}
					wg.Wait()
				}
				if status[200] != 5 || status[429] != 15 {
					t.Errorf("%v", status)
				}
				if got := l.get("/other"); got.status != 200 { // the connection goes on
					t.Error(got)
				}
			})
			t.Run("F17/outlasts a reload", func(t *testing.T) {
				l := w.line(t, version, names["alice"], 1)
				if got := l.get("/reload/x"); got.status != 200 {
					t.Error(got)
				}
				w.reload(conf, "")
				ok(t, "bob", 2, "/reload/x")
				refused(t, "bob", 2, "/reload/x", 1790, 1800)
				w.reload(strings.Replace(conf, "- {match: {path: /all/*}", "- {match: {path: /new}, upstream: api}\n          - {match: {path: /all/*}", 1), "")
				refused(t, "bob", 2, "/reload/x", 1790, 1800)
				if got := l.get("/reload/x"); got.status != 429 {
					t.Error(got)
				}
			})
			t.Run("F17/a limit that a reload brings holds for open connections", func(t *testing.T) {
				w.reload(conf, "")
				l := w.line(t, version, names["alice"], 1)
				if got := l.get("/other"); got.status != 200 {
					t.Error(got)
				}
				w.reload(strings.Replace(conf, "protocol: https", "protocol: https\n    rate_limits: [{per: listener, requests: 2, every: 1h}]", 1), "")
				for i := range 3 {
					if got := l.get("/other"); got.status != map[int]int{0: 200, 1: 200, 2: 429}[i] {
						t.Errorf("request %d: %v", i, got)
					}
				}
				w.reload(conf, "")
				if got := l.get("/other"); got.status != 200 {
					t.Errorf("after it was taken away: %v", got)
				}
			})
		})
	}
	for _, version := range versions {
		t.Run(version+"/Retry-After is that of the request", func(t *testing.T) {
			start(t)
			h := newHolder(t)
			w.reload(strings.Replace(conf, "busy: {targets: [\"http://"+b.addr, "busy: {targets: [\"http://"+h.addr, 1), "")
			w.reload(strings.Replace(strings.Replace(conf, "path: /busy", "path: /hold", 1), "busy: {targets: [\"http://"+b.addr, "busy: {targets: [\"http://"+h.addr, 1), "")
			done := h.begin(t, w.line(t, version, names["bob"], 1), "GET", "/hold")
			l := w.line(t, version, names["alice"], 1)
			for range 3 {
				l.get("/all/x")
			}
			if got := l.get("/all/x"); got.status != 429 || got.retryAfter() < 1700 {
				t.Error(got)
			}
			if got := l.ask("POST", "a.test", "/all/x", "", "Content-Type", "application/grpc", "Te", "trailers"); got.status != 200 || got.retryAfter() < 1700 {
				t.Error("gRPC:", got)
			}
			if got := l.get("/hold"); got.status != 503 || got.retryAfter() != 1 {
				t.Error(got)
			}
			h.let("/hold")
			if got := <-done; got.status != 200 {
				t.Error(got)
			}
		})
	}
}

// TestConcurrencyLimits: a place is free again however the request that had it ends.
func TestConcurrencyLimits(t *testing.T) {
	w := newWorld(t)
	h := newHolder(t)
	sockets, _ := wsBackend(t, func(head string) string {
		_, key, _ := strings.Cut(head, "Sec-WebSocket-Key: ")
		key, _, _ = strings.Cut(key, "\r\n")
		return switching(acceptOf(key))
	})
	const one = "concurrency: [{per: client_certificate, requests: 1}]"
	conf := routes(h.addr, `
- {match: {path: /hold/cert/*}, upstream: api, `+one+`}
- {match: {path: /hold/route/*}, upstream: api, concurrency: [{per: route, requests: 1}]}
- {match: {path: /hold/address/*}, upstream: api, concurrency: [{per: client_address, requests: 1}]}
- {match: {path: /hold/brief/*}, upstream: brief, `+one+`}
- {match: {path: /hold/die/*}, upstream: api, `+one+`}
- {match: {path: /gone}, upstream: gone, `+one+`}
- {match: {path: /closed}, allow: 'client.common_name == "ops"', upstream: api, concurrency: [{per: route, requests: 1}]}
- {match: {path: /here}, respond: {body: here}, concurrency: [{per: route, requests: 1}]}
- {match: {path: /ws}, upstream: sockets, upgrade: [websocket], `+one+`}
- {upstream: api}`, "", fmt.Sprintf(`
  brief: {targets: ["http://%s"], timeouts: {response: 1s}}
  gone: {targets: ["http://%s"]}
  sockets: {targets: ["http://%s"]}`, h.addr, freeAddr(t), sockets))
	conf = strings.Replace(conf, "names: [b.test]", "names: [b.test]\n        concurrency: [{per: host, requests: 1}]", 1)
	w.start(conf, "")
	alice, bob := w.ca.Client("alice"), w.ca.Client("bob")
	a, atB := w.client("a.test", alice), w.client("b.test", alice)
	for _, version := range versions {
		other := w.line(t, version, w.client("a.test", bob), 2)
		// limited wants that there is no place, and free that there is one in the end.
		limited := func(t *testing.T, l *line, path string) {
			t.Helper()
			got := l.get(path)
			if got.status != 429 || got.retryAfter() != 1 || !strings.Contains(got.body, "concurrency_limited") {
				t.Errorf("%v; expected 429", got)
			}
			w.find(t, "ref="+got.reference(), "reason=concurrency_limited", "fault=client", "status=429", "path="+path)
		}
		free := func(t *testing.T, conf *tls.Config, path string) {
			t.Helper()
			// One whose client is gone would be let go in place of the next.
			await(t, 10*time.Second, "end at the target", func() bool { return h.hold(path, 0) == 0 })
			l := w.line(t, version, conf, 1)
			out := make(chan said, 1)
			var got said
			await(t, 10*time.Second, "place", func() bool {
				go func() { out <- l.get(path) }()
				select {
				case got = <-out:
					return got.status == 200
				case <-h.arrived:
					h.let(path)
					got = <-out
					return got.status != 0 && got.status != 429
				}
			})
			// The place is given back before the record is made, and after the client has its answer.
			w.find(t, "kind=request", "client="+l.conn.LocalAddr().String(), fmt.Sprint("status=", got.status))
		}
		for _, c := range []struct {
			name, path string
			end        func(t *testing.T, l *line, cancel func())
			reason     string
		}{
			{"it is answered", "/hold/cert/done", func(*testing.T, *line, func()) { h.let("/hold/cert/done") }, "completed"},
			{"the client goes away", "/hold/cert/away", func(t *testing.T, l *line, _ func()) {
				l.conn.NetConn().(*net.TCPConn).SetLinger(0)
				l.conn.NetConn().Close()
			}, "client_aborted"},
			{"the client resets it", "/hold/cert/reset", func(t *testing.T, l *line, cancel func()) {
				cancel()
			}, "client_aborted"},
			{"the target closes", "/hold/die/x", func(*testing.T, *line, func()) { h.let("/hold/die/x") }, "upstream_closed"},
			{"the target is too slow", "/hold/brief/x", func(*testing.T, *line, func()) {}, "upstream_timeout"},
		} {
			if version == "HTTP1" && c.name == "the client resets it" {
				continue // it has no such thing
			}
			t.Run(version+"/F17/free when "+c.name, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				mark, method := w.mark(), "GET"
				if strings.HasPrefix(c.path, "/hold/die") { // a GET would be sent again
					method = "POST"
				}
				l := w.line(t, version, a, 1).on(ctx)
				done := h.begin(t, l, method, c.path)
				limited(t, w.line(t, version, a, 3), c.path)
				if l.mux != nil {
					limited(t, l.on(t.Context()), c.path)
				}
				second := h.begin(t, other, method, c.path[:len(c.path)-1]) // somebody else is not concerned
				h.let(c.path[:len(c.path)-1])
				if got := <-second; got.status != map[bool]int{true: 502, false: 200}[strings.HasPrefix(c.path, "/hold/die")] {
					t.Error(got)
				}
				c.end(t, l, cancel)
				<-done
				free(t, a, c.path)
				await(t, 10*time.Second, "record", func() bool { return strings.Contains(w.log.String()[mark:], `"reason":"`+c.reason+`"`) })
			})
		}
		t.Run(version+"/F17/WebSocket", func(t *testing.T) {
			var end func()
			if version == "HTTP1" {
				l := w.line(t, version, a, 1)
				_, _ = io.WriteString(l.conn, wsRequest("/ws"))
				if resp, err := http.ReadResponse(l.r, nil); err != nil || resp.StatusCode != 101 {
					t.Fatal(resp, err)
				}
				end = func() { l.conn.Close() }
			} else {
				l := w.line(t, version, a, 1)
				if got := l.get("/"); got.status != 200 { // now the settings of the other side are here
					t.Fatal(got)
				}
				r, pw := io.Pipe()
				req := must(http.NewRequest("CONNECT", "https://a.test/ws", r))(t)
				req.Header[":protocol"] = []string{"websocket"}
				req.Header.Set("Sec-Websocket-Version", "13")
				if resp, err := l.mux.RoundTrip(req); err != nil || resp.StatusCode != 200 {
					t.Fatal(resp, err)
				}
				end = func() { pw.Close() }
			}
			for range 2 {
				limited(t, w.line(t, version, a, 3), "/ws")
				time.Sleep(300 * time.Millisecond) // past a sweep
			}
			end()
			await(t, 10*time.Second, "place", func() bool {
				got := w.line(t, version, a, 3).get("/ws") // no WebSocket, so the target answers what is no HTTP
				return got.status != 429
			})
		})
		t.Run(version+"/F17/no target", func(t *testing.T) {
			l := w.line(t, version, a, 1)
			for range 4 {
				if got := l.get("/gone"); got.status != 502 {
					t.Error(got)
				}
			}
		})
		t.Run(version+"/F17/answers of ours and refusals", func(t *testing.T) {
			l := w.line(t, version, a, 1)
			for range 4 {
				if got := l.get("/closed"); got.status != 403 {
					t.Error(got)
				}
				if got := l.get("/here"); got.status != 200 {
					t.Error(got)
				}
			}
			if got := w.line(t, version, w.client("a.test", w.ca.Client("ops")), 1).get("/closed"); got.status != 200 {
				t.Error(got)
			}
		})
		t.Run(version+"/F17/whom it counts", func(t *testing.T) {
			for _, c := range []struct {
				path             string
				same, apart      *tls.Config
				sameAt, apartAt  byte
				nobodyIsLetApart bool
			}{
				{"/hold/cert/who", a, w.client("a.test", bob), 2, 1, false},
				{"/hold/address/who", w.client("a.test", bob), a, 1, 2, false},
				{"/hold/route/who", w.client("a.test", bob), nil, 2, 0, true},
			} {
				done := h.begin(t, w.line(t, version, a, 1), "GET", c.path)
				limited(t, w.line(t, version, c.same, c.sameAt), c.path)
				if !c.nobodyIsLetApart {
					second := h.begin(t, w.line(t, version, c.apart, c.apartAt), "GET", c.path)
					h.let(c.path)
					h.let(c.path)
					<-second
				} else {
					h.let(c.path)
				}
				if got := <-done; got.status != 200 {
					t.Error(got)
				}
			}
			done := h.begin(t, w.line(t, version, atB, 1), "GET", "/hold/x")
			limited(t, w.line(t, version, w.client("b.test", bob), 2), "/any")
			h.let("/hold/x")
			<-done
			free(t, atB, "/any")
		})
		t.Run(version+"/F17/across reloads", func(t *testing.T) {
			done := h.begin(t, w.line(t, version, a, 1), "GET", "/hold/route/reload")
			w.reload(strings.Replace(conf, "{per: route, requests: 1}", "{per: route, requests: 2}", 1), "")
			second := h.begin(t, w.line(t, version, a, 1), "GET", "/hold/route/reload")
			limited(t, w.line(t, version, a, 1), "/hold/route/reload")
			w.reload(conf, "")
			h.let("/hold/route/reload")
			select {
			case <-done:
			case <-second:
			}
			limited(t, w.line(t, version, a, 1), "/hold/route/reload")
			h.let("/hold/route/reload")
			select {
			case <-done:
			case <-second:
			}
			free(t, a, "/hold/route/reload")
		})
	}
}

// TestConnectionsOfAddress: limits of an address that are written in the file hold for loopback too.
func TestConnectionsOfAddress(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	alice := w.client("a.test", w.ca.Client("alice"))
	limits := func(l string) string {
		return strings.Replace(routes(b.addr, "", "", ""), "protocol: https", "protocol: https\n    limits: {"+l+"}", 1)
	}
	// turnedAway connects so many times and wants to be reset before anything is read.
	turnedAway := func(t *testing.T, times int, last byte, why string) {
		t.Helper()
		mark := w.mark()
		for range times {
			n, c, err := 0, net.Conn(nil), error(nil)
			if c, err = from(last, w.addr("public")); err == nil {
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				n, err = c.Read(make([]byte, 1))
				c.Close()
			}
			if n != 0 || err == nil || !strings.Contains(err.Error(), "reset") {
				t.Errorf("%d %v, expected a reset", n, err)
			}
		}
		await(t, 10*time.Second, why, func() bool { return strings.Count(w.log.String()[mark:], `"reason":"`+why+`"`) == times })
	}
	w.start(limits("connections_per_address: 2"), "")
	for _, version := range versions {
		t.Run(version+"/F20/connections", func(t *testing.T) {
			one, two := w.line(t, version, alice, 1), w.line(t, version, alice, 1)
			turnedAway(t, 1, 1, "address_connections")
			other := w.line(t, version, alice, 2)
			for _, l := range []*line{one, two, other} {
				if got := l.get("/"); got.status != 200 {
					t.Error(got)
				}
			}
			one.conn.Close()
			await(t, 10*time.Second, "place", func() bool {
				c, err := from(1, w.addr("public"))
				if err != nil {
					return false
				}
				defer c.Close()
				return tls.Client(c, alice).Handshake() == nil
			})
			two.conn.Close()
			other.conn.Close()
			w.awaitMetric(`countersign_connections{listener="public"}`, "0")
		})
	}
	w.main.Shutdown(t.Context())
	w.start(limits("handshakes_per_address: {rate: 1, burst: 2}"), "")
	for i, version := range versions {
		t.Run(version+"/F18/new connections", func(t *testing.T) {
			last := byte(10 * (i + 1))
			w.line(t, version, alice, last)
			l := w.line(t, version, alice, last)
			turnedAway(t, 5, last, "address_handshakes") // before a second brings the next
			w.line(t, version, alice, last+1)
			for range 5 { // requests are something else
				if got := l.get("/"); got.status != 200 {
					t.Error(got)
				}
			}
			time.Sleep(1100 * time.Millisecond)
			if got := w.line(t, version, alice, last).get("/"); got.status != 200 {
				t.Error(got)
			}
		})
	}
}

// TestForwardedHeaders: where a request comes from, as proxies in front say and as targets are told.
func TestForwardedHeaders(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	conf := func(forwarded string) string {
		return strings.Replace(routes(b.addr, `
- {match: {path: /limited/*}, upstream: api, rate_limits: [{per: client_address, requests: 2, every: 1h}]}
- {match: {path: /cel}, allow: 'ip_in(connection.client_ip, "203.0.113.0/24")', upstream: api}
- {match: {path: /source, source: [203.0.113.0/24]}, respond: {body: listed}}
- {match: {path: /source}, respond: {body: unlisted}}
- {upstream: api}`, "", ""), "protocol: https", "protocol: https\n    forwarded: "+forwarded, 1)
	}
	const trusted = "trusted: [127.9.9.10, 10.0.0.0/8]"
	addresses := func(n int) string { return strings.TrimSuffix(strings.Repeat("192.0.2.1, ", n), ", ") }
	alice := w.client("a.test", w.ca.Client("alice"))
	for i, c := range []struct {
		name, conf string
		from       byte
		fields     []string
		status     int
		reason     string
		seen       map[string]string // at the target; "" for not there
		client     string            // of the record, without port
	}{
		{"F24/31 addresses", "{mode: append, " + trusted + "}", 10, []string{"X-Forwarded-For", addresses(31)}, 400, "too_many_forwarded", nil, ""},
		{"F24/31 addresses in lines", "{mode: preserve_from_trusted, " + trusted + "}", 10, []string{"X-Forwarded-For", addresses(16), "X-Forwarded-For", addresses(15)}, 400, "too_many_forwarded", nil, ""},
		{"F24/31 in Forwarded", "{client_address: forwarded, " + trusted + "}", 10, []string{"Forwarded", strings.Repeat("for=192.0.2.1,", 30) + "for=192.0.2.1"}, 400, "too_many_forwarded", nil, ""},
		{"D15/Forwarded that cannot be read", "{client_address: forwarded, " + trusted + "}", 10, []string{"Forwarded", `for="192.0.2.1`}, 400, "bad_header", nil, ""},
		{"D15/from anybody, replace", "{mode: replace}", 9, []string{"X-Forwarded-For", "6.6.6.6", "X-Forwarded-Proto", "http", "X-Forwarded-Host", "evil.test", "X-Forwarded-Port", "1", "Forwarded", "for=6.6.6.6", "X-Real-IP", "6.6.6.6"}, 200, "completed",
			map[string]string{"X-Forwarded-For": "127.9.9.9", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "a.test", "Forwarded": "", "X-Real-Ip": ""}, "127.9.9.9"},
		{"D15/from anybody, append", "{mode: append, " + trusted + "}", 9, []string{"X-Forwarded-For", "6.6.6.6"}, 200, "completed", map[string]string{"X-Forwarded-For": "127.9.9.9"}, "127.9.9.9"},
		{"D15/from anybody, preserve", "{mode: preserve_from_trusted, " + trusted + ", client_address: x_forwarded_for}", 9, []string{"X-Forwarded-For", "6.6.6.6", "X-Forwarded-Proto", "http", "X-Forwarded-Host", "evil.test"}, 200, "completed",
			map[string]string{"X-Forwarded-For": "127.9.9.9", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "a.test"}, "127.9.9.9"},
		{"D15/31 from anybody", "{mode: append, " + trusted + "}", 9, []string{"X-Forwarded-For", addresses(31)}, 200, "completed", map[string]string{"X-Forwarded-For": "127.9.9.9"}, "127.9.9.9"},
		{"D15/trusted, and not asked", "{mode: replace}", 10, []string{"X-Forwarded-For", "6.6.6.6"}, 200, "completed", map[string]string{"X-Forwarded-For": "127.9.9.10"}, "127.9.9.10"},
		{"D15/the left end is a stranger's", "{mode: append, " + trusted + ", client_address: x_forwarded_for}", 10, []string{"X-Forwarded-For", "6.6.6.6, 203.0.113.7, 10.1.1.1"}, 200, "completed",
			map[string]string{"X-Forwarded-For": "6.6.6.6, 203.0.113.7, 10.1.1.1, 127.9.9.10"}, "203.0.113.7"},
		{"D15/no address ends the search", "{mode: append, " + trusted + ", client_address: x_forwarded_for}", 10, []string{"X-Forwarded-For", "203.0.113.7, <script>, 10.1.1.1"}, 200, "completed",
			map[string]string{"X-Forwarded-For": "203.0.113.7, unknown, 10.1.1.1, 127.9.9.10"}, "10.1.1.1"},
		{"D15/the other header", "{mode: append, " + trusted + ", client_address: forwarded}", 10, []string{"X-Forwarded-For", "6.6.6.6"}, 200, "completed", map[string]string{"X-Forwarded-For": "6.6.6.6, 127.9.9.10"}, "127.9.9.10"},
		{"30 addresses", "{mode: append, " + trusted + "}", 10, []string{"X-Forwarded-For", addresses(30)}, 200, "completed", map[string]string{"X-Forwarded-For": addresses(30) + ", 127.9.9.10"}, "127.9.9.10"},
		{"two lines", "{mode: append, " + trusted + "}", 10, []string{"X-Forwarded-For", "203.0.113.7", "X-Forwarded-For", "203.0.113.8:99", "X-Forwarded-Proto", "http"}, 200, "completed",
			map[string]string{"X-Forwarded-For": "203.0.113.7, 203.0.113.8:99, 127.9.9.10", "X-Forwarded-Proto": "https"}, "127.9.9.10"},
		{"preserve", "{mode: preserve_from_trusted, " + trusted + ", client_address: x_forwarded_for}", 10, []string{"X-Forwarded-For", "203.0.113.7", "X-Forwarded-Proto", "http", "X-Forwarded-Host", "front.test", "X-Forwarded-Port", "80"}, 200, "completed",
			map[string]string{"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "front.test", "X-Forwarded-Port": "80"}, "203.0.113.7"},
		{"D15/preserve, two of one", "{mode: preserve_from_trusted, " + trusted + "}", 10, []string{"X-Forwarded-Proto", "http", "X-Forwarded-Proto", "https", "X-Forwarded-Host", "a b"}, 200, "completed",
			map[string]string{"X-Forwarded-For": "127.9.9.10", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "a.test"}, "127.9.9.10"},
		{"Forwarded", "{client_address: forwarded, rfc7239: true, mode: append, " + trusted + "}", 10, []string{"Forwarded", `for="[2001:db8::7]:1";proto=http, for=10.2.2.2`}, 200, "completed",
			map[string]string{"Forwarded": `for="[2001:db8::7]:1";proto=http, for=10.2.2.2, for=127.9.9.10;host="a.test";proto=https`}, "2001:db8::7"},
	} {
		if i == 0 {
			w.start(conf(c.conf), "")
		} else {
			w.reload(conf(c.conf), "")
		}
		for _, version := range versions {
			t.Run(version+"/"+c.name, func(t *testing.T) {
				before, mark := b.seen(), w.mark()
				path := fmt.Sprintf("/%d/%s", i, version)
				l := w.line(t, version, alice, c.from)
				got := l.get(path, c.fields...)
				rec := w.since(t, mark, path)
				if got.status != c.status || rec["reason"] != c.reason || (b.seen() != before) != (c.status == 200) {
					t.Fatalf("%v; %v", got, rec)
				}
				h := b.last()
				for name, want := range c.seen {
					if v := strings.Join(h.Values(name), " AND "); v != want {
						t.Errorf("%s: %q at the target, expected %q", name, v, want)
					}
				}
				client := fmt.Sprint(rec["client"])
				if host, _, err := net.SplitHostPort(client); err == nil {
					client = host
				}
				if c.client != "" && client != c.client {
					t.Errorf("client %v in the record, expected %s", rec["client"], c.client)
				}
				if c.status == 200 { // another request of the connection is another client's
					l.get("/next")
					if v := b.last().Get("X-Forwarded-For"); v != fmt.Sprintf("127.9.9.%d", c.from) {
						t.Errorf("the next one has X-Forwarded-For %q", v)
					}
				}
			})
		}
	}
	byHeader := conf("{mode: append, " + trusted + ", client_address: x_forwarded_for}")
	for i, version := range versions {
		w.reload(byHeader, "")
		said := func(n int) string { return fmt.Sprintf("203.0.113.%d", 10*i+n) }
		t.Run(version+"/limits", func(t *testing.T) {
			proxy := w.line(t, version, alice, 10)
			for n := range 4 {
				want := map[bool]int{true: 200, false: 429}[n < 2]
				if got := proxy.get("/limited/x", "X-Forwarded-For", fmt.Sprintf("6.6.6.%d, %s", n, said(1))); got.status != want {
					t.Errorf("request %d: %v", n, got)
				}
			}
			if got := proxy.get("/limited/x", "X-Forwarded-For", said(2)); got.status != 200 {
				t.Errorf("another client: %v", got)
			}
			stranger := w.line(t, version, alice, byte(100+i))
			for n := range 4 {
				want := map[bool]int{true: 200, false: 429}[n < 2]
				if got := stranger.get("/limited/x", "X-Forwarded-For", said(3+n)); got.status != want {
					t.Errorf("F17/a stranger's request %d: %v", n, got)
				}
			}
		})
		t.Run(version+"/expressions and conditions", func(t *testing.T) {
			proxy, stranger := w.line(t, version, alice, 10), w.line(t, version, alice, 9)
			for _, c := range []struct {
				l      *line
				list   string
				status int
				body   string
			}{
				{stranger, "203.0.113.9", 403, "unlisted"}, {proxy, "6.6.6.6", 403, "unlisted"}, {proxy, "203.0.113.9, 6.6.6.6", 403, "unlisted"},
				{proxy, "203.0.113.9", 200, "listed"}, {proxy, "6.6.6.6, 203.0.113.9, 10.9.9.9", 200, "listed"}, {proxy, "6.6.6.6", 403, "unlisted"},
			} {
				if got := c.l.get("/cel", "X-Forwarded-For", c.list); got.status != c.status {
					t.Errorf("%q: %v", c.list, got)
				}
				if got := c.l.get("/source", "X-Forwarded-For", c.list); got.body != c.body {
					t.Errorf("%q: %v", c.list, got)
				}
			}
		})
		t.Run(version+"/D15/after a reload nobody is believed", func(t *testing.T) {
			l := w.line(t, version, alice, 10)
			if got := l.get("/cel", "X-Forwarded-For", "203.0.113.9"); got.status != 200 {
				t.Fatal(got)
			}
			w.reload(conf("{mode: replace}"), "")
			got := l.get("/cel", "X-Forwarded-For", "203.0.113.9")
			if got.status != 403 {
				t.Errorf("still believed: %v", got)
			}
			_, ref, _ := strings.Cut(got.body, "reference: ")
			if rec := w.record("ref=" + strings.TrimSpace(ref)); !strings.HasPrefix(fmt.Sprint(rec["client"]), "127.9.9.10:") {
				t.Errorf("client %v", rec["client"])
			}
			if got := l.get("/source"); got.body != "unlisted" {
				t.Error(got)
			}
			if l.get("/x"); b.last().Get("X-Forwarded-For") != "127.9.9.10" {
				t.Errorf("%v", b.last())
			}
		})
	}
}
