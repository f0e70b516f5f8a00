package forward

import (
	"errors"
	"io"
	"runtime/debug"
	"sync/atomic"
	"time"

	"countersign/internal/message"
	"countersign/internal/reason"
	"countersign/internal/upstream"
)

// pump sends a streaming request body while its exchange reads the response: a target may answer early. It ends with
// the exchange.
type pump struct {
	x *Exchange
	// last is set before the end of the body is written: what is left then waits for nobody but the target.
	last atomic.Bool
	// over is set when nothing is left to be sent, before anybody is told: done follows at once.
	over  atomic.Bool
	done  chan error
	err   error
	ended bool
	// early is set when the target answered before it had the whole body. Its connection is not used again (E22, E32).
	early bool
}

// errTargetWrite says that the target takes no more of the body; its answer, if any, says why.
type errTargetWrite struct{ error }

// errStopped says that the exchange ended first.
var errStopped = errors.New("forward: the exchange ended before the request body")

func (x *Exchange) startPump(body Body, framing message.Framing, target *upstream.Conn, pool *upstream.Pool) *pump {
	p := &pump{x: x, done: make(chan error, 1)}
	x.Watch.Pump.Set(x.Watch.Clock, ReadingBody, x.Limits.BodyIdle)
	go func() {
		var err error
		defer func() {
			if v := recover(); v != nil {
				err = &reason.Refusal{Reason: reason.Internal, Found: "a panic: " + string(debug.Stack())}
			}
			p.over.Store(true)
			x.Watch.Pump.Set(x.Watch.Clock, Free, 0)
			x.Watch.Main.extend(x.Watch.Clock, AwaitTarget, pool.Response)
			if _, ok := err.(*reason.Refusal); ok {
				x.Watch.endTarget() // the exchange must not go on waiting for an answer to half a request
			}
			p.done <- err
		}()
		err = p.send(body, framing == message.Chunked && target.Stream == nil, target, pool.Idle)
	}()
	return p
}

// send copies body to target. A *reason.Refusal is the client's fault and ends the exchange.
func (p *pump) send(body Body, chunked bool, target *upstream.Conn, idle time.Duration) error {
	x := p.x
	buf := outs.Get().(*[]byte)
	defer outs.Put(buf)
	w := x.Watch
	for {
		out := (*buf)[:0]
		room := out[:cap(out)]
		off := 0
		if chunked {
			off, room = chunkRoom, room[:len(room)-chunkEnd]
		}
		w.Pump.Set(w.Clock, ReadingBody, x.Limits.BodyIdle)
		n, err := body.Read(room[off:])
		for err == nil && !chunked && n < len(room) && x.recordIsHere() {
			var more int
			w.Pump.Set(w.Clock, ReadingBody, x.Limits.BodyIdle)
			more, err = body.Read(room[n:])
			n += more
		}
		if err != nil && err != io.EOF {
			if why, ok := w.Pump.Expired(); ok {
				return &reason.Refusal{Reason: why}
			}
			if r, ok := err.(*reason.Refusal); ok {
				return r
			}
			return &reason.Refusal{Reason: reason.BodyTruncated, Cause: detail(err)}
		}
		if n > 0 {
			if chunked {
				out = appendChunk(out, n)
			} else {
				out = out[:n]
			}
		}
		if err == io.EOF && chunked {
			out = append(out, "0\r\n\r\n"...)
		}
		if err == io.EOF {
			p.last.Store(true)
		}
		w.Pump.Set(w.Clock, WritingTarget, idle)
		if len(out) > 0 {
			var err error
			if target.Stream != nil {
				_, err = target.Stream.Write(out)
			} else {
				_, err = target.Write(out)
			}
			if err != nil {
				return errTargetWrite{err}
			}
			w.Main.extend(w.Clock, ReadingTarget, idle) // progress: a target may answer little by little as it is sent more
		}
		if err == io.EOF {
			if target.Stream != nil {
				if err := target.Stream.End(x.passed(body.Trailers(), true)); err != nil {
					return errTargetWrite{err}
				}
			}
			return nil
		}
	}
}

// fullRecord is what a TLS record may carry (RFC 8446 section 5.1).
const fullRecord = 16 << 10

// recordIsHere reports whether a read of the request's body will hardly wait, because the next record has arrived, or most of
// it; nobody sends half a record and waits for an answer. Who writes each one to the target alone makes four packets of one.
func (x *Exchange) recordIsHere() bool {
	return x.Wire != nil && x.Wire.HasArrived(fullRecord)
}

// extend gives the wait a new deadline if it is still in phase p.
func (w *Wait) extend(clock *Clock, p Phase, d time.Duration) {
	word := (clock.waits.Load()+(d+Tick).Milliseconds())<<8 | int64(p)
	for {
		old := w.word.Load()
		if old&(1<<8-1) != int64(p) || w.word.CompareAndSwap(old, word) {
			return
		}
	}
}

// turn is how long a busy machine may take to let the pump say that all is sent, when the target has all and has answered.
// Who gives up earlier closes connections for no reason, and when there is much to do already.
const turn = 100 * time.Millisecond

// settled waits at most d for the pump to end, and longer, but only once, if it has come to the end of the body.
func (p *pump) settled(d time.Duration) bool {
	switch {
	case p.ended:
		return true
	case p.over.Load(): // what it has to say must not be lost, however long the machine takes
		p.err, p.ended = <-p.done, true
		return true
	case p.last.Load() && !p.early:
		d = max(d, turn)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case p.err = <-p.done:
		p.ended = true
	case <-timer.C:
	}
	return p.ended
}

// finish gives a pump that is still at work a moment and then stops it: the exchange is over, and the rest of the body
// belongs to nobody. It returns nil only if the whole body was sent.
func (p *pump) finish() error {
	if !p.settled(20 * time.Millisecond) {
		w := p.x.Watch
		w.endClient() // also a write that its read is blocked in
		w.endTarget()
		<-p.done
		// Also if it has just ended well: the target's deadline has passed, for whoever would be next too.
		p.err, p.ended = errStopped, true
		// The time for writes stays: whatever is still said to this client, no other wait may be left to bound it.
		_ = w.Client.SetReadDeadline(time.Time{})
	}
	return p.err
}
