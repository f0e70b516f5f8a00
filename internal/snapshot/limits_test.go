package snapshot

import (
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/internal/limit"
	"countersign/internal/reason"
)

func TestLimitErrors(t *testing.T) {
	b := newBench(t)
	const (
		public = "protocol: https"
		host   = "names: [a.test, \"*.w.test\"]"
		route  = "{match: {path: /x}, upstream: api}"
		plain  = "protocol: http\n"
		at     = "listeners.public"
	)
	many := strings.Repeat("{per: route, requests: 1}, ", 5)
	for _, c := range []struct{ name, old, new, path, message string }{
		{"no per", route, "{upstream: api, rate_limits: [{requests: 1}]}", at + ".hosts[1].routes[0].rate_limits[0]", "missing required key \"per\""},
		{"no number", route, "{upstream: api, rate_limits: [{per: route}]}", at + ".hosts[1].routes[0].rate_limits[0]", "missing required key \"requests\""},
		{"zero", route, "{upstream: api, rate_limits: [{per: route, requests: 0}]}", at + ".hosts[1].routes[0].rate_limits[0].requests", "found \"0\""},
		{"zero at once", route, "{upstream: api, concurrency: [{per: route, requests: 0}]}", at + ".hosts[1].routes[0].concurrency[0].requests", "found \"0\""},
		{"negative", route, "{upstream: api, rate_limits: [{per: route, requests: -1}]}", at + ".hosts[1].routes[0].rate_limits[0].requests", "negative"},
		{"unknown per", route, "{upstream: api, rate_limits: [{per: cookie, requests: 1}]}", at + ".hosts[1].routes[0].rate_limits[0].per", "cookie"},
		{"none", route, "{upstream: api, rate_limits: []}", at + ".hosts[1].routes[0].rate_limits", "has no value"},
		{"too large", route, "{upstream: api, rate_limits: [{per: route, requests: 1000001}]}", at + ".hosts[1].routes[0].rate_limits[0].requests", "at most 1000000"},
		{"burst too large", route, "{upstream: api, rate_limits: [{per: route, requests: 1, burst: 1000001}]}", at + ".hosts[1].routes[0].rate_limits[0].burst", "at most 1000000"},
		{"too slow", route, "{upstream: api, rate_limits: [{per: route, requests: 1, every: 25h}]}", at + ".hosts[1].routes[0].rate_limits[0].every", "25h"},
		{"too many", route, "{upstream: api, rate_limits: [" + many + "]}", at + ".hosts[1].routes[0].rate_limits", "there are 5"},
		{"per host at a route", route, "{upstream: api, rate_limits: [{per: host, requests: 1}]}", at + ".hosts[1].routes[0].rate_limits[0].per", "no meaning at a route"},
		{"per route at a host", host, host + "\n        concurrency: [{per: route, requests: 1}]", at + ".hosts[0].concurrency[0].per", "no meaning at a host"},
		{"per route at a listener", public, public + "\n    rate_limits: [{per: route, requests: 1}]", at + ".rate_limits[0].per", "no meaning at a listener"},
		{"certificates on http", plain, plain + "    rate_limits: [{per: client_certificate, requests: 1}]\n", "listeners.plain.rate_limits[0].per", "its clients have none"},
		{"requests of bytes", "protocol: passthrough", "protocol: passthrough\n    rate_limits: [{per: listener, requests: 1}]", "listeners.through.rate_limits", "knows no requests"},
		{"requests of bytes, host", "names: [t.test]", "names: [t.test], concurrency: [{per: host, requests: 1}]", "listeners.through.hosts[0].concurrency", "knows no requests"},
		{"connections of one address", public, public + "\n    limits: {connections: 10, connections_per_address: 11}", at + ".limits.connections_per_address", "connections: 10"},
		{"handshakes without a rate", public, public + "\n    limits: {handshakes_per_address: {burst: 1}}", at + ".limits.handshakes_per_address", "missing required key \"rate\""},
		{"handshakes too many", public, public + "\n    limits: {handshakes_per_address: {rate: 1000001}}", at + ".limits.handshakes_per_address.rate", "at most 1000000"},
		{"handshakes at once", "listeners:", "limits: {handshakes_at_once: 10001}\nlisteners:", "limits.handshakes_at_once", "10001"},
		{"waiting", "listeners:", "limits: {handshake_wait: 2m}\nlisteners:", "limits.handshake_wait", "2m"},
	} {
		t.Run("B25/"+c.name, func(t *testing.T) {
			text := strings.Replace(good, c.old, c.new, 1)
			if text == good {
				t.Fatal("nothing was replaced")
			}
			s, problems := b.compile(text)
			if s != nil {
				t.Fatal("accepted")
			}
			for _, p := range problems {
				if p.Path == c.path && strings.Contains(p.Message, c.message) && !p.Warning {
					return
				}
			}
			t.Errorf("expected %s: %s; found %v", c.path, c.message, problems)
		})
	}
}

