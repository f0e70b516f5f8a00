package trust

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// golang.org/x/crypto/ocsp parses responses too, but shows neither the issuer's hashes in a CertID nor a nonce, takes
// the first embedded certificate for the signer whatever its purpose, name and dates, and compares nothing but serial
// numbers (threats C16). So responses are read here, and there is one place to look for each check.

const (
	maxOCSPResponse = 64 << 10
	maxOCSPCerts    = 8   // embedded: a delegate and a chain for it
	maxOCSPSingles  = 256 // answers in one response
	maxTries        = 4   // signatures that are checked
)

var (
	oidBasic   = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}
	oidNonce   = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}
	oidNoCheck = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}
	oidSHA1    = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	oidSHA256  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidSHA384  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}
	oidSHA512  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}
	oidPSS     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}
	oidMGF1    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8}
)

// Declined is a response that holds no answer: the responder's own error (RFC 6960 section 4.2.1). It is not signed, so
// it says nothing about a certificate.
type Declined uint8

// The values of OCSPResponseStatus besides successful.
const (
	DeclinedMalformed    Declined = 1
	DeclinedInternal     Declined = 2
	DeclinedTryLater     Declined = 3
	DeclinedSigRequired  Declined = 5
	DeclinedUnauthorized Declined = 6
)

func (d Declined) Error() string {
	names := map[Declined]string{DeclinedMalformed: "malformedRequest", DeclinedInternal: "internalError", DeclinedTryLater: "tryLater",
		DeclinedSigRequired: "sigRequired", DeclinedUnauthorized: "unauthorized"}
	if n := names[d]; n != "" {
		return "OCSP response: expected an answer, found the responder's error " + n
	}
	return fmt.Sprintf("OCSP response: expected an answer, found status %d", uint8(d))
}

// Check reads a response to q and returns its answer if it can be believed (RFC 6960 section 3.2): the issuer, a
// delegate of the issuer's very key or one of Signers signed it, it is about this certificate of this issuer, in force
// at now, and repeats nonce, which is that of the request, where it has one. An error of the responder is a Declined.
// Errors are bounded and safe to print.
//
// Of a delegate is not checked whether it was revoked: see Answer.Delegate. A CA that signs its answers itself needs no
// digitalSignature in its keyUsage, because few have it.
func (q *Query) Check(response, nonce []byte, now time.Time) (Answer, error) {
	a, err := q.check(response, nonce, now)
	if err == nil {
		return a, nil
	}
	if declined, ok := errors.AsType[Declined](err); ok {
		return Answer{}, declined
	}
	return Answer{}, fmt.Errorf("OCSP response: %w", err)
}

func (q *Query) check(response, nonce []byte, now time.Time) (Answer, error) {
	switch {
	case len(response) > maxOCSPResponse:
		return Answer{}, fmt.Errorf("expected at most %d KiB, found %d bytes", maxOCSPResponse>>10, len(response))
	case q.RequireNonce && len(nonce) < minNonce:
		return Answer{}, errors.New("expected to know the nonce of the request, found none")
	}
	r, err := parseOCSP(response)
	if err != nil {
		return Answer{}, err
	}
	if err := r.checkNonce(nonce, q.RequireNonce); err != nil {
		return Answer{}, err
	}
	one, err := q.single(r.singles)
	if err != nil {
		return Answer{}, err
	}
	a := Answer{Status: one.status, ThisUpdate: one.thisUpdate, NextUpdate: one.nextUpdate, ProducedAt: r.producedAt,
		RevokedAt: one.revokedAt, Code: one.code, Responder: q.Responder}
	if err := a.inForce(now); err != nil {
		return Answer{}, err
	}
	delegate, err := q.signer(r, now)
	if err != nil {
		return Answer{}, err
	}
	if delegate != nil {
		a.Delegate = string(delegate.SerialNumber.Bytes())
		a.NoCheck = slices.ContainsFunc(delegate.Extensions, func(x pkix.Extension) bool { return x.Id.Equal(oidNoCheck) })
	}
	return a, nil
}

