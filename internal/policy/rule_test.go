package policy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/internal/identity"
	"countersign/internal/message"
	"countersign/internal/reason"
	"countersign/internal/route"
)

func compiled(tb testing.TB, text string) *Rule {
	tb.Helper()
	r, err := Compile(text, CompileOptions{Mode: Request})
	if err != nil {
		tb.Fatalf("%s: %v", text, err)
	}
	return r
}

// facts are a GET of a path by a client, with header lines of the form "Name: value".
func facts(tb testing.TB, c identity.Client, path string, lines ...string) *Facts {
	tb.Helper()
	req := &message.Request{Method: []byte("GET"), Query: []byte("a=1&b=%20"), Host: []byte("api.test:8443")}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		req.Fields = append(req.Fields, message.Field{Name: []byte(name), Value: []byte(value)})
	}
	read, err := route.Analyze([]byte(path), make([]byte, 0, 5*len(path)))
	if err != nil {
		tb.Fatal(err)
	}
	return &Facts{Client: c, Request: req, Path: read, Host: "api.test", Now: time.Date(2026, 11, 21, 9, 30, 0, 0, time.UTC),
		Connection: &Connection{ClientIP: netip.MustParseAddr("10.1.2.3"), Listener: "public", ServerName: "api.test", TLSVersion: 0x0304, Port: 8443, Resumed: true}}
}

// decide asks Decide about a rule, under mode request.
func decide(tb testing.TB, r *Rule, f *Facts) reason.Reason {
	tb.Helper()
	permit, why := Decide(&Question{Serial: 3, Connection: "p", Asked: "p", Mode: Request, Client: f.Client, Upstream: "api", Allow: r, Facts: f})
	if _, ok := permit.Upstream(3); ok != (why == reason.Unset) || !ok && permit != (Permit{}) {
		tb.Errorf("%s: %v came with permit %+v", r, why, permit)
	}
	if would, err := r.Would(f); would != (why == reason.Unset) || (err != nil) != (why == reason.PolicyFailed || why == reason.PathUnsafe) {
		tb.Errorf("%s: Decide says %v, Would says %v %v", r, why, would, err)
	}
	return why
}

func nobody() identity.Client { return identity.Absent(reason.ClientCertMissing) }

