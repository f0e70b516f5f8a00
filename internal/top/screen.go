package top

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Order is what rows are sorted by.
type Order uint8

// The orders. The zero value has the busiest first.
const (
	ByRate Order = iota
	ByTotal
	ByName
	orders
)

func (o Order) String() string { return [...]string{"rate", "total", "name"}[o] }

// section is a part of the screen.
type section uint8

const (
	overview section = iota // all of them
	refusals
	listeners
	upstreams
	targets
	freshest
	sections
)

func (s section) String() string {
	return [...]string{"overview", "refusals", "listeners", "upstreams", "targets", "freshest"}[s]
}

// Screen is how a Status is shown.
type Screen struct {
	Width, Height int // 0 for no bounds
	Order         Order
	Filter        string // rows without it are left out

	section  section
	scroll   int
	trouble  string // one line in place of the conditions
	footer   string
	headline string // behind the source
}

// row is one line of a table, with what it is sorted by.
type row struct {
	cells       []string
	rate, total float64
	alarm       bool
}

// table is one section.
type table struct {
	section section
	heads   []string
	rows    []row
	// none is what is said where there are no rows.
	none string
	text bool // its rows are lines, in their order
}

// line is a line of the screen; head marks titles, alarm what should be looked at.
type line struct {
	text        string
	head, alarm bool
}

// Print writes s as plain text.
func Print(w io.Writer, s *Status, c Screen) error {
	for _, l := range c.lines(s) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(l.text, " ")); err != nil {
			return err
		}
	}
	return nil
}

// lines lays s out. A nil s is an instance that has not been reached yet.
func (c *Screen) lines(s *Status) (all []line) {
	add := func(head, alarm bool, format string, args ...any) {
		all = append(all, line{c.cut(fmt.Sprintf(format, args...)), head, alarm})
	}
	if s == nil {
		add(true, false, "countersign top%s", c.headline)
		add(false, c.trouble != "", "%s", c.trouble)
		return c.fill(all)
	}
	up := "-"
	if s.Uptime != nil {
		up = span(*s.Uptime)
	}
	add(true, false, "countersign top  %s  up %s  %s%s", clean(s.Source, 60), up, s.Time.Format(time.TimeOnly)+"Z", c.headline)
	add(false, false, "handshakes %s/s (refused %s, resumed %s)  connections %s", rate(s.Handshakes), rate(s.Refused), rate(s.Resumed), number(s.Connections))
	add(false, false, "requests   %s/s (failed %s)  p50 %s  p99 %s  handshake p99 %s", rate(s.Requests), rate(s.Failed), seconds(s.Request.P50), seconds(s.Request.P99), seconds(s.Handshake.P99))
	add(false, c.trouble != "" || len(s.Conditions) > 0 || s.warns(), "%s", c.state(s))
	tables := s.tables()
	shown := tables
	if c.section != overview {
		shown = slices.DeleteFunc(slices.Clone(tables), func(t table) bool { return t.section != c.section })
	}
	for i := range shown {
		if rows := c.arrange(&shown[i]); len(rows) == 0 && len(shown[i].rows) > 0 {
			shown[i].rows, shown[i].none = nil, "no row has the text of the filter"
		} else {
			shown[i].rows = rows
		}
	}
	return c.fill(c.place(all, shown))
}

// warns reports what is of concern besides conditions.
func (s *Status) warns() bool {
	return s.Pressure != nil && *s.Pressure > 0 || s.Reload != nil && *s.Reload == 0 || s.Dropped.Rate != nil && *s.Dropped.Rate > 0 || s.Restarted
}

// state is the line of what needs the operator.
func (c *Screen) state(s *Status) string {
	if c.trouble != "" {
		return c.trouble
	}
	var parts []string
	for _, x := range s.Conditions {
		parts = append(parts, fmt.Sprintf("%s %s", clean(x.Code, 40), number(&x.Count)))
	}
	if s.Reload != nil && *s.Reload == 0 && !slices.ContainsFunc(s.Conditions, func(x Condition) bool { return x.Code == "reload_refused" }) {
		parts = append(parts, "the last configuration was refused")
	}
	if s.Pressure != nil && *s.Pressure > 0 {
		parts = append(parts, "memory is short ("+number(s.Pressure)+" of 2)")
	}
	if s.Dropped.Rate != nil && *s.Dropped.Rate > 0 {
		parts = append(parts, "log lines dropped "+rate(s.Dropped)+"/s")
	}
	if s.Restarted {
		parts = append(parts, "it was started anew")
	}
	if len(parts) == 0 {
		return "conditions none"
	}
	return "conditions " + strings.Join(parts, ", ")
}

