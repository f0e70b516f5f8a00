package limit

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"countersign/internal/reason"
)

func begin(t *testing.T, turn *Turn, want reason.Reason) {
	t.Helper()
	if why := turn.Begin(); why != want {
		t.Fatalf("%v, expected %v", why, want)
	}
}

// queue begins a turn in a goroutine of its own, and returns when it waits.
func queue(h *Handshakes, c *Client, then func(*Turn, reason.Reason)) {
	go func() {
		turn := h.Turn(c)
		then(&turn, turn.Begin())
	}()
	synctest.Wait()
}

func TestHandshakes(t *testing.T) {
	t.Run("F04/longer than anybody should wait", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := NewHandshakes(HandshakeSettings{AtOnce: 1, Wait: 2 * time.Second})
			first := h.Turn(client(1, 0))
			begin(t, &first, reason.Unset)
			begin(t, &first, reason.Unset) // has it
			start := time.Now()
			second := h.Turn(client(2, 0))
			begin(t, &second, reason.HandshakeOverload)
			if took := time.Since(start); took != 2*time.Second {
				t.Errorf("refused after %v, expected 2s", took)
			}
			second.End() // has none
			first.End()
			first.End()
			begin(t, &second, reason.Unset)
			second.End()
			if running, waiting := h.Load(); running != 0 || waiting != 0 {
				t.Errorf("%d run, %d wait, expected none", running, waiting)
			}
		})
	})
	t.Run("F04/one address does not starve another", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := NewHandshakes(HandshakeSettings{AtOnce: 1})
			var order []byte
			next := make(chan *Turn, 100)
			busy := h.Turn(client(1, 0))
			begin(t, &busy, reason.Unset)
			join := func(n byte) {
				queue(h, client(n, 0), func(turn *Turn, why reason.Reason) {
					if why == reason.Unset {
						order = append(order, n) // only one runs at a time
						next <- turn
					}
				})
			}
			for range 50 {
				join(1)
			}
			join(2)
			join(3)
			join(2)
			busy.End()
			for range 53 {
				(<-next).End()
				synctest.Wait()
			}
			if got := string(order[:6]); got != "\x01\x02\x03\x01\x02\x01" {
				t.Errorf("order %v, expected turns by address", order[:6])
			}
			if len(order) != 53 {
				t.Errorf("%d had their turn, expected 53", len(order))
			}
		})
	})
	t.Run("F04/a full queue", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := NewHandshakes(HandshakeSettings{AtOnce: 1, Wait: time.Minute})
			busy := h.Turn(client(1, 0))
			begin(t, &busy, reason.Unset)
			var refused, served atomic.Int64
			count := func(turn *Turn, why reason.Reason) {
				if why != reason.Unset {
					refused.Add(1)
					return
				}
				served.Add(1)
				turn.End()
			}
			for range queued {
				queue(h, client(1, 0), count)
			}
			more := h.Turn(client(1, 0)) // of the longest line
			begin(t, &more, reason.HandshakeOverload)
			goodServed := false
			queue(h, client(2, 0), func(turn *Turn, why reason.Reason) {
				goodServed = why == reason.Unset
				turn.End()
			})
			if n := refused.Load(); n != 1 {
				t.Errorf("%d of the long line had to go, expected one", n)
			}
			if _, waiting := h.Load(); waiting != queued {
				t.Errorf("%d wait, expected no more than %d", waiting, queued)
			}
			busy.End()
			synctest.Wait()
			if !goodServed || served.Load() != queued-1 {
				t.Errorf("good client served: %v; of the others %d, expected %d", goodServed, served.Load(), queued-1)
			}
			if len(h.lines) != 0 || h.turn != nil {
				t.Error("lines with nobody in them")
			}
		})
	})
	t.Run("F01/who waits for a client holds nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := NewHandshakes(HandshakeSettings{AtOnce: 2})
			silent := make([]Turn, 5000)
			for i := range silent {
				silent[i] = h.Turn(client(1, 0))
				begin(t, &silent[i], reason.Unset)
				silent[i].End() // its flight is sent, and it never answers
			}
			good := h.Turn(client(2, 0))
			begin(t, &good, reason.Unset)
			good.End()
		})
	})
	t.Run("settings", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := NewHandshakes(HandshakeSettings{AtOnce: 1})
			a := h.Turn(client(1, 0))
			begin(t, &a, reason.Unset)
			b := false
			queue(h, client(2, 0), func(turn *Turn, why reason.Reason) { b = why == reason.Unset })
			h.Set(HandshakeSettings{AtOnce: 2})
			synctest.Wait()
			if !b {
				t.Error("still waits where there is room now")
			}
			h.Set(HandshakeSettings{AtOnce: 1, Wait: time.Second})
			c := reason.Unset
			queue(h, client(3, 0), func(_ *Turn, why reason.Reason) { c = why })
			a.End() // two ran where one may: nobody comes after
			if running, waiting := h.Load(); running != 1 || waiting != 1 {
				t.Errorf("%d run and %d wait, expected one of each", running, waiting)
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if c != reason.HandshakeOverload {
				t.Errorf("%v, expected that it waits until its time is over", c)
			}
			h.Set(HandshakeSettings{})
			if h.atOnce != DefaultHandshakes() || h.wait != DefaultHandshakeWait {
				t.Error("no defaults")
			}
		})
	})
	t.Run("none", func(t *testing.T) {
		turn := (*Handshakes)(nil).Turn(client(1, 0))
		begin(t, &turn, reason.Unset)
		turn.End()
	})
}

// TestHandshakesFromManyGoroutines has many addresses come, wait, give up and be pushed out at once.
func TestHandshakesFromManyGoroutines(t *testing.T) {
	h := NewHandshakes(HandshakeSettings{AtOnce: 2, Wait: 2 * time.Millisecond})
	var running, most, served, refused atomic.Int64
	var all sync.WaitGroup
	for g := range 1500 {
		all.Go(func() {
			for range 10 {
				turn := h.Turn(client(byte(g%97), 0))
				if turn.Begin() != reason.Unset {
					refused.Add(1)
					continue
				}
				n := running.Add(1)
				for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
				}
				if g%3 == 0 {
					time.Sleep(20 * time.Microsecond)
				}
				running.Add(-1)
				served.Add(1)
				turn.End()
			}
		})
	}
	all.Wait()
	if most.Load() > 2 {
		t.Errorf("%d ran at once, expected at most 2", most.Load())
	}
	if r, w := h.Load(); r != 0 || w != 0 || len(h.lines) != 0 || h.turn != nil {
		t.Errorf("%d run and %d wait in %d lines after the end", r, w, len(h.lines))
	}
	if served.Load() == 0 || refused.Load() == 0 {
		t.Errorf("served %d, refused %d; expected some of both", served.Load(), refused.Load())
	}
}

func TestTurnAllocatesNothing(t *testing.T) {
	h := NewHandshakes(HandshakeSettings{})
	c := client(1, 0)
	if n := testing.AllocsPerRun(1000, func() {
		turn := h.Turn(c)
		turn.Begin()
		turn.End()
	}); n != 0 {
		t.Errorf("%v allocations where nobody waits", n)
	}
}
