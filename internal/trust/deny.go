package trust

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"countersign/internal/identity"
	"countersign/internal/reason"
)

// DenyEntry is one line of a deny list, as an operator writes it. Exactly one of Serial (with Issuer), SPKI, Certificate
// and SAN is set.
type DenyEntry struct {
	// Serial is a serial number in any common spelling (0A:FF, aff, 0x0aff, 2815), Issuer the name of the CA that gave it,
	// as log lines print it (RFC 2253). Digits alone are taken as hexadecimal and as decimal (threats C11).
	Serial, Issuer string
	// SPKI and Certificate are SHA-256 of the public key (SubjectPublicKeyInfo) and of the whole certificate, in
	// hexadecimal, with or without colons. A key or certificate of a CA denies everything below it.
	SPKI, Certificate string
	// SAN is a name of a client certificate with its kind: dns:, email:, uri: or ip:.
	SAN string
}

// DenyList refuses certificates by the operator's word alone, whatever lists and responders say (threats C20). It is
// immutable. Nil denies nobody.
type DenyList struct {
	serials map[string][]string // DER INTEGER content without leading zeros, to issuers
	keys    map[[sha256.Size]byte]bool
	certs   map[[sha256.Size]byte]bool
	names   map[string]bool // kind:canonical
	sum     [sha256.Size]byte
}

// NewDenyList reads entries. An entry that could not match anything is an error, for it would look effective.
func NewDenyList(entries []DenyEntry) (*DenyList, error) {
	d := &DenyList{serials: make(map[string][]string), keys: make(map[[sha256.Size]byte]bool),
		certs: make(map[[sha256.Size]byte]bool), names: make(map[string]bool)}
	h := sha256.New()
	for i, e := range entries {
		if err := d.add(e); err != nil {
			return nil, fmt.Errorf("deny entry %d: %w", i+1, err)
		}
		fmt.Fprintf(h, "%q %q %q %q %q\n", e.Serial, e.Issuer, e.SPKI, e.Certificate, e.SAN)
	}
	d.sum = [sha256.Size]byte(h.Sum(nil))
	return d, nil
}

func (d *DenyList) add(e DenyEntry) error {
	set := 0
	for _, s := range []string{e.Serial, e.SPKI, e.Certificate, e.SAN} {
		if s != "" {
			set++
		}
	}
	switch {
	case set != 1:
		return errors.New("expected one of serial (with issuer), spki, certificate and san")
	case e.Serial != "" && e.Issuer == "":
		return errors.New("a serial number means something beside its issuer only; add issuer: as the log prints it")
	case e.Serial == "" && e.Issuer != "":
		return errors.New("issuer has no meaning without serial")
	case e.Serial != "":
		issuer, err := PrintedName(e.Issuer)
		if err != nil {
			return fmt.Errorf("issuer: %w", err)
		}
		list, err := serials(e.Serial)
		for _, n := range list {
			d.serials[n] = append(d.serials[n], issuer)
		}
		return err
	case e.SPKI != "":
		return digest(d.keys, e.SPKI)
	case e.Certificate != "":
		return digest(d.certs, e.Certificate)
	}
	kind, value, kinded := strings.Cut(e.SAN, ":")
	if !kinded {
		return noSAN(e.SAN)
	}
	name, err := canonicalSAN(kind, value)
	if err != nil {
		return err
	}
	d.names[name] = true
	return nil
}

// PrintedName brings a name that an operator wrote into the form in which log lines print it (RFC 2253): spaces behind
// separators do not count. What cannot be such a name is an error, for it would match nothing.
func PrintedName(text string) (string, error) {
	var b strings.Builder
	escaped, quoted, begin := false, false, true
	for _, r := range text {
		if begin && r == ' ' {
			continue
		}
		begin = !escaped && !quoted && (r == ',' || r == '+')
		if r == '"' && !escaped {
			quoted = !quoted
		}
		escaped = r == '\\' && !escaped
		b.WriteRune(r)
	}
	name := b.String()
	if strings.HasPrefix(name, "/") || !strings.Contains(name, "=") || strings.ContainsFunc(name, control) || escaped || quoted {
		return "", fmt.Errorf("expected a name as the log prints it, CN=Partner CA,O=Partner, found %s", quote(text))
	}
	return name, nil
}

// serials returns what a serial number can mean, as big-endian bytes.
func serials(text string) (list []string, err error) {
	plain := strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(text))
	hexed, prefixed := strings.CutPrefix(plain, "0x")
	take := func(digits string, base int) {
		if n, ok := new(big.Int).SetString(digits, base); ok && n.Sign() > 0 && n.BitLen() <= 160 {
			if b := string(n.Bytes()); !slices.Contains(list, b) {
				list = append(list, b)
			}
		}
	}
	if !strings.ContainsAny(hexed, "+-_") {
		take(hexed, 16)
		if !prefixed && plain == text {
			take(hexed, 10)
		}
	}
	if list == nil {
		return nil, fmt.Errorf("serial: expected hexadecimal or decimal digits of a positive number of at most 20 octets, found %s", quote(text))
	}
	return list, nil
}

