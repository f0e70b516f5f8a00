package record

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"countersign/internal/identity"
	"countersign/internal/message"
	"countersign/internal/reason"
	"countersign/internal/testpki"
)

// The patterns that AWS publishes for Athena's tables of the two logs.
const (
	accessPattern = `([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*):([0-9]*) ([^ ]*)[:-]([0-9]*) ([-.0-9]*) ([-.0-9]*) ([-.0-9]*) (|[-0-9]*) (-|[-0-9]*) ` +
		`([-0-9]*) ([-0-9]*) \"([^ ]*) (.*) (- |[^ ]*)\" \"([^\"]*)\" ([A-Z0-9-_]+) ([A-Za-z0-9.-]*) ([^ ]*) \"([^\"]*)\" \"([^\"]*)\" \"([^\"]*)\" ` +
		`([-.0-9]*) ([^ ]*) \"([^\"]*)\" \"([^\"]*)\" \"([^ ]*)\" \"([^\s]+?)\" \"([^\s]+)\" \"([^ ]*)\" \"([^ ]*)\" ?([^ ]*)? ?( .*)?`
	connectionPattern = `([^ ]*) ([^ ]*) ([0-9]*) ([0-9]*) ([A-Za-z0-9.-]*) ([^ ]*) ([-.0-9]*) \"([^\"]*)\" ([^ ]*) ([^ ]*) ([^ ]*) ?([^ ]*)?( .*)?`
	combinedPattern   = `(\S+) (\S+) (\S+) \[([^\]]+)\] "([^"]*)" (\d{3}) (\d+|-) "([^"]*)" "([^"]*)"`
)

var start = time.Date(2026, 11, 21, 16, 5, 59, 123456000, time.UTC)

// full is a request of which everything is known.
func full() *Request {
	r := &Request{}
	r.Begin(7, start)
	head := message.Request{Method: []byte("GET"), Path: []byte("/a/b"), Query: []byte("x=1&y=2"), HasQuery: true, Host: []byte("a.test:8443")}
	head.Minor = 1
	head.Fields = []message.Field{{Name: []byte("User-Agent"), Value: []byte("curl/8.9 (x; y)")}, {Name: []byte("Referer"), Value: []byte("https://b.test/")},
		{Name: []byte("X-Amzn-Trace-Id"), Value: []byte("Root=1-58337364-23a8c76965a2ef7629b185e3")}}
	r.Keep(head.Method, head.Host, head.Path)
	r.KeepMore(&head)
	r.Conn = &Conn{Client: "192.0.2.9:2817", Local: "127.0.0.1:8443", Secure: true, SNI: "a.test", Version: "TLS 1.2",
		Cipher: "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", Certificate: "server.pem"}
	r.User, r.Status, r.Reason, r.Upstream, r.Target = "CN=Alice Smith,O=x", 200, reason.Completed, "api", "10.0.0.1:80"
	r.HeadIn, r.HeadOut, r.BytesIn, r.BytesOut = 100, 200, 34, 166
	r.SentTime, r.TargetTime, r.AnswerTime = time.Millisecond, 49*time.Millisecond, 86*time.Millisecond
	r.Rule = DefaultRule
	return r
}

