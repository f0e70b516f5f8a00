package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"log"
	"math"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/template"
	"time"
)

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want spread
	}{
		{nil, spread{}},
		{[]float64{3}, spread{3, 3, 3}},
		{[]float64{5, 1, 3}, spread{3, 1, 5}},
		{[]float64{4, 1, 2, 9}, spread{3, 1, 9}},
	} {
		in := slices.Clone(c.in)
		if got := spreadOf(c.in); got != c.want {
			t.Errorf("spreadOf(%v) = %v; want %v", c.in, got, c.want)
		}
		if !slices.Equal(in, c.in) {
			t.Errorf("spreadOf changed the order of the rounds: %v", c.in)
		}
	}
}

// TestRatios: the median of the ratios, not the ratio of the medians.
func TestRatios(t *testing.T) {
	got := ratios([]float64{10, 40, 30, 1, math.NaN()}, []float64{20, 40, 10, 0, 1})
	if want := []float64{0.5, 1, 3}; !slices.Equal(got, want) {
		t.Errorf("got %v; want %v", got, want)
	}
}

func TestPercentile(t *testing.T) {
	var all []time.Duration
	for i := range 200 {
		all = append(all, time.Duration(i+1)*time.Millisecond)
	}
	for p, want := range map[int]float64{50: 100, 99: 198, 100: 200, 0: 1} {
		if got := percentile(all, p); got != want {
			t.Errorf("percentile %d is %v; want %v", p, got, want)
		}
	}
	if got := percentile(nil, 99); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

// sampleReport has a peer that goals speak of, an older one that is quicker, and one that failed.
func sampleReport() *report {
	r := &report{Date: "2026-11-22 01:02 UTC", Machine: machine{CPU: `a <"b"> & c`, Cores: 2, Memory: "7.8 GiB"}, Targets: []*target{
		{Name: "countersign", Version: "abc", TLS: "go1.26 crypto/tls"}, {Name: "nginx-1.30", Version: "1.30.6", TLS: "OpenSSL 3.6.5"}}, Results: []*result{
		{Name: "x", Title: "work <1>", Of: "CPU µs", Unit: "request", Goal: 0.5, Cells: []*cell{
			{Target: "countersign", Rounds: []float64{10, 12, 11}},
			{Target: "haproxy-3.2", Rounds: []float64{20, 20, 44}, Repeated: 2, modern: true},
			{Target: "nginx-1.30", Rounds: []float64{30, 30, 30}, modern: true},
			{Target: "nginx-1.22", Rounds: []float64{5, 5, 5}},
			{Target: "haproxy-2.6", Problem: "it did not start"},
		}},
		{Name: "y", Title: "work 2", Goal: 1, Cells: []*cell{
			{Target: "countersign", Rounds: []float64{9}},
			{Target: "haproxy-2.6", Rounds: []float64{1}},
		}},
		{Name: "z", Title: "work 3", Goal: 1, Cells: []*cell{{Target: "countersign", Problem: "it ended"}, {Target: "nginx-1.30", Rounds: []float64{1}, modern: true}}},
	}}
	r.Setting.Rounds = 3
	for _, l := range r.Results {
		l.judge()
	}
	return r
}

func TestJudge(t *testing.T) {
	r := sampleReport()
	x := r.Results[0]
	if x.Better != "haproxy-3.2" || x.Ratio.Median != 0.5 || x.Met == nil || !*x.Met {
		t.Errorf("better peer %s, ratio %v, goal %s; want haproxy-3.2, 0.5, met", x.Better, x.Ratio, x.verdict())
	}
	if y := r.Results[1]; y.Met != nil || y.verdict() != "1.00, OPEN" {
		t.Errorf("without a newer peer: goal %s; want it to be left open", y.verdict())
	}
	if z := r.Results[2]; z.Ratio != nil || z.Met != nil {
		t.Errorf("without a value of ours: ratio %v, goal %s", z.Ratio, z.verdict())
	}
	// Which of the two is the better is not known from one of them.
	for name, nginx := range map[string][]*cell{
		"nginx of a newer Debian":       {},
		"nginx-1.30 (it did not start)": {{Target: "nginx-1.30", Problem: "it did not start", modern: true}, {Target: "nginx-1.22", Rounds: []float64{5}}},
		"":                              {{Target: "nginx-1.30", Rounds: []float64{30}, modern: true}},
	} {
		r := &result{Title: "work", Goal: 0.5, Cells: append([]*cell{{Target: "countersign", Rounds: []float64{10}},
			{Target: "haproxy-3.2", Rounds: []float64{20}, modern: true}}, nginx...)}
		var lines bytes.Buffer
		r.judge()
		(&report{Results: []*result{r}}).missed(&lines)
		if r.Better != "haproxy-3.2" || (r.Met != nil) != (name == "") || !strings.Contains(lines.String(), name) || strings.Contains(lines.String(), "OPEN") != (name != "") {
			t.Errorf("nginx %q: better %s, goal %s: %s", name, r.Better, r.verdict(), &lines)
		}
	}
	beside := sinkLines(&workload{lines: []line{{"s", "sinks", "CPU", "unit", 1.1}}})[0]
	beside.Cells[0].Rounds, beside.Cells[1].Rounds = []float64{10}, []float64{10}
	if beside.judge(); beside.Met == nil || !*beside.Met {
		t.Errorf("sinks have no peer: %s, lacks %q", beside.verdict(), beside.Lacks)
	}
	if beside.Cells[1].Rounds = nil; true {
		beside.Met = nil
		if beside.judge(); beside.Met != nil || !slices.Equal(beside.Lacks, []string{sinksHealthy}) {
			t.Errorf("sinks without %s: %s, lacks %q", sinksHealthy, beside.verdict(), beside.Lacks)
		}
	}
}

func TestTable(t *testing.T) {
	var w bytes.Buffer
	r := sampleReport()
	r.Setting.GOGC, r.Setting.MemoryLimit = "400", "7000 MiB"
	r.print(&w)
	begins := "2026-11-22 01:02 UTC: a <\"b\"> & c, 2 cores, 7.8 GiB, Linux ; load  before,  after\n  countersign: abc, go1.26 crypto/tls\n  nginx-1.30: 1.30.6, OpenSSL 3.6.5\n"
	if got := strings.TrimSpace(w.String()); !strings.HasPrefix(got, begins) {
		t.Errorf("the table does not begin with date, machine and versions:\n%.400s", got)
	}
	for _, want := range []string{"work <1>", "it did not start", "0.500 (0.250-0.600)", "0.50, met", "1.00, OPEN", "2 rounds repeated",
		"countersign with GOGC=400, memory limit 7000 MiB"} {
		if !strings.Contains(w.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, &w)
		}
	}
}

