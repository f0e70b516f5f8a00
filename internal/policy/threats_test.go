package policy

import (
	"testing"

	"countersign/internal/reason"
	"countersign/internal/testpki"
)

// TestChosenNames: a client that got its CA to sign a name of its own choice beside, before or instead of the one it is
// known by. A rule says itself whether any name is enough, or only the one there is, and a name that is empty or not there
// is nobody's.
func TestChosenNames(t *testing.T) {
	const (
		victim, own = "https://corp.test/victim", "https://evil.test/own"
		anyOf       = `client.uri_sans.exists(u, u == "https://corp.test/victim")`
		exactlyOne  = `client.uri_sans.size() == 1 && "https://corp.test/victim" in client.uri_sans`
		onlyThese   = `client.uri_sans.size() > 0 && client.uri_sans.all(u, u in ["https://corp.test/victim"])`
		first       = `client.uri_sans[0] == "https://corp.test/victim"`
		spiffe      = `client.spiffe_id == "spiffe://corp.test/ops"`
		mailbox     = `client.email_sans.exists(e, email_matches(e, "ops@corp.test"))`
	)
	empty := testpki.RawSubject([]byte{0x30, 0})
	for _, c := range []struct {
		name, text string
		why        reason.Reason
		opts       []testpki.Option
	}{
		{"own name only, any", anyOf, reason.PolicyDenied, []testpki.Option{testpki.URI(own)}},
		{"own name only, exactly one", exactlyOne, reason.PolicyDenied, []testpki.Option{testpki.URI(own)}},
		{"own name only, first", first, reason.PolicyDenied, []testpki.Option{testpki.URI(own)}},
		{"own name first, exactly one", exactlyOne, reason.PolicyDenied, []testpki.Option{testpki.URI(own, victim)}},
		{"own name last, exactly one", exactlyOne, reason.PolicyDenied, []testpki.Option{testpki.URI(victim, own)}},
		{"the same name twice, exactly one", exactlyOne, reason.PolicyDenied, []testpki.Option{testpki.URI(victim, victim)}},
		{"own name first, only these", onlyThese, reason.PolicyDenied, []testpki.Option{testpki.URI(own, victim)}},
		{"own name last, only these", onlyThese, reason.PolicyDenied, []testpki.Option{testpki.URI(victim, own)}},
		{"own name first, first", first, reason.PolicyDenied, []testpki.Option{testpki.URI(own, victim)}},
		{"no name, first", first, reason.PolicyFailed, nil},
		{"no name, only these", onlyThese, reason.PolicyDenied, nil},
		{"beside a SPIFFE ID", spiffe, reason.PolicyDenied, []testpki.Option{testpki.URI("spiffe://corp.test/ops", own)}},
		{"before a SPIFFE ID", spiffe, reason.PolicyDenied, []testpki.Option{testpki.URI(own, "spiffe://corp.test/ops")}},
		{"two SPIFFE IDs", spiffe, reason.PolicyDenied, []testpki.Option{testpki.URI("spiffe://corp.test/ops", "spiffe://evil.test/ops")}},
		{"in a name of another type", anyOf, reason.PolicyDenied, []testpki.Option{sans(san(1, victim), san(2, victim))}},
		{"a mailbox in a URI", mailbox, reason.PolicyDenied, []testpki.Option{testpki.URI("mailto:ops@corp.test")}},
		{"a mailbox in the subject", mailbox, reason.PolicyDenied, []testpki.Option{name(rdn(cn("ops@corp.test")))}},
		{"a URI in the CN", anyOf, reason.PolicyDenied, []testpki.Option{name(rdn(cn(victim)))}},

		// Nobody's name. The subject is empty, or has no CN, or an empty one.
		{"no subject, CN", `client.common_name == "ops"`, reason.PolicyDenied, []testpki.Option{empty, testpki.URI(own)}},
		{"no subject, CN in a list", `client.common_name in ["ops", "victim"]`, reason.PolicyDenied, []testpki.Option{empty, testpki.URI(own)}},
		{"no subject, CN by pattern", `client.common_name.matches("^[a-z]+$")`, reason.PolicyDenied, []testpki.Option{empty, testpki.URI(own)}},
		{"no subject, subject", `client.subject == "CN=ops"`, reason.PolicyDenied, []testpki.Option{empty, testpki.URI(own)}},
		{"no subject, units", `client.organizational_units.exists(o, o == "admin")`, reason.PolicyDenied, []testpki.Option{empty, testpki.URI(own)}},
		{"no CN, no header", `client.common_name == request.headers.only("x-user")`, reason.PolicyFailed, []testpki.Option{empty, testpki.URI(own)}},
		{"empty CN", `client.common_name in ["ops", "victim"]`, reason.PolicyDenied, []testpki.Option{name(rdn(cn("")))}},
		{"empty O", `request.headers.only("x-tenant") in client.organizations`, reason.PolicyFailed, []testpki.Option{name(rdn(o("")), rdn(cn("ops")))}},
		{"empty CN beside", `client.common_name == "ops"`, reason.PolicyDenied, []testpki.Option{name(rdn(cn("")), rdn(cn("ops")))}},
		{"no SPIFFE ID", `spiffe_matches(client.spiffe_id, "spiffe://corp.test/**")`, reason.PolicyDenied, nil},
		{"no name, DNS", `client.dns_sans.exists(d, dns_matches(d, "*.corp.test"))`, reason.PolicyDenied, nil},
		{"empty DNS name", `"" in client.dns_sans || true`, reason.PolicyFailed, []testpki.Option{sans(san(2, ""))}},
		{"empty DNS name beside", `"ops.corp.test" in client.dns_sans`, reason.PolicyFailed, []testpki.Option{sans(san(2, ""), san(2, "ops.corp.test"))}},
		{"empty URI", `client.uri_sans.exists(u, u == request.headers.only("x-tenant"))`, reason.PolicyFailed, []testpki.Option{sans(san(6, ""))}},
		{"empty mailbox", `client.email_sans.exists(e, e == request.headers.only("x-user"))`, reason.PolicyFailed, []testpki.Option{sans(san(1, ""))}},

		{"the one name, any", anyOf, reason.Unset, []testpki.Option{testpki.URI(victim)}},
		{"own name first, any", anyOf, reason.Unset, []testpki.Option{testpki.URI(own, victim)}}, // as the rule says
		{"own name last, any", anyOf, reason.Unset, []testpki.Option{testpki.URI(victim, own)}},
		{"own name last, first", first, reason.Unset, []testpki.Option{testpki.URI(victim, own)}},
		{"the one name, exactly one", exactlyOne, reason.Unset, []testpki.Option{testpki.URI(victim)}},
		{"the one name, only these", onlyThese, reason.Unset, []testpki.Option{testpki.URI(victim)}},
		{"the one name, first", first, reason.Unset, []testpki.Option{testpki.URI(victim)}},
		{"a SPIFFE ID", spiffe, reason.Unset, []testpki.Option{testpki.URI("spiffe://corp.test/ops")}},
		{"a mailbox", mailbox, reason.Unset, []testpki.Option{testpki.Email("ops@corp.test")}},
	} {
		t.Run("B29/"+c.name, func(t *testing.T) {
			f := facts(t, client(t, "x", c.opts...), "/")
			if why := decide(t, compiled(t, c.text), f); why != c.why {
				t.Errorf("%v, expected %v: %v", why, c.why, f.Cause())
			}
		})
	}
}
