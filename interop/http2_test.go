package interop_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2 is a configuration whose clients may use HTTP/2 before one backend, which speaks $version.
const h2 = `
listeners:
  public:
    listen: $public
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes: [{upstream: api}]
upstreams:
  api: {targets: ["http://$api"], protocol_version: $version}
`

// h2Clients is a configuration for real clients, before a backend of HTTP/1.1 and one of HTTP/2 without TLS. localhost is
// for those that take no other name for an address.
const h2Clients = `
listeners:
  public:
    listen: $public
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        identity_headers: [rfc9440, alb, x_ssl_client]
        routes:
          - {match: {path: /ws/*}, upgrade: [websocket], upstream: sockets}
          - {match: {path: /h2c/*}, upstream: h2c}
          - {upstream: http1}
      - names: [localhost]
        certificate: {cert: localhost.pem, key: localhost.key}
        client_auth: {mode: require, trust_store: clients}
        identity_headers: [rfc9440, alb, x_ssl_client]
        routes:
          - {match: {path: /h2c/*}, upstream: h2c}
          - {upstream: http1}
      - names: [off.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: off}
        routes: [{upstream: http1}]
upstreams:
  http1: {targets: ["http://$http1"]}
  h2c: {targets: ["http://$h2c"], protocol_version: http2}
  sockets:
    targets: ["https://$sockets"]
    tls: {server_name: api.internal, trust_store: internal, client_certificates: [{cert: edge.pem, key: edge.key}]}
`

// large is how many bytes go up and down at once.
const large = 32 << 20

// site is a backend that answers with the head that it was sent and a hash of the body, as JSON, or with a large file at
// any path that ends in /big.
type site struct {
	addr    string
	touched atomic.Int64 // connections and requests
}

type visit struct {
	seen
	Sum string // of the body
}

func hash(b []byte) string { return fmt.Sprintf("%d bytes, %x", len(b), sha256.Sum256(b)) }

func newSite(t *testing.T, version string, big []byte) *site {
	t.Helper()
	s := &site{}
	s.addr = serveGo(t, speaks(version), nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.touched.Add(1)
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		if err != nil {
			return
		}
		if strings.HasSuffix(r.URL.Path, "/big") {
			_, _ = w.Write(big)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(visit{seen{r.Method, r.RequestURI, r.Proto, r.Host, r.Header, int(n)}, fmt.Sprintf("%d bytes, %x", n, sum.Sum(nil))})
	}))
	return s
}

// serveGo runs Go's own server, with TLS if conf is there.
func serveGo(t *testing.T, speaks *http.Protocols, conf *tls.Config, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h, Protocols: speaks, TLSConfig: conf, ErrorLog: log.New(io.Discard, "", 0)}
	if conf != nil {
		go server.ServeTLS(l, "", "")
	} else {
		go server.Serve(l)
	}
	t.Cleanup(func() { server.Close() })
	return l.Addr().String()
}

// speaks is HTTP/1.1 (http1), or HTTP/2 with (h2) or without TLS (h2c), and nothing else.
func speaks(what string) *http.Protocols {
	p := &http.Protocols{}
	p.SetHTTP1(what == "http1")
	p.SetHTTP2(what == "h2")
	p.SetUnencryptedHTTP2(what == "h2c")
	return p
}

// mutual is the side of a server that shows one certificate and wants another.
func mutual(shown, ca *cert) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(ca.Certificate)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: shown.chain, PrivateKey: shown.key}}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
}

// whole answers when it has read the request.
func whole() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%s of %d bytes over %s", r.Method, n, r.Proto)
	})
}

// visitor is a client of HTTP/2 that nobody here wrote. It knows our CA and takes host, which is the server name, for
// 127.0.0.1.
type visitor struct {
	name     string
	programs []string
	// host is the one that wants a certificate of those that the client can find.
	host string
	// simple clients do not tell the status, and use the authority as server name.
	simple bool
	ask    func(t *testing.T, b *balancer, q *question) reply
}

// question is one request on a new connection.
type question struct {
	host, path string
	who        *cert
	authority  string   // other than host, if not empty
	header     []string // lines
	up         []byte   // a file to PUT
}

type reply struct {
	status int
	body   []byte
	err    string // all that the client says of an error
}

func (q *question) url(b *balancer) string { return b.url("public", q.host, q.path) }

