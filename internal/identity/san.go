package identity

import (
	"bytes"
	"crypto/x509"
	"net"
	"slices"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"countersign/internal/message"
)

// altNames are the alternative names of a certificate's subject, octet for octet as they stand in it: crypto/x509 hands
// out URIs parsed, and printing them again would not always give what was signed.
type altNames struct {
	dns, emails, uris [][]byte
	ips               []net.IP
}

// subjectAltName is the extension's identifier, 2.5.29.17, and the tags are those of GeneralName (RFC 5280 section 4.2.1.6).
const (
	sanEmail = asn1.Tag(1 | 0x80)
	sanDNS   = asn1.Tag(2 | 0x80)
	sanURI   = asn1.Tag(6 | 0x80)
	sanIP    = asn1.Tag(7 | 0x80)
)

func altNamesOf(cert *x509.Certificate) (names altNames) {
	for i := range cert.Extensions {
		if id := cert.Extensions[i].Id; len(id) != 4 || id[0] != 2 || id[1] != 5 || id[2] != 29 || id[3] != 17 {
			continue
		}
		input, list := cryptobyte.String(cert.Extensions[i].Value), cryptobyte.String(nil)
		if !input.ReadASN1(&list, asn1.SEQUENCE) {
			return names
		}
		for !list.Empty() {
			var value cryptobyte.String
			var tag asn1.Tag
			if !list.ReadAnyASN1(&value, &tag) {
				return names
			}
			switch tag {
			case sanEmail:
				names.emails = append(names.emails, value)
			case sanDNS:
				names.dns = append(names.dns, value)
			case sanURI:
				names.uris = append(names.uris, value)
			case sanIP:
				if len(value) == net.IPv4len || len(value) == net.IPv6len {
					names.ips = append(names.ips, net.IP(value))
				}
			}
		}
	}
	return names
}

// HasDNS reports whether the leaf has the DNS name canonical, which is in lower case. A name that is a wildcard in the
// certificate is no other name than itself.
func (id *Identity) HasDNS(canonical string) bool {
	return slices.ContainsFunc(altNamesOf(id.Leaf()).dns, func(name []byte) bool { return message.EqualFold(name, canonical) })
}

// HasURI reports whether the leaf has the URI name uri, octet for octet.
func (id *Identity) HasURI(uri string) bool {
	return slices.ContainsFunc(altNamesOf(id.Leaf()).uris, func(name []byte) bool { return string(name) == uri })
}

const (
	alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	// dnsCharacters are those of host names, wildcards and service names.
	dnsCharacters = alphanumeric + "-._*"
	// uriCharacters are all that RFC 3986 allows. A backslash is not among them.
	uriCharacters = alphanumeric + "-._~:/?#[]@!$&'()*+,;=%"
)

// appendOnly prints the octets of text that are among allowed, and a backslash and two hexadecimal digits for each that is
// not. As allowed has no backslash, two texts never look alike, and one with such an octet never looks like a legal one.
func appendOnly(dst, text []byte, allowed string) []byte {
	for _, b := range text {
		if strings.IndexByte(allowed, b) >= 0 {
			dst = append(dst, b)
		} else {
			dst = appendHexPair(dst, b)
		}
	}
	return dst
}

// spiffeID returns the one SPIFFE ID among uris and its place, or -1 (spiffe.io, "The SPIFFE Identity and Verifiable
// Identity Document", section 2: trust domain and path have letters, digits, dots, dashes, underscores and slashes; a
// certificate has one).
func spiffeID(uris [][]byte) (at int) {
	const scheme = "spiffe://"
	at = -1
	for i, uri := range uris {
		if len(uri) < len(scheme) || !strings.EqualFold(string(uri[:len(scheme)]), scheme) {
			continue
		}
		if at >= 0 {
			return -1
		}
		at = i
	}
	if at < 0 {
		return -1
	}
	domain, path, _ := bytes.Cut(uris[at][len(scheme):], []byte("/"))
	if !bytes.HasPrefix(uris[at], []byte(scheme)) || len(domain) == 0 ||
		len(bytes.Trim(domain, "abcdefghijklmnopqrstuvwxyz0123456789-._")) > 0 || len(bytes.Trim(path, alphanumeric+"-._/")) > 0 {
		return -1
	}
	return at
}
