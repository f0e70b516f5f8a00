package probe

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign/internal/testpki"
)

func init() { quiet = 100 * time.Millisecond }

// listen runs serve for each connection and returns the address.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
				serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	return l.Addr().String()
}

// web answers one request of HTTP in TLS as conf says.
func web(t *testing.T, conf *tls.Config, answer string) string {
	t.Helper()
	return listen(t, func(conn net.Conn) { serveWeb(conn, conf, answer) })
}

func serveWeb(conn net.Conn, conf *tls.Config, answer string) {
	tc := tls.Server(conn, conf)
	if tc.Handshake() != nil {
		// What comes behind the alert is read, or the machine would send a reset that overtakes it.
		_, _ = io.Copy(io.Discard, conn)
		return
	}
	if _, err := http.ReadRequest(bufio.NewReader(tc)); err == nil {
		_, _ = io.WriteString(tc, answer)
		_ = tc.Close()
	}
}

const okay = "HTTP/1.1 200 OK\r\nServer: test\r\nContent-Length: 6\r\n\r\nhello\n"

// run probes with a generous timeout.
func run(t *testing.T, o Options) *Report {
	t.Helper()
	if o.Timeout == 0 {
		o.Timeout = 20 * time.Second
	}
	if o.ServerName == "" {
		o.ServerName = "a.test"
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r, err := Run(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(text.String())
		}
	})
	return r
}

func (r *Report) problem(code string) *Finding {
	for _, f := range r.Findings {
		if f.Code == code {
			return &f
		}
	}
	for _, c := range r.Chains {
		for _, f := range c.Problems {
			if f.Code == code {
				return &f
			}
		}
	}
	return nil
}

func serverOf(c *testpki.Cert) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c.TLS()}}
}

