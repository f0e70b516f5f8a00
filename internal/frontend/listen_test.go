package frontend

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestClear: a Unix socket is removed when nobody listens on it, and in no other case.
func TestClear(t *testing.T) {
	path := func(t *testing.T) string { return filepath.Join(t.TempDir(), "s") }
	stays := func(t *testing.T, path, text string) {
		t.Helper()
		l, err := Listen("unix:" + path)
		if err == nil {
			l.Close()
			t.Fatal("it was replaced")
		}
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%v, expected %q", err, text)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("it is gone: %v", err)
		}
	}
	t.Run("somebody listens", func(t *testing.T) {
		path := path(t)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		stays(t, path, syscall.EADDRINUSE.Error())
	})
	t.Run("somebody listens and is too busy to answer", func(t *testing.T) {
		if runtime.GOOS != "linux" {
			t.Skip("elsewhere such a socket answers as one that nobody listens on")
		}
		path := path(t)
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
			t.Fatal(err)
		}
		for range 8 { // until no more wait
			c, err := net.Dial("unix", path)
			if err != nil {
				stays(t, path, "it is not known whether somebody listens there")
				return
			}
			defer c.Close()
		}
		t.Fatal("more connections wait than the socket was told to keep")
	})
	t.Run("a socket of another kind", func(t *testing.T) {
		path := path(t)
		c, err := net.ListenPacket("unixgram", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		stays(t, path, "it is not known whether somebody listens there")
	})
	t.Run("no socket", func(t *testing.T) {
		path := path(t)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		stays(t, path, "is there and is not a socket")
	})
	t.Run("nobody listens any more", func(t *testing.T) {
		path := path(t)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
		next, err := Listen("unix:" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer next.Close()
		if st, err := os.Lstat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v %v", st, err)
		}
	})
}
