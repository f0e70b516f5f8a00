package refresh

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"countersign/internal/snapshot"
)

// file is one watched file as last seen.
type file struct {
	path    string
	slot    int // in which round of polls it is read whatever its stat says
	stamp   stamp
	sure    bool // the same stamp means the same content
	known   bool
	folder  bool   // of which the names count, and events name others
	sum     Sum    // zero if it cannot be read
	problem string // why it cannot be used
}

// stamp is what a stat tells about content.
type stamp struct {
	identity
	size         int64
	mtime, ctime int64
}

// identity is a file or directory itself, whatever its name.
type identity struct{ dev, ino uint64 }

type reader struct {
	hash  hash.Hash
	buf   []byte
	looks int // at files
	reads int
}

func newReader() reader { return reader{hash: sha256.New(), buf: make([]byte, 64<<10)} }

// read looks at a file, and into it if its stat changed or verify is set. It says whether the content is another one.
func (r *reader) read(f *file, verify bool) bool {
	r.looks++
	now := time.Now()
	st, err := os.Stat(f.path)
	if err != nil {
		f.sure = false
		return f.put(Sum{}, cause(err))
	}
	if f.folder = st.IsDir(); f.folder {
		entries, err := os.ReadDir(f.path)
		if err != nil {
			return f.put(Sum{}, cause(err))
		}
		return f.put(snapshot.FolderSum(entries), "")
	}
	s := stampOf(st)
	if f.known && f.sure && s == f.stamp && !verify {
		return false
	}
	f.stamp, f.sure = s, now.Sub(time.Unix(0, s.ctime)) > racy
	sum, n, err := r.sum(f.path)
	switch {
	case err != nil:
		f.sure = false
		return f.put(Sum{}, cause(err))
	case n == 0:
		return f.put(sum, "it is empty")
	}
	return f.put(sum, "")
}

func (f *file) put(sum Sum, problem string) bool {
	same := f.known && f.sum == sum && f.problem == problem
	f.known, f.sum, f.problem = true, sum, problem
	return !same
}

func (r *reader) sum(path string) (sum Sum, size int64, err error) {
	r.reads++
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe must not block
	if err != nil {
		return sum, 0, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return sum, 0, err
	} else if !st.Mode().IsRegular() {
		return sum, 0, errors.New("it is not a regular file")
	}
	r.hash.Reset()
	for {
		n, err := f.Read(r.buf)
		size += int64(n)
		if size > maxFile {
			return sum, 0, fmt.Errorf("it is larger than %d MiB", maxFile>>20)
		}
		r.hash.Write(r.buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return sum, 0, err
		}
	}
	r.hash.Sum(sum[:0])
	return sum, size, nil
}

// cause drops the operation and path that os errors repeat.
func cause(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}
