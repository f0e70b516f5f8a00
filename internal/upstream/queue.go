package upstream

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"countersign/internal/reason"
)

// counts are what happened to a pool since it was made.
type counts struct{ full, timeouts, open, ejections, retries, refused atomic.Uint64 }

// queue is who waits for a limit to have room, first come, first served. The first in line is woken when something may
// have changed, and stays first until it has what it wants or gives up.
type queue struct {
	length atomic.Int32
	mu     sync.Mutex
	line   []chan struct{} // with room for one
}

// wake lets the first in line try again.
func (q *queue) wake() {
	if q.length.Load() == 0 {
		return
	}
	q.mu.Lock()
	if len(q.line) > 0 {
		select {
		case q.line[0] <- struct{}{}:
		default: // woken already
		}
	}
	q.mu.Unlock()
}

// wake lets those try again who wait for a target of the pool, also those who began to in a pool that this one replaced.
func (p *Pool) wake() {
	for ; p != nil; p = p.before.Load() {
		if p.queue != nil {
			p.queue.wake()
		}
		if b := p.before.Load(); b != nil && b.retired.Load() && (b.queue == nil || !b.queue.waiting()) {
			p.before.CompareAndSwap(b, b.before.Load())
		}
	}
}

func (q *queue) waiting() bool { return q.length.Load() > 0 }

// join puts somebody behind the last, if fewer than limit wait.
func (q *queue) join(limit int) chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.line) >= limit {
		return nil
	}
	w := make(chan struct{}, 1)
	q.line = append(q.line, w)
	q.length.Store(int32(len(q.line)))
	return w
}

// leave takes somebody out of the line, and lets the next one try: there may be room for more than one.
func (q *queue) leave(w chan struct{}) {
	q.mu.Lock()
	if i := slices.Index(q.line, w); i >= 0 {
		q.line = slices.Delete(q.line, i, i+1)
	}
	q.length.Store(int32(len(q.line)))
	q.mu.Unlock()
	q.wake()
}

// enter counts an exchange as begun, unless there are too many.
func (p *Pool) enter() bool {
	if p.MaxRequests == 0 {
		return true
	}
	for {
		n := p.active.Load()
		if int(n) >= p.MaxRequests {
			return false
		}
		if p.active.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// leave is the end of what enter began.
func (p *Pool) leave() {
	if p.MaxRequests > 0 {
		p.active.Add(-1)
	}
	p.queue.wake()
}

// admitted is try within max_requests. When it fails it wakes nobody: that is for the caller, who may be first in line.
func (p *Pool) admitted(ctx context.Context, ch *Choice) (*Conn, bool, *reason.Refusal) {
	if !p.enter() {
		return nil, true, &reason.Refusal{Reason: reason.UpstreamCircuitOpen}
	}
	c, full, refusal := p.try(ctx, ch)
	if c == nil && p.MaxRequests > 0 {
		p.active.Add(-1)
	}
	return c, full, refusal
}

// queued is try within all limits, with waiting.
func (p *Pool) queued(ctx context.Context, ch *Choice) (*Conn, error) {
	q := p.queue
	why := reason.UpstreamBusy
	if p.MaxRequests > 0 && int(p.active.Load()) >= p.MaxRequests {
		why = reason.UpstreamCircuitOpen
	}
	if !q.waiting() { // nobody is overtaken
		c, full, refusal := p.admitted(ctx, ch)
		if c != nil {
			return c, nil
		}
		if !full {
			q.wake() // what was counted for a moment may have been in somebody's way
			return nil, refusal
		}
		why = refusal.Reason
	}
	w := q.join(p.MaxPending)
	if w == nil {
		if p.MaxPending > 0 {
			p.counts.full.Add(1)
		}
		if why == reason.UpstreamCircuitOpen {
			p.counts.open.Add(1)
		}
		q.wake()
		return nil, &reason.Refusal{Reason: why}
	}
	defer q.leave(w)
	q.wake() // there may be room since the try above
	timer := time.NewTimer(p.QueueTimeout)
	defer timer.Stop()
	for {
		select {
		case <-w:
			c, full, refusal := p.admitted(ctx, ch)
			if c != nil {
				return c, nil
			}
			if !full {
				return nil, refusal
			}
		case <-timer.C:
			p.counts.timeouts.Add(1)
			return nil, &reason.Refusal{Reason: reason.UpstreamQueueTimeout}
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				p.counts.timeouts.Add(1)
				return nil, &reason.Refusal{Reason: reason.UpstreamQueueTimeout, Cause: ctx.Err()}
			}
			return nil, &reason.Refusal{Reason: reason.ClientAborted, Cause: ctx.Err()}
		}
	}
}

// Retries are how often a request may be tried again.
type Retries struct {
	// Attempts is how many tries may follow the first.
	Attempts int
	// PerTry is the time one try may take until the response head; 0 means timeouts.response.
	PerTry time.Duration
	// Budget is the most retries under way, in percent of all exchanges under way. minRetries are allowed in any case.
	Budget int
}

const minRetries = 3

// RetryAfter is what refusals with status 503 tell clients to wait, in seconds.
const RetryAfter = 1

// BeginRetry reports whether the pool's budget allows one more retry: when targets fail, retries must not become most of
// their load. If it does, call EndRetry when the retry is over.
func (p *Pool) BeginRetry() bool {
	if p.Retries.Attempts == 0 {
		return false
	}
	n := int(p.retrying.Add(1))
	if n <= minRetries || n*100 <= p.Retries.Budget*p.busy() {
		p.counts.retries.Add(1)
		return true
	}
	p.retrying.Add(-1)
	p.counts.refused.Add(1)
	return false
}

// EndRetry is the end of what BeginRetry allowed.
func (p *Pool) EndRetry() { p.retrying.Add(-1) }
