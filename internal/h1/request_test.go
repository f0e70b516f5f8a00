package h1

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"countersign/internal/message"
	"countersign/internal/reason"
)

var testLimits = Limits{HeadBytes: 8 << 10, Fields: 20}

// refused returns the reason of a refusal, and Unset for every other error and for none.
func refused(err error) reason.Reason {
	var r *reason.Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	return reason.Unset
}

// outcome is what reading one message came to, in a form that can be compared.
type outcome struct {
	head string // what the head says
	body string
	err  string // code of a refusal, or the error
	rest int    // bytes behind the message
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	if why := refused(err); why != reason.Unset {
		return why.String()
	}
	return err.Error()
}

func describe(h *message.Head) string {
	var b strings.Builder
	fmt.Fprintf(&b, " 1.%d framing=%d length=%d keep=%v", h.Minor, h.Framing, h.ContentLength, h.KeepAlive)
	for _, f := range h.Fields {
		fmt.Fprintf(&b, "|%s=%s,%v", f.Name, f.Value, f.Hop)
	}
	return b.String()
}

// readRequest reads one request with its body.
func readRequest(src io.Reader, limits Limits) outcome {
	var d Reader
	d.Reset(src, limits, false)
	defer d.Release()
	var req message.Request
	if err := d.ReadRequest(&req); err != nil {
		return outcome{err: errText(err)}
	}
	o := outcome{head: fmt.Sprintf("%s %s ?%v%s host=%s expect=%v", req.Method, req.Path, req.HasQuery, req.Query, req.Host, req.Expect100) + describe(&req.Head)}
	body, err := io.ReadAll(d.Body(&req.Head, true))
	o.body, o.err = string(body), errText(err)
	if err == nil {
		rest, _ := io.ReadAll(src)
		o.rest = d.Buffered() + len(rest)
	}
	return o
}

// readers are ways in which the same bytes may arrive; the result must not depend on it.
func readers(s string) map[string]io.Reader {
	return map[string]io.Reader{
		"whole": strings.NewReader(s), "byte by byte": iotest.OneByteReader(strings.NewReader(s)),
		"halves": iotest.HalfReader(strings.NewReader(s)), "with the error": iotest.DataErrReader(strings.NewReader(s)),
	}
}

type requestCase struct {
	name, in string
	why      reason.Reason // of the refusal, from head or body
}

const line, host = "GET / HTTP/1.1\r\n", "Host: a.test\r\n"

func post(fields, body string) string { return "POST /p HTTP/1.1\r\n" + host + fields + "\r\n" + body }

func chunked(body string) string { return post("Transfer-Encoding: chunked\r\n", body) }

