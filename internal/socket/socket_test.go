package socket

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"countersign/internal/testpki"
)

func pair(t *testing.T) (client, server *net.TCPConn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// eventually waits for the kernel to have delivered what the other side did.
func eventually(t *testing.T, want State, get func() State) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Second); get() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("state is %d, expected %d", get(), want)
		}
	}
}

func TestPeek(t *testing.T) {
	client, raw := pair(t)
	s := New(raw, false)
	if s.Peek() != Quiet {
		t.Fatal("a new connection is not quiet")
	}
	if n := testing.AllocsPerRun(100, func() { s.Peek() }); n != 0 {
		t.Errorf("Peek allocates %v objects", n)
	}
	_, _ = client.Write([]byte("x"))
	eventually(t, Pending, s.Peek)
	_ = client.CloseWrite()
	if s.Peek() != Pending {
		t.Error("the end hides the byte before it")
	}
	_, _ = s.Read(make([]byte, 1))
	eventually(t, Ended, s.Peek)

	client, raw = pair(t)
	s = New(raw, false)
	_ = client.SetLinger(0)
	client.Close()
	eventually(t, Broken, s.Peek)
	s.Close()
	if s.Peek() != Broken {
		t.Error("a closed connection is not broken")
	}
}

// TestRecords follows the records of a real TLS connection, cut in every way.
func TestRecords(t *testing.T) {
	pki := testpki.New(t)
	for _, max := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(max), func(t *testing.T) {
			a, b := pair(t)
			under := New(b, true)
			server := tls.Server(under, &tls.Config{Certificates: []tls.Certificate{pki.Server("a.test").TLS()}, MaxVersion: max, SessionTicketsDisabled: true})
			client := tls.Client(a, &tls.Config{RootCAs: pki.Pool(), ServerName: "a.test"})
			go func() {
				_, _ = client.Write([]byte("hello"))
				_ = client.CloseWrite()
			}()
			buf := make([]byte, 5)
			if _, err := server.Read(buf[:1]); err != nil {
				t.Fatal(err)
			}
			if !under.Probe(server.Read) {
				t.Error("Probe does not see what TLS has already decrypted")
			}
			n, err := 0, error(nil)
			for n < 3 && err == nil { // the first byte, and the one that Probe took, are gone
				var m int
				m, err = server.Read(buf[:1])
				n += m
			}
			if err == nil {
				_, err = server.Read(buf)
			}
			if n != 3 || err == nil || !under.MayBeAlert() || !under.Whole() {
				t.Errorf("close_notify: err %v, may be alert %v, whole %v", err, under.MayBeAlert(), under.Whole())
			}
		})
	}
	t.Run("in parts", func(t *testing.T) {
		s := New(nil, true)
		record := append([]byte{23, 3, 3, 0, 30}, make([]byte, 30)...)
		for i, c := range record {
			if whole := s.Whole(); whole != (i == 0) {
				t.Fatalf("byte %d: whole is %v", i, whole)
			}
			s.follow([]byte{c})
		}
		if !s.Whole() || s.MayBeAlert() {
			t.Error("a whole data record is not seen as one")
		}
		s.follow(append(append([]byte{}, record...), 23, 3, 3, 0, 19))
		if s.Whole() || !s.MayBeAlert() {
			t.Error("the header of a short record behind another is not seen")
		}
	})
}

func TestMute(t *testing.T) {
	client, raw := pair(t)
	s := New(raw, false)
	s.MuteOnRead = true
	_, _ = s.Write([]byte("a"))
	_, _ = client.Write([]byte("x"))
	_, _ = s.Read(make([]byte, 1))
	if n, err := s.Write([]byte("b")); n != 1 || err != nil {
		t.Error("a muted write must look as if it had been written")
	}
	s.Reset()
	s.Close()
	buf := make([]byte, 10)
	_ = client.SetReadDeadline(time.Now().Add(time.Second))
	n, _ := client.Read(buf)
	if string(buf[:n]) != "a" && n != 0 {
		t.Errorf("the peer got %q", buf[:n])
	}
}
