package daemon_test

import (
	"strings"
	"testing"
	"time"

	"countersign/internal/testpki"
)

// TestConditionsAreLogged: what nobody does, a list that ends, is told in the log too, once each (C04).
func TestConditionsAreLogged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.file("clients.crl", w.ca.CRL(testpki.Number(1), testpki.ThisUpdate(time.Now().Add(-time.Hour)), testpki.NextUpdate(time.Now().Add(4*time.Second))))
	w.start(basic, "127.0.0.1:1")
	says := func(texts ...string) func() bool {
		return func() bool {
			for line := range strings.Lines(w.ops.String()) {
				if all := true; strings.Contains(line, "condition=list_stale") {
					for _, text := range texts {
						all = all && strings.Contains(line, text)
					}
					if all {
						return true
					}
				}
			}
			return false
		}
	}
	await(t, 10*time.Second, "word that it ends soon", says("level=WARN", "expires in"))
	await(t, 15*time.Second, "word that it has ended", says("level=WARN", "expired"))
	w.file("clients.crl", w.ca.CRL(testpki.Number(2)))
	await(t, 15*time.Second, "word that all is well", says("level=INFO", "put right"))
	if n := strings.Count(w.ops.String(), "level=WARN msg=condition condition=list_stale"); n != 2 {
		t.Errorf("told %d times, want twice:\n%s", n, w.ops)
	}
}
