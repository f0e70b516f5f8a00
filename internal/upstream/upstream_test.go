package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"countersign/internal/message"
	"countersign/internal/reason"
	"countersign/internal/socket"
	"countersign/internal/testpki"
	"countersign/internal/trust"
)

// serve runs f for each connection to a new listener.
func serve(t *testing.T, f func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	return l.Addr().String()
}

// answering writes the answers in turn, one for each request head that is read.
func answering(answers ...string) func(net.Conn) {
	return func(c net.Conn) {
		buf := make([]byte, 4096)
		for _, a := range answers {
			if _, err := c.Read(buf); err != nil {
				return
			}
			if _, err := io.WriteString(c, a); err != nil {
				return
			}
		}
		_, _ = c.Read(buf)
	}
}

func settings(name string, targets ...string) *Settings {
	return &Settings{Name: name, ID: name, Targets: addresses(targets...), Connect: 10 * time.Second, Response: time.Second, Idle: time.Second,
		Keepalive: time.Second, MaxConnections: 2, HeadBytes: 8 << 10, Fields: 50}
}

// addresses are targets of equal weight.
func addresses(targets ...string) (out []TargetSettings) {
	for _, a := range targets {
		out = append(out, TargetSettings{Address: a, Weight: 1})
	}
	return out
}

func registry(t testing.TB, s ...*Settings) (*Registry, *bytes.Buffer) {
	var log bytes.Buffer
	r := NewRegistry(nil, slog.New(slog.NewTextHandler(&log, nil)))
	r.Apply(s)()
	t.Cleanup(func() { r.Apply(nil)() })
	return r, &log
}

func reasonOf(err error) reason.Reason {
	var r *reason.Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	return reason.Unset
}

