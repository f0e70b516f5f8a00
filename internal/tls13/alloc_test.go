//go:build !race

package tls13

import (
	"testing"
)

// TestAllocations: reading and writing allocate nothing.
func TestAllocations(t *testing.T) {
	c, p := newRig(t).taken(t)
	buf := make([]byte, 1000)
	var records [][]byte
	for range 102 {
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
}
