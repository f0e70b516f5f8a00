package forward

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"countersign/internal/reason"
	"countersign/internal/socket"
)

// tunnel is one between two TCP connections, seen from outside.
type tunnel struct {
	t              testing.TB
	client, target *net.TCPConn // the ends that are not ours
	a, b           *socket.Conn // ours
	watch          *Watch
	clock          *Clock
	done           chan struct{}
	why            reason.Reason
	in, out        int64
}

// ways to move bytes.
var ways = []struct {
	name string
	from func(s *Side)
}{
	{"spliced", func(*Side) {}},
	{"copied", func(s *Side) { s.From = struct{ io.Reader }{s.Conn} }},
	{"without pipes", nil},
}

func tcp(t testing.TB) (far *net.TCPConn, near *socket.Conn) {
	t.Helper()
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
	return c.(*net.TCPConn), socket.New(s, false)
}

// join begins a tunnel with the given limits; ahead came with the client.
func join(t testing.TB, way func(*Side), ahead string, idle, lifetime time.Duration) *tunnel {
	t.Helper()
	n := &tunnel{t: t, clock: new(Clock), done: make(chan struct{})}
	n.client, n.a = tcp(t)
	n.target, n.b = tcp(t)
	n.clock.Set(time.Now())
	n.watch = &Watch{Clock: n.clock, Client: n.a}
	client, target := Side{Ahead: []byte(ahead), Conn: n.a, Wire: n.a}, Side{From: n.b, Conn: n.b, Wire: n.b}
	if way != nil {
		way(&client)
		way(&target)
	} else {
		held := pipesOpen.Load()
		pipesOpen.Store(maxPipes)
		drained := []pipe{}
		for len(sparePipes) > 0 {
			drained = append(drained, <-sparePipes)
		}
		t.Cleanup(func() {
			pipesOpen.Store(held)
			for _, p := range drained {
				p.put()
			}
		})
	}
	go func() {
		defer close(n.done)
		n.why, n.in, n.out = Join(n.watch, client, target, idle, lifetime)
		n.a.Close()
		n.b.Close()
	}()
	return n
}

func (n *tunnel) end(why reason.Reason, in, out int64) {
	n.t.Helper()
	select {
	case <-n.done:
	case <-time.After(10 * time.Second):
		n.t.Fatal("the tunnel does not end")
	}
	if n.why != why || n.in != in || n.out != out {
		n.t.Errorf("%s with %d bytes in and %d out, expected %s with %d and %d", n.why, n.in, n.out, why, in, out)
	}
}

