package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign/internal/identity"
	"countersign/internal/reason"
)

var oidKeyUsage = asn1.ObjectIdentifier{2, 5, 29, 15}

// fault is one broken rule. The certificate it is about and its depth are known where it is put into a verdict.
type fault struct {
	rule            reason.Reason
	expected, found string
	cause           error
}

// member are the rules for the leaf and every intermediate, none of which needs a signature to be checked. They come
// first, so that a key made to keep us busy is never used (threats B21).
func member(c *x509.Certificate) *fault {
	switch {
	case c.Version != 3:
		// Versions 1 and 2 have no basicConstraints, so anyone could issue with them (RFC 5280 section 6.1.4 (k)).
		return &fault{rule: reason.ClientCertVersion, expected: "version 3", found: fmt.Sprintf("version %d of %s", c.Version, subject(c))}
	case c.SerialNumber.Sign() <= 0 || c.SerialNumber.BitLen()/8+1 > 20:
		// RFC 5280 section 4.1.2.2.
		return &fault{rule: reason.ClientCertSerial, expected: "a positive serial number of at most 20 octets",
			found: fmt.Sprintf("%s of %d octets in %s", serial(c), c.SerialNumber.BitLen()/8+1, subject(c))}
	case len(c.UnhandledCriticalExtensions) > 0:
		// RFC 5280 section 4.2.
		return &fault{rule: reason.ClientCertInvalid, expected: "critical extensions that are understood",
			found: fmt.Sprintf("critical extension %s in %s", escape(c.UnhandledCriticalExtensions[0].String(), maxQuoted), subject(c))}
	}
	if found := weakKey(c.PublicKey); found != "" {
		return &fault{rule: reason.ClientCertWeakKey, expected: strongKeys, found: found + " in " + subject(c)}
	}
	switch c.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		return &fault{rule: reason.ClientCertWeakSignature, expected: "a signature with SHA-256 or better",
			found: fmt.Sprintf("%v on %s", c.SignatureAlgorithm, subject(c))}
	case x509.UnknownSignatureAlgorithm, x509.DSAWithSHA256:
		return &fault{rule: reason.ClientCertInvalid, expected: "a signature by RSA, ECDSA or Ed25519",
			found: "a signature algorithm that is not supported on " + subject(c)}
	}
	return nil
}

const strongKeys = "ECDSA P-256, P-384 or P-521, Ed25519, or RSA of 2048 to 8192 bits"

// weakKey describes a key that is not accepted; empty for one that is.
func weakKey(key any) string {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < 2048 || bits > 8192 {
			return fmt.Sprintf("RSA of %d bits", bits)
		}
		if k.E < 3 || k.E%2 == 0 {
			return fmt.Sprintf("RSA with exponent %d", k.E)
		}
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() && k.Curve != elliptic.P521() {
			return "ECDSA " + k.Curve.Params().Name
		}
	case ed25519.PublicKey:
	default:
		return "a key of another kind"
	}
	return ""
}

// issues is the rule for everything that signs certificates (RFC 5280 sections 4.2.1.3 and 4.2.1.9).
func issues(c *x509.Certificate) error {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return fmt.Errorf("%s: expected a CA certificate (basicConstraints CA:TRUE), found an end-entity certificate", subject(c))
	case hasKeyUsage(c) && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("%s: expected keyUsage keyCertSign, found a CA that may not sign certificates", subject(c))
	}
	return nil
}

// checkAnchor is what a certificate must be to stand in a trust store. Its own signature proves nothing and is not
// looked at; its key signs all else and is.
func checkAnchor(c *x509.Certificate) error {
	switch {
	case c == nil || len(c.Raw) == 0:
		return fmt.Errorf("not a parsed certificate")
	case c.Version != 3:
		return fmt.Errorf("%s: expected X.509 version 3, found version %d; re-issue it", subject(c), c.Version)
	case len(c.UnhandledCriticalExtensions) > 0:
		return fmt.Errorf("%s: critical extension %s is not understood, so no chain could use it", subject(c), escape(c.UnhandledCriticalExtensions[0].String(), maxQuoted))
	}
	if err := issues(c); err != nil {
		return err
	}
	if found := weakKey(c.PublicKey); found != "" {
		return fmt.Errorf("%s: expected %s, found %s", subject(c), strongKeys, found)
	}
	return nil
}

func hasKeyUsage(c *x509.Certificate) bool {
	for i := range c.Extensions {
		if c.Extensions[i].Id.Equal(oidKeyUsage) {
			return true
		}
	}
	return false
}

