package top

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func sample(t testing.TB, name string, at time.Time) *Sample {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Parse(bytes.NewReader(text), at)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// golden compares lines with a file, each of which must fit.
func golden(t *testing.T, name string, lines []string, width, height int) {
	t.Helper()
	if len(lines) > height {
		t.Errorf("%s: %d lines, expected at most %d", name, len(lines), height)
	}
	for _, l := range lines {
		if len(l) > width {
			t.Errorf("%s: %d characters: %s", name, len(l), l)
		}
	}
	got := strings.Join(lines, "\n") + "\n"
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, _ := os.ReadFile(file)
	if got != string(want) {
		t.Errorf("%s is not what it was; look, and run with -update\n%s", name, got)
	}
}

func press(u *ui, keys ...string) {
	for _, key := range keys {
		k := tea.Key{}
		switch key {
		case "tab":
			k.Code = tea.KeyTab
		case "esc":
			k.Code = tea.KeyEscape
		case "enter":
			k.Code = tea.KeyEnter
		case "backspace":
			k.Code = tea.KeyBackspace
		case "down":
			k.Code = tea.KeyDown
		case "up":
			k.Code = tea.KeyUp
		default:
			k.Code, k.Text = rune(key[0]), key
		}
		u.Update(tea.KeyPressMsg(k))
	}
}

func newUI(t testing.TB, at string) *ui {
	t.Helper()
	src, err := NewSource(at)
	if err != nil {
		t.Fatal(err)
	}
	return newModel(t.Context(), Options{Source: src, Interval: 2 * time.Second})
}

func TestScreens(t *testing.T) {
	u := newUI(t, "127.0.0.1:9901")
	shows := func(name string) { t.Helper(); golden(t, name, u.text(false), u.screen.Width, u.screen.Height) }
	shows("begin")
	u.Update(came{err: fmt.Errorf("cannot reach http://127.0.0.1:9901: connection \x1b[31m refused")})
	shows("unreachable")
	u.Update(came{sample: sample(t, "before.prom", noon)})
	shows("first")
	fresh := []string{"2026-11-21T11:59:59Z  0123456789abcdef       client_cert_expired          192.0.2.7:1234         api.test  CN=carol", "hostile \x1b[2J\x9b\u202e\n" + strings.Repeat("x", 500)}
	for i := range 30 {
		fresh = append(fresh, fmt.Sprintf("line %d", i))
	}
	u.Update(came{sample: sample(t, "after.prom", noon.Add(2*time.Second)), freshest: fresh})
	shows("overview")
	for _, name := range []string{"refusals", "listeners", "upstreams", "targets", "freshest"} {
		press(u, "tab")
		shows(name)
	}
	press(u, "down", "down", "down", "up")
	shows("freshest-moved")
	press(u, "tab", "s", "s")
	shows("by-name")
	press(u, "s", "f", "E", "x", "p", "i", "r", "z", "backspace")
	shows("typing")
	press(u, "enter")
	shows("filtered")
	press(u, "f", "q", "esc", "p")
	shows("paused")
	press(u, "esc", "?")
	shows("help")
	press(u, "x")
	u.Update(came{turn: u.turn, err: fmt.Errorf("cannot reach http://127.0.0.1:9901: connection refused")})
	shows("lost")
	u.Update(tea.WindowSizeMsg{Width: 40, Height: 8})
	shows("small")
	u.Update(tea.WindowSizeMsg{Width: 132, Height: 50})
	shows("large")
	for _, size := range [][2]int{{0, 0}, {1, 1}, {3, 2}, {80, 5}, {10, 100}} {
		u.Update(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
		if lines := u.text(true); size[1] > 0 && len(lines) > size[1] {
			t.Errorf("%v: %d lines", size, len(lines))
		}
	}
}

// TestKeys are those that do more than change what is shown.
func TestKeys(t *testing.T) {
	u := newUI(t, "127.0.0.1:9901")
	quits := func(key tea.Key) bool {
		_, cmd := u.Update(tea.KeyPressMsg(key))
		if cmd == nil {
			return false
		}
		_, ok := cmd().(tea.QuitMsg)
		return ok
	}
	if quits(tea.Key{Code: 'x', Text: "x"}) || !quits(tea.Key{Code: 'q', Text: "q"}) || !quits(tea.Key{Code: 'c', Mod: tea.ModCtrl}) {
		t.Error("the wrong keys quit")
	}
	press(u, "f")
	if quits(tea.Key{Code: 'q', Text: "q"}) || u.screen.Filter != "q" {
		t.Error("q in a filter quits")
	}
	for range 100 {
		press(u, "a")
	}
	u.Update(tea.KeyPressMsg(tea.Key{Text: "\x1b"}))
	u.Update(tea.KeyPressMsg(tea.Key{Text: "é"}))
	if len(u.screen.Filter) != maxFilter || strings.Contains(u.screen.Filter, "\x1b") {
		t.Errorf("%q", u.screen.Filter)
	}
	press(u, "enter")
	t.Run("while paused nothing is read", func(t *testing.T) {
		press(u, "p")
		if _, cmd := u.Update(tick{u.turn}); cmd != nil {
			t.Error("it is")
		}
		before := u.turn
		press(u, "p")
		if _, cmd := u.Update(tick{before}); cmd != nil || u.turn == before {
			t.Error("an old tick makes a second chain of them")
		}
		u.Update(came{turn: before, err: io.EOF})
		if strings.Contains(u.screen.trouble, "EOF") {
			t.Error("an old answer counts")
		}
		if _, cmd := u.Update(tick{u.turn}); cmd == nil {
			t.Error("it does not go on")
		}
	})
	if v := u.View(); !v.AltScreen || v.Content == "" {
		t.Errorf("%+v", v)
	}
}

func TestCompare(t *testing.T) {
	before, after := sample(t, "before.prom", noon), sample(t, "after.prom", noon.Add(2*time.Second))
	near := func(name string, got *float64, want float64) {
		t.Helper()
		if got == nil || *got < want*0.999 || *got > want*1.001 {
			t.Errorf("%s: %v, expected %v", name, show(got), want)
		}
	}
	s := Compare("x", before, after)
	near("handshakes", s.Handshakes.Rate, 123.5)
	near("refused", s.Refused.Rate, 3.5)
	near("requests", s.Requests.Rate, 5406)
	near("failed", s.Failed.Rate, 6)
	near("connections", s.Connections, 131)
	near("p50", s.Request.P50, 0.001+0.009*0.5406)
	near("p99", s.Request.P99, 0.01+0.09*(0.99*10812-10000)/710)
	if s.Handshake.P50 != nil || s.Seconds != 2 || s.Restarted || s.Freshest != nil {
		t.Errorf("%+v", s)
	}
	t.Run("one sample has no rates", func(t *testing.T) {
		s := Compare("x", nil, after)
		near("total", s.Handshakes.Total, 1312)
		if s.Handshakes.Rate != nil || s.Seconds != 0 || s.Request.P99 == nil {
			t.Errorf("%+v", s)
		}
	})
	t.Run("what is not told", func(t *testing.T) {
		none, err := Parse(strings.NewReader("# nothing\n"), noon)
		if err != nil {
			t.Fatal(err)
		}
		s := Compare("x", none, none)
		if s.Handshakes.Total != nil || s.Uptime != nil || s.Connections != nil || s.Request.P50 != nil || len(s.Reasons) != 0 {
			t.Errorf("%+v", s)
		}
		var out bytes.Buffer
		if err := Print(&out, s, Screen{}); err != nil || !strings.Contains(out.String(), "handshakes -/s (refused -, resumed -)  connections -\n") {
			t.Errorf("%v %s", err, &out)
		}
	})
	t.Run("a restart", func(t *testing.T) {
		text, _ := os.ReadFile("testdata/before.prom")
		again, err := Parse(bytes.NewReader(bytes.Replace(text, []byte("1.7900000e+09"), []byte("1.7900001e+09"), 1)), noon.Add(4*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if s := Compare("x", after, again); !s.Restarted || s.Handshakes.Rate != nil {
			t.Errorf("%+v", s)
		}
	})
	t.Run("a counter that begins anew", func(t *testing.T) {
		near("rate", Compare("x", sample(t, "after.prom", noon), sample(t, "before.prom", noon.Add(time.Second))).Handshakes.Rate, 1010) // the 55 that are as they were are not new
	})
	t.Run("a listener that is gone", func(t *testing.T) {
		parse := func(text string, at time.Time) *Sample {
			s, err := Parse(strings.NewReader("# TYPE countersign_handshake_duration_seconds histogram\n"+text), at)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		const stays = `countersign_handshakes_total{listener="stays",reason="completed"} %d
countersign_handshake_duration_seconds_bucket{listener="stays",le="0.1"} %[1]d
countersign_handshake_duration_seconds_bucket{listener="stays",le="+Inf"} %[1]d
`
		both := parse(fmt.Sprintf(stays, 10)+strings.ReplaceAll(fmt.Sprintf(stays, 1_000_000), `"stays"`, `"goes"`), noon)
		one := parse(fmt.Sprintf(stays, 14), noon.Add(2*time.Second))
		s := Compare("x", both, one)
		near("rate", s.Handshakes.Rate, 2)
		near("total", s.Handshakes.Total, 14)
		near("p50", s.Handshake.P50, 0.05)
		near("rate of one that comes", Compare("x", one, parse(fmt.Sprintf(stays, 14)+strings.ReplaceAll(fmt.Sprintf(stays, 6), `"stays"`, `"comes"`), noon.Add(4*time.Second))).Handshakes.Rate, 3)
	})
	t.Run("a clock that stands still or goes back", func(t *testing.T) {
		if s := Compare("x", before, sample(t, "after.prom", noon)); s.Handshakes.Rate != nil || s.Seconds != 0 {
			t.Errorf("%+v", s)
		}
		if s := Compare("x", before, sample(t, "after.prom", noon.Add(-time.Hour))); s.Handshakes.Rate != nil || s.Seconds != 0 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("numbers that are none", func(t *testing.T) {
		odd, err := Parse(strings.NewReader("countersign_connections NaN\ncountersign_handshakes_total +Inf\ncountersign_request_duration_seconds_bucket{le=\"NaN\"} 1\nprocess_start_time_seconds -1e300\n"), noon)
		if err != nil {
			t.Fatal(err)
		}
		s := Compare("x", odd, odd)
		if s.Connections != nil || s.Handshakes.Total != nil {
			t.Errorf("%+v", s)
		}
		if err := PrintJSON(io.Discard, s); err != nil {
			t.Error(err)
		}
	})
}

func show(v *float64) any {
	if v == nil {
		return nil
	}
	return *v
}

func TestHostile(t *testing.T) {
	t.Run("F13/what metrics and the journal say cannot act on the terminal", testHostile)
}

func testHostile(t *testing.T) {
	const text = "countersign_connections{listener=\"a\x1b[2J\u202e\x7f\\n\u009b\"} 1\ncountersign_handshakes_total{listener=\"x\",reason=\"\x1b]0;t\x07\"} 5\n" +
		"countersign_condition{code=\"\x1b[31m\"} 1\ncountersign_upstream_connections{upstream=\"\u2028\",target=\"\U000e0041\"} 1\n"
	m, err := Parse(strings.NewReader(text), noon)
	if err != nil {
		t.Fatal(err)
	}
	s := Compare("http://x\x1b[m", nil, m)
	s.Freshest = []string{"\x1b[2J \u202e"}
	var out bytes.Buffer
	for name, f := range map[string]func() error{"text": func() error { return Print(&out, s, Screen{}) }, "json": func() error { return PrintJSON(&out, s) }} {
		out.Reset()
		if err := f(); err != nil {
			t.Fatal(err)
		}
		for _, c := range out.Bytes() {
			if c != '\n' && (c < ' ' || c >= 0x7f) {
				t.Fatalf("%s has %q: %q", name, c, &out)
			}
		}
	}
	out.Reset()
	if err := PrintJSON(&out, s); err != nil {
		t.Fatal(err)
	}
	var back Status
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back.Listeners[0].Name != s.Listeners[0].Name || back.Targets[0].Target != "\U000e0041" {
		t.Errorf("%v %+v", err, back)
	}
}

func TestSource(t *testing.T) {
	for _, at := range []string{"", "nowhere", "127.0.0.1:0", "ftp://127.0.0.1:1", "http://", "http://a:b@127.0.0.1:1", "::1"} {
		if s, err := NewSource(at); err == nil || !strings.Contains(err.Error(), "expected http://HOST:PORT") {
			t.Errorf("%q: %v %v", at, s, err)
		}
	}
	for at, want := range map[string]string{"127.0.0.1:9901": "http://127.0.0.1:9901/metrics", ":9901": "http://127.0.0.1:9901/metrics", "0.0.0.0:1": "http://127.0.0.1:1/metrics", "[::]:1": "http://[::1]:1/metrics",
		"http://ops.test:1": "http://ops.test:1/metrics", "https://ops.test/m": "https://ops.test/m", "unix:/run/ops": "http://ops/metrics"} {
		if s, err := NewSource(at); err != nil || s.url != want {
			t.Errorf("%q: %v %v", at, s, err)
		}
	}
	serve := func(f http.HandlerFunc) *Source {
		server := httptest.NewServer(f)
		t.Cleanup(server.Close)
		s, err := NewSource(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	t.Run("refusals", func(t *testing.T) {
		for name, row := range map[string]struct {
			f    http.HandlerFunc
			want string
		}{
			"another status": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, "expected status 200, found 404"},
			"a redirect":     {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }, "expected status 200, found 302"},
			"no metrics":     {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>\x1b[2J") }, "expected metrics in text format"},
		} {
			if _, err := serve(row.f).Read(t.Context()); err == nil || !strings.Contains(err.Error(), row.want) || strings.Contains(err.Error(), "\x1b") {
				t.Errorf("%s: %v", name, err)
			}
		}
		s, err := NewSource("127.0.0.1:1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "cannot reach http://127.0.0.1:1: ") {
			t.Error(err)
		}
	})
	t.Run("without end", func(t *testing.T) {
		s := serve(func(w http.ResponseWriter, r *http.Request) {
			line := []byte(strings.Repeat("# "+strings.Repeat("x", 1000)+"\n", 1000))
			for n := 0; n < 4*maxMetrics; n += len(line) {
				if _, err := w.Write(line); err != nil {
					return
				}
			}
		})
		if _, err := s.Read(t.Context()); err != nil && !strings.Contains(err.Error(), "metrics") {
			t.Error(err)
		}
	})
	t.Run("over a Unix socket", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "ops")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		n := 0.0
		go func() {
			_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				n += 10
				fmt.Fprintf(w, "countersign_requests_total{listener=\"a\",reason=\"completed\"} %v\n", n)
			}))
		}()
		s, err := NewSource("unix:" + path)
		if err != nil {
			t.Fatal(err)
		}
		st, err := s.Once(t.Context(), 20*time.Millisecond)
		if err != nil || st.Requests.Rate == nil || *st.Requests.Rate <= 0 || *st.Requests.Total != 20 {
			t.Errorf("%v %+v", err, st)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Once(ctx, time.Hour); err == nil {
			t.Error("it waits although nobody does")
		}
	})
}

// TestRun shows the program on a terminal that is a pair of pipes.
func TestRun(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, "testdata/before.prom")
	}))
	defer server.Close()
	src, err := NewSource(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	in, keys := io.Pipe()
	shown := make(chan struct{}, 1)
	out := &screenWatch{want: "client_cert_missing", seen: shown}
	ended := make(chan error, 1)
	go func() {
		ended <- Run(t.Context(), Options{Source: src, Interval: 100 * time.Millisecond, Input: in, Output: out})
	}()
	select {
	case <-shown:
		_, _ = keys.Write([]byte("q"))
	case err := <-ended:
		t.Fatalf("it ended before the first picture: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatalf("no picture: %q", out.text())
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("q does not end it")
	}
}
