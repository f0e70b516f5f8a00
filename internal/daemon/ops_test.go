package daemon_test

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"countersign/internal/testpki"
)

// scrape returns the series of /metrics, without values.
func (w *world) scrape(t testing.TB) map[string]string {
	t.Helper()
	resp := must(http.Get("http://" + w.addr("ops") + "/metrics"))(t)
	defer resp.Body.Close()
	series := map[string]string{}
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), " "); ok && name != "#" {
			if i := strings.LastIndexByte(s.Text(), ' '); i > 0 {
				name, value = s.Text()[:i], s.Text()[i+1:]
			}
			series[name] = value
		}
	}
	return series
}

func TestOps(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.start(basic, b.addr)
	base := "http://" + w.addr("ops")
	for _, c := range []struct {
		method, path, host string
		status             int
	}{
		{"GET", "/livez", "", 200}, {"GET", "/readyz", "", 200}, {"GET", "/metrics", "", 200}, {"HEAD", "/livez", "", 200},
		{"POST", "/livez", "", 405}, {"POST", "/readyz", "", 405}, {"PUT", "/metrics", "", 405}, {"DELETE", "/metrics", "", 405}, {"OPTIONS", "/metrics", "", 405},
		{"GET", "/", "", 404}, {"GET", "/debug/pprof/", "", 404}, {"GET", "/debug/vars", "", 404}, {"GET", "/config", "", 404},
		{"GET", "/livez/x", "", 404}, {"POST", "/", "", 404}, {"GET", "/", "a.test", 404}, {"GET", "/status", "off.test", 404},
	} {
		t.Run("G01/"+c.method+" "+c.path+" "+c.host, func(t *testing.T) {
			req := must(http.NewRequest(c.method, base+c.path, nil))(t)
			req.Host = c.host
			resp := must(http.DefaultClient.Do(req))(t)
			defer resp.Body.Close()
			body := must(io.ReadAll(resp.Body))(t)
			if resp.StatusCode != c.status {
				t.Errorf("%d %q, expected %d", resp.StatusCode, body, c.status)
			}
			if c.path == "/readyz" && c.status == 200 && string(body) != "ready\nconfiguration "+w.main.Hash()+"\n" {
				t.Errorf("%q", body)
			}
		})
	}
	if b.seen() != 0 {
		t.Error("A25/the backend was reached through ops")
	}
	t.Run("CONNECT and absolute form reach nothing", func(t *testing.T) {
		for _, request := range []string{"CONNECT " + b.addr + " HTTP/1.1\r\nHost: x\r\n\r\n", "GET http://" + b.addr + "/ HTTP/1.1\r\nHost: x\r\n\r\n"} {
			c := must(net.Dial("tcp", w.addr("ops")))(t)
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			if status, _, err := roundTrip(c, bufio.NewReader(c), request); status < 400 || b.seen() != 0 {
				t.Errorf("%q: %d %v", request, status, err)
			}
			c.Close()
		}
	})
	t.Run("metrics", func(t *testing.T) {
		if a := w.call("public", w.client("a.test", w.ca.Client("alice")), "a.test", "/"); a.status != 200 {
			t.Fatal(a.err)
		}
		a := w.call("public", w.client("a.test", nil), "a.test", "/")
		w.ended(t, a)
		w.awaitMetric(`countersign_requests_total{listener="public",reason="completed"}`, "1") // counted behind the answer
		w.awaitMetric(`countersign_request_duration_seconds_count{listener="public"}`, "1")
		w.awaitMetric(`countersign_upstream_idle_connections{target="`+b.addr+`",upstream="api"}`, "1")
		got := w.scrape(t)
		for series, value := range map[string]string{
			`countersign_handshakes_total{listener="public",reason="completed"}`:            "1",
			`countersign_handshakes_total{listener="public",reason="client_cert_missing"}`:  "1",
			`countersign_handshakes_total{listener="public",reason="client_cert_revoked"}`:  "0",
			`countersign_requests_total{listener="public",reason="completed"}`:              "1",
			`countersign_request_duration_seconds_count{listener="public"}`:                 "1",
			`countersign_connections{listener="public"}`:                                    "",
			`countersign_bytes_total{direction="in",listener="public"}`:                     "",
			`countersign_bytes_total{direction="out",listener="public"}`:                    "",
			`countersign_reloads_total{result="accepted"}`:                                  "1",
			`countersign_reloads_total{result="refused"}`:                                   "0",
			`countersign_last_reload_success`:                                               "1",
			`countersign_log_dropped_total{output="stdout"}`:                                "0",
			`countersign_panics_total`:                                                      "0",
			`countersign_upstream_connections{target="` + b.addr + `",upstream="api"}`:      "1",
			`countersign_upstream_idle_connections{target="` + b.addr + `",upstream="api"}`: "1",
			`process_open_fds`: "", `go_goroutines`: "",
		} {
			if v, ok := got[series]; !ok || value != "" && v != value {
				t.Errorf("%s is %q, expected %q", series, v, value)
			}
		}
		w.file("countersign.yaml", []byte("listeners: {}\n"))
		if err := w.main.Reload(); err == nil {
			t.Fatal("an empty configuration was accepted")
		}
		if got := w.scrape(t); got[`countersign_reloads_total{result="refused"}`] != "1" || got[`countersign_last_reload_success`] != "0" {
			t.Errorf("after a refused reload: %v %v", got[`countersign_reloads_total{result="refused"}`], got[`countersign_last_reload_success`])
		}
	})
}

