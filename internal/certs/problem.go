package certs

import (
	"fmt"
	"strconv"
	"strings"
)

// Roles of files, as messages name them.
const (
	CertFile   = "certificate file"
	KeyFile    = "key file"
	PKCS12File = "PKCS#12 file"
)

// Problem says why a file cannot be used: what was expected, what was found in its place, and what to do. It holds
// nothing that was inside a key.
type Problem struct {
	Kind            error  // for errors.Is
	Role            string // "key file"; may be empty
	Where           string // "block 2 (line 11)"; empty for the whole file
	Expected, Found string
	Next            string
}

func (p *Problem) Error() string {
	var b strings.Builder
	for _, s := range []string{p.Role, p.Where} {
		if s != "" {
			b.WriteString(s + ": ")
		}
	}
	fmt.Fprintf(&b, "expected %s, found %s; %s", p.Expected, p.Found, p.Next)
	return b.String()
}

// Unwrap returns the kind.
func (p *Problem) Unwrap() error { return p.Kind }

// quote bounds and escapes a text that somebody else chose.
func quote(s string) string { return strconv.Quote(short(s)) }

// look is the command that shows whether a file of the role is in order, to be run on the repaired file.
func look(role string) string {
	switch role {
	case KeyFile:
		return "openssl pkey -in FILE -noout -check"
	case PKCS12File:
		return "openssl pkcs12 -in FILE -noout -info"
	}
	return "openssl x509 -in FILE -noout -subject"
}