var visitors = []visitor{
	{"curl", []string{"curl"}, "a.test", false, askCurl},
	{"nghttp", []string{"nghttp"}, "localhost", true, askNghttp},
	{"Node", []string{"node"}, "a.test", false, askNode},
	{"Go", nil, "a.test", false, askGo},
}

func askCurl(t *testing.T, b *balancer, q *question) reply {
	file := filepath.Join(t.TempDir(), "got")
	args := []string{"--http2", "-o", file, "-w", "%{http_version} %{http_code}"}
	for _, line := range q.header {
		args = append(args, "-H", line)
	}
	if q.authority != "" {
		args = append(args, "-H", "Host: "+q.authority)
	}
	if q.up != nil {
		args = append(args, "-H", "Expect:", "--upload-file", write(t, t.TempDir(), "up", q.up))
	}
	r := b.curl(t, "public", q.who, append(args, q.url(b))...)
	if r.code != 0 {
		return reply{err: r.err}
	}
	version, status, _ := strings.Cut(r.out, " ")
	if version != "2" {
		t.Errorf("curl spoke HTTP/%s", version)
	}
	n, _ := strconv.Atoi(status)
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return reply{status: n, body: body}
}

func askNghttp(t *testing.T, b *balancer, q *question) reply {
	args := []string{"--no-dep"}
	for _, line := range q.header {
		args = append(args, "-H", line)
	}
	if q.up != nil {
		args = append(args, "-H", ":method: PUT", "--data", write(t, t.TempDir(), "up", q.up))
	}
	if q.who != nil {
		args = append(args, "--cert", q.who.file, "--key", q.who.keyFile)
	}
	r := run(t, nil, "nghttp", append(args, q.url(b))...)
	if r.out == "" {
		return reply{err: r.err}
	}
	return reply{status: 200, body: []byte(r.out)} // the body has to show it
}

const nodeH2Client = `
const http2 = require('http2'), fs = require('fs'), net = require('net'), tls = require('tls');
const q = JSON.parse(fs.readFileSync(0));
const fail = e => { console.error(String(e && (e.code || '') + ' ' + (e.message || e))); process.exit(1); };
const options = {host: '127.0.0.1', port: q.port, servername: q.host, ca: fs.readFileSync(q.ca), ALPNProtocols: ['h2']};
if (q.cert) Object.assign(options, {cert: fs.readFileSync(q.cert), key: fs.readFileSync(q.key)});
const session = http2.connect('https://' + q.host + ':' + q.port, {createConnection: () => tls.connect(options), settings: {initialWindowSize: 1 << 20}});
session.on('error', fail);
const headers = {':path': q.path, ':method': q.up ? 'PUT' : 'GET'};
if (q.authority) headers[':authority'] = q.authority;
for (const [k, v] of q.header) headers[k] = v;
const stream = session.request(headers, {endStream: !q.up});
stream.on('error', fail);
stream.on('response', h => {
  const out = fs.createWriteStream(q.out);
  stream.pipe(out);
  out.on('finish', () => { console.log(h[':status']); session.close(); });
});
if (q.up) fs.createReadStream(q.up).pipe(stream);
setTimeout(() => fail('timeout'), 15000).unref();
`

func askNode(t *testing.T, b *balancer, q *question) reply {
	file := filepath.Join(t.TempDir(), "got")
	told := map[string]any{"host": q.host, "port": portOf(b.addr["public"]), "ca": b.pki.internal.file, "path": q.path, "authority": q.authority, "out": file}
	header := [][]string{}
	for _, line := range q.header {
		name, value, _ := strings.Cut(line, ": ")
		header = append(header, []string{strings.ToLower(name), value})
	}
	told["header"] = header
	if q.who != nil {
		told["cert"], told["key"] = q.who.file, q.who.keyFile
	}
	if q.up != nil {
		told["up"] = write(t, t.TempDir(), "up", q.up)
	}
	text, err := json.Marshal(told)
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, bytes.NewReader(text), "node", "-e", nodeH2Client)
	if r.code != 0 {
		return reply{err: r.err}
	}
	n, _ := strconv.Atoi(strings.TrimSpace(r.out))
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return reply{status: n, body: body}
}

func askGo(t *testing.T, b *balancer, q *question) reply {
	method, up := "GET", io.Reader(nil)
	if q.up != nil {
		method, up = "PUT", bytes.NewReader(q.up)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, q.url(b), up)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range q.header {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Add(name, value)
	}
	req.Host = q.authority
	resp, err := goClient(t, b, q.host, q.who).Do(req)
	if err != nil {
		return reply{err: err.Error()}
	}
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 {
		t.Errorf("Go spoke %s", resp.Proto)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return reply{err: err.Error()}
	}
	return reply{status: resp.StatusCode, body: body}
}