// TestNotTLS: what is no TLS server is told as what it is, with a next step.
func TestNotTLS(t *testing.T) {
	t.Parallel()
	say := func(text string) func(net.Conn) {
		return func(conn net.Conn) {
			_, _ = io.WriteString(conn, text)
			_, _ = io.Copy(io.Discard, conn)
		}
	}
	answer := func(text string) func(net.Conn) {
		return func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 4096))
			say(text)(conn)
		}
	}
	for _, c := range []struct {
		name  string
		serve func(net.Conn)
		o     Options
		code  string
		found string
		next  string
	}{
		{"HTTP", answer("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"), Options{}, "plain_http", "400 Bad Request", "https"},
		{"HTTP/2", say("\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03"), Options{}, "plain_http", "HTTP/2", "https"},
		{"SSH", say("SSH-2.0-OpenSSH_9.9\r\n"), Options{}, "ssh", "OpenSSH_9.9", "port"},
		{"SMTP", say("220 mail.test ESMTP\r\n"), Options{}, "smtp_or_ftp", "mail.test", "--starttls smtp"},
		{"IMAP", say("* OK ready when you are\r\n"), Options{}, "imap", "ready", "--starttls imap"},
		{"POP3", say("+OK ready\r\n"), Options{}, "pop3", "ready", "995"},
		{"LDAP", answer("\x30\x0c\x02\x01\x00\x78\x07\x0a\x01\x02\x04\x00\x04\x00"), Options{}, "ldap", "LDAP", "--starttls ldap"},
		{"MySQL", say("\x4a\x00\x00\x00\x0a8.0.36\x00\x08"), Options{}, "mysql", "MySQL", "mysql --ssl-mode"},
		{"PostgreSQL", answer("EFATAL: unsupported\x00"), Options{}, "postgres", "PostgreSQL", "--starttls postgres"},
		{"Redis", answer("-ERR unknown command\r\n"), Options{}, "not_tls", "unknown command", "TLS"},
		{"anything", answer("hello there\x1b[31m\r\n"), Options{}, "not_tls", `hello there\x1b[31m`, "port"},
		{"SSL 2.0", answer("\x80\x03\x00\x00\x01\x00"), Options{}, "not_tls", "SSL 2.0", "old"},
		{"closes", func(conn net.Conn) { _, _ = conn.Read(make([]byte, 4096)) }, Options{}, "closed", "without an answer", "--proxy-protocol"},
		{"closes in spite of PROXY", func(conn net.Conn) { _, _ = conn.Read(make([]byte, 4096)) }, Options{ProxyProtocol: 1}, "", "", "leave --proxy-protocol out"},
		{"resets", func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 1))
			_ = conn.(*net.TCPConn).SetLinger(0)
		}, Options{}, "reset", "reset", "--starttls"},
		{"silent", say(""), Options{Timeout: time.Second}, "silent", "within 1s", "--starttls"},
		{"no STARTTLS answer", say(""), Options{Timeout: time.Second, StartTLS: "imap"}, "silent", "before TLS (imap)", ""},
		{"random records", answer("\x17\x03\x03\x00\x05hello"), Options{}, "malformed", "before the handshake was over", ""},
		{"endless message", answer("\x16\x03\x03\x00\x04\x02\xff\xff\xff"), Options{}, "malformed", "at most 131072", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := c.o
			o.Target = listen(t, c.serve)
			r := run(t, o)
			switch f := r.Problem; {
			case r.Outcome != OutcomeNotTLS || f == nil:
				t.Fatalf("outcome %s, problem %v", r.Outcome, f)
			case c.code != "" && f.Code != c.code, !strings.Contains(f.Found, c.found), !strings.Contains(f.Next, c.next):
				t.Errorf("told %+v", f)
			case strings.ContainsAny(f.Found, "\x1b\r\n\x00"):
				t.Errorf("not escaped: %q", f.Found)
			}
		})
	}
	t.Run("nobody", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if r := run(t, Options{Target: l.Addr().String()}); r.Outcome != OutcomeUnreachable || r.Problem.Code != "connection_refused" {
			t.Errorf("%s: %v", r.Outcome, r.Problem)
		}
	})
	t.Run("no such name", func(t *testing.T) {
		r := run(t, Options{Target: "nowhere.invalid:443", Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "nowhere.invalid", IsNotFound: true}}
		}})
		if r.Outcome != OutcomeUnreachable || r.Problem.Code != "name_not_found" {
			t.Errorf("%s: %v", r.Outcome, r.Problem)
		}
	})
}

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{}, "HOST:PORT"},
		{Options{Target: "a.test"}, "HOST:PORT"},
		{Options{Target: ":443"}, "HOST:PORT"},
		{Options{Target: "a.test:443", StartTLS: "gopher"}, "smtp, imap"},
		{Options{Target: "a.test:443", ProxyProtocol: 3}, "1 or 2"},
		{Options{Target: "a.test:443", Timeout: -1}, "positive"},
		{Options{Target: "a.test:443", Path: "/a b"}, "blanks"},
		{Options{Target: "a.test:443", Path: "a"}, "begins with /"},
		{Options{Target: "a.test:443", ServerName: "a b"}, "host name"},
	} {
		c.o.Dial = func(context.Context, string, string) (net.Conn, error) {
			t.Error("a connection was made")
			return nil, io.EOF
		}
		if _, err := Run(t.Context(), c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, expected %s", c.o, err, c.want)
		}
	}
}

