package origin

import (
	"bytes"
	"net/netip"
	"strconv"
	"strings"

	"countersign/internal/message"
	"countersign/internal/reason"
)

// Mode is what becomes of the forwarding headers that a request brings.
type Mode uint8

// The modes. Only what comes from a trusted address is ever kept: from everybody else it is Replace.
const (
	Replace  Mode = iota // they are removed, and ours are written
	Append               // ours are put behind those that are lists; the others are replaced
	Preserve             // they are kept; ours are written where there are none
)

// Basis is what says who the client of a request is, by address.
type Basis uint8

// The bases. A list is read from its end, as far as its authors are trusted; nobody else's words count.
const (
	ByPeer         Basis = iota // who connected, or whom a PROXY header names
	ByForwardedFor              // X-Forwarded-For
	ByForwarded                 // Forwarded (RFC 7239)
)

// Forwarding is how a listener reads and writes the headers that say where a request comes from. A nil one replaces them.
type Forwarding struct {
	Mode Mode
	// Trusted are the proxies in front of us whose headers are read.
	Trusted Networks
	Client  Basis
	// Port adds the client's port to its address.
	Port bool
	// RFC7239 writes Forwarded too.
	RFC7239 bool
}

// Static reports that what targets are told does not depend on what requests bring, so that it can be rendered once for
// a connection.
func (f *Forwarding) Static() bool { return f == nil || f.Mode == Replace && f.Client == ByPeer }

// MaxHops is the greatest number of addresses that a list may have, as with AWS ALB.
const MaxHops = 30

// node is one element of a list: what it says, and the address it means, if any.
type node struct {
	text []byte
	addr netip.AddrPort
}

// Incoming is what a request says about where it comes from. Its slices point into the request's head. It is large and
// meant to be used again for every request of a connection.
type Incoming struct {
	trusted   bool
	client    netip.AddrPort
	hops      [MaxHops]node // X-Forwarded-For
	n         int
	elements  [MaxHops]node // Forwarded: whole elements, and the address of their for
	m         int
	proto     []byte
	port      []byte
	host      []byte
	ambiguous uint8 // which of the three came twice
}

// Client is who sent the request, by address, once it was read.
func (in *Incoming) Client() netip.AddrPort { return in.client }

// Read notes what fields, which came from the address from, say. It returns reason.Unset, or why the request is refused:
// lists that are longer than MaxHops, or a Forwarded that cannot be read. Nothing is read of who is not trusted.
func (f *Forwarding) Read(in *Incoming, fields []message.Field, from netip.AddrPort) reason.Reason {
	in.trusted, in.client, in.n, in.m, in.ambiguous = f != nil && f.Trusted.Contains(from.Addr()), from, 0, 0, 0
	in.proto, in.port, in.host = nil, nil, nil
	if !in.trusted {
		return reason.Unset
	}
	for i := range fields {
		name, value := fields[i].Name, fields[i].Value
		switch len(name) {
		case len("forwarded"):
			if message.EqualFold(name, "forwarded") && (f.RFC7239 || f.Client == ByForwarded) {
				if why := in.readForwarded(value); why != reason.Unset {
					return why
				}
			}
		case len("x-forwarded-for"):
			if message.EqualFold(name, "x-forwarded-for") && !in.readFor(value) {
				return reason.TooManyForwarded
			}
		}
		switch len(name) {
		case len("x-forwarded-proto"):
			if message.EqualFold(name, "x-forwarded-proto") {
				in.once(&in.proto, value, 1, isScheme(value))
			}
		case len("x-forwarded-port"):
			if message.EqualFold(name, "x-forwarded-port") {
				in.once(&in.port, value, 2, isPort(value))
			} else if message.EqualFold(name, "x-forwarded-host") {
				in.once(&in.host, value, 4, isHost(value))
			}
		}
	}
	switch f.Client {
	case ByForwardedFor:
		in.client = f.author(in.hops[:in.n], from)
	case ByForwarded:
		in.client = f.author(in.elements[:in.m], from)
	}
	return reason.Unset
}

