package refresh

import (
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"time"
)

// look is what the watcher's goroutine knows.
type look struct {
	files map[string]*file
	want  map[string]Sum // what is in force
	base  map[string]Sum // what the load that was refused since then saw; nil if none was
	heard int            // the load, of loads, that the two are of
	moved bool           // other files than at the last look

	changed   time.Time // when content was first seen to be as it is
	attempted time.Time // when a reload of exactly this content was asked for
	burst     burst     // events since all was calm
	polled    time.Time
	round     int
	ended     time.Time     // end of the last look
	rest      time.Duration // time to leave between two looks
	slots     int
	told      []Condition // conditions as last logged

	reader
	follower
}

func newLook() look {
	return look{files: make(map[string]*file), reader: newReader(), follower: follower{dirs: make(map[string]identity)}}
}

// run looks at the files when an event, a poll or a caller asks for it, and once more when content may have settled.
func (w *Watcher) run() {
	defer close(w.done)
	defer w.unfollow()
	next := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(time.Until(next))
		select {
		case <-w.stop:
			return
		case <-w.poke:
			w.mu.Lock()
			if w.hurry {
				next = time.Now()
			} else if at := w.ended.Add(w.rest); at.Before(next) {
				next = at
			}
			w.mu.Unlock()
		case <-timer.C:
			next = w.step()
		}
	}
}

