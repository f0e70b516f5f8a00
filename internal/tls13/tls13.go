// Package tls13 is the record layer of TLS 1.3 (RFC 8446 section 5) for connections whose handshake crypto/tls has done. It is
// an experiment: crypto/tls is the reference, and does everything else. What it is for: a connection that is idle holds some
// hundred bytes in place of eleven thousand, and bytes in large amounts pass with fewer copies and system calls.
package tls13

import (
	"crypto/fips140"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"countersign/internal/socket"
)

// What is on the wire (RFC 8446 sections 4, 5.1, 5.2 and 6).
const (
	changeCipherSpec = 20
	alertRecord      = 21
	handshake        = 22
	applicationData  = 23

	headerSize    = 5
	tagSize       = 16
	maxPlaintext  = 16 << 10
	maxCiphertext = maxPlaintext + 256

	keyUpdate     = 24
	keyUpdateSize = 5

	warning = 1
	fatal   = 2

	closeNotify        = 0
	unexpectedMessage  = 10
	badRecordMAC       = 20
	recordOverflow     = 22
	illegalParameter   = 47
	protocolVersion    = 70
	internalError      = 80
	userCanceled       = 90
	maxUseless         = 16   // records in a row that carry nothing, as crypto/tls has it
	freeUseless        = 4096 // of a whole connection, beyond one for each that carries something
	recordsAtOnce      = 4    // that are written with one system call
	overhead           = headerSize + 1 + tagSize
	recordRoom         = maxPlaintext + overhead
	shortRoom          = 4 << 10
	restRoom           = 2 << 10
	receiveRoom        = 2 * (headerSize + maxCiphertext)
	protected, version = applicationData, 0x0303
)

// Conn is a connection of TLS 1.3 behind its handshake. One goroutine may read and another write at a time. Deadlines are
// those of the connection beneath: reads may go on after one, writes may not.
type Conn struct {
	*socket.Conn
	state *tls.ConnectionState

	in      half
	raw     *[]byte // received and not used yet is (*raw)[r:w]; nil when nothing is
	r, w    int
	rest    *[]byte // in place of raw: the beginning of a record, while the rest is waited for
	plain   []byte  // of the record at hand, decrypted in raw
	readErr error
	begun   [keyUpdateSize]byte // a message of the handshake that came in parts
	parts   int
	row     int   // records in a row that carried nothing
	useless int64 // of all, less one for each that carried something
	over    atomic.Bool

	mu       sync.Mutex // for what follows
	out      half
	writeErr error
	closed   bool // close_notify was sent
}

// Take makes a Conn of the connection over wire whose handshake tc has done, and wipes h, which was its Config.KeyLogWriter.
// It returns nil where that cannot be, and tc then goes on as if nothing had been asked: another version than 1.3, FIPS mode,
// where nonces of our own are not allowed, or anything about what was written that is not as it should be.
//
// presented are the client's certificates, for ConnectionState: what crypto/tls has parsed, or equal ones.
// What crypto/tls has read must end with the handshake (socket.Conn.InSteps). tc must not be used any more.
func Take(tc *tls.Conn, wire *socket.Conn, h *Handover, presented []*x509.Certificate) *Conn {
	defer h.Wipe()
	state := tc.ConnectionState()
	s := suites[state.CipherSuite]
	if s == nil || // those of TLS 1.3 are used in no other version
		fips140.Enabled() || len(h.client) != s.size || len(h.server) != s.size || !wire.Whole() {
		return nil
	}
	c := &Conn{Conn: wire, state: &tls.ConnectionState{Version: state.Version, CipherSuite: state.CipherSuite, CurveID: state.CurveID,
		HandshakeComplete: true, DidResume: state.DidResume, NegotiatedProtocol: state.NegotiatedProtocol, ServerName: state.ServerName,
		PeerCertificates: presented}}
	if c.in.start(s, h.client) != nil || c.out.start(s, h.server) != nil || !h.began(&c.out) {
		return nil
	}
	return c
}

// ConnectionState is what the handshake came to.
func (c *Conn) ConnectionState() tls.ConnectionState { return *c.state }

// Over reports whether the peer has sent more records with nothing in them than it may.
func (c *Conn) Over() bool { return c.over.Load() }

