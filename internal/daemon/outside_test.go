package daemon_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	xocsp "golang.org/x/crypto/ocsp"

	"countersign/internal/daemon"
	"countersign/internal/testpki"
)

// press is a server of revocation lists, one at each path. A nil page is a server that says nothing.
type press struct {
	url, host string
	server    *http.Server
	conns     atomic.Int64

	mu    sync.Mutex
	pages map[string]http.HandlerFunc
}

// counting counts connections.
type counting struct {
	net.Listener
	n *atomic.Int64
}

func (l counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return c, err
}

func newPress(t testing.TB, address string) *press {
	t.Helper()
	p := &press{pages: make(map[string]http.HandlerFunc)}
	l := must(net.Listen("tcp", address))(t)
	p.host = l.Addr().String()
	p.url = "http://" + p.host
	p.server = &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		page := p.pages[r.URL.Path]
		p.mu.Unlock()
		if page == nil {
			<-r.Context().Done()
			return
		}
		page(rw, r)
	})}
	go p.server.Serve(counting{l, &p.conns})
	t.Cleanup(func() { p.server.Close() })
	return p
}

func (p *press) put(path string, page http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pages[path] = page
}

// gives is a page with these bytes, or a status without any.
func gives(body []byte) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write(body) }
}

func says(status int) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(status) }
}

// await waits until ok, at most for limit.
func await(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	looks := 0
	for end := time.Now().Add(limit); !ok(); time.Sleep(10 * time.Millisecond) {
		if looks++; time.Now().After(end) && looks > 30 { // few looks in so much time: the machine stood still
			t.Fatalf("%s: waited %s in vain", what, limit)
		}
	}
}

// refusal is how a client fares: "200", or the reason in the record.
func (w *world) fares(t testing.TB, listener, host string, conf *tls.Config) string {
	t.Helper()
	a := w.call(listener, conf, host, "/")
	if a.status != 0 {
		return fmt.Sprint(a.status)
	}
	return fmt.Sprint(w.ended(t, a)["reason"])
}

// ends waits until a live connection is refused, at most five seconds, and returns the record that says so.
func (w *world) ends(t testing.TB, k *keep, host string) map[string]any {
	t.Helper()
	await(t, 5*time.Second, "the end of a live connection", func() bool {
		status, body, err := k.get(host)
		if status != 200 && status != 403 && err == nil {
			t.Fatalf("%d %q", status, body)
		}
		return status != 200
	})
	return w.find(t, "client="+k.LocalAddr().String(), "reason=client_no_longer_trusted")
}

// condition returns the texts of the conditions of a code.
func (w *world) condition(code string) (texts []string) {
	for _, c := range w.main.Conditions() {
		if c.Code == code {
			texts = append(texts, c.Text)
		}
	}
	return texts
}

// stop ends the program, so that another one can be started in the same folder.
func (w *world) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	w.main.Shutdown(ctx)
}

// scene is a trust store of its own with a list of its own.
type scene struct {
	id, name    string
	ca          *testpki.Cert
	alice, bob  *testpki.Cert
	live        *keep
	later       http.HandlerFunc
	first, then string // how alice fares
	condition   string
}

func (s *scene) host(i int) string { return fmt.Sprintf("s%d.w.test", i) }

func scenesConfig(scenes []*scene, url string) string {
	var b strings.Builder
	b.WriteString("ops: {listen: 127.0.0.1:0}\noutbound: {allow: [127.0.0.0/8]}\nupstreams: {api: {targets: [\"http://BACKEND\"]}}\ntrust_stores:\n")
	for i := range scenes {
		fmt.Fprintf(&b, "  s%d: {ca_bundle: {file: s%d.pem}, revocation: {crls: [{url: '%s/%d', refresh: 10s}]}}\n", i, i, url, i)
	}
	b.WriteString("listeners:\n  public:\n    listen: 127.0.0.1:0\n    protocol: https\n    hosts:\n")
	for i, s := range scenes {
		fmt.Fprintf(&b, "      - {names: [%s], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: s%d}, routes: [{upstream: api}]}\n", s.host(i), i)
	}
	return b.String()
}

