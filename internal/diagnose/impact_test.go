package diagnose

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"countersign/internal/reason"
	"countersign/internal/testpki"
)

const asksOCSP = `
trust_stores:
  clients: {ca_bundle: {file: ca.pem}, revocation: {ocsp: {mode: require, responder: "http://127.0.0.1:1/"}}}
listeners:
  public:
    listen: 127.0.0.1:8443
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes: [{upstream: api}]
upstreams:
  api: {targets: ["http://127.0.0.1:9000"]}
`

// TestImpactOfWhatIsUndecided is about clients whose verdict rests on OCSP answers, which only a running program has.
func TestImpactOfWhatIsUndecided(t *testing.T) {
	root, servers, other := testpki.New(t), testpki.New(t), testpki.New(t)
	server, alice := servers.Server("a.test"), root.Client("alice")
	files := map[string][]byte{"ca.pem": root.PEM(), "other.pem": other.PEM(), "both.pem": append(root.PEM(), other.PEM()...),
		"ca.crl": testpki.PEM("X509 CRL", root.CRL(alice)), "server.pem": server.PEM(), "server.key": server.KeyPEM()}
	const without, ocsp = "", `revocation: {ocsp: {mode: require, responder: "http://127.0.0.1:1/"}}`
	for name, c := range map[string]struct {
		by               []string // of asksOCSP, old and new
		turned           bool     // what is changed is in force
		seen             Seen
		refused          string
		admitted         string
		undecided        string
		recorded         int
		alsoFromThisNote string
	}{
		"another CA":                     {by: []string{"ca.pem", "other.pem"}, refused: "client_cert_untrusted", recorded: 1},
		"a list that has it":             {by: []string{"{ocsp:", "{crls: [{file: ca.crl}], ocsp:"}, refused: "client_cert_revoked", recorded: 1},
		"a rule that denies it":          {by: []string{"{upstream: api}", `{upstream: api, allow: 'client.common_name == "bob"'}`}, seen: Seen{Path: "/"}, refused: "policy_denied", recorded: 1},
		"a rule that allows it":          {by: []string{"{upstream: api}", `{upstream: api, allow: 'client.common_name == "alice"'}`}, seen: Seen{Path: "/"}, recorded: 1},
		"nothing":                        {by: []string{"a.test", "a.test"}, recorded: 1, alsoFromThisNote: "1 uses rest on what is not here"},
		"a CA more":                      {by: []string{"ca.pem", "both.pem"}, recorded: 1},
		"another responder":              {by: []string{"127.0.0.1:1/", "127.0.0.1:2/"}, undecided: "ocsp_unavailable", recorded: 1},
		"no responder":                   {by: []string{ocsp, without}, recorded: 1},
		"no responder, refused before":   {by: []string{ocsp, without}, seen: Seen{Refused: reason.ClientCertRevoked}, admitted: "client_cert_revoked", recorded: 1},
		"no responder, unproven":         {by: []string{ocsp, without}, seen: Seen{Unproven: true}, admitted: "ocsp_unavailable", recorded: 1},
		"another CA, refused before":     {by: []string{"ca.pem", "other.pem"}, seen: Seen{Refused: reason.ClientCertRevoked}, recorded: 1},
		"a responder":                    {by: []string{ocsp, without}, turned: true, undecided: "ocsp_unavailable"},
		"a responder, denied anyway":     {by: []string{ocsp + "}", "}\n"}, turned: true, seen: Seen{Path: "/"}, undecided: "ocsp_unavailable"},
		"a list that is not fetched yet": {by: []string{"ocsp: {mode: require, responder: \"http://127.0.0.1:1/\"}", "crls: [{url: \"http://127.0.0.1:1/x\"}]"}, undecided: "crl_missing", recorded: 1},
	} {
		t.Run(name, func(t *testing.T) {
			changed := strings.Replace(asksOCSP, c.by[0], c.by[1], 1)
			now, proposed := setup(t, asksOCSP, files), setup(t, changed, files)
			if strings.Contains(changed, "url:") {
				proposed.URLs = []URL{{URL: "http://127.0.0.1:1/x"}}
			}
			if c.turned {
				now, proposed = proposed, now
			}
			r := NewReplay(now, proposed)
			c.seen.Presented = alice.Presented()
			c.seen.Uses = []Use{{Listener: "public", Host: "a.test", Version: "TLS 1.3", Count: 9, Last: time.Now()}}
			if err := r.Ask(&c.seen); err != nil {
				t.Fatal(err)
			}
			i := r.Done()
			why := func(list []Change) string {
				var all []string
				for _, l := range list {
					all = append(all, l.Reason)
				}
				return strings.Join(all, " ")
			}
			var text strings.Builder
			if err := i.Print(&text, 9); err != nil {
				t.Fatal(err)
			}
			if why(i.Refused) != c.refused || why(i.Admitted) != c.admitted || why(i.Undecided) != c.undecided || i.Recorded != c.recorded || i.Asked != 1 ||
				!strings.Contains(strings.Join(i.Notes, "\n"), c.alsoFromThisNote) {
				t.Errorf("refused %q, admitted %q, undecided %q, by record %d\n%s", why(i.Refused), why(i.Admitted), why(i.Undecided), i.Recorded, text.String())
			}
		})
	}
}

