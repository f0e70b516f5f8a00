package daemon_test

import (
	"bufio"
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"countersign/internal/testpki"
)

// splitConn holds back what follows the Certificate message of the client's last flight.
type splitConn struct {
	net.Conn
	writes  int
	sent    chan struct{}
	release chan struct{}
}

func (c *splitConn) Write(b []byte) (int, error) {
	c.writes++
	if c.writes != 2 {
		return c.Conn.Write(b)
	}
	n := 0
	for n < len(b) {
		kind, size := b[n], int(b[n+3])<<8|int(b[n+4])
		n += 5 + size
		if kind == 23 {
			break
		}
	}
	if _, err := c.Conn.Write(b[:n]); err != nil {
		return 0, err
	}
	close(c.sent)
	<-c.release
	_, err := c.Conn.Write(b[n:])
	return len(b), err
}

// A client that stalls between its certificate and the proof of its key was judged before that, and what is learnt
// meanwhile must count.
func TestStalledHandshake(t *testing.T) {
	b := echo(t, "api", nil)
	w := newWorld(t)
	victim := w.ca.Client("victim")
	url := responder(t, w.ca, func(string) []testpki.OCSPOption { return []testpki.OCSPOption{testpki.OCSPRevoked(1)} })
	w.start(strings.ReplaceAll(`
ops: {listen: 127.0.0.1:0}
outbound: {allow: [127.0.0.0/8]}
trust_stores:
  OCSP: {ca_bundle: {file: clients.pem}, revocation: {ocsp: {mode: prefer, responder: "RESPONDER"}}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - {names: [c.w.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: OCSP}, routes: [{upstream: web}]}
upstreams:
  web: {targets: ["http://BACKEND"]}
`, "RESPONDER", url), b.addr)
	conf := w.client("c.w.test", victim)
	raw, err := dialFrom(w.addr("public"))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	s := &splitConn{Conn: raw, sent: make(chan struct{}), release: make(chan struct{})}
	slow := tls.Client(s, pin(conf, tls.VersionTLS13))
	done := make(chan error, 1)
	go func() { done <- slow.Handshake() }()
	<-s.sent
	time.Sleep(300 * time.Millisecond) // judged: not known to be revoked
	quick := w.client("c.w.test", victim)
	raw2, _ := dialFrom(w.addr("public"))
	defer raw2.Close()
	q := tls.Client(raw2, pin(quick, tls.VersionTLS13))
	if err := q.Handshake(); err != nil {
		t.Fatal(err)
	}
	w.awaitMetric(`countersign_ocsp_exchanges_total{outcome="answered"}`, "1")
	w.record("client="+raw2.LocalAddr().String(), "reason=client_no_longer_trusted")
	close(s.release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(slow)
	_ = raw.SetDeadline(time.Now().Add(5 * time.Second))
	if status, _, err := roundTrip(slow, r, "GET / HTTP/1.1\r\nHost: c.w.test\r\n\r\n"); status == 200 {
		t.Errorf("served: %d %v", status, err)
	}
	if n := b.seen(); n != 0 {
		t.Errorf("%d requests were forwarded", n)
	}
	w.record("client="+raw.LocalAddr().String(), "reason=client_no_longer_trusted")
}