// goClient is Go's client of HTTP/2, and of nothing else, on one connection to the listener public with server name host.
func goClient(t *testing.T, b *balancer, host string, who *cert) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: goConfig(b.pki, host, who), Protocols: speaks("h2"),
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, b.addr["public"])
		}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 15 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// serveClients runs countersign with h2Clients.
func serveClients(t *testing.T) (b *balancer, http1, h2c *site, sockets *socketServer, big []byte) {
	p := newPKI(t)
	issue(t, p.dir, "localhost", p.internal, newECDSA(t), forServer("localhost"))
	big = noise(large)
	http1, h2c, sockets = newSite(t, "http1", big), newSite(t, "h2c", big), newSocketServer(t, p)
	return serve(t, p, h2Clients, map[string]string{"http1": http1.addr, "h2c": h2c.addr, "sockets": sockets.addr}), http1, h2c, sockets, big
}

// TestHTTP2Clients has every client do all that can go well and wrong over HTTP/2.
func TestHTTP2Clients(t *testing.T) {
	b, http1, h2c, _, big := serveClients(t)
	for _, v := range visitors {
		t.Run(v.name, func(t *testing.T) {
			need(t, v.programs...)
			read := func(t *testing.T, r reply) visit {
				t.Helper()
				var seen visit
				if err := json.Unmarshal(r.body, &seen); err != nil || r.status != 200 {
					t.Fatalf("status %d, %v, %s: %s", r.status, err, r.err, tail(string(r.body), 300))
				}
				return seen
			}
			for backend, proto := range map[string]string{"http1": "HTTP/1.1", "h2c": "HTTP/2.0"} {
				t.Run("good/"+backend, func(t *testing.T) {
					mark := b.mark()
					s := read(t, v.ask(t, b, &question{host: v.host, path: "/" + backend + "/x?y=1", who: b.pki.alice, header: append([]string{"X-Own: 1", "Client-Cert: :AAAA:"}, forged...)}))
					if s.Proto != proto || s.Target != "/"+backend+"/x?y=1" || s.Method != "GET" || s.Header.Get("X-Own") != "1" {
						t.Errorf("the backend saw %+v", s)
					}
					if host, _, _ := strings.Cut(s.Host, ":"); host != v.host {
						t.Errorf("the backend was asked for host %s", s.Host)
					}
					for name, want := range map[string]string{"X-Amzn-Mtls-Clientcert-Subject": "CN=alice", "X-Amzn-Mtls-Clientcert": "", "X-Ssl-Client-Verify": "SUCCESS", "X_ssl_client_verify": ""} {
						if got := strings.Join(s.Header.Values(name), " and "); got != want {
							t.Errorf("%s: %q; want %q", name, got, want)
						}
					}
					if c := s.Header.Values("Client-Cert"); len(c) != 1 || !strings.HasPrefix(c[0], ":MI") {
						t.Errorf("Client-Cert: %q", c)
					}
					for name := range s.Header {
						if strings.HasPrefix(name, ":") || strings.Contains(name, "_") {
							t.Errorf("the backend was sent %s", name)
						}
					}
					b.record(t, mark, "kind=request", "status=200", "client_subject=CN=alice", "path=/"+backend+"/x")
				})
				t.Run("32 MiB down/"+backend, func(t *testing.T) {
					r := v.ask(t, b, &question{host: v.host, path: "/" + backend + "/big", who: b.pki.alice})
					if got, want := hash(r.body), hash(big); r.status != 200 || got != want {
						t.Errorf("status %d, %s; want %s; %s", r.status, got, want, r.err)
					}
				})
				t.Run("32 MiB up/"+backend, func(t *testing.T) {
					s := read(t, v.ask(t, b, &question{host: v.host, path: "/" + backend + "/up", who: b.pki.alice, up: big}))
					if want := hash(big); s.Sum != want || s.Method != "PUT" {
						t.Errorf("the backend got %s; want %s", s.Sum, want)
					}
				})
			}
			for _, c := range callers(b.pki) {
				if c.good() {
					continue
				}
				t.Run("refused/"+c.name, func(t *testing.T) {
					mark, before := b.mark(), http1.touched.Load()+h2c.touched.Load()
					if r := v.ask(t, b, &question{host: v.host, path: "/", who: c.cert}); r.status != 0 || r.err == "" {
						t.Errorf("status %d, %s", r.status, r.err)
					}
					b.noRequest(t, b.record(t, mark, "kind=handshake", "reason="+c.reason, "alpn=h2"))
					if http1.touched.Load()+h2c.touched.Load() != before {
						t.Error("a backend was reached")
					}
				})
			}
			if v.simple {
				return
			}
			t.Run("authority of another policy", func(t *testing.T) {
				mark, before := b.mark(), http1.touched.Load()+h2c.touched.Load()
				if r := v.ask(t, b, &question{host: "off.test", path: "/", authority: "a.test"}); r.status != 421 {
					t.Errorf("status %d, %s", r.status, r.err)
				}
				b.record(t, mark, "kind=request", "reason=policy_mismatch", "status=421")
				if http1.touched.Load()+h2c.touched.Load() != before {
					t.Error("a backend was reached")
				}
				// On a connection of its own it is served.
				if s := read(t, v.ask(t, b, &question{host: "a.test", path: "/", who: b.pki.alice})); !strings.HasPrefix(s.Host, "a.test") {
					t.Errorf("the backend saw %+v", s)
				}
			})
		})
	}
}

