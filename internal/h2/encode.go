package h2

import (
	"unsafe"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"countersign/internal/message"
)

// encoderOut lets the encoder append to the connection's frames.
type encoderOut Conn

func (e *encoderOut) Write(p []byte) (int, error) {
	e.out = append(e.out, p...)
	return len(p), nil
}

// encode appends a field section as HEADERS, and CONTINUATION for what one frame does not hold. Called with mu held: the
// order of sections on the wire is that of the compression.
func (c *Conn) encode(id uint32, fields []message.Field, end bool) {
	start := len(c.buffer())
	c.out = c.frame(http2.FrameHeaders, 0, id, 0)
	body := len(c.out)
	for i := range fields {
		c.encodeField(&fields[i])
	}
	flags := http2.Flags(0)
	if end {
		flags = http2.FlagHeadersEndStream
	}
	n := len(c.out) - body
	if n <= frameSize {
		c.setFrame(start, n, flags|http2.FlagHeadersEndHeaders)
		return
	}
	rest := append([]byte(nil), c.out[body+frameSize:]...) // rare
	c.out = c.out[:body+frameSize]
	c.setFrame(start, frameSize, flags)
	for len(rest) > 0 {
		part := rest[:min(len(rest), frameSize)]
		rest = rest[len(part):]
		flags = 0
		if len(rest) == 0 {
			flags = http2.FlagContinuationEndHeaders
		}
		c.out = append(c.frame(http2.FrameContinuation, flags, id, len(part)), part...)
	}
}

// setFrame sets length and flags of the frame at start.
func (c *Conn) setFrame(start, n int, flags http2.Flags) {
	h := c.out[start:]
	h[0], h[1], h[2], h[4] = byte(n>>16), byte(n>>8), byte(n), byte(flags)
}

// maxIndexed is the longest value that is put into the table that both sides keep.
const maxIndexed = 128

func (c *Conn) encodeField(f *message.Field) {
	name := lower(f.Name, c.names.scratch[:0])
	switch how := c.indexing(text(name)); {
	case how == dropped:
	case how == never || len(f.Value) > maxIndexed || len(name) > maxIndexed:
		// Sensitive ones are not put into a table, so the encoder keeps nothing of what these strings point to.
		_ = c.enc.WriteField(hpack.HeaderField{Name: text(name), Value: text(f.Value), Sensitive: true})
	default:
		_ = c.enc.WriteField(c.names.get(name, f.Value))
	}
}

// text is b as a string that is valid as long as b does not change.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// lower returns name in lower case, itself if it is.
func lower(name, scratch []byte) []byte {
	for i := range name {
		if name[i]-'A' < 26 {
			scratch = append(scratch, name...)
			for ; i < len(scratch); i++ {
				if scratch[i]-'A' < 26 {
					scratch[i] |= 0x20
				}
			}
			return scratch
		}
	}
	return name
}

type indexing uint8

const (
	indexed indexing = iota
	never            // a secret (RFC 7541 section 7.1), or a value that hardly comes twice
	dropped          // a field that HTTP/2 does not have (RFC 9113 section 8.2.2)
)

// indexing says what the table is to do with a field. Towards a target it holds only what tells nothing about a client:
// clients share the connection, and could measure what is in the table by the size of what they send (RFC 7541 section 7.1).
func (c *Conn) indexing(name string) indexing {
	switch name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade", "http2-settings":
		return dropped
	case "authorization", "proxy-authorization", "cookie", "set-cookie", "date", "content-length", "etag", "last-modified", "age", "expires", "location",
		"content-range", "if-none-match", "if-modified-since", "x-request-id", "traceparent", "grpc-message":
		return never
	}
	if c.client {
		switch name {
		case ":method", ":scheme", ":authority", "accept", "accept-encoding", "content-type", "te", "via", "x-forwarded-proto", "x-forwarded-port",
			"x-forwarded-host", "grpc-encoding", "grpc-accept-encoding":
			return indexed
		case ":path":
			return never // "/" too: the encoder would have to be told apart
		}
		return never
	}
	return indexed
}

// nameCache keeps strings of fields that were sent lately, so that those sent again and again are not made again. It is
// bounded: 64 fields of at most 2 * maxIndexed bytes each.
type nameCache struct {
	sets    *[8]nameSet
	scratch [64]byte
}

// nameSet holds the fields of one hash. A new one takes the place of the oldest.
type nameSet struct {
	fields [8]hpack.HeaderField
	oldest uint8
}

func (n *nameCache) get(name, value []byte) hpack.HeaderField {
	if n.sets == nil {
		n.sets = new([8]nameSet)
	}
	h := uint32(2166136261) // FNV-1a
	for _, c := range name {
		h = (h ^ uint32(c)) * 16777619
	}
	for _, c := range value {
		h = (h ^ uint32(c)) * 16777619
	}
	set := &n.sets[h%uint32(len(n.sets))]
	for i := range set.fields {
		if f := &set.fields[i]; f.Name == string(name) && f.Value == string(value) {
			return *f
		}
	}
	f := &set.fields[set.oldest]
	set.oldest = (set.oldest + 1) % uint8(len(set.fields))
	*f = hpack.HeaderField{Name: string(name), Value: string(value)}
	return *f
}
