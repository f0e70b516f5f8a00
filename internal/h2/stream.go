package h2

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"countersign/internal/message"
	"countersign/internal/reason"
)

// Stream is one request and its response. On a server it is valid until the handler returns, on a client until Release:
// then its storage is used again, so nobody may keep it. One goroutine may read while another writes, and any may set
// deadlines, ask Gone, or Reset.
type Stream struct {
	// Request is the request head (server). Pseudo-fields and host are not among its fields, crumbs of a cookie are
	// joined (RFC 9113 section 8.2.3). Framing is NoBody when the stream ended with the head, Length when there is a
	// content-length, else Chunked, which means that the length is not known. Minor is 1 and KeepAlive true.
	Request message.Request
	// Scheme is :scheme, nil for CONNECT without a protocol.
	Scheme []byte
	// Protocol is :protocol of an extended CONNECT (RFC 8441), whose Request.Method is CONNECT; else nil.
	Protocol []byte
	// Refusal says with which status to answer a head that is framed well and refused all the same; nil for all others.
	// Request is then filled as far as the head could be read.
	Refusal *reason.Refusal

	// All below is guarded by c.mu.
	c          *Conn
	id         uint32
	dispatched bool            // a handler has it (server)
	closed     bool            // both sides have ended
	why        *reason.Refusal // ended before its time: nothing is read or written any more

	// Receiving.
	head        *block // of the request (server) or the response read last (client)
	trailer     *block
	first, last *chunk
	lent        *chunk          // given out by Buffered or Ready
	lentLast    bool            // and no longer among the others
	avail       int             // bytes in the chunks
	declared    int64           // content-length, -1 for none
	received    int64           // bytes that came
	total       int64           // bytes that were read
	refused     *reason.Refusal // the body is not good: Read says so, an answer can still be written
	remoteEnd   bool
	finished    bool // and whoever reads the body knows (server)
	recvWindow  int32
	unacked     int32 // read and not granted again
	readable    sync.Cond

	// Receiving (client).
	heads       []pendingHead
	forHead     bool // the request is HEAD
	bodiless    bool // the response has no body, whatever its fields say
	final       bool // the final response head came
	unprocessed bool
	unsent      error // why the head was not sent

	// Sending.
	localEnd     bool
	window       int64
	data         []byte // what Write waits with
	dataEnd      bool
	queued       bool
	ahead, after *Stream // in the ring
	writable     sync.Cond

	readDeadline, writeDeadline deadline
	timed                       bool // one of them had a timer
}

type pendingHead struct {
	*block
	end bool
}

// Mistakes of the caller.
var (
	errEnded  = errors.New("h2: write on a stream that was ended")
	errNoHead = errors.New("h2: data in front of the head")
)

var streams = sync.Pool{New: func() any { return new(Stream) }}

func (c *Conn) newStream() *Stream {
	s := streams.Get().(*Stream)
	s.c, s.declared = c, -1
	s.readable.L, s.writable.L = &c.mu, &c.mu
	return s
}

// free gives the storage back. Called with mu held.
func (s *Stream) free() {
	s.drop()
	s.giveBack()
	if s.head != nil {
		s.head.release()
	}
	if s.trailer != nil {
		s.trailer.release()
	}
	for _, h := range s.heads {
		h.release()
	}
	clear(s.heads)
	s.readDeadline.clear()
	s.writeDeadline.clear()
	if s.timed { // a timer that has just fired may still look at it
		return
	}
	s.Request.Reset()
	*s = Stream{Request: s.Request, heads: s.heads[:0]}
	streams.Put(s)
}

// ID is the stream's number; 0 on a client before WriteHead.
func (s *Stream) ID() uint32 {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.id
}

// gone ends whatever waits on the stream. Called with mu held.
func (s *Stream) gone(why *reason.Refusal) {
	if s.why == nil && !(s.localEnd && s.remoteEnd) {
		s.why = why
	}
	if !s.c.client {
		s.drop() // what a client took back is not worth reading
	}
	s.readable.Broadcast()
	s.writable.Broadcast()
}

