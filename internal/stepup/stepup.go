// Package stepup owns what is remembered of a step-up: how a browser without a certificate gets from a route that wants
// one to a host that asks for it in its handshake, and back with proof that it was there. It does no I/O, decides nothing
// about trust, and knows neither cookies' syntax nor redirects beyond the names it gives them.
//
// Four texts are handed out. Begin makes an ask, which goes to the other host in the URL, and a step, which stays in a
// cookie of the browser that begins; both are sealed and nothing is kept of them, so that those who have no certificate
// can fill no table. Issue makes a code, which goes back in the URL, is good for CodeTime and for one use, and only
// together with the step of the browser that began. Open makes a session, which is the cookie of the requests that follow.
package stepup

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"time"
)

// The cookies. The prefix has browsers accept them only over TLS, only for this host and only for all its paths (RFC
// 6265bis section 4.1.3.2), so that no sibling host can set them.
const (
	SessionCookie = "__Host-countersign-cert"
	StepCookie    = "__Host-countersign-step"
)

// The paths that hosts with a part in a step-up answer themselves (RFC 8615).
const (
	Reserved   = "/.well-known/countersign/"
	AskPath    = Reserved + "step-up"
	ReturnPath = AskPath + "/return"
)

// How long things are good for.
const (
	AskTime     = 5 * time.Minute // from the redirect to the return: a person finds a smart card and its PIN in it
	CodeTime    = 30 * time.Second
	MaxLifetime = 15 * time.Minute // of a session
)

// MaxTarget is the longest path with query, in bytes, that Begin takes: with it the step still fits into the 4096 bytes
// that browsers keep of a cookie.
const MaxTarget = 2 << 10

// Bounds of the tables. Both hold only what clients with a verified certificate brought about.
const (
	maxCodes          = 4096
	maxSessions       = 16384
	maxPerCertificate = 8
	maxBytes          = 32 << 20 // of certificates, in each table
)

// Error says why a text is not accepted. It is a constant: nothing of what was sent is repeated.
type Error string

func (e Error) Error() string { return string(e) }

// The refusals.
const (
	ErrAsk     Error = "a step-up that was not begun here, or has been changed"
	ErrAskOver Error = "a step-up that was begun more than 5m ago"
	ErrCode    Error = "a code that was never given, was used before, or is older than 30s"
	ErrNoStep  Error = "no cookie of the browser that began"
	ErrStep    Error = "a cookie that was not set here, or is older than 5m"
	ErrBrowser Error = "a code that was given to another browser, or for another step-up"
)

// Key names a site: one route as one origin serves it. The zero value names none.
type Key [16]byte

