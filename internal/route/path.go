// Package route owns the compiled matcher: path to route, without I/O.
//
// A request is decided on the decoded path, and its raw bytes are forwarded, never rewritten. That is only safe if the
// backend cannot read another path into the same bytes. So Analyze also computes how lax backends read them, and
// Table.Match refuses a path whose readings select different routes, or that uses a spelling which the route does not
// allow (threats A26, A27).
package route

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// Spelling is a set of ways to write a path that backends read differently. The zero value is the plain spelling. It
// serves both as what a path uses and as what a route allows.
type Spelling uint8

// The spellings.
const (
	// EncodedSlash is %2f: data to some backends, a separator to others.
	EncodedSlash Spelling = 1 << iota
	// DoubleSlash is an empty segment: some backends merge the slashes.
	DoubleSlash
	// DotSegments are "." and ".." segments in any encoding, also with parameters (..;x).
	DotSegments
	// Backslash is \ or %5c: a separator to some backends.
	Backslash
	// DoubleEncoded is an escape that appears only after decoding once (%252e): some backends decode again. It comes
	// with the spelling that the second decoding shows, if any.
	DoubleEncoded

	plain Spelling = 0
)

var spellingNames = [...]string{"encoded_slash", "double_slash", "dot_segments", "backslash", "double_encoded"}

// ParseSpelling returns the spelling of a name as String and the config file write it.
func ParseSpelling(name string) (Spelling, bool) {
	for i, known := range spellingNames {
		if name == known {
			return 1 << i, true
		}
	}
	return plain, false
}

