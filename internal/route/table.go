package route

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// Kind is how the pattern of a rule is written.
type Kind uint8

// The kinds.
const (
	// Plain is exact (/status), by segments (/admin/* stands for /admin, /admin/ and all below), or everything ("" or /*).
	Plain Kind = iota
	// Wild is a glob over the whole path, slashes included, as AWS ALB has it: /img/*.png, *.php.
	Wild
	// Expression is a regular expression over the whole path.
	Expression
)

// Rule gives the paths of a pattern a value. Patterns are in decoded form; case counts.
type Rule[T any] struct {
	Pattern string
	Kind    Kind
	// When are conditions besides the path; nil for none.
	When *When
	// Allow are the spellings that the backend of this rule needs. The zero value allows the plain one only, which is all
	// that rules of other kinds than Plain can be met by.
	Allow Spelling
	Value T
	// Number is what errors call the rule, counting from 1; 0 means its place.
	Number int
}

// Verdict is the outcome of Table.Match. The zero value is Unsafe.
type Verdict uint8

// The verdicts.
const (
	// Unsafe means that the backend might read a path other than the one that would be decided on: refuse the request.
	Unsafe Verdict = iota
	// NotFound means that no rule has the path.
	NotFound
	// Matched means that every reading of the path selects the one rule returned.
	Matched
)

var verdictNames = [...]string{"unsafe", "not_found", "matched"}

func (v Verdict) String() string {
	if int(v) >= len(verdictNames) {
		v = Unsafe
	}
	return verdictNames[v]
}

// Table holds the compiled rules. It is immutable and safe for concurrent use. The zero value has no rules.
//
// Rules are found by where their paths begin, however many there are: those that share a path, and differ in what else they
// ask, are tried in their order.
type Table[T any] struct {
	rules    []Rule[T]
	compiled []compiled
	exact    map[string]int // pattern to its first rule
	prefixes map[string]int // pattern without "/*" to its first rule; "" is everything
	longest  int            // bytes of the longest key in prefixes: no deeper boundary of a path need be looked up
	asks     bool
}

// compiled is what a rule is tried with.
type compiled struct {
	next   int // the next rule with the same key; -1 for none
	glob   *Glob
	regexp *Regexp
}

const (
	// maxShared bounds the rules that a client can make us try one after the other (F24).
	maxShared      = 1000
	maxExpressions = 200 // of a table
)

