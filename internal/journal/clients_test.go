package journal

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/internal/identity"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/testpki"
)

func clients(t testing.TB, r *Reader) map[string]Client {
	t.Helper()
	all := make(map[string]Client)
	if err := r.Clients(context.Background(), func(c *Client) bool { all[c.Subject] = *c; return true }); err != nil {
		t.Fatal(err)
	}
	return all
}

func sighting(c *testpki.Cert, from, host string, why reason.Reason, at time.Time) record.Sighting {
	return record.Sighting{Time: at, Presented: c.Presented(), Client: from, Listener: "public", Host: host, Version: "TLS 1.3", Verdict: why}
}

// trusted is s of a client whose chain, with root, was verified.
func trusted(t testing.TB, root *testpki.Cert, s record.Sighting) record.Sighting {
	t.Helper()
	id, err := identity.FromChain(append(s.Presented[:len(s.Presented):len(s.Presented)], root.Cert))
	if err != nil {
		t.Fatal(err)
	}
	s.Identity = id
	return s
}

func TestInventory(t *testing.T) {
	root := testpki.New(t)
	ca := root.Intermediate("CA")
	alice, bob := ca.Client("alice", testpki.URI("spiffe://a.test/alice")), ca.Client("bob")
	name, start := file(t), time.Now().Add(-time.Hour).Truncate(time.Microsecond).UTC()
	j := begin(t, Settings{File: name})
	j.Seen(record.Sighting{Time: start}) // no certificate is no client
	for i := range 40 {
		j.Seen(trusted(t, root, sighting(alice, fmt.Sprintf("10.0.%d.1:99", i%20), fmt.Sprintf("h%d.test", i%20), reason.Completed, start.Add(time.Duration(i)*time.Second))))
	}
	j.Seen(sighting(alice, "[2001:db8:1:2::3%eth0]:99", "h1.test", reason.ClientCertRevoked, start.Add(time.Minute)))
	j.Seen(record.Sighting{Time: start.Add(2 * time.Minute), Presented: alice.Presented(), Verdict: reason.ClientNoLongerTrusted, Again: true})
	j.Close()
	j = begin(t, Settings{File: name}) // what was there before is added to
	j.Seen(trusted(t, root, sighting(alice, "10.9.9.9:1", "late.test", reason.Completed, start.Add(3*time.Minute))))
	j.Seen(sighting(bob, "no address", "", reason.NotVerified, start))
	j.Close()

	r := reader(t, name)
	all := clients(t, r)
	a, b := all["CN=alice"], all["CN=bob"]
	if len(all) != 2 || a.Count != 42 || !a.First.Equal(start) || !a.Last.Equal(start.Add(3*time.Minute)) || a.Verdict != Accepted || !a.VerdictAt.Equal(a.Last) {
		t.Errorf("%d clients, %+v", len(all), a)
	}
	if !slices.Equal(a.EKU, []string{"clientAuth"}) || !slices.Equal(a.Names, []string{"uri:spiffe://a.test/alice"}) || a.Issuer != "CN=CA" || len(a.Issuers) != 2 || a.SHA256 != fingerprint(alice.Cert) {
		t.Errorf("%+v", a)
	}
	if len(a.Networks) != maxNetworks || a.Networks[0].Network != "10.9.9.0/24" || a.Spread() != maxNetworks {
		t.Errorf("%d networks: %+v", len(a.Networks), a.Networks)
	}
	if len(a.Hosts) != maxHosts || a.Hosts[0].Host != "late.test" || a.Hosts[0].Listener != "public" || a.Hosts[0].TLS != "TLS 1.3" {
		t.Errorf("%d hosts: %+v", len(a.Hosts), a.Hosts)
	}
	if b.Count != 1 || b.Verdict != "not_verified" || b.Networks != nil || b.Hosts != nil {
		t.Errorf("%+v", b)
	}
	if a.Expiring(time.Hour, start) || !a.Expiring(48*time.Hour, time.Now()) || a.Expiring(48*time.Hour, time.Now().Add(inUse+time.Hour)) {
		t.Error("expiring and still in use")
	}
	chain, err := r.Certificates(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := chain(&a); err != nil || len(got) != 2 || !got[0].Equal(alice.Cert) || !got[1].Equal(ca.Cert) {
		t.Errorf("%v %v", got, err)
	}
	if text, err := json.Marshal(a); err != nil || !strings.Contains(string(text), `"networks":[`) || !strings.Contains(string(text), `"eku":["clientAuth"]`) || strings.Contains(string(text), "leaf") {
		t.Errorf("%v %s", err, text)
	}
	t.Run("issuers", func(t *testing.T) {
		list, from, err := r.Issuers(context.Background(), time.Now().Add(-30*time.Minute), map[string][]string{"CN=CA": {"b", "a"}, "CN=Idle": {"a"}, NameOf(root.Cert.RawSubject): {"a"}})
		if err != nil || !from.Equal(start) || len(list) != 3 || list[0].Name != "CN=Idle" || !list[0].Last.IsZero() || list[0].Clients != 0 {
			t.Fatalf("%v %v %+v", err, from, list)
		}
		// bob was not verified: anybody can name a CA.
		if i := slices.IndexFunc(list, func(i Issuer) bool { return i.Name == "CN=CA" }); i < 0 || list[i].Clients != 1 || list[i].LastClient != "CN=alice" || !slices.Equal(list[i].Stores, []string{"a", "b"}) {
			t.Errorf("%+v", list)
		}
		if list, _, _ := r.Issuers(context.Background(), start.Add(-time.Minute), map[string][]string{"CN=CA": nil}); len(list) != 0 {
			t.Errorf("those in use are told: %+v", list)
		}
	})
}

func TestInventoryBounds(t *testing.T) {
	root := testpki.New(t)
	t.Run("large chain", func(t *testing.T) {
		var long []string
		for i := range 1200 {
			long = append(long, fmt.Sprintf("name-%d.long.example.test", i))
		}
		ca := root.Intermediate("Large", testpki.DNS(long...))
		name := file(t)
		j := begin(t, Settings{File: name})
		j.Seen(trusted(t, root, sighting(ca.Client("alice"), "10.0.0.1:1", "h", reason.Completed, time.Now())))
		j.Seen(trusted(t, root, sighting(root.Client("large", testpki.DNS(long...)), "10.0.0.1:1", "h", reason.Completed, time.Now())))
		j.Seen(sighting(root.Client("guest", testpki.DNS(long[:400]...)), "10.0.0.1:1", "h", reason.NotVerified, time.Now()))
		j.Close()
		r := reader(t, name)
		chain, err := r.Certificates(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		all := clients(t, r)
		for subject, want := range map[string]int{"CN=alice": 0, "CN=large": 0, "CN=guest": 0} {
			c := all[subject]
			if got, err := chain(&c); len(got) != want || (want == 0) == (err == nil) {
				t.Errorf("%s: %d certificates of a chain that is too large are kept: %v", subject, len(got), err)
			}
		}
	})
	t.Run("stale clients", func(t *testing.T) {
		name := file(t)
		j := begin(t, Settings{File: name})
		j.Seen(sighting(root.Client("old"), "10.0.0.1:1", "h", reason.Completed, time.Now().Add(-forgetAfter-time.Hour)))
		j.Close()
		j = begin(t, Settings{File: name})
		j.Seen(sighting(root.Client("new"), "10.0.0.1:1", "h", reason.Completed, time.Now()))
		r := reader(t, name)
		eventually(t, "the old one is forgotten", func() bool {
			all := clients(t, r)
			return len(all) == 1 && all["CN=new"].Count == 1
		})
	})
}

func TestManyNetworks(t *testing.T) {
	alice, bob := testpki.New(t).Client("alice \x1b"), testpki.New(t).Client("bob")
	var s spread
	now := time.Now()
	seen := func(c *testpki.Cert, at time.Time, networks ...int) map[[32]byte]*sighted {
		k := &sighted{subject: name(c.Cert.RawSubject), verified: true}
		for _, n := range networks {
			k.note(&record.Sighting{Time: at, Client: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n), 1}), 9).String()}, true)
			k.note(&record.Sighting{Time: at, Client: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n), 200}), 9).String()}, true)
		}
		return map[[32]byte]*sighted{[32]byte(c.Cert.Raw[:32]): k}
	}
	if list := s.look(seen(alice, now, 1, 2), 3, now); len(list) != 0 {
		t.Errorf("two networks: %+v", list)
	}
	list := s.look(seen(alice, now.Add(time.Minute), 3), 3, now.Add(time.Minute))
	if len(list) != 1 || list[0].Code != ManyNetworks || !strings.Contains(list[0].Text, "from 3 networks") || strings.Contains(list[0].Text, "\x1b") {
		t.Errorf("three networks: %+v", list)
	}
	if list := s.look(seen(bob, now, 1, 2), 3, now.Add(time.Minute)); len(list) != 1 {
		t.Errorf("another certificate: %+v", list)
	}
	if list := s.look(nil, 3, now.Add(manyWindow+30*time.Second)); len(list) != 0 || len(s.of) != 1 {
		t.Errorf("one after the other is not at once: %+v, %d", list, len(s.of))
	}
	if s.look(nil, 3, now.Add(3*manyWindow)); len(s.of) != 0 {
		t.Errorf("%d certificates are watched that nobody uses", len(s.of))
	}
	crowded := map[[32]byte]*sighted{}
	for i := range maxCrowds + 5 {
		for _, k := range seen(alice, now, 1, 2, 3) {
			crowded[[32]byte{byte(i)}] = k
		}
	}
	if list = s.look(crowded, 3, now); len(list) != maxCrowds || !strings.HasSuffix(list[maxCrowds-1].Text, "(and 5 more certificates)") {
		t.Errorf("%d conditions", len(list))
	}
	t.Run("those that were not verified leave room for the others", func(t *testing.T) {
		var s spread
		flood := map[[32]byte]*sighted{}
		for i := range maxSpread {
			for _, k := range seen(bob, now, 1) {
				k.verified = false
				flood[[32]byte{byte(i), byte(i >> 8)}] = k
			}
		}
		s.look(flood, 3, now)
		if list := s.look(seen(alice, now, 1, 2, 3), 3, now); len(list) != 1 || len(s.of) != maxStray+1 {
			t.Errorf("%+v, %d are watched", list, len(s.of))
		}
		if s.look(nil, 3, now.Add(2*manyWindow)); len(s.of) != 0 || s.stray != 0 {
			t.Errorf("%d and %d are left", len(s.of), s.stray)
		}
	})
	t.Run("reaches the operator", func(t *testing.T) {
		j := begin(t, Settings{File: file(t), Networks: 2})
		for i := range 3 {
			j.Seen(sighting(bob, fmt.Sprintf("10.0.%d.1:9", i), "h", reason.Completed, time.Now()))
		}
		eventually(t, "a condition", func() bool {
			c := j.Conditions()
			return len(c) == 1 && c[0].Code == ManyNetworks && strings.Contains(c[0].Text, "CN=bob")
		})
		since := j.Conditions()[0].Since
		j.Seen(sighting(bob, "10.0.7.1:9", "h", reason.Completed, time.Now()))
		eventually(t, "it is told anew", func() bool {
			c := j.Conditions()
			return len(c) == 1 && strings.Contains(c[0].Text, "from 4 networks") && c[0].Since.Equal(since)
		})
	})
}

