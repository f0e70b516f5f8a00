package daemon_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign/internal/daemon"
	"countersign/internal/forward"
	"countersign/internal/snapshot"
	"countersign/internal/testpki"
)

// scaleConfig has hosts h0 to h49 that ask for clients of ten thousand CAs, and one that asks for those of two. With apart
// each of the fifty has a trust store of its own, of the same file.
func scaleConfig(apart bool, hints string) string {
	var b strings.Builder
	b.WriteString("trust_stores:\n  small: {ca_bundle: {file: clients.pem}}\n")
	name := func(i int) string {
		if apart {
			return fmt.Sprint("large", i)
		}
		return "large"
	}
	for i := range 50 {
		if apart || i == 0 {
			fmt.Fprintf(&b, "  %s: {ca_bundle: {file: many.pem}%s}\n", name(i), hints)
		}
	}
	b.WriteString("upstreams: {api: {targets: [\"http://BACKEND\"]}}\nlisteners:\n  public:\n    listen: 127.0.0.1:0\n    protocol: https\n    hosts:\n")
	host := func(names, store string) {
		fmt.Fprintf(&b, "      - {names: [%s], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: %s}, routes: [{upstream: api}]}\n", names, store)
	}
	host("a.test", "small")
	for i := range 50 {
		host(fmt.Sprintf("h%d.w.test", i), name(i))
	}
	return b.String()
}

// heap is what is in use after a collection.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestManyCAs: ten thousand CAs on fifty hosts are loaded once and shared, also by stores of other names and from one
// configuration to the next, and are nothing that a client would notice.
func TestManyCAs(t *testing.T) {
	cas := 10_000
	if raceEnabled {
		cas = 2_000 // which it takes as long to make
	}
	w := newWorld(t)
	b := echo(t, "api", nil)
	middle := w.ca
	var bundle bytes.Buffer
	for i := range cas {
		if i == cas/2 {
			bundle.Write(w.root.PEM())
			continue
		}
		bundle.Write(testpki.New(t, testpki.Subject(pkix.Name{CommonName: fmt.Sprintf("Scale Root %d", i), Organization: []string{"Countersign"}})).PEM())
	}
	w.file("many.pem", bundle.Bytes())
	w.file("few.pem", append(w.root.PEM(), w.servers.PEM()...))
	bundle = bytes.Buffer{}

	for _, c := range []struct {
		name  string
		apart bool
	}{{"one store", false}, {"fifty stores of one file", true}} {
		t.Run("F12/"+c.name, func(t *testing.T) {
			w.file("countersign.yaml", []byte(strings.ReplaceAll(scaleConfig(c.apart, ""), "BACKEND", b.addr)))
			load := func(previous *snapshot.Snapshot) (*snapshot.Snapshot, time.Duration) {
				start := time.Now()
				l := must(daemon.Load(filepath.Join(w.dir, "countersign.yaml"), snapshot.Env{Now: time.Now(), Previous: previous}))(t)
				return l.Snapshot, time.Since(start)
			}
			before := heap()
			first, took := load(nil)
			one := heap() - min(before, heap())
			second, again := load(first)
			both := heap() - min(before, heap())
			t.Logf("loaded in %v, %.0f MiB; again in %v, both %.0f MiB", took, mib(one), again, mib(both))
			if took > 60*time.Second { // 5 s are the aim, on a machine that has nothing else to do
				t.Errorf("loaded in %v", took)
			}
			if both > 500<<20 {
				t.Errorf("%.0f MiB for two configurations, of which one is being replaced", mib(both))
			}
			hosts, next := first.Listeners["public"].Hosts[1:], second.Listeners["public"].Hosts[1:]
			anchors := hosts[0].Auth.Store.Anchors()
			if len(hosts) != 50 || len(next) != 50 || len(anchors) != cas {
				t.Fatalf("%d and %d hosts, %d CAs", len(hosts), len(next), len(anchors))
			}
			for _, h := range append(slices.Clip(hosts), next...) {
				for i, a := range h.Auth.Store.Anchors() {
					if a != anchors[i] {
						t.Fatalf("%s: CA %d was read once more", h.Name, i)
					}
				}
				if h.Auth.Hints != nil || len(h.Auth.Store.Hints()) != 0 {
					t.Fatalf("%s: hints are sent", h.Name)
				}
			}
			runtime.KeepAlive(second)
		})
	}

	t.Run("B23/names for all of them, asked for", func(t *testing.T) {
		w.file("bad.yaml", []byte(strings.ReplaceAll(scaleConfig(false, ", hints: {file: many.pem}"), "BACKEND", b.addr)))
		_, err := daemon.Load(filepath.Join(w.dir, "bad.yaml"), snapshot.Env{Now: time.Now()})
		if err == nil || !strings.Contains(err.Error(), "bytes of CA names") {
			t.Errorf("%v, expected that no handshake can carry them", err)
		}
	})

	start := time.Now()
	w.start(scaleConfig(false, ""), b.addr)
	t.Logf("started in %v", time.Since(start))
	alice, stranger := middle.Client("alice"), testpki.New(t).Client("stranger")
	for _, v := range tlsVersions {
		t.Run("B23/"+v.name, func(t *testing.T) {
			for host, names := range map[string]int{"a.test": 2, "h7.w.test": 0} {
				got := -1
				conf := pin(w.client(host, alice), v.id)
				show := conf.GetClientCertificate
				conf.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
					got = len(r.AcceptableCAs)
					return show(r)
				}
				if a := w.call("public", conf, host, "/"); a.status != 200 || got != names {
					t.Errorf("%s: %d %v, %d CA names, expected %d", host, a.status, a.err, got, names)
				}
				a := w.call("public", pin(w.client(host, stranger), v.id), host, "/")
				if r := w.ended(t, a); a.status != 0 || r["reason"] != "client_cert_untrusted" {
					t.Errorf("%s: a stranger: %d, %v", host, a.status, r)
				}
			}
		})
	}
	t.Run("F12/handshakes", func(t *testing.T) {
		times := map[string][]time.Duration{}
		shake := func(host string) {
			// Each time a client that was not here before: what is remembered of the others is of no use to it.
			conf := w.client(host, middle.Client("new"))
			start := time.Now()
			if a := w.call("public", conf, host, "/"); a.status != 200 {
				t.Fatalf("%s: %d %v", host, a.status, a.err)
			}
			times[host] = append(times[host], time.Since(start))
		}
		for range 40 {
			shake("a.test")
			shake("h7.w.test")
		}
		median := func(host string) time.Duration {
			slices.Sort(times[host])
			return times[host][len(times[host])/2]
		}
		small, large := median("a.test"), median("h7.w.test")
		t.Logf("%v with two CAs, %v with %d", small, large, cas)
		if large > 4*small {
			t.Errorf("%v with two CAs, %v with %d", small, large, cas)
		}
	})
	t.Run("F12/reload", func(t *testing.T) {
		live := w.keep(t, "public", w.client("h7.w.test", alice))
		start := time.Now()
		w.reload(scaleConfig(false, "")+"# again\n", b.addr)
		t.Logf("reloaded in %v", time.Since(start))
		if status, _, err := live.get("h7.w.test"); status != 200 {
			t.Errorf("a live connection: %d %v", status, err)
		}
	})
}

