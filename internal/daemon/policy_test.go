package daemon_test

import (
	"bufio"
	"crypto/x509"
	"fmt"
	"strings"
	"testing"

	"countersign/internal/testpki"
)

// routesConf is a host that asks everybody and requires a certificate on some of its routes. Its store is the union of
// two, of which /partner/* takes one.
const routesConf = `
ops: {listen: 127.0.0.1:0}
trust_stores:
  staff: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: clients.crl}], missing: if_present}}
  partners: {ca_bundle: {file: partners.pem}, accept: {eku: allow_absent}}
  all: {ca_bundle: {stores: [staff, partners]}, accept: {eku: allow_absent}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: request, trust_store: all, shadow: {mode: require}}
        identity_headers: [rfc9440, x_ssl_client]
        exempt:
          health: [{path: /healthz, body: fine}]
          preflight: {origins: ["https://app.test"], methods: [GET, PUT], headers: [X-Token]}
        routes:
          - match: {path: /secure/*}
            client_auth: {mode: require}
            upstream: api
          - match: {path: /partner/*}
            client_auth: {mode: require, trust_store: partners}
            upstream: api
          - match: {path: /staff/*}
            client_auth: {mode: require, trust_store: staff}
            allow: client.common_name == "alice" && request.method == "GET"
            upstream: api
          - match: {path: /not/*}
            allow: '!(client.common_name == "alice") || connection.listener == "public"'
            upstream: api
          - match: {path: /write/*}
            allow: request.method == "PUT"
            upstream: api
          - match: {path: /index/*}
            allow: client.uri_sans[7] == "x"
            upstream: api
          - match: {path: /shadow/*}
            shadow: {allow: client.present && client.common_name == "alice"}
            upstream: api
          - upstream: api
upstreams:
  api: {targets: [BACKEND]}
`

