package h1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"countersign/internal/hostname"
	"countersign/internal/message"
	"countersign/internal/reason"
	"countersign/internal/route"
)

// read reads one request head in a mode.
func read(src io.Reader, mode message.Mitigation) (*message.Request, *Reader, error) {
	limits := testLimits
	limits.Mitigation = mode
	d, req := new(Reader), new(message.Request)
	d.Reset(src, limits, false)
	return req, d, d.ReadRequest(req)
}

var modes = []message.Mitigation{message.Strictest, message.Defensive, message.Monitor}

// none stands for a request that is passed on.
const none = reason.Unset

// classified are requests with what they are classified as, and the refusal in the mode strictest and in the two others,
// which refuse alike.
var classified = []struct {
	name, in      string
	why           message.ClassReason
	strict, loose reason.Reason
}{
	{"plain", line + host + "\r\n", message.NoDeviation, none, none},
	{"post", post("Content-Length: 5\r\n", "hello"), message.NoDeviation, none, none},
	{"chunked", chunked("0\r\n\r\n"), message.NoDeviation, none, none},
	{"post nothing", post("Content-Length: 0\r\n", ""), message.NoDeviation, none, none},
	{"delete with body", "DELETE / HTTP/1.1\r\n" + host + "Content-Length: 1\r\n\r\nx", message.NoDeviation, none, none},
	{"get is not GET", "get / HTTP/1.1\r\n" + host + "Content-Length: 1\r\n\r\nx", message.NoDeviation, none, none},
	{"obs-text", line + host + "X: \xff\r\n\r\n", message.NoDeviation, none, none},
	{"names that only look alike", line + host + "Content-Lengths: 1\r\nX-Content-Length: 1\r\nContent-Length-2: 1\r\nTransfer-Encodings: 1\r\nTransfer-Encoder: 1\r\nContent-Lenght: 1\r\nContentLength: 1\r\n\r\n", message.NoDeviation, none, none},

	{"E04/get zero", line + host + "Content-Length: 0\r\n\r\n", message.GetHeadZeroContentLength, none, none},
	{"E04/head zeros", "HEAD / HTTP/1.1\r\n" + host + "Content-Length: 000\r\n\r\n", message.GetHeadZeroContentLength, none, none},
	{"E11/get length", line + host + "Content-Length: 5\r\n\r\nhello", message.UndefinedContentLengthSemantics, none, none},
	{"E11/head length", "HEAD / HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nhello", message.UndefinedContentLengthSemantics, none, none},
	{"E11/get length http10", "GET / HTTP/1.0\r\n" + host + "Content-Length: 5\r\n\r\nhello", message.UndefinedContentLengthSemantics, none, none},
	{"E11/get chunked", line + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", message.UndefinedTransferEncodingSemantics, none, none},
	{"E11/head chunked", "HEAD / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", message.UndefinedTransferEncodingSemantics, none, none},

	{"E04/duplicate", post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), message.DuplicateContentLength, reason.ContentLengthInvalid, none},
	{"E04/three", post("Content-Length: 5\r\ncontent-length: 5\r\nCONTENT-LENGTH:5\r\n", "hello"), message.DuplicateContentLength, reason.ContentLengthInvalid, none},
	{"E04/duplicate zero", post("Content-Length: 0\r\nContent-Length: 0\r\n", ""), message.DuplicateContentLength, reason.ContentLengthInvalid, none},
	{"E04/duplicate get", line + host + "Content-Length: 0\r\nContent-Length: 0\r\n\r\n", message.DuplicateContentLength, reason.ContentLengthInvalid, none},
	{"E04/same number, other text", post("Content-Length: 5\r\nContent-Length: 05\r\n", "hello"), message.MultipleContentLength, reason.ContentLengthInvalid, reason.ContentLengthInvalid},
	{"E04/differ", post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"), message.MultipleContentLength, reason.ContentLengthInvalid, reason.ContentLengthInvalid},
	{"E04/differ behind same", post("Content-Length: 5\r\nContent-Length: 6\r\nContent-Length: 5\r\n", "hello!"), message.MultipleContentLength, reason.ContentLengthInvalid, reason.ContentLengthInvalid},
	{"E04/duplicate bad", post("Content-Length: x\r\nContent-Length: x\r\n", ""), message.BadContentLength, reason.ContentLengthInvalid, reason.ContentLengthInvalid},
	{"E04/list", post("Content-Length: 5, 5\r\n", "hello"), message.BadContentLength, reason.ContentLengthInvalid, reason.ContentLengthInvalid},
	{"E04/empty", post("Content-Length:\r\n", ""), message.BadContentLength, reason.ContentLengthInvalid, reason.ContentLengthInvalid},
	{"E04/huge", post("Content-Length: 9999999999999999999\r\n", ""), message.BadContentLength, reason.ContentLengthInvalid, reason.ContentLengthInvalid},
	{"E04/get bad", line + host + "Content-Length: -1\r\n\r\n", message.BadContentLength, reason.ContentLengthInvalid, reason.ContentLengthInvalid},
	{"E04/control", post("Content-Length: 5\x0b\r\n", "hello"), message.BadContentLength, reason.BadHeader, reason.BadHeader},

	{"E01/both", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), message.BothTeClPresent, reason.FramingAmbiguous, reason.FramingAmbiguous},
	{"E01/both on get", line + host + "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n", message.BothTeClPresent, reason.FramingAmbiguous, reason.FramingAmbiguous},
	{"E01/both, bad length", post("Transfer-Encoding: chunked\r\nContent-Length: x\r\n", "0\r\n\r\n"), message.BadContentLength, reason.FramingAmbiguous, reason.FramingAmbiguous},
	{"E01/both, bad coding", post("Transfer-Encoding: identity\r\nContent-Length: 5\r\n", "hello"), message.BadTransferEncoding, reason.FramingAmbiguous, reason.FramingAmbiguous},
	{"E02/unknown", post("Transfer-Encoding: xchunked\r\n", ""), message.BadTransferEncoding, reason.TransferEncodingUnsupported, reason.TransferEncodingUnsupported},
	{"E02/empty", post("Transfer-Encoding:\r\n", ""), message.BadTransferEncoding, reason.TransferEncodingUnsupported, reason.TransferEncodingUnsupported},
	{"E02/known to ALB", post("Transfer-Encoding: gzip, chunked\r\n", ""), message.BadTransferEncoding, reason.TransferEncodingUnsupported, reason.TransferEncodingUnsupported},
	{"E02/twice in one", post("Transfer-Encoding: chunked, chunked\r\n", ""), message.MultipleTransferEncodingChunked, reason.TransferEncodingUnsupported, reason.TransferEncodingUnsupported},
	{"E02/two lines", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), message.MultipleTransferEncodingChunked, reason.FramingAmbiguous, reason.FramingAmbiguous},
	{"E02/control", post("Transfer-Encoding: \x0bchunked\r\n", ""), message.BadTransferEncoding, reason.BadHeader, reason.BadHeader},
	{"E02/nul", post("Transfer-Encoding: chunked\x00\r\n", ""), message.BadHeader, reason.BadHeader, reason.BadHeader},
	{"E03/http10", "POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", message.UndefinedTransferEncodingSemantics, reason.FramingAmbiguous, reason.FramingAmbiguous},

	{"E02/underscore", post("Transfer_Encoding: chunked\r\n", ""), message.SuspiciousHeader, reason.BadHeader, none},
	{"E02/hyphens", post("Transfer--Encoding: chunked\r\n", ""), message.SuspiciousHeader, reason.BadHeader, none},
	{"E02/dot before", post(".Transfer-Encoding: chunked\r\n", ""), message.SuspiciousHeader, reason.BadHeader, none},
	{"E02/inside", post("t-r-a-n-s-f-e-r-encodinG: chunked\r\n", ""), message.SuspiciousHeader, reason.BadHeader, none},
	{"E04/underscore", post("Content_Length: 5\r\n", ""), message.SuspiciousHeader, reason.BadHeader, none},
	{"E04/upper case behind", post("CONTENT-LENGTH_: 5\r\n", ""), message.SuspiciousHeader, reason.BadHeader, none},
	{"E04/beside the real one", post("Content_Length: 6\r\nContent-Length: 5\r\n", "hello"), message.SuspiciousHeader, reason.BadHeader, none},
	{"E04/beside a bad one", post("Content_Length: 6\r\nContent-Length: x\r\n", "hello"), message.BadContentLength, reason.BadHeader, reason.ContentLengthInvalid},
	{"E07/space before the colon", post("Transfer-Encoding : chunked\r\n", ""), message.SuspiciousHeader, reason.BadHeader, reason.BadHeader},
	{"E07/space inside", post("Transfer- Encoding: chunked\r\n", ""), message.SuspiciousHeader, reason.BadHeader, reason.BadHeader},
	{"E07/long s", post("Tran\u017ffer-Encoding: chunked\r\n", ""), message.SuspiciousHeader, reason.BadHeader, reason.BadHeader},
	{"E07/dotless i", post("Transfer-Encod\u0131ng: chunked\r\n", ""), message.SuspiciousHeader, reason.BadHeader, reason.BadHeader},
	{"E07/control before", post("\x01Content-Length: 5\r\n", ""), message.SuspiciousHeader, reason.BadHeader, reason.BadHeader},
	{"E07/no-break space", post("\xa0Content-Length: 5\r\n", ""), message.SuspiciousHeader, reason.BadHeader, reason.BadHeader},
	{"E07/other name", line + host + "X-A : b\r\n\r\n", message.NonCompliantHeader, reason.BadHeader, reason.BadHeader},
	{"E07/control in a value", line + host + "X-A: \x01\r\n\r\n", message.NonCompliantHeader, reason.BadHeader, reason.BadHeader},
	{"E07/nul", line + host + "X-A: \x00\r\n\r\n", message.BadHeader, reason.BadHeader, reason.BadHeader},
	{"E07/cr", line + host + "X-A: b\rc\r\n\r\n", message.BadHeader, reason.BadHeader, reason.BadHeader},
	{"E07/empty name", line + host + ": b\r\n\r\n", message.EmptyHeader, reason.BadHeader, reason.BadHeader},
	{"E07/no colon", line + host + "X-A\r\n\r\n", message.MissingHeaderColon, reason.BadHeader, reason.BadHeader},
	{"E07/the gravest counts", line + host + "X-A : b\r\nX\r\nY: \x00\r\n\r\n", message.BadHeader, reason.BadHeader, reason.BadHeader},
	{"E07/of two the first", line + host + ": b\r\nX\r\n\r\n", message.EmptyHeader, reason.BadHeader, reason.BadHeader},
	{"E07/space on the first line", line + " " + host + "\r\n", message.MultilineHeader, reason.BadHeader, reason.BadHeader},

	{"E08/lf", "GET / HTTP/1.1\nHost: a.test\nX: y\n\n", message.NonCrLfLineTermination, reason.BadHeader, none},
	{"E08/lf and a body", "POST / HTTP/1.1\nHost: a.test\nContent-Length: 5\n\nhello", message.NonCrLfLineTermination, reason.BadHeader, none},
	{"E08/lf, and worse", "GET / HTTP/1.1\nHost: a.test\nContent-Length: 5\n\nhello", message.UndefinedContentLengthSemantics, reason.BadHeader, none},
	{"E08/lf, then crlf", "GET / HTTP/1.1\nHost: a.test\r\n\r\n", message.NonCrLfLineTermination, reason.BadHeader, reason.BadHeader},
	{"E08/lf, then an empty crlf", "GET / HTTP/1.1\nHost: a.test\n\r\n", message.NonCrLfLineTermination, reason.BadHeader, reason.BadHeader},
	{"E08/crlf, then lf", line + "Host: a.test\n\r\n", message.NonCrLfLineTermination, reason.BadHeader, reason.BadHeader},
	{"E08/crlf, then an empty lf", line + host + "\n", message.NonCrLfLineTermination, reason.BadHeader, reason.BadHeader},
	{"E08/a field inside a value", line + host + "X: a\nTransfer-Encoding: chunked\r\n\r\n", message.NonCrLfLineTermination, reason.BadHeader, reason.BadHeader},
	{"E08/fold", line + host + "X-A: b\r\n c\r\n\r\n", message.MultilineHeader, reason.BadHeader, none},
	{"E08/fold with lf", "GET / HTTP/1.1\nHost: a.test\nX-A: b\n\tc\n d\n\n", message.MultilineHeader, reason.BadHeader, none},
	{"E08/fold of nothing", line + host + "X-A:\r\n b\r\n\r\n", message.MultilineHeader, reason.BadHeader, none},
	{"E08/fold like a field", line + host + "X-A: b\r\n Content-Length: 5\r\n\r\n", message.MultilineHeader, reason.BadHeader, reason.BadHeader},
	{"E08/fold of white space", line + host + "X-A: b\r\n \r\n\r\n", message.MultilineHeader, reason.BadHeader, reason.BadHeader},
	{"E08/fold, then white space", line + host + "X-A: b\r\n c\r\n \t\r\n d\r\n\r\n", message.MultilineHeader, reason.BadHeader, reason.BadHeader},
	{"E08/fold of host", line + "Host:\r\n a.test\r\n\r\n", message.MultilineHeader, reason.BadHeader, reason.BadHeader},
	{"E08/fold of length", post("Content-Length:\r\n 5\r\n", "hello"), message.BadContentLength, reason.BadHeader, reason.BadHeader},
	{"E08/fold of coding", post("Transfer-Encoding: chunked\r\n ,x\r\n", ""), message.MultilineHeader, reason.BadHeader, reason.BadHeader},
	{"E08/fold of connection", line + host + "Connection: close\r\n ,x\r\n\r\n", message.MultilineHeader, reason.BadHeader, reason.BadHeader},
	{"E08/fold of a name that resembles", post("Content_Length:\r\n 5\r\n", "hello"), message.SuspiciousHeader, reason.BadHeader, reason.BadHeader},
	{"E08/fold of a bad name", line + host + "X A: b\r\n c\r\n\r\n", message.MultilineHeader, reason.BadHeader, reason.BadHeader},
	{"E08/fold with a control", line + host + "X-A: b\r\n \x01\r\n\r\n", message.MultilineHeader, reason.BadHeader, reason.BadHeader},

	{"E10/http09", "GET /\r\n" + host + "\r\n", message.NonCompliantVersion, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/http12", "GET / HTTP/1.2\r\n" + host + "\r\n", message.NonCompliantVersion, reason.VersionUnsupported, reason.VersionUnsupported},
	{"E10/space behind", "GET / HTTP/1.1 \r\n" + host + "\r\n", message.NonCompliantVersion, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/tab before the version", "GET / \tHTTP/1.1\r\n" + host + "\r\n", message.NonCompliantVersion, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/http2", "GET / HTTP/2.0\r\n" + host + "\r\n", message.BadVersion, reason.VersionUnsupported, reason.VersionUnsupported},
	{"E10/lower case", "GET / http/1.1\r\n" + host + "\r\n", message.BadVersion, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/space in the target", "GET /a b HTTP/1.1\r\n" + host + "\r\n", message.SpaceInUri, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/two spaces", "GET  / HTTP/1.1\r\n" + host + "\r\n", message.SpaceInUri, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/tab in the target", "GET /a\tb HTTP/1.1\r\n" + host + "\r\n", message.AmbiguousUri, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/8 bit", "GET /\xff HTTP/1.1\r\n" + host + "\r\n", message.AmbiguousUri, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/fragment", "GET /#f HTTP/1.1\r\n" + host + "\r\n", message.AmbiguousUri, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/no form", "GET a.test HTTP/1.1\r\n" + host + "\r\n", message.AmbiguousUri, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/star", "GET * HTTP/1.1\r\n" + host + "\r\n", message.AmbiguousUri, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/nul in the target", "GET /\x00 HTTP/1.1\r\n" + host + "\r\n", message.BadUri, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/cr in the target", "GET /\r HTTP/1.1\r\n" + host + "\r\n", message.BadUri, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/no target", "GET HTTP/1.1\r\n" + host + "\r\n", message.MissingUri, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/empty target", "GET  HTTP/1.1\r\n" + host + "\r\n", message.MissingUri, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/method only", "GET\r\n" + host + "\r\n", message.MissingUri, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/method", "G(T / HTTP/1.1\r\n" + host + "\r\n", message.BadMethod, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/long method", strings.Repeat("A", 33) + " / HTTP/1.1\r\n" + host + "\r\n", message.BadMethod, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/no text", "\x16\x03\x01", message.BadMethod, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/leading line end", "\r\n" + line + host + "\r\n", message.BadMethod, reason.BadRequestLine, reason.BadRequestLine},
	{"E10/tabs", "GET\t/\tHTTP/1.1\r\n" + host + "\r\n", message.BadMethod, reason.BadRequestLine, reason.BadRequestLine},

	// What ALB has no name for keeps its own reason, and is not counted twice.
	{"E09/host", line + host + host + "\r\n", message.NoDeviation, reason.HostAmbiguous, reason.HostAmbiguous},
	{"E16/connect", "CONNECT a.test:443 HTTP/1.1\r\n" + host + "\r\n", message.NoDeviation, reason.MethodRefused, reason.MethodRefused},
	{"E23/expect", post("Expect: x\r\n", ""), message.NoDeviation, reason.ExpectationUnsupported, reason.ExpectationUnsupported},
	{"F/large", "GET /" + strings.Repeat("a", 9000), message.NoDeviation, reason.HeaderTooLarge, reason.HeaderTooLarge},
}

func TestClassified(t *testing.T) {
	seen := make(map[message.ClassReason]bool)
	for _, c := range classified {
		seen[c.why] = true
		for _, mode := range modes {
			t.Run(fmt.Sprintf("%s/%s", c.name, mode), func(t *testing.T) {
				want, why := c.strict, c.why
				if mode != message.Strictest {
					want = c.loose
				} else if line, _, _ := strings.Cut(c.in, "\n"); strings.HasSuffix(line, "1.1") {
					why = message.NonCrLfLineTermination // refused there, whatever follows
				}
				for how, src := range readers(c.in) {
					req, _, err := read(src, mode)
					if refused(err) != want || want == none && err != nil {
						t.Errorf("%s: expected %q, found %v", how, want, err)
					}
					if req.ClassReason != why {
						t.Errorf("%s: expected %s, found %s", how, why, req.ClassReason)
					}
					closes := want == none && c.why.Class() >= message.Ambiguous && mode != message.Monitor
					if req.CloseAfter != closes || closes && req.KeepAlive {
						t.Errorf("%s: %s: close after it %v, keep alive %v", how, c.why, req.CloseAfter, req.KeepAlive)
					}
				}
			})
		}
	}
	// The two that need the end of the connection.
	for in, why := range map[string]message.ClassReason{
		"GET / HT": message.PartialHeaderLine, line + "Host: a": message.PartialHeaderLine, line + "Host: a.test\r": message.PartialHeaderLine,
		line: message.MissingLastEmptyLine, line + host: message.MissingLastEmptyLine, "": message.NoDeviation,
	} {
		seen[why] = true
		for how, src := range readers(in) {
			if req, _, err := read(src, message.Defensive); err == nil || refused(err) != none || req.ClassReason != why {
				t.Errorf("%s: %q: %v, %s", how, in, err, req.ClassReason)
			}
		}
	}
	for r := range message.ClassReason(message.ClassReasons) {
		if !seen[r] {
			t.Errorf("no request is %s", r)
		}
	}
}

// write is how a request is passed on: what forward does with a head, without what it adds.
func write(req *message.Request, body []byte) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s", req.Method, req.Path)
	if req.HasQuery {
		fmt.Fprintf(&b, "?%s", req.Query)
	}
	fmt.Fprintf(&b, " HTTP/1.1\r\nHost: %s\r\n", req.Host)
	for _, f := range req.Fields {
		if !f.Hop {
			fmt.Fprintf(&b, "%s: %s\r\n", f.Name, f.Value)
		}
	}
	switch {
	case req.Framing == message.Chunked:
		b.WriteString("Transfer-Encoding: chunked\r\n\r\n")
		if len(body) > 0 {
			b.WriteString(strconv.FormatInt(int64(len(body)), 16) + "\r\n" + string(body) + "\r\n")
		}
		b.WriteString("0\r\n\r\n")
		return b.String()
	case req.ContentLength >= 0:
		fmt.Fprintf(&b, "Content-Length: %d\r\n", req.ContentLength)
	}
	return b.String() + "\r\n" + string(body)
}

