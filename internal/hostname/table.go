package hostname

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// Pattern returns the canonical form of a name from the config file: the name of one host, an address, or "*." and at
// least two labels, which stands for exactly one label before them (RFC 9525 section 6.3). The canonical form of a
// wildcard keeps its "*.". Unlike a client's name it may not carry a port. The error says what to write instead.
func Pattern(name string) (canonical string, wildcard bool, err error) {
	base, wildcard := strings.CutPrefix(name, "*.")
	refuse := func(err error, next string) (string, bool, error) {
		shown := name
		if len(shown) > MaxLen {
			shown = shown[:MaxLen]
		}
		return "", false, fmt.Errorf("host name %q: %w; %s", shown, err, next)
	}
	if wildcard {
		out, err := AppendCanonicalSNI(nil, []byte(base))
		switch {
		case errors.Is(err, ErrWildcard):
			return refuse(err, "write one \"*.\" at the start")
		case err != nil:
			return refuse(err, "write \"*.\" and the domain whose hosts you mean")
		case len(out)+len("*.") > MaxLen:
			return refuse(ErrTooLong, "write a shorter name")
		case bytes.IndexByte(out, '.') < 0:
			return refuse(errors.New("wildcard covers a whole top-level domain"), "write at least two labels after \"*.\"")
		}
		return "*." + string(out), true, nil
	}
	out, port, err := AppendCanonicalHost(nil, []byte(name))
	switch {
	case errors.Is(err, ErrNonASCII):
		return refuse(err, "write the name as your registrar shows it, in letters a to z, digits and hyphens")
	case errors.Is(err, ErrWildcard):
		return refuse(err, "a wildcard is \"*.\" at the start of a name and stands for one label")
	case errors.Is(err, ErrPort) && strings.Count(name, ":") > 1:
		return refuse(ErrIPv6, "write an IPv6 address as [2001:db8::1]")
	case err != nil:
		return refuse(err, "write a name such as api.example.org")
	case port != 0:
		return refuse(fmt.Errorf("expected no port, found %d", port), "leave the port to the listener")
	}
	return string(out), false, nil
}

// Table finds the value of the most specific pattern for a canonical name: the exact name first, then the wildcard over
// its first label. The answer does not depend on the order of Add (threats A20). The zero value is an empty table. Add
// everything first; a table that is no longer added to is safe for concurrent use.
type Table[T any] struct {
	exact map[string]T
	wild  map[string]T // by what follows "*."; apart, so that no client can name the wildcard itself (threats A19)
}

// Add gives the hosts of pattern the value v. It refuses what Pattern refuses, and a pattern that is there already.
func (t *Table[T]) Add(pattern string, v T) error {
	canonical, wildcard, err := Pattern(pattern)
	if err != nil {
		return err
	}
	m, key := &t.exact, canonical
	if wildcard {
		m, key = &t.wild, canonical[len("*."):]
	}
	if _, twice := (*m)[key]; twice {
		return fmt.Errorf("host name %q: expected once, found twice; remove one of them", canonical)
	}
	if *m == nil {
		*m = make(map[string]T)
	}
	(*m)[key] = v
	return nil
}

// Lookup returns the value for canonical, which must be a name that AppendCanonicalHost or AppendCanonicalSNI made. It
// allocates nothing and costs at most two map lookups.
func (t *Table[T]) Lookup(canonical []byte) (T, bool) {
	if v, ok := t.exact[string(canonical)]; ok {
		return v, true
	}
	dot := bytes.IndexByte(canonical, '.')
	if dot <= 0 || canonical[0] == '*' { // no label for the wildcard to stand for
		var none T
		return none, false
	}
	v, ok := t.wild[string(canonical[dot+1:])]
	return v, ok
}

// Len returns the number of patterns.
func (t *Table[T]) Len() int { return len(t.exact) + len(t.wild) }
