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
	"runtime/debug"
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

	// The host of the last request, so that a connection that asks for the same one again looks nothing up.
	asked     *snapshot.Host
	askedHost []byte
	scratch   [512]byte
}

// serve is the life of a connection, from accept to close. The order of its stages is the security model: each hands the
// next what only it can make, and every way out is recorded with one reason. docs/life-of-a-connection.md tells it in words.
func (f *Frontend) serve(c *conn) {
	defer f.end(c)
	switch c.listener.Protocol {
	case snapshot.Passthrough:
		c.passthrough()
		return
	case snapshot.HTTPS:
		if !c.handshake() { // verifies the client, every time
			return
		}
	case snapshot.HTTP:
		c.host = nil
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
			result.Keep = c.answer(result.Reason) && result.Keep
		}
		c.book.Request(&c.rec, c.ref, c.fragment)
		switch {
		case result.Cut:
			c.cut()
			return
		case !result.Keep || f.draining.Load():
			c.linger()
			return
		}
	}
}

// end closes a connection whatever happened to it.
func (f *Frontend) end(c *conn) {
	if v := recover(); v != nil {
		f.book.Panicked()
		f.log.Error("panic in a connection", "ref", c.ref, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
	c.sock.Close()
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
	l := &c.listener.Limits
	c.exchange = forward.Exchange{
		Watch: &c.watch, Reader: &c.reader, Client: stream, Pools: c.f.pools,
		Limits: forward.Limits{BodyIdle: l.BodyIdle, WriteIdle: l.WriteIdle}, Draining: c.f.draining.Load,
	}
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
	return true, reason.Unset
}

// exchangeOne takes one request from its head to its answer. A Result without an answer is answered by the caller.
func (c *conn) exchangeOne() forward.Result {
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
	permit, why := c.decide(req)
	if why != reason.Unset {
		if why == reason.ClientNoLongerTrusted {
			return forward.Result{Reason: why}
		}
		// The head was understood, so where the next request begins is known if there is no body.
		return forward.Result{Reason: why, Keep: req.KeepAlive && req.Framing == message.NoBody && why.Status() != 400 && why.Status() != 431}
	}
	result := c.exchange.Do(permit, req, &c.rec)
	if !result.Answered {
		result.Keep = req.KeepAlive && req.Framing == message.NoBody && c.rec.Reason.Row().Stage == reason.StageUpstream
	}
	return result
}

// decide finds the route of a request and asks policy for its permit, under the configuration in force now.
func (c *conn) decide(req *message.Request) (policy.Permit, reason.Reason) {
	if why := c.stand(); why != reason.Unset {
		return policy.Permit{}, why
	}
	host, why := c.requested(req)
	if why != reason.Unset {
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
	q := policy.Question{Serial: c.rec.Serial, Asked: host.Policy, Mode: host.Auth.Mode, Client: c.client, Upstream: to.Upstream}
	if c.host != nil {
		q.Connection = c.host.Policy
	} else {
		q.Connection = host.Policy // plain listeners have no server name, and no policy but off
	}
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
	if version == c.version && !expired {
		return reason.Unset
	}
	c.verdict = judge(&host.Auth, c.presented, c.rec.Start)
	if !c.verdict.Accepted {
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
	c.exchange.Limits = forward.Limits{BodyIdle: l.Limits.BodyIdle, WriteIdle: l.Limits.WriteIdle}
}

// requested finds the host a request names, and renders the headers its targets get about this connection.
func (c *conn) requested(req *message.Request) (*snapshot.Host, reason.Reason) {
	if c.asked != nil && bytes.Equal(req.Host, c.askedHost) {
		return c.asked, reason.Unset
	}
	name, _, err := hostname.AppendCanonicalHost(c.scratch[:0], req.Host)
	if err != nil {
		c.rec.Detail = err.Error()
		return nil, reason.HostInvalid
	}
	host := c.pub.listeners[c.entry.key].Host(name)
	if host == nil {
		return nil, reason.HostUnknown
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
	ip, _, err := net.SplitHostPort(c.peer)
	if err != nil {
		ip = "unknown" // RFC 7239 section 6: no address is known (tests in memory)
	}
	b = append(b, "X-Forwarded-For: "...)
	b = append(b, ip...)
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
	return c.client.AppendHeaders(b, host.Dialects)
}

// answer writes the response for a request that was not forwarded, and reports whether the connection can go on.
func (c *conn) answer(why reason.Reason) bool {
	row := why.Row()
	if row.Status == 0 {
		return false
	}
	c.rec.Status = row.Status
	ref := c.ref + "-" + strconv.FormatUint(c.rec.Serial, 10)
	// What the client did wrong it is told; what is wrong behind us is not its business.
	sentence := http.StatusText(row.Status)
	if row.Fault == reason.FaultClient {
		sentence = row.Code + ": " + row.Sentence
	}
	body := fmt.Sprintf("%d %s\nreference: %s\n", row.Status, sentence, ref)
	keep := c.req.KeepAlive && (row.Stage == reason.StageRoute || row.Stage == reason.StageUpstream) && c.req.Framing == message.NoBody &&
		row.Status != 400 && row.Status != 431 && why != reason.ClientNoLongerTrusted && !c.f.draining.Load()
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
	if !c.req.IsHead() {
		b = append(b, body...)
	}
	c.watch.Main.Set(c.watch.Clock, forward.WritingClient, c.listener.Limits.WriteIdle)
	_, err := c.exchange.Client.Write(b)
	return keep && err == nil
}

// hangUp ends a connection between requests.
func (c *conn) hangUp(why reason.Reason) {
	if c.secure != nil {
		c.watch.Main.Set(c.watch.Clock, forward.Draining, time.Second)
		_ = c.secure.CloseWrite()
	}
	_ = why // an ordinary end; counted as a connection that closed
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
