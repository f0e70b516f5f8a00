package interop_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	spec2 "github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

// h2specCases is how many cases this version of h2spec has, its strict ones included. Up to version 2.2 it had 146.
const h2specCases = 147

// h2specExceptions are cases that we answer in another way than h2spec wants: the section of RFC 9113 that allows it, and
// why. One that passes does not belong here, and is an error.
var h2specExceptions = map[string]string{}

// TestH2Spec runs every case of h2spec through mutual TLS against us, before both kinds of backends, and wants none failed
// and none skipped.
func TestH2Spec(t *testing.T) {
	p := newPKI(t)
	issue(t, p.dir, "localhost", p.internal, newECDSA(t), forServer("localhost"))
	for _, backend := range []struct{ name, version, addr string }{
		{"h2 to http1", "http1", newEcho(t).addr},
		{"h2 to h2c", "http2", serveGo(t, speaks("h2c"), nil, whole())},
	} {
		t.Run(backend.name, func(t *testing.T) {
			b := serve(t, p, strings.NewReplacer("a.test", "localhost", "server.", "localhost.").Replace(h2), map[string]string{"api": backend.addr, "version": backend.version})
			for id, err := range h2specAll(t, b.addr["public"], goConfig(p, "localhost", p.alice)) {
				t.Run(id, func(t *testing.T) {
					switch why, excepted := h2specExceptions[id]; {
					case excepted && err == nil:
						t.Errorf("passes, though it is an exception: %s", why)
					case !excepted && err != nil:
						t.Error(err)
					}
				})
			}
		})
	}
}

// TestH2SpecItself runs the same cases against HAProxy, which passes them all, and against Go's own server, which does not:
// the way through the shim neither makes cases fail nor hides it when they do.
func TestH2SpecItself(t *testing.T) {
	need(t, "haproxy")
	p := newPKI(t)
	shown := issue(t, p.dir, "localhost", p.internal, newECDSA(t), forServer("localhost"))
	failed := func(t *testing.T, addr string) []string {
		var out []string
		for id, err := range h2specAll(t, addr, goConfig(p, "localhost", p.alice)) {
			if err != nil {
				t.Logf("%s: %v", id, err)
				out = append(out, id)
			}
		}
		return out
	}
	t.Run("HAProxy", func(t *testing.T) {
		addr := freeAddress(t)
		proxies(t, fmt.Sprintf(`
frontend public
  mode http
  bind %s ssl crt %s ca-file %s verify required alpn h2
  default_backend api
backend api
  mode http
  server echo %s
`, addr, both(t, shown), p.root.file, newEcho(t).addr), addr)
		if out := failed(t, addr); len(out) > 0 {
			t.Errorf("HAProxy fails %d cases", len(out))
		}
	})
	t.Run("Go", func(t *testing.T) {
		if out := failed(t, serveGo(t, speaks("h2"), mutual(shown, p.root), whole())); len(out) == 0 {
			t.Error("Go's server passes all: the rig does not see failures, or Go has got better")
		}
	})
}

// h2specAll runs all cases against addr, each on a connection of its own, some at a time. A case that was skipped has an
// error as well.
func h2specAll(t *testing.T, addr string, conf *tls.Config) func(func(string, error) bool) {
	t.Helper()
	conf.NextProtos, conf.MinVersion = []string{"h2"}, tls.VersionTLS13
	told := config.Config{Host: "localhost", TLS: true, Insecure: true, Path: "/", Strict: true, MaxHeaderLen: 4000, Timeout: 10 * time.Second}
	fmt.Sscan(portOf(shim(t, addr, conf)), &told.Port)

	var ids []string
	var cases []*spec.TestCase
	var collect func(g *spec.TestGroup)
	collect = func(g *spec.TestGroup) {
		for i, c := range append(g.Tests, g.StrictTests...) {
			ids, cases = append(ids, fmt.Sprintf("%s/%d", g.ID(), i+1)), append(cases, c)
		}
		for _, sub := range g.Groups {
			collect(sub)
		}
	}
	for _, g := range []*spec.TestGroup{generic.Spec(), spec2.Spec(), hpack.Spec()} {
		collect(g)
	}
	if len(cases) != h2specCases {
		t.Fatalf("h2spec has %d cases; want %d", len(cases), h2specCases)
	}
	errs := make([]error, len(cases))
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i, c := range cases {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			own := told // cases keep things in it
			conn, err := spec.Dial(&own)
			if err != nil {
				errs[i] = err
				return
			}
			defer conn.Close()
			var wrong *spec.TestError
			if err := c.Run(&own, conn); errors.As(err, &wrong) {
				errs[i] = fmt.Errorf("%s: %s; expected %s; found %s", c.Desc, c.Requirement, strings.Join(wrong.Expected, ", or "), wrong.Actual)
			} else if err != nil {
				errs[i] = fmt.Errorf("%s: %s; %w", c.Desc, c.Requirement, err)
			}
		})
	}
	wg.Wait()
	return func(yield func(string, error) bool) {
		for i, id := range ids {
			if !yield(id, errs[i]) {
				return
			}
		}
	}
}

// both is a file with a certificate and its key, as HAProxy wants them.
func both(t *testing.T, c *cert) string {
	t.Helper()
	var text []byte
	for _, file := range []string{c.file, c.keyFile} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, b...)
	}
	return write(t, t.TempDir(), "both.pem", text)
}

// proxies runs HAProxy with the given sections.
func proxies(t *testing.T, sections string, addrs ...string) {
	t.Helper()
	need(t, "haproxy")
	conf := write(t, t.TempDir(), "haproxy.cfg", []byte(`
global
  maxconn 200
defaults
  timeout connect 5s
  timeout client 20s
  timeout server 20s
`+sections))
	start(t, exec.Command("haproxy", "-f", conf, "-db"), addrs...)
}

// shim is where a program that has no client certificate to show connects to, by TLS without one; it is carried to target
// over TLS with conf, byte by byte. It meets the end of the connection where target ended it, in whatever way.
func shim(t *testing.T, target string, conf *tls.Config) string {
	t.Helper()
	self := issue(t, t.TempDir(), "shim", nil, newECDSA(t), forServer("localhost"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	carry := func(c net.Conn) {
		in := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{{Certificate: self.chain, PrivateKey: self.key}}, NextProtos: conf.NextProtos})
		defer in.Close()
		out, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", target, conf)
		if err != nil {
			t.Errorf("the shim cannot connect: %v", err)
			return
		}
		defer out.Close()
		if chosen := out.ConnectionState().NegotiatedProtocol; chosen != conf.NextProtos[0] {
			t.Errorf("%q was chosen; want %s", chosen, conf.NextProtos[0])
			return
		}
		wg.Go(func() {
			_, _ = io.Copy(in, out)
			_ = in.CloseWrite()
		})
		_, _ = io.Copy(out, in)
		_, _ = io.Copy(io.Discard, in) // a close with unread bytes would be a reset
	}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { carry(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}
