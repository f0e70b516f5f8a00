package daemon_test

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/internal/testpki"
)

// everything is a target for requests, WebSockets and bytes that keeps all it is sent.
type everything struct {
	addr string

	mu    sync.Mutex
	conns int
	seen  strings.Builder
}

func keepAll(t testing.TB) *everything {
	rec := &everything{}
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { l.Close() })
	rec.addr = l.Addr().String()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			rec.mu.Lock()
			rec.conns++
			rec.mu.Unlock()
			go rec.serve(c)
		}
	}()
	return rec
}

// serve answers each request with 200, or 101 and its own bytes from then on; anything else is sent back, line by line.
func (rec *everything) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	upgrade, request := false, false
	for {
		line, err := r.ReadString('\n')
		rec.mu.Lock()
		rec.seen.WriteString(line)
		rec.mu.Unlock()
		if err != nil {
			return
		}
		request = request || strings.HasSuffix(line, " HTTP/1.1\r\n")
		upgrade = upgrade || strings.HasPrefix(line, "Upgrade:")
		switch {
		case !request:
			fmt.Fprint(c, line)
		case line == "\r\n" && upgrade:
			fmt.Fprint(c, switching(wsAccept()))
			request = false
		case line == "\r\n":
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			request = false
		}
	}
}

// state is how many connections there were, and whether what was sent has marker in it.
func (rec *everything) state(marker string) (conns int, saw bool) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return rec.conns, strings.Contains(rec.seen.String(), marker)
}

// way is something that a client may want.
type way struct {
	name, listener string
	says           func(host, marker string) string
	good           func(answer string) bool
}

var ways = []way{
	{"HTTP1.1", "public", func(host, marker string) string {
		return "GET /" + marker + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	}, func(s string) bool { return strings.HasPrefix(s, "HTTP/1.1 200 ") }},
	{"WebSocket", "public", func(host, marker string) string {
		return wsRequest("/ws/"+marker, "a.test", host)
	}, func(s string) bool { return strings.HasPrefix(s, "HTTP/1.1 101 ") }},
	{"TCP", "bytes", func(_, marker string) string { return marker + "\n" }, func(s string) bool { return strings.HasSuffix(s, "\n") }},
}

