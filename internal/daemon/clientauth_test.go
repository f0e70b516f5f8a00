package daemon_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"countersign/internal/testpki"
)

// answer is how a call ended, as the client saw it.
type answer struct {
	client string // our address, which the record has too
	state  tls.ConnectionState
	status int
	body   string
	err    error
}

// alert is the text of the alert the client received, empty for none.
func (a answer) alert() string {
	var op *net.OpError
	if errors.As(a.err, &op) && op.Op == "remote error" {
		return strings.TrimPrefix(op.Err.Error(), "tls: ")
	}
	return ""
}

// call makes one request over a new TLS connection. wrap may change how bytes leave.
func (w *world) call(listener string, conf *tls.Config, host, path string, wrap ...func(net.Conn) net.Conn) (a answer) {
	raw, err := dialFrom(w.addr(listener))
	if err != nil {
		return answer{err: err}
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
	a.client = raw.LocalAddr().String()
	for _, f := range wrap {
		raw = f(raw)
	}
	c := tls.Client(raw, conf)
	if a.err = c.Handshake(); a.err != nil {
		return a
	}
	a.state = c.ConnectionState()
	a.status, a.body, a.err = roundTrip(c, bufio.NewReader(c), "GET "+path+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
	return a
}

// find waits for a record like world.record, but belongs to the subtest.
func (w *world) find(t testing.TB, want ...string) map[string]any {
	t.Helper()
	needle := want[0]
	if _, v, ok := strings.Cut(needle, "="); ok {
		needle = v
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		for _, line := range strings.Split(w.log.String(), "\n") {
			if !strings.Contains(line, needle) {
				continue
			}
			var m map[string]any
			if json.Unmarshal([]byte(line), &m) != nil {
				continue
			}
			ok := true
			for _, kv := range want {
				k, v, _ := strings.Cut(kv, "=")
				ok = ok && fmt.Sprint(m[k]) == v
			}
			if ok {
				return m
			}
		}
		if time.Now().After(deadline) {
			var seen []string
			for _, line := range strings.Split(w.log.String(), "\n") {
				if strings.Contains(line, needle) {
					seen = append(seen, line)
				}
			}
			t.Fatalf("no record with %v among those with the first:\n%s", want, strings.Join(seen, "\n"))
		}
		time.Sleep(3 * time.Millisecond)
	}
}

// ended is the record of the handshake of a call.
func (w *world) ended(t testing.TB, a answer) map[string]any {
	t.Helper()
	return w.find(t, "client="+a.client, "kind=handshake")
}

// show is a client configuration that presents exactly these certificates, with this key.
func (w *world) show(sni string, key any, chain ...[]byte) *tls.Config {
	c := w.client(sni, nil)
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: chain, PrivateKey: key}, nil
	}
	return c
}

var tlsVersions = []struct {
	name string
	id   uint16
}{{"TLS1.2", tls.VersionTLS12}, {"TLS1.3", tls.VersionTLS13}}

func pin(c *tls.Config, version uint16) *tls.Config {
	c.MinVersion, c.MaxVersion = version, version
	return c
}

const authHosts = `
trust_stores:
  clients:
    ca_bundle: {file: clients.pem}
    revocation: {crls: [{file: clients.crl}, {file: root.crl}, {file: revoked-ca.crl}]}
  deep: {ca_bundle: {file: root.pem}, accept: {max_presented: 10}}
  none: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: root.crl}]}}
  stale: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: stale.crl}]}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - {names: [off.test], certificate: &c {cert: server.pem, key: server.key}, client_auth: {mode: off}, routes: &r [{upstream: api}]}
      - {names: [d.test], certificate: *c, client_auth: {mode: request, trust_store: clients}, routes: *r}
      - {names: [a.test], certificate: *c, client_auth: {mode: require, trust_store: clients}, routes: *r}
      - {names: [b.test], certificate: *c, client_auth: {mode: require, trust_store: clients, on_failure: reset}, routes: *r}
      - {names: [c.test], certificate: *c, client_auth: {mode: request, trust_store: clients, on_failure: reset}, routes: *r}
      - {names: [deep.w.test], certificate: *c, client_auth: {mode: require, trust_store: deep}, routes: *r}
      - {names: [none.w.test], certificate: *c, client_auth: {mode: require, trust_store: none}, routes: *r}
      - {names: [stale.w.test], certificate: *c, client_auth: {mode: require, trust_store: stale}, routes: *r}
upstreams:
  api: {targets: ["http://BACKEND"]}
`

