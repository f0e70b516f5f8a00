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

func store(t testing.TB, opts Options, anchors ...*testpki.Cert) *Store {
	t.Helper()
	return storeCRL(t, opts, nil, anchors...)
}

// storeCRL makes a store of anchors that checks lists.
func storeCRL(t testing.TB, opts Options, lists [][]byte, anchors ...*testpki.Cert) *Store {
	t.Helper()
	s, err := newStore(t, opts, lists, anchors...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newStore(t testing.TB, opts Options, lists [][]byte, anchors ...*testpki.Cert) (*Store, error) {
	t.Helper()
	var certs []*x509.Certificate
	for _, a := range anchors {
		certs = append(certs, a.Cert)
	}
	var crls []*CRL
	for _, der := range lists {
		l, err := ParseCRL(der)
		if err != nil {
			return nil, err
		}
		crls = append(crls, l)
	}
	opts.CheckRevocation = opts.CheckRevocation || lists != nil
	return NewStore("partners", certs, crls, nil, opts)
}

// quickly fails unless f takes no longer than most, once in three times: a machine that does something else meanwhile does
// not do so every time.
func quickly(t *testing.T, most time.Duration, f func()) {
	t.Helper()
	var took time.Duration
	for range 3 {
		start := time.Now()
		if f(); time.Since(start) <= most {
			return
		}
		took = time.Since(start)
	}
	t.Errorf("took %v", took)
}

func verify(s *Store, c *testpki.Cert) Verdict { return s.Verify(c.Presented(), time.Now()) }

// refused asserts reason, depth and that the evidence is there and short.
func refused(t *testing.T, v Verdict, want reason.Reason, depth int) {
	t.Helper()
	if v.Accepted || v.Reason != want || v.Depth != depth {
		t.Errorf("accepted=%t %v at depth %d (expected %s, found %s, cause %v); want %v at depth %d",
			v.Accepted, v.Reason, v.Depth, v.Expected, v.Found, v.Cause, want, depth)
		return
	}
	line := fmt.Sprint(v.Err())
	if v.Err() == nil || len(line) > 1024 || strings.ContainsFunc(line, control) {
		t.Errorf("evidence is not fit for a log line: %q", line)
	}
	if v.Found == "" || v.Store != "partners" || v.Version == "" {
		t.Errorf("incomplete verdict %+v", v)
	}
}

func accepted(t *testing.T, v Verdict) {
	t.Helper()
	if !v.Accepted || v.Reason != reason.Unset || v.Err() != nil {
		t.Errorf("refused: %v", v.Err())
	}
}

// Each case is one leaf against one root.
func TestRefuseLeaf(t *testing.T) {
	any := x509.ExtKeyUsageAny
	client, server := x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth
	for _, c := range []struct {
		name string
		opts []testpki.Option
		rule Options
		want reason.Reason
	}{
		{"B01/server certificate", []testpki.Option{testpki.EKU(server)}, Options{}, reason.ClientCertEKU},
		{"B01/server certificate, lenient", []testpki.Option{testpki.EKU(server)}, Options{EKU: EKUAllowAbsent}, reason.ClientCertEKU},
		{"B02/no purpose", []testpki.Option{testpki.NoEKU()}, Options{}, reason.ClientCertEKUMissing},
		{"B02/any purpose", []testpki.Option{testpki.EKU(any)}, Options{}, reason.ClientCertEKU},
		{"B02/no purpose, lenient", []testpki.Option{testpki.NoEKU()}, Options{EKU: EKUAllowAbsent}, reason.Unset},
		{"B02/any purpose, lenient", []testpki.Option{testpki.EKU(any)}, Options{EKU: EKUAllowAbsent}, reason.Unset},
		{"B02/both purposes", []testpki.Option{testpki.EKU(server, client)}, Options{}, reason.Unset},
		{"B03/leaf is a CA", []testpki.Option{testpki.CA()}, Options{}, reason.ClientCertIsCA},
		{"B04/encipherment only", []testpki.Option{testpki.KeyUsage(x509.KeyUsageKeyEncipherment)}, Options{}, reason.ClientCertKeyUsage},
		{"B04/no keyUsage", []testpki.Option{testpki.KeyUsage(0)}, Options{}, reason.Unset},
		{"B10/NUL", []testpki.Option{testpki.DNS("victim.test\x00.evil")}, Options{}, reason.ClientCertSANInvalid},
		{"B10/empty", []testpki.Option{testpki.DNS("")}, Options{}, reason.ClientCertSANInvalid},
		{"B10/asterisk", []testpki.Option{testpki.DNS("*")}, Options{}, reason.ClientCertSANInvalid},
		{"B10/separators", []testpki.Option{testpki.DNS(`a b,c;d="e`)}, Options{}, reason.ClientCertSANInvalid},
		{"B10/underscore", []testpki.Option{testpki.DNS("a_b.test")}, Options{}, reason.ClientCertSANInvalid},
		{"B10/second of two", []testpki.Option{testpki.DNS("ok.test", "a..test")}, Options{}, reason.ClientCertSANInvalid},
		{"B10/inner wildcard", []testpki.Option{testpki.DNS("a.*.test")}, Options{}, reason.ClientCertSANInvalid},
		{"B10/long label", []testpki.Option{testpki.DNS(strings.Repeat("a", 64) + ".test")}, Options{}, reason.ClientCertSANInvalid},
		{"B10/mail with NUL", []testpki.Option{testpki.Email("A@B\x00")}, Options{}, reason.ClientCertSANInvalid},
		{"B10/URI with encoded NUL", []testpki.Option{testpki.URI("spiffe://td/a%00b")}, Options{}, reason.ClientCertSANInvalid},
		{"B10/wildcard and mail", []testpki.Option{testpki.DNS("*.ok.test"), testpki.Email("a@ok.test"), testpki.URI("spiffe://td/a")}, Options{}, reason.Unset},
		{"B14/critical extension", []testpki.Option{testpki.UnknownCritical()}, Options{}, reason.ClientCertInvalid},
		{"B14/not yet valid", []testpki.Option{testpki.NotYetValid()}, Options{}, reason.ClientCertNotYetValid},
		{"B15/serial 0", []testpki.Option{testpki.Serial(new(big.Int))}, Options{}, reason.ClientCertSerial},
		{"B15/serial of 21 octets", []testpki.Option{testpki.Serial(new(big.Int).Lsh(big.NewInt(1), 159))}, Options{}, reason.ClientCertSerial},
		{"B15/serial of 126 octets", []testpki.Option{testpki.Serial(new(big.Int).Lsh(big.NewInt(1), 1000))}, Options{}, reason.ClientCertSerial},
		{"B15/serial of 20 octets", []testpki.Option{testpki.Serial(new(big.Int).Lsh(big.NewInt(1), 158))}, Options{}, reason.Unset},
		{"B16/RSA 1024", []testpki.Option{testpki.RSA(1024)}, Options{}, reason.ClientCertWeakKey},
		{"B16/RSA 16384", []testpki.Option{testpki.RSA(16384)}, Options{}, reason.ClientCertWeakKey},
		{"B16/RSA exponent 1", []testpki.Option{testpki.RSAExponent(1)}, Options{}, reason.ClientCertWeakKey},
		{"B16/P-224", []testpki.Option{testpki.P224()}, Options{}, reason.ClientCertWeakKey},
		{"B16/SHA-1", []testpki.Option{testpki.SHA1()}, Options{}, reason.ClientCertWeakSignature},
		{"B16/RSA 2048", []testpki.Option{testpki.RSA(2048)}, Options{}, reason.Unset},
		{"B16/P-384", []testpki.Option{testpki.P384()}, Options{}, reason.Unset},
		{"B16/P-521", []testpki.Option{testpki.P521()}, Options{}, reason.Unset},
		{"B16/Ed25519", []testpki.Option{testpki.Ed25519()}, Options{}, reason.Unset},
		{"B27/expired", []testpki.Option{testpki.Expired()}, Options{}, reason.ClientCertExpired},
		{"B27/expired, allowed", []testpki.Option{testpki.Expired()}, Options{AllowExpiredLeaf: true}, reason.Unset},
		{"B27/not yet valid", []testpki.Option{testpki.NotYetValid()}, Options{AllowExpiredLeaf: true}, reason.ClientCertNotYetValid},
		{"B27/expired with weak key", []testpki.Option{testpki.Expired(), testpki.RSA(1024)}, Options{AllowExpiredLeaf: true}, reason.ClientCertWeakKey},
		{"B28/version 1", []testpki.Option{testpki.V1()}, Options{EKU: EKUAllowAbsent}, reason.ClientCertVersion},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := testpki.New(t)
			v := verify(store(t, c.rule, root), root.Client("alice", c.opts...))
			if c.want == reason.Unset {
				accepted(t, v)
			} else {
				refused(t, v, c.want, 0)
			}
		})
	}
	t.Run("B10/names", func(t *testing.T) {
		for n, want := range map[string]bool{"a": true, "A.test": true, "*.a.test": true, "1.2.3.4": true, "xn--a.test": true,
			"": false, "a.": false, ".a": false, "-a.test": false, "a-.test": false, "*": false, "*a.test": false, "a.*": false,
			"*.*.test": false, "bücher.test": false, "a/b": false, "a@b": false, "[": false, strings.Repeat("a.", 127): false} {
			if dnsName(n) != want {
				t.Errorf("%q: %t", n, !want)
			}
		}
	})
}

