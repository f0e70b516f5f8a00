package policy

import (
	"strings"
	"testing"

	"countersign/internal/identity"
	"countersign/internal/reason"
	"countersign/internal/testpki"
)

// TestShown shows every variable to people, of good clients and bad ones, and that showing changes no decision.
func TestShown(t *testing.T) {
	r := compiled(t, `client.common_name == "ops" && request.path != "/x"`)
	f := facts(t, ops(t), "/a%20b", "X-Team: a", "X-Team: b\x1b[31m", "Client-Cert: forged")
	for name, want := range map[string]string{
		"client.common_name": `"ops"`, "client.dns_sans": `["ops.corp.test", "b.corp.test"]`, "client.spiffe_id": `"spiffe://corp.test/ops"`,
		"client.present": "true", "request.path": `"/a b"`, "connection.resumed": "true", "client.nothing": "cannot be read",
		"request.headers": `"x-team": ["a", "b\x1b[31m"]`, "nothing": "unknown",
	} {
		if got := r.Shown(f, name); !strings.Contains(got, want) || strings.Contains(got, "forged") {
			t.Errorf("%s: %s, expected %s", name, got, want)
		}
	}
	if why := decide(t, r, f); why != reason.Unset || f.Cause() != nil {
		t.Errorf("showing has changed the decision: %v, %v", why, f.Cause())
	}
	hostile := []identity.Client{nobody(), client(t, "x", testpki.DNS("a\x00b")), client(t, "x", testpki.URI("spiffe://a/b", "spiffe://a/c")),
		client(t, strings.Repeat("\x1b", 900)), client(t, "many", testpki.DNS(manyNames()...))}
	for _, c := range hostile {
		f := facts(t, c, "/"+strings.Repeat("a", 3000), manyHeaders()...)
		for _, v := range Variables() {
			if got := r.Shown(f, v.Name); got == "" || len(got) > 1010 || !printable(got) {
				t.Errorf("%s: %d bytes: %q", v.Name, len(got), got)
			}
		}
	}
	if got := r.Shown(facts(t, nobody(), "/"), "client.subject"); got != "not there: no verified client" {
		t.Error(got)
	}
}