func TestChart(t *testing.T) {
	svg := chart(sampleReport())
	d := xml.NewDecoder(bytes.NewReader(svg))
	rects := 0
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not XML: %v\n%s", err, svg)
		}
		if e, ok := tok.(xml.StartElement); ok && e.Name.Local == "rect" {
			rects++
			for _, a := range e.Attr {
				if (a.Name.Local == "width" || a.Name.Local == "height") && strings.HasPrefix(a.Value, "-") {
					t.Errorf("a bar of length %s", a.Value)
				}
			}
		}
	}
	if rects != 1+4+2 {
		t.Errorf("%d rectangles; want the background, four bars and two", rects)
	}
	if !bytes.Contains(svg, []byte("bar cut")) {
		t.Error("a bar nine times as long as the peer's does not say that it was cut")
	}
	for _, want := range []string{"2026-11-22 01:02 UTC", "7.8 GiB", "nginx-1.30: 1.30.6, OpenSSL 3.6.5"} {
		if !bytes.Contains(svg, []byte(want)) {
			t.Errorf("the chart lacks %q", want)
		}
	}
}

// TestTemplates fills in every configuration in every kind, and looks for what makes it one of mutual TLS.
func TestTemplates(t *testing.T) {
	render := func(name string, f filling) string {
		t.Helper()
		tmpl, err := template.New(name).Option("missingkey=error").ParseFS(templates, "peers/"+name)
		if err != nil {
			t.Fatal(err)
		}
		var w bytes.Buffer
		if err := tmpl.Execute(&w, f); err != nil {
			t.Fatalf("%s, %s: %v", name, f.Kind, err)
		}
		return w.String()
	}
	files, err := templates.ReadDir("peers")
	if err != nil || len(files) < 9 {
		t.Fatalf("%d templates, %v", len(files), err)
	}
	for _, file := range files {
		for _, kind := range []string{"main", "crl", "many", "routes", "sinks", "no-sinks"} {
			for _, on := range []bool{false, true} {
				f := filling{Kind: kind, Host: host, Log: on, HasStream: on, H2Directive: on, Names: []string{manyName(1)}, Parts: []string{"p"},
					addr: map[string]string{"https": "127.0.0.1:4443"}}
				if text := render(file.Name(), f); text == "" || strings.Contains(text, "<no value>") {
					t.Errorf("%s, %s: %q", file.Name(), kind, text)
				}
			}
		}
	}
	routes := filling{Kind: "routes", Host: host, H2Directive: true, Names: []string{routeHost(0), routeHost(1)}, Routes: []int{0, 1, 2},
		addr: map[string]string{}}
	for name, want := range map[string]string{"countersign-routes.yaml.tmpl": "match: {path: /app2/*}, upstream: app2", "haproxy.map.tmpl": "/app2/ app2",
		"nginx.conf.tmpl": "location /app2/ { proxy_pass http://app2; }"} {
		if text := render(name, routes); strings.Count(text, want) != 2 {
			t.Errorf("%s has %q %d times; expected it for each of two hosts:\n%s", name, want, strings.Count(text, want), text)
		}
	}
	main := filling{Kind: "main", Host: host, addr: map[string]string{"https": "127.0.0.1:4443", "bare": "127.0.0.1:4444"}}
	for name, want := range map[string]string{"Caddyfile.tmpl": "mode require_and_verify", "traefik-routes.yaml.tmpl": "clientAuthType: RequireAndVerifyClientCert",
		"traefik.yaml.tmpl": "address: 127.0.0.1:4443", "nginx.conf.tmpl": "listen 127.0.0.1:4443 ssl http2;", "haproxy.cfg.tmpl": "alpn h2,http/1.1"} {
		if text := render(name, main); !strings.Contains(text, want) {
			t.Errorf("%s lacks %q:\n%s", name, want, text)
		}
	}
	for line := range strings.Lines(render("haproxy.cfg.tmpl", main)) {
		if strings.Contains(line, " ssl crt ") && !strings.Contains(line, "verify required") {
			t.Errorf("HAProxy lets everybody in: %s", line)
		}
	}
	main.H2Directive = true
	if text := render("nginx.conf.tmpl", main); !strings.Contains(text, "http2 on;") || strings.Contains(text, "ssl http2") {
		t.Errorf("nginx of today takes http2 as a directive:\n%s", text)
	}
}