func TestRefuseChain(t *testing.T) {
	root := testpki.New(t)
	strict := store(t, Options{}, root)

	t.Run("B01/issuer for servers only", func(t *testing.T) {
		inter := root.Intermediate("Servers only", testpki.EKU(x509.ExtKeyUsageServerAuth))
		refused(t, verify(strict, inter.Client("alice")), reason.ClientCertEKU, 1)
		refused(t, verify(store(t, Options{EKU: EKUAllowAbsent}, root), inter.Client("alice", testpki.NoEKU())), reason.ClientCertEKU, 1)
	})
	t.Run("B03/anchor as client", func(t *testing.T) {
		refused(t, verify(strict, root), reason.ClientCertIsAnchor, 0)
		refused(t, verify(strict, testpki.New(t, testpki.Like(root))), reason.ClientCertIsAnchor, 0)
	})
	t.Run("B03/intermediate as client", func(t *testing.T) {
		refused(t, verify(strict, root.Intermediate("Inter")), reason.ClientCertIsCA, 0)
	})
	t.Run("B05/leaf in the trust store", func(t *testing.T) {
		alice := root.Client("alice")
		if _, err := newStore(t, Options{}, nil, root, alice); err == nil || !strings.Contains(err.Error(), "CA:TRUE") {
			t.Error(err)
		}
	})
	t.Run("B05/leaf signed by a leaf", func(t *testing.T) {
		refused(t, verify(strict, root.Client("alice").Client("mallory")), reason.ClientCertConstraint, 1)
	})
	t.Run("B05/same name and serial, other key", func(t *testing.T) {
		alice := root.Client("alice")
		refused(t, verify(strict, testpki.New(t, testpki.RawSubject(root.Cert.RawSubject)).Client("alice", testpki.Serial(alice.Cert.SerialNumber))),
			reason.ClientCertUntrusted, 0)
	})
	t.Run("B07/chain is the verified one", func(t *testing.T) {
		inter := root.Intermediate("Inter")
		alice := inter.Client("alice")
		stranger := testpki.New(t).Client("admin")
		v := strict.Verify([]*x509.Certificate{alice.Cert, stranger.Cert, inter.Cert}, time.Now())
		accepted(t, v)
		if want := []*x509.Certificate{alice.Cert, inter.Cert, root.Cert}; !slices.EqualFunc(v.Chain, want, (*x509.Certificate).Equal) {
			t.Errorf("chain of %d certificates", len(v.Chain))
		}
		if v.Chain[0] != alice.Cert {
			t.Error("the leaf of the chain is a copy")
		}
	})
	t.Run("name constraint", func(t *testing.T) {
		inter := root.Intermediate("ok.test only", testpki.PermitDNS("ok.test"))
		refused(t, verify(strict, inter.Client("x", testpki.DNS("evil.test"))), reason.ClientCertConstraint, 0)
		accepted(t, verify(strict, inter.Client("x", testpki.DNS("a.ok.test"))))
	})
	t.Run("B14/path length", func(t *testing.T) {
		inter := root.Intermediate("A", testpki.PathLen(0)).Intermediate("B")
		refused(t, verify(strict, inter.Client("alice")), reason.ClientCertConstraint, 2)
	})
	t.Run("B14/critical extension in the issuer", func(t *testing.T) {
		refused(t, verify(strict, root.Intermediate("I", testpki.UnknownCritical()).Client("alice")), reason.ClientCertInvalid, 1)
	})
	t.Run("B14/issuer not yet valid", func(t *testing.T) {
		refused(t, verify(strict, root.Intermediate("I", testpki.NotYetValid()).Client("alice")), reason.ClientCertNotYetValid, 1)
	})
	t.Run("B14/expired issuer", func(t *testing.T) {
		refused(t, verify(strict, root.Intermediate("I", testpki.Expired()).Client("alice")), reason.ClientCertIssuerExpired, 1)
	})
	t.Run("B14/expired anchor", func(t *testing.T) {
		old := testpki.New(t, testpki.Expired())
		refused(t, verify(store(t, Options{}, old), old.Client("alice")), reason.ClientCertIssuerExpired, 1)
	})
	t.Run("B15/serial of the issuer", func(t *testing.T) {
		inter := root.Intermediate("I", testpki.Serial(new(big.Int).Lsh(big.NewInt(1), 1000)))
		refused(t, verify(strict, inter.Client("alice")), reason.ClientCertSerial, 1)
	})
	t.Run("B16/issuer", func(t *testing.T) {
		refused(t, verify(strict, root.Intermediate("I", testpki.RSA(1024)).Client("alice")), reason.ClientCertWeakKey, 1)
		refused(t, verify(strict, root.Intermediate("I", testpki.SHA1()).Client("alice")), reason.ClientCertWeakSignature, 1)
	})
	t.Run("B16/anchor", func(t *testing.T) {
		if _, err := newStore(t, Options{}, nil, testpki.New(t, testpki.RSA(1024))); err == nil || !strings.Contains(err.Error(), "1024") {
			t.Error(err)
		}
		sha1 := testpki.New(t, testpki.SHA1()) // its own signature proves nothing
		accepted(t, verify(store(t, Options{}, sha1), sha1.Client("alice")))
	})
	t.Run("B17/one good path is enough", func(t *testing.T) {
		a, b := testpki.New(t, testpki.Expired()), testpki.New(t)
		cross := b.Intermediate("cross", testpki.Like(a))
		alice := a.Client("alice")
		v := store(t, Options{}, a, b).Verify([]*x509.Certificate{alice.Cert, cross.Cert}, time.Now())
		accepted(t, v)
		if len(v.Chain) != 3 || !v.Chain[2].Equal(b.Cert) {
			t.Error("not the path by root B")
		}
		s := storeCRL(t, Options{Missing: MissingIfPresent}, [][]byte{b.CRL(cross)}, a, b)
		refused(t, s.Verify([]*x509.Certificate{alice.Cert, cross.Cert}, time.Now()), reason.ClientIssuerRevoked, 1)
	})
	t.Run("B18/shuffled, duplicate, unrelated, cyclic", func(t *testing.T) {
		s := store(t, Options{MaxPresented: 10}, root)
		one := root.Intermediate("One")
		two := one.Intermediate("Two")
		alice := two.Client("alice")
		accepted(t, s.Verify([]*x509.Certificate{alice.Cert, one.Cert, two.Cert, one.Cert, alice.Cert}, time.Now()))
		x := testpki.New(t)
		y := x.Intermediate("Y")
		loop := y.Intermediate("X by Y", testpki.Like(x))
		certs := []*x509.Certificate{y.Client("mallory").Cert, y.Cert, loop.Cert}
		for range 7 {
			certs = append(certs, x.Intermediate("Y", testpki.Like(y)).Cert)
		}
		quickly(t, time.Second, func() { refused(t, s.Verify(certs, time.Now()), reason.ClientCertUntrusted, 2) })
	})
	t.Run("B19/two anchors of one name", func(t *testing.T) {
		old := testpki.New(t)
		young := testpki.New(t, testpki.RawSubject(old.Cert.RawSubject))
		serial := testpki.Serial(big.NewInt(77))
		a, b := old.Client("a", serial), young.Client("b", serial)
		s := storeCRL(t, Options{Missing: MissingIfPresent}, [][]byte{old.CRL(a)}, old, young)
		refused(t, verify(s, a), reason.ClientCertRevoked, 0)
		accepted(t, verify(s, b))
		// Without key identifiers only the signature tells the two apart.
		s = storeCRL(t, Options{Missing: MissingIfPresent}, [][]byte{old.CRL(a, testpki.NoAKI())}, old, young)
		refused(t, verify(s, a), reason.ClientCertRevoked, 0)
		accepted(t, verify(s, b))
	})
	t.Run("B20/depth", func(t *testing.T) {
		ca := root
		for i := range 3 {
			ca = ca.Intermediate(fmt.Sprint("Inter ", i))
		}
		accepted(t, verify(strict, ca.Client("four")))
		five := ca.Intermediate("Inter 3").Client("five")
		refused(t, verify(strict, five), reason.ClientCertTooMany, 0)
		refused(t, verify(store(t, Options{MaxPresented: 10}, root), five), reason.ClientCertDepth, 4)
		accepted(t, verify(store(t, Options{MaxPresented: 10, MaxDepth: 5}, root), five))
	})
	t.Run("B21/huge keys are never used", func(t *testing.T) {
		bomb := root.Intermediate("Bomb", testpki.RSA(65536))
		// Issued by name only: the bomb's private key does not exist.
		alice := testpki.New(t, testpki.RawSubject(bomb.Cert.RawSubject)).Client("alice")
		s := store(t, Options{MaxPresented: 10}, root)
		certs := append([]*x509.Certificate{alice.Cert}, bomb.Presented()...)
		quickly(t, time.Second, func() {
			for range 100 {
				refused(t, s.Verify(certs, time.Now()), reason.ClientCertWeakKey, 1)
			}
		})
	})
	t.Run("B21/many issuers of one name", func(t *testing.T) {
		name := testpki.RawSubject(testpki.New(t).Cert.RawSubject)
		certs := []*x509.Certificate{testpki.New(t, name).Client("alice").Cert}
		for range 9 {
			certs = append(certs, root.Intermediate("", name, testpki.RSA(8192)).Cert)
		}
		quickly(t, time.Second, func() {
			refused(t, store(t, Options{MaxPresented: 10}, root).Verify(certs, time.Now()), reason.ClientCertUntrusted, 0)
		})
	})
	t.Run("B21/errors are bounded and clean", func(t *testing.T) {
		evil := pkix.Name{CommonName: strings.Repeat("A\n{\"level\":\"\x1b[31m\u202e\x00", 500)}
		refused(t, verify(strict, testpki.New(t, testpki.Subject(evil)).Client("x", testpki.Subject(evil))), reason.ClientCertUntrusted, 0)
		inter := root.Intermediate("ok.test only", testpki.PermitDNS("ok.test"))
		refused(t, verify(strict, inter.Client("x", testpki.DNS(strings.Repeat(strings.Repeat("a", 60)+".", 4)+"test"))), reason.ClientCertConstraint, 0)
	})
	t.Run("B22/size", func(t *testing.T) {
		big := root.Client("big", testpki.ExtraExt(pkix.Extension{Id: []int{1, 2, 3}, Value: make([]byte, 33<<10)}))
		refused(t, verify(strict, big), reason.ClientCertTooLarge, 0)
	})
	t.Run("B25/nothing presented", func(t *testing.T) {
		refused(t, strict.Verify(nil, time.Now()), reason.ClientCertMissing, 0)
		refused(t, strict.Verify([]*x509.Certificate{nil}, time.Now()), reason.ClientCertUnparsable, 0)
		refused(t, strict.Verify([]*x509.Certificate{{}}, time.Now()), reason.ClientCertUnparsable, 0)
		refused(t, strict.Verify(root.Client("alice").Presented(), time.Time{}), reason.Internal, 0)
		if (Verdict{}).Err() == nil {
			t.Error("the zero verdict accepts")
		}
	})
	t.Run("B27/only the leaf's end is ignored", func(t *testing.T) {
		s := store(t, Options{AllowExpiredLeaf: true}, root)
		past := testpki.Expired()
		refused(t, verify(s, root.Intermediate("I", past).Client("alice", past)), reason.ClientCertIssuerExpired, 1)
		refused(t, verify(s, testpki.New(t).Client("alice", past)), reason.ClientCertUntrusted, 0)
		alice := root.Client("alice", past)
		refused(t, verify(storeCRL(t, Options{AllowExpiredLeaf: true}, [][]byte{root.CRL(alice)}, root), alice), reason.ClientCertRevoked, 0)
		// The issuer was renewed after the leaf had expired.
		young := root.Intermediate("I", testpki.NotBefore(time.Now().Add(-time.Minute)))
		accepted(t, verify(s, young.Client("alice", past)))
	})
	t.Run("B27/a stranger's expired certificate is a stranger's", func(t *testing.T) {
		refused(t, verify(strict, testpki.New(t).Client("alice", testpki.Expired())), reason.ClientCertUntrusted, 0)
	})
	t.Run("B28/issuer of version 1", func(t *testing.T) {
		refused(t, verify(strict, root.Intermediate("I", testpki.V1()).Client("alice")), reason.ClientCertVersion, 1)
		if _, err := newStore(t, Options{}, nil, testpki.New(t, testpki.V1())); err == nil {
			t.Error("an anchor of version 1 was taken")
		}
	})
	t.Run("B28/issuer without basicConstraints", func(t *testing.T) {
		refused(t, verify(strict, root.Intermediate("I", testpki.NoBasicConstraints()).Client("alice")), reason.ClientCertConstraint, 1)
		refused(t, verify(strict, root.Intermediate("I", testpki.KeyUsage(x509.KeyUsageCRLSign)).Client("alice")), reason.ClientCertConstraint, 1)
	})
	t.Run("B28/what crypto/x509 does not read", func(t *testing.T) {
		san := pkix.Extension{Id: []int{2, 5, 29, 17}, Value: []byte{0x30, 3, 0x82, 1, 'a'}}
		for name, opt := range map[string]testpki.Option{
			"two SANs":      testpki.Edit(func(b *testpki.TBS) { b.Extensions = append(b.Extensions, san, san) }),
			"inner/outer":   testpki.Edit(func(b *testpki.TBS) { b.Algorithm.Algorithm = []int{1, 2, 840, 10045, 4, 3, 3} }),
			"serial of -1":  testpki.Serial(big.NewInt(-1)),
			"no extensions": testpki.Edit(func(b *testpki.TBS) { b.Version = 1; b.Extensions = nil }),
		} {
			c := root.Client("alice", opt)
			if c.Cert == nil {
				continue
			}
			if v := verify(strict, c); v.Accepted {
				t.Errorf("%s: accepted", name)
			}
		}
		if _, err := x509.ParseCertificate(append(slices.Clone(root.DER()), 0)); err == nil {
			t.Error("trailing bytes are read")
		}
	})
	t.Run("untrusted", func(t *testing.T) {
		inter := testpki.New(t, testpki.Subject(pkix.Name{CommonName: "Their Root"})).Intermediate("Their CA")
		v := verify(strict, inter.Client("alice"))
		refused(t, v, reason.ClientCertUntrusted, 1)
		if v.Expected != `an issuer in trust store "partners"` || v.Found != `issuer "CN=Their Root" of "CN=Their CA", which was neither sent nor trusted` || v.At == nil {
			t.Errorf("expected %s, found %s", v.Expected, v.Found)
		}
		// The root was sent, so that cannot be what is missing.
		their := testpki.New(t, testpki.Subject(pkix.Name{CommonName: "Their Root"}))
		whole := append(their.Client("alice").Presented(), their.Cert)
		selfSigned := testpki.New(t, testpki.Subject(pkix.Name{CommonName: "alone"}), testpki.NotCA(),
			testpki.KeyUsage(x509.KeyUsageDigitalSignature), testpki.EKU(x509.ExtKeyUsageClientAuth))
		for _, sent := range [][]*x509.Certificate{whole, {selfSigned.Cert}} {
			v, last := strict.Verify(sent, time.Now()), sent[len(sent)-1]
			want := fmt.Sprintf("%q, which is self-signed and not in the trust store", last.Subject.String())
			refused(t, v, reason.ClientCertUntrusted, len(sent)-1)
			e := strict.Examine(sent, time.Now())
			told := len(e.Paths) == 1 && slices.ContainsFunc(e.Paths[0].Checks, func(c Check) bool { return c.Kind == CheckIssuer && c.Found == want })
			if v.Found != want || v.At != last || !told {
				t.Errorf("found %s, want %s; examined %+v", v.Found, want, e.Paths)
			}
		}
		alone := inter.Client("bob")
		v = strict.Verify([]*x509.Certificate{alone.Cert}, time.Now())
		refused(t, v, reason.ClientCertUntrusted, 0)
	})
	t.Run("intermediate as anchor", func(t *testing.T) {
		inter := root.Intermediate("Inter")
		accepted(t, verify(store(t, Options{}, inter), inter.Client("alice")))
		refused(t, verify(store(t, Options{}, inter), root.Client("alice")), reason.ClientCertUntrusted, 0)
	})
}