// TestHTTP2SameConnection: requests for another host are served on the connection if its policy is the same, and refused
// if not, each alone.
func TestHTTP2SameConnection(t *testing.T) {
	b, http1, _, _, _ := serveClients(t)
	client := goClient(t, b, "a.test", b.pki.alice)
	get := func(authority string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", b.url("public", "a.test", "/"), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = authority
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	mark, before := b.mark(), http1.touched.Load()
	var got []int
	for _, authority := range []string{"a.test", "off.test", "a.test", "localhost", "nowhere.test", "a.test"} {
		got = append(got, get(authority))
	}
	if want := fmt.Sprint([]int{200, 421, 200, 200, 421, 200}); fmt.Sprint(got) != want {
		t.Errorf("statuses %v; want %s", got, want)
	}
	if n := http1.touched.Load() - before; n != 4 {
		t.Errorf("the backend was reached %d times; want 4", n)
	}
	client.CloseIdleConnections()
	b.record(t, mark, "kind=handshake")
	connections := map[any]bool{}
	for _, m := range b.since(t, mark) {
		if m["kind"] == "handshake" {
			connections[m["ref"]] = true
		}
	}
	if len(connections) != 1 {
		t.Errorf("%d connections; want one", len(connections))
	}
}

// TestHTTP2Downgrade: a body without a length, all of it there with the head or not, reaches a backend of HTTP/1.1 as one
// body, whatever it looks like.
func TestHTTP2Downgrade(t *testing.T) {
	b, http1, _, _, _ := serveClients(t)
	for name, body := range map[string]string{
		"end of a chunked body": "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.test\r\nX-Amzn-Mtls-Clientcert-Subject: CN=admin\r\n\r\n",
		"chunk":                 "5\r\nhello\r\n0\r\n\r\n",
		"head":                  "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n",
		"plain":                 "hello",
		"nothing":               "",
	} {
		for _, way := range []string{"at once", "a little later", "with a trailer"} {
			t.Run(name+"/"+way, func(t *testing.T) {
				before := http1.touched.Load()
				f := dialFrames(t, b, "a.test", b.pki.alice)
				f.headers(t, 1, false, ":method", "POST", ":scheme", "https", ":path", "/first", ":authority", "a.test")
				if way == "a little later" {
					time.Sleep(50 * time.Millisecond)
				}
				if err := f.WriteData(1, way != "with a trailer", []byte(body)); err != nil {
					t.Fatal(err)
				}
				if way == "with a trailer" {
					f.headers(t, 1, true, "x-trailer", "1")
				}
				_ = f.conn.SetReadDeadline(time.Now().Add(15 * time.Second))
				if s := f.status(t, 1); s != "200" {
					t.Errorf("status %s", s)
				}
				text, _ := f.data(t, 1, 1<<20)
				var v visit
				if err := json.Unmarshal(text, &v); err != nil || v.Sum != hash([]byte(body)) || v.Target != "/first" {
					t.Errorf("the backend saw %s; want the body %s", text, hash([]byte(body)))
				}
				time.Sleep(30 * time.Millisecond)
				if n := http1.touched.Load() - before; n != 1 {
					t.Errorf("the backend saw %d requests; want 1", n)
				}
			})
		}
	}
}

// TestHTTP2Trailers: the fields behind a body pass both ways between HTTP/2 on both sides, whether the body was there with
// the head or not.
func TestHTTP2Trailers(t *testing.T) {
	p := newPKI(t)
	backend := framesBackend(t)
	b := serve(t, p, h2, map[string]string{"api": backend, "version": "http2"})
	for _, pause := range []time.Duration{0, 50 * time.Millisecond} {
		for _, body := range []string{"", "hello"} {
			t.Run(fmt.Sprintf("%q after %v", body, pause), func(t *testing.T) {
				f := dialFrames(t, b, "a.test", p.alice)
				f.headers(t, 1, false, ":method", "POST", ":scheme", "https", ":path", "/", ":authority", "a.test", "trailer", "x-there")
				time.Sleep(pause)
				if body != "" {
					if err := f.WriteData(1, false, []byte(body)); err != nil {
						t.Fatal(err)
					}
				}
				f.headers(t, 1, true, "x-there", "1")
				if s := f.status(t, 1); s != "200" {
					t.Errorf("status %s", s)
				}
				want := fmt.Sprintf("%d bytes, then x-there: 1", len(body))
				if got, _ := f.data(t, 1, 1000); string(got) != want {
					t.Errorf("the backend saw %s; want %s", got, want)
				}
				if f.trailers != "x-back: 2" {
					t.Errorf("trailers %q; want x-back: 2", f.trailers)
				}
			})
		}
	}
}

var h2loadDone = regexp.MustCompile(`(?m)^requests: (\d+) total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout$`)

// TestH2load: 2,000 requests of h2load on 10 connections, 20 at a time on each. It has no client certificate, so it goes
// through the shim.
func TestH2load(t *testing.T) {
	need(t, "h2load")
	b, http1, h2c, _, _ := serveClients(t)
	for backend, s := range map[string]*site{"http1": http1, "h2c": h2c} {
		t.Run(backend, func(t *testing.T) {
			conf := goConfig(b.pki, "localhost", b.pki.alice)
			conf.NextProtos = []string{"h2"}
			addr, before := shim(t, b.addr["public"], conf), s.touched.Load()
			r := run(t, nil, "h2load", "-n2000", "-c10", "-m20", "https://localhost:"+portOf(addr)+"/"+backend+"/x")
			done := h2loadDone.FindStringSubmatch(r.out)
			if done == nil || strings.Join(done[1:], " ") != "2000 2000 0 0 0" || !strings.Contains(r.out, "status codes: 2000 2xx, 0 3xx, 0 4xx, 0 5xx") {
				t.Errorf("h2load: %s", r)
			}
			if n := s.touched.Load() - before; n != 2000 {
				t.Errorf("the backend had %d requests", n)
			}
		})
	}
}

// framesBackend is a server of HTTP/2 without TLS that tells what came behind the body of a request, declared or not, and
// sends x-back behind its own.
func framesBackend(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve := func(c net.Conn) {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.CopyN(io.Discard, c, int64(len(http2.ClientPreface))); err != nil {
			return
		}
		f := &frames{Framer: http2.NewFramer(c, c)}
		f.encoder = hpack.NewEncoder(&f.block)
		f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		_ = f.WriteSettings()
		read, heads := 0, 0
		trailers := ""
		for {
			got, err := f.ReadFrame()
			if err != nil {
				return
			}
			switch got := got.(type) {
			case *http2.SettingsFrame:
				if !got.IsAck() {
					_ = f.WriteSettingsAck()
				}
				continue
			case *http2.DataFrame:
				read += len(got.Data())
			case *http2.MetaHeadersFrame:
				if heads++; heads > 1 {
					trailers = list(got.Fields)
				}
			default:
				continue
			}
			if !got.Header().Flags.Has(http2.FlagDataEndStream) { // the same bit in both
				continue
			}
			id := got.Header().StreamID
			_ = f.send(id, false, ":status", "200")
			_ = f.WriteData(id, false, fmt.Appendf(nil, "%d bytes, then %s", read, trailers))
			_ = f.send(id, true, "x-back", "2")
			read, heads, trailers = 0, 0, ""
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// list writes fields as lines.
func list(fields []hpack.HeaderField) string {
	var lines []string
	for _, f := range fields {
		lines = append(lines, f.Name+": "+f.Value)
	}
	return strings.Join(lines, "\n")
}

// frames is a connection of HTTP/2 of which a test sees every frame.
type frames struct {
	*http2.Framer
	conn *tls.Conn

	settings map[http2.SettingID]uint32
	trailers string // behind the body that was read last
	block    bytes.Buffer
	encoder  *hpack.Encoder
}

// dialFrames connects as who and exchanges settings.
func dialFrames(t *testing.T, b *balancer, host string, who *cert) *frames {
	t.Helper()
	conf := goConfig(b.pki, host, who)
	conf.NextProtos = []string{"h2"}
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 15 * time.Second}, "tcp", b.addr["public"], conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	f := &frames{Framer: http2.NewFramer(c, c), conn: c, settings: map[http2.SettingID]uint32{}}
	f.encoder = hpack.NewEncoder(&f.block)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	for {
		got, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := got.(*http2.SettingsFrame); ok && !s.IsAck() {
			_ = s.ForeachSetting(func(s http2.Setting) error {
				f.settings[s.ID] = s.Val
				return nil
			})
			if err := f.WriteSettingsAck(); err != nil {
				t.Fatal(err)
			}
			return f
		}
	}
}

// headers sends a head.
func (f *frames) headers(t *testing.T, stream uint32, end bool, fields ...string) {
	t.Helper()
	if err := f.send(stream, end, fields...); err != nil {
		t.Fatal(err)
	}
}

func (f *frames) send(stream uint32, end bool, fields ...string) error {
	f.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = f.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: f.block.Bytes(), EndStream: end, EndHeaders: true})
}

// status waits for the head of a response, or says with which error the stream was reset.
func (f *frames) status(t *testing.T, stream uint32) string {
	t.Helper()
	for {
		got, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if got.Header().StreamID != stream {
			continue
		}
		switch got := got.(type) {
		case *http2.MetaHeadersFrame:
			if s := got.PseudoValue("status"); s[0] != '1' {
				return s
			}
		case *http2.RSTStreamFrame:
			return got.ErrCode.String()
		}
	}
}

// data waits for n bytes of a stream's body, or its end.
func (f *frames) data(t *testing.T, stream uint32, n int) (out []byte, end bool) {
	t.Helper()
	for len(out) < n {
		got, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if got.Header().StreamID != stream {
			continue
		}
		switch got := got.(type) {
		case *http2.DataFrame:
			out = append(out, got.Data()...)
			if got.StreamEnded() {
				return out, true
			}
		case *http2.MetaHeadersFrame:
			f.trailers = list(got.Fields)
			return out, got.StreamEnded()
		case *http2.RSTStreamFrame:
			t.Fatalf("the stream was reset: %v", got.ErrCode)
		}
	}
	return out, false
}

// message is a WebSocket message of a client in one frame (RFC 6455 section 5.2).
func message(opcode byte, payload []byte) []byte {
	out := []byte{0x80 | opcode}
	if n := len(payload); n < 126 {
		out = append(out, 0x80|byte(n))
	} else {
		out = append(out, 0x80|126, byte(n>>8), byte(n))
	}
	mask := [4]byte{1, 2, 3, 4}
	out = append(out, mask[:]...)
	for i, c := range payload {
		out = append(out, c^mask[i%4])
	}
	return out
}

// TestWebSocketOverHTTP2 opens WebSockets by extended CONNECT (RFC 8441), to a server of HTTP/1.1.
func TestWebSocketOverHTTP2(t *testing.T) {
	b, http1, _, sockets, _ := serveClients(t)
	connect := func(path string, more ...string) []string {
		return append([]string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":path", path, ":authority", "a.test",
			"sec-websocket-version", "13", "origin", "https://a.test"}, more...)
	}
	f := dialFrames(t, b, "a.test", b.pki.alice)
	if f.settings[http2.SettingEnableConnectProtocol] != 1 {
		t.Fatalf("settings %v: SETTINGS_ENABLE_CONNECT_PROTOCOL is not 1", f.settings)
	}
	t.Run("messages", func(t *testing.T) {
		mark := b.mark()
		f.headers(t, 1, false, connect("/ws/echo?room=1", "sec-websocket-protocol", "chat.v1")...)
		if s := f.status(t, 1); s != "200" {
			t.Fatalf("status %s", s)
		}
		for _, text := range []string{"hello", strings.Repeat("a line of text\n", 1000)} {
			frame := message(1, []byte(text))
			if err := f.WriteData(1, false, frame); err != nil {
				t.Fatal(err)
			}
			want := append(frame[:0:0], frame...)
			want = append(want[:len(frame)-len(text)-4], text...) // without a mask
			want[1] &= 0x7f
			if got, _ := f.data(t, 1, len(want)); !bytes.Equal(got, want) {
				t.Errorf("%q; want %q", tail(string(got), 100), tail(string(want), 100))
			}
		}
		if err := f.WriteData(1, false, message(8, []byte{0x03, 0xe8})); err != nil {
			t.Fatal(err)
		}
		if got, end := f.data(t, 1, 100); !bytes.Equal(got, []byte{0x88, 2, 0x03, 0xe8}) || !end {
			t.Errorf("% x, end %t; want a close frame and the end", got, end)
		}
		_ = f.WriteData(1, true, nil)
		r, _ := sockets.last()
		if r.Header.Get("Sec-Websocket-Protocol") != "chat.v1" || r.URL.RawQuery != "room=1" || r.TLS.PeerCertificates[0].Subject.CommonName != "edge" {
			t.Errorf("the server saw %v, %v", r.Header, r.URL)
		}
		b.record(t, mark, "kind=request", "reason=tunnel_closed", "client_subject=CN=alice", "path=/ws/echo")
		await(t, func() bool { return len(sockets.ended()) == 1 })
	})
	t.Run("others on the same connection", func(t *testing.T) {
		f.headers(t, 3, true, ":method", "GET", ":scheme", "https", ":path", "/x", ":authority", "a.test")
		if s := f.status(t, 3); s != "200" {
			t.Errorf("status %s", s)
		}
	})
	for i, test := range []struct {
		name, want string
		fields     []string
	}{
		{"refused by the server", "403", connect("/ws/no")},
		{"route without upgrade", "501", connect("/other")},
		{"another protocol", "501", append([]string{":method", "CONNECT", ":protocol", "connect-udp"}, connect("/ws/echo")[4:]...)},
		{"authority of another policy", "421", []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":path", "/", ":authority", "off.test", "sec-websocket-version", "13"}},
		{":protocol without CONNECT", "PROTOCOL_ERROR", append([]string{":method", "GET"}, connect("/ws/echo")[2:]...)},
		{"no :path", "PROTOCOL_ERROR", []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "a.test"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, before := sockets.last()
			stream := uint32(5 + 2*i)
			f.headers(t, stream, false, test.fields...)
			if s := f.status(t, stream); s != test.want {
				t.Errorf("%s; want %s", s, test.want)
			}
			if _, after := sockets.last(); after != before && test.want != "403" {
				t.Error("the server was reached")
			}
		})
	}
	if n := http1.touched.Load(); n != 1 {
		t.Errorf("the other backend had %d requests; want 1", n)
	}
	for name, end := range map[string]func(f *frames){
		"the client's stream ends":     func(f *frames) { _ = f.WriteData(1, true, nil) },
		"the client resets the stream": func(f *frames) { _ = f.WriteRSTStream(1, http2.ErrCodeCancel) },
		"the client's connection ends": func(f *frames) { f.conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			own := dialFrames(t, b, "a.test", b.pki.alice)
			own.headers(t, 1, false, connect("/ws/echo")...)
			if s := own.status(t, 1); s != "200" {
				t.Fatalf("status %s", s)
			}
			before := len(sockets.ended())
			end(own)
			await(t, func() bool { return len(sockets.ended()) > before })
			var closed websocket.CloseError
			if err := sockets.ended()[before]; errors.As(err, &closed) {
				t.Errorf("the server met %v; want the end of the connection", err)
			}
		})
	}
}

