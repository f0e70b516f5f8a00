package interop_test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// HAProxy stands in front at 127.0.0.1 and connects to us from 127.0.0.3; clients come from 127.0.0.2.
const behindProxy = `
listeners:
  public:
    listen: $public
    protocol: https
    proxy_protocol: {from: [127.0.0.3]}
    sources: [127.0.0.2, 127.0.0.3]
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes:
          - {match: {path: /near}, upstream: api, allow: 'connection.client_ip == "127.0.0.2"'}
          - {match: {path: /far}, upstream: api, allow: 'connection.client_ip == "127.0.0.3"'}
          - {upstream: api}
  chosen:
    listen: $chosen
    protocol: passthrough
    proxy_protocol: {from: [127.0.0.3]}
    hosts: [{names: [a.test], upstream: ours}]
  both:
    listen: $both
    protocol: http
    proxy_protocol: {from: [127.0.0.3], unlisted: plain}
    forwarded: {mode: append, trusted: [127.0.0.2], client_address: x_forwarded_for, port: true, rfc7239: true}
    hosts: [{names: [a.test], routes: [{upstream: api}]}]
upstreams:
  api: {targets: ["http://$echo"]}
  ours: {targets: ["tcp://$inner"]}
`

// startFront runs HAProxy, which hands connections to its addresses on to ours as opts of its server lines say.
func startFront(t *testing.T, to map[string]string, opts map[string]string) map[string]string {
	t.Helper()
	need(t, "haproxy")
	var conf strings.Builder
	conf.WriteString("global\n  maxconn 200\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 20s\n  timeout server 20s\n")
	addr := map[string]string{}
	var all []string
	for name, server := range opts {
		listener, _, _ := strings.Cut(name, " ")
		addr[name] = freeAddress(t)
		all = append(all, addr[name])
		fmt.Fprintf(&conf, "listen x%d\n  bind %s\n  unique-id-format %%{+X}o%%ci_%%cp\n  server s %s source 127.0.0.3 %s\n", len(all), addr[name], to[listener], server)
	}
	file := write(t, t.TempDir(), "front.cfg", []byte(conf.String()))
	start(t, exec.Command("haproxy", "-f", file, "-db"), all...)
	return addr
}

// TestProxyProtocolIn: connections that HAProxy hands on are those of its clients, whatever the version; without the
// header they are nobody's.
func TestProxyProtocolIn(t *testing.T) {
	need(t, "curl", "haproxy")
	p := newPKI(t)
	backend := newEcho(t)
	b := serve(t, p, behindProxy, map[string]string{"echo": backend.addr, "inner": freeAddress(t)})
	const everything = "send-proxy-v2 proxy-v2-options ssl,cert-cn,ssl-cipher,authority,crc32c,unique-id"
	front := startFront(t, b.addr, map[string]string{
		"public none": "", "public v1": "send-proxy", "public v2": "send-proxy-v2", "public all": everything, "both v2": everything, "chosen v1": "send-proxy",
	})
	ask := func(t *testing.T, at, scheme, path string, args ...string) result {
		b.addr["front"] = at
		args = append([]string{"--interface", "127.0.0.2", "--fail-with-body"}, args...)
		return b.curl(t, "front", p.alice, append(args, scheme+"://a.test:"+portOf(at)+path)...)
	}

	t.Run("F03/no header", func(t *testing.T) {
		mark, before := b.mark(), backend.touched()
		if r := ask(t, front["public none"], "https", "/"); r.code == 0 {
			t.Errorf("served: %s", r)
		}
		b.record(t, mark, "reason=proxy_header_invalid")
		if backend.touched() != before {
			t.Error("the backend was reached")
		}
	})
	t.Run("F03/from elsewhere", func(t *testing.T) {
		mark, before := b.mark(), backend.touched()
		if r := ask(t, b.addr["public"], "https", "/", "--haproxy-protocol"); r.code == 0 {
			t.Errorf("served: %s", r)
		}
		b.record(t, mark, "reason=proxy_source_refused")
		if backend.touched() != before {
			t.Error("the backend was reached")
		}
	})
	for _, version := range []string{"v1", "v2", "all"} {
		t.Run(version, func(t *testing.T) {
			mark := b.mark()
			r := ask(t, front["public "+version], "https", "/near")
			if r.code != 0 {
				t.Fatalf("refused: %s", r)
			}
			if s := backend.parse(t, r.out); s.Header.Get("X-Forwarded-For") != "127.0.0.2" || s.Header.Get("X-Forwarded-Port") != portOf(front["public "+version]) {
				t.Errorf("told %v", s.Header)
			}
			if m := b.record(t, mark, "kind=request", "reason=completed"); !strings.HasPrefix(fmt.Sprint(m["client"]), "127.0.0.2:") {
				t.Errorf("recorded %v", m)
			}
			if r := ask(t, front["public "+version], "https", "/far"); r.code == 0 {
				t.Errorf("the proxy's address counts: %s", r)
			}
		})
	}
	t.Run("forwarded by an address in a PROXY header", func(t *testing.T) {
		r := ask(t, front["both v2"], "http", "/", "-H", "X-Forwarded-For: 1.1.1.1, 192.0.2.9", "-H", "X-Forwarded-Proto: https")
		s := backend.parse(t, r.out)
		list := s.Header.Get("X-Forwarded-For")
		if !strings.HasPrefix(list, "1.1.1.1, 192.0.2.9, 127.0.0.2:") || s.Header.Get("X-Forwarded-Proto") != "http" || !strings.HasPrefix(s.Header.Get("Forwarded"), `for="127.0.0.2:`) {
			t.Errorf("told %v", s.Header)
		}
		b.record(t, 0, "kind=request", "client=192.0.2.9")
	})
	t.Run("D15/forwarded by somebody else", func(t *testing.T) {
		b.addr["front"] = b.addr["both"]
		r := b.curl(t, "front", nil, "--interface", "127.0.0.4", "-H", "X-Forwarded-For: 1.1.1.1", "-H", "Forwarded: for=1.1.1.1", "http://a.test:"+portOf(b.addr["both"])+"/")
		if s := backend.parse(t, r.out); !strings.HasPrefix(s.Header.Get("X-Forwarded-For"), "127.0.0.4:") || strings.Contains(fmt.Sprint(s.Header), "1.1.1.1") {
			t.Errorf("told %v", s.Header)
		}
	})
	t.Run("passthrough", func(t *testing.T) {
		mark := b.mark()
		_ = ask(t, front["chosen v1"], "https", "/") // nobody is there; who asked is recorded
		if m := b.record(t, mark, "listener=chosen"); !strings.HasPrefix(fmt.Sprint(m["client"]), "127.0.0.2:") || m["sni"] != "a.test" {
			t.Errorf("recorded %v", m)
		}
	})
}

