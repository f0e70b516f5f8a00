package trust

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	maxBundleBytes = 16 << 20
	// AWS ALB's quotas; the last two can be raised there, so they are warnings here.
	albCertBytes    = 16 << 10
	albCerts        = 25
	albSubjectBytes = 10_000
)

// block is one PEM block.
type block struct {
	kind   string
	der    []byte
	number int // from 1
	line   int // of its BEGIN
}

// LoadBundle reads a PEM file of CA certificates. Every block has to be a CA certificate that can be used, else nothing
// is loaded: a bundle of which a part was skipped in silence refuses clients, or trusts fewer than it says (threats
// B24, A22). compatALB adds the file rules of AWS ALB trust stores.
func LoadBundle(pemBytes []byte, compatALB bool) (certs []*x509.Certificate, warnings []string, err error) {
	if len(pemBytes) > maxBundleBytes {
		return nil, nil, fmt.Errorf("CA bundle: expected at most %d MiB, found %d bytes", maxBundleBytes>>20, len(pemBytes))
	}
	if isDER(pemBytes) {
		return nil, nil, errors.New("CA bundle: expected PEM, found what looks like DER; convert it with openssl x509 -inform der")
	}
	blocks, err := split(pemBytes, compatALB)
	if err != nil {
		return nil, nil, fmt.Errorf("CA bundle: %w", err)
	}
	if len(blocks) == 0 {
		return nil, nil, errors.New("CA bundle: expected at least one CERTIFICATE block, found none")
	}
	now := time.Now()
	first := make(map[string]int, len(blocks))
	size := 0
	for _, b := range blocks {
		fail := func(format string, args ...any) error {
			return fmt.Errorf("CA bundle: block %d (line %d): %w", b.number, b.line, fmt.Errorf(format, args...))
		}
		if b.kind != "CERTIFICATE" {
			return nil, nil, fail("%s", wrongKind(b.kind))
		}
		c, err := x509.ParseCertificate(b.der)
		if err != nil {
			return nil, nil, fail("expected a certificate, found one that cannot be read: %w", bounded(err))
		}
		if err := checkAnchor(c); err != nil {
			return nil, nil, fail("%w", err)
		}
		if compatALB && len(b.der) > albCertBytes {
			return nil, nil, fail("%s: expected at most %d bytes (AWS ALB), found %d", subject(c), albCertBytes, len(b.der))
		}
		warn := func(format string, args ...any) {
			warnings = append(warnings, fmt.Sprintf("CA bundle: block %d (line %d): %s ", b.number, b.line, subject(c))+fmt.Sprintf(format, args...))
		}
		if earlier, twice := first[string(c.Raw)]; twice {
			warn("is the same as block %d and was left out", earlier)
			continue
		}
		first[string(c.Raw)] = b.number
		switch {
		case now.After(c.NotAfter):
			warn("expired at %s; no chain can use it", stamp(c.NotAfter))
		case now.Before(c.NotBefore):
			warn("is not valid before %s", stamp(c.NotBefore))
		}
		certs = append(certs, c)
		size += len(c.RawSubject) + 2
	}
	if compatALB && len(certs) > albCerts {
		warnings = append(warnings, fmt.Sprintf("CA bundle: %d certificates; AWS ALB takes %d unless the quota is raised", len(certs), albCerts))
	}
	if compatALB && size > albSubjectBytes {
		warnings = append(warnings, fmt.Sprintf("CA bundle: %d bytes of subjects; AWS ALB takes %d unless the quota is raised", size, albSubjectBytes))
	}
	return certs, warnings, nil
}

func wrongKind(kind string) string {
	switch {
	case kind == "X509 CRL":
		return "expected CERTIFICATE, found X509 CRL; this is a revocation list and belongs into revocation.crls"
	case strings.HasSuffix(kind, "PRIVATE KEY"):
		return "expected CERTIFICATE, found a private key; take it out of this file, and change it if others could read it"
	case kind == "TRUSTED CERTIFICATE":
		return "expected CERTIFICATE, found TRUSTED CERTIFICATE, which only OpenSSL knows; convert it with openssl x509"
	}
	return "expected CERTIFICATE, found " + quote(kind)
}

