package probe

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"countersign/internal/certs"
	"countersign/internal/reason"
	"countersign/internal/trust"
)

const (
	maxChains       = 4
	maxCertificates = 16 // of a chain that are looked at
	maxNames        = 50 // of a certificate that are told
)

// shown is a chain as it came, and its staple.
type shown struct {
	version uint16
	ders    [][]byte
	staple  []byte
}

// chains collects what was shown in clear: in TLS 1.2 and older, once for each kind of key that the suites tell of.
func (p *prober) chains() {
	for i := range p.report.Versions {
		v := &p.report.Versions[i]
		if !v.Accepted || v.id == tls.VersionTLS13 {
			continue
		}
		p.addChain(shown{v.id, v.ok.certs, v.ok.staple})
		for _, kind := range []string{"_ECDSA_", "RSA_"} {
			h := alone(v.id)
			h.suites = nil
			for _, s := range v.Suites {
				if strings.Contains(s.Name, "_ECDSA_") == (kind == "_ECDSA_") && strings.Contains(s.Name, kind) {
					h.suites = append(h.suites, s.id)
				}
			}
			if len(h.suites) > 0 && len(h.suites) < len(v.Suites) {
				if f, _ := p.ask(h, true); f != nil {
					p.addChain(shown{v.id, f.certs, f.staple})
				}
			}
		}
		return // older versions have nothing else to show
	}
}

// addChain keeps a chain whose certificates were not there yet; a staple counts wherever it was seen.
func (p *prober) addChain(s shown) {
	if len(s.ders) == 0 {
		return
	}
	for i := range p.shown {
		if slices.EqualFunc(p.shown[i].ders, s.ders, bytes.Equal) {
			if p.shown[i].staple == nil {
				p.shown[i].staple = s.staple
			}
			return
		}
	}
	if len(p.shown) < maxChains {
		p.shown = append(p.shown, s)
	}
}

// judgeChains says of each chain what it is and what is wrong with it.
func (p *prober) judgeChains() {
	var store *trust.Store
	if p.o.Roots != nil {
		var err error
		// A server's certificate from anywhere is judged here: no purpose named is a finding of its own, and said mildly.
		if store, err = trust.NewStore("roots", p.o.Roots, nil, nil, trust.Options{MaxPresented: 10, EKU: trust.EKUAllowAbsent}); err != nil {
			p.note(severityError, "roots", "check the file given with --ca", "%s", text(err))
		}
	}
	for _, s := range p.shown {
		p.report.Chains = append(p.report.Chains, p.judge(s, store, time.Now()))
	}
}

func (p *prober) judge(s shown, store *trust.Store, now time.Time) Chain {
	c := Chain{Version: versionName(s.version), Problems: []Finding{}, Certificates: []Certificate{}}
	add := func(severity, code, next, format string, args ...any) {
		c.Problems = append(c.Problems, Finding{severity, code, fmt.Sprintf(format, args...), next})
	}
	if len(s.ders) > maxCertificates {
		add(severityError, "too_many", "send the leaf and its intermediates, nothing else", "%d certificates are sent", len(s.ders))
		s.ders = s.ders[:maxCertificates]
	}
	var list []*x509.Certificate
	size := 0
	for i, der := range s.ders {
		size += len(der)
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			add(severityError, "unparsable", "issue it again; openssl x509 -inform der -text shows as much of it as can be read", "certificate %d cannot be read: %s", i+1, text(err))
			break // what comes behind cannot be put in relation
		}
		list = append(list, cert)
		c.Certificates = append(c.Certificates, describe(cert))
	}
	if len(list) == 0 {
		return c
	}
	leaf := list[0]
	c.Key = keyName(leaf.PublicKey)
	order(list, add)
	weak(list, add)
	p.leafProblems(leaf, now, add)
	for i, cert := range list[1:] {
		switch {
		case now.After(cert.NotAfter):
			add(severityError, "issuer_expired", "send its successor, or leave it out if another way leads to the root", "certificate %d, %s, expired at %s", i+2, subject(cert), stamp(cert.NotAfter))
		case now.Before(cert.NotBefore):
			add(severityError, "issuer_not_yet_valid", "check the clocks; else use a chain that is in force", "certificate %d, %s, is not valid before %s", i+2, subject(cert), stamp(cert.NotBefore))
		}
	}
	if size > 16<<10 {
		add(severityNote, "large", "leave out what clients do not need; every handshake carries it", "%d bytes of certificates", size)
	}
	if store != nil {
		p.verdict(&c, list, store, now, add)
	}
	c.Staple = stapled(s.staple, list, p.o.Roots, now)
	switch must := certs.MustStaple(&tls.Certificate{Leaf: leaf}); {
	case must && !c.Staple.Present:
		add(severityError, "must_staple", "switch OCSP stapling on, and let the server reach its CA's responder", "the certificate says that an OCSP response comes with it (must-staple), and none came")
	case c.Staple.Present && c.Staple.Problem != "":
		add(severityWarning, "staple_unusable", "look why the server does not renew its OCSP response; clients that check it refuse", "the stapled OCSP response cannot be used: %s", c.Staple.Problem)
	case c.Staple.Status == "revoked":
		add(severityError, "revoked", "get a new certificate", "the CA's responder says that the certificate is revoked")
	}
	return c
}

