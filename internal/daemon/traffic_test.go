package daemon_test

import (
	"testing"

	"countersign/internal/testpki"
)

const basic = `
ops: {listen: 127.0.0.1:0}
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
        client_auth: {mode: require, trust_store: clients}
        identity_headers: [rfc9440, alb]
        routes: [{upstream: api}]
      - names: [off.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: off}
        routes: [{upstream: api}]
upstreams:
  api: {targets: ["http://BACKEND"]}
`

func TestWalk(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.start(basic, b.addr)
	if _, _, err := w.get("public", w.client("a.test", nil), "a.test", "/"); err == nil {
		t.Error("no certificate: accepted")
	}
	w.record("kind=handshake", "reason=client_cert_missing")
	alice := w.ca.Client("alice")
	status, body, err := w.get("public", w.client("a.test", alice), "a.test", "/x?y=1")
	t.Log(status, body, err)
	t.Log(b.last())
	t.Log(w.log.String())
	t.Log(w.ops.String())
	_ = testpki.New
}