// TestNobody: a client that is not there is never allowed by what it is not.
func TestNobody(t *testing.T) {
	for _, c := range []struct {
		name, text string
		why        reason.Reason
	}{
		{"A42/read", `client.subject == ""`, reason.PolicyDenied},
		{"A42/not equal", `client.common_name != "mallory"`, reason.PolicyDenied},
		{"A42/negation", `!(client.common_name == "mallory")`, reason.PolicyDenied},
		{"A42/double negation", `!!(client.common_name == "")`, reason.PolicyDenied},
		{"A42/or true", `client.common_name == "a" || true`, reason.PolicyDenied},
		{"A42/or true, on the right of and", `true && (client.common_name == "a" || true)`, reason.PolicyDenied},
		{"A42/error swallowed", `(1 / (size(request.method) - 3) > 0 || client.subject == "") || true`, reason.PolicyDenied},
		{"A42/negated list", `!("x" in client.uri_sans)`, reason.PolicyDenied},
		{"A42/none of", `!client.uri_sans.exists(u, u == "x")`, reason.PolicyDenied},
		{"A42/all of nothing", `client.uri_sans.all(u, u == "x")`, reason.PolicyDenied},
		{"A42/empty list", `client.uri_sans.size() == 0`, reason.PolicyDenied},
		{"A42/empty list by size()", `size(client.dns_sans) == 0`, reason.PolicyDenied},
		{"A42/ternary condition", `client.subject == "x" ? false : true`, reason.PolicyDenied},
		{"A42/ternary branch", `client.present ? true : client.subject == client.subject`, reason.PolicyDenied},
		{"A42/ternary of fields", `(client.present ? client.issuer : client.subject) == ""`, reason.PolicyDenied},
		{"A42/in a macro", `[1, 2].exists(x, client.subject == "") || true`, reason.PolicyDenied},
		{"A42/macro that swallows errors", `[1, 2].exists(x, x == 2 || client.subject == "a")`, reason.PolicyDenied},
		{"A42/exists_one", `[client.subject, ""].exists_one(x, x == "")`, reason.PolicyDenied},
		{"A42/map", `["a"].map(x, client.subject + x).size() == 1`, reason.PolicyDenied},
		{"A42/filter", `["a"].filter(x, x == client.subject).size() == 0`, reason.PolicyDenied},
		{"A42/list", `[client.subject].size() == 1`, reason.PolicyDenied},
		{"A42/map literal", `{"a": client.subject}.size() == 1`, reason.PolicyDenied},
		{"A42/in a list", `client.subject in ["", "x"]`, reason.PolicyDenied},
		{"A42/not in a list", `!(client.subject in ["x"])`, reason.PolicyDenied},
		{"A42/with itself", `client.subject == client.subject`, reason.PolicyDenied},
		{"A42/timestamps", `client.not_after > client.not_before || true`, reason.PolicyDenied},
		{"A42/time", `!(connection.time < client.not_after)`, reason.PolicyDenied},
		{"A42/conversion", `string(client.not_after) != ""`, reason.PolicyDenied},
		{"A42/function", `!spiffe_matches(client.spiffe_id, "spiffe://corp.test/*")`, reason.PolicyDenied},
		{"A42/member function", `client.common_name.lowerAscii() == ""`, reason.PolicyDenied},
		{"A42/leading dot", `.client.subject == "" || true`, reason.PolicyDenied},
		{"A42/leading dot in a macro", `[1].all(x, .client.subject == "" || true)`, reason.PolicyDenied},
		{"A42/backticks", "client.`subject` == \"\" || true", reason.PolicyDenied},
		{"A42/key of a header", `request.headers[client.common_name] == [""] || true`, reason.PolicyDenied},
		{"A42/cost limit", `client.subject == "" || client.present`, reason.PolicyDenied},
		{"B12/email", `!client.email_sans.exists(e, email_matches(e, "*@evil.test"))`, reason.PolicyDenied},

		{"present", `client.present`, reason.PolicyDenied},
		{"not present", `!client.present`, reason.Unset},
		{"guarded", `!client.present || client.common_name == "ops"`, reason.Unset},
		{"guarded, ternary", `client.present ? client.common_name == "ops" : request.method == "GET"`, reason.Unset},
		{"not reached", `request.method == "GET" || client.common_name == "ops"`, reason.Unset},
		{"not reached, and", `!(request.method == "POST" && client.common_name == "ops")`, reason.Unset},
		{"not reached, empty list", `request.headers.all(k, client.subject == k)`, reason.Unset},
		{"nothing of the client", `true`, reason.Unset},
		{"no", `false`, reason.PolicyDenied},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := compiled(t, c.text)
			for name, absent := range map[string]identity.Client{"missing": nobody(),
				"shown": identity.Unverified(presented(t), reason.ClientCertMissing)} {
				if why := decide(t, r, facts(t, absent, "/")); why != c.why {
					t.Errorf("%s, %s: %v, expected %v", c.text, name, why, c.why)
				}
			}
		})
	}
}

// TestNobodyAtRandom composes conditions at random, and follows by hand which of them are evaluated: a client that is not
// there is allowed only by those that never look at it.
func TestNobodyAtRandom(t *testing.T) {
	rnd := rand.New(rand.NewPCG(4, 2))
	reads := []string{`client.subject == ""`, `client.uri_sans.size() == 0`, `!("x" in client.dns_sans)`, `client.common_name != "x"`,
		`client.serial == client.serial`, `[1].exists(x, client.issuer != "y")`, `spiffe_matches(client.spiffe_id, "spiffe://a/*")`}
	// make returns a text, whether it is true, and whether evaluating it reads the client, in which case the truth does not
	// matter any more: errors may be swallowed later, but the read may not.
	type node struct {
		text        string
		value, read bool
	}
	var build func(depth int) node
	build = func(depth int) node {
		if depth == 0 || rnd.IntN(6) == 0 {
			switch rnd.IntN(5) {
			case 0:
				return node{"true", true, false}
			case 1:
				return node{"false", false, false}
			case 2:
				return node{"client.present", false, false}
			case 3:
				return node{`request.method == "GET"`, true, false}
			default:
				return node{reads[rnd.IntN(len(reads))], false, true}
			}
		}
		a := build(depth - 1)
		switch rnd.IntN(4) {
		case 0:
			return node{"!(" + a.text + ")", !a.value, a.read}
		case 1:
			b := build(depth - 1)
			return node{"(" + a.text + ") && (" + b.text + ")", a.value && b.value, a.read || a.value && b.read}
		case 2:
			b := build(depth - 1)
			return node{"(" + a.text + ") || (" + b.text + ")", a.value || b.value, a.read || !a.value && b.read}
		default:
			b, c := build(depth-1), build(depth-1)
			taken := c
			if a.value {
				taken = b
			}
			return node{"(" + a.text + ") ? (" + b.text + ") : (" + c.text + ")", taken.value, a.read || taken.read}
		}
	}
	f := facts(t, nobody(), "/")
	var allowed, touched int
	for range 1000 {
		n := build(4)
		r, err := Compile(n.text, CompileOptions{Mode: Request})
		if err != nil {
			var refused *RuleError
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), "expression") {
				t.Fatalf("%s: %v", n.text, err)
			}
			continue // too large
		}
		want := reason.PolicyDenied
		if n.value && !n.read {
			want = reason.Unset
			allowed++
		}
		if n.read {
			touched++
		}
		if why := decide(t, r, f); why != want {
			t.Errorf("%s: %v, expected %v", n.text, why, want)
		}
	}
	if allowed < 50 || touched < 50 {
		t.Errorf("%d allowed, %d reads: the sample shows nothing", allowed, touched)
	}
}

