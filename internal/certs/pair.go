// Package certs owns keystores: the certificates with keys that the balancer may present, and the choice among them by
// what the other side offers. It reads the files these come in, whatever their shape, and names what it does not take.
//
// It believes nothing about the certificates of others; that is package trust. It opens no files: whoever does hands in
// the bytes of certificate and key together, since half of a pair is what a rotation looks like in the middle (threats
// H03).
package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The kinds of Problem, for errors.Is. The text of the problem names what was found and what to do.
var (
	ErrSource         = errors.New("contradictory sources of a pair")
	ErrTooLarge       = errors.New("file too large")
	ErrNoCertificate  = errors.New("no certificate")
	ErrNoKey          = errors.New("no private key")
	ErrSwapped        = errors.New("certificate and key are swapped")
	ErrKeyInCertFile  = errors.New("private key in a file for certificates")
	ErrCertInKeyFile  = errors.New("certificate in the key file")
	ErrKeyEncrypted   = errors.New("private key is encrypted")
	ErrPassword       = errors.New("wrong password")
	ErrTooCostly      = errors.New("too many iterations from password to key")
	ErrKeyMismatch    = errors.New("private key does not belong to the certificate")
	ErrKeyUnsupported = errors.New("unsupported key")
	ErrChain          = errors.New("broken certificate chain")
	ErrMalformed      = errors.New("malformed file")
)

const (
	maxPairBytes = 1 << 20
	maxChain     = 16   // certificates in one file
	maxRSABits   = 8192 // crypto/tls refuses more on the other side, and a signature check could take minutes
)

// Source is what a pair is read from: the contents of files, either Cert and Key or PKCS12.
type Source struct {
	Cert   []byte // the leaf, then each the issuer of the one before: PEM, PKCS#7 (in any order), or the leaf in DER
	Key    []byte // PEM or DER: PKCS #8, encrypted or not, PKCS #1 or SEC 1
	PKCS12 []byte // both
	// Password opens an encrypted key, or PKCS12. One line end behind it is left out, as a file has one. Nil means that
	// none was configured.
	Password []byte
}

// Reader reads many pairs. What stands in several of their files, as the certificates of issuers do, it parses and checks
// once. The zero value has seen nothing. It is for one goroutine and not for long: nothing is forgotten before the end.
type Reader struct {
	// Later may take a signature that its caller will check; it reports whether it did. It is asked only where nothing but
	// the signature is left to check, so that what is no CA, or another CA of the same name, is found at once all the same.
	// Nil takes none.
	Later   func(Signature) bool
	issuers map[string]*x509.Certificate // by DER
	signed  map[[2]*x509.Certificate]bool
}

// maxIssuers bounds what a Reader keeps; an issuer has some 5 KiB.
const maxIssuers = 1000

// certificate parses a certificate of a chain, the leaf being number 0.
func (r *Reader) certificate(number int, der []byte) (*x509.Certificate, error) {
	if number == 0 {
		return x509.ParseCertificate(der)
	}
	if c := r.issuers[string(der)]; c != nil {
		return c, nil
	}
	c, err := x509.ParseCertificate(der)
	if err == nil && len(r.issuers) < maxIssuers {
		if r.issuers == nil {
			r.issuers, r.signed = make(map[string]*x509.Certificate), make(map[[2]*x509.Certificate]bool)
		}
		r.issuers[string(der)] = c
	}
	return c, err
}

// checkSignature is c.CheckSignatureFrom(issuer). Those between issuers it remembers: each stands in many files.
func (r *Reader) checkSignature(c, issuer *x509.Certificate) error {
	known := r.issuers[string(c.Raw)] == c && r.issuers[string(issuer.Raw)] == issuer
	if known && r.signed[[2]*x509.Certificate{c, issuer}] {
		return nil
	}
	err := c.CheckSignatureFrom(issuer)
	if known && err == nil {
		r.signed[[2]*x509.Certificate{c, issuer}] = true
	}
	return err
}

// checkNowOrLater is checkSignature, unless Later takes it. Issuers are few, and checked at once.
func (r *Reader) checkNowOrLater(s Signature) error {
	if r.Later != nil && r.issuers[string(s.Subject.Raw)] != s.Subject && s.likely() && r.Later(s) {
		return nil
	}
	return r.checkSignature(s.Subject, s.Issuer)
}

// Signature is what the issuer of a certificate in a file is expected to have made.
type Signature struct {
	Subject, Issuer *x509.Certificate

	role   string
	number int // of the subject in its file, from 1
}

