package daemon_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"countersign/internal/testpki"
)

// stepConf is a host that asks nobody, two of whose routes send browsers to b.test, and one that asks everybody. Ports are
// mapped: browsers know https://a.test, https://d.test:9443 and https://b.test:8443.
const stepConf = `
ops: {listen: 127.0.0.1:0}
trust_stores:
  clients: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: clients.crl}], missing: if_present}}
  partners: {ca_bundle: {file: partners.pem}}
  all: {ca_bundle: {stores: [clients, partners]}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - names: [a.test]
        certificate: &c {cert: server.pem, key: server.key}
        client_auth: {mode: off}
        identity_headers: [rfc9440, x_ssl_client]
        routes:
          - match: {path: /admin/*}
            client_auth: {mode: require, trust_store: clients}
            step_up: {to: "https://b.test:8443"}
            upstream: api
          - match: {path: /staff/*}
            client_auth: {mode: require, trust_store: clients}
            step_up: {to: "https://b.test:8443", lifetime: 5m}
            allow: client.common_name == "alice"
            shadow: {trust_store: partners, allow: client.common_name == "nobody"}
            upgrade: [websocket]
            upstream: api
          - upstream: api
      - names: [d.test]
        certificate: *c
        client_auth: {mode: request, trust_store: all}
        routes:
          - match: {path: /admin/*}
            client_auth: {mode: require}
            step_up: {to: "https://b.test:8443"}
            upstream: api
          - upstream: api
  certs:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - names: [b.test]
        certificate: *c
        client_auth: {mode: require, trust_store: all}
        step_up_for: ["https://a.test", "https://d.test:9443"]
        routes: [{upstream: api}]
      - names: [c.test]
        certificate: *c
        client_auth: {mode: require, trust_store: all}
        step_up_for: ["https://off.test"]
        routes: [{upstream: api}]
      - names: [off.test]
        certificate: *c
        client_auth: {mode: off}
        routes:
          - match: {path: /admin/*}
            client_auth: {mode: require, trust_store: clients}
            step_up: {to: "https://c.test:8443"}
            upstream: api
          - upstream: api
upstreams:
  api: {targets: [BACKEND]}
`

const (
	sessionCookie = "__Host-countersign-cert"
	stepCookie    = "__Host-countersign-step"
	askPath       = "/.well-known/countersign/step-up"
	returnPath    = askPath + "/return"
)

// stepWorld is a world with stepConf, whose backend answers with the Cookie it was sent.
type stepWorld struct {
	*world
	partners                *testpki.Cert
	alice, bob, mia, outlaw *testpki.Cert
	backend                 *backend
}

func newStepWorld(t testing.TB) *stepWorld {
	s := &stepWorld{world: newWorld(t), partners: testpki.New(t), backend: echo(t, "api", nil)}
	s.file("partners.pem", s.partners.PEM())
	s.alice, s.bob, s.mia = s.ca.Client("alice"), s.ca.Client("bob"), s.ca.Client("mia")
	s.outlaw = s.partners.Client("outlaw")
	s.start(stepConf, "http://"+s.backend.addr)
	return s
}

// browser is an http.Client with cookies that finds the listeners, and shows cert to hosts that ask.
type browser struct {
	*http.Client
	t    testing.TB
	s    *stepWorld
	jar  *cookiejar.Jar
	cert *testpki.Cert // nil shows none
	// accept and more are what it sends.
	more http.Header
	seen []string // the URLs it was sent to
	stop bool     // it does not follow
}

