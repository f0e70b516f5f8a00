//go:build !race

package forward

import (
	"io"
	"net"
	"testing"
	"time"

	"countersign/internal/reason"
	"countersign/internal/testalloc"
)

// TestTunnelAllocations: the bytes of a tunnel allocate nothing, many or few, whatever moves them. It is not built with the
// race detector, which allocates.
func TestTunnelAllocations(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			n := join(t, way.from, "", time.Hour, 0)
			for _, c := range []*net.TCPConn{n.client, n.target} {
				_ = c.SetDeadline(time.Now().Add(time.Minute))
			}
			sent := [2]int{}
			for i, dir := range []struct {
				name     string
				from, to *net.TCPConn
			}{{"to the target", n.client, n.target}, {"to the client", n.target, n.client}} {
				data, into := make([]byte, 4<<20), make([]byte, 64<<10)
				sizes, done := make(chan int), make(chan error)
				go func() {
					for size := range sizes {
						_, err := dir.from.Write(data[:size])
						done <- err
					}
				}()
				move := func(size int) {
					sizes <- size
					sent[i] += size
					for size > 0 {
						m, err := dir.to.Read(into)
						if err != nil {
							t.Fatal(err)
						}
						size -= m
					}
					if err := <-done; err != nil {
						t.Fatal(err)
					}
				}
				for _, row := range []struct {
					size, calls int
					most        float64
				}{{100, 500, 0.05}, {4 << 20, 2, 0.5}} {
					a := testalloc.PerCall(row.calls, func() { move(row.size) })
					if t.Logf("%d bytes %s: %.3f allocations", row.size, dir.name, a); a > row.most {
						t.Errorf("%d bytes %s allocate %.3f objects; expected none", row.size, dir.name, a)
					}
				}
				close(sizes)
			}
			_ = n.client.CloseWrite()
			_ = n.target.CloseWrite()
			for _, c := range []*net.TCPConn{n.client, n.target} {
				if _, err := c.Read(make([]byte, 1)); err != io.EOF {
					t.Error(err)
				}
			}
			n.end(reason.TunnelClosed, int64(sent[0]), int64(sent[1]))
		})
	}
}
