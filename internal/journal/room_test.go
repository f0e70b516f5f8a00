package journal

import (
	"context"
	"crypto/x509"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"countersign/internal/identity"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/store"
	"countersign/internal/testpki"
)

// flush has the writer write what give gave, so many entries and clients, and waits for that.
func flush(t testing.TB, j *Journal, n int, give func()) {
	t.Helper()
	done := func() int {
		return int(testutil.ToFloat64(j.clients) + testutil.ToFloat64(j.lost) + testutil.ToFloat64(j.records) + testutil.ToFloat64(j.dropped))
	}
	before := done()
	give()
	j.hurry()
	eventually(t, "it is taken", func() bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		return len(j.waiting.events)+len(j.waiting.seen) == 0
	})
	// The writer may have come in the middle of it, and have written a part. Who has received the first of two more wakes is
	// through with all that was taken.
	j.wake <- struct{}{}
	j.wake <- struct{}{}
	eventually(t, "it is written", func() bool { return done() >= before+n })
}

func junkNames(n int) (list []string) {
	for i := range n {
		list = append(list, strings.Repeat(strings.Repeat("a", 60)+".", 3)+fmt.Sprintf("x%d.test", i))
	}
	return list
}

// tidied has a journal of the file tidy it, at a time.
func tidied(t testing.TB, name string, bytes int64, at time.Time) {
	t.Helper()
	w := &writer{j: New(nil), settings: Settings{File: name, Bytes: bytes}.filled()}
	if !w.open(context.Background(), &w.settings, true) {
		t.Fatal("it does not open")
	}
	defer w.shut()
	w.clock = clock{}
	if err := w.tidy(context.Background(), &w.settings, at); err != nil {
		t.Fatal(err)
	}
}

// many are clients of root.
func many(root *testpki.Cert, n int) (all []*testpki.Cert) {
	for i := range n {
		all = append(all, root.Client(fmt.Sprintf("client %d", i)))
	}
	return all
}