// TestListsByURL: a list that is fetched is in force before the first client is served, and a newer one within its refresh;
// whatever else the server gives, the last good list stays, over a restart too.
func TestListsByURL(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := echo(t, "api", nil)
	p := newPress(t, freeAddr(t)) // which is still free when the server comes back
	const failed, refused, rollback = "list_fetch_failed", "list_refused", "list_rollback_refused"
	scenes := []*scene{
		{id: "C01", name: "revoked at the server", first: "200", then: "client_cert_revoked"},
		{id: "C14", name: "a page with 200", first: "200", then: "200", condition: refused},
		{id: "C14", name: "404", first: "200", then: "200", condition: failed},
		{id: "C12", name: "ten gigabytes", first: "200", then: "200", condition: failed},
		{id: "C03", name: "another key", first: "200", then: "200", condition: refused},
		{id: "C05", name: "an older list", first: "client_cert_revoked", then: "client_cert_revoked", condition: rollback},
		{id: "C14", name: "a server that says nothing", first: "200", then: "200"},
		{id: "C08", name: "released", first: "client_cert_revoked", then: "200"},
	}
	stranger := testpki.New(t)
	for i, s := range scenes {
		s.ca = testpki.New(t)
		s.alice, s.bob = s.ca.Client("alice"), s.ca.Client("bob")
		w.file(fmt.Sprintf("s%d.pem", i), s.ca.PEM())
		crl := s.ca.CRL(s.bob, testpki.Number(5))
		if s.first != "200" {
			crl = s.ca.CRL(s.bob, s.alice, testpki.Number(5))
		}
		p.put(fmt.Sprint("/", i), gives(crl))
	}
	scenes[0].later = gives(scenes[0].ca.CRL(scenes[0].alice, scenes[0].bob, testpki.Number(6)))
	scenes[1].later = func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(rw, "<html>log in</html>")
	}
	scenes[2].later = says(404)
	scenes[3].later = func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Length", fmt.Sprint(10<<30))
		_, _ = rw.Write(make([]byte, 1<<20))
	}
	scenes[4].later = gives(scenes[4].ca.CRL(scenes[4].alice, testpki.Number(6), testpki.SignedBy(stranger), testpki.NoAKI()))
	scenes[5].later = gives(scenes[5].ca.CRL(testpki.Number(4), testpki.ThisUpdate(time.Now().Add(-time.Hour))))
	scenes[7].later = gives(scenes[7].ca.CRL(scenes[7].bob, testpki.Number(6)))
	conf := scenesConfig(scenes, p.url)
	w.start(conf, b.addr)
	started := time.Now()

	for i, s := range scenes {
		if got := w.fares(t, "public", s.host(i), w.client(s.host(i), s.bob)); got != "client_cert_revoked" {
			t.Errorf("%s/%s: bob at once: %s", s.id, s.name, got)
		}
		if got := w.fares(t, "public", s.host(i), w.client(s.host(i), s.alice)); got != s.first {
			t.Errorf("%s/%s: alice at once: %s, expected %s", s.id, s.name, got, s.first)
		}
		if s.first == "200" {
			s.live = w.keep(t, "public", w.client(s.host(i), s.alice))
			_ = s.live.SetDeadline(time.Now().Add(time.Minute))
			if status, _, err := s.live.get(s.host(i)); status != 200 {
				t.Fatal(status, err)
			}
		}
		p.put(fmt.Sprint("/", i), s.later)
	}
	series := w.scrape(t)
	name := fmt.Sprintf("countersign_revocation_list_next_update_seconds{issuer=\"\",url=\"%s/0\"}", p.url)
	if series[name] == "" || series[name] == "0" || series[strings.Replace(name, "next_update_seconds", "entries", 1)] != "1" {
		t.Errorf("%s is %q, entries %q", name, series[name], series[strings.Replace(name, "next_update_seconds", "entries", 1)])
	}
	await(t, 20*time.Second, "the next fetch", func() bool {
		return len(w.condition(failed)) == 2 && len(w.condition(refused)) == 2 && len(w.condition(rollback)) == 1 &&
			strings.Contains(w.ops.String(), `entries=2`)
	})
	t.Logf("fetched again after %s", time.Since(started).Round(time.Millisecond))
	await(t, 10*time.Second, "the reload", func() bool {
		return w.fares(t, "public", scenes[7].host(7), w.client(scenes[7].host(7), scenes[7].alice)) == scenes[7].then &&
			w.fares(t, "public", scenes[0].host(0), w.client(scenes[0].host(0), scenes[0].alice)) == scenes[0].then
	})
	check := func(t *testing.T, i int, s *scene) {
		t.Helper()
		if got := w.fares(t, "public", s.host(i), w.client(s.host(i), s.alice)); got != s.then {
			t.Errorf("alice: %s, expected %s", got, s.then)
		}
		if got := w.fares(t, "public", s.host(i), w.client(s.host(i), s.bob)); got != "client_cert_revoked" {
			t.Errorf("bob: %s", got)
		}
	}
	for i, s := range scenes {
		t.Run(s.id+"/"+s.name, func(t *testing.T) {
			check(t, i, s)
			if s.live != nil && s.then == "200" {
				if status, _, err := s.live.get(s.host(i)); status != 200 {
					t.Errorf("a live connection: %d %v", status, err)
				}
			} else if s.live != nil {
				if r := w.ends(t, s.live, s.host(i)); !strings.HasPrefix(fmt.Sprint(r["found"]), "client_cert_revoked: ") {
					t.Errorf("record: %v", r)
				}
			}
			if s.condition == "" {
				return
			}
			texts := w.condition(s.condition)
			if !slices.ContainsFunc(texts, func(text string) bool {
				return strings.HasPrefix(text, fmt.Sprintf("%s/%d:", p.url, i)) && strings.Contains(text, "the last good list") && len(text) < 2200
			}) {
				t.Errorf("conditions: %q", texts)
			}
		})
	}
	if series := w.scrape(t); series[`countersign_condition{code="list_fetch_failed"}`] != "2" || series[`countersign_condition{code="list_refused"}`] != "2" || series[`countersign_condition{code="list_rollback_refused"}`] != "1" {
		t.Errorf("conditions in metrics: %v", slices.DeleteFunc(slices.Sorted(func(yield func(string) bool) {
			for name, value := range series {
				if !yield(name + " " + value) {
					return
				}
			}
		}), func(s string) bool { return !strings.HasPrefix(s, "countersign_condition") }))
	}

	// A restart, with the server down, then with one that gives an older list to everybody.
	w.stop()
	p.server.Close()
	start := time.Now()
	w.start(conf, b.addr)
	if took := time.Since(start); took > 8*time.Second { // what does not answer is waited for 10 s
		t.Errorf("C14/started after %s", took)
	}
	for i, s := range scenes {
		t.Run(s.id+"/restarted, server down/"+s.name, func(t *testing.T) { check(t, i, s) })
	}
	if n := len(w.condition(failed)); n != len(scenes) {
		t.Errorf("C14/%d conditions", n)
	}
	w.stop()
	again := newPress(t, p.host)
	for i, s := range scenes {
		again.put(fmt.Sprint("/", i), gives(s.ca.CRL(testpki.Number(1), testpki.ThisUpdate(time.Now().Add(-time.Hour)))))
	}
	w.start(conf, b.addr)
	for i, s := range scenes {
		t.Run("C05/restarted, older list/"+s.name, func(t *testing.T) { check(t, i, s) })
	}
	if n := len(w.condition(rollback)); n != len(scenes) {
		t.Errorf("C05/%d conditions", n)
	}
}

const byURL = `
ops: {listen: 127.0.0.1:0}
outbound: {allow: [127.0.0.0/8]}
trust_stores:
  clients: {ca_bundle: {file: clients.pem}, revocation: {crls: [{url: "URL/ca.crl"}]}}
  other: {ca_bundle: {file: servers.pem}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - {names: [a.test], certificate: &c {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, routes: &r [{upstream: api}]}
      - {names: [b.test], certificate: *c, client_auth: {mode: require, trust_store: other}, routes: *r}
upstreams: {api: {targets: ["http://BACKEND"]}}
`

