package trust

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"countersign/internal/reason"
)

var oidCRLPoints = asn1.ObjectIdentifier{2, 5, 29, 31}

// part says which of the issuer's certificates a list is about (RFC 5280 section 5.2.5). The zero part is all of them. A
// list of a part says nothing about other certificates, so it must not count as a list for those.
type part struct {
	// points are the distribution point's names, each a GeneralName in DER, sorted: the list covers only certificates
	// that name one of them. nil: all.
	points []string
	// users and cas are onlyContainsUserCerts and onlyContainsCACerts.
	users, cas bool
}

// GeneralNames that points have.
const (
	tagDirectoryName = cbasn1.Tag(4) | 0x80 | 0x20
	tagURI           = cbasn1.Tag(6) | 0x80
)

// key is the same for lists of the same part and for no others.
func (p *part) key() string { return fmt.Sprintf("%q %t %t", p.points, p.users, p.cas) }

// readPart reads issuingDistributionPoint.
func readPart(in cryptobyte.String) (p part, err error) {
	const unsupported = ", which is not supported by this version; use a list of all certificates of the CA"
	bad := errors.New("malformed issuingDistributionPoint")
	var fields cryptobyte.String
	if !in.ReadASN1(&fields, cbasn1.SEQUENCE) || !in.Empty() {
		return p, bad
	}
	for last := -1; !fields.Empty(); {
		var body cryptobyte.String
		var tag cbasn1.Tag
		if !fields.ReadAnyASN1(&body, &tag) || int(tag&0x1f) <= last || tag&0xc0 != 0x80 {
			return p, bad
		}
		last = int(tag & 0x1f)
		if last == 0 {
			if p.points, err = readPoint(body, tag); err != nil {
				return p, fmt.Errorf("its issuingDistributionPoint %w%s", err, unsupported)
			}
			continue
		}
		flags := []string{1: "onlyContainsUserCerts", 2: "onlyContainsCACerts", 3: "onlySomeReasons", 4: "indirectCRL", 5: "onlyContainsAttributeCerts"}
		switch {
		case last >= len(flags):
			return p, bad
		case last == 3:
			return p, errors.New("its issuingDistributionPoint says " + flags[last] + unsupported)
		case tag&0x20 != 0 || len(body) != 1 || body[0] != 0 && body[0] != 0xff:
			return p, bad
		case body[0] == 0: // FALSE written out: not DER, but clear
		case last == 1:
			p.users = true
		case last == 2:
			p.cas = true
		default:
			return p, errors.New("its issuingDistributionPoint says " + flags[last] + unsupported)
		}
	}
	if p.users && p.cas {
		return p, errors.New("its issuingDistributionPoint says onlyContainsUserCerts and onlyContainsCACerts, which leaves no certificates")
	}
	return p, nil
}

