package identity

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/url"
	"strings"
)

// This file reads every dialect back as a backend would, with nothing of the package under test.

// sfList reads an RFC 8941 list of byte sequences, character by character and with no licence.
func sfList(s string) (items [][]byte, err error) {
	for {
		if !strings.HasPrefix(s, ":") {
			return nil, fmt.Errorf("no byte sequence at %.20q", s)
		}
		text, rest, ok := strings.Cut(s[1:], ":")
		if !ok || len(text)%4 != 0 {
			return nil, fmt.Errorf("no end of a byte sequence: %.20q", s)
		}
		item, err := base64.StdEncoding.Strict().DecodeString(text)
		if err != nil {
			return nil, err
		}
		items = append(items, item)
		if rest = strings.TrimLeft(rest, " \t"); rest == "" {
			return items, nil
		}
		if rest[0] != ',' {
			return nil, fmt.Errorf("no comma at %.20q", rest)
		}
		s = strings.TrimLeft(rest[1:], " \t")
	}
}

// pemList reads percent-encoded PEM.
func pemList(s string) (ders [][]byte, err error) {
	text, err := url.PathUnescape(s)
	if err != nil {
		return nil, err
	}
	for rest := []byte(text); len(rest) > 0; {
		if !strings.HasPrefix(string(rest), "-----BEGIN CERTIFICATE-----\n") {
			return nil, fmt.Errorf("no PEM at %.30q", rest)
		}
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, fmt.Errorf("broken PEM: %.30q", rest)
		}
		ders = append(ders, block.Bytes)
	}
	return ders, nil
}

// av is an attribute type and value, read.
type av struct{ name, text string }

// rfc2253 reads a distinguished name (RFC 2253 section 3) into RDNs in the order of the certificate.
func rfc2253(s string) (rdns [][]av, err error) {
	if s == "" {
		return nil, nil
	}
	var rdn []av
	for {
		name, rest, ok := strings.Cut(s, "=")
		if !ok || name == "" || strings.ContainsAny(name, `,+;\"<>#`) {
			return nil, fmt.Errorf("no attribute type at %.30q", s)
		}
		var text strings.Builder
		i := 0
		for ; i < len(rest) && rest[i] != ',' && rest[i] != '+'; i++ {
			switch {
			case strings.IndexByte(`;"<>`, rest[i]) >= 0:
				return nil, fmt.Errorf("bare %c", rest[i])
			case rest[i] != '\\':
				text.WriteByte(rest[i])
			case i+2 < len(rest) && isHex(rest[i+1]) && isHex(rest[i+2]):
				b, _ := hex.DecodeString(rest[i+1 : i+3])
				text.Write(b)
				i += 2
			case i+1 < len(rest) && strings.IndexByte(`,+"\<>;# =`, rest[i+1]) >= 0:
				text.WriteByte(rest[i+1])
				i++
			default:
				return nil, fmt.Errorf("bad escape at %.30q", rest[i:])
			}
		}
		rdn = append([]av{{name, text.String()}}, rdn...)
		if i == len(rest) {
			return append([][]av{rdn}, rdns...), nil
		}
		if rest[i] == ',' {
			rdns, rdn = append([][]av{rdn}, rdns...), nil
		}
		s = rest[i+1:]
	}
}

func isHex(b byte) bool { return strings.IndexByte("0123456789abcdefABCDEF", b) >= 0 }

