package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// host is the server name that every workload but the many hosts asks for.
const host = "a.test"

// issuer is a CA that can sign: a root, or an intermediate with its own certificate.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// pki has what a run needs. Clients chain by an intermediate to root, servers by another one; what is in foreign chains
// to a CA of the same names and other keys, which nobody trusts.
type pki struct {
	dir             string
	root            issuer
	clients, server issuer
	good, foreign   *tls.Certificate
}

var serial atomic.Int64

// issue signs a certificate of pub. The serial numbers are those of a counter; here nobody guesses.
func issue(from *issuer, name string, pub crypto.PublicKey, change func(*x509.Certificate)) ([]byte, error) {
	c := &x509.Certificate{SerialNumber: big.NewInt(1<<40 + serial.Add(1)), Subject: pkix.Name{CommonName: name, Organization: []string{"Bench"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature}
	change(c)
	parent := from.cert
	if parent == nil {
		parent = c
	}
	return x509.CreateCertificate(rand.Reader, c, parent, pub, from.key)
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func authority(from *issuer, name string) (issuer, error) {
	key, err := newKey()
	if err != nil {
		return issuer{}, err
	}
	if from == nil {
		from = &issuer{key: key}
	}
	der, err := issue(from, name, key.Public(), func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	})
	if err != nil {
		return issuer{}, err
	}
	cert, err := x509.ParseCertificate(der)
	return issuer{cert: cert, key: key}, err
}

// client makes a client certificate with its chain, as it is presented.
func client(from *issuer, name string) (*tls.Certificate, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	der, err := issue(from, name, key.Public(), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der, from.cert.Raw}, PrivateKey: key, Leaf: leaf}, err
}

// writeServer writes NAME.pem (chain), NAME.key and NAME.all (both, for HAProxy) for the server names, and returns the
// serial number.
func (p *pki) writeServer(dir, name string, key crypto.Signer, names ...string) (string, error) {
	der, err := issue(&p.server, names[0], key.Public(), func(c *x509.Certificate) {
		c.ExtKeyUsage, c.DNSNames = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, names
	})
	if err != nil {
		return "", err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return "", err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	chain := append(block("CERTIFICATE", der), block("CERTIFICATE", p.server.cert.Raw)...)
	keyPEM := block("PRIVATE KEY", secret)
	for ext, content := range map[string][]byte{".pem": chain, ".key": keyPEM, ".all": append(bytes.Clone(chain), keyPEM...)} {
		if err := replace(filepath.Join(dir, name+ext), content); err != nil {
			return "", err
		}
	}
	return leaf.SerialNumber.String(), nil
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// replace writes a file as deployments do: another one, renamed over it.
func replace(name string, content []byte) error {
	if err := os.WriteFile(name+".new", content, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

func newPKI(dir string) (*pki, error) {
	p := &pki{dir: dir}
	foreignRoot, err := authority(nil, "Bench Root")
	if err != nil {
		return nil, err
	}
	foreignClients, err := authority(&foreignRoot, "Bench Clients")
	if err != nil {
		return nil, err
	}
	if p.root, err = authority(nil, "Bench Root"); err != nil {
		return nil, err
	}
	if p.clients, err = authority(&p.root, "Bench Clients"); err != nil {
		return nil, err
	}
	if p.server, err = authority(&p.root, "Bench Servers"); err != nil {
		return nil, err
	}
	if p.good, err = client(&p.clients, "good client"); err != nil {
		return nil, err
	}
	if p.foreign, err = client(&foreignClients, "good client"); err != nil {
		return nil, err
	}
	if err := replace(filepath.Join(dir, "ca.pem"), block("CERTIFICATE", p.root.cert.Raw)); err != nil {
		return nil, err
	}
	// The good client once more as files, for openssl s_client.
	secret, err := x509.MarshalPKCS8PrivateKey(p.good.PrivateKey)
	if err != nil {
		return nil, err
	}
	for name, content := range map[string][]byte{"good.pem": block("CERTIFICATE", p.good.Leaf.Raw), "good.key": block("PRIVATE KEY", secret),
		"clients.pem": block("CERTIFICATE", p.clients.cert.Raw)} {
		if err := replace(filepath.Join(dir, name), content); err != nil {
			return nil, err
		}
	}
	ec, err := newKey()
	if err != nil {
		return nil, err
	}
	if _, err := p.writeServer(dir, "ecdsa", ec, host); err != nil {
		return nil, err
	}
	if _, err := p.writeServer(dir, "routes", ec, "*.routes.test"); err != nil {
		return nil, err
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	_, err = p.writeServer(dir, "rsa", rs, host)
	return p, err
}

// each runs f for 0 to n-1 on all cores.
func each(n int, f func(int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, runtime.NumCPU())
	for w := range errs {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && errs[w] == nil; i = int(next.Add(1)) - 1 {
				errs[w] = f(i)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// crowd makes n client certificates, each with its own key.
func (p *pki) crowd(n int) ([]*tls.Certificate, error) {
	all := make([]*tls.Certificate, n)
	return all, each(n, func(i int) (err error) {
		all[i], err = client(&p.clients, fmt.Sprintf("client %d", i))
		return err
	})
}

// many writes the certificates of n hosts, one key for each, to its own folder, and the .all files alone to another
// one: HAProxy reads a whole folder.
func (p *pki) many(n int) error {
	for _, sub := range []string{"many", "many-all"} {
		if err := os.MkdirAll(filepath.Join(p.dir, sub), 0o700); err != nil {
			return err
		}
	}
	return each(n, func(i int) error {
		_, err := p.manyHost(i)
		return err
	})
}

// recall reads what many wrote: a machine may have given the pages to others since (a virtual one to its host), and whoever
// starts next would pay for the disk. It returns the number of files.
func (p *pki) recall() (n int, err error) {
	for _, sub := range []string{"many", "many-all"} {
		err := filepath.WalkDir(filepath.Join(p.dir, sub), func(file string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			n++
			_, err = os.ReadFile(file)
			return err
		})
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func manyName(i int) string { return fmt.Sprintf("h%05d.many.test", i) }

// manyHost writes the certificate of one of them, each time a new one, and returns its serial number.
func (p *pki) manyHost(i int) (string, error) {
	key, err := newKey()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(p.dir, "many")
	number, err := p.writeServer(dir, manyName(i), key, manyName(i))
	if err != nil {
		return "", err
	}
	return number, os.Rename(filepath.Join(dir, manyName(i)+".all"), filepath.Join(p.dir, "many-all", manyName(i)+".pem"))
}

// revocationLists writes crl.pem: the list of the clients' CA with n entries, none of them in use here, and an empty one
// of the root, which OpenSSL wants as well.
func (p *pki) revocationLists(n int) error {
	entries := make([]x509.RevocationListEntry, n)
	when := time.Now().Add(-time.Hour)
	raw := make([]byte, 16*n)
	if _, err := rand.Read(raw); err != nil {
		return err
	}
	for i := range entries {
		b := raw[16*i : 16*i+16]
		b[0] = b[0]&0x7f | 0x40
		entries[i] = x509.RevocationListEntry{SerialNumber: new(big.Int).SetBytes(b), RevocationTime: when}
	}
	var out []byte
	for _, l := range []struct {
		from    *issuer
		entries []x509.RevocationListEntry
	}{{&p.clients, entries}, {&p.root, nil}} {
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: when,
			NextUpdate: time.Now().Add(7 * 24 * time.Hour), RevokedCertificateEntries: l.entries}, l.from.cert, l.from.key)
		if err != nil {
			return err
		}
		out = append(out, block("X509 CRL", der)...)
	}
	return replace(filepath.Join(p.dir, "crl.pem"), out)
}
