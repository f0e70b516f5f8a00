package testpki

import (
	"crypto"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"time"
)

// OCSPServer adds the URLs of responders (authorityInfoAccess).
func OCSPServer(urls ...string) Option {
	return func(s *spec) { s.cert.OCSPServer = append(s.cert.OCSPServer, urls...) }
}

// NoCheck adds id-pkix-ocsp-nocheck (RFC 6960 section 4.2.2.2.1).
func NoCheck() Option {
	return ExtraExt(pkix.Extension{Id: []int{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, Value: asn1.NullBytes})
}

// Responder makes the certificate of a delegate that answers for c.
func (c *Cert) Responder(name string, opts ...Option) *Cert {
	c.tb.Helper()
	s := leafSpec(name, x509.ExtKeyUsageOCSPSigning)
	return issue(c.tb, c, s, append([]Option{NoCheck()}, opts...))
}

// OCSPOption makes a response differ from the default.
type OCSPOption func(*ocspSpec)

type ocspSpec struct {
	data   responseData
	single single
	hash   crypto.Hash
	signer *Cert
	as     *Cert // whom the response names as its signer
	byKey  bool
	sha1   bool
	certs  []*Cert
	more   []single
	kind   asn1.ObjectIdentifier
}

// responseData is RFC 6960 section 4.2.1.
type responseData struct {
	Version    int `asn1:"explicit,tag:0,default:0,optional"`
	ID         asn1.RawValue
	ProducedAt time.Time `asn1:"generalized"`
	Responses  []single
	Extensions []pkix.Extension `asn1:"explicit,tag:1,optional,omitempty"`
}

type certID struct {
	Hash      pkix.AlgorithmIdentifier
	Name, Key []byte
	Serial    *big.Int
}

type single struct {
	ID         certID
	Status     asn1.RawValue
	ThisUpdate time.Time        `asn1:"generalized"`
	NextUpdate time.Time        `asn1:"generalized,explicit,tag:0,optional"`
	Extensions []pkix.Extension `asn1:"explicit,tag:1,optional,omitempty"`
}

type basicResponse struct {
	Data      asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
	Certs     []asn1.RawValue `asn1:"explicit,tag:0,optional,omitempty"`
}

type ocspResponse struct {
	Status asn1.Enumerated
	Bytes  struct {
		Kind  asn1.ObjectIdentifier
		Basic []byte
	} `asn1:"explicit,tag:0,optional"`
}

// OCSP makes an OCSP response of c about a certificate, as DER: good, made now, in force since a minute and for an hour,
// signed by c itself.
//
//	root.OCSP(alice, testpki.OCSPRevoked(1), testpki.OCSPBy(root.Responder("r")))
func (c *Cert) OCSP(about *Cert, opts ...OCSPOption) []byte {
	c.tb.Helper()
	now := time.Now().UTC()
	s := &ocspSpec{hash: crypto.SHA1, signer: c, kind: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}, data: responseData{ProducedAt: now},
		single: single{ID: certID{Serial: about.Cert.SerialNumber}, Status: asn1.RawValue{FullBytes: []byte{0x80, 0}},
			ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour)}}
	for _, o := range opts {
		o(s)
	}
	id := map[crypto.Hash]asn1.ObjectIdentifier{crypto.SHA1: {1, 3, 14, 3, 2, 26}, crypto.SHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1},
		crypto.SHA384: {2, 16, 840, 1, 101, 3, 4, 2, 2}}[s.hash]
	hash := func(b []byte) []byte {
		h := s.hash.New()
		h.Write(b)
		return h.Sum(nil)
	}
	s.single.ID.Hash = pkix.AlgorithmIdentifier{Algorithm: id, Parameters: asn1.NullRawValue}
	if s.single.ID.Name == nil {
		s.single.ID.Name = hash(c.Cert.RawSubject)
	}
	if s.single.ID.Key == nil {
		s.single.ID.Key = hash(keyBits(c))
	}
	if s.as == nil {
		s.as = s.signer
	}
	if s.data.ID.FullBytes == nil {
		s.data.ID.FullBytes = wrapLong(0xa1, s.as.Cert.RawSubject)
		if s.byKey {
			sum := sha1.Sum(keyBits(s.as))
			s.data.ID.FullBytes = wrap(0xa2, wrap(4, sum[:]))
		}
	}
	s.data.Responses = append(s.more, s.single)
	alg := algorithm(s.signer.Key, s.sha1)
	var sealed signed
	must(asn1.Unmarshal(seal(c.tb, must(asn1.Marshal(s.data))(c.tb), s.signer.Key, alg), &sealed))(c.tb)
	basic := basicResponse{Data: sealed.TBS, Algorithm: sealed.Algorithm, Signature: sealed.Signature}
	for _, e := range s.certs {
		basic.Certs = append(basic.Certs, asn1.RawValue{FullBytes: e.DER()})
	}
	var out ocspResponse
	out.Bytes.Kind, out.Bytes.Basic = s.kind, must(asn1.Marshal(basic))(c.tb)
	return must(asn1.Marshal(out))(c.tb)
}

func keyBits(c *Cert) []byte {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	must(asn1.Unmarshal(c.Cert.RawSubjectPublicKeyInfo, &info))(c.tb)
	return info.Key.Bytes
}

