package daemon_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"countersign/internal/identity"
)

// spellings are ways to write a folded name that backends fold back.
func spellings(name string) []string {
	if stem, ok := strings.CutSuffix(name, "*"); ok {
		name = stem + "x"
		if strings.HasSuffix(stem, "-") {
			name = stem + "thing"
		}
	}
	return []string{http.CanonicalHeaderKey(name), strings.ToUpper(name), strings.ReplaceAll(name, "-", "_"), strings.ReplaceAll(name, "-", "."),
		strings.Replace(name, "-", "_", 1), strings.ReplaceAll(strings.ToUpper(name), "-", "~")}
}

// anonymous opens connections without a certificate: plain HTTP, mode off, mode request.
func (g *rig) anonymous(t testing.TB) map[string]net.Conn {
	all := map[string]net.Conn{}
	for _, name := range []string{"off.test", "b.test"} {
		c, err := g.dial("tls", g.client(name, nil))
		if err != nil {
			t.Fatal(err)
		}
		all[name] = c
	}
	all["a.test"] = g.connect(t, "plain")
	for _, c := range all {
		_ = c.SetDeadline(time.Now().Add(time.Minute)) // for a whole test
	}
	return all
}

// TestD01: no spelling of a protected name that a client sends reaches a target, whatever the mode.
func TestD01(t *testing.T) {
	g := newRig(t, "", "", false)
	conns := g.anonymous(t)
	readers := map[string]*bufio.Reader{}
	for host, c := range conns {
		readers[host] = bufio.NewReader(c)
	}
	n := 0
	for _, name := range identity.ProtectedNames() {
		for _, spelling := range spellings(name) {
			for host, c := range conns {
				g.b.reset()
				n++
				status, _, err := roundTrip(c, readers[host], "GET / HTTP/1.1\r\nHost: "+host+"\r\n"+spelling+": spoof-me\r\nX-Kept: yes\r\n"+spelling+": spoof-me-too\r\n\r\n")
				s := g.b.got()
				if err != nil || status != 200 || !strings.Contains(s, "X-Kept: yes\r\n") {
					t.Fatalf("%s on %s: %d %v: %q", spelling, host, status, err, s)
				}
				if strings.Contains(s, "spoof-me") {
					t.Errorf("%s on %s reached the target: %q", spelling, host, s)
				}
				if host != "b.test" && strings.Contains(strings.ToLower(s), "client-cert") {
					t.Errorf("an identity header on %s, where nobody is asked: %q", host, s)
				}
			}
		}
	}
	if n < 300 {
		t.Errorf("only %d requests", n)
	}
}

// TestD02: Connection cannot take our own headers off, and the names it may list are those of harmless fields.
func TestD02(t *testing.T) {
	g := newRig(t, "", "", false)
	for _, name := range []string{"X-Forwarded-For", "x-forwarded-proto", "Client-Cert", "client_cert", "X-Amzn-Mtls-Clientcert-Subject", "Via", "Host", "Content-Length", "Authorization", "cookie"} {
		for _, l := range listeners {
			g.b.reset()
			got, _, r := g.ask(t, l, "GET / HTTP/1.1\r\n"+hostLine+"Connection: x-other, "+name+"\r\nConnection: keep-alive\r\n\r\n")
			if why := g.reasonOf(t, got); got.StatusCode != 400 || why != "protected_connection_token" || g.b.got() != "" {
				t.Errorf("%s: %s: %d %s, the target got %q", l, name, got.StatusCode, why, g.b.got())
			}
			ended(t, r)
		}
	}
	g.b.reset()
	got, _, _ := g.ask(t, "tls", "GET / HTTP/1.1\r\n"+hostLine+"Connection: X-Other, coo\u212aie\r\nX-other: gone\r\nCookie: kept\r\n\r\n")
	s := g.b.got()
	if got.StatusCode != 200 || strings.Contains(s, "gone") || !strings.Contains(s, "Cookie: kept\r\n") || strings.Count(s, "Client-Cert: :") != 1 {
		t.Errorf("%d %q", got.StatusCode, s)
	}
}

