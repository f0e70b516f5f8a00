package daemon_test

import (
	"bufio"
	"context"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"countersign/internal/daemon"
	"countersign/internal/frontend"
)

// shortOf is a listener of a process that has no descriptors left, for a while.
type shortOf struct {
	net.Listener
	failures atomic.Int32
}

func (l *shortOf) Accept() (net.Conn, error) {
	if l.failures.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

// TestAcceptRecovers shows that running out of descriptors ends no listener and takes no core (F14).
func TestAcceptRecovers(t *testing.T) {
	t.Run("F14/EMFILE", func(t *testing.T) {
		w := newWorld(t)
		b := echo(t, "api", nil)
		listeners := 0
		w.startWith(basic, b.addr, func(o *daemon.Options) {
			o.Listen = func(address string) (net.Listener, error) {
				l, err := net.Listen("tcp", address)
				if err != nil {
					return nil, err
				}
				s := &shortOf{Listener: l}
				if listeners++; listeners == 2 { // the first is ops
					s.failures.Store(6)
				}
				return s, nil
			}
		})
		start := time.Now()
		if status, _, err := w.get("public", w.client("a.test", w.ca.Client("alice")), "a.test", "/"); status != 200 {
			t.Fatal(status, err)
		}
		if took := time.Since(start); took > 8*time.Second {
			t.Errorf("served after %v", took)
		}
		if n := strings.Count(w.ops.String(), "cannot accept a connection"); n == 0 || n > 12 {
			t.Errorf("%d log lines about it", n)
		}
		if !strings.Contains(w.ops.String(), "reason=overloaded") {
			t.Errorf("no reason: %s", w.ops.String())
		}
	})
}

// TestPanicIsolation shows that a panic costs the connection it is in, is counted, and nothing else (F16).
func TestPanicIsolation(t *testing.T) {
	t.Run("F16/in a connection", func(t *testing.T) {
		w := newWorld(t)
		b := echo(t, "api", nil)
		var armed atomic.Bool
		w.startWith(basic, b.addr, func(o *daemon.Options) {
			o.Listen = func(address string) (net.Listener, error) {
				l, err := frontend.Listen(address)
				return &trap{l, &armed}, err
			}
		})
		alice := w.client("a.test", w.ca.Client("alice"))
		armed.Store(true)
		if c, err := w.dial("public", alice); err == nil {
			c.Close()
			t.Error("a handshake with a connection that panics")
		}
		armed.Store(false) // metrics come by a listener of the same kind
		w.awaitMetric("countersign_panics_total", "1")
		for range 5 { // also no place in the queue of handshakes is lost
			if status, _, err := w.get("public", alice, "a.test", "/"); status != 200 {
				t.Fatal("nobody is served any more:", status, err)
			}
		}
	})
	t.Run("F16/in a dialer", func(t *testing.T) {
		w := newWorld(t)
		b := echo(t, "api", nil)
		var armed atomic.Bool
		w.startWith(basic, b.addr, func(o *daemon.Options) {
			o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				if armed.Load() {
					panic("injected")
				}
				return (&net.Dialer{}).DialContext(ctx, network, address)
			}
		})
		alice := w.client("a.test", w.ca.Client("alice"))
		other, err := w.dial("public", alice)
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(other)
		if status, _, err := roundTrip(other, r, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"); status != 200 {
			t.Fatal(status, err)
		}
		armed.Store(true)
		c, err := w.dial("public", alice)
		if err != nil {
			t.Fatal(err)
		}
		// The pooled connection is taken by one, so that the other has to dial.
		done := make(chan int, 1)
		go func() {
			status, _, _ := roundTrip(c, bufio.NewReader(c), "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello")
			done <- status
		}()
		first := <-done
		var second int
		if first == 200 {
			// It was given the pooled one: hold that by a request that is not finished.
			if _, err := c.Write([]byte("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\n")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond)
			d, err := w.dial("public", alice)
			if err != nil {
				t.Fatal(err)
			}
			second, _, _ = roundTrip(d, bufio.NewReader(d), "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
		}
		if first != 502 && second != 502 { // a dialer that panics has not connected
			t.Errorf("status %d and %d", first, second)
		}
		w.awaitMetric("countersign_panics_total", "1")
		if !strings.Contains(w.ops.String(), "injected") {
			t.Error("the panic is not in the log")
		}
		armed.Store(false)
		if status, _, err := w.get("public", alice, "a.test", "/"); status != 200 {
			t.Error("nobody is served any more:", status, err)
		}
	})
}

// trap is a listener whose connections panic in reads while armed.
type trap struct {
	net.Listener
	armed *atomic.Bool
}

func (l *trap) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil && l.armed.Load() {
		c = trapped{c}
	}
	return c, err
}

type trapped struct{ net.Conn }

func (trapped) Read([]byte) (int, error) { panic("injected") }
