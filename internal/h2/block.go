package h2

import (
	"sync"

	"golang.org/x/net/http2/hpack"

	"countersign/internal/h1"
	"countersign/internal/message"
	"countersign/internal/reason"
)

// kind is what a field section belongs to.
type kind uint8

const (
	ignored  kind = iota // of a stream that is closed: decoded only so that the compression state stays right
	request              // pseudo-fields of a request
	response             // :status
	trailers             // no pseudo-fields
)

// block is one decoded field section: the fields over a buffer or a few, and what was seen while they came.
type block struct {
	kind   kind
	client bool // we are the client
	limits *Settings

	buf    []byte
	fields []message.Field
	size   int // as RFC 9113 section 10.5.1 counts
	bytes  int // of names and values
	count  int // of fields, cookie crumbs counted as one

	// bad is set when the section is malformed (RFC 9113 section 8.1.1); over when it exceeds a limit. What comes after
	// is decoded and dropped.
	bad  *reason.Refusal
	over reason.Reason

	regular   bool // a field that is no pseudo-field was seen
	seen      uint8
	method    []byte
	path      []byte
	scheme    []byte
	authority []byte
	protocol  []byte
	status    int

	host          []byte
	hosts         int
	lengths       int
	length        []byte
	expects       int
	expect        []byte
	crumbs        int
	crumbAt       int // index of the first one's field
	crumbBytes    int
	wantsTrailers bool
}

// Bits of seen.
const (
	seenMethod = 1 << iota
	seenPath
	seenScheme
	seenAuthority
	seenProtocol
	seenStatus
)

var blocks = sync.Pool{New: func() any { return &block{buf: make([]byte, 0, 2<<10), fields: make([]message.Field, 0, 32)} }}

func newBlock(k kind, client bool, limits *Settings) *block {
	b := blocks.Get().(*block)
	buf, fields := b.buf[:0], b.fields[:0]
	*b = block{kind: k, client: client, limits: limits, buf: buf, fields: fields}
	return b
}

func (b *block) release() {
	if cap(b.buf) <= 8<<10 { // a rare large one is not kept
		blocks.Put(b)
	}
}

// keep copies s into the buffer. When that is full another one takes its place: slices made before stay valid in theirs,
// and nothing is there twice.
func (b *block) keep(s string) []byte {
	if len(b.buf)+len(s) > cap(b.buf) {
		b.buf = make([]byte, 0, max(len(s), min(2*cap(b.buf), 8<<10)))
	}
	n := len(b.buf)
	b.buf = append(b.buf, s...)
	return b.buf[n:len(b.buf):len(b.buf)]
}

func (b *block) malformed(expected, found string) {
	if b.bad == nil {
		b.bad = refusal(reason.BadHeader, expected, found)
	}
}

func refusal(r reason.Reason, expected, found string) *reason.Refusal {
	return &reason.Refusal{Reason: r, Expected: expected, Found: found}
}