// TestImpactOfALeafAlone is about a client that was not verified, of which the certificates that it sent are not kept.
func TestImpactOfALeafAlone(t *testing.T) {
	root, servers := testpki.New(t), testpki.New(t)
	server, alice := servers.Server("a.test"), root.Intermediate("Partners CA").Client("alice")
	files := map[string][]byte{"ca.pem": root.PEM(), "server.pem": server.PEM(), "server.key": server.KeyPEM(), "more.pem": append(root.PEM(), servers.PEM()...)}
	required := strings.Replace(asksOCSP, `, revocation: {ocsp: {mode: require, responder: "http://127.0.0.1:1/"}}`, "", 1)
	unverified := strings.Replace(required, "mode: require, trust", "mode: request_unverified, trust", 1)
	more := strings.Replace(required, "{file: ca.pem}", "{file: more.pem}", 1)
	expired := root.Client("old", testpki.Expired())
	for name, c := range map[string]struct {
		now, proposed                          string
		seen                                   Seen
		refused, admitted, undecided, recorded int
	}{
		"required":                   {unverified, required, Seen{Presented: alice.Presented()[:1], LeafOnly: true}, 0, 0, 1, 0},
		"required, and all was kept": {unverified, required, Seen{Presented: alice.Presented()[:1]}, 1, 0, 0, 0},
		"required, for a path":       {unverified, required, Seen{Presented: alice.Presented()[:1], LeafOnly: true, Path: "/"}, 0, 0, 1, 0},
		"refused whatever it sent":   {unverified, required, Seen{Presented: expired.Presented()[:1], LeafOnly: true}, 1, 0, 0, 0},
		"not required any more":      {required, unverified, Seen{Presented: alice.Presented()[:1], LeafOnly: true, Refused: reason.ClientCertUntrusted}, 0, 1, 0, 1},
		"required before and after":  {required, required, Seen{Presented: alice.Presented()[:1], LeafOnly: true, Refused: reason.ClientCertUntrusted}, 0, 0, 0, 1},
		"required, and a CA more":    {required, more, Seen{Presented: alice.Presented()[:1], LeafOnly: true, Refused: reason.ClientCertUntrusted}, 0, 0, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReplay(setup(t, c.now, files), setup(t, c.proposed, files))
			c.seen.Uses = []Use{{Listener: "public", Host: "a.test", Version: "TLS 1.3", Count: 9, Last: time.Now()}}
			if err := r.Ask(&c.seen); err != nil {
				t.Fatal(err)
			}
			i := r.Done()
			if len(i.Refused) != c.refused || len(i.Admitted) != c.admitted || len(i.Undecided) != c.undecided || i.Recorded != c.recorded {
				t.Errorf("%+v", i)
			}
		})
	}
}

