// Package testalloc counts what the whole process allocates, for tests that need more than testing.AllocsPerRun: parts of
// an object for each call, and several goroutines that have a share in it.
package testalloc

import (
	"math"
	"runtime"
	"runtime/debug"
	"time"
)

// PerCall is how many objects the process allocates for each of n calls of f: the least of several runs, for what else goes
// on in it only adds to that. What earlier tests left behind may take a while to end: there are further runs, for some
// seconds, until two agree. Tests that call it are not built with the race detector, which allocates, and do not run in
// parallel with others.
func PerCall(n int, f func()) float64 {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // a sync.Pool has one place for each
	f()
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection empties every sync.Pool
	least, agree := math.Inf(1), false
	for i, end := 0, time.Now().Add(4*time.Second); i < 3 || !agree && time.Now().Before(end); i++ {
		if i > 3 {
			time.Sleep(100 * time.Millisecond)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range n {
			f()
		}
		runtime.ReadMemStats(&after)
		got := float64(after.Mallocs-before.Mallocs) / float64(n)
		agree = agree && got > least-0.01 || math.Abs(got-least) < max(0.01, least/1000)
		least = min(least, got)
	}
	return least
}

// AtMost is PerCall, asked again for up to ten seconds while it is more than limit: what f allocates is in every run, and
// what something else does comes to its end.
func AtMost(limit float64, n int, f func()) float64 {
	got := PerCall(n, f)
	for end := time.Now().Add(10 * time.Second); got > limit && time.Now().Before(end); {
		time.Sleep(time.Second)
		got = min(got, PerCall(n, f))
	}
	return got
}