type adder func(severity, code, next, format string, args ...any)

// order compares the order of a chain with what RFC 5246 section 7.4.2 wants.
func order(list []*x509.Certificate, add adder) {
	for i, c := range list {
		if j := slices.IndexFunc(list[:i], c.Equal); j >= 0 {
			add(severityWarning, "duplicate", "send each certificate once", "certificate %d is the same as certificate %d", i+1, j+1)
		}
	}
	place := func(c *x509.Certificate) int {
		return slices.IndexFunc(list, func(ca *x509.Certificate) bool { return ca != c && bytes.Equal(ca.RawSubject, c.RawIssuer) })
	}
	for i, c := range list {
		root := bytes.Equal(c.RawSubject, c.RawIssuer)
		switch {
		case root && i > 0:
			add(severityNote, "root_sent", "leave it out: clients have their own copy or do not trust it", "certificate %d, %s, is a root", i+1, subject(c))
		case !root && i+1 < len(list) && !bytes.Equal(list[i+1].RawSubject, c.RawIssuer):
			if at := place(c); at >= 0 {
				add(severityWarning, "order", "write the leaf first, then each the issuer of the one before; many clients refuse any other order",
					"certificate %d, %s, is followed by %s and not by its issuer, which is number %d", i+1, subject(c), subject(list[i+1]), at+1)
			} else {
				add(severityWarning, "gap", "put the issuer behind it, and leave out what does not belong to the chain",
					"certificate %d, %s, was issued by %s, which is not sent; %s follows in its place", i+1, subject(c), issuer(c), subject(list[i+1]))
			}
			return // one fault in the order makes many
		}
	}
}

// leafProblems are those of the server's own certificate, whoever issued it.
func (p *prober) leafProblems(leaf *x509.Certificate, now time.Time, add adder) {
	switch left := leaf.NotAfter.Sub(now); {
	case now.Before(leaf.NotBefore):
		add(severityError, "not_yet_valid", "check the clocks of the server's CA and of this machine", "the certificate is not valid before %s", stamp(leaf.NotBefore))
	case left < 0:
		add(severityError, "expired", "renew it", "the certificate expired at %s", stamp(leaf.NotAfter))
	case left < certs.ExpiresSoon && leaf.NotAfter.Sub(leaf.NotBefore) > 2*certs.ExpiresSoon:
		add(severityWarning, "expires_soon", "renew it", "the certificate expires in %d days, at %s", int(left.Hours()/24), stamp(leaf.NotAfter))
	}
	if leaf.VerifyHostname(p.verify) != nil { // its error holds every name of the certificate
		names := append(slices.Clone(leaf.DNSNames), ips(leaf)...)
		found := "it has no names (subjectAltName)"
		if len(names) > 0 {
			found = "it is for " + quote(strings.Join(names[:min(len(names), 5)], " "))
			if len(names) > 5 {
				found += fmt.Sprintf(" and %d more", len(names)-5)
			}
		}
		next := "ask for one of its names (--sni), or get a certificate with this one"
		if p.sni == "" {
			next = "ask for a name that it has (--sni), or get a certificate with this address"
		}
		add(severityError, "name", next, "the certificate is not for %s: %s", quote(p.verify), found)
	}
	if leaf.IsCA {
		add(severityWarning, "ca_as_leaf", "issue a certificate for the server and keep the CA's key away from it", "the server shows a CA certificate as its own")
	}
	if len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) == 0 {
		add(severityNote, "no_purpose", "issue it with extendedKeyUsage serverAuth", "the certificate names no purpose (extendedKeyUsage)")
	} else if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
		add(severityError, "purpose", "issue it with extendedKeyUsage serverAuth", "the certificate is not for servers: its extendedKeyUsage lacks serverAuth")
	}
}

