package interop_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// recipe is a page of docs/recipes: its configuration, its commands, and the folder in which it is tried out.
type recipe struct {
	page, yaml, files string
	commands          []command
	dir               string
	ca                *cert // of servers: server-ca.pem
}

// command is a line of a page that begins with $, and the lines below it.
type command struct {
	line string
	want []string
}

func readRecipe(t *testing.T, page string) *recipe {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "docs", "recipes", page))
	if err != nil {
		t.Fatal(err)
	}
	r := &recipe{page: page, dir: t.TempDir()}
	block := ""
	for line := range strings.Lines(string(text)) {
		switch {
		case strings.HasPrefix(line, "```"):
			block = strings.TrimSpace(strings.Trim(line, "`\n"))
			if block == "yaml" && r.yaml != "" {
				t.Fatalf("%s has two YAML blocks", page)
			}
		case block == "yaml":
			r.yaml += line
		case block == "console" && strings.HasPrefix(line, "$ "):
			r.commands = append(r.commands, command{line: strings.TrimSpace(line[2:])})
		case block == "console":
			last := &r.commands[len(r.commands)-1]
			last.want = append(last.want, strings.TrimSpace(line))
		case strings.HasPrefix(line, "$"):
			t.Errorf("%s: a command outside a console block is not run: %s", page, line)
		case strings.HasPrefix(line, "|"):
			r.files += line
		}
	}
	if r.yaml == "" || len(r.commands) == 0 {
		t.Fatalf("%s has no configuration or no commands", page)
	}
	for _, name := range regexp.MustCompile(`[\w-]+\.(pem|key|crl)`).FindAllString(r.yaml, -1) {
		if !strings.Contains(r.files, "`"+name+"`") {
			t.Errorf("%s does not say what %s is", page, name)
		}
	}
	r.ca = issue(t, r.dir, "server-ca", nil, newECDSA(t), isCA)
	return r
}

// server makes NAME.pem and NAME.key of the servers' CA.
func (r *recipe) server(t *testing.T, name string, change ...func(*x509.Certificate)) *cert {
	t.Helper()
	return issue(t, r.dir, name, r.ca, newECDSA(t), change...)
}

func (r *recipe) authority(t *testing.T, name string) *cert {
	t.Helper()
	return issue(t, r.dir, name, nil, newECDSA(t), isCA)
}

func (r *recipe) client(t *testing.T, name string, ca *cert, change ...func(*x509.Certificate)) *cert {
	t.Helper()
	return issue(t, r.dir, name, ca, newECDSA(t), append([]func(*x509.Certificate){forClient}, change...)...)
}

// crl writes the revocation list of ca, which was next to be updated at until, and returns it in DER.
func (r *recipe) crl(t *testing.T, name string, ca *cert, until time.Time, revoked ...*cert) []byte {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: until.Add(-25 * time.Hour), NextUpdate: until}
	for _, c := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: list.ThisUpdate})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.Certificate, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, r.dir, name, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
	return der
}

var (
	listens = regexp.MustCompile(`(listen: ")([^"]+)(")`)
	targets = regexp.MustCompile(`(\w+://)([\w.]+:\d+)`)
)

