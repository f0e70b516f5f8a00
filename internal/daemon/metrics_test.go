package daemon

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

var updateMetrics = flag.Bool("update-metrics", false, "rewrite the table in docs/metrics.md")

// described are the names, texts and labels of every metric of the program's own, whether or not there is a series yet.
func described(t *testing.T, r *prometheus.Registry) (rows []described1) {
	t.Helper()
	// A Desc tells what is in it by its String only.
	form := regexp.MustCompile(`^Desc\{fqName: "(countersign_\w+)", help: "(.*?)"(?:, unit: "")?, constLabels: \{\}, (?:variableLabels|labels): \{(.*)\}\}$`)
	ch := make(chan *prometheus.Desc)
	go func() {
		defer close(ch)
		r.Describe(ch)
	}()
	for d := range ch {
		text := d.String()
		if !strings.Contains(text, `fqName: "countersign_`) {
			continue
		}
		m := form.FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("cannot read %s", text)
		}
		rows = append(rows, described1{m[1], strings.ReplaceAll(m[2], `\"`, `"`), strings.FieldsFunc(m[3], func(r rune) bool { return r == ',' })})
	}
	slices.SortFunc(rows, func(a, b described1) int { return strings.Compare(a.name, b.name) })
	return slices.CompactFunc(rows, func(a, b described1) bool { return a.name == b.name })
}

type described1 struct {
	name, help string
	labels     []string
}

// kind is the metric's type, which its name says.
func (d described1) kind() string {
	switch {
	case strings.HasSuffix(d.name, "_total"):
		return "counter"
	case strings.HasSuffix(d.name, "_duration_seconds"):
		return "histogram"
	}
	return "gauge"
}

// TestMetricsPage: docs/metrics.md lists the metrics that there are.
func TestMetricsPage(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "countersign.yaml")
	if err := os.WriteFile(conf, []byte("listeners: {x: {listen: \"127.0.0.1:0\", protocol: tcp, upstream: y}}\nupstreams: {y: {targets: [\"tcp://127.0.0.1:9\"]}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := Start(Options{Config: conf, Records: io.Discard, Log: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Shutdown(canceled())
	rows := described(t, m.book.Registry)
	if len(rows) < 40 {
		t.Fatalf("only %d metrics; the test looks at the wrong place", len(rows))
	}
	kinds := make(map[string]string)
	families, err := m.book.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		kinds[f.GetName()] = strings.ToLower(f.GetType().String())
	}
	const page, begin, end = "../../docs/metrics.md", "<!-- metrics -->\n", "<!-- end -->"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", page)
	}
	var b strings.Builder
	b.WriteString(before + begin + "| metric | type | labels | what |\n|---|---|---|---|\n")
	for _, d := range rows {
		if !strings.HasSuffix(d.help, ".") || strings.Contains(d.help, "|") || len(d.help) < 20 {
			t.Errorf("%s: %q is no sentence", d.name, d.help)
		}
		if kind := kinds[d.name]; kind != "" && kind != d.kind() {
			t.Errorf("%s is a %s, and its name says %s", d.name, kind, d.kind())
		}
		labels := "-"
		if len(d.labels) > 0 {
			labels = "`" + strings.Join(d.labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", d.name, d.kind(), labels, d.help)
	}
	b.WriteString(end + after)
	if *updateMetrics {
		if err := os.WriteFile(page, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if b.String() != string(text) {
		t.Errorf("%s is not what the registry says; run: go test -count=1 -run '^TestMetricsPage$' ./internal/daemon -args -update-metrics", page)
	}
}

// TestCollectedTwice: gathering while configurations change gives no series twice, which would be no metrics at all.
func TestCollectedTwice(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "countersign.yaml")
	if err := os.WriteFile(conf, []byte("listeners: {x: {listen: \"127.0.0.1:0\", protocol: tcp, upstream: y}}\nupstreams: {y: {targets: [\"tcp://127.0.0.1:9\", \"tcp://127.0.0.1:10\"]}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := Start(Options{Config: conf, Records: io.Discard, Log: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Shutdown(canceled())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_ = m.Reload()
		}
	}()
	for range 50 {
		if _, err := m.book.Registry.Gather(); err != nil {
			t.Error(err)
			break
		}
		_ = m.Status()
	}
	cancel()
	<-done
}
