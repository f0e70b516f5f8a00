package upstream

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"countersign/internal/h2"
	"countersign/internal/reason"
	"countersign/internal/socket"
)

// session is a connection of HTTP/2 to a target. The exchanges of several clients are under way on it at once, each on a
// stream of its own, where nothing can be left for the next.
type session struct {
	mux   *h2.Conn
	wire  *socket.Conn
	ended bool // guarded by the target's mu
}

// dial is a session that is being made. Who waits for it shares what comes of it, a failure too.
type dial struct {
	done    chan struct{} // closed when what follows is set
	full    bool
	refusal *reason.Refusal
}

// stream opens a stream on a session that has room for one, nil if none has.
func (t *Target) stream(p *Pool) *Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.sessions {
		if stream, err := s.mux.Open(); err == nil {
			return &Conn{Conn: s.wire, Stream: stream, Wire: s.wire, Target: t, Reused: true, pool: p}
		}
	}
	return nil
}

// share opens a stream to t, on a new session if those that there are have no room. full says that there may be no more
// sessions. It waits for no longer than ctx.
func (p *Pool) share(ctx context.Context, t *Target) (c *Conn, full bool, refusal *reason.Refusal) {
	t.busy.Add(1) // before, so that the choices made meanwhile see it
	defer func() {
		if c == nil {
			t.busy.Add(-1)
		}
	}()
	for {
		if c := t.stream(p); c != nil {
			return c, false, nil
		}
		t.mu.Lock()
		d := t.dial
		if d == nil {
			d = &dial{done: make(chan struct{})}
			t.dial = d
			go p.connectSession(t, d)
		}
		t.mu.Unlock()
		select {
		case <-d.done:
		case <-ctx.Done():
			return nil, false, &reason.Refusal{Reason: reason.UpstreamConnectTimeout, Cause: ctx.Err()}
		}
		if d.full || d.refusal != nil {
			return nil, d.full, d.refusal
		}
	}
}

// connectSession makes a session, and hands it out once the target has said how many streams it takes.
func (p *Pool) connectSession(t *Target, d *dial) {
	defer func() {
		if v := recover(); v != nil {
			p.caught("panic in making a connection to a target", t.Address, v)
			d.refusal = &reason.Refusal{Reason: reason.UpstreamConnectFailed}
		}
		t.mu.Lock()
		t.dial = nil
		t.mu.Unlock()
		close(d.done)
	}()
	if !t.reserve(p.MaxConnections) {
		d.full = true
		return
	}
	began := time.Now()
	c, refusal := p.open(context.Background(), t, nil)
	if refusal != nil {
		t.forget()
		d.refusal = refusal
		t.Report(Failed, time.Since(began))
		return
	}
	s := &session{wire: c.Wire}
	s.mux = h2.Client(c.Conn, h2.Settings{HeaderBytes: p.HeadBytes, Fields: 4 * p.Fields,
		Panicked: func(v any, _ []byte) { p.caught("panic in a connection to a target", t.Address, v) }})
	go p.serve(t, s)
	timer := time.NewTimer(max(p.Connect-time.Since(began), time.Second))
	defer timer.Stop()
	select {
	case <-s.mux.Ready():
	case <-timer.C:
		s.mux.AbortFor(reason.UpstreamConnectTimeout)
		t.Report(Failed, time.Since(began))
		d.refusal = &reason.Refusal{Reason: reason.UpstreamConnectTimeout, Expected: "settings of HTTP/2 within timeouts.connect", Found: "none"}
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.ended || s.mux.Room() < 0 {
		d.refusal = &reason.Refusal{Reason: reason.UpstreamClosed, Expected: "a connection of HTTP/2", Found: "one that ended at once"}
		return
	}
	t.sessions = append(t.sessions, s)
}

// serve reads what comes over a session until it ends.
func (p *Pool) serve(t *Target, s *session) {
	defer func() {
		if v := recover(); v != nil {
			p.caught("panic in a connection to a target", t.Address, v)
		}
		s.wire.Close()
		t.mu.Lock()
		s.ended = true
		t.sessions = slices.DeleteFunc(t.sessions, func(other *session) bool { return other == s })
		t.mu.Unlock()
		t.forget()
		s.mux.Abort() // whoever still waits on one of its streams is told; the last step, for a panic may have left it locked
	}()
	_ = s.mux.Serve()
}

// tidySessions lets sessions go that no stream has used since before, or all if it is zero; streams under way end first.
// A session whose target takes nothing is ended.
func (t *Target) tidySessions(before time.Time, stuck time.Duration) {
	t.mu.Lock()
	list := slices.Clone(t.sessions)
	t.mu.Unlock()
	now := time.Now().UnixMilli()
	for _, s := range list {
		switch since := s.mux.WritingSince(); {
		case since != 0 && stuck > 0 && now-since > stuck.Milliseconds():
			s.mux.AbortFor(reason.UpstreamTimeout)
		case before.IsZero() || s.mux.Streams() == 0 && s.mux.LastActivity() < before.UnixMilli():
			s.mux.GoAway()
		}
		s.mux.Tidy()
	}
}

// protocol is what targets are to choose (ALPN).
func (p *Pool) protocol() string {
	if p.HTTP2 {
		return "h2"
	}
	return "http/1.1"
}

// closeStream ends a stream's use.
func (c *Conn) closeStream() {
	c.Stream.Release()
	c.over()
	if c.Target.gone.Load() { // nobody would tidy its sessions
		c.Target.tidySessions(time.Time{}, 0)
	}
}

// caught logs a panic that was recovered, with the stack it is called on. A panic in the log goes nowhere.
func (p *Pool) caught(what, where string, v any) {
	defer func() { _ = recover() }()
	if p.panicked != nil {
		p.panicked()
	}
	p.log.Error(what, "upstream", p.Name, "target", where, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
}

// Panicked notes a panic beside the exchanges of clients.
func (p *Pool) Panicked(what string, v any) { p.caught(what, "", v) }