func ips(c *x509.Certificate) (out []string) {
	for _, ip := range c.IPAddresses {
		out = append(out, ip.String())
	}
	return out
}

// verdict asks the verifier whether a client with Roots believes the chain.
func (p *prober) verdict(c *Chain, list []*x509.Certificate, store *trust.Store, now time.Time, add adder) {
	v := store.VerifyServer(list[:min(len(list), 10)], p.verify, now)
	trusted := v.Accepted
	c.Trusted, c.Roots = &trusted, p.o.RootsName
	if v.Accepted {
		c.Anchor = printed(v.Chain[len(v.Chain)-1].Subject)
		return
	}
	c.Reason, c.Expected, c.Found = v.Rule.String(), v.Expected, v.Found
	if v.Rule == reason.UpstreamCertRefused { // the name, which says nothing about the rest
		if name := anyName(list[0]); name != "" {
			v = store.VerifyServer(list[:min(len(list), 10)], name, now)
		}
	}
	switch v.Rule {
	case reason.ClientCertUntrusted:
	case reason.Unset, reason.UpstreamCertRefused, reason.ClientCertExpired, reason.ClientCertNotYetValid, reason.ClientCertIssuerExpired,
		reason.ClientCertWeakSignature, reason.ClientCertWeakKey, reason.ClientCertEKU:
		return // told before
	default:
		add(severityError, "refused", "issue a certificate that keeps to this rule (docs/reasons.md, "+v.Rule.String()+")", "clients with the strictness of this program refuse the chain: expected %s, found %s",
			v.Expected, v.Found)
		return
	}
	// That a chain ends before a root has two causes, which look alike.
	last := list[0]
	if len(v.Chain) > 0 {
		last = v.Chain[len(v.Chain)-1]
	}
	if bytes.Equal(last.RawSubject, last.RawIssuer) {
		add(severityError, "untrusted_root", "if it is your own CA, give it with --ca", "the chain ends at %s, which is not among the CAs of %s", subject(last), p.o.RootsName)
		return
	}
	next := "if the issuer is your own root, give it with --ca; if it is an intermediate, the server has to send it: append it to the server's certificate file"
	if urls := last.IssuingCertificateURL; len(urls) > 0 {
		next += "; its CA publishes it at " + quote(urls[0])
	}
	add(severityError, "missing_issuer", next, "the issuer %s of %s was not sent, and is not among the CAs of %s", issuer(last), subject(last), p.o.RootsName)
}

// anyName is a name that the certificate is for.
func anyName(c *x509.Certificate) string {
	switch {
	case len(c.DNSNames) > 0:
		return strings.Replace(c.DNSNames[0], "*.", "any.", 1)
	case len(c.IPAddresses) > 0:
		return c.IPAddresses[0].String()
	}
	return ""
}

