package main

import (
	"bytes"
	"cmp"
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// What the chart is drawn with, in pixels.
const (
	chartWidth = 1080
	chartLeft  = 450 // where bars begin
	chartUnit  = 240 // the length of ratio 1
	chartMost  = 2.0 // longer bars are cut and say so
	chartBar   = 13
	chartGap   = 16
	chartTop   = 92
)

// colours by target, ours first; peers of one kind are alike.
var colours = map[string]string{"countersign": "#0b6e4f", "haproxy": "#9db4c0", "nginx": "#c2a878", "caddy": "#b8a1c9", "traefik": "#d3a1a1"}

// chart draws every line as bars relative to the better peer, whose bar is 1: shorter is better. A dash marks the goal.
func chart(r *report) []byte {
	var w, labels bytes.Buffer // labels lie above all lines
	y := chartTop
	for _, l := range r.Results {
		base := l.cell(l.Better).Value.Median
		if base <= 0 {
			continue
		}
		top := y
		fmt.Fprintf(&w, `<text x="%d" y="%d" class="t">%s</text>`+"\n", 12, y+11, html.EscapeString(l.Title))
		fmt.Fprintf(&w, `<text x="%d" y="%d" class="s">%s per %s</text>`+"\n", 12, y+25, html.EscapeString(l.Of), html.EscapeString(l.Unit))
		cells := slices.DeleteFunc(slices.Clone(l.Cells), func(c *cell) bool { return len(c.Rounds) == 0 })
		slices.SortStableFunc(cells, func(a, b *cell) int { return cmp.Compare(rank(l, a), rank(l, b)) })
		for _, c := range cells {
			bar(&w, &labels, y, c, base, c == l.ours())
			y += chartBar + 3
		}
		y = max(y, top+30)
		if l.Goal > 0 {
			x := chartLeft + l.Goal*chartUnit
			fmt.Fprintf(&w, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#b00020" stroke-width="1.5" stroke-dasharray="4 2"/>`+"\n", x, top-3, x, y)
		}
		y += chartGap
	}
	bottom := y
	for _, t := range r.Targets {
		fmt.Fprintf(&w, `<text x="12" y="%d" class="s">%s</text>`+"\n", y+8, html.EscapeString(t.String()))
		y += chartGap
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img">`+"\n", chartWidth, y+10)
	out.WriteString(`<style>text{font:12px sans-serif;fill:#222}.h{font-size:16px;font-weight:bold}.t{font-weight:bold;font-size:11.5px}.s{fill:#555;font-size:11px;paint-order:stroke;stroke:#fff;stroke-width:3px}</style>` + "\n")
	fmt.Fprintf(&out, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", chartWidth, y+10)
	fmt.Fprintf(&out, `<text x="12" y="24" class="h">Countersign beside its peers, client certificates required</text>`+"\n")
	fmt.Fprintf(&out, `<text x="12" y="43" class="s">medians relative to that of the better peer (1.0); shorter is better; black: smallest to largest round; red: the goal of issues 6 and 7</text>`+"\n")
	fmt.Fprintf(&out, `<text x="12" y="59" class="s">%s; %s, %d cores, %s, target on %d of the cores; Linux %s; %d rounds of %g s</text>`+"\n", html.EscapeString(r.Date),
		html.EscapeString(r.Machine.CPU), r.Machine.Cores, html.EscapeString(r.Machine.Memory), len(r.Setting.ProxyCores), html.EscapeString(r.Machine.Kernel), r.Setting.Rounds, r.Setting.Seconds)
	for _, v := range []float64{0.5, 1, 1.5} {
		x := chartLeft + v*chartUnit
		fmt.Fprintf(&out, `<line x1="%.1f" y1="80" x2="%.1f" y2="%d" stroke="#ddd"/><text x="%.1f" y="76" class="s" text-anchor="middle">%.1f</text>`+"\n", x, x, bottom, x, v)
	}
	out.Write(w.Bytes())
	out.Write(labels.Bytes())
	out.WriteString("</svg>\n")
	return out.Bytes()
}

// rank puts us first, then the peers that goals speak of.
func rank(r *result, c *cell) int {
	switch {
	case c == r.ours():
		return 0
	case c.modern:
		return 1
	}
	return 2
}

// bar draws one target: its length is its median, the thin line its smallest to its largest round.
func bar(w, labels *bytes.Buffer, y int, c *cell, base float64, mine bool) {
	at := func(v float64) float64 { return math.Min(v/base, chartMost) * chartUnit }
	kind, _, _ := strings.Cut(c.Target, "-")
	colour := cmp.Or(colours[kind], "#bbbbbb")
	if mine {
		colour = colours["countersign"]
	}
	fmt.Fprintf(w, `<text x="%d" y="%d" class="s" text-anchor="end">%s</text>`+"\n", chartLeft-6, y+10, html.EscapeString(c.Target))
	fmt.Fprintf(w, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", chartLeft, y, math.Max(at(c.Value.Median), 1), chartBar, colour)
	fmt.Fprintf(w, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1[2]f" stroke="#444"/>`+"\n", chartLeft+at(c.Value.Min), float64(y)+chartBar/2.0, chartLeft+at(c.Value.Max))
	cut := ""
	if c.Value.Median/base > chartMost {
		cut = ", bar cut"
	}
	fmt.Fprintf(labels, `<text x="%.1f" y="%d" class="s">%s (%.2f%s)</text>`+"\n", chartLeft+math.Max(at(c.Value.Median), at(c.Value.Max))+5, y+10, number(c.Value.Median), c.Value.Median/base, cut)
}
