package h2

import (
	"io"
	"math"
	"net"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"countersign/internal/reason"
)

// Conn is one connection.
type Conn struct {
	nc       net.Conn
	settings Settings
	client   bool
	handler  func(*Stream)

	// Of the goroutine in Serve alone.
	src      source
	framer   *http2.Framer
	dec      *hpack.Decoder
	decoding *block
	gather   []byte  // a field block that came in several frames
	held     *Stream // a request whose handler starts when what came with it was read
	greeted  bool    // the peer's first SETTINGS came; written with mu held

	lastActivity atomic.Int64
	writingSince atomic.Int64
	headSince    atomic.Int64
	inHead       bool

	mu sync.Mutex
	// err is why the connection has ended; nothing is written any more but a last GOAWAY. Cause is what its streams say.
	err   *reason.Refusal
	ended bool // orderly: GoAway came to its end
	// dozing is set from Doze until there is something to read again.
	dozing bool

	streams  map[uint32]*Stream // those that are not closed
	peerLast uint32             // the highest stream of the peer's (server)
	served   uint32             // the highest that was not ignored
	nextID   uint32             // of ours (client)
	live     int                // streams somebody holds: a handler, or who opened it
	ours     *recent            // streams that we reset lately: what still comes on them was sent before
	waste    budget

	// Of a client: what may still come on streams that we reset, see late.
	lateFrames int
	lateBytes  int64

	// Workers (server).
	running int       // handlers
	queue   []*Stream // requests that wait for one of the others to end
	idle    []*worker
	parked  sync.Cond // L is &mu; running fell

	// Receiving.
	unacked     int32         // what came on the connection and was not granted again
	startWindow int32         // of new streams, until the peer has acknowledged ours
	met         chan struct{} // see Ready
	hasMet      bool          // it is closed

	// Sending.
	enc       *hpack.Encoder
	names     nameCache
	out       []byte // frames for the next write
	outStore  *[]byte
	control   int // bytes of out that answer the peer's control frames
	flushing  bool
	room      sync.Cond // L is &mu; a write has ended
	ready     ring      // streams with data that may go
	window    int64     // what we may send on the connection
	owed      int64     // what the peer may grant again, on streams and the connection together, because it was sent
	peer      peerSettings
	goingAway uint8 // see GoAway
	peerGone  bool  // the peer sent GOAWAY
}

// peerSettings are those of the peer that matter to us.
type peerSettings struct {
	window  int64  // of new streams
	streams uint32 // that we may open
	head    int64  // the largest field section (RFC 9113 section 10.5.1)
	connect bool   // RFC 8441
}

// The stages of going away.
const (
	staying   = iota
	announced // GOAWAY with the highest number was sent; the peer may not have read it yet
	leaving   // GOAWAY with the last stream's number was sent
)

// Server returns the server's side of nc. Handler is called for each request, in a goroutine of the connection's own;
// the stream is its until it returns. The caller closes nc after Serve has returned.
func Server(nc net.Conn, s Settings, handler func(*Stream)) *Conn {
	c := newConn(nc, s, false)
	c.handler = handler
	return c
}

// Client returns the client's side of nc. The caller runs Serve in a goroutine, which closes nc in the end.
func Client(nc net.Conn, s Settings) *Conn {
	c := newConn(nc, s, true)
	c.nextID = 1
	c.out = append(c.buffer(), http2.ClientPreface...)
	c.greet()
	return c
}

func newConn(nc net.Conn, s Settings, client bool) *Conn {
	s.defaults(client)
	c := &Conn{nc: nc, settings: s, client: client, streams: map[uint32]*Stream{},
		startWindow: max(s.StreamWindow, initialWindow), window: initialWindow, met: make(chan struct{}),
		peer: peerSettings{window: initialWindow, streams: 100, head: math.MaxInt64}}
	c.waste = budget{points: capacity, since: s.Clock()}
	c.parked.L, c.room.L = &c.mu, &c.mu
	c.src.conn = c
	c.framer = http2.NewFramer(io.Discard, &c.src)
	c.framer.SetMaxReadFrameSize(frameSize)
	c.dec = hpack.NewDecoder(4096, c.field)
	c.dec.SetMaxStringLength(c.maxBlock())
	c.enc = hpack.NewEncoder((*encoderOut)(c))
	c.lastActivity.Store(s.Clock())
	return c
}