// TestD03: no field with an underscore passes; one with a dot does, unless it folds to a protected name.
func TestD03(t *testing.T) {
	g := newRig(t, "", "", false)
	for _, l := range listeners {
		g.b.reset()
		got, _, _ := g.ask(t, l, "GET / HTTP/1.1\r\n"+hostLine+"X_Custom: dropped\r\n_: dropped\r\nX.Client.Cert: dropped\r\nx-client.cert: dropped\r\nX~Forwarded'For: dropped\r\nX.Custom: kept\r\n\r\n")
		if s := g.b.got(); got.StatusCode != 200 || strings.Contains(s, "dropped") || !strings.Contains(s, "X.Custom: kept\r\n") {
			t.Errorf("%s: %d %q", l, got.StatusCode, s)
		}
		for _, name := range []string{"Content_Length", "Transfer_Encoding"} { // nobody means these well
			g.b.reset()
			got, _, _ := g.ask(t, l, "GET / HTTP/1.1\r\n"+hostLine+name+": 5\r\n\r\n")
			if s := g.b.got(); got.StatusCode != 400 || s != "" {
				t.Errorf("%s: %s: %d %q", l, name, got.StatusCode, s)
			}
		}
	}
}

// TestD04 also shows that a client with a certificate cannot add to its own identity: there is one of each, ours.
func TestD04(t *testing.T) {
	g := newRig(t, "", "", false)
	got, _, _ := g.ask(t, "tls", "GET / HTTP/1.1\r\n"+hostLine+"Client-Cert: :c3Bvb2Y=:\r\nclient-cert: :c3Bvb2Y=:\r\nX-Forwarded-Client-Cert: By=spoof\r\nX-Forwarded-Client-Cert: By=spoof,By=spoof\r\nX-Amzn-Mtls-Clientcert-Subject: CN=spoof\r\nCLIENT_CERT: spoof\r\n\r\n")
	s := g.b.got()
	if got.StatusCode != 200 || strings.Contains(s, "spoof") || strings.Contains(s, "c3Bvb2Y") {
		t.Errorf("%d %q", got.StatusCode, s)
	}
	for _, name := range []string{"Client-Cert: :", "X-Amzn-Mtls-Clientcert-Subject: CN=alice\r\n", "X-Amzn-Mtls-Clientcert-Leaf: "} {
		if strings.Count(strings.ToLower(s), strings.ToLower(name)) != 1 {
			t.Errorf("not once %q in %q", name, s)
		}
	}
}

// TestD05 is for trailers of responses: they go to who reads them, without what could be taken for a header. Those of
// requests are in TestE06.
func TestD05(t *testing.T) {
	g := newRig(t, "", "", false)
	g.b.on("/trailer", raw("HTTP/1.1 200 OK\r\nTrailer: X-Client-Cert, X-Other\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Client-Cert: leak\r\nX-Other: passes\r\n\r\n", true))
	for _, l := range listeners {
		for reads, end := range map[string]string{"": "hello\r\n0\r\n\r\n", "TE: trailers\r\nConnection: TE\r\n": "hello\r\n0\r\nX-Other: passes\r\n\r\n"} {
			g.b.reset()
			c := g.connect(t, l)
			io.WriteString(c, "GET /trailer HTTP/1.1\r\n"+hostLine+reads+"Connection: close\r\n\r\n")
			all, err := io.ReadAll(c)
			if s := string(all); err != nil || strings.Contains(s, "leak") || strings.Contains(s, "Trailer") || !strings.HasSuffix(s, end) {
				t.Errorf("%s: %q %v", l, all, err)
			}
			if s := g.b.got(); strings.Contains(s, "TE: trailers\r\n") != (reads != "") {
				t.Errorf("%s: the target got %q", l, s)
			}
		}
	}
}

