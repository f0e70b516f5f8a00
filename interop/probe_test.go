package interop_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// probed is the part of a report of countersign probe --json that is looked at here.
type probed struct {
	Format            int
	Outcome           string
	Problem           *struct{ Code, Found, Next string }
	Chosen            *struct{ Version, Suite, Group string }
	ClientCertificate string `json:"client_certificate"`
	Versions          []struct {
		Version           string
		Accepted          bool
		Refused           string
		Suites            []struct{ ID, Name, Weak string }
		Order, Resumption string
		Groups            []string
	}
	ALPN   []struct{ Name, Result string }
	Chains []struct {
		Key          string
		Trusted      *bool
		Certificates []struct{ Subject string }
		Problems     []struct{ Severity, Code, Found string }
		Staple       struct {
			Present         bool
			Status, Problem string
		} `json:"ocsp_staple"`
	}
	ClientAuth []struct {
		Version, Verdict string
		Requested        bool
		Signatures       []string
		CANames          []string `json:"ca_names"`
		CANameCount      int      `json:"ca_name_count"`
		Without, With    *struct {
			Handshake, Result string
			Alert             *struct{ Name, Means, Next string }
			Problem           *struct{ Code string }
			HTTP              *struct{ Status int }
		}
	} `json:"client_auth"`
	Candidates []struct {
		File   string
		Fits   bool
		Checks []struct {
			Name string
			OK   bool
		}
	}
	Findings    []struct{ Severity, Code string }
	Connections int
}

// probe runs the command with --json, and without to see that the text can be written.
func probe(t *testing.T, addr string, args ...string) *probed {
	t.Helper()
	args = append([]string{"probe", addr, "--timeout", "15s"}, args...)
	r := run(t, nil, binary, append(args, "--json")...)
	p := &probed{}
	if err := json.Unmarshal([]byte(r.out), p); err != nil {
		t.Fatalf("%v: %s", err, r)
	}
	if (r.code == 0) != (p.Outcome == "tls") || r.code > 1 {
		t.Errorf("exit status %d with outcome %s", r.code, p.Outcome)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r)
		}
	})
	return p
}

func (p *probed) versions() (list []string) {
	for _, v := range p.Versions {
		if v.Accepted {
			list = append(list, strings.TrimPrefix(v.Version, "TLS "))
		}
	}
	return list
}

func (p *probed) finding(code string) bool {
	for _, f := range p.Findings {
		if f.Code == code {
			return true
		}
	}
	for _, c := range p.Chains {
		for _, f := range c.Problems {
			if f.Code == code {
				return true
			}
		}
	}
	return false
}

// expect compares what every server of a kind shows.
func (p *probed) expect(t *testing.T, versions, verdict string) {
	t.Helper()
	if got := strings.Join(p.versions(), " "); got != versions {
		t.Errorf("versions %q, expected %q", got, versions)
	}
	if p.ClientCertificate != verdict {
		t.Errorf("client certificate %s, expected %s", p.ClientCertificate, verdict)
	}
	for _, a := range p.ClientAuth {
		if a.Verdict != verdict {
			t.Errorf("%s: client certificate %s, expected %s", a.Version, a.Verdict, verdict)
		}
	}
	for _, v := range p.Versions {
		if v.Accepted && (len(v.Suites) == 0 || len(v.Groups) == 0) {
			t.Errorf("%s: %d suites, groups %v", v.Version, len(v.Suites), v.Groups)
		}
	}
	if p.Connections == 0 || p.Connections > 150 {
		t.Errorf("%d connections", p.Connections)
	}
}

func (p *probed) fit(t *testing.T, file string) (fits bool, failed string) {
	t.Helper()
	for _, c := range p.Candidates {
		if strings.HasSuffix(c.File, "/"+file) {
			for _, check := range c.Checks {
				if !check.OK {
					failed += check.Name + " "
				}
			}
			return c.Fits, strings.TrimSpace(failed)
		}
	}
	t.Errorf("%s was not compared", file)
	return false, ""
}

