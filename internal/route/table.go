package route

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// Rule gives the paths of a pattern a value. Patterns are in decoded form: exact (/status), by segments (/admin/*
// stands for /admin, /admin/ and all below), or everything ("" or /*). Case counts.
type Rule[T any] struct {
	Pattern string
	// Allow are the spellings that the backend of this rule needs. The zero value allows the plain one only.
	Allow Spelling
	Value T
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
type Table[T any] struct {
	rules    []Rule[T]
	exact    map[string]int // pattern to rule
	prefixes map[string]int // pattern without "/*" to rule; "" is everything
	longest  int            // bytes of the longest key in prefixes: no deeper boundary of a path need be looked up
}

// NewTable compiles rules, of which the first that matches wins. It refuses patterns that no request could be meant by,
// and a rule that an earlier one leaves nothing to: whoever wrote it believes that it protects something. Indexes in
// errors count from 1.
func NewTable[T any](rules []Rule[T]) (*Table[T], error) {
	t := &Table[T]{rules: slices.Clone(rules), exact: make(map[string]int), prefixes: make(map[string]int)}
	for i, rule := range rules {
		path, isPrefix := strings.CutSuffix(rule.Pattern, "/*")
		if path != "" || !isPrefix && rule.Pattern != "" {
			if err := checkPattern(path, isPrefix); err != nil {
				return nil, fmt.Errorf("route %d: path %q: %w", i+1, rule.Pattern, err)
			}
		}
		isPrefix = isPrefix || path == ""

		earlier := t.firstPrefix([]byte(path))
		if !isPrefix {
			if exact, ok := t.exact[path]; ok && earlier < 0 {
				earlier = exact
			}
		}
		if earlier >= 0 {
			return nil, fmt.Errorf("route %d: path %q is never reached: route %d with path %q takes all its requests; move route %d before it or remove it",
				i+1, rule.Pattern, earlier+1, rules[earlier].Pattern, i+1)
		}
		if isPrefix {
			t.prefixes[path] = i
			t.longest = max(t.longest, len(path))
		} else {
			t.exact[path] = i
		}
	}
	return t, nil
}

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

// Match finds the rule of a path. It costs one map lookup for each segment of each reading, at most as deep as the
// deepest pattern, and allocates nothing. Without Matched the value is zero and the index negative.
func (t *Table[T]) Match(p Path) (value T, index int, verdict Verdict) {
	if p.count == 0 {
		return value, -1, Unsafe
	}
	index = t.first(p.readings[literal])
	for _, reading := range p.readings[1:p.count] {
		if t.first(reading) != index {
			return value, -1, Unsafe
		}
	}
	switch {
	case index < 0 && p.used == plain:
		return value, -1, NotFound
	case index < 0 || p.used&^t.rules[index].Allow != 0:
		return value, -1, Unsafe
	}
	return t.rules[index].Value, index, Matched
}

// first returns the lowest index of the rules that match path, -1 for none.
func (t *Table[T]) first(path []byte) int {
	index := t.firstPrefix(path)
	if exact, ok := t.exact[string(path)]; ok && (index < 0 || exact < index) {
		index = exact
	}
	return index
}

func (t *Table[T]) firstPrefix(path []byte) int {
	index := -1
	for end := 0; ; {
		if i, ok := t.prefixes[string(path[:end])]; ok && (index < 0 || i < index) {
			index = i
		}
		if end >= t.longest || end >= len(path) {
			return index
		}
		if next := bytes.IndexByte(path[end+1:], '/'); next >= 0 {
			end += 1 + next
		} else {
			end = len(path)
		}
		if end > t.longest { // hashing it would be work that a client chooses
			return index
		}
	}
}
