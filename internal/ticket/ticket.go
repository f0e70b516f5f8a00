// Package ticket seals TLS sessions so that one can be resumed only under the policy it was earned under, and for at
// most an hour from the handshake in which the client proved its key.
//
// A ticket is the whole session, sealed for its owner to keep (RFC 5077, RFC 8446 section 4.6.1). What opens it decides
// where it is worth something, so the key is derived from the Scope, and the server name and TLS version are
// authenticated with it. A ticket that does not fit is no error: the client gets a full handshake.
//
// Resumption proves that the client once was who it says, and nothing about now. Whoever installs a Session verifies the
// chain in VerifyConnection, which crypto/tls calls for resumed sessions too, before anything is believed.
package ticket

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"time"
)

// Lifetime is how long after the client proved its key its sessions can be resumed. Renewed tickets carry the time of
// that proof, so that resuming does not prolong it (A05).
const Lifetime = time.Hour

// skew is how far in the future that proof may be: the wall clock can be set back a little.
const skew = time.Minute

// maxTicket bounds a ticket, and so the chain in it. TLS allows 64 KiB, but clients built on BoringSSL end a connection
// whose NewSessionTicket message is longer than 16 KiB, and Java's at 32 KiB (B22).
const maxTicket = 16000

// Scope is what a ticket belongs to; a ticket of one scope is noise in another. It covers all that decides whether and
// how a client is verified. The zero Scope is nobody's: it issues and takes no tickets.
type Scope [sha256.Size]byte

// ScopeOf is the scope of all parts in their order. No two lists of parts share one: each stands behind its length.
func ScopeOf(parts ...string) Scope {
	b := make([]byte, 0, 512)
	for _, p := range parts {
		b = append(binary.BigEndian.AppendUint64(b, uint64(len(p))), p...)
	}
	return sha256.Sum256(b)
}

// Why an offered ticket was not taken. The texts hold nothing of the client's.
var (
	errSize       = errors.New("session ticket: not of a length that is issued here")
	errFormat     = errors.New("session ticket: of another format, or the stand-in for a session too large to seal")
	errGeneration = errors.New("session ticket: its key is gone: too old, or from before a restart")
	errSeal       = errors.New("session ticket: sealed for another listener, policy, trust store, TLS version or server name, or altered")
	errContent    = errors.New("session ticket: content is not what its scope seals")
	errAge        = errors.New("session ticket: the client proved its key more than an hour ago")
	errFuture     = errors.New("session ticket: the client proved its key in the future: the clock was set back")
	errLibrary    = errors.New("session ticket: crypto/tls cannot resume it: other cipher suite, or the certificate has expired or is no longer asked for")
)

// errChain ends a resumed handshake. Nothing but a bug brings it about, here or in crypto/tls.
var errChain = errors.New("resumed session: its certificates are not those its ticket was sealed with; tickets must be off until this is understood")

// Session is the tickets of one connection: the one the client offers and the one it is given. Make it with Keys.Session.
// It serves one handshake and is not safe for concurrent use; crypto/tls calls it from the handshake only.
type Session struct {
	// CertificateOnly gives no ticket to a client that showed no certificate, so that it is asked again when it comes back,
	// for it may have one by then.
	CertificateOnly bool
	// Only13 neither gives nor takes tickets in TLS 1.2, where they pass in clear and whoever has the secret of a session can
	// resume it: the secrets of this one are told to somebody.
	Only13 bool

	keys  *Keys
	scope Scope
	began time.Time // of the handshake: no later than a proof in it

	// Of the ticket last opened, and it. crypto/tls stops at the one it resumes, and need not resume it.
	opened *claim
	ticket []byte
	// Why the ticket last offered was not opened.
	declined error

	// summed is the chain that sum is of: of the client's there is one, and its certificates do not change.
	summed []*x509.Certificate
	sum    [sha256.Size]byte
}

// Session returns the tickets of a connection whose handshake begins now.
func (k *Keys) Session(scope Scope) *Session {
	return &Session{keys: k, scope: scope, began: k.now()}
}

// Install makes c issue and take tickets of s only. It is the last to touch c, which must be this connection's own: it
// goes around c.VerifyConnection. It gives c no keys, for crypto/tls has no use for any beside the two functions. Should it
// ever find one, then not the parent's, which opens the tickets of all hosts and outlives this connection: a Config that
// returns c from GetConfigForClient is to have SessionTicketsDisabled (A04, A08).
func (s *Session) Install(c *tls.Config) {
	if s.scope == (Scope{}) {
		c.SessionTicketsDisabled = true
		return
	}
	c.SessionTicketsDisabled = false
	c.WrapSession, c.UnwrapSession = s.wrap, s.unwrap
	verify := c.VerifyConnection
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if cs.DidResume && (s.opened == nil || s.opened.chain != s.sumOf(cs.PeerCertificates)) {
			return errChain
		}
		if verify == nil {
			return nil
		}
		return verify(cs)
	}
}

// Authenticated is when the client of the connection with state cs proved its key, or came without one: in this
// handshake, or in the one that its session goes back to. It may be asked from VerifyConnection on.
func (s *Session) Authenticated(cs tls.ConnectionState) time.Time {
	if cs.DidResume && s.opened != nil {
		return s.opened.at
	}
	return s.began
}