// KeyOf makes the key of what parts say together; it changes when any of them does.
func KeyOf(parts ...string) (k Key) {
	h := sha256.New()
	for _, p := range parts {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
	copy(k[:], h.Sum(nil))
	return k
}

type hash = [sha256.Size]byte

// Table remembers codes and sessions. What it hands out ends with the process: after a restart every browser begins again.
// All methods may be called from any goroutine. Make it with New.
type Table struct {
	now    func() time.Time
	secret [32]byte

	mu       sync.Mutex
	codes    shelf[*given]
	sessions shelf[*Session]
}

// given is a code.
type given struct {
	site      Key
	nonce     hash // of the step's nonce
	presented []*x509.Certificate
}

// New makes a table; now is the clock.
func New(now func() time.Time) *Table {
	t := &Table{now: now, codes: newShelf[*given](maxCodes, CodeTime), sessions: newShelf[*Session](maxSessions, MaxLifetime)}
	rand.Read(t.secret[:])
	return t
}

// Begin starts a step-up for site. target is the path with query that the browser asked for and comes back to; it is at
// most MaxTarget bytes long. ask goes to the other host, step into StepCookie.
func (t *Table) Begin(site Key, target string) (ask, step string) {
	var nonce [32]byte
	rand.Read(nonce[:])
	public := sha256.Sum256(nonce[:])
	until := binary.BigEndian.AppendUint64(nil, uint64(t.now().Add(AskTime).Unix()))
	ask = t.seal(sealAsk, slices.Concat(until, site[:], public[:]))
	step = t.seal(sealStep, slices.Concat(until, site[:], nonce[:], []byte(target)))
	return ask, step
}

// Ask is an ask that was verified. The zero value is for no site.
type Ask struct {
	Site  Key
	nonce hash
}

// Asked verifies an ask that a browser brought.
func (t *Table) Asked(ask string) (Ask, error) {
	body, until, ok := t.open(sealAsk, ask)
	switch {
	case !ok || len(body) != len(Key{})+sha256.Size:
		return Ask{}, ErrAsk
	case !t.now().Before(until):
		return Ask{}, ErrAskOver
	}
	return Ask{Key(body[:len(Key{})]), hash(body[len(Key{}):])}, nil
}

// Issue makes the code for a browser whose client certificate, leaf first, was verified.
func (t *Table) Issue(a Ask, presented []*x509.Certificate) (code string) {
	code = token()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.codes.put(t.now(), sha256.Sum256([]byte(code)), presented, &given{a.Site, a.nonce, presented})
	return code
}

// Returned is a browser that came back. The zero value is nobody.
type Returned struct {
	Site Key
	// Target is what Begin was given.
	Target string
	// Presented is the chain that was verified when the code was made, leaf first.
	Presented []*x509.Certificate
}

// Redeem uses code up, whatever comes of it, and compares it with the step of the browser that brings it.
func (t *Table) Redeem(code, step string) (Returned, error) {
	now := t.now()
	t.mu.Lock()
	g, ok := t.codes.take(now, sha256.Sum256([]byte(code)))
	t.mu.Unlock()
	if !ok {
		return Returned{}, ErrCode
	}
	if step == "" {
		return Returned{}, ErrNoStep
	}
	body, until, ok := t.open(sealStep, step)
	if !ok || len(body) < len(Key{})+32 || !now.Before(until) {
		return Returned{}, ErrStep
	}
	site, nonce, target := Key(body[:len(Key{})]), body[len(Key{}):][:32], body[len(Key{})+32:]
	public := sha256.Sum256(nonce)
	if !hmac.Equal(public[:], g.nonce[:]) || site != g.site {
		return Returned{}, ErrBrowser
	}
	return Returned{site, string(target), g.presented}, nil
}

// Session is what a browser has shown: one certificate, for one or more sites. It never changes.
type Session struct {
	// Certificate is SHA-256 of the leaf's DER.
	Certificate hash
	// Presented is the chain to be verified on each request, leaf first.
	Presented []*x509.Certificate
	grants    []grant
}

type grant struct {
	site Key
	at   time.Time
}

// Good reports whether the session is for site, where it may be as old as lifetime.
func (s *Session) Good(site Key, lifetime time.Duration, now time.Time) bool {
	for _, g := range s.grants {
		if g.site == site {
			return now.Before(g.at.Add(min(lifetime, MaxLifetime)))
		}
	}
	return false
}

// Open makes a session, whose id is always a new one. old is the browser's session so far, if any: it ends, and what it
// was good for goes on if it was shown the same certificate, so that a browser can use two routes side by side.
func (t *Table) Open(r Returned, old string) (id string) {
	now := t.now()
	s := &Session{Certificate: sha256.Sum256(r.Presented[0].Raw), Presented: r.Presented, grants: []grant{{r.Site, now}}}
	id = token()
	t.mu.Lock()
	defer t.mu.Unlock()
	if before, ok := t.sessions.take(now, sha256.Sum256([]byte(old))); ok && before.Certificate == s.Certificate {
		for _, g := range before.grants {
			if g.site != r.Site && now.Before(g.at.Add(MaxLifetime)) {
				s.grants = append(s.grants, g)
			}
		}
	}
	t.sessions.put(now, sha256.Sum256([]byte(id)), r.Presented, s)
	return id
}

// Session finds a session, nil for none. What it is good for, the caller asks Good.
func (t *Table) Session(id string) *Session {
	if id == "" {
		return nil
	}
	now, key := t.now(), sha256.Sum256([]byte(id))
	t.mu.Lock()
	defer t.mu.Unlock()
	s, _ := t.sessions.find(now, key)
	return s
}

// End forgets a session.
func (t *Table) End(id string) {
	now, key := t.now(), sha256.Sum256([]byte(id))
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sessions.take(now, key)
}

// token makes 256 bits that cannot be guessed, as text.
func token() string {
	var b [32]byte
	rand.Read(b[:])
	return encoding.EncodeToString(b[:])
}

var encoding = base64.RawURLEncoding.Strict()

// What a seal is for: a text of one kind is never taken for one of another.
const (
	sealAsk  = "ask\x00"
	sealStep = "step\x00"
)

func (t *Table) mac(kind string, body []byte) []byte {
	h := hmac.New(sha256.New, t.secret[:])
	h.Write([]byte(kind))
	h.Write(body)
	return h.Sum(nil)
}

// seal makes body, which begins with its end in seconds, a text that only open understands. It is not secret.
func (t *Table) seal(kind string, body []byte) string {
	return encoding.EncodeToString(append(body, t.mac(kind, body)...))
}

// open returns what was sealed, without its end.
func (t *Table) open(kind, text string) (body []byte, until time.Time, ok bool) {
	// The library would read over line ends.
	if len(text) > encoding.EncodedLen(8+len(Key{})+32+MaxTarget+sha256.Size) || strings.Trim(text, alphabet) != "" {
		return nil, until, false
	}
	raw, err := encoding.DecodeString(text)
	if err != nil || len(raw) < 8+sha256.Size {
		return nil, until, false
	}
	body = raw[:len(raw)-sha256.Size]
	if !hmac.Equal(raw[len(body):], t.mac(kind, body)) {
		return nil, until, false
	}
	return body[8:], time.Unix(int64(binary.BigEndian.Uint64(body)), 0), true
}
