package daemon_test

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"countersign/internal/daemon"
	"countersign/internal/testpki"
)

const hostileConfig = `
ops: {listen: 127.0.0.1:0}
trust_stores:
  clients: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: clients.crl}]}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    limits: {idle: 1s, header: 1s, write_idle: 1s, body_idle: 1s, handshake: 2s}
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: off}
        routes: [{upstream: api}]
      - names: [b.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: request, trust_store: clients, on_failure: page}
        routes: [{upstream: api}]
      - names: [c.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        identity_headers: [alb]
        identity_options: {alb_names: {subject: X-My-Subject}}
        routes: [{upstream: api}]
  plain:
    listen: 127.0.0.1:0
    protocol: http
    limits: {idle: 1s, header: 1s, write_idle: 1s, body_idle: 1s}
    sources: [127.0.0.0/8]
    hosts: [{names: [a.test], routes: [{upstream: api}]}]
upstreams:
  api: {targets: ["http://BACKEND"], timeouts: {response: 1s}}
`

// keySchedule13 derives from a TLS 1.3 traffic secret (RFC 8446 section 7.1).
func keySchedule13(secret []byte, label string, n int) []byte {
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(append(append(info, byte(6+len(label))), "tls13 "+label...), 0)
	k, err := hkdf.Expand(sha256.New, secret, string(info), n)
	if err != nil {
		panic(err)
	}
	return k
}

// record13 seals one record of TLS_AES_128_GCM_SHA256.
func record13(secret []byte, seq uint64, kind byte, data []byte) []byte {
	block, _ := aes.NewCipher(keySchedule13(secret, "key", 16))
	seal, _ := cipher.NewGCM(block)
	iv := keySchedule13(secret, "iv", 12)
	for i := range 8 {
		iv[4+i] ^= byte(seq >> (56 - 8*i))
	}
	plain := append(append([]byte{}, data...), kind)
	head := []byte{23, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(head[3:], uint16(len(plain)+16))
	return seal.Seal(head, iv, plain, head)
}

// narrow is a listener of connections with a small send buffer.
type narrow struct{ net.Listener }

func (l narrow) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		_ = c.(*net.TCPConn).SetWriteBuffer(4096)
	}
	return c, err
}

// TestKeyUpdates shows that a client that asks for key updates and never reads the answers has deadlines like any other:
// crypto/tls answers from within Read, and blocks there when the client does not read.
func TestKeyUpdates(t *testing.T) {
	t.Run("F05/never read", func(t *testing.T) {
		w := newWorld(t)
		b := echo(t, "api", nil)
		// Small buffers, so that they are full before the time for the head is over.
		w.startWith(strings.Replace(hostileConfig, "header: 1s", "header: 3s", 1), b.addr, func(o *daemon.Options) {
			o.Listen = func(address string) (net.Listener, error) {
				l, err := net.Listen("tcp", address)
				return narrow{l}, err
			}
		})
		raw, err := net.Dial("tcp", w.addr("public"))
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		_ = raw.(*net.TCPConn).SetReadBuffer(4096)
		var keys bytes.Buffer
		conf := w.client("a.test", nil)
		conf.KeyLogWriter = &keys
		tc := tls.Client(raw, conf)
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		if suite := tc.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
			t.Fatalf("suite %x, expected AES-128-GCM", suite)
		}
		var secret []byte
		for line := range strings.Lines(keys.String()) {
			if f := strings.Fields(line); f[0] == "CLIENT_TRAFFIC_SECRET_0" {
				secret, _ = hex.DecodeString(f[2])
			}
		}
		// crypto/tls allows 16 updates between bytes of data, so now and then comes a byte of a request head.
		prefix := "GET / HTTP/1.1\r\nHost: a.test\r\nX-A: "
		var batch []byte
		start := time.Now()
		for n := 0; n < 400000 && time.Since(start) < 15*time.Second; n++ {
			seq := uint64(0)
			if n%15 == 0 {
				c := byte('a')
				if n/15 < len(prefix) {
					c = prefix[n/15]
				}
				batch = append(batch, record13(secret, 0, 23, []byte{c})...)
				seq = 1
			}
			batch = append(batch, record13(secret, seq, 22, []byte{24, 0, 0, 1, 1})...)
			secret = keySchedule13(secret, "traffic upd", 32)
			if n%500 == 499 {
				_ = raw.SetWriteDeadline(time.Now().Add(10 * time.Second))
				if _, err := raw.Write(batch); err != nil {
					break
				}
				batch = batch[:0]
			}
		}
		w.awaitMetric(`countersign_connections{listener="public"}`, "0")
	})
}

// pipes is a listener of connections without any buffer: whoever does not read stops whoever writes.
type pipes struct {
	net.Listener
	next chan net.Conn
}

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p.next
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p pipes) Close() error {
	close(p.next)
	return p.Listener.Close()
}