// wrong is a certificate that must not get in, and what is said about it.
type wrong struct {
	id     string // threat
	name   string
	host   string // instead of a.test and d.test
	key    any
	chain  [][]byte
	reason string
	alert  [2]string // TLS 1.2, 1.3; empty: bad certificate
	fault  *x509.Certificate
	depth  int
}

// authWorld starts authHosts and makes everything that is refused there.
func authWorld(t *testing.T) (*world, *backend, []wrong) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	bob := w.ca.Client("bob")
	revoked := w.root.Intermediate("Revoked CA")
	late := w.root.Intermediate("Late CA") // of which nobody has a newer list
	w.file("root.pem", w.root.PEM())
	w.file("clients.crl", w.ca.CRL(bob))
	w.file("root.crl", w.root.CRL(revoked))
	w.file("revoked-ca.crl", revoked.CRL())
	w.file("stale.crl", late.CRL(testpki.ThisUpdate(time.Now().Add(-48*time.Hour)), testpki.NextUpdate(time.Now().Add(-time.Hour))))
	w.start(authHosts, b.addr)

	foreign := testpki.New(t).Intermediate("Clients CA")
	deep := w.root
	for i := range 4 {
		deep = deep.Intermediate(fmt.Sprint("Deep CA ", i))
	}
	deepLeaf := deep.Client("deep")
	alice, lazy := w.ca.Client("alice"), late.Client("lazy")
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	big32 := pkix.Extension{Id: []int{1, 3, 6, 1, 4, 1, 99999, 2}, Value: must(asn1.Marshal(make([]byte, 33<<10)))(t)}
	expiredCA := w.root.Intermediate("Expired CA", testpki.Expired())
	v := func(id, name, reason string, c *testpki.Cert) wrong {
		return wrong{id: id, name: name, key: key, chain: c.Chain, reason: reason, fault: c.Cert}
	}
	list := []wrong{
		v("B14", "expired", "client_cert_expired", w.ca.Client("carol", testpki.Expired())),
		v("B14", "not yet valid", "client_cert_not_yet_valid", w.ca.Client("early", testpki.NotYetValid())),
		v("B14", "foreign CA of the same name", "client_cert_untrusted", foreign.Client("mallory")),
		v("B14", "unknown critical extension", "client_cert_invalid", w.ca.Client("crit", testpki.UnknownCritical())),
		v("C01", "revoked", "client_cert_revoked", bob),
		v("B01", "serverAuth only", "client_cert_eku", w.ca.Server("server-only.test")),
		v("B02", "no EKU", "client_cert_eku_missing", w.ca.Client("noeku", testpki.NoEKU())),
		v("B02", "anyExtendedKeyUsage", "client_cert_eku", w.ca.Client("any", testpki.EKU(x509.ExtKeyUsageAny))),
		v("B03", "CA as leaf", "client_cert_is_ca", w.ca.Client("ca-leaf", testpki.CA(), testpki.KeyUsage(x509.KeyUsageDigitalSignature))),
		v("B03", "anchor itself", "client_cert_is_anchor", w.ca),
		v("B16", "RSA 1024", "client_cert_weak_key", w.ca.Client("rsa1024", testpki.RSA(1024))),
		{id: "B21", name: "RSA 8200", key: key, chain: w.ca.Client("rsa8200", testpki.RSA(8200)).Chain, reason: "client_cert_weak_key"},
		v("B16", "P-224", "client_cert_weak_key", w.ca.Client("p224", testpki.P224())),
		v("B16", "SHA-1", "client_cert_weak_signature", w.ca.Client("sha1", testpki.SHA1())),
		v("B04", "wrong keyUsage", "client_cert_key_usage", w.ca.Client("ku", testpki.KeyUsage(x509.KeyUsageKeyEncipherment))),
		v("B28", "version 1", "client_cert_version", w.ca.Client("v1", testpki.V1())),
		// crypto/x509 itself reads no negative serial numbers.
		v("B15", "serial 0", "client_cert_serial", w.ca.Client("serial0", testpki.Serial(big.NewInt(0)))),
		v("B15", "serial of 126 octets", "client_cert_serial", w.ca.Client("serial126", testpki.Serial(new(big.Int).Lsh(big.NewInt(1), 1000)))),
		v("B10", "NUL in a name", "client_cert_san_invalid", w.ca.Client("nul", testpki.DNS("victim.test\x00.evil"))),
		{id: "C09", name: "issuer revoked", key: key, chain: revoked.Client("under").Chain, reason: "client_issuer_revoked", fault: revoked.Cert, depth: 1},
		{id: "B14", name: "issuer expired", key: key, chain: expiredCA.Client("late").Chain, reason: "client_cert_issuer_expired", fault: expiredCA.Cert, depth: 1},
		{id: "B20", name: "5 presented", key: key, chain: append(append([][]byte{}, alice.Chain...), foreign.DER(), w.servers.DER(), revoked.DER()), reason: "client_cert_too_many"},
		{id: "B20", name: "depth 5", host: "deep.w.test", key: key, chain: deepLeaf.Chain, reason: "client_cert_depth", fault: w.root.Cert, depth: 4},
		{id: "B22", name: "33 KiB certificate", key: key, chain: w.ca.Client("big", testpki.ExtraExt(big32)).Chain, reason: "client_cert_too_large"},
		{id: "B28", name: "garbage DER", key: key, chain: [][]byte{[]byte("\x30\x03garbage")}, reason: "client_cert_unparsable"},
		{id: "B28", name: "garbage behind the leaf", key: key, chain: [][]byte{alice.DER(), []byte("garbage")}, reason: "client_cert_unparsable"},
		{id: "B28", name: "bytes behind the leaf", key: key, chain: [][]byte{append(bytes.Clone(alice.DER()), 0), w.ca.DER()}, reason: "client_cert_unparsable"},
		{id: "B07", name: "somebody else's certificate", key: key, chain: alice.Chain, reason: "possession_not_proven", alert: [2]string{"error decrypting message", "error decrypting message"}},
		{id: "C10", name: "no list of the issuer", host: "none.w.test", key: key, chain: alice.Chain, reason: "crl_missing", fault: alice.Cert},
		{id: "C04", name: "stale list", host: "stale.w.test", key: key, chain: lazy.Chain, reason: "crl_stale", fault: lazy.Cert},
	}
	for i := range list {
		switch list[i].reason {
		case "client_cert_unparsable":
			list[i].alert = [2]string{"error decoding message", "error decoding message"}
		case "client_cert_untrusted": // the CA that was sent is nearer to the fault than the leaf
			list[i].fault, list[i].depth = foreign.Cert, 1
		}
	}
	return w, b, list
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestClientAuth is the matrix of versions, modes and certificates: who gets in, and what is said to and about who does not.
func TestClientAuth(t *testing.T) {
	w, b, list := authWorld(t)
	alice := w.ca.Client("alice")
	for vi, v := range tlsVersions {
		for _, mode := range []struct{ name, host string }{{"off", "off.test"}, {"request", "d.test"}, {"require", "a.test"}} {
			prefix := v.name + "/" + mode.name + "/"
			t.Run("A38/"+prefix+"alice", func(t *testing.T) {
				a := w.call("public", pin(w.client(mode.host, alice), v.id), mode.host, "/")
				if a.status != 200 {
					t.Fatalf("alice: %d %v", a.status, a.err)
				}
				r := w.ended(t, a)
				cert, _ := r["client_certificate"].(map[string]any)
				if r["reason"] != "completed" || (mode.name == "off") != (cert == nil) {
					t.Errorf("record: %v", r)
				}
				if sum := sha256.Sum256(alice.DER()); cert != nil && cert["sha256"] != hex.EncodeToString(sum[:]) {
					t.Errorf("certificate in the record: %v", cert)
				}
				if got := b.last().Get("Client-Cert") != ""; got != (mode.name != "off") {
					t.Errorf("identity sent to the backend: %v", got)
				}
			})
			t.Run("A38/"+prefix+"no certificate", func(t *testing.T) {
				before := b.seen()
				a := w.call("public", pin(w.client(mode.host, nil), v.id), mode.host, "/")
				if mode.name != "require" {
					if a.status != 200 || b.last().Get("Client-Cert") != "" {
						t.Errorf("%d %v %v", a.status, a.err, b.last())
					}
					return
				}
				if want := [2]string{"handshake failure", "certificate required"}[vi]; a.alert() != want {
					t.Errorf("alert %q (%v), expected %q", a.alert(), a.err, want)
				}
				if r := w.ended(t, a); r["reason"] != "client_cert_missing" || r["stage"] != "handshake" || r["fault"] != "client" ||
					r["expected"] != "a client certificate" || r["found"] != "none" {
					t.Errorf("record: %v", r)
				}
				if b.seen() != before {
					t.Error("the backend was reached")
				}
			})
			for _, c := range list {
				host := mode.host
				if c.host != "" {
					if mode.name != "require" {
						continue
					}
					host = c.host
				}
				t.Run(c.id+"/"+prefix+c.name, func(t *testing.T) {
					before := b.seen()
					a := w.call("public", pin(w.show(host, c.key, c.chain...), v.id), host, "/")
					if mode.name == "off" { // nobody is asked, so nothing is sent
						if a.status != 200 || b.last().Get("Client-Cert") != "" {
							t.Errorf("%d %v", a.status, a.err)
						}
						return
					}
					want := c.alert[vi]
					if want == "" {
						want = "bad certificate"
					}
					if a.alert() != want {
						t.Errorf("alert %q (%v), expected %q", a.alert(), a.err, want)
					}
					r := w.ended(t, a)
					if r["reason"] != c.reason || r["stage"] != "handshake" || r["host"] != host || r["client_auth"] == "" {
						t.Errorf("reason %v, expected %s; record: %v", r["reason"], c.reason, r)
					}
					fault, _ := r["certificate_at_fault"].(map[string]any)
					if (fault != nil) != (c.fault != nil) {
						t.Fatalf("certificate_at_fault: %v; record: %v", fault, r)
					}
					if c.fault != nil {
						sum := sha256.Sum256(c.fault.Raw)
						if c.reason == "client_cert_depth" { // any certificate will do, as long as one is told
							sum = [32]byte(must(hex.DecodeString(fmt.Sprint(fault["sha256"])))(t))
						}
						if fault["sha256"] != hex.EncodeToString(sum[:]) || fault["depth"] != float64(c.depth) ||
							fault["not_after"] != c.fault.NotAfter.UTC().Format(time.RFC3339) && c.reason != "client_cert_depth" ||
							fault["subject"] == nil || fault["issuer"] == nil || fault["serial"] == "" || fault["not_before"] == nil {
							t.Errorf("certificate_at_fault: %v", fault)
						}
						if r["expected"] == nil || r["found"] == nil || r["possession"] != "not proven" {
							t.Errorf("no evidence: %v", r)
						}
					}
					if b.seen() != before {
						t.Error("the backend was reached")
					}
					if r["client_certificate"] != nil && r["possession"] != "not proven" {
						t.Errorf("the record names a refused client as if it had been accepted: %v", r)
					}
				})
			}
		}
	}
}

