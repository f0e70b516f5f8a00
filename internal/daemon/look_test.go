package daemon_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/internal/daemon"
	"countersign/internal/diagnose"
	"countersign/internal/testpki"
)

const looked = `
outbound: {allow: [127.0.0.0/8]}
trust_stores:
  clients: {ca_bundle: {file: clients.pem}, revocation: {crls: [{url: "URL/ca.crl"}]}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes: [{upstream: api}]
upstreams:
  api: {targets: ["http://127.0.0.1:9"]}
`

// TestLook asks about clients beside a running program: with the lists that it has kept, without touching them.
func TestLook(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.ca.Client("alice"), w.ca.Client("bob")
	p := newPress(t, "127.0.0.1:0")
	p.put("/ca.crl", gives(w.ca.CRL(bob, testpki.Number(7))))
	conf := strings.ReplaceAll(looked, "URL", p.url)
	explain := func(t *testing.T, c *testpki.Cert, fetch bool) *diagnose.Report {
		t.Helper()
		look, err := daemon.NewLook(filepath.Join(w.dir, "countersign.yaml"), time.Now(), fetch)
		if err != nil {
			t.Fatal(err)
		}
		defer look.Close()
		r, err := diagnose.Explain(look.Setup(), &diagnose.Question{Presented: c.Presented(), Host: "a.test"})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	expect := func(t *testing.T, r *diagnose.Report, outcome diagnose.Outcome, code, next string) {
		t.Helper()
		if r.Outcome != outcome || r.Reason != code || !strings.Contains(r.Next, next) {
			t.Errorf("expected %s %s, next %q; found %s %s, next %q", outcome, code, next, r.Outcome, r.Reason, r.Next)
		}
	}
	w.file("countersign.yaml", []byte(conf))
	t.Run("nothing was kept", func(t *testing.T) {
		expect(t, explain(t, alice, false), diagnose.Undecided, "crl_missing", "--fetch")
		if _, err := os.Stat(filepath.Join(w.dir, "state")); err == nil {
			t.Error("a folder was made")
		}
	})
	w.start(conf, "")
	state := func() string {
		h := sha256.New()
		err := filepath.WalkDir(filepath.Join(w.dir, "state"), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			data, err := os.ReadFile(path)
			h.Write([]byte(path + info.ModTime().String()))
			h.Write(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return hex.EncodeToString(h.Sum(nil))
	}
	before := state()
	source := p.url + "/ca.crl"
	t.Run("what a running program keeps", func(t *testing.T) {
		asked := p.conns.Load()
		r := explain(t, alice, false)
		expect(t, r, diagnose.Accepted, "", "")
		found := false
		for _, s := range r.Steps {
			found = found || s.Check == "revocation_list" && s.Source == source && strings.Contains(s.Found, "number 7")
		}
		if !found {
			t.Errorf("the list is not told as of %s: %+v", source, r.Steps)
		}
		expect(t, explain(t, bob, false), diagnose.Refused, "client_cert_revoked", "get a new certificate")
		if p.conns.Load() != asked {
			t.Error("the URL was asked")
		}
	})
	t.Run("what the URL gives now, or has given", func(t *testing.T) {
		p.put("/ca.crl", gives(w.ca.CRL(alice, testpki.Number(8))))
		expect(t, explain(t, alice, true), diagnose.Refused, "client_cert_revoked", "")
		p.put("/ca.crl", says(http.StatusNotFound))
		expect(t, explain(t, alice, true), diagnose.Accepted, "", "")
		expect(t, explain(t, bob, true), diagnose.Refused, "client_cert_revoked", "")
	})
	t.Run("C05/an older list comes back", func(t *testing.T) {
		p.put("/ca.crl", gives(w.ca.CRL(testpki.Number(6), testpki.ThisUpdate(time.Now().Add(-time.Hour)))))
		expect(t, explain(t, bob, true), diagnose.Refused, "client_cert_revoked", "")
	})
	if state() != before {
		t.Error("the state of the running program was changed")
	}
	t.Run("stale, and the URL answers 404", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		w.main.Shutdown(ctx)
		look, err := daemon.NewLook(filepath.Join(w.dir, "countersign.yaml"), time.Now().Add(96*time.Hour), false)
		if err != nil {
			t.Fatal(err)
		}
		defer look.Close()
		late := w.ca.Client("late", testpki.Lifetime(1000*time.Hour))
		r, err := diagnose.Explain(look.Setup(), &diagnose.Question{Presented: late.Presented(), Host: "a.test"})
		if err != nil {
			t.Fatal(err)
		}
		expect(t, r, diagnose.Refused, "crl_stale", `the list of CA "CN=Clients CA" expired 3 days ago: run this again with --fetch to see what its URL `+source+" gives now")
		p.put("/ca.crl", says(http.StatusNotFound))
		again, err := daemon.NewLook(filepath.Join(w.dir, "countersign.yaml"), time.Now().Add(96*time.Hour), true)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if r, err = diagnose.Explain(again.Setup(), &diagnose.Question{Presented: late.Presented(), Host: "a.test"}); err != nil {
			t.Fatal(err)
		}
		expect(t, r, diagnose.Refused, "crl_stale", "expired 3 days ago: its URL "+source+": ")
		if !strings.Contains(r.Next, "404") {
			t.Error(r.Next)
		}
	})
}

// TestLookAsks asks responders, and the places of lists that a certificate names, where it is told to.
func TestLookAsks(t *testing.T) {
	w := newWorld(t)
	p := newPress(t, "127.0.0.1:0")
	alice, bob := w.ca.Client("alice", testpki.CRLPoint(p.url+"/ca.crl")), w.ca.Client("bob", testpki.CRLPoint(p.url+"/ca.crl"))
	p.put("/ca.crl", gives(w.ca.CRL(bob)))
	url := responder(t, w.ca, func(serial string) []testpki.OCSPOption {
		if serial == bob.Cert.SerialNumber.String() {
			return []testpki.OCSPOption{testpki.OCSPRevoked(1)}
		}
		return nil
	})
	for name, revocation := range map[string]string{
		"a responder":                        `{ocsp: {mode: require, responder: "` + url + `"}}`,
		"a place that the certificate names": `{distribution_points: ["` + p.host + `"]}`,
	} {
		t.Run(name, func(t *testing.T) {
			w.file("countersign.yaml", []byte(strings.ReplaceAll(looked, `{crls: [{url: "URL/ca.crl"}]}`, revocation)))
			for _, c := range []struct {
				who     *testpki.Cert
				outcome diagnose.Outcome
				code    string
			}{{alice, diagnose.Accepted, ""}, {bob, diagnose.Refused, "client_cert_revoked"}} {
				look, err := daemon.NewLook(filepath.Join(w.dir, "countersign.yaml"), time.Now(), true)
				if err != nil {
					t.Fatal(err)
				}
				defer look.Close()
				q := &diagnose.Question{Presented: c.who.Presented(), Host: "a.test"}
				r, err := diagnose.Explain(look.Setup(), q)
				if err != nil || r.Outcome != diagnose.Refused || len(r.Queries)+len(r.Points) == 0 {
					t.Fatalf("before: %+v, %v", r, err)
				}
				look.Learn(r.Points)
				for _, err := range look.Ask(r.Queries) {
					t.Error(err)
				}
				if r, err = diagnose.Explain(look.Setup(), q); err != nil || r.Outcome != c.outcome || r.Reason != c.code {
					t.Errorf("%s %s, next %q, %v", r.Outcome, r.Reason, r.Next, err)
				}
			}
		})
	}
}