// author finds who wrote to the outermost of the proxies that are trusted: the rightmost address that is not listed. An
// element without an address ends the search at the proxy that wrote it.
func (f *Forwarding) author(list []node, from netip.AddrPort) netip.AddrPort {
	for i := len(list) - 1; i >= 0 && list[i].addr.IsValid(); i-- {
		from = list[i].addr
		if !f.Trusted.Contains(from.Addr()) {
			break
		}
	}
	return from
}

// once keeps a value that may be there once, if it is a good one.
func (in *Incoming) once(to *[]byte, value []byte, bit uint8, good bool) {
	if in.ambiguous&bit != 0 || !good {
		*to = nil
	} else {
		*to = value
	}
	in.ambiguous |= bit
}

func isScheme(v []byte) bool { return string(v) == "https" || string(v) == "http" }

func isPort(v []byte) bool {
	_, ok := number(v, 65535)
	return ok
}

// isHost reports whether v has only what hosts and ports are made of. What it names is the target's business.
func isHost(v []byte) bool {
	for _, c := range v {
		if !hosts[c] {
			return false
		}
	}
	return len(v) > 0 && len(v) <= 255+len(":65535")
}

// token has the octets of a token (RFC 9110 section 5.6.2), names those of an obfuscated name (RFC 7239 section 6.3), hosts
// those of a host with a port.
var token, names, hosts = octets("!#$%&'*+-.^_`|~"), octets("._-"), octets("-._:[]")

