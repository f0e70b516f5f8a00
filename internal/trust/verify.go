package trust

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"countersign/internal/reason"
)

// Verify judges the chain a client presented, leaf first, as RFC 5280 section 6 has it and more strictly. The caller
// must not have proof of possession from it: crypto/tls gives that later.
func (s *Store) Verify(presented []*x509.Certificate, now time.Time) Verdict {
	return s.verify(presented, x509.ExtKeyUsageClientAuth, "", nil, now)
}

// VerifyServer judges the chain of a target that is to be dns: a host name or an address.
func (s *Store) VerifyServer(presented []*x509.Certificate, dns string, now time.Time) Verdict {
	v := s.verify(presented, x509.ExtKeyUsageServerAuth, dns, nil, now)
	if !v.Accepted {
		v.Reason = reason.UpstreamCertRefused
	}
	return v
}

// verify judges client or server by use. dns is for servers, was what is known of a client; nil for nothing.
func (s *Store) verify(presented []*x509.Certificate, use x509.ExtKeyUsage, dns string, was *believed, now time.Time) Verdict {
	if s == nil || s.pool == nil {
		return Verdict{Reason: reason.Internal, Rule: reason.Internal, Found: "a trust store that was not made by NewStore"}
	}
	if f := s.admit(presented, now); f != nil {
		return s.refuse(f, nil, 0)
	}
	if v, sure := s.again(was, presented, now); sure {
		return v
	}
	b, v := s.believe(presented, use, dns, was, now)
	if b == nil {
		return v
	}
	return s.among(b, presented[0], v, now)
}

// among judges the chains of leaf in b by all that can change from one moment to the next. v has what Remember needs, if
// anything; an acceptance is noted in it.
func (s *Store) among(b *believed, leaf *x509.Certificate, v Verdict, now time.Time) Verdict {
	if f := s.leafDates(leaf, now); f != nil {
		return s.refuse(f, b.chains[0], 0)
	}
	// One acceptable path is enough (threats B17). Of several refusals the weightiest is told.
	var best Verdict
	var tried []Tried
	for _, chain := range b.chains {
		f, depth, ask := s.path(chain, now)
		if f == nil {
			v.Accepted, v.Chain, v.Store, v.Version, v.When, v.Lenient, v.Ask = true, chain, s.name, s.version, now, b.purpose.lenient, ask
			v.believed = b
			return v
		}
		if best.Reason == reason.Unset || weight(f.rule) > weight(best.Rule) {
			best = s.refuse(f, chain, depth)
			best.Ask = ask
		}
		tried = add(tried, chain, f, depth, true)
	}
	best.Tried = tried
	return best
}

// believe returns every chain from the leaf to an anchor, remembered or built. If there is none, the verdict says why;
// otherwise it holds what Remember needs.
func (s *Store) believe(presented []*x509.Certificate, use x509.ExtKeyUsage, dns string, was *believed, now time.Time) (*believed, Verdict) {
	var v Verdict
	keep := s.opts.Chains != nil && use == x509.ExtKeyUsageClientAuth
	if keep {
		v.key = s.key(presented)
		if b := s.opts.Chains.find(v.key, now); b != nil {
			return b, v
		}
	}
	leaf, tried := presented[0], presented[:1:1]
	p, f := s.leaf(leaf, use, now)
	if f != nil {
		return nil, s.refuse(f, tried, 0)
	}
	if use == x509.ExtKeyUsageServerAuth {
		// An empty name would make crypto/x509 skip the comparison. Its error holds every name of the certificate.
		if dns == "" || leaf.VerifyHostname(dns) != nil {
			return nil, s.refuse(&fault{rule: reason.UpstreamCertRefused, expected: "a certificate for " + quote(dns),
				found: hostNames(leaf)}, tried, 0)
		}
	}
	var chains [][]*x509.Certificate
	if keep {
		chains = below(s.opts.Chains.issuers.find(s.issuersKey(leaf, presented[1:], p), now), leaf)
	}
	anew := chains == nil
	if anew {
		var refused Verdict
		if chains, refused = s.chains(leaf, presented[1:], p, was, now); chains == nil {
			return nil, refused
		}
	}
	b := &believed{chains: chains, purpose: p}
	b.from, b.until = s.lifetime(chains, p.lenient, now)
	if keep && !spare(presented, chains) {
		if anew {
			v.issuers = s.above(leaf, presented[1:], b)
		}
		for _, c := range presented {
			b.size += 4 * len(c.Raw)
		}
		b.size += 6 * len(leaf.Raw) // for Keep: names in print, where each byte can take three, and headers
		v.built = b
	}
	return b, v
}

