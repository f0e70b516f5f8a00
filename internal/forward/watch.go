package forward

import (
	"sync"
	"sync/atomic"
	"time"

	"countersign/internal/reason"
	"countersign/internal/socket"
)

// Phase is what a connection is waiting for.
type Phase uint8

// The phases. Each has its own time limit and its own reason when that runs out.
const (
	Free          Phase = iota // no deadline
	Handshaking                // TLS
	Idle                       // the next request, or bytes of a passed-through connection
	ReadingHead                // the rest of a request head
	ReadingBody                // more of the request body
	WritingClient              // the client to take bytes
	Connecting                 // a target to answer our connection; has its own deadline
	AwaitTarget                // the target's response head
	ReadingTarget              // more of the target's response
	WritingTarget              // the target to take bytes
	Exchanging                 // the end of the whole exchange
	Tunnelling                 // bytes from either side of a tunnel
	Draining                   // the rest of what a client sends while its connection ends
)

// Reason is what it means when the phase's time runs out.
func (p Phase) Reason() reason.Reason {
	switch p {
	case Handshaking:
		return reason.HandshakeTimeout
	case Idle, Tunnelling, Draining:
		return reason.IdleClosed
	case ReadingHead:
		return reason.HeaderTimeout
	case ReadingBody:
		return reason.BodyTimeout
	case WritingClient:
		return reason.WriteTimeout
	case AwaitTarget, ReadingTarget, WritingTarget, Connecting, Exchanging:
		return reason.UpstreamTimeout
	}
	return reason.Internal
}

// Clock is a coarse clock that one goroutine moves on, so that setting a deadline costs no system call. It tells two times:
// that of day, and one by which waits are measured. The second moves by a Tick at most however late the goroutine comes, for
// what was set meanwhile was set by a reading that is as old: on a machine that stood still nobody's time has run out.
type Clock struct {
	day, waits atomic.Int64 // in Unix milliseconds; waits lags behind by what the machine stood still
	last       time.Time    // up to when waits has counted; of the goroutine that calls Set
}

// Tick is the most that waits move on at a time, and what a reading of the clock is old at most in their terms. Set must be
// called more often. Deadlines are up to two ticks late, and never early.
const Tick = 250 * time.Millisecond

// Set moves the clock to now.
func (c *Clock) Set(now time.Time) {
	c.day.Store(now.UnixMilli())
	step := now.Sub(c.last)
	switch {
	case c.last.IsZero():
		c.waits.Store(now.UnixMilli())
	case step <= 0:
	case step > Tick:
		c.waits.Add(Tick.Milliseconds())
	default:
		step = step.Truncate(time.Millisecond)
		c.waits.Add(step.Milliseconds())
		c.last = c.last.Add(step) // the rest counts the next time
		return
	}
	c.last = now
}

// Now is the time of day.
func (c *Clock) Now() time.Time { return time.UnixMilli(c.day.Load()) }

// Waited is the time that waits are measured by.
func (c *Clock) Waited() time.Time { return time.UnixMilli(c.waits.Load()) }

// Wait is one thing a goroutine waits for: a deadline and a phase in one word. It is set on progress with one atomic
// operation; the sweep compares it with the clock. Once expired it stays so: the wait's owner and the sweep cannot
// disagree about which of them was first.
type Wait struct{ word atomic.Int64 } // deadline in ms << 8 | phase, with expired in bit 7 and dozing in bit 6

const (
	expired = 1 << 7
	dozing  = 1 << 6
)

func phaseOf(word int64) Phase { return Phase(word & (dozing - 1)) }

// wordOf is a wait of at most d in phase p that begins now; without a deadline for Free and for 0.
func wordOf(clock *Clock, p Phase, d time.Duration) int64 {
	if p == Free || d <= 0 {
		return int64(p)
	}
	return int64(p) | (clock.waits.Load()+(d+Tick).Milliseconds())<<8
}

// Set begins a wait of at most d in phase p, or ends one with Free. It does nothing once the wait has expired.
func (w *Wait) Set(clock *Clock, p Phase, d time.Duration) {
	word := wordOf(clock, p, d)
	for {
		old := w.word.Load()
		if old&expired != 0 || w.word.CompareAndSwap(old, word) {
			return
		}
	}
}

// Phase returns what is waited for.
func (w *Wait) Phase() Phase { return phaseOf(w.word.Load()) }

// Expired returns the reason the wait's time ran out, if it did.
func (w *Wait) Expired() (reason.Reason, bool) {
	word := w.word.Load()
	if word&expired == 0 {
		return reason.Unset, false
	}
	return phaseOf(word).Reason(), true
}