// inForce checks the dates of an answer against a clock (threats C17: a nonce is seldom there to tell a replay).
func (a *Answer) inForce(now time.Time) error {
	switch {
	case a.ThisUpdate.After(now.Add(clockSkew)):
		return fmt.Errorf("expected one that is in force at %s, found thisUpdate %s", stamp(now), stamp(a.ThisUpdate))
	case !a.NextUpdate.IsZero() && a.NextUpdate.Before(a.ThisUpdate):
		return fmt.Errorf("nextUpdate %s is before thisUpdate %s", stamp(a.NextUpdate), stamp(a.ThisUpdate))
	case now.After(a.Until()):
		return fmt.Errorf("expected one that is in force at %s, found one of %s that was until %s", stamp(now), stamp(a.ThisUpdate), stamp(a.End()))
	case a.ProducedAt.After(now.Add(clockSkew)):
		return fmt.Errorf("expected producedAt before %s, found %s", stamp(now), stamp(a.ProducedAt))
	case a.ProducedAt.Before(a.ThisUpdate.Add(-clockSkew)):
		return fmt.Errorf("it was produced at %s, before thisUpdate %s", stamp(a.ProducedAt), stamp(a.ThisUpdate))
	}
	return nil
}

// checkNonce is RFC 9654 section 2.1: a nonce that is there must be ours. One that nobody asked for says nothing.
func (r *ocspResponse) checkNonce(nonce []byte, required bool) error {
	switch {
	case r.nonce == nil && required:
		return errors.New("expected the nonce of the request, found none; the responder answers in advance, so nonce: require cannot be met")
	case r.nonce != nil && nonce != nil && !bytes.Equal(r.nonce, nonce):
		return errors.New("expected the nonce of the request, found another; it answers somebody else's question")
	}
	return nil
}

// single finds the one answer about the certificate: the issuer's name, its key and the serial number, all three
// (threats C16, C19). Responses may hold answers about others, which do not matter. Two about ours could contradict.
func (q *Query) single(all []ocspSingle) (*ocspSingle, error) {
	key, err := keyBits(q.Issuer)
	if err != nil {
		return nil, err
	}
	name1, key1 := sha1.Sum(q.Issuer.RawSubject), sha1.Sum(key)
	name256, key256 := sha256.Sum256(q.Issuer.RawSubject), sha256.Sum256(key)
	var found *ocspSingle
	for i := range all {
		s := &all[i]
		if s.serial.Cmp(q.Cert.SerialNumber) != 0 {
			continue
		}
		name, key := name1[:], key1[:]
		switch s.hash {
		case crypto.SHA256:
			name, key = name256[:], key256[:]
		case crypto.SHA1:
		default:
			continue
		}
		if !bytes.Equal(s.nameHash, name) || !bytes.Equal(s.keyHash, key) {
			continue
		}
		if found != nil {
			return nil, errors.New("expected one answer about the certificate, found two")
		}
		found = s
	}
	switch {
	case found == nil:
		return nil, fmt.Errorf("expected an answer about serial %s of CA %s, found %d about others", serial(q.Cert), subject(q.Issuer), len(all))
	case found.critical != "":
		return nil, fmt.Errorf("critical extension %s of the answer is not understood", found.critical)
	}
	return found, nil
}

