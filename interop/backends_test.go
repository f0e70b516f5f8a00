package interop_test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// bridged is a configuration that sends /NAME/* to the upstream NAME over TLS.
const bridged = `
listeners:
  public:
    listen: $public
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        identity_headers: [alb]
        routes:
          - {match: {path: /mutual/*}, upstream: mutual}
          - {match: {path: /mutual12/*}, upstream: mutual12}
          - {match: {path: /none/*}, upstream: none}
          - {match: {path: /none12/*}, upstream: none12}
          - {match: {path: /misfit/*}, upstream: misfit}
          - {match: {path: /untrusted/*}, upstream: untrusted}
          - {match: {path: /misnamed/*}, upstream: misnamed}
          - {match: {path: /plain/*}, upstream: plain}
          - {match: {path: /gone/*}, upstream: gone}
upstreams:
  mutual:    {targets: ["https://$mutual"],    tls: {server_name: api.internal, trust_store: internal, client_certificates: [{cert: mallory.pem, key: mallory.key}, {cert: edge.pem, key: edge.key}]}}
  mutual12:  {targets: ["https://$mutual12"],  tls: {server_name: api.internal, trust_store: internal, client_certificates: [{cert: edge.pem, key: edge.key}]}}
  none:      {targets: ["https://$mutual"],    tls: {server_name: api.internal, trust_store: internal}}
  none12:    {targets: ["https://$mutual12"],  tls: {server_name: api.internal, trust_store: internal}}
  misfit:    {targets: ["https://$mutual"],    tls: {server_name: api.internal, trust_store: internal, client_certificates: [{cert: mallory.pem, key: mallory.key}]}}
  untrusted: {targets: ["https://$untrusted"], tls: {server_name: api.internal, trust_store: internal, client_certificates: [{cert: edge.pem, key: edge.key}]}}
  misnamed:  {targets: ["https://$misnamed"],  tls: {server_name: api.internal, trust_store: internal, client_certificates: [{cert: edge.pem, key: edge.key}]}}
  plain:     {targets: ["https://$unsafe"],    tls: {server_name: api.internal, trust_store: internal}}
  gone:      {targets: ["https://$gone"],      tls: {server_name: api.internal, trust_store: internal}}
`

// tlsBackend runs a server at the addresses: mutual, mutual12 (TLS 1.2 only), untrusted and misnamed require a client
// certificate of the internal CA, and unsafe speaks plain HTTP. It answers with whom it saw: "CN=edge for CN=alice".
type tlsBackend struct {
	name  string
	start func(t *testing.T, p *pki, addr map[string]string)
	// asks says that the server ends the handshake when a client has no certificate; otherwise it answers 400.
	asks bool
}

var tlsBackends = []tlsBackend{{"nginx", startNginxTLS, false}, {"haproxy", startHAProxy, true}}

func startNginxTLS(t *testing.T, p *pki, addr map[string]string) {
	var servers strings.Builder
	for _, s := range []struct{ name, cert, protocols string }{
		{"mutual", "backend", "TLSv1.3"}, {"mutual12", "backend", "TLSv1.2"},
		{"untrusted", "backend-untrusted", "TLSv1.2 TLSv1.3"}, {"misnamed", "backend-misnamed", "TLSv1.2 TLSv1.3"},
	} {
		fmt.Fprintf(&servers, `
  server {
    listen %s ssl;
    ssl_certificate %s; ssl_certificate_key %s; ssl_protocols %s;
    ssl_verify_client on; ssl_client_certificate %s;
    location / { return 200 "$ssl_client_s_dn for $http_x_amzn_mtls_clientcert_subject over $ssl_protocol"; }
  }`, addr[s.name], p.path(s.cert+".pem"), p.path(s.cert+".key"), s.protocols, p.internal.file)
	}
	fmt.Fprintf(&servers, "\n  server { listen %s; }\n", addr["unsafe"])
	startNginx(t, servers.String(), addr["mutual"], addr["mutual12"], addr["untrusted"], addr["misnamed"], addr["unsafe"])
}