// refusals are requests that nobody may pass on.
func refusals() []requestCase {
	var all []requestCase
	add := func(why reason.Reason, id string, inputs ...string) {
		for i, in := range inputs {
			all = append(all, requestCase{fmt.Sprintf("%s/%d", id, i), in, why})
		}
	}
	add(reason.FramingAmbiguous, "E01/cl-te",
		post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
		post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
		post("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", "0\r\n\r\n"),
		post("transfer-encoding: chunked\r\nCONTENT-LENGTH: x\r\n", "0\r\n\r\n"),
		post("Transfer-Encoding: identity\r\nContent-Length: 5\r\n", "hello"),
		post("Transfer-Encoding:\r\nContent-Length: 5\r\n", "hello"))
	for i, v := range []string{"xchunked", "chunked, identity", ",chunked", "chunked,", "chunked;q=1", "chunked, chunked", "identity",
		"gzip, chunked", "chunked gzip", "\"chunked\"", "'chunked'", "", "chunke", "chunkedd", "identity, chunked", "\xa0chunked", "chun\u212aed"} {
		add(reason.TransferEncodingUnsupported, fmt.Sprintf("E02/value-%d", i), post("Transfer-Encoding: "+v+"\r\n", "0\r\n\r\n"))
	}
	add(reason.BadHeader, "E02/control", post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"), post("Transfer-Encoding: chunked\x0c\r\n", "0\r\n\r\n"),
		post("Transfer-Encoding: chun\x00ked\r\n", ""), post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"), post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"))
	add(reason.FramingAmbiguous, "E02/twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
		post("Transfer-Encoding: chunked\r\ntransfer-encoding: identity\r\n", "0\r\n\r\n"), post("Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n", ""))
	add(reason.FramingAmbiguous, "E03/http10", "POST / HTTP/1.0\r\n"+host+"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.0\r\n"+host+"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
	for i, v := range []string{"", "+5", "-5", "-0", "0x5", "5,5", "5, 5", "5 5", "5_0", "_", "5.", "5e0", "\"5\"", "9223372036854775808", "18446744073709551616",
		"18446744073709551621", "9999999999999999999", "00000000000000000005", "٥", "5;", "five"} {
		add(reason.ContentLengthInvalid, fmt.Sprintf("E04/value-%d", i), post("Content-Length: "+v+"\r\n", "hello"))
	}
	add(reason.ContentLengthInvalid, "E04/twice", post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), post("Content-Length: 5\r\ncontent-length: 6\r\n", "hello!"),
		post("Content-Length: 0\r\nContent-Length: 0\r\n", ""))
	add(reason.BadHeader, "E04/control", post("Content-Length: 5\x0b\r\n", "hello"), post("Content-Length: 5\x00\r\n", "hello"), post("Content-Length:\x0c5\r\n", "hello"),
		post("Content-Length : 5\r\n", "hello"), post("Content-Length\t: 5\r\n", "hello"))

	for i, size := range []string{"0x5", "+5", "-5", "5_", "_5", " 5", "5 ", "\t5", "5\t", "5 ;x", "", ";x", "g", "5,", "0000000000000005", "ffffffffffffffff", "10000000000000005", "5\x00", "5;\x00", "5;x\x7f", "5;\x0b"} {
		add(reason.ChunkInvalid, fmt.Sprintf("E05/size-%d", i), chunked(size+"\r\nhello\r\n0\r\n\r\n"))
	}
	add(reason.ChunkInvalid, "E05/line-ends", chunked("5\nhello\r\n0\r\n\r\n"), chunked("5\r\nhello\n0\r\n\r\n"), chunked("5\r\nhello\r\n0\n\r\n"), chunked("5\r\nhello\r\n0\r\n\n"),
		chunked("5;a\nb\r\nhello\r\n0\r\n\r\n"), chunked("5;a\rb\r\nhello\r\n0\r\n\r\n"), chunked("5\r;\r\nhello\r\n0\r\n\r\n"), chunked("5\r\r\nhello\r\n0\r\n\r\n"), chunked("\r\n5\r\nhello\r\n0\r\n\r\n"))
	add(reason.ChunkInvalid, "E05/data", chunked("5\r\nhello0\r\n\r\n"), chunked("5\r\nhelloXX0\r\n\r\n"), chunked("5\r\nhello!\r\n0\r\n\r\n"), chunked("4\r\nhello\r\n0\r\n\r\n"), chunked("5\r\nhello\r0\r\n\r\n"), chunked("5\r\nhello\r\r\n0\r\n\r\n"))
	add(reason.ChunkInvalid, "E05/flood", chunked("1;"+strings.Repeat("x", 5000)+"\r\na\r\n0\r\n\r\n"), chunked(strings.Repeat("1;"+strings.Repeat("x", 1000)+"\r\na\r\n", 17)+"0\r\n\r\n"), chunked(strings.Repeat("5", 5000)))
	for i, tr := range []string{"no colon\r\n", ": empty\r\n", "X : y\r\n", " X: folded\r\n", "X: a\r\n b\r\n", "X: \x00\r\n", "X: a\rb\r\n", "X: a\nY: b\r\n", "X\x80: a\r\n", "X: " + strings.Repeat("y", 5000) + "\r\n", strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 17)} {
		add(reason.ChunkInvalid, fmt.Sprintf("E06/syntax-%d", i), chunked("0\r\n"+tr+"\r\n"))
	}

	for i, l := range []string{"X-A : b", ": b", ":", "X-A", "X A: b", "X-A\x00: b", "X-A: b\x00", "X-A: b\rc", "X-\xff: b", "X-A\t: b", "X(A): b", "X-A: b\x7f", "X-A: \x1b[31m", "\x00", "X-A: b\x01"} {
		add(reason.BadHeader, fmt.Sprintf("E07/line-%d", i), line+host+l+"\r\n\r\n", line+l+"\r\n"+host+"\r\n")
	}
	add(reason.BadHeader, "E07/first-line", line+" "+host+"\r\n", line+"\t"+host+"\r\n", line+"\r"+host+"\r\n")
	add(reason.BadHeader, "E08/bare-lf", "GET / HTTP/1.1\nHost: a.test\n\n", "GET / HTTP/1.1\nHost: a.test\r\n\r\n", "GET / HTTP/1.1\r\nHost: a.test\n\r\n", "GET / HTTP/1.1\r\nHost: a.test\r\n\n",
		"GET / HTTP/1.1\r\nHost: a.test\r\nX: a\nTransfer-Encoding: chunked\r\n\r\n")
	add(reason.BadHeader, "E08/fold", line+host+"X-A: b\r\n c\r\n\r\n", line+host+"X-A: b\r\n\tc\r\n\r\n", line+"Host:\r\n a.test\r\n\r\n", line+host+"X-A:\r\n \r\n\r\n", line+host+"X-A: b\r\n\r\r\n\r\n")
	add(reason.HostMissing, "E09/missing", line+"\r\n", line+"Host:\r\n\r\n", line+"Host: \t \r\n\r\n", "GET / HTTP/1.0\r\n\r\n", "GET http://a.test/ HTTP/1.1\r\n\r\n", "GET http://a.test/ HTTP/1.1\r\nHost:\r\n\r\n")
	add(reason.HostAmbiguous, "E09/several", line+host+host+"\r\n", line+host+"host: b.test\r\n\r\n", line+"Host:\r\n"+host+"\r\n")
	add(reason.HostAmbiguous, "E09/absolute", "GET http://b.test/ HTTP/1.1\r\n"+host+"\r\n", "GET http://a.test:80/ HTTP/1.1\r\n"+host+"\r\n", "GET http://a.test@b.test/ HTTP/1.1\r\n"+host+"\r\n", "GET https://a.test./ HTTP/1.1\r\n"+host+"\r\n",
		"GET http://a.test/ HTTP/1.1\r\nHost: a.test\xff\r\n\r\n", "GET http://a.test\\b/ HTTP/1.1\r\n"+host+"\r\n")
	add(reason.HostInvalid, "E09/absolute-empty", "GET http:/// HTTP/1.1\r\n"+host+"\r\n", "GET http:// HTTP/1.1\r\n"+host+"\r\n")

	for i, l := range []string{"GET /", "GET", "", "GET  / HTTP/1.1", "GET / HTTP/1.1 ", " GET / HTTP/1.1", "GET /  HTTP/1.1", "GET\t/\tHTTP/1.1", "GET\t/ HTTP/1.1", "GET /\tHTTP/1.1", "GET /a b HTTP/1.1", "GET /#f HTTP/1.1", "GET /a?b#c HTTP/1.1",
		"GET /\xff HTTP/1.1", "GET /\x00 HTTP/1.1", "GET /\x7f HTTP/1.1", "GET / http/1.1", "GET / HTTP/1.11", "GET / HTTP/1", "GET / HTTP/01.1", "GET / HTTPS/1.1", "GET / \tHTTP/1.1", "GET / HTTP/1.1\r", "GET a.test HTTP/1.1", "GET a.test:80 HTTP/1.1",
		"GET * HTTP/1.1", "GET ftp://a.test/ HTTP/1.1", "GET //: HTTP/1.1 x", "GET http:/a.test/ HTTP/1.1", "GET http://a.test?q HTTP/1.1", "GET ?q HTTP/1.1", "G(T / HTTP/1.1", "GET: / HTTP/1.1", "G\xc3\x89T / HTTP/1.1", "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG / HTTP/1.1", "\x16\x03\x01\x02", "/ GET HTTP/1.1"} {
		add(reason.BadRequestLine, fmt.Sprintf("E10/line-%d", i), l+"\r\n"+host+"\r\n")
	}
	for i, v := range []string{"HTTP/1.2", "HTTP/0.9", "HTTP/2.0", "HTTP/3.0", "HTTP/9.9", "HTTP/1,1", "HTTP/1.\xb1", "HTTP/+1.", "HTTP/ 1."} {
		why := reason.VersionUnsupported
		if strings.Contains(v, " ") {
			why = reason.BadRequestLine
		}
		add(why, fmt.Sprintf("E10/version-%d", i), "GET / "+v+"\r\n"+host+"\r\n")
	}
	add(reason.VersionUnsupported, "E10/preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	add(reason.HeaderTooLarge, "F/large", "GET /"+strings.Repeat("a", 9000)+" HTTP/1.1\r\n"+host+"\r\n", line+host+"X: "+strings.Repeat("a", 9000)+"\r\n\r\n", "GET /"+strings.Repeat("a", 20000), line+strings.Repeat("X: y\r\n", 3000),
		line+host+"X: "+strings.Repeat("a", 9000)+"\nY: z\r\n\r\n")
	add(reason.HeaderTooMany, "F/many", line+host+strings.Repeat("X: y\r\n", 20)+"\r\n")

	for i, v := range []string{"websocket", "WebSocket", "TLS/1.0", "h2c, websocket", "h3", "", "h2c/1"} {
		add(reason.UpgradeRefused, fmt.Sprintf("E15/upgrade-%d", i), line+host+"Connection: Upgrade\r\nUpgrade: "+v+"\r\n\r\n")
	}
	add(reason.UpgradeRefused, "E15/twice", line+host+"Upgrade: websocket\r\nUpgrade: h2c\r\n\r\n", line+host+"Upgrade: h2c\r\nUpgrade: websocket\r\n\r\n")
	add(reason.MethodRefused, "E16/connect", "CONNECT a.test:443 HTTP/1.1\r\n"+host+"\r\n", "CONNECT / HTTP/1.1\r\n"+host+"\r\n", "CONNECT  HTTP/1.1\r\n"+host+"\r\n", "CONNECT a.test:443 HTTP/1.0\r\n\r\n", "TRACE / HTTP/1.1\r\n"+host+"\r\n", "TRACE * HTTP/1.1\r\n"+host+"\r\n")
	for i, v := range []string{"100-continued", "100-continue, x", "200-ok", "", "100-continue;a=b", "\"100-continue\"", "100 -continue"} {
		add(reason.ExpectationUnsupported, fmt.Sprintf("E23/expect-%d", i), post("Content-Length: 5\r\nExpect: "+v+"\r\n", "hello"))
	}
	add(reason.ExpectationUnsupported, "E23/twice", post("Content-Length: 5\r\nExpect: 100-continue\r\nExpect: 100-continue\r\n", "hello"))
	for i, v := range []string{"X-Client-Cert", "client-cert", "X_Client_Cert", "x.forwarded.for", "keep-alive, X-Forwarded-For", "Content-Length", "Transfer-Encoding", "Host", "Authorization", "Cookie", "Content-Type", "Via", "close,\tX-Real-IP", "forwarded", "Proxy"} {
		add(reason.ProtectedConnectionToken, fmt.Sprintf("D02/token-%d", i), line+host+"Connection: "+v+"\r\n\r\n", line+host+"Connection: close\r\nConnection: "+strings.ToUpper(v)+"\r\n\r\n")
	}
	return all
}

