package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign/internal/reason"
)

// Bounds of an examination. Whoever asks for one may have been sent the certificates by a stranger.
const (
	maxPaths      = 100
	maxPathDepth  = 10   // certificates below the anchor
	maxSteps      = 5000 // of the walk that finds paths
	maxSignatures = 256
)

// Check is one rule, and what was found of it.
type Check struct {
	// Kind is the rule's name, one of the Check constants.
	Kind string
	// Cert is what the rule is about and Depth its place in the path, the leaf being 0; nil for all of it.
	Cert  *x509.Certificate
	Depth int
	// Rule is why the check fails; Unset when it does not.
	Rule reason.Reason
	// Expected and Found are short, and safe to print.
	Expected, Found string
	// Lists are the revocation lists that were asked, the newest of each part.
	Lists []*CRL
	// Responder is who is asked by OCSP, and Ask the question whose answer is missing or old.
	Responder string
	Ask       *Query
}

// Kinds of checks, in the order in which they are made.
const (
	CheckPresented   = "presented"      // how many certificates, of how many bytes
	CheckAnchor      = "not_an_anchor"  // a client is not a CA of the trust store
	CheckForm        = "form"           // version, serial number, critical extensions
	CheckKey         = "key"            // kind and size
	CheckAlgorithm   = "signature_hash" // what the certificate was signed with
	CheckEndEntity   = "end_entity"     // a client is no CA, and may sign
	CheckPurpose     = "purpose"        // extendedKeyUsage
	CheckNames       = "names"          // alternative names are what they say
	CheckSPIFFE      = "spiffe"
	CheckDates       = "dates"
	CheckIssuer      = "issuer" // somebody who issued it is there
	CheckCA          = "ca"     // basicConstraints and keyUsage of issuers
	CheckSignature   = "signature"
	CheckPathLength  = "path_length"
	CheckConstraints = "constraints" // name constraints and policies
	CheckDepth       = "depth"
	CheckDeny        = "deny_list"
	CheckLists       = "revocation_list"
	CheckOCSP        = "ocsp"
)

// Path is one way from the leaf upwards.
type Path struct {
	// Chain is leaf first. Anchored says that its last certificate is a CA of the trust store.
	Chain    []*x509.Certificate
	Anchored bool
	// Checks are those of all but the leaf's own.
	Checks []Check
}

// Good reports whether the path leads to an anchor and no check of it fails.
func (p *Path) Good() bool { return p.Anchored && !failing(p.Checks) }

func failing(checks []Check) bool {
	return slices.ContainsFunc(checks, func(c Check) bool { return c.Rule != reason.Unset })
}

// Examination is all that Verify asks of a client's chain, told check by check for people. Verify stops where a refusal
// is certain; this goes on.
type Examination struct {
	// Verdict is that of Verify. Nothing else here decides anything.
	Verdict Verdict
	// Checks are those of what was presented as a whole, and of the leaf.
	Checks []Check
	// Paths are those that were tried, at most a hundred, the ones to an anchor first and good ones before the others.
	Paths []Path
	// More says that there are more paths than were looked at.
	More bool
}

// Good reports whether no check of the leaf fails, and none of one path. Tests hold that this is so exactly for what Verify
// accepts.
func (e *Examination) Good() bool {
	return !failing(e.Checks) && slices.ContainsFunc(e.Paths, func(p Path) bool { return p.Good() })
}

// Examine judges the chain a client presented, leaf first, and tells every check. It is for diagnosis: it takes far longer
// than Verify.
func (s *Store) Examine(presented []*x509.Certificate, now time.Time) *Examination {
	e := &Examination{Verdict: s.Verify(presented, now)}
	if s == nil || s.pool == nil {
		e.Checks = []Check{{Kind: CheckPresented, Rule: reason.Internal, Found: e.Verdict.Found}}
		return e
	}
	f := s.admit(presented, now)
	c := check(CheckPresented, nil, 0, f)
	if f == nil {
		c.Expected = fmt.Sprintf("at most %d certificates and %d bytes", s.opts.MaxPresented, maxChainBytes)
		c.Found = fmt.Sprint(len(presented))
	}
	e.Checks = append(e.Checks, c)
	if f != nil && f.rule != reason.ClientCertTooMany && f.rule != reason.ClientCertTooLarge {
		return e
	}
	x := examiner{store: s, now: now, leaf: presented[0], others: presented[1:], steps: maxSteps, signatures: maxSignatures,
		signed: make(map[[2]*x509.Certificate]error)}
	e.Checks = append(e.Checks, x.ofLeaf()...)
	x.walk([]*x509.Certificate{x.leaf}, nil)
	e.Paths, e.More = x.paths, x.more
	slices.SortStableFunc(e.Paths, func(a, b Path) int { return rank(&a) - rank(&b) })
	return e
}

