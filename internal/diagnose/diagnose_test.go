package diagnose

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"countersign/internal/certs"
	"countersign/internal/config"
	"countersign/internal/memnet"
	"countersign/internal/snapshot"
	"countersign/internal/testpki"
)

const conf = `
trust_stores:
  clients: {ca_bundle: {file: ca.pem}, revocation: {crls: [{file: ca.crl}], missing: if_present}}
listeners:
  public:
    listen: 127.0.0.1:8443
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes: [{upstream: api, allow: 'client.common_name == "alice" && request.path != "/no"'}]
upstreams:
  api: {targets: ["http://127.0.0.1:9000"]}
`

// setup compiles a configuration with files beside it.
func setup(t testing.TB, text string, files map[string][]byte) *Setup {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, problems := config.Parse("cs.yaml", []byte(text))
	s, _, problems := snapshot.Compile(f, problems, snapshot.Env{Dir: dir, Now: time.Now()})
	if s == nil {
		t.Fatal(problems.Error())
	}
	return &Setup{Snapshot: s, Now: time.Now()}
}

func plainSetup(t testing.TB) (*Setup, *testpki.Cert) {
	root, servers := testpki.New(t), testpki.New(t)
	server := servers.Server("a.test")
	return setup(t, conf, map[string][]byte{"ca.pem": root.PEM(), "ca.crl": testpki.PEM("X509 CRL", root.CRL()),
		"server.pem": server.PEM(), "server.key": server.KeyPEM()}), root
}

// fit asserts that a report can be shown on a terminal and read by a machine.
func fit(t testing.TB, r interface{ Print(io.Writer) error }) string {
	t.Helper()
	var text bytes.Buffer
	if err := r.Print(&text); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text.String()) {
		if len(line) > 4000 || strings.ContainsFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Fatalf("a line that is not fit for a terminal: %q", line)
		}
	}
	machine, err := json.Marshal(r)
	if err != nil || len(machine) > 256<<10 {
		t.Fatal(len(machine), err)
	}
	return text.String()
}

func TestExplain(t *testing.T) {
	s, root := plainSetup(t)
	alice := root.Client("alice")
	for _, c := range []struct {
		name, path, code string
		presented        []*x509.Certificate
		outcome          Outcome
	}{
		{"good", "/", "", alice.Presented(), Accepted},
		{"handshake only", "", "", alice.Presented(), Accepted},
		{"none", "/", "client_cert_missing", nil, Refused},
		{"denied", "/no", "policy_denied", alice.Presented(), Refused},
		{"another", "/", "policy_denied", root.Client("bob").Presented(), Refused},
		{"stranger", "/", "client_cert_untrusted", testpki.New(t).Client("alice").Presented(), Refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := Explain(s, &Question{Presented: c.presented, File: "alice.pem", Host: "a.test", Path: c.path})
			if err != nil {
				t.Fatal(err)
			}
			text := fit(t, r)
			if r.Outcome != c.outcome || r.Reason != c.code || (r.Outcome == Refused) != (r.Next != "") && c.path != "" {
				t.Errorf("%s %s, next %q\n%s", r.Outcome, r.Reason, r.Next, text)
			}
		})
	}
}

