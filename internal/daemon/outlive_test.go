package daemon_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	xocsp "golang.org/x/crypto/ocsp"

	"countersign/internal/testpki"
)

func TestExpiresDuringHandshake(t *testing.T) {
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for at := 1; at <= 2; at++ {
			t.Run(fmt.Sprintf("%s/%d", tls.VersionName(v), at), func(t *testing.T) {
				t.Parallel()
				w, _ := outliveWorld(t)
				end := time.Now().Add(3 * time.Second).Truncate(time.Second)
				alice := w.ca.Client("alice", testpki.NotAfter(end))
				raw := must(dialFrom(w.addr("secure")))(t)
				defer raw.Close()
				raw.SetDeadline(time.Now().Add(60 * time.Second))
				s := &stall{Conn: raw, at: at, during: func() { time.Sleep(time.Until(end.Add(2 * time.Second))) }}
				conf := w.client("a.test", alice)
				conf.MinVersion, conf.MaxVersion = v, v
				conf.SessionTicketsDisabled = true
				c := tls.Client(s, conf)
				if err := c.Handshake(); err != nil {
					return // refused: that is well too
				}
				r := bufio.NewReader(c)
				stop := time.Now().Add(8 * time.Second)
				for time.Now().Before(stop) {
					if _, err := io.WriteString(c, "hello\n"); err != nil {
						break
					}
					if _, err := r.ReadString('\n'); err != nil {
						break
					}
					time.Sleep(500 * time.Millisecond)
				}
				if time.Since(end) > 7*time.Second {
					t.Error("connection of an expired client is still open")
				}
			})
		}
	}
}

func TestEnforceRoute(t *testing.T) {
	for name, to := range map[string]string{
		"allow":   "routes: [{allow: 'client.common_name == \"bob\"', upstream: web}]",
		"require": "routes: [{client_auth: {mode: require}, upstream: web}]",
		"store":   "routes: [{client_auth: {mode: require, trust_store: other}, upstream: web}]",
		"gone":    "routes: [{match: {path: /x}, upstream: web}]",
	} {
		for _, kind := range []string{"download", "upload"} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				w, conf := outliveWorld(t)
				alice := w.ca.Client("alice")
				if name == "require" {
					alice = nil
				}
				h := w.hold(t, kind, w.client("c.test", alice))
				h.follow()
				next := strings.Replace(conf, "client_auth: {mode: request, trust_store: clients}, routes: [{upstream: web}]", "client_auth: {mode: request, trust_store: clients}, "+to, 1)
				if next == conf {
					t.Fatal("same")
				}
				time.Sleep(300 * time.Millisecond)
				w.reload(next, "")
				select {
				case <-h.ended:

				case <-time.After(10 * time.Second):
					t.Error("still open 10 s after the change of policy")
				}
			})
		}
	}
}

func TestOneFailingQuestion(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	o := newOracle(t, w.ca)
	mallory := o.client("mallory")
	inner := o.pages["/"]
	o.put("/", func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if req, err := xocsp.ParseRequest(body); err == nil && req.SerialNumber.Cmp(mallory.Cert.SerialNumber) == 0 {
			rw.WriteHeader(500)
			return
		}
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		inner(rw, r)
	})
	w.start(strings.NewReplacer("HOST", o.host, "BACKEND", b.addr).Replace(byOCSP), "")
	bob := o.client("bob")
	_ = (w.fares(t, "public", "a.test", w.client("a.test", bob)))
	stranger := testpki.New(t).Client("x")
	pair := stranger.TLS()
	stolen := w.client("a.test", nil)
	stolen.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: mallory.TLS().Certificate, PrivateKey: pair.PrivateKey}, nil
	}
	for i := 0; i < 3; i++ {
		_ = (w.fares(t, "public", "a.test", stolen))
		time.Sleep(1200 * time.Millisecond)
	}
	for i := range 3 {
		c := o.client(fmt.Sprint("carol", i))
		got := w.fares(t, "public", "a.test", w.client("a.test", c))
		if got != "200" {
			t.Errorf("refused: %s", got)
		}
	}
}

