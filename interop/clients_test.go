package interop_test

import (
	"strings"
	"testing"
)

// asked is a configuration with every kind of client auth, before an echo.
const asked = `
listeners:
  public:
    listen: $public
    protocol: https
    hosts:
      - names: [a.test]
        certificates: [{cert: server.pem, key: server.key}, {cert: server-rsa.pem, key: server-rsa.key}]
        client_auth: {mode: require, trust_store: clients}
        identity_headers: [rfc9440, alb]
        routes: [{upstream: api}]
      - names: [opt.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: request, trust_store: clients}
        routes: [{upstream: api}]
      - names: [reset.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients, on_failure: reset}
        routes: [{upstream: api}]
      - names: [off.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: off}
        routes: [{upstream: api}]
  plain:
    listen: $plain
    protocol: http
    hosts: [{names: [off.test], routes: [{upstream: api}]}]
upstreams:
  api: {targets: ["http://$api"]}
`

// caller is a client certificate and what becomes of it.
type caller struct {
	name   string
	cert   *cert
	reason string // completed if it is let in
}

func callers(p *pki) []caller {
	return []caller{
		{"missing", nil, "client_cert_missing"},
		{"expired", p.carol, "client_cert_expired"},
		{"revoked", p.bob, "client_cert_revoked"},
		{"foreign", p.mallory, "client_cert_untrusted"},
		{"serverAuth only", p.serverOnly, "client_cert_eku"},
		{"ECDSA", p.alice, "completed"},
		{"RSA", p.dave, "completed"},
		{"Ed25519", p.erin, "completed"},
	}
}

func (c *caller) good() bool { return c.reason == "completed" }

// alert is the number and the OpenSSL text of the alert that refuses c. A missing certificate has an alert of its own in
// TLS 1.3 only; for the others crypto/tls sends bad_certificate.
func (c *caller) alert(version string) (string, string) {
	switch {
	case c.cert != nil:
		return "42", "alert bad certificate"
	case version == "1.3":
		return "116", "alert certificate required"
	}
	return "40", "alert handshake failure"
}

// refused checks the records after a refusal: one handshake with the reason and the certificate at fault, no request, and
// nothing at the backend.
func (c *caller) refused(t *testing.T, b *balancer, backend *echo, mark, before int, version string) {
	t.Helper()
	r := b.record(t, mark, "kind=handshake", "reason="+c.reason, "tls=TLS "+version, "sni=a.test")
	if at, ok := r["certificate_at_fault"].(map[string]any); c.cert == nil && ok {
		t.Errorf("a certificate is at fault although none was sent: %v", at)
	} else if c.cert != nil && (at == nil || at["subject"] != "CN="+c.cert.Subject.CommonName) {
		t.Errorf("at fault is %v; want CN=%s", at, c.cert.Subject.CommonName)
	}
	b.noRequest(t, r)
	if now := backend.touched(); now != before {
		t.Errorf("the backend was reached: %d events before, %d after", before, now)
	}
}