// Gone reports that the peer reset the stream or the connection has ended.
func (s *Stream) Gone() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.why != nil
}

// chunk holds data that was not read yet.
type chunk struct {
	next *chunk
	r, w int
	b    []byte
}

const smallChunk, bigChunk = 2 << 10, 16 << 10

var (
	smallChunks = sync.Pool{New: func() any { return &chunk{b: make([]byte, smallChunk)} }}
	bigChunks   = sync.Pool{New: func() any { return &chunk{b: make([]byte, bigChunk)} }}
)

func (k *chunk) release() {
	k.next, k.r, k.w = nil, 0, 0
	if len(k.b) == smallChunk {
		smallChunks.Put(k)
	} else {
		bigChunks.Put(k)
	}
}

// take stores what came. Called with mu held.
func (s *Stream) take(p []byte) {
	s.avail += len(p)
	for len(p) > 0 {
		k := s.last
		if k == nil || k.w == len(k.b) {
			if k == nil && len(p) <= smallChunk {
				k = smallChunks.Get().(*chunk)
			} else {
				k = bigChunks.Get().(*chunk)
			}
			if s.last == nil {
				s.first = k
			} else {
				s.last.next = k
			}
			s.last = k
		}
		n := copy(k.b[k.w:], p)
		k.w += n
		p = p[n:]
	}
}

// pop removes the first chunk.
func (s *Stream) pop() *chunk {
	k := s.first
	if s.first = k.next; s.first == nil {
		s.last = nil
	}
	return k
}

// drop forgets what was not read.
func (s *Stream) drop() {
	for s.first != nil {
		s.discard()
	}
	s.avail = 0
}

// discard removes the first chunk. One that somebody still looks into is given back later, lest another client's data
// were read in its place.
func (s *Stream) discard() {
	if k := s.pop(); k == s.lent {
		s.lentLast = true
	} else {
		k.release()
	}
}

// giveBack ends the validity of what Buffered or Ready returned.
func (s *Stream) giveBack() {
	if s.lentLast {
		s.lent.release()
	}
	s.lent, s.lentLast = nil, false
}

// consumed notes that n bytes were read, and grants them again when it is worth a frame.
func (s *Stream) consumed(n int) {
	c := s.c
	s.avail -= n
	s.total += int64(n)
	if !s.remoteEnd && !s.closed {
		if s.unacked += int32(n); s.unacked >= c.settings.StreamWindow/2 {
			c.windowUpdate(s.id, s.unacked)
			s.recvWindow += s.unacked
			s.unacked = 0
		}
	}
	if !c.flushing && len(c.out) > 0 {
		c.kick() // not in this goroutine: it waits for the peer's data, not for the peer to take ours
	}
}

// used notes that n bytes of the connection's window came, and grants them again when it is worth a frame. The windows of
// the streams bound what is kept.
func (c *Conn) used(n int32) {
	if c.unacked += n; c.unacked >= c.settings.ConnWindow/2 && c.err == nil {
		c.windowUpdate(0, c.unacked)
		c.unacked = 0
	}
}

// canRead is why the body cannot be read, nil if it can.
func (s *Stream) canRead() error {
	switch {
	case s.readDeadline.passed:
		return os.ErrDeadlineExceeded
	case s.c.client && (s.avail > 0 || s.remoteEnd) && s.refused == nil: // what came before the end is the target's word
		return nil
	case s.refused != nil:
		return s.refused
	case s.why != nil:
		return s.why
	case s.unsent != nil:
		return s.unsent
	}
	return nil
}

