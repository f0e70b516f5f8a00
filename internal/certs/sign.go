package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"io"
)

// signer is key as handshakes use it.
func signer(key crypto.Signer) crypto.Signer {
	if k, ok := key.(*ecdsa.PrivateKey); ok && k.Curve == elliptic.P256() {
		return deterministic{k}
	}
	return key
}

// deterministic signs with a nonce that follows from key and digest (RFC 6979, which FIPS 186-5 approves). The library mixes
// random bits into it when it is given a source, against faults that are injected into one of two signatures of the same
// digest, and takes a fifth longer with P-256 (decision 43). What a handshake signs has fresh random bits of our own in it and is
// never signed twice.
type deterministic struct{ key *ecdsa.PrivateKey }

// Public is the public key.
func (k deterministic) Public() crypto.PublicKey { return k.key.Public() }

// Sign ignores its source of randomness.
func (k deterministic) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.key.Sign(nil, digest, opts)
}