func TestCurl(t *testing.T) {
	need(t, "curl")
	p, backend := newPKI(t), newEcho(t)
	b := serve(t, p, asked, map[string]string{"api": backend.addr})
	for _, version := range []string{"1.2", "1.3"} {
		tls := []string{"--tlsv" + version, "--tls-max", version}
		for _, c := range callers(p) {
			t.Run(c.name+"/TLS "+version, func(t *testing.T) {
				mark, before := b.mark(), backend.touched()
				r := b.curl(t, "public", c.cert, append(tls, b.url("public", "a.test", "/x?y=1"))...)
				if c.good() {
					if r.code != 0 {
						t.Fatalf("curl: %s", r)
					}
					s := backend.parse(t, r.out)
					if subject := s.Header.Get("X-Amzn-Mtls-Clientcert-Subject"); subject != "CN="+c.cert.Subject.CommonName {
						t.Errorf("subject %q", subject)
					}
					if s.Target != "/x?y=1" || !strings.HasPrefix(s.Header.Get("Client-Cert"), ":MI") {
						t.Errorf("the backend saw %+v", s)
					}
					b.record(t, mark, "kind=handshake", "reason=completed", "tls=TLS "+version)
					b.record(t, mark, "kind=request", "reason=completed", "status=200", "client_subject=CN="+c.cert.Subject.CommonName)
					return
				}
				// In TLS 1.3 the client has finished when the server judges it, so it learns when it reads.
				code := 56
				if version == "1.2" {
					code = 35
				}
				if _, text := c.alert(version); r.code != code || r.out != "" || !strings.Contains(r.err, text) {
					t.Errorf("want exit status %d and %q; curl: %s", code, text, r)
				}
				c.refused(t, b, backend, mark, before, version)
			})
			if c.good() {
				continue
			}
			t.Run("reset/"+c.name+"/TLS "+version, func(t *testing.T) {
				mark, before := b.mark(), backend.touched()
				r := b.curl(t, "public", c.cert, append(tls, b.url("public", "reset.test", "/"))...)
				if r.code != 35 && r.code != 55 && r.code != 56 || !strings.Contains(r.err, "reset by peer") || strings.Contains(r.err, " alert ") {
					t.Errorf("want a reset and no alert; curl: %s", r)
				}
				b.noRequest(t, b.record(t, mark, "kind=handshake", "reason="+c.reason))
				if backend.touched() != before {
					t.Error("the backend was reached")
				}
			})
		}
	}
	t.Run("wrong certificate where one is only asked for", func(t *testing.T) {
		mark, before := b.mark(), backend.touched()
		if r := b.curl(t, "public", p.bob, b.url("public", "opt.test", "/")); r.code != 56 || !strings.Contains(r.err, "alert bad certificate") {
			t.Errorf("curl: %s", r)
		}
		b.record(t, mark, "kind=handshake", "reason=client_cert_revoked", "client_auth=request")
		if backend.touched() != before {
			t.Error("the backend was reached")
		}
	})
	t.Run("no certificate where one is only asked for", func(t *testing.T) {
		r := b.curl(t, "public", nil, "-H", "Client-Cert: :AAAA:", "-H", "X-Amzn-Mtls-Clientcert-Subject: CN=alice",
			"-H", "X_Amzn_Mtls_Clientcert_Subject: CN=alice", b.url("public", "opt.test", "/"))
		if r.code != 0 {
			t.Fatalf("curl: %s", r)
		}
		for name := range backend.parse(t, r.out).Header {
			if low := strings.ToLower(name); strings.Contains(low, "client-cert") || strings.Contains(low, "mtls") {
				t.Errorf("the backend was sent %s, which the client made up", name)
			}
		}
	})
	t.Run("identity made up on the plain listener", func(t *testing.T) {
		r := b.curl(t, "plain", nil, "-H", "Client-Cert: :AAAA:", "-H", "X-Forwarded-For: 192.0.2.1", b.url("plain", "off.test", "/"))
		if r.code != 0 {
			t.Fatalf("curl: %s", r)
		}
		if h := backend.parse(t, r.out).Header; h.Get("Client-Cert") != "" || h.Get("X-Forwarded-For") != "127.0.0.1" {
			t.Errorf("the backend was sent %v", h)
		}
	})
	t.Run("another server name", func(t *testing.T) {
		mark, before := b.mark(), backend.touched()
		if r := b.curl(t, "public", p.alice, b.url("public", "b.test", "/")); r.code != 35 || !strings.Contains(r.err, "unrecognized name") {
			t.Errorf("curl: %s", r)
		}
		b.record(t, mark, "kind=handshake", "reason=sni_unknown")
		if r := b.curl(t, "public", p.alice, "-k", "https://"+b.addr["public"]+"/"); r.code != 35 || !strings.Contains(r.err, "unrecognized name") {
			t.Errorf("curl: %s", r)
		}
		b.record(t, mark, "kind=handshake", "reason=sni_missing")
		if backend.touched() != before {
			t.Error("the backend was reached")
		}
	})
	t.Run("Host of another policy", func(t *testing.T) {
		mark, before := b.mark(), backend.touched()
		r := b.curl(t, "public", nil, "-H", "Host: a.test", b.url("public", "off.test", "/"))
		if r.code != 0 || !strings.Contains(r.err, "HTTP/1.1 421 ") {
			t.Errorf("curl: %s", r)
		}
		b.record(t, mark, "kind=request", "reason=policy_mismatch", "status=421")
		if backend.touched() != before {
			t.Error("the backend was reached")
		}
	})
	t.Run("plain HTTP to the TLS port", func(t *testing.T) {
		mark := b.mark()
		if r := b.curl(t, "public", nil, "http://"+b.addr["public"]+"/"); r.code != 0 || !strings.Contains(r.err, "HTTP/1.1 400 ") {
			t.Errorf("curl: %s", r)
		}
		b.record(t, mark, "kind=handshake", "reason=plain_http_on_tls")
	})
	t.Run("RSA only", func(t *testing.T) {
		r := b.curl(t, "public", p.alice, "--tls-max", "1.2", "--ciphers", "ECDHE-RSA-AES128-GCM-SHA256", b.url("public", "a.test", "/"))
		if r.code != 0 || !strings.Contains(r.err, "ECDHE-RSA-AES128-GCM-SHA256") {
			t.Errorf("curl: %s", r)
		}
	})
	t.Run("no cipher in common", func(t *testing.T) {
		mark := b.mark()
		r := b.curl(t, "public", p.alice, "--tls-max", "1.2", "--ciphers", "AES128-SHA", b.url("public", "a.test", "/"))
		if r.code != 35 || !strings.Contains(r.err, "alert handshake failure") {
			t.Errorf("curl: %s", r)
		}
		b.record(t, mark, "kind=handshake", "reason=no_common_cipher")
	})
	t.Run("the client does not trust us", func(t *testing.T) {
		for version, want := range map[string]string{
			"1.2": "reason=client_alert",
			"1.3": "stage=handshake", // OpenSSL sends its alert in the clear where crypto/tls wants it encrypted, so it cannot be read
		} {
			mark := b.mark()
			r := b.curl(t, "public", p.alice, "--cacert", p.root.file, "--tlsv"+version, "--tls-max", version, b.url("public", "a.test", "/"))
			if r.code != 60 {
				t.Errorf("curl: %s", r)
			}
			b.record(t, mark, "kind=handshake", want, "fault=client")
		}
	})
}

