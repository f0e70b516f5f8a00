package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// sinkResults are the lines of the workload as a run would have them, with the times of stalled sinks.
func sinkResults(t *testing.T, p99 ...float64) *report {
	t.Helper()
	todo, err := new(bench).choose("sinks")
	if err != nil {
		t.Fatal(err)
	}
	r := &report{Setting: setting{Rounds: len(p99)}, Results: sinkLines(todo[0])}
	stages := []*stage{{name: sinksStalled, memory: 70.04}, {name: sinksHealthy, memory: 50}, {name: sinksNone, memory: 40}}
	for _, v := range p99 {
		stages[0].samples = append(stages[0].samples, sample{CPU: 90, P50: 1, P99: v, H50: 3, H99: 4, Rate: 9})
		stages[1].samples = append(stages[1].samples, sample{CPU: 100, P50: 1, P99: 2, H50: 3, H99: 5, Rate: 9})
		stages[2].samples = append(stages[2].samples, sample{CPU: 80, P50: 1, P99: 1, H50: 3, H99: 2, Rate: 9})
	}
	fillSinks(stages, r.Results)
	for _, l := range r.Results {
		l.judge()
	}
	return r
}

// TestSinksReport: the goal is about stalled sinks beside healthy ones, whatever no sinks would give, and table, figures
// and chart say so.
func TestSinksReport(t *testing.T) {
	r := sinkResults(t, 2, 2.1, 2.4)
	for n, want := range []float64{0.9, 1.05, 0.8} {
		l := r.Results[n]
		if l.Better != sinksHealthy || l.Ratio == nil || l.Ratio.Median != want || (l.Goal == 1.1) != (n < 2) || l.Goal > 0 && (l.Met == nil || !*l.Met) {
			t.Errorf("%s: %s, ratio %v, %s; expected %.2f of healthy sinks", l.Name, l.Better, l.Ratio, l.verdict(), want)
		}
	}
	if c := r.Results[2].cell(sinksStalled); c.P50.Median != 3 || c.P99.Median != 4 || c.Memory != 70 {
		t.Errorf("handshakes have the times of something else: %+v", c)
	}
	dir := t.TempDir()
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	for name, all := range map[string][]string{
		"table.txt": {"mixed load, all logs and the journal stalled: CPU µs per 1.25 handshakes and 20 requests", "sinks stalled / this",
			"sinks healthy", "no logs, no journal", "1.050 (1.000-1.200)", "1.10, met", "2 of 2 goals met"},
		"results.json": {`"name": "sinks"`, `"ours": "sinks stalled"`, `"better": "sinks healthy"`, `"met": true`},
		"summary.svg":  {"mixed load, all logs and the journal stalled", "sinks stalled"},
	} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		for _, want := range all {
			if err != nil || !bytes.Contains(text, []byte(want)) {
				t.Errorf("%s lacks %q: %v\n%s", name, want, err, text)
			}
		}
	}
	var w bytes.Buffer
	sinkResults(t, 3, 3, 3).print(&w)
	if !strings.Contains(w.String(), "NOT MET: p99 of requests, all logs and the journal stalled: 1.500 of sinks healthy") {
		t.Errorf("a goal that is not met has no line:\n%s", &w)
	}
	w.Reset()
	if sinkResults(t).missed(&w); !strings.Contains(w.String(), "OPEN: mixed load") || strings.Contains(w.String(), "Debian") {
		t.Errorf("a goal without figures:\n%s", &w)
	}
}

// TestSinksAlone: who measures peers only, or takes profiles only, has no such lines.
func TestSinksAlone(t *testing.T) {
	for _, b := range []*bench{{rounds: 1, targets: []*target{{kind: "nginx"}}}, {targets: []*target{{kind: "countersign"}}}} {
		b.say = func(string, ...any) { t.Error("it measures") }
		r := &report{}
		if err := b.sunk(t.Context(), &workload{}, r); err != nil || len(r.Results) > 0 {
			t.Errorf("%v, %d lines", err, len(r.Results))
		}
	}
}

// TestTurnedAway: only the alert about its certificate counts as what a foreign client should get.
func TestTurnedAway(t *testing.T) {
	p, pair := newPair(t)
	serve := func(serve func(net.Conn)) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go serveAll(l, serve)
		return l.Addr().String()
	}
	secure := func(auth tls.ClientAuthType, verify func([][]byte) error) string {
		return serve(func(c net.Conn) {
			conf := &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: auth, ClientCAs: p.pool()}
			if verify != nil {
				conf.VerifyConnection = func(s tls.ConnectionState) error { return verify(nil) }
			}
			s := tls.Server(c, conf)
			if s.Handshake() == nil {
				_, _ = s.Write(small)
			}
		})
	}
	buf := make([]byte, 8<<10)
	for name, c := range map[string]struct {
		addr string
		cert *tls.Certificate
		want string
	}{
		"refused":               {secure(tls.RequestClientCert, func([][]byte) error { return errors.New("no") }), p.foreign, ""},
		"let in":                {secure(tls.RequestClientCert, nil), p.foreign, "was let in"},
		"another alert":         {secure(tls.RequireAndVerifyClientCert, nil), nil, "certificate required"},
		"hung up on":            {serve(func(net.Conn) {}), p.foreign, "was refused by"},
		"nobody to be asked at": {"127.0.0.1:1", p.foreign, "was refused by"},
	} {
		err := turnedAway(c.addr, call{cert: c.cert}.config(), buf)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; expected %q", name, err, c.want)
		}
	}
}

// TestMute: what writes to a muted stream stands still at once, and what it would have said is there afterwards.
func TestMute(t *testing.T) {
	s := &stage{instance: &instance{proc: &process{out: &output{}}}}
	w, err := s.mute()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_ = w.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := w.Write([]byte("x")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes were taken, %v", n, err)
	}
	_ = w.SetWriteDeadline(time.Time{})
	go func() { _, _ = w.Write([]byte("time=1 the end\n2026-11-21 a record\n")) }()
	if got := s.last(); got != "time=1 the end" {
		t.Errorf("it said %q", got)
	}
}

// TestSinkMetrics: what is asserted about sinks is read from the right series.
func TestSinkMetrics(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("# HELP a b 7\n# TYPE a counter\n" +
			"countersign_log_dropped_total{output=\"operator\"} 5\ncountersign_log_dropped_total{output=\"stdout\"} 6\n" +
			"countersign_log_dropped_total{output=\"syslog:unix:/a b\"} 1.5e+06\ncountersign_journal_dropped_total 3\ncountersign_journal_dropped_total_more 9\n"))
	}))
	defer server.Close()
	s := &stage{instance: &instance{addr: map[string]string{"ops": strings.TrimPrefix(server.URL, "http://")}}}
	now, err := s.metrics(context.Background())
	if err != nil || len(now) != 5 || sum(now, outputsDropped) != 1_500_006 {
		t.Fatalf("%v %v", now, err)
	}
	if got := rising(map[string]float64{journalDropped: 3}, now); !slices.Equal(got, []string{`countersign_log_dropped_total{output="stdout"}`, `countersign_log_dropped_total{output="syslog:unix:/a b"}`}) {
		t.Errorf("%q", got)
	}
	if got := rising(nil, now); len(got) != 3 {
		t.Errorf("%q", got)
	}
}
