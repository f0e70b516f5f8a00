package policy

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"countersign/internal/identity"
	"countersign/internal/reason"
	"countersign/internal/testpki"
)

// value is one attribute of a name.
type value struct {
	oid  []int
	tag  cbasn1.Tag
	text string
}

func cn(text string) value { return value{[]int{2, 5, 4, 3}, cbasn1.UTF8String, text} }
func o(text string) value  { return value{[]int{2, 5, 4, 10}, cbasn1.UTF8String, text} }
func ou(text string) value { return value{[]int{2, 5, 4, 11}, cbasn1.UTF8String, text} }

// name makes a distinguished name of RDNs.
func name(rdns ...[]value) testpki.Option {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, rdn := range rdns {
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
				for _, v := range rdn {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier(v.oid))
						b.AddASN1(v.tag, func(b *cryptobyte.Builder) { b.AddBytes([]byte(v.text)) })
					})
				}
			})
		}
	})
	return testpki.RawSubject(b.BytesOrPanic())
}

func rdn(v ...value) []value { return v }

// sans is a subjectAltName with names of any type and content.
func sans(names ...asn1.RawValue) testpki.Option {
	der, err := asn1.Marshal(names)
	if err != nil {
		panic(err)
	}
	return testpki.ExtraExt(pkix.Extension{Id: []int{2, 5, 29, 17}, Value: der})
}

func san(tag int, text string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(text)}
}

