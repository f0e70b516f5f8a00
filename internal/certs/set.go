package certs

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign/internal/hostname"
)

// Set holds the certificates of one host. It is immutable and safe for concurrent use. Make it with NewSet; the zero
// value has no certificate.
type Set struct{ offers []offer } // best first

// offer is a certificate and what a client must be able to do for it.
type offer struct {
	pair    *tls.Certificate
	kind    int                   // ecdsaKey, ed25519Key or rsaKey
	curve   tls.CurveID           // of an ECDSA key
	schemes []tls.SignatureScheme // TLS 1.3
	older   []tls.SignatureScheme // TLS 1.2, where the curve is not part of the scheme
	staple  *stapler              // nil without staples
}

// The kinds of key, best first. ECDSA signs in a fraction of the time of RSA and every client of these days takes it.
// Ed25519 is as fast, but few clients and no public CA know it.
const (
	ecdsaKey = iota
	ed25519Key
	rsaKey
)

var (
	pssSchemes   = []tls.SignatureScheme{tls.PSSWithSHA256, tls.PSSWithSHA384, tls.PSSWithSHA512}
	rsaSchemes   = append(slices.Clip(pssSchemes), tls.PKCS1WithSHA256, tls.PKCS1WithSHA384, tls.PKCS1WithSHA512)
	ecdsaSchemes = []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256, tls.ECDSAWithP384AndSHA384, tls.ECDSAWithP521AndSHA512}
)

// Wildcards are the domains below which the certificates cover every name of one more label, in lower case and once.
func (s *Set) Wildcards() (domains []string) {
	for i := range s.offers {
		for _, name := range s.offers[i].pair.Leaf.DNSNames {
			if domain, wild := strings.CutPrefix(strings.ToLower(name), "*."); wild && !slices.Contains(domains, domain) {
				domains = append(domains, domain)
			}
		}
	}
	return domains
}

// Expiry is the first moment at which a certificate of the set is over, by the kind of its key: ecdsa, ed25519 or rsa.
func (s *Set) Expiry() map[string]time.Time {
	first := make(map[string]time.Time)
	for i := range s.offers {
		kind, end := [...]string{ecdsaKey: "ecdsa", ed25519Key: "ed25519", rsaKey: "rsa"}[s.offers[i].kind], s.offers[i].pair.Leaf.NotAfter
		if before, known := first[kind]; !known || end.Before(before) {
			first[kind] = end
		}
	}
	return first
}

// NewSet makes a set of pairs from ParsePair. It refuses an empty one.
func NewSet(pairs []*tls.Certificate) (*Set, error) {
	if len(pairs) == 0 {
		return nil, errors.New("keystore is empty; expected at least one certificate")
	}
	s := &Set{offers: make([]offer, 0, len(pairs))}
	for i, pair := range pairs {
		if pair == nil || pair.Leaf == nil {
			return nil, fmt.Errorf("certificate %d of the keystore is not parsed; expected one made by ParsePair", i+1)
		}
		o := offer{pair: pair}
		switch key := pair.Leaf.PublicKey.(type) {
		case *ecdsa.PublicKey:
			o.kind, o.older = ecdsaKey, ecdsaSchemes
			switch key.Curve {
			case elliptic.P256():
				o.curve, o.schemes = tls.CurveP256, ecdsaSchemes[0:1]
			case elliptic.P384():
				o.curve, o.schemes = tls.CurveP384, ecdsaSchemes[1:2]
			default:
				o.curve, o.schemes = tls.CurveP521, ecdsaSchemes[2:3]
			}
		case ed25519.PublicKey:
			o.kind, o.schemes = ed25519Key, []tls.SignatureScheme{tls.Ed25519}
			o.older = o.schemes
		case *rsa.PublicKey:
			o.kind, o.schemes, o.older = rsaKey, pssSchemes, rsaSchemes
		default:
			return nil, fmt.Errorf("certificate %d of the keystore: %w: %T", i+1, ErrKeyUnsupported, key)
		}
		s.offers = append(s.offers, o)
	}
	slices.SortStableFunc(s.offers, func(a, b offer) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), b.pair.Leaf.NotBefore.Compare(a.pair.Leaf.NotBefore))
	})
	return s, nil
}

// For returns the certificate for a client: of those it can verify, one that is valid now before one that is not, then
// ECDSA before Ed25519 before RSA, then the newest. A client that fits none gets the first, for which crypto/tls then
// finds its own error. The result is nil for the zero Set only. It allocates nothing, but
// once for each new staple.
//
// It looks at the signature schemes and, below TLS 1.3, at suites and curves (RFC 8446 section 4.4.2.2, RFC 8422 section
// 5.1), and takes for granted that the listener speaks TLS 1.3 when the client does.
func (s *Set) For(hello *tls.ClientHelloInfo) *tls.Certificate {
	if len(s.offers) < 2 {
		if len(s.offers) == 0 {
			return nil
		}
		return s.offers[0].certificate()
	}
	now := time.Now()
	var fallback *offer
	for i := range s.offers {
		o := &s.offers[i]
		if !o.fits(hello) {
			continue
		}
		if validAt(o.pair, now) {
			return o.certificate()
		}
		if fallback == nil {
			fallback = o
		}
	}
	if fallback == nil {
		fallback = &s.offers[0]
	}
	return fallback.certificate()
}