// TestModes: a rule never sees a client that the mode does not verify, whatever it was compiled for.
func TestModes(t *testing.T) {
	for _, m := range []Mode{0, Off, RequestUnverified, PassthroughChain, 99} {
		for _, text := range []string{`client.subject == "x"`, `client.present`, `!client.present`, `request.method == "GET" || client.present`,
			`has(client.subject)`, `[1].exists(x, client.serial == "")`} {
			_, err := Compile(text, CompileOptions{Mode: m})
			var refused *RuleError
			if !errors.As(err, &refused) || !strings.Contains(refused.Problems[0].Message, "verifies nobody") {
				t.Errorf("mode %v, %s: %v", m, text, err)
			}
		}
		if _, err := Compile(`request.method == "GET"`, CompileOptions{Mode: m}); err != nil {
			t.Errorf("mode %v: %v", m, err)
		}
	}
	known := ops(t)
	f := facts(t, known, "/")
	q := Question{Serial: 3, Connection: "p", Asked: "p", Client: known, Upstream: "api", Facts: f}
	for text, why := range map[string]reason.Reason{`client.common_name == "ops"`: reason.PolicyDenied, `!client.present`: reason.Unset} {
		q.Allow = compiled(t, text)
		for _, q.Mode = range []Mode{Off, RequestUnverified, PassthroughChain} {
			if _, got := Decide(&q); got != why {
				t.Errorf("%s under %v: %v, expected %v", text, q.Mode, got, why)
			}
		}
	}
}

// TestFactsOfSomebodyElse: facts that are missing or about another client refuse.
func TestFactsOfSomebodyElse(t *testing.T) {
	r, known := compiled(t, `true`), ops(t)
	for name, f := range map[string]*Facts{"none": nil, "another": facts(t, ops(t), "/"), "nobody's": facts(t, nobody(), "/")} {
		q := Question{Serial: 3, Connection: "p", Asked: "p", Mode: Require, Client: known, Upstream: "api", Allow: r, Facts: f}
		if permit, why := Decide(&q); why != reason.PolicyFailed || permit != (Permit{}) {
			t.Errorf("%s: %v", name, why)
		}
	}
	if would, err := r.Would(nil); would || err == nil {
		t.Error("no facts would be allowed")
	}
	// The mode decides before the rule.
	q := Question{Serial: 3, Connection: "p", Asked: "p", Mode: Require, Client: nobody(), Upstream: "api", Allow: r, Facts: facts(t, nobody(), "/")}
	if _, why := Decide(&q); why != reason.ClientNoLongerTrusted {
		t.Error(why)
	}
}

