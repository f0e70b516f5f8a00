package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// PSD2 is what a certificate says about a payment service provider (ETSI TS 119 495). It is a claim, worth as much as the
// CA that made it: anybody's CA can write it, so it decides nothing without a trust store of qualified CAs.
type PSD2 struct {
	// Roles are those of the four EU roles that the certificate names, in its order: PSP_AS, PSP_PI, PSP_AI, PSP_IC. It is
	// empty for one that says "Unspecified" or has national roles only.
	Roles []string
	// AuthorityName is the competent authority's name, for people, and AuthorityID its code: a country, a hyphen and the
	// authority's letters, as in DE-BAFIN. Neither has control or format characters.
	AuthorityName, AuthorityID string
	// Organization is the authorisation number in the subject's organizationIdentifier, PSDDE-BAFIN-123456 (clause 5.2.1).
	// It is empty for a subject without one or with an identifier of another scheme, such as VAT, NTR or LEI.
	Organization string
	// Qualified says that the certificate claims to be qualified in the EU: the QcCompliance statement, without a
	// QcCClegislation statement, which names other countries whose law is meant (ETSI EN 319 412-5 clauses 4.2.1, 4.2.4).
	Qualified bool
	// Web says that its type is website authentication (ETSI EN 319 412-5 clause 4.2.3). Qualified and Web make a QWAC.
	Web bool
}

// Bounds of the QCStatements extension. Real ones have five to eight statements, and four roles at most.
const (
	maxQCStatements     = 8 << 10
	maxQCStatementCount = 32
	maxPSD2Roles        = 16
	maxQCTypes          = 16
	maxPSD2Text         = 256 // characters, by the ASN.1 module
)

var (
	qcStatements    = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 3} // RFC 3739 section 3.2.6
	qcTypeWeb       = mustOID("0.4.0.1862.1.6.3")
	oidOrganization = mustOID("2.5.4.97")
)

// The statements that are read, each of which may stand once; all others are passed over.
const (
	qcCompliance = iota
	qcType
	qcLegislation
	qcPSD2
)

var qcIDs = [...][]byte{
	qcCompliance:  mustOID("0.4.0.1862.1.1"),
	qcType:        mustOID("0.4.0.1862.1.6"),
	qcLegislation: mustOID("0.4.0.1862.1.7"),
	qcPSD2:        mustOID("0.4.0.19495.2"),
}

// psd2Roles are ETSI's identifiers and names of roles (ETSI TS 119 495 clauses 5.1, 5.2.2). The first is none.
var psd2Roles = [...]struct {
	id   []byte
	name string
}{
	{mustOID("0.4.0.19495.1.0"), "Unspecified"},
	{mustOID("0.4.0.19495.1.1"), "PSP_AS"},
	{mustOID("0.4.0.19495.1.2"), "PSP_PI"},
	{mustOID("0.4.0.19495.1.3"), "PSP_AI"},
	{mustOID("0.4.0.19495.1.4"), "PSP_IC"},
}

// mustOID is the contents octets of an identifier.
func mustOID(dotted string) []byte {
	oid, err := x509.ParseOID(dotted)
	if err != nil {
		panic("identity: " + dotted + ": " + err.Error())
	}
	der, err := oid.MarshalBinary()
	if err != nil {
		panic("identity: " + dotted + ": " + err.Error())
	}
	return der
}

// PSD2 returns what the leaf says about a payment service provider, and whether it says anything that can be believed. A
// malformed statement gives no roles; [ParsePSD2] tells why. It is read anew on each call, about two microseconds, so that
// handshakes that do not ask for it do not pay for it.
func (id *Identity) PSD2() (PSD2, bool) {
	p, ok, err := ParsePSD2(id.Leaf())
	return p, ok && err == nil
}

// ParsePSD2 reads the PSD2 statement of a certificate, and whether there is one. All of the QCStatements extension must be
// well-formed DER: an extension that two readers could understand in two ways gives an error and nothing else.
func ParsePSD2(cert *x509.Certificate) (PSD2, bool, error) {
	at := -1
	for i := range cert.Extensions {
		if !cert.Extensions[i].Id.Equal(qcStatements) {
			continue
		}
		if at >= 0 {
			return PSD2{}, false, errors.New("qcStatements: expected one such extension, found two; ask the issuer for a right certificate")
		}
		at = i
	}
	if at < 0 {
		return PSD2{}, false, nil
	}
	p, present, err := readQCStatements(cert.Extensions[at].Value)
	if err == nil && present {
		p.Organization, err = authorisation(cert.RawSubject)
	}
	if err != nil {
		return PSD2{}, false, fmt.Errorf("%w; ask the issuer for a right certificate", err)
	}
	if !present {
		return PSD2{}, false, nil
	}
	return p, true, nil
}