// ended is how the server's sockets have ended.
func (s *socketServer) ended() []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ends)
}

// browserPage fetches from its own host and from one that wants a certificate, and opens a WebSocket there. It has loaded
// when all is done, and not before.
const browserPage = `<!doctype html><p id=out>waiting</p><script>
(async () => {
  const said = [], there = 'https://a.test:' + location.port;
  const step = async (name, f) => { try { said.push(name + ' ' + await f()); } catch (e) { said.push(name + ' failed: ' + e); } };
  await step('here', async () => (await (await fetch('/x')).json()).Header['X-Forwarded-Proto']);
  await step('there', async () => (await fetch(there + '/x', {mode: 'no-cors', credentials: 'include'})).type);
  await step('again', async () => (await fetch(there + '/x', {mode: 'no-cors', credentials: 'include'})).type);
  await step('socket', () => new Promise((resolve, reject) => {
    const s = new WebSocket(there.replace('https', 'wss') + '/ws/echo');
    s.onopen = () => s.send('hello');
    s.onmessage = m => { resolve(m.data); s.close(); };
    s.onerror = () => reject('error');
    setTimeout(() => reject('timeout'), 15000);
  }));
  await step('protocols', () => [...new Set(performance.getEntries().map(e => e.nextHopProtocol).filter(p => p))].join(' '));
  document.getElementById('out').textContent = said.join('; ');
  fetch('/done');
})();
</script><img src=/wait>`

