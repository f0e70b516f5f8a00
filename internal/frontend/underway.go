package frontend

import (
	"bytes"
	"crypto/x509"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"countersign/internal/identity"
	"countersign/internal/message"
	"countersign/internal/policy"
	"countersign/internal/reason"
	"countersign/internal/route"
	"countersign/internal/snapshot"
	"countersign/internal/trust"
)

// underway is a request under way, of which the connection's standing does not tell all: its host may be another one of
// the same policy, its client one for whom a trusted proxy speaks, and its route can ask more than its host, now or under
// a configuration to come. It is what the sweep needs to judge it anew.
type underway struct {
	asked     string // canonical name of the host
	path      []byte
	client    identity.Client
	matched   identity.Client // by whom its route was chosen; a step-up can make client another one
	presented []*x509.Certificate
	belief    trust.Belief
	proxy     identity.Client // who asserted presented, if asserted is set
	asserted  bool
	webSocket bool
	request   *message.Request
	facts     policy.Connection
	serial    uint64 // of the request
}

// undertaking is where the connection leaves it for the sweep. The head's buffer is used again while the body streams, so
// it is copied, into storage that serves the connection's next request too.
type undertaking struct {
	mu    sync.Mutex
	on    bool
	now   underway
	head  *head
	until atomic.Int64 // when to look again whatever happens, in Unix milliseconds; 0 for never, or nothing under way
}

// head is a copy of a request's head. Connections share them, so that an idle one has none.
type head struct {
	message.Request
	buf []byte
}

var heads = sync.Pool{New: func() any { return new(head) }}

// maxSharedHead is the largest buffer that goes back to the others.
const maxSharedHead = 8 << 10

// undertake tells the sweep about the request that was just permitted; done takes it back.
func (c *lane) undertake(req *message.Request, read route.Path, host *snapshot.Host, to *snapshot.Route, client identity.Client) {
	if c.secure == nil || host.Auth.Mode == policy.Off {
		return
	}
	t := &c.undertaking
	t.mu.Lock()
	defer t.mu.Unlock()
	t.on = true
	t.now = underway{asked: c.askedName, path: append(t.now.path[:0], req.Path...), client: client, matched: c.condition.Client, presented: c.shown(), webSocket: req.WebSocketKey != nil, serial: c.rec.Serial}
	var until time.Time
	if c.via.used {
		t.now.proxy, t.now.asserted, t.now.belief = c.client, true, c.via.belief
		until = c.via.until
	} else if to.Store != nil && !c.step.used { // what is shown in a step-up, its own timer looks at
		t.now.belief, until = c.routed.belief, c.routed.until
	}
	// For an expression, of this configuration or of one to come.
	t.head = heads.Get().(*head)
	t.head.buf = copyHead(&t.head.Request, req, t.head.buf[:0])
	t.now.request, t.now.facts = &t.head.Request, *c.factsOf(req, read, host, client).Connection
	switch {
	case c.f.current.Load() != c.pub:
		t.until.Store(1) // who decided it had to wait, and the sweep may have looked at the connection meanwhile
	case !until.IsZero():
		t.until.Store(until.UnixMilli())
	}
}

// condemn notes why the request has to end, if it is still the one that was looked at.
func (c *lane) condemn(u *underway, d *doom) {
	t := &c.undertaking
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.on && t.now.serial == u.serial {
		c.end.CompareAndSwap(nil, d)
	}
}

// done takes back what undertake told.
func (t *undertaking) done() {
	if !t.on { // written by this goroutine only
		return
	}
	t.mu.Lock()
	t.on, t.now.request = false, nil
	if cap(t.head.buf) <= maxSharedHead {
		heads.Put(t.head)
	}
	t.head = nil
	t.mu.Unlock()
	t.until.Store(0)
}

// over reports whether the time is up for which the client of the request was accepted.
func (t *undertaking) over(now time.Time) bool {
	ms := t.until.Load()
	return ms != 0 && now.UnixMilli() > ms
}

