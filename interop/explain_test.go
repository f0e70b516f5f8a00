package interop_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/Netflix/bettertls/test-suites/certutil"
)

// TestBetterTLSExplained holds that what explain tells about paths agrees with the verifier on every fifth chain of the bettertls
// corpus, and on all of them if COUNTERSIGN_CORPUS_ALL is set: a path without a failing check exists exactly for those that are accepted. The comparison is a test of package
// trust, which is given the chains in a folder.
func TestBetterTLSExplained(t *testing.T) {
	root, key, err := certutil.GenerateSelfSignedCert("bettertls_trust_root")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir, "anchor.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}))
	cases := corpusCases(t, root, key)
	if os.Getenv("COUNTERSIGN_CORPUS_ALL") == "" { // all of them take a minute and a half
		few := cases[:0:0]
		for i := 0; i < len(cases); i += 5 {
			few = append(few, cases[i])
		}
		cases = few
	}
	for i, c := range cases {
		cert, err := c.cert()
		if err != nil {
			t.Fatalf("%s case %d: %v", c.suite, c.index, err)
		}
		var text []byte
		for _, der := range cert.Certificate {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		write(t, dir, fmt.Sprintf("%05d.chain", i), text)
	}
	cmd := exec.Command("go", "test", "-count=1", "-v", "-run", "^TestExamineCorpus$", "./internal/trust")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "COUNTERSIGN_CORPUS="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), fmt.Sprintf("%d chains", len(cases))) {
		t.Fatalf("%v\n%s", err, tail(string(out), 8000))
	}
	t.Log(regexp.MustCompile(`\d+ chains: .*`).FindString(string(out)))
}

// explained is what explain says as JSON.
type explained struct {
	status                                 int
	Outcome, Reason, Sentence, Fault, Next string
	Attempts                               []struct {
		Version, Outcome, Found string
		Requested               bool
		Status                  int
		Alert                   *int
	}
	text string
}

func explain(t *testing.T, args ...string) *explained {
	t.Helper()
	r := run(t, nil, binary, append([]string{"explain", "--json"}, args...)...)
	e := &explained{status: r.code, text: r.out}
	if err := json.Unmarshal([]byte(r.out), e); err != nil {
		t.Fatalf("%v: %v", r, err)
	}
	want := map[string]int{"accepted": 0, "refused": 1, "undecided": 3}
	if status, ok := want[e.Outcome]; !ok || status != r.code {
		t.Fatalf("outcome %q: %v", e.Outcome, r)
	}
	return e
}

// live asks a server as a client of the test's PKI; nil has no certificate.
func live(t *testing.T, p *pki, addr string, c *cert, more ...string) *explained {
	t.Helper()
	args := []string{"--connect", addr, "--sni", "api.internal", "--servername-ca", p.internal.file, "--path", "/"}
	if c != nil {
		args = append(args, "--cert", c.file, "--key", c.keyFile)
	}
	return explain(t, append(args, more...)...)
}

// expect asserts how it ended and what is to be done.
func (e *explained) expect(t *testing.T, outcome, sentence, next string) {
	t.Helper()
	if e.Outcome != outcome || !regexp.MustCompile(sentence).MatchString(e.Sentence) || !regexp.MustCompile(next).MatchString(e.Next) {
		t.Errorf("expected %s, %q, next %q; found\n%s", outcome, sentence, next, e.text)
	}
}

// brokenClients are clients of a server that trusts the clients' root, and what explain must say of each; by is the server.
func brokenClients(t *testing.T, p *pki, addr string, words map[string]string) {
	alone := *p.alice
	alone.file = write(t, p.dir, "alice-alone.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.alice.Raw}))
	for _, c := range []struct {
		name    string
		who     *cert
		outcome string
		next    string
	}{
		{"good", p.alice, "accepted", ""},
		{"none", nil, "refused", "^send a certificate of one of the CAs that the server names, with --cert and --key: CN=root-ca$"},
		{"missing intermediate", &alone, "refused", `append the intermediate "CN=clients-ca" that issued`},
		{"foreign", p.mallory, "refused", "^use a certificate of one of the CAs that the server names: CN=root-ca"},
		{"expired", p.carol, "refused", `^renew "CN=carol"`},
		{"server only", p.serverOnly, "refused", "^this certificate has only serverAuth; the CA must issue one with clientAuth"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := live(t, p, addr, c.who)
			next := c.next
			if c.name == "missing intermediate" && len(e.Attempts) > 0 {
				next = `append the intermediate "CN=clients-ca"|CN=root-ca` // its issuer is none of the names, either
			}
			e.expect(t, c.outcome, words[c.name], next)
			for _, a := range e.Attempts {
				if c.outcome == "refused" && a.Outcome == "accepted" {
					t.Errorf("%s was accepted", a.Version)
				}
			}
		})
	}
}

