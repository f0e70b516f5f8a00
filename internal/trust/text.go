package trust

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"strconv"
	"strings"
)

// What strangers put into certificates ends up in our messages, and errors of crypto/x509 can hold all of it (threats
// B21, F13). So nothing of it is printed but through these functions.
const (
	maxQuoted = 120
	maxText   = 256
)

// quote renders s between double quotes, escaped, and cut to maxQuoted bytes.
func quote(s string) string {
	return `"` + escape(s, maxQuoted) + `"`
}

// escape makes every control, format and invalid character visible and cuts the result to limit bytes.
func escape(s string, limit int) string {
	var b strings.Builder
	for _, r := range s {
		q := strconv.Quote(string(r))
		if b.Len()+len(q)-2 > limit {
			b.WriteString("…")
			break
		}
		b.WriteString(q[1 : len(q)-1])
	}
	return b.String()
}

// subject names a certificate for people: by its subject, or by its serial number when it has none.
func subject(c *x509.Certificate) string {
	if s := c.Subject.String(); s != "" {
		return quote(s)
	}
	return "serial " + serial(c)
}

func issuerName(c *x509.Certificate) string { return name(c.Issuer) }

func name(n pkix.Name) string { return quote(n.String()) }

func serial(c *x509.Certificate) string { return escape(c.SerialNumber.Text(16), maxQuoted) }

// bounded is err with its text made safe; what it wraps is left behind on purpose.
func bounded(err error) error {
	return errors.New(strings.ReplaceAll(escape(err.Error(), maxText-len("…")), `\"`, `"`))
}
