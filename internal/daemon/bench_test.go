package daemon_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// quick starts a backend that answers every request with the same bytes and allocates nothing for it.
func quick(t testing.TB, response string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	answer := []byte(response)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 32<<10)
				for n := 0; ; {
					m, err := c.Read(buf[n:])
					if err != nil {
						return
					}
					if n += m; bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
						n = 0
						if _, err := c.Write(answer); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

const smallResponse = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 128\r\n\r\n" +
	"0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456\n"

// caller sends the same request again and again over one connection, without allocating.
type caller struct {
	conn    net.Conn
	request []byte
	want    int
	buf     []byte
}

func (c *caller) call(t testing.TB) {
	if _, err := c.conn.Write(c.request); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < c.want; {
		m, err := c.conn.Read(c.buf[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
}

func newCaller(t testing.TB, conn net.Conn) *caller {
	c := &caller{conn: conn, buf: make([]byte, 32<<10),
		request: []byte("GET /status?x=1 HTTP/1.1\r\nHost: a.test\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\nAccept-Encoding: gzip\r\nCookie: a=b\r\n\r\n")}
	if _, err := conn.Write(c.request); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // the first answer, whole, says how long each is
	n, err := conn.Read(c.buf)
	if err != nil || !bytes.HasPrefix(c.buf, []byte("HTTP/1.1 200")) {
		t.Fatalf("first answer: %q %v", c.buf[:n], err)
	}
	c.want = n
	return c
}

func keepAlive(t testing.TB) *caller {
	w := newWorld(t)
	w.start(basic, quick(t, smallResponse))
	conn, err := w.dial("public", w.client("a.test", w.ca.Client("alice")))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Time{})
	return newCaller(t, conn)
}

// mallocs counts the allocations of the whole process per call of f.
func mallocs(n int, f func()) float64 {
	f()
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		f()
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / float64(n)
}

// bareTLS is what crypto/tls alone allocates for one message each way, in the same process: one small object for each
// read that has to go to the network (conn.go, atLeastReader).
func bareTLS(t testing.TB) float64 {
	w := newWorld(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{w.server.TLS()}, SessionTicketsDisabled: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 4096)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), w.client("a.test", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	msg := make([]byte, 200)
	return mallocs(2000, func() {
		if _, err := c.Write(msg); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, msg); err != nil {
			t.Fatal(err)
		}
	})
}

// TestRequestAllocations holds the promise of DESIGN section 5: a keep-alive request through TLS, with record, metrics
// and identity on, allocates nothing beyond what crypto/tls allocates for the same two messages.
func TestRequestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	bare := bareTLS(t)
	c := keepAlive(t)
	got := mallocs(5000, func() { c.call(t) })
	t.Logf("allocations per request: %.3f, of them crypto/tls: %.3f", got, bare)
	if got > bare+0.05 {
		t.Errorf("a keep-alive request allocates %.3f objects; expected at most the %.3f of crypto/tls itself", got, bare)
	}
}

func BenchmarkKeepAlive(b *testing.B) {
	c := keepAlive(b)
	b.ReportAllocs()
	for b.Loop() {
		c.call(b)
	}
}

func BenchmarkHandshake(b *testing.B) {
	w := newWorld(b)
	w.start(basic, quick(b, smallResponse))
	conf := w.client("a.test", w.ca.Client("alice"))
	addr := w.addr("public")
	b.ReportAllocs()
	for b.Loop() {
		c, err := tls.Dial("tcp", addr, conf)
		if err != nil {
			b.Fatal(err)
		}
		newQuick(b, c)
		c.Close()
	}
}

// newQuick makes one request, so that the handshake is known to be accepted.
func newQuick(b *testing.B, c net.Conn) {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"); err != nil {
		b.Fatal(err)
	}
	var buf [1024]byte
	if _, err := c.Read(buf[:]); err != nil {
		b.Fatal(err)
	}
}