// Read reads the peer's body. It returns io.EOF at the end of the stream, with the last bytes if the end has come, a
// *reason.Refusal when the peer reset the stream, sent more or less than its content-length, or ended the connection, and
// os.ErrDeadlineExceeded past the read deadline.
func (s *Stream) Read(p []byte) (int, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.giveBack()
	for {
		if err := s.canRead(); err != nil {
			return 0, err
		}
		if s.avail > 0 && len(p) > 0 {
			break
		}
		if s.avail == 0 && s.remoteEnd {
			s.finished = true
			return 0, io.EOF
		}
		if len(p) == 0 {
			return 0, nil
		}
		s.readable.Wait()
	}
	n := 0
	for n < len(p) && s.first != nil {
		k := s.first
		m := copy(p[n:], k.b[k.r:k.w])
		k.r += m
		n += m
		if k.r == k.w {
			s.discard()
		}
	}
	s.consumed(n)
	if s.avail == 0 && s.remoteEnd && s.canRead() == nil {
		s.finished = true
		return n, io.EOF // at once: who sends it on knows that this is the end
	}
	return n, nil
}

// Buffered returns the whole rest of the body if it is here and at most 16 KiB, and consumes it. The slice is valid until
// the next call.
func (s *Stream) Buffered() ([]byte, bool) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.giveBack()
	if !s.remoteEnd || s.first != s.last || s.canRead() != nil {
		return nil, false
	}
	s.finished = true
	return s.lend(bigChunk), true
}

// Ready returns up to max bytes of the body that are here, without waiting, and consumes them; possibly fewer than are
// here. The slice is valid until the next call.
func (s *Stream) Ready(max int) []byte {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.giveBack()
	if s.canRead() != nil {
		return nil
	}
	return s.lend(max)
}

// lend consumes up to n bytes of the first chunk and keeps it until they are not used any more.
func (s *Stream) lend(n int) []byte {
	k := s.first
	if k == nil || n <= 0 {
		return nil
	}
	n = min(n, k.w-k.r)
	p := k.b[k.r : k.r+n : k.r+n]
	s.lent = k
	if k.r += n; k.r == k.w {
		s.discard()
	}
	s.consumed(n)
	return p
}

// Done reports whether the body was read to its proper end. On a server that is so only once Read has returned io.EOF or
// Buffered the body, or if there is none, so that it never changes behind the back of whoever reads.
func (s *Stream) Done() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.remoteEnd && s.avail == 0 && s.refused == nil && (s.c.client || s.finished || s.Request.Framing == message.NoBody)
}

// Total is the number of body bytes that were read.
func (s *Stream) Total() int64 {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.total
}

// Trailers are the fields behind the body, there once Done. They are valid as long as the stream.
func (s *Stream) Trailers() []message.Field {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.trailer == nil || s.avail > 0 {
		return nil
	}
	return s.trailer.fields
}

// deadline is a time after which waits fail.
type deadline struct {
	passed bool
	turn   uint32 // counts settings, so that a timer of an earlier one does nothing
	timer  *time.Timer
}

func (d *deadline) clear() {
	d.turn++
	d.passed = false
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

// SetDeadline sets both deadlines.
func (s *Stream) SetDeadline(t time.Time) error {
	_ = s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

// SetReadDeadline ends waiting and future reads at t; the zero time is no deadline. A time in the past takes no timer,
// so a caller with a coarse clock of its own sets nothing else.
func (s *Stream) SetReadDeadline(t time.Time) error {
	return s.setDeadline(&s.readDeadline, t, s.readable.Broadcast)
}

// SetWriteDeadline is the same for writes. A stream whose goroutine is writing to the connection, for others as well, when
// the deadline passes returns once that write has ended: the connection is not the stream's to end. A peer that takes
// nothing at all is found by WritingSince, and AbortFor ends the write.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	return s.setDeadline(&s.writeDeadline, t, func() {
		s.writable.Broadcast()
		s.c.room.Broadcast()
	})
}

func (s *Stream) setDeadline(d *deadline, t time.Time, wake func()) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	d.clear()
	if t.IsZero() {
		return nil
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.passed = true
		wake()
		return nil
	}
	turn := d.turn
	s.timed = true
	d.timer = time.AfterFunc(wait, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		defer c.caught()
		if d.turn == turn {
			d.passed = true
			wake()
		}
	})
	return nil
}
