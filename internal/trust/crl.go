package trust

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"countersign/internal/reason"
)

const (
	maxCRLBytes = 128 << 20
	clockSkew   = 5 * time.Minute    // how far in the future thisUpdate may lie
	maxCRLAge   = 7 * 24 * time.Hour // how long a list without nextUpdate is good for
)

// CRL is a full certificate revocation list (RFC 5280 section 5) that was read but whose signature may not have been
// checked yet. It is immutable and can be shared between stores; what it learned about its signers goes with it.
type CRL struct {
	issuer                 string // DN, DER
	issuerName             pkix.Name
	keyID                  []byte // authorityKeyIdentifier; nil when absent
	number                 *big.Int
	thisUpdate, nextUpdate time.Time // nextUpdate is never zero
	points                 []string  // the list covers only certificates that name one of these; nil: all
	revoked                map[string]revocation
	sum                    [sha256.Size]byte

	tbs, signature []byte
	algorithm      x509.SignatureAlgorithm
	// signers holds the keys (hashes of SPKI) whose signature was found good. Only those: strangers can make any number
	// of keys that are not, but none that is.
	signers sync.Map
}

// revocation is what is kept of an entry, for the evidence.
type revocation struct {
	at   int64
	code int8
}

// ParseCRL reads one list, as DER or as PEM with exactly one block. It refuses what it does not understand fully:
// deltas, indirect lists, lists of one kind of certificate and unknown critical extensions (RFC 5280 section 5.2).
func ParseCRL(data []byte) (*CRL, error) {
	if len(data) > maxCRLBytes {
		return nil, fmt.Errorf("revocation list: expected at most %d MiB, found %d bytes", maxCRLBytes>>20, len(data))
	}
	der := data
	if !isDER(data) {
		blocks, err := split(data, false)
		switch {
		case err != nil:
			return nil, fmt.Errorf("revocation list: %w", err)
		case len(blocks) == 0:
			return nil, errors.New("revocation list: expected one PEM block X509 CRL or DER, found neither")
		case len(blocks) > 1:
			return nil, fmt.Errorf("revocation list: more than one PEM block, the second at line %d; give each list a file of its own", blocks[1].line)
		case blocks[0].kind == "CERTIFICATE":
			return nil, errors.New("revocation list: expected a PEM block X509 CRL, found CERTIFICATE; this file is a CA bundle")
		case blocks[0].kind != "X509 CRL":
			return nil, fmt.Errorf("revocation list: expected a PEM block X509 CRL, found %s", quote(blocks[0].kind))
		}
		der = blocks[0].der
	}
	rl, err := x509.ParseRevocationList(der)
	if err != nil {
		if _, certErr := x509.ParseCertificate(der); certErr == nil {
			return nil, errors.New("revocation list: expected a list, found a certificate; this file is a CA certificate")
		}
		return nil, fmt.Errorf("revocation list: %w", bounded(err))
	}
	l := &CRL{
		issuer: string(rl.RawIssuer), issuerName: rl.Issuer, keyID: rl.AuthorityKeyId, number: rl.Number,
		thisUpdate: rl.ThisUpdate, nextUpdate: rl.NextUpdate, revoked: make(map[string]revocation, len(rl.RevokedCertificateEntries)),
		sum: sha256.Sum256(rl.Raw), tbs: rl.RawTBSRevocationList, signature: rl.Signature, algorithm: rl.SignatureAlgorithm,
	}
	if err := l.fill(rl, len(der)); err != nil {
		return nil, fmt.Errorf("revocation list %s: %w", l, err)
	}
	return l, nil
}

