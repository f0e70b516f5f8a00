// Package trust answers one question: may this chain be believed now? It owns anchors, acceptance rules, revocation
// lists and verdicts. It reads no files and opens no connections, and verdicts are for the time that is handed in.
//
// Every path that asks, handshakes full and resumed, requests, the sweep of open connections and diagnosis, asks
// Store.Verify, or VerifyAgain, which is the same (threats C01), so a rule that is here cannot be missing elsewhere.
package trust

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"countersign/internal/reason"
)

// EKUMode says what the leaf's extendedKeyUsage has to say (RFC 5280 section 4.2.1.12).
type EKUMode uint8

const (
	// EKUStrict wants the purpose named: clientAuth for clients, serverAuth for targets. anyExtendedKeyUsage is not
	// enough, because it says that nobody thought about the purpose.
	EKUStrict EKUMode = iota
	// EKUAllowAbsent also takes a leaf without the extension or with anyExtendedKeyUsage.
	EKUAllowAbsent
	// EKUAllowServerAuth also takes, until Options.EKUUntil, a client's leaf with serverAuth and without clientAuth: public
	// CAs stopped issuing for both in 2025 and 2026, and the clients that have such a certificate need time.
	EKUAllowServerAuth
	// EKUCustom wants one of Options.EKUOIDs in a client's leaf, in place of clientAuth.
	EKUCustom
)

// Leniency says which mildness of an EKUMode let a certificate in; it is counted, so that the operator sees who will be
// kept out by a stricter one.
type Leniency uint8

const (
	// LenientNot is an acceptance under strict rules too.
	LenientNot Leniency = iota
	// LenientAbsent is a leaf without extendedKeyUsage.
	LenientAbsent
	// LenientAny is a leaf with anyExtendedKeyUsage.
	LenientAny
	// LenientServerAuth is a leaf with serverAuth and without clientAuth.
	LenientServerAuth
)

// String is the leniency's name in records and metrics; empty for LenientNot.
func (l Leniency) String() string {
	return [...]string{"", "eku_absent", "eku_any", "eku_server_auth"}[min(l, LenientServerAuth)]
}

// MissingPolicy says whose issuer must have a revocation list.
type MissingPolicy uint8

const (
	// MissingLeaf wants a current list of the leaf's issuer; the lists of other issuers are used where there are any.
	MissingLeaf MissingPolicy = iota
	// MissingChain wants one for every certificate but the anchor.
	MissingChain
	// MissingIfPresent wants none and uses what there is.
	MissingIfPresent
)

// StalePolicy says what a list past its nextUpdate means.
type StalePolicy uint8

const (
	// StaleFailClosed refuses the certificates of that issuer.
	StaleFailClosed StalePolicy = iota
	// StaleGrace still uses the list for Options.Grace.
	StaleGrace
	// StaleIgnore uses the list whatever its dates.
	StaleIgnore
)

// Bounds that have no setting, and the defaults of those that have one.
const (
	defaultDepth     = 4
	defaultPresented = 4
	maxPresented     = 10       // more only serves those who want us to try signatures
	maxChainBytes    = 32 << 10 // above 64 KiB a session ticket breaks the connection (threats B22)
)

// Options are the acceptance rules of a store. The zero value is the strict default without revocation.
type Options struct {
	// MaxDepth is the greatest number of certificates in a chain without its anchor; 0 is 4.
	MaxDepth int
	// MaxPresented is the greatest number of certificates a peer may send; 0 is 4, at most 10.
	MaxPresented int
	// EKU is what the leaf's extendedKeyUsage has to say.
	EKU EKUMode
	// EKUUntil is for EKUAllowServerAuth: from then on it is EKUStrict.
	EKUUntil time.Time
	// EKUOIDs is for EKUCustom.
	EKUOIDs []asn1.ObjectIdentifier
	// TrustDomain wants clients to be X.509-SVIDs of this SPIFFE trust domain; empty wants nothing.
	TrustDomain string
	// AllowExpiredLeaf ignores exactly the leaf's notAfter and nothing else (threats B27).
	AllowExpiredLeaf bool
	// CheckRevocation uses the lists. A store given lists without it is refused: they would look effective.
	CheckRevocation bool
	// Missing says whose issuer must have a list.
	Missing MissingPolicy
	// Stale says what an outdated list means.
	Stale StalePolicy
	// Grace is for StaleGrace.
	Grace time.Duration
	// ByCA are other rules for the lists of single CAs, by the CA's subject as log lines print it (RFC 2253).
	ByCA map[string]ListRules
	// Deny is the operator's own list; it counts whether or not revocation is checked.
	Deny *DenyList
	// Points are the hosts, with port if it is not the scheme's, from which lists may be fetched that certificates name.
	Points []string
	// Learnt are lists that were fetched because certificates name them. Those of strangers are of no consequence.
	Learnt []*CRL
	// OCSP says what is asked of responders.
	OCSP OCSP
	// Chains remembers the chains of clients that come often; nil remembers nothing.
	Chains *Chains
	// Alike are stores made before. One that has the same anchors shares what was made of them, which for thousands is time
	// and memory (threats F12).
	Alike []*Store
}