// TestStartTLS plays the servers' parts.
func TestStartTLS(t *testing.T) {
	t.Parallel()
	pki := testpki.New(t)
	conf := serverOf(pki.Server("a.test"))
	line := func(r *bufio.Reader) string {
		s, _ := r.ReadString('\n')
		return strings.TrimRight(s, "\r\n")
	}
	// play says lines and expects those that begin with ">"; at "TLS" it begins.
	play := func(script ...string) func(net.Conn) {
		return func(conn net.Conn) {
			r := bufio.NewReaderSize(conn, 16)
			for _, s := range script {
				switch want, read := strings.CutPrefix(s, ">"); {
				case read:
					if got := line(r); got != want {
						return
					}
				case s == "TLS":
					tc := tls.Server(conn, conf)
					if tc.Handshake() == nil {
						_, _ = tc.Read(make([]byte, 100))
						_, _ = io.WriteString(tc, "250 here\r\n")
					}
					return
				default:
					_, _ = io.WriteString(conn, s)
				}
			}
			_, _ = io.Copy(io.Discard, conn)
		}
	}
	raw := func(want, answer string, begin bool) func(net.Conn) {
		return func(conn net.Conn) {
			got := make([]byte, len(want))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
				return
			}
			play(answer, map[bool]string{true: "TLS", false: ">never"}[begin])(conn)
		}
	}
	const (
		ssl  = "\x00\x00\x00\x08\x04\xd2\x16\x2f"
		ldap = "\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037"
	)
	for _, c := range []struct {
		name, protocol string
		serve          func(net.Conn)
		code, found    string // empty: TLS begins
	}{
		{"SMTP", "smtp", play("220-a.test\r\n220 ESMTP\r\n", ">EHLO probe.invalid", "250-a.test\r\n250-SIZE\r\n250 STARTTLS\r\n", ">STARTTLS", "220 go\r\n", "TLS"), "", ""},
		{"SMTP without", "smtp", play("220 a.test\r\n", ">EHLO probe.invalid", "250-a.test\r\n250 SIZE\r\n"), "starttls_refused", "does not offer"},
		{"SMTP that offers and refuses", "smtp", play("220 a.test\r\n", ">EHLO probe.invalid", "250-a.test\r\n250 starttls\r\n", ">STARTTLS", "454 no\r\n"), "starttls_refused", "454 no"},
		{"SMTP that greets nobody", "smtp", play("554 go away\x07\r\n"), "starttls_refused", `554 go away\a`},
		{"SMTP without end", "smtp", play(strings.Repeat("220-x\r\n", 100)), "starttls_failed", "more than 64 lines"},
		{"SMTP with an endless line", "smtp", play("220 " + strings.Repeat("x", 5000)), "starttls_failed", "more than 2048 bytes"},
		{"no SMTP", "smtp", play("hello\r\n"), "starttls_failed", "hello"},
		{"SMTP that hangs up", "smtp", func(net.Conn) {}, "", "before TLS (smtp)"},
		{"IMAP", "imap", play("* OK hi\r\n", ">p1 STARTTLS", "* CAPABILITY x\r\np1 OK go\r\n", "TLS"), "", ""},
		{"IMAP without", "imap", play("* OK hi\r\n", ">p1 STARTTLS", "p1 BAD unknown\r\n"), "starttls_refused", "p1 BAD"},
		{"IMAP with everybody in", "imap", play("* PREAUTH hi\r\n"), "starttls_refused", "logged in"},
		{"IMAP without end", "imap", play("* OK hi\r\n", ">p1 STARTTLS", strings.Repeat("* x\r\n", 100)), "starttls_failed", "64 lines"},
		{"LDAP", "ldap", raw(ldap, "\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00", true), "", ""},
		{"LDAP with long lengths", "ldap", raw(ldap, "\x30\x84\x00\x00\x00\x10\x02\x01\x01\x78\x84\x00\x00\x00\x07\x0a\x01\x00\x04\x00\x04\x00", true), "", ""},
		{"LDAP without", "ldap", raw(ldap, "\x30\x10\x02\x01\x01\x78\x0b\x0a\x01\x35\x04\x00\x04\x04nope", false), "starttls_refused", `unwillingToPerform (53), "nope"`},
		{"LDAP of 4 GiB", "ldap", raw(ldap, "\x30\x84\xff\xff\xff\xff", false), "starttls_failed", "LDAP"},
		{"no LDAP", "ldap", raw(ldap, "\x30\x03\x02\x01\x01", false), "starttls_failed", "LDAP"},
		{"PostgreSQL", "postgres", raw(ssl, "S", true), "", ""},
		{"PostgreSQL without", "postgres", raw(ssl, "N", false), "starttls_refused", "no TLS"},
		{"PostgreSQL that errs", "postgres", raw(ssl, "E\x00\x00\x00\x10SFATAL\x00busy", false), "starttls_refused", "busy"},
		{"no PostgreSQL", "postgres", raw(ssl, "HTTP", false), "starttls_failed", "PostgreSQL"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := run(t, Options{Target: listen(t, c.serve), StartTLS: c.protocol, Path: "/"})
			switch {
			case c.code == "" && c.found == "":
				if r.Outcome != OutcomeTLS || r.ClientCertificate != certNotRequested || r.ClientAuth[0].Without.Result != "accepted" {
					t.Errorf("%s, %s: %+v", r.Outcome, r.ClientCertificate, r.Problem)
				}
			case r.Outcome != OutcomeNotTLS || c.code != "" && r.Problem.Code != c.code || !strings.Contains(r.Problem.Found, c.found):
				t.Errorf("%s: %+v", r.Outcome, r.Problem)
			}
		})
	}
}