// with is the message of a hello with one more extension at the end.
func (h hello) with(kind uint16, body []byte) []byte {
	h.suites = []uint16{tls.TLS_AES_128_GCM_SHA256}
	m := h.message()
	at := 4 + 2 + 32 + 33 + 2 + 2*len(h.suites) + 2 // where the extensions begin
	ext := append(bytes.Clone(m[at+2:]), byte(kind>>8), byte(kind))
	ext = append(ext, vector(2, body)...)
	return append([]byte{1}, vector(3, append(bytes.Clone(m[4:at]), vector(2, ext)...))...)
}

// appended adds bytes to what a client writes first, its ClientHello.
type appended struct {
	net.Conn
	more string
}

func (c *appended) Write(p []byte) (int, error) {
	_, err := c.Conn.Write(append(bytes.Clone(p), c.more...))
	c.more = ""
	return len(p), err
}

const kindsConfig = `
trust_stores:
  clients: {ca_bundle: {file: clients.pem}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    limits: {handshake: 700ms}
    hosts:
      - {names: [a.test], certificate: &c {cert: server.pem, key: server.key}, client_auth: {mode: off}, routes: &r [{upstream: web}]}
      - {names: [b.test], certificate: *c, client_auth: {mode: require, trust_store: clients}, routes: *r}
  secure:
    listen: 127.0.0.1:0
    protocol: tls
    limits: {handshake: 700ms}
    hosts:
      - {names: [a.test], certificate: *c, client_auth: {mode: off}, upstream: bytes}
      - {names: [b.test], certificate: *c, client_auth: {mode: require, trust_store: clients}, upstream: bytes}
  announced:
    listen: 127.0.0.1:0
    protocol: https
    proxy_protocol: {from: [127.0.0.0/8]}
    limits: {handshake: 700ms}
    hosts: [{names: [a.test], certificate: *c, client_auth: {mode: off}, routes: *r}]
  through:
    listen: 127.0.0.1:0
    protocol: passthrough
    limits: {handshake: 700ms}
    hosts: [{names: [a.test], upstream: bytes}]
  plain:
    listen: 127.0.0.1:0
    protocol: http
    limits: {header: 700ms, idle: 700ms}
    hosts: [{names: [a.test], routes: *r}]
upstreams:
  web: {targets: ["http://BACKEND"]}
  bytes: {targets: ["tcp://BACKEND"]}
`

// patient is kindsConfig for who is not to be let go because the machine stands still for a moment.
var patient = strings.ReplaceAll(kindsConfig, "700ms", "15s")

