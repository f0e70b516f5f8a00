package trust

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/internal/reason"
	"countersign/internal/testpki"
)

var oidBanking = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 7}

// ekuOIDs is the extension with any OIDs.
func ekuOIDs(t testing.TB, oids ...asn1.ObjectIdentifier) testpki.Option {
	t.Helper()
	der, err := asn1.Marshal(oids)
	if err != nil {
		t.Fatal(err)
	}
	return testpki.ExtraExt(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: der})
}

func TestEKUModes(t *testing.T) {
	root := testpki.New(t)
	server, client := x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth
	now := time.Now()
	until := Options{EKU: EKUAllowServerAuth, EKUUntil: now.Add(time.Hour)}
	over := Options{EKU: EKUAllowServerAuth, EKUUntil: now.Add(-time.Minute)}
	custom := Options{EKU: EKUCustom, EKUOIDs: []asn1.ObjectIdentifier{oidBanking}}
	for _, c := range []struct {
		name string
		opts Options
		leaf *testpki.Cert
		want reason.Reason
		how  Leniency
	}{
		{"B01/server certificate after the date", over, root.Client("a", testpki.EKU(server)), reason.ClientCertEKU, 0},
		{"B01/code signing before the date", until, root.Client("a", testpki.EKU(x509.ExtKeyUsageCodeSigning)), reason.ClientCertEKU, 0},
		{"B02/absent is not serverAuth", until, root.Client("a", testpki.NoEKU()), reason.ClientCertEKUMissing, 0},
		{"B02/any is not serverAuth", until, root.Client("a", testpki.EKU(x509.ExtKeyUsageAny)), reason.ClientCertEKU, 0},
		{"B01/CA for clientAuth only issued serverAuth", until,
			root.Intermediate("I", testpki.EKU(client)).Client("a", testpki.EKU(server)), reason.ClientCertEKU, 0},
		{"B01/clientAuth is not the custom purpose", custom, root.Client("a"), reason.ClientCertEKU, 0},
		{"B02/absent is not the custom purpose", custom, root.Client("a", testpki.NoEKU()), reason.ClientCertEKUMissing, 0},
		{"B02/any is not the custom purpose", custom, root.Client("a", testpki.EKU(x509.ExtKeyUsageAny)), reason.ClientCertEKU, 0},
		{"B01/CA for clientAuth only issued the custom purpose", custom,
			root.Intermediate("I", testpki.EKU(client)).Client("a", testpki.NoEKU(), ekuOIDs(t, oidBanking)), reason.ClientCertEKU, 0},
		{"serverAuth before the date", until, root.Client("a", testpki.EKU(server)), reason.Unset, LenientServerAuth},
		{"both before the date", until, root.Client("a", testpki.EKU(server, client)), reason.Unset, LenientNot},
		{"CA for both", until, root.Intermediate("I", testpki.EKU(client, server)).Client("a", testpki.EKU(server)), reason.Unset, LenientServerAuth},
		{"custom purpose", custom, root.Client("a", testpki.NoEKU(), ekuOIDs(t, oidBanking)), reason.Unset, LenientNot},
		{"custom purpose under a CA that names it", custom,
			root.Intermediate("I", testpki.NoEKU(), ekuOIDs(t, oidBanking)).Client("a", testpki.NoEKU(), ekuOIDs(t, oidBanking)), reason.Unset, LenientNot},
		{"second of two purposes, which alone the CA allows", Options{EKU: EKUCustom, EKUOIDs: []asn1.ObjectIdentifier{{1, 2, 3}, oidBanking}},
			root.Intermediate("I", testpki.NoEKU(), ekuOIDs(t, oidBanking)).Client("a", testpki.NoEKU(), ekuOIDs(t, asn1.ObjectIdentifier{1, 2, 3}, oidBanking)), reason.Unset, LenientNot},
		{"clientAuth by its OID", Options{EKU: EKUCustom, EKUOIDs: []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 2}}}, root.Client("a"), reason.Unset, LenientNot},
		{"absent is counted", Options{EKU: EKUAllowAbsent}, root.Client("a", testpki.NoEKU()), reason.Unset, LenientAbsent},
		{"any is counted", Options{EKU: EKUAllowAbsent}, root.Client("a", testpki.EKU(x509.ExtKeyUsageAny)), reason.Unset, LenientAny},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.opts.Chains = NewChains(100)
			s := store(t, c.opts, root)
			for _, kind := range []string{"built", "remembered"} {
				v := s.Verify(c.leaf.Presented(), now)
				if c.want != reason.Unset {
					if v.Accepted || v.Reason != c.want {
						t.Errorf("%s: accepted=%t %v, want %v", kind, v.Accepted, v.Reason, c.want)
					}
					continue
				}
				accepted(t, v)
				if v.Lenient != c.how {
					t.Errorf("%s: leniency %q, want %q", kind, v.Lenient, c.how)
				}
				s.Remember(&v)
			}
		})
	}
	t.Run("the date ends what is remembered", func(t *testing.T) {
		until.Chains = NewChains(100)
		s := store(t, until, root)
		leaf := root.Client("a", testpki.EKU(server)).Presented()
		v := s.Verify(leaf, now)
		accepted(t, v)
		s.Remember(&v)
		if v = s.Verify(leaf, until.EKUUntil); v.Accepted {
			t.Error("accepted at the very date")
		}
		if v = s.Verify(leaf, now.Add(2*time.Hour)); v.Reason != reason.ClientCertEKU || !strings.Contains(v.Expected, "accepted until") {
			t.Errorf("after the date: %v, expected %s", v.Reason, v.Expected)
		}
	})
	t.Run("B13/policies are checked for any purpose too", func(t *testing.T) {
		// CVE-2025-22874: with ExtKeyUsageAny crypto/x509 once left out certificate policies.
		inter := root.Intermediate("I", testpki.ExtraExt(
			pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 36}, Critical: true, Value: []byte{0x30, 3, 0x80, 1, 0}}, // requireExplicitPolicy 0
		))
		s := store(t, custom, root)
		if v := verify(s, inter.Client("a", testpki.NoEKU(), ekuOIDs(t, oidBanking))); v.Accepted {
			t.Error("a chain without the explicit policy that its CA requires was accepted")
		}
	})
	for name, o := range map[string]Options{"no date": {EKU: EKUAllowServerAuth}, "no OID": {EKU: EKUCustom}, "unknown mode": {EKU: 9}} {
		if _, err := newStore(t, o, nil, root); err == nil {
			t.Errorf("%s: a store was made", name)
		}
	}
}