func (l *CRL) fill(rl *x509.RevocationList, size int) error {
	switch rl.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		return fmt.Errorf("expected a signature with SHA-256 or better, found %v", rl.SignatureAlgorithm)
	case x509.UnknownSignatureAlgorithm, x509.DSAWithSHA256:
		return errors.New("the signature algorithm is not supported")
	}
	if len(rl.Raw) != size {
		return fmt.Errorf("%d bytes follow the list", size-len(rl.Raw))
	}
	if l.number != nil && (l.number.Sign() < 0 || l.number.BitLen() > 160) {
		return errors.New("expected a CRL number of at most 20 octets (RFC 5280 section 5.2.3), found another")
	}
	if l.nextUpdate.IsZero() {
		l.nextUpdate = l.thisUpdate.Add(maxCRLAge)
	} else if l.nextUpdate.Before(l.thisUpdate) {
		return fmt.Errorf("nextUpdate %s is before thisUpdate", stamp(l.nextUpdate))
	}
	for _, x := range rl.Extensions {
		switch {
		case x.Id.Equal(oidDelta):
			return errors.New("it is a delta list, which is not supported by this version; use the full list")
		case x.Id.Equal(oidIDP):
			if err := l.scope(x.Value); err != nil {
				return err
			}
		case x.Id.Equal(oidAKI), x.Id.Equal(oidNumber):
		case x.Critical:
			return fmt.Errorf("critical extension %s is not understood", escape(x.Id.String(), maxQuoted))
		}
	}
	for i := range rl.RevokedCertificateEntries {
		e := &rl.RevokedCertificateEntries[i]
		for _, x := range e.Extensions {
			switch {
			case x.Id.Equal(oidIssuer):
				return fmt.Errorf("entry %d names another issuer; indirect lists are not supported by this version", i+1)
			case x.Id.Equal(oidReason), x.Id.Equal(oidInvalid):
			case x.Critical:
				return fmt.Errorf("entry %d: critical extension %s is not understood", i+1, escape(x.Id.String(), maxQuoted))
			}
		}
		if e.ReasonCode == 8 {
			return fmt.Errorf("entry %d: removeFromCRL stands in delta lists only", i+1)
		}
		// No certificate with a serial number of 0 or less is ever accepted; kept, -5 would stand for 5 (threats C11).
		if e.SerialNumber.Sign() > 0 {
			l.revoked[string(e.SerialNumber.Bytes())] = revocation{e.RevocationTime.Unix(), int8(min(e.ReasonCode, 127))}
		}
	}
	return nil
}

// scope reads issuingDistributionPoint (RFC 5280 section 5.2.5). A list of one distribution point says nothing about
// certificates that do not name this point, so it must not count as a list for those.
func (l *CRL) scope(value []byte) error {
	const unsupported = ", which is not supported by this version; use a list of all certificates of the CA"
	malformed := errors.New("malformed issuingDistributionPoint")
	in := cryptobyte.String(value)
	if !in.ReadASN1(&in, cbasn1.SEQUENCE) {
		return malformed
	}
	for !in.Empty() {
		var body cryptobyte.String
		var tag cbasn1.Tag
		if !in.ReadAnyASN1(&body, &tag) {
			return malformed
		}
		if tag != cbasn1.Tag(0).ContextSpecific().Constructed() {
			flag, known := map[cbasn1.Tag]string{
				cbasn1.Tag(1).ContextSpecific():               "onlyContainsUserCerts",
				cbasn1.Tag(2).ContextSpecific():               "onlyContainsCACerts",
				cbasn1.Tag(3).ContextSpecific():               "onlySomeReasons",
				cbasn1.Tag(3).ContextSpecific().Constructed(): "onlySomeReasons",
				cbasn1.Tag(4).ContextSpecific():               "indirectCRL",
				cbasn1.Tag(5).ContextSpecific():               "onlyContainsAttributeCerts",
			}[tag]
			if !known {
				return malformed
			}
			if len(body) == 1 && body[0] == 0 && flag != "onlySomeReasons" {
				continue // FALSE written out: not DER, but clear
			}
			return errors.New("its issuingDistributionPoint says " + flag + unsupported)
		}
		var full cryptobyte.String
		if !body.ReadASN1(&full, cbasn1.Tag(0).ContextSpecific().Constructed()) {
			return errors.New("its issuingDistributionPoint has a relative name" + unsupported)
		}
		for !full.Empty() {
			var general cryptobyte.String
			if !full.ReadAnyASN1(&general, &tag) {
				return malformed
			}
			if tag == cbasn1.Tag(6).ContextSpecific() {
				l.points = append(l.points, string(general))
			}
		}
		if l.points == nil {
			return errors.New("its issuingDistributionPoint has no URI" + unsupported)
		}
	}
	slices.Sort(l.points)
	return nil
}

