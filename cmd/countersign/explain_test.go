package main

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/rogpeppe/go-internal/testscript"

	"countersign/internal/testpki"
)

// TestBrokenSetups runs the corpus of broken set-ups in internal/diagnose/testdata: each makes certificates that are wrong in
// one way, asks countersign explain, and asserts the reason and the next step that it gives. Scripts have, besides
// testscript's own commands:
//
//	root NAME [OPTION...]         make a root CA
//	ca NAME ISSUER [OPTION...]    make a CA below another
//	client NAME ISSUER [OPTION...], server NAME ISSUER [OPTION...]
//	pem FILE NAME...              write certificates, each alone, in this order
//	many FILE N                   append N root CAs with names of 200 bytes
//	key FILE NAME                 write a key
//	crl FILE ISSUER [revoke=NAME] [number=N] [this=DURATION] [next=DURATION] [as=ISSUER]
//	web NAME [STATUS] [FILE]      an HTTP server that answers so; its address is $NAME
//	tls NAME CERT KEY [SETTING...] a TLS server; its address is $NAME
//	tcp NAME [greet=TEXT] [close] [silent] a server that speaks no TLS; its address is $NAME
//	nobody NAME                   an address where nobody listens
//	explain ARGUMENT...           countersign explain --json; -c cs.yaml where there is a configuration
//	accepted, refused CODE, undecided, unasked REGEXP: how it ended, the exit status included
//	expected REGEXP, found REGEXP, next REGEXP, sentence REGEXP, fault SIDE
//	check NAME RESULT [REGEXP]    a step of the report
//
// A script without cs.yaml gets one that asks everybody for a certificate under ca.pem.
func TestBrokenSetups(t *testing.T) {
	dir := filepath.Join("..", "..", "internal", "diagnose", "testdata")
	scripts, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err != nil || len(scripts) < 40 {
		t.Fatalf("expected at least 40 broken set-ups in %s, found %d (%v)", dir, len(scripts), err)
	}
	own := testpki.New(t)
	server := own.Server("a.test", testpki.DNS("b.test", "c.test"), testpki.Lifetime(90*24*time.Hour))
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			w := &workshop{t: t, made: map[string]*testpki.Cert{}}
			env.Values["workshop"] = w
			env.Defer(w.close)
			conf := filepath.Join(env.WorkDir, "cs.yaml")
			if _, err := os.Stat(conf); errors.Is(err, os.ErrNotExist) {
				if err := os.WriteFile(conf, []byte(plainSetup), 0o600); err != nil {
					return err
				}
			}
			for name, data := range map[string][]byte{"server.pem": server.PEM(), "server.key": server.KeyPEM(), "server-ca.pem": own.PEM()} {
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), data, 0o600); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"root": makeCmd("root"), "ca": makeCmd("ca"), "client": makeCmd("client"), "server": makeCmd("server"),
			"pem": pemCmd, "many": manyCmd, "key": keyCmd, "crl": crlCmd, "web": webCmd, "tls": tlsCmd, "tcp": tcpCmd, "nobody": nobodyCmd, "expand": expandCmd,
			"explain":  explainCmd,
			"accepted": outcomeCmd("accepted", 0), "refused": outcomeCmd("refused",
				1), "undecided": outcomeCmd("undecided", 3), "unasked": unaskedCmd,
			"found": textCmd("found"), "expected": textCmd("expected"), "next": textCmd("next"), "sentence": textCmd("sentence"), "fault": textCmd("fault"), "check": checkStepCmd,
		},
	})
}

const plainSetup = `
trust_stores:
  clients: {ca_bundle: {file: ca.pem}}
listeners:
  public:
    listen: 127.0.0.1:8443
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes: [{upstream: api}]
upstreams:
  api: {targets: ["http://127.0.0.1:9000"]}
`

// workshop is what one script has made.
type workshop struct {
	t       *testing.T
	made    map[string]*testpki.Cert
	closers []func()

	status int
	stdout string
	stderr string
	report map[string]any
}

func (w *workshop) close() {
	for _, f := range w.closers {
		f()
	}
}

func shop(ts *testscript.TestScript) *workshop { return ts.Value("workshop").(*workshop) }

func (w *workshop) cert(ts *testscript.TestScript, name string) *testpki.Cert {
	c := w.made[name]
	if c == nil {
		ts.Fatalf("nothing was made by the name %q", name)
	}
	return c
}

