package route

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
	"unicode/utf8"
)

// The bounds of what the operator writes and of what a stranger's text costs (F24). A glob costs at most its length times
// that of the text, an expression at most its instructions times that.
const (
	maxGlob         = 256     // bytes of a pattern with wildcards
	maxRegexp       = 512     // bytes of an expression
	maxInstructions = 256     // of its program
	maxRegexpText   = 1 << 10 // bytes of a text that an expression is tried on
	maxGlobText     = 4 << 10 // bytes of a text that a glob with wildcards is tried on
)

// Glob is a text with wildcards: "*" stands for any characters, none and slashes among them, "?" for one. It describes the
// whole text. The zero value describes the empty one.
type Glob struct {
	text   string
	tokens []uint16 // octets, or one of the wildcards
	fold   bool
	any    bool // nothing but stars
	plain  bool // no wildcard at all
}

const (
	many = 0x100 + iota
	one
)

// CompileGlob compiles text. With fold the letters of ASCII are compared without regard to case. A backslash takes from
// "*", "?" and itself what they mean.
func CompileGlob(text string, fold bool) (Glob, error) {
	g := Glob{text: text, fold: fold, any: text != "", plain: true}
	if len(text) > maxGlob {
		return Glob{}, fmt.Errorf("has %d bytes; expected at most %d", len(text), maxGlob)
	}
	if !utf8.ValidString(text) {
		return Glob{}, fmt.Errorf("is not UTF-8")
	}
	for i := 0; i < len(text); i++ {
		c := uint16(text[i])
		switch {
		case text[i] == '*':
			if n := len(g.tokens); n > 0 && g.tokens[n-1] == many {
				continue // means the same, and would only cost
			}
			c = many
		case text[i] == '?':
			c = one
		case text[i] == '\\':
			if i+1 == len(text) || strings.IndexByte(`*?\`, text[i+1]) < 0 {
				return Glob{}, fmt.Errorf(`has a \ that is not followed by *, ? or \`)
			}
			i++
			c = uint16(text[i])
		case isControl(text[i]):
			return Glob{}, fmt.Errorf("has a control character")
		}
		if fold && c < many {
			c = uint16(lower(byte(c)))
		}
		g.any = g.any && c == many
		g.plain = g.plain && c < many
		g.tokens = append(g.tokens, c)
	}
	return g, nil
}

// String returns the pattern as it was written.
func (g Glob) String() string { return g.text }

// Match reports whether the glob describes text. A text of more than 4 KiB is described by no wildcard but a lone "*".
func (g *Glob) Match(text []byte) bool {
	switch {
	case g.any:
		return true
	case g.plain && len(text) != len(g.tokens), len(text) > maxGlobText:
		return false
	}
	// The last star takes as little as it can; when what follows does not fit, it takes one character more. Earlier stars
	// need not be tried again: what stands before the last one fits already.
	at, i := 0, 0
	star, from := -1, 0
	for i < len(text) {
		if at < len(g.tokens) {
			switch token := g.tokens[at]; {
			case token == many:
				star, from = at, i
				at++
				continue
			case token == one:
				i += character(text[i:])
				at++
				continue
			case token == uint16(text[i]) || g.fold && token == uint16(lower(text[i])):
				i++
				at++
				continue
			}
		}
		if star < 0 {
			return false
		}
		from += character(text[from:])
		at, i = star+1, from
	}
	for at < len(g.tokens) && g.tokens[at] == many {
		at++
	}
	return at == len(g.tokens)
}

// character is the length of the first character of text, 1 where it is not UTF-8.
func character(text []byte) int {
	if text[0] < utf8.RuneSelf {
		return 1
	}
	_, n := utf8.DecodeRune(text)
	return n
}

func lower(c byte) byte {
	if c-'A' < 26 {
		c |= 0x20
	}
	return c
}

// Regexp is a regular expression (RE2) that describes a whole text. The zero value describes nothing.
type Regexp struct {
	text string
	re   *regexp.Regexp
}

// CompileRegexp compiles text, which is taken to be tied to both ends. It refuses an expression whose program is large:
// repetitions inside repetitions cost every request.
func CompileRegexp(text string) (Regexp, error) {
	if len(text) > maxRegexp {
		return Regexp{}, fmt.Errorf("has %d bytes; expected at most %d", len(text), maxRegexp)
	}
	tree, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return Regexp{}, fmt.Errorf("is not a regular expression (RE2): %w", err)
	}
	program, err := syntax.Compile(tree.Simplify())
	if err != nil {
		return Regexp{}, fmt.Errorf("is not a regular expression (RE2): %w", err)
	}
	if n := len(program.Inst); n > maxInstructions {
		return Regexp{}, fmt.Errorf("compiles to %d instructions; expected at most %d: use smaller repetitions", n, maxInstructions)
	}
	re, err := regexp.Compile(`\A(?:` + text + `)\z`)
	if err != nil {
		return Regexp{}, fmt.Errorf("is not a regular expression (RE2): %w", err)
	}
	return Regexp{text, re}, nil
}

// String returns the expression as it was written.
func (r Regexp) String() string { return r.text }

// Groups is how many groups it has besides the whole.
func (r Regexp) Groups() int { return r.re.NumSubexp() }

// Match reports whether the expression describes text. A text of more than 1 KiB is described by none.
func (r Regexp) Match(text []byte) bool {
	return r.re != nil && len(text) <= maxRegexpText && r.re.Match(text)
}

// Submatch returns where the groups of the expression are in text, in pairs of offsets, the whole first; nil if it does not
// describe text.
func (r Regexp) Submatch(text []byte) []int {
	if r.re == nil || len(text) > maxRegexpText {
		return nil
	}
	return r.re.FindSubmatchIndex(text)
}

// prefix is the text that everything that r describes begins with.
func (r Regexp) prefix() string {
	loose, err := regexp.Compile("(?:" + r.text + ")")
	if err != nil {
		return ""
	}
	prefix, _ := loose.LiteralPrefix()
	return prefix
}
