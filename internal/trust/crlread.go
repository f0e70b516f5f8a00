package trust

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Reading goes over the bytes from front to back, twice over the entries, without recursion and without a copy of what
// is not kept. crypto/x509 would make a million big integers and dates of such a list.

const (
	maxIssuerBytes = 16 << 10
	maxNumber      = 20 // octets of a CRL number (RFC 5280 section 5.2.3)
	typicalEntry   = 40 // bytes
	smallestDate   = 15 // bytes, with its header
)

// readCRL reads a list in DER. It accepts nothing that x509.ParseRevocationList refuses.
func readCRL(der []byte) (*CRL, error) {
	l := &CRL{sum: sha256.Sum256(der)}
	if err := l.read(der); err != nil {
		if l.name != "" {
			return nil, fmt.Errorf("list of %s, thisUpdate %s: %w", l.name, stamp(l.thisUpdate), err)
		}
		if len(der) < maxBundleBytes {
			if _, certErr := x509.ParseCertificate(der); certErr == nil {
				return nil, errors.New("expected a list, found a certificate; this file is a CA certificate")
			}
		}
		return nil, err
	}
	return l, nil
}

func malformed(what string) error {
	return fmt.Errorf("expected %s, found something else; it is no list in DER, or it is damaged: fetch it again", what)
}

func (l *CRL) read(der []byte) error {
	in := cryptobyte.String(der)
	var list, signed, tbs cryptobyte.String
	if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !list.ReadASN1Element(&signed, cbasn1.SEQUENCE) {
		return malformed("a CertificateList")
	}
	if !in.Empty() {
		return fmt.Errorf("%d bytes follow the list", len(in))
	}
	tbs = signed
	var version int
	if !tbs.ReadASN1(&tbs, cbasn1.SEQUENCE) || !tbs.PeekASN1Tag(cbasn1.INTEGER) || !tbs.ReadASN1Integer(&version) {
		return malformed("a list of version 2")
	}
	if version != 1 {
		return errors.New("expected a list of version 2 (RFC 5280 section 5.1.2.1), found another")
	}
	var inner, outer, issuer cryptobyte.String
	if !tbs.ReadASN1(&inner, cbasn1.SEQUENCE) || !list.ReadASN1(&outer, cbasn1.SEQUENCE) || !bytes.Equal(inner, outer) {
		return malformed("the same signature algorithm inside and outside")
	}
	if !list.ReadASN1BitStringAsBytes(&l.signature) || !list.Empty() {
		return malformed("a signature at the end")
	}
	l.signature = bytes.Clone(l.signature)
	if !tbs.ReadASN1Element(&issuer, cbasn1.SEQUENCE) {
		return malformed("an issuer")
	}
	err := l.readIssuer(issuer)
	if err != nil {
		return err
	}
	if l.thisUpdate, err = readTime(&tbs); err != nil {
		return fmt.Errorf("thisUpdate: %w", err)
	}
	l.name = l.printedIssuer() // from here on messages say which list it is
	if tbs.PeekASN1Tag(cbasn1.UTCTime) || tbs.PeekASN1Tag(cbasn1.GeneralizedTime) {
		if l.nextUpdate, err = readTime(&tbs); err != nil {
			return fmt.Errorf("nextUpdate: %w", err)
		}
		if l.nextUpdate.Before(l.thisUpdate) {
			return fmt.Errorf("nextUpdate %s is before thisUpdate", stamp(l.nextUpdate))
		}
	} else {
		l.nextUpdate = l.thisUpdate.Add(maxCRLAge)
	}
	algorithm, found, err := signatureAlgorithm(inner)
	if err != nil {
		return malformed("a signature algorithm")
	}
	if algorithm == x509.UnknownSignatureAlgorithm {
		return fmt.Errorf("expected a signature by RSA, ECDSA or Ed25519 with SHA-256 or better, found %s; the CA must sign its lists anew", found)
	}
	l.algorithm = algorithm
	var revoked, extensions cryptobyte.String
	var extended bool
	if tbs.PeekASN1Tag(cbasn1.SEQUENCE) && !tbs.ReadASN1(&revoked, cbasn1.SEQUENCE) {
		return malformed("revokedCertificates")
	}
	if !tbs.ReadOptionalASN1(&extensions, &extended, cbasn1.Tag(0).ContextSpecific().Constructed()) || !tbs.Empty() {
		return malformed("crlExtensions at the end")
	}
	if extended {
		// Before the entries, because in a delta they may say more.
		if err := l.readExtensions(extensions); err != nil {
			return err
		}
	}
	if err := l.readEntries(revoked); err != nil {
		return err
	}
	if l.hash() == 0 {
		l.message = bytes.Clone(signed)
		return nil
	}
	h := l.hash().New()
	h.Write(signed)
	l.message = h.Sum(nil)
	return nil
}

