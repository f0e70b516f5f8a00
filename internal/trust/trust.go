// Package trust answers one question: may this chain be believed now? It owns anchors, acceptance rules, revocation
// lists and verdicts. It reads no files and opens no connections, and verdicts are for the time that is handed in.
//
// Every path that asks, handshakes full and resumed, requests, the sweep of open connections and diagnosis, asks
// Store.Verify (threats C01), so a rule that is here cannot be missing elsewhere.
package trust

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
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
)

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
}

// Store is a trust store: anchors, lists and rules under one content hash. It never changes, any number of goroutines
// may use it, and its methods do not block.
type Store struct {
	name      string
	opts      Options
	anchors   []*x509.Certificate
	pool      *x509.CertPool // never nil in a made store: nil would mean the system's roots (threats A23)
	bySubject map[string][]*x509.Certificate
	lists     map[string][]*CRL // by issuer DN, newest first
	hints     [][]byte
	warnings  []string
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
	case opts.EKU > EKUAllowAbsent || opts.Missing > MissingIfPresent || opts.Stale > StaleIgnore:
		return fail("options: a value that is none of the constants of this package")
	case opts.Grace < 0, opts.Stale == StaleGrace && opts.Grace == 0:
		return fail("grace: expected a positive time with stale policy grace, found %v", opts.Grace)
	case len(crls) > 0 && !opts.CheckRevocation:
		return fail("it has revocation lists but revocation is not checked; switch checking on or remove the lists")
	}
	s := &Store{
		name: name, opts: opts, hints: slices.Clone(hints), pool: x509.NewCertPool(),
		bySubject: make(map[string][]*x509.Certificate, len(anchors)), lists: make(map[string][]*CRL),
	}
	for i, a := range anchors {
		if err := checkAnchor(a); err != nil {
			return fail("CA certificate %d: %w", i+1, err)
		}
		subject := string(a.RawSubject)
		if slices.ContainsFunc(s.bySubject[subject], a.Equal) {
			continue
		}
		s.anchors = append(s.anchors, a)
		s.pool.AddCert(a)
		s.bySubject[subject] = append(s.bySubject[subject], a)
	}
	for i, l := range crls {
		if l == nil || l.revoked == nil {
			return fail("revocation list %d was not made by ParseCRL", i+1)
		}
		switch found, err := l.signerAmong(s.bySubject[l.issuer]); {
		case err != nil:
			return fail("revocation list %d, %s: %w", i+1, l, err)
		case !found:
			s.warnings = append(s.warnings, fmt.Sprintf("revocation list %d, %s, is of no CA in this trust store; it is used only where a chain shows its issuer", i+1, l))
		}
		s.lists[l.issuer] = append(s.lists[l.issuer], l)
	}
	for _, of := range s.lists {
		slices.SortStableFunc(of, func(a, b *CRL) int { return b.compare(a) })
	}
	s.sum = s.hash(crls)
	s.version = hex.EncodeToString(s.sum[:8])
	return s, nil
}

// hash covers everything that can change a verdict, whatever the order it came in. Names and hints cannot.
func (s *Store) hash(crls []*CRL) [sha256.Size]byte {
	var parts [][sha256.Size]byte
	for _, a := range s.anchors {
		parts = append(parts, sha256.Sum256(a.Raw))
	}
	for _, l := range crls {
		parts = append(parts, l.sum)
	}
	slices.SortFunc(parts, func(a, b [sha256.Size]byte) int { return slices.Compare(a[:], b[:]) })
	parts = slices.Compact(parts)
	h := sha256.New()
	o := s.opts
	fmt.Fprintf(h, "countersign trust 1\n%d %d %d %t %t %d %d %d\n",
		o.MaxDepth, o.MaxPresented, o.EKU, o.AllowExpiredLeaf, o.CheckRevocation, o.Missing, o.Stale, o.Grace)
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(s.anchors))))
	for _, p := range parts {
		h.Write(p[:])
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// Name is the name given to NewStore.
func (s *Store) Name() string { return s.name }

// Sum is the hash over anchors, lists and options: equal sums mean equal verdicts.
func (s *Store) Sum() [sha256.Size]byte { return s.sum }

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
	// At is the certificate at fault and Depth its place in the chain, the leaf being 0.
	At    *x509.Certificate
	Depth int
	// Expected and Found are the evidence; short, and safe to print.
	Expected, Found string
	// Cause is an error from below, bounded and escaped; often nil.
	Cause error
	// Store and Version name the trust store that was asked.
	Store, Version string
}

// Err is nil for an acceptance, else a *reason.Refusal.
func (v Verdict) Err() error {
	if v.Accepted {
		return nil
	}
	return &reason.Refusal{Reason: v.Reason, Expected: v.Expected, Found: v.Found, Cause: v.Cause}
}
