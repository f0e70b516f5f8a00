package testpki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1" // for the wrong certificates
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"
	"sync"
	"testing"
)

func ecKey(curve elliptic.Curve) Option {
	return func(s *spec) {
		s.key = func(tb testing.TB) crypto.Signer { return must(ecdsa.GenerateKey(curve, rand.Reader))(tb) }
	}
}

func ecdsaKey(tb testing.TB) crypto.Signer {
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(tb)
}

// P224 takes an ECDSA key on P-224, which is too weak.
func P224() Option { return ecKey(elliptic.P224()) }

// P384 takes an ECDSA key on P-384.
func P384() Option { return ecKey(elliptic.P384()) }

// P521 takes an ECDSA key on P-521.
func P521() Option { return ecKey(elliptic.P521()) }

// Ed25519 takes an Ed25519 key.
func Ed25519() Option {
	return func(s *spec) {
		s.key = func(tb testing.TB) crypto.Signer {
			_, key, err := ed25519.GenerateKey(rand.Reader)
			return must(key, err)(tb)
		}
	}
}

// RSA takes an RSA key. Sizes from 1024 to 4096 are real keys, made once per process and size and never twice in one
// test; others have a public key only, of a number that nobody can factor.
func RSA(bits int) Option {
	return func(s *spec) { s.key = func(tb testing.TB) crypto.Signer { return rsaKey(tb, bits) } }
}

// RSAExponent takes a public RSA key of 2048 bits with exponent e, without a private key.
func RSAExponent(e int) Option {
	return func(s *spec) { s.key = func(testing.TB) crypto.Signer { return shown{modulus(2048), e} } }
}

// KeyOf takes the key of another certificate.
func KeyOf(other *Cert) Option {
	return func(s *spec) { s.key = func(testing.TB) crypto.Signer { return other.Key } }
}

var rsaKeys struct {
	sync.Mutex
	made map[int][]*rsa.PrivateKey
	used map[testing.TB]map[int]int
}

func rsaKey(tb testing.TB, bits int) crypto.Signer {
	if bits < 1024 || bits > 4096 {
		return shown{modulus(bits), 65537}
	}
	rsaKeys.Lock()
	defer rsaKeys.Unlock()
	if rsaKeys.made == nil {
		rsaKeys.made, rsaKeys.used = map[int][]*rsa.PrivateKey{}, map[testing.TB]map[int]int{}
	}
	if rsaKeys.used[tb] == nil {
		rsaKeys.used[tb] = map[int]int{}
		tb.Cleanup(func() {
			rsaKeys.Lock()
			defer rsaKeys.Unlock()
			delete(rsaKeys.used, tb)
		})
	}
	i := rsaKeys.used[tb][bits]
	rsaKeys.used[tb][bits]++
	if i == len(rsaKeys.made[bits]) {
		rsaKeys.made[bits] = append(rsaKeys.made[bits], must(rsa.GenerateKey(rand.Reader, bits))(tb))
	}
	return rsaKeys.made[bits][i]
}

func modulus(bits int) *big.Int {
	n, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits)))
	return n.SetBit(n.SetBit(n, bits-1, 1), 0, 1)
}

// shown is a public key without a private one.
type shown struct {
	n *big.Int
	e int
}

func (k shown) Public() crypto.PublicKey { return &rsa.PublicKey{N: k.n, E: k.e} }

func (k shown) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("this RSA key is for show: sizes under 1024 and over 4096 have no private key")
}

type signature struct {
	id   pkix.AlgorithmIdentifier
	hash crypto.Hash
}

// algorithm is how key signs (RFC 5758, RFC 8410, RFC 4055).
func algorithm(key crypto.Signer, sha1 bool) signature {
	switch key.Public().(type) {
	case *ecdsa.PublicKey:
		if sha1 {
			return signature{pkix.AlgorithmIdentifier{Algorithm: []int{1, 2, 840, 10045, 4, 1}}, crypto.SHA1}
		}
		return signature{pkix.AlgorithmIdentifier{Algorithm: []int{1, 2, 840, 10045, 4, 3, 2}}, crypto.SHA256}
	case ed25519.PublicKey:
		return signature{pkix.AlgorithmIdentifier{Algorithm: []int{1, 3, 101, 112}}, 0}
	default:
		if sha1 {
			return signature{pkix.AlgorithmIdentifier{Algorithm: []int{1, 2, 840, 113549, 1, 1, 5}, Parameters: asn1.NullRawValue}, crypto.SHA1}
		}
		return signature{pkix.AlgorithmIdentifier{Algorithm: []int{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue}, crypto.SHA256}
	}
}

// seal signs tbs and wraps both.
func seal(tb testing.TB, tbs []byte, key crypto.Signer, alg signature) []byte {
	tb.Helper()
	digest := tbs
	if alg.hash != 0 {
		h := alg.hash.New()
		h.Write(tbs)
		digest = h.Sum(nil)
	}
	sig := must(key.Sign(rand.Reader, digest, alg.hash))(tb)
	return must(asn1.Marshal(signed{asn1.RawValue{FullBytes: tbs}, alg.id, asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}}))(tb)
}