func TestLimits(t *testing.T) {
	b := newBench(t)
	gate := func(s *Snapshot, name string) *limit.Settings {
		t.Helper()
		i := slices.IndexFunc(s.Gates, func(g *limit.Settings) bool { return g.Name == name })
		if i < 0 {
			t.Fatalf("no gate is named %q", name)
		}
		return s.Gates[i]
	}
	s, problems := b.compile(good)
	if s == nil {
		t.Fatal(problems)
	}
	public := s.Listeners["public"]
	door := gate(s, public.Door)
	if want := (limit.RateSettings{Per: limit.Address, Requests: 200, Every: time.Second, Burst: 400, ExceptLocal: true, Reason: reason.AddressHandshakes}); door.Rates[0] != want {
		t.Errorf("F04/handshakes: %+v, expected %+v", door.Rates[0], want)
	}
	if want := (limit.ConcurrencySettings{Per: limit.Address, Requests: 15000, ExceptLocal: true, Reason: reason.AddressConnections}); door.Concurrency[0] != want {
		t.Errorf("F04/connections: %+v, expected %+v", door.Concurrency[0], want)
	}
	if len(s.Gates) != len(s.Listeners) || public.Gate != "" || public.Hosts[0].Gate != "" || s.Handshakes != (limit.HandshakeSettings{}) {
		t.Errorf("limits that nobody asked for: %d", len(s.Gates))
	}
	text := strings.NewReplacer(
		"protocol: https", "protocol: https\n    limits: {connections: 100, connections_per_address: 7, handshakes_per_address: {rate: 5}}\n    concurrency: [{per: listener, requests: 9}]",
		"{match: {path: /x}, upstream: api}", "{match: {path: /x}, upstream: api, rate_limits: [{per: route, requests: 3}, {per: client_certificate, requests: 1, every: 1m, burst: 2}]}, {match: {path: /y}, upstream: api, rate_limits: [{per: route, requests: 3}]}",
		"names: [p.test]", "names: [p.test], rate_limits: [{per: client_address, requests: 1}]",
		"listeners:", "limits: {handshakes_at_once: 3, handshake_wait: 1s}\nlisteners:").Replace(good)
	s, problems = b.compile(text)
	if s == nil {
		t.Fatal(problems)
	}
	public = s.Listeners["public"]
	door = gate(s, public.Door)
	if door.Rates[0].Requests != 5 || door.Rates[0].Burst != 10 || door.Rates[0].ExceptLocal || door.Concurrency[0].Requests != 7 || door.Concurrency[0].ExceptLocal {
		t.Errorf("F04/what is written holds for everybody: %+v", door)
	}
	if g := gate(s, public.Gate); len(g.Rates) != 0 || g.Concurrency[0] != (limit.ConcurrencySettings{Per: limit.Everybody, Requests: 9}) {
		t.Errorf("listener: %+v", g)
	}
	if g := gate(s, s.Listeners["plain"].Hosts[0].Gate); g.Rates[0] != (limit.RateSettings{Per: limit.Address, Requests: 1, Every: time.Second, Burst: 1}) {
		t.Errorf("host: %+v", g)
	}
	if s.Handshakes != (limit.HandshakeSettings{AtOnce: 3, Wait: time.Second}) {
		t.Errorf("process: %+v", s.Handshakes)
	}
	rules := public.Hosts[1].Routes.Rules()
	first, second, last := rules[0].Value, rules[1].Value, rules[2].Value
	if g := gate(s, first.Gate); g.Rates[0].Per != limit.Everybody || g.Rates[1] != (limit.RateSettings{Per: limit.Certificate, Requests: 1, Every: time.Minute, Burst: 2}) {
		t.Errorf("route: %+v", g)
	}
	if first.Gate == second.Gate || second.Gate == "" || last.Gate != "" {
		t.Errorf("routes: %q %q %q", first.Gate, second.Gate, last.Gate)
	}
	// A route keeps its name when others come before it.
	s, problems = b.compile(strings.Replace(text, "routes: [{match", "routes: [{match: {path: /new}, upstream: api}, {match", 1))
	if s == nil {
		t.Fatal(problems)
	}
	if moved := s.Listeners["public"].Hosts[1].Routes.Rules()[1].Value.Gate; moved != first.Gate {
		t.Errorf("F04/%q was %q before another route came: what was counted is forgotten", moved, first.Gate)
	}
}
