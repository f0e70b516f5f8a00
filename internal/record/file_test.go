package record

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func fileOutput(path string) Settings {
	return Settings{Name: "file", Place: ToFile, File: FileSettings{Path: path}}
}

// content reads a log, and one that was compressed.
func content(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(name, ".gz") {
		return data
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if data, err = io.ReadAll(z); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return data
}

func TestFileIsPrivate(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	path := filepath.Join(t.TempDir(), "access.log")
	b := NewBook(io.Discard)
	use(t, b, Streams{}, fileOutput(path))
	b.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("%v %v", st.Mode(), err)
	}
}

// TestFileMoves: whatever somebody does to the file, lines go to the one that has its name, whole and in order.
func TestFileMoves(t *testing.T) {
	for name, c := range map[string]struct {
		move   func(t *testing.T, path string)
		signal bool
		old    []string // in access.log.1
		new    []string
	}{
		"renamed, with SIGHUP":    {move: rename, signal: true, old: []string{"/1"}, new: []string{"/2"}},
		"renamed, without SIGHUP": {move: rename, old: []string{"/1"}, new: []string{"/2"}},
		"renamed and made again (logrotate create)": {move: func(t *testing.T, path string) {
			rename(t, path)
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, signal: true, old: []string{"/1"}, new: []string{"/2"}},
		"removed": {move: func(t *testing.T, path string) { _ = os.Remove(path) }, new: []string{"/2"}},
		"copied and cut (logrotate copytruncate)": {move: func(t *testing.T, path string) {
			if err := os.WriteFile(path+".1", content(t, path), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, 0); err != nil {
				t.Fatal(err)
			}
		}, old: []string{"/1"}, new: []string{"/2"}},
		"untouched, with SIGHUP": {move: func(*testing.T, string) {}, signal: true, new: []string{"/1", "/2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "access.log")
			b := NewBook(io.Discard)
			use(t, b, Streams{}, fileOutput(path))
			l := b.Listener("public")
			numbered(l, 1)
			eventually(t, "the first line", func() bool { data, _ := os.ReadFile(path); return len(data) > 0 })
			c.move(t, path)
			if c.signal {
				b.Reopen()
			} else {
				time.Sleep(lookEvery + 100*time.Millisecond)
			}
			numbered(l, 2)
			b.Close()
			if c.old != nil {
				if got, _ := paths(t, content(t, path+".1")); !slices.Equal(got, c.old) {
					t.Errorf("the old file has %v", got)
				}
			}
			if got, _ := paths(t, content(t, path)); !slices.Equal(got, c.new) {
				t.Errorf("the new file has %v", got)
			}
		})
	}
}

func rename(t *testing.T, path string) {
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
}

// TestFolderComesBack: a folder that is removed and made again.
func TestFolderComesBack(t *testing.T) {
	t.Run("H12/folder", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "logs")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "access.log")
		b := NewBook(io.Discard)
		use(t, b, Streams{}, fileOutput(path))
		l := b.Listener("public")
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		b.Reopen()
		numbered(l, 1)
		eventually(t, "an error", func() bool { return testutil.ToFloat64(b.failures.WithLabelValues("file")) > 0 })
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the line", func() bool { data, _ := os.ReadFile(path); return bytes.Contains(data, []byte(`"/1"`)) })
		b.Close()
	})
}