// leaf are the rules for the certificate a peer identifies itself with, besides those of member.
func (s *Store) leaf(c *x509.Certificate, use x509.ExtKeyUsage, now time.Time) (purpose, *fault) {
	for _, rule := range []func(*x509.Certificate) *fault{s.notAnchor, member, endEntity} {
		if f := rule(c); f != nil {
			return purpose{}, f
		}
	}
	p, f := s.purpose(c, use, now)
	if f == nil {
		f = names(c)
	}
	if f == nil && s.opts.TrustDomain != "" && use == x509.ExtKeyUsageClientAuth {
		f = svid(c, s.opts.TrustDomain)
	}
	return p, f
}

// notAnchor refuses the anchors themselves.
func (s *Store) notAnchor(c *x509.Certificate) *fault {
	for _, a := range s.bySubject[string(c.RawSubject)] {
		// The key counts, not only the bytes: a renewed anchor is still an anchor (threats B03, B05).
		if bytes.Equal(c.RawSubjectPublicKeyInfo, a.RawSubjectPublicKeyInfo) {
			return &fault{rule: reason.ClientCertIsAnchor, expected: "a certificate issued by a CA of the trust store", found: "the CA itself, " + subject(c)}
		}
	}
	return nil
}

// endEntity is what tells a client from a CA (RFC 5280 sections 4.2.1.3 and 4.2.1.9).
func endEntity(c *x509.Certificate) *fault {
	switch {
	case c.IsCA:
		return &fault{rule: reason.ClientCertIsCA, expected: "basicConstraints CA:FALSE", found: "CA:TRUE in " + subject(c)}
	case hasKeyUsage(c) && c.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return &fault{rule: reason.ClientCertKeyUsage, expected: "keyUsage digitalSignature", found: "a keyUsage without it in " + subject(c)}
	}
	return nil
}

// svid wants an X.509-SVID of a trust domain. A certificate with more than one URI name is none (threats B11).
func svid(c *x509.Certificate, domain string) *fault {
	expected := "one URI name, a SPIFFE ID of trust domain " + quote(domain)
	switch id, err := identity.SPIFFE(c); {
	case err != nil:
		return &fault{rule: reason.ClientCertSPIFFE, expected: expected, found: bounded(err).Error() + " in " + subject(c)}
	case id == "":
		return &fault{rule: reason.ClientCertSPIFFE, expected: expected, found: "no SPIFFE ID in " + subject(c)}
	case !strings.HasPrefix(id, "spiffe://"+domain+"/"):
		return &fault{rule: reason.ClientCertSPIFFE, expected: expected, found: quote(id)}
	}
	return nil
}

var useNames = map[x509.ExtKeyUsage]string{
	x509.ExtKeyUsageAny: "anyExtendedKeyUsage", x509.ExtKeyUsageServerAuth: "serverAuth", x509.ExtKeyUsageClientAuth: "clientAuth",
	x509.ExtKeyUsageCodeSigning: "codeSigning", x509.ExtKeyUsageEmailProtection: "emailProtection",
	x509.ExtKeyUsageTimeStamping: "timeStamping", x509.ExtKeyUsageOCSPSigning: "OCSPSigning",
}

func purposes(c *x509.Certificate) string {
	var known []string
	for _, u := range c.ExtKeyUsage {
		if n, ok := useNames[u]; ok && len(known) < 8 {
			known = append(known, n)
		}
	}
	for _, oid := range c.UnknownExtKeyUsage {
		if len(known) < 8 {
			known = append(known, escape(oid.String(), maxQuoted))
		}
	}
	if len(known) == 0 {
		return "purposes unknown here"
	}
	return escape(strings.Join(known, ", "), maxText)
}

// purpose is what a leaf was accepted for, and what its issuers have to allow. use is what crypto/x509 is asked for; oids,
// if there are any, are purposes that it does not know, of which every issuer has to allow the same one.
type purpose struct {
	use     x509.ExtKeyUsage
	oids    []asn1.ObjectIdentifier
	lenient Leniency
}

func (p purpose) String() string {
	if len(p.oids) == 0 {
		return useNames[p.use]
	}
	var all []string
	for _, oid := range p.oids {
		all = append(all, oid.String())
	}
	return escape(strings.Join(all, " or "), maxQuoted)
}

