package interop_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// cert is a certificate with its key, and where its files are.
type cert struct {
	*x509.Certificate
	key    crypto.Signer
	chain  [][]byte // itself and its intermediates
	issuer *cert
	// file and keyFile are the PEM files; file holds the chain.
	file, keyFile string
}

var serials atomic.Int64

func newECDSA(t *testing.T) crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRSA(t *testing.T) crypto.Signer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newEd25519(t *testing.T) crypto.Signer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue makes a certificate and writes NAME.pem and NAME.key into dir. Without an issuer it is self-signed.
func issue(t *testing.T, dir, name string, issuer *cert, key crypto.Signer, change ...func(*x509.Certificate)) *cert {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(0x1000 + serials.Add(1)), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	}
	for _, f := range change {
		f(template)
	}
	c := &cert{key: key, issuer: issuer}
	parent, signer := template, key
	if issuer != nil {
		parent, signer = issuer.Certificate, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	if c.Certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	c.chain = [][]byte{der}
	if issuer != nil && issuer.issuer != nil {
		c.chain = append(c.chain, issuer.chain...)
	}
	var text []byte
	for _, der := range c.chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	c.file = write(t, dir, name+".pem", text)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	c.keyFile = write(t, dir, name+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	return c
}

func isCA(c *x509.Certificate) {
	c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	c.NotBefore = time.Now().Add(-365 * 24 * time.Hour)
	c.NotAfter = time.Now().Add(365 * 24 * time.Hour)
}

func forClient(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }

func forServer(names ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		for _, name := range names {
			if ip := net.ParseIP(name); ip != nil {
				c.IPAddresses = append(c.IPAddresses, ip)
			} else {
				c.DNSNames = append(c.DNSNames, name)
			}
		}
	}
}

func expired(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-24*time.Hour)
}

// pki is the certificates of one test, as files in dir.
type pki struct {
	dir string
	// The clients' CA: a root, and an intermediate that issues.
	root, ca *cert
	// Clients, by what is right or wrong with them.
	alice, dave, erin, bob, carol, mallory, serverOnly *cert
	// The CA of servers, what the listeners show (ECDSA and RSA), and our own certificate for backends.
	internal, server, serverRSA, edge *cert
}

// names are the server names the listeners have certificates for.
var names = []string{"a.test", "opt.test", "off.test", "reset.test", "b.test"}

func newPKI(t *testing.T) *pki {
	t.Helper()
	p := &pki{dir: t.TempDir()}
	p.root = issue(t, p.dir, "root-ca", nil, newECDSA(t), isCA)
	p.ca = issue(t, p.dir, "clients-ca", p.root, newECDSA(t), isCA)
	p.alice = issue(t, p.dir, "alice", p.ca, newECDSA(t), forClient)
	p.dave = issue(t, p.dir, "dave", p.ca, newRSA(t), forClient)
	p.erin = issue(t, p.dir, "erin", p.ca, newEd25519(t), forClient)
	p.bob = issue(t, p.dir, "bob", p.ca, newECDSA(t), forClient)
	p.carol = issue(t, p.dir, "carol", p.ca, newECDSA(t), forClient, expired)
	p.serverOnly = issue(t, p.dir, "server-only", p.ca, newECDSA(t), forServer())
	foreign := issue(t, p.dir, "foreign-ca", nil, newECDSA(t), isCA)
	p.mallory = issue(t, p.dir, "mallory", foreign, newECDSA(t), forClient)
	p.internal = issue(t, p.dir, "internal-ca", nil, newECDSA(t), isCA)
	p.server = issue(t, p.dir, "server", p.internal, newECDSA(t), forServer(names...))
	p.serverRSA = issue(t, p.dir, "server-rsa", p.internal, newRSA(t), forServer(names...))
	p.edge = issue(t, p.dir, "edge", p.internal, newECDSA(t), forClient)

	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(24 * time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: p.bob.SerialNumber, RevocationTime: time.Now().Add(-time.Minute)}},
	}, p.ca.Certificate, p.ca.key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, p.dir, "clients.crl", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
	return p
}

func (p *pki) path(name string) string { return filepath.Join(p.dir, name) }