// TestFailures has the ways in which an evaluation gives nothing, which denies with a reason of its own.
func TestFailures(t *testing.T) {
	known := ops(t)
	for _, c := range []struct{ name, text, cause string }{
		{"index", `client.email_sans[0] == "a"`, "index"},
		{"missing header", `request.headers["x-tenant"] == ["a"]`, "no such key"},
		{"missing header, negated", `!(request.headers["x-tenant"] == ["a"])`, "no such key"},
		{"header twice", `request.headers.only("x-twice") != "b"`, "expected one value, found 2"},
		{"B29/header that is not there", `request.headers.only("x-other") == ""`, "expected one value, found none"},
		{"B29/header that is empty", `request.headers.only("x-empty") == ""`, "found an empty one"},
		{"division", `1 / (size(request.method) - 3) == 1`, "division by zero"},
		{"overflow", `9223372036854775807 + size(request.method) > 0`, "overflow"},
		{"conversion", `int(request.query) == 1`, "conversion"},
		{"no address", `!ip_in(request.query, "10.0.0.0/8")`, "expected an IP address"},
		{"headers as a whole", `[request.headers].exists(h, [h] == [h]) || true`, "cannot be compared"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := facts(t, known, "/", "X-Twice: a", "x-twice: b", "x-empty: ")
			if why := decide(t, compiled(t, c.text), f); why != reason.PolicyFailed {
				t.Fatal(why)
			}
			if f.Cause() == nil || !strings.Contains(f.Cause().Error(), c.cause) {
				t.Errorf("cause %v, expected %q", f.Cause(), c.cause)
			}
		})
	}
	t.Run("no facts", func(t *testing.T) {
		for _, v := range Variables() {
			if strings.HasPrefix(v.Name, "client.") {
				continue
			}
			text := v.Name + " == " + v.Name + " || true"
			if v.Name == headerMap {
				text = `"a" in request.headers || true`
			}
			switch why := decide(t, compiled(t, text), &Facts{Client: known}); {
			case why == reason.PolicyFailed:
			case why != reason.Unset || v.Name != "connection.time" && v.Name != "request.host":
				t.Errorf("%s: %v", v.Name, why)
			}
		}
	})
	t.Run("cost", func(t *testing.T) {
		r, err := compile(`client.dns_sans.all(d, d != "x")`, CompileOptions{Mode: Request}, 10)
		if err != nil {
			t.Fatal(err)
		}
		f := facts(t, known, "/")
		if why := decide(t, r, f); why != reason.PolicyFailed || !strings.Contains(fmt.Sprint(f.Cause()), "cost limit") {
			t.Errorf("%v: %v", why, f.Cause())
		}
		if why := decide(t, r, facts(t, nobody(), "/")); why != reason.PolicyDenied {
			t.Error(why)
		}
	})
	t.Run("panic", func(t *testing.T) {
		r := &Rule{source: "broken", mode: Request} // without a program
		f := facts(t, known, "/")
		if why := decide(t, r, f); why != reason.PolicyFailed || !strings.Contains(fmt.Sprint(f.Cause()), "panicked") {
			t.Errorf("%v: %v", why, f.Cause())
		}
	})
	t.Run("oversize", func(t *testing.T) {
		for text, f := range map[string]*Facts{
			`request.query != "" || true`:                 {Request: &message.Request{Query: []byte(strings.Repeat("a", maxValue+1))}},
			`request.method != "" || true`:                {Request: &message.Request{Method: []byte("\xff")}},
			`request.host != "" || true`:                  {Request: &message.Request{}, Host: strings.Repeat("a", maxValue+1)},
			`"x-a" in request.headers || true`:            facts(t, nobody(), "/", "X-A: \xff\xfe"),
			`request.headers.exists(k, k == "a") || true`: facts(t, nobody(), "/", manyHeaders()...),
			`request.headers.only("x-a") != "" || true`:   facts(t, nobody(), "/", "X-A: "+strings.Repeat("a", maxValue+1)),
		} {
			f.Client = known
			if why := decide(t, compiled(t, text), f); why != reason.PolicyFailed || f.Cause() == nil || len(f.Cause().Error()) > 400 {
				t.Errorf("%s: %v, %v", text, why, f.Cause())
			}
		}
	})
}

func manyHeaders() (lines []string) {
	for i := range maxEntries + 1 {
		lines = append(lines, fmt.Sprintf("x-%d: a", i))
	}
	return lines
}

// TestAllow has what rules are for.
func TestAllow(t *testing.T) {
	known := ops(t)
	for _, c := range []struct {
		text string
		ok   bool
	}{
		{`client.uri_sans.exists(u, u == "spiffe://corp.test/ops")`, true},
		{`client.uri_sans.exists(u, u == "spiffe://corp.test/opsx")`, false},
		{`client.present && request.method in ["GET", "HEAD"]`, true},
		{`request.method == "get"`, false},
		{`request.path == "/v1/x y"`, true},
		{`request.path.startsWith("/v1/")`, true},
		{`request.path.startsWith("/v2/")`, false},
		{`request.path.startsWith("/" + "v1" + "/")`, true},
		{`request.host == "api.test" && request.query == "a=1&b=%20"`, true},
		{`dns_matches(request.host, "api.test")`, true},
		{`request.headers["x-tenant"] == ["a", "b"]`, true},
		{`request.headers["x-tenant"].exists(v, v == "b")`, true},
		{`"x-tenant" in request.headers && !("x-other" in request.headers)`, true},
		{`has(request.headers.accept) && request.headers.accept == ["*/*"]`, true},
		{`has(request.headers.other)`, false},
		{`request.headers.only("accept") == "*/*" && !("x-other" in request.headers)`, true},
		{`request.headers.size() == 2`, true}, // the protected one is not there
		{`request.headers.exists(k, k == "x-amzn-mtls-clientcert-subject")`, false},
		{`("x-amzn-mtls-" + "clientcert-subject") in request.headers`, false},
		{`request.headers.exists(k, k == "accept" && "*/*" in request.headers[k])`, true},
		{`request.headers.all(k, k.matches("^[a-z-]+$"))`, true},
		{`{"a": ["v"]}.only("a") == "v"`, true},
		{`ip_in(connection.client_ip, "10.0.0.0/8") && connection.client_ip == "10.1.2.3"`, true},
		{`ip_in(connection.client_ip, "192.168.0.0/16")`, false},
		{`connection.listener == "public" && connection.server_name == "api.test" && connection.port == 8443`, true},
		{`connection.tls_version == "1.3" && connection.resumed`, true},
		{`connection.time > timestamp("2026-11-21T09:00:00Z") && connection.time.getHours() == 9`, true},
		{`client.not_after - connection.time > duration("1h") || true`, true},
		{`client.common_name.lowerAscii() == "ops"`, true},
		{`client.dns_sans.map(d, d).size() == 2 && client.dns_sans.exists_one(d, dns_matches(d, "ops.corp.test"))`, true},
		{`client.common_name.matches("^[a-z]{2,5}$")`, true},
		{`client.uri_sans.exists(u, u.matches("^spiffe://corp\\.test/[a-z]+$"))`, true},
		{`"clientAuth" in client.eku`, true},
		{`size("äöü") == 3 && "abc".contains("b")`, true},
	} {
		f := facts(t, known, "/v1/x%20y", "Accept: */*", "X-Tenant: a", "X-Amzn-Mtls-Clientcert-Subject: CN=root", "x-TENANT: b")
		want := reason.PolicyDenied
		if c.ok {
			want = reason.Unset
		}
		if why := decide(t, compiled(t, c.text), f); why != want || f.Cause() != nil {
			t.Errorf("%s: %v, expected %v: %v", c.text, why, want, f.Cause())
		}
	}
}

