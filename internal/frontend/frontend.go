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
	"net"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"countersign/internal/forward"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/snapshot"
	"countersign/internal/socket"
	"countersign/internal/upstream"
)

// Config is what a Frontend needs. Nil functions mean the ordinary ones.
type Config struct {
	Book   *record.Book
	Log    *slog.Logger
	Listen func(address string) (net.Listener, error)
	Dial   upstream.Dialer
}

// Frontend serves the listeners of the snapshot in force.
type Frontend struct {
	book   *record.Book
	log    *slog.Logger
	listen func(address string) (net.Listener, error)
	pools  *upstream.Registry
	clock  forward.Clock
	table  table

	current  atomic.Pointer[published]
	draining atomic.Bool

	mu    sync.Mutex // serialises Apply and Drain
	socks map[string]net.Listener
	wg    sync.WaitGroup // connections and accept loops
	stop  chan struct{}
	swept chan struct{}
}

// published is a snapshot together with the listeners' running parts. A connection compares the pointer: another one
// means that something may have changed.
type published struct {
	*snapshot.Snapshot
	listeners map[string]*active // by socket key
	ports     map[uint16]*active
}

// active is a listener of a snapshot with what outlives it.
type active struct {
	*snapshot.Listener
	book *record.Listener
	open *atomic.Int64
	port uint16 // 0 for a Unix socket
}

// New makes a frontend that serves nothing yet, and starts its clock. Close it with Drain.
func New(c Config) *Frontend {
	f := &Frontend{book: c.Book, log: c.Log, listen: c.Listen, pools: upstream.NewRegistry(c.Dial, c.Log),
		socks: make(map[string]net.Listener), stop: make(chan struct{}), swept: make(chan struct{})}
	if f.listen == nil {
		f.listen = Listen
	}
	f.table.init()
	f.clock.Set(time.Now())
	go f.sweep()
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

// Apply makes s the snapshot in force. New addresses are bound before anything changes, so that on an error everything
// stays as it was. Listeners that s does not name stop accepting; their connections are refused at their next request.
func (f *Frontend) Apply(s *snapshot.Snapshot) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.draining.Load() {
		return errors.New("shutting down")
	}
	next := &published{Snapshot: s, listeners: make(map[string]*active), ports: make(map[uint16]*active)}
	old := f.current.Load()
	bound := make(map[string]net.Listener)
	for _, l := range s.Listeners {
		k := key(l)
		a := &active{Listener: l, book: f.book.Listener(l.Name), open: new(atomic.Int64)}
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
		sock := f.socks[k]
		if sock == nil {
			sock = bound[k]
		}
		if addr, ok := sock.Addr().(*net.TCPAddr); ok {
			a.port = uint16(addr.Port)
			next.ports[a.port] = a
		}
	}
	retire := f.pools.Apply(s.Upstreams)
	f.book.Log(s.Log)
	f.current.Store(next)
	retire()
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
	var pause time.Duration
	for {
		raw, err := sock.Accept()
		if err == nil {
			pause = 0
			f.admit(k, raw)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		// Out of descriptors or memory, or a connection that ended before it was accepted: go on, and not at full speed.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		f.log.Warn("cannot accept a connection", "listener", k, "reason", reason.Overloaded.String(), "error", err, "retry_in", pause.String())
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
	a := f.current.Load().listeners[k]
	if a == nil {
		raw.Close()
		return
	}
	if n := a.open.Add(1); n > int64(a.Limits.Connections) {
		a.open.Add(-1)
		a.book.Handshake(&record.Handshake{Ref: newRef(), Client: peerOf(raw), Reason: reason.ConnectionLimit})
		raw.Close()
		return
	}
	c := &conn{f: f, sock: socket.New(raw, a.Protocol == snapshot.HTTPS), ref: newRef(), peer: peerOf(raw), listener: a, book: a.book}
	c.watch.Clock, c.watch.Client = &f.clock, c.sock
	c.entry = f.table.add(k, c, a.Protocol == snapshot.HTTPS)
	a.book.Opened()
	f.wg.Add(1)
	go func() {
		defer f.wg.Done()
		f.serve(c)
	}()
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

// sweep moves the clock, and ends waits whose time is up.
func (f *Frontend) sweep() {
	defer close(f.swept)
	tick := time.NewTicker(forward.Tick)
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
	draining := f.draining.Load()
	f.table.each(func(e *entry) {
		e.conn.watch.Sweep(now, e.records)
		if draining && e.conn.watch.Main.Phase() == forward.Idle && e.conn.listener.Protocol != snapshot.Passthrough {
			e.conn.watch.Interrupt()
		}
		e.conn.exchange.Tidy(false)
	})
	if n%4 == 0 {
		f.pools.Tidy(now)
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
			e.conn.sock.Close()
			e.conn.watch.Abandon()
		})
		if n > 0 {
			f.log.Warn("connections were cut at the end of the drain time", "reason", reason.ShutdownForced.String(), "connections", n)
		}
		select {
		case <-done:
		case <-time.After(2 * time.Second):
		}
	}
	close(f.stop)
	<-f.swept
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