// compliant fails unless what is passed on of a request is one that the strictest mode reads in the same way, and whose
// only deviation, if any, is that a GET or HEAD has a body: a request may have that, but must not lose it (E11).
func compliant(t *testing.T, in string, req *message.Request, d *Reader) {
	t.Helper()
	body, err := io.ReadAll(d.Body(&req.Head, true))
	if err != nil {
		return // the exchange is broken off
	}
	out := write(req, body)
	again, d2, err := read(strings.NewReader(out), message.Strictest)
	if err != nil {
		t.Fatalf("%q is passed on as %q, which is refused: %v", in, out, err)
	}
	switch again.ClassReason {
	case message.NoDeviation:
	case message.UndefinedContentLengthSemantics, message.UndefinedTransferEncodingSemantics:
		if req.ClassReason.Class() < message.Ambiguous {
			t.Fatalf("%q is %s, and is passed on as %q, which is %s", in, req.ClassReason, out, again.ClassReason)
		}
	default:
		t.Fatalf("%q is passed on as %q, which is %s", in, out, again.ClassReason)
	}
	body2, err := io.ReadAll(d2.Body(&again.Head, true))
	if err != nil || !bytes.Equal(body, body2) || again.Framing != req.Framing || again.ContentLength != req.ContentLength || !bytes.Equal(again.Method, req.Method) ||
		!bytes.Equal(again.Path, req.Path) || !bytes.Equal(again.Query, req.Query) || !bytes.Equal(again.Host, req.Host) || d2.Buffered() != 0 {
		t.Fatalf("%q is passed on as %q, which is another request: %q %v", in, out, body2, err)
	}
}