// readPoint reads the names of a DistributionPointName. One that is not understood is left out: it could only make the
// list cover more.
func readPoint(body cryptobyte.String, tag cbasn1.Tag) (names []string, err error) {
	var full cryptobyte.String
	switch {
	case tag&0x20 == 0:
		return nil, errors.New("is malformed")
	case body.PeekASN1Tag(cbasn1.Tag(1).ContextSpecific().Constructed()):
		return nil, errors.New("has a name relative to the issuer")
	case !body.ReadASN1(&full, cbasn1.Tag(0).ContextSpecific().Constructed()) || !body.Empty():
		return nil, errors.New("is malformed")
	}
	for !full.Empty() {
		var name cryptobyte.String
		var kind cbasn1.Tag
		if !full.ReadAnyASN1Element(&name, &kind) {
			return nil, errors.New("is malformed")
		}
		if kind == tagURI || kind == tagDirectoryName {
			names = append(names, string(name))
		}
	}
	if names == nil {
		return nil, errors.New("has neither a URI nor a directory name")
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// covers reports whether a list of this part would name c if c was revoked (RFC 5280 section 6.3.3 (b)(2)).
func (p *part) covers(c *x509.Certificate) bool {
	if p.users && c.IsCA || p.cas && !c.IsCA {
		return false
	}
	return p.points == nil || p.ofIssuer(c) || p.named(c)
}

// ofIssuer reports whether the list's point is the issuer itself, which every certificate names in silence (RFC 5280
// section 6.3.3, last paragraph).
func (p *part) ofIssuer(c *x509.Certificate) bool {
	return slices.ContainsFunc(p.points, func(n string) bool {
		name := cryptobyte.String(n)
		return name.ReadASN1(&name, tagDirectoryName) && string(name) == string(c.RawIssuer)
	})
}

// named reports whether one of c's cRLDistributionPoints is p. A point with reasons promises a list of these reasons
// only, and one with a cRLIssuer a list of another issuer, so they do not count; crypto/x509 does not tell them apart.
func (p *part) named(c *x509.Certificate) bool {
	i := slices.IndexFunc(c.Extensions, func(x pkix.Extension) bool { return x.Id.Equal(oidCRLPoints) })
	if i < 0 {
		return false
	}
	in := cryptobyte.String(c.Extensions[i].Value)
	var points, point, body, name cryptobyte.String
	if !in.ReadASN1(&points, cbasn1.SEQUENCE) {
		return false
	}
	for points.ReadASN1(&point, cbasn1.SEQUENCE) {
		if !point.ReadASN1(&body, cbasn1.Tag(0).ContextSpecific().Constructed()) || !point.Empty() ||
			!body.ReadASN1(&body, cbasn1.Tag(0).ContextSpecific().Constructed()) {
			continue
		}
		var kind cbasn1.Tag
		for body.ReadAnyASN1Element(&name, &kind) {
			if slices.Contains(p.points, string(name)) {
				return true
			}
		}
	}
	return false
}

// series are the lists of one issuer name and one part, newest first. A newer list replaces an older one; a delta
// changes a full list.
type series struct {
	part         part
	full, deltas []*CRL
}

// newSeries sorts the lists of a store by issuer. The warnings are about deltas that no full list can be found for.
func newSeries(crls []*CRL) (byIssuer map[string][]series, warnings []string) {
	byIssuer = make(map[string][]series)
	at := make(map[string]int)
	for _, l := range crls {
		key := l.part.key() + l.issuer
		i, known := at[key]
		if !known {
			i = len(byIssuer[l.issuer])
			at[key] = i
			byIssuer[l.issuer] = append(byIssuer[l.issuer], series{part: l.part})
		}
		if r := &byIssuer[l.issuer][i]; l.Delta() {
			r.deltas = append(r.deltas, l)
		} else {
			r.full = append(r.full, l)
		}
	}
	newer := func(a, b *CRL) int { return b.Compare(a) }
	for _, of := range byIssuer {
		for _, r := range of {
			slices.SortStableFunc(r.full, newer)
			slices.SortStableFunc(r.deltas, newer)
		}
	}
	for i, l := range crls {
		if !l.Delta() {
			continue
		}
		r := byIssuer[l.issuer][at[l.part.key()+l.issuer]]
		if !slices.ContainsFunc(r.full, func(base *CRL) bool {
			// One that is newer than the delta has made it superfluous, which is nothing to warn of.
			return l.appliesTo(base) || base.number != nil && base.number.Cmp(l.number) >= 0
		}) {
			warnings = append(warnings, fmt.Sprintf("revocation list %d, %s, has no effect: there is no full list of the same issuer, key and issuingDistributionPoint with a number from %v to below %v", i+1, l, l.base, l.number))
		}
	}
	return byIssuer, warnings
}

// inForce returns what tells whether c is revoked: the newest full list that its issuer ca signed, and the newest delta
// for that; either can be nil. A list from the future is not in force; early is the last that was met.
func (r *series) inForce(c, ca *x509.Certificate, stale StalePolicy, now time.Time) (base, delta, early *CRL) {
	if !r.part.covers(c) {
		return nil, nil, nil
	}
	usable := func(l *CRL) bool {
		if l.SignedBy(ca) != nil {
			return false
		}
		if l.thisUpdate.After(now.Add(clockSkew)) && stale != StaleIgnore {
			early = l
			return false
		}
		return true
	}
	for _, l := range r.full {
		if usable(l) {
			base = l
			break
		}
	}
	if base == nil {
		return nil, nil, early
	}
	for _, l := range r.deltas {
		if l.appliesTo(base) && usable(l) {
			return base, l, early
		}
	}
	return base, nil, early
}

// revocation asks the lists about every certificate but the anchor. Revoked is told before stale or missing: that will
// not change with a new list.
func (s *Store) revocation(chain []*x509.Certificate, now time.Time) (*fault, int) {
	var worst *fault
	depth := 0
	for d := len(chain) - 2; d >= 0; d-- {
		missing := s.rules(chain[d+1]).Missing
		required := missing == MissingChain || missing == MissingLeaf && d == 0
		if f := s.listed(chain[d], chain[d+1], required, d == 0, now); f != nil && (worst == nil || weight(f.rule) > weight(worst.rule)) {
			worst, depth = f, d
		}
	}
	return worst, depth
}

// listed judges c by the lists that its issuer ca signed. The issuer is this very key under this very name: not another
// CA of the same name, nor another name of the same key (threats C02, B19).
//
// Of each part the newest list in force counts; it may have released a hold (threats C08). Where a delta applies, the
// two are one list as new as the delta, whose dates then count alone: RFC 5280 section 6.3.3 (a) lets a delta in force
// carry a base that is past its nextUpdate, and a delta that is past its own says that its issuer has said more since.
func (s *Store) listed(c, ca *x509.Certificate, required, leaf bool, now time.Time) *fault {
	var stale, early *fault
	found := false
	rules := s.rules(ca)
	of := s.lists[string(ca.RawSubject)]
	for i := range of {
		base, delta, future := of[i].inForce(c, ca, rules.Stale, now)
		if future != nil {
			early = &fault{rule: reason.CRLStale, expected: "a list that is in force at " + stamp(now), found: "list " + future.String()}
		}
		if base == nil {
			continue
		}
		found = true
		newest, by := base, base
		r, revoked := base.entries.find(c.SerialNumber)
		if delta != nil {
			newest = delta
			if change, changed := delta.entries.find(c.SerialNumber); changed {
				r, revoked, by = change, change.reason != removeFromCRL, delta
			}
		}
		if revoked {
			f := &fault{rule: reason.ClientIssuerRevoked, expected: "a serial number that is not on " + by.String(),
				found: fmt.Sprintf("%s, revoked %s (%s)", subject(c), stamp(time.Unix(r.at-yearOne, 0)), code(r.reason))}
			if leaf {
				f.rule = reason.ClientCertRevoked
			}
			return f
		}
		due := newest.nextUpdate
		if rules.Stale == StaleGrace {
			due = due.Add(rules.Grace)
		}
		if now.After(due) && rules.Stale != StaleIgnore {
			stale = &fault{rule: reason.CRLStale, expected: "a list that is in force at " + stamp(now),
				found: fmt.Sprintf("list %s, nextUpdate %s", newest, stamp(newest.nextUpdate))}
		}
	}
	switch {
	case stale != nil:
		return stale
	case found:
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

// GoodUntil is when an acceptance of this store has to be looked at again: when the next certificate of its chain expires,
// the next of the lists that were asked goes stale or is followed by one that waits, an answer of a responder is due, or a
// leniency ends. It counts from the time of the verdict, and may be over by now. Zero means never.
func (s *Store) GoodUntil(v *Verdict) time.Time { return s.goodUntil(v.Chain, v.When) }

func (s *Store) goodUntil(chain []*x509.Certificate, now time.Time) (until time.Time) {
	sooner := func(t time.Time) {
		if !t.Before(now) && (until.IsZero() || t.Before(until)) {
			until = t
		}
	}
	if s.opts.EKU == EKUAllowServerAuth {
		sooner(s.opts.EKUUntil)
	}
	for i, c := range chain {
		sooner(c.NotAfter)
		if i+1 == len(chain) {
			break
		}
		ca := chain[i+1]
		sooner(s.opts.OCSP.goodUntil(c, ca, i == 0, now))
		rules := s.rules(ca)
		if !s.opts.CheckRevocation || rules.Stale == StaleIgnore {
			continue
		}
		of := s.lists[string(ca.RawSubject)]
		for j := range of {
			base, delta, early := of[j].inForce(c, ca, rules.Stale, now)
			if early != nil {
				sooner(early.thisUpdate.Add(-clockSkew))
			}
			if delta != nil {
				base = delta
			}
			if base != nil {
				sooner(base.nextUpdate)
				if rules.Stale == StaleGrace {
					sooner(base.nextUpdate.Add(rules.Grace))
				}
			}
		}
	}
	return until
}