func (s *stepWorld) browser(t testing.TB, cert *testpki.Cert) *browser {
	jar, _ := cookiejar.New(nil)
	b := &browser{t: t, s: s, jar: jar, cert: cert, more: http.Header{"Accept": {"text/html,application/xhtml+xml"}, "Sec-Fetch-Mode": {"navigate"}, "Sec-Fetch-Dest": {"document"}}}
	transport := &http.Transport{DialTLSContext: func(_ context.Context, _, addr string) (net.Conn, error) {
		name, port, _ := net.SplitHostPort(addr)
		listener := "public"
		if port == "8443" {
			listener = "certs"
		}
		c, err := s.dial(listener, s.client(name, b.cert))
		if err != nil {
			return nil, err
		}
		return c, c.SetDeadline(time.Now().Add(time.Minute)) // it is used again, as long as the test takes
	}, MaxIdleConns: 10}
	t.Cleanup(transport.CloseIdleConnections)
	b.Client = &http.Client{Jar: jar, Transport: transport, Timeout: 20 * time.Second, CheckRedirect: func(req *http.Request, _ []*http.Request) error {
		b.seen = append(b.seen, req.URL.String())
		if b.stop {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	return b
}

// get asks for a URL, with changes to what a browser sends.
func (b *browser) get(url string, change ...func(*http.Request)) (*http.Response, string) {
	b.t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header = b.more.Clone()
	for _, f := range change {
		f(req)
	}
	b.seen = nil
	resp, err := b.Do(req)
	if err != nil {
		b.t.Fatalf("%s: %v", url, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp, string(body)
}

// hop asks for a URL and returns where it leads to.
func (b *browser) hop(url string, change ...func(*http.Request)) (*http.Response, string) {
	b.t.Helper()
	b.stop = true
	defer func() { b.stop = false }()
	resp, body := b.get(url, change...)
	if resp.StatusCode != 303 {
		b.t.Fatalf("%s: %d %s, want 303", url, resp.StatusCode, body)
	}
	return resp, resp.Header.Get("Location")
}

// refused asks for a URL that must be refused with a status and code, and not be forwarded.
func (b *browser) refused(url, code string, change ...func(*http.Request)) {
	b.t.Helper()
	before := b.s.backend.seen()
	b.stop = true
	defer func() { b.stop = false }()
	resp, body := b.get(url, change...)
	if resp.StatusCode != 403 || !strings.Contains(body, code+":") {
		b.t.Errorf("%s: %d %s, want 403 %s", url, resp.StatusCode, body, code)
	}
	if resp.Header.Get("Location") != "" || len(resp.Cookies()) > 0 || resp.Header.Get("Cache-Control") != "no-store" {
		b.t.Errorf("%s: refused with %v", url, resp.Header)
	}
	if b.s.backend.seen() != before {
		b.t.Errorf("%s: forwarded", url)
	}
}

// cookies of an origin, by name.
func (b *browser) cookie(origin, name string) string {
	u, _ := url.Parse(origin)
	for _, c := range b.jar.Cookies(u) {
		if c.Name == name {
			return c.Value
		}
	}
	return ""
}

func (b *browser) setCookie(origin, name, value string) {
	u, _ := url.Parse(origin)
	b.jar.SetCookies(u, []*http.Cookie{{Name: name, Value: value, Path: "/", Secure: true}})
}

// code goes through a step-up up to the code, which is not used.
func (b *browser) code(page string) (back string) {
	b.t.Helper()
	_, to := b.hop(page)
	_, back = b.hop(to)
	return back
}

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) {
		r.Header.Del(name)
		if value != "" {
			r.Header.Set(name, value)
		}
	}
}

func method(m string) func(*http.Request) { return func(r *http.Request) { r.Method = m } }

const adminPage = "https://a.test/admin/x?y=1&z=%2f"

func TestStepUpRefused(t *testing.T) {
	s := newStepWorld(t)
	t.Run("not a browser going to a page", func(t *testing.T) {
		for name, change := range map[string]func(*http.Request){
			"POST": method("POST"), "PUT": method("PUT"), "OPTIONS": method("OPTIONS"),
			"POST with a body": func(r *http.Request) {
				r.Method, r.Body, r.ContentLength = "POST", io.NopCloser(strings.NewReader("precious")), 8
			},
			"GET with a body": func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader("precious")), 8 },
			"curl":            header("Accept", "*/*"), "JSON": header("Accept", "application/json"), "no Accept": header("Accept", ""),
			"fetch": header("Sec-Fetch-Mode", "cors"), "no-cors": header("Sec-Fetch-Mode", "no-cors"), "frame": header("Sec-Fetch-Dest", "iframe"),
			"XHR": header("X-Requested-With", "XMLHttpRequest"), "prefetch": header("Sec-Purpose", "prefetch;prerender"), "older prefetch": header("Purpose", "prefetch"),
			"a URL too long":                     func(r *http.Request) { r.URL.RawQuery = strings.Repeat("x", 2100) },
			"a port that nobody is sent back to": func(r *http.Request) { r.Host = "a.test:7443" },
		} {
			t.Run(name, func(t *testing.T) { s.browser(t, nil).refused(adminPage, "route_cert_missing", change) })
		}
		s.find(t, "reason=route_cert_missing", "path=/admin/x")
	})
	t.Run("A26/no spelling of the path gets past", func(t *testing.T) {
		for i, path := range []string{"/%61dmin/x", "/.//admin/x", "//admin/x", "/x/../admin/x", "/admin%2fx", "/admin;v=1/x", "/\\admin/x"} {
			before := s.backend.seen()
			status, _, err := s.get("public", s.client("a.test", nil), "a.test", path)
			if err != nil || status != 403 && status != 400 || s.backend.seen() != before {
				t.Errorf("%d: %s: %d %v", i, path, status, err)
			}
		}
	})
	t.Run("the other host without a certificate", func(t *testing.T) {
		b := s.browser(t, nil)
		_, to := b.hop(adminPage)
		if resp, err := b.Client.Get(to); err == nil {
			t.Errorf("%s: %d", to, resp.StatusCode)
		}
		s.find(t, "reason=client_cert_missing", "sni=b.test")
	})
	t.Run("the other host with a foreign certificate", func(t *testing.T) {
		b := s.browser(t, testpki.New(t).Client("eve"))
		_, to := b.hop(adminPage)
		if resp, err := b.Client.Get(to); err == nil {
			t.Errorf("%s: %d", to, resp.StatusCode)
		}
		s.find(t, "reason=client_cert_untrusted", "sni=b.test")
	})
	t.Run("a certificate that the route's trust store does not have", func(t *testing.T) {
		b := s.browser(t, s.outlaw)
		_, to := b.hop(adminPage)
		b.refused(to, "route_cert_refused")
	})
	t.Run("an ask that was not made here", func(t *testing.T) {
		b := s.browser(t, s.alice)
		_, to := b.hop(adminPage)
		base, ask, _ := strings.Cut(to, "?ask=")
		for _, bad := range []string{base, base + "?", base + "?ask=", base + "?ask=x", to + "x", to[:len(to)-6], to + "&a=1", base + "?a=1&ask=" + ask,
			base + "?code=" + ask, base + "?ask=https://evil.test", base + "?ask=%0d%0aX:%20y", base + "?ASK=" + ask} {
			b.refused(bad, "step_up_refused")
		}
		for name, change := range map[string]func(*http.Request){"POST": method("POST"), "HEAD": nil, "fetch": header("Sec-Fetch-Mode", "cors"), "image": header("Sec-Fetch-Dest", "image")} {
			if change != nil {
				b.refused(to, "step_up_refused", change)
			} else if resp, _ := b.get(to, method("HEAD")); resp.StatusCode != 403 {
				t.Errorf("%s: %d", name, resp.StatusCode)
			}
		}
		s.find(t, "reason=step_up_refused", "path="+askPath)
	})
	t.Run("an ask at a host that the route does not send to", func(t *testing.T) {
		b := s.browser(t, s.alice)
		_, to := b.hop(adminPage)
		b.refused(strings.Replace(to, "b.test", "c.test", 1), "step_up_refused")
		s.find(t, "reason=step_up_refused", "host=c.test:8443", "found=another one")
	})
	t.Run("a code used twice", func(t *testing.T) {
		b := s.browser(t, s.alice)
		back := b.code(adminPage)
		step := b.cookie("https://a.test", stepCookie)
		b.hop(back)
		if left := b.cookie("https://a.test", stepCookie); left != "" {
			t.Errorf("the cookie of the step stays: %s", left)
		}
		b.setCookie("https://a.test", stepCookie, step)
		b.refused(back, "step_up_refused")
		s.find(t, "reason=step_up_refused", "path="+returnPath, "found=a code that was never given, was used before, or is older than 30s")
	})
	t.Run("a code in a browser that did not begin", func(t *testing.T) {
		b := s.browser(t, s.alice)
		back := b.code(adminPage)
		s.browser(t, s.bob).refused(back, "step_up_refused")
		s.find(t, "reason=step_up_refused", "found=no cookie of the browser that began")
		b.refused(back, "step_up_refused") // and it is used up
	})
	t.Run("a code in a browser that began itself", func(t *testing.T) {
		b, other := s.browser(t, s.alice), s.browser(t, s.bob)
		back := b.code(adminPage)
		other.hop(adminPage)
		other.refused(back, "step_up_refused")
		s.find(t, "reason=step_up_refused", "found=a code that was given to another browser, or for another step-up")
	})
	t.Run("a code for another host", func(t *testing.T) {
		b := s.browser(t, s.alice)
		back := b.code(adminPage)
		b.setCookie("https://d.test:9443", stepCookie, b.cookie("https://a.test", stepCookie))
		b.refused(strings.Replace(back, "https://a.test", "https://d.test:9443", 1), "step_up_refused")
		s.find(t, "reason=step_up_refused", "host=d.test:9443", "path="+returnPath)
	})
	t.Run("a code for another route", func(t *testing.T) {
		b := s.browser(t, s.alice)
		back := b.code("https://a.test/staff/x")
		b.hop(adminPage) // replaces the cookie
		b.refused(back, "step_up_refused")
	})
	t.Run("G/a code that is none", func(t *testing.T) {
		b := s.browser(t, s.alice)
		for _, q := range []string{"", "?", "?code=", "?code=x", "?code=https://evil.test", "?code=//evil.test", `?code=\\evil.test`, "?code=%0d%0aLocation:%20x", "?to=//evil.test"} {
			b.hop(adminPage)
			b.refused("https://a.test"+returnPath+q, "step_up_refused")
		}
	})
	t.Run("cookies twice or changed", func(t *testing.T) {
		b := s.browser(t, s.alice)
		b.get(adminPage)
		id := b.cookie("https://a.test", sessionCookie)
		for _, cookies := range []string{
			sessionCookie + "=" + id + "; " + sessionCookie + "=" + id, sessionCookie + `="` + id + `"`, sessionCookie + "=",
			strings.ToLower(sessionCookie) + "=" + id, stepCookie + "=a; " + stepCookie + "=b; " + sessionCookie + "=" + id,
		} {
			s.browser(t, nil).refused(adminPage, "step_up_refused", header("Cookie", cookies))
		}
	})
	t.Run("B06/a session on another route and host", func(t *testing.T) {
		b := s.browser(t, s.alice)
		b.get(adminPage)
		id := b.cookie("https://a.test", sessionCookie)
		other := s.browser(t, nil)
		other.refused("https://a.test/staff/x", "step_up_refused", header("Cookie", sessionCookie+"="+id), header("Accept", "application/json"))
		other.refused("https://d.test:9443/admin/x", "step_up_refused", header("Cookie", sessionCookie+"="+id), header("Accept", "application/json"))
		other.hop("https://a.test/staff/x", header("Cookie", sessionCookie+"="+id)) // a browser begins again
		other.refused(adminPage, "step_up_refused", header("Cookie", sessionCookie+"="+id+"x"), header("Accept", "*/*"))
	})
	t.Run("B06/another certificate on the connection", func(t *testing.T) {
		const page = "https://d.test:9443/admin/x"
		b := s.browser(t, nil)
		_, to := b.hop(page)
		b.cert = s.alice
		_, back := b.hop(to)
		b.hop(back)
		id := b.cookie("https://d.test:9443", sessionCookie)
		other := s.browser(t, s.bob)
		other.refused(page, "step_up_refused", header("Cookie", sessionCookie+"="+id))
		s.find(t, "reason=step_up_refused", "host=d.test:9443", "found=another one on the connection")
		if resp, body := s.browser(t, s.alice).get(page, header("Cookie", sessionCookie+"="+id)); resp.StatusCode != 200 {
			t.Errorf("the same certificate: %d %s", resp.StatusCode, body)
		}
	})
	t.Run("allow is asked about the certificate of the session", func(t *testing.T) {
		b := s.browser(t, s.bob)
		resp, body := b.get("https://a.test/staff/x")
		if resp.StatusCode != 403 || !strings.Contains(body, "policy_denied:") {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	})
	t.Run("reserved paths are never forwarded", func(t *testing.T) {
		for _, path := range []string{"/.well-known/countersign/", "/.well-known/countersign/x", askPath + "/", returnPath + "/x", askPath + "x"} {
			before := s.backend.seen()
			status, _, err := s.get("public", s.client("a.test", nil), "a.test", path)
			if err != nil || status != 404 || s.backend.seen() != before {
				t.Errorf("%s: %d %v", path, status, err)
			}
		}
		for _, path := range []string{"/.well-known//countersign/step-up", "/%2ewell-known/countersign/step-up", "/.well-known/countersign%2fstep-up", "/.well-known/./countersign/step-up"} {
			before := s.backend.seen()
			status, _, err := s.get("public", s.client("a.test", nil), "a.test", path)
			if err != nil || status != 400 || s.backend.seen() != before {
				t.Errorf("%s: %d %v", path, status, err)
			}
		}
	})
}

func TestStepUp(t *testing.T) {
	s := newStepWorld(t)
	t.Run("there and back", func(t *testing.T) {
		b := s.browser(t, s.alice)
		resp, body := b.get(adminPage)
		if resp.StatusCode != 200 || !strings.HasPrefix(body, "api GET /admin/x?y=1&z=%2f host=a.test") {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
		if len(b.seen) != 3 || !strings.HasPrefix(b.seen[0], "https://b.test:8443"+askPath+"?ask=") ||
			!strings.HasPrefix(b.seen[1], "https://a.test"+returnPath+"?code=") || b.seen[2] != adminPage {
			t.Errorf("sent to %v", b.seen)
		}
		h := s.backend.last()
		if h.Get("Client-Cert") == "" || h.Get("X-SSL-Client-S-DN") == "" && h.Get("X-Ssl-Client-Verify") == "" {
			t.Errorf("the backend was not told who it is: %v", h)
		}
		if h.Get("Cookie") != "" {
			t.Errorf("the backend got %s", h.Get("Cookie"))
		}
		r := s.find(t, "kind=request", "path=/admin/x", "reason=completed")
		if r["step_up"] != true || r["client_subject"] != "CN=alice" {
			t.Errorf("record: %v", r)
		}
		for path, why := range map[string]string{"/admin/x": "answered_here", askPath: "answered_here", returnPath: "answered_here"} {
			s.find(t, "kind=request", "path="+path, "reason="+why, "status=303")
		}
		if log := s.log.String() + s.ops.String(); strings.Contains(log, "?code=") || strings.Contains(log, b.cookie("https://a.test", sessionCookie)) {
			t.Error("a code or session stands in the log")
		}
		// From now on without a detour, scripts and forms too.
		for _, m := range []string{"GET", "POST", "HEAD"} {
			if resp, body := b.get("https://a.test/admin/y", method(m), header("Accept", "*/*"), header("Sec-Fetch-Mode", "cors")); resp.StatusCode != 200 || len(b.seen) > 0 {
				t.Errorf("%s: %d %s by %v", m, resp.StatusCode, body, b.seen)
			}
		}
		// And on routes that ask for nothing, nobody is told.
		b.get("https://a.test/open")
		if h := s.backend.last(); h.Get("Client-Cert") != "" || h.Get("Cookie") != "" {
			t.Errorf("on another route the backend got %v", h)
		}
	})
	t.Run("what is set and sent", func(t *testing.T) {
		b := s.browser(t, s.alice)
		attributes := func(c *http.Cookie, age int) {
			t.Helper()
			if !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Domain != "" || c.MaxAge != age {
				t.Errorf("%s: %s", c.Name, c.Raw)
			}
		}
		safe := func(r *http.Response) {
			t.Helper()
			if r.Header.Get("Cache-Control") != "no-store" || r.Header.Get("Referrer-Policy") != "no-referrer" {
				t.Errorf("headers %v", r.Header)
			}
		}
		resp, to := b.hop(adminPage)
		safe(resp)
		if k := resp.Cookies(); len(k) != 1 || k[0].Name != stepCookie {
			t.Fatalf("begins with %v", k)
		} else {
			attributes(k[0], 300)
		}
		resp, back := b.hop(to)
		safe(resp)
		if len(resp.Cookies()) != 0 {
			t.Errorf("the other host sets %v", resp.Cookies())
		}
		resp, _ = b.hop(back)
		safe(resp)
		k := resp.Cookies()
		if len(k) != 2 || k[0].Name != sessionCookie || k[1].Name != stepCookie || len(k[0].Value) != 43 {
			t.Fatalf("ends with %v", k)
		}
		attributes(k[0], 900)
		attributes(k[1], -1) // Max-Age=0
	})
	t.Run("HEAD", func(t *testing.T) {
		b := s.browser(t, s.alice)
		if _, to := b.hop(adminPage, method("HEAD")); !strings.HasPrefix(to, "https://b.test:8443/") {
			t.Error(to)
		}
	})
	t.Run("odd targets stay on their origin", func(t *testing.T) {
		for _, target := range []string{"/admin/?to=https://evil.test", "/admin/?u=//evil.test&v=%5c%5cevil.test", "/admin/@evil.test/x", "/admin/https:evil.test"} {
			b := s.browser(t, s.alice)
			_, home := b.hop(b.code("https://a.test" + target))
			if home != "https://a.test"+target {
				t.Errorf("%s: sent to %s", target, home)
			}
		}
	})
	t.Run("other cookies are the backend's", func(t *testing.T) {
		b := s.browser(t, s.alice)
		b.get(adminPage)
		id := b.cookie("https://a.test", sessionCookie)
		s.browser(t, nil).get(adminPage, header("Cookie", `a=1; `+sessionCookie+"="+id+`; b="x y";c`))
		if got := s.backend.last().Get("Cookie"); got != `a=1; b="x y";c` {
			t.Errorf("Cookie %q", got)
		}
		// On a host without a part in it as well: browsers send cookies to every port.
		s.browser(t, s.alice).get("https://c.test:8443/x", header("Cookie", sessionCookie+"="+id+"; a=1"))
		if got := s.backend.last().Get("Cookie"); got != "a=1" {
			t.Errorf("Cookie %q", got)
		}
	})
	t.Run("a shadow is about the certificate of the session", func(t *testing.T) {
		if resp, _ := s.browser(t, s.alice).get("https://a.test/staff/shadow"); resp.StatusCode != 200 {
			t.Error(resp.Status)
		}
		s.find(t, "path=/staff/shadow", "reason=completed", "shadow=client_cert_untrusted")
	})
	t.Run("two routes side by side", func(t *testing.T) {
		b := s.browser(t, s.alice)
		b.get(adminPage)
		first := b.cookie("https://a.test", sessionCookie)
		if resp, _ := b.get("https://a.test/staff/x"); resp.StatusCode != 200 || len(b.seen) != 3 {
			t.Errorf("%d by %v", resp.StatusCode, b.seen)
		}
		if b.cookie("https://a.test", sessionCookie) == first {
			t.Error("the id of the session did not change")
		}
		if resp, _ := b.get(adminPage); resp.StatusCode != 200 || len(b.seen) != 0 {
			t.Errorf("%d by %v", resp.StatusCode, b.seen)
		}
	})
	t.Run("many clients on one connection", func(t *testing.T) {
		// As a CDN in front would: nobody gets what the one before was.
		ids := map[string]string{}
		for name, cert := range map[string]*testpki.Cert{"alice": s.alice, "bob": s.bob} {
			b := s.browser(t, cert)
			b.get(adminPage)
			ids[name] = b.cookie("https://a.test", sessionCookie)
		}
		c, err := s.dial("public", s.client("a.test", nil))
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(c)
		for i, who := range []string{"alice", "bob", "", "alice", "alice", "", "bob"} {
			request := fmt.Sprintf("GET /admin/%d HTTP/1.1\r\nHost: a.test\r\n", i)
			if who != "" {
				request += "Cookie: " + sessionCookie + "=" + ids[who] + "\r\n"
			}
			status, body, err := roundTrip(c, r, request+"\r\n")
			switch {
			case err != nil:
				t.Fatal(err)
			case who == "" && (status != 403 || !strings.Contains(body, "route_cert_missing")):
				t.Errorf("%d: %d %s", i, status, body)
			case who != "" && (status != 200 || !strings.Contains(s.backend.last().Get("X-Ssl-Client-S-Dn")+s.backend.last().Get("X-Ssl-Client-Dn"), who)):
				t.Errorf("%d: %d, the backend was told %v", i, status, s.backend.last())
			}
			if status, _, _ := roundTrip(c, r, "GET /open HTTP/1.1\r\nHost: a.test\r\n\r\n"); status != 200 || s.backend.last().Get("Client-Cert") != "" {
				t.Errorf("%d: the open route was told of %s", i, who)
			}
		}
	})
}

// TestStepUpEnds shows what ends a session.
func TestStepUpEnds(t *testing.T) {
	s := newStepWorld(t)
	id := func(t *testing.T, cert *testpki.Cert, page string) (*browser, string) {
		b := s.browser(t, cert)
		if resp, body := b.get(page); resp.StatusCode != 200 {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
		return b, b.cookie("https://a.test", sessionCookie)
	}
	t.Run("C/revoked", func(t *testing.T) {
		b, _ := id(t, s.mia, adminPage)
		s.file("clients.crl", s.ca.CRL(s.mia, testpki.Number(7)))
		if err := s.main.Reload(); err != nil {
			t.Fatal(err)
		}
		b.refused(adminPage, "route_cert_refused")
		s.find(t, "reason=route_cert_refused", "path=/admin/x")
		// Not again, even if the list said otherwise: the session is gone.
		s.file("clients.crl", s.ca.CRL(testpki.Number(8)))
		if err := s.main.Reload(); err != nil {
			t.Fatal(err)
		}
		b.refused(adminPage, "step_up_refused", header("Accept", "*/*"))
	})
	t.Run("revoked between the other host and the return", func(t *testing.T) {
		b := s.browser(t, s.mia)
		back := b.code(adminPage)
		s.file("clients.crl", s.ca.CRL(s.mia, testpki.Number(9)))
		if err := s.main.Reload(); err != nil {
			t.Fatal(err)
		}
		b.refused(back, "route_cert_refused")
	})
	t.Run("the route leads elsewhere", func(t *testing.T) {
		b, _ := id(t, s.alice, adminPage)
		conf := strings.Replace(stepConf, `trust_store: clients}
            step_up: {to: "https://b.test:8443"}`, `trust_store: all}
            step_up: {to: "https://b.test:8443"}`, 1)
		s.reload(conf, "http://"+s.backend.addr)
		b.refused(adminPage, "step_up_refused", header("Accept", "*/*"))
		s.reload(stepConf, "http://"+s.backend.addr)
	})
	t.Run("a code across a reload that takes the step-up away", func(t *testing.T) {
		b := s.browser(t, s.alice)
		back := b.code(adminPage)
		s.reload(strings.Replace(stepConf, "path: /admin/*", "path: /admins/*", 1), "http://"+s.backend.addr)
		b.refused(back, "step_up_refused")
		s.reload(stepConf, "http://"+s.backend.addr)
	})
	t.Run("unrelated reloads end nothing", func(t *testing.T) {
		b, _ := id(t, s.alice, adminPage)
		s.reload(stepConf+"# another\n", "http://"+s.backend.addr)
		if resp, _ := b.get(adminPage, header("Accept", "*/*")); resp.StatusCode != 200 {
			t.Error(resp.Status)
		}
	})
}

// TestStepUpEndsAnswers shows that an answer under way does not outlive the trust in its client.
func TestStepUpEndsAnswers(t *testing.T) {
	stood(time.Now())
	slow, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/admin/slow" {
			return
		}
		for range 200 {
			if _, err := io.WriteString(rw, "more\n"); err != nil || http.NewResponseController(rw).Flush() != nil {
				return
			}
			select {
			case <-r.Context().Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})}
	go target.Serve(slow)
	t.Cleanup(func() { target.Close() })
	s := newStepWorld(t)
	s.reload(stepConf, "http://"+slow.Addr().String())
	get := func(cert *testpki.Cert) *http.Response {
		b := s.browser(t, cert)
		b.get("https://a.test/admin/fast")
		resp, err := b.Do(&http.Request{Method: "GET", URL: &url.URL{Scheme: "https", Host: "a.test", Path: "/admin/slow"}, Header: b.more})
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		return resp
	}
	revoked, other := get(s.mia), get(s.alice)
	defer revoked.Body.Close()
	defer other.Body.Close()
	s.file("clients.crl", s.ca.CRL(s.mia, testpki.Number(7)))
	if err := s.main.Reload(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := io.Copy(io.Discard, revoked.Body); err == nil || time.Since(start) > allowed(start) {
		t.Errorf("ended after %s: %v", time.Since(start), err)
	}
	if n, err := other.Body.Read(make([]byte, 5)); n == 0 || err != nil {
		t.Errorf("the other client's answer: %v", err)
	}
	s.find(t, "reason=client_no_longer_trusted", "path=/admin/slow", "client_subject=CN=mia")
}

// TestStepUpSetCookie: a target cannot give its client the session of somebody else.
func TestStepUpSetCookie(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		for _, c := range []string{sessionCookie + "=x; Path=/; Secure", "a=1; Path=/", strings.ToUpper(stepCookie) + "=x", "=" + sessionCookie + "=x", "b=" + sessionCookie} {
			rw.Header().Add("Set-Cookie", c)
		}
	})}
	go target.Serve(l)
	t.Cleanup(func() { target.Close() })
	s := newStepWorld(t)
	s.reload(stepConf, "http://"+l.Addr().String())
	resp, _ := s.browser(t, nil).get("https://a.test/open")
	if got := resp.Header["Set-Cookie"]; len(got) != 2 || got[0] != "a=1; Path=/" || got[1] != "b="+sessionCookie {
		t.Errorf("%q", got)
	}
}

