package interop_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// sockets is a configuration that carries WebSockets over mutual TLS on both sides.
const sockets = `
listeners:
  public:
    listen: $public
    protocol: https
    limits: {tunnel_idle: 4s}
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        identity_headers: [alb]
        routes:
          - {match: {path: /ws/*}, upgrade: [websocket], upstream: api}
          - {upstream: api}
upstreams:
  api:
    targets: ["https://$api"]
    tls: {server_name: api.internal, trust_store: internal, client_certificates: [{cert: edge.pem, key: edge.key}]}
`

// socketServer is a WebSocket server that only we may talk to. What it does depends on the path.
type socketServer struct {
	addr string

	mu       sync.Mutex
	requests []*http.Request
	ends     []error // how its sockets ended
}

func newSocketServer(t *testing.T, p *pki) *socketServer {
	t.Helper()
	s := &socketServer{}
	shown := issue(t, p.dir, "socket-server", p.internal, newECDSA(t), forServer("api.internal"))
	ours := x509.NewCertPool()
	ours.AddCert(p.internal.Certificate)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: shown.chain, PrivateKey: shown.key}}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours})
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	server := &http.Server{Handler: http.HandlerFunc(s.serve)}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return s
}

func (s *socketServer) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r)
	s.mu.Unlock()
	if r.Header.Get("Upgrade") == "" {
		fmt.Fprintf(w, "no upgrade for %s", r.URL.Path)
		return
	}
	if r.URL.Path == "/ws/no" {
		http.Error(w, "not today", http.StatusForbidden)
		return
	}
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"chat.v2", "chat.v1"}, CompressionMode: websocket.CompressionContextTakeover})
	if err != nil {
		return
	}
	defer c.CloseNow()
	c.SetReadLimit(4 << 20)
	ctx, cancel := context.WithTimeout(r.Context(), 15*time.Second)
	defer cancel()
	switch r.URL.Path {
	case "/ws/close":
		c.Close(4321, "server says goodbye")
		return
	case "/ws/ping":
		reading := c.CloseRead(ctx)
		for range 3 {
			if err := c.Ping(reading); err != nil {
				c.Close(websocket.StatusInternalError, err.Error())
				return
			}
		}
		_ = c.Write(ctx, websocket.MessageText, []byte("three pongs"))
		c.Close(websocket.StatusNormalClosure, "")
		return
	case "/ws/drop":
		return // CloseNow: the end of the connection without a close frame
	}
	for {
		kind, data, err := c.Read(ctx)
		if err != nil {
			s.mu.Lock()
			s.ends = append(s.ends, err)
			s.mu.Unlock()
			return
		}
		if err := c.Write(ctx, kind, data); err != nil {
			return
		}
	}
}

// last is the last request, and how many there were.
func (s *socketServer) last() (*http.Request, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.requests) == 0 {
		return nil, 0
	}
	return s.requests[len(s.requests)-1], len(s.requests)
}

// socket dials a WebSocket at path as who. The connection ends with the test.
func (b *balancer) socket(t *testing.T, version uint16, who *cert, path string, opts *websocket.DialOptions) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	conf := goConfig(b.pki, "a.test", who)
	conf.MinVersion, conf.MaxVersion = version, version
	transport := &http.Transport{TLSClientConfig: conf, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, b.addr["public"])
	}}
	t.Cleanup(transport.CloseIdleConnections)
	if opts == nil {
		opts = &websocket.DialOptions{}
	}
	opts.HTTPClient = &http.Client{Transport: transport}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, resp, err := websocket.Dial(ctx, strings.Replace(b.url("public", "a.test", path), "https:", "wss:", 1), opts)
	if c != nil {
		c.SetReadLimit(4 << 20)
		t.Cleanup(func() { c.CloseNow() })
	}
	return c, resp, err
}

