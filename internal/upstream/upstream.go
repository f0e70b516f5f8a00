// Package upstream owns pools of targets: choosing one, dialling it with TLS, and reusing connections when, and only
// when, nothing of an earlier exchange can be left on them. It does not know what is exchanged.
package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"countersign/internal/certs"
	"countersign/internal/h1"
	"countersign/internal/h2"
	"countersign/internal/origin"
	"countersign/internal/reason"
	"countersign/internal/socket"
	"countersign/internal/trust"
)

// Settings are the immutable facts of a pool, compiled from configuration.
type Settings struct {
	// Name is the pool's name in the configuration.
	Name string
	// ID changes with every setting: a pool whose ID is the same goes on as it is.
	ID string
	// Wire changes with what makes connections of different settings not interchangeable. A pool that replaces one with
	// the same Wire takes over its targets with their connections, health and ejections. Empty takes over nothing.
	Wire string
	// Targets are the backends. At least one.
	Targets []TargetSettings
	// Bytes says that the targets are not spoken HTTP with, HTTP2 that it is HTTP/2.
	Bytes, HTTP2 bool
	// TLS is nil for plain targets.
	TLS *TLS
	// Connect, Response, Idle, Keepalive and Total are the waits of config.UpstreamTimeouts. A zero Total means no limit.
	Connect, Response, Idle, Keepalive, Total time.Duration
	// MaxConnections is the most connections to one target.
	MaxConnections int
	// MaxRequests is the most exchanges under way in the whole pool; 0 means no limit.
	MaxRequests int
	// MaxPending is how many acquisitions may wait while a limit is reached, each for QueueTimeout; 0 means none.
	MaxPending   int
	QueueTimeout time.Duration
	// Retries say how often a request may be tried again. The zero value means never.
	Retries Retries
	// HeadBytes and Fields bound a response head.
	HeadBytes, Fields int
	// Balance chooses among the targets. The zero value is RoundRobin.
	Balance Balance
	// Key is what Choice.Hash is made of, for Maglev and RingHash.
	Key Key
	// Sticky keeps clients at their target; nil means not.
	Sticky *Sticky
	// SlowStart is the time in which a target that came back gets its share little by little; 0 means at once.
	SlowStart time.Duration
	// Failover is the share of healthy targets, in percent, down to which targets of one priority are used; 0 means while
	// there is any.
	Failover int
	// Panic is the share of healthy targets, in percent, under which health is ignored; 0 means when there is none.
	Panic int
	// Health is how targets are checked; nil means not at all.
	Health *Health
	// Outlier is how targets are judged by what they answer; nil means not at all.
	Outlier *Outlier
	// DNS is how host names of targets become addresses.
	DNS DNS
	// Announce is the PROXY header that each connection begins with, which tells the target whose it is; nil for none.
	Announce *origin.Announcement
}

// TargetSettings are the facts of one target.
type TargetSettings struct {
	// Address is host:port; the host is an address or a name.
	Address string
	// Weight is the target's share among the others; 0 gets nothing new.
	Weight int
	// Priority is the group of the target; the lowest number is used first.
	Priority int
	// State is what the operator wants of the target.
	State State
}

// State is what the operator wants of a target.
type State uint8

// The states.
const (
	Active   State = iota
	Draining       // gets nothing but the requests of clients that a sticky cookie keeps there
	Disabled       // gets nothing
)

// String returns the state's name in the configuration.
func (s State) String() string { return [...]string{"active", "draining", "disabled"}[s] }

// TLS says how a target is verified and how we prove ourselves to it. There is no way to leave out the verification.
type TLS struct {
	ServerName   string
	Store        *trust.Store
	Certificates []*tls.Certificate
}

// Dialer opens network connections; nil means the ordinary one.
type Dialer func(ctx context.Context, network, address string) (net.Conn, error)

// Registry holds the pools by name. Pools outlive configurations: one whose settings did not change keeps its
// connections. The zero value is not usable; see NewRegistry.
type Registry struct {
	dial     Dialer
	names    Resolver
	log      *slog.Logger
	panicked func()     // told of panics that were caught
	mu       sync.Mutex // serialises Apply
	pools    atomic.Pointer[map[string]*Pool]
	wanted   map[string]bool // of the latest configuration
}