func TestDenyList(t *testing.T) {
	root := testpki.New(t)
	inter := root.Intermediate("Inter")
	serial, _ := new(big.Int).SetString("affe", 16)
	alice := inter.Client("alice", testpki.Serial(serial), testpki.DNS("Alice.test"), testpki.URI("spiffe://td/alice"), testpki.Email("al@x.test"), testpki.IP("10.1.2.3"))
	bob := inter.Client("bob")
	issuer := printed(inter.Cert.RawSubject)
	spki := func(c *testpki.Cert) string {
		s := sha256.Sum256(c.Cert.RawSubjectPublicKeyInfo)
		return hex.EncodeToString(s[:])
	}
	sum := sha256.Sum256(alice.DER())
	colons := strings.TrimSuffix(strings.ToUpper(fmt.Sprintf("% x", sum)), " ")
	with := func(t *testing.T, e DenyEntry) *Store {
		t.Helper()
		d, err := NewDenyList([]DenyEntry{e})
		if err != nil {
			t.Fatal(err)
		}
		return store(t, Options{Deny: d, Chains: NewChains(10)}, root)
	}
	for name, e := range map[string]DenyEntry{
		"C11/hexadecimal":                  {Serial: "affe", Issuer: issuer},
		"C11/upper case with colons":       {Serial: "AF:FE", Issuer: issuer},
		"C11/leading zero octet":           {Serial: "00:af:fe", Issuer: issuer},
		"C11/0x":                           {Serial: "0xaffe", Issuer: issuer},
		"C11/decimal":                      {Serial: serial.String(), Issuer: issuer},
		"SPKI":                             {SPKI: spki(alice)},
		"B26/certificate in colons":        {Certificate: strings.ReplaceAll(colons, " ", ":")},
		"SAN dns":                          {SAN: "dns:alice.TEST"},
		"SAN uri":                          {SAN: "uri:spiffe://td/alice"},
		"SAN email":                        {SAN: "email:AL@x.test"},
		"SAN ip":                           {SAN: "ip:::ffff:10.1.2.3"},
		"C23/every certificate of one key": {SPKI: spki(alice)},
	} {
		t.Run(name, func(t *testing.T) {
			s := with(t, e)
			refused(t, verify(s, alice), reason.ClientCertDenied, 0)
			accepted(t, verify(s, bob))
		})
	}
	t.Run("C23/renewed under the denied key", func(t *testing.T) {
		refused(t, verify(with(t, DenyEntry{SPKI: spki(alice)}), inter.Client("alice2", testpki.KeyOf(alice))), reason.ClientCertDenied, 0)
	})
	t.Run("C09/key of the issuer", func(t *testing.T) {
		refused(t, verify(with(t, DenyEntry{SPKI: spki(inter)}), bob), reason.ClientCertDenied, 1)
	})
	t.Run("C02/same serial of another issuer", func(t *testing.T) {
		accepted(t, verify(with(t, DenyEntry{Serial: "affe", Issuer: issuer}), root.Client("x", testpki.Serial(serial))))
	})
	t.Run("C20/denied although a list says nothing of it", func(t *testing.T) {
		d, _ := NewDenyList([]DenyEntry{{SPKI: spki(alice)}})
		s := storeCRL(t, Options{Deny: d}, [][]byte{inter.CRL()}, root)
		refused(t, verify(s, alice), reason.ClientCertDenied, 0)
		accepted(t, verify(s, bob))
	})
	t.Run("a misspelt issuer is warned of", func(t *testing.T) {
		if w := with(t, DenyEntry{Serial: "1", Issuer: "CN=Nobody"}).Warnings(); len(w) != 1 || !strings.Contains(w[0], "CN=Nobody") {
			t.Errorf("warnings %q", w)
		}
	})
	t.Run("remembered chains are asked too", func(t *testing.T) {
		chains := NewChains(10)
		free := store(t, Options{Chains: chains}, root)
		v := verify(free, alice)
		accepted(t, v)
		free.Remember(&v)
		d, _ := NewDenyList([]DenyEntry{{SPKI: spki(alice)}})
		refused(t, verify(store(t, Options{Chains: chains, Deny: d}, root), alice), reason.ClientCertDenied, 0)
	})
	for _, e := range []DenyEntry{
		{}, {Serial: "1"}, {Issuer: "CN=x"}, {Serial: "xyz", Issuer: "CN=x"}, {Serial: "0", Issuer: "CN=x"}, {Serial: "-5", Issuer: "CN=x"},
		{Serial: strings.Repeat("ff", 21), Issuer: "CN=x"}, {SPKI: "abcd"}, {SPKI: strings.Repeat("g", 64)}, {SPKI: spki(bob), SAN: "dns:a.test"},
		{SAN: "alice.test"}, {SAN: "dns:a b"}, {SAN: "ip:10.0.0.0/8"}, {SAN: "uri:x"}, {SAN: "email:a@b@c"}, {SPKI: spki(bob), Issuer: "CN=x"},
	} {
		if _, err := NewDenyList([]DenyEntry{e}); err == nil {
			t.Errorf("B25/%+v: taken", e)
		}
	}
	if _, err := NewDenyList([]DenyEntry{{SAN: "alice"}}); err == nil || !strings.HasSuffix(err.Error(), `found "alice"`) {
		t.Errorf("a name without its kind is not told as it stands: %v", err)
	}
}

