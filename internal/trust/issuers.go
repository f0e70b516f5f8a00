package trust

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"slices"
)

// issuers are what a believed leaf was sent with and what is above that, for the next leaf of the same CA: what signed
// them is known. A fleet of clients below one CA so costs one signature for each client that is new.
type issuers struct {
	key   chainKey
	above *believed // chains without their leaves
}

// issuersKey names what a leaf was sent with, the issuer it names, and what it was accepted for: which issuers allow that
// decides which chains there are.
func (s *Store) issuersKey(leaf *x509.Certificate, others []*x509.Certificate, p purpose) (k chainKey) {
	h := sha256.New()
	h.Write(s.basis[:])
	part := func(n uint32, data []byte) {
		var length [4]byte
		binary.BigEndian.PutUint32(length[:], n)
		h.Write(length[:])
		h.Write(data)
	}
	part(1<<32-1, nil) // no certificate is as long, so no key is one of Store.key
	part(uint32(p.use), nil)
	part(uint32(len(p.oids)), nil)
	for _, oid := range p.oids {
		text := oid.String()
		part(uint32(len(text)), []byte(text))
	}
	part(uint32(len(leaf.RawIssuer)), leaf.RawIssuer)
	part(uint32(len(leaf.AuthorityKeyId)), leaf.AuthorityKeyId)
	for _, c := range others {
		part(uint32(len(c.Raw)), c.Raw)
	}
	h.Sum(k[:0])
	return k
}

// above returns what is to be remembered of the issuers in b, which crypto/x509 has built; nil for nothing, as where one
// certificate was sent twice: so any number of sets could be made of a few.
func (s *Store) above(leaf *x509.Certificate, others []*x509.Certificate, b *believed) *issuers {
	known := &believed{from: b.from, until: b.until, size: 512}
	for i, c := range others {
		if c.Equal(leaf) || slices.ContainsFunc(others[:i], c.Equal) {
			return nil
		}
		known.size += 4 * len(c.Raw)
	}
	for _, chain := range b.chains {
		if slices.ContainsFunc(chain, constrains) || stands(leaf, chain[1:]) {
			return nil
		}
		known.chains = append(known.chains, slices.Clone(chain[1:])) // the leaf is not to stay
	}
	return &issuers{s.issuersKey(leaf, others, b.purpose), known}
}

// stands reports whether one of its issuers has the name and the key of a leaf, which could make a loop.
func stands(leaf *x509.Certificate, above []*x509.Certificate) bool {
	return slices.ContainsFunc(above, func(ca *x509.Certificate) bool { return sameCA(leaf, ca) })
}

// below returns the chains of a leaf through issuers that are remembered; nil where crypto/x509 has to look for them, and
// where there are none: then it is it that says why. Of what it would ask (RFC 5280 section 6.1)
//
//   - the signatures, purposes and places of the issuers were right below another leaf, accepted for the same, in the same
//     chains of the same length;
//   - their dates are bounded by the time for which they are remembered;
//   - names and policies are not constrained by any of them, nor by the leaf;
//   - what remains is asked here: the leaf's signature.
func below(known *believed, leaf *x509.Certificate) (chains [][]*x509.Certificate) {
	if known == nil || constrains(leaf) {
		return nil
	}
	var signer *x509.Certificate
	for _, above := range known.chains {
		if stands(leaf, above) {
			return nil
		}
		if above[0] != signer {
			if signer = above[0]; leaf.CheckSignatureFrom(signer) != nil {
				return nil
			}
		}
		chains = append(chains, append(append(make([]*x509.Certificate, 0, 1+len(above)), leaf), above...))
	}
	return chains
}

// constraining are the extensions by which a certificate rules others of its chain: nameConstraints, policyMappings,
// policyConstraints and inhibitAnyPolicy (RFC 5280 sections 4.2.1.5, 4.2.1.10, 4.2.1.11 and 4.2.1.14). basicConstraints and
// extendedKeyUsage do so too, for every leaf alike.
var constraining = []asn1.ObjectIdentifier{{2, 5, 29, 30}, {2, 5, 29, 33}, {2, 5, 29, 36}, {2, 5, 29, 54}}

func constrains(c *x509.Certificate) bool {
	return slices.ContainsFunc(c.Extensions, func(x pkix.Extension) bool { return slices.ContainsFunc(constraining, x.Id.Equal) })
}