// ListRules say what a missing or an outdated list of a CA means.
type ListRules struct {
	// Missing is MissingIfPresent, or MissingChain for a CA that must have a list wherever it stands; MissingLeaf wants it
	// of the leaf's issuer only.
	Missing MissingPolicy
	Stale   StalePolicy
	Grace   time.Duration
}

// rules are those for the lists of ca.
func (s *Store) rules(ca *x509.Certificate) ListRules {
	if len(s.opts.ByCA) > 0 {
		if r, ok := s.opts.ByCA[printed(ca.RawSubject)]; ok {
			return r
		}
	}
	return ListRules{s.opts.Missing, s.opts.Stale, s.opts.Grace}
}

// Store is a trust store: anchors, lists and rules under one content hash. It never changes, any number of goroutines
// may use it, and its methods do not block.
type Store struct {
	name      string
	opts      Options
	anchors   []*x509.Certificate
	pool      *x509.CertPool // never nil in a made store: nil would mean the system's roots (threats A23)
	bySubject map[string][]*x509.Certificate
	sums      [][sha256.Size]byte // of the anchors, in order
	lists     map[string][]series // by issuer DN
	hints     [][]byte
	warnings  []string
	basis     [sha256.Size]byte // of what chains are built with
	sum       [sha256.Size]byte
	version   string
}

// NewStore makes a store. name is for messages. Every anchor must be a CA, every list must be signed by the anchor it
// names, if it names one; a list of an intermediate is checked when a chain shows that intermediate.
func NewStore(name string, anchors []*x509.Certificate, crls []*CRL, hints [][]byte, opts Options) (*Store, error) {
	fail := func(format string, args ...any) (*Store, error) {
		return nil, fmt.Errorf("trust store %s: "+format, append([]any{quote(name)}, args...)...)
	}
	if opts.MaxDepth == 0 {
		opts.MaxDepth = defaultDepth
	}
	if opts.MaxPresented == 0 {
		opts.MaxPresented = defaultPresented
	}
	switch {
	case len(anchors) == 0:
		return fail("it has no CA certificate, so nobody could be trusted; add at least one")
	case opts.MaxDepth < 1:
		return fail("max_depth: expected 1 or more, found %d", opts.MaxDepth)
	case opts.MaxPresented < 1 || opts.MaxPresented > maxPresented:
		return fail("max_presented: expected 1 to %d, found %d", maxPresented, opts.MaxPresented)
	case opts.EKU > EKUCustom || opts.Missing > MissingIfPresent || opts.Stale > StaleIgnore:
		return fail("options: a value that is none of the constants of this package")
	case opts.EKU == EKUAllowServerAuth && opts.EKUUntil.IsZero():
		return fail("eku: expected a date until which serverAuth is accepted, found none")
	case opts.EKU == EKUCustom && len(opts.EKUOIDs) == 0:
		return fail("eku: expected at least one OID, found none")
	case opts.Grace < 0, opts.Stale == StaleGrace && opts.Grace == 0:
		return fail("grace: expected a positive time with stale policy grace, found %v", opts.Grace)
	case slices.ContainsFunc(slices.Collect(maps.Values(opts.ByCA)), func(r ListRules) bool { return r.Stale == StaleGrace && r.Grace <= 0 }):
		return fail("by_ca: expected a positive grace with stale policy grace")
	case opts.OCSP.check() != nil:
		return fail("%w", opts.OCSP.check())
	case len(crls) > 0 && !opts.CheckRevocation:
		return fail("it has revocation lists but revocation is not checked; switch checking on or remove the lists")
	}
	alike := opts.Alike
	opts.Alike = nil // or no store would ever be forgotten
	s := &Store{name: name, opts: opts, hints: slices.Clone(hints)}
	if err := s.trust(anchors, alike); err != nil {
		return fail("%w", err)
	}
	for i, l := range crls {
		if l == nil || l.entries == nil {
			return fail("revocation list %d was not made by ParseCRL", i+1)
		}
		switch found, err := l.signerAmong(s.bySubject[l.issuer]); {
		case err != nil:
			return fail("revocation list %d, %s: %w", i+1, l, err)
		case !found:
			s.warnings = append(s.warnings, fmt.Sprintf("revocation list %d, %s, is of no CA in this trust store; it is used only where a chain shows its issuer", i+1, l))
		}
	}
	for _, l := range opts.Learnt {
		if _, err := l.signerAmong(s.bySubject[l.issuer]); err == nil && !slices.Contains(crls, l) {
			crls = append(slices.Clip(crls), l)
		}
	}
	var inert []string
	s.lists, inert = newSeries(crls)
	s.warnings = append(s.warnings, inert...)
	for _, issuer := range opts.Deny.strangers(s.anchors) {
		s.warnings = append(s.warnings, fmt.Sprintf("the deny list has serial numbers of issuer %s, which is the name of no CA in this trust store; they count only where a chain shows an issuer of exactly this name", quote(issuer)))
	}
	s.basis, s.sum = s.hash(crls)
	s.version = hex.EncodeToString(s.sum[:8])
	return s, nil
}