func TestServer(t *testing.T) {
	root := testpki.New(t)
	s := store(t, Options{}, root)
	check := func(c *testpki.Cert, name string, rule reason.Reason) {
		t.Helper()
		v := s.VerifyServer(c.Presented(), name, time.Now())
		if rule == reason.Unset {
			accepted(t, v)
		} else if v.Accepted || v.Reason != reason.UpstreamCertRefused || v.Rule != rule {
			t.Errorf("%s: accepted=%t %v %v", name, v.Accepted, v.Reason, v.Rule)
		}
	}
	check(root.Client("a", testpki.DNS("a.test")), "a.test", reason.ClientCertEKU)
	check(root.Server("a.test"), "b.test", reason.UpstreamCertRefused)
	check(root.Server("a.test"), "", reason.UpstreamCertRefused)
	check(root.Server("10.0.0.1"), "10.0.0.2", reason.UpstreamCertRefused)
	check(root.Server("a.test", testpki.Expired()), "a.test", reason.ClientCertExpired)
	check(root.Server("a.test", testpki.RSA(1024)), "a.test", reason.ClientCertWeakKey)
	check(testpki.New(t).Server("a.test"), "a.test", reason.ClientCertUntrusted)
	check(root.Server("a.test"), "a.test", reason.Unset)
	check(root.Server("*.w.test"), "x.w.test", reason.Unset)
	check(root.Server("10.0.0.1"), "10.0.0.1", reason.Unset)
}

