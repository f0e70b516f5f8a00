// Package socket owns the connection beneath TLS: bytes counted, TLS record boundaries followed, and questions answered
// that neither net nor crypto/tls answers, such as "has the peer gone?" without reading. It does not interpret payload.
package socket

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Conn is a network connection that knows what has passed through it. One goroutine may read and another write at a
// time, and one, not necessarily the same, may Peek.
type Conn struct {
	net.Conn
	// In and Out count bytes on the wire. Owned by the reader and the writer.
	In, Out int64
	// Records counts the TLS records that have begun to arrive. Owned by the reader.
	Records int64

	// Before, if not nil, is called before each read from the connection and each write to it: what calls may wait there, and
	// whoever holds something that others wait for can let go of it. To be changed only while nobody reads or writes.
	Before func()

	// Mute makes writes vanish, and MuteOnRead sets it at the next Read: where a refusal is to end in a reset, the alert that
	// crypto/tls would send must not go out. A ChangeCipherSpec ends it: TLS 1.2 sends one when it has accepted the client.
	Mute, MuteOnRead bool

	// More lets what is written wait in the system for what is written next, and go with it in one packet. It goes without
	// when a read finds that the peer has nothing to say first, when the connection is closed, and after the 0.2 s that the
	// system waits. Owned by the writer, and by the reader too as long as it is set.
	More bool
	held bool // something may wait; owned by the reader
	// burst is More for all that is written until it is false again, with a write behind it that nothing waits for. What
	// crypto/tls writes for the reader, as an answer to a KeyUpdate, may come between.
	burst atomic.Bool

	raw     syscall.RawConn // nil where there is no descriptor (tests in memory)
	probing bool
	track   bool
	header  [5]byte
	have    uint8       // bytes of header
	left    int         // bytes of the current record that have not passed yet
	alert   atomic.Bool // the last record can have been an alert; read by whoever peeks

	one    [1]byte
	steps  bool
	peeked State
	asked  bool
	peek   func(fd uintptr) // bound once, so that Peek allocates nothing

	ahead atomic.Pointer[window] // nil for nothing; whoever peeks asks for that

	push    func(fd uintptr) bool // bound when it is first needed, as ask
	ask     func(fd uintptr) bool
	pushing []byte
	pushed  int
	failed  error
	count   func(fd uintptr) // bound at the first call of HasArrived
	counted int              // of them at least so many are still there
}

// New wraps c. records says that the bytes read are TLS records and that their boundaries are to be followed.
func New(c net.Conn, records bool) *Conn {
	s := &Conn{Conn: c, track: records}
	if sc, ok := c.(syscall.Conn); ok {
		s.raw, _ = sc.SyscallConn()
	}
	s.peek = func(fd uintptr) { s.peeked = look(int(fd)) }
	return s
}

// The types of TLS records (RFC 8446 section 5.1).
const (
	changeCipherSpec = 20
	alert            = 21
	applicationData  = 23
)

// wouldBlock is what Read answers while the connection is being probed. It is temporary, so crypto/tls does not make it
// the connection's permanent error.
type wouldBlock struct{}

