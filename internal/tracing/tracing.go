// Package tracing owns what distributed tracing asks of the data plane: to read and write W3C trace context, to decide which
// requests are traced, and to hand over at its end what is known of one that is. Where that goes is not its business: a
// Sink is told plain values, and no package here knows OpenTelemetry.
package tracing

import (
	"math/rand/v2"
	"time"

	"countersign/internal/identity"
	"countersign/internal/message"
	"countersign/internal/record"
	"countersign/internal/upstream"
)

// Parents says whose traceparent is honoured. A parent decides whether a request is traced, and under which id: whoever may
// send one can have every request traced, which costs, and can write into the traces of others.
type Parents uint8

// The choices of tracing.parent_sampled.
const (
	Trusted   Parents = iota // of proxies in front that are trusted, by certificate or by address
	Nobody                   // every trace begins here
	Everybody                // also of strangers
)

// Settings say which requests are traced and where their spans go. They are not changed once they are in force.
type Settings struct {
	// ID is the same for settings that mean the same to a Sink.
	ID string
	// Rate is the share of the requests without a parent that are traced, from 0 to 1.
	Rate    float64
	Parents Parents
	// Identity puts into spans who the client is.
	Identity bool
	// URL is the collector's, for OTLP over HTTP. TLS says how it is verified and how we prove ourselves to it; nil means by
	// the CAs of this machine and the name in URL. Authorization is the value of that header; empty for none.
	URL           string
	TLS           *upstream.TLS
	Authorization string
}

// Span is the place of one request in a trace. The zero value is not traced. Its storage is used again for the next
// request.
type Span struct {
	// Sampled says that the request is traced.
	Sampled bool
	// Continued says that Trace and Parent are those of a parent that is honoured.
	Continued bool
	Trace     [16]byte
	// Parent is the span that caused the request; zero for none.
	Parent [8]byte
	// ID is the span of the request, Target that of the exchange with a target, of which targets are told.
	ID, Target [8]byte
	// State is the tracestate of a parent, cut to nothing where it is longer than 512 bytes (W3C Trace Context section
	// 3.3.1.5: more need not be kept). Set for sampled requests only.
	State []byte
	// Asked and Answered are the beginning and the end of the exchange with a target; zero for none.
	Asked, Answered time.Time

	// Identity says that the client may be named.
	Identity bool

	text [parentLen]byte
}

// Bounds of W3C Trace Context.
const (
	parentLen = len("00-0123456789abcdef0123456789abcdef-0123456789abcdef-01")
	maxState  = 512
)

// Names of the fields, in the case that both versions of HTTP may write.
const (
	parentName = "traceparent"
	stateName  = "tracestate"
)

// Begin decides about the request that has these fields. believed says that it came from a proxy that is trusted. It
// reports whether the target is to be told something else than what came: if not, the fields pass as they are.
func (s *Span) Begin(set *Settings, fields []message.Field, believed bool) (tell bool) {
	s.Sampled, s.Continued, s.Asked, s.Answered, s.State = false, false, time.Time{}, time.Time{}, s.State[:0]
	if set.Parents == Everybody || set.Parents == Trusted && believed {
		parent, state, n := find(fields)
		if n == 1 && s.read(parent) {
			// The first to be asked has decided, and whoever comes after it goes along: half a trace is of no use.
			if !s.Sampled {
				return false
			}
			s.Continued, s.Identity = true, set.Identity
			if len(state) <= maxState {
				s.State = append(s.State, state...)
			}
			putID(s.ID[:])
			putID(s.Target[:])
			return true
		}
	}
	s.Sampled, s.Identity = set.Rate > 0 && rand.Float64() < set.Rate, set.Identity
	s.Parent = [8]byte{}
	putID(s.Trace[:8])
	putID(s.Trace[8:])
	putID(s.Target[:])
	if s.Sampled {
		putID(s.ID[:])
	}
	return true
}

// find returns the fields of a trace context; n is how many traceparent there are. Of several lines of tracestate, which
// may be combined (section 3.3.1.1), the first stands for all. Fields that end here by the sender's Connection do not
// count.
func find(fields []message.Field) (parent, state []byte, n int) {
	for i := range fields {
		switch f := &fields[i]; len(f.Name) {
		case len(parentName):
			if !f.Hop && message.EqualFold(f.Name, parentName) {
				parent = f.Value
				n++
			}
		case len(stateName):
			if state == nil && !f.Hop && message.EqualFold(f.Name, stateName) {
				state = f.Value
			}
		}
	}
	return parent, state, n
}

