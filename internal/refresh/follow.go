package refresh

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/fsnotify/fsnotify"
)

// follower keeps watches on directories: on every one that has an entry on the way to a file. Watches are on real
// directories, never on files or through symlinks: editors replace files by renaming, Kubernetes replaces the symlink
// ..data, and a watch on what was replaced hears nothing any more.
type follower struct {
	events *fsnotify.Watcher
	pumped chan struct{}
	dirs   map[string]identity // directories that have a watch
	all    bool                // each has one: what no event names did not change, as far as the system can tell
}

// follow sees that every directory on the way to a file has a watch.
func (w *Watcher) follow(poll bool) {
	w.all = false
	if w.c.PollOnly || len(w.files) == 0 {
		return
	}
	var failed error
	if w.events == nil && (poll || w.round == 1) {
		if failed = w.open(); failed != nil {
			w.unavailable(failed)
		}
	}
	if w.events == nil {
		return
	}
	w.mu.Lock()
	gone := w.lost
	w.lost = make(map[string]bool)
	w.mu.Unlock()
	if poll { // fsnotify drops watches without a word, for example when a file system is unmounted
		alive := make(map[string]bool)
		for _, dir := range w.events.WatchList() {
			alive[dir] = true
		}
		for dir := range w.dirs {
			if !alive[dir] {
				gone[dir] = true
			}
		}
	}
	for dir := range gone {
		w.unwatch(dir)
	}
	// What changes between looking at the way and having the watch goes unheard; so look again after watching more.
	var all bool
	for range 4 {
		all = true
		names := places{entries: make(entries, len(w.dirs)), cache: make(map[string]step), folders: make(map[string]ending)}
		for _, f := range w.files {
			names.way(f)
		}
		added := false
		for dir := range w.dirs {
			if names.entries[dir] == nil {
				w.unwatch(dir)
			}
		}
		for dir := range names.entries {
			id, err := identify(dir)
			if err != nil {
				all = false // gone meanwhile
				continue
			}
			if have, ok := w.dirs[dir]; ok && have == id {
				continue
			} else if ok {
				w.unwatch(dir)
			}
			if failed != nil {
				continue
			}
			if err := w.watch(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				failed = fmt.Errorf("%s: %w", dir, err)
				continue
			}
			w.dirs[dir], added = id, true
		}
		w.mu.Lock()
		w.names = names.entries
		w.mu.Unlock()
		if !added {
			break
		}
	}
	if failed != nil {
		w.unavailable(failed)
		return
	}
	w.all = all
	w.mu.Lock()
	w.clear(NoEvents)
	w.mu.Unlock()
}

func (w *Watcher) unavailable(err error) {
	next := "see that the folders can be read"
	switch {
	case errors.Is(err, syscall.ENOSPC):
		next = "raise fs.inotify.max_user_watches"
	case errors.Is(err, syscall.EMFILE):
		next = "raise fs.inotify.max_user_instances"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.raise(NoEvents, fmt.Sprintf("no events for all files (%s): changes are found by looking every %s; %s", cause(err), w.c.Poll, next))
}

func (w *Watcher) open() error {
	if w.c.add != nil {
		if err := w.c.add(""); err != nil {
			return err
		}
	}
	events, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	w.events, w.pumped = events, make(chan struct{})
	w.dirs = make(map[string]identity)
	go w.pump(events, w.pumped)
	return nil
}

func (w *Watcher) watch(dir string) error {
	if w.c.add != nil {
		if err := w.c.add(dir); err != nil {
			return err
		}
	}
	return w.events.Add(dir)
}

func (w *Watcher) unwatch(dir string) {
	delete(w.dirs, dir)
	_ = w.events.Remove(dir) // an error says that the watch is gone already
}

func (w *Watcher) unfollow() {
	if w.events != nil {
		w.events.Close()
		<-w.pumped
	}
}

// pump takes events as they come. It is a goroutine of its own because fsnotify sends some errors with its lock held:
// who adds a watch and reads errors in one goroutine can wait for itself.
func (w *Watcher) pump(events *fsnotify.Watcher, done chan struct{}) {
	defer close(done)
	defer guard(w.c.Log, "watching files") // without it changes are still found, by looking
	named, errs := events.Events, events.Errors
	for named != nil || errs != nil {
		select {
		case e, ok := <-named:
			if !ok {
				named = nil
				continue
			}
			w.hear(e)
		case err, ok := <-errs:
			if !ok {
				errs = nil
				continue
			}
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				w.mu.Lock()
				w.seen = burst{any: true, written: true, wide: true}
				w.mu.Unlock()
				w.nudge()
			} else if err != nil {
				w.c.Log.Debug("watching files", "error", err.Error())
			}
		}
	}
}

