package quickstart

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// The modes of what is written. Keys, and files that hold one, are for their owner only.
const (
	public  fs.FileMode = 0o644
	private fs.FileMode = 0o600
)

// folder is D. Everything is read and written through os.Root, which does not follow a name out of it, not even by a
// symbolic link.
type folder struct {
	dir  string
	root *os.Root
	lock *os.File
}

// openFolder makes D and takes its lock, so that two runs do not make one PKI at the same time.
func openFolder(dir string) (*folder, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the folder %s: %w; name another one with --dir", dir, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open the folder %s: %w; name another one with --dir", dir, err)
	}
	f := &folder{dir: dir, root: root}
	if err := f.own(); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

// own checks that the folder is ours to write in, and locks it.
func (f *folder) own() error {
	conf, err := f.read(configFile)
	if err != nil {
		return err
	}
	if conf != nil && !madeHere(conf) {
		return fmt.Errorf("%s: expected a file made by quickstart (with the line %q), found another; name another folder with --dir, so that yours stays as it is",
			f.path(configFile), configMark)
	}
	if f.lock, err = f.root.OpenFile(lockFile, os.O_CREATE|os.O_RDWR, private); err != nil {
		return fmt.Errorf("cannot write in %s: %w; name another folder with --dir", f.dir, err)
	}
	if err := syscall.Flock(int(f.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("another quickstart is using the folder %s; end it, or name another folder with --dir", f.dir)
	}
	if err := f.root.Mkdir("pki", 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("cannot make %s: %w", f.path("pki"), err)
	}
	return nil
}

const lockFile = ".lock"

func (f *folder) close() {
	if f.lock != nil {
		f.lock.Close() // and with it the lock
	}
	f.root.Close()
}

// path is the name of a file for people.
func (f *folder) path(name string) string { return strings.TrimSuffix(f.dir, "/") + "/" + name }

// maxFile bounds what is read: nothing here comes near it.
const maxFile = 1 << 20

// read returns a file's content, nil if there is no such file.
func (f *folder) read(name string) ([]byte, error) {
	file, err := f.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w; make it readable, or delete the folder %s and start again", f.path(name), err, f.dir)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot read %s: %w; delete it, or the folder %s, and start again", f.path(name), err, f.dir)
	case len(data) > maxFile:
		return nil, fmt.Errorf("%s: expected at most %d bytes, found more; delete it, or the folder %s, and start again", f.path(name), maxFile, f.dir)
	case data == nil:
		data = []byte{}
	}
	return data, nil
}

// write puts a file in place as a whole or not at all: a reader sees the old one or the new one, never a part.
func (f *folder) write(name string, data []byte, mode fs.FileMode) (err error) {
	fail := func(err error) error {
		return fmt.Errorf("cannot write %s: %w; check the disk and the permissions of %s", f.path(name), err, f.dir)
	}
	temp := name + ".tmp"
	if err := f.root.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	file, err := f.root.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return fail(err)
	}
	defer func() {
		if err != nil {
			_ = f.root.Remove(temp)
		}
	}()
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = f.root.Rename(temp, name)
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// tighten takes a key file that others could read away from them.
func (f *folder) tighten(name string) error {
	st, err := f.root.Stat(name)
	if err != nil || st.Mode().Perm() == private {
		return err
	}
	return f.root.Chmod(name, private)
}