// nameTags are the kinds of string that crypto/x509 reads in names.
var nameTags = []cbasn1.Tag{cbasn1.UTF8String, cbasn1.PrintableString, cbasn1.IA5String, cbasn1.T61String, asn1.TagNumericString, asn1.TagBMPString}

// readIssuer wants a name that is not empty (RFC 5280 section 5.1.2.3).
func (l *CRL) readIssuer(der cryptobyte.String) error {
	if len(der) > maxIssuerBytes {
		return fmt.Errorf("expected an issuer of at most %d bytes, found %d", maxIssuerBytes, len(der))
	}
	l.issuer = string(der)
	bad := malformed("an issuer")
	var rdns cryptobyte.String
	if !der.ReadASN1(&rdns, cbasn1.SEQUENCE) || rdns.Empty() {
		return bad
	}
	for !rdns.Empty() {
		var set cryptobyte.String
		if !rdns.ReadASN1(&set, cbasn1.SET) {
			return bad
		}
		for !set.Empty() {
			var attribute, value cryptobyte.String
			var tag cbasn1.Tag
			if !set.ReadASN1(&attribute, cbasn1.SEQUENCE) || !attribute.SkipASN1(cbasn1.OBJECT_IDENTIFIER) ||
				!attribute.ReadAnyASN1(&value, &tag) || !attribute.Empty() || !slices.Contains(nameTags, tag) {
				return bad
			}
		}
	}
	if _, err := l.issuerRDNs(); err != nil {
		return bad
	}
	return nil
}

func (l *CRL) issuerRDNs() (pkix.RDNSequence, error) {
	var rdns pkix.RDNSequence
	_, err := asn1.Unmarshal([]byte(l.issuer), &rdns)
	return rdns, err
}

func (l *CRL) printedIssuer() string {
	var n pkix.Name
	rdns, _ := l.issuerRDNs()
	n.FillFromRDNSequence(&rdns)
	return name(n)
}

// readTime reads a date of the list itself.
func readTime(s *cryptobyte.String) (time.Time, error) {
	at, err := readDate(s)
	return time.Unix(at-yearOne, 0).UTC(), err
}

const yearOne = 62135596800 // seconds from the year 1 to 1970

// readDate reads UTCTime or GeneralizedTime as seconds since the year 1. Both have seconds and are in UTC (RFC 5280
// sections 4.1.2.5.1 and 4.1.2.5.2); other forms are refused.
func readDate(s *cryptobyte.String) (int64, error) {
	var text cryptobyte.String
	var tag cbasn1.Tag
	bad := true
	var year int
	switch {
	case !s.ReadAnyASN1(&text, &tag):
	case tag == cbasn1.UTCTime && len(text) == 13:
		if year = 1900 + two(text); year < 1950 {
			year += 100
		}
		bad = false
	case tag == cbasn1.GeneralizedTime && len(text) == 15:
		year = 100*two(text) + two(text[2:])
		text = text[2:]
		bad = false
	}
	if bad || text[12] != 'Z' {
		return 0, malformed("a date")
	}
	month, day, hour, minute, second := two(text[2:]), two(text[4:]), two(text[6:]), two(text[8:]), two(text[10:])
	days := daysUntil(year, month, day)
	if days < 0 || uint(hour) >= 24 || uint(minute) >= 60 || uint(second) >= 60 {
		return 0, malformed("a date")
	}
	return int64(days)*86400 + int64(hour*3600+minute*60+second), nil
}

// two reads two digits; it is very negative when they are none.
func two(s []byte) int {
	a, b := s[0]-'0', s[1]-'0'
	if a > 9 || b > 9 {
		return -1 << 20
	}
	return int(a)*10 + int(b)
}

// daysUntil counts the days from the first of the year 1; it is negative when there is no such day.
func daysUntil(year, month, day int) int {
	before := [...]int{0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365}
	if year < 1 || month < 1 || month > 12 || day < 1 {
		return -1
	}
	length, past := before[month]-before[month-1], before[month-1]
	if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
		if month == 2 {
			length++
		} else if month > 2 {
			past++
		}
	}
	if day > length {
		return -1
	}
	year--
	return year*365 + year/4 - year/100 + year/400 + past + day - 1
}

