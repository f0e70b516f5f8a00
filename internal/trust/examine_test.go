package trust

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"countersign/internal/reason"
	"countersign/internal/testpki"
)

// agree holds that the checks tell what the verifier decides: a path without a failing check exists exactly for what is
// accepted, and, where reasons are to be held too, what is refused is refused for one of the checks that fail.
func agree(t *testing.T, s *Store, presented []*x509.Certificate, now time.Time, reasons bool) *Examination {
	t.Helper()
	e := s.Examine(presented, now)
	v := s.Verify(presented, now)
	if e.Verdict.Accepted != v.Accepted || e.Verdict.Reason != v.Reason {
		t.Fatalf("the verdict is %v, not Verify's %v", e.Verdict.Reason, v.Reason)
	}
	if e.More {
		return e // not all was looked at
	}
	if e.Good() != v.Accepted {
		t.Fatalf("the checks say %t, the verifier %t: %v (%s)\n%s", e.Good(), v.Accepted, v.Reason, v.Found, told(e))
	}
	if v.Accepted || !reasons || v.Found == "" { // of several custom purposes Verify does not say which CA lacks which
		return e
	}
	fails := func(c Check) bool { return c.Rule == v.Rule }
	if !slices.ContainsFunc(e.Checks, fails) && !slices.ContainsFunc(e.Paths, func(p Path) bool { return slices.ContainsFunc(p.Checks, fails) }) {
		t.Fatalf("no check fails for %v (%s)\n%s", v.Rule, v.Found, told(e))
	}
	return e
}

func told(e *Examination) string {
	var b strings.Builder
	add := func(c Check) {
		if c.Rule != reason.Unset {
			fmt.Fprintf(&b, "  %s at %d: %v: expected %s, found %s\n", c.Kind, c.Depth, c.Rule, c.Expected, c.Found)
		}
	}
	for _, c := range e.Checks {
		add(c)
	}
	for i, p := range e.Paths {
		fmt.Fprintf(&b, "path %d of %d certificates, anchored %t\n", i, len(p.Chain), p.Anchored)
		for _, c := range p.Checks {
			add(c)
		}
	}
	return b.String()
}

