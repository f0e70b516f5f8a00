package frontend

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"countersign/internal/forward"
	"countersign/internal/h1"
	"countersign/internal/hostname"
	"countersign/internal/identity"
	"countersign/internal/limit"
	"countersign/internal/message"
	"countersign/internal/origin"
	"countersign/internal/policy"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/route"
	"countersign/internal/snapshot"
	"countersign/internal/tracing"
	"countersign/internal/upstream"
)

// lane is where requests are served one after the other: all those of a connection of HTTP/1.1, and of one of HTTP/2 as
// many as there are streams at a time, which take the lanes in turn. What is remembered from request to request to save
// work, the lane remembers; it always belongs to one connection, and so to one client.
type lane struct {
	*conn
	standing
	// watch is the connection's own in HTTP/1.1.
	watch *forward.Watch
	busy  bool // for the sweep: a request is under way, or may be

	undertaking undertaking
	// end is why the request under way has to end.
	end atomic.Pointer[doom]

	reader   h1.Reader
	req      message.Request
	rec      record.Request
	exchange forward.Exchange
	fragment []byte
	head     bool // the request's method is HEAD; asked before its body may overwrite the head
	grpc     bool // and its content type that of gRPC

	// The host of the last request, so that a connection that asks for the same one again looks nothing up.
	asked     *snapshot.Host
	askedHost []byte
	askedName string          // its canonical name
	drawn     *snapshot.Route // whose client the headers are about; nil for the host's
	routed    routed
	facts     *policy.Facts      // nil until an expression asks
	reply     forward.Answer     // an answer of ours
	via       asserted           // whom a trusted proxy's connection spoke for last
	sender    *identity.Identity // whose request was permitted last
	step      step               // of the request at hand
	scratch   [512]byte

	condition route.Ask

	// Where the request at hand comes from.
	forwarding *origin.Forwarding
	incoming   *origin.Incoming // what a proxy in front said
	spoken     bool             // of the request at hand
	span       *tracing.Span    // of the request at hand; nil until requests are traced
	pass       limit.Pass
	retry      time.Duration // when a request that is refused may be made again
}

// lanes are those of one connection. The lock is held while the sweep looks at them, and while one begins or ends a
// stream: a wait that ran out can only ever end the request it was of.
type lanes struct {
	mu     sync.Mutex
	all    []*lane
	spare  []*lane // of these, those without a stream
	closed bool
}

// forget takes a lane out that is not to be used again.
func (s *lanes) forget(l *lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = slices.DeleteFunc(s.all, func(other *lane) bool { return other == l })
}

// each calls f for every busy lane.
func (s *lanes) each(f func(*lane)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.all {
		if l.busy {
			f(l)
		}
	}
}

// tidy forgets the spare lanes.
func (s *lanes) tidy() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.spare) > 0 {
		s.spare = nil
		s.all = slices.DeleteFunc(s.all, func(l *lane) bool { return !l.busy })
	}
}

// close ends the lanes of a connection that is over.
func (s *lanes) close() {
	s.drop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

// drop forgets all lanes. None of them is in use.
func (s *lanes) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.all {
		l.reader.Release()
	}
	s.all, s.spare = nil, nil
}

// newLane makes a lane that goes on from how the handshake ended.
func (c *conn) newLane(watch *forward.Watch) *lane {
	l := &lane{conn: c, standing: c.standing, watch: watch}
	l.fragment = record.Fragment(c.listener.Name, c.peer, c.client)
	if c.book.More() {
		l.rec.Conn = c.facts()
	}
	l.exchange = forward.Exchange{Announce: c.announce, Own: &c.own, Watch: watch, Limits: limitsOf(&c.listener.Limits), Draining: c.f.draining.Load,
		Address: []byte(c.ip()), Secure: c.secure != nil}
	return l
}

// firstLane makes the one lane of a connection of HTTP/1.1.
//
//go:noinline
func (c *conn) firstLane() *lane {
	l := c.newLane(&c.watch)
	var stream net.Conn = c.sock
	if c.secure != nil {
		stream = c.secure
	}
	l.reader.Reset(stream, c.listener.Limits.Message, false)
	l.exchange.Reader, l.exchange.Client, l.exchange.Wire = &l.reader, stream, c.sock
	l.busy = true
	c.lanes.mu.Lock()
	defer c.lanes.mu.Unlock()
	c.lanes.all = append(c.lanes.all, l)
	return l
}

// doomed returns why the request under way has to end, nil if it may go on.
func (c *lane) doomed() *doom {
	if d := c.end.Load(); d != nil {
		return d
	}
	return c.doom.Load()
}

