package refresh

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"countersign/internal/snapshot"
)

const quiet = 10 * time.Millisecond

// world is a daemon with a configuration of three files. The configuration lists the names of files, one on each line; a
// load reads them all and refuses what is empty, says "bad", or is a pair (*.crt and *.key) of different contents.
type world struct {
	*testing.T
	dir string
	w   *Watcher

	loading sync.Mutex // one load at a time, as in daemon

	mu       sync.Mutex
	reload   func() error
	mute     bool // does not report loads
	tries    int  // loads that the watcher asked for
	accepted int
	force    string // contents in force
}

func (d *world) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(d.dir, name)
}

func newWorld(t *testing.T, c Config) *world {
	d := &world{T: t, dir: t.TempDir()}
	d.start(c, func() {
		d.write("c.yaml", "tls.crt\ntls.key\n")
		d.write("tls.crt", "one")
		d.write("tls.key", "one")
	})
	return d
}

func (d *world) start(c Config, files func()) {
	d.Helper()
	files()
	d.reload = d.load
	c.Reload = func() error {
		d.mu.Lock()
		reload := d.reload
		d.mu.Unlock()
		err := reload()
		d.mu.Lock()
		defer d.mu.Unlock()
		d.tries++
		if err == nil {
			d.accepted++
		}
		return err
	}
	d.w = Watch(c)
	d.Cleanup(d.w.Close)
	if err := d.load(); err != nil {
		d.Fatal(err)
	}
	d.settle()
}

func (d *world) load() error {
	d.loading.Lock()
	defer d.loading.Unlock()
	sums := map[string]Sum{}
	var all []string
	pairs := map[string]string{}
	err := func() error {
		for queue := []string{"c.yaml"}; len(queue) > 0; queue = queue[1:] {
			full := d.path(queue[0])
			data, err := os.ReadFile(full)
			if err != nil {
				sums[full] = Sum{}
				return err
			}
			sums[full] = sha256.Sum256(data)
			text := strings.TrimSpace(string(data))
			if queue[0] == "c.yaml" {
				queue = append(queue, strings.Fields(text)...)
			}
			if text == "" || strings.Contains(text, "bad") {
				return fmt.Errorf("%s: %q is not accepted", queue[0], text)
			}
			if base, ok := strings.CutSuffix(queue[0], ".crt"); ok {
				pairs[base] = text
			} else if base, ok := strings.CutSuffix(queue[0], ".key"); ok && pairs[base] != text {
				return fmt.Errorf("%s: the key is not the certificate's", queue[0])
			}
			all = append(all, text)
		}
		return nil
	}()
	d.mu.Lock()
	mute := d.mute
	d.mu.Unlock()
	switch {
	case mute:
	case err != nil:
		d.w.NotLoaded(sums, err)
	default:
		d.w.Loaded(sums)
	}
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.force = strings.Join(all, "|")
	d.mu.Unlock()
	return nil
}

func (d *world) check(err error) {
	d.Helper()
	if err != nil {
		d.Fatal(err)
	}
}

func (d *world) write(name, text string) {
	d.Helper()
	d.check(os.WriteFile(d.path(name), []byte(text), 0o600))
}

func (d *world) rename(from, to string) {
	d.Helper()
	d.check(os.Rename(d.path(from), d.path(to)))
}

// put replaces a file as careful programs do.
func (d *world) put(name, text string) {
	d.Helper()
	d.write(name+".tmp", text)
	d.rename(name+".tmp", name)
}

func (d *world) link(to, name string) {
	d.Helper()
	d.check(os.Symlink(to, d.path(name)+".tmp"))
	d.rename(name+".tmp", name)
}

// change changes several files while no load can be under way: a test that is held up between them, for longer than the
// quiet time, shall not see a reload of the half that is there.
func (d *world) change(files func()) {
	d.loading.Lock()
	defer d.loading.Unlock()
	files()
}

// pair replaces the certificate and its key.
func (d *world) pair(text string) {
	d.Helper()
	d.change(func() { d.put("tls.crt", text); d.put("tls.key", text) })
}

func (d *world) loads(reload func() error, mute bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reload, d.mute = reload, mute
}

func (d *world) mkdir(name string) {
	d.Helper()
	d.check(os.MkdirAll(d.path(name), 0o700))
}

func (d *world) until(what string, ok func() bool) {
	d.Helper()
	for end := time.Now().Add(90 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.Fatalf("waited in vain until %s; %d tries, %d accepted, in force %q, conditions %v", what, d.tries, d.accepted, d.force, d.w.Conditions())
		}
	}
}

