package frontend

import (
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"golang.org/x/net/http2"

	"countersign/internal/forward"
	"countersign/internal/h2"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/snapshot"
)

// streams serves a connection of HTTP/2: each of its streams is a request in a lane.
//
//go:noinline
func (c *conn) streams() {
	mux := h2.Server(c.secure, c.settings(&c.listener.Limits), c.stream)
	c.watch.Main.Set(c.watch.Clock, forward.Free, 0) // each stream has its own waits, and tend those of the connection
	c.mux.Store(mux)
	defer func() {
		if v := recover(); v != nil {
			go func() { // it may find a lock held
				defer c.f.guard()
				mux.Abort()
			}()
			panic(v) // on its way to end
		}
	}()
	c.streamsEnded(mux.Serve())
}

// streamsEnded records why the connection of HTTP/2 came to its end, which err says if nothing else does, and hangs up.
//
//go:noinline
func (c *conn) streamsEnded(err error) {
	why := reason.ClientClosed
	var refusal *reason.Refusal
	if c.flooded() {
		why = reason.RecordFlood
	} else if ours := reason.Reason(c.ending.Load()); ours != reason.Unset {
		why = ours
	} else if errors.As(err, &refusal) {
		why = refusal.Reason
	}
	switch {
	case c.doom.Load() != nil:
	case c.f.draining.Load():
		why = reason.Drained
	case why == reason.H2ProtocolError || why == reason.H2EnhanceYourCalm || why == reason.HeaderTimeout || why == reason.WriteTimeout:
		hs := record.Handshake{Kind: record.Ended, Ref: c.ref, Client: c.peer, SNI: c.sni, Host: c.host.Name, Identity: c.client}
		hs.Fail(why, err)
		c.book.Handshake(&hs)
	}
	c.hangUp(why, c.doom.Load())
	c.linger()
}

func (c *conn) settings(l *snapshot.Limits) h2.Settings {
	return h2.Settings{
		HeaderBytes: l.Message.HeadBytes, Fields: l.Message.Fields, BodyBytes: l.Message.BodyBytes, Streams: uint32(l.Streams),
		ExtendedConnect: true, Await: c.sock.Await,
		Clock: func() int64 { return c.watch.Clock.Waited().UnixMilli() },
		Refused: func(r *reason.Refusal) {
			rec := record.Request{Serial: c.serial.Add(1), Start: time.Now(), Major: 2}
			if c.book.More() {
				rec.Conn = c.facts()
			}
			rec.Fail(reason.H2ProtocolError, r)
			c.book.Request(&rec, c.ref, record.Fragment(c.listener.Name, c.peer, c.client))
		},
		Panicked: func(value any, stack []byte) {
			c.f.book.Panicked()
			c.f.log.Error("panic in a stream", "ref", c.ref, "panic", fmt.Sprint(value), "stack", string(stack))
		},
	}
}

// enter takes a lane for a stream, nil if the connection is over.
func (c *conn) enter(s *h2.Stream) *lane {
	c.lanes.mu.Lock()
	defer c.lanes.mu.Unlock()
	if c.lanes.closed {
		return nil
	}
	var l *lane
	if n := len(c.lanes.spare); n > 0 {
		l = c.lanes.spare[n-1]
		c.lanes.spare = c.lanes.spare[:n-1]
	} else {
		l = c.newLane(&forward.Watch{Clock: c.watch.Clock})
		c.lanes.all = append(c.lanes.all, l)
	}
	l.busy = true
	l.end.Store(nil)
	l.watch.Begin(forward.StreamLine{Stream: s})
	l.exchange.Stream = s
	return l
}

// leave gives the lane back.
func (c *conn) leave(l *lane) {
	c.lanes.mu.Lock()
	defer c.lanes.mu.Unlock()
	l.busy = false
	l.exchange.Stream = nil
	l.watch.Begin(nil)
	if !c.lanes.closed {
		c.lanes.spare = append(c.lanes.spare, l)
	}
}

// stream serves one request of a connection of HTTP/2.
func (c *conn) stream(s *h2.Stream) {
	l := c.enter(s)
	if l == nil {
		s.Reset(http2.ErrCodeRefusedStream)
		return
	}
	defer func() {
		if v := recover(); v != nil { // the lane may be in any state: it is not used again
			c.f.book.Panicked()
			c.f.log.Error("panic in a stream", "ref", c.ref, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			s.Reset(http2.ErrCodeInternal)
			c.lanes.forget(l)
			return
		}
		c.leave(l)
	}()
	l.rec.Begin(c.serial.Add(1), time.Now())
	result := l.exchangeStream(s)
	l.finish(&result)
	switch {
	case l.watch.Gone() && l.doomed() != nil:
		s.Reset(http2.ErrCodeCancel)
	case result.Cut:
		s.Reset(http2.ErrCodeInternal)
	}
	if l.rec.Reason == reason.ClientNoLongerTrusted && l.end.Load() == nil || l.paged() {
		c.mux.Load().GoAway() // no other stream would fare better
	}
}

// exchangeStream takes the request of a stream to its answer, as exchangeOne does.
func (c *lane) exchangeStream(s *h2.Stream) forward.Result {
	c.head, c.grpc, c.via.used, c.step.used = false, false, false, false
	c.unhear()
	c.req = s.Request
	c.note()
	c.rec.Major, c.rec.WebSocket = 2, s.Protocol != nil
	refusal := s.Refusal
	if refusal == nil && s.Protocol != nil && !forward.AsUpgrade(&c.req) {
		refusal = &reason.Refusal{Reason: reason.UpgradeRefused, Expected: "sec-websocket-version 13, and no content-length", Found: "something else"}
	}
	if refusal != nil {
		c.head = c.req.IsHead()
		c.rec.Fail(refusal.Reason, refusal)
		return forward.Result{Reason: c.rec.Reason}
	}
	return c.carryOut(&c.req)
}

// sweepStreams is the sweep of what a connection of HTTP/2 has beyond others.
func (c *conn) sweepStreams(now time.Time, draining bool) {
	mux := c.mux.Load()
	if mux == nil {
		return
	}
	limits := &c.listener.Limits
	c.lanes.each(func(l *lane) { l.watch.Sweep(now, false) })
	ms := now.UnixMilli()
	late := func(since int64, limit time.Duration, why reason.Reason) bool {
		if since == 0 || ms-since <= limit.Milliseconds() {
			return false
		}
		c.ending.Store(uint32(why))
		mux.AbortFor(why)
		return true
	}
	if late(mux.WritingSince(), limits.WriteIdle, reason.WriteTimeout) || late(mux.HeadSince(), limits.Header, reason.HeaderTimeout) {
		return
	}
	idle := mux.Streams() == 0
	switch quiet := ms - mux.LastActivity(); {
	case draining:
		mux.GoAway()
	case idle && quiet > limits.Idle.Milliseconds():
		if c.ending.CompareAndSwap(0, uint32(reason.IdleClosed)) {
			mux.GoAway() // once: it waits for the client to have heard it
		}
		if quiet > limits.Idle.Milliseconds()+lastGoAway.Milliseconds() {
			mux.AbortFor(reason.IdleClosed)
		}
	}
	if idle {
		mux.Tidy()
		c.lanes.tidy()
		if ms-mux.LastActivity() > dozeAfter.Milliseconds() {
			mux.Doze()
		}
	}
}

// lastGoAway is how long a client may take to go once it was told to.
const lastGoAway = time.Second