func (s *Store) refuse(f *fault, chain []*x509.Certificate, depth int) Verdict {
	v := Verdict{Reason: f.rule, Rule: f.rule, Chain: chain, Depth: depth, Expected: f.expected, Found: f.found, Cause: f.cause,
		Store: s.name, Version: s.version}
	if depth < len(chain) {
		v.At = chain[depth]
	}
	return v
}

// admit bounds what is looked at, before anything is.
func (s *Store) admit(presented []*x509.Certificate, now time.Time) *fault {
	switch {
	case len(presented) == 0:
		return &fault{rule: reason.ClientCertMissing, expected: "a certificate", found: "none"}
	case len(presented) > s.opts.MaxPresented:
		return &fault{rule: reason.ClientCertTooMany, expected: fmt.Sprintf("at most %d certificates", s.opts.MaxPresented), found: fmt.Sprint(len(presented))}
	case now.IsZero():
		return &fault{rule: reason.Internal, expected: "the time", found: "none"}
	}
	size := 0
	for _, c := range presented {
		if c == nil || len(c.Raw) == 0 {
			return &fault{rule: reason.ClientCertUnparsable, expected: "parsed certificates", found: "one that was not"}
		}
		size += len(c.Raw)
	}
	if size > maxChainBytes {
		return &fault{rule: reason.ClientCertTooLarge, expected: fmt.Sprintf("at most %d bytes of certificates", maxChainBytes), found: fmt.Sprint(size)}
	}
	return nil
}

// chains builds every chain to an anchor. Signatures, issuers' dates, path lengths, name constraints, policies and the
// nesting of purposes are crypto/x509's work. If there is none, the verdict says why.
//
// The leaf's dates are left out, for two reasons: an expired certificate of a stranger is first of all a stranger's,
// and an expired leaf that is allowed must excuse nothing but itself.
func (s *Store) chains(leaf *x509.Certificate, others []*x509.Certificate, p purpose, was *believed, now time.Time) ([][]*x509.Certificate, Verdict) {
	if !s.reachable(leaf, others) {
		return nil, s.explain(leaf, others, p, was, now, nil)
	}
	inter := x509.NewCertPool()
	for _, c := range others {
		// What cannot stand in a chain must not cost a signature check. explain meets it again.
		if member(c) == nil && issues(c) == nil {
			inter.AddCert(c)
		}
	}
	undated := *leaf
	undated.NotBefore, undated.NotAfter = now, now
	chains, err := undated.Verify(x509.VerifyOptions{
		Roots: s.pool, Intermediates: inter, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{p.use},
	})
	if len(p.oids) > 0 {
		// crypto/x509 nests the purposes that it knows, and was asked for any.
		chains = slices.DeleteFunc(chains, func(chain []*x509.Certificate) bool { return !p.allowed(chain) })
	}
	if err != nil || len(chains) == 0 {
		return nil, s.explain(leaf, others, p, was, now, err)
	}
	for _, chain := range chains {
		chain[0] = leaf
	}
	return chains, Verdict{}
}

// reachable reports whether any certificate names an anchor as its issuer. Where none does there is no chain (RFC 5280
// section 6.1.3 (a) (4)), and crypto/x509 need not check the signatures of a stranger to say so.
func (s *Store) reachable(leaf *x509.Certificate, others []*x509.Certificate) bool {
	named := func(c *x509.Certificate) bool { return s.bySubject[string(c.RawIssuer)] != nil }
	return named(leaf) || slices.ContainsFunc(others, named)
}

func (s *Store) leafDates(c *x509.Certificate, now time.Time) *fault {
	switch {
	case now.Before(c.NotBefore):
		return notYet(c, now)
	case now.After(c.NotAfter) && !s.opts.AllowExpiredLeaf:
		return expired(reason.ClientCertExpired, c, now)
	}
	return nil
}

func notYet(c *x509.Certificate, now time.Time) *fault {
	return &fault{rule: reason.ClientCertNotYetValid, expected: "validity at " + stamp(now), found: subject(c) + " valid from " + stamp(c.NotBefore)}
}

