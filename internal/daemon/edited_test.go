package daemon_test

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const takenAway = ", request_headers: {set: {X-Role: user}, remove: [X-Debug]}, response_headers: {set: {X-Set: here}, remove: [X-Internal]}"

// TestEditsFold: what edits remove or set does not pass under a name that targets take for the same.
func TestEditsFold(t *testing.T) {
	w := newWorld(t)
	b := newRecorder(t, nil)
	b.otherwise(raw("HTTP/1.1 200 OK\r\nX.Internal: secret\r\nX_Internal: secret\r\nx-INTERNAL: secret\r\nX-Internals: other\r\nContent-Length: 2\r\n\r\nok", true))
	w.start(clearOf("", takenAway, fmt.Sprintf(`targets: ["http://%s"]`, b.addr)), "")
	c, r := w.connect(t, "plain")
	got := once(t, c, r, "GET / HTTP/1.1\r\nHost: a.test\r\nX.Role: admin\r\nX_Role: admin\r\nx-ROLE: admin\r\nX.Debug: admin\r\nX_Debug: admin\r\nX-Roles: other\r\n\r\n")
	t.Run("D03/request", func(t *testing.T) {
		b.mu.Lock()
		defer b.mu.Unlock()
		text := b.conns[0].bytes()
		if strings.Contains(text, "admin") || strings.Count(text, "X-Role: user\r\n") != 1 || !strings.Contains(text, "X-Roles: other\r\n") {
			t.Errorf("the target got %q", text)
		}
	})
	t.Run("D03/response", func(t *testing.T) {
		for name, values := range got.Header {
			if slices.Contains(values, "secret") {
				t.Errorf("%s: %q", name, values)
			}
		}
		if got.StatusCode != 200 || got.Header.Get("X-Set") != "here" || got.Header.Get("X-Internals") != "other" {
			t.Errorf("%d %v", got.StatusCode, got.Header)
		}
	})
}

// trailersOf starts a target of HTTP/2 in clear text, and tells the fields behind the body of its first request.
func trailersOf(t *testing.T) (addr string, fields chan map[string]string) {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { l.Close() })
	fields = make(chan map[string]string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		fr := http2.NewFramer(c, c)
		_ = fr.WriteSettings()
		fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		for heads := 0; ; {
			f, err := fr.ReadFrame()
			if err != nil {
				return
			}
			switch f := f.(type) {
			case *http2.SettingsFrame:
				if !f.IsAck() {
					_ = fr.WriteSettingsAck()
				}
			case *http2.MetaHeadersFrame:
				if heads++; heads == 2 {
					got := make(map[string]string)
					for _, x := range f.Fields {
						got[x.Name] = x.Value
					}
					fields <- got
					return
				}
			}
		}
	}()
	return l.Addr().String(), fields
}

// TestEditsTrailers: what edits remove or set does not pass behind the body.
func TestEditsTrailers(t *testing.T) {
	t.Run("D03/request", func(t *testing.T) {
		w := newWorld(t)
		addr, fields := trailersOf(t)
		w.start(clearOf("", takenAway, fmt.Sprintf(`targets: ["http://%s"], protocol_version: http2`, addr)), "")
		c, _ := w.connect(t, "plain")
		if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Role: admin\r\nX.Role: admin\r\nX-Debug: admin\r\nX-Sum: 5\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-fields:
			if len(got) != 1 || got["x-sum"] != "5" {
				t.Errorf("the target got %v behind the body, expected x-sum alone", got)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the target got no trailers")
		}
	})
	t.Run("response", func(t *testing.T) {
		w := newWorld(t)
		b := newRecorder(t, nil)
		b.otherwise(raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Internal: secret\r\n\r\n1\r\nx\r\n0\r\nX-Internal: secret\r\nX.Internal: secret\r\nX-Sum: 5\r\n\r\n", true))
		w.start(clearOf("", takenAway, fmt.Sprintf(`targets: ["http://%s"]`, b.addr)), "")
		c, r := w.connect(t, "plain")
		got := once(t, c, r, "GET / HTTP/1.1\r\nHost: a.test\r\nTE: trailers\r\nConnection: TE\r\n\r\n")
		if got.StatusCode != 200 || got.body != "x" || got.err != nil {
			t.Fatalf("%d %q %v", got.StatusCode, got.body, got.err)
		}
		if len(got.Trailer) != 1 || got.Trailer.Get("X-Sum") != "5" || got.Header.Get("X-Internal") != "" {
			t.Errorf("%v, and behind the body %v, expected X-Sum alone", got.Header, got.Trailer)
		}
	})
}

// TestEditsSwitching: edits of answers hold for a 101, and for what it is on a stream.
func TestEditsSwitching(t *testing.T) {
	w := newWorld(t)
	addr, _ := wsBackend(t, func(head string) string {
		if strings.HasPrefix(head, "GET /ws/200") {
			return "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
		}
		_, key, _ := strings.Cut(head, "Sec-WebSocket-Key: ")
		key, _, _ = strings.Cut(key, "\r\n")
		sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		return "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: " +
			base64.StdEncoding.EncodeToString(sum[:]) + "\r\nX-Internal: secret\r\nX.Internal: secret\r\n\r\n"
	})
	w.start(strings.Replace(socketConfig, "upgrade: [websocket]", "upgrade: [websocket]"+takenAway, 1), addr)
	alice := w.client("a.test", w.ca.Client("alice"))
	want := func(t *testing.T, h http.Header) {
		t.Helper()
		if h.Get("X-Set") != "here" {
			t.Errorf("nothing is set: %v", h)
		}
		for name, values := range h {
			if slices.Contains(values, "secret") {
				t.Errorf("%s: %q", name, values)
			}
		}
	}
	t.Run("101", func(t *testing.T) {
		c := must(w.dial("public", alice))(t)
		if _, err := io.WriteString(c, wsRequest("/ws/x")); err != nil {
			t.Fatal(err)
		}
		resp := must(http.ReadResponse(bufio.NewReader(c), nil))(t)
		if resp.StatusCode != 101 {
			t.Fatal(resp.Status)
		}
		want(t, resp.Header)
	})
	extended := alice.Clone()
	extended.NextProtos = []string{"h2"}
	ask := func(t *testing.T, path string) *http.Response {
		t.Helper()
		body, pw := io.Pipe()
		t.Cleanup(func() { pw.Close() })
		req := must(http.NewRequest("CONNECT", "https://a.test"+path, body))(t)
		req.Header[":protocol"] = []string{"websocket"}
		req.Header.Set("Sec-Websocket-Version", "13")
		resp := must(must(overExtended(must(w.dial("public", extended))(t)))(t).RoundTrip(req))(t)
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	t.Run("a stream", func(t *testing.T) {
		resp := ask(t, "/ws/x")
		if resp.StatusCode != 200 {
			t.Fatal(resp.Status)
		}
		want(t, resp.Header)
	})
	t.Run("E17/200 on a stream says that it is open", func(t *testing.T) {
		if resp := ask(t, "/ws/200"); resp.StatusCode != http.StatusBadGateway {
			t.Errorf("%s, and the target has not switched; expected 502", resp.Status)
		}
		w.find(t, "path=/ws/200", "status=502")
	})
}
