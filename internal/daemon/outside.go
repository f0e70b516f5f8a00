package daemon

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"countersign/internal/certs"
	"countersign/internal/outbound"
	"countersign/internal/refresh"
	"countersign/internal/snapshot"
	"countersign/internal/trust"
)

const (
	maxAnswers = 100_000 // OCSP answers that are remembered
	maxChains  = 8192    // sets of client certificates whose chains are remembered, about 5 KiB each
)

// outside is what is fetched from elsewhere, and what was learnt about certificates, beside the configuration and longer
// than it: revocation lists, CA bundles, OCSP answers, chains. Lists and bundles are opened when a configuration first
// needs them, for only it says where they are kept.
type outside struct {
	client     *outbound.Client
	answers    *trust.Answers
	chains     *trust.Chains
	responders *refresh.Responders
	staples    *certs.Staples
	stapler    *refresh.Staples
	log        *slog.Logger
	changed    func() // load the configuration again

	mu      sync.Mutex // serialises open and close
	state   string
	warning string
	asked   []string // responders that may be asked; of the goroutine that loads configurations
	opened  time.Time
	lock    *os.File // of the state folder; nil if nothing is kept
	lists   atomic.Pointer[refresh.Lists]
	bundles atomic.Pointer[refresh.Bundles]
}

func newOutside(log *slog.Logger, changed, recheck func()) *outside {
	o := &outside{client: outbound.New(outbound.Options{}), answers: trust.NewAnswers(maxAnswers), chains: trust.NewChains(maxChains),
		log: log, changed: changed}
	o.responders = refresh.NewResponders(refresh.RespondersConfig{Client: o.client, Answers: o.answers, Log: log, Changed: recheck})
	o.staples = new(certs.Staples)
	o.stapler = refresh.NewStaples(refresh.StaplesConfig{Client: o.client, Into: o.staples, Log: log})
	return o
}

// open returns lists and bundles kept in the folder state. It stays the same one while the program runs. A folder that
// cannot be used is no reason to refuse clients: without it nothing is kept, and the warning says so.
func (o *outside) open(state string) (snapshot.Lists, snapshot.Bundles, string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if lists := o.lists.Load(); lists != nil {
		if o.state != state {
			return nil, nil, "", fmt.Errorf("the program keeps its state in %s since it was started; restart it to use another folder", o.state)
		}
		return lists, o.bundles.Load(), o.warning, nil
	}
	lc := refresh.ListsConfig{Client: o.client, Log: o.log, Changed: o.changed}
	if state != "" {
		var err error
		if o.lock, err = lockState(state); err != nil {
			o.warning = err.Error()
		} else {
			lc.Dir = filepath.Join(state, "crls")
		}
	}
	lists, err := refresh.NewLists(lc)
	if err != nil {
		o.warning, lc.Dir = err.Error(), ""
		if lists, err = refresh.NewLists(lc); err != nil {
			return nil, nil, "", err
		}
	}
	bc := refresh.BundlesConfig{Client: o.client, Log: o.log, Changed: o.changed}
	if lc.Dir != "" {
		bc.Dir = bundlesIn(state)
	}
	bundles, err := refresh.NewBundles(bc)
	if err != nil {
		o.warning, bc.Dir = err.Error(), ""
		if bundles, err = refresh.NewBundles(bc); err != nil {
			lists.Close()
			return nil, nil, "", err
		}
	}
	o.state, o.opened = state, time.Now()
	o.lists.Store(lists)
	o.bundles.Store(bundles)
	return lists, bundles, o.warning, nil
}

// bundlesIn is where CA bundles are kept.
func bundlesIn(state string) string { return filepath.Join(state, "bundles") }

// lockState makes the folder, and keeps it from other processes: each would take away what the other has written.
func lockState(state string) (*os.File, error) {
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, fmt.Errorf("nothing is kept: expected a folder %s, found %w", state, err)
	}
	f, err := os.OpenFile(filepath.Join(state, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("nothing is kept: expected a folder %s that can be written to, found %w", state, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("nothing is kept: another process uses the folder %s; give each a state folder of its own", state)
	}
	return f, nil
}

// follow fetches what a configuration names from now on, and nothing else.
func (o *outside) follow(out *snapshot.Outside) {
	o.client.Allow(out.Allow)
	o.stapler.Track(out.Stapled)
	if slices.ContainsFunc(o.asked, func(r string) bool { return !slices.Contains(out.Responders, r) }) {
		o.responders.Forget() // one is not to be asked any more
	}
	o.asked = out.Responders
	lists := o.lists.Load()
	if lists == nil {
		return
	}
	var sources []refresh.Source
	urls := make(map[string]time.Duration)
	for _, f := range out.Fetches {
		if f.Bundle {
			if have, twice := urls[f.URL]; !twice || f.Every < have {
				urls[f.URL] = f.Every
			}
			continue
		}
		sources = append(sources, refresh.Source{URL: f.URL, Every: f.Every, Signers: f.Signers, Others: true})
	}
	lists.Want(sources)
	lists.Restrict(out.Points)
	o.bundles.Load().Want(urls)
}

// ready waits until everything was tried once, or ctx ends.
func (o *outside) ready(ctx context.Context) {
	if lists := o.lists.Load(); lists != nil {
		lists.Ready(ctx)
		o.bundles.Load().Ready(ctx)
	}
}

// Ask, Soon and Learn are for the frontend.

// Ask gets the answer to q, waiting for it no longer than ctx.
func (o *outside) Ask(ctx context.Context, q *trust.Query) error { return o.responders.Ask(ctx, q) }

// Soon gets it in the background.
func (o *outside) Soon(q *trust.Query) { o.responders.Soon(q) }

// Learn notes where lists of a CA are published.
func (o *outside) Learn(p trust.Point) {
	if lists := o.lists.Load(); lists != nil {
		lists.Learn(refresh.Source{URL: p.URL, Hosts: []string{p.Host}, Signers: []*x509.Certificate{p.Issuer}})
	}
}

// conditions is everything that is wrong with what is fetched.
func (o *outside) conditions() []refresh.Condition {
	list := append(o.responders.Conditions(), o.stapler.Conditions()...)
	o.mu.Lock()
	if o.warning != "" {
		list = append(list, refresh.Condition{Code: refresh.ListsNotKept, Text: o.warning, Since: o.opened})
	}
	o.mu.Unlock()
	if lists := o.lists.Load(); lists != nil {
		list = append(append(list, lists.Conditions()...), o.bundles.Load().Conditions()...)
	}
	return list
}

// status is what is known of each URL with a revocation list.
func (o *outside) status() []refresh.ListStatus {
	if lists := o.lists.Load(); lists != nil {
		return lists.Status()
	}
	return nil
}

func (o *outside) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.responders.Close()
	o.stapler.Close()
	if lists := o.lists.Load(); lists != nil {
		lists.Close()
		o.bundles.Load().Close()
	}
	if o.lock != nil {
		o.lock.Close()
	}
}