func TestStepUpWebSocket(t *testing.T) {
	stood(time.Now())
	addr, _ := wsBackend(t, func(head string) string {
		if strings.Contains(head, "Upgrade: websocket") {
			return switching(wsAccept())
		}
		return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	})
	s := newStepWorld(t)
	s.reload(stepConf, "http://"+addr)
	open := func(cookie string) (net.Conn, *http.Response) {
		c, err := s.dial("public", s.client("a.test", nil))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		_, _ = io.WriteString(c, wsRequest("/staff/ws", "Sec-WebSocket-Protocol: chat", "Accept: text/html\r\nCookie: "+cookie))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		return c, resp
	}
	if _, resp := open("a=1"); resp.StatusCode != 403 {
		t.Errorf("without a session: %s", resp.Status)
	}
	s.find(t, "reason=route_cert_missing", "path=/staff/ws")
	b := s.browser(t, s.alice)
	b.get("https://a.test/staff/x")
	c, resp := open(sessionCookie + "=" + b.cookie("https://a.test", sessionCookie))
	if resp.StatusCode != 101 {
		t.Fatal(resp.Status)
	}
	s.reload(stepConf+"# another\n", "http://"+addr)
	time.Sleep(1500 * time.Millisecond) // it was looked at, by the sweep and by its overseer
	echo := make([]byte, 4)
	_, _ = io.WriteString(c, "ping")
	if _, err := io.ReadFull(c, echo); err != nil {
		t.Fatalf("ended without need: %v", err)
	}
	s.file("clients.crl", s.ca.CRL(s.alice, testpki.Number(7)))
	if err := s.main.Reload(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := c.Read(echo); err == nil || time.Since(start) > allowed(start) {
		t.Errorf("ended after %s: %v", time.Since(start), err)
	}
	s.find(t, "reason=client_no_longer_trusted", "path=/staff/ws", "client_subject=CN=alice")
}

// TestStepUpByCurl goes the way with another program's cookies and redirects.
func TestStepUpByCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("no curl")
	}
	s := newStepWorld(t)
	cert, key := s.alice.WriteFiles(t.TempDir())
	jar := t.TempDir() + "/jar"
	run := func(more ...string) string {
		args := append([]string{"-sS", "--http1.1", "--cacert", s.dir + "/servers.pem", "--connect-to", "a.test:443:" + s.addr("public"), "--connect-to", "b.test:8443:" + s.addr("certs"),
			"--cert", cert, "--key", key, "-b", jar, "-c", jar, "-H", "Accept: text/html", "-L", "-w", "\n%{http_code} %{num_redirects}"}, more...)
		out, err := exec.Command(curl, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if out := run(adminPage); !strings.HasPrefix(out, "api GET /admin/x?y=1&z=%2f host=a.test") || !strings.HasSuffix(out, "\n200 3") {
		t.Error(out)
	}
	if out := run(adminPage); !strings.HasSuffix(out, "\n200 0") {
		t.Error(out)
	}
	if text, _ := os.ReadFile(jar); !strings.Contains(string(text), sessionCookie) {
		t.Errorf("%s", text)
	}
}
