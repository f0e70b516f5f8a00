package daemon_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"countersign/internal/daemon"
	"countersign/internal/snapshot"
	"countersign/internal/testpki"
)

// reloadHost is one host on one listener; MODE and STORE are to be filled in.
const reloadHost = `
ops: {listen: 127.0.0.1:0}
trust_stores:
  clients:
    ca_bundle: {file: clients.pem}
    revocation: {crls: [{file: clients.crl}]}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - names: [b.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes: [{upstream: api}]
upstreams:
  api: {targets: ["http://BACKEND"]}
`

// keep is a connection that stays open over several requests.
type keep struct {
	*tls.Conn
	r *bufio.Reader
}

func (w *world) keep(t testing.TB, listener string, conf *tls.Config) *keep {
	t.Helper()
	c := must(w.dial(listener, conf))(t)
	// In TLS 1.3 a client is through before its certificate has been looked at.
	w.find(t, "client="+c.LocalAddr().String(), "kind=handshake")
	_ = c.SetDeadline(time.Now().Add(time.Minute)) // over all of its requests
	return &keep{c, bufio.NewReader(c)}
}

func (k *keep) get(host string) (int, string, error) {
	return roundTrip(k, k.r, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
}

// refused asks once more over a connection whose client is not trusted any more. Either the request is refused, or the
// sweep was faster and has ended the connection; the record says why in both cases.
func (k *keep) refused(t *testing.T, w *world) map[string]any {
	t.Helper()
	return refusedAfter(t, w, k, k.r, "b.test")
}

// refusedAfter is keep.refused for any connection; r reads from c.
func refusedAfter(t *testing.T, w *world, c net.Conn, r *bufio.Reader, host string) map[string]any {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	status, body, err := roundTrip(c, r, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
	switch {
	case status == 403 && (strings.Contains(body, "client_no_longer_trusted") || strings.Contains(body, `"reason":"client_cert_refused"`)): // the page
		if _, err := r.ReadByte(); err != io.EOF {
			t.Errorf("after the refusal: %v, expected the end", err)
		}
	case status != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded):
		t.Errorf("%d %q %v, expected 403 or the end", status, body, err)
	}
	return w.find(t, "client="+c.LocalAddr().String(), "reason=client_no_longer_trusted")
}

// TestReloadRefusesBadTrust: what cannot be loaded never becomes "no client auth".
func TestReloadRefusesBadTrust(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.start(reloadHost, b.addr)
	hash := w.main.Hash()
	good := must(os.ReadFile(filepath.Join(w.dir, "clients.pem")))(t)
	name := filepath.Join(w.dir, "clients.pem")
	crl := must(os.ReadFile(filepath.Join(w.dir, "clients.crl")))(t)
	live := w.keep(t, "public", w.client("b.test", w.ca.Client("alice")))
	put := func(data []byte) func() { return func() { w.file("clients.pem", data) } }
	for _, c := range []struct {
		name, file string
		spoil      func()
	}{
		{"missing", "clients.pem", func() {}},
		{"empty", "clients.pem", put(nil)},
		{"DER, cut", "clients.pem", put(w.root.DER()[:200])},
		{"DER, two", "clients.pem", put(append(w.root.DER(), w.ca.DER()...))},
		{"directory", "clients.pem", func() { _ = os.Mkdir(name, 0o700) }},
		{"dangling link", "clients.pem", func() { _ = os.Symlink("nowhere", name) }},
		{"link to itself", "clients.pem", func() { _ = os.Symlink("clients.pem", name) }},
		{"device", "clients.pem", func() { _ = os.Symlink("/dev/null", name) }},
		{"truncated", "clients.pem", put(good[:len(good)-40])},
		{"cut in the second", "clients.pem", put(good[:len(good)*3/4])},
		{"no certificate", "clients.pem", put([]byte("# empty\n"))},
		{"leaf", "clients.pem", put(w.server.PEM())},
		{"list", "clients.pem", put(testpki.PEM("X509 CRL", crl))},
		{"key", "clients.pem", put(w.server.KeyPEM())},
		{"crl missing", "clients.crl", func() { _ = os.Remove(filepath.Join(w.dir, "clients.crl")); w.file("clients.pem", good) }},
		{"crl empty", "clients.crl", func() { w.file("clients.crl", nil); w.file("clients.pem", good) }},
		{"crl truncated", "clients.crl", func() { w.file("clients.crl", crl[:len(crl)-9]); w.file("clients.pem", good) }},
		{"crl forged", "clients.crl", func() {
			w.file("clients.crl", w.ca.CRL(testpki.SignedBy(w.server)))
			w.file("clients.pem", good)
		}},
	} {
		t.Run("A22/"+c.name, func(t *testing.T) {
			_ = os.RemoveAll(name)
			c.spoil()
			err := w.main.Reload()
			var conf *daemon.ConfigError
			if !errors.As(err, &conf) || !strings.Contains(err.Error(), "clients") || !conf.Problems.HasErrors() {
				t.Fatalf("reload: %v", err)
			}
			if got := conf.Problems[0].Path; !strings.HasPrefix(got, "trust_stores.clients") {
				t.Errorf("the problem is at %q", got)
			}
			if w.main.Hash() != hash {
				t.Error("another configuration is in force")
			}
			before := b.seen()
			if a := w.call("public", w.client("b.test", nil), "b.test", "/"); a.alert() != "certificate required" {
				t.Errorf("without a certificate: %d %v", a.status, a.err)
			}
			if b.seen() != before {
				t.Error("the backend was reached")
			}
			if a := w.call("public", w.client("b.test", w.ca.Client("alice")), "b.test", "/"); a.status != 200 {
				t.Errorf("alice: %d %v", a.status, a.err)
			}
			if status, _, err := live.get("b.test"); status != 200 {
				t.Errorf("a live connection: %d %v", status, err)
			}
			_ = os.RemoveAll(name)
			w.file("clients.pem", good)
			w.file("clients.crl", crl)
		})
	}
	if err := w.main.Reload(); err != nil || w.main.Hash() != hash {
		t.Errorf("after all is well again: %v", err)
	}
	// At start there is no old configuration to stay with.
	_ = os.Remove(name)
	if m, err := daemon.Start(daemon.Options{Config: filepath.Join(w.dir, "countersign.yaml"), Records: io.Discard, Log: io.Discard}); err == nil {
		m.Shutdown(context.Background())
		t.Error("A22/started without the CA file")
	}
}

// TestReloadOnLiveConnections: a connection stands under the policy in force, whatever it was made under.
func TestReloadOnLiveConnections(t *testing.T) {
	off := strings.Replace(reloadHost, "mode: require, trust_store: clients", "mode: off", 1)
	request := strings.Replace(reloadHost, "mode: require", "mode: request", 1)
	for _, v := range tlsVersions {
		t.Run("A34/"+v.name+"/off to require", func(t *testing.T) {
			w := newWorld(t)
			b := echo(t, "api", nil)
			w.start(off, b.addr)
			live := w.keep(t, "public", pin(w.client("b.test", w.ca.Client("alice")), v.id))
			if status, _, err := live.get("b.test"); status != 200 {
				t.Fatal(status, err)
			}
			w.reload(reloadHost, b.addr)
			before := b.seen()
			live.refused(t, w)
			if b.seen() != before {
				t.Error("the backend was reached")
			}
		})
		t.Run("A34/"+v.name+"/request to require", func(t *testing.T) {
			w := newWorld(t)
			b := echo(t, "api", nil)
			w.start(request, b.addr)
			nobody, alice := w.keep(t, "public", pin(w.client("b.test", nil), v.id)), w.keep(t, "public", pin(w.client("b.test", w.ca.Client("alice")), v.id))
			w.reload(reloadHost, b.addr)
			nobody.refused(t, w)
			if status, _, err := alice.get("b.test"); status != 200 || b.last().Get("Client-Cert") == "" {
				t.Errorf("alice: %d %v", status, err)
			}
			w.reload(off, b.addr)
			if status, _, err := alice.get("b.test"); status != 200 || b.last().Get("Client-Cert") != "" {
				t.Errorf("alice under mode off: %d %v, identity %q", status, err, b.last().Get("Client-Cert"))
			}
		})
		t.Run("D20/"+v.name+"/revoked", func(t *testing.T) {
			w := newWorld(t)
			b := echo(t, "api", nil)
			w.start(reloadHost, b.addr)
			alice, dave := w.ca.Client("alice"), w.ca.Client("dave")
			live, other := w.keep(t, "public", pin(w.client("b.test", alice), v.id)), w.keep(t, "public", pin(w.client("b.test", dave), v.id))
			for _, k := range []*keep{live, other} {
				if status, _, err := k.get("b.test"); status != 200 {
					t.Fatal(status, err)
				}
			}
			w.file("clients.crl", w.ca.CRL(alice, testpki.Number(2)))
			w.reload(reloadHost, b.addr)
			r := live.refused(t, w)
			if !strings.HasPrefix(fmt.Sprint(r["found"]), "client_cert_revoked: ") {
				t.Errorf("record: %v", r)
			}
			if status, _, err := other.get("b.test"); status != 200 || b.last().Get("Client-Cert") == "" {
				t.Errorf("dave: %d %v", status, err)
			}
			if a := w.call("public", pin(w.client("b.test", alice), v.id), "b.test", "/"); a.alert() != "bad certificate" || w.ended(t, a)["reason"] != "client_cert_revoked" {
				t.Errorf("a new connection: %d %v", a.status, a.err)
			}
			w.file("clients.crl", w.ca.CRL(testpki.Number(3)))
			w.reload(reloadHost, b.addr)
			if a := w.call("public", pin(w.client("b.test", alice), v.id), "b.test", "/"); a.status != 200 {
				t.Errorf("released: %d %v", a.status, a.err)
			}
		})
		t.Run("A07/"+v.name+"/CA removed", func(t *testing.T) {
			w := newWorld(t)
			b := echo(t, "api", nil)
			other := testpki.New(t)
			noCRL := strings.Replace(reloadHost, "    revocation: {crls: [{file: clients.crl}]}\n", "", 1)
			w.file("clients.pem", append(w.ca.PEM(), other.PEM()...))
			w.start(noCRL, b.addr)
			live := w.keep(t, "public", pin(w.client("b.test", w.ca.Client("alice")), v.id))
			if status, _, err := live.get("b.test"); status != 200 {
				t.Fatal(status, err)
			}
			w.file("clients.pem", other.PEM())
			w.reload(noCRL, b.addr)
			live.refused(t, w)
		})
		t.Run("A33/"+v.name+"/certificate expires", func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			b := echo(t, "api", nil)
			w.start(reloadHost, b.addr)
			end := soon()
			live := w.keep(t, "public", pin(w.client("b.test", w.ca.Client("soon", testpki.NotAfter(end))), v.id))
			if status, _, err := live.get("b.test"); status != 200 {
				t.Fatal(status, err)
			}
			time.Sleep(time.Until(end.Add(1100 * time.Millisecond))) // dates have whole seconds, and allow to be equal
			if r := live.refused(t, w); !strings.HasPrefix(fmt.Sprint(r["found"]), "client_cert_expired: ") {
				t.Errorf("record: %v", r)
			}
		})
	}
	t.Run("A34/host removed", func(t *testing.T) {
		w := newWorld(t)
		b := echo(t, "api", nil)
		w.start(reloadHost, b.addr)
		live := w.keep(t, "public", w.client("b.test", w.ca.Client("alice")))
		w.reload(strings.Replace(reloadHost, "names: [b.test]", "names: [c.test]", 1), b.addr)
		live.refused(t, w)
	})
}

