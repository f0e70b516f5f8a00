package diagnose

import (
	"crypto/tls"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/internal/reason"
	"countersign/internal/testpki"
)

const asksMore = `
trust_stores:
  clients: {ca_bundle: {file: ca.pem}}
listeners:
  public:
    listen: 127.0.0.1:8443
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes:
          - {match: {path: /inside, source: [10.0.0.0/8]}, upstream: api}
          - {match: {path: /inside}, upstream: api, allow: 'false'}
          - {match: {path: /team, header: [{name: x-team, values: [a]}]}, upstream: api}
          - {match: {path: /team}, upstream: api, allow: 'client.common_name == "nobody"'}
          - {match: {path: /canary, header: [{name: x-canary, values: [a]}]}, upstream: canary}
          - {match: {path: /canary}, upstream: api}
          - {match: {path: /ip}, upstream: api, allow: 'client.common_name == "alice" && ip_in(connection.client_ip, "127.0.0.0/8")'}
          - {upstream: api}
upstreams:
  api: {targets: ["http://127.0.0.1:9000"]}
  canary: {targets: ["http://127.0.0.1:9001"]}
`

// TestExplainWithoutAnAddress: what rests on the client's address is undecided as long as nobody says it, and only that.
func TestExplainWithoutAnAddress(t *testing.T) {
	root := testpki.New(t)
	server, alice, bob := root.Server("a.test"), root.Client("alice"), root.Client("bob")
	s := setup(t, asksMore, map[string][]byte{"ca.pem": root.PEM(), "server.pem": server.PEM(), "server.key": server.KeyPEM()})
	for _, c := range []struct {
		client  *testpki.Cert
		path    string
		from    string
		outcome Outcome
	}{
		{alice, "/ip", "", Undecided}, {alice, "/ip", "127.0.0.1", Accepted}, {alice, "/ip", "192.0.2.1", Refused},
		{bob, "/ip", "", Refused}, // wherever it comes from
		{alice, "/inside", "", Undecided}, {alice, "/inside", "10.1.2.3", Accepted}, {alice, "/inside", "192.0.2.1", Refused},
		{alice, "/outside", "", Accepted}, {alice, "/team", "", Refused}, {alice, "/canary", "", Accepted},
	} {
		q := &Question{Presented: c.client.Presented(), Host: "a.test", Path: c.path}
		if c.from != "" {
			q.Client = netip.MustParseAddr(c.from)
		}
		r, err := Explain(s, q)
		if err != nil {
			t.Fatal(err)
		}
		if text := fit(t, r); r.Outcome != c.outcome || r.Outcome == Undecided && (!strings.HasPrefix(r.Next, "give --from") || r.Reason != "") {
			t.Errorf("%s from %q: %s\n%s", c.path, c.from, r.Outcome, text)
		}
	}
}

