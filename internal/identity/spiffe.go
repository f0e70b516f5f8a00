package identity

import (
	"crypto/x509"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Longest ID and trust domain that a SPIFFE implementation may make (spiffe.io, "The SPIFFE Identity and Verifiable
// Identity Document", section 2.3).
const (
	maxSPIFFE       = 2048
	maxSPIFFEDomain = 255
)

// SPIFFE returns the leaf's SPIFFE ID, or nothing if it has none or breaks a rule of X.509-SVID; the function [SPIFFE]
// tells which. It is read anew on each call, so that handshakes that do not ask for it do not pay for it.
func (id *Identity) SPIFFE() string {
	name, err := SPIFFE(id.Leaf())
	if err != nil {
		return ""
	}
	return name
}

// SPIFFE returns the SPIFFE ID of a certificate, octet for octet as it is signed. A certificate without a URI of that
// scheme has none and is no error. One with such a URI must be an X.509-SVID of a workload in all that spiffe.io, "The
// X.509 SPIFFE Verifiable Identity Document", sections 2, 4 and 5.2 ask of a leaf: one URI name, a workload's path, not a
// CA, a key for signatures and for neither certificates nor lists.
func SPIFFE(cert *x509.Certificate) (string, error) {
	uris := altNamesOf(cert).uris
	at := -1
	for i, uri := range uris {
		const scheme = "spiffe:"
		if len(uri) >= len(scheme) && strings.EqualFold(string(uri[:len(scheme)]), scheme) {
			at = i
			break
		}
	}
	if at < 0 {
		return "", nil
	}
	fail := func(expected string, found any) (string, error) {
		return "", fmt.Errorf("X.509-SVID: expected %s, found %v; issue one that follows the SPIFFE specification", expected, found)
	}
	switch {
	case len(uris) > 1:
		return fail("one URI name", len(uris))
	case len(uris[at]) > maxSPIFFE:
		return fail(fmt.Sprintf("a SPIFFE ID of at most %d bytes", maxSPIFFE), len(uris[at]))
	}
	id, err := spiffeid.FromString(string(uris[at]))
	switch {
	case err != nil:
		// The texts of spiffeid are constants; none holds what was in the certificate.
		return fail("a SPIFFE ID", err)
	case len(id.TrustDomain().Name()) > maxSPIFFEDomain:
		return fail(fmt.Sprintf("a trust domain of at most %d bytes", maxSPIFFEDomain), len(id.TrustDomain().Name()))
	case id.Path() == "":
		return fail("the ID of a workload", "the ID of a trust domain")
	case cert.IsCA:
		return fail("basicConstraints CA:FALSE", "CA:TRUE")
	case cert.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return fail("keyUsage digitalSignature", "none")
	case cert.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return fail("keyUsage without keyCertSign and cRLSign", "one of them")
	}
	return id.String(), nil
}