func (wouldBlock) Error() string   { return "socket: nothing to read" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

// Read reads from the connection, or fails at once while it is being probed.
func (s *Conn) Read(p []byte) (int, error) {
	if s.probing {
		return 0, wouldBlock{}
	}
	if s.MuteOnRead {
		s.Mute, s.MuteOnRead = true, false
	}
	here := s.ahead.Load() != nil
	if s.Before != nil && !here { // what is here already is not waited for
		s.Before()
	}
	n, err := 0, error(nil)
	if here || s.steps {
		n, err = s.step(p)
	} else {
		n, err = s.take(p)
	}
	s.note(p[:n])
	return n, err
}

// take reads from the connection what there is.
func (s *Conn) take(p []byte) (n int, err error) {
	if s.held {
		n, err = s.readOrPush(p)
	}
	if n == 0 && err == nil {
		n, err = s.Conn.Read(p)
	}
	return n, err
}

// note counts what was read.
func (s *Conn) note(p []byte) {
	n := len(p)
	s.In += int64(n)
	s.counted = max(s.counted-n, 0)
	if s.track {
		s.follow(p)
	}
}

// window is what has come with a record and belongs to later ones: b[from:to].
type window struct {
	from, to int
	b        [4<<10 - 16]byte
}

var windows = sync.Pool{New: func() any { return new(window) }}

// InSteps has Read hand over at most what is left of one TLS record, or of its header, so that whoever reads record by record
// takes nothing of the next. What came with it is here for later reads, in steps or not. For the reader of a connection that
// follows records.
func (s *Conn) InSteps(on bool) { s.steps = on }

// step reads, ahead of what is asked for, and hands over what belongs to the record at hand, or all if not in steps.
func (s *Conn) step(p []byte) (n int, err error) {
	w := s.ahead.Load()
	if w == nil {
		w = windows.Get().(*window)
		w.from = 0
		w.to, err = s.take(w.b[:])
	}
	if limit := s.left; s.steps {
		if limit == 0 {
			limit = len(s.header) - int(s.have)
		}
		p = p[:min(len(p), limit)]
	}
	n = copy(p, w.b[w.from:w.to])
	if w.from += n; w.from < w.to {
		s.ahead.Store(w)
	} else {
		s.ahead.Store(nil)
		windows.Put(w)
	}
	return n, err
}

// receipt is a call of Receive. It is kept for the next call, of any connection, so that read is bound once.
type receipt struct {
	read   func(fd uintptr) bool
	pool   *sync.Pool
	at     int
	into   *[]byte // nil if nothing has come
	n      int
	failed error
}

var receipts = sync.Pool{New: func() any {
	r := new(receipt)
	r.read = func(fd uintptr) bool {
		b := r.pool.Get().(*[]byte)
		for {
			if r.n, r.failed = unix.Read(int(fd), (*b)[r.at:]); r.failed != unix.EINTR {
				break
			}
		}
		if r.n > 0 {
			r.into = b
			return true
		}
		r.pool.Put(b)
		return r.failed != unix.EAGAIN
	}
	return r
}}

// Receive reads what has arrived into a buffer, behind its first at bytes, which it takes from pool only when there is
// something: whoever waits in it holds none. The buffer is nil with an error. For the reader, when it has no use for what Before
// and the Mutes do.
func (s *Conn) Receive(pool *sync.Pool, at int) (buf *[]byte, n int, err error) {
	if here := s.ahead.Load() != nil; s.raw == nil || s.held || here {
		buf = pool.Get().(*[]byte)
		if s.raw == nil || here {
			n, err = s.Read((*buf)[at:])
		} else {
			n, err = s.readOrPush((*buf)[at:])
			s.note((*buf)[at : at+n])
		}
		if n > 0 {
			return buf, n, nil // an error comes again
		}
		if pool.Put(buf); err != nil || s.raw == nil {
			return nil, 0, err
		}
	}
	r := receipts.Get().(*receipt)
	defer func() {
		r.pool, r.into, r.failed = nil, nil, nil
		receipts.Put(r)
	}()
	r.pool, r.at = pool, at
	err = s.raw.Read(r.read)
	switch {
	case r.into != nil:
		s.note((*r.into)[at : at+r.n])
		return r.into, r.n, nil
	case err != nil:
		return nil, 0, err
	case r.failed != nil:
		return nil, 0, s.failure("read", r.failed)
	}
	return nil, 0, io.EOF
}

// Write writes to the connection.
func (s *Conn) Write(p []byte) (int, error) {
	if s.Mute {
		if len(p) == 0 || p[0] != changeCipherSpec {
			return len(p), nil
		}
		s.Mute = false
	}
	if s.Before != nil {
		s.Before()
	}
	n, err := 0, error(nil)
	switch {
	case s.raw == nil || len(p) == 0:
	case s.More:
		n, err = s.hold(p)
		s.held = s.held || n > 0
	case s.burst.Load():
		n, err = s.hold(p)
	}
	if n < len(p) && err == nil {
		var rest int
		rest, err = s.Conn.Write(p[n:])
		n += rest
	}
	s.Out += int64(n)
	return n, err
}

// hold gives the system what it takes of p at once, to be sent with what follows.
func (s *Conn) hold(p []byte) (n int, err error) {
	if s.push == nil {
		s.push = func(fd uintptr) bool { s.pushed, s.failed = send(fd, s.pushing, true); return true }
	}
	s.pushing, s.pushed, s.failed = p, 0, nil
	_ = s.raw.Write(s.push) // a deadline is for the next write to meet
	n, s.pushing = s.pushed, nil
	if s.failed != nil {
		err = s.failure("write", s.failed)
	}
	return n, err
}

// Ask writes p and waits for what the peer says to it: until a read would find something, an error or the end included, or
// until the read deadline has passed. A read that was made at once instead would find nothing and wait then. It does not wait
// if the system does not take all of p, and returns how much that was: the rest is for Write. For who is reader and writer.
func (s *Conn) Ask(p []byte) (int, error) {
	if s.raw == nil || !canSend || s.Mute || s.More || s.Before != nil {
		return s.Write(p)
	}
	if s.ask == nil {
		// What says that there is something to read is heard from before the call on: an answer cannot come too early.
		s.ask = func(fd uintptr) bool {
			if s.asked {
				return true
			}
			s.asked = true
			s.pushed, s.failed = send(fd, s.pushing, false)
			return s.pushed < len(s.pushing)
		}
	}
	s.asked, s.pushing, s.pushed, s.failed = false, p, 0, nil
	_ = s.raw.Read(s.ask) // a deadline, or that it is closed, is for the next call to meet
	s.pushing = nil
	s.Out += int64(s.pushed)
	if s.failed != nil {
		return s.pushed, s.failure("write", s.failed)
	}
	return s.pushed, nil
}

// failure is err as package net would tell it.
func (s *Conn) failure(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: os.NewSyscallError(op, err)}
}