// signer finds who signed the response (RFC 6960 section 4.2.2.2). It returns the delegate, nil if it was another.
func (q *Query) signer(r *ocspResponse, now time.Time) (*x509.Certificate, error) {
	if r.algorithm == x509.UnknownSignatureAlgorithm {
		return nil, errors.New("expected a signature by RSA, ECDSA or Ed25519 with SHA-256 or better, found " + r.algorithmName)
	}
	var refused error
	tries := 0
	signed := func(by *x509.Certificate) bool {
		if tries++; tries > maxTries {
			return false
		}
		// CheckSignature takes SHA-1, which parseOCSP has refused.
		err := by.CheckSignature(r.algorithm, r.tbs, r.signature)
		if err != nil {
			refused = cmp.Or(refused, fmt.Errorf("%s did not sign it, though it is named as the signer: %w", subject(by), bounded(err)))
		}
		return err == nil
	}
	if r.by(q.Issuer) && signed(q.Issuer) {
		return nil, nil
	}
	for _, c := range q.Signers {
		if !r.by(c) {
			continue
		}
		if err := dated(c, now); err != nil {
			refused = cmp.Or(refused, err)
		} else if signed(c) {
			return nil, nil
		}
	}
	for _, der := range r.certs {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			refused = cmp.Or(refused, fmt.Errorf("a certificate in it cannot be read: %w", bounded(err)))
			continue
		}
		if !r.by(c) || sameCA(c, q.Issuer) || slices.ContainsFunc(q.Signers, c.Equal) {
			continue
		}
		if err := q.delegate(c, now); err != nil {
			refused = cmp.Or(refused, err)
		} else if tries++; tries > maxTries {
			break
		} else if err := q.issued(c); err != nil {
			refused = cmp.Or(refused, err)
		} else if signed(c) {
			return c, nil
		}
	}
	switch {
	case refused != nil:
		return nil, refused
	case len(r.certs) == 0:
		return nil, fmt.Errorf("expected it to be signed by CA %s or to hold a certificate of its responder, found neither", subject(q.Issuer))
	}
	return nil, fmt.Errorf("expected it to be signed by CA %s, a delegate of it or a configured signer, found another responder's name", subject(q.Issuer))
}

// delegate are the rules for the certificate of a delegate that need no signature to be checked.
func (q *Query) delegate(c *x509.Certificate, now time.Time) error {
	fail := func(expected, found string) error {
		return fmt.Errorf("responder %s: expected %s, found %s", subject(c), expected, found)
	}
	if f := member(c); f != nil {
		return fail(f.expected, f.found)
	}
	switch {
	case bytes.Equal(c.RawSubjectPublicKeyInfo, q.Cert.RawSubjectPublicKeyInfo):
		return fail("a key other than that of the certificate it answers about", "the same")
	case !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning):
		// anyExtendedKeyUsage is not enough: every leaf of the CA that has it could then speak for the CA.
		found := purposes(c)
		if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 {
			found = "no extendedKeyUsage"
		}
		return fail("extendedKeyUsage OCSPSigning", found)
	case c.IsCA:
		// A CA that was given the purpose, often by mistake, could take back its own revocation.
		return fail("basicConstraints CA:FALSE", "CA:TRUE")
	case hasKeyUsage(c) && c.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return fail("keyUsage digitalSignature", "a keyUsage without it")
	case !bytes.Equal(c.RawIssuer, q.Issuer.RawSubject):
		return fail("a certificate issued by CA "+subject(q.Issuer), "one issued by "+issuerName(c))
	}
	return dated(c, now)
}

// issued checks that the issuer's very key signed the certificate of a delegate: not another of the same name, nor one
// further up or down.
func (q *Query) issued(c *x509.Certificate) error {
	if err := q.Issuer.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
		return fmt.Errorf("responder %s: CA %s did not sign its certificate: %w", subject(c), subject(q.Issuer), bounded(err))
	}
	return nil
}

func dated(c *x509.Certificate, now time.Time) error {
	if now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return fmt.Errorf("responder %s: expected validity at %s, found valid from %s until %s", subject(c), stamp(now), stamp(c.NotBefore), stamp(c.NotAfter))
	}
	return nil
}

// by says whether the ResponderID names c. A key is named by its SHA-1 hash; nothing is believed because of it.
func (r *ocspResponse) by(c *x509.Certificate) bool {
	if r.responderName != nil {
		return bytes.Equal(r.responderName, c.RawSubject)
	}
	key, err := keyBits(c)
	if err != nil {
		return false
	}
	sum := sha1.Sum(key)
	return bytes.Equal(r.responderKey, sum[:])
}

// ocspResponse is a BasicOCSPResponse (RFC 6960 section 4.2.1), read but not believed.
type ocspResponse struct {
	tbs, signature              []byte
	algorithm                   x509.SignatureAlgorithm
	algorithmName               string // for messages, where algorithm is unknown
	responderName, responderKey []byte // one of the two; the name in DER
	producedAt                  time.Time
	singles                     []ocspSingle
	nonce                       []byte
	certs                       [][]byte
}