func TestRefused(t *testing.T) {
	for _, c := range refusals() {
		t.Run(c.name, func(t *testing.T) {
			for how, src := range readers(c.in) {
				if o := readRequest(src, testLimits); o.err != c.why.String() {
					t.Errorf("%s: expected %s, found %q with %+v", how, c.why, o.err, o)
				}
			}
		})
	}
}

// accepted are requests that must pass, with what is read from them.
var accepted = []struct {
	name, in string
	want     outcome
}{
	{"plain", line + host + "\r\n", outcome{head: "GET / ?false host=a.test expect=false 1.1 framing=0 length=-1 keep=true|Host=a.test,true"}},
	{"query", "GET /a?b=c?d HTTP/1.1\r\n" + host + "\r\nGET", outcome{head: "GET /a ?trueb=c?d host=a.test expect=false 1.1 framing=0 length=-1 keep=true|Host=a.test,true", rest: 3}},
	{"E26/empty-query", "GET /? HTTP/1.1\r\n" + host + "\r\n", outcome{head: "GET / ?true host=a.test expect=false 1.1 framing=0 length=-1 keep=true|Host=a.test,true"}},
	{"http10", "GET / HTTP/1.0\r\n" + host + "\r\n", outcome{head: "GET / ?false host=a.test expect=false 1.0 framing=0 length=-1 keep=false|Host=a.test,true"}},
	{"http10-keep", "GET / HTTP/1.0\r\n" + host + "Connection: Keep-Alive\r\n\r\n", outcome{head: "GET / ?false host=a.test expect=false 1.0 framing=0 length=-1 keep=true|Host=a.test,true|Connection=Keep-Alive,true"}},
	{"http10-close-keep", "GET / HTTP/1.0\r\n" + host + "Connection: close, keep-alive\r\n\r\n", outcome{head: "GET / ?false host=a.test expect=false 1.0 framing=0 length=-1 keep=false|Host=a.test,true|Connection=close, keep-alive,true"}},
	{"close", line + host + "Connection: CLOSE\r\n\r\n", outcome{head: "GET / ?false host=a.test expect=false 1.1 framing=0 length=-1 keep=false|Host=a.test,true|Connection=CLOSE,true"}},
	{"ows", line + "Host:\t a.test \t\r\nX:\r\n\r\n", outcome{head: "GET / ?false host=a.test expect=false 1.1 framing=0 length=-1 keep=true|Host=a.test,true|X=,false"}},
	{"E09/absolute", "GET HTTP://A.test/x?y HTTP/1.1\r\n" + host + "\r\n", outcome{head: "GET /x ?truey host=a.test expect=false 1.1 framing=0 length=-1 keep=true|Host=a.test,true"}},
	{"E09/absolute-root", "GET https://a.test HTTP/1.1\r\n" + host + "\r\n", outcome{head: "GET / ?false host=a.test expect=false 1.1 framing=0 length=-1 keep=true|Host=a.test,true"}},
	{"E10/options", "OPTIONS * HTTP/1.1\r\n" + host + "\r\n", outcome{head: "OPTIONS * ?false host=a.test expect=false 1.1 framing=0 length=-1 keep=true|Host=a.test,true"}},
	{"E11/get", line + host + "Content-Length: 5\r\n\r\nhelloGET", outcome{head: "GET / ?false host=a.test expect=false 1.1 framing=1 length=5 keep=false|Host=a.test,true|Content-Length=5,true", body: "hello", rest: 3}},
	{"E04/zeros", post("Content-Length: 000000000000000005\r\n", "hello"), outcome{head: "POST /p ?false host=a.test expect=false 1.1 framing=1 length=5 keep=true|Host=a.test,true|Content-Length=000000000000000005,true", body: "hello"}},
	{"E04/none", post("Content-Length: 0\r\n", "rest"), outcome{head: "POST /p ?false host=a.test expect=false 1.1 framing=0 length=0 keep=true|Host=a.test,true|Content-Length=0,true", rest: 4}},
	{"E04/short", post("Content-Length: 9\r\n", "hello"), outcome{head: "POST /p ?false host=a.test expect=false 1.1 framing=1 length=9 keep=true|Host=a.test,true|Content-Length=9,true", body: "hello", err: "unexpected EOF"}},
	{"chunked", chunked("5\r\nhello\r\n0\r\n\r\nGET"), outcome{head: chunkedHead, body: "hello", rest: 3}},
	{"E05/extension", chunked("5;a=\"b\";\xff\r\nhello\r\n0;z\r\n\r\n"), outcome{head: chunkedHead, body: "hello"}},
	{"E05/hex", chunked("00000000000000A\r\n0123456789\r\n000000000000000\r\n\r\n"), outcome{head: chunkedHead, body: "0123456789"}},
	{"E05/lf-in-data", chunked("5\r\n\r\n0\r\n\r\n0\r\n\r\n"), outcome{head: chunkedHead, body: "\r\n0\r\n"}},
	{"E05/short", chunked("5\r\nhel"), outcome{head: chunkedHead, body: "hel", err: "unexpected EOF"}},
	{"E05/no-end", chunked("5\r\nhello\r\n"), outcome{head: chunkedHead, body: "hello", err: "unexpected EOF"}},
	{"E05/no-last-line", chunked("5\r\nhello\r\n0\r\n"), outcome{head: chunkedHead, body: "hello", err: "unexpected EOF"}},
	{"E05/half-last-line", chunked("5\r\nhello\r\n0\r\nX: y\r\n\r"), outcome{head: chunkedHead, body: "hello", err: "unexpected EOF"}},
	{"E06/dropped", chunked("0\r\nContent-Length: 5\r\nTransfer-Encoding: x\r\nHost: b\r\nAuthorization: c\r\nX-Client-Cert: d\r\n\r\n"), outcome{head: chunkedHead}},
	{"E15/h2c", line + host + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
		outcome{head: "GET / ?false host=a.test expect=false 1.1 framing=0 length=-1 keep=true|Host=a.test,true|Connection=Upgrade, HTTP2-Settings,true|Upgrade=h2c,true|HTTP2-Settings=AAMAAABkAAQAAP__,true"}},
	{"E23/expect", post("Content-Length: 5\r\nExpect: 100-Continue\r\n", "hello"), outcome{head: "POST /p ?false host=a.test expect=true 1.1 framing=1 length=5 keep=true|Host=a.test,true|Content-Length=5,true|Expect=100-Continue,true", body: "hello"}},
	{"E23/no-body", line + host + "Expect: 100-continue\r\n\r\n", outcome{head: "GET / ?false host=a.test expect=false 1.1 framing=0 length=-1 keep=true|Host=a.test,true|Expect=100-continue,true"}},
	{"E23/http10", "POST /p HTTP/1.0\r\n" + host + "Content-Length: 5\r\nExpect: 100-continue\r\n\r\nhello", outcome{head: "POST /p ?false host=a.test expect=false 1.0 framing=1 length=5 keep=false|Host=a.test,true|Content-Length=5,true|Expect=100-continue,true", body: "hello"}},
	{"D02/hop", line + host + "Connection: x-a , ,X-B\r\nX-A: 1\r\nx-b: 2\r\nX-C: 3\r\nKeep-Alive: 4\r\nTE: trailers\r\nTrailer: X\r\nProxy-Connection: 5\r\nProxy-Authorization: 6\r\n\r\n",
		outcome{head: "GET / ?false host=a.test expect=false 1.1 framing=0 length=-1 keep=true|Host=a.test,true|Connection=x-a , ,X-B,true|X-A=1,true|x-b=2,true|X-C=3,false|Keep-Alive=4,true|TE=trailers,true|Trailer=X,true|Proxy-Connection=5,true|Proxy-Authorization=6,true"}},
	// EqualFold of bytes knows Kelvin signs and long s; a Connection option that is no token names nothing.
	{"D02/kelvin", line + host + "Connection: coo\u212aie, \u00a0close\r\nCookie: c\r\n\r\n", outcome{head: "GET / ?false host=a.test expect=false 1.1 framing=0 length=-1 keep=true|Host=a.test,true|Connection=coo\u212aie, \u00a0close,true|Cookie=c,false"}},
}

