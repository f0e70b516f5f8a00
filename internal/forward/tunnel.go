package forward

import (
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"countersign/internal/h2"
	"countersign/internal/reason"
	"countersign/internal/socket"
	"countersign/internal/upstream"
)

// Side is one end of a tunnel.
type Side struct {
	// Ahead are bytes that were read of the side already; they come first.
	Ahead []byte
	// From is read: the connection, or a reader that has bytes of it buffered. Nil means Conn.
	From io.Reader
	// Conn is written to; its CloseWrite, if it has one, passes on that the other side has ended.
	Conn net.Conn
	// Wire is the connection beneath TLS; nil for a stream of HTTP/2, which is Stream then.
	Wire   *socket.Conn
	Stream *h2.Stream
	// TLS says that the side speaks it, and so says when it ends: an end without that can be made by anybody on the way.
	TLS bool
}

// sip is what a side is read with while little comes, so that a tunnel that is mostly silent does not keep two large
// buffers.
const sip = 2 << 10

// Join copies bytes between client and target, both ways, until both have ended; an end is passed on, so that a side
// that has said all can still listen. It gives up when nothing has moved for idle, when lifetime is over if that is not
// zero, and at Force. It returns the reason of the end and the bytes that went to the target and to the client. Memory is
// one buffer for each direction, or a pipe where the kernel moves the bytes, and what one side does not take the other
// cannot send.
func Join(w *Watch, client, target Side, idle, lifetime time.Duration) (why reason.Reason, in, out int64) {
	w.setTarget(target.Wire)
	defer w.setTarget(nil)
	w.Main.Set(w.Clock, Tunnelling, idle)
	w.Pump.Set(w.Clock, Tunnelling, lifetime)
	defer w.Pump.Set(w.Clock, Free, 0)

	var backError any
	var wg sync.WaitGroup
	wg.Go(func() {
		defer func() {
			if backError = recover(); backError != nil { // it goes on in the connection's own goroutine
				w.interrupt(Tunnelling)
			}
		}()
		out = w.carry(client, target, idle)
	})
	in = w.carry(target, client, idle)
	wg.Wait()
	if backError != nil {
		panic(backError)
	}
	if w.Forced() {
		return reason.ShutdownForced, in, out
	}
	if r, ok := w.Main.Expired(); ok {
		return r, in, out
	}
	if _, ok := w.Pump.Expired(); ok {
		return reason.LifetimeReached, in, out
	}
	return reason.TunnelClosed, in, out
}

// carry copies from src to dst until src ends, and then ends dst's write side. Any other end ends both directions, and
// does not look like an end to dst: what it got may be a part.
func (w *Watch) carry(dst, src Side, idle time.Duration) (n int64) {
	if len(src.Ahead) > 0 {
		if _, err := dst.Conn.Write(src.Ahead); err != nil {
			w.fail(dst)
			return 0
		}
		n = int64(len(src.Ahead))
	}
	if dst.plain() && src.plain() && src.unbuffered() {
		if s := newSplicer(w, dst.Wire, src.Wire, idle); s != nil {
			if s.run() == nil {
				w.pass(dst)
			} else {
				w.fail(dst)
			}
			return n + s.sent
		}
	}
	if src.From == nil {
		src.From = src.Conn
	}
	small := make([]byte, sip)
	b := small
	var large *[]byte
	defer func() {
		if large != nil {
			outs.Put(large)
		}
	}()
	for {
		m, err := src.From.Read(b)
		if err == io.EOF && src.TLS && !src.Wire.MayBeAlert() {
			err = io.ErrUnexpectedEOF // crypto/tls takes an end without close_notify for an end (E21)
		}
		if m > 0 {
			w.Main.Set(w.Clock, Tunnelling, idle)
			if _, werr := dst.Conn.Write(b[:m]); werr != nil {
				err = werr
			} else {
				n += int64(m)
			}
		}
		switch {
		case m == len(b) && large == nil:
			large = outs.Get().(*[]byte)
			b = (*large)[:cap(*large)]
		case m < sip && large != nil:
			outs.Put(large)
			large, b = nil, small
		}
		switch err {
		case nil:
		case io.EOF:
			w.pass(dst)
			return n
		default:
			w.fail(dst)
			return n
		}
	}
}

// pass tells dst that the other side has ended.
func (w *Watch) pass(dst Side) {
	if c, ok := dst.Conn.(interface{ CloseWrite() error }); !ok || c.CloseWrite() != nil {
		w.interrupt(Tunnelling)
	}
}

// fail ends both directions, in such a way that dst does not take it for a proper end.
func (w *Watch) fail(dst Side) {
	if dst.Stream != nil {
		dst.Stream.Reset(http2.ErrCodeCancel)
	} else {
		dst.Wire.Reset()
	}
	w.interrupt(Tunnelling)
}

// plain reports whether the side's bytes are those of its connection.
func (s *Side) plain() bool {
	wire, ok := s.Conn.(*socket.Conn)
	return ok && wire == s.Wire && !s.TLS && s.Stream == nil
}

// unbuffered reports whether the side is read from its connection and nowhere else.
func (s *Side) unbuffered() bool {
	if s.From == nil {
		return true
	}
	if wire, ok := s.From.(*socket.Conn); ok {
		return wire == s.Wire
	}
	conn, ok := s.From.(*upstream.Conn)
	return ok && conn.Wire == s.Wire
}