// Declined says why the connection with state cs does not resume the session it was offered; nil if it does, and if
// none was offered.
func (s *Session) Declined(cs tls.ConnectionState) error {
	switch {
	case cs.DidResume:
		return nil
	case s.opened != nil:
		return errLibrary
	}
	return s.declined
}

// wrap is tls.Config.WrapSession. An error would end the connection, so that there is none: what cannot be sealed gets a
// ticket that opens nothing.
//
// For a resumed TLS 1.3 session crypto/tls calls it before VerifyConnection. Such a ticket is worth as much as the one
// that was offered, and is verified when it comes back.
//
// In TLS 1.2 a resumed session keeps its secret, and tickets pass in clear: a new one would tell whoever sees all connections
// as much as the old one does, and be worth as much to its owner. So that goes back.
func (s *Session) wrap(cs tls.ConnectionState, state *tls.SessionState) ([]byte, error) {
	c := claim{scope: s.scope, at: s.Authenticated(cs), chain: s.sumOf(cs.PeerCertificates)}
	if s.CertificateOnly && len(cs.PeerCertificates) == 0 || s.Only13 && cs.Version < tls.VersionTLS13 {
		return nothing(cs), nil
	}
	if cs.Version < tls.VersionTLS13 && cs.DidResume && s.opened != nil && s.opened.chain == c.chain {
		return s.ticket, nil
	}
	// crypto/tls carries over nothing of the old session's Extra.
	state.Extra = append(state.Extra, c.append(make([]byte, 0, claimSize)))
	if plain, err := state.Bytes(); err == nil && overhead+len(plain) <= maxTicket {
		return s.keys.current().seal(s.scope, cs, plain), nil
	}
	return nothing(cs), nil
}

// nothing is a ticket that opens nothing.
func nothing(cs tls.ConnectionState) []byte {
	if cs.Version < tls.VersionTLS13 {
		return nil // the server has changed its mind (RFC 5077 section 3.3)
	}
	return []byte{formatNone} // there, a ticket has at least one byte (RFC 8446 section 4.6.1)
}

// unwrap is tls.Config.UnwrapSession. An error would end the connection, so that there is none. It is called for up to
// five tickets of a client that has proven nothing, and in TLS 1.2 also when none was offered.
func (s *Session) unwrap(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
	s.opened, s.ticket, s.declined = nil, nil, nil
	if len(ticket) == 0 || s.Only13 && cs.Version < tls.VersionTLS13 {
		return nil, nil
	}
	state, c, err := s.open(ticket, cs)
	if err != nil {
		s.declined = err
		return nil, nil
	}
	s.opened, s.ticket = &c, ticket
	return state, nil
}

func (s *Session) open(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, claim, error) {
	if ticket[0] != formatSealed {
		return nil, claim{}, errFormat
	}
	if len(ticket) <= overhead || len(ticket) > maxTicket {
		return nil, claim{}, errSize
	}
	g := s.keys.find(ticket[1:headerSize])
	if g == nil {
		return nil, claim{}, errGeneration
	}
	plain, err := g.open(s.scope, cs, ticket)
	if err != nil {
		return nil, claim{}, errSeal
	}
	state, err := tls.ParseSessionState(plain)
	if err != nil {
		return nil, claim{}, errContent
	}
	c, ok := findClaim(state.Extra)
	if !ok || c.scope != s.scope {
		return nil, claim{}, errContent
	}
	switch age := s.began.Sub(c.at); {
	case age > Lifetime:
		return nil, claim{}, errAge
	case age < -skew:
		return nil, claim{}, errFuture
	}
	return state, c, nil
}

// claim is our entry in SessionState.Extra.
type claim struct {
	scope Scope
	at    time.Time         // of the handshake in which the client proved its key; on the second, rounded down
	chain [sha256.Size]byte // chainSum of what it presented
}

// mark begins our entry in SessionState.Extra and tells it from those of others.
const mark = "countersign session 1\x00"

const claimSize = len(mark) + len(Scope{}) + 8 + sha256.Size

func (c *claim) append(b []byte) []byte {
	b = append(b, mark...)
	b = append(b, c.scope[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(c.at.Unix()))
	return append(b, c.chain[:]...)
}

// findClaim finds our entry. Two are as bad as none.
func findClaim(extra [][]byte) (c claim, found bool) {
	for _, e := range extra {
		if len(e) < len(mark) || string(e[:len(mark)]) != mark {
			continue
		}
		if found || len(e) != claimSize {
			return claim{}, false
		}
		e = e[len(mark):]
		e = e[copy(c.scope[:], e):]
		c.at = time.Unix(int64(binary.BigEndian.Uint64(e)), 0)
		copy(c.chain[:], e[8:])
		found = true
	}
	return c, found
}

// sumOf is chainSum of chain, which is not hashed again while it is the same list.
func (s *Session) sumOf(chain []*x509.Certificate) [sha256.Size]byte {
	if len(chain) == 0 {
		return chainSum(nil)
	}
	if len(s.summed) != len(chain) || &s.summed[0] != &chain[0] {
		s.summed, s.sum = chain, chainSum(chain)
	}
	return s.sum
}

// chainSum is a hash over a presented chain: each certificate, behind its length, their number and their order.
func chainSum(chain []*x509.Certificate) [sha256.Size]byte {
	h, size := sha256.New(), make([]byte, 8)
	for _, c := range chain {
		binary.BigEndian.PutUint64(size, uint64(len(c.Raw)))
		h.Write(size)
		h.Write(c.Raw)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