// TestProxyHeader: the header comes before everything, with the true addresses.
func TestProxyHeader(t *testing.T) {
	t.Parallel()
	conf := serverOf(testpki.New(t).Server("a.test"))
	for version, head := range map[uint8]string{1: "PROXY TCP4 127.0.0.1 127.0.0.1 ", 2: "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01"} {
		r := run(t, Options{Target: listen(t, func(conn net.Conn) {
			got := make([]byte, len(head))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != head {
				return
			}
			if version == 2 {
				_, _ = io.ReadFull(conn, make([]byte, 4)) // ports
			} else if _, err := readLine(conn); err != nil {
				return
			}
			serveWeb(conn, conf, okay)
		}), ProxyProtocol: version, Path: "/"})
		if r.Outcome != OutcomeTLS || r.ClientAuth[0].Without.HTTP == nil {
			t.Errorf("version %d: %s %+v", version, r.Outcome, r.Problem)
		}
	}
}

// TestClientAuth: what is asked of clients, by a server of Go.
func TestClientAuth(t *testing.T) {
	t.Parallel()
	servers, clients := testpki.New(t), testpki.New(t)
	server := servers.Server("a.test")
	alice := clients.Client("alice").TLS()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, c := range []struct {
			name    string
			auth    tls.ClientAuthType
			answer  string
			cert    *tls.Certificate
			verdict string
			alert   Alert // without a certificate
			finding string
		}{
			{"not asked", tls.NoClientCert, okay, nil, certNotRequested, 0, ""},
			{"not asked, forbidden", tls.NoClientCert, "HTTP/1.1 403 Forbidden\r\n\r\n", nil, certNotRequested, 0, "maybe_asked_later"},
			{"optional", tls.VerifyClientCertIfGiven, okay, &alice, certOptional, 0, ""},
			{"optional, forbidden", tls.VerifyClientCertIfGiven, "HTTP/1.1 403 Forbidden\r\n\r\nno", nil, certOptional, 0, "maybe_required_by_http"},
			{"required by HTTP", tls.VerifyClientCertIfGiven, "HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n<html><head><title>400 No required SSL certificate was sent</title>", nil, certRequired, 0, "required_by_http"},
			{"required", tls.RequireAndVerifyClientCert, okay, &alice, certRequired, map[uint16]Alert{tls.VersionTLS12: 40, tls.VersionTLS13: 116}[version], ""},
		} {
			t.Run(tls.VersionName(version)+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				conf := serverOf(server)
				conf.MinVersion, conf.MaxVersion, conf.ClientAuth, conf.ClientCAs = version, version, c.auth, clients.Pool()
				r := run(t, Options{Target: web(t, conf, c.answer), Path: "/", Roots: []*x509.Certificate{servers.Cert}, Certificate: c.cert})
				if r.ClientCertificate != c.verdict || len(r.ClientAuth) != 1 || len(r.Chains) != 1 {
					t.Fatalf("%s, %d versions, %d chains", r.ClientCertificate, len(r.ClientAuth), len(r.Chains))
				}
				a := r.ClientAuth[0]
				if c.auth != tls.NoClientCert && (a.CANameCount != 1 || a.CANames[0] != clients.Cert.Subject.String() || len(a.Signatures) == 0) {
					t.Errorf("asked %+v", a)
				}
				if (c.alert != 0) != (a.Without.Alert != nil) || c.alert != 0 && Alert(a.Without.Alert.Code) != c.alert {
					t.Errorf("without: %+v, alert %+v, expected %s", a.Without, a.Without.Alert, c.alert)
				}
				if c.cert != nil && (a.With == nil || a.With.Result != "accepted" || a.With.HTTP.Status != 200 || a.With.HTTP.Server != "test" || a.With.HTTP.Text != "hello") {
					t.Errorf("with: %+v", a.With)
				}
				if c.finding != "" && r.problem(c.finding) == nil {
					t.Errorf("no finding %s in %+v", c.finding, r.Findings)
				}
				if v := r.Versions[tls.VersionTLS13-version]; !v.Accepted || v.Resumption != "resumed" {
					t.Errorf("%s: resumption %q", v.Version, v.Resumption)
				}
			})
		}
	}
	t.Run("versions differ", func(t *testing.T) {
		conf := serverOf(server)
		conf.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			c := serverOf(server)
			if c.ClientCAs = clients.Pool(); h.SupportedVersions[0] == tls.VersionTLS13 {
				c.ClientAuth = tls.RequireAndVerifyClientCert
			}
			return c, nil
		}
		r := run(t, Options{Target: web(t, conf, okay), Path: "/"})
		if r.problem("versions_differ") == nil || r.ClientCertificate != certRequired {
			t.Errorf("%s: %+v", r.ClientCertificate, r.Findings)
		}
	})
	t.Run("refuses with words", func(t *testing.T) {
		conf := serverOf(server)
		conf.ClientAuth, conf.ClientCAs = tls.RequireAndVerifyClientCert, clients.Pool()
		stranger := testpki.New(t).Client("mallory").TLS()
		r := run(t, Options{Target: web(t, conf, okay), Path: "/", Certificate: &stranger})
		for _, a := range r.ClientAuth {
			if a.With.Result != "refused" || a.With.Alert == nil || a.With.Alert.Code != 48 || !strings.Contains(a.With.Alert.Next, "intermediate") {
				t.Errorf("%s: %+v %+v", a.Version, a.With, a.With.Alert)
			}
		}
	})
	t.Run("closes without a word", func(t *testing.T) {
		conf := serverOf(server)
		conf.ClientAuth = tls.RequestClientCert
		r := run(t, Options{Target: listen(t, func(conn net.Conn) {
			tc := tls.Server(conn, conf)
			if tc.Handshake() == nil && len(tc.ConnectionState().PeerCertificates) == 0 {
				tc.Close()
			}
		}), Path: "/"})
		if r.ClientCertificate != certRequired || r.ClientAuth[0].Without.Problem == nil && r.ClientAuth[0].Without.Alert == nil {
			t.Errorf("%s: %+v", r.ClientCertificate, r.ClientAuth[0].Without)
		}
	})
	t.Run("speaks first", func(t *testing.T) {
		r := run(t, Options{Target: listen(t, func(conn net.Conn) {
			tc := tls.Server(conn, serverOf(server))
			_, _ = io.WriteString(tc, "* OK \x1b]0;evil\x07 ready\r\n")
			_, _ = io.Copy(io.Discard, tc)
		}), Path: "/"})
		if w := r.ClientAuth[0].Without; w.Result != "accepted" || w.Spoke != `* OK \x1b]0;evil\a ready` {
			t.Errorf("%+v", w)
		}
	})
}

