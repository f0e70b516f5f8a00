package refresh

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	mrand "math/rand/v2"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"countersign/internal/outbound"
	"countersign/internal/trust"
)

const (
	defaultOCSPTimeout = 2 * time.Second

	// Bounds of what is under way (threats C21). A handshake with a certificate of its own costs a place in a queue; who
	// finds none is told so at once.
	maxAsking     = 16 // of one responder
	maxAskingAll  = 64
	maxWaiting    = 256 // of one responder; half as many for questions that nobody waits for
	maxWaitingAll = 2048
	maxQuestions  = 16384 // that are remembered, to be asked again
	maxResponders = 1024

	// A responder that fails this often in a row is left alone for firstPause, which doubles up to maxPause: handshakes do
	// not wait for one that will not answer (threats C18).
	tolerated  = 3
	firstPause = 10 * time.Second
	maxPause   = time.Minute

	failedPause   = time.Second      // before a question is asked again whose responder did not answer
	unusablePause = 10 * time.Second // and one whose answer could not be used
	freshFor      = 5 * time.Second  // in which a question that was answered is not asked again, though it waits
	soonAgain     = 30 * time.Second // and though nobody waits

	usedFor     = time.Hour // after its last use an answer is not asked for again
	longestWait = time.Hour // between two questions about a certificate in use, however long its answers last
	scanEvery   = 10 * time.Second
	maxScan     = 256 // questions asked again in one scan
	gatherFor   = 100 * time.Millisecond
	turnedFor   = time.Minute // how long a condition tells of questions turned away

	maxOCSPBytes = 64 << 10 // as in trust
	nonceBytes   = 32       // RFC 9654 section 2.1
)

// Codes of conditions about OCSP.
const (
	// ResponderFailing: a responder does not answer. Stores that require its answers refuse clients that were not seen lately.
	ResponderFailing = "ocsp_responder_failing"
	// ResponderUnusable: a responder answers what cannot be believed or used.
	ResponderUnusable = "ocsp_answers_unusable"
	// ResponderBusy: questions were turned away because too many were waiting.
	ResponderBusy = "ocsp_questions_turned_away"
)

// RespondersConfig says how to ask.
type RespondersConfig struct {
	Client *outbound.Client
	// Answers is where believed answers go.
	Answers *trust.Answers
	Log     *slog.Logger
	// Changed is called when a verdict may differ from what it was; once for changes that come together.
	Changed func()
	// Timeout is for one exchange: 2 s by default.
	Timeout time.Duration

	do func(context.Context, *outbound.Request) (*outbound.Response, error) // in tests
}

// Responders asks OCSP responders (RFC 6960) and keeps their answers fresh: what was used within the last hour is asked
// again before it runs out, so that a certificate that is revoked while its client is connected is found. It is made by
// NewResponders and ended by Close; its methods may be called from any goroutine.
//
// Only queries about certificates of a verified chain may be handed to it (threats C13, C21).
type Responders struct {
	c      RespondersConfig
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	news   chan struct{}

	mu              sync.Mutex // never held while something is asked or logged
	closed          bool
	questions       map[trust.QueryKey]*question
	responders      map[string]*responder
	asking, waiting int
	turned          time.Time // when a question was last turned away
	turnedSince     time.Time
	counts          OCSPCounts
}

// OCSPCounts are since the start.
type OCSPCounts struct {
	Asked    uint64 // exchanges begun
	Answered uint64 // answers believed
	Failed   uint64 // exchanges without an answer
	Unusable uint64 // answers that were not believed, and refusals to answer
	Turned   uint64 // questions not asked, because too many were waiting or the responder was failing
}

// question is what is known about a query, besides its answer.
type question struct {
	q      *trust.Query
	key    trust.QueryKey
	at     *responder
	flight *flight // under way or waiting; nil if neither
	err    error   // told until errEnd, in place of asking
	errEnd time.Time
	last   time.Time // when it was last answered
	next   time.Time // when to ask again unasked
}

// flight is one exchange and all who wait for it (threats C19).
type flight struct {
	done chan struct{}
	err  error
}