func TestTrustDomain(t *testing.T) {
	root := testpki.New(t)
	s := store(t, Options{TrustDomain: "corp.test", Chains: NewChains(10)}, root)
	for name, leaf := range map[string]*testpki.Cert{
		"B11/no SPIFFE ID":             root.Client("a"),
		"B11/another URI only":         root.Client("a", testpki.URI("https://corp.test/a")),
		"B11/other trust domain":       root.Client("a", testpki.URI("spiffe://corp.test.evil/a")),
		"B11/shorter trust domain":     root.Client("a", testpki.URI("spiffe://test/a")),
		"B11/two SPIFFE IDs":           root.Client("a", testpki.URI("spiffe://corp.test/a", "spiffe://corp.test/b")),
		"B11/one more URI":             root.Client("a", testpki.URI("spiffe://corp.test/a", "https://x.test/")),
		"B11/no path":                  root.Client("a", testpki.URI("spiffe://corp.test")),
		"B11/port":                     root.Client("a", testpki.URI("spiffe://corp.test:1/a")),
		"B11/trust domain in capitals": root.Client("a", testpki.URI("spiffe://CORP.test/a")),
		"B11/dot segment":              root.Client("a", testpki.URI("spiffe://corp.test/../a")),
	} {
		t.Run(name, func(t *testing.T) { refused(t, verify(s, leaf), reason.ClientCertSPIFFE, 0) })
	}
	accepted(t, verify(s, root.Client("a", testpki.URI("spiffe://corp.test/ns/a"))))
}