// TestEarlyData: what a client sends before the handshake is over, which anybody can send again, is never read, and no
// session that we give out invites to it.
func TestEarlyData(t *testing.T) {
	w := newWorld(t)
	rec := keepAll(t)
	w.start(patient, rec.addr)
	const early, alertUnsupported = "GET /early HTTP/1.1\r\nHost: a.test\r\n\r\n", 110
	none := func(t *testing.T, client string) {
		t.Helper()
		if conns, saw := rec.state("early"); saw {
			t.Errorf("early data reached a target, over one of %d connections", conns)
		}
		if r := w.find(t, "client="+client, "kind=handshake"); r["reason"] == "completed" {
			t.Errorf("record: %v", r)
		}
	}
	for _, listener := range []string{"public", "secure"} {
		for _, sni := range []string{"a.test", "b.test"} {
			t.Run("A31/"+listener+"/"+sni+"/announced and sent", func(t *testing.T) {
				h := hello{sni: []byte(sni), versions: []uint16{tls.VersionTLS13}, alpn: []string{"http/1.1"}}
				out := append(records(h.with(42, nil), 16<<10), 23, 3, 3)
				back, client := w.rawCall(t, listener, append(out, vector(2, []byte(early))...))
				if plainAlert(back) != alertUnsupported {
					t.Errorf("% x, expected the alert unsupported_extension", back[:min(len(back), 40)])
				}
				none(t, client)
			})
			t.Run("A31/"+listener+"/"+sni+"/sent without a word", func(t *testing.T) {
				a := w.call(listener, pin(w.client(sni, w.ca.Client("alice")), tls.VersionTLS13), sni, "/", func(c net.Conn) net.Conn {
					return &appended{c, string(append([]byte{23, 3, 3}, vector(2, []byte(early))...))}
				})
				if a.status != 0 || a.err == nil {
					t.Errorf("%d %q", a.status, a.body)
				}
				none(t, a.client)
			})
			t.Run("A31/"+listener+"/"+sni+"/sessions do not invite to it", func(t *testing.T) {
				sessions, asked := &cache{}, 0
				conf := offers(pin(w.client(sni, w.ca.Client("alice")), tls.VersionTLS13), sessions, &asked)
				for _, resumed := range []bool{false, true} {
					a := w.call(listener, conf, sni, "/")
					if a.status != 200 || a.state.DidResume != resumed {
						t.Fatalf("%d %v, resumed %v", a.status, a.err, a.state.DidResume)
					}
				}
				if sessions.last == nil {
					t.Fatal("no session")
				}
				if _, state, err := sessions.last.ResumptionState(); err != nil || state.EarlyData {
					t.Errorf("%v, early data %v", err, state.EarlyData)
				}
			})
		}
	}
	t.Run("A31/OpenSSL, with a session that invites", func(t *testing.T) {
		openssl, err := exec.LookPath("openssl")
		if err != nil {
			t.Skip("no openssl on this machine")
		}
		alice := w.ca.Client("alice")
		cert, key := alice.WriteFiles(w.dir)
		session, data := filepath.Join(w.dir, "session.pem"), filepath.Join(w.dir, "early")
		w.file("early", []byte(early))
		client := func(args ...string) string {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, openssl, append([]string{"s_client", "-connect", w.addr("public"), "-servername", "b.test", "-tls1_3",
				"-cert", cert, "-key", key, "-ign_eof"}, args...)...)
			cmd.Stdin = strings.NewReader("GET /late HTTP/1.1\r\nHost: b.test\r\nConnection: close\r\n\r\n")
			out, _ := cmd.CombinedOutput()
			return string(out)
		}
		if out := client("-sess_out", session); !strings.Contains(out, "HTTP/1.1 200") {
			t.Fatalf("no session:\n%s", out)
		}
		if out := client("-sess_in", session); !strings.Contains(out, "Reused, TLSv1.3") || !strings.Contains(out, "HTTP/1.1 200") {
			t.Fatalf("the session is not resumed:\n%s", out)
		}
		// As OpenSSL keeps sessions, max_early_data is the field [15].
		block, _ := pem.Decode(must(os.ReadFile(session))(t))
		var fields []asn1.RawValue
		must(asn1.Unmarshal(block.Bytes, &fields))(t)
		at := slices.IndexFunc(fields, func(f asn1.RawValue) bool { return f.Class == asn1.ClassContextSpecific && f.Tag >= 15 })
		if at < 0 {
			at = len(fields)
		} else if fields[at].Tag == 15 {
			t.Errorf("the session invites: % x", fields[at].FullBytes)
			fields = slices.Delete(fields, at, at+1)
		}
		fields = slices.Insert(fields, at, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 15, IsCompound: true, Bytes: []byte{2, 2, 0x40, 0}})
		w.file("session.pem", testpki.PEM(block.Type, must(asn1.Marshal(fields))(t)))
		out := client("-sess_in", session, "-early_data", data)
		if !strings.Contains(out, "alert number 110") || strings.Contains(out, "HTTP/1.1") {
			t.Errorf("%s", out)
		}
		if _, saw := rec.state("early"); saw {
			t.Error("early data reached the target")
		}
	})
}

