package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/template"
)

// serveBoth is a server that has certificates of these names and takes the first that a client can do with. seen, if not
// nil, is told what clients offer.
func serveBoth(t *testing.T, p *pki, seen func(*tls.ClientHelloInfo), names ...string) string {
	t.Helper()
	conf := &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: p.pool()}
	for _, name := range names {
		pair, err := tls.LoadX509KeyPair(filepath.Join(p.dir, name+".pem"), filepath.Join(p.dir, name+".key"))
		if err != nil {
			t.Fatal(err)
		}
		conf.Certificates = append(conf.Certificates, pair)
	}
	conf.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if seen != nil {
			seen(h)
		}
		return nil, nil
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go serveAll(l, answerOnce)
	return l.Addr().String()
}

// answerOnce answers one request and closes.
func answerOnce(c net.Conn) {
	if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
		_, _ = c.Write(small)
	}
}

// TestOffers: every kind of client offers what its name says, in that order.
func TestOffers(t *testing.T) {
	p, err := newPKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var hello *tls.ClientHelloInfo
	addr := serveBoth(t, p, func(h *tls.ClientHelloInfo) {
		mu.Lock()
		defer mu.Unlock()
		hello = h
	}, "ecdsa", "rsa")
	// first is the place of the first number whose name has one of the words; behind all if there is none.
	first := func(names []string, words ...string) int {
		n := slices.IndexFunc(names, func(name string) bool {
			return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(name, word) })
		})
		if n < 0 {
			return len(names)
		}
		return n
	}
	for _, o := range offers {
		if _, err := exec.LookPath("openssl"); o.signatures != "" && err != nil {
			t.Logf("%s: %v", o.name, err)
			continue
		}
		got, err := o.served(t.Context(), call{addr: addr, cert: p.good}, p.dir)
		if err != nil || got != o.want {
			t.Errorf("%s: %v, %v", o.name, got, err)
			continue
		}
		mu.Lock()
		h := hello
		mu.Unlock()
		var suites, signatures []string
		for _, s := range h.CipherSuites {
			suites = append(suites, tls.CipherSuiteName(s))
		}
		for _, s := range h.SignatureSchemes {
			signatures = append(signatures, s.String())
		}
		if o.version != slices.Max(h.SupportedVersions) {
			t.Errorf("%s: versions %x", o.name, h.SupportedVersions)
		}
		rsa, ecdsa := first(suites, "ECDHE_RSA"), first(suites, "ECDHE_ECDSA")
		switch o.name {
		case "TLS 1.3":
			if first(signatures, "ECDSA") == len(signatures) || first(suites, "TLS_AES") == len(suites) {
				t.Errorf("%s: %v, %v", o.name, suites, signatures)
			}
		case "TLS 1.3, RSA signatures first":
			if n := first(signatures, "ECDSA"); n != len(signatures)-1 || n < 4 || first(signatures, "PSS", "PKCS1") != 0 {
				t.Errorf("%s: %v", o.name, signatures)
			}
		case "TLS 1.2, ECDSA suites first":
			if rsa <= ecdsa || rsa == len(suites) {
				t.Errorf("%s: %v", o.name, suites)
			}
		case "TLS 1.2, RSA suites first":
			if ecdsa <= rsa || ecdsa == len(suites) {
				t.Errorf("%s: %v", o.name, suites)
			}
		case "TLS 1.2, RSA suites only":
			if rsa == len(suites) || ecdsa < len(suites) {
				t.Errorf("%s: %v", o.name, suites)
			}
		default:
			t.Errorf("%s: it is not known what that is", o.name)
		}
	}
}

