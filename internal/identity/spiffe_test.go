package identity

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"countersign/internal/testpki"
)

func TestSPIFFE(t *testing.T) {
	root := testpki.New(t)
	id := testpki.URI("spiffe://corp.test/ns/a")
	raw := func(uris ...string) testpki.Option { // net/url would write some of them in another way
		var names [][]byte
		for _, u := range uris {
			names = append(names, tlv(sanURI, []byte(u)))
		}
		return testpki.ExtraExt(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: seq(names...)})
	}
	for _, c := range []struct {
		name    string
		opts    []testpki.Option
		id, err string // err: part of it
	}{
		{"B11/two SPIFFE IDs", []testpki.Option{id, testpki.URI("spiffe://corp.test/ns/b")}, "", "one URI name, found 2"},
		{"B11/the same twice", []testpki.Option{id, id}, "", "one URI name, found 2"},
		{"B11/another URI first", []testpki.Option{testpki.URI("https://a.test/"), id}, "", "one URI name, found 2"},
		{"B11/another URI last", []testpki.Option{id, testpki.URI("https://a.test/")}, "", "one URI name, found 2"},
		{"B11/of another case beside", []testpki.Option{raw("https://a.test/", "SPIFFE://corp.test/ns/b")}, "", "one URI name, found 2"},
		{"B11/scheme in capitals", []testpki.Option{raw("SPIFFE://corp.test/ns/a")}, "", "a SPIFFE ID, found scheme"},
		{"B11/no slashes", []testpki.Option{testpki.URI("spiffe:corp.test/ns/a")}, "", "a SPIFFE ID, found scheme"},
		{"B11/trust domain in capitals", []testpki.Option{testpki.URI("spiffe://CORP.test/ns/a")}, "", "a SPIFFE ID, found trust domain"},
		{"B11/no trust domain", []testpki.Option{testpki.URI("spiffe:///ns/a")}, "", "a SPIFFE ID, found trust domain is missing"},
		{"B11/port", []testpki.Option{testpki.URI("spiffe://corp.test:8443/ns/a")}, "", "a SPIFFE ID, found trust domain"},
		{"B11/user", []testpki.Option{testpki.URI("spiffe://me@corp.test/ns/a")}, "", "a SPIFFE ID, found trust domain"},
		{"B11/query", []testpki.Option{testpki.URI("spiffe://corp.test/ns/a?b")}, "", "a SPIFFE ID, found path"},
		{"B11/fragment", []testpki.Option{testpki.URI("spiffe://corp.test/ns/a#b")}, "", "a SPIFFE ID, found path"},
		{"B11/escape", []testpki.Option{testpki.URI("spiffe://corp.test/ns/%61")}, "", "a SPIFFE ID, found path"},
		{"B11/dots", []testpki.Option{testpki.URI("spiffe://corp.test/ns/../admin")}, "", "a SPIFFE ID, found path"},
		{"B11/empty segment", []testpki.Option{testpki.URI("spiffe://corp.test/ns//a")}, "", "a SPIFFE ID, found path"},
		{"B11/trailing slash", []testpki.Option{testpki.URI("spiffe://corp.test/ns/a/")}, "", "a SPIFFE ID, found path"},
		{"B11/trust domain alone", []testpki.Option{testpki.URI("spiffe://corp.test")}, "", "the ID of a workload"},
		{"B11/root path", []testpki.Option{testpki.URI("spiffe://corp.test/")}, "", "a SPIFFE ID, found path"},
		{"B11/too long", []testpki.Option{testpki.URI("spiffe://corp.test/" + strings.Repeat("a", maxSPIFFE))}, "", "at most 2048 bytes"},
		{"B11/trust domain too long", []testpki.Option{testpki.URI("spiffe://" + strings.Repeat("a", 256) + "/b")}, "", "at most 255 bytes"},
		{"B02/CA", []testpki.Option{id, testpki.CA()}, "", "CA:FALSE"},
		{"B02/keyCertSign", []testpki.Option{id, testpki.KeyUsage(x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign)}, "", "without keyCertSign"},
		{"B02/cRLSign", []testpki.Option{id, testpki.KeyUsage(x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign)}, "", "without keyCertSign"},
		{"no digitalSignature", []testpki.Option{id, testpki.KeyUsage(x509.KeyUsageKeyEncipherment)}, "", "keyUsage digitalSignature"},
		{"no keyUsage", []testpki.Option{id, testpki.KeyUsage(0)}, "", "keyUsage digitalSignature"},
		{"none", nil, "", ""},
		{"other names", []testpki.Option{testpki.DNS("spiffe.test"), testpki.URI("https://a.test/", "urn:spiffe:x")}, "", ""},
		{"none in a CA", []testpki.Option{testpki.CA()}, "", ""},
		{"one", []testpki.Option{id}, "spiffe://corp.test/ns/a", ""},
		{"one, beside names of other kinds", []testpki.Option{id, testpki.DNS("a.test"), testpki.Email("a@a.test")}, "spiffe://corp.test/ns/a", ""},
		{"more key usages", []testpki.Option{id, testpki.KeyUsage(x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement)}, "spiffe://corp.test/ns/a", ""},
		{"longest", []testpki.Option{testpki.URI("spiffe://" + strings.Repeat("a", 255) + "/" + strings.Repeat("b", 2048-255-10))},
			"spiffe://" + strings.Repeat("a", 255) + "/" + strings.Repeat("b", 2048-255-10), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			leaf := root.Client("svc", c.opts...).Cert
			got, err := SPIFFE(leaf)
			switch {
			case got != c.id || (err != nil) != (c.err != ""):
				t.Errorf("got %q, %v; want %q, error %q", got, err, c.id, c.err)
			case err != nil && (!strings.Contains(err.Error(), c.err) || !printable(err.Error()) || len(err.Error()) > 300):
				t.Errorf("got %q, want %q in it", err, c.err)
			}
			id, err := FromChain([]*x509.Certificate{leaf, root.Cert})
			if err != nil {
				t.Fatal(err)
			}
			if id.SPIFFE() != c.id {
				t.Errorf("the identity has %q, want %q", id.SPIFFE(), c.id)
			}
		})
	}
}

// FuzzSPIFFE holds that an ID is what was signed, octet for octet, and one that the SPIFFE project's own code takes.
func FuzzSPIFFE(f *testing.F) {
	f.Add([]byte("spiffe://corp.test/ns/a"), []byte(nil))
	f.Add([]byte("spiffe://corp.test/ns/a\x00"), []byte("https://a.test/"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		cert := &x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature}
		names := tlv(sanURI, a)
		if b != nil {
			names = append(names, tlv(sanURI, b)...)
		}
		cert.Extensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: seq(names)}}
		got, err := SPIFFE(cert)
		if err != nil {
			if got != "" || !printable(err.Error()) {
				t.Errorf("%q, %v", got, err)
			}
			return
		}
		if got == "" {
			return
		}
		id, err := spiffeid.FromString(got)
		if err != nil || id.Path() == "" || got != string(a) || b != nil {
			t.Errorf("%q of %q, %q: %v", got, a, b, err)
		}
	})
}
