package diagnose

import (
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"countersign/internal/reason"
	"countersign/internal/snapshot"
	"countersign/internal/testpki"
)

// crossed is a configuration of two hosts that trust one root each.
const crossed = `
trust_stores:
  s1: {ca_bundle: {file: r1.pem}}
  s2: {ca_bundle: {file: r2.pem}}
listeners:
  public:
    listen: 127.0.0.1:8443
    protocol: https
    hosts:
      - {names: [a.test], certificate: &c {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: s1}, routes: [{upstream: api}]}
      - {names: [b.test], certificate: *c, client_auth: {mode: require, trust_store: s2}, routes: [{upstream: api, client_auth: {mode: require, trust_store: s1}}]}
upstreams:
  api: {targets: ["http://127.0.0.1:9000"]}
`

// ends are the reasons of the three lists of an impact.
func ends(i *Impact) string {
	var all []string
	for _, list := range [][]Change{i.Refused, i.Admitted, i.Undecided} {
		var one []string
		for _, c := range list {
			one = append(one, fmt.Sprintf("%s %d", c.Reason, c.Count))
		}
		all = append(all, strings.Join(one, ", "))
	}
	return strings.Join(all, " / ")
}

// TestImpactOfWhoWasLetIn is about clients that were let in, and whose certificates, as far as they are kept, the
// configuration in force refuses: they sent others, or that configuration is newer.
func TestImpactOfWhoWasLetIn(t *testing.T) {
	r1, r2, r3, servers := testpki.New(t), testpki.New(t), testpki.New(t), testpki.New(t)
	server := servers.Server("a.test")
	i2 := r2.Intermediate("Partners CA")
	alice, old := i2.Client("alice").Presented(), i2.Client("old", testpki.Expired()).Presented()
	files := map[string][]byte{"r1.pem": r1.PEM(), "r2.pem": r2.PEM(), "r3.pem": r3.PEM(), "server.pem": server.PEM(), "server.key": server.KeyPEM()}
	for name, c := range map[string]struct {
		by   []string // of crossed, old and new
		host string
		seen Seen
		want string
	}{
		"another store":                       {by: []string{"r1.pem", "r3.pem"}, seen: Seen{Presented: alice}, want: " /  / client_cert_untrusted 9"},
		"another store, refused elsewhere":    {by: []string{"r1.pem", "r3.pem"}, seen: Seen{Presented: alice, Refused: reason.ClientCertUntrusted}, want: " /  / client_cert_untrusted 9"},
		"a host less":                         {by: []string{"[a.test]", "[x.test]"}, seen: Seen{Presented: alice}, want: " /  / sni_unknown 9"},
		"a newer TLS":                         {by: []string{"protocol: https\n", "protocol: https\n    tls: {min_version: \"1.3\"}\n"}, seen: Seen{Presented: alice, Uses: []Use{{Version: "TLS 1.2"}}}, want: " /  / tls_version_unsupported 9"},
		"the same store":                      {by: []string{"r2.pem", "r3.pem"}, seen: Seen{Presented: alice}, want: " /  / "},
		"a rule that denies it":               {by: []string{"routes: [{upstream: api}]", `routes: [{upstream: api, allow: "false"}]`}, seen: Seen{Presented: alice, Path: "/"}, want: " /  / client_cert_untrusted 9"},
		"a rule that denied it":               {by: []string{"r1.pem", "r3.pem"}, seen: Seen{Presented: alice, Path: "/", Refused: reason.PolicyDenied}, want: " /  / "},
		"a store of a route":                  {by: []string{"r1.pem", "r3.pem"}, host: "b.test", seen: Seen{Presented: alice, Path: "/"}, want: " /  / route_cert_refused 9"},
		"the same store of a route":           {by: []string{"[a.test]", "[x.test]"}, host: "b.test", seen: Seen{Presented: alice, Path: "/"}, want: " /  / "},
		"a store that has its CA":             {by: []string{"r1.pem", "r2.pem"}, seen: Seen{Presented: alice}, want: " / client_cert_untrusted 9 / "},
		"refused in the handshake":            {by: []string{"r1.pem", "r3.pem"}, seen: Seen{Presented: alice, Unproven: true}, want: " /  / "},
		"expired since, and another store":    {by: []string{"r1.pem", "r3.pem"}, seen: Seen{Presented: old}, want: " /  / "},
		"expired since, where it was trusted": {by: []string{"r2.pem", "r3.pem"}, host: "b.test", seen: Seen{Presented: old}, want: " /  / "},
	} {
		t.Run(name, func(t *testing.T) {
			changed := strings.Replace(crossed, c.by[0], c.by[1], 1)
			if changed == crossed {
				t.Fatal("nothing is changed")
			}
			u := Use{Listener: "public", Host: "a.test", Version: "TLS 1.3", Count: 9, Last: time.Now()}
			if c.host != "" {
				u.Host = c.host
			}
			if len(c.seen.Uses) > 0 {
				u.Version = c.seen.Uses[0].Version
			}
			c.seen.Uses = []Use{u}
			r := NewReplay(setup(t, crossed, files), setup(t, changed, files))
			r.Path = c.seen.Path
			if err := r.Ask(&c.seen); err != nil {
				t.Fatal(err)
			}
			i := r.Done()
			if ends(i) != c.want || len(i.Undecided) > 0 && !strings.Contains(i.Undecided[0].Next, "countersign explain --cert FILE") {
				t.Errorf("%q, not %q: %+v", ends(i), c.want, i)
			}
		})
	}
}