// settle waits until the watcher has looked at the files as they are now and has nothing left to do.
func (d *world) settle() {
	d.Helper()
	for range 2 { // the first may be one under way
		turns, _ := d.turns()
		d.w.Kick()
		d.until("the watcher looks", func() bool { now, _ := d.turns(); return now > turns })
	}
	d.until("the watcher is calm", func() bool { _, calm := d.turns(); return calm })
}

func (d *world) turns() (int, bool) {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	return d.w.turns, d.w.calm && !d.w.hurry
}

func (d *world) inForce() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.force
}

// expect waits until contents are in force, and sees that the watcher took so many tries in all.
func (d *world) expect(force string, tries int) {
	d.Helper()
	d.until("in force is "+force, func() bool { return strings.HasSuffix(d.inForce(), force) })
	d.same(force, tries)
	if c := d.w.Conditions(); len(c) > 0 {
		d.Fatalf("conditions %v", c)
	}
}

// same sees that nothing more happens.
func (d *world) same(force string, tries int) {
	d.Helper()
	d.settle()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tries != tries || !strings.HasSuffix(d.force, force) {
		d.Fatalf("%d tries and %q in force; want %d and %q", d.tries, d.force, tries, force)
	}
}

func (d *world) condition(code, text string) Condition {
	d.Helper()
	var found Condition
	d.until("condition "+code+" says "+text, func() bool {
		for _, c := range d.w.Conditions() {
			if c.Code == code && strings.Contains(c.Text, text) {
				found = c
				return true
			}
		}
		return false
	})
	return found
}

// modes runs a test with events alone and with polls alone.
func modes(t *testing.T, name string, test func(*testing.T, Config)) {
	t.Run(name+"/events", func(t *testing.T) {
		t.Parallel()
		test(t, Config{Quiet: quiet, Poll: time.Hour})
	})
	t.Run(name+"/polls", func(t *testing.T) {
		t.Parallel()
		test(t, Config{Quiet: quiet, Poll: 20 * time.Millisecond, PollOnly: true})
	})
}

// TestOneReload: every way to change a file brings exactly one reload each time.
func TestOneReload(t *testing.T) {
	pair := func(d *world, text string) { d.put("tls.key", text); d.put("tls.crt", text) }
	for name, change := range map[string]func(d *world, text string){
		"rename": pair,
		"in place": func(d *world, text string) {
			d.write("tls.key", text)
			d.write("tls.crt", text)
		},
		"truncated and written in pieces": func(d *world, text string) {
			pair := []string{"tls.crt", "tls.key"}
			for _, name := range pair {
				f, err := os.Create(d.path(name))
				d.check(err)
				defer f.Close()
				for _, c := range text {
					_, err := f.WriteString(string(c))
					d.check(err)
				}
			}
		},
		"vim": func(d *world, text string) {
			for _, name := range []string{"tls.crt", "tls.key"} {
				d.write("4913", "")
				d.check(os.Remove(d.path("4913")))
				d.rename(name, name+"~")
				d.write(name, text)
				d.check(os.Chmod(d.path(name), 0o640))
				d.check(os.Remove(d.path(name + "~")))
			}
		},
		"deleted and created": func(d *world, text string) {
			d.check(os.Remove(d.path("tls.crt")))
			d.check(os.Remove(d.path("tls.key")))
			d.write("tls.crt", text)
			d.write("tls.key", text)
		},
		"many times": func(d *world, text string) {
			for i := range 20 {
				pair(d, fmt.Sprint(text, i))
			}
			pair(d, text)
		},
		"configuration names other files": func(d *world, text string) {
			d.mkdir(text)
			d.write(text+"/new.crt", text)
			d.write(text+"/new.key", text)
			d.put("c.yaml", text+"/new.crt\n"+text+"/new.key\n")
		},
	} {
		modes(t, name, func(t *testing.T, c Config) {
			d := newWorld(t, c)
			for i, text := range []string{"two", "three", "four"} {
				d.change(func() { change(d, text) })
				d.expect(text+"|"+text, i+1)
			}
		})
	}
	modes(t, "nothing changed", func(t *testing.T, c Config) {
		d := newWorld(t, c)
		d.check(os.Chmod(d.path("tls.crt"), 0o640))
		d.check(os.Chtimes(d.path("tls.key"), time.Now(), time.Now()))
		d.write("tls.crt", "one")
		d.put("tls.key", "one")
		d.write("other", "x")
		d.same("one|one", 0)
	})
	modes(t, "there and back", func(t *testing.T, c Config) {
		d := newWorld(t, c)
		d.pair("two")
		d.pair("one")
		d.settle()
		if got := d.inForce(); !strings.HasSuffix(got, "one|one") {
			t.Fatal(got)
		}
	})
	modes(t, "no reports", func(t *testing.T, c Config) { // of a daemon that never says what it loaded
		d := newWorld(t, c)
		d.loads(d.load, true)
		d.write("a", "a")
		d.put("c.yaml", "a")
		d.expect("a|a", 1)
		d.put("c.yaml", "bad")
		d.condition(Refused, "not accepted")
		d.same("a|a", 2)
		d.put("c.yaml", "a")
		d.until("the condition is gone", func() bool { return len(d.w.Conditions()) == 0 })
		d.same("a|a", 2)
	})
}

