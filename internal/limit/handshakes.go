package limit

import (
	"runtime"
	"sync"
	"time"

	"countersign/internal/reason"
)

// HandshakeSettings bound the handshakes that compute at once.
type HandshakeSettings struct {
	// AtOnce is how many may compute. 0 means DefaultHandshakes.
	AtOnce int
	// Wait is how long one waits for its turn. 0 means DefaultHandshakeWait.
	Wait time.Duration
}

// DefaultHandshakes is one for each processor, at least 2: they can keep all processors busy, and a request on a connection
// that is there already stands behind few of them. With 4 for each processor its p99 under a flood was worse by half, and
// without a bound worse again; see docs/limits.md.
func DefaultHandshakes() int { return max(runtime.GOMAXPROCS(0), 2) }

// DefaultHandshakeWait is shorter than most clients' patience: an answer that comes later is work for nobody.
const DefaultHandshakeWait = 2 * time.Second

// queued is how many may wait for each one that may compute: about a third of a second of work.
const queued = 1024

// Handshakes hands out turns to compute in handshakes, fairly by address: those who wait stand in one line for each
// address, and the lines take turns, so that who comes often waits longer and not everybody else (F04). A turn is held
// while a handshake computes, and not while it waits for its client, so clients that fall silent hold none (F01).
type Handshakes struct {
	mu      sync.Mutex
	atOnce  int
	wait    time.Duration
	running int
	waiting int
	lines   map[Key]*line
	turn    *line // a ring of those lines in which somebody waits; the next one to be served
}

// line is those of one address who wait.
type line struct {
	key         Key
	first, last *waiter
	n           int
	prev, next  *line
}

type waiter struct {
	line       *line // nil once it has left the line
	prev, next *waiter
	told       chan struct{}
	admitted   bool // set before told is closed
}

// NewHandshakes makes a queue without anybody in it.
func NewHandshakes(s HandshakeSettings) *Handshakes {
	h := &Handshakes{lines: make(map[Key]*line)}
	h.Set(s)
	return h
}

// Set changes the settings for those who come from now on.
func (h *Handshakes) Set(s HandshakeSettings) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.atOnce, h.wait = s.AtOnce, s.Wait
	if h.atOnce <= 0 {
		h.atOnce = DefaultHandshakes()
	}
	if h.wait <= 0 {
		h.wait = DefaultHandshakeWait
	}
	for h.running < h.atOnce && h.admit() {
	}
}

// Load is how many handshakes compute and how many wait to, for metrics.
func (h *Handshakes) Load() (running, waiting int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.running, h.waiting
}

// Turn is one connection's place in Handshakes. It is used by the one goroutine that does the handshake.
type Turn struct {
	h       *Handshakes
	key     Key
	running bool
}

// Turn makes a turn for a client that has not begun yet. A nil h lets everybody begin.
func (h *Handshakes) Turn(c *Client) Turn { return Turn{h: h, key: c.Address} }

// Begin waits for the turn to compute, if it is not this one's already. A refusal is reason.HandshakeOverload: too many
// wait, or it has waited too long. Each success wants an End before anything that blocks.
func (t *Turn) Begin() reason.Reason {
	h := t.h
	if h == nil || t.running {
		return reason.Unset
	}
	h.mu.Lock()
	if h.running < h.atOnce && h.waiting == 0 {
		h.running++
		h.mu.Unlock()
		t.running = true
		return reason.Unset
	}
	w, patience := h.join(t.key), h.wait
	h.mu.Unlock()
	if w == nil {
		return reason.HandshakeOverload
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-w.told:
	case <-timer.C:
		h.mu.Lock()
		if w.line != nil {
			h.leave(w)
		}
		h.mu.Unlock()
	}
	// Whoever took it out of the line has set admitted under the lock or before closing told.
	t.running = w.admitted
	if !t.running {
		return reason.HandshakeOverload
	}
	return reason.Unset
}

// End gives the turn to the next one. It does nothing if this one has none, and costs nothing then.
func (t *Turn) End() {
	if !t.running {
		return
	}
	t.running = false
	h := t.h
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.running--; h.running < h.atOnce {
		h.admit()
	}
}

// admit gives the turn to the first of the line that is next. It reports whether there was one.
func (h *Handshakes) admit() bool {
	l := h.turn
	if l == nil {
		return false
	}
	w := l.first
	h.turn = l.next
	h.leave(w)
	w.admitted = true
	h.running++
	close(w.told)
	return true
}

// join puts a new waiter at the end of its address's line. When the queue is full somebody of a longer line has to go: of
// a few lines, whichever comes to hand, the last of the longest. Nil means that this one's is the longest.
func (h *Handshakes) join(k Key) *waiter {
	l := h.lines[k]
	if h.waiting >= queued*h.atOnce {
		long := l
		seen := 0
		for _, other := range h.lines { // in random order
			if long == nil || other.n > long.n {
				long = other
			}
			if seen++; seen == 8 {
				break
			}
		}
		mine := 1
		if l != nil {
			mine = l.n + 1
		}
		if long == nil || long == l || long.n <= mine {
			return nil
		}
		last := long.last
		h.leave(last)
		close(last.told)
	}
	if l == nil {
		l = &line{key: k}
		h.lines[k] = l
		if h.turn == nil {
			l.prev, l.next = l, l
			h.turn = l
		} else { // the last one to be served
			l.prev, l.next = h.turn.prev, h.turn
			l.prev.next, l.next.prev = l, l
		}
	}
	w := &waiter{line: l, prev: l.last, told: make(chan struct{})}
	if l.last == nil {
		l.first = w
	} else {
		l.last.next = w
	}
	l.last = w
	l.n++
	h.waiting++
	return w
}

// leave takes w out of its line, and the line out of the ring when nobody is left in it.
func (h *Handshakes) leave(w *waiter) {
	l := w.line
	w.line = nil
	if w.prev == nil {
		l.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		l.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	l.n--
	h.waiting--
	if l.n > 0 {
		return
	}
	delete(h.lines, l.key)
	if l.next == l {
		h.turn = nil
		return
	}
	if h.turn == l {
		h.turn = l.next
	}
	l.prev.next, l.next.prev = l.next, l.prev
}
