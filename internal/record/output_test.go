package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"countersign/internal/identity"
	"countersign/internal/reason"
)

// use has a book write to the outputs that want names.
func use(t *testing.T, b *Book, streams Streams, want ...Settings) {
	t.Helper()
	p, err := b.Prepare(want, 0, streams)
	if err != nil {
		t.Fatal(err)
	}
	p.Use()
}

// numbered records a request whose path is its number.
func numbered(l *Listener, n int) {
	r := Request{}
	r.Begin(uint64(n), time.Now())
	r.Keep([]byte("GET"), []byte("a.test"), fmt.Appendf(nil, "/%d", n))
	r.Status, r.Reason = 200, reason.Completed
	l.Request(&r, "0123456789abcdef", nil)
}

// paths returns the paths of JSON request lines and fails on a line that is none. Other kinds are returned by themselves.
func paths(t *testing.T, data []byte) (list []string, others []map[string]any) {
	t.Helper()
	for line := range bytes.Lines(data) {
		var v map[string]any
		if err := json.Unmarshal(line, &v); err != nil || line[len(line)-1] != '\n' {
			t.Fatalf("not a line of JSON: %q", line)
		}
		if v["kind"] != "request" {
			others = append(others, v)
			continue
		}
		list = append(list, v["path"].(string))
	}
	return list, others
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within ten seconds: " + what)
		}
	}
}

func TestPrepareRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		s    Settings
		want string
	}{
		"no folder":       {Settings{Name: "file:x", Place: ToFile, File: FileSettings{Path: filepath.Join(dir, "none", "x.log")}}, "log output file:x: open "},
		"a folder":        {Settings{Name: "file:x", Place: ToFile, File: FileSettings{Path: dir}}, "is a directory"},
		"a device":        {Settings{Name: "file:x", Place: ToFile, File: FileSettings{Path: "/dev/null"}}, "not a regular file"},
		"no such stream":  {Settings{Name: "stderr", Place: Stderr}, "log output stderr: the program has no such stream"},
		"H13/a FIFO":      {Settings{Name: "file:x", Place: ToFile, File: FileSettings{Path: filepath.Join(dir, "fifo")}}, ""},
		"one good, a bad": {Settings{Name: "stderr", Place: Stderr}, "no such stream"},
	} {
		t.Run(name, func(t *testing.T) {
			b := NewBook(io.Discard)
			defer b.Close()
			if strings.Contains(name, "FIFO") {
				if err := exec.Command("mkfifo", c.s.File.Path).Run(); err != nil {
					t.Skip("mkfifo is missing")
				}
			}
			before := b.outputs.Load()
			done := make(chan error, 1)
			go func() {
				_, err := b.Prepare([]Settings{{Name: "stdout", Own: true}, c.s}, 0, Streams{Stdout: io.Discard})
				done <- err
			}()
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, expected %q", err, c.want)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("it waits")
			}
			if b.outputs.Load() != before {
				t.Error("the outputs changed")
			}
		})
	}
}

// TestFlood: of ends for one reason there are a thousand lines a second, the rest is counted and told in one (F13).
func TestFlood(t *testing.T) {
	t.Run("F13/10000 refusals in a second", func(t *testing.T) {
		out := &buffer{}
		b := NewBook(out)
		l := b.Listener("public")
		r := Request{}
		r.Begin(1, time.Now())
		for range 5000 {
			r.Reason = reason.RouteNotFound
			l.Request(&r, "abcd", nil)
			l.Handshake(&Handshake{Reason: reason.HelloTimeout})
		}
		r.Reason = reason.Completed
		for range 3000 {
			l.Request(&r, "abcd", nil)
		}
		lines, counted := map[string]int{}, 0
		count := func() {
			text := out.String()
			for line := range strings.Lines(text[counted:]) {
				var v struct {
					Kind, Reason string
					Lines        int
				}
				if err := json.Unmarshal([]byte(line), &v); err != nil {
					t.Fatalf("%v: %s", err, line)
				}
				if v.Kind == "suppressed" {
					lines["suppressed "+v.Reason] += v.Lines
				} else {
					lines[v.Reason]++
				}
			}
			counted = len(text)
		}
		// A flood of more than a second, on a slow machine, has more summaries than one.
		for _, code := range []string{"route_not_found", "hello_timeout"} {
			eventually(t, "the summaries of "+code, func() bool { count(); return lines[code]+lines["suppressed "+code] >= 5000 })
		}
		b.Close()
		count()
		for _, code := range []string{"route_not_found", "hello_timeout"} {
			// The second may change meanwhile, once or twice.
			if n := lines[code]; n < 1000 || n > 3000 || n+lines["suppressed "+code] != 5000 {
				t.Errorf("%s: %d lines, %d suppressed", code, n, lines["suppressed "+code])
			}
		}
		if lines["completed"] != 3000 {
			t.Errorf("%d lines about good ends, expected all 3000", lines["completed"])
		}
		if n := testutil.ToFloat64(l.requests[reason.RouteNotFound]); n != 5000 {
			t.Errorf("counted %v, expected all", n)
		}
		if n := testutil.ToFloat64(b.suppressed.WithLabelValues("route_not_found")); int(n) != lines["suppressed route_not_found"] {
			t.Errorf("countersign_log_suppressed_total is %v", n)
		}
	})
}