// TestExamineAgreesOnWrongKinds goes through every kind of wrong certificate, in the leaf's place and its issuer's.
func TestExamineAgreesOnWrongKinds(t *testing.T) {
	root := testpki.New(t)
	good := root.Intermediate("Good CA")
	stranger := testpki.New(t)
	uses := func(u ...x509.ExtKeyUsage) testpki.Option { return testpki.EKU(u...) }
	leaves := map[string][]testpki.Option{
		"plain": nil, "expired": {testpki.Expired()}, "early": {testpki.NotYetValid()}, "no eku": {testpki.NoEKU()},
		"server": {uses(x509.ExtKeyUsageServerAuth)}, "any": {uses(x509.ExtKeyUsageAny)}, "p224": {testpki.P224()},
		"rsa 1024": {testpki.RSA(1024)}, "rsa 2048": {testpki.RSA(2048)}, "huge": {testpki.RSA(16384)}, "exponent": {testpki.RSAExponent(1)},
		"ca": {testpki.CA()}, "no signing": {testpki.KeyUsage(x509.KeyUsageKeyAgreement)}, "no key usage": {testpki.KeyUsage(0)},
		"v1": {testpki.V1()}, "sha1": {testpki.SHA1()}, "critical": {testpki.UnknownCritical()}, "zero": {testpki.Serial(new(big.Int))},
		"long": {testpki.Serial(new(big.Int).Lsh(big.NewInt(1), 1000))}, "nul": {testpki.DNS("a\x00b")}, "like root": {testpki.Like(root)},
		"spiffe": {testpki.URI("spiffe://corp.test/a")}, "two spiffe": {testpki.URI("spiffe://corp.test/a", "spiffe://corp.test/b")},
		"both": {uses(x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)},
		"dns":  {testpki.DNS("a.corp.test")}, "foreign dns": {testpki.DNS("a.other.test")}, "ed25519": {testpki.Ed25519()},
	}
	issuers := map[string]*testpki.Cert{
		"root": root, "good": good, "stranger": stranger, "under stranger": stranger.Intermediate("Strange CA"),
		"expired":    root.Intermediate("Old CA", testpki.Expired()),
		"early":      root.Intermediate("New CA", testpki.NotYetValid()),
		"server":     root.Intermediate("Web CA", uses(x509.ExtKeyUsageServerAuth)),
		"client":     root.Intermediate("Client CA", uses(x509.ExtKeyUsageClientAuth)),
		"mixed":      root.Intermediate("Outer CA", uses(x509.ExtKeyUsageServerAuth)).Intermediate("Inner CA", uses(x509.ExtKeyUsageClientAuth)),
		"no ca":      root.Intermediate("No CA", testpki.NotCA()),
		"no bc":      root.Intermediate("No BC", testpki.NoBasicConstraints()),
		"no signing": root.Intermediate("No Sign", testpki.KeyUsage(x509.KeyUsageDigitalSignature)),
		"weak":       root.Intermediate("Weak CA", testpki.RSA(1024)),
		"p224":       root.Intermediate("P224 CA", testpki.P224()),
		"sha1":       root.Intermediate("SHA1 CA", testpki.SHA1()),
		"v1":         root.Intermediate("V1 CA", testpki.V1()),
		"critical":   root.Intermediate("Critical CA", testpki.UnknownCritical()),
		"permits":    root.Intermediate("Permits CA", testpki.PermitDNS("corp.test")),
		"path 0":     root.Intermediate("Path CA", testpki.PathLen(0)),
		"below 0":    root.Intermediate("Path CA", testpki.PathLen(0)).Intermediate("Below"),
		"deep":       good.Intermediate("A").Intermediate("B").Intermediate("C"),
	}
	now := time.Now()
	deny, err := NewDenyList([]DenyEntry{{SAN: "dns:a.corp.test"}})
	if err != nil {
		t.Fatal(err)
	}
	stores := map[string]*Store{}
	for name, o := range map[string]Options{
		"strict": {}, "absent": {EKU: EKUAllowAbsent}, "server": {EKU: EKUAllowServerAuth, EKUUntil: now.Add(time.Hour)},
		"server is over": {EKU: EKUAllowServerAuth, EKUUntil: now.Add(-time.Hour)},
		"custom":         {EKU: EKUCustom, EKUOIDs: []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 2}, {1, 2, 3}}},
		"custom two":     {EKU: EKUCustom, EKUOIDs: []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 2}, {1, 3, 6, 1, 5, 5, 7, 3, 1}}},
		"depth 1":        {MaxDepth: 1}, "one": {MaxPresented: 1}, "spiffe": {TrustDomain: "corp.test"}, "expired": {AllowExpiredLeaf: true},
		"deny": {Deny: deny}, "lists": {CheckRevocation: true}, "chain": {CheckRevocation: true, Missing: MissingChain},
		"if present": {CheckRevocation: true, Missing: MissingIfPresent},
		"ocsp":       {OCSP: OCSP{Mode: OCSPRequire, Responder: "http://ocsp.test/", Answers: NewAnswers(64), Chain: true}},
		"prefer":     {OCSP: OCSP{Mode: OCSPPrefer, Responder: "http://ocsp.test/", Answers: NewAnswers(64)}},
	} {
		var crls []*CRL
		if o.CheckRevocation {
			for _, der := range [][]byte{root.CRL(issuers["client"]), good.CRL(testpki.NextUpdate(now.Add(-time.Minute)))} {
				l, err := ParseCRL(der)
				if err != nil {
					t.Fatal(err)
				}
				crls = append(crls, l)
			}
		}
		if stores[name], err = NewStore(name, []*x509.Certificate{root.Cert}, crls, nil, o); err != nil {
			t.Fatal(err)
		}
	}
	accepted, refused := 0, 0
	reasons := map[reason.Reason]bool{}
	for in, ca := range issuers {
		for ln, opts := range leaves {
			leaf := ca.Client(ln, opts...)
			if leaf.Cert == nil {
				continue // cannot be parsed, so it cannot be presented
			}
			var presented []*x509.Certificate
			for _, der := range leaf.Chain {
				c, err := x509.ParseCertificate(der)
				if err != nil {
					presented = nil
					break
				}
				presented = append(presented, c)
			}
			if presented == nil {
				continue
			}
			for sn, s := range stores {
				e := agree(t, s, presented, now, true)
				if reasons[e.Verdict.Reason] = true; e.Verdict.Accepted {
					accepted++
				} else {
					refused++
				}
				if t.Failed() {
					t.Fatalf("leaf %s, issuer %s, store %s", ln, in, sn)
				}
			}
		}
	}
	if accepted < 100 || refused < 1000 || len(reasons) < 22 {
		t.Errorf("%d accepted, %d refused for %d reasons: the kinds are not what they were", accepted, refused, len(reasons))
	}
	t.Logf("%d accepted, %d refused, %d reasons", accepted, refused, len(reasons))
}