// maxBlock bounds a field block as it is compressed, so that one that is a little too large can still be answered. On a
// client it is far more: one that is larger ends the connection for all that share it, and any of them may know how to
// have the target answer with a large head.
func (c *Conn) maxBlock() int {
	if c.client {
		return max(2*c.settings.HeaderBytes, 1<<20)
	}
	return max(2*c.settings.HeaderBytes, 64<<10)
}

// greet appends our part of the connection preface: settings, and the window of the connection.
func (c *Conn) greet() {
	s := &c.settings
	list := []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: uint32(s.StreamWindow)}, {ID: http2.SettingMaxHeaderListSize, Val: uint32(s.HeaderBytes)}}
	if c.client {
		list = append(list, http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	} else {
		list = append(list, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: s.Streams})
		if s.ExtendedConnect {
			list = append(list, http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1})
		}
	}
	out := c.frame(http2.FrameSettings, 0, 0, 6*len(list))
	for _, one := range list {
		out = append(out, byte(one.ID>>8), byte(one.ID))
		out = appendUint32(out, one.Val)
	}
	c.out = out
	if s.ConnWindow > initialWindow {
		c.windowUpdate(0, s.ConnWindow-initialWindow)
	}
}

// Serve reads frames until the connection ends, and on a server waits for the handlers to return. It returns nil when
// the peer ended the connection between streams or GoAway came to its end, and a *reason.Refusal otherwise.
func (c *Conn) Serve() error {
	end := c.read()
	c.src.release()
	c.mu.Lock()
	defer c.mu.Unlock()
	orderly := c.ended && c.err == nil
	if orderly {
		c.err = refusal(reason.Drained, "", "") // for whoever would still open a stream
		c.meet()
	} else {
		// What ended first counts: a write that failed, an Abort, or what was read.
		silent := end.code == noGoAway || c.err != nil
		c.fail(end.why)
		switch {
		case silent && c.err != clean:
			c.out = nil
			_ = c.nc.SetWriteDeadline(past)
		default:
			if !silent {
				c.goAway(c.served, end.code)
			}
			// A peer that reads nothing must not hold this up.
			_ = c.nc.SetWriteDeadline(time.Now().Add(lastWords))
		}
	}
	for c.flushing {
		c.room.Wait()
	}
	if len(c.out) > 0 {
		c.write()
	}
	for c.running > 0 {
		c.parked.Wait()
	}
	for _, w := range c.idle {
		w.quit = true
		w.wake.Signal()
	}
	c.idle = nil
	c.release()
	if c.client {
		_ = c.nc.Close()
	}
	if orderly || c.err == clean {
		return nil
	}
	return c.err
}

// lastWords is the time for GOAWAY when a connection ends in discord.
const lastWords = 2 * time.Second

// clean is how a connection ends that the peer closed when no stream was open.
var clean = refusal(reason.ClientClosed, "", "")

// fail ends all streams with why. Called with mu held; the first reason stays.
func (c *Conn) fail(why *reason.Refusal) {
	if c.err != nil {
		return
	}
	c.err = why
	c.meet()
	for _, s := range c.streams {
		c.end(s, why)
	}
	c.room.Broadcast()
	_ = c.nc.SetReadDeadline(past)
}

// past is a deadline that has passed for certain.
var past = time.Unix(1, 0)

// GoAway ends the connection gracefully (RFC 9113 section 6.8): the peer is told to open no more streams, those that
// are open finish, then Serve returns. A second call no longer waits for the peer to have heard the first.
func (c *Conn) GoAway() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.goingAway == leaving {
		return
	}
	if c.goingAway == staying && !c.client {
		// What the peer sent before it reads this is still served: its answer to the ping comes after.
		c.goingAway = announced
		c.goAway(maxStreamID, http2.ErrCodeNo)
		c.out = append(c.frame(http2.FramePing, 0, 0, 8), goAwayPing...)
	} else {
		c.leave()
	}
	c.kick()
}

