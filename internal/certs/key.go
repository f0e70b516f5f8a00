package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/youmark/pkcs8"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const (
	maxKeyBytes      = 16 << 10 // RSA of 16384 bits has 9 KiB; larger ones take seconds to parse
	maxPasswordBytes = 1 << 10
	// maxIterations bounds one derivation of a key from a password, to well under a second (threats G32). OWASP advised
	// 600,000 in 2023; openssl writes 2048.
	maxIterations = 1_000_000
	maxScrypt     = 1 << 20 // N * r * p, at 128 bytes each; openssl writes 1 << 17
)

const (
	makeKey   = "make a new key: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out NEW, and have a certificate made for it"
	reencrypt = "convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256 -in FILE -out NEW"
	keySort   = "ECDSA (P-256, P-384, P-521), Ed25519, or RSA of 2048 bits or more"
)

// trimPassword takes off the one line end that editors and echo add to a password file.
func trimPassword(p []byte) []byte {
	if rest, ok := bytes.CutSuffix(p, []byte("\n")); ok {
		return bytes.TrimSuffix(rest, []byte("\r"))
	}
	return p
}

func checkPassword(role string, password []byte) error {
	if len(password) > maxPasswordBytes {
		return &Problem{ErrPassword, role, "", fmt.Sprintf("a password of at most %d bytes", maxPasswordBytes), fmt.Sprintf("one of %d", len(password)),
			"see that password names the right file; " + look(role) + " -passin file:PASSWORD_FILE tries it"}
	}
	return nil
}

func noPassword(role string, configured bool) error {
	found := "none: the setting is missing"
	if configured {
		found = "an empty one"
	}
	decrypt := "openssl pkey -in FILE -out NEW"
	if role == PKCS12File {
		decrypt = "openssl pkcs12 -in FILE -nodes -out NEW"
	}
	return &Problem{ErrKeyEncrypted, role, "", "a password, since the private key is encrypted", found,
		"set password: {file: PATH} or password: {env: NAME} beside it, or decrypt with " + decrypt}
}

// wrongPassword is the one answer to all that can go wrong once a password was tried: no more is told, since it would
// help to guess passwords (threats G32). What it adds is about the text that was given alone.
func wrongPassword(role string, password []byte) error {
	hint := ""
	switch {
	case bytes.HasPrefix(password, []byte(mark)):
		hint = " (it starts with a byte order mark)"
	case bytes.IndexByte(password, 0) >= 0:
		hint = " (it holds NUL bytes, as text in UTF-16 does)"
	case bytes.IndexByte(password, '\n') >= 0:
		hint = " (it has more than one line)"
	case len(bytes.TrimSpace(password)) != len(password):
		hint = " (it starts or ends with blanks)"
	}
	return &Problem{ErrPassword, role, "", "the password of the private key", "another one" + hint + ", or a damaged file",
		"try it: " + look(role) + " -passin file:PASSWORD_FILE"}
}

