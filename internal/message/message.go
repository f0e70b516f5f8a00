// Package message owns the protocol-neutral head of a request or response: ordered fields over one buffer, and the
// facts about the body's framing. Codecs (h1, later h2) fill it, forward reads it; it does no I/O.
package message

// Field is one header field. Name and Value point into the codec's buffer and are valid until that codec reads the next
// head.
type Field struct {
	Name, Value []byte
	// Hop marks a field that concerns this connection only and is never passed on (RFC 9110 section 7.6.1).
	Hop bool
}

// Framing says how the end of a body is known.
type Framing uint8

// The framings. The zero value is NoBody.
const (
	NoBody     Framing = iota
	Length             // Head.ContentLength bytes follow
	Chunked            // the chunked coding follows
	UntilClose         // responses only: the body ends with the connection
)

// Head is what requests and responses share.
type Head struct {
	// Fields in the order received.
	Fields []Field
	// Minor is the x of HTTP/1.x.
	Minor uint8
	// Framing and ContentLength describe the body that follows.
	Framing       Framing
	ContentLength int64
	// KeepAlive is false when the sender will close, or wants us to close, after this message.
	KeepAlive bool
}

// Request is a request head. All slices are raw bytes as received.
type Request struct {
	Head
	// Bytes is how long the head was: as it came, or over HTTP/2 the names and values of its fields.
	Bytes  int
	Method []byte
	// Path is the raw path with its leading slash, or "*" (OPTIONS only). Query is what follows the first '?';
	// HasQuery tells an empty query from none.
	Path, Query []byte
	HasQuery    bool
	// Host is the authority the client asked for, port included.
	Host []byte
	// Expect100 is set when the client waits for 100 (Continue) before it sends the body.
	Expect100 bool
	// ClassReason says how the request deviates from RFC 9112, also if that is why it is refused.
	ClassReason ClassReason
	// CloseAfter says that both connections end after this request: nothing that was behind an ambiguous request is the
	// answer to the next (see [Mitigation]). KeepAlive is false then.
	CloseAfter bool
	// TrailersWanted is set when the client says that it reads trailers (TE: trailers).
	TrailersWanted bool
	// WebSocketKey is the key of a valid request to switch to WebSocket (RFC 6455 section 4.2.1), nil for any other request.
	WebSocketKey []byte
}

// Reset empties r and keeps its storage.
func (r *Request) Reset() { *r = Request{Head: Head{Fields: r.Fields[:0]}} }

// IsHead reports whether the method is HEAD, whose responses have no body.
func (r *Request) IsHead() bool { return string(r.Method) == "HEAD" }

// Response is a response head.
type Response struct {
	Head
	Status int
	// Phrase is the reason phrase, possibly empty.
	Phrase []byte
}

// Reset empties r and keeps its storage.
func (r *Response) Reset() { *r = Response{Head: Head{Fields: r.Fields[:0]}} }

// EqualFold reports whether name equals lower, which is in lower-case ASCII, without regard to case.
func EqualFold(name []byte, lower string) bool {
	if len(name) != len(lower) {
		return false
	}
	for i := range len(lower) {
		c := name[i]
		if c-'A' < 26 {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}