// Check verifies it: some 0.1 ms for a key on P-256, several times that for P-384. The error is a *Problem.
func (s Signature) Check() error {
	if err := s.Subject.CheckSignatureFrom(s.Issuer); err != nil {
		return s.problem(err)
	}
	return nil
}

// likely reports whether all is as it should be but for the signature itself: the subject names the issuer's key (RFC 5280
// section 4.2.1.1), and that is a CA's, and of the kind that makes such signatures.
func (s Signature) likely() bool {
	usage := s.Issuer.KeyUsage
	return s.Issuer.IsCA && (usage == 0 || usage&x509.KeyUsageCertSign != 0) && len(s.Subject.AuthorityKeyId) > 0 &&
		bytes.Equal(s.Subject.AuthorityKeyId, s.Issuer.SubjectKeyId) && slices.Contains(makes[s.Issuer.PublicKeyAlgorithm], s.Subject.SignatureAlgorithm)
}

// makes are the signatures by kind of key that crypto/x509 believes.
var makes = map[x509.PublicKeyAlgorithm][]x509.SignatureAlgorithm{
	x509.RSA: {x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA, x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS,
		x509.SHA512WithRSAPSS},
	x509.ECDSA:   {x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512},
	x509.Ed25519: {x509.PureEd25519},
}

func (s Signature) problem(err error) *Problem {
	next := "look for another CA certificate of the same name; openssl x509 -in FILE -noout -ext authorityKeyIdentifier tells which"
	if s.likely() {
		next = "this is the issuer that it names, so one of the two is damaged, or is of another key under the same key identifier: fetch the file again from where it was issued"
	}
	return &Problem{ErrChain, s.role, "", fmt.Sprintf("certificate %d (%s) to have signed certificate %d", s.number+1, name(s.Issuer), s.number),
		fmt.Sprintf("that it did not sign certificate %d (%s)", s.number, quote(err.Error())), next}
}

// ParsePair is Parse for a certificate file and the file of a key that is not encrypted, without the warnings.
func ParsePair(certPEM, keyPEM []byte) (*tls.Certificate, error) {
	pair, _, err := Parse(Source{Cert: certPEM, Key: keyPEM})
	return pair, err
}

// Parse is Parse of a Reader that has seen nothing.
func Parse(s Source) (*tls.Certificate, []string, error) { return new(Reader).Parse(s) }

// Parse reads a pair. Keys are ECDSA on P-256, P-384 or P-521, Ed25519, or RSA of at least 2048 bits. The result has
// Leaf set. Errors are of type *Problem. The warnings are about the files; dates and names are not looked at: see Check.
func (r *Reader) Parse(s Source) (*tls.Certificate, []string, error) {
	password := trimPassword(s.Password)
	if s.PKCS12 != nil {
		if s.Cert != nil || s.Key != nil {
			return nil, nil, &Problem{ErrSource, PKCS12File, "", "pkcs12, or cert and key", "both",
				"remove one of them; openssl pkcs12 -in FILE -nokeys shows what is in the PKCS#12 file"}
		}
		return r.parsePKCS12(s.PKCS12, password)
	}
	certItems, certErr := items(CertFile, s.Cert, maxPairBytes, false)
	if certErr != nil {
		return nil, nil, certErr
	}
	keyItems, keyErr := items(KeyFile, s.Key, maxPairBytes, false)
	if keyErr != nil {
		return nil, nil, keyErr
	}
	isCert := func(it item) bool { return it.form == certificate || it.form == trustedCertificate || it.form == pkcs7 }
	isKey := func(it item) bool { return it.form.isKey() }
	certs, keysInCert := count(certItems, isCert), count(certItems, isKey)
	keys, certsInKey := count(keyItems, isKey), count(keyItems, isCert)
	switch {
	case certs == 0 && keysInCert > 0 && keys == 0 && certsInKey > 0:
		return nil, nil, &Problem{ErrSwapped, CertFile, "", "a certificate", "a private key, and the key file holds a certificate: they are swapped",
			"exchange the two names; openssl x509 -in FILE -noout -subject tells which is the certificate"}
	case certsInKey > 0 && keysInCert == 0:
		return nil, nil, &Problem{ErrCertInKeyFile, KeyFile, "", "one private key only", fmt.Sprintf("%d certificates", certsInKey),
			"move them to the certificate file: openssl pkey -in FILE -out NEW copies the key alone"}
	}
	entries, ordered, err := entriesOf(CertFile, certItems, false)
	if err != nil {
		return nil, nil, err
	}
	var warnings []string
	var one *item
	for i := range keyItems {
		it := &keyItems[i]
		switch {
		case isKey(*it) && one == nil:
			one = it
		case isKey(*it):
			return nil, nil, &Problem{ErrMalformed, KeyFile, it.where, "one private key", fmt.Sprintf("%d of them", keys),
				"keep the key of the first certificate: openssl pkey -in FILE -out NEW copies the first key alone"}
		case it.form == pkcs12, it.form == unknown:
			return nil, nil, &Problem{ErrNoKey, KeyFile, it.where, "a private key", it.name(), convert(KeyFile, it.form)}
		case keys > 0 && it.form != parameters: // "EC PARAMETERS" is what openssl ecparam writes
			warnings = append(warnings, fmt.Sprintf("%s: %s: %s is not used; remove it", KeyFile, it.where, it.name()))
		}
	}
	if one == nil {
		it := &keyItems[0]
		return nil, nil, &Problem{ErrNoKey, KeyFile, it.where, "a private key", it.name(), convert(KeyFile, it.form)}
	}
	key, warning, err := parseKey(one, password)
	if err != nil {
		return nil, nil, err
	}
	if warning != "" {
		warnings = append(warnings, warning)
	}
	list, err := r.parseCertificates(entries)
	if err != nil {
		return nil, nil, err
	}
	pair, more, err := r.assemble(CertFile, list, key, ordered)
	return pair, append(warnings, more...), err
}