// Rest lets go of what a connection can do without while nothing comes: ciphers are made again from their secrets. It is for
// the reader.
func (c *Conn) Rest() {
	c.in.aead = nil
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.aead = nil
}

// received are buffers for what comes. One that is in use holds a record that is not complete, or not read to its end.
var received = sync.Pool{New: func() any { b := make([]byte, receiveRoom); return &b }}

// Read reads application data: of as many records as have come and fit in p.
func (c *Conn) Read(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if len(c.plain) > 0 {
			m := copy(p[n:], c.plain)
			c.plain = c.plain[m:]
			n += m
		}
		if len(c.plain) > 0 {
			return n, nil
		}
		if n == len(p) {
			c.release()
			return n, nil
		}
		if c.readErr != nil {
			c.r = c.w // nothing behind it is read
			c.release()
			if n > 0 {
				return n, nil // it is told the next time
			}
			return 0, c.readErr
		}
		record := c.whole()
		if record == nil {
			if n > 0 {
				c.release()
				return n, nil
			}
			if err := c.receive(); err != nil {
				return 0, err
			}
			continue
		}
		m, err := c.open(record, p[n:])
		if n += m; err != nil {
			c.readErr = err
		}
	}
}

// whole is the next record if all of it is there, or its header if that is not to be followed by anything.
func (c *Conn) whole() []byte {
	if c.raw == nil {
		return nil
	}
	b := (*c.raw)[c.r:c.w]
	if len(b) < headerSize {
		return nil
	}
	size := int(b[3])<<8 | int(b[4])
	if size > maxCiphertext || b[1] != version>>8 || b[2] != version&0xff {
		size = 0 // open says so
	}
	if len(b) < headerSize+size {
		return nil
	}
	c.r += headerSize + size
	return b[:headerSize+size]
}

// release gives the buffer back if nothing is in it.
func (c *Conn) release() {
	if c.raw != nil && c.r == c.w {
		received.Put(c.raw)
		c.raw, c.r, c.w, c.plain = nil, 0, 0, nil
	}
}

// rests and longRests hold what has come of a record: who sends one byte and waits is to cost no large buffer.
var (
	rests     = sync.Pool{New: func() any { b := make([]byte, 0, restRoom); return &b }}
	longRests = sync.Pool{New: func() any { b := make([]byte, 0, headerSize+maxCiphertext); return &b }}
)

// restsFor are those for n bytes.
func restsFor(n int) *sync.Pool {
	if n <= restRoom {
		return &rests
	}
	return &longRests
}

// setAside keeps the beginning of a record, which is all there is in raw, in a buffer of its size.
func (c *Conn) setAside() {
	b := (*c.raw)[c.r:c.w]
	c.rest = restsFor(len(b)).Get().(*[]byte)
	*c.rest = append((*c.rest)[:0], b...)
	c.r = c.w
	c.release()
}

// receive waits for more of the next record.
func (c *Conn) receive() (err error) {
	c.release()
	if c.raw != nil && c.w-c.r <= restRoom {
		c.setAside()
	}
	n := 0
	if c.raw == nil {
		ahead := 0
		if c.rest != nil {
			ahead = len(*c.rest)
		}
		if c.raw, n, err = c.Conn.Receive(&received, ahead); c.raw != nil && c.rest != nil {
			c.w = copy(*c.raw, *c.rest)
			restsFor(cap(*c.rest)).Put(c.rest)
			c.rest = nil
		}
	} else {
		b := *c.raw
		if c.r > 0 && len(b)-c.r < headerSize+maxCiphertext {
			c.w = copy(b, b[c.r:c.w])
			c.r = 0
		}
		n, err = c.Conn.Read(b[c.w:])
	}
	c.w += n
	if n > 0 || err == nil {
		return nil // an error comes again
	}
	if err == io.EOF && (c.raw != nil || c.rest != nil) {
		err = io.ErrUnexpectedEOF
	}
	switch e, ok := errors.AsType[net.Error](err); {
	case !ok || !e.Timeout():
		c.readErr = err
	case c.raw != nil: // who calls again waits for longer
		c.setAside()
	}
	return err
}