// TestProbeOpenSSL asks s_server, set up in every way that matters for client certificates.
func TestProbeOpenSSL(t *testing.T) {
	need(t, "openssl")
	p := newPKI(t)
	for _, c := range []struct {
		name, args, versions, verdict string
		names                         int
	}{
		{"required", "-Verify 3 -verify_return_error -CAfile $ca", "1.3 1.2", "required", 1},
		{"required, no names", "-Verify 3 -verify_return_error -CAfile $ca -no_ca_names", "1.3 1.2", "required", 0},
		{"optional", "-verify 3 -CAfile $ca", "1.3 1.2", "optional", 1},
		{"not asked", "", "1.3 1.2", "not_requested", 0},
		{"TLS 1.2 alone", "-tls1_2 -Verify 3 -verify_return_error -CAfile $ca", "1.2", "required", 1},
		{"TLS 1.3 alone", "-tls1_3 -Verify 3 -verify_return_error -CAfile $ca", "1.3", "required", 1},
		{"old", "-tls1 -cipher ALL:@SECLEVEL=0", "1.0", "not_requested", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := freeAddress(t)
			args := append([]string{"s_server", "-accept", addr, "-cert", p.server.file, "-key", p.server.keyFile, "-www", "-quiet", "-alpn", "http/1.1"},
				strings.Fields(strings.ReplaceAll(c.args, "$ca", p.root.file))...)
			start(t, exec.Command("openssl", args...), addr)
			r := probe(t, addr, "--sni", "a.test", "--ca", p.internal.file, "--certs", p.dir)
			if c.name == "required, no names" {
				// In TLS 1.3 this server sends an empty list of names, which RFC 8446 forbids and crypto/tls does not read.
				if a := r.ClientAuth; len(a) != 2 || a[1].Verdict != "required" || len(a[1].CANames) != 0 || a[0].Without.Problem == nil || a[0].Without.Problem.Code != "unreadable" {
					t.Errorf("%+v", a)
				}
				return
			}
			r.expect(t, c.versions, c.verdict)
			if c.name == "old" {
				if !r.finding("old_version") || r.Versions[3].Resumption != "resumed" {
					t.Error("TLS 1.0 was not told of, or not completed")
				}
				return
			}
			if len(r.Chains) != 1 || r.Chains[0].Trusted == nil || !*r.Chains[0].Trusted {
				t.Errorf("chains %+v", r.Chains)
			}
			for _, a := range r.ClientAuth {
				if len(a.CANames) != c.names || c.names > 0 && a.CANames[0] != "CN=root-ca" {
					t.Errorf("%s: CA names %q", a.Version, a.CANames)
				}
				if a.Requested && !slices.Contains(a.Signatures, "ecdsa_secp256r1_sha256") {
					t.Errorf("%s: signatures %q", a.Version, a.Signatures)
				}
				if c.verdict == "required" && a.Without.Alert == nil {
					t.Errorf("%s: no alert in %+v", a.Version, a.Without)
				}
				if a.Version == "TLS 1.3" && c.verdict == "required" && a.Without.Alert != nil && a.Without.Alert.Name != "certificate_required" {
					t.Errorf("alert %+v", a.Without.Alert)
				}
			}
			for _, v := range r.Versions {
				if v.Accepted && c.verdict != "required" && v.Resumption != "resumed" {
					t.Errorf("%s: resumption %s", v.Version, v.Resumption)
				}
			}
			if r.ALPN[0].Result == "accepted" || r.ALPN[1].Result != "accepted" {
				t.Errorf("ALPN %+v", r.ALPN)
			}
			if c.names == 0 {
				return
			}
			if fits, why := r.fit(t, "alice.pem"); !fits {
				t.Errorf("alice does not fit: %s", why)
			}
			for file, want := range map[string]string{"mallory.pem": "issuer", "carol.pem": "dates", "server-only.pem": "purpose", "root-ca.pem": "kind"} {
				if _, why := r.fit(t, file); !strings.Contains(why, want) {
					t.Errorf("%s fails for %q, expected %q", file, why, want)
				}
			}
		})
	}
}

