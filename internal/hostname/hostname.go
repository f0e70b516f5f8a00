// Package hostname owns canonical server names and wildcard matching.
//
// One canonicaliser serves the SNI, the Host and the config file, and one Table serves certificates, policies and
// routes: two spellings of a name, or two tables, are how a request reaches a host under another host's policy. It
// resolves nothing and maps no Unicode: names beyond ASCII are written in their xn-- form.
package hostname

import (
	"bytes"
	"net/netip"
)

// MaxLen is the longest name in bytes, without the trailing dot (RFC 1035 section 3.1, in its text form).
const MaxLen = 253

const maxLabel = 63 // RFC 1035 section 2.3.1

// Error says why a name was refused. It is a constant: refusing a stranger's name allocates nothing and echoes nothing.
type Error string

func (e Error) Error() string { return string(e) }

// The refusals.
const (
	ErrEmpty      Error = "host name is empty"
	ErrTooLong    Error = "host name is longer than 253 bytes"
	ErrCharacter  Error = "host name has a character other than letters, digits, hyphens and dots"
	ErrNonASCII   Error = "host name has a character beyond ASCII; expected its punycode form (xn--...)"
	ErrEmptyLabel Error = "host name has an empty label"
	ErrLongLabel  Error = "host name has a label longer than 63 bytes"
	ErrHyphen     Error = "host name has a label that starts or ends with a hyphen"
	ErrWildcard   Error = "host name has a wildcard; expected the name of one host"
	ErrAddress    Error = "server name is an IP address; expected a host name (RFC 6066 section 3)"
	ErrNumeric    Error = "host name ends in a number and is not an IPv4 address in dotted decimal"
	ErrIPv6       Error = "host name is not an IPv6 address in brackets, without zone"
	ErrPort       Error = "port is not a number from 1 to 65535 without leading zeros"
)

// AppendCanonicalHost appends the canonical form of a Host or :authority value to dst and returns the port beside it,
// 0 when the value names none. The name is lower case, without port and without one trailing dot; an IPv4 address is
// dotted decimal; an IPv6 address is in brackets in its RFC 5952 text. It refuses everything that is not exactly a host
// and an optional port (RFC 9110 section 7.2): user info, lists, paths, zones, wildcards, underscores, non-ASCII.
//
// With room in dst it allocates nothing, but for one small string per IPv6 address. On error dst is returned unchanged.
// host and dst may not overlap.
func AppendCanonicalHost(dst, host []byte) (canonical []byte, port uint16, err error) {
	name := host
	end := bytes.IndexByte(host, ':')
	if len(host) > 0 && host[0] == '[' {
		if end = bytes.IndexByte(host, ']') + 1; end == 0 || end < len(host) && host[end] != ':' {
			return dst, 0, ErrIPv6
		}
	}
	if end >= 0 && end < len(host) {
		name = host[:end]
		if port = parsePort(host[end+1:]); port == 0 {
			return dst, 0, ErrPort
		}
	}
	if len(name) > 0 && name[0] == '[' {
		canonical, err = appendIPv6(dst, name)
	} else {
		canonical, err = appendName(dst, name, true)
	}
	if err != nil {
		return dst, 0, err
	}
	return canonical, port, nil
}

// AppendCanonicalSNI appends the canonical form of a server name from a ClientHello to dst: lower case, without one
// trailing dot. crypto/tls hands the bytes over as they came, so this is the only check there is (threats A19). IP
// addresses and ports are refused (RFC 6066 section 3). With room in dst it allocates nothing. On error dst is returned
// unchanged. sni and dst may not overlap.
func AppendCanonicalSNI(dst, sni []byte) ([]byte, error) { return appendName(dst, sni, false) }

// parsePort returns 0 for what is not a port.
func parsePort(digits []byte) uint16 {
	if len(digits) == 0 || len(digits) > 5 || digits[0] == '0' {
		return 0
	}
	port := 0
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0
		}
		port = port*10 + int(c-'0')
	}
	if port > 65535 {
		return 0
	}
	return uint16(port)
}

func appendName(dst, name []byte, addressAllowed bool) ([]byte, error) {
	if len(name) > 1 && name[len(name)-1] == '.' {
		name = name[:len(name)-1]
	}
	if len(name) == 0 {
		return dst, ErrEmpty
	}
	if len(name) > MaxLen {
		return dst, ErrTooLong
	}
	out, label, numeric := dst, 0, true // label: where the current one starts; numeric: it holds digits only
	for i, c := range name {
		switch {
		case 'a' <= c && c <= 'z':
			numeric = false
		case 'A' <= c && c <= 'Z':
			numeric = false
			c += 'a' - 'A'
		case '0' <= c && c <= '9':
		case c == '-':
			numeric = false
		case c == '.':
			if err := checkLabel(name[label:i]); err != nil {
				return dst, err
			}
			label, numeric = i+1, true
		case c == '*':
			return dst, ErrWildcard
		case c >= 0x80:
			return dst, ErrNonASCII
		default:
			return dst, ErrCharacter
		}
		out = append(out, c)
	}
	last := name[label:]
	if err := checkLabel(last); err != nil {
		return dst, err
	}
	// Resolvers and browsers read a name whose last label is a number, also 0x7f, as an IPv4 address in one of its
	// older spellings. No top-level domain is a number, so only the dotted decimal spelling may pass.
	if numeric || isHex(last) {
		if !isIPv4(name) {
			return dst, ErrNumeric
		}
		if !addressAllowed {
			return dst, ErrAddress
		}
	}
	return out, nil
}

func checkLabel(label []byte) error {
	switch {
	case len(label) == 0:
		return ErrEmptyLabel
	case len(label) > maxLabel:
		return ErrLongLabel
	case label[0] == '-' || label[len(label)-1] == '-':
		return ErrHyphen
	}
	return nil
}

// isHex reports whether label is 0x and hexadecimal digits, perhaps none.
func isHex(label []byte) bool {
	if len(label) < 2 || label[0] != '0' || label[1]|0x20 != 'x' {
		return false
	}
	for _, c := range label[2:] {
		if c|0x20 < 'a' || c|0x20 > 'f' {
			if c < '0' || c > '9' {
				return false
			}
		}
	}
	return true
}

// isIPv4 reports whether name is four decimal numbers of at most 255 without leading zeros.
func isIPv4(name []byte) bool {
	numbers := 0
	for part := range bytes.SplitSeq(name, []byte{'.'}) {
		if len(part) == 0 || len(part) > 3 || len(part) > 1 && part[0] == '0' {
			return false
		}
		n := 0
		for _, c := range part {
			if c < '0' || c > '9' {
				return false
			}
			n = n*10 + int(c-'0')
		}
		if n > 255 {
			return false
		}
		numbers++
	}
	return numbers == 4
}

func appendIPv6(dst, bracketed []byte) ([]byte, error) {
	const longest = len("[0000:0000:0000:0000:0000:0000:255.255.255.255]")
	if len(bracketed) > longest || bytes.IndexByte(bracketed, '%') >= 0 {
		return dst, ErrIPv6
	}
	addr, err := netip.ParseAddr(string(bracketed[1 : len(bracketed)-1]))
	if err != nil || !addr.Is6() {
		return dst, ErrIPv6
	}
	return append(addr.AppendTo(append(dst, '[')), ']'), nil
}
