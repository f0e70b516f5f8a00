package socket

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// canSend says that send gives the system something.
const canSend = true

// send writes what the system takes of p at once; with more, to be sent with what follows. An error is told once: who asks
// again hears EPIPE.
func send(fd uintptr, p []byte, more bool) (int, error) {
	flags := uintptr(unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL)
	if more {
		flags |= unix.MSG_MORE
	}
	for {
		n, _, err := unix.Syscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), flags, 0, 0)
		switch err {
		case 0:
			return int(n), nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, nil
		default:
			return 0, err
		}
	}
}

// readOrPush reads what has arrived. If that is nothing, it lets go of what the system holds back, and reads nothing.
func (s *Conn) readOrPush(p []byte) (n int, err error) {
	s.held = false
	rawErr := s.raw.Read(func(fd uintptr) bool {
		for {
			if n, err = unix.Read(int(fd), p); err != unix.EINTR {
				break
			}
		}
		if err == unix.EAGAIN {
			// Setting it, even to what it is, sends what waits (tcp(7)). Where it cannot be set nothing waits for long.
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
			n, err = 0, nil
		}
		return true
	})
	if err != nil {
		err = s.failure("read", err)
	}
	if rawErr != nil {
		err = rawErr
	}
	return max(n, 0), err
}

func waiting(fd uintptr) int {
	var n int32
	if _, _, err := unix.Syscall(unix.SYS_IOCTL, fd, unix.TIOCINQ, uintptr(unsafe.Pointer(&n))); err != 0 {
		return 0
	}
	return int(n)
}
