package daemon_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/internal/testpki"
)

const modesConfig = `
trust_stores:
  clients:
    ca_bundle: {file: clients.pem}
    revocation: {crls: [{file: clients.crl}]}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: request_unverified, trust_store: clients}
        identity_headers: [rfc9440, alb, xfcc, x_ssl_client, traefik, gcp]
        routes: [{upstream: api}]
      - names: [b.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: passthrough_chain}
        identity_headers: [alb, x_ssl_client]
        routes: [{upstream: api}]
      - names: [c.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients, on_failure: page}
        routes: [{upstream: api}]
      - names: [d.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: request, trust_store: clients, on_failure: page}
        routes: [{upstream: api}]
upstreams:
  api: {targets: ["http://BACKEND"]}
`

// identityOf picks the identity headers out of what the backend got.
func identityOf(h http.Header) map[string]string {
	got := map[string]string{}
	for name, values := range h {
		for _, prefix := range []string{"Client-Cert", "X-Amzn-", "X-Forwarded-Client", "X-Ssl-", "X-Forwarded-Tls", "X-Client-Cert"} {
			if strings.HasPrefix(name, prefix) {
				got[name] = strings.Join(values, "|")
			}
		}
	}
	return got
}

// TestRequestUnverified shows that nobody is refused, that the verdict is told and recorded, and that what was not
// verified never fills a header that says otherwise (A39).
func TestRequestUnverified(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	bob := w.ca.Client("bob")
	w.file("clients.crl", w.ca.CRL(bob))
	w.start(modesConfig, b.addr)
	for _, tt := range []struct {
		name, verdict string
		cert          *testpki.Cert
	}{
		{"no certificate", "NONE", nil},
		{"foreign", "FAILED:client_cert_untrusted", testpki.New(t).Client("admin")},
		{"expired", "FAILED:client_cert_expired", w.ca.Client("admin", testpki.Expired())},
		{"revoked", "FAILED:client_cert_revoked", bob},
		{"server only", "FAILED:client_cert_eku", w.ca.Client("admin", testpki.EKU(x509.ExtKeyUsageServerAuth))},
		{"self-signed", "FAILED:client_cert_untrusted", testpki.New(t, testpki.NotCA(), testpki.KeyUsage(x509.KeyUsageDigitalSignature), testpki.EKU(x509.ExtKeyUsageClientAuth))},
		{"good", "SUCCESS", w.ca.Client("alice")},
	} {
		for _, change := range []func(*tls.Config){tls12, func(*tls.Config) {}} {
			t.Run("A39/"+tt.name, func(t *testing.T) {
				status, body, err := w.get("public", w.client("a.test", tt.cert, change), "a.test", "/")
				if status != 200 {
					t.Fatal(status, body, err)
				}
				got := identityOf(b.last())
				if got["X-Ssl-Client-Verify"] != tt.verdict {
					t.Errorf("X-SSL-Client-Verify is %q, expected %q", got["X-Ssl-Client-Verify"], tt.verdict)
				}
				switch tt.verdict {
				case "SUCCESS":
					if len(got) < 10 || !strings.Contains(got["X-Forwarded-Client-Cert"], `Subject="CN=alice"`) {
						t.Errorf("%v", got)
					}
				default:
					if len(got) != 1 {
						t.Errorf("more than the verdict was told: %v", got)
					}
					if _, why, ok := strings.Cut(tt.verdict, ":"); ok {
						w.record("kind=handshake", "reason=completed", "verdict="+why)
					}
				}
			})
		}
	}
	t.Run("unparsable", func(t *testing.T) {
		conf := w.client("a.test", nil)
		alice := w.ca.Client("alice").TLS()
		alice.Certificate = [][]byte{{0x30, 3, 1, 2, 3}}
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &alice, nil }
		if status, _, err := w.get("public", conf, "a.test", "/"); err == nil {
			t.Errorf("status %d", status)
		}
		w.record("reason=client_cert_unparsable")
	})
	t.Run("key not proven", func(t *testing.T) {
		alice, other := w.ca.Client("alice").TLS(), w.ca.Client("other").TLS()
		alice.PrivateKey = other.PrivateKey
		conf := w.client("a.test", nil)
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &alice, nil }
		if status, _, err := w.get("public", conf, "a.test", "/"); err == nil {
			t.Errorf("status %d", status)
		}
		w.record("reason=possession_not_proven")
	})
}