// TestLastWords shows that the answer to a request whose time ran out has a deadline too.
func TestLastWords(t *testing.T) {
	for name, request := range map[string]string{"header": "GET / HT", "response": "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"} {
		t.Run("F02/"+name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			b := echo(t, "api", nil)
			b.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(3 * time.Second) })
			next := make(chan net.Conn, 1)
			conf := hostileConfig[:strings.Index(hostileConfig, "  public:")] + hostileConfig[strings.Index(hostileConfig, "  plain:"):]
			conf = strings.Replace(conf, "    sources: [127.0.0.0/8]\n", "", 1)
			listeners := 0
			w.startWith(conf, b.addr, func(o *daemon.Options) {
				o.Listen = func(address string) (net.Listener, error) {
					l, err := net.Listen("tcp", address)
					if listeners++; listeners == 2 { // the first is ops
						return pipes{l, next}, err
					}
					return l, err
				}
			})
			server, client := net.Pipe()
			defer client.Close()
			next <- server
			go io.WriteString(client, request)
			w.awaitMetric(`countersign_connections{listener="plain"}`, "1")
			w.awaitMetric(`countersign_connections{listener="plain"}`, "0")
		})
	}
}

// TestReloadNarrows shows that what a reload takes away is taken from open connections at their next request at the
// latest.
func TestReloadNarrows(t *testing.T) {
	plain := func(t *testing.T, w *world) (net.Conn, *bufio.Reader) {
		t.Helper()
		c, err := net.Dial("tcp", w.addr("plain"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		return c, bufio.NewReader(c)
	}
	t.Run("A38/page becomes alert", func(t *testing.T) {
		w := newWorld(t)
		b := echo(t, "api", nil)
		w.start(hostileConfig, b.addr)
		c, err := w.dial("public", w.client("b.test", testpki.New(t).Client("mallory")))
		if err != nil {
			t.Fatal(err)
		}
		w.record("kind=handshake", "host=b.test")
		w.reload(strings.Replace(hostileConfig, "on_failure: page", "on_failure: alert", 1), b.addr)
		refusedAfter(t, w, c, bufio.NewReader(c), "b.test")
		if b.seen() != 0 {
			t.Errorf("the backend saw %d requests of a refused client", b.seen())
		}
	})
	t.Run("A34/sources", func(t *testing.T) {
		w := newWorld(t)
		b := echo(t, "api", nil)
		w.start(hostileConfig, b.addr)
		c, r := plain(t, w)
		if status, _, err := roundTrip(c, r, "GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n"); status != 200 {
			t.Fatal(status, err)
		}
		w.reload(strings.Replace(hostileConfig, "sources: [127.0.0.0/8]", "sources: [10.0.0.0/8]", 1), b.addr)
		refusedAfter(t, w, c, r, "a.test")
	})
	t.Run("A33/a list goes stale", func(t *testing.T) {
		w := newWorld(t)
		b := echo(t, "api", nil)
		next := time.Now().Add(4 * time.Second)
		w.file("clients.crl", w.ca.CRL(testpki.NextUpdate(next)))
		w.start(basic, b.addr)
		c, err := w.dial("public", w.client("a.test", w.ca.Client("alice")))
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(c)
		if status, _, err := roundTrip(c, r, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"); status != 200 {
			t.Fatal(status, err)
		}
		time.Sleep(time.Until(next.Add(500 * time.Millisecond)))
		before := b.seen()
		if rec := refusedAfter(t, w, c, r, "a.test"); !strings.HasPrefix(fmt.Sprint(rec["found"]), "crl_stale: ") || b.seen() != before {
			t.Errorf("%v, and the backend saw %d requests", rec, b.seen()-before)
		}
	})
	t.Run("H18/our chain gains its intermediate", func(t *testing.T) {
		w := newWorld(t)
		edge := w.ca.Client("edge", testpki.Lifetime(90*24*time.Hour))
		pool := x509.NewCertPool()
		pool.AddCert(w.root.Cert)
		b := echo(t, "api", &tls.Config{Certificates: []tls.Certificate{w.server.TLS()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool})
		leaf := testpki.PEM("CERTIFICATE", edge.DER())
		w.file("edge.pem", leaf)
		w.file("edge.key", edge.KeyPEM())
		conf := `
trust_stores:
  internal: {ca_bundle: {file: servers.pem}}
listeners:
  plain: {listen: 127.0.0.1:0, protocol: http, hosts: [{names: [a.test], routes: [{upstream: api}]}]}
upstreams:
  api:
    targets: ["https://BACKEND"]
    tls: {server_name: a.test, trust_store: internal, client_certificates: [{cert: edge.pem, key: edge.key}]}
`
		w.start(conf, b.addr)
		get := func() int {
			c, r := plain(t, w)
			status, _, _ := roundTrip(c, r, "GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n")
			return status
		}
		if status := get(); status != 502 {
			t.Errorf("without the intermediate: %d", status)
		}
		w.file("edge.pem", append(leaf, w.ca.PEM()...))
		w.reload(conf, b.addr)
		if status := get(); status != 200 {
			t.Errorf("with it: %d", status)
		}
	})
}

// TestRenamedHeadersEverywhere shows that a renamed identity header is removed from what clients of every host send: its
// backend may be reached through any of them.
func TestRenamedHeadersEverywhere(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.start(hostileConfig, b.addr)
	const forged = "\r\nX-My-Subject: CN=admin\r\nx_my_subject: CN=admin\r\nX.My-subject: CN=admin"
	t.Run("D01/plain listener", func(t *testing.T) {
		c, err := net.Dial("tcp", w.addr("plain"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if status, _, err := roundTrip(c, bufio.NewReader(c), "GET / HTTP/1.1\r\nHost: a.test"+forged+"\r\n\r\n"); status != 200 {
			t.Fatal(status, err)
		}
		if got := fmt.Sprint(b.last()); strings.Contains(got, "admin") {
			t.Error(got)
		}
	})
	for host, cert := range map[string]*testpki.Cert{"a.test": nil, "b.test": nil, "c.test": w.ca.Client("alice")} {
		t.Run("D01/"+host, func(t *testing.T) {
			if status, _, err := w.get("public", w.client(host, cert), host+forged, "/"); status != 200 {
				t.Fatal(status, err)
			}
			if got := fmt.Sprint(b.last()); strings.Contains(got, "admin") {
				t.Error(got)
			}
			if want := cert != nil; want != (b.last().Get("X-My-Subject") == "CN=alice") {
				t.Errorf("%v", b.last())
			}
		})
	}
}

// TestBodyTakenForRequest shows that a target which takes a body for the next request can only confuse the client that
// sent it: a connection that carried a body is used by no other (E32).
func TestBodyTakenForRequest(t *testing.T) {
	t.Run("E32/slow second answer", func(t *testing.T) {
		w := newWorld(t)
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
						req, err := http.ReadRequest(r)
						if err != nil {
							return
						}
						// The body is not read: http.Request.Body is left alone, and r stands before it.
						if strings.HasPrefix(req.URL.Path, "/slow") {
							time.Sleep(300 * time.Millisecond)
						}
						body := "answer to " + req.URL.Path
						fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
					}
				}()
			}
		}()
		w.start(hostileConfig, l.Addr().String())
		dial := func() (net.Conn, *bufio.Reader) {
			c, err := net.Dial("tcp", w.addr("plain"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return c, bufio.NewReader(c)
		}
		attacker, ar := dial()
		inner := "GET /slow-attacker HTTP/1.1\r\nHost: a.test\r\n\r\n"
		if status, body, err := roundTrip(attacker, ar, fmt.Sprintf("POST /static HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n%s", len(inner), inner)); status != 200 {
			t.Fatal(status, body, err)
		}
		for range 5 {
			victim, vr := dial()
			if status, body, err := roundTrip(victim, vr, "GET /victim HTTP/1.1\r\nHost: a.test\r\n\r\n"); body != "answer to /victim" {
				t.Fatalf("the victim got %d %q %v", status, body, err)
			}
		}
	})
	t.Run("kept for its own client, and not for ever", func(t *testing.T) {
		w := newWorld(t)
		b := echo(t, "api", nil)
		w.start(strings.Replace(hostileConfig, "limits: {idle: 1s, header: 1s, write_idle: 1s, body_idle: 1s}\n    sources", "sources", 1), b.addr)
		c, err := net.Dial("tcp", w.addr("plain"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		r := bufio.NewReader(c)
		for range 5 {
			if status, _, err := roundTrip(c, r, "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi"); status != 200 {
				t.Fatal(status, err)
			}
		}
		w.awaitMetric(`countersign_upstream_connections{target="`+b.addr+`",upstream="api"}`, "1")
		// The client stays and asks nothing: its connection to the target is given up.
		w.awaitMetric(`countersign_upstream_connections{target="`+b.addr+`",upstream="api"}`, "0")
		if status, _, err := roundTrip(c, r, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"); status != 200 {
			t.Error(status, err)
		}
	})
}

// TestConnectionOptions bounds the work that one Connection header can ask for.
func TestConnectionOptions(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.start(hostileConfig, b.addr)
	t.Run("F11/many options", func(t *testing.T) {
		c, err := net.Dial("tcp", w.addr("plain"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		status, body, err := roundTrip(c, bufio.NewReader(c), "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: "+strings.Repeat("zz,", 10000)+"z\r\n\r\n")
		if status != 400 || !strings.Contains(body, "protected_connection_token") || b.seen() != 0 {
			t.Error(status, body, err)
		}
	})
}
