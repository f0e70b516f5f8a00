package trust

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"countersign/internal/reason"
)

// OCSPMode says what answers of OCSP responders (RFC 6960) mean for a certificate.
type OCSPMode uint8

const (
	// OCSPOff asks nobody.
	OCSPOff OCSPMode = iota
	// OCSPPrefer refuses who is known to be revoked and lets in who is not, also when the responder does not answer.
	OCSPPrefer
	// OCSPRequire wants a current answer that says good.
	OCSPRequire
)

const (
	maxResponder     = 2048 // bytes of a responder's URL
	maxResponderURLs = 8    // of a certificate that are looked at
	maxOCSPHosts     = 64
	maxOCSPSigners   = 16
	minNonce         = 16 // RFC 9654 section 2.1: what every responder has to take
	maxNonce         = 32
	unknownFor       = time.Minute // after which a responder that was behind its CA may have caught up
)

// OCSP is the part of a store's Options about responders. The zero value asks nobody.
type OCSP struct {
	Mode OCSPMode
	// Responder is asked about every certificate, in place of the responders that certificates name. Who chose this URL is
	// the operator.
	Responder string
	// Hosts are the hosts of responders named by certificates (authorityInfoAccess) that may be asked: lower-case
	// name:port, or name for the scheme's own port. None: only Responder is asked (threats C13).
	Hosts []string
	// Signers are certificates of responders that are believed besides the issuer and its delegates, each for every CA of
	// the store. They are compared as a whole.
	Signers []*x509.Certificate
	// RequireNonce refuses answers that were made in advance (RFC 9654).
	RequireNonce bool
	// Chain asks about intermediates too.
	Chain bool
	// Answers is the memory of answers. It can be shared by stores: answers are told apart by all that decides whether
	// they were believed.
	Answers *Answers

	scope [sha256.Size]byte // of Signers; set by check
}

// check refuses settings that could not be enforced.
func (o *OCSP) check() error {
	o.scope = signersScope(o.Signers)
	switch {
	case o.Mode > OCSPRequire:
		return errors.New("ocsp: a mode that is none of the constants of this package")
	case o.Mode == OCSPOff:
		if o.Responder != "" || len(o.Hosts) > 0 || len(o.Signers) > 0 || o.RequireNonce || o.Chain {
			return errors.New("ocsp: expected mode prefer or require with settings for responders, found off; set the mode or remove the settings")
		}
		return nil
	case o.Answers == nil:
		return errors.New("ocsp: expected a memory of answers, found none")
	case o.Responder == "" && len(o.Hosts) == 0:
		return errors.New("ocsp: expected a responder or hosts of responders that may be asked, found neither, so nobody could be asked")
	case len(o.Hosts) > maxOCSPHosts:
		return fmt.Errorf("ocsp: expected at most %d hosts, found %d", maxOCSPHosts, len(o.Hosts))
	case len(o.Signers) > maxOCSPSigners:
		return fmt.Errorf("ocsp: expected at most %d signers, found %d", maxOCSPSigners, len(o.Signers))
	}
	if o.Responder != "" {
		u, err := url.Parse(o.Responder)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || len(o.Responder) > maxResponder {
			return fmt.Errorf("ocsp: expected a responder like http://ocsp.example.com/, found %s", quote(o.Responder))
		}
	}
	for _, host := range o.Hosts {
		if host == "" || host != strings.ToLower(host) || strings.ContainsAny(host, "/?#@\\* \t") || strings.ContainsFunc(host, control) {
			return fmt.Errorf("ocsp: expected lower-case hosts like ocsp.example.com or ocsp.example.com:8080, found %s", quote(host))
		}
	}
	for i, c := range o.Signers {
		if c == nil || len(c.Raw) == 0 {
			return fmt.Errorf("ocsp: signer %d is not a parsed certificate", i+1)
		}
		if f := member(c); f != nil {
			return fmt.Errorf("ocsp: signer %d: expected %s, found %s", i+1, f.expected, f.found)
		}
	}
	return nil
}

// digest is a hash over the settings that can change a verdict; what Answers holds is not among them.
func (o *OCSP) digest() []byte {
	h := sha256.New()
	scope := signersScope(o.Signers)
	hosts := slices.Clone(o.Hosts)
	slices.Sort(hosts)
	fmt.Fprintf(h, "%d %q %q %t %t %x\n", o.Mode, o.Responder, slices.Compact(hosts), o.RequireNonce, o.Chain, scope)
	return h.Sum(nil)
}

// signersScope is a hash over certificates, whatever their order; zero for none.
func signersScope(signers []*x509.Certificate) (scope [sha256.Size]byte) {
	if len(signers) == 0 {
		return scope
	}
	sums := make([][]byte, 0, len(signers))
	for _, c := range signers {
		if c != nil {
			sum := sha256.Sum256(c.Raw)
			sums = append(sums, sum[:])
		}
	}
	slices.SortFunc(sums, bytes.Compare)
	return sha256.Sum256(bytes.Join(sums, nil))
}