// TestProbeRenegotiation: a server that asks for a certificate when the handshake is over.
func TestProbeRenegotiation(t *testing.T) {
	need(t, "openssl")
	p := newPKI(t)
	addr := freeAddress(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("openssl", "s_server", "-accept", addr, "-cert", p.server.file, "-key", p.server.keyFile, "-CAfile", p.root.file, "-tls1_2")
	cmd.Stdin = r
	out := start(t, cmd)
	await(t, func() bool { return strings.Contains(out.String(), "ACCEPT") })
	done := make(chan struct{})
	t.Cleanup(func() { close(done); w.Close(); r.Close() })
	go func() { // R is for renegotiation with a certificate, once for each handshake
		for seen := 0; ; {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
			if n := strings.Count(out.String(), "CIPHER is"); n > seen {
				seen = n
				_, _ = w.WriteString("R\n")
			}
		}
	}()
	if got := probe(t, addr, "--sni", "a.test"); !got.finding("renegotiation") || got.ClientCertificate != "not_requested" {
		t.Errorf("%s, %+v", got.ClientCertificate, got.Findings)
	}
}

// TestProbeTries sends a certificate to OpenSSL, and has the alerts put into words.
func TestProbeTries(t *testing.T) {
	need(t, "openssl")
	p := newPKI(t)
	addr := freeAddress(t)
	start(t, exec.Command("openssl", "s_server", "-accept", addr, "-cert", p.server.file, "-key", p.server.keyFile, "-www", "-quiet",
		"-Verify", "3", "-verify_return_error", "-CAfile", p.root.file), addr)
	for who, want := range map[*cert]string{p.alice: "", p.carol: "certificate_expired", p.mallory: "unknown_ca", p.serverOnly: "unsupported_certificate"} {
		t.Run(who.Subject.CommonName, func(t *testing.T) {
			r := probe(t, addr, "--sni", "a.test", "--ca", p.internal.file, "--cert", who.file, "--key", who.keyFile)
			for _, a := range r.ClientAuth {
				switch w := a.With; {
				case w == nil:
					t.Errorf("%s: it was not tried", a.Version)
				case want == "" && (w.Result != "accepted" || w.HTTP == nil || w.HTTP.Status != 200):
					t.Errorf("%s: %+v", a.Version, w)
				case want != "" && (w.Result != "refused" || w.Alert == nil || w.Alert.Name != want || w.Alert.Means == "" || w.Alert.Next == ""):
					t.Errorf("%s: %+v, alert %+v, expected %s", a.Version, w, w.Alert, want)
				}
			}
			if want == "" && r.Versions[0].Resumption != "resumed" {
				t.Errorf("resumption %s", r.Versions[0].Resumption)
			}
		})
	}
}

// TestProbeNginx: nginx completes the handshake and refuses by HTTP.
func TestProbeNginx(t *testing.T) {
	p := newPKI(t)
	on, optional, off, both, unknown := freeAddress(t), freeAddress(t), freeAddress(t), freeAddress(t), freeAddress(t)
	tail := func(addr, more string) string {
		return fmt.Sprintf("  server { listen %s ssl; ssl_certificate %s; ssl_certificate_key %s; ssl_protocols TLSv1.2 TLSv1.3; %s location / { return 200 ok; } }\n",
			addr, p.server.file, p.server.keyFile, more)
	}
	startNginx(t, tail(on, "ssl_verify_client on; ssl_client_certificate "+p.root.file+"; ssl_verify_depth 3;")+
		tail(optional, "ssl_verify_client optional; ssl_client_certificate "+p.root.file+";")+tail(off, "ssl_prefer_server_ciphers on;")+
		tail(both, "ssl_certificate "+p.serverRSA.file+"; ssl_certificate_key "+p.serverRSA.keyFile+";")+
		fmt.Sprintf("  server { listen %s ssl; ssl_reject_handshake on; }\n", unknown), on, optional, off, both, unknown)
	t.Run("on", func(t *testing.T) {
		r := probe(t, on, "--sni", "a.test", "--ca", p.internal.file, "--cert", p.carol.file, "--key", p.carol.keyFile)
		r.expect(t, "1.3 1.2", "required")
		for _, a := range r.ClientAuth {
			for how, w := range map[string]int{"without": a.Without.HTTP.Status, "with": a.With.HTTP.Status} {
				if w != 400 {
					t.Errorf("%s %s: %d", a.Version, how, w)
				}
			}
			if a.With.Result != "refused" {
				t.Errorf("an expired certificate: %+v", a.With)
			}
		}
		if !r.finding("required_by_http") {
			t.Error("it does not tell that HTTP refuses")
		}
	})
	t.Run("optional", func(t *testing.T) {
		probe(t, optional, "--sni", "a.test").expect(t, "1.3 1.2", "optional")
	})
	t.Run("off", func(t *testing.T) {
		r := probe(t, off, "--sni", "a.test", "--certs", p.dir)
		r.expect(t, "1.3 1.2", "not_requested")
		if !r.finding("nothing_to_fit") || r.Chains[0].Trusted == nil || *r.Chains[0].Trusted || !r.finding("missing_issuer") {
			t.Errorf("findings %+v, chains %+v", r.Findings, r.Chains)
		}
		if r.Versions[1].Order != "server" {
			t.Errorf("order %q", r.Versions[1].Order)
		}
	})
	t.Run("two keys", func(t *testing.T) {
		r := probe(t, both, "--sni", "a.test", "--ca", p.internal.file)
		var keys []string
		for _, c := range r.Chains {
			keys = append(keys, c.Key)
		}
		slices.Sort(keys)
		if strings.Join(keys, ", ") != "ECDSA P-256, RSA 2048" {
			t.Errorf("keys %q", keys)
		}
	})
	t.Run("unknown name", func(t *testing.T) {
		r := probe(t, unknown, "--sni", "a.test")
		r.expect(t, "", "unknown")
		if !r.finding("no_version") || !strings.Contains(r.Versions[1].Refused, "unrecognized_name") {
			t.Errorf("%+v", r.Versions)
		}
	})
}

func TestProbeHAProxy(t *testing.T) {
	need(t, "haproxy")
	p := newPKI(t)
	var pair []byte
	for _, file := range []string{p.server.file, p.server.keyFile} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pair = append(pair, b...)
	}
	both := write(t, p.dir, "both.pem", pair)
	required, optional, behind := freeAddress(t), freeAddress(t), freeAddress(t)
	conf := write(t, t.TempDir(), "haproxy.cfg", []byte(fmt.Sprintf(`
global
  maxconn 200
defaults
  mode http
  timeout connect 5s
  timeout client 20s
  timeout server 20s
frontend f
  bind %s ssl crt %s ca-file %s verify required alpn h2,http/1.1
  bind %s ssl crt %s ca-file %s verify optional
  bind %s ssl crt %s accept-proxy
  http-request return status 200 content-type text/plain string hello
`, required, both, p.root.file, optional, both, p.root.file, behind, both)))
	start(t, exec.Command("haproxy", "-f", conf, "-db"), required, optional, behind)
	r := probe(t, required, "--sni", "a.test", "--ca", p.internal.file, "--cert", p.alice.file, "--key", p.alice.keyFile)
	r.expect(t, "1.3 1.2", "required")
	if r.ALPN[0].Result != "accepted" || r.ALPN[1].Result != "accepted" || r.ClientAuth[0].With.HTTP == nil {
		t.Errorf("ALPN %+v, with %+v", r.ALPN, r.ClientAuth[0].With)
	}
	probe(t, optional, "--sni", "a.test").expect(t, "1.3 1.2", "optional")
	t.Run("no PROXY header", func(t *testing.T) {
		r := probe(t, behind, "--sni", "a.test")
		if r.Outcome != "not_tls" || r.Problem == nil || !strings.Contains(r.Problem.Next, "--proxy-protocol") {
			t.Errorf("%s: %+v", r.Outcome, r.Problem)
		}
	})
	for _, version := range []string{"v1", "v2"} {
		t.Run("PROXY "+version, func(t *testing.T) {
			probe(t, behind, "--sni", "a.test", "--proxy-protocol", version).expect(t, "1.3 1.2", "not_requested")
		})
	}
}