// TestListDeadAtStart: without a list what missing says holds, and the first good one is in force as soon as it is there.
func TestListDeadAtStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := echo(t, "api", nil)
	alice, bob, other := w.ca.Client("alice"), w.ca.Client("bob"), w.servers.Client("other")
	for _, c := range []struct {
		id, name, rule string
		page           http.HandlerFunc
		want           string
	}{
		{"C14", "500", "", says(500), "crl_missing"},
		{"C03", "another key", "", gives(w.ca.CRL(testpki.SignedBy(w.servers), testpki.NoAKI())), "crl_missing"},
		{"C04", "expired", "", gives(w.ca.CRL(testpki.ThisUpdate(time.Now().Add(-48*time.Hour)), testpki.NextUpdate(time.Now().Add(-time.Hour)))), "crl_missing"},
		{"C06", "of tomorrow", "", gives(w.ca.CRL(testpki.ThisUpdate(time.Now().Add(24*time.Hour)), testpki.NextUpdate(time.Now().Add(48*time.Hour)))), "crl_missing"},
		{"C09", "if present", ", missing: if_present", says(500), "200"},
		{"C09", "not wanted of this CA", ", by_ca: {CN=Clients CA: {missing: if_present}}", says(500), "200"},
	} {
		t.Run(c.id+"/"+c.name, func(t *testing.T) {
			p := newPress(t, "127.0.0.1:0")
			p.put("/ca.crl", c.page)
			if err := os.RemoveAll(filepath.Join(w.dir, "state")); err != nil {
				t.Fatal(err)
			}
			w.start(strings.Replace(strings.ReplaceAll(byURL, "URL", p.url), `/ca.crl"}]`, `/ca.crl"}]`+c.rule, 1), b.addr)
			defer w.stop()
			if got := w.fares(t, "public", "a.test", w.client("a.test", alice)); got != c.want {
				t.Errorf("alice: %s, expected %s", got, c.want)
			}
			if got := w.fares(t, "public", "b.test", w.client("b.test", other)); got != "200" {
				t.Errorf("another host: %s", got)
			}
			if len(w.condition("list_fetch_failed"))+len(w.condition("list_refused")) != 1 {
				t.Errorf("conditions: %v", w.main.Conditions())
			}
			p.put("/ca.crl", gives(w.ca.CRL(bob)))
			await(t, 5*time.Second, "the next try", func() bool {
				return w.fares(t, "public", "a.test", w.client("a.test", alice)) == "200" && len(w.main.Conditions()) == 0
			})
			await(t, 10*time.Second, "bob", func() bool { return w.fares(t, "public", "a.test", w.client("a.test", bob)) == "client_cert_revoked" })
		})
	}
	t.Run("C14/nobody there, and reloads", func(t *testing.T) {
		dead := "http://" + freeAddr(t)
		_ = os.RemoveAll(filepath.Join(w.dir, "state"))
		conf := strings.ReplaceAll(byURL, "URL", dead)
		start := time.Now()
		w.start(conf, b.addr)
		defer w.stop()
		for i := range 3 {
			w.reload(conf+fmt.Sprintf("drain: %ds\n", i+1), b.addr)
		}
		if took := time.Since(start); took > 8*time.Second { // what does not answer is waited for 10 s
			t.Errorf("took %s", took)
		}
		if got := w.fares(t, "public", "a.test", w.client("a.test", alice)); got != "crl_missing" {
			t.Errorf("alice: %s", got)
		}
	})
	t.Run("G07/private address that is not allowed", func(t *testing.T) {
		p := newPress(t, "127.0.0.1:0")
		p.put("/ca.crl", gives(w.ca.CRL()))
		_ = os.RemoveAll(filepath.Join(w.dir, "state"))
		conf := strings.ReplaceAll(byURL, "URL", p.url)
		w.start(strings.Replace(conf, "outbound: {allow: [127.0.0.0/8]}\n", "", 1), b.addr)
		defer w.stop()
		if got := w.fares(t, "public", "a.test", w.client("a.test", alice)); got != "crl_missing" || p.conns.Load() != 0 {
			t.Errorf("alice: %s, %d connections", got, p.conns.Load())
		}
		if text := w.condition("list_fetch_failed"); len(text) != 1 || !strings.Contains(text[0], "127.0.0.1") {
			t.Errorf("%q", text)
		}
		// Allowed now; what was refused is tried again by itself.
		w.reload(conf, b.addr)
		await(t, 5*time.Second, "the next try", func() bool { return w.fares(t, "public", "a.test", w.client("a.test", alice)) == "200" })
		// A configuration that is refused must not widen what may be connected to.
		w.reload(strings.Replace(conf, "127.0.0.0/8", "127.0.0.9", 1), b.addr)
		n := p.conns.Load()
		w.file("countersign.yaml", []byte(strings.Replace(strings.ReplaceAll(conf, "BACKEND", b.addr), "trust_store: other", "trust_store: nobody", 1)))
		if err := w.main.Reload(); err == nil {
			t.Fatal("accepted")
		}
		time.Sleep(100 * time.Millisecond)
		if p.conns.Load() != n {
			t.Error("connected for a configuration that was refused")
		}
	})
}

const byFile = `
ops: {listen: 127.0.0.1:0}
trust_stores:
  clients: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: clients.crl}]}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - {names: [a.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, routes: [{upstream: api}]}
upstreams: {api: {targets: ["http://BACKEND"]}}
`

// TestListFileRollback: an older file that is put back does not bring a revoked client back, and neither does a restart.
func TestListFileRollback(t *testing.T) {
	t.Parallel()
	for _, trust := range []string{"anchor", "intermediate"} {
		w := newWorld(t)
		b := echo(t, "api", nil)
		alice, bob := w.ca.Client("alice"), w.ca.Client("bob")
		if trust == "intermediate" { // its list can be believed only when a chain has shown it
			w.file("clients.pem", w.root.PEM())
		}
		old := w.ca.CRL(testpki.Number(1), testpki.ThisUpdate(time.Now().Add(-2*time.Hour)))
		w.file("clients.crl", w.ca.CRL(bob, testpki.Number(2)))
		w.start(byFile, b.addr)
		fares := func(t *testing.T, of string) {
			t.Helper()
			if got := w.fares(t, "public", "a.test", w.client("a.test", bob)); got != "client_cert_revoked" {
				t.Errorf("%s: bob: %s", of, got)
			}
			if got := w.fares(t, "public", "a.test", w.client("a.test", alice)); got != "200" {
				t.Errorf("%s: alice: %s", of, got)
			}
		}
		fares(t, "at first")
		if trust == "intermediate" {
			await(t, 30*time.Second, "what chains have shown to be noted", func() bool {
				index, _ := os.ReadFile(filepath.Join(w.dir, "state", "crls", "index.json"))
				return strings.Contains(string(index), `"floors":[{`)
			})
		}
		t.Run("C05/"+trust+"/reload", func(t *testing.T) {
			w.file("clients.crl", old)
			w.reload(byFile, b.addr)
			fares(t, "older file")
			if !strings.Contains(w.ops.String(), "is older than one that was in force") {
				t.Errorf("nothing in the log:\n%s", w.ops)
			}
		})
		t.Run("C05/"+trust+"/restart", func(t *testing.T) {
			w.stop()
			w.ops = &lines{}
			w.start(byFile, b.addr)
			fares(t, "after a restart")
			if !strings.Contains(w.ops.String(), "is older than one that was in force") {
				t.Errorf("nothing in the log:\n%s", w.ops)
			}
		})
		t.Run("C05/"+trust+"/what was kept is gone", func(t *testing.T) {
			w.stop()
			kept := must(filepath.Glob(filepath.Join(w.dir, "state", "crls", "*")))(t)
			n := 0
			for _, name := range kept {
				if !strings.Contains(name, "index") {
					n++
					if err := os.Remove(name); err != nil {
						t.Fatal(err)
					}
				}
			}
			if n == 0 {
				t.Fatalf("nothing was kept: %v", kept)
			}
			w.start(byFile, b.addr)
			for _, c := range []*testpki.Cert{alice, bob} {
				if got := w.fares(t, "public", "a.test", w.client("a.test", c)); got != "crl_missing" {
					t.Errorf("%s: %s", c.Cert.Subject.CommonName, got)
				}
			}
		})
		t.Run("C08/"+trust+"/newer file", func(t *testing.T) {
			w.file("clients.crl", w.ca.CRL(testpki.Number(3)))
			w.reload(byFile, b.addr)
			if got := w.fares(t, "public", "a.test", w.client("a.test", bob)); got != "200" {
				t.Errorf("bob, released: %s", got)
			}
		})
		w.stop()
		if testing.Short() {
			break
		}
	}
}