func TestNormalForm(t *testing.T) {
	passed := 0
	for _, c := range classified {
		for _, mode := range modes {
			if req, d, err := read(strings.NewReader(c.in), mode); err == nil {
				passed++
				compliant(t, c.in, req, d)
			}
		}
	}
	if passed < 50 {
		t.Errorf("only %d requests passed", passed)
	}
	for _, c := range []struct{ in, want string }{
		{line + host + "Content-Length: 0\r\n\r\n", line + host + "\r\n"},
		{line + host + "Content-Length: 0\r\nContent-Length: 0\r\n\r\n", line + host + "\r\n"},
		{post("Content-Length: 5\r\nX: y\r\nContent-Length: 5\r\n", "hello"), post("X: y\r\nContent-Length: 5\r\n", "hello")},
		{post("Transfer_Encoding: chunked\r\nX: y\r\nContent_Length: 9\r\n", ""), post("X: y\r\n", "")},
		{"GET /a?b HTTP/1.1\nHost: a.test\nX: y \n\n", "GET /a?b HTTP/1.1\r\n" + host + "X: y\r\n\r\n"},
		{line + host + "X: a \r\n\t b\r\n c\t\r\nY: d\r\n\r\n", line + host + "X: a   \t b   c\r\nY: d\r\n\r\n"},
		{line + host + "X:\r\n \tb\r\n\r\n", line + host + "X: b\r\n\r\n"},
		{"GET / HTTP/1.1\nHost: a.test\nX: a\n b\n\n", line + host + "X: a   b\r\n\r\n"},
	} {
		for how, src := range readers(c.in) {
			req, d, err := read(src, message.Defensive)
			if err != nil {
				t.Errorf("%s: %q: %v", how, c.in, err)
				continue
			}
			body, _ := io.ReadAll(d.Body(&req.Head, true))
			if got := write(req, body); got != c.want {
				t.Errorf("%s: %q:\nexpected %q\nfound    %q", how, c.in, c.want, got)
			}
		}
	}
}