// start puts free addresses in place of those after listen:, and those of places in place of those in targets:, starts
// the program, runs the commands and checks what they print. The addresses of listeners are under the port the page has.
func (r *recipe) start(t *testing.T, places map[string]string) *balancer {
	t.Helper()
	b := &balancer{t: t, pki: &pki{dir: r.dir, internal: r.ca}, addr: map[string]string{}, records: &output{}}
	var all, pairs []string // pairs are what is replaced in commands
	used := map[string]bool{}
	for line := range strings.Lines(r.yaml) {
		line = listens.ReplaceAllStringFunc(line, func(s string) string {
			old := listens.FindStringSubmatch(s)[2]
			if path, ok := strings.CutPrefix(old, "unix:"); ok {
				b.addr[path] = filepath.Join(r.dir, filepath.Base(path))
				pairs = append(pairs, path, b.addr[path])
				return `listen: "unix:` + b.addr[path] + `"`
			}
			_, port, err := net.SplitHostPort(old)
			if err != nil {
				t.Fatal(err)
			}
			b.addr[port] = freeAddress(t)
			if old == outside()+":"+port {
				b.addr[port] = net.JoinHostPort(outside(), portOf(b.addr[port]))
			}
			pairs = append(pairs, ":"+port+" ", ":"+portOf(b.addr[port])+" ", ":"+port+"/", ":"+portOf(b.addr[port])+"/")
			return `listen: "` + b.addr[port] + `"`
		})
		if strings.Contains(line, "targets: [") {
			line = targets.ReplaceAllStringFunc(line, func(s string) string {
				part := targets.FindStringSubmatch(s)
				if places[part[2]] == "" {
					t.Fatalf("the test of %s has no target for %s", r.page, part[2])
				}
				used[part[2]] = true
				return part[1] + places[part[2]]
			})
		} else {
			for old, now := range places { // durations, and what a page says could be added
				if strings.Contains(old, ": ") && strings.Contains(line, old) {
					used[old], line = true, strings.Replace(line, old, now, 1)
				}
			}
		}
		all = append(all, line)
	}
	for old := range places {
		if !used[old] {
			t.Errorf("%s has no %s", r.page, old)
		}
	}
	file := write(t, r.dir, "countersign.yaml", []byte(strings.Join(all, "")))
	cmd := exec.Command(binary, "run", "-c", file)
	cmd.Stdout = b.records
	b.log = start(t, cmd, b.addr["9901"])
	await(t, func() bool {
		resp, err := http.Get("http://" + b.addr["9901"] + "/readyz")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusOK
	})
	move := strings.NewReplacer(pairs...)
	for _, c := range r.commands {
		program, _, _ := strings.Cut(c.line, " ")
		if program != "countersign" {
			need(t, program)
		}
		res := run(t, nil, "sh", "-c", `cd "$0" && PATH="$1:$PATH" && `+move.Replace(c.line+" "), r.dir, filepath.Dir(binary))
		for _, want := range c.want {
			pattern := strings.ReplaceAll(regexp.QuoteMeta(want), `\.\.\.`, ".*")
			if !regexp.MustCompile(pattern).MatchString(res.out + res.err) {
				t.Errorf("%s\n  is said to print %q; %s", c.line, want, res)
			}
		}
		if len(c.want) == 0 {
			t.Errorf("%s: the page does not say what is printed", c.line)
		}
	}
	return b
}

// get asks listener port for a path of host over TLS, with header lines "Name: value".
func (b *balancer) get(t *testing.T, port, host, path string, who *cert, headers ...string) (*http.Response, string, error) {
	t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", b.addr[port], goConfig(b.pki, host, who))
	if err != nil {
		return nil, "", err
	}
	defer c.Close()
	return exchange(c, host, path, headers...)
}

// exchange makes one request on a connection.
func exchange(c net.Conn, host, path string, headers ...string) (*http.Response, string, error) {
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", path, host, strings.Join(append(headers, ""), "\r\n")); err != nil {
		return nil, "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return nil, "", err
	}
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// passes wants 200 and returns what the backend saw.
func (b *balancer) passes(t *testing.T, e *echo, port, host, path string, who *cert, headers ...string) seen {
	t.Helper()
	resp, body, err := b.get(t, port, host, path, who, headers...)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%s%s: %v, %+v %s", host, path, err, resp, body)
	}
	return e.parse(t, body)
}

// refuses wants no answer, the way of refusal, a record with the reason and nothing at the backend.
func (b *balancer) refuses(t *testing.T, e *echo, port, host string, who *cert, way, reason string) {
	t.Helper()
	mark, before := b.mark(), e.touched()
	if resp, body, err := b.get(t, port, host, "/", who); err == nil || refusal(err.Error()) != way {
		t.Errorf("%s: %v, %+v %s; want %s", host, err, resp, body, way)
	}
	b.noRequest(t, b.record(t, mark, "kind=handshake", "reason="+reason))
	if e.touched() != before {
		t.Error("the backend was reached")
	}
}

// echoTLS is an echo that only clients of ca reach; it says whom it saw in the header Peer.
func echoTLS(t *testing.T, shown, ca *cert) *echo {
	t.Helper()
	e := &echo{}
	pool := x509.NewCertPool()
	pool.AddCert(ca.Certificate)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: shown.chain, PrivateKey: shown.key}},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool})
	if err != nil {
		t.Fatal(err)
	}
	e.addr = l.Addr().String()
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		e.requests++
		e.mu.Unlock()
		r.Header.Set("Peer", r.TLS.PeerCertificates[0].Subject.CommonName)
		_ = json.NewEncoder(w).Encode(seen{r.Method, r.RequestURI, r.Proto, r.Host, r.Header, 0})
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return e
}

