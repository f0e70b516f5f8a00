package h2

import (
	"math"
	"os"

	"golang.org/x/net/http2"

	"countersign/internal/message"
	"countersign/internal/reason"
)

// readFields handles a whole field section. It is always decoded, so that the compression state stays right.
func (c *Conn) readFields(h http2.FrameHeader, p []byte, itself bool) error {
	id, end := h.StreamID, h.Flags.Has(http2.FlagHeadersEndStream)
	c.mu.Lock()
	s := c.streams[id]
	k := ignored
	var late error // what is wrong with the frame itself, said after it was decoded
	switch {
	case s == nil && c.client:
		if c.isIdle(id) {
			late = c.broken(http2.ErrCodeProtocol, "HEADERS on a stream that was opened", "another number")
		} else if late = c.late(0); late == nil && !c.remembers(id) {
			late = c.broken(http2.ErrCodeStreamClosed, "no HEADERS on a closed stream", "some")
		}
	case s == nil && id%2 == 0:
		late = c.broken(http2.ErrCodeProtocol, "an odd stream number", "an even one")
	case s == nil && id <= c.peerLast:
		if late = c.spend(costClosed, "frames on closed streams"); late == nil && !c.remembers(id) {
			late = c.broken(http2.ErrCodeStreamClosed, "a new stream number", "one that was used")
		}
	case s == nil:
		c.peerLast = id
		if c.goingAway == leaving || c.ended || c.err != nil {
			c.remember(id) // it was told, and may try elsewhere (RFC 9113 section 6.8)
		} else {
			k, c.served = request, id
		}
	case c.client && !s.final:
		k = response
	default:
		k = trailers
	}
	c.mu.Unlock()

	b := newBlock(k, c.client, &c.settings)
	if err := c.decode(b, p); err != nil {
		b.release()
		return err
	}
	if late != nil || k == ignored {
		b.release()
		return late
	}
	if k == request {
		return c.onRequest(id, b, end, itself)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s = c.streams[id]; s == nil { // ended while it was decoded
		b.release()
		return nil
	}
	if itself {
		b.release()
		return c.streamError(id, http2.ErrCodeProtocol, "a stream that depends on another", "one that depends on itself")
	}
	if k == response {
		return c.onResponse(s, b, end)
	}
	return c.onTrailers(s, b, end)
}

// onRequest opens a stream.
func (c *Conn) onRequest(id uint32, b *block, end, itself bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held != nil {
		c.letGo()
	}
	if c.err != nil {
		b.release()
		return nil
	}
	if len(c.streams) >= int(c.settings.Streams) {
		b.release()
		c.rst(id, http2.ErrCodeRefusedStream)
		return c.spend(costRefused, "streams beyond the limit")
	}
	if itself {
		b.release()
		return c.streamError(id, http2.ErrCodeProtocol, "a stream that depends on another", "one that depends on itself")
	}
	s := c.newStream()
	if why := b.toRequest(s, end); why != nil {
		b.release()
		s.free()
		return c.streamRefused(id, http2.ErrCodeProtocol, why)
	}
	s.id, s.head = id, b
	s.window, s.recvWindow = c.peer.window, c.startWindow
	s.remoteEnd = end
	c.streams[id] = s
	c.live++
	c.lastActivity.Store(c.settings.Clock())
	if s.Refusal != nil && !end { // its body is of no use
		s.refused, s.declared = s.Refusal, -1
	}
	if !end && len(c.src.unread) > 0 {
		c.held = s // its body may be here already
		return nil
	}
	c.dispatch(s)
	return nil
}

// onTrailers takes the section behind a body (RFC 9113 section 8.1).
func (c *Conn) onTrailers(s *Stream, b *block, end bool) error {
	why := reason.BadHeader
	if c.client {
		why = reason.UpstreamBadResponse
	}
	var bad *reason.Refusal
	code := http2.ErrCodeProtocol
	switch {
	case s.remoteEnd:
		bad, code = refusal(why, "nothing behind the end of the stream", "HEADERS"), http2.ErrCodeStreamClosed
	case !end:
		bad = refusal(why, "the end of the stream with trailers", "HEADERS without it")
	case c.client:
		bad = b.checkResponse(s.forHead, end)
	case b.bad != nil:
		bad = b.bad
	case b.over != reason.Unset:
		bad = refusal(b.over, "", "")
	}
	if bad != nil {
		b.release()
		return c.streamRefused(s.id, code, bad)
	}
	s.trailer = b
	c.lastActivity.Store(c.settings.Clock())
	return c.remoteEnded(s)
}

// maxInterim bounds the response heads of a stream that nobody has read yet.
const maxInterim = 8

// onResponse takes a response head (client).
func (c *Conn) onResponse(s *Stream, b *block, end bool) error {
	bad := b.checkResponse(s.forHead, end)
	if bad == nil && len(s.heads) == maxInterim {
		bad = refusal(reason.UpstreamInterimFlood, "", "")
	}
	if bad != nil {
		b.release()
		return c.streamRefused(s.id, http2.ErrCodeProtocol, bad)
	}
	c.lastActivity.Store(c.settings.Clock())
	s.heads = append(s.heads, pendingHead{b, end})
	if s.final = b.status >= 200; s.final {
		s.declared, _ = b.contentLength()
		s.bodiless = bodiless(b.status, s.forHead)
	}
	s.readable.Broadcast()
	if end {
		return c.remoteEnded(s)
	}
	return nil
}

// Room is how many streams Open would give now; negative once the connection takes none any more.
func (c *Conn) Room() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.roomLeft()
}