// allowed reports whether all issuers of a chain may issue for the purpose.
func (p purpose) allowed(chain []*x509.Certificate) bool {
	if len(p.oids) == 0 {
		return !slices.ContainsFunc(chain[1:], func(c *x509.Certificate) bool { return !p.allowedBy(c) })
	}
	return slices.ContainsFunc(p.oids, func(oid asn1.ObjectIdentifier) bool {
		one := purpose{use: p.use, oids: []asn1.ObjectIdentifier{oid}}
		return !slices.ContainsFunc(chain[1:], func(c *x509.Certificate) bool { return !one.allowedBy(c) })
	})
}

// allowedBy reports whether the issuer c may issue for the purpose: it names it, or any, or none at all.
func (p purpose) allowedBy(c *x509.Certificate) bool {
	switch {
	case len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0, slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny):
		return true
	case len(p.oids) > 0:
		return slices.ContainsFunc(p.oids, func(oid asn1.ObjectIdentifier) bool { return hasPurpose(c, oid) })
	}
	return slices.Contains(c.ExtKeyUsage, p.use)
}

// purpose judges the leaf's own extendedKeyUsage; its issuers are judged when there is a chain.
func (s *Store) purpose(c *x509.Certificate, use x509.ExtKeyUsage, now time.Time) (purpose, *fault) {
	mode, client := s.opts.EKU, use == x509.ExtKeyUsageClientAuth
	absent := len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0
	expected := "extendedKeyUsage " + useNames[use]
	switch {
	case mode == EKUCustom && client:
		var wanted []string
		p := purpose{use: x509.ExtKeyUsageAny}
		for _, oid := range s.opts.EKUOIDs {
			if hasPurpose(c, oid) {
				p.oids = append(p.oids, oid)
			}
			wanted = append(wanted, oid.String())
		}
		if p.oids != nil {
			return p, nil
		}
		expected = "extendedKeyUsage " + escape(strings.Join(wanted, " or "), maxQuoted)
	case slices.Contains(c.ExtKeyUsage, use):
		return purpose{use: use}, nil
	case mode == EKUAllowAbsent && absent:
		return purpose{use: use, lenient: LenientAbsent}, nil
	case mode == EKUAllowAbsent && slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny):
		return purpose{use: use, lenient: LenientAny}, nil
	case mode == EKUAllowServerAuth && client && slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth):
		if now.Before(s.opts.EKUUntil) {
			return purpose{use: x509.ExtKeyUsageServerAuth, lenient: LenientServerAuth}, nil
		}
		expected += ", without which serverAuth was accepted until " + stamp(s.opts.EKUUntil)
	}
	if absent {
		return purpose{}, &fault{rule: reason.ClientCertEKUMissing, expected: expected, found: "no extendedKeyUsage in " + subject(c)}
	}
	return purpose{}, &fault{rule: reason.ClientCertEKU, expected: expected, found: purposes(c) + " in " + subject(c)}
}

// hasPurpose reports whether c names the purpose oid. crypto/x509 keeps those it knows as numbers.
func hasPurpose(c *x509.Certificate, oid asn1.ObjectIdentifier) bool {
	if slices.ContainsFunc(c.UnknownExtKeyUsage, oid.Equal) {
		return true
	}
	return slices.ContainsFunc(c.ExtKeyUsage, func(u x509.ExtKeyUsage) bool { return u.OID().EqualASN1OID(oid) })
}

// names refuses alternative names that cannot be what they say (RFC 5280 section 4.2.1.6), because the next reader may
// cut them at a NUL or compare them with a pattern (threats B10).
func names(c *x509.Certificate) *fault {
	bad := func(kind, name string) *fault {
		return &fault{rule: reason.ClientCertSANInvalid, expected: kind, found: quote(name)}
	}
	for _, n := range c.DNSNames {
		if !dnsName(n) {
			return bad("a dNSName of letters, digits, hyphens and dots", n)
		}
	}
	for _, n := range c.EmailAddresses {
		if n == "" || strings.ContainsFunc(n, control) {
			return bad("an rfc822Name without control characters", n)
		}
	}
	for _, u := range c.URIs {
		// Path and Host are checked decoded: that is how they will be compared.
		if n := u.String(); n == "" || strings.ContainsFunc(n+u.Path+u.Host, control) {
			return bad("a URI without control characters", n)
		}
	}
	return nil
}

func control(r rune) bool { return r < ' ' || r == 0x7f }

// dnsName accepts LDH labels, the first of which may be an asterisk. An underscore is no host name (RFC 1123).
func dnsName(n string) bool {
	if len(n) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimPrefix(n, "*."), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; !('a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c == '-') {
				return false
			}
		}
	}
	return true
}
