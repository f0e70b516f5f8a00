//go:build !race

package h2

import (
	"io"
	"net"
	"testing"

	"countersign/internal/message"
	"countersign/internal/testalloc"
)

// These tests are not built with the race detector, which allocates.

// exchanger makes requests with our client to our server.
type exchanger struct {
	t    *testing.T
	c    *Conn
	part []byte
	into []byte
	resp message.Response
}

// exchange sends a request with a body of up bytes, and reads an answer of down bytes, which its handler has to send.
func (x *exchanger) exchange(ask []message.Field, up, down int) {
	s, err := x.c.Open()
	must(x.t, err)
	must(x.t, s.WriteHead(ask, nil, up == 0))
	for n := up; n > 0; {
		m, err := s.Write(x.part[:min(n, len(x.part))])
		must(x.t, err)
		n -= m
	}
	if up > 0 {
		must(x.t, s.End(nil))
	}
	must(x.t, s.ReadResponse(&x.resp))
	got := 0
	for {
		n, err := s.Read(x.into)
		got += n
		if err == io.EOF {
			break
		}
		must(x.t, err)
	}
	if got != down {
		x.t.Fatalf("%d bytes, expected %d", got, down)
	}
	s.Release()
}

// TestAllocations: a request allocates nothing, on either side, and the bytes of a body nothing but what belongs to each
// WINDOW_UPDATE.
func TestAllocations(t *testing.T) {
	head := []message.Field{field(":status", "200"), field("Content-Type", "text/plain")}
	part, into := make([]byte, 48<<10), make([]byte, 48<<10)
	down := 128 // of the next answer; the client's request comes after it is set
	addr := listen(t, Settings{}, func(s *Stream) {
		for {
			if _, err := s.Read(into); err != nil {
				break
			}
		}
		_ = s.WriteHead(head, nil, false)
		for n := down; n > 0; {
			m, err := s.Write(part[:min(n, len(part))])
			if err != nil {
				return
			}
			n -= m
		}
		_ = s.End(nil)
	})
	nc, err := net.Dial("tcp", addr)
	must(t, err)
	c := Client(nc, Settings{})
	served := make(chan struct{})
	go func() { defer close(served); _ = c.Serve() }()
	defer func() { c.Abort(); <-served }()
	<-c.Ready()
	x := &exchanger{t: t, c: c, part: make([]byte, 48<<10), into: make([]byte, 48<<10)}
	ask := func(method, scheme string) []message.Field {
		return []message.Field{field(":method", method), field(":scheme", scheme), field(":authority", "www.a.test"), field(":path", "/"), field("accept", "*/*")}
	}

	for _, q := range []struct{ method, scheme string }{
		{"GET", "http"},
		{"GET", "https"},
		{"POST", "https"},
		{"POST", "http"}, // these two fields have the same hash in nameCache
	} {
		t.Run("request "+q.method+" "+q.scheme, func(t *testing.T) {
			fields := ask(q.method, q.scheme)
			n := testalloc.PerCall(500, func() { x.exchange(fields, 0, 128) })
			if t.Logf("%.3f allocations", n); n > 0.05 {
				t.Errorf("a request and its answer allocate %.3f objects; expected none", n)
			}
		})
	}

	const most = 8 << 20
	up, from := ask("POST", "https"), ask("GET", "https")
	for _, b := range []struct {
		name     string
		fields   []message.Field
		up, down int
		updates  int // WINDOW_UPDATE frames: one for each half of the stream's window, and of the connection's
	}{
		{"upload", up, most, 128, most/(defaultServerStreamWindow/2) + most/(defaultServerWindow/2)},
		{"download", from, 0, most, most/(defaultClientStreamWindow/2) + most/(defaultClientWindow/2)},
	} {
		t.Run(b.name, func(t *testing.T) {
			down = b.down
			n := testalloc.PerCall(2, func() { x.exchange(b.fields, b.up, b.down) })
			// Each WINDOW_UPDATE starts the goroutine that writes it, and may start the one that writes what it allows; and
			// x/net makes an object of the frame that came.
			bound := 3*b.updates + 8
			if t.Logf("%d MiB: %.1f allocations", most>>20, n); n > float64(bound) {
				t.Errorf("%d bytes allocate %.1f objects; expected at most %d, which are 3 for each of %d WINDOW_UPDATE and no other", most, n, bound, b.updates)
			}
		})
	}
}
