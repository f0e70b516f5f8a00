package socket

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
	for deadline := time.Now().Add(10 * time.Second); get() != want; time.Sleep(time.Millisecond) {
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

	client, raw = pair(t)
	s = New(raw, true)
	s.InSteps(true)
	_, _ = client.Write([]byte("\x17\x03\x03\x00\x01x"))
	_, _ = s.Read(make([]byte, 5))
	if s.ahead.Load() == nil || s.Peek() != Pending {
		t.Fatal("nothing was read ahead, or it is not seen")
	}
	_ = client.SetLinger(0)
	client.Close()
	eventually(t, Broken, s.Peek) // what was read ahead does not hide it

	client, raw = pair(t)
	s = New(raw, false)
	_, _ = client.Write([]byte("x"))
	eventually(t, Pending, s.Peek)
	if n := testing.AllocsPerRun(100, func() { s.Peek() }); n != 0 {
		t.Errorf("Peek of a connection with bytes allocates %v objects", n)
	}
	_ = client.SetLinger(0)
	client.Close()
	eventually(t, Broken, s.Peek) // the byte does not hide it
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

// say writes text that may wait for more.
func say(t *testing.T, s *Conn, text string) {
	t.Helper()
	s.More = true
	defer func() { s.More = false }()
	if n, err := s.Write([]byte(text)); n != len(text) || err != nil {
		t.Fatal(n, err)
	}
}

// open is a connection and its peer.
func open(t *testing.T) (*Conn, *net.TCPConn) {
	peer, raw := pair(t)
	_ = peer.SetDeadline(time.Now().Add(10 * time.Second))
	return New(raw, false), peer
}

func TestMore(t *testing.T) {
	expect := func(t *testing.T, peer net.Conn, text string) {
		t.Helper()
		got := make([]byte, len(text)+1)
		if n, err := peer.Read(got); string(got[:n]) != text {
			t.Fatalf("the peer reads %q, %v; expected %q", got[:n], err, text)
		}
	}
	t.Run("goes with what is written next", func(t *testing.T) {
		s, peer := open(t)
		say(t, s, "ticket ")
		if _, err := s.Write([]byte("answer")); err != nil {
			t.Fatal(err)
		}
		expect(t, peer, "ticket answer")
		if s.Out != int64(len("ticket answer")) {
			t.Error(s.Out, "bytes counted")
		}
	})
	t.Run("waits for no peer that waits for it", func(t *testing.T) {
		s, peer := open(t)
		start := time.Now()
		for range 50 { // the system would let go of each after 0.2 s
			say(t, s, "ticket")
			done := make(chan error, 1)
			go func() {
				_, err := s.Read(make([]byte, 1))
				done <- err
			}()
			expect(t, peer, "ticket")
			_, _ = peer.Write([]byte("x"))
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d > 8*time.Second {
			t.Error("50 times took", d)
		}
	})
	t.Run("what has arrived is read", func(t *testing.T) {
		s, peer := open(t)
		_, _ = peer.Write([]byte("request"))
		for s.Peek() != Pending {
			time.Sleep(time.Millisecond)
		}
		say(t, s, "ticket ")
		b := make([]byte, 99)
		if n, err := s.Read(b); string(b[:n]) != "request" || err != nil || s.In != int64(n) {
			t.Fatalf("%q, %v, %d", b[:n], err, s.In)
		}
		_, _ = s.Write([]byte("answer"))
		expect(t, peer, "ticket answer")
	})
	t.Run("goes with the end", func(t *testing.T) {
		s, peer := open(t)
		say(t, s, "goodbye")
		s.Close()
		if got, err := io.ReadAll(peer); string(got) != "goodbye" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
	})
	t.Run("ends of the peer are met", func(t *testing.T) {
		s, peer := open(t)
		peer.Close()
		say(t, s, "ticket")
		if n, err := s.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Fatal(n, err)
		}
		s, peer = open(t)
		_ = peer.SetLinger(0)
		peer.Close()
		for s.Peek() == Quiet {
			time.Sleep(time.Millisecond)
		}
		s.held = true
		if n, err := s.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Fatal(n, err)
		}
	})
	t.Run("deadlines", func(t *testing.T) {
		s, _ := open(t)
		say(t, s, "ticket")
		_ = s.SetReadDeadline(time.Unix(1, 0))
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	})
	t.Run("of a Unix socket", func(t *testing.T) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		var ends [2]net.Conn
		for i, fd := range fds {
			f := os.NewFile(uintptr(fd), "")
			if ends[i], err = net.FileConn(f); err != nil {
				t.Fatal(err)
			}
			f.Close()
			defer ends[i].Close()
		}
		s := New(ends[0], false)
		say(t, s, "ticket")
		go func() { time.Sleep(10 * time.Millisecond); _, _ = ends[1].Write([]byte("x")) }()
		if n, err := s.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		expect(t, ends[1], "ticket")
	})
}

