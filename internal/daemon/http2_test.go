package daemon_test

import (
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"countersign/internal/testpki"
)

const twoHosts = `
ops: {listen: 127.0.0.1:0}
trust_stores:
  clients: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: clients.crl}]}}
  others: {ca_bundle: {file: clients.pem}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes:
          - {match: {path: /ops/*}, allow: 'client.common_name == "ops"', upstream: api}
          - {match: {path: /here}, respond: {status: 201, body: made here}}
          - {upstream: api}
      - {names: [b.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: "off"}, routes: [{upstream: api}]}
      - {names: [c.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: others, on_failure: page}, routes: [{upstream: api}]}
upstreams: {api: {targets: ["http://BACKEND"]UPSTREAM}}
`

// h2Client is a client of HTTP/2 on one connection.
type h2Client struct {
	*http.ClientConn
	conn *tls.Conn
}

// overHTTP2 makes a client of a connection that has chosen HTTP/2.
func overHTTP2(c *tls.Conn) (*http.ClientConn, error) {
	t := &http.Transport{DisableCompression: true, Protocols: new(http.Protocols),
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}
	t.Protocols.SetHTTP2(true)
	return t.NewClientConn(context.Background(), "https", "any.test:443")
}

// overExtended is overHTTP2 for requests that net/http does not send: extended CONNECT.
func overExtended(c *tls.Conn) (http.RoundTripper, error) {
	//lint:ignore SA1019 net/http refuses :protocol (RFC 8441)
	return (&http2.Transport{DisableCompression: true}).NewClientConn(c)
}

// h2 makes a connection of HTTP/2.
func (w *world) h2(t testing.TB, conf *tls.Config) *h2Client {
	t.Helper()
	conf = conf.Clone()
	conf.NextProtos = []string{"h2"}
	c := must(w.dial("public", conf))(t)
	_ = c.SetDeadline(time.Now().Add(time.Minute)) // for a whole test
	if p := c.ConnectionState().NegotiatedProtocol; p != "h2" {
		t.Fatalf("protocol %q", p)
	}
	cc := must(overHTTP2(c))(t)
	t.Cleanup(func() { cc.Close() })
	return &h2Client{cc, c}
}

// do makes a request; header fields are name, value in turns.
func (c *h2Client) do(method, host, path string, body io.Reader, fields ...string) (int, string, *http.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "https://"+host+path, body)
	if err != nil {
		return 0, "", nil, err
	}
	for i := 0; i < len(fields); i += 2 {
		req.Header.Add(fields[i], fields[i+1])
	}
	resp, err := c.RoundTrip(req)
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), resp, err
}

func h2World(t *testing.T, upstream string) (*world, *backend) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.file("clients.crl", w.ca.CRL(testpki.Number(1)))
	w.start(strings.Replace(twoHosts, "UPSTREAM", upstream, 1), b.addr)
	return w, b
}

