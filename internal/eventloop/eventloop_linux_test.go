package eventloop

import (
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sleeper counts how often it was woken.
type sleeper struct {
	woken atomic.Int32
	seat  Seat
	raw   syscall.RawConn
	near  net.Conn
	far   net.Conn
	then  func()
}

func (s *sleeper) Wake() {
	s.woken.Add(1)
	if s.then != nil {
		s.then()
	}
}

func (s *sleeper) park(t *testing.T, l *Loops) {
	t.Helper()
	if err := l.Park(&s.seat, s.raw, s); err != nil {
		t.Fatal(err)
	}
}

// read takes what has come.
func (s *sleeper) read(t *testing.T) {
	t.Helper()
	_ = s.near.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := s.near.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
}

func (s *sleeper) await(t *testing.T, times int32) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); s.woken.Load() != times; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("woken %d times, expected %d", s.woken.Load(), times)
		}
	}
}

func newSleeper(t *testing.T, network net.Listener) *sleeper {
	t.Helper()
	far, err := net.Dial("tcp", network.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	near, err := network.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	raw, err := near.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return &sleeper{near: near, far: far, raw: raw}
}

func open(t *testing.T, n int, panicked func(any)) (*Loops, net.Listener) {
	t.Helper()
	l, err := Open(n, panicked)
	if err != nil {
		t.Fatal(err)
	}
	network, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); network.Close() })
	return l, network
}

func TestWake(t *testing.T) {
	l, network := open(t, 2, func(v any) { t.Error(v) })
	t.Run("when something comes, once for each time", func(t *testing.T) {
		s := newSleeper(t, network)
		for i := range int32(5) {
			s.park(t, l)
			time.Sleep(5 * time.Millisecond)
			if s.woken.Load() != i {
				t.Fatal("woken for nothing")
			}
			_, _ = s.far.Write([]byte("x"))
			s.await(t, i+1)
			_, _ = s.far.Write([]byte("y"))
			time.Sleep(5 * time.Millisecond)
			s.await(t, i+1)
			s.read(t)
			if s.seat.Leave() {
				t.Fatal("there is a wait to leave after it was woken")
			}
		}
	})
	t.Run("for what was there before", func(t *testing.T) {
		s := newSleeper(t, network)
		_, _ = s.far.Write([]byte("x"))
		time.Sleep(10 * time.Millisecond)
		s.park(t, l)
		s.await(t, 1)
		s.park(t, l) // it was not read
		s.await(t, 2)
	})
	t.Run("for an end", func(t *testing.T) {
		s := newSleeper(t, network)
		s.park(t, l)
		_ = s.far.(*net.TCPConn).CloseWrite()
		s.await(t, 1)
	})
	t.Run("for a reset", func(t *testing.T) {
		s := newSleeper(t, network)
		s.park(t, l)
		_ = s.far.(*net.TCPConn).SetLinger(0)
		s.far.Close()
		s.await(t, 1)
	})
	t.Run("not who has left", func(t *testing.T) {
		s := newSleeper(t, network)
		if s.seat.Leave() {
			t.Error("there was no wait")
		}
		s.park(t, l)
		if !s.seat.Leave() || s.seat.Leave() {
			t.Error("a wait is left once")
		}
		_, _ = s.far.Write([]byte("x"))
		time.Sleep(20 * time.Millisecond)
		s.await(t, 0)
		s.park(t, l)
		s.await(t, 1)
	})
	t.Run("a connection that is closed", func(t *testing.T) {
		s := newSleeper(t, network)
		s.near.Close()
		if l.Park(&s.seat, s.raw, s) == nil {
			t.Error("it waits")
		}
		if s.seat.Leave() {
			t.Error("there is a wait")
		}
		s = newSleeper(t, network)
		s.park(t, l)
		s.near.Close() // the system tells nothing of it
		if !s.seat.Leave() {
			t.Error("whoever closed it cannot end its wait")
		}
	})
}