func expired(rule reason.Reason, c *x509.Certificate, now time.Time) *fault {
	return &fault{rule: rule, expected: "validity at " + stamp(now), found: subject(c) + " valid until " + stamp(c.NotAfter)}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// path judges a chain that crypto/x509 built. Its intermediates have passed member and issues before. What it asks is all
// that can change from one moment to the next.
func (s *Store) path(chain []*x509.Certificate, now time.Time) (f *fault, depth int, ask []*Query) {
	if depth := len(chain) - 1; depth > s.opts.MaxDepth {
		return &fault{rule: reason.ClientCertDepth, expected: fmt.Sprintf("at most %d certificates below the anchor", s.opts.MaxDepth),
			found: fmt.Sprint(depth)}, s.opts.MaxDepth, nil
	}
	// Revoked from any source wins (threats C20), so every source is asked.
	worse := func(g *fault, d int) {
		if g != nil && (f == nil || weight(g.rule) > weight(f.rule)) {
			f, depth = g, d
		}
	}
	worse(s.opts.Deny.judge(chain))
	if s.opts.CheckRevocation {
		worse(s.revocation(chain, now))
	}
	for d := 0; d+1 < len(chain) && s.opts.OCSP.Mode != OCSPOff && (d == 0 || s.opts.OCSP.Chain); d++ {
		g, q := s.opts.OCSP.judge(chain[d], chain[d+1], d == 0, now)
		worse(g, d)
		if q != nil {
			ask = append(ask, q)
		}
	}
	return f, depth, ask
}

// weight orders refusals of several paths: what no other path could have cured comes first.
func weight(r reason.Reason) int {
	return slices.Index([]reason.Reason{reason.ClientCertDepth, reason.OCSPUnavailable, reason.OCSPUnknown, reason.CRLMissing, reason.CRLStale,
		reason.ClientIssuerRevoked, reason.ClientCertRevoked, reason.ClientCertDenied}, r)
}

func hostNames(c *x509.Certificate) string {
	n := len(c.DNSNames) + len(c.IPAddresses)
	switch {
	case n == 0:
		return "a certificate without host names, " + subject(c)
	case len(c.DNSNames) == 0:
		return fmt.Sprintf("a certificate for %s (%d names)", quote(c.IPAddresses[0].String()), n)
	}
	return fmt.Sprintf("a certificate for %s (%d names)", quote(c.DNSNames[0]), n)
}

// explain finds out which certificate of which attempted path broke which rule, which errors of crypto/x509 tell only
// in part. It decides nothing: the refusal stands. was is what is known of the leaf; nil for nothing.
func (s *Store) explain(leaf *x509.Certificate, others []*x509.Certificate, p purpose, was *believed, now time.Time, err error) Verdict {
	e := explainer{store: s, others: others, purpose: p, known: was, now: now, signatures: 32}
	e.walk([]*x509.Certificate{leaf}, nil, 0)
	var v Verdict
	switch {
	case e.full && e.fault != nil:
		v = s.refuse(e.fault, e.chain, e.depth)
	case e.full:
		// The walk sees nothing wrong with this path, so it is one of the rules that only crypto/x509 checks.
		v = s.refuse(fromX509(err), e.chain, 0)
	case e.fault != nil:
		v = s.refuse(e.fault, e.chain, e.depth)
	default:
		v = s.refuse(fromX509(err), []*x509.Certificate{leaf}, 0)
	}
	v.Tried = e.tried
	return v
}

// fromX509 maps what is left of crypto/x509's errors.
func fromX509(err error) *fault {
	f := &fault{rule: reason.ClientCertInvalid, expected: "a chain that crypto/x509 accepts"}
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) {
		switch invalid.Reason {
		case x509.CANotAuthorizedForThisName, x509.UnconstrainedName, x509.TooManyConstraints, x509.NotAuthorizedToSign,
			x509.TooManyIntermediates, x509.NoValidChains:
			f.rule, f.expected = reason.ClientCertConstraint, "a certificate within the constraints of its issuers"
		case x509.IncompatibleUsage:
			f.rule, f.expected = reason.ClientCertEKU, "issuers that allow the purpose"
		}
	}
	if err != nil {
		f.cause = bounded(err)
		f.found = f.cause.Error()
	}
	return f
}

// explainer walks from the leaf upwards as crypto/x509 does, but goes on after a fault: a path that reaches an anchor
// with one fault says more than one that leads nowhere.
type explainer struct {
	store      *Store
	others     []*x509.Certificate
	purpose    purpose
	known      *believed
	now        time.Time
	signatures int // that may still be checked

	// The best explanation so far.
	chain []*x509.Certificate
	fault *fault
	depth int
	full  bool // chain ends in an anchor
	tried []Tried
}

func (e *explainer) take(chain []*x509.Certificate, f *fault, depth int, full bool) {
	e.tried = add(e.tried, chain, f, depth, full)
	if e.chain == nil || full && !e.full || full == e.full && len(chain) > len(e.chain) && !full {
		e.chain, e.fault, e.depth, e.full = slices.Clone(chain), f, depth, full
	}
}

