package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
)

// report is what a run found; its JSON is kept in docs/benchmarks.
type report struct {
	Date    string    `json:"date"`
	Machine machine   `json:"machine"`
	Setting setting   `json:"setting"`
	Targets []*target `json:"targets"`
	// Missing says which peers were not there and why; Inspected how each refused strangers.
	Missing   []string          `json:"missing"`
	Inspected map[string]string `json:"inspected"`
	Results   []*result         `json:"results"`
	// Error is what ended the run early: then results has the workloads that were complete.
	Error string `json:"error,omitempty"`
}

type machine struct {
	CPU        string `json:"cpu"`
	Cores      int    `json:"cores"`
	Memory     string `json:"memory"`
	Kernel     string `json:"kernel"`
	LoadBefore string `json:"load_before"`
	LoadAfter  string `json:"load_after"`
}

type setting struct {
	Rounds     int     `json:"rounds"`
	Seconds    float64 `json:"seconds"`
	ProxyCores []int   `json:"proxy_cores"`
	LoadCores  []int   `json:"load_cores"`
	Log        bool    `json:"log"`
	Hosts      int     `json:"hosts"`
	Revoked    int     `json:"revoked"`
	Idle       int     `json:"idle"`
	// GOGC and MemoryLimit are what Countersign runs with by its own metrics; empty if it is no target.
	GOGC        string `json:"gogc,omitempty"`
	MemoryLimit string `json:"memory_limit,omitempty"`
}

// result is one line: a value for each target, and ours against the better peer.
type result struct {
	Name  string  `json:"name"`
	Title string  `json:"title"`
	Of    string  `json:"of"`
	Unit  string  `json:"unit"`
	Goal  float64 `json:"goal,omitempty"`
	// Ours is the cell that the goal speaks of, "countersign" if empty.
	Ours  string  `json:"ours,omitempty"`
	Cells []*cell `json:"cells"`
	// Better is the peer with the lowest median: of those that goals speak of, if any of them has been measured.
	Better string  `json:"better,omitempty"`
	Ratio  *spread `json:"ratio,omitempty"`
	Met    *bool   `json:"met,omitempty"`
	// Lacks are the targets without which nothing can be said of the goal, with the reason if there is one.
	Lacks []string `json:"lacks,omitempty"`
	// Choice is what was seen before with it: a goal without a figure.
	Choice *choice `json:"choice,omitempty"`
	// Profile is where our CPU went, or the memory of idle connections: what a profile begins with.
	Profile string `json:"profile,omitempty"`
}

// cell is what one target did in one line. Rounds are in order, so that they can be compared one by one.
type cell struct {
	Target string    `json:"target"`
	Value  spread    `json:"value"`
	Rounds []float64 `json:"rounds"`
	Rate   *spread   `json:"units_per_second,omitempty"`
	Util   *spread   `json:"cores_used,omitempty"`
	P50    *spread   `json:"p50_ms,omitempty"`
	P99    *spread   `json:"p99_ms,omitempty"`
	Memory float64   `json:"memory_mb,omitempty"`
	// Rest is the part of the value that was used behind the load, until the target's next cell.
	Rest    *spread            `json:"at_rest,omitempty"`
	Ratios  map[string]*spread `json:"ratio_of_ours_to_this,omitempty"`
	Problem string             `json:"problem,omitempty"`
	// Repeated is how many rounds failed and were measured again.
	Repeated int `json:"repeated,omitempty"`
	modern   bool
}

// String is what was measured: its name, version and TLS.
func (t *target) String() string { return fmt.Sprintf("%s: %s, %s", t.Name, t.Version, t.TLS) }

// judge fills in what follows from the cells.
func (r *result) judge() {
	for _, c := range r.Cells {
		c.Value = spreadOf(c.Rounds)
	}
	var better *cell
	mine := r.ours()
	if r.Lacks = nil; r.Goal != 0 {
		r.Lacks = r.lacks()
	}
	if len(mine.Rounds) == 0 {
		return
	}
	for _, c := range r.Cells {
		if c == mine || len(c.Rounds) == 0 {
			continue
		}
		s := spreadOf(ratios(mine.Rounds, c.Rounds))
		c.Ratios = map[string]*spread{"countersign": &s}
		if better == nil || c.modern && !better.modern || c.modern == better.modern && c.Value.Median < better.Value.Median {
			better = c
		}
	}
	if better == nil {
		return
	}
	r.Better, r.Ratio = better.Target, better.Ratios["countersign"]
	if r.Goal != 0 && len(r.Lacks) == 0 {
		met := r.Ratio.Median <= r.Goal
		r.Met = &met
	}
}