// TestGoals: the goals are those of issue 6 and, for sinks, issue 7, and what has none is known to have none.
func TestGoals(t *testing.T) {
	want := map[string]float64{
		"handshake": 0.50, "handshake-cold": 0.70, "resumed": 0.75, "resumed-tls12": 0.75, "keepalive": 0.75, "keepalive-16k": 0.80, "http2": 0.70,
		"download": 1, "upload": 1, "passthrough": 1, "handshake-crl": 0.02, "idle": 1, "idle-http2": 0, "start-many": 0.5, "reload-many": 0.1, "handshake-rsa": 1.30,
		"handshake-mlkem": 0, "keepalive-bare": 0, "tls": 0, "routes": 0, "replace-many": 0, "memory-many": 0,
		"sinks": 1.1, "sinks-request": 1.1, "sinks-handshake": 0,
	}
	for _, w := range (&bench{revoked: 1_000_000, hosts: 10_000}).workloads() {
		if w.choosing != (w.name() == "handshake-rsa") {
			t.Errorf("%s says of the ECDSA certificate: %t", w.name(), w.choosing)
		}
		for _, l := range w.lines {
			goal, known := want[l.name]
			if !known || goal != l.goal {
				t.Errorf("%s has the goal %.2f; expected %.2f (known: %t)", l.name, l.goal, goal, known)
			}
			delete(want, l.name)
		}
	}
	if len(want) > 0 {
		t.Errorf("goals without a workload: %v", want)
	}
	for _, w := range (&bench{revoked: 999_999, hosts: 9_999}).workloads() {
		for _, l := range w.lines {
			if l.goal != 0 && (l.name == "handshake-crl" || l.name == "start-many" || l.name == "reload-many") {
				t.Errorf("%s has the goal %.2f for less than what the goal speaks of", l.name, l.goal)
			}
		}
	}
}

// TestMissed: a goal that is not met has a plain line, and so has one that nothing can be said of.
func TestMissed(t *testing.T) {
	r := sampleReport()
	r.Results[0].Goal, r.Results[0].Profile = 0.4, "30% a.b"
	r.Results[0].judge()
	var w bytes.Buffer
	r.missed(&w)
	for _, want := range []string{
		"NOT MET: work <1>: 0.500 of haproxy-3.2 (11.0 CPU µs per request; theirs 20.0); the goal is 0.40.\n  ours goes to: 30% a.b\n",
		"OPEN: work 2: the goal is 1.00 of the better of HAProxy and nginx of a newer Debian, and there is no figure of haproxy of a newer Debian and nginx of",
		"OPEN: work 3", "of countersign (it ended) and haproxy of", "0 of 3 goals met.",
	} {
		if !strings.Contains(w.String(), want) {
			t.Errorf("the lines lack %q:\n%s", want, &w)
		}
	}
	w.Reset()
	if sampleReport().missed(&w); !strings.Contains(w.String(), "1 of 3 goals met.") || strings.Contains(w.String(), "NOT MET") {
		t.Errorf("a goal that is met:\n%s", &w)
	}
}

// TestWrite: a run leaves a table, figures and a chart.
func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := sampleReport().write(dir); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"table.txt": "1 of 3 goals met", "results.json": `"goal": 0.5`, "summary.svg": "<svg"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %v, %.200s", name, err, text)
		}
	}
}

// TestFinish: what was complete when an error ended the run is printed and written, and the error is still one; but
// nothing is if a stranger was let in, or if there is nothing.
func TestFinish(t *testing.T) {
	b := &bench{rounds: 3, say: func(string, ...any) {}}
	for _, c := range []struct {
		r    *report
		err  error
		want string
	}{
		{sampleReport(), nil, "1 of 3 goals met"},
		{sampleReport(), context.Canceled, "INCOMPLETE, ended early: context canceled"},
		{sampleReport(), errors.New("no free port"), "INCOMPLETE, ended early: no free port"},
		{sampleReport(), fmt.Errorf("a: %w: b", errStranger), ""},
		{&report{}, context.Canceled, ""},
	} {
		var w bytes.Buffer
		dir := filepath.Join(t.TempDir(), "out")
		if err := b.finish(c.r, c.err, &w, dir); !errors.Is(err, c.err) {
			t.Errorf("%v became %v", c.err, err)
		}
		table, err := os.ReadFile(dir + "/table.txt")
		if (err == nil) != (c.want != "") || (w.Len() > 0) != (c.want != "") || !strings.Contains(w.String(), c.want) || !strings.Contains(string(table), c.want) {
			t.Errorf("%v: %v; want %q, printed:\n%s", c.err, err, c.want, &w)
		}
	}
	if err := b.finish(sampleReport(), nil, io.Discard, "/dev/null/x"); err == nil {
		t.Error("a folder that cannot be written is no error")
	}
}

// TestFolder: a run of some of the work never goes where a run of everything is.
func TestFolder(t *testing.T) {
	start := time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC)
	for _, c := range []struct {
		out, keep string
		partial   bool
		want      string
	}{
		{"", "", false, ""}, {"", "", true, ""}, {"o", "k", false, "o"}, {"o", "k", true, "o"},
		{"", "k", false, "k/2026-11-22"}, {"", "k", true, "k/2026-11-22-0102-partial"},
	} {
		if got := folder(c.out, c.keep, start, c.partial); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
	for flags, want := range map[string]bool{"": false, "keep profile out": false, "keep only": true, "targets": true, "quick": true, "rounds profile": true} {
		set := map[string]bool{}
		for _, name := range strings.Fields(flags) {
			set[name] = true
		}
		if got := partial(set); got != want {
			t.Errorf("partial with %q: %t", flags, got)
		}
	}
}