// TestAsk: a question is written, and whoever asked goes on when there is an answer, an end or no more time.
func TestAsk(t *testing.T) {
	question := []byte("what?")
	t.Run("answers, each at once", func(t *testing.T) {
		client, raw := pair(t)
		s := New(raw, false)
		go func() {
			buf := make([]byte, 64)
			for {
				n, err := client.Read(buf)
				if err != nil {
					return
				}
				_, _ = client.Write(buf[:n])
			}
		}()
		_ = s.SetDeadline(time.Now().Add(time.Minute)) // should an answer go unheard
		buf := make([]byte, 64)
		const times = 5000
		for i := range times {
			if n, err := s.Ask(question); n != len(question) || err != nil {
				t.Fatalf("question %d: %d, %v", i, n, err)
			}
			if s.Peek() != Pending {
				t.Fatalf("question %d: nothing to read", i)
			}
			if n, err := s.Read(buf); string(buf[:n]) != string(question) || err != nil {
				t.Fatalf("answer %d: %q, %v", i, buf[:n], err)
			}
		}
		if s.Out != int64(times*len(question)) || s.In != s.Out {
			t.Errorf("%d bytes out and %d in were counted", s.Out, s.In)
		}
		if n := testing.AllocsPerRun(100, func() { _, _ = s.Ask(question); _, _ = s.Read(buf) }); n != 0 {
			t.Errorf("it allocates %v objects", n)
		}
	})
	t.Run("it does not go out whole", func(t *testing.T) {
		_, raw := pair(t)
		s := New(raw, false)
		p := make([]byte, 64<<20)
		if n, err := s.Ask(p); n <= 0 || n >= len(p) || err != nil || s.Out != int64(n) {
			t.Errorf("%d of %d, %v, counted %d; expected a part", n, len(p), err, s.Out)
		}
		if n, err := s.Ask(question); n != 0 || err != nil {
			t.Errorf("%d, %v when the system takes no more", n, err)
		}
	})
	t.Run("the end in place of an answer", func(t *testing.T) {
		client, raw := pair(t)
		s := New(raw, false)
		go func() {
			_, _ = io.ReadFull(client, make([]byte, len(question)))
			_ = client.CloseWrite()
		}()
		if n, err := s.Ask(question); n != len(question) || err != nil || s.Peek() != Ended {
			t.Errorf("%d, %v", n, err)
		}
	})
	t.Run("a peer that has gone", func(t *testing.T) {
		client, raw := pair(t)
		s := New(raw, false)
		_ = client.SetLinger(0)
		client.Close()
		eventually(t, Broken, s.Peek)
		if n, err := s.Ask(question); n > 0 || !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%d, %v", n, err)
		}
	})
	t.Run("no time is left", func(t *testing.T) {
		_, raw := pair(t)
		s := New(raw, false)
		_ = s.SetDeadline(time.Unix(1, 0))
		if n, err := s.Ask(question); n != 0 || err != nil {
			t.Errorf("%d, %v; expected that the write tells", n, err)
		}
		if _, err := s.Write(question); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	})
	t.Run("time runs out", func(t *testing.T) {
		_, raw := pair(t)
		s := New(raw, false)
		time.AfterFunc(20*time.Millisecond, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
		if n, err := s.Ask(question); n != len(question) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	})
	t.Run("closed meanwhile", func(t *testing.T) {
		_, raw := pair(t)
		s := New(raw, false)
		time.AfterFunc(20*time.Millisecond, func() { s.Close() })
		if n, err := s.Ask(question); n != len(question) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		if n, err := s.Ask(question); n != 0 || err != nil {
			t.Errorf("closed: %d, %v", n, err)
		}
		if _, err := s.Write(question); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	t.Run("without a descriptor", func(t *testing.T) {
		client, raw := pair(t)
		if n, err := New(struct{ net.Conn }{raw}, false).Ask(question); n != len(question) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		if _, err := io.ReadFull(client, make([]byte, len(question))); err != nil {
			t.Error(err)
		}
	})
}

// TestInSteps: whoever reads record by record takes nothing of the next one, and nothing is lost behind it.
func TestInSteps(t *testing.T) {
	record := func(n int) []byte {
		return append([]byte{applicationData, 3, 3, byte(n >> 8), byte(n)}, bytes.Repeat([]byte{byte(n)}, n)...)
	}
	var sent []byte
	for _, n := range []int{1, 100, 0, 3000, 7} {
		sent = append(sent, record(n)...)
	}
	client, raw := pair(t)
	_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
	s := New(raw, true)
	s.InSteps(true)
	_, _ = client.Write(sent)
	var got []byte
	buf := make([]byte, 8<<10)
	for s.Records < 3 || !s.Whole() {
		n, err := s.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
		if n > 5 && n != 100 {
			t.Errorf("%d bytes at once", n)
		}
	}
	if len(got) != 5+1+5+100+5 || s.In != int64(len(got)) {
		t.Fatalf("%d bytes, %d counted", len(got), s.In)
	}
	if s.ahead.Load() == nil {
		t.Fatal("nothing came with it, so nothing is tested")
	}
	_ = client.CloseWrite()
	time.Sleep(20 * time.Millisecond)
	if s.Peek() != Pending {
		t.Error("the end hides what was read ahead")
	}
	calls := 0
	s.Before = func() { calls++ }
	s.InSteps(false)
	for len(got) < len(sent) {
		if s.ahead.Load() != nil && calls > 0 {
			t.Error("told before a read that cannot wait")
		}
		n, err := s.Read(buf[:1000])
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
	}
	if !bytes.Equal(got, sent) || s.Records != 5 || s.In != int64(len(sent)) || s.ahead.Load() != nil {
		t.Errorf("%d bytes of %d, %d records, %d counted", len(got), len(sent), s.Records, s.In)
	}
	if n, err := s.Read(buf); n > 0 || err != io.EOF || calls == 0 {
		t.Errorf("%d, %v, told %d times", n, err, calls)
	}
}

// TestReceive: what comes is in a buffer that whoever waits does not hold.
func TestReceive(t *testing.T) {
	const size = 1000
	out := 0
	pool := &sync.Pool{New: func() any { out++; b := make([]byte, size); return &b }}
	next := func(t *testing.T, s *Conn, want string) {
		t.Helper()
		buf, n, err := s.Receive(pool, 0)
		if err != nil || string((*buf)[:n]) != want {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	t.Run("waits", func(t *testing.T) {
		client, raw := pair(t)
		_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
		s := New(raw, true)
		got := make(chan string, 1)
		go func() {
			buf, n, err := s.Receive(pool, 0)
			if err != nil {
				got <- err.Error()
				return
			}
			got <- string((*buf)[:n])
		}()
		time.Sleep(10 * time.Millisecond)
		_, _ = client.Write([]byte("\x17\x03\x03\x00\x01x"))
		if text := <-got; text != "\x17\x03\x03\x00\x01x" || s.In != 6 || s.Records != 1 || !s.Whole() {
			t.Errorf("%q, %d bytes, %d records", text, s.In, s.Records)
		}
	})
	t.Run("ends", func(t *testing.T) {
		client, raw := pair(t)
		s := New(raw, false)
		_ = client.CloseWrite()
		if buf, n, err := s.Receive(pool, 0); buf != nil || n > 0 || err != io.EOF {
			t.Errorf("%d, %v", n, err)
		}
		client, raw = pair(t)
		s = New(raw, false)
		_ = client.SetLinger(0)
		client.Close()
		time.Sleep(20 * time.Millisecond) // Peek would take the error
		if buf, n, err := s.Receive(pool, 0); buf != nil || n > 0 || !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%d, %v", n, err)
		}
		_, raw = pair(t)
		s = New(raw, false)
		_ = s.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if buf, n, err := s.Receive(pool, 0); buf != nil || n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d, %v", n, err)
		}
		s.Close()
		if buf, n, err := s.Receive(pool, 0); buf != nil || n > 0 || !errors.Is(err, net.ErrClosed) {
			t.Errorf("%d, %v", n, err)
		}
	})
	t.Run("what was read ahead comes first", func(t *testing.T) {
		client, raw := pair(t)
		s := New(raw, true)
		s.InSteps(true)
		_, _ = client.Write([]byte("\x17\x03\x03\x00\x01x\x17\x03\x03\x00\x01y"))
		if _, err := io.ReadFull(s, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		s.InSteps(false)
		next(t, s, "\x17\x03\x03\x00\x01y")
		_, _ = client.Write([]byte("\x17\x03\x03\x00\x01z"))
		next(t, s, "\x17\x03\x03\x00\x01z")
	})
	t.Run("what is held back goes when nothing is there", func(t *testing.T) {
		s, peer := open(t)
		start := time.Now()
		for range 50 { // the system would let go of each after 0.2 s
			say(t, s, "ticket")
			go func() {
				_, _ = io.ReadFull(peer, make([]byte, 6))
				_, _ = peer.Write([]byte("x"))
			}()
			next(t, s, "x")
		}
		if d := time.Since(start); d > 8*time.Second {
			t.Error("50 times took", d)
		}
	})
	one, two := "\x17\x03\x03\x00\x01x", "\x15\x03\x03\x00\x01y"
	for name, come := range map[string]func(s *Conn, say func(string)){
		"from the system": func(_ *Conn, say func(string)) { say(two) },
		"with something held back": func(s *Conn, say func(string)) {
			s.held = true
			say(two)
		},
		"read ahead": func(s *Conn, say func(string)) {
			s.InSteps(true)
			say(one + two)
			_, _ = io.ReadFull(s, make([]byte, 6))
			s.InSteps(false)
			s.In, s.Records = 0, 0
		},
	} {
		t.Run("behind what is there/"+name, func(t *testing.T) {
			client, raw := pair(t)
			s := New(raw, true)
			come(s, func(text string) { _, _ = client.Write([]byte(text)) })
			buf, n, err := s.Receive(pool, 7)
			if err != nil || string((*buf)[7:7+n]) != two {
				t.Fatal(n, err)
			}
			if s.In != 6 || s.Records != 1 || !s.Whole() || !s.MayBeAlert() {
				t.Errorf("%d bytes, %d records, whole: %v, an alert: %v", s.In, s.Records, s.Whole(), s.MayBeAlert())
			}
		})
	}
	t.Run("without a descriptor", func(t *testing.T) {
		client, raw := pair(t)
		_, _ = client.Write([]byte("x"))
		s := New(struct{ net.Conn }{raw}, false)
		next(t, s, "x")
		_ = client.CloseWrite()
		if buf, n, err := s.Receive(pool, 0); buf != nil || n > 0 || err != io.EOF {
			t.Errorf("%d, %v", n, err)
		}
	})
}
