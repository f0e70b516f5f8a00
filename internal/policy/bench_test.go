package policy

import (
	"testing"

	"countersign/internal/reason"
)

var rules = []struct{ name, text string }{
	{"uri", `client.uri_sans.exists(u, u == "spiffe://corp.test/ops")`},
	{"spiffe", `spiffe_matches(client.spiffe_id, "spiffe://corp.test/*")`},
	{"methods", `request.method in ["GET", "HEAD"] && spiffe_matches(client.spiffe_id, "spiffe://corp.test/*") && request.path.startsWith("/v1/")`},
	{"network", `ip_in(connection.client_ip, "10.0.0.0/8")`},
	{"header", `request.headers.only("x-tenant") == "a"`},
	{"regexp", `client.uri_sans.exists(u, u.matches("^spiffe://corp\\.test/[a-z]+$"))`},
}

func BenchmarkRule(b *testing.B) {
	for _, c := range rules {
		b.Run(c.name, func(b *testing.B) {
			f := facts(b, ops(b), "/v1/a", "Accept: */*", "X-Tenant: a")
			q := &Question{Serial: 3, Connection: "p", Asked: "p", Mode: Require, Client: f.Client, Upstream: "api", Allow: compiled(b, c.text), Facts: f}
			b.ReportAllocs()
			for b.Loop() {
				if _, why := Decide(q); why != reason.Unset {
					b.Fatal(why, f.Cause())
				}
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		compiled(b, rules[2].text)
	}
}

// TestAllocations: a route without a rule costs nothing, and one with a rule little.
func TestAllocations(t *testing.T) {
	f := facts(t, ops(t), "/v1/a")
	q := &Question{Serial: 3, Connection: "p", Asked: "p", Mode: Require, Client: f.Client, Upstream: "api"}
	if n := testing.AllocsPerRun(100, func() { Decide(q) }); n != 0 {
		t.Errorf("%v allocations without a rule", n)
	}
	q.Allow, q.Facts = compiled(t, rules[0].text), f
	if n := testing.AllocsPerRun(100, func() { Decide(q) }); n > 10 {
		t.Errorf("%v allocations with a rule", n)
	}
}
