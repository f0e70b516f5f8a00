package h2

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"countersign/internal/memnet"
	"countersign/internal/message"
	"countersign/internal/reason"
)

// target runs f with our client and a raw server of it, in a bubble.
func target(t *testing.T, s Settings, f func(p *raw)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe("192.0.2.1:50000", "192.0.2.2:8080")
		c := Client(theirs, s)
		preface := make([]byte, len(http2.ClientPreface))
		served := make(chan error, 1)
		go func() { served <- c.Serve() }()
		_, err := io.ReadFull(ours, preface)
		must(t, err)
		if string(preface) != http2.ClientPreface {
			t.Fatalf("preface %q", preface)
		}
		p := newRaw(t, ours)
		p.conn, p.served = c, served
		p.want("SETTINGS false")
		f(p)
		ours.Close()
		c.Abort()
		synctest.Wait()
	})
}

// hello is the server's part of the preface.
func (p *raw) hello(settings ...http2.Setting) {
	must(p.t, p.fr.WriteSettings(settings...))
	must(p.t, p.fr.WriteSettingsAck())
	synctest.Wait()
	p.forget()
}

// ask sends a request over our client.
func (p *raw) ask(method string, body []byte, end bool) *Stream {
	p.t.Helper()
	s, err := p.conn.Open()
	must(p.t, err)
	must(p.t, s.WriteHead([]message.Field{field(":method", method), field(":scheme", "http"), field(":authority", "a.test"), field(":path", "/")}, body, end))
	synctest.Wait()
	return s
}

