package memnet

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Listen("192.0.2.80:443")
		for range backlog {
			if _, err := l.Dial(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial with a full backlog: %v, want the context's error", err)
		}
		waiting := make(chan error)
		go func() {
			_, err := l.Dial(t.Context())
			waiting <- err
		}()
		synctest.Wait()
		_ = l.Close()
		if err := <-waiting; err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial at close: %v", err)
		}
		if _, err := l.Dial(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial after close: %v, want ECONNREFUSED", err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept after close: %v, want net.ErrClosed", err)
		}
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second close: %v, want net.ErrClosed", err)
		}

		var n Network
		if _, err := n.Dial(t.Context(), "tcp", "b:1"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial to nobody: %v, want ECONNREFUSED", err)
		}
		b, err := n.Listen("tcp", "b:1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.Listen("tcp", "b:1"); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("listen twice: %v, want EADDRINUSE", err)
		}
		c, err := n.Dial(t.Context(), "tcp", "b:1")
		if err != nil {
			t.Fatal(err)
		}
		_ = b.Close()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read of a connection never accepted: %v, want ECONNRESET", err)
		}
		if _, err := n.Listen("tcp", "b:1"); err != nil {
			t.Errorf("listen after close: %v", err)
		}
	})
}

func TestCloseAndReset(t *testing.T) {
	read := func(c net.Conn) (string, error) { b, err := io.ReadAll(c); return string(b), err }
	for name, tc := range map[string]struct {
		do      func(a, b *Conn)
		text    string
		readErr error
	}{
		"close":        {func(a, _ *Conn) { _ = a.Close() }, "hello", nil},
		"close write":  {func(a, _ *Conn) { _ = a.CloseWrite() }, "hello", nil},
		"close unread": {func(a, b *Conn) { _, _ = b.Write([]byte("x")); _ = a.Close() }, "hello", syscall.ECONNRESET},
		"linger 0":     {func(a, _ *Conn) { _ = a.SetLinger(0); _ = a.Close() }, "hello", syscall.ECONNRESET},
		"reset":        {func(a, _ *Conn) { a.Reset() }, "hello", syscall.ECONNRESET},
		"cut":          {func(a, _ *Conn) { a.CutAfter(3); _, _ = a.Write([]byte("world")) }, "hellowor", syscall.ECONNRESET},
		"cut now":      {func(a, _ *Conn) { a.CutAfter(0) }, "hello", syscall.ECONNRESET},
		"own close":    {func(_, b *Conn) { _ = b.Close() }, "", net.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := Pipe("a", "b")
			if _, err := a.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			tc.do(a, b)
			if text, err := read(b); text != tc.text || !errors.Is(err, tc.readErr) {
				t.Errorf("read %q, %v; want %q, %v", text, err, tc.text, tc.readErr)
			}
		})
	}
	t.Run("write", func(t *testing.T) {
		a, b := Pipe("a", "b")
		_ = b.CloseWrite()
		if _, err := a.Write([]byte("still")); err != nil {
			t.Errorf("write after the peer's half-close: %v", err)
		}
		if _, err := b.Write([]byte("no")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after own half-close: %v, want net.ErrClosed", err)
		}
		_, _ = b.Read(make([]byte, 9))
		_ = b.Close()
		if _, err := a.Write([]byte("gone")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write after the peer's close: %v, want EPIPE", err)
		}
		if err := a.SetDeadline(time.Now()); err != nil {
			t.Error(err)
		}
		_ = a.Close()
		if err := a.SetDeadline(time.Now()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("deadline after close: %v, want net.ErrClosed", err)
		}
		if _, err := a.Write(nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("empty write after close: %v, want net.ErrClosed", err)
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := Pipe("a", "b")
		start := time.Now()
		_ = a.SetReadDeadline(start.Add(time.Second))
		_, err := a.Read(make([]byte, 1))
		var timeout net.Error
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() || time.Since(start) != time.Second {
			t.Errorf("read: %v after %v, want a timeout after 1s", err, time.Since(start))
		}
		n, err := 0, error(nil)
		_ = a.SetWriteDeadline(time.Now().Add(time.Minute))
		n, err = a.Write(make([]byte, Buffer+1))
		if n != Buffer || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute+time.Second {
			t.Errorf("write of one too many: %d, %v after %v, want %d and a timeout after 1m1s", n, err, time.Since(start), Buffer)
		}

		// A deadline set while Read waits, moved later, then to the past, which is how crypto/tls is interrupted.
		_ = b.SetReadDeadline(time.Time{})
		_, _ = io.ReadFull(b, make([]byte, Buffer))
		got := make(chan error)
		go func() {
			_, err := b.Read(make([]byte, 1))
			got <- err
		}()
		_ = b.SetReadDeadline(time.Now().Add(time.Second))
		_ = b.SetReadDeadline(time.Now().Add(time.Hour))
		time.Sleep(time.Minute)
		synctest.Wait()
		select {
		case err := <-got:
			t.Errorf("read ended early: %v", err)
		default:
			_ = b.SetReadDeadline(time.Unix(1, 0))
			if err := <-got; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("read: %v, want a timeout", err)
			}
		}
	})
}

