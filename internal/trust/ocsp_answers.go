package trust

import (
	"cmp"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

// Status is what a responder says of a certificate (RFC 6960 section 2.2).
type Status uint8

const (
	// Good is that it is not revoked.
	Good Status = iota + 1
	// Revoked is that it is, for good or on hold.
	Revoked
	// Unknown is that the responder does not know it.
	Unknown
)

// String is the status as RFC 6960 spells it.
func (s Status) String() string {
	switch s {
	case Good:
		return "good"
	case Revoked:
		return "revoked"
	case Unknown:
		return "unknown"
	}
	return "none"
}

const (
	maxOCSPAge    = time.Hour           // how long an answer without nextUpdate is in force
	maxOCSPLife   = 31 * 24 * time.Hour // how long any answer is, so that one that names no sensible end has one
	shards        = 64
	sample        = 8                // entries of which one is dropped for a new one
	usedPrecision = 10 * time.Second // of Used, so that a busy client does not write on every handshake
)

// Answer is what a responder said, once it is known that it was the responder.
type Answer struct {
	Status                             Status
	ThisUpdate, NextUpdate, ProducedAt time.Time // NextUpdate is zero when there was none
	RevokedAt                          time.Time
	Code                               int8 // CRLReason of Revoked (RFC 5280 section 5.3.1)
	Responder                          string
	// Delegate is the serial number, as big-endian octets, of the certificate that the issuer gave to the responder; empty
	// when issuer or a configured signer signed. Whether the delegate was itself revoked is not known here, unless
	// NoCheck: then its issuer says that nobody needs to ask (RFC 6960 section 4.2.2.2.1).
	Delegate string
	NoCheck  bool
}

// Until is the end of the time in which the answer is in force, which allows for clocks that differ.
func (a *Answer) Until() time.Time { return a.End().Add(clockSkew) }

// End is nextUpdate, or what stands for it: others, who see the answer as a staple, allow for no clocks.
func (a *Answer) End() time.Time {
	if a.NextUpdate.IsZero() {
		return a.ThisUpdate.Add(maxOCSPAge)
	}
	if limit := a.ThisUpdate.Add(maxOCSPLife); a.NextUpdate.After(limit) {
		return limit
	}
	return a.NextUpdate
}

// Current says whether the answer is in force.
func (a *Answer) Current(now time.Time) bool {
	return !now.After(a.Until()) && !a.ThisUpdate.After(now.Add(clockSkew))
}

// Again is when the responder should be asked again: at half the answer's life, and of what it did not know in a minute.
func (a *Answer) Again() time.Time {
	half := a.End().Sub(a.ThisUpdate) / 2
	if a.Status == Unknown {
		half = min(half, unknownFor)
	}
	return a.ThisUpdate.Add(half)
}

// Answers is a bounded memory of answers. Any number of goroutines may use it; it never blocks for longer than a map
// takes. The zero value and nil remember nothing.
type Answers struct {
	seed    maphash.Seed
	most    int // of a shard
	changes atomic.Uint64
	hits    atomic.Uint64 // of verdicts
	misses  atomic.Uint64
	shards  []answerShard
}

type answerShard struct {
	sync.RWMutex
	// Two maps, because a revoked answer must not make room for a good one (threats C18).
	revoked, others map[QueryKey]*answered
}

type answered struct {
	Answer
	used atomic.Int64 // Unix time
}

// NewAnswers makes a memory of at most max answers, a multiple of 64: 65,536 for 0, which is some 30 MB when full.
func NewAnswers(max int) *Answers {
	if max <= 0 {
		max = 1 << 16
	}
	a := &Answers{seed: maphash.MakeSeed(), most: (max + shards - 1) / shards, shards: make([]answerShard, shards)}
	for i := range a.shards {
		a.shards[i].revoked, a.shards[i].others = make(map[QueryKey]*answered), make(map[QueryKey]*answered)
	}
	return a
}

// shard takes a seed, so that nobody who chooses serial numbers can fill one shard on purpose.
func (a *Answers) shard(k *QueryKey) *answerShard {
	return &a.shards[maphash.Bytes(a.seed, k.serial[:])%shards]
}

func (s *answerShard) find(k QueryKey) *answered {
	if e := s.revoked[k]; e != nil {
		return e
	}
	return s.others[k]
}

// Lookup returns the latest answer, whether or not it is still in force.
func (a *Answers) Lookup(k QueryKey) (Answer, bool) {
	if e := a.entry(k); e != nil {
		return e.Answer, true
	}
	return Answer{}, false
}

func (a *Answers) entry(k QueryKey) *answered {
	if a == nil || a.shards == nil {
		return nil
	}
	s := a.shard(&k)
	s.RLock()
	defer s.RUnlock()
	return s.find(k)
}

var noAnswer Answer

// lookup is Lookup for a verdict: it notes that the answer is in use. The answer is not to be changed.
func (a *Answers) lookup(k QueryKey, now time.Time) (*Answer, bool) {
	e := a.entry(k)
	if e == nil {
		if a != nil {
			a.misses.Add(1)
		}
		return &noAnswer, false
	}
	a.hits.Add(1)
	if at := now.Unix(); at-e.used.Load() >= int64(usedPrecision/time.Second) {
		e.used.Store(at)
	}
	return &e.Answer, true
}

// Counts are how often verdicts looked for an answer that was known, and for one that was not, for metrics.
func (a *Answers) Counts() (hits, misses uint64) { return a.hits.Load(), a.misses.Load() }

// Used is when a verdict last rested on the answer, to some seconds; zero if none did.
func (a *Answers) Used(k QueryKey) time.Time {
	if e := a.entry(k); e != nil && e.used.Load() != 0 {
		return time.Unix(e.used.Load(), 0)
	}
	return time.Time{}
}

// Changes grows whenever a verdict may differ from what it was: someone who was let in may be refused, or the reverse. A
// first good answer is no change: nobody who waits for it was let in, and nobody else is concerned.
func (a *Answers) Changes() uint64 {
	if a == nil {
		return 0
	}
	return a.changes.Load()
}

// Put remembers an answer that Check returned. An older statement never replaces a newer one, and of two of the same
// second the worse counts; revoked gives way to a newer good only, since a responder that does not know a certificate
// any more has not taken anything back (threats C20). changed is as for Changes.
func (a *Answers) Put(k QueryKey, answer Answer) (changed bool) {
	if a == nil || a.shards == nil || answer.Status < Good || answer.Status > Unknown {
		return false
	}
	s := a.shard(&k)
	s.Lock()
	defer s.Unlock()
	e := &answered{Answer: answer}
	before := Good
	if old := s.find(k); old != nil {
		if !answer.replaces(&old.Answer) {
			return false
		}
		before = old.Status
		e.used.Store(old.used.Load())
		delete(s.revoked, k)
		delete(s.others, k)
	} else if full := len(s.revoked)+len(s.others) >= a.most; full && len(s.others) == 0 && answer.Status != Revoked {
		return false // all of them revoked: the new one has to be asked for each time
	} else if full {
		s.drop()
	}
	if answer.Status == Revoked {
		s.revoked[k] = e
	} else {
		s.others[k] = e
	}
	if changed = before != answer.Status; changed {
		a.changes.Add(1)
	}
	return changed
}

// replaces says whether the answer takes the place of old.
func (a *Answer) replaces(old *Answer) bool {
	order := cmp.Or(a.ThisUpdate.Compare(old.ThisUpdate), a.ProducedAt.Compare(old.ProducedAt))
	switch {
	case a.Status == old.Status:
		return order > 0 || order == 0 && a.End().After(old.End())
	case old.Status == Revoked:
		return a.Status == Good && a.ThisUpdate.After(old.ThisUpdate)
	case a.Status == Revoked:
		return !a.ThisUpdate.Before(old.ThisUpdate)
	case a.Status == Unknown:
		return !a.ThisUpdate.Before(old.ThisUpdate)
	}
	return a.ThisUpdate.After(old.ThisUpdate) // good after unknown
}

// drop makes room for one: of some good or unknown answers the one that was not used for longest, and of revoked ones,
// only if there are no others, the oldest.
func (s *answerShard) drop() {
	from, age := s.others, func(e *answered) int64 { return max(e.used.Load(), e.ThisUpdate.Unix()) }
	if len(from) == 0 {
		from, age = s.revoked, func(e *answered) int64 { return e.ThisUpdate.Unix() }
	}
	var worst QueryKey
	var oldest int64
	seen := 0
	for k, e := range from {
		if at := age(e); seen == 0 || at < oldest {
			worst, oldest = k, at
		}
		if seen++; seen == sample {
			break
		}
	}
	delete(from, worst)
}