// TestRefusedClientSeesAlert: a TLS 1.3 client has sent its request before it is refused; the unread bytes must not turn
// the end into a reset that overtakes the alert.
func TestRefusedClientSeesAlert(t *testing.T) {
	w, b, _ := authWorld(t)
	confs := map[string]*tls.Config{"bad certificate": w.client("a.test", testpki.New(t).Client("mallory")), "certificate required": w.client("a.test", nil)}
	request := "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 20000\r\n\r\n" + strings.Repeat("x", 20000)
	var wg sync.WaitGroup
	for alert, conf := range confs {
		pin(conf, tls.VersionTLS13)
		for range 4 {
			wg.Go(func() {
				for i := range 25 {
					raw, err := dialFrom(w.addr("public"))
					if err != nil {
						t.Error(err)
						return
					}
					_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
					c := tls.Client(raw, conf)
					if err = c.Handshake(); err == nil {
						if _, err = io.WriteString(c, request); err == nil {
							if i%2 == 1 {
								time.Sleep(3 * time.Millisecond) // whatever was going to overtake the alert has
							}
							_, err = c.Read(make([]byte, 1))
						}
					}
					if got := (answer{err: err}).alert(); got != alert {
						t.Errorf("alert %q (%v), expected %q", got, err, alert)
					}
					raw.Close()
				}
			})
		}
	}
	wg.Wait()
	if b.seen() != 0 {
		t.Errorf("the backend saw %d requests", b.seen())
	}
}