// What every mode refuses: of all that the strictest refuses, the others pass only what is listed here by its class.
func TestNoSingleMeaning(t *testing.T) {
	passes := map[string]bool{"E04/twice/0": true, "E04/twice/2": true, "E08/bare-lf/0": true, "E08/fold/0": true, "E08/fold/1": true}
	for _, c := range refusals() {
		for _, mode := range []message.Mitigation{message.Defensive, message.Monitor} {
			limits := testLimits
			limits.Mitigation = mode
			for how, src := range readers(c.in) {
				o := readRequest(src, limits)
				if passes[c.name] != (o.err == "") {
					t.Errorf("%s: %s: %s: %q", c.name, mode, how, o.err)
				}
				if o.err != "" && o.err != c.why.String() && !strings.Contains(c.in, "\n\n") {
					t.Errorf("%s: %s: %s: expected %s, found %q", c.name, mode, how, c.why, o.err)
				}
			}
		}
	}
}

// A mode other than the strictest does not change how ordinary requests are read.
func TestModesAgree(t *testing.T) {
	for _, c := range accepted {
		for _, mode := range modes {
			limits := testLimits
			limits.Mitigation = mode
			want := c.want
			if c.name == "E11/get" && mode == message.Monitor {
				want.head = strings.Replace(want.head, "keep=false", "keep=true", 1) // it ends no connection
			}
			if got := readRequest(strings.NewReader(c.in), limits); got != want {
				t.Errorf("%s: %s:\nexpected %+v\nfound    %+v", c.name, mode, want, got)
			}
		}
	}
}

