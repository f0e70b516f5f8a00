package certs

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/asn1"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Staples holds the OCSP responses that are sent with our own certificates (RFC 6066 section 8, RFC 8446 section
// 4.4.2.1). They change without a new Set, and outlive it. The zero value holds none; any number of goroutines may use it.
type Staples struct {
	mu    sync.Mutex
	slots map[[sha256.Size]byte]*slot
}

// slot is where handshakes look, without a lock.
type slot struct{ now atomic.Pointer[staple] }

type staple struct {
	der   []byte
	until time.Time
}

// at returns the staple if it is current.
func (s *slot) at(now time.Time) *staple {
	if p := s.now.Load(); p != nil && now.Before(p.until) {
		return p
	}
	return nil
}

func (s *Staples) slot(leaf [sha256.Size]byte) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.slots == nil {
		s.slots = make(map[[sha256.Size]byte]*slot)
	}
	p := s.slots[leaf]
	if p == nil {
		p = new(slot)
		s.slots[leaf] = p
	}
	return p
}

// Set staples der, a response that was checked, to the certificate with this SHA-256 hash until a time at which clients
// would refuse it. An empty der takes the staple away.
func (s *Staples) Set(leaf [sha256.Size]byte, der []byte, until time.Time) {
	var p *staple
	if len(der) > 0 {
		p = &staple{slices.Clone(der), until}
	}
	s.slot(leaf).now.Store(p)
}

// For returns what is stapled to a certificate now; nil for nothing.
func (s *Staples) For(leaf [sha256.Size]byte) []byte {
	s.mu.Lock()
	at := s.slots[leaf]
	s.mu.Unlock()
	if at != nil {
		if p := at.at(time.Now()); p != nil {
			return p.der
		}
	}
	return nil
}

// Keep forgets all certificates but these.
func (s *Staples) Keep(leaves map[[sha256.Size]byte]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for leaf, p := range s.slots {
		if !leaves[leaf] {
			p.now.Store(nil) // for the sets that still know it
			delete(s.slots, leaf)
		}
	}
}

// stapler is how an offer gets at its staple.
type stapler struct {
	slot *slot
	made atomic.Pointer[stapled]
}

// stapled is a copy of a certificate with a staple; tls.Certificate has no other place for it.
type stapled struct {
	from *staple
	pair *tls.Certificate
}

// WithStaples is s with what staples holds, now and later, for certificates that name a responder: for others there is
// never anything.
func (s *Set) WithStaples(staples *Staples) *Set {
	out := s
	for i := range s.offers {
		leaf := s.offers[i].pair.Leaf
		if len(leaf.OCSPServer) == 0 {
			continue
		}
		if out == s {
			out = &Set{offers: slices.Clone(s.offers)}
		}
		out.offers[i].staple = &stapler{slot: staples.slot(sha256.Sum256(leaf.Raw))}
	}
	return out
}

// certificate is the pair, with a staple if there is a current one. The copy is made once for each staple.
func (o *offer) certificate() *tls.Certificate {
	if o.staple == nil || o.staple.slot.now.Load() == nil {
		return o.pair
	}
	p := o.staple.slot.at(time.Now())
	if p == nil {
		return o.pair
	}
	if made := o.staple.made.Load(); made != nil && made.from == p {
		return made.pair
	}
	pair := *o.pair
	pair.OCSPStaple = p.der
	o.staple.made.Store(&stapled{p, &pair})
	return &pair
}

// MustStaple says whether clients may refuse the certificate without a staple (TLS feature status_request, RFC 7633).
func MustStaple(pair *tls.Certificate) bool {
	for _, x := range pair.Leaf.Extensions {
		if x.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}) {
			var features []int
			_, err := asn1.Unmarshal(x.Value, &features)
			return err == nil && slices.Contains(features, 5)
		}
	}
	return false
}