// TestReloadGap: through 500 reloads a revoked client never gets in, with its certificate or with sessions from the time
// when it did, and one that is trusted always does.
func TestReloadGap(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	bob, alice := w.ca.Client("bob"), w.ca.Client("alice")
	w.start(reloadHost, b.addr)
	earned := make([]*cache, len(tlsVersions))
	for i, v := range tlsVersions {
		earned[i] = &cache{}
		conf := pin(w.client("b.test", bob, func(c *tls.Config) { c.ClientSessionCache = earned[i] }), v.id)
		for _, resumed := range []bool{false, true} {
			if a := w.call("public", conf, "b.test", "/"); a.status != 200 || a.state.DidResume != resumed {
				t.Fatalf("bob, before: %d %v, resumed %v", a.status, a.err, a.state.DidResume)
			}
		}
	}
	w.file("clients.crl", w.ca.CRL(bob, testpki.Number(2)))
	w.reload(reloadHost, b.addr)
	before := b.seen()
	var stop atomic.Bool
	var tries, successes, served, resumed atomic.Int64
	var wg sync.WaitGroup
	addr := w.addr("public")
	hammer := func(name string, conf *tls.Config, good func(status int, err error, resumed bool)) {
		wg.Go(func() {
			for !stop.Load() {
				raw, err := dialFrom(addr)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
				c := tls.Client(raw, conf)
				status := 0
				if err = c.Handshake(); err == nil {
					status, _, err = roundTrip(c, bufio.NewReader(c), "GET /"+name+" HTTP/1.1\r\nHost: b.test\r\n\r\n")
				}
				good(status, err, c.ConnectionState().DidResume)
				raw.Close()
				time.Sleep(10 * time.Millisecond) // leaves the processors to the reloads
			}
		})
	}
	no := func(status int, _ error, _ bool) {
		tries.Add(1)
		if status != 0 {
			successes.Add(1)
			t.Errorf("C15/bob got %d", status)
		}
	}
	for i, v := range tlsVersions {
		hammer("bob", pin(w.client("b.test", bob), v.id), no)
		session := frozen{earned[i].last}
		hammer("bob", pin(w.client("b.test", bob, func(c *tls.Config) { c.ClientSessionCache = session }), v.id), no)
		hammer("bob", pin(w.client("b.test", nil, func(c *tls.Config) { c.ClientSessionCache = session }), v.id), no)
		own := &cache{}
		hammer("alice", pin(w.client("b.test", alice, func(c *tls.Config) { c.ClientSessionCache = own }), v.id), func(status int, err error, again bool) {
			served.Add(1)
			if again {
				resumed.Add(1)
			}
			if status != 200 {
				t.Errorf("A45/alice got %d %v", status, err)
			}
		})
	}
	for i := range 500 {
		if i%20 == 0 { // most of them leave the trust store as it is, so that alice's sessions go on
			w.file("clients.crl", w.ca.CRL(bob, testpki.Number(int64(i+3))))
		}
		w.reload(reloadHost+"drain: "+strconv.Itoa(i+1)+"s\n", b.addr)
	}
	stop.Store(true)
	wg.Wait()
	if successes.Load() != 0 || b.seen()-before != int(served.Load()) || tries.Load() < 100 || resumed.Load() == 0 {
		t.Errorf("C15/%d of %d tries succeeded, the backend saw %d requests, %d of alice", successes.Load(), tries.Load(), b.seen()-before, served.Load())
	}
	t.Logf("%d tries of bob; alice came %d times and resumed %d times", tries.Load(), served.Load(), resumed.Load())
}

