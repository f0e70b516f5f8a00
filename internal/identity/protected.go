package identity

import (
	"slices"
	"strings"
)

// protected is what no client may send past us: every header a backend might believe about who the client is or where
// it comes from, ours and other products' alike, because the backend may have stood behind one of those before. Names
// are in folded form; a trailing star makes a prefix. Each entry is removed from every request on every listener,
// whatever its mode (D01).
var protected = []string{
	// The client certificate, as the standard and each product spell it.
	"client-cert*",              // RFC 9440, and Client-Certificate
	"x-client-cert*",            // Google Cloud, F5, custom set-ups
	"x-client-verify*",          // nginx set-ups
	"x-client-dn*",              // nginx set-ups
	"x-ssl", "x-ssl-*", "ssl-*", // HAProxy, RELIANOID, ingress-nginx, and CGI's SSL_CLIENT_* of Apache
	"x-tls-client-*", "tls-client-*",
	"x-amzn-mtls-*", "x-amzn-tls-*", // AWS ALB
	"x-arr-clientcert", "x-arr-ssl", // Azure
	"cf-client-cert-*", // Cloudflare
	"l5d-client-id",    // Linkerd
	"x-pomerium-*",     // Pomerium
	"x-countersign*",   // ours

	// Where the request comes from (D15). Envoy's X-Forwarded-Client-Cert and Traefik's X-Forwarded-Tls-Client-Cert are
	// among the first.
	"x-forwarded*", "forwarded",
	"x-original-forwarded-for",
	"x-real-ip", "x-client-ip", "x-cluster-client-ip",
	"true-client-ip", "cf-connecting-ip*",
	"x-envoy-external-address",

	// Becomes HTTP_PROXY in a CGI environment: httpoxy (D16).
	"proxy",
}

// ProtectedNames returns the protected set for documents and tests: folded names, those ending in a star are prefixes.
func ProtectedNames() []string { return slices.Clone(protected) }

// Protected reports whether a header of this name must be removed from what a client sends.
//
// Names are compared folded: lower case, and every octet that is neither letter nor digit as a hyphen. Backends that put
// headers into variables fold like that, so X_Client_Cert and X.Client.Cert are the same header to them (D03), and no
// spelling of a name in odd case escapes (D06). It runs for every field of every request and allocates nothing.
func Protected(name []byte) bool {
	if len(name) < minProtected || !initials[fold[name[0]]] {
		return false
	}
	// The third octet tells apart better than any other: the second is a hyphen in most names that got here.
	for _, m := range byThird[fold[name[2]]%thirds] {
		if m.matches(name) {
			return true
		}
	}
	return false
}

// SameFolded reports whether a name is folded, in the sense of Protected, to folded.
func SameFolded(name []byte, folded string) bool {
	return len(name) == len(folded) && (&member{name: folded}).matches(name)
}

// Folded is a name as SameFolded wants it.
func Folded(name string) string { return foldName(name) }

type member struct {
	name   string
	prefix bool
}

func (m *member) matches(name []byte) bool {
	if len(name) < len(m.name) || len(name) > len(m.name) && !m.prefix {
		return false
	}
	for i := range len(m.name) {
		if fold[name[i]] != m.name[i] {
			return false
		}
	}
	return true
}

const (
	minProtected = len("x-ssl") // the shortest: "ssl-" needs something behind it
	thirds       = 32           // letters stay apart modulo 32
)

// fold, initials and byThird are the set in the form Protected reads.
var (
	fold              = foldTable()
	initials, byThird = indexProtected()
)

func foldTable() (table [256]byte) {
	for i := range table {
		switch b := byte(i); {
		case 'a' <= b && b <= 'z', '0' <= b && b <= '9':
			table[i] = b
		case 'A' <= b && b <= 'Z':
			table[i] = b + 'a' - 'A'
		default:
			table[i] = '-'
		}
	}
	return table
}

func indexProtected() (initials [256]bool, byThird [thirds][]member) {
	for _, name := range protected {
		stem, prefix := strings.CutSuffix(name, "*")
		initials[stem[0]] = true
		third := stem[2] % thirds
		byThird[third] = append(byThird[third], member{stem, prefix})
	}
	return initials, byThird
}