// TestHostileNames: certificates made to look like another one.
func TestHostileNames(t *testing.T) {
	victim := `client.common_name == "victim"`
	unit := `"admin" in client.organizational_units`
	for _, c := range []struct {
		name, text string
		opts       []testpki.Option
		why        reason.Reason
	}{
		{"B08/name only in the CN", `client.dns_sans.exists(d, dns_matches(d, "admin.ok.test"))`, []testpki.Option{name(rdn(cn("admin.ok.test")))}, reason.PolicyDenied},
		{"B09/two CNs", victim, []testpki.Option{name(rdn(cn("victim")), rdn(o("x")), rdn(cn("attacker")))}, reason.PolicyDenied},
		{"B09/two CNs, reversed", victim, []testpki.Option{name(rdn(cn("attacker")), rdn(o("x")), rdn(cn("victim")))}, reason.PolicyDenied},
		{"B09/two equal CNs", victim, []testpki.Option{name(rdn(cn("victim")), rdn(cn("victim")))}, reason.PolicyDenied},
		{"B09/multi-valued", victim, []testpki.Option{name(rdn(cn("victim"), ou("x")))}, reason.PolicyDenied},
		{"B09/multi-valued, second", victim, []testpki.Option{name(rdn(ou("x"), cn("victim")))}, reason.PolicyDenied},
		{"B09/multi-valued, beside a plain one", victim, []testpki.Option{name(rdn(cn("victim")), rdn(ou("x"), cn("attacker")))}, reason.PolicyDenied},
		{"B09/BMPString", victim, []testpki.Option{name(rdn(value{cn("").oid, cbasn1.Tag(30), "\x00v\x00i\x00c\x00t\x00i\x00m"}))}, reason.PolicyDenied},
		{"B09/whole subject, BMPString", `client.subject == "CN=victim"`, []testpki.Option{name(rdn(value{cn("").oid, cbasn1.Tag(30), "\x00v\x00i\x00c\x00t\x00i\x00m"}))}, reason.PolicyFailed},
		{"B09/T61String", victim, []testpki.Option{name(rdn(value{cn("").oid, cbasn1.T61String, "victim"}))}, reason.PolicyDenied},
		{"B09/BMPString beside", victim, []testpki.Option{name(rdn(cn("victim")), rdn(value{cn("").oid, cbasn1.Tag(30), "\x00x"}))}, reason.PolicyDenied},
		{"B09/CN in another attribute", victim, []testpki.Option{name(rdn(o("x,CN=victim")))}, reason.PolicyDenied},
		{"B09/whole subject, in another attribute", `client.subject == "CN=victim,O=x"`, []testpki.Option{name(rdn(o("x")), rdn(o("CN=victim")))}, reason.PolicyDenied},
		{"B09/whole subject, order", `client.subject == "CN=victim,O=x"`, []testpki.Option{name(rdn(cn("victim")), rdn(o("x")))}, reason.PolicyDenied},
		{"B09/whole subject, multi-valued", `client.subject == "CN=bob"`, []testpki.Option{name(rdn(ou("admin"), cn("bob")))}, reason.PolicyDenied},
		{"B09/unit in a multi-valued RDN", unit, []testpki.Option{name(rdn(ou("admin"), cn("bob")))}, reason.PolicyDenied},
		{"B09/unit in another attribute", unit, []testpki.Option{name(rdn(o("admin")), rdn(cn("OU=admin")))}, reason.PolicyDenied},
		{"B09/no CN", victim, []testpki.Option{name(rdn(o("victim")))}, reason.PolicyDenied},
		{"B10/NUL in the CN", victim, []testpki.Option{name(rdn(cn("victim\x00.evil")))}, reason.PolicyDenied},
		{"B10/control in the CN", `client.common_name != ""`, []testpki.Option{name(rdn(cn("victim\n")))}, reason.PolicyDenied},
		{"B10/format character in the CN", `client.common_name != ""`, []testpki.Option{name(rdn(cn("vic\u200btim")))}, reason.PolicyDenied},
		{"B10/homograph", victim, []testpki.Option{name(rdn(cn("v\u0456ctim")))}, reason.PolicyDenied},

		{"B10/NUL in a DNS name", `"victim.test" in client.dns_sans || true`, []testpki.Option{sans(san(2, "victim.test\x00.evil"))}, reason.PolicyFailed},
		{"B10/space", `client.dns_sans.size() > 0 || true`, []testpki.Option{sans(san(2, "victim.test "))}, reason.PolicyFailed},
		{"B10/NUL in a mailbox", `"A@B" in client.email_sans || true`, []testpki.Option{sans(san(1, "A@B\x00"))}, reason.PolicyFailed},
		{"B10/address as a DNS name", `"10.0.0.1" in client.ip_sans`, []testpki.Option{sans(san(2, "10.0.0.1"))}, reason.PolicyDenied},
		{"B10/DNS name as a URI", `"victim.test" in client.dns_sans`, []testpki.Option{sans(san(6, "https://victim.test"), san(1, "a@victim.test"))}, reason.PolicyDenied},
		{"B10/URI as a DNS name", `"spiffe://corp.test/ops" in client.uri_sans`, []testpki.Option{testpki.DNS("spiffe.corp.test"), testpki.Email("spiffe@corp.test")}, reason.PolicyDenied},

		{"B11/wildcard", `client.dns_sans.exists(d, dns_matches(d, "*.ok.test"))`, []testpki.Option{testpki.DNS("*.ok.test")}, reason.PolicyDenied},
		{"B11/wildcard, exact", `client.dns_sans.exists(d, dns_matches(d, "a.ok.test"))`, []testpki.Option{testpki.DNS("*.ok.test")}, reason.PolicyDenied},
		{"B11/two labels", `client.dns_sans.exists(d, dns_matches(d, "*.ok.test"))`, []testpki.Option{testpki.DNS("a.b.ok.test", "ok.test", "okxtest", "evilok.test")}, reason.PolicyDenied},
		{"B11/SPIFFE prefix", `client.uri_sans.exists(u, spiffe_matches(u, "spiffe://td/ns/admin/**"))`, []testpki.Option{testpki.URI("spiffe://td/ns/adminx")}, reason.PolicyDenied},
		{"B11/SPIFFE domain", `client.uri_sans.exists(u, spiffe_matches(u, "spiffe://td/ns/admin"))`, []testpki.Option{testpki.URI("spiffe://td.evil/ns/admin")}, reason.PolicyDenied},
		{"B11/SPIFFE domain, case", `client.uri_sans.exists(u, spiffe_matches(u, "spiffe://td/ns/admin"))`, []testpki.Option{testpki.URI("spiffe://TD/ns/admin")}, reason.PolicyDenied},
		{"B11/two SPIFFE IDs", `client.uri_sans.exists(u, spiffe_matches(u, "spiffe://td/a")) || true`, []testpki.Option{testpki.URI("spiffe://td/a", "spiffe://td/b")}, reason.PolicyFailed},
		{"B11/two SPIFFE IDs, case", `client.uri_sans.exists(u, u == "spiffe://td/a") || true`, []testpki.Option{testpki.URI("spiffe://td/a", "SPIFFE://td/b")}, reason.PolicyFailed},
		{"B11/two SPIFFE IDs, the one", `client.spiffe_id == "spiffe://td/a"`, []testpki.Option{testpki.URI("spiffe://td/a", "spiffe://td/b")}, reason.PolicyDenied},

		{"B12/two @", `client.email_sans.exists(e, email_matches(e, "*@ok.test"))`, []testpki.Option{testpki.Email("x@evil@ok.test")}, reason.PolicyDenied},
		{"B12/quoted", `client.email_sans.exists(e, email_matches(e, "*@ok.test"))`, []testpki.Option{testpki.Email(`"a@ok.test"@evil`)}, reason.PolicyDenied},
		{"B12/quoted, right domain", `client.email_sans.exists(e, email_matches(e, "*@ok.test"))`, []testpki.Option{testpki.Email(`"a"@ok.test`)}, reason.PolicyDenied},
		{"B12/subdomain", `client.email_sans.exists(e, email_matches(e, "*@ok.test"))`, []testpki.Option{testpki.Email("a@x.ok.test")}, reason.PolicyDenied},
		{"B12/case of the local part", `client.email_sans.exists(e, email_matches(e, "alice@ok.test"))`, []testpki.Option{testpki.Email("Alice@ok.test")}, reason.PolicyDenied},

		{"too many names", `"a.test" in client.dns_sans || true`, []testpki.Option{testpki.DNS(manyNames()...)}, reason.PolicyFailed},
		{"long name", `client.uri_sans.size() > 0 || true`, []testpki.Option{testpki.URI("https://a/" + strings.Repeat("a", maxEntry))}, reason.PolicyFailed},

		{"one CN", victim, []testpki.Option{name(rdn(o("x")), rdn(cn("victim")))}, reason.Unset},
		{"one CN, PrintableString", victim, []testpki.Option{name(rdn(value{cn("").oid, cbasn1.PrintableString, "victim"}))}, reason.Unset},
		{"one unit of two", unit, []testpki.Option{name(rdn(ou("x")), rdn(ou("admin")))}, reason.Unset},
		{"whole subject", `client.subject == "CN=victim,O=x"`, []testpki.Option{name(rdn(o("x")), rdn(cn("victim")))}, reason.Unset},
		{"wildcard as it is", `"*.ok.test" in client.dns_sans`, []testpki.Option{testpki.DNS("*.ok.test")}, reason.Unset},
		{"DNS name", `client.dns_sans.exists(d, dns_matches(d, "*.ok.test"))`, []testpki.Option{testpki.DNS("A.OK.test")}, reason.Unset},
		{"mailbox", `client.email_sans.exists(e, email_matches(e, "*@ok.test"))`, []testpki.Option{testpki.Email("alice+x@OK.test")}, reason.Unset},
		{"address", `client.ip_sans.exists(i, ip_in(i, "10.0.0.0/8"))`, []testpki.Option{testpki.IP("10.1.2.3")}, reason.Unset},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := facts(t, client(t, "x", c.opts...), "/")
			if why := decide(t, compiled(t, c.text), f); why != c.why {
				t.Errorf("%v, expected %v: %v", why, c.why, f.Cause())
			}
			if f.Cause() != nil && (len(f.Cause().Error()) > 300 || !printable(f.Cause().Error())) {
				t.Errorf("%q", f.Cause())
			}
		})
	}
}

