package certs

import (
	"cmp"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	gopkcs12 "software.sslmate.com/src/go-pkcs12"
)

const (
	export   = "make it anew: openssl pkcs12 -in FILE -nodes -out PEM, then openssl pkcs12 -export -in PEM -out NEW"
	explicit = cbasn1.Tag(0x80 | 0x20) // [0]
)

var (
	oidEncryptedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 6}
	oidKeyBag        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 1}
	oidShroudedBag   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 2}
	oidCertBag       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 3}

	macHashes = map[string]bool{"1.3.14.3.2.26": true, "2.16.840.1.101.3.4.2.1": true, "2.16.840.1.101.3.4.2.3": true}
)

// ParsePKCS12 reads a PKCS#12 file (.p12, .pfx) of one private key, its certificate and as much of the chain as it has;
// the password may be empty. The old encryptions, 3DES and RC2, are taken with a warning.
func ParsePKCS12(data, password []byte) (*tls.Certificate, []string, error) {
	return new(Reader).parsePKCS12(data, trimPassword(password))
}

func (r *Reader) parsePKCS12(data, password []byte) (*tls.Certificate, []string, error) {
	list, err := items(PKCS12File, data, maxPairBytes, false)
	if err != nil {
		return nil, nil, err
	}
	fail := func(kind error, expected, found, next string) (*tls.Certificate, []string, error) {
		return nil, nil, &Problem{kind, PKCS12File, "", expected, found, next}
	}
	if len(list) != 1 || list[0].form != pkcs12 {
		return fail(ErrMalformed, "one PKCS#12 file", list[0].name(), "give PEM as cert and key in place of pkcs12, or openssl pkcs12 -export -in CERT -inkey KEY -out NEW")
	}
	if err := checkPassword(PKCS12File, password); err != nil {
		return nil, nil, err
	}
	if !inBMP(password) {
		return fail(ErrPassword, "a password in UTF-8 of characters up to U+FFFF, as PKCS#12 has them", "another", "choose another password; "+export)
	}
	s, err := survey(list[0].der)
	switch {
	case err != nil:
		return nil, nil, err
	case s.keys != 1:
		found := fmt.Sprintf("%d", s.keys)
		if s.keys == 0 {
			found = "none where it can be seen (a trust store, perhaps)"
		}
		return fail(ErrNoKey, "one private key, outside of the encrypted certificates", found, "keep one entry: openssl pkcs12 -in FILE -nodes -out PEM, then openssl pkcs12 -export -in PEM -out NEW")
	case !s.mac && s.encrypted() && len(password) > 0:
		return fail(ErrMalformed, "a MAC, which shows that nobody changed the file", "none", export)
	}
	key, leaf, rest, err := decode(list[0].der, s, password)
	switch {
	case err == nil:
	case errors.Is(err, gopkcs12.ErrIncorrectPassword), !s.mac && s.encrypted():
		if password == nil {
			return nil, nil, noPassword(PKCS12File, false)
		}
		return nil, nil, wrongPassword(PKCS12File, password)
	default: // the MAC was good
		return fail(ErrMalformed, "a private key and its certificate that can be read", "others ("+quote(err.Error())+")", export)
	}
	signer, err := usable(PKCS12File, "", key)
	if err != nil {
		return nil, nil, err
	}
	pair, warnings, err := r.assemble(PKCS12File, append([]*x509.Certificate{leaf}, rest...), signer, false)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case s.legacy:
		warnings = append(warnings, PKCS12File+": its encryption (3DES or RC2) is outdated; "+export)
	case !s.encrypted() && len(password) > 0:
		warnings = append(warnings, PKCS12File+": it is not encrypted; password has no use")
	}
	return pair, warnings, nil
}

// contents is what can be seen of a PKCS#12 file without its password.
type contents struct {
	items    []cryptobyte.String // the elements of the AuthenticatedSafe
	sealed   []bool              // which of them are encrypted
	keys     int                 // that are not inside an encrypted item
	keyAt    int                 // the item with the key
	shrouded bool                // the key is encrypted
	legacy   bool
	mac      bool
}

func (s *contents) encrypted() bool { return s.shrouded || slices.Contains(s.sealed, true) }

