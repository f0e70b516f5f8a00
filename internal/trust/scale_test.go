package trust

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"countersign/internal/reason"
	"countersign/internal/testpki"
)

// tenThousand are CAs with names and keys of their own. They are made once for all who ask.
var tenThousand = sync.OnceValue(func() []*x509.Certificate { return manyCAs("Scale Root %d") })

func manyCAs(format string) []*x509.Certificate {
	var list []*x509.Certificate
	maker := new(made)
	n := 10_000
	if raceDetector {
		n = 2_000 // which it takes as long to make
	}
	for i := range n {
		name := format
		if name != sameName {
			name = fmt.Sprintf(format, i)
		}
		list = append(list, testpki.New(maker, testpki.Subject(pkix.Name{CommonName: name, Organization: []string{"Countersign"}})).Cert)
	}
	return list
}

// sameName is the name of CAs that all have the same one.
const sameName = "Scale Root"

// made ends the test binary where a certificate that is made for all tests cannot be.
type made struct{ testing.TB }

func (*made) Helper() {}

func (*made) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// medians are the middle ones of the times that f and g take, one after the other, so that a slow moment of the machine hits
// both.
func medians(n int, f, g func()) (a, b time.Duration) {
	all := [2][]time.Duration{}
	for range n {
		for i, h := range []func(){f, g} {
			start := time.Now()
			h()
			all[i] = append(all[i], time.Since(start))
		}
	}
	slices.Sort(all[0])
	slices.Sort(all[1])
	return all[0][n/2], all[1][n/2]
}

// TestTenThousandCAs: a store of 10,000 CAs costs a client's verification what a store of one CA costs, and tells the
// client nothing that could end its handshake.
func TestTenThousandCAs(t *testing.T) {
	root := testpki.New(t)
	alice, stranger := root.Client("alice"), testpki.New(t).Client("stranger")
	impostor := testpki.New(t, testpki.Subject(root.Cert.Subject)).Client("impostor") // of a CA of the same name
	start := time.Now()
	all := slices.Insert(slices.Clone(tenThousand()), 1000, root.Cert)
	t.Logf("made in %v", time.Since(start))

	start = time.Now()
	large := must(NewStore("partners", all, nil, nil, Options{}))(t)
	t.Logf("a store in %v", time.Since(start))
	small := store(t, Options{}, root)

	t.Run("F12/verdicts", func(t *testing.T) {
		for _, s := range []*Store{small, large} {
			accepted(t, verify(s, alice))
			refused(t, verify(s, stranger), reason.ClientCertUntrusted, 0)
			refused(t, verify(s, impostor), reason.ClientCertUntrusted, 0)
		}
	})
	for _, c := range []struct {
		name string
		cert *testpki.Cert
	}{{"a client of it", alice}, {"a stranger", stranger}, {"a client of another CA of that name", impostor}} {
		t.Run("F12/cost of "+c.name, func(t *testing.T) {
			presented, now := c.cert.Presented(), time.Now()
			one := func() { small.Verify(presented, now) }
			many := func() { large.Verify(presented, now) }
			a, b := testing.AllocsPerRun(50, one), testing.AllocsPerRun(50, many)
			if b > a+2 {
				t.Errorf("%v allocations with %d CAs, %v with one", b, len(all), a)
			}
			x, y := medians(101, one, many)
			if y > 4*x+time.Millisecond {
				t.Errorf("%v with %d CAs, %v with one", y, len(all), x)
			}
			t.Logf("%v and %v allocations, %v and %v", a, b, x, y)
		})
	}
	t.Run("B23/hints", func(t *testing.T) {
		hints, warning, err := HintsFor(all, false)
		if err != nil || len(hints) != 0 || warning == "" {
			t.Errorf("%d hints of the CAs, warning %q, %v; expected none, with a warning", len(hints), warning, err)
		}
		if hints, _, err := HintsFor(all, true); err == nil {
			t.Errorf("%d hints that were asked for; expected an error", len(hints))
		}
	})
}