// TestState: the folder that is kept over restarts.
func TestState(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	alice, bob := w.ca.Client("alice"), w.ca.Client("bob")
	w.file("clients.crl", w.ca.CRL(bob))
	t.Run("C14/a folder that cannot be", func(t *testing.T) { // root may write anywhere, but not below a file
		w.start("state: server.pem/x\n"+byFile, b.addr)
		defer w.stop()
		if !strings.Contains(w.ops.String(), "an older list could come back with a restart") {
			t.Errorf("no warning:\n%s", w.ops)
		}
		if got := w.fares(t, "public", "a.test", w.client("a.test", bob)); got != "client_cert_revoked" {
			t.Errorf("bob: %s", got)
		}
		if got := w.fares(t, "public", "a.test", w.client("a.test", alice)); got != "200" {
			t.Errorf("alice: %s", got)
		}
	})
	t.Run("C14/the place of bundles is taken", func(t *testing.T) {
		if err := os.MkdirAll(filepath.Join(w.dir, "half"), 0o700); err != nil {
			t.Fatal(err)
		}
		w.file("half/bundles", []byte("x"))
		w.ops = &lines{}
		w.start("state: half\n"+byFile, b.addr)
		defer w.stop()
		if !strings.Contains(w.ops.String(), "expected a folder") {
			t.Errorf("no warning:\n%s", w.ops)
		}
	})
	t.Run("C05/moved by a reload", func(t *testing.T) {
		w.start("state: one\n"+byFile, b.addr)
		defer w.stop()
		hash := w.main.Hash()
		w.file("countersign.yaml", []byte(strings.ReplaceAll("state: two\n"+byFile, "BACKEND", b.addr)))
		if err := w.main.Reload(); err == nil || !strings.Contains(err.Error(), "restart it to use another folder") {
			t.Errorf("reload: %v", err)
		}
		if w.main.Hash() != hash {
			t.Error("another configuration is in force")
		}
		w.reload("state: ./one\n"+byFile, b.addr) // the same one
		w.reload("state: '"+w.dir+"/one/'\n"+byFile, b.addr)
		if _, err := os.Stat(filepath.Join(w.dir, "two")); err == nil {
			t.Error("the other folder was made")
		}
	})
}

const byPoint = `
ops: {listen: 127.0.0.1:0}
outbound: {allow: [127.0.0.0/8]}
trust_stores:
  clients: {ca_bundle: {file: clients.pem}, revocation: {distribution_points: ["ALLOWED"]}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - {names: [a.test], certificate: &c {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, routes: &r [{upstream: api}]}
      - {names: [b.test], certificate: *c, client_auth: {mode: request, trust_store: clients}, routes: *r}
      - {names: [c.test], certificate: *c, client_auth: {mode: request_unverified, trust_store: clients}, routes: *r}
      - {names: [d.test], certificate: *c, client_auth: {mode: passthrough_chain}, identity_headers: [alb], routes: *r}
      - {names: [off.test], certificate: *c, client_auth: {mode: off}, routes: *r}
      - {names: [p.w.test], certificate: *c, client_auth: {mode: require, trust_store: clients, on_failure: page}, routes: *r}
upstreams: {api: {targets: ["http://BACKEND"]}}
`

