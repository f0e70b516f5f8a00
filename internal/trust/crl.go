package trust

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxCRLBytes = 128 << 20
	maxCRLs     = 1024               // lists in a file
	clockSkew   = 5 * time.Minute    // how far in the future thisUpdate may lie
	maxCRLAge   = 7 * 24 * time.Hour // how long a list without nextUpdate is good for
	maxSigners  = 16                 // judgements kept of each kind
)

// CRL is a certificate revocation list (RFC 5280 section 5), full or delta, that was read but whose signature may not
// have been checked yet. It does not change and can be shared between stores; what it learned about its signers goes
// with it. It keeps nothing of the bytes it was read from, but with an Ed25519 signature until the signer is found: a
// million entries take about 25 MB.
type CRL struct {
	issuer                 string    // DN, DER
	name                   string    // issuer, for people
	keyID                  []byte    // authorityKeyIdentifier; nil when absent
	number                 *big.Int  // nil when absent
	base                   *big.Int  // BaseCRLNumber; nil for a full list
	thisUpdate, nextUpdate time.Time // nextUpdate is never zero
	part                   part
	entries                *entries
	sum                    [sha256.Size]byte

	algorithm x509.SignatureAlgorithm
	signature []byte
	mu        sync.Mutex                  // is held while a signature is checked
	message   []byte                      // what was signed: a digest, or all of it; nil once an Ed25519 key was found
	judged    atomic.Pointer[[]judgement] // replaced, never changed
}

// judgement is what a signature check of a list found; err is nil for the signer.
type judgement struct {
	ca  *x509.Certificate
	err error
}

// ParseCRL reads one list, as DER or as PEM with exactly one block. See ParseCRLs.
func ParseCRL(data []byte) (*CRL, error) {
	lists, err := parseCRLs(data, 1)
	if err != nil {
		return nil, err
	}
	return lists[0], nil
}

// ParseCRLs reads every list of a file: one in DER, or PEM blocks X509 CRL; all of them or none (threats C22). It
// refuses what it does not understand fully: indirect lists, lists of some reasons or of attribute certificates, and
// unknown critical extensions (RFC 5280 section 5.2).
func ParseCRLs(data []byte) ([]*CRL, error) { return parseCRLs(data, maxCRLs) }

func parseCRLs(data []byte, limit int) ([]*CRL, error) {
	if len(data) > maxCRLBytes {
		return nil, fmt.Errorf("revocation list: expected at most %d MiB, found %d bytes", maxCRLBytes>>20, len(data))
	}
	if isDER(data) {
		l, err := readCRL(data)
		if err != nil {
			return nil, fmt.Errorf("revocation list: %w", err)
		}
		return []*CRL{l}, nil
	}
	blocks, err := split(data, false)
	switch {
	case err != nil:
		return nil, fmt.Errorf("revocation list: %w", err)
	case len(blocks) == 0:
		return nil, errors.New("revocation list: expected a PEM block X509 CRL or DER, found neither")
	case len(blocks) > limit && limit == 1:
		return nil, fmt.Errorf("revocation list: more than one PEM block, the second at line %d; give each list a file of its own", blocks[1].line)
	case len(blocks) > limit:
		return nil, fmt.Errorf("revocation list: expected at most %d PEM blocks, found %d", limit, len(blocks))
	}
	lists := make([]*CRL, len(blocks))
	for i, b := range blocks {
		at := fmt.Sprintf("revocation list: PEM block %d (line %d)", i+1, b.line)
		switch b.kind {
		case "X509 CRL":
		case "CERTIFICATE":
			return nil, errors.New(at + ": expected X509 CRL, found CERTIFICATE; this file is a CA bundle")
		default:
			return nil, fmt.Errorf("%s: expected X509 CRL, found %s", at, quote(b.kind))
		}
		if lists[i], err = readCRL(b.der); err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
		blocks[i].der = nil // a large list is not kept while the next is read
	}
	return lists, nil
}

// String names the list for people.
func (l *CRL) String() string {
	kind := ""
	if l.base != nil {
		kind = fmt.Sprintf("delta on %v, ", l.base)
	}
	number := "without number"
	if l.number != nil {
		number = "number " + l.number.String()
	}
	return fmt.Sprintf("%s%s of %s, thisUpdate %s", kind, number, l.name, stamp(l.thisUpdate))
}

// ThisUpdate is when the list was made.
func (l *CRL) ThisUpdate() time.Time { return l.thisUpdate }

// NextUpdate is when the next list is due; for a list that does not say, seven days after it was made.
func (l *CRL) NextUpdate() time.Time { return l.nextUpdate }

// Len is the number of serial numbers on the list.
func (l *CRL) Len() int { return l.entries.n }

// Issuer is the issuer's name in DER.
func (l *CRL) Issuer() string { return l.issuer }

// Sum is the SHA-256 of the list in DER.
func (l *CRL) Sum() [sha256.Size]byte { return l.sum }

// Delta reports whether the list only says what changed since another (RFC 5280 section 5.2.4).
func (l *CRL) Delta() bool { return l.base != nil }

// Scope names, in hexadecimal, what the list is about: two lists with the same Scope are of the same issuer, key
// identifier and issuingDistributionPoint, both are full or both are deltas, and the newer replaces the older.
func (l *CRL) Scope() string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q %t", l.issuer, l.keyID, l.part.key(), l.Delta())
	return hex.EncodeToString(h.Sum(nil))
}

