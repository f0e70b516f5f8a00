package h2

import (
	"encoding/binary"
	"errors"
	"io"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"countersign/internal/reason"
)

// ending is how reading came to its end: what the peer is told, and what the record.
type ending struct {
	code http2.ErrCode
	why  *reason.Refusal
}

// noGoAway is the code of an ending that the peer is not told of, because it has ended itself.
const noGoAway = http2.ErrCode(1<<32 - 1)

func (e *ending) Error() string { return e.why.Error() }

// broken is a connection error (RFC 9113 section 5.4.1).
func (c *Conn) broken(code http2.ErrCode, expected, found string) error {
	why := reason.H2ProtocolError
	if c.client {
		why = reason.UpstreamBadResponse
	}
	return &ending{code, refusal(why, expected, found)}
}

// calm ends a connection whose peer makes work without use.
func (c *Conn) calm(found string) error {
	why := reason.H2EnhanceYourCalm
	if c.client {
		why = reason.UpstreamBadResponse
	}
	return &ending{http2.ErrCodeEnhanceYourCalm, refusal(why, "use of what is asked for", "too many "+found)}
}

// spend takes points off the peer's budget. A target that has none left gets no new streams, and those that are under
// way end as they would, unless it goes on and on. Called with mu held.
func (c *Conn) spend(points int, found string) error {
	if c.waste.spend(points, c.settings.Clock) {
		return nil
	}
	if c.client && c.waste.points >= -debt {
		c.peerGone = true
		c.left()
		return nil
	}
	return c.calm(found)
}

// read reads frames until the connection ends.
func (c *Conn) read() *ending {
	err := c.start()
	for err == nil {
		if err = c.next(); err == errDozed {
			c.doze()
			err = nil
		}
	}
	if c.held != nil { // what came with it does not matter any more
		c.mu.Lock()
		if c.held != nil && c.err == nil {
			c.letGo()
		}
		c.mu.Unlock()
	}
	var end *ending
	if errors.As(err, &end) {
		return end
	}
	return c.gone(err)
}

// gone is the ending of a connection that cannot be read any more.
func (c *Conn) gone(err error) *ending {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == io.EOF && c.live == 0 && c.greeted:
		return &ending{noGoAway, clean}
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return &ending{noGoAway, c.lost(err)}
}

// start sends our preface and reads the client's.
func (c *Conn) start() error {
	c.mu.Lock()
	if !c.client {
		c.greet()
	}
	c.lead()
	c.mu.Unlock()
	if c.client {
		return nil
	}
	for left := http2.ClientPreface; left != ""; {
		p, err := c.src.some(len(left))
		if err != nil {
			return err
		}
		if string(p) != left[:len(p)] {
			return c.broken(http2.ErrCodeProtocol, "the connection preface of HTTP/2", "something else")
		}
		left = left[len(p):]
	}
	return nil
}

