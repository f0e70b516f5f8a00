package interop_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// authority is the clients' CA as "openssl ca" keeps it: a file with a line for each certificate.
type authority struct {
	*pki
	t    *testing.T
	rows []string
}

// newAuthority makes the file; the certificates in revoked were revoked a while ago.
func newAuthority(t *testing.T, p *pki, good []*cert, revoked ...*cert) *authority {
	t.Helper()
	a := &authority{pki: p, t: t}
	for _, c := range good {
		a.rows = append(a.rows, a.row(c, false))
	}
	for _, c := range revoked {
		a.rows = append(a.rows, a.row(c, true))
	}
	a.save()
	write(t, p.dir, "crlnumber", []byte("01\n"))
	write(t, p.dir, "ca.cnf", []byte(`[ca]
default_ca = clients
[clients]
database = `+p.path("index.txt")+`
crlnumber = `+p.path("crlnumber")+`
default_md = sha256
default_crl_days = 1
crl_extensions = list
[list]
authorityKeyIdentifier = keyid
`))
	return a
}

func (a *authority) row(c *cert, revoked bool) string {
	serial := c.SerialNumber.Text(16)
	if len(serial)%2 == 1 {
		serial = "0" + serial
	}
	state, since := "V", ""
	if revoked {
		state, since = "R", time.Now().Add(-time.Hour).UTC().Format("060102150405Z")+",keyCompromise"
	}
	return strings.Join([]string{state, c.NotAfter.UTC().Format("060102150405Z"), since, strings.ToUpper(serial), "unknown", "/CN=" + c.Subject.CommonName}, "\t")
}

func (a *authority) save() {
	a.t.Helper()
	write(a.t, a.dir, "index.txt", []byte(strings.Join(a.rows, "\n")+"\n"))
	write(a.t, a.dir, "index.txt.attr", []byte("unique_subject = no\n"))
}

// revoke changes the line of a certificate. OpenSSL and Python tell versions of a file apart by the second.
func (a *authority) revoke(c *cert) {
	a.t.Helper()
	time.Sleep(1100 * time.Millisecond)
	for i, row := range a.rows {
		if row == a.row(c, false) {
			a.rows[i] = a.row(c, true)
		}
	}
	a.save()
}

// list makes the next revocation list.
func (a *authority) list(name string) {
	a.t.Helper()
	if r := run(a.t, nil, "openssl", "ca", "-config", a.path("ca.cnf"), "-gencrl", "-keyfile", a.ca.keyFile, "-cert", a.ca.file, "-out", a.path(name)); r.code != 0 {
		a.t.Fatal(r)
	}
}

// fares is what becomes of a client: completed, or the reason in the record.
func (b *balancer) fares(t *testing.T, who *cert, host, version string) string {
	t.Helper()
	mark := b.mark()
	r := b.curl(t, "public", who, "--tlsv"+version, "--tls-max", version, b.url("public", host, "/"))
	h := b.record(t, mark, "kind=handshake", "sni="+host)
	if got := fmt.Sprint(h["reason"]); (r.code == 0) == (got == "completed") {
		return got
	}
	t.Errorf("the record says %v; %s", h["reason"], r)
	return ""
}

func pemOf(c *cert) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) }