func TestPassthroughChain(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.start(modesConfig, b.addr)
	for name, cert := range map[string]*testpki.Cert{"none": nil, "expired": w.ca.Client("x", testpki.Expired()), "good": w.ca.Client("alice")} {
		t.Run("D09/"+name, func(t *testing.T) {
			// Forged copies of both sets must go, whatever is set.
			c, err := w.dial("public", w.client("b.test", cert))
			if err != nil {
				t.Fatal(err)
			}
			status, _, err := roundTrip(c, bufio.NewReader(c), "GET / HTTP/1.1\r\nHost: b.test\r\nX-Amzn-Mtls-Clientcert: forged\r\nX-Amzn-Mtls-Clientcert-Subject: CN=admin\r\nX-SSL-Client-Verify: SUCCESS\r\n\r\n")
			if status != 200 {
				t.Fatal(status, err)
			}
			got := identityOf(b.last())
			if cert == nil {
				if len(got) != 1 || got["X-Ssl-Client-Verify"] != "NONE" {
					t.Errorf("%v", got)
				}
				return
			}
			if len(got) != 2 || got["X-Ssl-Client-Verify"] != "FAILED:not_verified" {
				t.Errorf("%v", got)
			}
			text, err := url.PathUnescape(got["X-Amzn-Mtls-Clientcert"])
			if err != nil {
				t.Fatal(err)
			}
			rest := []byte(text)
			for i, der := range cert.Chain {
				var block *pem.Block
				if block, rest = pem.Decode(rest); block == nil || !bytes.Equal(block.Bytes, der) {
					t.Errorf("certificate %d differs", i)
				}
			}
			if len(rest) != 0 {
				t.Errorf("more than was presented: %q", rest)
			}
		})
	}
}

// TestPage shows that a refused client is told so in HTTP, and gets nothing else.
func TestPage(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.start(modesConfig, b.addr)
	for _, tt := range []struct {
		name, host, accept, body, reason string
		cert                             *testpki.Cert
	}{
		{"missing", "c.test", "*/*", `"reason":"client_cert_missing"`, "client_cert_missing", nil},
		{"missing, html", "c.test", "text/html,application/xhtml+xml", "<h1>A client certificate is required.</h1>", "client_cert_missing", nil},
		{"expired", "c.test", "application/json", `"reason":"client_cert_refused"`, "client_cert_expired", w.ca.Client("x", testpki.Expired())},
		{"foreign, html", "c.test", "text/html", "<h1>The client certificate was refused.</h1>", "client_cert_untrusted", testpki.New(t).Client("x")},
		{"expired under request", "d.test", "application/json", `"reason":"client_cert_refused"`, "client_cert_expired", w.ca.Client("x", testpki.Expired())},
	} {
		for _, change := range []func(*tls.Config){tls12, func(*tls.Config) {}} {
			t.Run(tt.name, func(t *testing.T) {
				c, err := w.dial("public", w.client(tt.host, tt.cert, change))
				if err != nil {
					t.Fatal(err)
				}
				r := bufio.NewReader(c)
				status, body, err := roundTrip(c, r, "GET /secret/path HTTP/1.1\r\nHost: "+tt.host+"\r\nAccept: "+tt.accept+"\r\n\r\n")
				if status != 403 || err != nil || !strings.Contains(body, tt.body) {
					t.Fatalf("%d %v\n%s", status, err, body)
				}
				w.record("kind=request", "status=403", "reason="+tt.reason, "path=/secret/path", "ref="+refIn(body))
				if strings.Contains(body, "secret") || strings.Contains(body, "127.0.0.1") {
					t.Errorf("the page tells more than it should: %s", body)
				}
				if _, err := r.ReadByte(); err != io.EOF {
					t.Errorf("the connection stays open: %v", err)
				}
				hs := w.record("kind=handshake", "reason="+tt.reason, "host="+tt.host)
				if tt.cert != nil && hs["possession"] != nil {
					t.Errorf("the key was proven, and the record says otherwise: %v", hs)
				}
			})
		}
	}
	if n := b.seen(); n != 0 {
		t.Errorf("the backend was reached %d times", n)
	}
	for _, host := range []string{"c.test", "d.test"} {
		if status, _, err := w.get("public", w.client(host, w.ca.Client("alice")), host, "/"); status != 200 {
			t.Error(host, status, err)
		}
	}
	if status, _, err := w.get("public", w.client("d.test", nil), "d.test", "/"); status != 200 {
		t.Error(status, err)
	}
}

