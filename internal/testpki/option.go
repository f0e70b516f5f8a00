package testpki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"time"
)

// Option makes a certificate differ from the default.
type Option func(*spec)

// Expired ends the validity an hour ago.
func Expired() Option {
	return func(s *spec) {
		now := time.Now()
		s.cert.NotBefore, s.cert.NotAfter = now.Add(-48*time.Hour), now.Add(-time.Hour)
	}
}

// NotYetValid starts the validity in an hour.
func NotYetValid() Option {
	return func(s *spec) {
		now := time.Now()
		s.cert.NotBefore, s.cert.NotAfter = now.Add(time.Hour), now.Add(48*time.Hour)
	}
}

// NotBefore sets the start of the validity.
func NotBefore(t time.Time) Option { return func(s *spec) { s.cert.NotBefore = t } }

// NotAfter sets the end of the validity.
func NotAfter(t time.Time) Option { return func(s *spec) { s.cert.NotAfter = t } }

// Lifetime ends the validity d from now.
func Lifetime(d time.Duration) Option { return func(s *spec) { s.cert.NotAfter = time.Now().Add(d) } }

// EKU replaces the extended key usages.
func EKU(usages ...x509.ExtKeyUsage) Option { return func(s *spec) { s.cert.ExtKeyUsage = usages } }

// NoEKU leaves the extension out.
func NoEKU() Option { return EKU() }

// KeyUsage replaces the key usage; 0 leaves the extension out.
func KeyUsage(u x509.KeyUsage) Option { return func(s *spec) { s.cert.KeyUsage = u } }

// CA makes a leaf say CA:TRUE.
func CA() Option { return func(s *spec) { s.cert.IsCA = true } }

// NotCA makes a CA say CA:FALSE.
func NotCA() Option { return func(s *spec) { s.cert.IsCA = false } }

// NoBasicConstraints leaves the extension out.
func NoBasicConstraints() Option {
	return func(s *spec) { s.cert.IsCA, s.cert.BasicConstraintsValid = false, false }
}

// PathLen limits how many intermediates may follow.
func PathLen(n int) Option {
	return func(s *spec) { s.cert.MaxPathLen, s.cert.MaxPathLenZero = n, n == 0 }
}

// PermitDNS limits a CA to the given domains (critical name constraint).
func PermitDNS(domains ...string) Option {
	return func(s *spec) { s.cert.PermittedDNSDomains, s.cert.PermittedDNSDomainsCritical = domains, true }
}

// Serial sets the serial number, also to one that no CA may use.
func Serial(n *big.Int) Option {
	return func(s *spec) {
		if n.Sign() > 0 && n.BitLen() < 160 {
			s.cert.SerialNumber = n
			return
		}
		s.edits = append(s.edits, func(t *TBS) { t.Serial = n })
	}
}

// Subject replaces the subject.
func Subject(n pkix.Name) Option { return func(s *spec) { s.cert.Subject = n } }

// RawSubject replaces the subject by DER.
func RawSubject(der []byte) Option { return func(s *spec) { s.cert.RawSubject = der } }

// DNS adds DNS names, of any content.
func DNS(names ...string) Option {
	return func(s *spec) { s.cert.DNSNames = append(s.cert.DNSNames, names...) }
}

// Email adds mail addresses, of any content.
func Email(addresses ...string) Option {
	return func(s *spec) { s.cert.EmailAddresses = append(s.cert.EmailAddresses, addresses...) }
}

// URI adds URIs, of any content.
func URI(uris ...string) Option {
	return func(s *spec) {
		for _, u := range uris {
			s.cert.URIs = append(s.cert.URIs, parseURI(u))
		}
	}
}

// IP adds addresses.
func IP(addresses ...string) Option {
	return func(s *spec) {
		for _, a := range addresses {
			s.cert.IPAddresses = append(s.cert.IPAddresses, net.ParseIP(a))
		}
	}
}

// CRLPoint adds the URLs where revocation lists are published.
func CRLPoint(urls ...string) Option {
	return func(s *spec) { s.cert.CRLDistributionPoints = urls }
}

// ExtraExt adds extensions.
func ExtraExt(ext ...pkix.Extension) Option {
	return func(s *spec) { s.cert.ExtraExtensions = append(s.cert.ExtraExtensions, ext...) }
}

// UnknownCritical adds a critical extension that nobody knows.
func UnknownCritical() Option { return ExtraExt(Unknown) }

// Unknown is a critical extension that nobody knows, for certificates, lists and their entries.
var Unknown = pkix.Extension{Id: []int{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: true, Value: []byte{5, 0}}

// Like takes subject and key of another certificate: a cross-certificate, a renewal or an impostor, as the issuer may be.
func Like(other *Cert) Option {
	return func(s *spec) {
		s.cert.RawSubject = other.Cert.RawSubject
		s.cert.SubjectKeyId = other.Cert.SubjectKeyId
		KeyOf(other)(s)
	}
}

// V1 makes it an X.509 version 1 certificate, without extensions.
func V1() Option { return Edit(func(t *TBS) { t.Version, t.Extensions = 0, nil }) }

// SHA1 signs it with SHA-1.
func SHA1() Option { return func(s *spec) { s.sha1 = true } }

// Edit changes the signed part before it is signed for good.
func Edit(f func(*TBS)) Option { return func(s *spec) { s.edits = append(s.edits, f) } }