// TestOpenSSLResponder: what "openssl ocsp" answers counts, with a delegate's signature and nonces.
func TestOpenSSLResponder(t *testing.T) {
	need(t, "curl", "openssl")
	p, backend := newPKI(t), newEcho(t)
	responder := freeAddress(t)
	named := func(c *x509.Certificate) { c.OCSPServer = []string{"http://" + responder + "/"} }
	good := issue(t, p.dir, "good", p.ca, newECDSA(t), forClient, named)
	revoked := issue(t, p.dir, "revoked", p.ca, newECDSA(t), forClient, named)
	unknown := issue(t, p.dir, "unknown", p.ca, newECDSA(t), forClient, named)
	later := issue(t, p.dir, "later", p.ca, newECDSA(t), forClient, named)
	delegate := issue(t, p.dir, "delegate", p.ca, newECDSA(t), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning} })
	a := newAuthority(t, p, []*cert{good, later, p.alice}, revoked)
	// It is not asked whether it listens: a connection without a question is the last that this program takes.
	out := start(t, exec.Command("openssl", "ocsp", "-index", p.path("index.txt"), "-port", portOf(responder), "-rsigner", delegate.file, "-rkey", delegate.keyFile,
		"-CA", p.ca.file, "-nmin", "10", "-ignore_err"))
	await(t, func() bool { return strings.Contains(out.String(), "waiting for OCSP client connections") })
	b := serve(t, p, `
  named: {ca_bundle: {file: root-ca.pem}, revocation: {ocsp: {mode: require, hosts: ["$responder"], nonce: require}}}
  asked: {ca_bundle: {file: root-ca.pem}, revocation: {ocsp: {mode: require, responder: "http://$responder"}}}
  wished: {ca_bundle: {file: root-ca.pem}, revocation: {ocsp: {mode: prefer, responder: "http://$responder"}}}
outbound: {allow: [127.0.0.0/8]}
listeners:
  public:
    listen: $public
    protocol: https
    hosts:
      - {names: [a.test], certificate: &c {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: named}, routes: &r [{upstream: api}]}
      - {names: [b.test], certificate: *c, client_auth: {mode: require, trust_store: asked}, routes: *r}
      - {names: [opt.test], certificate: *c, client_auth: {mode: require, trust_store: wished}, routes: *r}
upstreams: {api: {targets: ["http://$api"]}}
`, map[string]string{"api": backend.addr, "responder": responder})
	for _, version := range []string{"1.2", "1.3"} {
		for _, c := range []struct {
			id, host string
			who      *cert
			want     string
		}{
			{"C16", "a.test", good, "completed"},
			{"C16", "b.test", good, "completed"},
			{"C16", "b.test", p.alice, "completed"},
			{"C16", "opt.test", good, "completed"},
			{"C01", "a.test", revoked, "client_cert_revoked"},
			{"C01", "b.test", revoked, "client_cert_revoked"},
			{"C16", "a.test", unknown, "ocsp_unknown"},
			{"C16", "b.test", unknown, "ocsp_unknown"},
			{"C16", "opt.test", unknown, "completed"},
			{"C18", "a.test", p.alice, "ocsp_unavailable"}, // it names no responder
		} {
			t.Run(c.id+"/TLS "+version+"/"+c.host+"/"+c.who.Subject.CommonName, func(t *testing.T) {
				if got := b.fares(t, c.who, c.host, version); got != c.want {
					t.Errorf("%s, expected %s", got, c.want)
				}
			})
		}
	}
	t.Run("C01/preferred, revoked", func(t *testing.T) { // nobody waits for the answer, but it comes
		await(t, func() bool { return b.fares(t, revoked, "opt.test", "1.3") == "client_cert_revoked" })
	})
	t.Run("C01/revoked later", func(t *testing.T) {
		a.revoke(later)
		b.fares(t, p.dave, "b.test", "1.3") // it reads the file again after the next question
		await(t, func() bool { return b.fares(t, later, "b.test", "1.3") == "client_cert_revoked" })
	})
}

