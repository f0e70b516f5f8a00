package record

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// FileSettings are those of an output that is a file. With neither Bytes nor Age it is rotated by somebody else, if at all.
type FileSettings struct {
	Path string
	// Bytes is the size the file never exceeds; 0 means any.
	Bytes int64
	// Age is the length of the spans of time that have a file each, counted from the beginning of 1970: 24h is midnight UTC.
	// 0 means no such spans.
	Age time.Duration
	// Keep is how many rotated files there are at most; Compress has them compressed by gzip.
	Keep     int
	Compress bool
}

const (
	fileMode = 0o640
	// lookEvery is how often a file is compared with what has its name, for lines after a rename without a signal.
	lookEvery = time.Second
	// stamp is the time in the names of rotated files; it sorts as it reads.
	stamp = "20060102T150405.000Z"
)

// file is a sink that is a file.
type file struct {
	FileSettings
	now func() time.Time

	f      *os.File // nil while it cannot be opened
	size   int64
	span   int64 // of its lines, in Age since 1970
	looked time.Time
	moved  atomic.Bool // look now
	// held is until when rotation, having failed, is not tried again.
	held time.Time
	// stamped is the time in the newest rotated file's name, and alike how many names have it. A name is not given twice: its
	// file may have been compressed since, and the next one would replace it.
	stamped string
	alike   int

	tidies  sync.WaitGroup
	tidying sync.Mutex // one at a time
	waiting atomic.Bool
	ended   atomic.Bool
}

// openFile opens a file to append to. A disk that is full, read-only or broken is no error, it is tried again with every
// write; what only the operator can correct is one.
func openFile(s FileSettings) (*file, error) {
	o := &file{FileSettings: s, now: time.Now}
	err := o.open()
	switch {
	case err == nil:
		o.tidies.Go(o.tidy) // what an earlier run left
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EIO),
		errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ESTALE):
	default:
		return nil, err
	}
	return o, nil
}

// open opens the file under its name, in place of the one that is open now.
func (o *file) open() error {
	// Without O_NONBLOCK a FIFO without a reader would be waited for.
	f, err := os.OpenFile(o.Path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK|syscall.O_CLOEXEC, fileMode)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("it is not a regular file; for standard output use to: stdout")
	}
	if err != nil {
		f.Close()
		return err
	}
	if o.f != nil {
		o.f.Close()
	}
	o.f, o.size, o.looked = f, st.Size(), o.now()
	if o.span = o.spanOf(o.now()); o.size > 0 {
		o.span = o.spanOf(st.ModTime())
	}
	return nil
}

func (o *file) spanOf(t time.Time) int64 {
	if o.Age <= 0 {
		return 0
	}
	return t.UnixNano() / int64(o.Age)
}

func (o *file) reopen() { o.moved.Store(true) }

func (o *file) close() {
	o.ended.Store(true)
	if o.f != nil {
		o.f.Close()
	}
	o.tidies.Wait() // what is compressed halfway goes
}

// look compares the open file with what has its name now, and opens that if it is another one: somebody has rotated or
// removed it.
func (o *file) look() error {
	now := o.now()
	if moved := o.moved.Swap(false); o.f != nil && !moved && now.Sub(o.looked) < lookEvery && !now.Before(o.looked) {
		return nil
	}
	if o.f == nil {
		return o.open()
	}
	o.looked = now
	ours, err := o.f.Stat()
	if err != nil {
		return o.open()
	}
	named, err := os.Stat(o.Path)
	if err == nil && os.SameFile(ours, named) {
		o.size = ours.Size() // it may have been cut (copytruncate)
		return nil
	}
	if err := o.open(); err != nil {
		if st, ok := ours.Sys().(*syscall.Stat_t); ok && st.Nlink == 0 {
			o.moved.Store(true)
			return err // what is written to a removed file is lost
		}
	}
	return nil // a renamed file is better than none
}

// write appends as many whole lines as fit into the file before it has to be rotated.
func (o *file) write(lines []byte) (done, lost int, err error) {
	if err := o.look(); err != nil {
		return 0, 0, err
	}
	if o.size > 0 && o.spanOf(o.now()) > o.span {
		o.rotate()
	}
	part := lines
	if o.Bytes > 0 && o.size+int64(len(lines)) > o.Bytes {
		part = whole(lines[:max(0, min(int64(len(lines)), o.Bytes-o.size))])
		if len(part) == 0 && o.size > 0 && o.rotate() {
			part = whole(lines[:min(int64(len(lines)), o.Bytes)])
		}
		if len(part) == 0 { // it could not be rotated, or one line is larger than a file may be
			part = lines
		}
	}
	n, err := o.f.Write(part)
	if n < len(part) && n > 0 {
		// A disk that is full takes part of a line. It goes back, so that there is none when this program ends now.
		if back := n - len(whole(part[:n])); back > 0 {
			if st, serr := o.f.Stat(); serr == nil && st.Size() >= int64(back) && o.f.Truncate(st.Size()-int64(back)) == nil {
				n -= back
			}
		}
	}
	o.size += int64(n)
	o.span = o.spanOf(o.now())
	return n, 0, err
}

