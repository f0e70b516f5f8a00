package probe

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"strconv"
	"strings"
)

// What strangers put into names, banners and answers ends up in a report, so nothing of it is printed but through these
// functions (threats B21, F13).
const (
	maxQuoted = 160
	maxText   = 300
)

// quote renders s between double quotes, escaped, and cut to maxQuoted bytes.
func quote(s string) string { return `"` + escape(s, maxQuoted) + `"` }

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

// text is an error's text, made safe.
func text(err error) string {
	return strings.ReplaceAll(escape(err.Error(), maxText), `\"`, `"`)
}

// printed is a distinguished name in the form of RFC 2253, as log lines have it. A backslash of that form stays one.
func printed(n pkix.Name) string {
	return strings.ReplaceAll(escape(n.String(), maxQuoted), `\\`, `\`)
}

// printedDER is printed for a name in DER. ok is false if it cannot be decoded.
func printedDER(der []byte) (name string, ok bool) {
	var rdns pkix.RDNSequence
	if rest, err := asn1.Unmarshal(der, &rdns); err != nil || len(rest) > 0 {
		return "a name that cannot be decoded, of " + strconv.Itoa(len(der)) + " bytes", false
	}
	if len(rdns) == 0 {
		return "an empty name", true
	}
	var n pkix.Name
	n.FillFromRDNSequence(&rdns)
	return printed(n), true
}