// xfcc reads X-Forwarded-Client-Cert after Envoy's documentation: elements by commas, pairs by semicolons, key and value
// by the first equals sign, a value in quotes with \" for a quote. With every, a backslash escapes whatever follows, as
// parsers in the style of RFC 9110 quoted-string have it.
func xfcc(s string, every bool) (elements [][]av, err error) {
	var element []av
	for {
		name, rest, ok := strings.Cut(s, "=")
		if !ok || strings.ContainsAny(name, `,;"\ `) {
			return nil, fmt.Errorf("no key at %.30q", s)
		}
		var text strings.Builder
		i := 0
		if strings.HasPrefix(rest, `"`) {
			for i = 1; ; i++ {
				if i >= len(rest) {
					return nil, fmt.Errorf("no closing quote")
				}
				if rest[i] == '\\' && i+1 < len(rest) && (rest[i+1] == '"' || every) {
					i++
					text.WriteByte(rest[i])
					continue
				}
				if rest[i] == '"' {
					break
				}
				text.WriteByte(rest[i])
			}
			i++
		} else {
			for ; i < len(rest) && rest[i] != ',' && rest[i] != ';'; i++ {
				if strings.IndexByte(`="\ `, rest[i]) >= 0 {
					return nil, fmt.Errorf("%q needs quotes", rest[i])
				}
				text.WriteByte(rest[i])
			}
		}
		element = append(element, av{name, text.String()})
		if i == len(rest) {
			return append(elements, element), nil
		}
		switch rest[i] {
		case ',':
			elements, element = append(elements, element), nil
		case ';':
		default:
			return nil, fmt.Errorf("no separator at %.30q", rest[i:])
		}
		s = rest[i+1:]
	}
}

// unhex undoes backslash and two digits, the only escape where it is used.
func unhex(s string) (string, error) {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			out.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
			return "", fmt.Errorf("bad escape at %.30q", s[i:])
		}
		b, _ := hex.DecodeString(s[i+1 : i+3])
		out.Write(b)
		i += 2
	}
	return out.String(), nil
}

// traefik reads X-Forwarded-Tls-Client-Cert-Info: fields by certificate.
func traefik(s string) (certs []map[string]string, err error) {
	if s, err = url.QueryUnescape(s); err != nil {
		return nil, err
	}
	cert := map[string]string{}
	for {
		name, rest, ok := strings.Cut(s, `="`)
		if !ok || strings.ContainsAny(name, `,;"\`) {
			return nil, fmt.Errorf("no field at %.30q", s)
		}
		text, after, ok := strings.Cut(rest, `"`)
		if _, twice := cert[name]; !ok || twice {
			return nil, fmt.Errorf("field %s twice, or without end", name)
		}
		cert[name] = text
		if after == "" {
			return append(certs, cert), nil
		}
		switch after[0] {
		case ',':
			certs, cert = append(certs, cert), map[string]string{}
		case ';':
		default:
			return nil, fmt.Errorf("no separator at %.30q", after)
		}
		s = after[1:]
	}
}

// traefikList reads the value of Subject and Issuer, or with pairs false of SAN.
func traefikList(s string, pairs bool) (list []av, err error) {
	if s == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		var name string
		if pairs {
			var ok bool
			if name, part, ok = strings.Cut(part, "="); !ok || strings.Contains(part, "=") {
				return nil, fmt.Errorf("no single pair: %q", part)
			}
		}
		text, err := unhex(part)
		if err != nil {
			return nil, err
		}
		list = append(list, av{name, text})
	}
	return list, nil
}

// traefikOrder is what Traefik would print of a name, by its documentation: types in its order, of CN and SN the last.
func traefikOrder(rdns [][]av, subject bool) (list []av) {
	for _, t := range []struct{ ours, theirs string }{{"DC", "DC"}, {"C", "C"}, {"ST", "ST"}, {"L", "L"}, {"O", "O"}, {"OU", "OU"}, {"serialNumber", "SN"}, {"CN", "CN"}} {
		if t.theirs == "OU" && !subject {
			continue
		}
		var of []av
		for _, rdn := range rdns {
			for _, a := range rdn {
				if a.name == t.ours {
					of = append(of, av{t.theirs, a.text})
				}
			}
		}
		if single := t.theirs == "SN" || t.theirs == "CN"; single && len(of) > 1 {
			of = of[len(of)-1:]
		}
		for _, a := range of {
			if a.text != "" || a.name == "DC" {
				list = append(list, a)
			}
		}
	}
	return list
}

func ders(certs []*x509.Certificate) (out [][]byte) {
	for _, cert := range certs {
		out = append(out, cert.Raw)
	}
	return out
}