// startNginx runs nginx with the given servers, and returns the folder it works in.
func startNginx(t *testing.T, servers string, addrs ...string) string {
	t.Helper()
	need(t, "nginx")
	dir := t.TempDir()
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;" // the workers read files of the test
	}
	conf := write(t, dir, "nginx.conf", []byte(`
daemon off; pid nginx.pid; error_log stderr warn; worker_processes 1; `+user+`
events { worker_connections 256; }
http {
  access_log off; default_type text/plain; client_max_body_size 8m; keepalive_timeout 30s;
  client_body_temp_path tmp-body; proxy_temp_path tmp-proxy; fastcgi_temp_path tmp-fastcgi; uwsgi_temp_path tmp-uwsgi; scgi_temp_path tmp-scgi;
`+servers+"}\n"))
	start(t, exec.Command("nginx", "-p", dir, "-c", conf, "-e", "stderr"), addrs...)
	return dir
}

func startHAProxy(t *testing.T, p *pki, addr map[string]string) {
	need(t, "haproxy")
	both := func(name string) string {
		var text []byte
		for _, ext := range []string{".pem", ".key"} {
			b, err := os.ReadFile(p.path(name + ext))
			if err != nil {
				t.Fatal(err)
			}
			text = append(text, b...)
		}
		return write(t, p.dir, name+".both", text)
	}
	vars := map[string]string{"ca": p.internal.file, "good": both("backend"), "foreign": both("backend-untrusted"), "other": both("backend-misnamed")}
	maps.Copy(vars, addr)
	conf := write(t, p.dir, "haproxy.cfg", []byte(os.Expand(`
global
  maxconn 200
defaults
  mode http
  timeout connect 5s
  timeout client 20s
  timeout server 20s
frontend api
  bind $mutual ssl crt $good ca-file $ca verify required ssl-min-ver TLSv1.3
  bind $mutual12 ssl crt $good ca-file $ca verify required ssl-max-ver TLSv1.2
  bind $untrusted ssl crt $foreign ca-file $ca verify required
  bind $misnamed ssl crt $other ca-file $ca verify required
  http-request return status 200 content-type text/plain lf-string "CN=%[ssl_c_s_dn(cn)] for %[req.hdr(X-Amzn-Mtls-Clientcert-Subject)] over %[ssl_fc_protocol]"
frontend unsafe
  bind $unsafe
  http-request return status 200
`, func(name string) string { return vars[name] })))
	start(t, exec.Command("haproxy", "-f", conf, "-db"), addr["mutual"], addr["mutual12"], addr["untrusted"], addr["misnamed"], addr["unsafe"])
}

func TestBridging(t *testing.T) {
	for _, backend := range tlsBackends {
		t.Run(backend.name, func(t *testing.T) {
			need(t, "curl", backend.name)
			p := newPKI(t)
			issue(t, p.dir, "backend", p.internal, newECDSA(t), forServer("api.internal"))
			issue(t, p.dir, "backend-untrusted", p.root, newECDSA(t), forServer("api.internal"))
			issue(t, p.dir, "backend-misnamed", p.internal, newECDSA(t), forServer("other.internal"))
			addr := map[string]string{}
			for _, name := range []string{"mutual", "mutual12", "untrusted", "misnamed", "unsafe", "gone"} {
				addr[name] = freeAddress(t)
			}
			backend.start(t, p, addr)
			b := serve(t, p, bridged, addr)
			get := func(t *testing.T, path string) (string, string) {
				r := b.curl(t, "public", p.alice, "--write-out", "%{stderr}status=%{http_code}", b.url("public", "a.test", path))
				if r.code != 0 {
					t.Fatalf("curl: %s", r)
				}
				_, status, _ := strings.Cut(r.err, "status=")
				return status, r.out
			}
			for path, protocol := range map[string]string{"/mutual/": "TLSv1.3", "/mutual12/": "TLSv1.2"} {
				t.Run("edge certificate over "+protocol, func(t *testing.T) {
					for i := range 3 {
						mark := b.mark()
						if status, body := get(t, path); status != "200" || body != "CN=edge for CN=alice over "+protocol {
							t.Errorf("got %s %q", status, body)
						}
						b.record(t, mark, "kind=request", "reason=completed", "target_reused="+map[bool]string{false: "<nil>", true: "true"}[i > 0])
					}
				})
			}
			for _, test := range []struct{ path, reason string }{
				{"/untrusted/", "upstream_cert_refused"},
				{"/misnamed/", "upstream_cert_refused"},
				{"/plain/", "upstream_tls_failed"},
				{"/gone/", "upstream_connect_failed"},
			} {
				t.Run(test.path, func(t *testing.T) {
					mark := b.mark()
					if status, body := get(t, test.path); status != "502" || strings.Contains(body, "internal") {
						t.Errorf("got %s %q", status, body)
					}
					b.record(t, mark, "kind=request", "reason="+test.reason, "status=502")
				})
			}
			for _, path := range []string{"/none/", "/none12/", "/misfit/"} {
				t.Run("no certificate of ours fits"+path, func(t *testing.T) {
					for range 5 { // the alert races with the close behind it
						mark := b.mark()
						status, body := get(t, path)
						if !backend.asks {
							// nginx finishes the handshake and says it in HTTP.
							if status != "400" || !strings.Contains(body, "No required SSL certificate was sent") {
								t.Errorf("got %s %q", status, body)
							}
							b.record(t, mark, "kind=request", "status=400", "reason=completed")
							continue
						}
						if status != "502" {
							t.Errorf("got %s %q", status, body)
						}
						b.record(t, mark, "kind=request", "status=502", "reason=upstream_client_cert_none")
					}
					if !strings.Contains(b.log.String(), "no client certificate for target") {
						t.Error("the operator is not told")
					}
				})
			}
		})
	}
}

