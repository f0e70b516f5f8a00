package interop_test

import (
	"fmt"
	"strings"
	"testing"
)

// announced is a configuration that reads PROXY headers of proxies in front, and none on the listener bare.
const announced = `
listeners:
  public:
    listen: $public
    protocol: https
    proxy_protocol: {from: [127.0.0.1]}
    hosts: [{names: [a.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, identity_headers: [alb], routes: [{upstream: api}]}]
  mixed:
    listen: $mixed
    protocol: https
    proxy_protocol: {from: [127.0.0.7], unlisted: plain}
    hosts: [{names: [a.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, identity_headers: [alb], routes: [{upstream: api}]}]
  others:
    listen: $others
    protocol: https
    proxy_protocol: {from: [127.0.0.7]}
    hosts: [{names: [a.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, routes: [{upstream: api}]}]
  plain:
    listen: $plain
    protocol: http
    proxy_protocol: {from: [127.0.0.1]}
    hosts: [{names: [off.test], routes: [{upstream: api}]}]
upstreams:
  api: {targets: ["http://$api"]}
`

// TestAnnounced has HAProxy announce its clients to us, in each version it can, with TLS left alone and with TLS
// ended there.
func TestAnnounced(t *testing.T) {
	need(t, "curl", "haproxy")
	p, backend := newPKI(t), newEcho(t)
	b := serve(t, p, announced, map[string]string{"api": backend.addr})
	var conf strings.Builder
	var addrs []string
	front := func(name, bind, target, options string) {
		b.addr[name] = freeAddress(t)
		addrs = append(addrs, b.addr[name])
		fmt.Fprintf(&conf, "listen %s\n  mode tcp\n  bind %s%s\n  server us %s %s\n", name, b.addr[name], bind, target, options)
	}
	front("v1", "", b.addr["public"], "send-proxy")
	front("v2", "", b.addr["public"], "send-proxy-v2")
	front("v2-ssl-cn", "", b.addr["public"], "send-proxy-v2-ssl-cn proxy-v2-options unique-id,crc32c,authority")
	front("ended", " ssl crt "+both(t, p.server)+" ca-file "+p.root.file+" verify required alpn http/1.1", b.addr["plain"], "send-proxy-v2-ssl-cn proxy-v2-options authority,cert-sig,cert-key,ssl-cipher,crc32c")
	front("silent", "", b.addr["public"], "")
	front("unlisted", "", b.addr["others"], "send-proxy-v2")
	proxies(t, strings.ReplaceAll(conf.String(), "listen v2-ssl-cn\n", "listen v2-ssl-cn\n  unique-id-format %{+X}o%pid%rt\n"), addrs...)

	for _, front := range []string{"v1", "v2", "v2-ssl-cn", "ended"} {
		for _, from := range []string{"127.0.0.1", "127.0.0.2"} {
			t.Run(front+"/"+from, func(t *testing.T) {
				host := "a.test"
				if front == "ended" {
					host = "off.test"
				}
				mark := b.mark()
				r := b.curl(t, front, p.alice, "--interface", from, "-H", "X-Forwarded-For: 192.0.2.1", "-w", "\n%{local_port}", b.url(front, host, "/x"))
				if r.code != 0 {
					t.Fatalf("curl: %s", r)
				}
				end := strings.LastIndex(r.out, "\n")
				body, port := r.out[:end], r.out[end+1:]
				h := backend.parse(t, body).Header
				if got := h.Get("X-Forwarded-For"); got != from {
					t.Errorf("X-Forwarded-For: %q; want %s", got, from)
				}
				if subject := h.Get("X-Amzn-Mtls-Clientcert-Subject"); host == "a.test" && subject != "CN=alice" || host == "off.test" && subject != "" {
					t.Errorf("the backend was told of client %q", subject)
				}
				b.record(t, mark, "kind=request", "reason=completed", "client="+from+":"+port)
			})
		}
	}
	t.Run("the header alone is not an identity", func(t *testing.T) {
		mark, before := b.mark(), backend.touched()
		if r := b.curl(t, "v2-ssl-cn", nil, b.url("v2-ssl-cn", "a.test", "/")); r.code == 0 {
			t.Errorf("curl: %s", r)
		}
		b.noRequest(t, b.record(t, mark, "kind=handshake", "reason=client_cert_missing"))
		if backend.touched() != before {
			t.Error("the backend was reached")
		}
	})
	for _, test := range []struct{ name, listener, reason string }{
		{"no header from a listed proxy", "silent", "proxy_header_invalid"},
		{"header from a proxy that is not listed", "unlisted", "proxy_source_refused"},
		{"no header from a client", "public", "proxy_header_invalid"},
		{"client that is not listed", "others", "proxy_source_refused"},
	} {
		t.Run(test.name, func(t *testing.T) {
			mark, before := b.mark(), backend.touched()
			if r := b.curl(t, test.listener, p.alice, b.url(test.listener, "a.test", "/")); r.code == 0 || r.out != "" {
				t.Errorf("curl: %s", r)
			}
			b.record(t, mark, "reason="+test.reason)
			if backend.touched() != before {
				t.Error("the backend was reached")
			}
		})
	}
	t.Run("header in the place of TLS where none is read", func(t *testing.T) {
		// unlisted: plain lets the client in, but what it says of itself is nothing that this listener reads.
		mark, before := b.mark(), backend.touched()
		if r := b.curl(t, "mixed", p.alice, "--haproxy-protocol", b.url("mixed", "a.test", "/")); r.code == 0 {
			t.Errorf("curl: %s", r)
		}
		b.record(t, mark, "kind=handshake", "reason=not_tls")
		if backend.touched() != before {
			t.Error("the backend was reached")
		}
		if r := b.curl(t, "mixed", p.alice, b.url("mixed", "a.test", "/")); r.code != 0 || backend.parse(t, r.out).Header.Get("X-Forwarded-For") != "127.0.0.1" {
			t.Errorf("curl: %s", r)
		}
	})
	t.Run("curl as the proxy", func(t *testing.T) {
		if r := b.curl(t, "public", p.alice, "--haproxy-protocol", b.url("public", "a.test", "/")); r.code != 0 || backend.parse(t, r.out).Header.Get("X-Forwarded-For") != "127.0.0.1" {
			t.Errorf("curl: %s", r)
		}
	})
	t.Run("many, by turns", func(t *testing.T) {
		for i := range 20 {
			from := []string{"127.0.0.2", "127.0.0.3"}[i%2]
			r := b.curl(t, "v2", p.alice, "--interface", from, b.url("v2", "a.test", "/"))
			if r.code != 0 || backend.parse(t, r.out).Header.Get("X-Forwarded-For") != from {
				t.Fatalf("curl: %s", r)
			}
		}
	})
}

