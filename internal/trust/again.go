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

// Belief is the zero Belief for a refusal. A Belief keeps certificates alive, and no store.
func (v *Verdict) Belief() Belief { return Belief{v.believed} }

// VerifyAgain is Verify for certificates of which something is known: chains of theirs that this store would find too are
// judged first, and others are looked for only where these do not suffice. It says what Verify says; where several chains
// are good it may name another one of them, and it finds a chain that Verify misses among more than a hundred CAs of one name.
func (s *Store) VerifyAgain(presented []*x509.Certificate, was Belief, now time.Time) Verdict {
	return s.verify(presented, x509.ExtKeyUsageClientAuth, "", was.of, now)
}

// again judges presented by what is known of it, and reports whether there is no more to say. The certificates were admitted.
func (s *Store) again(was *believed, presented []*x509.Certificate, now time.Time) (v Verdict, sure bool) {
	chains, p := s.still(was, presented, now)
	if chains == nil {
		return Verdict{}, false
	}
	v = s.among(&believed{chains: chains, purpose: p}, presented[0], Verdict{}, now)
	if v.Accepted {
		v.believed = was // with the chains whose anchor may come back
		return v, true
	}
	return v, s.complete(was, presented)
}

// still returns the chains in was that s finds in presented at now, and what for; nil for none. All that chains depend on
// besides their signatures, names and constraints is asked anew.
func (s *Store) still(was *believed, presented []*x509.Certificate, now time.Time) ([][]*x509.Certificate, purpose) {
	if was == nil || !was.chains[0][0].Equal(presented[0]) {
		return nil, purpose{}
	}
	p, f := s.leaf(presented[0], x509.ExtKeyUsageClientAuth, now)
	if f != nil || p.use != was.purpose.use || !slices.EqualFunc(p.oids, was.purpose.oids, asn1.ObjectIdentifier.Equal) {
		return nil, purpose{}
	}
	var chains [][]*x509.Certificate
	for _, chain := range was.chains {
		top := len(chain) - 1
		missing := func(c *x509.Certificate) bool { return !slices.ContainsFunc(presented, c.Equal) }
		undated := func(c *x509.Certificate) bool { return now.Before(c.NotBefore) || now.After(c.NotAfter) }
		if slices.ContainsFunc(s.bySubject[string(chain[top].RawSubject)], chain[top].Equal) &&
			!slices.ContainsFunc(chain[1:top], missing) && !slices.ContainsFunc(chain[1:], undated) {
			chains = append(chains, chain)
		}
	}
	return chains, p
}

// complete reports whether s can find no chain in presented that is not in was: whoever has the name of an issuer there, an
// anchor or another certificate that was presented, stands above it in a chain of was already, as just that.
func (s *Store) complete(was *believed, presented []*x509.Certificate) bool {
	for _, child := range presented {
		stranger := func(anchor bool) func(*x509.Certificate) bool {
			return func(ca *x509.Certificate) bool {
				return string(ca.RawSubject) == string(child.RawIssuer) && !ca.Equal(child) && !was.has(child, ca, anchor)
			}
		}
		if slices.ContainsFunc(s.bySubject[string(child.RawIssuer)], stranger(true)) || slices.ContainsFunc(presented[1:], stranger(false)) {
			return false
		}
	}
	return true
}

// has reports whether b has a chain in which ca stands above child, as the anchor or below it.
func (b *believed) has(child, ca *x509.Certificate, anchor bool) bool {
	return slices.ContainsFunc(b.chains, func(chain []*x509.Certificate) bool {
		i := slices.IndexFunc(chain, ca.Equal)
		return i > 0 && (i == len(chain)-1) == anchor && chain[i-1].Equal(child)
	})
}

// signed reports whether it is known that ca has signed child.
func (b *believed) signed(child, ca *x509.Certificate) bool {
	return b != nil && (b.has(child, ca, true) || b.has(child, ca, false))
}
