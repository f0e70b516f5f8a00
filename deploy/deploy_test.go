// Package deploy_test holds the files for Prometheus and Grafana against the metrics that there are.
package deploy_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"countersign/internal/reason"
)

// metric is a row of docs/metrics.md, which a test of package daemon holds against the program.
type metric struct {
	kind   string
	labels []string
}

// metrics are the program's own, as series: histograms by their three names.
func metrics(t *testing.T) map[string]metric {
	t.Helper()
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `(countersign_\\w+)` \\| (\\w+) \\| (.*?) \\| ")
	all := make(map[string]metric)
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		of := metric{m[2], regexp.MustCompile(`\w+`).FindAllString(m[3], -1)}
		if of.kind != "histogram" {
			all[m[1]] = of
			continue
		}
		all[m[1]+"_sum"], all[m[1]+"_count"] = metric{"counter", of.labels}, metric{"counter", of.labels}
		all[m[1]+"_bucket"] = metric{"counter", append(slices.Clone(of.labels), "le")}
	}
	if len(all) < 40 {
		t.Fatalf("found %d metrics in docs/metrics.md", len(all))
	}
	for _, name := range outsiders {
		all[name] = metric{kind: "gauge"}
	}
	return all
}

// outsiders are metrics of Prometheus itself, and of the collectors of Go and the process.
var outsiders = []string{"up", "process_open_fds", "process_max_fds", "process_resident_memory_bytes", "process_cpu_seconds_total", "go_goroutines"}

// given are labels that Prometheus adds to every series.
var given = []string{"instance", "job"}

// values are what labels can be that come from tables of ours. reason is all reasons.
var values = map[string][]string{
	"class": {"none", "1xx", "2xx", "3xx", "4xx", "5xx"}, "fault": {"none", "client", "operator", "upstream", "countersign"},
	"event":     {"queue_full", "queue_timeout", "circuit_open", "ejection", "retry", "retry_refused"},
	"direction": {"in", "out"},
	"code":      {"key_log_open"},
	"job":       {"countersign"},
	// by metric, where one name means different things
	"countersign_upstream_targets.state":     {"ready", "unhealthy", "ejected", "draining", "disabled"},
	"countersign_handshake_turns.state":      {"running", "waiting"},
	"countersign_chain_lookups_total.result": {"hit", "miss"}, "countersign_ocsp_lookups_total.result": {"hit", "miss"},
}

// words are the operators and functions of PromQL that the files use.
var words = []string{"sum", "min", "max", "topk", "sort", "rate", "increase", "changes", "time", "vector", "histogram_quantile", "by", "on", "group_left", "and", "or", "offset", "label_values"}

var token = regexp.MustCompile(`\s+|"(?:[^"\\]|\\.)*"|\[[^\]]*\]|\d+(?:\.\d+)?[smhdwy]?|[A-Za-z_:][A-Za-z0-9_:]*|=~|!~|!=|==|<=|>=|[{}(),=<>+*/-]`)

var window = regexp.MustCompile(`^\[(\d+[smhd]|\$__rate_interval)\]$`)

// judge returns what is wrong with an expression: what cannot be read, and names of metrics, labels and values that there
// are not.
func judge(all map[string]metric, expr string) (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	var tokens []string
	for rest := expr; rest != ""; {
		at := token.FindStringIndex(rest)
		if at == nil || at[0] != 0 {
			bad("cannot read %q", rest[:min(len(rest), 20)])
			return problems
		}
		if word := rest[:at[1]]; strings.TrimSpace(word) != "" {
			tokens = append(tokens, word)
		}
		rest = rest[at[1]:]
	}
	next := func(i int) string {
		if i+1 < len(tokens) {
			return tokens[i+1]
		}
		return ""
	}
	var open []string
	var named []string            // labels in by, on and group_left
	labels := slices.Clone(given) // of all metrics in the expression
	used := 0
	metricName, clause := "", false // whose selector is open; whether the parentheses list labels
	for i, word := range tokens {
		last := ""
		if i > 0 {
			last = tokens[i-1]
		}
		switch {
		case word == "(" || word == "{":
			open = append(open, word)
			if word == "(" {
				clause = last == "by" || last == "on" || last == "group_left"
			} else if metricName = last; all[last].kind == "" {
				bad("a selector behind %q, which is no metric", last)
			}
		case word == ")" || word == "}":
			if len(open) == 0 || open[len(open)-1] != map[string]string{")": "(", "}": "{"}[word] {
				bad("%s without its other half", word)
				return problems
			}
			open, clause = open[:len(open)-1], false
		case word[0] == '[':
			if !window.MatchString(word) {
				bad("%s is no span of time", word)
			}
		case word[0] == '"':
		case word[0] >= 'A' && word[0] <= 'z':
			switch inside := len(open) > 0 && open[len(open)-1] == "{"; {
			case inside:
				if !slices.Contains(all[metricName].labels, word) && !slices.Contains(given, word) {
					bad("%s has no label %s", metricName, word)
				}
				if i+2 < len(tokens) {
					problems = append(problems, valuesOf(metricName, word, strings.Trim(tokens[i+2], `"`))...)
				}
			case clause:
				named = append(named, word)
			case slices.Contains(words, word):
				if word == "rate" || word == "increase" || word == "changes" {
					closes := slices.IndexFunc(tokens[i:], func(s string) bool { return s == ")" })
					if next(i) != "(" || closes < 0 || !slices.ContainsFunc(tokens[i:i+closes], func(s string) bool { return s[0] == '[' }) {
						bad("%s without a span of time", word)
					} else if m := all[tokens[i+2]]; word != "changes" && m.kind == "gauge" && !slices.Contains(outsiders, tokens[i+2]) {
						bad("%s of %s, which is a gauge", word, tokens[i+2])
					}
				}
			default:
				m, known := all[word]
				if !known {
					bad("there is no metric %s", word)
				}
				used++
				labels = append(labels, m.labels...)
			}
		}
	}
	if len(open) > 0 {
		bad("%s is never closed", open[len(open)-1])
	}
	for _, l := range named {
		if !slices.Contains(labels, l) {
			bad("none of its metrics has the label %s", l)
		}
	}
	if used == 0 {
		bad("there is no metric in it")
	}
	return problems
}