// walk extends chain; first is the first fault met on it, at depth.
func (e *explainer) walk(chain []*x509.Certificate, first *fault, depth int) {
	at := len(chain) - 1
	child := chain[at]
	near := "" // an issuer of the right name that is not the issuer
	found := false
	try := func(ca *x509.Certificate, anchor bool) {
		if slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return sameCA(c, ca) }) {
			return
		}
		f, d := first, depth
		if g, where := e.issuer(child, ca, at+1, anchor); g != nil {
			if g.rule == reason.ClientCertUntrusted {
				near = g.found
				return
			}
			if f == nil {
				f, d = g, where
			}
		}
		found = true
		next := append(slices.Clip(chain), ca)
		if !anchor {
			e.walk(next, f, d)
			return
		}
		if f == nil {
			f, d = e.nesting(next)
		}
		e.take(next, f, d, true)
	}
	for _, a := range e.store.bySubject[string(child.RawIssuer)] {
		try(a, true)
	}
	for _, weak := range []bool{false, true} { // whose signature is not looked at only where there is no better one
		for _, c := range e.others {
			if bytes.Equal(c.RawSubject, child.RawIssuer) && (weakKey(c.PublicKey) != "") == weak && !(weak && found) {
				try(c, false)
			}
		}
	}
	if !found {
		f := &fault{rule: reason.ClientCertUntrusted, expected: "an issuer in trust store " + quote(e.store.name),
			found: unissued(child)}
		if near != "" {
			f.found = near
		}
		// Faults further down are left out: a stranger's certificate is first of all a stranger's.
		e.take(chain, f, at, false)
	}
}

// unissued says of a certificate that nobody who was sent or is trusted has issued it. One that is self-signed was sent
// itself, and its issuer with it.
func unissued(c *x509.Certificate) string {
	if bytes.Equal(c.RawSubject, c.RawIssuer) {
		return subject(c) + ", which is self-signed and not in the trust store"
	}
	return fmt.Sprintf("issuer %s of %s, which was neither sent nor trusted", issuerName(c), subject(c))
}

// sameCA is how crypto/x509 recognises a loop: the same name and key, whoever signed it.
func sameCA(a, b *x509.Certificate) bool {
	return bytes.Equal(a.RawSubject, b.RawSubject) && bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo)
}

// issuer says what is wrong with ca as the issuer of child, and at which depth. The signature comes first: who did not sign
// is not to blame for anything. A key that is not to be used (threats B21) is told without being used.
func (e *explainer) issuer(child, ca *x509.Certificate, depth int, anchor bool) (*fault, int) {
	if weakKey(ca.PublicKey) == "" && !e.known.signed(child, ca) {
		if e.signatures--; e.signatures < 0 {
			return &fault{rule: reason.ClientCertInvalid, expected: "a chain that can be found", found: "too many certificates of the same name"}, depth
		}
		// SHA-1 and MD5 have been told as member's fault; here it only matters which CA is meant.
		var insecure x509.InsecureAlgorithmError
		if err := ca.CheckSignature(child.SignatureAlgorithm, child.RawTBSCertificate, child.Signature); err != nil && !errors.As(err, &insecure) {
			return &fault{rule: reason.ClientCertUntrusted, found: fmt.Sprintf("%s, which CA %s did not sign, though it has the issuer's name",
				subject(child), subject(ca))}, depth - 1
		}
	}
	if !anchor {
		if f := member(ca); f != nil {
			return f, depth
		}
		if err := issues(ca); err != nil {
			return &fault{rule: reason.ClientCertConstraint, expected: "an issuer that is a CA", found: bounded(err).Error()}, depth
		}
	}
	switch {
	case e.now.Before(ca.NotBefore):
		return notYet(ca, e.now), depth
	case e.now.After(ca.NotAfter):
		return expired(reason.ClientCertIssuerExpired, ca, e.now), depth
	case ca.MaxPathLen >= 0 && depth-1 > ca.MaxPathLen:
		return &fault{rule: reason.ClientCertConstraint, expected: fmt.Sprintf("at most %d CAs below %s", ca.MaxPathLen, subject(ca)),
			found: fmt.Sprint(depth - 1)}, depth
	}
	return nil, 0
}

// nesting finds the issuer whose extendedKeyUsage leaves out the purpose (threats B01). Of several purposes every issuer has
// to allow the same one; then it is the first, from the leaf upwards, that allows none of those which are left.
func (e *explainer) nesting(chain []*x509.Certificate) (*fault, int) {
	for d := len(chain) - 1; d > 0; d-- {
		if c := chain[d]; !e.purpose.allowedBy(c) {
			return &fault{rule: reason.ClientCertEKU, expected: "a CA that may issue for " + e.purpose.String(), found: purposes(c) + " in CA " + subject(c)}, d
		}
	}
	left := e.purpose
	for d := 1; d < len(chain) && len(e.purpose.oids) > 1; d++ {
		before := left.String()
		left.oids = slices.DeleteFunc(slices.Clone(left.oids), func(oid asn1.ObjectIdentifier) bool {
			return !purpose{use: left.use, oids: []asn1.ObjectIdentifier{oid}}.allowedBy(chain[d])
		})
		if len(left.oids) == 0 {
			return &fault{rule: reason.ClientCertEKU, expected: "a CA that may issue for " + before + ", as those below it",
				found: purposes(chain[d]) + " in CA " + subject(chain[d])}, d
		}
	}
	return nil, 0
}
