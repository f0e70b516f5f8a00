package daemon

import (
	"context"
	"log/slog"
	"time"

	"countersign/internal/refresh"
	"countersign/internal/snapshot"
)

// Check loads a configuration as a running program would, and puts nothing in force. Without fetch it connects to
// nowhere: CA bundles of URLs are those that a running program has kept, and lists of URLs are not known. With fetch it
// asks every URL, waiting for ten seconds at most, and keeps nothing.
func Check(name string, now time.Time, fetch bool) (*Loaded, error) {
	env := snapshot.Env{Now: now}
	if !fetch {
		env.Open = func(state string) (snapshot.Lists, snapshot.Bundles, string, error) {
			return nil, refresh.KeptBundles(bundlesIn(state)), "", nil
		}
		return Load(name, env)
	}
	o := newOutside(slog.New(slog.DiscardHandler), func() {}, func() {})
	defer o.close()
	env.Open = func(string) (snapshot.Lists, snapshot.Bundles, string, error) { return o.open("") }
	env.Answers, env.Chains = o.answers, o.chains
	l, err := Load(name, env)
	if len(l.Outside.Fetches) == 0 {
		return l, err
	}
	o.follow(&l.Outside)
	ctx, cancel := context.WithTimeout(context.Background(), firstFetch)
	defer cancel()
	o.ready(ctx)
	return Load(name, env)
}