// TestOpenSSLList: a list of "openssl ca", served by Python, is fetched, and so is the next one.
func TestOpenSSLList(t *testing.T) {
	need(t, "curl", "openssl", "python3")
	p, backend := newPKI(t), newEcho(t)
	server := freeAddress(t)
	url := "http://" + server + "/ca.crl"
	dave := issue(t, p.dir, "point", p.ca, newECDSA(t), forClient, func(c *x509.Certificate) { c.CRLDistributionPoints = []string{"http://" + server + "/point.crl"} })
	a := newAuthority(t, p, []*cert{p.alice, dave, p.erin}, p.bob)
	a.list("ca.crl")
	a.list("point.crl")
	write(t, p.dir, "cas.pem", append(pemOf(p.root), pemOf(p.ca)...))
	start(t, exec.Command("python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", p.dir, portOf(server)), server)
	b := serve(t, p, `
  listed: {ca_bundle: {file: cas.pem}, revocation: {crls: [{url: "$url", refresh: 10s}]}}
  pointed: {ca_bundle: {file: root-ca.pem}, revocation: {distribution_points: ["$server"]}}
outbound: {allow: [127.0.0.0/8]}
listeners:
  public:
    listen: $public
    protocol: https
    hosts:
      - {names: [a.test], certificate: &c {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: listed}, routes: &r [{upstream: api}]}
      - {names: [b.test], certificate: *c, client_auth: {mode: require, trust_store: pointed}, routes: *r}
upstreams: {api: {targets: ["http://$api"]}}
`, map[string]string{"api": backend.addr, "server": server, "url": url})
	for _, version := range []string{"1.2", "1.3"} {
		t.Run("C01/TLS "+version+"/at once", func(t *testing.T) {
			if got := b.fares(t, p.alice, "a.test", version); got != "completed" {
				t.Errorf("alice: %s", got)
			}
			if got := b.fares(t, p.bob, "a.test", version); got != "client_cert_revoked" {
				t.Errorf("bob: %s", got)
			}
		})
	}
	t.Run("C13/named by a certificate", func(t *testing.T) {
		await(t, func() bool { return b.fares(t, dave, "b.test", "1.3") == "completed" })
		if got := b.fares(t, p.bob, "b.test", "1.3"); got != "client_cert_revoked" {
			t.Errorf("bob: %s", got)
		}
	})
	a.revoke(p.alice)
	a.list("ca.crl")
	for _, version := range []string{"1.2", "1.3"} {
		t.Run("C01/TLS "+version+"/the next list", func(t *testing.T) {
			await(t, func() bool { return b.fares(t, p.alice, "a.test", version) == "client_cert_revoked" })
			if got := b.fares(t, p.erin, "a.test", version); got != "completed" {
				t.Errorf("erin: %s", got)
			}
		})
	}
	resp, err := http.Get("http://" + b.addr["ops"] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if want := `countersign_revocation_list_entries{issuer="",url="` + url + `"} 2`; err != nil || !strings.Contains(string(text), want) {
		t.Errorf("%v: no %s", err, want)
	}
}

// TestBundleByURL: CA certificates that are fetched by https, from a server that the machine's own CAs vouch for.
func TestBundleByURL(t *testing.T) {
	need(t, "curl")
	p, backend := newPKI(t), newEcho(t)
	t.Setenv("SSL_CERT_FILE", p.internal.file) // the machine's CAs
	server := issue(t, p.dir, "publisher", p.internal, newECDSA(t), forServer("127.0.0.1"))
	var page atomic.Pointer[[]byte]
	give := func(data []byte) { page.Store(&data) }
	give(pemOf(p.root))
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: server.chain, PrivateKey: server.key}}})
	if err != nil {
		t.Fatal(err)
	}
	publisher := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(*page.Load()) })}
	go publisher.Serve(l)
	t.Cleanup(func() { publisher.Close() })
	conf := `
  fetched: {ca_bundle: {url: "$url", refresh: 1s}}
outbound: {allow: [127.0.0.0/8]}
listeners:
  public:
    listen: $public
    protocol: https
    hosts:
      - {names: [a.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: fetched}, routes: [{upstream: api}]}
upstreams: {api: {targets: ["http://$api"]}}
`
	t.Run("A22/nobody there at the first start", func(t *testing.T) {
		file := write(t, p.dir, "dead.yaml", []byte(os.Expand(stores+conf, func(name string) string {
			if name == "url" {
				return "https://" + freeAddress(t) + "/"
			}
			return freeAddress(t)
		})))
		if r := run(t, nil, binary, "run", "-c", file); r.code == 0 || !strings.Contains(r.err, "there is no CA bundle of") {
			t.Error(r)
		}
	})
	b := serve(t, p, conf, map[string]string{"api": backend.addr, "url": "https://" + l.Addr().String() + "/cas.pem"})
	if got := b.fares(t, p.alice, "a.test", "1.3"); got != "completed" {
		t.Errorf("alice: %s", got)
	}
	if got := b.fares(t, p.mallory, "a.test", "1.3"); got != "client_cert_untrusted" {
		t.Errorf("mallory: %s", got)
	}
	give([]byte("<html>log in</html>"))
	await(t, func() bool { return strings.Contains(b.log.String(), "is no CA bundle") })
	if got := b.fares(t, p.alice, "a.test", "1.2"); got != "completed" {
		t.Errorf("C14/alice, after a page with 200: %s", got)
	}
	give(pemOf(p.mallory.issuer))
	await(t, func() bool { return b.fares(t, p.mallory, "a.test", "1.3") == "completed" })
	if got := b.fares(t, p.alice, "a.test", "1.3"); got != "client_cert_untrusted" {
		t.Errorf("A07/alice, whose CA is gone: %s", got)
	}
}