// exchange makes one request and reads its whole response.
func exchange(t *testing.T, c *Conn) error {
	t.Helper()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return err
	}
	var resp message.Response
	if err := c.R.ReadResponse(&resp, false); err != nil {
		return err
	}
	body := c.R.Body(&resp.Head, false)
	for !body.Done() {
		if _, err := body.Read(make([]byte, 100)); err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

func TestRefusals(t *testing.T) {
	dead := serve(t, func(net.Conn) {})
	l, _ := net.Listen("tcp", "127.0.0.1:0")
	closed := l.Addr().String()
	l.Close()

	t.Run("unreachable", func(t *testing.T) {
		r, _ := registry(t, settings("p", closed))
		if _, err := r.Pool("p").Acquire(context.Background()); reasonOf(err) != reason.UpstreamConnectFailed {
			t.Error(err)
		}
	})
	t.Run("timeout", func(t *testing.T) {
		s := settings("p", "127.0.0.1:1")
		s.Connect = 10 * time.Millisecond
		r := NewRegistry(func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, slog.New(slog.DiscardHandler))
		r.Apply([]*Settings{s})
		if _, err := r.Pool("p").Acquire(context.Background()); reasonOf(err) != reason.UpstreamConnectTimeout {
			t.Error(err)
		}
	})
	t.Run("busy", func(t *testing.T) {
		r, _ := registry(t, settings("p", dead))
		for range 2 {
			c, err := r.Pool("p").Acquire(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Discard()
		}
		if _, err := r.Pool("p").Acquire(context.Background()); reasonOf(err) != reason.UpstreamBusy {
			t.Error(err)
		}
	})
	t.Run("unknown", func(t *testing.T) {
		r, _ := registry(t)
		if r.Pool("p") != nil {
			t.Error("a pool that was never configured")
		}
	})
}

func TestChoice(t *testing.T) {
	a, b := serve(t, answering(ok)), serve(t, answering(ok))
	l, _ := net.Listen("tcp", "127.0.0.1:0")
	closed := l.Addr().String()
	l.Close()
	s := settings("p", a, closed, b)
	s.MaxConnections = 10
	r, _ := registry(t, s)
	seen := map[string]int{}
	for range 6 {
		c, err := r.Pool("p").Acquire(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		seen[c.Target.Address]++
		defer c.Discard()
	}
	if seen[a] < 2 || seen[b] < 2 || seen[closed] != 0 {
		t.Errorf("targets in turn, and the closed one passed over: got %v", seen)
	}
}

// TestReuse shows that a connection is used again only when nothing can be left on it (E19, E32).
func TestReuse(t *testing.T) {
	pki := testpki.New(t)
	server := pki.Server("api.internal").TLS()
	store, err := trust.NewStore("internal", []*x509.Certificate{pki.Cert}, nil, nil, trust.Options{})
	if err != nil {
		t.Fatal(err)
	}
	surplus := ok + "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
	for _, secure := range []bool{false, true} {
		for _, tt := range []struct {
			name    string
			serve   func(net.Conn)
			more    bool // comes behind the answer
			reused  bool
			unclean bool
		}{
			{name: "clean", serve: answering(ok, ok), reused: true},
			{name: "not clean", serve: answering(ok, ok), unclean: true},
			{name: "surplus in the same packet", serve: answering(surplus, ok)},
			{name: "surplus in a record of its own", serve: func(c net.Conn) {
				_, _ = c.Read(make([]byte, 4096))
				_, _ = io.WriteString(c, ok)
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
				_, _ = c.Read(make([]byte, 1))
			}, more: true},
			{name: "surplus later", serve: func(c net.Conn) {
				_, _ = c.Read(make([]byte, 4096))
				_, _ = io.WriteString(c, ok)
				time.Sleep(10 * time.Millisecond)
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
				_, _ = c.Read(make([]byte, 1))
			}, more: true},
			{name: "closed by the target", serve: answering0(ok), more: true},
		} {
			name := "E32/plain " + tt.name
			if secure {
				name = "E32/tls " + tt.name
			}
			t.Run(name, func(t *testing.T) {
				s := settings("p")
				f := tt.serve
				if secure {
					f = func(c net.Conn) {
						tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{server}})
						defer tc.Close()
						tt.serve(tc)
					}
					s.TLS = &TLS{ServerName: "api.internal", Store: store}
				}
				s.Targets = addresses(serve(t, f))
				r, _ := registry(t, s)
				c, err := r.Pool("p").Acquire(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				if err := exchange(t, c); err != nil {
					t.Fatal(err)
				}
				c.Release(!tt.unclean, time.Now())
				for end := time.Now().Add(10 * time.Second); tt.more && c.Wire.Peek() == socket.Quiet && time.Now().Before(end); {
					time.Sleep(time.Millisecond)
				}
				d, err := r.Pool("p").Acquire(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				if d.Reused != tt.reused {
					t.Errorf("reused is %v, expected %v", d.Reused, tt.reused)
				}
				if err := exchange(t, d); err != nil {
					t.Errorf("the next exchange: %v", err)
				}
				d.Release(false, time.Now())
				if st := r.Stats(); st[0].Open != 0 || st[0].Idle != 0 {
					t.Errorf("connections left open: %+v", st)
				}
			})
		}
	}
}

func answering0(a string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = c.Read(make([]byte, 4096))
		_, _ = io.WriteString(c, a)
	}
}

// TestTargetVerified shows that a target is verified as strictly as a client (H18), and that we prove ourselves.
func TestTargetVerified(t *testing.T) {
	pki, other := testpki.New(t), testpki.New(t)
	store, err := trust.NewStore("internal", []*x509.Certificate{pki.Cert}, nil, nil, trust.Options{})
	if err != nil {
		t.Fatal(err)
	}
	edge, stranger := pki.Client("edge").TLS(), other.Client("stranger").TLS()
	late := pki.Client("edge", testpki.Expired()).TLS()
	for i := range 3 {
		p := []*tls.Certificate{&edge, &stranger, &late}[i]
		p.Leaf, _ = x509.ParseCertificate(p.Certificate[0])
	}
	run := func(name string, cert tls.Certificate, conf *tls.Config, ours []*tls.Certificate, want reason.Reason) {
		for _, max := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(name+"/"+tls.VersionName(max), func(t *testing.T) {
				conf := conf.Clone()
				conf.Certificates, conf.MaxVersion = []tls.Certificate{cert}, max
				s := settings("p", serve(t, func(c net.Conn) {
					tc := tls.Server(c, conf)
					if tc.Handshake() == nil {
						answering(ok)(tc)
					}
				}))
				s.TLS = &TLS{ServerName: "api.internal", Store: store, Certificates: ours}
				r, log := registry(t, s)
				c, err := r.Pool("p").Acquire(context.Background())
				got := reasonOf(err)
				if err == nil { // TLS 1.3 tells us only now
					defer c.Discard()
					if err := exchange(t, c); err != nil {
						got = c.Blame(err)
					}
				}
				if got != want {
					t.Errorf("got %v (%v), expected %v", got, err, want)
				}
				if want == reason.UpstreamClientCertNone && !strings.Contains(log.String(), "no client certificate for target") {
					t.Errorf("no log line says that none fits: %s", log.String())
				}
			})
		}
	}
	off := &tls.Config{}
	run("H18/foreign", other.Server("api.internal").TLS(), off, nil, reason.UpstreamCertRefused)
	run("H18/expired", pki.Server("api.internal", testpki.Expired()).TLS(), off, nil, reason.UpstreamCertRefused)
	run("H18/wrong name", pki.Server("other.internal").TLS(), off, nil, reason.UpstreamCertRefused)
	run("H18/client certificate as server", pki.Client("api.internal", testpki.DNS("api.internal")).TLS(), off, nil, reason.UpstreamCertRefused)
	run("H18/right", pki.Server("api.internal").TLS(), off, nil, reason.Unset)

	ask := &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pki.Pool()}
	run("asks, none configured", pki.Server("api.internal").TLS(), ask, nil, reason.UpstreamClientCertNone)
	run("asks, none fits", pki.Server("api.internal").TLS(), ask, []*tls.Certificate{&stranger, &late}, reason.UpstreamClientCertNone)
	run("asks, one fits", pki.Server("api.internal").TLS(), ask, []*tls.Certificate{&stranger, &late, &edge}, reason.Unset)

	t.Run("E28/plain text before TLS", func(t *testing.T) {
		s := settings("p", serve(t, func(c net.Conn) { _, _ = io.WriteString(c, ok) }))
		s.TLS = &TLS{ServerName: "api.internal", Store: store}
		r, _ := registry(t, s)
		if _, err := r.Pool("p").Acquire(context.Background()); reasonOf(err) != reason.UpstreamTLSFailed {
			t.Error(err)
		}
	})
}