// TestPaths: where backends may read several paths in a request, the rule must allow each of them (A26).
func TestPaths(t *testing.T) {
	known := ops(t)
	for _, c := range []struct {
		name, path, text string
		why              reason.Reason
	}{
		{"A26/double slash, deny list", "//admin/x", `!request.path.startsWith("/admin/")`, reason.PolicyDenied},
		{"A26/dot segments, deny list", "/pub/../admin/x", `!request.path.startsWith("/admin/")`, reason.PolicyDenied},
		{"A26/dot segments, allow list", "/pub/../admin/x", `request.path.startsWith("/pub/")`, reason.PolicyDenied},
		{"A26/encoded slash", "/pub%2fx", `request.path == "/pub%2fx"`, reason.PolicyDenied},
		{"A26/backslash", "/admin\\x", `!request.path.startsWith("/admin/")`, reason.PolicyDenied},
		{"A27/double encoding", "/a%2561", `request.path != "/aa"`, reason.PathUnsafe},
		{"A27/parameter", "/admin;x", `request.path != "/admin"`, reason.PathUnsafe},
		{"A27/parameter, denied anyway", "/admin;x", `request.path == "/x"`, reason.PolicyDenied},
		{"encoded letter, deny list", "/%61dmin/x", `!request.path.startsWith("/admin/")`, reason.PolicyDenied},
		{"encoded letter", "/%61dmin/x", `request.path.startsWith("/admin/")`, reason.Unset},
		{"double slash, both allowed", "//a", `request.path in ["//a", "/a"]`, reason.Unset},
		{"path not read", "/admin;x", `request.method == "GET"`, reason.Unset},
		{"plain", "/admin/x", `request.path == "/admin/x"`, reason.Unset},
	} {
		t.Run(c.name, func(t *testing.T) {
			path, err := route.Analyze([]byte(c.path), make([]byte, 0, 200))
			if err != nil {
				t.Fatal(err) // no route would let it come to a rule
			}
			f := facts(t, known, "/")
			f.Path = path
			if why := decide(t, compiled(t, c.text), f); why != c.why {
				t.Errorf("%v, expected %v", why, c.why)
			}
		})
	}
}

