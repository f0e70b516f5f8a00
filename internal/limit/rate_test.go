package limit

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// numbered is the key of the n-th of many clients.
func numbered(n int) Key {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	return AddressKey(netip.AddrFrom4(b))
}

// refuse and allow take one request of k at t.
func refuse(t *testing.T, r *Rate, k Key, at time.Time) time.Duration {
	t.Helper()
	wait, ok := r.Take(k, at)
	if ok || wait <= 0 {
		t.Fatalf("let in, wait %v; expected a refusal with a time to wait", wait)
	}
	return wait
}

func allow(t *testing.T, r *Rate, k Key, at time.Time) {
	t.Helper()
	if wait, ok := r.Take(k, at); !ok || wait != 0 {
		t.Fatalf("refused for %v, expected to be let in", wait)
	}
}

func TestRate(t *testing.T) {
	now := time.Now()
	for _, k := range []Key{{}, numbered(1)} {
		t.Run("F04/more than burst at once", func(t *testing.T) {
			r := NewRate(100, time.Second, 5)
			for range 5 {
				allow(t, r, k, now)
			}
			for range 3 { // being refused costs nothing: the wait does not grow
				if wait := refuse(t, r, k, now); wait != 10*time.Millisecond {
					t.Errorf("wait %v, expected 10ms until one of 100 in a second comes", wait)
				}
			}
			refuse(t, r, k, now.Add(9*time.Millisecond))
			allow(t, r, k, now.Add(10*time.Millisecond))
			refuse(t, r, k, now.Add(10*time.Millisecond))
		})
		t.Run("F04/the long run", func(t *testing.T) {
			r := NewRate(3, time.Minute, 4)
			in := 0
			for s := range 3600 {
				if _, ok := r.Take(k, now.Add(time.Duration(s)*time.Second)); ok {
					in++
				}
			}
			if in < 3*60+3 || in > 3*60+4 {
				t.Errorf("%d in an hour, expected 180 and the burst", in)
			}
			refuse(t, r, k, now.Add(3599*time.Second))
			late := now.Add(2 * time.Hour)
			for range 4 { // a pause fills the bucket and no more
				allow(t, r, k, late)
			}
			refuse(t, r, k, late)
		})
		t.Run("other numbers", func(t *testing.T) {
			r := NewRate(1, time.Hour, 10)
			for range 10 {
				allow(t, r, k, now)
			}
			r.Set(100, time.Second, 2) // ten hours are owed under the old ones
			if wait := refuse(t, r, k, now); wait > 10*time.Millisecond {
				t.Errorf("wait %v, expected no more than an empty bucket of the new numbers", wait)
			}
			allow(t, r, k, now.Add(10*time.Millisecond))
			r.Set(1, time.Hour, 1)
			refuse(t, r, k, now.Add(10*time.Millisecond))
		})
		t.Run("given back", func(t *testing.T) {
			r := NewRate(1, time.Second, 1)
			allow(t, r, k, now)
			r.give(k)
			allow(t, r, k, now)
			refuse(t, r, k, now)
		})
	}
	t.Run("keys apart", func(t *testing.T) {
		r := NewRate(1, time.Second, 1)
		for n := range 1000 {
			allow(t, r, numbered(n), now)
		}
		for n := range 1000 {
			refuse(t, r, numbered(n), now)
		}
	})
	t.Run("numbers out of range", func(t *testing.T) {
		r := NewRate(0, 0, 0)
		allow(t, r, numbered(1), now)
		r = NewRate(1, 1<<62, 1<<30)
		allow(t, r, numbered(1), now)
		refuse(t, r, numbered(1), now)
		r = NewRate(10, time.Second, 5)
		allow(t, r, numbered(1), now)
		if wait := refuse(t, r, numbered(1), now.Add(-2*time.Hour)); wait > 100*time.Millisecond {
			t.Errorf("wait %v after the clock was set back, expected no more than for one", wait)
		}
	})
}