// TestLinks: whatever link or directory on the way to a file is replaced.
func TestLinks(t *testing.T) {
	modes(t, "H04/kubernetes swap, again and again", func(t *testing.T, c Config) {
		d := &world{T: t, dir: t.TempDir()}
		version := func(i int) {
			dir := fmt.Sprintf("vol/..2026_%d", i)
			d.mkdir(dir)
			d.write(dir+"/tls.crt", fmt.Sprint("v", i))
			d.write(dir+"/tls.key", fmt.Sprint("v", i))
			d.link(fmt.Sprintf("..2026_%d", i), "vol/..data")
			if i > 0 {
				d.check(os.RemoveAll(d.path(fmt.Sprintf("vol/..2026_%d", i-1))))
			}
		}
		d.start(c, func() {
			d.mkdir("vol")
			version(0)
			d.link("..data/tls.crt", "vol/tls.crt")
			d.link("..data/tls.key", "vol/tls.key")
			d.write("c.yaml", "vol/tls.crt vol/tls.key")
		})
		for i := 1; i <= 6; i++ {
			version(i)
			d.expect(fmt.Sprintf("v%d|v%d", i, i), i)
		}
	})
	modes(t, "H04/targets of links", func(t *testing.T, c Config) {
		d := newWorld(t, c)
		d.mkdir("live/a")
		d.mkdir("store")
		d.write("store/1.crt", "two")
		d.write("live/a/k", "two")
		d.link(d.path("store/1.crt"), "live/a/c") // absolute
		d.link("../store/../live/a/c", "store/x")
		d.change(func() {
			d.link("store/x", "tls.crt")
			d.link("live/a/k", "tls.key")
		})
		d.expect("two|two", 1)
		d.change(func() { // in place, behind links
			d.write("live/a/k", "three")
			d.write("store/1.crt", "three")
		})
		d.expect("three|three", 2)
		d.write("store/2.crt", "four")
		d.change(func() {
			d.link(d.path("store/2.crt"), "live/a/c") // a link in the middle
			d.put("live/a/k", "four")
		})
		d.expect("four|four", 3)
	})
	modes(t, "H04/directories that are links", func(t *testing.T, c Config) {
		d := &world{T: t, dir: t.TempDir()}
		version := func(v string) {
			d.mkdir(v + "/deep")
			d.write(v+"/deep/tls.crt", v)
			d.write(v+"/deep/tls.key", v)
			d.link(v, "live")
		}
		d.start(c, func() {
			version("v0")
			d.write("c.yaml", "live/deep/tls.crt live/deep/tls.key")
		})
		for i := 1; i <= 4; i++ {
			v := fmt.Sprint("v", i)
			version(v)
			d.expect(v+"|"+v, i)
		}
		d.change(func() {
			d.put("v4/deep/tls.crt", "in")
			d.put("v4/deep/tls.key", "in")
		})
		d.expect("in|in", 5)
	})
	modes(t, "H04/directories that are replaced", func(t *testing.T, c Config) {
		d := &world{T: t, dir: t.TempDir()}
		make := func(dir, v string) {
			d.mkdir(dir)
			d.write(dir+"/tls.crt", v)
			d.write(dir+"/tls.key", v)
		}
		d.start(c, func() {
			make("live", "v0")
			d.write("c.yaml", "live/tls.crt live/tls.key")
		})
		for i := 1; i <= 4; i++ {
			v := fmt.Sprint("v", i)
			make("next", v)
			d.rename("live", "old")
			d.rename("next", "live")
			d.expect(v+"|"+v, i)
			d.check(os.RemoveAll(d.path("old")))
		}
		d.check(os.RemoveAll(d.path("live")))
		d.condition(Unreadable, "tls.crt")
		d.same("v4|v4", 4)
		d.change(func() { make("live", "back") })
		d.expect("back|back", 5)
		for i := 6; i < 12; i += 2 { // at once: file systems use the directory's inode number again
			v := fmt.Sprint("v", i)
			d.change(func() { d.check(os.RemoveAll(d.path("live"))); make("live", v) })
			d.expect(v+"|"+v, i)
			d.change(func() { d.write("live/tls.crt", v+"+"); d.write("live/tls.key", v+"+") })
			d.expect(v+"+|"+v+"+", i+1)
		}
	})
}

