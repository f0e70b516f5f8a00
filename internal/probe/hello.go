package probe

import (
	"crypto/ecdh"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"
)

// The extensions that are sent or read (RFC 8446 section 4.2, RFC 5246, RFC 7627, RFC 5077, RFC 5746).
const (
	extServerName        = 0
	extStatusRequest     = 5
	extSupportedGroups   = 10
	extPointFormats      = 11
	extSignatures        = 13
	extALPN              = 16
	extExtendedMaster    = 23
	extSessionTicket     = 35
	extSupportedVersions = 43
	extPSKModes          = 45
	extKeyShare          = 51
	extRenegotiationInfo = 0xff01
)

// hello is a ClientHello that is made to ask one thing. crypto/tls offers neither what is outdated nor one thing alone.
type hello struct {
	version uint16 // the newest that is offered
	oldest  uint16 // with TLS 1.3: the oldest that is offered beside it; 0 offers TLS 1.3 alone
	suites  []uint16
	groups  []tls.CurveID
	share   tls.CurveID // with TLS 1.3: the group of the one key share; 0 sends none, so that the server has to name a group
	alpn    []string
	name    string // empty sends no server name
}

// record is the ClientHello in its record. Everything in it is ours, so an error is one of the random source.
func (h *hello) record() ([]byte, error) {
	random := make([]byte, 64)
	_, _ = rand.Read(random) // crypto/rand never fails
	share, err := keyShare(h.share)
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddUint8(recordHandshake)
	b.AddUint16(tls.VersionTLS10) // what every server takes in the first record (RFC 8446 section 5.1)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint8(messageClientHello)
		b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddUint16(min(h.version, tls.VersionTLS12))
			b.AddBytes(random[:32])
			b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) {
				if h.version == tls.VersionTLS13 {
					b.AddBytes(random[32:]) // as middleboxes expect it (RFC 8446 appendix D.4)
				}
			})
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
				for _, id := range h.suites {
					b.AddUint16(id)
				}
			})
			b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint8(0) }) // no compression
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { h.extensions(b, share) })
		})
	})
	return b.Bytes()
}

func (h *hello) extensions(b *cryptobyte.Builder, share []byte) {
	add := func(id uint16, f cryptobyte.BuilderContinuation) {
		b.AddUint16(id)
		b.AddUint16LengthPrefixed(f)
	}
	if h.name != "" {
		add(extServerName, func(b *cryptobyte.Builder) {
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
				b.AddUint8(0) // host_name
				b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(h.name)) })
			})
		})
	}
	add(extStatusRequest, func(b *cryptobyte.Builder) {
		b.AddUint8(1) // ocsp
		b.AddUint16(0)
		b.AddUint16(0)
	})
	add(extSupportedGroups, func(b *cryptobyte.Builder) {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, id := range h.groups {
				b.AddUint16(uint16(id))
			}
		})
	})
	add(extPointFormats, func(b *cryptobyte.Builder) {
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint8(0) })
	})
	add(extSignatures, func(b *cryptobyte.Builder) {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, s := range schemes {
				b.AddUint16(uint16(s.id))
			}
		})
	})
	if len(h.alpn) > 0 {
		add(extALPN, func(b *cryptobyte.Builder) {
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
				for _, p := range h.alpn {
					b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(p)) })
				}
			})
		})
	}
	add(extExtendedMaster, func(*cryptobyte.Builder) {})
	add(extSessionTicket, func(*cryptobyte.Builder) {})
	add(extRenegotiationInfo, func(b *cryptobyte.Builder) { b.AddUint8(0) })
	if h.version != tls.VersionTLS13 {
		return
	}
	add(extSupportedVersions, func(b *cryptobyte.Builder) {
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, v := range versions {
				if v == tls.VersionTLS13 || h.oldest != 0 && v >= h.oldest {
					b.AddUint16(v)
				}
			}
		})
	})
	add(extPSKModes, func(b *cryptobyte.Builder) {
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint8(1) }) // psk_dhe_ke
	})
	add(extKeyShare, func(b *cryptobyte.Builder) {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			if share != nil {
				b.AddUint16(uint16(h.share))
				b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(share) })
			}
		})
	})
}

// keyShare is a true share, so that the server does not refuse it; its secret is thrown away.
func keyShare(id tls.CurveID) ([]byte, error) {
	curves := map[tls.CurveID]ecdh.Curve{tls.X25519: ecdh.X25519(), tls.CurveP256: ecdh.P256(), tls.CurveP384: ecdh.P384(), tls.CurveP521: ecdh.P521()}
	switch curve := curves[id]; {
	case id == 0:
		return nil, nil
	case id == tls.X25519MLKEM768: // the lattice part first (draft-ietf-tls-ecdhe-mlkem)
		lattice, err := mlkem.GenerateKey768()
		if err != nil {
			return nil, err
		}
		classic, err := keyShare(tls.X25519)
		return slices.Concat(lattice.EncapsulationKey().Bytes(), classic), err
	case curve == nil:
		return nil, fmt.Errorf("no key share can be made for %s", groupName(id))
	default:
		key, err := curve.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		return key.PublicKey().Bytes(), nil
	}
}

func groupIDs() []tls.CurveID {
	ids := make([]tls.CurveID, len(groups))
	for i, g := range groups {
		ids[i] = g.id
	}
	return ids
}
