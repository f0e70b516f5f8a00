package refresh

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"countersign/internal/outbound"
	"countersign/internal/trust"
)

const (
	bundleEvery    = time.Hour
	maxBundleBytes = 16 << 20 // as in trust
)

// Codes of conditions about CA bundles; there can be one for each URL.
const (
	// BundleFetch: a CA bundle could not be fetched, or what was fetched is none. The last good one stays.
	BundleFetch = "bundle_fetch_failed"
)

// BundlesConfig says where CA bundles are kept and how they are fetched.
type BundlesConfig struct {
	// Dir keeps bundles across restarts; it is made if it is not there. Empty: nothing is kept.
	Dir    string
	Client *outbound.Client
	Log    *slog.Logger
	// Changed hears that a bundle is there that was not before.
	Changed func()
}

// Bundles keeps CA bundles of URLs fresh, and the last good one on disk. Its methods may be called from any goroutine.
// Who can change such a bundle decides who gets in, so it is fetched by https only.
type Bundles struct {
	c      BundlesConfig
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu   sync.Mutex
	urls map[string]*bundleURL
}

type bundleURL struct {
	url          string
	every        time.Duration
	stop         context.CancelFunc
	tried        chan struct{} // closed once it was tried
	once         sync.Once     // closes tried
	etag, modify string

	data    []byte // the last good one; nil if there is none
	problem string
	since   time.Time
}

// NewBundles makes Bundles that fetch nothing yet.
func NewBundles(c BundlesConfig) (*Bundles, error) {
	if c.Dir != "" {
		if err := os.MkdirAll(c.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("CA bundles: expected a folder %s to keep them in, found %s; make it, or let this user make it", c.Dir, cause(err))
		}
	}
	b := &Bundles{c: c, urls: make(map[string]*bundleURL)}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b, nil
}

// Want replaces the set of URLs; the value is the time between two fetches, 0 for an hour.
func (b *Bundles) Want(urls map[string]time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := make(map[string][]byte)
	for url, u := range b.urls {
		if every, wanted := urls[url]; !wanted || every != u.every {
			u.stop()
			delete(b.urls, url)
			before[url] = u.data
		}
	}
	for url, every := range urls {
		if b.urls[url] != nil || b.ctx.Err() != nil {
			continue
		}
		u := &bundleURL{url: url, every: every, tried: make(chan struct{}), data: before[url]}
		if u.data == nil {
			u.data = b.kept(url)
		}
		ctx, stop := context.WithCancel(b.ctx)
		u.stop = stop
		b.urls[url] = u
		b.work.Go(func() { persist(ctx, b.c.Log, "CA bundles", func() { b.follow(ctx, u) }) })
	}
}

// Fetched returns the newest good bundle of a URL, or why there is none.
func (b *Bundles) Fetched(url string) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	u := b.urls[url]
	switch {
	case u == nil:
		if data := b.kept(url); data != nil {
			return data, nil
		}
		return nil, errors.New("it was not fetched yet")
	case u.data != nil:
		return u.data, nil
	case u.problem != "":
		return nil, errors.New(u.problem)
	}
	return nil, errors.New("it was not fetched yet")
}

// Ready waits until every URL was tried once, or ctx ends.
func (b *Bundles) Ready(ctx context.Context) {
	b.mu.Lock()
	var all []chan struct{}
	for _, u := range b.urls {
		all = append(all, u.tried)
	}
	b.mu.Unlock()
	for _, tried := range all {
		select {
		case <-tried:
		case <-ctx.Done():
			return
		}
	}
}

// Conditions returns what is wrong now, ordered by text.
func (b *Bundles) Conditions() (list []Condition) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, u := range b.urls {
		if u.problem != "" {
			text := shown(u.url) + ": " + u.problem
			if u.data != nil {
				text += "; the last good bundle stays in force"
			}
			list = append(list, Condition{Code: BundleFetch, Text: cut(text), Since: u.since})
		}
	}
	slices.SortFunc(list, func(a, b Condition) int { return strings.Compare(a.Text, b.Text) })
	return list
}