// tap remembers what was read, to tell whether an alert came.
type tap struct {
	net.Conn
	read bytes.Buffer
}

func (c *tap) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Write(p[:n])
	return n, err
}

// alerts counts the records that are alerts or, in TLS 1.3, have the size of one.
func (c *tap) alerts() (n int) {
	for b := c.read.Bytes(); len(b) >= 5; {
		size := int(b[3])<<8 | int(b[4])
		if b[0] == 21 || b[0] == 23 && size == 2+1+16 {
			n++
		}
		b = b[min(len(b), 5+size):]
	}
	return n
}

// TestFailureReset: on_failure: reset ends every client-certificate failure with a reset, and no alert goes out.
func TestFailureReset(t *testing.T) {
	w, b, list := authWorld(t)
	type row struct {
		name, host, reason string
		conf               *tls.Config
	}
	for _, v := range tlsVersions {
		rows := []row{{"no certificate", "b.test", "client_cert_missing", w.client("b.test", nil)}}
		for _, c := range list {
			if c.host == "" {
				rows = append(rows, row{c.name, "b.test", c.reason, w.show("b.test", c.key, c.chain...)}, row{c.name, "c.test", c.reason, w.show("c.test", c.key, c.chain...)})
			}
		}
		for _, r := range rows {
			t.Run("A38/"+v.name+"/"+r.host+"/"+r.name, func(t *testing.T) {
				var wire *tap
				a := w.call("public", pin(r.conf, v.id), r.host, "/", func(c net.Conn) net.Conn { wire = &tap{Conn: c}; return wire })
				if !errors.Is(a.err, syscall.ECONNRESET) {
					t.Errorf("%v, expected a reset", a.err)
				}
				if n := wire.alerts(); n != 0 {
					t.Errorf("%d alerts were sent", n)
				}
				if got := w.ended(t, a); got["reason"] != r.reason {
					t.Errorf("reason %v, expected %s", got["reason"], r.reason)
				}
			})
		}
		t.Run(v.name+"/alice", func(t *testing.T) {
			if a := w.call("public", pin(w.client("b.test", w.ca.Client("alice")), v.id), "b.test", "/"); a.status != 200 {
				t.Errorf("%d %v", a.status, a.err)
			}
			// What is no failure of client auth keeps its alert.
			conf := pin(w.client("b.test", nil), v.id)
			conf.NextProtos = []string{"spdy/3"}
			if a := w.call("public", conf, "b.test", "/"); a.alert() != "no application protocol" {
				t.Errorf("alert %q (%v)", a.alert(), a.err)
			}
		})
	}
	if b.seen() != 2 {
		t.Errorf("the backend saw %d requests, expected 2 of alice", b.seen())
	}
}

