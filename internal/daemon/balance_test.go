package daemon_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// node is a target that counts. It speaks HTTP/1.1 and HTTP/2, and gRPC's health protocol.
type node struct {
	name, addr string
	sick       atomic.Bool // what its health checks say
	accepted   atomic.Int64
	behave     atomic.Pointer[http.HandlerFunc] // nil for an answer with the name
	mu         sync.Mutex
	n          map[string]int // requests by path
}

// acts are what a request can have a node do, in a header X- and its name.
var acts = map[string]http.HandlerFunc{
	"hang": func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	},
	"die": func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		panic(http.ErrAbortHandler)
	},
	"stall": func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprint(rw, "beginning")
		_ = http.NewResponseController(rw).Flush()
		<-r.Context().Done()
	},
	"trickle": func(rw http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			fmt.Fprint(rw, "x")
			_ = http.NewResponseController(rw).Flush()
			time.Sleep(50 * time.Millisecond)
		}
	},
	"fail": func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(503) },
	"refuse": func(rw http.ResponseWriter, r *http.Request) {
		rw.WriteHeader(500)
		_ = http.NewResponseController(rw).Flush()
		<-r.Context().Done()
	},
	"late": func(_ http.ResponseWriter, r *http.Request) { // ends by itself when its client no longer waits
		n, _ := strconv.Atoi(strings.TrimSuffix(r.Header.Get("Grpc-Timeout"), "m"))
		time.Sleep(time.Duration(n) * time.Millisecond)
		panic(http.ErrAbortHandler)
	},
	"part":     func(rw http.ResponseWriter, _ *http.Request) { part(rw, 200) },
	"partfail": func(rw http.ResponseWriter, _ *http.Request) { part(rw, 500) },
	"switch": func(rw http.ResponseWriter, r *http.Request) {
		c, _, err := http.NewResponseController(rw).Hijack()
		if err == nil {
			_, _ = io.WriteString(c, switching(wsAccept()))
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	},
}

// part answers with a part of a body.
func part(rw http.ResponseWriter, status int) {
	rw.Header().Set("Content-Length", "100")
	rw.WriteHeader(status)
	fmt.Fprint(rw, "part")
	_ = http.NewResponseController(rw).Flush()
	panic(http.ErrAbortHandler)
}

func newNode(t testing.TB, name string) *node {
	b := &node{name: name, n: map[string]int{}}
	s := &http.Server{Protocols: new(http.Protocols), Handler: b}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	s.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			b.accepted.Add(1)
		}
	}
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	b.addr = l.Addr().String()
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return b
}

func (b *node) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/healthz":
		if b.sick.Load() {
			rw.WriteHeader(500)
		}
		return
	case "/grpc.health.v1.Health/Check":
		rw.Header().Set("Content-Type", "application/grpc")
		rw.Header().Set("Trailer", "Grpc-Status")
		status := byte(1) // SERVING
		if b.sick.Load() {
			status = 2
		}
		_, _ = rw.Write([]byte{0, 0, 0, 0, 2, 8, status})
		rw.Header().Set("Grpc-Status", "0")
		return
	}
	b.mu.Lock()
	b.n[r.URL.Path]++
	b.mu.Unlock()
	if f := b.behave.Load(); f != nil {
		(*f)(rw, r)
		return
	}
	if f := acts[r.Header.Get("X-"+b.name)]; f != nil {
		f(rw, r)
		return
	}
	_, _ = io.Copy(io.Discard, r.Body)
	fmt.Fprint(rw, b.name)
}

// does has the node answer by f; nil for its name.
func (b *node) does(f http.HandlerFunc) {
	if f == nil {
		b.behave.Store(nil)
		return
	}
	b.behave.Store(&f)
}

func (b *node) seen(path string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.n[path]
}

// total is how many requests for path all nodes got.
func total(nodes []*node, path string) (n int) {
	for _, b := range nodes {
		n += b.seen(path)
	}
	return n
}

// pools makes a configuration with a route to each pool under its own name; N1 to N3 stand for nodes.
func pools(nodes []*node, settings map[string]string) string {
	var ofA, more strings.Builder
	for name, s := range settings {
		fmt.Fprintf(&ofA, "- {match: {path: /%s/*}, upstream: %s}\n", name, name)
		if !strings.Contains(s, "targets:") {
			s = "targets: [N1, N2, N3], " + s
		}
		fmt.Fprintf(&more, "  %s: {%s}\n", name, strings.TrimSuffix(s, ", "))
	}
	conf := routes(nodes[0].addr, ofA.String()+"- {upstream: api}", "", more.String())
	for i, b := range nodes {
		conf = strings.ReplaceAll(conf, fmt.Sprintf("N%d", i+1), `"http://`+b.addr+`"`)
	}
	return conf
}

func threeNodes(t testing.TB) []*node {
	return []*node{newNode(t, "one"), newNode(t, "two"), newNode(t, "three")}
}

// spread makes n requests and counts who answered.
func (l *line) spread(t testing.TB, n int, path string, fields ...string) map[string]int {
	t.Helper()
	by := map[string]int{}
	for range n {
		got := l.get(path, fields...)
		if got.status != 200 {
			t.Fatal(got)
		}
		by[got.body]++
	}
	return by
}