func TestRegistry(t *testing.T) {
	addr := serve(t, answering(ok, ok, ok))
	r, _ := registry(t, settings("a", addr), settings("b", addr))
	a, b := r.Pool("a"), r.Pool("b")
	hold := func(p *Pool) *Conn {
		c, err := p.Acquire(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if err := exchange(t, c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	hold(a).Release(true, time.Now())
	inUse := hold(b)

	changed := settings("b", addr)
	changed.ID = "changed"
	retire := r.Apply([]*Settings{settings("a", addr), changed})
	if r.Pool("a") != a {
		t.Error("a pool whose settings did not change was replaced")
	}
	if r.Pool("b") == b {
		t.Error("a pool whose settings changed was kept")
	}
	retire()
	inUse.Release(true, time.Now())
	if n := len(b.members[0].idle); n != 0 {
		t.Errorf("%d connections went back to a retired pool", n)
	}

	retire = r.Apply(nil)
	if r.Pool("a") == nil {
		t.Error("the pool is gone before the configuration was swapped")
	}
	retire()
	if r.Pool("a") != nil {
		t.Error("the pool is still there")
	}
}

func TestTidy(t *testing.T) {
	r, _ := registry(t, settings("a", serve(t, answering(ok, ok))))
	c, err := r.Pool("a").Acquire(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := exchange(t, c); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	c.Release(true, now)
	r.Tidy(now.Add(900 * time.Millisecond))
	if r.Stats()[0].Idle != 1 {
		t.Error("closed before keepalive was over")
	}
	r.Tidy(now.Add(time.Second))
	if st := r.Stats()[0]; st.Idle != 0 || st.Open != 0 {
		t.Errorf("still there: %+v", st)
	}
}