// cache offers whatever session it was ever given, to whomever.
type cache struct {
	mu   sync.Mutex
	last *tls.ClientSessionState
	puts int
}

func (c *cache) Get(string) (*tls.ClientSessionState, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last, c.last != nil
}

func (c *cache) Put(_ string, s *tls.ClientSessionState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s != nil {
		c.last = s
		c.puts++
	}
}

// frozen offers one session for ever, and takes no other.
type frozen struct{ session *tls.ClientSessionState }

func (f frozen) Get(string) (*tls.ClientSessionState, bool) { return f.session, f.session != nil }

func (frozen) Put(string, *tls.ClientSessionState) {}

// offers lets a client offer a session, and counts in asked how often it is asked for its certificate: not at all where
// the session is resumed.
func offers(conf *tls.Config, sessions tls.ClientSessionCache, asked *int) *tls.Config {
	conf = conf.Clone()
	conf.ClientSessionCache = sessions
	get := conf.GetClientCertificate
	conf.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		*asked++
		if get == nil {
			return &tls.Certificate{}, nil
		}
		return get(r)
	}
	return conf
}

// TestResumption: a session is resumed under the listener, policy and trust store content it was earned under, and
// nowhere else: 20 hosts of different policies, all pairs, a second listener, and reloads.
func TestResumption(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := echo(t, "api", nil)
	other := testpki.New(t)
	w.file("b.pem", other.PEM())
	var text strings.Builder
	text.WriteString("trust_stores:\n  A: {ca_bundle: {file: clients.pem}}\n  B: {ca_bundle: {file: b.pem}}\n")
	text.WriteString("upstreams: {api: {targets: [\"http://BACKEND\"]}}\nlisteners:\n")
	auth := []string{"mode: off", "mode: request, trust_store: A", "mode: require, trust_store: A", "mode: require, trust_store: B"}
	for _, listener := range []string{"public", "second"} { // the same names and policies
		text.WriteString("  " + listener + ":\n    listen: 127.0.0.1:0\n    protocol: https\n    hosts:\n")
		for i := range 20 {
			fmt.Fprintf(&text, "      - {names: [h%d.w.test, g%d.w.test], certificate: {cert: server.pem, key: server.key}, client_auth: {%s}, routes: [{upstream: api}]}\n", i, i, auth[i%4])
		}
	}
	conf := text.String()
	w.start(conf, b.addr)
	certs := []*testpki.Cert{nil, w.ca.Client("alice"), w.ca.Client("alice"), other.Client("alice")}
	for _, v := range tlsVersions {
		sessions := make([]*tls.ClientSessionState, 20)
		call := func(listener, name string, i int, c tls.ClientSessionCache) (answer, int) {
			asked := 0
			host := fmt.Sprint(name, i, ".w.test")
			return w.call(listener, offers(pin(w.client(host, certs[i%4]), v.id), c, &asked), host, "/"), asked
		}
		full := func(t *testing.T, what string, a answer, asked, i int) {
			t.Helper()
			if a.status != 200 || a.state.DidResume || (asked == 1) != (i%4 != 0) {
				t.Errorf("%s: %d %v, resumed %v, asked %d times; expected a full handshake", what, a.status, a.err, a.state.DidResume, asked)
			}
			if r := w.ended(t, a); r["resumed"] != nil {
				t.Errorf("%s: %v", what, r)
			}
		}
		for i := range sessions {
			c := &cache{}
			a, asked := call("public", "h", i, c)
			full(t, fmt.Sprint("first handshake on h", i), a, asked, i)
			if sessions[i] = c.last; c.last == nil {
				t.Fatalf("h%d: no ticket", i)
			}
		}
		t.Run("A01/A02/A03/A04/"+v.name+"/other hosts", func(t *testing.T) {
			for i := range 20 {
				for j := range 20 {
					if i != j {
						a, asked := call("public", "h", j, frozen{sessions[i]})
						full(t, fmt.Sprintf("session of h%d on h%d", i, j), a, asked, j)
					}
				}
			}
		})
		t.Run("A01/"+v.name+"/other name of the host", func(t *testing.T) { // RFC 6066 section 3
			for i := range 4 {
				a, asked := call("public", "g", i, frozen{sessions[i]})
				full(t, fmt.Sprint("session of h", i), a, asked, i)
			}
		})
		t.Run("A43/"+v.name+"/other listener", func(t *testing.T) {
			for i := range 4 {
				a, asked := call("second", "h", i, frozen{sessions[i]})
				full(t, fmt.Sprint("session of h", i), a, asked, i)
			}
		})
		// No certificate for host 3, the session of host 0, 1 and 2: what they allow is not allowed there.
		t.Run("A03/"+v.name+"/session in place of a certificate", func(t *testing.T) {
			for i := range 3 {
				before := b.seen()
				a := w.call("public", pin(w.client("h3.w.test", nil, func(c *tls.Config) { c.ClientSessionCache = frozen{sessions[i]} }), v.id), "h3.w.test", "/")
				if a.status != 0 || w.ended(t, a)["reason"] != "client_cert_missing" || b.seen() != before {
					t.Errorf("session of h%d: %d %v", i, a.status, a.err)
				}
			}
		})
		same := func(t *testing.T, what string) {
			for i := range 4 {
				a, asked := call("public", "h", i, frozen{sessions[i]})
				if a.status != 200 || !a.state.DidResume || asked != 0 {
					t.Errorf("%s: h%d: %d %v, resumed %v, asked %d times", what, i, a.status, a.err, a.state.DidResume, asked)
				}
				if r := w.ended(t, a); r["resumed"] != true || (r["client_certificate"] == nil) != (i%4 == 0) {
					t.Errorf("%s: h%d: %v", what, i, r)
				}
			}
		}
		t.Run("A10/"+v.name+"/same host", func(t *testing.T) { same(t, "at once") })
		t.Run("A34/"+v.name+"/no certificate yet", func(t *testing.T) { // who had none is asked again
			sessions, asked := &cache{}, 0
			for i := range 3 {
				a := w.call("public", offers(pin(w.client("h1.w.test", nil), v.id), sessions, &asked), "h1.w.test", "/")
				if a.status != 200 || a.state.DidResume || asked != i+1 {
					t.Errorf("%d %v, resumed %v, asked %d times", a.status, a.err, a.state.DidResume, asked)
				}
			}
		})
		t.Run("A08/"+v.name+"/reloads", func(t *testing.T) {
			w.reload(conf+"drain: 7s\n", b.addr)
			same(t, "nothing of it changed")
			changed := func(what string, hosts ...int) {
				t.Helper()
				for _, i := range hosts {
					a, asked := call("public", "h", i, frozen{sessions[i]})
					full(t, fmt.Sprintf("%s: h%d", what, i), a, asked, i)
				}
			}
			w.file("clients.pem", append(append(w.root.PEM(), w.ca.PEM()...), other.PEM()...))
			w.reload(conf, b.addr)
			changed("A07/another CA in the store", 1, 2)
			w.file("clients.pem", append(w.root.PEM(), w.ca.PEM()...))
			w.reload(strings.ReplaceAll(conf, "A: {ca_bundle: {file: clients.pem}}", "A: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: clients.crl}]}}"), b.addr)
			changed("A06/a list in the store", 1, 2)
			w.reload(strings.ReplaceAll(conf, "mode: request, trust_store: A", "mode: require, trust_store: A"), b.addr)
			changed("A02/another mode", 1)
			w.reload(strings.ReplaceAll(conf, "mode: require, trust_store: A", "mode: require, trust_store: A, on_failure: page"), b.addr)
			changed("A02/another way to refuse", 2)
			w.reload(conf, b.addr)
		})
	}
}

