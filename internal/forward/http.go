// Package forward moves requests and bytes between a client and a target: it removes what must not pass, sets identity
// last, and hands connections back only when nothing is left on them. It forwards nothing without a permit, and decides
// nothing itself.
package forward

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"countersign/internal/h1"
	"countersign/internal/h2"
	"countersign/internal/identity"
	"countersign/internal/message"
	"countersign/internal/origin"
	"countersign/internal/policy"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/socket"
	"countersign/internal/tracing"
	"countersign/internal/upstream"
)

// Limits are the waits for a client, on progress.
type Limits struct {
	BodyIdle, WriteIdle time.Duration
	// TunnelIdle and Lifetime are those of a connection that was upgraded; a zero Lifetime means no limit.
	TunnelIdle, Lifetime time.Duration
}

// Exchange forwards the requests of one client connection, one after the other. Its storage is used again for each.
type Exchange struct {
	Watch *Watch
	// Reader and Client are the client's side in HTTP/1.1: what is behind the request head, and the TLS connection, or the
	// plain one, and Wire is the connection beneath that. Stream is its side in HTTP/2; then the other three are nil.
	Reader *h1.Reader
	Client net.Conn
	Wire   *socket.Conn
	Stream *h2.Stream
	Pools  upstream.View
	// Own is shared by the exchanges of one client connection.
	Own    *Own
	Limits Limits
	// Trailer are the header lines set last on every request of the connection: where it came from, and who the client
	// is. Identity is never taken from the request.
	Trailer []byte
	// Origin is how much of Trailer is about the former: copies get no more.
	Origin int
	// Address is the client's, without port, and ClientHash that of its verified certificate, 0 for none: pools can choose
	// targets by them. Secure says that the client came by TLS.
	Address    []byte
	ClientHash uint64
	Secure     bool
	// Edits are what the request's route changes.
	Edits Edits
	// Trace is what the target is told of the trace that the request is in; nil where its fields pass as they came.
	Trace *tracing.Span
	// Timeout is the time for the whole exchange that the request itself asks for; 0 means none.
	Timeout time.Duration
	// Guard says which headers a client must never pass through; nil means the protected set.
	Guard *identity.Guard
	// Draining reports that the connection is to end after this exchange; nil means never.
	Draining func() bool

	// Announce makes the PROXY header of the client's connection.
	Announce func(*origin.Announcement) []byte
	resp     message.Response
	fields   []message.Field // of the client's head in HTTP/2
	sent     []message.Field // of the target's
	path     []byte          // in sent
	length   [20]byte        // in sent
	digits   [23]byte        // in fields
	lines    []byte          // what Trailer was when it was cut into own
	own      []message.Field
	heard    bool   // the target has answered something
	reported bool   // what the attempt says about the target
	trailers bool   // the client reads them
	sticky   []byte // the Set-Cookie that keeps the client at its target; nil for none
}

// settle decides what becomes of a connection whose exchange is over. One that carried a request body stays with this
// client, see Own.
func (x *Exchange) settle(target *upstream.Conn, clean, body bool) {
	now := x.Watch.Clock.Now()
	if !clean || !body && !target.Private {
		target.Release(clean, now)
		return
	}
	target.Private = true
	if !target.Rest(now) {
		return
	}
	x.Own.keep(x.whose(), target)
}

// whose says which client the exchange is of: proxies send those of many over one connection.
func (x *Exchange) whose() uint64 { return x.ClientHash ^ upstream.Hash(x.Address) }

// acquire takes this client's own connection to the pool, or one that anybody may use.
func (x *Exchange) acquire(pool *upstream.Pool, choice upstream.Choice, bounded bool) (*upstream.Conn, error) {
	if own := x.Own.take(x.whose(), pool, choice); own != nil {
		return own, nil
	}
	return x.wait(pool, choice, bounded)
}