// TestOneGoesOn: of the loop and those who end waits exactly one has the connection go on.
func TestOneGoesOn(t *testing.T) {
	l, network := open(t, 2, func(v any) { t.Error(v) })
	var wg sync.WaitGroup
	for range 40 {
		s := newSleeper(t, network)
		wg.Go(func() {
			for range 100 {
				before := s.woken.Load()
				if err := l.Park(&s.seat, s.raw, s); err != nil {
					t.Error(err)
					return
				}
				var left atomic.Int32
				var ends sync.WaitGroup
				for range 2 {
					ends.Go(func() {
						time.Sleep(rand.N(50 * time.Microsecond))
						if s.seat.Leave() {
							left.Add(1)
						}
					})
				}
				time.Sleep(rand.N(50 * time.Microsecond))
				_, _ = s.far.Write([]byte("x"))
				ends.Wait()
				for deadline := time.Now().Add(10 * time.Second); left.Load()+s.woken.Load()-before == 0 && time.Now().Before(deadline); {
					runtime.Gosched()
				}
				if n := left.Load() + s.woken.Load() - before; n != 1 {
					t.Errorf("%d went on", n)
					return
				}
				_, _ = s.near.Read(make([]byte, 1))
			}
		})
	}
	wg.Wait()
}

// heldUp is a connection that cannot be reached for a while, the first time.
type heldUp struct {
	Raw
	begun, goOn chan struct{}
	once        sync.Once
}

func (h *heldUp) Control(f func(fd uintptr)) error {
	h.once.Do(func() {
		close(h.begun)
		<-h.goOn
	})
	return h.Raw.Control(f)
}

// TestHeldUp: who takes long to begin a wait cannot spoil the next one of the same connection, which begins when somebody has
// ended the first.
func TestHeldUp(t *testing.T) {
	l, network := open(t, 1, func(v any) { t.Error(v) })
	s := newSleeper(t, network)
	s.park(t, l) // the system knows it from here on
	s.seat.Leave()
	slow := &heldUp{Raw: s.raw, begun: make(chan struct{}), goOn: make(chan struct{})}
	var both sync.WaitGroup
	both.Go(func() {
		if err := l.Park(&s.seat, slow, s); err != nil {
			t.Error(err)
		}
	})
	<-slow.begun
	both.Go(func() {
		for deadline := time.Now().Add(10 * time.Second); !s.seat.Leave(); runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Error("there is no wait to leave")
				return
			}
		}
		if err := l.Park(&s.seat, s.raw, s); err != nil {
			t.Error(err)
		}
	})
	time.Sleep(20 * time.Millisecond)
	close(slow.goOn)
	both.Wait()
	_, _ = s.far.Write([]byte("x"))
	s.await(t, 1)
}

// TestMany: all that have something to read are woken, however many they are.
func TestMany(t *testing.T) {
	l, network := open(t, 2, func(v any) { t.Error(v) })
	l.last.Store(1<<32 - 300)
	all := make([]*sleeper, 600) // more than are asked for at a time
	for i := range all {
		all[i] = newSleeper(t, network)
		all[i].park(t, l)
	}
	for _, s := range all {
		_, _ = s.far.Write([]byte("x"))
	}
	for _, s := range all {
		s.await(t, 1)
	}
	for _, one := range l.loops {
		one.mu.Lock()
		if n := len(one.sleepers); n > 0 {
			t.Errorf("%d are remembered", n)
		}
		one.mu.Unlock()
	}
}

// TestCalm: a loop does nothing while nothing comes, nor when what came is not read.
func TestCalm(t *testing.T) {
	l, network := open(t, 2, func(v any) { t.Error(v) })
	for range 20 {
		s := newSleeper(t, network)
		s.park(t, l)
		_, _ = s.far.Write([]byte("x"))
		s.await(t, 1)
	}
	used := func() time.Duration {
		var r unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
			t.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	before := used()
	time.Sleep(300 * time.Millisecond)
	if d := used() - before; d > 100*time.Millisecond {
		t.Errorf("%v of processor time in 300 ms", d)
	}
}

// TestPanics: F16/a panic in whoever is woken ends neither the loop nor the program.
func TestPanics(t *testing.T) {
	told := make(chan any, 1)
	l, network := open(t, 1, func(v any) { told <- v })
	s := newSleeper(t, network)
	s.then = func() { panic("ouch") }
	s.park(t, l)
	_, _ = s.far.Write([]byte("x"))
	if v := <-told; v != "ouch" {
		t.Error(v)
	}
	other := newSleeper(t, network)
	other.park(t, l)
	_, _ = other.far.Write([]byte("x"))
	other.await(t, 1)
}

// TestClose: nothing of a loop is left.
func TestClose(t *testing.T) {
	l, _ := open(t, 3, func(v any) { t.Error(v) })
	l.Close()
	buf := make([]byte, 1<<20)
	for deadline := time.Now().Add(10 * time.Second); strings.Contains(string(buf[:runtime.Stack(buf, true)]), "eventloop.(*loop).run"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("loops go on")
		}
	}
}
