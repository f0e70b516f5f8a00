package main

import (
	"context"
	"crypto/tls"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"countersign/internal/daemon"
	"countersign/internal/diagnose"
	"countersign/internal/testpki"
)

// TestImpactGoesOn damages rows of the journal one after the other: impact judges all others, and says so.
func TestImpactGoesOn(t *testing.T) {
	dir := t.TempDir()
	root, servers := testpki.New(t), testpki.New(t)
	server := servers.Server("a.test")
	conf := filepath.Join(dir, "countersign.yaml")
	for name, data := range map[string][]byte{"clients.pem": root.PEM(), "servers.pem": servers.PEM(), "server.pem": server.PEM(), "server.key": server.KeyPEM(), "countersign.yaml": []byte(`
state: ./kept
trust_stores:
  clients: {ca_bundle: {file: clients.pem}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - {names: [a.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, routes: [{upstream: api, allow: "client.subject != 'CN=carol'"}]}
upstreams:
  api: {targets: ["http://127.0.0.1:9"]}
`)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var records, log buffer
	m, err := daemon.Start(daemon.Options{Config: conf, Records: &records, Log: &log})
	if err != nil {
		t.Fatal(err)
	}
	stop := func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		m.Shutdown(ctx)
	}
	defer stop()
	for _, c := range []*testpki.Cert{root.Client("alice"), root.Client("bob"), root.Client("carol"), testpki.New(t).Client("mallory"), testpki.New(t).Client("mia")} {
		pair := c.TLS() // sent whatever CAs are asked for
		conn, err := tls.Dial("tcp", m.Addr("public").String(), &tls.Config{RootCAs: servers.Pool(), ServerName: "a.test",
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }})
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(conn, "GET /x HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
		_, _ = conn.Read(make([]byte, 4096))
		conn.Close()
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, "kept", "journal.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var n int
		err := db.QueryRow("SELECT (SELECT count(*) FROM clients) + (SELECT count(*) FROM strangers) + (SELECT count(*) FROM verdicts WHERE reason = 'policy_denied')").Scan(&n)
		if err == nil && n == 6 {
			break
		}
		if time.Now().After(end) {
			t.Fatal(n, err, log.String())
		}
	}
	stop()
	for _, c := range []struct {
		damage                 string
		asked, refused, unread int
		status                 int
	}{
		{"SELECT 1", 6, 3, 0, exitFailure},
		{"UPDATE clients SET leaf = x'30' WHERE subject = 'CN=alice'", 5, 2, 1, exitFailure},
		{"UPDATE strangers SET chain = x'30' WHERE last = (SELECT min(last) FROM strangers)", 4, 2, 2, exitFailure},
		{"UPDATE stories SET story = x'00'", 3, 2, 3, exitFailure},
		{"UPDATE clients SET more = x'7b1b' WHERE last = (SELECT min(last) FROM clients)", 3, 2, 3, exitFailure},
		{"UPDATE clients SET leaf = x'30'", 1, 0, 5, exitUndecided},
	} {
		if _, err := db.Exec(c.damage); err != nil {
			t.Fatal(err)
		}
		out, _, err := ask(impactCommand(), "-c", conf, "--require-eku", "1.2.3", "--json")
		var status statusError
		var i diagnose.Impact
		if !errors.As(err, &status) || int(status) != c.status || json.Unmarshal([]byte(out), &i) != nil {
			t.Fatalf("%s: %v\n%s", c.damage, err, out)
		}
		told := strings.Contains(strings.Join(i.Notes, "\n"), "of the journal ")
		if i.Asked != c.asked || len(i.Refused) != c.refused || i.Unread != c.unread || told != (c.unread > 0) {
			t.Errorf("%s: asked %d, refused %d, unread %d, %q", c.damage, i.Asked, len(i.Refused), i.Unread, i.Notes)
		}
		for what, command := range map[string]*cobra.Command{"clients": clientsCommand(), "entry": journalCommand()} {
			damaged := strings.Contains(c.damage, map[string]string{"clients": "SET more", "entry": "SET story"}[what])
			if _, errout, err := ask(command, "-c", conf); err != nil || damaged && !strings.Contains(errout, "cannot be read and were left out") {
				t.Errorf("%s: %s: %v %q", c.damage, what, err, errout)
			}
		}
		text, _, _ := ask(impactCommand(), "-c", conf, "--require-eku", "1.2.3")
		if strings.Contains(text, "\x1b") || i.Unread > 0 && strings.Contains(text, "no client that was seen would be treated in another way") {
			t.Errorf("%s: %s", c.damage, text)
		}
	}
}