// TestDistributionPoints: certificates say where lists are, and are believed when they verify, for hosts that the operator
// allows, at addresses that may be connected to, by HTTP. Everything else is never connected to.
func TestDistributionPoints(t *testing.T) {
	hosts := []string{"a.test", "b.test", "c.test", "d.test", "off.test", "p.w.test"}
	t.Run("C13/never", func(t *testing.T) {
		w := newWorld(t)
		b := echo(t, "api", nil)
		p := newPress(t, "127.0.0.1:0")
		crl := gives(w.ca.CRL())
		for _, path := range []string{"/ca.crl", "/"} {
			p.put(path, crl)
		}
		_, port, _ := net.SplitHostPort(p.host)
		w.start(strings.Replace(byPoint, "ALLOWED", "crl.partner.test", 1), b.addr)
		for _, url := range []string{p.url + "/ca.crl", "http://169.254.169.254/latest/meta-data", "file:///etc/passwd",
			"ldap://" + p.host + "/cn=ca", "http://localhost:" + port + "/ca.crl", "http://[::ffff:127.0.0.1]:" + port + "/", "http://127.1:" + port + "/",
			"http://crl.partner.test@" + p.host + "/ca.crl", "http://" + p.host + "/?crl.partner.test", "http://" + p.host + "/#crl.partner.test",
			"//" + p.host + "/ca.crl", "HTTP://" + p.host + "/ca.crl", "http://crl.partner.test:" + port + "/", "gopher://crl.partner.test/"} {
			c := w.ca.Client("c", testpki.CRLPoint(url))
			for _, host := range hosts {
				w.call("public", w.client(host, c), host, "/")
			}
		}
		// Not verified: foreign, expired, of the wrong purpose; the host is allowed.
		w.reload(strings.Replace(byPoint, "ALLOWED", p.host, 1), b.addr)
		foreign := testpki.New(t)
		point := testpki.CRLPoint(p.url + "/ca.crl")
		for _, c := range []*testpki.Cert{foreign.Client("f", point), foreign.Client("l", testpki.Like(w.ca), point), w.ca.Client("e", testpki.Expired(), point),
			w.ca.Client("n", testpki.NotYetValid(), point), w.ca.Server("s.test", point), w.ca.Client("ca", testpki.CA(), point), w.ca.Client("w", testpki.RSA(1024), point)} {
			for _, host := range hosts {
				w.call("public", w.show(host, w.ca.Key, c.Chain...), host, "/")
			}
		}
		time.Sleep(300 * time.Millisecond)
		if n := p.conns.Load(); n != 0 {
			t.Errorf("%d connections", n)
		}
		for name := range w.scrape(t) {
			if strings.HasPrefix(name, "countersign_revocation_list") {
				t.Errorf("there is %s", name)
			}
		}
	})
	t.Run("G07/allowed host at an address that is not", func(t *testing.T) {
		w := newWorld(t)
		b := echo(t, "api", nil)
		p := newPress(t, "127.0.0.1:0")
		p.put("/ca.crl", gives(w.ca.CRL()))
		_, port, _ := net.SplitHostPort(p.host)
		conf := strings.Replace(strings.Replace(byPoint, "outbound: {allow: [127.0.0.0/8]}\n", "", 1), `"ALLOWED"`, `"`+p.host+`", "localhost:`+port+`"`, 1)
		w.start(conf, b.addr)
		for _, url := range []string{p.url, "http://localhost:" + port} {
			if got := w.fares(t, "public", "a.test", w.client("a.test", w.ca.Client("c", testpki.CRLPoint(url+"/ca.crl")))); got != "crl_missing" {
				t.Error(got)
			}
		}
		await(t, 5*time.Second, "conditions", func() bool { return len(w.condition("list_fetch_failed")) == 2 })
		if n := p.conns.Load(); n != 0 {
			t.Errorf("%d connections", n)
		}
	})
	t.Run("C13/redirected", func(t *testing.T) {
		w := newWorld(t)
		b := echo(t, "api", nil)
		p, other := newPress(t, "127.0.0.1:0"), newPress(t, "127.0.0.1:0")
		other.put("/ca.crl", gives(w.ca.CRL()))
		p.put("/ca.crl", func(rw http.ResponseWriter, r *http.Request) {
			http.Redirect(rw, r, other.url+"/ca.crl", http.StatusFound)
		})
		w.start(strings.Replace(byPoint, "ALLOWED", p.host, 1), b.addr)
		if got := w.fares(t, "public", "a.test", w.client("a.test", w.ca.Client("c", testpki.CRLPoint(p.url+"/ca.crl")))); got != "crl_missing" {
			t.Error(got)
		}
		await(t, 5*time.Second, "the condition", func() bool { return len(w.condition("list_fetch_failed")) == 1 })
		if p.conns.Load() == 0 || other.conns.Load() != 0 {
			t.Errorf("%d and %d connections", p.conns.Load(), other.conns.Load())
		}
	})
	t.Run("C13/learnt", func(t *testing.T) {
		w := newWorld(t)
		b := echo(t, "api", nil)
		p := newPress(t, "127.0.0.1:0")
		bob := w.ca.Client("bob", testpki.CRLPoint(p.url+"/ca.crl"))
		alice := w.ca.Client("alice", testpki.CRLPoint(p.url+"/ca.crl"))
		p.put("/ca.crl", gives(w.ca.CRL(bob)))
		conf := strings.Replace(byPoint, "ALLOWED", p.host, 1)
		w.start(conf, b.addr)
		if got := w.fares(t, "public", "a.test", w.client("a.test", bob)); got != "crl_missing" {
			t.Errorf("bob first: %s", got)
		}
		await(t, 5*time.Second, "the list", func() bool { return w.fares(t, "public", "a.test", w.client("a.test", bob)) == "client_cert_revoked" })
		if got := w.fares(t, "public", "a.test", w.client("a.test", alice)); got != "200" {
			t.Errorf("alice: %s", got)
		}
		if n := p.conns.Load(); n != 1 {
			t.Errorf("%d connections", n)
		}
		w.stop()
		p.server.Close()
		w.start(conf, b.addr)
		if got := w.fares(t, "public", "a.test", w.client("a.test", bob)); got != "client_cert_revoked" {
			t.Errorf("C14/bob after a restart with the server down: %s", got)
		}
		for range 2 {
			w.reload(strings.Replace(byPoint, "ALLOWED", "elsewhere.test", 1), b.addr)
		}
		if got := w.fares(t, "public", "a.test", w.client("a.test", alice)); got != "crl_missing" {
			t.Errorf("alice where the host is not allowed any more: %s", got)
		}
	})
}

// oracle is an OCSP responder.
type oracle struct {
	*press
	t      testing.TB
	ca     *testpki.Cert
	issued map[string]*testpki.Cert
	asked  atomic.Int64

	mu      sync.Mutex
	answers map[string][]testpki.OCSPOption // by serial
}

func newOracle(t testing.TB, ca *testpki.Cert) *oracle {
	o := &oracle{press: newPress(t, "127.0.0.1:0"), t: t, ca: ca, issued: make(map[string]*testpki.Cert), answers: make(map[string][]testpki.OCSPOption)}
	o.put("/", func(rw http.ResponseWriter, r *http.Request) {
		o.asked.Add(1)
		body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<16))
		req, err := xocsp.ParseRequest(body)
		if err != nil || r.Method != "POST" || r.Header.Get("Content-Type") != "application/ocsp-request" {
			o.t.Errorf("%s %v: %v", r.Method, r.Header, err)
			return
		}
		o.mu.Lock()
		options, about := o.answers[req.SerialNumber.Text(16)], o.issued[req.SerialNumber.Text(16)]
		o.mu.Unlock()
		if about == nil {
			_, _ = rw.Write(testpki.OCSPError(6))
			return
		}
		rw.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = rw.Write(ca.OCSP(about, options...))
	})
	return o
}

// client makes a client that names the responder.
func (o *oracle) client(name string, answer ...testpki.OCSPOption) *testpki.Cert {
	c := o.ca.Client(name, testpki.OCSPServer(o.url+"/"))
	o.mu.Lock()
	o.issued[c.Cert.SerialNumber.Text(16)] = c
	o.mu.Unlock()
	o.answer(c, answer...)
	return c
}

func (o *oracle) answer(c *testpki.Cert, answer ...testpki.OCSPOption) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answers[c.Cert.SerialNumber.Text(16)] = answer
}

