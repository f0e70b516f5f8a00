package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"net/url"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	traefikCert = "X-Forwarded-Tls-Client-Cert"
	traefikInfo = "X-Forwarded-Tls-Client-Cert-Info"
)

// appendTraefik renders what the middleware passTLSClientCert of Traefik 3 sends with pem and every info option on
// (doc.traefik.io, "PassTLSClientCert"; traefik/traefik, pkg/middlewares/passtlsclientcert), byte for byte for ordinary
// names: base64 without PEM's armour and lines, certificates joined with commas; and for each of them
//
//	Subject="…";Issuer="…";SerialNumber="…";NB="…";NA="…";SAN="…"
//
// escaped as a URL query. The certificates are the leaf and, on request, the verified intermediates, where Traefik has
// whatever the client presented (B07). Traefik escapes nothing within the values, so that a name can end its field and
// begin another there; here a character of the syntax, or one that does not print, is a backslash and two hexadecimal
// digits for each octet of its UTF-8 (D07).
func (r *rendering) appendTraefik(dst []byte) ([]byte, error) {
	certs := append([]*x509.Certificate{r.id.Leaf()}, r.chain...)
	var info []byte
	dst = append(dst, traefikCert+": "...)
	for i, cert := range certs {
		if i > 0 {
			dst, info = append(dst, ','), append(info, ',')
		}
		dst = base64.StdEncoding.AppendEncode(dst, cert.Raw)
		var ok bool
		if info, ok = appendTraefikInfo(info, cert); !ok {
			return dst, malformedName()
		}
	}
	return appendHeader(append(dst, "\r\n"...), traefikInfo, url.QueryEscape(string(info))), nil
}

func appendTraefikInfo(dst []byte, cert *x509.Certificate) (_ []byte, ok bool) {
	field := func(name string, value []byte) {
		if len(value) == 0 { // Traefik leaves empty fields out
			return
		}
		if len(dst) > 0 && dst[len(dst)-1] == '"' {
			dst = append(dst, ';')
		}
		dst = append(append(dst, name...), `="`...)
		dst = append(append(dst, value...), '"')
	}
	subject, ok := traefikName(cert.RawSubject, true)
	if !ok {
		return dst, false
	}
	issuer, ok := traefikName(cert.RawIssuer, false)
	if !ok {
		return dst, false
	}
	field("Subject", subject)
	field("Issuer", issuer)
	field("SerialNumber", cert.SerialNumber.Append(nil, 10))
	field("NB", strconv.AppendInt(nil, cert.NotBefore.Unix(), 10))
	field("NA", strconv.AppendInt(nil, cert.NotAfter.Unix(), 10))

	names := altNamesOf(cert)
	var list []byte
	items := 0
	item := func(text []byte) {
		if items++; items > 1 {
			list = append(list, ',')
		}
		list = appendTraefikText(list, text, `",;\`)
	}
	for _, name := range names.dns {
		item(name)
	}
	for _, address := range names.emails {
		item(address)
	}
	for _, ip := range names.ips {
		item([]byte(ip.String()))
	}
	for _, uri := range names.uris {
		item(uri)
	}
	field("SAN", list)
	return dst, true
}

// traefikName prints those attributes of a name that Traefik knows, type by type in its order. Where pkix.Name keeps but
// one, the last, so do we.
func traefikName(rawName []byte, subject bool) ([]byte, bool) {
	attrs, ok := parseName(nil, rawName)
	if !ok {
		return nil, false
	}
	var out []byte
	for _, t := range traefikAttributes {
		if t.subjectOnly && !subject {
			continue
		}
		var last []byte
		for i := range attrs {
			if shortNames[string(attrs[i].oid)] != t.name {
				continue
			}
			last = nil
			value := attrs[i].appendValue(nil, verbatim)
			if len(value) == 0 && t.name != "DC" {
				continue // as Traefik does
			}
			line := appendTraefikText(append([]byte(t.print), '='), value, `",;=\`)
			if t.single {
				last = line
				continue
			}
			out = append(append(out, line...), ',')
		}
		if last != nil {
			out = append(append(out, last...), ',')
		}
	}
	return bytes.TrimSuffix(out, []byte(",")), true
}

// traefikAttributes are the types by our names and by Traefik's.
var traefikAttributes = []struct {
	name, print         string
	single, subjectOnly bool
}{
	{"DC", "DC", false, false}, {"C", "C", false, false}, {"ST", "ST", false, false}, {"L", "L", false, false},
	{"O", "O", false, false}, {"OU", "OU", false, true}, {"serialNumber", "SN", true, false}, {"CN", "CN", true, false},
}

func verbatim(dst []byte, b byte, _, _ bool) []byte { return append(dst, b) }

// appendTraefikText prints UTF-8, with the characters of syntax, all that do not print, and spaces at the ends escaped.
func appendTraefikText(dst, text []byte, syntax string) []byte {
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRune(text[i:])
		atEnd := r == ' ' && (i == 0 || i+size == len(text))
		if atEnd || r == utf8.RuneError && size == 1 || !unicode.IsPrint(r) || strings.ContainsRune(syntax, r) {
			for _, b := range text[i : i+size] {
				dst = appendHexPair(dst, b)
			}
		} else {
			dst = append(dst, text[i:i+size]...)
		}
		i += size
	}
	return dst
}