// add takes the next field from the decoder. It counts before it stores.
func (b *block) add(f hpack.HeaderField) {
	if b.bad != nil || b.over != reason.Unset {
		return
	}
	b.bytes += len(f.Name) + len(f.Value)
	if b.size += len(f.Name) + len(f.Value) + 32; b.size > b.limits.HeaderBytes {
		b.over = reason.HeaderTooLarge
		return
	}
	if len(f.Name) > 0 && f.Name[0] == ':' {
		b.pseudo(f.Name, f.Value)
		return
	}
	b.regular = true
	if !message.IsLowerToken(f.Name) {
		b.malformed("a field name of lower-case token characters", "other characters, or none")
		return
	}
	if !fieldValue(f.Value) {
		b.malformed("a field value without control characters and without white space at its ends", "such characters")
		return
	}
	hop := false
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		b.malformed("no connection-specific field (RFC 9113 section 8.2.2)", f.Name)
		return
	case "te":
		if f.Value != "trailers" {
			b.malformed("te: trailers", "another te")
			return
		}
		b.wantsTrailers, hop = true, true
	case "http2-settings", "proxy-authorization", "trailer":
		hop = b.kind != response || f.Name == "trailer"
	case "proxy-authenticate":
		hop = b.kind == response
	}
	if b.kind == trailers {
		if !b.trailer(f.Name) {
			return
		}
	} else {
		switch f.Name {
		case "host":
			if b.kind == request {
				if b.hosts++; b.hosts == 1 {
					b.host = b.keep(f.Value)
				}
				return
			}
		case "content-length":
			b.lengths++
			b.length = b.keep(f.Value)
			hop = true
		case "expect":
			if b.kind == request {
				b.expects++
				b.expect = b.keep(f.Value)
				hop = true
			}
		case "cookie":
			if b.crumbs++; b.crumbs == 1 {
				b.crumbAt = len(b.fields)
			} else {
				b.count--
			}
			b.crumbBytes += len(f.Value) + 2
		}
	}
	if b.count++; b.count > b.limits.Fields {
		b.over = reason.HeaderTooMany
		return
	}
	b.fields = append(b.fields, message.Field{Name: b.keep(f.Name), Value: b.keep(f.Value), Hop: hop})
}

// trailer says whether a field of a trailer section is kept. What frames, routes or authorises a message cannot come
// behind it (RFC 9110 section 6.5.1, E06): a client is refused, a target's is dropped.
func (b *block) trailer(name string) bool {
	switch name {
	case "content-length", "host", "authorization", "proxy-authorization", "cookie", "set-cookie", "content-encoding", "content-type",
		"content-range", "expect", "te", "trailer", "cache-control", "max-forwards", "range", "http2-settings":
		if !b.client {
			b.malformed("trailers that do not change what was said in front of the body", name)
		}
		return false
	}
	return true
}

// fieldValue is RFC 9113 section 8.2.1, and no other control characters either, as in HTTP/1.
func fieldValue(v string) bool {
	if n := len(v); n > 0 && (v[0] == ' ' || v[0] == '\t' || v[n-1] == ' ' || v[n-1] == '\t') {
		return false
	}
	return message.IsValue(v)
}

// pseudo takes a pseudo-field: known, in front of all others, once, and of its own kind of message.
func (b *block) pseudo(name, value string) {
	if b.regular || b.kind == trailers || b.kind == ignored {
		b.malformed("pseudo-fields in front of a head only", "one elsewhere")
		return
	}
	var bit uint8
	switch name {
	case ":method":
		bit = seenMethod
	case ":path":
		bit = seenPath
	case ":scheme":
		bit = seenScheme
	case ":authority":
		bit = seenAuthority
	case ":protocol":
		bit = seenProtocol
	case ":status":
		bit = seenStatus
	}
	if bit == 0 || (b.kind == response) != (bit == seenStatus) || bit == seenProtocol && !b.limits.ExtendedConnect {
		b.malformed("the pseudo-fields of RFC 9113 section 8.3", "another one")
		return
	}
	if b.seen&bit != 0 {
		b.malformed("each pseudo-field once", "one twice")
		return
	}
	b.seen |= bit
	if !fieldValue(value) {
		b.malformed("a pseudo-field without control characters and without white space at its ends", "such characters")
		return
	}
	switch bit {
	case seenMethod:
		b.method = b.keep(value)
	case seenPath:
		b.path = b.keep(value)
	case seenScheme:
		b.scheme = b.keep(value)
	case seenAuthority:
		b.authority = b.keep(value)
	case seenProtocol:
		b.protocol = b.keep(value)
	case seenStatus:
		n, ok := message.Decimal(value)
		if len(value) != 3 || !ok || n < 100 || n > 599 || n == 101 {
			b.malformed("a status from 100 to 599 other than 101", "another one")
			return
		}
		b.status = int(n)
	}
}

