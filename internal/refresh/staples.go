package refresh

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"countersign/internal/certs"
	"countersign/internal/outbound"
	"countersign/internal/trust"
)

const (
	defaultStapleTimeout = 10 * time.Second
	maxStapling          = 4 // exchanges at a time
	stapleFirst          = time.Minute
	stapleLast           = time.Hour
)

// Codes of conditions about staples.
const (
	// StapleMissing: there is no current OCSP response for a certificate that names a responder. Clients that ask for one
	// get none, and those that hold the certificate to its must-staple extension refuse it.
	StapleMissing = "staple_missing"
	// CertificateRevoked: a certificate that we serve is revoked.
	CertificateRevoked = "certificate_revoked"
)

// StaplesConfig says how to fetch staples.
type StaplesConfig struct {
	Client *outbound.Client
	// Into is where staples go.
	Into *certs.Staples
	Log  *slog.Logger
	// Timeout is for one exchange: 10 s by default.
	Timeout time.Duration

	do func(context.Context, *outbound.Request) (*outbound.Response, error) // in tests
}

// Staples keeps OCSP responses for our own certificates: those that name a responder and have their issuer in the file. A
// response is checked as one about a client would be, asked for again at half its life, and never sent after its end. It
// is made by NewStaples and ended by Close; its methods may be called from any goroutine.
type Staples struct {
	c      StaplesConfig
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	poke   chan struct{}

	mu   sync.Mutex
	own  map[Sum]*ownCert
	busy int
}

// ownCert is a certificate of ours.
type ownCert struct {
	sum      Sum
	name     string
	must     bool // clients may refuse it without a staple
	q        *trust.Query
	busy     bool
	next     time.Time
	failures int // in a row
	problem  error
	since    time.Time // of problem
	answer   trust.Answer
}

// NewStaples makes Staples, which does nothing before the first call of Track.
func NewStaples(c StaplesConfig) *Staples {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultStapleTimeout
	}
	if c.do == nil {
		c.do = c.Client.Do
	}
	s := &Staples{c: c, poke: make(chan struct{}, 1), own: make(map[Sum]*ownCert)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.tasks.Go(func() { persist(s.ctx, s.c.Log, "staples", s.run) })
	return s
}

// Track tells which certificates are served now; those that are not any more are forgotten. It never blocks.
func (s *Staples) Track(pairs []*tls.Certificate) {
	now := time.Now()
	served := make(map[Sum]bool, len(pairs))
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, pair := range pairs {
		if len(pair.Leaf.OCSPServer) == 0 && !certs.MustStaple(pair) {
			continue // nobody can ask, and nobody must; there may be ten thousand such
		}
		sum := sha256.Sum256(pair.Leaf.Raw)
		served[sum] = true
		if s.own[sum] != nil {
			continue
		}
		o := &ownCert{sum: sum, name: nameOf(pair.Leaf), must: certs.MustStaple(pair), since: now}
		if responder, issuer := stapleSource(pair); issuer != nil {
			o.q = &trust.Query{Cert: pair.Leaf, Issuer: issuer, Responder: responder}
		} else if o.must {
			o.problem = errors.New("it names no responder by HTTP, or its issuer is not in the file; append the issuer")
		} else {
			continue // nobody can ask, and nobody must
		}
		s.own[sum] = o
	}
	for sum := range s.own {
		if !served[sum] {
			delete(s.own, sum)
		}
	}
	s.c.Into.Keep(served)
	s.nudge()
}

// stapleSource is the first responder by HTTP and the issuer that follows the leaf.
func stapleSource(pair *tls.Certificate) (responder string, issuer *x509.Certificate) {
	at := slices.IndexFunc(pair.Leaf.OCSPServer, func(u string) bool {
		u = strings.ToLower(u)
		return strings.HasPrefix(u, "http://") || strings.HasPrefix(u, "https://")
	})
	if at < 0 || len(pair.Certificate) < 2 {
		return "", nil
	}
	issuer, err := x509.ParseCertificate(pair.Certificate[1])
	if err != nil || pair.Leaf.CheckSignatureFrom(issuer) != nil {
		return "", nil
	}
	return pair.Leaf.OCSPServer[at], issuer
}

// nameOf names a certificate of ours for people.
func nameOf(c *x509.Certificate) string {
	name := c.Subject.CommonName
	if len(c.DNSNames) > 0 {
		name = c.DNSNames[0]
	}
	if len(name) > 100 {
		name = name[:100]
	}
	return fmt.Sprintf("%q (serial %s)", name, c.SerialNumber.Text(16))
}

