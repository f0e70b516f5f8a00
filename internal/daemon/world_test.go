package daemon_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign/internal/daemon"
	"countersign/internal/testpki"
)

// world is a running Countersign with a PKI and backends, all on loopback.
type world struct {
	t       testing.TB
	dir     string
	main    *daemon.Main
	log     *lines
	ops     *lines
	root    *testpki.Cert // of clients
	ca      *testpki.Cert // issues clients
	servers *testpki.Cert // root of servers
	server  *testpki.Cert // a.test, b.test, ...

	eventLoop bool // with experimental.event_loop
}

// eventLoop has every world run with the experiment of that name: what the plain path is tested for holds there too. Tests that
// count allocations are of the plain path only.
var eventLoop = flag.Bool("eventloop", false, "with experimental.event_loop")

// lines collects what is written to it.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// newWorld makes the PKI and its files: clients.pem, clients.crl, server.pem/.key, internal-ca.pem, edge.pem/.key.
func newWorld(t testing.TB) *world {
	w := &world{t: t, dir: t.TempDir(), log: &lines{}, ops: &lines{}}
	w.root = testpki.New(t)
	w.ca = w.root.Intermediate("Clients CA")
	w.servers = testpki.New(t)
	w.server = w.servers.Server("a.test", testpki.DNS("a.test", "b.test", "c.test", "d.test", "*.w.test", "off.test", "api.internal"))
	w.file("clients.pem", append(w.root.PEM(), w.ca.PEM()...))
	w.file("servers.pem", w.servers.PEM())
	w.file("server.pem", w.server.PEM())
	w.file("server.key", w.server.KeyPEM())
	w.file("clients.crl", w.ca.CRL())
	return w
}

func (w *world) file(name string, data []byte) {
	w.t.Helper()
	if name == "countersign.yaml" && (w.eventLoop || *eventLoop) && !bytes.Contains(data, []byte("event_loop")) {
		data = append(data, "\nexperimental: {event_loop: on}\n"...)
	}
	if err := os.WriteFile(filepath.Join(w.dir, name), data, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// start runs the configuration, in which BACKEND stands for backend.
func (w *world) start(conf, backend string) {
	w.t.Helper()
	w.startWith(conf, backend, func(*daemon.Options) {})
}

// startWith is start with other options.
func (w *world) startWith(conf, backend string, change func(*daemon.Options)) {
	w.t.Helper()
	w.file("countersign.yaml", []byte(strings.ReplaceAll(conf, "BACKEND", backend)))
	o := daemon.Options{Config: filepath.Join(w.dir, "countersign.yaml"), Records: w.log, Log: w.ops}
	change(&o)
	m, err := daemon.Start(o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.main = m
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		m.Shutdown(ctx)
	})
}

// reload puts a changed configuration in force.
func (w *world) reload(conf, backend string) {
	w.t.Helper()
	w.file("countersign.yaml", []byte(strings.ReplaceAll(conf, "BACKEND", backend)))
	if err := w.main.Reload(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) addr(listener string) string {
	w.t.Helper()
	a := w.main.Addr(listener)
	if a == nil {
		w.t.Fatalf("no listener %q", listener)
	}
	return a.String()
}

var sources atomic.Uint32

// dialFrom connects from a loopback address of its own, so that the client's address tells connections apart: the system
// gives the same port again for another destination.
func dialFrom(addr string) (net.Conn, error) {
	n := sources.Add(1)
	d := net.Dialer{Timeout: 15 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1+byte(n>>16), byte(n>>8), byte(n))}}
	return d.Dial("tcp", addr)
}

// client makes a TLS client configuration for a server name, with cert if it is not nil.
func (w *world) client(sni string, cert *testpki.Cert, change ...func(*tls.Config)) *tls.Config {
	c := &tls.Config{ServerName: sni, RootCAs: w.servers.Pool(), NextProtos: []string{"http/1.1"}}
	if cert != nil {
		pair := cert.TLS()
		// Whatever the hints: what is refused must be refused by the server, not withheld by the client.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func tls12(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }

// dial opens a TLS connection; the handshake may succeed although the server refuses (TLS 1.3).
func (w *world) dial(listener string, conf *tls.Config) (*tls.Conn, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 15 * time.Second}, Config: conf}
	c, err := d.Dial("tcp", w.addr(listener))
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	w.t.Cleanup(func() { c.Close() })
	return c.(*tls.Conn), nil
}

// get sends one GET over a new connection.
func (w *world) get(listener string, conf *tls.Config, host, path string) (int, string, error) {
	w.t.Helper()
	c, err := w.dial(listener, conf)
	if err != nil {
		return 0, "", err
	}
	return roundTrip(c, bufio.NewReader(c), "GET "+path+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
}

// roundTrip sends raw bytes and reads one response.
func roundTrip(c net.Conn, r *bufio.Reader, request string) (int, string, error) {
	if _, err := io.WriteString(c, request); err != nil {
		return 0, "", err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// record waits for a log line that has all of the given fields, written as key=value.
func (w *world) record(want ...string) map[string]any {
	w.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		for _, line := range strings.Split(w.log.String(), "\n") {
			var m map[string]any
			if json.Unmarshal([]byte(line), &m) != nil {
				continue
			}
			ok := true
			for _, kv := range want {
				k, v, _ := strings.Cut(kv, "=")
				if fmt.Sprint(m[k]) != v {
					ok = false
				}
			}
			if ok {
				return m
			}
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("no record with %v in:\n%s\n%s", want, w.log.String(), w.ops.String())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// backend is a target that records what it is sent.
type backend struct {
	*http.Server
	addr  string
	mu    sync.Mutex
	heads []http.Header
	count int
}

func (b *backend) seen() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.count
}

func (b *backend) last() http.Header {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.heads) == 0 {
		return nil
	}
	return b.heads[len(b.heads)-1]
}

// echo starts a backend that answers every request with its own name and what it was asked.
func echo(t testing.TB, name string, conf *tls.Config) *backend {
	b := &backend{}
	b.Server = &http.Server{TLSConfig: conf, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		b.mu.Lock()
		b.heads = append(b.heads, r.Header.Clone())
		b.count++
		b.mu.Unlock()
		peer := ""
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			peer = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		fmt.Fprintf(rw, "%s %s %s host=%s peer=%s body=%d", name, r.Method, r.RequestURI, r.Host, peer, len(body))
	}), ErrorLog: nil}
	b.Protocols = new(http.Protocols)
	b.Protocols.SetHTTP1(true)
	b.Protocols.SetUnencryptedHTTP2(conf == nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr = l.Addr().String()
	if conf != nil {
		l = tls.NewListener(l, conf)
	}
	go b.Serve(l)
	t.Cleanup(func() { b.Close() })
	return b
}

var _ = x509.NewCertPool
