package upstream

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strconv"
	"time"
)

// Sticky is how clients are kept at their target.
type Sticky struct {
	// Cookie is the name of the cookie; empty for none.
	Cookie string
	// Lifetime is how long a cookie is good; Session makes browsers forget it when they are closed as well.
	Lifetime time.Duration
	Session  bool
	// Domain is the cookie's Domain attribute; empty means the host that was asked.
	Domain string
	// SameSite is Lax, Strict or None.
	SameSite string
	// Key signs the cookies: nodes with the same key take each other's.
	Key []byte
	// Client keeps clients with a verified certificate at the target that its hash leads to, and needs no cookie.
	Client bool
}

// processKey signs cookies where no key is configured. It ends with the process.
var processKey = func() []byte {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails
	return key
}()

// ProcessKey is a key for Sticky that this process alone knows: cookies that it signed are not good for another node, or
// after a restart, and their clients begin at a new target.
func ProcessKey() []byte { return processKey }

// A cookie's value is base64url of the target's id, the time it was made in Unix seconds, and the signature over both and the
// pool's name.
const (
	idSize     = 8
	madeSize   = 8
	macSize    = 16
	cookieSize = idSize + madeSize + macSize
)

// cookieLength is the length of a cookie's value.
var cookieLength = base64.RawURLEncoding.EncodedLen(cookieSize)

// maxCookies bounds how many cookies of our name in one header field are looked at.
const maxCookies = 4

// id names a target to the client without saying where it is.
func (s *Sticky) id(pool, address string) uint64 {
	return max(1, binary.BigEndian.Uint64(s.mac("target", pool, []byte(address))))
}

func (s *Sticky) mac(label, pool string, data []byte) []byte {
	h := hmac.New(sha256.New, s.Key)
	_, _ = h.Write(append(append([]byte(label), 0), pool...))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write(data)
	return h.Sum(nil)
}

// StickyCookie finds the pool's cookie in the value of a Cookie field and returns what it says for Choice.Sticky: 0 if there
// is none, or none that this pool has made and that is still good. What does not verify is ignored, whatever it is. again
// says that half of its lifetime is over and it should be set anew.
func (p *Pool) StickyCookie(field []byte, now time.Time) (sticky uint64, again bool) {
	s := p.Sticky
	if s == nil || s.Cookie == "" {
		return 0, false
	}
	for seen := 0; seen < maxCookies; {
		value, rest, found := Cookie(field, s.Cookie)
		if !found {
			break
		}
		seen++
		if sticky, again = s.read(p.Name, value, now); sticky != 0 {
			return sticky, again
		}
		field = rest
	}
	return 0, false
}

func (s *Sticky) read(pool string, value []byte, now time.Time) (sticky uint64, again bool) {
	if len(value) != cookieLength {
		return 0, false
	}
	var raw [cookieSize]byte
	if n, err := base64.RawURLEncoding.Strict().Decode(raw[:], value); err != nil || n != cookieSize {
		return 0, false
	}
	signed := raw[:idSize+madeSize]
	if !hmac.Equal(s.mac("cookie", pool, signed)[:macSize], raw[idSize+madeSize:]) {
		return 0, false
	}
	age := now.Sub(time.Unix(int64(binary.BigEndian.Uint64(raw[idSize:])), 0))
	// Another node's clock may be a little ahead.
	if age > s.Lifetime || age < -time.Minute {
		return 0, false
	}
	return binary.BigEndian.Uint64(raw[:]), age > s.Lifetime/2
}

// WantsCookie reports whether the answer to a request with this choice that went to t should set the cookie.
func (p *Pool) WantsCookie(t *Target, ch Choice, again bool) bool {
	return p.Sticky != nil && p.Sticky.Cookie != "" && (again || ch.Sticky != t.kept.Load())
}

// AppendSetCookie appends the value of a Set-Cookie field (RFC 6265 section 4.1) that keeps the client at t. secure says that
// the client came by https.
func (p *Pool) AppendSetCookie(out []byte, t *Target, secure bool, now time.Time) []byte {
	s := p.Sticky
	raw := make([]byte, 0, cookieSize)
	raw = binary.BigEndian.AppendUint64(raw, s.id(p.Name, t.Address))
	raw = binary.BigEndian.AppendUint64(raw, uint64(now.Unix()))
	raw = append(raw, s.mac("cookie", p.Name, raw)[:macSize]...)
	out = append(append(out, s.Cookie...), '=')
	out = base64.RawURLEncoding.AppendEncode(out, raw)
	out = append(out, "; Path=/; HttpOnly"...)
	if !s.Session {
		out = append(out, "; Max-Age="...)
		out = strconv.AppendInt(out, int64(s.Lifetime/time.Second), 10)
	}
	if s.Domain != "" {
		out = append(append(out, "; Domain="...), s.Domain...)
	}
	if secure {
		out = append(out, "; Secure"...)
	}
	return append(append(out, "; SameSite="...), s.SameSite...)
}

// Cookie finds the first cookie called name in the value of a Cookie field (RFC 6265 section 4.2.1), and what is behind it.
// Quotes around the value belong to it.
func Cookie(field []byte, name string) (value, rest []byte, found bool) {
	for len(field) > 0 {
		pair, behind, _ := bytes.Cut(field, []byte{';'})
		field = behind
		key, v, ok := bytes.Cut(bytes.Trim(pair, " \t"), []byte{'='})
		if ok && string(key) == name {
			return v, behind, true
		}
	}
	return nil, nil, false
}