// TestOffers: what a server offers is found out, whatever crypto/tls itself would offer.
func TestOffers(t *testing.T) {
	t.Parallel()
	pki := testpki.New(t)
	conf := serverOf(pki.Server("a.test", testpki.RSA(2048)))
	conf.MinVersion = tls.VersionTLS10
	conf.NextProtos = []string{"h2"}
	conf.CipherSuites = []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA}
	conf.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768, tls.CurveP384}
	r := run(t, Options{Target: web(t, conf, okay)})
	want := []struct {
		version        string
		suites, groups string
	}{
		{"TLS 1.3", "0x1301 0x1302 0x1303", "X25519MLKEM768 P-384"},
		{"TLS 1.2", "0xC02F 0xC014 0x002F 0x000A", "P-384"},
		{"TLS 1.1", "0xC014 0x002F 0x000A", "P-384"},
		{"TLS 1.0", "0xC014 0x002F 0x000A", "P-384"},
	}
	for i, w := range want {
		v := r.Versions[i]
		var suites []string
		for _, s := range v.Suites {
			suites = append(suites, s.ID)
		}
		if v.Version != w.version || !v.Accepted || !sameSet(suites, strings.Fields(w.suites)) || strings.Join(v.Groups, " ") != w.groups || v.Incomplete != "" {
			t.Errorf("%+v, expected %+v", v, w)
		}
	}
	for _, code := range []string{"old_version", "weak_suite"} {
		if r.problem(code) == nil {
			t.Errorf("no finding %s", code)
		}
	}
	if got := fmt.Sprint(r.ALPN); got != "[{h2 accepted} {http/1.1 ignored}]" {
		t.Errorf("ALPN %s", got)
	}
	if r.Chosen.Group != "X25519MLKEM768" || r.Versions[0].Group != "X25519MLKEM768" {
		t.Errorf("chosen %+v, asks for %s", r.Chosen, r.Versions[0].Group)
	}
	if r.Connections > 80 {
		t.Errorf("%d connections", r.Connections)
	}
}