// TestPreambles: before TLS there is nothing. Whoever begins as in a protocol that changes to TLS on demand is let go, at
// once or by the deadline, and what was sent beside the handshake in clear is never part of the conversation.
func TestPreambles(t *testing.T) {
	w, hasty := newWorld(t), newWorld(t)
	rec := keepAll(t)
	w.start(patient, rec.addr)
	hasty.start(kindsConfig, rec.addr)
	greeting := string(records(hello{sni: []byte("a.test"), versions: []uint16{tls.VersionTLS13, tls.VersionTLS12}, alpn: []string{"http/1.1"}}.message(), 16<<10))
	if a := w.call("public", w.client("a.test", nil), "a.test", "/"); a.status != 200 {
		t.Fatalf("%d %v", a.status, a.err)
	}
	reaches := func(t *testing.T) {
		t.Helper()
		if conns, _ := rec.state(""); conns != 1 { // of that request
			t.Errorf("%d connections to targets", conns)
		}
	}
	for _, p := range []struct{ name, says string }{
		{"SMTP", "EHLO x.test\r\nSTARTTLS\r\nRCPT TO:<injected>\r\n"},
		{"IMAP", "a STARTTLS\r\na INJECTED\r\n"},
		{"LDAP", "\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037"},
		{"PostgreSQL", "\x00\x00\x00\x08\x04\xd2\x16\x2f"},
		{"MySQL", "\x20\x00\x00\x01\x85\xae\x03\x00\x00\x00\x00\x01\x08\x00\x00\x00"},
		{"HTTP upgrade", "OPTIONS * HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: TLS/1.0\r\n\r\n"},
		{"HTTP CONNECT", "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n"},
		{"a PROXY header", "PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"},
		{"SOCKS", "\x05\x01\x00"},
		{"one byte", "\n"},
	} {
		for _, listener := range []string{"public", "secure", "through", "announced", "announced, behind a header"} {
			if p.name == "a PROXY header" && listener == "announced" {
				continue // what belongs there
			}
			t.Run("A40/"+listener+"/"+p.name, func(t *testing.T) {
				if listener == "through" {
					t.Parallel() // its records come when the client had a second to read why
				}
				listener, header := strings.CutSuffix(listener, ", behind a header")
				says, refused := p.says, []string{"not_tls", "plain_http_on_tls", "handshake_failed", "hello_malformed"}
				if header {
					says = "PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + says
				} else if listener == "announced" {
					refused = []string{"proxy_header_invalid"}
				}
				c := must(dialFrom(w.addr(listener)))(t)
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				must(io.WriteString(c, says+greeting))(t)
				back, err := io.ReadAll(c)
				if errors.Is(err, os.ErrDeadlineExceeded) || len(back) > 0 && back[0] == 22 {
					t.Errorf("% x %v, expected the end", back, err)
				}
				var r map[string]any
				if header {
					r = w.find(t, "client=127.0.0.1:1", "listener=announced")
				} else {
					r = w.find(t, "client="+c.LocalAddr().String(), "listener="+listener)
				}
				if !slices.Contains(refused, fmt.Sprint(r["reason"])) {
					t.Errorf("record: %v", r)
				}
				reaches(t)
			})
		}
	}
	for _, listener := range []string{"public", "secure", "through", "announced"} {
		for name, says := range map[string]string{"nothing": "", "half a record": greeting[:3], "half a hello": greeting[:40]} {
			t.Run("A40/"+listener+"/deadline/"+name, func(t *testing.T) {
				t.Parallel()
				c := must(dialFrom(hasty.addr(listener)))(t)
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(30 * time.Second))
				must(io.WriteString(c, says))(t)
				if back, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) || len(back) > 7 {
					t.Errorf("% x %v, expected the end", back, err)
				}
				r := hasty.find(t, "client="+c.LocalAddr().String(), "listener="+listener)
				want := []string{"hello_timeout", "handshake_timeout"}
				if listener == "announced" {
					want = []string{"proxy_header_timeout", "proxy_header_invalid"}
				}
				if !slices.Contains(want, fmt.Sprint(r["reason"])) {
					t.Errorf("record: %v", r)
				}
			})
		}
	}
	for _, v := range tlsVersions {
		for _, listener := range []string{"public", "secure"} {
			for name, more := range map[string]string{"a line": "GET /injected HTTP/1.1\r\nHost: a.test\r\n\r\n", "a record": "\x17\x03\x03\x00\x0bGET /inject", "an empty record": "\x17\x03\x03\x00\x00"} {
				t.Run("A40/"+v.name+"/"+listener+"/beside the hello/"+name, func(t *testing.T) {
					a := w.call(listener, pin(w.client("a.test", nil), v.id), "a.test", "/mine", func(c net.Conn) net.Conn { return &appended{c, more} })
					if a.status != 0 {
						t.Errorf("%d %q", a.status, a.body)
					}
					if r := w.ended(t, a); r["reason"] == "completed" {
						t.Errorf("record: %v", r)
					}
					reaches(t)
				})
			}
		}
	}
	t.Run("A40/plain", func(t *testing.T) {
		c, r := w.connect(t, "plain")
		if got := once(t, c, r, "STARTTLS\r\n"+greeting); got.StatusCode != 400 {
			t.Errorf("%d", got.StatusCode)
		}
		reaches(t)
	})
}