// NewRegistry makes an empty registry. With a dialer of the caller's, names are the dialer's to resolve until SetResolver
// is called.
func NewRegistry(dial Dialer, log *slog.Logger) *Registry {
	r := &Registry{dial: dial, log: log}
	if dial == nil {
		d := &net.Dialer{KeepAlive: 30 * time.Second}
		d.SetMultipathTCP(false) // sandboxes that know TCP do not know MPTCP
		r.dial, r.names = d.DialContext, overhearing{}
	}
	r.pools.Store(&map[string]*Pool{})
	return r
}

// SetResolver makes names be resolved by n. Call it before Apply.
func (r *Registry) SetResolver(n Resolver) { r.names = n }

// Apply makes the pools of a new configuration available and returns a function that retires the ones it no longer
// names; call it a while after the configuration was swapped, so that no request that was decided before looks for a pool
// that is gone already.
func (r *Registry) Apply(settings []*Settings) (retire func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := *r.pools.Load()
	next := make(map[string]*Pool, len(settings)+len(old))
	for name, p := range old {
		next[name] = p
	}
	wanted := make(map[string]bool, len(settings))
	var replaced []*Pool
	for _, s := range settings {
		wanted[s.Name] = true
		if p := old[s.Name]; p != nil && p.ID == s.ID {
			continue
		} else if p != nil {
			replaced = append(replaced, p)
		}
		next[s.Name] = r.newPool(s, old[s.Name])
	}
	r.pools.Store(&next)
	r.wanted = wanted
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, p := range replaced {
			p.retire()
		}
		kept := make(map[string]*Pool, len(r.wanted))
		for name, p := range *r.pools.Load() {
			if r.wanted[name] { // by the latest configuration, which may be another one by now
				kept[name] = p
				continue
			}
			p.retire()
		}
		r.pools.Store(&kept)
	}
}

// OnPanic has f called for each panic that is caught behind a pool. Call it before Apply.
func (r *Registry) OnPanic(f func()) { r.panicked = f }

// View is the pools as they are now. A request that was decided under a configuration finds its pool in the view of that
// one, however long it takes and whatever came after: a pool that was retired still makes connections, and keeps none.
type View struct{ pools map[string]*Pool }

// View returns the pools of the last Apply, and of those before that are not retired yet.
func (r *Registry) View() View { return View{*r.pools.Load()} }

// Pool finds a pool by name.
func (v View) Pool(name string) *Pool { return v.pools[name] }

// Pool finds a pool by name.
func (r *Registry) Pool(name string) *Pool { return (*r.pools.Load())[name] }

// Tidy closes connections that have been idle too long. Call it about once a second.
func (r *Registry) Tidy(now time.Time) {
	for _, p := range *r.pools.Load() {
		p.tidy(now)
	}
}

// Pool is one upstream's targets and their idle connections.
type Pool struct {
	*Settings
	dial     Dialer
	names    Resolver
	log      *slog.Logger
	panicked func()

	view atomic.Pointer[view] // what is chosen from
	next atomic.Uint32        // turns

	queue    *queue // nil without a limit that waits or counts
	active   atomic.Int32
	retrying atomic.Int32
	counts   counts

	mu      sync.Mutex // of what follows
	members []*member
	answers map[string][]netip.Addr // of the resolver, the last good ones
	lost    map[string]bool         // names that cannot be resolved at present
	changes atomic.Uint64           // asked for, and
	built   uint64                  // in view
	ramping bool                    // a weight in view changes with time
	swept   time.Time               // when targets were last judged
	stopped bool

	before  atomic.Pointer[Pool] // that this one took over from, while somebody may wait there
	retired atomic.Bool
	stop    context.CancelFunc // of the health checks and the resolver
	ctx     context.Context    // ended by stop
	checks  sync.WaitGroup
}

// member is a target as one pool is configured to use it.
type member struct {
	*Target
	conf *TargetSettings
	id   uint64             // in sticky cookies
	stop context.CancelFunc // of its health check; nil for none
}

// Target is one backend address. It outlives the pool that made it when the next one takes it over.
type Target struct {
	Address string
	busy    atomic.Int32 // exchanges under way
	down    atomic.Bool  // its health check fails
	drained atomic.Bool  // no idle connections are kept
	gone    atomic.Bool  // no pool has it any longer
	unknown atomic.Bool  // its name has not been resolved yet
	ejected atomic.Int64 // until when, in Unix nanoseconds; 0 means not
	risen   atomic.Int64 // when its slow start began, in Unix nanoseconds; 0 means never
	owner   atomic.Pointer[Pool]
	addrs   atomic.Pointer[[]netip.AddrPort] // of a name; nil before the first answer
	hash    uint64                           // of Address
	kept    atomic.Uint64                    // its id in the owner's sticky cookies
	faults  faults
	latency latency

	mu       sync.Mutex
	open     int        // connections open or being opened
	idle     []*Conn    // newest last
	sessions []*session // of HTTP/2, whether in use or not
	dial     *dial      // the next one, while it is being made
}

