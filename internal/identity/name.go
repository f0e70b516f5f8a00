package identity

import (
	"crypto/x509"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"countersign/internal/reason"
)

const (
	// maxName bounds one printed name. It equals the cap on all identity headers, so no name that could be sent is lost.
	maxName = MaxHeaders
	// maxOID bounds the DER of an attribute type. Printing arcs of any length is quadratic, and none in use comes near.
	maxOID = 64
)

// String types that package asn1 does not name (X.680 section 8.4).
const (
	numericString   = asn1.Tag(18)
	visibleString   = asn1.Tag(26)
	universalString = asn1.Tag(28)
	bmpString       = asn1.Tag(30)
)

// attribute is one AttributeTypeAndValue, pointing into the DER it was read from.
type attribute struct {
	rdn  int // which RelativeDistinguishedName it belongs to
	oid  []byte
	tag  asn1.Tag
	text []byte // contents octets of the value
	der  []byte // the whole value
}

// AppendName appends the distinguished name rawName, a DER RDNSequence, in the form of RFC 2253, byte for byte as OpenSSL
// prints it with -nameopt RFC2253: RDNs and the values within one reversed, OpenSSL's short names, unknown types and
// values that are not text as #HEX. The result is printable ASCII whatever the name holds, so it is safe in a header.
//
// It parts from OpenSSL where OpenSSL loses information: text that has no Unicode form (a lone surrogate, half a code
// unit) is printed as #HEX instead of being dropped, and long object identifiers are not cut off.
//
// pkix.Name is of no use here: it merges multi-valued RDNs, reorders, and keeps control characters (D07, D10).
func AppendName(dst, rawName []byte) ([]byte, error) { return appendName(dst, rawName, escapeRFC2253) }

// escape prints one octet of the UTF-8 form of a value, and is told whether it is the value's first and last.
type escape func(dst []byte, b byte, first, last bool) []byte

func appendName(dst, rawName []byte, esc escape) ([]byte, error) {
	var few [16]attribute
	attrs, ok := parseName(few[:0], rawName)
	if !ok {
		return dst, malformedName()
	}
	out := dst
	for i := len(attrs) - 1; i >= 0; i-- {
		a := &attrs[i]
		if i < len(attrs)-1 {
			separator := byte(',')
			if a.rdn == attrs[i+1].rdn {
				separator = '+'
			}
			out = append(out, separator)
		}
		if out, ok = a.append(out, esc); !ok {
			return dst, malformedName()
		}
		if len(out)-len(dst) > maxName {
			return dst, tooLarge("a printed name over the limit")
		}
	}
	return out, nil
}

func malformedName() error {
	return &reason.Refusal{Reason: reason.ClientCertUnparsable, Expected: "a DER distinguished name", Found: "malformed DER"}
}

// parseName reads Name (RFC 5280 section 4.1.2.4) into a flat list.
func parseName(attrs []attribute, rawName []byte) ([]attribute, bool) {
	input, rdns := cryptobyte.String(rawName), cryptobyte.String(nil)
	if !input.ReadASN1(&rdns, asn1.SEQUENCE) || !input.Empty() {
		return nil, false
	}
	for rdn := 0; !rdns.Empty(); rdn++ {
		var set cryptobyte.String
		if !rdns.ReadASN1(&set, asn1.SET) {
			return nil, false
		}
		for !set.Empty() {
			var pair, oid, element, text cryptobyte.String
			var tag asn1.Tag
			if !set.ReadASN1(&pair, asn1.SEQUENCE) || !pair.ReadASN1(&oid, asn1.OBJECT_IDENTIFIER) ||
				!pair.ReadAnyASN1Element(&element, &tag) || !pair.Empty() {
				return nil, false
			}
			der := element
			if !element.ReadAnyASN1(&text, &tag) {
				return nil, false
			}
			attrs = append(attrs, attribute{rdn, oid, tag, text, der})
		}
	}
	return attrs, true
}