// flooded reports whether the client has sent TLS records without end and nothing in them.
func (c *conn) flooded() bool { return c.secure != nil && c.secure.Over() }

// finish answers a request that has not been answered, and records how it ended.
func (c *lane) finish(result *forward.Result) {
	if c.flooded() {
		*result = forward.Result{Reason: reason.RecordFlood, Answered: true, Cut: result.Cut}
	}
	c.rec.Reason = result.Reason
	if c.watch.Forced() && (result.Reason == reason.ClientAborted || result.Reason == reason.BodyTruncated) {
		c.rec.Reason, c.rec.Detail = reason.ShutdownForced, "" // the client did not leave
	}
	if d := c.doomed(); d != nil && c.watch.Gone() {
		c.rec.Reason, c.rec.Expected, c.rec.Found, c.rec.Detail = reason.ClientNoLongerTrusted, d.expected, d.found, ""
	}
	if !result.Answered && !c.watch.Gone() {
		result.Keep = c.answer(result.Reason, result.Keep)
	}
	if !c.rec.Reason.Good() && c.book.Keeps() {
		c.rec.Presented = c.presented
		if c.rec.Conn == nil {
			c.rec.Conn = c.conn.facts()
		}
	}
	c.book.Request(&c.rec, c.ref, c.heard())
	if c.span != nil && c.span.Sampled {
		c.endTrace()
	}
}

func limitsOf(l *snapshot.Limits) forward.Limits {
	return forward.Limits{BodyIdle: l.BodyIdle, WriteIdle: l.WriteIdle, TunnelIdle: l.TunnelIdle, Lifetime: l.Lifetime}
}

// awaitRequest waits for the first byte of the next request; again says that it has been waited for already.
func (c *lane) awaitRequest(again bool) (bool, reason.Reason) {
	if !again {
		c.watch.Main.Set(c.watch.Clock, forward.Idle, c.listener.Limits.Idle)
	}
	return c.awaitByte()
}

// awaitByte is awaitRequest for one that has been waited for already.
func (c *lane) awaitByte() (bool, reason.Reason) {
	err := c.reader.Wait()
	if err != nil {
		c.watch.Dozing()
		if c.watch.Shed() {
			return false, reason.MemoryShed
		}
		if why, ok := c.watch.Main.Expired(); ok {
			return false, why
		}
		if c.flooded() {
			return false, reason.RecordFlood
		}
		return false, reason.ClientClosed
	}
	c.watch.Begun(forward.ReadingHead, c.listener.Limits.Header)
	if c.f.draining.Load() {
		// The sweep ends idle connections by their read deadline, and this one is not idle any more.
		_ = c.sock.SetDeadline(time.Time{})
	}
	return true, reason.Unset
}

// serve serves one request, and reports whether another one may follow.
//
//go:noinline
func (c *lane) serve(serial uint64) bool {
	c.rec.Begin(serial, time.Now())
	result := c.exchangeOne() // read, canonical host, route, policy, permit, forward
	c.finish(&result)
	switch {
	case result.Cut || c.doomed() != nil && c.watch.Gone():
		c.cut()
	case c.f.draining.Load():
		c.book.Ended(reason.Drained)
		c.linger()
	case !result.Keep:
		c.linger()
	default:
		return true
	}
	return false
}

// exchangeOne takes one request from its head to its answer. A Result without an answer is answered by the caller.
func (c *lane) exchangeOne() forward.Result {
	c.head, c.grpc, c.via.used, c.step.used = false, false, false, false
	c.unhear()
	if err := c.reader.ReadRequest(&c.req); err != nil {
		c.rec.HeadIn = int64(c.req.Bytes)
		if c.rec.Minor = 1; len(c.req.Fields) > 0 { // it was read so far
			c.rec.Minor = c.req.Minor
		}
		c.rec.Keep(c.req.Method, c.req.Host, c.req.Path)
		c.rec.Classify(c.req.ClassReason)
		var refusal *reason.Refusal
		why, timeout := c.watch.Main.Expired()
		switch {
		case timeout:
			err = &reason.Refusal{Reason: why}
		case errors.As(err, &refusal):
		default:
			c.rec.Fail(reason.ClientAborted, err)
			return forward.Result{Reason: c.rec.Reason, Answered: true}
		}
		c.rec.Fail(reason.BadRequestLine, err)
		return forward.Result{Reason: c.rec.Reason}
	}
	c.note()
	return c.carryOut(&c.req)
}

