package trust

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"testing"
	"time"

	"countersign/internal/reason"
	"countersign/internal/testpki"
)

// TestIssuers: below issuers that are known from another client every certificate is judged as it is without memory; and
// the memory is used where it can be, and nowhere else.
func TestIssuers(t *testing.T) {
	root, other := testpki.New(t), testpki.New(t)
	inter := root.Intermediate("Inter")
	deep := inter.Intermediate("Deep")
	policy := func(id int, value ...byte) testpki.Option {
		return testpki.ExtraExt(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, id}, Value: value})
	}
	explicit := policy(36, 0x30, 3, 0x80, 1, 0) // requireExplicitPolicy 0
	one, two := asn1.ObjectIdentifier{1, 2, 3}, asn1.ObjectIdentifier{1, 2, 4}
	oids := func(all ...asn1.ObjectIdentifier) []testpki.Option {
		return []testpki.Option{testpki.NoEKU(), ekuOIDs(t, all...)}
	}
	custom := Options{EKU: EKUCustom, EKUOIDs: []asn1.ObjectIdentifier{one, two}}
	onlyOne := root.Intermediate("One", oids(one)...)
	permits := root.Intermediate("Permits", testpki.PermitDNS("good.test"))
	explicitly := root.Intermediate("Explicitly", explicit, policy(32, 0x30, 8, 0x30, 6, 0x06, 4, 0x2a, 3, 4, 5))
	mapping := root.Intermediate("Mapping", policy(33, 0x30, 0x0e, 0x30, 0x0c, 0x06, 4, 0x2a, 3, 4, 5, 0x06, 4, 0x2a, 3, 4, 6))
	inhibits := root.Intermediate("Inhibits", policy(54, 2, 1, 0))
	permitting := testpki.New(t, testpki.PermitDNS("good.test"))
	cross := other.Intermediate("Inter", testpki.Like(inter))
	short := root.Intermediate("Short", testpki.Lifetime(time.Hour))
	namesake := testpki.New(t, testpki.RawSubject(root.Cert.RawSubject))
	brief := testpki.New(t, testpki.PathLen(0))
	thief := testpki.New(t).Intermediate("Inter")
	now := time.Now()
	with := func(c *testpki.Cert, more ...*testpki.Cert) []*x509.Certificate {
		all := c.Presented()
		for _, m := range more {
			all = append(all, m.Cert)
		}
		return all
	}
	as := func(c *testpki.Cert, chain ...*testpki.Cert) []*x509.Certificate {
		all := []*x509.Certificate{c.Cert}
		for _, m := range chain {
			all = append(all, m.Cert)
		}
		return all
	}
	akid := func(ca *testpki.Cert) testpki.Option {
		id := ca.Cert.SubjectKeyId
		return testpki.Edit(func(tbs *testpki.TBS) {
			for i, x := range tbs.Extensions {
				if x.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 35}) {
					tbs.Extensions[i].Value = slices.Concat([]byte{0x30, byte(len(id) + 2), 0x80, byte(len(id))}, id)
				}
			}
		})
	}
	for _, c := range []struct {
		name    string
		opts    Options
		anchors []*testpki.Cert
		lists   [][]byte
		first   []*x509.Certificate // is known
		then    []*x509.Certificate
		at      time.Time
		used    bool // the memory
		want    reason.Reason
	}{
		{name: "another client", first: inter.Client("a").Presented(), then: inter.Client("b").Presented(), used: true},
		{name: "below two", first: deep.Client("a").Presented(), then: deep.Client("b").Presented(), used: true},
		{name: "below the anchor", first: root.Client("a").Presented(), then: root.Client("b").Presented(), used: true},
		{name: "B18/below another CA that sends the same", first: inter.Client("a").Presented(), then: as(root.Client("b"), inter)},
		{name: "B18/another order", first: deep.Client("a").Presented(), then: as(deep.Client("b"), inter, deep)},
		{name: "B18/one missing", first: deep.Client("a").Presented(), then: as(deep.Client("b"), deep), want: reason.ClientCertUntrusted},
		{name: "B18/one more", first: inter.Client("a").Presented(), then: with(inter.Client("b"), other)},
		{name: "B18/one more at first", first: with(inter.Client("a"), other), then: with(inter.Client("b"), other)},
		{name: "B19/forged", first: inter.Client("a").Presented(), then: as(thief.Client("b", akid(inter)), inter), want: reason.ClientCertUntrusted},
		{name: "B19/forged, of another key by its name", first: inter.Client("a").Presented(), then: as(thief.Client("b"), inter), want: reason.ClientCertUntrusted},
		{name: "expired", first: inter.Client("a").Presented(), then: inter.Client("b", testpki.Expired()).Presented(), used: true, want: reason.ClientCertExpired},
		{name: "not yet valid", first: inter.Client("a").Presented(), then: inter.Client("b", testpki.NotYetValid()).Presented(), used: true, want: reason.ClientCertNotYetValid},
		{name: "A33/its issuer has expired", first: short.Client("a").Presented(), then: short.Client("b").Presented(), at: now.Add(2 * time.Hour), want: reason.ClientCertIssuerExpired},
		{name: "A33/its issuer is still valid", first: short.Client("a").Presented(), then: short.Client("b").Presented(), at: now.Add(30 * time.Minute), used: true},
		{name: "B16/SHA-1", first: inter.Client("a").Presented(), then: inter.Client("b", testpki.SHA1()).Presented(), want: reason.ClientCertWeakSignature},
		{name: "B03/a CA", first: inter.Client("a").Presented(), then: inter.Client("b", testpki.CA()).Presented(), want: reason.ClientCertIsCA},
		{name: "B01/purpose", first: inter.Client("a").Presented(), then: inter.Server("b").Presented(), want: reason.ClientCertEKU},
		{name: "B01/purpose that its issuer lacks", opts: custom, first: onlyOne.Client("a", oids(one)...).Presented(),
			then: onlyOne.Client("b", oids(two)...).Presented(), want: reason.ClientCertEKU},
		{name: "purpose that its issuer has, beside another", opts: custom, first: onlyOne.Client("a", oids(one)...).Presented(),
			then: onlyOne.Client("b", oids(two, one)...).Presented()},
		{name: "the same purpose", opts: custom, first: onlyOne.Client("a", oids(one)...).Presented(),
			then: onlyOne.Client("b", oids(one)...).Presented(), used: true},
		{name: "B14/unknown critical extension", first: inter.Client("a").Presented(), then: inter.Client("b", testpki.UnknownCritical()).Presented(), want: reason.ClientCertInvalid},
		{name: "B13/policy that it demands", first: inter.Client("a").Presented(), then: inter.Client("b", explicit).Presented(), want: reason.ClientCertConstraint},
		{name: "B13/policies mapped above it", first: mapping.Client("a").Presented(), then: mapping.Client("b").Presented()},
		{name: "B13/policy that its issuer demands", first: explicitly.Client("a", policy(32, 0x30, 8, 0x30, 6, 0x06, 4, 0x2a, 3, 4, 5)).Presented(),
			then: explicitly.Client("b").Presented(), want: reason.ClientCertConstraint},
		{name: "B13/outside its issuer's names", first: permits.Client("a", testpki.DNS("a.good.test")).Presented(),
			then: permits.Client("b", testpki.DNS("b.evil.test")).Presented(), want: reason.ClientCertConstraint},
		{name: "B13/within its issuer's names", first: permits.Client("a", testpki.DNS("a.good.test")).Presented(),
			then: permits.Client("b", testpki.DNS("b.good.test")).Presented()},
		{name: "B13/outside the anchor's names", anchors: []*testpki.Cert{permitting}, first: permitting.Client("a", testpki.DNS("a.good.test")).Presented(),
			then: permitting.Client("b", testpki.DNS("b.evil.test")).Presented(), want: reason.ClientCertConstraint},
		{name: "B18/a loop", first: deep.Client("a").Presented(), then: deep.Client("Inter", testpki.KeyOf(inter), testpki.RawSubject(inter.Cert.RawSubject)).Presented(), want: reason.ClientCertUntrusted},
		{name: "B19/another issuer's name", first: inter.Client("a").Presented(), then: inter.Client("b", testpki.Edit(func(tbs *testpki.TBS) { tbs.Issuer = asn1.RawValue{FullBytes: root.Cert.RawSubject} })).Presented(), want: reason.ClientCertUntrusted},
		{name: "B19/another key identifier", first: inter.Client("a").Presented(), then: inter.Client("b", akid(root)).Presented()},
		{name: "B13/any policy is inhibited", first: inhibits.Client("a").Presented(), then: inhibits.Client("b").Presented()},
		{name: "C20/revoked", lists: [][]byte{inter.CRL(), root.CRL(inter)}, opts: Options{Missing: MissingIfPresent}, first: nil,
			then: inter.Client("b").Presented(), used: true, want: reason.ClientIssuerRevoked},
		{name: "B19/another anchor of the same name", anchors: []*testpki.Cert{root, namesake}, first: root.Client("a").Presented(), then: namesake.Client("b").Presented()},
		{name: "B14/longer than an anchor allows", anchors: []*testpki.Cert{brief}, first: brief.Client("a").Presented(), then: brief.Intermediate("I").Client("b").Presented(), want: reason.ClientCertConstraint},
		{name: "B17/two paths", anchors: []*testpki.Cert{root, other}, first: with(inter.Client("a"), cross), then: with(inter.Client("b"), cross), used: true},
		{name: "A07/known to another store", anchors: []*testpki.Cert{other}, first: nil, then: inter.Client("b").Presented(), want: reason.ClientCertUntrusted},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.anchors == nil {
				c.anchors = []*testpki.Cert{root}
			}
			if c.at.IsZero() {
				c.at = now
			}
			plain := storeCRL(t, c.opts, c.lists, c.anchors...)
			c.opts.Chains = NewChains(100)
			s := storeCRL(t, c.opts, c.lists, c.anchors...)
			before := s
			if c.first == nil { // known to a store that has no lists, and these anchors as well
				c.first = inter.Client("a").Presented()
				before = store(t, Options{Chains: c.opts.Chains}, root)
			}
			v := before.Verify(c.first, now)
			before.Remember(&v)
			want, got := plain.Verify(c.then, c.at), s.Verify(c.then, c.at)
			if want.Reason != c.want || want.Accepted != (c.want == reason.Unset) {
				t.Fatalf("without memory: accepted=%t %v; want %v", want.Accepted, want.Err(), c.want)
			}
			same(t, got, want)
			p, f := s.leaf(c.then[0], x509.ExtKeyUsageClientAuth, c.at)
			k := s.opts.Chains.issuers.find(s.issuersKey(c.then[0], c.then[1:], p), c.at)
			if used := f == nil && below(k, c.then[0]) != nil; used != c.used {
				t.Errorf("memory of its issuers used: %t", used)
			}
			if s.Remember(&got); got.Accepted && c.used {
				if v := s.Verify(c.then, c.at); !v.Accepted || v.built != nil {
					t.Error("it is not remembered itself")
				}
			}
		})
	}
	t.Run("nothing is known before possession is proven", func(t *testing.T) {
		s := store(t, Options{Chains: NewChains(100)}, root)
		for range 2 {
			s.Verify(inter.Client("a").Presented(), now)
		}
		if n := len(s.opts.Chains.issuers.young); n != 0 {
			t.Errorf("%d sets of issuers are known", n)
		}
	})
	t.Run("B17/one of two paths is revoked", func(t *testing.T) {
		chains := NewChains(100)
		both := func(lists ...[]byte) *Store {
			return storeCRL(t, Options{Chains: chains, Missing: MissingIfPresent}, lists, root, other)
		}
		v := both().Verify(with(inter.Client("a"), cross), now)
		accepted(t, v)
		both().Remember(&v)
		v = both(root.CRL(inter)).Verify(with(inter.Client("b"), cross), now)
		if accepted(t, v); v.issuers != nil || len(v.Chain) != 3 || !v.Chain[2].Equal(other.Cert) {
			t.Error("the path that is left was not taken from memory")
		}
		refused(t, both(root.CRL(inter), other.CRL(cross)).Verify(with(inter.Client("c"), cross), now), reason.ClientIssuerRevoked, 1)
	})
	t.Run("another purpose may have other issuers", func(t *testing.T) {
		server := testpki.EKU(x509.ExtKeyUsageServerAuth)
		twin := testpki.New(t, testpki.Like(root), server)
		deny, err := NewDenyList([]DenyEntry{{Certificate: fmt.Sprintf("%x", sha256.Sum256(root.Cert.Raw))}})
		if err != nil {
			t.Fatal(err)
		}
		opts := Options{EKU: EKUAllowServerAuth, EKUUntil: now.Add(time.Hour), Chains: NewChains(100)}
		s := store(t, opts, root, twin)
		v := s.Verify(root.Client("a").Presented(), now) // through root alone
		accepted(t, v)
		s.Remember(&v)
		opts.Deny = deny
		accepted(t, store(t, opts, root, twin).Verify(root.Client("b", server).Presented(), now))
	})
	t.Run("loops of a leaf with the key of its CA", func(t *testing.T) {
		self := inter.Intermediate("Inter", testpki.Like(inter)) // as a renewal of itself
		s := store(t, Options{MaxDepth: 99, Chains: NewChains(100)}, root)
		odd := inter.Client("a", testpki.RawSubject(inter.Cert.RawSubject), testpki.KeyOf(inter), testpki.DNS("a.test"))
		if v := s.Verify(as(odd, inter, self), now); !v.Accepted || v.issuers != nil {
			t.Errorf("accepted %t, its issuers to be remembered: %t", v.Accepted, v.issuers != nil)
		}
	})
	t.Run("one certificate twice makes no more sets", func(t *testing.T) {
		s := store(t, Options{MaxPresented: 10, Chains: NewChains(100)}, root)
		a := inter.Client("a")
		for name, all := range map[string][]*x509.Certificate{"issuer": as(a, inter, inter), "leaf": as(a, a, inter)} {
			if v := s.Verify(all, now); !v.Accepted || v.built == nil || v.issuers != nil {
				t.Errorf("%s: accepted %t, remembered %t, its issuers %t", name, v.Accepted, v.built != nil, v.issuers != nil)
			}
		}
	})
	t.Run("the leaf they came with is not kept", func(t *testing.T) {
		s := store(t, Options{Chains: NewChains(100)}, root)
		v := s.Verify(root.Client("a").Presented(), now)
		if chain := v.issuers.above.chains[0]; cap(chain) != len(chain) || &chain[0] == &v.built.chains[0][1] || v.issuers.above.size == 0 {
			t.Errorf("%d of %d certificates, %d bytes", len(chain), cap(chain), v.issuers.above.size)
		}
	})
	t.Run("A33/the clock goes back to before an anchor expired", func(t *testing.T) {
		late := testpki.New(t, testpki.Like(root), testpki.NotAfter(now.Add(-time.Minute)))
		chains := NewChains(100)
		s, plain := store(t, Options{Chains: chains}, root, late), store(t, Options{}, root, late)
		v := s.Verify(root.Client("a").Presented(), now)
		s.Remember(&v)
		b := root.Client("b").Presented()
		if got, want := s.Verify(b, now.Add(-2*time.Minute)), plain.Verify(b, now.Add(-2*time.Minute)); len(got.believed.chains) != 2 || len(want.believed.chains) != 2 {
			t.Errorf("%d chains; without memory %d", len(got.believed.chains), len(want.believed.chains))
		}
	})
	t.Run("bounded", func(t *testing.T) {
		s := store(t, Options{Chains: NewChains(100)}, root)
		leaf := inter.Client("a").Presented()
		for i := range 5 * maxIssuers {
			v := s.Verify(leaf, now)
			v.built, v.issuers = &believed{chains: v.believed.chains}, &issuers{above: new(believed)}
			copy(v.issuers.key[:], fmt.Sprint(i))
			s.Remember(&v)
		}
		if m := &s.opts.Chains.issuers; len(m.young)+len(m.old) > 2*maxIssuers {
			t.Errorf("%d sets of issuers", len(m.young)+len(m.old))
		}
	})
}

// same asserts that two verdicts say the same.
func same(t *testing.T, got, want Verdict) {
	t.Helper()
	chain := func(a, b []*x509.Certificate) bool {
		return slices.EqualFunc(a, b, func(a, b *x509.Certificate) bool { return bytes.Equal(a.Raw, b.Raw) })
	}
	if got.Accepted != want.Accepted || got.Reason != want.Reason || got.Rule != want.Rule || got.Expected != want.Expected || got.Found != want.Found ||
		got.Depth != want.Depth || !chain(got.Chain, want.Chain) || got.Lenient != want.Lenient || len(got.Tried) != len(want.Tried) {
		t.Errorf("accepted=%t %v, depth %d, %d certificates; without memory accepted=%t %v, depth %d, %d certificates",
			got.Accepted, got.Err(), got.Depth, len(got.Chain), want.Accepted, want.Err(), want.Depth, len(want.Chain))
	}
}