// TestImpactOfTwoPrograms: one certificate is that of two programs, of which one speaks TLS 1.2 only.
func TestImpactOfTwoPrograms(t *testing.T) {
	root, other, servers := testpki.New(t), testpki.New(t), testpki.New(t)
	server := servers.Server("a.test")
	files := map[string][]byte{"r1.pem": root.PEM(), "r2.pem": root.PEM(), "other.pem": other.PEM(), "server.pem": server.PEM(), "server.key": server.KeyPEM()}
	newer := strings.Replace(crossed, "protocol: https\n", "protocol: https\n    tls: {min_version: \"1.3\"}\n", 1)
	last, before := time.Now(), time.Now().Add(-time.Hour)
	both := Use{Listener: "public", Host: "a.test", Version: "TLS 1.3", Count: 9, Last: last, CountTLS12: 4, LastTLS12: before}
	one := both
	one.Version, one.CountTLS12, one.LastTLS12 = "TLS 1.2", 9, last
	for name, c := range map[string]struct {
		now, proposed string
		use           Use
		want          string
		last          time.Time
	}{
		"both":                       {crossed, newer, both, "tls_version_unsupported 4 /  / ", before},
		"TLS 1.2 only":               {crossed, newer, one, "tls_version_unsupported 9 /  / ", last},
		"another CA":                 {crossed, strings.Replace(crossed, "r1.pem", "other.pem", 1), both, "client_cert_untrusted 9 /  / ", last},
		"another CA and a newer TLS": {crossed, strings.Replace(newer, "r1.pem", "other.pem", 1), both, "client_cert_untrusted 9, tls_version_unsupported 4 /  / ", last},
		"newer already":              {newer, newer, both, " /  / ", last},
		"older again":                {newer, crossed, both, " / tls_version_unsupported 4 / ", before},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReplay(setup(t, c.now, files), setup(t, c.proposed, files))
			if err := r.Ask(&Seen{Presented: root.Client("alice").Presented(), Uses: []Use{c.use}}); err != nil {
				t.Fatal(err)
			}
			i := r.Done()
			if ends(i) != c.want || i.Asked != 1 {
				t.Errorf("%q, not %q: %+v", ends(i), c.want, i)
			}
			for _, d := range append(i.Refused, i.Admitted...)[:min(1, len(i.Refused)+len(i.Admitted))] {
				if !d.Last.Equal(c.last) {
					t.Errorf("last seen %s", d.Last)
				}
			}
		})
	}
}

