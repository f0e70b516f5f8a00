package h2

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"countersign/internal/message"
	"countersign/internal/reason"
)

// TestMalformed: what RFC 9113 calls malformed resets the stream, reaches no handler, and leaves the connection in order.
func TestMalformed(t *testing.T) {
	long := strings.Repeat("M", 33)
	for _, test := range []struct {
		name   string
		fields []string
		why    reason.Reason
	}{
		{"E13/upper-case name", get("X-Upper", "1"), reason.BadHeader},
		{"E13/empty name", get("", "1"), reason.BadHeader},
		{"E13/space in a name", get("a b", "1"), reason.BadHeader},
		{"E13/colon in a name", get("a:b", "1"), reason.BadHeader},
		{"E13/CR LF in a name", get("a\r\nb", "1"), reason.BadHeader},
		{"E13/byte above 0x7f in a name", get("a\xff", "1"), reason.BadHeader},
		{"E13/CR in a value", get("a", "1\rb"), reason.BadHeader},
		{"E13/LF in a value", get("a", "1\nb: c"), reason.BadHeader},
		{"E13/NUL in a value", get("a", "1\x00"), reason.BadHeader},
		{"E13/DEL in a value", get("a", "1\x7f"), reason.BadHeader},
		{"E13/leading space", get("a", " 1"), reason.BadHeader},
		{"E13/trailing tab", get("a", "1\t"), reason.BadHeader},
		{"E13/connection", get("connection", "close"), reason.BadHeader},
		{"E13/transfer-encoding", get("transfer-encoding", "chunked"), reason.BadHeader},
		{"E13/upgrade", get("upgrade", "websocket"), reason.BadHeader},
		{"E13/keep-alive", get("keep-alive", "1"), reason.BadHeader},
		{"E13/proxy-connection", get("proxy-connection", "close"), reason.BadHeader},
		{"E13/te other than trailers", get("te", "trailers, deflate"), reason.BadHeader},
		{"E13/two methods", get(":method", "POST"), reason.BadHeader},
		{"E13/two paths", append([]string{":path", "/b"}, get()...), reason.BadHeader},
		{"E13/two authorities", append([]string{":authority", "b.test"}, get()...), reason.BadHeader},
		{"E13/late pseudo-field", []string{":method", "GET", ":scheme", "https", "a", "b", ":path", "/", ":authority", "a.test"}, reason.BadHeader},
		{"E13/unknown pseudo-field", append([]string{":user", "me"}, get()...), reason.BadHeader},
		{"E13/status in a request", append([]string{":status", "200"}, get()...), reason.BadHeader},
		{"E13/no method", []string{":scheme", "https", ":authority", "a.test", ":path", "/"}, reason.BadRequestLine},
		{"E13/no scheme", []string{":method", "GET", ":authority", "a.test", ":path", "/"}, reason.BadRequestLine},
		{"E13/no path", []string{":method", "GET", ":scheme", "https", ":authority", "a.test"}, reason.BadRequestLine},
		{"E13/empty path", []string{":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", ""}, reason.BadRequestLine},
		{"E13/empty method", []string{":method", "", ":scheme", "https", ":authority", "a.test", ":path", "/"}, reason.BadRequestLine},
		{"E13/method with a space", []string{":method", "GET /admin", ":scheme", "https", ":authority", "a.test", ":path", "/"}, reason.BadRequestLine},
		{"E13/long method", []string{":method", long, ":scheme", "https", ":authority", "a.test", ":path", "/"}, reason.BadRequestLine},
		{"E13/CR LF in the method", []string{":method", "GET\r\n", ":scheme", "https", ":authority", "a.test", ":path", "/"}, reason.BadHeader},
		{"E13/CR LF in the path", []string{":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/ HTTP/1.1\r\nX: y"}, reason.BadHeader},
		{"E13/CR LF in the authority", []string{":method", "GET", ":scheme", "https", ":authority", "a.test\r\n", ":path", "/"}, reason.BadHeader},
		{"E16/CONNECT with a path", []string{":method", "CONNECT", ":scheme", "https", ":authority", "a.test", ":path", "/"}, reason.BadRequestLine},
		{"E16/CONNECT without an authority", []string{":method", "CONNECT"}, reason.BadRequestLine},
		{"E33/protocol that was not announced", []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "a.test", ":path", "/"}, reason.BadHeader},
		{"E12/content-length with the end in the head", get("content-length", "10"), reason.BodyTruncated},
	} {
		t.Run(test.name, func(t *testing.T) {
			calls := 0
			bubble(t, Settings{}, func(s *Stream) { calls++; answer(s) }, func(p *raw) {
				p.headers(1, true, test.fields...)
				p.want("RST_STREAM 1 PROTOCOL_ERROR")
				if calls != 0 {
					t.Error("a handler saw it")
				}
				if got := p.lastRefused(); got != test.why {
					t.Errorf("refused as %v, want %v", got, test.why)
				}
				p.headers(3, true, get()...)
				if got := p.head(3); !strings.HasPrefix(got, "200") {
					t.Errorf("the next request got %q", got)
				}
			})
		})
	}
}

