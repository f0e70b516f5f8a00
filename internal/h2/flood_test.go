package h2

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"countersign/internal/reason"
)

// TestFloods: each way to make work without use ends the connection; n is how often it takes at most.
func TestFloods(t *testing.T) {
	raw9 := func(p *raw, typ http2.FrameType, flags http2.Flags, id uint32, payload string) error {
		return p.fr.WriteRawFrame(typ, flags, id, []byte(payload))
	}
	for _, test := range []struct {
		name  string
		n     int
		begin func(p *raw)
		send  func(p *raw, i uint32) error
		deaf  bool
	}{
		{name: "F07/rapid reset (CVE-2023-44487)", n: 300, send: func(p *raw, i uint32) error {
			p.headers(2*i+1, true, ":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/wait")
			return p.fr.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		}},
		{name: "F07/resets provoked by window updates (CVE-2025-8671)", n: 110, send: func(p *raw, i uint32) error {
			p.headers(2*i+1, true, ":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/wait")
			return p.fr.WriteWindowUpdate(2*i+1, 0)
		}},
		{name: "F07/resets provoked by data behind the end", n: 110, send: func(p *raw, i uint32) error {
			p.headers(2*i+1, true, ":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/wait")
			return p.fr.WriteData(2*i+1, true, nil)
		}},
		{name: "F07/malformed requests", n: 110, send: func(p *raw, i uint32) error {
			p.headers(2*i+1, true, get("X", "y")...)
			return nil
		}},
		{name: "F07/streams beyond the limit", n: 400, send: func(p *raw, i uint32) error {
			p.headers(2*i+1, true, ":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/wait")
			return nil
		}},
		{name: "F07/CONTINUATION without end (CVE-2023-45288)", n: 70, begin: func(p *raw) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(get()...)})
		}, send: func(p *raw, i uint32) error { return p.fr.WriteContinuation(1, false, p.block("a", "b")) }},
		{name: "F07/CONTINUATION of nothing", n: 70, begin: func(p *raw) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(get()...)})
		}, send: func(p *raw, i uint32) error { return p.fr.WriteContinuation(1, false, nil) }},
		{name: "F07/CONTINUATION of 16 KiB", n: 6, begin: func(p *raw) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(get()...)})
		}, send: func(p *raw, i uint32) error { return p.fr.WriteContinuation(1, false, make([]byte, 16<<10)) }},
		{name: "F07/PING (CVE-2019-9512)", n: 1100, send: func(p *raw, i uint32) error { return p.fr.WritePing(false, [8]byte{}) }},
		{name: "F07/PING, answers not read", n: 980, deaf: true, begin: func(p *raw) {
			p.headers(1, true, ":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/big/100000000")
			synctest.Wait()
		}, send: func(p *raw, i uint32) error { return p.fr.WritePing(false, [8]byte{}) }},
		{name: "F07/PING acknowledgements", n: 1100, send: func(p *raw, i uint32) error { return p.fr.WritePing(true, [8]byte{}) }},
		{name: "F07/SETTINGS (CVE-2019-9515)", n: 110, send: func(p *raw, i uint32) error { return p.fr.WriteSettings() }},
		{name: "F07/SETTINGS acknowledgements", n: 1100, send: func(p *raw, i uint32) error { return p.fr.WriteSettingsAck() }},
		{name: "F07/many settings in a frame", n: 1, send: func(p *raw, i uint32) error {
			return raw9(p, http2.FrameSettings, 0, 0, strings.Repeat("\x00\x03\x00\x00\x00\x01", 1000))
		}},
		{name: "F07/empty DATA (CVE-2019-9518)", n: 250, begin: func(p *raw) { p.headers(1, false, post()...) }, send: func(p *raw, i uint32) error {
			return p.fr.WriteData(1, false, nil)
		}},
		{name: "F07/empty DATA with padding", n: 250, begin: func(p *raw) { p.headers(1, false, post()...) }, send: func(p *raw, i uint32) error {
			return p.fr.WriteDataPadded(1, false, nil, make([]byte, 10))
		}},
		{name: "F07/tiny DATA", n: 1100, begin: func(p *raw) {
			p.headers(1, false, ":method", "POST", ":scheme", "https", ":authority", "a.test", ":path", "/wait")
		}, send: func(p *raw, i uint32) error { return p.fr.WriteData(1, false, []byte("x")) }},
		{name: "F07/PRIORITY (CVE-2019-9513)", n: 1100, send: func(p *raw, i uint32) error {
			return p.fr.WritePriority(2*i+1, http2.PriorityParam{})
		}},
		{name: "F07/unknown frames (CVE-2026-27141)", n: 600, send: func(p *raw, i uint32) error { return raw9(p, 0xfa, 0, 0, "") }},
		{name: "F07/PRIORITY_UPDATE", n: 600, send: func(p *raw, i uint32) error { return raw9(p, 0x10, 0, 0, "\x00\x00\x00\x01u=1") }},
		{name: "F07/WINDOW_UPDATE", n: 1100, send: func(p *raw, i uint32) error { return p.fr.WriteWindowUpdate(0, 1) }},
		{name: "F07/WINDOW_UPDATE on closed streams", n: 1100, begin: func(p *raw) { p.headers(1, true, get()...); synctest.Wait() }, send: func(p *raw, i uint32) error {
			return p.fr.WriteWindowUpdate(1, 1)
		}},
		{name: "F07/RST_STREAM on closed streams", n: 1100, begin: func(p *raw) { p.headers(1, true, get()...); synctest.Wait() }, send: func(p *raw, i uint32) error {
			return p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
		}},
		{name: "F07/GOAWAY", n: 110, send: func(p *raw, i uint32) error { return p.fr.WriteGoAway(0, 0, make([]byte, 1000)) }},
		{name: "F08/one field of 100 KiB", n: 1, send: func(p *raw, i uint32) error {
			b := p.block(append(get(), "a", strings.Repeat("\xff", 100<<10))...)
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:16<<10]})
			for b = b[16<<10:]; len(b) > 0; {
				part := b[:min(len(b), 16<<10)]
				b = b[len(part):]
				if p.fr.WriteContinuation(1, len(b) == 0, part) != nil {
					break
				}
			}
			return nil
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			stop := make(chan struct{})
			bubble(t, Settings{}, func(s *Stream) {
				if string(s.Request.Path) == "/wait" {
					<-stop
					return
				}
				answer(s)
			}, func(p *raw) {
				stop = make(chan struct{})
				if test.deaf {
					p.mu.Lock()
					p.deaf = true
					p.mu.Unlock()
					must(t, p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30}))
					must(t, p.fr.WriteWindowUpdate(0, 1<<30))
				}
				if test.begin != nil {
					test.begin(p)
				}
				for i := range uint32(test.n) {
					if test.send(p, i) != nil {
						break
					}
					if i%50 == 0 {
						synctest.Wait()
					}
				}
				synctest.Wait()
				if test.deaf {
					p.mu.Lock()
					p.deaf = false
					p.mu.Unlock()
					time.Sleep(lastWords + time.Second)
				}
				close(stop)
				if why := p.ends(); why == nil || why.Reason != reason.H2EnhanceYourCalm {
					t.Errorf("ended with %v", why)
				}
				if !test.deaf {
					calm := false
					for _, f := range p.seen() {
						calm = calm || strings.HasPrefix(f, "GOAWAY") && strings.HasSuffix(f, "ENHANCE_YOUR_CALM")
					}
					if !calm {
						t.Errorf("no GOAWAY among %v", p.seen())
					}
				}
			})
		})
	}
}