// lacks are those of the cells that a goal speaks of which have no value: ours, and each of HAProxy and nginx of a newer
// Debian, as the better of the two is not known from one. There is no goal for what one of them cannot do by its nature.
func (r *result) lacks() (names []string) {
	lack := func(c *cell, name string) {
		if len(c.Rounds) > 0 {
			return
		}
		if c.Problem != "" {
			name += " (" + c.Problem + ")"
		}
		names = append(names, name)
	}
	mine := r.ours()
	lack(mine, cmp.Or(r.Ours, "countersign"))
	modern := func(kind string) *cell {
		for _, c := range r.Cells {
			if c != mine && c.modern && strings.HasPrefix(c.Target, kind) {
				return c
			}
		}
		return &cell{}
	}
	if r.Ours != "" { // beside itself
		c := modern("")
		lack(c, c.Target)
		return names
	}
	for _, kind := range []string{"haproxy", "nginx"} {
		c := modern(kind + "-")
		lack(c, cmp.Or(c.Target, kind+" of a newer Debian"))
	}
	return names
}

func (r *result) verdict() string {
	switch {
	case r.Goal == 0:
		return "-"
	case r.Met == nil:
		return fmt.Sprintf("%.2f, OPEN", r.Goal)
	case *r.Met:
		return fmt.Sprintf("%.2f, met", r.Goal)
	}
	return fmt.Sprintf("%.2f, NOT met", r.Goal)
}

// number prints three digits or so.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	if v < 1 {
		return fmt.Sprintf("%.3f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (s spread) String() string {
	return number(s.Median) + " (" + number(s.Min) + "-" + number(s.Max) + ")"
}

// print writes the tables: one block for each line, then the goals.
func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s: %s, %d cores, %s, Linux %s; load %s before, %s after\n", r.Date, r.Machine.CPU, r.Machine.Cores, r.Machine.Memory, r.Machine.Kernel,
		r.Machine.LoadBefore, r.Machine.LoadAfter)
	for _, t := range r.Targets {
		fmt.Fprintf(w, "  %s\n", t)
	}
	fmt.Fprintf(w, "%d rounds of %.1f s, target on cores %v, load and backends on %v, access logs %s", r.Setting.Rounds, r.Setting.Seconds,
		r.Setting.ProxyCores, r.Setting.LoadCores, map[bool]string{true: "on", false: "off"}[r.Setting.Log])
	if r.Setting.GOGC != "" {
		fmt.Fprintf(w, "; countersign with GOGC=%s, memory limit %s", r.Setting.GOGC, r.Setting.MemoryLimit)
	}
	fmt.Fprintln(w)
	if r.Error != "" {
		fmt.Fprintf(w, "INCOMPLETE, ended early: %s\n", r.Error)
	}
	for _, m := range r.Missing {
		fmt.Fprintf(w, "  not measured: %s\n", m)
	}
	if r.Setting.Rounds == 0 {
		for _, l := range r.Results {
			fmt.Fprintf(w, "\n%s\n  %s\n", l.Title, cmp.Or(l.Profile, "no profile"))
		}
		return
	}
	for _, l := range r.Results {
		fmt.Fprintf(w, "\n%s: %s per %s\n", l.Title, l.Of, l.Unit)
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintf(t, "\ttarget\tmedian (min-max)\t%s / this\tunits/s\tcores used\tp50 ms\tp99 ms\tMB\t\n", cmp.Or(l.Ours, "ours"))
		for _, c := range l.Cells {
			if c.Problem == "" && len(c.Rounds) == 0 {
				continue
			}
			if c.Problem != "" {
				fmt.Fprintf(t, "\t%s\t%s\n", c.Target, c.Problem)
				continue
			}
			note := ""
			if c.Repeated > 0 {
				note = fmt.Sprintf("%d rounds repeated", c.Repeated)
			}
			fmt.Fprintf(t, "\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Target, c.Value, ofRatio(c.Ratios["countersign"]), median(c.Rate), median(c.Util), median(c.P50), median(c.P99), orDash(c.Memory), note)
		}
		t.Flush()
		if l.Choice != nil {
			l.Choice.print(w)
		}
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "work\tcountersign\tbetter peer\tratio by round\tgoal\t")
	for _, l := range r.Results {
		if l.Ratio == nil {
			fmt.Fprintf(t, "%s\t-\t-\t-\t%s\t\n", l.Title, l.verdict())
		} else {
			fmt.Fprintf(t, "%s\t%s %s\t%s %s\t%s\t%s\t\n", l.Title, number(l.ours().Value.Median), l.Of, l.Better, number(l.cell(l.Better).Value.Median),
				ofRatio(l.Ratio), l.verdict())
		}
		if c := l.Choice; c != nil {
			fmt.Fprintf(t, "%s\t%s\t%s\t-\t%s\t\n", c.Title, cmp.Or(c.cell("countersign").String(), "-"), cmp.Or(c.better(), "-"), c.verdict())
		}
	}
	t.Flush()
	r.missed(w)
}