// trust sets the anchors of a new store, or takes them over from another one.
func (s *Store) trust(anchors []*x509.Certificate, alike []*Store) error {
	for _, other := range alike {
		if other != nil && slices.Equal(other.anchors, anchors) {
			s.anchors, s.pool, s.bySubject, s.sums = other.anchors, other.pool, other.bySubject, other.sums
			return nil
		}
	}
	s.pool, s.bySubject = x509.NewCertPool(), make(map[string][]*x509.Certificate, len(anchors))
	known := make(map[[sha256.Size]byte]bool, len(anchors))
	for i, a := range anchors {
		if err := checkAnchor(a); err != nil {
			return fmt.Errorf("CA certificate %d: %w", i+1, err)
		}
		sum := sha256.Sum256(a.Raw)
		if known[sum] {
			continue
		}
		known[sum] = true
		s.anchors = append(s.anchors, a)
		s.pool.AddCert(a)
		s.bySubject[string(a.RawSubject)] = append(s.bySubject[string(a.RawSubject)], a)
		s.sums = append(s.sums, sum)
	}
	ordered(s.sums)
	return nil
}

func ordered(sums [][sha256.Size]byte) {
	slices.SortFunc(sums, func(a, b [sha256.Size]byte) int { return slices.Compare(a[:], b[:]) })
}

// hash returns a hash over all that chains are built with, and one over everything that can change a verdict, whatever
// the order it came in. Names and hints cannot.
func (s *Store) hash(crls []*CRL) (basis, all [sha256.Size]byte) {
	o := s.opts
	h := sha256.New()
	fmt.Fprintf(h, "countersign trust 2\n%d %d %v %q\n", o.EKU, o.EKUUntil.Unix(), o.EKUOIDs, o.TrustDomain)
	set := func(parts [][sha256.Size]byte) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(parts))))
		for _, p := range parts {
			h.Write(p[:])
		}
	}
	set(s.sums)
	basis = [sha256.Size]byte(h.Sum(nil))

	h.Reset()
	h.Write(basis[:])
	fmt.Fprintf(h, "%d %d %t %t %d %d %d\n", o.MaxDepth, o.MaxPresented, o.AllowExpiredLeaf, o.CheckRevocation, o.Missing, o.Stale, o.Grace)
	var lists [][sha256.Size]byte
	for _, l := range crls {
		lists = append(lists, l.sum)
	}
	ordered(lists)
	set(slices.Compact(lists))
	fmt.Fprintf(h, "%v %x %x\n", o.ByCA, o.Deny.digest(), o.OCSP.digest())
	return basis, [sha256.Size]byte(h.Sum(nil))
}

// Name is the name given to NewStore.
func (s *Store) Name() string { return s.name }

// Sum is the hash over anchors, lists and options: equal sums mean equal verdicts.
func (s *Store) Sum() [sha256.Size]byte { return s.sum }

