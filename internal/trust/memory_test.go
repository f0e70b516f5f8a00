package trust

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"countersign/internal/testpki"
)

var (
	worlds    = flag.Int("worlds", 20, "`number` of random PKIs in which memory is compared with none; 2000 take four minutes")
	worldSeed = flag.Uint64("worldseed", 0, "`seed` of the first of them; 0 for another one each time")
)

// TestMemorySaysTheSame: whoever comes, and whatever came before, is judged with memory as without: in random PKIs of few
// names and keys, so that much is mistaken for something else, by two stores with one memory, while the clock goes both ways.
func TestMemorySaysTheSame(t *testing.T) {
	first := *worldSeed
	if first == 0 {
		first = rand.Uint64()>>1 | 1
	}
	cases, used := 0, 0
	for i := range *worlds {
		n, u := newJungle(t, first+uint64(i)).compare()
		cases, used = cases+n, used+u
		if t.Failed() {
			t.Fatalf("with -worlds 1 -worldseed %d", first+uint64(i))
		}
	}
	if t.Logf("%d cases, %d of them from memory of issuers", cases, used); *worlds >= 20 && used < cases/100 {
		t.Errorf("memory was used for %d of %d cases; so little says nothing", used, cases)
	}
}

// jungle is a random PKI.
type jungle struct {
	*testing.T
	*rand.Rand
	now            time.Time
	roots, inters  []*testpki.Cert
	leaves         []*testpki.Cert
	calm, together bool // few oddities; most leaves below one CA
}

// in reports true in so many of a hundred cases.
func (j *jungle) in(percent int) bool { return j.IntN(100) < percent }

func one[T any](j *jungle, of []T) T { return of[j.IntN(len(of))] }

func oddity(id int, value ...byte) testpki.Option {
	return testpki.ExtraExt(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, id}, Value: value})
}

func newJungle(t *testing.T, seed uint64) *jungle {
	j := &jungle{T: t, Rand: rand.New(rand.NewPCG(seed, 0)), now: time.Now().Truncate(time.Second)}
	j.calm, j.together = j.in(65), j.in(50)
	var keys []*testpki.Cert
	for range 2 + j.IntN(4) {
		keys = append(keys, testpki.New(t, one(j, [][]testpki.Option{nil, nil, nil, {testpki.Ed25519()}, {testpki.P384()}})...))
	}
	who := func() []testpki.Option { // mostly a name with its own key
		name := one(j, keys)
		key := name
		if j.in(25) {
			key = one(j, keys)
		}
		return []testpki.Option{testpki.RawSubject(name.Cert.RawSubject), testpki.KeyOf(key)}
	}
	for range 1 + j.IntN(3) {
		root := testpki.New(t, slices.Concat(who(), j.purposes(false), j.dates(), j.oddities(true))...)
		if checkAnchor(root.Cert) != nil {
			root = testpki.New(t, who()...)
		}
		j.roots = append(j.roots, root)
	}
	ca := func() *testpki.Cert {
		if len(j.inters) == 0 || j.in(40) {
			return one(j, j.roots)
		}
		return one(j, j.inters)
	}
	for range 2 + j.IntN(6) {
		j.inters = append(j.inters, ca().Intermediate("I", slices.Concat(who(), j.purposes(false), j.dates(), j.oddities(true))...))
	}
	favourites := []*testpki.Cert{ca(), ca()}
	if j.together {
		favourites = favourites[:1]
	}
	for i := range 30 {
		issuer := ca()
		if j.in(90) {
			issuer = one(j, favourites)
		}
		opts := slices.Concat(j.purposes(true), j.oddities(false))
		if j.in(10) {
			opts = append(opts, j.dates()...)
		} else {
			opts = append(opts, testpki.NotBefore(j.now.Add(-48*time.Hour)), testpki.NotAfter(j.now.Add(72*time.Hour)))
		}
		if j.in(8) {
			opts = append(opts, who()...)
		}
		j.leaves = append(j.leaves, issuer.Client(fmt.Sprint("client ", i), opts...))
	}
	return j
}