// TestHalf: what is incomplete, missing or wrong never starts more than one reload, and says so.
func TestHalf(t *testing.T) {
	modes(t, "H05/unreadable", func(t *testing.T, c Config) {
		d := newWorld(t, c)
		tries := 0
		for name, harm := range map[string]func(){
			"it is empty":               func() { d.check(os.Truncate(d.path("tls.crt"), 0)) },
			"no such file or directory": func() { d.check(os.Remove(d.path("tls.crt"))) },
			"it is not a regular file": func() {
				d.check(os.Remove(d.path("tls.crt")))
				d.check(syscall.Mkfifo(d.path("tls.crt"), 0o600))
			},
			"permission denied": func() {
				if os.Geteuid() == 0 {
					d.link("tls.crt", "tls.crt") // root may read everything: a link to itself is as good
					return
				}
				d.check(os.Chmod(d.path("tls.crt"), 0))
			},
		} {
			harm()
			if os.Geteuid() == 0 && name == "permission denied" {
				name = "too many levels of symbolic links"
			}
			began := d.condition(Unreadable, name)
			if began.Since.IsZero() || !strings.Contains(began.Text, d.path("tls.crt")) {
				t.Fatal(began)
			}
			d.same("", tries)
			_ = os.Remove(d.path("tls.crt"))
			d.put("tls.crt", strings.Split(d.inForce(), "|")[1]) // the same again
			d.until("the condition is gone", func() bool { return len(d.w.Conditions()) == 0 })
			d.same("", tries)
			harm()
			d.condition(Unreadable, name)
			tries++
			text := fmt.Sprint("new", tries)
			_ = os.Remove(d.path("tls.crt"))
			d.pair(text)
			d.expect(text+"|"+text, tries)
		}
	})
	modes(t, "H05/missing and not needed any more", func(t *testing.T, c Config) {
		d := newWorld(t, c)
		d.check(os.Remove(d.path("tls.crt")))
		d.condition(Unreadable, "tls.crt")
		d.write("a", "a")
		d.put("c.yaml", "a")
		d.expect("a|a", 1)
		d.check(os.Remove(d.path("tls.key"))) // not in force
		d.same("a|a", 1)
		if c := d.w.Conditions(); len(c) > 0 {
			t.Fatal(c)
		}
	})
	modes(t, "H03/certificate and key apart", func(t *testing.T, c Config) {
		d := newWorld(t, c)
		for i, text := range []string{"two", "three"} {
			first, second := "tls.crt", "tls.key"
			if i > 0 {
				first, second = second, first
			}
			d.put(first, text)
			began := d.condition(Refused, "not the certificate's")
			d.same("", 2*i+1)
			if now := d.condition(Refused, ""); now.Since != began.Since {
				t.Fatal("the condition began again")
			}
			d.put(second, text)
			d.expect(text+"|"+text, 2*i+2)
		}
	})
	modes(t, "H05/refused once", func(t *testing.T, c Config) {
		d := newWorld(t, c)
		d.put("tls.crt", "bad")
		first := d.condition(Refused, "not accepted")
		d.put("tls.crt", "bad") // the same again
		d.check(os.Chtimes(d.path("tls.crt"), time.Now(), time.Now()))
		d.same("one|one", 1)
		d.put("tls.crt", "bad too")
		second := d.condition(Refused, "bad too")
		d.same("one|one", 2)
		if first.Since != second.Since {
			t.Fatal("the condition began again")
		}
		d.put("tls.crt", "one") // what is in force
		d.until("the condition is gone", func() bool { return len(d.w.Conditions()) == 0 })
		d.same("one|one", 2)
		d.put("tls.crt", "bad") // a change again
		d.condition(Refused, "not accepted")
		d.same("one|one", 3)
		d.pair("two")
		d.expect("two|two", 4)
	})
	modes(t, "H05/put right in a file that only the refused configuration names", func(t *testing.T, c Config) {
		d := newWorld(t, c)
		d.put("c.yaml", "tls.crt tls.key more/a")
		d.condition(Refused, "more/a")
		d.same("one|one", 1)
		d.mkdir("more")
		d.change(func() { d.write("more/a", "a") })
		d.expect("one|one|a", 2)
		d.put("c.yaml", "tls.crt tls.key more/a b")
		d.condition(Refused, "b: no such file")
		d.put("c.yaml", "tls.crt tls.key more/a")
		d.until("the condition is gone", func() bool { return len(d.w.Conditions()) == 0 })
		d.write("b", "b")
		d.same("one|one|a", 3)
	})
	modes(t, "H07/panic", func(t *testing.T, c Config) {
		d := newWorld(t, c)
		d.loads(func() error { panic("oh") }, false)
		d.pair("two")
		d.condition(Refused, "panic, which is a bug: oh")
		d.settle()
		d.loads(d.load, false)
		d.pair("three")
		d.until("in force", func() bool { return strings.HasSuffix(d.inForce(), "three|three") })
	})
}