func TestRecipesAreListed(t *testing.T) {
	index, err := os.ReadFile("../docs/recipes/README.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("recipes_test.go")
	if err != nil {
		t.Fatal(err)
	}
	pages, _ := filepath.Glob("../docs/recipes/*.md")
	for _, page := range pages {
		if name := filepath.Base(page); name != "README.md" {
			if !bytes.Contains(index, []byte("]("+name+")")) {
				t.Errorf("docs/recipes/README.md does not list %s", name)
			}
			if !bytes.Contains(source, []byte(`readRecipe(t, "`+name+`")`)) {
				t.Errorf("no test runs %s", name)
			}
		}
	}
	if len(pages) < 7 {
		t.Errorf("%d pages", len(pages))
	}
}

func TestRecipeCDN(t *testing.T) {
	r := readRecipe(t, "cdn-to-origin.md")
	ca := r.authority(t, "origin-pull-ca")
	r.server(t, "www", forServer("www.example.org", "partners.example.org"))
	pull := func(c *x509.Certificate) { c.DNSNames = []string{"origin-pull.example.org"} }
	cdn, stranger := r.client(t, "cdn", ca, pull), r.client(t, "stranger", r.authority(t, "other-ca"))
	visitor, unlisted := r.client(t, "visitor", r.authority(t, "visitors-ca")), r.client(t, "unlisted", ca)
	web := newEcho(t)
	b := r.start(t, map[string]string{"10.0.0.11:3000": web.addr})
	const host = "www.example.org"
	b.refuses(t, web, "8443", host, nil, "alert 116", "client_cert_missing")
	b.refuses(t, web, "8443", host, stranger, "alert 42", "client_cert_untrusted")
	h := b.passes(t, web, "8443", host, "/page", cdn, "X-Forwarded-For: 203.0.113.9", "True-Client-IP: 203.0.113.9", "CF-Connecting-IP: 203.0.113.9",
		"Visitor-Address: 203.0.113.9").Header
	if h.Get("X-Forwarded-For") != "127.0.0.1" || h.Get("True-Client-Ip") != "" || h.Get("Cf-Connecting-Ip") != "" || h.Get("Visitor-Address") != "203.0.113.9" {
		t.Errorf("the web server saw %v", h)
	}
	// Of the visitor: on the host that lists the CDN, from the CDN, and from nobody else.
	item := func(c *cert) string { return ":" + base64.StdEncoding.EncodeToString(c.Raw) + ":" }
	for _, c := range []struct {
		host string
		from *cert
		want *cert
	}{{"partners.example.org", cdn, visitor}, {"partners.example.org", unlisted, unlisted}, {host, cdn, cdn}} {
		if h := b.passes(t, web, "8443", c.host, "/", c.from, "Client-Cert: "+item(visitor)).Header; len(h.Values("Client-Cert")) != 1 || h.Get("Client-Cert") != item(c.want) {
			t.Errorf("%s: the web server saw %v", c.host, h)
		}
	}
}

func TestRecipeOpenBanking(t *testing.T) {
	r := readRecipe(t, "open-banking.md")
	a, bb, c := r.authority(t, "bank-a-ca"), r.authority(t, "bank-b-ca"), r.authority(t, "bank-c-ca")
	var bundle []byte
	d := r.authority(t, "bank-d-ca") // publishes no list
	for _, ca := range []*cert{a, bb, c, d} {
		bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})...)
	}
	write(t, r.dir, "partner-cas.pem", bundle)
	r.server(t, "api", forServer("api.example.org", "portal.example.org"))
	alpha, beta, gamma := r.client(t, "alpha", a), r.client(t, "beta", bb), r.client(t, "gamma", c)
	revoked, stranger := r.client(t, "revoked", a), r.client(t, "stranger", r.authority(t, "other-ca"))
	r.crl(t, "bank-a.crl", a, time.Now().Add(24*time.Hour), revoked)
	write(t, r.dir, "bank-b.crl", r.crl(t, "bank-b.pem.crl", bb, time.Now().Add(24*time.Hour))) // DER
	r.crl(t, "bank-c.crl", c, time.Now().Add(-time.Hour))
	accounts, portal := newEcho(t), newEcho(t)
	b := r.start(t, map[string]string{"10.0.0.11:8080": accounts.addr, "10.0.0.12:8080": portal.addr})
	const api, page = "api.example.org", "portal.example.org"
	for _, who := range []*cert{alpha, beta} {
		for host, e := range map[string]*echo{api: accounts, page: portal} {
			h := b.passes(t, e, "8443", host, "/accounts/1", who, "X-Amzn-Mtls-Clientcert-Subject: CN=forged").Header
			for suffix, want := range map[string]string{"Subject": "CN=" + who.Subject.CommonName, "Issuer": "CN=" + who.Issuer.CommonName,
				"Serial-Number": fmt.Sprintf("%04X", who.SerialNumber)} {
				if got := h.Values("X-Amzn-Mtls-Clientcert-" + suffix); len(got) != 1 || got[0] != want {
					t.Errorf("%s: %q; want %q", suffix, got, want)
				}
			}
			if h.Get("X-Amzn-Mtls-Clientcert-Validity") == "" || h.Get("X-Amzn-Mtls-Clientcert-Leaf") == "" {
				t.Errorf("the backend saw %v", h)
			}
		}
	}
	for _, c := range []caller{{"", nil, "client_cert_missing"}, {"", revoked, "client_cert_revoked"}, {"", stranger, "client_cert_untrusted"}, {"", gamma, "crl_stale"},
		{"", r.client(t, "delta", d), "crl_missing"}} {
		number, _ := c.alert("1.3")
		b.refuses(t, accounts, "8443", api, c.cert, "alert "+number, c.reason)
		mark, before := b.mark(), portal.touched()
		resp, body, err := b.get(t, "8443", page, "/private", c.cert, "Accept: text/html")
		if err != nil || resp.StatusCode != 403 || strings.Contains(body, c.reason) && c.cert != nil || strings.Contains(body, "private") {
			t.Fatalf("%v, %+v %s", err, resp, body)
		}
		ref := regexp.MustCompile(`<code>(.+)</code>`).FindStringSubmatch(body)
		if ref == nil {
			t.Fatalf("no reference on the page: %s", body)
		}
		b.record(t, mark, "kind=request", "status=403", "reason="+c.reason, "ref="+ref[1])
		if portal.touched() != before {
			t.Error("the backend was reached")
		}
	}
	// From the page's host to the API: good clients only.
	for status, who := range map[int]*cert{200: alpha, 403: nil} {
		conn, err := tls.Dial("tcp", b.addr["8443"], goConfig(b.pki, page, who))
		if err != nil {
			t.Fatal(err)
		}
		before := accounts.touched()
		resp, _, err := exchange(conn, api, "/accounts/1")
		if err != nil || resp.StatusCode != status {
			t.Errorf("%v, %+v; want %d", err, resp, status)
		}
		if reached := accounts.touched() != before; reached != (status == 200) {
			t.Errorf("status %d, and the backend was reached: %v", status, reached)
		}
		conn.Close()
	}
	if resp, _, err := b.get(t, "8443", api, "/other", alpha); err != nil || resp.StatusCode != 404 {
		t.Errorf("%v, %+v", err, resp)
	}
}