// announcing is a configuration that tells targets who connects.
const announcing = `
listeners:
  public:
    listen: $public
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes:
          - {match: {path: /v1}, upstream: v1}
          - {upstream: v2}
upstreams:
  v1: {targets: ["http://$target"], proxy_protocol: {version: v1}}
  v2: {targets: ["http://$target"], proxy_protocol: {version: v2, tlvs: [alpn, authority, crc32c, unique_id, cn, client_cert, server_cert]}}
`

// TestProxyProtocolOut: what HAProxy and nginx understand of the headers that targets get.
func TestProxyProtocolOut(t *testing.T) {
	for name, startTarget := range map[string]func(t *testing.T, addr string){
		"haproxy": func(t *testing.T, addr string) {
			need(t, "haproxy")
			conf := write(t, t.TempDir(), "target.cfg", []byte("global\n  maxconn 200\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 20s\n  timeout server 20s\nfrontend x\n  bind "+addr+
				" accept-proxy\n  http-request return status 200 content-type text/plain lf-string \"%[src] %[dst_port] %[fc_pp_authority]\"\n"))
			start(t, exec.Command("haproxy", "-f", conf, "-db"), addr)
		},
		"nginx": func(t *testing.T, addr string) {
			startNginx(t, "server { listen "+addr+" proxy_protocol; location / { return 200 \"$proxy_protocol_addr $proxy_protocol_server_port a.test\"; } }", addr)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPKI(t)
			target := freeAddress(t)
			startTarget(t, target)
			b := serve(t, p, announcing, map[string]string{"target": target})
			for _, path := range []string{"/v1", "/v2"} {
				for _, from := range []string{"127.0.0.2", "127.0.0.5", "127.0.0.2"} {
					t.Run("D13"+path+" from "+from, func(t *testing.T) {
						r := b.curl(t, "public", p.alice, "--interface", from, "--fail-with-body", b.url("public", "a.test", path), b.url("public", "a.test", path))
						want := from + " " + portOf(b.addr["public"]) + " a.test"
						if path == "/v1" && name == "haproxy" {
							want = from + " " + portOf(b.addr["public"]) + " "
						}
						if r.out != want+want {
							t.Errorf("the target saw %q, expected %q twice\n%s", r.out, want, r)
						}
					})
				}
			}
		})
	}
}
