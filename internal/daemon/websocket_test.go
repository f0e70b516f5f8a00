package daemon_test

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"
)

const socketConfig = `
trust_stores:
  clients:
    ca_bundle: {file: clients.pem}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    limits: {tunnel_idle: 1m}
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes:
          - {match: {path: /ws/*}, upgrade: [websocket], upstream: api}
          - {upstream: api}
upstreams:
  api: {targets: ["http://BACKEND"], timeouts: {response: 20s}}
`

const wsKey = "dGhlIHNhbXBsZSBub25jZQ=="

func wsAccept() string {
	sum := sha1.Sum([]byte(wsKey + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

func wsRequest(path string, change ...string) string {
	r := "GET " + path + " HTTP/1.1\r\nHost: a.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n" +
		"Sec-WebSocket-Key: " + wsKey + "\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
	return strings.NewReplacer(change...).Replace(r)
}

// wsBackend answers each request head with what answer gives, and then echoes bytes.
func wsBackend(t *testing.T, answer func(head string) string) (addr string, heads chan string) {
	heads = make(chan string, 100)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					var head strings.Builder
					for {
						line, err := r.ReadString('\n')
						if err != nil {
							return
						}
						head.WriteString(line)
						if line == "\r\n" {
							break
						}
					}
					heads <- head.String()
					a := answer(head.String())
					if _, err := io.WriteString(c, a); err != nil {
						return
					}
					if strings.Contains(a, " 101 ") {
						_, _ = io.Copy(c, r)
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String(), heads
}

func switching(accept string) string {
	return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept +
		"\r\nSec-WebSocket-Protocol: chat\r\nKeep-Alive: x\r\nX-SSL-Client-Verify: SUCCESS\r\n\r\n"
}

func TestWebSocketRefusals(t *testing.T) {
	w := newWorld(t)
	backend, heads := wsBackend(t, func(string) string { return switching(wsAccept()) })
	w.start(socketConfig, backend)
	alice := w.client("a.test", w.ca.Client("alice"))
	for _, tt := range []struct{ name, request string }{
		{"E15/route without upgrade", wsRequest("/other")},
		{"E15/h2c-like token", wsRequest("/ws/", "WebSocket\r\n", "foo\r\n")},
		{"E15/two protocols", wsRequest("/ws/", "WebSocket\r\n", "websocket, h2c\r\n")},
		{"E15/two Upgrade lines", wsRequest("/ws/", "Upgrade: WebSocket\r\n", "Upgrade: websocket\r\nUpgrade: websocket\r\n")},
		{"E15/TLS", wsRequest("/ws/", "WebSocket\r\n", "TLS/1.2\r\n")},
		{"no Connection: upgrade", wsRequest("/ws/", ", Upgrade", "")},
		{"POST", wsRequest("/ws/", "GET", "POST")},
		{"HTTP/1.0", wsRequest("/ws/", "HTTP/1.1", "HTTP/1.0")},
		{"no key", wsRequest("/ws/", "Sec-WebSocket-Key: "+wsKey+"\r\n", "")},
		{"short key", wsRequest("/ws/", wsKey, "AAAA")},
		{"two keys", wsRequest("/ws/", "Sec-WebSocket-Version", "Sec-WebSocket-Key: "+wsKey+"\r\nSec-WebSocket-Version")},
		{"version 8", wsRequest("/ws/", ": 13", ": 8")},
		{"with a body", wsRequest("/ws/", "Upgrade: W", "Content-Length: 5\r\nUpgrade: W")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := w.dial("public", alice)
			if err != nil {
				t.Fatal(err)
			}
			status, body, err := roundTrip(c, bufio.NewReader(c), tt.request)
			if status != 501 || !strings.Contains(body, "upgrade_refused") {
				t.Errorf("status %d %v\n%s", status, err, body)
			}
			select {
			case h := <-heads:
				t.Errorf("the target was reached: %s", h)
			default:
			}
		})
	}
}

// TestWebSocketTarget shows that only a matching 101 opens a tunnel (E17), and that nothing leaks when there is none (E18).
func TestWebSocketTarget(t *testing.T) {
	for _, tt := range []struct {
		name, answer string
		status       int
	}{
		{"E17/wrong accept", switching("AAAAAAAAAAAAAAAAAAAAAAAAAAA="), 502},
		{"E17/no accept", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 502},
		{"E17/other protocol", strings.Replace(switching(wsAccept()), "Upgrade: websocket", "Upgrade: h2c", 1), 502},
		{"E17/no Connection", strings.Replace(switching(wsAccept()), "Connection: Upgrade\r\n", "", 1), 502},
		{"E17/200", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200},
		{"E17/400", "HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno", 400},
		{"E17/426", "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n", 426},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			backend, heads := wsBackend(t, func(head string) string {
				if strings.HasPrefix(head, "GET /ws/") {
					return tt.answer
				}
				return "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond"
			})
			w.start(socketConfig, backend)
			c, err := w.dial("public", w.client("a.test", w.ca.Client("alice")))
			if err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(c)
			// The second request comes along with the first: it must be decided on by itself, or not at all.
			status, _, err := roundTrip(c, r, wsRequest("/ws/x")+"GET /second HTTP/1.1\r\nHost: a.test\r\n\r\n")
			if status != tt.status || err != nil {
				t.Fatalf("status %d, expected %d: %v", status, tt.status, err)
			}
			<-heads
			if status == 502 {
				w.record("kind=request", "reason=upstream_bad_response")
			}
			if status != 502 {
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatal(err)
				}
				if body, _ := io.ReadAll(resp.Body); string(body) != "second" {
					t.Errorf("second answer: %q", body)
				}
				if h := <-heads; !strings.HasPrefix(h, "GET /second") || !strings.Contains(h, "Client-Cert: :") {
					t.Errorf("the second request was not a request of its own: %q", h)
				}
			}
		})
	}
	t.Run("E18/no goroutine is left", func(t *testing.T) {
		w := newWorld(t)
		backend, _ := wsBackend(t, func(string) string { return switching("AAAAAAAAAAAAAAAAAAAAAAAAAAA=") })
		w.start(socketConfig, backend)
		alice := w.client("a.test", w.ca.Client("alice"))
		var before int
		for i := range 50 {
			if i == 5 {
				before = runtime.NumGoroutine()
			}
			c, err := w.dial("public", alice)
			if err != nil {
				t.Fatal(err)
			}
			if status, _, err := roundTrip(c, bufio.NewReader(c), wsRequest("/ws/")); status != 502 {
				t.Fatal(status, err)
			}
			c.Close()
		}
		for deadline := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > before+5; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
			}
		}
	})
}