// TestPresentedJunk shows that what a client sends besides its chain is not kept, whoever it is.
func TestPresentedJunk(t *testing.T) {
	root := testpki.New(t)
	ca := root.Intermediate("CA")
	name := file(t)
	j := begin(t, Settings{File: name, Bytes: MinBytes})
	mallory, eve := ca.Client("mallory"), root.Client("eve")
	flush(t, j, 40, func() {
		for i := range 20 {
			j.Seen(trusted(t, root, sighting(ca.Client(fmt.Sprintf("good %d", i)), "10.0.0.1:1", "h", reason.Completed, time.Now())))
			j.Refused(refusal(nil, fmt.Sprintf("%016x", i)), time.Now())
		}
	})
	names := junkNames(50)
	var s record.Sighting
	for i := range 40 {
		var junk []*x509.Certificate
		for range 2 {
			junk = append(junk, root.Client(fmt.Sprintf("junk %d", i), testpki.DNS(names...)).Cert)
		}
		flush(t, j, 2, func() {
			s = trusted(t, root, sighting(mallory, "10.0.0.2:1", "h", reason.Completed, time.Now()))
			s.Presented = append([]*x509.Certificate{s.Presented[0], junk[0], s.Presented[1]}, junk...)
			j.Seen(s)
			s := sighting(eve, "10.0.0.2:1", "h", reason.NotVerified, time.Now())
			s.Presented = append(s.Presented, junk...)
			j.Seen(s)
		})
	}
	j.Close()
	tidied(t, name, MinBytes, time.Now())
	r := reader(t, name)
	all := clients(t, r)
	if n := len(search(t, r, Query{})); len(all) != 22 || n != 20 {
		t.Errorf("%d clients and %d verdicts are left", len(all), n)
	}
	chain, err := r.Certificates(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for subject, want := range map[string][]*x509.Certificate{"CN=mallory": {mallory.Cert, ca.Cert}, "CN=eve": {eve.Cert}} {
		c := all[subject]
		got, err := chain(&c)
		if err != nil || len(got) != len(want) {
			t.Fatalf("%s: %d certificates are kept: %v", subject, len(got), err)
		}
		for i := range want {
			if !got[i].Equal(want[i]) {
				t.Errorf("%s: certificate %d is another", subject, i)
			}
		}
	}
	var chains int
	if err := r.row(context.Background(), []any{&chains}, "SELECT count(*) FROM chains"); err != nil || chains != 1 {
		t.Errorf("%d chains are kept: %v", chains, err)
	}
}

// TestChains shows that a chain is kept as long as a client has it.
func TestChains(t *testing.T) {
	root := testpki.New(t)
	one := root.Intermediate("One")
	alice, bob := one.Client("alice"), one.Client("bob")
	name := file(t)
	j := begin(t, Settings{File: name})
	kept := func(want string) {
		t.Helper()
		r := reader(t, name)
		defer r.Close()
		rows, err := r.db.Query(context.Background(), "SELECT der, clients FROM chains")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		var got []string
		for rows.Next() {
			var der []byte
			var n int
			if err := rows.Scan(&der, &n); err != nil {
				t.Fatal(err)
			}
			chain, err := x509.ParseCertificates(der)
			if err != nil {
				t.Fatal(err)
			}
			text := ""
			for _, c := range chain {
				text += c.Subject.CommonName + " "
			}
			got = append(got, fmt.Sprint(text, n))
		}
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("kept are %q, want %q", text, want)
		}
	}
	now := time.Now()
	flush(t, j, 1, func() { j.Seen(trusted(t, root, sighting(alice, "10.0.0.1:1", "h", reason.Completed, now))) })
	kept("One 1")
	flush(t, j, 1, func() { j.Seen(trusted(t, root, sighting(bob, "10.0.0.1:1", "h", reason.Completed, now))) })
	kept("One 2")
	flush(t, j, 1, func() { j.Seen(sighting(bob, "10.0.0.1:1", "h", reason.NotVerified, now.Add(time.Hour))) })
	kept("One 2")
	// The certificate stays, and comes by another way.
	s := sighting(bob, "10.0.0.1:1", "h", reason.Completed, now.Add(2*time.Hour))
	cross := root.Intermediate("One", testpki.KeyOf(one))
	s.Presented[1] = cross.Cert
	flush(t, j, 1, func() { j.Seen(trusted(t, root, s)) })
	kept("One 1, One One 1")
	j.Close()
	tidied(t, name, 0, now.Add(forgetAfter+time.Hour))
	kept("One One 1")
}