// Behind a head with bare LF the next one is read as it comes.
func TestBareLineEndsPipelined(t *testing.T) {
	in := "GET /1 HTTP/1.1\nHost: a.test\n\n" + "GET /2 HTTP/1.1\r\n" + host + "\r\n" + "POST /3 HTTP/1.1\nHost: a.test\nContent-Length: 5\n\nhello" + "GET /4 HTTP/1.1\r\nHost: a.test\n\n"
	for how, src := range readers(in) {
		var d Reader
		var req message.Request
		limits := testLimits
		limits.Mitigation = message.Defensive
		d.Reset(src, limits, false)
		for i, why := range []message.ClassReason{message.NonCrLfLineTermination, message.NoDeviation, message.NonCrLfLineTermination} {
			if err := d.ReadRequest(&req); err != nil || string(req.Path) != fmt.Sprintf("/%d", i+1) || req.ClassReason != why || !req.KeepAlive {
				t.Fatalf("%s: %d: %v %s %s", how, i, err, req.Path, req.ClassReason)
			}
			if body, err := io.ReadAll(d.Body(&req.Head, true)); err != nil || i == 2 && string(body) != "hello" {
				t.Fatalf("%s: %q %v", how, body, err)
			}
		}
		if err := d.ReadRequest(&req); refused(err) != reason.BadHeader {
			t.Errorf("%s: %v", how, err)
		}
	}
}