// read takes a traceparent (section 3.2) apart. Of flags only sampled is known; a version that is not known is read as far
// as ours goes, as section 4.3 says. False means that it is none.
func (s *Span) read(v []byte) bool {
	var version, flags [1]byte
	switch {
	case len(v) < parentLen, v[2] != '-', v[35] != '-', v[52] != '-',
		!unhex(version[:], v[0:2]), !unhex(s.Trace[:], v[3:35]), !unhex(s.Parent[:], v[36:52]), !unhex(flags[:], v[53:55]),
		version[0] == 0xff, version[0] == 0 && len(v) != parentLen, len(v) > parentLen && v[parentLen] != '-',
		s.Trace == [16]byte{}, s.Parent == [8]byte{}:
		s.Sampled = false
		return false
	}
	s.Sampled = flags[0]&1 != 0
	return true
}

// Drops reports whether a field of the request is replaced, or says of a trace what is not so any more. A nil Span drops
// nothing.
func (s *Span) Drops(name []byte) bool {
	if s == nil {
		return false
	}
	switch len(name) {
	case len(parentName):
		return message.EqualFold(name, parentName)
	case len(stateName):
		return !s.Continued && message.EqualFold(name, stateName)
	}
	return false
}

// AppendLine appends the traceparent for the target as a line of HTTP/1.1; nothing for a nil Span.
func (s *Span) AppendLine(dst []byte) []byte {
	if s == nil {
		return dst
	}
	return append(append(append(dst, parentName+": "...), s.value()...), '\r', '\n')
}

// AppendField appends it as a field, which is valid until the next call; nothing for a nil Span.
func (s *Span) AppendField(dst []message.Field) []message.Field {
	if s == nil {
		return dst
	}
	return append(dst, message.Field{Name: parentField, Value: s.value()})
}

var parentField = []byte(parentName)

// value writes the traceparent. Flags besides sampled are 0: what else there is of them is not ours to say.
func (s *Span) value() []byte {
	b := append(s.text[:0], "00-"...)
	b = append(appendHex(b, s.Trace[:]), '-')
	b = append(appendHex(b, s.Target[:]), '-')
	if s.Sampled {
		return append(b, "01"...)
	}
	return append(b, "00"...)
}

const digits = "0123456789abcdef"

func appendHex(dst, id []byte) []byte {
	for _, c := range id {
		dst = append(dst, digits[c>>4], digits[c&15])
	}
	return dst
}

// unhex reads lower-case hexadecimal, which is all that is allowed here.
func unhex(dst, text []byte) bool {
	bad := byte(0)
	for i := range dst {
		high, low := nibbles[text[2*i]], nibbles[text[2*i+1]]
		bad |= high | low
		dst[i] = high<<4 | low&15
	}
	return bad&0xf0 == 0
}

// nibbles are the values of the digits; 0xff for what is none.
var nibbles = func() (table [256]byte) {
	for i := range table {
		table[i] = 0xff
	}
	for i := range digits {
		table[digits[i]] = byte(i)
	}
	return table
}()

// putID writes a number by chance, and never zero: that is no id.
func putID(to []byte) {
	n := rand.Uint64()
	for n == 0 {
		n = rand.Uint64()
	}
	for i := range 8 {
		to[i] = byte(n >> (8 * i))
	}
}

// End is what is known of a traced request when it is over. What it points to is used again for the next request.
type End struct {
	Span    *Span
	Request *record.Request
	// Client is who the request was of.
	Client identity.Client
	// Listener is the name of the listener, Ref the connection's reference id, Peer who connected, by address and port.
	Listener, Ref, Peer string
	// TLS is the version as crypto/tls names it, SNI the server name; empty for none.
	TLS, SNI string
}

// Sink takes what is known of requests that are traced. Take is called by the goroutine that serves the client: it must not
// wait, and must keep nothing of what it is given.
type Sink interface{ Take(e *End) }
