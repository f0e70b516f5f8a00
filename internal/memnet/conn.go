package memnet

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Buffer is how many bytes one direction of a connection holds before Write blocks.
const Buffer = 1 << 20

// Conn is one end of a connection: a net.Conn with the further methods of *net.TCPConn that a proxy uses.
type Conn struct {
	local, remote net.Addr
	in, out       *stream

	mu     sync.Mutex
	closed bool
	linger bool // false after SetLinger(0)
}

// stream is one direction.
type stream struct {
	mu       sync.Mutex
	change   sync.Cond // L is &mu; any field below changed, or a deadline passed
	unread   []byte
	left     int64 // bytes until the connection is cut; negative: never
	finished bool  // the writer has ended: EOF after unread
	deaf     bool  // the reader has closed: writes fail
	broken   error // ECONNRESET once the connection was reset

	readDeadline, writeDeadline deadline
	readerClosed, writerClosed  bool // by Close of the own end
}

type deadline struct {
	at    time.Time
	timer *time.Timer // wakes the waiters at at
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func pipe(a, b net.Addr) (*Conn, *Conn) {
	ab, ba := newStream(), newStream()
	return &Conn{local: a, remote: b, in: ba, out: ab, linger: true}, &Conn{local: b, remote: a, in: ab, out: ba, linger: true}
}

func newStream() *stream {
	s := &stream{left: -1}
	s.change.L = &s.mu
	return s
}

// Read waits for bytes. At the end of the stream it returns io.EOF; after a reset of the connection ECONNRESET, once
// the bytes that arrived before are read; after Close net.ErrClosed; past the deadline os.ErrDeadlineExceeded.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.in.read(p)
	if err != nil && err != io.EOF {
		err = c.error("read", err)
	}
	return n, err
}

func (s *stream) read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.readerClosed:
			return 0, net.ErrClosed
		case s.readDeadline.passed():
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case len(s.unread) > 0:
			n := copy(p, s.unread)
			if s.unread = s.unread[n:]; len(s.unread) == 0 {
				s.unread = nil
			}
			s.change.Broadcast()
			return n, nil
		case s.broken != nil:
			return 0, s.broken
		case s.finished:
			return 0, io.EOF
		}
		s.change.Wait()
	}
}

// Write buffers p and waits while Buffer bytes are unread. After the other end has closed it returns EPIPE, after a
// reset ECONNRESET, after Close or CloseWrite net.ErrClosed, past the deadline os.ErrDeadlineExceeded.
func (c *Conn) Write(p []byte) (int, error) {
	n, cut, err := c.out.write(p)
	if cut {
		c.Reset()
	}
	if err != nil {
		err = c.error("write", err)
	}
	return n, err
}

func (s *stream) write(p []byte) (n int, cut bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.writerClosed || s.finished:
			return n, false, net.ErrClosed
		case s.writeDeadline.passed():
			return n, false, os.ErrDeadlineExceeded
		case s.broken != nil:
			return n, false, s.broken
		case s.deaf:
			return n, false, syscall.EPIPE
		case n == len(p):
			return n, false, nil
		}
		if room := Buffer - len(s.unread); room > 0 {
			some := p[n:min(len(p), n+room)]
			if s.left >= 0 {
				some = some[:min(int64(len(some)), s.left)]
				s.left -= int64(len(some))
			}
			s.unread = append(s.unread, some...)
			n += len(some)
			s.change.Broadcast()
			if s.left == 0 {
				return n, true, syscall.ECONNRESET
			}
			continue
		}
		s.change.Wait()
	}
}

// CutAfter breaks the connection, as Reset does, when this end has written n more bytes. The other end can still read
// those n bytes.
func (c *Conn) CutAfter(n int64) {
	c.out.mu.Lock()
	c.out.left = max(n, 0)
	c.out.mu.Unlock()
	if n <= 0 {
		c.Reset()
	}
}

// CloseWrite ends the stream to the other end, which reads io.EOF after what was written. Reading goes on.
func (c *Conn) CloseWrite() error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if c.out.writerClosed {
		return c.error("close", net.ErrClosed)
	}
	c.out.finished = true
	c.out.change.Broadcast()
	return nil
}

// Close ends both directions. As with TCP, closing while bytes are unread resets the connection, so that the other
// end, when it has read what was written, sees ECONNRESET in place of io.EOF.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return c.error("close", net.ErrClosed)
	}
	c.closed = true
	reset := !c.linger
	c.mu.Unlock()

	c.in.mu.Lock()
	reset = reset || len(c.in.unread) > 0
	c.in.readerClosed, c.in.deaf = true, true
	c.in.unread = nil
	c.in.readDeadline.set(time.Time{}, nil)
	c.in.change.Broadcast()
	c.in.mu.Unlock()

	c.out.mu.Lock()
	c.out.writerClosed, c.out.finished = true, true
	c.out.writeDeadline.set(time.Time{}, nil)
	c.out.change.Broadcast()
	c.out.mu.Unlock()
	if reset {
		c.Reset()
	}
	return nil
}

// Reset breaks the connection in both directions.
func (c *Conn) Reset() {
	for _, s := range []*stream{c.in, c.out} {
		s.mu.Lock()
		s.broken = syscall.ECONNRESET
		s.change.Broadcast()
		s.mu.Unlock()
	}
}

// SetLinger makes Close reset the connection when sec is 0. Other values restore the ordinary Close.
func (c *Conn) SetLinger(sec int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.linger = sec != 0
	return nil
}

// LocalAddr returns this end's address.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the other end's address.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline ends waiting and future reads at t; the zero time is no deadline.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	if c.in.readerClosed {
		return c.error("set", net.ErrClosed)
	}
	c.in.readDeadline.set(t, c.in)
	return nil
}

// SetWriteDeadline ends waiting and future writes at t; the zero time is no deadline.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if c.out.writerClosed {
		return c.error("set", net.ErrClosed)
	}
	c.out.writeDeadline.set(t, c.out)
	return nil
}

// set is called with s.mu held. A timer that fires late only wakes the waiters, who look at d.at themselves.
func (d *deadline) set(t time.Time, s *stream) {
	d.at = t
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if t.IsZero() {
		return
	}
	if wait := time.Until(t); wait > 0 {
		d.timer = time.AfterFunc(wait, func() {
			s.mu.Lock() // not between a waiter's look at the clock and its Wait
			defer s.mu.Unlock()
			s.change.Broadcast()
		})
	}
	s.change.Broadcast()
}

func (c *Conn) error(op string, err error) error {
	return &net.OpError{Op: op, Net: c.remote.Network(), Source: c.local, Addr: c.remote, Err: err}
}
