// Package frontend owns what clients meet: listeners, limits, the life of a connection, and the table of those that are
// open. It takes its decisions from the snapshot in force and holds none of its own.
package frontend

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"countersign/internal/eventloop"
	"countersign/internal/forward"
	"countersign/internal/limit"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/snapshot"
	"countersign/internal/socket"
	"countersign/internal/stepup"
	"countersign/internal/ticket"
	"countersign/internal/tracing"
	"countersign/internal/trust"
	"countersign/internal/upstream"
)

// Config is what a Frontend needs. Nil functions mean the ordinary ones.
type Config struct {
	Book   *record.Book
	Log    *slog.Logger
	Listen func(address string) (net.Listener, error)
	Dial   upstream.Dialer
	// Outside fetches what verifying clients needs. Nil: nothing is fetched.
	Outside Outside
	// Traces takes the requests that are traced. Nil: none are.
	Traces tracing.Sink
}

// Outside is the way to revocation lists and OCSP responders. Its methods may be called from any goroutine.
type Outside interface {
	// Ask gets the answer to q, waiting for it no longer than ctx.
	Ask(ctx context.Context, q *trust.Query) error
	// Soon gets it without keeping the caller waiting.
	Soon(q *trust.Query)
	// Learn notes where lists of a CA are published, without keeping the caller waiting.
	Learn(p trust.Point)
}

// Frontend serves the listeners of the snapshot in force.
type Frontend struct {
	book   *record.Book
	log    *slog.Logger
	listen func(address string) (net.Listener, error)
	pools  *upstream.Registry
	clock  forward.Clock
	table  table
	// outside is nil where nothing is fetched.
	outside Outside
	traces  tracing.Sink
	tickets *ticket.Keys
	steps   *stepup.Table

	gates      *limit.Registry
	handshakes *limit.Handshakes
	memory     *limit.Memory
	spare      *limit.Spare
	files      *limit.Descriptors

	current  atomic.Pointer[published]
	draining atomic.Bool
	keyLog   atomic.Pointer[keyLog] // nil almost always

	doubts    chan []*conn // to be judged anew
	reviewing atomic.Bool  // some are

	mu    sync.Mutex // serialises Apply and Drain
	socks map[string]net.Listener
	wg    sync.WaitGroup // connections and accept loops
	// resting is where goroutines wait for their next connection, and rested how many do.
	resting chan *conn
	rested  atomic.Int32
	loops   atomic.Pointer[eventloop.Loops] // nil until a snapshot wants them
	layers  struct{ own, library atomic.Uint64 }
	stop    chan struct{}
	swept   chan struct{}
}

// published is a snapshot together with the listeners' running parts. A connection compares the pointer: another one
// means that something may have changed.
type published struct {
	*snapshot.Snapshot
	listeners map[string]*active // by socket key
	pools     upstream.View
	ports     map[uint16]*active
}

// active is a listener of a snapshot with what outlives it.
type active struct {
	*snapshot.Listener
	book *record.Listener
	open *atomic.Int64
	port uint16 // 0 for a Unix socket
	// pools are those of its configuration, for connections whose handshake outlasts it.
	pools upstream.View
	// scopes has the ticket.Scope of each *snapshot.Host that a client has asked for.
	scopes sync.Map
}

// New makes a frontend that serves nothing yet, and starts its clock. Close it with Drain.
func New(c Config) *Frontend {
	f := &Frontend{book: c.Book, log: c.Log, listen: c.Listen, pools: upstream.NewRegistry(c.Dial, c.Log),
		outside: c.Outside, traces: c.Traces, tickets: ticket.NewKeys(), steps: stepup.New(time.Now),
		socks: make(map[string]net.Listener), stop: make(chan struct{}), swept: make(chan struct{}), doubts: make(chan []*conn, 1), resting: make(chan *conn)}
	if f.listen == nil {
		f.listen = Listen
	}
	f.pools.OnPanic(c.Book.Panicked)
	f.gates, f.handshakes = limit.NewRegistry(), limit.NewHandshakes(limit.HandshakeSettings{})
	f.spare, f.files = limit.NewSpare(), limit.OpenDescriptors()
	f.table.init()
	f.memory = limit.WatchMemory(limit.MemoryConfig{Changed: f.pressed, Shed: f.shed, Panicked: func(v any) {
		f.book.Panicked()
		f.log.Error("panic in the watch over memory", "panic", fmt.Sprint(v))
	}})
	f.clock.Set(time.Now())
	go f.sweep()
	go f.reviews()
	return f
}

