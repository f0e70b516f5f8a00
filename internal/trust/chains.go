package trust

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Chains remembers, for certificates that were presented and believed, every chain that leads to an anchor, so that the
// next handshake with them checks no signature but the client's own. It holds nothing that revocation or expiry could
// change: those are asked on every hit, chain by chain. Refusals are not kept.
//
// One Chains serves all stores: what a chain was built with (anchors and purposes) is part of its key, revocation lists
// are not. Any number of goroutines may use it.
type Chains struct {
	shards  [chainShards]shard
	issuers shard // chains without their leaves
}

// shard is a part of what is remembered, in two generations.
type shard struct {
	most int // sets in a generation

	mu         sync.Mutex
	young, old map[chainKey]*believed
	size       int // of young, in bytes
	// hits and misses are what was looked for and found, and what was not.
	hits, misses uint64
}

// maxIssuers is how many sets of issuers a generation has.
const maxIssuers = 1024

// maxShardBytes bounds one generation of a shard by what its certificates and chains take, which is about four times their
// DER, and what is kept beside them; so all of it stays below 80 MiB.
const maxShardBytes = (80 << 20) / (2 * (chainShards + 1))

const chainShards = 16 // besides that of issuers

type chainKey [sha256.Size]byte

// believed is what is kept: every chain, and how long that is all there is to say.
type believed struct {
	chains  [][]*x509.Certificate
	purpose purpose // that the leaf was accepted for, and its issuers have to allow
	size    int     // in bytes, about
	// from and until bound the time in which building the chains again would give the same ones.
	from, until time.Time

	kept atomic.Pointer[kept]
}

// kept is what somebody made of the chain that begins at first.
type kept struct {
	first **x509.Certificate
	value any
}

// covers reports whether b is still all there is to say at now.
func (b *believed) covers(now time.Time) bool { return !now.Before(b.from) && !now.After(b.until) }

// NewChains makes a memory of at most about max sets of certificates, fewer if they are large: about 80 MiB in all at most.
func NewChains(max int) *Chains {
	m := &Chains{issuers: shard{most: maxIssuers}}
	for i := range m.shards {
		m.shards[i].most = (max + 2*chainShards - 1) / (2 * chainShards)
	}
	return m
}

// key names what was presented to a store. Lengths are part of it, so that certificates cannot be cut differently.
func (s *Store) key(presented []*x509.Certificate) chainKey {
	h := sha256.New()
	h.Write(s.basis[:])
	var n [4]byte
	for _, c := range presented {
		binary.BigEndian.PutUint32(n[:], uint32(len(c.Raw)))
		h.Write(n[:])
		h.Write(c.Raw)
	}
	var k chainKey
	h.Sum(k[:0])
	return k
}

func (m *Chains) find(k chainKey, now time.Time) *believed {
	if m == nil {
		return nil
	}
	return m.shards[k[0]%chainShards].find(k, now)
}

func (s *shard) find(k chainKey, now time.Time) *believed {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.young[k]
	if !ok {
		if b, ok = s.old[k]; !ok {
			s.misses++
			return nil
		}
		s.keep(k, b) // in use, so it outlives the generation
	}
	if !b.covers(now) {
		s.misses++
		if _, there := s.young[k]; there {
			s.size -= b.size
		}
		delete(s.young, k)
		delete(s.old, k)
		return nil
	}
	s.hits++
	return b
}

// Counts are how often chains were looked for and found, and not found, for metrics.
func (m *Chains) Counts() (hits, misses uint64) {
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		hits, misses = hits+s.hits, misses+s.misses
		s.mu.Unlock()
	}
	return hits, misses
}

// keep needs the lock.
func (s *shard) keep(k chainKey, b *believed) {
	if _, there := s.young[k]; there {
		return
	}
	if len(s.young) >= s.most || s.size+b.size > maxShardBytes || s.young == nil {
		s.old, s.young, s.size = s.young, make(map[chainKey]*believed), 0
	}
	s.young[k] = b
	s.size += b.size
}

// Len is the number of sets of certificates that are remembered.
func (m *Chains) Len() (n int) {
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		n += len(s.young)
		for k := range s.old {
			if _, twice := s.young[k]; !twice {
				n++
			}
		}
		s.mu.Unlock()
	}
	return n
}

// Remember keeps the chains of an acceptance for the next handshake with the same certificates. Call it once the client
// has proven that it holds the key: what names a client is not to be written by whoever only has a copy of its
// certificate.
func (s *Store) Remember(v *Verdict) {
	if !v.Accepted || v.built == nil || s.opts.Chains == nil {
		return
	}
	m := s.opts.Chains
	m.shards[v.key[0]%chainShards].remember(v.key, v.built)
	if v.issuers != nil {
		m.issuers.remember(v.issuers.key, v.issuers.above)
	}
}

func (s *shard) remember(k chainKey, b *believed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(k, b)
}

// Kept returns what Keep was last given for the very chain that v has, nil for nothing. It is remembered as long as the
// chain is: by Chains, and by open connections.
func (v *Verdict) Kept() any {
	if v.believed == nil || len(v.Chain) == 0 {
		return nil
	}
	if k := v.believed.kept.Load(); k != nil && k.first == &v.Chain[0] {
		return k.value
	}
	return nil
}

// Keep remembers value with the chain of v, for whoever is believed by it next. It is shared by goroutines, must follow from
// the certificates of that chain and from nothing else, and may take six times the DER of the leaf.
func (v *Verdict) Keep(value any) {
	if v.believed != nil && len(v.Chain) > 0 {
		v.believed.kept.Store(&kept{&v.Chain[0], value})
	}
}

// spare reports whether a certificate was presented that stands in none of the chains. Such sets are not remembered: a
// client could send other ones each time, and so make any number of keys of one certificate.
func spare(presented []*x509.Certificate, chains [][]*x509.Certificate) bool {
	return slices.ContainsFunc(presented, func(c *x509.Certificate) bool {
		return !slices.ContainsFunc(chains, func(chain []*x509.Certificate) bool {
			return slices.ContainsFunc(chain, func(in *x509.Certificate) bool { return in == c || in.Equal(c) })
		})
	})
}

// lifetime bounds the time, both ends included, for which chains, built at now, are all the chains there are: until one of
// their issuers expires, before an anchor that may be another issuer becomes valid, or a leniency ends, and, should the clock
// go back, after such an anchor has expired. The leaf's own dates are asked each time.
func (s *Store) lifetime(chains [][]*x509.Certificate, lenient Leniency, now time.Time) (from, until time.Time) {
	from, until = now.Add(-clockSkew), now.Add(24*time.Hour)
	for _, chain := range chains {
		for _, c := range chain[1:] {
			if c.NotAfter.Before(until) {
				until = c.NotAfter
			}
			if c.NotBefore.After(from) {
				from = c.NotBefore
			}
		}
		for _, c := range chain {
			for _, a := range s.bySubject[string(c.RawIssuer)] {
				if now.Before(a.NotBefore) && !a.NotBefore.After(until) {
					until = a.NotBefore.Add(-1)
				}
				if now.After(a.NotAfter) && !a.NotAfter.Before(from) {
					from = a.NotAfter.Add(1)
				}
			}
		}
	}
	if lenient == LenientServerAuth && !s.opts.EKUUntil.After(until) {
		until = s.opts.EKUUntil.Add(-1)
	}
	return from, until
}