func TestAddresses(t *testing.T) {
	l := Listen("192.0.2.80:443")
	for _, want := range []string{"192.0.2.1:49152", "192.0.2.1:49153"} {
		c, err := l.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s, _ := l.Accept()
		if _, ok := s.RemoteAddr().(*net.TCPAddr); !ok || s.RemoteAddr().String() != want || c.RemoteAddr() != s.LocalAddr() {
			t.Errorf("server sees %T %v, want *net.TCPAddr %v", s.RemoteAddr(), s.RemoteAddr(), want)
		}
	}
	if _, err := l.DialFrom(t.Context(), "[2001:db8::7]:1"); err != nil {
		t.Fatal(err)
	}
	if s, _ := l.Accept(); s.RemoteAddr().String() != "[2001:db8::7]:1" {
		t.Errorf("server sees %v", s.RemoteAddr())
	}
}

func TestMutualTLSInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cert, pool := selfSigned(t)
		l := Listen("192.0.2.80:443")
		defer l.Close()
		server := func(c net.Conn) *tls.Conn {
			return tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert})
		}
		client := func(c net.Conn, own ...tls.Certificate) *tls.Conn {
			return tls.Client(c, &tls.Config{ServerName: "a.test", RootCAs: pool, Certificates: own})
		}
		connect := func() (*Conn, net.Conn) {
			c, err := l.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			return c, s
		}

		// No certificate: the alert arrives although the server closes at once.
		c, s := connect()
		go func(s net.Conn) { _ = server(s).Handshake(); _ = s.Close() }(s) // its own s: the next connection gets the variable
		tc := client(c)
		if _, err := io.ReadAll(tc); err == nil || !strings.Contains(err.Error(), "certificate required") {
			t.Errorf("without certificate: %v, want certificate required", err)
		}
		_ = tc.Close()

		// A client that says nothing meets the deadline, in fake time.
		c, s = connect()
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := server(s).HandshakeContext(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 10*time.Second {
			t.Errorf("silent client: %v after %v, want the deadline after 10s", err, time.Since(start))
		}
		cancel()
		_ = c.Close()

		// Cut in the middle of the handshake.
		c, s = connect()
		c.CutAfter(100)
		go func(c net.Conn) { _ = client(c, cert).Handshake() }(c)
		if err := server(s).Handshake(); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("cut client: %v, want ECONNRESET", err)
		}
		_ = s.Close()

		// Both proven: more than the buffer holds goes through and comes back.
		c, s = connect()
		go func() {
			ts := server(s)
			_, _ = io.Copy(ts, ts)
			_ = ts.Close()
		}()
		tc = client(c, cert)
		sent := bytes.Repeat([]byte("countersign "), Buffer/4)
		go func() {
			_, _ = tc.Write(sent)
			_ = tc.CloseWrite()
		}()
		if got, err := io.ReadAll(tc); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("echo: %d bytes of %d, %v", len(got), len(sent), err)
		}
		_ = tc.Close()
	})
}

func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a.test"}, DNSNames: []string{"a.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
}