// TestHostileTarget: what a server may do wrong ends the stream or the connection, with a reason that blames it.
func TestHostileTarget(t *testing.T) {
	frame := func(typ http2.FrameType, flags http2.Flags, id uint32, payload string) func(p *raw) {
		return func(p *raw) { _ = p.fr.WriteRawFrame(typ, flags, id, []byte(payload)) }
	}
	head := func(pairs ...string) func(p *raw) { return func(p *raw) { p.headers(1, false, pairs...) } }
	for _, test := range []struct {
		name   string
		method string
		send   func(p *raw)
		why    reason.Reason // of the response head, or of its body
		frame  string        // that we send
	}{
		{"E29/frame size nought", "GET", frame(http2.FrameSettings, 0, 0, "\x00\x05\x00\x00\x00\x00"), reason.UpstreamBadResponse, "GOAWAY 0 PROTOCOL_ERROR"},
		{"E29/push that was never enabled", "GET", frame(http2.FrameSettings, 0, 0, "\x00\x02\x00\x00\x00\x01"), reason.UpstreamBadResponse, "GOAWAY 0 PROTOCOL_ERROR"},
		{"E29/PUSH_PROMISE", "GET", frame(http2.FramePushPromise, 4, 1, "\x00\x00\x00\x02\x82"), reason.UpstreamBadResponse, "GOAWAY 0 PROTOCOL_ERROR"},
		{"E29/stream of its own", "GET", func(p *raw) { p.headers(2, true, ":status", "200") }, reason.UpstreamBadResponse, "GOAWAY 0 PROTOCOL_ERROR"},
		{"E29/answer to what was not asked", "GET", func(p *raw) { p.headers(3, true, ":status", "200") }, reason.UpstreamBadResponse, "GOAWAY 0 PROTOCOL_ERROR"},
		{"E29/DATA before HEADERS", "GET", func(p *raw) { p.send(1, false, "x") }, reason.UpstreamBadResponse, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E29/no status", "GET", head("a", "b"), reason.UpstreamBadResponse, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E29/two statuses", "GET", head(":status", "200", ":status", "200"), reason.UpstreamBadResponse, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E29/status 099", "GET", head(":status", "099"), reason.UpstreamBadResponse, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E29/status 1000", "GET", head(":status", "1000"), reason.UpstreamBadResponse, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E29/status 101", "GET", head(":status", "101"), reason.UpstreamBadResponse, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E29/request's pseudo-field", "GET", head(":status", "200", ":path", "/"), reason.UpstreamBadResponse, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E29/connection field", "GET", head(":status", "200", "connection", "close"), reason.UpstreamBadResponse, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E29/CR LF in a value", "GET", head(":status", "200", "a", "b\r\nset-cookie: x"), reason.UpstreamBadResponse, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E29/upper case", "GET", head(":status", "200", "Server", "b"), reason.UpstreamBadResponse, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E29/two lengths", "GET", head(":status", "200", "content-length", "1", "content-length", "2"), reason.UpstreamBadResponse, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E29/length with the end", "GET", func(p *raw) { p.headers(1, true, ":status", "200", "content-length", "5") }, reason.UpstreamBadResponse, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E29/interim response that ends", "GET", func(p *raw) { p.headers(1, true, ":status", "103") }, reason.UpstreamBadResponse, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E29/large head", "GET", head(":status", "200", "a", strings.Repeat("b", 33<<10)[:16000], "b", strings.Repeat("b", 16000), "c", strings.Repeat("b", 16000)), reason.UpstreamBadResponse, ""},
		{"E20/interim flood", "GET", func(p *raw) {
			for range 20 {
				p.headers(1, false, ":status", "103")
			}
		}, reason.UpstreamInterimFlood, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E29/more than content-length", "GET", func(p *raw) {
			p.headers(1, false, ":status", "200", "content-length", "3")
			p.send(1, true, "abcd")
		}, reason.UpstreamBadResponse, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E29/less than content-length", "GET", func(p *raw) {
			p.headers(1, false, ":status", "200", "content-length", "5")
			p.send(1, true, "abcd")
		}, reason.UpstreamTruncated, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E29/body of a HEAD", "HEAD", func(p *raw) {
			p.headers(1, false, ":status", "200", "content-length", "4")
			p.send(1, true, "abcd")
		}, reason.UpstreamBadResponse, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E29/body of a 204", "GET", func(p *raw) {
			p.headers(1, false, ":status", "204")
			p.send(1, true, "abcd")
		}, reason.UpstreamBadResponse, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E29/second final head", "GET", func(p *raw) {
			p.headers(1, false, ":status", "200")
			p.headers(1, false, ":status", "200")
		}, reason.UpstreamBadResponse, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"E21/reset in the body", "GET", func(p *raw) {
			p.headers(1, false, ":status", "200")
			p.send(1, false, "abc")
			_ = p.fr.WriteRSTStream(1, http2.ErrCodeInternal)
		}, reason.UpstreamTruncated, ""},
		{"E21/end of the connection in the body", "GET", func(p *raw) {
			p.headers(1, false, ":status", "200")
			p.send(1, false, "abc")
			synctest.Wait()
			_ = p.nc.CloseWrite()
		}, reason.UpstreamClosed, ""},
		{"E29/reset before the head", "GET", func(p *raw) { _ = p.fr.WriteRSTStream(1, http2.ErrCodeInternal) }, reason.UpstreamClosed, ""},
		{"F07/pings", "GET", func(p *raw) {
			for range capacity + debt + 10 {
				if p.fr.WritePing(false, [8]byte{}) != nil {
					break
				}
			}
		}, reason.UpstreamBadResponse, "GOAWAY 0 ENHANCE_YOUR_CALM"},
		{"F07/empty DATA", "GET", func(p *raw) {
			p.headers(1, false, ":status", "200")
			for range 2000 {
				if p.fr.WriteData(1, false, nil) != nil {
					break
				}
			}
		}, reason.UpstreamBadResponse, "GOAWAY 0 ENHANCE_YOUR_CALM"},
	} {
		t.Run(test.name, func(t *testing.T) {
			target(t, Settings{}, func(p *raw) {
				p.hello()
				s := p.ask(test.method, nil, true)
				test.send(p)
				synctest.Wait()
				var resp message.Response
				var err error
				for err == nil && resp.Status < 200 {
					err = s.ReadResponse(&resp)
				}
				if err == nil {
					_, err = io.ReadAll(s)
				}
				isRefusal(t, err, test.why)
				if test.frame != "" {
					p.want(test.frame)
				}
				if s.Unprocessed() || s.Done() {
					t.Errorf("unprocessed %v, done %v", s.Unprocessed(), s.Done())
				}
				s.Release()
				if p.conn.Streams() != 0 {
					t.Error("the stream is still counted")
				}
			})
		})
	}
	t.Run("E29/no SETTINGS first", func(t *testing.T) {
		target(t, Settings{}, func(p *raw) {
			must(t, p.fr.WritePing(false, [8]byte{}))
			p.want("GOAWAY 0 PROTOCOL_ERROR")
			if why := p.ends(); why.Reason != reason.UpstreamBadResponse {
				t.Error(why)
			}
		})
	})
	t.Run("E29/an HTTP/1.1 server", func(t *testing.T) {
		target(t, Settings{}, func(p *raw) {
			_, err := io.WriteString(p.nc, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
			must(t, err)
			if why := p.ends(); why.Reason != reason.UpstreamBadResponse {
				t.Error(why)
			}
		})
	})
}