func TestALBAccess(t *testing.T) {
	now := start.Add(90 * time.Millisecond)
	const ref = "0123456789abcdef"
	cases := []struct {
		name   string
		change func(*Request)
		want   string
	}{
		{"unknown", func(r *Request) { *r = Request{Start: start, Reason: reason.BadRequestLine, Status: 400} },
			`http 2026-11-21T16:05:59.213456Z app/countersign/public -:0 - -1 -1 -1 400 - 0 0 "- http://-:80- -" "-" - - - "-" "-" "-" - 2026-11-21T16:05:59.123456Z ` +
				`"-" "-" "bad_request_line" "-" "-" "-" "-" TID_00000000000000000123456789abcdef "-" "-" "-" -`},
		{"aborted", func(r *Request) {
			r.Status, r.Reason, r.TargetTime, r.AnswerTime = 0, reason.ClientAborted, 0, 0
		},
			`https 2026-11-21T16:05:59.213456Z app/countersign/public 192.0.2.9:2817 10.0.0.1:80 0.001 -1 -1 460 - 134 366 "GET https://a.test:8443/a/b?x=1&y=2 HTTP/1.1" ` +
				`"curl/8.9 (x; y)" ECDHE-RSA-AES128-GCM-SHA256 TLSv1.2 api "Root=1-58337364-23a8c76965a2ef7629b185e3" "a.test" "server.pem" 0 2026-11-21T16:05:59.123456Z ` +
				`"forward" "-" "client_aborted" "10.0.0.1:80" "-" "-" "-" TID_00000000000000000123456789abcdef "-" "-" "-" 127.0.0.1`},
		{"refused by us", func(r *Request) {
			r.Status, r.Reason, r.Upstream, r.Target, r.TargetTime, r.Rule = 404, reason.RouteNotFound, "", "", 0, 0
			r.Classification, r.ClassificationReason = "Ambiguous", "UndefinedContentLengthSemantics"
		},
			`https 2026-11-21T16:05:59.213456Z app/countersign/public 192.0.2.9:2817 - -1 -1 -1 404 - 134 366 "GET https://a.test:8443/a/b?x=1&y=2 HTTP/1.1" ` +
				`"curl/8.9 (x; y)" ECDHE-RSA-AES128-GCM-SHA256 TLSv1.2 - "Root=1-58337364-23a8c76965a2ef7629b185e3" "a.test" "server.pem" - 2026-11-21T16:05:59.123456Z ` +
				`"-" "-" "route_not_found" "-" "-" "Ambiguous" "UndefinedContentLengthSemantics" TID_00000000000000000123456789abcdef "-" "-" "-" 127.0.0.1`},
		{"forwarded", func(*Request) {},
			`https 2026-11-21T16:05:59.213456Z app/countersign/public 192.0.2.9:2817 10.0.0.1:80 0.001 0.048 0.037 200 200 134 366 "GET https://a.test:8443/a/b?x=1&y=2 HTTP/1.1" ` +
				`"curl/8.9 (x; y)" ECDHE-RSA-AES128-GCM-SHA256 TLSv1.2 api "Root=1-58337364-23a8c76965a2ef7629b185e3" "a.test" "server.pem" 0 2026-11-21T16:05:59.123456Z ` +
				`"forward" "-" "-" "10.0.0.1:80" "200" "-" "-" TID_00000000000000000123456789abcdef "-" "-" "-" 127.0.0.1`},
		{"redirect over IPv6, h2, resumed", func(r *Request) {
			r.Conn = &Conn{Client: "[2001:db8::1]:999", Local: "[2001:db8::2]:443", Secure: true, SNI: "a.test", Version: "TLS 1.3", Cipher: "TLS_AES_128_GCM_SHA256", Resumed: true}
			r.Major, r.Minor, r.Rule, r.RedirectURL, r.Status, r.Upstream, r.Target, r.TargetTime = 2, 1, 3, "https://b.test:443/x", 301, "", "", 0
			r.Reason = reason.AnsweredHere
		},
			`h2 2026-11-21T16:05:59.213456Z app/countersign/public [2001:db8::1]:999 - -1 -1 -1 301 - 134 366 "GET https://a.test:443/a/b?x=1&y=2 HTTP/2.0" ` +
				`"curl/8.9 (x; y)" TLS_AES_128_GCM_SHA256 TLSv1.3 - "Root=1-58337364-23a8c76965a2ef7629b185e3" "a.test" "session-reused" 3 2026-11-21T16:05:59.123456Z ` +
				`"redirect" "https://b.test:443/x" "-" "-" "-" "-" "-" TID_00000000000000000123456789abcdef "-" "-" "-" 2001:db8::2`},
		{"rewritten, to a socket, WebSocket", func(r *Request) {
			r.Target, r.Status, r.WebSocket = "unix:/run/api.sock", 101, true
			r.RewrittenHost, r.RewrittenURI = []byte("internal.test"), []byte("/v2/b")
			r.Client, r.Conn.Client = "unix", "127.0.0.1:1"
		},
			`wss 2026-11-21T16:05:59.213456Z app/countersign/public unix:0 unix:/run/api.sock:0 0.001 0.048 0.037 101 101 134 366 "GET https://a.test:8443/a/b?x=1&y=2 HTTP/1.1" ` +
				`"curl/8.9 (x; y)" ECDHE-RSA-AES128-GCM-SHA256 TLSv1.2 api "Root=1-58337364-23a8c76965a2ef7629b185e3" "a.test" "server.pem" 0 2026-11-21T16:05:59.123456Z ` +
				`"forward" "-" "-" "unix:/run/api.sock:0" "101" "-" "-" TID_00000000000000000123456789abcdef "internal.test" "/v2/b" "TransformSuccess" 127.0.0.1`},
	}
	var lines []string
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := full()
			c.change(r)
			got := string(r.appendALB(nil, now, "public", ref))
			if got != c.want+"\n" {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
			lines = append(lines, got)
		})
	}
	matches(t, accessPattern, lines, 34)
}

