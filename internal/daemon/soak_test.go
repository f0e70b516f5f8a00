package daemon_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What a soak may show at most. Growth is that of a straight line through the samples of its last three quarters, over
// their time: short soaks say little about an hour.
const (
	soakHeap       = 6 << 20 // bytes in use after a collection
	soakResident   = 24 << 20
	soakGoroutines = 20
	soakFiles      = 20
)

// TestSoak runs the program under mixed traffic with aborts and reloads for COUNTERSIGN_SOAK (as 2m), and tells how what
// it takes changes (H22). It does not run otherwise.
func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("COUNTERSIGN_SOAK"))
	if err != nil {
		t.Skip("set COUNTERSIGN_SOAK to a time span, and -timeout to more")
	}
	w := newWorld(t)
	w.second()
	s, other := newStage(t), newStage(t)
	a := w.apart(w.variant(0, s, other))
	good := a.newGood(t, 10*time.Millisecond)
	for _, protocol := range []string{"http/1.1", "h2"} {
		var ws *tunnel
		t.Cleanup(func() {
			if ws != nil {
				ws.Close()
			}
		})
		i := 0
		good.run(50*time.Millisecond, func() (err error) {
			if i++; i%200 == 1 { // another one every 10 s
				if ws != nil {
					ws.Close()
				}
				if ws, err = a.webSocket(protocol); err != nil {
					return fmt.Errorf("WebSocket over %s: %w", protocol, err)
				}
			}
			if err := ws.echo(fmt.Sprint("message ", i)); err != nil {
				return fmt.Errorf("WebSocket over %s: %w", protocol, err)
			}
			return nil
		})
	}
	calls, err := a.multiplexed()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { calls.Close() })
	good.run(50*time.Millisecond, func() error { return rpc(calls) })
	good.run(100*time.Millisecond, func() error {
		c, err := a.open(a.from, "http/1.1")
		if err != nil {
			return fmt.Errorf("new connection: %w", err)
		}
		defer c.Close()
		return ask1(c)
	})

	stop := make(chan struct{})
	var rude sync.WaitGroup
	every := func(pause time.Duration, do func(rnd *rand.Rand)) {
		rude.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(pause)))
			for {
				select {
				case <-stop:
					return
				case <-time.After(pause):
					do(rnd)
				}
			}
		})
	}
	var aborted, reloaded atomic.Int64
	every(60*time.Millisecond, func(rnd *rand.Rand) {
		c, err := a.open(a.from, "http/1.1")
		if err != nil {
			return
		}
		defer c.Close()
		aborted.Add(1)
		switch rnd.IntN(3) {
		case 0:
			_, _ = io.WriteString(c, "POST /h1/read/x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100000\r\n\r\n"+strings.Repeat("x", rnd.IntN(20_000)))
		case 1:
			_, _ = io.WriteString(c, "GET /h2/big/x HTTP/1.1\r\nHost: a.test\r\n\r\n")
			_, _ = io.ReadFull(c, make([]byte, rnd.IntN(100_000)))
		case 2:
			_ = c.NetConn().(*net.TCPConn).SetLinger(0)
			c.NetConn().Close()
		}
	})
	every(70*time.Millisecond, func(rnd *rand.Rand) {
		cc, err := a.multiplexed()
		if err != nil {
			return
		}
		defer cc.Close()
		var all sync.WaitGroup
		for range 5 {
			path := []string{"/h1", "/h2"}[rnd.IntN(2)] + []string{"/hang", "/big"}[rnd.IntN(2)]
			patience := time.Duration(1+rnd.IntN(20)) * time.Millisecond
			all.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				req, _ := http.NewRequestWithContext(ctx, "GET", "https://a.test"+path, nil)
				if resp, err := cc.RoundTrip(req); err == nil {
					_, _ = io.CopyN(io.Discard, resp.Body, 100_000)
					resp.Body.Close()
				}
			})
			aborted.Add(1)
		}
		all.Wait()
	})
	every(500*time.Millisecond, func(*rand.Rand) {
		n := int(reloaded.Add(1))
		w.put(t, w.variant(n, s, other))
		if _, err := a.call("/reload"); err != nil {
			t.Errorf("H06/reload %d: %v", n, err)
		}
	})

	type sample struct {
		at  time.Duration
		p99 time.Duration
		weight
	}
	var samples []sample
	requests := 0
	for start, step := time.Now(), max(length/40, time.Second); time.Since(start) < length; {
		time.Sleep(step)
		n, p99, errs := good.lately()
		requests += n
		if len(errs) > 0 {
			t.Errorf("H22/after %v: %v", time.Since(start), errs)
		}
		one := sample{time.Since(start), p99, a.weigh(t, true)}
		samples = append(samples, one)
		if len(samples)%4 == 0 {
			t.Logf("%v: %d requests and messages, %d aborted, %d reloads, p99 %v; %v", one.at.Round(time.Second), requests, aborted.Load(), reloaded.Load(), p99.Round(time.Millisecond/10), one.weight)
		}
	}
	close(stop)
	rude.Wait()

	// The slopes, without the first quarter, in which caches and pools fill.
	samples = samples[len(samples)/4:]
	if len(samples) < 3 {
		t.Fatal("too short to say anything")
	}
	span := samples[len(samples)-1].at - samples[0].at
	slope := func(of func(sample) float64) float64 { // per second, by least squares
		var x, y, xx, xy, n float64
		for _, one := range samples {
			at, v := one.at.Seconds(), of(one)
			x, y, xx, xy, n = x+at, y+v, xx+at*at, xy+at*v, n+1
		}
		return (n*xy - x*y) / (n*xx - x*x)
	}
	for _, c := range []struct {
		name, unit string
		scale      float64 // of a unit
		most       float64
		of         func(sample) float64
	}{
		{"heap", "MiB", 1 << 20, soakHeap, func(s sample) float64 { return float64(s.Heap) }},
		{"resident", "MiB", 1 << 20, soakResident, func(s sample) float64 { return float64(s.Resident) }},
		{"goroutines", "", 1, soakGoroutines, func(s sample) float64 { return float64(s.Goroutines) }},
		{"files", "", 1, soakFiles, func(s sample) float64 { return float64(s.Files) }},
	} {
		per := slope(c.of)
		grown := per * span.Seconds()
		t.Logf("%-10s %+8.2f %s in %v, %+8.1f %s/h", c.name, grown/c.scale, c.unit, span.Round(time.Second), per*3600/c.scale, c.unit)
		if grown > c.most && !(raceEnabled && c.scale > 1) {
			t.Errorf("H22/%s grew by %.2f %s, expected at most %.0f", c.name, grown/c.scale, c.unit, c.most/c.scale)
		}
	}
	third := len(samples) / 3
	mean := func(all []sample) (sum time.Duration) {
		for _, one := range all {
			sum += one.p99
		}
		return sum / time.Duration(len(all))
	}
	first, last := mean(samples[:third]), mean(samples[len(samples)-third:])
	t.Logf("p99        %v in the first third, %v in the last", first.Round(time.Millisecond/10), last.Round(time.Millisecond/10))
	if last > 5*first+50*time.Millisecond {
		t.Errorf("H22/p99 went from %v to %v", first, last)
	}
	if n := a.counted(t, "countersign_panics_total"); n != 0 {
		t.Errorf("F16/%d panics", n)
	}
	t.Logf("%d requests and messages, %d aborted, %d reloads", requests, aborted.Load(), reloaded.Load())
}

// rpc is a call as gRPC makes it: messages both ways in turns, and the status in a trailer.
func rpc(cc *http.ClientConn) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, w := io.Pipe()
	defer w.Close()
	req, err := http.NewRequestWithContext(ctx, "POST", "https://a.test/h2/grpc/x", r)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	go func() { _, _ = w.Write(make([]byte, 4096)) }()
	resp, err := cc.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("gRPC: %w", err)
	}
	defer resp.Body.Close()
	for i := range 10 {
		if _, err := io.ReadFull(resp.Body, make([]byte, 4096)); err != nil {
			return fmt.Errorf("gRPC message %d: %w", i, err)
		}
		if i < 9 {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				return fmt.Errorf("gRPC message %d: %w", i, err)
			}
		}
	}
	w.Close()
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 || resp.Trailer.Get("Grpc-Status") != "0" {
		return fmt.Errorf("gRPC: status %d, %d more bytes, trailers %v, %w", resp.StatusCode, len(rest), resp.Trailer, err)
	}
	return nil
}
