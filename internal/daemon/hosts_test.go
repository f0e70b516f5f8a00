package daemon_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"countersign/internal/testpki"
)

// hello is a ClientHello made by hand: crypto/tls would not send most of these.
type hello struct {
	sni      []byte // nil for none
	versions []uint16
	legacy   uint16
	suites   []uint16
	alpn     []string
	padding  int
}

func vector(size int, body []byte) []byte {
	n := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	return append(n[4-size:], body...)
}

// message is the handshake message.
func (h hello) message() []byte {
	if h.legacy == 0 {
		h.legacy = tls.VersionTLS12
	}
	if h.suites == nil {
		h.suites = []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
	}
	random := make([]byte, 32)
	_, _ = rand.Read(random)
	list16 := func(v []uint16) (out []byte) {
		for _, x := range v {
			out = binary.BigEndian.AppendUint16(out, x)
		}
		return out
	}
	var ext []byte
	add := func(kind uint16, body []byte) {
		ext = binary.BigEndian.AppendUint16(ext, kind)
		ext = append(ext, vector(2, body)...)
	}
	if h.sni != nil {
		add(0, vector(2, append([]byte{0}, vector(2, h.sni)...)))
	}
	add(10, vector(2, list16([]uint16{0x1d, 0x17})))
	add(11, vector(1, []byte{0}))
	add(13, vector(2, list16([]uint16{0x0403, 0x0804, 0x0401})))
	add(23, nil) // extended master secret
	if h.versions != nil {
		add(43, vector(1, list16(h.versions)))
		share := make([]byte, 32)
		_, _ = rand.Read(share)
		share[31] &= 0x7f
		add(51, vector(2, append([]byte{0, 0x1d}, vector(2, share)...)))
	}
	if h.alpn != nil {
		var names []byte
		for _, p := range h.alpn {
			names = append(names, vector(1, []byte(p))...)
		}
		add(16, vector(2, names))
	}
	if h.padding > 0 {
		add(21, make([]byte, h.padding))
	}
	body := binary.BigEndian.AppendUint16(nil, h.legacy)
	body = append(body, random...)
	body = append(body, vector(1, random)...)
	body = append(body, vector(2, list16(h.suites))...)
	body = append(body, 1, 0)
	body = append(body, vector(2, ext)...)
	return append([]byte{1}, vector(3, body)...)
}

// records cuts a handshake message into TLS records of at most size bytes.
func records(message []byte, size int) (out []byte) {
	for len(message) > 0 {
		n := min(size, len(message))
		out = append(out, 22, 3, 1)
		out = append(out, vector(2, message[:n])...)
		message = message[n:]
	}
	return out
}

// rawCall sends bytes and returns all that comes back until the end, and our address.
func (w *world) rawCall(t testing.TB, listener string, out []byte) (back []byte, client string) {
	t.Helper()
	c := must(dialFrom(w.addr(listener)))(t)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write(out); err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	back, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("after % x: %v", back[:min(len(back), 20)], err)
	}
	return back, c.LocalAddr().String()
}

// plainAlert is the code of a fatal alert that is all there is, or -1.
func plainAlert(b []byte) int {
	if len(b) == 7 && b[0] == 21 && b[5] == 2 {
		return int(b[6])
	}
	return -1
}

const (
	alertUnexpected   = 10
	alertHandshake    = 40
	alertDecode       = 50
	alertVersion      = 70
	alertUnrecognized = 112
	alertNoProtocol   = 120
)