// echConfigs is a list of one ECHConfig, as a client would have found it in the DNS (RFC 9849 section 4), whose key nobody
// has.
func echConfigs(t testing.TB, outer string) []byte {
	key := must(ecdh.X25519().GenerateKey(rand.Reader))(t)
	body := append([]byte{7, 0, 0x20}, vector(2, key.PublicKey().Bytes())...)
	body = append(body, vector(2, []byte{0, 1, 0, 1})...)
	body = append(body, 0)
	body = append(body, vector(1, []byte(outer))...)
	body = append(body, 0, 0)
	return vector(2, append([]byte{0xfe, 0x0d}, vector(2, body)...))
}

// TestEncryptedHello: a name that is hidden from us has no part in any decision. The one in clear decides, as for everybody.
func TestEncryptedHello(t *testing.T) {
	w, api, _, clients := hostsWorld(t)
	for _, c := range []struct{ listener, outer, inner, cert, kind, host, reason string }{
		{"public", "a.test", "b.test", "", "handshake", "a.test", "completed"},
		{"public", "a.test", "b.test", "A", "handshake", "a.test", "completed"},
		{"public", "b.test", "a.test", "", "handshake", "b.test", "client_cert_missing"},
		{"public", "c.test", "b.test", "", "handshake", "c.test", "client_cert_missing"},
		{"public", "x.w.test", "a2.w.test", "", "handshake", "*.w.test", "client_cert_missing"},
		{"public", "unknown.test", "a.test", "", "handshake", "", "sni_unknown"},
		{"fallback", "b.test", "a.test", "", "handshake", "b.test", "client_cert_missing"},
		{"through", "p.test", "x.p.test", "", "tunnel", "p.test", "tunnel_closed"},
		{"through", "a.test", "p.test", "", "handshake", "", "sni_unknown"},
	} {
		t.Run("A47/"+c.listener+"/"+c.outer+" hides "+c.inner+c.cert, func(t *testing.T) {
			before := api.seen()
			a := w.call(c.listener, w.client(c.inner, clients[c.cert], func(conf *tls.Config) {
				conf.MinVersion, conf.EncryptedClientHelloConfigList = tls.VersionTLS13, echConfigs(t, c.outer)
			}), c.inner, "/")
			var rejected *tls.ECHRejectionError
			if errors.As(a.err, &rejected) && rejected.RetryConfigList != nil || a.err == nil || c.reason == "completed" && rejected == nil {
				t.Errorf("%v, expected that ECH is refused, and no other key", a.err)
			}
			r := w.find(t, "client="+a.client, "kind="+c.kind)
			host, _ := r["host"].(string)
			if r["reason"] != c.reason || r["sni"] != c.outer || host != c.host {
				t.Errorf("record: %v", r)
			}
			if strings.Contains(w.log.String(), `"sni":"`+c.inner+`","client":"`+a.client) || api.seen() != before {
				t.Errorf("the hidden name counted")
			}
		})
	}
}