// TestBalance: the shares of each algorithm, and what keeps a client at its target.
func TestBalance(t *testing.T) {
	w := newWorld(t)
	nodes := threeNodes(t)
	const weighted = "targets: [{url: N1, weight: 3}, {url: N2, weight: 2}, {url: N3}], "
	settings := map[string]string{
		"rr": "balance: round_robin", "wrr": weighted + "balance: weighted_round_robin", "least": "balance: least_requests", "p2c": "balance: p2c", "random": "balance: random", "wrandom": weighted + "balance: weighted_random",
		"header": "balance: maglev, hash: {on: header, name: X-Tenant}", "cookie": "balance: ring_hash, hash: {on: cookie, name: session}", "source": "balance: maglev, hash: source",
		"cert": "balance: ring_hash, hash: client_certificate", "path": "balance: maglev, hash: path",
		"zero": "targets: [{url: N1, weight: 0}, N2, {url: N3, state: draining}]", "none": "targets: [{url: N1, state: draining}, {url: N2, weight: 0}, {url: N3, state: disabled}]",
		"stick": "sticky: {cookie: {lifetime: 1h}}", "stick2": "sticky: {cookie: {name: other, same_site: strict, session: true, domain: a.test}}", "bycert": "sticky: {client_certificate: true}",
		"over2": "protocol_version: http2, balance: round_robin", "stickover2": "protocol_version: http2, sticky: {cookie: {}}",
	}
	settings["stickover2"] = "protocol_version: http2, sticky: {cookie: {lifetime: 24h}}"
	conf := pools(nodes, settings)
	w.start(conf, "")
	alice := w.client("a.test", w.ca.Client("alice"))
	bobs := w.client("a.test", w.ca.Client("bob"))
	for _, version := range versions {
		l := w.line(t, version, alice, 1)
		_ = l.conn.SetDeadline(time.Now().Add(3 * time.Minute)) // there is much to do until it is over
		t.Run(version+"/upstream_no_target", func(t *testing.T) {
			mark := w.mark()
			if got := l.get("/none/x"); got.status != 503 || got.retryAfter() < 1 {
				t.Error(got)
			}
			if rec := w.since(t, mark, "/none/x"); rec["reason"] != "upstream_no_target" {
				t.Error(rec)
			}
		})
		t.Run(version+"/shares", func(t *testing.T) {
			for name, want := range map[string]map[string]int{"rr": {"one": 20, "two": 20, "three": 20}, "wrr": {"one": 30, "two": 20, "three": 10},
				"over2": {"one": 20, "two": 20, "three": 20}, "zero": {"two": 60}} {
				if got := l.spread(t, 60, "/"+name+"/x"); fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("%s: %v, expected %v", name, got, want)
				}
			}
			// Over HTTP/2 an answer can be there before its exchange has ended, which then still counts.
			if got := l.spread(t, 60, "/least/x"); got["one"] < 12 || got["two"] < 12 || got["three"] < 12 {
				t.Errorf("least: %v", got)
			}
			if got := l.spread(t, 300, "/random/x"); got["one"] < 55 || got["two"] < 55 || got["three"] < 55 {
				t.Errorf("random: %v", got)
			}
			if got := l.spread(t, 600, "/wrandom/x"); got["one"] < 230 || got["one"] > 370 || got["three"] < 50 || got["three"] > 150 {
				t.Errorf("weighted_random: %v", got)
			}
			if got := l.spread(t, 300, "/p2c/x"); len(got) < 2 { // by latency: a target that was slow once may get nothing for a while
				t.Errorf("p2c: %v", got)
			}
		})
		t.Run(version+"/hash", func(t *testing.T) {
			for name, key := range map[string]func(i int) []string{"header": func(i int) []string { return []string{"X-Tenant", fmt.Sprint("t", i)} }, "cookie": func(i int) []string {
				return []string{"Cookie", fmt.Sprintf("a=%d; session=s%d; b", time.Now().UnixNano(), i)}
			},
				"path": func(int) []string { return nil }} {
				by := map[string]int{}
				for i := range 40 {
					path := "/" + name + "/x"
					if name == "path" {
						path += fmt.Sprint(i)
					}
					first := l.get(path, key(i)...)
					for _, again := range []*line{l, w.line(t, versions[i%2], bobs, byte(i+2))} {
						if got := again.get(path, key(i)...); got.body != first.body || got.status != 200 {
							t.Errorf("%s, key %d: %v, first %v", name, i, got, first)
						}
					}
					by[first.body]++
				}
				if len(by) != 3 {
					t.Errorf("%s: 40 keys are at %v", name, by)
				}
				if name != "path" {
					if got := l.spread(t, 60, "/"+name+"/x"); len(got) != 3 {
						t.Errorf("%s, requests without it: %v", name, got)
					}
				}
			}
			by := map[string]int{}
			for i := range byte(30) {
				here := w.line(t, version, alice, 10+i).spread(t, 3, "/source/x")
				there := w.line(t, version, bobs, 10+i).spread(t, 3, "/source/x")
				if len(here) != 1 || fmt.Sprint(here) != fmt.Sprint(there) {
					t.Errorf("source: %v and %v", here, there)
				}
				by[fmt.Sprint(here)]++
			}
			if len(by) != 3 {
				t.Errorf("source: 30 addresses are at %v", by)
			}
			for _, name := range []string{"cert", "bycert"} {
				by := map[string]int{}
				for i := 0; i < 20 || len(by) < 3 && i < 60; i++ { // 20 miss a target once in a thousand times
					conf := w.client("a.test", w.ca.Client(fmt.Sprint("c", i)))
					here := w.line(t, version, conf, 1).spread(t, 3, "/"+name+"/x")
					there := w.line(t, versions[i%2], conf, 2).spread(t, 3, "/"+name+"/x", "Client-Cert", ":AA==:")
					if len(here) != 1 || fmt.Sprint(here) != fmt.Sprint(there) {
						t.Errorf("%s: %v and %v", name, here, there)
					}
					by[fmt.Sprint(here)]++
				}
				if len(by) != 3 {
					t.Errorf("%s: 60 certificates are at %v", name, by)
				}
			}
		})
		t.Run(version+"/cookie", func(t *testing.T) {
			for path, want := range map[string]string{"/stick/x": "countersign_stick=; Path=/; HttpOnly; Secure; SameSite=Lax; Max-Age=3600", "/stickover2/x": "countersign_stickover2=; Path=/; HttpOnly; Secure; SameSite=Lax; Max-Age=86400",
				"/stick2/x": "other=; Path=/; HttpOnly; Secure; SameSite=Strict; Domain=a.test"} {
				first := l.get(path)
				set := first.header.Values("Set-Cookie")
				if len(set) != 1 || first.status != 200 {
					t.Fatal(first)
				}
				pair, attributes, _ := strings.Cut(set[0], ";")
				name, value, _ := strings.Cut(pair, "=")
				attributes = name + "=;" + attributes
				for _, a := range strings.Split(want, "; ") {
					if !strings.Contains(attributes+";", a+";") && !strings.Contains(attributes, a+";") {
						t.Errorf("%s: %q; expected %s", path, set[0], a)
					}
				}
				if strings.Contains(want, "Max-Age") != strings.Contains(attributes, "Max-Age") || strings.Contains(want, "Domain") != strings.Contains(attributes, "Domain") {
					t.Errorf("%s: %q; expected %s", path, set[0], want)
				}
				for _, again := range []*line{l, w.line(t, versions[0], alice, 2), w.line(t, versions[1], bobs, 3)} {
					for range 7 {
						if got := again.get(path, "Cookie", "a=b; "+pair+"; c=d"); got.body != first.body || len(got.header.Values("Set-Cookie")) != 0 {
							t.Errorf("%s: %v, first at %s", path, got, first.body)
						}
					}
				}
				flipped := []byte(value)
				flipped[len(flipped)/2] ^= 1
				short := value[:len(value)-4]
				foreign := l.get(map[bool]string{true: "/stick2/x", false: "/stick/x"}[path != "/stick2/x"]).header.Get("Set-Cookie")
				_, foreign, _ = strings.Cut(strings.Split(foreign, ";")[0], "=")
				for kind, bad := range map[string]string{"forged": string(flipped), "cut": short, "empty": "", "of another pool": foreign, "long": strings.Repeat("A", 4000), "longer": value + "AAAA", "a target": nodes[0].addr, "octets": "%00;;=\"", "quoted": `"` + value + `"`} {
					by := map[string]int{}
					for range 12 {
						got := l.get(path, "Cookie", name+"="+bad)
						if got.status != 200 || len(got.header.Values("Set-Cookie")) != 1 {
							t.Errorf("%s, %s: %v", path, kind, got)
						}
						by[got.body]++
					}
					if len(by) != 3 {
						t.Errorf("%s, %s: followed to %v", path, kind, by)
					}
				}
				l = w.line(t, version, alice, 1)
			}
		})
	}
	// One of the three drains, is disabled, and comes back.
	for _, version := range versions {
		t.Run(version+"/draining and disabled", func(t *testing.T) {
			w.reload(conf, "")
			l := w.line(t, version, alice, 1)
			pair := ""
			for pair == "" {
				if got := l.get("/stick/x"); got.body == "two" {
					pair, _, _ = strings.Cut(got.header.Get("Set-Cookie"), ";")
				}
			}
			l.spread(t, 30, "/rr/x")
			before := [3]int64{nodes[0].accepted.Load(), 0, nodes[2].accepted.Load()}
			with := func(state string) {
				changed := strings.ReplaceAll(conf, `"http://`+nodes[1].addr+`", "http`, `{url: "http://`+nodes[1].addr+`", state: `+state+`}, "http`)
				if changed == conf {
					t.Fatal("nothing changed")
				}
				w.reload(changed, "")
			}
			with("draining")
			if got := l.spread(t, 40, "/rr/x"); got["two"] != 0 {
				t.Errorf("draining: %v", got)
			}
			if got := l.get("/stick/x", "Cookie", pair); got.body != "two" {
				t.Errorf("draining, with the cookie: %v", got)
			}
			with("disabled")
			if got := l.spread(t, 40, "/rr/x"); got["two"] != 0 {
				t.Errorf("disabled: %v", got)
			}
			if got := l.get("/stick/x", "Cookie", pair); got.body == "two" || got.status != 200 || len(got.header.Values("Set-Cookie")) != 1 {
				t.Errorf("disabled, with the cookie: %v", got)
			}
			w.reload(conf, "")
			if got := l.spread(t, 30, "/rr/x"); got["two"] != 10 {
				t.Errorf("back: %v", got)
			}
			if got := l.get("/stick/x", "Cookie", pair); got.body != "two" {
				t.Errorf("back, with the cookie: %v", got)
			}
			for _, i := range []int{0, 2} {
				// An answer can be there before the connection that brought it is back: then the next request makes one more.
				if n := nodes[i].accepted.Load() - before[i]; n > 2 {
					t.Errorf("%d new connections to target %s, which did not change", n, nodes[i].name)
				}
			}
		})
	}
	t.Run("errors", func(t *testing.T) {
		for _, s := range []string{"balance: maglev", "hash: source", "sticky: {client_certificate: false}", "targets: [{url: N1, weight: 1000}]", "targets: [{url: N1, priority: 10}]", "outlier: {max_ejection_percent: 51}", "failover_threshold: 101"} {
			w.refusedAtLoad(t, pools(nodes, map[string]string{"x": s}), "upstreams.x")
		}
	})
}