const chunkedHead = "POST /p ?false host=a.test expect=false 1.1 framing=2 length=-1 keep=true|Host=a.test,true|Transfer-Encoding=chunked,true"

func TestAccepted(t *testing.T) {
	for _, c := range accepted {
		t.Run(c.name, func(t *testing.T) {
			for how, src := range readers(c.in) {
				if got := readRequest(src, testLimits); got != c.want {
					t.Errorf("%s:\nexpected %+v\nfound    %+v", how, c.want, got)
				}
			}
		})
	}
}

// A14: h1 hands over the Host as it came; whatever it says, it is the one of the Host line, and hostname judges it.
func TestA14(t *testing.T) {
	for _, h := range []string{"A.TEST", "a.test.", "a.test:443", "a.test,b.test", "u@a.test", "a.test/x", "a.test?x", "[::1]:80", "xn--a", "a\xc3\xa9.test", "a b", "a.test:", "a.test#b", "a%00.test"} {
		for how, src := range readers("GET http://b.test/ HTTP/1.1\r\nHost: " + h + "\r\n\r\n") {
			if o := readRequest(src, testLimits); o.err != reason.HostAmbiguous.String() {
				t.Errorf("%s: absolute target with Host %q: %+v", how, h, o)
			}
		}
		var d Reader
		var req message.Request
		d.Reset(strings.NewReader("GET / HTTP/1.1\r\nHost: "+h+"\r\n\r\n"), testLimits, false)
		if err := d.ReadRequest(&req); err != nil || string(req.Host) != h {
			t.Errorf("Host %q: %v, %q", h, err, req.Host)
		}
	}
}

