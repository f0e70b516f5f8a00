package frontend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Listen opens the socket of an address: host:port, or unix:/path.
func Listen(address string) (net.Listener, error) {
	lc := listenConfig()
	lc.SetMultipathTCP(false) // sandboxes that know TCP do not know MPTCP
	path, local := strings.CutPrefix(address, "unix:")
	if !local {
		return lc.Listen(context.Background(), "tcp", address)
	}
	if err := clear(path); err != nil {
		return nil, err
	}
	// The mask, and not a later chmod: between the two anybody could connect.
	umask.Lock()
	defer umask.Unlock()
	defer syscall.Umask(syscall.Umask(0o177))
	return lc.Listen(context.Background(), "unix", path)
}

var umask sync.Mutex // it belongs to the process

// clear removes the socket that a process left behind which did not end well, and nothing else.
func clear(path string) error {
	st, err := os.Lstat(path)
	switch {
	case err != nil:
		return nil // not there; anything else is said by the attempt to listen
	case st.Mode()&fs.ModeSocket == 0:
		return fmt.Errorf("%s is there and is not a socket; expected nothing or a socket that nobody listens on", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		c.Close()
		return fmt.Errorf("%s: %w", path, syscall.EADDRINUSE)
	case errors.Is(err, fs.ErrNotExist): // gone meanwhile
		return nil
	case !errors.Is(err, syscall.ECONNREFUSED): // as one answers that has too many who wait, is of another kind, or of another user
		return fmt.Errorf("%s is there, and it is not known whether somebody listens there (%v); expected nothing or a socket that nobody listens on: "+
			"remove it if no program has it (ss -xl)", path, err)
	}
	return os.Remove(path)
}