// TestMetricCardinality: what strangers choose is no label.
func TestMetricCardinality(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.start(basic, b.addr)
	if a := w.call("public", w.client("off.test", nil), "off.test", "/"); a.status != 200 {
		t.Fatal(a.err)
	}
	alice := w.client("a.test", w.ca.Client("alice"))
	if a := w.call("public", alice, "a.test", "/"); a.status != 200 {
		t.Fatal(a.err)
	}
	w.awaitMetric(`countersign_connection_ends_total{listener="public",reason="client_closed"}`, "2")
	names := func() map[string]bool {
		out := map[string]bool{}
		for s := range w.scrape(t) {
			if strings.HasPrefix(s, "countersign_") {
				out[s] = true
			}
		}
		return out
	}
	before := names()
	random := func() string {
		var b [6]byte
		_, _ = rand.Read(b[:])
		return hex.EncodeToString(b[:])
	}
	live := w.keep(t, "public", w.client("off.test", nil))
	_ = live.SetDeadline(time.Now().Add(2 * time.Minute)) // over all that follows
	var last string
	for i := range 500 {
		name := random() + ".test"
		switch i % 4 {
		case 0:
			back, client := w.rawCall(t, "public", records(hello{sni: []byte(name)}.message(), 16<<10))
			if last = client; plainAlert(back) != alertUnrecognized {
				t.Fatalf("% x", back)
			}
		case 1:
			w.call("public", w.client("a.test", w.ca.Client(name, testpki.Expired())), "a.test", "/")
		default:
			request := "GET /" + random() + " HTTP/1.1\r\nHost: " + name + "\r\nUser-Agent: " + random() + "\r\n\r\n"
			if status, _, err := roundTrip(live, live.r, request); status != 421 {
				t.Fatal(status, err)
			}
		}
	}
	w.find(t, "client="+last)
	after := names()
	for s := range after {
		if !before[s] {
			t.Errorf("D19/a new series: %s", s)
		}
	}
	if len(after) != len(before) || len(before) == 0 {
		t.Errorf("D19/%d series, then %d", len(before), len(after))
	}
}

