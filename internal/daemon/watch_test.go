package daemon_test

import (
	"strings"
	"testing"
	"time"
)

// TestFilesWatched shows that a changed file is put in force without a signal, once, and that a broken one is not (H05).
func TestFilesWatched(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.start(basic, b.addr)
	alice := w.ca.Client("alice")
	conf := w.client("a.test", alice)
	if status, _, err := w.get("public", conf, "a.test", "/"); status != 200 {
		t.Fatal(status, err)
	}
	hash := w.main.Hash()
	t.Run("H05/a list that revokes alice", func(t *testing.T) {
		w.file("clients.crl", w.ca.CRL(alice))
		for deadline := time.Now().Add(60 * time.Second); w.main.Hash() == hash; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("never noticed: %s", w.ops.String())
			}
		}
		if status, _, err := w.get("public", conf, "a.test", "/"); err == nil {
			t.Errorf("alice still gets in: %d", status)
		}
		w.record("reason=client_cert_revoked")
		await(t, 10*time.Second, "the log to tell of it", func() bool { return strings.Count(w.ops.String(), "configuration in force") > 1 })
		if n := strings.Count(w.ops.String(), "configuration in force"); n != 2 {
			t.Errorf("%d loads, expected the first and one more", n)
		}
	})
	t.Run("H05/a list that is none", func(t *testing.T) {
		hash := w.main.Hash()
		w.file("clients.crl", []byte("not a list\n"))
		w.awaitMetric(`countersign_condition{code="reload_refused"}`, "1")
		if w.main.Hash() != hash {
			t.Error("it is in force")
		}
		w.file("clients.crl", w.ca.CRL(alice))
		w.awaitMetric(`countersign_condition{code="reload_refused"}`, "")
	})
}
