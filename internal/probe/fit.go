package probe

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"countersign/internal/trust"
)

const (
	maxCandidates    = 500
	maxCandidateSize = 1 << 20
)

// Candidate is a file with a certificate that a client could send, and its issuers.
type Candidate struct {
	File  string
	Chain []*x509.Certificate
	Err   error // why the file could not be used
}

// LoadCandidates reads the certificates of a folder: files named .pem, .crt, .cer or .cert, not those of folders below.
// Files that hold a key alone are left out.
func LoadCandidates(dir string) ([]Candidate, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("certificates to compare: %w", err)
	}
	var list []Candidate
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || !slices.Contains([]string{".pem", ".crt", ".cer", ".cert"}, strings.ToLower(filepath.Ext(name))) {
			continue
		}
		if len(list) == maxCandidates {
			return nil, fmt.Errorf("certificates to compare: expected at most %d files in %s, found more", maxCandidates, quote(dir))
		}
		c := Candidate{File: filepath.Join(dir, name)}
		data, err := readFile(c.File)
		switch {
		case err != nil:
			c.Err = err
		case bytes.Contains(data, []byte("PRIVATE KEY-----")) && !bytes.Contains(data, []byte("BEGIN CERTIFICATE-----")):
			continue
		default:
			c.Chain, c.Err = certificatesIn(data)
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("certificates to compare: expected files named .pem, .crt, .cer or .cert in %s, found none", quote(dir))
	}
	return list, nil
}

// certificatesIn reads a file that may hold the key too, as many tools want it.
func certificatesIn(data []byte) ([]*x509.Certificate, error) {
	if _, rest, ok := bytes.Cut(data, []byte("PRIVATE KEY-----")); ok && bytes.Contains(rest, []byte("PRIVATE KEY-----")) {
		data = withoutKeys(data)
	}
	return trust.LoadCertificates(data)
}

// withoutKeys keeps the blocks of certificates.
func withoutKeys(data []byte) []byte {
	var out []byte
	key := false
	for line := range bytes.Lines(data) {
		if bytes.Contains(line, []byte("-----BEGIN ")) {
			key = !bytes.Contains(line, []byte("CERTIFICATE-----"))
		}
		if !key {
			out = append(out, line...)
		}
		if bytes.Contains(line, []byte("-----END ")) {
			key = false
		}
	}
	return out
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.New("expected a file, found something else")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxCandidateSize+1))
	if err == nil && len(data) > maxCandidateSize {
		err = fmt.Errorf("expected at most %d bytes, found more", maxCandidateSize)
	}
	return data, err
}

// fits compares the candidates with what the newest version asks for that asks for a certificate.
func (p *prober) fits() {
	if len(p.o.Candidates) == 0 {
		return
	}
	i := slices.IndexFunc(p.report.ClientAuth, func(a ClientAuth) bool { return a.Requested })
	if i < 0 {
		p.note(severityNote, "nothing_to_fit", "", "no certificate is asked for in the handshake, so there is nothing to compare the files with")
		return
	}
	asked := p.report.ClientAuth[i]
	for _, c := range p.o.Candidates {
		p.report.Candidates = append(p.report.Candidates, fit(c, p.o.Candidates, &asked, time.Now()))
	}
	slices.SortStableFunc(p.report.Candidates, func(a, b Fit) int {
		switch {
		case a.Fits == b.Fits:
			return 0
		case a.Fits:
			return -1
		}
		return 1
	})
}