// TestImpactOfTheWholeRecord goes from the wire to the answer for what is easily overlooked: a client with two programs, one
// that names no host, and more denied requests than are judged.
func TestImpactOfTheWholeRecord(t *testing.T) {
	defer func(n int) { maxReplayed = n }(maxReplayed)
	maxReplayed = 1
	dir := t.TempDir()
	root, servers := testpki.New(t), testpki.New(t)
	server := servers.Server("a.test")
	const text = `
state: ./kept
trust_stores:
  clients: {ca_bundle: {file: clients.pem}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    default_host: a.test
    hosts:
      - {names: [a.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, routes: [{upstream: api, allow: "client.subject != 'CN=carol'"}]}
upstreams:
  api: {targets: ["http://127.0.0.1:9"]}
`
	for name, data := range map[string][]byte{"clients.pem": root.PEM(), "server.pem": server.PEM(), "server.key": server.KeyPEM(), "countersign.yaml": []byte(text),
		"none.yaml":  []byte(strings.Replace(text, "    default_host: a.test\n", "", 1)),
		"local.yaml": []byte(strings.Replace(text, "client.subject != 'CN=carol'", "ip_in(connection.client_ip, '127.0.0.0/8')", 1))} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	conf := filepath.Join(dir, "countersign.yaml")
	var records, log buffer
	m, err := daemon.Start(daemon.Options{Config: conf, Records: &records, Log: &log})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		m.Shutdown(ctx)
	}()
	alice, bob, carol := root.Client("alice").TLS(), root.Client("bob").TLS(), root.Client("carol").TLS()
	var between time.Time
	for _, c := range []struct {
		pair    tls.Certificate
		name    string
		version uint16
		path    string
	}{{alice, "a.test", tls.VersionTLS12, "/"}, {alice, "a.test", tls.VersionTLS13, "/"}, {bob, "", tls.VersionTLS13, "/"}, {carol, "a.test", tls.VersionTLS13, "/1"}, {carol, "a.test", tls.VersionTLS13, "/2"}} {
		conn, err := tls.Dial("tcp", m.Addr("public").String(), &tls.Config{InsecureSkipVerify: true, ServerName: c.name, MaxVersion: c.version, Certificates: []tls.Certificate{c.pair}})
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n", c.path)
		_, _ = conn.Read(make([]byte, 4096))
		conn.Close()
		if between.IsZero() {
			time.Sleep(10 * time.Millisecond)
			between = time.Now()
		}
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, "kept", "journal.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var n int
		err := db.QueryRow("SELECT (SELECT sum(count) FROM clients) + (SELECT count(*) FROM verdicts WHERE reason = 'policy_denied')").Scan(&n)
		if err == nil && n == 7 {
			break
		}
		if time.Now().After(end) {
			t.Fatal(n, err, log.String())
		}
	}
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"--proposed", filepath.Join(dir, "local.yaml")}, exitUndecided, ""}, // the address is in the journal
		{[]string{"--min-tls", "1.3"}, exitFailure, "CN=alice 1 tls_version_unsupported"},
		{[]string{"--min-tls", "1.3", "--since", between.UTC().Format(time.RFC3339Nano)}, exitUndecided, ""},
		{[]string{"--proposed", filepath.Join(dir, "none.yaml")}, exitFailure, "CN=bob 1 sni_missing"},
		{[]string{"--proposed", conf}, exitUndecided, ""},
	} {
		out, _, err := ask(impactCommand(), append([]string{"-c", conf, "--json"}, c.args...)...)
		var status statusError
		var i diagnose.Impact
		if !errors.As(err, &status) || int(status) != c.status || json.Unmarshal([]byte(out), &i) != nil {
			t.Fatalf("%q: %v\n%s", c.args, err, out)
		}
		var all []string
		for _, r := range i.Refused {
			all = append(all, fmt.Sprintf("%s %d %s", r.Subject, r.Count, r.Reason))
		}
		if in := strings.HasSuffix(c.args[1], "local.yaml"); in != (len(i.Admitted) == 1 && i.Admitted[0].Subject == "CN=carol") {
			t.Errorf("%q: admitted %+v", c.args, i.Admitted)
		}
		if got := strings.Join(all, ", "); got != c.want || len(i.Undecided) != 0 || !strings.Contains(strings.Join(i.Open, "\n"), "the last 1 were judged") {
			t.Errorf("%q: %q\n%s", c.args, got, out)
		}
	}
	maxReplayed = 1000
	if out, _, err := ask(impactCommand(), "-c", conf, "--proposed", conf); err != nil || !strings.Contains(out, "no client that was seen would be treated in another way") {
		t.Errorf("%v\n%s", err, out)
	}
}