// whole cuts b behind its last whole line.
func whole(b []byte) []byte { return b[:bytes.LastIndexByte(b, '\n')+1] }

// rotate gives the file another name and begins a new one. If it cannot, it is let grow, and tried again in a minute.
func (o *file) rotate() bool {
	now := o.now()
	if now.Before(o.held) {
		return false
	}
	o.held = now.Add(time.Minute)
	if s := now.UTC().Format(stamp); s != o.stamped {
		o.stamped, o.alike = s, 0
	}
	for {
		name := o.Path + "." + o.stamped
		if o.alike++; o.alike > 1 {
			name += fmt.Sprintf("-%03d", o.alike)
		}
		err := fs.ErrExist
		if _, zerr := os.Lstat(name + ".gz"); zerr != nil {
			// A link fails where the name is taken; a rename would replace what is there.
			err = os.Link(o.Path, name)
		}
		if err == nil {
			err = os.Remove(o.Path)
		} else if errors.Is(err, fs.ErrExist) && o.alike < 999 {
			continue
		} else if !errors.Is(err, fs.ErrExist) {
			if _, serr := os.Lstat(name); errors.Is(serr, fs.ErrNotExist) {
				err = os.Rename(o.Path, name) // a file system without links
			}
		}
		if err != nil {
			return false
		}
		break
	}
	if o.open() != nil {
		return false // the renamed file goes on taking lines
	}
	o.held = time.Time{}
	o.tidies.Go(o.tidy)
	return true
}

// tidy compresses rotated files and removes those beyond Keep. It runs beside the writer.
func (o *file) tidy() {
	defer func() { _ = recover() }() // housekeeping; the next rotation does it again
	if o.Keep <= 0 || o.waiting.Swap(true) {
		return // one that waits sees what there is for this one too
	}
	o.tidying.Lock()
	defer o.tidying.Unlock()
	o.waiting.Store(false)
	dir := filepath.Dir(o.Path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	var rotated []string
	for _, e := range entries {
		name, ours := strings.CutPrefix(e.Name(), filepath.Base(o.Path)+".")
		switch {
		case !ours || !e.Type().IsRegular():
		case unfinishedName.MatchString(name):
			_ = os.Remove(filepath.Join(dir, e.Name())) // of a run that ended
		case rotatedName.MatchString(name):
			rotated = append(rotated, e.Name())
		}
	}
	slices.SortFunc(rotated, func(a, b string) int {
		return strings.Compare(strings.TrimSuffix(b, ".gz"), strings.TrimSuffix(a, ".gz"))
	})
	for i, name := range rotated {
		name = filepath.Join(dir, name)
		switch {
		case o.ended.Load():
			return
		case i >= o.Keep:
			_ = os.Remove(name)
		case o.Compress && !strings.HasSuffix(name, ".gz"):
			_ = o.compress(name)
		}
	}
}

// rotatedName is what follows a log's name and a dot in the names that rotate gives. Nothing else is ever removed.
var (
	rotatedName    = regexp.MustCompile(`^\d{8}T\d{6}\.\d{3}Z(-\d{3})?(\.gz)?$`)
	unfinishedName = regexp.MustCompile(`^\d{8}T\d{6}\.\d{3}Z(-\d{3})?\.gz\.\d+\.tmp$`)
)

// compress replaces a file by its compressed form; whatever goes wrong, one of the two is there and complete.
func (o *file) compress(name string) (err error) {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	// A name that nobody else has: around a reload another one may be compressing the same file, and would have the name of
	// what it has not finished taken from it.
	out, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".gz.*.tmp")
	if err != nil {
		return err
	}
	tmp := out.Name()
	defer func() {
		out.Close()
		if err != nil {
			_ = os.Remove(tmp)
		}
	}()
	zip := gzip.NewWriter(out)
	buf := make([]byte, 64<<10)
	for {
		if o.ended.Load() {
			return errors.New("ended")
		}
		n, rerr := in.Read(buf)
		if _, err := zip.Write(buf[:n]); err != nil {
			return err
		}
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			return rerr
		}
	}
	if err := errors.Join(zip.Close(), out.Chmod(st.Mode().Perm()), out.Sync(), out.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, name+".gz"); err != nil {
		return err
	}
	return os.Remove(name)
}
