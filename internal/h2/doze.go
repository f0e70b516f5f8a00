package h2

import (
	"errors"
	"os"
	"time"
)

// errDozed ends a wait for the next frame, of which nothing has come yet, so that doze can go on with it.
var errDozed = errors.New("h2: nothing came for a while")

// Doze wakes a Serve that waits and has no streams, so that it waits on with less in its hands: without what was
// remembered of fields sent lately, and by Settings.Await. It does so once until something comes, and one that has part of
// a frame waits on as it did. Without Settings.Await it does nothing.
func (c *Conn) Doze() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.settings.Await == nil || c.dozing || c.live > 0 || c.err != nil || c.ended {
		return
	}
	c.dozing = true
	_ = c.nc.SetReadDeadline(past)
}

// woken reports whether a read failed with err because of Doze and nothing else, and lets reads go on then.
func (c *Conn) woken(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.dozing || c.err != nil || c.ended { // the others have ended reads for good
		return false
	}
	_ = c.nc.SetReadDeadline(time.Time{})
	return true
}

// doze waits until there is something to read. Neither it nor next is to be compiled into what calls them: a goroutine
// that waits here is to need a stack of 4 KB and not more.
//
//go:noinline
func (c *Conn) doze() {
	c.src.release()
	c.mu.Lock()
	c.names.sets = nil
	c.mu.Unlock()
	_ = c.settings.Await() // the read that follows meets the same
	c.awake()
}

// awake lets Doze be of use again.
func (c *Conn) awake() {
	c.mu.Lock()
	c.dozing = false
	c.mu.Unlock()
}