// TestHTTP2 holds streams to what requests of HTTP/1.1 are held to, with targets of both versions.
func TestHTTP2(t *testing.T) {
	for name, upstream := range map[string]string{"to HTTP1": "", "to HTTP2": ", protocol_version: http2"} {
		t.Run(name, func(t *testing.T) {
			w, b := h2World(t, upstream)
			alice := w.client("a.test", w.ca.Client("alice"))
			c := w.h2(t, alice)
			t.Run("A14/host of another policy", func(t *testing.T) {
				if status, body, _, err := c.do("GET", "b.test", "/", nil); status != 421 || err != nil {
					t.Errorf("%d %q %v", status, body, err)
				}
			})
			t.Run("unknown host", func(t *testing.T) {
				if status, _, _, err := c.do("GET", "z.test", "/", nil); status != 404 && status != 421 || err != nil {
					t.Errorf("%d %v", status, err)
				}
			})
			t.Run("policy of the route", func(t *testing.T) {
				if status, _, _, err := c.do("GET", "a.test", "/ops/x", nil); status != 403 || err != nil {
					t.Errorf("%d %v", status, err)
				}
				w.find(t, "path=/ops/x", "reason=policy_denied")
			})
			if n := b.seen(); n != 0 {
				t.Errorf("%d requests came through", n)
			}
			t.Run("D01/forged identity", func(t *testing.T) {
				status, body, _, err := c.do("GET", "a.test", "/x?a=1;b", nil, "Client-Cert", ":Zm9v:", "X-Forwarded-For", "6.6.6.6", "X_Amzn_Mtls_Clientcert", "x")
				if status != 200 || err != nil || !strings.HasPrefix(body, "api GET /x?a=1;b host=a.test") {
					t.Fatalf("%d %q %v", status, body, err)
				}
				h := b.last()
				if v := h.Values("Client-Cert"); len(v) != 1 || v[0] == ":Zm9v:" || !strings.HasPrefix(v[0], ":MII") {
					t.Errorf("Client-Cert %q", v)
				}
				if v := h.Values("X-Forwarded-For"); len(v) != 1 || v[0] != "127.0.0.1" {
					t.Errorf("X-Forwarded-For %q", v)
				}
				if v := h.Get("Via"); v != "2.0 countersign" {
					t.Errorf("Via %q", v)
				}
			})
			t.Run("answered here", func(t *testing.T) {
				if status, body, _, err := c.do("GET", "a.test", "/here", nil); status != 201 || body != "made here" || err != nil {
					t.Errorf("%d %q %v", status, body, err)
				}
			})
			t.Run("bodies", func(t *testing.T) {
				for _, n := range []int{0, 1, 100, 16 << 10, 1 << 20, 5<<20 + 3} {
					if status, body, _, err := c.do("POST", "a.test", "/up", strings.NewReader(strings.Repeat("x", n))); status != 200 || err != nil || !strings.HasSuffix(body, fmt.Sprintf("body=%d", n)) {
						t.Errorf("%d bytes: %d %q %v", n, status, body, err)
					}
				}
				// A length that is not known before.
				r, pw := io.Pipe()
				go func() {
					for range 10 {
						_, _ = pw.Write([]byte("0123456789"))
						time.Sleep(5 * time.Millisecond)
					}
					pw.Close()
				}()
				if status, body, _, err := c.do("POST", "a.test", "/up", r); status != 200 || err != nil || !strings.HasSuffix(body, "body=100") {
					t.Errorf("%d %q %v", status, body, err)
				}
			})
			t.Run("many at once", func(t *testing.T) {
				var wg sync.WaitGroup
				places := make(chan struct{}, 100) // as many as we allow
				for i := range 400 {
					wg.Go(func() {
						places <- struct{}{}
						defer func() { <-places }()
						path := fmt.Sprintf("/%d", i)
						if status, body, _, err := c.do("GET", "a.test", path, nil); status != 200 || err != nil || !strings.Contains(body, " "+path+" ") {
							t.Errorf("%s: %d %q %v", path, status, body, err)
						}
					})
				}
				wg.Wait()
			})
			t.Run("C01/revoked", func(t *testing.T) {
				bob := w.ca.Client("bob")
				live := w.h2(t, w.client("a.test", bob))
				if status, _, _, err := live.do("GET", "a.test", "/", nil); status != 200 || err != nil {
					t.Fatal(status, err)
				}
				w.file("clients.crl", w.ca.CRL(bob, testpki.Number(2)))
				if err := w.main.Reload(); err != nil {
					t.Fatal(err)
				}
				await(t, 5*time.Second, "the end of the connection", func() bool {
					status, _, _, err := live.do("GET", "a.test", "/", nil)
					return status == 403 || err != nil
				})
				w.find(t, "client="+live.conn.LocalAddr().String(), "reason=client_no_longer_trusted")
				if status, _, _, err := c.do("GET", "a.test", "/", nil); status != 200 || err != nil {
					t.Errorf("alice: %d %v", status, err)
				}
			})
			t.Run("page", func(t *testing.T) {
				nobody := w.h2(t, w.client("c.test", nil))
				status, body, resp, err := nobody.do("GET", "c.test", "/", nil)
				if status != 403 || err != nil || !strings.Contains(body, "client_cert_missing") {
					t.Errorf("%d %q %v", status, body, err)
				}
				_ = resp
			})
			t.Run("gRPC", func(t *testing.T) {
				status, _, resp, err := c.do("POST", "a.test", "/ops/x", nil, "Content-Type", "application/grpc", "Te", "trailers")
				if status != 200 || err != nil || resp.Header.Get("Grpc-Status") != "7" {
					t.Errorf("%d %v %v", status, resp, err)
				}
			})
			t.Run("drain", func(t *testing.T) {
				slow, pw := io.Pipe()
				result := make(chan error, 1)
				go func() {
					status, body, _, err := c.do("POST", "a.test", "/slow", slow)
					if err == nil && (status != 200 || !strings.HasSuffix(body, "body=4")) {
						err = fmt.Errorf("%d %q", status, body)
					}
					result <- err
				}()
				_, _ = pw.Write([]byte("ab"))
				time.Sleep(100 * time.Millisecond)
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				down := make(chan struct{})
				go func() { w.main.Shutdown(ctx); close(down) }()
				await(t, 5*time.Second, "GOAWAY", func() bool { return c.Available() <= 0 })
				_, _ = pw.Write([]byte("cd"))
				pw.Close()
				if err := <-result; err != nil {
					t.Error("H08/", err)
				}
				select {
				case <-down:
				case <-time.After(8 * time.Second):
					t.Error("still there")
				}
			})
		})
	}
}

