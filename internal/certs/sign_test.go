package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"testing"
)

// TestSigner: ECDSA keys on P-256 sign as RFC 6979 says; others as the library has it.
func TestSigner(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := signer(key)
	if public, ok := s.Public().(*ecdsa.PublicKey); !ok || !public.Equal(&key.PublicKey) {
		t.Fatalf("public key %v", s.Public())
	}
	digest, other := sha256.Sum256([]byte("sample")), sha512.Sum384([]byte("sample"))
	sign := func(digest []byte, hash crypto.Hash) []byte {
		signature, err := s.Sign(rand.Reader, digest, hash)
		if err != nil {
			t.Fatal(err)
		}
		if !ecdsa.VerifyASN1(&key.PublicKey, digest, signature) {
			t.Error("the signature does not verify")
		}
		return signature
	}
	first := sign(digest[:], crypto.SHA256)
	if !bytes.Equal(first, sign(digest[:], crypto.SHA256)) {
		t.Error("two signatures of one digest differ: random bits are in them")
	}
	if bytes.Equal(first, sign(other[:], crypto.SHA384)) {
		t.Error("two digests have one signature")
	}
	longer, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if signer(longer) != crypto.Signer(longer) {
		t.Error("a key on P-384, where nothing is gained, is wrapped")
	}
	_, own, _ := ed25519.GenerateKey(rand.Reader)
	if _, same := signer(own).(ed25519.PrivateKey); !same {
		t.Error("an Ed25519 key is wrapped")
	}
	long, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if signer(long) != crypto.Signer(long) {
		t.Error("an RSA key is wrapped")
	}
}