// roundedOf runs rounds of a workload whose measurement is a function, on some targets.
func roundedOf(ctx context.Context, names string, alone func(name string) ([]float64, error)) (*report, error) {
	b, r := &bench{rounds: 2, random: newRandom(), say: func(string, ...any) {}}, &report{}
	for _, name := range strings.Fields(names) {
		b.targets = append(b.targets, &target{Name: name, modern: true})
	}
	w := &workload{lines: []line{{"x", "x", "s", "start", 0}}, alone: func(_ context.Context, _ *bench, t *target) ([]float64, error) { return alone(t.Name) }}
	return r, b.rounded(ctx, w, nil, r)
}

// TestRounded: every target once in each round, a failure stays in its cell, a stranger ends it all, and a workload that is not
// complete is not in the report.
func TestRounded(t *testing.T) {
	asked := ""
	r, err := roundedOf(t.Context(), "a b c d e f", func(name string) ([]float64, error) {
		if asked += name; name == "c" {
			return nil, errors.New("no")
		}
		return []float64{1}, nil
	})
	if err != nil || len(r.Results) != 1 || r.Results[0].Cells[2].Problem != "no" || r.Results[0].Cells[3].Value.Median != 1 {
		t.Errorf("%v, %+v", err, r.Results)
	}
	for _, name := range "abdef" {
		if first := asked[:6]; strings.Count(first, string(name)) != 1 || strings.Count(asked, string(name)) != 2 {
			t.Errorf("the order is %q", asked)
		}
	}
	if r, err := roundedOf(t.Context(), "a b", func(string) ([]float64, error) { return nil, fmt.Errorf("host: %w", errStranger) }); !errors.Is(err, errStranger) || len(r.Results) > 0 {
		t.Errorf("a stranger: %v, %v", err, r.Results)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if r, err := roundedOf(ctx, "a b", func(string) ([]float64, error) { cancel(); return []float64{1}, nil }); !errors.Is(err, context.Canceled) || len(r.Results) > 0 {
		t.Errorf("ended by hand: %v, %v", err, r.Results)
	}
}

// TestOrder: who comes before whom is not always the same, and it is the same in each run.
func TestOrder(t *testing.T) {
	before, one, two := map[[2]string]bool{}, "", ""
	for _, asked := range []*string{&one, &two} {
		if _, err := roundedOf(t.Context(), "a b c d e f", func(name string) ([]float64, error) { *asked += name; return []float64{1}, nil }); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 12 {
		before[[2]string{string((one + one)[n]), string((one + one)[n+1])}] = true
	}
	if one != two || len(before) < 9 {
		t.Errorf("orders %q and %q of the first two rounds", one, two)
	}
}

// TestStranger: every client is shown to a target once, and when none is left that is an error.
func TestStranger(t *testing.T) {
	x, y := &target{Name: "x"}, &target{Name: "x"} // as measured, and as profiled
	b := &bench{crowd: []*tls.Certificate{{}, {}}, used: map[*target]*atomic.Int64{x: {}, y: {}}}
	for _, of := range []*target{x, y} {
		i, seen := &instance{target: of}, map[*tls.Certificate]bool{}
		for range b.crowd {
			c, err := b.stranger(i)
			if err != nil || seen[c] {
				t.Errorf("%v, or seen before", err)
			}
			seen[c] = true
		}
		if _, err := b.stranger(i); err == nil || !strings.Contains(err.Error(), "it has seen all 2 clients; -strangers") {
			t.Errorf("the third of two: %v", err)
		}
	}
	open := handshakes(call{addr: "127.0.0.1:1"}, func() (*tls.Certificate, error) { return nil, errors.New("none left") }, false)
	if _, _, err := open(0); err == nil || err.Error() != "none left" {
		t.Errorf("a load without clients: %v", err)
	}
}

// TestRest: what a target does behind a cell counts with the cell.
func TestRest(t *testing.T) {
	me := []int{os.Getpid()}
	clock, err := cpuTime(me)
	if err != nil {
		t.Fatal(err)
	}
	s := sample{CPU: 5, units: 2, pids: me, clock: clock, ended: time.Now()}
	if err := s.rest(t.Context(), 50*time.Millisecond); err != nil || time.Since(s.ended) < 50*time.Millisecond {
		t.Errorf("%v, after %v", err, time.Since(s.ended))
	}
	for now := clock; now-clock < 100*time.Millisecond; {
		if now, err = cpuTime(me); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.rest(t.Context(), 0); err != nil || s.CPU < 50_005 || math.Abs(s.CPU-s.Rest-5) > 1e-6 {
		t.Errorf("100 ms behind two units: %v, %+v", err, s)
	}
	s.pids = []int{4194303}
	if err := s.rest(t.Context(), 0); err == nil {
		t.Error("a target that has ended had a rest")
	}
}

// TestRested: each cell of a load has its rest, the last one too.
func TestRested(t *testing.T) {
	b, r := &bench{rounds: 2, random: newRandom(), seconds: 20 * time.Millisecond, settle: time.Second, say: func(string, ...any) {}}, &report{}
	b.targets = []*target{{Name: "a"}}
	i := &instance{target: b.targets[0], proc: &process{pid: os.Getpid(), ended: make(chan struct{})}}
	closed := 0
	w := &workload{lines: []line{{"x", "x", "CPU", "request", 0}}, workers: 3, open: func(*bench, *instance) opener {
		return func(int) (step, func(), error) {
			return func(t *tally) error { t.units++; time.Sleep(time.Millisecond); return nil }, func() { closed++ }, nil
		}
	}}
	begin := time.Now()
	if err := b.rounded(t.Context(), w, []*instance{i}, r); err != nil {
		t.Fatal(err)
	}
	c := r.Results[0].Cells[0]
	if took := time.Since(begin); len(c.Rounds) != 2 || c.Rest == nil || c.Rest.Min <= 0 || c.Value.Min < c.Rest.Min || took < 2*(20+40)*time.Millisecond || closed != 6 {
		t.Errorf("after %v: %+v, at rest %+v, closed %d", took, c, c.Rest, closed)
	}
}

// TestThird: those of which no goal speaks have the first third of the rounds beside newer ones, and all without.
func TestThird(t *testing.T) {
	w := &workload{lines: []line{{"x", "x", "CPU", "request", 0}}, main: true, workers: 1, open: func(*bench, *instance) opener {
		return func(int) (step, func(), error) {
			return func(t *tally) error { t.units++; time.Sleep(time.Millisecond); return nil }, func() {}, nil
		}
	}}
	for _, c := range []struct {
		newer  bool
		rounds int
		want   []int
	}{{true, 4, []int{4, 4, 2, 2}}, {true, 1, []int{1, 1, 1, 1}}, {false, 4, []int{4, 4, 4, 4}}} {
		b, r := &bench{rounds: c.rounds, random: newRandom(), seconds: 2 * time.Millisecond, say: func(string, ...any) {}}, &report{}
		var instances []*instance
		for _, target := range []*target{{Name: "countersign", kind: "countersign"}, {Name: "new", kind: "nginx", modern: c.newer}, {Name: "old", kind: "nginx"}, {Name: "go", kind: "caddy"}} {
			b.targets = append(b.targets, target)
			instances = append(instances, &instance{target: target, proc: &process{pid: os.Getpid(), ended: make(chan struct{})}})
		}
		if err := b.rounded(t.Context(), w, instances, r); err != nil {
			t.Fatal(err)
		}
		for n, want := range c.want {
			if got := len(r.Results[0].Cells[n].Rounds); got != want {
				t.Errorf("newer peers %t, %d rounds: %s has %d, expected %d", c.newer, c.rounds, b.targets[n].Name, got, want)
			}
		}
	}
}

// newPair makes a PKI and loads the server's ECDSA certificate.
func newPair(t *testing.T) (*pki, tls.Certificate) {
	t.Helper()
	p, err := newPKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(p.dir, "ecdsa.pem"), filepath.Join(p.dir, "ecdsa.key"))
	if err != nil {
		t.Fatal(err)
	}
	return p, pair
}

// TestBodies: an answer whose body is not as long as it was asked for is an error in every load.
func TestBodies(t *testing.T) {
	p, pair := newPair(t)
	serve := func(answer func(net.Conn)) call {
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go serveAll(l, answer)
		return call{addr: l.Addr().String(), cert: p.good}
	}
	right := serve(answerHTTP)
	short := serve(func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			_, _ = c.Write(response("x"))
		}
	})
	for name, load := range map[string]func(call) opener{
		"handshakes": func(c call) opener { return handshakes(c, nil, false) },
		"128 B":      func(c call) opener { return requests(c, "/128", smallBody) },
		"16 KiB":     func(c call) opener { return requests(c, "/16k", mediumBody) },
		"hosts":      func(c call) opener { return spreadOver(c, 1, 1) },
		"download":   download,
		"upload":     upload,
	} {
		run := func(c call) error {
			s, end, err := load(c)(0)
			if err != nil {
				return err
			}
			defer end()
			for done := new(tally); err == nil && done.units < 106; { // the second upload begins with the answer to the first
				if err = s(done); name != "download" && name != "upload" {
					done.units = 106
				}
			}
			return err
		}
		if err := run(right); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := run(short); err == nil || !strings.Contains(err.Error(), "an answer with a body of 1 bytes; expected 1") {
			t.Errorf("%s, with a body of one byte: %v", name, err)
		}
	}
}