// missed says in plain lines which goals are not met, and which are open because what they speak of is not there.
func (r *report) missed(w io.Writer) {
	var met, goals int
	for _, l := range r.Results {
		if l.Goal == 0 {
			continue
		}
		switch goals++; {
		case l.Met == nil:
			peer := "the better of HAProxy and nginx of a newer Debian"
			if l.Ours != "" {
				peer = "what it is without the trouble"
			}
			fmt.Fprintf(w, "\nOPEN: %s: the goal is %.2f of %s, and there is no figure of %s.\n", l.Title, l.Goal, peer, strings.Join(l.Lacks, " and "))
			continue
		case *l.Met:
			met++
			continue
		}
		mine, better := l.ours().Value.Median, l.cell(l.Better).Value.Median
		fmt.Fprintf(w, "\nNOT MET: %s: %.3f of %s (%s %s per %s; theirs %s); the goal is %.2f.\n",
			l.Title, l.Ratio.Median, l.Better, number(mine), l.Of, l.Unit, number(better), l.Goal)
		if l.Profile != "" {
			fmt.Fprintf(w, "  ours goes to: %s\n", l.Profile)
		}
	}
	for _, l := range r.Results {
		if l.Choice == nil {
			continue
		}
		if goals++; l.Choice.Met != nil && *l.Choice.Met {
			met++
		} else {
			fmt.Fprintf(w, "\n%s\n", l.Choice.missed())
		}
	}
	if goals > 0 {
		fmt.Fprintf(w, "\n%d of %d goals met.\n", met, goals)
	}
}

func (r *result) ours() *cell { return r.cell(cmp.Or(r.Ours, "countersign")) }

// cell is that of a target; a new one if it has none.
func (r *result) cell(target string) *cell {
	for _, c := range r.Cells {
		if c.Target == target {
			return c
		}
	}
	return &cell{}
}

func ofRatio(s *spread) string {
	if s == nil {
		return "-"
	}
	return fmt.Sprintf("%.3f (%.3f-%.3f)", s.Median, s.Min, s.Max)
}

func median(s *spread) string {
	if s == nil {
		return "-"
	}
	return orDash(s.Median)
}

func orDash(v float64) string {
	if v == 0 {
		return "-"
	}
	return number(v)
}

// write puts the table, all figures and the chart into a folder.
func (r *report) write(dir string) error {
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var table bytes.Buffer
	r.print(&table)
	for name, content := range map[string][]byte{"results.json": append(text, '\n'), "table.txt": bytes.TrimLeft(table.Bytes(), "\n"), "summary.svg": chart(r)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func thisMachine(ctx context.Context) machine {
	m := machine{Cores: runtime.NumCPU(), Memory: "unknown memory", Kernel: strings.TrimSpace(say(ctx, "uname", "-r")), LoadBefore: load(), CPU: runtime.GOARCH}
	text, _ := os.ReadFile("/proc/cpuinfo")
	for l := range strings.Lines(string(text)) {
		if k, v, _ := strings.Cut(l, ":"); strings.TrimSpace(k) == "model name" {
			m.CPU = strings.TrimSpace(v)
			break
		}
	}
	var kb float64
	text, _ = os.ReadFile("/proc/meminfo")
	if _, err := fmt.Sscanf(string(text), "MemTotal: %f kB", &kb); err == nil {
		m.Memory = fmt.Sprintf("%.1f GiB", kb/(1<<20))
	}
	return m
}

// load is the load average over one minute.
func load() string {
	text, _ := os.ReadFile("/proc/loadavg")
	one, _, _ := strings.Cut(string(text), " ")
	return one
}
