package limit

import (
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Pressure is how short of memory the process is.
type Pressure uint32

// The pressures.
const (
	// Calm: nobody is refused for memory.
	Calm Pressure = iota
	// Tight: addresses that already have many connections get no more.
	Tight
	// Critical: nobody new is let in, and idle connections are closed, those first that have been idle longest.
	Critical
)

// String returns the pressure's name in logs and metrics.
func (p Pressure) String() string { return [...]string{"calm", "tight", "critical"}[min(p, Critical)] }

// The shares of the limit, in percent, at which pressure rises and falls. The collector runs more and more often as what
// lives comes near the limit, and at 85 there is still room for the requests that are under way; what rises at one number
// falls at a lower one, so that a single connection does not make it swing.
const (
	tightAt, calmAgainAt     = 70, 60
	criticalAt, tightAgainAt = 85, 75
)

// Usage is a measurement of memory.
type Usage struct {
	// Live is what a collection could not free, with stacks and what the runtime keeps for itself; InUse is all that the
	// system has given and not got back. InUse near the limit is ordinary: the collector leaves it at that until it has to
	// run. Only Live says that there is little left.
	Live, InUse uint64
	// Limit is what the runtime tries to keep to (GOMEMLIMIT); 0 for none.
	Limit uint64
	// Outside is what the container is charged for that no collection of ours could free, socket buffers of the kernel
	// included, and OutsideLimit what it may have; 0 where nobody tells.
	Outside, OutsideLimit uint64
	// Collections is how many there have been, and Allocated how many bytes were ever asked for.
	Collections, Allocated uint64
}

// Percent is how much of the limit that is nearest is taken by what cannot be freed.
func (u Usage) Percent() int {
	percent := 0
	if u.Limit > 0 {
		percent = int(min(u.Live*100/u.Limit, 1000))
	}
	if u.OutsideLimit > 0 {
		percent = max(percent, int(min(u.Outside*100/u.OutsideLimit, 1000)))
	}
	return percent
}

// MemoryConfig is what Memory needs. Nil functions mean the ordinary ones, or nothing to do.
type MemoryConfig struct {
	// Read measures; by default this process and its container.
	Read func() Usage
	// Collect runs a collection; by default the runtime's.
	Collect func()
	// GiveBack collects and returns to the system what is free; by default as the runtime does it.
	GiveBack func()
	// Changed is told of every change of pressure, Shed to close some idle connections. Both are called by the one goroutine
	// that measures, so they must not wait for long.
	Changed func(from, to Pressure, u Usage)
	Shed    func()
	// Panicked is told of a panic in one of them, which ends nothing else.
	Panicked func(v any)
	// Every is how often is measured. 0 means 250 ms.
	Every time.Duration
}

// Memory watches how much there is, in one goroutine. Use WatchMemory. A nil Memory is always calm.
type Memory struct {
	c        MemoryConfig
	pressure atomic.Uint32
	stop     chan struct{}
	done     chan struct{}

	// Of the goroutine alone.
	seen      uint64    // Collections when memory was last shed
	collected time.Time // when a collection was last asked for
	before    uint64    // Allocated at the last look
	quiet     int       // looks in a row at which little had been allocated
	givenBack uint64    // Allocated when memory was last given back,
	nextBack  time.Time // and when it may be again
}

// WatchMemory begins to watch. End it with Close.
func WatchMemory(c MemoryConfig) *Memory {
	if c.Read == nil {
		c.Read = reader()
	}
	if c.Collect == nil {
		c.Collect = runtime.GC
	}
	if c.GiveBack == nil {
		c.GiveBack = giveBack
	}
	if c.Every <= 0 {
		c.Every = 250 * time.Millisecond
	}
	m := &Memory{c: c, stop: make(chan struct{}), done: make(chan struct{})}
	go m.run()
	return m
}

// Close ends the watch.
func (m *Memory) Close() {
	close(m.stop)
	<-m.done
}

// Pressure is how short of memory the process is now.
func (m *Memory) Pressure() Pressure {
	if m == nil {
		return Calm
	}
	return Pressure(m.pressure.Load())
}

// few is how many connections an address may have in any case while memory is tight, and share the part of all that are
// open beyond which it has many.
const (
	few   = 8
	share = 16
)

// Refuse reports whether a new connection has to be refused, of an address that has held others, where open are open in
// all.
func (m *Memory) Refuse(held, open int) bool {
	switch m.Pressure() {
	case Critical:
		return true
	case Tight:
		return held >= max(few, open/share)
	}
	return false
}

func (m *Memory) run() {
	defer close(m.done)
	tick := time.NewTicker(m.c.Every)
	defer tick.Stop()
	for {
		m.look()
		select {
		case <-m.stop:
			return
		case <-tick.C:
		}
	}
}

// look measures once and does what follows.
func (m *Memory) look() {
	defer func() {
		if v := recover(); v != nil && m.c.Panicked != nil {
			m.c.Panicked(v)
		}
	}()
	u := m.c.Read()
	if m.stale(u) {
		m.collected = time.Now()
		m.c.Collect()
		u = m.c.Read()
	}
	was := m.Pressure()
	is := was.next(u.Percent())
	if m.pressure.Store(uint32(is)); is != was && m.c.Changed != nil {
		m.c.Changed(was, is, u)
	}
	// What was closed is gone only after a collection; before that, shedding more would shed too much.
	if is == Critical && m.c.Shed != nil && (was != Critical || u.Collections != m.seen) {
		m.seen = u.Collections
		m.c.Shed()
	}
	if m.resting(u) {
		start := time.Now()
		m.c.GiveBack()
		m.givenBack, m.nextBack = u.Allocated, start.Add(max(backEvery, 100*time.Since(start)))
	}
}

// The collector is set for little live data and many handshakes: it lets garbage grow to several times of what lives, and
// when the handshakes are over nothing makes it run. Ten thousand idle connections would keep what ten thousand handshakes
// left behind. So memory is given back when there is a rest, at most every backEvery, and with at most a hundredth of a
// processor; less than backLeast is not worth it. A pause between two bursts is no rest: what was given back has to be
// touched again for the next one, page by page, which costs more than the collection. Idle connections have let go of what
// they can by the time of restLooks.
const (
	restLooks = 16
	backEvery = 5 * time.Second
	backLeast = 8 << 20
)

// giveBack collects twice: a collection halves the stack of a goroutine that uses little of it, and what a sync.Pool has is
// garbage after the second one.
func giveBack() {
	runtime.GC()
	debug.FreeOSMemory()
}

// resting reports whether the process has come to rest with garbage in its hands: in the last looks little was
// allocated, measured by what lives, and much since memory was last given back.
func (m *Memory) resting(u Usage) bool {
	if m.quiet++; u.Allocated-m.before > u.Live/16 {
		m.quiet = 0
	}
	m.before = u.Allocated
	return m.quiet >= restLooks && u.Allocated-m.givenBack > max(backLeast, u.Live/4) && !time.Now().Before(m.nextBack)
}

// stale reports whether a collection is worth its time now: much is in use and nobody knows how much of that lives, or
// everything depends on it. There is at most one in a second.
func (m *Memory) stale(u Usage) bool {
	if time.Since(m.collected) < time.Second {
		return false
	}
	return m.Pressure() != Calm || u.Limit > 0 && u.InUse*100/u.Limit >= criticalAt
}

// next is the pressure that follows p when percent of the limit is taken.
func (p Pressure) next(percent int) Pressure {
	switch {
	case percent >= criticalAt, p == Critical && percent >= tightAgainAt:
		return Critical
	case percent >= tightAt, p != Calm && percent >= calmAgainAt:
		return Tight
	}
	return Calm
}

// reader returns a function that measures this process.
func reader() func() Usage {
	const (
		live, total, released, objects, free, unused, cycles, allocs = 0, 1, 2, 3, 4, 5, 6, 7
	)
	samples := []metrics.Sample{
		live: {Name: "/gc/heap/live:bytes"}, total: {Name: "/memory/classes/total:bytes"}, released: {Name: "/memory/classes/heap/released:bytes"},
		objects: {Name: "/memory/classes/heap/objects:bytes"}, free: {Name: "/memory/classes/heap/free:bytes"},
		unused: {Name: "/memory/classes/heap/unused:bytes"}, cycles: {Name: "/gc/cycles/total:gc-cycles"}, allocs: {Name: "/gc/heap/allocs:bytes"},
	}
	value := func(i int) uint64 {
		if samples[i].Value.Kind() != metrics.KindUint64 {
			return 0 // a runtime that does not have it
		}
		return samples[i].Value.Uint64()
	}
	group := findGroup("/proc/self/cgroup", "/sys/fs/cgroup")
	return func() Usage {
		metrics.Read(samples)
		u := Usage{InUse: below(value(total), value(released)), Collections: value(cycles), Allocated: value(allocs)}
		// All but the heap: stacks, what the runtime keeps for itself.
		u.Live = value(live) + below(u.InUse, value(objects)+value(free)+value(unused))
		if limit := debug.SetMemoryLimit(-1); limit > 0 && limit < math.MaxInt64 {
			u.Limit = uint64(limit)
		}
		if charged, limit, ok := group.read(); ok {
			u.Outside, u.OutsideLimit = below(charged, below(u.InUse, u.Live)), limit
		}
		return u
	}
}

func below(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

// group is the control group whose memory limit is in force; empty where there is none.
type group struct{ usage, limit, stat, inactive string }

// findGroup looks for the nearest control group with a limit, of this process or above it (cgroups(7), version 2; where
// only version 1 is, its memory controller).
func findGroup(self, root string) group {
	text, err := os.ReadFile(self)
	if err != nil {
		return group{}
	}
	for line := range strings.Lines(string(text)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, path, _ := strings.Cut(rest, ":")
		base, usage, limit, inactive := root, "memory.current", "memory.max", "inactive_file "
		switch controllers {
		case "":
		case "memory":
			base, usage, limit, inactive = filepath.Join(root, "memory"), "memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file "
		default:
			continue
		}
		for path = filepath.Clean("/" + path); ; path = filepath.Dir(path) {
			dir := filepath.Join(base, path)
			g := group{filepath.Join(dir, usage), filepath.Join(dir, limit), filepath.Join(dir, "memory.stat"), inactive}
			if _, _, ok := g.read(); ok {
				return g
			}
			if path == "/" {
				break
			}
		}
	}
	return group{}
}

// read returns what the group is charged for, without the file cache that the kernel takes back when it needs to, and its
// limit.
func (g group) read() (charged, limit uint64, ok bool) {
	if g.limit == "" {
		return 0, 0, false
	}
	limit, ok = number(g.limit)
	if !ok || limit == 0 || limit > 1<<60 { // "max", or version 1's word for it
		return 0, 0, false
	}
	if charged, ok = number(g.usage); !ok {
		return 0, 0, false
	}
	if text, err := os.ReadFile(g.stat); err == nil {
		for line := range strings.Lines(string(text)) {
			value, found := strings.CutPrefix(line, g.inactive)
			if !found {
				value, found = strings.CutPrefix(line, strings.Replace(g.inactive, "inactive", "active", 1)) // read often, and no less free to go
			}
			if found {
				n, _ := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
				charged = below(charged, n)
			}
		}
	}
	return charged, limit, true
}

func number(file string) (uint64, bool) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return n, err == nil
}