type ocspSingle struct {
	hash                   crypto.Hash // 0 for those not known
	nameHash, keyHash      []byte
	serial                 *big.Int
	status                 Status
	thisUpdate, nextUpdate time.Time
	revokedAt              time.Time
	code                   int8
	critical               string // first critical extension
}

var errOCSPForm = errors.New("it is not of the form of RFC 6960 section 4.2.1")

func parseOCSP(der []byte) (*ocspResponse, error) {
	malformed := func() (*ocspResponse, error) { return nil, errOCSPForm }
	in := cryptobyte.String(der)
	var body cryptobyte.String
	var status int
	if !in.ReadASN1(&body, cbasn1.SEQUENCE) || !body.ReadASN1Enum(&status) {
		return malformed()
	}
	if !in.Empty() {
		return nil, fmt.Errorf("%d bytes follow it", len(in))
	}
	if status != 0 {
		if status < 0 || status > 0xff {
			return malformed()
		}
		return nil, Declined(status)
	}
	var kind asn1.ObjectIdentifier
	var wrapped, basic cryptobyte.String
	if !body.ReadASN1(&wrapped, explicit(0)) || !body.Empty() || !wrapped.ReadASN1(&wrapped, cbasn1.SEQUENCE) ||
		!wrapped.ReadASN1ObjectIdentifier(&kind) || !wrapped.ReadASN1(&basic, cbasn1.OCTET_STRING) || !wrapped.Empty() {
		return malformed()
	}
	if !kind.Equal(oidBasic) {
		return nil, fmt.Errorf("expected response type id-pkix-ocsp-basic, found %s", escape(kind.String(), maxQuoted))
	}
	var tbs, algorithm, certs cryptobyte.String
	r := new(ocspResponse)
	outer := basic
	if !outer.ReadASN1(&basic, cbasn1.SEQUENCE) || !outer.Empty() || !basic.ReadASN1Element(&tbs, cbasn1.SEQUENCE) ||
		!basic.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !basic.ReadASN1BitStringAsBytes(&r.signature) {
		return malformed()
	}
	var present bool
	if !basic.ReadOptionalASN1(&certs, &present, explicit(0)) || !basic.Empty() {
		return malformed()
	}
	if present {
		var list cryptobyte.String
		if !certs.ReadASN1(&list, cbasn1.SEQUENCE) || !certs.Empty() {
			return malformed()
		}
		for !list.Empty() {
			var c cryptobyte.String
			if !list.ReadASN1Element(&c, cbasn1.SEQUENCE) {
				return malformed()
			}
			if r.certs = append(r.certs, c); len(r.certs) > maxOCSPCerts {
				return nil, fmt.Errorf("expected at most %d certificates in it, found more", maxOCSPCerts)
			}
		}
	}
	var err error
	if r.algorithm, r.algorithmName, err = signatureAlgorithm(algorithm); err != nil {
		return nil, err
	}
	r.tbs = tbs
	return r, r.data(tbs)
}

