package forward

import (
	"slices"
	"sync"
	"time"

	"countersign/internal/upstream"
)

// Own are connections to targets that only the client that has used them may use again: they carried a request body, and
// a target that takes a body for a request of its own would answer that one to whoever comes next (E32). The requests of
// one client connection share it, so that many streams do not keep many. The zero value is ready.
type Own struct {
	mu    sync.Mutex
	conns []kept // newest last
}

type kept struct {
	client uint64 // Exchange.whose
	conn   *upstream.Conn
}

// Bounds of what is kept for a client that asks nothing.
const (
	keepOwn = 5 * time.Second
	maxOwn  = 4
)

// take returns a connection of the client that suits choice, nil if there is none.
func (o *Own) take(client uint64, pool *upstream.Pool, choice upstream.Choice) *upstream.Conn {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := len(o.conns) - 1; i >= 0; i-- {
		if o.conns[i].client == client && o.conns[i].conn.WakeFor(pool, choice) {
			c := o.conns[i].conn
			o.conns = slices.Delete(o.conns, i, i+1)
			return c
		}
	}
	return nil
}

// keep takes a connection in that is resting, in place of the oldest if there are too many.
func (o *Own) keep(client uint64, c *upstream.Conn) {
	o.mu.Lock()
	var old *upstream.Conn
	if len(o.conns) == maxOwn {
		old = o.conns[0].conn
		o.conns = slices.Delete(o.conns, 0, 1)
	}
	o.conns = append(o.conns, kept{client, c})
	o.mu.Unlock()
	if old != nil {
		old.Discard()
	}
}

// Tidy closes those that were not used for a while; all closes them all, at once. It may be called from any goroutine.
func (o *Own) Tidy(all bool, now time.Time) {
	o.mu.Lock()
	var old []*upstream.Conn
	o.conns = slices.DeleteFunc(o.conns, func(k kept) bool {
		over := all || k.conn.RestedFor(keepOwn, now)
		if over {
			old = append(old, k.conn)
		}
		return over
	})
	o.mu.Unlock()
	for _, c := range old {
		c.Discard()
	}
}
