package limit

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
)

// Concurrency counts what is under way, for each key, and refuses what would be more than the most. Use NewConcurrency.
// A key has a place only while something of it is under way, so the table is bounded by what is.
type Concurrency struct {
	most      atomic.Int64
	everybody atomic.Int64
	seed      maphash.Seed
	shards    [concurrencyShards]concurrencyShard
}

const concurrencyShards = 32

type concurrencyShard struct {
	mu   sync.Mutex
	n    map[Key]int64
	peak int // greatest size of n
}

// NewConcurrency makes a limit of most, at least 1, for each key.
func NewConcurrency(most int) *Concurrency {
	c := &Concurrency{seed: maphash.MakeSeed()}
	c.Set(most)
	return c
}

// Set changes the most; what is under way stays so.
func (c *Concurrency) Set(most int) { c.most.Store(int64(max(most, 1))) }

// Enter counts one more of k, unless there are as many as may be. Each success wants one Leave.
func (c *Concurrency) Enter(k Key) bool { return c.enter(k, c.most.Load()) }

func (c *Concurrency) enter(k Key, most int64) bool {
	if (k == Key{}) {
		if c.everybody.Add(1) > most {
			c.everybody.Add(-1)
			return false
		}
		return true
	}
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.n[k]
	if n >= most {
		return false
	}
	if s.n == nil {
		s.n = make(map[Key]int64)
	}
	s.n[k] = n + 1
	s.peak = max(s.peak, len(s.n))
	return true
}

// Leave ends one of k.
func (c *Concurrency) Leave(k Key) {
	if (k == Key{}) {
		c.everybody.Add(-1)
		return
	}
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.n[k]; n > 1 {
		s.n[k] = n - 1
	} else {
		delete(s.n, k)
	}
}

// Count is how many of k are under way.
func (c *Concurrency) Count(k Key) int {
	if (k == Key{}) {
		return int(c.everybody.Load())
	}
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	return int(s.n[k])
}

// Tidy gives back the memory of a crowd that has left. Call it about once a minute.
func (c *Concurrency) Tidy() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		if s.peak > 64 && len(s.n) == 0 {
			s.n, s.peak = nil, 0
		}
		s.mu.Unlock()
	}
}

func (c *Concurrency) shard(k Key) *concurrencyShard {
	return &c.shards[maphash.Comparable(c.seed, k)%concurrencyShards]
}