// responder is a host that answers.
type responder struct {
	name     string
	asking   int
	queue    []*question
	failures int                     // in a row
	unusable int                     // in a row
	errors   map[trust.QueryKey]bool // questions that it answered with an error since it last gave an answer
	pause    time.Duration
	until    time.Time // it is not asked before
	probing  bool      // one question finds out whether it answers again
	last     error
	since    time.Time // of the first failure, or unusable answer, in a row
	used     time.Time
}

// onlyFor reports whether err is an answer, an error for this question, and too few other questions had one to say that
// the responder is failing.
func (at *responder) onlyFor(key trust.QueryKey, err error) bool {
	_, status := errors.AsType[*outbound.StatusError](err)
	_, declined := errors.AsType[trust.Declined](err)
	if !status && !declined {
		return false
	}
	if at.errors == nil {
		at.errors = make(map[trust.QueryKey]bool)
	}
	if len(at.errors) < tolerated {
		at.errors[key] = true
	}
	return len(at.errors) < tolerated
}

// NewResponders makes Responders.
func NewResponders(c RespondersConfig) *Responders {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultOCSPTimeout
	}
	if c.do == nil {
		c.do = c.Client.Do
	}
	r := &Responders{c: c, news: make(chan struct{}, 1), questions: make(map[trust.QueryKey]*question), responders: make(map[string]*responder)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.tasks.Go(func() { persist(r.ctx, r.c.Log, "OCSP", r.scan) })
	r.tasks.Go(func() { persist(r.ctx, r.c.Log, "OCSP", r.tell) })
	return r
}

// Ask asks q, or waits with others for its answer, until ctx ends. It returns nil when a new answer, good or bad, is in
// Answers. It fails at once when the responder has failed lately or too many questions are waiting.
func (r *Responders) Ask(ctx context.Context, q *trust.Query) error {
	f, err := r.start(q, q.Key(), true)
	if f == nil {
		return err
	}
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return fmt.Errorf("OCSP: expected an answer in time, found none yet: %w", ctx.Err())
	}
}

// Soon asks q in the background. It never blocks.
func (r *Responders) Soon(q *trust.Query) { r.start(q, q.Key(), false) }

// start returns the exchange to wait for, or why there is none; neither when there is a fresh answer.
func (r *Responders) start(q *trust.Query, key trust.QueryKey, waits bool) (*flight, error) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, errors.New("OCSP: responders are not asked any more; the program is ending")
	}
	n := r.questions[key]
	if n == nil {
		at, err := r.responder(q.Responder)
		if err != nil {
			return nil, err
		}
		n = &question{q: q, key: key, at: at}
	}
	at := n.at
	at.used = now
	quiet := freshFor
	if !waits {
		quiet = soonAgain
	}
	switch {
	case n.flight != nil:
		return n.flight, nil
	case now.Before(n.errEnd):
		return nil, n.err
	case now.Sub(n.last) < quiet && r.answered(key):
		return nil, nil
	case now.Before(at.until), at.probing:
		r.counts.Turned++
		return nil, fmt.Errorf("OCSP responder %s: not asked, because it failed %d times in a row, at last so: %w", at.name, at.failures, at.last)
	}
	full := r.asking >= maxAskingAll || at.asking >= maxAsking
	most := maxWaiting
	if !waits {
		most /= 2
	}
	if full && (len(at.queue) >= most || r.waiting >= maxWaitingAll) {
		return nil, r.turn(now, fmt.Errorf("OCSP responder %s: not asked, because %d questions are waiting for it", at.name, len(at.queue)))
	}
	if r.questions[key] == nil {
		r.room()
		n.q = q.Keep()
		r.questions[key] = n
	}
	n.flight = &flight{done: make(chan struct{})}
	if full {
		at.queue = append(at.queue, n)
		r.waiting++
		return n.flight, nil
	}
	r.begin(n)
	r.tasks.Go(func() { r.work(n) })
	return n.flight, nil
}

// The following need the lock.

