package record

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// The bounds of a relay.
const (
	relayPatience = 50 * time.Millisecond // that a line waits for its reader
	relayLines    = 256
	relayLine     = 64 << 10 // bytes; a stack is longer than any other line
)

// Relay is a writer for the operator's log whose callers wait for the reader behind it as long as it reads, and not when it
// has stopped (H13): then lines are kept, a bounded number of them, and after that dropped and counted. Its methods may be
// called from any goroutine.
type Relay struct {
	w       io.Writer
	book    *Book
	lines   chan relayed
	stalled atomic.Bool
	missed  atomic.Int64
	ended   chan struct{}
	end     sync.Once
	done    chan struct{}
}

type relayed struct {
	line    []byte
	written chan struct{}
}

// Relay makes a relay before w, whose lost lines count as the output "operator". Close ends it.
func (b *Book) Relay(w io.Writer) *Relay {
	r := &Relay{w: w, book: b, lines: make(chan relayed, relayLines), ended: make(chan struct{}), done: make(chan struct{})}
	b.dropped.WithLabelValues("operator")
	go r.run()
	return r
}

// Write never fails: a log that cannot be written is no reason to do anything else than before.
func (r *Relay) Write(p []byte) (int, error) {
	line := relayed{append([]byte(nil), p[:min(len(p), relayLine)]...), make(chan struct{})}
	select {
	case r.lines <- line:
	default:
		r.missed.Add(1)
		r.book.dropped.WithLabelValues("operator").Inc()
		return len(p), nil
	}
	if r.stalled.Load() {
		return len(p), nil
	}
	patience := time.NewTimer(relayPatience)
	defer patience.Stop()
	select {
	case <-line.written:
	case <-r.done:
	case <-patience.C:
		r.stalled.Store(true)
	}
	return len(p), nil
}

func (r *Relay) run() {
	defer close(r.done)
	for {
		select {
		case l := <-r.lines:
			r.pass(l)
		case <-r.ended:
			for {
				select {
				case l := <-r.lines:
					r.pass(l)
				default:
					return
				}
			}
		}
	}
}

func (r *Relay) pass(l relayed) {
	defer func() {
		if recover() != nil {
			r.book.Panicked()
		}
		close(l.written)
	}()
	if n := r.missed.Swap(0); n > 0 {
		fmt.Fprintf(r.w, "time=%s level=WARN msg=\"lines of this log are missing about here: its reader had stopped\" lines=%d\n", time.Now().Format(time.RFC3339Nano), n)
	}
	_, _ = r.w.Write(l.line)
	if len(r.lines) == 0 {
		r.stalled.Store(false)
	}
}

// Close writes what is kept, waiting for a second at most. Lines after that may be lost.
func (r *Relay) Close() {
	r.end.Do(func() { close(r.ended) })
	t := time.NewTimer(lastWrites)
	defer t.Stop()
	select {
	case <-r.done:
	case <-t.C:
	}
}