func makeCmd(kind string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, _ bool, args []string) {
		w := shop(ts)
		name, rest := args[0], args[1:]
		var issuer *testpki.Cert
		if kind != "root" {
			issuer, rest = w.cert(ts, args[1]), args[2:]
		}
		opts := []testpki.Option{}
		if kind == "root" || kind == "ca" {
			opts = append(opts, testpki.Subject(pkix.Name{CommonName: name}))
		}
		for _, o := range rest {
			opts = append(opts, w.option(ts, o))
		}
		switch kind {
		case "root":
			w.made[name] = testpki.New(w.t, opts...)
		case "ca":
			w.made[name] = issuer.Intermediate(name, opts...)
		case "client":
			w.made[name] = issuer.Client(name, opts...)
		default:
			w.made[name] = issuer.Server(name, opts...)
		}
	}
}

// option reads NAME or NAME=VALUE.
func (w *workshop) option(ts *testscript.TestScript, text string) testpki.Option {
	name, value, _ := strings.Cut(text, "=")
	number := func() int {
		n, err := strconv.Atoi(value)
		ts.Check(err)
		return n
	}
	moment := func() time.Time {
		d, err := time.ParseDuration(value)
		ts.Check(err)
		return time.Now().Add(d)
	}
	switch name {
	case "expired":
		return testpki.Expired()
	case "early":
		return testpki.NotYetValid()
	case "from":
		return testpki.NotBefore(moment())
	case "until":
		return testpki.NotAfter(moment())
	case "noeku":
		return testpki.NoEKU()
	case "eku":
		var uses []x509.ExtKeyUsage
		for _, u := range strings.Split(value, ",") {
			uses = append(uses, map[string]x509.ExtKeyUsage{"serverAuth": x509.ExtKeyUsageServerAuth,
				"clientAuth": x509.ExtKeyUsageClientAuth,
				"any":        x509.ExtKeyUsageAny, "emailProtection": x509.ExtKeyUsageEmailProtection}[u])
		}
		return testpki.EKU(uses...)
	case "keyusage":
		return testpki.KeyUsage(map[string]x509.KeyUsage{"digitalSignature": x509.KeyUsageDigitalSignature,
			"keyAgreement": x509.KeyUsageKeyAgreement,
			"crlSign":      x509.KeyUsageCRLSign}[value])
	case "rsa":
		return testpki.RSA(number())
	case "p224":
		return testpki.P224()
	case "ed25519":
		return testpki.Ed25519()
	case "sha1":
		return testpki.SHA1()
	case "v1":
		return testpki.V1()
	case "isca":
		return testpki.CA()
	case "notca":
		return testpki.NotCA()
	case "pathlen":
		return testpki.PathLen(number())
	case "permit":
		return testpki.PermitDNS(value)
	case "critical":
		return testpki.UnknownCritical()
	case "serial":
		if value == "long" {
			return testpki.Serial(new(big.Int).Lsh(big.NewInt(1), 400))
		}
		return testpki.Serial(big.NewInt(int64(number())))
	case "dns":
		return testpki.DNS(strings.ReplaceAll(value, "NUL", "\x00"))
	case "uri":
		return testpki.URI(value)
	case "cn":
		return testpki.Subject(pkix.Name{CommonName: strings.ReplaceAll(value, "ESC", "\x1b[31m")})
	case "like":
		return testpki.Like(w.cert(ts, value))
	case "crl":
		return testpki.CRLPoint(value)
	case "ocsp":
		return testpki.OCSPServer(value)
	}
	ts.Fatalf("no such option: %q", text)
	return nil
}

func pemCmd(ts *testscript.TestScript, _ bool, args []string) {
	var data []byte
	for _, name := range args[1:] {
		data = append(data, testpki.PEM("CERTIFICATE", shop(ts).cert(ts, name).DER())...)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o600))
}

func manyCmd(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	data := []byte{}
	if old, err := os.ReadFile(ts.MkAbs(args[0])); err == nil {
		data = old
	}
	for i := range n {
		name := fmt.Sprintf("%03d %s", i, strings.Repeat("long ", 39))
		data = append(data, testpki.New(shop(ts).t, testpki.Subject(pkix.Name{CommonName: name})).PEM()...)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o600))
}

func keyCmd(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), shop(ts).cert(ts, args[1]).KeyPEM(), 0o600))
}

func crlCmd(ts *testscript.TestScript, _ bool, args []string) {
	w := shop(ts)
	var items []testpki.CRLItem
	for _, a := range args[2:] {
		name, value, _ := strings.Cut(a, "=")
		switch name {
		case "revoke":
			items = append(items, w.cert(ts, value))
		case "number":
			n, err := strconv.ParseInt(value, 10, 64)
			ts.Check(err)
			items = append(items, testpki.Number(n))
		case "as":
			items = append(items, testpki.SignedBy(w.cert(ts, value)))
		case "this", "next":
			d, err := time.ParseDuration(value)
			ts.Check(err)
			if name == "this" {
				items = append(items, testpki.ThisUpdate(time.Now().Add(d)))
			} else {
				items = append(items, testpki.NextUpdate(time.Now().Add(d)))
			}
		default:
			ts.Fatalf("no such option: %q", a)
		}
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), testpki.PEM("X509 CRL", w.cert(ts, args[1]).CRL(items...)), 0o600))
}