// responder is who is to be asked about c; empty if nobody may be.
func (o *OCSP) responder(c *x509.Certificate) string {
	if o.Responder != "" {
		return o.Responder
	}
	for _, u := range c.OCSPServer[:min(len(c.OCSPServer), maxResponderURLs)] {
		if o.mayAsk(u) {
			return u
		}
	}
	return ""
}

// mayAsk compares the host of a URL with Hosts without parsing the URL: its authority has to be, byte by byte, one that
// the operator wrote, so there is nothing in it that two readers could take for different hosts (threats C13). The
// outbound client parses it, and compares again.
func (o *OCSP) mayAsk(u string) bool {
	if len(u) > maxResponder {
		return false
	}
	rest, port := "", ""
	switch {
	case len(u) > 7 && strings.EqualFold(u[:7], "http://"):
		rest, port = u[7:], ":80"
	case len(u) > 8 && strings.EqualFold(u[:8], "https://"):
		rest, port = u[8:], ":443"
	default:
		return false
	}
	for i := range len(u) {
		if u[i] <= ' ' || u[i] >= 0x7f {
			return false
		}
	}
	if end := strings.IndexAny(rest, "/?#"); end >= 0 {
		rest = rest[:end]
	}
	bare := strings.TrimSuffix(rest, port)
	for _, host := range o.Hosts {
		if strings.EqualFold(strings.TrimSuffix(host, port), bare) {
			return true
		}
	}
	return false
}

// hosts are those that the outbound client may ask for a query of o; nil for the operator's own URL.
func (o *OCSP) hosts() []string {
	if o.Responder != "" {
		return nil
	}
	return o.Hosts
}

// judge says what the answers that are there now mean for c, whose issuer in the chain is ca. leaf tells the certificate
// of the peer from those above it. A certificate known to be revoked stays revoked, whatever the dates of that answer,
// until the same responder says otherwise (threats C18, C20). ask is the question whose answer is missing, or past half
// its life: the caller hands it to who asks. It is never nil with OCSPUnavailable for want of an answer.
func (o *OCSP) judge(c, ca *x509.Certificate, leaf bool, now time.Time) (f *fault, ask *Query) {
	if o.Mode == OCSPOff || !leaf && !o.Chain {
		return nil, nil
	}
	responder := o.responder(c)
	if responder == "" {
		if o.Mode == OCSPRequire {
			f = &fault{rule: reason.OCSPUnavailable, expected: "a responder that may be asked about " + subject(c), found: "none that it names is among the hosts of revocation.ocsp"}
			if len(c.OCSPServer) == 0 {
				f.found = "no responder in its authorityInfoAccess"
			}
		}
		return f, nil
	}
	a, known := o.Answers.lookup(o.key(c, ca, responder), now)
	if !known || !a.Current(now) || !now.Before(a.Again()) {
		ask = &Query{Cert: c, Issuer: ca, Responder: responder, Hosts: o.hosts(), RequireNonce: o.RequireNonce, Signers: o.Signers}
	}
	switch {
	case known && a.Status == Revoked:
		f = &fault{rule: reason.ClientIssuerRevoked, expected: "a certificate that is not revoked according to " + quote(responder),
			found: fmt.Sprintf("%s, revoked %s (%s), as of %s", subject(c), stamp(a.RevokedAt), code(a.Code), stamp(a.ThisUpdate))}
		if leaf {
			f.rule = reason.ClientCertRevoked
		}
	case o.Mode != OCSPRequire || known && a.Status == Good && a.Current(now):
	case known && a.Status == Unknown && a.Current(now):
		f = &fault{rule: reason.OCSPUnknown, expected: "an answer that says good from " + quote(responder),
			found: fmt.Sprintf("unknown for %s, as of %s", subject(c), stamp(a.ThisUpdate))}
	case known:
		f = &fault{rule: reason.OCSPUnavailable, expected: "an answer of " + quote(responder) + " that is in force at " + stamp(now),
			found: fmt.Sprintf("one for %s that was until %s", subject(c), stamp(a.Until()))}
	default:
		f = &fault{rule: reason.OCSPUnavailable, expected: "an answer of " + quote(responder), found: "none yet for " + subject(c)}
	}
	return f, ask
}

// goodUntil is when an acceptance of c by judge has to be looked at again: when a new answer is due and, where one is
// required, when the one there is runs out. Zero means never.
func (o *OCSP) goodUntil(c, ca *x509.Certificate, leaf bool, now time.Time) (until time.Time) {
	if o.Mode == OCSPOff || !leaf && !o.Chain {
		return until
	}
	responder := o.responder(c)
	if responder == "" {
		return until
	}
	a, known := o.Answers.lookup(o.key(c, ca, responder), now)
	if !known {
		return now.Add(unknownFor)
	}
	if again := a.Again(); now.Before(again) {
		return again
	}
	if end := a.Until(); o.Mode == OCSPRequire && now.Before(end) && end.Before(now.Add(unknownFor)) {
		return end
	}
	return now.Add(unknownFor)
}