// Anchors are the CAs the store trusts.
func (s *Store) Anchors() []*x509.Certificate { return slices.Clone(s.anchors) }

// Answers changes whenever an OCSP responder has said something that may change a verdict; 0 for a store that asks none.
func (s *Store) Answers() uint64 {
	if s.opts.OCSP.Mode == OCSPOff {
		return 0
	}
	return 1 + s.opts.OCSP.Answers.Changes()
}

// Rules says in words what the store asks of a chain, and where that is less or more than the defaults.
func (s *Store) Rules() string {
	o := s.opts
	all := []string{fmt.Sprintf("%d CAs", len(s.anchors))}
	if len(s.anchors) == 1 {
		all[0] = "1 CA"
	}
	add := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	switch o.EKU {
	case EKUAllowAbsent:
		add("purpose clientAuth, none or any")
	case EKUAllowServerAuth:
		add("purpose clientAuth, or serverAuth until %s", o.EKUUntil.UTC().Format(time.DateOnly))
	case EKUCustom:
		add("purpose %v", o.EKUOIDs)
	}
	if o.AllowExpiredLeaf {
		add("expired clients are accepted")
	}
	if o.TrustDomain != "" {
		add("SPIFFE IDs of %s", o.TrustDomain)
	}
	if !o.CheckRevocation && o.OCSP.Mode == OCSPOff {
		add("revocation is not checked")
	}
	if o.CheckRevocation {
		missing := [...]string{"required of the client's CA", "required of every CA", "used if there is one"}[o.Missing]
		stale := [...]string{"refused when stale", fmt.Sprintf("used %s longer when stale", o.Grace), "used however old"}[o.Stale]
		add("lists %s, %s", missing, stale)
	}
	if n := len(o.ByCA); n > 0 {
		add("other rules for the lists of %d CAs", n)
	}
	switch o.OCSP.Mode {
	case OCSPPrefer:
		add("OCSP asked, no answer lets in")
	case OCSPRequire:
		add("OCSP answer required")
	}
	if n := o.Deny.Len(); n > 0 {
		add("%d denied", n)
	}
	return strings.Join(all, "; ")
}

// Version is the first 16 hexadecimal digits of Sum, for people.
func (s *Store) Version() string { return s.version }

// Hints are the subjects (DER) for CertificateRequest. They have no influence on trust (threats B23).
func (s *Store) Hints() [][]byte { return s.hints }

// Warnings are what NewStore found odd and accepted.
func (s *Store) Warnings() []string { return s.warnings }

// Verdict is the outcome of a verification. The zero Verdict is not an acceptance.
type Verdict struct {
	// Accepted says that the chain may be believed.
	Accepted bool
	// Reason is why it was refused; Unset when it was accepted. Refused targets have UpstreamCertRefused.
	Reason reason.Reason
	// Rule is the rule that refused; it differs from Reason for targets only.
	Rule reason.Reason
	// Chain is the chain that was believed, or the one that came closest: leaf first, anchor last. A refused one can
	// be incomplete. It never holds certificates that were presented and not used (threats B07, B18).
	Chain []*x509.Certificate
	// Tried are the chains that were tried, of a refusal that is about chains; some of them where there are many.
	Tried []Tried
	// At is the certificate at fault and Depth its place in the chain, the leaf being 0.
	At    *x509.Certificate
	Depth int
	// Expected and Found are the evidence; short, and safe to print.
	Expected, Found string
	// Cause is an error from below, bounded and escaped; often nil.
	Cause error
	// Store and Version name the trust store that was asked.
	Store, Version string
	// When is the time the verdict is for; how long an acceptance holds counts from it.
	When time.Time
	// Lenient says which leniency of accept.eku it took to accept the chain.
	Lenient Leniency
	// Ask are questions to OCSP responders whose answers are missing or old. Where Reason is OCSPUnavailable an answer may
	// change the verdict.
	Ask []*Query

	key      chainKey
	built    *believed // for Remember; nil when it came from there
	issuers  *issuers  // for Remember too; nil for nothing
	believed *believed // of an acceptance, for Belief
}

// Err is nil for an acceptance, else a *reason.Refusal.
func (v Verdict) Err() error {
	if v.Accepted {
		return nil
	}
	return &reason.Refusal{Reason: v.Reason, Expected: v.Expected, Found: v.Found, Cause: v.Cause}
}