// TestOutputsTakeWhatTheyWant: kinds, formats and filters of several outputs at a time.
func TestOutputsTakeWhatTheyWant(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, s Settings) Settings {
		s.Name, s.Place, s.File.Path = "file:"+name, ToFile, filepath.Join(dir, name)
		return s
	}
	b := NewBook(io.Discard)
	l := b.Listener("public")
	if l.More() {
		t.Error("JSON wants more than it shows")
	}
	use(t, b, Streams{Stdout: io.Discard}, file("json", Settings{}), file("requests", Settings{NoConnections: true}), file("connections", Settings{NoRequests: true}),
		file("errors", Settings{Own: true, Which: Errors}), file("refused", Settings{Own: true, Which: Refused}), file("none", Settings{Own: true, Which: None}),
		file("access", Settings{Format: ALBAccess}), file("connection", Settings{Format: ALBConnection}), file("combined", Settings{Format: Combined}))
	if !l.More() {
		t.Error("the formats of others show user agents")
	}
	r := Request{}
	for i, c := range []struct {
		status int
		why    reason.Reason
	}{{200, reason.Completed}, {404, reason.Completed}, {404, reason.RouteNotFound}} {
		r.Begin(uint64(i), time.Now())
		r.Status, r.Reason = c.status, c.why
		l.Request(&r, "abcd", nil)
	}
	l.Handshake(&Handshake{Reason: reason.Completed})
	l.Handshake(&Handshake{Reason: reason.ClientCertExpired})
	l.Handshake(&Handshake{Kind: Tunnel, Reason: reason.Completed})
	b.Close()
	for name, want := range map[string]int{"json": 6, "requests": 3, "connections": 3, "errors": 3, "refused": 2, "none": 1, "access": 3, "connection": 2, "combined": 3} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if n := bytes.Count(data, []byte{'\n'}); err != nil || n != want {
			t.Errorf("%s: %d lines, expected %d, %v\n%s", name, n, want, err, data)
		}
	}
}

// TestPlan: what stays the same goes on, what goes writes what waits, and a plan that is dropped changes nothing.
func TestPlan(t *testing.T) {
	out, other := &buffer{}, &buffer{}
	b := NewBook(out)
	l := b.Listener("public")
	streams := Streams{Stdout: out, Stderr: other}
	first := (*b.outputs.Load())[0]
	use(t, b, streams)
	if o := (*b.outputs.Load())[0]; o != first {
		t.Error("the output that is there without any was replaced by an equal one")
	}
	numbered(l, 1)
	use(t, b, streams, Settings{Name: "stdout"}, Settings{Name: "stderr", Place: Stderr})
	if o := (*b.outputs.Load())[0]; o != first {
		t.Error("an output that did not change was replaced")
	}
	numbered(l, 2)
	p, err := b.Prepare([]Settings{{Name: "stdout", NoRequests: true}}, 0, streams)
	if err != nil {
		t.Fatal(err)
	}
	p.Drop()
	numbered(l, 3)
	use(t, b, streams, Settings{Name: "stderr", Place: Stderr})
	numbered(l, 4)
	eventually(t, "the output that went has written", func() bool { return strings.Count(out.String(), "\n") == 3 })
	b.Close()
	got, _ := paths(t, []byte(out.String()))
	also, _ := paths(t, []byte(other.String()))
	if !slices.Equal(got, []string{"/1", "/2", "/3"}) || !slices.Equal(also, []string{"/2", "/3", "/4"}) {
		t.Errorf("stdout %v, stderr %v", got, also)
	}
	select {
	case <-first.done:
	case <-time.After(10 * time.Second):
		t.Error("its goroutine is still there")
	}
}