// beforeRead is called when all that came was handled and more has to be waited for.
func (c *Conn) beforeRead() {
	if c.inHead && c.headSince.Load() == 0 {
		c.headSince.Store(max(c.settings.Clock(), 1))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held != nil {
		c.letGo()
	}
	if len(c.streams) == 0 && len(c.out) > 0 {
		c.lead() // nobody else has anything to do
		return
	}
	c.kick()
}

// letGo starts the handler of the request that was held until what came with it was read.
func (c *Conn) letGo() {
	s := c.held
	c.held = nil
	c.dispatch(s)
}

// next reads and handles one frame.
//
//go:noinline
func (c *Conn) next() error {
	c.src.between = len(c.src.unread) == 0
	h, err := c.framer.ReadFrameHeader()
	if err != nil {
		return c.frameError(err)
	}
	if !c.greeted && (h.Type != http2.FrameSettings || h.Flags.Has(http2.FlagSettingsAck)) {
		return c.broken(http2.ErrCodeProtocol, "SETTINGS as the first frame", h.Type.String())
	}
	switch h.Type {
	case http2.FrameData:
		return c.readData(h)
	case http2.FrameHeaders:
		return c.readHeaders(h)
	case http2.FrameContinuation: // the framer knows that it is out of place
		return c.broken(http2.ErrCodeProtocol, "HEADERS before CONTINUATION", "another frame")
	case http2.FramePushPromise:
		return c.broken(http2.ErrCodeProtocol, "no PUSH_PROMISE", "one")
	case http2.FrameGoAway:
		return c.readGoAway(h)
	case http2.FrameSettings:
		if h.Length > 6*64 {
			return c.calm("settings in one frame")
		}
	case http2.FramePing, http2.FramePriority, http2.FrameRSTStream, http2.FrameWindowUpdate:
		if h.Length > 8 {
			return c.broken(http2.ErrCodeFrameSize, "a "+h.Type.String()+" frame of its one size", "a longer one")
		}
	default: // to be ignored (RFC 9113 section 4.1)
		c.mu.Lock()
		err := c.spend(costUnknown, "frames of unknown types")
		c.mu.Unlock()
		if err != nil {
			return err
		}
		return c.src.skip(int(h.Length))
	}
	f, err := c.framer.ReadFrameForHeader(h)
	if err != nil {
		return c.frameError(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch f := f.(type) {
	case *http2.SettingsFrame:
		return c.onSettings(f)
	case *http2.PingFrame:
		return c.onPing(f)
	case *http2.PriorityFrame:
		if f.StreamDep == f.StreamID {
			return c.streamError(f.StreamID, http2.ErrCodeProtocol, "a stream that depends on another", "one that depends on itself")
		}
		return c.spend(costPriority, "PRIORITY frames")
	case *http2.RSTStreamFrame:
		return c.onReset(f)
	case *http2.WindowUpdateFrame:
		return c.onWindow(f.StreamID, f.Increment)
	}
	return nil
}

// frameError turns an error of the framer or the connection into an ending, or handles that of one stream.
func (c *Conn) frameError(err error) error {
	detail := ""
	if d := c.framer.ErrorDetail(); d != nil {
		detail = d.Error()
	}
	switch e := err.(type) {
	case http2.ConnectionError:
		if detail == "" {
			detail = "one that breaks " + http2.ErrCode(e).String()
		}
		return c.broken(http2.ErrCode(e), "a frame as in RFC 9113", detail)
	case http2.StreamError:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.streamError(e.StreamID, e.Code, "a frame as in RFC 9113", "one that breaks "+e.Code.String())
	}
	if errors.Is(err, http2.ErrFrameTooLarge) {
		return c.broken(http2.ErrCodeFrameSize, "a frame of at most 16 KiB", "a larger one")
	}
	return err
}

// idle reports whether the peer may not speak of the stream yet. Called with mu held.
func (c *Conn) isIdle(id uint32) bool {
	if c.client {
		return id%2 == 0 || id >= c.nextID
	}
	return id%2 == 0 || id > c.peerLast
}

// streamError ends one stream because of what the peer did (RFC 9113 section 5.4.2). A client that makes us do so again
// and again is told to calm down (CVE-2025-8671). A target is not: any client may know how to provoke it, and the number
// of streams is in our hand. Called with mu held.
func (c *Conn) streamError(id uint32, code http2.ErrCode, expected, found string) error {
	if id == 0 || c.isIdle(id) {
		return c.broken(code, expected, found)
	}
	why := reason.H2ProtocolError
	if c.client {
		why = reason.UpstreamBadResponse
	}
	return c.streamRefused(id, code, refusal(why, expected, found))
}

func (c *Conn) streamRefused(id uint32, code http2.ErrCode, why *reason.Refusal) error {
	c.settings.Refused(why)
	s := c.streams[id]
	switch {
	case s != nil:
		c.reset(s, code, why)
		if c.client {
			return nil
		}
	case c.client: // it has ended already, and nobody there counts our frames
		return c.late(0)
	case !c.remembers(id):
		c.rst(id, code)
	}
	return c.spend(costProvoked, "streams that had to be reset")
}

func (c *Conn) onSettings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		if c.startWindow != c.settings.StreamWindow { // a smaller one was announced, and holds from now on
			diff := c.settings.StreamWindow - c.startWindow
			c.startWindow = c.settings.StreamWindow
			for _, s := range c.streams {
				s.recvWindow += diff
			}
		}
		return c.spend(costPing, "SETTINGS frames")
	}
	c.greeted = true
	defer c.meet()
	for i := range f.NumSettings() {
		one := f.Setting(i)
		switch one.ID {
		case http2.SettingHeaderTableSize:
			c.enc.SetMaxDynamicTableSize(min(one.Val, 4096))
		case http2.SettingEnablePush:
			if one.Val > 1 || c.client && one.Val != 0 {
				return c.broken(http2.ErrCodeProtocol, "SETTINGS_ENABLE_PUSH of 0 or, from a client, 1", "another value")
			}
		case http2.SettingMaxConcurrentStreams:
			c.peer.streams = one.Val
		case http2.SettingMaxHeaderListSize:
			c.peer.head = int64(one.Val)
		case http2.SettingInitialWindowSize:
			if one.Val > maxWindow {
				return c.broken(http2.ErrCodeFlowControl, "a window of at most 2^31-1 bytes", "a larger one")
			}
			diff := int64(one.Val) - c.peer.window
			c.peer.window = int64(one.Val)
			for _, s := range c.streams {
				if s.window += diff; s.window > maxWindow {
					return c.broken(http2.ErrCodeFlowControl, "windows of at most 2^31-1 bytes", "a larger one")
				}
				c.wakeWriter(s)
			}
		case http2.SettingMaxFrameSize:
			if one.Val < frameSize || one.Val > 1<<24-1 {
				return c.broken(http2.ErrCodeProtocol, "SETTINGS_MAX_FRAME_SIZE from 2^14 to 2^24-1", "another value")
			}
		case http2.SettingEnableConnectProtocol:
			if one.Val > 1 || c.peer.connect && one.Val == 0 {
				return c.broken(http2.ErrCodeProtocol, "SETTINGS_ENABLE_CONNECT_PROTOCOL of 1 that stays", "another value")
			}
			c.peer.connect = one.Val == 1
		}
	}
	c.out = c.frame(http2.FrameSettings, http2.FlagSettingsAck, 0, 0)
	if err := c.answered(9); err != nil {
		return err
	}
	return c.spend(costSettings, "SETTINGS frames")
}

// maxControl bounds the answers to control frames that wait for a peer that does not read.
const maxControl = 16 << 10

func (c *Conn) answered(n int) error {
	if c.control += n; c.control > maxControl {
		return c.calm("frames that want an answer, and none was read")
	}
	return nil
}

func (c *Conn) onPing(f *http2.PingFrame) error {
	if f.IsAck() {
		if c.goingAway == announced && string(f.Data[:]) == goAwayPing {
			c.leave()
		}
		return c.spend(costPing, "PING frames")
	}
	c.out = append(c.frame(http2.FramePing, http2.FlagPingAck, 0, 8), f.Data[:]...)
	if err := c.answered(17); err != nil {
		return err
	}
	return c.spend(costPing, "PING frames")
}

func (c *Conn) onReset(f *http2.RSTStreamFrame) error {
	s := c.streams[f.StreamID]
	if s == nil {
		if c.isIdle(f.StreamID) {
			return c.broken(http2.ErrCodeProtocol, "RST_STREAM for a stream that was opened", "another number")
		}
		return c.late(0)
	}
	why := refusal(reason.ClientAborted, "", "RST_STREAM "+f.ErrCode.String())
	if c.client {
		s.unprocessed = f.ErrCode == http2.ErrCodeRefusedStream
		why.Reason = reason.UpstreamTruncated
		if !s.final {
			why.Reason = reason.UpstreamClosed
		}
	}
	wasted := !c.client && !s.localEnd // a target may do without the rest of a request
	c.end(s, why)
	c.left()
	if wasted {
		return c.spend(costReset, "streams opened and reset")
	}
	return nil
}

func (c *Conn) onWindow(id, n uint32) error {
	if id == 0 {
		if c.window += int64(n); c.window > maxWindow {
			return c.broken(http2.ErrCodeFlowControl, "windows of at most 2^31-1 bytes", "a larger one")
		}
		if s := c.ready.first; s != nil {
			s.writable.Signal()
		}
		return c.granted(n)
	}
	s := c.streams[id]
	if s == nil {
		if c.isIdle(id) {
			return c.broken(http2.ErrCodeProtocol, "WINDOW_UPDATE for a stream that was opened", "another number")
		}
		return c.granted(n)
	}
	if s.window += int64(n); s.window > maxWindow {
		return c.streamError(id, http2.ErrCodeFlowControl, "windows of at most 2^31-1 bytes", "a larger one")
	}
	c.wakeWriter(s)
	return c.granted(n)
}

// granted takes the cost of a WINDOW_UPDATE.
func (c *Conn) granted(n uint32) error {
	if n >= worthGrant && int64(n) <= c.owed {
		c.owed -= int64(n)
		return nil
	}
	return c.spend(costWindow, "WINDOW_UPDATE frames")
}

// wakeWriter lets s write if it waits for its window.
func (c *Conn) wakeWriter(s *Stream) {
	if len(s.data) > 0 && s.window > 0 {
		c.ready.push(s)
		s.writable.Signal()
	}
}

func (c *Conn) readGoAway(h http2.FrameHeader) error {
	if h.StreamID != 0 {
		return c.broken(http2.ErrCodeProtocol, "GOAWAY on stream 0", "another stream")
	}
	if h.Length < 8 {
		return c.broken(http2.ErrCodeFrameSize, "GOAWAY of at least 8 bytes", "fewer")
	}
	var p [8]byte
	if _, err := io.ReadFull(&c.src, p[:]); err != nil {
		return unexpected(err)
	}
	if err := c.src.skip(int(h.Length) - 8); err != nil {
		return err
	}
	last := binary.BigEndian.Uint32(p[:]) & maxStreamID
	code := http2.ErrCode(binary.BigEndian.Uint32(p[4:]))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client {
		c.peerGone = true
		for id, s := range c.streams {
			if id > last {
				s.unprocessed = true
				c.end(s, refusal(reason.UpstreamClosed, "", "GOAWAY "+code.String()))
			}
		}
		c.left()
	}
	return c.spend(costSettings, "GOAWAY frames")
}

// readData reads DATA. The payload is handed on as it arrives.
func (c *Conn) readData(h http2.FrameHeader) error {
	if h.StreamID == 0 {
		return c.broken(http2.ErrCodeProtocol, "DATA on a stream", "stream 0")
	}
	n, pad := int(h.Length), 0
	if h.Flags.Has(http2.FlagDataPadded) {
		if n == 0 {
			return c.broken(http2.ErrCodeFrameSize, "a length of the padding", "nothing")
		}
		p, err := c.src.some(1)
		if err != nil {
			return err
		}
		if pad = int(p[0]); pad >= n {
			return c.broken(http2.ErrCodeProtocol, "padding shorter than its frame", "a longer one")
		}
		n -= 1 + pad
	}
	end := h.Flags.Has(http2.FlagDataEndStream)
	c.mu.Lock()
	keep, err := c.onData(h, n, end)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if !keep {
		return c.src.skip(n + pad)
	}
	for n > 0 {
		p, err := c.src.some(n)
		if err != nil {
			return err
		}
		n -= len(p)
		c.mu.Lock()
		// The stream may have ended meanwhile, and its storage may serve another: it is looked up each time.
		if s := c.streams[h.StreamID]; s != nil && s.refused == nil {
			s.take(p)
			s.readable.Signal()
		}
		c.mu.Unlock()
	}
	if err := c.src.skip(pad); err != nil {
		return err
	}
	if end {
		c.mu.Lock()
		defer c.mu.Unlock()
		if s := c.streams[h.StreamID]; s != nil {
			return c.remoteEnded(s)
		}
	}
	return nil
}

// onData says whether the n bytes of a DATA frame are wanted. The connection's window is granted again whether they are or
// not; of the stream's, padding is noted as if it were read.
func (c *Conn) onData(h http2.FrameHeader, n int, end bool) (keep bool, err error) {
	id, size := h.StreamID, int32(h.Length)
	c.used(size)
	s := c.streams[id]
	if s == nil {
		if c.isIdle(id) {
			return false, c.broken(http2.ErrCodeProtocol, "DATA on a stream that was opened", "another number")
		}
		if c.client || c.remembers(id) { // sent before the peer knew
			return false, c.late(size)
		}
		return false, c.streamError(id, http2.ErrCodeStreamClosed, "no DATA on a closed stream", "some")
	}
	problem := http2.ErrCodeNo
	var found string
	switch {
	case s.remoteEnd:
		problem, found = http2.ErrCodeStreamClosed, "DATA behind the end of the stream"
	case c.client && !s.final:
		problem, found = http2.ErrCodeProtocol, "DATA before HEADERS"
	case c.client && s.bodiless && n > 0:
		problem, found = http2.ErrCodeProtocol, "DATA where no body can be"
	case s.recvWindow < size:
		problem, found = http2.ErrCodeFlowControl, "more DATA than the stream's window"
	case s.declared >= 0 && !s.bodiless && s.received+int64(n) > s.declared:
		problem, found = http2.ErrCodeProtocol, "more DATA than content-length"
	}
	if problem != http2.ErrCodeNo {
		why := reason.FramingAmbiguous
		if problem != http2.ErrCodeProtocol {
			why = reason.H2ProtocolError
		}
		if c.client {
			why = reason.UpstreamBadResponse
		}
		return false, c.streamRefused(id, problem, refusal(why, "a body as RFC 9113 section 8.1.1 and 5.1 want it", found))
	}
	s.recvWindow -= size
	s.received += int64(n)
	c.lastActivity.Store(c.settings.Clock())
	switch {
	case n >= worth || end:
		c.waste.earn(earnReceived)
	case n == 0:
		err = c.spend(costEmptyData, "empty DATA frames")
	case n < tiny && s.avail > 0 && !c.client: // there it is another client that does not read
		err = c.spend(costTinyData, "tiny DATA frames")
	}
	if pad := size - int32(n); pad > 0 {
		s.unacked += pad
	}
	if limit := c.settings.BodyBytes; !c.client && limit > 0 && s.received > limit && s.refused == nil {
		s.refused = refusal(reason.BodyTooLarge, "", "")
		s.drop()
		s.readable.Broadcast()
	}
	return true, err
}

// remoteEnded notes that the peer's side of s has ended, unless less came than was said.
func (c *Conn) remoteEnded(s *Stream) error {
	if s.declared >= 0 && s.received != s.declared && !s.bodiless {
		why := reason.BodyTruncated
		if c.client {
			why = reason.UpstreamTruncated
		}
		return c.streamRefused(s.id, http2.ErrCodeProtocol, refusal(why, "as many bytes as content-length says", "the end of the stream"))
	}
	s.remoteEnd = true
	s.readable.Broadcast()
	if c.held == s {
		c.letGo()
	}
	if s.localEnd {
		c.waste.earn(earnMessage)
		c.close(s)
	}
	return nil
}

// field takes a field from the decoder.
func (c *Conn) field(f hpack.HeaderField) {
	b := c.decoding
	b.add(f)
	if b.over != reason.Unset || b.bad != nil {
		c.dec.SetEmitEnabled(false) // the rest matters to the compression only
	}
}

// maxContinuation bounds the frames of one field block (CVE-2024-27316 and its kin).
const maxContinuation = 64

// readHeaders reads HEADERS and its CONTINUATION frames.
func (c *Conn) readHeaders(h http2.FrameHeader) error {
	if h.StreamID == 0 {
		return c.broken(http2.ErrCodeProtocol, "HEADERS on a stream", "stream 0")
	}
	c.inHead = true
	defer func() {
		c.inHead = false
		if c.headSince.Load() != 0 {
			c.headSince.Store(0)
		}
	}()
	p, err := c.payload(int(h.Length))
	if err != nil {
		return err
	}
	pad := 0
	if h.Flags.Has(http2.FlagHeadersPadded) {
		if len(p) == 0 {
			return c.broken(http2.ErrCodeFrameSize, "a length of the padding", "nothing")
		}
		pad, p = int(p[0]), p[1:]
	}
	itself := false
	if h.Flags.Has(http2.FlagHeadersPriority) {
		if len(p) < 5 {
			return c.broken(http2.ErrCodeFrameSize, "5 bytes of priority", "fewer")
		}
		itself = binary.BigEndian.Uint32(p)&maxStreamID == h.StreamID
		p = p[5:]
	}
	if pad > len(p) {
		return c.broken(http2.ErrCodeProtocol, "padding shorter than its frame", "a longer one")
	}
	p = p[:len(p)-pad]
	if !h.Flags.Has(http2.FlagHeadersEndHeaders) {
		c.gather = append(c.gather[:0], p...)
		if err := c.readContinuation(); err != nil {
			return err
		}
		p = c.gather
	}
	err = c.readFields(h, p, itself)
	if c.gather != nil {
		c.gather = nil // rare, and not worth keeping
	}
	return err
}

// payload returns n bytes in one piece, valid until the next read.
func (c *Conn) payload(n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	p, err := c.src.some(n)
	if err != nil || len(p) == n {
		return p, err
	}
	c.gather = append(make([]byte, 0, n), p...)
	for len(c.gather) < n {
		if p, err = c.src.some(n - len(c.gather)); err != nil {
			return nil, err
		}
		c.gather = append(c.gather, p...)
	}
	return c.gather, nil
}

// readContinuation gathers the rest of a field block.
func (c *Conn) readContinuation() error {
	for range maxContinuation {
		h, err := c.framer.ReadFrameHeader()
		if err != nil {
			return c.frameError(err)
		}
		cost := costContinuation
		last := h.Flags.Has(http2.FlagContinuationEndHeaders)
		switch {
		case h.Length == 0 && !last:
			cost = costEmptyBlock
		case c.client && h.Length >= worth:
			cost = 0
		}
		c.mu.Lock()
		err = c.spend(cost, "CONTINUATION frames")
		c.mu.Unlock()
		if err != nil {
			return err
		}
		if len(c.gather)+int(h.Length) > c.maxBlock() {
			return c.calm("bytes of header fields")
		}
		for n := int(h.Length); n > 0; {
			p, err := c.src.some(n)
			if err != nil {
				return err
			}
			n -= len(p)
			c.gather = append(c.gather, p...)
		}
		if last {
			return nil
		}
	}
	return c.calm("CONTINUATION frames")
}

// decode decodes a whole field block into b; an error ends the connection, whose compression state is lost.
func (c *Conn) decode(b *block, p []byte) error {
	c.decoding = b
	c.dec.SetEmitEnabled(b.kind != ignored)
	_, err := c.dec.Write(p)
	if err == nil {
		err = c.dec.Close()
	}
	c.decoding = nil
	switch {
	case err == hpack.ErrStringLength:
		return c.calm("bytes of header fields")
	case err != nil:
		return c.broken(http2.ErrCodeCompression, "a field block as in RFC 7541", "one that cannot be decoded")
	}
	return nil
}
