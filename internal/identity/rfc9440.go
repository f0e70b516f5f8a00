package identity

import (
	"crypto/x509"
	"encoding/base64"
)

const (
	clientCert      = "Client-Cert"
	clientCertChain = "Client-Cert-Chain"
)

// appendRFC9440 renders Client-Cert, one RFC 8941 byte sequence of the leaf, and on request Client-Cert-Chain, a list of
// byte sequences: the verified chain in order, without the leaf (RFC 9440 section 2.3) and without the anchor, which
// whoever believes the chain has. It is the verified chain, not what the client presented (B07).
func (r *rendering) appendRFC9440(dst []byte) []byte {
	dst = append(dst, clientCert+": "...)
	dst = append(appendByteSequence(dst, r.id.Leaf()), "\r\n"...)
	if len(r.chain) == 0 {
		return dst
	}
	dst = append(dst, clientCertChain+": "...)
	return append(appendByteSequences(dst, r.chain), "\r\n"...)
}

// appendByteSequence renders a certificate as RFC 8941 section 4.1.8 does: base64 with padding, between colons.
func appendByteSequence(dst []byte, cert *x509.Certificate) []byte {
	dst = base64.StdEncoding.AppendEncode(append(dst, ':'), cert.Raw)
	return append(dst, ':')
}

// appendByteSequences renders a list (RFC 8941 section 4.1.1).
func appendByteSequences(dst []byte, certs []*x509.Certificate) []byte {
	for i, cert := range certs {
		if i > 0 {
			dst = append(dst, ", "...)
		}
		dst = appendByteSequence(dst, cert)
	}
	return dst
}
