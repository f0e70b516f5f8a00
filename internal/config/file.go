package config

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"
)

// File is a parsed configuration file with what is needed to point into it.
type File struct {
	// Name is the file's name as problems show it.
	Name string
	// Source is the text that was parsed.
	Source []byte
	// Config is the decoded file; nil when Parse found an error, so that a half-understood file cannot be run.
	Config *Config
	// Partial is what could be decoded, never nil, the same as Config when that is set. It is for finding further problems
	// only: a setting that was refused looks like one that was left out.
	Partial *Config

	*layout
	parts []*File // included files
}

// layout is where the settings of a text stand. Copies of a File share it.
type layout struct {
	// spots are the settings in the order in which they were decoded, the file as a whole first. They hold neither paths nor
	// a map of them: a file of thousands of hosts has a hundred thousand, and only who has a problem to show needs one.
	spots []spot

	once   sync.Once
	byPath map[string]int // into spots

	cut   sync.Once
	lines []string
}

// spot is one setting: its key or its index in a list, inside the setting that is number in of the spots.
type spot struct {
	name      string
	in, index int32 // index is -1 for a key, in is -1 for the file as a whole
	key, show mark
}

// mark is a Pos in half the memory.
type mark struct{ line, column int32 }

func markOf(p Pos) mark {
	return mark{int32(min(p.Line, math.MaxInt32)), int32(min(p.Column, math.MaxInt32))}
}

func (m mark) pos() Pos { return Pos{int(m.line), int(m.column)} }

// add notes a setting and returns its number.
func (l *layout) add(s spot, p place) int {
	s.key, s.show = markOf(p.key), markOf(p.show)
	l.spots = append(l.spots, s)
	return len(l.spots) - 1
}

// path writes the path of a setting.
func (l *layout) path(at int) string {
	s := &l.spots[at]
	switch {
	case s.in < 0:
		return ""
	case s.index >= 0:
		return Path(l.path(int(s.in)), int(s.index))
	}
	return Path(l.path(int(s.in)), s.name)
}

func (l *layout) at(at int) place {
	s := &l.spots[at]
	return place{s.key.pos(), s.show.pos()}
}

// lookup returns the place of exactly this path. Of settings whose paths look the same, as those with dots in their names
// can, it knows the first.
func (l *layout) lookup(path string) (place, bool) {
	l.once.Do(func() {
		l.byPath = make(map[string]int, len(l.spots))
		paths := make([]string, len(l.spots)) // who contains comes first
		for i, s := range l.spots {
			switch {
			case s.in < 0:
			case s.index >= 0:
				paths[i] = Path(paths[s.in], int(s.index))
			default:
				paths[i] = Path(paths[s.in], s.name)
			}
			if _, taken := l.byPath[paths[i]]; !taken {
				l.byPath[paths[i]] = i
			}
		}
	})
	at, ok := l.byPath[path]
	if !ok {
		return place{}, false
	}
	return l.at(at), true
}

// Pos is a place in a file. Line and Column count from 1, columns in characters.
type Pos struct {
	Line, Column int
}

// place is where a path stands: its key, and the character to show for a problem with its value.
type place struct {
	key, show Pos
}

var bom = []byte("\ufeff")

// Path writes the path of a setting: strings are joined by dots and ints become [i]. The first part may itself be a
// path; empty strings are left out.
func Path(parts ...any) string {
	var room [128]byte
	b := room[:0]
	for _, part := range parts {
		var s string
		switch p := part.(type) {
		case int:
			b = append(strconv.AppendInt(append(b, '['), int64(p), 10), ']')
			continue
		case string:
			s = p
		default:
			s = fmt.Sprint(p)
		}
		if s != "" {
			if len(b) > 0 {
				b = append(b, '.')
			}
			b = append(b, s...)
		}
	}
	return string(b)
}

// last splits the last key or index off a path.
func last(path string) (name, parent string) {
	i := max(strings.LastIndexByte(path, '.'), strings.LastIndexByte(path, '['))
	if i < 0 {
		return path, ""
	}
	return strings.TrimPrefix(path[i:], "."), path[:i]
}

// At returns where to point for a problem with the value at path: at the value when it is text or a number, at the key
// of a mapping or list, which begins lines below; at the nearest ancestor when the path is not in the file.
func (f *File) At(path string) Pos { return f.place(path).show }

// KeyAt is At for a problem with the key itself.
func (f *File) KeyAt(path string) Pos { return f.place(path).key }

func (f *File) place(path string) place {
	p, _ := f.find(path)
	return p
}

