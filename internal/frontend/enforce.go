package frontend

import (
	"crypto/x509"
	"slices"
	"time"

	"countersign/internal/forward"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/snapshot"
	"countersign/internal/trust"
)

// Trust can end while a connection is open: a certificate is revoked, denied or expires, a CA is removed, a policy
// changes. Requests find out by themselves (stand). The rest of this file is for connections that make none: idle ones,
// tunnels, and answers that take long. Whoever would be refused at the next request is ended, within 5 s: at most two
// ticks until the sweep has seen it, the time to judge those before it, and lastExchange.

// lastExchange is how long a request under way may take to end by itself once its client is not trusted any more.
const lastExchange = 3 * time.Second

// held is how a connection stands, for the sweep: what its client showed, and what became of it under which
// configuration. It never changes; the connection or the sweep replaces it.
type held struct {
	pub       *published // nil for the configuration the connection was accepted under
	name      []byte
	presented []*x509.Certificate
	version   string
	accepted  bool
	belief    trust.Belief
	until     time.Time
}

// hold tells the sweep how c stands now. It is called by the connection's own goroutine, once the client has proven that
// it holds its key, and by its requests. Those of HTTP/2 tell nothing: what one of them has found out under a new
// configuration says nothing about the streams beside it, which the sweep has to see yet.
func (c *conn) hold(s *standing) {
	if c.mux.Load() != nil {
		return
	}
	c.held.Store(&held{pub: s.pub, name: c.name, presented: c.presented, version: s.version, accepted: s.verdict.Accepted,
		belief: s.verdict.Belief(), until: s.validUntil})
	// The handshake was judged by what was in force at accept, which may be long ago, and bytes ask nobody again (C15).
	if c.listener.Protocol == snapshot.TLSBytes {
		c.enforce(c.f.current.Load(), time.Now())
	}
}

// review is a connection judged anew.
type review struct {
	listener *active
	host     *snapshot.Host
	version  string
	judged   bool // verdict is a new one
	verdict  trust.Verdict

	refused         bool
	expected, found string
}

func (r review) no(expected, found string) review {
	r.refused, r.expected, r.found = true, expected, found
	return r
}

// review judges how c, which stood as h, stands under pub. It reads nothing of c that changes, for the sweep calls it
// too.
func (c *conn) review(h *held, pub *published, now time.Time) (r review) {
	r.listener = pub.listeners[c.entry.key]
	switch {
	case r.listener == nil || r.listener.Protocol != c.listener.Protocol:
		return r.no("", "a listener that is no longer configured")
	case !c.listed(r.listener):
		return r.no("", "a listener that does not serve this address any more")
	case !c.listener.Protocol.Terminates():
		return r
	}
	if r.host = r.listener.Host(h.name); r.host == nil {
		return r.no("", "a server name that is no longer configured")
	}
	auth := &r.host.Auth
	r.version = auth.Version()
	mustVerify := auth.Enforced() && !auth.Page
	if r.version != h.version || h.over(now) || !h.accepted && mustVerify {
		r.judged, r.verdict = true, judge(auth, h.presented, h.belief, now)
		if !r.verdict.Accepted && mustVerify {
			return r.no(r.verdict.Expected, r.verdict.Reason.String()+": "+r.verdict.Found)
		}
	}
	return r
}

// over reports whether the time is up for which the client was accepted.
func (h *held) over(now time.Time) bool { return !h.until.IsZero() && now.After(h.until) }

// doom is why a connection has to end.
type doom struct {
	expected, found string
	at              time.Time // of the verdict
}

// doubtful reports whether the sweep has to review c.
func (c *conn) doubtful(pub *published, now time.Time) bool {
	h := c.held.Load()
	if h == nil || c.doom.Load() != nil {
		return false
	}
	doubt := h.pub != pub || h.over(now)
	if !doubt {
		c.lanes.each(func(l *lane) { doubt = doubt || l.undertaking.over(now) })
	}
	return doubt
}

