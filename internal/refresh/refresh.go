// Package refresh keeps fresh what expires or changes; for now: the files of the configuration in force. It finds out
// that files changed, waits until they are complete, and asks for one reload for each settled change. What is in them is
// the reload's business: refresh compares hashes only.
package refresh

import (
	"crypto/sha256"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	defaultQuiet = 250 * time.Millisecond
	defaultPoll  = 30 * time.Second

	// slow times Quiet is how long content must stay the same where it may still be being written: events show writes
	// into the file itself, or there were no events to tell. A writer of 1 KB/s pauses for longer than Quiet between pieces.
	slow = 10
	// rounds is the number of polls in which every file is read again even if its stat says it is the same, for file
	// systems that do not tell.
	rounds = 10
	// racy is the age below which a stat says nothing: two writes within the resolution of the file system's clock look alike.
	racy = 2 * time.Second

	maxFile = 128 << 20 // as in snapshot: what is larger is refused there
	maxText = 2 << 10
)

// Codes of conditions.
const (
	// Refused: files changed, and a reload refused them. What was in force stays.
	Refused = "reload_refused"
	// Unreadable: files in force cannot be read any more, or are empty. What was read before stays in force.
	Unreadable = "files_unreadable"
	// NoEvents: the system gives no (or not enough) file events. Changes are found by polling alone, which takes longer.
	NoEvents = "file_events_unavailable"
)

// Sum is the SHA-256 hash of a file's content. The zero Sum stands for a file that could not be read.
type Sum = [sha256.Size]byte

// Condition is something that is wrong until it is put right.
type Condition struct {
	Code  string
	Text  string    // what is wrong, and what follows
	Since time.Time // when it began; a condition whose text changes keeps it
}

// ErrOvertaken is what Reload returns if it has done nothing, because another load ended after it was called.
// What that one has read may be what there is: the watcher looks again.
var ErrOvertaken = errors.New("another load came first")

// Config says how to watch.
type Config struct {
	// Reload loads the configuration and puts it in force, or changes nothing and returns why. It calls Loaded or NotLoaded
	// with what it read, or returns ErrOvertaken. It is called from one goroutine; loads of other origin (SIGHUP) may be
	// under way.
	Reload func() error
	Log    *slog.Logger
	// Quiet is the time between two equal readings that a reload needs: 250 ms by default, ten times as long where content
	// may still be being written.
	Quiet time.Duration
	// Poll is the time between two looks at all files without an event: 30 s by default.
	Poll time.Duration
	// PollOnly is for file systems that send no events.
	PollOnly bool

	add func(dir string) error // in tests: fails as a system out of watches does
}

// Watcher watches the files of a configuration: made by Watch, ended by Close. Its methods may be called from any goroutine.
type Watcher struct {
	c          Config
	stop, done chan struct{}
	poke       chan struct{}

	mu     sync.Mutex // never held during a reload or while files are read
	closed bool
	hurry  bool           // look now
	loads  int            // loads reported
	force  map[string]Sum // what is in force; nil before the first load
	tried  map[string]Sum // what the load that was refused since then has read; nil if none was
	broken bool           // a load was refused since the last accepted one
	conds  map[string]Condition
	seen   burst            // events since the last look
	names  entries          // whose events matter
	named  map[*file]string // files that events since the last look named, and where they really are
	lost   map[string]bool  // directories that were removed or renamed: watch again what has their name now
	turns  int              // looks completed
	calm   bool             // nothing was left to do after the last look

	look // the goroutine's own
}

// burst is what events told.
type burst struct {
	any     bool // something happened
	written bool // it may still be going on
	wide    bool // to which files is not known
}

func (b *burst) add(o burst) {
	b.any, b.written, b.wide = b.any || o.any, b.written || o.written, b.wide || o.wide
}

// Watch makes a Watcher, which does nothing before the first call of Loaded.
func Watch(c Config) *Watcher {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Quiet <= 0 {
		c.Quiet = defaultQuiet
	}
	if c.Poll <= 0 {
		c.Poll = defaultPoll
	}
	w := &Watcher{c: c, stop: make(chan struct{}), done: make(chan struct{}), poke: make(chan struct{}, 1),
		conds: make(map[string]Condition), named: make(map[*file]string), lost: make(map[string]bool)}
	w.look = newLook()
	go w.run()
	return w
}

// Loaded tells that a configuration is in force, and the sums of all files that were read for it, by path, as they were
// read: a change between that reading and now is found.
func (w *Watcher) Loaded(files map[string]Sum) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.loaded(absolute(files))
}

func (w *Watcher) loaded(files map[string]Sum) {
	w.loads++
	w.force, w.tried, w.broken = files, nil, false
	w.clear(Refused)
	w.wake()
}

// NotLoaded tells that a load was refused, and what it has read until then: files that could not be read have the zero
// Sum. They are watched too, for what is wrong is often put right in a file that only the refused configuration names.
func (w *Watcher) NotLoaded(files map[string]Sum, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notLoaded(absolute(files), err)
}

func (w *Watcher) notLoaded(files map[string]Sum, err error) {
	w.loads++
	w.tried, w.broken = files, true
	w.raise(Refused, err.Error())
	w.wake()
}

// Kick looks at all files now. A change still needs its quiet time.
func (w *Watcher) Kick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen.wide = true
	w.wake()
}

func (w *Watcher) wake() {
	w.hurry = true
	w.nudge()
}

func (w *Watcher) nudge() {
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

// Conditions returns what is wrong now, ordered by code.
func (w *Watcher) Conditions() []Condition {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := make([]Condition, 0, len(w.conds))
	for _, c := range w.conds {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b Condition) int { return strings.Compare(a.Code, b.Code) })
	return list
}

// raise and clear need the lock.
func (w *Watcher) raise(code, text string) {
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	c, known := w.conds[code]
	if !known {
		c = Condition{Code: code, Since: time.Now()}
	}
	c.Text = text
	w.conds[code] = c
}

func (w *Watcher) clear(code string) { delete(w.conds, code) }

// Close ends watching. No reload starts afterwards, and one under way is waited for; so it must not be called from
// Reload, nor with a lock that Reload takes. A file system that hangs does not keep it for longer than five seconds.
func (w *Watcher) Close() {
	w.mu.Lock()
	if !w.closed {
		w.closed = true
		close(w.stop)
	}
	w.mu.Unlock()
	timeout := time.NewTimer(5 * time.Second)
	defer timeout.Stop()
	select {
	case <-w.done:
	case <-timeout.C:
		w.c.Log.Warn("watching files: a reload or a file system does not come back; not waiting for it")
	}
}

func absolute(files map[string]Sum) map[string]Sum {
	out := make(map[string]Sum, len(files))
	for name, sum := range files {
		if full, err := filepath.Abs(name); err == nil {
			name = full
		}
		out[name] = sum
	}
	return out
}