// valuesOf returns which values that a selector asks for a label never has.
func valuesOf(name, label, text string) (problems []string) {
	known, ours := values[name+"."+label]
	if !ours {
		known, ours = values[label]
	}
	if label == "reason" && name != "countersign_desync_requests_total" {
		ours = true
		for _, r := range reason.All() {
			known = append(known, r.String())
		}
	}
	if !ours || strings.HasPrefix(text, "$") {
		return nil
	}
	for _, v := range strings.Split(text, "|") {
		if !slices.Contains(known, v) {
			problems = append(problems, fmt.Sprintf("%s of %s is never %q", label, name, v))
		}
	}
	return problems
}

// TestJudge: the judge sees what is wrong.
func TestJudge(t *testing.T) {
	all := metrics(t)
	for expr, want := range map[string]string{
		`sum by (listener) (rate(countersign_handshakes_total{reason!="completed"}[5m])) > 0`: "",
		`countersign_handshake_total > 0`:                               "there is no metric countersign_handshake_total",
		`rate(countersign_handshakes_total{client="x"}[5m])`:            "countersign_handshakes_total has no label client",
		`rate(countersign_handshakes_total{reason="complete"}[5m])`:     `is never "complete"`,
		`countersign_upstream_targets{state=~"ready|waiting"}`:          `is never "waiting"`,
		`sum by (upstream) (countersign_connections)`:                   "none of its metrics has the label upstream",
		`sum(countersign_connections`:                                   "( is never closed",
		`sum(countersign_connections})`:                                 "} without its other half",
		`rate(countersign_handshakes_total)`:                            "rate without a span of time",
		`rate(countersign_handshakes_total[5])`:                         "[5] is no span of time",
		`rate(countersign_connections[5m])`:                             "which is a gauge",
		`histogram_quantile(0.9, countersign_request_duration_seconds)`: "there is no metric countersign_request_duration_seconds",
		`sum(countersign_connections) % 2`:                              `cannot read "% 2"`,
		`avg(countersign_connections)`:                                  "there is no metric avg",
		`vector(1)`:                                                     "there is no metric in it",
	} {
		if got := strings.Join(judge(all, expr), "; "); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, expected %q", expr, got, want)
		}
	}
}

// rules is a file of alert rules.
type rules struct {
	Groups []group `yaml:"groups"`
}

type group struct {
	Name  string `yaml:"name"`
	Rules []rule `yaml:"rules"`
}

type rule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

// load decodes a file strictly.
func load(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func TestAlerts(t *testing.T) {
	all := metrics(t)
	var file rules
	load(t, "prometheus/alerts.yaml", &file)
	seen, variable := map[string]bool{}, regexp.MustCompile(`\{\{(.*?)\}\}`)
	for _, g := range file.Groups {
		if !strings.HasPrefix(g.Name, "countersign-") || len(g.Rules) == 0 {
			t.Errorf("group %q", g.Name)
		}
		for _, r := range g.Rules {
			for _, p := range judge(all, r.Expr) {
				t.Errorf("%s: %s", r.Alert, p)
			}
			if seen[r.Alert] || !strings.HasPrefix(r.Alert, "Countersign") {
				t.Errorf("%q is there twice, or is not called Countersign...", r.Alert)
			}
			seen[r.Alert] = true
			if d, err := time.ParseDuration(r.For); r.For != "" && (err != nil || d <= 0) {
				t.Errorf("%s: for %q", r.Alert, r.For)
			}
			if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) || len(r.Labels) != 1 {
				t.Errorf("%s: labels %v", r.Alert, r.Labels)
			}
			if len(r.Annotations) != 2 || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s: annotations %v", r.Alert, r.Annotations)
			}
			if text := fmt.Sprint(r.Annotations); !strings.Contains(text, "$labels.instance") {
				t.Errorf("%s does not say where", r.Alert)
			}
			for _, text := range r.Annotations {
				for _, m := range variable.FindAllStringSubmatch(text, -1) {
					label, isLabel := strings.CutPrefix(strings.TrimSpace(m[1]), "$labels.")
					if isLabel && label != "instance" && !has(all, r.Expr, label) || !isLabel && !strings.HasPrefix(strings.TrimSpace(m[1]), "$value") {
						t.Errorf("%s: nothing is known of %s", r.Alert, m[0])
					}
				}
			}
		}
	}
	if len(seen) < 20 {
		t.Errorf("%d alerts", len(seen))
	}
}