// readQCStatements reads the value of the extension (RFC 3739 section 3.2.6): statements of an identifier and a value that
// the identifier gives a meaning.
func readQCStatements(der []byte) (p PSD2, present bool, err error) {
	if len(der) > maxQCStatements {
		return p, false, fmt.Errorf("qcStatements: expected at most %d bytes, found %d", maxQCStatements, len(der))
	}
	input, list := cryptobyte.String(der), cryptobyte.String(nil)
	if !input.ReadASN1(&list, cbasn1.SEQUENCE) || !input.Empty() || list.Empty() {
		return p, false, malformedQC("a list of statements")
	}
	var seen [len(qcIDs)]bool
	for n := 1; !list.Empty(); n++ {
		if n > maxQCStatementCount {
			return p, false, fmt.Errorf("qcStatements: expected at most %d statements, found more", maxQCStatementCount)
		}
		id, info, ok := readStatement(&list)
		if !ok {
			return p, false, malformedQC("a statement of an identifier and at most one value")
		}
		is := slices.IndexFunc(qcIDs[:], func(known []byte) bool { return bytes.Equal(known, id) })
		if is < 0 {
			continue
		}
		if seen[is] {
			return p, false, fmt.Errorf("qcStatements: expected each statement once, found %s twice", dotted(id))
		}
		seen[is] = true
		switch is {
		case qcCompliance:
			if !info.Empty() {
				return p, false, malformedQC("QcCompliance without a value")
			}
		case qcType:
			if p.Web, ok = hasWebType(info); !ok {
				return p, false, malformedQC("a list of types in QcType")
			}
		case qcPSD2:
			if err := p.read(info); err != nil {
				return p, false, err
			}
		}
	}
	p.Qualified = seen[qcCompliance] && !seen[qcLegislation]
	return p, seen[qcPSD2], nil
}

// readStatement reads one statement; info is the whole value with its tag, or empty.
func readStatement(list *cryptobyte.String) (id []byte, info cryptobyte.String, ok bool) {
	var statement cryptobyte.String
	if !list.ReadASN1(&statement, cbasn1.SEQUENCE) {
		return nil, nil, false
	}
	if id, ok = readOID(&statement); !ok || statement.Empty() {
		return id, nil, ok
	}
	var tag cbasn1.Tag
	ok = statement.ReadAnyASN1Element(&info, &tag) && statement.Empty()
	return id, info, ok
}

// hasWebType reads QcType, a list of identifiers. info is one element, as for read.
func hasWebType(info cryptobyte.String) (web, ok bool) {
	var types cryptobyte.String
	if !info.ReadASN1(&types, cbasn1.SEQUENCE) || types.Empty() {
		return false, false
	}
	for n := 0; !types.Empty(); n++ {
		oid, ok := readOID(&types)
		if !ok || n == maxQCTypes {
			return false, false
		}
		web = web || bytes.Equal(oid, qcTypeWeb)
	}
	return web, true
}

// read reads PSD2QcType (ETSI TS 119 495 annex A).
func (p *PSD2) read(info cryptobyte.String) error {
	var statement, roles cryptobyte.String
	if !info.ReadASN1(&statement, cbasn1.SEQUENCE) || !statement.ReadASN1(&roles, cbasn1.SEQUENCE) {
		return malformedQC("roles, name and code of the authority in the PSD2 statement")
	}
	if err := p.readRoles(roles); err != nil {
		return err
	}
	var name, id bool
	p.AuthorityName, name = readText(&statement)
	p.AuthorityID, id = readText(&statement)
	if !name || !id || !statement.Empty() {
		return malformedQC("name and code of the authority in the PSD2 statement, 1 to 256 characters of UTF-8 without control characters each")
	}
	return nil
}