const byOCSP = `
ops: {listen: 127.0.0.1:0}
outbound: {allow: [127.0.0.0/8]}
trust_stores:
  required: {ca_bundle: {file: clients.pem}, revocation: {ocsp: {mode: require, hosts: ["HOST", "127.0.0.1:1"]}}}
  preferred: {ca_bundle: {file: clients.pem}, revocation: {ocsp: {mode: prefer, hosts: ["HOST"]}}}
  both: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: clients.crl}], ocsp: {mode: prefer, responder: "http://HOST/"}}}
  nobody: {ca_bundle: {file: clients.pem}, revocation: {ocsp: {mode: require, hosts: ["ocsp.partner.test"]}}}
  plain: {ca_bundle: {file: clients.pem}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - {names: [a.test], certificate: &c {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: required}, routes: &r [{upstream: api}]}
      - {names: [b.test], certificate: *c, client_auth: {mode: require, trust_store: preferred}, routes: *r}
      - {names: [c.test], certificate: *c, client_auth: {mode: require, trust_store: both}, routes: *r}
      - {names: [d.test], certificate: *c, client_auth: {mode: require, trust_store: nobody}, routes: *r}
      - {names: [p.w.test], certificate: *c, client_auth: {mode: require, trust_store: plain}, routes: *r}
upstreams: {api: {targets: ["http://BACKEND"]}}
`

// TestOCSP: what responders say counts, in each mode, over TLS 1.2 and 1.3, for new and for live connections.
func TestOCSP(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := echo(t, "api", nil)
	o := newOracle(t, w.ca)
	w.start(strings.ReplaceAll(byOCSP, "HOST", o.host), b.addr)
	for _, v := range tlsVersions {
		fares := func(t *testing.T, host string, c *testpki.Cert) string {
			t.Helper()
			return w.fares(t, "public", host, pin(w.client(host, c), v.id))
		}
		delegate := w.ca.Responder("delegate")
		self := w.ca.Client("self")
		for _, c := range []struct {
			id, name         string
			answer           []testpki.OCSPOption
			require, prefers string
		}{
			{"C16", "good", nil, "200", "200"},
			{"C16", "good, by a delegate", []testpki.OCSPOption{testpki.OCSPBy(delegate)}, "200", "200"},
			{"C01", "revoked", []testpki.OCSPOption{testpki.OCSPRevoked(1)}, "client_cert_revoked", "client_cert_revoked"},
			{"C16", "unknown", []testpki.OCSPOption{testpki.OCSPUnknown()}, "ocsp_unknown", "200"},
			{"C16", "good by a client", []testpki.OCSPOption{testpki.OCSPBy(self)}, "ocsp_unavailable", "200"},
			{"C17", "good of last week", []testpki.OCSPOption{testpki.OCSPThis(time.Now().Add(-7 * 24 * time.Hour)), testpki.OCSPNext(time.Now().Add(-6 * 24 * time.Hour))}, "ocsp_unavailable", "200"},
			{"C17", "another nonce", []testpki.OCSPOption{testpki.OCSPNonce(bytes.Repeat([]byte{7}, 32))}, "ocsp_unavailable", "200"},
			{"C16", "good for another serial", []testpki.OCSPOption{testpki.OCSPIssuerHash(make([]byte, 20), nil)}, "ocsp_unavailable", "200"},
		} {
			t.Run(c.id+"/"+v.name+"/"+c.name, func(t *testing.T) {
				o := o // one responder for all: those that are refused are no failures of the host
				client := o.client("client", c.answer...)
				if got := fares(t, "a.test", client); got != c.require {
					t.Errorf("require: %s, expected %s", got, c.require)
				}
				if got := fares(t, "b.test", client); got != c.prefers {
					t.Errorf("prefer: %s, expected %s", got, c.prefers)
				}
			})
		}
		t.Run("C16/"+v.name+"/nobody may be asked", func(t *testing.T) {
			n := o.asked.Load()
			if got := fares(t, "d.test", o.client("client")); got != "ocsp_unavailable" {
				t.Error(got)
			}
			if got := fares(t, "a.test", w.ca.Client("nameless")); got != "ocsp_unavailable" {
				t.Error(got)
			}
			if o.asked.Load() != n {
				t.Error("the responder was asked")
			}
		})
		t.Run("C21/"+v.name+"/not verified", func(t *testing.T) {
			n := o.asked.Load()
			foreign := testpki.New(t)
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					for j := range 10 {
						host := []string{"a.test", "b.test", "c.test"}[j%3]
						c := foreign.Client(fmt.Sprint(i, j), testpki.OCSPServer(o.url+"/"))
						w.call("public", pin(w.client(host, c), v.id), host, "/")
					}
				})
			}
			wg.Wait()
			if o.asked.Load() != n {
				t.Errorf("%d questions", o.asked.Load()-n)
			}
		})
		t.Run("C20/"+v.name+"/list revoked, answer good", func(t *testing.T) {
			carol := o.client("carol")
			w.file("clients.crl", w.ca.CRL(carol, testpki.Number(time.Now().UnixNano())))
			if err := w.main.Reload(); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if got := fares(t, "c.test", carol); got != "client_cert_revoked" {
					t.Error(got)
				}
			}
			if got := fares(t, "a.test", carol); got != "200" {
				t.Errorf("where no list is asked: %s", got)
			}
		})
		t.Run("C20/"+v.name+"/list good, answer revoked", func(t *testing.T) {
			dave := o.client("dave", testpki.OCSPRevoked(-1))
			live := w.keep(t, "public", pin(w.client("c.test", dave), v.id)) // nobody knows yet
			await(t, 5*time.Second, "the answer", func() bool { return fares(t, "c.test", dave) == "client_cert_revoked" })
			if r := w.ends(t, live, "c.test"); !strings.HasPrefix(fmt.Sprint(r["found"]), "client_cert_revoked: ") {
				t.Errorf("record: %v", r)
			}
		})
	}
	t.Run("C18/revoked while connected", func(t *testing.T) {
		// The answer lasts six more seconds of the five minutes that clocks may differ; who comes next makes us ask again.
		short := testpki.OCSPNext(time.Now().Add(6500*time.Millisecond - 5*time.Minute))
		made := testpki.OCSPThis(time.Now().Add(-time.Hour))
		erin, frank, gail := o.client("erin", made, short), o.client("frank", made, short), o.client("gail", made, short)
		live, other := w.keep(t, "public", w.client("a.test", erin)), w.keep(t, "public", w.client("b.test", frank))
		for host, k := range map[string]*keep{"a.test": live, "b.test": other} {
			_ = k.SetDeadline(time.Now().Add(time.Minute))
			if status, _, err := k.get(host); status != 200 {
				t.Fatal(status, err)
			}
		}
		idle := w.keep(t, "public", w.client("b.test", gail))
		if status, _, err := idle.get("b.test"); status != 200 {
			t.Fatal(status, err)
		}
		o.answer(erin, testpki.OCSPRevoked(1))
		o.answer(gail, testpki.OCSPRevoked(1))
		if status, _, err := live.get("a.test"); status != 200 {
			t.Fatal("before:", status, err)
		}
		await(t, 12*time.Second, "the next question", func() bool {
			return w.fares(t, "public", "a.test", w.client("a.test", erin)) == "client_cert_revoked"
		})
		w.ends(t, live, "a.test")
		// Learnt where an answer is required, it ends an idle connection where one is preferred.
		await(t, 5*time.Second, "the question about gail", func() bool {
			return w.fares(t, "public", "a.test", w.client("a.test", gail)) == "client_cert_revoked"
		})
		_ = idle.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := idle.r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("an idle connection: %v", err)
		}
		w.find(t, "client="+idle.LocalAddr().String(), "reason=client_no_longer_trusted")
		if status, _, err := other.get("b.test"); status != 200 {
			t.Errorf("frank: %d %v", status, err)
		}
		// What was heard stays, also where the answer's time is over and nobody answers any more.
		o.put("/", nil)
		if got := w.fares(t, "public", "b.test", w.client("b.test", erin)); got != "client_cert_revoked" {
			t.Errorf("where answers are only preferred: %s", got)
		}
	})
	series := w.scrape(t)
	for _, outcome := range []string{"answered", "unusable"} {
		if v := series[`countersign_ocsp_exchanges_total{outcome="`+outcome+`"}`]; v == "" || v == "0" {
			t.Errorf("%s: %q", outcome, v)
		}
	}
}