// IdleLeft returns how long the wait may still last at now, as the clock's Waited says, if it is one for the next request.
func (w *Wait) IdleLeft(now time.Time) (time.Duration, bool) {
	word := w.word.Load()
	if phaseOf(word) != Idle || word&expired != 0 || word>>8 == 0 {
		return 0, false
	}
	return time.Duration(word>>8-now.UnixMilli()) * time.Millisecond, true
}

// finish marks the wait as expired if it is in phase p, as if its time were up.
func (w *Wait) finish(p Phase) bool {
	old := w.word.Load()
	return old&expired == 0 && phaseOf(old) == p && w.word.CompareAndSwap(old, old|expired)
}

// due reports whether the wait's time may be up.
func (w *Wait) due(now int64) bool {
	word := w.word.Load()
	return word&expired == 0 && word>>8 != 0 && word>>8 <= now
}

// expire marks the wait if its deadline has passed, and returns its phase.
func (w *Wait) expire(now int64) (Phase, bool) {
	for {
		old := w.word.Load()
		if old&expired != 0 || old>>8 == 0 || old>>8 > now {
			return Free, false
		}
		if w.word.CompareAndSwap(old, old|expired) {
			return phaseOf(old), true
		}
	}
}

// Line is what a wait can be ended by: a connection, or one stream of it.
type Line interface {
	SetDeadline(time.Time) error
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
	// Peek says what a read would find.
	Peek() socket.State
	// MayBeAlert reports whether an end that Peek found can have been announced in TLS.
	MayBeAlert() bool
}

// Watch is what the sweep sees of a client connection, or of a stream: its waits, and the lines by which it can end them.
type Watch struct {
	Clock  *Clock
	Client Line
	// Main is the connection's own wait, Pump that of the goroutine that sends a streaming request body, Whole that for the
	// end of an exchange whose time is limited.
	Main, Pump, Whole Wait

	gone    atomic.Bool // the client went away while it waited
	shed    atomic.Bool // ended for want of memory
	forced  atomic.Bool // ended with the process
	mu      sync.Mutex
	marred  bool // target was given a deadline that has passed: it is of no use to anybody else
	target  deadliner
	stopped func() // ends a wait that is not on a connection
}

type deadliner interface{ SetDeadline(time.Time) error }

// Begin makes w that of another client. Nobody else may be using it.
func (w *Watch) Begin(client Line) {
	w.Client = client
	w.Main.word.Store(0)
	w.Pump.word.Store(0)
	w.Whole.word.Store(0)
	w.gone.Store(false)
	w.target, w.marred = nil, false
}

// past is a deadline that has passed for certain.
var past = time.Unix(1, 0)

// setTarget tells the sweep which connection to a target is in use, or nil. It reports whether the one before is unharmed:
// the sweep, or whoever else ends waits, has not touched it and will not any more.
func (w *Watch) setTarget(c deadliner) (unharmed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	unharmed = !w.marred
	w.target, w.marred = c, false
	return unharmed
}

// Expired returns the reason the connection's time ran out, if it did.
func (w *Watch) Expired() (reason.Reason, bool) {
	if why, ok := w.Main.Expired(); ok {
		return why, ok
	}
	return w.Whole.Expired()
}

// again makes Main good for another try, after its time for a target ran out and before anything was said to the client.
func (w *Watch) again() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Main.word.Store(0)
	_ = w.Client.SetWriteDeadline(time.Time{})
}

// OnStop has f called when the exchange is to end while it has no target; nil for nothing.
func (w *Watch) OnStop(f func()) {
	w.mu.Lock()
	w.stopped = f
	w.mu.Unlock()
}

// endTarget makes every call on the connection to the target fail.
func (w *Watch) endTarget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopTarget()
}

// stopTarget is endTarget with the lock held.
func (w *Watch) stopTarget() {
	if w.stopped != nil {
		w.stopped()
	}
	if w.target != nil {
		w.marred = true
		_ = w.target.SetDeadline(past)
	}
}

// lastWords is the time for what is still written to a client whose time ran out: no later wait of its connection has a
// deadline of its own (see Wait), and even a read can block in a write, where TLS 1.3 answers a KeyUpdate.
const lastWords = 5 * time.Second

// endClient makes reads from the client fail, and leaves a moment for writes.
func (w *Watch) endClient() {
	_ = w.Client.SetReadDeadline(past)
	_ = w.Client.SetWriteDeadline(time.Now().Add(lastWords))
}

// Gone reports that the client went away while it waited for the target.
func (w *Watch) Gone() bool { return w.gone.Load() }

