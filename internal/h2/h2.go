// Package h2 owns the HTTP/2 wire on both sides: strict framing, header and body rules of RFC 9113, flow control and
// the order in which streams write. Frame headers and control frames are parsed by the framer of golang.org/x/net,
// header blocks by its hpack. Where the RFC leaves room for two readings it refuses, and a peer that makes work and no
// use of it is told to calm down. It does not decide where a message goes.
package h2

import (
	"errors"
	"time"

	"countersign/internal/reason"
)

// Settings bound what the peer may use. The zero value of a field means its default.
type Settings struct {
	// HeaderBytes bounds the field section of a message as RFC 9113 section 10.5.1 counts it: name, value and 32 bytes
	// for each field. The default is 32 KiB. A block whose compressed form is far larger ends the connection.
	HeaderBytes int
	// Fields is the number of fields of a message, cookie crumbs counted as one; the default is 100.
	Fields int
	// Streams is how many streams the peer may have open (server), and how many handlers run at once; on a client how many
	// are opened at most, whatever the peer allows. The default is 100.
	Streams uint32
	// BodyBytes is the largest request body (server); 0 means no limit.
	BodyBytes int64
	// StreamWindow is what the peer may send on a stream before it is read; it is granted again as the body is read. The
	// default is 128 KiB on a server and 256 KiB on a client. ConnWindow is what may be under way on the connection; it is
	// granted again as data arrives, so that a stream that nobody reads holds up no other. The default is 1 MiB on a server
	// and 16 MiB on a client. What is held for readers is at most Streams times StreamWindow, with the defaults 12.5 MiB on
	// a server and 25 MiB on a client, and a chunk of 16 KiB more for each stream.
	StreamWindow, ConnWindow int32
	// ExtendedConnect announces SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441) on a server.
	ExtendedConnect bool
	// Clock is the time in Unix milliseconds for LastActivity, WritingSince and the budget against floods; nil means
	// the system's clock. A coarse one will do.
	Clock func() int64
	// Await blocks until a read of the connection would find something, an error or the end included, or until its read
	// deadline has passed, and needs less memory for that than a read. Nil means that Doze does nothing.
	Await func() error
	// Refused is told of each message that was malformed, so that its stream was reset and no handler saw it. It is
	// called by the reading goroutine, with the connection locked; nil means nobody is told.
	Refused func(*reason.Refusal)
	// Panicked is told of a panic in a handler, which ends its stream only, and of one in the connection's own work, which
	// ends the connection. It may be called with the connection locked; nil means nobody is told.
	Panicked func(value any, stack []byte)
}

// The errors of Open.
var (
	// ErrFull: the peer allows no further stream at the moment.
	ErrFull = errors.New("h2: the peer's limit of concurrent streams is reached")
	// ErrGoingAway: the connection takes no new streams any more.
	ErrGoingAway = errors.New("h2: the connection is going away")
)

// The defaults of Settings.
const (
	defaultHeaderBytes        = 32 << 10
	defaultFields             = 100
	defaultStreams            = 100
	defaultServerStreamWindow = 128 << 10
	defaultClientStreamWindow = 256 << 10
	defaultServerWindow       = 1 << 20
	defaultClientWindow       = 16 << 20
)

// What RFC 9113 section 6.5.2 and 6.9.2 say before any settings came.
const (
	initialWindow = 65535
	maxWindow     = 1<<31 - 1
	frameSize     = 16 << 10 // the largest frame, of ours and of the peer's; more is never announced
	maxStreamID   = 1<<31 - 1
)

func (s *Settings) defaults(client bool) {
	if s.HeaderBytes <= 0 {
		s.HeaderBytes = defaultHeaderBytes
	}
	if s.Fields <= 0 {
		s.Fields = defaultFields
	}
	if s.Streams == 0 {
		s.Streams = defaultStreams
	}
	if s.StreamWindow <= 0 {
		s.StreamWindow = defaultServerStreamWindow
		if client {
			s.StreamWindow = defaultClientStreamWindow
		}
	}
	if s.ConnWindow <= 0 {
		s.ConnWindow = defaultServerWindow
		if client {
			s.ConnWindow = defaultClientWindow
		}
	}
	s.ConnWindow = max(s.ConnWindow, initialWindow) // it can only grow (RFC 9113 section 6.9.2)
	if s.Clock == nil {
		s.Clock = func() int64 { return time.Now().UnixMilli() }
	}
	if s.Refused == nil {
		s.Refused = func(*reason.Refusal) {}
	}
	if s.Panicked == nil {
		s.Panicked = func(any, []byte) {}
	}
}