// listen opens a listener of a script.
func (w *workshop) listen(ts *testscript.TestScript, name string) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	w.closers = append(w.closers, func() { l.Close() })
	ts.Setenv(name, l.Addr().String())
	return l
}

func webCmd(ts *testscript.TestScript, _ bool, args []string) {
	w := shop(ts)
	status, body := http.StatusNotFound, []byte("nothing here\n")
	if len(args) > 1 {
		n, err := strconv.Atoi(args[1])
		ts.Check(err)
		status = n
	}
	if len(args) > 2 {
		body = []byte(ts.ReadFile(args[2]))
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.WriteHeader(status)
		_, _ = rw.Write(body)
	})}
	go srv.Serve(w.listen(ts, args[0]))
	w.closers = append(w.closers, func() { srv.Close() })
}

// tlsCmd starts a TLS server of crypto/tls: require=FILE, request=FILE and ask=FILE say which CAs it wants clients of and
// whether it verifies, hints=FILE which it names instead, min= and max= its versions, cipher= its only suite, sni= the one
// name that it knows, status= and body= what it answers, reset ends connections after the handshake.
func tlsCmd(ts *testscript.TestScript, _ bool, args []string) {
	w := shop(ts)
	pair, err := tls.X509KeyPair([]byte(ts.ReadFile(args[1])), []byte(ts.ReadFile(args[2])))
	ts.Check(err)
	conf := &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}
	pool := func(file string) *x509.CertPool {
		p := x509.NewCertPool()
		if !p.AppendCertsFromPEM([]byte(ts.ReadFile(file))) {
			ts.Fatalf("no certificates in %s", file)
		}
		return p
	}
	status, body, reset := 200, "welcome\n", false
	for _, a := range args[3:] {
		name, value, _ := strings.Cut(a, "=")
		switch name {
		case "require":
			conf.ClientAuth, conf.ClientCAs = tls.RequireAndVerifyClientCert, pool(value)
		case "request":
			conf.ClientAuth, conf.ClientCAs = tls.VerifyClientCertIfGiven, pool(value)
		case "ask":
			conf.ClientAuth, conf.ClientCAs = tls.RequestClientCert, pool(value)
		case "min", "max":
			v := map[string]uint16{"1.0": tls.VersionTLS10, "1.1": tls.VersionTLS11, "1.2": tls.VersionTLS12,
				"1.3": tls.VersionTLS13}[value]
			if name == "min" {
				conf.MinVersion = v
			} else {
				conf.MaxVersion = v
			}
		case "cipher":
			for _, c := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
				if c.Name == value {
					conf.CipherSuites = []uint16{c.ID}
				}
			}
		case "sni":
			conf.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
				if h.ServerName == value {
					return nil, nil
				}
				return &tls.Config{}, nil // no certificate: unrecognized_name
			}
		case "status":
			n, err := strconv.Atoi(value)
			ts.Check(err)
			status = n
		case "body":
			body = value
		case "alpn":
			conf.NextProtos = []string{value}
		case "reset":
			reset = true
		default:
			ts.Fatalf("no such setting: %q", a)
		}
	}
	l := w.listen(ts, args[0])
	if reset {
		go accept(l, func(c net.Conn) {
			tc := tls.Server(c, conf)
			_ = tc.Handshake()
			_ = c.(*net.TCPConn).SetLinger(0)
		})
		return
	}
	srv := &http.Server{TLSConfig: conf, Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.WriteHeader(status)
		_, _ = io.WriteString(rw, body)
	})}
	srv.ErrorLog = log.New(io.Discard, "", 0)
	go srv.Serve(tls.NewListener(l, conf))
	w.closers = append(w.closers, func() { srv.Close() })
}

func accept(l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			serve(c)
		}()
	}
}

func tcpCmd(ts *testscript.TestScript, _ bool, args []string) {
	w := shop(ts)
	greet, closes, answer := "", false, ""
	for _, a := range args[1:] {
		name, value, _ := strings.Cut(a, "=")
		switch name {
		case "greet":
			greet = value + "\r\n"
		case "answer":
			answer = value + "\r\n\r\n"
		case "close":
			closes = true
		case "silent":
		default:
			ts.Fatalf("no such setting: %q", a)
		}
	}
	go accept(w.listen(ts, args[0]), func(c net.Conn) {
		_, _ = io.WriteString(c, greet)
		buf := make([]byte, 4096)
		_, _ = c.Read(buf)
		if _, _ = io.WriteString(c, answer); closes || answer != "" {
			return
		}
		_, _ = io.Copy(io.Discard, c)
	})
}

