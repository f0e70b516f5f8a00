package journal

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"fmt"
	"slices"
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

// came are the common names of the issuers that are kept of the client with a subject, in the order of the alphabet.
func came(t testing.TB, name, subject string) (string, error) {
	t.Helper()
	r := reader(t, name)
	chain, err := r.Certificates(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	c := clients(t, r)[subject]
	certs, err := chain(&c)
	var all []string
	for _, k := range certs[min(len(certs), 1):] {
		all = append(all, k.Subject.CommonName+" of "+k.Issuer.CommonName)
	}
	slices.Sort(all)
	return strings.Join(all, ", "), err
}

// by is s of a client that was verified by a chain.
func by(t testing.TB, s record.Sighting, chain ...*testpki.Cert) record.Sighting {
	t.Helper()
	certs := []*x509.Certificate{s.Presented[0]}
	for _, c := range chain {
		certs = append(certs, c.Cert)
	}
	id, err := identity.FromChain(certs)
	if err != nil {
		t.Fatal(err)
	}
	s.Identity = id
	return s
}

// TestCrossSigned shows that of a client with several ways to a CA all are kept that were verified.
func TestCrossSigned(t *testing.T) {
	one := testpki.New(t, testpki.Subject(pkix.Name{CommonName: "one"}))
	two := testpki.New(t, testpki.Subject(pkix.Name{CommonName: "two"}))
	ca := one.Intermediate("CA")
	cross := two.Intermediate("CA", testpki.KeyOf(ca))
	alice := ca.Client("alice")
	now := time.Now().Truncate(time.Microsecond).UTC()
	at := func(host string, after time.Duration) record.Sighting {
		s := sighting(alice, "10.0.0.1:1", host, reason.Completed, now.Add(after))
		s.Presented = append(s.Presented, cross.Cert)
		return s
	}
	const both = "CA of one, CA of two"
	for _, together := range []bool{true, false} {
		t.Run(fmt.Sprintf("in one batch %t", together), func(t *testing.T) {
			name := file(t)
			j := begin(t, Settings{File: name})
			seen := []record.Sighting{by(t, at("a.test", 0), ca, one), by(t, at("b.test", time.Hour), cross, two), by(t, at("b.test", 2*time.Hour), cross, two)}
			if together {
				flush(t, j, 1, func() {
					for _, s := range seen {
						j.Seen(s)
					}
				})
			} else {
				for _, s := range seen {
					flush(t, j, 1, func() { j.Seen(s) })
				}
			}
			if got, err := came(t, name, "CN=alice"); err != nil || got != both {
				t.Errorf("kept is %q, %v", got, err)
			}
			bare := by(t, at("b.test", 3*time.Hour), cross, two) // it sends nothing but its own certificate
			bare.Presented = bare.Presented[:1]
			flush(t, j, 1, func() { j.Seen(bare) })
			flush(t, j, 1, func() { j.Seen(at("c.test", 4*time.Hour)) })
			if got, err := came(t, name, "CN=alice"); err != nil || got != both {
				t.Errorf("after it came with less, kept is %q, %v", got, err)
			}
			list, _, err := reader(t, name).Issuers(context.Background(), now.Add(24*time.Hour), nil)
			if err != nil || len(list) != 3 {
				t.Fatalf("%v %+v", err, list)
			}
			for _, i := range list {
				if want := now; !together && i.Name == NameOf(one.Cert.RawSubject) && !i.Last.Equal(want) {
					t.Errorf("%s was used at %s last, found %s", i.Name, want, i.Last)
				}
			}
		})
	}
	t.Run("at one host alone", func(t *testing.T) {
		name := file(t)
		j := begin(t, Settings{File: name})
		s := at("a.test", 0)
		s.Presented = append(s.Presented, one.Client("junk").Cert, two.Cert)
		flush(t, j, 1, func() { j.Seen(by(t, s, ca, one)) })
		if got, err := came(t, name, "CN=alice"); err != nil || got != both+", two of two" {
			t.Errorf("kept is %q, %v", got, err)
		}
	})
	t.Run("more than anybody needs", func(t *testing.T) {
		name := file(t)
		j := begin(t, Settings{File: name})
		s := at("a.test", 0)
		for range maxLinked {
			s.Presented = append(s.Presented, two.Intermediate("CA", testpki.KeyOf(ca)).Cert)
		}
		flush(t, j, 1, func() { j.Seen(by(t, s, ca, one)) })
		if got, err := came(t, name, "CN=alice"); err == nil || !strings.Contains(err.Error(), "not kept") {
			t.Errorf("kept is %q, %v", got, err)
		}
	})
	t.Run("none where not all have room", func(t *testing.T) {
		name := file(t)
		j := begin(t, Settings{File: name})
		names := junkNames(60) // twelve KiB
		for i := range 4 {
			issuer := testpki.New(t, testpki.Subject(pkix.Name{CommonName: fmt.Sprint("root ", i)}))
			way := issuer.Intermediate("CA", testpki.KeyOf(ca), testpki.DNS(names...))
			s := at("a.test", time.Duration(i)*time.Hour)
			s.Presented = []*x509.Certificate{alice.Cert, way.Cert}
			flush(t, j, 1, func() { j.Seen(by(t, s, way, issuer)) })
		}
		if got, err := came(t, name, "CN=alice"); err == nil || !strings.Contains(err.Error(), "not kept") {
			t.Errorf("kept is %q, %v", got, err)
		}
	})
	t.Run("one that is too large is not forgotten for a smaller one", func(t *testing.T) {
		name := file(t)
		j := begin(t, Settings{File: name})
		large := two.Intermediate("CA", testpki.KeyOf(ca), testpki.DNS(junkNames(200)...))
		for i, way := range []*testpki.Cert{large, ca} {
			s := at("a.test", time.Duration(i)*time.Hour)
			s.Presented = []*x509.Certificate{alice.Cert, way.Cert}
			flush(t, j, 1, func() { j.Seen(by(t, s, way, map[bool]*testpki.Cert{true: two, false: one}[way == large])) })
			if got, err := came(t, name, "CN=alice"); err == nil || !strings.Contains(err.Error(), "not kept") {
				t.Errorf("kept is %q, %v", got, err)
			}
		}
	})
}

// TestUses shows what is kept of how a host was used.
func TestUses(t *testing.T) {
	root := testpki.New(t)
	alice := root.Client("alice")
	now := time.Now().Truncate(time.Microsecond).UTC()
	name := file(t)
	j := begin(t, Settings{File: name})
	see := func(host, version string, unnamed bool, after time.Duration) {
		s := trusted(t, root, sighting(alice, "10.0.0.1:1", host, reason.Completed, now.Add(after)))
		s.Version, s.Unnamed = version, unnamed
		j.Seen(s)
	}
	for batch := range 2 {
		flush(t, j, 1, func() {
			base := time.Duration(batch) * time.Hour
			see("a.test", "TLS 1.2", false, base)
			see("a.test", "TLS 1.2", false, base+time.Minute)
			see("a.test", "TLS 1.3", false, base+2*time.Minute)
			see("a.test", "TLS 1.3", true, base+3*time.Minute)
		})
	}
	a := clients(t, reader(t, name))["CN=alice"]
	if len(a.Hosts) != 2 || !a.Hosts[0].Unnamed || a.Hosts[0].Count != 2 || a.Hosts[0].CountTLS12 != 0 || !a.Hosts[0].LastTLS12.IsZero() {
		t.Fatalf("%+v", a.Hosts)
	}
	if h := a.Hosts[1]; h.Unnamed || h.Count != 6 || h.TLS != "TLS 1.3" || h.CountTLS12 != 4 || !h.LastTLS12.Equal(now.Add(61*time.Minute)) {
		t.Errorf("%+v", h)
	}
	if a.OtherHosts != 0 {
		t.Errorf("%d others", a.OtherHosts)
	}
	flush(t, j, 1, func() {
		for i := range 20 {
			for range 3 {
				see(fmt.Sprintf("h%d.test", i), "TLS 1.3", false, 2*time.Hour)
			}
		}
	})
	a = clients(t, reader(t, name))["CN=alice"]
	var kept int64
	for _, h := range a.Hosts {
		kept += h.Count
	}
	if len(a.Hosts) != maxHosts || kept+int64(a.OtherHosts) != a.Count || a.OtherHosts == 0 {
		t.Errorf("%d of %d uses are kept, and %d pushed out", kept, a.Count, a.OtherHosts)
	}
	flush(t, j, 1, func() {
		for i := range 20 {
			s := trusted(t, root, sighting(alice, fmt.Sprintf("10.1.%d.1:1", i), "h19.test", reason.Completed, now.Add(3*time.Hour)))
			j.Seen(s)
		}
	})
	a = clients(t, reader(t, name))["CN=alice"]
	kept = 0
	for _, n := range a.Networks {
		kept += n.Count
	}
	if kept+a.Others != a.Count {
		t.Errorf("%d of %d sightings are of networks that are kept, and %d of others", kept, a.Count, a.Others)
	}
	t.Run("16 with two versions", func(t *testing.T) {
		name := file(t)
		j := begin(t, Settings{File: name})
		flush(t, j, 1, func() {
			for i := range maxHosts {
				for _, version := range []string{"TLS 1.2", "TLS 1.3"} {
					s := trusted(t, root, sighting(alice, "10.0.0.1:1", fmt.Sprint(i), reason.Completed, now))
					s.Version = version
					j.Seen(s)
				}
			}
		})
		if a := clients(t, reader(t, name))["CN=alice"]; len(a.Hosts) != maxHosts || a.OtherHosts != 0 || a.Hosts[0].CountTLS12 != 1 || a.Hosts[0].Count != 2 {
			t.Errorf("%d others, %+v", a.OtherHosts, a.Hosts)
		}
	})
	t.Run("strangers", func(t *testing.T) {
		for _, asked := range []string{"", "api.test"} {
			h := refusal(alice, "r")
			h.Name = asked
			flush(t, j, 1, func() { j.Refused(h, now) })
		}
		var all []bool
		if err := reader(t, name).Strangers(context.Background(), func(s *Stranger) bool { all = append(all, s.Unnamed); return s.Count == 1 }); err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(all, func(a, b bool) int { return len(fmt.Sprint(b)) - len(fmt.Sprint(a)) })
		if !slices.Equal(all, []bool{false, true}) {
			t.Errorf("%v", all)
		}
	})
}

// TestClockRestart shows that what a wrong clock wrote is not taken for the time at the next start.
func TestClockRestart(t *testing.T) {
	name := file(t)
	j := begin(t, Settings{File: name})
	now := time.Now()
	flush(t, j, 1, func() { j.Refused(refusal(nil, "old"), now) })
	j.Close()
	ahead := now.AddDate(3, 0, 0)
	ctx := context.Background()
	for i := range 3 {
		w := &writer{j: New(nil), settings: Settings{File: name}.filled()}
		if !w.open(ctx, &w.settings, true) {
			t.Fatal("it does not open")
		}
		wrong := ahead.Add(time.Duration(i) * time.Minute)
		if err := w.write(ctx, &w.settings, &batch{events: []event{eventOf(ofHandshake(refusal(nil, "ahead"), wrong))}}); err != nil {
			t.Fatal(err)
		}
		if err := w.tidy(ctx, &w.settings, wrong); err != nil {
			t.Fatal(err)
		}
		w.shut()
		r := reader(t, name)
		if n := len(search(t, r, Query{Ref: "old"})); n != 1 {
			t.Fatalf("H14/start %d: %d are left", i+1, n)
		}
	}
}

// TestStrangersDoNotStop shows that whoever sends certificates by the thousand does not keep the smallest file from taking what comes.
func TestStrangersDoNotStop(t *testing.T) {
	root := testpki.New(t)
	name := file(t)
	j := begin(t, Settings{File: name, Bytes: MinBytes})
	fat := root.Client("guest", testpki.DNS(junkNames(25)...))
	now := time.Now()
	const most = 1500
	for i := 0; i < most; i += 300 {
		flush(t, j, 600, func() {
			for k := range 300 {
				h := refusal(nil, fmt.Sprint("guest ", i+k))
				h.Reason, h.Verdict, h.Proven = reason.NotVerified, reason.ClientCertUntrusted, true
				h.Presented = []*x509.Certificate{fat.Cert, fat.Cert, fat.Cert}
				j.Refused(h, now)
				c := *fat.Cert
				c.Raw = slices.Clone(c.Raw)
				c.Raw[len(c.Raw)-1], c.Raw[len(c.Raw)-2] = byte(i+k), byte((i+k)>>8) // another signature
				j.Seen(record.Sighting{Time: now, Presented: []*x509.Certificate{&c}, Client: "10.0.0.1:1", Listener: "public", Host: "h", Verdict: reason.NotVerified})
			}
		})
	}
	lost := testutil.ToFloat64(j.lost) // those that found no room in memory
	for i := 0; i < most; i += 300 {
		flush(t, j, 300, func() {
			for k := range 300 {
				h := refusal(fat, fmt.Sprint(i+k))
				h.Presented = []*x509.Certificate{fat.Cert, fat.Cert, fat.Cert}
				j.Refused(h, now)
			}
		})
	}
	if d, l := testutil.ToFloat64(j.dropped), testutil.ToFloat64(j.lost); d > 0 || l != lost || len(j.Conditions()) > 0 {
		t.Errorf("%v entries are dropped and %v clients lost: %+v", d, l-lost, j.Conditions())
	}
	j.Close()
	list := search(t, reader(t, name), Query{Reason: reason.ClientCertExpired.String(), Limit: 1000})
	if len(list) < 50 || list[0].Ref != fmt.Sprint(most-1) {
		t.Errorf("%d are kept", len(list))
	}
}

// TestBytesOfReasons shows that what has long stories does not push out what has short ones.
func TestBytesOfReasons(t *testing.T) {
	pki := testpki.New(t)
	fat := []*x509.Certificate{pki.Client("m", testpki.DNS(junkNames(40)...)).Cert}
	fat = append(fat, fat[0], fat[0], fat[0])
	name := file(t)
	j := begin(t, Settings{File: name, Bytes: 4 * MinBytes})
	const small = 400
	flush(t, j, small, func() {
		for i := range small {
			h := refusal(nil, fmt.Sprint("good ", i))
			h.Reason = reason.ClientCertRevoked
			j.Refused(h, time.Now())
		}
	})
	for range 8 {
		flush(t, j, 100, func() {
			for i := range 100 {
				h := refusal(nil, fmt.Sprint("bad ", i))
				h.Reason, h.Presented = reason.ClientCertUntrusted, fat
				for range 6 {
					h.Tried = append(h.Tried, trust.Tried{Chain: fat, Found: strings.Repeat("x", 256), Rule: reason.ClientCertUntrusted})
				}
				j.Refused(h, time.Now())
			}
		})
	}
	j.Close()
	tidied(t, name, 4*MinBytes, time.Now())
	r := reader(t, name)
	if n := len(search(t, r, Query{Reason: reason.ClientCertRevoked.String(), Limit: 1000})); n != small {
		t.Errorf("%d of %d are left", n, small)
	}
	if n := len(search(t, r, Query{Reason: reason.ClientCertUntrusted.String(), Limit: 1000})); n < 50 || n == 800 {
		t.Errorf("%d of those with long stories are left", n)
	}
}

// TestForeignRows shows that what somebody else wrote into the file is printable too, and ends no list.
func TestForeignRows(t *testing.T) {
	root := testpki.New(t)
	alice := root.Client("alice")
	name := file(t)
	j := begin(t, Settings{File: name})
	flush(t, j, 2, func() {
		j.Refused(refusal(alice, "good"), time.Now())
		j.Seen(trusted(t, root, sighting(alice, "10.0.0.1:1", "h", reason.Completed, time.Now())))
	})
	j.Close()
	db, err := store.Open(context.Background(), store.Options{Path: name, Schema: schema})
	if err != nil {
		t.Fatal(err)
	}
	const bad = "\x7f\u009b2J\u202e" // JSON takes these as they are
	err = db.Write(context.Background(), func(tx *sql.Tx) error {
		for _, s := range []string{
			`INSERT INTO verdicts SELECT 100, time, ref, kind, reason, address, sni, subject, issuer, serial, sha256, at_sha256 FROM verdicts`,
			`INSERT INTO stories VALUES (100, CAST('{"reason":"X","kind":"X","ref":"X","found":"X","tried":[{"subjects":["X"]}],"presented":[{"subject":"X","names":["X"]}],"tls":"X","client_auth":"X"}' AS BLOB))`,
			`INSERT INTO clients SELECT 'X', 'X', 'X', 'X', 1, 2, 3, last + 1, 5, 'X', 7, CAST('{"names":["X"],"hosts":[{"host":"X","listener":"X","tls":"X"}],"issuers":["X"],"networks":[{"network":"X"}]}' AS BLOB), leaf, others FROM clients`,
			`INSERT INTO clients SELECT 'Y', '', '', '', 1, 9000000000000000, 3, last + 2, 5, '', 7, CAST('{}' AS BLOB), leaf, others FROM clients WHERE sha256 <> 'X'`,
			`INSERT INTO clients SELECT 'Z', '', '', '', 1, 2, 3, last + 3, 5, '', 9000000000000000000, CAST('{}' AS BLOB), leaf, others FROM clients WHERE sha256 <> 'X' AND sha256 <> 'Y'`,
			`INSERT INTO strangers SELECT 'X', 'X', 'X', unnamed, 'X', last + 1, 1, chain FROM strangers`,
		} {
			s = strings.ReplaceAll(s, "X", bad)
			if _, err := tx.Exec(s); err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	r := reader(t, name)
	list := search(t, r, Query{})
	all := clients(t, r)
	var strange []Stranger
	if err := r.Strangers(context.Background(), func(s *Stranger) bool { strange = append(strange, *s); return true }); err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || len(all) != 2 || len(strange) != 2 {
		t.Errorf("%d entries, %d clients and %d strangers", len(list), len(all), len(strange))
	}
	if n, err := r.Unread(); n != 2 || err == nil {
		t.Errorf("%d were left out: %v", n, err)
	}
	text := fmt.Sprintf("%+v %+v", list, all)
	for _, s := range strange {
		text += s.SHA256 + s.Listener + s.Host + s.Version
	}
	if strings.ContainsAny(text, "\x7f\u009b\u202e") {
		t.Errorf("F13/%q", text)
	}
}

// TestMigrationChains shows what becomes of the chains of the version before.
func TestMigrationChains(t *testing.T) {
	root := testpki.New(t)
	ca := root.Intermediate("CA")
	alice, bob, carol, eve := ca.Client("alice"), ca.Client("bob"), ca.Client("carol"), ca.Client("eve")
	path := file(t)
	ctx := context.Background()
	old, err := store.Open(ctx, store.Options{Path: path, Schema: schema[:1], MaxBytes: MinBytes})
	if err != nil {
		t.Fatal(err)
	}
	of := func(certs ...*testpki.Cert) (ids []byte) {
		for _, c := range certs {
			id := sha256.Sum256(c.DER())
			ids = append(ids, id[:]...)
		}
		return ids
	}
	now := time.Now()
	err = old.Write(ctx, func(tx *sql.Tx) error {
		for _, c := range []*testpki.Cert{root, ca} {
			if _, err := tx.Exec("INSERT INTO certificates VALUES (?, ?, 1)", of(c), c.DER()); err != nil {
				return err
			}
		}
		for _, k := range []struct {
			c       *testpki.Cert
			verdict string
			others  []byte
		}{{alice, "accepted", of(ca, root)}, {bob, "client_no_longer_trusted", of(ca, root)}, {carol, "accepted", of(ca, bob)}, {eve, "client_cert_untrusted", of(ca)}} {
			_, err := tx.Exec("INSERT INTO clients VALUES (?, ?, 'CN=ca', '01', 1, 2, 3, ?, 5, ?, 7, x'7b7d', ?, ?)",
				fingerprint(k.c.Cert), name(k.c.Cert.RawSubject), now.UnixMicro(), k.verdict, k.c.DER(), k.others)
			if err != nil {
				return err
			}
		}
		_, err := tx.Exec("INSERT INTO strangers VALUES ('ab', 'public', 'h', 'TLS 1.3', ?, 1, ?)", now.UnixMicro(), eve.DER())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	old.Close()
	begin(t, Settings{File: path}).Close()
	two := fmt.Sprintf("CA of %s, %s of %[1]s", root.Cert.Subject.CommonName, root.Cert.Subject.CommonName)
	for _, subject := range []string{"CN=alice", "CN=bob"} {
		if got, err := came(t, path, subject); err != nil || got != two {
			t.Errorf("%s: kept is %q, %v", subject, got, err)
		}
	}
	if got, err := came(t, path, "CN=carol"); err == nil || !strings.Contains(err.Error(), "issuers that certificate") {
		t.Errorf("one of whose chain a part is gone: kept is %q, %v", got, err)
	}
	r := reader(t, path)
	if all := clients(t, r); all["CN=eve"].Verified || !all["CN=alice"].Verified || len(all) != 4 {
		t.Errorf("%+v", all)
	}
	n := 0
	if err := r.Strangers(ctx, func(*Stranger) bool { n++; return true }); err != nil || n != 1 {
		t.Errorf("%d strangers are left: %v", n, err)
	}
	j := begin(t, Settings{File: path})
	flush(t, j, 2, func() {
		for _, c := range []*testpki.Cert{alice, carol} {
			j.Seen(by(t, sighting(c, "10.0.0.1:1", "h", reason.Completed, now), ca, root))
		}
	})
	if got, err := came(t, path, "CN=carol"); err != nil || got != "CA of "+root.Cert.Subject.CommonName {
		t.Errorf("after it came again: kept is %q, %v", got, err)
	}
	if got, err := came(t, path, "CN=alice"); err != nil || got != two {
		t.Errorf("kept is %q, %v", got, err)
	}
}