// idlePipes fails if any pipe is neither spare nor closed.
func idlePipes(t testing.TB) {
	t.Helper()
	for range 2000 {
		if int(pipesOpen.Load()) == len(sparePipes) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("%d pipes are open, %d of them spare", pipesOpen.Load(), len(sparePipes))
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func readAll(t testing.TB, c net.Conn) []byte {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("reading: %v", err)
	}
	return b
}

func TestTunnel(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			t.Run("both ways and half closed", func(t *testing.T) {
				n := join(t, way.from, "hello", time.Hour, 0)
				up, down := random(3<<20), random(5<<20)
				go func() {
					_, _ = n.client.Write(up)
					_ = n.client.CloseWrite()
				}()
				if got := readAll(t, n.target); !bytes.Equal(got, append([]byte("hello"), up...)) {
					t.Errorf("the target got %d bytes, expected %d", len(got), 5+len(up))
				}
				// The client has said all, and can still listen.
				go func() {
					_, _ = n.target.Write(down)
					_ = n.target.CloseWrite()
				}()
				if got := readAll(t, n.client); !bytes.Equal(got, down) {
					t.Errorf("the client got %d bytes, expected %d", len(got), len(down))
				}
				n.end(reason.TunnelClosed, int64(5+len(up)), int64(len(down)))
				if n.a.In != int64(len(up)) || n.b.Out != int64(5+len(up)) || n.b.In != int64(len(down)) || n.a.Out != int64(len(down)) {
					t.Errorf("counted %d in and %d out at the client, %d and %d at the target", n.a.In, n.a.Out, n.b.In, n.b.Out)
				}
			})
			t.Run("slow receiver", func(t *testing.T) {
				n := join(t, way.from, "", time.Hour, 0)
				up := random(24 << 20)
				go func() {
					_, _ = n.client.Write(up)
					_ = n.client.CloseWrite()
				}()
				got := make([]byte, 0, len(up))
				for buf := make([]byte, 1<<20); ; {
					if len(got)%(8<<20) < 1<<20 {
						time.Sleep(10 * time.Millisecond) // until every buffer on the way is full
					}
					m, err := n.target.Read(buf[:1+len(got)%len(buf)])
					if got = append(got, buf[:m]...); err != nil {
						break
					}
				}
				if !bytes.Equal(got, up) {
					t.Errorf("the target got %d bytes, expected %d", len(got), len(up))
				}
				n.target.Close()
				<-n.done
			})
			t.Run("little by little", func(t *testing.T) {
				n := join(t, way.from, "", time.Hour, 0)
				for i := range 50 {
					msg := random(1 + i*i)
					_, _ = n.client.Write(msg)
					got := make([]byte, len(msg))
					if _, err := io.ReadFull(n.target, got); err != nil || !bytes.Equal(got, msg) {
						t.Fatalf("message %d: %v", i, err)
					}
					_, _ = n.target.Write(got)
					if _, err := io.ReadFull(n.client, got); err != nil || !bytes.Equal(got, msg) {
						t.Fatalf("answer %d: %v", i, err)
					}
				}
				if way.from != nil {
					idlePipes(t)
				}
				n.client.Close()
				n.target.Close()
				<-n.done
			})
			t.Run("idle", func(t *testing.T) {
				n := join(t, way.from, "", time.Minute, 0)
				time.Sleep(20 * time.Millisecond)
				n.watch.Sweep(n.clock.Waited().Add(59*time.Second), false) // that clock stands still
				_, _ = n.client.Write([]byte("x"))
				one := make([]byte, 1)
				if _, err := io.ReadFull(n.target, one); err != nil {
					t.Fatalf("ended too early: %v", err)
				}
				n.watch.Sweep(time.Now().Add(2*time.Minute), false)
				n.end(reason.IdleClosed, 1, 0)
			})
			t.Run("lifetime", func(t *testing.T) {
				n := join(t, way.from, "", time.Hour, time.Minute)
				_, _ = n.client.Write([]byte("x"))
				_, _ = io.ReadFull(n.target, make([]byte, 1))
				n.watch.Sweep(time.Now().Add(2*time.Minute), false)
				n.end(reason.LifetimeReached, 1, 0)
			})
			t.Run("cut", func(t *testing.T) {
				n := join(t, way.from, "", time.Hour, 0)
				time.Sleep(20 * time.Millisecond)
				n.watch.Cut()
				n.end(reason.TunnelClosed, 0, 0)
			})
			t.Run("H08/forced", func(t *testing.T) {
				n := join(t, way.from, "", time.Hour, 0)
				_, _ = n.client.Write([]byte("part"))
				_, _ = io.ReadFull(n.target, make([]byte, 4))
				n.watch.Force()
				n.end(reason.ShutdownForced, 4, 0)
			})
			t.Run("E21/reset of one side is no proper end of the other", func(t *testing.T) {
				n := join(t, way.from, "", time.Hour, 0)
				_, _ = n.client.Write([]byte("part"))
				_, _ = io.ReadFull(n.target, make([]byte, 4))
				_ = n.client.SetLinger(0)
				n.client.Close()
				_ = n.target.SetReadDeadline(time.Now().Add(5 * time.Second))
				if _, err := n.target.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the target sees %v, expected a reset", err)
				}
				<-n.done
			})
			t.Run("backpressure", func(t *testing.T) {
				n := join(t, way.from, "", time.Minute, 0)
				stalled := stall(t, n)
				// A receiver that takes nothing for as long as idle allows ends the tunnel, with what it did not take.
				n.watch.Sweep(time.Now().Add(2*time.Minute), false)
				<-n.done
				if n.why != reason.IdleClosed || n.in > stalled {
					t.Errorf("%s, %d bytes in, of %d sent", n.why, n.in, stalled)
				}
				if way.from != nil {
					idlePipes(t)
				}
			})
			t.Run("D14/what is left of one tunnel does not reach the next", func(t *testing.T) {
				for range 5 {
					n := join(t, way.from, "", time.Minute, 0)
					stall(t, n)
					n.watch.Cut()
					<-n.done
				}
				n := join(t, way.from, "", time.Minute, 0)
				go func() {
					_, _ = n.client.Write([]byte("clean"))
					_ = n.client.CloseWrite()
				}()
				if got := readAll(t, n.target); string(got) != "clean" {
					t.Errorf("%d bytes of somebody else", len(got)-len("clean"))
				}
				n.target.Close()
				<-n.done
			})
		})
	}
}