// joinCookies makes one field of the crumbs (RFC 9113 section 8.2.3), where the first one was.
func (b *block) joinCookies() {
	if b.crumbs < 2 {
		return
	}
	joined := make([]byte, 0, b.crumbBytes)
	kept := b.fields[:b.crumbAt+1]
	joined = append(joined, b.fields[b.crumbAt].Value...)
	for _, f := range b.fields[b.crumbAt+1:] {
		if string(f.Name) != "cookie" {
			kept = append(kept, f)
			continue
		}
		joined = append(joined, "; "...)
		joined = append(joined, f.Value...)
	}
	kept[b.crumbAt].Value = joined
	b.fields = kept
}

// contentLength is the declared length, -1 for none. It is false when there is more than one or it is no number.
func (b *block) contentLength() (int64, bool) {
	switch b.lengths {
	case 0:
		return -1, true
	case 1:
		n, ok := message.Decimal(b.length)
		return n, ok
	}
	return -1, false
}

// request checks a request's section and fills s from it. end says that no body follows. Bad is why it is malformed, so
// that the stream must be reset; s.Refusal is set for what can be answered.
func (b *block) toRequest(s *Stream, end bool) (bad *reason.Refusal) {
	req := &s.Request
	req.Reset()
	req.Minor, req.KeepAlive, req.ContentLength = 1, true, -1
	req.Bytes = b.bytes
	s.Scheme, s.Protocol, s.Refusal = nil, nil, nil
	s.declared = -1
	if b.bad != nil {
		return b.bad
	}
	if b.over == reason.Unset {
		b.joinCookies()
	}
	req.Fields = append(req.Fields, b.fields...)
	req.Method, req.Host, req.TrailersWanted = b.method, b.authority, b.wantsTrailers
	s.Scheme, s.Protocol = b.scheme, b.protocol
	if end {
		req.Framing = message.NoBody
	} else {
		req.Framing = message.Chunked
	}
	req.Path = b.path
	if q := indexByte(b.path, '?'); q >= 0 {
		req.Path, req.Query, req.HasQuery = b.path[:q], b.path[q+1:], true
	}
	if b.over != reason.Unset { // the rest is not known
		s.Refusal = refusal(b.over, "", "")
		return nil
	}

	// RFC 9113 section 8.3.1 and 8.5, RFC 8441 section 4.
	connect := string(b.method) == "CONNECT"
	switch {
	case b.seen&seenMethod == 0:
		return refusal(reason.BadRequestLine, "one :method", "none")
	case !message.IsToken(b.method) || len(b.method) > 32:
		return refusal(reason.BadRequestLine, "a :method that is a token of at most 32 characters", "another one")
	case b.seen&seenProtocol != 0 && !connect:
		return refusal(reason.BadRequestLine, ":protocol with CONNECT only", "another method")
	case connect && b.seen&seenProtocol == 0:
		if b.seen&(seenScheme|seenPath) != 0 || b.seen&seenAuthority == 0 {
			return refusal(reason.BadRequestLine, "CONNECT with :authority alone", "other pseudo-fields")
		}
		s.Refusal = refusal(reason.MethodRefused, "", "")
		return nil
	case b.seen&seenScheme == 0:
		return refusal(reason.BadRequestLine, "one :scheme", "none")
	case len(b.path) == 0:
		return refusal(reason.BadRequestLine, "a :path", "none, or an empty one")
	case connect && b.seen&seenAuthority == 0:
		return refusal(reason.BadRequestLine, "an :authority with :protocol", "none")
	}

	length, lengthOK := b.contentLength()
	if lengthOK && length >= 0 {
		if end && length > 0 {
			return refusal(reason.BodyTruncated, "as many bytes as content-length says", "the end of the stream")
		}
		req.ContentLength, s.declared = length, length
		if !end {
			req.Framing = message.Length
		}
	}

	s.Refusal = b.refused(s, length, lengthOK)
	req.Expect100 = b.expects > 0 && !end
	return nil
}