func TestQuestionsThatCannotBeAsked(t *testing.T) {
	s, _ := plainSetup(t)
	for name, q := range map[string]*Question{
		"no host": {}, "no name": {Host: "a test"}, "no listener": {Host: "a.test", Listener: "x"}, "no port": {Host: "a.test:1"},
		"no path": {Host: "a.test", Path: "foo"}, "no method": {Host: "a.test", Path: "/", Method: "GET /"}, "no header": {Host: "a.test", Path: "/", Header: []string{"x-team"}},
		"no header's name": {Host: "a.test", Path: "/", Header: []string{"x team: a"}}, "a method alone": {Host: "a.test", Method: "POST"}, "a header alone": {Host: "a.test", Header: []string{"x-team: a"}},
	} {
		var ask *AskError
		if _, err := Explain(s, q); !errors.As(err, &ask) || ask.Next == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, o := range map[string]*LiveOptions{
		"no port": {Address: "a.test"}, "no number": {Address: "a.test:https"}, "no path": {Address: "a.test:1", Path: "x"},
		"split": {Address: "a.test:1", Path: "/ HTTP/1.1\r\nX: y"}, "no method": {Address: "a.test:1", Method: "GET /"},
		"no CAs": {Address: "a.test:1", ServerCAs: []byte("x")},
	} {
		var ask *AskError
		if _, err := Connect(t.Context(), o); !errors.As(err, &ask) || ask.Next == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	root := testpki.New(t)
	var problem *certs.Problem
	_, err := Connect(t.Context(), &LiveOptions{Address: "a.test:1", Cert: root.Client("a").PEM(), Key: root.Client("b").KeyPEM()})
	if !errors.As(err, &problem) || !errors.Is(err, certs.ErrKeyMismatch) {
		t.Error(err)
	}
}

func TestReadChain(t *testing.T) {
	root := testpki.New(t)
	ca := root.Intermediate("CA")
	alice := ca.Client("alice")
	one, issuer := testpki.PEM("CERTIFICATE", alice.DER()), testpki.PEM("CERTIFICATE", ca.DER())
	for name, c := range map[string]struct {
		cert, chain []byte
		n           int
	}{
		"alone": {one, nil, 1}, "both in one": {alice.PEM(), nil, 2}, "two files": {one, issuer,
			2}, "chain is all": {one, alice.PEM(), 2},
		"DER": {alice.DER(), ca.DER(), 2},
	} {
		got, err := ReadChain(c.cert, c.chain)
		if err != nil || len(got) != c.n || !got[0].Equal(alice.Cert) {
			t.Errorf("%s: %d, %v", name, len(got), err)
		}
	}
	for name, data := range map[string][]byte{"nothing": []byte("x"), "a key": alice.KeyPEM(), "damaged": one[:40], "request": testpki.PEM("CERTIFICATE REQUEST", []byte{0x30, 0})} {
		var problem *certs.Problem
		if _, err := ReadChain(data, nil); !errors.As(err, &problem) {
			t.Errorf("%s: %v", name, err)
		}
	}
	negative := testpki.PEM("CERTIFICATE", root.Client("n", testpki.Edit(func(tbs *testpki.TBS) { tbs.Serial.Neg(tbs.Serial) })).DER())
	var problem *certs.Problem
	if _, err := ReadChain(negative, nil); err == nil || errors.As(err, &problem) {
		t.Error("a certificate that no server can read:", err)
	}
}

// TestHostileServers are servers that try to keep us busy or to write to our terminal.
func TestHostileServers(t *testing.T) {
	root := testpki.New(t)
	client := root.Client("alice")
	server := root.Server("a.test", testpki.DNS("x\x1b[2Jy.test"))
	pair := server.TLS()
	many := x509.NewCertPool()
	for i := range 300 {
		many.AddCert(&x509.Certificate{Raw: fmt.Append(nil, i), RawSubject: append([]byte{0x30, 9, 0x31, 7, 0x30, 5, 6,
			1, byte(i), 12, 0}, byte(i))})
	}
	secure := func(serve func(*tls.Conn)) func(net.Conn) {
		return func(c net.Conn) {
			tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert,
				ClientCAs: many, NextProtos: []string{"http/1.1"}})
			if tc.Handshake() == nil {
				serve(tc)
			}
		}
	}
	endless := func(first, again string) func(io.Writer) {
		return func(w io.Writer) {
			_, err := io.WriteString(w, first)
			for err == nil {
				_, err = io.WriteString(w, again)
			}
		}
	}
	for name, serve := range map[string]func(net.Conn){
		"endless head":  secure(func(c *tls.Conn) { endless("HTTP/1.1 200 OK\r\n", "X-Y: z\r\n")(c) }),
		"endless body":  secure(func(c *tls.Conn) { endless("HTTP/1.1 403 Forbidden\r\n\r\n", "certificate ")(c) }),
		"endless line":  secure(func(c *tls.Conn) { endless("HTTP/1.1 200 ", "\x1b[31m")(c) }),
		"escapes":       secure(func(c *tls.Conn) { io.WriteString(c, "HTTP/1.1 400 \x1b[2J\x07\r\n\r\nreference: 123456\x1b[2J") }),
		"nginx's words": secure(func(c *tls.Conn) { io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\nThe SSL certificate error") }),
		"no HTTP":       secure(func(c *tls.Conn) { io.WriteString(c, "\x00\x01\x02 hello\r\n\r\n") }),
		"garbage":       func(c net.Conn) { endless("\x16\x03\x03\xff\xff", "\x00\x01\x02\x03")(c) },
		"endless text":  func(c net.Conn) { endless("HTTP/1.1 400 Bad\r\n", "X: y\r\n")(c) },
		"warnings":      func(c net.Conn) { endless("", "\x15\x03\x01\x00\x02\x01\x5a")(c) },
	} {
		t.Run(name, func(t *testing.T) {
			network := new(memnet.Network)
			l, err := network.Listen("tcp", "server:443")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
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
			}()
			o := &LiveOptions{Address: "server:443", ServerName: "a.test", ServerCAs: root.PEM(),
				Timeout: 20 * time.Second, Cert: client.PEM(), Key: client.KeyPEM(),
				Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
					return network.Dial(ctx, "tcp", address)
				}}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for range 2 {
				r, err := Connect(ctx, o)
				if err != nil || ctx.Err() != nil {
					t.Fatal(err, ctx.Err())
				}
				text := fit(t, r)
				if r.Outcome == "" || r.Sentence == "" {
					t.Error(text)
				}
				if len(r.Attempts) > 0 && len(r.Attempts[0].Hints) > maxHintsTold {
					t.Error("hints are not bounded")
				}
				o.Cert, o.Key = nil, nil // and once more without a certificate
			}
		})
	}
}