// TestShares shows that verdicts and clients do not push out each other, and that what is new always finds room.
func TestShares(t *testing.T) {
	root := testpki.New(t)
	crowd := many(root, 900)
	now := time.Now()
	long := strings.Repeat("x", maxText)
	seen := func(j *Journal, from, to int) {
		flush(t, j, to-from, func() {
			for i, c := range crowd[from:to] {
				j.Seen(trusted(t, root, sighting(c, "10.0.0.1:1", "h", reason.Completed, now.Add(time.Duration(from+i)*time.Millisecond))))
			}
		})
	}
	refused := func(j *Journal, n int) {
		flush(t, j, n, func() {
			for i := range n {
				h := refusal(nil, fmt.Sprint(i))
				h.Expected, h.Found, h.Detail = long, long, long
				j.Refused(h, now)
			}
		})
	}
	count := func(name string) (c, v int) {
		r := reader(t, name)
		defer r.Close()
		for what, n := range map[string]*int{"clients": &c, "verdicts": &v} {
			if err := r.row(context.Background(), []any{n}, "SELECT count(*) FROM "+what); err != nil {
				t.Fatal(err)
			}
		}
		return c, v
	}
	allTaken := func(j *Journal) {
		t.Helper()
		if d, l := testutil.ToFloat64(j.dropped), testutil.ToFloat64(j.lost); d+l > 0 || len(j.Conditions()) > 0 {
			t.Errorf("%v verdicts and %v clients found no room: %+v", d, l, j.Conditions())
		}
	}
	t.Run("clients do not push out verdicts", func(t *testing.T) {
		name := file(t)
		j := begin(t, Settings{File: name, Bytes: MinBytes})
		refused(j, 50)
		for i := 0; i < len(crowd); i += 150 {
			seen(j, i, i+150)
		}
		j.Close()
		tidied(t, name, MinBytes, time.Now())
		if c, v := count(name); v != 50 || c < 100 || c == len(crowd) {
			t.Errorf("%d clients and %d of 50 verdicts are left", c, v)
		}
		allTaken(j)
	})
	t.Run("verdicts do not push out clients", func(t *testing.T) {
		name := file(t)
		j := begin(t, Settings{File: name, Bytes: MinBytes})
		seen(j, 0, 60)
		for range 4 {
			refused(j, 300)
		}
		j.Close()
		tidied(t, name, MinBytes, time.Now())
		if c, v := count(name); c != 60 || v < 100 {
			t.Errorf("%d of 60 clients and %d verdicts are left", c, v)
		}
		allTaken(j)
		r := reader(t, name)
		if list := search(t, r, Query{Limit: 1}); len(list) != 1 || list[0].Ref != "299" {
			t.Errorf("the last one is not there: %+v", list)
		}
	})
	t.Run("a full file has room for both", func(t *testing.T) {
		name := file(t)
		j := begin(t, Settings{File: name, Bytes: MinBytes})
		for i := 0; i < len(crowd); i += 300 {
			seen(j, i, i+300)
			refused(j, 300)
		}
		j.Close()
		c, v := count(name)
		if c < 60 || v < 60 {
			t.Errorf("%d clients and %d verdicts are left", c, v)
		}
		allTaken(j)
		if info, err := os.Stat(name); err != nil || info.Size() > MinBytes {
			t.Errorf("H12/%v %v", info.Size(), err)
		}
		r := reader(t, name)
		if last := clients(t, r); last["CN=client 899"].Count != 1 || last["CN=client 0"].Count != 0 {
			t.Error("those seen last are not left")
		}
	})
}