// TestSlowWriter: 1 KB/s in place, with nothing but polls, at the defaults, by a clock that costs no time.
func TestSlowWriter(t *testing.T) {
	t.Run("H05/polls", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := newWorld(t, Config{PollOnly: true})
			d.write("list", "x")
			d.put("c.yaml", "tls.crt tls.key list")
			d.expect("one|one|x", 1)
			want := strings.Repeat("y", 100<<10)
			f, err := os.Create(d.path("list"))
			d.check(err)
			for i := range 100 {
				_, err := f.WriteString(want[i<<10 : (i+1)<<10])
				d.check(err)
				time.Sleep(time.Second)
			}
			f.Close()
			start := time.Now()
			d.expect(want, 2)
			if took := time.Since(start); took > defaultPoll+slow*defaultQuiet {
				t.Errorf("took %s after the last piece", took)
			}
		})
	})
	t.Run("H05/polls that find nothing read nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := newWorld(t, Config{PollOnly: true})
			time.Sleep(time.Hour)
			d.same("one|one", 0)
		})
	})
	t.Run("H05/events", func(t *testing.T) {
		t.Parallel()
		const quiet, gap = 30 * time.Millisecond, 60 * time.Millisecond
		for range 10 {
			d := newWorld(t, Config{Quiet: quiet, Poll: time.Hour})
			d.write("list", "x")
			d.put("c.yaml", "tls.crt tls.key list")
			d.expect("one|one|x", 1)
			want := strings.Repeat("y", 20<<10)
			f, err := os.Create(d.path("list"))
			d.check(err)
			last, worst := time.Now(), time.Duration(0)
			for i := range 20 {
				_, err := f.WriteString(want[i<<10 : (i+1)<<10])
				d.check(err)
				time.Sleep(gap)
				worst, last = max(worst, time.Since(last)), time.Now()
			}
			f.Close()
			if worst > slow*quiet/2 {
				continue // the machine was too busy for a writer as slow as meant
			}
			d.expect(want, 2)
			return
		}
		t.Skip("the machine is too busy")
	})
}

