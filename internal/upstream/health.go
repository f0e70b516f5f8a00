package upstream

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"countersign/internal/message"
)

// Health is an active check of a pool's targets.
type Health struct {
	// Path is requested with GET; empty means that a connection, with TLS where the pool has it, is enough.
	Path string
	// Host is sent with the request.
	Host string
	// Status is the range of good answers.
	MinStatus, MaxStatus int
	// Interval is the time between checks of one target, Timeout the time one check may take.
	Interval, Timeout time.Duration
	// Healthy and Unhealthy are how many checks in a row change a target's state.
	Healthy, Unhealthy int
}

// watch checks one target until ctx ends. A target counts as healthy until its checks say otherwise, so that a restart
// does not begin with an outage.
func (p *Pool) watch(ctx context.Context, t *Target) {
	h := p.Health
	run := 0 // checks in a row that contradict the state
	// The first check comes soon, and those of many targets at different times.
	wait := rand.N(h.Interval/4 + 1)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = h.Interval - h.Interval/20 + rand.N(h.Interval/10+1)
		err := p.check(ctx, t)
		if ctx.Err() != nil {
			return
		}
		down := t.down.Load()
		if (err != nil) == down {
			run = 0
			continue
		}
		need := h.Unhealthy
		if down {
			need = h.Healthy
		}
		if run++; run < need {
			continue
		}
		run = 0
		t.down.Store(!down)
		if down {
			p.log.Info("target is healthy again", "upstream", p.Name, "target", t.Address)
		} else {
			p.log.Warn("target is unhealthy", "upstream", p.Name, "target", t.Address, "error", err)
		}
	}
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
	c, refusal := p.open(ctx, t)
	if refusal != nil {
		return refusal
	}
	defer c.Wire.Close()
	defer c.R.Release()
	if p.Health.Path == "" {
		return nil
	}
	deadline, _ := ctx.Deadline()
	_ = c.Wire.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { c.Wire.Close() })
	defer stop()
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
	if resp.Status < p.Health.MinStatus || resp.Status > p.Health.MaxStatus {
		return fmt.Errorf("GET %s answers %d, expected %d to %d", p.Health.Path, resp.Status, p.Health.MinStatus, p.Health.MaxStatus)
	}
	return nil
}