// key names the socket of a listener: its address, so that a listener keeps its socket when it is renamed, or its name
// where the system chooses the port.
func key(l *snapshot.Listener) string {
	if strings.HasSuffix(l.Address, ":0") {
		return l.Name
	}
	return l.Address
}

// retireAfter is how long a pool that no configuration names any more is still found, by requests that were decided
// before.
const retireAfter = 500 * time.Millisecond

// Apply makes s the snapshot in force. New addresses are bound before anything changes, so that on an error everything
// stays as it was. Listeners that s does not name stop accepting; their connections are refused at their next request.
func (f *Frontend) Apply(s *snapshot.Snapshot) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.draining.Load() {
		return errors.New("shutting down")
	}
	if err := f.openLoops(s); err != nil {
		return err
	}
	next := &published{Snapshot: s, listeners: make(map[string]*active), ports: make(map[uint16]*active)}
	old := f.current.Load()
	bound := make(map[string]net.Listener)
	for _, l := range s.Listeners {
		k := key(l)
		a := &active{Listener: l, open: new(atomic.Int64)}
		if old != nil && old.listeners[k] != nil {
			a.open = old.listeners[k].open
		}
		next.listeners[k] = a
		if f.socks[k] != nil {
			continue
		}
		sock, err := f.listen(l.Address)
		if err != nil {
			for _, b := range bound {
				b.Close()
			}
			return listenError(l, err)
		}
		bound[k] = sock
	}
	for k, a := range next.listeners {
		a.book = f.book.Listener(a.Name) // and not before: a configuration that is refused leaves no series
		sock := f.socks[k]
		if sock == nil {
			sock = bound[k]
		}
		if addr, ok := sock.Addr().(*net.TCPAddr); ok {
			a.port = uint16(addr.Port)
			next.ports[a.port] = a
		}
	}
	retire, gone := f.pools.Apply(s.Upstreams), f.gates.Apply(s.Gates)
	next.pools = f.pools.View()
	for _, a := range next.listeners {
		a.pools = next.pools
	}
	f.handshakes.Set(s.Handshakes)
	f.book.Upstreams(s.UpstreamNames())
	f.book.Log(s.Log)
	f.current.Store(next)
	f.book.Listeners(slices.Collect(maps.Keys(s.Listeners)))
	time.AfterFunc(retireAfter, func() {
		defer f.guard()
		retire()
		gone()
	})
	for k, sock := range f.socks {
		if next.listeners[k] == nil {
			sock.Close()
			delete(f.socks, k)
		}
	}
	for k, sock := range bound {
		f.socks[k] = sock
		f.wg.Add(1)
		go f.accept(k, sock)
	}
	return nil
}

func listenError(l *snapshot.Listener, err error) error {
	next := "check the address"
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		next = "another program has this port; find it with: ss -ltnp, or choose another port"
	case errors.Is(err, syscall.EACCES):
		next = "ports below 1024 need CAP_NET_BIND_SERVICE"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		next = "this machine has no such address"
	}
	return fmt.Errorf("listener %q cannot listen on %s: %w; %s", l.Name, l.Address, err, next)
}

// Current returns the snapshot in force, nil before the first.
func (f *Frontend) Current() *snapshot.Snapshot {
	if p := f.current.Load(); p != nil {
		return p.Snapshot
	}
	return nil
}

// TicketAge is how old the key is that session tickets are sealed with.
func (f *Frontend) TicketAge() time.Duration { return f.tickets.Age() }

// Handshakes are how many hold a turn to compute, and how many wait for one, for metrics.
func (f *Frontend) Handshakes() (running, waiting int) { return f.handshakes.Load() }

// Pressure is how short of memory the process is, for metrics.
func (f *Frontend) Pressure() limit.Pressure { return f.memory.Pressure() }

// Pools returns the pools of targets, for metrics.
func (f *Frontend) Pools() *upstream.Registry { return f.pools }

// Addr returns the address a listener is bound to, nil if there is none of that name.
func (f *Frontend) Addr(listener string) net.Addr {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.current.Load()
	if p == nil || p.Listeners[listener] == nil {
		return nil
	}
	if sock := f.socks[key(p.Listeners[listener])]; sock != nil {
		return sock.Addr()
	}
	return nil
}