// CloseWrite ends the write side, where the connection can do that.
func (s *Conn) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// follow keeps count of TLS record boundaries: 5 bytes of header, the last two of which are the length.
func (s *Conn) follow(p []byte) {
	for len(p) > 0 {
		if s.left > 0 {
			n := min(s.left, len(p))
			s.left -= n
			p = p[n:]
			continue
		}
		n := copy(s.header[s.have:], p)
		s.have += uint8(n)
		p = p[n:]
		if s.have == 5 {
			s.Records++
			s.left = int(s.header[3])<<8 | int(s.header[4])
			s.alert.Store(s.header[0] == alert || s.header[0] == applicationData && s.left <= 2+1+16)
			s.have = 0
		}
	}
}

// Whole reports that no TLS record has been read in part.
func (s *Conn) Whole() bool { return s.left == 0 && s.have == 0 }

// MayBeAlert reports that the last record read can have been an alert, close_notify above all: in TLS 1.3 an encrypted
// record of 2 bytes with its type and tag, in TLS 1.2 a record of type alert.
func (s *Conn) MayBeAlert() bool { return s.alert.Load() }

// Probe calls read, which must read from a TLS connection over s, in such a way that it sees only what TLS has already
// taken from s. It reports whether there was anything.
func (s *Conn) Probe(read func([]byte) (int, error)) bool {
	s.probing = true
	n, err := read(s.one[:])
	s.probing = false
	_, blocked := err.(wouldBlock)
	return n > 0 || !blocked
}

// Control calls f with the descriptor, if there is one (syscall.RawConn).
func (s *Conn) Control(f func(fd uintptr)) error {
	if s.raw == nil {
		return errors.ErrUnsupported
	}
	return s.raw.Control(f)
}

// HasDescriptor reports whether Peek can tell anything.
func (s *Conn) HasDescriptor() bool { return s.raw != nil }

// State is what Peek found.
type State uint8

// The states.
const (
	Quiet   State = iota // open, nothing to read
	Pending              // bytes to read, or no way to tell
	Ended                // the peer has sent its FIN and everything before it has been read
	Broken               // the connection was reset or has failed
)

// Peek says what a read would find, without reading and without blocking.
func (s *Conn) Peek() State {
	if s.raw == nil {
		return Pending
	}
	if err := s.raw.Control(s.peek); err != nil {
		return Broken
	}
	if s.peeked != Broken && s.ahead.Load() != nil {
		return Pending
	}
	return s.peeked
}

// HasArrived reports whether at least n bytes have arrived and were not read yet; false if that cannot be told. For the
// reader. The system is asked only when what it said before has been read: one question for all records of a burst.
func (s *Conn) HasArrived(n int) bool {
	if s.counted >= n || s.raw == nil {
		return s.counted >= n
	}
	if s.count == nil {
		s.count = func(fd uintptr) { s.counted = waiting(fd) }
	}
	if s.counted = 0; s.raw.Control(s.count) != nil {
		return false
	}
	return s.counted >= n
}

// Await blocks until a read would find something, an error or the end included, or until the read deadline has passed. It
// needs less stack for that than a Read under TLS does.
func (s *Conn) Await() error {
	if s.raw == nil {
		return nil
	}
	return s.raw.Read(func(fd uintptr) bool { return look(int(fd)) != Quiet })
}

func look(fd int) State {
	var one [1]byte
	for {
		// The system call itself: unix.Recvfrom makes a socket address for every call, and this is on the request path.
		n, _, err := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&one)), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return Quiet
		case err != 0:
			return Broken
		case n == 0:
			return Ended
		case failed(fd):
			return Broken // bytes that came before a reset do not hide it
		default:
			return Pending
		}
	}
}

// failed reports whether the connection was reset, or has failed, behind what there is to read.
func failed(fd int) bool {
	p := [1]unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(p[:], 0)
	return err == nil && n == 1 && p[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
}

// Reset makes the next Close send a TCP reset in place of an orderly end, where the connection can do that.
func (s *Conn) Reset() {
	if c, ok := s.Conn.(interface{ SetLinger(int) error }); ok {
		_ = c.SetLinger(0)
	}
}