func manyNames() (names []string) {
	for i := range maxEntries + 1 {
		names = append(names, fmt.Sprintf("h%d.test", i))
	}
	return append(names, "a.test")
}

// TestVariables reads each variable of a client with something in all of them.
func TestVariables(t *testing.T) {
	root := testpki.New(t)
	middle := root.Intermediate("middle")
	der, err := asn1.Marshal([]struct{ ID asn1.ObjectIdentifier }{{asn1.ObjectIdentifier{1, 2, 3, 4}}})
	if err != nil {
		t.Fatal(err)
	}
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 2}, {1, 3, 6, 1, 5, 5, 7, 3, 5}, {1, 2, 3, 5}})
	if err != nil {
		t.Fatal(err)
	}
	leaf := middle.Client("x", name(rdn(o("Corp")), rdn(ou("A")), rdn(ou("B")), rdn(cn("ops"))), testpki.DNS("a.test"), testpki.Email("a@b.test"),
		testpki.URI("spiffe://corp.test/ops"), testpki.IP("10.0.0.1", "2001:db8::1"), testpki.NoEKU(),
		testpki.ExtraExt(pkix.Extension{Id: []int{2, 5, 29, 32}, Value: der}, pkix.Extension{Id: []int{2, 5, 29, 37}, Value: usage}))
	id, err := identity.FromChain(append(leaf.Presented(), root.Cert))
	if err != nil {
		t.Fatal(err)
	}
	sum := id.Fingerprint()
	anchor, err := identity.AppendName(nil, root.Cert.RawSubject)
	if err != nil {
		t.Fatal(err)
	}
	time := func(at time.Time) string {
		return fmt.Sprintf("timestamp(%q)", at.UTC().Format("2006-01-02T15:04:05Z"))
	}
	for variable, want := range map[string]string{
		"client.present":              "true",
		"client.subject":              `"CN=ops,OU=B,OU=A,O=Corp"`,
		"client.issuer":               fmt.Sprintf("%q", id.Issuer()),
		"client.common_name":          `"ops"`,
		"client.organizations":        `["Corp"]`,
		"client.organizational_units": `["A", "B"]`,
		"client.serial":               fmt.Sprintf("%q", id.SerialHex()),
		"client.sha256":               fmt.Sprintf("\"%x\"", sum),
		"client.spki_sha256":          fmt.Sprintf("%q", hexSHA256(leaf.Cert.RawSubjectPublicKeyInfo)),
		"client.dns_sans":             `["a.test"]`,
		"client.email_sans":           `["a@b.test"]`,
		"client.uri_sans":             `["spiffe://corp.test/ops"]`,
		"client.ip_sans":              `["10.0.0.1", "2001:db8::1"]`,
		"client.spiffe_id":            `"spiffe://corp.test/ops"`,
		"client.not_before":           time(leaf.Cert.NotBefore),
		"client.not_after":            time(leaf.Cert.NotAfter),
		"client.issuer_chain_sha256":  fmt.Sprintf("[%q, %q]", hexSHA256(middle.Cert.Raw), hexSHA256(root.Cert.Raw)),
		"client.anchor_subject":       fmt.Sprintf("%q", anchor),
		"client.eku":                  `["clientAuth", "1.3.6.1.5.5.7.3.5", "1.2.3.5"]`,
		"client.policies":             `["1.2.3.4"]`,
		"client.psd2_roles":           `[]`,
		"client.psd2_authority":       `""`,
	} {
		f := facts(t, identity.Present(id), "/")
		if why := decide(t, compiled(t, variable+" == "+want), f); why != reason.Unset {
			t.Errorf("%s is not %s: %v", variable, want, f.Cause())
		}
	}
	tested := 22
	for _, v := range Variables() {
		if strings.HasPrefix(v.Name, "client.") {
			tested--
		}
	}
	if tested != 0 {
		t.Errorf("%d client variables are not tested here", -tested)
	}
}