// accept takes connections of one socket until it is closed. Nothing that can be waited out ends it.
func (f *Frontend) accept(k string, sock net.Listener) {
	defer f.wg.Done()
	var backoff limit.Backoff
	for {
		raw, err := sock.Accept()
		if err != nil && limit.Exhausted(err) {
			// Who waits is told so, and not left waiting.
			if conn, served, spareErr := f.spare.Accept(sock); served {
				raw, err = conn, nil
			} else if spareErr == nil {
				if a := f.current.Load().listeners[k]; a != nil {
					a.book.Handshake(&record.Handshake{Ref: newRef(), Reason: reason.Overloaded})
				}
			}
		}
		if err == nil {
			backoff.Succeeded()
			f.admit(k, raw)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		// Out of descriptors or memory, or a connection that ended before it was accepted: go on, and not at full speed.
		pause, tell, silent := backoff.Failed(time.Now())
		if tell {
			f.log.Warn("cannot accept a connection", "listener", k, "reason", reason.Overloaded.String(), "error", err, "retry_in", pause.String(), "not_told", silent)
		}
		select {
		case <-time.After(pause):
		case <-f.stop:
			return
		}
	}
}

// admit begins the life of a connection, if the listener has room for it.
func (f *Frontend) admit(k string, raw net.Conn) {
	defer f.guard()
	p := f.current.Load()
	a := p.listeners[k]
	if a == nil {
		raw.Close()
		return
	}
	why := reason.Unset
	switch n := a.open.Add(1); {
	case n > int64(a.Limits.Connections):
		why = reason.ConnectionLimit
	case f.files.Scarce(raw):
		why = reason.Overloaded
	case f.memory.Pressure() == limit.Critical:
		why = reason.MemoryShed
	}
	if why != reason.Unset {
		a.open.Add(-1)
		a.book.Handshake(&record.Handshake{Ref: newRef(), Client: peerOf(raw), Reason: why})
		limit.Reset(raw)
		return
	}
	c := &conn{f: f, sock: socket.New(raw, a.Protocol.Terminates()), ref: newRef(), peer: peerOf(raw), listener: a, book: a.book}
	c.watch.Clock, c.watch.Client = &f.clock, c.sock
	if p.EventLoop {
		c.parking = &parking{loops: f.loops.Load()}
		c.watch.Client = line{c.sock, c}
	}
	c.entry = f.table.add(k, c, a.Protocol.Terminates())
	a.book.Opened()
	f.wg.Add(1)
	f.hand(c)
}

// hand gives a connection to a goroutine.
func (f *Frontend) hand(c *conn) {
	select {
	case f.resting <- c:
	default:
		go f.work(c)
	}
}

// spares is how many goroutines may wait for the next connection. Their stacks have grown to what a handshake needs, 16 KB,
// which a new one comes to by several copies. The sweep sends one home each time, so that none is left when it is quiet.
const spares = 8

// work serves a connection, and then others that come.
func (f *Frontend) work(c *conn) {
	for {
		if f.serve(c) {
			f.wg.Done()
		}
		if c = nil; f.rested.Add(1) <= spares {
			select {
			case c = <-f.resting:
			case <-f.stop:
			}
		}
		f.rested.Add(-1)
		if c == nil {
			return
		}
	}
}

// peerOf names the client in records.
func peerOf(c net.Conn) string {
	if _, unix := c.RemoteAddr().(*net.UnixAddr); unix {
		return "unix"
	}
	return c.RemoteAddr().String()
}

// newRef makes the reference by which a connection is found in the log.
func newRef() string {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// beat is how often the sweep comes: more often than the clock must be moved, for it may be a little late.
const beat = forward.Tick * 4 / 5

// sweep moves the clock, and ends waits whose time is up.
func (f *Frontend) sweep() {
	defer close(f.swept)
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-f.stop:
			return
		case now := <-tick.C:
			f.clock.Set(now)
			f.sweepOnce(now, n)
		}
	}
}

func (f *Frontend) sweepOnce(now time.Time, n int) {
	defer f.guard()
	draining, waited := f.draining.Load(), f.clock.Waited()
	var doubtful []*conn
	pub, ask := f.current.Load(), !f.reviewing.Load()
	visited := 0
	f.table.each(func(e *entry) {
		if visited++; visited%1024 == 0 {
			f.clock.Set(time.Now()) // among very many connections, a sweep takes longer than the clock may stand still
		}
		if ask && e.conn.doubtful(pub, now) {
			doubtful = append(doubtful, e.conn)
		}
		e.conn.execute(now)
		e.conn.watch.Sweep(waited, e.records)
		if draining && e.conn.watch.Main.Phase() == forward.Idle && e.conn.listener.Protocol != snapshot.Passthrough {
			e.conn.watch.Interrupt()
		}
		if e.conn.reposes(waited) {
			e.conn.watch.Doze()
		}
		e.conn.sweepStreams(waited, draining)
		e.conn.own.Tidy(false, now)
	})
	if len(doubtful) > 0 {
		f.reviewing.Store(true)
		f.doubts <- doubtful // it has room: nobody else sends, and not before the last ones are through
	}
	select {
	case f.resting <- nil:
	default:
	}
	if n%4 == 0 {
		f.pools.Tidy(now)
	}
	if n%240 == 0 {
		f.gates.Tidy(now)
	}
}