// lines is a TLS server for clients of ca that answers each line with it and the client's name.
func lines(t *testing.T, shown, ca *cert) string {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(ca.Certificate)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: shown.chain, PrivateKey: shown.key}},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool})
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
				for in := bufio.NewScanner(c); in.Scan(); {
					fmt.Fprintf(c, "%s from %s\n", in.Text(), c.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName)
				}
			}()
		}
	}()
	return l.Addr().String()
}

func TestRecipeLegacyProgram(t *testing.T) {
	places := map[string]string{}
	setUp := func(t *testing.T, names ...string) (*recipe, *echo, *balancer) {
		r := readRecipe(t, "legacy-program.md")
		ca := r.authority(t, "partner-ca")
		r.client(t, "our", ca)
		partner := issue(t, r.dir, "partner", ca, newECDSA(t), forServer(names...))
		e := echoTLS(t, partner, ca)
		if len(names) == 1 || len(places) > 2 { // not as on the page, whose calls would fail
			r.commands = nil
		}
		places["10.0.0.21:8443"], places["10.0.0.22:9443"] = e.addr, lines(t, partner, ca)
		return r, e, r.start(t, places)
	}
	const socket = "/run/countersign/partner.sock"
	dial := func(t *testing.T, network, addr string) net.Conn {
		t.Helper()
		c, err := net.DialTimeout(network, addr, 15*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		t.Cleanup(func() { c.Close() })
		return c
	}
	t.Run("the partner", func(t *testing.T) {
		r, e, b := setUp(t, "api.partner.example.org", "feed.partner.example.org")
		for network, addr := range map[string]string{"tcp": b.addr["8080"], "unix": b.addr[socket]} {
			resp, body, err := exchange(dial(t, network, addr), "api.partner.example.org", "/orders?n=1")
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("%v, %+v %s", err, resp, body)
			}
			if s := e.parse(t, body); s.Header.Get("Peer") != "our" || s.Host != "api.partner.example.org" || s.Target != "/orders?n=1" {
				t.Errorf("the partner saw %+v", s)
			}
		}
		if info, err := os.Stat(filepath.Join(r.dir, "partner.sock")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
		mark := b.mark()
		c := dial(t, "tcp", b.addr["5000"])
		fmt.Fprintf(c, "hello\n")
		if line, err := bufio.NewReader(c).ReadString('\n'); line != "hello from our\n" {
			t.Errorf("%q, %v", line, err)
		}
		c.Close()
		b.record(t, mark, "kind=tunnel", "reason=tunnel_closed", "listener=bytes_in")
		before := e.touched()
		if resp, _, err := exchange(dial(t, "tcp", b.addr["8080"]), "other.example.org", "/"); err != nil || resp.StatusCode != 421 {
			t.Errorf("%v, %+v", err, resp)
		}
		if e.touched() != before {
			t.Error("the partner was reached")
		}
	})
	t.Run("not the partner", func(t *testing.T) {
		_, e, b := setUp(t, "someone-else.example.org")
		for network, addr := range map[string]string{"tcp": b.addr["8080"], "unix": b.addr[socket]} {
			mark := b.mark()
			if resp, body, err := exchange(dial(t, network, addr), "api.partner.example.org", "/orders"); err != nil || resp.StatusCode != 502 {
				t.Errorf("%v, %+v %s", err, resp, body)
			}
			b.record(t, mark, "kind=request", "reason=upstream_cert_refused")
		}
		mark := b.mark()
		c := dial(t, "tcp", b.addr["5000"])
		fmt.Fprintf(c, "secret\n")
		if out, err := io.ReadAll(c); len(out) != 0 {
			t.Errorf("%q, %v", out, err)
		}
		b.record(t, mark, "kind=tunnel", "reason=upstream_cert_refused")
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.requests != 0 {
			t.Error("the impostor got a request")
		}
	})
	t.Run("sources", func(t *testing.T) {
		places = map[string]string{"protocol: tcp": "protocol: tcp\n    sources: [127.0.0.2]"}
		_, _, b := setUp(t, "api.partner.example.org", "feed.partner.example.org")
		for from, want := range map[string]string{"127.0.0.2": "hello from our\n", "127.0.0.1": ""} {
			c, err := (&net.Dialer{Timeout: 15 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", b.addr["5000"])
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			fmt.Fprintf(c, "hello\n")
			if line, err := bufio.NewReader(c).ReadString('\n'); line != want {
				t.Errorf("from %s: %q, %v; want %q", from, line, err, want)
			}
			c.Close()
		}
		if r := b.record(t, 0, "reason=source_refused"); !strings.HasPrefix(fmt.Sprint(r["client"]), "127.0.0.1:") {
			t.Errorf("%v", r)
		}
	})
	t.Run("this machine only", func(t *testing.T) {
		ip := outside()
		if ip == "" {
			t.Skip("this machine has only loopback addresses")
		}
		r := readRecipe(t, "legacy-program.md")
		r.client(t, "our", r.authority(t, "partner-ca"))
		r.commands = nil
		r.yaml = strings.Replace(r.yaml, `"127.0.0.1:5000"`, `"`+ip+`:5000"`, 1)
		b := r.start(t, map[string]string{"10.0.0.21:8443": freeAddress(t), "10.0.0.22:9443": freeAddress(t)})
		c := dial(t, "tcp", b.addr["5000"])
		if out, err := io.ReadAll(c); len(out) != 0 {
			t.Errorf("%q, %v", out, err)
		}
		if r := b.record(t, 0, "reason=source_refused"); !strings.HasPrefix(fmt.Sprint(r["client"]), ip+":") {
			t.Errorf("%v", r)
		}
	})
}

// outside is an address of this machine that is not loopback.
func outside() string {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	return ""
}

func TestRecipeSidecar(t *testing.T) {
	r := readRecipe(t, "service-sidecar.md")
	mesh := r.authority(t, "mesh-ca")
	r.ca = mesh
	service := func(name string) *cert {
		return issue(t, r.dir, name, mesh, newECDSA(t), func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
			c.DNSNames = []string{name + ".mesh.example.org"}
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: "mesh.example.org", Path: "/" + name}}
		})
	}
	service("orders")
	stock := service("stock")
	app, peer := newEcho(t), echoTLS(t, stock, mesh)
	b := r.start(t, map[string]string{"127.0.0.1:8000": app.addr, "10.0.0.31:8443": peer.addr, "10.0.0.32:8443": peer.addr})
	const orders = "orders.mesh.example.org"
	h := b.passes(t, app, "8443", orders, "/", stock, `X-Forwarded-Client-Cert: Subject="CN=admin"`).Header
	if got := h.Values("X-Forwarded-Client-Cert"); len(got) != 1 || !strings.Contains(got[0], `Subject="CN=stock"`) ||
		!strings.Contains(got[0], "URI=spiffe://mesh.example.org/stock") || strings.Contains(got[0], "admin") {
		t.Errorf("the service saw %q", got)
	}
	b.refuses(t, app, "8443", orders, nil, "alert 116", "client_cert_missing")
	b.refuses(t, app, "8443", orders, r.client(t, "stranger", r.authority(t, "other-ca")), "alert 42", "client_cert_untrusted")
	out := func(host string) (*http.Response, string, error) {
		c, err := net.DialTimeout("tcp", b.addr["9000"], 15*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return exchange(c, host, "/")
	}
	resp, body, err := out("stock.mesh.example.org")
	if err != nil || resp.StatusCode != 200 || peer.parse(t, body).Header.Get("Peer") != "orders" {
		t.Errorf("%v, %+v %s", err, resp, body)
	}
	mark := b.mark()
	if resp, body, err := out("billing.mesh.example.org"); err != nil || resp.StatusCode != 502 {
		t.Errorf("%v, %+v %s", err, resp, body)
	}
	b.record(t, mark, "kind=request", "upstream=billing", "reason=upstream_cert_refused")
}

// broker answers MQTT's CONNECT with CONNACK and PINGREQ with PINGRESP, and knows no TLS.
func broker(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
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
				for head := make([]byte, 2); ; { // type and length
					if _, err := io.ReadFull(c, head); err != nil {
						return
					}
					if _, err := io.CopyN(io.Discard, c, int64(head[1])); err != nil {
						return
					}
					switch head[0] {
					case 0x10:
						_, _ = c.Write([]byte{0x20, 2, 0, 0})
					case 0xc0:
						_, _ = c.Write([]byte{0xd0, 0})
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

func TestRecipeIoT(t *testing.T) {
	r := readRecipe(t, "iot-over-tls.md")
	ca := r.authority(t, "device-ca")
	r.server(t, "mqtt", forServer("mqtt.example.org"))
	one, two := r.client(t, "device-1", ca), r.client(t, "device-2", ca)
	r.crl(t, "device.crl", ca, time.Now().Add(24*time.Hour), two)
	b := r.start(t, map[string]string{"10.0.0.41:1883": broker(t), "tunnel_idle: 90s": "tunnel_idle: 4s", "lifetime: 12h": "lifetime: 9s"})
	connect := func(t *testing.T) net.Conn {
		t.Helper()
		conf := goConfig(b.pki, "mqtt.example.org", one)
		conf.NextProtos = []string{"mqtt"}
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: 15 * time.Second}, "tcp", b.addr["8883"], conf)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		said(t, c, "\x10\x12\x00\x04MQTT\x04\x02\x00\x3c\x00\x06device", "\x20\x02\x00\x00")
		return c
	}
	t.Run("bytes", func(t *testing.T) {
		mark := b.mark()
		c := connect(t)
		for range 3 {
			said(t, c, "\xc0\x00", "\xd0\x00")
		}
		c.Close()
		rec := b.record(t, mark, "kind=tunnel", "reason=tunnel_closed", "bytes_in=26", "bytes_out=10")
		if who, _ := rec["client_certificate"].(map[string]any); who["subject"] != "CN=device-1" {
			t.Errorf("the record has %v", who)
		}
	})
	t.Run("idle", func(t *testing.T) {
		mark, begun := b.mark(), time.Now()
		rest, _ := io.ReadAll(connect(t))
		if took := time.Since(begun); len(rest) != 0 || took < 3900*time.Millisecond || took > 15*time.Second {
			t.Errorf("ended after %v; want tunnel_idle of 4s", took)
		}
		b.record(t, mark, "kind=tunnel", "reason=idle_closed")
	})
	t.Run("lifetime", func(t *testing.T) {
		mark, begun := b.mark(), time.Now()
		c := connect(t)
		for answer := make([]byte, 2); time.Since(begun) < 18*time.Second; time.Sleep(100 * time.Millisecond) { // never idle
			if _, err := c.Write([]byte("\xc0\x00")); err != nil {
				break
			}
			if _, err := io.ReadFull(c, answer); err != nil {
				break
			}
		}
		if took := time.Since(begun); took < 8900*time.Millisecond || took > 16*time.Second {
			t.Errorf("ended after %v; want lifetime of 9s", took)
		}
		b.record(t, mark, "kind=tunnel", "reason=lifetime_reached")
	})
	for reason, who := range map[string]*cert{"client_cert_missing": nil, "client_cert_revoked": two,
		"client_cert_untrusted": r.client(t, "stranger", r.authority(t, "other-ca"))} {
		mark := b.mark()
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: 15 * time.Second}, "tcp", b.addr["8883"], goConfig(b.pki, "mqtt.example.org", who))
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if err == nil || !strings.HasPrefix(refusal(err.Error()), "alert") {
			t.Errorf("%s: the device met %v", reason, err)
		}
		b.record(t, mark, "kind=handshake", "reason="+reason)
		for _, m := range b.since(t, mark) {
			if m["kind"] == "tunnel" {
				t.Errorf("a connection was made: %v", m)
			}
		}
	}
	t.Run("no server name", func(t *testing.T) {
		mark := b.mark()
		conf := goConfig(b.pki, "", one)
		conf.InsecureSkipVerify = true // there is no name to verify
		if c, err := tls.DialWithDialer(&net.Dialer{Timeout: 15 * time.Second}, "tcp", b.addr["8883"], conf); err == nil {
			c.Close()
			t.Error("accepted")
		}
		b.record(t, mark, "kind=handshake", "reason=sni_missing")
	})
	t.Run("revoked while connected", func(t *testing.T) {
		c := connect(t)
		r.crl(t, "device.crl", ca, time.Now().Add(24*time.Hour), one, two)
		refused := false
		await(t, func() bool {
			said(t, c, "\xc0\x00", "\xd0\x00") // the old connection goes on
			n, err := tls.DialWithDialer(&net.Dialer{Timeout: 15 * time.Second}, "tcp", b.addr["8883"], goConfig(b.pki, "mqtt.example.org", one))
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			_ = n.SetDeadline(time.Now().Add(15 * time.Second))
			if _, err = n.Write([]byte("\xc0\x00")); err == nil {
				_, err = n.Read(make([]byte, 1))
			}
			refused = err != nil
			return refused
		})
		said(t, c, "\xc0\x00", "\xd0\x00")
	})
	t.Run("default_host", func(t *testing.T) {
		r.crl(t, "device.crl", ca, time.Now().Add(24*time.Hour))
		r.commands = nil
		b := r.start(t, map[string]string{"10.0.0.41:1883": broker(t), "protocol: tls": "protocol: tls\n    default_host: mqtt.example.org"})
		conf := goConfig(b.pki, "", one)
		conf.InsecureSkipVerify = true
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: 15 * time.Second}, "tcp", b.addr["8883"], conf)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(15 * time.Second))
		said(t, c, "\xc0\x00", "\xd0\x00")
	})
}