// begin takes the place of an exchange.
func (r *Responders) begin(n *question) {
	r.asking++
	n.at.asking++
	n.at.probing = n.at.pause > 0
	r.counts.Asked++
}

func (r *Responders) answered(key trust.QueryKey) bool {
	_, ok := r.c.Answers.Lookup(key)
	return ok
}

func (r *Responders) turn(now time.Time, err error) error {
	if now.Sub(r.turned) > turnedFor {
		r.turnedSince = now
	}
	r.turned = now
	r.counts.Turned++
	return err
}

// responder finds the host of a URL: one that hangs does so for all its paths.
func (r *Responders) responder(raw string) (*responder, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return nil, errors.New("OCSP: expected a responder like http://ocsp.example.com/, found what is not a URL")
	}
	name := strings.ToLower(u.Host)
	at := r.responders[name]
	if at == nil {
		if len(r.responders) >= maxResponders {
			return nil, fmt.Errorf("OCSP: expected at most %d responders, found more", maxResponders)
		}
		at = &responder{name: name}
		r.responders[name] = at
	}
	return at, nil
}

// room makes room for a question, at the cost of the one of some that was answered longest ago, or never. There is always
// one that is not under way, since far fewer can be.
func (r *Responders) room() {
	if len(r.questions) < maxQuestions {
		return
	}
	var worst *question
	seen := 0
	for _, n := range r.questions {
		if n.flight == nil && (worst == nil || n.last.Before(worst.last)) {
			worst = n
		}
		if seen++; seen >= 16 && worst != nil {
			break
		}
	}
	delete(r.questions, worst.key)
}

// end ends a flight.
func (n *question) end(err error) {
	n.flight.err = err
	close(n.flight.done)
	n.flight = nil
}

// next takes the question that may be asked now, of the responder with the fewest exchanges: one that is slow must not
// keep others waiting.
func (r *Responders) next() *question {
	if r.closed || r.asking >= maxAskingAll {
		return nil
	}
	var at *responder
	for _, other := range r.responders {
		if len(other.queue) > 0 && other.asking < maxAsking && !other.probing && (at == nil || other.asking < at.asking) {
			at = other
		}
	}
	if at == nil {
		return nil
	}
	n := at.queue[0]
	at.queue = slices.Delete(at.queue, 0, 1)
	r.waiting--
	r.begin(n)
	return n
}

// work asks n and then what waits.
func (r *Responders) work(n *question) {
	defer guard(r.c.Log, "OCSP")
	for n != nil {
		answer, err := r.exchange(n.q)
		n = r.finish(n, answer, err)
	}
}

// noAnswer is an error of the way to the responder, or of the responder: not one of the answer.
type noAnswer struct{ error }

func (e noAnswer) Unwrap() error { return e.error }