// TestReloadListeners: sockets come and go with their addresses, not with their names.
func TestReloadListeners(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	one, two := freeAddr(t), freeAddr(t)
	conf := strings.Replace(reloadHost, "listen: 127.0.0.1:0\n    protocol", "listen: "+one+"\n    protocol", 1)
	w.start(conf, b.addr)
	alice := w.client("b.test", w.ca.Client("alice"))
	live := w.keep(t, "public", alice)
	if status, _, err := live.get("b.test"); status != 200 {
		t.Fatal(status, err)
	}
	t.Run("H02/busy port", func(t *testing.T) {
		l := must(net.Listen("tcp", two))(t)
		defer l.Close()
		hash := w.main.Hash()
		for name, conf := range map[string]string{
			"listener":       strings.Replace(conf, "listeners:\n", "listeners:\n  extra: {listen: "+two+", protocol: http, hosts: [{names: [b.test], routes: [{upstream: api}]}]}\n", 1),
			"moved listener": strings.Replace(conf, one, two, 1),
			"ops":            strings.Replace(conf, "ops: {listen: 127.0.0.1:0}", "ops: {listen: "+two+"}", 1),
			"not ours":       strings.Replace(conf, one, "192.0.2.1:8443", 1),
		} {
			w.file("countersign.yaml", []byte(strings.ReplaceAll(conf, "BACKEND", b.addr)))
			err := w.main.Reload()
			if err == nil || !strings.Contains(err.Error(), "listen") {
				t.Errorf("%s: %v", name, err)
			}
			if w.main.Hash() != hash {
				t.Errorf("%s: another configuration is in force", name)
			}
			if status, _, err := live.get("b.test"); status != 200 {
				t.Errorf("%s: live connection: %d %v", name, status, err)
			}
			if a := w.call("public", alice, "b.test", "/"); a.status != 200 {
				t.Errorf("%s: new connection: %d %v", name, a.status, a.err)
			}
			if resp, err := http.Get("http://" + w.addr("ops") + "/readyz"); err != nil || resp.StatusCode != 200 {
				t.Errorf("%s: ops: %v", name, err)
			}
		}
		w.reload(conf, b.addr)
	})
	t.Run("H03/mismatched pair", func(t *testing.T) {
		hash := w.main.Hash()
		next := w.servers.Server("b.test")
		old := must(os.ReadFile(filepath.Join(w.dir, "server.key")))(t)
		serial := func() string {
			a := w.call("public", alice, "b.test", "/")
			if a.status != 200 {
				t.Fatalf("%d %v", a.status, a.err)
			}
			return a.state.PeerCertificates[0].SerialNumber.String()
		}
		w.file("server.pem", next.PEM()) // the certificate is there, its key not yet
		if err := w.main.Reload(); err == nil || !strings.Contains(err.Error(), "server.pem and server.key") {
			t.Errorf("reload: %v", err)
		}
		if w.main.Hash() != hash || serial() != w.server.Cert.SerialNumber.String() {
			t.Error("the old pair is gone")
		}
		w.file("server.key", next.KeyPEM())
		if err := w.main.Reload(); err != nil || serial() != next.Cert.SerialNumber.String() {
			t.Errorf("the new pair is not in force: %v", err)
		}
		w.file("server.key", old) // the other way round
		if err := w.main.Reload(); err == nil || serial() != next.Cert.SerialNumber.String() {
			t.Errorf("reload: %v", err)
		}
		w.file("server.key", next.KeyPEM())
	})
	t.Run("H06/renamed", func(t *testing.T) {
		w.reload(strings.Replace(conf, "  public:\n", "  renamed:\n", 1), b.addr)
		if status, _, err := live.get("b.test"); status != 200 {
			t.Errorf("live connection: %d %v", status, err)
		}
		if a := w.call("renamed", alice, "b.test", "/"); a.status != 200 || w.main.Addr("public") != nil {
			t.Errorf("new connection: %d %v", a.status, a.err)
		}
	})
	t.Run("H06/moved", func(t *testing.T) {
		w.reload(strings.Replace(conf, one, two, 1), b.addr)
		if c, err := net.Dial("tcp", one); err == nil {
			c.Close()
			t.Error("the old address still accepts")
		}
		if a := w.call("public", alice, "b.test", "/"); a.status != 200 || w.addr("public") != two {
			t.Errorf("new address: %d %v", a.status, a.err)
		}
		live.refused(t, w)
	})
	t.Run("H06/removed", func(t *testing.T) {
		w.reload(strings.Replace(conf, "listeners:\n", "listeners:\n  extra: {listen: "+two+", protocol: http, hosts: [{names: [b.test], routes: [{upstream: api}]}]}\n", 1), b.addr)
		plain := must(net.Dial("tcp", two))(t)
		defer plain.Close()
		_ = plain.SetDeadline(time.Now().Add(5 * time.Second))
		r := bufio.NewReader(plain)
		const request = "GET / HTTP/1.1\r\nHost: b.test\r\n\r\n"
		if status, _, err := roundTrip(plain, r, request); status != 200 {
			t.Errorf("%d %v", status, err)
		}
		w.reload(conf, b.addr)
		before := b.seen()
		refusedAfter(t, w, plain, r, "b.test")
		if b.seen() != before {
			t.Error("the target was asked over a live connection of a removed listener")
		}
		if c, err := net.Dial("tcp", two); err == nil {
			c.Close()
			t.Error("the removed listener still accepts")
		}
	})
	t.Run("A25/protocol changed", func(t *testing.T) {
		live := w.keep(t, "public", alice)
		w.reload(strings.NewReplacer("protocol: https", "protocol: http", "        certificate: {cert: server.pem, key: server.key}\n", "",
			"        client_auth: {mode: require, trust_store: clients}\n", "").Replace(conf), b.addr)
		live.refused(t, w)
	})
}