func count(list []item, is func(item) bool) int {
	n := 0
	for _, it := range list {
		if is(it) {
			n++
		}
	}
	return n
}

func (r *Reader) parseCertificates(entries []Entry) ([]*x509.Certificate, error) {
	if len(entries) > maxChain {
		return nil, &Problem{ErrChain, CertFile, "", fmt.Sprintf("a certificate and its issuers, at most %d", maxChain), fmt.Sprintf("%d certificates (a CA bundle, perhaps)", len(entries)),
			"write the leaf, then its issuers; openssl storeutl -noout -text -certs FILE shows them all"}
	}
	var list []*x509.Certificate
	for i, e := range entries {
		c, err := r.certificate(i, e.DER)
		if err != nil {
			return nil, &Problem{ErrMalformed, CertFile, e.Where, "a certificate", fmt.Sprintf("certificate %d that cannot be parsed (%s)", i+1, quote(err.Error())),
				"fetch it again; " + look(CertFile) + " reads it when it is whole"}
		}
		list = append(list, c)
	}
	return list, nil
}

// assemble makes the pair. Of an ordered list every certificate has to be the issuer of the one before. A list that has
// no order of its own is put in order, and what does not belong to the chain is left out.
func (r *Reader) assemble(role string, list []*x509.Certificate, key crypto.Signer, ordered bool) (*tls.Certificate, []string, error) {
	var warnings []string
	warn := func(format string, args ...any) {
		warnings = append(warnings, role+": "+fmt.Sprintf(format, args...))
	}
	var all []*x509.Certificate
	for i, c := range list {
		if rsaKey, ok := c.PublicKey.(*rsa.PublicKey); ok && rsaKey.N.BitLen() > maxRSABits {
			return nil, nil, &Problem{ErrKeyUnsupported, role, "", fmt.Sprintf("RSA of at most %d bits", maxRSABits),
				fmt.Sprintf("%d bits in certificate %d (%s)", rsaKey.N.BitLen(), i+1, name(c)), makeKey}
		}
		if j := slices.IndexFunc(list[:i], c.Equal); j >= 0 {
			warn("certificate %d (%s) is the same as certificate %d and was left out", i+1, name(c), j+1)
			continue
		}
		all = append(all, c)
	}
	public := key.Public().(interface{ Equal(crypto.PublicKey) bool }) // so documented for every key of the standard library
	at := slices.IndexFunc(all, func(c *x509.Certificate) bool { return public.Equal(c.PublicKey) })
	if at < 0 {
		leaf := all[0]
		return nil, nil, &Problem{ErrKeyMismatch, role, "", fmt.Sprintf("the %s key of %s, serial %x", leaf.PublicKeyAlgorithm, name(leaf), leaf.SerialNumber), otherKey(key, leaf) + ": the private key does not belong to the certificate",
			"if the pair was just renewed, one of the two is still the old one; compare openssl x509 -in CERT -noout -pubkey with openssl pkey -in KEY -pubout"}
	}
	chain := all
	if ordered {
		if err := r.inOrder(role, all, at); err != nil {
			return nil, nil, err
		}
	} else if chain = pick(all, r.pathFrom(all, at)); len(chain) < len(all) {
		left := len(all) - len(chain)
		warn("%d certificates do not belong to the chain of %s and were left out", left, name(chain[0]))
	}
	last := chain[len(chain)-1]
	switch root := bytes.Equal(last.RawSubject, last.RawIssuer); {
	case root && len(chain) > 1:
		warn("certificate %s is the root; the other side needs its own copy to trust it, so leave it out of the chain", name(last))
	case !root && len(chain) == 1 && len(last.IssuingCertificateURL) > 0:
		warn("the issuer %s is missing, and clients may not find it: append what %s holds (openssl x509 -inform der converts it)", quote(last.Issuer.String()), quote(last.IssuingCertificateURL[0]))
	}
	pair := &tls.Certificate{PrivateKey: signer(key), Leaf: chain[0]}
	for _, c := range chain {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	return pair, warnings, nil
}

// otherKey says of which kind a key is that is not the one of leaf.
func otherKey(key crypto.Signer, leaf *x509.Certificate) string {
	kind, article := x509.UnknownPublicKeyAlgorithm, "an "
	switch key.Public().(type) {
	case *rsa.PublicKey:
		kind = x509.RSA
	case *ecdsa.PublicKey:
		kind = x509.ECDSA
	case ed25519.PublicKey:
		kind = x509.Ed25519
	}
	switch kind {
	case x509.UnknownPublicKeyAlgorithm:
		return "a key of another kind"
	case leaf.PublicKeyAlgorithm:
		article = "another "
	}
	return article + kind.String() + " key"
}

// inOrder checks that every certificate of a file with an order is the issuer of the one before. at is which one belongs to
// the key.
func (r *Reader) inOrder(role string, all []*x509.Certificate, at int) error {
	order := func() (text string, whole bool) {
		text = "write leaf, then its issuer, then the issuer's issuer"
		path := r.pathFrom(all, at)
		if whole = len(path) == len(all); whole {
			text = "write them in the order " + strings.Trim(strings.ReplaceAll(fmt.Sprint(plusOne(path)), " ", ", "), "[]")
		}
		return text + "; openssl storeutl -noout -text -certs FILE shows them all", whole
	}
	if at == 0 {
		p := r.linked(role, all)
		if p == nil {
			return nil
		}
		if p.Next == "" {
			p.Next, _ = order()
		}
		return p
	}
	if text, whole := order(); whole {
		return &Problem{ErrChain, role, "", "the leaf first, then its issuer", fmt.Sprintf("%s first and the leaf %s as number %d", name(all[0]), name(all[at]), at+1), text}
	}
	return &Problem{ErrKeyMismatch, role, "", "the leaf of the key first", fmt.Sprintf("%s; the key belongs to certificate %d (%s)", name(all[0]), at+1, name(all[at])),
		"use the key of the first, which openssl x509 -in CERT -noout -pubkey shows; openssl pkey -in KEY -pubout shows what a key is for"}
}

func pick(all []*x509.Certificate, path []int) []*x509.Certificate {
	out := make([]*x509.Certificate, len(path))
	for i, j := range path {
		out[i] = all[j]
	}
	return out
}

func plusOne(path []int) []int {
	out := make([]int, len(path))
	for i, j := range path {
		out[i] = j + 1
	}
	return out
}

// pathFrom walks from a certificate of the list to its issuers.
func (r *Reader) pathFrom(all []*x509.Certificate, at int) (path []int) {
	for at >= 0 {
		path = append(path, at)
		c := all[at]
		at = slices.IndexFunc(all, func(issuer *x509.Certificate) bool {
			return bytes.Equal(c.RawIssuer, issuer.RawSubject) && !slices.ContainsFunc(path, func(i int) bool { return all[i] == issuer }) && r.checkSignature(c, issuer) == nil
		})
	}
	return path
}

// linked checks that every certificate is followed by its issuer. A problem without a next step is one of their order.
func (r *Reader) linked(role string, chain []*x509.Certificate) *Problem {
	for i, issuer := range chain[1:] {
		subject := chain[i]
		if !bytes.Equal(subject.RawIssuer, issuer.RawSubject) {
			return &Problem{ErrChain, role, "", fmt.Sprintf("certificate %d to be followed by its issuer, since it was issued by %s", i+1, quote(subject.Issuer.String())),
				fmt.Sprintf("%s as number %d", name(issuer), i+2), ""}
		}
		sig := Signature{subject, issuer, role, i + 1}
		if err := r.checkNowOrLater(sig); err != nil {
			return sig.problem(err)
		}
	}
	return nil
}

func name(c *x509.Certificate) string { return quote(c.Subject.String()) }

// short bounds a name that somebody else chose.
func short(name string) string {
	if len(name) > 100 {
		return strings.ToValidUTF8(name[:97], "") + "..."
	}
	return name
}