func refIn(body string) string {
	for _, cut := range []string{`"reference":"`, "<code>"} {
		if _, rest, ok := strings.Cut(body, cut); ok {
			return rest[:18]
		}
	}
	return "no reference"
}

const bytesConfig = `
trust_stores:
  clients:
    ca_bundle: {file: clients.pem}
  internal:
    ca_bundle: {file: servers.pem}
listeners:
  secure:
    listen: 127.0.0.1:0
    protocol: tls
    limits: {tunnel_idle: 1s}
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        upstream: plain
  raw:
    listen: 127.0.0.1:0
    protocol: tcp
    limits: {lifetime: 1s}
    upstream: plain
  lend:
    listen: 127.0.0.1:0
    protocol: tcp
    upstream: mutual
  lend_http:
    listen: unix:SOCKET
    protocol: http
    hosts:
      - names: [legacy.test]
        routes: [{upstream: mutual_http}]
  nobody:
    listen: 127.0.0.1:0
    protocol: tcp
    sources: [10.0.0.0/8, "::1"]
    upstream: mutual
upstreams:
  plain: {targets: ["tcp://BACKEND"]}
  mutual:
    targets: ["tls://MUTUAL"]
    tls: {server_name: api.internal, trust_store: internal, client_certificates: [{cert: edge.pem, key: edge.key}]}
  mutual_http:
    targets: ["https://MUTUALHTTP"]
    tls: {server_name: api.internal, trust_store: internal, client_certificates: [{cert: edge.pem, key: edge.key}]}
`

// shout is a target that answers each line in upper case, and says goodbye when the client has ended.
func shout(t *testing.T, conf *tls.Config) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	addr := l.Addr().String()
	if conf != nil {
		l = tls.NewListener(l, conf)
	}
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
					line, err := r.ReadString('\n')
					if err != nil {
						break
					}
					fmt.Fprint(c, strings.ToUpper(line))
				}
				who := ""
				if tc, ok := c.(*tls.Conn); ok && len(tc.ConnectionState().PeerCertificates) > 0 {
					who = tc.ConnectionState().PeerCertificates[0].Subject.CommonName
				}
				fmt.Fprintf(c, "goodbye %s\n", who)
			}()
		}
	}()
	return addr
}

