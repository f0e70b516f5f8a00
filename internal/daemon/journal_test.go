package daemon_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/internal/daemon"
	"countersign/internal/journal"
	"countersign/internal/testpki"
)

// keptIn is what the journal of w has about q.
func (w *world) keptIn(t testing.TB, q journal.Query) []journal.Entry {
	t.Helper()
	r, err := daemon.OpenJournal(context.Background(), filepath.Join(w.dir, "countersign.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	list, _, err := r.Search(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// atLength waits for what the journal's writer does.
func atLength(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

const unkept = `
trust_stores: {clients: {ca_bundle: {file: clients.pem}}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts: [{names: [a.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, routes: [{upstream: api}]}]
upstreams: {api: {targets: ["http://BACKEND"]}}
`

// TestJournal shows that there is a journal exactly where the configuration has a place for it, that a reload moves it, and
// that a damaged one stops nobody.
func TestJournal(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	good, bad := w.client("a.test", w.ca.Client("alice")), w.client("a.test", testpki.New(t).Client("mallory"))
	w.start(unkept, b.addr)
	if a := w.call("public", bad, "a.test", "/"); a.err == nil {
		t.Fatal("a stranger was let in")
	} else {
		w.ended(t, a) // before there is a journal
	}
	for _, name := range []string{"state", "kept"} {
		if _, err := os.Stat(filepath.Join(w.dir, name)); err == nil {
			t.Errorf("a folder %s was made, which nobody asked for", name)
		}
	}
	if _, err := daemon.OpenJournal(context.Background(), filepath.Join(w.dir, "countersign.yaml")); err == nil || !strings.Contains(err.Error(), "nothing is kept") {
		t.Error(err)
	}

	if err := os.Mkdir(filepath.Join(w.dir, "kept"), 0o700); err != nil {
		t.Fatal(err)
	}
	file := journal.FileIn(filepath.Join(w.dir, "kept"))
	if err := os.WriteFile(file, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.reload("state: kept\n"+unkept, b.addr)
	if a := w.call("public", good, "a.test", "/"); a.status != 200 {
		t.Fatalf("H11/a damaged journal stops traffic: %v", a.err)
	}
	a := w.call("public", bad, "a.test", "/")
	atLength(t, "the refusal is kept", func() bool {
		r, err := journal.OpenReader(context.Background(), file)
		if err != nil {
			return false // it is being made
		}
		defer r.Close()
		list, _, err := r.Search(context.Background(), journal.Query{Reason: "client_cert_untrusted"})
		return err == nil && len(list) == 1 && list[0].Client == a.client && list[0].TLS == "TLS 1.3" && list[0].Cipher != "" && len(list[0].Tried) == 1
	})
	found := false
	for _, c := range w.main.Conditions() {
		found = found || c.Code == journal.SetAside
	}
	if !found {
		t.Errorf("the operator is not told: %+v", w.main.Conditions())
	}

	w.reload("state: kept\njournal: {enabled: false}\n"+unkept, b.addr)
	w.ended(t, w.call("public", bad, "a.test", "/")) // before it is on again
	w.reload("state: kept\njournal: {max_records: 100}\n"+unkept, b.addr)
	a = w.call("public", bad, "a.test", "/")
	atLength(t, "the last refusal is kept", func() bool { return len(w.keptIn(t, journal.Query{})) >= 2 })
	if list := w.keptIn(t, journal.Query{}); len(list) != 2 || list[0].Client != a.client {
		t.Errorf("what happened while it was off is there, or the last is not: %+v", list)
	}
}
