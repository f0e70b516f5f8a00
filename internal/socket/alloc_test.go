//go:build !race

package socket

import (
	"sync"
	"testing"
)

// TestReceiveAllocations: what comes costs no object.
func TestReceiveAllocations(t *testing.T) {
	pool := &sync.Pool{New: func() any { b := make([]byte, 100); return &b }}
	client, raw := pair(t)
	s := New(raw, false)
	if n := testing.AllocsPerRun(100, func() {
		_, _ = client.Write([]byte("x"))
		buf, _, _ := s.Receive(pool, 0)
		pool.Put(buf)
	}); n > 0.1 {
		t.Errorf("%v objects", n)
	}
}