// note keeps of the request's head what records say.
func (c *lane) note() {
	c.rec.HeadIn = int64(c.req.Bytes)
	c.rec.Keep(c.req.Method, c.req.Host, c.req.Path)
	c.rec.Classify(c.req.ClassReason)
	if c.book.More() {
		c.rec.KeepMore(&c.req)
	}
}

// carryOut decides about a request whose head was read, and does what was decided.
func (c *lane) carryOut(req *message.Request) forward.Result {
	c.head, c.grpc = req.IsHead(), isGRPC(req)
	c.rec.GRPC = c.grpc
	c.exchange.Timeout, c.retry = 0, 0
	if c.grpc {
		c.exchange.Timeout = grpcTimeout(req)
	}
	defer c.pass.Leave()
	permit, why := c.decide(req)
	c.exchange.Trace = nil
	if c.f.traces != nil && c.pub != nil && c.pub.Tracing != nil { // one that ends before it was judged has no configuration
		c.beginTrace(c.pub.Tracing, req, why)
	}
	if why == reason.AnsweredHere {
		return c.local()
	}
	if why != reason.Unset {
		return forward.Result{Reason: why, Keep: c.mayGoOn(why)}
	}
	done := c.oversee()
	result := c.exchange.Do(permit, req, &c.rec)
	done()
	c.undertaking.done()
	if c.span != nil && c.span.Sampled {
		c.span.Answered = time.Now()
	}
	if !result.Answered {
		result.Keep = c.mayGoOn(result.Reason)
	}
	return result
}

// mayGoOn reports whether another request may follow one that is refused for why: its head was understood and no body
// follows, so where the next one begins is known, and the client did nothing that says it should not be listened to.
func (c *lane) mayGoOn(why reason.Reason) bool {
	stage, status := why.Row().Stage, why.Status()
	_, expired := c.watch.Expired() // nothing would end its waits any more
	return c.req.KeepAlive && c.req.Framing == message.NoBody && !expired && !c.f.draining.Load() &&
		(stage == reason.StageRoute || stage == reason.StageUpstream) && status != 400 && status != 431 && why != reason.ClientNoLongerTrusted
}

// decide finds the route of a request and asks policy for its permit, under the configuration in force now.
func (c *lane) decide(req *message.Request) (policy.Permit, reason.Reason) {
	if why := c.stand(); why != reason.Unset {
		return policy.Permit{}, why
	}
	if c.paged() {
		c.rec.Expected, c.rec.Found = c.verdict.Expected, c.verdict.Found
		return policy.Permit{}, c.verdict.Reason
	}
	c.takeCookies(req)
	if !c.forwarding.Static() {
		if why := c.hear(req); why != reason.Unset {
			return policy.Permit{}, why
		}
	}
	if why := c.enter(c.pub.listeners[c.entry.key].Gate, c.client); why != reason.Unset {
		return policy.Permit{}, why
	}
	host, why := c.requested(req)
	if why != reason.Unset {
		return policy.Permit{}, why
	}
	q := policy.Question{Serial: c.rec.Serial, Asked: host.Policy, Mode: host.Auth.Mode, Client: c.client}
	if c.host != nil {
		q.Connection = c.host.Policy
	} else {
		q.Connection = host.Policy // plain listeners have no server name, and no policy but off
	}
	// Once without a route: who may not ask for the host is not told which routes it has.
	if _, why := policy.Decide(&q); why != reason.Unset {
		return policy.Permit{}, why
	}
	if c.via.by != nil {
		if q.Client, why = c.assertedClient(req, host); why != reason.Unset {
			return policy.Permit{}, why
		}
	}
	if why := c.enter(host.Gate, q.Client); why != reason.Unset {
		return policy.Permit{}, why
	}
	path := req.Path
	if path[0] == '*' { // OPTIONS * concerns the whole server
		path = root
	}
	read, err := route.Analyze(path, c.scratch[:0])
	if err != nil {
		c.rec.Fail(reason.PathUnsafe, err)
		return policy.Permit{}, reason.PathUnsafe
	}
	if host.StepsUp {
		if why, ours := c.reserved(req, read, host, q.Client); ours {
			return policy.Permit{}, why
		}
	}
	if host.Exempt != nil && c.exempted(host.Exempt, req, read, q.Client) {
		return policy.Permit{}, reason.AnsweredHere
	}
	to, _, verdict := host.Routes.Find(read, c.ask(req, q.Client))
	switch verdict {
	case route.Matched:
		c.rec.Rule = to.Number
	case route.NotFound:
		return policy.Permit{}, reason.RouteNotFound
	default:
		if used := read.Used(); used != 0 {
			c.rec.Found = used.String()
		}
		return policy.Permit{}, reason.PathUnsafe
	}
	if req.WebSocketKey != nil && !to.WebSocket {
		c.rec.Expected, c.rec.Found = "a route with upgrade: [websocket]", "one without"
		return policy.Permit{}, reason.UpgradeRefused
	}
	if to.StepUp != nil {
		q.Mode = policy.Require // whatever the host's: behind a step-up the client is verified
		q.Client, why = c.steppedUp(to, host, req, q.Client)
	} else {
		q.Client, why = c.clientFor(to, host, q.Client)
	}
	if why != reason.Unset {
		return policy.Permit{}, why
	}
	if q.Upstream = to.Upstream; to.Groups != nil {
		q.Upstream = to.To(c.draw(to, q.Client))
	}
	if q.Allow = to.Allow; q.Allow != nil {
		q.Facts = c.factsOf(req, read, host, q.Client)
	}
	if id, verified := q.Client.Identity(); verified && c.book.More() {
		c.rec.User = id.Subject() // whatever becomes of the request
	}
	permit, why := policy.Decide(&q)
	if why != reason.Unset {
		c.explainPolicy(why, q.Allow, q.Client)
		return permit, why
	}
	if why := c.enter(to.Gate, q.Client); why != reason.Unset {
		return policy.Permit{}, why
	}
	if to.ShadowAllow != nil || to.ShadowStore != nil {
		c.shadow(to, req, read, host, q.Client)
	}
	if why := c.edit(req, read, host, to); why != reason.Unset {
		return policy.Permit{}, why
	}
	c.sends(q.Client)
	c.undertake(req, read, host, to, q.Client)
	return permit, why
}