// has reports whether some metric of an expression has a label, and no by leaves it out.
func has(all map[string]metric, expr, label string) bool {
	if by := regexp.MustCompile(`by \(([^)]*)\)`).FindAllStringSubmatch(expr, -1); by != nil {
		for _, m := range by {
			if slices.Contains(strings.Split(strings.ReplaceAll(m[1], " ", ""), ","), label) {
				return true
			}
		}
		return false
	}
	for _, word := range regexp.MustCompile(`\w+`).FindAllString(expr, -1) {
		if slices.Contains(all[word].labels, label) {
			return true
		}
	}
	return false
}

// TestAlertTests: what promtool would try are alerts that there are.
func TestAlertTests(t *testing.T) {
	var file rules
	load(t, "prometheus/alerts.yaml", &file)
	text, err := os.ReadFile("prometheus/alerts_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`alertname: (\w+)`).FindAllSubmatch(text, -1) {
		name := string(m[1])
		if !slices.ContainsFunc(file.Groups, func(g group) bool { return slices.ContainsFunc(g.Rules, func(r rule) bool { return r.Alert == name }) }) {
			t.Errorf("there is no alert %s", name)
		}
	}
	all := metrics(t)
	for _, m := range regexp.MustCompile(`series: '(.*)'`).FindAllSubmatch(text, -1) {
		for _, p := range judge(all, string(m[1])) {
			t.Error(p)
		}
	}
}

func TestScrape(t *testing.T) {
	var file struct {
		Scrape []struct {
			Job     string `yaml:"job_name"`
			Targets []struct {
				Targets []string `yaml:"targets"`
			} `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	load(t, "prometheus/scrape.yaml", &file)
	if len(file.Scrape) != 1 || file.Scrape[0].Job != "countersign" {
		t.Errorf("%+v", file)
	}
}

type dashboard struct {
	Title, UID string
	Templating struct {
		List []struct {
			Name, Type string
			Query      any
			Definition string
		}
	}
	Annotations struct {
		List []struct{ Expr string }
	}
	Panels []struct {
		ID          int
		Type, Title string
		Description string
		GridPos     struct{ H, W, X, Y int }
		Targets     []struct{ RefID, Expr, LegendFormat string }
		FieldConfig struct{ Defaults struct{ Unit string } }
	}
}

func TestDashboard(t *testing.T) {
	all := metrics(t)
	text, err := os.ReadFile("grafana/countersign.json")
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	if d.Title != "Countersign" || d.UID != "countersign" || len(d.Panels) < 20 {
		t.Errorf("%q %q, %d panels", d.Title, d.UID, len(d.Panels))
	}
	variables := map[string]bool{"$__rate_interval": true}
	for _, v := range d.Templating.List {
		variables["$"+v.Name] = true
		if v.Type == "query" {
			for _, p := range judge(all, v.Definition) {
				if !strings.HasPrefix(p, "there is no metric "+v.Name) { // label_values names a label behind its metric
					t.Errorf("variable %s: %s", v.Name, p)
				}
			}
		}
	}
	for _, m := range regexp.MustCompile(`\$\w+`).FindAllString(strings.ReplaceAll(string(text), "$__all", ""), -1) {
		if !variables[m] {
			t.Errorf("there is no variable %s", m)
		}
	}
	for _, a := range d.Annotations.List {
		for _, p := range judge(all, a.Expr) {
			t.Errorf("annotation: %s", p)
		}
	}
	ids, taken := map[int]bool{}, map[[2]int]int{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" {
			t.Errorf("panel %d %q", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != 0 || x >= 24 {
					t.Fatalf("panel %d %q lies on panel %d, or outside", p.ID, p.Title, other)
				}
				taken[[2]int{x, y}] = p.ID
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.FieldConfig.Defaults.Unit == "" || p.Description == "" || len(p.Targets) == 0 {
			t.Errorf("panel %q: no unit, no description or nothing to show", p.Title)
		}
		for _, target := range p.Targets {
			for _, problem := range judge(all, target.Expr) {
				t.Errorf("panel %q: %s", p.Title, problem)
			}
			for _, m := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(target.LegendFormat, -1) {
				if m[1] != "instance" && !has(all, target.Expr, m[1]) {
					t.Errorf("panel %q: nothing is known of %s", p.Title, m[0])
				}
			}
		}
	}
}
