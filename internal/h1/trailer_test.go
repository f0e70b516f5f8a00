package h1

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"countersign/internal/message"
	"countersign/internal/reason"
)

// trailers reads a chunked body with its trailers, asking for them if collect says so.
func trailers(src io.Reader, limits Limits, request, collect bool) (string, error) {
	var d Reader
	d.Reset(src, limits, !request)
	var h message.Head
	if request {
		var req message.Request
		if err := d.ReadRequest(&req); err != nil {
			return "", err
		}
		h = req.Head
	} else {
		var resp message.Response
		if err := d.ReadResponse(&resp, false); err != nil {
			return "", err
		}
		h = resp.Head
	}
	b := d.Body(&h, request)
	if collect {
		b.CollectTrailers()
	}
	early := b.Trailers()
	_, err := io.ReadAll(b)
	if early != nil || err != nil && b.Trailers() != nil {
		return "", fmt.Errorf("trailers before the end: %v %v", early, b.Trailers())
	}
	var all []string
	for _, f := range b.Trailers() {
		all = append(all, fmt.Sprintf("%s=%s", f.Name, f.Value))
	}
	return strings.Join(all, "|"), err
}

// forbidden are names that no trailer may have, in either direction.
var forbidden = strings.Fields(`Content-Length Transfer-Encoding Trailer TE Host Connection Keep-Alive Proxy-Connection Upgrade HTTP2-Settings Expect
	Authorization Proxy-Authorization Proxy-Authenticate WWW-Authenticate Authentication-Info Cookie Set-Cookie
	Content-Type Content-Encoding Content-Range content-anything Cache-Control Pragma Range If-Match If-None-Match if-anything Max-Forwards
	Age Date Expires Location Retry-After Vary Warning Via X-HTTP-Method-Override X-Original-URL X-Rewrite-Url Access-Control-Allow-Origin Sec-WebSocket-Accept
	Client-Cert Client-Cert-Chain X-Client-Cert X.Client.Cert X-Forwarded-For Forwarded X-Real-IP X-SSL-Client-Verify x-amzn-mtls-clientcert x-countersign-x Proxy Traceparent tracestate
	Content_Length Transfer--Encoding CONTENT-LENGTH tRANSFER-eNCODING`)