const goAwayPing = "farewell"

// leave says which stream is the last, and ends the connection when none is left.
func (c *Conn) leave() {
	c.goingAway = leaving
	c.goAway(c.served, http2.ErrCodeNo)
	c.left()
}

// left ends a connection that has nothing more to do. The last frames go out in Serve.
func (c *Conn) left() {
	if c.live == 0 && c.err == nil && !c.ended && (c.goingAway == leaving || c.client && c.peerGone) {
		c.ended = true
		_ = c.nc.SetReadDeadline(past)
	}
}

// goAway appends GOAWAY.
func (c *Conn) goAway(last uint32, code http2.ErrCode) {
	c.out = appendUint32(appendUint32(c.frame(http2.FrameGoAway, 0, 0, 8), last), uint32(code))
}

// Abort ends every stream and the connection at once.
func (c *Conn) Abort() { c.AbortFor(reason.ShutdownForced) }

// AbortFor is Abort with the reason that Serve and the streams return.
func (c *Conn) AbortFor(why reason.Reason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail(refusal(why, "", ""))
	_ = c.nc.SetDeadline(past)
}

// Ready is closed when the peer's settings have come, or the connection has ended. Until then Room is 1 at most.
func (c *Conn) Ready() <-chan struct{} { return c.met }

// meet closes what Ready returns. Called with mu held.
func (c *Conn) meet() {
	if !c.hasMet {
		c.hasMet = true
		close(c.met)
	}
}

// Streams is the number of streams open now, handlers that still run for a stream that was reset included.
func (c *Conn) Streams() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.live
}

// LastActivity is when a frame that carries header fields or data last arrived or left, in Unix milliseconds. Pings,
// settings and other frames about the connection itself are no activity (F06).
func (c *Conn) LastActivity() int64 { return c.lastActivity.Load() }

// WritingSince is when the write to the connection that is under way began, in Unix milliseconds, or 0 when there is
// none. A peer that reads nothing is found by it (F02): Abort ends such a connection.
func (c *Conn) WritingSince() int64 { return c.writingSince.Load() }

// HeadSince is when a field section began to come of which the rest has not arrived yet, in Unix milliseconds, or 0 when
// there is none. All streams of the connection wait for it (F02).
func (c *Conn) HeadSince() int64 { return c.headSince.Load() }

// PeerExtendedConnect reports whether the server takes extended CONNECT (RFC 8441). It is false until its settings came.
func (c *Conn) PeerExtendedConnect() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peer.connect
}

// worker is a goroutine that runs handlers, one after the other, so that its stack is grown once.
type worker struct {
	wake sync.Cond // L is the connection's mu
	next *Stream
	quit bool
	used bool // since the last Tidy
}

// dispatch runs the handler for s, now or when one of those that run has ended. Called with mu held.
func (c *Conn) dispatch(s *Stream) {
	if c.running >= int(c.settings.Streams) {
		c.queue = append(c.queue, s)
		return
	}
	c.running++
	s.dispatched = true
	if n := len(c.idle); n > 0 {
		w := c.idle[n-1]
		c.idle = c.idle[:n-1]
		w.next = s
		w.wake.Signal()
		return
	}
	go c.work(s)
}

func (c *Conn) work(s *Stream) {
	w := &worker{used: true}
	w.wake.L = &c.mu
	for s != nil {
		s = c.after(w, s, c.run(s))
	}
}

// after takes back a stream whose handler has returned, and waits for the next one; nil says that there is none.
func (c *Conn) after(w *worker, s *Stream, panicked bool) (next *Stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.caught()
	c.finished(s, panicked)
	c.running--
	if len(c.queue) > 0 {
		next = c.queue[0]
		c.queue = slices.Delete(c.queue, 0, 1)
		next.dispatched = true
		c.running++
		return next
	}
	if c.err != nil || c.ended {
		c.parked.Broadcast()
		return nil
	}
	w.next, w.used = nil, true
	c.idle = append(c.idle, w)
	for w.next == nil && !w.quit {
		w.wake.Wait()
	}
	return w.next
}