func TestRoutePolicy(t *testing.T) {
	b := echo(t, "api", nil)
	w := newWorld(t)
	partners := testpki.New(t)
	w.file("partners.pem", partners.PEM())
	w.start(routesConf, "http://"+b.addr)
	alice, bob := w.ca.Client("alice"), w.ca.Client("bob")
	peter := partners.Client("peter", testpki.NoEKU())
	revoked := w.ca.Client("revoked")
	w.file("clients.crl", w.ca.CRL(revoked, testpki.Number(7)))
	if err := w.main.Reload(); err != nil {
		t.Fatal(err)
	}
	try := func(t *testing.T, cert *testpki.Cert, path string, status int, why string) string {
		t.Helper()
		before := b.seen()
		got, body, err := w.get("public", w.client("a.test", cert), "a.test", path)
		if err != nil || got != status {
			t.Fatalf("%s: %d %v, want %d", path, got, err, status)
		}
		if status != 200 || why != "" {
			if n := b.seen() - before; n != 0 && status != 200 {
				t.Errorf("%s: forwarded", path)
			}
			if why != "" {
				w.record("kind=request", "path="+path, "reason="+why)
			}
		}
		return body
	}
	t.Run("A29/no certificate", func(t *testing.T) {
		for i, p := range []string{"/secure/x", "/partner/x", "/staff/x"} {
			try(t, nil, fmt.Sprintf("%s%d", p, i), 403, "route_cert_missing")
		}
		try(t, nil, "/open", 200, "")
	})
	t.Run("A26/60 spellings", func(t *testing.T) {
		for _, p := range []string{"//secure/x", "/./secure/x", "/a/../secure/x", "/%73ecure/x", "/secure%2fx", "/secure/../secure/x", "/secure;v=1/x",
			"/secure\\x", "/%2e/secure/x", "/secure%00/x", "/secure//x", "/secure/./x", "/%2fsecure/x", "/sec%75re/%78", "/secure/%2e%2e/secure/x", "/secure/x;y", "/secure."} {
			before := b.seen()
			status, _, err := w.get("public", w.client("a.test", nil), "a.test", p)
			if err != nil {
				t.Errorf("%s: %v", p, err)
			}
			if status == 200 && strings.Contains(strings.ReplaceAll(strings.ToLower(p), "%73", "s"), "secure/") && b.seen() != before {
				if u := strings.NewReplacer("%75", "u", "%78", "x").Replace(p); strings.HasPrefix(u, "/secure/") {
					t.Errorf("%s: 200 without a certificate", p)
				}
			}
		}
	})
	t.Run("A42/certificate of the other store", func(t *testing.T) {
		try(t, peter, "/staff/peter", 403, "route_cert_refused")
		try(t, alice, "/partner/alice", 403, "route_cert_refused")
		try(t, peter, "/partner/peter", 200, "")
		try(t, alice, "/staff/alice", 200, "")
		try(t, alice, "/secure/alice", 200, "")
	})
	t.Run("A42/both stores' routes over one connection", func(t *testing.T) {
		conn, err := w.dial("public", w.client("a.test", alice))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		for i, want := range []struct {
			path   string
			status int
		}{{"/staff/1", 200}, {"/partner/1", 403}, {"/staff/2", 200}, {"/open", 200}, {"/partner/2", 403}, {"/secure/1", 200}} {
			status, _, err := roundTrip(conn, r, "GET "+want.path+" HTTP/1.1\r\nHost: a.test\r\n\r\n")
			if err != nil || status != want.status {
				t.Fatalf("%d: %s: %d %v, want %d", i, want.path, status, err, want.status)
			}
			if status == 200 && !strings.Contains(b.last().Get("X-SSL-Client-S-DN")+b.last().Get("X-Ssl-Client-S-Dn"), "alice") {
				t.Errorf("%s: identity %v", want.path, b.last())
			}
		}
	})
	t.Run("C01/revoked in the route's store only", func(t *testing.T) {
		try(t, revoked, "/staff/revoked", 403, "route_cert_refused")
	})
	t.Run("allow", func(t *testing.T) {
		try(t, bob, "/staff/bob", 403, "policy_denied")
		try(t, nil, "/not/absent", 403, "policy_denied") // a read of an absent client denies, whatever becomes of it
		try(t, alice, "/not/alice", 200, "")
		try(t, alice, "/index/alice", 403, "policy_failed")
		if got := w.record("path=/staff/bob", "reason=policy_denied"); !strings.Contains(fmt.Sprint(got["expected"]), "client.common_name") || got["found"] != "CN=bob" {
			t.Errorf("evidence: %v", got)
		}
		for name, cert := range map[string]*testpki.Cert{"nobody": nil, "alice": alice} { // the rule does not ask who it is
			try(t, cert, "/write/"+name, 403, "policy_denied")
			if got := w.record("path=/write/"+name, "reason=policy_denied"); got["expected"] != `allow: request.method == "PUT"` || got["found"] != `GET "/write/`+name+`" from 127.0.0.1` {
				t.Errorf("evidence: %v", got)
			}
		}
		if got := w.record("path=/not/absent", "reason=policy_denied"); got["found"] != "no verified client" {
			t.Errorf("evidence: %v", got)
		}
	})
	t.Run("A37/exempt only as configured", func(t *testing.T) {
		if body := try(t, nil, "/healthz", 200, "answered_here"); body != "fine" {
			t.Errorf("health answered %q", body)
		}
		if n := b.seen(); b.last() != nil && n > 0 && b.last().Get("X-Never") != "" {
			t.Error("forwarded")
		}
		send := func(head string) int {
			t.Helper()
			conn, err := w.dial("public", w.client("a.test", nil))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			status, _, err := roundTrip(conn, bufio.NewReader(conn), head)
			if err != nil {
				t.Fatal(err)
			}
			return status
		}
		before := b.seen()
		ask := "Access-Control-Request-Method: PUT\r\n"
		for name, c := range map[string]struct {
			head string
			want int
		}{
			"preflight":             {"OPTIONS /secure/x HTTP/1.1\r\nHost: a.test\r\nOrigin: https://app.test\r\n" + ask, 204},
			"foreign origin":        {"OPTIONS /secure/x HTTP/1.1\r\nHost: a.test\r\nOrigin: https://evil.test\r\n" + ask, 403},
			"null origin":           {"OPTIONS /secure/x HTTP/1.1\r\nHost: a.test\r\nOrigin: null\r\n" + ask, 403},
			"two origins":           {"OPTIONS /secure/x HTTP/1.1\r\nHost: a.test\r\nOrigin: https://app.test\r\nOrigin: https://app.test\r\n" + ask, 403},
			"no origin":             {"OPTIONS /secure/x HTTP/1.1\r\nHost: a.test\r\n" + ask, 403},
			"not a preflight":       {"OPTIONS /secure/x HTTP/1.1\r\nHost: a.test\r\nOrigin: https://app.test\r\n", 403},
			"other method":          {"GET /secure/x HTTP/1.1\r\nHost: a.test\r\nOrigin: https://app.test\r\n" + ask, 403},
			"health by POST":        {"POST /healthz HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\nX-Never: 1\r\n", 200},
			"monitor's user agent":  {"GET /secure/x HTTP/1.1\r\nHost: a.test\r\nUser-Agent: kube-probe/1.30\r\n", 403},
			"claimed original path": {"GET /secure/x HTTP/1.1\r\nHost: a.test\r\nX-Original-URL: /healthz\r\nX-Forwarded-Uri: /healthz\r\n", 403},
		} {
			if got := send(c.head + "\r\n"); got != c.want {
				t.Errorf("%s: %d, want %d", name, got, c.want)
			}
		}
		if n := b.seen() - before; n != 1 { // the POST to /healthz, which is a request like any other
			t.Errorf("%d requests were forwarded", n)
		}
	})
	t.Run("shadow", func(t *testing.T) {
		try(t, bob, "/shadow/bob", 200, "")
		try(t, alice, "/shadow/alice", 200, "")
		if got := w.record("path=/shadow/bob"); got["shadow"] != "policy_denied" || got["reason"] != "completed" {
			t.Errorf("bob: %v", got)
		}
		if got := w.record("path=/shadow/alice"); got["shadow"] != nil {
			t.Errorf("alice: %v", got)
		}
		try(t, nil, "/open2", 200, "")
		w.record("kind=handshake", "shadow=client_cert_missing", "reason=completed")
		w.awaitMetric(`countersign_shadow_refusals_total{listener="public",reason="policy_denied"}`, "1")
	})
	t.Run("B02/who needs the lenient purpose is counted", func(t *testing.T) {
		w.record("kind=handshake", "lenient=eku_absent")
		w.awaitMetric(`countersign_lenient_acceptances_total{issuer="`+testRootName(partners.Cert)+`",lenient="eku_absent",trust_store="all"}`, "2")
	})
}

