//go:build !race

package socket

import (
	"sync"
	"testing"
	"time"
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
	go func() {
		for range 21 {
			time.Sleep(2 * time.Millisecond)
			_, _ = client.Write([]byte("x"))
		}
	}()
	if n := testing.AllocsPerRun(20, func() { // behind waits
		buf, _, _ := s.Receive(pool, 0)
		pool.Put(buf)
	}); n > 0.5 {
		t.Errorf("%v objects behind a wait", n)
	}
	// Nor does a connection keep an object of its own for it: made between what a handshake leaves behind, it would hold up a
	// page of that (96 bytes took two thousand).
	begun := testing.AllocsPerRun(100, func() { New(raw, true) })
	two, header := []byte("\x17\x03\x03\x00\x01x\x17\x03\x03\x00\x01y"), make([]byte, 5)
	if n := testing.AllocsPerRun(100, func() {
		_, _ = client.Write(two)
		s := New(raw, true)
		s.InSteps(true)
		_, _ = s.Read(header)
		_, _ = s.Read(header)
		s.InSteps(false)
		for range 2 { // what was read ahead, and then what has come since
			buf, _, _ := s.Receive(pool, 0)
			pool.Put(buf)
			_, _ = client.Write(two[:6])
		}
		_, _ = s.Read(header)
		_, _ = s.Read(header)
	}); n > begun+0.5 {
		t.Errorf("%v objects for a connection that is read in steps, expected %v", n, begun)
	}
}
