package limit

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Backoff is how an accept loop waits after errors: longer each time, up to a second. The zero value is ready.
type Backoff struct {
	pause  time.Duration
	told   time.Time
	silent int
}

// tellEvery is how often a condition that goes on is told.
const tellEvery = 10 * time.Second

// Failed takes an error at now. It returns how long to wait, and whether to log: at once when it begins, and then at most
// once in ten seconds, with the number of errors that were not logged since.
func (b *Backoff) Failed(now time.Time) (pause time.Duration, tell bool, silent int) {
	b.pause = min(max(2*b.pause, 5*time.Millisecond), time.Second)
	if !b.told.IsZero() && now.Sub(b.told) < tellEvery {
		b.silent++
		return b.pause, false, 0
	}
	silent, b.told, b.silent = b.silent, now, 0
	return b.pause, true, silent
}

// Succeeded ends the waits.
func (b *Backoff) Succeeded() { b.pause = 0 }

// Exhausted reports whether err says that the process (EMFILE) or the system (ENFILE) has no descriptor left.
func Exhausted(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// Spare is a descriptor in reserve. When there is no other, a waiting client is accepted with it and turned away with a
// reset, so that it learns at once what it would otherwise wait for in the backlog (F14). Use NewSpare. It is shared by all
// accept loops.
type Spare struct {
	mu   sync.Mutex
	file *os.File // nil while it is lent or could not be had
}

// NewSpare takes the descriptor.
func NewSpare() *Spare {
	s := new(Spare)
	s.take()
	return s
}

func (s *Spare) take() bool {
	if s.file == nil {
		s.file, _ = os.Open(os.DevNull)
	}
	return s.file != nil
}

// Accept accepts one connection of l with the descriptor in reserve. It does not wait: nobody there is an error that is
// os.ErrDeadlineExceeded. If a descriptor was free again meanwhile, served says that the connection may be kept; else it
// has been turned away.
func (s *Spare) Accept(l net.Listener) (c net.Conn, served bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil && !s.take() {
		return nil, false, syscall.EMFILE
	}
	d, ok := l.(interface{ SetDeadline(time.Time) error })
	if !ok {
		return nil, false, syscall.EMFILE
	}
	s.file.Close()
	s.file = nil
	_ = d.SetDeadline(time.Now().Add(spareWait))
	c, err = l.Accept()
	_ = d.SetDeadline(time.Time{})
	if err != nil {
		s.take()
		return nil, false, err
	}
	if s.take() {
		return c, true, nil
	}
	Reset(c)
	s.take()
	return nil, false, nil
}

// spareWait is how long Accept looks for a client: a deadline in the past would not look at all.
const spareWait = 20 * time.Millisecond

// Close gives the descriptor back.
func (s *Spare) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
}

// Reset closes a connection with a TCP reset where it can: no memory of it is left here.
func Reset(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0)
	}
	c.Close()
}

// Descriptors keeps some descriptors free for what is under way: connections to targets, files that are read at a reload,
// the ops listener (F14). The zero value, and a nil one, keep none.
type Descriptors struct{ last uintptr }

// OpenDescriptors reads the process's limit of open files. A quarter of it, at least 16 and at most 1,024, is kept free.
func OpenDescriptors() *Descriptors {
	var r syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r) != nil || r.Cur > 1<<30 {
		return new(Descriptors)
	}
	return &Descriptors{last: keep(uintptr(r.Cur))}
}

func keep(limit uintptr) uintptr {
	reserve := min(max(limit/4, 16), 1024)
	if limit <= 2*reserve {
		return 0 // so few that nothing would be left: all for clients
	}
	return limit - reserve
}

// Scarce reports whether a connection that was just accepted is one too many. The system always gives the lowest number
// that is free, so the connection's own says how many are taken at least.
func (d *Descriptors) Scarce(c net.Conn) bool {
	if d == nil || d.last == 0 {
		return false
	}
	s, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	scarce := false
	_ = raw.Control(func(fd uintptr) { scarce = fd >= d.last })
	return scarce
}