// Sweep ends the waits whose time is up at now, as the clock's Waited says, and notices clients that went away while they
// wait for a target. Records says that the client's bytes are TLS records.
func (w *Watch) Sweep(now time.Time, records bool) {
	ms := now.UnixMilli()
	for _, wait := range [...]*Wait{&w.Main, &w.Pump, &w.Whole} {
		if wait.due(ms) {
			w.end(wait, ms)
		}
	}
	if p := w.Main.Phase(); (p == AwaitTarget || p == ReadingTarget || p == Connecting) && w.Pump.Phase() == Free {
		switch w.Client.Peek() {
		case socket.Broken:
			w.Abandon()
		case socket.Ended:
			// A client that ends its side after its request still wants the answer (RFC 9112 section 9.6). In TLS it says
			// so with close_notify; an end without it is a client that was killed.
			if records && !w.Client.MayBeAlert() {
				w.Abandon()
			}
		}
	}
}

// end ends a wait whose time is up. With the lock held, so that it is the wait's own target that is ended.
func (w *Watch) end(wait *Wait, ms int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p, ok := wait.expire(ms); ok {
		w.stop(p)
	}
}

// Abandon ends an exchange that nobody waits for any more.
func (w *Watch) Abandon() {
	w.gone.Store(true)
	w.endTarget()
}

// interrupt makes the blocked call of phase p fail.
func (w *Watch) interrupt(p Phase) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stop(p)
}

// stop is interrupt with the lock held.
func (w *Watch) stop(p Phase) {
	switch p {
	case AwaitTarget, ReadingTarget, WritingTarget, Exchanging:
		w.stopTarget()
		_ = w.Client.SetWriteDeadline(time.Now().Add(lastWords))
	case Tunnelling:
		_ = w.Client.SetDeadline(past)
		w.stopTarget()
	case Idle, ReadingHead, ReadingBody:
		w.endClient() // an answer can still be written
	default:
		_ = w.Client.SetDeadline(past)
	}
}

// Cut ends whatever is under way on the connection, on both of its sides. What was sent so far is all there will be.
func (w *Watch) Cut() {
	w.gone.Store(true)
	w.endTarget()
	_ = w.Client.SetDeadline(past)
}

// Force is Cut at the end of a drain. A tunnel ends with reason.ShutdownForced then, and not with what it looks like from
// its ends.
func (w *Watch) Force() {
	w.forced.Store(true)
	w.Cut()
}

// Forced reports whether Force was called.
func (w *Watch) Forced() bool { return w.forced.Load() }

// EndIdle ends a connection that waits for its next request, for want of memory. One that has begun to read it is left
// alone.
func (w *Watch) EndIdle() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.Main.finish(Idle) {
		w.shed.Store(true)
		w.endClient()
	}
}

// Doze wakes whoever waits for a connection's next request, once, so that it goes on waiting with less in its hands: see
// Dozing. One that has begun to read the request, or whose time is up, is left alone.
func (w *Watch) Doze() {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := w.Main.word.Load()
	if old&(expired|dozing) == 0 && phaseOf(old) == Idle && w.Main.word.CompareAndSwap(old, old|dozing) {
		_ = w.Client.SetReadDeadline(past)
	}
}

// Dozing reports whether Doze came since the wait for this request began, and undoes what it did to reads. The time for the
// request goes on. To be called by whoever waited, whether or not it met anything.
func (w *Watch) Dozing() bool {
	if w.Main.word.Load()&dozing == 0 {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.Main.word.Load()&expired == 0 { // else the sweep has ended reads for good
		_ = w.Client.SetReadDeadline(time.Time{})
	}
	return true
}

// Begun begins the wait p of at most d in place of that for a request, of which something is there, and undoes what Doze
// did to reads until then. Doze finds another phase from here on. The lock is taken only where Doze was first.
func (w *Watch) Begun(p Phase, d time.Duration) {
	word := w.Main.word.Load()
	if word&(dozing|expired) == 0 && w.Main.word.CompareAndSwap(word, wordOf(w.Clock, p, d)) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	word = w.Main.word.Load() // of dozing, nobody else changes it without the lock
	w.Main.Set(w.Clock, p, d)
	if word&dozing != 0 && word&expired == 0 {
		_ = w.Client.SetReadDeadline(time.Time{})
	}
}

// Shed reports whether EndIdle ended the connection.
func (w *Watch) Shed() bool { return w.shed.Load() }

// Interrupt ends a connection's wait for its next request.
func (w *Watch) Interrupt() { w.endClient() }
