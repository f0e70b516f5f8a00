package identity

import (
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// attr is one type and value of a name under construction.
type attr struct {
	oid  string
	tag  cbasn1.Tag
	text string // contents octets
}

func utf8Attr(oid, text string) attr { return attr{oid, cbasn1.UTF8String, text} }

// rawName encodes a name as it stands: no sorting, no choosing of string types, no checks.
func rawName(rdns ...[]attr) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, rdn := range rdns {
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
				for _, a := range rdn {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						oid, err := x509.ParseOID(a.oid)
						if err != nil {
							panic(err)
						}
						der, _ := oid.MarshalBinary()
						b.AddASN1(cbasn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(der) })
						b.AddASN1(a.tag, func(b *cryptobyte.Builder) { b.AddBytes([]byte(a.text)) })
					})
				}
			})
		}
	})
	return b.BytesOrPanic()
}

const (
	oidCN = "2.5.4.3"
	oidO  = "2.5.4.10"
	oidOU = "2.5.4.11"
	oidC  = "2.5.4.6"
)

var testKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

// certDER signs a certificate with any subject, issued by itself, and padding octets in an unknown extension.
func certDER(t testing.TB, subject []byte, padding int) []byte {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(0x03a5b1),
		RawSubject:   subject,
		NotBefore:    time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		NotAfter:     time.Date(2036, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	if padding > 0 {
		template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: make([]byte, padding)}}
	}
	der, err := x509.CreateCertificate(nil, template, template, testKey.Public(), testKey)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// anchorFor returns a stand-in for the issuer of leaf.
func anchorFor(t testing.TB, leaf *x509.Certificate) *x509.Certificate {
	t.Helper()
	return parse(t, certDER(t, leaf.RawIssuer, 0))
}

// client is the present client of a leaf.
func client(t testing.TB, leaf *x509.Certificate) Client {
	t.Helper()
	id, err := FromChain([]*x509.Certificate{leaf, anchorFor(t, leaf)})
	if err != nil {
		t.Fatal(err)
	}
	return Present(id)
}

func printName(t testing.TB, raw []byte) string {
	t.Helper()
	name, err := AppendName(nil, raw)
	if err != nil {
		t.Fatal(err)
	}
	return string(name)
}

// lines splits rendered headers the way a strict backend would.
func lines(t testing.TB, rendered []byte) (names []string, values map[string]string) {
	t.Helper()
	values = make(map[string]string)
	rest := string(rendered)
	for rest != "" {
		line, after, ok := strings.Cut(rest, "\r\n")
		if !ok {
			t.Fatalf("line without CRLF: %q", rest)
		}
		name, value, ok := strings.Cut(line, ": ")
		if !ok {
			t.Fatalf("line without colon: %q", line)
		}
		if !printable(line) {
			t.Fatalf("header line is not printable ASCII: %q", line)
		}
		if _, twice := values[name]; twice {
			t.Fatalf("%s rendered twice", name)
		}
		names, values[name], rest = append(names, name), value, after
	}
	return names, values
}

func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) < 0
}
