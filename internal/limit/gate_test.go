package limit

import (
	"net/netip"
	"testing"
	"time"

	"countersign/internal/reason"
)

func client(address, certificate byte) *Client {
	c := &Client{Address: AddressKey(netip.AddrFrom4([4]byte{192, 0, 2, address}))}
	if certificate > 0 {
		c.Certificate = CertificateKey([32]byte{certificate})
	}
	return c
}

// enter goes through gates with one pass and wants a reason.
func enter(t *testing.T, p *Pass, c *Client, want reason.Reason, gates ...*Gate) time.Duration {
	t.Helper()
	for _, g := range gates {
		if wait, why := p.Enter(g, c, time.Now()); why != reason.Unset {
			if why != want {
				t.Fatalf("refused as %v, expected %v", why, want)
			}
			return wait
		}
	}
	if want != reason.Unset {
		t.Fatalf("let in, expected %v", want)
	}
	return 0
}

func TestGate(t *testing.T) {
	r := NewRegistry()
	r.Apply([]*Settings{
		{Name: "host", Rates: []RateSettings{{Per: Address, Requests: 1, Every: time.Hour, Burst: 3}}},
		{Name: "route", Rates: []RateSettings{{Per: Certificate, Requests: 1, Every: time.Hour, Burst: 2}}, Concurrency: []ConcurrencySettings{{Per: Certificate, Requests: 1}}},
		{Name: "all", Concurrency: []ConcurrencySettings{{Per: Everybody, Requests: 2}}},
	})()
	host, route, all := r.Gate("host"), r.Gate("route"), r.Gate("all")
	t.Run("no gate", func(t *testing.T) {
		if r.Gate("other") != nil || r.Gate("") != nil {
			t.Error("a gate nobody made")
		}
		enter(t, new(Pass), client(1, 0), reason.Unset, nil)
		if (*Gate)(nil).Count(client(1, 0)) != 0 {
			t.Error("counted by no gate")
		}
	})
	t.Run("F17/too many under way", func(t *testing.T) {
		var first, second Pass
		enter(t, &first, client(1, 1), reason.Unset, route)
		enter(t, &second, client(2, 1), reason.ConcurrencyLimited, route) // the same certificate from elsewhere
		first.Leave()
		first.Leave()
		enter(t, &second, client(2, 1), reason.Unset, route)
		second.Leave()
	})
	t.Run("what is refused costs nothing elsewhere", func(t *testing.T) {
		// The certificate's two requests are used up; the address has two of three left, whatever is refused.
		for range 10 {
			var p Pass
			enter(t, &p, client(1, 1), reason.RateLimited, host, route)
			if len(p.taken) != 0 {
				t.Fatal("something is still held")
			}
		}
		for range 3 {
			var p Pass
			enter(t, &p, client(1, 2), reason.Unset, host)
			p.Leave()
		}
		if wait := enter(t, new(Pass), client(1, 2), reason.RateLimited, host); wait < 59*time.Minute {
			t.Errorf("wait %v, expected nearly an hour", wait)
		}
		enter(t, new(Pass), client(9, 2), reason.Unset, host)
	})
	t.Run("everybody together", func(t *testing.T) {
		var a, b, c Pass
		enter(t, &a, client(1, 0), reason.Unset, all)
		enter(t, &b, client(2, 0), reason.Unset, all)
		enter(t, &c, client(3, 0), reason.ConcurrencyLimited, all)
		a.Leave()
		enter(t, &c, client(3, 0), reason.Unset, all)
		b.Leave()
		c.Leave()
	})
	t.Run("no allocation on a second request", func(t *testing.T) {
		r.Apply([]*Settings{{Name: "wide", Rates: []RateSettings{{Per: Address, Requests: 1000, Every: time.Second, Burst: 1e6}},
			Concurrency: []ConcurrencySettings{{Per: Certificate, Requests: 5}, {Per: Everybody, Requests: 5}}}})()
		var p Pass
		c := client(1, 1)
		now := time.Now()
		if n := testing.AllocsPerRun(1000, func() {
			if _, why := p.Enter(r.Gate("wide"), c, now); why != reason.Unset {
				t.Fatal(why)
			}
			p.Leave()
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

// TestDoor is the gate of connections: its reasons are its own, and a loopback address is counted and not refused.
func TestDoor(t *testing.T) {
	r := NewRegistry()
	settings := func(except bool) []*Settings {
		return []*Settings{{Name: "door",
			Concurrency: []ConcurrencySettings{{Per: Address, Requests: 2, ExceptLocal: except, Reason: reason.AddressConnections}},
			Rates:       []RateSettings{{Per: Address, Requests: 1, Every: time.Hour, Burst: 3, ExceptLocal: except, Reason: reason.AddressHandshakes}}}}
	}
	r.Apply(settings(true))()
	far, near := client(1, 0), client(2, 0)
	near.Local = true
	t.Run("F04/connections of one address", func(t *testing.T) {
		var a, b, c Pass
		enter(t, &a, far, reason.Unset, r.Gate("door"))
		enter(t, &b, far, reason.Unset, r.Gate("door"))
		enter(t, &c, far, reason.AddressConnections, r.Gate("door"))
		if n := r.Gate("door").Count(far); n != 2 {
			t.Errorf("counts %d, expected 2", n)
		}
		b.Leave()
		enter(t, &c, far, reason.Unset, r.Gate("door"))
		c.Leave()
	})
	t.Run("F04/handshakes of one address", func(t *testing.T) {
		enter(t, new(Pass), far, reason.AddressHandshakes, r.Gate("door"))
	})
	t.Run("loopback", func(t *testing.T) {
		passes := make([]Pass, 10)
		for i := range passes {
			enter(t, &passes[i], near, reason.Unset, r.Gate("door"))
		}
		if n := r.Gate("door").Count(near); n != 10 {
			t.Errorf("counts %d, expected 10", n)
		}
		r.Apply(settings(false))() // as written by hand
		enter(t, new(Pass), near, reason.AddressConnections, r.Gate("door"))
		for i := range passes {
			passes[i].Leave()
		}
		if n := r.Gate("door").Count(near); n != 0 {
			t.Errorf("counts %d, expected none", n)
		}
	})
}

func TestRegistryOutlastsReloads(t *testing.T) {
	one := func(requests int) *Settings {
		return &Settings{Name: "one", Rates: []RateSettings{{Per: Address, Requests: 1, Every: time.Hour, Burst: requests}, {Per: Everybody, Requests: 1, Every: time.Second, Burst: 100}},
			Concurrency: []ConcurrencySettings{{Per: Address, Requests: requests}}}
	}
	r := NewRegistry()
	r.Apply([]*Settings{one(2)})()
	c := client(1, 0)
	var open [2]Pass
	for i := range open {
		enter(t, &open[i], c, reason.Unset, r.Gate("one"))
	}
	t.Run("F04/a reload forgives nothing", func(t *testing.T) {
		for range 100 {
			r.Apply([]*Settings{one(2)})()
		}
		enter(t, new(Pass), c, reason.ConcurrencyLimited, r.Gate("one"))
		open[0].Leave()
		enter(t, new(Pass), c, reason.RateLimited, r.Gate("one"))
	})
	t.Run("new numbers hold at once", func(t *testing.T) {
		r.Apply([]*Settings{one(4)})()
		var p Pass
		enter(t, &p, c, reason.Unset, r.Gate("one"))
		p.Leave()
	})
	t.Run("a pass ends where it began", func(t *testing.T) {
		retire := r.Apply(nil)
		if r.Gate("one") == nil {
			t.Error("gone while requests that were decided before may still ask for it")
		}
		retire()
		if r.Gate("one") != nil {
			t.Error("still there")
		}
		open[1].Leave() // of a gate that is gone
	})
	t.Run("retire after the next one", func(t *testing.T) {
		early := r.Apply(nil)
		r.Apply([]*Settings{one(1)})()
		early()
		if r.Gate("one") == nil {
			t.Error("retired by an older configuration")
		}
		r.Tidy(time.Now())
	})
}

func TestRetryAfter(t *testing.T) {
	for wait, want := range map[time.Duration]int{0: 1, time.Millisecond: 1, time.Second: 1, 1001 * time.Millisecond: 2, time.Hour: 3600} {
		if got := RetryAfter(wait); got != want {
			t.Errorf("%v: %d, expected %d", wait, got, want)
		}
	}
}
