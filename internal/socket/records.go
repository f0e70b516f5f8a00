package socket

import (
	"crypto/tls"
	"errors"
	"sync/atomic"
)

// ErrRecords is what reads of a Records end with when a peer sends TLS records without end and nothing in them.
var ErrRecords = errors.New("socket: too many TLS records without application data, such as KeyUpdates and empty ones")

// Records is a TLS connection with a budget of records that carry nothing for the application. crypto/tls takes 16 of them
// in a row, and as many again after each byte. A KeyUpdate that asks for one in return costs about 25 µs, five times what a
// record with one byte costs, for 27 bytes on the wire: 1.1 MB/s of them would keep a processor busy (F05, F06).
type Records struct {
	*tls.Conn
	Wire *Conn

	begun  int64 // records before the first read
	useful int64 // reads that gave something; at least as many as records with something in them
	over   atomic.Bool
}

// freeRecords is what a connection may send beyond one empty record for each useful one. That much is left to clients
// that put an empty record before every other one (TLS 1.2 with CBC, against BEAST); the rest is for KeyUpdates of a long
// life, and for records that have arrived and that crypto/tls has not come to yet.
const freeRecords = 4096

// NewRecords begins to count on a connection whose handshake is over. wire is what tc reads from, made to follow records.
func NewRecords(tc *tls.Conn, wire *Conn) *Records {
	return &Records{Conn: tc, Wire: wire, begun: wire.Records}
}

// Read reads application data.
func (r *Records) Read(p []byte) (int, error) {
	if r.over.Load() {
		return 0, ErrRecords
	}
	n, err := r.Conn.Read(p)
	if n > 0 {
		r.useful++
	}
	if r.Wire.Records-r.begun > 2*r.useful+freeRecords {
		r.over.Store(true)
		return n, ErrRecords
	}
	return n, err
}

// maxPlaintext is what a record carries at most (RFC 8446 section 5.1).
const maxPlaintext = 16 << 10

// Write writes p. Its records go together, in as few packets as the network takes.
func (r *Records) Write(p []byte) (n int, err error) {
	if first := (len(p) - 1) / maxPlaintext * maxPlaintext; first > 0 {
		r.Wire.burst.Store(true)
		n, err = r.Conn.Write(p[:first])
		if r.Wire.burst.Store(false); err != nil {
			return n, err
		}
		p = p[first:]
	}
	rest, err := r.Conn.Write(p)
	return n + rest, err
}

// Over reports whether the budget was used up.
func (r *Records) Over() bool { return r.over.Load() }