// TestImpactOfWhoNamesNoHost is about uses of the default host by clients that did not ask for it.
func TestImpactOfWhoNamesNoHost(t *testing.T) {
	r1, r2, servers := testpki.New(t), testpki.New(t), testpki.New(t)
	server := servers.Server("a.test")
	files := map[string][]byte{"r1.pem": r1.PEM(), "r2.pem": r2.PEM(), "server.pem": server.PEM(), "server.key": server.KeyPEM()}
	at := func(host string) string {
		return strings.Replace(crossed, "protocol: https\n", "protocol: https\n    default_host: "+host+"\n", 1)
	}
	alice := r1.Client("alice").Presented()
	for name, c := range map[string]struct {
		now, proposed string
		unnamed       bool
		seen          Seen
		want          string
	}{
		"none any more":           {at("a.test"), crossed, true, Seen{Presented: alice}, "sni_missing 9 /  / "},
		"none any more, by name":  {at("a.test"), crossed, false, Seen{Presented: alice}, " /  / "},
		"another":                 {at("a.test"), at("b.test"), true, Seen{Presented: alice}, "client_cert_untrusted 9 /  / "},
		"another, for a path":     {at("a.test"), at("b.test"), true, Seen{Presented: alice, Path: "/"}, "client_cert_untrusted 9 /  / "},
		"the same, for a path":    {at("a.test"), at("a.test"), true, Seen{Presented: alice, Path: "/"}, " /  / "},
		"another that is refused": {at("b.test"), at("a.test"), true, Seen{Presented: alice, Unproven: true}, " / client_cert_untrusted 9 / "},
		"renamed":                 {at("a.test"), strings.ReplaceAll(at("a.test"), "a.test", "x.test"), true, Seen{Presented: alice}, " /  / "},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReplay(setup(t, c.now, files), setup(t, c.proposed, files))
			c.seen.Uses = []Use{{Listener: "public", Host: "a.test", Unnamed: c.unnamed, Version: "TLS 1.3", Count: 9, Last: time.Now()}}
			if err := r.Ask(&c.seen); err != nil {
				t.Fatal(err)
			}
			if i := r.Done(); ends(i) != c.want {
				t.Errorf("%q, not %q: %+v", ends(i), c.want, i)
			}
		})
	}
}

