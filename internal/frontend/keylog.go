package frontend

import "io"

// keyLog is where the TLS secrets of one listener's new connections are written while the operator reads them.
type keyLog struct {
	listener string
	to       io.Writer
}

// Write passes a line on. It never fails: an error would end the handshake.
func (k *keyLog) Write(line []byte) (int, error) {
	_, _ = k.to.Write(line)
	return len(line), nil
}

// LogKeys has the TLS secrets of new connections of a listener written to w, in NSS's key log format, until end is called.
// A handshake that is under way then may still write. w must not wait: all handshakes of the listener would.
func (f *Frontend) LogKeys(listener string, w io.Writer) (end func()) {
	k := &keyLog{listener, w}
	f.keyLog.Store(k)
	return func() { f.keyLog.CompareAndSwap(k, nil) }
}
