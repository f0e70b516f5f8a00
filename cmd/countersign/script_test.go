package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/youmark/pkcs8"
	"software.sslmate.com/src/go-pkcs12"

	"countersign/internal/daemon"
	"countersign/internal/testpki"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"countersign": func() { os.Exit(run()) }})
}

// TestScripts runs the program as users run it. Scripts find the files of a PKI in $PKI and have, besides testscript's
// own commands:
//
//	backend NAME         start a target that echoes; its address is $NAME
//	expand FILE          replace $VAR in FILE
//	serve FILE           run a configuration in this process
//	reload               load it again; with ! expect that it is refused
//	get [as=CLIENT] [tls=1.2] [sni=NAME] [host=NAME] LISTENER PATH
//	                     make one request; ! when no answer is expected
//	status CODE          of the last answer
//	body REGEXP          in the last answer, or the last error
//	record KEY=VALUE...  a log line has all of these
//	untouched NAME       the target has not been reached since the last time this was asked
func TestScripts(t *testing.T) {
	dir := t.TempDir()
	pki := newPKI(t, dir)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PKI", dir)
			s := &scene{pki: pki}
			env.Values["scene"] = s
			env.Defer(s.close)
			entries, err := os.ReadDir(dir)
			if err != nil {
				return err
			}
			for _, e := range entries {
				data, err := os.ReadFile(filepath.Join(dir, e.Name()))
				if err == nil {
					err = os.WriteFile(filepath.Join(env.WorkDir, e.Name()), data, 0o600)
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"backend": backendCmd, "expand": expandCmd, "serve": serveCmd, "reload": reloadCmd, "get": getCmd,
			"status": statusCmd, "body": bodyCmd, "record": recordCmd, "untouched": untouchedCmd,
		},
	})
}

type pki struct {
	clients map[string]*testpki.Cert
	servers *x509.CertPool
}

// newPKI writes the files that scripts use.
func newPKI(t *testing.T, dir string) *pki {
	root := testpki.New(t)
	ca := root.Intermediate("Clients CA")
	servers := testpki.New(t)
	p := &pki{servers: servers.Pool(), clients: map[string]*testpki.Cert{
		"alice": ca.Client("alice"), "bob": ca.Client("bob"), "carol": ca.Client("carol", testpki.Expired()),
		"early": ca.Client("early", testpki.NotYetValid()), "mallory": testpki.New(t).Client("mallory"),
		"server-only": ca.Client("server-only", testpki.EKU(x509.ExtKeyUsageServerAuth)), "no-eku": ca.Client("no-eku", testpki.NoEKU()),
		"weak": ca.Client("weak", testpki.RSA(1024)), "ca": ca,
	}}
	server := servers.Server("a.test", testpki.DNS("a.test", "b.test", "c.test", "*.w.test"), testpki.Lifetime(90*24*time.Hour))
	p12, err := pkcs12.Modern.Encode(server.Key, server.Cert, nil, "swordfish")
	if err != nil {
		t.Fatal(err)
	}
	locked, err := pkcs8.MarshalPrivateKey(server.Key, []byte("swordfish"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"server.p12": p12, "locked.key": testpki.PEM("ENCRYPTED PRIVATE KEY", locked),
		"clients.pem": append(root.PEM(), ca.PEM()...), "root.pem": root.PEM(), "servers.pem": servers.PEM(),
		"server.pem": server.PEM(), "server.key": server.KeyPEM(), "other.key": servers.Server("x.test").KeyPEM(),
		"clients.crl": ca.CRL(p.clients["bob"], testpki.ThisUpdate(time.Now().Add(-49*time.Hour))), "empty.crl": ca.CRL(testpki.Number(3)),
		"stale.crl": ca.CRL(testpki.Number(2), testpki.ThisUpdate(time.Now().Add(-48*time.Hour)), testpki.NextUpdate(time.Now().Add(-24*time.Hour))),
		"alice.pem": p.clients["alice"].PEM(), "alice.key": p.clients["alice"].KeyPEM(), "empty.pem": nil,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// scene is what one script has running.
type scene struct {
	pki     *pki
	main    *daemon.Main
	records buffer
	log     buffer
	targets map[string]*atomic.Int64
	closers []func()
	status  int
	body    string
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (s *scene) close() {
	if s.main != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		s.main.Shutdown(ctx)
	}
	for _, f := range s.closers {
		f()
	}
}

func of(ts *testscript.TestScript) *scene { return ts.Value("scene").(*scene) }

func backendCmd(ts *testscript.TestScript, neg bool, args []string) {
	s, name := of(ts), args[0]
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	n := new(atomic.Int64)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		fmt.Fprintf(w, "%s %s %s\n", name, r.Method, r.RequestURI)
		for _, h := range []string{"Client-Cert", "X-Amzn-Mtls-Clientcert-Subject", "X-Forwarded-For", "X-Forwarded-Proto"} {
			fmt.Fprintf(w, "%s=%s\n", h, r.Header.Get(h))
		}
	})}
	go srv.Serve(l)
	if s.targets == nil {
		s.targets = make(map[string]*atomic.Int64)
	}
	s.targets[name] = n
	s.closers = append(s.closers, func() { srv.Close() })
	ts.Setenv(name, l.Addr().String())
}

