package probe

import (
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/crypto/cryptobyte"
)

// Everything that is read here comes from strangers. The bounds are those of the protocol, and those of patience.
const (
	maxRecord   = 16<<10 + 2048 // RFC 5246 section 6.2.3
	maxMessage  = 128 << 10
	maxRecords  = 512 // of one flight
	maxBanner   = 512 // bytes of what is not TLS
	maxWarnings = 8
)

const (
	recordChangeCipher = 20
	recordAlert        = 21
	recordHandshake    = 22
	recordData         = 23

	messageClientHello        = 1
	messageServerHello        = 2
	messageCertificate        = 11
	messageServerKeyExchange  = 12
	messageCertificateRequest = 13
	messageServerHelloDone    = 14
	messageCertificateStatus  = 22
)

// alertError is an alert that ended what was read.
type alertError struct{ alert Alert }

func (e *alertError) Error() string { return "TLS alert " + e.alert.String() }

// notTLSError is an answer that is no record of TLS.
type notTLSError struct{ first []byte }

func (e *notTLSError) Error() string { return fmt.Sprintf("no TLS: %q", e.first) }

// errMalformed is wrapped by what is said about messages that cannot be read.
var errMalformed = errors.New("malformed TLS message")

func malformed(what string) error { return fmt.Errorf("%w: %s", errMalformed, what) }

// messages reads handshake messages that are not encrypted.
type messages struct {
	r        io.Reader
	buf      []byte // of records, not yet consumed
	records  int
	warnings []Alert
}

// next returns the next message. It is valid until the call after.
func (m *messages) next() (kind uint8, body []byte, err error) {
	for {
		if len(m.buf) >= 4 {
			n := int(m.buf[1])<<16 | int(m.buf[2])<<8 | int(m.buf[3])
			if n > maxMessage {
				return 0, nil, malformed(fmt.Sprintf("expected a message of at most %d bytes, found one of %d", maxMessage, n))
			}
			if len(m.buf) >= 4+n {
				kind, body = m.buf[0], m.buf[4:4+n:4+n]
				m.buf = m.buf[4+n:]
				return kind, body, nil
			}
		}
		if err := m.record(); err != nil {
			return 0, nil, err
		}
	}
}