// TestChosen: a target that serves the RSA certificate, or none, to a client that offers ECDSA is found out with the kind of
// client, and so is one that serves the ECDSA certificate where RSA only is offered.
func TestChosen(t *testing.T) {
	p, err := newPKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	_, err = exec.LookPath("openssl")
	openssl := err == nil
	kinds := "5 of 5 kinds"
	if !openssl {
		kinds = "4 of 4 kinds"
	}
	right, wrong := serveBoth(t, p, nil, "ecdsa", "rsa"), serveBoth(t, p, nil, "rsa", "ecdsa")
	w := &workload{choosing: true}
	mine := func(both string) *instance {
		return &instance{target: &target{Name: "countersign", kind: "countersign"}, addr: map[string]string{"both": both}}
	}
	ask := func(i *instance) *choice {
		b := &bench{pki: p, targets: []*target{{Name: "countersign", kind: "countersign"}}}
		return b.chosen(t.Context(), w, []*instance{i})
	}
	for _, c := range []struct {
		name string
		i    *instance
		met  string
		want []string
		not  string
	}{
		{"RSA first", mine(wrong), "NOT met", []string{"NOT MET: ECDSA certificate chosen whenever the client offers it: 1 of ",
			"; TLS 1.3 got RSA, expected ECDSA; ", "; TLS 1.2, ECDSA suites first got RSA, expected ECDSA; TLS 1.2, RSA suites first got RSA, expected ECDSA."}, "only got"},
		{"ECDSA only", mine(serveBoth(t, p, nil, "ecdsa")), "NOT met", []string{"NOT MET: ", "; TLS 1.2, RSA suites only got nothing, expected RSA (remote error: "},
			"first got"},
		{"RSA only", mine(serveBoth(t, p, nil, "rsa")), "NOT met", []string{"1 of ", "TLS 1.3 got RSA, expected ECDSA"}, "only got"},
		{"not reached", mine("127.0.0.1:1"), "NOT met", []string{"0 of ", "TLS 1.3 got nothing, expected ECDSA (dial tcp 127.0.0.1:1: connect: connection refused)",
			"TLS 1.2, RSA suites only got nothing, expected RSA (dial"}, "x509"},
		{"not started", nil, "OPEN", []string{"OPEN: ECDSA certificate chosen", "missing: countersign (it did not start)."}, "NOT MET"},
	} {
		got := ask(c.i)
		said := got.missed()
		if got.verdict() != "all, "+c.met || (got.Met == nil) != (c.met == "OPEN") || strings.Contains(said, c.not) {
			t.Errorf("%s: %s: %s", c.name, got.verdict(), said)
		}
		for _, want := range c.want {
			if !strings.Contains(said, want) {
				t.Errorf("%s: %q lacks %q", c.name, said, want)
			}
		}
		if openssl && c.i != nil && c.name != "ECDSA only" && !strings.Contains(said, "TLS 1.3, RSA signatures first got ") {
			t.Errorf("%s, by openssl: %s", c.name, said)
		}
	}

	// What the table and the figures say of it.
	b := &bench{pki: p, targets: []*target{{Name: "countersign", kind: "countersign"}, {Name: "nginx-1.30", kind: "nginx", modern: true},
		{Name: "nginx-1.22", kind: "nginx"}, {Name: "caddy", main: true}}}
	got := b.chosen(t.Context(), w, []*instance{mine(right), mine(wrong), nil, nil})
	if openssl != (got.Met != nil) || len(got.Cells) != 3 || got.Cells[2].Problem != "it did not start" {
		t.Fatalf("%s: %+v", got.verdict(), got)
	}
	r := &report{Results: []*result{{Name: "handshake-rsa", Title: "RSA", Choice: got, Cells: []*cell{{Target: "countersign"}}}}}
	r.Setting.Rounds = 1
	table := func() string {
		var w bytes.Buffer
		r.print(&w)
		return strings.Join(strings.Fields(w.String()), " ")
	}
	all := []string{"client expected countersign nginx-1.30 nginx-1.22", "TLS 1.2, RSA suites first ECDSA ECDSA RSA -", "TLS 1.2, RSA suites only RSA RSA RSA -",
		"whenever the client offers it " + kinds + " of client nginx-1.30 1 of " + kinds[:1] + " - all, " + map[bool]string{true: "met 1 of 1 goals met.", false: "OPEN"}[openssl]}
	for _, want := range all {
		if text := table(); !strings.Contains(text, want) {
			t.Errorf("the table lacks %q: %s", want, text)
		}
	}
	text, err := json.Marshal(r)
	if want := `{"client":"TLS 1.2, RSA suites first","want":"ECDSA","got":"ECDSA"}`; err != nil || !bytes.Contains(text, []byte(want)) {
		t.Errorf("%v, the figures lack %s: %s", err, want, text)
	}
	r.Results[0].Choice = ask(mine(wrong))
	for _, want := range []string{"- - all, NOT met NOT MET: ECDSA", "got RSA, expected ECDSA. 0 of 1 goals met."} {
		if text := table(); !strings.Contains(text, want) {
			t.Errorf("the table lacks %q: %s", want, text)
		}
	}
}

