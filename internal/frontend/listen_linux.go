package frontend

import (
	"errors"
	"net"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// listenConfig has accepted connections take over the listener's settings, which saves setting each one's.
func listenConfig() net.ListenConfig { return net.ListenConfig{KeepAlive: -1, Control: keepAlive} }

// keepAlive has the system ask after peers that have been silent for 30 s, every 15 s, and give up after 9 times.
func keepAlive(network, _ string, c syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	var err error
	controlErr := c.Control(func(fd uintptr) {
		err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 30),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9))
	})
	return errors.Join(err, controlErr)
}