// TestTargetsThatFail: checks, ejections, priorities and panic.
func TestTargetsThatFail(t *testing.T) {
	w := newWorld(t)
	const quick = "interval: 100ms, timeout: 10s, healthy: 1, unhealthy: 1}" // what is sick says so
	nodes := threeNodes(t)
	conf := pools(nodes, map[string]string{
		"http1": "health: {path: /healthz, " + quick, "http2": "protocol_version: http2, health: {path: /healthz, " + quick, "grpc": "protocol_version: http2, health: {grpc: on, " + quick,
		"prio":  "targets: [N1, {url: N2, priority: 1}, {url: N3, priority: 1}], health: {path: /healthz, " + quick,
		"panic": "panic_threshold: 50, health: {path: /healthz, " + quick,
		"eject": "outlier: {consecutive_5xx: 3, base_ejection_time: 4s, interval: 1s}",
	})
	w.start(conf, "")
	alice := w.client("a.test", w.ca.Client("alice"))
	healthy := func(pool, values string) {
		t.Helper()
		for i, v := range strings.Fields(values) {
			w.awaitMetric(fmt.Sprintf(`countersign_upstream_healthy{target="%s",upstream="%s"}`, nodes[i].addr, pool), v)
		}
	}
	for _, version := range versions {
		l := w.line(t, version, alice, 1)
		_ = l.conn.SetDeadline(time.Now().Add(3 * time.Minute))
		for _, pool := range []string{"http1", "http2", "grpc"} {
			t.Run(version+"/health "+pool, func(t *testing.T) {
				healthy(pool, "1 1 1")
				nodes[1].sick.Store(true)
				healthy(pool, "1 0 1")
				if got := l.spread(t, 30, "/"+pool+"/x"); got["two"] != 0 || len(got) != 2 {
					t.Errorf("%v", got)
				}
				nodes[0].sick.Store(true)
				nodes[2].sick.Store(true)
				healthy(pool, "0 0 0")
				if got := l.spread(t, 30, "/"+pool+"/x"); len(got) != 3 {
					t.Errorf("none is well: %v", got)
				}
				for _, b := range nodes {
					b.sick.Store(false)
				}
				healthy(pool, "1 1 1")
				if got := l.spread(t, 30, "/"+pool+"/x"); len(got) != 3 {
					t.Errorf("%v", got)
				}
			})
		}
		t.Run(version+"/priorities", func(t *testing.T) {
			healthy("prio", "1 1 1")
			if got := l.spread(t, 20, "/prio/x"); got["one"] != 20 {
				t.Errorf("%v", got)
			}
			nodes[0].sick.Store(true)
			healthy("prio", "0 1 1")
			if got := l.spread(t, 20, "/prio/x"); got["one"] != 0 || len(got) != 2 {
				t.Errorf("%v", got)
			}
			nodes[0].sick.Store(false)
			healthy("prio", "1 1 1")
			if got := l.spread(t, 20, "/prio/x"); got["one"] != 20 {
				t.Errorf("%v", got)
			}
		})
		t.Run(version+"/panic", func(t *testing.T) {
			nodes[0].sick.Store(true)
			healthy("panic", "0 1 1")
			if got := l.spread(t, 30, "/panic/x"); got["one"] != 0 {
				t.Errorf("two of three are well: %v", got)
			}
			nodes[1].sick.Store(true)
			healthy("panic", "0 0 1")
			if got := l.spread(t, 30, "/panic/x"); len(got) != 3 {
				t.Errorf("one of three is well: %v", got)
			}
			nodes[0].sick.Store(false)
			nodes[1].sick.Store(false)
			healthy("panic", "1 1 1")
		})
		t.Run(version+"/ejection", func(t *testing.T) {
			bad := func(rw http.ResponseWriter, r *http.Request) { rw.WriteHeader(500) }
			nodes[1].does(bad)
			status := map[int]int{}
			for range 30 {
				status[l.get("/eject/x").status]++
			}
			if status[500] != 3 || status[200] != 27 {
				t.Errorf("%v; expected that three answers are enough", status)
			}
			nodes[0].does(bad)
			nodes[2].does(bad)
			before := total(nodes, "/eject/y")
			for range 30 {
				l.get("/eject/y")
			}
			if n := total(nodes, "/eject/y") - before; n != 30 || nodes[0].seen("/eject/y") == 0 || nodes[2].seen("/eject/y") == 0 {
				t.Errorf("the floor of half: %d requests came, %d and %d to the others", n, nodes[0].seen("/eject/y"), nodes[2].seen("/eject/y"))
			}
			for _, b := range nodes {
				b.does(nil)
			}
			await(t, 20*time.Second, "return of all", func() bool { return len(l.spread(t, 9, "/eject/x")) == 3 })
		})
	}
}

