// Package eventloop waits for connections that are idle, without a goroutine for each: one loop for each processor, over a set
// of the system's own. What is to be done when something comes it leaves to others.
package eventloop

import (
	"errors"
	"sync"
	"sync/atomic"
)

// Raw gives access to a connection's descriptor, as syscall.RawConn does.
type Raw interface {
	Control(f func(fd uintptr)) error
}

// Sleeper is what waits in a loop.
type Sleeper interface {
	// Wake is called once, by the loop, when a read would find something, an error or the end included. It must not wait.
	Wake()
}

// Seat is where a connection waits. The zero value is that of one that does not. It belongs to one connection for as long as
// that is open.
type Seat struct {
	loop   *loop         // fixed by the first Park
	id     atomic.Uint64 // of the last wait; 0 before the first
	listed bool          // the system knows it; it forgets it by itself when the connection is closed
}

// ErrUnsupported says that there are no loops on this system.
var ErrUnsupported = errors.New("eventloop: needs epoll, which is Linux's")

// Loops are the loops of a process.
type Loops struct {
	loops []*loop
	last  atomic.Uint64 // id
}

// loop is one of them.
type loop struct {
	set set

	mu       sync.Mutex
	sleepers map[uint64]Sleeper
}

// Open starts n loops. What panics in one ends up at panicked, and the loop goes on.
func Open(n int, panicked func(any)) (*Loops, error) {
	l := &Loops{}
	for range n {
		set, err := openSet()
		if err != nil {
			l.Close()
			return nil, err
		}
		one := &loop{set: set, sleepers: make(map[uint64]Sleeper)}
		l.loops = append(l.loops, one)
		go one.run(panicked)
	}
	return l, nil
}

// Close ends the loops. Whoever still waits in them is not woken any more.
func (l *Loops) Close() {
	for _, one := range l.loops {
		one.set.close()
	}
}

// Len is how many wait.
func (l *Loops) Len() (n int) {
	for _, one := range l.loops {
		one.mu.Lock()
		n += len(one.sleepers)
		one.mu.Unlock()
	}
	return n
}

// Park has who wait in seat, whose connection is raw. From here on Wake may be called, and the caller must not touch the
// connection any more unless Leave says so.
func (l *Loops) Park(seat *Seat, raw Raw, who Sleeper) error {
	id := l.last.Add(1)
	if seat.loop == nil {
		seat.loop = l.loops[id%uint64(len(l.loops))]
	}
	one, again := seat.loop, seat.listed
	// With the lock held, so that nobody ends this wait, goes on and begins the next before the system knows of this one.
	one.mu.Lock()
	defer one.mu.Unlock()
	seat.id.Store(id)
	var err error
	if controlErr := raw.Control(func(fd uintptr) { err = one.set.await(fd, id, again) }); controlErr != nil {
		err = controlErr
	}
	if err == nil {
		seat.listed, one.sleepers[id] = true, who
	}
	return err
}

// Leave ends the wait, and reports whether there was one: then Wake is not called any more, and whoever called Leave goes on
// in its place. It may be called from any goroutine.
func (s *Seat) Leave() bool {
	id := s.id.Load()
	return id != 0 && s.loop.take(id) != nil
}

// take takes out who waits under id; nil if somebody else has.
func (l *loop) take(id uint64) Sleeper {
	l.mu.Lock()
	defer l.mu.Unlock()
	who := l.sleepers[id]
	delete(l.sleepers, id)
	return who
}

// run wakes who has something to read, until the set is closed.
func (l *loop) run(panicked func(any)) {
	var ids [256]uint64
	for {
		n, err := l.set.wait(ids[:])
		if err != nil {
			return
		}
		for _, id := range ids[:n] {
			if who := l.take(id); who != nil {
				wake(who, panicked)
			}
		}
	}
}

// wake wakes one. What panics in it is not the others' end.
func wake(who Sleeper, panicked func(any)) {
	defer func() {
		if v := recover(); v != nil {
			panicked(v)
		}
	}()
	who.Wake()
}
