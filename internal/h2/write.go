package h2

import (
	"encoding/binary"
	"os"
	"runtime"
	"sync"

	"golang.org/x/net/http2"

	"countersign/internal/message"
	"countersign/internal/reason"
)

// Frames are appended to Conn.out under the lock. Whoever finds that nobody is writing writes all that is there, and data
// of the streams in the ring with it, in turns; whoever finds a write under way leaves what it has to the next one. So
// frames of several streams leave together, and one stream alone needs no other goroutine.

// batch is what one write takes at most, but for a head that is larger.
const batch = 32 << 10

var outs = sync.Pool{New: func() any { b := make([]byte, 0, batch+frameSize+64); return &b }}

// buffer returns c.out with storage.
func (c *Conn) buffer() []byte {
	if c.outStore == nil {
		c.outStore = outs.Get().(*[]byte)
		c.out = (*c.outStore)[:0]
	}
	return c.out
}

// frame appends the header of a frame and returns what is to be stored in c.out with the payload behind it.
func (c *Conn) frame(t http2.FrameType, flags http2.Flags, id uint32, n int) []byte {
	return append(c.buffer(), byte(n>>16), byte(n>>8), byte(n), byte(t), byte(flags), byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func appendUint32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }

func (c *Conn) windowUpdate(id uint32, n int32) {
	c.out = appendUint32(c.frame(http2.FrameWindowUpdate, 0, id, 4), uint32(n))
}

// more reports whether there is something to write.
func (c *Conn) more() bool { return len(c.out) > 0 || c.ready.first != nil && c.window > 0 }

// fill moves data of the streams that are ready behind what is there, one frame of each in turn.
func (c *Conn) fill() {
	for c.window > 0 && len(c.out) < batch {
		s := c.ready.pop()
		if s == nil {
			return
		}
		n := int(min(int64(len(s.data)), frameSize, s.window, c.window))
		if n <= 0 {
			continue // it comes back with the peer's WINDOW_UPDATE
		}
		last := n == len(s.data)
		var flags http2.Flags
		if last && s.dataEnd {
			flags = http2.FlagDataEndStream
		}
		c.out = append(c.frame(http2.FrameData, flags, s.id, n), s.data[:n]...)
		s.data = s.data[n:]
		s.window -= int64(n)
		c.window -= int64(n)
		if n >= worthSent || last {
			c.waste.earn(earnSent)
		}
		c.owed += 2 * int64(n)
		if !last {
			c.ready.push(s)
			continue
		}
		s.writable.Signal()
		if s.dataEnd {
			s.sentEnd()
		}
	}
}

// write writes one batch. Called with mu held and flushing set by the caller or by nobody; it is let go of meanwhile. A
// panic ends the connection, so that whoever writes goes on as after an error (F16).
func (c *Conn) write() {
	defer c.caught()
	c.fill()
	out, store := c.out, c.outStore
	c.out, c.outStore, c.control = nil, nil, 0
	if len(out) == 0 {
		return
	}
	c.writingSince.Store(max(c.settings.Clock(), 1))
	err := c.put(out)
	c.writingSince.Store(0)
	outs.Put(store)
	if err != nil {
		c.fail(c.lost(err))
	}
	c.room.Broadcast()
}

// put lets go of mu for a write.
func (c *Conn) put(p []byte) error {
	c.mu.Unlock()
	defer c.mu.Lock() // after a panic as well
	_, err := c.nc.Write(p)
	return err
}

// lead writes what there is, unless somebody does already. What comes up meanwhile is left to a goroutine of its own, so
// that nobody works long for others. Called with mu held, which it lets go of.
func (c *Conn) lead() {
	if c.flushing || !c.more() || c.err != nil {
		return
	}
	c.flushing = true
	c.yield()
	c.write()
	c.flushing = false
	c.kick()
}

// yield lets other goroutines that use the connection go on before a write if they can, so that what they have leaves with
// it: measured, it takes a third to a half off the CPU of small requests on many streams. Called with mu held and flushing
// set.
func (c *Conn) yield() {
	if c.running > 1 || c.client && c.live > 1 {
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
}

// kick sees to it that somebody writes. Called with mu held.
func (c *Conn) kick() {
	if c.err != nil {
		c.room.Broadcast() // Serve waits for the last write to end
		return
	}
	if c.flushing || !c.more() {
		return
	}
	c.flushing = true
	go c.flusher()
}

func (c *Conn) flusher() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.more() && c.err == nil {
		c.write()
	}
	c.flushing = false
	c.room.Broadcast()
}

// release gives the buffers back at the end.
func (c *Conn) release() {
	c.out = nil
	if c.outStore != nil {
		outs.Put(c.outStore)
		c.outStore = nil
	}
}

// lost is why streams end when the connection broke.
func (c *Conn) lost(err error) *reason.Refusal {
	if c.client {
		return &reason.Refusal{Reason: reason.UpstreamClosed, Cause: err}
	}
	return &reason.Refusal{Reason: reason.ClientAborted, Cause: err}
}

// ring is a queue of streams, first in, first out.
type ring struct{ first, last *Stream }

func (r *ring) push(s *Stream) {
	if s.queued {
		return
	}
	s.queued, s.after, s.ahead = true, nil, r.last
	if r.last != nil {
		r.last.after = s
	} else {
		r.first = s
	}
	r.last = s
}

func (r *ring) pop() *Stream {
	s := r.first
	if s != nil {
		r.remove(s)
	}
	return s
}

func (r *ring) remove(s *Stream) {
	if !s.queued {
		return
	}
	if s.ahead != nil {
		s.ahead.after = s.after
	} else {
		r.first = s.after
	}
	if s.after != nil {
		s.after.ahead = s.ahead
	} else {
		r.last = s.ahead
	}
	s.queued, s.ahead, s.after = false, nil, nil
}

// canWrite is why nothing may be written to s, nil if it may.
func (s *Stream) canWrite() error {
	switch {
	case s.why != nil:
		return s.why
	case s.c.err != nil:
		return s.c.err
	case s.localEnd:
		return errEnded
	case s.writeDeadline.passed:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// WriteHead sends a head: pseudo-fields first, which the caller supplies, and names in any case. Fields that are marked
// Hop are sent too, but for those that HTTP/2 does not have. An interim response has neither body nor end. As much of
// the body as the windows allow leaves together with the head; for the rest it waits. End says that the message ends
// with body. On a client the first head opens the stream; one that is larger than what the server says that it takes is
// refused with reason.HeaderTooLarge, and nothing is sent. When the connection takes no new streams any more the error is
// a *reason.Refusal over ErrGoingAway or what ended it, and Unprocessed is true. Reading returns the same error.
func (s *Stream) WriteHead(fields []message.Field, body []byte, end bool) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client {
		s.unsent = nil
	}
	for {
		if c.client && s.id == 0 {
			if s.unsent = c.refuses(s, fields); s.unsent != nil {
				s.readable.Broadcast()
				return s.unsent
			}
		}
		if err := s.canWrite(); err != nil {
			if c.client && s.id == 0 {
				s.unsent = err
				s.readable.Broadcast()
			}
			return err
		}
		if len(c.out) < batch || !c.flushing {
			break
		}
		c.room.Wait()
	}
	if s.id == 0 {
		c.begin(s, fields)
	}
	c.encode(s.id, fields, end && len(body) == 0)
	if end && len(body) == 0 {
		s.sentEnd()
	}
	c.lastActivity.Store(c.settings.Clock())
	if len(body) > 0 {
		_, err := s.send(body, end)
		return err
	}
	c.lead()
	return nil
}

// Write sends data. It waits for the peer's windows and for its turn among the streams, until the write deadline.
func (s *Stream) Write(p []byte) (int, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if err := s.canWrite(); err != nil || len(p) == 0 {
		return 0, err
	}
	if s.id == 0 {
		return 0, errNoHead
	}
	return s.send(p, false)
}

// send waits until p is on its way. Called with mu held.
func (s *Stream) send(p []byte, end bool) (int, error) {
	c := s.c
	s.data, s.dataEnd = p, end
	c.ready.push(s)
	if c.flushing {
		c.fill()
	}
	for len(s.data) > 0 {
		if err := s.canWrite(); err != nil {
			n := len(p) - len(s.data)
			c.ready.remove(s)
			s.data = nil
			c.kick() // for others, if it was this stream's to write
			return n, err
		}
		if c.flushing || !c.more() {
			s.writable.Wait()
			continue
		}
		c.flushing = true
		c.yield()
		c.write()
		c.flushing = false
	}
	c.lastActivity.Store(c.settings.Clock())
	c.kick()
	return len(p), nil
}

// End ends the message, with trailers if there are any.
func (s *Stream) End(trailers []message.Field) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.canWrite(); err != nil {
		return err
	}
	if s.id == 0 {
		return errNoHead
	}
	if len(trailers) > 0 {
		c.encode(s.id, trailers, true)
	} else {
		c.out = c.frame(http2.FrameData, http2.FlagDataEndStream, s.id, 0)
	}
	s.sentEnd()
	c.lead()
	return nil
}

// sentEnd notes that our side of the stream has ended.
func (s *Stream) sentEnd() {
	s.localEnd = true
	if s.remoteEnd {
		s.c.waste.earn(earnMessage)
		s.c.close(s)
	}
}

// Reset ends the stream at once in both directions.
func (s *Stream) Reset(code http2.ErrCode) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.closed {
		return
	}
	c.reset(s, code, refusal(reason.Internal, "", "a stream that was reset by ourselves"))
	c.kick()
}
