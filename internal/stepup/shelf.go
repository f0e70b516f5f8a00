package stepup

import (
	"container/list"
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"time"
)

// shelf keeps values for a time, under the hash of what names them: so looking one up takes a time that tells nothing
// about the names there are. It is bounded in values, in those of one certificate and in the bytes of the certificates
// they refer to; what has been there longest makes room. Its owner locks it.
type shelf[T any] struct {
	most  int
	time  time.Duration
	bytes int
	byKey map[hash]*list.Element
	order *list.List // of *item[T], the oldest in front
	of    map[hash][]*list.Element
}

type item[T any] struct {
	key, leaf hash
	bytes     int
	until     time.Time
	value     T
}

func newShelf[T any](most int, d time.Duration) shelf[T] {
	return shelf[T]{most: most, time: d, byKey: make(map[hash]*list.Element), order: list.New(), of: make(map[hash][]*list.Element)}
}

// put adds a value that refers to presented, which is not empty.
func (s *shelf[T]) put(now time.Time, key hash, presented []*x509.Certificate, value T) {
	it := &item[T]{key: key, leaf: sha256.Sum256(presented[0].Raw), until: now.Add(s.time), value: value}
	for _, c := range presented {
		it.bytes += len(c.Raw)
	}
	for e := s.order.Front(); e != nil && (!now.Before(e.Value.(*item[T]).until) || s.order.Len() >= s.most || s.bytes+it.bytes > maxBytes); e = s.order.Front() {
		s.remove(e)
	}
	if same := s.of[it.leaf]; len(same) >= maxPerCertificate {
		s.remove(same[0])
	}
	e := s.order.PushBack(it)
	s.byKey[key] = e
	s.of[it.leaf] = append(s.of[it.leaf], e)
	s.bytes += it.bytes
}

// find returns the value under key, if its time is not over.
func (s *shelf[T]) find(now time.Time, key hash) (value T, ok bool) {
	if e := s.byKey[key]; e != nil {
		if it := e.Value.(*item[T]); now.Before(it.until) {
			return it.value, true
		}
	}
	return value, false
}

// take is find, and removes it.
func (s *shelf[T]) take(now time.Time, key hash) (value T, ok bool) {
	value, ok = s.find(now, key)
	if e := s.byKey[key]; e != nil {
		s.remove(e)
	}
	return value, ok
}

func (s *shelf[T]) remove(e *list.Element) {
	it := s.order.Remove(e).(*item[T])
	delete(s.byKey, it.key)
	same := s.of[it.leaf]
	if same = slices.DeleteFunc(same, func(other *list.Element) bool { return other == e }); len(same) == 0 {
		delete(s.of, it.leaf)
	} else {
		s.of[it.leaf] = same
	}
	s.bytes -= it.bytes
}