// TestOutcomes: what answers say about their target, and when. Three of a kind in a row eject it.
func TestOutcomes(t *testing.T) {
	w := newWorld(t)
	nodes := threeNodes(t)
	cases := []struct {
		name, limit string
		acts        string // of the first target, one for each request; "whole" is none
		ejected     bool
	}{
		{"heads", "consecutive_5xx", "refuse refuse refuse", true}, // whose bodies do not end
		{"few", "consecutive_5xx", "refuse refuse", false},
		{"fails", "consecutive_5xx", "partfail partfail partfail", true},
		{"dies", "consecutive_local_origin_failure", "die die die", true},
		{"posts", "consecutive_local_origin_failure", "die die die", true}, // which are not tried again
		{"whole", "consecutive_local_origin_failure", "die die whole die die", false},
		{"other", "consecutive_local_origin_failure", "die die refuse die die", false},
		{"cut", "consecutive_local_origin_failure", "part part part part", false},                  // who reads slowly can bring that about
		{"left", "consecutive_local_origin_failure", "stall stall stall stall", false},             // by the client
		{"deadline", "consecutive_local_origin_failure", "late late late late", false},             // the client's
		{"stream", "consecutive_5xx", "fail fail stall fail fail", false},                          // good from its beginning on
		{"declined", "consecutive_local_origin_failure", "connect connect connect connect", false}, // a WebSocket: answered 200
		{"between", "consecutive_5xx", "fail fail switch fail fail", false},
		{"beside", "consecutive_5xx", "fail fail switch fail fail fail", true}, // the WebSocket is still there
	}
	both := func(do func(i int, pool, client, target string)) {
		for i, c := range cases {
			for _, client := range versions {
				for _, target := range versions {
					switch {
					case strings.Contains(c.acts, "switch") && (client != "HTTP1" || target != "HTTP1"):
					case strings.Contains(c.acts, "connect") && (client != "HTTP2" || target != "HTTP1"):
					case strings.Contains(c.acts, "late") && (client != "HTTP2" || target != "HTTP2"):
					default:
						do(i, c.name+client+target, client, target)
					}
				}
			}
		}
	}
	settings := map[string]string{}
	both(func(i int, pool, _, target string) {
		settings[pool] = "targets: [N1, {url: N2, priority: 1}], outlier: {consecutive_5xx: 0, consecutive_local_origin_failure: 0, base_ejection_time: 5m}"
		settings[pool] = strings.Replace(settings[pool], cases[i].limit+": 0", cases[i].limit+": 3", 1)
		if target == "HTTP2" {
			settings[pool] += ", protocol_version: http2"
		}
	})
	upgrade := func(s string) string { return "upgrade: [websocket], " + s }
	w.start(strings.NewReplacer("upstream: between", upgrade("upstream: between"), "upstream: beside", upgrade("upstream: beside"),
		"upstream: declined", upgrade("upstream: declined")).Replace(pools(nodes, settings)), "")
	alice := w.client("a.test", w.ca.Client("alice"))
	both(func(i int, pool, client, _ string) {
		t.Run(pool, func(t *testing.T) {
			t.Parallel()
			path := "/" + pool + "/x"
			for _, act := range strings.Fields(cases[i].acts) {
				l, mark, fields := w.line(t, client, alice, 1), w.mark(), []string{"X-One", act}
				switch act {
				case "switch":
					fields = append(fields, "Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", wsKey)
				case "late":
					fields = append(fields, "Content-Type", "application/grpc", "Grpc-Timeout", "100m")
				}
				switch act {
				case "refuse", "switch": // counts before the client hears of it
					if resp := must(l.send("GET", "a.test", path, "", fields...))(t); resp.StatusCode != 500 && resp.StatusCode != 101 {
						t.Fatal(resp.Status)
					}
					continue
				case "stall":
					must(l.send("GET", "a.test", path, "", fields...))(t)
					l.conn.NetConn().Close()
				case "late":
					if got := l.ask("POST", "a.test", path, "abc", fields...); got.header.Get("Grpc-Status") != "4" {
						t.Fatal(got)
					}
				case "connect":
					r, pw := io.Pipe()
					req := must(http.NewRequest("CONNECT", "https://a.test"+path, r))(t)
					req.Header = http.Header{":protocol": {"websocket"}, "Sec-Websocket-Version": {"13"}}
					resp := must(l.mux.RoundTrip(req))(t)
					if pw.Close(); resp.StatusCode != 502 {
						t.Fatal(resp.Status)
					}
				default:
					method := "GET"
					if cases[i].name == "posts" {
						method = "POST"
					}
					if got := l.ask(method, "a.test", path, "", fields...); strings.HasPrefix(act, "part") != (got.err != nil) {
						t.Fatal(act, got)
					}
				}
				if rec := w.since(t, mark, path); (rec["reason"] == "client_aborted") != (act == "stall") {
					t.Errorf("%s: %v", act, rec)
				}
			}
			want := "one"
			if cases[i].ejected {
				want = "two"
			}
			if got := w.line(t, client, alice, 1).get(path); got.body != want {
				t.Errorf("%v, expected %s", got, want)
			}
		})
	})
}

