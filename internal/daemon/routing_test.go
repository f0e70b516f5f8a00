package daemon_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign/internal/daemon"
	"countersign/internal/testpki"
)

// versions are the protocols that every case below is run with.
var versions = []string{"HTTP1", "HTTP2"}

// line is one connection of a client, of either protocol. Requests go over it one after the other, unless it is HTTP/2.
type line struct {
	conn *tls.Conn
	r    *bufio.Reader     // HTTP/1.1
	mux  http.RoundTripper // HTTP/2
	ctx  context.Context   // of its requests; nil for none
}

// said is an answer to a request of a line.
type said struct {
	status int
	header http.Header
	body   string
	err    error
}

func (s said) String() string {
	return fmt.Sprintf("%d %v %.200q %v", s.status, s.header, s.body, s.err)
}

// line opens a connection to the listener public from 127.0.0.last.
func (w *world) line(t testing.TB, version string, conf *tls.Config, last byte) *line {
	t.Helper()
	conf = conf.Clone()
	if conf.NextProtos = []string{"http/1.1"}; version == "HTTP2" {
		conf.NextProtos = []string{"h2"}
	}
	raw := must(from(last, w.addr("public")))(t)
	t.Cleanup(func() { raw.Close() })
	_ = raw.SetDeadline(time.Now().Add(2 * time.Minute))
	l := &line{conn: tls.Client(raw, conf)}
	if err := l.conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	if version == "HTTP2" {
		l.mux = must(overExtended(l.conn))(t)
		return l
	}
	l.r = bufio.NewReader(l.conn)
	return l
}

// send makes a request, whose target goes out octet for octet, and whose header fields are name, value in turns.
func (l *line) send(method, host, target, body string, fields ...string) (*http.Response, error) {
	if l.mux == nil {
		var b strings.Builder
		fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, target, host)
		for i := 0; i < len(fields); i += 2 {
			fmt.Fprintf(&b, "%s: %s\r\n", fields[i], fields[i+1])
		}
		if body != "" {
			fmt.Fprintf(&b, "Content-Length: %d\r\n", len(body))
		}
		if _, err := io.WriteString(l.conn, b.String()+"\r\n"+body); err != nil {
			return nil, err
		}
		return http.ReadResponse(l.r, &http.Request{Method: method})
	}
	req := &http.Request{Method: method, URL: &url.URL{Scheme: "https", Host: host, Opaque: "//" + host + target}, Host: host, Header: http.Header{}}
	if body != "" {
		req.Body, req.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
	}
	for i := 0; i < len(fields); i += 2 {
		req.Header.Add(fields[i], fields[i+1])
	}
	if l.ctx != nil {
		req = req.WithContext(l.ctx)
	}
	return l.mux.RoundTrip(req)
}

// on is a line that shares its connection with l, for requests at the same time.
func (l *line) on(ctx context.Context) *line { return &line{l.conn, l.r, l.mux, ctx} }