// TestNoPathIsExempt: nothing that is usual for a path to mean leads around what its route asks for.
func TestNoPathIsExempt(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.start(`
ops: {listen: 127.0.0.1:0}
trust_stores:
  clients: {ca_bundle: {file: clients.pem}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - names: [a.test]
        certificate: &c {cert: server.pem, key: server.key}
        client_auth: {mode: request, trust_store: clients}
        routes: [{client_auth: {mode: require}, upstream: api}]
      - names: [c.test]
        certificate: *c
        client_auth: {mode: require, trust_store: clients, on_failure: page}
        routes: [{upstream: api}]
      - names: [d.test]
        certificate: *c
        client_auth: {mode: request, trust_store: clients}
        routes: [{match: {path: /.well-known/acme-challenge/*}, allow: client.present, upstream: api}, {client_auth: {mode: require}, upstream: api}]
      - names: [b.test]
        certificate: *c
        client_auth: {mode: require, trust_store: clients}
        routes: [{upstream: api}]
upstreams:
  api: {targets: ["http://BACKEND"]}
`, b.addr)
	paths := []string{"/.well-known/acme-challenge/unknown-token", "/.well-known/acme-challenge/", "/.well-known/acme-challenge/..;/admin",
		"/.well-known/acme-challenge/../../admin", "/.well-known/acme-challenge/%2e%2e/%2e%2e/admin", "/.well-known/acme-challenge//admin",
		"/.well-known/pki-validation/fileauth.txt", "/.well-known/security.txt", "/.well-known/openid-configuration", "/.well-known/countersign/x",
		"/healthz", "/health", "/livez", "/readyz", "/ready", "/metrics", "/ping", "/status", "/server-status", "/debug/pprof/", "/favicon.ico", "/robots.txt",
		"/login", "/logout", "/oauth2/callback", "/static/app.js", "/"}
	conns := map[string]*keep{}
	for _, host := range []string{"a.test", "c.test", "d.test"} {
		for _, path := range paths {
			for _, method := range []string{"GET", "HEAD", "OPTIONS", "POST"} {
				t.Run("A36/"+host+"/"+method+" "+path, func(t *testing.T) {
					k := conns[host]
					if k == nil {
						k = w.keep(t, "public", w.client(host, nil))
					}
					delete(conns, host)
					must(fmt.Fprintf(k, "%s %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\nUser-Agent: Mozilla/5.0 (compatible; Let's Encrypt validation server)\r\n\r\n", method, path, host))(t)
					got, err := readReply(k.r, method)
					if err != nil || got.StatusCode != 403 && got.StatusCode != 400 && (got.StatusCode != 404 || host == "c.test") {
						t.Errorf("%v %v, expected 403 or 400", got, err)
					}
					if err == nil && !got.Close {
						conns[host] = k
					}
				})
			}
		}
	}
	for _, path := range paths[:4] {
		t.Run("A36/b.test/"+path, func(t *testing.T) {
			a := w.call("public", w.client("b.test", nil), "b.test", path)
			if r := w.ended(t, a); a.status != 0 || r["reason"] != "client_cert_missing" {
				t.Errorf("%d, record %v", a.status, r)
			}
		})
	}
	if n := b.seen(); n != 0 {
		t.Errorf("A36: %d requests were forwarded", n)
	}
	for _, host := range []string{"a.test", "b.test", "c.test", "d.test"} {
		if a := w.call("public", w.client(host, w.ca.Client("alice")), host, paths[0]); a.status != 200 {
			t.Errorf("%s with a certificate: %d %v", host, a.status, a.err)
		}
	}
}

// TestPathsOfHTTP2: what :path names is a path below the host that was asked for, and nothing that rules would not see.
func TestPathsOfHTTP2(t *testing.T) {
	g := newMuxRig(t)
	for _, path := range []string{"admin", "https://b.test/admin", "http://a.test/admin", "*", "", "//b.test@a.test/admin#", "?/admin", "\\admin"} {
		t.Run(fmt.Sprintf("A28/%q", path), func(t *testing.T) {
			g.b.reset()
			c := g.take(t, "tls")
			defer c.Close()
			c.send(t, 1, []frame{{kind: "HEADERS", fields: []string{":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", path}, end: true}}, nil)
			if a := c.await(t, 1); a.status != "400" && a.code == "" && c.goAway == "" {
				t.Errorf("%+v, expected 400 or a reset", a)
			}
			if got := g.b.asked(); len(got) != 0 {
				t.Errorf("the target was asked %q", got)
			}
		})
	}
}

