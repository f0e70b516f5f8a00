package daemon_test

import (
	"fmt"
	"strings"
	"testing"

	"countersign/internal/testpki"
)

// TestForwardSticky: with forward_sticky a client stays at the pool that it was given, and the pools share the clients.
func TestForwardSticky(t *testing.T) {
	w := newWorld(t)
	a, b := echo(t, "one", nil), echo(t, "two", nil)
	w.file("clients.crl", w.ca.CRL(testpki.Number(1)))
	w.start(strings.NewReplacer("routes: [{upstream: api}]", "routes: [{forward: [{upstream: api, weight: 1}, {upstream: other, weight: 1}], forward_sticky: client}]",
		`{api: {targets: ["http://BACKEND"]}}`, `{api: {targets: ["http://BACKEND"]}, other: {targets: ["http://`+b.addr+`"]}}`).Replace(byFile), a.addr)
	for i := range 16 {
		conf := w.client("a.test", w.ca.Client(fmt.Sprint("client", i)))
		var first string
		for j := range 4 {
			status, body, err := w.get("public", conf, "a.test", "/")
			name, _, _ := strings.Cut(body, " ")
			if status != 200 || err != nil || j > 0 && name != first {
				t.Errorf("client %d: %d %q %v, before at %s", i, status, body, err, first)
			}
			first = name
		}
	}
	if a.seen() == 0 || b.seen() == 0 {
		t.Errorf("%d requests at one pool, %d at the other", a.seen(), b.seen())
	}
}