// Targets are read strictly, whatever the listener's mode.
func TestResponsesStayStrict(t *testing.T) {
	for _, in := range []string{"HTTP/1.1 200 OK\nContent-Length: 0\n\n", ok + "X: a\r\n b\r\n\r\n", ok + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"} {
		var d Reader
		var resp message.Response
		d.Reset(strings.NewReader(in), Limits{HeadBytes: 8 << 10, Fields: 20}, true)
		if err := d.ReadResponse(&resp, false); refused(err) != reason.UpstreamBadResponse {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// TestDifferential: requests of the tables above, mutated. What is passed on of each means the same to a parser that we
// did not write as what we decided on (E34).
func TestDifferential(t *testing.T) { t.Run("E34/mutated", mutated) }

func mutated(t *testing.T) {
	const wanted, budget = 1_000_000, 2 * time.Second
	var seeds []string
	for _, c := range refusals() {
		if len(c.in) < 500 {
			seeds = append(seeds, c.in)
		}
	}
	for _, c := range accepted {
		seeds = append(seeds, c.in, c.in, c.in)
	}
	for _, c := range classified {
		if len(c.in) < 500 {
			seeds = append(seeds, c.in)
		}
	}
	const odd = "\r\n\t :,;_-\x00\xff/#?@05"
	rnd := rand.New(rand.NewPCG(34, 34))
	end := time.Now().Add(budget)
	sent, passed := 0, 0
	for ; sent < wanted && (passed < 100 || time.Now().Before(end)); sent++ {
		in := []byte(seeds[rnd.IntN(len(seeds))])
		for range rnd.IntN(4) {
			at := rnd.IntN(len(in))
			switch rnd.IntN(4) {
			case 0:
				in = slices.Insert(in, at, odd[rnd.IntN(len(odd))])
			case 1:
				in = append(in[:at:at], in[at+1:]...)
			case 2:
				in = slices.Insert(in, at, in[at:min(at+1+rnd.IntN(20), len(in))]...)
			default:
				in[at] ^= 1 << rnd.IntN(8)
			}
			if len(in) == 0 {
				in = []byte{'G'}
			}
		}
		req, d, err := read(bytes.NewReader(bytes.Clone(in)), modes[sent%len(modes)])
		if err != nil {
			continue
		}
		compliant(t, string(in), req, d)
		req, d, _ = read(bytes.NewReader(bytes.Clone(in)), modes[sent%len(modes)]) // that one's body is read
		body, err := io.ReadAll(d.Body(&req.Head, true))
		var scratch [4096]byte
		if _, _, bad := hostname.AppendCanonicalHost(nil, req.Host); err != nil || bad != nil {
			continue
		}
		if _, err := route.Analyze(req.Path, scratch[:0]); err != nil && string(req.Path) != "*" {
			continue
		}
		passed++
		out := write(req, body)
		theirs, err := http.ReadRequest(bufio.NewReader(strings.NewReader(out)))
		if err != nil {
			t.Fatalf("%q is passed on as %q: %v", in, out, err)
		}
		got, err := io.ReadAll(theirs.Body)
		target := string(req.Path)
		if req.HasQuery {
			target += "?" + string(req.Query)
		}
		if err != nil || theirs.Method != string(req.Method) || theirs.RequestURI != target || theirs.Host != string(req.Host) || !bytes.Equal(got, body) {
			t.Fatalf("%q is passed on as %q, which means %s %s of %s with %q (%v)", in, out, theirs.Method, theirs.RequestURI, theirs.Host, got, err)
		}
	}
	t.Logf("%d sent, %d passed on", sent, passed)
	if passed < 100 {
		t.Errorf("only %d requests passed", passed)
	}
}
