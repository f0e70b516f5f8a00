package route

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"countersign/internal/hostname"
	"countersign/internal/identity"
	"countersign/internal/message"
)

// ClientIs is a condition on the verified client. All that is set has to be met; of a list, one. Whoever is not verified
// is nobody, and meets only Nobody.
type ClientIs struct {
	// Nobody wants no verified client, and goes with nothing else.
	Nobody bool
	// Subjects and Issuers are whole names, as records print them (RFC 2253).
	Subjects, Issuers []string
	Names             []Name
	// Fingerprints are SHA-256 of certificates.
	Fingerprints [][sha256.Size]byte
	// TrustDomains are those of SPIFFE IDs.
	TrustDomains []string
}

// Met reports whether the client meets the condition.
func (w *ClientIs) Met(client identity.Client) bool {
	id, verified := client.Identity()
	if !verified || w.Nobody {
		return !verified && w.Nobody
	}
	if len(w.Fingerprints) > 0 {
		own, found := id.Fingerprint(), false
		for i := range w.Fingerprints {
			found = found || w.Fingerprints[i] == own
		}
		if !found {
			return false
		}
	}
	leaf := id.Leaf()
	if len(w.Subjects) > 0 && (!has(w.Subjects, []byte(id.Subject())) || oldStrings(leaf.RawSubject)) {
		return false
	}
	if len(w.Issuers) > 0 && (!has(w.Issuers, []byte(id.Issuer())) || oldStrings(leaf.RawIssuer)) {
		return false
	}
	if len(w.TrustDomains) > 0 {
		domain, _, _ := strings.Cut(strings.TrimPrefix(id.SPIFFE(), spiffeScheme), "/")
		if domain == "" || !has(w.TrustDomains, []byte(domain)) {
			return false
		}
	}
	return len(w.Names) == 0 || anyName(leaf, w.Names)
}

// oldStrings reports whether a name has a value in one of the string types whose octets are different characters to
// different readers, or is malformed: it cannot be compared (B09).
func oldStrings(rawName []byte) bool {
	const universalString, bmpString = asn1.Tag(28), asn1.Tag(30) // X.680 section 8.4
	input, rdns := cryptobyte.String(rawName), cryptobyte.String(nil)
	if !input.ReadASN1(&rdns, asn1.SEQUENCE) || !input.Empty() {
		return true
	}
	for !rdns.Empty() {
		var set, pair, value cryptobyte.String
		var tag asn1.Tag
		if !rdns.ReadASN1(&set, asn1.SET) {
			return true
		}
		for !set.Empty() {
			if !set.ReadASN1(&pair, asn1.SEQUENCE) || !pair.SkipASN1(asn1.OBJECT_IDENTIFIER) || !pair.ReadAnyASN1(&value, &tag) ||
				tag == asn1.T61String || tag == universalString || tag == bmpString {
				return true
			}
		}
	}
	return false
}

// Name is an alternative name with its kind, in which "*" may stand for a whole label or a whole segment of a path.
type Name struct {
	uri   bool
	text  string
	parts []string // labels or segments; nil if there is no wildcard
}

const spiffeScheme = "spiffe://"