// announcement is a configuration that announces its clients to targets, behind mutual TLS.
const announcement = `
listeners:
  public:
    listen: $public
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes:
          - {match: {path: /haproxy-v1/*}, upstream: haproxy-v1}
          - {match: {path: /haproxy-v2/*}, upstream: haproxy-v2}
          - {match: {path: /haproxy-tls/*}, upstream: haproxy-tls}
          - {match: {path: /nginx-v1/*}, upstream: nginx-v1}
          - {match: {path: /nginx-v2/*}, upstream: nginx-v2}
          - {match: {path: /none/*}, upstream: none}
upstreams:
  haproxy-v1: {targets: ["http://$haproxy"], proxy_protocol: {version: v1}}
  haproxy-v2: {targets: ["http://$haproxy"], proxy_protocol: {version: v2, tlvs: [alpn, authority, crc32c, unique_id, tls, cn, client_cert, server_cert]}}
  haproxy-tls:
    targets: ["https://$mutual"]
    proxy_protocol: {version: v2, tlvs: [authority, crc32c, cn]}
    tls: {server_name: api.internal, trust_store: internal, client_certificates: [{cert: edge.pem, key: edge.key}]}
  nginx-v1: {targets: ["http://$nginx"], proxy_protocol: {version: v1}}
  nginx-v2: {targets: ["http://$nginx"], proxy_protocol: {version: v2, tlvs: [alpn, authority, crc32c, unique_id, tls, cn, client_cert, server_cert]}}
  none: {targets: ["http://$haproxy"]}
`

