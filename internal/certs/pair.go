// Package certs owns keystores: the certificates with keys that the balancer may present, and the choice among them by
// what the other side offers.
//
// It believes nothing about the certificates of others; that is package trust. It reads no files: whoever does hands in
// the bytes of certificate and key together, since half of a pair is what a rotation looks like in the middle (threats
// H03).
package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// The kinds of error of ParsePair, for errors.Is. The text around them names what was found and what to do.
var (
	ErrNoCertificate  = errors.New("no certificate")
	ErrNoKey          = errors.New("no private key")
	ErrSwapped        = errors.New("certificate and key are swapped")
	ErrKeyInCertFile  = errors.New("private key in the certificate file")
	ErrCertInKeyFile  = errors.New("certificate in the key file")
	ErrKeyEncrypted   = errors.New("private key is encrypted")
	ErrKeyMismatch    = errors.New("private key does not belong to the certificate")
	ErrKeyUnsupported = errors.New("unsupported key")
	ErrChain          = errors.New("broken certificate chain")
	ErrMalformed      = errors.New("malformed PEM")
)

// ParsePair reads a certificate file, leaf first and each further certificate the issuer of the one before, and the file
// of the leaf's key (PKCS #8, PKCS #1 or SEC 1). Keys are ECDSA on P-256, P-384 or P-521, Ed25519, or RSA of at least
// 2048 bits. The result has Leaf set. Dates and names are not looked at: see Check.
func ParsePair(certPEM, keyPEM []byte) (*tls.Certificate, error) {
	certBlocks, err := decode("certificate file", certPEM)
	if err != nil {
		return nil, err
	}
	keyBlocks, err := decode("key file", keyPEM)
	if err != nil {
		return nil, err
	}
	certsInKey, keysInCert := count(keyBlocks, isCertificate), count(certBlocks, isKey)
	certs, keys := count(certBlocks, isCertificate), count(keyBlocks, isKey)
	switch {
	case certs == 0 && keysInCert > 0 && keys == 0 && certsInKey > 0:
		return nil, fmt.Errorf("%w: the certificate file holds a key and the key file a certificate; exchange the two names", ErrSwapped)
	case keysInCert > 0:
		return nil, fmt.Errorf("%w: expected certificates only; keep the key in a file of its own, readable by this program only", ErrKeyInCertFile)
	case certsInKey > 0:
		return nil, fmt.Errorf("%w: expected one private key only, found %d certificates; move them to the certificate file", ErrCertInKeyFile, certsInKey)
	case certs == 0:
		return nil, fmt.Errorf("%w in the certificate file: expected \"BEGIN CERTIFICATE\", found %s", ErrNoCertificate, found(certPEM, certBlocks, "openssl x509 -inform der"))
	case certs != len(certBlocks):
		return nil, fmt.Errorf("%w in the certificate file: expected only \"BEGIN CERTIFICATE\", found %s; remove what is no certificate", ErrMalformed, found(certPEM, certBlocks, ""))
	case keys == 0:
		return nil, fmt.Errorf("%w in the key file: expected \"BEGIN PRIVATE KEY\", found %s", ErrNoKey, found(keyPEM, keyBlocks, "openssl pkey -inform der"))
	case keys > 1:
		return nil, fmt.Errorf("%w in the key file: expected one private key, found %d; keep the one of the first certificate", ErrMalformed, keys)
	}
	chain, err := parseChain(certBlocks)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyBlocks)
	if err != nil {
		return nil, err
	}
	if err := match(chain, key); err != nil {
		return nil, err
	}
	pair := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	return pair, nil
}

// decode returns the blocks of a file. Text between them is allowed, a block that does not end is not: it is how a file
// looks while it is being written.
func decode(file string, data []byte) ([]*pem.Block, error) {
	var blocks []*pem.Block
	rest := data
	for {
		block, after := pem.Decode(rest)
		if block == nil {
			break
		}
		blocks, rest = append(blocks, block), after
	}
	if begun := bytes.Count(data, []byte("-----BEGIN ")); begun != len(blocks) {
		return nil, fmt.Errorf("%w in the %s: found %d blocks that begin and %d that can be read; the file is cut off or damaged, write it again", ErrMalformed, file, begun, len(blocks))
	}
	return blocks, nil
}

func isCertificate(b *pem.Block) bool { return b.Type == "CERTIFICATE" }

