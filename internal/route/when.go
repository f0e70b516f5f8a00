package route

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"

	"countersign/internal/identity"
	"countersign/internal/message"
)

// Ask is what conditions read of a request besides its path. It holds nothing that would have to be made for it.
type Ask struct {
	// Request gives method, query and fields.
	Request *message.Request
	// Source is the address that the listener established for the connection; the zero value is in no network.
	Source netip.Addr
	// Client is the verified client, or nobody: what was shown and not verified counts as nobody.
	Client identity.Client
}

// When are the conditions of a rule besides its path. All of them have to be met; of the values of one, one.
//
// Conditions choose where a request goes. They are no access control: a client writes its headers as it likes, and a rule
// that it does not meet leaves the request to the next.
type When struct {
	// Methods, case-sensitive.
	Methods []string
	Headers []HeaderIs
	Queries []QueryIs
	Sources []netip.Prefix
	// Client is nil for no condition.
	Client *ClientIs
}

// met reports whether ask meets w. It allocates nothing.
func (w *When) met(ask *Ask) bool {
	if len(w.Methods) > 0 && !has(w.Methods, ask.Request.Method) {
		return false
	}
	if len(w.Sources) > 0 && !within(w.Sources, ask.Source) {
		return false
	}
	for i := range w.Headers {
		if !w.Headers[i].met(ask.Request.Fields) {
			return false
		}
	}
	for i := range w.Queries {
		if !w.Queries[i].met(ask.Request.Query) {
			return false
		}
	}
	return w.Client == nil || w.Client.Met(ask.Client)
}

// String says in a few words what is asked.
func (w *When) String() string {
	if w == nil {
		return ""
	}
	var all []string
	if len(w.Methods) > 0 {
		all = append(all, strings.Join(w.Methods, "|"))
	}
	for i := range w.Headers {
		all = append(all, "header "+w.Headers[i].name)
	}
	for i := range w.Queries {
		if k := w.Queries[i].Key; k != nil {
			all = append(all, "query "+k.String())
		} else {
			all = append(all, "query")
		}
	}
	for _, n := range w.Sources {
		all = append(all, "from "+n.String())
	}
	if w.Client != nil && w.Client.Nobody {
		all = append(all, "no verified client")
	} else if w.Client != nil {
		all = append(all, "verified client")
	}
	return strings.Join(all, ", ")
}

func has(list []string, item []byte) bool {
	for _, s := range list {
		if s == string(item) {
			return true
		}
	}
	return false
}

// within reports whether addr is in one of the networks. IPv4 in IPv6 counts as IPv4, and a zone does not count.
func within(networks []netip.Prefix, addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	for _, n := range networks {
		if n.Contains(addr) {
			return true
		}
	}
	return false
}

// CheckMethod says why method is not one that can be asked for.
func CheckMethod(method string) error {
	const longest = 40
	if method == "" || len(method) > longest || strings.Trim(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_-") != "" {
		return fmt.Errorf("%q is not a method; expected capital letters, - and _, at most %d, such as GET", method, longest)
	}
	return nil
}

// HeaderIs is a condition on the fields of one name: that there is one whose value is described by one of the globs or
// expressions, that there is one at all, or that there is none. Each line counts by itself, in order; lists in a line are
// not taken apart. Fields that concern the connection only, and are not passed on, are not there.
type HeaderIs struct {
	name     string // in lower case
	globs    []Glob
	regexps  []Regexp
	absent   bool
	whatever bool
}

// NewHeader makes a condition on name, in any case; present may be nil.
func NewHeader(name string, globs []Glob, regexps []Regexp, present *bool) (HeaderIs, error) {
	h := HeaderIs{name: strings.ToLower(name), globs: globs, regexps: regexps, absent: present != nil && !*present}
	h.whatever = len(globs)+len(regexps) == 0
	switch {
	case !isToken(name):
		return h, fmt.Errorf("%q is not the name of a header", name)
	case strings.Contains(name, "_"):
		return h, fmt.Errorf("header %s has an underscore: such headers are removed from every request; expected one with hyphens", name)
	case h.name == "host":
		return h, fmt.Errorf("host is no header to match on: the host is chosen before its routes; give the name a host of its own")
	case hop(h.name):
		return h, fmt.Errorf("header %s concerns the connection only and is not passed on", name)
	case identity.Protected([]byte(name)):
		return h, fmt.Errorf("header %s says who or where a client is, and what clients send of it is removed; expected a condition on identity or source", name)
	case h.absent && !h.whatever:
		return h, fmt.Errorf("present: false goes with no values")
	case present == nil && h.whatever:
		return h, fmt.Errorf("header %s has no condition; expected values, regex or present", name)
	}
	return h, nil
}

func (h *HeaderIs) met(fields []message.Field) bool {
	for i := range fields {
		f := &fields[i]
		if f.Hop || !message.EqualFold(f.Name, h.name) {
			continue
		}
		if h.whatever {
			return !h.absent
		}
		for j := range h.globs {
			if h.globs[j].Match(f.Value) {
				return true
			}
		}
		for j := range h.regexps {
			if h.regexps[j].Match(f.Value) {
				return true
			}
		}
	}
	return h.absent
}

// hop reports whether a field of this name, in lower case, concerns one connection only or its framing.
func hop(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "te", "trailer",
		"transfer-encoding", "upgrade", "content-length", "http2-settings", "expect":
		return true
	}
	return false
}

func isToken(name string) bool {
	const longest = 128
	if name == "" || len(name) > longest {
		return false
	}
	for _, c := range []byte(name) {
		if (lower(c) < 'a' || lower(c) > 'z') && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return true
}

// QueryIs is a condition on the query: that there is a parameter whose name is described by Key, and whose value by one of
// Values. Parameters are separated by "&" and compared decoded, "+" being a space; nil means any. One that does not decode
// is compared as it is.
type QueryIs struct {
	Key    *Glob
	Values []Glob
}

// maxParameter is the longest name or value, decoded, that a glob other than "*" is tried on.
const maxParameter = 512

func (q *QueryIs) met(query []byte) bool {
	for len(query) > 0 {
		var pair []byte
		pair, query, _ = bytes.Cut(query, []byte("&"))
		if len(pair) == 0 {
			continue
		}
		name, value, _ := bytes.Cut(pair, []byte("="))
		if (q.Key == nil || describes(q.Key, name)) && q.one(value) {
			return true
		}
	}
	return false
}

func (q *QueryIs) one(value []byte) bool {
	for i := range q.Values {
		if describes(&q.Values[i], value) {
			return true
		}
	}
	return len(q.Values) == 0
}

func describes(g *Glob, encoded []byte) bool {
	var room [maxParameter]byte
	decoded, ok := decodeParameter(room[:0], encoded)
	return ok && g.Match(decoded) || g.any
}

// decodeParameter decodes what fits into dst, and reports whether it did.
func decodeParameter(dst, encoded []byte) ([]byte, bool) {
	for i := 0; i < len(encoded); i++ {
		c := encoded[i]
		switch c {
		case '+':
			c = ' '
		case '%':
			if decoded, ok := escapeAt(encoded, i); ok {
				c = decoded
				i += 2
			}
		}
		if len(dst) == cap(dst) {
			return dst, false
		}
		dst = append(dst, c)
	}
	return dst, true
}