// matches has Go and Python, whose expressions are not the same, match each line as a whole, and looks that the group of
// that number, if it is not 0, has the trace id: then all before it are where they belong.
func matches(t *testing.T, pattern string, lines []string, trace int) {
	t.Helper()
	ours := regexp.MustCompile("^(?:" + strings.ReplaceAll(pattern, "0-9-_", "0-9_-") + ")$")
	for _, line := range lines {
		m := ours.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil || trace > 0 && !strings.HasPrefix(m[trace], "TID_") {
			t.Errorf("does not match: %q", line)
		}
	}
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Log("python3 is missing: not matched with it")
		return
	}
	cmd := exec.Command(python, "-c", `
import re, sys
p = re.compile(sys.argv[1], re.ASCII)
bad = [l for l in sys.stdin.buffer.read().decode("ascii").split("\n")[:-1] if not p.fullmatch(l)]
print(*bad, sep="\n", end="")`, pattern)
	cmd.Stdin = strings.NewReader(strings.Join(lines, ""))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("python3: %v\n%s", err, out)
	}
}

func TestALBConnection(t *testing.T) {
	pki := testpki.New(t)
	cert := pki.Client("amazondomains.com").Cert
	id, err := identity.FromChain([]*x509.Certificate{cert, pki.Cert})
	if err != nil {
		t.Fatal(err)
	}
	shown := fmt.Sprintf(`"CN=amazondomains.com" NotBefore=%s;NotAfter=%s %s`, cert.NotBefore.UTC().Format(time.RFC3339), cert.NotAfter.UTC().Format(time.RFC3339),
		identity.SerialHex(cert.SerialNumber))
	base := Handshake{Ref: "0123456789abcdef", Listener: "public", Client: "203.0.113.1:36280", Local: "192.0.2.1:443", Version: "TLS 1.2",
		Cipher: "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", Duration: 4036 * time.Millisecond, Group: "CurveP256", Reason: reason.Completed}
	const head = "2026-11-21T16:05:59.123456Z 203.0.113.1 36280 443 TLSv1.2 ECDHE-RSA-AES128-GCM-SHA256 "
	const tail = " TID_00000000000000000123456789abcdef secp256r1 app/countersign/public 192.0.2.1"
	var lines []string
	for name, c := range map[string]struct {
		change func(*Handshake)
		want   string
	}{
		"without certificate": {func(*Handshake) {}, head + `4.036 "-" - - Success` + tail},
		"verified":            {func(h *Handshake) { h.Identity = identity.Present(id) }, head + "4.036 " + shown + " Success" + tail},
		"revoked":             {func(h *Handshake) { h.Reason, h.At = reason.ClientCertRevoked, cert }, head + "- " + shown + " Failed:ClientCertCrlHit" + tail},
		"missing":             {func(h *Handshake) { h.Reason = reason.ClientCertMissing }, head + `- "-" - - Failed:UnmappedConnectionError` + tail},
		"old version": {func(h *Handshake) {
			h.Reason, h.Version, h.Cipher, h.Group = reason.TLSVersionUnsupported, "", "", ""
		}, `2026-11-21T16:05:59.123456Z 203.0.113.1 36280 443 - - - "-" - - Failed:UnmappedConnectionError TID_00000000000000000123456789abcdef - app/countersign/public 192.0.2.1`},
		"unknown": {func(h *Handshake) { *h = Handshake{Reason: reason.HandshakeFailed} },
			`2026-11-21T16:05:59.123456Z - 0 0 - - - "-" - - Failed:UnmappedConnectionError TID_00000000000000000000000000000000 - app/countersign/- -`},
	} {
		t.Run(name, func(t *testing.T) {
			h := base
			c.change(&h)
			got := string(h.appendALB(nil, start))
			if got != c.want+"\n" {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
			lines = append(lines, got)
		})
	}
	matches(t, connectionPattern, lines, 12)
}

// TestALBVerifyCodes: whatever the reason, the code is one that ALB documents.
func TestALBVerifyCodes(t *testing.T) {
	for _, why := range reason.All() {
		if code := albVerify(why); !albCodes[code] && code != "UnmappedConnectionError" {
			t.Errorf("%s: %s", why, code)
		}
	}
	for why, code := range map[reason.Reason]string{reason.CRLStale: "ClientCertCrlProcessingError", reason.ClientCertExpired: "ClientCertExpired",
		reason.ClientCertDepth: "ClientCertMaxChainDepthExceeded", reason.HelloTimeout: "UnmappedConnectionError",
		reason.ClientCertTooLarge: "ClientCertMaxSizeExceeded", reason.ClientCertMissing: "UnmappedConnectionError",
		reason.ClientCertRevoked: "ClientCertCrlHit", reason.ClientCertUntrusted: "ClientCertUntrusted", reason.ClientCertEKU: "ClientCertPurposeInvalid",
		reason.ClientCertNotYetValid: "ClientCertNotYetValid", reason.ClientCertUnparsable: "ClientCertInvalid"} {
		if got := albVerify(why); got != code {
			t.Errorf("%s: %s, expected %s", why, got, code)
		}
	}
}

func TestCombined(t *testing.T) {
	var lines []string
	for name, c := range map[string]struct {
		change func(*Request)
		want   string
	}{
		"unknown": {func(r *Request) { *r = Request{Start: start, Reason: reason.BadRequestLine, Status: 400} },
			`- - - [21/Nov/2026:16:05:59 +0000] "-" 400 - "-" "-"`},
		"aborted": {func(r *Request) { r.Status, r.Reason, r.BytesOut = 0, reason.ClientAborted, 0 },
			`192.0.2.9 - CN=Alice\x20Smith,O=x [21/Nov/2026:16:05:59 +0000] "GET /a/b?x=1&y=2 HTTP/1.1" 499 - "https://b.test/" "curl/8.9 (x; y)"`},
		"forwarded": {func(*Request) {},
			`192.0.2.9 - CN=Alice\x20Smith,O=x [21/Nov/2026:16:05:59 +0000] "GET /a/b?x=1&y=2 HTTP/1.1" 200 166 "https://b.test/" "curl/8.9 (x; y)"`},
		"without certificate": {func(r *Request) { r.User = "" },
			`192.0.2.9 - - [21/Nov/2026:16:05:59 +0000] "GET /a/b?x=1&y=2 HTTP/1.1" 200 166 "https://b.test/" "curl/8.9 (x; y)"`},
	} {
		t.Run(name, func(t *testing.T) {
			r := full()
			c.change(r)
			got := string(r.appendCombined(nil))
			if got != c.want+"\n" {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
			lines = append(lines, got)
		})
	}
	matches(t, combinedPattern, lines, 0)
}

// TestHostileLines: no text of a stranger ends a field or a line, reaches a terminal, or makes a line longer than 4 KiB, in
// any format (F13).
func TestHostileLines(t *testing.T) {
	pki := testpki.New(t)
	texts := append([]string{`" 200 200 0 0 "GET http://forged/ HTTP/1.1" "x`, "a\r\nhttp 2026-11-21T16:05:59.213456Z app/forged", `\" \`, `\`, `\\"`, "-", " ", "\t",
		strings.Repeat("\x1b", 64<<10), strings.Repeat("\\", 64<<10), strings.Repeat("a", 64<<10), strings.Repeat(" ", 64<<10), strings.Repeat("\xff", 64<<10)}, hostile...)
	var access, connection, combined []string
	for i, text := range texts {
		t.Run(fmt.Sprintf("F13/%d", i), func(t *testing.T) {
			cert := pki.Client(strings.ToValidUTF8(text[:min(len(text), 60)], "?")).Cert
			r := Request{}
			r.Begin(7, start)
			b := []byte(text)
			head := message.Request{Method: b, Path: b, Query: b, HasQuery: true, Host: b}
			for _, name := range []string{"User-Agent", "Referer", "X-Amzn-Trace-Id", "Content-Type"} {
				head.Fields = append(head.Fields, message.Field{Name: []byte(name), Value: b})
			}
			r.Keep(head.Method, head.Host, head.Path)
			r.KeepMore(&head)
			r.Conn = &Conn{Client: text, Local: text, Secure: true, SNI: text, Version: text, Cipher: "TLS_AES_128_GCM_SHA256", Certificate: text}
			r.Fail(reason.UpstreamClosed, errors.New(text))
			r.User, r.Found, r.Expected, r.RedirectURL, r.Target, r.Upstream = text, text, text, text, text, text
			r.RewrittenHost, r.RewrittenURI, r.Actions, r.Classification, r.ClassificationReason = b, b, text, text, text
			r.Status, r.TargetStatus = 599, 599
			r.HeadIn, r.HeadOut, r.BytesIn, r.BytesOut, r.SentTime, r.TargetTime, r.AnswerTime = 1<<60, 1<<60, 1<<60, 1<<60, 1<<50, 1<<55, 1<<60
			h := Handshake{Ref: "r", Listener: text, Client: text, Local: text, SNI: text, Host: text, Policy: text, Version: text, Cipher: text, Group: text, ALPN: text,
				Shadow: reason.ClientCertExpired, ShadowFound: text, Lenient: text, Store: text, StoreVer: text, Upstream: text, TargetAddr: text,
				Reason: reason.ClientCertExpired, Expected: text, Found: text, Detail: text, At: pki.Cert, Leaf: cert, Kind: Tunnel, Resumed: true, BytesIn: 1 << 60, BytesOut: 1 << 60, Duration: 1 << 60}
			id, err := identity.FromChain([]*x509.Certificate{cert, pki.Cert})
			if err != nil {
				t.Fatal(err)
			}
			name := strings.Repeat("l", maxLabel) // a listener's is from the configuration
			fragment := FragmentVia(name, "[2001:db8:1111:2222:3333:4444:5555:6666%interface0]:65535", identity.Present(id), id)
			// Labels of the configuration are bounded there.
			h.Store, h.Upstream, h.Listener, h.Policy, h.Lenient, h.StoreVer = name, name, name, "request_unverified", "allow_server_auth_until", name[:32]
			h.Version, h.Cipher, h.Group, h.ALPN, h.Client = "TLS 1.3", "TLS_AES_128_GCM_SHA256", "X25519MLKEM768", "http/1.1", "[2001:db8:1111:2222:3333:4444:5555:6666%interface0]:65535"
			a, c, k := r.appendALB(nil, start, text, text), r.appendCombined(nil), h.appendALB(nil, start)
			access, combined, connection = append(access, string(a)), append(combined, string(c)), append(connection, string(k))
			j, hj := r.append(nil, start, "0123456789abcdef", fragment), h.append(nil, start)
			for _, line := range [][]byte{j, hj} {
				if !json.Valid(line) {
					t.Errorf("not JSON: %s", line)
				}
			}
			for _, line := range [][]byte{a, c, k, j, hj} {
				if bytes.Count(line, []byte("\n")) != 1 || line[len(line)-1] != '\n' || len(line) > maxLine {
					t.Errorf("%d bytes, %d line ends: %.200s", len(line), bytes.Count(line, []byte("\n")), line)
				}
				for _, c := range line[:len(line)-1] {
					if c < ' ' || c > '~' {
						t.Fatalf("byte %#x in %q", c, line)
					}
				}
			}
			// The quotes are those of the format, so no field ends where it should not.
			if n := bytes.Count(a, []byte(`"`)); n != 28+2 {
				t.Errorf("%d quotes: %s", n, a)
			}
			if n := bytes.Count(c, []byte(`"`)); n != 6 {
				t.Errorf("%d quotes: %s", n, c)
			}
			if n := bytes.Count(k, []byte(`"`)); n != 2 {
				t.Errorf("%d quotes: %s", n, k)
			}
		})
	}
	t.Run("F13/patterns", func(t *testing.T) {
		matches(t, accessPattern, access, 34)
		matches(t, connectionPattern, connection, 12)
		matches(t, combinedPattern, combined, 0)
	})
}

// TestClassify: every reason is counted and shown, and a request without one is neither.
func TestClassify(t *testing.T) {
	out := &buffer{}
	b := NewBook(out)
	l := b.Listener("public")
	for why := range message.ClassReason(message.ClassReasons) {
		r := full()
		r.Classify(why)
		l.Request(r, "abcd", nil)
		line := string(r.appendALB(nil, start, "public", ""))
		want := fmt.Sprintf(`"%s" "%s" TID_`, why.Class(), why)
		if why == message.NoDeviation {
			want = `"-" "-" TID_`
		}
		if !strings.Contains(line, want) {
			t.Errorf("no %s in %s", want, line)
		}
	}
	b.Close()
	if n := testutil.CollectAndCount(b.desync); n != message.ClassReasons-1 {
		t.Errorf("%d series, expected %d", n, message.ClassReasons-1)
	}
	if n := testutil.ToFloat64(b.desync.WithLabelValues("public", "Severe", "BadUri")); n != 1 {
		t.Errorf("counted %v", n)
	}
	if n := strings.Count(out.String(), `"classification":"`); n != message.ClassReasons-1 {
		t.Errorf("%d lines say so, expected %d", n, message.ClassReasons-1)
	}
}

// TestURLIsCut: a long URL ends in "...", and what follows it is in its place.
func TestURLIsCut(t *testing.T) {
	r := full()
	head := message.Request{Method: []byte("GET"), Path: []byte("/" + strings.Repeat("p", 600)), Query: bytes.Repeat([]byte("q"), 600), HasQuery: true, Host: []byte("a.test")}
	head.Minor = 1
	r.Keep(head.Method, head.Host, head.Path)
	r.KeepMore(&head)
	line := string(r.appendALB(nil, start, "public", ""))
	m := regexp.MustCompile(`"GET (https://a\.test:8443/p+\?q+\.\.\.) HTTP/1\.1"`).FindStringSubmatch(line)
	if m == nil || len(m[1]) > maxURL+3 || len(m[1]) < maxURL {
		t.Errorf("%s", line)
	}
}

// TestFormatsAllocateNothing: nor does a line on its way into the queue.
func TestFormatsAllocateNothing(t *testing.T) {
	r := full()
	line := make([]byte, 0, maxLine)
	for name, f := range map[string]func(){
		"alb_access": func() { line = r.appendALB(line[:0], start, "public", "0123456789abcdef") },
		"combined":   func() { line = r.appendCombined(line[:0]) },
	} {
		if n := testing.AllocsPerRun(1000, f); n != 0 {
			t.Errorf("%s allocates %v objects", name, n)
		}
	}
}

func BenchmarkFormats(b *testing.B) {
	r := full()
	line := make([]byte, 0, maxLine)
	for name, f := range map[string]func(){
		"alb_access": func() { line = r.appendALB(line[:0], start, "public", "0123456789abcdef") },
		"combined":   func() { line = r.appendCombined(line[:0]) },
		"json":       func() { line = r.append(line[:0], start, "0123456789abcdef", nil) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
}

// BenchmarkRequest is a record with its metrics on the way into the queue.
func BenchmarkRequest(b *testing.B) {
	book := NewBook(&buffer{})
	defer book.Close()
	l := book.Listener("public")
	r := full()
	fragment := Fragment("public", "127.0.0.1:9", identity.Client{})
	b.ReportAllocs()
	for b.Loop() {
		l.Request(r, "0123456789abcdef", fragment)
	}
}