// TestFullDisk: a full disk costs lines, which are counted, and nothing else; no line is broken (H12).
func TestFullDisk(t *testing.T) {
	t.Run("H12/tmpfs", func(t *testing.T) {
		dir := t.TempDir()
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
			t.Skipf("a small disk cannot be mounted: %v", err)
		}
		defer syscall.Unmount(dir, syscall.MNT_DETACH)
		if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 40<<10), 0o600); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "access.log")
		b := NewBook(io.Discard)
		said := make(chan Trouble, 16)
		b.Tell(func(tr Trouble) { said <- tr })
		s := fileOutput(path)
		s.Queue = 8 << 10
		use(t, b, Streams{}, s)
		l := b.Listener("public")
		var slowest time.Duration
		n := 0
		for ; testutil.ToFloat64(b.dropped.WithLabelValues("file")) < 100 || testutil.ToFloat64(b.failures.WithLabelValues("file")) == 0; n++ {
			begin := time.Now()
			numbered(l, n)
			slowest = max(slowest, time.Since(begin))
			if n%10 == 0 {
				time.Sleep(5 * time.Millisecond)
			}
		}
		tr := <-said
		for tr.Err == nil {
			tr = <-said // of lines that a short queue lost before
		}
		t.Logf("%d records, the slowest took %v; told: %v", n, slowest, tr.Err)
		if tr.Err == nil || slowest > 5*time.Second { // who waits for room waits for good
			t.Errorf("told %v; the slowest record took %v", tr, slowest)
		}
		got, _ := paths(t, content(t, path)) // whole lines only, also now
		if len(got) == 0 {
			t.Error("nothing was written")
		}
		if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is written again", func() bool {
			select {
			case tr = <-said:
				return tr.Err == nil
			default:
				return false
			}
		})
		eventually(t, "there is room again", func() bool {
			o := (*b.outputs.Load())[0]
			o.mu.Lock()
			defer o.mu.Unlock()
			return len(o.pending) == 0
		})
		numbered(l, n)
		b.Close()
		got, others := paths(t, content(t, path))
		dropped := int(testutil.ToFloat64(b.dropped.WithLabelValues("file")))
		if len(got)+dropped != n+1 || got[len(got)-1] != fmt.Sprintf("/%d", n) {
			t.Errorf("%d lines and %d dropped of %d records, the last is %s", len(got), dropped, n+1, got[len(got)-1])
		}
		told := 0
		for _, o := range others {
			told += int(o["lines"].(float64))
		}
		if told != dropped || tr.Dropped == 0 {
			t.Errorf("%d dropped, %d told in the log, %d to the operator", dropped, told, tr.Dropped)
		}
	})
	t.Run("H12/read-only at the start", func(t *testing.T) {
		dir := t.TempDir()
		if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_RDONLY, ""); err != nil {
			t.Skipf("a read-only disk cannot be mounted: %v", err)
		}
		defer syscall.Unmount(dir, syscall.MNT_DETACH)
		path := filepath.Join(dir, "access.log")
		b := NewBook(io.Discard)
		use(t, b, Streams{}, fileOutput(path))
		numbered(b.Listener("public"), 1)
		eventually(t, "an error", func() bool { return testutil.ToFloat64(b.failures.WithLabelValues("file")) > 0 })
		if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, ""); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the line", func() bool { data, _ := os.ReadFile(path); return len(data) > 0 })
		b.Close()
	})
}