const manyHosts = `
ops: {listen: 127.0.0.1:0}
trust_stores:
  A: {ca_bundle: {file: clients.pem}}
  B: {ca_bundle: {file: b.pem}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - {names: [a.test], certificate: &c {cert: server.pem, key: server.key}, client_auth: {mode: off}, routes: &r [{upstream: api}]}
      - {names: [a2.w.test], certificate: *c, client_auth: {mode: off}, routes: *r}
      - {names: [b.test], certificate: {cert: b-server.pem, key: b-server.key}, client_auth: {mode: require, trust_store: A}, routes: [{match: {path: /*}, upstream: api}]}
      - {names: [c.test], certificate: *c, client_auth: {mode: require, trust_store: B}, routes: [{match: {path: /only}, upstream: api}, {match: {path: /}, upstream: api}]}
      - {names: [d.test], certificate: *c, client_auth: {mode: request, trust_store: A}, routes: *r}
      - {names: ["*.w.test"], certificate: *c, client_auth: {mode: require, trust_store: A}, routes: *r}
  fallback:
    listen: localhost:0
    protocol: https
    default_host: a.test
    hosts:
      - {names: [a.test], certificate: *c, client_auth: {mode: off}, routes: *r}
      - {names: [b.test], certificate: {cert: b-server.pem, key: b-server.key}, client_auth: {mode: require, trust_store: A}, routes: *r}
  other:
    listen: 127.0.0.2:0
    protocol: https
    hosts:
      - {names: [b.test], certificate: *c, client_auth: {mode: off}, routes: [{upstream: open}]}
  plain:
    listen: 127.0.0.3:0
    protocol: http
    hosts:
      - {names: [a.test], routes: *r}
  through:
    listen: 127.0.0.4:0
    protocol: passthrough
    hosts:
      - {names: [p.test, "*.p.test"], upstream: tls}
upstreams:
  api: {targets: ["http://BACKEND"]}
  open: {targets: ["http://OPEN"]}
  tls: {targets: ["tcp://TLS"]}
`

// hostsWorld runs manyHosts: public and others, a backend for each upstream.
func hostsWorld(t *testing.T) (w *world, api, open *backend, clients map[string]*testpki.Cert) {
	w = newWorld(t)
	api, open = echo(t, "api", nil), echo(t, "open", nil)
	target := echo(t, "tls", &tls.Config{Certificates: []tls.Certificate{w.servers.Server("p.test", testpki.DNS("x.p.test")).TLS()}, SessionTicketsDisabled: true})
	root := testpki.New(t)
	w.file("b.pem", root.PEM())
	secret := w.servers.Server("b.test", testpki.DNS("secret-name-of-b.test"))
	w.file("b-server.pem", secret.PEM())
	w.file("b-server.key", secret.KeyPEM())
	w.start(strings.NewReplacer("OPEN", open.addr, "TLS", target.addr).Replace(manyHosts), api.addr)
	return w, api, open, map[string]*testpki.Cert{"A": w.ca.Client("alice"), "B": root.Client("berta")}
}

// TestHostMatrix: the policy chosen by server name is the only one whose hosts a connection may ask for.
func TestHostMatrix(t *testing.T) {
	w, api, _, clients := hostsWorld(t)
	hosts := []struct{ name, policy, cert string }{
		{"a.test", "off", ""}, {"a2.w.test", "off", ""}, {"b.test", "require A", "A"}, {"c.test", "require B", "B"},
		{"d.test", "request A", "A"}, {"d.test", "request A", ""}, {"x.w.test", "require A", "A"}, {"y.w.test", "require A", "A"},
	}
	for _, v := range tlsVersions {
		for _, sni := range hosts {
			for _, host := range hosts {
				t.Run("A11/"+v.name+"/"+sni.name+sni.cert+" asks "+host.name, func(t *testing.T) {
					before := api.seen()
					a := w.call("public", pin(w.client(sni.name, clients[sni.cert]), v.id), host.name, "/")
					if sni.policy == host.policy {
						if a.status != 200 || !strings.Contains(a.body, "host="+host.name) {
							t.Errorf("the same policy: %d %q %v", a.status, a.body, a.err)
						}
						return
					}
					if a.status != 421 || api.seen() != before {
						t.Errorf("another policy: %d %q %v, backend reached: %v", a.status, a.body, a.err, api.seen() != before)
					}
					r := w.find(t, "client="+a.client, "kind=request")
					if r["reason"] != "policy_mismatch" {
						t.Errorf("reason %v", r["reason"])
					}
				})
			}
		}
	}
	// What routes a host has is not told to those who may not ask for it.
	for _, path := range []string{"/nothing", "/only", "/only/../x", "/%2e%2e/"} {
		t.Run("A11/routes of another policy "+path, func(t *testing.T) {
			a := w.call("public", w.client("a.test", nil), "c.test", path)
			if a.status != 421 {
				t.Errorf("%d %q %v", a.status, a.body, a.err)
			}
		})
	}
	t.Run("A15/wildcard", func(t *testing.T) {
		before := api.seen()
		if a := w.call("public", w.client("a.test", nil), "x.w.test", "/"); a.status != 421 || api.seen() != before {
			t.Errorf("%d %q %v", a.status, a.body, a.err)
		}
	})
}

