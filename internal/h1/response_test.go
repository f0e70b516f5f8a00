package h1

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"countersign/internal/message"
	"countersign/internal/reason"
)

// readResponse reads one response with its body.
func readResponse(src io.Reader, forHead bool) outcome {
	var d Reader
	d.Reset(src, testLimits, true)
	defer d.Release()
	var resp message.Response
	if err := d.ReadResponse(&resp, forHead); err != nil {
		return outcome{err: errText(err)}
	}
	o := outcome{head: fmt.Sprintf("%d %s", resp.Status, resp.Phrase) + describe(&resp.Head)}
	body, err := io.ReadAll(d.Body(&resp.Head, false))
	o.body, o.err = string(body), errText(err)
	if err == nil {
		rest, _ := io.ReadAll(src)
		o.rest = d.Buffered() + len(rest)
	}
	return o
}

const ok = "HTTP/1.1 200 OK\r\n"

// badResponses are what a target must not get away with; all are upstream_bad_response.
var badResponses = []struct{ name, in string }{
	{"E19/cl-te", ok + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"E19/te-cl", ok + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"},
	{"E19/two-cl", ok + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"},
	{"E19/same-cl", ok + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"},
	{"E19/list-cl", ok + "Content-Length: 5, 5\r\n\r\nhello"},
	{"E19/plus-cl", ok + "Content-Length: +5\r\n\r\nhello"},
	{"E19/hex-cl", ok + "Content-Length: 0x5\r\n\r\nhello"},
	{"E19/empty-cl", ok + "Content-Length:\r\n\r\nhello"},
	{"E19/huge-cl", ok + "Content-Length: 18446744073709551621\r\n\r\nhello"},
	{"E19/304-bad-cl", "HTTP/1.1 304 Not Modified\r\nContent-Length: x\r\n\r\n"},
	{"E19/unknown-te", ok + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"},
	{"E19/gzip-te", ok + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
	{"E19/identity-te", ok + "Transfer-Encoding: identity\r\n\r\nhello"},
	{"E19/two-te", ok + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"E19/te-http10", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"E19/http09", "<html>hello</html>\r\n\r\n"},
	{"E19/other-protocol", "ICY 200 OK\r\n\r\n"},
	{"E19/version-2", "HTTP/2.0 200 OK\r\n\r\n"},
	{"E19/version-12", "HTTP/1.2 200 OK\r\n\r\n"},
	{"E19/lower", "http/1.1 200 OK\r\n\r\n"},
	{"E19/leading-space", " HTTP/1.1 200 OK\r\n\r\n"},
	{"E19/leading-crlf", "\r\nHTTP/1.1 200 OK\r\n\r\n"},
	{"E19/status-099", "HTTP/1.1 099 Low\r\n\r\n"},
	{"E19/status-600", "HTTP/1.1 600 High\r\n\r\n"},
	{"E19/status-1000", "HTTP/1.1 1000 High\r\n\r\n"},
	{"E19/status-20", "HTTP/1.1 20 Short\r\n\r\n"},
	{"E19/status-text", "HTTP/1.1 2OO OK\r\n\r\n"},
	{"E19/status-sign", "HTTP/1.1 +20 OK\r\n\r\n"},
	{"E19/status-none", "HTTP/1.1\r\n\r\n"},
	{"E19/two-spaces", "HTTP/1.1  200 OK\r\n\r\n"},
	{"E19/tab", "HTTP/1.1\t200 OK\r\n\r\n"},
	{"E19/phrase-nul", "HTTP/1.1 200 O\x00K\r\n\r\n"},
	{"E19/phrase-cr", "HTTP/1.1 200 O\rK\r\n\r\n"},
	{"E19/nul", ok + "X: a\x00b\r\n\r\n"},
	{"E19/bare-cr", ok + "X: a\rb\r\n\r\n"},
	{"E19/bare-lf", "HTTP/1.1 200 OK\nContent-Length: 0\n\n"},
	{"E19/fold", ok + "X: a\r\n b\r\n\r\n"},
	{"E19/space-colon", ok + "Content-Length : 5\r\n\r\nhello"},
	{"E19/empty-name", ok + ": a\r\n\r\n"},
	{"E19/no-colon", ok + "hello\r\n\r\n"},
	{"E19/large", ok + "X: " + strings.Repeat("y", 9000) + "\r\n\r\n"},
	{"E19/many", ok + strings.Repeat("X: y\r\n", 81) + "\r\n"},
	{"E20/large", "HTTP/1.1 103 Early Hints\r\nX: " + strings.Repeat("y", 9000) + "\r\n\r\n"},
	{"E20/cl-te", "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"},
	{"E21/chunk", ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n"},
	{"E21/chunk-size", ok + "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n"},
	{"E21/chunk-lf", ok + "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n"},
	{"E21/chunk-space", ok + "Transfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n"},
	{"E21/trailer", ok + "Transfer-Encoding: chunked\r\n\r\n0\r\nX : y\r\n\r\n"},
}

func TestBadResponses(t *testing.T) {
	for _, c := range badResponses {
		t.Run(c.name, func(t *testing.T) {
			for how, src := range readers(c.in) {
				if o := readResponse(src, false); o.err != reason.UpstreamBadResponse.String() {
					t.Errorf("%s: %+v", how, o)
				}
			}
		})
	}
}

var goodResponses = []struct {
	name, in string
	forHead  bool
	want     outcome
}{
	{"length", ok + "Content-Length: 5\r\n\r\nhelloHTTP", false, outcome{head: "200 OK 1.1 framing=1 length=5 keep=true|Content-Length=5,true", body: "hello", rest: 4}},
	{"empty", ok + "Content-Length: 0\r\n\r\nHTTP", false, outcome{head: "200 OK 1.1 framing=0 length=0 keep=true|Content-Length=0,true", rest: 4}},
	{"chunked", ok + "Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Client-Cert: y\r\n\r\nHTTP", false, outcome{head: "200 OK 1.1 framing=2 length=-1 keep=true|Transfer-Encoding=Chunked,true", body: "hello", rest: 4}},
	{"until-close", ok + "\r\nhello", false, outcome{head: "200 OK 1.1 framing=3 length=-1 keep=false", body: "hello"}},
	{"until-close-keep", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nhello", false, outcome{head: "200 OK 1.0 framing=3 length=-1 keep=false|Connection=keep-alive,true", body: "hello"}},
	{"no-phrase", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", false, outcome{head: "200  1.1 framing=0 length=0 keep=true|Content-Length=0,true"}},
	{"empty-phrase", "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", false, outcome{head: "200  1.1 framing=0 length=0 keep=true|Content-Length=0,true"}},
	{"phrase-8bit", "HTTP/1.1 599 \xe9 t\r\nContent-Length: 0\r\n\r\n", false, outcome{head: "599 \xe9 t 1.1 framing=0 length=0 keep=true|Content-Length=0,true"}},
	{"http10-keep", "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 1\r\n\r\nx", false, outcome{head: "200 OK 1.0 framing=1 length=1 keep=true|Connection=Keep-Alive,true|Content-Length=1,true", body: "x"}},
	{"http10", "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", false, outcome{head: "200 OK 1.0 framing=1 length=1 keep=false|Content-Length=1,true", body: "x"}},
	{"http10-close-keep", "HTTP/1.0 200 OK\r\nConnection: close\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx", false, outcome{head: "200 OK 1.0 framing=1 length=1 keep=false|Connection=close,true|Connection=keep-alive,true|Content-Length=1,true", body: "x"}},
	{"close", ok + "Connection: x-a, close\r\nX-A: b\r\nContent-Length: 1\r\n\r\nx", false, outcome{head: "200 OK 1.1 framing=1 length=1 keep=false|Connection=x-a, close,true|X-A=b,true|Content-Length=1,true", body: "x"}},
	{"hop", ok + "Keep-Alive: 1\r\nUpgrade: h2\r\nTrailer: X\r\nProxy-Connection: x\r\nProxy-Authenticate: y\r\nContent-Length: 0\r\n\r\n", false, outcome{head: "200 OK 1.1 framing=0 length=0 keep=true|Keep-Alive=1,true|Upgrade=h2,true|Trailer=X,true|Proxy-Connection=x,true|Proxy-Authenticate=y,true|Content-Length=0,true"}},
	{"E19/204", "HTTP/1.1 204 No Content\r\n\r\nHTTP", false, outcome{head: "204 No Content 1.1 framing=0 length=-1 keep=true", rest: 4}},
	{"E19/204-cl", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", false, outcome{head: "204 No Content 1.1 framing=0 length=5 keep=false|Content-Length=5,true", rest: 5}},
	{"E19/204-te", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", false, outcome{head: "204 No Content 1.1 framing=0 length=-1 keep=false|Transfer-Encoding=chunked,true", rest: 5}},
	{"E19/304-cl", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false, outcome{head: "304 Not Modified 1.1 framing=0 length=5 keep=true|Content-Length=5,true"}},
	{"E19/head-cl", ok + "Content-Length: 5\r\n\r\n", true, outcome{head: "200 OK 1.1 framing=0 length=5 keep=true|Content-Length=5,true"}},
	{"E19/head-te", ok + "Transfer-Encoding: chunked\r\n\r\n", true, outcome{head: "200 OK 1.1 framing=0 length=-1 keep=true|Transfer-Encoding=chunked,true"}},
	{"E19/head-body", ok + "Content-Length: 5\r\n\r\nhello", true, outcome{head: "200 OK 1.1 framing=0 length=5 keep=true|Content-Length=5,true", rest: 5}},
	{"E20/103", "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n" + ok, false, outcome{head: "103 Early Hints 1.1 framing=0 length=5 keep=true|Content-Length=5,true", rest: len(ok)}},
	{"E21/length", ok + "Content-Length: 9\r\n\r\nhello", false, outcome{head: "200 OK 1.1 framing=1 length=9 keep=true|Content-Length=9,true", body: "hello", err: "unexpected EOF"}},
	{"E21/chunked", ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", false, outcome{head: "200 OK 1.1 framing=2 length=-1 keep=true|Transfer-Encoding=chunked,true", body: "hello", err: "unexpected EOF"}},
	{"E21/chunked-data", ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhel", false, outcome{head: "200 OK 1.1 framing=2 length=-1 keep=true|Transfer-Encoding=chunked,true", body: "hel", err: "unexpected EOF"}},
	{"E21/chunked-last", ok + "Transfer-Encoding: chunked\r\n\r\n0\r\n", false, outcome{head: "200 OK 1.1 framing=2 length=-1 keep=true|Transfer-Encoding=chunked,true", err: "unexpected EOF"}},
	{"E21/nothing", "", false, outcome{err: "EOF"}},
	{"E21/one-byte", "H", false, outcome{err: "unexpected EOF"}},
	{"E21/head", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", false, outcome{err: "unexpected EOF"}},
}

func TestGoodResponses(t *testing.T) {
	for _, c := range goodResponses {
		t.Run(c.name, func(t *testing.T) {
			for how, src := range readers(c.in) {
				if got := readResponse(src, c.forHead); got != c.want {
					t.Errorf("%s:\nexpected %+v\nfound    %+v", how, c.want, got)
				}
			}
		})
	}
}

// Ready takes what is buffered of a body that is not chunked, and Read goes on behind it.
func TestReady(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{ok + "Content-Length: 10\r\n\r\n0123456789rest", "0123456789"}, {ok + "\r\n0123456789", "0123456789"},
		{ok + "Content-Length: 0\r\n\r\nrest", ""},
	} {
		for _, n := range []int{0, 1, 3, 10, 100} {
			var d Reader
			var resp message.Response
			d.Reset(strings.NewReader(c.in), testLimits, true)
			if err := d.ReadResponse(&resp, false); err != nil {
				t.Fatal(err)
			}
			b := d.Body(&resp.Head, false)
			got := string(b.Ready(n))
			if want := c.want[:min(n, len(c.want))]; got != want {
				t.Errorf("Ready(%d) = %q, expected %q", n, got, want)
			}
			rest, err := io.ReadAll(b)
			if got += string(rest); got != c.want || err != nil || b.Total() != int64(len(c.want)) || !b.Done() {
				t.Errorf("Ready(%d) and then %q: %q, %v, total %d", n, rest, got, err, b.Total())
			}
		}
	}
	var d Reader
	var resp message.Response
	d.Reset(strings.NewReader(ok+"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), testLimits, true)
	_ = d.ReadResponse(&resp, false)
	if got := d.Body(&resp.Head, false).Ready(100); got != nil {
		t.Errorf("chunked: %q", got)
	}
}

// A chunk that has come is handed over before the next one is waited for.
func TestChunkAtOnce(t *testing.T) {
	pr, pw := io.Pipe()
	var d Reader
	var resp message.Response
	d.Reset(pr, testLimits, true)
	go io.WriteString(pw, ok+"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5")
	if err := d.ReadResponse(&resp, false); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 100)
	if n, err := d.Body(&resp.Head, false).Read(p); string(p[:n]) != "hello" || err != nil {
		t.Errorf("%q %v", p[:n], err)
	}
}

// TestBufferedBehind: a head goes in front of a whole body where the old one was, and nothing else is touched. Where it
// cannot, nothing is consumed.
func TestBufferedBehind(t *testing.T) {
	body := strings.Repeat("0123456789", 200)
	oldHead := ok + "Content-Length: 2000\r\nServer: something of no interest\r\n\r\n"
	for _, c := range []struct {
		name, in string
		head     int // bytes
		twice    bool
		refused  bool
	}{
		{"chunked", ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 3, false, true},
		{"until close", ok + "\r\n" + body, 100, false, true},
		{"none", "HTTP/1.1 204 No Content\r\n\r\n", 100, false, true},
		{"incomplete", oldHead + body[:1999], 100, false, true},
		{"shorter than its head", ok + "Content-Length: 5\r\n\r\nhello", 6, false, true},
		{"no room", oldHead + body, front + len(oldHead) + 1, false, true},
		{"just room", oldHead + body, front + len(oldHead), false, false},
		{"an ordinary one", oldHead + body, 150, false, false},
		{"with something behind it", oldHead + body + oldHead + body, 150, true, false},
		{"with something behind it, and all the room of the first", oldHead + body + oldHead + body, front + len(oldHead), true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var d Reader
			d.Reset(strings.NewReader(c.in), testLimits, true)
			defer d.Release()
			var resp message.Response
			head := []byte(strings.Repeat("h", c.head))
			for i := range 2 {
				if err := d.ReadResponse(&resp, false); err != nil {
					t.Fatal(err)
				}
				b, before := d.Body(&resp.Head, false), d.Buffered()
				out, ok := b.BufferedBehind(head)
				if ok == c.refused {
					t.Fatalf("%v, expected %v", ok, !c.refused)
				}
				if c.refused {
					if out != nil || d.Buffered() != before || b.Total() != 0 {
						t.Errorf("%d bytes, %d of %d are left, %d counted", len(out), d.Buffered(), before, b.Total())
					}
					return
				}
				if string(out) != string(head)+body || !b.Done() || b.Total() != 2000 {
					t.Errorf("response %d: %.200q, %v, %d", i, out, b.Done(), b.Total())
				}
				if !c.twice {
					return
				}
			}
		})
	}
}