// TestImpactIsOpen: what concerns clients that cannot be judged leaves the answer open, and the report says so.
func TestImpactIsOpen(t *testing.T) {
	root, other, servers := testpki.New(t), testpki.New(t), testpki.New(t)
	server := servers.Server("a.test")
	files := map[string][]byte{"r1.pem": root.PEM(), "r2.pem": root.PEM(), "other.pem": other.PEM(), "server.pem": server.PEM(), "server.key": server.KeyPEM()}
	requests := strings.Replace(crossed, "client_auth: {mode: require, trust_store: s1}", "client_auth: {mode: request, trust_store: s1}", 1)
	const public = "protocol: https\n"
	on := func(text, more string) string { return strings.Replace(text, public, public+"    "+more+"\n", 1) }
	for name, c := range map[string]struct {
		now, proposed string
		path          string
		others        int
		open, note    string // empty for none
	}{
		"nothing":                         {now: crossed, proposed: crossed},
		"nothing, of many hosts":          {now: crossed, proposed: crossed, others: 3},
		"a CA, of many hosts":             {now: crossed, proposed: strings.Replace(crossed, "r2.pem", "other.pem", 1), others: 3, open: "1 clients used more hosts than are kept"},
		"a rule, of many hosts":           {now: crossed, proposed: strings.Replace(crossed, "{upstream: api}", `{upstream: api, allow: "false"}`, 1), path: "/x", others: 3, open: "1 clients used more hosts", note: "routes of a.test"},
		"required":                        {now: requests, proposed: crossed, open: "clients without a certificate would be refused at a.test on listener public (request becomes require)"},
		"not required any more":           {now: crossed, proposed: requests, note: "clients without a certificate would be let in at a.test"},
		"a name less":                     {now: requests, proposed: strings.Replace(requests, "[a.test]", "[x.test]", 1), open: "clients without a certificate would be refused at a.test on listener public (there is no host for them any more)"},
		"a second name less":              {now: strings.Replace(requests, "[a.test]", "[a.test, x.test]", 1), proposed: requests, open: "refused at x.test on listener public (there is no host"},
		"a name less, of who needs one":   {now: crossed, proposed: strings.Replace(crossed, "[a.test]", "[x.test]", 1)},
		"no default any more":             {now: on(requests, "default_host: a.test"), proposed: requests, open: "refused at listener public without the name of one of its hosts"},
		"a newer TLS":                     {now: requests, proposed: on(requests, `tls: {min_version: "1.3"}`), open: "speak nothing newer than TLS 1.2 would be refused on listener public"},
		"a newer TLS, with certificates":  {now: crossed, proposed: on(crossed, `tls: {min_version: "1.3"}`)},
		"other ciphers":                   {now: crossed, proposed: on(crossed, `tls: {policy: compatible}`), open: "other cipher suites or groups"},
		"addresses":                       {now: crossed, proposed: on(crossed, `sources: [203.0.113.0/24]`), open: "connections from other addresses"},
		"a rule":                          {now: crossed, proposed: strings.Replace(crossed, "{upstream: api}", `{upstream: api, allow: "client.common_name == 'alice'"}`, 1), open: "routes of a.test on listener public would ask other things"},
		"a rule, and the path is a given": {now: crossed, proposed: strings.Replace(crossed, "{upstream: api}", `{upstream: api, allow: "client.common_name == 'alice'"}`, 1), path: "/", note: "routes of a.test on listener public would ask other things"},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReplay(setup(t, c.now, files), setup(t, c.proposed, files))
			r.Path = c.path
			if err := r.Ask(&Seen{Presented: root.Client("alice").Presented(), Path: c.path, OtherHosts: c.others}); err != nil {
				t.Fatal(err)
			}
			i := r.Done()
			var text strings.Builder
			if err := i.Print(&text, 9); err != nil {
				t.Fatal(err)
			}
			open, notes := strings.Join(i.Open, "\n"), strings.Join(i.Notes, "\n")
			alone := strings.Contains(text.String(), "no client that was seen would be treated in another way")
			if len(i.Open) > 1 || len(i.Notes) > 1 || !strings.Contains(open, c.open) || !strings.Contains(notes, c.note) || (c.open == "") != (open == "") ||
				(c.note == "") != (notes == "") || alone != (c.open == "") || !strings.Contains(text.String(), c.open) || !strings.Contains(text.String(), c.note) {
				t.Errorf("open %q, notes %q\n%s", open, notes, text.String())
			}
		})
	}
}

// TestNextOfAPurpose: the next step names the purpose that is wanted, whichever that is.
func TestNextOfAPurpose(t *testing.T) {
	root, servers := testpki.New(t), testpki.New(t)
	server := servers.Server("a.test")
	files := map[string][]byte{"r1.pem": root.PEM(), "r2.pem": root.PEM(), "server.pem": server.PEM(), "server.key": server.KeyPEM()}
	const store = "s1: {ca_bundle: {file: r1.pem}"
	custom := strings.Replace(crossed, store, store+", accept: {eku: {oids: [1.3.6.1.4.1.99999.7]}}", 1)
	lax := strings.Replace(crossed, store, store+", accept: {eku: allow_absent}", 1)
	for _, c := range []struct {
		proposed, code, next string
		client               *testpki.Cert
	}{
		{custom, "client_cert_eku", "has only clientAuth; the CA must issue one with 1.3.6.1.4.1.99999.7", root.Client("alice")},
		{custom, "client_cert_eku_missing", "the CA must issue one with 1.3.6.1.4.1.99999.7", root.Client("bob", testpki.NoEKU())},
		{crossed, "client_cert_eku_missing", "one with clientAuth (or set accept.eku: allow_absent of trust store s1)", root.Client("bob", testpki.NoEKU())},
	} {
		now, proposed := setup(t, lax, files), setup(t, c.proposed, files)
		x, err := Explain(proposed, &Question{Presented: c.client.Presented(), Host: "a.test"})
		if err != nil || x.Reason != c.code || !strings.Contains(x.Next, c.next) || strings.Count(x.Next, "clientAuth") != strings.Count(c.next, "clientAuth") {
			t.Errorf("explain: %s: %q %v", x.Reason, x.Next, err)
		}
		r := NewReplay(now, proposed)
		if err := r.Ask(&Seen{Presented: c.client.Presented(), Uses: []Use{{Listener: "public", Host: "a.test"}}}); err != nil {
			t.Fatal(err)
		}
		i := r.Done()
		if len(i.Refused) != 1 || i.Refused[0].Reason != c.code || i.Refused[0].Next != x.Next {
			t.Errorf("impact: %+v", i.Refused)
		}
	}
}