func expandCmd(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		data := os.Expand(ts.ReadFile(name), ts.Getenv)
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(data), 0o600))
	}
}

func serveCmd(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	m, err := daemon.Start(daemon.Options{Config: ts.MkAbs(args[0]), Records: &s.records, Log: &s.log})
	if err != nil {
		ts.Fatalf("serve: %v", err)
	}
	s.main = m
}

func reloadCmd(ts *testscript.TestScript, neg bool, args []string) {
	if err := of(ts).main.Reload(); (err != nil) != neg {
		ts.Fatalf("reload: %v", err)
	}
}

func getCmd(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	conf := &tls.Config{RootCAs: s.pki.servers, ServerName: "a.test"}
	host := ""
	var rest []string
	for _, a := range args {
		k, v, ok := strings.Cut(a, "=")
		switch {
		case !ok || strings.HasPrefix(a, "/"):
			rest = append(rest, a)
		case k == "as":
			c := s.pki.clients[v]
			if c == nil {
				ts.Fatalf("no client %q", v)
			}
			pair := c.TLS()
			conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		case k == "tls" && v == "1.2":
			conf.MaxVersion = tls.VersionTLS12
		case k == "sni":
			conf.ServerName = v
		case k == "host":
			host = v
		default:
			ts.Fatalf("get: unknown option %q", a)
		}
	}
	if len(rest) != 2 {
		ts.Fatalf("usage: get [as=CLIENT] [tls=1.2] [sni=NAME] [host=NAME] LISTENER PATH")
	}
	if host == "" {
		host = conf.ServerName
	}
	err := s.get(rest[0], conf, host, rest[1])
	if neg != (err != nil) {
		ts.Fatalf("get: %v, status %d\n%s", err, s.status, s.records.String())
	}
}

func (s *scene) get(listener string, conf *tls.Config, host, path string) error {
	s.status, s.body = 0, ""
	addr := s.main.Addr(listener)
	if addr == nil {
		return errors.New("no such listener")
	}
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", addr.String(), conf)
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, host)
		var resp *http.Response
		if resp, err = http.ReadResponse(bufio.NewReader(c), nil); err == nil {
			body, _ := io.ReadAll(resp.Body)
			s.status, s.body = resp.StatusCode, string(body)
			return nil
		}
	}
	s.body = err.Error()
	return err
}

func statusCmd(ts *testscript.TestScript, neg bool, args []string) {
	if s := of(ts); (fmt.Sprint(s.status) == args[0]) == neg {
		ts.Fatalf("status is %d\n%s\n%s", s.status, s.body, s.records.String())
	}
}

func bodyCmd(ts *testscript.TestScript, neg bool, args []string) {
	if s := of(ts); regexp.MustCompile(`(?m)`+args[0]).MatchString(s.body) == neg {
		ts.Fatalf("body is:\n%s", s.body)
	}
}

func untouchedCmd(ts *testscript.TestScript, neg bool, args []string) {
	if n := of(ts).targets[args[0]].Swap(0); (n == 0) == neg {
		ts.Fatalf("%s was reached %d times", args[0], n)
	}
}

func recordCmd(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		for line := range strings.Lines(s.records.String()) {
			if fits(line, args) {
				if neg {
					ts.Fatalf("there is such a record: %s", line)
				}
				return
			}
		}
		if time.Now().After(deadline) || neg {
			break
		}
	}
	if !neg {
		ts.Fatalf("no record with %v in:\n%s", args, s.records.String())
	}
}

// fits reports whether a log line has every KEY=VALUE; a.b is field b of object a.
func fits(line string, want []string) bool {
	var fields map[string]any
	if json.Unmarshal([]byte(line), &fields) != nil {
		return false
	}
	for _, kv := range want {
		path, v, _ := strings.Cut(kv, "=")
		var x any = fields
		for _, k := range strings.Split(path, ".") {
			m, _ := x.(map[string]any)
			x = m[k]
		}
		if fmt.Sprint(x) != v {
			return false
		}
	}
	return true
}