// TestStuckReader: a program that does not read our output costs nobody time, memory is bounded, what is lost is counted and
// told where it is missing, and the lines are whole (H13).
func TestStuckReader(t *testing.T) {
	t.Run("H13/sleep", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		cmd := exec.Command("sleep", "60")
		cmd.Stdin = r
		if err := cmd.Start(); err != nil {
			t.Skip("sleep is missing")
		}
		defer cmd.Process.Kill()
		free, stuck := NewBook(io.Discard), NewBook(w)
		defer free.Close()
		const records = 40000 // more than twice what may wait
		l, o := stuck.Listener("public"), (*stuck.outputs.Load())[0]
		fast, slow := p99(free.Listener("public"), records), p99(l, records)
		dropped := testutil.ToFloat64(stuck.dropped.WithLabelValues("stdout"))
		t.Logf("p99 of a record: %v with a reader, %v without; %v of %d lines dropped", fast, slow, dropped, records)
		if dropped == 0 || slow > fast+time.Millisecond {
			t.Errorf("p99 %v instead of %v, %v dropped", slow, fast, dropped)
		}
		// The reader wakes up: what waited comes, whole, and the gap is told.
		read := make(chan []byte)
		go func() {
			data, _ := io.ReadAll(r)
			read <- data
		}()
		eventually(t, "the writer is through", func() bool {
			o.mu.Lock()
			defer o.mu.Unlock()
			return len(o.pending) == 0 && o.spare != nil
		})
		stuck.Close()
		w.Close()
		got, others := paths(t, <-read)
		told := 0.0 // in one line, or in two where the writer came late to its first lines
		for _, o := range others {
			if lines, ok := o["lines"].(float64); ok && o["kind"] == "dropped" {
				told += lines
			}
		}
		if len(others) < 1 || len(others) > 2 || told != dropped || len(got)+int(dropped) != records {
			t.Errorf("%d lines, %v dropped, others: %v", len(got), dropped, others)
		}
	})
	t.Run("H13/reader has gone", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		r.Close()
		var told atomic.Int32
		b := NewBook(w)
		b.Tell(func(tr Trouble) {
			if tr.Err != nil && tr.Output == "stdout" {
				told.Add(1)
			}
		})
		l := b.Listener("public")
		for i := range 100 {
			numbered(l, i)
		}
		eventually(t, "three attempts", func() bool { return testutil.ToFloat64(b.failures.WithLabelValues("stdout")) >= 3 })
		begin := time.Now()
		b.Close()
		if took := time.Since(begin); took > 10*time.Second { // lines that nobody takes would be tried for ever
			t.Errorf("Close took %v", took)
		}
		eventually(t, "the lines are counted", func() bool { return testutil.ToFloat64(b.dropped.WithLabelValues("stdout")) == 100 })
		if told.Load() != 1 || testutil.ToFloat64(b.dropped.WithLabelValues("stdout")) != 100 {
			t.Errorf("told %d times, %v dropped", told.Load(), testutil.ToFloat64(b.dropped.WithLabelValues("stdout")))
		}
	})
}

// p99 is the time that the slowest but a hundredth of n records take their callers.
func p99(l *Listener, n int) time.Duration {
	all := make([]time.Duration, n)
	r := Request{}
	fragment := Fragment("public", "127.0.0.1:1", identity.Client{})
	for i := range all {
		r.Begin(uint64(i), time.Now())
		r.Keep([]byte("GET"), []byte("a.test"), []byte("/"))
		r.Status, r.Reason = 200, reason.Completed
		begin := time.Now()
		l.Request(&r, "0123456789abcdef", fragment)
		all[i] = time.Since(begin)
	}
	slices.Sort(all)
	return all[n*99/100]
}

// failing is a writer that takes a part of what it is given and fails, as often as it is told to.
type failing struct {
	buffer
	times atomic.Int32
}

func (f *failing) Write(p []byte) (int, error) {
	if f.times.Add(-1) >= 0 {
		n, _ := f.buffer.Write(p[:len(p)/3])
		return n, errors.New("not now")
	}
	return f.buffer.Write(p)
}

// TestStreamGoesOn: after a failure in the middle of a line the rest of it comes first.
func TestStreamGoesOn(t *testing.T) {
	out := &failing{}
	out.times.Store(2)
	b := NewBook(out)
	l := b.Listener("public")
	for i := range 50 {
		numbered(l, i)
	}
	eventually(t, "all lines", func() bool { return strings.Count(out.String(), "\n") == 50 })
	b.Close()
	got, _ := paths(t, []byte(out.String()))
	for i, p := range got {
		if p != fmt.Sprintf("/%d", i) {
			t.Fatalf("line %d is %s", i, p)
		}
	}
	if n := testutil.ToFloat64(b.dropped.WithLabelValues("stdout")); n != 0 {
		t.Errorf("%v dropped", n)
	}
}

// TestPanicInALine: a bug in writing one record costs that record.
func TestPanicInALine(t *testing.T) {
	t.Run("F16/line", func(t *testing.T) {
		out := &buffer{}
		b := NewBook(out)
		o := (*b.outputs.Load())[0]
		func() {
			defer func() { _ = recover() }()
			o.line(func([]byte) []byte { panic("bug") })
		}()
		numbered(b.Listener("public"), 1)
		b.Close()
		if got, _ := paths(t, []byte(out.String())); len(got) != 1 {
			t.Errorf("%q", out.String())
		}
	})
	t.Run("F16/writer", func(t *testing.T) {
		b := NewBook(&panicking{})
		l := b.Listener("public")
		numbered(l, 1)
		eventually(t, "the panic is counted", func() bool { return testutil.ToFloat64(b.panics) == 1 })
		numbered(l, 2)
		b.Close()
	})
}

type panicking struct {
	buffer
	once atomic.Bool
}

func (p *panicking) Write(b []byte) (int, error) {
	if !p.once.Swap(true) {
		panic("bug")
	}
	return p.buffer.Write(b)
}
