package daemon_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/internal/testpki"
)

// steadyConfig is what the tests of many reloads vary: CERT is the certificate of the host, EXTRA a further route or host,
// A and B are the weights of the two targets, and PLAIN is a pool that comes and goes.
const steadyConfig = `
ops: {listen: 127.0.0.1:0}
trust_stores: {clients: {ca_bundle: {file: clients.pem}}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - names: [a.test]
        certificates: [CERT]
        client_auth: {mode: require, trust_store: clients}
        routes:
          - {match: {path: /h1/ws/*}, upgrade: [websocket], upstream: h1}
          - {match: {path: /h1/*}, upstream: PLAIN}
          - {match: {path: /h2/*}, upstream: h2}
EXTRA
upstreams:
  h1: {targets: [{url: "http://BACKEND", weight: A}, {url: "http://OTHER", weight: B}]}
  PLAIN: {targets: [{url: "http://BACKEND", weight: B}, {url: "http://OTHER", weight: A}]}
  h2: {targets: [{url: "http://BACKEND", weight: B}, {url: "http://OTHER", weight: A}], protocol_version: http2}
`

// variant is the nth configuration: each differs from the one before in certificates, routes or weights.
func (w *world) variant(n int, s, other *stage) string {
	cert := "{cert: server.pem, key: server.key}"
	if n/3%2 == 1 {
		cert += ", {cert: second.pem, key: second.key}"
	}
	extra := ""
	if (n+1)/3%2 == 1 {
		extra = "          - {match: {path: /extra/*}, respond: {status: 204}}\n" +
			"      - {names: [b.test], certificates: [{cert: second.pem, key: second.key}], client_auth: {mode: \"off\"}, routes: [{upstream: h1}]}"
	}
	a := 1 + (n+2)/3%2*2
	return strings.NewReplacer("PLAIN", fmt.Sprintf("plain%d", n/2%2), "CERT", cert, "EXTRA", extra, "weight: A", fmt.Sprintf("weight: %d", a), "weight: B", fmt.Sprintf("weight: %d", 4-a),
		"BACKEND", s.addr, "OTHER", other.addr).Replace(steadyConfig)
}

// put replaces the configuration file in one step.
func (w *world) put(t testing.TB, conf string) {
	t.Helper()
	name := filepath.Join(w.dir, "countersign.yaml")
	if err := os.WriteFile(name+".new", []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

// second makes a further certificate of the server.
func (w *world) second() {
	c := w.servers.Server("second", testpki.DNS("a.test", "b.test"))
	w.file("second.pem", c.PEM())
	w.file("second.key", c.KeyPEM())
}

// TestThousandReloads: configurations change at full speed under steady load of every protocol, and nobody notices.
func TestThousandReloads(t *testing.T) {
	if testing.Short() {
		t.Skip("takes its time")
	}
	n := 1000
	if raceEnabled {
		n = 200
	}
	w := newWorld(t)
	w.second()
	s, other := newStage(t), newStage(t)
	a := w.apart(w.variant(0, s, other))
	good := a.newGood(t, 10*time.Millisecond)
	for _, protocol := range []string{"http/1.1", "h2"} {
		ws, err := a.webSocket(protocol)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ws.Close() })
		i := 0
		good.run(20*time.Millisecond, func() error {
			i++
			if err := ws.echo(fmt.Sprintf("message %d", i)); err != nil {
				return fmt.Errorf("WebSocket over %s: %w", protocol, err)
			}
			return nil
		})
	}
	// Streams at once on one connection, and new connections: handshakes meet reloads too.
	cc, err := a.multiplexed()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	good.run(25*time.Millisecond, func() (first error) {
		var all sync.WaitGroup
		var mu sync.Mutex
		for i := range 8 {
			all.Go(func() {
				path := []string{"/h1/ok", "/h2/ok"}[i%2]
				if status, body, err := get2(cc, path); status != 200 || body != "ok" {
					mu.Lock()
					defer mu.Unlock()
					first = fmt.Errorf("multiplexed %s: %d %q %w", path, status, body, err)
				}
			})
		}
		all.Wait()
		return first
	})
	i := 0
	good.run(100*time.Millisecond, func() error {
		i++
		if i%2 == 0 {
			cc, err := a.multiplexed()
			if err != nil {
				return fmt.Errorf("new connection of HTTP/2: %w", err)
			}
			defer cc.Close()
			status, _, err := get2(cc, "/h2/ok")
			if err == nil && status != 200 {
				err = fmt.Errorf("status %d", status)
			}
			return err
		}
		c, err := a.open(a.from, "http/1.1")
		if err != nil {
			return fmt.Errorf("new connection: %w", err)
		}
		defer c.Close()
		return ask1(c)
	})

	reload := func(k int) {
		t.Helper()
		w.put(t, w.variant(k, s, other))
		if _, err := a.call("/reload"); err != nil {
			t.Fatalf("reload %d: %v", k, err)
		}
	}
	for k := range n / 10 { // until all that there is once is there
		reload(k)
	}
	time.Sleep(time.Second)
	a.base = a.weigh(t, true)
	_, before, _ := good.lately()
	start := time.Now()
	for k := range n {
		reload(k)
	}
	took := time.Since(start)
	requests, p99, errs := good.lately()
	time.Sleep(700 * time.Millisecond) // retired pools
	a.settled(t, 8*time.Second)
	rest := a.weigh(t, true)
	good.end()
	t.Logf("H06/%d reloads in %v, %d requests and messages, p99 %v (%v before); before %v; after %v", n, took.Round(time.Millisecond), requests, p99, before, a.base, rest)
	if _, _, more := good.lately(); len(errs)+len(more) > 0 {
		t.Errorf("H06/%d errors: %v", len(errs)+len(more), append(errs, more...))
	}
	if grown := int64(rest.Heap) - int64(a.base.Heap); grown > 4<<20 && !raceEnabled {
		t.Errorf("H06/%.1f MiB of heap more than before", float64(grown)/(1<<20))
	}
	if p99 > patienceOf(before) {
		t.Errorf("H06/p99 %v, %v before", p99, before)
	}
	if n := a.counted(t, `countersign_requests_total{listener="public",reason="upstream_unknown"}`) + a.counted(t, "countersign_panics_total"); n != 0 {
		t.Errorf("H06/%d requests without a pool, or panics", n)
	}
}