// parseKey reads the one key of a key file. It goes by what the key is and not by which of the labels for keys stands
// over it, since tools confuse them.
func parseKey(it *item, password []byte) (key crypto.Signer, warning string, err error) {
	fail := func(kind error, expected, found, next string) (crypto.Signer, string, error) {
		return nil, "", &Problem{kind, KeyFile, it.where, expected, found, next}
	}
	switch it.form {
	case legacyKey:
		// MD5 once over the password, and nothing that shows a wrong one (RFC 1423): too weak to be worth supporting.
		return fail(ErrKeyEncrypted, "a key encrypted by PKCS #8 (BEGIN ENCRYPTED PRIVATE KEY)", "one encrypted in the old way (Proc-Type: 4,ENCRYPTED)",
			"decrypt with openssl pkey -in FILE -out NEW, or "+reencrypt)
	case openSSHKey:
		return fail(ErrKeyUnsupported, "PKCS #8, PKCS #1 or SEC 1", "an OpenSSH private key (BEGIN OPENSSH PRIVATE KEY)",
			"convert a copy of it: ssh-keygen -p -m PKCS8 -f COPY; then openssl pkey -in COPY -noout -check")
	case dsaKey:
		return fail(ErrKeyUnsupported, keySort, "a DSA private key", makeKey)
	}
	if len(it.der) > maxKeyBytes {
		return fail(ErrKeyUnsupported, fmt.Sprintf("a key of at most %d KiB", maxKeyBytes>>10), fmt.Sprintf("one of %d bytes", len(it.der)), makeKey)
	}
	actual := it.form
	if f, rest, ok := derForm(it.der); ok && rest == 0 && (f == privateKey || f == encryptedKey || f == dsaKey) {
		actual = f
	}
	switch {
	case it.label != "" && labels[it.label] != privateKey && labels[it.label] != encryptedKey:
		return fail(ErrKeyUnsupported, "PKCS #8, PKCS #1 or SEC 1", "BEGIN "+label(it.label), "convert it: openssl pkey -in FILE -out NEW")
	case actual == dsaKey:
		return fail(ErrKeyUnsupported, keySort, "a DSA private key", makeKey)
	case actual == encryptedKey:
		key, err := decrypt(it, password)
		return key, "", err
	}
	var parsed any
	for _, parse := range []func([]byte) (any, error){
		x509.ParsePKCS8PrivateKey,
		func(der []byte) (any, error) { return x509.ParsePKCS1PrivateKey(der) },
		func(der []byte) (any, error) { return x509.ParseECPrivateKey(der) },
	} {
		k, e := parse(it.der)
		if e == nil {
			parsed, err = k, nil
			break
		}
		if err == nil || !isSyntax(e) { // the parser whose structure it is says more than "wrong structure"
			err = e
		}
	}
	if parsed == nil {
		return fail(ErrMalformed, "a private key in PKCS #8, PKCS #1 or SEC 1", "one that cannot be parsed ("+quote(err.Error())+")",
			"convert it: openssl pkey -in FILE -out NEW; for explicit curve parameters: openssl ec -in FILE -param_enc named_curve -out NEW")
	}
	if len(password) > 0 {
		warning = KeyFile + ": the key is not encrypted; password has no use"
	}
	key, err = usable(KeyFile, it.where, parsed)
	return key, warning, err
}

// isSyntax reports an error that says no more than that it is another structure.
func isSyntax(err error) bool {
	return strings.Contains(err.Error(), "asn1:") || strings.Contains(err.Error(), "use ParsePKCS") || strings.Contains(err.Error(), "use ParseEC")
}

func usable(role, where string, key any) (crypto.Signer, error) {
	found := fmt.Sprintf("%T", key)
	switch key := key.(type) {
	case *rsa.PrivateKey:
		if key.N.BitLen() >= 2048 {
			return key, nil
		}
		found = fmt.Sprintf("RSA of %d bits", key.N.BitLen())
	case *ecdsa.PrivateKey:
		if key.Curve != elliptic.P224() { // not in TLS 1.3
			return key, nil
		}
		found = "ECDSA on P-224"
	case ed25519.PrivateKey:
		return key, nil
	}
	return nil, &Problem{ErrKeyUnsupported, role, where, keySort, found, makeKey}
}

// decrypt opens an encrypted key. All the library would stumble over, panic at or take for a wrong password is refused
// before: it is asked only for what it does right.
func decrypt(it *item, password []byte) (crypto.Signer, error) {
	if len(password) == 0 {
		return nil, noPassword(KeyFile, password != nil)
	}
	if err := checkPassword(KeyFile, password); err != nil {
		return nil, err
	}
	in := cryptobyte.String(it.der)
	e, ok := readEncrypted(&in)
	switch {
	case !ok || !in.Empty():
		return nil, &Problem{ErrMalformed, KeyFile, it.where, "an encrypted key (PKCS #8)", "one that is damaged", "fetch it again; " + look(KeyFile) + " reads it when it is whole"}
	case e.costly():
		return nil, tooCostly(KeyFile, it.where, e)
	case e.unsupported != "" || e.hash == "SHA-512" || e.length && e.hash != "SHA-1" || e.legacy:
		found := e.unsupported
		switch {
		case found != "":
		case e.legacy:
			found = "the encryption of PKCS#12"
		case e.length:
			found = "PBKDF2 with a key length written out"
		default:
			found = "PBKDF2 with " + e.hash
		}
		return nil, &Problem{ErrKeyUnsupported, KeyFile, it.where, "PBES2 with PBKDF2 (SHA-1 or SHA-256) or scrypt, and AES-CBC or 3DES", found, reencrypt}
	}
	parsed, err := pkcs8.ParsePKCS8PrivateKey(it.der, password)
	if err != nil {
		return nil, wrongPassword(KeyFile, password)
	}
	return usable(KeyFile, it.where, parsed)
}