func TestStore(t *testing.T) {
	root, other := testpki.New(t), testpki.New(t)
	t.Run("A22/options", func(t *testing.T) {
		for _, o := range []Options{{MaxDepth: -1}, {MaxPresented: 11}, {Stale: StaleGrace}, {Grace: -1}, {EKU: 9}, {Missing: 9}, {Stale: 9}} {
			if _, err := newStore(t, o, nil, root); err == nil {
				t.Errorf("%+v was taken", o)
			}
		}
		list, _ := ParseCRL(root.CRL())
		if _, err := NewStore("x", []*x509.Certificate{root.Cert}, []*CRL{list}, nil, Options{}); err == nil {
			t.Error("lists that are not checked were taken")
		}
		if _, err := NewStore("x", []*x509.Certificate{root.Cert}, []*CRL{{}}, nil, Options{CheckRevocation: true}); err == nil {
			t.Error("an unread list was taken")
		}
	})
	t.Run("A23/no anchors", func(t *testing.T) {
		if _, err := NewStore("x", nil, nil, nil, Options{}); err == nil {
			t.Error("a store without anchors was made")
		}
		for _, s := range []*Store{nil, {}} {
			if v := s.Verify(root.Client("alice").Presented(), time.Now()); v.Accepted || v.Reason != reason.Internal {
				t.Error("a store that was not made gave", v.Reason)
			}
		}
	})
	t.Run("version", func(t *testing.T) {
		crl := root.CRL()
		base := store(t, Options{}, root, other)
		if base.Version() != store(t, Options{MaxDepth: 4}, other, root, root).Version() || len(base.Version()) != 16 {
			t.Error("the version depends on order or spelling")
		}
		seen := map[string]bool{base.Version(): true}
		for i, s := range []*Store{store(t, Options{}, root), store(t, Options{MaxDepth: 5}, root, other), store(t, Options{EKU: EKUAllowAbsent}, root, other),
			store(t, Options{AllowExpiredLeaf: true}, root, other), storeCRL(t, Options{}, [][]byte{crl}, root, other),
			store(t, Options{CheckRevocation: true}, root, other), storeCRL(t, Options{Stale: StaleIgnore}, [][]byte{crl}, root, other)} {
			if seen[s.Version()] {
				t.Errorf("store %d has the version of another", i)
			}
			seen[s.Version()] = true
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	root := testpki.New(b)
	inter := root.Intermediate("Inter")
	alice := inter.Client("alice")
	s := storeCRL(b, Options{Missing: MissingChain}, [][]byte{root.CRL(), inter.CRL()}, root)
	presented := alice.Presented()
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if v := s.Verify(presented, now); !v.Accepted {
			b.Fatal(v.Err())
		}
	}
}