// wants makes a connection and says what the way says. The answer's body is what came first.
func (w *world) wants(way way, conf *tls.Config, host, marker string) (a answer) {
	raw, err := dialFrom(w.addr(way.listener))
	if err != nil {
		return answer{err: err}
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
	a.client = raw.LocalAddr().String()
	c := tls.Client(raw, conf)
	if a.err = c.Handshake(); a.err != nil {
		return a
	}
	a.state = c.ConnectionState()
	if _, a.err = io.WriteString(c, way.says(host, marker)); a.err != nil {
		return a
	}
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	a.body, a.err = string(buf[:n]), err
	return a
}

// misfit is a client that must not get in. Its host is its name with .w.test.
type misfit struct {
	id, name, reason string
	cert             *testpki.Cert // nil for none
	// before and after are the client_auth of its host; before it may get in, to earn a session.
	before, after string
}

const matrixStores = `
outbound: {allow: [127.0.0.0/8]}
trust_stores:
  plain: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: clients.crl}]}}
  CRL: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: revoked.crl}]}}
  denied: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: clients.crl}], deny: [{certificate: DENIED}]}}
  serial: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: clients.crl}], deny: [{serial: "SERIAL", issuer: CN=Clients CA}]}}
  OCSP: {ca_bundle: {file: clients.pem}, revocation: {ocsp: {mode: require, responder: "RESPONDER"}}}
  both: {ca_bundle: {file: both.pem}}
  root: {ca_bundle: {file: root.pem}}
  deep: {ca_bundle: {file: root.pem}, accept: {max_depth: 10, max_presented: 10}}
  presented: {ca_bundle: {file: root.pem}, accept: {max_presented: 10}}
  wide: {ca_bundle: {file: root.pem}, accept: {max_depth: 10}}
  absent: {ca_bundle: {file: clients.pem}, accept: {eku: allow_absent}}
`

// matrixConfig has a host for each misfit, with the client_auth that auth gives it, on a listener for requests and one
// for bytes.
func matrixConfig(misfits []misfit, auth func(misfit) string) string {
	var b strings.Builder
	b.WriteString(matrixStores)
	b.WriteString("upstreams:\n  web: {targets: [\"http://BACKEND\"]}\n  bytes: {targets: [\"tcp://BACKEND\"]}\nlisteners:\n")
	for listener, protocol := range map[string]string{"public": "https", "bytes": "tls"} {
		fmt.Fprintf(&b, "  %s:\n    listen: 127.0.0.1:0\n    protocol: %s\n    hosts:\n", listener, protocol)
		for _, m := range misfits {
			to, how := "upstream: bytes", strings.Replace(auth(m), "mode: request_unverified, trust_store: plain", "mode: off", 1)
			if protocol == "https" {
				to, how = "routes: [{match: {path: /ws/*}, upgrade: [websocket], upstream: web}, {upstream: web}]", auth(m)
			}
			fmt.Fprintf(&b, "      - {names: [%s.w.test], certificate: {cert: server.pem, key: server.key}, client_auth: {%s}, %s}\n", m.name, how, to)
		}
	}
	return b.String()
}

// responder answers OCSP requests about certificates that ca has issued. What status gives for a serial number is the
// answer; nil is good.
func responder(t testing.TB, ca *testpki.Cert, status func(serial string) []testpki.OCSPOption) string {
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(http.MaxBytesReader(rw, r.Body, 64<<10))
		var request struct {
			TBS struct {
				List []struct {
					ID struct {
						Hash      pkix.AlgorithmIdentifier
						Name, Key []byte
						Serial    *big.Int
					}
				}
				Extensions []pkix.Extension `asn1:"explicit,tag:2,optional"`
			}
		}
		if _, err := asn1.Unmarshal(body, &request); err != nil || len(request.TBS.List) != 1 {
			t.Errorf("OCSP request: %v, %d questions", err, len(request.TBS.List))
			return
		}
		options := status(request.TBS.List[0].ID.Serial.String())
		if e := request.TBS.Extensions; len(e) == 1 {
			options = append(options, testpki.OCSPExt(e...)) // the nonce
		}
		rw.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = rw.Write(ca.OCSP(&testpki.Cert{Cert: &x509.Certificate{SerialNumber: request.TBS.List[0].ID.Serial}}, options...))
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// TestMatrix is the issue's: versions, ways and wrong clients, each refused with the reason, and nothing of it behind us;
// also where the client comes with a session that it earned while it was let in.
func TestMatrix(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rec := keepAll(t)
	foreign := testpki.New(t)
	deep := w.root
	for i := range 4 {
		deep = deep.Intermediate(fmt.Sprint("Deep CA ", i))
	}
	revoked, denied, serial, answered := w.ca.Client("revoked"), w.ca.Client("denied"), w.ca.Client("serial"), w.ca.Client("answered")
	many := w.ca.Client("many")
	many.Chain = append(append([][]byte{}, many.Chain...), w.servers.DER(), foreign.DER(), deep.DER())
	big32 := pkix.Extension{Id: []int{1, 3, 6, 1, 4, 1, 99999, 2}, Value: must(asn1.Marshal(make([]byte, 33<<10)))(t)}
	brief := w.ca.Client("brief", testpki.NotAfter(soon().Add(3*time.Second))) // all are let in before
	const unverified, plain = "mode: request_unverified, trust_store: plain", "mode: require, trust_store: plain"
	misfits := []misfit{
		{"A34", "missing", "client_cert_missing", nil, "mode: request, trust_store: plain", plain},
		{"A07", "foreign", "client_cert_untrusted", foreign.Client("foreign"), "mode: require, trust_store: both", plain},
		{"A33", "expired", "client_cert_expired", brief, plain, plain},
		{"B14", "not-yet-valid", "client_cert_not_yet_valid", w.ca.Client("early", testpki.NotYetValid()), unverified, plain},
		{"C01/A06", "revoked-by-crl", "client_cert_revoked", revoked, plain, "mode: require, trust_store: CRL"},
		{"C01/A06", "revoked-by-ocsp", "client_cert_revoked", answered, plain, "mode: require, trust_store: OCSP"},
		{"C01/A06", "denied", "client_cert_denied", denied, plain, "mode: require, trust_store: denied"},
		{"C01/A06", "denied-by-serial", "client_cert_denied", serial, plain, "mode: require, trust_store: serial"},
		{"B01", "wrong-eku", "client_cert_eku", w.ca.Client("eku", testpki.EKU(x509.ExtKeyUsageServerAuth)), unverified, plain},
		{"B02", "no-eku", "client_cert_eku_missing", w.ca.Client("noeku", testpki.NoEKU()), "mode: require, trust_store: absent", plain},
		{"B03", "ca-as-leaf", "client_cert_is_ca", w.ca.Client("ca", testpki.CA(), testpki.KeyUsage(x509.KeyUsageDigitalSignature)), unverified, plain},
		{"B16", "weak-key", "client_cert_weak_key", w.ca.Client("weak", testpki.RSA(1024)), unverified, plain},
		{"B20", "deep-chain", "client_cert_depth", deep.Client("deep"), "mode: require, trust_store: deep", "mode: require, trust_store: presented"},
		{"B20", "many-certificates", "client_cert_too_many", many, "mode: require, trust_store: presented", "mode: require, trust_store: wide"},
		{"B22", "oversized-chain", "client_cert_too_large", w.ca.Client("large", testpki.ExtraExt(big32)), unverified, plain},
	}
	good := misfit{"", "good", "", w.ca.Client("alice"), plain, plain}
	asked := misfit{"", "asked", "", w.ca.Client("asked"), plain, "mode: require, trust_store: OCSP"}
	hosts := append([]misfit{good, asked}, misfits...)
	w.file("root.pem", w.root.PEM())
	w.file("both.pem", append(append([]byte{}, w.ca.PEM()...), foreign.PEM()...))
	w.file("revoked.crl", w.ca.CRL(revoked))
	url := responder(t, w.ca, func(serial string) []testpki.OCSPOption {
		if serial == answered.Cert.SerialNumber.String() {
			return []testpki.OCSPOption{testpki.OCSPRevoked(1)}
		}
		return nil
	})
	sum := sha256.Sum256(denied.DER())
	fill := strings.NewReplacer("RESPONDER", url, "DENIED", hex.EncodeToString(sum[:]), "SERIAL", serial.Cert.SerialNumber.Text(16)).Replace
	w.start(fill(matrixConfig(hosts, func(m misfit) string { return m.before })), rec.addr)

	type place struct{ name, way, version string }
	sessions := map[place]*cache{}
	client := func(m misfit, version uint16) *tls.Config {
		return pin(w.client(m.name+".w.test", m.cert, func(c *tls.Config) { c.NextProtos = nil }), version)
	}
	for _, m := range hosts {
		for _, v := range tlsVersions {
			for _, way := range ways {
				at, asked, marker := place{m.name, way.name, v.name}, 0, "earning"
				sessions[at] = &cache{}
				a := w.wants(way, offers(client(m, v.id), sessions[at], &asked), m.name+".w.test", marker)
				if a.err != nil || !way.good(a.body) {
					t.Fatalf("%v does not get in before: %q %v", at, a.body, a.err)
				}
				// What is too large for a ticket has none: there it is offered nothing.
				if sessions[at].last == nil && m.name != "oversized-chain" {
					t.Fatalf("%v: no ticket", at)
				}
			}
		}
	}
	w.reload(fill(matrixConfig(hosts, func(m misfit) string { return m.after })), rec.addr)
	time.Sleep(time.Until(brief.Cert.NotAfter.Add(10 * time.Millisecond)))

	cell := 0
	for _, m := range misfits {
		for _, v := range tlsVersions {
			for _, way := range ways {
				for _, resumed := range []bool{false, true} {
					name := m.id + "/" + m.name + "/" + v.name + "/" + way.name
					if resumed {
						name += "/resumed"
					}
					cell++
					t.Run(name, func(t *testing.T) {
						asked, marker := 0, fmt.Sprintf("refused-%d-", cell)
						conf := offers(client(m, v.id), frozen{}, &asked)
						if resumed {
							conf = offers(client(m, v.id), frozen{sessions[place{m.name, way.name, v.name}].last}, &asked)
						}
						conns, _ := rec.state(marker)
						a := w.wants(way, conf, m.name+".w.test", marker)
						if a.err == nil || a.body != "" {
							t.Errorf("got %q %v, expected to be refused", a.body, a.err)
						}
						r := w.ended(t, a)
						if r["reason"] != m.reason || r["host"] != m.name+".w.test" || r["client_auth"] != "require" {
							t.Errorf("reason %v, expected %s; record: %v", r["reason"], m.reason, r)
						}
						if now, saw := rec.state(marker); now != conns || saw {
							t.Errorf("the backend has %d connections more, and has seen the request: %v", now-conns, saw)
						}
					})
				}
			}
		}
	}
	for _, m := range []misfit{good, asked} {
		for _, v := range tlsVersions {
			for _, way := range ways {
				t.Run("A10/"+m.name+"/"+v.name+"/"+way.name, func(t *testing.T) {
					asked, marker := 0, "let-in-"+m.name+v.name+way.name
					a := w.wants(way, offers(client(m, v.id), frozen{sessions[place{m.name, way.name, v.name}].last}, &asked), m.name+".w.test", marker)
					if _, saw := rec.state(marker); a.err != nil || !way.good(a.body) || !saw {
						t.Errorf("%q %v, seen: %v", a.body, a.err, saw)
					}
					// The policy of the first host is the same as before, that of the second is not.
					same := m.name == "good"
					if r := w.ended(t, a); a.state.DidResume != same || (asked == 0) != same || (r["resumed"] == true) != same {
						t.Errorf("resumed %v, asked %d times; record: %v", a.state.DidResume, asked, r)
					}
				})
			}
		}
	}
}

// dialects are all that identity headers are written in.
const dialects = "rfc9440, alb, xfcc, x_ssl_client, traefik, gcp"

// TestResumedIdentity: the headers of a resumed connection are those of the first, byte by byte, with the whole chain.
func TestResumedIdentity(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.file("clients.pem", w.root.PEM()) // so that the intermediate is the client's to send
	w.start(strings.Replace(strings.Replace(strings.Replace(basic, "    revocation: {crls: [{file: clients.crl}]}\n", "", 1),
		"[rfc9440, alb]", "["+dialects+"]\n        identity_options: {chain: true, xfcc_cert: true}", 1), "mode: off", "mode: request_unverified, trust_store: clients", 1), b.addr)
	inner := w.ca.Intermediate("Inner CA")
	alice := inner.Client("alice", testpki.DNS("alice.test"), testpki.URI("spiffe://test/alice"), testpki.Email("alice@test"))
	stranger := testpki.New(t).Client("stranger")
	for _, v := range tlsVersions {
		for _, c := range []struct {
			host  string
			cert  *testpki.Cert
			least int // headers
		}{{"a.test", alice, 12}, {"off.test", stranger, 0}} {
			t.Run("A10/"+v.name+"/"+c.host, func(t *testing.T) {
				asked, sessions := 0, &cache{}
				conf := offers(pin(w.client(c.host, c.cert), v.id), sessions, &asked)
				first := w.call("public", conf, c.host, "/")
				if first.status != 200 || first.state.DidResume || asked != 1 {
					t.Fatalf("%d %v, asked %d times", first.status, first.err, asked)
				}
				want := identityOf(b.last())
				if len(want) < c.least {
					t.Errorf("only %d identity headers: %v", len(want), want)
				}
				for i := range 3 { // each time with the ticket of the last
					again := w.call("public", conf, c.host, "/")
					if again.status != 200 || !again.state.DidResume || asked != 1 {
						t.Fatalf("%d %v, resumed %v, asked %d times", again.status, again.err, again.state.DidResume, asked)
					}
					if got := identityOf(b.last()); !maps.Equal(got, want) {
						t.Errorf("resumption %d:\n%v\nexpected\n%v", i, got, want)
					}
					r, old := w.ended(t, again), w.ended(t, first)
					if r["resumed"] != true || fmt.Sprint(r["client_certificate"]) != fmt.Sprint(old["client_certificate"]) || fmt.Sprint(r["verdict"]) != fmt.Sprint(old["verdict"]) {
						t.Errorf("record: %v, expected %v", r, old)
					}
				}
			})
		}
	}
}

// TestResumedIsVerified: what can change while policy and trust store stay as they are is asked on every resumption. The
// session is really resumed, and then refused: the client is not asked for its certificate again.
func TestResumedIsVerified(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := echo(t, "api", nil)
	end := soon().Add(3 * time.Second) // all are let in before
	w.file("clients.pem", w.root.PEM())
	brief := w.root.Intermediate("Brief CA", testpki.NotAfter(end))
	w.file("brief.crl", w.ca.CRL(testpki.NextUpdate(end)))
	said := make(chan struct{})
	url := responder(t, w.ca, func(string) []testpki.OCSPOption {
		<-said // nobody knows yet
		return []testpki.OCSPOption{testpki.OCSPRevoked(1)}
	})
	w.start(strings.ReplaceAll(`
ops: {listen: 127.0.0.1:0}
outbound: {allow: [127.0.0.0/8]}
trust_stores:
  plain: {ca_bundle: {file: clients.pem}}
  lists: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: brief.crl}]}}
  OCSP: {ca_bundle: {file: clients.pem}, revocation: {ocsp: {mode: prefer, responder: "RESPONDER"}}}
upstreams: {api: {targets: ["http://BACKEND"]}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - {names: [a.w.test], certificate: &c {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: plain}, routes: &r [{upstream: api}]}
      - {names: [b.w.test], certificate: *c, client_auth: {mode: require, trust_store: lists}, routes: *r}
      - {names: [c.w.test], certificate: *c, client_auth: {mode: require, trust_store: OCSP}, routes: *r}
`, "RESPONDER", url), b.addr)
	rows := []struct {
		id, name, host, reason string
		cert                   *testpki.Cert
		full                   bool // crypto/tls itself does not resume it
	}{
		{"A33", "leaf expires", "a.w.test", "client_cert_expired", w.ca.Client("soon", testpki.NotAfter(end)), true},
		{"A07/A33", "intermediate expires", "a.w.test", "client_cert_issuer_expired", brief.Client("under"), false},
		{"A06/A33", "list goes stale", "b.w.test", "crl_stale", w.ca.Client("listed"), false},
		{"A06/C01", "responder says revoked", "c.w.test", "client_cert_revoked", w.ca.Client("revoked"), false},
	}
	alice := w.ca.Client("alice")
	sessions := map[string]*cache{}
	for i, row := range rows {
		for _, v := range tlsVersions {
			for _, cert := range []*testpki.Cert{row.cert, alice} {
				if cert == alice && i > 0 {
					continue
				}
				at := v.name + row.name + fmt.Sprint(cert == alice)
				sessions[at] = &cache{}
				asked := 0
				for _, want := range []bool{false, true} {
					a := w.call("public", offers(pin(w.client(row.host, cert), v.id), sessions[at], &asked), row.host, "/")
					if a.status != 200 || a.state.DidResume != want || asked != 1 {
						t.Fatalf("%s: %d %v, resumed %v, asked %d times", at, a.status, a.err, a.state.DidResume, asked)
					}
				}
			}
		}
	}
	close(said)
	time.Sleep(time.Until(end.Add(1100 * time.Millisecond))) // dates have whole seconds, and allow to be equal
	for _, row := range rows {
		for _, v := range tlsVersions {
			t.Run(row.id+"/"+v.name+"/"+row.name, func(t *testing.T) {
				before := b.seen()
				for range 2 {
					asked := 0
					a := w.call("public", offers(pin(w.client(row.host, row.cert), v.id), frozen{sessions[v.name+row.name+"false"].last}, &asked), row.host, "/")
					if a.status != 0 || a.alert() != "bad certificate" {
						t.Errorf("%d %v, expected an alert", a.status, a.err)
					}
					if (asked != 0) != row.full {
						t.Errorf("asked for the certificate %d times", asked)
					}
					if r := w.ended(t, a); r["reason"] != row.reason {
						t.Errorf("reason %v, expected %s; record: %v", r["reason"], row.reason, r)
					}
				}
				if b.seen() != before {
					t.Error("the backend was reached")
				}
			})
		}
	}
	for _, v := range tlsVersions {
		t.Run("A10/"+v.name+"/alice", func(t *testing.T) {
			asked := 0
			a := w.call("public", offers(pin(w.client("a.w.test", alice), v.id), frozen{sessions[v.name+rows[0].name+"true"].last}, &asked), "a.w.test", "/")
			if a.status != 200 || !a.state.DidResume || asked != 0 {
				t.Errorf("%d %v, resumed %v, asked %d times", a.status, a.err, a.state.DidResume, asked)
			}
		})
	}
}