// TestNoFlood: what ordinary clients do for hours is none.
func TestNoFlood(t *testing.T) {
	for _, test := range []struct {
		name string
		one  func(p *raw, id uint32)
	}{
		{"F23/a third of all requests taken back", func(p *raw, id uint32) {
			p.headers(id, true, get()...)
			p.headers(id+2, true, get()...)
			p.headers(id+4, true, ":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/wait")
			_ = p.fr.WriteRSTStream(id+4, http2.ErrCodeCancel)
			time.Sleep(2 * time.Millisecond) // the handler notices
		}},
		{"F23/a ping and two window updates for each frame of data", func(p *raw, id uint32) {
			p.headers(id, true, ":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/big/100")
			_ = p.fr.WritePing(false, [8]byte{})
			_ = p.fr.WriteWindowUpdate(0, 100)
			_ = p.fr.WriteWindowUpdate(id, 100)
		}},
		{"F23/small messages on a stream", func(p *raw, id uint32) {
			if id == 1 {
				p.headers(1, false, post()...)
			}
			p.send(1, false, "\x00\x00\x00\x00\x01x")
		}},
		{"F23/a ping every ten seconds", func(p *raw, id uint32) {
			_ = p.fr.WritePing(false, [8]byte{})
			time.Sleep(10 * time.Second)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			stop := make(chan struct{})
			bubble(t, Settings{}, func(s *Stream) {
				if string(s.Request.Path) == "/wait" {
					for !s.Gone() {
						time.Sleep(time.Millisecond)
					}
					return
				}
				answer(s)
			}, func(p *raw) {
				must(t, p.fr.WriteWindowUpdate(0, 1<<30))
				id := uint32(1)
				for range 3000 {
					test.one(p, id)
					id += 6
					synctest.Wait()
				}
				time.Sleep(time.Second)
				p.never("GOAWAY")
				p.never("END")
			})
			close(stop)
		})
	}
}

