package trust

import (
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"countersign/internal/certs"
)

const (
	maxBundleBytes = 16 << 20
	// AWS ALB's quotas; the last two can be raised there, so they are warnings here.
	albCertBytes    = 16 << 10
	albCerts        = 25
	albSubjectBytes = 10_000
)

const bundle = "CA bundle"

// LoadBundle reads a file of CA certificates: PEM, one certificate in DER, or PKCS#7 without anything else in it. Every
// entry has to be a CA certificate that can be used, else nothing is loaded: a bundle of which a part was skipped in
// silence refuses clients, or trusts fewer than it says (threats B24, A22). compatALB takes PEM only, under the file
// rules of AWS ALB trust stores.
func LoadBundle(data []byte, compatALB bool) (list []*x509.Certificate, warnings []string, err error) {
	entries, err := certs.Entries(bundle, data, maxBundleBytes, compatALB)
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	first := make(map[string]string, len(entries))
	size := 0
	for i, e := range entries {
		at := bundle + ": "
		if e.Where != "" {
			at += e.Where + ": "
		} else {
			e.Where = fmt.Sprintf("certificate %d", i+1)
		}
		fail := func(format string, args ...any) error {
			return fmt.Errorf("%s%w", at, fmt.Errorf(format, args...))
		}
		c, err := x509.ParseCertificate(e.DER)
		if err != nil {
			return nil, nil, fail("expected a certificate, found one that cannot be read: %w; fetch it again, openssl x509 -in FILE -noout -text shows what is in it", bounded(err))
		}
		if err := checkAnchor(c); err != nil {
			return nil, nil, fail("%w", err)
		}
		if compatALB && len(e.DER) > albCertBytes {
			return nil, nil, fail("%s: expected at most %d bytes (AWS ALB), found %d", subject(c), albCertBytes, len(e.DER))
		}
		warn := func(format string, args ...any) {
			warnings = append(warnings, at+subject(c)+" "+fmt.Sprintf(format, args...))
		}
		if earlier, twice := first[string(c.Raw)]; twice {
			warn("is the same as %s and was left out", earlier)
			continue
		}
		first[string(c.Raw)] = e.Where
		switch {
		case now.After(c.NotAfter):
			warn("expired at %s; no chain can use it", stamp(c.NotAfter))
		case now.Before(c.NotBefore):
			warn("is not valid before %s", stamp(c.NotBefore))
		}
		list = append(list, c)
		size += len(c.RawSubject) + 2
	}
	if compatALB && len(list) > albCerts {
		warnings = append(warnings, fmt.Sprintf("CA bundle: %d certificates; AWS ALB takes %d unless the quota is raised", len(list), albCerts))
	}
	if compatALB && size > albSubjectBytes {
		warnings = append(warnings, fmt.Sprintf("CA bundle: %d bytes of subjects; AWS ALB takes %d unless the quota is raised", size, albSubjectBytes))
	}
	return list, warnings, nil
}

// LoadSystem reads the CA bundle of a machine. Certificates that could not stand in a trust store are counted and left
// out: such a bundle is nobody's work here.
func LoadSystem(data []byte) (list []*x509.Certificate, left int, err error) {
	entries, err := certs.Entries(bundle, data, maxBundleBytes, false)
	if err != nil {
		return nil, 0, err
	}
	for _, e := range entries {
		c, err := x509.ParseCertificate(e.DER)
		if err == nil {
			err = checkAnchor(c)
		}
		if err != nil {
			left++
			continue
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, left, fmt.Errorf("expected CA certificates, found none that can be used among %d", left)
	}
	return list, left, nil
}

// LoadCertificates reads a file of certificates of any kind.
func LoadCertificates(data []byte) (list []*x509.Certificate, err error) {
	entries, err := certs.Entries("certificates", data, maxBundleBytes, false)
	if err != nil {
		return nil, err
	}
	for i, e := range entries {
		c, err := x509.ParseCertificate(e.DER)
		if err != nil {
			return nil, fmt.Errorf("certificate %d cannot be read: %w", i+1, bounded(err))
		}
		list = append(list, c)
	}
	return list, nil
}

// block is one PEM block.
type block struct {
	kind string
	der  []byte
	line int // of its BEGIN
}

// split finds the PEM blocks: certs.Split.
func split(data []byte, alb bool) ([]block, error) {
	found, err := certs.Split("", data, alb)
	if err != nil {
		return nil, err
	}
	blocks := make([]block, len(found))
	for i, b := range found {
		blocks[i] = block{b.Kind, b.DER, b.Line}
	}
	return blocks, nil
}

// isDER tells DER from text: a SEQUENCE of more than 127 bytes, which certificates and lists always are.
func isDER(data []byte) bool { return len(data) > 1 && data[0] == 0x30 && data[1] >= 0x80 }

const (
	softHintBytes = 16 << 10
	// 64 KiB is the wire's limit; 1 KiB of it is left for the rest of CertificateRequest.
	hardHintBytes = 63 << 10
)

// HintsFor returns the distinct subjects of list, as CertificateRequest carries them (RFC 8446 section 4.2.4). Derived
// from the anchors, they are left out with a warning when larger than 16 KiB: a few more than 64 KiB end every
// handshake of the listener (threats B23), and trust does not depend on them. explicit says that the operator listed
// them; then they are sent up to what the wire can carry, and more is an error.
func HintsFor(list []*x509.Certificate, explicit bool) (hints [][]byte, warning string, err error) {
	seen := make(map[string]bool, len(list))
	size := 0
	for _, c := range list {
		if seen[string(c.RawSubject)] {
			continue
		}
		seen[string(c.RawSubject)] = true
		hints = append(hints, slices.Clone(c.RawSubject))
		size += len(c.RawSubject) + 2
	}
	switch {
	case size > hardHintBytes && explicit:
		return nil, "", fmt.Errorf("hints: expected at most %d bytes of CA names, found %d in %d names; list fewer, or use hints: none", hardHintBytes, size, len(hints))
	case size > softHintBytes && explicit:
		return hints, fmt.Sprintf("hints: %d bytes of CA names are sent in every handshake", size), nil
	case size > softHintBytes:
		return nil, fmt.Sprintf("hints: none are sent, because the %d CA names have %d bytes, more than %d; list some in hints.file if clients need them to choose", len(hints), size, softHintBytes), nil
	}
	return hints, "", nil
}
