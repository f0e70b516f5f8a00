package forward

import (
	"io"
	"net"
	"sync"
	"time"

	"countersign/internal/reason"
	"countersign/internal/socket"
)

// Side is one end of a tunnel.
type Side struct {
	// From is read: the connection, or a reader that has bytes of it buffered.
	From io.Reader
	// Conn is written to; its CloseWrite, if it has one, passes on that the other side has ended.
	Conn net.Conn
	// Wire is the connection beneath TLS.
	Wire *socket.Conn
}

// Join copies bytes between client and target, both ways, until both have ended; an end is passed on, so that a side
// that has said all can still listen. It gives up when nothing has moved for idle, and when lifetime is over if that is
// not zero. It returns the reason of the end and the bytes that went to the target and to the client. Memory is one
// buffer for each direction, and what one side does not take the other cannot send.
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
	if r, ok := w.Main.Expired(); ok {
		return r, in, out
	}
	if _, ok := w.Pump.Expired(); ok {
		return reason.LifetimeReached, in, out
	}
	return reason.TunnelClosed, in, out
}

// carry copies from src to dst until src ends, and then ends dst's write side. Any other end ends both directions.
func (w *Watch) carry(dst, src Side, idle time.Duration) (n int64) {
	buf := outs.Get().(*[]byte)
	defer outs.Put(buf)
	b := (*buf)[:cap(*buf)]
	for {
		m, err := src.From.Read(b)
		if m > 0 {
			w.Main.Set(w.Clock, Tunnelling, idle)
			if _, werr := dst.Conn.Write(b[:m]); werr != nil {
				err = werr
			} else {
				n += int64(m)
			}
		}
		switch err {
		case nil:
		case io.EOF:
			if c, ok := dst.Conn.(interface{ CloseWrite() error }); !ok || c.CloseWrite() != nil {
				w.interrupt(Tunnelling)
			}
			return n
		default:
			w.interrupt(Tunnelling)
			return n
		}
	}
}