// weak are keys and signatures that nobody should rely on any more. The signature of a root proves nothing.
func weak(list []*x509.Certificate, add adder) {
	for i, c := range list {
		if k, ok := c.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() < 2048 {
			add(severityError, "weak_key", "use RSA of at least 2048 bits, or ECDSA", "certificate %d, %s, has a key of RSA %d", i+1, subject(c), k.N.BitLen())
		}
		switch c.SignatureAlgorithm {
		case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
			if !bytes.Equal(c.RawSubject, c.RawIssuer) {
				add(severityError, "weak_signature", "issue it again, signed with SHA-256 or better", "certificate %d, %s, is signed with %v", i+1, subject(c), c.SignatureAlgorithm)
			}
		}
	}
}

// stapled reads an OCSP response that came with a chain. It is believed as a responder's answer would be.
func stapled(der []byte, list, roots []*x509.Certificate, now time.Time) (s Staple) {
	if len(der) == 0 {
		return s
	}
	s.Present = true
	var signer *x509.Certificate
	for _, ca := range slices.Concat(list[1:], roots) {
		if bytes.Equal(ca.RawSubject, list[0].RawIssuer) && list[0].CheckSignatureFrom(ca) == nil {
			signer = ca
			break
		}
	}
	if signer == nil {
		s.Problem = "the issuer of the certificate is not known here, so its signature cannot be checked"
		return s
	}
	a, err := (&trust.Query{Cert: list[0], Issuer: signer}).Check(der, nil, now)
	if err != nil {
		s.Problem = text(err)
		return s
	}
	s.Status, s.ThisUpdate = a.Status.String(), &a.ThisUpdate
	if !a.NextUpdate.IsZero() {
		s.NextUpdate = &a.NextUpdate
	}
	return s
}

func describe(c *x509.Certificate) Certificate {
	sum := sha256.Sum256(c.Raw)
	out := Certificate{
		Subject: printed(c.Subject), Issuer: printed(c.Issuer), Serial: escape(c.SerialNumber.Text(16), maxQuoted),
		NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(), Key: keyName(c.PublicKey), Signature: c.SignatureAlgorithm.String(),
		SHA256: hex.EncodeToString(sum[:]), CA: c.IsCA,
	}
	for _, u := range c.URIs {
		out.Names = append(out.Names, "uri:"+escape(u.String(), maxQuoted))
	}
	for _, n := range c.EmailAddresses {
		out.Names = append(out.Names, "email:"+escape(n, maxQuoted))
	}
	names := ips(c)
	for _, n := range c.DNSNames {
		names = append(names, escape(n, maxQuoted))
	}
	out.Names = append(names, out.Names...)
	if len(out.Names) > maxNames {
		out.Names = out.Names[:maxNames]
	}
	return out
}

func curveName(key any) string {
	if k, ok := key.(*ecdsa.PublicKey); ok {
		return k.Curve.Params().Name
	}
	return ""
}

// keyName is the kind and size of a key.
func keyName(key any) string {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA " + curveName(k)
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return "another kind"
}

// subject names a certificate for people: by its subject, or by its serial number when it has none.
func subject(c *x509.Certificate) string {
	if s := printed(c.Subject); s != "" {
		return `"` + s + `"`
	}
	return "serial " + escape(c.SerialNumber.Text(16), maxQuoted)
}

func issuer(c *x509.Certificate) string { return `"` + printed(c.Issuer) + `"` }

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// systemBundles are where Linux distributions and the BSDs keep the CAs that the machine trusts.
var systemBundles = []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem", "/usr/local/share/certs/ca-root-nss.crt"}

// SystemRoots are the CAs of this machine, as package trust can use them, and the file they are from.
func SystemRoots() (roots []*x509.Certificate, file string, err error) {
	places := systemBundles
	if file := os.Getenv("SSL_CERT_FILE"); file != "" {
		places = []string{file}
	}
	for _, file := range places {
		data, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			roots, _, err = trust.LoadSystem(data)
		}
		return roots, file, err
	}
	return nil, "", fmt.Errorf("this machine has no CA bundle in any of %s; install the package ca-certificates, or give one with --ca", strings.Join(places, ", "))
}
