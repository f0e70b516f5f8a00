package limit

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	var b Backoff
	now := time.Now()
	if pause, tell, silent := b.Failed(now); pause != 5*time.Millisecond || !tell || silent != 0 {
		t.Errorf("F14/first: %v %v %d", pause, tell, silent)
	}
	told := 0
	var pause time.Duration
	for i := range 1000 {
		var tell bool
		if pause, tell, _ = b.Failed(now.Add(time.Duration(i) * 25 * time.Millisecond)); tell {
			told++
		}
	}
	if pause != time.Second || told != 2 {
		t.Errorf("F14/for 25 s: pause %v, told %d times; expected 1s and 2", pause, told)
	}
	if _, tell, silent := b.Failed(now.Add(time.Minute)); !tell || silent < 100 {
		t.Errorf("F14/afterwards: told %v, of %d silent ones", tell, silent)
	}
	b.Succeeded()
	if pause, tell, _ := b.Failed(now.Add(time.Minute + time.Second)); pause != 5*time.Millisecond || tell {
		t.Errorf("F14/again soon: pause %v, told %v", pause, tell)
	}
	if Exhausted(net.ErrClosed) || !Exhausted(&net.OpError{Err: os.NewSyscallError("accept4", syscall.EMFILE)}) {
		t.Error("what exhaustion is")
	}
}

func TestKeepDescriptors(t *testing.T) {
	for limit, want := range map[uintptr]uintptr{16: 0, 32: 0, 64: 48, 1024: 768, 20000: 18976, 1 << 20: 1<<20 - 1024} {
		if got := keep(limit); got != want {
			t.Errorf("of %d: connections up to %d, expected %d", limit, got, want)
		}
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if (*Descriptors)(nil).Scarce(a) || new(Descriptors).Scarce(a) || (&Descriptors{last: 1}).Scarce(a) {
		t.Error("scarce where there is none")
	}
}

// TestWithoutDescriptors uses up all descriptors in a process of its own.
func TestWithoutDescriptors(t *testing.T) {
	if os.Getenv("COUNTERSIGN_DESCRIPTOR_TEST") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestWithoutDescriptors$", "-test.v")
		cmd.Env = append(os.Environ(), "COUNTERSIGN_DESCRIPTOR_TEST=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Fatalf("F14: %v\n%s", err, out)
		}
		return
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 100, Max: 100}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	spare, few := NewSpare(), OpenDescriptors()
	defer spare.Close()
	dial := func() net.Conn {
		t.Helper()
		c, err := net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		return c
	}
	t.Run("F14/nobody waits", func(t *testing.T) {
		if _, _, err := spare.Accept(l); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v, expected nobody there", err)
		}
	})
	t.Run("F14/room after all", func(t *testing.T) {
		c := dial()
		defer c.Close()
		in, served, err := spare.Accept(l)
		if err != nil || !served {
			t.Fatalf("served %v, %v; expected a connection that may be kept", served, err)
		}
		if few.Scarce(in) {
			t.Error("scarce, and nearly all are free")
		}
		in.Close()
	})
	t.Run("F14/turned away at once", func(t *testing.T) {
		late := dial() // waits in the backlog
		defer late.Close()
		var files []*os.File
		for {
			f, err := os.Open(os.DevNull)
			if err != nil {
				break
			}
			files = append(files, f)
		}
		if _, err := l.Accept(); !Exhausted(err) {
			t.Fatalf("%v, expected no descriptor", err)
		}
		_, served, err := spare.Accept(l)
		if err != nil || served {
			t.Fatalf("served %v, %v; expected that it is turned away", served, err)
		}
		start := time.Now()
		if _, err := late.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) || time.Since(start) > 4*time.Second {
			t.Errorf("the client learnt %v after %v, expected a reset at once", err, time.Since(start))
		}
		if _, _, err := spare.Accept(l); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v, expected that the reserve is there again and nobody waits", err)
		}
		for _, f := range files {
			f.Close()
		}
	})
	t.Run("F14/the rest is kept free", func(t *testing.T) {
		var open []net.Conn
		for {
			c := dial()
			in, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c, in)
			if few.Scarce(in) {
				break
			}
		}
		free := 0
		for ; ; free++ {
			f, err := os.Open(os.DevNull)
			if err != nil {
				break
			}
			defer f.Close()
		}
		if free < 20 || free > 30 {
			t.Errorf("%d descriptors are left, expected about a quarter of 100", free)
		}
		for _, c := range open {
			c.Close()
		}
	})
}