// TestHeaderBomb: fields that are small on the wire and large in memory are counted before they are kept.
func TestHeaderBomb(t *testing.T) {
	t.Run("F08/indexed cookies", func(t *testing.T) {
		heads := 0
		bubble(t, Settings{}, func(s *Stream) { heads = cap(s.head.buf); answer(s) }, func(p *raw) {
			cookie := strings.Repeat("c", 3900)
			p.headers(1, true, get("cookie", cookie)...)
			p.seen()
			// One byte each, 4 KB in memory.
			block := p.block(get()...)
			for range 10_000 {
				block = append(block, 0x80|62)
			}
			must(t, p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, EndStream: true, EndHeaders: true, BlockFragment: block}))
			if got := p.head(3); got != "431 x-reason=header_too_large" {
				t.Errorf("got %q", got)
			}
			if heads > 64<<10 {
				t.Errorf("%d bytes were kept", heads)
			}
			p.headers(5, true, get("cookie", cookie)...) // the compression state is still right
			if got := p.head(5); !strings.HasPrefix(got, "200") {
				t.Errorf("got %q", got)
			}
		})
	})
	for name, block := range map[string]string{
		"F08/table larger than allowed":  "\x3f\xe2\x1f" + "\x82",
		"F08/index beyond the table":     "\xff\xff\xff\xff\x0f",
		"F08/number without end":         "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
		"F08/string longer than it came": "\x00\x7f",
		"F08/bad Huffman code":           "\x00\x84\xff\xff\xff\xff\x01a",
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Settings{}, answer, func(p *raw) {
				must(t, p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true, BlockFragment: []byte(block)}))
				p.want("GOAWAY 1 COMPRESSION_ERROR")
				if why := p.ends(); why.Reason != reason.H2ProtocolError {
					t.Error(why)
				}
			})
		})
	}
}