// place gives each table its share of the height: what it needs, or an equal part of what is left.
func (c *Screen) place(all []line, tables []table) []line {
	left := math.MaxInt
	if c.Height > 0 {
		left = max(0, c.Height-len(all)-1) // of which the last is the footer's
	}
	order := make([]int, len(tables))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(tables[a].needs(), tables[b].needs()) })
	shares := make([]int, len(tables))
	for i, at := range order {
		shares[at] = min(tables[at].needs(), left/(len(tables)-i))
		left -= shares[at]
	}
	for i, t := range tables {
		all = append(all, c.draw(&t, shares[i])...)
	}
	return all
}

// needs is how many lines a table takes: its heading and rows, or a word that there are none.
func (t *table) needs() int { return 1 + max(1, len(t.rows)) }

// draw draws a table in n lines.
func (c *Screen) draw(t *table, n int) []line {
	if n < 2 {
		return nil
	}
	widths := make([]int, len(t.heads))
	for i, h := range t.heads {
		widths[i] = len(h)
	}
	if !t.text {
		for _, r := range t.rows {
			for i, cell := range r.cells {
				widths[i] = max(widths[i], min(len(cell), 40))
			}
		}
	}
	draw := func(cells []string) string {
		var b strings.Builder
		for i, cell := range cells {
			if t.text {
				b.WriteString(cell)
				break
			}
			if i > 0 {
				b.WriteString("  ")
			}
			cell = clean(cell, max(4, widths[i]))
			if i < 2 { // the names; numbers stand to the right
				fmt.Fprintf(&b, "%-*s", widths[i], cell)
			} else {
				fmt.Fprintf(&b, "%*s", widths[i], cell)
			}
		}
		return b.String()
	}
	lines := []line{{c.cut(draw(t.heads)), true, false}}
	if len(t.rows) == 0 {
		return append(lines, line{c.cut(t.none), false, false})
	}
	from := 0
	if c.section != overview {
		from = min(c.scroll, max(0, len(t.rows)-(n-1)))
	}
	for i, r := range t.rows[from:] {
		if len(lines) == n-1 && from+i < len(t.rows)-1 {
			return append(lines, line{c.cut(fmt.Sprintf("... and %d more", len(t.rows)-from-i)), false, false})
		}
		lines = append(lines, line{c.cut(draw(r.cells)), false, r.alarm})
	}
	return lines
}

// arrange filters and sorts the rows of a table.
func (c *Screen) arrange(t *table) []row {
	rows := slices.Clone(t.rows)
	if c.Filter != "" {
		rows = slices.DeleteFunc(rows, func(r row) bool {
			return !slices.ContainsFunc(r.cells, func(cell string) bool { return contains(cell, c.Filter) })
		})
	}
	if t.text {
		return rows
	}
	slices.SortStableFunc(rows, func(a, b row) int {
		names := slices.Compare(a.cells[:2], b.cells[:2])
		switch c.Order {
		case ByRate:
			return cmp.Or(cmp.Compare(b.rate, a.rate), cmp.Compare(b.total, a.total), names)
		case ByTotal:
			return cmp.Or(cmp.Compare(b.total, a.total), names)
		}
		return names
	})
	return rows
}

// fill puts the footer on the last line.
func (c *Screen) fill(all []line) []line {
	if c.Height > 0 {
		if len(all) > c.Height-1 {
			all = all[:max(0, c.Height-1)]
		}
		for len(all) < c.Height-1 {
			all = append(all, line{})
		}
	}
	if c.footer != "" {
		all = append(all, line{text: c.cut(c.footer), head: true})
	}
	return all
}