// TestLoads: loads of other origin than the watcher.
func TestLoads(t *testing.T) {
	modes(t, "H07/hang-ups while files change", func(t *testing.T, c Config) {
		d := newWorld(t, c)
		var hangups sync.WaitGroup
		for i := range 100 {
			hangups.Go(func() { _ = d.load() })
			if i%10 == 0 {
				d.put("tls.crt", fmt.Sprint(i))
				d.put("tls.key", fmt.Sprint(i))
			}
		}
		hangups.Wait()
		d.until("in force", func() bool { return strings.HasSuffix(d.inForce(), "90|90") })
		d.settle()
		if c := d.w.Conditions(); len(c) > 0 {
			t.Fatal(c)
		}
	})
	modes(t, "H07/a hang-up was first", func(t *testing.T, c Config) {
		c.Quiet = time.Minute // the watcher waits for long
		d := newWorld(t, c)
		d.pair("two")
		d.check(d.load())
		d.expect("two|two", 0)
		d.put("tls.crt", "bad")
		if d.load() == nil {
			t.Fatal("accepted")
		}
		d.condition(Refused, "not accepted")
		d.same("two|two", 0) // not tried again
		d.put("tls.crt", "two")
		d.w.Kick()
		d.until("the condition is gone", func() bool { return len(d.w.Conditions()) == 0 })
		d.same("two|two", 0)
	})
	modes(t, "H07/changed while loading", func(t *testing.T, c Config) {
		d := newWorld(t, c)
		var once sync.Once
		d.loads(func() error {
			err := d.load()
			once.Do(func() {
				d.put("tls.crt", "three")
				d.put("tls.key", "three")
			})
			return err
		}, false)
		d.pair("two")
		d.expect("three|three", 2)
	})
	modes(t, "H07/refused for another reason than the files", func(t *testing.T, c Config) {
		d := newWorld(t, c)
		d.w.mu.Lock()
		sums := maps.Clone(d.w.force)
		d.w.mu.Unlock()
		d.w.NotLoaded(sums, errors.New("the port is taken"))
		d.same("one|one", 0)
		d.condition(Refused, "the port is taken")
		d.check(d.load())
		d.expect("one|one", 0)
	})
	modes(t, "H07/a load that never sees what is there", func(t *testing.T, c Config) {
		c.Poll = time.Hour
		d := newWorld(t, c)
		d.loads(func() error {
			err := errors.New("cannot read")
			d.w.NotLoaded(map[string]Sum{d.path("tls.crt"): {}}, err)
			return err
		}, false)
		d.put("tls.crt", "two")
		d.w.Kick()
		d.condition(Refused, "cannot read")
		for range 5 {
			turns, _ := d.turns()
			d.w.Kick()
			d.until("the watcher looks", func() bool { now, _ := d.turns(); return now > turns })
		}
		if n := d.triesNow(); n != 1 {
			t.Fatalf("%d tries", n)
		}
	})
}

func (d *world) triesNow() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tries
}

