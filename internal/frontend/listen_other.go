//go:build !linux

package frontend

import (
	"net"
	"time"
)

// listenConfig has each accepted connection set: elsewhere it does not take over what the listener has.
func listenConfig() net.ListenConfig { return net.ListenConfig{KeepAlive: 30 * time.Second} }