// draw is the number by which one of several pools is chosen: by chance, or the same for each request of a client.
func (c *lane) draw(to *snapshot.Route, client identity.Client) uint64 {
	if !to.Sticky {
		return rand.Uint64()
	}
	if id, verified := client.Identity(); verified {
		sum := id.Fingerprint()
		return upstream.Hash(sum[:])
	}
	return upstream.Hash(c.exchange.Address)
}

// ask is what conditions of routes read of the request besides its path.
func (c *lane) ask(req *message.Request, client identity.Client) *route.Ask {
	c.condition = route.Ask{Request: req, Source: c.address(), Client: client}
	return &c.condition
}

// address is that of whoever sent the request at hand, as far as proxies in front are believed.
func (c *lane) address() netip.Addr {
	if c.spoken {
		return c.incoming.Client().Addr()
	}
	return c.from.Client.Addr()
}

// stand brings the connection's standing up to the configuration in force. When nothing changed, which is nearly always,
// that is one comparison. A client that was accepted under a policy whose content changed is verified again; a
// connection never moves to another policy because of a reload (A34, D20).
func (c *lane) stand() reason.Reason {
	pub, now := c.f.current.Load(), c.rec.Start
	if pub == c.pub && (c.validUntil.IsZero() || !now.After(c.validUntil)) {
		return reason.Unset
	}
	h := held{name: c.name, presented: c.presented, version: c.version, accepted: c.verdict.Accepted,
		belief: c.verdict.Belief(), until: c.validUntil}
	r := c.review(&h, pub, now)
	if r.judged && r.verdict.Reason == reason.OCSPUnavailable && c.f.ask(r.verdict.Ask) {
		r = c.review(&h, pub, time.Now())
	}
	if r.host != nil {
		c.host = r.host
	}
	if r.refused {
		c.rec.Expected, c.rec.Found = r.expected, r.found
		return reason.ClientNoLongerTrusted
	}
	if pub != c.pub {
		c.asked, c.pub = nil, pub
		c.current(r.listener)
	}
	if r.judged {
		c.asked, c.verdict, c.version = nil, r.verdict, r.version
		if s := c.host.Auth.Store; s != nil {
			s.Remember(&c.verdict)
		}
		c.f.soon(c.verdict.Ask)
		c.identify(c.presented)
		c.fragment = record.Fragment(c.listener.Name, c.peer, c.client)
	}
	if c.secure != nil {
		c.hold(&c.standing)
	}
	return reason.Unset
}

// current notes the limits of the configuration in force; what was read under older ones stays read.
func (c *lane) current(l *active) {
	c.exchange.Limits, c.exchange.Guard, c.exchange.Pools = limitsOf(&l.Limits), c.pub.Guard, c.pub.pools
	c.forwarding = l.Forwarding
}

