package journal

import (
	"bufio"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"countersign/internal/identity"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/store"
	"countersign/internal/testpki"
	"countersign/internal/trust"
)

var hostile = []string{
	"\"}\n{\"level\":\"fatal\"}", "\x1b[31mred\x1b[0m", "nul\x00byte", strings.Repeat("\"", 64<<10), "\xff\xfe", "\u202eright to left", "back\\slash",
}

func file(t testing.TB) string { return FileIn(filepath.Join(t.TempDir(), "state")) }

func begin(t testing.TB, s Settings) *Journal {
	t.Helper()
	j := patient()
	j.Use(&s)
	t.Cleanup(j.Close)
	return j
}

// patient is a journal whose end waits for machines that are slow.
func patient() *Journal {
	j := New(slog.New(slog.DiscardHandler))
	j.closing = 2 * time.Minute
	return j
}

func reader(t testing.TB, name string) *Reader {
	t.Helper()
	r, err := OpenReader(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func search(t testing.TB, r *Reader, q Query) []Entry {
	t.Helper()
	list, _, err := r.Search(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// eventually waits for what another goroutine does.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

func refusal(c *testpki.Cert, ref string) *record.Handshake {
	h := &record.Handshake{Ref: ref, Listener: "public", Client: "192.0.2.7:5000", SNI: "API.test", Host: "api.test", Policy: "require",
		Reason: reason.ClientCertExpired, Expected: "validity", Found: "expired", Store: "partners", StoreVer: "abc"}
	if c != nil {
		h.Presented, h.Leaf, h.At = c.Presented(), c.Cert, c.Cert
	}
	return h
}

func TestHostileText(t *testing.T) {
	pki := testpki.New(t)
	for i, text := range hostile {
		t.Run(fmt.Sprintf("F13/%d", i), func(t *testing.T) {
			short := strings.ToValidUTF8(text[:min(len(text), 60)], "?")
			var many []*x509.Certificate
			for range 12 {
				many = append(many, pki.Client(short, testpki.DNS(strings.Repeat("a.", 90)+"test")).Cert)
			}
			h := &record.Handshake{Ref: "r", Client: text, SNI: text, Host: text, ALPN: text, Reason: reason.ClientCertExpired, Found: text, Expected: text,
				Detail: text, At: many[0], Presented: many, Store: text, TargetAddr: text}
			for range 20 {
				h.Tried = append(h.Tried, trust.Tried{Chain: many, Found: text, Rule: reason.ClientCertUntrusted})
				h.Evidence = append(h.Evidence, trust.Evidence{Kind: trust.EvidenceCRL, Source: text, Number: text, ThisUpdate: time.Now()})
			}
			r := &record.Request{Serial: 7, Start: time.Now(), Method: []byte(text), Host: []byte(text), Path: []byte(text), Reason: reason.PolicyDenied,
				Found: text, Detail: text, Presented: many}
			id, _ := identity.FromChain([]*x509.Certificate{many[0], pki.Cert})
			for _, e := range []*Entry{ofHandshake(h, time.Now()), ofRequest(r, "ref", record.Fragment(text, text, identity.Present(id)), time.Now()),
				ofRequest(r, "ref", []byte("not a fragment"), time.Now())} {
				story := e.story()
				if len(story) == 0 || len(story) > maxStory || !json.Valid(story) {
					t.Errorf("%d bytes, valid %t", len(story), json.Valid(story))
				}
				var back map[string]any
				if err := json.Unmarshal(story, &back); err != nil {
					t.Fatal(err)
				}
				eachText(back, func(s string) {
					for _, c := range []byte(s) {
						if c < ' ' || c > '~' {
							t.Fatalf("byte %#x in %q", c, s)
						}
					}
				})
			}
		})
	}
}

func eachText(v any, f func(string)) {
	switch v := v.(type) {
	case string:
		f(v)
	case []any:
		for _, e := range v {
			eachText(e, f)
		}
	case map[string]any:
		for _, e := range v {
			eachText(e, f)
		}
	}
}

func TestSearch(t *testing.T) {
	pki := testpki.New(t, testpki.Subject(pkix.Name{CommonName: "Partner CA"}))
	alice, bob := pki.Client("alice"), pki.Client("bob")
	name := file(t)
	j := begin(t, Settings{File: name})
	start := time.Now()
	h := refusal(alice, "aaaa")
	h.Tried = []trust.Tried{{Chain: alice.Presented(), Rule: reason.ClientCertExpired, Found: "expired", Anchored: true}}
	h.Evidence = []trust.Evidence{{Kind: trust.EvidenceCRL, Number: "7", Source: "number 7", ThisUpdate: start.Add(-time.Hour), NextUpdate: start}}
	j.Refused(h, start.Add(-2*time.Hour))
	b := refusal(bob, "bbbb")
	b.Client, b.SNI, b.Reason, b.At, b.Depth = "[2001:db8::1]:1", "other.test", reason.ClientCertUntrusted, pki.Cert, 1
	j.Refused(b, start)
	j.Refused(&record.Handshake{Ref: "cccc", Client: "192.0.2.9:1", Reason: reason.NotTLS}, start)
	r := &record.Request{Serial: 3, Start: start, Method: []byte("GET"), Host: []byte("api.test"), Path: []byte("/admin"), Status: 403, Reason: reason.PolicyDenied,
		Presented: alice.Presented(), Conn: &record.Conn{SNI: "api.test", Version: "TLS 1.3"}}
	j.Denied(r, "aaaa", record.Fragment("public", "192.0.2.7:5000", identity.Client{}), start.Add(time.Second))
	j.Close()

	file := reader(t, name)
	for _, c := range []struct {
		name string
		q    Query
		want string
	}{
		{"all, newest first", Query{}, "aaaa-3 cccc bbbb aaaa"},
		{"reference of a connection", Query{Ref: "aaaa"}, "aaaa-3 aaaa"},
		{"reference of a request", Query{Ref: "aaaa-3"}, "aaaa-3 aaaa"},
		{"reference of nobody", Query{Ref: "aaa"}, ""},
		{"time", Query{Since: start.Add(-time.Hour)}, "aaaa-3 cccc bbbb"},
		{"until", Query{Until: start}, "aaaa"},
		{"reason", Query{Reason: "client_cert_untrusted"}, "bbbb"},
		{"reasons", Query{Reason: "client_cert_*"}, "bbbb aaaa"},
		{"reason that looks like a pattern", Query{Reason: "client%*"}, ""},
		{"subject", Query{Subject: "ALICE"}, "aaaa-3 aaaa"},
		{"subject that looks like a pattern", Query{Subject: "%"}, ""},
		{"issuer", Query{Issuer: "partner ca"}, "aaaa-3 bbbb aaaa"},
		{"serial", Query{Serial: identity.SerialHex(bob.Cert.SerialNumber)}, "bbbb"},
		{"fingerprint", Query{Fingerprint: fingerprint(bob.Cert)}, "bbbb"},
		{"fingerprint, cut short and in capitals", Query{Fingerprint: "SHA256:" + strings.ToUpper(fingerprint(bob.Cert)[:8])}, "bbbb"},
		{"fingerprint of the certificate at fault", Query{Fingerprint: fingerprint(pki.Cert)}, "bbbb"},
		{"sni", Query{SNI: "api.TEST"}, "aaaa-3 aaaa"},
		{"address", Query{Address: "192.0.2.9"}, "cccc"},
		{"address of IPv6", Query{Address: "2001:db8:0::1"}, "bbbb"},
		{"network", Query{Address: "192.0.2.0/29"}, "aaaa-3 aaaa"},
		{"together", Query{Subject: "alice", Reason: "policy_denied"}, "aaaa-3"},
		{"quotes", Query{Subject: "' OR 1=1 --", Ref: "' OR ''='"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var refs []string
			for _, e := range search(t, file, c.q) {
				refs = append(refs, e.Ref)
			}
			if got := strings.Join(refs, " "); got != c.want {
				t.Errorf("found %q, want %q", got, c.want)
			}
		})
	}
	for what, q := range map[string]Query{"address": {Address: "nonsense\x1b"}, "network": {Address: "10.0.0.0/99"}, "serial": {Serial: "xyz"}, "fingerprint": {Fingerprint: "ab"}} {
		if _, _, err := file.Search(context.Background(), q); err == nil || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%s: %v", what, err)
		}
	}
	t.Run("pages", func(t *testing.T) {
		one, next, err := file.Search(context.Background(), Query{Limit: 3})
		two, last, err2 := file.Search(context.Background(), Query{Limit: 3, Before: next})
		if err != nil || err2 != nil || len(one) != 3 || len(two) != 1 || next == 0 || last != 0 || two[0].Ref != "aaaa" {
			t.Error(len(one), next, len(two), last, err, err2)
		}
	})
	t.Run("whole story", func(t *testing.T) {
		e := search(t, file, Query{Ref: "aaaa"})[1]
		if e.Kind != "handshake" || e.Stage != "handshake" || e.Sentence == "" || e.Next == "" || e.Docs == "" || e.Store != "partners" ||
			e.AtFault == nil || e.AtFault.SHA256 != fingerprint(alice.Cert) || e.Possession != "not_proven" || e.Client != "192.0.2.7:5000" ||
			len(e.Presented) != 1 || len(e.Tried) != 1 || e.Tried[0].Reason != "client_cert_expired" || !e.Tried[0].Anchored ||
			len(e.Evidence) != 1 || e.Evidence[0].Number != "7" || e.Evidence[0].Seconds >= 0 || e.SNI != "API.test" {
			t.Errorf("%+v", e)
		}
		e = search(t, file, Query{Ref: "aaaa-3"})[0]
		if e.Kind != "request" || e.Method != "GET" || e.Path != "/admin" || e.Status != 403 || e.Listener != "public" || e.SNI != "api.test" || e.Possession != "proven" || e.TLS != "TLS 1.3" {
			t.Errorf("%+v", e)
		}
	})
}

// TestStalled shows that a disk that does not answer costs records and nothing else.
func TestStalled(t *testing.T) {
	pki := testpki.New(t)
	alice := pki.Client("alice")
	j := patient()
	stuck := make(chan struct{})
	entered := make(chan struct{}, 1)
	j.writeHook = func() {
		select {
		case entered <- struct{}{}:
		default:
		}
		<-stuck
	}
	name := file(t)
	j.Use(&Settings{File: name})
	j.Refused(refusal(alice, "first"), time.Now())
	<-entered
	const n = maxWaiting + 1000 // no more: the first write has its 30 seconds, and stands still meanwhile
	for i := range n {
		j.Refused(refusal(alice, fmt.Sprint(i)), time.Now())
		j.Seen(record.Sighting{Time: time.Now(), Presented: alice.Presented(), Client: "192.0.2.1:1", Verdict: reason.Completed})
	}
	if d := testutil.ToFloat64(j.dropped); d != n-maxWaiting {
		t.Errorf("H12/%v dropped, want %d", d, n-maxWaiting)
	}
	j.mu.Lock()
	if len(j.waiting.events) > maxWaiting || j.waiting.bytes > maxWaitingBytes {
		t.Errorf("%d entries of %d bytes wait", len(j.waiting.events), j.waiting.bytes)
	}
	j.mu.Unlock()
	close(stuck)
	j.Close()
	if list := search(t, reader(t, name), Query{Ref: "first"}); len(list) != 1 {
		t.Error("what was on its way is not there")
	}
	var c *Client
	if err := reader(t, name).Clients(context.Background(), func(found *Client) bool { c = found; return false }); err != nil || c == nil || c.Count != n {
		t.Errorf("%v %+v", err, c)
	}
}

// TestFlood shows that much of one kind is cut, and of another kind is not.
func TestFlood(t *testing.T) {
	j := New(slog.New(slog.DiscardHandler))
	now := time.Unix(1_800_000_000, 0)
	taken := 0
	for range 10_000 {
		if j.Room(reason.NotTLS, now) {
			taken++
		}
	}
	if taken != perReason || testutil.ToFloat64(j.dropped) != 10_000-perReason {
		t.Errorf("F12/%d were taken, %v dropped", taken, testutil.ToFloat64(j.dropped))
	}
	if !j.Room(reason.ClientCertRevoked, now) || !j.Room(reason.NotTLS, now.Add(time.Second)) {
		t.Error("F12/another kind, or the next second, has no room")
	}
}

func TestDamaged(t *testing.T) {
	name := file(t)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("\x1b[31mno database"), 0o600); err != nil {
		t.Fatal(err)
	}
	j := begin(t, Settings{File: name})
	j.Refused(refusal(nil, "aaaa"), time.Now())
	eventually(t, "a condition", func() bool {
		c := j.Conditions()
		return len(c) == 1 && c[0].Code == SetAside && !strings.Contains(c[0].Text, "\x1b")
	})
	j.Close()
	if aside, _ := filepath.Glob(name + ".damaged-*"); len(aside) != 1 {
		t.Error("H11/the damaged file is gone")
	}
	if len(search(t, reader(t, name), Query{})) != 1 {
		t.Error("H11/the new file is not used")
	}
}

func TestUnavailable(t *testing.T) {
	unavailable := func(t *testing.T, j *Journal, want string) {
		eventually(t, "condition", func() bool {
			c := j.Conditions()
			return len(c) == 1 && c[0].Code == Unavailable && strings.Contains(c[0].Text, want)
		})
	}
	t.Run("another process writes", func(t *testing.T) {
		name := file(t)
		other, err := store.Open(context.Background(), store.Options{Path: name, Schema: schema})
		if err != nil {
			t.Fatal(err)
		}
		j := begin(t, Settings{File: name})
		j.Refused(refusal(nil, "aaaa"), time.Now())
		unavailable(t, j, "another process")
		other.Close()
		eventually(t, "it is taken over", func() bool { return len(j.Conditions()) == 0 })
		j.Close()
		if len(search(t, reader(t, name), Query{})) != 1 {
			t.Error("what waited is lost")
		}
	})
	t.Run("H26/later version", func(t *testing.T) {
		name := file(t)
		later, err := store.Open(context.Background(), store.Options{Path: name, Schema: append(schema[:len(schema):len(schema)], "CREATE TABLE later (n INTEGER)")})
		if err != nil {
			t.Fatal(err)
		}
		later.Close()
		j := begin(t, Settings{File: name})
		unavailable(t, j, "later version")
		j.Close()
		var newer *store.NewerError
		if _, err := OpenReader(context.Background(), name); !errors.As(err, &newer) {
			t.Error(err)
		}
	})
	t.Run("H12/no folder", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "state"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		unavailable(t, begin(t, Settings{File: FileIn(filepath.Join(dir, "state"))}), "not a directory")
	})
}

// TestBounds shows that a flood of one kind makes room for itself.
func TestBounds(t *testing.T) {
	name := file(t)
	j := begin(t, Settings{File: name, Records: 100})
	pki := testpki.New(t)
	j.Refused(refusal(pki.Client("old"), "old"), time.Now().Add(-8*24*time.Hour))
	j.Refused(refusal(pki.Client("rare"), "rare"), time.Now())
	for i := range 1000 {
		h := refusal(nil, fmt.Sprint(i))
		h.Reason = reason.NotTLS
		j.Refused(h, time.Now())
	}
	j.Close()
	j = begin(t, Settings{File: name, Records: 100})
	j.Refused(refusal(nil, "last"), time.Now())
	r := reader(t, name)
	eventually(t, "few are left, and the last is there", func() bool {
		return len(search(t, r, Query{Limit: 1000})) <= 100 && len(search(t, r, Query{Ref: "last"})) == 1
	})
	for ref, want := range map[string]int{"rare": 1, "last": 1, "999": 1, "0": 0, "old": 0} {
		if n := len(search(t, r, Query{Ref: ref})); n != want {
			t.Errorf("%s: %d entries, want %d", ref, n, want)
		}
	}
	eventually(t, "their stories go with them", func() bool {
		var stories int
		return r.row(context.Background(), []any{&stories}, "SELECT count(*) FROM stories") == nil && stories <= 100
	})
	t.Run("bytes", func(t *testing.T) {
		name := file(t)
		j := begin(t, Settings{File: name, Bytes: MinBytes})
		long := strings.Repeat("x", maxText)
		for i := range 2000 {
			h := refusal(nil, fmt.Sprint("b", i))
			h.Expected, h.Found, h.Detail, h.SNI = long, long, long, long
			j.Refused(h, time.Now())
			if i%500 == 499 {
				eventually(t, "they are taken", func() bool {
					j.mu.Lock()
					defer j.mu.Unlock()
					return len(j.waiting.events) == 0
				})
			}
		}
		j.Close()
		if info, err := os.Stat(name); err != nil || info.Size() > MinBytes {
			t.Errorf("H12/%v %v", info.Size(), err)
		}
		j = begin(t, Settings{File: name, Bytes: MinBytes})
		j.Refused(refusal(nil, "last"), time.Now())
		eventually(t, "it takes more", func() bool { return len(search(t, reader(t, name), Query{Ref: "last"})) == 1 })
	})
}

const childVar = "COUNTERSIGN_JOURNAL_CHILD"

// TestKilled shows that a journal whose process is killed in the middle of its work has all that was written, in order and
// without a gap.
func TestKilled(t *testing.T) {
	if name := os.Getenv(childVar); name != "" {
		child(name)
		return
	}
	name := file(t)
	last := 0
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), childVar+"="+name)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		lines.Scan()
		written := func() int {
			r, err := OpenReader(context.Background(), name)
			if err != nil {
				return 0
			}
			defer r.Close()
			list, _, err := r.Search(context.Background(), Query{Limit: 1})
			if err != nil || len(list) == 0 {
				return 0
			}
			return int(list[0].ID)
		}
		eventually(t, "the child writes", func() bool { return written() > last+100 })
		seen := written()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()

		db, err := store.Open(context.Background(), store.Options{Path: name, Schema: schema}) // which checks that it is whole
		if err != nil {
			t.Fatalf("H11/round %d: %v", round, err)
		}
		db.Close()
		r := reader(t, name)
		after := search(t, r, Query{Limit: 1})[0]
		if int(after.ID) < seen {
			t.Errorf("H11/round %d: entry %d was there, and after the kill the last is %d", round, seen, after.ID)
		}
		var n int
		if err := r.row(context.Background(), []any{&n}, "SELECT count(*) FROM verdicts JOIN stories USING (id)"); err != nil || n != int(after.ID) {
			t.Errorf("H11/round %d: %d entries up to number %d: %v", round, n, after.ID, err)
		}
		if len(search(t, r, Query{Ref: after.Ref})) != 1 {
			t.Errorf("H11/round %d: the last one is not found", round)
		}
		r.Close()
		last = int(after.ID)
	}
}

// child feeds a journal until it is killed.
func child(name string) {
	j := New(slog.New(slog.DiscardHandler))
	j.Use(&Settings{File: name})
	fmt.Println("begun")
	for i := 0; ; i++ {
		j.Refused(refusal(nil, fmt.Sprintf("%d-%d", os.Getpid(), i)), time.Now())
		time.Sleep(200 * time.Microsecond)
	}
}
