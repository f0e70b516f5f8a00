package daemon_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"countersign/internal/daemon"
	"countersign/internal/frontend"
	"countersign/internal/memnet"
	"countersign/internal/record"
	"countersign/internal/snapshot"
	"countersign/internal/testpki"
	"countersign/internal/trust"
)

const travelConfig = `
trust_stores:
  plain: {ca_bundle: {file: clients.pem}}
  lists: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: clients.crl}]}}
  grace: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: clients.crl}], stale: {policy: grace, grace: 2h}}}
listeners:
  public:
    listen: 10.0.0.1:443
    protocol: https
    hosts:
      - {names: [a.test], certificate: &c {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: plain}, routes: &r [{upstream: web}]}
      - {names: [b.test], certificate: *c, client_auth: {mode: require, trust_store: lists}, routes: *r}
      - {names: [c.test], certificate: *c, client_auth: {mode: require, trust_store: grace}, routes: *r}
  secure:
    listen: 10.0.0.1:444
    protocol: tls
    limits: {tunnel_idle: 24h}
    hosts:
      - {names: [a.test], certificate: *c, client_auth: {mode: require, trust_store: plain}, upstream: bytes}
      - {names: [b.test], certificate: *c, client_auth: {mode: require, trust_store: lists}, upstream: bytes}
      - {names: [c.test], certificate: *c, client_auth: {mode: require, trust_store: grace}, upstream: bytes}
upstreams:
  web: {targets: ["http://10.0.0.2:80"]}
  bytes: {targets: ["tcp://10.0.0.2:81"]}
`

// travel is a world in a bubble where hours pass at once: the frontend and all behind it, in memory.
type travel struct {
	*world
	net memnet.Network
}

func newTravel(t *testing.T) *travel {
	tr := &travel{world: newWorld(t)}
	inner := tr.ca.Intermediate("Inner CA", testpki.NotAfter(time.Now().Add(6*time.Hour)))
	tr.ca = inner
	tr.server = tr.servers.Server("a.test", testpki.DNS("b.test", "c.test"), testpki.Lifetime(90*24*time.Hour))
	tr.file("server.pem", tr.server.PEM())
	tr.file("server.key", tr.server.KeyPEM())
	tr.file("clients.pem", append([]byte{}, tr.root.PEM()...))
	tr.file("clients.crl", inner.CRL(testpki.NextUpdate(time.Now().Add(3*time.Hour))))
	tr.file("countersign.yaml", []byte(travelConfig))
	loaded, err := daemon.Load(filepath.Join(tr.dir, "countersign.yaml"), snapshot.Env{Now: time.Now(), Answers: trust.NewAnswers(64), Chains: trust.NewChains(64)})
	if err != nil {
		t.Fatal(err)
	}
	for address, answer := range map[string]string{"10.0.0.2:80": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "10.0.0.2:81": ""} {
		l := must(tr.net.Listen("tcp", address))(t)
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					for r := bufio.NewReader(c); ; {
						line, err := r.ReadString('\n')
						if err != nil {
							return
						}
						if answer == "" {
							fmt.Fprint(c, line)
						} else if line == "\r\n" {
							fmt.Fprint(c, answer)
						}
					}
				}()
			}
		}()
	}
	book := record.NewBook(tr.log)
	f := frontend.New(frontend.Config{Book: book, Log: slog.New(slog.NewTextHandler(tr.ops, nil)), Dial: tr.net.Dial,
		Listen: func(address string) (net.Listener, error) { return tr.net.Listen("tcp", address) }})
	if err := f.Apply(loaded.Snapshot); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		f.Drain(ctx)
		book.Close()
	})
	return tr
}

// call is world.call in memory.
func (tr *travel) call(t testing.TB, conf *tls.Config) (a answer) {
	t.Helper()
	raw := must(tr.net.Dial(context.Background(), "tcp", "10.0.0.1:443"))(t)
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
	a.client = raw.LocalAddr().String()
	c := tls.Client(raw, conf)
	if a.err = c.Handshake(); a.err != nil {
		return a
	}
	a.state = c.ConnectionState()
	a.status, a.body, a.err = roundTrip(c, bufio.NewReader(c), "GET / HTTP/1.1\r\nHost: "+conf.ServerName+"\r\n\r\n")
	return a
}

