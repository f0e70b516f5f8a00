package forward

import (
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"countersign/internal/socket"
)

// Bytes between two plain TCP connections need not come into this process: splice(2) moves them through a pipe, for less
// than half of the CPU time. A direction has a pipe only while bytes are in it; one that waits has
// neither a pipe nor a buffer.

// Bounds of pipes.
const (
	// pipeSize is what a pipe takes: the most that Linux gives to whom it has not been allowed more.
	pipeSize = 1 << 20
	// maxPipes is the greatest number at a time, each with two descriptors and, while a receiver does not take them, up to
	// pipeSize bytes of the kernel's memory. Directions beyond it copy.
	maxPipes = 128
	// maxSpare is how many are kept open for the next.
	maxSpare = 16
)

type pipe struct{ r, w int }

var (
	pipesOpen  atomic.Int32
	sparePipes = make(chan pipe, maxSpare)
)

// takePipe finds an empty pipe, or reports that there is none to be had.
func takePipe() (pipe, bool) {
	select {
	case p := <-sparePipes:
		return p, true
	default:
	}
	if pipesOpen.Add(1) > maxPipes {
		pipesOpen.Add(-1)
		return pipe{}, false
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		pipesOpen.Add(-1)
		return pipe{}, false
	}
	p := pipe{fds[0], fds[1]}
	// A user has room for so many; with a pipe that stays small copying is better.
	if n, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, pipeSize); err != nil || n < pipeSize {
		p.close()
		return pipe{}, false
	}
	return p, true
}

// put keeps an empty pipe for the next.
func (p pipe) put() {
	select {
	case sparePipes <- p:
	default:
		p.close()
	}
}

func (p pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
	pipesOpen.Add(-1)
}

// splicer is one direction between two TCP connections.
type splicer struct {
	w        *Watch
	src, dst *socket.Conn
	from, to syscall.RawConn
	idle     time.Duration

	fill, drain func(fd uintptr) bool // bound once

	pipe   pipe
	piped  bool    // pipe is held
	buf    *[]byte // in place of a pipe
	have   int     // bytes in either that have not been sent
	err    error
	sent   int64
	copies bool // the kernel does not splice these
}

// newSplicer is nil unless both are TCP.
func newSplicer(w *Watch, dst, src *socket.Conn, idle time.Duration) *splicer {
	from, ok1 := src.Conn.(*net.TCPConn)
	to, ok2 := dst.Conn.(*net.TCPConn)
	if !ok1 || !ok2 {
		return nil
	}
	s := &splicer{w: w, src: src, dst: dst, idle: idle}
	var err1, err2 error
	s.from, err1 = from.SyscallConn()
	s.to, err2 = to.SyscallConn()
	if err1 != nil || err2 != nil {
		return nil
	}
	s.fill, s.drain = s.take, s.give
	return s
}

const spliceFlags = unix.SPLICE_F_NONBLOCK | unix.SPLICE_F_MOVE

// run moves bytes until src ends, which is nil, or something fails.
func (s *splicer) run() error {
	defer s.drop()
	for {
		if err := s.from.Read(s.fill); err != nil {
			return err
		}
		if s.err != nil || s.have == 0 {
			return s.err
		}
		s.src.In += int64(s.have)
		if err := s.to.Write(s.drain); err != nil {
			return err
		}
		if s.err != nil {
			return s.err
		}
		s.drop()
	}
}

// take gets what src has into a pipe or a buffer. It reports whether there was anything, an end or an error included.
func (s *splicer) take(fd uintptr) bool {
	if !s.copies {
		s.pipe, s.piped = takePipe()
	}
	if !s.piped {
		s.buf = outs.Get().(*[]byte)
	}
	for {
		var n int
		if s.piped {
			n, s.err = splice(fd, s.pipe.w, pipeSize)
		} else {
			n, s.err = unix.Read(int(fd), (*s.buf)[:cap(*s.buf)])
		}
		switch s.err {
		case nil:
			s.have = n
			return true
		case unix.EINTR:
			continue
		case unix.EINVAL, unix.ENOSYS:
			if s.piped {
				s.copies = true
				s.drop()
				s.buf = outs.Get().(*[]byte)
				continue
			}
			return true
		case unix.EAGAIN:
			s.drop()
			return false // who waits holds nothing
		default:
			return true
		}
	}
}

// give sends what was taken. It reports whether all of it is sent, or failed to be.
func (s *splicer) give(fd uintptr) bool {
	for s.have > 0 {
		var n int
		var err error
		if s.piped {
			n, err = splice(uintptr(s.pipe.r), int(fd), s.have)
		} else {
			n, err = unix.Write(int(fd), (*s.buf)[:s.have])
			if n > 0 {
				copy((*s.buf)[:s.have-n], (*s.buf)[n:s.have])
			}
		}
		switch err {
		case nil:
			s.have -= n
			s.sent += int64(n)
			s.dst.Out += int64(n)
			s.w.Main.Set(s.w.Clock, Tunnelling, s.idle) // a receiver that takes a pipe little by little is not idle
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			s.err = err
			return true
		}
	}
	return true
}

func splice(from uintptr, to, n int) (int, error) {
	m, err := unix.Splice(int(from), nil, to, nil, n, spliceFlags)
	return int(m), err // of another type on 32-bit systems
}

// drop gives back what bytes were moved in. A pipe that still has some is of no use to anybody else.
func (s *splicer) drop() {
	if s.piped {
		if s.have == 0 {
			s.pipe.put()
		} else {
			s.pipe.close()
		}
		s.piped = false
	}
	if s.buf != nil {
		outs.Put(s.buf)
		s.buf = nil
	}
}
