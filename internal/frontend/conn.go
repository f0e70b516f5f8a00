package frontend

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"countersign/internal/forward"
	"countersign/internal/h1"
	"countersign/internal/hostname"
	"countersign/internal/identity"
	"countersign/internal/message"
	"countersign/internal/policy"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/route"
	"countersign/internal/snapshot"
	"countersign/internal/socket"
	"countersign/internal/trust"
)

// conn is one client connection.
type conn struct {
	f     *Frontend
	entry *entry
	sock  *socket.Conn
	watch forward.Watch
	ref   string
	peer  string

	// Fixed at accept: one configuration for the whole handshake.
	listener *active
	book     *record.Listener

	// What the handshake found.
	sni       string
	name      []byte // canonical server name, empty for none
	early     reason.Reason
	presented []*x509.Certificate
	secure    *tls.Conn // nil on plain listeners

	// The standing: how the client is judged under the configuration in force, which pub numbers.
	pub         *published
	host        *snapshot.Host // by server name
	version     string
	verdict     trust.Verdict
	client      identity.Client
	identityErr error
	validUntil  time.Time // the earliest notAfter of the chain; zero for no chain

	reader   h1.Reader
	req      message.Request
	rec      record.Request
	exchange forward.Exchange
	fragment []byte
	head     bool // the request's method is HEAD; asked before its body may overwrite the head

	// The host of the last request, so that a connection that asks for the same one again looks nothing up.
	asked     *snapshot.Host
	askedHost []byte
	scratch   [512]byte
}

// serve is the life of a connection, from accept to close. The order of its stages is the security model: each hands the
// next what only it can make, and every way out is recorded with one reason. docs/life-of-a-connection.md tells it in words.
func (f *Frontend) serve(c *conn) {
	defer f.end(c)
	if !c.welcome() { // by address
		return
	}
	switch c.listener.Protocol {
	case snapshot.Passthrough:
		c.passthrough()
		return
	case snapshot.TCP:
		c.bytes(c.listener.Upstream)
		return
	case snapshot.HTTPS, snapshot.TLSBytes:
		if !c.handshake() { // verifies the client, every time
			return
		}
		if c.listener.Protocol == snapshot.TLSBytes {
			c.bytes(c.host.Upstream)
			return
		}
	}
	c.prepare()
	for serial := uint64(1); ; serial++ {
		ok, why := c.awaitRequest()
		if !ok {
			c.hangUp(why)
			return
		}
		c.rec.Begin(serial, time.Now())
		result := c.exchangeOne() // read, canonical host, route, policy, permit, forward
		c.rec.Reason = result.Reason
		if !result.Answered && !c.watch.Gone() {
			result.Keep = c.answer(result.Reason, result.Keep)
		}
		c.book.Request(&c.rec, c.ref, c.fragment)
		switch {
		case result.Cut:
			c.cut()
			return
		case f.draining.Load():
			c.book.Ended(reason.Drained)
			c.linger()
			return
		case !result.Keep:
			c.linger()
			return
		}
	}
}

// welcome reports whether the listener serves the client's address, and records it if not.
func (c *conn) welcome() bool {
	l := c.listener
	if c.listed(l) {
		return true
	}
	expected := "a loopback address"
	if !l.LocalOnly {
		expected = fmt.Sprint(l.Sources)
	}
	c.book.Handshake(&record.Handshake{Ref: c.ref, Client: c.peer, Reason: reason.SourceRefused, Expected: expected, Found: c.ip()})
	return false
}

// ip is the client's address without its port.
func (c *conn) ip() string {
	if addr, ok := c.sock.RemoteAddr().(*net.TCPAddr); ok {
		return addr.IP.String()
	}
	return "unknown" // RFC 7239 section 6: a Unix socket, or a test in memory
}