// ParseName reads dns:edge.test, dns:*.edge.test, uri:spiffe://corp.test/ns/*/sa/ops.
func ParseName(text string) (Name, error) {
	const maxName = 2048
	kind, rest, ok := strings.Cut(text, ":")
	if !ok || rest == "" || kind != "dns" && kind != "uri" || len(rest) > maxName {
		return Name{}, fmt.Errorf("%q is not an alternative name; expected dns:host.test or uri:spiffe://corp.test/ops", text)
	}
	n := Name{uri: kind == "uri", text: rest}
	if !n.uri {
		n.text = strings.ToLower(rest)
		canonical, _, err := hostname.AppendCanonicalHost(nil, []byte(strings.ReplaceAll(n.text, "*", "x")))
		if err != nil || string(canonical) != strings.ReplaceAll(n.text, "*", "x") || strings.ContainsAny(rest, "[:") {
			return Name{}, fmt.Errorf("%q is not a DNS name", rest)
		}
		n.parts = strings.Split(n.text, ".")
	} else {
		scheme, path, ok := strings.Cut(rest, "://")
		if !ok || scheme == "" || path == "" || strings.ContainsFunc(rest, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			return Name{}, fmt.Errorf("%q is not a URI of the form scheme://authority/path", rest)
		}
		n.parts = strings.Split(rest, "/")
	}
	wild := false
	for i, part := range n.parts {
		switch {
		case part == "*" && !(n.uri && i < 3):
			wild = true
		case strings.Contains(part, "*"):
			return Name{}, fmt.Errorf("%q has a * that is not a whole label of the name or segment of the path", rest)
		}
	}
	if !wild {
		n.parts = nil
	}
	return n, nil
}

// anyName reports whether the certificate has one of the names. They are read octet for octet as they were signed.
func anyName(cert *x509.Certificate, names []Name) bool {
	const sanDNS, sanURI = asn1.Tag(2 | 0x80), asn1.Tag(6 | 0x80) // RFC 5280 section 4.2.1.6
	found, spiffe := false, 0
	for i := range cert.Extensions {
		if id := cert.Extensions[i].Id; len(id) != 4 || id[0] != 2 || id[1] != 5 || id[2] != 29 || id[3] != 17 {
			continue
		}
		input, list := cryptobyte.String(cert.Extensions[i].Value), cryptobyte.String(nil)
		if !input.ReadASN1(&list, asn1.SEQUENCE) {
			return false
		}
		for !list.Empty() {
			var value cryptobyte.String
			var tag asn1.Tag
			if !list.ReadAnyASN1(&value, &tag) {
				return false
			}
			if tag != sanDNS && tag != sanURI {
				continue
			}
			if tag == sanURI && len(value) >= len("spiffe:") && strings.EqualFold(string(value[:len("spiffe:")]), "spiffe:") {
				spiffe++
			}
			for j := range names {
				found = found || names[j].uri == (tag == sanURI) && names[j].is(value)
			}
		}
	}
	return found && spiffe <= 1 // of several SPIFFE IDs, whom it speaks for depends on who reads it (B11)
}

// is compares a name of a certificate. One that has a wildcard of its own, or in which a segment could be read as another
// (dots, escapes, queries), is no other name than itself (B11).
func (n *Name) is(name []byte) bool {
	if n.parts == nil {
		if n.uri {
			return string(name) == n.text
		}
		return message.EqualFold(name, n.text)
	}
	separator := byte('.')
	if n.uri {
		separator = '/'
	}
	rest := name
	for i, want := range n.parts {
		end := len(rest)
		for j, c := range rest {
			if c == separator {
				end = j
				break
			}
		}
		part := rest[:end]
		if want == "*" {
			if len(part) == 0 || string(part) == "." || string(part) == ".." {
				return false
			}
			for _, c := range part {
				if c <= ' ' || c >= 0x7f || c == '*' || c == '%' || c == '\\' || c == '?' || c == '#' || c == ';' {
					return false
				}
			}
		} else if n.uri && string(part) != want || !n.uri && !message.EqualFold(part, want) {
			return false
		}
		last := i == len(n.parts)-1
		if last != (end == len(rest)) {
			return false
		}
		if !last {
			rest = rest[end+1:]
		}
	}
	return true
}

// ParseFingerprint reads SHA-256 in hexadecimal, with or without colons.
func ParseFingerprint(text string) (sum [sha256.Size]byte, err error) {
	raw, err := hex.DecodeString(strings.ReplaceAll(text, ":", ""))
	if err != nil || len(raw) != len(sum) {
		return sum, fmt.Errorf("%q is not a SHA-256 fingerprint; expected 64 hexadecimal digits, with or without colons", text)
	}
	return [sha256.Size]byte(raw), nil
}