// said sends bytes and wants the answer.
func said(t *testing.T, c net.Conn, bytes, want string) {
	t.Helper()
	if _, err := io.WriteString(c, bytes); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("%q, %v; want %q", got, err, want)
	}
}

func TestRecipeALB(t *testing.T) {
	r := readRecipe(t, "replacing-an-alb.md")
	ca := r.authority(t, "clients-ca")
	bundle := append([]byte("# clients\n"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})...)
	write(t, r.dir, "ca-bundle.pem", bundle)
	r.server(t, "api", forServer("api.example.org", "legacy.example.org"))
	good, ended, revoked := r.client(t, "good", ca), r.client(t, "expired", ca, expired), r.client(t, "revoked", ca)
	stranger := r.client(t, "stranger", r.authority(t, "other-ca"))
	early := r.client(t, "early", ca, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) })
	noPurpose := issue(t, r.dir, "no-purpose", ca, newECDSA(t))
	serverOnly := issue(t, r.dir, "server-only", ca, newECDSA(t), forServer())
	r.crl(t, "revoked.crl", ca, time.Now().Add(-time.Hour), revoked) // out of date, and used
	listless := r.client(t, "listless", issue(t, r.dir, "listless-ca", ca, newECDSA(t), isCA))
	old := r.client(t, "of-an-old-ca", issue(t, r.dir, "old-ca", ca, newECDSA(t), isCA, expired))
	api := newEcho(t)
	b := r.start(t, map[string]string{"10.0.0.11:8080": api.addr})
	const verify, through = "api.example.org", "legacy.example.org"
	forged := []string{"X-Amzn-Mtls-Clientcert: forged", "X-Amzn-Mtls-Clientcert-Subject: CN=forged", "X-Partner-Chain: forged", "x-partner_chain: forged"}
	mtls := func(h http.Header) map[string]string {
		out := map[string]string{}
		for k, v := range h {
			if low := strings.ToLower(k); strings.Contains(low, "mtls") || strings.Contains(low, "partner") {
				out[k] = strings.Join(v, "|")
			}
		}
		return out
	}
	for _, who := range []*cert{good, ended, noPurpose, listless} {
		h := mtls(b.passes(t, api, "8443", verify, "/", who, forged[:2]...).Header)
		if len(h) != 5 || h["X-Amzn-Mtls-Clientcert-Subject"] != "CN="+who.Subject.CommonName || h["X-Amzn-Mtls-Clientcert-Issuer"] != "CN="+who.Issuer.CommonName ||
			h["X-Amzn-Mtls-Clientcert-Serial-Number"] != fmt.Sprintf("%04X", who.SerialNumber) ||
			h["X-Amzn-Mtls-Clientcert-Validity"] != fmt.Sprintf("NotBefore=%s;NotAfter=%s", who.NotBefore.UTC().Format(time.RFC3339), who.NotAfter.UTC().Format(time.RFC3339)) {
			t.Errorf("the target saw %v", h)
		}
		if err := samePEM(h["X-Amzn-Mtls-Clientcert-Leaf"], who.chain[:1]); err != nil {
			t.Error(err)
		}
	}
	for reason, who := range map[string]*cert{"client_cert_missing": nil, "client_cert_revoked": revoked, "client_cert_untrusted": stranger,
		"client_cert_not_yet_valid": early, "client_cert_eku": serverOnly, "client_cert_issuer_expired": old} {
		b.refuses(t, api, "8443", verify, who, "reset", reason)
	}
	for _, who := range []*cert{nil, good, ended, stranger} {
		h := mtls(b.passes(t, api, "8444", through, "/", who, forged...).Header)
		if who == nil {
			if len(h) != 0 {
				t.Errorf("the target saw %v", h)
			}
			continue
		}
		if err := samePEM(h["X-Partner-Chain"], who.chain); err != nil || len(h) != 1 {
			t.Errorf("the target saw %v, %v", h, err)
		}
	}
	// A bundle that ALB would refuse.
	text, err := os.ReadFile(filepath.Join(r.dir, "countersign.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string][]byte{"blank line": append(bytes.Clone(bundle), '\n'), "text": append([]byte("Certificate:\n"), bundle...)} {
		write(t, r.dir, "bad-bundle.pem", bad)
		file := write(t, r.dir, "bad.yaml", bytes.Replace(text, []byte("{file: ca-bundle.pem}"), []byte("{file: bad-bundle.pem}"), 1))
		if res := run(t, nil, binary, "check", "-c", file); res.code != 2 || !strings.Contains(res.out+res.err, "bad-bundle.pem") {
			t.Errorf("%s: countersign check: %s", what, res)
		}
	}
}
