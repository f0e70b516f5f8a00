package edit

import (
	"slices"
	"strconv"
	"strings"

	"countersign/internal/identity"
	"countersign/internal/message"
)

// Headers are edits of the fields of a head: what is removed, then what is set in place of what was there, then what is
// added beside it. Nil edits nothing.
type Headers struct {
	drops []string // folded, see identity.SameFolded
	lines []line
}

// line is one field that is put in.
type line struct {
	name  []byte
	fixed []byte // the whole value, nil if it has placeholders
	parts []part
}

// HeaderOptions are header edits as the configuration has them.
type HeaderOptions struct {
	Set, Add map[string]string
	Remove   []string
	// Response says that they are for responses.
	Response bool
}

// The bounds of header edits.
const (
	maxEdits = 64
	maxValue = 4 << 10
)

// NewHeaders compiles header edits, nil for none. Problems are reported under set.NAME, add.NAME and remove[i].
func NewHeaders(o HeaderOptions, report Report) *Headers {
	h := new(Headers)
	if n := len(o.Set) + len(o.Add) + len(o.Remove); n > maxEdits {
		report("", "use fewer", "%d header edits; expected at most %d", n, maxEdits)
		return nil
	} else if n == 0 {
		report("", "add set, add or remove", "no header is named")
		return nil
	}
	put := func(key string, values map[string]string, seen map[string]bool) {
		names := make([]string, 0, len(values))
		for name := range values {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			at := key + "." + name
			if !checkName(at, name, o.Response, report) {
				continue
			}
			if lower := strings.ToLower(name); seen[lower] {
				report(at, "remove one", "header %s is there twice", name)
			} else {
				seen[lower] = true
			}
			if !o.Response && strings.EqualFold(name, "traceparent") {
				// Beside the one of the trace it would be a second, and targets would follow either (W3C Trace Context section 3.2).
				report(at, "use tracing, which tells targets of each request's trace", "header %s cannot be the same for all: each request has its own", name)
				continue
			}
			if l, ok := newLine(at, name, values[name], report); ok {
				h.lines = append(h.lines, l)
			}
		}
	}
	drops, adds := map[string]bool{}, map[string]bool{}
	for i, name := range o.Remove {
		at := "remove[" + strconv.Itoa(i) + "]"
		if lower := strings.ToLower(name); drops[lower] {
			report(at, "remove one", "header %s is there twice", name)
		} else if checkName(at, name, o.Response, report) {
			drops[lower] = true
		}
	}
	put("set", o.Set, drops)
	put("add", o.Add, adds)
	for name := range drops {
		h.drops = append(h.drops, identity.Folded(name))
	}
	slices.Sort(h.drops)
	return h
}

// checkName reports a header that must not be edited. Those that carry identity or origin are ours alone to set, and those
// that concern a connection or the length of a body are the codec's: one that is edited would let a target read another
// request than was decided on (E01, D01).
func checkName(at, name string, response bool, report Report) bool {
	lower := strings.ToLower(name)
	switch {
	case !isToken(name):
		report(at, "write a name of letters, digits and hyphens", "%q is not the name of a header", bounded(name))
	case !response && strings.ContainsAny(name, "_"):
		report(at, "write it with hyphens", "header %s has an underscore: targets that put headers into variables take it for another one", name)
	case framing(lower):
		report(at, "remove it", "header %s concerns one connection or the length of a body and cannot be edited", name)
	case lower == "host":
		report(at, "use rewrite: {host: NAME}", "host is not edited as a header")
	case !response && identity.Protected([]byte(name)):
		report(at, "remove it: what clients send of it is removed, and the program sets it itself", "header %s says who or where the client is and cannot be edited", name)
	case !response && (lower == "via" || strings.HasPrefix(lower, "sec-websocket-")):
		report(at, "remove it", "header %s is the program's own and cannot be edited", name)
	case response && (lower == "via" || strings.HasPrefix(lower, "sec-websocket-") || lower == "date"):
		report(at, "remove it", "header %s belongs to the target or the program and cannot be edited", name)
	default:
		return true
	}
	return false
}