// TestFingerprint: it is that of the client and no other, in the way of each kind.
func TestFingerprint(t *testing.T) {
	leaf := &x509.Certificate{Raw: []byte("abc"), SerialNumber: big.NewInt(1)}
	long, short := "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD", "a9993e364706816aba3e25717850c26c9cd0d89d"
	for kind, want := range map[string]string{"countersign": long, "haproxy": long, "nginx": short, "caddy": long} {
		good := expected(kind, leaf)["X-SSL-Client-SHA256"]
		for _, v := range []string{long, short, strings.ToLower(long), strings.Repeat("a", 64), strings.Repeat("a", 40), ""} {
			if got := good(v); got != strings.EqualFold(v, want) {
				t.Errorf("%s, fingerprint %q is right: %t", kind, v, got)
			}
		}
	}
}

func TestCollector(t *testing.T) {
	for _, c := range []struct {
		in          map[string]float64
		gogc, limit string
	}{
		{nil, "unknown", "unknown"},
		{map[string]float64{"go_gc_gogc_percent": 400, "go_gc_gomemlimit_bytes": 1 << 30}, "400", "1024 MiB"},
		{map[string]float64{"go_gc_gogc_percent": -1, "go_gc_gomemlimit_bytes": math.MaxInt64}, "-1", "none"},
	} {
		if gogc, limit := collectorOf(c.in); gogc != c.gogc || limit != c.limit {
			t.Errorf("%v: %q, %q", c.in, gogc, limit)
		}
	}
}