func newTarget(address string) *Target {
	return &Target{Address: address, hash: Hash([]byte(address))}
}

// newPool makes a pool that takes over from old, which may be nil, what stays the same.
func (r *Registry) newPool(s *Settings, old *Pool) *Pool {
	p := &Pool{Settings: s, dial: r.dial, names: r.names, log: r.log, panicked: r.panicked, answers: make(map[string][]netip.Addr), lost: make(map[string]bool)}
	p.ctx, p.stop = context.WithCancel(context.Background())
	if s.MaxRequests > 0 || s.MaxPending > 0 {
		p.queue = new(queue)
	}
	if old != nil && (old.Wire != s.Wire || s.Wire == "") {
		old = nil
	}
	if old != nil {
		p.before.Store(old)
		old.stop() // two pools' checks of one target would disagree
		old.mu.Lock()
		maps.Copy(p.answers, old.answers)
		old.mu.Unlock()
	}
	p.mu.Lock()
	p.settle(old)
	p.mu.Unlock()
	p.resolve()
	return p
}

// Conn is one connection to a target, used for one exchange at a time.
type Conn struct {
	// Conn is what to write to: the TLS connection, or the plain one.
	net.Conn
	// Wire is the connection beneath TLS; deadlines go there.
	Wire *socket.Conn
	// R reads responses; Stream takes its place in HTTP/2, where other exchanges use the same connection.
	R      h1.Reader
	Stream *h2.Stream
	Target *Target
	// Reused says that the connection has carried an exchange before.
	Reused bool
	// Private says that only the client whose exchanges it has carried may use it again.
	Private bool

	pool *Pool
	tls  *tls.Conn
	read func([]byte) (int, error)
	// asked is set when the target asked for a client certificate that we do not have.
	asked     bool
	idle      bool // in Target.idle: nothing is under way
	idleSince time.Time
}

// Choice is what a request says about where it wants to go. The zero value leaves it to the pool.
type Choice struct {
	// Hash is the hash of what Settings.Key names; HasHash says that the request had it. Without it Maglev and RingHash
	// choose at random.
	Hash    uint64
	HasHash bool
	// Sticky is what Sticky.Read found in the client's cookie; 0 for nothing.
	Sticky uint64
	// Client is the hash of the client's certificate, for a pool that is sticky by it; 0 for none.
	Client uint64
	// Announce makes the header of Settings.Announce; nil for a connection of our own.
	Announce func(*origin.Announcement) []byte
	// Fresh asks for a connection that has carried nothing yet.
	Fresh bool
	// Tried are targets that earlier tries of the request ended at; they come last.
	Tried []*Target
}

// Acquire is AcquireFor of a request that does not care.
func (p *Pool) Acquire(ctx context.Context) (*Conn, error) { return p.AcquireFor(ctx, Choice{}) }

// Fresh is Acquire of a connection that has carried nothing yet.
func (p *Pool) Fresh(ctx context.Context) (*Conn, error) {
	return p.AcquireFor(ctx, Choice{Fresh: true})
}

// AcquireFor takes an idle connection to the target that suits ch, or opens one. Targets that cannot be reached are passed
// over: nothing has been sent to them yet. Those that fail their health check come last: when no other is left they are
// tried all the same, because a check that fails everywhere says more about the check. Where a limit is reached it waits
// as the settings say. The error is a *reason.Refusal.
func (p *Pool) AcquireFor(ctx context.Context, ch Choice) (*Conn, error) {
	if p.queue != nil {
		return p.queued(ctx, &ch)
	}
	c, _, refusal := p.try(ctx, &ch)
	if c != nil { // whatever was met on the way
		return c, nil
	}
	return nil, refusal
}

// patience is how many times timeouts.connect one acquisition spends on targets that cannot be reached.
const patience = 2