// TestChromium has a browser with a client certificate show a page, all over HTTP/2, WebSockets too. The certificate is
// chosen by a policy, for which there is one folder on the machine.
func TestChromium(t *testing.T) {
	need(t, "chromium", "certutil", "openssl")
	const policies = "/etc/chromium/policies/managed"
	if os.Geteuid() != 0 {
		t.Skip("not root: the policy that lets Chromium choose a certificate cannot be written")
	}
	p := newPKI(t)
	issue(t, p.dir, "localhost", p.internal, newECDSA(t), forServer("localhost"))
	shown := issue(t, p.dir, "socket-server", p.internal, newECDSA(t), forServer("api.internal"))
	sockets := serveGo(t, speaks("http1"), mutual(shown, p.internal), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{OriginPatterns: []string{"off.test:*"}})
		if err != nil {
			return
		}
		defer c.CloseNow()
		ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
		defer cancel()
		for {
			kind, data, err := c.Read(ctx)
			if err != nil || c.Write(ctx, kind, data) != nil {
				return
			}
		}
	}))
	done, once := make(chan struct{}), sync.Once{}
	page := serveGo(t, speaks("http1"), nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/page":
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, browserPage)
			return
		case "/done":
			once.Do(func() { close(done) })
		case "/wait":
			select {
			case <-done:
			case <-time.After(40 * time.Second):
			}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"Header": map[string]string{"X-Forwarded-Proto": r.Header.Get("X-Forwarded-Proto")}})
	}))
	b := serve(t, p, h2Clients, map[string]string{"http1": page, "sockets": sockets})

	home := t.TempDir()
	db := filepath.Join(home, ".pki", "nssdb")
	if err := os.MkdirAll(db, 0o700); err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(home, "alice.p12")
	for _, cmd := range [][]string{
		{"certutil", "-N", "-d", "sql:" + db, "--empty-password"},
		{"certutil", "-A", "-d", "sql:" + db, "-n", "internal", "-t", "C,,", "-i", p.internal.file},
		{"openssl", "pkcs12", "-export", "-in", p.alice.file, "-inkey", p.alice.keyFile, "-out", bundle, "-passout", "pass:x"},
		{"pk12util", "-i", bundle, "-d", "sql:" + db, "-W", "x"},
	} {
		if r := run(t, nil, cmd[0], cmd[1:]...); r.code != 0 {
			t.Fatalf("%s: %s", cmd[0], r)
		}
	}
	if err := os.MkdirAll(policies, 0o755); err != nil {
		t.Fatal(err)
	}
	policy := write(t, policies, "countersign-interop.json", []byte(`{"AutoSelectCertificateForUrls": ["{\"pattern\":\"https://a.test\",\"filter\":{}}"]}`))
	t.Cleanup(func() { os.Remove(policy) })

	mark := b.mark()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--user-data-dir="+filepath.Join(home, "profile"),
		"--host-resolver-rules=MAP *.test 127.0.0.1", "--dump-dom", b.url("public", "off.test", "/page"))
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_DATA_HOME=", "XDG_CONFIG_HOME=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("chromium: %v\n%s\n%s", err, out, tail(errs.String(), 3000))
	}
	want := "here https; there opaque; again opaque; socket hello; protocols h2"
	if !strings.Contains(string(out), "<p id=\"out\">"+want+"</p>") {
		t.Errorf("the page says\n%s\nwant %s\n%s", out, want, tail(b.records.String()[mark:], 6000))
	}
	b.record(t, mark, "kind=request", "path=/page", "host=off.test:"+portOf(b.addr["public"]), "status=200")
	b.record(t, mark, "kind=request", "path=/x", "client_subject=CN=alice", "status=200")
	b.record(t, mark, "kind=request", "path=/ws/echo", "method=CONNECT", "client_subject=CN=alice", "reason=tunnel_closed")
}