// TestPSD2: the roles of a payment service provider, and none for a certificate that says nothing about them.
func TestPSD2(t *testing.T) {
	var b cryptobyte.Builder
	id := func(b *cryptobyte.Builder, arcs ...int) { b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier(arcs)) }
	text := func(b *cryptobyte.Builder, s string) {
		b.AddASN1(cbasn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(s)) })
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			id(b, 0, 4, 0, 19495, 2)
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						id(b, 0, 4, 0, 19495, 1, 3)
						text(b, "PSP_AI")
					})
				})
				text(b, "Bundesanstalt")
				text(b, "DE-BAFIN")
			})
		})
	})
	bank := facts(t, client(t, "bank", testpki.ExtraExt(pkix.Extension{Id: []int{1, 3, 6, 1, 5, 5, 7, 1, 3}, Value: b.BytesOrPanic()})), "/")
	for _, c := range []struct {
		text string
		f    *Facts
		why  reason.Reason
	}{
		{`"PSP_AI" in client.psd2_roles && client.psd2_authority == "DE-BAFIN"`, bank, reason.Unset},
		{`"PSP_PI" in client.psd2_roles`, bank, reason.PolicyDenied},
		{`"PSP_AI" in client.psd2_roles`, facts(t, ops(t), "/"), reason.PolicyDenied},
		{`!("PSP_AI" in client.psd2_roles)`, facts(t, nobody(), "/"), reason.PolicyDenied},
	} {
		if why := decide(t, compiled(t, c.text), c.f); why != c.why {
			t.Errorf("%s: %v, expected %v: %v", c.text, why, c.why, c.f.Cause())
		}
	}
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern string
		yes, no string
	}{
		{"spiffe://td/ns/*", "spiffe://td/ns/a spiffe://td/ns/admin-1.x_y", "spiffe://td/ns spiffe://td/ns/ spiffe://td/ns/a/b spiffe://td/nsx/a spiffe://td.evil/ns/a " +
			"spiffe://td spiffe://td/ns/.. spiffe://td/ns/a?b spiffe://td/ns/%61 spiffe://td/ns//a spiffe://td/./ns/a SPIFFE://td/ns/a spiffe://td:1/ns/a spiffe://u@td/ns/a spiffe:///ns/a td/ns/a"},
		{"spiffe://td/**", "spiffe://td/a spiffe://td/a/b/c", "spiffe://td spiffe://td/ spiffe://tdx/a spiffe://td/a/.. spiffe://td/a/"},
		{"spiffe://td/ns/*/sa/ops", "spiffe://td/ns/a/sa/ops", "spiffe://td/ns/a/sa/opsx spiffe://td/ns/a/b/sa/ops spiffe://td/ns/sa/ops spiffe://td/ns/a/sa/ops/x spiffe://td/ns/a/sa"},
		{"spiffe://td/a", "spiffe://td/a", "spiffe://td/A spiffe://td/a/ spiffe://td/aa spiffe://td/a/a spiffe://TD/a"},
		{"spiffe://td", "spiffe://td", "spiffe://td/ spiffe://td/a spiffe://t"},
	} {
		if err := checkSPIFFEPattern(c.pattern); err != nil {
			t.Error(err)
		}
		for _, id := range strings.Fields(c.yes) {
			if !spiffeMatches(id, c.pattern) {
				t.Errorf("%s is not %s", id, c.pattern)
			}
		}
		for _, id := range append(strings.Fields(c.no), "", "spiffe://td/ns/a\x00", "spiffe://td/a\n", "spiffe://td/"+strings.Repeat("a", maxSPIFFE)) {
			if spiffeMatches(id, c.pattern) {
				t.Errorf("%q is %s", id, c.pattern)
			}
		}
	}
	for _, c := range []struct{ pattern, yes, no string }{
		{"ok.test", "ok.test OK.TEST ok.test.", "*.test a.ok.test okxtest ok.test.. ok.test.evil .ok.test ok_test"},
		{"*.ok.test", "a.ok.test A.OK.test", "ok.test .ok.test *.ok.test a.b.ok.test aok.test a.ok.test.evil a\\.ok.test xn--.ok.test-"},
	} {
		for _, name := range strings.Fields(c.yes) {
			if !dnsMatches(name, c.pattern) {
				t.Errorf("%s is not %s", name, c.pattern)
			}
		}
		for _, name := range append(strings.Fields(c.no), "", "ok.test\x00.evil", "a.ok.test ", strings.Repeat("a.", 200)+"ok.test") {
			if dnsMatches(name, c.pattern) {
				t.Errorf("%q is %s", name, c.pattern)
			}
		}
	}
	for _, c := range []struct {
		address, network string
		in, fails        bool
	}{
		{"10.1.1.1", "10.0.0.0/8", true, false}, {"::ffff:10.1.1.1", "10.0.0.0/8", true, false}, {"11.1.1.1", "10.0.0.0/8", false, false},
		{"fe80::1%eth0", "fe80::/10", true, false}, {"::1", "10.0.0.0/8", false, false}, {"10.1.1.1", "::/0", false, false},
		{"", "10.0.0.0/8", false, true}, {"10.1", "10.0.0.0/8", false, true}, {"010.1.1.1", "10.0.0.0/8", false, true}, {"10.1.1.1:80", "10.0.0.0/8", false, true},
	} {
		if in, err := ipIn(c.address, c.network); in != c.in || (err != nil) != c.fails {
			t.Errorf("%s in %s: %v %v", c.address, c.network, in, err)
		}
	}
}
