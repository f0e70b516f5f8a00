package policy

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"net/netip"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"countersign/internal/identity"
)

// Bounds of what a rule may read. A fact beyond them fails the rule whatever the rest of it says: cut short, it would be
// another fact.
const (
	maxValue   = 8 << 10 // bytes of a name, path, query or header
	maxEntry   = 2 << 10 // bytes of an entry of a list
	maxEntries = 100
	maxOID     = 64 // bytes of DER: printing longer ones is quadratic
)

// values are what rules have read of one identity, kept so that a connection pays for it once.
type values [len(clientVariables)]ref.Val

// unusable is a fact that no rule may see.
func unusable(format string, args ...any) ref.Val { return types.NewErr(format, args...) }

func text(s string) ref.Val {
	if len(s) > maxValue {
		return unusable("expected at most %d bytes, found %d", maxValue, len(s))
	}
	return types.String(s)
}

// list makes a list whose entries are ready to be read without allocation.
func list(entries []string) ref.Val {
	if len(entries) > maxEntries {
		return unusable("expected at most %d entries, found %d", maxEntries, len(entries))
	}
	boxed := make([]ref.Val, len(entries))
	for i, s := range entries {
		if len(s) > maxEntry {
			return unusable("expected entries of at most %d bytes, found one of %d", maxEntry, len(s))
		}
		boxed[i] = types.String(s)
	}
	return types.NewRefValList(types.DefaultTypeAdapter, boxed)
}