// Every prefix of a good request is an error that is no refusal: the connection ended, and nothing was misread.
func TestCutAnywhere(t *testing.T) {
	for _, in := range []string{line + host + "X: y\r\n\r\n", post("Content-Length: 5\r\n", "hello"), chunked("5;x=y\r\nhello\r\n0\r\nT: v\r\n\r\n")} {
		for i := range len(in) {
			for how, src := range readers(in[:i]) {
				o := readRequest(src, testLimits)
				if o.err != "EOF" && o.err != "unexpected EOF" {
					t.Errorf("%s: cut at %d: %+v", how, i, o)
				}
				if o.err == "EOF" && o.head != "" {
					t.Errorf("%s: cut at %d inside the body: %+v", how, i, o)
				}
			}
		}
	}
}

func TestHeadLimitExact(t *testing.T) {
	for _, extra := range []int{-1, 0, 1} {
		in := line + host + "X: "
		in += strings.Repeat("y", testLimits.HeadBytes-len(in)-4+extra) + "\r\n\r\n"
		for how, src := range readers(in + "rest") {
			o := readRequest(src, testLimits)
			if (o.err == "") != (extra <= 0) || extra > 0 && o.err != reason.HeaderTooLarge.String() {
				t.Errorf("%s: %+d: %s", how, extra, o.err)
			}
		}
	}
	// Leading text may not grow without bound either, and what is not text is refused at its first byte.
	var d Reader
	src := &counter{r: io.MultiReader(strings.NewReader("\x80"), iotest.ErrReader(errors.New("read on")))}
	d.Reset(src, testLimits, false)
	if err := d.ReadRequest(new(message.Request)); refused(err) != reason.BadRequestLine || src.n != 1 {
		t.Errorf("%v after %d bytes", err, src.n)
	}
	src = &counter{r: endless('a')}
	d.Reset(src, testLimits, false)
	if err := d.ReadRequest(new(message.Request)); refused(err) != reason.HeaderTooLarge || src.n > testLimits.HeadBytes+slack {
		t.Errorf("%v after %d bytes", err, src.n)
	}
}

