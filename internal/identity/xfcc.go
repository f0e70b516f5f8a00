package identity

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"

	"countersign/internal/message"
)

const forwardedClientCert = "X-Forwarded-Client-Cert"

// appendXFCC renders one element of Envoy's X-Forwarded-Client-Cert (envoyproxy.io, "HTTP header manipulation",
// x-forwarded-client-cert), with Envoy's keys in Envoy's order: Hash, Cert, Chain, Subject, URI, DNS. By is left out, it is
// about our own certificate.
//
// Subject is RFC 2253 as Envoy prints it, always quoted, but for the four characters that are XFCC's own syntax and that
// Envoy puts there bare: a quote, backslash, semicolon or equals sign within a value is its pair of hexadecimal digits,
// which RFC 2253 section 2.4 allows for every character. So no quote and no doubled backslash is ever within the quotes,
// where parsers differ on them, and not even one that splits at separators without heeding quotes finds a key in a name
// (D07). URI and DNS hold the octets of the certificate; one that is no legal character of a URI or of a host name is a
// backslash and two hexadecimal digits, which makes it neither.
func (r *rendering) appendXFCC(dst []byte) (_ []byte, err error) {
	leaf := r.id.Leaf()
	dst = append(dst, forwardedClientCert+": "...)
	if r.prior.value != "" {
		dst = append(append(dst, r.prior.value...), ',')
	}
	dst = hex.AppendEncode(append(dst, "Hash="...), r.id.fingerprint[:])
	if r.style.xfccCert {
		dst = append(pemStrict.append(append(dst, `;Cert="`...), leaf.Raw), '"')
	}
	if len(r.chain) > 0 { // Envoy's chain begins with the leaf
		dst = pemStrict.append(append(dst, `;Chain="`...), leaf.Raw)
		for _, cert := range r.chain {
			dst = pemStrict.append(dst, cert.Raw)
		}
		dst = append(dst, '"')
	}
	if dst, err = appendName(append(dst, `;Subject="`...), leaf.RawSubject, escapeXFCC); err != nil {
		return dst, err
	}
	dst = append(dst, '"')
	names := altNamesOf(leaf)
	for _, uri := range names.uris {
		dst = appendXFCCValue(append(dst, ";URI="...), uri, uriCharacters)
	}
	for _, name := range names.dns {
		dst = appendXFCCValue(append(dst, ";DNS="...), name, dnsCharacters)
	}
	return append(dst, "\r\n"...), nil
}

func escapeXFCC(dst []byte, b byte, first, last bool) []byte {
	switch b {
	case '"', '\\', ';', '=':
		return appendHexPair(dst, b)
	}
	return escapeRFC2253(dst, b, first, last)
}

// appendXFCCValue prints text, quoted if it holds a separator or an escape.
func appendXFCCValue(dst, text []byte, allowed string) []byte {
	start := len(dst)
	dst = appendOnly(append(dst, '"'), text, allowed)
	if bytes.ContainsAny(dst[start+1:], `,;=\`) {
		return append(dst, '"')
	}
	return append(dst[:start], dst[start+1:]...)
}

// ForwardedCerts are the elements of X-Forwarded-Client-Cert that a proxy sent, checked. The zero value is none.
type ForwardedCerts struct{ value string }

// ParseForwardedCerts reads X-Forwarded-Client-Cert of a request whose sender is a listed proxy that authenticated itself;
// that the caller has checked. There may be one such header, in the grammar of Envoy's documentation without any licence:
// what two parsers could read in two ways is refused (D04, D07).
func ParseForwardedCerts(fields []message.Field) (ForwardedCerts, error) {
	value, err := single(fields, forwardedClientCert)
	if value == nil || err != nil {
		return ForwardedCerts{}, err
	}
	if _, err := parseXFCC(value); err != nil {
		return ForwardedCerts{}, err
	}
	return ForwardedCerts{string(value)}, nil
}

// xfccElement is what one proxy said: values by key, in lower case.
type xfccElement map[string][]string

// xfccKeys are the keys of Envoy's documentation, and whether an element may have several of them.
var xfccKeys = map[string]bool{"by": true, "hash": false, "cert": false, "chain": false, "subject": false, "uri": true, "dns": true}

func parseXFCC(value []byte) ([]xfccElement, error) {
	rest := string(value)
	elements := []xfccElement{{}}
	for {
		key, after, ok := strings.Cut(rest, "=")
		key = strings.ToLower(key)
		several, known := xfccKeys[key]
		if !ok || !known {
			return nil, badXFCC("a key of Envoy's and =", rest)
		}
		element := elements[len(elements)-1]
		if len(element[key]) > 0 && !several {
			return nil, badXFCCForm("one "+key+" an element", "two")
		}
		text, after, err := cutXFCCValue(after)
		if err != nil {
			return nil, err
		}
		element[key] = append(element[key], text)
		if after == "" {
			return elements, nil
		}
		if after[0] == ',' {
			elements = append(elements, xfccElement{})
		}
		rest = after[1:]
	}
}

// cutXFCCValue returns the value in front of the next separator, and the rest from the separator on.
func cutXFCCValue(s string) (value, rest string, err error) {
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexAny(s, ",;")
		if end < 0 {
			end = len(s)
		}
		if strings.ContainsAny(s[:end], "\"\\ ") {
			return "", "", badXFCC("quotes around the value", s)
		}
		return s[:end], s[end:], nil
	}
	var b []byte
	backslashes := 0
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"' && backslashes%2 == 1:
			b[len(b)-1] = '"' // the quote's backslash is not part of the value
			backslashes = 0
		case s[i] == '"' && backslashes > 0:
			// \\" ends the value for those who know \\ as an escape, and does not for those who know \" only.
			return "", "", badXFCC("a value that ends the same for everybody", s)
		case s[i] == '"':
			if rest = s[i+1:]; rest != "" && rest[0] != ',' && rest[0] != ';' {
				return "", "", badXFCC("a separator behind the quotes", rest)
			}
			return string(b), rest, nil
		default:
			if b = append(b, s[i]); s[i] == '\\' {
				backslashes++
			} else {
				backslashes = 0
			}
		}
	}
	return "", "", badXFCC("a closing quote", s)
}

func badXFCC(expected, found string) error {
	return badXFCCForm(expected, fmt.Sprintf("%.40q", found))
}

func badXFCCForm(expected, found string) error {
	return badForm("in "+forwardedClientCert+" "+expected, found)
}
