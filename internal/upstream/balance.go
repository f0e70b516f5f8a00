package upstream

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
)

// Balance is a way to choose the next target. Weights count in all of them.
type Balance uint8

// The ways.
const (
	RoundRobin    Balance = iota // each in turn, evenly spread
	LeastRequests                // the one with the fewest exchanges under way for its weight; in turn among equals
	P2C                          // of two at random the one with less load: latency by exchanges under way, for its weight
	Random                       // by chance
	Maglev                       // by Choice.Hash, from a table with equal shares
	RingHash                     // by Choice.Hash, on a ring: fewest keys move
)

// Key is what is hashed to find a target. The zero value is nothing.
type Key struct {
	On KeySource
	// Name is that of the header, in lower case, or of the cookie.
	Name string
}

// KeySource is a part of a request.
type KeySource uint8

// The sources.
const (
	KeyNone        KeySource = iota
	KeyAddress               // the client's address, without port
	KeyCertificate           // the client's verified certificate, whole
	KeyHeader                // the values of a header
	KeyCookie                // the value of a cookie
	KeyPath                  // the path, without query
)

// Hash is the hash of a key: the same on every node and in every version.
func Hash(key []byte) uint64 { return xxhash.Sum64(key) }

// mix spreads every bit of x over all others (the finaliser of SplitMix64).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// unit is what a weight of 1 is in a view: slow start needs parts of it.
const unit = 1000

// view is what is chosen from until something changes. It does not change itself, but for the schedule.
type view struct {
	picks   []*member
	weights []uint32           // of picks, in thousandths; nil when they are equal
	sums    []uint64           // of the weights up to and with each; nil as weights
	turns   *schedule          // for RoundRobin with weights
	table   []uint16           // for Maglev: indexes of picks
	ring    []uint64           // for RingHash: places in order, and
	owners  []uint16           // the indexes of picks that they belong to
	rest    []*member          // tried when picks cannot be reached
	stuck   map[uint64]*member // by id, for sticky cookies; nil without
	group   int                // the priority of picks
	healthy int                // of all active members
	total   int                // active members
	open    bool               // health is ignored
}

// arrange completes a view with what the pool's balance needs. widest is the largest weight configured, and members the
// number of all targets, in use or not: what is made of them stays when targets come and go.
func (v *view) arrange(balance Balance, widest uint32, members int, before *view) {
	if slices.ContainsFunc(v.weights, func(w uint32) bool { return w != v.weights[0] }) {
		sum := uint64(0)
		v.sums = make([]uint64, len(v.weights))
		for i, w := range v.weights {
			sum += uint64(w)
			v.sums[i] = sum
		}
	} else {
		v.weights = nil
	}
	if len(v.picks) == 0 {
		return
	}
	switch balance {
	case RoundRobin:
		if v.weights != nil {
			v.turns = newSchedule(v.picks, v.weights, before)
		}
	case Maglev:
		v.table = maglev(v.picks, v.weights)
	case RingHash:
		v.ring, v.owners = ring(v.picks, v.weights, widest, members)
	}
}

// pick chooses among v.picks, of which there is at least one. again counts the choices made before for this request.
func (p *Pool) pick(v *view, ch *Choice, again int) int {
	n := len(v.picks)
	if n == 1 {
		return 0
	}
	if s := p.Sticky; s != nil && s.Client && ch.Client != 0 && again == 0 {
		return v.rendezvous(ch.Client)
	}
	switch p.Balance {
	case RoundRobin:
		if v.turns != nil {
			return v.turns.next()
		}
		return p.turn(n)
	case LeastRequests:
		return v.least(p.turn(n))
	case P2C:
		return v.better(time.Now())
	case Maglev:
		if ch.HasHash {
			return int(v.table[rehash(ch.Hash, again)%uint64(len(v.table))])
		}
	case RingHash:
		if ch.HasHash {
			i, _ := slices.BinarySearch(v.ring, rehash(ch.Hash, again))
			if i == len(v.ring) {
				i = 0
			}
			return int(v.owners[i])
		}
	}
	return v.random()
}

func rehash(h uint64, again int) uint64 { return mix(h + uint64(again)*0x9e3779b97f4a7c15) }

func (p *Pool) turn(n int) int { return int(p.next.Add(1) % uint32(n)) }

// suits reports whether a connection to t may serve the choice without a choice being made: only where the choice would
// always be the same.
func (p *Pool) suits(t *Target, ch *Choice) bool {
	if t.down.Load() || t.ejected.Load() != 0 {
		return false
	}
	v := p.view.Load()
	if ch.Sticky != 0 {
		if m := v.stuck[ch.Sticky]; m != nil {
			return m.Target == t
		}
	}
	if t.drained.Load() {
		return false
	}
	hashed := ch.HasHash && (p.Balance == Maglev || p.Balance == RingHash) || ch.Client != 0 && p.Sticky != nil && p.Sticky.Client
	return !hashed || len(v.picks) > 0 && v.picks[p.pick(v, ch, 0)].Target == t
}