// encrypted is what an EncryptedPrivateKeyInfo or EncryptedContentInfo says about its encryption.
type encrypted struct {
	iterations, scrypt int64
	hash               string // of PBKDF2
	length             bool   // PBKDF2 has keyLength
	legacy             bool   // RC2 or 3DES with the derivation of PKCS#12
	tripleDES          bool
	unsupported        string // what of it nobody here knows
}

func (e *encrypted) costly() bool { return e.iterations > maxIterations || e.scrypt > maxScrypt }

func tooCostly(role, where string, e encrypted) error {
	found := fmt.Sprintf("%d", e.iterations)
	if e.scrypt > 0 {
		found = "scrypt of a larger cost"
	}
	next := reencrypt
	if role == PKCS12File {
		next = "make it anew: openssl pkcs12 -in FILE -nodes -out PEM, then openssl pkcs12 -export -in PEM -out NEW"
	}
	return &Problem{ErrTooCostly, role, where, fmt.Sprintf("at most %d iterations between password and key", maxIterations), found, next}
}

var (
	oidPBES2   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBKDF2  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidScrypt  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 4, 11}
	oidPBMAC1  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 14}
	oidHMAC256 = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}

	hashes = map[string]string{"1.2.840.113549.2.7": "SHA-1", "1.2.840.113549.2.9": "SHA-256", "1.2.840.113549.2.11": "SHA-512"}
	// blockSizes are of the ciphers, which are also the sizes of their IVs.
	blockSizes = map[string]int{"2.16.840.1.101.3.4.1.2": 16, "2.16.840.1.101.3.4.1.22": 16, "2.16.840.1.101.3.4.1.42": 16, "1.2.840.113549.3.7": 8}
	legacyPBE  = map[string]bool{"1.2.840.113549.1.12.1.3": true, "1.2.840.113549.1.12.1.5": true, "1.2.840.113549.1.12.1.6": true}
)

// readEncrypted reads SEQUENCE {algorithm, OCTET STRING} (RFC 5958 section 3) to the last byte; nothing is decrypted.
func readEncrypted(in *cryptobyte.String) (e encrypted, ok bool) {
	var body, data cryptobyte.String
	if !in.ReadASN1(&body, cbasn1.SEQUENCE) {
		return e, false
	}
	e, block, ok := readPBE(&body)
	ok = ok && body.ReadASN1(&data, cbasn1.OCTET_STRING) && body.Empty() && wholeBlocks(data, block)
	return e, ok
}

func wholeBlocks(data []byte, block int) bool {
	return block == 0 || len(data) > 0 && len(data)%block == 0
}