// run calls the handler; a panic in it ends this stream only (F16).
func (c *Conn) run(s *Stream) (panicked bool) {
	defer func() {
		if v := recover(); v != nil {
			panicked = true
			c.panicked(v)
		}
	}()
	c.handler(s)
	return false
}

// caught, deferred with mu held, has a panic in the connection's own work end the connection and nothing else (F16).
func (c *Conn) caught() {
	v := recover()
	if v == nil {
		return
	}
	c.panicked(v)
	defer func() { _ = recover() }() // what has panicked may do so again
	c.writingSince.Store(0)
	c.room.Broadcast()
	c.parked.Broadcast()
	c.fail(refusal(reason.Internal, "", "a panic in the connection"))
}

// panicked tells of a panic. One in whoever is told goes nowhere.
func (c *Conn) panicked(v any) {
	defer func() { _ = recover() }()
	c.settings.Panicked(v, debug.Stack())
}

// finished takes back a stream whose handler has returned. After a panic in it a goroutine of its own may still hold the
// stream, whose storage then serves no other. Called with mu held.
func (c *Conn) finished(s *Stream, panicked bool) {
	defer c.caught()
	c.live-- // first, so that it is right whatever panics
	switch {
	case s.closed:
	case !s.localEnd:
		c.reset(s, http2.ErrCodeInternal, refusal(reason.Internal, "", ""))
	default: // the response is complete, so the rest of the request is of no use (RFC 9113 section 8.1)
		c.reset(s, http2.ErrCodeNo, refusal(reason.Completed, "", ""))
	}
	if panicked {
		s.readDeadline.clear()
		s.writeDeadline.clear()
	} else {
		s.free()
	}
	c.left()
	c.lead()
}

// Tidy ends worker goroutines that had nothing to do since the last call. The sweep calls it now and then.
func (c *Conn) Tidy() {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := c.idle[:0]
	for _, w := range c.idle {
		if w.used {
			w.used = false
			kept = append(kept, w)
			continue
		}
		w.quit = true
		w.wake.Signal()
	}
	clear(c.idle[len(kept):])
	c.idle = kept
}

// recent remembers the streams that were reset last.
type recent struct {
	ids []uint32
	at  int
}

// How many are remembered: on a client more, for all that share the connection may end their streams at once.
const (
	recentServer = 128
	recentClient = 2048
)

func (c *Conn) remember(id uint32) {
	if c.ours == nil {
		c.ours = new(recent)
	}
	most := recentServer
	if c.client {
		most = recentClient
	}
	if len(c.ours.ids) < most {
		c.ours.ids = append(c.ours.ids, id)
		return
	}
	c.ours.ids[c.ours.at] = id
	c.ours.at = (c.ours.at + 1) % most
}

func (c *Conn) remembers(id uint32) bool { return c.ours != nil && slices.Contains(c.ours.ids, id) }

// reset ends s at once and tells the peer. Called with mu held.
func (c *Conn) reset(s *Stream, code http2.ErrCode, why *reason.Refusal) {
	if !s.closed && s.id != 0 && c.err == nil {
		c.rst(s.id, code)
		c.expectLate(s)
	}
	c.end(s, why)
}

// rst appends RST_STREAM.
func (c *Conn) rst(id uint32, code http2.ErrCode) {
	c.out = appendUint32(c.frame(http2.FrameRSTStream, 0, id, 4), uint32(code))
	c.remember(id)
}

// end ends s at once in both directions. Called with mu held.
func (c *Conn) end(s *Stream, why *reason.Refusal) {
	c.close(s)
	s.gone(why)
	if !c.client && !s.dispatched { // nobody has seen it
		if c.held == s {
			c.held = nil
		}
		if i := slices.Index(c.queue, s); i >= 0 {
			c.queue = slices.Delete(c.queue, i, i+1)
		}
		c.live--
		s.free()
		c.left()
	}
}

// close takes a stream that is over for both sides from those of the connection. Called with mu held.
func (c *Conn) close(s *Stream) {
	s.closed = true
	if s.id != 0 && c.streams[s.id] == s {
		delete(c.streams, s.id)
	}
	c.ready.remove(s)
}
