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
	case AwaitTarget, ReadingTarget, WritingTarget, Connecting:
		return reason.UpstreamTimeout
	}
	return reason.Internal
}

// Clock is a coarse clock that one goroutine moves on, so that setting a deadline costs no system call.
type Clock struct{ ms atomic.Int64 }

// Tick is how often the clock moves at least. Deadlines are up to two ticks late, and never early.
const Tick = 250 * time.Millisecond

// Set moves the clock to now.
func (c *Clock) Set(now time.Time) { c.ms.Store(now.UnixMilli()) }

// Now is the clock's time.
func (c *Clock) Now() time.Time { return time.UnixMilli(c.ms.Load()) }

// Wait is one thing a goroutine waits for: a deadline and a phase in one word. It is set on progress with one atomic
// operation; the sweep compares it with the clock. Once expired it stays so: the wait's owner and the sweep cannot
// disagree about which of them was first.
type Wait struct{ word atomic.Int64 } // deadline in ms << 8 | phase; expired is set in bit 7

const expired = 1 << 7

// Set begins a wait of at most d in phase p, or ends one with Free. It does nothing once the wait has expired.
func (w *Wait) Set(clock *Clock, p Phase, d time.Duration) {
	word := int64(p)
	if p != Free && d > 0 {
		word |= (clock.ms.Load() + (d + Tick).Milliseconds()) << 8
	}
	for {
		old := w.word.Load()
		if old&expired != 0 || w.word.CompareAndSwap(old, word) {
			return
		}
	}
}

// Phase returns what is waited for.
func (w *Wait) Phase() Phase { return Phase(w.word.Load() & (expired - 1)) }

// Expired returns the reason the wait's time ran out, if it did.
func (w *Wait) Expired() (reason.Reason, bool) {
	word := w.word.Load()
	if word&expired == 0 {
		return reason.Unset, false
	}
	return Phase(word & (expired - 1)).Reason(), true
}

// expire marks the wait if its deadline has passed, and returns its phase.
func (w *Wait) expire(now int64) (Phase, bool) {
	for {
		old := w.word.Load()
		if old&expired != 0 || old>>8 == 0 || old>>8 > now {
			return Free, false
		}
		if w.word.CompareAndSwap(old, old|expired) {
			return Phase(old & (expired - 1)), true
		}
	}
}

// Watch is what the sweep sees of a client connection: its waits, and the sockets by which it can end them.
type Watch struct {
	Clock  *Clock
	Client *socket.Conn
	// Main is the connection's own wait, Pump that of the goroutine that sends a streaming request body.
	Main, Pump Wait

	gone   atomic.Bool // the client went away while it waited
	mu     sync.Mutex
	target *socket.Conn
	marred bool // target was given a deadline that has passed: it is of no use to anybody else
}

// past is a deadline that has passed for certain.
var past = time.Unix(1, 0)

// setTarget tells the sweep which connection to a target is in use, or nil. It reports whether the one before is unharmed:
// the sweep, or whoever else ends waits, has not touched it and will not any more.
func (w *Watch) setTarget(c *socket.Conn) (unharmed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	unharmed = !w.marred
	w.target, w.marred = c, false
	return unharmed
}

// endTarget makes every call on the connection to the target fail.
func (w *Watch) endTarget() {
	w.mu.Lock()
	defer w.mu.Unlock()
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

// Sweep ends the waits whose time is up and notices clients that went away while they wait for a target. Records says
// that the client's bytes are TLS records.
func (w *Watch) Sweep(now time.Time, records bool) {
	ms := now.UnixMilli()
	for _, wait := range [...]*Wait{&w.Main, &w.Pump} {
		if p, ok := wait.expire(ms); ok {
			w.interrupt(p)
		}
	}
	if p := w.Main.Phase(); (p == AwaitTarget || p == ReadingTarget) && w.Pump.Phase() == Free {
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

// Abandon ends an exchange that nobody waits for any more.
func (w *Watch) Abandon() {
	w.gone.Store(true)
	w.endTarget()
}

// interrupt makes the blocked call of phase p fail.
func (w *Watch) interrupt(p Phase) {
	switch p {
	case AwaitTarget, ReadingTarget, WritingTarget:
		w.endTarget()
		_ = w.Client.SetWriteDeadline(time.Now().Add(lastWords))
	case Tunnelling:
		_ = w.Client.SetDeadline(past)
		w.endTarget()
	case Idle, ReadingHead, ReadingBody:
		w.endClient() // an answer can still be written
	default:
		_ = w.Client.SetDeadline(past)
	}
}

// Interrupt ends a connection's wait for its next request.
func (w *Watch) Interrupt() { w.endClient() }