// TestRotateBySize: no file is larger than it may be, no line is lost or broken, as many are kept as should be, and nothing
// else is touched.
func TestRotateBySize(t *testing.T) {
	for _, compress := range []bool{false, true} {
		t.Run(fmt.Sprintf("compress %v", compress), func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "access.log")
			foreign := []string{"access.log.bak", "access.log.1", "access.log.20260101T000000.000Z.txt", "other.20260101T000000.000Z", "access.log.20260101T000000.000Z-x"}
			for _, name := range foreign {
				if err := os.WriteFile(filepath.Join(dir, name), []byte("mine"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			// What a run that was killed left.
			for _, name := range []string{"access.log.20260101T000000.000Z.gz.0815.tmp", "access.log.20260101T000000.000Z"} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte("{}\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s := fileOutput(path)
			s.File.Bytes, s.File.Keep, s.File.Compress = 4<<10, 100, compress
			b := NewBook(io.Discard)
			use(t, b, Streams{}, s)
			l := b.Listener("public")
			for i := range 1000 {
				numbered(l, i)
				if i%50 == 0 {
					time.Sleep(5 * time.Millisecond)
				}
			}
			rotated := func() (list []string) {
				names, _ := filepath.Glob(path + ".2*")
				for _, name := range names {
					if rotatedName.MatchString(strings.TrimPrefix(name, path+".")) && !strings.Contains(name, "20260101") {
						list = append(list, name)
					}
				}
				slices.SortFunc(list, func(a, b string) int {
					return strings.Compare(strings.TrimSuffix(a, ".gz"), strings.TrimSuffix(b, ".gz"))
				})
				return list
			}
			eventually(t, "everything is written and compressed", func() bool {
				data, _ := os.ReadFile(path)
				return bytes.Contains(data, []byte(`"/999"`)) && (!compress || !slices.ContainsFunc(rotated(), func(n string) bool { return !strings.HasSuffix(n, ".gz") }))
			})
			b.Close()
			var got []string
			list := rotated()
			for _, name := range append(list, path) {
				data := content(t, name)
				if len(data) > 4<<10 {
					t.Errorf("%s has %d bytes", name, len(data))
				}
				more, _ := paths(t, data)
				got = append(got, more...)
			}
			for i, p := range got {
				if p != fmt.Sprintf("/%d", i) {
					t.Fatalf("line %d is %s", i, p)
				}
			}
			if len(got) != 1000 || len(list) < 10 {
				t.Errorf("%d lines in %d files", len(got), len(list)+1)
			}
			for _, name := range foreign {
				if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(data) != "mine" {
					t.Errorf("%s: %q %v", name, data, err)
				}
			}
			if _, err := os.Stat(filepath.Join(dir, "access.log.20260101T000000.000Z.gz.0815.tmp")); err == nil {
				t.Error("a file left by a run that was killed is still there")
			}
		})
	}
}

func TestRotateKeeps(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "access.log")
	s := FileSettings{Path: path, Bytes: 100, Keep: 3, Compress: true}
	f, err := openFile(s)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	f.now = func() time.Time { return now }
	line := []byte(strings.Repeat("x", 79) + "\n")
	for i := range 10 {
		if i > 4 {
			now = now.Add(time.Second) // until then all rotations have one name
		}
		if n, _, err := f.write(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	names := func() (list []string) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			list = append(list, e.Name())
		}
		return list
	}
	want := []string{"access.log", "access.log.20261121T000003.000Z.gz", "access.log.20261121T000004.000Z.gz", "access.log.20261121T000005.000Z.gz"}
	eventually(t, "three are left", func() bool { return slices.Equal(names(), want) })
	f.close()
	if got := content(t, filepath.Join(dir, want[1])); !bytes.Equal(got, line) {
		t.Errorf("%q", got)
	}
	if st, err := os.Stat(filepath.Join(dir, want[1])); err != nil || st.Mode().Perm()&^0o640 != 0 {
		t.Errorf("%v %v", st.Mode(), err)
	}
}

// TestRotateWithinOneMillisecond: a name whose file has been compressed already is not given again, by the same run or a later
// one, for the next compression would replace the lines.
func TestRotateWithinOneMillisecond(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "access.log")
	now := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	n := 0
	for range 2 {
		f := &file{FileSettings: FileSettings{Path: path, Bytes: 100, Keep: 100, Compress: true}, now: func() time.Time { return now }}
		for range 5 {
			line := []byte(fmt.Sprintf("%079d\n", n))
			if done, _, err := f.write(line); done != len(line) || err != nil {
				t.Fatal(done, err)
			}
			n++
			f.tidy()
		}
		f.close()
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.SortFunc(names[1:], func(a, b string) int {
		return strings.Compare(strings.TrimSuffix(a, ".gz"), strings.TrimSuffix(b, ".gz"))
	})
	var lines []byte
	for _, name := range append(names[1:], names[0]) {
		lines = append(lines, content(t, filepath.Join(dir, name))...)
	}
	var want []byte
	for i := range n {
		want = fmt.Appendf(want, "%079d\n", i)
	}
	if !bytes.Equal(lines, want) {
		t.Errorf("files %q hold\n%s", names, lines)
	}
}

func TestRotateByAge(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "access.log")
	now := time.Date(2026, 11, 21, 23, 59, 59, 0, time.UTC)
	open := func() *file {
		f := &file{FileSettings: FileSettings{Path: path, Age: 24 * time.Hour}, now: func() time.Time { return now }}
		if err := f.open(); err != nil {
			t.Fatal(err)
		}
		return f
	}
	f := open()
	write := func(text string) {
		t.Helper()
		if _, _, err := f.write([]byte(text + "\n")); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, now, now); err != nil {
			t.Fatal(err)
		}
	}
	write("a")
	now = now.Add(time.Second)
	write("b")
	now = now.Add(23 * time.Hour)
	write("c")
	f.close()
	now = now.Add(2 * time.Hour) // the program was not there at midnight
	f = open()
	write("d")
	f.close()
	for name, want := range map[string]string{"access.log.20261122T000000.000Z": "a\n", "access.log.20261123T010000.000Z": "b\nc\n", "access.log": "d\n"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s has %q, expected %q, %v", name, got, want, err)
		}
	}
}

// TestRotateCannot: a file that cannot be renamed grows, and no line is lost.
func TestRotateCannot(t *testing.T) {
	t.Run("H12/rotation", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), strings.Repeat("n", 250)) // no room for the time in a name
		f, err := openFile(FileSettings{Path: path, Bytes: 10, Keep: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer f.close()
		for range 5 {
			if n, lost, err := f.write([]byte("12345678\n")); n != 9 || lost != 0 || err != nil {
				t.Fatal(n, lost, err)
			}
		}
		if data := content(t, path); len(data) != 45 {
			t.Errorf("%q", data)
		}
	})
}

// TestLogrotate has the program of that name rotate, where it is there.
func TestLogrotate(t *testing.T) {
	program, err := exec.LookPath("logrotate")
	if err != nil {
		t.Skip("logrotate is missing")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "access.log")
	b := NewBook(io.Discard)
	use(t, b, Streams{}, fileOutput(path))
	l := b.Listener("public")
	numbered(l, 1)
	eventually(t, "the first line", func() bool { data, _ := os.ReadFile(path); return len(data) > 0 })
	conf := filepath.Join(dir, "conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "%s {\n rotate 3\n create 0640\n}\n", path), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(program, "-f", "-s", filepath.Join(dir, "state"), conf).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	b.Reopen()
	numbered(l, 2)
	b.Close()
	one, _ := paths(t, content(t, path+".1"))
	two, _ := paths(t, content(t, path))
	if !slices.Equal(one, []string{"/1"}) || !slices.Equal(two, []string{"/2"}) {
		t.Errorf("%v %v", one, two)
	}
}