// TestRuns: peers of the main workloads run these and no others; older ones run no workload of few.
func TestRuns(t *testing.T) {
	mine, newer, older, slow := &target{kind: "countersign"}, &target{kind: "nginx", modern: true}, &target{kind: "nginx"}, &target{kind: "caddy", main: true}
	for name, want := range map[string][]bool{"handshake": {true, true, true, true}, "http2": {true, true, true, true},
		"upload": {true, true, true, false}, "routes": {true, true, false, false}} {
		w, err := new(bench).choose(name)
		if err != nil {
			t.Fatal(err)
		}
		for n, target := range []*target{mine, newer, older, slow} {
			if got := w[0].runs(target); got != want[n] {
				t.Errorf("%s on %+v: %t", name, target, got)
			}
		}
	}
	mixed, err := new(bench).choose(mixedGroup)
	if err != nil || len(mixed) < 8 {
		t.Fatalf("mixed: %d workloads, %v", len(mixed), err)
	}
	for _, w := range mixed {
		if w.alone != nil {
			t.Errorf("%s is mixed, and its profile may be one of memory", w.name())
		}
	}
}

// TestGoPeers: a peer that is not there is said to be missing, with what to do.
func TestGoPeers(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("BENCH_CADDY", filepath.Join(t.TempDir(), "none"))
	t.Setenv("BENCH_TRAEFIK", "")
	b := &bench{say: func(string, ...any) { t.Error("it builds something") }}
	found, missing := b.goTargets(t.Context(), func(string) bool { return true }, false, 1)
	if len(found) != 0 || len(missing) != 2 || !strings.Contains(missing[0], "BENCH_CADDY says") || !strings.Contains(missing[1], "make bench builds it") {
		t.Errorf("found %v, missing %q", found, missing)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("BENCH_CADDY", self)
	found, missing = b.goTargets(t.Context(), func(kind string) bool { return kind == "caddy" }, false, 2)
	if len(found) != 1 || len(missing) != 0 || !found[0].main || !strings.HasPrefix(found[0].TLS, "go1.") || found[0].env[0] != "GOMAXPROCS=2" {
		t.Errorf("found %+v, missing %q", found, missing)
	}
	if got := older("1.22.1", 1, 25); !got {
		t.Error("nginx 1.22 counts as new")
	}
	for _, v := range []string{"1.25.0", "1.30.6", "2.0"} {
		if older(v, 1, 25) {
			t.Errorf("nginx %s counts as old", v)
		}
	}
}

// TestAgent: what is laid over the program for profiles is never built without its tag.
func TestAgent(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "agent.go", agent, parser.ParseComments)
	if err != nil || f.Name.Name != "main" || !bytes.HasPrefix(agent, []byte("//go:build "+profiledTag+"\n")) {
		t.Errorf("package %v, %v, begins %.60q", f.Name, err, agent)
	}
	table := "Type: cpu\nShowing nodes\n      flat  flat%   sum%        cum   cum%\n" +
		"     0.50s 33.33% 33.33%      0.50s 33.33%  a.b (inline)\n         0     0% 33.33%      1.50s   100%  c.(*D).e\n"
	if got := most(table, 2); got != "33.33% a.b, 0% c.(*D).e" {
		t.Errorf("most: %q", got)
	}
	if got := most(table, 1); got != "33.33% a.b" {
		t.Errorf("most of one: %q", got)
	}
}

func TestChoose(t *testing.T) {
	if _, err := new(bench).choose("handshake,nothing"); err == nil || !strings.Contains(err.Error(), `no workload "nothing"`) {
		t.Errorf("an unknown workload: %v", err)
	}
	if w, err := new(bench).choose("idle,tls"); err != nil || len(w) != 2 || w[0].name() != "idle" {
		t.Errorf("choose: %v %v", w, err)
	}
	seen := map[string]bool{}
	for _, w := range new(bench).workloads() {
		for _, l := range w.lines {
			if seen[l.name] || l.of == "" || l.unit == "" {
				t.Errorf("line %q is there twice, or says not what it measures", l.name)
			}
			seen[l.name] = true
		}
		if ways := []bool{w.open != nil, w.alone != nil, w.sinks}; len(slices.DeleteFunc(ways, func(has bool) bool { return !has })) != 1 {
			t.Errorf("%s: expected a load or a way of its own", w.name())
		}
	}
}

func TestContentLength(t *testing.T) {
	if n, err := contentLength([]byte("HTTP/1.1 200 OK\r\nA: b\r\ncontent-length:  12")); n != 12 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	if _, err := contentLength([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked")); err == nil {
		t.Error("an answer of unknown length was taken")
	}
}

// TestAllowed: the cores are those that the kernel would take, whatever their numbers.
func TestAllowed(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	all, err := allowed()
	if err != nil || len(all) < 1 {
		t.Fatal(all, err)
	}
	last := all[len(all)-1:]
	if err := pin(0, last); err != nil {
		t.Fatal(err)
	}
	if got, err := allowed(); err != nil || !slices.Equal(got, last) {
		t.Errorf("on core %v alone: %v, %v", last, got, err)
	}
	if err := new(bench).cores(); err == nil {
		t.Error("one core is enough")
	}
	if err := pin(0, all); err != nil {
		t.Error(err)
	}
}

// TestClock: the CPU clock counts what this process does.
func TestClock(t *testing.T) {
	me := []int{os.Getpid()}
	before, err := cpuTime(me)
	if err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); time.Since(begin) < 20*time.Millisecond; {
	}
	after, err := cpuTime(me)
	if err != nil || after-before < time.Millisecond {
		t.Errorf("20 ms of work: %v of CPU, %v", after-before, err)
	}
	if _, err := cpuTime([]int{4194303}); err == nil {
		t.Error("the clock of a process that does not exist was read")
	}
	if memory(me) < 1<<20 {
		t.Errorf("this process has %d bytes", memory(me))
	}
}

func TestHello(t *testing.T) {
	if c := hello(); len(c) < 100 || c[0] != 22 {
		t.Errorf("a ClientHello of %d bytes", len(c))
	}
	if got := certificate("!"); got != nil {
		t.Errorf("no certificate was read as %x", got)
	}
}