func TestChains(t *testing.T) {
	root, other := testpki.New(t), testpki.New(t)
	inter := root.Intermediate("Inter")
	alice := inter.Client("alice")
	now := time.Now()
	fill := func(s *Store, leaf []*x509.Certificate, at time.Time) Verdict {
		v := s.Verify(leaf, at)
		s.Remember(&v)
		return v
	}
	hit := func(s *Store, leaf []*x509.Certificate, at time.Time) bool {
		v := s.Verify(leaf, at)
		return v.Accepted && v.built == nil
	}
	t.Run("a hit says the same", func(t *testing.T) {
		s := store(t, Options{Chains: NewChains(100)}, root)
		first := fill(s, alice.Presented(), now)
		accepted(t, first)
		if !hit(s, alice.Presented(), now) {
			t.Fatal("not remembered")
		}
		if v := s.Verify(alice.Presented(), now); len(v.Chain) != 3 || !v.Chain[0].Equal(alice.Cert) || v.Version != first.Version {
			t.Errorf("remembered verdict %+v", v)
		}
	})
	t.Run("nothing is kept before possession is proven", func(t *testing.T) {
		s := store(t, Options{Chains: NewChains(100)}, root)
		for range 3 {
			if s.Verify(alice.Presented(), now); hit(s, alice.Presented(), now) {
				t.Fatal("Verify alone has written")
			}
		}
	})
	t.Run("refusals are not kept", func(t *testing.T) {
		s := store(t, Options{Chains: NewChains(100)}, other)
		fill(s, alice.Presented(), now)
		if s.opts.Chains.Len() != 0 {
			t.Error("a refusal was kept")
		}
	})
	t.Run("A07/another store", func(t *testing.T) {
		chains := NewChains(100)
		fill(store(t, Options{Chains: chains}, root), alice.Presented(), now)
		refused(t, verify(store(t, Options{Chains: chains}, other), alice), reason.ClientCertUntrusted, 1)
	})
	t.Run("A02/same anchors, stricter purpose", func(t *testing.T) {
		chains := NewChains(100)
		bob := root.Client("bob", testpki.NoEKU())
		accepted(t, fill(store(t, Options{Chains: chains, EKU: EKUAllowAbsent}, root), bob.Presented(), now))
		refused(t, verify(store(t, Options{Chains: chains}, root), bob), reason.ClientCertEKUMissing, 0)
	})
	t.Run("A06/revoked after it was remembered", func(t *testing.T) {
		chains := NewChains(100)
		accepted(t, fill(storeCRL(t, Options{Chains: chains}, [][]byte{inter.CRL()}, root), alice.Presented(), now))
		s := storeCRL(t, Options{Chains: chains}, [][]byte{inter.CRL(alice, testpki.Number(9))}, root)
		refused(t, verify(s, alice), reason.ClientCertRevoked, 0)
	})
	t.Run("B17/one of two remembered paths is revoked", func(t *testing.T) {
		chains := NewChains(100)
		cross := other.Intermediate("Inter", testpki.Like(inter))
		presented := append(alice.Presented(), cross.Presented()...)
		both := func(lists ...[]byte) *Store {
			return storeCRL(t, Options{Chains: chains, Missing: MissingIfPresent}, lists, root, other)
		}
		accepted(t, fill(both(root.CRL()), presented, now))
		v := both(root.CRL(inter)).Verify(presented, now)
		accepted(t, v)
		if v.built != nil || !v.Chain[2].Equal(other.Cert) {
			t.Error("the path that is left was not taken from memory")
		}
		refused(t, both(root.CRL(inter), other.CRL(cross)).Verify(presented, now), reason.ClientIssuerRevoked, 1)
	})
	t.Run("an anchor that becomes valid is another issuer", func(t *testing.T) {
		later := testpki.New(t, testpki.Like(root), testpki.NotBefore(now.Add(time.Hour)))
		s := store(t, Options{Chains: NewChains(100)}, root, later)
		accepted(t, fill(s, alice.Presented(), now))
		if !hit(s, alice.Presented(), now.Add(59*time.Minute)) || hit(s, alice.Presented(), later.Cert.NotBefore) {
			t.Error("one chain was remembered for longer than it was the only one, or not as long")
		}
	})
	t.Run("A33/leaf expires", func(t *testing.T) {
		s := store(t, Options{Chains: NewChains(100)}, root)
		brief := inter.Client("brief", testpki.Lifetime(time.Minute))
		accepted(t, fill(s, brief.Presented(), now))
		refused(t, s.Verify(brief.Presented(), now.Add(2*time.Minute)), reason.ClientCertExpired, 0)
	})
	t.Run("A07/intermediate expires", func(t *testing.T) {
		s := store(t, Options{Chains: NewChains(100)}, root)
		short := root.Intermediate("Short", testpki.Lifetime(time.Minute)).Client("a")
		accepted(t, fill(s, short.Presented(), now))
		refused(t, s.Verify(short.Presented(), now.Add(2*time.Minute)), reason.ClientCertIssuerExpired, 1)
	})
	t.Run("the clock goes back", func(t *testing.T) {
		s := store(t, Options{Chains: NewChains(100)}, root)
		fill(s, alice.Presented(), now)
		refused(t, s.Verify(alice.Presented(), now.AddDate(-1, 0, -7)), reason.ClientCertNotYetValid, 1)
	})
	t.Run("A42/order and number are part of the key", func(t *testing.T) {
		s := store(t, Options{Chains: NewChains(100)}, root)
		fill(s, alice.Presented(), now)
		if hit(s, alice.Presented()[:1], now) {
			t.Error("the leaf alone was a hit")
		}
		refused(t, s.Verify(alice.Presented()[:1], now), reason.ClientCertUntrusted, 0)
	})
	t.Run("bounded, and those in use stay", func(t *testing.T) {
		chains := NewChains(64)
		s := store(t, Options{Chains: chains}, root)
		for range 40 {
			for range 10 {
				fill(s, root.Client("x").Presented(), now)
			}
			hit(s, alice.Presented(), now)
		}
		if n := chains.Len(); n > 96 {
			t.Errorf("%d entries of at most about 64", n)
		}
	})
	t.Run("F15/strangers beside the chain are not remembered", func(t *testing.T) {
		s := store(t, Options{Chains: NewChains(100)}, root)
		for range 5 {
			presented := append(alice.Presented(), testpki.New(t).Client("junk").Presented()...)
			accepted(t, fill(s, presented, now))
		}
		if n := s.opts.Chains.Len(); n != 0 {
			t.Errorf("%d entries of one certificate", n)
		}
	})
	t.Run("F15/bounded in bytes", func(t *testing.T) {
		chains := NewChains(1 << 20)
		s := store(t, Options{Chains: chains}, root)
		long := strings.Repeat("x", 20<<10)
		for range 400 {
			accepted(t, fill(s, root.Client("x", testpki.URI("spiffe://td/"+long)).Presented(), now))
		}
		size := 0
		for i := range chains.shards {
			size += chains.shards[i].size
		}
		if size > 32<<20 || chains.Len() > 2*chainShards*(maxShardBytes/(80<<10)+1) {
			t.Errorf("%d entries, %d bytes in the young generation", chains.Len(), size)
		}
	})
	t.Run("by many at once", func(t *testing.T) {
		s := store(t, Options{Chains: NewChains(8)}, root)
		var leaves [][]*x509.Certificate
		for range 20 {
			leaves = append(leaves, inter.Client("x").Presented())
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 20 {
					for _, l := range leaves {
						if v := fill(s, l, now); !v.Accepted {
							t.Error(v.Err())
						}
					}
				}
			})
		}
		wg.Wait()
	})
}

func BenchmarkChains(b *testing.B) {
	root := testpki.New(b)
	alice := root.Intermediate("Inter").Client("alice").Presented()
	now := time.Now()
	for name, chains := range map[string]*Chains{"built": nil, "remembered": NewChains(100)} {
		b.Run(name, func(b *testing.B) {
			s, err := newStore(b, Options{Chains: chains}, nil, root)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				v := s.Verify(alice, now)
				s.Remember(&v)
			}
		})
	}
}
