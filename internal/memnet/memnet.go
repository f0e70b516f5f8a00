// Package memnet is a buffered network in memory for tests.
//
// It behaves as TCP on one machine does where that matters to a proxy: buffered writes, half-close, resets, deadlines,
// addresses. It waits on condition variables and channels only, so that it works inside testing/synctest bubbles. It
// loses and delays nothing by itself, and no product code imports it.
package memnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
)

const backlog = 128 // connections that wait for Accept, as in a listening socket

// Addr is the address of something that was named by other than IP and port.
type Addr string

// Network returns "mem".
func (a Addr) Network() string { return "mem" }

func (a Addr) String() string { return string(a) }

// parseAddr gives IP and port as *net.TCPAddr, since product code may ask for the type.
func parseAddr(name string) net.Addr {
	if ap, err := netip.ParseAddrPort(name); err == nil {
		return net.TCPAddrFromAddrPort(ap)
	}
	return Addr(name)
}

// Listener is a net.Listener that only Dial can reach. Make it with Listen or Network.Listen.
type Listener struct {
	addr    net.Addr
	accept  chan *Conn
	closing sync.Once
	closed  chan struct{}
	forget  func() // takes the listener from its Network; nil without one

	mu   sync.Mutex
	port uint16 // of the last client, guarded by mu
}

// Listen returns a listener. Its address is name: a *net.TCPAddr if name is IP:port, else an Addr.
func Listen(name string) *Listener {
	return &Listener{addr: parseAddr(name), accept: make(chan *Conn, backlog), closed: make(chan struct{})}
}

// Accept waits for a connection. After Close the error is net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	select { // a closed listener accepts nothing, also when connections wait
	case <-l.closed:
		return nil, l.error("accept", net.ErrClosed)
	default:
	}
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.closed:
		return nil, l.error("accept", net.ErrClosed)
	}
}

// Close ends Accept and resets the connections that were not accepted. Accepted ones live on.
func (l *Listener) Close() error {
	err := l.error("close", net.ErrClosed)
	l.closing.Do(func() {
		err = nil
		close(l.closed)
		if l.forget != nil {
			l.forget()
		}
		l.resetWaiting()
	})
	return err
}

func (l *Listener) resetWaiting() {
	for {
		select {
		case c := <-l.accept:
			c.Reset()
		default:
			return
		}
	}
}

// Addr returns the address given to Listen.
func (l *Listener) Addr() net.Addr { return l.addr }

func (l *Listener) error(op string, err error) error {
	return &net.OpError{Op: op, Net: "mem", Addr: l.addr, Err: err}
}

// Dial connects from a fresh port of 192.0.2.1 (RFC 5737). It does not wait for Accept, but for room in the backlog.
// A closed listener refuses with ECONNREFUSED.
func (l *Listener) Dial(ctx context.Context) (*Conn, error) {
	l.mu.Lock()
	l.port = max(l.port+1, 49152) // wraps round to the first dynamic port (RFC 6335)
	port := l.port
	l.mu.Unlock()
	return l.DialFrom(ctx, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), port).String())
}

// DialFrom is Dial from a client address of the test's choice.
func (l *Listener) DialFrom(ctx context.Context, client string) (*Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, l.error("dial", err)
	}
	select {
	case <-l.closed:
		return nil, l.error("dial", syscall.ECONNREFUSED)
	default:
	}
	ours, theirs := pipe(parseAddr(client), l.addr)
	select {
	case l.accept <- theirs:
		select {
		case <-l.closed: // Close may have emptied the backlog before this connection was in it
			l.resetWaiting()
		default:
		}
		return ours, nil
	case <-l.closed:
		return nil, l.error("dial", syscall.ECONNREFUSED)
	case <-ctx.Done():
		return nil, l.error("dial", ctx.Err())
	}
}

// Pipe returns the two ends of a connection between two addresses.
func Pipe(a, b string) (*Conn, *Conn) { return pipe(parseAddr(a), parseAddr(b)) }

// Network finds listeners by address. Its methods have the shape of net.Listen and net.Dialer.DialContext, so that a
// test can hand them to product code. The zero value is an empty network.
type Network struct {
	mu        sync.Mutex
	listeners map[string]*Listener
}

// Listen returns a listener with this address. Port 0 is not replaced: name the port.
func (n *Network) Listen(network, address string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[address] != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: parseAddr(address), Err: syscall.EADDRINUSE}
	}
	l := Listen(address)
	l.forget = func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.listeners, address)
	}
	if n.listeners == nil {
		n.listeners = make(map[string]*Listener)
	}
	n.listeners[address] = l
	return l, nil
}

// Dial connects to the listener with exactly this address; ECONNREFUSED if there is none.
func (n *Network) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[address]
	n.mu.Unlock()
	if l == nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: parseAddr(address), Err: fmt.Errorf("%s: %w", address, syscall.ECONNREFUSED)}
	}
	c, err := l.Dial(ctx)
	if err != nil {
		return nil, err // not c: a nil *Conn in an interface is not nil
	}
	return c, nil
}