// listed reports whether the client's address is one that l serves.
func (c *conn) listed(l *active) bool {
	if !l.LocalOnly && l.Sources == nil {
		return true
	}
	addr, ok := c.sock.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return true // a Unix socket: its permissions decide
	}
	ip := addr.AddrPort().Addr().Unmap().WithZone("") // CVE-2024-24790: an IPv4 address in IPv6 clothes is that IPv4 address
	return l.LocalOnly && ip.IsLoopback() || slices.ContainsFunc(l.Sources, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// end closes a connection whatever happened to it.
func (f *Frontend) end(c *conn) {
	if v := recover(); v != nil {
		f.book.Panicked()
		f.log.Error("panic in a connection", "ref", c.ref, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
	c.sock.Close()
	c.exchange.Tidy(true)
	c.reader.Release()
	f.table.remove(c.entry)
	c.book.Closed(c.sock.In, c.sock.Out)
	c.listener.open.Add(-1)
}

// prepare sets up what every request of the connection shares.
func (c *conn) prepare() {
	var stream net.Conn = c.sock
	if c.secure != nil {
		stream = c.secure
	}
	c.reader.Reset(stream, c.listener.Limits.Message, false)
	c.fragment = record.Fragment(c.listener.Name, c.peer, c.client)
	if c.host != nil {
		c.version = c.host.Auth.Version()
	}
	// Field by field: the sweep may be looking at what the exchange keeps between requests.
	x := &c.exchange
	x.Watch, x.Reader, x.Client, x.Pools = &c.watch, &c.reader, stream, c.f.pools
	x.Limits, x.Draining = limitsOf(&c.listener.Limits), c.f.draining.Load
}

func limitsOf(l *snapshot.Limits) forward.Limits {
	return forward.Limits{BodyIdle: l.BodyIdle, WriteIdle: l.WriteIdle, TunnelIdle: l.TunnelIdle, Lifetime: l.Lifetime}
}

// awaitRequest waits for the first byte of the next request.
func (c *conn) awaitRequest() (bool, reason.Reason) {
	c.watch.Main.Set(c.watch.Clock, forward.Idle, c.listener.Limits.Idle)
	if err := c.reader.Wait(); err != nil {
		if why, ok := c.watch.Main.Expired(); ok {
			return false, why
		}
		return false, reason.ClientClosed
	}
	if c.f.draining.Load() {
		// The sweep ends idle connections by their read deadline, and this one is not idle any more.
		c.watch.Main.Set(c.watch.Clock, forward.ReadingHead, c.listener.Limits.Header)
		_ = c.sock.SetDeadline(time.Time{})
	}
	return true, reason.Unset
}

// exchangeOne takes one request from its head to its answer. A Result without an answer is answered by the caller.
func (c *conn) exchangeOne() forward.Result {
	c.head = false
	c.watch.Main.Set(c.watch.Clock, forward.ReadingHead, c.listener.Limits.Header)
	if err := c.reader.ReadRequest(&c.req); err != nil {
		c.rec.Keep(c.req.Method, c.req.Host, c.req.Path)
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
	req := &c.req
	c.rec.Keep(req.Method, req.Host, req.Path)
	c.head = req.IsHead()
	permit, why := c.decide(req)
	if why != reason.Unset {
		return forward.Result{Reason: why, Keep: c.mayGoOn(why)}
	}
	result := c.exchange.Do(permit, req, &c.rec)
	if !result.Answered {
		result.Keep = c.mayGoOn(result.Reason)
	}
	return result
}

// mayGoOn reports whether another request may follow one that is refused for why: its head was understood and no body
// follows, so where the next one begins is known, and the client did nothing that says it should not be listened to.
func (c *conn) mayGoOn(why reason.Reason) bool {
	stage, status := why.Row().Stage, why.Status()
	_, expired := c.watch.Main.Expired() // nothing would end its waits any more
	return c.req.KeepAlive && c.req.Framing == message.NoBody && !expired && !c.f.draining.Load() &&
		(stage == reason.StageRoute || stage == reason.StageUpstream) && status != 400 && status != 431 && why != reason.ClientNoLongerTrusted
}

// decide finds the route of a request and asks policy for its permit, under the configuration in force now.
func (c *conn) decide(req *message.Request) (policy.Permit, reason.Reason) {
	if why := c.stand(); why != reason.Unset {
		return policy.Permit{}, why
	}
	if c.paged() {
		c.rec.Expected, c.rec.Found = c.verdict.Expected, c.verdict.Found
		return policy.Permit{}, c.verdict.Reason
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
	path := req.Path
	if path[0] == '*' { // OPTIONS * concerns the whole server
		path = root
	}
	read, err := route.Analyze(path, c.scratch[:0])
	if err != nil {
		c.rec.Fail(reason.PathUnsafe, err)
		return policy.Permit{}, reason.PathUnsafe
	}
	to, _, verdict := host.Routes.Match(read)
	switch verdict {
	case route.Matched:
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
	q.Upstream = to.Upstream
	return policy.Decide(&q)
}

var root = []byte("/")

// stand brings the connection's standing up to the configuration in force. When nothing changed, which is nearly always,
// that is one comparison. A client that was accepted under a policy whose content changed is verified again; a
// connection never moves to another policy because of a reload (A34, D20).
func (c *conn) stand() reason.Reason {
	pub := c.f.current.Load()
	expired := !c.validUntil.IsZero() && c.rec.Start.After(c.validUntil)
	if pub == c.pub && !expired {
		return reason.Unset
	}
	if pub != c.pub {
		c.asked, c.pub = nil, pub
		now := pub.listeners[c.entry.key]
		if now == nil || now.Protocol != c.listener.Protocol {
			c.rec.Found = "a listener that is no longer configured"
			return reason.ClientNoLongerTrusted
		}
		if !c.listed(now) {
			c.rec.Found = "a listener that does not serve this address any more"
			return reason.ClientNoLongerTrusted
		}
		c.current(now)
	}
	if c.secure == nil {
		return reason.Unset
	}
	host := c.pub.listeners[c.entry.key].Host(c.name)
	if host == nil {
		c.rec.Found = "a server name that is no longer configured"
		return reason.ClientNoLongerTrusted
	}
	version := host.Auth.Version()
	c.host = host
	if version == c.version && !expired && (c.verdict.Accepted || !host.Auth.Enforced() || host.Auth.Page) {
		return reason.Unset
	}
	c.asked = nil
	c.verdict = judge(&host.Auth, c.presented, c.rec.Start)
	if !c.verdict.Accepted && host.Auth.Enforced() && !host.Auth.Page {
		c.rec.Expected, c.rec.Found = c.verdict.Expected, c.verdict.Reason.String()+": "+c.verdict.Found
		return reason.ClientNoLongerTrusted
	}
	c.version = version
	c.identify()
	c.fragment = record.Fragment(c.listener.Name, c.peer, c.client)
	return reason.Unset
}

// current notes the limits of the configuration in force; what was read under older ones stays read.
func (c *conn) current(l *active) {
	c.exchange.Limits, c.exchange.Guard = limitsOf(&l.Limits), c.pub.Guard
}

// requested finds the host a request names, and renders the headers its targets get about this connection.
func (c *conn) requested(req *message.Request) (*snapshot.Host, reason.Reason) {
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
	trailer, err := c.origin(host)
	if err == nil {
		err = c.identityErr
	}
	if err != nil {
		c.rec.Fail(reason.IdentityTooLarge, err)
		return nil, c.rec.Reason
	}
	c.exchange.Trailer = trailer
	c.asked, c.askedHost = host, append(c.askedHost[:0], req.Host...)
	return host, reason.Unset
}

// origin renders where requests come from and who the client is.
func (c *conn) origin(host *snapshot.Host) ([]byte, error) {
	b := c.exchange.Trailer[:0]
	b = append(b, "X-Forwarded-For: "...)
	b = append(b, c.ip()...)
	b = append(b, "\r\nX-Forwarded-Proto: "...)
	if c.secure != nil {
		b = append(b, "https"...)
	} else {
		b = append(b, "http"...)
	}
	if _, port, err := net.SplitHostPort(c.sock.LocalAddr().String()); err == nil {
		b = append(b, "\r\nX-Forwarded-Port: "...)
		b = append(b, port...)
	}
	b = append(b, '\r', '\n')
	b, dropped, err := host.Style.Append(b, c.client, identity.ForwardedCerts{})
	if dropped {
		c.f.log.Warn("the chain is too large for identity headers and was left out", "ref", c.ref, "host", host.Name)
	}
	return b, err
}

// answer writes the response for a request that was not forwarded, and reports whether the connection can go on; keep
// says whether it may.
func (c *conn) answer(why reason.Reason, keep bool) bool {
	row := why.Row()
	if row.Status == 0 {
		return false
	}
	c.rec.Status = row.Status
	ref := c.ref + "-" + strconv.FormatUint(c.rec.Serial, 10)
	if c.paged() {
		return c.page(ref)
	}
	// What the client did wrong it is told; what is wrong behind us is not its business.
	sentence := http.StatusText(row.Status)
	if row.Fault == reason.FaultClient {
		sentence = row.Code + ": " + row.Sentence
	}
	body := fmt.Sprintf("%d %s\nreference: %s\n", row.Status, sentence, ref)
	b := fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nCache-Control: no-store\r\n",
		row.Status, http.StatusText(row.Status), len(body))
	if row.Status == http.StatusServiceUnavailable {
		b = append(b, "Retry-After: 1\r\n"...)
	}
	if row.Status == http.StatusMethodNotAllowed {
		b = append(b, "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"...)
	}
	if !keep {
		b = append(b, "Connection: close\r\n"...)
	}
	b = append(b, '\r', '\n')
	if !c.head {
		b = append(b, body...)
	}
	c.watch.Main.Set(c.watch.Clock, forward.WritingClient, c.listener.Limits.WriteIdle)
	_, err := c.exchange.Client.Write(b)
	return keep && err == nil
}

// paged reports whether the client was let in only to be told that it is refused (on_failure: page).
func (c *conn) paged() bool { return c.host != nil && c.host.Auth.Page && !c.verdict.Accepted }

// page answers 403 in the form the client prefers: whether its certificate is missing or refused, a reference for whoever
// can look it up, and nothing else.
func (c *conn) page(ref string) bool {
	code, sentence := "client_cert_refused", "The client certificate was refused."
	if c.verdict.Reason == reason.ClientCertMissing {
		code, sentence = "client_cert_missing", "A client certificate is required."
	}
	kind, body := "application/json", fmt.Sprintf("{\"status\":403,\"reason\":%q,\"reference\":%q}\n", code, ref)
	for i := range c.req.Fields {
		if f := &c.req.Fields[i]; message.EqualFold(f.Name, "accept") && bytes.Contains(f.Value, []byte("text/html")) {
			kind, body = "text/html; charset=utf-8", fmt.Sprintf("<!doctype html>\n<html lang=\"en\"><title>403</title>\n<h1>%s</h1>\n<p>Reference: <code>%s</code></p>\n</html>\n", sentence, ref)
		}
	}
	c.rec.Status = http.StatusForbidden
	b := fmt.Appendf(nil, "HTTP/1.1 403 Forbidden\r\nContent-Type: %s\r\nContent-Length: %d\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n", kind, len(body))
	if !c.head {
		b = append(b, body...)
	}
	c.watch.Main.Set(c.watch.Clock, forward.WritingClient, c.listener.Limits.WriteIdle)
	_, _ = c.exchange.Client.Write(b)
	return false
}

// hangUp ends a connection between requests. That is no line in the log, but it is counted.
func (c *conn) hangUp(why reason.Reason) {
	if c.secure != nil {
		c.watch.Main.Set(c.watch.Clock, forward.Draining, time.Second)
		_ = c.secure.CloseWrite()
	}
	if c.f.draining.Load() {
		why = reason.Drained
	}
	c.book.Ended(why)
}

// cut ends a connection so that what was sent last does not look complete.
func (c *conn) cut() {
	c.sock.Reset()
	c.sock.Close()
}

// Bounds of linger, see there.
const (
	lingerTime  = time.Second
	lingerBytes = 64 << 10
)

// linger ends our side and reads on for a moment: closing at once, with bytes of the client unread, would reset the
// connection, and the client might lose the answer or the alert that says why.
func (c *conn) linger() {
	c.watch.Main.Set(c.watch.Clock, forward.Draining, lingerTime)
	if c.secure != nil {
		_ = c.secure.CloseWrite()
	}
	if c.sock.CloseWrite() != nil {
		return
	}
	_ = c.sock.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.CopyN(io.Discard, c.sock, lingerBytes)
}