// survey reads a PFX (RFC 7292) to the last byte of what is not encrypted and refuses what would cost too much, or what
// go-pkcs12 does not know.
func survey(der []byte) (*contents, error) {
	malformed := &Problem{ErrMalformed, PKCS12File, "", "PKCS#12 (PFX version 3 in DER)", "one that is damaged or written in BER", export}
	unsupported := func(what string) error {
		return &Problem{ErrKeyUnsupported, PKCS12File, "", "PBES2 with PBKDF2 and AES-CBC, or 3DES or RC2, with a MAC of SHA-1, SHA-256 or SHA-512", what, export}
	}
	s := &contents{}
	var pfx, info, wrapped, safe, list cryptobyte.String
	var oid asn1.ObjectIdentifier
	var version int64
	in := cryptobyte.String(der)
	if !in.ReadASN1(&pfx, cbasn1.SEQUENCE) || !in.Empty() || !pfx.ReadASN1Integer(&version) || version != 3 ||
		!pfx.ReadASN1(&info, cbasn1.SEQUENCE) || !info.ReadASN1ObjectIdentifier(&oid) {
		return nil, malformed
	}
	if !oid.Equal(oidData) {
		return nil, unsupported("one that is signed in place of a MAC")
	}
	if !info.ReadASN1(&wrapped, explicit) || !info.Empty() || !wrapped.ReadASN1(&safe, cbasn1.OCTET_STRING) || !wrapped.Empty() ||
		!safe.ReadASN1(&list, cbasn1.SEQUENCE) || !safe.Empty() {
		return nil, malformed
	}
	check := func(e encrypted) error {
		switch {
		case e.costly():
			return tooCostly(PKCS12File, "", e)
		case e.unsupported != "":
			return unsupported(e.unsupported)
		case e.scrypt > 0:
			return unsupported("scrypt")
		case e.tripleDES:
			return unsupported("3DES in PBES2")
		}
		s.legacy = s.legacy || e.legacy
		return nil
	}
	if s.mac = !pfx.Empty(); s.mac {
		e, ok := readMAC(&pfx)
		if !ok || !pfx.Empty() {
			return nil, malformed
		}
		if err := check(e); err != nil {
			return nil, err
		}
	}
	for !list.Empty() {
		var element, body, content cryptobyte.String
		if !list.ReadASN1Element(&element, cbasn1.SEQUENCE) {
			return nil, malformed
		}
		s.items = append(s.items, element)
		if !element.ReadASN1(&body, cbasn1.SEQUENCE) || !body.ReadASN1ObjectIdentifier(&oid) || !body.ReadASN1(&content, explicit) || !body.Empty() {
			return nil, malformed
		}
		s.sealed = append(s.sealed, oid.Equal(oidEncryptedData))
		switch {
		case oid.Equal(oidData):
			var bags, bag, value cryptobyte.String
			if !content.ReadASN1(&bags, cbasn1.OCTET_STRING) || !content.Empty() || !bags.ReadASN1(&content, cbasn1.SEQUENCE) || !bags.Empty() {
				return nil, malformed
			}
			for !content.Empty() {
				if !content.ReadASN1(&bag, cbasn1.SEQUENCE) || !bag.ReadASN1ObjectIdentifier(&oid) || !bag.ReadASN1(&value, explicit) ||
					!bag.Empty() && (!bag.SkipASN1(cbasn1.SET) || !bag.Empty()) {
					return nil, malformed
				}
				isKey := oid.Equal(oidKeyBag) || oid.Equal(oidShroudedBag)
				switch {
				case !isKey:
					continue
				case len(value) > maxKeyBytes:
					return nil, unsupported(fmt.Sprintf("a key of %d bytes", len(value)))
				case oid.Equal(oidShroudedBag):
					s.shrouded = true
					e, ok := readEncrypted(&value)
					if !ok || !value.Empty() {
						return nil, malformed
					}
					if err := check(e); err != nil {
						return nil, err
					}
				}
				s.keys++
				s.keyAt = len(s.items) - 1
			}
		case oid.Equal(oidEncryptedData):
			var data, inner, ciphertext cryptobyte.String
			if !content.ReadASN1(&data, cbasn1.SEQUENCE) || !content.Empty() || !data.ReadASN1Integer(&version) || version != 0 ||
				!data.ReadASN1(&inner, cbasn1.SEQUENCE) || !data.Empty() || !inner.ReadASN1ObjectIdentifier(&oid) {
				return nil, malformed
			}
			e, block, ok := readPBE(&inner)
			if !ok || !inner.ReadASN1(&ciphertext, explicit&^0x20) || !inner.Empty() || !wholeBlocks(ciphertext, block) {
				return nil, malformed
			}
			if err := check(e); err != nil {
				return nil, err
			}
		default:
			return nil, unsupported("content of type " + short(oid.String()))
		}
	}
	if len(s.items) < 1 || len(s.items) > 2 {
		return nil, &Problem{ErrMalformed, PKCS12File, "", "one part of keys and one of certificates", fmt.Sprintf("%d parts", len(s.items)), export}
	}
	return s, nil
}