func (s *Staples) nudge() {
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// run starts what is due.
func (s *Staples) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(s.begin(time.Now()))
		select {
		case <-s.ctx.Done():
			return
		case <-s.poke:
		case <-timer.C:
		}
	}
}

// begin starts exchanges and returns when to look again.
func (s *Staples) begin(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait := stapleLast
	var due []*ownCert
	for _, o := range s.own {
		switch {
		case o.q == nil || o.busy:
		case o.next.After(now):
			wait = min(wait, o.next.Sub(now))
		default:
			due = append(due, o)
		}
	}
	// Those that wait longest come first; what finds no place is begun when one is free.
	slices.SortFunc(due, func(a, b *ownCert) int { return a.next.Compare(b.next) })
	for _, o := range due[:min(len(due), maxStapling-s.busy)] {
		o.busy = true
		s.busy++
		s.tasks.Go(func() { s.fetch(o) })
	}
	return wait
}

func (s *Staples) fetch(o *ownCert) {
	defer guard(s.c.Log, "staples")
	answer, der, err := s.exchange(o.q)
	now := time.Now()
	s.mu.Lock()
	defer s.nudge()
	defer s.mu.Unlock()
	s.busy--
	o.busy = false
	if s.ctx.Err() != nil || s.own[o.sum] != o {
		return // the program ends, or it is not served any more
	}
	if err == nil && answer.ThisUpdate.Before(o.answer.ThisUpdate) {
		err = fmt.Errorf("found an answer of %s, older than the one of %s that is there", instant(answer.ThisUpdate), instant(o.answer.ThisUpdate))
	}
	if err == nil && answer.Status == trust.Unknown {
		err = errors.New("the responder does not know the certificate")
	}
	if err != nil {
		if o.problem == nil {
			o.since = now
			s.c.Log.Warn("no staple", "certificate", o.name, "problem", err.Error())
		}
		o.problem = err
		o.failures++
		o.next = now.Add(jitter(min(stapleFirst<<min(o.failures-1, 6), stapleLast)))
		return
	}
	if o.answer.Status != answer.Status {
		o.since = now
		s.c.Log.Info("staple", "certificate", o.name, "status", answer.Status.String())
	}
	o.answer, o.problem, o.failures = answer, nil, 0
	wait := answer.Again().Sub(now)
	if wait <= 0 { // the responder has nothing newer
		wait = answer.End().Sub(now) / 4
	}
	o.next = now.Add(jitter(max(wait, stapleFirst)))
	if answer.Status != trust.Good {
		der = nil // a client that asks its responder is told; we need not say it ourselves
	}
	s.c.Into.Set(o.sum, der, answer.End())
}

// exchange asks without a nonce: the answer goes to many, and responders with prepared answers know none (RFC 5019).
func (s *Staples) exchange(q *trust.Query) (a trust.Answer, der []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.c.Log.Error("staples: bug", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = errors.New("asking ended in a panic, which is a bug")
		}
	}()
	ctx, cancel := context.WithTimeout(s.ctx, s.c.Timeout)
	defer cancel()
	return askRaw(ctx, s.c.do, q, nil)
}

func instant(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Conditions returns what is wrong now, ordered by code and text; several may have one code.
func (s *Staples) Conditions() []Condition {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Condition
	for _, o := range s.own {
		switch {
		case o.answer.Status == trust.Revoked:
			list = append(list, Condition{CertificateRevoked, fmt.Sprintf("our certificate %s was revoked at %s according to %q; clients that check will refuse it, so replace it", o.name, instant(o.answer.RevokedAt), o.q.Responder), o.since})
		case o.problem != nil && (o.answer.Status != trust.Good || !now.Before(o.answer.End())):
			text := fmt.Sprintf("no OCSP response can be stapled to our certificate %s: %v", o.name, o.problem)
			if o.must {
				text += "; it says must-staple, so clients may refuse it"
			}
			list = append(list, Condition{StapleMissing, text, o.since})
		}
	}
	slices.SortFunc(list, func(a, b Condition) int { return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(a.Text, b.Text)) })
	return list
}

// Close ends all exchanges and waits for them. What is stapled stays so until its end.
func (s *Staples) Close() {
	s.cancel()
	s.tasks.Wait()
}