// TestListSourceAway: while the source of a list is away, also for a program that starts meanwhile, the last good one on
// disk counts, and when it is over what the policy for old lists says.
func TestListSourceAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := echo(t, "api", nil)
	p := newPress(t, freeAddr(t)) // where nobody else is given the port while it is away
	alice, bob := w.ca.Client("alice"), w.ca.Client("bob")
	var text strings.Builder
	text.WriteString("ops: {listen: 127.0.0.1:0}\nstate: kept\noutbound: {allow: [127.0.0.0/8]}\nupstreams: {api: {targets: [\"http://BACKEND\"]}}\ntrust_stores:\n")
	hosts := "listeners:\n  public:\n    listen: 127.0.0.1:0\n    protocol: https\n    hosts:\n"
	policies := []struct{ host, stale, then, revoked string }{
		{"a.test", "fail_closed", "crl_stale", "client_cert_revoked|crl_stale"},
		{"b.test", "grace, grace: 1h", "200", "client_cert_revoked"},
		{"c.test", "grace, grace: 1s", "crl_stale", "client_cert_revoked|crl_stale"},
		{"d.test", "ignore", "200", "client_cert_revoked"},
	}
	for i, c := range policies {
		fmt.Fprintf(&text, "  s%d: {ca_bundle: {file: clients.pem}, revocation: {crls: [{url: '%s/ca.crl'}], stale: {policy: %s}}}\n", i, p.url, c.stale)
		hosts += fmt.Sprintf("      - {names: [%s], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: s%d}, routes: [{upstream: api}]}\n", c.host, i)
	}
	conf := text.String() + hosts
	// check says false if a list that is to be good until due was not any more.
	check := func(name string, over bool, due time.Time) bool {
		for _, c := range policies {
			want, revoked := "200", "client_cert_revoked"
			if over {
				want, revoked = c.then, c.revoked
			}
			got, his := w.fares(t, "public", c.host, w.client(c.host, alice)), w.fares(t, "public", c.host, w.client(c.host, bob))
			if !over && time.Now().After(due) {
				return false
			}
			t.Run("H19/"+name+"/"+c.stale, func(t *testing.T) {
				if got != want {
					t.Errorf("alice: %s, expected %s", got, want)
				}
				if !strings.Contains("|"+revoked+"|", "|"+his+"|") {
					t.Errorf("bob: %s, expected %s", his, revoked)
				}
			})
		}
		return true
	}
	// A machine that is too slow for the span gets a longer one.
	var due time.Time
	for span := 8 * time.Second; ; span *= 3 {
		due = time.Now().Add(span).Truncate(time.Second)
		p.put("/ca.crl", gives(w.ca.CRL(bob, testpki.NextUpdate(due))))
		w.start(conf, b.addr)
		if check("there", false, due) {
			p.server.Close()
			w.stop()
			w.start(conf, b.addr)
			if check("away, started again", false, due) {
				break
			}
			p = newPress(t, p.host)
		}
		w.stop()
		if span > time.Minute {
			t.Fatal("eight requests take over a minute")
		}
	}
	time.Sleep(time.Until(due.Add(2500 * time.Millisecond)))
	check("away, the list is over", true, due)
	w.stop()
	w.start(conf, b.addr)
	check("away, the list is over, started again", true, due)
	t.Run("H19/told", func(t *testing.T) {
		await(t, 20*time.Second, "the conditions", func() bool {
			return len(w.condition("list_fetch_failed")) == 1 && len(w.condition("list_stale")) > 0
		})
	})
	again := newPress(t, p.host)
	again.put("/ca.crl", gives(w.ca.CRL(bob, testpki.Number(9))))
	w.stop()
	w.start(conf, b.addr)
	check("there again", false, time.Now().Add(time.Hour))
}

// TestReady: readiness is told when the first configuration is in force as a whole, trust and listeners, and not before,
// and from then on whoever is revoked is refused.
func TestReady(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := echo(t, "api", nil)
	p := newPress(t, "127.0.0.1:0")
	bob := w.ca.Client("bob")
	asked, release := make(chan struct{}), make(chan struct{})
	p.put("/ca.crl", func(rw http.ResponseWriter, _ *http.Request) {
		close(asked)
		<-release
		_, _ = rw.Write(w.ca.CRL(bob))
	})
	opsAddr, public := freeAddr(t), freeAddr(t)
	conf := strings.NewReplacer("127.0.0.1:0\nout", opsAddr+"\nout", "URL", p.url, "listen: 127.0.0.1:0", "listen: "+public).Replace(strings.Replace(byURL, "ops: {listen: 127.0.0.1:0}", "ops: {listen: "+opsAddr+"}", 1))
	binding, bound := make(chan struct{}), make(chan struct{})
	listen := func(address string) (net.Listener, error) {
		if address == public {
			close(binding)
			<-bound
		}
		return net.Listen("tcp", address)
	}
	started := make(chan struct{})
	go func() {
		defer close(started)
		w.startWith(conf, b.addr, func(o *daemon.Options) { o.Listen = listen })
	}()
	ready := func(patience time.Duration) string {
		c := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Get("http://" + opsAddr + "/readyz")
		if err != nil {
			return "nothing"
		}
		defer resp.Body.Close()
		return resp.Status
	}
	wait := func(ch chan struct{}, what string) {
		t.Helper()
		select {
		case <-ch:
		case <-time.After(30 * time.Second):
			t.Fatalf("waited in vain for %s", what)
		}
	}
	wait(asked, "the fetch of the list")
	t.Run("H25/trust is being loaded", func(t *testing.T) {
		if got := ready(300 * time.Millisecond); strings.HasPrefix(got, "200") {
			t.Errorf("ready: %s", got)
		}
		if c, err := net.Dial("tcp", public); err == nil {
			c.Close()
			t.Error("the listener is there")
		}
	})
	close(release)
	wait(binding, "the listener")
	t.Run("H25/listeners are being opened", func(t *testing.T) {
		if got := ready(300 * time.Millisecond); strings.HasPrefix(got, "200") {
			t.Errorf("ready: %s", got)
		}
	})
	close(bound)
	wait(started, "the start")
	t.Run("H25/ready", func(t *testing.T) {
		if got := ready(10 * time.Second); got != "200 OK" {
			t.Errorf("ready: %s", got)
		}
		if got := w.fares(t, "public", "a.test", w.client("a.test", bob)); got != "client_cert_revoked" {
			t.Errorf("bob: %s", got)
		}
		if got := w.fares(t, "public", "a.test", w.client("a.test", w.ca.Client("alice"))); got != "200" {
			t.Errorf("alice: %s", got)
		}
	})
}