// TestHostOnEveryRequest: the check is made for each request of a connection, pipelined ones too.
func TestHostOnEveryRequest(t *testing.T) {
	w, api, _, clients := hostsWorld(t)
	c := must(w.dial("public", w.client("b.test", clients["A"])))(t)
	r := bufio.NewReader(c)
	want := 0
	for i, host := range []string{"b.test", "c.test", "b.test", "x.w.test", "unknown.test", "a.test", "B.TEST.:443", "d.test", "b.test"} {
		status, body, err := roundTrip(c, r, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
		ok := strings.EqualFold(host[:6], "b.test") || host == "x.w.test"
		if ok {
			want++
		}
		if ok != (status == 200) || !ok && status != 421 {
			t.Errorf("A12/request %d for %s: %d %q %v", i, host, status, body, err)
		}
	}
	if api.seen() != want {
		t.Errorf("the backend saw %d requests, expected %d", api.seen(), want)
	}
	if _, err := io.WriteString(c, "GET /1 HTTP/1.1\r\nHost: b.test\r\n\r\nGET / HTTP/1.1\r\nHost: c.test\r\n\r\nGET /3 HTTP/1.1\r\nHost: b.test\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{200, 421, 200} {
		if status, body, err := roundTrip(c, r, ""); status != want {
			t.Errorf("A12/pipelined %d: %d %q %v, expected %d", i+1, status, body, err, want)
		}
	}
}

// TestHostSpellings: no spelling of a host's name leads past the check, and the plain ones lead to the host.
func TestHostSpellings(t *testing.T) {
	w, api, _, clients := hostsWorld(t)
	type row struct {
		request string // HOST stands for a name
		same    int    // status when HOST is the connection's own
	}
	rows := []row{
		{"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n", 200},
		{"GET / HTTP/1.1\r\nHost: HOST:443\r\n\r\n", 200},
		{"GET / HTTP/1.1\r\nHost: HOST.\r\n\r\n", 200},
		{"GET / HTTP/1.1\r\nHost: HOST.:8443\r\n\r\n", 200},
		{"GET / HTTP/1.1\r\nhost:HOST \r\n\r\n", 200},
		{"GET https://HOST/ HTTP/1.1\r\nHost: HOST\r\n\r\n", 200},
		{"GET / HTTP/1.1\r\nHost: HOST..\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: .HOST\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: HOST,OWN\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: OWN,HOST\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: OWN@HOST\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: HOST@OWN\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: HOST:0443\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: HOST:99999\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: HOST:\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: HOST/\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: HOST#\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: HOST\\\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: HOST%00\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: HOST\x00\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: HOST OWN\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: ＨOST\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: [HOST]\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: *.w.test\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: OWN\r\nHost: HOST\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: HOST\r\nHost: OWN\r\n\r\n", 400},
		{"GET https://HOST/ HTTP/1.1\r\nHost: OWN\r\n\r\n", -400}, // -: decided by comparing the two names
		{"GET https://OWN/ HTTP/1.1\r\nHost: HOST\r\n\r\n", -400},
		{"GET https://OWN@HOST/ HTTP/1.1\r\nHost: OWN\r\n\r\n", 400},
		{"GET //HOST/ HTTP/1.1\r\nHost: OWN\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400},
		{"GET / HTTP/1.0\r\nHost: HOST\r\n\r\n", 200},
	}
	ask := func(sni string, cert *testpki.Cert, request string) (int, string, error) {
		c, err := w.dial("public", w.client(sni, cert))
		if err != nil {
			return 0, "", err
		}
		defer c.Close()
		return roundTrip(c, bufio.NewReader(c), request)
	}
	for _, r := range rows {
		for _, upper := range []bool{false, true} {
			fill := func(own, host string) string {
				if upper {
					host = strings.ToUpper(host)
				}
				return strings.NewReplacer("HOST", host, "OWN", own).Replace(strings.ReplaceAll(strings.ReplaceAll(r.request, "\r\nHost:", "\r\n#:"), "\r\nhost:", "\r\n#:"))
			}
			restore := func(s string) string { return strings.ReplaceAll(s, "#:", "Host:") }
			t.Run("A14/"+fmt.Sprintf("%.60q", restore(fill("a.test", "b.test"))), func(t *testing.T) {
				before := api.seen()
				status, body, err := ask("a.test", nil, restore(fill("a.test", "b.test")))
				want := r.same
				if want == 200 {
					want = 421
				}
				if want < 0 {
					want = 400
				}
				if status != want || api.seen() != before {
					t.Errorf("another policy's host: %d %q %v, expected %d", status, body, err, want)
				}
				if r.same < 0 {
					return
				}
				status, body, err = ask("b.test", clients["A"], restore(fill("b.test", "b.test")))
				if status != r.same || r.same != 200 && api.seen() != before {
					t.Errorf("the connection's own host: %d %q %v, expected %d", status, body, err, r.same)
				}
			})
		}
	}
}

// chopped cuts what a client writes first, its ClientHello.
type chopped struct {
	net.Conn
	cut  func(net.Conn, []byte) error
	done bool
}

func (c *chopped) Write(p []byte) (int, error) {
	if c.done {
		return c.Conn.Write(p)
	}
	c.done = true
	return len(p), c.cut(c.Conn, p)
}

// TestFragmentedHello: a ClientHello in pieces is the same ClientHello.
func TestFragmentedHello(t *testing.T) {
	w, api, _, clients := hostsWorld(t)
	cuts := map[string]func(net.Conn, []byte) error{
		"1-byte segments": func(c net.Conn, p []byte) error {
			for i := range p {
				if _, err := c.Write(p[i : i+1]); err != nil {
					return err
				}
				if i < 12 {
					time.Sleep(time.Millisecond) // the first ones surely apart
				}
			}
			return nil
		},
		"records of 7 bytes": func(c net.Conn, p []byte) error { _, err := c.Write(records(p[5:], 7)); return err },
		"records of 1 byte in segments of 3": func(c net.Conn, p []byte) error {
			for out := records(p[5:], 1); len(out) > 0; {
				n := min(3, len(out))
				if _, err := c.Write(out[:n]); err != nil {
					return err
				}
				out = out[n:]
			}
			return nil
		},
		"two records, paused": func(c net.Conn, p []byte) error {
			out := records(p[5:], 60)
			_, err := c.Write(out[:65])
			time.Sleep(50 * time.Millisecond)
			if err == nil {
				_, err = c.Write(out[65:])
			}
			return err
		},
	}
	for name, cut := range cuts {
		for _, v := range tlsVersions {
			wrap := func(c net.Conn) net.Conn { return &chopped{Conn: c, cut: cut} }
			t.Run("A17/"+v.name+"/https/"+name, func(t *testing.T) {
				if a := w.call("public", pin(w.client("b.test", clients["A"]), v.id), "b.test", "/", wrap); a.status != 200 {
					t.Errorf("alice: %d %v", a.status, a.err)
				}
				before := api.seen()
				if a := w.call("public", pin(w.client("b.test", nil), v.id), "b.test", "/", wrap); a.alert() == "" || w.ended(t, a)["reason"] != "client_cert_missing" {
					t.Errorf("nobody: %d %v", a.status, a.err)
				}
				if a := w.call("public", pin(w.client("a.test", nil), v.id), "b.test", "/", wrap); a.status != 421 || api.seen() != before {
					t.Errorf("another's host: %d %v", a.status, a.err)
				}
			})
			t.Run("A17/"+v.name+"/passthrough/"+name, func(t *testing.T) {
				if a := w.call("through", pin(w.client("x.p.test", nil), v.id), "x.p.test", "/", wrap); a.status != 200 || !strings.HasPrefix(a.body, "tls GET") {
					t.Errorf("%d %q %v", a.status, a.body, a.err)
				}
				conf := pin(w.client("z.test", nil), v.id)
				if a := w.call("through", conf, "z.test", "/", wrap); a.alert() != "unrecognized name" {
					t.Errorf("unknown name: %q %v", a.alert(), a.err)
				}
			})
		}
	}
}

// TestServerNames: who names no host, or none that is there, learns that and nothing else.
func TestServerNames(t *testing.T) {
	w, api, _, _ := hostsWorld(t)
	versions := map[string]hello{"TLS1.2": {}, "TLS1.3": {versions: []uint16{tls.VersionTLS13}}}
	names := []struct{ id, name, sni, reason string }{
		{"A18", "none", "", "sni_missing"},
		{"A18", "unknown", "unknown.test", "sni_unknown"},
		{"A18", "IPv4", "127.0.0.1", "sni_invalid"},
		{"A18", "two labels under the wildcard", "x.y.w.test", "sni_unknown"},
		{"A18", "parent of the wildcard", "w.test", "sni_unknown"},
		{"A19", "literal wildcard", "*.w.test", "sni_invalid"},
		{"A19", "NUL", "b.test\x00", "sni_invalid"},
		{"A19", "NUL inside", "b\x00.test", "sni_invalid"},
		{"A19", "dots", "..b.test", "sni_invalid"},
		{"A19", "empty label", "b..test", "sni_invalid"},
		{"A19", "UTF-8", "b\u00e9.test", "sni_invalid"},
		{"A19", "invalid UTF-8", "b\xff.test", "sni_invalid"},
		{"A19", "path", "../../etc/b.test", "sni_invalid"},
		{"A19", "port", "b.test:443", "sni_invalid"},
		{"A19", "space", " b.test", "sni_invalid"},
		{"A19", "underscore", "b_.test", "sni_invalid"},
		{"A19", "comma", "a.test,b.test", "sni_invalid"},
		{"A19", "log line", "\n{\"level\":\"x\"}\x1b[31m", "sni_invalid"},
		{"A19", "IPv6", "[::1]", "sni_invalid"},
		{"A19", "long label", strings.Repeat("x", 64) + ".w.test", "sni_invalid"},
		{"A19", "20000 bytes", strings.Repeat("x.", 10000) + "w.test", "sni_invalid"},
	}
	for version, h := range versions {
		for _, n := range names {
			if h.sni = nil; n.sni != "" {
				h.sni = []byte(n.sni)
			}
			for _, listener := range []string{"public", "through"} {
				t.Run(n.id+"/"+version+"/"+listener+"/"+n.name, func(t *testing.T) {
					back, client := w.rawCall(t, listener, records(h.message(), 16<<10))
					if plainAlert(back) != alertUnrecognized {
						t.Errorf("% x, expected the alert unrecognized_name and nothing else", back[:min(len(back), 40)])
					}
					if r := w.find(t, "client="+client, "kind=handshake"); r["reason"] != n.reason {
						t.Errorf("reason %v, expected %s", r["reason"], n.reason)
					}
				})
			}
		}
		h.sni = []byte("b.test.")
		t.Run("A19/"+version+"/trailing dot", func(t *testing.T) { // refused by crypto/tls itself
			for _, listener := range []string{"public", "through"} {
				back, client := w.rawCall(t, listener, records(h.message(), 16<<10))
				if code := plainAlert(back); code != alertUnexpected && code != alertDecode && !(listener == "through" && len(back) == 0) {
					t.Errorf("%s: % x", listener, back[:min(len(back), 40)])
				}
				if r := w.find(t, "client="+client, "kind=handshake"); r["reason"] != "hello_malformed" {
					t.Errorf("%s: reason %v", listener, r["reason"])
				}
			}
		})
		h.sni = nil
		t.Run("A18/"+version+"/default_host", func(t *testing.T) {
			id := uint16(tls.VersionTLS12)
			if version == "TLS1.3" {
				id = tls.VersionTLS13
			}
			for _, sni := range []string{"", "unknown.test", "zz.w.test"} {
				conf := pin(w.client("a.test", nil), id)
				conf.ServerName, conf.InsecureSkipVerify = sni, true
				a := w.call("fallback", conf, "a.test", "/")
				if a.status != 200 || a.state.PeerCertificates[0].Subject.CommonName != "a.test" {
					t.Errorf("SNI %q: %d %v", sni, a.status, a.err)
				}
				before := api.seen()
				if a := w.call("fallback", conf, "b.test", "/"); a.status != 421 || api.seen() != before {
					t.Errorf("SNI %q asks b.test: %d %v", sni, a.status, a.err)
				}
				if a := w.call("fallback", conf, "else.test", "/"); a.status != 200 { // the same default host
					t.Errorf("SNI %q asks else.test: %d %v", sni, a.status, a.err)
				}
			}
			// The default is not for those who named a host that asks for more.
			before := api.seen()
			conf := pin(w.client("b.test", w.ca.Client("alice")), id)
			if a := w.call("fallback", conf, "else.test", "/"); a.status != 421 || api.seen() != before {
				t.Errorf("SNI b.test asks else.test: %d %v", a.status, a.err)
			}
			if a := w.call("fallback", pin(w.client("b.test", nil), id), "b.test", "/"); a.alert() == "" {
				t.Errorf("SNI b.test without a certificate: %d %v", a.status, a.err)
			}
			back, _ := w.rawCall(t, "fallback", records(h.message(), 16<<10))
			if bytes.Contains(back, []byte("secret-name-of-b")) {
				t.Error("the certificate of b.test was disclosed")
			}
		})
	}
}

// TestMostSpecificHostWins, whatever the order of the file, in 100 reloads.
func TestMostSpecificHostWins(t *testing.T) {
	wild := "      - {names: ['*.w.test'], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: A}, routes: [{upstream: api}]}\n"
	exact := "      - {names: [pub.w.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: off}, routes: [{upstream: api}]}\n"
	head := "trust_stores: {A: {ca_bundle: {file: clients.pem}}}\nupstreams: {api: {targets: ['http://BACKEND']}}\nlisteners:\n  public:\n    listen: 127.0.0.1:0\n    protocol: https\n    hosts:\n"
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.start(head+wild+exact, b.addr)
	for i := range 100 {
		conf := head + wild + exact
		if i%2 == 1 {
			conf = head + exact + wild
		}
		w.reload(conf, b.addr)
		if i%10 > 1 {
			continue
		}
		if a := w.call("public", w.client("pub.w.test", nil), "pub.w.test", "/"); a.status != 200 {
			t.Fatalf("A20/reload %d: pub.w.test: %d %v", i, a.status, a.err)
		}
		if a := w.call("public", w.client("priv.w.test", nil), "priv.w.test", "/"); a.alert() != "certificate required" {
			t.Fatalf("A20/reload %d: priv.w.test: %d %v", i, a.status, a.err)
		}
		if a := w.call("public", w.client("pub.w.test", nil), "priv.w.test", "/"); a.status != 421 {
			t.Fatalf("A20/reload %d: pub.w.test asks priv.w.test: %d %v", i, a.status, a.err)
		}
	}
}

// TestOtherDoors: a host with client auth is reached by none of the other ports.
func TestOtherDoors(t *testing.T) {
	w, api, open, _ := hostsWorld(t)
	for _, host := range []string{"b.test", "b.test:443", "B.TEST.", "c.test", "d.test", "x.w.test"} {
		t.Run("A25/"+host, func(t *testing.T) {
			before := api.seen()
			for door, want := range map[string]int{"plain": 421, "ops": 404} {
				c := must(dialFrom(w.addr(door)))(t)
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				if status, body, err := roundTrip(c, bufio.NewReader(c), "GET / HTTP/1.1\r\nHost: "+host+"\r\nX-Forwarded-Proto: https\r\n\r\n"); status != want {
					t.Errorf("%s: %d %q %v, expected %d", door, status, body, err, want)
				}
			}
			if api.seen() != before {
				t.Error("the backend was reached")
			}
		})
	}
	t.Run("A25/h2c", func(t *testing.T) {
		before := api.seen()
		back, client := w.rawCall(t, "plain", []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
		if !bytes.HasPrefix(back, []byte("HTTP/1.1 505 ")) && !bytes.HasPrefix(back, []byte("HTTP/1.1 400 ")) || api.seen() != before {
			t.Errorf("%q", back)
		}
		w.find(t, "client="+client, "kind=request")
	})
	t.Run("A25/plain HTTP on a TLS port", func(t *testing.T) {
		back, client := w.rawCall(t, "public", []byte("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"))
		if !bytes.HasPrefix(back, []byte("HTTP/1.1 400 ")) {
			t.Errorf("%q", back)
		}
		w.find(t, "client="+client, "reason=plain_http_on_tls")
	})
	// The same name with another mode on another port is another host: each port has its own routes.
	t.Run("A43/same name on two ports", func(t *testing.T) {
		before := api.seen()
		sessions := &cache{}
		for _, host := range []string{"b.test", "b.test:8443"} {
			a := w.call("other", w.client("b.test", nil, func(c *tls.Config) { c.ClientSessionCache = sessions }), host, "/")
			if a.status != 200 || !strings.HasPrefix(a.body, "open ") {
				t.Errorf("%s: %d %q %v", host, a.status, a.body, a.err)
			}
			a = w.call("public", w.client("b.test", nil, func(c *tls.Config) { c.ClientSessionCache = sessions; c.InsecureSkipVerify = true }), host, "/")
			if a.alert() != "certificate required" || a.state.DidResume {
				t.Errorf("%s on the port with require: %d %v", host, a.status, a.err)
			}
		}
		// The Host names the other port: the request is for that listener, under its policy.
		_, port, _ := net.SplitHostPort(w.addr("public"))
		a := w.call("other", w.client("b.test", nil), "b.test:"+port, "/")
		if a.status != 421 {
			t.Errorf("Host with the port of the listener that requires a certificate: %d %q %v", a.status, a.body, a.err)
		}
		if api.seen() != before || open.seen() != 2 || sessions.puts == 0 {
			t.Errorf("backends saw %d and %d, %d tickets", api.seen()-before, open.seen(), sessions.puts)
		}
	})
}

// TestNegotiation: the same versions, suites and protocols on every host.
func TestNegotiation(t *testing.T) {
	w, api, _, clients := hostsWorld(t)
	before := api.seen()
	for _, host := range []string{"a.test", "b.test", "c.test", "d.test", "x.w.test"} {
		sni := []byte(host)
		for name, c := range map[string]struct {
			h      hello
			alert  int
			reason string
		}{
			"TLS1.0":         {hello{legacy: tls.VersionTLS10, suites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}, alertVersion, "tls_version_unsupported"},
			"TLS1.1":         {hello{legacy: tls.VersionTLS11, suites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}, alertVersion, "tls_version_unsupported"},
			"TLS1.1 offered": {hello{versions: []uint16{tls.VersionTLS11, tls.VersionTLS10}}, alertVersion, "tls_version_unsupported"},
			"SSL3":           {hello{legacy: 0x0300}, alertVersion, "tls_version_unsupported"},
			"RC4":            {hello{suites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_RC4_128_SHA, tls.TLS_RSA_WITH_RC4_128_SHA}}, alertHandshake, "no_common_cipher"},
			"3DES":           {hello{suites: []uint16{tls.TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}}, alertHandshake, "no_common_cipher"},
			"CBC":            {hello{suites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256}}, alertHandshake, "no_common_cipher"},
			"no ECDHE":       {hello{suites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}}, alertHandshake, "no_common_cipher"},
			"SPDY only":      {hello{alpn: []string{"spdy/3"}}, alertNoProtocol, "no_common_protocol"},
			"acme 1.2":       {hello{alpn: []string{"acme-tls/1"}}, alertNoProtocol, "no_common_protocol"},
			"acme 1.3":       {hello{versions: []uint16{tls.VersionTLS13}, alpn: []string{"acme-tls/1", "spdy/3"}}, alertNoProtocol, "no_common_protocol"},
		} {
			id := "A41"
			if strings.HasPrefix(name, "acme") {
				id = "A35"
			}
			t.Run(id+"/"+host+"/"+name, func(t *testing.T) {
				c.h.sni = sni
				back, client := w.rawCall(t, "public", records(c.h.message(), 16<<10))
				if plainAlert(back) != c.alert {
					t.Errorf("% x, expected alert %d", back[:min(len(back), 40)], c.alert)
				}
				if r := w.find(t, "client="+client, "kind=handshake"); r["reason"] != c.reason {
					t.Errorf("reason %v, expected %s", r["reason"], c.reason)
				}
			})
		}
	}
	if api.seen() != before {
		t.Error("the backend was reached")
	}
	t.Run("A35/acme beside http/1.1 is HTTP with client auth", func(t *testing.T) {
		conf := w.client("b.test", nil)
		conf.NextProtos = []string{"acme-tls/1", "http/1.1"}
		if a := w.call("public", conf, "b.test", "/"); a.alert() != "certificate required" {
			t.Errorf("%d %v", a.status, a.err)
		}
		conf = w.client("b.test", clients["A"])
		conf.NextProtos = []string{"acme-tls/1", "http/1.1"}
		if a := w.call("public", conf, "b.test", "/"); a.status != 200 || a.state.NegotiatedProtocol != "http/1.1" {
			t.Errorf("%d %v", a.status, a.err)
		}
		conf.NextProtos = nil // no ALPN at all is HTTP/1.1
		if a := w.call("public", conf, "b.test", "/"); a.status != 200 {
			t.Errorf("%d %v", a.status, a.err)
		}
	})
	t.Run("A17/malformed hello", func(t *testing.T) {
		m := hello{sni: []byte("a.test")}.message()
		for name, out := range map[string][]byte{
			"cut body":    records(append([]byte{1, 0, 0, 40}, m[4:44]...), 16<<10),
			"another msg": records(append([]byte{16, 0, 0, 40}, m[4:44]...), 16<<10),
			"too long":    records([]byte{1, 0xff, 0xff, 0xff, 0, 0}, 16<<10),
		} {
			for _, listener := range []string{"public", "through"} {
				_, client := w.rawCall(t, listener, out)
				if r := w.find(t, "client="+client, "kind=handshake"); r["reason"] != "hello_malformed" && r["reason"] != "hello_too_large" {
					t.Errorf("%s on %s: reason %v: %v", name, listener, r["reason"], r["detail"])
				}
			}
		}
	})
}

// TestRenegotiation: TLS 1.2 renegotiation is refused.
func TestRenegotiation(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl here; it is required in CI by interop")
	}
	w, api, _, clients := hostsWorld(t)
	cert, key := clients["A"].WriteFiles(t.TempDir())
	cmd := exec.Command(openssl, "s_client", "-connect", w.addr("public"), "-servername", "b.test", "-tls1_2", "-cert", cert, "-key", key, "-CAfile", w.dir+"/servers.pem")
	in := must(cmd.StdinPipe())(t)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	w.find(t, "host=b.test", "kind=handshake", "reason=completed")
	time.Sleep(100 * time.Millisecond)
	_, _ = io.WriteString(in, "R\n")
	time.Sleep(300 * time.Millisecond)
	_, _ = io.WriteString(in, "GET / HTTP/1.1\r\nHost: b.test\r\n\r\n")
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("A30/the connection is still open")
	}
	if text := out.String(); !strings.Contains(text, "RENEGOTIATING") || !strings.Contains(text, "alert") || api.seen() != 0 {
		t.Errorf("A30/openssl says %q; the backend saw %d requests", text[max(0, len(text)-600):], api.seen())
	}
}
