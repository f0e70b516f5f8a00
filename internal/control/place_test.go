package control

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPlace: a socket in a place where somebody else may put another one is neither made nor used.
func TestPlace(t *testing.T) {
	own := uint32(os.Geteuid())
	// place makes a folder with this mode, and a socket in it.
	place := func(t *testing.T, mode os.FileMode) (path string) {
		folder := filepath.Join(t.TempDir(), "run")
		path = filepath.Join(folder, "s")
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for c, err := l.Accept(); err == nil; c, err = l.Accept() {
				c.Close()
			}
		}()
		t.Cleanup(func() { l.Close() })
		if err := os.Chmod(folder, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const everybody = os.ModePerm
	for name, mode := range map[string]os.FileMode{"0700": 0o700, "0755": 0o755, "0775": 0o775, "like /tmp": everybody | os.ModeSticky} {
		t.Run(name, func(t *testing.T) {
			path := place(t, mode)
			for _, asks := range []bool{false, true} {
				if err := checkPlace(path, own, asks); err != nil {
					t.Error(err)
				}
			}
		})
	}
	t.Run("not there", func(t *testing.T) {
		for _, path := range []string{filepath.Join(t.TempDir(), "s"), "/nonexistent/folder/s"} {
			if err := checkPlace(path, own, false); err != nil {
				t.Error(err)
			}
		}
	})
	refused := func(t *testing.T, err error, text string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, expected %q", err, text)
		}
	}
	t.Run("G01/a folder of everybody", func(t *testing.T) {
		path := place(t, everybody)
		for _, asks := range []bool{false, true} {
			refused(t, checkPlace(path, own, asks), "everybody may put another socket into its folder")
		}
		_, err := NewClient("unix:" + path).Status(t.Context())
		refused(t, err, "everybody may put another socket")
		s := New(Config{Listen: func(string) (net.Listener, error) { return nil, errors.New("it was made all the same") }})
		refused(t, s.Bind("unix:"+filepath.Join(filepath.Dir(path), "other")), "everybody may put another socket")
	})
	t.Run("G01/no socket", func(t *testing.T) {
		path := place(t, 0o700)
		file, link := path+"file", path+"link"
		if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Symlink(path, link)); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{file, link} {
			refused(t, checkPlace(path, own, true), "is not a socket")
		}
	})
	// Who owns a file can be chosen by root alone, who asks by everybody: so it is the asker who differs.
	other := own + 4711
	if own == 0 {
		t.Run("G01/another's folder and socket", func(t *testing.T) {
			path := place(t, 0o700)
			if err := errors.Join(os.Lchown(path, int(other), -1), os.Chown(filepath.Dir(path), int(other), -1)); err != nil {
				t.Fatal(err)
			}
			if err := checkPlace(path, own, true); err != nil {
				t.Errorf("root may ask the program of another user: %v", err)
			}
			if err := checkPlace(path, other, false); err != nil {
				t.Errorf("that user: %v", err)
			}
			refused(t, checkPlace(path, own, false), "belongs to user 4711, expected user 0 or root")
			refused(t, checkPlace(path, other+1, true), "belongs to user 4711, expected user 4712 or root")
			_, err := NewClient("unix:" + path).Status(t.Context())
			if err == nil || strings.Contains(err.Error(), "belongs to") {
				t.Errorf("root as a client: %v", err) // nobody answers HTTP there
			}
		})
		t.Run("G01/another's socket in a folder like tmp", func(t *testing.T) {
			path := place(t, everybody|os.ModeSticky)
			if err := os.Lchown(path, int(other), -1); err != nil {
				t.Fatal(err)
			}
			refused(t, checkPlace(path, own, true), "it belongs to user 4711, expected user 0 or root; run this as the user of the program")
			refused(t, checkPlace(path, other+1, true), "it belongs to user 4711")
			refused(t, checkPlace(path, own, false), "remove it if nobody uses it")
			_, err := NewClient("unix:" + path).Status(t.Context())
			refused(t, err, "it belongs to user 4711")
		})
		return
	}
	t.Run("G01/another's folder", func(t *testing.T) {
		path := place(t, 0o700)
		refused(t, checkPlace(path, other, true), "its folder")
		refused(t, checkPlace(path, other, false), "its folder")
	})
}
