package diagnose

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"countersign/internal/identity"
)

// maxShown is how many bytes of a text of others are shown.
const maxShown = 160

// show makes a text of others safe to print: what cannot be seen is escaped, and what is long is cut.
func show(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		if b.Len() > maxShown {
			return b.String() + "..."
		}
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n <= 1 || !unicode.IsPrint(r) {
			for _, c := range []byte(s[:n]) {
				fmt.Fprintf(&b, `\x%02x`, c)
			}
		} else {
			b.WriteRune(r)
		}
		s = s[n:]
	}
	return b.String()
}

// quoted is show in quotation marks.
func quoted(s string) string { return `"` + strings.ReplaceAll(show(s), `"`, `\"`) + `"` }

// dn prints a name as log lines do.
func dn(raw []byte) string {
	text, err := identity.AppendName(nil, raw)
	if err != nil {
		return "(a name that cannot be printed)"
	}
	if len(text) == 0 {
		return "(no name)"
	}
	return show(string(text))
}

// subject names a certificate for people.
func subject(c *x509.Certificate) string {
	if name := dn(c.RawSubject); name != "(no name)" {
		return name
	}
	return "serial " + serial(c)
}

func serial(c *x509.Certificate) string { return show(identity.SerialHex(c.SerialNumber)) }

func keyText(key any) string {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Curve.Params().Name
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return "of another kind"
}

const maxNames = 10

func describe(c *x509.Certificate) Certificate {
	sum := sha256.Sum256(c.Raw)
	out := Certificate{Subject: dn(c.RawSubject), Issuer: dn(c.RawIssuer), Serial: serial(c), SHA256: hex.EncodeToString(sum[:]),
		Key: keyText(c.PublicKey), NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(), CA: c.IsCA}
	add := func(kind, name string) {
		if len(out.Names) < maxNames {
			out.Names = append(out.Names, kind+":"+show(name))
		}
	}
	for _, n := range c.DNSNames {
		add("dns", n)
	}
	for _, n := range c.URIs {
		add("uri", n.String())
	}
	for _, n := range c.EmailAddresses {
		add("email", n)
	}
	for _, n := range c.IPAddresses {
		add("ip", n.String())
	}
	if more := len(c.DNSNames) + len(c.URIs) + len(c.EmailAddresses) + len(c.IPAddresses) - len(out.Names); more > 0 {
		out.Names = append(out.Names, fmt.Sprintf("%d more", more))
	}
	return out
}

// span is a time between two moments in the largest unit that says something.
func span(d time.Duration) string {
	unit := func(n int, name string) string {
		if n == 1 {
			return "1 " + name
		}
		return fmt.Sprintf("%d %ss", n, name)
	}
	switch d = d.Abs(); {
	case d >= 48*time.Hour:
		return unit(int(d.Hours()/24), "day")
	case d >= 2*time.Hour:
		return unit(int(d.Hours()), "hour")
	case d >= 2*time.Minute:
		return unit(int(d.Minutes()), "minute")
	}
	return unit(int(d.Seconds()), "second")
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