// TestIdentityUnderConcurrency: every backend request carries the identity of the connection it came over.
func TestIdentityUnderConcurrency(t *testing.T) {
	const clients, each = 200, 50
	w := newWorld(t)
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(rw, "%s %s", r.Header.Get("X-Amzn-Mtls-Clientcert-Subject"), r.URL.Path)
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	w.start(basic, l.Addr().String())
	t.Run("D14/200 clients", func(t *testing.T) {
		var wg sync.WaitGroup
		turn := make(chan struct{}, 8) // all at once, some handshakes would take longer than they may on a slow machine
		for i := range clients {
			name := fmt.Sprint("client-", i)
			conf := w.client("a.test", w.ca.Client(name))
			wg.Go(func() {
				turn <- struct{}{}
				c, err := tls.Dial("tcp", w.addr("public"), conf)
				<-turn
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(3 * time.Minute))
				r := bufio.NewReader(c)
				for n := range each {
					path := fmt.Sprintf("/%d/%d", i, n)
					status, body, err := roundTrip(c, r, "GET "+path+" HTTP/1.1\r\nHost: a.test\r\nX-Amzn-Mtls-Clientcert-Subject: CN=admin\r\n\r\n")
					if status != 200 || body != "CN="+name+" "+path {
						t.Errorf("%s, request %d: %d %q %v", name, n, status, body, err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}