type counter struct {
	r io.Reader
	n int
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

func TestBodyLimit(t *testing.T) {
	limits := testLimits
	limits.BodyBytes = 5
	for _, c := range []struct {
		in, err string
	}{
		{post("Content-Length: 5\r\n", "hello"), ""},
		{post("Content-Length: 6\r\n", "hello!"), "body_too_large"},
		{post("Content-Length: 999999999999999999\r\n", ""), "body_too_large"},
		{chunked("5\r\nhello\r\n0\r\n\r\n"), ""},
		{chunked("5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"), "body_too_large"},
		{chunked("6\r\nhello!\r\n0\r\n\r\n"), "body_too_large"},
	} {
		for how, src := range readers(c.in) {
			if o := readRequest(src, limits); o.err != c.err {
				t.Errorf("%s: %q: %+v", how, c.in, o)
			}
		}
	}
}

// One reader for several requests, bodies read in each of the ways there are.
func TestPipeline(t *testing.T) {
	in := strings.Repeat(post("Content-Length: 5\r\n", "hello")+chunked("3\r\nabc\r\n0\r\nT: v\r\n\r\n")+line+host+"\r\n", 500)
	for how, src := range readers(in) {
		var d Reader
		var req message.Request
		d.Reset(src, testLimits, false)
		for i := range 1500 {
			if err := d.ReadRequest(&req); err != nil {
				t.Fatalf("%s: request %d: %v", how, i, err)
			}
			b := d.Body(&req.Head, true)
			var got []byte
			if whole, ok := b.Buffered(); ok {
				got = whole
			} else {
				got, _ = io.ReadAll(b)
			}
			if want := []string{"hello", "abc", ""}[i%3]; string(got) != want || !b.Done() || b.Total() != int64(len(want)) {
				t.Fatalf("%s: request %d: body %q done=%v total=%d", how, i, got, b.Done(), b.Total())
			}
		}
		if err := d.ReadRequest(&req); err != io.EOF {
			t.Errorf("%s: end: %v", how, err)
		}
		if d.buf != nil {
			t.Errorf("%s: an idle reader holds a buffer", how)
		}
	}
}

// A broken reader does not make us spin.
func TestNoProgress(t *testing.T) {
	var d Reader
	d.Reset(io.MultiReader(strings.NewReader("GET /"), stuck{}), testLimits, false)
	if err := d.ReadRequest(new(message.Request)); err != io.ErrNoProgress {
		t.Error(err)
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

// Reading an ordinary request allocates nothing once the reader is warm.
func TestNoAllocation(t *testing.T) {
	for name, in := range map[string]string{
		"get":  "GET /v1/items?page=2 HTTP/1.1\r\n" + host + "User-Agent: curl/8.5.0\r\nAccept: */*\r\nCookie: a=b; c=d\r\nConnection: keep-alive\r\nX-Request-Id: 123\r\n\r\n",
		"post": post("Content-Type: text/plain\r\nContent-Length: 5\r\n", "hello"), "chunked": chunked("5;x\r\nhello\r\n0\r\n\r\n"),
		"expect": post("Content-Length: 5\r\nExpect: 100-continue\r\nConnection: x-a\r\nX-A: b\r\n", "hello"),
	} {
		src := bytes.NewReader([]byte(in))
		var d Reader
		var req message.Request
		d.Reset(src, testLimits, false)
		sink := make([]byte, 64)
		if n := testing.AllocsPerRun(200, func() {
			src.Seek(0, io.SeekStart)
			if err := d.ReadRequest(&req); err != nil {
				t.Fatal(err)
			}
			for b := d.Body(&req.Head, true); !b.Done(); {
				if _, err := b.Read(sink); err != nil && err != io.EOF {
					t.Fatal(err)
				}
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