// Close ends fetching and waits for what is under way. Not to be called from Changed.
func (b *Bundles) Close() {
	b.cancel()
	b.work.Wait()
}

// follow fetches one URL again and again.
func (b *Bundles) follow(ctx context.Context, u *bundleURL) {
	failures := 0
	for first := true; ; first = false {
		changed, err := b.fetch(ctx, u)
		if ctx.Err() != nil {
			return
		}
		wait := u.every
		if wait == 0 {
			wait = bundleEvery
		}
		b.mu.Lock()
		if err == nil {
			failures, u.problem = 0, ""
		} else {
			failures++
			wait = min(wait, backOff(failures))
			if u.problem == "" {
				u.since = time.Now()
			}
			u.problem = cut(err.Error())
		}
		b.mu.Unlock()
		if err != nil && failures == 1 && b.c.Log != nil {
			b.c.Log.Warn("CA bundle not fetched", "url", shown(u.url), "error", err.Error())
		}
		if first {
			u.once.Do(func() { close(u.tried) })
		}
		if changed && b.c.Changed != nil {
			b.c.Changed()
		}
		select {
		case <-time.After(max(wait, firstBackOff)):
		case <-ctx.Done():
			return
		}
	}
}

// fetch asks once, and reports whether there is another bundle now.
func (b *Bundles) fetch(ctx context.Context, u *bundleURL) (_ bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			if b.c.Log != nil {
				b.c.Log.Error("CA bundles: bug", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			}
			err = errors.New("the fetch ended in a panic, which is a bug")
		}
	}()
	r := &outbound.Request{URL: u.url, Accept: "application/x-pem-file, application/pkix-cert, */*", MaxBytes: maxBundleBytes}
	if u.data != nil {
		r.ETag, r.LastModified = u.etag, u.modify
	}
	answer, err := b.c.Client.Do(ctx, r)
	if err != nil {
		return false, err
	}
	if answer.NotModified {
		return false, nil
	}
	if _, _, err := trust.LoadBundle(answer.Body, false); err != nil {
		return false, fmt.Errorf("what was fetched (%s) is no CA bundle: %w", answer.ContentType(), err)
	}
	u.etag, u.modify = answer.ETag, answer.LastModified
	if string(answer.Body) == string(u.data) {
		return false, nil
	}
	if err := b.keep(u.url, answer.Body); err != nil && b.c.Log != nil {
		b.c.Log.Warn("CA bundle not kept on disk", "url", shown(u.url), "error", err.Error())
	}
	b.mu.Lock()
	u.data = answer.Body
	b.mu.Unlock()
	return true, nil
}

// KeptBundles are the CA bundles that another process keeps in a folder, for who must not touch them.
type KeptBundles string

// Fetched returns the bundle of a URL, or why there is none.
func (dir KeptBundles) Fetched(url string) ([]byte, error) {
	b := Bundles{c: BundlesConfig{Dir: string(dir)}}
	if data := b.kept(url); data != nil {
		return data, nil
	}
	return nil, errors.New("no running program has kept it; check --fetch asks the URL")
}

// file is where the bundle of a URL is kept: URLs are no file names.
func (b *Bundles) file(url string) string {
	sum := sha256.Sum256([]byte(url))
	return filepath.Join(b.c.Dir, hex.EncodeToString(sum[:])+".ca")
}

// kept returns the bundle of a URL that an earlier process left; nil if there is none or it is damaged.
func (b *Bundles) kept(url string) []byte {
	if b.c.Dir == "" {
		return nil
	}
	data, err := os.ReadFile(b.file(url))
	if err != nil {
		return nil
	}
	if _, _, err := trust.LoadBundle(data, false); err != nil {
		return nil
	}
	return data
}

// keep writes a bundle as a whole or not at all.
func (b *Bundles) keep(url string, data []byte) error {
	if b.c.Dir == "" {
		return nil
	}
	temp, err := os.CreateTemp(b.c.Dir, ".bundle-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(data)
	if err == nil {
		err = temp.Sync()
	}
	if cerr := temp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(temp.Name(), b.file(url))
	}
	return err
}