func TestShow(t *testing.T) {
	for in, want := range map[string]string{
		"plain": "plain", "\x1b[31m": `\x1b[31m`, "a\x00b": `a\x00b`, "\xff": `\xff`, "é": "é", "\u202e": `\xe2\x80\xae`, "\u2028": `\xe2\x80\xa8`,
	} {
		if got := show(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
	if got := show(strings.Repeat("\x01", 1<<20)); len(got) > maxShown+16 {
		t.Error(len(got))
	}
	for d, want := range map[time.Duration]string{time.Second: "1 second", 90 * time.Second: "90 seconds", -3 * time.Hour: "3 hours", 73 * time.Hour: "3 days", time.Hour: "60 minutes"} {
		if got := span(d); got != want {
			t.Errorf("%v: %s", d, got)
		}
	}
}

// FuzzExplain puts any certificate in the client's place: nothing panics, and nothing of it reaches a terminal as it is.
func FuzzExplain(f *testing.F) {
	s, root := plainSetup(f)
	for _, c := range []*testpki.Cert{root.Client("alice"), root.Client("a\x1b", testpki.DNS("a\x00b"), testpki.URI("spiffe://x/y")), root.Intermediate("CA").Client("x"), root} {
		f.Add(c.DER(), "/")
	}
	f.Fuzz(func(t *testing.T, der []byte, path string) {
		q := &Question{Host: "a.test", Path: path, File: path}
		q.Presented, q.Unparsable = ReadChain(testpki.PEM("CERTIFICATE", der), nil)
		r, err := Explain(s, q)
		var ask *AskError
		if errors.As(err, &ask) && path != "" && path[0] != '/' {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		fit(t, r)
	})
}