func sameSet(a, b []string) bool {
	set := map[string]bool{}
	for _, s := range a {
		set[s] = true
	}
	for _, s := range b {
		if !set[s] {
			return false
		}
	}
	return len(a) == len(b)
}

// TestEndless: a server that always finds another answer costs a bounded number of connections.
func TestEndless(t *testing.T) {
	t.Parallel()
	r := run(t, Options{Target: listen(t, func(conn net.Conn) {
		buf := make([]byte, 4096)
		k, _ := conn.Read(buf)
		if k < 80 {
			return
		}
		// A ServerHello of TLS 1.2 that takes the first suite offered, and no more.
		at := 44 + int(buf[43])
		hello := append([]byte{3, 3}, make([]byte, 33)...)
		hello = append(hello, buf[at+2], buf[at+3], 0)
		_, _ = conn.Write(append([]byte{22, 3, 3, 0, byte(len(hello) + 4), 2, 0, 0, byte(len(hello))}, hello...))
	})})
	if r.Connections > MaxConnections || r.Outcome != OutcomeTLS {
		t.Errorf("%d connections, %s", r.Connections, r.Outcome)
	}
}

// TestInterrupted: a probe that is ended ends, and says what it knows; a server that stops to answer is left alone.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	conf := serverOf(testpki.New(t).Server("a.test"))
	t.Run("by its context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var n atomic.Int32
		r, err := Run(ctx, Options{ServerName: "a.test", Timeout: time.Minute, Target: listen(t, func(conn net.Conn) {
			if n.Add(1) == 5 {
				cancel()
				_, _ = io.Copy(io.Discard, conn)
			}
			serveWeb(conn, conf, okay)
		})})
		if err != nil || r.Outcome != OutcomeTLS || r.problem("incomplete") == nil || r.Connections != 5 {
			t.Errorf("%v, %+v", err, r)
		}
	})
	t.Run("by silence", func(t *testing.T) {
		var n atomic.Int32
		r := run(t, Options{Timeout: 2 * time.Second, Target: listen(t, func(conn net.Conn) {
			if n.Add(1) > 8 {
				_, _ = io.Copy(io.Discard, conn)
				return
			}
			serveWeb(conn, conf, okay)
		})})
		if r.Outcome != OutcomeTLS || r.problem("incomplete") == nil || r.Connections > 16 {
			t.Errorf("%s, %d connections, %+v", r.Outcome, r.Connections, r.Findings)
		}
	})
}