// TestGuests shows that those who were not verified push out nobody.
func TestGuests(t *testing.T) {
	root := testpki.New(t)
	now := time.Now()
	name := file(t)
	j := begin(t, Settings{File: name, Bytes: MinBytes})
	crowd := many(root, 300)
	alice := root.Client("alice")
	flush(t, j, 301, func() {
		j.Seen(sighting(alice, "10.0.0.1:1", "h", reason.NotVerified, now.Add(-time.Hour)))
		for _, c := range crowd {
			j.Seen(trusted(t, root, sighting(c, "10.0.0.1:1", "h", reason.Completed, now.Add(-time.Hour))))
		}
	})
	r := reader(t, name)
	before := len(clients(t, r))
	if before < 200 {
		t.Fatalf("%d are kept", before)
	}
	names := junkNames(10)
	for i := range 20 {
		flush(t, j, 20, func() {
			for k := range 20 {
				j.Seen(sighting(root.Client(fmt.Sprintf("guest %d", 20*i+k), testpki.DNS(names...)), "10.0.0.1:1", "h", reason.NotVerified, now))
			}
		})
	}
	j.Close()
	tidied(t, name, MinBytes, time.Now())
	guests, others := 0, 0
	for subject := range clients(t, r) {
		if strings.HasPrefix(subject, "CN=guest ") {
			guests++
		} else if subject != "CN=alice" {
			others++
		}
	}
	if others != before-1 || guests < 5 || guests > 100 {
		t.Errorf("%d of %d clients and %d guests are left", others, before-1, guests)
	}
	t.Run("one that is verified later", func(t *testing.T) {
		name := file(t)
		j := begin(t, Settings{File: name})
		flush(t, j, 1, func() { j.Seen(sighting(alice, "10.0.0.1:1", "a.test", reason.NotVerified, now.Add(-time.Hour))) })
		if a := clients(t, reader(t, name))["CN=alice"]; a.Count != 1 || a.Verified || len(a.Issuers) != 0 {
			t.Errorf("%+v", a)
		}
		flush(t, j, 1, func() { j.Seen(trusted(t, root, sighting(alice, "10.0.0.1:1", "b.test", reason.Completed, now))) })
		flush(t, j, 1, func() { j.Seen(sighting(alice, "10.0.0.1:1", "a.test", reason.NotVerified, now.Add(time.Minute))) })
		r := reader(t, name)
		all := clients(t, r)
		if a := all["CN=alice"]; len(all) != 1 || a.Count != 3 || !a.First.Equal(now.Add(-time.Hour).Truncate(time.Microsecond)) || len(a.Hosts) != 2 || a.Verdict != "not_verified" || len(a.Issuers) != 1 || !a.Verified {
			t.Errorf("%d clients, %+v", len(all), a)
		}
		var n int
		if err := r.row(context.Background(), []any{&n}, "SELECT count(*) FROM guests"); err != nil || n != 0 {
			t.Error(n, err)
		}
	})
	t.Run("those that wait", func(t *testing.T) {
		j, _ := stuck(t)
		big := root.Client("big", testpki.DNS(junkNames(100)...))
		for i := range 1000 {
			c := *big.Cert
			c.Raw = append(c.Raw[:len(c.Raw):len(c.Raw)], byte(i), byte(i>>8))
			j.Seen(record.Sighting{Time: now, Presented: []*x509.Certificate{&c}, Verdict: reason.NotVerified})
		}
		lost := testutil.ToFloat64(j.lost)
		for _, c := range crowd {
			j.Seen(trusted(t, root, sighting(c, "10.0.0.1:1", "h", reason.Completed, now)))
		}
		if lost == 0 || testutil.ToFloat64(j.lost) != lost {
			t.Errorf("%v guests are lost, and then %v others", lost, testutil.ToFloat64(j.lost)-lost)
		}
	})
}

// stuck is a journal whose file cannot be opened, and the file.
func stuck(t testing.TB) (*Journal, string) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "state"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	name := FileIn(filepath.Join(dir, "state"))
	return begin(t, Settings{File: name}), name
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestMemory shows what waits while the file cannot be written, whatever clients send.
func TestMemory(t *testing.T) {
	root := testpki.New(t)
	big := root.Client("junk", testpki.DNS(junkNames(150)...))
	fresh := func(i int) []*x509.Certificate { // as crypto/tls would have parsed another one of this size
		c, err := x509.ParseCertificate(append([]byte(nil), big.Cert.Raw...))
		if err != nil {
			t.Fatal(err)
		}
		c.Raw = append(c.Raw, byte(i), byte(i>>8))
		return []*x509.Certificate{c}
	}
	for what, give := range map[string]func(*Journal, int){
		"requests": func(j *Journal, i int) {
			j.Denied(&record.Request{Serial: uint64(i), Presented: fresh(i), Reason: reason.PolicyDenied, Start: time.Now()}, "r", nil, time.Now())
		},
		"handshakes": func(j *Journal, i int) {
			j.Refused(&record.Handshake{Presented: fresh(i), Host: "h", Reason: reason.ClientCertUntrusted}, time.Now())
		},
		"server names": func(j *Journal, _ int) {
			j.Refused(&record.Handshake{SNI: strings.Repeat("\x01", 60000), Reason: reason.SNIInvalid}, time.Now())
		},
		"guests": func(j *Journal, i int) {
			j.Seen(record.Sighting{Time: time.Now(), Presented: fresh(i), Client: "10.0.0.1:1", Listener: "l", Host: "h", Verdict: reason.ClientCertUntrusted})
		},
		"clients": func(j *Journal, i int) {
			s := record.Sighting{Time: time.Now(), Presented: fresh(i), Client: "10.0.0.1:1", Listener: "l", Host: "h", Verdict: reason.Completed}
			id, err := identity.FromChain(append(s.Presented, root.Cert))
			if err != nil {
				t.Fatal(err)
			}
			s.Identity = id
			j.Seen(s)
		},
		"hosts": func(j *Journal, i int) {
			j.Seen(trusted(t, root, sighting(big, fmt.Sprintf("10.0.%d.1:1", i%256), strings.Repeat("h", 200)+fmt.Sprint(i), reason.Completed, time.Now())))
		},
	} {
		t.Run(what, func(t *testing.T) {
			j, _ := stuck(t)
			before := heap()
			for i := range 2000 {
				give(j, i)
			}
			if grown := int64(heap()) - int64(before); grown > maxWaitingBytes+4<<20 {
				t.Errorf("H12/%d MiB are held, %d are counted", grown>>20, (j.waiting.bytes+j.waiting.seenBytes)>>20)
			}
		})
	}
}

