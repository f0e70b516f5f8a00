package daemon_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/internal/control"
	"countersign/internal/testpki"
)

const withControl = `
control: unix:CONTROL
ops: {listen: 127.0.0.1:0}
trust_stores:
  clients: {ca_bundle: {file: clients.pem}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes: [{upstream: api}]
  other:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: off}
        routes: [{upstream: api}]
  plain:
    listen: 127.0.0.1:0
    protocol: http
    hosts: [{names: [a.test], routes: [{upstream: api}]}]
upstreams:
  api: {targets: ["http://BACKEND"]}
`

// keyLines is what a key log has of one connection, by its client random.
type keyLines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (k *keyLines) Write(p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.b.Write(p)
}

func (k *keyLines) all() (lines []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for line := range strings.Lines(k.b.String()) {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines
}

// TestKeyLog: the secrets of one listener's new connections are handed out while somebody asks for them, and those of
// nobody else, and not before and not after.
func TestKeyLog(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	socket := filepath.Join(t.TempDir(), "control.sock")
	w.start(strings.ReplaceAll(withControl, "CONTROL", socket), b.addr)
	client := control.NewClient("unix:" + socket)

	// visit makes one connection and returns what the client itself has logged of it.
	visit := func(listener string, version uint16, cert *testpki.Cert) []string {
		var own keyLines
		conf := w.client("a.test", cert, func(c *tls.Config) {
			c.KeyLogWriter, c.MinVersion, c.MaxVersion, c.ClientSessionCache = &own, version, version, nil
		})
		if a := w.call(listener, conf, "a.test", "/"); a.status == 0 {
			w.ended(t, a) // and counted
		}
		lines := own.all()
		if len(lines) == 0 {
			t.Fatal("the client has logged nothing")
		}
		return lines
	}
	alice := w.ca.Client("alice")
	early := visit("public", tls.VersionTLS13, alice)

	opened := 0
	open := func(d time.Duration) (got *keyLines, leave func(), done chan error) {
		got, done = &keyLines{}, make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { done <- client.LogKeys(ctx, "public", d, got) }()
		opened++
		w.awaitMetric("countersign_key_logs_total", fmt.Sprint(opened))
		return got, cancel, done
	}
	got, leave, done := open(5 * time.Minute)
	w.awaitMetric("countersign_key_log_open", "1")
	defer leave()
	var want []string
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		want = append(want, visit("public", version, alice)...)
	}
	mallory := testpki.New(t).Client("mallory")
	refused := visit("public", tls.VersionTLS13, mallory) // who is refused is who is looked for
	elsewhere := visit("other", tls.VersionTLS13, nil)
	for end := time.Now().Add(20 * time.Second); len(got.all()) < len(want)+len(refused) && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	has := make(map[string]bool)
	for _, line := range got.all() {
		has[line] = true
	}
	for _, line := range append(want, refused...) {
		if !has[line] {
			t.Errorf("%q of the client is not there", line[:min(len(line), 40)])
		}
	}
	if len(has) != len(want)+len(refused) || len(want) != 5 {
		t.Errorf("%d lines, expected %d and %d of one who was refused", len(has), len(want), len(refused))
	}
	for _, line := range append(early, elsewhere...) {
		if has[line] {
			t.Errorf("%q is of another connection", line[:40])
		}
	}
	t.Run("it is told", func(t *testing.T) {
		s, err := client.Status(t.Context())
		if err != nil || len(s.Conditions) != 1 || s.Conditions[0].Code != "key_log_open" || !strings.Contains(s.Conditions[0].Text, `listener "public"`) {
			t.Fatalf("%+v %v", s, err)
		}
		if got := w.scrape(t)[`countersign_condition{code="key_log_open"}`]; got != "1" {
			t.Errorf("condition %q", got)
		}
		w.record("kind=key_log", "event=opened", "listener=public")
		if text := w.ops.String(); !strings.Contains(text, "level=WARN msg=\"TLS secrets are handed out\" listener=public") {
			t.Error(text)
		}
	})
	t.Run("status", func(t *testing.T) {
		w.awaitMetric(`countersign_requests_total{listener="public",reason="completed"}`, "3")
		s, err := client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Listeners) != 3 || s.Configuration.Hash != w.main.Hash() || s.Configuration.Loaded.IsZero() || s.Started.IsZero() || s.Memory != "calm" || s.Version == "" {
			t.Errorf("%+v", s)
		}
		public := s.Listeners[2]
		if public.Name != "public" || public.Accepted != 3 || public.Refused != 1 || public.Requests != 3 || !public.Terminates || public.Address != w.addr("public") {
			t.Errorf("%+v", public)
		}
		if len(s.Upstreams) != 1 || len(s.Upstreams[0].Targets) != 1 || s.Upstreams[0].Targets[0].State != "ready" || s.Upstreams[0].Targets[0].Address != b.addr {
			t.Errorf("%+v", s.Upstreams)
		}
	})
	t.Run("refused", func(t *testing.T) {
		for listener, text := range map[string]string{"public": "one key log at a time", "nobody": "no listener is named", "plain": "where no TLS ends"} {
			var out keyLines
			if err := client.LogKeys(t.Context(), listener, time.Second, &out); err == nil || !strings.Contains(err.Error(), text) || out.b.Len() > 0 {
				t.Errorf("%s: %v %q", listener, err, out.b.String())
			}
		}
	})
	t.Run("after it", func(t *testing.T) {
		leave()
		<-done
		w.awaitMetric("countersign_key_log_open", "0")
		w.record("kind=key_log", "event=closed", "because=the caller left")
		before := len(got.all())
		visit("public", tls.VersionTLS13, alice)
		if n := len(got.all()); n != before {
			t.Errorf("%d lines more", n-before)
		}
		again, leave, done := open(time.Second)
		defer leave()
		if err := <-done; err != nil {
			t.Error(err)
		}
		visit("public", tls.VersionTLS13, alice)
		if n := len(again.all()); n != 0 {
			t.Errorf("%d lines after its time", n)
		}
		if s := w.scrape(t); s["countersign_key_logs_total"] != "2" || s[`countersign_key_log_lines_total{outcome="sent"}`] != fmt.Sprint(before) {
			t.Errorf("%v %v", s["countersign_key_logs_total"], s[`countersign_key_log_lines_total{outcome="sent"}`])
		}
	})
	t.Run("without control", func(t *testing.T) {
		w.reload(strings.Replace(strings.ReplaceAll(withControl, "CONTROL", socket), "control:", "# control:", 1), b.addr)
		if _, err := client.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "is the program running") {
			t.Errorf("%v", err)
		}
	})
}

