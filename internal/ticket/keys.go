package ticket

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"
)

// period is how long one secret seals. It opens for as long again, and then it is gone: no ticket that it sealed last is
// younger than Lifetime by then. Whoever takes the secrets from memory can read the TLS 1.2 connections whose tickets
// they opened, so there is no reason to keep them for longer.
const period = Lifetime

// Keys are the secrets that tickets are sealed under. They are random, never leave the process and are not kept: after a
// restart every client makes a full handshake. They rotate when used, so that no timer can stop (A45). All methods may be
// called from any goroutine. Make it with NewKeys.
type Keys struct {
	now func() time.Time

	mu         sync.Mutex
	cur, prior *generation // guarded by mu; the secrets they point to never change; prior is nil at first
}

// generation is one secret.
type generation struct {
	id     [8]byte // stands in the clear in each ticket; random, to tell nothing
	secret [32]byte
	made   time.Time
	// aeads has the ciphers of some scopes, each in the one place it may have: it cannot grow as scopes come and go.
	aeads [64]atomic.Pointer[scoped]
}

// scoped is the cipher of a scope.
type scoped struct {
	scope Scope
	aead  cipher.AEAD
}

// NewKeys returns keys with a new secret.
func NewKeys() *Keys { return newKeys(time.Now) }

func newKeys(now func() time.Time) *Keys { return &Keys{now: now, cur: newGeneration(now())} }

func newGeneration(now time.Time) *generation {
	g := &generation{made: now}
	rand.Read(g.id[:])
	rand.Read(g.secret[:])
	return g
}

// Age is how old the secret is that seals now: less than an hour, or rotation is broken.
func (k *Keys) Age() time.Duration {
	now := k.now()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rotate(now)
	return k.cur.age(now)
}

func (k *Keys) current() *generation {
	now := k.now()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rotate(now)
	return k.cur
}

// find returns the generation with this id, nil if it no longer opens tickets.
func (k *Keys) find(id []byte) *generation {
	now := k.now()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rotate(now)
	switch {
	case string(id) == string(k.cur.id[:]):
		return k.cur
	case k.prior != nil && string(id) == string(k.prior.id[:]):
		return k.prior
	}
	return nil
}

// rotate retires what is too old at now. Called with mu held.
func (k *Keys) rotate(now time.Time) {
	if k.cur.age(now) >= period {
		k.cur, k.prior = newGeneration(now), k.cur
	}
	if k.prior != nil && k.prior.age(now) >= 2*period {
		k.prior = nil
	}
}

// age goes by the clock that says more: the monotonic one stands still while the machine sleeps, the other can be set
// back.
func (g *generation) age(now time.Time) time.Duration {
	return max(now.Sub(g.made), now.Round(0).Sub(g.made.Round(0)))
}

// A ticket is a format byte, the generation's id, the nonce, and the session under AES-256-GCM.
const (
	formatNone   = 0 // stands alone, for a session that is not sealed
	formatSealed = 1

	headerSize = 1 + len(generation{}.id)
	overhead   = headerSize + 12 + 16 // nonce and tag
)

func (g *generation) seal(scope Scope, cs tls.ConnectionState, plain []byte) []byte {
	ticket := make([]byte, headerSize, overhead+len(plain))
	ticket[0] = formatSealed
	copy(ticket[1:], g.id[:])
	return g.aead(scope).Seal(ticket, nil, plain, bound(ticket, cs))
}

func (g *generation) open(scope Scope, cs tls.ConnectionState, ticket []byte) ([]byte, error) {
	header, sealed := ticket[:headerSize], ticket[headerSize:]
	return g.aead(scope).Open(nil, nil, sealed, bound(header, cs))
}

// aead returns the cipher of a scope.
func (g *generation) aead(scope Scope) cipher.AEAD {
	place := &g.aeads[scope[0]%byte(len(g.aeads))]
	if k := place.Load(); k != nil && k.scope == scope {
		return k.aead
	}
	k := &scoped{scope, g.derive(scope)}
	place.Store(k)
	return k.aead
}

// derive derives the scope's key (RFC 5869 section 2.3; the secret is uniform and needs no extraction).
func (g *generation) derive(scope Scope) cipher.AEAD {
	info := "countersign ticket 1\x00" + string(g.id[:]) + string(scope[:])
	key, err := hkdf.Expand(sha256.New, g.secret[:], info, 32)
	if err != nil {
		panic("ticket: " + err.Error()) // the length is constant and right
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("ticket: " + err.Error())
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic("ticket: " + err.Error())
	}
	return aead
}

// bound is what is authenticated with a session and not in it: the ticket's header, the TLS version, and the server name
// as sent, under another of which a session must not be resumed (RFC 6066 section 3).
func bound(header []byte, cs tls.ConnectionState) []byte {
	b := make([]byte, 0, headerSize+2+len(cs.ServerName))
	b = append(b, header...)
	b = binary.BigEndian.AppendUint16(b, cs.Version)
	return append(b, cs.ServerName...)
}