// String returns the names joined by commas, "plain" for none.
func (s Spelling) String() string {
	if s == plain {
		return "plain"
	}
	var names []string
	for i, name := range spellingNames {
		if s&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// Error says why a path was refused whatever the route. It is a constant, so that refusing allocates and echoes nothing.
type Error string

func (e Error) Error() string { return string(e) }

// The refusals of Analyze.
const (
	ErrNotAbsolute Error = "path does not start with /"
	ErrCharacter   Error = "path has a byte that is not visible ASCII, or a bare ? or #"
	ErrEscape      Error = "path has a % that is not followed by two hexadecimal digits"
	ErrControl     Error = "path has an encoded control character"
	ErrUTF8        Error = "path does not decode to valid UTF-8"
	ErrDepth       Error = "path is encoded more than twice over"
	ErrMixed       Error = "path mixes dot segments or parameters with other spellings in a way that backends read differently"
)

// Path is an analysed path: every way in which the backends we know of may read it. Only Analyze makes one that can be
// matched; the zero value is unsafe. It refers to the bytes given to Analyze and is valid as long as they do not change.
type Path struct {
	used     Spelling
	count    int
	readings [3][]byte
}

// The readings. The first two stand for all mixtures of decoding, separators, merged slashes and parameters: each of
// these edits is local and a pattern holds nothing to edit, so if some of the edits make a pattern match, all of them
// do. Where a path is cut, what ".." removes and where a parameter ends are not local: hence laxCut and ErrMixed.
const (
	literal = iota // decoded once, %2f kept as text
	lax            // everything decoded and resolved
	laxCut         // lax, but the path ends at its first parameter or encoded ? or #
)

// Used returns the spellings that the route has to allow.
func (p Path) Used() Spelling { return p.used }

// Single reports whether there is one way to read the path: nothing in it is left to decode, merge, resolve or cut.
func (p Path) Single() bool {
	if p.count == 0 || p.used != plain {
		return false
	}
	for _, reading := range p.readings[1:p.count] {
		if !bytes.Equal(reading, p.readings[literal]) {
			return false
		}
	}
	return true
}

// Under reports whether all, or some, of the readings are prefix or below it by segments.
func (p Path) Under(prefix string) (all, some bool) {
	all = p.count > 0
	for _, reading := range p.readings[:p.count] {
		under := len(reading) >= len(prefix) && string(reading[:len(prefix)]) == prefix && (len(reading) == len(prefix) || reading[len(prefix)] == '/')
		all, some = all && under, some || under
	}
	return all, some
}

// Literal returns the path decoded once, in which an encoded slash is the text %2f. Policies and logs see this one.
func (p Path) Literal() []byte { return p.readings[literal] }

// Normal returns the path as the laxest backend reads it: decoded to the end, every kind of separator one "/", dot
// segments resolved, parameters and trailing dots and spaces of segments dropped.
func (p Path) Normal() []byte {
	if p.count == 1 { // plain
		return p.readings[literal]
	}
	return p.readings[lax]
}

// Analyze reads rawPath, the path of a request target without its query (RFC 3986 section 3.3). An error means that the
// path is refused by every route. buf is scratch, its content is overwritten and may be kept in Path; with a capacity of
// 5*len(rawPath) there is no allocation, and a plain path needs none of it.
func Analyze(rawPath, buf []byte) (Path, error) {
	if len(rawPath) == 0 || rawPath[0] != '/' {
		return Path{}, ErrNotAbsolute
	}
	special := false
	previous := byte(0)
	for _, c := range rawPath {
		switch {
		case c <= ' ' || c >= 0x7f || c == '?' || c == '#':
			return Path{}, ErrCharacter
		case c == '%' || c == ';' || c == '\\':
			special = true
		case previous == '/' && (c == '/' || c == '.'), previous == '.' && c == '/':
			special = true
		}
		previous = c
	}
	if !special && previous != '.' {
		return Path{count: 1, readings: [3][]byte{rawPath}}, nil
	}
	a := analysis{buf: buf[:0]}
	if err := a.run(rawPath); err != nil {
		return Path{}, err
	}
	return a.path, nil
}

// analysis is the work on a path that is not plain.
type analysis struct {
	path  Path
	buf   []byte // holds every decoded text and reading, one after the other
	mixed bool   // the path has something that does not go together with dot segments
}

func (a *analysis) run(rawPath []byte) error {
	full, err := a.unescape(rawPath, true)
	if err != nil {
		return err
	}
	once := full
	if a.path.used&EncodedSlash != 0 {
		once = a.unescapeButSlash(rawPath)
	}
	// Decoding twice is a mistake that backends make, more is an attack; and without a bound the work would be
	// quadratic in the length of the path.
	if hasEscape(full) {
		a.path.used |= DoubleEncoded
		if full, err = a.unescape(full, false); err != nil {
			return err
		}
		if hasEscape(full) {
			return ErrDepth
		}
	}
	if !utf8.Valid(once) || !utf8.Valid(full) {
		return ErrUTF8
	}
	for i, c := range full {
		if c == '\\' {
			a.path.used |= Backslash
		}
		if i > 0 && isSeparator(c) && isSeparator(full[i-1]) {
			a.path.used |= DoubleSlash
		}
	}

	a.path.readings[literal], a.path.count = once, 1
	a.addLax(full)
	if end := bytes.IndexAny(full, ";?#"); end >= 0 {
		a.mixed = true
		a.addLax(full[:end])
		// Where a parameter ends depends on what separates, and what a path ends at may be hidden in a parameter.
		if bytes.IndexByte(full, ';') >= 0 && (a.path.used&(EncodedSlash|Backslash) != 0 || bytes.ContainsAny(full, "?#")) {
			return ErrMixed
		}
	}
	if a.path.used&DotSegments != 0 && (a.mixed || a.path.used != DotSegments) {
		return ErrMixed
	}
	return nil
}

// unescape decodes src once. What is no escape is an error if strict, and stays as it is otherwise.
func (a *analysis) unescape(src []byte, strict bool) ([]byte, error) {
	start := len(a.buf)
	for i := 0; i < len(src); i++ {
		c := src[i]
		if c == '%' {
			decoded, ok := escapeAt(src, i)
			switch {
			case ok && isControl(decoded):
				return nil, ErrControl
			case ok:
				if decoded == '/' {
					a.path.used |= EncodedSlash
				}
				a.mixed = a.mixed || bytes.IndexByte([]byte("./\\;?#%"), decoded) >= 0
				c = decoded
				i += 2
			case strict:
				return nil, ErrEscape
			}
		}
		a.buf = append(a.buf, c)
	}
	return a.buf[start:len(a.buf):len(a.buf)], nil
}

// unescapeButSlash decodes src, whose escapes are good, and keeps each encoded slash as the text %2f.
func (a *analysis) unescapeButSlash(src []byte) []byte {
	start := len(a.buf)
	for i := 0; i < len(src); i++ {
		c := src[i]
		if c == '%' {
			if c, _ = escapeAt(src, i); c == '/' {
				a.buf = append(a.buf, "%2"...)
				c = 'f'
			}
			i += 2
		}
		a.buf = append(a.buf, c)
	}
	return a.buf[start:len(a.buf):len(a.buf)]
}

// addLax adds the lax reading of decoded, which starts with a slash.
func (a *analysis) addLax(decoded []byte) {
	start := len(a.buf)
	directory := false // the last segment names nothing: the reading ends with a slash
	for i := 1; i <= len(decoded); i++ {
		end := i
		for end < len(decoded) && !isSeparator(decoded[end]) {
			end++
		}
		segment := decoded[i:end]
		i = end
		name, _, _ := bytes.Cut(segment, []byte(";"))
		name = bytes.TrimRight(name, " ")
		directory = true
		switch string(name) {
		case "":
		case ".", "..":
			a.path.used |= DotSegments
			if len(name) == 2 {
				a.buf = a.buf[:start+max(bytes.LastIndexByte(a.buf[start:], '/'), 0)]
			}
		default:
			if name = bytes.TrimRight(name, ". "); len(name) > 0 {
				a.buf = append(append(a.buf, '/'), name...)
				directory = false
			}
		}
		a.mixed = a.mixed || len(name) != len(segment)
	}
	if directory {
		a.buf = append(a.buf, '/')
	}
	a.path.readings[a.path.count] = a.buf[start:len(a.buf):len(a.buf)]
	a.path.count++
}

func isSeparator(c byte) bool { return c == '/' || c == '\\' }

func isControl(c byte) bool { return c < ' ' || c == 0x7f }

func hasEscape(text []byte) bool {
	for i, c := range text {
		if c == '%' {
			if _, ok := escapeAt(text, i); ok {
				return true
			}
		}
	}
	return false
}

// escapeAt decodes the escape whose % is at text[i].
func escapeAt(text []byte, i int) (byte, bool) {
	if i+2 >= len(text) {
		return 0, false
	}
	high, ok1 := hexDigit(text[i+1])
	low, ok2 := hexDigit(text[i+2])
	return high<<4 | low, ok1 && ok2
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}