// fit compares one certificate with what is asked for. The server's verifier may want more.
func fit(c Candidate, all []Candidate, asked *ClientAuth, now time.Time) Fit {
	out := Fit{File: escape(c.File, maxText), Checks: []Check{}}
	add := func(name string, ok bool, expected, found, next string) {
		if ok {
			next = ""
		}
		out.Checks = append(out.Checks, Check{name, ok, expected, found, next})
	}
	if c.Err != nil || len(c.Chain) == 0 {
		found := "none"
		if c.Err != nil {
			found = text(c.Err)
		}
		add("file", false, "certificates", found, "openssl x509 -in FILE -noout -subject reads it when it is whole")
		return out
	}
	leaf := c.Chain[0]
	out.Subject, out.Issuer = printed(leaf.Subject), printed(leaf.Issuer)
	if leaf.IsCA {
		add("kind", false, "a certificate of a client", "a CA certificate", "put the client's own certificate first in the file; a CA certificate is no client")
	}
	switch {
	case now.After(leaf.NotAfter):
		add("dates", false, "validity at "+stamp(now), "until "+stamp(leaf.NotAfter), "renew it")
	case now.Before(leaf.NotBefore):
		add("dates", false, "validity at "+stamp(now), "from "+stamp(leaf.NotBefore), "wait, or check the clocks")
	default:
		add("dates", true, "validity at "+stamp(now), "until "+stamp(leaf.NotAfter), "")
	}
	const purpose = "extendedKeyUsage clientAuth"
	switch {
	case slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		add("purpose", true, purpose, "clientAuth", "")
	case slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny), len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) == 0:
		add("purpose", true, purpose, "no purpose named, which many servers accept and strict ones refuse", "")
	default:
		add("purpose", false, purpose, "other purposes", "let the CA issue one with clientAuth")
	}
	info := &tls.CertificateRequestInfo{Version: asked.id, SignatureSchemes: asked.schemes}
	wanted := strings.Join(asked.Signatures, ", ")
	if wanted == "" {
		wanted = "any (none are named)"
	}
	ok := len(asked.schemes) == 0 || info.SupportsCertificate(&tls.Certificate{Certificate: [][]byte{leaf.Raw}, Leaf: leaf, PrivateKey: publicOnly{leaf.PublicKey}}) == nil
	add("key", ok, "a key that can sign with "+escape(wanted, maxText), keyName(leaf.PublicKey), "use a certificate with another kind of key")
	issuerCheck(&c, all, asked, add)
	out.Fits = !slices.ContainsFunc(out.Checks, func(c Check) bool { return !c.OK })
	return out
}

// issuerCheck looks for the issuers of a chain among the names that the server gave (RFC 8446 section 4.3.2).
func issuerCheck(c *Candidate, all []Candidate, asked *ClientAuth, add func(name string, ok bool, expected, found, next string)) {
	leaf := c.Chain[0]
	named := func(der []byte) bool {
		return slices.ContainsFunc(asked.names, func(name []byte) bool { return bytes.Equal(name, der) })
	}
	if len(asked.names) == 0 {
		add("issuer", true, "any CA, since the server names none", issuer(leaf), "")
		return
	}
	expected := fmt.Sprintf("a chain to one of the %d CAs that the server names", len(asked.names))
	for _, cert := range c.Chain {
		if named(cert.RawIssuer) {
			add("issuer", true, expected, issuer(cert), "")
			return
		}
	}
	// An intermediate that is in another file may be all that is missing.
	last := c.Chain[len(c.Chain)-1]
	var missing *x509.Certificate
	file := ""
	for _, other := range all {
		for i, ca := range other.Chain {
			if ca.IsCA && bytes.Equal(ca.RawSubject, last.RawIssuer) && named(ca.RawIssuer) && (missing == nil || i == 0) && last.CheckSignatureFrom(ca) == nil {
				missing, file = ca, other.File
			}
		}
	}
	if missing != nil {
		add("issuer", false, expected, "issued by "+issuer(last)+", which is not sent along and leads to "+issuer(missing),
			"append the intermediate in "+escape(file, maxText)+" to the file")
		return
	}
	add("issuer", false, expected, "issued by "+issuer(last),
		"use a certificate of a CA that is named, or let the server trust and name this one; if an intermediate is missing, append it")
}

// publicOnly stands in for a private key where only its kind matters.
type publicOnly struct{ key crypto.PublicKey }

// Public is of crypto.Signer.
func (p publicOnly) Public() crypto.PublicKey { return p.key }

// Sign is of crypto.Signer, and never works.
func (publicOnly) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("no private key")
}
