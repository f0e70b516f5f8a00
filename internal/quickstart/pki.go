package quickstart

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"time"

	pkcs12 "software.sslmate.com/src/go-pkcs12"
)

// Lifetimes. A certificate is issued anew, with the same key, when less than a third of its life is left.
const (
	day      = 24 * time.Hour
	caLife   = 3650 * day
	leafLife = 90 * day
	crlLife  = 7 * day
	// backdate is how long before now certificates begin: clocks differ.
	backdate = time.Hour
	// carol's certificate ran from carolBegan to carolEnded before now; the CAs began before it.
	carolBegan, carolEnded, caBegan = 30 * day, day, 31 * day
)

// password opens the p12 files. It is printed: they are for trying out, and a p12 without one is refused by some programs.
const password = "countersign"

// profile says what one certificate is to be.
type profile struct {
	name    string // of its files in pki/
	subject string // CN
	note    string // for people
	issuer  string // name of another profile; empty for self-signed
	ca      bool
	path    int // CA certificates that may follow a CA
	rsa     bool
	expired bool
	p12     bool
	usage   x509.ExtKeyUsage
	dns     []string
}

// profiles are all certificates, issuers before what they issue.
var profiles = []profile{
	{name: "root-ca", subject: "Quickstart Root CA", ca: true, path: 1, note: "the root: curl trusts it (--cacert)"},
	{name: "intermediate-ca", subject: "Quickstart Issuing CA", issuer: "root-ca", ca: true, note: "issues clients and server"},
	{name: "internal-ca", subject: "Quickstart Internal CA", ca: true, note: "issues the backends and edge"},
	{name: "mallory-ca", subject: "Some Other CA", ca: true, note: "nobody trusts it"},

	{name: "server", subject: "offload.test", issuer: "intermediate-ca", usage: x509.ExtKeyUsageServerAuth,
		dns: []string{"offload.test", "bridging.test", "chained.test", "backend.test"}, note: "Countersign to its clients"},
	{name: "passthrough", subject: "passthrough.test", issuer: "intermediate-ca", usage: x509.ExtKeyUsageServerAuth,
		dns: []string{"passthrough.test"}, note: "backend 3 to clients that are passed through"},
	{name: "backend", subject: "backend", issuer: "internal-ca", usage: x509.ExtKeyUsageServerAuth,
		dns: []string{"https.internal", "mtls.internal"}, note: "backends 2 and 3 to Countersign"},
	{name: "edge", subject: edgeName, issuer: "internal-ca", usage: x509.ExtKeyUsageClientAuth, note: "Countersign to backend 3"},

	{name: "alice", subject: "alice", issuer: "intermediate-ca", usage: x509.ExtKeyUsageClientAuth, p12: true, note: "good"},
	{name: "dave", subject: "dave", issuer: "intermediate-ca", usage: x509.ExtKeyUsageClientAuth, p12: true, rsa: true, note: "good, with an RSA key"},
	{name: "bob", subject: "bob", issuer: "intermediate-ca", usage: x509.ExtKeyUsageClientAuth, p12: true, note: "revoked"},
	{name: "carol", subject: "carol", issuer: "intermediate-ca", usage: x509.ExtKeyUsageClientAuth, p12: true, expired: true, note: "expired"},
	{name: "mallory", subject: "mallory", issuer: "mallory-ca", usage: x509.ExtKeyUsageClientAuth, p12: true, note: "of another CA"},
	{name: "server-only", subject: "server-only", issuer: "intermediate-ca", usage: x509.ExtKeyUsageServerAuth, p12: true,
		dns: []string{"server-only.test"}, note: "not meant for clients (serverAuth only)"},
}

const edgeName = "countersign-edge"

// entity is a certificate with its key.
type entity struct {
	cert *x509.Certificate
	key  crypto.Signer
	// chain is what NAME.pem holds: the certificate, then its issuer unless that is an anchor the other side has.
	chain []byte
}

// step says what was done about one certificate or list.
type step struct{ name, did, note string }

const (
	made     = "made"
	reissued = "re-issued"
	kept     = "kept"
)

// maker makes the PKI in a folder, or completes the one that is there.
type maker struct {
	*folder
	now      time.Time
	entities map[string]*entity
	steps    []step
}

// makePKI keeps every CA and key that is there, issues what is missing or near its end, and makes the revocation list
// and the bundle anew. What cannot be read is an error: it might be something the user wants to look at.
func makePKI(f *folder, now time.Time) (map[string]*entity, []step, error) {
	m := &maker{folder: f, now: now, entities: make(map[string]*entity)}
	for _, p := range profiles {
		if err := m.entity(p); err != nil {
			return nil, nil, err
		}
	}
	if err := m.bundle(); err != nil {
		return nil, nil, err
	}
	if err := m.revoke("bob"); err != nil {
		return nil, nil, err
	}
	return m.entities, m.steps, nil
}

