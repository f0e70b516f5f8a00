package interop_test

import (
	"crypto/x509"
	"encoding/asn1"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
)

// part is an attribute of a name: a type, a string tag and the octets of the value.
type part struct {
	oid   asn1.ObjectIdentifier
	tag   int
	value string
}

// rawName encodes relative distinguished names, each of one or more parts.
func rawName(t *testing.T, rdns ...[]part) []byte {
	t.Helper()
	type attribute struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	var name []asn1.RawValue
	for _, rdn := range rdns {
		var s []byte
		for _, p := range rdn {
			der, err := asn1.Marshal(attribute{p.oid, asn1.RawValue{Tag: p.tag, Bytes: []byte(p.value)}})
			if err != nil {
				t.Fatal(err)
			}
			s = append(s, der...)
		}
		name = append(name, asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: s})
	}
	der, err := asn1.Marshal(name)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestSubjectsAgainstOpenSSL sends certificates with unusual names and compares what the backend is told with what openssl
// prints for the same certificate.
func TestSubjectsAgainstOpenSSL(t *testing.T) {
	need(t, "openssl", "curl")
	cn, o, ou, c := asn1.ObjectIdentifier{2, 5, 4, 3}, asn1.ObjectIdentifier{2, 5, 4, 10}, asn1.ObjectIdentifier{2, 5, 4, 11}, asn1.ObjectIdentifier{2, 5, 4, 6}
	email, uid, dc := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}, asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 25}
	one := func(oid asn1.ObjectIdentifier, value string) []part {
		return []part{{oid, asn1.TagUTF8String, value}}
	}
	p, backend := newPKI(t), newEcho(t)
	b := serve(t, p, asked, map[string]string{"api": backend.addr})
	for name, rdns := range map[string][][]part{
		"separators":      {one(cn, `a,O=b+C=d;e<f>"g"\h`)},
		"leading hash":    {one(cn, "#0C0161")},
		"spaces":          {one(cn, "  a  ")},
		"control":         {one(cn, "a\r\nX-Evil: 1\x00\x7f")},
		"UTF-8":           {one(c, "EE"), one(cn, "MÄNNIK,日本,😀"), one(ou, "x\u202ey")},
		"multi-valued":    {one(o, "Org"), {{cn, asn1.TagUTF8String, "bob"}, {ou, asn1.TagUTF8String, "admin"}}},
		"two CNs":         {one(cn, "victim"), one(cn, "attacker")},
		"many types":      {one(dc, "test"), one(dc, "corp"), one(uid, "u1"), {{email, asn1.TagIA5String, "a@b.test"}}, one(asn1.ObjectIdentifier{2, 5, 4, 5}, "PNO-1")},
		"unknown type":    {one(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 7}, "private"), one(cn, "x")},
		"printable":       {{{cn, asn1.TagPrintableString, "Plain Name"}}},
		"T61":             {{{cn, asn1.TagT61String, "caf\xe9"}}},
		"BMP":             {{{cn, asn1.TagBMPString, "\x00A\x20\xac"}}},
		"empty value":     {one(cn, "")},
		"long":            {one(cn, strings.Repeat("n", 2000))},
		"equals and star": {one(cn, "*.a=b")},
	} {
		t.Run(name, func(t *testing.T) {
			who := issue(t, t.TempDir(), "who", p.ca, newECDSA(t), forClient, func(c *x509.Certificate) { c.RawSubject = rawName(t, rdns...) })
			r := b.curl(t, "public", who, b.url("public", "a.test", "/"))
			if r.code != 0 {
				t.Fatalf("curl: %s\n%s", r, b.records.String())
			}
			h := backend.parse(t, r.out).Header
			ask := func(args ...string) string {
				o := run(t, nil, "openssl", append([]string{"x509", "-in", who.file, "-noout", "-nameopt", "RFC2253"}, args...)...)
				_, value, _ := strings.Cut(strings.TrimSuffix(o.out, "\n"), "=")
				return value
			}
			for header, want := range map[string]string{
				"X-Amzn-Mtls-Clientcert-Subject":       ask("-subject"),
				"X-Amzn-Mtls-Clientcert-Issuer":        ask("-issuer"),
				"X-Amzn-Mtls-Clientcert-Serial-Number": ask("-serial"),
			} {
				want = strings.TrimRight(want, " ") // an escaped space at the end is lost to every HTTP parser
				if got := h.Values(header); len(got) != 1 || got[0] != want {
					t.Errorf("%s: %q; openssl says %q", header, got, want)
				}
			}
			leaf, err := url.PathUnescape(h.Get("X-Amzn-Mtls-Clientcert-Leaf"))
			own, _ := os.ReadFile(who.file)
			if err != nil || leaf == "" || !strings.HasPrefix(string(own), leaf) {
				t.Errorf("leaf %q, %v", leaf, err)
			}
			if v := h.Get("X-Amzn-Mtls-Clientcert-Validity"); !regexp.MustCompile(`^NotBefore=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ;NotAfter=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$`).MatchString(v) {
				t.Errorf("validity %q", v)
			}
			if h.Get("X-Evil") != "" {
				t.Error("a name became a header")
			}
		})
	}
}
