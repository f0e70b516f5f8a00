package message

// Mitigation says what happens to requests that two readers could take for different ones. The names are those of AWS
// ALB's desync mitigation modes. The zero value is Strictest.
//
// One rule stands above all three: what has no single meaning is refused in every mode, because we pass on only what we
// write ourselves from what we read.
type Mitigation uint8

// The modes.
const (
	// Strictest refuses everything that the grammar of RFC 9112 does not have or permits to refuse.
	Strictest Mitigation = iota
	// Defensive passes what deviates and still has one meaning, in the form that it should have had; after an ambiguous
	// request both connections end.
	Defensive
	// Monitor passes what Defensive passes, and ends no connection.
	Monitor

	Mitigations = iota // how many there are
)

var mitigations = [Mitigations]string{Strictest: "strictest", Defensive: "defensive", Monitor: "monitor"}

// String returns the name of m as it is configured.
func (m Mitigation) String() string { return mitigations[m%Mitigations] }

// ParseMitigation finds a mode by its name. The empty name is Strictest, and so is every unknown one, with false.
func ParseMitigation(name string) (Mitigation, bool) {
	for m, s := range mitigations {
		if s == name {
			return Mitigation(m), true
		}
	}
	return Strictest, name == ""
}

// Class says how far a request is from what RFC 9112 asks for, in the classes of AWS ALB. They are ordered.
type Class uint8

// The classes. The zero value is Compliant.
const (
	Compliant  Class = iota
	Acceptable       // deviates, and is known to do no harm
	Ambiguous        // may be read in different ways
	Severe           // malformed, or made to be read in different ways

	Classes = iota // how many there are
)

// String returns the name as ALB's access log spells it.
func (c Class) String() string {
	return [Classes]string{"Compliant", "Acceptable", "Ambiguous", "Severe"}[c%Classes]
}

// ClassReason says why a request is in its class. The names are ALB's. The zero value is NoDeviation.
type ClassReason uint8

// The reasons, by class.
const (
	NoDeviation ClassReason = iota

	GetHeadZeroContentLength // GET or HEAD with Content-Length: 0
	NonCompliantHeader       // a control character, or a character that no name has, in a field that frames nothing
	NonCompliantVersion      // HTTP/0.9, HTTP/1.2 to 1.9, or white space around the version
	SpaceInUri
	NonCrLfLineTermination // a line that ends in LF alone

	AmbiguousUri                       // control, non-ASCII or fragment characters in the target, or a target of no known form
	BothTeClPresent                    // Transfer-Encoding and Content-Length
	DuplicateContentLength             // twice the same
	EmptyHeader                        // a header line without a name
	SuspiciousHeader                   // a name that can pass for Transfer-Encoding or Content-Length
	UndefinedContentLengthSemantics    // a body by Content-Length for GET or HEAD
	UndefinedTransferEncodingSemantics // a body by Transfer-Encoding for GET or HEAD, or in HTTP/1.0
	MultilineHeader                    // a folded header line
	PartialHeaderLine                  // the connection ended inside a line
	MissingLastEmptyLine               // the connection ended between two lines
	MissingHeaderColon
	MissingUri

	BadContentLength // not one decimal number
	BadHeader        // NUL or CR inside a header line
	BadTransferEncoding
	BadUri // NUL or CR in the target
	BadMethod
	BadVersion
	MultipleContentLength           // several that differ
	MultipleTransferEncodingChunked // chunked twice

	ClassReasons = iota // how many there are
)

var classReasons = [ClassReasons]struct {
	name  string
	class Class
}{
	NoDeviation: {"Compliant", Compliant},

	GetHeadZeroContentLength: {"GetHeadZeroContentLength", Acceptable},
	NonCompliantHeader:       {"NonCompliantHeader", Acceptable},
	NonCompliantVersion:      {"NonCompliantVersion", Acceptable},
	SpaceInUri:               {"SpaceInUri", Acceptable},
	NonCrLfLineTermination:   {"NonCrLfLineTermination", Acceptable},

	AmbiguousUri:                       {"AmbiguousUri", Ambiguous},
	BothTeClPresent:                    {"BothTeClPresent", Ambiguous},
	DuplicateContentLength:             {"DuplicateContentLength", Ambiguous},
	EmptyHeader:                        {"EmptyHeader", Ambiguous},
	SuspiciousHeader:                   {"SuspiciousHeader", Ambiguous},
	UndefinedContentLengthSemantics:    {"UndefinedContentLengthSemantics", Ambiguous},
	UndefinedTransferEncodingSemantics: {"UndefinedTransferEncodingSemantics", Ambiguous},
	MultilineHeader:                    {"MultilineHeader", Ambiguous},
	PartialHeaderLine:                  {"PartialHeaderLine", Ambiguous},
	MissingLastEmptyLine:               {"MissingLastEmptyLine", Ambiguous},
	MissingHeaderColon:                 {"MissingHeaderColon", Ambiguous},
	MissingUri:                         {"MissingUri", Ambiguous},

	BadContentLength:                {"BadContentLength", Severe},
	BadHeader:                       {"BadHeader", Severe},
	BadTransferEncoding:             {"BadTransferEncoding", Severe},
	BadUri:                          {"BadUri", Severe},
	BadMethod:                       {"BadMethod", Severe},
	BadVersion:                      {"BadVersion", Severe},
	MultipleContentLength:           {"MultipleContentLength", Severe},
	MultipleTransferEncodingChunked: {"MultipleTransferEncodingChunked", Severe},
}

// String returns the name as ALB's access log spells it.
func (r ClassReason) String() string { return classReasons[r%ClassReasons].name }

// Class returns the class that r puts a request in.
func (r ClassReason) Class() Class { return classReasons[r%ClassReasons].class }

// Worse returns the one of r and other that puts a request in the graver class; r if there is no difference.
func (r ClassReason) Worse(other ClassReason) ClassReason {
	if other.Class() > r.Class() {
		return other
	}
	return r
}