// TestTargetsTrustOnlyUs: a target that believes what we say of clients can ask for our certificate, so that nobody else
// can say it; and that certificate can be replaced under load.
func TestTargetsTrustOnlyUs(t *testing.T) {
	w := newWorld(t)
	alice := w.ca.Client("alice")
	put := func(name string) (cert, key []byte) {
		c := w.servers.Client(name)
		return c.PEM(), c.KeyPEM()
	}
	cert, key := put("edge")
	w.file("edge.pem", cert)
	w.file("edge.key", key)
	b := echo(t, "api", &tls.Config{Certificates: []tls.Certificate{w.server.TLS()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.servers.Pool()})
	b.ErrorLog = log.New(io.Discard, "", 0)
	const conf = `
trust_stores:
  clients: {ca_bundle: {file: clients.pem}}
  internal: {ca_bundle: {file: servers.pem}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts: [{names: [a.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, routes: [{upstream: api}]}]
upstreams:
  api:
    targets: ["https://BACKEND"]
    tls: {server_name: api.internal, trust_store: internal, client_certificates: [{cert: edge.pem, key: edge.key}]}
`
	w.start(conf, b.addr)
	for name, c := range map[string]*testpki.Cert{"without a certificate": nil, "a client": alice, "a server": w.servers.Server("evil.test")} {
		t.Run("D17/"+name+" of the target itself", func(t *testing.T) {
			conf := w.client("api.internal", c)
			d := tls.Dialer{Config: conf}
			conn, err := d.Dial("tcp", b.addr)
			if err == nil {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
				_, _, err = roundTrip(conn, bufio.NewReader(conn), "GET / HTTP/1.1\r\nHost: api.internal\r\nClient-Cert: "+clientCert(alice)+"\r\n\r\n")
			}
			if err == nil || b.seen() != 0 {
				t.Errorf("%v, %d requests served", err, b.seen())
			}
		})
	}
	t.Run("D17/through us, while our certificate is replaced", func(t *testing.T) {
		var served, renewed atomic.Int64
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 3 {
			k := w.keep(t, "public", w.client("a.test", alice))
			_ = k.SetDeadline(time.Now().Add(2 * time.Minute))
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					status, body, err := k.get("a.test")
					switch {
					case status != 200 || err != nil:
						t.Errorf("%d %q %v", status, body, err)
						return
					case strings.Contains(body, "peer=renewed"):
						renewed.Add(1)
					case !strings.Contains(body, "peer=edge "):
						t.Errorf("%q", body)
						return
					}
					served.Add(1)
				}
			})
		}
		defer wg.Wait()
		defer close(stop)
		await(t, 30*time.Second, "requests", func() bool { return served.Load() > 20 })
		cert, key := put("renewed")
		w.file("edge.pem", cert)
		if err := w.main.Reload(); err == nil {
			t.Error("a certificate and the key of another one were loaded")
		}
		before := served.Load()
		await(t, 30*time.Second, "requests", func() bool { return served.Load() > before+20 })
		if n := renewed.Load(); n != 0 {
			t.Errorf("%d requests with a certificate whose key we do not have", n)
		}
		w.file("edge.key", key)
		if err := w.main.Reload(); err != nil {
			t.Error(err)
		}
		await(t, 30*time.Second, "the new certificate", func() bool { return renewed.Load() > 20 })
	})
}

// TestClockJumps: waits are not measured by the time of day, so that nobody's time is up, and nobody's is longer, when it
// is set; what certificates and lists say about time holds at once.
func TestClockJumps(t *testing.T) {
	start := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC) // without the monotonic reading that would hide the jump
	for name, jump := range map[string]time.Duration{"ten years ahead": 87660 * time.Hour, "an hour ahead": time.Hour, "a year back": -8766 * time.Hour, "to 1970": time.Unix(0, 0).Sub(start)} {
		t.Run("H14/waits/"+name, func(t *testing.T) {
			var clock forward.Clock
			clock.Set(start)
			w := &forward.Watch{Clock: &clock}
			w.Main.Set(&clock, forward.Idle, 10*time.Second)
			now := start.Add(jump)
			clock.Set(now)
			if got := clock.Now(); !got.Equal(now) {
				t.Errorf("the time of day is %v, expected %v", got, now)
			}
			if left, idle := w.Main.IdleLeft(clock.Waited()); !idle || left < 9*time.Second || left > 11*time.Second {
				t.Errorf("%v are left of 10 s", left)
			}
			// From then on time goes on as ever.
			for range 100 {
				now = now.Add(100 * time.Millisecond)
				clock.Set(now)
			}
			if left, _ := w.Main.IdleLeft(clock.Waited()); left < -time.Second || left > time.Second {
				t.Errorf("after 10 s %v are left of 10 s", left)
			}
		})
	}
}
