package policy

import (
	"crypto/x509"
	"testing"

	"countersign/internal/identity"
	"countersign/internal/testpki"
)

// client is a verified client with the given certificate.
func client(tb testing.TB, name string, opts ...testpki.Option) identity.Client {
	tb.Helper()
	root := testpki.New(tb)
	leaf := root.Client(name, opts...)
	id, err := identity.FromChain(append(leaf.Presented(), root.Cert))
	if err != nil {
		tb.Fatal(err)
	}
	return identity.Present(id)
}

// ops is the client that most rules of these tests are about.
func ops(tb testing.TB, opts ...testpki.Option) identity.Client {
	return client(tb, "ops", append([]testpki.Option{testpki.URI("spiffe://corp.test/ops"), testpki.DNS("ops.corp.test", "b.corp.test")}, opts...)...)
}

// presented is a certificate that nobody has verified.
func presented(tb testing.TB) []*x509.Certificate { return testpki.New(tb).Client("ops").Presented() }