// dozeAfter is how long a connection waits for its next request before it lets go of what it can do without.
const dozeAfter = time.Second

// reposes reports whether c has waited for its next request for dozeAfter.
func (c *conn) reposes(now time.Time) bool {
	left, ok := c.watch.Main.IdleLeft(now)
	return ok && c.listener.Limits.Idle-left > dozeAfter
}

// pressed tells that memory has become scarce, or is so no more.
func (f *Frontend) pressed(from, to limit.Pressure, u limit.Usage) {
	f.log.Warn("memory pressure", "from", from.String(), "to", to.String(), "percent", u.Percent(), "reason", reason.MemoryShed.String())
}

// shedAtOnce is how many idle connections are closed at a time when memory is short.
const shedAtOnce = 256

// shed closes the connections that have been idle longest.
func (f *Frontend) shed() {
	oldest := limit.NewOldest[*conn](shedAtOnce)
	now := f.clock.Waited()
	f.table.each(func(e *entry) {
		c := e.conn
		if mux := c.mux.Load(); mux != nil {
			if mux.Streams() == 0 {
				oldest.Add(time.UnixMilli(mux.LastActivity()), c)
			}
		} else if left, ok := c.watch.Main.IdleLeft(now); ok {
			oldest.Add(now.Add(left-c.listener.Limits.Idle), c)
		}
	})
	for _, c := range oldest.All() {
		if mux := c.mux.Load(); mux != nil {
			c.ending.Store(uint32(reason.MemoryShed))
			mux.GoAway()
		} else {
			c.watch.EndIdle()
		}
	}
}

// guard keeps a panic from ending more than the goroutine it is in.
func (f *Frontend) guard() {
	if v := recover(); v != nil {
		f.book.Panicked()
		f.log.Error("panic", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
}

// Drain stops accepting, lets open exchanges finish, and closes what is left when ctx ends.
func (f *Frontend) Drain(ctx context.Context) {
	if f.draining.Swap(true) {
		return // once is enough
	}
	f.mu.Lock()
	for _, sock := range f.socks {
		sock.Close()
	}
	f.mu.Unlock()
	done := make(chan struct{})
	go func() {
		f.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		n := 0
		f.table.each(func(e *entry) {
			n++
			e.conn.book.Ended(reason.ShutdownForced)
			tunnel := e.conn.watch.Main.Phase() == forward.Tunnelling
			e.conn.watch.Force()
			e.conn.lanes.each(func(l *lane) { l.watch.Force() })
			if tunnel {
				e.conn.sock.Reset() // what came over it so far must not look like all (E21)
			}
			e.conn.sock.Close()
			e.conn.rouse(time.Now())
		})
		if n > 0 {
			f.log.Warn("connections were cut at the end of the drain time or by a second signal", "reason", reason.ShutdownForced.String(), "connections", n)
		}
		select {
		case <-done:
		case <-time.After(2 * time.Second):
		}
	}
	close(f.stop)
	<-f.swept
	f.memory.Close()
	f.spare.Close()
	if loops := f.loops.Load(); loops != nil {
		loops.Close()
	}
	f.pools.Apply(nil)()
}

// table holds the open connections, in shards so that those who come and go rarely meet.
type table struct {
	next   atomic.Uint32
	shards [16]struct {
		mu      sync.Mutex
		entries map[*entry]struct{}
	}
}

// entry is a connection's place in the table.
type entry struct {
	key     string // of the socket
	conn    *conn
	records bool // the client sends TLS records
	shard   uint32
}

func (t *table) init() {
	for i := range t.shards {
		t.shards[i].entries = make(map[*entry]struct{})
	}
}

func (t *table) add(key string, c *conn, records bool) *entry {
	e := &entry{key: key, conn: c, records: records, shard: t.next.Add(1) % uint32(len(t.shards))}
	s := &t.shards[e.shard]
	s.mu.Lock()
	s.entries[e] = struct{}{}
	s.mu.Unlock()
	return e
}

func (t *table) remove(e *entry) {
	s := &t.shards[e.shard]
	s.mu.Lock()
	delete(s.entries, e)
	s.mu.Unlock()
}

func (t *table) each(f func(*entry)) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for e := range s.entries {
			f(e)
		}
		s.mu.Unlock()
	}
}
