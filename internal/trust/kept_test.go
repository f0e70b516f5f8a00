package trust

import (
	"testing"
	"time"

	"countersign/internal/reason"
	"countersign/internal/testpki"
)

// TestKept: what was made of a chain is for those who are believed by that chain, and for nobody else.
func TestKept(t *testing.T) {
	root, other := testpki.New(t), testpki.New(t)
	inter := root.Intermediate("Inter")
	cross := other.Intermediate("Inter", testpki.Like(inter))
	alice, bob := inter.Client("alice"), inter.Client("bob")
	both := append(alice.Presented(), cross.Presented()...)
	now := time.Now()
	chains := NewChains(100)
	with := func(lists ...[]byte) *Store {
		return storeCRL(t, Options{Missing: MissingIfPresent, Chains: chains}, lists, root, other)
	}
	s := with()
	v := s.Verify(both, now)
	accepted(t, v)
	v.Keep("first")
	if v.Kept() != "first" {
		t.Errorf("kept %v", v.Kept())
	}
	again := s.Verify(both, now)
	if accepted(t, again); again.Kept() != nil {
		t.Errorf("kept %v of a chain that nobody remembers", again.Kept())
	}
	s.Remember(&v)
	again = s.Verify(both, now)
	if accepted(t, again); again.Kept() != "first" {
		t.Errorf("kept %v of a chain that is remembered", again.Kept())
	}
	again = with().VerifyAgain(both, again.Belief(), now)
	if accepted(t, again); again.Kept() != "first" {
		t.Errorf("kept %v of a chain that an open connection remembers", again.Kept())
	}
	stranger := s.Verify(bob.Presented(), now)
	if accepted(t, stranger); stranger.Kept() != nil {
		t.Errorf("kept %v of another client", stranger.Kept())
	}

	// With one of the two CAs revoked the same certificates are believed by the other chain.
	revoked := root.CRL(inter)
	if v.Chain[len(v.Chain)-1].Equal(other.Cert) {
		revoked = other.CRL(cross)
	}
	narrow := with(revoked)
	changed := narrow.Verify(both, now)
	if accepted(t, changed); changed.Chain[len(changed.Chain)-1].Equal(v.Chain[len(v.Chain)-1]) {
		t.Fatal("believed by the chain that is revoked")
	}
	if changed.Kept() != nil {
		t.Errorf("kept %v of another chain", changed.Kept())
	}
	changed.Keep("second")
	if v := narrow.Verify(both, now); v.Kept() != "second" {
		t.Errorf("kept %v, expected what was made of this chain last", v.Kept())
	}
	if v := s.Verify(both, now); v.Kept() != nil {
		t.Errorf("kept %v of another chain", v.Kept())
	}

	none := with(root.CRL(inter), other.CRL(cross)).Verify(both, now)
	refused(t, none, reason.ClientIssuerRevoked, 1)
	none.Keep("of nobody")
	if none.Kept() != nil || new(Verdict).Kept() != nil {
		t.Error("kept of a refusal")
	}
}