func (m *messages) record() error {
	var head [5]byte
	if n, err := io.ReadFull(m.r, head[:]); err != nil {
		if n > 0 && m.records == 0 && !plausible(head[:n]) {
			return &notTLSError{head[:n:n]}
		}
		return err
	}
	n := int(head[3])<<8 | int(head[4])
	if m.records == 0 && (!plausible(head[:]) || n > maxRecord) {
		first := make([]byte, maxBanner)
		copy(first, head[:])
		rest, _ := io.ReadAtLeast(m.r, first[5:], 1) // what came with it; a banner that is cut serves too
		return &notTLSError{first[:5+rest]}
	}
	if m.records++; m.records > maxRecords {
		return malformed(fmt.Sprintf("expected an answer of at most %d records, found more", maxRecords))
	}
	switch {
	case !plausible(head[:]):
		return malformed(fmt.Sprintf("record of type %d and version 0x%02x%02x", head[0], head[1], head[2]))
	case n > maxRecord:
		return malformed(fmt.Sprintf("expected a record of at most %d bytes, found one of %d", maxRecord, n))
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(m.r, body); err != nil {
		return err
	}
	switch head[0] {
	case recordAlert:
		if n != 2 {
			return malformed(fmt.Sprintf("alert of %d bytes", n))
		}
		a := Alert(body[1])
		if body[0] == 2 || a == 0 || len(m.warnings) == maxWarnings {
			return &alertError{a}
		}
		m.warnings = append(m.warnings, a) // such as unrecognized_name, which OpenSSL only warns of
	case recordHandshake:
		m.buf = append(m.buf, body...)
	case recordChangeCipher: // for middleboxes (RFC 8446 appendix D.4)
	default:
		return malformed("application data before the handshake was over")
	}
	return nil
}

// plausible says whether this can be the beginning of a record.
func plausible(head []byte) bool {
	return head[0] >= recordChangeCipher && head[0] <= recordData && (len(head) < 2 || head[1] == 3)
}

// flight is what a server answered to a ClientHello.
type flight struct {
	hello  serverHello
	certs  [][]byte
	staple []byte
	group  tls.CurveID // of the key exchange; 0 when there was none, or not known
	dhBits int         // of the prime of a DHE key exchange
	asked  *certRequest
	done   bool // all of it was there
	// warnings came before, and did not end it.
	warnings []Alert
}

// serverHello are the fields that are of interest.
type serverHello struct {
	version uint16
	suite   uint16
	retry   bool // a HelloRetryRequest
	session bool // it can be resumed by its identifier
	ticket  bool // a session ticket will come
	secure  bool // renegotiation_info
	extends bool // extended_master_secret
	alpn    string
	group   tls.CurveID
}

// certRequest is what a server wants of clients (RFC 5246 section 7.4.4, RFC 8446 section 4.3.2).
type certRequest struct {
	types   []uint8 // before TLS 1.3
	schemes []tls.SignatureScheme
	names   [][]byte
}

// readFlight reads the answer to a ClientHello. With whole it reads on to the end of what is not encrypted; the flight
// that is returned beside an error has what came before it, and is nil before there was a ServerHello.
func readFlight(r io.Reader, whole bool) (*flight, error) {
	m := &messages{r: r}
	kind, body, err := m.next()
	if err != nil {
		return nil, err
	}
	if kind != messageServerHello {
		return nil, malformed(fmt.Sprintf("expected a ServerHello, found message type %d", kind))
	}
	f := &flight{}
	if f.hello, err = parseServerHello(body); err != nil {
		return nil, err
	}
	f.group, f.warnings = f.hello.group, m.warnings
	if f.hello.version == tls.VersionTLS13 || !whole {
		return f, nil
	}
	for range 16 {
		kind, body, err := m.next()
		f.warnings = m.warnings
		if err != nil {
			return f, err
		}
		switch kind {
		case messageCertificate:
			f.certs, err = parseCertificates(body)
		case messageCertificateStatus:
			f.staple, err = parseStatus(body)
		case messageServerKeyExchange:
			f.group, f.dhBits = parseKeyExchange(body, suiteName(f.hello.suite))
		case messageCertificateRequest:
			f.asked, err = parseCertificateRequest(body, f.hello.version)
		case messageServerHelloDone:
			f.done = true
			return f, nil
		}
		if err != nil {
			return f, err
		}
	}
	return f, malformed("expected ServerHelloDone, found ever more messages")
}

// retryRandom marks a HelloRetryRequest (RFC 8446 section 4.1.3).
var retryRandom = sha256.Sum256([]byte("HelloRetryRequest"))

func parseServerHello(body []byte) (h serverHello, err error) {
	in := cryptobyte.String(body)
	var random, session, extensions cryptobyte.String
	var compression uint8
	if !in.ReadUint16(&h.version) || !in.ReadBytes((*[]byte)(&random), 32) || !in.ReadUint8LengthPrefixed(&session) || len(session) > 32 ||
		!in.ReadUint16(&h.suite) || !in.ReadUint8(&compression) {
		return h, malformed("ServerHello")
	}
	h.session = len(session) > 0
	h.retry = string(random) == string(retryRandom[:])
	if in.Empty() { // RFC 5246 section 7.4.1.3
		return h, nil
	}
	if !in.ReadUint16LengthPrefixed(&extensions) || !in.Empty() {
		return h, malformed("extensions of the ServerHello")
	}
	for !extensions.Empty() {
		var id uint16
		var value cryptobyte.String
		if !extensions.ReadUint16(&id) || !extensions.ReadUint16LengthPrefixed(&value) {
			return h, malformed("extension of the ServerHello")
		}
		ok := true
		switch id {
		case extSupportedVersions:
			ok = value.ReadUint16(&h.version) && value.Empty()
		case extKeyShare:
			ok = value.ReadUint16((*uint16)(&h.group)) // the share itself is of no use here
		case extALPN:
			var list, name cryptobyte.String
			ok = value.ReadUint16LengthPrefixed(&list) && list.ReadUint8LengthPrefixed(&name) && list.Empty() && value.Empty()
			h.alpn = string(name)
		case extSessionTicket:
			h.ticket = true
		case extRenegotiationInfo:
			h.secure = true
		case extExtendedMaster:
			h.extends = true
		}
		if !ok {
			return h, malformed(fmt.Sprintf("extension %d of the ServerHello", id))
		}
	}
	return h, nil
}

func parseCertificates(body []byte) (list [][]byte, err error) {
	in := cryptobyte.String(body)
	var all cryptobyte.String
	if !in.ReadUint24LengthPrefixed(&all) || !in.Empty() {
		return nil, malformed("Certificate")
	}
	for !all.Empty() {
		var der cryptobyte.String
		if !all.ReadUint24LengthPrefixed(&der) || der.Empty() {
			return list, malformed("a certificate in Certificate")
		}
		list = append(list, der)
	}
	return list, nil
}

func parseStatus(body []byte) ([]byte, error) {
	in := cryptobyte.String(body)
	var kind uint8
	var der cryptobyte.String
	if !in.ReadUint8(&kind) || kind != 1 || !in.ReadUint24LengthPrefixed(&der) || !in.Empty() {
		return nil, malformed("CertificateStatus")
	}
	return der, nil
}

// parseKeyExchange reads the group of an ECDHE exchange (RFC 8422 section 5.4), or the size of a DHE prime; what it does
// not understand tells nothing.
func parseKeyExchange(body []byte, suite string) (id tls.CurveID, dhBits int) {
	in := cryptobyte.String(body)
	var kind uint8
	var prime cryptobyte.String
	switch {
	case strings.HasPrefix(suite, "TLS_ECDH"):
		if !in.ReadUint8(&kind) || kind != 3 || !in.ReadUint16((*uint16)(&id)) {
			id = 0
		}
	case strings.HasPrefix(suite, "TLS_DH"):
		if in.ReadUint16LengthPrefixed(&prime) {
			dhBits = 8 * len(strings.TrimLeft(string(prime), "\x00"))
		}
	}
	return id, dhBits
}

func parseCertificateRequest(body []byte, version uint16) (*certRequest, error) {
	in := cryptobyte.String(body)
	r := &certRequest{}
	var types, algorithms, names cryptobyte.String
	if !in.ReadUint8LengthPrefixed(&types) {
		return nil, malformed("types of the CertificateRequest")
	}
	r.types = types
	if version >= tls.VersionTLS12 {
		if !in.ReadUint16LengthPrefixed(&algorithms) || len(algorithms)%2 != 0 {
			return nil, malformed("signature algorithms of the CertificateRequest")
		}
		for !algorithms.Empty() {
			var id uint16
			algorithms.ReadUint16(&id)
			r.schemes = append(r.schemes, tls.SignatureScheme(id))
		}
	}
	if !in.ReadUint16LengthPrefixed(&names) || !in.Empty() {
		return nil, malformed("CA names of the CertificateRequest")
	}
	for !names.Empty() {
		var name cryptobyte.String
		if !names.ReadUint16LengthPrefixed(&name) {
			return nil, malformed("a CA name of the CertificateRequest")
		}
		r.names = append(r.names, name)
	}
	return r, nil
}