// String names the list for people.
func (l *CRL) String() string {
	number := "without number"
	if l.number != nil && l.number.BitLen() <= 160 {
		number = "number " + l.number.String()
	}
	return fmt.Sprintf("%s of %s, thisUpdate %s", number, name(l.issuerName), stamp(l.thisUpdate))
}

// ThisUpdate is when the list was made.
func (l *CRL) ThisUpdate() time.Time { return l.thisUpdate }

// NextUpdate is when the next list is due; for a list that does not say, seven days after it was made.
func (l *CRL) NextUpdate() time.Time { return l.nextUpdate }

// Len is the number of revoked certificates.
func (l *CRL) Len() int { return len(l.revoked) }

// compare orders lists of one issuer by age: by number, then by date (threats C05). One without a number counts as older
// than any with one, since issuers that number their lists must not stop (RFC 5280 section 5.2.3).
func (l *CRL) compare(other *CRL) int {
	return cmp.Or(l.order().Cmp(other.order()), l.thisUpdate.Compare(other.thisUpdate), bytes.Compare(l.sum[:], other.sum[:]))
}

func (l *CRL) order() *big.Int {
	if l.number == nil {
		return big.NewInt(-1)
	}
	return l.number
}

// covers reports whether the list would name c if c was revoked.
func (l *CRL) covers(c *x509.Certificate) bool {
	return l.points == nil || slices.ContainsFunc(c.CRLDistributionPoints, func(url string) bool { return slices.Contains(l.points, url) })
}

// otherKey reports that the list says it is of another key than ca's. Without key identifiers nothing is said.
func (l *CRL) otherKey(ca *x509.Certificate) bool {
	return len(l.keyID) > 0 && len(ca.SubjectKeyId) > 0 && !bytes.Equal(l.keyID, ca.SubjectKeyId)
}

// signedBy checks that ca made the list: name, key identifier, the right to sign lists, and the signature (RFC 5280
// section 6.3.3 (f) and (g)). crypto/x509 checks neither name nor identifier (threats C03).
func (l *CRL) signedBy(ca *x509.Certificate) error {
	switch {
	case l.issuer != string(ca.RawSubject):
		return errors.New("another CA's name")
	case l.otherKey(ca):
		return errors.New("another key's authorityKeyIdentifier")
	case hasKeyUsage(ca) && ca.KeyUsage&x509.KeyUsageCRLSign == 0:
		return fmt.Errorf("CA %s may not sign lists: its keyUsage has no cRLSign", subject(ca))
	}
	key := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	if _, good := l.signers.Load(key); good {
		return nil
	}
	if err := ca.CheckSignature(l.algorithm, l.tbs, l.signature); err != nil {
		return fmt.Errorf("CA %s did not sign it: %w", subject(ca), bounded(err))
	}
	l.signers.Store(key, true)
	return nil
}

// signerAmong looks for the signer among anchors of the list's issuer name. Not to be found is an error only where one
// of them ought to be it.
func (l *CRL) signerAmong(anchors []*x509.Certificate) (bool, error) {
	var fail error
	for _, a := range anchors {
		err := l.signedBy(a)
		if err == nil {
			return true, nil
		}
		if !l.otherKey(a) {
			fail = err
		}
	}
	return false, fail
}

