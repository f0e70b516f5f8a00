//go:build !race

package tls13

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

// TestAllocations: reading and writing allocate nothing.
func TestAllocations(t *testing.T) {
	c, p := newRig(t).taken(t)
	buf := make([]byte, 1000)
	var records [][]byte
	for range 101 { // AllocsPerRun has one more
		records = append(records, p.record(applicationData, []byte("hello"), 0))
	}
	i := 0
	if n := testing.AllocsPerRun(100, func() {
		_, _ = p.wire.Write(records[i])
		i++
		if _, err := c.Read(buf[:1]); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(buf); err != nil {
			t.Fatal(err)
		}
	}); n > 0.1 {
		t.Errorf("%v objects for a request", n)
	}
	waits := func() {
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := c.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Time{})
	}
	large := make([]byte, 2*restRoom)
	wait := testing.AllocsPerRun(20, waits)
	for _, cut := range []int{1, restRoom + 1} {
		records, i = records[:0], 0
		for range 21 {
			records = append(records, p.record(applicationData, large, 0))
		}
		if n := testing.AllocsPerRun(20, func() {
			_, _ = p.wire.Write(records[i][:cut])
			waits()
			_, _ = p.wire.Write(records[i][cut:])
			i++
			if _, err := io.ReadFull(c, large); err != nil {
				t.Fatal(err)
			}
		}); n > wait+0.5 {
			t.Errorf("%v objects for a record of which %d bytes came first, expected the %v of the wait", n, cut, wait)
		}
	}
}