// TestRefused has the texts that are no rules, with the place and the words of each problem.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"empty", ``, []string{"1:1 found nothing"}},
		{"blank", " \n\t", []string{"1:1 found nothing"}},
		{"too long", strings.Repeat(" ", maxExpression) + "true", []string{"1:1 expected at most 4096 bytes, found 4100"}},
		{"NUL", "true\x00", []string{`1:5 found "\x00"`}},
		{"not UTF-8", "true &&\n \"\xff\" == \"\"", []string{`2:3 found "\xff"`}},
		{"bidi override", "client.common_name == \"a\u202e\"", []string{`1:25 found "\xe2\x80\xae"`}},
		{"invisible", "client.common_name == \"a\u200b\"", []string{`1:25 found`}},
		{"syntax", `request.method == `, []string{"1:19 Syntax error"}},
		{"syntax, second line", "true &&\n && true", []string{"2:2 Syntax error"}},
		{"no condition", `client.subject`, []string{"1:1 type string"}},
		{"number", `1`, []string{"1:1 type int"}},
		{"anything", `[true][0] ? [1] : [2]`, []string{"1:1 type list(int)"}},
		{"null", `null`, []string{"1:1 type null"}},

		{"A42/bare", `client == client`, []string{"1:1 client by itself", "1:11 client by itself"}},
		{"A42/dyn", `dyn(client) == dyn(client)`, []string{"1:1 function", "1:5 client by itself", "1:16 function", "1:20 client by itself"}},
		{"A42/dyn of a field", `dyn(client.subject) == 1`, []string{"1:1 function"}},
		{"A42/type", `type(client) == type(client)`, []string{"1:1 function", "1:6 client by itself", "1:17 function", "1:22 client by itself"}},
		{"A42/list", `[client].size() == 1`, []string{"1:2 client by itself"}},
		{"A42/map", `{"a": client}.size() == 1`, []string{"1:7 client by itself"}},
		{"A42/key", `{client: 1}.size() == 1`, []string{"1:2 client by itself"}},
		{"A42/in", `client in [1]`, []string{"1:1 client by itself"}},
		{"A42/has", `has(client.subject)`, []string{"1:5 always there"}},
		{"A42/not has", `!has(client.subject)`, []string{"1:6 always there"}},
		{"A42/has unknown", `has(client.foo)`, []string{"1:5 \"client.foo\""}},
		{"A42/index", `client["subject"] == ""`, []string{"1:1 client by itself"}},
		{"A42/leading dot", `.client == 1`, []string{"1:2 client by itself"}},
		{"A42/optional", `client.?subject.orValue("") == ""`, []string{"1:7 unsupported syntax"}},
		{"A42/optional index", `client[?"subject"] == ""`, []string{"1:7 unsupported syntax"}},
		{"A42/variable that shadows", `[1].exists(client, client == 1)`, []string{"1:11 \"client\"", "1:20 client by itself"}},
		{"A42/variable that shadows a field", `[{"subject": "x"}].exists(client, client.subject == "x")`, []string{"1:26 \"client\""}},
		{"A42/variable that shadows request", `[1].all(request, true)`, []string{"1:8 \"request\""}},
		{"A42/function of the client", `client.subject("x")`, []string{"1:8 function", "1:1 client by itself"}},
		{"A42/message", `google.protobuf.Struct{fields: {}} == 1`, []string{`1:23 "google.protobuf.Struct"`}},

		{"unknown field", `client.sbject == "x"`, []string{`1:1 found "client.sbject"; did you mean client.subject?`}},
		{"unknown field, british", `client.organisations == []`, []string{`did you mean client.organizations?`}},
		{"unknown field, far off", `client.foo == "x"`, []string{`1:1 found "client.foo"; use one of present, subject, issuer`}},
		{"unknown field of request", `request.metod == "x"`, []string{`did you mean request.method?`}},
		{"unknown root", `reqest.method == "x"`, []string{`1:7 undeclared reference to 'reqest.method'`}},
		{"unknown name", `foo`, []string{`1:1 undeclared reference to 'foo'`}},
		{"unknown function", `spiffe_match(client.spiffe_id, "spiffe://a/b")`, []string{`1:1 found "spiffe_match"; did you mean spiffe_matches?`}},
		{"several", "client.subject == 1 &&\n  client.sbject == 2 &&\n   foo == 3", []string{"1:16 no matching overload", "2:3 client.sbject", "3:4 'foo'"}},
		{"types", `client.not_after == "2026"`, []string{"1:18 no matching overload"}},
		{"types of a list", `client.uri_sans == "x"`, []string{"1:17 no matching overload"}},
		{"mixed list", `request.method in ["GET", 1]`, []string{"1:27 expected type 'string' but found 'int'"}},
		{"time zone", `connection.time.getHours("Europe/Zurich") > 8`, []string{"1:17 expected no time zone"}},
		{"timestamp", `connection.time > timestamp("soon")`, []string{"1:29 invalid timestamp"}},

		{"B08/common name as a host", `dns_matches(client.common_name, "admin.ok.test")`, []string{"1:1 found its common name"}},
		{"B08/common name as a host, hidden", `[client.common_name].exists(n, dns_matches(n, "admin.ok.test"))`, []string{"1:32 found its common name"}},
		{"B09/part of a name", `client.subject.contains("OU=ops")`, []string{"1:16 comparison of whole names"}},
		{"B11/prefix", `client.spiffe_id.startsWith("spiffe://td/ns/admin")`, []string{"1:18 comparison of whole names"}},
		{"B11/prefix in a macro", `client.uri_sans.exists(u, u.startsWith("spiffe://td"))`, []string{"1:29 comparison of whole names"}},
		{"B11/suffix", `client.dns_sans.exists(d, d.endsWith("ok.test"))`, []string{"1:29 comparison of whole names"}},
		{"B11/suffix after a function", `client.dns_sans.map(d, d.lowerAscii()).exists(d, d.endsWith(".ok.test"))`, []string{"1:52 comparison of whole names"}},
		{"B12/suffix", `client.email_sans.exists(e, e.endsWith("@ok.test"))`, []string{"1:31 comparison of whole names"}},
		{"B11/host", `request.host.endsWith("ok.test")`, []string{"1:14 whole host names"}},
		{"B11/path", `request.path.startsWith("/admin")`, []string{"1:14 whole segments"}},
		{"B11/path, computed", `request.path.startsWith(request.query)`, []string{"1:14 whole segments"}},
		{"B11/unanchored", `request.method.matches("GET")`, []string{`1:24 found "GET"; write "^(?:GET)$"`}},
		{"B11/anchored in one branch", `request.method.matches("^GET|HEAD$")`, []string{`1:24 found "^GET|HEAD$"; write "^(?:GET|HEAD)$"`}},
		{"B11/lines", `request.method.matches("(?m)^GET$")`, []string{`1:24 both ends`}},
		{"B11/anchored at the start", `request.method.matches("^GET")`, []string{`1:24 both ends`}},
		{"B11/unescaped dot", `client.uri_sans.exists(u, u.matches("^spiffe://ok.test/a$"))`, []string{`1:37 found a dot that any character meets`}},
		{"B11/regular expression", `request.method.matches("^(GET$")`, []string{`1:24 missing closing )`}},
		{"B11/computed", `request.method.matches(request.query)`, []string{`1:24 found something that is computed`}},
		{"B11/computed, put together", `request.method.matches("^" + "GET$")`, []string{`1:28 found something that is computed`}},
		{"B11/computed, global function", `matches(request.method, request.query)`, []string{`1:25 found something that is computed`}},
		{"B11/SPIFFE ID", `spiffe_matches(client.spiffe_id, "spiffe://td*/a")`, []string{`1:34 expected a SPIFFE ID`}},
		{"B11/SPIFFE ID, half a segment", `spiffe_matches(client.spiffe_id, "spiffe://td/a*")`, []string{`1:34 expected a SPIFFE ID`}},
		{"B11/SPIFFE ID, domain", `spiffe_matches(client.spiffe_id, "spiffe://*/a")`, []string{`1:34 expected a SPIFFE ID`}},
		{"B11/SPIFFE ID, all within", `spiffe_matches(client.spiffe_id, "spiffe://td/**/a")`, []string{`1:34 expected a SPIFFE ID`}},
		{"B11/SPIFFE ID, slash", `spiffe_matches(client.spiffe_id, "spiffe://td/a/")`, []string{`1:34 expected a SPIFFE ID`}},
		{"B11/SPIFFE ID, upper case", `spiffe_matches(client.spiffe_id, "spiffe://TD/a")`, []string{`1:34 expected a SPIFFE ID`}},
		{"B11/SPIFFE ID, none", `spiffe_matches(client.spiffe_id, "")`, []string{`1:34 expected a SPIFFE ID`}},
		{"B11/DNS name", `dns_matches(request.host, "*")`, []string{`1:27 host name "*"`}},
		{"B11/DNS name, within", `dns_matches(request.host, "a*.ok.test")`, []string{`1:27 wildcard`}},
		{"B11/DNS name, case", `dns_matches(request.host, "OK.test")`, []string{`1:27 found "OK.test"; write "ok.test"`}},
		{"B12/mailbox", `client.email_sans.exists(e, email_matches(e, "ok.test"))`, []string{`1:46 expected a mailbox`}},
		{"B12/mailbox, two", `client.email_sans.exists(e, email_matches(e, "a@b@ok.test"))`, []string{`1:46`}},
		{"B12/mailbox, domain", `client.email_sans.exists(e, email_matches(e, "*@*.ok.test"))`, []string{`1:46 without wildcard`}},
		{"network", `ip_in(connection.client_ip, "10.0.0.1/8")`, []string{`1:29 without host bits, found "10.0.0.1/8"; write "10.0.0.0/8"`}},
		{"network, none", `ip_in(connection.client_ip, "10.0.0.1")`, []string{`1:29 expected a network`}},
		{"network, mapped", `ip_in(connection.client_ip, "::ffff:10.0.0.0/104")`, []string{`1:29`}},

		{"D01/header", `request.headers["x-forwarded-client-cert"] == ["a"]`, []string{`1:17 removed from every request`}},
		{"D01/header, has", `has(request.headers.forwarded)`, []string{`1:5 removed from every request`}},
		{"D01/header, only", `request.headers.only("client-cert") == ""`, []string{`1:22 removed from every request`}},
		{"D01/header, in", `"client-cert" in request.headers`, []string{`1:1 removed from every request`}},
		{"header in upper case", `request.headers["X-A"] == ["a"]`, []string{`1:17 found "X-A"; write "x-a"`}},
		{"header without name", `request.headers.only("") == ""`, []string{`1:22 found none`}},
		{"headers compared", `request.headers == {}`, []string{`1:17 found all of them`}},

		{"cost/nodes", strings.Repeat("true && ", 300) + "true", []string{"expression"}},
		{"cost/nesting", strings.Repeat("(", 200) + "true" + strings.Repeat(")", 200), []string{"recursion limit"}},
		{"cost/not not", strings.Repeat("!(", 100) + "true" + strings.Repeat(")", 100), []string{"recursion limit"}},
		{"cost/lists in lists", `client.uri_sans.exists(a, client.dns_sans.exists(b, a == b))`, []string{"1:1 may cost"}},
		{"cost/three deep", `client.uri_sans.all(a, client.uri_sans.all(b, client.uri_sans.all(c, a == b && b == c)))`, []string{"may cost"}},
		{"cost/five deep", `[1].all(a, [1].all(b, [1].all(c, [1].all(d, [1].all(e, true)))))`, []string{"nesting limit"}},
		{"cost/doubled without bound", `client.uri_sans.map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).size() == 1`, []string{"may cost"}},
		{"cost/regular expression", `request.query.matches("^(a|b|c){1,900}$")`, []string{"exceeds"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			start := time.Now()
			r, err := Compile(c.text, CompileOptions{Mode: Request})
			var refused *RuleError
			if !errors.As(err, &refused) || r != nil {
				t.Fatalf("%v", err)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
			text := err.Error()
			for _, want := range c.want {
				place, words, _ := strings.Cut(want, " ")
				if !strings.Contains(place, ":") {
					place, words = "", want
				}
				if !slices.ContainsFunc(strings.Split(text, "\n"), func(line string) bool {
					return (place == "" || strings.HasPrefix(line, place+": ")) && strings.Contains(line, words)
				}) {
					t.Errorf("expected %q in\n%s", want, text)
				}
			}
			if len(c.want) > 1 && len(refused.Problems) != len(c.want) {
				t.Errorf("expected %d problems:\n%s", len(c.want), text)
			}
			for _, p := range refused.Problems {
				if p.Line < 1 || p.Column < 1 || p.Message == "" || p.Next == "" || len(p.Message) > 600 {
					t.Errorf("%+v", p)
				}
			}
		})
	}
}

