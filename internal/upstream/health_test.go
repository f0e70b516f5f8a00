package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"countersign/internal/testpki"
	"countersign/internal/trust"
)

func checked(s *Settings) *Settings {
	s.Health = &Health{Path: "/healthz", Host: "api.internal", Status: []StatusRange{{200, 399}}, Interval: 10 * time.Millisecond,
		Timeout: time.Second, Healthy: 2, Unhealthy: 3}
	return s
}

// health waits for a target's state.
func health(t *testing.T, r *Registry, target string, want bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
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
	if !strings.Contains(log.String(), "GET /healthz answers 503, expected 200-399") {
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

// TestHealthHostile shows that a check ends whatever the target does with it, and says no.
func TestHealthHostile(t *testing.T) {
	endless := func(head, more string) func(net.Conn) {
		return func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_, err := io.WriteString(c, head)
			for err == nil {
				_, err = io.WriteString(c, more)
			}
		}
	}
	for name, f := range map[string]func(net.Conn){
		"F18/endless header":    endless("HTTP/1.1 200 OK\r\n", "X: "+strings.Repeat("a", 1000)+"\r\n"),
		"F18/endless field":     endless("HTTP/1.1 200 OK\r\nX: ", strings.Repeat("a", 1000)),
		"F18/endless interim":   endless("", "HTTP/1.1 100 Continue\r\n\r\n"),
		"F18/endless nothing":   endless("", "\r\n"),
		"F18/no HTTP":           endless("", "220 mail.test ESMTP\r\n"),
		"H15/closes at once":    func(net.Conn) {},
		"H15/closes after half": answering("HTTP/1.1 200 OK\r\nContent-Le"),
		"H24/says nothing":      func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
		"H24/a byte each second": func(c net.Conn) {
			for _, b := range []byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		},
		"status not listed": answering("HTTP/1.1 301 Moved\r\nContent-Length: 0\r\n\r\n"),
		"switches protocol": answering("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.listen(t, "a:1", f)
				s := checked(named(w1))
				s.Health.Interval, s.Health.Timeout, s.Health.Status = time.Second, 2*time.Second, []StatusRange{{200, 299}}
				w.Apply([]*Settings{s})()
				time.Sleep(12 * time.Second)
				if st := w.Stats(); st[0].Healthy {
					t.Error("the target counts as healthy")
				}
				w.Apply(nil)()
				time.Sleep(time.Minute) // what the target still does ends
			})
		})
	}
	// What a body does is of no matter: it is not read.
	t.Run("F18/endless body", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			ended := make(chan struct{}, 100)
			w.listen(t, "a:1", func(c net.Conn) {
				endless("HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("a", 10000))(c)
				ended <- struct{}{}
			})
			s := checked(named(w1))
			s.Health.Interval = time.Second
			w.Apply([]*Settings{s})()
			time.Sleep(10 * time.Second)
			if st := w.Stats(); !st[0].Healthy || len(ended) < 8 {
				t.Errorf("%+v after %d checks", st[0], len(ended))
			}
		})
	})
}

// TestHealthConnections shows that every check has a connection of its own, and how often they come.
func TestHealthConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var mu sync.Mutex
		var at []time.Time
		w.listen(t, "a:1", func(c net.Conn) {
			mu.Lock()
			at = append(at, time.Now())
			mu.Unlock()
			answering(ok, ok)(c)
		})
		s := checked(named(w1))
		s.Health.Interval = 10 * time.Second
		w.Apply([]*Settings{s})()
		time.Sleep(1000 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if len(at) < 98 || len(at) > 102 {
			t.Errorf("%d connections for checks in 1000 s, expected one every 10 s", len(at))
		}
		same := true
		for i := 2; i < len(at); i++ {
			d := at[i].Sub(at[i-1])
			if d < 9500*time.Millisecond || d > 10500*time.Millisecond {
				t.Errorf("%s between two checks, expected 10 s give or take a twentieth", d)
			}
			same = same && d == at[1].Sub(at[0])
		}
		if same {
			t.Error("no jitter")
		}
		if n := w.Stats()[0].Open + w.Stats()[0].Idle; n != 0 {
			t.Errorf("A09/%d connections of checks are there for traffic", n)
		}
	})
}

func TestStatusRanges(t *testing.T) {
	h := &Health{Status: []StatusRange{{200, 299}, {301, 301}}}
	for status, want := range map[int]bool{199: false, 200: true, 299: true, 300: false, 301: true, 302: false, 0: false} {
		if h.good(status) != want {
			t.Errorf("%d is good: %v", status, !want)
		}
	}
	if h.want() != "200-299,301" {
		t.Error(h.want())
	}
}