// leastOf is how many targets are looked at for the one with the fewest exchanges. Of more the best of so many neighbours is
// as good, and does not cost microseconds.
const leastOf = 64

// least finds the target with the fewest exchanges for its weight, beginning at turn.
func (v *view) least(turn int) int {
	n, all := len(v.picks), len(v.picks)
	if n > leastOf {
		n, turn = leastOf, rand.IntN(n)
	}
	best, load, weight := turn, int64(math.MaxInt64), int64(1)
	if v.weights == nil {
		for i, k := 0, turn; i < n; i++ {
			if b := int64(v.picks[k].busy.Load()); b < load {
				if best, load = k, b; b <= 0 {
					return best
				}
			}
			if k++; k == all {
				k = 0
			}
		}
		return best
	}
	load = math.MaxInt32
	for i, k := 0, turn; i < n; i++ {
		b, w := int64(v.picks[k].busy.Load())+1, int64(v.weights[k])
		if b*weight < load*w {
			best, load, weight = k, b, w
		}
		if k++; k == all {
			k = 0
		}
	}
	return best
}

// better takes the less loaded of two that are chosen by chance.
func (v *view) better(now time.Time) int {
	a := rand.IntN(len(v.picks))
	b := rand.IntN(len(v.picks) - 1)
	if b >= a {
		b++
	}
	at := now.UnixNano()
	x, y := v.picks[a].load(at), v.picks[b].load(at)
	if v.weights != nil {
		x, y = x*float64(v.weights[b]), y*float64(v.weights[a])
	}
	if y < x {
		return b
	}
	return a
}

// random takes one by chance.
func (v *view) random() int {
	if v.weights == nil {
		return rand.IntN(len(v.picks))
	}
	i, found := slices.BinarySearch(v.sums, rand.Uint64N(v.sums[len(v.sums)-1]))
	if found {
		i++ // the sum belongs to the next one
	}
	return i
}

// rendezvous takes the target with the highest score for key: when one goes, only its own keys move (highest random weight;
// with weights, a target's score is weight / -ln u for u evenly from 0 to 1).
func (v *view) rendezvous(key uint64) int {
	best, highest := 0, uint64(0)
	if v.weights == nil {
		for i, m := range v.picks {
			if h := mix(key ^ m.hash); h >= highest {
				best, highest = i, h
			}
		}
		return best
	}
	top := -1.0
	for i, m := range v.picks {
		u := (float64(mix(key^m.hash)>>11) + 0.5) / (1 << 53)
		if score := -float64(v.weights[i]) / math.Log(u); score > top {
			best, top = i, score
		}
	}
	return best
}

// schedule is weighted round robin: each target has its next turn at a time of its own, one stride behind the last, and
// strides are the reciprocals of weights. In a run of as many turns as the weights sum up to, every target has exactly as
// many as its weight, spread evenly.
type schedule struct {
	mu    sync.Mutex
	heap  []turn // by due, then index
	clock uint64 // due of the last turn
}

type turn struct {
	due, stride uint64
	index       uint16
}

// span is the stride of a weight of one thousandth.
const span = 1 << 50

// newSchedule makes a schedule. Targets that had turns in before keep what they have waited for.
func newSchedule(picks []*member, weights []uint32, before *view) *schedule {
	s := &schedule{heap: make([]turn, len(picks))}
	waited := map[*Target]float64{} // the part of a stride that is left
	if before != nil && before.turns != nil {
		b := before.turns
		b.mu.Lock()
		for _, t := range b.heap {
			waited[before.picks[t.index].Target] = float64(t.due-b.clock) / float64(t.stride)
		}
		b.mu.Unlock()
	}
	for i, m := range picks {
		stride := span / uint64(weights[i])
		due := stride / 2
		if left, ok := waited[m.Target]; ok {
			due = uint64(left * float64(stride))
		}
		s.heap[i] = turn{due, stride, uint16(i)}
	}
	slices.SortFunc(s.heap, turn.compare)
	return s
}

func (t turn) compare(u turn) int {
	return cmp.Or(cmp.Compare(t.due, u.due), cmp.Compare(t.index, u.index))
}