// rank orders paths for people.
func rank(p *Path) int {
	switch {
	case p.Good():
		return 0
	case p.Anchored:
		return 1
	}
	return 2
}

func check(kind string, c *x509.Certificate, depth int, f *fault) Check {
	out := Check{Kind: kind, Cert: c, Depth: depth}
	if f != nil {
		out.Rule, out.Expected, out.Found = f.rule, f.expected, f.found
	}
	return out
}

// note says what was found where nothing is wrong.
func (c Check) note(expected, found string) Check {
	if c.Rule == reason.Unset {
		c.Expected, c.Found = expected, found
	}
	return c
}

// examiner finds the paths of one examination.
type examiner struct {
	store      *Store
	now        time.Time
	leaf       *x509.Certificate
	others     []*x509.Certificate
	purpose    purpose
	unfit      bool // the leaf is not for the purpose, which is told once
	steps      int  // that the walk may still make
	signatures int  // that may still be checked
	signed     map[[2]*x509.Certificate]error
	paths      []Path
	more       bool
}

// ofLeaf are the checks of the leaf alone.
func (x *examiner) ofLeaf() []Check {
	s, c := x.store, x.leaf
	const use = x509.ExtKeyUsageClientAuth
	checks := []Check{check(CheckAnchor, c, 0, s.notAnchor(c)).note("a certificate that is no CA of the trust store", "so it is")}
	checks = append(checks, members(c, 0)...)
	checks = append(checks, check(CheckEndEntity, c, 0, endEntity(c)).note("CA:FALSE, keyUsage digitalSignature", "so it is"))
	p, f := s.purpose(c, use, x.now)
	if f != nil {
		p, x.unfit = purpose{use: use}, true // for the issuers
	}
	x.purpose = p
	found := purposes(c)
	if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 {
		found = "no extendedKeyUsage"
	}
	if p.lenient != LenientNot {
		found += ", which accept.eku lets in"
	}
	checks = append(checks, check(CheckPurpose, c, 0, f).note("extendedKeyUsage "+p.String(), found))
	checks = append(checks, check(CheckNames, c, 0, names(c)).note("well-formed alternative names",
		fmt.Sprintf("%d", len(c.DNSNames)+len(c.EmailAddresses)+len(c.URIs)+len(c.IPAddresses))))
	if d := s.opts.TrustDomain; d != "" {
		found := ""
		if len(c.URIs) > 0 {
			found = quote(c.URIs[0].String())
		}
		checks = append(checks, check(CheckSPIFFE, c, 0, svid(c, d)).note("a SPIFFE ID of trust domain "+quote(d), found))
	}
	dates := check(CheckDates, c, 0, s.leafDates(c, x.now)).note("validity at "+stamp(x.now), validity(c))
	if dates.Rule == reason.Unset && x.now.After(c.NotAfter) {
		dates.Found += ", which accept.expired_leaf lets in"
	}
	return append(checks, dates)
}

func validity(c *x509.Certificate) string { return stamp(c.NotBefore) + " to " + stamp(c.NotAfter) }

// members are the checks of member, each by its name.
func members(c *x509.Certificate, depth int) []Check {
	f := member(c)
	kind := ""
	if f != nil {
		switch kind = CheckForm; f.rule {
		case reason.ClientCertWeakKey:
			kind = CheckKey
		case reason.ClientCertWeakSignature:
			kind = CheckAlgorithm
		}
	}
	checks := []Check{
		check(CheckForm, c, depth, nil).note("version 3, a positive serial number, critical extensions that are understood",
			"so it is"),
		check(CheckKey, c, depth, nil).note(strongKeys, keyText(c.PublicKey)),
		check(CheckAlgorithm, c, depth, nil).note("a signature with SHA-256 or better", c.SignatureAlgorithm.String()),
	}
	for i := range checks {
		switch {
		case checks[i].Kind == kind:
			checks[i] = check(kind, c, depth, f)
		case kind == CheckForm && i == 1 && weakKey(c.PublicKey) != "":
			checks[i] = check(CheckKey, c, depth, &fault{rule: reason.ClientCertWeakKey, expected: strongKeys,
				found: weakKey(c.PublicKey) + " in " + subject(c)})
		}
	}
	return checks
}

// keyText names a key by kind and size.
func keyText(key any) string {
	if found := weakKey(key); found != "" {
		return found
	}
	switch k := key.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA of %d bits", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Curve.Params().Name
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return "a key of another kind"
}