// try is one pass over the targets. full says that it failed because limits were reached, which may change.
func (p *Pool) try(ctx context.Context, ch *Choice) (c *Conn, full bool, refusal *reason.Refusal) {
	v := p.view.Load()
	var began time.Time
	// left reports whether nobody wants the connection any more.
	left := func() bool {
		if ctx.Err() == nil {
			return false
		}
		if refusal == nil {
			refusal = &reason.Refusal{Reason: reason.ClientAborted, Cause: ctx.Err()}
		}
		return true
	}
	// next tries one target, and reports whether that ends the search.
	next := func(t *Target) bool {
		if p.HTTP2 {
			var none bool
			var why *reason.Refusal
			if c, none, why = p.share(ctx, t); c != nil {
				return true
			}
			if full = full || none; why != nil {
				refusal = why
			}
			// Whoever made the connection has reported it; a client that waited for it goes on to the next target.
			return left()
		}
		if c = t.pooled(p, ch); c != nil {
			return true
		}
		if !t.reserve(p.MaxConnections) {
			full = true
			return false
		}
		if began.IsZero() {
			began = time.Now()
		}
		t.busy.Add(1) // before, so that the choices made meanwhile see it
		if c, refusal = p.open(ctx, t, ch.Announce); c != nil {
			return true
		}
		t.busy.Add(-1)
		t.forget()
		if left() {
			return true
		}
		t.Report(Failed, time.Since(began))
		return time.Since(began) >= patience*p.Connect
	}
	if ch.Sticky != 0 {
		if m := v.stuck[ch.Sticky]; m != nil && !slices.Contains(ch.Tried, m.Target) && next(m.Target) {
			return c, false, refusal
		}
	}
	if n := len(v.picks); n > 0 {
		first := p.pick(v, ch, 0)
		for again := 1; again <= 3 && len(ch.Tried) > 0 && slices.Contains(ch.Tried, v.picks[first].Target); again++ {
			first = p.pick(v, ch, again)
		}
		passes := 1
		if len(ch.Tried) > 0 {
			passes = 2
		}
		for pass := range passes {
			for i := range n {
				t := v.picks[(first+i)%n].Target
				if passes == 2 && slices.Contains(ch.Tried, t) != (pass == 1) {
					continue
				}
				if next(t) {
					return c, false, refusal
				}
			}
			// Before the same targets again: those that are well and come after them.
			for _, m := range v.rest {
				if passes == 2 && pass == 0 && !full && m.well() && !slices.Contains(ch.Tried, m.Target) && next(m.Target) {
					return c, false, refusal
				}
			}
		}
	}
	// A limit says nothing about health: it does not send traffic to targets that are out.
	if n := len(v.rest); n > 0 && !full {
		first := int(p.next.Add(1) % uint32(n))
		for i := range n {
			if next(v.rest[(first+i)%n].Target) {
				return c, false, refusal
			}
		}
	}
	switch {
	case full && refusal == nil:
		refusal = &reason.Refusal{Reason: reason.UpstreamBusy}
	case refusal == nil:
		refusal = &reason.Refusal{Reason: reason.UpstreamNoTarget}
	default:
		full = false
	}
	return nil, full, refusal
}

// pooled takes an idle connection, unless the choice is a fresh one.
func (t *Target) pooled(p *Pool, ch *Choice) *Conn {
	if ch.Fresh || p.Announce != nil { // one that has announced a client is that client's (D13)
		return nil
	}
	c := t.takeIdle()
	if c != nil {
		c.pool = p
		t.busy.Add(1)
	}
	return c
}

func (t *Target) takeIdle() *Conn {
	for {
		t.mu.Lock()
		n := len(t.idle)
		if n == 0 {
			t.mu.Unlock()
			return nil
		}
		c := t.idle[n-1]
		t.idle[n-1] = nil
		t.idle = t.idle[:n-1]
		t.mu.Unlock()
		// What came while nobody had asked belongs to nobody: a response to a request that was never sent, or the end.
		if c.Wire.Peek() == socket.Quiet || !c.Wire.HasDescriptor() {
			c.Reused, c.idle = true, false
			return c
		}
		c.Discard()
	}
}

func (t *Target) reserve(limit int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if limit > 0 && t.open >= limit {
		return false
	}
	t.open++
	return true
}

func (t *Target) forget() {
	t.mu.Lock()
	t.open--
	t.mu.Unlock()
	if p := t.owner.Load(); p != nil {
		p.wake()
	}
}

