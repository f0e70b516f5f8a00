package testpki

import (
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"testing"
	"testing/synctest"
	"time"
)

func TestEveryKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := New(t)
		inter := root.Intermediate("Inter")
		for name, opts := range map[string][]Option{
			"plain": nil, "expired": {Expired()}, "early": {NotYetValid()}, "noeku": {NoEKU()}, "p224": {P224()},
			"ed25519": {Ed25519()}, "rsa": {RSA(2048)}, "weak": {RSA(1024)}, "huge": {RSA(16384)}, "ca": {CA()},
			"long serial": {Serial(new(big.Int).Lsh(big.NewInt(1), 1000))}, "zero serial": {Serial(new(big.Int))},
			"uri": {URI("spiffe://td/x")}, "nul": {DNS("a\x00b")}, "critical": {UnknownCritical()}, "v1": {V1()},
			"sha1": {SHA1()}, "like": {Like(root)},
		} {
			c := inter.Client(name, opts...)
			if c.Cert == nil || len(c.Chain) != 2 {
				t.Errorf("%s: cannot be parsed", name)
			}
		}
		if c := inter.Client("negative", Serial(big.NewInt(-1))); c.Cert != nil {
			t.Error("a negative serial was parsed")
		}
		alice := inter.Client("alice")
		pool := x509.NewCertPool()
		pool.AddCert(inter.Cert)
		if _, err := alice.Cert.Verify(x509.VerifyOptions{Roots: root.Pool(), Intermediates: pool, CurrentTime: time.Now(),
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Error(err)
		}
		cert, key := alice.WriteFiles(t.TempDir())
		if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
			t.Error(err)
		}
		list, err := x509.ParseRevocationList(inter.CRL(alice, Entry(big.NewInt(5), ReasonCode(6)), Number(3), CRLExt(IDP("http://crl.test/a"))))
		if err != nil {
			t.Fatal(err)
		}
		if err := list.CheckSignatureFrom(inter.Cert); err != nil || len(list.RevokedCertificateEntries) != 2 {
			t.Error(err, list.RevokedCertificateEntries)
		}
		if _, err := x509.ParseRevocationList(inter.CRL(NextUpdate(time.Time{}), NoNumber(), NoAKI())); err != nil {
			t.Error(err)
		}
	})
}
