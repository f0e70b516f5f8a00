package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"crypto/tls"

	"github.com/spf13/cobra"

	"countersign/internal/daemon"
	"countersign/internal/diagnose"
	"countersign/internal/testpki"
)

// ask runs a command as users do, and returns what it printed and how it ended.
func ask(c *cobra.Command, args ...string) (out, errout string, err error) {
	var o, e bytes.Buffer
	c.SetOut(&o)
	c.SetErr(&e)
	c.SetArgs(args)
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetContext(context.Background())
	err = c.Execute()
	return o.String(), e.String(), err
}

const journaled = `
state: ./kept
trust_stores:
  clients: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: clients.crl}, {file: root.crl}]}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - {names: [a.test], certificate: &c {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, routes: &r [{allow: "client.subject == 'CN=alice'", upstream: api}]}
      - {names: [b.test], certificate: *c, client_auth: {mode: require, trust_store: clients, on_failure: page}, routes: *r}
upstreams:
  api: {targets: ["http://127.0.0.1:9"]}
`

// TestJournalCommands goes from a refusal on the wire to its story.
func TestJournalCommands(t *testing.T) {
	dir := t.TempDir()
	root := testpki.New(t)
	ca := root.Intermediate("Clients CA")
	servers := testpki.New(t)
	server := servers.Server("a.test", testpki.DNS("a.test", "b.test"), testpki.Lifetime(90*24*time.Hour))
	tess := ca.Client("tess", testpki.Lifetime(300*24*time.Hour))
	alice, bob, dave := ca.Client("alice", testpki.Lifetime(20*24*time.Hour)), ca.Client("bob"), ca.Client("dave", testpki.Lifetime(300*24*time.Hour))
	other := testpki.New(t)
	mallory := other.Client("mallory \x1b[31m")
	idle := testpki.New(t)
	for name, data := range map[string][]byte{"clients.pem": bytes.Join([][]byte{root.PEM(), ca.PEM(), idle.PEM()}, nil), "clients.crl": ca.CRL(bob),
		"root.crl": append(testpki.PEM("X509 CRL", root.CRL()), testpki.PEM("X509 CRL", other.CRL())...), "none.crl": append(testpki.PEM("X509 CRL", ca.CRL()), testpki.PEM("X509 CRL", root.CRL())...), "idle.pem": idle.PEM(), "more.pem": bytes.Join([][]byte{root.PEM(), ca.PEM(), other.PEM()}, nil), "server.pem": server.PEM(), "server.key": server.KeyPEM(), "countersign.yaml": []byte(journaled)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	conf := filepath.Join(dir, "countersign.yaml")
	if _, _, err := ask(journalCommand(), "-c", conf); err == nil || !strings.Contains(err.Error(), "no journal yet") {
		t.Errorf("before the first start: %v", err)
	}
	var records, log buffer
	m, err := daemon.Start(daemon.Options{Config: conf, Records: &records, Log: &log})
	if err != nil {
		t.Fatal(err)
	}
	ended := false
	end := func() {
		if !ended {
			ended = true
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			m.Shutdown(ctx)
		}
	}
	defer end()
	call := func(sni string, c *testpki.Cert, versions ...uint16) {
		tc := &tls.Config{RootCAs: servers.Pool(), ServerName: sni}
		for _, v := range versions {
			tc.MaxVersion = v
		}
		if c != nil {
			pair := c.TLS()
			tc.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		conn, err := tls.Dial("tcp", m.Addr("public").String(), tc)
		if err != nil {
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(conn, "GET /x HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", sni)
		_, _ = conn.Read(make([]byte, 4096))
	}
	call("a.test", bob)     // revoked
	call("a.test", mallory) // of a stranger
	call("a.test", nil)
	call("a.test", dave) // verified, and not allowed
	call("b.test", bob)  // let in to be told
	call("a.test", tess, tls.VersionTLS12)
	for range 3 {
		call("a.test", alice)
	}

	var out, errout string
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		out, errout, err = ask(journalCommand(), "-c", conf, "--since", "1h", "--json")
		clients, _, _ := ask(clientsCommand(), "-c", conf, "--json")
		// alice's target does not answer: three more
		if err == nil && strings.Count(out, "\n") >= 10 && strings.Count(clients, "\n") == 4 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%v\n%s%s\n%s\n%s", err, out, errout, clients, log.String())
		}
	}
	found := map[string]map[string]any{}
	for _, l := range strings.Split(strings.TrimSpace(out), "\n") {
		var e map[string]any
		if err := json.Unmarshal([]byte(l), &e); err != nil {
			t.Fatalf("%v: %s", err, l)
		}
		found[e["reason"].(string)+" "+e["kind"].(string)] = e
		if strings.Contains(l, "\x1b") {
			t.Errorf("F13/%q", l)
		}
	}
	for _, want := range []string{"client_cert_revoked handshake", "client_cert_untrusted handshake", "client_cert_missing handshake", "policy_denied request", "upstream_connect_failed request"} {
		if found[want] == nil {
			t.Errorf("no %s among %s", want, out)
		}
	}
	for code, hint := range map[string]bool{"client_cert_revokd": true, "revoked*": true, "upstream_busy": false, "client_*": false} {
		_, errout, err := ask(journalCommand(), "-c", conf, "--reason", code, "--sni", "nobody.test")
		if err != nil || strings.Contains(errout, fmt.Sprintf("no reason has the code %q", code)) != hint {
			t.Errorf("--reason %s: %v, %q", code, err, errout)
		}
	}
	story := func(args ...string) string {
		t.Helper()
		out, errout, err := ask(explainCommand(), append([]string{"-c", conf}, args...)...)
		var status statusError
		if !errors.As(err, &status) || status != exitFailure {
			t.Fatalf("%v %s", err, errout)
		}
		return out
	}
	told := func(text string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !regexp.MustCompile(w).MatchString(text) {
				t.Errorf("%q is not told in\n%s", w, text)
			}
		}
	}
	ref := func(key string) string {
		if found[key] == nil {
			t.Fatalf("no %s", key)
		}
		return found[key]["ref"].(string)
	}
	told(story("--ref", ref("client_cert_untrusted handshake")), `handshake [0-9a-f]{16}, at `, `client_cert_untrusted: `, `CN=mallory \\1B\[31m`, `anybody could have sent this`,
		`CHAINS TRIED`, `no CA of the trust store`, `trust store +clients@`, `server name +a.test`, `next +\S`, `docs/reasons.md#`, `tls +TLS 1.3, TLS_`)
	told(story("--ref", ref("policy_denied request")), `request [0-9a-f]{16}-1, at `, `GET /x, status 403`, `CN=(dave|tess)`, `policy_denied: `) // whichever was written first
	revoked, _, err := ask(journalCommand(), "-c", conf, "--reason", "client_cert_revoked", "--json", "--sni", "a.test")
	if err != nil || strings.Count(revoked, "\n") != 1 {
		t.Fatalf("%v\n%s", err, revoked)
	}
	var e struct{ Ref string }
	_ = json.Unmarshal([]byte(revoked), &e)
	told(story("--ref", e.Ref), `REVOCATION`, `crl for depth 0: number 1 of .*, 1m`, `next due 20`, `not had to prove|had to prove`)
	told(story("--ref", e.Ref, "--json"), `"evidence"`, `"possession": "not_proven"`, `"certificate_at_fault"`)

	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--reason", "client_cert_revoked", "--sni", "b.test"}, `client_cert_revoked .*b.test .*CN=bob`},
		{[]string{"--subject", "MALLORY"}, `client_cert_untrusted`},
		{[]string{"--address", "127.0.0.0/8", "-n", "1"}, `127\.0\.0\.`},
	} {
		out, errout, err := ask(journalCommand(), append([]string{"-c", conf}, c.args...)...)
		if err != nil {
			t.Errorf("%v: %v %s", c.args, err, errout)
		}
		told(out, c.want)
	}

	clients, _, err := ask(clientsCommand(), "-c", conf)
	if err != nil || strings.Contains(clients, "mallory") {
		t.Errorf("a client that has proven nothing is in the inventory: %v\n%s", err, clients)
	}
	told(clients, `CN=alice`, ` 3 +1 +accepted +CN=alice`, `client_cert_revoked +CN=bob`, `accepted +CN=dave`)
	expiring, _, err := ask(clientsCommand(), "-c", conf, "--expiring", "30d")
	if err != nil || !strings.Contains(expiring, "CN=alice") || strings.Contains(expiring, "CN=dave") {
		t.Errorf("%v\n%s", err, expiring)
	}
	many, _, err := ask(clientsCommand(), "-c", conf, "--many-networks", "2")
	if err != nil || strings.Contains(many, "CN=") {
		t.Errorf("%v\n%s", err, many)
	}
	unused, errout, err := ask(clientsCommand(), "-c", conf, "--issuers-unused", "90d", "--json")
	if err != nil || strings.Count(unused, "\n") != 1 || !strings.Contains(errout, "may be in use all the same") {
		t.Errorf("%v\n%s%s", err, unused, errout)
	}

	impact := func(name, change, by string, args ...string) (*diagnose.Impact, int) {
		t.Helper()
		if !strings.Contains(journaled, change) {
			t.Fatalf("%q is not in the configuration", change)
		}
		next := filepath.Join(dir, "next.yaml")
		if err := os.WriteFile(next, []byte(strings.ReplaceAll(journaled, change, by)), 0o600); err != nil {
			t.Fatal(err)
		}
		out, errout, err := ask(impactCommand(), append([]string{"-c", conf, "--proposed", next, "--json"}, args...)...)
		var status statusError
		if err != nil && !errors.As(err, &status) {
			t.Fatalf("%s: %v %s", name, err, errout)
		}
		i := new(diagnose.Impact)
		if err := json.Unmarshal([]byte(out), i); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		text, _, _ := ask(impactCommand(), append([]string{"-c", conf, "--proposed", next}, args...)...)
		if strings.Contains(text, "NEWLY REFUSED") != (len(i.Refused) > 0) || strings.Contains(text, "\x1b") {
			t.Errorf("%s: %s", name, text)
		}
		return i, int(status)
	}
	who := func(list []diagnose.Change) string {
		var all []string
		for _, c := range list {
			text := strings.TrimSpace(strings.TrimPrefix(c.Subject, "CN=") + " " + c.Reason + " " + c.Path)
			if c.Possession != "" {
				text += " unproven"
			}
			all = append(all, text)
		}
		slices.Sort(all)
		return strings.Join(all, ", ")
	}
	for _, c := range []struct {
		name, change, by  string
		args              []string
		refused, admitted string
		note              string
		status            int
		undecided         string
	}{
		{name: "nothing", change: "state", by: "state"},
		{name: "a CA less", change: "clients.pem", by: "idle.pem", refused: "alice client_cert_untrusted, dave client_cert_untrusted, tess client_cert_untrusted", status: exitFailure,
			undecided: "bob client_cert_untrusted"}, // his issuers are not kept, for he was never verified
		{name: "a list less", change: "{file: clients.crl}, {file: root.crl}", by: "{file: none.crl}", admitted: "bob client_cert_revoked, bob client_cert_revoked unproven"},
		{name: "a CA more", change: "clients.pem", by: "more.pem", admitted: "mallory \\1B[31m client_cert_untrusted unproven"},
		{name: "another rule", change: "CN=alice", by: "CN=dave", admitted: "dave policy_denied /x", note: "routes of a.test on listener public would ask other things", status: exitUndecided},
		{name: "another rule and a path", change: "CN=alice", by: "CN=dave", args: []string{"--path", "/x"}, refused: "alice policy_denied /x",
			admitted: "dave policy_denied /x, dave policy_denied /x", note: "routes of a.test on listener public would ask other things", status: exitFailure},
		{name: "newer TLS", change: "protocol: https", by: "protocol: https\n    tls: {min_version: \"1.3\"}", refused: "tess tls_version_unsupported", status: exitFailure},
		{name: "no more asked", change: "mode: require, trust_store: clients, on_failure: page", by: "mode: request, trust_store: clients, on_failure: page",
			note: "clients without a certificate would be let in at b.test"},
		{name: "a host less", change: "names: [a.test]", by: "names: [c.test]", refused: "alice sni_unknown, dave sni_unknown, tess sni_unknown", status: exitFailure},
		{name: "a listener of another name", change: "public:", by: "other:", refused: "alice sni_unknown, dave sni_unknown, tess sni_unknown", status: exitFailure},
		{name: "a responder that nobody has asked yet", change: "revocation: {crls", by: "revocation: {ocsp: {mode: require, responder: \"http://127.0.0.1:1/\"}, crls",
			undecided: "alice ocsp_unavailable, dave ocsp_unavailable, tess ocsp_unavailable", status: exitUndecided},
		{name: "no responder that may be asked", change: "revocation: {crls", by: "revocation: {ocsp: {mode: require, hosts: [ocsp.partner.test]}, crls",
			refused: "alice ocsp_unavailable, dave ocsp_unavailable, tess ocsp_unavailable", status: exitFailure},
		{name: "none so young", change: "CN=alice", by: "CN=dave", args: []string{"--since", "0s", "--path", "/x"}, note: "would ask other things"},
	} {
		i, status := impact(c.name, c.change, c.by, c.args...)
		notes := append(i.Open, i.Notes...)
		if who(i.Refused) != c.refused || who(i.Admitted) != c.admitted || status != c.status || who(i.Undecided) != c.undecided || !strings.Contains(strings.Join(notes, " "), c.note) || c.note == "" && len(notes) > 0 {
			t.Errorf("%s: refused %q, admitted %q, status %d, undecided %q, notes %v", c.name, who(i.Refused), who(i.Admitted), status, who(i.Undecided), notes)
		}
	}
	// The other way round: what is proposed here is in force there.
	for _, c := range []struct{ change, by, admitted, note string }{
		{"mode: require, trust_store: clients, on_failure: page", "mode: request, trust_store: clients, on_failure: page", "", "clients without a certificate would be refused at b.test"},
		{"revocation: {crls", "revocation: {ocsp: {mode: require, responder: \"http://127.0.0.1:1/\"}, crls", "", ""},
		{"clients.pem", "idle.pem", "alice client_cert_untrusted, dave client_cert_untrusted, tess client_cert_untrusted", ""},
	} {
		was := filepath.Join(dir, "was.yaml")
		if err := os.WriteFile(was, []byte(strings.ReplaceAll(journaled, c.change, c.by)), 0o600); err != nil {
			t.Fatal(err)
		}
		i, err := impactOf(context.Background(), &impactAsked{config: was, proposed: conf, now: time.Now()})
		if err != nil || who(i.Refused) != "" || who(i.Admitted) != c.admitted || len(i.Undecided) > 0 || !strings.Contains(strings.Join(append(i.Open, i.Notes...), " "), c.note) {
			t.Errorf("%s: %v %+v", c.by, err, i)
		}
	}
	for what, args := range map[string][]string{"no file": nil, "path": {"--proposed", conf, "--path", "x"}, "time": {"--proposed", conf, "--since", "x"}} {
		var usage usageError
		if _, _, err := ask(impactCommand(), append([]string{"-c", conf}, args...)...); !errors.As(err, &usage) {
			t.Errorf("impact: %s: %v", what, err)
		}
	}
	for what, args := range map[string][]string{"since": {"--since", "yesterday"}, "limit": {"-n", "0"}} {
		var usage usageError
		if _, _, err := ask(journalCommand(), append([]string{"-c", conf}, args...)...); !errors.As(err, &usage) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, args := range map[string][]string{"two reports": {"--expiring", "1d", "--many-networks", "3"}, "networks": {"--many-networks", "17"}, "span": {"--expiring", "-1h"}} {
		var usage usageError
		if _, _, err := ask(clientsCommand(), append([]string{"-c", conf}, args...)...); !errors.As(err, &usage) {
			t.Errorf("%s: %v", what, err)
		}
	}
	var status statusError
	if _, errout, err := ask(explainCommand(), "-c", conf, "--ref", "nobody\x1b"); !errors.As(err, &status) || status != exitUndecided || strings.Contains(errout, "\x1b") {
		t.Errorf("%v %q", err, errout)
	}
	end()
	if out, _, err := ask(journalCommand(), "-c", conf, "--ref", e.Ref); err != nil || !strings.Contains(out, "client_cert_revoked") {
		t.Errorf("after the end: %v %s", err, out)
	}
	if err := os.WriteFile(conf, []byte(strings.Replace(journaled, "mode: require", "mode: requier", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _, err := ask(journalCommand(), "-c", conf, "--ref", e.Ref); err != nil || !strings.Contains(out, "client_cert_revoked") {
		t.Errorf("with a configuration that is not accepted: %v %s", err, out)
	}
}