// readRoles takes the four EU roles and passes over those that others define (clause 5.2.2). The identifier decides; the
// text beside it must agree, because other readers go by the text.
func (p *PSD2) readRoles(roles cryptobyte.String) error {
	var seen [maxPSD2Roles][]byte
	n, unspecified := 0, false
	for ; !roles.Empty(); n++ {
		if n == maxPSD2Roles {
			return fmt.Errorf("PSD2 statement: expected at most %d roles, found more", maxPSD2Roles)
		}
		id, text, ok := readRole(&roles)
		if !ok {
			return malformedQC("a role of an identifier and 1 to 256 characters of UTF-8 in the PSD2 statement")
		}
		if slices.ContainsFunc(seen[:n], func(earlier []byte) bool { return bytes.Equal(earlier, id) }) {
			return fmt.Errorf("PSD2 statement: expected each role once, found %s twice", dotted(id))
		}
		seen[n] = id
		for i, known := range psd2Roles {
			switch same := bytes.Equal(id, known.id); {
			case same != (text == known.name):
				return fmt.Errorf("PSD2 statement: expected %s to be the name of role %s and of no other, found %s as %+.40q",
					known.name, dotted(known.id), dotted(id), text)
			case same && i == 0:
				unspecified = true
			case same:
				p.Roles = append(p.Roles, text)
			}
		}
	}
	if n == 0 || unspecified && n > 1 {
		return malformedQC("one role or more, none of them beside Unspecified, in the PSD2 statement")
	}
	return nil
}

func readRole(roles *cryptobyte.String) (id []byte, text string, ok bool) {
	var role cryptobyte.String
	if !roles.ReadASN1(&role, cbasn1.SEQUENCE) {
		return nil, "", false
	}
	if id, ok = readOID(&role); !ok {
		return nil, "", false
	}
	text, ok = readText(&role)
	return id, text, ok && role.Empty()
}

// readOID reads an object identifier and returns its contents octets, which are the same for equal identifiers: no arc
// is empty, starts with a zero digit or is cut off (X.690 section 8.19.2).
func readOID(s *cryptobyte.String) ([]byte, bool) {
	var der cryptobyte.String
	if !s.ReadASN1(&der, cbasn1.OBJECT_IDENTIFIER) || len(der) > maxOID {
		return nil, false
	}
	first := true // of an arc
	for _, b := range der {
		if first && b == 0x80 {
			return nil, false
		}
		first = b < 0x80
	}
	return der, len(der) > 0 && first
}

func dotted(der []byte) string {
	var oid x509.OID
	if oid.UnmarshalBinary(der) != nil {
		return "an identifier"
	}
	return oid.String()
}

// readText reads a UTF8String of 1 to 256 characters, each of which can be seen: these texts are compared, logged and
// sent on in headers.
func readText(s *cryptobyte.String) (string, bool) {
	var text cryptobyte.String
	if !s.ReadASN1(&text, cbasn1.UTF8String) || !utf8.Valid(text) {
		return "", false
	}
	if n := utf8.RuneCount(text); n < 1 || n > maxPSD2Text ||
		bytes.ContainsFunc(text, func(r rune) bool { return !unicode.IsGraphic(r) }) {
		return "", false
	}
	return string(text), true
}

// authorisation returns the organizationIdentifier of a subject if it has the form PSD, country, hyphen, authority,
// hyphen, number (ETSI TS 119 495 clause 5.2.1). The number's form is the authority's own.
func authorisation(rawSubject []byte) (string, error) {
	var few [16]attribute
	attrs, ok := parseName(few[:0], rawSubject)
	if !ok {
		return "", malformedName()
	}
	at := -1
	for i := range attrs {
		if !bytes.Equal(attrs[i].oid, oidOrganization) {
			continue
		}
		if at >= 0 {
			return "", errors.New("subject: expected one organizationIdentifier, found two")
		}
		at = i
	}
	if at < 0 {
		return "", nil
	}
	plain := func(dst []byte, b byte, _, _ bool) []byte { return append(dst, b) }
	text, ok := appendText(nil, attrs[at].tag, attrs[at].text, plain)
	if !ok || len(text) > maxPSD2Text || bytes.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
		return "", nil
	}
	rest, isPSD := strings.CutPrefix(string(text), "PSD")
	country, rest, _ := strings.Cut(rest, "-")
	authority, number, _ := strings.Cut(rest, "-")
	if !isPSD || len(country) != 2 || len(authority) < 2 || len(authority) > 8 || number == "" ||
		strings.ContainsFunc(country+authority, func(r rune) bool { return r < 'A' || r > 'Z' }) {
		return "", nil
	}
	return string(text), nil
}

func malformedQC(expected string) error {
	return fmt.Errorf("qcStatements: expected %s, found malformed DER or another value", expected)
}
