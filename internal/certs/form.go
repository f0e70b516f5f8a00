package certs

import (
	"bytes"
	"encoding/asn1"
	"fmt"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// form is what a file or a block of it is, whatever its name says.
type form int

const (
	unknown form = iota
	certificate
	trustedCertificate
	request
	revocationList
	publicKey
	privateKey
	encryptedKey // PKCS #8
	legacyKey    // encrypted as PEM was in 1993
	openSSHKey
	dsaKey
	parameters
	pkcs7
	otherCMS
	pkcs12
)

var formNames = map[form]string{
	unknown:            "something unknown",
	certificate:        "a certificate",
	trustedCertificate: "a TRUSTED CERTIFICATE, which only OpenSSL knows",
	request:            "a certificate request (CSR)",
	revocationList:     "a revocation list (X509 CRL)",
	publicKey:          "a public key",
	privateKey:         "a private key",
	encryptedKey:       "an encrypted private key",
	legacyKey:          "a private key encrypted in the old way (Proc-Type: 4,ENCRYPTED)",
	openSSHKey:         "an OpenSSH private key",
	dsaKey:             "a DSA private key",
	parameters:         "parameters without a key",
	pkcs7:              "PKCS#7 certificates",
	otherCMS:           "a PKCS#7 or CMS message",
	pkcs12:             "what looks like a PKCS#12 file",
}

func (f form) isKey() bool {
	return f == privateKey || f == encryptedKey || f == legacyKey || f == openSSHKey || f == dsaKey
}

var labels = map[string]form{
	"CERTIFICATE": certificate, "X509 CERTIFICATE": certificate, "TRUSTED CERTIFICATE": trustedCertificate,
	"CERTIFICATE REQUEST": request, "NEW CERTIFICATE REQUEST": request, "X509 CRL": revocationList,
	"PUBLIC KEY": publicKey, "RSA PUBLIC KEY": publicKey, "SSH2 PUBLIC KEY": publicKey,
	"PRIVATE KEY": privateKey, "RSA PRIVATE KEY": privateKey, "EC PRIVATE KEY": privateKey, "ENCRYPTED PRIVATE KEY": encryptedKey,
	"OPENSSH PRIVATE KEY": openSSHKey, "DSA PRIVATE KEY": dsaKey, "EC PARAMETERS": parameters, "DH PARAMETERS": parameters,
	"PKCS7": pkcs7, "PKCS #7 SIGNED DATA": pkcs7, "CMS": pkcs7, "PKCS12": pkcs12,
}

// item is one thing in a file.
type item struct {
	form  form
	label string // of its PEM block; empty for DER
	der   []byte
	where string
}

func (it *item) name() string {
	switch {
	case it.form == unknown && it.label != "":
		return "BEGIN " + label(it.label)
	case it.label != "":
		return formNames[it.form] + " (BEGIN " + label(it.label) + ")"
	case it.form == pkcs12:
		return formNames[it.form]
	}
	return formNames[it.form] + " in DER"
}

// items takes a file apart.
func items(role string, data []byte, limit int, alb bool) ([]item, error) {
	if len(data) > limit {
		return nil, &Problem{ErrTooLarge, role, "", fmt.Sprintf("at most %d MiB", limit>>20), fmt.Sprintf("%d bytes", len(data)),
			"keep only what is needed in it; " + look(role) + " shows what is first"}
	}
	if p := notText(role, data); p != nil {
		return nil, p
	}
	if f, rest, der := derForm(data); der {
		switch {
		case alb:
			return nil, &Problem{ErrMalformed, role, "", "PEM, as AWS ALB does", formNames[f] + " in DER", "convert it: openssl x509 -inform der -in FILE -out NEW"}
		case rest > 0:
			return nil, &Problem{ErrMalformed, role, "", "one thing in DER and no more", fmt.Sprintf("%d bytes behind %s", rest, formNames[f]),
				"files in DER cannot be joined: openssl x509 -inform der -in FILE -out NEW converts the first of them; join them as PEM"}
		}
		return []item{{form: f, der: data}}, nil
	} else if len(data) > 1 && data[0] == 0x30 && 0x81 <= data[1] && data[1] <= 0x84 { // no text starts like this
		return nil, &Problem{ErrMalformed, role, "", "PEM or DER", "DER that is cut off or damaged", "copy the file again; " + look(role) + " -inform der reads it when it is whole"}
	}
	blocks, err := Split(role, data, alb)
	if err != nil {
		return nil, err
	}
	if len(blocks) == 0 {
		return nil, nothing(role, data)
	}
	out := make([]item, len(blocks))
	for i := range blocks {
		b := &blocks[i]
		out[i] = item{labels[b.Kind], b.Kind, b.DER, b.Where()}
		switch {
		case b.Encrypted:
			out[i].form = legacyKey
		case out[i].form == unknown && strings.HasSuffix(b.Kind, "PRIVATE KEY"):
			out[i].form = privateKey // refused by its label later; but it is a key
		}
	}
	return out, nil
}

// nothing tells what a file without any block seems to be.
func nothing(role string, data []byte) *Problem {
	kind, expected := ErrNoCertificate, "at least one certificate (-----BEGIN CERTIFICATE-----)"
	if role == KeyFile {
		kind, expected = ErrNoKey, "a private key (-----BEGIN PRIVATE KEY-----)"
	}
	p := &Problem{kind, role, "", expected, "none, but other text", "see that it is the right file: " + look(role)}
	text := bytes.TrimSpace(bytes.TrimPrefix(data, []byte(mark)))
	head := text[:min(len(text), 64)]
	has := func(prefix string) bool { return bytes.HasPrefix(head, []byte(prefix)) }
	switch {
	case len(text) == 0:
		p.Found, p.Next = "none: an empty file", "see that it was written: "+look(role)
	case has("{"):
		p.Found, p.Next = "none, but JSON", "take the PEM out of it, with real line breaks; then "+look(role)
	case has("PuTTY-User-Key-File"):
		p.Found, p.Next = "none, but a PuTTY key", "such keys are made for SSH; for TLS make one with openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out NEW"
	case has("ssh-"), has("ecdsa-sha2-"):
		p.Found, p.Next = "none, but an SSH public key", "find the private key of the certificate; "+look(role)+" reads it"
	case has("LS0tLS1CRUdJTi"): // base64 of -----BEGIN
		p.Found, p.Next = "none, but PEM that was encoded in base64 once more", "decode it: openssl base64 -d -A -in FILE -out NEW"
	case len(head) >= 60 && head[0] == 'M' && bytes.IndexFunc(text, func(r rune) bool { return notBase64(r) && r != '\r' && r != '\n' }) < 0:
		p.Found = "base64 without BEGIN and END lines"
		p.Next = "decode it: tr -d '\\r\\n' < FILE | openssl base64 -d -A -out NEW, and use that DER file"
	}
	return p
}

// notText names files that are neither PEM nor DER.
func notText(role string, data []byte) *Problem {
	has := func(magic string) bool { return bytes.HasPrefix(data, []byte(magic)) }
	p := &Problem{Kind: ErrMalformed, Role: role, Expected: "PEM (text in ASCII or UTF-8) or DER"}
	lead := ""
	if start := bytes.TrimSpace(bytes.TrimPrefix(data[:min(len(data), 512)], []byte(mark))); len(start) > 0 && start[0] == '<' {
		lead = strings.ToLower(string(start))
	}
	even := len(data) >= 4
	switch {
	case has("\xff\xfe"), even && data[0] != 0x30 && data[0] != 0 && data[1] == 0 && data[2] != 0 && data[3] == 0,
		has("\xfe\xff"), even && data[0] == 0 && data[1] != 0 && data[2] == 0 && data[3] != 0:
		p.Found, p.Next = "text in UTF-16", "convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW; then "+look(role)
	case strings.HasPrefix(lead, "<!doctype"), strings.HasPrefix(lead, "<html"), strings.HasPrefix(lead, "<head"), strings.HasPrefix(lead, "<?xml"):
		p.Found, p.Next = "an HTML or XML page", "the download gave a page (a login or an error, perhaps) in place of the file: fetch it again, and try "+look(role)
	case has("\xfe\xed\xfe\xed"), has("\xce\xce\xce\xce"):
		p.Found = "what looks like a Java keystore (JKS)"
		p.Next = "convert it: keytool -importkeystore -srckeystore FILE -destkeystore NEW.p12 -deststoretype pkcs12; then " + convert(role, pkcs12)
	case has("PK\x03\x04"), has("\x1f\x8b"):
		p.Found, p.Next = "a compressed archive", "unpack it first; then "+look(role)
	case has("\x30\x80"):
		p.Found = "BER with indefinite lengths (PKCS#7 or PKCS#12, perhaps)"
		p.Next = "convert it: openssl pkcs7 -inform der -in FILE -print_certs -out NEW, or openssl pkcs12 -in FILE -nodes -out NEW"
	default:
		return nil
	}
	return p
}

// convert is the next step for a thing that has no place in a file of the role.
func convert(role string, f form) string {
	key := role == KeyFile
	switch f {
	case certificate:
		return "move it to the certificate file; openssl x509 -in FILE -noout -subject shows whose it is"
	case trustedCertificate:
		return "it may carry restrictions, which would be lost in silence; to drop them: openssl x509 -in FILE -out NEW"
	case request:
		if key {
			return "use the key it was made with, whose public half openssl req -in FILE -noout -pubkey shows"
		}
		return "send it to the CA and use the certificate that comes back; openssl req -in FILE -noout -text shows what it asks for"
	case revocationList:
		return "it belongs into revocation.crls of a trust store; openssl crl -in FILE -noout -issuer shows whose it is"
	case publicKey:
		if key {
			return "use the private key that was made with it; openssl pkey -in KEY -pubout shows the public half of a key"
		}
		return "use the certificate that a CA made for it; openssl x509 -in CERT -noout -pubkey shows the key in a certificate"
	case privateKey, encryptedKey, legacyKey, openSSHKey, dsaKey:
		if role == CertFile {
			return "keep the key in a file of its own, readable by this program only; openssl x509 -in FILE -out NEW copies the first certificate alone"
		}
		return "a key must never stand here: take it out, for instance with openssl crl2pkcs7 -nocrl -certfile FILE | openssl pkcs7 -print_certs -out NEW, and replace the key if others could read this file"
	case parameters:
		if key {
			return "a key stands behind them as a rule; make one with openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out NEW"
		}
		return "remove them; openssl x509 -in FILE -out NEW copies the first certificate alone"
	case pkcs7:
		return "it holds certificates only; convert it: openssl pkcs7 -in FILE -print_certs -out NEW (with -inform der for DER)"
	case pkcs12:
		switch role {
		case CertFile:
			return "give it as pkcs12 in place of cert and key, or convert it: openssl pkcs12 -in FILE -nokeys -out NEW"
		case KeyFile:
			return "give it as pkcs12 in place of cert and key, or convert it: openssl pkcs12 -in FILE -nocerts -nodes -out NEW"
		}
		return "convert it: openssl pkcs12 -in FILE -nokeys -out NEW"
	}
	return "see what it is: openssl asn1parse -in FILE (with -inform der for DER)"
}

// derForm tells DER from text and what is in it, by the outer structure alone. rest is the number of bytes behind it.
func derForm(data []byte) (f form, rest int, ok bool) {
	in := cryptobyte.String(data)
	var body cryptobyte.String
	if len(data) < 16 || data[0] != 0x30 || !in.ReadASN1(&body, cbasn1.SEQUENCE) {
		return unknown, 0, false
	}
	f = bodyForm(body)
	// A text may start with the character 0 too. A byte above 127 next to it is no ASCII, and keys are the only short ones.
	if f == unknown && data[1] < 0x80 {
		return unknown, 0, false
	}
	return f, len(in), true
}

var (
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
)

func bodyForm(in cryptobyte.String) form {
	const (
		integer  = cbasn1.INTEGER
		sequence = cbasn1.SEQUENCE
		octets   = cbasn1.OCTET_STRING
		bits     = cbasn1.BIT_STRING
	)
	switch {
	case in.PeekASN1Tag(cbasn1.OBJECT_IDENTIFIER):
		var oid asn1.ObjectIdentifier
		if in.ReadASN1ObjectIdentifier(&oid) && oid.Equal(oidSignedData) {
			return pkcs7
		} else if len(oid) > 6 && oid[:6].Equal(oidData[:6]) {
			return otherCMS
		}
	case in.PeekASN1Tag(integer):
		var version int64
		if !in.ReadASN1Integer(&version) {
			return unknown
		}
		switch shape := tags(in, 9); {
		case version == 3 && hasTags(shape, sequence):
			return pkcs12
		case version <= 1 && hasTags(shape, sequence, octets): // PKCS #8
			return privateKey
		case version == 1 && hasTags(shape, octets): // SEC 1
			return privateKey
		case version == 0 && hasTags(shape, integer, integer, integer, integer, integer, integer, integer, integer): // PKCS #1
			return privateKey
		case version == 0 && hasTags(shape, integer, integer, integer, integer, integer):
			return dsaKey
		}
	case in.PeekASN1Tag(sequence):
		var first cryptobyte.String
		if !in.ReadASN1(&first, sequence) {
			return unknown
		}
		switch shape := tags(in, 3); {
		case hasTags(shape, octets):
			return encryptedKey
		case hasTags(shape, bits):
			return publicKey
		case !hasTags(shape, sequence, bits):
			return unknown
		}
		// Signed: what was signed tells them apart.
		serial := tags(first, 4)
		switch {
		case hasTags(serial, cbasn1.Tag(0).ContextSpecific().Constructed(), integer, sequence), hasTags(serial, integer, sequence, sequence, sequence) && !isRequest(first):
			return certificate
		case isRequest(first):
			return request
		case hasTags(serial, integer, sequence, sequence), hasTags(serial, sequence, sequence):
			return revocationList
		}
	}
	return unknown
}

// isRequest looks for what is in a request only: version 0, a name, a key, attributes.
func isRequest(tbs cryptobyte.String) bool {
	var version int64
	return hasTags(tags(tbs, 4), cbasn1.INTEGER, cbasn1.SEQUENCE, cbasn1.SEQUENCE, cbasn1.Tag(0).ContextSpecific().Constructed()) &&
		tbs.ReadASN1Integer(&version) && version == 0
}

// tags returns the tags of the first few elements.
func tags(in cryptobyte.String, most int) (out []cbasn1.Tag) {
	var element cryptobyte.String
	var tag cbasn1.Tag
	for len(out) < most && in.ReadAnyASN1(&element, &tag) {
		out = append(out, tag)
	}
	return out
}

func hasTags(shape []cbasn1.Tag, want ...cbasn1.Tag) bool {
	if len(shape) < len(want) {
		return false
	}
	for i, tag := range want {
		if shape[i] != tag {
			return false
		}
	}
	return true
}

// Entry is a certificate of a file, not parsed yet.
type Entry struct {
	DER   []byte
	Where string // "block 2 (line 11)"; empty when it is the whole file
}

// Entries returns the certificates of a file of at most limit bytes, in their order: PEM, one in DER, or certs-only
// PKCS#7 in either. Anything else in the file is an error, of type *Problem. alb allows PEM CERTIFICATE only, and only
// under the file rules of AWS ALB.
func Entries(role string, data []byte, limit int, alb bool) ([]Entry, error) {
	list, err := items(role, data, limit, alb)
	if err != nil {
		return nil, err
	}
	entries, _, err := entriesOf(role, list, alb)
	return entries, err
}

// entriesOf returns also whether the order of the entries means anything: a PKCS#7 file holds a set.
func entriesOf(role string, list []item, alb bool) (entries []Entry, ordered bool, err error) {
	ordered = true
	for i := range list {
		it := &list[i]
		switch {
		case it.form == certificate && (!alb || it.label == "CERTIFICATE"):
			entries = append(entries, Entry{it.der, it.where})
		case it.form == certificate:
			return nil, false, &Problem{ErrMalformed, role, it.where, "CERTIFICATE, as AWS ALB does", it.label, "convert it: openssl x509 -in FILE -out NEW"}
		case it.form == pkcs7 && !alb:
			more, err := unpack(role, it)
			if err != nil {
				return nil, false, err
			}
			entries, ordered = append(entries, more...), false
		default:
			kind := ErrMalformed
			switch {
			case it.form.isKey():
				kind = ErrKeyInCertFile
			case len(list) == 1:
				kind = ErrNoCertificate
			}
			return nil, false, &Problem{kind, role, it.where, "CERTIFICATE and nothing else", it.name(), convert(role, it.form)}
		}
	}
	return entries, ordered, nil
}

// unpack returns the certificates of a certs-only SignedData (RFC 5652 section 5, RFC 7468 section 8) and refuses all
// that carries more: a signed message, or revocation lists, which would be dropped in silence.
//
// The structure is read here and not by a library: nothing in it is signed or encrypted, and smallstep/pkcs7 v0.2.3
// overflows the stack, which ends the process, on 16 MiB of nested tags.
func unpack(role string, it *item) ([]Entry, error) {
	prefix := ""
	if it.where != "" {
		prefix = " of " + it.where
	}
	fail := func(expected, found, next string) ([]Entry, error) {
		return nil, &Problem{ErrMalformed, role, it.where, expected, found, next}
	}
	printCerts := "openssl pkcs7 -in FILE -print_certs -out NEW (with -inform der for DER)"
	if it.label == "CMS" {
		printCerts = "openssl cms -cmsout -inform pem -in FILE -outform der | openssl pkcs7 -inform der -print_certs -out NEW"
	}
	damaged := func() ([]Entry, error) {
		return fail("PKCS#7 with certificates (SignedData in DER)", "PKCS#7 that is damaged or written in BER", "convert it: "+printCerts)
	}
	var oid, contentType asn1.ObjectIdentifier
	var body, content, list, certs, signers cryptobyte.String
	var version int64
	in := cryptobyte.String(it.der)
	if !in.ReadASN1(&body, cbasn1.SEQUENCE) || !in.Empty() || !body.ReadASN1ObjectIdentifier(&oid) {
		return damaged()
	}
	if !oid.Equal(oidSignedData) {
		return fail("PKCS#7 with certificates (SignedData)", "content of type "+short(oid.String()), "see what it is: openssl cms -cmsout -print -in FILE")
	}
	var hasCerts, hasCRLs bool
	var crls cryptobyte.String
	if !body.ReadASN1(&content, explicit) || !body.Empty() || !content.ReadASN1(&body, cbasn1.SEQUENCE) || !content.Empty() ||
		!body.ReadASN1Integer(&version) || !body.SkipASN1(cbasn1.SET) || !body.ReadASN1(&list, cbasn1.SEQUENCE) ||
		!list.ReadASN1ObjectIdentifier(&contentType) || !body.ReadOptionalASN1(&certs, &hasCerts, explicit) ||
		!body.ReadOptionalASN1(&crls, &hasCRLs, explicit|1) || !body.ReadASN1(&signers, cbasn1.SET) || !body.Empty() {
		return damaged()
	}
	switch {
	case !signers.Empty() || !list.Empty():
		return fail("certificates only", "a signed message, whose signature nobody checked here", "if you trust it, take the certificates out: "+printCerts)
	case !crls.Empty():
		return fail("certificates only", "revocation lists beside them", "take the certificates out with "+printCerts+", and the lists into revocation.crls")
	case certs.Empty():
		return fail("at least one certificate", "PKCS#7 without any", "see what it is: "+printCerts)
	}
	var entries []Entry
	for !certs.Empty() {
		var element cryptobyte.String
		if !certs.PeekASN1Tag(cbasn1.SEQUENCE) {
			return fail("X.509 certificates only", fmt.Sprintf("another kind as number %d", len(entries)+1), "take the certificates out: "+printCerts)
		}
		if !certs.ReadASN1Element(&element, cbasn1.SEQUENCE) {
			return damaged()
		}
		entries = append(entries, Entry{element, fmt.Sprintf("certificate %d%s", len(entries)+1, prefix)})
	}
	return entries, nil
}