var purposeOne, purposeTwo = asn1.ObjectIdentifier{1, 2, 3}, asn1.ObjectIdentifier{1, 2, 4}

func (j *jungle) purposes(leaf bool) []testpki.Option {
	client, server := x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth
	oids := func(all ...asn1.ObjectIdentifier) []testpki.Option {
		return []testpki.Option{testpki.NoEKU(), ekuOIDs(j, all...)}
	}
	common := []testpki.Option{testpki.EKU(client)}
	if !leaf {
		common = nil
	}
	if j.in(60) {
		return common
	}
	return one(j, [][]testpki.Option{{testpki.EKU(server)}, {testpki.EKU(client, server)}, {testpki.EKU(x509.ExtKeyUsageAny)}, {testpki.NoEKU()},
		oids(purposeOne), oids(purposeTwo), oids(purposeOne, purposeTwo), {testpki.EKU(client)}})
}

func (j *jungle) dates() []testpki.Option {
	switch at := func(d time.Duration, most int) time.Time { return j.now.Add(d * time.Duration(1+j.IntN(most))) }; j.IntN(14) {
	case 0:
		return []testpki.Option{testpki.NotAfter(at(time.Hour, 30))}
	case 1:
		return []testpki.Option{testpki.NotBefore(at(time.Hour, 10))}
	case 2:
		return []testpki.Option{testpki.NotAfter(at(-time.Minute, 10))}
	case 3:
		return []testpki.Option{testpki.NotBefore(at(-time.Minute, 10))}
	}
	return nil
}

// oddities are extensions and other things that a rule of chains is about.
func (j *jungle) oddities(ca bool) (opts []testpki.Option) {
	maybe := func(percent int, o testpki.Option) {
		if j.in(percent) {
			opts = append(opts, o)
		}
	}
	drop := func(id int) testpki.Option {
		return testpki.Edit(func(tbs *testpki.TBS) {
			tbs.Extensions = slices.DeleteFunc(tbs.Extensions, func(x pkix.Extension) bool { return x.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, id}) })
		})
	}
	maybe(10, drop(35)) // authorityKeyIdentifier
	maybe(10, oddity(32, 0x30, 8, 0x30, 6, 0x06, 4, 0x2a, 3, 4, 5))
	maybe(5, testpki.KeyUsage(0))
	maybe(1, testpki.UnknownCritical())
	maybe(1, testpki.SHA1())
	if !j.calm {
		maybe(5, oddity(36, 0x30, 3, one(j, []byte{0x80, 0x81}), 1, byte(j.IntN(3)))) // requireExplicitPolicy, inhibitPolicyMapping
		maybe(2, oddity(54, 2, 1, byte(j.IntN(2))))
		maybe(2, testpki.KeyUsage(x509.KeyUsageDigitalSignature))
	}
	if ca {
		maybe(11, one(j, []testpki.Option{testpki.NotCA(), testpki.PathLen(0), testpki.PathLen(0), testpki.PathLen(1), testpki.PathLen(1), testpki.PathLen(2)}))
		maybe(10, testpki.DNS("ca.good.test"))
		if !j.calm {
			maybe(4, testpki.PermitDNS("good.test"))
		}
		return opts
	}
	maybe(1, testpki.CA())
	maybe(30, testpki.DNS(one(j, []string{"a.good.test", "b.evil.test", "ca.good.test"})))
	return opts
}