// data reads ResponseData.
func (r *ocspResponse) data(in cryptobyte.String) error {
	var version, extensions, responses cryptobyte.String
	var present bool
	if !in.ReadASN1(&in, cbasn1.SEQUENCE) || !in.ReadOptionalASN1(&version, &present, explicit(0)) {
		return errOCSPForm
	}
	if present {
		var v int
		if !version.ReadASN1Integer(&v) || !version.Empty() {
			return errOCSPForm
		}
		if v != 0 {
			return fmt.Errorf("expected version 1, found %d", v+1)
		}
	}
	switch {
	case in.PeekASN1Tag(explicit(1)):
		var id, name cryptobyte.String
		if !in.ReadASN1(&id, explicit(1)) || !id.ReadASN1Element(&name, cbasn1.SEQUENCE) || !id.Empty() {
			return errOCSPForm
		}
		r.responderName = name
	case in.PeekASN1Tag(explicit(2)):
		var id, key cryptobyte.String
		if !in.ReadASN1(&id, explicit(2)) || !id.ReadASN1(&key, cbasn1.OCTET_STRING) || !id.Empty() || len(key) != sha1.Size {
			return errOCSPForm
		}
		r.responderKey = key
	default:
		return errOCSPForm
	}
	if !in.ReadASN1GeneralizedTime(&r.producedAt) || !in.ReadASN1(&responses, cbasn1.SEQUENCE) ||
		!in.ReadOptionalASN1(&extensions, &present, explicit(1)) || !in.Empty() {
		return errOCSPForm
	}
	for !responses.Empty() {
		if len(r.singles) == maxOCSPSingles {
			return fmt.Errorf("expected at most %d answers in it, found more", maxOCSPSingles)
		}
		var s ocspSingle
		if !s.read(&responses) {
			return errOCSPForm
		}
		r.singles = append(r.singles, s)
	}
	if !present {
		return nil
	}
	critical := ""
	ok := eachExtension(extensions, func(id asn1.ObjectIdentifier, isCritical bool, value cryptobyte.String) bool {
		if !id.Equal(oidNonce) {
			if isCritical && critical == "" {
				critical = escape(id.String(), maxQuoted)
			}
			return true
		}
		var nonce cryptobyte.String
		if r.nonce != nil || !value.ReadASN1(&nonce, cbasn1.OCTET_STRING) || !value.Empty() {
			return false
		}
		r.nonce = append([]byte{}, nonce...)
		return true
	})
	switch {
	case !ok:
		return errOCSPForm
	case critical != "":
		return fmt.Errorf("critical extension %s is not understood", critical)
	}
	return nil
}

// read reads one SingleResponse. Whatever a revoked one says of its reason and time, it is revoked: a responder that is
// wrong about details, or says removeFromCRL here, where it has no place, has not said good.
func (s *ocspSingle) read(from *cryptobyte.String) bool {
	var in, id, algorithm, parameters, status, next, extensions cryptobyte.String
	var hash asn1.ObjectIdentifier
	var tag cbasn1.Tag
	s.serial = new(big.Int)
	if !from.ReadASN1(&in, cbasn1.SEQUENCE) || !in.ReadASN1(&id, cbasn1.SEQUENCE) ||
		!id.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&hash) ||
		!algorithm.Empty() && (!algorithm.ReadASN1(&parameters, cbasn1.NULL) || !parameters.Empty() || !algorithm.Empty()) ||
		!id.ReadASN1((*cryptobyte.String)(&s.nameHash), cbasn1.OCTET_STRING) || !id.ReadASN1((*cryptobyte.String)(&s.keyHash), cbasn1.OCTET_STRING) ||
		!id.ReadASN1Integer(s.serial) || !id.Empty() || !in.ReadAnyASN1(&status, &tag) {
		return false
	}
	switch {
	case hash.Equal(oidSHA1):
		s.hash = crypto.SHA1
	case hash.Equal(oidSHA256):
		s.hash = crypto.SHA256
	}
	switch tag {
	case cbasn1.Tag(0).ContextSpecific(), cbasn1.Tag(2).ContextSpecific():
		if !status.Empty() {
			return false
		}
		s.status = Good
		if tag == cbasn1.Tag(2).ContextSpecific() {
			s.status = Unknown
		}
	case explicit(1): // RevokedInfo, tagged implicitly: constructed
		s.status = Revoked
		var why cryptobyte.String
		var present bool
		if !status.ReadASN1GeneralizedTime(&s.revokedAt) || !status.ReadOptionalASN1(&why, &present, explicit(0)) || !status.Empty() {
			return false
		}
		if present {
			var c int
			if !why.ReadASN1Enum(&c) || !why.Empty() {
				return false
			}
			s.code = int8(max(-1, min(c, 127)))
		}
	default:
		return false
	}
	var present bool
	if !in.ReadASN1GeneralizedTime(&s.thisUpdate) || !in.ReadOptionalASN1(&next, &present, explicit(0)) {
		return false
	}
	if present && (!next.ReadASN1GeneralizedTime(&s.nextUpdate) || !next.Empty()) {
		return false
	}
	if !in.ReadOptionalASN1(&extensions, &present, explicit(1)) || !in.Empty() {
		return false
	}
	return !present || eachExtension(extensions, func(id asn1.ObjectIdentifier, critical bool, _ cryptobyte.String) bool {
		if critical && s.critical == "" {
			s.critical = escape(id.String(), maxQuoted)
		}
		return true
	})
}

