package trust

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/internal/reason"
	"countersign/internal/testpki"
)

// The rules of RFC 5280 sections 5.2.4 and 6.3.3 for deltas, each with lists that differ in one thing.
func TestDeltas(t *testing.T) {
	root := testpki.New(t)
	carol, dave := root.Client("carol"), root.Client("dave")
	now := time.Now()
	reasoned := func(c *testpki.Cert, code int) testpki.CRLItem {
		return testpki.Entry(c.Cert.SerialNumber, testpki.ReasonCode(code))
	}
	full := func(n int64, items ...testpki.CRLItem) []byte {
		return root.CRL(testpki.Number(n), testpki.Items(items...))
	}
	delta := func(base, n int64, items ...testpki.CRLItem) []byte {
		return root.CRL(testpki.Delta(base), testpki.Number(n), testpki.Items(items...))
	}
	point := func(url string, flags ...int) testpki.CRLItem { return testpki.CRLExt(testpki.IDP(url, flags...)) }
	hold, remove := reasoned(carol, 6), reasoned(carol, 8)
	past, soon := testpki.NextUpdate(now.Add(-time.Second)), testpki.NextUpdate(now.Add(time.Hour))
	made := func(ago time.Duration) testpki.CRLItem { return testpki.ThisUpdate(now.Add(-ago)) }
	type lists = [][]byte
	for _, c := range []struct {
		name  string
		lists lists
		opts  Options
		want  reason.Reason // for carol; dave is on no list
		warns int
	}{
		{"C07/delta alone is no list", lists{delta(1, 5, carol)}, Options{}, reason.CRLMissing, 1},
		{"C07/delta alone, lists if present", lists{delta(1, 5, carol)}, Options{Missing: MissingIfPresent}, reason.Unset, 1},
		{"C07/revoked in the delta", lists{full(4), delta(4, 5, carol)}, Options{}, reason.ClientCertRevoked, 0},
		{"C07/revoked in the base, not in the delta", lists{full(4, carol), delta(4, 5)}, Options{}, reason.ClientCertRevoked, 0},
		{"C07/in neither", lists{full(4), delta(4, 5)}, Options{}, reason.Unset, 0},
		{"C07/base newer than BaseCRLNumber", lists{full(4), delta(2, 5, carol)}, Options{}, reason.ClientCertRevoked, 0},
		{"C07/base older than BaseCRLNumber", lists{full(4), delta(5, 7, carol)}, Options{}, reason.Unset, 1},
		{"C07/base without number", lists{root.CRL(testpki.NoNumber()), delta(0, 7, carol)}, Options{}, reason.Unset, 1},
		{"C07/delta as old as the base", lists{full(5), delta(4, 5, carol)}, Options{}, reason.Unset, 0},
		{"C07/delta older than the base", lists{full(6), delta(4, 5, carol)}, Options{}, reason.Unset, 0},
		{"C05/newest delta counts", lists{full(4), delta(4, 5, carol), delta(4, 6)}, Options{}, reason.Unset, 0},
		{"C05/newest delta counts, other order", lists{delta(4, 6), delta(4, 5, carol), full(4)}, Options{}, reason.Unset, 0},
		{"C05/newest delta that applies counts", lists{full(4), delta(4, 6, carol), delta(5, 9)}, Options{}, reason.ClientCertRevoked, 1},
		{"C05/newest base counts", lists{full(4, carol), full(6), delta(4, 5, carol), delta(5, 7)}, Options{}, reason.Unset, 0},
		{"C05/deltas are not put on deltas", lists{full(4), delta(4, 6, carol), delta(6, 8)}, Options{}, reason.ClientCertRevoked, 1},
		{"C07/delta of another scope", lists{full(4), delta(4, 5, carol, point("http://crl.test/a"))}, Options{}, reason.Unset, 1},
		{"C07/delta of users on a list of all", lists{full(4), delta(4, 5, carol, point("", 1))}, Options{}, reason.Unset, 1},
		{"C07/delta of the same scope", lists{full(4, point("", 1)), delta(4, 5, carol, point("", 1))}, Options{}, reason.ClientCertRevoked, 0},
		{"C07/delta without the base's key identifier", lists{full(4), delta(4, 5, carol, testpki.NoAKI())}, Options{}, reason.Unset, 1},
		{"C07/both without key identifier", lists{full(4, testpki.NoAKI()), delta(4, 5, carol, testpki.NoAKI())}, Options{}, reason.ClientCertRevoked, 0},
		{"C08/hold in the base", lists{full(4, hold)}, Options{}, reason.ClientCertRevoked, 0},
		{"C08/hold in the delta", lists{full(4), delta(4, 5, hold)}, Options{}, reason.ClientCertRevoked, 0},
		{"C08/released by a delta", lists{full(4, hold), delta(4, 5, remove)}, Options{}, reason.Unset, 0},
		{"C08/released by a delta that does not apply", lists{full(4, hold), delta(5, 6, remove)}, Options{}, reason.ClientCertRevoked, 1},
		{"C08/released, then held in a newer base", lists{full(4, hold), delta(4, 5, remove), full(6, hold)}, Options{}, reason.ClientCertRevoked, 0},
		{"C08/released, then revoked", lists{full(4, hold), delta(4, 5, remove), delta(4, 6, reasoned(carol, 1))}, Options{}, reason.ClientCertRevoked, 0},
		{"C08/released by a newer base", lists{full(4, hold), full(5)}, Options{}, reason.Unset, 0},
		{"C08/held by a delta, released by a newer base", lists{full(4), delta(4, 5, hold), full(5)}, Options{}, reason.Unset, 0},
		{"C08/removed though never revoked", lists{full(4), delta(4, 5, remove)}, Options{}, reason.Unset, 0},
		{"C08/removed and revoked in one delta", lists{full(4), delta(4, 5, remove, carol)}, Options{}, reason.ClientCertRevoked, 0},
		{"C08/revoked and removed in one delta", lists{full(4), delta(4, 5, carol, remove)}, Options{}, reason.ClientCertRevoked, 0},
		{"C04/base past its date, delta in force", lists{full(4, past, made(time.Hour)), delta(4, 5, soon)}, Options{}, reason.Unset, 0},
		{"C04/base in force, delta past its date", lists{full(4), delta(4, 5, past, made(time.Hour))}, Options{}, reason.CRLStale, 0},
		{"C04/both past their dates", lists{full(4, past, made(time.Hour)), delta(4, 5, past, made(time.Hour))}, Options{}, reason.CRLStale, 0},
		{"C04/delta past its date, within grace", lists{full(4), delta(4, 5, past, made(time.Hour))}, Options{Stale: StaleGrace, Grace: time.Minute}, reason.Unset, 0},
		{"C04/delta past its date, dates ignored", lists{full(4, hold), delta(4, 5, past, made(time.Hour), remove)}, Options{Stale: StaleIgnore}, reason.Unset, 0},
		{"C04/revoked by a delta past its date", lists{full(4), delta(4, 5, carol, past, made(time.Hour))}, Options{}, reason.ClientCertRevoked, 0},
		{"C04/delta that does not apply has no dates", lists{full(4), delta(5, 6, past, made(time.Hour))}, Options{}, reason.Unset, 1},
		{"C06/delta from the future", lists{full(4, hold), delta(4, 5, remove, testpki.ThisUpdate(now.Add(time.Hour)))}, Options{}, reason.ClientCertRevoked, 0},
		{"C06/delta from the future hides no other", lists{full(4), delta(4, 5, carol), delta(4, 6, testpki.ThisUpdate(now.Add(time.Hour)))}, Options{}, reason.ClientCertRevoked, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			opts := c.opts
			backwards := slices.Clone(c.lists)
			slices.Reverse(backwards)
			for _, order := range []lists{c.lists, backwards} {
				s := storeCRL(t, opts, order, root)
				if len(s.Warnings()) != c.warns {
					t.Errorf("warnings: %q", s.Warnings())
				}
				v := verify(s, carol)
				if c.want == reason.Unset {
					accepted(t, v)
				} else {
					refused(t, v, c.want, 0)
				}
				if v := verify(s, dave); v.Reason != c.want && v.Reason != reason.Unset && v.Reason != reason.CRLStale || v.Reason == reason.ClientCertRevoked {
					t.Errorf("dave: %v", v.Err())
				}
			}
		})
	}
	t.Run("C03/delta by a stranger", func(t *testing.T) {
		other := testpki.New(t)
		forged := root.CRL(testpki.Delta(4), testpki.Number(5), testpki.SignedBy(other), testpki.NoAKI(), remove)
		if _, err := newStore(t, Options{}, lists{full(4, hold, testpki.NoAKI()), forged}, root); err == nil {
			t.Error("was taken")
		}
		// Of an intermediate it is noticed when its key is shown.
		inter := root.Intermediate("Inter")
		erin := inter.Client("erin")
		s := storeCRL(t, Options{}, lists{
			inter.CRL(testpki.NoAKI(), testpki.Number(4), testpki.Entry(erin.Cert.SerialNumber, testpki.ReasonCode(6))),
			inter.CRL(testpki.NoAKI(), testpki.Number(5), testpki.Delta(4), testpki.SignedBy(other), testpki.Entry(erin.Cert.SerialNumber, testpki.ReasonCode(8))),
		}, root)
		refused(t, verify(s, erin), reason.ClientCertRevoked, 0)
	})
	t.Run("C02/two keys of one name", func(t *testing.T) {
		twin := testpki.New(t, testpki.RawSubject(root.Cert.RawSubject))
		erin := twin.Client("erin")
		s := storeCRL(t, Options{}, lists{full(4, carol), twin.CRL(testpki.Number(9)), twin.CRL(testpki.Number(10), testpki.Delta(9), erin)}, root, twin)
		refused(t, verify(s, carol), reason.ClientCertRevoked, 0)
		accepted(t, verify(s, dave))
		refused(t, verify(s, erin), reason.ClientCertRevoked, 0)
	})
	t.Run("evidence names the list that says so", func(t *testing.T) {
		v := verify(storeCRL(t, Options{}, lists{full(4, hold), delta(4, 5, reasoned(carol, 1))}, root), carol)
		refused(t, v, reason.ClientCertRevoked, 0)
		if !strings.Contains(v.Expected, "delta on 4, number 5 of") || !strings.Contains(v.Found, "keyCompromise") {
			t.Errorf("evidence: %s, %s", v.Expected, v.Found)
		}
	})
	t.Run("good until the delta is due", func(t *testing.T) {
		at := now.Add(90 * time.Minute).Truncate(time.Second)
		s := storeCRL(t, Options{}, lists{full(4), delta(4, 5, testpki.NextUpdate(at))}, root)
		if got := s.goodUntil(verify(s, dave).Chain, now); !got.Equal(at) {
			t.Errorf("%v, want %v", got, at)
		}
		coming := now.Add(time.Hour).Truncate(time.Second)
		s = storeCRL(t, Options{}, lists{full(4), full(5, testpki.ThisUpdate(coming), testpki.NextUpdate(coming.Add(time.Hour)))}, root)
		if got := s.goodUntil(verify(s, dave).Chain, now); !got.Equal(coming.Add(-clockSkew)) {
			t.Errorf("%v, want when the next list comes into force, %v", got, coming.Add(-clockSkew))
		}
	})
}