// ask makes a request and reads its answer.
func (l *line) ask(method, host, target, body string, fields ...string) (s said) {
	resp, err := l.send(method, host, target, body, fields...)
	if err != nil {
		return said{err: err}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return said{resp.StatusCode, resp.Header, string(text), err}
}

func (l *line) get(target string, fields ...string) said {
	return l.ask("GET", l.conn.ConnectionState().ServerName, target, "", fields...)
}

// mark is a place in the log behind everything that was written so far.
func (w *world) mark() int { return len(w.log.String()) }

// since waits for the first record of a request for path behind mark.
func (w *world) since(t testing.TB, mark int, path string) (m map[string]any) {
	t.Helper()
	await(t, 5*time.Second, "record of "+path, func() bool {
		for text := range strings.Lines(w.log.String()[mark:]) {
			m = nil
			if json.Unmarshal([]byte(text), &m) == nil && m["kind"] == "request" && (m["path"] == path || len(path) > 512) {
				return true
			}
		}
		return false
	})
	return m
}

// refusedAtLoad says what is wrong with a configuration.
func (w *world) refusedAtLoad(t testing.TB, conf, text string) {
	t.Helper()
	w.file("refused.yaml", []byte(conf))
	m, err := daemon.Start(daemon.Options{Config: w.dir + "/refused.yaml", Records: io.Discard, Log: io.Discard})
	if err == nil {
		m.Shutdown(t.Context())
		t.Errorf("accepted, expected %q:\n%s", text, conf)
		return
	}
	if !strings.Contains(err.Error(), text) {
		t.Errorf("refused, but not for %q:\n%v", text, err)
	}
}

const routed = `
ops: {listen: 127.0.0.1:0}
trust_stores:
  clients: {ca_bundle: {file: clients.pem}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes:
ROUTES
      - names: [b.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: request, trust_store: clients}
        routes:
OPEN
upstreams:
  api: {targets: ["http://API"]}
MORE
`

// routes makes a configuration of routes for a.test, which wants a certificate, and b.test, which asks for one.
func routes(api, ofA, ofB, more string) string {
	if ofA == "" {
		ofA = "- {upstream: api}"
	}
	if ofB == "" {
		ofB = "- {upstream: api}"
	}
	in := func(s string) string {
		return "          " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n          ")
	}
	return strings.NewReplacer("ROUTES", in(ofA), "OPEN", in(ofB), "MORE", more, "API", api).Replace(routed)
}

// routeCase is a request and what becomes of it.
type routeCase struct {
	name, target string
	status       int
	reason       string
	body         string   // what the answer begins with
	method       string   // GET if empty
	fields       []string // name, value in turns
	from         byte     // the last octet of the client's address, 1 if 0
}

// TestRouteSpellings are spellings of paths that must not lead around the route that is closed (A26 to A28).
func TestRouteSpellings(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.start(routes(b.addr, `
- {match: {path: /admin/*}, allow: 'client.common_name == "ops"', upstream: api}
- {match: {path: /exact}, allow: 'client.common_name == "ops"', upstream: api}
- {match: {path_glob: ["/g/*.secret"]}, allow: 'client.common_name == "ops"', upstream: api}
- {match: {path_regex: ["/r/[a-z]+/secret"]}, allow: 'client.common_name == "ops"', upstream: api}
- {match: {path: /hidden/*}, allow: 'client.common_name == "ops"', respond: {body: hidden}}
- {match: {path: /public/*}, upstream: api}
- {upstream: api}
`, "", ""), "")
	alice := w.client("a.test", w.ca.Client("alice"))
	ops := w.client("a.test", w.ca.Client("ops"))
	for _, version := range versions {
		for _, c := range []struct {
			target, reason string // empty for one of policy_denied and path_unsafe
		}{
			{"/admin", "policy_denied"}, {"/admin/", "policy_denied"}, {"/admin/x", "policy_denied"}, {"/admin?x", "policy_denied"},
			{"/%61dmin/x", "policy_denied"}, {"/%61%64%6D%69%6e/x", "policy_denied"},
			{"//admin/x", "path_unsafe"}, {"/./admin/x", "path_unsafe"}, {"/public/../admin/x", "path_unsafe"}, {"/public/%2e%2e/admin/x", "path_unsafe"},
			{"/public/%2E./admin", "path_unsafe"}, {"/public%2f..%2fadmin", "path_unsafe"}, {"/public/..%2fadmin", "path_unsafe"}, {"/public/..;/admin/x", "path_unsafe"},
			{"/public/..%5cadmin", "path_unsafe"}, {"/public/..;x=1/admin/x", "path_unsafe"}, {"/%2fadmin/x", "path_unsafe"},
			{"/admin%2fx", ""}, {"/admin;x/y", ""}, {"/admin;/y", ""}, {"/admin./y", ""}, {"/admin%00/y", "path_unsafe"}, {"/admin%20/y", ""},
			{"/;/admin/x", ""}, {"/%5cadmin", ""}, {"/%2561dmin/x", ""}, {"/admin%", "path_unsafe"}, {"/admin%zz", "path_unsafe"}, {"/public/%c0%ae%c0%ae/admin", ""},
			{"/exact", "policy_denied"}, {"/%65xact", "policy_denied"}, {"/exact/", "completed"}, {"/exact;a", ""}, {"/exact.", ""}, {"/exact%20", ""}, {"/x/../exact", "path_unsafe"},
			{"/g/x.secret", "policy_denied"}, {"/g/%78.secret", "policy_denied"}, {"/g/x%2esecret", "policy_denied"}, {"/%67/x.secret", "policy_denied"}, {"/g/a/b.secret", "policy_denied"},
			{"/g/a/../x.secret", "path_unsafe"}, {"/g/x%2fy.secret", "path_unsafe"}, {"/g//x.secret", "path_unsafe"}, {"/g/x.secret;a", "path_unsafe"}, {"/g/x.secret.", "path_unsafe"},
			{"/g;a/x.secret", "path_unsafe"}, {"/public/../g/x.secret", "path_unsafe"}, {"/g/%2e/x.secret", "path_unsafe"},
			{"/r/abc/secret", "policy_denied"}, {"/r/%61bc/secret", "policy_denied"}, {"/r/abc%2fsecret", "path_unsafe"}, {"/r/x/../abc/secret", "path_unsafe"}, {"/r//abc/secret", "path_unsafe"},
			{"/r/abc/secret;x", "path_unsafe"}, {"/r/abc;x/secret", "path_unsafe"}, {"/r/abc/./secret", "path_unsafe"},
			{"/hidden/x", "policy_denied"}, {"/public/../hidden/x", "path_unsafe"}, {"/hidden%2fx", ""},
		} {
			t.Run(version+"/A26"+c.target, func(t *testing.T) {
				before, mark := b.seen(), w.mark()
				got := w.line(t, version, alice, 1).get(c.target)
				rec := w.since(t, mark, strings.TrimSuffix(c.target, "?x"))
				why := fmt.Sprint(rec["reason"])
				want, refused := map[string]int{"policy_denied": 403, "path_unsafe": 400}[why]
				if c.reason != "" && why != c.reason || c.reason == "" && !refused {
					t.Errorf("reason %s, expected %s; %v", why, c.reason, got)
				}
				if refused && (got.status != want || b.seen() != before) {
					t.Errorf("%v; %d requests came through", got, b.seen()-before)
				}
				if strings.Contains(got.body, "hidden") && !strings.Contains(got.body, "reference") {
					t.Errorf("told what is there: %v", got)
				}
			})
		}
		for target, want := range map[string]string{"/admin/x": "api GET /admin/x ", "/g/x.secret": "api GET /g/x.secret ", "/r/a/secret": "api GET /r/a/secret ", "/hidden/": "hidden", "/%61dmin/%7e?a=%2f": "api GET /%61dmin/%7e?a=%2f "} {
			t.Run(version+"/who may "+target, func(t *testing.T) {
				if got := w.line(t, version, ops, 1).get(target); got.status != 200 || !strings.HasPrefix(got.body, want) {
					t.Error(got)
				}
			})
		}
	}
}

// TestRouteConditions: which route a request finds.
func TestRouteConditions(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	label := func(match, name string) string {
		return fmt.Sprintf("- {match: {%s}, respond: {body: %s}}\n", match, name)
	}
	who := label(`path: /i/*, identity: {san: ["uri:spiffe://corp.test/ns/*/sa/api"]}`, "by-san") +
		label(`path: /i/*, identity: {subject: ["CN=alice"]}`, "by-subject") +
		label(`path: /i/*, identity: {present: true}`, "somebody")
	w.start(routes(b.addr,
		label("path: /m/*, method: [POST, PUT]", "m-write")+label("path: /m/*, method: [HEAD]", "m-head")+label("path: /m/*", "m-rest")+
			label(`path: /h/*, header: [{name: X-Tenant, values: ["acme*", "gl?bex"]}, {name: X-Beta, present: true}]`, "h-values")+
			label(`path: /h/*, header: [{name: x-tenant, regex: ["t-[0-9]+"]}]`, "h-regex")+
			label("path: /h/*, header: [{name: X-Tenant, present: false}]", "h-absent")+label("path: /h/*", "h-rest")+
			label(`path: /q/*, query: [{key: version, values: ["2", "3?"]}, {values: ["on"]}]`, "q-both")+
			label(`path: /q/*, query: [{key: "x*"}]`, "q-key")+label("path: /q/*", "q-rest")+
			label("path: /s/*, source: [127.9.9.7, 127.9.9.64/26]", "s-some")+label("path: /s/*", "s-rest")+
			who+label("path: /i/*", "i-rest"),
		who+label("path: /i/*, identity: {present: false}", "nobody"), ""), "")
	bob := w.ca.Client("bob")
	for _, version := range versions {
		l := map[byte]*line{}
		for _, c := range []routeCase{
			{name: "no route", target: "/none", status: 404, reason: "route_not_found"},
			{name: "beside a prefix", target: "/mm/x", status: 404, reason: "route_not_found"},
			{name: "case counts", target: "/M/x", status: 404, reason: "route_not_found"},
			{name: "method", target: "/m/1", method: "PUT", body: "m-write"}, {name: "method", target: "/m/2", method: "DELETE", body: "m-rest"},
			{name: "E16/method in other letters", target: "/m/3", method: "put", body: "m-rest"}, {name: "GET is not HEAD", target: "/m/4", body: "m-rest"},
			{name: "override", target: "/m/5", fields: []string{"X-HTTP-Method-Override", "PUT"}, body: "m-rest"},
			{name: "values", target: "/h/1", fields: []string{"X-Tenant", "ACME-7", "X-Beta", ""}, body: "h-values"},
			{name: "values", target: "/h/2", fields: []string{"X-Tenant", "glabex", "x-beta", "0"}, body: "h-values"},
			{name: "not all conditions", target: "/h/3", fields: []string{"X-Tenant", "acme"}, body: "h-rest"},
			{name: "second line", target: "/h/4", fields: []string{"X-Tenant", "other", "X-Tenant", "acme", "X-Beta", "1"}, body: "h-values"},
			{name: "a list is one value", target: "/h/5", fields: []string{"X-Tenant", "other, acme", "X-Beta", "1"}, body: "h-rest"},
			{name: "regex", target: "/h/6", fields: []string{"X-Tenant", "t-12"}, body: "h-regex"},
			{name: "regex is for the whole value", target: "/h/7", fields: []string{"X-Tenant", "xt-12"}, body: "h-rest"},
			{name: "regex, second line", target: "/h/8", fields: []string{"X-Tenant", "a", "X-Tenant", "t-1"}, body: "h-regex"},
			{name: "absent", target: "/h/9", body: "h-absent"}, {name: "empty is there", target: "/h/10", fields: []string{"X-Tenant", ""}, body: "h-rest"},
			{name: "underscore is another header", target: "/h/11", fields: []string{"X_Tenant", "acme", "X-Beta", "1"}, body: "h-absent"},
			{name: "both", target: "/q/1?version=2&a=on", body: "q-both"}, {name: "both, encoded", target: "/q/2?%76ersion=%33x&flag=%6fn", body: "q-both"},
			{name: "one of two", target: "/q/3?version=2", body: "q-rest"}, {name: "the value", target: "/q/4?version=22&a=on", body: "q-rest"},
			{name: "key", target: "/q/5?X-y", body: "q-key"}, {name: "key of a later one", target: "/q/6?a&b=2&&xx=", body: "q-key"}, {name: "no query", target: "/q/7", body: "q-rest"},
			{name: "semicolons do not separate", target: "/q/8?version=2;a=on", body: "q-rest"}, {name: "value is no key", target: "/q/9?a=xx", body: "q-rest"},
			{name: "source", target: "/s/1", from: 7, body: "s-some"}, {name: "source", target: "/s/2", from: 127, body: "s-some"}, {name: "source", target: "/s/3", from: 128, body: "s-rest"},
			{name: "D15/source is not a header", target: "/s/4", fields: []string{"X-Forwarded-For", "127.9.9.7", "Forwarded", "for=127.9.9.7", "X-Real-IP", "127.9.9.7"}, body: "s-rest"},
			{name: "subject", target: "/i/1", body: "by-subject"},
		} {
			t.Run(version+"/"+c.name+" "+c.target, func(t *testing.T) {
				if c.from == 0 {
					c.from = 1
				}
				if l[c.from] == nil {
					l[c.from] = w.line(w.t, version, w.client("a.test", w.ca.Client("alice")), c.from)
				}
				if c.status == 0 {
					c.status, c.reason = 200, "answered_here"
				}
				if c.method == "" {
					c.method = "GET"
				}
				mark := w.mark()
				path, _, _ := strings.Cut(c.target, "?")
				if got := l[c.from].ask(c.method, "a.test", c.target, "", c.fields...); got.status != c.status || !strings.HasPrefix(got.body, c.body) {
					t.Errorf("%v; expected %d %q", got, c.status, c.body)
				}
				if rec := w.since(t, mark, path); rec["reason"] != c.reason || rec["method"] != c.method {
					t.Errorf("record %v", rec)
				}
			})
		}
		for name, c := range map[string]struct {
			conf *tls.Config
			want string
		}{
			"absent":                   {w.client("b.test", nil), "nobody"},
			"verified":                 {w.client("b.test", bob), "somebody"},
			"verified, by name":        {w.client("b.test", w.ca.Client("x", testpki.URI("spiffe://corp.test/ns/prod/sa/api"))), "by-san"},
			"a star is one segment":    {w.client("b.test", w.ca.Client("x", testpki.URI("spiffe://corp.test/ns/a/b/sa/api"))), "somebody"},
			"other trust domain":       {w.client("b.test", w.ca.Client("x", testpki.URI("spiffe://corp.test.evil/ns/prod/sa/api"))), "somebody"},
			"header instead of a name": {w.client("b.test", nil), "nobody"},
		} {
			t.Run(version+"/identity "+name, func(t *testing.T) {
				if got := w.line(t, version, c.conf, 1).get("/i/x", "Client-Cert", ":"+"MIIB"+":", "X-Client-Cert-Subject", "CN=alice"); got.body != c.want {
					t.Error(got)
				}
			})
		}
	}
	if n := b.seen(); n != 0 {
		t.Errorf("%d requests at the target", n)
	}
	t.Run("identity where nobody is verified", func(t *testing.T) {
		for _, mode := range []string{"{mode: request_unverified, trust_store: clients}", "{mode: passthrough_chain}", `{mode: "off"}`} {
			conf := strings.Replace(routes(b.addr, "", label("path: /i, identity: {present: true}", "x"), ""), "{mode: request, trust_store: clients}", mode, 1)
			w.refusedAtLoad(t, conf, "nobody is verified")
		}
	})
	t.Run("D15/conditions on headers of origin and identity", func(t *testing.T) {
		for name, text := range map[string]string{"X-Forwarded-For": "who or where", "Forwarded": "who or where", "Client-Cert": "who or where", "X-Forwarded-Client-Cert": "who or where",
			"X-Amzn-Mtls-Clientcert": "who or where", "X-SSL-Client-Verify": "who or where", "Host": "no header to match", "Connection": "connection only", "Transfer-Encoding": "connection only", "X_Foo": "underscore"} {
			w.refusedAtLoad(t, routes(b.addr, label("header: [{name: "+name+", present: true}]", "x"), "", ""), text)
		}
	})
}

const redirects = `
- {match: {path: /old/*}, redirect: {host: "new.#{host}", path: "/new/#{path}", query: "from=#{host}&#{query}", status: 308}}
- {match: {path: /port/*}, redirect: {port: "9443"}}
- {match: {path: /same/*}, redirect: {path: "/other/#{path}", drop_query: true, status: 301}}
- {match: {path: /plain/*}, redirect: {scheme: http, allow_downgrade_to_http_insecure: true, status: 303}}
- {match: {path_regex: ["/loop/[a-z]*"]}, redirect: {port: "443"}}
- {match: {path: /fixed}, respond: {status: 418, body: "short, and stout\n", content_type: text/x-pot, headers: {X-Own: "1"}}, response_headers: {set: {Strict-Transport-Security: max-age=1, X-Own: "2"}, add: {X-Own: "3"}}}
- {match: {path: /empty}, respond: {status: 204}}
- {match: {path: /kept}, respond: {body: x, headers: {Cache-Control: max-age=9}}}
- {match: {path: /moved/*}, redirect: {host: b.test, status: 307}, response_headers: {set: {X-Said: "%{host} %{client_ip} %{scheme} %{port}"}}}
- {match: {path: /down/*}, maintenance: {retry_after: 10m, title: Gone <fishing>, message: 'say "when"'}}
- {upstream: api}
`

// TestRouteAnswers: redirects, fixed responses and maintenance pages.
func TestRouteAnswers(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	var closed strings.Builder
	for path, action := range map[string]string{"redirect": "redirect: {host: secret.test}", "respond": "respond: {body: secret, headers: {X-Secret: secret}}", "maintenance": "maintenance: {message: secret}"} {
		fmt.Fprintf(&closed, "- {match: {path: /cert/%s}, client_auth: {mode: require}, %s, response_headers: {set: {X-More: secret}}}\n", path, action)
		fmt.Fprintf(&closed, "- {match: {path: /ops/%s}, allow: 'client.present && client.common_name == \"ops\"', %s, response_headers: {set: {X-More: secret}}}\n", path, action)
	}
	w.start(routes(b.addr, redirects, closed.String()+"- {upstream: api}", ""), "")
	alice, ops := w.ca.Client("alice"), w.ca.Client("ops")
	for _, version := range versions {
		t.Run(version+"/who is not allowed is not told", func(t *testing.T) {
			for _, kind := range []string{"redirect", "respond", "maintenance"} {
				for _, c := range []struct {
					path   string
					conf   *tls.Config
					reason string
				}{{"/cert/", w.client("b.test", nil), "route_cert_missing"}, {"/ops/", w.client("b.test", nil), "policy_denied"}, {"/ops/", w.client("b.test", alice), "policy_denied"}} {
					for _, method := range []string{"GET", "HEAD", "POST"} {
						mark := w.mark()
						got := w.line(t, version, c.conf, 1).ask(method, "b.test", c.path+kind, "")
						if got.status != 403 || strings.Contains(fmt.Sprint(got), "secret") || got.header.Get("Location")+got.header.Get("Retry-After") != "" {
							t.Errorf("%s %s%s: %v", method, c.path, kind, got)
						}
						if rec := w.since(t, mark, c.path+kind); rec["reason"] != c.reason {
							t.Errorf("%s %s%s: %v", method, c.path, kind, rec["reason"])
						}
					}
				}
				for path, conf := range map[string]*tls.Config{"/cert/": w.client("b.test", alice), "/ops/": w.client("b.test", ops)} {
					if got := w.line(t, version, conf, 1).get(path + kind); got.header.Get("X-More") != "secret" || !strings.Contains(fmt.Sprint(got.header.Get("Location"), got.body), "secret") {
						t.Errorf("%s%s: %v", path, kind, got)
					}
				}
			}
		})
		l := w.line(t, version, w.client("a.test", alice), 1)
		long := strings.Repeat("x", 9000)
		for _, c := range []struct {
			name, host, target string
			status             int
			reason, location   string
		}{
			{"redirect_too_long", "a.test", "/old/?" + long, 507, "redirect_too_long", ""},
			{"redirect_too_long", "a.test", "/old/" + long, 507, "redirect_too_long", ""},
			{"redirect_loop", "a.test", "/loop/x", 508, "redirect_loop", ""},
			{"redirect_loop", "a.test:443", "/loop/y?z", 508, "redirect_loop", ""},
			{"A11/other host", "evil.test", "/old/x", 421, "host_unknown", ""},
			{"A11/user", "a.test@evil.test", "/old/x", 400, "", ""},
			{"A11/port", "a.test:99999", "/old/x", 400, "", ""},
			{"A26/dots", "a.test", "/old/../admin", 400, "path_unsafe", ""},
			{"A26/slashes", "a.test", "/old//evil.test", 400, "path_unsafe", ""},
			{"A26/backslash", "a.test", "/old/%5cevil.test", 400, "path_unsafe", ""},
			{"no loop at another port", "a.test:8443", "/loop/x", 302, "answered_here", "https://a.test/loop/x"},
			{"placeholders", "A.Test", "/old/x?y=z", 308, "answered_here", "https://new.a.test/new/old/x?from=a.test&y=z"},
			{"own port kept", "a.test:8443", "/old/x", 308, "answered_here", "https://new.a.test:8443/new/old/x?from=a.test&"},
			{"port", "a.test", "/port/?q", 302, "answered_here", "https://a.test:9443/port/?q"},
			{"query dropped", "a.test", "/same/a%20b?q=1", 301, "answered_here", "https://a.test/other/same/a%20b"},
			{"other scheme, its own port", "a.test:8443", "/plain/x", 303, "answered_here", "http://a.test/plain/x"},
			{"line ends in the path", "a.test", "/same/x%0d%0aSet-Cookie:%20a=b", 400, "path_unsafe", ""},
			{"line ends in the query", "a.test", "/moved/1?a%0d%0aX:%20y#", 0, "", ""},
			{"query of a redirect", "a.test", "/moved/?a%0d%0aX:y&u=https://evil.test/?x", 307, "answered_here", "https://b.test/moved/?a%0d%0aX:y&u=https://evil.test/?x"},
			{"octets of no URL", "a.test", "/moved/2?a=\"<b>\\^`{|}", 0, "answered_here", "https://b.test/moved/2?a=%22%3Cb%3E%5C%5E%60%7B%7C%7D"},
		} {
			t.Run(version+"/"+c.name+" "+c.host+c.target[:min(len(c.target), 40)], func(t *testing.T) {
				if c.name == "A11/other host" {
					l = w.line(w.t, version, w.client("a.test", alice), 1)
				}
				if version == "HTTP2" && strings.Contains(c.host, "@") {
					t.Skip("the client does not send it")
				}
				mark := w.mark()
				got := l.ask("GET", c.host, c.target, "")
				if got.status >= 400 && got.header.Get("Connection") == "close" || got.err != nil || version == "HTTP1" && got.status == 400 {
					l = w.line(w.t, version, w.client("a.test", alice), 1)
				}
				if c.status == 0 && (got.status == 400 || got.err != nil) { // neither the client nor we have to take it
					return
				}
				location := got.header.Get("Location")
				if location != c.location && c.reason != "" || c.status != 0 && got.status != c.status || len(got.header.Values("Set-Cookie"))+len(got.header.Values("X")) > 0 || strings.Contains(location, "#") {
					t.Errorf("%v; expected %d %s", got, c.status, c.location)
				}
				if c.reason != "" {
					path, _, _ := strings.Cut(c.target, "?")
					if rec := w.since(t, mark, path); rec["reason"] != c.reason {
						t.Errorf("record %v", rec)
					}
				}
			})
		}
		l = w.line(t, version, w.client("a.test", alice), 1)
		t.Run(version+"/respond", func(t *testing.T) {
			for range 2 { // what is shared stays as it is
				got := l.get("/fixed")
				if got.status != 418 || got.body != "short, and stout\n" || got.header.Get("Content-Type") != "text/x-pot" || got.header.Get("Cache-Control") != "no-store" ||
					fmt.Sprint(got.header.Values("X-Own")) != "[2 3]" || got.header.Get("Strict-Transport-Security") != "max-age=1" {
					t.Error(got)
				}
			}
			if got := l.ask("HEAD", "a.test", "/fixed", ""); got.status != 418 || got.body != "" || got.header.Get("Content-Length") != "17" {
				t.Error(got)
			}
			if got := l.get("/empty"); got.status != 204 || got.body != "" || got.header.Get("Content-Length") != "" {
				t.Error(got)
			}
			if got := l.get("/kept"); got.header.Get("Cache-Control") != "max-age=9" || len(got.header.Values("Cache-Control")) != 1 {
				t.Error(got)
			}
			if got := l.ask("GET", "a.test:8443", "/moved/", ""); got.header.Get("X-Said") != "a.test 127.9.9.1 https 8443" || got.body != "" {
				t.Error(got)
			}
			if got := l.ask("POST", "a.test", "/fixed", "a body that nobody reads"); got.status != 418 {
				t.Error(got)
			}
		})
		l = w.line(t, version, w.client("a.test", alice), 1)
		t.Run(version+"/maintenance", func(t *testing.T) {
			for accept, kind := range map[string]string{"": "text/html; charset=utf-8", "*/*": "text/html; charset=utf-8", "application/json": "application/json", "text/html;q=0.5, application/json": "application/json",
				"text/html, application/json": "text/html; charset=utf-8", "application/*;q=0.9, text/*;q=0.1": "application/json", "application/json;q=0, */*": "text/html; charset=utf-8", "x": "text/html; charset=utf-8", ",;q=,=;,": "text/html; charset=utf-8"} {
				var fields []string
				if accept != "" {
					fields = []string{"Accept", accept}
				}
				got := l.get("/down/x", fields...)
				if got.status != 503 || got.header.Get("Retry-After") != "600" || got.header.Get("Content-Type") != kind || got.header.Get("Cache-Control") != "no-store" {
					t.Errorf("%q: %v", accept, got)
				}
				if kind == "application/json" {
					var m map[string]any
					if err := json.Unmarshal([]byte(got.body), &m); err != nil || m["detail"] != `say "when"` || m["title"] != "Gone <fishing>" {
						t.Errorf("%v in %s", err, got.body)
					}
				} else if !strings.Contains(got.body, "Gone &lt;fishing&gt;") {
					t.Error(got.body)
				}
			}
			if got := l.ask("HEAD", "a.test", "/down/", ""); got.status != 503 || got.body != "" || got.header.Get("Retry-After") != "600" || got.header.Get("Content-Length") == "0" {
				t.Error(got)
			}
			w.find(t, "path=/down/x", "reason=answered_here", "status=503")
		})
	}
	if n := b.seen(); n != 0 {
		t.Errorf("%d requests at the target", n)
	}
}

// TestRouteEdits: what is changed on the way, and what never is.
func TestRouteEdits(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	const secret = "target's own"
	own := b.Handler
	b.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Add("Server", secret)
		rw.Header().Add("X-Twice", "a")
		rw.Header().Add("X-Twice", "b")
		own.ServeHTTP(rw, r)
	})
	const edits = `
- {match: {path: /admin/*}, allow: 'client.common_name == "ops"', upstream: POOL}
- {match: {path: /api/*}, allow: '(request.path == "/api" || request.path.startsWith("/api/")) && request.host == "a.test"', upstream: POOL, rewrite: {host: "api.internal:99", path: {prefix: {from: /api, to: /}}, query: {set: {k: "a b&c"}, remove: [token]}}}
- {match: {path: /v1/*}, upstream: POOL, rewrite: {path: {prefix: {from: /v1, to: /v2/x}}}}
- {match: {path: /u/*}, upstream: POOL, rewrite: {path: {regex: "/u/([^/]*)(/.*)?", replace: "/users/$1$2"}}}
- {match: {path: /swap/*}, upstream: POOL, rewrite: {path: {regex: "/swap/(.*)/(.*)", replace: "/$2/$1"}}}
- {match: {path: /id}, upstream: POOL, request_id: {header: X-Request-Id}, request_headers: {set: {X-Copy: "%{request_id}"}}, response_headers: {set: {X-Request-Id: "%{request_id}"}}}
- {match: {path: /trusted}, upstream: POOL, request_id: {header: X-Corr, trust: from_listed_sources, sources: [127.9.9.7]}}
- {match: {path: /trace}, upstream: POOL, trace: amzn}
- match: {path: /*}
  upstream: POOL
  request_headers: {set: {X-Edge: "%{host} %{client_ip} %{scheme} %{port}"}, add: {X-Many: ours}, remove: [X-Debug, Authorization]}
  response_headers: {set: {X-Twice: once}, add: {X-New: "%{client_ip}"}, remove: [Server]}
`
	for _, pool := range []string{"api", "h2"} {
		conf := routes(b.addr, strings.ReplaceAll(edits, "POOL", pool), "", `  h2: {targets: ["http://`+b.addr+`"], protocol_version: http2}`)
		if pool == "api" {
			w.start(conf, "")
		} else {
			w.reload(conf, "")
		}
		for _, version := range versions {
			l := w.line(t, version, w.client("a.test", w.ca.Client("alice")), 1)
			for _, c := range []struct {
				name, target string
				status       int
				reason, seen string
			}{
				{"A27/not by a rewrite", "/admin/x", 403, "policy_denied", ""},
				{"A27/empty group", "/swap/a/", 500, "rewrite_failed", ""},
				{"A27/dots", "/u/../admin", 400, "path_unsafe", ""},
				{"A27/encoded dots", "/swap/admin/%2e%2e", 400, "path_unsafe", ""},
				{"A27/ends in a slash", "/u/42/", 200, "completed", "/users/42/"},
				{"A27/empty", "/u//x", 400, "path_unsafe", ""},
				{"A27/encoded slash", "/api/a%2f..%2fadmin", 400, "path_unsafe", ""},
				{"A27/prefix with a parameter", "/v1;x/y", 400, "path_unsafe", ""},
				{"prefix and query", "/api/a%20b/?x=1&token=2&k=3&y", 200, "completed", "/a%20b/?x=1&y&k=a%20b%26c"},
				{"prefix alone", "/api", 200, "completed", "/?k=a%20b%26c"},
				{"prefix", "/v1/%C3%A9", 200, "completed", "/v2/x/%C3%A9"}, {"prefix, encoded", "/%761/z", 200, "completed", "/v2/x/z"},
				{"no segment", "/v11/z", 200, "completed", "/v11/z"},
				{"regex", "/u/%34%32/x%20y", 200, "completed", "/users/%34%32/x%20y"}, {"regex that does not match", "/swap/x", 200, "completed", "/swap/x"},
				{"swapped", "/swap/a%7e/b", 200, "completed", "/b/a%7e"},
			} {
				t.Run(version+" to "+pool+"/"+c.name+" "+c.target, func(t *testing.T) {
					before, mark := b.seen(), w.mark()
					got := l.get(c.target)
					if version == "HTTP1" && got.status == 400 {
						l = w.line(w.t, version, w.client("a.test", w.ca.Client("alice")), 1)
					}
					path, _, _ := strings.Cut(c.target, "?")
					if rec := w.since(t, mark, path); rec["reason"] != c.reason || rec["host"] != "a.test" {
						t.Errorf("record %v", rec)
					}
					host := "a.test"
					if strings.HasPrefix(c.target, "/api") {
						host = "api.internal:99"
					}
					want := fmt.Sprintf("api GET %s host=%s ", c.seen, host)
					if got.status != c.status || c.seen != "" && !strings.HasPrefix(got.body, want) || c.seen == "" && b.seen() != before {
						t.Errorf("%v; expected %d %s", got, c.status, want)
					}
					if c.seen == "" && strings.Contains(got.body, "rewrite") {
						t.Errorf("what is wrong behind us is told: %v", got)
					}
				})
			}
			l = w.line(t, version, w.client("a.test", w.ca.Client("alice")), 1)
			t.Run(version+" to "+pool+"/headers", func(t *testing.T) {
				got := l.ask("GET", "a.test:8443", "/x", "", "X-Edge", "forged", "x-edge", "again", "X-Many", "theirs", "X-Debug", "1", "Authorization", "Basic eA==", "X-Keep", "k", "Client-Cert", ":AA==:")
				h := b.last()
				if fmt.Sprint(h.Values("X-Edge")) != "[a.test 127.9.9.1 https 8443]" || fmt.Sprint(h.Values("X-Many")) != "[theirs ours]" || h.Get("X-Debug")+h.Get("Authorization") != "" || h.Get("X-Keep") != "k" {
					t.Errorf("the target got %v", h)
				}
				if v := h.Values("Client-Cert"); len(v) != 1 || v[0] == ":AA==:" {
					t.Errorf("Client-Cert %q", v)
				}
				if fmt.Sprint(got.header.Values("X-Twice")) != "[once]" || got.header.Get("X-New") != "127.9.9.1" || len(got.header.Values("Server")) != 0 || got.status != 200 {
					t.Error(got)
				}
			})
			t.Run(version+" to "+pool+"/ids", func(t *testing.T) {
				var ids []string
				for range 2 {
					got := l.get("/id", "X-Request-Id", "forged", "x-request-id", "twice")
					h := b.last()
					if v := h.Values("X-Request-Id"); len(v) != 1 || !uuid.MatchString(v[0]) || h.Get("X-Copy") != v[0] || got.header.Get("X-Request-Id") != v[0] {
						t.Errorf("%q %q %v", v, h.Get("X-Copy"), got)
					}
					ids = append(ids, h.Get("X-Request-Id"))
				}
				if ids[0] == ids[1] {
					t.Errorf("the same id twice: %q", ids)
				}
				if l.get("/trusted", "X-Corr", "mine"); !uuid.MatchString(b.last().Get("X-Corr")) {
					t.Errorf("taken over from anybody: %q", b.last()["X-Corr"])
				}
				listed := w.line(t, version, w.client("a.test", w.ca.Client("alice")), 7)
				if listed.get("/trusted", "X-Corr", "mine"); fmt.Sprint(b.last()["X-Corr"]) != "[mine]" {
					t.Errorf("not taken over: %q", b.last()["X-Corr"])
				}
				for _, bad := range []string{"two words", strings.Repeat("x", 129), "a,b", "<x>"} {
					if listed.get("/trusted", "X-Corr", bad); !uuid.MatchString(b.last().Get("X-Corr")) {
						t.Errorf("%.20q was taken over: %q", bad, b.last()["X-Corr"])
					}
				}
				if listed.get("/trusted", "X-Corr", "a", "X-Corr", "b"); len(b.last()["X-Corr"]) != 1 || !uuid.MatchString(b.last().Get("X-Corr")) {
					t.Errorf("of two: %q", b.last()["X-Corr"])
				}
				if l.get("/trace", "Traceparent", "00-1-2-3"); !strings.HasPrefix(b.last().Get("X-Amzn-Trace-Id"), "Root=1-") || b.last().Get("Traceparent") != "00-1-2-3" {
					t.Errorf("%v", b.last())
				}
				if l.get("/trace", "X-Amzn-Trace-Id", "Root=1-67891233-abcdef012345678912345678"); !strings.HasPrefix(b.last().Get("X-Amzn-Trace-Id"), "Self=1-") || !strings.HasSuffix(b.last().Get("X-Amzn-Trace-Id"), ";Root=1-67891233-abcdef012345678912345678") {
					t.Errorf("%v", b.last())
				}
			})
		}
	}
	t.Run("D01/edits that are errors", func(t *testing.T) {
		for edits, names := range map[string][]string{
			"request_headers": {"Client-Cert", "X-Forwarded-Client-Cert", "X-SSL-Client-Verify", "X-Amzn-Mtls-Clientcert", "X-Forwarded-For", "Forwarded", "X-Real-IP", "X_Foo",
				"Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "TE", "Trailer", "Host", "Via", "Sec-WebSocket-Key"},
			"response_headers": {"Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "TE", "Trailer", "Via", "Sec-WebSocket-Accept", "Grpc-Status"},
		} {
			for _, name := range names {
				for _, edit := range []string{"{set: {%s: x}}", "{add: {%s: x}}", "{remove: [%s]}"} {
					w.refusedAtLoad(t, routes(b.addr, fmt.Sprintf("- {upstream: api, %s: "+edit+"}", edits, name), "", ""), "hosts[0].routes[0]."+edits)
				}
			}
		}
		for _, conf := range []string{`- {respond: {body: x}, rewrite: {host: b.test}}`, `- {redirect: {host: b.test}, request_headers: {remove: [A]}}`, `- {redirect: {scheme: http}}`, `- {redirect: {query: a=b}}`, `- {respond: {status: 302}}`,
			`- {respond: {body: x}, upstream: api}`, `- {upstream: api, rewrite: {host: "%{host}"}}`, "- {upstream: api, request_headers: {set: {A: \"x\\r\\nB: y\"}}}", `- {respond: {body: x}, response_headers: {set: {Location: x}}}`, `- {upstream: api, mirror: {upstream: api}}`} {
			w.refusedAtLoad(t, routes(b.addr, conf, "", ""), "hosts[0].routes[0]")
		}
	})
}

var uuid = regexp.MustCompile("^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")

// TestRouteShares: requests by weight, and copies of them.
func TestRouteShares(t *testing.T) {
	w := newWorld(t)
	one, two, none, copied := echo(t, "one", nil), echo(t, "two", nil), echo(t, "none", nil), echo(t, "copy", nil)
	var accepted atomic.Int64
	silent := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	var held []net.Conn
	var mu sync.Mutex
	go func() {
		for {
			c, err := silent.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			mu.Lock()
			held = append(held, c)
			mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		silent.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range held {
			c.Close()
		}
	})
	gone := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	gone.Close()
	pools := ""
	for name, addr := range map[string]string{"two": two.addr, "none": none.addr, "copied": copied.addr, "silent": silent.Addr().String(), "gone": gone.Addr().String()} {
		pools += fmt.Sprintf("  %s: {targets: [\"http://%s\"], timeouts: {response: 1m, idle: 1s}}\n", name, addr)
	}
	w.start(routes(one.addr, `
- {match: {path: /w}, forward: [{upstream: api, weight: 9}, {upstream: two, weight: 1}, {upstream: none, weight: 0}]}
- {match: {path: /c/*}, upstream: api, mirror: {upstream: copied}, rewrite: {path: {prefix: {from: /c, to: /seen}}}, request_headers: {set: {X-Edge: e}}}
- {match: {path: /half}, upstream: api, mirror: {upstream: copied, percent: 50}}
- {match: {path: /closed}, allow: 'client.common_name == "ops"', upstream: api, mirror: {upstream: copied}}
- {match: {path: /silent}, upstream: api, mirror: {upstream: silent}}
- {match: {path: /gone}, upstream: api, mirror: {upstream: gone}}
`, "", pools), "")
	alice := w.client("a.test", w.ca.Client("alice"))
	for _, version := range versions {
		l := w.line(t, version, alice, 1)
		t.Run(version+"/weights", func(t *testing.T) {
			before, n := two.seen(), 500
			for range n {
				if got := l.get("/w"); got.status != 200 {
					t.Fatal(got)
				}
			}
			// A binomial of 500 and 0.1 is between 10 and 95 but for one time in a million.
			if got := two.seen() - before; got < 17 || got > 92 || none.seen() != 0 {
				t.Errorf("%d of %d at the second, %d at the one without weight", got, n, none.seen())
			}
		})
		t.Run(version+"/D12/copies do not say who the client is", func(t *testing.T) {
			before, body := copied.seen(), "12345"
			if version == "HTTP2" { // a body that comes in a frame of its own may be late for the copy
				body = ""
			}
			if got := l.ask("POST", "a.test", "/c/x?y", body, "Client-Cert", ":AA==:", "X-SSL-Client-Verify", "SUCCESS", "X-Keep", "k"); !strings.HasPrefix(got.body, fmt.Sprintf("one POST /seen/x?y host=a.test peer= body=%d", len(body))) {
				t.Error(got)
			}
			await(t, 10*time.Second, "copy", func() bool { return copied.seen() == before+1 })
			h := copied.last()
			for name := range h {
				if low := strings.ToLower(name); strings.Contains(low, "cert") || strings.Contains(low, "ssl") || strings.Contains(low, "mtls") {
					t.Errorf("the copy has %s: %q", name, h[name])
				}
			}
			if h.Get("X-Keep") != "k" || h.Get("X-Edge") != "e" || h.Get("X-Forwarded-For") != "127.9.9.1" || (body != "" && h.Get("Content-Length") != "5") || one.last().Get("Client-Cert") == "" {
				t.Errorf("the copy has %v, the target %v", h, one.last())
			}
		})
		t.Run(version+"/who is refused is not copied", func(t *testing.T) {
			before := copied.seen()
			if got := l.get("/closed"); got.status != 403 {
				t.Error(got)
			}
			if time.Sleep(50 * time.Millisecond); copied.seen() != before {
				t.Error("copied")
			}
		})
		t.Run(version+"/half", func(t *testing.T) {
			before := copied.seen()
			for range 100 {
				l.get("/half")
			}
			await(t, 10*time.Second, "copies", func() bool { return copied.seen()-before >= 20 })
			time.Sleep(200 * time.Millisecond)
			if n := copied.seen() - before; n > 80 {
				t.Errorf("%d of 100 were copied", n)
			}
		})
		t.Run(version+"/a mirror that is gone", func(t *testing.T) {
			var took []time.Duration
			for range 50 {
				start := time.Now()
				if got := l.get("/gone"); got.status != 200 {
					t.Fatal(got)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			if median := took[len(took)/2]; median > 20*time.Millisecond {
				t.Errorf("half of the requests took over %v", median)
			}
		})
	}
	for _, version := range versions {
		t.Run(version+"/F17/a mirror that says nothing", func(t *testing.T) {
			l, start := w.line(t, version, alice, 1), time.Now()
			for range 100 {
				if got := l.get("/silent"); got.status != 200 {
					t.Fatal(got)
				}
			}
			if took := time.Since(start); took > 15*time.Second { // a copy goes on for a minute
				t.Errorf("100 requests took %v", took)
			}
			await(t, 10*time.Second, "copies", func() bool { return accepted.Load() >= 30 })
			if n := accepted.Load(); n > 64 {
				t.Errorf("%d copies are under way, expected at most 64", n)
			}
		})
	}
}