// TestServerName: every connection asks for the same name, or for none.
func TestServerName(t *testing.T) {
	t.Parallel()
	pki := testpki.New(t)
	for want, o := range map[string]Options{"a.test": {ServerName: "A.test."}, "": {NoServerName: true}} {
		var mu sync.Mutex
		seen := map[string]int{}
		conf := serverOf(pki.Server("a.test"))
		conf.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			mu.Lock()
			seen[h.ServerName]++
			mu.Unlock()
			return nil, nil
		}
		o.Target = web(t, conf, okay)
		r := run(t, o)
		mu.Lock()
		if len(seen) != 1 || seen[want] != r.Connections || r.ServerName != want {
			t.Errorf("asked for %v in %d connections, expected %q", seen, r.Connections, want)
		}
		mu.Unlock()
	}
}

// TestOlder: a server that answers with an older version than the one offered does not speak that one.
func TestOlder(t *testing.T) {
	t.Parallel()
	conf := serverOf(testpki.New(t).Server("a.test"))
	conf.MinVersion, conf.MaxVersion = tls.VersionTLS10, tls.VersionTLS10
	r := run(t, Options{Target: web(t, conf, okay), Path: "/"})
	for i, want := range []string{"protocol_version", "chose TLS 1.0", "chose TLS 1.0", ""} {
		if v := r.Versions[i]; v.Accepted != (want == "") || !strings.Contains(v.Refused, want) {
			t.Errorf("%+v, expected %q", v, want)
		}
	}
	if len(r.Chains) != 1 || len(r.ClientAuth) != 1 || r.ClientCertificate != certNotRequested || len(r.Versions[3].Suites) == 0 {
		t.Errorf("%s, %+v", r.ClientCertificate, r.Versions[3])
	}
}

// TestStaple: a staple is seen in every version, and judged.
func TestStaple(t *testing.T) {
	t.Parallel()
	root := testpki.New(t)
	server := root.Server("a.test")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		pair := server.TLS()
		pair.OCSPStaple = root.OCSP(server)
		conf := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: version, MaxVersion: version}
		r := run(t, Options{Target: web(t, conf, okay), Roots: []*x509.Certificate{root.Cert}})
		if len(r.Chains) != 1 || r.Chains[0].Staple.Status != "good" || !*r.Chains[0].Trusted {
			t.Errorf("%s: %+v", tls.VersionName(version), r.Chains)
		}
	}
}

func TestSystemRoots(t *testing.T) {
	root := testpki.New(t)
	file, _ := root.WriteFiles(t.TempDir())
	t.Setenv("SSL_CERT_FILE", file)
	roots, from, err := SystemRoots()
	if err != nil || from != file || len(roots) != 1 || !roots[0].Equal(root.Cert) {
		t.Errorf("%d from %s, %v", len(roots), from, err)
	}
	t.Setenv("SSL_CERT_FILE", file+".not")
	if _, _, err := SystemRoots(); err == nil || !strings.Contains(err.Error(), "--ca") {
		t.Error(err)
	}
}