// TestOtherCertificate: a host's certificate is another one each time, with its key, and what is returned is its serial number.
func TestOtherCertificate(t *testing.T) {
	p, err := newPKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.many(2); err != nil {
		t.Fatal(err)
	}
	if n, err := p.recall(); n != 2*3 || err != nil { // certificate, key, and both in one
		t.Errorf("%d files read, %v", n, err)
	}
	number, err := p.manyHost(1)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(p.dir, "many-all", manyName(1)+".pem")
	pair, err := tls.LoadX509KeyPair(file, file)
	if err != nil || pair.Leaf.SerialNumber.String() != number || pair.Leaf.VerifyHostname(manyName(1)) != nil {
		t.Errorf("%v, %s is not the certificate %s", err, file, number)
	}
	if err := os.RemoveAll(filepath.Join(p.dir, "many-all")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.recall(); err == nil {
		t.Error("files that are not there were read")
	}
	if _, err := p.foreign.Leaf.Verify(x509.VerifyOptions{Roots: p.pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
		t.Error("the foreign client verifies")
	}
}

func (p *pki) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.root.cert)
	pool.AddCert(p.clients.cert)
	return pool
}

func TestThousands(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := thousands(n); got != want {
			t.Errorf("thousands(%d) = %q; want %q", n, got, want)
		}
	}
}

// TestInspection: a target that asks nobody is found out, and so is one that tells the backend what the client wrote.
func TestInspection(t *testing.T) {
	p, pair := newPair(t)
	serve := func(auth tls.ClientAuthType) string {
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: auth, ClientCAs: p.pool()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go serveAll(l, answerHTTP)
		return l.Addr().String()
	}
	b, buf := &bench{pki: p}, make([]byte, 32<<10)
	strict, open := serve(tls.RequireAndVerifyClientCert), serve(tls.RequestClientCert)
	for name, cert := range map[string]*tls.Certificate{"foreign": p.foreign, "none": nil} {
		if how, err := refused(call{addr: strict, cert: cert}, get("/128"), buf); err != nil || how == "" {
			t.Errorf("%s, at a strict server: %q %v", name, how, err)
		}
		if how, err := refused(call{addr: open, cert: cert}, get("/128"), buf); err == nil {
			t.Errorf("%s, at an open server, counts as refused: %q", name, how)
		}
	}
	if how, err := refused(call{addr: strict, cert: p.good}, get("/128"), buf); err == nil {
		t.Errorf("the good client counts as refused: %q", how)
	}
	// Every kind of target is inspected in the same way.
	for _, kind := range []string{"countersign", "haproxy", "nginx", "caddy", "traefik"} {
		if _, err := b.introduced(kind, call{addr: strict, cert: p.good}, buf); err == nil || !strings.Contains(err.Error(), "the backend was told") {
			t.Errorf("%s that adds no identity: %v", kind, err)
		}
		target := func(https string) *instance {
			i := &instance{target: &target{Name: kind, kind: kind, main: kind == "caddy" || kind == "traefik"},
				addr: map[string]string{"https": https, "rsa": strict, "both": strict, "bare": strict, "tls": strict}}
			i.fill.Kind = "main"
			return i
		}
		if how, err := b.inspect(target(open)); !errors.Is(err, errStranger) || !strings.Contains(err.Error(), kind+", listener https, client certificate") {
			t.Errorf("%s that lets everybody in: %q %v", kind, how, err)
		}
		if i := target(strict); !i.main {
			i.addr["both"] = open
			if how, err := b.inspect(i); !errors.Is(err, errStranger) || !strings.Contains(err.Error(), kind+", listener both, client certificate") {
				t.Errorf("%s that lets everybody in where it has both certificates: %q %v", kind, how, err)
			}
		}
		if how, err := b.inspect(target(serveH2(t, p, pair, true))); !errors.Is(err, errStranger) || !strings.Contains(err.Error(), "HTTP/2, client certificate") {
			t.Errorf("%s that lets everybody in by HTTP/2: %q %v", kind, how, err)
		}
	}
}

// serveH2 is a server of both versions of HTTP; one that is lax verifies nobody who wants HTTP/2.
func serveH2(t *testing.T, p *pki, pair tls.Certificate, lax bool) string {
	t.Helper()
	strict := &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: p.pool(),
		NextProtos: []string{"h2", "http/1.1"}}
	open := strict.Clone()
	open.ClientAuth = tls.RequestClientCert
	strict.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if lax && slices.Contains(h.SupportedProtos, "h2") {
			return open, nil
		}
		return nil, nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{TLSConfig: strict, ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/404":
			w.WriteHeader(404)
		case "/reset":
			panic(http.ErrAbortHandler)
		case "/16k":
			_, _ = w.Write(zeros[:16<<10])
		default:
			_, _ = w.Write(zeros[:128])
		}
	})}
	t.Cleanup(func() { server.Close() })
	go func() { _ = server.ServeTLS(l, "", "") }()
	return l.Addr().String()
}

