// Package origin owns where a connection comes from: the PROXY protocol header that a proxy in front of us sends and the
// one that targets get, and the X-Forwarded-* and Forwarded headers of requests. It says who is believed about addresses;
// nothing in it says who a client is.
package origin

import (
	"net"
	"net/netip"
)

// Origin is where a connection comes from.
type Origin struct {
	// Peer is who connected: the client, or a proxy in front of us. It is not valid on a Unix socket.
	Peer netip.AddrPort
	// Client is by whom the connection is judged and who the record names, Local the address that it was made to. They are
	// the connection's own, or what a believed PROXY header says. IPv4 addresses are never in IPv6 form, and none has a zone.
	Client, Local netip.AddrPort
	// Header is the version of the PROXY header that was read, 0 for none. Local health checks of a proxy send one too, and
	// leave Client as it was.
	Header uint8
	// Authority, ALPN and UniqueID are what a PROXY header of version 2 says besides: the server name the client asked for,
	// the protocol it chose and the proxy's own name for the connection. For records; nothing is decided by them. At most
	// 255, 255 and 128 bytes, of any value.
	Authority, ALPN, UniqueID string
}

// Of is the origin of a connection as the connection itself tells it.
func Of(c net.Conn) Origin {
	peer := addrPort(c.RemoteAddr())
	return Origin{Peer: peer, Client: peer, Local: addrPort(c.LocalAddr())}
}

// addrPort is not valid for what is not TCP.
func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	return plain(tcp.AddrPort())
}

// plain takes the zone off an address and the IPv6 form off an IPv4 one, so that equal addresses are equal
// (CVE-2024-24790).
func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// Networks are addresses that something is believed of. The zero value has none.
type Networks struct {
	Prefixes []netip.Prefix
	// Unix stands for whoever may connect to a Unix socket, who has no address.
	Unix bool
}

// Contains reports whether a is listed. An address that is not valid is that of a Unix socket.
func (n *Networks) Contains(a netip.Addr) bool {
	if !a.IsValid() {
		return n.Unix
	}
	a = a.Unmap().WithZone("")
	for _, p := range n.Prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Text is how records name an address: with its port if that is known, and "unix" for none.
func Text(a netip.AddrPort) string {
	switch {
	case !a.IsValid():
		return "unix"
	case a.Port() == 0:
		return a.Addr().String()
	}
	return a.String()
}