// The chain that a route's own store believes is the one its targets are told, also when the next request over the same
// connection is for a route of the host's store.
func TestRouteStoreNamesTheChain(t *testing.T) {
	b := echo(t, "api", nil)
	w := newWorld(t)
	w.file("root.pem", w.root.PEM())
	w.file("ca.pem", w.ca.PEM()[:len(testpki.PEM("CERTIFICATE", w.ca.DER()))])
	w.start(`
trust_stores:
  wide: {ca_bundle: {file: root.pem}}
  narrow: {ca_bundle: {file: ca.pem}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: request, trust_store: wide}
        identity_options: {chain: true}
        routes:
          - match: {path: /narrow/*}
            client_auth: {mode: require, trust_store: narrow}
            upstream: api
          - upstream: api
upstreams:
  api: {targets: [BACKEND]}
`, "http://"+b.addr)
	conn, err := w.dial("public", w.client("a.test", w.ca.Client("alice")))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	for i, path := range []string{"/x", "/narrow/x", "/narrow/y", "/x", "/narrow/x", "/x", "/x"} {
		if status, _, err := roundTrip(conn, r, "GET "+path+" HTTP/1.1\r\nHost: a.test\r\n\r\n"); err != nil || status != 200 {
			t.Fatalf("%d: %d %v", i, status, err)
		}
		h := b.last()
		if chain := h.Get("Client-Cert-Chain"); h.Get("Client-Cert") == "" || (chain == "") != strings.HasPrefix(path, "/narrow") {
			t.Errorf("%d: %s: Client-Cert-Chain %.20q", i, path, chain)
		}
	}
}

func testRootName(c *x509.Certificate) string { return c.Subject.String() }