// TestD15: where a request comes from is what we know, not what it says.
func TestD15(t *testing.T) {
	g := newRig(t, "", "", false)
	for _, l := range listeners {
		g.b.reset()
		proto, addr := "http", g.addr(l)
		if l == "tls" {
			proto = "https"
		}
		_, port, _ := net.SplitHostPort(addr)
		got, c, _ := g.ask(t, l, "GET / HTTP/1.1\r\nHost: a.test:8\r\nX-Forwarded-For: 6.6.6.6\r\nx-forwarded-proto: spoof\r\nX-FORWARDED-HOST: spoof\r\nX-Forwarded-Port: spoof\r\nX-Forwarded-Prefix: spoof\r\nX-Forwarded-Uri: spoof\r\nX-Forwarded-Server: spoof\r\n"+
			"Forwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nTrue-Client-IP: 6.6.6.6\r\nCF-Connecting-IP: 6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\nX.Real.IP: 6.6.6.6\r\n\r\n")
		ip, _, _ := net.SplitHostPort(c.LocalAddr().String())
		s := g.b.got()
		if got.StatusCode != 200 || strings.Contains(s, "6.6.6.6") || strings.Contains(s, "spoof") {
			t.Errorf("%s: %d %q", l, got.StatusCode, s)
		}
		for _, want := range []string{"X-Forwarded-For: " + ip, "X-Forwarded-Proto: " + proto, "X-Forwarded-Host: a.test:8", "X-Forwarded-Port: " + port} {
			if name, _, _ := strings.Cut(want, ":"); !strings.Contains(s, "\r\n"+want+"\r\n") || strings.Count(strings.ToLower(s), strings.ToLower(name)) != 1 {
				t.Errorf("%s: expected %q once, found %q", l, want, s)
			}
		}
	}
}

func TestD16(t *testing.T) {
	g := newRig(t, "", "", false)
	for _, l := range listeners {
		g.b.reset()
		got, _, _ := g.ask(t, l, "GET / HTTP/1.1\r\n"+hostLine+"Proxy: http://spoof\r\npROXY: http://spoof\r\n\r\n")
		if s := g.b.got(); got.StatusCode != 200 || strings.Contains(s, "spoof") {
			t.Errorf("%s: %d %q", l, got.StatusCode, s)
		}
	}
}

// TestAnswersLeakNothing: a target's answer says nothing that we would not, and our own pages say nothing about the request or what is
// behind us.
func TestAnswersLeakNothing(t *testing.T) {
	t.Run("D18/answers and pages leak nothing", answersLeakNothing)
}

func answersLeakNothing(t *testing.T) {
	g := newRig(t, "", ", response: 1s", false)
	g.b.on("/leaks", raw("HTTP/1.1 200 OK\r\nX-Forwarded-Client-Cert: leak\r\nx-client-cert: leak\r\nClient-Cert: leak\r\nX_Client_Cert: leak\r\nX-Amzn-Mtls-Clientcert: leak\r\nX-Real-Ip: leak\r\nProxy-Authenticate: leak\r\nKeep-Alive: leak\r\nX-Kept: yes\r\nContent-Length: 0\r\n\r\n", true))
	g.b.on("/secret-path", func(c *recorded, r *http.Request) bool { return false })
	g.b.on("/secret-bad", raw("NONSENSE secret\r\n\r\n", true))
	for _, l := range listeners {
		c := g.connect(t, l)
		io.WriteString(c, "GET /leaks HTTP/1.1\r\n"+hostLine+"Connection: close\r\n\r\n")
		all, err := io.ReadAll(c)
		if s := string(all); err != nil || strings.Contains(s, "leak") || !strings.Contains(s, "X-Kept: yes\r\n") {
			t.Errorf("%s: %q %v", l, s, err)
		}
		for _, request := range []string{"GET /secret-path?secret HTTP/1.1\r\n" + hostLine + "X: secret\r\n\r\n", "GET /secret-bad HTTP/1.1\r\n" + hostLine + "\r\n", "GET /secret HTTP/1.1\r\nHost: secret.test\r\n\r\n",
			"GET /../secret HTTP/1.1\r\n" + hostLine + "\r\n", "GET /secret HTTP/1.1\r\n" + hostLine + "secret : x\r\n\r\n", "SECRET secret HTTP/1.1\r\n\r\n"} {
			got, c, _ := g.ask(t, l, request)
			ip, _, _ := net.SplitHostPort(c.LocalAddr().String())
			tip, tport, _ := net.SplitHostPort(g.b.addr)
			page := strings.ToLower(fmt.Sprint(got.Header) + got.body)
			for _, no := range []string{"secret", "a.test", ip, tip, tport, "alice", "api", "countersign"} {
				if got.StatusCode < 400 || strings.Contains(page, no) {
					t.Errorf("%s: %q: %d, the page has %q: %s", l, request, got.StatusCode, no, page)
				}
			}
		}
	}
}
