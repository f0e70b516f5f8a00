package frontend

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"countersign/internal/eventloop"
	"countersign/internal/snapshot"
	"countersign/internal/socket"
	"countersign/internal/tls13"
)

// The experiment event_loop: a connection of HTTP/1.1 that has no request for dozeAfter waits without a goroutine, and its TLS
// 1.3 without crypto/tls. A goroutine gets it back for the next request, and for whatever else would have woken the one that
// waited: all of that goes through line. Of a connection that is closed the system tells nothing, so who closes one that he does
// not serve calls rouse.

// parking is what a connection needs for that.
type parking struct {
	loops  *eventloop.Loops
	seat   eventloop.Seat
	parked bool        // of whoever has the connection: it has been in the loop
	roused atomic.Bool // something ended the wait since it was last begun

	handover *tls13.Handover // during the handshake
}

// openLoops sees that there are loops if s wants them.
func (f *Frontend) openLoops(s *snapshot.Snapshot) error {
	if !s.EventLoop || f.loops.Load() != nil {
		return nil
	}
	loops, err := eventloop.Open(runtime.GOMAXPROCS(0), func(v any) {
		f.book.Panicked()
		f.log.Error("panic in an event loop", "panic", fmt.Sprint(v))
	})
	if err != nil {
		return fmt.Errorf("experimental.event_loop: %w; leave it out", err)
	}
	f.loops.Store(loops)
	return nil
}

// Parked is how many connections wait in the event loop, for metrics.
func (f *Frontend) Parked() int {
	if loops := f.loops.Load(); loops != nil {
		return loops.Len()
	}
	return 0
}

// Layers are how many connections have had a record layer of ours, and of the library although the experiment was on, for
// metrics.
func (f *Frontend) Layers() (own, library uint64) {
	return f.layers.own.Load(), f.layers.library.Load()
}

// line is a client's connection as what waits are ended by.
type line struct {
	*socket.Conn
	of *conn
}

// SetDeadline ends the wait in the loop too.
func (l line) SetDeadline(t time.Time) error {
	err := l.Conn.SetDeadline(t)
	l.of.rouse(t)
	return err
}

// SetReadDeadline ends the wait in the loop too.
func (l line) SetReadDeadline(t time.Time) error {
	err := l.Conn.SetReadDeadline(t)
	l.of.rouse(t)
	return err
}

// rouse has a connection go on that waits in the loop, unless t is no deadline.
func (c *conn) rouse(t time.Time) {
	if t.IsZero() || c.parking == nil {
		return
	}
	c.parking.roused.Store(true)
	if c.parking.seat.Leave() {
		c.Wake()
	}
}

// Wake has the connection go on in a goroutine: there is something to read, or its wait has ended.
func (c *conn) Wake() { c.f.hand(c) }

// dozing reports whether the wait for a request is to go on with less, as Watch.Dozing does. What ends the wait from here on
// is told by roused.
//
//go:noinline
func (c *conn) dozing() bool {
	if c.parking != nil {
		c.parking.roused.Store(false)
	}
	return c.watch.Dozing()
}

// resumes reports whether the connection comes back from the loop, once.
func (p *parking) resumes() bool {
	if p == nil || !p.parked {
		return false
	}
	p.parked = false
	return true
}

// park has the connection wait in the event loop, and reports whether it does. Then it is not this goroutine's any more.
//
//go:noinline
func (c *conn) park() bool {
	p := c.parking
	if p == nil || !c.sock.HasDescriptor() {
		return false
	}
	if own, ok := c.secure.(*tls13.Conn); ok {
		own.Rest()
	}
	c.lanes.drop()
	p.parked = true
	if p.loops.Park(&p.seat, c.sock, c) != nil {
		p.parked = false
		return false
	}
	_, expired := c.watch.Main.Expired()
	if (expired || p.roused.Load()) && p.seat.Leave() { // it was ended before there was anybody in the loop to be told
		p.parked = false
		return false
	}
	return true
}

// prepareHandover has the handshake leave what takeOver needs.
func (c *conn) prepareHandover() {
	if c.parking != nil && c.listener.Protocol == snapshot.HTTPS {
		c.parking.handover = new(tls13.Handover)
		c.sock.InSteps(true)
	}
}

// handover is where the handshake leaves what takeOver needs; nil without the experiment, and behind the handshake.
func (c *conn) handover() *tls13.Handover {
	if c.parking == nil {
		return nil
	}
	return c.parking.handover
}

// forgetHandover is for a handshake that came to nothing.
func (c *conn) forgetHandover() {
	if h := c.handover(); h != nil {
		h.Wipe()
		c.parking.handover = nil
		c.sock.InSteps(false)
	}
}

// share has the connection hold certificates of the chain that was believed, which others hold too, in place of equal ones that
// crypto/tls has parsed for it.
func (c *conn) share() {
	if c.handover() == nil {
		return
	}
	shared := make([]*x509.Certificate, len(c.presented))
	for i, cert := range c.presented {
		shared[i] = cert
		for _, known := range c.verdict.Chain {
			if known.Equal(cert) {
				shared[i] = known
			}
		}
	}
	c.presented = shared
}

// takeOver is the connection behind its handshake: under a record layer of our own where that can be.
func (c *conn) takeOver(tc *tls.Conn) secured {
	h := c.handover()
	if h == nil {
		return socket.NewRecords(tc, c.sock)
	}
	c.parking.handover = nil
	c.sock.InSteps(false)
	if own := tls13.Take(tc, c.sock, h, c.presented); own != nil {
		c.f.layers.own.Add(1)
		return own
	}
	c.f.layers.library.Add(1)
	return socket.NewRecords(tc, c.sock)
}
