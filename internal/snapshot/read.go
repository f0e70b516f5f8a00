package snapshot

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"
)

const (
	maxFile = 128 << 20 // a revocation list of about four million entries
	// smallFile is what is read through a buffer that all files share; larger ones get a buffer of their own at once.
	smallFile = 64 << 10
	// racy is the age of a file's last change below which its stat says nothing: a later change within the resolution of
	// the file system's clock, some milliseconds, would look alike.
	racy = 2 * time.Second
)

// stamp is what a stat says of a file's content.
type stamp struct {
	dev, ino           uint64
	size, mtime, ctime int64
}

// seen is a file that was read: as long as its stamp stays, so does its hash.
type seen struct {
	stamp stamp
	sum   Sum
}

// ReadFile reads a file that the configuration names, or the configuration itself. What is no regular file is refused, a
// pipe without waiting for who writes to it.
func ReadFile(name string) ([]byte, error) { return new(fileReader).read(name) }

// fileReader reads one file after another. It asks the system for no more than it needs: a configuration can name tens
// of thousands of files, and package os would offer each to its poller first.
type fileReader struct {
	room    []byte
	racy    time.Duration // racy, but in tests
	reads   int           // files opened
	stamp   stamp         // of the file read last
	sure    bool          // whether the stamp stands for its content
	devices map[uint64]bool
}

// unchanged reports whether a file is still the one that was seen, without opening it.
func (r *fileReader) unchanged(name string, before seen) bool {
	var st syscall.Stat_t
	if again(func() error { return syscall.Stat(name, &st) }) != nil || uint32(st.Mode)&syscall.S_IFMT != syscall.S_IFREG {
		return false
	}
	s, ok := r.stampOf(&st, name)
	return ok && s == before.stamp
}

func (r *fileReader) read(name string) ([]byte, error) {
	fail := func(op string, err error) ([]byte, error) { return nil, &fs.PathError{Op: op, Path: name, Err: err} }
	r.reads++
	r.sure = false
	var fd int
	err := again(func() (err error) {
		fd, err = syscall.Open(name, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return fail("open", err)
	}
	defer syscall.Close(fd)
	var st syscall.Stat_t
	if err := again(func() error { return syscall.Fstat(fd, &st) }); err != nil {
		return fail("stat", err)
	}
	if uint32(st.Mode)&syscall.S_IFMT != syscall.S_IFREG {
		return nil, errors.New("it is not a regular file")
	}
	small := st.Size < smallFile
	if s, ok := r.stampOf(&st, name); ok && small { // a large one may be written for longer than racy
		age := time.Since(time.Unix(0, s.ctime)) // taken before the content is read
		r.stamp, r.sure = s, age > cmp.Or(r.racy, racy)
	}
	if small && r.room == nil {
		r.room = make([]byte, smallFile)
	}
	buf := r.room
	if !small {
		buf = make([]byte, min(st.Size, maxFile)+1)
	}
	n := 0
	for {
		if n == len(buf) { // it has grown, or its size was not to be known
			if n > maxFile {
				return nil, fmt.Errorf("it is larger than %d MiB", maxFile>>20)
			}
			buf, small = append(buf[:n:n], make([]byte, min(n, maxFile+1-n))...), false
		}
		var more int
		err := again(func() (err error) {
			more, err = syscall.Read(fd, buf[n:])
			return err
		})
		if err != nil {
			return fail("read", err)
		}
		if more <= 0 {
			break
		}
		n += more
	}
	switch {
	case n > maxFile:
		return nil, fmt.Errorf("it is larger than %d MiB", maxFile>>20)
	case small:
		return bytes.Clone(buf[:n]), nil
	}
	return buf[:n], nil
}

// again calls a system call until no signal interrupts it.
func again(call func() error) error {
	for {
		if err := call(); err != syscall.EINTR {
			return err
		}
	}
}