// walk extends chain by everything that has the name of its last certificate's issuer. checks are those of the chain so
// far. A link whose signature is wrong ends a path: who did not sign is no issuer.
func (x *examiner) walk(chain []*x509.Certificate, checks []Check) {
	child := chain[len(chain)-1]
	if x.steps--; x.steps < 0 || len(x.paths) >= maxPaths || len(chain) > maxPathDepth {
		x.more = true
		return
	}
	found, circle := false, false
	try := func(ca *x509.Certificate, anchor bool) {
		if slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return loops(c, ca) }) {
			circle = true
			return
		}
		found = true
		depth := len(chain)
		link := check(CheckSignature, child, depth-1, x.signature(child, ca)).note("a signature by "+subject(ca), "so it is")
		next, all := append(slices.Clip(chain), ca), append(slices.Clip(checks), link)
		if link.Rule != reason.Unset {
			x.take(Path{Chain: next, Anchored: anchor, Checks: all})
			return
		}
		all = append(all, x.ofIssuer(ca, depth, anchor)...)
		if !anchor {
			x.walk(next, all)
			return
		}
		x.take(Path{Chain: next, Anchored: true, Checks: append(all, x.ofPath(next, all)...)})
	}
	for _, a := range x.store.bySubject[string(child.RawIssuer)] {
		try(a, true)
	}
	for i, c := range x.others {
		if bytes.Equal(c.RawSubject, child.RawIssuer) && !slices.ContainsFunc(x.others[:i], c.Equal) && !slices.ContainsFunc(x.store.bySubject[string(c.RawSubject)], c.Equal) {
			try(c, false)
		}
	}
	if !found {
		at := len(chain) - 1
		f := &fault{rule: reason.ClientCertUntrusted, expected: "an issuer in trust store " + quote(x.store.name) + " or among what was sent",
			found: unissued(child)}
		if circle && at > 0 && !bytes.Equal(child.RawSubject, child.RawIssuer) {
			f.found = fmt.Sprintf("issuer %s of %s, which stands below it already: they sign each other",
				issuerName(child), subject(child))
		}
		x.take(Path{Chain: slices.Clone(chain), Checks: append(slices.Clip(checks), check(CheckIssuer, child, at, f))})
	}
}

func (x *examiner) take(p Path) {
	if len(x.paths) >= maxPaths {
		x.more = true
		return
	}
	x.paths = append(x.paths, p)
}

var oidAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// loops is how crypto/x509 recognises a certificate that is in the chain already: name, key and alternative names.
func loops(a, b *x509.Certificate) bool {
	alt := func(c *x509.Certificate) []byte {
		if i := slices.IndexFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidAltName) }); i >= 0 {
			return c.Extensions[i].Value
		}
		return nil
	}
	return sameCA(a, b) && bytes.Equal(alt(a), alt(b))
}

// signature checks one link, once.
func (x *examiner) signature(child, ca *x509.Certificate) *fault {
	key := [2]*x509.Certificate{child, ca}
	err, known := x.signed[key]
	if !known {
		if x.signatures--; x.signatures < 0 {
			x.more = true
			return &fault{rule: reason.ClientCertInvalid, expected: "a chain that can be found",
				found: "too many certificates of the same name"}
		}
		if found := weakKey(ca.PublicKey); found != "" {
			err = nil // never used: the key is told as the issuer's fault
		} else {
			err = ca.CheckSignature(child.SignatureAlgorithm, child.RawTBSCertificate, child.Signature)
		}
		// SHA-1 and MD5 are told as faults of their own.
		var insecure x509.InsecureAlgorithmError
		if errors.As(err, &insecure) || errors.Is(err, x509.ErrUnsupportedAlgorithm) {
			err = nil
		}
		x.signed[key] = err
	}
	if err == nil {
		return nil
	}
	f := &fault{rule: reason.ClientCertUntrusted, expected: "a signature by " + subject(ca),
		found: fmt.Sprintf("%s, which CA %s did not sign, though it has the issuer's name", subject(child), subject(ca))}
	if a, s := child.AuthorityKeyId, ca.SubjectKeyId; len(a) > 0 && len(s) > 0 && !bytes.Equal(a, s) {
		f.found += fmt.Sprintf(": it was signed by key %s, and this CA has key %s", escape(fmt.Sprintf("%x", a), 40),
			escape(fmt.Sprintf("%x", s), 40))
	}
	return f
}

