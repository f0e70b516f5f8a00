package outbound

import (
	"fmt"
	"net/netip"
	"slices"
)

// AddressError says that a host has an address that may not be dialled. Nothing was sent.
type AddressError struct {
	Host    string // host and port, as in the URL
	Address string // the address found for it
	kind    network
}

func (e *AddressError) Error() string {
	return fmt.Sprintf("%s: expected a public address, found %s, which is %s; add %s, or the part of it that is needed, to outbound.allow",
		e.Host, e.Address, e.kind.what, e.kind.prefix)
}

// network is a block of addresses that are not for everybody.
type network struct {
	prefix netip.Prefix
	what   string
}

// special are the blocks that hold no host of the public internet, from the IANA special-purpose address registries
// (RFC 6890) and the multicast and reserved ranges. Of IPv6 only 2000::/3 is global unicast (RFC 4291 section 2.4), so
// loopback, unique local, link-local, multicast and IPv4-compatible addresses need no line of their own to be refused;
// those that have one are named better in the error.
var special = []network{
	block("0.0.0.0/8", "of this network (RFC 791)"),
	block("10.0.0.0/8", "private (RFC 1918)"),
	block("100.64.0.0/10", "shared by carriers (RFC 6598)"),
	block("127.0.0.0/8", "loopback"),
	block("169.254.0.0/16", "link-local (RFC 3927), where clouds keep their metadata services"),
	block("172.16.0.0/12", "private (RFC 1918)"),
	block("192.0.0.0/24", "for protocol assignments (RFC 6890)"),
	block("192.0.2.0/24", "for documentation (RFC 5737)"),
	block("192.88.99.0/24", "a 6to4 relay (RFC 7526)"),
	block("192.168.0.0/16", "private (RFC 1918)"),
	block("198.18.0.0/15", "for benchmarks (RFC 2544)"),
	block("198.51.100.0/24", "for documentation (RFC 5737)"),
	block("203.0.113.0/24", "for documentation (RFC 5737)"),
	block("224.0.0.0/4", "multicast"),
	block("240.0.0.0/4", "reserved (RFC 1112)"),
	block("::/128", "unspecified"),
	block("::1/128", "loopback"),
	block("64:ff9b:1::/48", "translated to IPv4 by the local network (RFC 8215)"),
	block("2001::/23", "for protocol assignments, such as Teredo (RFC 2928)"),
	block("2001:db8::/32", "for documentation (RFC 3849)"),
	block("2002::/16", "6to4, which leads to an IPv4 address (RFC 3056)"),
	block("3fff::/20", "for documentation (RFC 9637)"),
	block("fc00::/7", "private (RFC 4193)"),
	block("fe80::/10", "link-local (RFC 4291)"),
	block("ff00::/8", "multicast"),
}

var (
	global = netip.MustParsePrefix("2000::/3")
	// nat64 holds all of IPv4: on networks without IPv4 of their own, this is how public IPv4 hosts are reached (RFC 6052).
	nat64 = netip.MustParsePrefix("64:ff9b::/96")
)

func block(prefix, what string) network { return network{netip.MustParsePrefix(prefix), what} }

// refuse returns the block because of which an address may not be dialled. An address that carries another one is
// judged by that: IPv4-mapped addresses by the IPv4 address the system would connect to, NAT64 by the one beyond.
func refuse(a netip.Addr, allow []netip.Prefix) (network, bool) {
	a = a.WithZone("").Unmap()
	allowed := func(a netip.Addr) bool {
		return slices.ContainsFunc(allow, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	if allowed(a) {
		return network{}, false
	}
	if nat64.Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
		if allowed(a) {
			return network{}, false
		}
	}
	for _, n := range special {
		if n.prefix.Contains(a) {
			return n, true
		}
	}
	if a.Is6() && !global.Contains(a) {
		return network{netip.PrefixFrom(a, 128), "not global unicast (RFC 4291)"}, true
	}
	return network{}, false
}
