package testpki

import (
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// CRLItem is what a revocation list is made of: the certificates it revokes, and options.
type CRLItem interface{ list(*crlSpec) }

type crlSpec struct {
	tb      testing.TB
	tbs     tbsCertList
	revoked []byte // entries, DER
	number  *big.Int
	aki     bool
	sha1    bool
	signer  *Cert
}

// tbsCertList is RFC 5280 section 5.1.2.
type tbsCertList struct {
	Version    int `asn1:"optional,default:0"`
	Signature  pkix.AlgorithmIdentifier
	Issuer     asn1.RawValue
	ThisUpdate time.Time
	NextUpdate time.Time        `asn1:"optional"`
	Revoked    asn1.RawValue    `asn1:"optional"`
	Extensions []pkix.Extension `asn1:"tag:0,optional,explicit"`
}

// CRL makes a revocation list of c, as DER: number 1, a minute old, good for a day.
//
//	root.CRL(alice, testpki.Number(2), testpki.NextUpdate(t))
func (c *Cert) CRL(items ...CRLItem) []byte {
	c.tb.Helper()
	now := time.Now()
	s := &crlSpec{tb: c.tb, number: big.NewInt(1), aki: true, signer: c, tbs: tbsCertList{
		Version:    1,
		Issuer:     asn1.RawValue{FullBytes: c.Cert.RawSubject},
		ThisUpdate: now.Add(-time.Minute).UTC(),
		NextUpdate: now.Add(24 * time.Hour).UTC(),
	}}
	for _, item := range items {
		item.list(s)
	}
	if s.aki && len(s.signer.Cert.SubjectKeyId) > 0 {
		id := struct {
			ID []byte `asn1:"tag:0"`
		}{s.signer.Cert.SubjectKeyId}
		s.ext(pkix.Extension{Id: []int{2, 5, 29, 35}, Value: must(asn1.Marshal(id))(c.tb)})
	}
	if s.number != nil {
		s.ext(pkix.Extension{Id: []int{2, 5, 29, 20}, Value: must(asn1.Marshal(s.number))(c.tb)})
	}
	if s.revoked != nil {
		s.tbs.Revoked = asn1.RawValue{FullBytes: wrap(0x30, s.revoked)}
	}
	alg := algorithm(s.signer.Key, s.sha1)
	s.tbs.Signature = alg.id
	return seal(c.tb, must(asn1.Marshal(s.tbs))(c.tb), s.signer.Key, alg)
}

func (s *crlSpec) ext(e ...pkix.Extension) { s.tbs.Extensions = append(s.tbs.Extensions, e...) }

func (s *crlSpec) revoke(serial *big.Int, ext ...pkix.Extension) {
	entry := pkix.RevokedCertificate{SerialNumber: serial, RevocationTime: s.tbs.ThisUpdate, Extensions: ext}
	s.revoked = append(s.revoked, must(asn1.Marshal(entry))(s.tb)...)
}

// list makes a certificate an item: it is revoked, without a reason.
func (c *Cert) list(s *crlSpec) { s.revoke(c.Cert.SerialNumber) }

type crlFunc func(*crlSpec)

func (f crlFunc) list(s *crlSpec) { f(s) }

// Entry revokes a serial number with entry extensions.
func Entry(serial *big.Int, ext ...pkix.Extension) CRLItem {
	return crlFunc(func(s *crlSpec) { s.revoke(serial, ext...) })
}

// ReasonCode is the entry extension of RFC 5280 section 5.3.1: 1 keyCompromise, 6 certificateHold, 8 removeFromCRL.
func ReasonCode(code int) pkix.Extension {
	return pkix.Extension{Id: []int{2, 5, 29, 21}, Value: []byte{10, 1, byte(code)}}
}

// RawEntries adds entries in DER as they are.
func RawEntries(der []byte) CRLItem {
	return crlFunc(func(s *crlSpec) { s.revoked = append(s.revoked, der...) })
}

// Many revokes n serial numbers of 16 octets, NthSerial(0) to NthSerial(n-1), each with a reason: 49 bytes an entry, made
// fast.
func Many(n int) CRLItem {
	return crlFunc(func(s *crlSpec) {
		s.revoked = slices.Grow(s.revoked, 49*n)
		for i := range n {
			s.revoked = append(s.revoked, 0x30, 47, 2, 16)
			s.revoked = append(s.revoked, nthSerial(i)...)
			s.revoked = append(s.revoked, "\x17\x0d261120123456Z\x30\x0c\x30\x0a\x06\x03\x55\x1d\x15\x04\x03\x0a\x01\x01"...)
		}
	})
}

// NthSerial is a serial number as random as those of public CAs, always the same for the same i.
func NthSerial(i int) *big.Int { return new(big.Int).SetBytes(nthSerial(i)) }

func nthSerial(i int) []byte {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
	sum[0] = sum[0]&0x3f | 0x40
	return sum[:16]
}

// ThisUpdate sets the list's date.
func ThisUpdate(t time.Time) CRLItem { return crlFunc(func(s *crlSpec) { s.tbs.ThisUpdate = t.UTC() }) }

// NextUpdate sets when the next list is due; the zero time leaves it out.
func NextUpdate(t time.Time) CRLItem {
	return crlFunc(func(s *crlSpec) {
		if s.tbs.NextUpdate = t; !t.IsZero() {
			s.tbs.NextUpdate = t.UTC()
		}
	})
}

// Number sets the list's number.
func Number(n int64) CRLItem { return crlFunc(func(s *crlSpec) { s.number = big.NewInt(n) }) }

// NoNumber leaves the number out.
func NoNumber() CRLItem { return crlFunc(func(s *crlSpec) { s.number = nil }) }

// NoAKI leaves the authority key identifier out.
func NoAKI() CRLItem { return crlFunc(func(s *crlSpec) { s.aki = false }) }

// CRLExt adds extensions to the list.
func CRLExt(ext ...pkix.Extension) CRLItem { return crlFunc(func(s *crlSpec) { s.ext(ext...) }) }

// SignedBy lets another CA sign the list while it still names the first as its issuer.
func SignedBy(other *Cert) CRLItem { return crlFunc(func(s *crlSpec) { s.signer = other }) }

// IssuerName lets the list name another issuer while the key stays.
func IssuerName(rawSubject []byte) CRLItem {
	return crlFunc(func(s *crlSpec) { s.tbs.Issuer = asn1.RawValue{FullBytes: rawSubject} })
}

// CRLSHA1 signs the list with SHA-1.
func CRLSHA1() CRLItem { return crlFunc(func(s *crlSpec) { s.sha1 = true }) }

// IDP is an issuingDistributionPoint extension (RFC 5280 section 5.2.5) of a distribution point URL ("" for none) and
// flags by context tag: 1 onlyContainsUserCerts, 2 onlyContainsCACerts, 4 indirectCRL, 5 onlyContainsAttributeCerts.
func IDP(url string, flags ...int) pkix.Extension {
	var body []byte
	if url != "" {
		body = FullName(URIName(url))
	}
	for _, tag := range flags {
		body = append(body, 0x80|byte(tag), 1, 0xff)
	}
	return RawIDP(body)
}

// RawIDP is an issuingDistributionPoint extension with any content.
func RawIDP(body []byte) pkix.Extension {
	return pkix.Extension{Id: []int{2, 5, 29, 28}, Critical: true, Value: wrap(0x30, body)}
}

// FullName is the distributionPoint field, of an issuingDistributionPoint or of a DistributionPoint, with GeneralNames.
func FullName(names ...[]byte) []byte { return wrap(0xa0, wrap(0xa0, slices.Concat(names...))) }

// RelativeName is the distributionPoint field with a name relative to the CRL issuer.
func RelativeName() []byte {
	return wrap(0xa0, wrap(0xa1, wrap(0x30, []byte{6, 3, 0x55, 4, 3, 12, 1, 'x'})))
}

// URIName is a GeneralName.
func URIName(url string) []byte { return wrap(0x86, []byte(url)) }

// DirectoryName is a GeneralName with a name in DER.
func DirectoryName(raw []byte) []byte { return wrap(0xa4, raw) }

// Points is a cRLDistributionPoints extension of a certificate; each point is the content of a DistributionPoint.
func Points(points ...[]byte) Option {
	var body []byte
	for _, p := range points {
		body = append(body, wrap(0x30, p)...)
	}
	return ExtraExt(pkix.Extension{Id: []int{2, 5, 29, 31}, Value: wrap(0x30, body)})
}

// Delta makes it a delta list on the full list of number base (RFC 5280 section 5.2.4).
func Delta(base int64) CRLItem {
	return crlFunc(func(s *crlSpec) {
		s.ext(pkix.Extension{Id: []int{2, 5, 29, 27}, Critical: true, Value: must(asn1.Marshal(big.NewInt(base)))(s.tb)})
	})
}

// DeltaIndicator is a deltaCRLIndicator extension on number 1, which with the default number 1 makes no sense.
func DeltaIndicator() pkix.Extension {
	return pkix.Extension{Id: []int{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}
}

func wrap(tag byte, body []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.Tag(tag), func(b *cryptobyte.Builder) { b.AddBytes(body) })
	return b.BytesOrPanic()
}

// Items makes one item of several.
func Items(items ...CRLItem) CRLItem {
	return crlFunc(func(s *crlSpec) {
		for _, item := range items {
			item.list(s)
		}
	})
}