// revocation asks the lists about every certificate but the anchor. Revoked is told before stale or missing: that will
// not change with a new list.
func (s *Store) revocation(chain []*x509.Certificate, now time.Time) (*fault, int) {
	var worst *fault
	depth := 0
	for d := len(chain) - 2; d >= 0; d-- {
		required := s.opts.Missing == MissingChain || s.opts.Missing == MissingLeaf && d == 0
		if f := s.listed(chain[d], chain[d+1], required, d == 0, now); f != nil && (worst == nil || weight(f.rule) > weight(worst.rule)) {
			worst, depth = f, d
		}
	}
	return worst, depth
}

// listed judges c by the lists that its issuer ca signed. The issuer is this very key under this very name: not another
// CA of the same name, nor another name of the same key (threats C02, B19).
func (s *Store) listed(c, ca *x509.Certificate, required, leaf bool, now time.Time) *fault {
	serial := c.SerialNumber.Bytes()
	var stale, early *fault
	var seen [][]string // scopes whose newest list was met
	for _, l := range s.lists[string(ca.RawSubject)] {
		if !l.covers(c) || l.signedBy(ca) != nil {
			continue
		}
		if slices.ContainsFunc(seen, func(points []string) bool { return slices.Equal(points, l.points) }) {
			continue // a newer list of this scope counts; it may have released a hold (threats C08)
		}
		if l.thisUpdate.After(now.Add(clockSkew)) && s.opts.Stale != StaleIgnore {
			early = &fault{rule: reason.CRLStale, expected: "a list that is in force at " + stamp(now), found: "list " + l.String()}
			continue
		}
		seen = append(seen, l.points)
		if r, revoked := l.revoked[string(serial)]; revoked {
			f := &fault{rule: reason.ClientIssuerRevoked, expected: "a serial number that is not on " + l.String(),
				found: fmt.Sprintf("%s, revoked %s (%s)", subject(c), stamp(time.Unix(r.at, 0)), code(r.code))}
			if leaf {
				f.rule = reason.ClientCertRevoked
			}
			return f
		}
		due := l.nextUpdate
		if s.opts.Stale == StaleGrace {
			due = due.Add(s.opts.Grace)
		}
		if now.After(due) && s.opts.Stale != StaleIgnore {
			stale = &fault{rule: reason.CRLStale, expected: "a list that is in force at " + stamp(now),
				found: fmt.Sprintf("list %s, nextUpdate %s", l, stamp(l.nextUpdate))}
		}
	}
	switch {
	case stale != nil:
		return stale
	case len(seen) > 0:
		return nil
	case early != nil:
		return early
	case required:
		return &fault{rule: reason.CRLMissing, expected: "a revocation list signed by CA " + subject(ca), found: "none for " + subject(c)}
	}
	return nil
}

// code names a CRLReason (RFC 5280 section 5.3.1). certificateHold is a revocation like any other (threats C08).
func code(c int8) string {
	names := []string{"unspecified", "keyCompromise", "cACompromise", "affiliationChanged", "superseded", "cessationOfOperation",
		"certificateHold", "", "", "privilegeWithdrawn", "aACompromise"}
	if c < 0 || int(c) >= len(names) || names[c] == "" {
		return fmt.Sprintf("reason %d", c)
	}
	return names[c]
}

// GoodUntil is when the acceptance of chain, which Verify returned, has to be looked at again: when the next of its
// certificates expires or the next of the lists that were asked goes stale. Zero means never.
func (s *Store) GoodUntil(chain []*x509.Certificate, now time.Time) (until time.Time) {
	sooner := func(t time.Time) {
		if t.After(now) && (until.IsZero() || t.Before(until)) {
			until = t
		}
	}
	for i, c := range chain {
		sooner(c.NotAfter)
		if !s.opts.CheckRevocation || s.opts.Stale == StaleIgnore || i+1 == len(chain) {
			continue
		}
		for _, l := range s.lists[string(chain[i+1].RawSubject)] {
			if l.covers(c) && l.signedBy(chain[i+1]) == nil {
				sooner(l.nextUpdate)
				if s.opts.Stale == StaleGrace {
					sooner(l.nextUpdate.Add(s.opts.Grace))
				}
			}
		}
	}
	return until
}
