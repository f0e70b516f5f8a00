package daemon_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"

	"countersign/internal/testpki"
)

// A refusal by reset mutes what crypto/tls writes while the client is not yet accepted. It must not swallow the session
// ticket of one who is.
func TestResetWithTickets(t *testing.T) {
	b := echo(t, "api", nil)
	w := newWorld(t)
	w.start(`
trust_stores: {clients: {ca_bundle: {file: clients.pem}}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - {names: [a.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients, on_failure: reset}, routes: [{upstream: api}]}
      - {names: [b.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: request, trust_store: clients, on_failure: reset}, routes: [{upstream: api}]}
upstreams: {api: {targets: ["http://BACKEND"]}}
`, b.addr)
	alice, mallory := w.ca.Client("alice"), testpki.New(t).Client("mallory")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, host := range []string{"a.test", "b.test"} {
			t.Run(fmt.Sprintf("%s/%s", tls.VersionName(version), host), func(t *testing.T) {
				conf := w.client(host, alice, func(c *tls.Config) { c.MaxVersion, c.ClientSessionCache = version, tls.NewLRUClientSessionCache(4) })
				for i := range 3 {
					c, err := w.dial("public", conf)
					if err != nil {
						t.Fatal(err)
					}
					status, _, err := roundTrip(c, bufio.NewReader(c), "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
					if resumed := c.ConnectionState().DidResume; status != 200 || resumed != (i > 0) {
						t.Errorf("connection %d: %d %v, resumed %t", i, status, err, resumed)
					}
					c.Close()
				}
				before := b.seen()
				c, err := w.dial("public", w.client(host, mallory, func(c *tls.Config) { c.MaxVersion = version }))
				if err == nil {
					_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
					if err == nil {
						_, err = c.Read(make([]byte, 1))
					}
				}
				if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
					t.Errorf("a stranger got %v, expected a reset", err)
				}
				if b.seen() != before {
					t.Error("forwarded")
				}
			})
		}
	}
}
