package daemon_test

import (
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"countersign/internal/testpki"
)

// TestFailureResetTickets: on_failure: reset keeps alerts back, and nothing else: not the tickets of those who get in.
// Whoever is refused on a resumed connection gets a reset too.
func TestFailureResetTickets(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := echo(t, "api", nil)
	end := soon().Add(3 * time.Second) // all are let in before
	w.file("clients.pem", w.root.PEM())
	alice, under := w.ca.Client("alice"), w.root.Intermediate("Brief CA", testpki.NotAfter(end)).Client("under")
	w.start(strings.NewReplacer("    revocation: {crls: [{file: clients.crl}]}\n", "", "trust_store: clients}", "trust_store: clients, on_failure: reset}").Replace(reloadHost), b.addr)
	sessions := map[string]*cache{}
	for _, v := range tlsVersions {
		for name, cert := range map[string]*testpki.Cert{"alice": alice, "under": under} {
			t.Run("A10/"+v.name+"/"+name, func(t *testing.T) {
				asked := 0
				sessions[v.name+name] = &cache{}
				for _, resumed := range []bool{false, true, true} {
					a := w.call("public", offers(pin(w.client("b.test", cert), v.id), sessions[v.name+name], &asked), "b.test", "/")
					if a.status != 200 || a.state.DidResume != resumed || asked != 1 {
						t.Fatalf("%d %v, resumed %v, asked %d times", a.status, a.err, a.state.DidResume, asked)
					}
				}
			})
		}
	}
	time.Sleep(time.Until(end.Add(1100 * time.Millisecond)))
	for _, v := range tlsVersions {
		t.Run("A38/"+v.name+"/issuer expired", func(t *testing.T) {
			var wire *tap
			before, asked := b.seen(), 0
			conf := offers(pin(w.client("b.test", under), v.id), frozen{sessions[v.name+"under"].last}, &asked)
			a := w.call("public", conf, "b.test", "/", func(c net.Conn) net.Conn { wire = &tap{Conn: c}; return wire })
			if !errors.Is(a.err, syscall.ECONNRESET) || wire.alerts() != 0 || asked != 0 || b.seen() != before {
				t.Errorf("%v and %d alerts, asked %d times, expected a reset", a.err, wire.alerts(), asked)
			}
			if r := w.ended(t, a); r["reason"] != "client_cert_issuer_expired" {
				t.Errorf("record: %v", r)
			}
		})
		t.Run("B07/"+v.name+"/key not proven", func(t *testing.T) {
			var wire *tap
			conf := pin(w.show("b.test", w.ca.Client("other").Key, alice.Chain...), v.id)
			conf.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			a := w.call("public", conf, "b.test", "/", func(c net.Conn) net.Conn { wire = &tap{Conn: c}; return wire })
			if !errors.Is(a.err, syscall.ECONNRESET) || wire.alerts() != 0 {
				t.Errorf("%v and %d alerts, expected a reset", a.err, wire.alerts())
			}
			if r := w.ended(t, a); r["reason"] != "possession_not_proven" {
				t.Errorf("record: %v", r)
			}
		})
	}
}
