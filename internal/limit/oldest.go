package limit

import (
	"container/heap"
	"time"
)

// Oldest keeps the n oldest of the things it is shown: the connections to close first, found in one pass over all. Use
// NewOldest.
type Oldest[T any] struct {
	n   int
	all aged[T] // the youngest of them is at the root
}

type aged[T any] []struct {
	since time.Time
	thing T
}

// NewOldest makes one that keeps n things.
func NewOldest[T any](n int) *Oldest[T] { return &Oldest[T]{n: max(n, 0)} }

// Add shows it a thing that has been as it is since a time.
func (o *Oldest[T]) Add(since time.Time, thing T) {
	item := struct {
		since time.Time
		thing T
	}{since, thing}
	switch {
	case len(o.all) < o.n:
		heap.Push(&o.all, item)
	case o.n > 0 && since.Before(o.all[0].since):
		o.all[0] = item
		heap.Fix(&o.all, 0)
	}
}

// All returns what it kept, oldest first, and forgets it.
func (o *Oldest[T]) All() []T {
	out := make([]T, len(o.all))
	for i := len(out) - 1; i >= 0; i-- {
		out[i] = o.all[0].thing
		heap.Pop(&o.all)
	}
	return out
}

func (a aged[T]) Len() int           { return len(a) }
func (a aged[T]) Less(i, j int) bool { return a[i].since.After(a[j].since) }
func (a aged[T]) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }

func (a *aged[T]) Push(x any) {
	*a = append(*a, x.(struct {
		since time.Time
		thing T
	}))
}

func (a *aged[T]) Pop() any {
	last := len(*a) - 1
	x := (*a)[last]
	clear((*a)[last:])
	*a = (*a)[:last]
	return x
}
