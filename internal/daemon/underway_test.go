package daemon_test

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"countersign/internal/testpki"
)

const underwayConf = `
trust_stores:
  all: {ca_bundle: {file: clients.pem}}
  staff: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: clients.crl}], missing: if_present}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: request, trust_store: all}
        trusted_proxies: [{match: {sans: ["dns:edge.test"]}, identity: rfc9440, trust_store: staff}]
        routes: [{match: {path: /ws}, upgrade: [websocket], upstream: web}, {upstream: web}]
      - names: [b.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: request, trust_store: all}
        routes:
          - match: {path: /open/*}
            upstream: web
          - match: {path: /ws}
            client_auth: {mode: require, trust_store: staff}
            allow: client.common_name != "nobody"
            upgrade: [websocket]
            upstream: web
          - match: {path: /down}
            client_auth: {mode: require, trust_store: staff}
            upstream: web
          - upstream: web
upstreams:
  web: {targets: ["http://BACKEND"]}
`

// What ends while a request is under way, although the connection's own client is as good as before: the client that a
// trusted proxy asserted, one that only the route's own trust store knows to be revoked, and one that an expression does
// not allow any more.
func TestEnforceUnderway(t *testing.T) {
	t.Parallel()
	stood(time.Now())
	w := newWorld(t)
	target := streams(t)
	w.start(underwayConf, target)
	alice, bob := w.ca.Client("alice"), w.ca.Client("bob")
	edge := w.ca.Client("edge", testpki.DNS("edge.test"))

	open := func(host string, cert *testpki.Cert, request string) *held {
		t.Helper()
		raw := must(dialFrom(w.addr("public")))(t)
		t.Cleanup(func() { raw.Close() })
		_ = raw.SetDeadline(time.Now().Add(30 * time.Second))
		c := tls.Client(raw, w.client(host, cert))
		h := &held{kind: "WebSocket", conn: c, r: bufio.NewReader(c), host: host, ended: make(chan struct{})}
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(request, "/down") {
			h.kind = "download"
			h.expect(t, "HTTP/1.1 200")
			return h
		}
		resp, err := http.ReadResponse(h.r, nil)
		if err != nil || resp.StatusCode != 101 {
			t.Fatalf("%v %v", resp, err)
		}
		h.echoes(t)
		return h
	}
	asserting := func(cert *testpki.Cert) string {
		b := func(der []byte) string { return ":" + base64.StdEncoding.EncodeToString(der) + ":" }
		return wsRequest("/ws", "\r\n\r\n", fmt.Sprintf("\r\nClient-Cert: %s\r\nClient-Cert-Chain: %s\r\n\r\n", b(cert.Chain[0]), b(cert.Chain[1])))
	}
	own := wsRequest("/ws", "a.test", "b.test")
	down := "GET /down HTTP/1.1\r\nHost: b.test\r\n\r\n"
	end := func(name, found string, conns map[string]*held, others map[string]*held, change func()) {
		t.Run(name, func(t *testing.T) {
			for _, h := range conns {
				h.follow()
			}
			begin := time.Now()
			change()
			for what, h := range conns {
				select {
				case <-h.ended:
				case <-time.After(within() + 10*time.Second):
					t.Fatalf("%s goes on", what)
				}
				if took := h.at.Sub(begin); took > allowed(begin) {
					t.Errorf("%s took %v to end", what, took)
				}
				got := w.record("kind=request", "client="+h.conn.LocalAddr().String(), "reason=client_no_longer_trusted")
				if !strings.Contains(fmt.Sprint(got["found"]), found) {
					t.Errorf("%s: found %v", what, got["found"])
				}
			}
			for what, h := range others {
				h.serves(t)
				if t.Failed() {
					t.Fatalf("%s was touched", what)
				}
			}
		})
	}
	others := map[string]*held{"bob behind the proxy": open("a.test", edge, asserting(bob)), "bob": open("b.test", bob, own)}
	end("A32/revoked", "client_cert_revoked", map[string]*held{
		"alice behind the proxy": open("a.test", edge, asserting(alice)),
		"alice's WebSocket":      open("b.test", alice, own),
		"alice's download":       open("b.test", alice, down),
	}, others, func() {
		w.file("clients.crl", w.ca.CRL(alice, testpki.Number(9)))
		if err := w.main.Reload(); err != nil {
			t.Fatal(err)
		}
	})
	delete(others, "bob")
	carol := open("b.test", w.ca.Client("carol"), own)
	others["carol"] = carol
	end("A34/not allowed any more", "policy_denied", map[string]*held{"bob": open("b.test", bob, own)}, others, func() {
		w.reload(strings.Replace(underwayConf, `!= "nobody"`, `!= "bob"`, 1), target)
	})
	delete(others, "carol")
	end("A34/the route is gone", "no longer configured", map[string]*held{"carol": carol}, others, func() {
		w.reload(strings.Replace(underwayConf, "          - match: {path: /ws}\n            client_auth", "          - match: {path: /wss}\n            client_auth", 1), target)
	})
	delete(others, "bob behind the proxy")
	last := open("a.test", edge, asserting(bob))
	end("A34/the proxy is not listed any more", "no longer listed", map[string]*held{"bob behind the proxy": last}, others, func() {
		w.reload(strings.Replace(underwayConf, "dns:edge.test", "dns:other.test", 1), target)
	})
}

// A request for another host than the one the connection was made for, of the same policy then.
func TestEnforceOtherHost(t *testing.T) {
	t.Parallel()
	const c = "{names: [c.test], certificate: *c, client_auth: {mode: require, trust_store: clients}, routes"
	for change, replace := range map[string]string{
		"other policy": strings.Replace(c, "mode: require", "mode: request", 1),
		"gone":         strings.Replace(c, "c.test", "z.test", 1),
	} {
		for kind, request := range map[string]string{"WebSocket": wsRequest("/ws", "a.test", "c.test"), "download": "GET /down HTTP/1.1\r\nHost: c.test\r\n\r\n"} {
			t.Run("A34/"+kind+"/"+change, func(t *testing.T) {
				t.Parallel()
				w, conf, _, _ := enforceWorld(t)
				conn := must(w.dial("public", w.client("a.test", w.ca.Client("victim"))))(t)
				_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
				if _, err := io.WriteString(conn, request); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(conn, make([]byte, len("HTTP/1.1 200"))); err != nil {
					t.Fatal(err)
				}
				next := strings.Replace(conf, c, replace, 1)
				if next == conf {
					t.Fatal("nothing changed")
				}
				w.reload(next, "")
				start := time.Now()
				_, _ = io.Copy(io.Discard, conn)
				if took := time.Since(start); took > allowed(start) {
					t.Errorf("went on for %v", took)
				}
				w.record("kind=request", "client="+conn.LocalAddr().String(), "reason=client_no_longer_trusted")
			})
		}
	}
}