func TestTrailers(t *testing.T) {
	for _, name := range forbidden {
		t.Run("E06/"+name, func(t *testing.T) {
			for _, request := range []bool{true, false} {
				in := chunked("5\r\nhello\r\n0\r\nX-A: b\r\n" + name + ": 77spoof\r\nX-C: d\r\n\r\n")
				if !request {
					in = ok + "Transfer-Encoding: chunked\r\n\r\n0\r\nX-A: b\r\n" + name + ": 77spoof\r\nX-C: d\r\n\r\n"
				}
				for how, src := range readers(in) {
					if got, err := trailers(src, testLimits, request, true); got != "X-A=b|X-C=d" || err != nil {
						t.Errorf("%s: request %v: %q %v", how, request, got, err)
					}
				}
				out := string(AppendTrailers(nil, []message.Field{{Name: []byte(name), Value: []byte("77spoof")}, {Name: []byte("X"), Value: []byte("y")}}, request))
				if out != "0\r\nX: y\r\n\r\n" {
					t.Errorf("written: %q", out)
				}
			}
		})
	}
	for _, request := range []bool{true, false} {
		head := "POST /p HTTP/1.1\r\n" + host
		bad := reason.ChunkInvalid
		if !request {
			head, bad = ok, reason.UpstreamBadResponse
		}
		head += "Transfer-Encoding: chunked\r\n\r\n"
		limit := testLimits.Fields
		if !request {
			limit *= 4
		}
		for _, c := range []struct {
			name, in, want string
			why            reason.Reason
		}{
			{"none", "0\r\n\r\n", "", none},
			{"grpc", "0\r\ngrpc-status: 0\r\nGrpc-Message:\t ok \r\ngrpc-status-details-bin: CAA=\r\n\r\n", "grpc-status=0|Grpc-Message=ok|grpc-status-details-bin=CAA=", none},
			{"order and repetition", "0\r\nB: 1\r\nA: 2\r\nB: 3\r\nEmpty:\r\n\r\n", "B=1|A=2|B=3|Empty=", none},
			{"not the data", "a\r\nX-A: b\r\n\r\n\r\n0\r\n\r\n", "", none},
			{"long", "0\r\nX: " + strings.Repeat("y", 3000) + "\r\nZ: " + strings.Repeat("w", 3000) + "\r\n\r\n", "X=" + strings.Repeat("y", 3000) + "|Z=" + strings.Repeat("w", 3000), none},
			{"F/as many as fields", "0\r\n" + strings.Repeat("X: y\r\n", limit) + "\r\n", strings.TrimSuffix(strings.Repeat("X=y|", limit), "|"), none},
			{"F/more than fields", "0\r\n" + strings.Repeat("X: y\r\n", limit+1) + "\r\n", "", bad},
			{"F/larger than a head", "0\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 9) + "\r\n", "", bad},
			{"E06/control", "0\r\nX: \x00\r\n\r\n", "", bad},
			{"E06/fold", "0\r\nX: y\r\n z\r\n\r\n", "", bad},
			{"E06/space before the colon", "0\r\nX : y\r\n\r\n", "", bad},
			{"E06/lf", "0\r\nX: y\n\r\n", "", bad},
		} {
			for how, src := range readers(head + c.in) {
				got, err := trailers(src, testLimits, request, true)
				if got != c.want || refused(err) != c.why || c.why == none && err != nil {
					t.Errorf("%s: request %v: %s: %.200q %v", c.name, request, how, got, err)
				}
			}
			if c.why == none {
				for how, src := range readers(head + c.in) {
					if got, err := trailers(src, testLimits, request, false); got != "" || err != nil {
						t.Errorf("%s: not asked for, %s: %q %v", c.name, how, got, err)
					}
				}
			}
		}
		for i := range len("0\r\nX: y\r\n\r\n") {
			for how, src := range readers(head + "0\r\nX: y\r\n\r\n"[:i]) {
				if got, err := trailers(src, testLimits, request, true); got != "" || err != io.ErrUnexpectedEOF {
					t.Errorf("cut at %d: %s: %q %v", i, how, got, err)
				}
			}
		}
	}
	// Underscores: nothing a backend folds may come with a request; gRPC metadata of a response may have them.
	for request, want := range map[bool]string{true: "", false: "my_key=v"} {
		head := chunked("")
		if !request {
			head = ok + "Transfer-Encoding: chunked\r\n\r\n"
		}
		if got, err := trailers(strings.NewReader(head+"0\r\nmy_key: v\r\n\r\n"), testLimits, request, true); got != want || err != nil {
			t.Errorf("D03: request %v: %q %v", request, got, err)
		}
	}
}

// Trailers outlive the buffer they came in, and the next body begins without them.
func TestTrailersKeep(t *testing.T) {
	in := chunked("0\r\nX: first\r\n\r\n") + chunked("0\r\nY: second\r\n\r\n") + chunked("0\r\nZ: third\r\n\r\n")
	for how, src := range readers(in) {
		var d Reader
		var req message.Request
		d.Reset(src, testLimits, false)
		var kept [][]message.Field
		for i := range 3 {
			if err := d.ReadRequest(&req); err != nil {
				t.Fatal(err)
			}
			b := d.Body(&req.Head, true)
			if i != 1 {
				b.CollectTrailers()
			}
			if _, err := io.ReadAll(b); err != nil {
				t.Fatal(err)
			}
			kept = append(kept, b.Trailers())
		}
		if len(kept[0]) != 1 || string(kept[0][0].Value) != "first" || kept[1] != nil || len(kept[2]) != 1 || string(kept[2][0].Name) != "Z" {
			t.Errorf("%s: %v", how, kept)
		}
	}
}

func TestAppendTrailers(t *testing.T) {
	field := func(name, value string) message.Field {
		return message.Field{Name: []byte(name), Value: []byte(value)}
	}
	for _, c := range []struct {
		fields []message.Field
		want   string
	}{
		{nil, "0\r\n\r\n"},
		{[]message.Field{field("grpc-status", "0"), field("grpc-message", "")}, "0\r\ngrpc-status: 0\r\ngrpc-message: \r\n\r\n"},
		{[]message.Field{field("", "a"), field("a b", "c"), field("a\r\nb", "c"), field("a", "b\r\nc: d"), field("a", "\x00"), field("a:", "b"), field("ok", "yes")}, "0\r\nok: yes\r\n\r\n"},
	} {
		if got := string(AppendTrailers([]byte("before"), c.fields, false)); got != "before"+c.want {
			t.Errorf("%q", got)
		}
	}
}

func TestTrailersWanted(t *testing.T) {
	for te, want := range map[string]bool{"trailers": true, "Trailers": true, "gzip, trailers": true, "gzip;q=0.5 ,\ttrailers": true,
		"": false, "gzip": false, "trailer": false, "trailers;q=0": false, "xtrailers": false} {
		req, _, err := read(strings.NewReader(line+host+"TE: "+te+"\r\n\r\n"), message.Strictest)
		if err != nil || req.TrailersWanted != want {
			t.Errorf("TE: %s: %v %v", te, req.TrailersWanted, err)
		}
	}
	if req, _, _ := read(strings.NewReader(line+host+"TE: trailers\r\nTE: gzip\r\n\r\n"), message.Strictest); !req.TrailersWanted {
		t.Error("a second TE takes back the first")
	}
	if req, _, _ := read(strings.NewReader(line+host+"\r\n"), message.Strictest); req.TrailersWanted {
		t.Error("wanted without TE")
	}
}
