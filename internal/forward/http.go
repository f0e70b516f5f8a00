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
	"countersign/internal/identity"
	"countersign/internal/message"
	"countersign/internal/policy"
	"countersign/internal/reason"
	"countersign/internal/record"
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
	Watch  *Watch
	Reader *h1.Reader // the client's side, behind the request head
	Client net.Conn   // the TLS connection, or the plain one
	Pools  *upstream.Registry
	Limits Limits
	// Trailer are the header lines set last on every request of the connection: where it came from, and who the client
	// is. Identity is never taken from the request.
	Trailer []byte
	// Guard says which headers a client must never pass through; nil means the protected set.
	Guard *identity.Guard
	// Draining reports that the connection is to end after this exchange; nil means never.
	Draining func() bool

	resp  message.Response
	heard bool // the target has answered something

	mu  sync.Mutex
	own *upstream.Conn // carried a request body, so no other client may use it
}

// settle decides what becomes of a connection whose exchange is over. One that carried a request body stays with this
// client: a target that takes a body for a request of its own would answer that one to whoever comes next (E32).
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
	x.mu.Lock()
	old := x.own
	x.own = target
	x.mu.Unlock()
	if old != nil {
		old.Discard()
	}
}

// keepOwn is how long a connection of its own is kept for a client that asks nothing.
const keepOwn = 5 * time.Second

// Tidy closes the connection that is kept for this client alone if it was not used for a while; all closes it at once.
// It may be called from any goroutine.
func (x *Exchange) Tidy(all bool) {
	x.mu.Lock()
	own := x.own
	if own != nil && !all && !own.RestedFor(keepOwn, x.Watch.Clock.Now()) {
		own = nil
	}
	if own != nil {
		x.own = nil
	}
	x.mu.Unlock()
	if own != nil {
		own.Discard()
	}
}

