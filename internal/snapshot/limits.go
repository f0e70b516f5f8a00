package snapshot

import (
	"encoding/json"
	"fmt"
	"time"

	"countersign/internal/config"
	"countersign/internal/limit"
	"countersign/internal/reason"
)

// Defaults, each with its reason in docs/limits.md.
const (
	defaultHandshakeRate  = 200 // per address and second
	defaultHandshakeBurst = 400

	// What one scope may have of each kind, and the numbers of one limit.
	maxLimits   = 4
	maxRequests = 1_000_000
	maxEvery    = 24 * time.Hour
)

// processLimits compiles what bounds the whole process.
func (c *compiler) processLimits(s *Snapshot, l *config.ProcessLimits) {
	if l == nil {
		return
	}
	s.Handshakes = limit.HandshakeSettings{AtOnce: l.HandshakesAtOnce, Wait: time.Duration(l.HandshakeWait)}
	if l.HandshakesAtOnce > 10_000 {
		c.problem("limits.handshakes_at_once", "leave it out: one for each processor keeps them all busy", "handshakes_at_once is %d; so many would compute at once that nothing else could", l.HandshakesAtOnce)
	}
	if s.Handshakes.Wait > time.Minute {
		c.problem("limits.handshake_wait", "use at most 1m", "handshake_wait is %s; the handshake's own time limit is over before that", s.Handshakes.Wait)
	}
}

// door compiles what an address may open on a listener. Every listener has it.
func (c *compiler) door(path string, out *Listener, l *config.Limits) {
	if l == nil {
		l = new(config.Limits)
	}
	connections := limit.ConcurrencySettings{Per: limit.Address, Requests: l.ConnectionsPerAddress, Reason: reason.AddressConnections}
	if l.ConnectionsPerAddress == 0 {
		connections.Requests, connections.ExceptLocal = max(out.Limits.Connections/4*3, 1), true
	} else if l.ConnectionsPerAddress > out.Limits.Connections {
		c.problem(config.Path(path, "connections_per_address"), "use at most connections, or raise connections",
			"connections_per_address is %d, and the whole listener has connections: %d", l.ConnectionsPerAddress, out.Limits.Connections)
	}
	rate := limit.RateSettings{Per: limit.Address, Requests: defaultHandshakeRate, Every: time.Second, Burst: defaultHandshakeBurst,
		ExceptLocal: true, Reason: reason.AddressHandshakes}
	if h := l.HandshakesPerAddress; h != nil {
		rate.Requests, rate.Burst, rate.ExceptLocal = h.Rate, h.Burst, false
		if h.Burst == 0 {
			rate.Burst = 2 * h.Rate
		}
		at := config.Path(path, "handshakes_per_address")
		c.atMost(config.Path(at, "rate"), "rate", h.Rate)
		c.atMost(config.Path(at, "burst"), "burst", h.Burst)
	}
	out.Door = "connections of " + out.Name
	c.gates = append(c.gates, &limit.Settings{Name: out.Door, Rates: []limit.RateSettings{rate}, Concurrency: []limit.ConcurrencySettings{connections}})
}

// gate compiles the limits of requests in a scope: a listener, host or route, which place says. It returns the gate's
// name, empty when there are no limits.
func (c *compiler) gate(path, place, name string, p Protocol, rates []config.RateLimit, caps []config.ConcurrencyLimit) string {
	if len(rates)+len(caps) == 0 {
		return ""
	}
	for key, n := range map[string]int{"rate_limits": len(rates), "concurrency": len(caps)} {
		if n > 0 && !p.Requests() && p != 0 {
			c.problem(config.Path(path, key), "use limits.connections_per_address and limits.handshakes_per_address", "%s has no meaning on a listener of protocol %s: it knows no requests", key, p)
		}
		if n > maxLimits {
			c.problem(config.Path(path, key), fmt.Sprintf("use at most %d; every request is counted in each of them", maxLimits), "there are %d %s of one %s", n, key, place)
		}
	}
	s := &limit.Settings{Name: name}
	for i, r := range rates {
		at := config.Path(path, "rate_limits", i)
		out := limit.RateSettings{Per: c.per(config.Path(at, "per"), r.Per, place, p), Requests: r.Requests, Every: r.Every.Or(time.Second), Burst: r.Burst}
		if out.Burst == 0 {
			out.Burst = r.Requests
		}
		c.atMost(config.Path(at, "requests"), "requests", r.Requests)
		c.atMost(config.Path(at, "burst"), "burst", r.Burst)
		if out.Every > maxEvery {
			c.problem(config.Path(at, "every"), "use at most 24h: what was counted does not outlast a restart", "every is %s", out.Every)
		}
		s.Rates = append(s.Rates, out)
	}
	for i, r := range caps {
		at := config.Path(path, "concurrency", i)
		s.Concurrency = append(s.Concurrency, limit.ConcurrencySettings{Per: c.per(config.Path(at, "per"), r.Per, place, p), Requests: r.Requests})
		c.atMost(config.Path(at, "requests"), "requests", r.Requests)
	}
	if c.gated[s.Name] { // two routes with the same match: only the first is ever used
		s.Name += " at " + path
	}
	c.gated[s.Name] = true
	c.gates = append(c.gates, s)
	return s.Name
}

// per reads what is counted apart in a scope.
func (c *compiler) per(path, per, place string, p Protocol) limit.Per {
	switch per {
	case "client_address":
		return limit.Address
	case "client_certificate":
		if p == HTTP {
			c.problem(path, "use per: client_address", "per: client_certificate has no meaning on a listener of protocol http: its clients have none")
		}
		return limit.Certificate
	case place, "": // a missing one is told by the decoder
		return limit.Everybody
	}
	c.problem(path, "write per: "+place+", or move the limit", "per: %s has no meaning at a %s", per, place)
	return limit.Everybody
}

func (c *compiler) atMost(path, key string, n int) {
	if n > maxRequests {
		c.problem(path, "leave the limit out, or use a smaller number", "%s is %d, expected at most %d", key, n, maxRequests)
	}
}

// routeGate names the gate of a route: by what it matches, so that other routes may come and go.
func routeGate(l *Listener, h *Host, r *config.Route) string {
	match, _ := json.Marshal(r.Match)
	return "route " + l.Name + "/" + h.Name + " " + string(match)
}