// refused is why a request that is framed well is answered with a refusal, nil if it is not.
func (b *block) refused(s *Stream, length int64, lengthOK bool) *reason.Refusal {
	req := &s.Request
	switch {
	case string(b.scheme) != "http" && string(b.scheme) != "https":
		return refusal(reason.BadRequestLine, ":scheme http or https", "another one")
	case string(b.method) == "TRACE":
		return refusal(reason.MethodRefused, "", "")
	case !message.IsTarget(b.path):
		return refusal(reason.BadRequestLine, "a :path of visible ASCII characters without a fragment", "other bytes in it")
	case b.path[0] != '/' && (string(b.path) != "*" || string(b.method) != "OPTIONS"):
		return refusal(reason.BadRequestLine, "a :path that starts with /", "another one")
	case b.seen&seenProtocol != 0 && string(b.protocol) != "websocket":
		return refusal(reason.UpgradeRefused, ":protocol websocket", "another one")
	case b.hosts > 1:
		return refusal(reason.HostAmbiguous, "one host", "several")
	case b.hosts == 1 && b.seen&seenAuthority != 0 && string(b.host) != string(b.authority):
		return refusal(reason.HostAmbiguous, "the same in host and :authority", "two hosts")
	}
	for i := range req.Fields {
		if h1.Resembles(req.Fields[i].Name) {
			return refusal(reason.BadHeader, "a header name that cannot be taken for Content-Length or Transfer-Encoding", "one that can")
		}
	}
	if b.seen&seenAuthority == 0 {
		req.Host = b.host
	}
	switch {
	case len(req.Host) == 0:
		return refusal(reason.HostMissing, "", "")
	case !lengthOK && b.lengths > 1:
		return refusal(reason.ContentLengthInvalid, "one content-length", "several")
	case !lengthOK:
		return refusal(reason.ContentLengthInvalid, "1 to 18 decimal digits", "something else")
	case b.limits.BodyBytes > 0 && length > b.limits.BodyBytes:
		return refusal(reason.BodyTooLarge, "", "") // before anything of it is passed on
	case b.expects > 1 || b.expects == 1 && !message.EqualFold(b.expect, "100-continue"):
		return refusal(reason.ExpectationUnsupported, "100-continue", "something else")
	}
	return nil
}

// checkResponse says what is wrong with a response's section; forHead that the request was HEAD, end that no body follows.
func (b *block) checkResponse(forHead, end bool) *reason.Refusal {
	bad := func(expected, found string) *reason.Refusal {
		return refusal(reason.UpstreamBadResponse, expected, found)
	}
	if b.bad != nil {
		return bad(b.bad.Expected, b.bad.Found)
	}
	switch b.over {
	case reason.HeaderTooLarge:
		return bad("a head within the limit", "a larger one")
	case reason.HeaderTooMany:
		return bad("a head within the limit of fields", "more fields")
	}
	if b.kind == trailers {
		return nil
	}
	length, ok := b.contentLength()
	switch {
	case b.seen&seenStatus == 0:
		return bad("one :status", "none")
	case b.status < 200 && end:
		return bad("an interim response that leaves the stream open", "its end")
	case !ok:
		return bad("at most one decimal content-length", "something else")
	case end && length > 0 && !forHead && b.status != 304:
		return bad("as many bytes as content-length says", "the end of the stream")
	}
	return nil
}

// toResponse fills resp.
func (b *block) toResponse(resp *message.Response, forHead, end bool) {
	resp.Reset()
	resp.Fields = append(resp.Fields, b.fields...)
	resp.Status, resp.Minor, resp.KeepAlive = b.status, 1, true
	resp.ContentLength, _ = b.contentLength()
	switch {
	case end || bodiless(b.status, forHead):
		resp.Framing = message.NoBody
	case resp.ContentLength >= 0:
		resp.Framing = message.Length
	default:
		resp.Framing = message.Chunked
	}
}

// bodiless reports whether a response never has a body (RFC 9110 section 6.4.1).
func bodiless(status int, forHead bool) bool {
	return forHead || status < 200 || status == 204 || status == 304
}

func indexByte(b []byte, c byte) int {
	for i := range b {
		if b[i] == c {
			return i
		}
	}
	return -1
}
