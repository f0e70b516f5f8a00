package daemon_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"countersign/internal/daemon"
	"countersign/internal/testpki"
)

const renewConf = `
trust_stores: {clients: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: clients.crl}, {file: root.crl}]}}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts: [{names: [a.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, routes: [{upstream: api}]}]
upstreams: {api: {targets: ["http://BACKEND"]}}
`

// A configuration that is refused must not keep revocations from those who run under the one in force.
func TestRenew(t *testing.T) {
	b := echo(t, "api", nil)
	w := newWorld(t)
	w.file("root.crl", w.root.CRL())
	w.startWith(renewConf, b.addr, func(o *daemon.Options) { o.Quiet, o.Poll = 20*time.Millisecond, 100*time.Millisecond })
	serves := func(c *testpki.Cert) bool {
		status, _, err := w.get("public", w.client("a.test", c), "a.test", "/")
		return err == nil && status == 200
	}
	revokes := func(t *testing.T, number int64, all ...*testpki.Cert) {
		t.Helper()
		items := []testpki.CRLItem{testpki.Number(number)}
		for _, c := range all {
			items = append(items, c)
		}
		last := all[len(all)-1]
		if !serves(last) {
			t.Fatal("refused before")
		}
		w.file("clients.crl", w.ca.CRL(items...))
		await(t, 10*time.Second, "the list to be in force", func() bool { return !serves(last) })
	}
	alice, bob, carol, dave := w.ca.Client("alice"), w.ca.Client("bob"), w.ca.Client("carol"), w.ca.Client("dave")
	t.Run("C15/a slip in the configuration", func(t *testing.T) {
		w.file("countersign.yaml", []byte("listeners: oops\n"))
		revokes(t, 2, alice)
		if !serves(bob) {
			t.Error("bob is refused too")
		}
	})
	t.Run("A22/a wider bundle beside a slip", func(t *testing.T) {
		other := testpki.New(t)
		w.file("clients.pem", append(append(w.root.PEM(), w.ca.PEM()...), other.PEM()...))
		w.file("clients.crl", w.ca.CRL(alice, testpki.Number(3)))
		await(t, 10*time.Second, "the list to be in force", func() bool { return strings.Contains(w.ops.String(), "are newer, and in force") })
		time.Sleep(500 * time.Millisecond)
		if serves(other.Client("partner")) {
			t.Error("a CA of a configuration that was refused is trusted")
		}
		w.file("clients.pem", append(w.root.PEM(), w.ca.PEM()...))
	})
	t.Run("C15/another file is bad", func(t *testing.T) {
		w.file("root.crl", []byte("no list"))
		revokes(t, 4, alice, bob)
		if !strings.Contains(w.ops.String(), "reload_refused") && !strings.Contains(w.ops.String(), "configuration refused") {
			t.Error("nothing was said")
		}
	})
	t.Run("A22/a pipe in place of a file", func(t *testing.T) {
		w.file("countersign.yaml", []byte(strings.ReplaceAll(renewConf, "BACKEND", b.addr)))
		pipe := filepath.Join(w.dir, "root.crl")
		if err := os.Remove(pipe); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mkfifo(pipe, 0o600); err != nil {
			t.Fatal(err)
		}
		revokes(t, 5, alice, bob, carol)
		if err := os.Remove(pipe); err != nil {
			t.Fatal(err)
		}
		w.file("root.crl", w.root.CRL())
		revokes(t, 6, alice, bob, carol, dave)
	})
}