// TestAnnouncement has HAProxy and nginx read what we announce.
func TestAnnouncement(t *testing.T) {
	need(t, "curl", "haproxy", "nginx")
	p := newPKI(t)
	shown := issue(t, p.dir, "behind", p.internal, newECDSA(t), forServer("api.internal"))
	addr := map[string]string{"haproxy": freeAddress(t), "mutual": freeAddress(t), "nginx": freeAddress(t)}
	proxies(t, fmt.Sprintf(`
frontend api
  mode http
  bind %s accept-proxy
  bind %s accept-proxy ssl crt %s ca-file %s verify required
  http-request return status 200 content-type text/plain lf-string "%%[src]:%%[src_port] to %%[dst]:%%[dst_port] for %%[fc_pp_authority] id %%[fc_pp_unique_id,hex,length]"
`, addr["haproxy"], addr["mutual"], both(t, shown), p.internal.file), addr["haproxy"], addr["mutual"])
	startNginx(t, `
  server {
    listen `+addr["nginx"]+` proxy_protocol;
    location / { return 200 "$proxy_protocol_addr:$proxy_protocol_port to $proxy_protocol_server_addr:$proxy_protocol_server_port"; }
  }
`, addr["nginx"])
	b := serve(t, p, announcement, addr)
	for _, test := range []struct{ upstream, authority, id string }{
		{"haproxy-v1", "", ""}, {"haproxy-v2", "a.test", "some"}, {"haproxy-tls", "a.test", ""}, {"nginx-v1", "-", ""}, {"nginx-v2", "-", ""},
	} {
		for _, version := range []string{"--http1.1", "--http2"} {
			t.Run(test.upstream+"/"+version[2:], func(t *testing.T) {
				// By turns, so that a connection that was kept for one client would be seen in the hands of the other; each asks
				// three times on its own connection.
				for _, from := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.3"} {
					url := b.url("public", "a.test", "/"+test.upstream+"/x")
					r := b.curl(t, "public", p.alice, version, "--interface", from, "-w", "\n%{local_port}\n", url, url, url)
					if r.code != 0 {
						t.Fatalf("curl: %s", r)
					}
					lines := strings.Split(strings.TrimSpace(r.out), "\n")
					if len(lines) != 6 {
						t.Fatalf("curl: %s", r)
					}
					for i := 0; i < 6; i += 2 {
						want := from + ":" + lines[i+1] + " to " + b.addr["public"]
						if test.authority != "-" {
							want += " for " + test.authority + " id "
						}
						got, id := lines[i], ""
						if at := strings.LastIndex(got, " id ") + 4; at > 4 {
							got, id = got[:at], got[at:]
						}
						if got != want || (id != "" && id != "0") != (test.id != "") {
							t.Errorf("%q, id %q; want %q and id %q", got, id, want, test.id)
						}
					}
				}
			})
		}
	}
	t.Run("target that wants a header and gets none", func(t *testing.T) {
		mark := b.mark()
		if r := b.curl(t, "public", p.alice, "-w", "%{http_code}", b.url("public", "a.test", "/none/x")); r.code != 0 || !strings.HasSuffix(r.out, "502") {
			t.Errorf("curl: %s", r)
		}
		b.record(t, mark, "kind=request", "status=502", "fault=upstream")
	})
}