// TestHTTP2NotOffered: alpn decides, and clients without a fit cipher suite speak HTTP/1.1.
func TestHTTP2NotOffered(t *testing.T) {
	w, _ := h2World(t, "")
	alice := w.client("a.test", w.ca.Client("alice"))
	alice.NextProtos = []string{"h2", "http/1.1"}
	c := must(w.dial("public", alice))(t)
	if p := c.ConnectionState().NegotiatedProtocol; p != "h2" {
		t.Error(p)
	}
	w.reload(strings.Replace(strings.Replace(twoHosts, "UPSTREAM", "", 1), "protocol: https", "protocol: https\n    tls: {alpn: [http/1.1]}", 1), "127.0.0.1:1")
	c = must(w.dial("public", alice))(t)
	if p := c.ConnectionState().NegotiatedProtocol; p != "http/1.1" {
		t.Error(p)
	}
	alice.NextProtos = []string{"h2"}
	if _, err := w.dial("public", alice); err == nil {
		t.Error("a handshake without a common protocol")
	}
}

// TestHTTP2WebSocket: a WebSocket on a stream (RFC 8441), to a target that speaks HTTP/1.1.
func TestHTTP2WebSocket(t *testing.T) {
	w := newWorld(t)
	answer := func(head string) string {
		_, key, _ := strings.Cut(head, "Sec-WebSocket-Key: ")
		key, _, _ = strings.Cut(key, "\r\n")
		sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Accept: " +
			base64.StdEncoding.EncodeToString(sum[:]) + "\r\n\r\n"
	}
	addr, heads := wsBackend(t, answer)
	w.start(socketConfig, addr)
	ask := func(t *testing.T, c http.RoundTripper, path string, fields ...string) (*http.Response, *io.PipeWriter) {
		t.Helper()
		r, pw := io.Pipe()
		t.Cleanup(func() { pw.Close() })
		req := must(http.NewRequest("CONNECT", "https://a.test"+path, r))(t)
		for i := 0; i < len(fields); i += 2 {
			req.Header[fields[i]] = append(req.Header[fields[i]], fields[i+1])
		}
		resp := must(c.RoundTrip(req))(t)
		t.Cleanup(func() { resp.Body.Close() })
		return resp, pw
	}
	alice := w.client("a.test", w.ca.Client("alice"))
	alice.NextProtos = []string{"h2"}
	extended := func(t *testing.T) http.RoundTripper {
		return must(overExtended(must(w.dial("public", alice))(t)))(t)
	}
	for _, c := range []struct {
		name, path string
		status     int
		fields     []string
	}{
		{"E16/CONNECT", "", 405, nil},
		{"E33/other protocol", "/ws/x", 501, []string{":protocol", "connect-udp", "Sec-Websocket-Version", "13"}},
		{"E33/no version", "/ws/x", 501, []string{":protocol", "websocket"}},
		{"E33/other version", "/ws/x", 501, []string{":protocol", "websocket", "Sec-Websocket-Version", "12"}},
		{"E33/route without upgrade", "/x", 501, []string{":protocol", "websocket", "Sec-Websocket-Version", "13"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if resp, _ := ask(t, extended(t), c.path, c.fields...); resp.StatusCode != c.status {
				t.Errorf("%d, expected %d", resp.StatusCode, c.status)
			}
		})
	}
	select {
	case head := <-heads:
		t.Fatalf("the target got %q", head)
	default:
	}
	cc := extended(t)
	resp, pw := ask(t, cc, "/ws/x", ":protocol", "websocket", "Sec-Websocket-Version", "13", "Sec-Websocket-Key", wsKey, "Sec-Websocket-Protocol", "chat")
	if resp.StatusCode != 200 || resp.Header.Get("Sec-Websocket-Protocol") != "chat" || resp.Header.Get("Sec-Websocket-Accept") != "" || resp.Header.Get("Upgrade") != "" {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	head := <-heads
	if !strings.HasPrefix(head, "GET /ws/x HTTP/1.1\r\n") || strings.Count(head, "Sec-WebSocket-Key: ") != 1 || strings.Contains(head, wsKey) || !strings.Contains(head, "\r\nUpgrade: websocket\r\n") {
		t.Errorf("the target got %q", head)
	}
	for range 3 {
		if _, err := pw.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		var b [5]byte
		if _, err := io.ReadFull(resp.Body, b[:]); err != nil || string(b[:]) != "hello" {
			t.Fatalf("%q %v", b, err)
		}
	}
	pw.Close()
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
		t.Errorf("%q %v", rest, err)
	}
	w.find(t, "path=/ws/x", "status=101", "reason=tunnel_closed")
}