// NewTable compiles rules, of which the first that matches wins. It refuses patterns that no request could be meant by,
// and a rule that an earlier one leaves nothing to: whoever wrote it believes that it protects something.
func NewTable[T any](rules []Rule[T]) (*Table[T], error) {
	t := &Table[T]{rules: slices.Clone(rules), compiled: make([]compiled, len(rules)), exact: make(map[string]int), prefixes: make(map[string]int)}
	last := make(map[int]int)   // of each chain, by its first rule
	shared := make(map[int]int) // how many rules a chain has
	expressions := 0
	for i := range rules {
		rule, c := &t.rules[i], &t.compiled[i]
		if rule.Number == 0 {
			rule.Number = i + 1
		}
		c.next = -1
		key, isPrefix, err := c.compile(rule.Pattern, rule.Kind)
		if err == nil && rule.Kind != Plain && rule.Allow != plain {
			err = fmt.Errorf("goes with no other spelling than the plain one; use a path without wildcards and expressions where the backend needs %s", rule.Allow)
		}
		if c.regexp != nil {
			if expressions++; expressions > maxExpressions {
				err = fmt.Errorf("is one regular expression too many; expected at most %d in the routes of a host", maxExpressions)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("route %d: path %q: %w", rule.Number, rule.Pattern, err)
		}
		if by := t.covers(key, isPrefix); by >= 0 {
			return nil, fmt.Errorf("route %d: path %q is never reached: route %d with path %q takes all its requests; move route %d before it or remove it",
				rule.Number, rule.Pattern, t.rules[by].Number, rules[by].Pattern, rule.Number)
		}
		chains := t.exact
		if isPrefix {
			chains, t.longest = t.prefixes, max(t.longest, len(key))
		}
		if first, ok := chains[key]; ok {
			t.compiled[last[first]].next = i
			last[first] = i
			if shared[first]++; shared[first] >= maxShared {
				return nil, fmt.Errorf("route %d: path %q: more than %d routes begin like it and would be tried one after the other; use more of the path, or hosts of their own", rule.Number, rule.Pattern, maxShared)
			}
		} else {
			chains[key], last[i] = i, i
		}
		t.asks = t.asks || rule.When != nil
	}
	return t, nil
}

// compile returns the key under which a pattern is found: the path itself, or a prefix by segments of all its paths.
func (c *compiled) compile(pattern string, kind Kind) (key string, isPrefix bool, err error) {
	switch kind {
	case Wild:
		glob, err := CompileGlob(pattern, false)
		if err != nil {
			return "", false, err
		}
		if err := checkWild(pattern); err != nil {
			return "", false, err
		}
		c.glob = &glob
		return segments(pattern[:strings.IndexAny(pattern, "*?")]), true, nil
	case Expression:
		re, err := CompileRegexp(pattern)
		if err != nil {
			return "", false, err
		}
		c.regexp = &re
		return segments(re.prefix()), true, nil
	}
	path, isPrefix := strings.CutSuffix(pattern, "/*")
	if path != "" || !isPrefix && pattern != "" {
		if err := checkPattern(path, isPrefix); err != nil {
			return "", false, err
		}
	}
	return path, isPrefix || path == "", nil
}

// checkWild refuses a glob that no plain path meets, and one that says the same as a path without wildcards.
func checkWild(pattern string) error {
	switch stars := strings.Count(pattern, "*"); {
	case !strings.ContainsAny(pattern, "*?"):
		return fmt.Errorf("has no wildcard; write it as path")
	case strings.Trim(pattern, "*") == "" || pattern == "/*":
		return fmt.Errorf("describes every path; leave it out")
	case stars == 1 && strings.HasSuffix(pattern, "/*") && !strings.Contains(pattern, "?"):
		return fmt.Errorf("as a glob it leaves out %s itself; write it as path, where it stands for that too", strings.TrimSuffix(pattern, "/*"))
	}
	example := strings.NewReplacer("*", "x", "?", "x").Replace(pattern)
	if pattern[0] == '*' {
		example = "/" + example
	}
	return checkPattern(example, false)
}

// segments is the longest prefix by segments of all paths that begin with text, "" for all paths.
func segments(text string) string {
	end := strings.LastIndexByte(text, '/')
	if end <= 0 || checkPattern(text[:end], true) != nil {
		return ""
	}
	return text[:end]
}

// covers returns a rule that leaves nothing to a rule of this key, -1 for none.
func (t *Table[T]) covers(key string, isPrefix bool) int {
	path := []byte(key)
	by := t.walk(path, func(i int) bool {
		c := &t.compiled[i]
		switch {
		case t.rules[i].When != nil:
			return false
		case c.glob != nil:
			return !isPrefix && c.glob.Match(path)
		case c.regexp != nil:
			return !isPrefix && c.regexp.Match(path)
		}
		return true
	})
	if exact, ok := t.exact[key]; ok && !isPrefix && by < 0 {
		for ; exact >= 0; exact = t.compiled[exact].next {
			if t.rules[exact].When == nil {
				return exact
			}
		}
	}
	return by
}

// walk returns the first rule in a chain of a prefix of path, in the order of the prefixes, that yes says yes to.
func (t *Table[T]) walk(path []byte, yes func(i int) bool) int {
	for end := 0; end >= 0; end = t.boundary(path, end) {
		if i, ok := t.prefixes[string(path[:end])]; ok {
			for ; i >= 0; i = t.compiled[i].next {
				if yes(i) {
					return i
				}
			}
		}
	}
	return -1
}

// Rules are the rules in their order; nil for a nil table.
func (t *Table[T]) Rules() []Rule[T] {
	if t == nil {
		return nil
	}
	return slices.Clone(t.rules)
}

// Asks reports whether a rule has conditions besides its path, so that Find needs an Ask.
func (t *Table[T]) Asks() bool { return t != nil && t.asks }

// CheckPath refuses what is not a decoded path in which nothing is left to decode, merge or resolve.
func CheckPath(path string) error { return checkPattern(path, false) }

// checkPattern refuses what cannot be the plain reading of a path. The safety of Match rests on it: a pattern in which
// nothing is left to decode, merge, resolve or cut can only be met by a reading in which nothing is left either.
func checkPattern(path string, isPrefix bool) error {
	const next = "; expected a decoded path such as /status or /admin/*"
	switch {
	case !strings.HasPrefix(path, "/"):
		return fmt.Errorf("does not start with /%s", next)
	case strings.Contains(path, "*"):
		return fmt.Errorf("has a * that is not the whole last segment%s", next)
	case strings.ContainsAny(path, "?#"):
		return fmt.Errorf("has a query or fragment%s", next)
	case strings.ContainsAny(path, ";\\"):
		return fmt.Errorf("has a parameter or backslash%s", next)
	case hasEscape([]byte(path)):
		return fmt.Errorf("is percent-encoded%s", next)
	}
	var a analysis
	a.path.count = 1
	a.addLax([]byte(path))
	if normal := string(a.path.readings[lax]); normal != path || isPrefix && strings.HasSuffix(path, "/") {
		return fmt.Errorf("has an empty or dot segment, or one that ends in a dot or space%s", next)
	}
	for _, c := range []byte(path) {
		if isControl(c) {
			return fmt.Errorf("has a control character%s", next)
		}
	}
	return nil
}

// Match is Find for a table without conditions besides paths. In any other it finds no rule that has some, nor one behind
// it.
func (t *Table[T]) Match(p Path) (value T, index int, verdict Verdict) { return t.Find(p, nil) }

// Find finds the rule of a request. It costs one map lookup for each segment of each reading of its path, at most as deep
// as the deepest pattern, and what the rules under those keys ask; it allocates nothing. Without Matched the value is zero
// and the index negative.
//
// A path that backends may read in several ways is not tried on globs and expressions, as nobody can say which mixtures of
// readings they describe: if one begins as such a path does, it may be meant, and the verdict is Unsafe.
func (t *Table[T]) Find(p Path, ask *Ask) (value T, index int, verdict Verdict) {
	if p.count == 0 {
		return value, -1, Unsafe
	}
	s := search[T]{table: t, ask: ask, single: p.Single(), unsure: -1}
	index = s.first(p.readings[literal])
	for _, reading := range p.readings[1:p.count] {
		if s.first(reading) != index {
			return value, -1, Unsafe
		}
	}
	switch {
	case s.unsure >= 0 && (index < 0 || s.unsure < index):
		return value, -1, Unsafe
	case index < 0 && p.used == plain:
		return value, -1, NotFound
	case index < 0 || p.used&^t.rules[index].Allow != 0:
		return value, -1, Unsafe
	}
	return t.rules[index].Value, index, Matched
}

// search is one Find.
type search[T any] struct {
	table  *Table[T]
	ask    *Ask
	single bool // the path has one reading
	unsure int  // the first rule of which nobody can say whether it is met; -1 for none
}

// first returns the lowest index of the rules that are met by a reading of the path, -1 for none.
func (s *search[T]) first(path []byte) int {
	t, index := s.table, -1
	for end := 0; end >= 0; end = t.boundary(path, end) {
		if i, ok := t.prefixes[string(path[:end])]; ok {
			index = s.chain(i, index, path)
		}
	}
	if i, ok := t.exact[string(path)]; ok {
		index = s.chain(i, index, path)
	}
	return index
}

// chain returns the first rule from i on that is met, or best if that comes before it.
func (s *search[T]) chain(i, best int, path []byte) int {
	t := s.table
	for ; i >= 0 && (best < 0 || i < best); i = t.compiled[i].next {
		c, when := &t.compiled[i], t.rules[i].When
		special := c.glob != nil || c.regexp != nil
		switch {
		case special && s.single && !(c.glob != nil && c.glob.Match(path) || c.regexp != nil && c.regexp.Match(path)):
			if c.regexp != nil && len(path) > maxRegexpText || len(path) > maxGlobText {
				s.doubt(i) // too long to be tried
			}
		case when != nil && s.ask == nil:
			s.doubt(i)
		case when != nil && !when.met(s.ask):
		case special && !s.single:
			s.doubt(i)
		default:
			return i
		}
	}
	return best
}

func (s *search[T]) doubt(i int) {
	if s.unsure < 0 || i < s.unsure {
		s.unsure = i
	}
}

// boundary returns the end of the next prefix by segments of path, -1 if there is none that could be a key.
func (t *Table[T]) boundary(path []byte, end int) int {
	if end >= t.longest || end >= len(path) {
		return -1
	}
	if next := bytes.IndexByte(path[end+1:], '/'); next >= 0 {
		end += 1 + next
	} else {
		end = len(path)
	}
	if end > t.longest { // hashing it would be work that a client chooses
		return -1
	}
	return end
}