// TestMultiplexed: requests on one connection, several at a time, against the standard library's server.
func TestMultiplexed(t *testing.T) {
	p, pair := newPair(t)
	c := call{addr: serveH2(t, p, pair, false), cert: p.good}
	for path, want := range map[string]string{"/404": `answer "404" of 0 bytes; expected 200 and 128`, "/reset": "was reset", "/16k": "of 16384 bytes"} {
		s, end, err := multiplexed(c, path, 3, 128)(0)
		if err != nil {
			t.Fatal(err)
		}
		if err := s(&tally{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", path, err, want)
		}
		end()
	}
	if how, err := refused(call{addr: c.addr, cert: p.foreign, alpn: []string{"h2"}}, nil, nil); err != nil || how == "" {
		t.Errorf("a stranger: %q %v", how, err)
	}
	if how, err := refused(call{addr: c.addr, cert: p.good, alpn: []string{"h2"}}, nil, nil); err == nil {
		t.Errorf("the good client counts as refused: %q", how)
	}
	for path, length := range map[string]int{"/128": 128, "/16k": 16 << 10} {
		s, end, err := multiplexed(c, path, 8, length)(0)
		if err != nil {
			t.Fatal(err)
		}
		var done tally
		for n := range 3000 {
			if err := s(&done); err != nil {
				t.Fatalf("%s, request %d: %v", path, n, err)
			}
		}
		if done.units != 3000 || len(done.took) != 3000 {
			t.Errorf("%s: %v units, %d times", path, done.units, len(done.took))
		}
		end()
	}
}

// TestWeigh: there is a figure for connections that are all there until the end, and for no others.
func TestWeigh(t *testing.T) {
	p, pair := newPair(t)
	conf := &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: p.pool()}
	var taken sync.Map // the server's connections, by the client's address
	serve := func(handle http.HandlerFunc, alpn ...string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: handle, TLSConfig: conf.Clone(), ConnState: func(c net.Conn, to http.ConnState) {
			if to == http.StateNew {
				taken.Store(c.RemoteAddr().String(), c)
			}
		}}
		if server.TLSConfig.NextProtos = alpn; !slices.Contains(alpn, "h2") {
			server.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
		}
		t.Cleanup(func() { server.Close() })
		go func() { _ = server.ServeTLS(l, "", "") }()
		return l.Addr().String()
	}
	both := serve(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(zeros[:128]) }, "h2", "http/1.1")
	short := serve(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(zeros[:1]) }, "h2", "http/1.1")
	busy := serve(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, "h2", "http/1.1")
	older := serve(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(zeros[:128]) }, "http/1.1")
	plain, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	go serveAll(plain, answerHTTP)
	const warm, count = 50, 60
	for _, c := range []struct {
		name, addr string
		ends       int // the server closes the connection of this number when it has answered
		h1, h2     string
	}{
		{"not reached", "127.0.0.1:1", 0, "connection refused", "connection refused"},
		{"HTTP/1.1 only", older, 0, "", "no application protocol"},
		{"no ALPN", plain.Addr().String(), 0, "", `it chose the protocol ""; expected h2`},
		{"the first ends", both, warm + 1, "connection 1 of 60 has ended while it was idle, so there is no figure: ", "connection 1 of 60 has ended while it was idle, so there is no figure: "},
		{"the last ends", both, warm + count, "connection 60 of 60 has ended", "connection 60 of 60 has ended"},
		{"a short body", short, 0, "a body of 1 bytes; expected 128", "a body of 1 bytes; expected 128"},
		{"another status", busy, 0, `answer "HTTP/1.1 503`, `answer "503"`},
		{"all there", both, 0, "", ""},
	} {
		for _, version := range []struct {
			open asker
			want string
		}{{asksH1, c.h1}, {asksH2, c.h2}} {
			var ballast [][]byte // this process is the one that is weighed, and what it had before must not do for all
			opened := 0
			open := func(at call) (*tls.Conn, func() error, error) {
				conn, ask, err := version.open(at)
				if err != nil {
					return nil, nil, err
				}
				opened++
				n := opened
				ballast = append(ballast, bytes.Repeat([]byte{1}, 512<<10))
				return conn, func() error {
					err := ask()
					if n == c.ends {
						if other, known := taken.Load(conn.LocalAddr().String()); known {
							other.(net.Conn).Close()
						}
					}
					return err
				}, nil
			}
			debug.FreeOSMemory()
			b := &bench{pki: p, idle: count, settle: 20 * time.Millisecond}
			i := &instance{target: &target{}, addr: map[string]string{"https": c.addr}, proc: &process{pid: os.Getpid()}}
			each, err := b.weigh(t.Context(), i, open)
			if version.want == "" && (err != nil || each <= 0) || version.want != "" && (err == nil || each != 0 || !strings.Contains(err.Error(), version.want)) {
				t.Errorf("%s: %v KB, %v; expected %q", c.name, each, err, version.want)
			}
			runtime.KeepAlive(ballast)
		}
	}
}

// TestSpreadOver: all workers together have a connection to every host, and each asks for every route.
func TestSpreadOver(t *testing.T) {
	p, err := newPKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(p.dir, "routes.pem"), filepath.Join(p.dir, "routes.key"))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	names, asked := map[string]int{}, map[string]bool{}
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked[r.Host+r.URL.Path] = r.Host == r.TLS.ServerName
		_, _ = w.Write(zeros[:128])
	}), TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		mu.Lock()
		defer mu.Unlock()
		names[h.ServerName]++
		return nil, nil
	}}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() { _ = server.ServeTLS(l, "", "") }()
	open := spreadOver(call{addr: l.Addr().String(), cert: p.good}, 3, 10)
	for k := range 3 {
		s, end, err := open(k)
		if err != nil {
			t.Fatal(err)
		}
		defer end()
		var done tally
		for range 4 * routesOfHost {
			if err := s(&done); err != nil {
				t.Fatal(err)
			}
		}
		if done.units != 4*routesOfHost {
			t.Errorf("%v units", done.units)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(names) != 10 || len(asked) != 10*routesOfHost {
		t.Errorf("%d hosts, %d routes; expected 10 and %d: %v", len(names), len(asked), 10*routesOfHost, names)
	}
	for what, same := range asked {
		if !same {
			t.Errorf("%s was asked for on a connection of another host", what)
		}
	}
}
