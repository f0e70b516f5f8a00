package upstream

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"countersign/internal/message"
)

// Health is an active check of a pool's targets.
type Health struct {
	// Path is requested with GET; empty means that a connection, with TLS where the pool has it, is enough.
	Path string
	// GRPC calls grpc.health.v1.Health/Check for Service in place of GET. The pool has to speak HTTP/2.
	GRPC    bool
	Service string
	// Host is sent with the request.
	Host string
	// Status are the good answers.
	Status []StatusRange
	// Interval is the time between checks of one target, Timeout the time one check may take.
	Interval, Timeout time.Duration
	// Healthy and Unhealthy are how many checks in a row change a target's state.
	Healthy, Unhealthy int
}

// StatusRange is a range of HTTP status codes, both ends included.
type StatusRange struct{ Min, Max int }

// good reports whether status is one of the good answers.
func (h *Health) good(status int) bool {
	return slices.ContainsFunc(h.Status, func(r StatusRange) bool { return r.Min <= status && status <= r.Max })
}

// want is the good answers as the configuration has them.
func (h *Health) want() string {
	var b strings.Builder
	for i, r := range h.Status {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(r.Min))
		if r.Max != r.Min {
			b.WriteString("-" + strconv.Itoa(r.Max))
		}
	}
	return b.String()
}

// watch checks one target until ctx ends, for the first time after wait. A target counts as healthy until its checks say otherwise, so that a restart
// does not begin with an outage.
func (p *Pool) watch(ctx context.Context, t *Target, wait time.Duration) {
	var w watched
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = p.examine(ctx, t, &w)
	}
}

// watched is what one check leaves to the next.
type watched struct {
	run   int  // checks in a row that contradict the target's state
	stale bool // the state has changed, and the view may not show it
}

// soon is the time until a target's first check: those of many targets come at different times.
func (h *Health) soon() time.Duration { return rand.N(h.Interval/4 + 1) }

// examine makes one check, takes in what it says and returns the time until the next one. A panic costs no more than that
// one check (F16).
func (p *Pool) examine(ctx context.Context, t *Target, w *watched) (wait time.Duration) {
	h := p.Health
	wait = h.Interval
	defer func() {
		if v := recover(); v != nil {
			p.caught("panic behind a health check", t.Address, v)
		}
	}()
	wait = h.Interval - h.Interval/20 + rand.N(h.Interval/10+1)
	err := p.check(ctx, t)
	if ctx.Err() != nil {
		return wait
	}
	if w.stale { // the last one did not come to its end
		p.changed()
		w.stale = false
	}
	down := t.down.Load()
	if (err != nil) == down {
		w.run = 0
		return wait
	}
	need := h.Unhealthy
	if down {
		need = h.Healthy
	}
	if w.run++; w.run < need {
		return wait
	}
	w.run = 0
	if down && p.SlowStart > 0 {
		t.risen.Store(time.Now().UnixNano())
	}
	w.stale = true
	t.down.Store(!down)
	p.changed()
	w.stale = false
	if down {
		p.log.Info("target is healthy again", "upstream", p.Name, "target", t.Address)
	} else {
		p.log.Warn("target is unhealthy", "upstream", p.Name, "target", t.Address, "error", err)
	}
	return wait
}

// check makes one check over a connection of its own: the same dialling, verification and client certificate as for
// traffic (H16), and nothing that traffic uses later (A09).
func (p *Pool) check(ctx context.Context, t *Target) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic in a health check: %v", v)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, p.Health.Timeout)
	defer cancel()
	c, refusal := p.open(ctx, t, nil)
	if refusal != nil {
		return refusal
	}
	defer c.Wire.Close()
	defer c.R.Release()
	if p.Health.Path == "" && !p.Health.GRPC {
		return nil
	}
	deadline, _ := ctx.Deadline()
	_ = c.Wire.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { c.Wire.Close() })
	defer stop()
	if p.HTTP2 {
		return p.checkHTTP2(c, deadline)
	}
	if _, err := io.WriteString(c, "GET "+p.Health.Path+" HTTP/1.1\r\nHost: "+p.Health.Host+"\r\nUser-Agent: countersign-health\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	var resp message.Response
	for range 5 {
		if err := c.R.ReadResponse(&resp, false); err != nil {
			return err
		}
		if resp.Status >= 200 {
			break
		}
	}
	if !p.Health.good(resp.Status) {
		return fmt.Errorf("GET %s answers %d, expected %s", p.Health.Path, resp.Status, p.Health.want())
	}
	return nil
}