func TestWebSocket(t *testing.T) {
	w := newWorld(t)
	backend, heads := wsBackend(t, func(string) string { return switching(wsAccept()) + "early" })
	w.start(socketConfig, backend)
	c, err := w.dial("public", w.client("a.test", w.ca.Client("alice")))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, wsRequest("/ws/chat?room=1")+"along")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 101 || resp.Header.Get("Sec-WebSocket-Accept") != wsAccept() || resp.Header.Get("Upgrade") != "websocket" || resp.Header.Get("Sec-WebSocket-Protocol") != "chat" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	if resp.Header.Get("Keep-Alive") != "" || resp.Header.Get("X-Ssl-Client-Verify") != "" {
		t.Errorf("hop-by-hop or protected fields of the 101 leaked: %v", resp.Header)
	}
	expect := func(want string) {
		t.Helper()
		buf := make([]byte, len(want))
		if _, err := io.ReadFull(r, buf); err != nil || string(buf) != want {
			t.Fatalf("got %q %v, expected %q", buf, err, want)
		}
	}
	expect("earlyalong")
	for i := range 20 {
		msg := strings.Repeat(string(rune('a'+i)), 1+i*5000)
		go fmt.Fprint(c, msg)
		expect(msg)
	}
	head := <-heads
	for _, want := range []string{"GET /ws/chat?room=1 HTTP/1.1\r\n", "\r\nConnection: Upgrade\r\n", "\r\nUpgrade: websocket\r\n", "\r\nSec-WebSocket-Key: " + wsKey + "\r\n", "\r\nClient-Cert: :"} {
		if !strings.Contains(head, want) {
			t.Errorf("the target did not get %q:\n%s", want, head)
		}
	}
	if strings.Contains(head, "keep-alive") {
		t.Errorf("the client's Connection was passed on:\n%s", head)
	}

	// The client ends; the target sees it and ends too.
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); len(rest) != 0 || err != nil {
		t.Errorf("%q %v", rest, err)
	}
	rec := w.record("kind=request", "reason=tunnel_closed", "status=101", "path=/ws/chat")
	if rec["client_subject"] != "CN=alice" || rec["bytes_in"].(float64) < 900000 {
		t.Errorf("%v", rec)
	}

	t.Run("idle", func(t *testing.T) {
		w.reload(strings.Replace(socketConfig, "tunnel_idle: 1m", "tunnel_idle: 1s", 1), backend)
		c, err := w.dial("public", w.client("a.test", w.ca.Client("alice")))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, wsRequest("/ws/idle"))
		start := time.Now()
		_, _ = io.ReadAll(c)
		if took := time.Since(start); took < time.Second || took > 8*time.Second {
			t.Errorf("ended after %v, expected tunnel_idle of 1s", took)
		}
		w.record("kind=request", "reason=idle_closed", "status=101")
	})
}

// TestStaleRetry shows that a request whose reused connection was closed by the target is sent again if it may be, once.
func TestStaleRetry(t *testing.T) {
	w := newWorld(t)
	// A target that answers one request on each connection, reads the next and closes.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	requests := make(chan string, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 4096)
				for i := range 2 {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					requests <- strings.SplitN(string(buf[:n]), " ", 2)[0]
					if i == 0 {
						fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
					}
				}
			}()
		}
	}()
	w.start(socketConfig, l.Addr().String())
	c, err := w.dial("public", w.client("a.test", w.ca.Client("alice")))
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	ask := func(request string) int {
		t.Helper()
		status, _, err := roundTrip(c, r, request)
		if err != nil {
			t.Fatal(err)
		}
		return status
	}
	drained := func() (got []string) {
		for {
			select {
			case m := <-requests:
				got = append(got, m)
			default:
				return got
			}
		}
	}
	ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
	drained()
	t.Run("E25/POST is not repeated", func(t *testing.T) {
		if status := ask("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n"); status != 502 {
			t.Errorf("status %d", status)
		}
		if got := drained(); len(got) != 1 {
			t.Errorf("the target saw %v", got)
		}
		w.record("kind=request", "reason=upstream_closed", "method=POST")
	})
	ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
	drained()
	t.Run("E25/GET is, once", func(t *testing.T) {
		if status := ask("GET /again HTTP/1.1\r\nHost: a.test\r\n\r\n"); status != 200 {
			t.Errorf("status %d", status)
		}
		if got := drained(); len(got) != 2 {
			t.Errorf("the target saw %v", got)
		}
		w.record("kind=request", "reason=completed", "path=/again", "retried=true")
	})
}