// step takes one look and does what it calls for. It returns when to look again, at the latest.
func (w *Watcher) step() (next time.Time) {
	defer func() {
		if p := recover(); p != nil {
			w.c.Log.Error("watching files: bug", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			next = time.Now().Add(w.c.Poll)
		}
	}()
	start := time.Now()
	poll := w.polled.IsZero() || start.Sub(w.polled) >= w.c.Poll
	if poll {
		w.polled = start
		w.round++
	}
	w.mu.Lock()
	w.hurry = false
	w.burst.add(w.seen)
	w.seen = burst{}
	named := w.named
	w.named = make(map[*file]string)
	w.take()
	w.mu.Unlock()

	changed := false
	if poll || w.moved || !w.all || w.burst.wide || w.replaced(named) || w.elsewhere() {
		w.moved = false
		w.follow(poll)
		for _, f := range w.files {
			changed = w.read(f, poll && f.slot == w.round%rounds) || changed
		}
	} else { // every way is as it was, and there may be tens of thousands of files
		for _, f := range w.files {
			if _, is := named[f]; is || f.folder || w.unsettled(f) {
				changed = w.read(f, false) || changed
			}
		}
	}
	w.ended = time.Now()
	w.rest = max(w.c.Quiet, 9*w.ended.Sub(start)) // looking takes at most a tenth of a processor
	if changed {
		w.changed, w.attempted = w.ended, time.Time{}
	}
	w.mu.Lock()
	events := w.burst
	events.add(w.seen) // what came during the look counts at once, and for the next look too
	w.mu.Unlock()

	next, calm := w.decide(events)
	w.tell()
	if end := w.polled.Add(w.c.Poll); end.Before(next) || calm {
		next = end
	}
	if calm {
		w.burst = burst{}
	}
	w.mu.Lock()
	w.turns++
	w.calm = calm
	if w.hurry {
		next = time.Now()
	}
	w.mu.Unlock()
	return next
}

// replaced reports whether a file that events named is not just a file any more.
func (w *Watcher) replaced(named map[*file]string) bool {
	for f, real := range named {
		if w.files[f.path] == f && !regular(real) {
			return true
		}
	}
	return false
}

// elsewhere reports whether a path of a watched directory leads to another one now, because one further up was replaced: no
// event tells that.
func (w *Watcher) elsewhere() bool {
	for dir, have := range w.dirs {
		if id, err := identify(dir); err != nil || id != have {
			return true
		}
	}
	return false
}

// unsettled reports whether a file is not as it was loaded, so that it is looked at until it has settled.
func (w *Watcher) unsettled(f *file) bool {
	if want, ok := w.want[f.path]; ok && f.sum != want {
		return true
	}
	return w.base != nil && f.sum != w.base[f.path]
}

// take gets what Loaded and NotLoaded told, under the lock.
func (w *Watcher) take() {
	if w.heard == w.loads {
		return
	}
	w.heard = w.loads
	w.want, w.base = w.force, nil
	if w.broken {
		w.base = make(map[string]Sum, len(w.files))
		for path, f := range w.files {
			w.base[path] = f.sum
		}
		maps.Copy(w.base, w.tried)
	}
	for path := range w.files {
		if _, ok := w.force[path]; !ok {
			if _, ok = w.tried[path]; !ok {
				delete(w.files, path)
				w.moved = true
			}
		}
	}
	for _, set := range []map[string]Sum{w.force, w.tried} {
		for path := range set {
			if w.files[path] == nil {
				w.files[path] = &file{path: path, slot: w.slots % rounds}
				w.slots++
				w.moved = true
			}
		}
	}
}

// decide compares what was seen with what is in force.
func (w *Watcher) decide(events burst) (next time.Time, calm bool) {
	var differ, bad []string
	for path, want := range w.want {
		switch f := w.files[path]; {
		case f.sum == want:
		case f.problem != "":
			bad = append(bad, path)
		default:
			differ = append(differ, path)
		}
	}
	if len(differ) == 0 && w.base != nil && !w.sameAsForce() {
		w.forgive() // what was refused is gone, and what is in force is back
	}
	reload := len(differ) > 0 && (w.base == nil || w.newSince())
	if len(bad) == 0 {
		w.mu.Lock()
		w.clear(Unreadable)
		w.mu.Unlock()
		if !reload {
			return next, true
		}
	}
	settle := w.c.Quiet
	if !events.any || events.written {
		settle *= slow
	}
	if at := w.changed.Add(settle); w.ended.Before(at) {
		return at, false
	}
	if reload {
		if at := w.attempted.Add(w.c.Poll); !w.attempted.IsZero() && w.ended.Before(at) {
			return at, false // a reload that did not see what is here: not a reason to hurry
		}
		w.reload(differ)
		return time.Now(), false
	}
	slices.Sort(bad)
	text := fmt.Sprintf("cannot use %s: %s", bad[0], w.files[bad[0]].problem)
	if n := len(bad) - 1; n > 0 {
		text += fmt.Sprintf(", and %d more", n)
	}
	w.mu.Lock()
	w.raise(Unreadable, text+"; what was read before stays in force; put the file back")
	w.mu.Unlock()
	return next, true
}

// tell logs which conditions are new and which are gone; here, because a log may be slow and the lock is not for waiting.
func (w *Watcher) tell() {
	now := w.Conditions()
	text := func(list []Condition, code string) string {
		for _, c := range list {
			if c.Code == code {
				return c.Text
			}
		}
		return ""
	}
	for _, c := range now {
		if c.Code != Refused && text(w.told, c.Code) != c.Text { // a refusal is logged by who refused
			w.c.Log.Warn("watching files", "condition", c.Code, "problem", c.Text)
		}
	}
	for _, c := range w.told {
		if text(now, c.Code) == "" {
			w.c.Log.Info("watching files: put right", "condition", c.Code, "after", time.Since(c.Since).Round(time.Millisecond).String())
		}
	}
	w.told = now
}

// newSince says whether a file that can be used has other content than the refused load saw.
func (w *Watcher) newSince() bool {
	for path, f := range w.files {
		if f.problem == "" && f.sum != w.base[path] {
			return true
		}
	}
	return false
}

// sameAsForce says whether the refused load saw just what is in force, so that the files are not what was refused.
func (w *Watcher) sameAsForce() bool {
	for path, sum := range w.want {
		if w.base[path] != sum {
			return false
		}
	}
	return true
}

func (w *Watcher) forgive() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.heard != w.loads {
		return // there is news
	}
	w.loads++
	w.tried, w.broken = nil, false
	w.clear(Refused)
	w.take()
}

// reload asks for a reload and records what became of it, unless Loaded or NotLoaded did.
func (w *Watcher) reload(differ []string) {
	slices.Sort(differ)
	w.mu.Lock()
	if w.closed || w.heard != w.loads {
		w.mu.Unlock()
		return
	}
	w.mu.Unlock()
	w.c.Log.Info("files changed", "file", differ[0], "more", len(differ)-1)
	sums := make(map[string]Sum, len(w.files))
	for path, f := range w.files {
		sums[path] = f.sum
	}
	err := w.safely()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hurry = true
	if errors.Is(err, ErrOvertaken) {
		return
	}
	w.attempted, w.burst = time.Now(), burst{}
	switch {
	case w.heard != w.loads:
	case err == nil:
		w.loaded(sums)
	default:
		w.notLoaded(sums, err)
	}
}

func (w *Watcher) safely() (err error) {
	defer func() {
		if p := recover(); p != nil {
			w.c.Log.Error("watching files: bug in a reload", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = fmt.Errorf("the reload ended in a panic, which is a bug: %v", p)
		}
	}()
	return w.c.Reload()
}