func (p *Pool) open(ctx context.Context, t *Target, announce func(*origin.Announcement) []byte) (*Conn, *reason.Refusal) {
	ctx, cancel := context.WithTimeout(ctx, p.Connect)
	defer cancel()
	raw, err := p.connect(ctx, t)
	if err != nil {
		why := reason.UpstreamConnectFailed
		if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			why = reason.UpstreamConnectTimeout
		}
		return nil, &reason.Refusal{Reason: why, Cause: err}
	}
	c := &Conn{Wire: socket.New(raw, p.TLS != nil), Target: t, pool: p}
	c.Conn = c.Wire
	if a := p.Announce; a != nil {
		c.Private = true
		var head []byte
		if announce != nil {
			head = announce(a)
		} else {
			head = a.AppendOwn(nil)
		}
		if _, err := c.Wire.Write(head); err != nil { // it fits the send buffer of a new connection
			raw.Close()
			return nil, &reason.Refusal{Reason: reason.UpstreamConnectFailed, Cause: err}
		}
	}
	if p.TLS != nil {
		if refusal := c.handshake(ctx, p); refusal != nil {
			raw.Close()
			return nil, refusal
		}
	}
	c.read = c.Conn.Read
	c.R.Reset(c.Conn, h1.Limits{HeadBytes: p.HeadBytes, Fields: p.Fields}, true)
	return c, nil
}

// handshake proves the target to us and us to the target. Verification is trust's, as for clients; crypto/tls is told to
// leave it to VerifyConnection, which it calls on every handshake.
func (c *Conn) handshake(ctx context.Context, p *Pool) *reason.Refusal {
	var verdict trust.Verdict
	var why string
	conf := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         p.TLS.ServerName,
		InsecureSkipVerify: true, // VerifyConnection below verifies, with our own rules and reasons
		Renegotiation:      tls.RenegotiateNever,
		VerifyConnection: func(cs tls.ConnectionState) error {
			verdict = p.TLS.Store.VerifyServer(cs.PeerCertificates, p.TLS.ServerName, time.Now())
			if !verdict.Accepted {
				return errors.New("target certificate refused")
			}
			return nil
		},
		GetClientCertificate: func(req *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, sentence := certs.ClientFor(req, p.TLS.Certificates, time.Now())
			if cert == nil {
				c.asked, why = true, sentence
				p.log.Warn("no client certificate for target", "upstream", p.Name, "target", c.Target.Address, "why", sentence)
				return new(tls.Certificate), nil
			}
			return cert, nil
		},
	}
	if !p.Bytes {
		conf.NextProtos = []string{p.protocol()}
	}
	tc := tls.Client(c.Wire, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		switch {
		case verdict.Reason != reason.Unset && !verdict.Accepted:
			return &reason.Refusal{Reason: reason.UpstreamCertRefused, Expected: verdict.Expected, Found: verdict.Reason.String() + ": " + verdict.Found, Cause: verdict.Cause}
		case ctx.Err() != nil:
			return &reason.Refusal{Reason: reason.UpstreamConnectTimeout, Cause: err}
		case c.asked:
			return &reason.Refusal{Reason: reason.UpstreamClientCertNone, Found: why, Cause: err}
		}
		return &reason.Refusal{Reason: reason.UpstreamTLSFailed, Cause: err}
	}
	if p.HTTP2 && tc.ConnectionState().NegotiatedProtocol != "h2" {
		return &reason.Refusal{Reason: reason.UpstreamNoHTTP2, Expected: "h2, chosen in TLS (ALPN)", Found: strconv.Quote(tc.ConnectionState().NegotiatedProtocol)}
	}
	c.tls, c.Conn = tc, tc
	return nil
}

// Blame gives the reason for err met while talking to the target: in TLS 1.3 a target refuses our client certificate, or
// the lack of one, only after the handshake has ended for us.
func (c *Conn) Blame(err error) reason.Reason {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		if c.asked {
			return reason.UpstreamClientCertNone
		}
		return reason.UpstreamTLSFailed
	}
	return reason.UpstreamClosed
}

// Release gives the connection back for another exchange if clean says that request and response were complete and
// nothing is left on the connection, not even inside TLS; otherwise it closes it.
func (c *Conn) Release(clean bool, now time.Time) {
	if c.Stream != nil {
		c.closeStream()
		return
	}
	if !clean || c.pool.Announce != nil || c.dirty() { // what has announced a client is never another's
		c.Discard()
		return
	}
	c.R.Release()
	c.idleSince = now
	t := c.Target
	t.mu.Lock()
	if t.gone.Load() || t.drained.Load() { // since: nobody would tidy it
		t.mu.Unlock()
		c.Discard()
		return
	}
	c.idle = true
	p := c.pool // from here on the connection may be somebody else's
	t.idle = append(t.idle, c)
	t.mu.Unlock()
	t.over(p)
}