// exchange asks with a nonce. A responder that calls this malformed is asked without, unless a nonce is required.
func (r *Responders) exchange(q *trust.Query) (a trust.Answer, err error) {
	defer func() {
		if p := recover(); p != nil {
			r.c.Log.Error("OCSP: bug", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = errors.New("OCSP: asking ended in a panic, which is a bug")
		}
	}()
	ctx, cancel := context.WithTimeout(r.ctx, r.c.Timeout)
	defer cancel()
	nonce := make([]byte, nonceBytes)
	rand.Read(nonce) // never fails
	a, err = ask(ctx, r.c.do, q, nonce)
	if declined, ok := errors.AsType[trust.Declined](err); ok && declined == trust.DeclinedMalformed && !q.RequireNonce {
		a, err = ask(ctx, r.c.do, q, nil)
	}
	return a, err
}

// ask makes one exchange by POST (RFC 6960 appendix A.1).
func ask(ctx context.Context, do func(context.Context, *outbound.Request) (*outbound.Response, error), q *trust.Query, nonce []byte) (trust.Answer, error) {
	a, _, err := askRaw(ctx, do, q, nonce)
	return a, err
}

func askRaw(ctx context.Context, do func(context.Context, *outbound.Request) (*outbound.Response, error), q *trust.Query, nonce []byte) (trust.Answer, []byte, error) {
	request, err := q.Request(nonce)
	if err != nil {
		return trust.Answer{}, nil, err
	}
	response, err := do(ctx, &outbound.Request{URL: q.Responder, Hosts: q.Hosts, Body: request,
		ContentType: "application/ocsp-request", Accept: "application/ocsp-response", MaxBytes: maxOCSPBytes})
	if err != nil {
		return trust.Answer{}, nil, noAnswer{err}
	}
	a, err := q.Check(response.Body, nonce, time.Now())
	if declined, ok := errors.AsType[trust.Declined](err); ok && (declined == trust.DeclinedTryLater || declined == trust.DeclinedInternal) {
		err = noAnswer{err}
	}
	return a, response.Body, err
}

// finish records what became of n, and returns what to ask next.
func (r *Responders) finish(n *question, a trust.Answer, err error) *question {
	now := time.Now()
	before, known := r.c.Answers.Lookup(n.key)
	changed := err == nil && r.c.Answers.Put(n.key, a)
	if err == nil {
		if latest, ok := r.c.Answers.Lookup(n.key); ok {
			a = latest
		}
	}
	next, failures, failing, well, err := r.settle(n, &a, err, now)
	at := n.at
	switch {
	case failing:
		r.c.Log.Warn("OCSP responder fails", "responder", at.name, "failures", failures, "problem", err.Error())
	case well:
		r.c.Log.Info("OCSP responder answers again", "responder", at.name)
	}
	if changed {
		was := "none"
		if known {
			was = before.Status.String()
		}
		r.c.Log.Info("OCSP answer changed", "responder", at.name, "serial", n.q.Cert.SerialNumber.Text(16), "was", was, "is", a.Status.String())
		select {
		case r.news <- struct{}{}:
		default:
		}
	}
	return next
}

// settle notes how an exchange ended. It returns the next one to make, and what there is to say about the responder.
func (r *Responders) settle(n *question, a *trust.Answer, err error, now time.Time) (next *question, failures int, failing, well bool, _ error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := n.at
	r.asking--
	at.asking--
	at.probing = false
	silent, isSilent := errors.AsType[noAnswer](err)
	switch {
	case isSilent && r.closed:
	case isSilent && at.onlyFor(n.key, silent.error):
		// It answers, and this question with an error. Whoever has a copy of such a certificate could otherwise have
		// nobody's question asked (C18).
		r.counts.Failed++
		at.last = silent.error
		n.errEnd = now.Add(unusablePause)
	case isSilent:
		r.counts.Failed++
		if at.failures++; at.failures == 1 {
			at.since = now
		}
		at.last = silent.error
		n.errEnd = now.Add(failedPause)
		if at.failures >= tolerated && !now.Before(at.until) {
			failing = at.pause == 0
			at.pause = min(max(2*at.pause, firstPause), maxPause)
			at.until = now.Add(jitter(at.pause))
			for _, waiting := range at.queue {
				r.waiting--
				waiting.next = now.Add(soonAgain)
				waiting.end(fmt.Errorf("OCSP responder %s: not asked, because it failed %d times in a row, at last so: %w", at.name, at.failures, at.last))
			}
			at.queue = nil
		}
	default:
		well = at.failures >= tolerated
		at.failures, at.pause, at.until, at.errors = 0, 0, time.Time{}, nil
		if err != nil {
			r.counts.Unusable++
			if at.unusable++; at.unusable == 1 {
				at.since = now
			}
			at.last = err
			n.errEnd = now.Add(unusablePause)
			break
		}
		r.counts.Answered++
		at.unusable, at.last = 0, nil
		n.last = now
	}
	n.next = again(now, a, err)
	if err != nil {
		err = fmt.Errorf("OCSP responder %s: %w", at.name, err)
	}
	n.err = err
	n.end(err)
	return r.next(), at.failures, failing, well, err
}

// again is when to ask for a new answer: at half the life of the one there is.
func again(now time.Time, a *trust.Answer, err error) time.Time {
	if err != nil {
		return now.Add(soonAgain + jitter(soonAgain))
	}
	wait := a.Again().Sub(now)
	if wait <= 0 { // the responder has nothing newer
		wait = a.Until().Sub(now) / 4
	}
	return now.Add(jitter(min(max(wait, soonAgain), longestWait)))
}

// jitter shortens d by up to a fifth, so that what began together does not go on together.
func jitter(d time.Duration) time.Duration { return d - time.Duration(mrand.Int64N(int64(d)/5+1)) }

// tell calls Changed.
func (r *Responders) tell() {
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-r.news:
		}
		gather := time.NewTimer(gatherFor)
		select {
		case <-r.ctx.Done():
			gather.Stop()
			return
		case <-gather.C:
		}
		select {
		case <-r.news:
		default:
		}
		if r.c.Changed != nil {
			r.c.Changed()
		}
	}
}