// TestKeyLogTickets: who reads a key log of TLS 1.2 and sees the tickets, which pass in clear there, has nothing to resume.
func TestKeyLogTickets(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	socket := filepath.Join(t.TempDir(), "control.sock")
	w.start(strings.ReplaceAll(withControl, "CONTROL", socket), b.addr)
	resumes := func(version uint16, cache tls.ClientSessionCache) bool {
		t.Helper()
		c, err := w.dial("public", w.client("a.test", w.ca.Client("alice"), func(c *tls.Config) {
			c.MinVersion, c.MaxVersion, c.ClientSessionCache = version, version, cache
		}))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if status, _, err := roundTrip(c, bufio.NewReader(c), "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"); status != 200 {
			t.Fatal(status, err)
		}
		return c.ConnectionState().DidResume
	}
	before := make(map[uint16]tls.ClientSessionCache)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		before[version] = tls.NewLRUClientSessionCache(1)
		if resumes(version, before[version]) || !resumes(version, before[version]) {
			t.Fatalf("%s: not resumed before", tls.VersionName(version))
		}
	}
	ctx, leave := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- control.NewClient("unix:"+socket).LogKeys(ctx, "public", 5*time.Minute, &keyLines{}) }()
	w.awaitMetric("countersign_key_log_open", "1")
	fresh := tls.NewLRUClientSessionCache(1)
	if resumes(tls.VersionTLS12, before[tls.VersionTLS12]) {
		t.Error("a session from before was resumed: its secret is in the key log, its ticket in the capture")
	}
	for range 2 {
		if resumes(tls.VersionTLS12, fresh) {
			t.Error("a session was resumed whose secret is in the key log")
		}
	}
	if !resumes(tls.VersionTLS13, before[tls.VersionTLS13]) {
		t.Error("TLS 1.3 has no such trouble, and was not resumed")
	}
	leave()
	<-done
	w.awaitMetric("countersign_key_log_open", "0")
	if resumes(tls.VersionTLS12, fresh) || !resumes(tls.VersionTLS12, fresh) {
		t.Error("not resumed afterwards, or with what was given meanwhile")
	}
}

func TestControlRefused(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.start(strings.Replace(withControl, "control: unix:CONTROL", "", 1), b.addr)
	for value, text := range map[string]string{
		"127.0.0.1:9902":              "is not a Unix socket",
		"unix:control.sock":           "is not the absolute path of a socket",
		"unix:/nonexistent/x/control": "make its folder",
		`""`:                          "control has no value",
	} {
		w.refusedAtLoad(t, strings.ReplaceAll(strings.Replace(withControl, "unix:CONTROL", value, 1), "BACKEND", b.addr), text)
	}
}
