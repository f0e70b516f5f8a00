package upstream

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"countersign/internal/reason"
)

func limited(connections, requests, pending int) *Settings {
	s := named(w1)
	s.MaxConnections, s.MaxRequests, s.MaxPending, s.QueueTimeout = connections, requests, pending, time.Second
	return s
}

func acquire(t *testing.T, p *Pool) *Conn {
	t.Helper()
	c, err := p.Acquire(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestLimits(t *testing.T) {
	for _, tt := range []struct {
		name string
		s    *Settings
		want reason.Reason
	}{
		{"F17/connections", limited(2, 0, 0), reason.UpstreamBusy},
		{"F17/requests", limited(100, 2, 0), reason.UpstreamCircuitOpen},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "a:1")
				w.Apply([]*Settings{tt.s})()
				p := w.Pool("p")
				a, b := acquire(t, p), acquire(t, p)
				began := time.Now()
				if _, err := p.Acquire(context.Background()); reasonOf(err) != tt.want || time.Since(began) != 0 {
					t.Errorf("the third: %v after %s, expected %s at once", err, time.Since(began), tt.want)
				}
				if tt.want.Status() != 503 {
					t.Errorf("status %d", tt.want.Status())
				}
				a.Discard()
				acquire(t, p).Discard()
				b.Discard()
				if n := p.active.Load(); n != 0 {
					t.Errorf("%d requests are counted, expected none", n)
				}
			})
		})
	}
	t.Run("F17/queue is full", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, "a:1")
			w.Apply([]*Settings{limited(1, 0, 2)})()
			p := w.Pool("p")
			c := acquire(t, p)
			var timeouts atomic.Int32
			for range 2 {
				go func() {
					began := time.Now()
					_, err := p.Acquire(context.Background())
					if reasonOf(err) == reason.UpstreamQueueTimeout && time.Since(began) == time.Second {
						timeouts.Add(1)
					}
				}()
			}
			synctest.Wait()
			if st := w.PoolStats()[0]; st.Pending != 2 || st.Active != 1 {
				t.Errorf("%+v", st)
			}
			if _, err := p.Acquire(context.Background()); reasonOf(err) != reason.UpstreamBusy {
				t.Errorf("the one too many: %v", err)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if timeouts.Load() != 2 {
				t.Errorf("%d waited for a second and were refused, expected 2", timeouts.Load())
			}
			if st := w.PoolStats()[0]; st.Pending != 0 || st.QueueFull != 1 || st.QueueTimeouts != 2 || st.CircuitOpen != 0 {
				t.Errorf("%+v", st)
			}
			c.Discard()
		})
	})
	t.Run("who waits may give up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, "a:1")
			w.Apply([]*Settings{limited(1, 0, 2)})()
			p := w.Pool("p")
			c := acquire(t, p)
			defer c.Discard()
			ctx, cancel := context.WithCancel(context.Background())
			time.AfterFunc(100*time.Millisecond, cancel)
			if _, err := p.AcquireFor(ctx, Choice{}); reasonOf(err) != reason.ClientAborted {
				t.Errorf("cancelled: %v", err)
			}
			ctx, cancel = context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			if _, err := p.AcquireFor(ctx, Choice{}); reasonOf(err) != reason.UpstreamQueueTimeout {
				t.Errorf("at a deadline: %v", err)
			}
			if p.queue.waiting() {
				t.Error("somebody is still in line")
			}
		})
	})
}