// TestNoEvents: a system without inotify, or with too few watches, is polled and says so.
func TestNoEvents(t *testing.T) {
	for name, row := range map[string]struct {
		err  error
		fail func(dir string) bool
		next string
	}{
		"no instance":     {syscall.EMFILE, func(dir string) bool { return dir == "" }, "max_user_instances"},
		"no watches":      {syscall.ENOSPC, func(dir string) bool { return dir != "" }, "max_user_watches"},
		"too few watches": {syscall.ENOSPC, func(dir string) bool { return strings.HasSuffix(dir, "sub") }, "max_user_watches"},
	} {
		t.Run("H04/"+name, func(t *testing.T) {
			t.Parallel()
			var log lockedBuffer
			var mu sync.Mutex
			broken := true
			d := &world{T: t, dir: t.TempDir()}
			d.start(Config{Quiet: quiet, Poll: 20 * time.Millisecond, Log: slog.New(slog.NewTextHandler(&log, nil)), add: func(dir string) error {
				mu.Lock()
				defer mu.Unlock()
				if broken && row.fail(dir) {
					return &os.PathError{Op: "watch", Path: dir, Err: row.err}
				}
				return nil
			}}, func() {
				d.mkdir("sub")
				d.write("sub/a", "one")
				d.write("c.yaml", "sub/a")
			})
			d.condition(NoEvents, row.next)
			d.put("sub/a", "two")
			d.until("in force", func() bool { return strings.HasSuffix(d.inForce(), "two") })
			d.same("two", 1)
			if n := strings.Count(log.String(), "level=WARN"); n != 1 {
				t.Errorf("%d warnings:\n%s", n, log.String())
			}
			mu.Lock()
			broken = false
			mu.Unlock()
			d.until("events are there", func() bool { return len(d.w.Conditions()) == 0 })
			d.put("sub/a", "three")
			d.expect("three", 2)
		})
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestClose(t *testing.T) {
	d := newWorld(t, Config{Quiet: quiet})
	var closers sync.WaitGroup
	for range 4 {
		closers.Go(d.w.Close)
	}
	closers.Wait()
	d.put("tls.crt", "two")
	d.w.Kick()
	d.w.Loaded(nil)
	d.w.NotLoaded(nil, errors.New("late"))
	if d.triesNow() != 0 {
		t.Error("a reload after Close")
	}
	// A goroutine says that it is done before it is gone: a busy machine may show its last lines for a moment.
	left := func() (names []string) {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		for _, name := range []string{"(*Watcher).run(", "(*Watcher).pump(", "fsnotify."} {
			if bytes.Contains(stacks, []byte(name)) {
				names = append(names, name)
			}
		}
		return names
	}
	for end := time.Now().Add(10 * time.Second); len(left()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still there: %q", left())
		}
	}
}

// TestManyFiles holds a poll to stats: 10,000 files, each read once in ten polls.
func TestManyFiles(t *testing.T) {
	const n = 10000
	dir := t.TempDir()
	data := bytes.Repeat([]byte("0123456789abcdef"), 128)
	sums := make(map[string]Sum, n)
	for i := range n {
		sub := filepath.Join(dir, fmt.Sprint(i/100))
		path := filepath.Join(sub, fmt.Sprint(i%100))
		err := os.MkdirAll(sub, 0o700)
		if i == 0 {
			err = errors.Join(err, os.WriteFile(path, data, 0o600))
		} else {
			err = errors.Join(err, os.Link(filepath.Join(dir, "0", "0"), path)) // quicker to make
		}
		if err != nil {
			t.Fatal(err)
		}
		sums[path] = sha256.Sum256(data)
	}
	// Without its goroutine: the looks are ours to take.
	w := &Watcher{c: Config{Quiet: defaultQuiet, Poll: time.Nanosecond, Log: slog.New(slog.DiscardHandler), Reload: func() error { t.Error("reload"); return nil }},
		poke: make(chan struct{}, 1), conds: make(map[string]Condition), named: make(map[*file]string), lost: make(map[string]bool), look: newLook()}
	t.Cleanup(w.unfollow)
	time.Sleep(racy + 100*time.Millisecond) // until stats can be relied on
	w.Loaded(sums)
	w.step()
	before, cpu, start := w.reads, cpuTime(t), time.Now()
	const polls = 10
	for range polls {
		w.step()
	}
	t.Logf("%d files in %d watched directories: a poll takes %s of CPU, %s in all, reads %d files",
		n, len(w.dirs), (cpuTime(t)-cpu)/polls, time.Since(start)/polls, (w.reads-before)/polls)
	if got := w.reads - before; got != n {
		t.Errorf("%d polls read %d files; want each of %d once", polls, got, n)
	}
	if c := w.Conditions(); len(c) > 0 && c[0].Code != NoEvents {
		t.Error(c)
	}
}

// TestNamedFile: an event calls for a look at the file that it names, and at no other of very many, as long as it names a
// file. What the file is replaced by may lead anywhere.
func TestNamedFile(t *testing.T) {
	const n = 50
	d := &world{T: t, dir: t.TempDir()}
	sums := make(map[string]Sum, n)
	for i := range n {
		name := fmt.Sprint("f", i)
		d.write(name, "old")
		sums[d.path(name)] = sha256.Sum256([]byte("old"))
	}
	d.write("elsewhere", "other")
	// Without its goroutine: the looks are ours to take.
	w := &Watcher{c: Config{Quiet: time.Hour, Poll: time.Hour, Log: slog.New(slog.DiscardHandler)},
		poke: make(chan struct{}, 1), conds: make(map[string]Condition), named: make(map[*file]string), lost: make(map[string]bool), look: newLook()}
	d.w = w
	t.Cleanup(w.unfollow)
	w.Loaded(sums)
	w.step()
	for _, c := range []struct {
		what   string
		change func()
		looks  int
		file   string
		now    string
	}{
		{"replaced", func() { d.put("f7", "new") }, 2, "f7", "new"},
		{"written", func() { d.write("f8", "new") }, 3, "f8", "new"}, // and f7, which is not loaded yet
		{"replaced by a link", func() { d.link("elsewhere", "f9") }, n, "f9", "other"},
		{"written behind a link", func() { d.write("elsewhere", "newer") }, n, "f9", "newer"},
		{"a file again", func() { d.put("f9", "new") }, n, "f9", "new"},
		{"as it was", func() { d.put("f9", "old") }, 4, "f9", "old"},
		{"removed", func() { d.check(os.Remove(d.path("f9"))) }, n, "f9", ""},
		{"made again", func() { d.put("f9", "old") }, n, "f9", "old"},
		{"nothing", func() { w.Kick() }, n, "f9", "old"},
	} {
		w.burst = burst{} // as after a reload
		c.change()
		d.put("f0", c.what) // events come in order
		d.until(c.what+": all is heard", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.named[w.files[d.path("f0")]] != ""
		})
		before := w.looks
		w.step()
		if got := w.looks - before; got != c.looks {
			t.Errorf("%s: %d looks at files; want %d", c.what, got, c.looks)
		}
		want := sha256.Sum256([]byte(c.now))
		if c.now == "" {
			want = Sum{}
		}
		if w.files[d.path(c.file)].sum != want {
			t.Errorf("%s: %s is not seen to say %q", c.what, c.file, c.now)
		}
	}
	d.mkdir("more")
	d.write("more/g", "old")
	sums[d.path("more/g")] = sha256.Sum256([]byte("old"))
	w.Loaded(sums)
	w.burst = burst{}
	w.step()
	d.put("more/g", "new")
	d.until("what a later load has read is followed too", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.named[w.files[d.path("more/g")]] != ""
	})
	w.c.PollOnly = true // or a system that is out of watches
	w.follow(false)
	w.mu.Lock()
	clear(w.named)
	w.seen, w.burst = burst{}, burst{}
	w.mu.Unlock()
	before := w.looks
	w.step()
	if got := w.looks - before; got != n+1 {
		t.Errorf("without events: %d looks at files; want %d", got, n+1)
	}
}