// TestRefused: what is framed well and refused all the same gets a status.
func TestRefused(t *testing.T) {
	path := func(p string) []string {
		return []string{":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", p}
	}
	many := get()
	for i := range 101 {
		many = append(many, fmt.Sprintf("x-%d", i), "1")
	}
	cookies := get()
	for i := range 1000 {
		cookies = append(cookies, "cookie", fmt.Sprintf("c%d=1", i))
	}
	for _, test := range []struct {
		name     string
		settings Settings
		end      bool
		fields   []string
		why      reason.Reason
	}{
		{"E14/host differs from authority", Settings{}, true, get("host", "b.test"), reason.HostAmbiguous},
		{"E14/host in other case", Settings{}, true, get("host", "A.test"), reason.HostAmbiguous},
		{"E14/two hosts", Settings{}, true, get("host", "a.test", "host", "a.test"), reason.HostAmbiguous},
		{"E14/no host at all", Settings{}, true, []string{":method", "GET", ":scheme", "https", ":path", "/"}, reason.HostMissing},
		{"E14/empty authority", Settings{}, true, []string{":method", "GET", ":scheme", "https", ":authority", "", ":path", "/"}, reason.HostMissing},
		{"E13/scheme ftp", Settings{}, true, []string{":method", "GET", ":scheme", "ftp", ":authority", "a.test", ":path", "/"}, reason.BadRequestLine},
		{"E13/path without a slash", Settings{}, true, path("admin"), reason.BadRequestLine},
		{"E13/absolute path", Settings{}, true, path("https://b.test/"), reason.BadRequestLine},
		{"E13/star with GET", Settings{}, true, path("*"), reason.BadRequestLine},
		{"E13/fragment", Settings{}, true, path("/a#b"), reason.BadRequestLine},
		{"E13/space in the path", Settings{}, true, path("/a b"), reason.BadRequestLine},
		{"E13/8 bit in the path", Settings{}, true, path("/\xff"), reason.BadRequestLine},
		{"E16/CONNECT", Settings{}, false, []string{":method", "CONNECT", ":authority", "a.test:443"}, reason.MethodRefused},
		{"E16/TRACE", Settings{}, true, []string{":method", "TRACE", ":scheme", "https", ":authority", "a.test", ":path", "/"}, reason.MethodRefused},
		{"E33/other protocol", Settings{ExtendedConnect: true}, false, []string{":method", "CONNECT", ":protocol", "connect-udp", ":scheme", "https", ":authority", "a.test", ":path", "/"}, reason.UpgradeRefused},
		{"E12/content-length twice", Settings{}, false, post("content-length", "1", "content-length", "1"), reason.ContentLengthInvalid},
		{"E12/content-length with a sign", Settings{}, false, post("content-length", "+5"), reason.ContentLengthInvalid},
		{"E12/content-length of 19 digits", Settings{}, false, post("content-length", "1000000000000000000"), reason.ContentLengthInvalid},
		{"E12/body beyond the limit", Settings{BodyBytes: 9}, false, post("content-length", "10"), reason.BodyTooLarge},
		{"E23/expectation", Settings{}, false, post("expect", "200-ok"), reason.ExpectationUnsupported},
		{"F11/101 fields", Settings{}, true, many, reason.HeaderTooMany},
		{"F11/1,000 cookies", Settings{}, true, cookies, reason.HeaderTooLarge},
		{"F11/large head", Settings{}, true, get("a", strings.Repeat("b", 40<<10)), reason.HeaderTooLarge},
		{"F11/small limit", Settings{HeaderBytes: 300}, true, get("a", strings.Repeat("b", 200)), reason.HeaderTooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, test.settings, answer, func(p *raw) {
				b := p.block(test.fields...)
				first := b[:min(len(b), 16<<10)]
				must(t, p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: test.end, EndHeaders: len(first) == len(b), BlockFragment: first}))
				for rest := b[len(first):]; len(rest) > 0; {
					part := rest[:min(len(rest), 16<<10)]
					rest = rest[len(part):]
					must(t, p.fr.WriteContinuation(1, len(rest) == 0, part))
				}
				want := fmt.Sprintf("%d x-reason=%s", test.why.Status(), test.why)
				if got := p.head(1); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
				if !test.end {
					p.want("RST_STREAM 1 NO_ERROR") // the rest of the request is of no use
				}
				p.headers(3, true, get()...)
				if got := p.head(3); !strings.HasPrefix(got, "200") {
					t.Errorf("the next request got %q", got)
				}
			})
		})
	}
}