// ofIssuer are the checks of one issuer of a path. Anchors were checked when the store was made, but for their dates.
func (x *examiner) ofIssuer(ca *x509.Certificate, depth int, anchor bool) (checks []Check) {
	if !anchor {
		checks = members(ca, depth)
		var f *fault
		if err := issues(ca); err != nil {
			f = &fault{rule: reason.ClientCertConstraint, expected: "an issuer that is a CA", found: bounded(err).Error()}
		}
		checks = append(checks, check(CheckCA, ca, depth, f).note("CA:TRUE, keyUsage keyCertSign", "so it is"))
	}
	var f *fault
	switch {
	case x.now.Before(ca.NotBefore):
		f = notYet(ca, x.now)
	case x.now.After(ca.NotAfter):
		f = expired(reason.ClientCertIssuerExpired, ca, x.now)
	}
	checks = append(checks, check(CheckDates, ca, depth, f).note("validity at "+stamp(x.now), validity(ca)))
	f = nil
	if !x.purpose.allowedBy(ca) && len(x.purpose.oids) <= 1 {
		f = &fault{rule: reason.ClientCertEKU, expected: "a CA that may issue for " + x.purpose.String(),
			found: purposes(ca) + " in CA " + subject(ca)}
	}
	found := "any purpose"
	if len(ca.ExtKeyUsage)+len(ca.UnknownExtKeyUsage) > 0 {
		found = purposes(ca)
	}
	return append(checks, check(CheckPurpose, ca, depth, f).note("a CA that may issue for "+x.purpose.String(), found))
}

// ofPath are the checks of a path that has reached its anchor; so are those that failed before.
func (x *examiner) ofPath(chain []*x509.Certificate, before []Check) (checks []Check) {
	s, anchor := x.store, chain[len(chain)-1]
	var f *fault
	if len(x.purpose.oids) > 1 && !x.purpose.allowed(chain) {
		f = &fault{rule: reason.ClientCertEKU, expected: "CAs that all may issue for one purpose", found: "none that all name"}
		checks = append(checks, check(CheckPurpose, anchor, len(chain)-1, f))
	}
	// A CA counts those below it that are not self-issued (RFC 5280 section 4.2.1.9); crypto/x509 counts all.
	f = nil
	limit := chain[0]
	for d := 1; d < len(chain); d++ {
		if ca := chain[d]; ca.BasicConstraintsValid && ca.MaxPathLen >= 0 && d-1 > ca.MaxPathLen && f == nil {
			limit = ca
			f = &fault{rule: reason.ClientCertConstraint, expected: fmt.Sprintf("at most %d CAs below %s",
				ca.MaxPathLen, subject(ca)), found: fmt.Sprint(d - 1)}
		}
	}
	length := check(CheckPathLength, nil, 0, f).note("no more CAs below a CA than it allows", fmt.Sprint(len(chain)-2))
	if f != nil {
		length.Cert, length.Depth = limit, slices.Index(chain, limit)
	}
	checks = append(checks, length)
	if !failing(before) && !failing(checks) {
		f := x.alone(chain)
		c := check(CheckConstraints, nil, 0, f).note("names and policies within the constraints of the issuers", "so they are")
		if f != nil {
			for d := len(chain) - 1; d > 0 && c.Cert == nil; d-- {
				if constrained(chain[d]) {
					c.Cert, c.Depth = chain[d], d
					c.Expected = "names that CA " + subject(chain[d]) + " permits: " + permits(chain[d])
				}
			}
		}
		checks = append(checks, c)
	}
	f = nil
	if depth := len(chain) - 1; depth > s.opts.MaxDepth {
		f = &fault{rule: reason.ClientCertDepth, expected: fmt.Sprintf("at most %d certificates below the anchor",
			s.opts.MaxDepth), found: fmt.Sprint(depth)}
	}
	checks = append(checks, check(CheckDepth, nil, 0, f).note(fmt.Sprintf("at most %d certificates below the anchor",
		s.opts.MaxDepth), fmt.Sprint(len(chain)-1)))
	if s.opts.Deny.Len() > 0 {
		f, d := s.opts.Deny.judge(chain)
		c := check(CheckDeny, nil, 0, f).note("nothing that is on the deny list", "so it is")
		if f != nil {
			c.Cert, c.Depth = chain[d], d
		}
		checks = append(checks, c)
	}
	for d := range chain[:len(chain)-1] {
		if s.opts.CheckRevocation {
			checks = append(checks, x.ofLists(chain[d], chain[d+1], d))
		}
		if s.opts.OCSP.Mode != OCSPOff && (d == 0 || s.opts.OCSP.Chain) {
			checks = append(checks, x.ofOCSP(chain[d], chain[d+1], d))
		}
	}
	if !s.opts.CheckRevocation && s.opts.OCSP.Mode == OCSPOff {
		checks = append(checks, Check{Kind: CheckLists, Found: "revocation is not checked by this trust store"})
	}
	return checks
}

