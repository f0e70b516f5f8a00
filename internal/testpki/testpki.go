// Package testpki makes certificates and revocation lists for tests: right ones by default, and every kind of wrong one
// in a line. It serves tests only and trusts its caller; whatever cannot be made ends the test.
//
//	root := testpki.New(t)
//	inter := root.Intermediate("Partners CA")
//	alice := inter.Client("alice", testpki.Expired())
//	crl := inter.CRL(alice, testpki.Number(7))
package testpki

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Cert is a certificate with its key. Any Cert can issue others, also where it should not.
type Cert struct {
	// Cert is the parsed certificate; nil when crypto/x509 cannot read it (which some options are for).
	Cert *x509.Certificate
	// Key is the private key. For sizes that would be slow to make (see RSA) it cannot sign.
	Key crypto.Signer
	// Chain is the DER of the certificate and of its intermediates, in the order a client sends them, without the root.
	Chain [][]byte

	tb   testing.TB
	name string
	root bool
}

var roots atomic.Int64

// New makes a self-signed root CA. It is valid since a year and for ten more.
func New(tb testing.TB, opts ...Option) *Cert {
	tb.Helper()
	return issue(tb, nil, caSpec(fmt.Sprintf("Test Root %d", roots.Add(1))), opts)
}

// Intermediate makes a CA under c.
func (c *Cert) Intermediate(name string, opts ...Option) *Cert {
	c.tb.Helper()
	return issue(c.tb, c, caSpec(name), opts)
}

// Client makes a client certificate under c with common name name and no alternative name. It is valid since an hour
// and for a day.
func (c *Cert) Client(name string, opts ...Option) *Cert {
	c.tb.Helper()
	return issue(c.tb, c, leafSpec(name, x509.ExtKeyUsageClientAuth), opts)
}

// Server makes a server certificate under c whose alternative name is name: a host name, wildcard or address.
func (c *Cert) Server(name string, opts ...Option) *Cert {
	c.tb.Helper()
	s := leafSpec(name, x509.ExtKeyUsageServerAuth)
	if ip := net.ParseIP(name); ip != nil {
		s.cert.IPAddresses = []net.IP{ip}
	} else {
		s.cert.DNSNames = []string{name}
	}
	return issue(c.tb, c, s, opts)
}

// TLS is the certificate as crypto/tls takes it.
func (c *Cert) TLS() tls.Certificate {
	return tls.Certificate{Certificate: c.Chain, PrivateKey: c.Key, Leaf: c.Cert}
}

// DER is the certificate alone.
func (c *Cert) DER() []byte { return c.Chain[0] }

// Presented is Chain parsed: what crypto/tls would hand over as PeerCertificates.
func (c *Cert) Presented() []*x509.Certificate {
	c.tb.Helper()
	certs := make([]*x509.Certificate, len(c.Chain))
	for i, der := range c.Chain {
		certs[i] = must(x509.ParseCertificate(der))(c.tb)
	}
	return certs
}

// Pool is a pool of this certificate alone.
func (c *Cert) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.Cert)
	return pool
}

// PEM is Chain as PEM.
func (c *Cert) PEM() []byte {
	var out []byte
	for _, der := range c.Chain {
		out = append(out, PEM("CERTIFICATE", der)...)
	}
	return out
}

// KeyPEM is the private key in PKCS #8.
func (c *Cert) KeyPEM() []byte {
	c.tb.Helper()
	return PEM("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(c.Key))(c.tb))
}

// WriteFiles writes <name>.pem and <name>.key (mode 0600) into dir and returns their paths.
func (c *Cert) WriteFiles(dir string) (cert, key string) {
	c.tb.Helper()
	base := filepath.Join(dir, strings.Map(func(r rune) rune {
		if r == '/' || r == '*' || r <= ' ' {
			return '_'
		}
		return r
	}, c.name))
	cert, key = base+".pem", base+".key"
	must(0, os.WriteFile(cert, c.PEM(), 0o644))(c.tb)
	must(0, os.WriteFile(key, c.KeyPEM(), 0o600))(c.tb)
	return cert, key
}

// PEM wraps der in a block of the given type.
func PEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// spec is a certificate to be made.
type spec struct {
	cert  x509.Certificate
	name  string
	key   func(testing.TB) crypto.Signer
	sha1  bool
	edits []func(*TBS)
}

func caSpec(name string) *spec {
	s := leafSpec(name)
	s.cert.NotBefore = s.cert.NotBefore.AddDate(-1, 0, 0)
	s.cert.NotAfter = s.cert.NotAfter.AddDate(10, 0, 0)
	s.cert.IsCA = true
	s.cert.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	return s
}

func leafSpec(name string, eku ...x509.ExtKeyUsage) *spec {
	now := time.Now()
	return &spec{name: name, key: ecdsaKey, cert: x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(24 * time.Hour),
		BasicConstraintsValid: true,
		MaxPathLen:            -1,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           eku,
	}}
}

// TBS is the signed part of a certificate (RFC 5280 section 4.1.2), for edits that crypto/x509 does not offer.
type TBS struct {
	Raw        asn1.RawContent
	Version    int `asn1:"optional,explicit,default:0,tag:0"`
	Serial     *big.Int
	Algorithm  pkix.AlgorithmIdentifier
	Issuer     asn1.RawValue
	Validity   struct{ NotBefore, NotAfter time.Time }
	Subject    asn1.RawValue
	PublicKey  asn1.RawValue
	Extensions []pkix.Extension `asn1:"omitempty,optional,explicit,tag:3"`
}

type signed struct {
	TBS       asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
}

// issue makes the certificate with crypto/x509 and, where it is to be wrong in a way crypto/x509 refuses to be, edits
// and signs it again.
func issue(tb testing.TB, issuer *Cert, s *spec, opts []Option) *Cert {
	tb.Helper()
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	s.cert.SerialNumber = serial.SetBit(serial, 120, 1)
	for _, o := range opts {
		o(s)
	}
	c := &Cert{tb: tb, name: s.name, Key: s.key(tb), root: issuer == nil}
	signer := issuer
	if c.root {
		signer = &Cert{Cert: &s.cert, Key: c.Key}
	}
	der := must(x509.CreateCertificate(rand.Reader, &s.cert, signer.Cert, c.Key.Public(), signer.Key))(tb)
	if s.sha1 || len(s.edits) > 0 {
		der = s.edit(tb, der, signer.Key)
	}
	c.Cert, _ = x509.ParseCertificate(der)
	c.Chain = [][]byte{der}
	if issuer != nil && !issuer.root {
		c.Chain = append(c.Chain, issuer.Chain...)
	}
	return c
}

func (s *spec) edit(tb testing.TB, der []byte, key crypto.Signer) []byte {
	tb.Helper()
	var outer signed
	must(asn1.Unmarshal(der, &outer))(tb)
	var tbs TBS
	must(asn1.Unmarshal(outer.TBS.FullBytes, &tbs))(tb)
	tbs.Raw = nil
	alg := algorithm(key, s.sha1)
	tbs.Algorithm = alg.id
	for _, f := range s.edits {
		f(&tbs)
	}
	return seal(tb, must(asn1.Marshal(tbs))(tb), key, alg)
}

// must unpacks a result; the second call names the test to end on an error.
func must[T any](v T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		if err != nil {
			tb.Fatalf("testpki: %v", err)
		}
		return v
	}
}

func parseURI(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		return &url.URL{Opaque: s}
	}
	return u
}