// acquire takes this client's own connection to the pool, or one that anybody may use.
func (x *Exchange) acquire(pool *upstream.Pool) (*upstream.Conn, error) {
	x.mu.Lock()
	own := x.own
	x.own = nil
	x.mu.Unlock()
	if own != nil {
		if own.Wake(pool) {
			return own, nil
		}
		own.Discard()
	}
	return pool.Acquire(context.Background())
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

const outSize = 48 << 10

var outs = sync.Pool{New: func() any { b := make([]byte, 0, outSize); return &b }}

// maxInterim bounds the interim responses of one exchange (E20).
const maxInterim = 5

// maxHops bounds how often a request may pass through this program (E31).
const maxHops = 8

const via = "1.1 countersign"

// Do forwards req under permit and relays the answer. rec is filled as it goes. Everything that ends an exchange ends
// here, with one reason.
func (x *Exchange) Do(permit policy.Permit, req *message.Request, rec *record.Request) Result {
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
	out, refusal := x.appendRequest((*buf)[:0], req)
	if refusal != reason.Unset {
		return x.refuse(rec, refusal, nil)
	}

	body := x.Reader.Body(&req.Head, true)
	// The pump reads into the buffer that holds the request head: what is asked of the head is asked before.
	ask := asked{minor: req.Minor, head: req.IsHead(), keep: req.KeepAlive, framing: req.Framing, body: req.Framing != message.NoBody, expect: req.Expect100, again: idempotent(req.Method)}
	if req.WebSocketKey != nil {
		ask.accept = acceptKey(req.WebSocketKey)
	}
	if whole, ok := body.Buffered(); ok {
		out = append(out, whole...)
	}

	x.Watch.Main.Set(x.Watch.Clock, Connecting, 0)
	target, err := x.acquire(pool)
	for err == nil {
		result, stale := x.attempt(&ask, body, out, rec, target, pool, buf)
		if !stale {
			return result
		}
		// The target had closed the connection before it read the request: once more, on a new one (RFC 9110 section 9.2.2).
		rec.Retried, rec.Detail = true, ""
		x.Watch.Main.Set(x.Watch.Clock, Connecting, 0)
		target, err = pool.Fresh(context.Background())
	}
	return x.refuse(rec, reason.UpstreamConnectFailed, err)
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
	accept  string // what a target must answer to switch to WebSocket; empty for no such request
}

// idempotent lists the methods that a proxy may repeat by itself.
func idempotent(method []byte) bool {
	switch string(method) {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE":
		return true
	}
	return false
}

// attempt sends the request, whose head and buffered body are in out, to target and relays the answer. stale says that
// nothing came back over a connection that had been used before, so that another may be tried.
func (x *Exchange) attempt(ask *asked, body *h1.Body, out []byte, rec *record.Request, target *upstream.Conn, pool *upstream.Pool, buf *[]byte) (result Result, stale bool) {
	rec.Target, rec.Reused = target.Target.Address, target.Reused
	x.Watch.setTarget(target.Wire)
	x.heard = false
	clean := false
	defer func() {
		unharmed := x.Watch.setTarget(nil)
		x.settle(target, clean && unharmed, ask.body)
	}()

	if ask.expect && !body.Done() {
		x.Watch.Main.Set(x.Watch.Clock, WritingClient, x.Limits.WriteIdle)
		if _, err := io.WriteString(x.Client, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
			return x.lost(rec, err), false
		}
	}
	x.Watch.Main.Set(x.Watch.Clock, WritingTarget, pool.Idle)
	_, writeErr := target.Write(out)
	var pump *pump
	switch {
	case writeErr != nil || body.Done():
		x.Watch.Main.Set(x.Watch.Clock, AwaitTarget, pool.Response)
	default:
		// The time for the response begins when the body was sent, which takes as long as it makes progress.
		x.Watch.Main.Set(x.Watch.Clock, AwaitTarget, 0)
		pump = x.startPump(body, ask.framing, target, pool)
	}

	// A write that fails does not mean that there is no answer: a target may have refused early and closed. A body that
	// nobody will read must not be taken for the next request.
	keep := ask.keep && (pump != nil || body.Done())
	result = x.relay(ask, keep, rec, target, pool, pump, buf)
	if pump == nil && target.Reused && ask.again && body.Done() && !result.Answered && result.Reason == reason.UpstreamClosed && !x.heard && target.R.Buffered() == 0 {
		return result, true
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
	if rec.Status != 101 {
		rec.BytesIn = body.Total()
	}
	if _, ended := x.Watch.Main.Expired(); ended || x.Watch.Gone() {
		result.Keep = false // the sweep may still be about to end what it found waiting
	} else {
		clean = sent == nil && result.Reason == reason.Completed && x.resp.KeepAlive && (pump == nil || !pump.early)
	}
	return result, false
}

// refuse notes why the exchange ended before an answer began.
func (x *Exchange) refuse(rec *record.Request, why reason.Reason, err error) Result {
	rec.Fail(why, err)
	return Result{Reason: rec.Reason}
}

// appendRequest builds the request for the target: the client's own line and fields without those that concern only the
// client's connection, that carry identity or origin, or that a target could take for those; then framing, origin and
// identity, last.
func (x *Exchange) appendRequest(out []byte, req *message.Request) ([]byte, reason.Reason) {
	out = append(out, req.Method...)
	out = append(out, ' ')
	out = append(out, req.Path...)
	if req.HasQuery {
		out = append(out, '?')
		out = append(out, req.Query...)
	}
	out = append(out, " HTTP/1.1\r\nHost: "...)
	out = append(out, req.Host...)
	out = append(out, '\r', '\n')
	hops := 0
	for i := range req.Fields {
		f := &req.Fields[i]
		if f.Hop || bytes.IndexByte(f.Name, '_') >= 0 || x.Guard.Protected(f.Name) {
			continue
		}
		if len(f.Name) == 3 && message.EqualFold(f.Name, "via") {
			if hops += bytes.Count(f.Value, []byte(via)); hops >= maxHops {
				return nil, reason.LoopDetected
			}
		}
		out = appendField(out, f)
	}
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
	if req.WebSocketKey != nil {
		out = append(out, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	}
	out = append(out, "Via: "+via+"\r\nX-Forwarded-Host: "...)
	out = append(out, req.Host...)
	out = append(out, '\r', '\n')
	out = append(out, x.Trailer...)
	return append(out, '\r', '\n'), reason.Unset
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
		if err := target.R.ReadResponse(resp, ask.head); err != nil {
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
	rec.TargetTime = time.Since(rec.Start)
	rec.Status = resp.Status

	// From here on the client gets bytes: what goes wrong can only be shown by an end that is not a proper one.
	keep = keep && (x.Draining == nil || !x.Draining())
	rechunk := false
	if resp.Framing == message.UntilClose || resp.Framing == message.Chunked {
		if rechunk = ask.minor == 1; !rechunk {
			keep = false
		}
	}
	if pump != nil && (!pump.settled(5*time.Millisecond) || pump.err != nil) {
		keep, pump.early = false, true // the rest of the body would have to be read before another request could be
	}
	out := x.appendResponse((*buf)[:0], resp, rechunk, keep, ask.minor)
	body := target.R.Body(&resp.Head, false)
	if !rechunk {
		if ready := body.Ready(cap(out) - len(out)); len(ready) > 0 {
			out = append(out, ready...)
		}
	}
	if !body.Done() && (rechunk || target.R.Buffered() > 0) {
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
func (x *Exchange) stream(rec *record.Request, body *h1.Body, target *upstream.Conn, pool *upstream.Pool, out []byte, rechunk, keep bool) Result {
	w := x.Watch
	defer func() { rec.BytesOut = body.Total() }()
	for {
		if len(out) > 0 && (target.R.Buffered() == 0 || cap(out)-len(out) < minRoom) {
			// What is there goes out before we wait for more: a client of a slow stream sees its head at once.
			w.Main.Set(w.Clock, WritingClient, x.Limits.WriteIdle)
			if _, err := x.Client.Write(out); err != nil {
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
			if _, timeout := w.Main.Expired(); !timeout && len(out) > 0 {
				w.Main.Set(w.Clock, WritingClient, x.Limits.WriteIdle)
				_, _ = x.Client.Write(out)
			}
			rec.Fail(reason.UpstreamTruncated, err)
			rec.Reason = reason.UpstreamTruncated
			if why, ok := w.Main.Expired(); ok {
				rec.Reason = why
			} else if w.Gone() {
				rec.Reason = reason.ClientAborted
			}
			return Result{Reason: rec.Reason, Answered: true, Cut: true}
		}
		if err == io.EOF && rechunk {
			out = append(out, "0\r\n\r\n"...)
		}
		w.Main.Set(w.Clock, WritingClient, x.Limits.WriteIdle)
		if _, err := x.Client.Write(out); err != nil {
			return x.lost(rec, err)
		}
		out = out[:0]
		if err == io.EOF {
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
		if !f.Hop && !x.Guard.Protected(f.Name) {
			out = appendField(out, f)
		}
	}
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

// lost is the end of an exchange whose client could not be written to.
func (x *Exchange) lost(rec *record.Request, err error) Result {
	rec.Fail(reason.ClientAborted, err)
	if why, ok := x.Watch.Main.Expired(); ok {
		rec.Reason = why
	}
	return Result{Reason: rec.Reason, Answered: true, Cut: true}
}

// blame finds the reason for an error met while waiting for a response head.
func (x *Exchange) blame(err error, target *upstream.Conn) reason.Reason {
	if x.Watch.Gone() {
		return reason.ClientAborted
	}
	for _, wait := range [...]*Wait{&x.Watch.Main, &x.Watch.Pump} {
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