// unhear forgets what a proxy said of the request before: it is not believed of the next one.
func (c *lane) unhear() {
	if !c.spoken {
		return
	}
	c.spoken, c.facts = false, nil
	c.exchange.Address = append(c.exchange.Address[:0], c.ip()...)
	c.fragment = record.Fragment(c.listener.Name, c.peer, c.client)
}

// requested finds the host a request names, and renders the headers its targets get about this connection.
func (c *lane) requested(req *message.Request) (*snapshot.Host, reason.Reason) {
	if c.asked != nil && bytes.Equal(req.Host, c.askedHost) {
		return c.asked, reason.Unset
	}
	name, port, err := hostname.AppendCanonicalHost(c.scratch[:0], req.Host)
	if err != nil {
		c.rec.Detail = err.Error()
		return nil, reason.HostInvalid
	}
	here := c.pub.listeners[c.entry.key]
	host := here.Host(name)
	if host == nil {
		return nil, reason.HostUnknown
	}
	// A port that is not ours says nothing, ports may be mapped on the way; but if it is that of another listener which
	// has the host too, the request is for that one, under its policy (A43).
	if other := c.pub.ports[port]; port != 0 && port != here.port && other != nil && other.Protocol.Requests() && other.Host(name) != nil {
		c.rec.Found = "the port of listener " + strconv.Quote(other.Name)
		return nil, reason.PolicyMismatch
	}
	c.asked, c.drawn = nil, nil // what was rendered for it goes now, whatever comes of this
	c.askedName = string(name)
	if c.via.listed(host.Proxy(c.client)); c.via.by == nil {
		err = c.render(host, c.client, identity.ForwardedCerts{})
		if err == nil {
			err = c.identityErr
		}
		if err != nil {
			c.rec.Fail(reason.IdentityTooLarge, err)
			return nil, c.rec.Reason
		}
	}
	c.asked, c.askedHost = host, append(c.askedHost[:0], req.Host...)
	return host, reason.Unset
}

// render sets the headers that say where requests come from and who client is. On an error there are none.
func (c *lane) render(host *snapshot.Host, client identity.Client, prior identity.ForwardedCerts) (err error) {
	c.exchange.Trailer, err = c.origin(host, client, prior)
	return err
}

// origin renders where requests come from and who client is. prior is what a trusted proxy said of earlier hops.
func (c *lane) origin(host *snapshot.Host, client identity.Client, prior identity.ForwardedCerts) ([]byte, error) {
	var in *origin.Incoming
	if c.spoken {
		in = c.incoming
	}
	b := c.forwarding.Append(c.exchange.Trailer[:0], in, &origin.Hop{Client: c.from.Client, Local: c.from.Local, Secure: c.secure != nil, Host: c.req.Host})
	c.exchange.Origin = len(b)
	b, dropped, err := host.Style.Append(b, client, prior)
	if dropped && !c.via.warned {
		c.via.warned = c.via.by != nil // a proxy's connection meets every large chain again and again
		c.f.log.Warn("the chain is too large for identity headers and was left out", "ref", c.ref, "host", host.Name)
	}
	return b, err
}

var root = []byte("/")

// enter counts the request in the limits called gate, whose client is client.
func (c *lane) enter(gate string, client identity.Client) (why reason.Reason) {
	if gate == "" {
		return reason.Unset
	}
	who := c.who
	if c.spoken {
		addr := c.address()
		who.Address, who.Local = limit.AddressKey(addr), addr.IsLoopback()
	}
	if id, verified := client.Identity(); verified {
		who.Certificate = limit.CertificateKey(id.Fingerprint())
	}
	c.retry, why = c.pass.Enter(c.f.gates.Gate(gate), &who, c.rec.Start)
	return why
}

// hear takes in what a proxy in front says about where the request comes from. Everything that is rendered for a client
// is rendered anew, for the next request may come from elsewhere.
func (c *lane) hear(req *message.Request) reason.Reason {
	if c.incoming == nil {
		c.incoming = new(origin.Incoming)
	}
	c.asked, c.facts, c.spoken = nil, nil, true
	why := c.forwarding.Read(c.incoming, req.Fields, c.from.Client)
	c.rec.Client = origin.Text(c.incoming.Client())
	c.exchange.Address = c.address().AppendTo(c.exchange.Address[:0])
	c.fragment = record.Fragment(c.listener.Name, c.rec.Client, c.client)
	return why
}
