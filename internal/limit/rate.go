package limit

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

// Rate is a set of token buckets, one for each key. Use NewRate.
//
// A bucket is one number, the time at which it will be full again (the "theoretical arrival time" of the generic cell
// rate algorithm, ITU-T I.371); a bucket that is full is no bucket at all. So a key needs a place only while it owes
// something, and the table forgets without a sweep. It has at most 262,144 places of 16 bytes, 4 MiB, and starts with
// none; 100,000 keys that owe something fit with 4 in 1,000 sets of places full.
//
// When a set of 8 places is full, the key that owes least gives way. It is not the oldest: whoever has used up his
// bucket owes most and stays, so that nobody gets a new bucket by sending under many names. To push out a bucket that is
// used up, all others of its set have to be used up too, and which those are depends on a seed nobody knows.
type Rate struct {
	step, size atomic.Int64 // what one request owes and the most a key may owe, in nanoseconds
	seed       maphash.Seed
	base       time.Time
	everybody  atomic.Int64 // due time of the zero key, which needs no table
	shards     [rateShards]rateShard
}

const (
	rateShards = 64   // so that those who come at once rarely meet
	ways       = 8    // places of a set: two cache lines
	maxPlaces  = 4096 // of a shard
)

type rateShard struct {
	mu     sync.Mutex
	places []place // a power of two of sets
	_      [64 - 32]byte
}

// place is one key's bucket. The keyed hash stands for the key: two keys that share all its 64 bits share a bucket.
type place struct {
	mark uint64 // hash of the key, never 0 where there is one
	due  int64  // when nothing is owed any more, in nanoseconds since base
}

// maxDebt keeps sums of times from overflowing: 36 years.
const maxDebt = 1 << 60

// NewRate makes buckets that hold burst requests and get requests new ones in each every. What is below 1 counts as 1.
func NewRate(requests int, every time.Duration, burst int) *Rate {
	r := &Rate{seed: maphash.MakeSeed(), base: time.Now().Add(-time.Hour)}
	r.Set(requests, every, burst)
	return r
}

// Set changes the numbers. What keys owe they go on owing, but no more than a bucket of the new size.
func (r *Rate) Set(requests int, every time.Duration, burst int) {
	step := min(max(int64(every)/int64(max(requests, 1)), 1), maxDebt)
	size := int64(maxDebt)
	if b := int64(max(burst, 1)); b < maxDebt/step {
		size = b * step
	}
	r.step.Store(step)
	r.size.Store(size)
}

// Take takes one request from the bucket of k. If there is none it takes nothing and says how long to wait for one.
func (r *Rate) Take(k Key, now time.Time) (wait time.Duration, ok bool) {
	t, step, size := int64(now.Sub(r.base)), r.step.Load(), r.size.Load()
	if (k == Key{}) {
		for {
			old := r.everybody.Load()
			due, wait := take(old, t, step, size)
			if due == old || r.everybody.CompareAndSwap(old, due) {
				return wait, wait == 0
			}
		}
	}
	h := r.hash(k)
	s := &r.shards[h>>58]
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.claim(h, t)
	p.due, wait = take(p.due, t, step, size)
	return wait, wait == 0
}

// take is the algorithm: the new due time, and how long to wait if the request does not fit in.
func take(due, t, step, size int64) (int64, time.Duration) {
	due = min(max(due, t), t+size) // less than before where the size was lowered
	if over := due + step - t - size; over > 0 {
		return due, time.Duration(over)
	}
	return due + step, 0
}

// give puts back what Take took, for a request that something else refused.
func (r *Rate) give(k Key) {
	step := r.step.Load()
	if (k == Key{}) {
		r.everybody.Add(-step)
		return
	}
	h := r.hash(k)
	s := &r.shards[h>>58]
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.find(h); p != nil {
		p.due -= step
	}
}

func (r *Rate) hash(k Key) uint64 { return maphash.Comparable(r.seed, k) | 1 }

// set is the part of the table where h may stand.
func (s *rateShard) set(h uint64) []place {
	i := int(h>>1) & (len(s.places)/ways - 1) * ways
	return s.places[i : i+ways : i+ways]
}

func (s *rateShard) find(h uint64) *place {
	if len(s.places) == 0 {
		return nil
	}
	set := s.set(h)
	for i := range set {
		if set[i].mark == h {
			return &set[i]
		}
	}
	return nil
}

// claim finds the place of h or makes one.
func (s *rateShard) claim(h uint64, t int64) *place {
	if p := s.find(h); p != nil {
		return p
	}
	for {
		if len(s.places) > 0 {
			set := s.set(h)
			least := &set[0]
			for i := range set {
				if set[i].due < least.due {
					least = &set[i]
				}
			}
			if least.due <= t || len(s.places) >= maxPlaces {
				*least = place{mark: h, due: t}
				return least
			}
		}
		s.grow(t)
	}
}

// grow doubles the table; each set becomes two, so that everything fits.
func (s *rateShard) grow(t int64) {
	old := s.places
	s.places = make([]place, max(2*len(old), ways))
	for _, p := range old {
		if p.due <= t {
			continue
		}
		set := s.set(p.mark)
		for i := range set {
			if set[i].mark == 0 {
				set[i] = p
				break
			}
		}
	}
}

// Tidy gives back the memory of buckets that are all full again. Call it about once a minute.
func (r *Rate) Tidy(now time.Time) {
	t := int64(now.Sub(r.base))
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		live := false
		for j := 0; j < len(s.places) && !live; j++ {
			live = s.places[j].due > t
		}
		if !live {
			s.places = nil
		}
		s.mu.Unlock()
	}
}

// places is how many places there are, for tests.
func (r *Rate) places() (n int) {
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		n += len(s.places)
		s.mu.Unlock()
	}
	return n
}