// split finds the PEM blocks (RFC 7468, strict). Text between blocks is a comment, unless it looks like a BEGIN or END
// line that was damaged. alb is for the rules of AWS ALB: no blank lines, and no text but comments that start with #
// and hold no hyphen.
//
// encoding/pem is not used: it skips what it cannot read, and it once took quadratic time (CVE-2025-61723, threats
// F21). Here every line is looked at once.
func split(data []byte, alb bool) ([]block, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // byte order mark of some editors
	var (
		blocks []block
		open   block  // the block that was begun; its line is 0 outside
		text   []byte // its base64
		n      int
	)
	for raw := range bytes.Lines(data) {
		n++
		line := bytes.TrimRight(raw, " \t\r\n")
		begin, isBegin := boundary(line, "-----BEGIN ")
		end, isEnd := boundary(line, "-----END ")
		fail := func(format string, args ...any) ([]block, error) {
			where := fmt.Sprintf("line %d: ", n)
			if open.line > 0 {
				where = fmt.Sprintf("block %d (line %d): line %d: ", open.number, open.line, n)
			}
			return nil, errors.New(where + fmt.Sprintf(format, args...))
		}
		switch inside := open.line > 0; {
		case len(line) == 0:
			if alb {
				return fail("blank line, which AWS ALB refuses")
			}
		case isBegin && inside:
			return fail("expected an END line, found a BEGIN line")
		case isBegin:
			open, text = block{kind: begin, number: len(blocks) + 1, line: n}, text[:0]
		case isEnd && !inside:
			return fail("END line without a BEGIN line")
		case isEnd && end != open.kind:
			return fail("expected END %s, found END %s", quote(open.kind), quote(end))
		case isEnd:
			open.der = make([]byte, base64.StdEncoding.DecodedLen(len(text)))
			size, err := base64.StdEncoding.Strict().Decode(open.der, text)
			if err != nil || size == 0 {
				return fail("expected base64, found a text that is cut or damaged")
			}
			open.der = open.der[:size]
			blocks = append(blocks, open)
			open = block{}
		case damaged(line):
			return fail("what looks like a damaged BEGIN or END line: %s", quote(string(line[:min(len(line), maxQuoted)])))
		case inside && bytes.IndexByte(line, ':') >= 0:
			return fail("a text header inside the block; remove it")
		case inside:
			if i := bytes.IndexFunc(line, notBase64); i >= 0 {
				return fail("expected base64, found %s at column %d", quote(string(line[i:min(len(line), i+4)])), i+1)
			}
			text = append(text, line...)
		case alb && (line[0] != '#' || bytes.IndexByte(line, '-') >= 0):
			return fail("expected a comment that starts with # and holds no hyphen, as AWS ALB does")
		}
	}
	if open.line > 0 {
		return nil, fmt.Errorf("block %d (line %d): the file ends before the END line", open.number, open.line)
	}
	return blocks, nil
}

func boundary(line []byte, prefix string) (kind string, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(prefix))
	if !ok {
		return "", false
	}
	rest, ok = bytes.CutSuffix(rest, []byte("-----"))
	if !ok || len(rest) == 0 || bytes.IndexByte(rest, '-') >= 0 {
		return "", false
	}
	return string(rest), true
}

// damaged recognises what was meant to be a boundary: the words with hyphens, or before what they announce, as when a
// word processor made dashes of the hyphens.
func damaged(line []byte) bool {
	words := strings.FieldsFunc(strings.ToUpper(string(line)), func(r rune) bool { return !('A' <= r && r <= 'Z' || '0' <= r && r <= '9') })
	hyphens := bytes.Contains(line, []byte("--"))
	for i, w := range words {
		if w != "BEGIN" && w != "END" {
			continue
		}
		if hyphens || i+1 < len(words) && (words[i+1] == "CERTIFICATE" || words[i+1] == "X509") {
			return true
		}
	}
	return false
}

// isDER tells DER from text: a SEQUENCE of more than 127 bytes, which certificates and lists always are.
func isDER(data []byte) bool { return len(data) > 1 && data[0] == 0x30 && data[1] >= 0x80 }

func notBase64(r rune) bool {
	return !('A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '+' || r == '/' || r == '=')
}

const (
	softHintBytes = 16 << 10
	// 64 KiB is the wire's limit; 1 KiB of it is left for the rest of CertificateRequest.
	hardHintBytes = 63 << 10
)

// HintsFor returns the distinct subjects of certs, as CertificateRequest carries them (RFC 8446 section 4.2.4). Derived
// from the anchors, they are left out with a warning when larger than 16 KiB: a few more than 64 KiB end every
// handshake of the listener (threats B23), and trust does not depend on them. explicit says that the operator listed
// them; then they are sent up to what the wire can carry, and more is an error.
func HintsFor(certs []*x509.Certificate, explicit bool) (hints [][]byte, warning string, err error) {
	seen := make(map[string]bool, len(certs))
	size := 0
	for _, c := range certs {
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