// TestTenThousandCAsOfOneName: the worst that a bundle can be for the search by name. A client's chain is found by its
// issuer's key identifier, whatever the place of that CA in the bundle, and nobody can make us try all the keys.
func TestTenThousandCAsOfOneName(t *testing.T) {
	root := testpki.New(t, testpki.Subject(pkix.Name{CommonName: sameName, Organization: []string{"Countersign"}}))
	alice := root.Client("alice")
	impostor := testpki.New(t, testpki.Subject(root.Cert.Subject)).Client("impostor")
	all := manyCAs(sameName)
	build := func(list []*x509.Certificate) func() {
		return func() { must(NewStore("partners", list, nil, nil, Options{}))(t) }
	}
	t.Run("F12/a store", func(t *testing.T) {
		names, name := medians(3, build(tenThousand()), build(all))
		t.Logf("%v for as many names, %v for one", names, name)
		if name > 10*names {
			t.Errorf("%v for as many names, %v for one", names, name)
		}
	})
	for name, list := range map[string][]*x509.Certificate{"first": slices.Insert(slices.Clone(all), 0, root.Cert), "last": append(slices.Clip(all), root.Cert)} {
		s := must(NewStore("partners", list, nil, nil, Options{}))(t)
		t.Run("F12/a client of the "+name, func(t *testing.T) { accepted(t, verify(s, alice)) })
		t.Run("B19/an impostor, "+name, func(t *testing.T) {
			refused(t, verify(s, impostor), reason.ClientCertInvalid, 1)
			// crypto/x509 tries a hundred keys at most, for both, and our explanation some more.
			client, stranger := medians(5, func() { verify(s, alice) }, func() { verify(s, impostor) })
			t.Logf("%v for a client, %v for an impostor", client, stranger)
			if stranger > 20*client {
				t.Errorf("%v for a client, %v for an impostor", client, stranger)
			}
		})
	}
}

// TestAlike: stores of the same CAs share what is made of them, and nothing else.
func TestAlike(t *testing.T) {
	a, b := testpki.New(t), testpki.New(t)
	both := []*x509.Certificate{a.Cert, b.Cert}
	first := must(NewStore("partners", both, nil, nil, Options{MaxDepth: 2}))(t)
	again := must(x509.ParseCertificate(a.DER()))(t)
	for _, c := range []struct {
		name    string
		anchors []*x509.Certificate
		shared  bool
	}{
		{"the same", slices.Clone(both), true},
		{"one of them", both[:1], false},
		{"in another order", []*x509.Certificate{b.Cert, a.Cert}, false},
		{"read again", []*x509.Certificate{again, b.Cert}, false},
		{"one more", append(slices.Clip(both), testpki.New(t).Cert), false},
		{"another one", []*x509.Certificate{a.Cert, testpki.New(t).Cert}, false},
	} {
		t.Run("F12/"+c.name, func(t *testing.T) {
			s := must(NewStore("partners", c.anchors, nil, nil, Options{Alike: []*Store{nil, {}, first}}))(t)
			if shared := s.pool == first.pool; shared != c.shared {
				t.Errorf("shared %v, expected %v", shared, c.shared)
			}
			alone := must(NewStore("partners", c.anchors, nil, nil, Options{}))(t)
			if s.Sum() != alone.Sum() || s.basis != alone.basis || s.Sum() == first.Sum() || len(s.Anchors()) != len(c.anchors) {
				t.Error("it is not the store that it would be alone")
			}
			if s.opts.Alike != nil {
				t.Error("it keeps the stores that were made before")
			}
			for _, ca := range []*testpki.Cert{a, b} {
				client := ca.Client("alice")
				if got, want := verify(s, client).Accepted, verify(alone, client).Accepted; got != want {
					t.Errorf("accepted %v, alone %v", got, want)
				}
			}
			refused(t, verify(s, testpki.New(t).Client("stranger")), reason.ClientCertUntrusted, 0)
		})
	}
}

// TestClockJumps: whatever is remembered of a chain, the dates of its certificates are held against the time of the moment.
func TestClockJumps(t *testing.T) {
	root := testpki.New(t)
	inter := root.Intermediate("Clients CA", testpki.NotBefore(time.Now().Add(-24*time.Hour)), testpki.NotAfter(time.Now().Add(48*time.Hour)))
	alice := inter.Client("alice", testpki.NotAfter(time.Now().AddDate(1, 0, 0)))
	for name, chains := range map[string]*Chains{"nothing is remembered": nil, "the chain is remembered": NewChains(16)} {
		s := store(t, Options{Chains: chains}, root)
		presented, now := alice.Presented(), time.Now()
		at := func(d time.Duration) Verdict {
			v := s.Verify(presented, now.Add(d))
			s.Remember(&v)
			return v
		}
		accepted(t, at(0))
		for _, c := range []struct {
			name string
			jump time.Duration
			why  reason.Reason
		}{
			{"ten years ahead", 87660 * time.Hour, reason.ClientCertIssuerExpired},
			{"three days ahead", 72 * time.Hour, reason.ClientCertIssuerExpired},
			{"two hours back", -2 * time.Hour, reason.ClientCertNotYetValid},
			{"to 1970", time.Unix(0, 0).Sub(now), reason.ClientCertNotYetValid},
			{"an hour ahead", time.Hour, reason.Unset},
			{"half an hour back", -30 * time.Minute, reason.Unset},
		} {
			t.Run("H14/"+name+"/"+c.name, func(t *testing.T) {
				if v := at(c.jump); v.Reason != c.why || v.Accepted != (c.why == reason.Unset) {
					t.Errorf("%v: %s, expected %v", v.Reason, v.Found, c.why)
				}
				accepted(t, at(0)) // set right again
			})
		}
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		return v
	}
}