// hear notes an event if it may concern a file.
func (w *Watcher) hear(e fsnotify.Event) {
	dir, base := filepath.Split(e.Name)
	w.mu.Lock()
	defer w.mu.Unlock()
	_, self := w.names[e.Name]
	f, known := w.names[filepath.Clean(dir)][base]
	switch {
	case self:
		f = nil
		if e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename) || e.Has(fsnotify.Create) {
			w.lost[e.Name] = true
		}
	case !known:
		return
	case f != nil:
		w.named[f] = e.Name
	}
	w.seen.add(burst{any: true, written: e.Has(fsnotify.Write), wide: f == nil})
	w.nudge()
}

func identify(dir string) (identity, error) {
	st, err := os.Stat(dir)
	if err != nil {
		return identity{}, err
	}
	return stampOf(st).identity, nil
}

// entries are directories, and in them the entries on the way to files: with the one file that the entry itself is, or nil
// if it is more than that.
type entries map[string]map[string]*file

// places are the real directories on the way to files, and the entries in them that the way takes.
type places struct {
	entries entries
	cache   map[string]step
	folders map[string]ending // by path; thousands of files may be in one
}

// ending is where the way to a folder ends: in a real directory, or before it.
type ending struct {
	real    string
	reached bool
}

// step is where an entry of a real directory leads.
type step struct {
	mode fs.FileMode
	link string
	err  error
}

func (p *places) note(dir, name string) { p.noteFile(dir, name, nil) }

func (p *places) noteFile(dir, name string, f *file) {
	names := p.entries[dir]
	if names == nil {
		names = make(map[string]*file)
		p.entries[dir] = names
	}
	if _, taken := names[name]; taken {
		f = nil
	}
	names[name] = f
}

func (p *places) step(path string) step {
	s, ok := p.cache[path]
	if !ok {
		s = stepTo(path)
		p.cache[path] = s
	}
	return s
}

// regular reports whether a real path is that of a file, and not of what leads elsewhere.
func regular(path string) bool {
	s := stepTo(path)
	return s.err == nil && s.mode.IsRegular()
}

func stepTo(path string) (s step) {
	st, err := os.Lstat(path)
	if s.err = err; err == nil {
		if s.mode = st.Mode(); s.mode&fs.ModeSymlink != 0 {
			s.link, s.err = os.Readlink(path)
		}
	}
	return s
}

// way notes every entry on the way to a file that, replaced, leads elsewhere: the file's own, those of symlinks,
// and the first one that is not there. A directory that is moved tells so itself; one further up is found by polling.
func (p *places) way(f *file) {
	dir, base := filepath.Split(f.path)
	at, known := p.folders[dir]
	if !known {
		at.real, at.reached = p.walk("/", dir, true)
		p.folders[dir] = at
	}
	if !at.reached {
		return // and what is in the way is noted
	}
	full := filepath.Join(at.real, base)
	s := stepTo(full)
	if s.err == nil && s.mode.IsRegular() {
		p.noteFile(at.real, base, f)
		return
	}
	p.cache[full] = s
	p.walk(at.real, base, false)
}

// walk is way for the rest of a path from a real directory. It returns the directory in which it ends, false if it ends
// elsewhere. Where it leads to a folder, a directory at its end is what is expected.
func (p *places) walk(real, rest string, toFolder bool) (string, bool) {
	for links := 0; links < 40; {
		name, after, more := strings.Cut(strings.TrimLeft(rest, "/"), "/")
		rest = after
		switch name {
		case "", ".":
			if !more {
				return real, true
			}
			continue
		case "..":
			real = filepath.Dir(real)
			continue
		}
		full := filepath.Join(real, name)
		s := p.step(full)
		switch {
		case s.err != nil:
			p.note(real, name)
			return "", false
		case s.mode&fs.ModeSymlink != 0:
			p.note(real, name)
			links++
			if filepath.IsAbs(s.link) {
				real = "/"
			}
			rest = s.link + "/" + rest
		case s.mode.IsDir():
			if !toFolder && strings.Trim(rest, "/") == "" {
				p.note(real, name) // where a file is expected
			}
			real = full
		default:
			p.note(real, name)
			return "", false
		}
	}
	return "", false
}