// Lists of a part of the certificates (RFC 5280 sections 5.2.5 and 6.3.3 (b)) count for this part and for nothing else.
func TestParts(t *testing.T) {
	root := testpki.New(t)
	inter := root.Intermediate("Inter")
	leaf, deep := root.Client("leaf"), inter.Client("deep")
	a, b := "http://crl.test/a", "http://crl.test/b"
	only := func(der ...pkix.Extension) testpki.CRLItem { return testpki.CRLExt(der...) }
	check := func(t *testing.T, s *Store, c *testpki.Cert, want reason.Reason, depth int) {
		t.Helper()
		if v := verify(s, c); want == reason.Unset {
			accepted(t, v)
		} else {
			refused(t, v, want, depth)
		}
	}
	t.Run("C07/user certificates", func(t *testing.T) {
		users := root.CRL(leaf, inter, only(testpki.IDP("", 1)))
		chain := Options{Missing: MissingChain}
		check(t, storeCRL(t, Options{}, [][]byte{users}, root), leaf, reason.ClientCertRevoked, 0)
		check(t, storeCRL(t, Options{}, [][]byte{root.CRL(only(testpki.IDP("", 1)))}, root), leaf, reason.Unset, 0)
		check(t, storeCRL(t, chain, [][]byte{users, inter.CRL()}, root), deep, reason.CRLMissing, 1)
		// It names the CA, which it can not speak of.
		check(t, storeCRL(t, Options{}, [][]byte{users, inter.CRL()}, root), deep, reason.Unset, 0)
	})
	t.Run("C07/CA certificates", func(t *testing.T) {
		cas := root.CRL(leaf, inter, only(testpki.IDP("", 2)))
		check(t, storeCRL(t, Options{}, [][]byte{cas}, root), leaf, reason.CRLMissing, 0)
		check(t, storeCRL(t, Options{Missing: MissingIfPresent}, [][]byte{cas}, root), leaf, reason.Unset, 0)
		check(t, storeCRL(t, Options{}, [][]byte{cas, inter.CRL()}, root), deep, reason.ClientIssuerRevoked, 1)
	})
	t.Run("C07/users and CAs in two lists", func(t *testing.T) {
		chain := Options{Missing: MissingChain}
		users, cas := root.CRL(testpki.Number(9), only(testpki.IDP("", 1))), root.CRL(testpki.Number(3), only(testpki.IDP("", 2)))
		s := storeCRL(t, chain, [][]byte{users, cas, inter.CRL()}, root)
		check(t, s, leaf, reason.Unset, 0)
		check(t, s, deep, reason.Unset, 0)
		// A newer list of the one part does not replace the other part's.
		s = storeCRL(t, chain, [][]byte{users, root.CRL(testpki.Number(3), inter, only(testpki.IDP("", 2))), inter.CRL()}, root)
		check(t, s, deep, reason.ClientIssuerRevoked, 1)
	})
	t.Run("C07/a stale part hides behind no other", func(t *testing.T) {
		s := storeCRL(t, Options{}, [][]byte{root.CRL(), root.CRL(only(testpki.IDP("", 1)), testpki.NextUpdate(time.Now().Add(-time.Second)))}, root)
		check(t, s, leaf, reason.CRLStale, 0)
	})
	t.Run("C07/part of a part", func(t *testing.T) {
		inA := root.Client("a", testpki.CRLPoint(a))
		s := storeCRL(t, Options{}, [][]byte{root.CRL(inA, only(testpki.IDP(a, 2))), root.CRL(only(testpki.IDP(a, 1)))}, root)
		check(t, s, inA, reason.Unset, 0)
	})
	t.Run("C07/flags written as FALSE", func(t *testing.T) {
		s := storeCRL(t, Options{}, [][]byte{root.CRL(leaf, only(testpki.RawIDP([]byte{0x81, 1, 0, 0x82, 1, 0, 0x84, 1, 0, 0x85, 1, 0})))}, root)
		check(t, s, leaf, reason.ClientCertRevoked, 0)
	})
	t.Run("C07/names of points", func(t *testing.T) {
		x := root.Client("x").Cert.RawSubject
		uri, directory := testpki.URIName, testpki.DirectoryName
		name := testpki.FullName
		reasons := []byte{0x81, 2, 6, 0x40}
		crlIssuer := append([]byte{0xa2, byte(2 + len(x))}, directory(x)...)
		for _, c := range []struct {
			name          string
			list          []byte   // distributionPoint of the list
			points        [][]byte // of the certificate
			covers, found bool
		}{
			{"URI", name(uri(a)), [][]byte{name(uri(a))}, true, true},
			{"second of two points", name(uri(a)), [][]byte{name(uri(b)), name(uri(a))}, true, true},
			{"second of two names", name(uri(a), uri(b)), [][]byte{name(uri("ldap://x"), uri(b))}, true, true},
			{"another URI", name(uri(a)), [][]byte{name(uri(b))}, false, false},
			{"URI with other case", name(uri(a)), [][]byte{name(uri("http://crl.test/A"))}, false, false},
			{"directory name", name(directory(x)), [][]byte{name(directory(x))}, true, true},
			{"another directory name", name(directory(x)), [][]byte{name(directory(root.Cert.RawSubject))}, false, false},
			{"the issuer's name", name(directory(root.Cert.RawSubject)), nil, true, true},
			{"the issuer's name as URI", name(uri(string(root.Cert.RawSubject))), nil, false, false},
			{"no points", name(uri(a)), nil, false, false},
			{"point of some reasons", name(uri(a)), [][]byte{slices.Concat(name(uri(a)), reasons)}, false, false},
			{"point of another CRL issuer", name(uri(a)), [][]byte{slices.Concat(name(uri(a)), crlIssuer)}, false, false},
			{"point without name", name(uri(a)), [][]byte{crlIssuer}, false, false},
			{"relative point", name(uri(a)), [][]byte{testpki.RelativeName()}, false, false},
			{"relative point and another", name(uri(a)), [][]byte{testpki.RelativeName(), name(uri(a))}, true, true},
		} {
			t.Run(c.name, func(t *testing.T) {
				opts := []testpki.Option{}
				if c.points != nil {
					opts = append(opts, testpki.Points(c.points...))
				}
				client := root.Client("client", opts...)
				if client.Cert == nil {
					t.Skip("crypto/x509 refuses the certificate")
				}
				idp := only(testpki.RawIDP(c.list))
				want := reason.CRLMissing
				if c.covers {
					want = reason.Unset
				}
				check(t, storeCRL(t, Options{}, [][]byte{root.CRL(idp)}, root), client, want, 0)
				if c.found {
					want = reason.ClientCertRevoked
				}
				check(t, storeCRL(t, Options{}, [][]byte{root.CRL(idp, client)}, root), client, want, 0)
			})
		}
	})
	t.Run("C10/many parts", func(t *testing.T) {
		var lists [][]byte
		var clients []*testpki.Cert
		for i := range 20 {
			url := fmt.Sprintf("http://crl.test/%d", i)
			clients = append(clients, root.Client(url, testpki.CRLPoint(url)))
			item := testpki.CRLItem(clients[i])
			if i%2 == 0 {
				item = testpki.Entry(big.NewInt(1))
			}
			lists = append(lists, root.CRL(testpki.Number(int64(i)), only(testpki.IDP(url)), item))
		}
		s := storeCRL(t, Options{}, lists, root)
		for i, c := range clients {
			want := reason.Unset
			if i%2 == 1 {
				want = reason.ClientCertRevoked
			}
			check(t, s, c, want, 0)
		}
	})
}

// Stores are made anew at every change of configuration; the lists in them are not.
func TestListsAreShared(t *testing.T) {
	root := testpki.New(t)
	l, err := ParseCRL(root.CRL(testpki.Many(50_000)))
	if err != nil {
		t.Fatal(err)
	}
	anchors := []*x509.Certificate{root.Cert}
	build := func() *Store {
		s, err := NewStore("partners", anchors, []*CRL{l}, nil, Options{CheckRevocation: true})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first, second := build(), build()
	if a, b := first.lists[l.issuer][0].full[0], second.lists[l.issuer][0].full[0]; a != l || b != l {
		t.Error("the list was copied")
	}
	if n := testing.AllocsPerRun(10, func() { build() }); n > 200 {
		t.Errorf("%v allocations for a store", n)
	}
}
