//go:build !race

package trust

import (
	"crypto/x509"
	"testing"
	"time"

	"countersign/internal/testpki"
)

// TestChainsAllocations holds what docs/decisions/0025 promises: to judge a client whose chains are remembered allocates
// nothing. Where what is asked on each hit does allocate, the case says what, and holds it to that.
func TestChainsAllocations(t *testing.T) {
	root, other := testpki.New(t), testpki.New(t)
	inter := root.Intermediate("Inter")
	cross := other.Intermediate("Inter", testpki.Like(inter))
	alice, bob := inter.Client("alice", testpki.OCSPServer(ocspURL)), inter.Client("bob")
	svid := inter.Client("svid", testpki.URI("spiffe://corp.test/a"))
	named := inter.Client("named", testpki.DNS("a.corp.test", "c.corp.test"), testpki.URI("https://a.corp.test/x"))
	both := append(alice.Presented(), cross.Presented()...)
	now := time.Now()

	anchors := func(o Options) *Store { return store(t, o, root) }
	deny := func(e DenyEntry) Options { return Options{Deny: must(NewDenyList([]DenyEntry{e}))(t)} }
	const sum = "00000000000000000000000000000000000000000000000000000000000000ff"
	answers := NewAnswers(0)
	for _, responder := range []string{ocspURL, ocspURL + "all"} {
		q := Query{Cert: alice.Cert, Issuer: inter.Cert, Responder: responder}
		answers.Put(q.Key(), Answer{Status: Good, ThisUpdate: now, NextUpdate: now.Add(time.Hour)})
	}
	for _, c := range []struct {
		name      string
		store     func(Options) *Store
		opts      Options
		presented []*x509.Certificate
		most      float64
	}{
		{"anchors only", anchors, Options{}, alice.Presented(), 0},
		{"trust domain", anchors, Options{TrustDomain: "corp.test"}, svid.Presented(), 0},
		{"lists", func(o Options) *Store { return storeCRL(t, o, [][]byte{root.CRL(), inter.CRL(bob)}, root) },
			Options{Missing: MissingChain}, alice.Presented(), 0},
		{"two chains", func(o Options) *Store { return storeCRL(t, o, [][]byte{root.CRL(), inter.CRL()}, root, other) },
			Options{Missing: MissingIfPresent}, both, 0},
		{"OCSP of one responder", anchors, Options{OCSP: OCSP{Mode: OCSPRequire, Responder: ocspURL + "all", Answers: answers}}, alice.Presented(), 0},
		{"OCSP of the certificate's responder", anchors,
			Options{OCSP: OCSP{Mode: OCSPRequire, Hosts: []string{"ocsp.test"}, Answers: answers}}, alice.Presented(), 0},
		{"deny list of keys", anchors, deny(DenyEntry{SPKI: sum}), named.Presented(), 0},
		{"deny list of certificates", anchors, deny(DenyEntry{Certificate: sum}), named.Presented(), 0},
		// The serial number of each certificate of the chain as bytes.
		{"deny list of serial numbers", anchors, deny(DenyEntry{Serial: "ff", Issuer: "CN=Inter"}), named.Presented(), 3},
		// Each name of the client with its kind; a URI is written, read and written again before that.
		{"deny list of names", anchors, deny(DenyEntry{SAN: "dns:b.corp.test"}), named.Presented(), 6},
		// The words of the refusal of the first, which nobody reads.
		{"two chains, one of them revoked", func(o Options) *Store {
			return storeCRL(t, o, [][]byte{root.CRL(inter), inter.CRL(), other.CRL()}, root, other)
		}, Options{Missing: MissingIfPresent}, both, 40},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.opts.Chains = NewChains(100)
			s := c.store(c.opts)
			v := s.Verify(c.presented, now)
			accepted(t, v)
			s.Remember(&v)
			n := testing.AllocsPerRun(1000, func() {
				v = s.Verify(c.presented, now)
				s.Remember(&v)
			})
			if !v.Accepted || v.built != nil {
				t.Fatalf("accepted=%t, built anew=%t; expected a hit", v.Accepted, v.built != nil)
			}
			if t.Logf("%v allocations", n); n > c.most {
				t.Errorf("a hit allocates %v objects; expected at most %v", n, c.most)
			}
		})
	}
}
