package daemon_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"countersign/internal/testpki"
)

// TestEnforceAcross: a connection that was accepted before trust in its client ended, and makes its handshake after,
// gets nothing through: what was in force at accept is not what counts.
func TestEnforceAcross(t *testing.T) {
	t.Parallel()
	for _, v := range tlsVersions {
		for _, way := range ways {
			t.Run("C15/"+v.name+"/"+way.name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				rec := keepAll(t)
				conf := strings.NewReplacer("BYTES", rec.addr, "TLS", "127.0.0.1:1", "BACKEND", rec.addr, ", {file: brief.crl}, {file: other.crl}", "").Replace(enforceConfig)
				w.start(conf, "")
				listener := map[string]string{"public": "public", "bytes": "secure"}[way.listener]
				victim := w.ca.Client("victim")
				raw := must(dialFrom(w.addr(listener)))(t)
				defer raw.Close()
				_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
				w.awaitMetric(`countersign_connections{listener="`+listener+`"}`, "1")
				w.file("clients.crl", w.ca.CRL(victim, testpki.Number(2)))
				w.reload(conf, "")
				c := tls.Client(raw, pin(w.client("a.test", victim), v.id))
				got := ""
				if err := c.Handshake(); err == nil {
					_, _ = io.WriteString(c, strings.Replace(way.says("a.test", "across"), "/ws/across", "/ws", 1))
					b, _ := io.ReadAll(c)
					got = string(b)
				}
				r := w.find(t, "client="+raw.LocalAddr().String(), "fault=client")
				if conns, _ := rec.state(""); conns != 0 || strings.HasPrefix(got, "HTTP/1.1 1") || strings.HasPrefix(got, "HTTP/1.1 2") {
					t.Errorf("the backend has %d connections, the client got %q", conns, got)
				}
				if all := fmt.Sprint(r["reason"], " ", r["found"]); !strings.Contains(all, "client_cert_revoked") {
					t.Errorf("record: %v", r)
				}
			})
		}
	}
}