// TestWebSocket talks github.com/coder/websocket to itself through us.
func TestWebSocket(t *testing.T) {
	p := newPKI(t)
	server := newSocketServer(t, p)
	b := serve(t, p, sockets, map[string]string{"api": server.addr})
	for name, version := range map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
		dial := func(t *testing.T, path string, opts *websocket.DialOptions) *websocket.Conn {
			t.Helper()
			c, resp, err := b.socket(t, version, p.alice, path, opts)
			if err != nil || resp.StatusCode != 101 {
				t.Fatalf("%v, %+v", err, resp)
			}
			return c
		}
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		for _, compression := range []websocket.CompressionMode{websocket.CompressionDisabled, websocket.CompressionContextTakeover} {
			t.Run(fmt.Sprintf("messages, compression %d/TLS %s", compression, name), func(t *testing.T) {
				mark := b.mark()
				c := dial(t, "/ws/echo?room=1", &websocket.DialOptions{CompressionMode: compression})
				for _, message := range []struct {
					kind websocket.MessageType
					data []byte
				}{
					{websocket.MessageText, []byte("hello, wörld")}, {websocket.MessageText, nil}, {websocket.MessageBinary, []byte{0, 1, 0xff, '\r', '\n'}},
					{websocket.MessageBinary, noise(1 << 20)}, {websocket.MessageText, bytes.Repeat([]byte("a line of text\n"), 70000)},
				} {
					sent := make(chan error, 1)
					go func() { sent <- c.Write(ctx, message.kind, message.data) }()
					kind, data, err := c.Read(ctx)
					if err != nil || kind != message.kind || !bytes.Equal(data, message.data) {
						t.Fatalf("sent %v of %d bytes, got %v of %d bytes, %v", message.kind, len(message.data), kind, len(data), err)
					}
					if err := <-sent; err != nil {
						t.Fatal(err)
					}
				}
				if err := c.Close(websocket.StatusNormalClosure, "done"); err != nil {
					t.Error(err)
				}
				rec := b.record(t, mark, "kind=request", "status=101", "reason=tunnel_closed", "client_subject=CN=alice", "path=/ws/echo")
				if in, _ := rec["bytes_in"].(float64); in < 1<<20 {
					t.Errorf("%v bytes went in", rec["bytes_in"])
				}
				r, _ := server.last()
				if r.Header.Get("X-Amzn-Mtls-Clientcert-Subject") != "CN=alice" || r.URL.RawQuery != "room=1" || r.TLS.PeerCertificates[0].Subject.CommonName != "edge" {
					t.Errorf("the server saw %v, %v", r.Header, r.URL)
				}
			})
		}
		t.Run("ping of the client/TLS "+name, func(t *testing.T) {
			c := dial(t, "/ws/echo", nil)
			reading := c.CloseRead(ctx)
			for range 3 {
				if err := c.Ping(reading); err != nil {
					t.Fatal(err)
				}
			}
		})
		t.Run("ping of the server/TLS "+name, func(t *testing.T) {
			c := dial(t, "/ws/ping", nil)
			if _, data, err := c.Read(ctx); err != nil || string(data) != "three pongs" {
				t.Errorf("%q, %v", data, err)
			}
		})
		t.Run("close codes/TLS "+name, func(t *testing.T) {
			mark := b.mark()
			c := dial(t, "/ws/close", nil)
			_, _, err := c.Read(ctx)
			var end websocket.CloseError
			if !errors.As(err, &end) || end.Code != 4321 || end.Reason != "server says goodbye" {
				t.Errorf("the client met %v", err)
			}
			b.record(t, mark, "kind=request", "reason=tunnel_closed")
			c = dial(t, "/ws/echo", nil)
			if err := c.Close(websocket.StatusGoingAway, "client leaves"); err != nil {
				t.Error(err)
			}
			await(t, func() bool {
				server.mu.Lock()
				defer server.mu.Unlock()
				n := len(server.ends)
				return n > 0 && errors.As(server.ends[n-1], &end) && end.Code == websocket.StatusGoingAway && end.Reason == "client leaves"
			})
		})
		t.Run("the server's end without a close frame/TLS "+name, func(t *testing.T) {
			c := dial(t, "/ws/drop", nil)
			if _, _, err := c.Read(ctx); !errors.Is(err, io.EOF) {
				t.Errorf("the client met %v; want the end of the connection", err)
			}
		})
		t.Run("subprotocol/TLS "+name, func(t *testing.T) {
			for want, offered := range map[string][]string{"chat.v2": {"chat.v1", "chat.v2"}, "chat.v1": {"chat.v1"}, "": nil} {
				if c := dial(t, "/ws/echo", &websocket.DialOptions{Subprotocols: offered}); c.Subprotocol() != want {
					t.Errorf("%v: %q; want %q", offered, c.Subprotocol(), want)
				}
			}
		})
		t.Run("refused by the server/TLS "+name, func(t *testing.T) {
			_, resp, err := b.socket(t, version, p.alice, "/ws/no", nil)
			if err == nil || resp == nil || resp.StatusCode != 403 {
				t.Errorf("%v, %+v", err, resp)
			}
		})
		t.Run("route without upgrade/TLS "+name, func(t *testing.T) {
			_, before := server.last()
			mark := b.mark()
			_, resp, err := b.socket(t, version, p.alice, "/other", nil)
			if err == nil || resp == nil || resp.StatusCode != 501 {
				t.Errorf("%v, %+v", err, resp)
			}
			b.record(t, mark, "kind=request", "status=501", "reason=upgrade_refused")
			if _, after := server.last(); after != before {
				t.Error("the server was reached")
			}
		})
		for _, who := range callers(p) {
			if who.good() {
				continue
			}
			t.Run("refused client, "+who.name+"/TLS "+name, func(t *testing.T) {
				_, before := server.last()
				mark := b.mark()
				_, _, err := b.socket(t, version, who.cert, "/ws/echo", nil)
				if number, _ := who.alert(name); err == nil || refusal(err.Error()) != "alert "+number {
					t.Errorf("the client met %v; want alert %s", err, number)
				}
				b.noRequest(t, b.record(t, mark, "kind=handshake", "reason="+who.reason))
				if _, after := server.last(); after != before {
					t.Error("the server was reached")
				}
			})
		}
	}
	t.Run("many at once", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for i := range 40 {
			who := []*cert{p.alice, p.dave, p.erin}[i%3]
			wg.Go(func() {
				c, _, err := b.socket(t, tls.VersionTLS13, who, "/ws/echo", nil)
				if err != nil {
					t.Error(err)
					return
				}
				for j := range 20 {
					text := fmt.Sprintf("%d of %d", j, i)
					if err := c.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
						t.Error(err)
						return
					}
					if _, data, err := c.Read(ctx); err != nil || string(data) != text {
						t.Errorf("%q, %v", data, err)
						return
					}
				}
				c.Close(websocket.StatusNormalClosure, "")
			})
		}
		wg.Wait()
	})
	t.Run("idle", func(t *testing.T) {
		mark, begun := b.mark(), time.Now()
		c, _, err := b.socket(t, tls.VersionTLS13, p.alice, "/ws/echo", nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		_, _, err = c.Read(ctx)
		if took := time.Since(begun); err == nil || took < 3900*time.Millisecond || took > 14*time.Second {
			t.Errorf("ended after %v with %v; want tunnel_idle of 4s", took, err)
		}
		b.record(t, mark, "kind=request", "status=101", "reason=idle_closed")
	})
}