// freeAddr is an address that nobody listens on. The system may give a port of 127.0.0.1 to the next who asks, so it is on a
// loopback address of this process's own.
func freeAddr(t testing.TB) string {
	pid := os.Getpid()
	l := must(net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 128|pid>>16&0x7f, pid>>8&0xff, 1+pid&0x7f)))(t)
	defer l.Close()
	return l.Addr().String()
}

// process is Countersign as its users run it.
type process struct {
	*world
	cmd    *exec.Cmd
	public string
	opsURL string
	exited chan error
}

const processConf = `
ops: {listen: OPS}
drain: 10s
trust_stores:
  clients:
    ca_bundle: {file: clients.pem}
    revocation: {crls: [{file: clients.crl}]}
listeners:
  public:
    listen: PUBLIC
    protocol: https
    hosts:
      - names: [b.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        identity_headers: [rfc9440, alb]
        routes: [{upstream: api}]
upstreams:
  api: {targets: ["http://BACKEND"]}
`

// launch runs the program binary.
func launch(t *testing.T, binary, backend string) *process {
	p := &process{world: newWorld(t), public: freeAddr(t), exited: make(chan error, 1)}
	opsAddr := freeAddr(t)
	p.opsURL = "http://" + opsAddr
	p.write(strings.NewReplacer("OPS", opsAddr, "PUBLIC", p.public, "BACKEND", backend).Replace(processConf))
	p.cmd = exec.Command(binary, "run", "-c", filepath.Join(p.dir, "countersign.yaml"))
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.world.ops
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.exited <- p.cmd.Wait() }()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		if t.Failed() {
			text := p.world.ops.String()
			t.Logf("the program said: %s", text[max(0, len(text)-2000):])
		}
	})
	return p
}