// TestRequestHead: what a handler sees of a request that is in order.
func TestRequestHead(t *testing.T) {
	text := func(s *Stream) string {
		r := &s.Request
		out := fmt.Sprintf("%s %s %s host=%s framing=%d length=%d", s.Scheme, r.Method, r.Path, r.Host, r.Framing, r.ContentLength)
		if r.HasQuery {
			out += " query=" + string(r.Query)
		}
		if r.Expect100 {
			out += " expect"
		}
		if r.TrailersWanted {
			out += " trailers"
		}
		if s.Protocol != nil {
			out += " protocol=" + string(s.Protocol)
		}
		if s.Refusal != nil {
			out += " " + s.Refusal.Reason.String()
		}
		if r.Minor != 1 || !r.KeepAlive {
			out += " not 1.1"
		}
		for _, f := range r.Fields {
			out += fmt.Sprintf(" %s=%s", f.Name, f.Value)
			if f.Hop {
				out += "!"
			}
		}
		return out
	}
	for _, test := range []struct {
		name   string
		end    bool
		fields []string
		want   string
	}{
		{"plain", true, get("a", "b"), "https GET / host=a.test framing=0 length=-1 a=b"},
		{"query", true, []string{":method", "GET", ":scheme", "http", ":path", "/x?y?z", ":authority", "a.test"}, "http GET /x host=a.test framing=0 length=-1 query=y?z"},
		{"empty query", true, []string{":method", "GET", ":scheme", "http", ":path", "/?", ":authority", "a.test"}, "http GET / host=a.test framing=0 length=-1 query="},
		{"host alone", true, []string{":method", "GET", ":scheme", "https", ":path", "/", "host", "h.test"}, "https GET / host=h.test framing=0 length=-1"},
		{"host the same", true, get("host", "a.test"), "https GET / host=a.test framing=0 length=-1"},
		{"star", true, []string{":method", "OPTIONS", ":scheme", "https", ":path", "*", ":authority", "a.test"}, "https OPTIONS * host=a.test framing=0 length=-1"},
		{"length", false, post("content-length", "5"), "https POST / host=a.test framing=1 length=5 content-length=5!"},
		{"length nought", true, post("content-length", "0"), "https POST / host=a.test framing=0 length=0 content-length=0!"},
		{"no length", false, post(), "https POST / host=a.test framing=2 length=-1"},
		{"expect", false, post("expect", "100-continue"), "https POST / host=a.test framing=2 length=-1 expect expect=100-continue!"},
		{"te", true, get("te", "trailers"), "https GET / host=a.test framing=0 length=-1 trailers te=trailers!"},
		{"crumbs", true, get("cookie", "a=1", "x", "y", "cookie", "b=2", "cookie", "c=3", "z", ""), "https GET / host=a.test framing=0 length=-1 cookie=a=1; b=2; c=3 x=y z="},
		{"websocket", false, []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":path", "/chat", ":authority", "a.test"}, "https CONNECT /chat host=a.test framing=2 length=-1 protocol=websocket"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got string
			bubble(t, Settings{ExtendedConnect: true}, func(s *Stream) { got = text(s) }, func(p *raw) {
				p.headers(1, test.end, test.fields...)
				p.want("RST_STREAM 1 INTERNAL_ERROR") // the handler did not answer
				if got != test.want {
					t.Errorf("got  %s\nwant %s", got, test.want)
				}
			})
		})
	}

	t.Run("F11/cookie crumbs count as one field", func(t *testing.T) {
		fields := get()
		for i := range 300 {
			fields = append(fields, "cookie", fmt.Sprintf("c%d=1", i))
		}
		n := 0
		bubble(t, Settings{}, func(s *Stream) { n = len(s.Request.Fields); answer(s) }, func(p *raw) {
			p.headers(1, true, fields...)
			if got := p.head(1); !strings.HasPrefix(got, "200") || n != 1 {
				t.Errorf("%q with %d fields", got, n)
			}
		})
	})
}