// open decrypts a record: application data into p if it fits there, and else in place. It returns how much it wrote to p. Any
// error is the end of what can be read.
func (c *Conn) open(record, p []byte) (n int, err error) {
	header, sealed := record[:headerSize], record[headerSize:]
	switch {
	case header[1] != version>>8 || header[2] != version&0xff:
		return 0, c.fail(protocolVersion, fmt.Sprintf("a record of version %x%02x, expected 303", header[1], header[2]))
	case int(header[3])<<8|int(header[4]) > maxCiphertext:
		return 0, c.fail(recordOverflow, fmt.Sprintf("a record of %d bytes, expected at most %d", int(header[3])<<8|int(header[4]), maxCiphertext))
	case header[0] != protected: // ChangeCipherSpec too: the handshake is over (RFC 8446 section 5)
		return 0, c.fail(unexpectedMessage, fmt.Sprintf("a record of type %d in clear, expected protected ones", header[0]))
	}
	if err := c.in.wake(); err != nil {
		return 0, c.fail(internalError, err.Error())
	}
	dst := sealed[:0]
	direct := len(sealed)-tagSize <= len(p)
	if direct {
		dst = p[:0]
	}
	inner, err := c.in.aead.Open(dst, c.in.nonce(), sealed, header)
	if err != nil {
		return 0, c.fail(badRecordMAC, "")
	}
	if c.in.seq++; c.in.seq == 0 {
		return 0, c.fail(internalError, "out of sequence numbers")
	}
	if len(inner) > maxPlaintext+1 { // with its padding (RFC 8446 section 5.4)
		return 0, c.fail(recordOverflow, fmt.Sprintf("%d bytes in a record, expected at most %d", len(inner)-1, maxPlaintext))
	}
	i := len(inner) - 1
	for i >= 0 && inner[i] == 0 {
		i--
	}
	if i < 0 {
		return 0, c.fail(unexpectedMessage, "a record without a type")
	}
	kind, content := inner[i], inner[:i]
	if c.parts > 0 && kind != handshake {
		return 0, c.fail(unexpectedMessage, "a record of another type within a handshake message")
	}
	if kind == applicationData && len(content) > 0 {
		c.row = 0
		c.useless--
		c.useless = max(c.useless, -freeUseless)
		if direct {
			return len(content), nil
		}
		c.plain = content
		return 0, nil
	}
	return 0, c.other(kind, content)
}

// other takes a record that carries no application data.
func (c *Conn) other(kind byte, content []byte) error {
	if c.row++; c.row > maxUseless {
		return c.fail(unexpectedMessage, "too many records without application data in a row")
	}
	if c.useless++; c.useless > freeUseless {
		c.over.Store(true)
		return socket.ErrRecords
	}
	switch kind {
	case applicationData:
		return nil
	case alertRecord:
		switch {
		case len(content) != 2:
			return c.fail(unexpectedMessage, fmt.Sprintf("an alert of %d bytes, expected 2", len(content)))
		case content[1] == closeNotify:
			return io.EOF
		case content[1] == userCanceled: // some send it before close_notify (RFC 8446 section 6.1)
			return nil
		}
		return &net.OpError{Op: "remote error", Err: tls.AlertError(content[1])}
	case handshake:
		return c.message(content)
	}
	return c.fail(unexpectedMessage, fmt.Sprintf("a record of type %d", kind))
}

// message takes a part of a handshake message, of which there is one that a client may send now: KeyUpdate (RFC 8446 section
// 4.6.3). Keys change behind it, so nothing else is in its record.
func (c *Conn) message(p []byte) error {
	if len(p) == 0 || c.parts+len(p) > keyUpdateSize {
		return c.fail(unexpectedMessage, "a handshake message that is no KeyUpdate, or more than one in a record")
	}
	c.parts += copy(c.begun[c.parts:], p)
	if b := c.begun[:min(c.parts, 4)]; string(b) != string([]byte{keyUpdate, 0, 0, 1}[:len(b)]) {
		return c.fail(unexpectedMessage, fmt.Sprintf("a handshake message of type %d, expected a KeyUpdate", c.begun[0]))
	}
	if c.parts < keyUpdateSize {
		return nil
	}
	c.parts = 0
	switch c.begun[4] {
	case 0:
	case 1:
		if err := c.update(); err != nil {
			return err
		}
	default:
		return c.fail(illegalParameter, fmt.Sprintf("a KeyUpdate that asks for %d, expected 0 or 1", c.begun[4]))
	}
	if err := c.in.next(); err != nil {
		return c.fail(internalError, err.Error())
	}
	return nil
}

