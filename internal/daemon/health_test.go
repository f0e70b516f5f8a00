package daemon_test

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// TestHealthChecks shows that a target whose checks fail gets no traffic, and gets it back.
func TestHealthChecks(t *testing.T) {
	w := newWorld(t)
	var sick atomic.Bool
	var served [2]atomic.Int32
	var addrs []string
	for i := range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/healthz" {
				if i == 0 && sick.Load() {
					rw.WriteHeader(500)
				}
				return
			}
			served[i].Add(1)
			fmt.Fprint(rw, i)
		})}
		go srv.Serve(l)
		t.Cleanup(func() { srv.Close() })
		addrs = append(addrs, l.Addr().String())
	}
	conf := strings.Replace(basic, `api: {targets: ["http://BACKEND"]}`,
		`api: {targets: ["http://`+addrs[0]+`", "http://`+addrs[1]+`"], balance: least_requests, health: {path: /healthz, interval: 100ms, unhealthy: 2, healthy: 1}}`, 1)
	w.start(conf, "")
	alice := w.client("a.test", w.ca.Client("alice"))
	ask := func(n int) {
		t.Helper()
		for range n {
			if status, _, err := w.get("public", alice, "a.test", "/"); status != 200 {
				t.Fatal(status, err)
			}
		}
	}
	ask(6)
	if served[0].Load() == 0 || served[1].Load() == 0 {
		t.Errorf("served %d and %d", served[0].Load(), served[1].Load())
	}
	sick.Store(true)
	line := `countersign_upstream_healthy{target="` + addrs[0] + `",upstream="api"}`
	w.awaitMetric(line, "0")
	before := served[0].Load()
	ask(10)
	if served[0].Load() != before {
		t.Error("the unhealthy target got traffic")
	}
	sick.Store(false)
	w.awaitMetric(line, "1")
	ask(6)
	if served[0].Load() == before {
		t.Error("the target that is healthy again gets no traffic")
	}
}