func (m *maker) entity(p profile) error {
	certName, keyName := "pki/"+p.name+".pem", "pki/"+p.name+".key"
	data, err := m.read(certName)
	if err != nil {
		return err
	}
	e := new(entity)
	fresh, err := m.key(e, p, keyName, certName, data != nil)
	if err != nil {
		return err
	}
	if data != nil {
		if e.cert, err = m.parse(certName, data); err != nil {
			return err
		}
		if !e.key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(e.cert.PublicKey) {
			return fmt.Errorf("%s: expected the certificate of %s, found one of another key; delete %s, and it will be issued anew",
				m.path(certName), m.path(keyName), m.path(certName))
		}
	}
	did := kept
	if e.cert == nil || !m.usable(e.cert, p) {
		if did = reissued; e.cert == nil {
			did = made
		}
		if err := m.issue(e, p); err != nil {
			return fmt.Errorf("cannot issue %s: %w", m.path(certName), err)
		}
	}
	e.chain = certificatePEM(e.cert.Raw)
	if issuer := m.entities[p.issuer]; issuer != nil && !p.ca && p.issuer != "internal-ca" {
		e.chain = append(e.chain, certificatePEM(issuer.cert.Raw)...)
	}
	if !bytes.Equal(e.chain, data) {
		if err := m.write(certName, e.chain, public); err != nil {
			return err
		}
	}
	if p.p12 {
		if err := m.pkcs12("pki/"+p.name+".p12", e, m.entities[p.issuer]); err != nil {
			return err
		}
	}
	if fresh {
		did = made
	}
	m.entities[p.name] = e
	m.steps = append(m.steps, step{p.name, did, p.note + "; until " + e.cert.NotAfter.UTC().Format(time.DateOnly)})
	return nil
}

// key reads the key of p, or makes it if neither it nor its certificate is there.
func (m *maker) key(e *entity, p profile, keyName, certName string, hasCert bool) (fresh bool, err error) {
	data, err := m.read(keyName)
	if err != nil {
		return false, err
	}
	next := fmt.Sprintf("delete %s and %s (key and certificate will be made anew), or the folder %s", m.path(keyName), m.path(certName), m.dir)
	if data == nil && hasCert {
		return false, fmt.Errorf("%s: expected the key of %s, found no such file; %s", m.path(keyName), m.path(certName), next)
	}
	if data == nil {
		if p.rsa {
			e.key, err = rsa.GenerateKey(rand.Reader, 2048)
		} else {
			e.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		}
		if err != nil {
			return false, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(e.key)
		if err != nil {
			return false, err
		}
		return true, m.write(keyName, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), private)
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return false, fmt.Errorf("%s: expected one PEM block PRIVATE KEY, found something else or a part of one; %s", m.path(keyName), next)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return false, fmt.Errorf("%s: expected a private key, found one that cannot be read (%w); %s", m.path(keyName), err, next)
	}
	var ok bool
	if e.key, ok = key.(crypto.Signer); !ok {
		return false, fmt.Errorf("%s: expected a key that can sign, found %T; %s", m.path(keyName), key, next)
	}
	return false, m.tighten(keyName)
}

// parse reads the certificates of a file and returns the first. Whatever else is in the file is an error.
func (m *maker) parse(name string, data []byte) (*x509.Certificate, error) {
	next := fmt.Sprintf("delete it (it will be issued anew with the same key), or the folder %s", m.dir)
	var first *x509.Certificate
	for rest := bytes.TrimSpace(data); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%s: expected certificates in PEM and nothing else, found something else or a part of one; %s", m.path(name), next)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: expected a certificate, found one that cannot be read (%w); %s", m.path(name), err, next)
		}
		if first == nil {
			first = cert
		}
	}
	if first == nil {
		return nil, fmt.Errorf("%s: expected a certificate, found an empty file; %s", m.path(name), next)
	}
	return first, nil
}

// usable reports whether a certificate that is there can stay.
func (m *maker) usable(c *x509.Certificate, p profile) bool {
	issuer := c
	if p.issuer != "" {
		issuer = m.entities[p.issuer].cert
	}
	switch {
	case c.CheckSignatureFrom(issuer) != nil, // its CA was deleted and made anew
		c.Subject.CommonName != p.subject, c.IsCA != p.ca, !slices.Equal(c.DNSNames, p.dns),
		!p.ca && !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{p.usage}):
		return false
	case p.expired:
		return m.now.After(c.NotAfter)
	}
	return m.now.After(c.NotBefore) && c.NotAfter.Sub(m.now) >= c.NotAfter.Sub(c.NotBefore)/3
}