// write puts the configuration in place as a whole, as one should.
func (p *process) write(conf string) {
	p.file("next.yaml", []byte(conf))
	if err := os.Rename(filepath.Join(p.dir, "next.yaml"), filepath.Join(p.dir, "countersign.yaml")); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) conf() string {
	return string(must(os.ReadFile(filepath.Join(p.dir, "countersign.yaml")))(p.t))
}

func (p *process) ready(t testing.TB) (status int, hash string) {
	resp, err := http.Get(p.opsURL + "/readyz")
	if err != nil {
		return 0, ""
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	_, hash, _ = strings.Cut(strings.TrimSpace(string(body)), "configuration ")
	return resp.StatusCode, hash
}

func (p *process) await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (p *process) started(t testing.TB) {
	t.Helper()
	p.await(t, "readiness", func() bool { s, _ := p.ready(t); return s == 200 })
}

// reloads is the number of accepted and of refused configurations.
func (p *process) reloads(t testing.TB) (accepted, refused int) {
	resp, err := http.Get(p.opsURL + "/metrics")
	if err != nil {
		return -1, -1
	}
	defer resp.Body.Close()
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), `countersign_reloads_total{result="accepted"} `); ok {
			accepted, _ = strconv.Atoi(v)
		} else if v, ok := strings.CutPrefix(s.Text(), `countersign_reloads_total{result="refused"} `); ok {
			refused, _ = strconv.Atoi(v)
		}
	}
	return accepted, refused
}

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// exit waits for the program's end.
func (p *process) exit(t testing.TB, within time.Duration) {
	t.Helper()
	select {
	case err := <-p.exited:
		p.exited <- err
		if err != nil {
			t.Errorf("exit: %v", err)
		}
	case <-time.After(within):
		t.Errorf("still running after %v", within)
	}
}