// octets is the set of letters, digits and others.
func octets(others string) (set [256]bool) {
	for c := range 256 {
		set[c] = c < 0x80 && (c|0x20 >= 'a' && c|0x20 <= 'z' || digit(byte(c)) || strings.IndexByte(others, byte(c)) >= 0)
	}
	return set
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

// number reads a decimal number without leading zeros.
func number(v []byte, most int) (int, bool) {
	if len(v) == 0 || len(v) > 5 || len(v) > 1 && v[0] == '0' {
		return 0, false
	}
	n := 0
	for _, c := range v {
		if !digit(c) {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, n <= most
}

// readFor reads a value of X-Forwarded-For, behind those that were read before.
func (in *Incoming) readFor(value []byte) bool {
	for more := true; more; {
		var item []byte
		item, value, more = bytes.Cut(value, comma)
		if item = trim(item); len(item) == 0 {
			continue // RFC 9110 section 5.6.1.2
		}
		if in.n == MaxHops {
			return false
		}
		in.hops[in.n] = readNode(item)
		in.n++
	}
	return true
}

var (
	comma   = []byte{','}
	unknown = []byte("unknown")
)

func trim(v []byte) []byte { return bytes.Trim(v, " \t") }

// readNode reads an address with or without port, "unknown" or an obfuscated name (RFC 7239 section 6). Of anything else
// no byte is passed on: it becomes "unknown".
func readNode(text []byte) node {
	if addr, ok := readAddr(text); ok {
		return node{text, addr}
	}
	if text[0] == '_' && len(text) > 1 && len(text) <= 64 {
		for _, c := range text[1:] {
			if !names[c] {
				return node{text: unknown}
			}
		}
		return node{text: text}
	}
	return node{text: unknown}
}

// readAddr reads 192.0.2.1, 192.0.2.1:80, 2001:db8::1, [2001:db8::1] and [2001:db8::1]:80.
func readAddr(text []byte) (netip.AddrPort, bool) {
	host, port := text, []byte(nil)
	switch colons := bytes.Count(text, []byte{':'}); {
	case text[0] == '[':
		end := bytes.IndexByte(text, ']')
		if end < 0 || colons < 2 {
			return netip.AddrPort{}, false
		}
		if host = text[1:end]; end+1 < len(text) {
			if text[end+1] != ':' {
				return netip.AddrPort{}, false
			}
			port = text[end+2:]
			if len(port) == 0 {
				return netip.AddrPort{}, false
			}
		}
	case colons == 1:
		i := bytes.IndexByte(text, ':')
		if host, port = text[:i], text[i+1:]; len(port) == 0 {
			return netip.AddrPort{}, false
		}
	}
	n := 0
	if port != nil {
		var ok bool
		if n, ok = number(port, 65535); !ok {
			return netip.AddrPort{}, false
		}
	}
	addr, ok := readIPv4(host)
	if !ok {
		const longest = len("0000:0000:0000:0000:0000:ffff:255.255.255.255")
		if len(host) > longest || bytes.IndexByte(host, ':') < 0 || bytes.IndexByte(host, '%') >= 0 {
			return netip.AddrPort{}, false
		}
		v6, err := netip.ParseAddr(string(host))
		if err != nil {
			return netip.AddrPort{}, false
		}
		addr = v6.Unmap()
	} else if text[0] == '[' {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(addr, uint16(n)), true
}

// readIPv4 reads four decimal numbers without leading zeros. Unlike netip it needs no string.
func readIPv4(text []byte) (netip.Addr, bool) {
	var b [4]byte
	for i := range b {
		part := text
		if i < 3 {
			dot := bytes.IndexByte(text, '.')
			if dot < 0 {
				return netip.Addr{}, false
			}
			part, text = text[:dot], text[dot+1:]
		}
		n, ok := number(part, 255)
		if !ok {
			return netip.Addr{}, false
		}
		b[i] = byte(n)
	}
	return netip.AddrFrom4(b), true
}

// readForwarded reads a value of Forwarded (RFC 7239 section 4), behind those that were read before. A value that cannot
// be read refuses the request: it cannot be told where in it the words of those begin who are trusted.
func (in *Incoming) readForwarded(value []byte) reason.Reason {
	for {
		value = bytes.TrimLeft(value, " \t,")
		if len(value) == 0 {
			return reason.Unset
		}
		if in.m == MaxHops {
			return reason.TooManyForwarded
		}
		end, who := readElement(value)
		if end < 0 {
			return reason.BadHeader
		}
		if text := bytes.Trim(value[:end], " \t;"); len(text) > 0 {
			in.elements[in.m] = node{text, who}
			in.m++
		}
		value = value[end:]
	}
}

// readElement finds the end of an element and whom it is about. The end is negative if it is malformed.
func readElement(v []byte) (end int, who netip.AddrPort) {
	const bad = -1
	seen := false
	for i := 0; ; {
		for i < len(v) && (v[i] == ' ' || v[i] == '\t' || v[i] == ';') {
			i++
		}
		if i == len(v) || v[i] == ',' {
			return i, who
		}
		start := i
		for i < len(v) && token[v[i]] {
			i++
		}
		name := v[start:i]
		if len(name) == 0 || i == len(v) || v[i] != '=' {
			return bad, who
		}
		i++
		start = i
		var value []byte
		if i < len(v) && v[i] == '"' {
			for i++; ; i++ {
				// A backslash is needed by no address, and is where readers come to differ.
				if i == len(v) || v[i] == '\\' || v[i] < ' ' && v[i] != '\t' || v[i] >= 0x7f {
					return bad, who
				}
				if v[i] == '"' {
					break
				}
			}
			value = v[start+1 : i]
			i++
		} else {
			for i < len(v) && token[v[i]] {
				i++
			}
			value = v[start:i]
		}
		if len(value) == 0 {
			return bad, who
		}
		for i < len(v) && (v[i] == ' ' || v[i] == '\t') {
			i++
		}
		if i < len(v) && v[i] != ';' && v[i] != ',' {
			return bad, who
		}
		if message.EqualFold(name, "for") {
			if seen {
				return bad, who // section 4: each parameter at most once
			}
			seen = true
			if value[0] != '[' && bytes.Count(value, []byte{':'}) > 1 {
				continue // section 6: IPv6 addresses stand in brackets
			}
			who, _ = readAddr(value)
		}
	}
}

// Hop is what we know about the last hop of a request: the client's connection to us.
type Hop struct {
	// Client and Local are those of the connection's Origin.
	Client, Local netip.AddrPort
	// Secure says that the client speaks TLS with us.
	Secure bool
	// Host is what the request asks for, nil to write no X-Forwarded-Host.
	Host []byte
}

// Append appends the header lines that say where a request comes from, in the form of HTTP/1.1. It allocates nothing if
// dst has room. in is what Read found; nil for nothing.
func (f *Forwarding) Append(dst []byte, in *Incoming, h *Hop) []byte {
	mode, port, rfc7239 := Replace, false, false
	if f != nil {
		port, rfc7239 = f.Port, f.RFC7239
		if in != nil && in.trusted {
			mode = f.Mode
		}
	}
	dst = append(dst, "X-Forwarded-For: "...)
	if mode != Replace {
		for i := range in.n {
			if i > 0 {
				dst = append(dst, ", "...)
			}
			dst = append(dst, in.hops[i].text...)
		}
	}
	if mode != Preserve || in.n == 0 {
		if mode == Append && in.n > 0 {
			dst = append(dst, ", "...)
		}
		dst = appendNode(dst, h.Client, port, false)
	}
	scheme := "http"
	if h.Secure {
		scheme = "https"
	}
	dst = append(dst, "\r\nX-Forwarded-Proto: "...)
	if mode == Preserve && in.proto != nil {
		dst = append(dst, in.proto...)
	} else {
		dst = append(dst, scheme...)
	}
	if mode == Preserve && in.port != nil {
		dst = append(append(dst, "\r\nX-Forwarded-Port: "...), in.port...)
	} else if h.Local.IsValid() {
		dst = strconv.AppendUint(append(dst, "\r\nX-Forwarded-Port: "...), uint64(h.Local.Port()), 10)
	}
	if mode == Preserve && in.host != nil {
		dst = append(append(dst, "\r\nX-Forwarded-Host: "...), in.host...)
	} else if h.Host != nil {
		dst = append(append(dst, "\r\nX-Forwarded-Host: "...), h.Host...)
	}
	if rfc7239 {
		dst = append(dst, "\r\nForwarded: "...)
		n := 0
		if mode != Replace {
			for n = range in.m {
				dst = append(append(dst, in.elements[n].text...), ", "...)
			}
			n = in.m
		}
		if mode == Preserve && n > 0 {
			dst = dst[:len(dst)-len(", ")]
		} else {
			dst = appendNode(append(dst, "for="...), h.Client, port, true)
			if h.Host != nil && isHost(h.Host) {
				dst = append(append(append(dst, `;host="`...), h.Host...), '"')
			}
			dst = append(append(dst, ";proto="...), scheme...)
		}
	}
	return append(dst, '\r', '\n')
}

// appendNode appends an address, with its port if that is wanted, quoted where Forwarded needs that.
func appendNode(dst []byte, a netip.AddrPort, port, quote bool) []byte {
	if !a.IsValid() {
		return append(dst, unknown...) // RFC 7239 section 6.2: a Unix socket
	}
	bracket := a.Addr().Is6() && (port || quote)
	quote = quote && (bracket || port)
	if quote {
		dst = append(dst, '"')
	}
	if bracket {
		dst = append(dst, '[')
	}
	dst = a.Addr().AppendTo(dst)
	if bracket {
		dst = append(dst, ']')
	}
	if port {
		dst = strconv.AppendUint(append(dst, ':'), uint64(a.Port()), 10)
	}
	if quote {
		dst = append(dst, '"')
	}
	return dst
}
