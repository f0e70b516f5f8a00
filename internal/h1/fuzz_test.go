package h1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"countersign/internal/hostname"
	"countersign/internal/message"
	"countersign/internal/route"
)

// Where we accept what net/http refuses. Everything else that we accept, it accepts, and reads the same into it.
//
//   - Trailer: net/http refuses an announcement of framing fields. We drop the field, and every trailer behind a body.
//   - Trailers: net/http keeps those it reads, and so refuses some whose names we need not like, as we drop them all.
//
// What we refuse and net/http accepts is not listed: it is the purpose of this package.
func intendedException(err error) bool {
	for _, text := range []string{"bad trailer key", "suspiciously long trailer after chunked body", "malformed MIME header"} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

var fuzzLimits = Limits{HeadBytes: 32 << 10, Fields: 100}

// large is more than any input, so that net/http's own limits on what it looks ahead do not matter.
const large64 = 64 << 10

func FuzzReadRequest(f *testing.F) {
	for _, c := range refusals() {
		f.Add([]byte(c.in))
	}
	for _, c := range accepted {
		f.Add([]byte(c.in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > large64/2 {
			return
		}
		o := readRequest(bytes.NewReader(in), fuzzLimits)
		if slow := readRequest(iotest.OneByteReader(bytes.NewReader(in)), fuzzLimits); slow != o {
			t.Fatalf("%q:\nwhole %+v\nbyte by byte %+v", in, o, slow)
		}
		if o.head == "" {
			return
		}
		var d Reader
		var req message.Request
		d.Reset(bytes.NewReader(in), fuzzLimits, false)
		if err := d.ReadRequest(&req); err != nil {
			t.Fatal(err)
		}
		// What a request must pass besides h1 before anything of it is forwarded.
		var scratch [4096]byte
		if _, _, err := hostname.AppendCanonicalHost(nil, req.Host); err != nil {
			return
		}
		if _, err := route.Analyze(req.Path, scratch[:0]); err != nil && string(req.Path) != "*" {
			return
		}
		src := bytes.NewReader(in)
		br := bufio.NewReaderSize(src, large64)
		theirs, err := http.ReadRequest(br)
		if err != nil {
			if intendedException(err) {
				return
			}
			t.Fatalf("%q: we accept, net/http says %v", in, err)
		}
		target := string(req.Path)
		if req.HasQuery {
			target += "?" + string(req.Query)
		}
		if uri := theirs.RequestURI; strings.HasPrefix(uri, "/") || uri == "*" {
			if uri != target {
				t.Fatalf("%q: target %q, net/http %q", in, target, uri)
			}
		} else if !strings.HasSuffix(uri, target) && !(target == "/" && theirs.URL.Path == "") {
			t.Fatalf("%q: target %q, net/http %q", in, target, uri)
		}
		if theirs.Method != string(req.Method) || !strings.EqualFold(theirs.Host, string(req.Host)) || theirs.ProtoMinor != int(req.Minor) {
			t.Fatalf("%q: %s %s 1.%d, net/http %s %s %s", in, req.Method, req.Host, req.Minor, theirs.Method, theirs.Host, theirs.Proto)
		}
		if theirs.ContentLength != max(req.ContentLength, -1) && !(req.ContentLength == -1 && req.Framing == message.NoBody && theirs.ContentLength == 0) {
			t.Fatalf("%q: length %d, net/http %d", in, req.ContentLength, theirs.ContentLength)
		}
		for i := range req.Fields {
			fd := &req.Fields[i]
			// Everything that we pass on was read by net/http as a field of this name and value.
			if !fd.Hop && !has(theirs.Header, string(fd.Name), string(fd.Value)) {
				t.Fatalf("%q: field %q: %q is not among %v", in, fd.Name, fd.Value, theirs.Header)
			}
		}
		sameBody(t, in, o, theirs.Body, br, src)
	})
}

// FuzzModes holds what the modes have in common: a looser one reads what the strictest accepts in the same way, and what
// it accepts beyond that it says why, and passes on in a form that the strictest has nothing against.
func FuzzModes(f *testing.F) {
	for _, c := range classified {
		f.Add([]byte(c.in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > large64/2 {
			return
		}
		limits := fuzzLimits
		strict := readRequest(bytes.NewReader(in), limits)
		for _, mode := range modes {
			limits.Mitigation = mode
			o := readRequest(bytes.NewReader(in), limits)
			if slow := readRequest(iotest.OneByteReader(bytes.NewReader(in)), limits); slow != o {
				t.Fatalf("%q: %s:\nwhole %+v\nbyte by byte %+v", in, mode, o, slow)
			}
			req, d, err := read(bytes.NewReader(bytes.Clone(in)), mode)
			if err == nil {
				compliant(t, string(in), req, d)
			}
			switch class := req.ClassReason.Class(); {
			case err == nil && class == message.Severe:
				t.Fatalf("%q: %s: severe, and passed", in, mode)
			case err == nil && req.CloseAfter != (class == message.Ambiguous && mode != message.Monitor):
				t.Fatalf("%q: %s: %s: close %v", in, mode, req.ClassReason, req.CloseAfter)
			}
			if strict.head != "" {
				if mode == message.Monitor {
					o.head, strict.head = strings.ReplaceAll(o.head, "keep=true", "keep=false"), strings.ReplaceAll(strict.head, "keep=true", "keep=false")
				}
				if o != strict {
					t.Fatalf("%q: %s:\nstrictest %+v\nfound     %+v", in, mode, strict, o)
				}
			} else if o.head != "" {
				switch req.ClassReason {
				case message.NonCrLfLineTermination, message.DuplicateContentLength, message.SuspiciousHeader, message.MultilineHeader,
					message.UndefinedContentLengthSemantics, message.UndefinedTransferEncodingSemantics:
				default:
					t.Fatalf("%q: %s: passed, but %s", in, mode, req.ClassReason)
				}
			}
		}
	})
}

func has(h http.Header, name, value string) bool {
	for k, vs := range h {
		if strings.EqualFold(k, name) {
			for _, v := range vs {
				if v == value {
					return true
				}
			}
		}
	}
	return false
}

// sameBody compares body, its end, and the number of bytes that were used.
func sameBody(t *testing.T, in []byte, ours outcome, body io.Reader, br *bufio.Reader, src *bytes.Reader) {
	t.Helper()
	got, err := io.ReadAll(body)
	if err != nil && intendedException(err) {
		return
	}
	if ours.err != "" {
		// Refused, or cut off. Then it does not matter what follows, but what was read must be the same.
		if n := min(len(got), len(ours.body)); string(got[:n]) != ours.body[:n] {
			t.Fatalf("%q: body %q (%s), net/http %q (%v)", in, ours.body, ours.err, got, err)
		}
		return
	}
	if err != nil {
		t.Fatalf("%q: we read the body %q to its end, net/http says %v", in, ours.body, err)
	}
	if string(got) != ours.body {
		t.Fatalf("%q: body %q, net/http %q", in, ours.body, got)
	}
	if rest := br.Buffered() + src.Len(); rest != ours.rest {
		t.Fatalf("%q: %d bytes remain, with net/http %d", in, ours.rest, rest)
	}
}

func FuzzReadResponse(f *testing.F) {
	for _, c := range badResponses {
		f.Add([]byte(c.in), false)
	}
	for _, c := range goodResponses {
		f.Add([]byte(c.in), c.forHead)
	}
	f.Fuzz(func(t *testing.T, in []byte, forHead bool) {
		if len(in) > large64/2 {
			return
		}
		o := readResponse(bytes.NewReader(in), forHead)
		if slow := readResponse(iotest.OneByteReader(bytes.NewReader(in)), forHead); slow != o {
			t.Fatalf("%q:\nwhole %+v\nbyte by byte %+v", in, o, slow)
		}
		if o.head == "" {
			return
		}
		var d Reader
		var resp message.Response
		d.Reset(bytes.NewReader(in), testLimits, true)
		if err := d.ReadResponse(&resp, forHead); err != nil {
			t.Fatal(err)
		}
		req := &http.Request{Method: "GET"}
		if forHead {
			req.Method = "HEAD"
		}
		src := bytes.NewReader(in)
		br := bufio.NewReaderSize(src, large64)
		theirs, err := http.ReadResponse(br, req)
		if err != nil {
			if intendedException(err) {
				return
			}
			t.Fatalf("%q: we accept, net/http says %v", in, err)
		}
		if theirs.StatusCode != resp.Status || theirs.ProtoMinor != int(resp.Minor) {
			t.Fatalf("%q: %d 1.%d, net/http %s %s", in, resp.Status, resp.Minor, theirs.Status, theirs.Proto)
		}
		for i := range resp.Fields {
			fd := &resp.Fields[i]
			if !fd.Hop && !has(theirs.Header, string(fd.Name), string(fd.Value)) {
				t.Fatalf("%q: field %q: %q is not among %v", in, fd.Name, fd.Value, theirs.Header)
			}
		}
		if resp.KeepAlive && theirs.Close {
			t.Fatalf("%q: we would use the connection again, net/http would not", in)
		}
		sameBody(t, in, o, theirs.Body, br, src)
	})
}

func FuzzChunked(f *testing.F) {
	for _, c := range refusals() {
		if _, body, ok := strings.Cut(c.in, "Transfer-Encoding: chunked\r\n\r\n"); ok {
			f.Add([]byte(body), 7)
		}
	}
	for _, c := range accepted {
		if _, body, ok := strings.Cut(c.in, "Transfer-Encoding: chunked\r\n\r\n"); ok {
			f.Add([]byte(body), 1)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, size int) {
		if len(body) > large64/2 {
			return
		}
		head := ok + "Transfer-Encoding: chunked\r\n\r\n"
		in := append([]byte(head), body...)
		o := readResponse(bytes.NewReader(in), false)
		// The same with reads of another size, which is what a streaming exchange does.
		var d Reader
		var resp message.Response
		d.Reset(bytes.NewReader(in), testLimits, true)
		if err := d.ReadResponse(&resp, false); err != nil {
			t.Fatal(err)
		}
		b := d.Body(&resp.Head, false)
		var got []byte
		var err error
		for p := make([]byte, 1+uint(size)%100); err == nil; {
			var n int
			n, err = b.Read(p)
			got = append(got, p[:n]...)
		}
		if err == io.EOF {
			err = nil
		}
		if errText(err) != o.err || string(got) != o.body {
			t.Fatalf("%q: %q (%v), in larger reads %q (%s)", body, got, err, o.body, o.err)
		}
		src := bytes.NewReader(in)
		br := bufio.NewReaderSize(src, large64)
		theirs, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		sameBody(t, in, o, theirs.Body, br, src)
	})
}