// TestWithoutOpenSSL: a kind of client that cannot be had leaves the goal open, and hides no wrong certificate.
func TestWithoutOpenSSL(t *testing.T) {
	p, err := newPKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", t.TempDir())
	b := &bench{pki: p, targets: []*target{{Name: "countersign", kind: "countersign"}}}
	for names, want := range map[string]string{
		"ecdsa rsa": `OPEN: ECDSA certificate chosen whenever the client offers it: the goal is all kinds of client; missing: openssl for a client "TLS 1.3, RSA signatures first".`,
		"rsa ecdsa": "NOT MET: ECDSA certificate chosen whenever the client offers it: 1 of 4 kinds of client; ",
	} {
		i := &instance{target: b.targets[0], addr: map[string]string{"both": serveBoth(t, p, nil, strings.Fields(names)...)}}
		if said := b.chosen(t.Context(), &workload{}, []*instance{i}).missed(); !strings.HasPrefix(said, want) {
			t.Errorf("%s: %s", names, said)
		}
	}
}

// TestServedVersion: a client that comes to another version of TLS than its own shows nothing, and so does one of openssl
// that gets no answer.
func TestServedVersion(t *testing.T) {
	p, pair := newPair(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, MaxVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go serveAll(l, answerOnce)
	c := call{addr: l.Addr().String(), cert: p.good}
	if got, err := offers[0].served(t.Context(), c, p.dir); err == nil || err.Error() != "it chose TLS 1.2; expected TLS 1.3" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := exec.LookPath("openssl"); err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	// The second is a host that refuses the good client, behind the handshake.
	for what, at := range map[string]string{"TLS 1.2": c.addr, "refused": serveForeign(t, p)} {
		got, err := offers[1].served(t.Context(), call{addr: at}, p.dir)
		if err == nil || !strings.Contains(err.Error(), "openssl s_client got no answer (exit status 1): ") {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := offers[1].served(ctx, c, p.dir); err == nil {
		t.Errorf("ended by hand: %v", got)
	}
}

// serveForeign is a server that takes clients of nobody.
func serveForeign(t *testing.T, p *pki) string {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(p.dir, "ecdsa.pem"), filepath.Join(p.dir, "ecdsa.key"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs: x509.NewCertPool()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go serveAll(l, answerOnce)
	return l.Addr().String()
}

// TestBoth: the targets that are asked have both certificates, the RSA one first, and want a client's.
func TestBoth(t *testing.T) {
	for name, want := range map[string]string{
		"countersign.yaml.tmpl": "listen: 127.0.0.1:4446 protocol: https hosts: - names: [a.test] certificates: - {cert: /rsa.pem, key: /rsa.key} - {cert: /ecdsa.pem, key: /ecdsa.key} client_auth: {mode: require, trust_store: clients}",
		"haproxy.cfg.tmpl":      "bind 127.0.0.1:4446 ssl crt /rsa.all crt /ecdsa.all ca-file /ca.pem verify required",
		"nginx.conf.tmpl":       "listen 127.0.0.1:4446 ssl; server_name a.test; ssl_certificate /rsa.pem; ssl_certificate_key /rsa.key; ssl_certificate /ecdsa.pem; ssl_certificate_key /ecdsa.key;",
	} {
		tmpl, err := template.ParseFS(templates, "peers/"+name)
		if err != nil {
			t.Fatal(err)
		}
		var w bytes.Buffer
		if err := tmpl.Execute(&w, filling{Kind: "main", Host: host, addr: map[string]string{"both": "127.0.0.1:4446"}}); err != nil {
			t.Fatal(err)
		}
		if text := strings.Join(strings.Fields(w.String()), " "); !strings.Contains(text, want) {
			t.Errorf("%s lacks %q:\n%s", name, want, &w)
		}
	}
}
