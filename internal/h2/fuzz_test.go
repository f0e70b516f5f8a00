package h2

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"countersign/internal/memnet"
	"countersign/internal/message"
	"countersign/internal/reason"
)

// FuzzServer: whatever a client sends, the connection ends when the client does, with nothing left behind.
func FuzzServer(f *testing.F) {
	seed := func(write func(fr *http2.Framer, block func(pairs ...string) []byte)) {
		var b, h bytes.Buffer
		fr := http2.NewFramer(&b, nil)
		fr.AllowIllegalWrites = true
		enc := hpack.NewEncoder(&h)
		_ = fr.WriteSettings()
		write(fr, func(pairs ...string) []byte {
			h.Reset()
			for i := 0; i < len(pairs); i += 2 {
				_ = enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
			}
			return h.Bytes()
		})
		f.Add(b.Bytes())
	}
	seed(func(fr *http2.Framer, block func(...string) []byte) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: block(post("content-length", "3", "cookie", "a", "cookie", "b")...)})
		_ = fr.WriteData(1, false, []byte("ab"))
		_ = fr.WriteDataPadded(1, false, []byte("c"), []byte{0})
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true, BlockFragment: block("x", "y")})
		_ = fr.WritePing(false, [8]byte{})
		_ = fr.WriteWindowUpdate(0, 100)
	})
	seed(func(fr *http2.Framer, block func(...string) []byte) {
		b := block(get()...)
		_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, BlockFragment: b[:4], Priority: http2.PriorityParam{StreamDep: 3}})
		_ = fr.WriteContinuation(1, true, b[4:])
		_ = fr.WriteWindowUpdate(1, 5)
		_ = fr.WriteRSTStream(1, http2.ErrCodeCancel)
		_ = fr.WritePriority(5, http2.PriorityParam{StreamDep: 1})
		_ = fr.WriteGoAway(0, 0, []byte("x"))
		_ = fr.WriteRawFrame(0xee, 1, 0, []byte("abc"))
	})
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := memnet.Pipe("192.0.2.1:50000", "192.0.2.2:443")
		c := Server(theirs, Settings{ExtendedConnect: true, BodyBytes: 1000, Fields: 20}, answer)
		done := make(chan error, 1)
		go func() { done <- c.Serve(); theirs.Close() }()
		go func() { _, _ = io.Copy(io.Discard, ours) }()
		_, _ = io.WriteString(ours, http2.ClientPreface)
		_, _ = ours.Write(data)
		_ = ours.CloseWrite()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatal("the connection does not end")
		}
		if n := c.Streams(); n != 0 {
			t.Fatalf("%d streams are left", n)
		}
		if c.running != 0 || len(c.streams) != 0 || len(c.queue) != 0 || len(c.idle) != 0 {
			t.Fatalf("%d running, %d streams, %d queued, %d idle", c.running, len(c.streams), len(c.queue), len(c.idle))
		}
		ours.Close()
	})
}

// FuzzRequestHead: a head that is taken has nothing in it that means something else in HTTP/1.1.
func FuzzRequestHead(f *testing.F) {
	f.Add("GET", "/", "a.test", "x", "y", "cookie", "z")
	f.Add("CONNECT", "/a?b", "a.test:1", "content-length", "1", "host", "a.test:1")
	f.Add("OPTIONS", "*", "", "host", "h", "te", "trailers")
	f.Add("#", "/", "0", "0", "0", "0", "0") // a token may have it (RFC 9110 section 5.6.2); a target may not
	f.Fuzz(func(t *testing.T, method, path, authority, n1, v1, n2, v2 string) {
		settings := Settings{ExtendedConnect: true}
		settings.defaults(false)
		b := newBlock(request, false, &settings)
		for _, f := range []hpack.HeaderField{{Name: ":method", Value: method}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: path}, {Name: ":authority", Value: authority}, {Name: n1, Value: v1}, {Name: n2, Value: v2}} {
			b.add(f)
		}
		s := new(Stream)
		if bad := b.toRequest(s, false); bad != nil {
			if bad.Reason == reason.Unset {
				t.Error("refused without a reason")
			}
			return
		}
		r := &s.Request
		if s.Refusal != nil && s.Refusal.Reason == reason.HeaderTooLarge {
			return
		}
		target := string(r.Path) + "?" + string(r.Query)
		line := string(r.Method) + " " + target
		if s.Refusal == nil && (!message.IsToken(r.Method) || strings.ContainsAny(target, "\r\n\x00#") || strings.Count(line, " ") != 1 || r.Path[0] != '/' && string(r.Path) != "*" || len(r.Host) == 0) {
			t.Errorf("request line %q, host %q", line, r.Host)
		}
		for _, f := range r.Fields {
			if !message.IsToken(f.Name) || !message.IsValue(f.Value) || bytes.ContainsAny(f.Name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ:") {
				t.Errorf("field %q: %q", f.Name, f.Value)
			}
			switch string(f.Name) {
			case "connection", "transfer-encoding", "upgrade", "host", "keep-alive":
				t.Errorf("%s got through", f.Name)
			}
		}
	})
}
