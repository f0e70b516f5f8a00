package eventloop

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// set is an epoll instance. Its descriptor is itself waited for by the runtime's poller, so that a loop occupies no thread.
type set struct {
	file *os.File
	raw  syscall.RawConn
}

func openSet() (s set, err error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return s, os.NewSyscallError("epoll_create1", err)
	}
	if err = unix.SetNonblock(fd, true); err != nil { // or package os would not have the poller wait for it
		unix.Close(fd)
		return s, os.NewSyscallError("fcntl", err)
	}
	s.file = os.NewFile(uintptr(fd), "epoll")
	if s.raw, err = s.file.SyscallConn(); err != nil {
		s.close()
	}
	return s, err
}

// await has the set tell id once when there is something to read of fd. again says that it knows fd.
func (s set) await(fd uintptr, id uint64, again bool) (err error) {
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(uint32(id)), Pad: int32(uint32(id >> 32))}
	op := unix.EPOLL_CTL_ADD
	if again {
		op = unix.EPOLL_CTL_MOD
	}
	rawErr := s.raw.Control(func(epfd uintptr) { err = unix.EpollCtl(int(epfd), op, int(fd), &event) })
	if rawErr != nil {
		return rawErr
	}
	return os.NewSyscallError("epoll_ctl", err)
}

// wait waits for at least one id that is to be told.
func (s set) wait(ids []uint64) (n int, err error) {
	var events [256]unix.EpollEvent
	rawErr := s.raw.Read(func(epfd uintptr) bool {
		for {
			if n, err = unix.EpollWait(int(epfd), events[:min(len(events), len(ids))], 0); err != unix.EINTR {
				return n > 0 || err != nil
			}
		}
	})
	if rawErr != nil {
		return 0, rawErr
	}
	for i := range max(n, 0) {
		ids[i] = uint64(uint32(events[i].Fd)) | uint64(uint32(events[i].Pad))<<32
	}
	return max(n, 0), err
}

func (s set) close() { s.file.Close() }
