package edit

import (
	"bytes"
	"net/netip"
	"strings"
	"time"

	"countersign/internal/identity"
	"countersign/internal/message"
)

// RequestID makes ids by which a request is followed through logs. A traceparent (W3C Trace Context) is not its
// business: see package tracing.
type RequestID struct {
	name    []byte
	lower   string
	folded  string // see identity.SameFolded
	trusted []netip.Prefix
}

// maxID is the longest id that is taken over.
const maxID = 128

// NewRequestID compiles the setting: the header, and the networks whose id is taken over.
func NewRequestID(header string, trusted []netip.Prefix, report Report) *RequestID {
	if header == "" {
		header = "X-Request-Id"
	}
	switch lower := strings.ToLower(header); {
	case !checkName("header", header, false, report):
	case lower == "cookie", lower == "authorization", lower == "traceparent", lower == "tracestate", strings.HasPrefix(lower, "content-"), strings.HasPrefix(lower, "accept"):
		report("header", "use X-Request-Id", "header %s means something else", header)
	}
	return &RequestID{[]byte(header), strings.ToLower(header), identity.Folded(header), trusted}
}

// Append appends the id that came in fields from a trusted address, if it looks like one, or a new one made of two random
// numbers, in the form of a UUID of version 4 (RFC 9562 section 5.4). It is a copy: what the fields point to may be
// overwritten by a request's body before the response asks for the id.
func (r *RequestID) Append(dst []byte, fields []message.Field, from netip.Addr, high, low uint64) []byte {
	if len(r.trusted) > 0 {
		from = from.Unmap().WithZone("")
		for _, network := range r.trusted {
			if !network.Contains(from) {
				continue
			}
			if id, n := find(fields, r.lower); n == 1 && isID(id) {
				return append(dst, id...)
			}
			break
		}
	}
	high = high&^0xf000 | 0x4000
	low = low&^(3<<62) | 2<<62
	dst = appendHex(dst, high>>32, 8)
	dst = appendHex(append(dst, '-'), high>>16, 4)
	dst = appendHex(append(dst, '-'), high, 4)
	dst = appendHex(append(dst, '-'), low>>48, 4)
	return appendHex(append(dst, '-'), low, 12)
}

// isID wants 1 to 128 characters that no log, header or shell takes for anything else.
func isID(id []byte) bool {
	if len(id) == 0 || len(id) > maxID {
		return false
	}
	for _, c := range id {
		if !isAlphanumeric(c) && strings.IndexByte("-_.:+/=@", c) < 0 {
			return false
		}
	}
	return true
}

// appendHex appends the last n hexadecimal digits of v.
func appendHex(dst []byte, v uint64, n int) []byte {
	const digits = "0123456789abcdef"
	for n--; n >= 0; n-- {
		dst = append(dst, digits[v>>(4*n)&15])
	}
	return dst
}

const traceLower = "x-amzn-trace-id"

var traceName = []byte("X-Amzn-Trace-Id")

// maxTrace is the longest X-Amzn-Trace-Id that is taken over.
const maxTrace = 1 << 10

// AppendTrace appends the value of X-Amzn-Trace-Id as AWS ALB makes it: a new Root where there is none, else Self in front
// of what came, in place of an earlier Self. The numbers are random. A value that is not of the form name=value;... counts
// as none.
func AppendTrace(dst, came []byte, now time.Time, high, low uint64) []byte {
	if len(came) > maxTrace || !isTrace(came) {
		came = nil
	}
	start := len(dst)
	root := false
	for rest := came; len(rest) > 0; {
		var item []byte
		item, rest, _ = bytes.Cut(rest, []byte(";"))
		name, _, _ := bytes.Cut(item, []byte("="))
		if len(item) == 0 || message.EqualFold(name, "self") {
			continue
		}
		root = root || message.EqualFold(name, "root")
		dst = append(append(dst, ';'), item...)
	}
	kept := len(dst) - start
	name := "Root=1-"
	if root {
		name = "Self=1-"
	}
	// What is kept stands behind what is new: append, then turn around.
	dst = append(dst, name...)
	dst = appendHex(dst, uint64(now.Unix())&0xffffffff, 8)
	dst = append(dst, '-')
	dst = appendHex(dst, high, 8)
	dst = appendHex(dst, low, 16)
	rotate(dst[start:], kept)
	return dst
}

// rotate moves the first n octets behind the others.
func rotate(b []byte, n int) {
	reverse := func(b []byte) {
		for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
			b[i], b[j] = b[j], b[i]
		}
	}
	reverse(b[:n])
	reverse(b[n:])
	reverse(b)
}

// isTrace reports whether b is items of the form name=value, separated by semicolons.
func isTrace(b []byte) bool {
	for len(b) > 0 {
		var item []byte
		item, b, _ = bytes.Cut(b, []byte(";"))
		name, value, ok := bytes.Cut(item, []byte("="))
		if len(item) == 0 {
			continue
		}
		if !ok || !isID(name) || !isID(value) {
			return false
		}
	}
	return true
}

// appendTrace is AppendTrace for a request. Of several lines none counts.
func appendTrace(dst []byte, fields []message.Field, f *Facts) []byte {
	came, n := find(fields, traceLower)
	if n > 1 {
		came = nil
	}
	return AppendTrace(dst, came, f.Now, f.Random[0], f.Random[1])
}