// readPBE reads an AlgorithmIdentifier of encryption by password (RFC 8018 appendix A, RFC 7292 appendix C). block is
// 0 if it is not known.
func readPBE(in *cryptobyte.String) (e encrypted, block int, ok bool) {
	var alg, params, kdf, salt cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !in.ReadASN1(&alg, cbasn1.SEQUENCE) || !alg.ReadASN1ObjectIdentifier(&oid) {
		return e, 0, false
	}
	switch {
	case legacyPBE[oid.String()]:
		e.legacy = true
		ok = alg.ReadASN1(&params, cbasn1.SEQUENCE) && alg.Empty() && params.ReadASN1(&salt, cbasn1.OCTET_STRING) && readCount(&params, &e.iterations) && params.Empty()
		return e, 8, ok
	case !oid.Equal(oidPBES2):
		e.unsupported = "encryption of type " + short(oid.String())
		return e, 0, true
	}
	if !alg.ReadASN1(&params, cbasn1.SEQUENCE) || !alg.Empty() || !params.ReadASN1(&kdf, cbasn1.SEQUENCE) || !readKDF(kdf, &e) {
		return e, 0, false
	}
	var scheme, iv cryptobyte.String
	if !params.ReadASN1(&scheme, cbasn1.SEQUENCE) || !params.Empty() || !scheme.ReadASN1ObjectIdentifier(&oid) {
		return e, 0, false
	}
	block = blockSizes[oid.String()]
	e.tripleDES = block == 8
	if block == 0 {
		if e.unsupported == "" {
			e.unsupported = "a cipher of type " + short(oid.String())
		}
		return e, 0, true
	}
	return e, block, scheme.ReadASN1(&iv, cbasn1.OCTET_STRING) && scheme.Empty() && len(iv) == block
}

// readKDF reads the body of the AlgorithmIdentifier of PBKDF2 or scrypt (RFC 7914 section 7).
func readKDF(in cryptobyte.String, e *encrypted) bool {
	var oid asn1.ObjectIdentifier
	var params, salt, prf cryptobyte.String
	if !in.ReadASN1ObjectIdentifier(&oid) {
		return false
	}
	switch {
	case oid.Equal(oidPBKDF2):
		if !in.ReadASN1(&params, cbasn1.SEQUENCE) || !in.Empty() {
			return false
		}
		if !params.PeekASN1Tag(cbasn1.OCTET_STRING) {
			e.unsupported = "a salt from another source"
			return true
		}
		if !params.ReadASN1(&salt, cbasn1.OCTET_STRING) || !readCount(&params, &e.iterations) {
			return false
		}
		var length int64
		if e.length = params.PeekASN1Tag(cbasn1.INTEGER); e.length && (!params.ReadASN1Integer(&length) || length < 0 || length > 64) {
			return false
		}
		e.hash = "SHA-1"
		if !params.Empty() {
			if !params.ReadASN1(&prf, cbasn1.SEQUENCE) || !params.Empty() || !prf.ReadASN1ObjectIdentifier(&oid) {
				return false
			}
			if e.hash = hashes[oid.String()]; e.hash == "" {
				e.unsupported = "PBKDF2 with the hash function " + short(oid.String())
			}
		}
		return true
	case oid.Equal(oidScrypt):
		var n, r, p, length int64
		if !in.ReadASN1(&params, cbasn1.SEQUENCE) || !in.Empty() || !params.ReadASN1(&salt, cbasn1.OCTET_STRING) ||
			!readCount(&params, &n) || !readCount(&params, &r) || !readCount(&params, &p) {
			return false
		}
		if !params.Empty() && (!params.ReadASN1Integer(&length) || !params.Empty()) {
			return false
		}
		e.scrypt = maxScrypt + 1
		if n <= maxScrypt && r <= maxScrypt && p <= maxScrypt && n*r <= maxScrypt && n*r*p <= maxScrypt {
			e.scrypt = n * r * p
		}
		return true
	}
	e.unsupported = "a key derivation of type " + short(oid.String())
	return true
}

// readCount reads a positive INTEGER; one of more than 62 bits counts as the largest.
func readCount(in *cryptobyte.String, out *int64) bool {
	var raw cryptobyte.String
	if !in.ReadASN1(&raw, cbasn1.INTEGER) || len(raw) == 0 || raw[0] >= 0x80 {
		return false
	}
	raw = bytes.TrimLeft(raw, "\x00")
	if len(raw) > 7 {
		*out = 1 << 62
		return true
	}
	*out = 0
	for _, b := range raw {
		*out = *out<<8 | int64(b)
	}
	return *out > 0
}

// inBMP reports whether PKCS#12 can hold the password: characters of 16 bits.
func inBMP(password []byte) bool {
	for _, r := range string(password) {
		if r > 0xffff {
			return false
		}
	}
	return utf8.Valid(password)
}