// Query is one question: is Cert, which Issuer issued, revoked?
type Query struct {
	Cert, Issuer *x509.Certificate
	// Responder is the URL to ask, and Hosts those it may lead to, as in OCSP; nil: whatever the URL says.
	Responder string
	Hosts     []string
	// RequireNonce and Signers are those of OCSP.
	RequireNonce bool
	Signers      []*x509.Certificate
}

// QueryKey tells queries apart: by the issuer's key and name, the serial number and the responder (threats C19), and by
// what decides which answers are believed, so that a store never uses an answer that it would have refused.
type QueryKey struct {
	issuer, serial [sha256.Size]byte
	responder      string
	scope          [sha256.Size]byte
	nonce          bool
}

// Key is the key of q.
func (q *Query) Key() QueryKey {
	return QueryKey{issuer: issuerKey(q.Issuer), serial: serialKey(q.Cert), responder: q.Responder,
		scope: signersScope(q.Signers), nonce: q.RequireNonce}
}

func (o *OCSP) key(c, ca *x509.Certificate, responder string) QueryKey {
	k := QueryKey{issuer: issuerKey(ca), serial: serialKey(c), responder: responder, scope: o.scope, nonce: o.RequireNonce}
	if len(o.Signers) > 0 && k.scope == ([sha256.Size]byte{}) {
		k.scope = signersScope(o.Signers)
	}
	return k
}

// issuerKey is one hash over key and name: the first says in DER where it ends, so no two pairs look alike.
func issuerKey(ca *x509.Certificate) [sha256.Size]byte {
	var buf [1024]byte
	return sha256.Sum256(append(append(buf[:0], ca.RawSubjectPublicKeyInfo...), ca.RawSubject...))
}

// serialKey is the serial number itself if it has at most 20 octets, as it must (RFC 5280 section 4.1.2.2), after its
// length and sign; else a hash.
func serialKey(c *x509.Certificate) (key [sha256.Size]byte) {
	n := c.SerialNumber
	if size := (n.BitLen() + 7) / 8; n.Sign() > 0 && size <= 20 {
		key[0] = byte(size)
		n.FillBytes(key[1 : 1+size])
		return key
	}
	key = sha256.Sum256(append([]byte{byte(n.Sign())}, n.Bytes()...))
	key[0] = 0xff
	return key
}

// Keep is q for keeping: a copy of the little of the certificate that Check looks at. A parsed certificate holds on to
// all of a handshake's.
func (q *Query) Keep() *Query {
	kept := *q
	kept.Cert = &x509.Certificate{SerialNumber: q.Cert.SerialNumber, RawSubjectPublicKeyInfo: bytes.Clone(q.Cert.RawSubjectPublicKeyInfo)}
	return &kept
}

// Request is the question in DER (RFC 6960 section 4.1.1), with a nonce of 16 to 32 octets (RFC 9654), or none if nonce
// is nil. The certificate is named by SHA-1 hashes, the only ones that every responder knows (RFC 5019 section 2.1.1);
// nothing is believed because of them.
func (q *Query) Request(nonce []byte) ([]byte, error) {
	switch {
	case nonce != nil && (len(nonce) < minNonce || len(nonce) > maxNonce):
		return nil, fmt.Errorf("OCSP request: expected a nonce of %d to %d octets (RFC 9654), found %d", minNonce, maxNonce, len(nonce))
	case nonce == nil && q.RequireNonce:
		return nil, errors.New("OCSP request: expected a nonce, which answers are required to repeat, found none")
	}
	key, err := keyBits(q.Issuer)
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // OCSPRequest
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // TBSRequest
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // requestList
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // Request
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // CertID
						b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
							b.AddASN1ObjectIdentifier(oidSHA1)
							b.AddASN1NULL()
						})
						name, id := sha1.Sum(q.Issuer.RawSubject), sha1.Sum(key)
						b.AddASN1OctetString(name[:])
						b.AddASN1OctetString(id[:])
						b.AddASN1BigInt(q.Cert.SerialNumber)
					})
				})
			})
			if nonce == nil {
				return
			}
			b.AddASN1(cbasn1.Tag(2).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(oidNonce)
						b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddASN1OctetString(nonce) })
					})
				})
			})
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("OCSP request for %s: %w", serial(q.Cert), bounded(err))
	}
	return der, nil
}

// keyBits is the content of the BIT STRING subjectPublicKey, which is what key hashes are over (RFC 6960 section 4.1.1).
func keyBits(c *x509.Certificate) ([]byte, error) {
	in := cryptobyte.String(c.RawSubjectPublicKeyInfo)
	var bits []byte
	if !in.ReadASN1(&in, cbasn1.SEQUENCE) || !in.SkipASN1(cbasn1.SEQUENCE) || !in.ReadASN1BitStringAsBytes(&bits) {
		return nil, errors.New("OCSP: the issuer's public key cannot be read")
	}
	return bits, nil
}