func (c *Conn) roomLeft() int {
	if c.err != nil || c.ended || c.goingAway != staying || c.peerGone || c.nextID+2*uint32(c.live) > maxStreamID {
		return -1
	}
	most := min(c.peer.streams, c.settings.Streams)
	if !c.greeted {
		most = 1 // of this peer nothing is known yet
	}
	return max(int(most)-c.live, 0) // the peer may have lowered its limit
}

// Open reserves a stream. The caller must Release it. The error is ErrFull or ErrGoingAway.
func (c *Conn) Open() (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch n := c.roomLeft(); {
	case n < 0:
		return nil, ErrGoingAway
	case n == 0:
		return nil, ErrFull
	}
	c.live++
	return c.newStream(), nil
}

// refuses is why no stream may begin with these fields (client), nil if one may. Called with mu held.
func (c *Conn) refuses(s *Stream, fields []message.Field) error {
	if c.err != nil || c.ended || c.peerGone {
		s.unprocessed = true
		if c.err != nil && c.err.Reason != reason.Drained {
			return c.err
		}
		return &reason.Refusal{Reason: reason.UpstreamClosed, Expected: "a connection that takes new streams",
			Found: "one that is going away", Cause: ErrGoingAway}
	}
	if c.peer.head == math.MaxInt64 {
		return nil
	}
	size := int64(0)
	for i := range fields {
		size += int64(len(fields[i].Name) + len(fields[i].Value) + 32)
	}
	if size > c.peer.head {
		return refusal(reason.HeaderTooLarge, "a head within SETTINGS_MAX_HEADER_LIST_SIZE of the target", "a larger one")
	}
	return nil
}

// begin gives the stream its number, which is its place among the heads on the wire. Called with mu held.
func (c *Conn) begin(s *Stream, fields []message.Field) {
	for i := range fields {
		if string(fields[i].Name) == ":method" {
			s.forHead = string(fields[i].Value) == "HEAD"
			break
		}
	}
	s.id = c.nextID
	c.nextID += 2
	s.window, s.recvWindow = c.peer.window, c.startWindow
	c.streams[s.id] = s
}

// ReadResponse waits for the next response head, interim ones included (client). It is valid until the next call.
// A *reason.Refusal says what was wrong, or why WriteHead sent nothing; os.ErrDeadlineExceeded that the read deadline passed.
func (s *Stream) ReadResponse(resp *message.Response) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.giveBack()
	for len(s.heads) == 0 {
		switch {
		case s.readDeadline.passed:
			return os.ErrDeadlineExceeded
		case s.why != nil:
			return s.why
		case s.unsent != nil:
			return s.unsent
		case s.final:
			return refusal(reason.UpstreamBadResponse, "one final response", "it was read already")
		case s.id == 0 && s.c.err != nil:
			return s.c.err
		}
		s.readable.Wait()
	}
	if s.head != nil {
		s.head.release()
	}
	h := s.heads[0]
	s.heads = s.heads[:copy(s.heads, s.heads[1:])]
	s.head = h.block
	h.toResponse(resp, s.forHead, h.end)
	return nil
}

// Unprocessed reports that the server surely did nothing about the request (RFC 9113 section 8.7), so that any request
// may be sent again elsewhere.
func (s *Stream) Unprocessed() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.unprocessed
}

// Release gives the stream back (client). One that has not ended is reset.
func (s *Stream) Release() {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.closed && s.id != 0 && c.err == nil {
		c.reset(s, http2.ErrCodeCancel, refusal(reason.Completed, "", ""))
	}
	c.close(s)
	c.live--
	s.free()
	c.left()
	c.kick()
}