func TestPassthrough(t *testing.T) {
	need(t, "openssl", "curl")
	p := newPKI(t)
	target := freeAddress(t)
	issue(t, p.dir, "behind", p.internal, newECDSA(t), forServer("b.test"))
	start(t, exec.Command("openssl", "s_server", "-accept", target, "-cert", p.path("behind.pem"), "-key", p.path("behind.key"),
		"-CAfile", p.root.file, "-Verify", "3", "-verify_return_error", "-www"), target)
	b := serve(t, p, `
listeners:
  public:
    listen: $public
    protocol: passthrough
    hosts:
      - {names: [b.test], upstream: behind}
      - {names: [off.test], upstream: gone}
upstreams:
  behind: {targets: ["tcp://$target"]}
  gone: {targets: ["tcp://$gone"]}
`, map[string]string{"target": target})
	for _, version := range []string{"1.2", "1.3"} {
		tls := []string{"--tlsv" + version, "--tls-max", version}
		t.Run("good/TLS "+version, func(t *testing.T) {
			mark := b.mark()
			r := b.curl(t, "public", p.dave, append(tls, b.url("public", "b.test", "/"))...)
			if r.code != 0 || !strings.Contains(r.out, "Subject: CN=dave") && !strings.Contains(r.out, "Subject: CN = dave") {
				t.Errorf("curl: %s", r)
			}
			b.record(t, mark, "kind=tunnel", "reason=tunnel_closed", "sni=b.test", "target="+target)
		})
		t.Run("the target's own refusal/TLS "+version, func(t *testing.T) {
			if r := b.curl(t, "public", p.mallory, append(tls, b.url("public", "b.test", "/"))...); r.code == 0 || !strings.Contains(r.err, "alert unknown ca") {
				t.Errorf("curl: %s", r)
			}
		})
		t.Run("unknown name/TLS "+version, func(t *testing.T) {
			mark := b.mark()
			if r := b.curl(t, "public", p.dave, append(tls, b.url("public", "a.test", "/"))...); r.code != 35 || !strings.Contains(r.err, "unrecognized name") {
				t.Errorf("curl: %s", r)
			}
			b.record(t, mark, "kind=handshake", "reason=sni_unknown", "sni=a.test")
		})
	}
	t.Run("target gone", func(t *testing.T) {
		mark := b.mark()
		if r := b.curl(t, "public", p.dave, b.url("public", "off.test", "/")); r.code != 35 {
			t.Errorf("curl: %s", r)
		}
		b.record(t, mark, "kind=tunnel", "reason=upstream_connect_failed", "sni=off.test")
	})
}