// TestShape: everything that clients are judged by is seen to differ.
func TestShape(t *testing.T) {
	root, servers := testpki.New(t), testpki.New(t)
	server := servers.Server("a.test")
	files := map[string][]byte{"r1.pem": root.PEM(), "r2.pem": root.PEM(), "server.pem": server.PEM(), "server.key": server.KeyPEM()}
	was := func(text string) *snapshot.Snapshot { return setup(t, text, files).Snapshot }
	for _, by := range [][2]string{{"[a.test]", "[a.test, x.test]"}, {"protocol: https\n", "protocol: https\n    default_host: b.test\n"}, {"mode: require, trust_store: s1", "mode: request, trust_store: s1"},
		{"{upstream: api}", `{upstream: api, allow: "false"}`}, {"s1: {", "s1: {accept: {max_depth: 2}, "}, {"  public:", "  other:"}} {
		if shape(was(crossed)) == shape(was(strings.Replace(crossed, by[0], by[1], 1))) {
			t.Error(by[1])
		}
	}
}

// TestImpactOfSeveralChains is about a client whose CA has certificates of two roots, and which sent one or the other.
func TestImpactOfSeveralChains(t *testing.T) {
	r1, r2, r3, servers := testpki.New(t), testpki.New(t), testpki.New(t), testpki.New(t)
	server := servers.Server("a.test")
	i1 := r1.Intermediate("Partners CA")
	i2 := r2.Intermediate("Partners CA", testpki.KeyOf(i1))
	leaf := i1.Client("alice")
	sent := []*x509.Certificate{leaf.Cert, i1.Cert, i2.Cert}
	files := map[string][]byte{"r1.pem": r1.PEM(), "r2.pem": r2.PEM(), "r3.pem": r3.PEM(), "both.pem": append(r1.PEM(), r2.PEM()...), "server.pem": server.PEM(), "server.key": server.KeyPEM()}
	const store = "s1: {ca_bundle: {file: r1.pem}"
	few := strings.Replace(crossed, store, store+", accept: {max_presented: 2}", 1)
	for name, c := range map[string]struct {
		text, from, to string
		seen           Seen
		want           string
	}{
		"the other root":                {crossed, "r1.pem", "r2.pem", Seen{}, " /  / client_cert_untrusted 9"},
		"the other root, for a path":    {crossed, "r1.pem", "r2.pem", Seen{Path: "/"}, " /  / client_cert_untrusted 9"},
		"the other root too":            {crossed, "r1.pem", "both.pem", Seen{}, " /  / "},
		"a third root":                  {crossed, "r1.pem", "r3.pem", Seen{}, "client_cert_untrusted 9 /  / "},
		"another host":                  {crossed, "r2.pem", "r3.pem", Seen{}, " /  / "},
		"sent at once, and refused":     {crossed, "r1.pem", "r2.pem", Seen{Unproven: true}, " /  / "},
		"too many together":             {few, "r2.pem", "r3.pem", Seen{}, " /  / "},
		"too many together, third root": {few, "r1.pem", "r3.pem", Seen{}, "client_cert_untrusted 9 /  / "},
		"too many together, other root": {few, "r1.pem", "r2.pem", Seen{}, "client_cert_untrusted 9 /  / "}, // it sends the one here
		"too many from now on":          {few, "max_presented: 2", "max_presented: 1", Seen{}, "client_cert_too_many 9 /  / "},
		"too many at once, and refused": {few, "max_presented: 2", "max_presented: 3", Seen{Unproven: true}, " / client_cert_too_many 9 / "},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReplay(setup(t, c.text, files), setup(t, strings.Replace(c.text, c.from, c.to, 1), files))
			c.seen.Presented, c.seen.Uses = sent, []Use{{Listener: "public", Host: "a.test", Version: "TLS 1.3", Count: 9, Last: time.Now()}}
			if err := r.Ask(&c.seen); err != nil {
				t.Fatal(err)
			}
			if i := r.Done(); ends(i) != c.want || i.Asked != 1 {
				t.Errorf("%q, not %q: %+v", ends(i), c.want, i)
			}
		})
	}
}