// cut makes a line that fits.
func (c *Screen) cut(text string) string {
	if c.Width > 0 && len(text) > c.Width {
		return text[:c.Width]
	}
	return text
}

// tables are the sections of s.
func (s *Status) tables() []table {
	ref := table{section: refusals, heads: []string{"REFUSED", "OF", "PER SECOND", "TOTAL"}, none: "nobody is refused, or nothing is told of it"}
	for _, r := range s.Reasons {
		ref.rows = append(ref.rows, row{[]string{clean(r.Reason, 40), r.Of, rate(r.Count), number(r.Total)}, of(r.Rate), of(r.Total), of(r.Rate) > 0})
	}
	lis := table{section: listeners, heads: []string{"LISTENER", "", "CONNS", "SHAKES/S", "REFUSED/S", "REQS/S", "FAILED/S", "P50", "P99"}, none: "no listener is told of"}
	for _, l := range s.Listeners {
		lis.rows = append(lis.rows, row{[]string{clean(l.Name, 40), "", number(l.Connections), rate(l.Handshakes), rate(l.Refused), rate(l.Requests), rate(l.Failed), seconds(l.Times.P50), seconds(l.Times.P99)},
			of(l.Requests.Rate) + of(l.Handshakes.Rate), of(l.Requests.Total) + of(l.Handshakes.Total), false})
	}
	ups := table{section: upstreams, heads: []string{"UPSTREAM", "", "REQS/S", "5XX/S", "WAITING", "P50", "P99"}, none: "no upstream is told of"}
	for _, u := range s.Upstreams {
		note := ""
		if of(u.FailOpen) > 0 {
			note = "health ignored"
		}
		ups.rows = append(ups.rows, row{[]string{clean(u.Name, 40), note, rate(u.Requests), rate(u.Errors), number(u.Pending), seconds(u.Times.P50), seconds(u.Times.P99)},
			of(u.Requests.Rate), of(u.Requests.Total), of(u.FailOpen) > 0 || of(u.Errors.Rate) > 0})
	}
	tgt := table{section: targets, heads: []string{"TARGET", "UPSTREAM", "STATE", "BUSY", "OPEN", "IDLE"}, none: "no target is told of"}
	for _, t := range s.Targets {
		state := cmp.Or(t.State, "-")
		tgt.rows = append(tgt.rows, row{[]string{clean(t.Target, 40), clean(t.Upstream, 40), state, number(t.Busy), number(t.Open), number(t.Idle)},
			of(t.Busy), of(t.Open), state != "healthy" && state != "-"})
	}
	fresh := table{section: freshest, heads: []string{"FRESHEST REFUSALS"}, none: "none in the journal", text: true}
	for _, l := range s.Freshest {
		fresh.rows = append(fresh.rows, row{cells: []string{clean(l, 400)}})
	}
	all := []table{ref, lis, ups, tgt}
	if s.Freshest != nil {
		all = append(all, fresh)
	}
	return all
}

func of(v *float64) float64 {
	if v == nil {
		return 0
	}
	return *v
}

func rate(c Count) string {
	if c.Rate == nil {
		return "-"
	}
	return decimal(*c.Rate)
}

// decimal shows a rate: two digits where it is small.
func decimal(v float64) string {
	switch {
	case v >= 1e7:
		return strconv.FormatFloat(v, 'g', 3, 64)
	case v >= 100 || v == 0:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

func number(v *float64) string {
	switch {
	case v == nil:
		return "-"
	case math.Abs(*v) >= 1e15:
		return strconv.FormatFloat(*v, 'g', 3, 64)
	}
	return strconv.FormatFloat(*v, 'f', -1, 64)
}

// seconds shows a time of an exchange.
func seconds(v *float64) string {
	switch {
	case v == nil:
		return "-"
	case *v < 0.01:
		return strconv.FormatFloat(*v*1e3, 'f', 1, 64) + "ms"
	case *v < 1:
		return strconv.FormatFloat(*v*1e3, 'f', 0, 64) + "ms"
	}
	return strconv.FormatFloat(*v, 'f', 1, 64) + "s"
}

// span shows for how long something has been.
func span(seconds float64) string {
	d := time.Duration(math.Min(seconds, 1e9)) * time.Second
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return d.String()
}