// TestStrangers shows that those whose key is not proven have a place of their own, and a small one.
func TestStrangers(t *testing.T) {
	root := testpki.New(t)
	ca := root.Intermediate("CA")
	alice := ca.Client("alice")
	name, start := file(t), time.Now().Add(-time.Hour)
	j := begin(t, Settings{File: name, Bytes: MinBytes})
	most := int(MinBytes / 10 / maxStranger)
	for i := range 4 * most {
		j.Refused(refusal(root.Client(fmt.Sprint("scan ", i)), "r"), start.Add(time.Duration(i)*time.Second))
	}
	for range 3 {
		h := refusal(alice, "r")
		h.Version = "TLS 1.2"
		j.Refused(h, start.Add(time.Hour))
	}
	h := refusal(root.Client("proven"), "r")
	h.Proven = true
	j.Refused(h, start.Add(time.Hour))
	h = refusal(root.Client("nowhere"), "r")
	h.Host = ""
	j.Refused(h, start.Add(time.Hour))
	var long []string
	for i := range 800 {
		long = append(long, fmt.Sprintf("name-%d.long.example.test", i))
	}
	j.Refused(refusal(root.Client("large", testpki.DNS(long...)), "r"), start.Add(time.Hour))
	j.Close()
	var all []Stranger
	if err := reader(t, name).Strangers(context.Background(), func(s *Stranger) bool { all = append(all, *s); return true }); err != nil {
		t.Fatal(err)
	}
	if len(all) < 2 || len(all) > 2*most {
		t.Fatalf("%d of %d are kept", len(all), most)
	}
	if a := all[0]; a.SHA256 != fingerprint(alice.Cert) || a.Count != 3 || len(a.Presented) != 2 || !a.Presented[1].Equal(ca.Cert) || a.Version != "TLS 1.2" || a.Host != "api.test" || a.Listener != "public" {
		t.Errorf("%+v", a)
	}
	for _, s := range all[1:] {
		if subject := s.Presented[0].Subject.CommonName; !strings.HasPrefix(subject, "scan ") {
			t.Errorf("%s is kept", subject)
		}
	}
	if n := len(clients(t, reader(t, name))); n != 0 {
		t.Errorf("%d of them are in the inventory", n)
	}
}

// TestPossession shows that a certificate whose key nobody has shown to hold leaves no row.
func TestPossession(t *testing.T) {
	name := file(t)
	j := begin(t, Settings{File: name})
	book := record.NewBook(io.Discard)
	defer book.Close()
	book.Feed(j)
	l := book.Listener("public")
	alice := testpki.New(t).Client("alice")
	h := refusal(alice, "stolen")
	h.Reason = reason.PossessionNotProven
	l.Handshake(h)
	l.Handshake(refusal(alice, "refused"))
	j.Close()
	r := reader(t, name)
	if n := len(clients(t, r)); n != 0 {
		t.Errorf("%d clients are in the inventory", n)
	}
	if list := search(t, r, Query{}); len(list) != 2 || list[0].Possession != "not_proven" {
		t.Errorf("%+v", list)
	}
}