// TestBytes shows listeners that move bytes: after client auth, without TLS, and with our certificate for programs that
// have none.
func TestBytes(t *testing.T) {
	w := newWorld(t)
	edge := w.servers.Client("edge")
	w.file("edge.pem", edge.PEM())
	w.file("edge.key", edge.KeyPEM())
	mutual := &tls.Config{Certificates: []tls.Certificate{w.server.TLS()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.servers.Pool()}
	web := echo(t, "web", mutual)
	socket := filepath.Join(w.dir, "legacy.sock")
	conf := strings.NewReplacer("MUTUALHTTP", web.addr, "MUTUAL", shout(t, mutual), "SOCKET", socket).Replace(bytesConfig)
	w.start(conf, shout(t, nil))

	talk := func(t *testing.T, c net.Conn, name string) {
		t.Helper()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		big := strings.Repeat("x", 200<<10) + "\n"
		go fmt.Fprint(c, "hello\n", big)
		r := bufio.NewReader(c)
		for _, want := range []string{"HELLO\n", strings.ToUpper(big)} {
			if line, err := r.ReadString('\n'); line != want {
				t.Fatalf("got %d bytes %v, expected %d", len(line), err, len(want))
			}
		}
		// Half-close: we have said all, and still hear the answer.
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if rest, err := io.ReadAll(r); string(rest) != "goodbye "+name+"\n" || err != nil {
			t.Errorf("got %q %v", rest, err)
		}
	}
	refused := func(t *testing.T, listener string, conf *tls.Config, why string) {
		t.Helper()
		c, err := w.dial(listener, conf)
		if err == nil {
			if _, err = c.Read(make([]byte, 1)); err == nil {
				t.Error("accepted")
			}
		}
		w.record("reason=" + why)
	}
	t.Run("tls", func(t *testing.T) {
		for _, change := range []func(*tls.Config){tls12, func(*tls.Config) {}} {
			refused(t, "secure", w.client("a.test", nil, change), "client_cert_missing")
			refused(t, "secure", w.client("a.test", testpki.New(t).Client("x"), change), "client_cert_untrusted")
			refused(t, "secure", w.client("z.test", w.ca.Client("alice"), change), "sni_unknown")
			c, err := w.dial("secure", w.client("a.test", w.ca.Client("alice"), change, func(c *tls.Config) { c.NextProtos = []string{"mqtt"} }))
			if err != nil {
				t.Fatal(err)
			}
			talk(t, c, "")
			rec := w.record("kind=tunnel", "listener=secure", "reason=tunnel_closed")
			if who := rec["client_certificate"].(map[string]any)["subject"]; who != "CN=alice" {
				t.Errorf("%v", rec)
			}
		}
	})
	t.Run("tls idle", func(t *testing.T) {
		start := time.Now()
		c, err := w.dial("secure", w.client("a.test", w.ca.Client("alice")))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadAll(c)
		if took := time.Since(start); took < time.Second || took > 8*time.Second { // dial would give up after 10 s
			t.Errorf("ended after %v, expected tunnel_idle of 1s", took)
		}
		w.record("kind=tunnel", "listener=secure", "reason=idle_closed")
	})
	dial := func(t *testing.T, network, addr string) net.Conn {
		t.Helper()
		c, err := net.Dial(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	t.Run("tcp", func(t *testing.T) { talk(t, dial(t, "tcp", w.addr("raw")), "") })
	t.Run("lifetime", func(t *testing.T) {
		start := time.Now()
		c := dial(t, "tcp", w.addr("raw"))
		stop := time.AfterFunc(10*time.Second, func() { c.Close() })
		defer stop.Stop()
		go func() {
			for { // never idle
				if _, err := fmt.Fprint(c, "tick\n"); err != nil {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		}()
		_, _ = io.Copy(io.Discard, c)
		if took := time.Since(start); took < time.Second || took > 8*time.Second {
			t.Errorf("ended after %v, expected lifetime of 1s", took)
		}
		w.record("kind=tunnel", "listener=raw", "reason=lifetime_reached")
	})
	t.Run("our certificate for a program without one", func(t *testing.T) { talk(t, dial(t, "tcp", w.addr("lend")), "edge") })
	t.Run("the same in HTTP through a Unix socket", func(t *testing.T) {
		if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v %v", st.Mode(), err)
		}
		c := dial(t, "unix", socket)
		status, body, err := roundTrip(c, bufio.NewReader(c), "GET /x HTTP/1.1\r\nHost: legacy.test\r\n\r\n")
		if status != 200 || !strings.Contains(body, "peer=edge") {
			t.Errorf("%d %q %v", status, body, err)
		}
	})
	t.Run("A25/address not listed", func(t *testing.T) {
		c := dial(t, "tcp", w.addr("nobody"))
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if n, _ := c.Read(make([]byte, 1)); n != 0 {
			t.Error("served")
		}
		w.record("reason=source_refused", "found=127.0.0.1")
	})
}