func constrained(c *x509.Certificate) bool {
	return len(c.PermittedDNSDomains)+len(c.ExcludedDNSDomains)+len(c.PermittedIPRanges)+len(c.ExcludedIPRanges)+len(c.PermittedEmailAddresses)+
		len(c.ExcludedEmailAddresses)+len(c.PermittedURIDomains)+len(c.ExcludedURIDomains) > 0
}

// permits lists a CA's name constraints.
func permits(c *x509.Certificate) string {
	var all []string
	add := func(kind string, names []string) {
		for _, n := range names[:min(len(names), 4)] {
			all = append(all, kind+" "+quote(n))
		}
		if more := len(names) - 4; more > 0 {
			all = append(all, fmt.Sprintf("%d more", more))
		}
	}
	add("DNS", c.PermittedDNSDomains)
	add("not DNS", c.ExcludedDNSDomains)
	add("email", c.PermittedEmailAddresses)
	add("not email", c.ExcludedEmailAddresses)
	add("URI", c.PermittedURIDomains)
	add("not URI", c.ExcludedURIDomains)
	for _, n := range c.PermittedIPRanges[:min(len(c.PermittedIPRanges), 4)] {
		all = append(all, "IP "+n.String())
	}
	for _, n := range c.ExcludedIPRanges[:min(len(c.ExcludedIPRanges), 4)] {
		all = append(all, "not IP "+n.String())
	}
	return strings.Join(all, ", ")
}

// alone asks crypto/x509 about this path and no other: name constraints and policies are its work.
func (x *examiner) alone(chain []*x509.Certificate) *fault {
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(chain[len(chain)-1])
	for _, c := range chain[1 : len(chain)-1] {
		inter.AddCert(c)
	}
	undated := *chain[0]
	undated.NotBefore, undated.NotAfter = x.now, x.now
	use := x.purpose.use
	if x.unfit {
		use = x509.ExtKeyUsageAny
	}
	built, err := undated.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, CurrentTime: x.now,
		KeyUsages: []x509.ExtKeyUsage{use}})
	if slices.ContainsFunc(built, func(b []*x509.Certificate) bool {
		return slices.EqualFunc(b[1:], chain[1:], func(a, b *x509.Certificate) bool { return a.Equal(b) })
	}) {
		return nil
	}
	if err == nil {
		err = errors.New("another path of the same certificates")
	}
	return fromX509(err)
}

// ofLists is what the revocation lists say of c, whose issuer in the path is ca.
func (x *examiner) ofLists(c, ca *x509.Certificate, depth int) Check {
	s := x.store
	rules := s.rules(ca)
	required := rules.Missing == MissingChain || rules.Missing == MissingLeaf && depth == 0
	out := check(CheckLists, c, depth, s.listed(c, ca, required, depth == 0, x.now))
	var told []string
	of := s.lists[string(ca.RawSubject)]
	for i := range of {
		base, delta, _ := of[i].inForce(c, ca, rules.Stale, x.now)
		for _, l := range []*CRL{base, delta} {
			if l != nil {
				out.Lists = append(out.Lists, l)
				told = append(told, fmt.Sprintf("%s, nextUpdate %s, %d entries", l, stamp(l.nextUpdate), l.Len()))
			}
		}
	}
	if len(told) == 0 {
		return out.note("a revocation list of "+subject(ca)+", if there is one", "none, and none is required")
	}
	return out.note("a serial number that is on no list of "+subject(ca), "not on "+strings.Join(told, "; "))
}

// ofOCSP is what is known of c from its responder.
func (x *examiner) ofOCSP(c, ca *x509.Certificate, depth int) Check {
	o := &x.store.opts.OCSP
	f, ask := o.judge(c, ca, depth == 0, x.now)
	out := check(CheckOCSP, c, depth, f)
	out.Ask, out.Responder = ask, o.responder(c)
	if out.Responder == "" {
		return out.note("an answer of a responder, if one may be asked", "nobody is asked about it")
	}
	found := "none yet, and none is required"
	if a, known := o.Answers.lookup(o.key(c, ca, out.Responder), x.now); known {
		found = fmt.Sprintf("%s, as of %s, until %s", a.Status, stamp(a.ThisUpdate), stamp(a.End()))
	}
	return out.note("an answer of "+quote(out.Responder), found)
}