// append prints "type=value".
func (a *attribute) append(dst []byte, esc escape) ([]byte, bool) {
	name, known := shortNames[string(a.oid)]
	if !known {
		var oid x509.OID
		if len(a.oid) > maxOID || oid.UnmarshalBinary(a.oid) != nil {
			return dst, false
		}
		dst = append(append(dst, oid.String()...), '=')
		return appendHex(append(dst, '#'), a.der), true
	}
	dst = append(append(dst, name...), '=')
	return a.appendValue(dst, esc), true
}

// appendValue prints the characters of the value, or #HEX of its DER if it has none.
func (a *attribute) appendValue(dst []byte, esc escape) []byte {
	if out, ok := appendText(dst, a.tag, a.text, esc); ok {
		return out
	}
	return appendHex(append(dst, '#'), a.der)
}

// appendText prints the characters of a string value, and reports whether the value is a string that has any: a type we
// know, whole code units, Unicode scalar values.
func appendText(dst []byte, tag asn1.Tag, text []byte, esc escape) ([]byte, bool) {
	width := 1
	switch tag {
	case asn1.UTF8String:
		if !utf8.Valid(text) {
			return dst, false
		}
	case numericString, asn1.PrintableString, asn1.T61String, asn1.IA5String, visibleString:
		// One octet is one character. T.61 is read as Latin-1, as OpenSSL, BoringSSL and crypto/x509 do.
	case bmpString:
		width = 2
	case universalString:
		width = 4
	default:
		return dst, false
	}
	if len(text)%width != 0 {
		return dst, false
	}
	for i := 0; i < len(text); i += width {
		var unit uint32
		for _, b := range text[i : i+width] {
			unit = unit<<8 | uint32(b)
		}
		first, last := i == 0, i+width == len(text)
		if unit < utf8.RuneSelf || tag == asn1.UTF8String {
			dst = esc(dst, byte(unit), first, last)
			continue
		}
		if unit > utf8.MaxRune || !utf8.ValidRune(rune(unit)) {
			return dst, false
		}
		var encoded [utf8.UTFMax]byte
		for _, b := range encoded[:utf8.EncodeRune(encoded[:], rune(unit))] {
			dst = esc(dst, b, first, last)
		}
	}
	return dst, true
}

// escapeRFC2253 prints one octet of UTF-8 after RFC 2253 section 2.4. A value that is a lone # stays bare: OpenSSL looks
// at the last character's rule only, and the hex form needs digits, so it cannot be mistaken for one.
func escapeRFC2253(dst []byte, b byte, first, last bool) []byte {
	switch {
	case b < ' ' || b > '~':
		return appendHexPair(dst, b)
	case strings.IndexByte(`,+"\<>;`, b) >= 0, b == ' ' && (first || last), b == '#' && first && !last:
		return append(dst, '\\', b)
	}
	return append(dst, b)
}

// appendHexPair prints one octet as RFC 2253's escape for any: a backslash and two digits.
func appendHexPair(dst []byte, b byte) []byte {
	return append(dst, '\\', upperHex[b>>4], upperHex[b&15])
}

const upperHex = "0123456789ABCDEF"

func appendHex(dst, data []byte) []byte {
	for _, b := range data {
		dst = append(dst, upperHex[b>>4], upperHex[b&15])
	}
	return dst
}

// shortNames maps the DER contents of an attribute type to the name OpenSSL prints for it.
var shortNames = func() map[string]string {
	names := make(map[string]string)
	for _, group := range attributeTypes {
		fields := strings.Fields(group.names)
		for i := 0; i < len(fields); i += 2 {
			oid, err := x509.ParseOID(group.arc + "." + fields[i])
			if err != nil {
				panic("identity: attribute types: " + err.Error())
			}
			der, err := oid.MarshalBinary()
			if err != nil {
				panic("identity: attribute types: " + err.Error())
			}
			names[string(der)] = fields[i+1]
		}
	}
	return names
}()

