package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"countersign/internal/testpki"
	"countersign/internal/trust"
)

func checked(s *Settings) *Settings {
	s.Health = &Health{Path: "/healthz", Host: "api.internal", MinStatus: 200, MaxStatus: 399, Interval: 10 * time.Millisecond,
		Timeout: time.Second, Healthy: 2, Unhealthy: 3}
	return s
}

// health waits for a target's state.
func health(t *testing.T, r *Registry, target string, want bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		for _, s := range r.Stats() {
			if s.Target == target && s.Healthy == want {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: healthy is never %v: %+v", target, want, r.Stats())
		}
	}
}

func TestHealth(t *testing.T) {
	var status atomic.Int32
	var asked atomic.Value
	status.Store(503)
	sick := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Host + r.URL.Path)
		w.WriteHeader(int(status.Load()))
	}))
	defer sick.Close()
	well := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer well.Close()
	a, b := strings.TrimPrefix(sick.URL, "http://"), strings.TrimPrefix(well.URL, "http://")
	s := checked(settings("p", a, b))
	s.MaxConnections = 100
	r, log := registry(t, s)
	health(t, r, a, false)
	if got := asked.Load(); got != "api.internal/healthz" {
		t.Errorf("asked for %v", got)
	}
	for range 4 {
		c, err := r.Pool("p").Acquire(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if c.Target.Address != b {
			t.Error("traffic went to the unhealthy target")
		}
		c.Discard()
	}
	status.Store(200)
	health(t, r, a, true)

	// When every check fails the targets are tried all the same.
	status.Store(500)
	well.Close()
	health(t, r, a, false)
	health(t, r, b, false)
	c, err := r.Pool("p").Acquire(context.Background())
	if err != nil || c.Target.Address != a {
		t.Fatalf("expected the target that can be reached: %v", err)
	}
	c.Discard()
	r.Apply(nil)() // the checks end before the log is read
	if !strings.Contains(log.String(), "GET /healthz answers 503, expected 200 to 399") {
		t.Errorf("the log does not say why: %s", log.String())
	}
}

// TestHealthVerifies shows that a check is as strict as traffic (H16).
func TestHealthVerifies(t *testing.T) {
	pki := testpki.New(t)
	store, err := trust.NewStore("internal", []*x509.Certificate{pki.Cert}, nil, nil, trust.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, cert := range map[string]*testpki.Cert{"expired": pki.Server("api.internal", testpki.Expired()), "good": pki.Server("api.internal")} {
		t.Run("H16/"+name, func(t *testing.T) {
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert.TLS()}}
			srv.Config.ErrorLog = nil
			srv.StartTLS()
			defer srv.Close()
			addr := strings.TrimPrefix(srv.URL, "https://")
			s := checked(settings("p", addr))
			s.TLS = &TLS{ServerName: "api.internal", Store: store}
			r, _ := registry(t, s)
			if name == "expired" {
				health(t, r, addr, false)
				return
			}
			time.Sleep(100 * time.Millisecond)
			health(t, r, addr, true)
		})
	}
	t.Run("tcp", func(t *testing.T) {
		addr := serve(t, answering(ok))
		s := checked(settings("p", addr, "127.0.0.1:1"))
		s.Health.Path = ""
		r, _ := registry(t, s)
		health(t, r, "127.0.0.1:1", false)
		health(t, r, addr, true)
	})
}

func TestLeastRequests(t *testing.T) {
	var addrs []string
	for range 3 {
		addrs = append(addrs, serve(t, answering(ok)))
	}
	s := settings("p", addrs...)
	s.Balance, s.MaxConnections = LeastRequests, 100
	r, _ := registry(t, s)
	var held []*Conn
	take := func() *Conn {
		c, err := r.Pool("p").Acquire(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
		return c
	}
	for range 9 {
		take()
	}
	count := map[string]int{}
	for _, c := range held {
		count[c.Target.Address]++
	}
	for _, a := range addrs {
		if count[a] != 3 {
			t.Fatalf("nine exchanges over three targets: %v", count)
		}
	}
	// One target becomes free: the next three go there.
	var free string
	for _, c := range held[:] {
		if free == "" {
			free = c.Target.Address
		}
		if c.Target.Address == free {
			c.Discard()
		}
	}
	for i := range 3 {
		if c := take(); c.Target.Address != free {
			t.Errorf("exchange %d went to a busier target", i)
		}
	}
	if got := fmt.Sprint(r.Stats()[0].Busy, r.Stats()[1].Busy, r.Stats()[2].Busy); got != "3 3 3" {
		t.Errorf("busy: %s", got)
	}
}