// stall sends until nothing is taken any more, and returns how much that was.
func stall(t testing.TB, n *tunnel) (sent int64) {
	t.Helper()
	chunk := bytes.Repeat([]byte("secret of another client "), 4<<10)
	for {
		_ = n.client.SetWriteDeadline(time.Now().Add(150 * time.Millisecond))
		m, err := n.client.Write(chunk)
		sent += int64(m)
		if err != nil {
			return sent
		}
		if sent > 64<<20 {
			t.Fatal("nothing holds the sender back")
		}
	}
}

// TestTunnelProgress: a receiver that takes a full pipe little by little is not idle.
func TestTunnelProgress(t *testing.T) {
	n := join(t, func(*Side) {}, "", time.Minute, 0)
	stall(t, n)
	_ = n.client.SetWriteDeadline(time.Time{})
	go func() { _, _ = io.Copy(n.client, zeros{}) }() // until the tunnel ends
	part := make([]byte, 64<<10)
	for range 5 {
		n.clock.waits.Add((50 * time.Second).Milliseconds())
		now := n.clock.Waited().UnixMilli()
		// Until those who move bytes have noticed: the kernel has them wait until a third of what it holds is gone.
		for end := time.Now().Add(20 * time.Second); n.watch.Main.word.Load()>>8 < now+time.Minute.Milliseconds() && time.Now().Before(end); {
			if _, err := io.ReadFull(n.target, part); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		n.watch.Sweep(n.clock.Waited(), false)
	}
	if _, expired := n.watch.Main.Expired(); expired {
		t.Error("idle, while bytes moved")
	}
	n.watch.Cut()
	<-n.done
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// TestTunnelTLSIsNotSpliced: what is encrypted here must come into this process.
func TestTunnelTLSIsNotSpliced(t *testing.T) {
	_, wire := tcp(t)
	_, other := tcp(t)
	for name, s := range map[string]Side{
		"TLS":                    {Conn: wire, Wire: wire, TLS: true},
		"another connection":     {Conn: other, Wire: wire},
		"a reader that has more": {Conn: wire, Wire: wire, From: bytes.NewReader(nil)},
	} {
		if s.plain() && s.unbuffered() {
			t.Errorf("%s is spliced", name)
		}
	}
	if s := (Side{Conn: wire, Wire: wire}); !s.plain() || !s.unbuffered() {
		t.Error("a plain side is not spliced")
	}
}

// BenchmarkTunnel moves 64 MiB one way; cpu-ns/MiB is the time of the whole process, sender and receiver included.
func BenchmarkTunnel(b *testing.B) {
	const total = 64 << 20
	for _, way := range ways[:2] {
		b.Run(way.name, func(b *testing.B) {
			b.SetBytes(total)
			chunk := make([]byte, 256<<10)
			before := cpu()
			for b.Loop() {
				n := join(b, way.from, "", time.Hour, 0)
				go func() {
					for range total / len(chunk) {
						_, _ = n.client.Write(chunk)
					}
					_ = n.client.CloseWrite()
				}()
				got, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{n.target}, make([]byte, 256<<10))
				if got != total || err != nil {
					b.Fatal(got, err)
				}
				n.target.Close()
				<-n.done
			}
			b.ReportMetric(float64(cpu()-before)/float64(b.N)/(total>>20), "cpu-ns/MiB")
		})
	}
}

func cpu() time.Duration {
	var r unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