func isKey(b *pem.Block) bool { return strings.HasSuffix(b.Type, "PRIVATE KEY") }

func count(blocks []*pem.Block, is func(*pem.Block) bool) int {
	n := 0
	for _, b := range blocks {
		if is(b) {
			n++
		}
	}
	return n
}

// found says what is in a file that has not what was expected.
func found(data []byte, blocks []*pem.Block, convert string) string {
	for _, b := range blocks {
		if !isCertificate(b) {
			return fmt.Sprintf("%q", "BEGIN "+b.Type[:min(len(b.Type), 40)])
		}
	}
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return "an empty file"
	case data[0] == 0x30: // a DER SEQUENCE
		return "what looks like DER; convert it with " + convert
	}
	return "no PEM block"
}

func parseChain(blocks []*pem.Block) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for i, b := range blocks {
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: certificate %d cannot be parsed: %w", ErrMalformed, i+1, err)
		}
		chain = append(chain, c)
	}
	for i, issuer := range chain[1:] {
		subject := chain[i]
		if !bytes.Equal(subject.RawIssuer, issuer.RawSubject) {
			return nil, fmt.Errorf("%w: certificate %d was issued by %q; expected that certificate next, found %q as number %d; write leaf, then its issuer, then the issuer's issuer",
				ErrChain, i+1, short(subject.Issuer.String()), short(issuer.Subject.String()), i+2)
		}
		if err := subject.CheckSignatureFrom(issuer); err != nil {
			return nil, fmt.Errorf("%w: certificate %d (%q) did not sign certificate %d (%w); look for another CA certificate of the same name",
				ErrChain, i+2, short(issuer.Subject.String()), i+1, err)
		}
	}
	return chain, nil
}

// short bounds a name that somebody else chose.
func short(name string) string {
	if len(name) > 100 {
		return strings.ToValidUTF8(name[:97], "") + "..."
	}
	return name
}

func parseKey(blocks []*pem.Block) (crypto.Signer, error) {
	var block *pem.Block
	for _, b := range blocks {
		if isKey(b) { // beside it "EC PARAMETERS" is what openssl ecparam writes
			block = b
		}
	}
	if block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
		return nil, fmt.Errorf("%w: not supported by this version; decrypt with openssl pkey -in old.key -out new.key", ErrKeyEncrypted)
	}
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("%w: expected PKCS #8, PKCS #1 or SEC 1, found \"BEGIN %s\"; convert it with openssl pkey", ErrKeyUnsupported, short(block.Type))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the private key cannot be parsed: %w", ErrMalformed, err)
	}
	const expected = "expected ECDSA (P-256, P-384, P-521), Ed25519, or RSA of at least 2048 bits"
	switch key := key.(type) {
	case *rsa.PrivateKey:
		if bits := key.N.BitLen(); bits < 2048 {
			return nil, fmt.Errorf("%w: %s, found RSA of %d bits; make a new key", ErrKeyUnsupported, expected, bits)
		}
		return key, nil
	case *ecdsa.PrivateKey:
		if key.Curve == elliptic.P224() { // not in TLS 1.3
			return nil, fmt.Errorf("%w: %s, found ECDSA on P-224; make a new key", ErrKeyUnsupported, expected)
		}
		return key, nil
	case ed25519.PrivateKey:
		return key, nil
	}
	return nil, fmt.Errorf("%w: %s, found %T; make a new key", ErrKeyUnsupported, expected, key)
}

func match(chain []*x509.Certificate, key crypto.Signer) error {
	public := key.Public().(interface{ Equal(crypto.PublicKey) bool }) // so documented for every key of the standard library
	if public.Equal(chain[0].PublicKey) {
		return nil
	}
	for i, c := range chain[1:] {
		if public.Equal(c.PublicKey) {
			return fmt.Errorf("%w: it belongs to certificate %d (%q); expected the key of the first (%q)",
				ErrKeyMismatch, i+2, short(c.Subject.String()), short(chain[0].Subject.String()))
		}
	}
	return fmt.Errorf("%w: expected the %s key of %q, serial %x, found another %T; if the pair was just renewed, one of the two files is still the old one",
		ErrKeyMismatch, chain[0].PublicKeyAlgorithm, short(chain[0].Subject.String()), chain[0].SerialNumber, key)
}
