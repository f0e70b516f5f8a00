package h2

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

	"countersign/internal/reason"
)

// TestBlock is about what a field section takes, and what is known of one that is too large.
func TestBlock(t *testing.T) {
	s := Settings{}
	s.defaults(false)
	t.Run("F08/little more than its bytes", func(t *testing.T) {
		for _, n := range []int{10, 100, 1000, 3000, 4001} {
			value, fields := strings.Repeat("v", n), 0
			stored := map[*byte]int{} // the ends of buffers
			b := &block{kind: request, limits: &s, buf: make([]byte, 0, 2<<10)}
			for ; b.size+n+40 < s.HeaderBytes && fields < s.Fields; fields++ {
				b.add(hpack.HeaderField{Name: "x-1", Value: value})
				stored[&b.buf[:cap(b.buf)][cap(b.buf)-1]] = cap(b.buf)
			}
			total := 0
			for _, size := range stored {
				total += size
			}
			if b.over != reason.Unset || total > 2*fields*(n+3)+4<<10 {
				t.Errorf("%d fields of %d bytes take %d", fields, n, total)
			}
			for i, f := range b.fields {
				if string(f.Name) != "x-1" || string(f.Value) != value {
					t.Fatalf("field %d is %q", i, f.Name)
				}
			}
		}
	})
	t.Run("F11/the record says for what too much was sent", func(t *testing.T) {
		b := &block{kind: request, limits: &s}
		for _, f := range [][2]string{{":method", "GET"}, {":path", "/a?b=c"}, {"x", strings.Repeat("v", s.HeaderBytes)}} {
			b.add(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		st := new(Stream)
		why := b.toRequest(st, true)
		if got := fmt.Sprintf("%v %v %s %s", why, st.Refusal.Reason, st.Request.Path, st.Request.Query); got != "<nil> header_too_large /a b=c" {
			t.Errorf("got %q", got)
		}
	})
}