// find returns the place of a path and the file it is in.
func (f *File) find(path string) (place, *File) {
	for {
		if p, ok := f.lookup(path); ok {
			return place{f.clamp(p.key), f.clamp(p.show)}, f
		}
		for _, part := range f.parts {
			if p, ok := part.lookup(path); ok && path != "" {
				return place{part.clamp(p.key), part.clamp(p.show)}, part
			}
		}
		if path == "" {
			return place{Pos{1, 1}, Pos{1, 1}}, f
		}
		_, path = last(path)
	}
}

// Include adds what an included file has to f, and changes nothing that others may share with f. The problems are names
// that both have, and sections that only the main file may have.
func (f *File) Include(part *File) (problems Problems) {
	add := func(path, next, format string, args ...any) {
		p := part.Problem(path, next, format, args...)
		p.In = part
		problems = append(problems, p)
	}
	from, to := part.Partial, f.Partial
	for key, present := range map[string]bool{"include": from.Include != nil, "ops": from.Ops != nil, "control": from.Control != "",
		"log": from.Log != nil, "limits": from.Limits != nil, "outbound": from.Outbound != nil, "tracing": from.Tracing != nil, "experimental": from.Experimental != nil,
		"state": from.State != "", "journal": from.Journal != nil, "drain": from.Drain != 0} {
		if present {
			add(key, "move it to "+f.Name, "an included file has trust_stores, listeners and upstreams only, found %s", key)
		}
	}
	merge(f, "trust_stores", &to.TrustStores, from.TrustStores, add)
	merge(f, "listeners", &to.Listeners, from.Listeners, add)
	merge(f, "upstreams", &to.Upstreams, from.Upstreams, add)
	f.parts = append(f.parts, part)
	if part.Config == nil {
		f.Config = nil
	}
	return problems
}

// Sources are the texts of the file and of those it includes.
func (f *File) Sources() [][]byte {
	all := [][]byte{f.Source}
	for _, part := range f.parts {
		all = append(all, part.Source)
	}
	return all
}

func merge[T any](f *File, section string, to *map[string]T, from map[string]T, add func(path, next, format string, args ...any)) {
	own := false // whether *to is of this Include
	for name, v := range from {
		path := Path(section, name)
		if _, twice := (*to)[name]; twice {
			place, file := f.find(path)
			add(path, "rename or remove one of the two", "%q is there already, in %s line %d", name, file.Name, place.key.Line)
			continue
		}
		if !own {
			*to, own = maps.Clone(*to), true
			if *to == nil {
				*to = make(map[string]T)
			}
		}
		(*to)[name] = v
	}
}

// clamp moves a position that the YAML library put behind the end of a line or of the file to that end.
func (f *File) clamp(p Pos) Pos {
	f.split()
	if p.Line > len(f.lines) {
		p = Pos{len(f.lines), len(f.lines[len(f.lines)-1]) + 1}
	}
	p.Line = max(p.Line, 1)
	p.Column = min(max(p.Column, 1), len([]rune(f.lines[p.Line-1]))+1)
	return p
}

func (f *File) split() {
	f.cut.Do(func() {
		f.lines = strings.Split(string(bytes.TrimPrefix(f.Source, bom)), "\n")
		for i, line := range f.lines {
			f.lines[i] = strings.TrimSuffix(line, "\r")
		}
	})
}

// Problem is one thing that is wrong with a file, or questionable when Warning is set.
type Problem struct {
	// In is the included file it is in; nil means the main file.
	In *File
	// Path is the setting, empty for the file as a whole.
	Path string
	// Pos is where it stands.
	Pos Pos
	// Message says what was found and what was expected.
	Message string
	// Next is the one thing to do; may be empty where the message leaves no question.
	Next string
	// Warning is set when the file can be used nevertheless.
	Warning bool
}

// Problem makes an error at path. Set Warning on the result for a warning.
func (f *File) Problem(path, next, format string, args ...any) Problem {
	place, in := f.find(path)
	if in == f {
		in = nil
	}
	return Problem{In: in, Path: path, Pos: place.show, Next: next, Message: fmt.Sprintf(format, args...)}
}

// Problems are all that was found; nil when all is well.
type Problems []Problem

// HasErrors reports whether one of the problems is more than a warning.
func (ps Problems) HasErrors() bool {
	return slices.ContainsFunc(ps, func(p Problem) bool { return !p.Warning })
}