// TestReplaced shows that a writer whose disk has stopped does not touch what comes after a reload.
func TestReplaced(t *testing.T) {
	for _, same := range []bool{true, false} {
		t.Run(fmt.Sprintf("the same file %t", same), func(t *testing.T) {
			one := file(t)
			two := Settings{File: one, Bytes: 2 * MinBytes}
			if !same {
				two.File = file(t)
			}
			j := patient()
			j.closing = 50 * time.Millisecond
			entered, free := make(chan struct{}), make(chan struct{})
			first := true
			j.writeHook = func() {
				if first {
					first = false
					close(entered)
					<-free
				}
			}
			j.Use(&Settings{File: one, Bytes: MinBytes})
			j.Refused(refusal(nil, "stuck"), time.Now())
			<-entered
			j.Refused(refusal(nil, "waits"), time.Now())
			j.mu.Lock()
			old := j.writer
			j.mu.Unlock()
			j.Use(&two)
			j.closing = 2 * time.Minute
			j.Refused(refusal(nil, "new"), time.Now())
			close(free)
			<-old.done
			eventually(t, "the new one writes", func() bool { return testutil.ToFloat64(j.records) == 3 })
			if c := j.Conditions(); len(c) != 0 {
				t.Errorf("%+v", c)
			}
			j.Close()
			for ref, name := range map[string]string{"stuck": one, "waits": one, "new": two.File} {
				if len(search(t, reader(t, name), Query{Ref: ref})) != 1 {
					t.Errorf("%s is not where it belongs", ref)
				}
			}
			if d := testutil.ToFloat64(j.dropped); d != 0 {
				t.Errorf("%v are dropped", d)
			}
		})
	}
	t.Run("it has no conditions", func(t *testing.T) {
		j := New(slog.New(slog.DiscardHandler))
		w := &writer{j: j}
		w.condition(Failing, "nothing is kept")
		w.crowds([]Condition{{Code: ManyNetworks}})
		if c := j.Conditions(); len(c) != 0 {
			t.Errorf("%+v", c)
		}
	})
	t.Run("its conditions end with it", func(t *testing.T) {
		j, _ := stuck(t)
		eventually(t, "a condition", func() bool { return len(j.Conditions()) == 1 })
		j.Close()
		if c := j.Conditions(); len(c) != 0 {
			t.Errorf("%+v", c)
		}
	})
}