// TestHostileLogLines: whatever strangers send, one event is one line of valid, bounded, printable JSON.
func TestHostileLogLines(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.start(basic, b.addr)
	const inject = "\n{\"level\":\"admin\"}\x1b[31m\x00\u202e\xff\"\\"
	long := strings.Repeat(inject, 900) // 20 KB
	hostile := map[string]string{"short": inject, "long": long, "high bytes": strings.Repeat("\xff", 8000), "quotes": strings.Repeat(`"`, 8000), "controls": strings.Repeat("\x01", 8000)}
	for _, text := range hostile {
		h := hello{sni: []byte(text), versions: []uint16{tls.VersionTLS13}}
		_, client := w.rawCall(t, "public", records(h.message(), 16<<10))
		w.find(t, "client="+client, "kind=handshake")
		h.sni, h.alpn = []byte("a.test"), []string{text[:min(len(text), 255)], "x"}
		_, client = w.rawCall(t, "public", records(h.message(), 16<<10))
		w.find(t, "client="+client, "reason=no_common_protocol")

		valid := func(limit int) string { return strings.ToValidUTF8(text[:min(len(text), limit)], "\u00e9") }
		subject := pkix.Name{CommonName: valid(1 << 20), Organization: []string{valid(3000)}}
		stranger := testpki.New(t, testpki.Subject(pkix.Name{CommonName: valid(5000)}))
		for _, c := range []*testpki.Cert{w.ca.Client("x", testpki.Subject(subject)), w.ca.Client("x", testpki.Subject(subject), testpki.Expired()),
			stranger.Client("x", testpki.Subject(subject)), w.ca.Client("x", testpki.DNS(strings.ReplaceAll(strings.ToValidUTF8(text, ""), "\u202e", "")))} {
			if c.Cert == nil {
				continue // crypto/x509 does not read it, so it would not be logged
			}
			for _, path := range []string{"/", "/" + text[:min(len(text), 6000)], "/" + strings.Repeat("\xff", 3000), "/" + strings.Repeat("\"", 3000)} {
				raw := must(dialFrom(w.addr("public")))(t)
				_ = raw.SetDeadline(time.Now().Add(5 * time.Second))
				conn := tls.Client(raw, w.client("a.test", c))
				if conn.Handshake() == nil {
					_, _, _ = roundTrip(conn, bufio.NewReader(conn), "GET "+path+" HTTP/1.1\r\nHost: a.test\r\nUser-Agent: "+text[:min(len(text), 3000)]+"\r\n\r\n")
				}
				w.find(t, "client="+raw.LocalAddr().String(), "kind=handshake")
				raw.Close()
			}
		}
		live := w.keep(t, "public", w.client("off.test", nil))
		_, _, _ = live.get(text[:min(len(text), 6000)])
		for _, request := range []string{
			text[:min(len(text), 4000)] + " / HTTP/1.1\r\nHost: off.test\r\n\r\n",
			"GET /" + strings.Repeat("\xff", 5000) + " HTTP/1.1\r\nHost: " + strings.Repeat("\xff", 5000) + "\r\n\r\n",
			"GET /%ff HTTP/1.1\r\nHost: off.test\r\nTransfer-Encoding: " + text[:min(len(text), 4000)] + "\r\n\r\n",
		} {
			c := w.keep(t, "public", w.client("off.test", nil))
			_, _, _ = roundTrip(c, c.r, request)
		}
	}
	time.Sleep(50 * time.Millisecond)
	longest, lines := 0, 0
	for line := range strings.Lines(w.log.String()) {
		lines++
		longest = max(longest, len(line))
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Errorf("F13/not one JSON value: %v\n%.300q", err, line)
		}
		if m["level"] != nil || m["kind"] == nil {
			t.Errorf("F13/injected: %.300q", line)
		}
		for i := range len(line) - 1 {
			if line[i] < 0x20 || line[i] >= 0x7f {
				t.Errorf("F13/byte %#x at %d: %.300q", line[i], i, line)
				break
			}
		}
		if len(line) > 4<<10 {
			t.Errorf("F13/a line of %d bytes: %.200q ... %q", len(line), line, line[len(line)-300:])
		}
	}
	t.Logf("%d lines, the longest has %d bytes", lines, longest)
	if lines < 50 {
		t.Errorf("only %d lines", lines)
	}
	if text := w.ops.String(); strings.ContainsFunc(text, func(r rune) bool { return r == 0x1b || r == 0 || r == utf8.RuneError }) {
		t.Error("F13/the operator's log has control characters")
	}
}