func explainPKI(t *testing.T) *pki {
	p := newPKI(t)
	issue(t, p.dir, "backend", p.internal, newECDSA(t), forServer("api.internal"))
	return p
}

func TestExplainOpenSSL(t *testing.T) {
	need(t, "openssl")
	p := explainPKI(t)
	addr := freeAddress(t)
	start(t, exec.Command("openssl", "s_server", "-accept", addr, "-cert", p.path("backend.pem"), "-key", p.path("backend.key"),
		"-CAfile", p.root.file, "-Verify", "3", "-verify_return_error", "-www", "-quiet"), addr)
	brokenClients(t, p, addr, map[string]string{"good": "HTTP status 200", "none": "certificate_required|handshake_failure|closed",
		"foreign": "unknown_ca", "missing intermediate": "unknown_ca", "expired": "certificate_expired", "server only": "unsupported_certificate|bad_certificate|certificate_unknown"})
	t.Run("does not ask", func(t *testing.T) {
		addr := freeAddress(t)
		start(t, exec.Command("openssl", "s_server", "-accept", addr, "-cert", p.path("backend.pem"), "-key",
			p.path("backend.key"), "-www", "-quiet"), addr)
		live(t, p, addr, p.alice).expect(t, "accepted", "did not ask", "^let the server ask for client certificates")
	})
	t.Run("takes RSA only", func(t *testing.T) {
		addr := freeAddress(t)
		start(t, exec.Command("openssl", "s_server", "-accept", addr, "-cert", p.path("backend.pem"), "-key", p.path("backend.key"),
			"-CAfile", p.root.file, "-Verify", "3", "-verify_return_error", "-www", "-quiet", "-client_sigalgs", "RSA-PSS+SHA256"), addr)
		live(t, p, addr, p.alice).expect(t, "refused", "", "^use a certificate with another kind of key: .*ECDSA")
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		addr := freeAddress(t)
		start(t, exec.Command("openssl", "s_server", "-accept", addr, "-cert", p.path("backend.pem"), "-key", p.path("backend.key"),
			"-CAfile", p.root.file, "-Verify", "3", "-verify_return_error", "-www", "-quiet", "-tls1_2"), addr)
		live(t, p, addr, p.alice).expect(t, "accepted", "^TLS 1.2: HTTP status 200", "")
		live(t, p, addr, nil).expect(t, "refused", "^TLS 1.2: TLS alert", "^send a certificate")
		live(t, p, addr, p.mallory).expect(t, "refused", "unknown_ca", "^use a certificate of one of the CAs")
	})
}

func TestExplainNginx(t *testing.T) {
	p := explainPKI(t)
	addr, shallow, lists, optional, path := freeAddress(t), freeAddress(t), freeAddress(t), freeAddress(t), freeAddress(t)
	server := func(addr, rest string) string {
		return fmt.Sprintf("server { listen %s ssl; ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate %s; ssl_certificate_key %s; ssl_client_certificate %s; %s }\n",
			addr, p.path("backend.pem"), p.path("backend.key"), p.root.file, rest)
	}
	startNginx(t, server(addr, "ssl_verify_client on; ssl_verify_depth 3; location / { return 200 ok; }")+
		server(shallow, "ssl_verify_client on; ssl_verify_depth 0; location / { return 200 ok; }")+
		server(lists, fmt.Sprintf("ssl_verify_client on; ssl_verify_depth 3; ssl_crl %s; location / { return 200 ok; }",
			p.path("clients.crl")))+
		server(optional, "ssl_verify_client optional; ssl_verify_depth 3; location / { if ($ssl_client_verify != SUCCESS) { return 403; } return 200 ok; }")+
		server(path, "ssl_verify_client off; location / { return 403; }"), addr, shallow, lists, optional, path)
	brokenClients(t, p, addr, map[string]string{"good": "HTTP status 200",
		"none":    "^TLS 1.3: HTTP status 400.*wants a client certificate and got none",
		"foreign": "400.*could not verify", "missing intermediate": "400.*could not verify", "expired": "400.*could not verify", "server only": "400.*could not verify"})
	t.Run("depth", func(t *testing.T) {
		live(t, p, shallow, p.alice).expect(t, "refused", "400.*could not verify", "depth limits \\(ssl_verify_depth")
	})
	t.Run("a list of one CA of two", func(t *testing.T) {
		live(t, p, lists, p.alice).expect(t, "refused", "400.*could not verify", "look in its log: revocation lists")
	})
	t.Run("optional, and 403", func(t *testing.T) {
		live(t, p, optional, nil).expect(t, "refused", "403", "^send a certificate")
		live(t, p, optional, p.alice).expect(t, "accepted", "200", "")
	})
	t.Run("not asked, and 403", func(t *testing.T) {
		live(t, p, path, p.alice).expect(t, "refused", "403", "let the server ask for a certificate for this name")
	})
	t.Run("plain HTTP", func(t *testing.T) {
		plain := freeAddress(t)
		startNginx(t, fmt.Sprintf("server { listen %s; }\n", plain), plain)
		live(t, p, plain, p.alice).expect(t, "undecided", "plain HTTP", "speaks https")
	})
}