func TestProbeGnuTLS(t *testing.T) {
	need(t, "gnutls-cli", "gnutls-serv") // one package
	p := newPKI(t)
	for _, c := range []struct{ args, verdict string }{
		{"--require-client-cert --verify-client-cert", "required"},
		{"", "optional"}, // it asks unless told not to
		{"--disable-client-cert", "not_requested"},
	} {
		t.Run(c.verdict, func(t *testing.T) {
			addr := freeAddress(t)
			args := append([]string{"--priority", "NORMAL:-VERS-TLS1.0:-VERS-TLS1.1", "--http", "--quiet", "--port", portOf(addr), "--x509certfile", p.server.file, "--x509keyfile", p.server.keyFile, "--x509cafile", p.root.file},
				strings.Fields(c.args)...)
			start(t, exec.Command("gnutls-serv", args...), addr)
			probe(t, addr, "--sni", "a.test", "--ca", p.internal.file).expect(t, "1.3 1.2", c.verdict)
		})
	}
}

// TestProbeCountersign asks the program itself, with each mode.
func TestProbeCountersign(t *testing.T) {
	p := newPKI(t)
	backend := newEcho(t)
	b := serve(t, p, `
listeners:
  public:
    listen: $public
    protocol: https
    hosts:
      - {names: [a.test], certificate: &c {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, routes: &r [{upstream: api}]}
      - {names: [opt.test], certificate: *c, client_auth: {mode: request, trust_store: clients}, routes: *r}
      - {names: [off.test], certificate: *c, client_auth: {mode: "off"}, routes: *r}
upstreams: {api: {targets: ["http://$api"]}}
`, map[string]string{"api": backend.addr})
	for host, verdict := range map[string]string{"a.test": "required", "opt.test": "optional", "off.test": "not_requested"} {
		t.Run(host, func(t *testing.T) {
			r := probe(t, b.addr["public"], "--sni", host, "--ca", p.internal.file, "--certs", p.dir, "--cert", p.alice.file, "--key", p.alice.keyFile)
			r.expect(t, "1.3 1.2", verdict)
			if r.Chosen.Group != "X25519MLKEM768" || !slices.Contains(r.Versions[0].Groups, "P-384") {
				t.Errorf("chosen %+v, groups %v", r.Chosen, r.Versions[0].Groups)
			}
			for _, a := range r.ClientAuth {
				if verdict != "not_requested" && (a.With == nil || a.With.Result != "accepted") {
					t.Errorf("%s with a certificate: %+v", a.Version, a.With)
				}
			}
			if verdict != "not_requested" {
				if fits, why := r.fit(t, "alice.pem"); !fits {
					t.Errorf("alice does not fit: %s", why)
				}
			}
		})
	}
	t.Run("a plain port", func(t *testing.T) {
		r := probe(t, b.addr["ops"])
		if r.Outcome != "not_tls" || r.Problem.Code != "plain_http" {
			t.Errorf("%s: %+v", r.Outcome, r.Problem)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		r := probe(t, freeAddress(t))
		if r.Outcome != "unreachable" || r.Problem.Code != "connection_refused" {
			t.Errorf("%s: %+v", r.Outcome, r.Problem)
		}
	})
	t.Run("usage", func(t *testing.T) {
		for _, args := range [][]string{{}, {"a.test"}, {"a.test:1", "--starttls", "gopher"}, {"a.test:1", "--cert", "x"}, {"a.test:1", "--proxy-protocol", "v3"}, {"a.test:1", "--sni", "a b"}} {
			if r := run(t, nil, binary, append([]string{"probe"}, args...)...); r.code != 2 {
				t.Errorf("%q: %s", args, r)
			}
		}
	})
}

// TestProbeSilent: a server that takes connections and says nothing.
func TestProbeSilent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	began := time.Now()
	r := run(t, nil, binary, "probe", l.Addr().String(), "--timeout", "1s")
	if r.code != 1 || !strings.Contains(r.out, "did not answer within 1s") || time.Since(began) > 15*time.Second {
		t.Error(r)
	}
}

