package trust

import (
	"crypto/x509"
	"slices"
	"time"

	"countersign/internal/reason"
)

// maxTried bounds the chains that a refusal tells of, and maxEvidence what it rests on.
const (
	maxTried    = 8
	maxEvidence = 16
)

// Tried is a chain that was tried and refused.
type Tried struct {
	// Chain is leaf first. Anchored says that its last certificate is a CA of the trust store.
	Chain    []*x509.Certificate
	Anchored bool
	// Rule is why it was refused, and Depth the place of the certificate at fault; Unset for a rule that only crypto/x509
	// knows.
	Rule  reason.Reason
	Depth int
	// Expected and Found are short, and safe to print.
	Expected, Found string
}

func add(tried []Tried, chain []*x509.Certificate, f *fault, depth int, anchored bool) []Tried {
	if len(tried) >= maxTried {
		return tried
	}
	t := Tried{Chain: slices.Clone(chain), Anchored: anchored, Depth: depth}
	if f != nil {
		t.Rule, t.Expected, t.Found = f.rule, f.expected, f.found
	}
	return append(tried, t)
}

// Kinds of evidence.
const (
	EvidenceCRL  = "crl"
	EvidenceOCSP = "ocsp"
)

// Evidence is a revocation list or an answer of a responder that counts for a certificate of a chain.
type Evidence struct {
	// Kind is one of the Evidence constants.
	Kind string
	// Depth is the certificate's place in the chain.
	Depth int
	// Source is the list as CRL.String names it, or the responder's URL; both safe to print.
	Source string
	// Number is the list's number, or empty.
	Number string
	// Status is what a responder says: good, revoked or unknown; none where there is no answer.
	Status string
	// ThisUpdate is when it was made, NextUpdate when the next one is due; zero for unknown.
	ThisUpdate, NextUpdate time.Time
}

// Evidence returns the revocation lists and answers that count for chain at now. It decides nothing, and is for whoever tells
// of a refusal; Verify has asked the same ones.
func (s *Store) Evidence(chain []*x509.Certificate, now time.Time) (all []Evidence) {
	if s == nil {
		return nil
	}
	for d := 0; d+1 < len(chain) && len(all) < maxEvidence; d++ {
		c, ca := chain[d], chain[d+1]
		of := s.lists[string(ca.RawSubject)]
		for i := range of {
			base, delta, early := of[i].inForce(c, ca, s.rules(ca).Stale, now)
			for _, l := range []*CRL{base, delta, early} {
				if l == nil || len(all) >= maxEvidence {
					continue
				}
				e := Evidence{Kind: EvidenceCRL, Depth: d, Source: l.String(), ThisUpdate: l.thisUpdate, NextUpdate: l.nextUpdate}
				if l.number != nil {
					e.Number = escape(l.number.String(), maxQuoted)
				}
				all = append(all, e)
			}
		}
		o := &s.opts.OCSP
		if o.Mode == OCSPOff || d > 0 && !o.Chain {
			continue
		}
		if responder := o.responder(c); responder != "" && len(all) < maxEvidence {
			e := Evidence{Kind: EvidenceOCSP, Depth: d, Source: escape(responder, maxQuoted), Status: "none"}
			if a := o.Answers.entry(o.key(c, ca, responder)); a != nil {
				e.Status, e.ThisUpdate, e.NextUpdate = a.Status.String(), a.ThisUpdate, a.NextUpdate
			}
			all = append(all, e)
		}
	}
	return all
}