// over ends the exchange that the connection was acquired for.
func (c *Conn) over() { c.Target.over(c.pool) }

// over ends an exchange that p began.
func (t *Target) over(p *Pool) {
	t.busy.Add(-1)
	if p.queue != nil {
		p.leave()
	}
	if owner := t.owner.Load(); owner != p || p.before.Load() != nil {
		owner.wake() // a slot of the target that several pools use
	}
}

// Rest is Release of a connection that its owner keeps: it reports whether it can be used again, and closes it otherwise.
// A resting connection does not count as busy.
func (c *Conn) Rest(now time.Time) bool {
	if c.Stream != nil { // nothing of it is worth keeping
		c.closeStream()
		return false
	}
	if c.Target.drained.Load() || c.Target.crowded(c.pool) || c.dirty() {
		c.Discard()
		return false
	}
	c.R.Release()
	c.idleSince, c.idle = now, true
	c.over()
	return true
}

// crowded reports whether connections are too few to keep one that a single client may use: half of what is allowed is
// open, or somebody waits.
func (t *Target) crowded(p *Pool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return p.MaxConnections > 0 && t.open*2 > p.MaxConnections || p.queue != nil && p.queue.waiting()
}

// RestedFor reports whether the connection has been resting for d.
func (c *Conn) RestedFor(d time.Duration, now time.Time) bool { return now.Sub(c.idleSince) >= d }

// Wake is WakeFor of a request that does not care.
func (c *Conn) Wake(p *Pool) bool { return c.WakeFor(p, Choice{}) }

// WakeFor makes a resting connection busy again, if it is one to pool p and to a target that suits ch, nothing has come over
// it since, and no limit is reached.
func (c *Conn) WakeFor(p *Pool, ch Choice) bool {
	t := c.Target
	if t.owner.Load() != p || t.gone.Load() || ch.Fresh || slices.Contains(ch.Tried, t) || !p.suits(t, &ch) ||
		c.Wire.Peek() != socket.Quiet && c.Wire.HasDescriptor() {
		return false
	}
	if p.queue != nil && (p.queue.waiting() || !p.enter()) {
		return false
	}
	c.pool, c.Reused, c.idle = p, true, false
	t.busy.Add(1)
	return true
}

// dirty reports whether anything is left on the connection, even inside TLS, or whether its target is no more.
func (c *Conn) dirty() bool {
	return c.Target.gone.Load() || c.R.Buffered() > 0 || c.tls != nil && (c.Wire.Probe(c.read) || !c.Wire.Whole())
}

// Discard closes the connection.
func (c *Conn) Discard() {
	if c.Stream != nil {
		c.closeStream()
		return
	}
	if !c.idle {
		c.over()
	}
	c.R.Release()
	c.Target.forget()
	c.Wire.Close() // not the TLS connection, whose close_notify could block
}

// closeIdle closes the idle connections that are not used since before; zero means all.
func (t *Target) closeIdle(before time.Time) {
	var old []*Conn
	t.mu.Lock()
	n := 0
	for n < len(t.idle) && (before.IsZero() || !t.idle[n].idleSince.After(before)) {
		n++
	}
	if n > 0 {
		old = slices.Clone(t.idle[:n])
		t.idle = slices.Delete(t.idle, 0, n)
	}
	t.mu.Unlock()
	for _, c := range old {
		c.Discard()
	}
}

// retire ends the pool's checks, and the targets that no other pool has taken over.
func (p *Pool) retire() {
	p.mu.Lock()
	p.stopped = true
	members := p.members
	p.mu.Unlock()
	p.stop()
	p.checks.Wait()
	p.retired.Store(true)
	for _, m := range members {
		if m.owner.Load() == p {
			m.end()
		}
	}
}

// end closes what is idle; what is busy is closed when it is given back.
func (t *Target) end() {
	t.mu.Lock()
	t.gone.Store(true)
	t.mu.Unlock()
	t.closeIdle(time.Time{})
	t.tidySessions(time.Time{}, 0)
}

// Secure reports whether the pool's targets are spoken to with TLS.
func (p *Pool) Secure() bool { return p.TLS != nil }

// Secure reports whether the connection is made with TLS.
func (c *Conn) Secure() bool { return c.pool.Secure() }