func TestExplainHAProxy(t *testing.T) {
	need(t, "haproxy")
	p := explainPKI(t)
	var both []byte
	for _, ext := range []string{".pem", ".key"} {
		b, err := os.ReadFile(p.path("backend" + ext))
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, b...)
	}
	crt := write(t, p.dir, "backend.both", both)
	addr, proxied, strict := freeAddress(t), freeAddress(t), freeAddress(t)
	conf := write(t, p.dir, "haproxy.cfg", fmt.Appendf(nil, `
global
  maxconn 100
defaults
  mode http
  timeout connect 5s
  timeout client 5s
  timeout server 5s
frontend api
  bind %[1]s ssl crt %[4]s ca-file %[5]s verify required
  bind %[2]s accept-proxy ssl crt %[4]s ca-file %[5]s verify required
  bind %[3]s ssl crt %[4]s ca-file %[5]s verify required strict-sni
  http-request return status 200 content-type text/plain string "ok"
`, addr, proxied, strict, crt, p.root.file))
	start(t, exec.Command("haproxy", "-f", conf, "-db"), addr, proxied, strict)
	brokenClients(t, p, addr, map[string]string{"good": "HTTP status 200", "none": "certificate_required|handshake_failure",
		"foreign": "unknown_ca", "missing intermediate": "unknown_ca", "expired": "certificate_expired", "server only": "unsupported_certificate|bad_certificate|certificate_unknown"})
	t.Run("a PROXY header is missing", func(t *testing.T) {
		live(t, p, proxied, p.alice, "--timeout", "8s").expect(t, "undecided", "", "PROXY header")
	})
	t.Run("the server name is unknown", func(t *testing.T) {
		e := explain(t, "--connect", strict, "--sni", "other.internal", "--servername-ca", p.internal.file, "--path",
			"/", "--cert", p.alice.file, "--key", p.alice.keyFile)
		e.expect(t, "refused", "unrecognized_name", "--sni")
	})
}

// TestExplainAgrees asks the running program, explain --connect and explain --host about the same clients: they must agree.
func TestExplainAgrees(t *testing.T) {
	p := newPKI(t)
	backend := freeAddress(t)
	l, err := net.Listen("tcp", backend)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				buf := make([]byte, 4096)
				_, _ = c.Read(buf)
				_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"))
			}()
		}
	}()
	b := serve(t, p, `
listeners:
  public:
    listen: $public
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes:
          - {match: {path: /ops/*}, upstream: api, allow: 'client.common_name == "dave"'}
          - {upstream: api}
      - names: [reset.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients, on_failure: reset}
        routes: [{upstream: api}]
      - names: [opt.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients, on_failure: page}
        routes: [{upstream: api}]
upstreams:
  api: {targets: ["http://$api"]}
`, map[string]string{"api": backend})
	conf := filepath.Join(p.dir, "countersign.yaml")
	for _, c := range []struct {
		name string
		who  *cert
	}{{"alice", p.alice}, {"dave", p.dave}, {"erin", p.erin}, {"bob, revoked", p.bob}, {"carol, expired",
		p.carol}, {"mallory", p.mallory}, {"server only", p.serverOnly}, {"the CA", p.ca}, {"nobody", nil}} {
		for _, host := range []string{"a.test", "reset.test", "opt.test"} {
			for _, path := range []string{"/", "/ops/x"} {
				t.Run(c.name+" at "+host+path, func(t *testing.T) {
					offline := []string{"-c", conf, "--host", host, "--path", path}
					online := []string{"--connect", b.addr["public"], "--sni", host, "--servername-ca", p.internal.file,
						"--path", path}
					if c.who != nil {
						offline = append(offline, "--cert", c.who.file)
						online = append(online, "--cert", c.who.file, "--key", c.who.keyFile)
					}
					mark := b.mark()
					on := explain(t, online...)
					off := explain(t, offline...)
					if on.Outcome != off.Outcome {
						t.Errorf("the server: %s\nthe configuration: %s", on.text, off.text)
					}
					want := off.Reason
					if want == "" {
						want = "completed"
					}
					found := ""
					await(t, func() bool {
						for _, r := range b.since(t, mark) {
							if r["reason"] == want {
								return true
							}
							found += fmt.Sprint(r["reason"], " ")
						}
						return false
					})
				})
			}
		}
	}
}