// issue gives e a new certificate for its key.
func (m *maker) issue(e *entity, p profile) error {
	t := &x509.Certificate{ // crypto/x509 chooses a random serial number
		Subject:   pkix.Name{CommonName: p.subject, Organization: []string{"Countersign quickstart"}},
		NotBefore: m.now.Add(-backdate), NotAfter: m.now.Add(leafLife),
		BasicConstraintsValid: true, IsCA: p.ca, DNSNames: p.dns,
	}
	switch {
	case p.ca:
		t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
		t.MaxPathLen, t.MaxPathLenZero = p.path, p.path == 0
		t.NotBefore, t.NotAfter = m.now.Add(-caBegan), m.now.Add(caLife)
	default:
		t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{p.usage}
	}
	if p.usage == x509.ExtKeyUsageClientAuth && !p.ca {
		t.URIs = []*url.URL{{Scheme: "spiffe", Host: "quickstart.test", Path: "/" + p.name}}
	}
	if p.expired {
		t.NotBefore, t.NotAfter = m.now.Add(-carolBegan), m.now.Add(-carolEnded)
	}
	parent, signer := t, e.key
	if issuer := m.entities[p.issuer]; issuer != nil {
		parent, signer = issuer.cert, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, e.key.Public(), signer)
	if err != nil {
		return err
	}
	e.cert, err = x509.ParseCertificate(der)
	return err
}

// pkcs12 makes NAME.p12 unless the one that is there holds this very certificate and key.
func (m *maker) pkcs12(name string, e, issuer *entity) error {
	data, err := m.read(name)
	if err != nil {
		return err
	}
	if data != nil {
		key, cert, _, err := pkcs12.DecodeChain(data, password)
		if err != nil {
			return fmt.Errorf("%s: expected a PKCS #12 file with password %q, found one that cannot be read (%w); delete it, and it will be made anew",
				m.path(name), password, err)
		}
		if same, ok := e.key.(interface{ Equal(crypto.PrivateKey) bool }); ok && same.Equal(key) && cert.Equal(e.cert) {
			return m.tighten(name)
		}
	}
	data, err = pkcs12.Modern.Encode(e.key, e.cert, []*x509.Certificate{issuer.cert}, password)
	if err != nil {
		return fmt.Errorf("cannot make %s: %w", m.path(name), err)
	}
	return m.write(name, data, private)
}

// bundle writes what clients are verified against. The intermediate is in it because the revocation list is its own:
// so the list can be checked when it is loaded, not only when a client shows its chain.
func (m *maker) bundle() error {
	data := append(certificatePEM(m.entities["root-ca"].cert.Raw), certificatePEM(m.entities["intermediate-ca"].cert.Raw)...)
	return m.write(bundleFile, data, public)
}

// revoke makes the revocation list of the issuing CA: whoever was on the last one and is not forgotten, and name.
func (m *maker) revoke(name string) error {
	ca, who := m.entities["intermediate-ca"], m.entities[name].cert
	list := &x509.RevocationList{ThisUpdate: m.now, NextUpdate: m.now.Add(crlLife), Number: big.NewInt(m.now.Unix())}
	old, err := m.lastList(ca.cert)
	if err != nil {
		return err
	}
	did := made
	if old != nil {
		did = reissued
		list.RevokedCertificateEntries = old.RevokedCertificateEntries
		if old.Number != nil && old.Number.Cmp(list.Number) >= 0 {
			list.Number = new(big.Int).Add(old.Number, big.NewInt(1)) // lists of one CA count upwards
		}
	}
	if !slices.ContainsFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(who.SerialNumber) == 0 }) {
		const keyCompromise = 1 // RFC 5280 section 5.3.1
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: who.SerialNumber, RevocationTime: m.now, ReasonCode: keyCompromise})
	}
	// What the parser found is not what the maker takes: it would write the reason twice.
	for i := range list.RevokedCertificateEntries {
		e := &list.RevokedCertificateEntries[i]
		*e = x509.RevocationListEntry{SerialNumber: e.SerialNumber, RevocationTime: e.RevocationTime, ReasonCode: e.ReasonCode}
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.cert, ca.key)
	if err != nil {
		return fmt.Errorf("cannot make %s: %w", m.path(crlFile), err)
	}
	m.steps = append(m.steps, step{"clients.crl", did, "revokes " + name + "; until " + list.NextUpdate.UTC().Format(time.DateOnly)})
	return m.write(crlFile, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), public)
}

// lastList reads the list that is there; nil if there is none, or if it is of a CA that was deleted since.
func (m *maker) lastList(ca *x509.Certificate) (*x509.RevocationList, error) {
	data, err := m.read(crlFile)
	if err != nil || data == nil {
		return nil, err
	}
	fail := func(err error) error {
		return fmt.Errorf("%s: expected one PEM block X509 CRL, found something else or a part of one (%w); delete it, and it will be made anew", m.path(crlFile), err)
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "X509 CRL" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fail(errors.New("no such block, or more than one"))
	}
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		return nil, fail(err)
	}
	if list.CheckSignatureFrom(ca) != nil {
		return nil, nil
	}
	return list, nil
}

const (
	bundleFile = "pki/clients.pem"
	crlFile    = "pki/clients.crl"
)

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
