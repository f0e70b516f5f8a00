//go:build !linux

package socket

// readOrPush is not called, since nothing waits.
func (s *Conn) readOrPush([]byte) (int, error) { return 0, nil }

// canSend says that send gives the system nothing: what may wait is written at once.
const canSend = false

func send(uintptr, []byte, bool) (int, error) { return 0, nil }

// waiting cannot be told.
func waiting(uintptr) int { return 0 }