// update answers a KeyUpdate by one of ours.
func (c *Conn) update() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writeErr != nil || c.closed {
		return nil // whoever writes is told
	}
	if err := c.turn(); err != nil {
		c.writeErr = err
	}
	return nil
}

// turn tells the peer that records come under the next keys from now on. With the lock held.
func (c *Conn) turn() error {
	if err := c.say(handshake, []byte{keyUpdate, 0, 0, 1, 0}); err != nil {
		return err
	}
	return c.out.next()
}

// fail ends the connection with an alert, and returns the error for it.
func (c *Conn) fail(alert byte, why string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := error(tls.AlertError(alert))
	if why != "" {
		err = fmt.Errorf("%w: %s", err, why)
	}
	err = &net.OpError{Op: "local error", Err: err}
	if c.writeErr == nil && !c.closed {
		_ = c.say(alertRecord, []byte{fatal, alert})
		c.writeErr = err
	}
	return err
}

// short, single and several are buffers for records on their way out: who does not read is to hold no larger one than what is
// written takes.
var (
	short   = sync.Pool{New: func() any { b := make([]byte, 0, shortRoom); return &b }}
	single  = sync.Pool{New: func() any { b := make([]byte, 0, recordRoom); return &b }}
	several = sync.Pool{New: func() any { b := make([]byte, 0, recordsAtOnce*recordRoom); return &b }}
)

// seals are those for n bytes.
func seals(n int) *sync.Pool {
	switch {
	case n <= shortRoom-overhead:
		return &short
	case n <= maxPlaintext:
		return &single
	}
	return &several
}

// say writes one record that is not application data. With the lock held.
func (c *Conn) say(kind byte, content []byte) error {
	var b [64]byte
	record, err := c.seal(b[:0], kind, content)
	if err == nil {
		_, err = c.Conn.Write(record)
	}
	return err
}

// seal appends a record to out.
func (c *Conn) seal(out []byte, kind byte, content []byte) ([]byte, error) {
	if err := c.out.wake(); err != nil {
		return nil, err
	}
	size := len(content) + 1 + tagSize
	out = append(out, protected, version>>8, version&0xff, byte(size>>8), byte(size))
	start := len(out)
	header := out[start-headerSize:]
	out = append(append(out, content...), kind)
	out = c.out.aead.Seal(out[:start], c.out.nonce(), out[start:], header)
	if c.out.seq++; c.out.seq == 0 {
		return nil, errors.New("tls13: out of sequence numbers")
	}
	return out, nil
}

var errClosed = errors.New("tls13: written after close_notify")

// Write writes p, in as few records and packets as it takes. An error is final.
func (c *Conn) Write(p []byte) (n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.writeErr != nil:
		return 0, c.writeErr
	case c.closed:
		return 0, errClosed
	}
	defer func() { c.writeErr = err }()
	pool := seals(len(p))
	buf := pool.Get().(*[]byte)
	defer pool.Put(buf)
	for len(p) > 0 {
		out, taken := (*buf)[:0], 0
		for len(p) > 0 && c.out.seq < c.out.suite.limit {
			m := min(len(p), maxPlaintext)
			if len(out)+m+overhead > cap(out) {
				break
			}
			if out, err = c.seal(out, applicationData, p[:m]); err != nil {
				return n, err
			}
			p, taken = p[m:], taken+m
		}
		if len(out) > 0 {
			if _, err = c.Conn.Write(out); err != nil {
				return n, err
			}
			n += taken
		}
		if c.out.seq >= c.out.suite.limit {
			if err = c.turn(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// CloseWrite says that nothing more is written. It does not end the connection beneath.
func (c *Conn) CloseWrite() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writeErr != nil || c.closed {
		return c.writeErr
	}
	c.closed = true
	c.writeErr = c.say(alertRecord, []byte{warning, closeNotify})
	return c.writeErr
}