// TestPatience: what is waited for, how long, and what is tried again.
func TestPatience(t *testing.T) {
	w := newWorld(t)
	nodes := threeNodes(t)
	silent := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { silent.Close() })
	gone := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	gone.Close()
	h := newHolder(t)
	limits := "timeouts: {response: 500ms, idle: 500ms}"
	target := func(addr any) string { return fmt.Sprintf(`targets: ["http://%v"], `, addr) }
	base := map[string]string{
		"connect": fmt.Sprintf(`targets: ["https://%v"], tls: {server_name: api.internal, trust_store: clients}, timeouts: {connect: 300ms}`, silent.Addr()),
		"gone":    target(gone.Addr()), "plain": "targets: [N1], " + limits, "total": "targets: [N1], timeouts: {total: 700ms}",
		"retry": "targets: [{url: N1, weight: 999}, N2], retries: {attempts: 1, budget_percent: 100}, " + limits, "pertry": "targets: [{url: N1, weight: 999}, N2], retries: {attempts: 1, per_try_timeout: 300ms}, timeouts: {response: 20s}",
		"alone": "targets: [N1], retries: {attempts: 2}, " + limits, "noretry": "targets: [N1, N2]", "totalretry": "targets: [N1, N2], retries: {attempts: 5, per_try_timeout: 800ms}, timeouts: {total: 1400ms}",
		"over2": "targets: [N1], protocol_version: http2, " + limits, "retry2": "targets: [{url: N1, weight: 999}, N2], protocol_version: http2, retries: {attempts: 1, budget_percent: 100}, " + limits,
		"conns": target(h.addr) + "max_connections: 1", "reqs": target(h.addr) + "max_requests: 1", "queue": target(h.addr) + "max_requests: 1, max_pending: 1, queue_timeout: 2s",
		"patient": target(h.addr) + "max_connections: 1, max_pending: 1, queue_timeout: 10s",
	}
	conf := pools(nodes, base)
	for _, name := range []string{"conns", "reqs", "queue", "patient"} {
		conf = strings.Replace(conf, fmt.Sprintf("{path: /%s/*}, upstream: %s", name, name), fmt.Sprintf("{path: /hold/%s/*}, upstream: %s", name, name), 1)
	}
	conf = strings.Replace(conf, "protocol: https", "protocol: https\n    limits: {body_bytes: 1KiB}", 1)
	w.start(conf, "")
	alice := w.client("a.test", w.ca.Client("alice"))
	// Less than it takes where the limit in question does not count, and more than this machine stands still as a rule.
	const most = 4500 * time.Millisecond
	for _, version := range versions {
		waits := []struct {
			name, method, pool string
			one, two           string // what the targets do
			body               string
			status             int
			reason             string
			least              time.Duration
			times              int // that targets were asked
		}{
			{"no connection in time", "GET", "connect", "", "", "", 504, "upstream_connect_timeout", 300 * time.Millisecond, 0},
			{"nobody there", "GET", "gone", "", "", "", 502, "upstream_connect_failed", 0, 0},
			{"no answer in time", "GET", "plain", "hang", "", "", 504, "upstream_timeout", 500 * time.Millisecond, 1},
			{"no answer in time over HTTP/2", "GET", "over2", "hang", "", "", 504, "upstream_timeout", 500 * time.Millisecond, 1},
			{"no answer to a body in time", "POST", "plain", "hang", "", "12345", 504, "upstream_timeout", 500 * time.Millisecond, 1},
			{"E21/no end in time", "GET", "plain", "stall", "", "", 0, "upstream_timeout", 500 * time.Millisecond, 1},
			{"E21/no end in time over HTTP/2", "GET", "over2", "stall", "", "", 0, "upstream_timeout", 500 * time.Millisecond, 1},
			{"total, before the head", "GET", "total", "hang", "", "", 504, "upstream_timeout", 700 * time.Millisecond, 1},
			{"total, in the body", "GET", "total", "trickle", "", "", 0, "upstream_timeout", 700 * time.Millisecond, 1},
			{"total, in retries", "GET", "totalretry", "hang", "hang", "", 504, "upstream_timeout", 1400 * time.Millisecond, 2},
			{"closed", "POST", "noretry", "die", "die", "", 502, "upstream_closed", 0, 1},
			{"E32/POST is never tried again", "POST", "retry", "die", "die", "1", 502, "upstream_closed", 0, 1},
			{"E32/POST is never tried again over HTTP/2", "POST", "retry2", "die", "die", "1", 502, "", 0, 1},
			{"E32/PATCH is never tried again", "PATCH", "retry", "die", "die", "1", 502, "upstream_closed", 0, 1},
			{"E32/POST that is too slow", "POST", "retry", "hang", "hang", "1", 504, "upstream_timeout", 500 * time.Millisecond, 1},
			{"an answer that has begun is not asked again", "GET", "retry", "stall", "stall", "", 0, "upstream_timeout", 500 * time.Millisecond, 1},
			{"an error is an answer", "GET", "retry", "fail", "fail", "", 503, "completed", 0, 1},
			{"both are too slow", "GET", "pertry", "hang", "hang", "", 504, "upstream_timeout", 600 * time.Millisecond, 2},
		}
		mark := w.mark()
		results := make([]struct {
			said
			took time.Duration
		}, len(waits))
		var all sync.WaitGroup
		for i, c := range waits {
			l := w.line(t, version, alice, 1)
			all.Go(func() {
				start := time.Now()
				results[i].said = l.ask(c.method, "a.test", fmt.Sprintf("/%s/%s%d", c.pool, version, i), c.body, "X-One", c.one, "X-Two", c.two)
				results[i].took = time.Since(start)
			})
		}
		all.Wait()
		for i, c := range waits {
			t.Run(version+"/"+c.name, func(t *testing.T) {
				got, path := results[i], fmt.Sprintf("/%s/%s%d", c.pool, version, i)
				if c.status != 0 && (got.status != c.status || got.err != nil) || c.status == 0 && got.err == nil {
					t.Errorf("%v; expected %d", got.said, c.status)
				}
				if got.took < c.least || got.took > most {
					t.Errorf("took %v; expected from %v to %v", got.took, c.least, most)
				}
				if rec := w.since(t, mark, path); c.reason != "" && rec["reason"] != c.reason {
					t.Errorf("record %v", rec)
				}
				if n := total(nodes, path); n != c.times {
					t.Errorf("targets were asked %d times, expected %d", n, c.times)
				}
			})
		}
		for i, c := range []struct {
			name, method, pool, body string
			one                      string
		}{
			{"GET", "GET", "retry", "", "die"}, {"PUT that is whole", "PUT", "retry", "12345", "die"}, {"DELETE that is too slow", "DELETE", "retry", "", "hang"},
			{"per try", "GET", "pertry", "", "hang"}, {"over HTTP/2", "GET", "retry2", "", "die"},
		} {
			t.Run(version+"/tried again: "+c.name, func(t *testing.T) {
				answered := 0
				for k := range 2 {
					path := fmt.Sprintf("/%s/again%s%d%d", c.pool, version, i, k)
					mark := w.mark()
					got := w.line(t, version, alice, 1).ask(c.method, "a.test", path, c.body, "X-One", c.one)
					rec := w.since(t, mark, path)
					if c.body != "" && version == "HTTP2" && got.status == 502 && nodes[1].seen(path) == 0 {
						continue // a body is whole only if it was there with its head
					}
					// The first try may have met a connection that was closed meanwhile, which is no try.
					if n := nodes[0].seen(path); got.status != 200 || got.body != "two" || n < 1 || n > 2 || nodes[1].seen(path) != 1 || rec["retried"] != true || rec["reason"] != "completed" {
						t.Errorf("%v, %d and %d times; %v", got, n, nodes[1].seen(path), rec)
					}
					answered++
				}
				if answered == 0 && version == "HTTP1" {
					t.Error("none was tried again")
				}
			})
		}
		if version == "HTTP1" { // over HTTP/2 a body is whole only if it came with its head
			t.Run(version+"/E32/a body that is not whole is not sent again", func(t *testing.T) {
				path, mark, l := "/retry/streamed", w.mark(), w.line(t, version, alice, 1)
				fmt.Fprintf(l.conn, "PUT %s HTTP/1.1\r\nHost: a.test\r\nX-One: die\r\nContent-Length: 10\r\n\r\n12345", path)
				time.Sleep(50 * time.Millisecond)
				fmt.Fprint(l.conn, "67890")
				resp, err := http.ReadResponse(l.r, nil)
				if rec := w.since(t, mark, path); err != nil || resp.StatusCode != 502 || rec["reason"] != "upstream_closed" || total(nodes, path) != 1 {
					t.Errorf("%v %v; %d times; %v", resp, err, total(nodes, path), rec)
				}
			})
		}
		t.Run(version+"/F17/limits", func(t *testing.T) {
			for name, why := range map[string]string{"conns": "upstream_busy", "reqs": "upstream_circuit_open"} {
				path := "/hold/" + name + "/x"
				done := h.begin(t, w.line(t, version, alice, 1), "GET", path)
				mark, start := w.mark(), time.Now()
				if got := w.line(t, version, alice, 1).get(path); got.status != 503 || got.retryAfter() != 1 || time.Since(start) > most {
					t.Errorf("%s: %v after %v", name, got, time.Since(start))
				}
				if rec := w.since(t, mark, path); rec["reason"] != why {
					t.Errorf("%s: %v", name, rec)
				}
				h.let(path)
				if got := <-done; got.status != 200 {
					t.Error(got)
				}
			}
			path := "/hold/queue/x"
			done := h.begin(t, w.line(t, version, alice, 1), "GET", path)
			queued, mark, start := make(chan said, 1), w.mark(), time.Now()
			second, third := w.line(t, version, alice, 1), w.line(t, version, alice, 1)
			go func() { queued <- second.get(path) }()
			w.awaitMetric(`countersign_upstream_pending{upstream="queue"}`, "1")
			if got := third.get(path); got.status != 503 || got.retryAfter() != 1 {
				t.Error(got)
			}
			if rec := w.since(t, mark, path); rec["reason"] != "upstream_circuit_open" && rec["reason"] != "upstream_busy" { // the latter behind somebody who waits
				t.Errorf("a third one: %v", rec)
			}
			mark = w.mark()
			if got := <-queued; got.status != 503 || got.retryAfter() != 1 || time.Since(start) < 2*time.Second || time.Since(start) > most {
				t.Errorf("%v after %v", got, time.Since(start))
			}
			if rec := w.since(t, mark, path); rec["reason"] != "upstream_queue_timeout" {
				t.Errorf("a second one: %v", rec)
			}
			h.let(path)
			<-done
			path = "/hold/patient/x"
			done = h.begin(t, w.line(t, version, alice, 1), "GET", path)
			go func() { queued <- second.get(path) }()
			w.awaitMetric(`countersign_upstream_pending{upstream="patient"}`, "1")
			h.let(path)
			h.let(path)
			if got := <-done; got.status != 200 {
				t.Error(got)
			}
			if got := <-queued; got.status != 200 {
				t.Errorf("who waited: %v", got)
			}
			<-h.arrived
		})
		t.Run(version+"/F09/body_too_large", func(t *testing.T) {
			before := total(nodes, "/plain/body")
			mark := w.mark()
			if got := w.line(t, version, alice, 1).ask("POST", "a.test", "/plain/body", strings.Repeat("x", 1025)); got.status != 413 {
				t.Error(got)
			}
			if rec := w.since(t, mark, "/plain/body"); rec["reason"] != "body_too_large" || total(nodes, "/plain/body") != before {
				t.Errorf("%v", rec)
			}
			if got := w.line(t, version, alice, 1).ask("POST", "a.test", "/plain/body", strings.Repeat("x", 1024)); got.status != 200 {
				t.Error(got)
			}
			// Of a length that is not told before.
			l := w.line(t, version, alice, 1)
			mark = w.mark()
			var got said
			if l.mux == nil {
				_, _ = fmt.Fprintf(l.conn, "POST /plain/chunks HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n")
				for range 5 {
					_, _ = fmt.Fprintf(l.conn, "100\r\n%s\r\n", strings.Repeat("x", 256))
				}
				resp, err := http.ReadResponse(l.r, nil)
				if err != nil {
					t.Fatal(err)
				}
				got.status = resp.StatusCode
			} else {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				req := must(http.NewRequestWithContext(ctx, "POST", "https://a.test/plain/chunks", io.MultiReader(bytes.NewReader(make([]byte, 800)), bytes.NewReader(make([]byte, 800)))))(t)
				resp, err := l.mux.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				got.status = resp.StatusCode
			}
			if rec := w.since(t, mark, "/plain/chunks"); got.status != 413 || rec["reason"] != "body_too_large" {
				t.Errorf("%v %v", got, rec)
			}
		})
	}
}