// options are those of a store. What it denies is a CA.
func (j *jungle) options() Options {
	o := Options{MaxPresented: 10, MaxDepth: one(j, []int{4, 10}), AllowExpiredLeaf: j.in(10)}
	switch j.IntN(5) {
	case 0:
		o.EKU = EKUAllowAbsent
	case 1:
		o.EKU, o.EKUUntil = EKUAllowServerAuth, j.now.Add(time.Duration(j.IntN(20))*time.Hour)
	case 2:
		o.EKU, o.EKUOIDs = EKUCustom, []asn1.ObjectIdentifier{purposeOne, purposeTwo}[:1+j.IntN(2)]
	}
	if j.in(20) {
		denied := one(j, slices.Concat(j.roots, j.inters))
		o.Deny, _ = NewDenyList([]DenyEntry{{Certificate: fmt.Sprintf("%x", sha256.Sum256(denied.Cert.Raw))}})
	}
	return o
}

// present is a leaf with what it is sent with: mostly what somebody before was sent with.
func (j *jungle) present(known [][]*x509.Certificate) []*x509.Certificate {
	leaf := one(j, j.leaves)
	all := leaf.Presented()
	if len(known) > 0 && j.in(80) {
		before := one(j, known)
		if like := slices.Collect(func(yield func(*testpki.Cert) bool) {
			for _, l := range j.leaves {
				if string(l.Cert.RawIssuer) == string(before[0].RawIssuer) && !yield(l) {
					return
				}
			}
		}); len(like) > 0 && j.in(70) {
			leaf = one(j, like)
		}
		all = append([]*x509.Certificate{leaf.Cert}, before[1:]...)
	}
	for j.in(10) && len(all) < 8 {
		all = append(all, one(j, slices.Concat(j.inters, j.roots)).Cert)
	}
	if j.in(4) {
		all = append(all, one(j, all))
	}
	if j.in(4) && len(all) > 1 {
		all = all[:len(all)-1]
	}
	if j.in(4) && len(all) > 2 {
		j.Shuffle(len(all)-1, func(a, b int) { all[a+1], all[b+1] = all[b+1], all[a+1] })
	}
	if j.in(3) {
		der := slices.Clone(leaf.Cert.Raw)
		der[len(der)-3] ^= 1 // of the signature
		if forged, err := x509.ParseCertificate(der); err == nil {
			all[0] = forged
		}
	}
	return all
}

// compare asks stores with memory and without. It returns how often, and how often memory of issuers was used.
func (j *jungle) compare() (cases, used int) {
	type pair struct{ plain, memory *Store }
	var stores []pair
	chains := NewChains(200)
	for range 2 {
		opts, anchors := j.options(), j.roots
		if j.in(30) {
			anchors = anchors[:1+j.IntN(len(anchors))]
		}
		plain := store(j, opts, anchors...)
		opts.Chains = chains
		stores = append(stores, pair{plain, store(j, opts, anchors...)})
	}
	var known [][]*x509.Certificate
	var beliefs []Belief
	at := j.now
	for range 120 {
		switch j.IntN(6) {
		case 0:
			at = j.now.Add(time.Duration(j.IntN(48*60)-120) * time.Minute)
		case 1:
			at = at.Add(time.Duration(j.IntN(12)-6) * time.Minute)
		}
		s, presented := one(j, stores), j.present(known)
		cases++
		if p, f := s.memory.leaf(presented[0], x509.ExtKeyUsageClientAuth, at); f == nil && chains.find(s.memory.key(presented), at) == nil &&
			below(chains.issuers.find(s.memory.issuersKey(presented[0], presented[1:], p), at), presented[0]) != nil {
			used++
		}
		got := s.memory.Verify(presented, at)
		same(j.T, got, s.plain.Verify(presented, at))
		if got.Accepted && j.in(50) {
			s.memory.Remember(&got)
			known, beliefs = append(known, presented), append(beliefs, got.Belief())
		}
		if n := len(known); n > 0 && j.in(30) {
			i := j.IntN(n)
			got, want := s.memory.VerifyAgain(known[i], beliefs[i], at), s.plain.Verify(known[i], at)
			if got.Accepted != want.Accepted || got.Reason != want.Reason {
				j.Errorf("again: accepted=%t %v; without memory accepted=%t %v", got.Accepted, got.Err(), want.Accepted, want.Err())
			}
		}
	}
	return cases, used
}