// readEntries fills l.entries.
func (l *CRL) readEntries(revoked cryptobyte.String) error {
	set := newFiller(len(revoked) / typicalEntry)
	fail := func(i int, err error) error { return fmt.Errorf("entry %d: %w", i, err) }
	rest := revoked
	for i := 1; !rest.Empty(); i++ {
		entry, serial, err := readSerial(&rest)
		if err == nil && len(entry) < smallestDate {
			err = malformed("a date")
		}
		if err != nil {
			return fail(i, err)
		}
		if serial != nil {
			set.reserve(serial)
		}
	}
	set.settle()
	for i := 1; !revoked.Empty(); i++ {
		entry, serial, _ := readSerial(&revoked)
		r, err := l.readEntry(entry)
		if err != nil {
			return fail(i, err)
		}
		if serial != nil {
			set.add(serial, r)
		}
	}
	set.flush()
	l.entries = set.entries
	return nil
}

// readSerial begins an entry. Serial numbers are told apart by the content of their INTEGER; one that no accepted
// certificate has, because it is not positive or too long, is nil. Kept, -5 would stand for 5 (threats C11).
func readSerial(revoked *cryptobyte.String) (entry cryptobyte.String, serial []byte, err error) {
	var number cryptobyte.String
	if !revoked.ReadASN1(&entry, cbasn1.SEQUENCE) || !entry.ReadASN1(&number, cbasn1.INTEGER) || !minimal(number) {
		return nil, nil, malformed("a serial number")
	}
	if number[0]&0x80 != 0 {
		return entry, nil, nil
	}
	if number[0] == 0 {
		number = number[1:]
	}
	if len(number) == 0 || len(number) > maxSerial {
		return entry, nil, nil
	}
	return entry, number, nil
}

// minimal reports whether the content of an INTEGER is DER.
func minimal(n []byte) bool {
	return len(n) == 1 || len(n) > 1 && !(n[0] == 0 && n[1] < 0x80 || n[0] == 0xff && n[1] >= 0x80)
}

// reasonOnly is how nearly all lists write crlEntryExtensions: a reasonCode, whose value is the last byte.
const reasonOnly = "\x30\x0c\x30\x0a\x06\x03\x55\x1d\x15\x04\x03\x0a\x01"

// readEntry reads what follows the serial number.
func (l *CRL) readEntry(in cryptobyte.String) (r revocation, err error) {
	if r.at, err = readDate(&in); err != nil {
		return r, err
	}
	if in.Empty() {
		return r, nil
	}
	if n := len(reasonOnly); len(in) == n+1 && string(in[:n]) == reasonOnly && in[n] < removeFromCRL {
		r.reason = int8(in[n])
		return r, nil
	}
	var extensions cryptobyte.String
	if !in.ReadASN1(&extensions, cbasn1.SEQUENCE) || !in.Empty() {
		return r, malformed("crlEntryExtensions")
	}
	reasoned := false
	for !extensions.Empty() {
		x, err := readExtension(&extensions)
		if err != nil {
			return r, err
		}
		switch {
		case x.is(derReason):
			var code int
			if reasoned || !x.value.ReadASN1Enum(&code) || !x.value.Empty() || code < 0 {
				return r, malformed("one reasonCode")
			}
			if code == removeFromCRL && l.base == nil {
				return r, errors.New("removeFromCRL stands in delta lists only")
			}
			reasoned, r.reason = true, int8(min(code, 127))
		case x.is(derIssuer):
			return r, errors.New("it names another issuer; indirect lists are not supported by this version")
		case x.is(derInvalid):
		case x.critical:
			return r, x.unknown()
		}
	}
	return r, nil
}

// extension is one of a list or of an entry.
type extension struct {
	oid      []byte // content of the OBJECT IDENTIFIER
	critical bool
	value    cryptobyte.String
}

// Contents of the OBJECT IDENTIFIERs, all of them below 2.5.29.
var (
	derNumber  = []byte{0x55, 0x1d, 20}
	derReason  = []byte{0x55, 0x1d, 21}
	derInvalid = []byte{0x55, 0x1d, 24}
	derDelta   = []byte{0x55, 0x1d, 27}
	derIDP     = []byte{0x55, 0x1d, 28}
	derIssuer  = []byte{0x55, 0x1d, 29}
	derAKI     = []byte{0x55, 0x1d, 35}
)