const oneHost = `
trust_stores:
  s1: {ca_bundle: {file: now.pem}REVOCATION}
listeners:
  public:
    listen: 127.0.0.1:8443
    protocol: https
    hosts:
      - {names: [a.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: s1}, routes: [{upstream: api}]}
upstreams:
  api: {targets: ["http://127.0.0.1:9000"]}
`

// TestImpactNeverSaysNobody: a client that may be refused is listed, whatever the verdict on all that is kept of it rests on.
func TestImpactNeverSaysNobody(t *testing.T) {
	r1, r2, servers := testpki.New(t), testpki.New(t), testpki.New(t)
	server := servers.Server("a.test")
	i1 := r1.Intermediate("Partners CA")
	i2 := r2.Intermediate("Partners CA", testpki.KeyOf(i1))
	alice, bob := i1.Client("alice"), r1.Client("bob")
	files := map[string][]byte{"both.pem": append(r1.PEM(), r2.PEM()...), "r1.pem": r1.PEM(), "r2.pem": r2.PEM(), "i1.pem": i1.PEM(), "server.pem": server.PEM(), "server.key": server.KeyPEM()}
	const ocsp, waits = `, revocation: {ocsp: {mode: require, responder: "http://127.0.0.1:1/"}}`, `, revocation: {crls: [{url: "http://127.0.0.1:1/x"}]}`
	two := []Use{{Listener: "public", Host: "a.test", Version: "TLS 1.3", Count: 9}, {Listener: "public", Host: "gone.test", Count: 1}}
	for name, c := range map[string]struct {
		revocation, now, proposed string
		seen                      Seen
		want                      string
	}{
		"two issuers":                           {"", "both.pem", "r2.pem", Seen{Presented: []*x509.Certificate{alice.Cert, i1.Cert, i2.Cert}}, " /  / client_cert_untrusted 9"},
		"two issuers, OCSP":                     {ocsp, "both.pem", "r2.pem", Seen{Presented: []*x509.Certificate{alice.Cert, i1.Cert, i2.Cert}}, " /  / client_cert_untrusted 9"},
		"two issuers, a list that is not there": {waits, "both.pem", "r2.pem", Seen{Presented: []*x509.Certificate{alice.Cert, i1.Cert, i2.Cert}}, " /  / client_cert_untrusted 9"},
		"one issuer, OCSP":                      {ocsp, "both.pem", "r2.pem", Seen{Presented: []*x509.Certificate{alice.Cert, i1.Cert}}, "client_cert_untrusted 9 /  / "},
		"another issuer, OCSP":                  {ocsp, "both.pem", "r2.pem", Seen{Presented: []*x509.Certificate{alice.Cert, i2.Cert}}, " /  / "},
		"an issuer that it need not send":       {"", "i1.pem", "r1.pem", Seen{Presented: []*x509.Certificate{alice.Cert, i1.Cert}}, " /  / client_cert_untrusted 9"},
		"an issuer that it never sent":          {"", "i1.pem", "r1.pem", Seen{Presented: []*x509.Certificate{alice.Cert}}, "client_cert_untrusted 9 /  / "},
		"an issuer that it has to send":         {"", "r1.pem", "i1.pem", Seen{Presented: []*x509.Certificate{alice.Cert, i1.Cert}}, " /  / "},
		"refused at another host":               {ocsp, "both.pem", "r2.pem", Seen{Presented: []*x509.Certificate{bob.Cert}, Refused: reason.ClientCertUntrusted, Uses: two}, " /  / client_cert_untrusted 9"},
		"nothing changes":                       {ocsp, "both.pem", "both.pem", Seen{Presented: []*x509.Certificate{alice.Cert, i1.Cert, i2.Cert}}, " /  / "},
	} {
		t.Run(name, func(t *testing.T) {
			now := strings.Replace(strings.Replace(oneHost, "REVOCATION", c.revocation, 1), "now.pem", c.now, 1)
			a, b := setup(t, now, files), setup(t, strings.Replace(now, c.now, c.proposed, 1), files)
			if c.revocation == waits {
				a.URLs = []URL{{URL: "http://127.0.0.1:1/x"}}
				b.URLs = a.URLs
			}
			r := NewReplay(a, b)
			if c.seen.Uses == nil {
				c.seen.Uses = []Use{{Listener: "public", Host: "a.test", Version: "TLS 1.3", Count: 9, Last: time.Now()}}
			}
			if err := r.Ask(&c.seen); err != nil {
				t.Fatal(err)
			}
			if i := r.Done(); ends(i) != c.want {
				t.Errorf("%q, not %q: %+v", ends(i), c.want, i)
			}
		})
	}
}