func TestEnforceOCSPTurnedOn(t *testing.T) {
	w := newWorld(t)
	o := newOracle(t, w.ca)
	w.file("clients.crl", w.ca.CRL(testpki.Number(1)))
	conf := strings.ReplaceAll(turnedOnConf, "BACKEND", streams(t))
	w.start(conf, "")
	alice := o.client("alice")
	var hs []*held
	for _, kind := range []string{"WebSocket", "download", "idle"} {
		h := w.hold(t, kind, w.client("c.test", alice))
		h.follow()
		hs = append(hs, h)
	}
	next := strings.Replace(conf, "[{file: clients.crl}]}} #OCSP", "[{file: clients.crl}], ocsp: {mode: require, hosts: ['"+o.host+"']}}}", 1)
	w.reload(next, "")
	time.Sleep(6 * time.Second)
	for _, h := range hs {
		select {
		case <-h.ended:
			t.Errorf("%s of a client whose responder says good was ended", h.kind)
		default:
		}
	}
	_ = (w.fares(t, "public", "c.test", w.client("c.test", alice)))
}

const turnedOnConf = `
ops: {listen: 127.0.0.1:0}
outbound: {allow: [127.0.0.0/8]}
trust_stores:
  clients: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: clients.crl}]}}
  oc: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: clients.crl}]}} #OCSP
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - {names: [a.test], certificate: &c {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, routes: [{match: {path: /ws}, upgrade: [websocket], upstream: web}, {upstream: web}]}
      - {names: [b.test], certificate: *c, client_auth: {mode: require, trust_store: clients}, routes: [{match: {path: /ws}, client_auth: {mode: require, trust_store: oc}, upgrade: [websocket], upstream: web}, {upstream: web}]}
      - {names: [c.test], certificate: *c, client_auth: {mode: require, trust_store: oc}, routes: [{match: {path: /ws}, upgrade: [websocket], upstream: web}, {upstream: web}]}
upstreams:
  web: {targets: ["http://BACKEND"]}
`

type stall struct {
	net.Conn
	at     int // hold back from this record on in the second flight
	during func()
	done   bool
	writes int
}

func outliveWorld(t *testing.T) (*world, string) {
	w := newWorld(t)
	conf := strings.NewReplacer("BYTES", shout(t, nil), "BACKEND", streams(t)).Replace(outliveConf)
	w.start(conf, "")
	return w, conf
}

func (s *stall) Write(b []byte) (int, error) {
	s.writes++
	if s.writes == 1 || s.done { // hello
		return s.Conn.Write(b)
	}
	// second flight: split records
	rest := b
	i := 0
	for len(rest) >= 5 {
		n := 5 + int(rest[3])<<8 + int(rest[4])
		if n > len(rest) {
			break
		}
		if i == s.at && !s.done {
			s.done = true
			s.during()
		}
		if _, err := s.Conn.Write(rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
		i++
	}
	if len(rest) > 0 {
		s.Conn.Write(rest)
	}
	return len(b), nil
}

const outliveConf = `
ops: {listen: 127.0.0.1:0}
outbound: {allow: [127.0.0.0/8]}
trust_stores:
  clients: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: clients.crl}]}}
  other: {ca_bundle: {file: servers.pem}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - {names: [a.test], certificate: &c {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, routes: &r [{match: {path: /ws}, upgrade: [websocket], upstream: web}, {upstream: web}]}
      - {names: [b.test], certificate: *c, client_auth: {mode: require, trust_store: clients}, routes: *r}
      - {names: [d.test], certificate: *c, client_auth: {mode: require, trust_store: clients, on_failure: page}, routes: *r}
      - {names: [c.test], certificate: *c, client_auth: {mode: request, trust_store: clients}, routes: [{upstream: web}]}
  secure:
    listen: 127.0.0.1:0
    protocol: tls
    hosts:
      - {names: [a.test], certificate: *c, client_auth: {mode: require, trust_store: clients}, upstream: bytes}
upstreams:
  web: {targets: ["http://BACKEND"]}
  bytes: {targets: ["tcp://BYTES"]}
`