func (o *offer) fits(hello *tls.ClientHelloInfo) bool {
	if slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
		return overlap(o.schemes, hello.SignatureSchemes)
	}
	if slices.Contains(hello.SupportedVersions, tls.VersionTLS12) {
		if !overlap(o.older, hello.SignatureSchemes) {
			return false
		}
	} else if o.kind == ed25519Key { // before TLS 1.2 there are no schemes to name it
		return false
	}
	switch o.kind {
	case ecdsaKey:
		return slices.Contains(hello.SupportedCurves, o.curve) && slices.ContainsFunc(hello.CipherSuites, isECDSASuite)
	case ed25519Key:
		return slices.ContainsFunc(hello.CipherSuites, isECDSASuite)
	}
	return true
}

func overlap(ours, theirs []tls.SignatureScheme) bool {
	for _, scheme := range ours {
		if slices.Contains(theirs, scheme) {
			return true
		}
	}
	return false
}

// isECDSASuite leaves out the CBC suites, which most TLS policies do not speak: a client that has ECDSA with them only
// is better served with RSA, if there is any.
func isECDSASuite(suite uint16) bool {
	switch suite {
	case tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256:
		return true
	}
	return false
}

func validAt(pair *tls.Certificate, now time.Time) bool {
	return !now.Before(pair.Leaf.NotBefore) && !now.After(pair.Leaf.NotAfter)
}

// ClientFor returns the certificate that the balancer presents to a backend: valid at now, with a key the backend can
// verify and a chain to one of the CAs it names, if it names any (RFC 8446 section 4.3.2); the newest of these. Without
// any it returns nil and a sentence of bounded length that says what there is and what the backend accepts.
func ClientFor(req *tls.CertificateRequestInfo, pairs []*tls.Certificate, now time.Time) (best *tls.Certificate, why string) {
	var outdated, unfit int
	var last error
	for _, pair := range pairs {
		if !validAt(pair, now) {
			outdated++
		} else if err := req.SupportsCertificate(pair); err != nil {
			unfit++
			last = err
		} else if best == nil || pair.Leaf.NotBefore.After(best.Leaf.NotBefore) {
			best = pair
		}
	}
	switch {
	case best != nil:
		return best, ""
	case len(pairs) == 0:
		why = "the backend asks for a client certificate and the upstream has none"
	case unfit == 0:
		return nil, fmt.Sprintf("all %d client certificates of the upstream are expired or not yet valid", outdated)
	default:
		why = fmt.Sprintf("no client certificate of the upstream fits (%d outdated, %d not acceptable: %s)", outdated, unfit, short(last.Error()))
	}
	return nil, why + "; the backend accepts " + accepted(req)
}

// accepted describes a CertificateRequest in bounded length: it may hold 64 KiB of names.
func accepted(req *tls.CertificateRequestInfo) string {
	const most = 5
	var names []string
	for _, der := range req.AcceptableCAs[:min(len(req.AcceptableCAs), most)] {
		var rdns pkix.RDNSequence
		name := "a name that cannot be parsed"
		if rest, err := asn1.Unmarshal(der, &rdns); err == nil && len(rest) == 0 {
			name = fmt.Sprintf("%q", short(rdns.String()))
		}
		names = append(names, name)
	}
	if more := len(req.AcceptableCAs) - most; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	var schemes []string
	for _, scheme := range req.SignatureSchemes[:min(len(req.SignatureSchemes), 2*most)] {
		schemes = append(schemes, scheme.String())
	}
	cas := "any CA"
	if len(names) > 0 {
		cas = "the CAs " + strings.Join(names, ", ")
	}
	return cas + " with " + strings.Join(schemes, ", ")
}

// ExpiresSoon is how long before its end Check warns of a certificate.
const ExpiresSoon = 14 * 24 * time.Hour

// Check returns what an operator should know about a pair that is to serve names, which are written as in the config
// file: dates, names that the certificate does not cover (RFC 9525), and a purpose that is not theirs. No names means that it is presented to backends.
func Check(pair *tls.Certificate, names []string, now time.Time) []string {
	var warnings []string
	leaf := pair.Leaf
	warn := func(format string, args ...any) {
		warnings = append(warnings, fmt.Sprintf("certificate %q: ", short(leaf.Subject.String()))+fmt.Sprintf(format, args...))
	}
	switch left := leaf.NotAfter.Sub(now); {
	case now.Before(leaf.NotBefore):
		warn("not valid before %s; check the clock", leaf.NotBefore.UTC().Format(time.RFC3339))
	case left < 0:
		warn("expired at %s; renew it", leaf.NotAfter.UTC().Format(time.RFC3339))
	case left < ExpiresSoon:
		warn("expires in %d days, at %s; renew it", int(left.Hours()/24), leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	for _, name := range names {
		switch {
		case covers(pair, name):
		case len(leaf.DNSNames) == 0:
			warn("does not cover the name %q: it has no DNS names; add the name or use another certificate", name)
		default:
			warn("does not cover the name %q, only %q; add the name or use another certificate", name, short(strings.Join(leaf.DNSNames, " ")))
		}
	}
	if len(names) > 0 && !serves(leaf) {
		warn("has an extendedKeyUsage without serverAuth, so clients refuse it; use one that was issued for servers")
	}
	return warnings
}

// serves reports whether the extendedKeyUsage of a certificate, if there is any, allows a server to show it (RFC 5280
// section 4.2.1.12).
func serves(c *x509.Certificate) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) ||
		slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

func covers(pair *tls.Certificate, name string) bool {
	canonical, wildcard, err := hostname.Pattern(name)
	if err != nil {
		return false
	}
	if !wildcard {
		return pair.Leaf.VerifyHostname(canonical) == nil
	}
	return slices.ContainsFunc(pair.Leaf.DNSNames, func(san string) bool {
		return strings.EqualFold(san, canonical)
	})
}