func (x *extension) is(oid []byte) bool { return string(x.oid) == string(oid) }

func (x *extension) unknown() error {
	text := "of an unreadable name"
	var oid asn1.ObjectIdentifier
	if whole := cryptobyte.String(append([]byte{byte(cbasn1.OBJECT_IDENTIFIER), byte(len(x.oid))}, x.oid...)); len(x.oid) < 128 && whole.ReadASN1ObjectIdentifier(&oid) {
		text = oid.String()
	}
	return fmt.Errorf("critical extension %s is not understood", escape(text, maxQuoted))
}

func readExtension(in *cryptobyte.String) (x extension, err error) {
	bad := "an extension"
	var seq, oid cryptobyte.String
	if !in.ReadASN1(&seq, cbasn1.SEQUENCE) {
		return x, malformed(bad)
	}
	named := seq
	if !seq.ReadASN1(&oid, cbasn1.OBJECT_IDENTIFIER) {
		return x, malformed(bad)
	}
	if len(oid) != 3 || oid[0] != 0x55 || oid[1] != 0x1d || oid[2] >= 0x80 {
		// Not one of ours, and cryptobyte is particular about how OBJECT IDENTIFIERs are written.
		var id asn1.ObjectIdentifier
		if !named.ReadASN1ObjectIdentifier(&id) {
			return x, malformed(bad)
		}
	}
	x.oid = oid
	if seq.PeekASN1Tag(cbasn1.BOOLEAN) && !seq.ReadASN1Boolean(&x.critical) {
		return x, malformed(bad)
	}
	if !seq.ReadASN1(&x.value, cbasn1.OCTET_STRING) || !seq.Empty() {
		return x, malformed(bad)
	}
	return x, nil
}

// readExtensions reads those of the list (RFC 5280 section 5.2).
func (l *CRL) readExtensions(in cryptobyte.String) error {
	if !in.ReadASN1(&in, cbasn1.SEQUENCE) {
		return malformed("crlExtensions")
	}
	var seen [4]bool
	for !in.Empty() {
		x, err := readExtension(&in)
		if err != nil {
			return err
		}
		known := slices.IndexFunc([][]byte{derNumber, derDelta, derIDP, derAKI}, x.is)
		if known < 0 {
			if x.critical {
				return x.unknown()
			}
			continue
		}
		if seen[known] {
			return fmt.Errorf("extension 2.5.29.%d stands there twice (RFC 5280 section 4.2)", x.oid[2])
		}
		seen[known] = true
		switch {
		case x.is(derNumber):
			l.number, err = readNumber(x.value)
		case x.is(derDelta):
			l.base, err = readNumber(x.value)
		case x.is(derIDP):
			l.part, err = readPart(x.value)
		case x.is(derAKI):
			l.keyID, err = readKeyID(x)
		}
		if err != nil {
			return err
		}
	}
	switch {
	case l.base == nil:
	case l.number == nil:
		return errors.New("it is a delta list without a number (RFC 5280 section 5.2.3), so there is no telling when it applies")
	case l.base.Cmp(l.number) >= 0:
		return fmt.Errorf("it is a delta list on number %v or later, which only applies to older lists than itself (RFC 5280 section 5.2.4), so to none", l.base)
	}
	return nil
}

func readNumber(in cryptobyte.String) (*big.Int, error) {
	var number cryptobyte.String
	if !in.ReadASN1(&number, cbasn1.INTEGER) || !in.Empty() || !minimal(number) || len(number) > maxNumber || number[0] >= 0x80 {
		return nil, errors.New("expected a CRL number of 0 or more of at most 20 octets (RFC 5280 section 5.2.3), found another")
	}
	return new(big.Int).SetBytes(number), nil
}

// readKeyID takes the key identifier alone. Without one the extension says nothing that could be compared.
func readKeyID(x extension) ([]byte, error) {
	var seq, id cryptobyte.String
	var present bool
	if x.critical || !x.value.ReadASN1(&seq, cbasn1.SEQUENCE) || !x.value.Empty() ||
		!seq.ReadOptionalASN1(&id, &present, cbasn1.Tag(0).ContextSpecific()) {
		return nil, malformed("an authorityKeyIdentifier that is not critical")
	}
	return bytes.Clone(id), nil
}