// Compare orders lists of one Scope by age: by number, then by date (threats C05); it is negative when l is older. A list
// without a number counts as older than any with one, since issuers that number their lists must not stop (RFC 5280
// section 5.2.3).
func (l *CRL) Compare(other *CRL) int {
	return cmp.Or(l.order().Cmp(other.order()), l.thisUpdate.Compare(other.thisUpdate), bytes.Compare(l.sum[:], other.sum[:]))
}

func (l *CRL) order() *big.Int {
	if l.number == nil {
		return big.NewInt(-1)
	}
	return l.number
}

// appliesTo reports whether the delta l may be put on the full list base of the same issuer name and scope (RFC 5280
// sections 5.2.4 and 6.3.3 (c)). That both have the same signer is the caller's to see to.
func (l *CRL) appliesTo(base *CRL) bool {
	return base.number != nil && base.number.Cmp(l.base) >= 0 && base.number.Cmp(l.number) < 0 && bytes.Equal(l.keyID, base.keyID)
}

// Signer is a CA certificate that SignedBy accepted; nil before there was one. Of a list that was signed once, every
// further one has the same key, or another that was made to fit by whoever controls a CA of the same name.
func (l *CRL) Signer() *x509.Certificate {
	if known := l.judged.Load(); known != nil {
		for _, j := range *known {
			if j.err == nil {
				return j.ca
			}
		}
	}
	return nil
}

// SignedBy checks that ca made the list: name, key identifier, the right to sign lists, and the signature (RFC 5280
// section 6.3.3 (f) and (g)). crypto/x509 checks neither name nor identifier (threats C03).
func (l *CRL) SignedBy(ca *x509.Certificate) error {
	switch {
	case l.issuer != string(ca.RawSubject):
		return errors.New("another CA's name")
	case l.otherKey(ca):
		return errors.New("another key's authorityKeyIdentifier")
	case hasKeyUsage(ca) && ca.KeyUsage&x509.KeyUsageCRLSign == 0:
		return fmt.Errorf("CA %s may not sign lists: its keyUsage has no cRLSign", subject(ca))
	}
	if err, known := l.known(ca); known {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err, known := l.known(ca); known {
		return err
	}
	err := l.verify(ca.PublicKey)
	if err != nil {
		err = fmt.Errorf("CA %s did not sign it: %w", subject(ca), bounded(err))
	} else if l.hash() == 0 {
		// All of a list is much to keep. Another key can not have made the same Ed25519 signature: it is part of what is
		// hashed. With ECDSA and RSA a key can be made to fit, so there every key is judged by itself.
		l.message = nil
	}
	l.remember(judgement{ca, err})
	return err
}

// known is what was found about ca's key before.
func (l *CRL) known(ca *x509.Certificate) (err error, known bool) {
	if list := l.judged.Load(); list != nil {
		for _, j := range *list {
			if bytes.Equal(j.ca.RawSubjectPublicKeyInfo, ca.RawSubjectPublicKeyInfo) {
				return j.err, true
			}
		}
	}
	return nil, false
}

// remember needs mu. Signers have places of their own, so that keys that are none can not take them.
func (l *CRL) remember(j judgement) {
	var list []judgement
	if old := l.judged.Load(); old != nil {
		list = slices.Clip(*old)
	}
	same := 0
	for _, k := range list {
		if (k.err == nil) == (j.err == nil) {
			same++
		}
	}
	if same < maxSigners {
		list = append(list, j)
		l.judged.Store(&list)
	}
}

// verify checks the signature over what was kept of the list. It needs mu.
func (l *CRL) verify(key crypto.PublicKey) error {
	good, fits := false, false
	switch key := key.(type) {
	case *rsa.PublicKey:
		switch l.algorithm {
		case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA:
			good, fits = rsa.VerifyPKCS1v15(key, l.hash(), l.message, l.signature) == nil, true
		case x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS:
			salted := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
			good, fits = rsa.VerifyPSS(key, l.hash(), l.message, l.signature, salted) == nil, true
		}
	case *ecdsa.PublicKey:
		switch l.algorithm {
		case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
			good, fits = ecdsa.VerifyASN1(key, l.message, l.signature), true
		}
	case ed25519.PublicKey:
		if l.algorithm == x509.PureEd25519 {
			good, fits = l.message != nil && ed25519.Verify(key, l.message, l.signature), true
		}
	}
	switch {
	case !fits:
		return fmt.Errorf("the signature is %v, which is for keys of another kind", l.algorithm)
	case !good:
		return errors.New("the signature is wrong")
	}
	return nil
}

// hash is what the message went through before it was signed; 0 is nothing.
func (l *CRL) hash() crypto.Hash {
	switch l.algorithm {
	case x509.SHA256WithRSA, x509.SHA256WithRSAPSS, x509.ECDSAWithSHA256:
		return crypto.SHA256
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		return crypto.SHA384
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		return crypto.SHA512
	}
	return 0
}

// otherKey reports that the list says it is of another key than ca's. Without key identifiers nothing is said.
func (l *CRL) otherKey(ca *x509.Certificate) bool {
	return len(l.keyID) > 0 && len(ca.SubjectKeyId) > 0 && !bytes.Equal(l.keyID, ca.SubjectKeyId)
}

// signerAmong looks for the signer among anchors of the list's issuer name. Not to be found is an error only where one
// of them ought to be it.
func (l *CRL) signerAmong(anchors []*x509.Certificate) (bool, error) {
	var fail error
	for _, a := range anchors {
		err := l.SignedBy(a)
		if err == nil {
			return true, nil
		}
		if !l.otherKey(a) {
			fail = err
		}
	}
	return false, fail
}