// framing reports whether a field of this name, in lower case, is for the codecs only.
func framing(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "proxy-authentication-info",
		"te", "trailer", "transfer-encoding", "upgrade", "content-length", "http2-settings", "expect", "grpc-status", "grpc-message":
		return true
	}
	return false
}

func newLine(at, name, value string, report Report) (l line, ok bool) {
	switch {
	case len(value) > maxValue:
		report(at, "", "the value has %d bytes; expected at most %d", len(value), maxValue)
		return l, false
	case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r >= 0x7f }):
		report(at, "write visible ASCII", "the value has a control character, a line end, or a character beyond ASCII")
		return l, false
	case value == "" || strings.Trim(value, " \t") != value:
		report(at, "write a value", "the value is empty, or begins or ends with a space")
		return l, false
	}
	parts, err := parse(value, '%', headerPlaceholders)
	if err != nil {
		report(at, "", "%s", err)
		return l, false
	}
	l = line{name: []byte(name), parts: parts}
	if isStatic(parts) {
		l.fixed = []byte(value)
	}
	return l, true
}

// Drops reports whether a field of this name is not passed on. It allocates nothing.
func (h *Headers) Drops(name []byte) bool {
	if h == nil {
		return false
	}
	for _, folded := range h.drops {
		if identity.SameFolded(name, folded) { // X.Role is X-Role to who puts headers into variables (D03)
			return true
		}
	}
	return false
}

// Len is how many fields are put in.
func (h *Headers) Len() int {
	if h == nil {
		return 0
	}
	return len(h.lines)
}

// Name returns the name of field i of those that are put in.
func (h *Headers) Name(i int) []byte { return h.lines[i].name }

// AppendValue appends the value of field i.
func (h *Headers) AppendValue(dst []byte, i int, f *Facts) []byte {
	l := &h.lines[i]
	if l.fixed != nil {
		return append(dst, l.fixed...)
	}
	for _, p := range l.parts {
		switch p.kind {
		case literal:
			dst = append(dst, p.text...)
		case clientIP:
			if f.Client.IsValid() {
				dst = f.Client.Unmap().WithZone("").AppendTo(dst)
			}
		case host:
			dst = append(dst, f.Host...)
		case port:
			dst = strconv.AppendUint(dst, uint64(f.Port), 10)
		case scheme:
			dst = append(dst, f.scheme()...)
		case requestID:
			dst = append(dst, f.RequestID...)
		}
	}
	return dst
}

// AppendLines appends what is put in as lines of HTTP/1.1: "Name: value\r\n".
func (h *Headers) AppendLines(dst []byte, f *Facts) []byte {
	for i := range h.Len() {
		dst = append(dst, h.lines[i].name...)
		dst = append(dst, ':', ' ')
		dst = h.AppendValue(dst, i, f)
		dst = append(dst, '\r', '\n')
	}
	return dst
}

// AppendFields appends what is put in as fields. Values that differ from request to request are appended to buf, which is
// returned.
func (h *Headers) AppendFields(dst []message.Field, buf []byte, f *Facts) ([]message.Field, []byte) {
	for i := range h.Len() {
		value := h.lines[i].fixed
		if value == nil {
			start := len(buf)
			buf = h.AppendValue(buf, i, f)
			value = buf[start:len(buf):len(buf)]
		}
		dst = append(dst, message.Field{Name: h.lines[i].name, Value: value})
	}
	return dst, buf
}

// Apply returns the fields of an answer of ours as edited, in a list of its own.
func (h *Headers) Apply(fields []message.Field, f *Facts) []message.Field {
	if h == nil {
		return fields
	}
	out := make([]message.Field, 0, len(fields)+h.Len())
	for i := range fields {
		if !h.Drops(fields[i].Name) {
			out = append(out, fields[i])
		}
	}
	out, _ = h.AppendFields(out, nil, f)
	return out
}