// next gives the next turn.
func (s *schedule) next() int {
	s.mu.Lock()
	h := s.heap
	t := h[0]
	s.clock = t.due
	if t.due += t.stride; t.due > math.MaxUint64/2 {
		for i := range h {
			h[i].due -= s.clock // nothing is due before the clock
		}
		t.due, s.clock = t.stride, 0 // h[0] is overwritten below
	}
	i := 0
	for { // sift down
		child := 2*i + 1
		if child >= len(h) {
			break
		}
		if right := child + 1; right < len(h) && h[right].compare(h[child]) < 0 {
			child = right
		}
		if t.compare(h[child]) < 0 {
			break
		}
		h[i] = h[child]
		i = child
	}
	h[i] = t
	s.mu.Unlock()
	return int(t.index)
}

// tableSize is the size of a Maglev table: a prime, and large enough that a thousand targets differ by few percent.
const tableSize = 65537

// maglev makes the lookup table of Maglev (Eisenbud and others, 2016, section 3.4): every target has a permutation of the
// places of its own, and they take their next free place in turn. A target of less weight than the heaviest leaves turns
// out.
func maglev(picks []*member, weights []uint32) []uint16 {
	type walk struct{ at, skip, credit, weight uint64 }
	walks := make([]walk, len(picks))
	heaviest := uint64(1)
	for i, m := range picks {
		walks[i] = walk{at: m.hash % tableSize, skip: mix(m.hash)%(tableSize-1) + 1, weight: 1}
		if weights != nil {
			walks[i].weight = uint64(weights[i])
			heaviest = max(heaviest, walks[i].weight)
		}
	}
	// The order must not depend on how the targets are listed.
	order := make([]int, len(picks))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(picks[a].hash, picks[b].hash) })
	table := make([]uint16, tableSize)
	taken := make([]bool, tableSize)
	for left := tableSize; ; {
		for _, i := range order {
			w := &walks[i]
			if w.credit += w.weight; w.credit < heaviest {
				continue
			}
			w.credit -= heaviest
			for taken[w.at] {
				if w.at += w.skip; w.at >= tableSize {
					w.at -= tableSize
				}
			}
			table[w.at], taken[w.at] = uint16(i), true
			if left--; left == 0 {
				return table
			}
		}
	}
}

// A target of the largest weight has ringPlaces places on a ring, fewer where all would have more than ringMost.
const (
	ringPlaces = 256
	ringMost   = 1 << 17
)

// ring makes a hash ring. A target's places depend on its own address and weight only, so that keys move to and from it
// alone when it comes or goes.
func ring(picks []*member, weights []uint32, widest uint32, members int) (places []uint64, owners []uint16) {
	most := ringPlaces
	for most > 1 && most*members > ringMost {
		most /= 2
	}
	type place struct {
		at    uint64
		owner uint16
	}
	all := make([]place, 0, most*len(picks))
	for i, m := range picks {
		n := most
		if weights != nil {
			n = max(1, int(uint64(most)*uint64(weights[i])/uint64(widest)))
		}
		for k := range n {
			all = append(all, place{mix(m.hash + uint64(k)*0x9e3779b97f4a7c15), uint16(i)})
		}
	}
	slices.SortFunc(all, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(picks[a.owner].hash, picks[b.owner].hash))
	})
	places, owners = make([]uint64, len(all)), make([]uint16, len(all))
	for i, p := range all {
		places[i], owners[i] = p.at, p.owner
	}
	return places, owners
}

// latency is a moving average of the time a target takes for an answer. The zero value knows nothing.
type latency struct {
	average  atomic.Uint64 // bits of a float64, in nanoseconds
	measured atomic.Int64  // Unix nanoseconds
}

// forget is the time in which what was measured loses its weight, by a factor of e.
const forget = 10 * time.Second

// base is added to every latency, so that exchanges under way count where latencies are not known or tiny.
const base = 100 * time.Microsecond

// load is what an exchange costs at the target: its latency, as far as it is remembered, by the exchanges under way.
func (t *Target) load(now int64) float64 {
	average := math.Float64frombits(t.latency.average.Load())
	if average > 0 {
		if age := now - t.latency.measured.Load(); age > 0 {
			average *= math.Exp(-float64(age) / float64(forget))
		}
	}
	return (average + float64(base)) * float64(t.busy.Load()+1)
}

// observe takes one latency into the average: one that is higher at once, one that is lower by and by. That of a failure
// only if it is higher: a target must not look better because it fails fast.
func (l *latency) observe(d time.Duration, failed bool, now int64) {
	for {
		bitsBefore := l.average.Load()
		average := math.Float64frombits(bitsBefore)
		age := max(now-l.measured.Load(), 0)
		decay := math.Exp(-float64(age) / float64(forget))
		switch x := float64(d); {
		case x >= average:
			average = x
		case failed:
			return
		default:
			// At a steady rate the age is short and each one counts little.
			average = average*decay + x*(1-decay)
		}
		if l.average.CompareAndSwap(bitsBefore, math.Float64bits(average)) {
			l.measured.Store(now)
			return
		}
	}
}