// slow is a backend that answers after a sign.
func slow(t testing.TB) (addr string, arrived chan struct{}, answer chan struct{}) {
	arrived, answer = make(chan struct{}, 16), make(chan struct{})
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			arrived <- struct{}{}
			<-answer
		}
		_, _ = io.WriteString(rw, "done")
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return l.Addr().String(), arrived, answer
}

func TestProcess(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the program")
	}
	binary := filepath.Join(t.TempDir(), "countersign")
	if out, err := exec.Command("go", "build", "-pgo=off", "-o", binary, "countersign/cmd/countersign").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	t.Run("H01/reloads under load", func(t *testing.T) { reloadsUnderLoad(t, binary) })

	request := func(t *testing.T, p *process) (result chan error) {
		c := must(tls.Dial("tcp", p.public, p.client("b.test", p.ca.Client("alice"))))(t)
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		t.Cleanup(func() { c.Close() })
		result = make(chan error, 1)
		go func() {
			status, body, err := roundTrip(c, bufio.NewReader(c), "GET /slow HTTP/1.1\r\nHost: b.test\r\n\r\n")
			if err == nil && (status != 200 || body != "done") {
				err = fmt.Errorf("%d %q", status, body)
			}
			result <- err
		}()
		return result
	}
	t.Run("it starts itself again and keeps its name", func(t *testing.T) {
		addr, _, _ := slow(t)
		p := launch(t, binary, addr)
		p.started(t)
		proc := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
		if name, err := os.ReadFile(proc + "comm"); string(name) != "countersign\n" {
			t.Errorf("called %q, %v; systemd, killall and logs expect countersign", name, err)
		}
		if os.Geteuid() != 0 || slack(t) != 50*time.Microsecond {
			return // nobody may ask for another's timer slack, or somebody has chosen one
		}
		threads := must(os.ReadDir(proc + "task"))(t)
		for _, thread := range threads {
			slack, err := os.ReadFile("/proc/" + thread.Name() + "/timerslack_ns")
			if string(slack) != "2000000\n" && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH) { // it may have ended
				t.Errorf("thread %s has a timer slack of %s ns, %v; expected 2 ms", thread.Name(), bytes.TrimSpace(slack), err)
			}
		}
		p.signal(syscall.SIGTERM)
		p.exit(t, 8*time.Second)
	})
	t.Run("H08/SIGTERM drains", func(t *testing.T) {
		addr, arrived, answer := slow(t)
		p := launch(t, binary, addr)
		p.started(t)
		result := request(t, p)
		<-arrived
		idle := must(tls.Dial("tcp", p.public, p.client("b.test", p.ca.Client("alice"))))(t)
		defer idle.Close()
		_ = idle.SetDeadline(time.Now().Add(5 * time.Second))
		p.signal(syscall.SIGTERM)
		p.await(t, "not ready", func() bool { s, _ := p.ready(t); return s == 503 })
		p.await(t, "the port to close", func() bool {
			c, err := net.Dial("tcp", p.public)
			if err == nil {
				c.Close()
			}
			return err != nil
		})
		if _, err := idle.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("an idle connection: %v, expected its end", err)
		}
		select {
		case err := <-p.exited:
			t.Fatalf("ended with a request open: %v", err)
		case <-time.After(300 * time.Millisecond):
		}
		close(answer)
		if err := <-result; err != nil {
			t.Errorf("the request in flight: %v", err)
		}
		p.exit(t, 8*time.Second) // less than the drain time
	})
	t.Run("H08/second SIGTERM forces", func(t *testing.T) {
		addr, arrived, answer := slow(t)
		defer close(answer)
		p := launch(t, binary, addr)
		p.started(t)
		result := request(t, p)
		<-arrived
		p.signal(syscall.SIGTERM)
		p.await(t, "not ready", func() bool { s, _ := p.ready(t); return s == 503 })
		p.signal(syscall.SIGTERM)
		p.exit(t, 8*time.Second) // less than the drain time
		if err := <-result; err == nil {
			t.Error("the request was answered")
		}
		if !strings.Contains(p.world.ops.String(), "shutdown_forced") {
			t.Error("no log line says that connections were cut")
		}
	})
	t.Run("H09/SIGHUP during drain", func(t *testing.T) {
		addr, arrived, answer := slow(t)
		p := launch(t, binary, addr)
		p.started(t)
		result := request(t, p)
		<-arrived
		p.signal(syscall.SIGTERM)
		p.signal(syscall.SIGHUP)
		p.await(t, "the port to close", func() bool {
			c, err := net.Dial("tcp", p.public)
			if err == nil {
				c.Close()
			}
			return err != nil
		})
		for range 20 {
			p.signal(syscall.SIGHUP)
			time.Sleep(5 * time.Millisecond)
		}
		if c, err := net.Dial("tcp", p.public); err == nil {
			c.Close()
			t.Error("the port is open again")
		}
		close(answer)
		if err := <-result; err != nil {
			t.Errorf("the request in flight: %v", err)
		}
		p.exit(t, 8*time.Second)
	})
	t.Run("H09/signals in every order", func(t *testing.T) {
		addr, _, answer := slow(t)
		defer close(answer)
		for i, order := range [][]syscall.Signal{
			{syscall.SIGTERM, syscall.SIGTERM}, {syscall.SIGHUP, syscall.SIGTERM}, {syscall.SIGTERM, syscall.SIGHUP, syscall.SIGTERM},
			{syscall.SIGHUP, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM}, {syscall.SIGINT},
		} {
			p := launch(t, binary, addr)
			p.started(t)
			for _, s := range order {
				p.signal(s)
			}
			p.exit(t, 8*time.Second)
			if text := p.world.ops.String(); strings.Contains(text, "panic") {
				t.Errorf("order %d: %s", i, text)
			}
		}
	})
	t.Run("H09/SIGTERM during start", func(t *testing.T) {
		addr, _, answer := slow(t)
		defer close(answer)
		for wait := range 6 {
			p := launch(t, binary, addr)
			time.Sleep(time.Duration(wait) * 4 * time.Millisecond)
			p.signal(syscall.SIGTERM)
			select {
			case err := <-p.exited: // before the program asked for signals the kernel ends it
				p.exited <- err
			case <-time.After(8 * time.Second):
				t.Errorf("still running, signal after %d ms", 4*wait)
			}
			if text := p.world.ops.String(); strings.Contains(text, "panic") || strings.Contains(text, "goroutine") {
				t.Errorf("%s", text)
			}
		}
	})
}