// TestItself: a stream that depends on itself (RFC 7540 section 5.3.1; h2spec asks for it).
func TestItself(t *testing.T) {
	bubble(t, Settings{}, func(s *Stream) { _, _ = s.Read(make([]byte, 1)) }, func(p *raw) {
		p.headers(1, false, post()...)
		p.seen()
		must(t, p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true, BlockFragment: p.block("a", "b"), Priority: http2.PriorityParam{StreamDep: 1}}))
		p.want("RST_STREAM 1 PROTOCOL_ERROR")
		must(t, p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, EndStream: true, EndHeaders: true, BlockFragment: p.block(get()...), Priority: http2.PriorityParam{StreamDep: 3}}))
		p.want("RST_STREAM 3 PROTOCOL_ERROR")
		must(t, p.fr.WritePriority(5, http2.PriorityParam{StreamDep: 5})) // nothing that could be reset
		p.want("GOAWAY 3 PROTOCOL_ERROR")
	})
}

// TestTrailers of requests.
func TestTrailers(t *testing.T) {
	for _, test := range []struct {
		name   string
		end    bool
		fields []string
	}{
		{"E06/content-length", true, []string{"content-length", "3"}},
		{"E06/host", true, []string{"host", "b.test"}},
		{"E06/authorization", true, []string{"authorization", "Basic eA=="}},
		{"E06/transfer-encoding", true, []string{"transfer-encoding", "chunked"}},
		{"E06/pseudo-field", true, []string{":path", "/admin"}},
		{"E06/upper case", true, []string{"X-A", "b"}},
		{"E12/without the end", false, []string{"x-a", "b"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var err error
			bubble(t, Settings{}, func(s *Stream) { _, err = s.Read(make([]byte, 9)); _, err = s.Read(make([]byte, 9)) }, func(p *raw) {
				p.headers(1, false, post()...)
				p.send(1, false, "abc")
				p.seen()
				p.headers(1, test.end, test.fields...)
				p.want("RST_STREAM 1 PROTOCOL_ERROR")
				isRefusal(t, err, reason.BadHeader)
			})
		})
	}
	t.Run("yes", func(t *testing.T) {
		var got []message.Field
		var early int
		bubble(t, Settings{}, func(s *Stream) {
			early = len(s.Trailers())
			for !s.Done() {
				_, _ = s.Read(make([]byte, 9))
			}
			for _, f := range s.Trailers() {
				got = append(got, message.Field{Name: []byte(string(f.Name)), Value: []byte(string(f.Value))})
			}
		}, func(p *raw) {
			p.headers(1, false, post()...)
			p.send(1, false, "abc")
			p.headers(1, true, "x-sum", "9")
			p.seen()
			if early != 0 || len(got) != 1 || string(got[0].Name) != "x-sum" || string(got[0].Value) != "9" {
				t.Errorf("%d before the end, then %v", early, got)
			}
		})
	})
}
