// Package upstream owns pools of targets: choosing one, dialling it with TLS, and reusing connections when, and only
// when, nothing of an earlier exchange can be left on them. It does not know what is exchanged.
package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"countersign/internal/certs"
	"countersign/internal/h1"
	"countersign/internal/reason"
	"countersign/internal/socket"
	"countersign/internal/trust"
)

// Settings are the immutable facts of a pool, compiled from configuration.
type Settings struct {
	// Name is the pool's name in the configuration.
	Name string
	// ID changes with everything that makes connections of different settings not interchangeable.
	ID string
	// Targets are host:port addresses.
	Targets []string
	// Bytes says that the targets are not spoken HTTP with.
	Bytes bool
	// TLS is nil for plain targets.
	TLS *TLS
	// Connect, Response, Idle and Keepalive are the waits of config.UpstreamTimeouts.
	Connect, Response, Idle, Keepalive time.Duration
	// MaxConnections is the most connections to one target.
	MaxConnections int
	// HeadBytes and Fields bound a response head.
	HeadBytes, Fields int
	// Balance chooses among the targets. The zero value is RoundRobin.
	Balance Balance
	// Health is how targets are checked; nil means not at all.
	Health *Health
}

// Balance is a way to choose the next target.
type Balance uint8

// The ways.
const (
	RoundRobin    Balance = iota // each in turn
	LeastRequests                // the one with the fewest exchanges under way; in turn among equals
)

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
	dial  Dialer
	log   *slog.Logger
	mu    sync.Mutex // serialises Apply
	pools atomic.Pointer[map[string]*Pool]
}

// NewRegistry makes an empty registry.
func NewRegistry(dial Dialer, log *slog.Logger) *Registry {
	if dial == nil {
		d := &net.Dialer{KeepAlive: 30 * time.Second}
		d.SetMultipathTCP(false) // sandboxes that know TCP do not know MPTCP
		dial = d.DialContext
	}
	r := &Registry{dial: dial, log: log}
	r.pools.Store(&map[string]*Pool{})
	return r
}

// Apply makes the pools of a new configuration available and returns a function that retires the ones it no longer
// names; call it after the configuration was swapped, so that no request looks for a pool that is gone already.
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
		next[s.Name] = newPool(s, r.dial, r.log)
	}
	r.pools.Store(&next)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, p := range replaced {
			p.retire()
		}
		kept := make(map[string]*Pool, len(wanted))
		for name, p := range *r.pools.Load() {
			if wanted[name] {
				kept[name] = p
				continue
			}
			p.retire()
		}
		r.pools.Store(&kept)
	}
}

// Pool finds a pool by name.
func (r *Registry) Pool(name string) *Pool { return (*r.pools.Load())[name] }

// Tidy closes connections that have been idle too long. Call it about once a second.
func (r *Registry) Tidy(now time.Time) {
	for _, p := range *r.pools.Load() {
		p.tidy(now)
	}
}

// Stats are the connections of one target.
type Stats struct {
	Upstream, Target string
	Open, Idle, Busy int
	Healthy          bool
}

// Stats lists every target's connections, for metrics.
func (r *Registry) Stats() []Stats {
	var out []Stats
	for name, p := range *r.pools.Load() {
		for _, t := range p.targets {
			t.mu.Lock()
			out = append(out, Stats{name, t.Address, t.open, len(t.idle), int(t.busy.Load()), !t.down.Load()})
			t.mu.Unlock()
		}
	}
	return out
}

// Pool is one upstream's targets and their idle connections.
type Pool struct {
	*Settings
	dial    Dialer
	log     *slog.Logger
	targets []*Target
	next    atomic.Uint32
	retired atomic.Bool
	stop    context.CancelFunc // of the health checks
	checks  sync.WaitGroup
}

// Target is one backend address.
type Target struct {
	Address string
	busy    atomic.Int32 // exchanges under way
	down    atomic.Bool  // its health check fails
	mu      sync.Mutex
	open    int     // connections open or being opened
	idle    []*Conn // newest last
}

func newPool(s *Settings, dial Dialer, log *slog.Logger) *Pool {
	p := &Pool{Settings: s, dial: dial, log: log}
	for _, a := range s.Targets {
		p.targets = append(p.targets, &Target{Address: a})
	}
	var ctx context.Context
	ctx, p.stop = context.WithCancel(context.Background())
	if s.Health != nil {
		for _, t := range p.targets {
			p.checks.Go(func() { p.watch(ctx, t) })
		}
	}
	return p
}