// TestUnprocessed: only what the server says it did not do may be sent again.
func TestUnprocessed(t *testing.T) {
	t.Run("E29/GOAWAY", func(t *testing.T) {
		target(t, Settings{}, func(p *raw) {
			p.hello()
			a, b := p.ask("POST", nil, true), p.ask("POST", nil, true)
			must(t, p.fr.WriteGoAway(1, http2.ErrCodeNo, []byte("bye")))
			synctest.Wait()
			var resp message.Response
			isRefusal(t, b.ReadResponse(&resp), reason.UpstreamClosed)
			if a.Unprocessed() || !b.Unprocessed() || a.Gone() || !b.Gone() {
				t.Error("which of them was processed is wrong")
			}
			if _, err := p.conn.Open(); !errors.Is(err, ErrGoingAway) {
				t.Error(err)
			}
			if p.conn.Room() >= 0 {
				t.Error("there is room")
			}
			p.headers(1, true, ":status", "200")
			must(t, a.ReadResponse(&resp))
			a.Release()
			b.Release()
			if why := p.ends(); why != nil {
				t.Error(why)
			}
		})
	})
	t.Run("REFUSED_STREAM", func(t *testing.T) {
		target(t, Settings{}, func(p *raw) {
			p.hello()
			s := p.ask("POST", nil, true)
			must(t, p.fr.WriteRSTStream(1, http2.ErrCodeRefusedStream))
			synctest.Wait()
			var resp message.Response
			isRefusal(t, s.ReadResponse(&resp), reason.UpstreamClosed)
			if !s.Unprocessed() {
				t.Error("it was not processed")
			}
			s.Release()
		})
	})
}

func TestOpen(t *testing.T) {
	target(t, Settings{}, func(p *raw) {
		if p.conn.Room() != 1 {
			t.Errorf("room for %d before the settings came", p.conn.Room())
		}
		p.hello(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 2}, http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1})
		if !p.conn.PeerExtendedConnect() {
			t.Error("no extended CONNECT")
		}
		a, err := p.conn.Open()
		must(t, err)
		b := p.ask("GET", nil, true)
		if _, err := p.conn.Open(); !errors.Is(err, ErrFull) || p.conn.Room() != 0 {
			t.Error(err, p.conn.Room())
		}
		a.Release() // never used: nothing is sent
		p.never("RST_STREAM")
		c := p.ask("GET", nil, true)
		if b.ID() != 1 || c.ID() != 3 {
			t.Error(b.ID(), c.ID())
		}
		c.Release()
		p.want("RST_STREAM 3 CANCEL")
		// What still comes on it was sent before the server knew.
		p.headers(3, false, ":status", "200")
		p.send(3, true, strings.Repeat("x", 10_000))
		p.headers(1, true, ":status", "200")
		var resp message.Response
		must(t, b.ReadResponse(&resp))
		if resp.Status != 200 || resp.Framing != message.NoBody || !b.Done() {
			t.Errorf("%+v", resp)
		}
		b.Release()
		p.never("GOAWAY")
	})
}