// wait takes a connection from the pool. Where that can take long, it waits for no longer than the exchange may last and
// the client is there. bounded says that the exchange may not last for ever.
func (x *Exchange) wait(pool *upstream.Pool, choice upstream.Choice, bounded bool) (*upstream.Conn, error) {
	if pool.MaxPending == 0 && !pool.HTTP2 && !bounded {
		return pool.AcquireFor(context.Background(), choice)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	x.Watch.OnStop(cancel)
	defer x.Watch.OnStop(nil)
	c, err := pool.AcquireFor(ctx, choice)
	if why, over := x.Watch.Whole.Expired(); err != nil && over {
		err = &reason.Refusal{Reason: why}
	} else if err != nil && x.Watch.Gone() {
		err = &reason.Refusal{Reason: reason.ClientAborted}
	}
	return c, err
}

// Result says how an exchange left the client's connection.
type Result struct {
	// Reason is how the exchange ended. When it is not good and Answered is false, the caller answers with its status.
	Reason   reason.Reason
	Answered bool
	// Keep says that another request may follow on the connection.
	Keep bool
	// Cut says that the connection must end so that the answer does not look complete.
	Cut bool
}

const outSize = 64 << 10

var outs = sync.Pool{New: func() any { b := make([]byte, 0, outSize); return &b }}

// maxInterim bounds the interim responses of one exchange (E20).
const maxInterim = 5

// maxHops bounds how often a request may pass through this program (E31).
const maxHops = 8

// via is how we name ourselves to those behind us, and recognise ourselves.
const via = " countersign"

// Do forwards req under permit and relays the answer. rec is filled as it goes. Everything that ends an exchange ends
// here, with one reason.
func (x *Exchange) Do(permit policy.Permit, req *message.Request, rec *record.Request) Result {
	result := x.do(permit, req, rec)
	x.Watch.Whole.Set(x.Watch.Clock, Free, 0)
	if _, over := x.Watch.Whole.Expired(); over {
		result.Keep = false // the sweep has seen to it that nothing lasts on this connection
	}
	return result
}

func (x *Exchange) do(permit policy.Permit, req *message.Request, rec *record.Request) Result {
	name, ok := permit.Upstream(rec.Serial)
	if !ok {
		return x.refuse(rec, reason.PermitRefused, nil)
	}
	pool := x.Pools.Pool(name)
	if pool == nil {
		return x.refuse(rec, reason.UpstreamUnknown, nil)
	}
	rec.Upstream = name

	buf := outs.Get().(*[]byte)
	defer outs.Put(buf)
	if pool.HTTP2 && req.WebSocketKey != nil {
		return x.refuse(rec, reason.UpgradeRefused, &reason.Refusal{Reason: reason.UpgradeRefused, Expected: "an upstream of protocol_version http1", Found: "http2"})
	}
	if looped(req) {
		return x.refuse(rec, reason.LoopDetected, nil)
	}
	out := (*buf)[:0]
	if !pool.HTTP2 {
		out = x.appendRequest(out, req, x.Trailer)
	}

	body := x.requestBody(req, pool.HTTP2)
	// The pump reads into the buffer that holds the request head: what is asked of the head is asked before.
	ask := asked{minor: req.Minor, head: req.IsHead(), keep: req.KeepAlive, framing: req.Framing, body: req.Framing != message.NoBody, expect: req.Expect100, again: idempotent(req.Method), trailers: req.TrailersWanted || x.Stream != nil, last: req.CloseAfter}
	x.trailers = ask.trailers
	if req.WebSocketKey != nil {
		ask.accept = acceptKey(req.WebSocketKey)
	}
	if pool.HTTP2 {
		ask.head2 = x.requestFields(req, pool.Secure())
	}
	if whole, ok := body.Buffered(); ok {
		ask.whole = whole
		out = appendBody(out, whole, req.Framing == message.Chunked)
	}
	if x.Edits.Mirror != "" && body.Done() && ask.accept == "" {
		// Who the client is is not the copy's business (D12).
		x.mirror(appendBody(x.appendRequest(nil, req, x.Trailer[:min(x.Origin, len(x.Trailer))]), ask.whole, req.Framing == message.Chunked), ask.head)
	}

	choice, again := x.choose(pool, req)
	limit := shorter(pool.Total, x.Timeout)
	if limit > 0 {
		x.Watch.Whole.Set(x.Watch.Clock, Exchanging, limit)
	}
	retries, repeats := 0, 0
	defer func() {
		if retries > 0 {
			pool.EndRetry()
		}
	}()
	x.Watch.Main.Set(x.Watch.Clock, Connecting, 0)
	target, err := x.acquire(pool, choice, limit > 0)
	for err == nil {
		if x.sticky = nil; pool.WantsCookie(target.Target, choice, again) {
			x.sticky = pool.AppendSetCookie(nil, target.Target, x.Secure, rec.Start)
		}
		result, next := x.attempt(&ask, body, out, rec, target, pool, buf)
		switch next {
		case done:
			return result
		case repeat:
			// The target had closed the connection before it read the request: once more, on a new one (RFC 9110 section 9.2.2).
			if repeats++; repeats > maxRepeats {
				return result
			}
			choice.Fresh = true
		case elsewhere:
			if retries == pool.Retries.Attempts || retries == 0 && !pool.BeginRetry() {
				return result
			}
			retries++
			choice.Tried = append(choice.Tried, target.Target)
			x.Watch.again()
		}
		rec.Retried, rec.Detail = true, ""
		x.Watch.Main.Set(x.Watch.Clock, Connecting, 0)
		target, err = x.wait(pool, choice, limit > 0)
	}
	return x.refuse(rec, reason.UpstreamConnectFailed, err)
}

// maxRepeats bounds how often targets may say of one request that they have not looked at it.
const maxRepeats = 3

// after is what is to be done after an attempt.
type after uint8

const (
	done      after = iota
	repeat          // the request was not seen: it may be sent again, on a connection that is fresh
	elsewhere       // it may be tried at another target
)

// shorter returns the shorter of two limits, of which zero means none.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// choose gathers what the pool's ways of choosing a target go by. again says that the client's cookie is to be renewed.
func (x *Exchange) choose(pool *upstream.Pool, req *message.Request) (choice upstream.Choice, again bool) {
	choice.Announce = x.Announce
	if pool.Key.On == upstream.KeyNone && pool.Sticky == nil {
		return choice, false
	}
	choice.Client = x.ClientHash
	if s := pool.Sticky; s != nil && s.Cookie != "" {
		for i := range req.Fields {
			if f := &req.Fields[i]; choice.Sticky == 0 && message.EqualFold(f.Name, "cookie") {
				choice.Sticky, again = pool.StickyCookie(f.Value, time.Now())
			}
		}
	}
	var key []byte
	switch pool.Key.On {
	case upstream.KeyAddress:
		key = x.Address
	case upstream.KeyCertificate:
		choice.Hash, choice.HasHash = x.ClientHash, x.ClientHash != 0
		return choice, again
	case upstream.KeyPath:
		key = req.Path
	case upstream.KeyHeader:
		for i := range req.Fields {
			if f := &req.Fields[i]; message.EqualFold(f.Name, pool.Key.Name) {
				if key == nil {
					key = f.Value
				} else {
					key = append(append(key[:len(key):len(key)], ','), f.Value...)
				}
			}
		}
	case upstream.KeyCookie:
		for i := range req.Fields {
			if f := &req.Fields[i]; key == nil && message.EqualFold(f.Name, "cookie") {
				key, _, _ = upstream.Cookie(f.Value, pool.Key.Name)
			}
		}
	}
	if key != nil {
		choice.Hash, choice.HasHash = upstream.Hash(key), true
	}
	return choice, again
}

// asked is what the answer depends on of the request.
type asked struct {
	minor   uint8 // HTTP/1.minor
	head    bool  // the method is HEAD
	keep    bool  // the client wants to go on
	framing message.Framing
	expect  bool   // the client waits for 100 before it sends the body
	again   bool   // the method may be sent twice
	body    bool   // the request has one
	last    bool   // both connections end after it (message.Request.CloseAfter)
	accept  string // what a target must answer to switch to WebSocket; empty for no such request
	// trailers says that the client reads them.
	trailers bool
	// head2 is the head for a target of HTTP/2, and whole what goes with it of the body.
	head2 []message.Field
	whole []byte
}

// idempotent lists the methods that a proxy may repeat by itself.
func idempotent(method []byte) bool {
	switch string(method) {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE":
		return true
	}
	return false
}

// attempt sends the request, whose head and buffered body are in out, to target and relays the answer. next says whether
// the request may be sent again, in which case nothing was answered.
func (x *Exchange) attempt(ask *asked, body Body, out []byte, rec *record.Request, target *upstream.Conn, pool *upstream.Pool, buf *[]byte) (result Result, next after) {
	rec.Target, rec.Reused = target.Target.Address, target.Reused
	if target.Stream != nil {
		x.Watch.setTarget(target.Stream)
	} else {
		x.Watch.setTarget(target.Wire)
	}
	x.heard, x.reported = false, false
	clean := false
	defer func() {
		unharmed := x.Watch.setTarget(nil)
		x.settle(target, clean && unharmed, ask.body)
	}()

	// What ran out, or who left, while there was no target to stop.
	if why, over := x.Watch.Whole.Expired(); over {
		return x.refuse(rec, why, nil), done
	}
	if x.Watch.Gone() {
		return x.refuse(rec, reason.ClientAborted, nil), done
	}
	if ask.expect && !body.Done() {
		x.Watch.Main.Set(x.Watch.Clock, WritingClient, x.Limits.WriteIdle)
		if err := x.sayContinue(); err != nil {
			return x.lost(rec, err), done
		}
	}
	x.Watch.Main.Set(x.Watch.Clock, WritingTarget, pool.Idle)
	var writeErr error
	waited := false // for the answer
	rec.SentTime = time.Since(rec.Start)
	if target.Stream != nil {
		trailers := x.passed(body.Trailers(), true)
		if writeErr = target.Stream.WriteHead(ask.head2, ask.whole, body.Done() && len(trailers) == 0); writeErr == nil && body.Done() && len(trailers) > 0 {
			writeErr = target.Stream.End(trailers)
		}
		if refusal, ok := errors.AsType[*reason.Refusal](writeErr); ok && refusal.Reason == reason.HeaderTooLarge { // for this target; nothing was sent
			return x.refuse(rec, refusal.Reason, refusal), done
		}
	} else if body.Done() && !target.Secure() {
		x.Watch.Main.Set(x.Watch.Clock, AwaitTarget, x.patience(pool))
		var n int
		n, writeErr = target.Wire.Ask(out)
		if waited = writeErr != nil || n == len(out); !waited { // the target is slow to take it
			x.Watch.Main.Set(x.Watch.Clock, WritingTarget, pool.Idle)
			_, writeErr = target.Write(out[n:])
		}
	} else {
		_, writeErr = target.Write(out)
	}
	var pump *pump
	switch {
	case waited:
	case writeErr != nil || body.Done():
		x.Watch.Main.Set(x.Watch.Clock, AwaitTarget, x.patience(pool))
	default:
		// The time for the response begins when the body was sent, which takes as long as it makes progress.
		x.Watch.Main.Set(x.Watch.Clock, AwaitTarget, 0)
		pump = x.startPump(body, ask.framing, target, pool)
	}

	// A write that fails does not mean that there is no answer: a target may have refused early and closed. A body that
	// nobody will read must not be taken for the next request.
	keep := ask.keep && (pump != nil || body.Done())
	result = x.relay(ask, keep, rec, target, pool, pump, buf)
	if pump == nil && body.Done() && !result.Answered && !x.heard && !x.Watch.Gone() {
		next = x.mayRepeat(ask, target, result.Reason)
	}
	failed := !result.Answered && result.Reason.Row().Fault == reason.FaultUpstream && !x.overdue(rec)
	if next != done {
		if failed && next != repeat {
			x.report(target, upstream.Failed, time.Since(rec.Start))
		}
		return result, next
	}
	sent := writeErr
	if pump != nil {
		if sent = pump.finish(); sent != nil {
			result.Keep = false
			if r, ok := sent.(*reason.Refusal); ok {
				switch {
				case !result.Answered:
					rec.Detail = "" // what the interrupted wait said
					result = x.refuse(rec, r.Reason, r)
				case result.Cut: // by the pump
					rec.Detail = ""
					rec.Fail(r.Reason, r)
					result.Reason = rec.Reason
				}
			}
		}
	}
	if failed && sent == nil { // a client that did not send all says nothing about the target
		x.report(target, upstream.Failed, time.Since(rec.Start))
	}
	if rec.Status != 101 {
		rec.BytesIn = body.Total()
	}
	if _, ended := x.Watch.Expired(); ended || x.Watch.Gone() {
		result.Keep = false // the sweep may still be about to end what it found waiting
	} else {
		clean = !ask.last && sent == nil && result.Reason == reason.Completed && x.resp.KeepAlive && (pump == nil || !pump.early)
	}
	return result, done
}

// report tells what the attempt says about the target, once.
func (x *Exchange) report(target *upstream.Conn, outcome upstream.Outcome, took time.Duration) {
	if !x.reported {
		x.reported = true
		target.Target.Report(outcome, took)
	}
}

// overdue reports whether the time that the client chose is over. The target may have been a moment faster than our clock.
func (x *Exchange) overdue(rec *record.Request) bool {
	_, over := x.Watch.Whole.Expired()
	return x.Timeout > 0 && (over || time.Since(rec.Start) >= x.Timeout)
}

// mayRepeat says whether a request that was sent whole, and to which no byte came back, may be sent again: if the target
// says that it has not looked at it; if its method allows it and the connection had been used before, so that the target
// may have closed it without having seen the request; and if its method allows it and retries are configured.
func (x *Exchange) mayRepeat(ask *asked, target *upstream.Conn, why reason.Reason) after {
	switch {
	case target.Stream != nil && target.Stream.Unprocessed(),
		target.Stream == nil && target.Reused && ask.again && why == reason.UpstreamClosed && target.R.Buffered() == 0:
		return repeat
	case ask.again && why.Row().Fault == reason.FaultUpstream && !buffered(target): // not a byte of an answer came (E25)
		if _, over := x.Watch.Whole.Expired(); !over {
			return elsewhere
		}
	}
	return done
}

// patience is how long a response head is waited for.
func (x *Exchange) patience(pool *upstream.Pool) time.Duration {
	if t := pool.Retries.PerTry; t > 0 && pool.Retries.Attempts > 0 {
		return t
	}
	return pool.Response
}

// refuse notes why the exchange ended before an answer began.
func (x *Exchange) refuse(rec *record.Request, why reason.Reason, err error) Result {
	rec.Fail(why, err)
	return Result{Reason: rec.Reason}
}

// appendRequest builds the request for the target: the client's own line and fields without those that concern only the
// client's connection, that carry identity or origin, or that a target could take for those; then framing, origin and
// identity, last.
func (x *Exchange) appendRequest(out []byte, req *message.Request, trailer []byte) []byte {
	host, path, query, hasQuery := x.Edits.target(req)
	out = append(out, req.Method...)
	out = append(out, ' ')
	out = append(out, path...)
	if hasQuery {
		out = append(out, '?')
		out = append(out, query...)
	}
	out = append(out, " HTTP/1.1\r\nHost: "...)
	out = append(out, host...)
	out = append(out, '\r', '\n')
	for i := range req.Fields {
		f := &req.Fields[i]
		if f.Hop || bytes.IndexByte(f.Name, '_') >= 0 || x.Guard.Protected(f.Name) {
			continue
		}
		if x.Edits.Request != nil && x.Edits.Request.Drops(f.Name) || x.Trace.Drops(f.Name) {
			continue
		}
		out = appendField(out, f)
	}
	if x.Edits.Request != nil {
		out = x.Edits.Request.AppendLines(out, req, &x.Edits.Facts)
	}
	out = x.Trace.AppendLine(out)
	switch req.Framing {
	case message.Chunked:
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	default:
		if req.ContentLength >= 0 {
			out = append(out, "Content-Length: "...)
			out = strconv.AppendInt(out, req.ContentLength, 10)
			out = append(out, '\r', '\n')
		}
	}
	switch {
	case req.WebSocketKey != nil:
		out = append(out, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	case req.TrailersWanted:
		out = append(out, "Connection: TE\r\nTE: trailers\r\n"...)
	}
	if x.Stream == nil {
		out = append(out, "Via: 1.1"+via+"\r\n"...)
	} else {
		out = append(out, "Via: 2.0"+via+"\r\n"...)
	}
	out = append(out, trailer...)
	return append(out, '\r', '\n')
}

// appendBody appends a body that is there whole as the head says that it comes: one of HTTP/2 without a length is chunked
// for a target of HTTP/1.1.
func appendBody(out, whole []byte, chunked bool) []byte {
	if !chunked {
		return append(out, whole...)
	}
	if len(whole) > 0 {
		out = append(strconv.AppendInt(out, int64(len(whole)), 16), '\r', '\n')
		out = append(append(out, whole...), '\r', '\n')
	}
	return append(out, "0\r\n\r\n"...)
}

// looped reports whether a request has been here so often that it goes in circles.
func looped(req *message.Request) bool {
	hops := 0
	for i := range req.Fields {
		if f := &req.Fields[i]; len(f.Name) == 3 && message.EqualFold(f.Name, "via") {
			hops += bytes.Count(f.Value, []byte(via))
		}
	}
	return hops >= maxHops
}

func appendField(out []byte, f *message.Field) []byte {
	out = append(out, f.Name...)
	out = append(out, ':', ' ')
	out = append(out, f.Value...)
	return append(out, '\r', '\n')
}

// relay reads the target's response and writes it to the client, who speaks HTTP/1.minor and asked with HEAD or not. It
// does not look at the request head: a pump may be overwriting it.
func (x *Exchange) relay(ask *asked, keep bool, rec *record.Request, target *upstream.Conn, pool *upstream.Pool, pump *pump, buf *[]byte) Result {
	resp := &x.resp
	w := x.Watch
	for interim := 0; ; interim++ {
		if err := readResponse(target, resp, ask.head); err != nil {
			return x.refuse(rec, x.blame(err, target), detail(err))
		}
		x.heard = true
		if resp.Status >= 200 {
			break
		}
		if resp.Status == 101 && ask.accept != "" && switches(resp, ask.accept) {
			return x.switched(rec, target, buf)
		}
		// Any other 101 answers what was not asked; the others may be dropped (RFC 9110 section 15.2).
		if resp.Status == 101 {
			return x.refuse(rec, reason.UpstreamBadResponse, &reason.Refusal{Reason: reason.UpstreamBadResponse, Expected: "a final status", Found: "101 without an upgrade"})
		}
		if interim == maxInterim {
			return x.refuse(rec, reason.UpstreamInterimFlood, nil)
		}
	}
	// Now, and not at the end: the client's next request may come before we would get to it, and how the rest goes is up to
	// the client as well, who may read slowly or leave.
	x.report(target, upstream.OutcomeOf(resp.Status), time.Since(rec.Start))
	if x.Stream != nil && ask.accept != "" && resp.Status < 300 {
		// On a stream a status 2xx is what 101 is here (RFC 8441 section 5), and the target has not switched.
		return x.refuse(rec, reason.UpstreamBadResponse, &reason.Refusal{Reason: reason.UpstreamBadResponse, Expected: "101, or a refusal", Found: strconv.Itoa(resp.Status)})
	}
	rec.TargetTime = time.Since(rec.Start)
	rec.Status, rec.TargetStatus = resp.Status, resp.Status

	// From here on the client gets bytes: what goes wrong can only be shown by an end that is not a proper one.
	keep = keep && (x.Draining == nil || !x.Draining())
	rechunk := false
	if x.Stream == nil && (resp.Framing == message.UntilClose || resp.Framing == message.Chunked) {
		if rechunk = ask.minor == 1; !rechunk {
			keep = false
		}
	}
	if pump != nil && (!pump.settled(5*time.Millisecond) || pump.err != nil) {
		keep, pump.early = false, true // the rest of the body would have to be read before another request could be
	}
	body := responseBody(target, resp, ask.trailers)
	if x.Stream != nil {
		return x.relayStream(rec, body, target, pool, buf)
	}
	out := x.appendResponse((*buf)[:0], resp, rechunk, keep, ask.minor)
	rec.HeadOut = int64(len(out))
	if !rechunk {
		if b, ok := body.(*h1.Body); !ok {
			out = append(out, body.Ready(cap(out)-len(out))...)
		} else if whole, ok := b.BufferedBehind(out); ok {
			out = whole
		} else {
			out = append(out, b.Ready(cap(out)-len(out))...)
		}
	}
	if !body.Done() && (rechunk || buffered(target)) {
		return x.stream(rec, body, target, pool, out, rechunk, keep)
	}
	w.Main.Set(w.Clock, WritingClient, x.Limits.WriteIdle)
	if _, err := x.Client.Write(out); err != nil {
		return x.lost(rec, err)
	}
	if body.Done() {
		rec.BytesOut = body.Total()
		rec.Reason = reason.Completed
		return Result{Reason: reason.Completed, Answered: true, Keep: keep}
	}
	return x.stream(rec, body, target, pool, out[:0], rechunk, keep)
}

// chunkRoom is what a chunk-size line takes: eight digits, zeros in front, and CR LF, so that data read behind it need
// not move.
const chunkRoom = 10

// chunkEnd is room for the CR LF behind a chunk and for the last chunk.
const chunkEnd = 2 + 5

// minRoom is what is worth reading into.
const minRoom = 4 << 10

// stream relays a body that is not complete in the buffer. out holds what has not been written yet.
func (x *Exchange) stream(rec *record.Request, body Body, target *upstream.Conn, pool *upstream.Pool, out []byte, rechunk, keep bool) Result {
	w := x.Watch
	defer func() { rec.BytesOut = body.Total() }()
	for {
		if len(out) > 0 && (!buffered(target) || cap(out)-len(out) < minRoom) {
			// What is there goes out before we wait for more: a client of a slow stream sees its head at once.
			w.Main.Set(w.Clock, WritingClient, x.Limits.WriteIdle)
			if err := x.write(out); err != nil {
				return x.lost(rec, err)
			}
			out = out[:0]
		}
		room := out[len(out):cap(out)]
		off := 0
		if rechunk {
			off = chunkRoom
			room = room[:len(room)-chunkEnd]
		}
		w.Main.Set(w.Clock, ReadingTarget, pool.Idle)
		n, err := body.Read(room[off:])
		if err == io.EOF && x.resp.Framing == message.UntilClose && pool.Secure() && !target.Wire.MayBeAlert() {
			err = io.ErrUnexpectedEOF // crypto/tls takes an end without close_notify for an end, but anyone can make one (E21)
		}
		if n > 0 {
			if rechunk {
				out = appendChunk(out, n)
			} else {
				out = out[:len(out)+n]
			}
		}
		if err != nil && err != io.EOF {
			if _, timeout := w.Expired(); !timeout && len(out) > 0 {
				w.Main.Set(w.Clock, WritingClient, x.Limits.WriteIdle)
				_ = x.write(out)
			}
			rec.Fail(reason.UpstreamTruncated, err)
			rec.Reason = reason.UpstreamTruncated
			if why, ok := w.Expired(); ok {
				rec.Reason = why
			} else if w.Gone() {
				rec.Reason = reason.ClientAborted
			}
			return Result{Reason: rec.Reason, Answered: true, Cut: true}
		}
		if err == io.EOF && rechunk {
			var trailers []message.Field
			if x.trailers {
				trailers = x.passed(body.Trailers(), false)
			}
			out = h1.AppendTrailers(out, trailers, false)
		}
		w.Main.Set(w.Clock, WritingClient, x.Limits.WriteIdle)
		if werr := x.write(out); werr != nil {
			return x.lost(rec, werr)
		}
		out = out[:0]
		if err == io.EOF {
			if x.Stream != nil {
				if err := x.Stream.End(x.passed(body.Trailers(), false)); err != nil {
					return x.lost(rec, err)
				}
			}
			rec.Reason = reason.Completed
			return Result{Reason: reason.Completed, Answered: true, Keep: keep}
		}
	}
}

// appendChunk frames the n bytes that were read chunkRoom behind out's end as one chunk.
func appendChunk(out []byte, n int) []byte {
	for shift := 28; shift >= 0; shift -= 4 {
		out = append(out, "0123456789abcdef"[n>>shift&15])
	}
	out = append(out, '\r', '\n')
	out = out[:len(out)+n]
	return append(out, '\r', '\n')
}

func (x *Exchange) appendResponse(out []byte, resp *message.Response, rechunk, keep bool, minor uint8) []byte {
	out = append(out, "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(resp.Status), 10)
	out = append(out, ' ')
	out = append(out, resp.Phrase...)
	out = append(out, '\r', '\n')
	for i := range resp.Fields {
		f := &resp.Fields[i]
		if x.passes(f) {
			out = appendField(out, f)
		}
	}
	out = x.appendOurs(out)
	switch {
	case rechunk:
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	case resp.ContentLength >= 0 && resp.Status != 204 && resp.Framing != message.Chunked:
		out = append(out, "Content-Length: "...)
		out = strconv.AppendInt(out, resp.ContentLength, 10)
		out = append(out, '\r', '\n')
	}
	if !keep {
		out = append(out, "Connection: close\r\n"...)
	} else if minor == 0 {
		out = append(out, "Connection: keep-alive\r\n"...)
	}
	return append(out, '\r', '\n')
}

// appendOurs appends the lines that a response gets from us: the edits of its route, and the cookie of its pool.
func (x *Exchange) appendOurs(out []byte) []byte {
	if x.Edits.Response != nil {
		out = x.Edits.Response.AppendLines(out, &x.Edits.Facts)
	}
	if x.sticky != nil {
		out = append(append(append(out, "Set-Cookie: "...), x.sticky...), '\r', '\n')
	}
	return out
}

// lost is the end of an exchange whose client could not be written to.
func (x *Exchange) lost(rec *record.Request, err error) Result {
	rec.Fail(reason.ClientAborted, err)
	if why, ok := x.Watch.Expired(); ok {
		rec.Reason = why
	}
	return Result{Reason: rec.Reason, Answered: true, Cut: true}
}

// blame finds the reason for an error met while waiting for a response head.
func (x *Exchange) blame(err error, target *upstream.Conn) reason.Reason {
	if x.Watch.Gone() {
		return reason.ClientAborted
	}
	for _, wait := range [...]*Wait{&x.Watch.Main, &x.Watch.Pump, &x.Watch.Whole} {
		if why, ok := wait.Expired(); ok {
			return why
		}
	}
	var r *reason.Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	return target.Blame(err)
}

// detail leaves out errors that say no more than the reason.
func detail(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}
