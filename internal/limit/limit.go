// Package limit owns how much a client, a certificate, a route or the whole may use: rates, concurrency, the handshakes
// that compute at once, memory and descriptors. It counts and says no; who is counted and what a no looks like is for
// others to say. Everything in it is bounded, and what it refuses costs less than what it would have let in.
package limit

import (
	"encoding/binary"
	"net/netip"
)

// Key names whom a limit counts: an address, a certificate, or, as the zero value, everybody together.
type Key struct{ hi, lo uint64 }

// The kinds of address keys; the keys of certificates look like this once in 2^64.
const (
	ipv4 = 4
	ipv6 = 6
)

// AddressKey is the key of a client's address. An IPv6 address counts as its /64: that is what one customer gets at
// least, so all of it is one client (RFC 6177, F04). An invalid address, such as that of a Unix socket, is the zero Key.
func AddressKey(a netip.Addr) Key {
	a = a.Unmap()
	switch {
	case a.Is4():
		b := a.As4()
		return Key{uint64(binary.BigEndian.Uint32(b[:])), ipv4}
	case a.Is6():
		b := a.As16()
		return Key{binary.BigEndian.Uint64(b[:8]), ipv6}
	}
	return Key{}
}

// CertificateKey is the key of a certificate with the given SHA-256. Half of the hash is enough: whoever wants to be counted
// as somebody else would have to find a certificate of a trusted CA with the same 128 bits.
func CertificateKey(sum [32]byte) Key {
	return Key{binary.BigEndian.Uint64(sum[:8]), binary.BigEndian.Uint64(sum[8:16])}
}

// Client is who is counted. Make it once for each connection, or when the identity changes.
type Client struct {
	Address Key
	// Certificate is the zero Key where there is none that was verified; the client is then counted by its address.
	Certificate Key
	// Local says that the address is a loopback one.
	Local bool
}

// Per is what is counted apart.
type Per uint8

// The choices of per.
const (
	// Everybody counts all clients together.
	Everybody Per = iota
	// Address counts each client address (IPv6: each /64).
	Address
	// Certificate counts each verified client certificate, and clients without one by address.
	Certificate
)

// key is what c is counted as.
func (p Per) key(c *Client) Key {
	switch {
	case p == Everybody:
		return Key{}
	case p == Certificate && c.Certificate != Key{}:
		return c.Certificate
	}
	return c.Address
}