// TestExamineAgreesOnGraphs makes graphs of CAs that share names and keys, sign each other, and are wrong here and there.
func TestExamineAgreesOnGraphs(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("COUNTERSIGN_SEED"); text != "" {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	r := rand.New(rand.NewPCG(seed, 1))
	rounds := 400
	if testing.Short() {
		rounds = 50
	}
	accepted, several, more := 0, 0, 0
	for round := range rounds {
		roots := []*testpki.Cert{testpki.New(t), testpki.New(t)}
		all := slices.Clone(roots)
		var cas []*testpki.Cert
		for n := range 2 + r.IntN(7) {
			opts := []testpki.Option{}
			if len(cas) > 0 && r.IntN(2) == 0 { // a name or a whole CA again
				other := cas[r.IntN(len(cas))]
				if r.IntN(3) > 0 {
					opts = append(opts, testpki.Like(other))
				} else {
					opts = append(opts, testpki.Subject(pkix.Name{CommonName: other.Cert.Subject.CommonName}))
				}
			}
			switch r.IntN(16) {
			case 0:
				opts = append(opts, testpki.Expired())
			case 1:
				opts = append(opts, testpki.EKU(x509.ExtKeyUsageServerAuth))
			case 2:
				opts = append(opts, testpki.PathLen(r.IntN(2)))
			case 3:
				opts = append(opts, testpki.PermitDNS("corp.test"))
			case 4:
				opts = append(opts, testpki.SHA1())
			case 5:
				opts = append(opts, testpki.NotCA())
			}
			ca := all[r.IntN(len(all))].Intermediate(fmt.Sprintf("CA %d", n), opts...)
			if ca.Cert == nil {
				continue
			}
			all, cas = append(all, ca), append(cas, ca)
		}
		var opts []testpki.Option
		switch r.IntN(8) {
		case 0:
			opts = append(opts, testpki.DNS("a.other.test"))
		case 1:
			opts = append(opts, testpki.Expired())
		}
		leaf := cas[r.IntN(len(cas))].Client("leaf", opts...)
		presented := []*x509.Certificate{leaf.Cert}
		for _, i := range r.Perm(len(cas)) {
			if r.IntN(8) > 0 {
				presented = append(presented, cas[i].Cert)
			}
		}
		anchors := []*x509.Certificate{roots[0].Cert}
		if r.IntN(3) == 0 && len(cas) > 0 { // an intermediate as an anchor
			if c := cas[r.IntN(len(cas))].Cert; checkAnchor(c) == nil {
				anchors = append(anchors, c)
			}
		}
		s, err := NewStore("graph", anchors, nil, nil, Options{MaxPresented: 10, MaxDepth: 2 + r.IntN(8)})
		if err != nil {
			t.Fatal(err)
		}
		e := agree(t, s, presented, time.Now(), false) // of several CAs of one name Verify may blame another one
		if e.Verdict.Accepted {
			accepted++
		}
		if len(e.Paths) > 1 {
			several++
		}
		if e.More {
			more++
		}
		if t.Failed() {
			t.Fatalf("round %d of COUNTERSIGN_SEED=%d", round, seed)
		}
	}
	t.Logf("%d rounds: %d accepted, %d with several paths, %d with more than are looked at", rounds, accepted, several, more)
	if accepted == 0 || accepted == rounds || several < rounds/8 {
		t.Errorf("COUNTERSIGN_SEED=%d: the graphs show too little", seed)
	}
}

// TestExamineCorpus compares verifier and checks on chains in a folder: anchor.pem, and any number of files with a chain
// each. interop's tests fill it with the bettertls corpus.
func TestExamineCorpus(t *testing.T) {
	dir := os.Getenv("COUNTERSIGN_CORPUS")
	if dir == "" {
		t.Skip("COUNTERSIGN_CORPUS names no folder; interop's TestBetterTLSExplained does")
	}
	data, err := os.ReadFile(filepath.Join(dir, "anchor.pem"))
	if err != nil {
		t.Fatal(err)
	}
	anchors, err := LoadCertificates(data)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s, err := NewStore("corpus", anchors, nil, nil, Options{MaxDepth: 10, MaxPresented: 10, EKU: EKUAllowServerAuth, EKUUntil: now.Add(24 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.chain"))
	if err != nil || len(files) == 0 {
		t.Fatal("no chains", err)
	}
	accepted, more := 0, 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		presented, err := LoadCertificates(data)
		if err != nil {
			continue // a chain that cannot be parsed is never presented
		}
		e := agree(t, s, presented, now, true)
		if e.Verdict.Accepted {
			accepted++
		}
		if e.More {
			more++
		}
		if t.Failed() {
			t.Fatal(file)
		}
	}
	t.Logf("%d chains: %d accepted, %d with more paths than are looked at", len(files), accepted, more)
	if accepted == 0 || accepted == len(files) || more > len(files)/100 {
		t.Errorf("%d of %d accepted, %d not looked at whole", accepted, len(files), more)
	}
}

// TestExamineIsBounded shows that certificates made to keep the walk busy do not (B21).
func TestExamineIsBounded(t *testing.T) {
	t.Run("B21/cross-certified maze", func(t *testing.T) {
		root := testpki.New(t)
		a := root.Intermediate("Maze")
		presented := []*x509.Certificate{a.Client("leaf").Cert}
		for range 9 { // nine keys of one name, each certified by the one before
			a = a.Intermediate("Maze", testpki.Subject(pkix.Name{CommonName: "Maze"}))
			presented = append(presented, a.Cert)
		}
		s, err := NewStore("maze", []*x509.Certificate{root.Cert}, nil, nil, Options{MaxPresented: 10, MaxDepth: 10})
		if err != nil {
			t.Fatal(err)
		}
		if e := s.Examine(presented, time.Now()); len(e.Paths) > maxPaths {
			t.Errorf("%d paths", len(e.Paths))
		}
	})
	t.Run("CAs that sign each other", func(t *testing.T) {
		root := testpki.New(t)
		a := root.Intermediate("A")
		b := a.Intermediate("B")
		again := b.Intermediate("A again", testpki.Like(a))
		s, err := NewStore("circle", []*x509.Certificate{root.Cert}, nil, nil, Options{MaxPresented: 10})
		if err != nil {
			t.Fatal(err)
		}
		e := agree(t, s, []*x509.Certificate{a.Client("leaf").Cert, again.Cert, b.Cert, a.Cert}, time.Now(), true)
		if len(e.Paths) != 2 || !e.Paths[0].Good() || e.Paths[1].Anchored {
			t.Errorf("%d paths\n%s", len(e.Paths), told(e))
		}
	})
	t.Run("too many are told and still looked at", func(t *testing.T) {
		root := testpki.New(t)
		leaf := root.Client("leaf")
		presented := []*x509.Certificate{leaf.Cert}
		for range 40 {
			presented = append(presented, root.Intermediate("X").Cert)
		}
		s, err := NewStore("many", []*x509.Certificate{root.Cert}, nil, nil, Options{})
		if err != nil {
			t.Fatal(err)
		}
		e := agree(t, s, presented, time.Now(), true)
		if e.Verdict.Reason != reason.ClientCertTooMany || len(e.Paths) != 1 || !e.Paths[0].Good() {
			t.Errorf("%v\n%s", e.Verdict.Reason, told(e))
		}
	})
	t.Run("nothing presented", func(t *testing.T) {
		s, err := NewStore("none", []*x509.Certificate{testpki.New(t).Cert}, nil, nil, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if e := agree(t, s, nil, time.Now(), true); e.Verdict.Reason != reason.ClientCertMissing {
			t.Error(e.Verdict.Reason)
		}
		if e := (*Store)(nil).Examine(nil, time.Now()); e.Good() || e.Verdict.Accepted {
			t.Error("a store that is none accepts")
		}
	})
}