// TestReads: what compiles says what it reads, and the text it was made of.
func TestReads(t *testing.T) {
	text := "client.present && // who\n [request.method].exists(m, m == client.subject) && has(request.headers.accept) && .connection.port > 1"
	r := compiled(t, text)
	want := []string{"client.present", "client.subject", "connection.port", "request.headers", "request.method"}
	if got := r.Reads(); !slices.Equal(got, want) || r.String() != text {
		t.Errorf("%v %q", got, r)
	}
	r.Reads()[0] = "x"
	if r.Reads()[0] != want[0] {
		t.Error("the rule can be changed from outside")
	}
	for _, v := range Variables() {
		if v.Name == "" || v.Type == "" || v.Text == "" || strings.HasSuffix(v.Text, ".") {
			t.Errorf("%+v", v)
		}
	}
}

// TestTogether evaluates one rule in many goroutines: the race detector looks on.
func TestTogether(t *testing.T) {
	r := compiled(t, `client.uri_sans.exists(u, u == "spiffe://corp.test/ops") && !("x-a" in request.headers) && request.path.matches("^/v1/[^/]+$")`)
	known := ops(t)
	var all sync.WaitGroup
	for i := range 8 {
		f, want := facts(t, known, "/v1/a"), reason.Unset
		if i%2 == 1 {
			f, want = facts(t, nobody(), "/v1/a"), reason.PolicyDenied
		}
		all.Go(func() {
			for range 200 {
				if why := decide(t, r, f); why != want {
					t.Error(why)
				}
			}
		})
	}
	all.Wait()
}

// TestNextClient: facts that serve another client forget the one before.
func TestNextClient(t *testing.T) {
	r := compiled(t, `client.common_name == "ops"`)
	f := facts(t, ops(t), "/")
	for _, c := range []struct {
		client identity.Client
		why    reason.Reason
	}{{f.Client, reason.Unset}, {client(t, "eve"), reason.PolicyDenied}, {nobody(), reason.PolicyDenied}, {client(t, "ops"), reason.Unset}} {
		f.Client = c.client
		if why := decide(t, r, f); why != c.why {
			t.Errorf("%v, expected %v", why, c.why)
		}
	}
}