func explicit(tag uint8) cbasn1.Tag { return cbasn1.Tag(tag).ContextSpecific().Constructed() }

// eachExtension reads Extensions (RFC 5280 section 4.1) and says whether they could be read and f took them all.
func eachExtension(in cryptobyte.String, f func(id asn1.ObjectIdentifier, critical bool, value cryptobyte.String) bool) bool {
	var list cryptobyte.String
	if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !in.Empty() {
		return false
	}
	for !list.Empty() {
		var x, value cryptobyte.String
		var id asn1.ObjectIdentifier
		var critical bool
		if !list.ReadASN1(&x, cbasn1.SEQUENCE) || !x.ReadASN1ObjectIdentifier(&id) ||
			x.PeekASN1Tag(cbasn1.BOOLEAN) && !x.ReadASN1Boolean(&critical) ||
			!x.ReadASN1(&value, cbasn1.OCTET_STRING) || !x.Empty() || !f(id, critical, value) {
			return false
		}
	}
	return true
}

// signatures are the algorithms of RFC 5754, RFC 5758 and RFC 8410 that are taken, and whether NULL parameters may stand.
var signatures = []struct {
	id   asn1.ObjectIdentifier
	null bool
	is   x509.SignatureAlgorithm
}{
	{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, true, x509.SHA256WithRSA},
	{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 12}, true, x509.SHA384WithRSA},
	{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 13}, true, x509.SHA512WithRSA},
	{asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, false, x509.ECDSAWithSHA256},
	{asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, false, x509.ECDSAWithSHA384},
	{asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}, false, x509.ECDSAWithSHA512},
	{asn1.ObjectIdentifier{1, 3, 101, 112}, false, x509.PureEd25519},
}

// signatureAlgorithm reads an AlgorithmIdentifier. Those not taken have a name for the message.
func signatureAlgorithm(in cryptobyte.String) (x509.SignatureAlgorithm, string, error) {
	var id asn1.ObjectIdentifier
	if !in.ReadASN1ObjectIdentifier(&id) {
		return 0, "", errOCSPForm
	}
	switch {
	case id.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 5}), id.Equal(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}):
		return 0, "one with SHA-1", nil
	case id.Equal(oidPSS):
		for hash, is := range pssParameters() {
			if bytes.Equal(in, []byte(hash)) {
				return is, "", nil
			}
		}
		return 0, "RSA-PSS with unusual parameters", nil
	}
	for _, s := range signatures {
		if s.id.Equal(id) {
			if in.Empty() || s.null && bytes.Equal(in, asn1.NullBytes) {
				return s.is, "", nil
			}
			return 0, "", errOCSPForm
		}
	}
	return 0, escape(id.String(), maxQuoted), nil
}

// pssParameters are the RSASSA-PSS-params (RFC 4055 section 3.1) that make sense: one hash for all, a salt of its size.
func pssParameters() map[string]x509.SignatureAlgorithm {
	out := make(map[string]x509.SignatureAlgorithm, 6)
	for _, p := range []struct {
		id   asn1.ObjectIdentifier
		salt int64
		is   x509.SignatureAlgorithm
	}{{oidSHA256, 32, x509.SHA256WithRSAPSS}, {oidSHA384, 48, x509.SHA384WithRSAPSS}, {oidSHA512, 64, x509.SHA512WithRSAPSS}} {
		for _, null := range []bool{true, false} {
			hash := func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(p.id)
					if null {
						b.AddASN1NULL()
					}
				})
			}
			var b cryptobyte.Builder
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(explicit(0), hash)
				b.AddASN1(explicit(1), func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(oidMGF1)
						hash(b)
					})
				})
				b.AddASN1(explicit(2), func(b *cryptobyte.Builder) { b.AddASN1Int64(p.salt) })
			})
			out[string(b.BytesOrPanic())] = p.is
		}
	}
	return out
}