// TestBesideNamedFile: a look at the file that an event names finds what no event tells: another file in a folder of which
// the names count, so that half of what is copied into it does not settle, and a folder further up that was replaced.
func TestBesideNamedFile(t *testing.T) {
	d := &world{T: t, dir: t.TempDir()}
	for _, dir := range []string{"folder", "up/deep", "next/deep"} {
		d.mkdir(dir)
		d.write(dir+"/z", dir)
	}
	d.write("f", "old")
	text := func(s string) Sum { return sha256.Sum256([]byte(s)) }
	names := func() Sum {
		entries, err := os.ReadDir(d.path("folder"))
		d.check(err)
		return snapshot.FolderSum(entries)
	}
	d.w = &Watcher{c: Config{Quiet: time.Hour, Poll: time.Hour, Log: slog.New(slog.DiscardHandler)},
		poke: make(chan struct{}, 1), conds: make(map[string]Condition), named: make(map[*file]string), lost: make(map[string]bool), look: newLook()}
	t.Cleanup(d.w.unfollow)
	d.w.Loaded(map[string]Sum{d.path("f"): text("old"), d.path("folder"): names(), d.path("up/deep/z"): text("up/deep")})
	d.w.step()
	look := func() {
		t.Helper()
		d.put("f", "new")
		f := d.w.files[d.path("f")]
		d.until("the event is heard", func() bool {
			d.w.mu.Lock()
			defer d.w.mu.Unlock()
			return d.w.named[f] != ""
		})
		d.w.step()
	}
	d.write("folder/other", "")
	look()
	if d.w.files[d.path("folder")].sum != names() {
		t.Error("another file in a folder is not seen")
	}
	d.rename("up", "before")
	d.rename("next", "up")
	look()
	if d.w.files[d.path("up/deep/z")].sum != text("next/deep") {
		t.Error("a folder that was replaced is not seen")
	}
	d.put("up/deep/z", "newest")
	d.until("what is in it now is followed", func() bool {
		d.w.mu.Lock()
		defer d.w.mu.Unlock()
		return d.w.named[d.w.files[d.path("up/deep/z")]] != ""
	})
}

// TestOvertaken: a reload that was not made, because another load came first, counts as none: what that one has seen is not
// loaded again, and what it has not is, at once.
func TestOvertaken(t *testing.T) {
	for name, c := range map[string]struct {
		first bool // the other load has seen the change
		loads int
	}{"which has seen it": {true, 0}, "which has not": {false, 1}} {
		t.Run(name, func(t *testing.T) {
			d := newWorld(t, Config{Quiet: 100 * time.Millisecond, Poll: time.Hour})
			old := func() error {
				d.w.mu.Lock()
				sums := maps.Clone(d.w.force)
				d.w.mu.Unlock()
				d.w.Loaded(sums)
				return nil
			}
			loads, asked := 0, 0
			var again time.Duration
			var began time.Time
			d.loads(func() error {
				if asked++; asked > 1 {
					loads++
					again = time.Since(began)
					return d.load()
				}
				other := old
				if c.first {
					other = d.load
				}
				if err := other(); err != nil {
					return err
				}
				began = time.Now()
				return ErrOvertaken
			}, false)
			d.pair("two")
			d.until("asked", func() bool { return d.triesNow() > 0 })
			d.until("in force", func() bool { return strings.HasSuffix(d.inForce(), "two|two") })
			d.settle()
			if loads != c.loads {
				t.Errorf("loaded %d times, want %d", loads, c.loads)
			}
			if again > slow*100*time.Millisecond/2 {
				t.Errorf("loaded %s later", again)
			}
		})
	}
}

func cpuTime(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