func wrapLong(tag byte, body []byte) []byte {
	if len(body) < 128 {
		return wrap(tag, body)
	}
	return append([]byte{tag, 0x82, byte(len(body) >> 8), byte(len(body))}, body...)
}

// OCSPError is a response without an answer: 1 malformedRequest, 3 tryLater, 6 unauthorized.
func OCSPError(status byte) []byte { return []byte{0x30, 3, 10, 1, status} }

// OCSPRevoked makes the status revoked since an hour, for a CRLReason; a negative one is left out.
func OCSPRevoked(code int) OCSPOption {
	return func(s *ocspSpec) {
		body := append([]byte{0x18, 15}, time.Now().UTC().Add(-time.Hour).Format("20060102150405Z")...)
		if code >= 0 {
			body = append(body, 0xa0, 3, 10, 1, byte(code))
		}
		s.single.Status = asn1.RawValue{FullBytes: wrap(0xa1, body)}
	}
}

// OCSPUnknown makes the status unknown.
func OCSPUnknown() OCSPOption {
	return func(s *ocspSpec) { s.single.Status = asn1.RawValue{FullBytes: []byte{0x82, 0}} }
}

// OCSPThis sets thisUpdate, and producedAt with it.
func OCSPThis(t time.Time) OCSPOption {
	return func(s *ocspSpec) { s.single.ThisUpdate, s.data.ProducedAt = t.UTC(), t.UTC() }
}

// OCSPNext sets nextUpdate; the zero time leaves it out.
func OCSPNext(t time.Time) OCSPOption {
	return func(s *ocspSpec) {
		if s.single.NextUpdate = t; !t.IsZero() {
			s.single.NextUpdate = t.UTC()
		}
	}
}

// OCSPProduced sets producedAt.
func OCSPProduced(t time.Time) OCSPOption { return func(s *ocspSpec) { s.data.ProducedAt = t.UTC() } }

// OCSPBy lets a delegate sign, and embeds its certificate.
func OCSPBy(delegate *Cert) OCSPOption {
	return func(s *ocspSpec) { s.signer, s.certs = delegate, append(s.certs, delegate) }
}

// OCSPKeyOf lets another sign, under the name of who would have signed.
func OCSPKeyOf(other *Cert) OCSPOption {
	return func(s *ocspSpec) { s.as, s.signer = s.signer, other }
}

// OCSPEmbed adds certificates.
func OCSPEmbed(certs ...*Cert) OCSPOption {
	return func(s *ocspSpec) { s.certs = append(s.certs, certs...) }
}

// OCSPNoCerts embeds nothing.
func OCSPNoCerts() OCSPOption { return func(s *ocspSpec) { s.certs = nil } }

// OCSPByKey names the responder by its key.
func OCSPByKey() OCSPOption { return func(s *ocspSpec) { s.byKey = true } }

// OCSPAs names another responder than the one that signs.
func OCSPAs(other *Cert) OCSPOption { return func(s *ocspSpec) { s.as = other } }

// OCSPSHA1 signs with SHA-1.
func OCSPSHA1() OCSPOption { return func(s *ocspSpec) { s.sha1 = true } }

// OCSPHash names the certificate by another hash than SHA-1.
func OCSPHash(h crypto.Hash) OCSPOption { return func(s *ocspSpec) { s.hash = h } }

// OCSPIssuerHash replaces the hashes of the issuer's name and key; nil leaves one as it is.
func OCSPIssuerHash(name, key []byte) OCSPOption {
	return func(s *ocspSpec) { s.single.ID.Name, s.single.ID.Key = name, key }
}

// OCSPNonce repeats a nonce (RFC 9654).
func OCSPNonce(nonce []byte) OCSPOption {
	return OCSPExt(pkix.Extension{Id: []int{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}, Value: wrap(4, nonce)})
}

// OCSPExt adds extensions to the response.
func OCSPExt(ext ...pkix.Extension) OCSPOption {
	return func(s *ocspSpec) { s.data.Extensions = append(s.data.Extensions, ext...) }
}

// OCSPSingleExt adds extensions to the answer.
func OCSPSingleExt(ext ...pkix.Extension) OCSPOption {
	return func(s *ocspSpec) { s.single.Extensions = append(s.single.Extensions, ext...) }
}

// OCSPAlso puts a good answer about another certificate of another CA before the one that was asked for.
func OCSPAlso(ca, about *Cert) OCSPOption {
	return func(s *ocspSpec) {
		name, key := sha1.Sum(ca.Cert.RawSubject), sha1.Sum(keyBits(ca))
		s.more = append(s.more, single{ID: certID{Hash: pkix.AlgorithmIdentifier{Algorithm: []int{1, 3, 14, 3, 2, 26}, Parameters: asn1.NullRawValue},
			Name: name[:], Key: key[:], Serial: about.Cert.SerialNumber}, Status: asn1.RawValue{FullBytes: []byte{0x80, 0}},
			ThisUpdate: s.single.ThisUpdate, NextUpdate: s.single.NextUpdate})
	}
}

// OCSPKind replaces the response type.
func OCSPKind(id ...int) OCSPOption { return func(s *ocspSpec) { s.kind = id } }