// scan asks again what is due, and forgets what nobody uses.
func (r *Responders) scan() {
	tick := time.NewTicker(scanEvery)
	defer tick.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-tick.C:
		}
		for _, n := range r.due(time.Now()) {
			r.start(n.q, n.key, false)
		}
	}
}

func (r *Responders) due(now time.Time) (due []*question) {
	r.mu.Lock()
	defer r.mu.Unlock()
	inUse := make(map[*responder]bool, len(r.responders))
	for key, n := range r.questions {
		if n.flight == nil && !now.Before(n.next) && !now.Before(n.errEnd) {
			if now.Sub(r.c.Answers.Used(key)) > usedFor {
				delete(r.questions, key)
				continue
			}
			if len(due) < maxScan {
				n.next = now.Add(soonAgain)
				due = append(due, n)
			}
		}
		inUse[n.at] = true
	}
	for name, at := range r.responders {
		if !inUse[at] && at.asking == 0 && len(at.queue) == 0 && (at.last == nil || now.Sub(at.used) > usedFor) {
			delete(r.responders, name)
		}
	}
	return due
}

// Forget drops what would be asked again unasked. It is for a new configuration, which may not allow to ask all that the
// old one did: what is still in use is handed in again.
func (r *Responders) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, n := range r.questions {
		if n.flight == nil {
			delete(r.questions, key)
		}
	}
}

// Counts returns how often what happened.
func (r *Responders) Counts() OCSPCounts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts
}

// Conditions returns what is wrong now, ordered by code and text; several may have one code.
func (r *Responders) Conditions() []Condition {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []Condition
	for _, at := range r.responders {
		switch {
		case at.failures >= tolerated:
			list = append(list, Condition{ResponderFailing, fmt.Sprintf("OCSP responder %s failed %d times in a row, at last so: %v; trust stores that require OCSP refuse clients without an answer in force, others let them in unless known to be revoked", at.name, at.failures, at.last), at.since})
		case at.unusable >= tolerated:
			list = append(list, Condition{ResponderUnusable, fmt.Sprintf("OCSP responder %s gave %d answers in a row that cannot be used, at last so: %v; they count as none", at.name, at.unusable, at.last), at.since})
		}
	}
	if !r.turned.IsZero() && now.Sub(r.turned) <= turnedFor {
		list = append(list, Condition{ResponderBusy, "more OCSP questions came than responders answer, so some were not asked; trust stores that require OCSP refused these clients", r.turnedSince})
	}
	slices.SortFunc(list, func(a, b Condition) int { return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(a.Text, b.Text)) })
	return list
}

// Close ends all exchanges and waits for them. Who waits in Ask is told.
func (r *Responders) Close() {
	r.mu.Lock()
	if !r.closed {
		r.closed = true
		r.cancel()
		for _, at := range slices.Collect(maps.Values(r.responders)) {
			for _, n := range at.queue {
				n.end(errors.New("OCSP: responders are not asked any more; the program is ending"))
			}
			r.waiting -= len(at.queue)
			at.queue = nil
		}
	}
	r.mu.Unlock()
	r.tasks.Wait()
}