// TestResponse: what is in order.
func TestResponse(t *testing.T) {
	target(t, Settings{}, func(p *raw) {
		p.hello()
		s := p.ask("POST", []byte("body"), true)
		p.want("DATA 1 4")
		p.headers(1, false, ":status", "103", "link", "</a>")
		p.headers(1, false, ":status", "200", "content-length", "3", "server", "x", "trailer", "y")
		p.send(1, false, "abc")
		p.headers(1, true, "y", "z", "content-length", "9")
		synctest.Wait()
		var resp message.Response
		must(t, s.ReadResponse(&resp))
		if resp.Status != 103 || len(resp.Fields) != 1 || resp.Framing != message.NoBody {
			t.Errorf("%+v", resp)
		}
		must(t, s.ReadResponse(&resp))
		if resp.Status != 200 || resp.Framing != message.Length || resp.ContentLength != 3 || !resp.KeepAlive || resp.Minor != 1 {
			t.Errorf("%+v", resp)
		}
		if f := resp.Fields; len(f) != 3 || !f[0].Hop || f[1].Hop || !f[2].Hop {
			t.Errorf("%v", f)
		}
		b, ok := s.Buffered()
		if string(b) != "abc" || !ok || !s.Done() || s.Total() != 3 {
			t.Errorf("%q %v", b, ok)
		}
		if tr := s.Trailers(); len(tr) != 1 || string(tr[0].Name) != "y" { // content-length is dropped (E06)
			t.Errorf("%v", tr)
		}
		s.Release()

		s = p.ask("HEAD", nil, true)
		p.headers(3, true, ":status", "200", "content-length", "1000")
		synctest.Wait()
		must(t, s.ReadResponse(&resp))
		if resp.Framing != message.NoBody || resp.ContentLength != 1000 {
			t.Errorf("%+v", resp)
		}
		s.Release()

		// A server that has answered may do without the rest of the request (RFC 9113 section 8.1).
		s = p.ask("POST", []byte("some"), false)
		p.headers(5, false, ":status", "413")
		p.send(5, true, "no")
		must(t, p.fr.WriteRSTStream(5, http2.ErrCodeNo))
		synctest.Wait()
		must(t, s.ReadResponse(&resp))
		got, err := io.ReadAll(s)
		if resp.Status != 413 || string(got) != "no" || err != nil || !s.Done() {
			t.Errorf("%d %q %v", resp.Status, got, err)
		}
		if _, err := s.Write([]byte("more")); err == nil {
			t.Error("a write to a stream that was reset")
		}
		s.Release()

		// The wait for a head ends with the deadline.
		s = p.ask("GET", nil, true)
		must(t, s.SetReadDeadline(time.Now().Add(time.Second)))
		if err := s.ReadResponse(&resp); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		s.Release()
		p.want("RST_STREAM 7 CANCEL")
	})
}

// TestSlowReader: a stream that is not read holds up no other.
func TestSlowReader(t *testing.T) {
	target(t, Settings{}, func(p *raw) {
		p.hello()
		for range 8 {
			p.ask("GET", nil, true)
		}
		last := p.ask("GET", nil, true)
		for id := uint32(1); id <= 15; id += 2 {
			p.headers(id, false, ":status", "200")
			for range 16 {
				p.send(id, false, strings.Repeat("x", 16<<10))
			}
			synctest.Wait()
		}
		p.headers(17, false, ":status", "200")
		p.send(17, true, "here")
		synctest.Wait()
		var resp message.Response
		must(t, last.ReadResponse(&resp))
		if b, ok := last.Buffered(); !ok || string(b) != "here" {
			t.Errorf("%q", b)
		}
		p.never("GOAWAY")
		p.never("RST_STREAM")
	})
}