// TestRetryBudget: retries do not become a load of their own.
func TestRetryBudget(t *testing.T) {
	w := newWorld(t)
	nodes := threeNodes(t)
	var held atomic.Int64
	release := make(chan struct{})
	nodes[0].does(func(rw http.ResponseWriter, r *http.Request) { // holds all until they are there, and closes
		held.Add(1)
		<-release
		panic(http.ErrAbortHandler)
	})
	var again atomic.Int64
	freed := make(chan struct{})
	nodes[1].does(func(rw http.ResponseWriter, r *http.Request) {
		again.Add(1)
		<-freed
	})
	w.start(pools(nodes, map[string]string{"x": "targets: [{url: N1, weight: 999}, N2], retries: {attempts: 1, budget_percent: 1}"}), "")
	alice := w.client("a.test", w.ca.Client("alice"))
	const n = 20
	out := make(chan said, n)
	for i := range n {
		l := w.line(t, versions[i%2], alice, 1)
		go func() { out <- l.get("/x/y") }()
	}
	await(t, 5*time.Second, "requests", func() bool { return held.Load() == n })
	close(release)
	for range n - 3 {
		select {
		case got := <-out:
			if got.status != 502 {
				t.Error(got)
			}
		case <-time.After(5 * time.Second):
			close(freed)
			t.Fatalf("%d were tried again, expected 3", again.Load())
		}
	}
	await(t, 5*time.Second, "those who are tried again", func() bool { return again.Load() >= 3 })
	if got := again.Load(); got != 3 {
		t.Errorf("%d were tried again, expected 3", got)
	}
	close(freed)
	for range 3 {
		if got := <-out; got.status != 200 {
			t.Error(got)
		}
	}
}