// attributeTypes are the arcs that attribute types of names live in, each complete as of OpenSSL 3.0 (the names are facts
// of its object table, observed with "openssl list -objects"; a test compares them). OpenSSL would name any object it
// knows, even an algorithm, in this place; outside these arcs we print the dotted form.
var attributeTypes = []struct{ arc, names string }{
	// X.520.
	{"2.5.4", `
		3 CN 4 SN 5 serialNumber 6 C 7 L 8 ST 9 street 10 O 11 OU 12 title 13 description 14 searchGuide
		15 businessCategory 16 postalAddress 17 postalCode 18 postOfficeBox 19 physicalDeliveryOfficeName
		20 telephoneNumber 21 telexNumber 22 teletexTerminalIdentifier 23 facsimileTelephoneNumber 24 x121Address
		25 internationaliSDNNumber 26 registeredAddress 27 destinationIndicator 28 preferredDeliveryMethod
		29 presentationAddress 30 supportedApplicationContext 31 member 32 owner 33 roleOccupant 34 seeAlso
		35 userPassword 36 userCertificate 37 cACertificate 38 authorityRevocationList
		39 certificateRevocationList 40 crossCertificatePair 41 name 42 GN 43 initials 44 generationQualifier
		45 x500UniqueIdentifier 46 dnQualifier 47 enhancedSearchGuide 48 protocolInformation 49 distinguishedName
		50 uniqueMember 51 houseIdentifier 52 supportedAlgorithms 53 deltaRevocationList 54 dmdName 65 pseudonym
		72 role 97 organizationIdentifier 98 c3 99 n3 100 dnsName`},
	// COSINE, RFC 4524.
	{"0.9.2342.19200300.100.1", `
		1 UID 2 textEncodedORAddress 3 mail 4 info 5 favouriteDrink 6 roomNumber 7 photo 8 userClass 9 host
		10 manager 11 documentIdentifier 12 documentTitle 13 documentVersion 14 documentAuthor 15 documentLocation
		20 homeTelephoneNumber 21 secretary 22 otherMailbox 23 lastModifiedTime 24 lastModifiedBy 25 DC 26 aRecord
		27 pilotAttributeType27 28 mXRecord 29 nSRecord 30 sOARecord 31 cNAMERecord 37 associatedDomain
		38 associatedName 39 homePostalAddress 40 personalTitle 41 mobileTelephoneNumber 42 pagerTelephoneNumber
		43 friendlyCountryName 44 uid 45 organizationalStatus 46 janetMailbox 47 mailPreferenceOption
		48 buildingName 49 dSAQuality 50 singleLevelQuality 51 subtreeMinimumQuality 52 subtreeMaximumQuality
		53 personalSignature 54 dITRedirect 55 audio 56 documentPublisher`},
	// PKCS #9, RFC 2985.
	{"1.2.840.113549.1.9", `
		1 emailAddress 2 unstructuredName 3 contentType 4 messageDigest 5 signingTime 6 countersignature
		7 challengePassword 8 unstructuredAddress 9 extendedCertificateAttributes 14 extReq 15 SMIME-CAPS 16 SMIME
		20 friendlyName 21 localKeyID`},
	// EV certificates.
	{"1.3.6.1.4.1.311.60.2.1", `
		1 jurisdictionL 2 jurisdictionST 3 jurisdictionC`},
	// personal data, RFC 3739.
	{"1.3.6.1.5.5.7.9", `
		1 id-pda-dateOfBirth 2 id-pda-placeOfBirth 3 id-pda-gender 4 id-pda-countryOfCitizenship
		5 id-pda-countryOfResidence`},
	// Russian national attributes.
	{"1.2.643.100", `
		1 OGRN 3 SNILS 5 OGRNIP 111 subjectSignTool 112 issuerSignTool 113 classSignTool`},
	// Russian taxpayer number.
	{"1.2.643.3.131.1", `1 INN`},
}