// Conn is one connection to a target, used for one exchange at a time.
type Conn struct {
	// Conn is what to write to: the TLS connection, or the plain one.
	net.Conn
	// Wire is the connection beneath TLS; deadlines go there.
	Wire *socket.Conn
	// R reads responses.
	R      h1.Reader
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

// Acquire takes an idle connection to the next target, or opens one. Targets that cannot be reached are passed over:
// nothing has been sent to them yet. Those that fail their health check come last: when no other is left they are tried
// all the same, because a check that fails everywhere says more about the check. The error is a *reason.Refusal.
func (p *Pool) Acquire(ctx context.Context) (*Conn, error) { return p.acquire(ctx, true) }

// Fresh is Acquire of a connection that has carried nothing yet.
func (p *Pool) Fresh(ctx context.Context) (*Conn, error) { return p.acquire(ctx, false) }

func (p *Pool) acquire(ctx context.Context, idle bool) (*Conn, error) {
	first := p.first()
	var refusal *reason.Refusal
	for _, down := range [...]bool{false, true} {
		for i := range p.targets {
			t := p.targets[(first+i)%len(p.targets)]
			if t.down.Load() != down {
				continue
			}
			if idle {
				if c := t.takeIdle(); c != nil {
					t.busy.Add(1)
					return c, nil
				}
			}
			if !t.reserve(p.MaxConnections) {
				continue
			}
			c, err := p.open(ctx, t)
			if err == nil {
				t.busy.Add(1)
				return c, nil
			}
			t.forget()
			refusal = err
			if ctx.Err() != nil {
				return nil, refusal
			}
		}
	}
	if refusal == nil {
		refusal = &reason.Refusal{Reason: reason.UpstreamBusy}
	}
	return nil, refusal
}

// first is the index of the target to try first.
func (p *Pool) first() int {
	n := len(p.targets)
	turn := int(p.next.Add(1) % uint32(n))
	if p.Balance == RoundRobin {
		return turn
	}
	best, least := turn, int32(-1)
	for i := range n {
		k := (turn + i) % n
		if t := p.targets[k]; !t.down.Load() {
			if b := t.busy.Load(); least < 0 || b < least {
				best, least = k, b
			}
		}
	}
	return best
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
}

func (p *Pool) open(ctx context.Context, t *Target) (*Conn, *reason.Refusal) {
	ctx, cancel := context.WithTimeout(ctx, p.Connect)
	defer cancel()
	raw, err := p.dial(ctx, "tcp", t.Address)
	if err != nil {
		why := reason.UpstreamConnectFailed
		if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			why = reason.UpstreamConnectTimeout
		}
		return nil, &reason.Refusal{Reason: why, Cause: err}
	}
	c := &Conn{Wire: socket.New(raw, p.TLS != nil), Target: t, pool: p}
	c.Conn = c.Wire
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
		conf.NextProtos = []string{"http/1.1"}
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
	if !clean || c.dirty() {
		c.Discard()
		return
	}
	c.R.Release()
	c.idleSince = now
	t := c.Target
	t.mu.Lock()
	if c.pool.retired.Load() { // retired since: nobody would tidy it
		t.mu.Unlock()
		c.Discard()
		return
	}
	c.idle = true
	t.idle = append(t.idle, c)
	t.mu.Unlock()
	t.busy.Add(-1)
}

// Rest is Release of a connection that its owner keeps: it reports whether it can be used again, and closes it otherwise.
// A resting connection does not count as busy.
func (c *Conn) Rest(now time.Time) bool {
	if c.dirty() {
		c.Discard()
		return false
	}
	c.R.Release()
	c.idleSince, c.idle = now, true
	c.Target.busy.Add(-1)
	return true
}

// RestedFor reports whether the connection has been resting for d.
func (c *Conn) RestedFor(d time.Duration, now time.Time) bool { return now.Sub(c.idleSince) >= d }

// Wake makes a resting connection busy again, if it is one to pool p and nothing has come over it since.
func (c *Conn) Wake(p *Pool) bool {
	if c.pool != p || p.retired.Load() || c.Wire.Peek() != socket.Quiet && c.Wire.HasDescriptor() {
		return false
	}
	c.Reused, c.idle = true, false
	c.Target.busy.Add(1)
	return true
}

// dirty reports whether anything is left on the connection, even inside TLS, or whether its pool is no more.
func (c *Conn) dirty() bool {
	return c.pool.retired.Load() || c.R.Buffered() > 0 || c.tls != nil && (c.Wire.Probe(c.read) || !c.Wire.Whole())
}

// Discard closes the connection.
func (c *Conn) Discard() {
	if !c.idle {
		c.Target.busy.Add(-1)
	}
	c.R.Release()
	c.Target.forget()
	c.Wire.Close() // not the TLS connection, whose close_notify could block
}

func (p *Pool) tidy(now time.Time) {
	for _, t := range p.targets {
		var old []*Conn
		t.mu.Lock()
		n := 0
		for n < len(t.idle) && now.Sub(t.idle[n].idleSince) >= p.Keepalive {
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
}

func (p *Pool) retire() {
	p.stop()
	p.checks.Wait()
	p.retired.Store(true)
	for _, t := range p.targets {
		t.mu.Lock()
		old := t.idle
		t.idle = nil
		t.mu.Unlock()
		for _, c := range old {
			c.Discard()
		}
	}
}

// Secure reports whether the pool's targets are spoken to with TLS.
func (p *Pool) Secure() bool { return p.TLS != nil }