// TestTimeTravel: what hours do to sessions, certificates and lists, in a bubble where they pass at once.
func TestTimeTravel(t *testing.T) {
	if *eventLoop {
		t.Skip("the time of a bubble stands still while a goroutine waits for the system, as an event loop does")
	}
	t.Parallel()
	for _, v := range tlsVersions {
		t.Run("A05/A45/"+v.name+"/a session ends an hour after the proof", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tr := newTravel(t)
				start := time.Now()
				sessions, asked := &cache{}, 0
				conf := offers(pin(tr.client("a.test", tr.ca.Client("alice")), v.id), sessions, &asked)
				for _, step := range []struct {
					after time.Duration
					proof int // handshakes so far in which the client proved its key
				}{{0, 1}, {10 * time.Minute, 1}, {40 * time.Minute, 1}, {59 * time.Minute, 1}, {61 * time.Minute, 2},
					{119 * time.Minute, 2}, {122 * time.Minute, 3}, {200 * time.Minute, 4}, {201 * time.Minute, 4}} {
					time.Sleep(time.Until(start.Add(step.after)))
					before := asked
					a := tr.call(t, conf)
					if a.status != 200 || asked != step.proof || a.state.DidResume != (asked == before) {
						t.Errorf("after %v: %d %v, resumed %v, asked %d times, expected %d", step.after, a.status, a.err, a.state.DidResume, asked, step.proof)
					}
				}
			})
		})
		for _, c := range []struct {
			id, name, host, reason string
			lasts                  time.Duration
			cert                   func(*travel) *testpki.Cert
		}{
			{"A33", "leaf expires", "a.test", "client_cert_expired", time.Hour, func(tr *travel) *testpki.Cert {
				return tr.ca.Client("brief", testpki.NotAfter(time.Now().Add(time.Hour)))
			}},
			{"A33", "intermediate expires", "a.test", "client_cert_issuer_expired", 6 * time.Hour, func(tr *travel) *testpki.Cert { return tr.ca.Client("alice") }},
			{"A33/C04", "list goes stale", "b.test", "crl_stale", 3 * time.Hour, func(tr *travel) *testpki.Cert { return tr.ca.Client("alice") }},
			{"A33/C04", "grace of a stale list ends", "c.test", "crl_stale", 5 * time.Hour, func(tr *travel) *testpki.Cert { return tr.ca.Client("alice") }},
		} {
			t.Run(c.id+"/"+v.name+"/"+c.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					tr := newTravel(t)
					end := time.Now().Add(c.lasts)
					cert := c.cert(tr)
					raw := must(tr.net.Dial(context.Background(), "tcp", "10.0.0.1:444"))(t)
					defer raw.Close()
					tunnel := tls.Client(raw, pin(tr.client(c.host, cert), v.id))
					r := bufio.NewReader(tunnel)
					echo := func() error {
						if _, err := io.WriteString(tunnel, "hello\n"); err != nil {
							return err
						}
						_, err := r.ReadString('\n')
						return err
					}
					if err := echo(); err != nil {
						t.Fatal(err)
					}
					sessions, asked := &cache{}, 0
					conf := offers(pin(tr.client(c.host, cert), v.id), sessions, &asked)
					time.Sleep(time.Until(end.Add(-30 * time.Second)))
					for range 2 {
						if a := tr.call(t, conf); a.status != 200 {
							t.Errorf("before the end: %d %v", a.status, a.err)
						}
					}
					if err := echo(); err != nil {
						t.Errorf("before the end: %v", err)
					}
					_, err := r.ReadByte()
					if took := time.Since(end); err == nil || took < 0 || took > 5*time.Second {
						t.Errorf("the tunnel ended %v after trust did: %v", took, err)
					}
					rec := tr.find(t, "client="+raw.LocalAddr().String(), "kind=tunnel")
					if rec["reason"] != "client_no_longer_trusted" || !strings.HasPrefix(fmt.Sprint(rec["found"]), c.reason+": ") {
						t.Errorf("record: %v", rec)
					}
					time.Sleep(time.Until(end.Add(2 * time.Second)))
					for _, offer := range []tls.ClientSessionCache{frozen{}, frozen{sessions.last}} {
						a := tr.call(t, offers(conf, offer, &asked))
						if r := tr.ended(t, a); a.status != 0 || r["reason"] != c.reason {
							t.Errorf("after the end: %d %v, record %v", a.status, a.err, r)
						}
					}
				})
			})
		}
	}
}