// TestImpactOfWhatNoRecordHas: rules that read what nobody has kept refuse nobody for sure, and let in nobody for sure.
func TestImpactOfWhatNoRecordHas(t *testing.T) {
	root := testpki.New(t)
	server, alice := root.Server("a.test"), root.Client("alice")
	files := map[string][]byte{"ca.pem": root.PEM(), "server.pem": server.PEM(), "server.key": server.KeyPEM()}
	allow := func(rule string) []string {
		return []string{"- {upstream: api}", "- {upstream: api, allow: '" + rule + "'}"}
	}
	const denied = reason.PolicyDenied
	ip := allow(`ip_in(connection.client_ip, "127.0.0.0/8")`)
	in, out := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.1")
	for name, c := range map[string]struct {
		by                           []string
		turned                       bool
		seen                         Seen
		tls12                        int64
		version                      string
		refused, admitted, undecided int
	}{
		"an address":                   {by: ip, undecided: 1},
		"an address, as it is":         {by: []string{"- {path: /x", "- {path: /x"}, seen: Seen{Path: "/ip"}},
		"an address, no more":          {by: ip, turned: true, undecided: 1},
		"an address that was recorded": {by: ip, turned: true, seen: Seen{Address: out, Refused: denied}, admitted: 1},
		"an address, recorded denied":  {by: ip, turned: true, seen: Seen{Refused: denied}, admitted: 1},
		"an address recorded, refused": {by: ip, seen: Seen{Address: out}, refused: 1},
		"an address recorded, let in":  {by: ip, seen: Seen{Address: in}},
		"an address, another rule":     {by: []string{`"127.0.0.0/8"`, `"10.0.0.0/8"`}, seen: Seen{Path: "/ip"}, undecided: 1},
		"an address that matters not":  {by: allow(`client.common_name == "alice" || ip_in(connection.client_ip, "127.0.0.0/8")`)},
		"an address, refused anyway":   {by: allow(`client.common_name == "bob" && ip_in(connection.client_ip, "127.0.0.0/8")`), refused: 1},
		"a header":                     {by: allow(`request.headers.only("x-team") == "a"`), undecided: 1},
		"a header, turned":             {by: allow(`!("x-team" in request.headers)`), undecided: 1},
		"a query":                      {by: allow(`request.query == "a=b"`), undecided: 1},
		"a query that is given":        {by: allow(`request.query == "a=b"`), seen: Seen{Path: "/?a=b"}},
		"resumption":                   {by: allow(`!connection.resumed`), undecided: 1},
		"the time":                     {by: allow(`connection.time > timestamp("2020-01-01T00:00:00Z")`), undecided: 1},
		"TLS 1.3":                      {by: allow(`connection.tls_version == "1.3"`)},
		"TLS 1.3, once with 1.2":       {by: allow(`connection.tls_version == "1.3"`), tls12: 2, refused: 1},
		"TLS 1.2, once with 1.3":       {by: allow(`connection.tls_version == "1.2"`), tls12: 2, refused: 1},
		"TLS of nobody knows what":     {by: allow(`connection.tls_version == "1.3"`), version: "?", undecided: 1},
		"a route by address":           {by: []string{"allow: 'false'", "allow: 'client.common_name == \"bob\"'"}, seen: Seen{Path: "/inside"}, undecided: 1},
		"a route by header":            {by: []string{`"nobody"`, `"somebody"`}, seen: Seen{Path: "/team"}, undecided: 1},
		"a route by header, as it is":  {by: []string{"names: [a.test]", "names: [a.test]"}, seen: Seen{Path: "/team"}},
		"a route that asks the same":   {by: []string{"ca.pem", "ca.pem"}, seen: Seen{Path: "/canary"}},
	} {
		t.Run(name, func(t *testing.T) {
			changed := strings.Replace(asksMore, c.by[0], c.by[1], 1)
			now, proposed := setup(t, asksMore, files), setup(t, changed, files)
			if c.turned {
				now, proposed = proposed, now
			}
			r := NewReplay(now, proposed)
			if c.seen.Presented = alice.Presented(); c.seen.Path == "" {
				c.seen.Path = "/"
			}
			r.Path = c.seen.Path
			if c.version == "" {
				c.version = "TLS 1.3"
			}
			c.seen.Uses = []Use{{Listener: "public", Host: "a.test", Version: c.version, Count: 9, CountTLS12: c.tls12, Last: time.Now()}}
			if err := r.Ask(&c.seen); err != nil {
				t.Fatal(err)
			}
			i := r.Done()
			var text strings.Builder
			if err := i.Print(&text, 9); err != nil {
				t.Fatal(err)
			}
			if len(i.Refused) != c.refused || len(i.Admitted) != c.admitted || len(i.Undecided) != c.undecided || strings.Contains(text.String(), "values above") {
				t.Errorf("refused %d, admitted %d, undecided %d\n%s", len(i.Refused), len(i.Admitted), len(i.Undecided), text.String())
			}
			for _, u := range i.Undecided {
				if !strings.Contains(u.Found, "not known") || u.Next == "" || u.Reason == "" {
					t.Errorf("%+v", u)
				}
			}
			for _, a := range i.Admitted {
				if a.Next != "" {
					t.Errorf("a next step for who comes in: %+v", a)
				}
			}
		})
	}
}

// TestImpactOnNobody: who shows no certificate is in no inventory, and a rule may refuse it all the same.
func TestImpactOnNobody(t *testing.T) {
	root := testpki.New(t)
	server := root.Server("a.test")
	files := map[string][]byte{"ca.pem": root.PEM(), "server.pem": server.PEM(), "server.key": server.KeyPEM()}
	requests := strings.Replace(asksMore, "mode: require", "mode: request", 1)
	for rule, want := range map[string]string{
		`client.common_name == "alice"`:             "clients without a certificate would be refused / of a.test on listener public (policy_denied)",
		`ip_in(connection.client_ip, "10.0.0.0/8")`: "clients without a certificate may be refused / of a.test on listener public",
		`request.path == "/"`:                       "",
	} {
		r := NewReplay(setup(t, requests, files), setup(t, strings.Replace(requests, "- {upstream: api}", "- {upstream: api, allow: '"+rule+"'}", 1), files))
		r.Path = "/"
		if open := strings.Join(r.Done().Open, "\n"); !strings.HasPrefix(open, want) || want == "" && open != "" {
			t.Errorf("%s: %q", rule, open)
		}
	}
}

// TestServerNames: what a server asks for is told in words, also where crypto/tls has none.
func TestServerNames(t *testing.T) {
	c, a := new(caller), new(Attempt)
	c.asked(a, &tls.CertificateRequestInfo{SignatureSchemes: []tls.SignatureScheme{tls.Ed25519, 0x0808}})
	if !slices.Equal(a.SignatureAlgorithms, []string{"Ed25519", "ed448"}) {
		t.Errorf("%q", a.SignatureAlgorithms)
	}
}