// TestSightingPanics shows that a bug in one sighting does not hold up the next.
func TestSightingPanics(t *testing.T) {
	root := testpki.New(t)
	name := file(t)
	j := begin(t, Settings{File: name})
	func() {
		defer func() {
			if recover() == nil {
				t.Error("expected a panic")
			}
		}()
		s := sighting(root.Client("alice"), "10.0.0.1:1", "h", reason.Completed, time.Now())
		s.Identity = new(identity.Identity)
		j.Seen(s)
	}()
	j.Seen(trusted(t, root, sighting(root.Client("bob"), "10.0.0.1:1", "h", reason.Completed, time.Now())))
	j.Close()
	if all := clients(t, reader(t, name)); all["CN=bob"].Count != 1 {
		t.Errorf("F16/%+v", all)
	}
}

// TestMigration shows that a file of the version before goes on, full or not.
func TestMigration(t *testing.T) {
	for _, full := range []bool{false, true} {
		t.Run(fmt.Sprintf("H26/full %t", full), func(t *testing.T) {
			name := file(t)
			pki := testpki.New(t)
			alice := pki.Client("alice")
			ctx := context.Background()
			old, err := store.Open(ctx, store.Options{Path: name, Schema: schema[:1], MaxBytes: MinBytes})
			if err != nil {
				t.Fatal(err)
			}
			e := eventOf(ofHandshake(refusal(alice, "old"), time.Now()))
			err = old.Write(ctx, func(tx *sql.Tx) error {
				if _, err := tx.Exec("INSERT INTO certificates VALUES (?, ?, 1)", make([]byte, 32), pki.DER()); err != nil {
					return err
				}
				_, err := tx.Exec("INSERT INTO clients VALUES (?, 'CN=alice', 'CN=ca', '01', 1, 2, 3, ?, 5, 'accepted', 7, x'7b7d', ?, ?)",
					fingerprint(alice.Cert), time.Now().UnixMicro(), alice.DER(), make([]byte, 32))
				if err != nil {
					return err
				}
				return insert(ctx, tx, []event{e})
			})
			for err == nil && full {
				err = old.Write(ctx, func(tx *sql.Tx) error { return insert(ctx, tx, []event{e}) })
			}
			if full != store.Full(err) || !full && err != nil {
				t.Fatal(err)
			}
			old.Close()
			j := begin(t, Settings{File: name, Bytes: MinBytes})
			flush(t, j, 1, func() { j.Refused(refusal(alice, "new"), time.Now()) })
			flush(t, j, 1, func() { j.Seen(trusted(t, pki, sighting(alice, "10.0.0.1:1", "h", reason.Completed, time.Now()))) })
			j.Close()
			r := reader(t, name)
			if list := search(t, r, Query{}); len(list) < 2 || list[0].Ref != "new" || list[1].Ref != "old" {
				t.Errorf("%+v", list)
			}
			if a := clients(t, r)["CN=alice"]; a.Count != 6 {
				t.Errorf("%+v", a)
			}
			if d := testutil.ToFloat64(j.dropped); d != 0 {
				t.Errorf("%v are dropped", d)
			}
		})
	}
}

// TestTooOldAtOnce: however many entries are too old, a transaction removes maxAtOnce of them, the oldest, and the next the rest.
func TestTooOldAtOnce(t *testing.T) {
	ctx, name := context.Background(), file(t)
	w := &writer{j: New(nil), settings: Settings{File: name}.filled()}
	if !w.open(ctx, &w.settings, true) {
		t.Fatal("it does not open")
	}
	defer w.shut()
	if err := w.fewerVerdicts(ctx, 5); err != nil {
		t.Errorf("nothing to remove: %v", err)
	}
	now := time.Now()
	err := w.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < ?)
			INSERT INTO verdicts SELECT i, i, '', '', 'x', '', '', '', '', '', '', '' FROM n`, maxAtOnce+10)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	w.clock = clock{}
	for _, want := range []int{10, 0} {
		if err := w.tidy(ctx, &w.settings, now); err != nil || w.rows != want {
			t.Errorf("%d are left, expected %d: %v", w.rows, want, err)
		}
	}
}