// TestProbeManyNames: a server that names hundreds of CAs is reported in bounded size; one that has more than TLS can carry
// fails every handshake, and the alert is put into words.
func TestProbeManyNames(t *testing.T) {
	need(t, "openssl")
	p := newPKI(t)
	key := newECDSA(t)
	dir := t.TempDir()
	var names [1000][]byte
	for i := range names {
		names[i] = pemOf(issue(t, dir, fmt.Sprintf("%s %d", strings.Repeat("n", 60), i), nil, key, isCA))
	}
	for n, verdict := range map[int]string{700: "required", 1000: "unknown"} {
		t.Run(fmt.Sprintf("B23/%d", n), func(t *testing.T) {
			file := write(t, p.dir, fmt.Sprint(n, ".cas"), slices.Concat(names[:n]...))
			addr := freeAddress(t)
			start(t, exec.Command("openssl", "s_server", "-accept", addr, "-cert", p.server.file, "-key", p.server.keyFile, "-www", "-quiet", "-Verify", "3", "-CAfile", file), addr)
			r := probe(t, addr, "--sni", "a.test")
			if len(r.ClientAuth) != 2 {
				t.Fatalf("%d versions", len(r.ClientAuth))
			}
			for _, a := range r.ClientAuth {
				if a.Verdict != verdict || verdict == "required" && (a.CANameCount != n || len(a.CANames) != 200) {
					t.Errorf("%s: %s, %d names, %d told", a.Version, a.Verdict, a.CANameCount, len(a.CANames))
				}
				if alert := a.Without.Alert; verdict == "unknown" && (alert == nil || alert.Name != "internal_error" || !strings.Contains(alert.Means, "CA names")) {
					t.Errorf("%s: alert %+v", a.Version, alert)
				}
			}
		})
	}
}