// again sets when to look again, if the request is still the one that was looked at; zero for never.
func (t *undertaking) again(u *underway, until time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.on && t.now.serial == u.serial {
		ms := int64(0)
		if !until.IsZero() {
			ms = until.UnixMilli()
		}
		t.until.Store(ms)
	}
}

// take returns a copy of what is under way, nil for nothing.
func (t *undertaking) take() *underway {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.on {
		return nil
	}
	u := t.now
	u.path = bytes.Clone(u.path)
	u.request = new(message.Request)
	copyHead(u.request, t.now.request, nil)
	return &u
}

// copyHead makes dst a copy of src whose octets are in buf, and returns it.
func copyHead(dst, src *message.Request, buf []byte) []byte {
	n := len(src.Method) + len(src.Path) + len(src.Query) + len(src.Host)
	for i := range src.Fields {
		n += len(src.Fields[i].Name) + len(src.Fields[i].Value)
	}
	buf = slices.Grow(buf, n) // at once: what points into it must not move
	keep := func(b []byte) []byte {
		start := len(buf)
		buf = append(buf, b...)
		return buf[start:len(buf):len(buf)]
	}
	fields := dst.Fields[:0]
	*dst = *src
	dst.Method, dst.Path, dst.Query, dst.Host, dst.WebSocketKey = keep(src.Method), keep(src.Path), keep(src.Query), keep(src.Host), nil
	for i := range src.Fields {
		f := &src.Fields[i]
		fields = append(fields, message.Field{Name: keep(f.Name), Value: keep(f.Value), Hop: f.Hop})
	}
	dst.Fields = fields
	return buf
}

// outcome is what became of a request that was judged anew.
type outcome struct {
	refused         bool
	unasked         bool // because an OCSP responder was not asked yet
	expected, found string
	until           time.Time // when to look again; zero for never
}

// review judges the request under the configuration of l, as decide would if it came now.
func (u *underway) review(f *Frontend, l *active, own *snapshot.Host, now time.Time) (out outcome) {
	no := func(expected, found string) outcome { return outcome{refused: true, expected: expected, found: found} }
	host := l.Host([]byte(u.asked))
	switch {
	case host == nil:
		return no("", "a host that is no longer configured")
	case own != nil && host.Policy != own.Policy:
		return no("", reason.PolicyMismatch.String())
	}
	var buf [512]byte
	path := u.path
	if path[0] == '*' {
		path = root
	}
	read, err := route.Analyze(path, buf[:0])
	if err != nil {
		return no("", bounded(err))
	}
	to, _, verdict := host.Routes.Find(read, &route.Ask{Request: u.request, Source: u.facts.ClientIP, Client: u.matched})
	if verdict != route.Matched || u.webSocket && !to.WebSocket {
		return no("", "a route that is no longer configured")
	}
	client, store := u.client, to.Store
	switch {
	case u.asserted:
		by := host.Proxy(u.proxy)
		if by == nil {
			return no("", "a trusted proxy that is no longer listed")
		}
		store = by.Store
	case to.Required && len(u.presented) == 0:
		return no("a client certificate", reason.RouteCertMissing.String())
	}
	if store != nil {
		v := store.VerifyAgain(u.presented, u.belief, now) // nobody is waited for: the sweep has others to see
		f.soon(v.Ask)
		if !v.Accepted {
			out = no(v.Expected, v.Reason.String()+": "+v.Found)
			out.unasked = v.Reason == reason.OCSPUnavailable
			return out
		}
		who, err := believed(&v)
		if err != nil {
			return no("", bounded(err))
		}
		client, out.until = who, store.GoodUntil(&v)
	}
	if to.Allow != nil {
		facts := &policy.Facts{Client: client, Request: u.request, Path: read, Host: u.asked, Connection: &u.facts, Now: now}
		if allowed, _ := to.Allow.Would(facts); !allowed {
			return no("allow: "+to.Allow.String(), reason.PolicyDenied.String())
		}
	}
	return out
}
