// Package edit makes changes to heads on the way: header edits, rewrites, redirects and fixed answers, as routes of the
// configuration ask for them. It decides nothing: whoever calls it has a permit, or has answered for not needing one.
//
// What is edited is said by the operator; what a client sent gets into a head only as octets that cannot be taken for the
// end of a value. Nothing here knows the framing of a protocol: heads are handed out field by field.
package edit

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"countersign/internal/message"
)

// Facts are what edits may say about a request.
type Facts struct {
	// Secure says that the client's side is TLS.
	Secure bool
	// Host is the canonical host that was asked for, without port.
	Host []byte
	// Port is the one that the client named beside the host, or that of its scheme.
	Port uint16
	// Client is the address that the listener established.
	Client netip.Addr
	// RequestID is what Request.RequestID returned; empty for none.
	RequestID []byte
	// Now and Random are for ids.
	Now    time.Time
	Random [2]uint64
}

func (f *Facts) scheme() string {
	if f.Secure {
		return "https"
	}
	return "http"
}

// Report says what is wrong with a setting: its key, what to do next, and the problem.
type Report func(key, next, format string, args ...any)

// placeholder is a part of a text that differs from request to request.
type placeholder uint8

const (
	literal placeholder = iota
	clientIP
	host
	port
	scheme
	requestID
	path
	query
)

// part is a piece of a text: a literal, or a placeholder.
type part struct {
	kind placeholder
	text string
}

var headerPlaceholders = map[string]placeholder{"client_ip": clientIP, "host": host, "port": port, "scheme": scheme, "request_id": requestID}

// parse cuts text into its parts. A placeholder is sign, a name and braces: %{client_ip}.
func parse(text string, sign byte, known map[string]placeholder) (parts []part, err error) {
	open := string(sign) + "{"
	for text != "" {
		before, rest, found := strings.Cut(text, open)
		if before != "" {
			parts = append(parts, part{literal, before})
		}
		if !found {
			break
		}
		name, after, closed := strings.Cut(rest, "}")
		kind, ok := known[name]
		if !closed || !ok {
			return nil, fmt.Errorf("%s%s} is no placeholder; expected one of: %s", open, bounded(name), strings.Join(names(known, open), ", "))
		}
		parts = append(parts, part{kind, ""})
		text = after
	}
	return parts, nil
}

// isStatic reports whether parts are the same for every request.
func isStatic(parts []part) bool {
	for _, p := range parts {
		if p.kind != literal {
			return false
		}
	}
	return true
}

func names(known map[string]placeholder, open string) (all []string) {
	for _, name := range []string{"client_ip", "protocol", "scheme", "host", "port", "path", "query", "request_id"} {
		if _, ok := known[name]; ok {
			all = append(all, open+name+"}")
		}
	}
	return all
}

// bounded is the beginning of what the operator wrote.
func bounded(s string) string {
	const shown = 40
	if len(s) > shown {
		s = s[:shown] + "..."
	}
	return s
}

// isToken reports whether s is a token of RFC 9110 section 5.6.2 and of a length that a header name has.
func isToken(s string) bool {
	const longest = 128
	if s == "" || len(s) > longest {
		return false
	}
	for _, c := range []byte(s) {
		if !isAlphanumeric(c) && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return true
}

func isAlphanumeric(c byte) bool { return c|0x20-'a' < 26 || c-'0' < 10 }

// find returns the value of the only field of a name, which is in lower case, and how many there are.
func find(fields []message.Field, name string) (value []byte, n int) {
	for i := range fields {
		if message.EqualFold(fields[i].Name, name) {
			value = fields[i].Value
			n++
		}
	}
	return value, n
}