func TestOpenSSLClient(t *testing.T) {
	need(t, "openssl")
	p, backend := newPKI(t), newEcho(t)
	b := serve(t, p, asked, map[string]string{"api": backend.addr})
	connect := func(t *testing.T, version string, who *cert, more ...string) result {
		args := []string{"s_client", "-connect", b.addr["public"], "-servername", "a.test", "-CAfile", p.internal.file,
			"-verify_return_error", "-tls" + strings.ReplaceAll(version, ".", "_"), "-ign_eof"}
		if who != nil {
			args = append(args, "-cert", who.file, "-cert_chain", who.file, "-key", who.keyFile)
		}
		return run(t, open(t, "GET /s HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"), "openssl", append(args, more...)...)
	}
	for _, version := range []string{"1.2", "1.3"} {
		for _, c := range callers(p) {
			t.Run(c.name+"/TLS "+version, func(t *testing.T) {
				mark, before := b.mark(), backend.touched()
				r := connect(t, version, c.cert)
				if c.good() {
					if r.code != 0 || !strings.Contains(r.out, "HTTP/1.1 200 OK") {
						t.Errorf("openssl: %s", r)
					}
					b.record(t, mark, "kind=request", "reason=completed", "client_subject=CN="+c.cert.Subject.CommonName)
					return
				}
				if number, text := c.alert(version); r.code != 1 || !strings.Contains(r.err, text) || !strings.Contains(r.err, "SSL alert number "+number) {
					t.Errorf("want exit status 1, %q, number %s; openssl: %s", text, number, r)
				}
				c.refused(t, b, backend, mark, before, version)
			})
		}
		t.Run("acceptable CA names/TLS "+version, func(t *testing.T) {
			r := connect(t, version, p.alice)
			_, list, _ := strings.Cut(r.out, "Acceptable client certificate CA names\n")
			list, _, _ = strings.Cut(list, "\n")
			if list != "CN = root-ca" {
				t.Errorf("CA names %q; openssl: %s", list, r)
			}
		})
	}
	for _, test := range []struct {
		reason, version, alert string
		args                   []string
	}{
		{"tls_version_unsupported", "1.1", "protocol version", []string{"-cipher", "ALL:@SECLEVEL=0"}},
		{"no_common_cipher", "1.2", "handshake failure", []string{"-cipher", "AES256-SHA"}},
		{"no_common_group", "1.3", "handshake failure", []string{"-groups", "X448"}},
		{"no_common_signature", "1.3", "handshake failure", []string{"-sigalgs", "rsa_pss_rsae_sha256", "-servername", "opt.test"}},
		{"no_common_protocol", "1.3", "no application protocol", []string{"-alpn", "imap"}},
	} {
		t.Run(test.reason, func(t *testing.T) {
			mark := b.mark()
			if r := connect(t, test.version, p.alice, test.args...); r.code != 1 || !strings.Contains(r.err, test.alert) {
				t.Errorf("openssl: %s", r)
			}
			b.record(t, mark, "kind=handshake", "reason="+test.reason)
		})
	}
}

func TestGnuTLSClient(t *testing.T) {
	need(t, "gnutls-cli")
	p, backend := newPKI(t), newEcho(t)
	b := serve(t, p, asked, map[string]string{"api": backend.addr})
	for _, version := range []string{"1.2", "1.3"} {
		for _, c := range callers(p) {
			t.Run(c.name+"/TLS "+version, func(t *testing.T) {
				mark, before := b.mark(), backend.touched()
				args := []string{"--x509cafile", p.internal.file, "--sni-hostname", "a.test", "--verify-hostname", "a.test", "--port", portOf(b.addr["public"]),
					"--priority", "NORMAL:-VERS-ALL:+VERS-TLS" + version}
				if c.cert != nil {
					args = append(args, "--x509certfile", c.cert.file, "--x509keyfile", c.cert.keyFile)
				}
				r := run(t, open(t, "GET /g HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"), "gnutls-cli", append(args, "127.0.0.1")...)
				if c.good() {
					if r.code != 0 || !strings.Contains(r.out, "HTTP/1.1 200 OK") {
						t.Errorf("gnutls-cli: %s", r)
					}
					b.record(t, mark, "kind=request", "reason=completed", "client_subject=CN="+c.cert.Subject.CommonName)
					return
				}
				if number, _ := c.alert(version); r.code != 1 || !strings.Contains(r.out+r.err, "Received alert ["+number+"]") {
					t.Errorf("want exit status 1 and alert %s; gnutls-cli: %s", number, r)
				}
				c.refused(t, b, backend, mark, before, version)
			})
		}
	}
}