func hexSHA256(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// Object identifiers of attributes of names, contents octets.
const (
	oidCommonName   = "\x55\x04\x03"
	oidOrganization = "\x55\x04\x0a"
	oidUnit         = "\x55\x04\x0b"
)

// walkName calls visit for each attribute of a name, in its order, and reports whether the name is well-formed. Alone says
// that the attribute is the only one of its RDN.
func walkName(rawName []byte, visit func(oid string, tag asn1.Tag, value []byte, alone bool)) bool {
	input, rdns := cryptobyte.String(rawName), cryptobyte.String(nil)
	if !input.ReadASN1(&rdns, asn1.SEQUENCE) || !input.Empty() {
		return false
	}
	for !rdns.Empty() {
		var set, pair, kind, value cryptobyte.String
		var tag asn1.Tag
		if !rdns.ReadASN1(&set, asn1.SET) {
			return false
		}
		for first := true; !set.Empty(); first = false {
			if !set.ReadASN1(&pair, asn1.SEQUENCE) || !pair.ReadASN1(&kind, asn1.OBJECT_IDENTIFIER) ||
				!pair.ReadAnyASN1(&value, &tag) || !pair.Empty() {
				return false
			}
			visit(string(kind), tag, value, first && set.Empty())
		}
	}
	return true
}

// attributes returns the values of one type of attribute in a name. Only what can be read in one way counts (B09): text
// in UTF8String or PrintableString, not empty and without control characters, that is alone in its RDN. It is not ok if
// there are others.
func attributes(rawName []byte, oid string) (found []string, ok bool) {
	ok = true
	whole := walkName(rawName, func(kind string, tag asn1.Tag, value []byte, alone bool) {
		switch {
		case kind != oid:
		case !alone || len(value) == 0 || tag != asn1.UTF8String && tag != asn1.PrintableString || !printable(string(value)):
			ok = false
		default:
			found = append(found, string(value))
		}
	})
	return found, ok && whole
}

// subject prints the subject. In the old string types the same octets are different characters to different readers, or
// different octets the same characters, so a subject that has one cannot be compared (B09).
func subject(id *identity.Identity) ref.Val {
	const universalString, bmpString = asn1.Tag(28), asn1.Tag(30) // X.680 section 8.4
	old := false
	walkName(id.Leaf().RawSubject, func(_ string, tag asn1.Tag, _ []byte, _ bool) {
		old = old || tag == asn1.T61String || tag == bmpString || tag == universalString
	})
	if old {
		return unusable("expected a subject in UTF8String and PrintableString, found an older string type")
	}
	return text(id.Subject())
}

// commonName is the one CN of a subject, and nothing for a subject that has none, several, or one that can be read in two
// ways.
func commonName(id *identity.Identity) ref.Val {
	names, ok := attributes(id.Leaf().RawSubject, oidCommonName)
	if !ok || len(names) != 1 {
		return types.String("")
	}
	return text(names[0])
}

func subjectList(oid string) func(*identity.Identity) ref.Val {
	return func(id *identity.Identity) ref.Val {
		names, _ := attributes(id.Leaf().RawSubject, oid)
		return list(names)
	}
}

// The tags of GeneralName (RFC 5280 section 4.2.1.6).
const (
	sanEmail = asn1.Tag(1 | 0x80)
	sanDNS   = asn1.Tag(2 | 0x80)
	sanURI   = asn1.Tag(6 | 0x80)
	sanIP    = asn1.Tag(7 | 0x80)
)

// altNames returns the alternative names of one kind, octet for octet as they are signed. One that is empty or not visible
// ASCII makes them all unusable (B10).
func altNames(tag asn1.Tag) func(*identity.Identity) ref.Val {
	return func(id *identity.Identity) ref.Val {
		var names []string
		spiffe := 0
		for _, ext := range id.Leaf().Extensions {
			if ext.Id.String() != "2.5.29.17" {
				continue
			}
			input, all := cryptobyte.String(ext.Value), cryptobyte.String(nil)
			if !input.ReadASN1(&all, asn1.SEQUENCE) || !input.Empty() {
				return unusable("expected subjectAltName in DER, found something else")
			}
			for !all.Empty() {
				var value cryptobyte.String
				var kind asn1.Tag
				if !all.ReadAnyASN1(&value, &kind) {
					return unusable("expected subjectAltName in DER, found something else")
				}
				if kind != tag {
					continue
				}
				name := string(value)
				if tag == sanIP {
					addr, ok := netip.AddrFromSlice(value)
					if !ok {
						return unusable("expected an IP address of 4 or 16 bytes, found %d", len(value))
					}
					name = addr.Unmap().String()
				}
				if name == "" { // which equals a header that is not there (B29)
					return unusable("expected names in visible ASCII, found an empty one")
				}
				for _, c := range []byte(name) {
					if c <= ' ' || c >= 0x7f {
						return unusable("expected names in visible ASCII, found the byte %#02x", c)
					}
				}
				const scheme = "spiffe:"
				if tag == sanURI && len(name) >= len(scheme) && strings.EqualFold(name[:len(scheme)], scheme) {
					spiffe++
				}
				if names = append(names, name); len(names) > maxEntries {
					break
				}
			}
		}
		if spiffe > 1 { // whom it speaks for depends on who reads it (B11)
			return unusable("expected at most one SPIFFE ID, found %d", spiffe)
		}
		return list(names)
	}
}

// usageNames are the names that RFC 5280 section 4.2.1.12 and OpenSSL's documentation give extended key usages.
var usageNames = map[x509.ExtKeyUsage]string{
	x509.ExtKeyUsageAny:             "anyExtendedKeyUsage",
	x509.ExtKeyUsageServerAuth:      "serverAuth",
	x509.ExtKeyUsageClientAuth:      "clientAuth",
	x509.ExtKeyUsageCodeSigning:     "codeSigning",
	x509.ExtKeyUsageEmailProtection: "emailProtection",
	x509.ExtKeyUsageTimeStamping:    "timeStamping",
	x509.ExtKeyUsageOCSPSigning:     "OCSPSigning",
}

func usages(id *identity.Identity) ref.Val {
	var names []string
	for _, u := range id.Leaf().ExtKeyUsage {
		if name := usageNames[u]; name != "" {
			names = append(names, name)
		} else {
			names = append(names, u.OID().String())
		}
	}
	for _, oid := range id.Leaf().UnknownExtKeyUsage {
		if len(oid) > maxOID || len(names) > maxEntries {
			return unusable("expected fewer or shorter key usages")
		}
		names = append(names, oid.String())
	}
	return list(names)
}

func policies(id *identity.Identity) ref.Val {
	var names []string
	for _, oid := range id.Leaf().Policies {
		if der, err := oid.MarshalBinary(); err != nil || len(der) > maxOID || len(names) > maxEntries {
			return unusable("expected fewer or shorter policies")
		}
		names = append(names, oid.String())
	}
	return list(names)
}

func issuers(id *identity.Identity) ref.Val {
	var prints []string
	for _, cert := range id.Chain()[1:] {
		prints = append(prints, hexSHA256(cert.Raw))
	}
	return list(prints)
}

func anchorSubject(id *identity.Identity) ref.Val {
	chain := id.Chain()
	name, err := identity.AppendName(nil, chain[len(chain)-1].RawSubject)
	if err != nil {
		return unusable("expected an anchor with a subject that can be printed")
	}
	return text(string(name))
}
