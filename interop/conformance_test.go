package interop_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"

	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// beyond has a host for each set of rules that goes further than Go's verifier.
const beyond = `
include: [beyond.yaml]
listeners:
  public:
    listen: $public
    protocol: https
    hosts:
      - {names: ["*.plain.test"], certificate: $cert, client_auth: {mode: require, trust_store: plain}, routes: [{upstream: api}]}
      - {names: ["*.shallow.test"], certificate: $cert, client_auth: {mode: require, trust_store: shallow}, routes: [{upstream: api}]}
      - {names: ["*.listed.test"], certificate: $cert, client_auth: {mode: require, trust_store: clients}, routes: [{upstream: api}]}
      - {names: ["*.stale.test"], certificate: $cert, client_auth: {mode: require, trust_store: stale}, routes: [{upstream: api}]}
      - {names: ["*.issuers.test"], certificate: $cert, client_auth: {mode: require, trust_store: issuers}, routes: [{upstream: api}]}
upstreams:
  api: {targets: ["http://$api"]}
`

const beyondStores = `
trust_stores:
  plain: {ca_bundle: {file: root-ca.pem}}
  shallow: {ca_bundle: {file: root-ca.pem}, accept: {max_depth: 1}}
  stale: {ca_bundle: {file: root-ca.pem}, revocation: {crls: [{file: stale.crl}]}}
  issuers: {ca_bundle: {file: root-ca.pem}, revocation: {crls: [{file: issuers.crl}], missing: if_present}}
`

// TestBeyondGo presents certificates that Go's verifier accepts, with the options of Go's own TLS server, and wants each
// refused for its reason, and each reason in the table of docs/conformance.md.
func TestBeyondGo(t *testing.T) {
	p := newPKI(t)
	write(t, p.dir, "beyond.yaml", []byte(beyondStores))
	issue(t, p.dir, "beyond", p.internal, newECDSA(t), forServer("*.plain.test", "*.shallow.test", "*.listed.test", "*.stale.test", "*.issuers.test"))
	list := func(name string, issuer *cert, until time.Time, revoked ...x509.RevocationListEntry) {
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: until.Add(-24 * time.Hour),
			NextUpdate: until, RevokedCertificateEntries: revoked}, issuer.Certificate, issuer.key)
		if err != nil {
			t.Fatal(err)
		}
		write(t, p.dir, name, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
	}
	list("stale.crl", p.ca, time.Now().Add(-time.Hour))
	list("issuers.crl", p.root, time.Now().Add(time.Hour), x509.RevocationListEntry{SerialNumber: p.ca.SerialNumber, RevocationTime: time.Now().Add(-time.Hour)})
	backend := newWitness(t)
	b := serve(t, p, beyond, map[string]string{"api": backend.addr, "cert": "{cert: beyond.pem, key: beyond.key}"})

	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	client := func(change ...func(*x509.Certificate)) *cert {
		return issue(t, p.dir, "client", p.ca, newECDSA(t), append([]func(*x509.Certificate){forClient}, change...)...)
	}
	tested := map[string]bool{}
	for i, c := range []struct {
		name, host, reason string
		who                *cert
	}{
		{"a good client", "plain", "completed", client()},
		{"a good client at the depth that is allowed", "shallow", "completed", issue(t, p.dir, "direct", p.root, newECDSA(t), forClient)},
		{"a good client, whose issuer has a list", "listed", "completed", client()},
		{"five certificates", "plain", "client_cert_too_many", withMore(client(), p.mallory, p.alice, p.bob)},
		{"a certificate of 33 KiB", "plain", "client_cert_too_large", client(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 3, 6, 1, 4, 1, 99999, 1}, Value: make([]byte, 33<<10)}}
		})},
		{"two certificates below the anchor", "shallow", "client_cert_depth", client()},
		{"version 1", "plain", "client_cert_version", edited(t, client(), func(s *tbsCertificate) { s.Version, s.Extensions = 0, nil })},
		{"serial number 0", "plain", "client_cert_serial", edited(t, client(), func(s *tbsCertificate) { s.Serial = new(big.Int) })},
		{"serial number of 21 octets", "plain", "client_cert_serial", edited(t, client(), func(s *tbsCertificate) { s.Serial = new(big.Int).Lsh(big.NewInt(1), 160) })},
		{"RSA of 1024 bits", "plain", "client_cert_weak_key", issue(t, p.dir, "weak", p.ca, weak, forClient)},
		{"a CA", "plain", "client_cert_is_ca", client(func(c *x509.Certificate) { c.IsCA = true })},
		{"the anchor", "plain", "client_cert_is_anchor", p.root},
		{"keyUsage without digitalSignature", "plain", "client_cert_key_usage", client(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })},
		{"no extendedKeyUsage", "plain", "client_cert_eku_missing", client(func(c *x509.Certificate) { c.ExtKeyUsage = nil })},
		{"any extendedKeyUsage", "plain", "client_cert_eku", client(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} })},
		{"an underscore in a DNS name", "plain", "client_cert_san_invalid", client(func(c *x509.Certificate) { c.DNSNames = []string{"a_b.test"} })},
		{"a line break in a mail address", "plain", "client_cert_san_invalid", client(func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b.test\r\nX: y"} })},
		{"on its issuer's list", "listed", "client_cert_revoked", p.bob},
		{"its issuer is on a list", "issuers", "client_issuer_revoked", client()},
		{"no list of its issuer", "listed", "crl_missing", issue(t, p.dir, "direct", p.root, newECDSA(t), forClient)},
		{"its issuer's list is outdated", "stale", "crl_stale", client()},
	} {
		t.Run(c.name, func(t *testing.T) {
			certs, err := parseAll(c.who.chain)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := verifyByGo(certs, p.root.Certificate, x509.ExtKeyUsageClientAuth); err != nil {
				t.Fatalf("Go refuses it too: %v", err)
			}
			tested[c.reason] = true
			o := &outcome{chainCase: &chainCase{}, version: tls.VersionTLS13, name: fmt.Sprintf("n%d.%s.test", i, c.host)}
			o.present(b, &tls.Certificate{Certificate: c.who.chain, PrivateKey: c.who.key}, http.StatusOK)
			b.record(t, 0, "kind=handshake", "sni="+o.name, "reason="+c.reason)
			if good := c.reason == "completed"; o.accepted != good || (backend.told(o.name) != nil) != good {
				t.Errorf("the client was let in: %t, %v; want %t", o.accepted, o.err, good)
			}
		})
	}
	t.Run("docs", func(t *testing.T) {
		delete(tested, "completed")
		page, err := os.ReadFile(filepath.Join("..", "docs", "conformance.md"))
		if err != nil {
			t.Fatal(err)
		}
		told := map[string]bool{}
		for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(string(page), -1) {
			told[row[1]] = true
		}
		if !maps.Equal(told, tested) {
			t.Errorf("docs/conformance.md has\n%s\ntested is\n%s", strings.Join(slices.Sorted(maps.Keys(told)), " "), strings.Join(slices.Sorted(maps.Keys(tested)), " "))
		}
	})
}

