package trust

import (
	"crypto/x509"
	"encoding/asn1"
	"strings"
	"testing"
	"time"

	"countersign/internal/reason"
	"countersign/internal/testpki"
)

// TestBlame holds that a refusal is about a CA that signed, and not about one that only has its name.
func TestBlame(t *testing.T) {
	root, elsewhere := testpki.New(t), testpki.New(t)
	now := time.Now()
	real := elsewhere.Intermediate("I") // whose own issuer is not trusted
	alice := real.Client("alice")
	for name, c := range map[string]struct {
		impostor *testpki.Cert
		depth    int
	}{
		"version 1":                    {root.Intermediate("I", testpki.V1()), 1},
		"no CA":                        {root.Intermediate("I", testpki.NotCA()), 1},
		"SHA-1":                        {root.Intermediate("I", testpki.SHA1()), 1},
		"unknown critical":             {root.Intermediate("I", testpki.UnknownCritical()), 1},
		"expired":                      {root.Intermediate("I", testpki.Expired()), 1},
		"a key that is not to be used": {root.Intermediate("I", testpki.P224()), 1},
	} {
		t.Run("B21/"+name, func(t *testing.T) {
			s := store(t, Options{}, root)
			for _, others := range [][]*x509.Certificate{{c.impostor.Cert, real.Cert}, {real.Cert, c.impostor.Cert}} {
				v := s.Verify(append([]*x509.Certificate{alice.Cert}, others...), now)
				refused(t, v, reason.ClientCertUntrusted, c.depth)
				if v.At != real.Cert {
					t.Errorf("%v is blamed", v.At.Issuer)
				}
			}
		})
	}
	t.Run("alone, a key that is not to be used is told", func(t *testing.T) {
		weak := root.Intermediate("Weak", testpki.P224())
		v := store(t, Options{}, root).Verify(weak.Client("alice").Presented(), now)
		refused(t, v, reason.ClientCertWeakKey, 1)
	})
	t.Run("what signed, and may not, is told", func(t *testing.T) {
		for _, c := range []struct {
			opt  testpki.Option
			want reason.Reason
		}{{testpki.SHA1(), reason.ClientCertWeakSignature}, {testpki.NotCA(), reason.ClientCertConstraint}} {
			ca := root.Intermediate("I", c.opt)
			refused(t, store(t, Options{}, root).Verify(append(ca.Client("alice").Presented(), real.Cert), now), c.want, 1)
		}
	})
}

// TestPurposesTold holds that a refusal names the purposes that were found where several are acceptable.
func TestPurposesTold(t *testing.T) {
	one, two := asn1.ObjectIdentifier{1, 2, 3}, asn1.ObjectIdentifier{1, 2, 4}
	opts := Options{EKU: EKUCustom, EKUOIDs: []asn1.ObjectIdentifier{one, two}}
	root := testpki.New(t)
	upper := root.Intermediate("Upper", testpki.NoEKU(), ekuOIDs(t, one))
	lower := upper.Intermediate("Lower", testpki.NoEKU(), ekuOIDs(t, two))
	alice := lower.Client("alice", testpki.NoEKU(), ekuOIDs(t, one, two))
	for name, c := range map[string]struct {
		leaf            *testpki.Cert
		depth           int
		expected, found []string
	}{
		"CAs that have none in common": {alice, 2, []string{"1.2.4"}, []string{"1.2.3", "Upper"}},
		"a CA that allows none": {root.Intermediate("I", testpki.NoEKU(), ekuOIDs(t, asn1.ObjectIdentifier{1, 2, 5})).Client("alice", testpki.NoEKU(), ekuOIDs(t, one, two)), 1,
			[]string{"1.2.3", "1.2.4"}, []string{"1.2.5", `"CN=I"`}},
		"a client that has none": {root.Client("alice", testpki.NoEKU(), ekuOIDs(t, asn1.ObjectIdentifier{1, 2, 5})), 0, []string{"1.2.3 or 1.2.4"}, []string{"1.2.5"}},
	} {
		t.Run("B01/"+name, func(t *testing.T) {
			v := store(t, opts, root).Verify(c.leaf.Presented(), time.Now())
			refused(t, v, reason.ClientCertEKU, c.depth)
			for _, w := range c.expected {
				if !strings.Contains(v.Expected, w) {
					t.Errorf("expected %q, which lacks %q", v.Expected, w)
				}
			}
			for _, w := range c.found {
				if !strings.Contains(v.Found, w) {
					t.Errorf("found %q, which lacks %q", v.Found, w)
				}
			}
		})
	}
}