// TestProtocolErrors ends connections whose frames are wrong.
func TestProtocolErrors(t *testing.T) {
	rawFrame := func(typ http2.FrameType, flags http2.Flags, id uint32, payload string) func(p *raw) {
		return func(p *raw) { _ = p.fr.WriteRawFrame(typ, flags, id, []byte(payload)) }
	}
	for _, test := range []struct {
		name string
		send func(p *raw)
		code string
	}{
		{"E12/DATA before HEADERS", rawFrame(http2.FrameData, 0, 1, "x"), "PROTOCOL_ERROR"},
		{"even stream", func(p *raw) { p.headers(2, true, get()...) }, "PROTOCOL_ERROR"},
		{"number used before", func(p *raw) { p.headers(5, true, get()...); p.headers(3, true, get()...) }, "STREAM_CLOSED"},
		{"HEADERS on stream 0", rawFrame(http2.FrameHeaders, 4, 0, ""), "PROTOCOL_ERROR"},
		{"DATA on stream 0", rawFrame(http2.FrameData, 0, 0, ""), "PROTOCOL_ERROR"},
		{"padding longer than DATA", func(p *raw) { p.headers(1, false, post()...); rawFrame(http2.FrameData, 8, 1, "\x05abcd")(p) }, "PROTOCOL_ERROR"},
		{"padding longer than HEADERS", rawFrame(http2.FrameHeaders, 12, 1, "\x05abcd"), "PROTOCOL_ERROR"},
		{"no padding length", rawFrame(http2.FrameHeaders, 12, 1, ""), "FRAME_SIZE_ERROR"},
		{"short priority", rawFrame(http2.FrameHeaders, 0x24, 1, "abc"), "FRAME_SIZE_ERROR"},
		{"frame too large", rawFrame(http2.FrameData, 0, 1, strings.Repeat("x", 16<<10+1)), "FRAME_SIZE_ERROR"},
		{"unknown frame too large", rawFrame(0xfa, 0, 1, strings.Repeat("x", 16<<10+1)), "FRAME_SIZE_ERROR"},
		{"PUSH_PROMISE", rawFrame(http2.FramePushPromise, 4, 1, "\x00\x00\x00\x02"), "PROTOCOL_ERROR"},
		{"lone CONTINUATION", rawFrame(http2.FrameContinuation, 4, 1, ""), "PROTOCOL_ERROR"},
		{"frame inside a field block", func(p *raw) {
			rawFrame(http2.FrameHeaders, 0, 1, "\x82")(p)
			_ = p.fr.WritePing(false, [8]byte{})
		}, "PROTOCOL_ERROR"},
		{"RST_STREAM for an idle stream", rawFrame(http2.FrameRSTStream, 0, 7, "\x00\x00\x00\x08"), "PROTOCOL_ERROR"},
		{"WINDOW_UPDATE for an idle stream", rawFrame(http2.FrameWindowUpdate, 0, 7, "\x00\x00\x00\x08"), "PROTOCOL_ERROR"},
		{"WINDOW_UPDATE of nought", rawFrame(http2.FrameWindowUpdate, 0, 0, "\x00\x00\x00\x00"), "PROTOCOL_ERROR"},
		{"window too large", rawFrame(http2.FrameWindowUpdate, 0, 0, "\x7f\xff\xff\xff"), "FLOW_CONTROL_ERROR"},
		{"long PING", rawFrame(http2.FramePing, 0, 0, "123456789"), "FRAME_SIZE_ERROR"},
		{"PING on a stream", rawFrame(http2.FramePing, 0, 1, "12345678"), "PROTOCOL_ERROR"},
		{"SETTINGS on a stream", rawFrame(http2.FrameSettings, 0, 1, ""), "PROTOCOL_ERROR"},
		{"SETTINGS of 5 bytes", rawFrame(http2.FrameSettings, 0, 0, "12345"), "FRAME_SIZE_ERROR"},
		{"E29/frame size nought", rawFrame(http2.FrameSettings, 0, 0, "\x00\x05\x00\x00\x00\x00"), "PROTOCOL_ERROR"},
		{"initial window too large", rawFrame(http2.FrameSettings, 0, 0, "\x00\x04\x80\x00\x00\x00"), "FLOW_CONTROL_ERROR"},
		{"enable push of 2", rawFrame(http2.FrameSettings, 0, 0, "\x00\x02\x00\x00\x00\x02"), "PROTOCOL_ERROR"},
		{"short GOAWAY", rawFrame(http2.FrameGoAway, 0, 0, "1234567"), "FRAME_SIZE_ERROR"},
		{"GOAWAY on a stream", rawFrame(http2.FrameGoAway, 0, 1, "12345678"), "PROTOCOL_ERROR"},
	} {
		t.Run(test.name, func(t *testing.T) {
			stop := make(chan struct{})
			bubble(t, Settings{}, func(s *Stream) {
				if string(s.Request.Path) == "/wait" {
					<-stop
					return
				}
				answer(s)
			}, func(p *raw) {
				stop = make(chan struct{})
				test.send(p)
				synctest.Wait()
				close(stop)
				found := false
				for _, f := range p.seen() {
					found = found || strings.HasPrefix(f, "GOAWAY") && strings.HasSuffix(f, test.code)
				}
				why := p.ends()
				if !found || why == nil || why.Reason != reason.H2ProtocolError {
					t.Errorf("%v; ended with %v", p.seen(), why)
				}
				p.want("END")
			})
		})
	}
}

// TestActivity: what concerns only the connection is no activity.
func TestActivity(t *testing.T) {
	t.Run("F06/pings", func(t *testing.T) {
		bubble(t, Settings{}, answer, func(p *raw) {
			p.headers(1, true, get()...)
			p.seen()
			at := p.conn.LastActivity()
			for range 20 {
				time.Sleep(10 * time.Second)
				must(t, p.fr.WritePing(false, [8]byte{}))
				must(t, p.fr.WriteSettings())
				must(t, p.fr.WriteWindowUpdate(0, 1))
				must(t, p.fr.WriteRawFrame(0xfa, 0, 0, nil))
			}
			p.seen()
			if got := p.conn.LastActivity(); got != at {
				t.Errorf("activity moved by %d ms", got-at)
			}
			p.headers(3, true, get()...)
			p.seen()
			if got := p.conn.LastActivity(); got == at {
				t.Error("a request is activity")
			}
		})
	})
	t.Run("F02/half a head", func(t *testing.T) {
		bubble(t, Settings{}, answer, func(p *raw) {
			must(t, p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(get()...)}))
			synctest.Wait()
			at := p.conn.HeadSince()
			time.Sleep(10 * time.Second)
			if at == 0 || time.Now().UnixMilli()-p.conn.HeadSince() < 10_000 {
				t.Errorf("began %d, now %d", at, p.conn.HeadSince())
			}
			must(t, p.fr.WriteContinuation(1, true, nil))
			p.seen()
			if p.conn.HeadSince() != 0 {
				t.Error("the head is complete")
			}
		})
	})
}