// TestExplainLocalOnly is a plain listener whose targets see our certificate: only this machine may connect.
func TestExplainLocalOnly(t *testing.T) {
	root := testpki.New(t)
	edge := root.Client("edge")
	lends := `
trust_stores:
  clients: {ca_bundle: {file: ca.pem}}
listeners:
  plain:
    listen: 0.0.0.0:8080
    protocol: http
    hosts: [{names: [a.test], routes: [{upstream: api}]}]
upstreams:
  api: {targets: ["https://127.0.0.1:9000"], tls: {server_name: a.test, trust_store: clients, client_certificates: [{cert: edge.pem, key: edge.key}]}}
`
	files := map[string][]byte{"ca.pem": root.PEM(), "edge.pem": edge.PEM(), "edge.key": edge.KeyPEM()}
	local := setup(t, lends, files)
	listed := setup(t, strings.Replace(lends, "protocol: http\n", "protocol: http\n    sources: [203.0.113.0/24]\n", 1), files)
	for _, c := range []struct {
		s        *Setup
		from     string
		outcome  Outcome
		expected string
	}{
		{local, "203.0.113.9", Refused, "a loopback address"}, {local, "127.0.0.1", Accepted, ""}, {local, "::1", Accepted, ""}, {local, "::ffff:127.0.0.1", Accepted, ""},
		{local, "", Accepted, ""},
		{listed, "203.0.113.9", Accepted, ""}, {listed, "127.0.0.1", Refused, "an address of [203.0.113.0/24]"}, {listed, "", Accepted, ""},
	} {
		q := &Question{Host: "a.test", Path: "/"}
		if c.from != "" {
			q.Client = netip.MustParseAddr(c.from)
		}
		r, err := Explain(c.s, q)
		if err != nil {
			t.Fatal(err)
		}
		text := fit(t, r)
		if r.Outcome != c.outcome || r.Expected != c.expected || (r.Reason == reason.SourceRefused.String()) != (c.outcome == Refused) || !strings.Contains(text, "sources") && !strings.Contains(text, "addresses") {
			t.Errorf("from %q: %s %s, expected %q\n%s", c.from, r.Outcome, r.Reason, r.Expected, text)
		}
	}
}

// TestNamed: a host that stands in for unknown names does not have them.
func TestNamed(t *testing.T) {
	root := testpki.New(t)
	server := root.Server("a.test")
	text := strings.Replace(asksOCSP, "names: [a.test]", "names: [A.test, \"*.w.test\"]", 1)
	text = strings.Replace(text, "protocol: https\n", "protocol: https\n    default_host: A.test\n", 1)
	l := setup(t, text, map[string][]byte{"ca.pem": root.PEM(), "server.pem": server.PEM(), "server.key": server.KeyPEM()}).Snapshot.Listeners["public"]
	for name, want := range map[string]bool{"a.test": true, "x.w.test": true, "w.test": false, "x.y.w.test": false, "unknown.test": false, "": false} {
		if l.Named([]byte(name)) != want || l.Host([]byte(name)) == nil {
			t.Errorf("%q: %t", name, !want)
		}
	}
}

// TestImpactOfAHostThatIsNone: a name that cannot be asked about is told, and the rest is judged.
func TestImpactOfAHostThatIsNone(t *testing.T) {
	root, other := testpki.New(t), testpki.New(t)
	server := root.Server("a.test")
	files := map[string][]byte{"ca.pem": root.PEM(), "other.pem": other.PEM(), "server.pem": server.PEM(), "server.key": server.KeyPEM()}
	text := strings.Replace(asksOCSP, "protocol: https\n", "protocol: https\n    default_host: a.test\n", 1)
	r := NewReplay(setup(t, text, files), setup(t, strings.Replace(text, "ca.pem", "other.pem", 1), files))
	err := r.Ask(&Seen{Presented: root.Client("alice").Presented(), Path: "/", Uses: []Use{{Listener: "public", Host: "a test"}, {Listener: "public", Host: "a.test"}}})
	if i := r.Done(); err == nil || len(i.Refused) != 1 || i.Asked != 1 {
		t.Errorf("%v, %+v", err, i)
	}
}
