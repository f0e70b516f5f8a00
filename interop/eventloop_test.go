package interop_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// speak is a standard input that says one part after the other, each when before has passed, and then stays open.
func speak(t *testing.T, before time.Duration, parts ...string) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, p := range parts {
			time.Sleep(before)
			if _, err := w.WriteString(p); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { r.Close(); <-done; w.Close() })
	return r
}

// TestEventLoop: our record layer of TLS 1.3 with those that others wrote, under each cipher suite, with new keys now and then,
// and pauses that are long enough for the connection to wait in the loop.
func TestEventLoop(t *testing.T) {
	need(t, "openssl", "gnutls-cli", "curl")
	p, backend := newPKI(t), newEcho(t)
	b := serve(t, p, asked+"experimental: {event_loop: on}\n", map[string]string{"api": backend.addr})
	const pause = 1700 * time.Millisecond // connections doze after a second
	get := func(n int) string { return fmt.Sprintf("GET /%d HTTP/1.1\r\nHost: a.test\r\n\r\n", n) }
	last := "GET /last HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"
	answered := func(t *testing.T, mark int, r result, n int) {
		t.Helper()
		if got := strings.Count(r.out, "HTTP/1.1 200 OK"); r.code != 0 || got != n {
			t.Errorf("%d answers, expected %d: %s", got, n, r)
		}
		b.record(t, mark, "kind=request", "reason=completed", "path=/last", "client_subject=CN=alice")
	}
	for _, suite := range []string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"} {
		t.Run("openssl/"+suite, func(t *testing.T) {
			t.Parallel()
			mark := b.mark()
			// k has the client go on with new keys, K has the server too.
			r := run(t, speak(t, pause, get(1), get(2), "k\n", get(3), "K\n", get(4), last), "openssl", "s_client", "-connect", b.addr["public"], "-servername", "a.test",
				"-CAfile", p.internal.file, "-verify_return_error", "-tls1_3", "-ciphersuites", suite, "-cert", p.alice.file, "-cert_chain", p.alice.file, "-key", p.alice.keyFile, "-msg")
			answered(t, mark, r, 5)
			if !strings.Contains(r.out, "Cipher is "+suite) || strings.Count(r.out, ">>> TLS 1.3, Handshake [length 0005], KeyUpdate") != 2 || strings.Count(r.out, "<<< TLS 1.3, Handshake [length 0005], KeyUpdate") != 1 {
				t.Errorf("not the keys that were wanted: %s", r)
			}
		})
	}
	for name, priority := range map[string]string{"AES-128-GCM": "+AES-128-GCM", "AES-256-GCM": "+AES-256-GCM", "CHACHA20": "+CHACHA20-POLY1305"} {
		t.Run("gnutls/"+name, func(t *testing.T) {
			t.Parallel()
			mark := b.mark()
			r := run(t, speak(t, pause, get(1), "^rekey^\n", get(2), last), "gnutls-cli", "--inline-commands", "--x509cafile", p.internal.file, "--sni-hostname", "a.test", "--verify-hostname", "a.test",
				"--port", portOf(b.addr["public"]), "--priority", "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:"+priority, "--x509certfile", p.alice.file, "--x509keyfile", p.alice.keyFile, "127.0.0.1")
			answered(t, mark, r, 3)
		})
	}
	for _, version := range []string{"--http1.1", "--http2"} {
		t.Run("curl/"+version, func(t *testing.T) {
			big := write(t, t.TempDir(), "big", []byte(strings.Repeat("0123456789abcdef", 1<<18)))
			r := b.curl(t, "public", p.alice, version, "--tlsv1.3", "-T", big, b.url("public", "a.test", "/upload"))
			if r.code != 0 || backend.parse(t, r.out).Target != "/upload" {
				t.Errorf("curl: %s", r)
			}
		})
	}
	t.Cleanup(func() { // behind those that are parallel
		resp, err := http.Get("http://" + b.addr["ops"] + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		if !strings.Contains(string(text), `countersign_event_loop_handshakes_total{layer="library"} 0`) || !strings.Contains(string(text), `countersign_event_loop_handshakes_total{layer="own"} 8`) {
			t.Errorf("not all record layers were ours: %s", text)
		}
	})
	for _, c := range callers(p) {
		if c.good() {
			continue
		}
		t.Run("refused/"+c.name, func(t *testing.T) {
			mark, before := b.mark(), backend.touched()
			if r := b.curl(t, "public", c.cert, "--tlsv1.3", b.url("public", "a.test", "/")); r.code != 56 || r.out != "" {
				t.Errorf("want exit status 56; curl: %s", r)
			}
			c.refused(t, b, backend, mark, before, "1.3")
		})
	}
}