// readMAC reads MacData (RFC 7292 section 4, RFC 9579).
func readMAC(in *cryptobyte.String) (e encrypted, ok bool) {
	var data, digest, alg, sum, salt cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !in.ReadASN1(&data, cbasn1.SEQUENCE) || !data.ReadASN1(&digest, cbasn1.SEQUENCE) || !digest.ReadASN1(&alg, cbasn1.SEQUENCE) ||
		!digest.ReadASN1(&sum, cbasn1.OCTET_STRING) || !digest.Empty() || !alg.ReadASN1ObjectIdentifier(&oid) || !data.ReadASN1(&salt, cbasn1.OCTET_STRING) {
		return e, false
	}
	var count int64 = 1
	if !data.Empty() && (!readCount(&data, &count) || !data.Empty()) {
		return e, false
	}
	if !oid.Equal(oidPBMAC1) {
		e.iterations = count
		if !macHashes[oid.String()] {
			e.unsupported = "a MAC of type " + short(oid.String())
		}
		return e, true
	}
	var params, kdf, mac cryptobyte.String
	if !alg.ReadASN1(&params, cbasn1.SEQUENCE) || !alg.Empty() || !params.ReadASN1(&kdf, cbasn1.SEQUENCE) || !params.ReadASN1(&mac, cbasn1.SEQUENCE) ||
		!params.Empty() || !readKDF(kdf, &e) || !mac.ReadASN1ObjectIdentifier(&oid) {
		return e, false
	}
	if hashes[oid.String()] == "" && e.unsupported == "" {
		e.unsupported = "a MAC of type " + short(oid.String())
	}
	return e, true
}

// twoParts is what go-pkcs12's DecodeTrustStore says about a file of two parts, right after it found the MAC good.
const twoParts = gopkcs12.NotImplementedError("expected exactly 1 items in the authenticated safe, but this file has 2")

// decode has go-pkcs12 open the file. The library bounds no iteration counts. Those of all that can be seen were
// checked; but a key with a billion of them may hide among the encrypted certificates, which come first as a rule. The
// library refuses a second key before it derives anything for it, so the part with the key that was checked has to come
// first. The parts are exchanged for this, and since that breaks the MAC, it is checked before and made anew.
func decode(der []byte, s *contents, password []byte) (key any, leaf *x509.Certificate, rest []*x509.Certificate, err error) {
	secret := string(password)
	if !s.mac && !s.encrypted() {
		secret = ""
	}
	if s.keyAt > 0 && s.sealed[0] {
		if s.mac {
			if _, err := gopkcs12.DecodeTrustStore(der, secret); !errors.Is(err, twoParts) {
				return nil, nil, nil, cmp.Or(err, errors.New("the MAC was not checked"))
			}
		}
		if der, err = exchanged(s, secret); err != nil {
			return nil, nil, nil, err
		}
	}
	return gopkcs12.DecodeChain(der, secret)
}

// exchanged makes a PFX with the part that has the key first, and with a MAC (PBMAC1, RFC 9579) that go-pkcs12 accepts.
// It never leaves this process.
func exchanged(s *contents, password string) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(s.items[s.keyAt])
		b.AddBytes(s.items[1-s.keyAt])
	})
	safe, err := b.Bytes()
	if err != nil {
		return nil, err
	}
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails
	const size = sha256.Size
	macKey, err := pbkdf2.Key(sha256.New, password, salt, 1, size)
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, macKey)
	mac.Write(safe)

	seq := func(b *cryptobyte.Builder, f func(*cryptobyte.Builder)) { b.AddASN1(cbasn1.SEQUENCE, f) }
	b = cryptobyte.Builder{}
	seq(&b, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(3)
		seq(b, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidData)
			b.AddASN1(explicit, func(b *cryptobyte.Builder) { b.AddASN1OctetString(safe) })
		})
		seq(b, func(b *cryptobyte.Builder) { // MacData
			seq(b, func(b *cryptobyte.Builder) {
				seq(b, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidPBMAC1)
					seq(b, func(b *cryptobyte.Builder) {
						seq(b, func(b *cryptobyte.Builder) {
							b.AddASN1ObjectIdentifier(oidPBKDF2)
							seq(b, func(b *cryptobyte.Builder) {
								b.AddASN1OctetString(salt)
								b.AddASN1Int64(1)
								b.AddASN1Int64(size)
								seq(b, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidHMAC256) })
							})
						})
						seq(b, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidHMAC256) })
					})
				})
				b.AddASN1OctetString(mac.Sum(nil))
			})
			b.AddASN1OctetString(salt)
		})
	})
	return b.Bytes()
}
