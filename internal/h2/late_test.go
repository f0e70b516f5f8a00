package h2

import (
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"countersign/internal/message"
)

// TestLateFrames: what a target sent before it knew that requests were aborted ends nothing for those that share the
// connection, and a target that does not stop is ended all the same.
func TestLateFrames(t *testing.T) {
	const n = 300
	aborted := func(p *raw) {
		p.hello(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1000})
		var all []*Stream
		for range n {
			all = append(all, p.ask("GET", nil, true))
		}
		for _, s := range all {
			s.Reset(http2.ErrCodeCancel)
			s.Release()
		}
		p.seen()
		p.forget()
	}
	t.Run("F15/300 downloads aborted at once", func(t *testing.T) {
		target(t, Settings{Streams: n + 1}, func(p *raw) {
			aborted(p)
			for i := range n {
				id := uint32(2*i + 1)
				p.headers(id, false, ":status", "200")
				for range 4 {
					p.send(id, false, strings.Repeat("x", 4096))
				}
				_ = p.fr.WriteRSTStream(id, http2.ErrCodeCancel)
			}
			s := p.ask("GET", nil, true)
			p.headers(s.ID(), true, ":status", "204")
			var resp message.Response
			if err := s.ReadResponse(&resp); err != nil || resp.Status != 204 {
				t.Errorf("%d %v: the connection has ended for others", resp.Status, err)
			}
		})
	})
	t.Run("F18/a target that does not stop", func(t *testing.T) {
		target(t, Settings{StreamWindow: 1 << 16, Streams: n}, func(p *raw) {
			aborted(p)
			for range n*16 + 2000 {
				if p.fr.WriteData(1, false, make([]byte, 4096)) != nil {
					break
				}
			}
			if _, err := p.conn.Open(); err == nil {
				t.Errorf("still open: %q", p.seen())
			}
		})
	})
}