// enforce ends c if its client is not trusted any more, and notes otherwise that it was looked at. It runs beside the
// connection's own goroutine.
func (c *conn) enforce(pub *published, now time.Time) {
	h := c.held.Load()
	if h == nil {
		return
	}
	r := c.review(h, pub, now)
	unasked := r.refused && r.verdict.Reason == reason.OCSPUnavailable
	c.f.soon(r.verdict.Ask)
	var refused, looked []func()
	if !r.refused {
		c.lanes.each(func(l *lane) {
			u := l.undertaking.take()
			if u == nil {
				return
			}
			v := u.review(c.f, r.listener, r.host, now)
			unasked = unasked || v.unasked
			condemn := func() { l.condemn(u, &doom{v.expected, v.found, now}) }
			switch {
			case v.refused && v.unasked:
				refused = append(refused, condemn)
			case v.refused:
				condemn() // no answer can save it
			}
			looked = append(looked, func() { l.undertaking.again(u, v.until) })
		})
	}
	if unasked && c.patient(now) {
		return // it is asked again at the next tick: what was looked at is as doubtful as before
	}
	c.waiting.Store(0)
	for _, note := range append(looked, refused...) {
		note()
	}
	if v := &r.verdict; r.judged && !v.Accepted && h.accepted && r.host.Auth.Enforced() && !r.refused && c.occupied() {
		// on_failure: page. The next request is told; what is under way has nobody to tell.
		r = r.no(v.Expected, v.Reason.String()+": "+v.Found)
	}
	if r.refused {
		c.doom.Store(&doom{r.expected, r.found, now})
		c.execute(now)
		return
	}
	next := *h
	next.pub = pub
	if r.judged {
		next.version, next.accepted, next.until = r.version, r.verdict.Accepted, time.Time{}
		if len(r.verdict.Chain) > 0 {
			next.belief, next.until = r.verdict.Belief(), r.host.Auth.Store.GoodUntil(&r.verdict)
			r.host.Auth.Store.Remember(&r.verdict)
		}
	}
	c.held.CompareAndSwap(h, &next)
}

// patience is how long an open connection waits for the answer of an OCSP responder that was not asked about its client
// before: because answers are required since a moment ago, or another responder is.
const patience = 2 * time.Second

// patient reports whether the time for an answer is not over yet, and begins it.
func (c *conn) patient(now time.Time) bool {
	if c.waiting.CompareAndSwap(0, now.UnixMilli()) {
		return true
	}
	return now.UnixMilli()-c.waiting.Load() < patience.Milliseconds()
}

// occupied reports whether anything is under way on the connection.
func (c *conn) occupied() bool {
	if mux := c.mux.Load(); mux != nil {
		return mux.Streams() > 0
	}
	return c.watch.Main.Phase() != forward.Idle
}

// execute ends what is doomed as soon as it may be ended: at once where nothing or only bytes are under way.
func (c *conn) execute(now time.Time) {
	all := c.doom.Load()
	mux := c.mux.Load()
	if all != nil && mux != nil {
		mux.GoAway() // no new streams; the last one's end is the connection's
	}
	lanes := 0
	c.lanes.each(func(l *lane) {
		lanes++
		if d := l.doomed(); d != nil {
			d.execute(l.watch, now)
		}
	})
	switch {
	case all == nil:
	case mux == nil && lanes == 0:
		all.execute(&c.watch, now)
	case mux != nil && now.Sub(all.at) > lastExchange:
		mux.AbortFor(reason.ClientNoLongerTrusted) // behind the streams, whose records then say why they ended
	}
}

func (d *doom) execute(w *forward.Watch, now time.Time) {
	switch w.Main.Phase() {
	case forward.Idle:
		w.Interrupt()
	case forward.Tunnelling:
		w.Cut()
	default:
		if now.Sub(d.at) > lastExchange {
			w.Cut()
		}
	}
}

// connection notes in the record of a connection's end that it was ended, and why.
func (d *doom) connection(hs *record.Handshake) {
	hs.Reason, hs.Expected, hs.Found, hs.Detail = reason.ClientNoLongerTrusted, d.expected, d.found, ""
}

// reviews goes through the connections that the sweep found doubtful, one after the other. It is one goroutine, so that
// judging many does not take the processors from those who do nothing wrong.
func (f *Frontend) reviews() {
	for {
		select {
		case <-f.stop:
			return
		case list := <-f.doubts:
			f.reviewAll(list)
		}
	}
}

func (f *Frontend) reviewAll(list []*conn) {
	for c := range slices.Values(list) {
		func() {
			defer f.guard()
			c.enforce(f.current.Load(), time.Now())
		}()
	}
	f.reviewing.Store(false)
}

// Recheck has every open connection judged anew although the configuration is the same: an OCSP responder has said
// something new.
func (f *Frontend) Recheck() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.current.Load(); old != nil && !f.draining.Load() {
		again := *old
		f.current.Store(&again)
	}
}