// withMore sends other certificates after the chain.
func withMore(c *cert, others ...*cert) *cert {
	for _, o := range others {
		c.chain = append(c.chain, o.chain[0])
	}
	return c
}

// tbsCertificate is what is signed of a certificate (RFC 5280 section 4.1), as far as a test changes it.
type tbsCertificate struct {
	Version    int `asn1:"optional,explicit,default:0,tag:0"`
	Serial     *big.Int
	Algorithm  asn1.RawValue
	Issuer     asn1.RawValue
	Validity   asn1.RawValue
	Subject    asn1.RawValue
	PublicKey  asn1.RawValue
	Extensions []pkix.Extension `asn1:"omitempty,optional,explicit,tag:3"`
}

// edited is a certificate changed in a way that crypto/x509 does not make, signed again by its issuer.
func edited(t *testing.T, c *cert, change func(*tbsCertificate)) *cert {
	t.Helper()
	var tbs tbsCertificate
	if _, err := asn1.Unmarshal(c.RawTBSCertificate, &tbs); err != nil {
		t.Fatal(err)
	}
	change(&tbs)
	der, err := asn1.Marshal(tbs)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(der)
	signature, err := c.issuer.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := asn1.Marshal(struct {
		TBS, Algorithm asn1.RawValue
		Signature      asn1.BitString
	}{asn1.RawValue{FullBytes: der}, tbs.Algorithm, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}})
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(whole, c.chain[0]) {
		t.Fatal("nothing was changed")
	}
	c.chain[0] = whole
	return c
}