func TestRateTable(t *testing.T) {
	if raceEnabled {
		t.Skip("one goroutine, and millions of requests")
	}
	const most = rateShards * maxPlaces
	start := time.Now()
	t.Run("F04/a used-up bucket outlasts a flood of names", func(t *testing.T) {
		r := NewRate(1, time.Second, 20)
		attacker := numbered(0)
		for range 20 {
			allow(t, r, attacker, start)
		}
		refuse(t, r, attacker, start)
		for n := range 4 * most { // a million other addresses, once each
			r.Take(numbered(n+1), start)
			if n%4096 == 0 {
				refuse(t, r, attacker, start)
			}
		}
		refuse(t, r, attacker, start)
		if n := r.places(); n != most {
			t.Errorf("%d places, expected no more than %d", n, most)
		}
	})
	t.Run("F04/what it takes to push one out", func(t *testing.T) {
		// The others have to be used up as well: for one new bucket of 4 the attacker spends all of theirs.
		r := NewRate(1, time.Second, 4)
		attacker := numbered(0)
		for range 4 {
			allow(t, r, attacker, start)
		}
		spent := 0
		for n := 1; spent < 8*most; n++ {
			for range 3 { // one less than it owes
				if _, ok := r.Take(numbered(n), start); ok {
					spent++
				}
			}
		}
		refuse(t, r, attacker, start)
		t.Logf("still there after %d requests under %d names", spent, spent/3)
	})
	t.Run("F04/100,000 keys have a place each", func(t *testing.T) {
		r := NewRate(1, time.Hour, 1)
		const keys = 100_000
		for n := range keys {
			r.Take(numbered(n), start)
		}
		forgotten := 0
		for n := range keys {
			if _, ok := r.Take(numbered(n), start); ok {
				forgotten++
			}
		}
		// Each one that is forgotten takes the place of another when it comes again.
		if forgotten > keys/50 {
			t.Errorf("%d of %d were forgotten, expected at most 2 %%", forgotten, keys)
		}
	})
	t.Run("places are used again", func(t *testing.T) {
		r := NewRate(1000, time.Second, 1) // owed for a millisecond
		for n := range 200_000 {
			allow(t, r, numbered(n), start.Add(time.Duration(n)*10*time.Microsecond))
		}
		if n := r.places(); n > 8*rateShards*ways {
			t.Errorf("%d places for 100 keys at a time", n)
		}
		r.Tidy(start.Add(time.Hour))
		if n := r.places(); n != 0 {
			t.Errorf("%d places after all was forgiven", n)
		}
	})
	t.Run("tidy keeps debts", func(t *testing.T) {
		r := NewRate(1, time.Hour, 1)
		allow(t, r, numbered(1), start)
		r.Tidy(start.Add(time.Minute))
		refuse(t, r, numbered(1), start.Add(time.Minute))
	})
}

func TestRateFromManyGoroutines(t *testing.T) {
	r := NewRate(1, time.Hour, 100)
	now := time.Now()
	for _, k := range []Key{{}, numbered(7)} {
		var in [8]int
		var all sync.WaitGroup
		for g := range in {
			all.Go(func() {
				for range 1000 {
					if _, ok := r.Take(k, now); ok {
						in[g]++
					}
				}
			})
		}
		all.Wait()
		sum := 0
		for _, n := range in {
			sum += n
		}
		if sum != 100 {
			t.Errorf("%d let in, expected exactly 100", sum)
		}
	}
}

func TestKeys(t *testing.T) {
	key := func(s string) Key { return AddressKey(netip.MustParseAddr(s)) }
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.2", false},
		{"192.0.2.1", "::ffff:192.0.2.1", true}, // IPv4 in IPv6 clothes
		{"2001:db8:1:2::1", "2001:db8:1:2:ffff::9", true},
		{"2001:db8:1:2::1", "2001:db8:1:3::1", false},
		{"fe80::1%eth0", "fe80::2%eth1", true},
		{"0.0.0.1", "::1", false},
	} {
		if same := key(c.a) == key(c.b); same != c.same {
			t.Errorf("%s and %s: the same client is %v, expected %v", c.a, c.b, same, c.same)
		}
	}
	if (AddressKey(netip.Addr{}) != Key{}) {
		t.Error("a Unix socket has an address")
	}
	c := Client{Address: key("192.0.2.1")}
	if Certificate.key(&c) != c.Address {
		t.Error("without a certificate a client is not counted by address")
	}
	if c.Certificate = CertificateKey([32]byte{1}); Certificate.key(&c) != c.Certificate || Address.key(&c) != c.Address || Everybody.key(&c) != (Key{}) {
		t.Error("counted as somebody else")
	}
	if CertificateKey([32]byte{1}) == CertificateKey([32]byte{2}) {
		t.Error("two certificates are one")
	}
}

func TestTakeAllocatesNothing(t *testing.T) {
	r, c := NewRate(1, time.Second, 10), NewConcurrency(2)
	now := time.Now()
	k := numbered(1)
	r.Take(k, now)
	c.Enter(numbered(2))
	for name, f := range map[string]func(){
		"rate":             func() { r.Take(k, now) },
		"rate, all":        func() { r.Take(Key{}, now) },
		"concurrency":      func() { c.Enter(k); c.Leave(k) },
		"concurrency, all": func() { c.Enter(Key{}); c.Leave(Key{}) },
	} {
		if n := testing.AllocsPerRun(1000, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkTake(b *testing.B) {
	now := time.Now()
	b.Run("one", func(b *testing.B) {
		r, k := NewRate(1_000_000, time.Second, 1000), numbered(1)
		b.ReportAllocs()
		for b.Loop() {
			r.Take(k, now)
		}
	})
	b.Run("all", func(b *testing.B) {
		r := NewRate(1_000_000, time.Second, 1000)
		b.ReportAllocs()
		for b.Loop() {
			r.Take(Key{}, now)
		}
	})
	b.Run("full table", func(b *testing.B) {
		r := NewRate(1, time.Hour, 2)
		for n := range 500_000 {
			r.Take(numbered(n), now)
		}
		b.ReportAllocs()
		n := 0
		for b.Loop() {
			r.Take(numbered(n), now)
			n++
		}
	})
	b.Run("concurrency", func(b *testing.B) {
		c, k := NewConcurrency(10), numbered(1)
		b.ReportAllocs()
		for b.Loop() {
			c.Enter(k)
			c.Leave(k)
		}
	})
}
