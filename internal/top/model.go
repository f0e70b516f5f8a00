package top

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
)

// Options are what Run shows.
type Options struct {
	Source *Source
	// Interval is the time between two samples.
	Interval time.Duration
	// Freshest returns lines about the newest refusals, newest first, from the journal; nil where there is none.
	Freshest func(context.Context) []string
	Order    Order
	Filter   string
	Input    io.Reader
	Output   io.Writer
}

// Run shows the instance until the user has seen enough, or ctx ends.
func Run(ctx context.Context, o Options) error {
	m := newModel(ctx, o)
	_, err := tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(o.Input), tea.WithOutput(o.Output), tea.WithWindowSize(80, 24)).Run()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// ui is the state of the terminal.
type ui struct {
	ctx    context.Context
	o      Options
	screen Screen

	last    *Sample
	status  *Status
	paused  bool
	help    bool
	writing bool   // a filter is being typed
	before  string // the filter before that
	turn    int    // of reading; older ticks count for nothing
}

// came is the result of reading the instance.
type came struct {
	turn     int
	sample   *Sample
	freshest []string
	err      error
}

// tick says that it is time to read again.
type tick struct{ turn int }

func newModel(ctx context.Context, o Options) *ui {
	u := &ui{ctx: ctx, o: o}
	u.screen.Width, u.screen.Height, u.screen.Order, u.screen.Filter = 80, 24, o.Order, o.Filter
	u.screen.trouble = "reading " + clean(o.Source.Name, 80) + " ..."
	return u
}

// Init implements tea.Model.
func (u *ui) Init() tea.Cmd { return u.read() }

// read reads the instance, in a goroutine of bubbletea.
func (u *ui) read() tea.Cmd {
	turn := u.turn
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(u.ctx, timeout)
		defer cancel()
		c := came{turn: turn}
		if c.sample, c.err = u.o.Source.Read(ctx); c.err == nil && u.o.Freshest != nil {
			c.freshest = u.o.Freshest(ctx)
		}
		return c
	}
}

// Update implements tea.Model.
func (u *ui) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		u.screen.Width, u.screen.Height = msg.Width, msg.Height
	case came:
		if msg.turn != u.turn {
			return u, nil
		}
		u.take(msg)
		return u, tea.Tick(u.o.Interval, func(time.Time) tea.Msg { return tick{msg.turn} })
	case tick:
		if msg.turn == u.turn && !u.paused {
			return u, u.read()
		}
	case tea.KeyPressMsg:
		if u.writing {
			u.write(msg)
			return u, nil
		}
		return u, u.press(msg.String())
	}
	return u, nil
}

// take takes a sample in, or why there is none: what was known stays on the screen.
func (u *ui) take(c came) {
	if c.err != nil {
		u.screen.trouble = "asked again every " + u.o.Interval.String() + ": " + clean(c.err.Error(), 160)
		return
	}
	u.screen.trouble = ""
	u.status = Compare(u.o.Source.Name, u.last, c.sample)
	u.status.Freshest, u.last = c.freshest, c.sample
}

// press does what a key stands for.
func (u *ui) press(key string) tea.Cmd {
	s := &u.screen
	if u.help {
		u.help = false
		if key != "q" && key != "ctrl+c" {
			return nil
		}
	}
	switch key {
	case "q", "ctrl+c":
		return tea.Quit
	case "s":
		s.Order = (s.Order + 1) % orders
	case "f", "/":
		u.writing, u.before = true, s.Filter
	case "esc":
		s.Filter, s.section, s.scroll = "", overview, 0
	case "p", "space":
		if u.paused = !u.paused; !u.paused {
			u.turn++
			return u.read()
		}
	case "tab":
		s.section, s.scroll = (s.section+1)%sections, 0
		if s.section == freshest && (u.status == nil || u.status.Freshest == nil) {
			s.section = overview
		}
	case "down", "j":
		s.scroll = min(s.scroll+1, 100_000)
	case "up", "k":
		s.scroll = max(0, s.scroll-1)
	case "?", "h":
		u.help = true
	}
	return nil
}

// maxFilter bounds what is typed.
const maxFilter = 40

// write takes a key while a filter is typed.
func (u *ui) write(key tea.KeyPressMsg) {
	s := &u.screen
	switch key.String() {
	case "enter":
		u.writing = false
	case "esc", "ctrl+c":
		u.writing, s.Filter = false, u.before
	case "backspace":
		s.Filter = s.Filter[:max(0, len(s.Filter)-1)]
	default:
		if text := key.Key().Text; len(text) == 1 && text[0] >= ' ' && text[0] < 0x7f && len(s.Filter) < maxFilter {
			s.Filter += text
		}
	}
}

// help is what the keys do.
const help = `countersign top shows what a running instance tells at its ops listener.

  tab      one section after the other: refusals, listeners, upstreams, targets,
           freshest refusals (those of the journal), and all of them
  up down  move within a section
  s        sort by rate, total or name
  f        show only rows with a text; enter keeps it, esc forgets it
  p        pause, and go on
  q        quit

Rates are those since the sample before; totals since the instance was started.
Times are estimated from histograms. "-" is what the instance does not tell.

any key goes back`

// View implements tea.Model.
func (u *ui) View() tea.View {
	v := tea.NewView(strings.Join(u.text(true), "\n"))
	v.AltScreen, v.WindowTitle = true, "countersign top"
	return v
}

// text is the screen, in lines; styled with bold titles and red alarms.
func (u *ui) text(styled bool) (out []string) {
	s := u.screen
	if u.help {
		for l := range strings.SplitSeq(help, "\n") {
			if out = append(out, s.cut(l)); len(out) == s.Height {
				break
			}
		}
		return out
	}
	s.headline = fmt.Sprintf("  every %s", u.o.Interval)
	if u.paused {
		s.headline = "  PAUSED"
	}
	s.footer = fmt.Sprintf("q quit  s sort (%s)  f filter  p pause  tab %s  ? help", s.Order, s.section)
	switch {
	case u.writing:
		s.footer = "filter: " + s.Filter + "_   enter keeps it, esc forgets it"
	case s.Filter != "":
		s.footer = "filter: " + s.Filter + " (esc shows all)  " + s.footer
	}
	for _, l := range s.lines(u.status) {
		switch {
		case !styled:
			l.text = strings.TrimRight(l.text, " ")
		case l.alarm:
			l.text = "\x1b[31m" + l.text + "\x1b[m"
		case l.head:
			l.text = "\x1b[1m" + l.text + "\x1b[m"
		}
		out = append(out, l.text)
	}
	return out
}