func digest(into map[[sha256.Size]byte]bool, text string) error {
	b, err := hex.DecodeString(strings.ReplaceAll(text, ":", ""))
	if err != nil || len(b) != sha256.Size {
		return fmt.Errorf("expected SHA-256 as 64 hexadecimal digits, found %s", quote(text))
	}
	into[[sha256.Size]byte(b)] = true
	return nil
}

// canonicalSAN brings a name into the form in which names are compared: case counts in URIs only.
func canonicalSAN(kind, value string) (string, error) {
	switch {
	case kind == "dns" && strings.HasPrefix(value, "*."):
		return "", fmt.Errorf("san: expected a whole name, found %s; a name of a certificate is compared as it stands", quote(value))
	case kind == "dns" && dnsName(value), kind == "email" && strings.Count(value, "@") == 1 && !strings.ContainsFunc(value, control):
		return kind + ":" + strings.ToLower(value), nil
	case kind == "uri" && strings.Contains(value, ":") && !strings.ContainsFunc(value, control):
		u, err := url.Parse(value)
		if err != nil {
			break
		}
		return kind + ":" + u.String(), nil // with its scheme in lower case, as names of certificates are printed
	case kind == "ip":
		if a, err := netip.ParseAddr(value); err == nil && a.Zone() == "" {
			return kind + ":" + a.Unmap().String(), nil
		}
	}
	return "", noSAN(kind + ":" + value)
}

func noSAN(text string) error {
	return fmt.Errorf("san: expected dns:, email:, uri: or ip: and such a name, found %s", quote(text))
}

// Len is the number of things denied.
func (d *DenyList) Len() int {
	if d == nil {
		return 0
	}
	return len(d.serials) + len(d.keys) + len(d.certs) + len(d.names)
}

// strangers returns issuers of entries that are the name of none of the anchors: perhaps intermediates, perhaps misspelt.
func (d *DenyList) strangers(anchors []*x509.Certificate) (names []string) {
	if d == nil {
		return nil
	}
	for _, issuers := range d.serials {
		for _, text := range issuers {
			known := slices.ContainsFunc(anchors, func(a *x509.Certificate) bool { return printed(a.RawSubject) == text })
			if !known && !slices.Contains(names, text) {
				names = append(names, text)
			}
		}
	}
	slices.Sort(names)
	return names
}

// printed is a name as log lines have it.
func printed(der []byte) string {
	text, err := identity.AppendName(nil, der)
	if err != nil {
		return ""
	}
	return string(text)
}

// judge looks for a denied certificate in chain: leaf, CAs and anchor by key, content and serial number; the leaf by its
// names too.
func (d *DenyList) judge(chain []*x509.Certificate) (*fault, int) {
	if d == nil {
		return nil, 0
	}
	for depth, c := range chain {
		found := ""
		switch {
		case len(d.keys) > 0 && d.keys[sha256.Sum256(c.RawSubjectPublicKeyInfo)]:
			found = "its key"
		case len(d.certs) > 0 && d.certs[sha256.Sum256(c.Raw)]:
			found = "the certificate"
		case len(d.serials) > 0 && d.serial(c):
			found = "serial " + serial(c) + " of its issuer"
		case depth == 0 && len(d.names) > 0:
			found = d.name(c)
		}
		if found != "" {
			return &fault{rule: reason.ClientCertDenied, expected: "a certificate that is not on the deny list",
				found: found + ", " + subject(c)}, depth
		}
	}
	return nil, 0
}

func (d *DenyList) serial(c *x509.Certificate) bool {
	issuers, hit := d.serials[string(c.SerialNumber.Bytes())]
	return hit && slices.Contains(issuers, printed(c.RawIssuer))
}

// name returns the first denied name of c.
func (d *DenyList) name(c *x509.Certificate) string {
	denied := func(kind, value string) string {
		if name, err := canonicalSAN(kind, value); err == nil && d.names[name] {
			return "name " + quote(name)
		}
		return ""
	}
	for _, n := range c.DNSNames {
		if f := denied("dns", n); f != "" {
			return f
		}
	}
	for _, n := range c.EmailAddresses {
		if f := denied("email", n); f != "" {
			return f
		}
	}
	for _, u := range c.URIs {
		if f := denied("uri", u.String()); f != "" {
			return f
		}
	}
	for _, ip := range c.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok {
			if f := denied("ip", a.Unmap().String()); f != "" {
				return f
			}
		}
	}
	return ""
}

// digest is a hash of what is denied.
func (d *DenyList) digest() []byte {
	if d == nil {
		return nil
	}
	return bytes.Clone(d.sum[:])
}