// TestQueue shows that those who wait are served in order, and nobody overtakes them.
func TestQueue(t *testing.T) {
	for _, tt := range []struct {
		name string
		s    *Settings
	}{{"connections", limited(2, 0, 50)}, {"requests", limited(100, 2, 50)}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "a:1")
				tt.s.QueueTimeout = time.Hour
				w.Apply([]*Settings{tt.s})()
				p := w.Pool("p")
				var mu sync.Mutex
				var order []int
				var wg sync.WaitGroup
				held := []*Conn{acquire(t, p), acquire(t, p)}
				for i := range 20 {
					wg.Go(func() {
						time.Sleep(time.Duration(i) * time.Millisecond) // their places in line
						c, err := p.Acquire(context.Background())
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						order = append(order, i)
						mu.Unlock()
						time.Sleep(time.Second)
						if i%2 == 0 {
							c.Discard()
							return
						}
						if err := exchange(t, c); err != nil {
							t.Error(err)
						}
						c.Release(true, time.Now())
					})
				}
				time.Sleep(time.Second)
				began := time.Now()
				for _, c := range held {
					c.Discard()
				}
				wg.Wait()
				for i, k := range order {
					if i/2 != k/2 { // two at a time
						t.Fatalf("served in the order %v", order)
					}
				}
				if took := time.Since(began); took != 10*time.Second {
					t.Errorf("twenty of a second each, two at a time, took %s", took)
				}
				if st := w.PoolStats()[0]; st.Active != 0 || st.Pending != 0 || p.active.Load() != 0 {
					t.Errorf("%+v", st)
				}
			})
		})
	}
	t.Run("nobody overtakes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, "a:1")
			s := limited(1, 0, 10)
			s.QueueTimeout = time.Hour
			w.Apply([]*Settings{s})()
			p := w.Pool("p")
			c := acquire(t, p)
			first := make(chan *Conn, 1)
			go func() {
				d, _ := p.Acquire(context.Background())
				first <- d
			}()
			synctest.Wait()
			// There is room, and whoever is first in line has not heard of it yet.
			c.Target.mu.Lock()
			c.Target.open--
			c.Target.mu.Unlock()
			c.Target.busy.Add(-1)
			_ = c.Wire.Close()
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if d, err := p.AcquireFor(ctx, Choice{}); err == nil {
				t.Error("the place went to somebody who came later")
				d.Discard()
			}
			(<-first).Discard()
		})
	})
	t.Run("one who is woken and fails lets the next one try", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			l := w.listen(t, "a:1", answering(ok))
			s := limited(1, 0, 10)
			s.QueueTimeout = time.Hour
			w.Apply([]*Settings{s})()
			p := w.Pool("p")
			c := acquire(t, p)
			var failed atomic.Int32
			for range 5 {
				go func() {
					if _, err := p.Acquire(context.Background()); reasonOf(err) == reason.UpstreamConnectFailed {
						failed.Add(1)
					}
				}()
			}
			synctest.Wait()
			l.Close()
			c.Discard()
			synctest.Wait()
			if failed.Load() != 5 || p.queue.waiting() {
				t.Errorf("%d of 5 heard that the target is gone", failed.Load())
			}
		})
	})
	t.Run("a target that comes back wakes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, "a:1", "b:1")
			s := limited(1, 0, 10)
			s.Targets = named(w1, w1).Targets
			s.Health = &Health{Interval: time.Hour, Timeout: time.Second}
			s.QueueTimeout = time.Hour
			w.Apply([]*Settings{s})()
			p := w.Pool("p")
			p.members[1].down.Store(true)
			p.changed()
			c := acquire(t, p)
			defer c.Discard()
			time.AfterFunc(time.Second, func() {
				p.members[1].down.Store(false)
				p.changed()
			})
			began := time.Now()
			d := acquire(t, p)
			if took := time.Since(began); took != time.Second || d.Target.Address != "b:1" {
				t.Errorf("%s after %s", d.Target.Address, took)
			}
			d.Discard()
		})
	})
	t.Run("a reload between", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, "a:1")
			w.Apply([]*Settings{limited(1, 0, 10)})()
			c := acquire(t, w.Pool("p"))
			next := limited(1, 0, 10)
			next.ID = "2"
			old := w.Pool("p")
			w.Apply([]*Settings{next})()
			var got atomic.Int32
			for _, p := range []*Pool{old, w.Pool("p")} {
				go func() {
					if d, err := p.Acquire(context.Background()); err == nil {
						got.Add(1)
						d.Discard()
					}
				}()
			}
			synctest.Wait()
			c.Discard()
			synctest.Wait()
			if got.Load() != 2 {
				t.Errorf("%d of 2 were served", got.Load())
			}
		})
	})
}

// TestQueueRace is many at once over few places.
func TestQueueRace(t *testing.T) {
	w := newWorld(t, "a:1")
	s := limited(3, 2, 1000)
	s.QueueTimeout = 10 * time.Second
	w.Apply([]*Settings{s})()
	p := w.Pool("p")
	var now, most atomic.Int32
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for k := range 20 {
				c, err := p.Acquire(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				n := now.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				if (i+k)%7 == 0 {
					time.Sleep(time.Microsecond)
				}
				now.Add(-1)
				if (i+k)%3 == 0 {
					c.Discard()
				} else {
					c.Release(true, time.Now())
				}
			}
		})
	}
	wg.Wait()
	if most.Load() > 2 || p.active.Load() != 0 || p.queue.waiting() {
		t.Errorf("%d at once, expected at most 2; %d counted at the end", most.Load(), p.active.Load())
	}
}

func TestRetryBudget(t *testing.T) {
	s := weighing(RoundRobin, 1, 1)
	p := still(t, s)
	if p.BeginRetry() {
		t.Error("a retry without being configured")
	}
	s.Retries = Retries{Attempts: 1, Budget: 20}
	for _, tt := range []struct{ busy, want int }{{0, 3}, {10, 3}, {20, 4}, {100, 20}} {
		t.Run(fmt.Sprintf("F17/%d under way", tt.busy), func(t *testing.T) {
			p.members[0].busy.Store(int32(tt.busy / 2))
			p.members[1].busy.Store(int32(tt.busy / 2))
			n := 0
			for p.BeginRetry() {
				n++
			}
			if n != tt.want {
				t.Errorf("%d retries at a time, expected %d", n, tt.want)
			}
			for range n {
				p.EndRetry()
			}
		})
	}
	if p.counts.retries.Load() != 30 || p.counts.refused.Load() != 4 || p.retrying.Load() != 0 {
		t.Errorf("%d retries, %d refused, %d left", p.counts.retries.Load(), p.counts.refused.Load(), p.retrying.Load())
	}
}
