package h1

import (
	"bytes"
	"strings"

	"countersign/internal/identity"
	"countersign/internal/message"
)

// CollectTrailers asks for the trailer fields of a chunked body, which are dropped otherwise. It is called before the
// first byte of the body is read.
func (b *Body) CollectTrailers() { b.collect, b.d.trailers = true, nil }

// Trailers returns the trailer fields in the order received, without those that [ForbiddenTrailer] names. It returns nil
// as long as the body was not read to its end. The fields have memory of their own.
func (b *Body) Trailers() []message.Field {
	if !b.collect || !b.Done() {
		return nil
	}
	return b.d.trailers
}

// keep copies a trailer line, which is in a buffer that moves on. Their bytes together are bounded by maxOverhead and by
// the limit on a head, their number by that on the fields of a head.
func (b *Body) keep(line []byte, colon int) error {
	limit := b.d.limits.Fields
	if !b.request {
		limit *= 4 // as in the head of a response
	}
	if limit > 0 && len(b.d.trailers) == limit || b.overhead > b.d.limits.HeadBytes {
		return refuse(b.bad, "trailers within the limits of a head", "more or larger ones")
	}
	line = bytes.Clone(line)
	b.d.trailers = append(b.d.trailers, message.Field{Name: line[:colon:colon], Value: bytes.Trim(line[colon+1:], " \t")})
	return nil
}

// forbiddenTrailers are the fields that RFC 9110 section 6.5.1 keeps out of trailers: what frames, routes, modifies or
// authenticates a message, or says how it is to be processed. The hop-by-hop ones are added by hopByHop.
var forbiddenTrailers = map[string]bool{}

func init() {
	for _, n := range strings.Fields(`authorization proxy-authorization proxy-authenticate proxy-authentication-info www-authenticate authentication-info
		cookie cookie2 set-cookie set-cookie2 via max-forwards x-http-method x-http-method-override x-method-override x-original-url x-rewrite-url
		cache-control pragma range accept-ranges age date expires location retry-after vary warning strict-transport-security
		traceparent tracestate`) {
		forbiddenTrailers[n] = true
	}
}

const longestForbidden = 32

// ForbiddenTrailer reports whether a field of this name must not be passed on as a trailer, because a recipient that
// merges trailers into the header would act on it (E06): framing, routing, conditions, authentication, identity (D05),
// content-* and everything hop-by-hop. request says that it came with a request; there an underscore is enough, as in
// the header (D03).
func ForbiddenTrailer(name []byte, request bool) bool {
	if len(name) == 0 || hopByHop(name) || resembles(name) || identity.Protected(name) {
		return true
	}
	if request && bytes.IndexByte(name, '_') >= 0 {
		return true
	}
	if len(name) > longestForbidden {
		name = name[:longestForbidden] // enough for the prefixes, and no whole name is as long
	}
	var folded [longestForbidden]byte
	low := folded[:copy(folded[:], name)]
	for i, c := range low {
		if c-'A' < 26 {
			low[i] = c | 0x20
		}
	}
	return forbiddenTrailers[string(low)] || bytes.HasPrefix(low, []byte("content-")) || bytes.HasPrefix(low, []byte("if-")) ||
		bytes.HasPrefix(low, []byte("access-control-"))
}

// AppendTrailers appends the end of a chunked body: the last chunk, the trailer fields and the empty line. It leaves out
// forbidden fields and what is no field at all, wherever they came from.
func AppendTrailers(dst []byte, fields []message.Field, request bool) []byte {
	dst = append(dst, "0\r\n"...)
	for i := range fields {
		f := &fields[i]
		if !message.IsToken(f.Name) || !message.IsValue(f.Value) || ForbiddenTrailer(f.Name, request) {
			continue
		}
		dst = append(dst, f.Name...)
		dst = append(dst, ": "...)
		dst = append(dst, f.Value...)
		dst = append(dst, "\r\n"...)
	}
	return append(dst, "\r\n"...)
}