// reloadsUnderLoad is the issue's own sentence: 150 invalid and 50 valid changes by SIGHUP at 500 requests a second over
// 50 connections; no request fails, and the hash in force is asserted after each.
func reloadsUnderLoad(t *testing.T, binary string) {
	const connections, pause = 60, 80 * time.Millisecond // at most 750 requests a second
	b := echo(t, "api", nil)
	p := launch(t, binary, b.addr)
	p.started(t)
	var stop atomic.Bool
	var requests atomic.Int64
	var wg sync.WaitGroup
	defer func() { // also when the test ends early
		stop.Store(true)
		wg.Wait()
	}()
	for i := range connections {
		name := fmt.Sprint("client-", i)
		c := must(tls.Dial("tcp", p.public, pin(p.client("b.test", p.ca.Client(name)), tlsVersions[i%2].id)))(t)
		wg.Go(func() {
			defer c.Close()
			r := bufio.NewReader(c)
			time.Sleep(pause * time.Duration(i) / connections)
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for n := 0; !stop.Load(); n++ {
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				request := "GET /x HTTP/1.1\r\nHost: b.test\r\n\r\n"
				if n%3 == 0 {
					request = "POST /x HTTP/1.1\r\nHost: b.test\r\nContent-Length: 5\r\n\r\nhello"
				}
				if status, body, err := roundTrip(c, r, request); status != 200 || !strings.HasPrefix(body, "api ") {
					t.Errorf("%s, request %d: %d %q %v", name, n, status, body, err)
					return
				}
				requests.Add(1)
				<-tick.C
			}
		})
	}
	good := p.conf()
	replace := func(old, new string) func(int) string {
		return func(i int) string {
			out := strings.ReplaceAll(strings.Replace(good, old, new, 1), "NUMBER", strconv.Itoa(i))
			if out == good {
				t.Errorf("no change by %q", new)
			}
			return out
		}
	}
	busy := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer busy.Close()
	w := p.world
	w.file("empty.pem", nil)
	w.file("half.pem", w.root.PEM()[:200])
	invalid := []func(int) string{
		replace("mode: require, trust_store: clients", "mode: require"),
		replace("clients.pem", "missing-NUMBER.pem"),
		replace("clients.pem", "empty.pem"),
		replace("clients.pem", "half.pem"),
		replace("clients.crl", "server.pem"),
		replace("server.key", "servers.pem"),
		replace("listeners:", "listenerz:"),
		replace("drain: 10s", "drain: soon"),
		replace("upstream: api", "upstream: nowhere"),
		replace("names: [b.test]", "names: [b.test, B.test.]"),
		replace("  public:", "  extra: {listen: '"+busy.Addr().String()+"', protocol: http, hosts: [{names: [x.test], routes: [{upstream: api}]}]}\n  public:"),
		replace("trust_store: clients}", "trust_store: clients, on_failure: maybe}"),
		func(i int) string { return good[:len(good)*(i%9+1)/11] },
		func(int) string { return "" },
		replace("routes: [{upstream: api}]", "routes: []"),
	}
	valid := []func(int) string{
		replace("drain: 10s", "drain: 1NUMBERs"),
		replace("  api: {targets:", "  api: {max_connections: 20NUMBER, targets:"),
		replace("  public:", "  extra: {listen: 'localhost:0', protocol: http, hosts: [{names: [xNUMBER.test], routes: [{upstream: api}]}]}\n  public:"),
		replace("protocol: https", "protocol: https\n    tls: {min_version: '1.2'} # NUMBER"),
		func(i int) string {
			w.file("clients.crl", w.ca.CRL(w.ca.Client("gone"), testpki.Number(int64(i+2))))
			return good
		},
		func(int) string {
			next := w.servers.Server("b.test")
			w.file("server.pem", next.PEM())
			w.file("server.key", next.KeyPEM())
			return good
		},
		replace("routes: [{upstream: api}]", "routes: [{match: {path: /xNUMBER}, upstream: api}, {upstream: api}]"),
		replace("  public:", "  renamedNUMBER:"),
		replace("upstream: api}]\n", "upstream: apiNUMBER}]\n"), // and its definition, below
		func(i int) string { return good },
	}
	_, hash := p.ready(t)
	accepted, refused := p.reloads(t)
	start := time.Now()
	var ok, bad int
	var rates []float64 // in each tenth
	for i, since, had := 0, start, int64(0); i < 200; i++ {
		if now := time.Now(); i%20 == 0 && i > 0 {
			n := requests.Load()
			rates = append(rates, float64(n-had)/now.Sub(since).Seconds())
			since, had = now, n
		}
		isValid := i%4 == 3
		var conf string
		if isValid {
			conf = valid[(i/4)%len(valid)](i)
			conf = strings.Replace(conf, "  api: {targets", map[bool]string{true: "  api" + strconv.Itoa(i) + ": {targets", false: "  api: {targets"}[strings.Contains(conf, "upstream: api"+strconv.Itoa(i))], 1)
			ok++
		} else {
			conf = invalid[(i-i/4)%len(invalid)](i)
			bad++
		}
		p.file("next.yaml", []byte(conf)) // not yet in place: soon after, the program would load it without the signal
		l, err := daemon.Load(filepath.Join(p.dir, "next.yaml"), snapshot.Env{Now: time.Now()})
		if isValid != (err == nil) && !strings.Contains(conf, "extra: {listen: '127") {
			t.Fatalf("change %d is not what it should be: %v\n%s", i, err, conf)
		}
		if isValid {
			hash = l.Snapshot.Hash
		}
		p.write(conf)
		p.signal(syscall.SIGHUP)
		p.await(t, fmt.Sprint("reload ", i), func() bool {
			a, r := p.reloads(t)
			if a+r > accepted+refused+1 {
				t.Fatalf("reload %d was counted %d times", i, a+r-accepted-refused)
			}
			return a+r == accepted+refused+1
		})
		a, r := p.reloads(t)
		if (a == accepted+1) != isValid || (r == refused+1) == isValid {
			t.Fatalf("change %d: accepted %d then %d, refused %d then %d\n%s", i, accepted, a, refused, r, conf)
		}
		accepted, refused = a, r
		if status, got := p.ready(t); status != 200 || got != hash {
			t.Fatalf("after change %d: %d, hash %s, expected %s", i, status, got, hash)
		}
		time.Sleep(15 * time.Millisecond)
	}
	took := time.Since(start)
	stop.Store(true)
	wg.Wait()
	slices.Sort(rates)
	rate := rates[len(rates)/2] // the machine may have stood still in one of them
	t.Logf("%d valid and %d invalid changes in %v, %d requests, %.0f a second over %d connections", ok, bad, took, requests.Load(), rate, connections)
	if ok != 50 || bad != 150 || rate < 500 && !raceEnabled {
		t.Errorf("%d valid, %d invalid, %.0f requests a second", ok, bad, rate)
	}
	for line := range strings.Lines(p.log.String()) {
		if strings.Contains(line, `"kind":"request"`) && !strings.Contains(line, `"reason":"completed"`) {
			t.Errorf("a request failed: %s", line)
			break
		}
	}
	p.signal(syscall.SIGTERM)
	p.exit(t, 12*time.Second)
	if bytes.Contains([]byte(p.world.ops.String()), []byte("panic")) {
		t.Error("a panic is in the log")
	}
}
