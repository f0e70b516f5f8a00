package socket

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"countersign/internal/testpki"
)

// secured makes a TLS connection over loopback.
func secured(t *testing.T) (client *tls.Conn, server *Records) {
	c, raw := pair(t)
	wire := New(raw, true)
	ca := testpki.New(t)
	tc := tls.Server(wire, &tls.Config{Certificates: []tls.Certificate{ca.Server("a.test").TLS()}})
	client = tls.Client(c, &tls.Config{ServerName: "a.test", RootCAs: ca.Pool()})
	done := make(chan error, 1)
	go func() { done <- client.Handshake() }()
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return client, NewRecords(tc, wire)
}

func TestRecordBudget(t *testing.T) {
	t.Run("F06/beyond the budget", func(t *testing.T) {
		client, server := secured(t)
		go func() { _, _ = client.Write([]byte("x")) }()
		server.Wire.Records += 2 + freeRecords // as if so many had come with nothing in them
		if n, err := server.Read(make([]byte, 1)); n != 1 || !errors.Is(err, ErrRecords) {
			t.Errorf("%d %v, expected what was read and the end", n, err)
		}
		if n, err := server.Read(make([]byte, 1)); n != 0 || !errors.Is(err, ErrRecords) || !server.Over() {
			t.Errorf("%d %v, expected that it stays so", n, err)
		}
	})
	t.Run("one record for each byte", func(t *testing.T) {
		client, server := secured(t)
		const n = 3 * freeRecords
		go func() {
			for range n {
				_, _ = client.Write([]byte("x"))
			}
			client.Close()
		}()
		got, err := io.Copy(io.Discard, struct{ io.Reader }{server})
		if got != n || err != nil || server.Over() {
			t.Errorf("%d of %d, %v", got, n, err)
		}
	})
}

// TestBurst: what is written at once arrives, whole and in order, whatever waits in the system meanwhile.
func TestBurst(t *testing.T) {
	t.Run("sizes", func(t *testing.T) {
		client, server := secured(t)
		for _, n := range []int{0, 1, maxPlaintext - 1, maxPlaintext, maxPlaintext + 1, 4 * maxPlaintext, 300_000} {
			want := bytes.Repeat([]byte{byte(n), 'x', byte(n >> 8)}, n/3+1)[:n]
			done := make(chan error, 1)
			go func() {
				m, err := server.Write(want)
				if m != n {
					err = errors.Join(err, fmt.Errorf("wrote %d of %d", m, n))
				}
				done <- err
			}()
			got := make([]byte, n)
			if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes: not as they were sent (%v)", n, err)
			}
			if err := <-done; err != nil || server.Wire.burst.Load() {
				t.Errorf("%d bytes: %v; still holding back: %v", n, err, server.Wire.burst.Load())
			}
		}
	})
	t.Run("both ways, to one who reads slowly", func(t *testing.T) {
		client, server := secured(t)
		_ = client.NetConn().(*net.TCPConn).SetReadBuffer(32 << 10)
		const pieces = 40
		piece := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
		errs := make(chan error, 3)
		go func() {
			for range pieces {
				if _, err := server.Write(piece); err != nil {
					errs <- err
					return
				}
			}
			errs <- server.CloseWrite()
		}()
		go func() {
			_, err := io.Copy(io.Discard, io.LimitReader(server, pieces*1000))
			errs <- err
		}()
		go func() {
			var err error
			for range pieces {
				if _, err = client.Write(piece[:1000]); err != nil {
					break
				}
			}
			errs <- err
		}()
		h, want := sha256.New(), sha256.New()
		n, err := io.CopyBuffer(h, struct{ io.Reader }{client}, make([]byte, 700))
		want.Write(bytes.Repeat(piece, pieces))
		if err != nil || n != int64(pieces*len(piece)) || !bytes.Equal(h.Sum(nil), want.Sum(nil)) {
			t.Errorf("%d bytes, %v; not what was sent", n, err)
		}
		for range 3 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("a client that is gone", func(t *testing.T) {
		client, server := secured(t)
		_ = client.NetConn().(*net.TCPConn).SetLinger(0)
		client.NetConn().Close()
		var err error
		for err == nil {
			_, err = server.Write(make([]byte, 3*maxPlaintext))
		}
		if server.Wire.burst.Load() || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("still holding back: %v; %v, expected that it was reset", server.Wire.burst.Load(), err)
		}
	})
}

// TestHasArrived: bytes that have arrived are known until they are read, whether the system is asked anew or not.
func TestHasArrived(t *testing.T) {
	s, c := open(t)
	if s.HasArrived(1) {
		t.Error("before anything was sent")
	}
	await := func(n int) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !s.HasArrived(n); {
			if time.Now().After(deadline) {
				t.Fatalf("%d bytes did not arrive", n)
			}
			time.Sleep(time.Millisecond)
		}
	}
	_, _ = c.Write(make([]byte, 1000))
	if await(1000); s.HasArrived(1001) {
		t.Error("1001 bytes, expected 1000")
	}
	for left := 1000; left > 0; left -= 200 {
		if !s.HasArrived(left) || s.HasArrived(left+1) {
			t.Errorf("%v, %v for %d and one more", s.HasArrived(left), s.HasArrived(left+1), left)
		}
		if _, err := io.ReadFull(s, make([]byte, 200)); err != nil {
			t.Fatal(err)
		}
		if s.HasArrived(left - 199) {
			t.Errorf("more than %d when 200 of %d were read", left-200, left)
		}
	}
	_, _ = c.Write(make([]byte, 300))
	await(300)
	_, _ = c.Write(make([]byte, 700)) // more than what was known
	await(1000)
	asked, ask := 0, s.count
	s.count = func(fd uintptr) { asked++; ask(fd) }
	for left := 1000; left >= 200; left -= 200 {
		if !s.HasArrived(left) || asked > 0 {
			t.Errorf("%d: %v, asked %d times; expected that what was said before is enough", left, s.HasArrived(left), asked)
		}
		_, _ = io.ReadFull(s, make([]byte, 200))
	}
	if s.HasArrived(1) || asked != 1 {
		t.Errorf("asked %d times when all has been read, expected once", asked)
	}
	if New(struct{ net.Conn }{s.Conn}, false).HasArrived(1) {
		t.Error("without a descriptor")
	}
}

// TestBefore: whoever holds something that others wait for is told before each call that can block.
func TestBefore(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	s := New(b, false)
	calls := 0
	s.Before = func() { calls++ }
	go func() { _, _ = a.Write([]byte("x")) }()
	if _, err := s.Read(make([]byte, 1)); err != nil || calls != 1 {
		t.Errorf("%d calls at a read, %v", calls, err)
	}
	go func() { _, _ = a.Read(make([]byte, 1)) }()
	if _, err := s.Write([]byte("x")); err != nil || calls != 2 {
		t.Errorf("%d calls at a write, %v", calls, err)
	}
	s.Mute = true
	if _, _ = s.Write([]byte("x")); calls != 2 {
		t.Error("called for what blocks nowhere")
	}
}