// TestImpactOfAHostThatIsNew: who asks for its names is served by a wildcard or the default host now, and may fare otherwise.
func TestImpactOfAHostThatIsNew(t *testing.T) {
	root, servers := testpki.New(t), testpki.New(t)
	server := servers.Server("a.test")
	files := map[string][]byte{"r1.pem": root.PEM(), "server.pem": server.PEM(), "server.key": server.KeyPEM(), "r2.pem": servers.PEM()}
	const conf = `
trust_stores:
  s1: {ca_bundle: {file: r1.pem}}
  s2: {ca_bundle: {file: r2.pem}}
listeners:
  public:
    listen: 127.0.0.1:8443
    protocol: https
    default_host: d.test
    hosts:
      - {names: ["*.a.test"], certificate: &c {cert: server.pem, key: server.key}, client_auth: {mode: request, trust_store: s1}, routes: [{upstream: api}]}
      - {names: [d.test], certificate: *c, client_auth: {mode: request, trust_store: s1}, routes: [{upstream: api}]}
ADDED
upstreams:
  api: {targets: ["http://127.0.0.1:9000"]}
`
	const host = "      - {names: [NAME], certificate: *c, client_auth: {mode: MODE, trust_store: STORE}, routes: [{upstream: apiALLOW}]}"
	for _, c := range []struct{ name, mode, store, allow, open string }{
		{"x.a.test", "require", "s1", "", "clients without a certificate would be refused at x.a.test on listener public"},
		{"x.example", "require", "s1", "", "clients without a certificate would be refused at x.example on listener public"},
		{"x.a.test", "request", "s1", `, allow: "false"`, "routes of x.a.test on listener public would ask other things"},
		{"x.example", "request", "s2", "", "clients that ask for x.example on listener public come to the default host now"},
		{"x.a.test", "request", "s1", "", ""},
		{"x.example", "request", "s1", "", ""},
	} {
		added := strings.NewReplacer("NAME", c.name, "MODE", c.mode, "STORE", c.store, "ALLOW", c.allow).Replace(host)
		i := NewReplay(setup(t, strings.Replace(conf, "ADDED", "", 1), files), setup(t, strings.Replace(conf, "ADDED", added, 1), files)).Done()
		if open := strings.Join(i.Open, "\n"); !strings.Contains(open, c.open) || c.open == "" && open != "" {
			t.Errorf("%+v: %q", c, open)
		}
	}
}