func nobodyCmd(ts *testscript.TestScript, _ bool, args []string) {
	shop(ts).listen(ts, args[0]).Close()
}

func explainCmd(ts *testscript.TestScript, _ bool, args []string) {
	w := shop(ts)
	given := []string{"explain"}
	if !slices.ContainsFunc(args, func(a string) bool { return a == "--connect" || a == "-c" }) {
		given = append(given, "-c", "cs.yaml")
	}
	run := func(more ...string) int {
		err := ts.Exec("countersign", slices.Concat(given, more, args)...)
		var exit *exec.ExitError
		switch {
		case err == nil:
			return 0
		case errors.As(err, &exit):
			return exit.ExitCode()
		}
		ts.Fatalf("explain: %v", err)
		return -1
	}
	w.report = nil
	w.status = run("--json")
	w.stdout, w.stderr = ts.ReadFile("stdout"), ts.ReadFile("stderr")
	if w.status == exitConfig {
		if w.stdout != "" || !strings.Contains(w.stderr, "hint: ") && !strings.Contains(w.stderr, "next: ") && !strings.Contains(w.stderr, "; ") {
			ts.Fatalf("a question that cannot be asked:\n%s\n%s", w.stdout, w.stderr)
		}
		return
	}
	if err := json.Unmarshal([]byte(w.stdout), &w.report); err != nil {
		ts.Fatalf("the report is no JSON: %v\n%s\n%s", err, w.stdout, w.stderr)
	}
	// For people it ends the same, and nothing in it is more than text.
	if status := run(); status != w.status {
		ts.Fatalf("status %d, and %d as JSON", status, w.status)
	}
	text := ts.ReadFile("stdout")
	for line := range strings.Lines(text) {
		if len(line) > 2000 || strings.ContainsFunc(strings.TrimRight(line, "\n"), func(r rune) bool { return !unicode.IsPrint(r) }) {
			ts.Fatalf("a line that is not fit for a terminal: %q", line)
		}
	}
	timeless := func(s string) string { return regexp.MustCompile(`[0-9]+`).ReplaceAllString(s, "0") } // a second may have passed
	if next, _ := w.report["next"].(string); !strings.Contains(timeless(text), timeless(next)) {
		ts.Fatalf("the next step is not in:\n%s", text)
	}
	ts.Logf("%s", text)
}

func outcomeCmd(outcome string, status int) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, _ bool, args []string) {
		w := shop(ts)
		code := ""
		if len(args) > 0 {
			code = args[0]
		}
		got, _ := w.report["reason"].(string)
		if w.report["outcome"] != outcome || w.status != status || got != code {
			ts.Fatalf("expected %s %s with status %d, found status %d:\n%s%s", outcome, code, status, w.status, w.stdout, w.stderr)
		}
		if next, _ := w.report["next"].(string); outcome != "accepted" && next == "" {
			ts.Fatalf("no next step:\n%s", w.stdout)
		}
	}
}

func unaskedCmd(ts *testscript.TestScript, _ bool, args []string) {
	w := shop(ts)
	if w.status != exitConfig || !regexp.MustCompile(args[0]).MatchString(w.stderr) {
		ts.Fatalf("expected status %d and %s, found %d:\n%s%s", exitConfig, args[0], w.status, w.stdout, w.stderr)
	}
}

func textCmd(field string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		text, _ := shop(ts).report[field].(string)
		if regexp.MustCompile(args[0]).MatchString(text) == neg {
			ts.Fatalf("%s is: %s", field, text)
		}
	}
}

func checkStepCmd(ts *testscript.TestScript, neg bool, args []string) {
	w := shop(ts)
	steps, _ := w.report["steps"].([]any)
	want := regexp.MustCompile("")
	if len(args) > 2 {
		want = regexp.MustCompile(args[2])
	}
	for _, s := range steps {
		m := s.(map[string]any)
		if m["check"] == args[0] && m["result"] == args[1] && want.MatchString(fmt.Sprintf("%v expected %v found %v from %v", m["about"], m["expected"], m["found"], m["source"])) {
			if neg {
				ts.Fatalf("there is such a step: %v", m)
			}
			return
		}
	}
	if !neg {
		ts.Fatalf("no step %v in:\n%s", args, w.stdout)
	}
}
