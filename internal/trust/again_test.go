package trust

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/internal/reason"
	"countersign/internal/testpki"
)

// TestVerifyAgain: whatever was believed by one store, another one says of a client what it would say without.
func TestVerifyAgain(t *testing.T) {
	root, other, third, twin := testpki.New(t), testpki.New(t), testpki.New(t), testpki.New(t)
	inter := root.Intermediate("Inter")
	cross := other.Intermediate("Inter", testpki.Like(inter))
	now := time.Now()
	day, year := now.Add(25*time.Hour), now.AddDate(1, 0, 0)
	until := now.Add(90 * time.Minute)
	alice := inter.Client("alice", testpki.URI("spiffe://corp.test/alice"), testpki.NotAfter(year))
	both := append(alice.Presented(), cross.Presented()...)
	early := other.Intermediate("Inter", testpki.Like(inter), testpki.NotBefore(now.Add(time.Hour)))
	renewed := testpki.New(t, testpki.Like(root), testpki.NotBefore(now.Add(time.Hour)))
	upper := root.Intermediate("Upper")
	lower := upper.Intermediate("Lower")
	lowerSoon := upper.Intermediate("Lower", testpki.Like(lower), testpki.NotBefore(now.Add(time.Hour)))
	fuel, tolls := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 8}, asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 9}
	tollsOnly := root.Intermediate("Tolls", testpki.NoEKU(), ekuOIDs(t, tolls))
	clients := map[string][]*x509.Certificate{
		"below one that will be renewed": append(lower.Client("dave").Presented(), lowerSoon.Cert),

		"nobody": nil, "alice": alice.Presented(), "alice over two CAs": both, "alice over the other CA": append(alice.Presented()[:1:1], cross.Presented()...),
		"alice over one that will be":       append(alice.Presented(), early.Cert),
		"alice over one CA twice":           append(alice.Presented(), inter.Cert, root.Cert),
		"alice alone":                       alice.Presented()[:1],
		"bob":                               root.Client("bob", testpki.NoEKU()).Presented(),
		"a server":                          root.Client("server", testpki.EKU(x509.ExtKeyUsageServerAuth), testpki.DNS("server")).Presented(),
		"for fuel and tolls":                tollsOnly.Client("card", testpki.NoEKU(), ekuOIDs(t, fuel, tolls)).Presented(),
		"a server for fuel":                 root.Client("pump", testpki.NoEKU(), ekuOIDs(t, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}, fuel)).Presented(),
		"brief":                             inter.Client("brief", testpki.Lifetime(time.Hour)).Presented(),
		"of a brief CA":                     root.Intermediate("Brief", testpki.Lifetime(time.Hour)).Client("a").Presented(),
		"deep":                              inter.Intermediate("Deeper").Client("deep").Presented(),
		"with a CA's name and key":          root.Client("twin", testpki.Like(twin)).Presented(),
		"of the third":                      third.Client("carol").Presented(),
		"with something that is not needed": append(alice.Presented(), third.Cert),
	}
	deny, err := NewDenyList([]DenyEntry{{SPKI: fmt.Sprintf("%x", sha256.Sum256(alice.Cert.RawSubjectPublicKeyInfo))}})
	if err != nil {
		t.Fatal(err)
	}
	stores := make(map[string]*Store)
	add := func(name string, o Options, lists [][]byte, anchors ...*testpki.Cert) {
		stores[name] = storeCRL(t, o, lists, anchors...)
	}
	add("root", Options{}, nil, root)
	add("root with a memory", Options{Chains: NewChains(100)}, nil, root)
	add("other", Options{}, nil, other)
	add("both", Options{}, nil, root, other)
	add("all", Options{}, nil, third, other, root)
	add("twin", Options{}, nil, root, twin)
	add("third", Options{}, nil, third)
	add("the intermediate", Options{}, nil, inter)
	add("root and intermediate", Options{}, nil, root, inter)
	add("root and intermediate, shallow", Options{MaxDepth: 1}, nil, root, inter)
	add("root and intermediate, revoked", Options{Missing: MissingIfPresent}, [][]byte{root.CRL(inter, testpki.NextUpdate(day.Add(time.Hour)))}, root, inter)
	add("renewed", Options{}, nil, root, renewed)
	add("only the renewed", Options{}, nil, renewed)
	add("shallow", Options{MaxDepth: 1}, nil, root, other)
	add("few", Options{MaxPresented: 2}, nil, root, other)
	add("absent", Options{EKU: EKUAllowAbsent}, nil, root)
	add("absent, both", Options{EKU: EKUAllowAbsent}, nil, root, other)
	add("servers until", Options{EKU: EKUAllowServerAuth, EKUUntil: until}, nil, root)
	add("servers until, both", Options{EKU: EKUAllowServerAuth, EKUUntil: until}, nil, root, other)
	add("fuel", Options{EKU: EKUCustom, EKUOIDs: []asn1.ObjectIdentifier{fuel}}, nil, root, other)
	add("tolls", Options{EKU: EKUCustom, EKUOIDs: []asn1.ObjectIdentifier{tolls}}, nil, root)
	add("fuel or tolls", Options{EKU: EKUCustom, EKUOIDs: []asn1.ObjectIdentifier{fuel, tolls}}, nil, root)
	add("domain", Options{TrustDomain: "corp.test"}, nil, root)
	add("other domain", Options{TrustDomain: "else.test"}, nil, root)
	add("expired", Options{AllowExpiredLeaf: true}, nil, root, other)
	add("denied", Options{Deny: deny}, nil, root, other)
	lists := Options{Missing: MissingIfPresent}
	next := testpki.NextUpdate(day.Add(time.Hour))
	add("lists", lists, [][]byte{inter.CRL(next)}, root, other)
	add("revoked", lists, [][]byte{inter.CRL(alice, next)}, root, other)
	add("issuer revoked", lists, [][]byte{root.CRL(inter, next)}, root, other)
	add("issuer revoked, one CA", lists, [][]byte{root.CRL(inter, next)}, root)
	add("both issuers revoked", lists, [][]byte{root.CRL(inter, next), other.CRL(cross, next)}, root, other)
	add("lower revoked", lists, [][]byte{upper.CRL(lower, next)}, root, other)
	add("stale", lists, [][]byte{inter.CRL(testpki.NextUpdate(now.Add(time.Hour)))}, root, other)
	add("missing", Options{CheckRevocation: true}, nil, root, other)
	accepted, refused := 0, 0
	// What was believed of others, or of a target, or of the same client with other certificates.
	others := make(map[string]Belief)
	for _, first := range []string{"all", "absent, both", "fuel or tolls"} {
		for name, presented := range clients {
			if len(presented) > 0 {
				v, w := stores[first].Verify(presented, now), stores[first].VerifyServer(presented, "server", now)
				others[name+", "+first], others[name+", a target, "+first] = v.Belief(), w.Belief()
			}
		}
	}
	maps.DeleteFunc(others, func(_ string, b Belief) bool { return b == Belief{} })
	for name, presented := range clients {
		believed := map[string]Belief{"nobody": {}}
		for first, by := range stores {
			if v := by.Verify(presented, now); v.Accepted {
				believed[first] = v.Belief()
			} else if v.Belief() != (Belief{}) {
				t.Errorf("%s, %s: a refusal is a belief", name, first)
			}
		}
		for second, s := range stores {
			for _, at := range []time.Time{now.Add(-time.Hour), now, now.Add(time.Minute), now.Add(2 * time.Hour), day, year.Add(time.Hour)} {
				want := s.Verify(presented, at)
				if at == day {
					for of, was := range others {
						if got := s.VerifyAgain(presented, was, at); got.Accepted != want.Accepted || got.Reason != want.Reason {
							t.Errorf("%s, what is known being of %q, %q says after %v: accepted=%t %v, without accepted=%t %v", name, of, second,
								at.Sub(now), got.Accepted, got.Reason, want.Accepted, want.Reason)
						}
					}
				}
				for first, was := range believed {
					got := s.VerifyAgain(presented, was, at)
					if got.Accepted != want.Accepted || got.Reason != want.Reason || got.Lenient != want.Lenient || got.Version != want.Version ||
						got.Store != want.Store || got.Expected != want.Expected || got.Found != want.Found {
						t.Errorf("%s believed by %q, %q says after %v: accepted=%t %v (%s: %s), without accepted=%t %v (%s: %s)", name, first, second,
							at.Sub(now), got.Accepted, got.Reason, got.Expected, got.Found, want.Accepted, want.Reason, want.Expected, want.Found)
					}
					if !got.Accepted {
						refused++
						continue
					}
					accepted++
					anchor := got.Chain[len(got.Chain)-1]
					if !got.Chain[0].Equal(presented[0]) || !slices.ContainsFunc(s.anchors, anchor.Equal) || got.When != at {
						t.Errorf("%s believed by %q, %q names the chain %v", name, first, second, got.Chain)
					}
					if once := s.VerifyAgain(presented, got.Belief(), at); !once.Accepted {
						t.Errorf("%s believed by %q and %q: %v", name, first, second, once.Err())
					}
				}
			}
		}
	}
	t.Logf("%d acceptances, %d refusals", accepted, refused)
	if accepted < 2000 || refused < 2000 {
		t.Errorf("%d acceptances and %d refusals: the test looks at the wrong things", accepted, refused)
	}

	// One whose signature is another's now shows whether it is looked at: the certificate's bytes are what it is known by.
	forged := func(list []*x509.Certificate) []*x509.Certificate {
		leaf := *list[0]
		leaf.Signature = slices.Clone(leaf.Signature)
		leaf.Signature[len(leaf.Signature)-1] ^= 1
		return append([]*x509.Certificate{&leaf}, list[1:]...)
	}
	known := func(s *Store, presented []*x509.Certificate) Belief {
		v := s.Verify(presented, now)
		if !v.Accepted {
			t.Fatal(v.Err())
		}
		return v.Belief()
	}
	for name, at := range map[string]time.Time{"at once": now, "after a day": day} {
		for _, s := range []string{"root", "both", "all", "lists", "issuer revoked", "absent", "domain"} {
			t.Run(name+" no signature is checked by "+s, func(t *testing.T) {
				if v := stores[s].VerifyAgain(forged(both), known(stores["both"], both), at); !v.Accepted {
					t.Error(v.Err())
				}
			})
		}
	}
	for name, at := range map[string]time.Time{"at once": now, "after a day": day} {
		for s, want := range map[string]reason.Reason{"revoked": reason.ClientCertRevoked, "both issuers revoked": reason.ClientIssuerRevoked,
			"stale": reason.CRLStale, "denied": reason.ClientCertDenied, "missing": reason.CRLMissing, "third": reason.ClientCertUntrusted} {
			if s == "stale" && at == now {
				continue
			}
			t.Run(fmt.Sprintf("%s no signature is checked for %v", name, want), func(t *testing.T) {
				if v := stores[s].VerifyAgain(forged(both), known(stores["both"], both), at); v.Accepted || v.Reason != want || strings.Contains(v.Found, "did not sign") {
					t.Errorf("accepted=%t %v", v.Accepted, v.Err())
				}
			})
		}
	}
	t.Run("A07/signatures are checked where nothing is known", func(t *testing.T) {
		for name, was := range map[string]Belief{
			"nothing":               {},
			"of another client":     known(stores["all"], inter.Client("bob").Presented()),
			"of another CA":         known(stores["other"], both),
			"of a CA with this key": known(stores["the intermediate"], alice.Presented()),
		} {
			if v := stores["root"].VerifyAgain(forged(alice.Presented()), was, now); v.Accepted {
				t.Errorf("%s: accepted", name)
			}
		}
	})
}