// Sort orders the problems by position. Those at one position keep the order in which they were found.
func (ps Problems) Sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		if a.In != b.In {
			return strings.Compare(a.file(), b.file())
		}
		if a.Pos.Line != b.Pos.Line {
			return a.Pos.Line - b.Pos.Line
		}
		return a.Pos.Column - b.Pos.Column
	})
}

// Error gives one line for each problem. Problems is an error only for callers that have no File to render with; check
// HasErrors, not nil.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.headline()
	}
	return strings.Join(lines, "\n")
}

// file is the name of the included file, empty for the main one, which comes first.
func (p Problem) file() string {
	if p.In == nil {
		return ""
	}
	return p.In.Name
}

func (p Problem) headline() string {
	var b strings.Builder
	if p.Pos.Line > 0 {
		fmt.Fprintf(&b, "%d:%d:", p.Pos.Line, p.Pos.Column) // one about a whole file has no place
	}
	b.WriteByte(' ')
	if p.Warning {
		b.WriteString("warning: ")
	}
	if p.Path != "" {
		b.WriteString(printable(p.Path) + ": ")
	}
	b.WriteString(printable(p.Message))
	return b.String()
}

// Render writes the problems for people, in the order given: each with its source line, a caret and what to do next.
func (f *File) Render(w io.Writer, ps Problems) error {
	main := f
	var b strings.Builder
	for _, p := range ps {
		f := main
		if p.In != nil {
			f = p.In
		}
		f.split()
		fmt.Fprintf(&b, "%s:%s\n", printable(f.Name), p.headline())
		if p.Pos.Line >= 1 && p.Pos.Line <= len(f.lines) {
			text, caret := excerpt(f.lines[p.Pos.Line-1], p.Pos.Column)
			number := fmt.Sprintf("%4d", p.Pos.Line)
			fmt.Fprintf(&b, "%s | %s\n%*s | %*s\n", number, text, len(number), "", caret, "^")
		}
		if p.Next != "" {
			fmt.Fprintf(&b, "  next: %s\n", printable(p.Next))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// maxShown is how many characters of a source line are shown.
const maxShown = 160

// excerpt returns the part of a line around a column in a form that is safe on a terminal, and the column of the caret
// under it. Tabs become four spaces, because a tab's width depends on what stands before it.
func excerpt(line string, column int) (text string, caret int) {
	runes := []rune(line)
	column = min(max(column, 1), len(runes)+1)
	start := 0
	if column > maxShown {
		start = column - maxShown/2
	}
	end := min(start+maxShown, len(runes))
	show := func(part []rune) string { return printable(strings.ReplaceAll(string(part), "\t", "    ")) }
	before, after := show(runes[start:min(column-1, end)]), show(runes[min(column-1, end):end])
	if start > 0 {
		before = "…" + before
	}
	if end < len(runes) {
		after += "…"
	}
	return before + after, len([]rune(before)) + 1
}

// printable escapes what a terminal would obey or hide. Files and messages can carry text from elsewhere.
func printable(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) && strings.ToValidUTF8(s, "") == s {
		return s
	}
	var b strings.Builder
	for _, r := range strings.ToValidUTF8(s, "\ufffd") {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return b.String()
}

// Suggest returns the name among the given ones that name was probably meant to be, or "". It allows two typing
// mistakes, one in short names, where two would make anything fit.
func Suggest(name string, among []string) string {
	if len(name) > maxName {
		return "" // no name is that long, and the comparison is not free
	}
	best, least := "", 3
	if len(name) < 4 {
		least = 2
	}
	for _, candidate := range among {
		if n := distance(strings.ToLower(name), strings.ToLower(candidate), least); n < least {
			best, least = candidate, n
		}
	}
	return best
}

// distance is the number of characters to insert, remove, change or swap with their neighbour to get from a to b;
// limit when it is that or more.
func distance(a, b string, limit int) int {
	s, t := []rune(a), []rune(b)
	if len(s)-len(t) >= limit || len(t)-len(s) >= limit {
		return limit
	}
	// Three rows of the usual table: swapping looks two rows back.
	var older []int
	row := make([]int, len(t)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(s); i++ {
		next := make([]int, len(t)+1)
		next[0] = i
		for j := 1; j <= len(t); j++ {
			change := row[j-1]
			if s[i-1] != t[j-1] {
				change++
			}
			next[j] = min(change, row[j]+1, next[j-1]+1)
			if i > 1 && j > 1 && s[i-1] == t[j-2] && s[i-2] == t[j-1] {
				next[j] = min(next[j], older[j-2]+1)
			}
		}
		older, row = row, next
	}
	return min(row[len(t)], limit)
}
