package trust

import (
	"crypto/x509"
	"encoding/asn1"
	"slices"
	"time"
)

// Belief is what an acceptance found out about a client's certificates that no list, no answer and no other set of CAs can
// change: chains whose signatures are right. An open connection keeps it, so that a change of what is trusted asks every
// connection for what it depends on, the certificates of its chains, in place of checking all signatures again. It is no
// acceptance. The zero Belief knows nothing.
type Belief struct{ of *believed }

// Belief is zero for a refusal. It keeps no store alive.
func (v *Verdict) Belief() Belief { return Belief{v.believed} }

// VerifyAgain is Verify for certificates of which something is known: the chains that this store would find too are judged
// first, and only where they do not suffice are others looked for. It says what Verify says; where several chains are good,
// it may name another one of them.
func (s *Store) VerifyAgain(presented []*x509.Certificate, was Belief, now time.Time) Verdict {
	if was.of != nil && s != nil && s.pool != nil && s.admit(presented, now) == nil {
		if b, all := s.still(was.of, presented[0], now); b != nil {
			v := s.among(b, presented[0], Verdict{}, now)
			if v.Accepted {
				v.believed = was.of // with the chains whose anchor may come back
			}
			if v.Accepted || all {
				return v
			}
		}
	}
	return s.verify(presented, x509.ExtKeyUsageClientAuth, "", was.of, now)
}

// still returns those chains of leaf in b that s would find at now, and whether these are all; nil for none.
func (s *Store) still(b *believed, leaf *x509.Certificate, now time.Time) (_ *believed, all bool) {
	switch {
	case !b.chains[0][0].Equal(leaf):
		return nil, false
	case b.basis == s.basis && b.covers(now):
		return b, true
	}
	p, f := s.leaf(leaf, x509.ExtKeyUsageClientAuth, now)
	if f != nil || p.use != b.purpose.use || !slices.EqualFunc(p.oids, b.purpose.oids, asn1.ObjectIdentifier.Equal) {
		return nil, false
	}
	var chains [][]*x509.Certificate
	for _, chain := range b.chains {
		if s.anchored(chain) && !slices.ContainsFunc(chain[1:], func(c *x509.Certificate) bool { return now.Before(c.NotBefore) || now.After(c.NotAfter) }) {
			chains = append(chains, chain)
		}
	}
	if chains == nil {
		return nil, false
	}
	return &believed{chains: chains, purpose: p}, false
}

// signed reports whether b holds that ca has signed child.
func (b *believed) signed(child, ca *x509.Certificate) bool {
	return b != nil && slices.ContainsFunc(b.chains, func(chain []*x509.Certificate) bool {
		i := slices.IndexFunc(chain, ca.Equal)
		return i > 0 && chain[i-1].Equal(child)
	})
}

// anchored reports whether a chain ends in a CA that s trusts.
func (s *Store) anchored(chain []*x509.Certificate) bool {
	top := chain[len(chain)-1]
	return slices.ContainsFunc(s.bySubject[string(top.RawSubject)], top.Equal)
}