// TestOCSPBlackhole: a responder that says nothing costs those who need it a bounded time, and others nothing.
func TestOCSPBlackhole(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := echo(t, "api", nil)
	o := newOracle(t, w.ca)
	known := o.client("known", testpki.OCSPRevoked(1))
	good := o.client("good")
	w.start(strings.ReplaceAll(byOCSP, "HOST", o.host), b.addr)
	if got := w.fares(t, "public", "a.test", w.client("a.test", known)); got != "client_cert_revoked" {
		t.Fatal(got)
	}
	if got := w.fares(t, "public", "a.test", w.client("a.test", good)); got != "200" {
		t.Fatal(got)
	}
	var clients []*testpki.Cert
	for i := range 30 {
		clients = append(clients, o.client(fmt.Sprint("client", i)))
	}
	// among lets the clients come to host at once, and meanwhile one to another host. It returns the slowest of either kind, and
	// how long the machine stood still.
	among := func(host string, good func(answer) bool) (slowest, other, still time.Duration) {
		confs := make([]*tls.Config, len(clients))
		for i, c := range clients {
			confs[i] = w.client(host, c)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		for _, conf := range confs {
			wg.Go(func() {
				start := time.Now()
				if a := w.call("public", conf, host, "/"); !good(a) {
					t.Errorf("C18/%s: %d %v", host, a.status, a.err)
				}
				mu.Lock()
				defer mu.Unlock()
				slowest = max(slowest, time.Since(start))
			})
		}
		over := make(chan struct{})
		wg.Go(func() {
			for begin := time.Now(); ; begin = time.Now() {
				select {
				case <-over:
					return
				case <-time.After(10 * time.Millisecond):
					still = max(still, time.Since(begin))
				}
			}
		})
		alice := w.client("p.w.test", w.ca.Client("alice"))
		for range 40 {
			start := time.Now()
			if a := w.call("public", alice, "p.w.test", "/"); a.status != 200 {
				t.Errorf("C18/another host: %d %v", a.status, a.err)
			}
			other = max(other, time.Since(start))
			time.Sleep(20 * time.Millisecond)
		}
		close(over)
		wg.Wait()
		t.Logf("%s within %s; another host's handshakes within %s; the machine stood still for %s", host, slowest.Round(time.Millisecond), other.Round(time.Millisecond), still.Round(time.Millisecond))
		return slowest, other, still
	}
	_, usual, _ := among("p.w.test", func(a answer) bool { return a.status == 200 })
	o.put("/", nil) // it takes questions, and says nothing
	slowest, worst, still := among("a.test", func(a answer) bool { return a.status == 0 && a.alert() != "" })
	patience := max(time.Second, 3*usual) // the machine may be busy
	if slowest > 8*time.Second || worst > patience+still {
		t.Errorf("C18/refused within %s; another host's handshakes within %s, %s before", slowest, worst, usual)
	}
	w.find(t, "reason=ocsp_unavailable", "stage=handshake")
	start := time.Now()
	if got := w.fares(t, "public", "b.test", w.client("b.test", clients[0])); got != "200" || time.Since(start) > patience {
		t.Errorf("C18/prefer: %s after %s", got, time.Since(start))
	}
	for _, host := range []string{"a.test", "b.test"} {
		if got := w.fares(t, "public", host, w.client(host, known)); got != "client_cert_revoked" {
			t.Errorf("C18/known to be revoked: %s", got)
		}
	}
	if got := w.fares(t, "public", "a.test", w.client("a.test", good)); got != "200" {
		t.Errorf("C18/known to be good: %s", got)
	}
	await(t, 5*time.Second, "the condition", func() bool { return len(w.condition("ocsp_responder_failing")) == 1 })
	series := w.scrape(t)
	if series[`countersign_condition{code="ocsp_responder_failing"}`] != "1" || series[`countersign_ocsp_exchanges_total{outcome="failed"}`] == "0" {
		t.Errorf("metrics: %q", series[`countersign_ocsp_exchanges_total{outcome="failed"}`])
	}
	// A host whose responder is not there at all.
	c := w.ca.Client("dead", testpki.OCSPServer("http://127.0.0.1:1/"))
	start = time.Now()
	if got := w.fares(t, "public", "a.test", w.client("a.test", c)); got != "ocsp_unavailable" || time.Since(start) > patience {
		t.Errorf("C18/nobody there: %s after %s", got, time.Since(start))
	}
}

// TestDenyReload: what the operator denies is refused with the next reload, on live connections too.
func TestDenyReload(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	alice, bob := w.ca.Client("alice"), w.ca.Client("bob", testpki.DNS("bob.test"))
	denied := func(entry string) string {
		return strings.Replace(byFile, "revocation: {", "revocation: {deny: ["+entry+"], ", 1)
	}
	serial := bob.Cert.SerialNumber.Text(16)
	w.start(byFile, b.addr)
	for _, entry := range []string{"{serial: '0x" + serial + "', issuer: CN=Clients CA}", "{serial: '" + bob.Cert.SerialNumber.String() + "', issuer: CN=Clients CA}", "{san: 'dns:BOB.test'}"} {
		t.Run("C20/"+entry[:9], func(t *testing.T) {
			w.reload(byFile, b.addr)
			live, other := w.keep(t, "public", w.client("a.test", bob)), w.keep(t, "public", w.client("a.test", alice))
			if status, _, err := live.get("a.test"); status != 200 {
				t.Fatal(status, err)
			}
			w.reload(denied(entry), b.addr)
			if r := w.ends(t, live, "a.test"); !strings.HasPrefix(fmt.Sprint(r["found"]), "client_cert_denied: ") {
				t.Errorf("record: %v", r)
			}
			if got := w.fares(t, "public", "a.test", w.client("a.test", bob)); got != "client_cert_denied" {
				t.Errorf("bob: %s", got)
			}
			if status, _, err := other.get("a.test"); status != 200 {
				t.Errorf("alice: %d %v", status, err)
			}
		})
	}
}

// TestBundleFolder: a file that is put into a folder of CAs counts without a word from anybody, and so does one that is
// taken out.
func TestBundleFolder(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	other := testpki.New(t)
	if err := os.MkdirAll(filepath.Join(w.dir, "cas"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.file("cas/clients.pem", append(w.root.PEM(), w.ca.PEM()...))
	conf := strings.Replace(byFile, "{file: clients.pem}, revocation: {crls: [{file: clients.crl}]}", "{directory: cas}", 1)
	w.startWith(conf, b.addr, func(o *daemon.Options) { o.Quiet, o.Poll = 20*time.Millisecond, 50*time.Millisecond })
	alice, mallory := w.client("a.test", w.ca.Client("alice")), w.client("a.test", other.Client("mallory"))
	if got := w.fares(t, "public", "a.test", mallory); got != "client_cert_untrusted" {
		t.Fatal(got)
	}
	hash := w.main.Hash()
	w.file("cas/.other.pem.swp", other.PEM())
	time.Sleep(600 * time.Millisecond)
	if w.main.Hash() != hash {
		t.Error("A22/a hidden file counts")
	}
	w.file("cas/other.pem", other.PEM())
	await(t, 5*time.Second, "the new file", func() bool { return w.fares(t, "public", "a.test", mallory) == "200" })
	live := w.keep(t, "public", mallory)
	if status, _, err := live.get("a.test"); status != 200 {
		t.Fatal(status, err)
	}
	w.file("cas/text.pem", []byte("hello\n"))
	await(t, 5*time.Second, "the refusal", func() bool { return len(w.condition("reload_refused")) == 1 })
	if got := w.fares(t, "public", "a.test", alice); got != "200" {
		t.Errorf("A22/alice: %s", got)
	}
	for _, name := range []string{"text.pem", "other.pem"} {
		if err := os.Remove(filepath.Join(w.dir, "cas", name)); err != nil {
			t.Fatal(err)
		}
	}
	await(t, 5*time.Second, "the file that is gone", func() bool { return w.fares(t, "public", "a.test", mallory) == "client_cert_untrusted" })
	w.ends(t, live, "a.test")
	if got := w.fares(t, "public", "a.test", alice); got != "200" {
		t.Errorf("A07/alice: %s", got)
	}
}

// TestServerAuthUntil: clients that only a lenient eku lets in are let in until its date, and counted.
func TestServerAuthUntil(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	until := func(date string) string {
		return strings.Replace(byFile, "revocation: {", "accept: {eku: {allow_server_auth_until: "+date+"}}, revocation: {", 1)
	}
	old := w.client("a.test", w.ca.Client("old", testpki.EKU(x509.ExtKeyUsageServerAuth)))
	w.start(until("2099-01-01"), b.addr)
	live := w.keep(t, "public", old)
	if status, _, err := live.get("a.test"); status != 200 {
		t.Fatal(status, err)
	}
	found := false
	for name := range w.scrape(t) {
		found = found || strings.HasPrefix(name, "countersign_lenient_acceptances_total{") && strings.Contains(name, "Clients CA")
	}
	if !found {
		t.Error("B01/not counted")
	}
	w.reload(until("2020-01-01"), b.addr)
	w.ends(t, live, "a.test")
	if got := w.fares(t, "public", "a.test", old); got != "client_cert_eku" {
		t.Errorf("B01/%s", got)
	}
	if !strings.Contains(w.ops.String(), "the date is over") {
		t.Error("B01/no warning")
	}
}

// TestReloadLargeList: a list of a million entries is loaded without handshakes noticing.
func TestReloadLargeList(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("it takes a list of a million entries, and the clock")
	}
	w := newWorld(t)
	b := echo(t, "api", nil)
	bob := w.ca.Client("bob")
	w.start(byFile, b.addr)
	alice := w.client("a.test", w.ca.Client("alice"))
	var stop atomic.Bool
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop.Store(true)
	for range 2 {
		wg.Go(func() {
			for !stop.Load() {
				start := time.Now()
				a := w.call("public", alice, "a.test", "/")
				mu.Lock()
				took = append(took, time.Since(start))
				mu.Unlock()
				if a.status != 200 {
					t.Errorf("alice: %d %v", a.status, a.err)
					return
				}
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	// calls are those since the last time, at least twenty.
	calls := func() (list []time.Duration, p99 time.Duration) {
		await(t, 10*time.Second, "calls", func() bool { mu.Lock(); defer mu.Unlock(); return len(took) >= 20 })
		mu.Lock()
		list, took = took, nil
		mu.Unlock()
		slices.Sort(list)
		return list, list[len(list)*99/100]
	}
	for try := 1; ; try++ { // the machine may stand still in one of them
		w.file("clients.crl", w.ca.CRL(testpki.Many(1_000_000), testpki.Entry(bob.Cert.SerialNumber), testpki.Number(int64(1+try))))
		calls()
		time.Sleep(300 * time.Millisecond)
		before, usual := calls()
		start := time.Now()
		if err := w.main.Reload(); err != nil {
			t.Fatal(err)
		}
		reload := time.Since(start)
		during, p99 := calls()
		t.Logf("reload %s; calls before: %d, p99 %s; during: %d, p99 %s, slowest %s", reload.Round(time.Millisecond), len(before), usual, len(during), p99, during[len(during)-1])
		if p99 <= max(250*time.Millisecond, 4*usual) { // the machine may have been busy before
			break
		}
		if try == 3 {
			t.Errorf("C12/p99 during the reload is %s, three times", p99)
			break
		}
	}
	stop.Store(true)
	wg.Wait()
	if got := w.fares(t, "public", "a.test", w.client("a.test", bob)); got != "client_cert_revoked" {
		t.Errorf("C12/bob: %s", got)
	}
}
