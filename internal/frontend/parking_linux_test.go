package frontend

import (
	"io"
	"net"
	"reflect"
	"testing"
	"time"
	"unsafe"

	"countersign/internal/eventloop"
	"countersign/internal/forward"
	"countersign/internal/limit"
	"countersign/internal/record"
	"countersign/internal/snapshot"
	"countersign/internal/socket"
)

// parkable is a connection that waits for a request, and its client.
func parkable(t *testing.T) (*conn, net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	loops, err := eventloop.Open(1, func(v any) { t.Error(v) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); raw.Close(); loops.Close() })
	c := &conn{f: &Frontend{resting: make(chan *conn, 2)}, sock: socket.New(raw, false)}
	c.parking = &parking{loops: loops}
	c.f.clock.Set(time.Now())
	c.watch.Clock, c.watch.Client = &c.f.clock, line{c.sock, c}
	c.watch.Main.Set(c.watch.Clock, forward.Idle, time.Minute)
	c.watch.Doze()
	return c, client
}

// TestPark: whatever ends the wait of a connection has it go on, once, whether it came before it waited in the loop or behind.
func TestPark(t *testing.T) {
	goesOn := func(t *testing.T, c *conn) {
		t.Helper()
		select {
		case got := <-c.f.resting:
			if got != c || !c.parking.parked {
				t.Error("not as one that has been in the loop")
			}
		case <-time.After(10 * time.Second):
			t.Fatal("it does not go on")
		}
		time.Sleep(10 * time.Millisecond)
		if len(c.f.resting) > 0 || c.parking.seat.Leave() {
			t.Error("it goes on twice")
		}
	}
	ends := map[string]func(c *conn){
		"its time is up": func(c *conn) {
			c.f.clock.Set(time.Now())
			c.watch.Sweep(time.Now().Add(time.Hour), false)
		},
		"memory is short":  func(c *conn) { c.watch.EndIdle() },
		"the process ends": func(c *conn) { c.watch.Interrupt() },
		"it is cut":        func(c *conn) { c.watch.Force() },
	}
	for name, end := range ends {
		t.Run("before/"+name, func(t *testing.T) {
			c, _ := parkable(t)
			if !c.dozing() {
				t.Fatal("it does not doze")
			}
			end(c)
			if c.park() || c.parking.parked {
				t.Fatal("it waits in the loop")
			}
			if err := c.sock.Await(); err == nil {
				t.Error("and its next wait does not end")
			}
			if len(c.f.resting) > 0 {
				t.Error("it goes on twice")
			}
		})
		t.Run("behind/"+name, func(t *testing.T) {
			c, _ := parkable(t)
			if !c.dozing() || !c.park() {
				t.Fatal("it does not wait in the loop")
			}
			end(c)
			goesOn(t, c)
		})
	}
	t.Run("its time was up before it was to doze", func(t *testing.T) {
		c, _ := parkable(t)
		c.watch.EndIdle()
		if c.dozing(); c.park() {
			t.Error("it waits in the loop")
		}
	})
	t.Run("bytes come", func(t *testing.T) {
		c, client := parkable(t)
		if !c.dozing() || !c.park() {
			t.Fatal("it does not wait in the loop")
		}
		_, _ = client.Write([]byte("x"))
		goesOn(t, c)
	})
	t.Run("a deadline is taken away", func(t *testing.T) {
		c, _ := parkable(t)
		if !c.dozing() || !c.park() {
			t.Fatal("it does not wait in the loop")
		}
		_, _ = c.watch.Client.SetReadDeadline(time.Time{}), c.watch.Client.SetDeadline(time.Time{})
		time.Sleep(10 * time.Millisecond)
		if len(c.f.resting) > 0 || !c.parking.seat.Leave() {
			t.Error("it goes on")
		}
	})
	t.Run("it is closed already", func(t *testing.T) {
		c, _ := parkable(t)
		c.dozing()
		c.sock.Close()
		if c.park() || c.parking.parked {
			t.Error("it waits in the loop")
		}
	})
	t.Run("it is closed, and whoever does that says so", func(t *testing.T) {
		c, _ := parkable(t)
		if !c.dozing() || !c.park() {
			t.Fatal("it does not wait in the loop")
		}
		c.sock.Close()
		c.rouse(time.Now())
		goesOn(t, c)
	})
	t.Run("without the experiment", func(t *testing.T) {
		c, _ := parkable(t)
		c.parking = nil
		if c.dozing(); c.park() {
			t.Error("it waits in the loop")
		}
	})
}

// TestSizes: what a connection is without the experiment fills size classes of the allocator; a byte more costs 128 and 16.
func TestSizes(t *testing.T) {
	// Above 512 bytes the allocator has 8 of its own.
	if n := unsafe.Sizeof(conn{}); n > 1024-8 {
		t.Errorf("a connection has %d bytes, expected at most 1016", n)
	}
	if n := unsafe.Sizeof(socket.Conn{}); n > 192 {
		t.Errorf("its socket has %d bytes, expected at most 192", n)
	}
}

// TestForgetHandover: of a handshake that came to nothing no secret stays.
func TestForgetHandover(t *testing.T) {
	c, client := parkable(t)
	c.listener = &active{Listener: &snapshot.Listener{Protocol: snapshot.HTTPS}}
	c.prepareHandover()
	h := c.handover()
	if h == nil {
		t.Fatal("there is none")
	}
	_, _ = h.Write([]byte("SERVER_TRAFFIC_SECRET_0 00 0a0b\n"))
	if c.forgetHandover(); c.handover() != nil || !reflect.ValueOf(h).Elem().IsZero() {
		t.Error("it is still there")
	}
	_ = c.sock.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, _ = client.Write([]byte("more than a record's header"))
	if n, err := io.ReadAtLeast(c.sock, make([]byte, 100), 6); err != nil || n < 27 {
		t.Errorf("what came is read in steps: %d bytes first, %v", n, err)
	}
	book := record.NewBook(io.Discard)
	defer book.Close()
	c.f.handshakes, c.book = limit.NewHandshakes(limit.HandshakeSettings{}), book.Listener("l")
	_, _ = client.Write([]byte("nothing that TLS begins with"))
	client.Close()
	if c.handshake() {
		t.Fatal("it has succeeded")
	}
	if c.handover() != nil {
		t.Error("a handshake that failed has left it there")
	}
}
