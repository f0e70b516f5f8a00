package refresh

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/big"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"countersign/internal/outbound"
	"countersign/internal/trust"
)

const (
	fetchers     = 4                // fetches at a time
	fetchTimeout = 2 * time.Minute  // of one whole fetch
	refreshEvery = time.Hour        // where neither configuration nor HTTP says it
	leastHTTP    = 5 * time.Minute  // of max-age
	leastEvery   = 10 * time.Second // however short a list lives
	firstBackOff = time.Second
	lastBackOff  = 10 * time.Minute
	skew         = 5 * time.Minute // how far in the future thisUpdate may lie, as in trust
	maxListBytes = 128 << 20

	// A URL out of certificates is forgotten when no certificate named it for a day. Their number is bounded, and that of
	// one CA too, so that one CA's certificates cannot take all places.
	learntFor   = 24 * time.Hour
	maxLearnt   = 256
	maxOfSigner = 128
	maxSigners  = 16 // CAs whose certificates name the same URL

	maxUnsigned = 64 // lists of CAs not seen yet
	sweepEvery  = 10 * time.Second
	unkeptRetry = time.Minute
	together    = 100 * time.Millisecond // lists that come within it are one change
)

// Codes of conditions about revocation lists. There can be one for each URL.
const (
	// ListFetch: a list could not be fetched. The last good one stays.
	ListFetch = "list_fetch_failed"
	// ListRefused: what a URL gave is not a list that can be believed. The last good one stays.
	ListRefused = "list_refused"
	// ListRollback: a URL gave an older list than the newest that was in force (threats C05). The newer one stays.
	ListRollback = "list_rollback_refused"
	// ListStale: of the lifetime of a list a quarter or less is left, or none, and there is no newer one (threats C04).
	ListStale = "list_stale"
	// ListsNotKept: lists or what is known of them could not be written to disk; they hold until the program ends.
	ListsNotKept = "lists_not_kept"
	// ListsDamaged: what was kept on disk was not what had been written, and was dropped.
	ListsDamaged = "lists_damaged"
	// ListsTooMany: certificates name more distribution points than are fetched.
	ListsTooMany = "lists_too_many"
)

// ListsConfig says where lists are kept and how they are fetched.
type ListsConfig struct {
	// Dir keeps lists across restarts; it is made if it is not there. Empty: nothing is kept.
	Dir    string
	Client *outbound.Client
	Log    *slog.Logger
	// Changed hears that lists are there that were not before: load the configuration again. It is called from a goroutine
	// of Lists, never twice at a time, and once for what came together. It may call every method but Close.
	Changed func()

	fetch func(context.Context, *outbound.Request) (*outbound.Response, error) // in tests, instead of Client
	fail  func(op, name string) error                                          // in tests: the disk's errors
}

// Source is a URL to fetch a list from.
type Source struct {
	URL string
	// Every is the time between two fetches. Zero: an hour, or less if HTTP's max-age says so. A list is always fetched
	// again when half of its remaining lifetime is over, and never more often than every ten seconds.
	Every time.Duration
	// Hosts are the only hosts that may be asked, as in outbound.Request; nil, for configured URLs only, allows all.
	Hosts []string
	// Signers are the CAs one of which must have signed the list. Empty: any; the list is then inert until a chain shows
	// its issuer, but the next one must be of the same key once that is known.
	Signers []*x509.Certificate
	// Others takes lists of CAs too whose name none of Signers has: those of intermediates that only clients send. Such a
	// list is inert until a chain shows its issuer.
	Others bool
	// MaxBytes bounds the list: 128 MiB by default.
	MaxBytes int64
}

// Lists keeps the revocation lists of URLs fresh, and the newest list of every issuer and scope on disk, so that no older
// one comes back, not even by a restart (threats C05, C14). It is made by NewLists and ended by Close. Its methods may be
// called from any goroutine.
type Lists struct {
	c      ListsConfig
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup
	poke   chan struct{} // look who is due
	dirty  chan struct{} // Changed has to be called

	// keep is held while a list is judged, read from disk or written to it. It comes before mu.
	keep     sync.Mutex
	dir      *folder
	floors   map[string]*floor // by id
	ofScope  map[string][]*floor
	unsigned []*held // lists whose signer is not known yet, oldest first
	unkept   bool    // the disk does not have all
	retry    time.Time

	mu       sync.Mutex // never held while anything is waited for
	urls     map[string]*listURL
	restored map[string]urlRow // of URLs not asked for yet; nil after the first Want
	active   int
	tried    chan struct{} // closed when a URL was tried, and replaced
	conds    map[string]Condition
}

// held is a list in memory.
type held struct {
	crl    *trust.CRL
	number *big.Int
	sum    string
	size   int64 // of its DER on disk; 0: it is not there
}

// listURL is one URL, configured or learnt or both.
type listURL struct {
	url      string
	want     *Source
	learnt   *Source
	live     bool // a certificate named it since the start, so that its Hosts and Signers are known
	seen     time.Time
	row      urlRow
	list     *held // nil: none, or not read from disk yet
	body     Sum   // what came last and was good
	busy     bool
	tried    bool
	due      time.Time
	again    bool // who may sign changed, during a fetch perhaps: what was refused may be good
	failures int
	code     string // of the problem that there is; empty: none
	problem  string
	since    time.Time
}

// NewLists reads what was kept and starts fetching what Want and Learn name. Damaged files are dropped with a condition;
// an error is a folder that cannot be made or read.
func NewLists(c ListsConfig) (*Lists, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Changed == nil {
		c.Changed = func() {}
	}
	if c.fetch == nil {
		if c.Client == nil {
			c.Client = outbound.New(outbound.Options{})
		}
		c.fetch = c.Client.Do
	}
	dir, err := openFolder(c.Dir)
	if err != nil {
		return nil, err
	}
	l := &Lists{c: c, dir: dir, poke: make(chan struct{}, 1), dirty: make(chan struct{}, 1), floors: make(map[string]*floor),
		ofScope: make(map[string][]*floor), urls: make(map[string]*listURL), restored: make(map[string]urlRow),
		tried: make(chan struct{}), conds: make(map[string]Condition)}
	if dir != nil {
		dir.fail = c.fail
		if err := l.restore(); err != nil {
			dir.root.Close()
			return nil, err
		}
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.work.Go(func() { persist(l.ctx, l.c.Log, "revocation lists", l.run) })
	l.work.Go(func() { persist(l.ctx, l.c.Log, "revocation lists", l.notify) })
	return l, nil
}

// Want replaces the set of configured URLs. A URL that is given more than once is one: signed by any of the Signers, the
// shortest Every, the largest MaxBytes. A URL that is gone is not fetched any more, and what it gave is forgotten but for
// how new it was.
func (l *Lists) Want(sources []Source) {
	set := make(map[string]*Source, len(sources))
	for _, s := range sources {
		if have := set[s.URL]; have != nil {
			s = merge(*have, s)
		}
		set[s.URL] = &s
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, u := range l.urls {
		if set[u.url] == nil {
			if u.want = nil; u.learnt == nil {
				delete(l.urls, u.url)
			}
		}
	}
	for url, s := range set {
		u := l.url(url)
		if u.want != nil && !slices.Equal(keysOf(u.want.Signers), keysOf(s.Signers)) {
			u.again, u.due = true, time.Time{}
		}
		u.want = s
	}
	l.restored = nil
	l.hurry()
}

// Learn tells of a distribution point of a verified certificate. It costs a look-up, waits for nothing, and may be called
// on every handshake. A URL whose host is not among Hosts is not taken; nor is one without Signers, the certificate's
// issuer.
func (l *Lists) Learn(s Source) {
	if len(s.Signers) == 0 {
		return
	}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.urls[s.URL]
	if u == nil || u.learnt == nil || !u.live {
		if len(s.Hosts) == 0 || outbound.Check(s.URL, s.Hosts) != nil {
			return
		}
		if u == nil || u.learnt == nil {
			var all, same int
			key := s.Signers[0].RawSubjectPublicKeyInfo
			for _, o := range l.urls {
				if o.learnt == nil {
					continue
				}
				all++
				if len(o.learnt.Signers) > 0 && string(o.learnt.Signers[0].RawSubjectPublicKeyInfo) == string(key) {
					same++
				}
			}
			if all >= maxLearnt || same >= maxOfSigner {
				l.raise(ListsTooMany, fmt.Sprintf("certificates name more than %d distribution points, or those of %s more than %d; "+
					"the lists of the others are not fetched: configure their URLs", maxLearnt, people(s.Signers[0].Subject.String(), 120), maxOfSigner))
				return
			}
		}
		u = l.url(s.URL)
		u.learnt, u.live, u.seen = &s, true, now
		if u.list != nil { // fetched for another store, which this one has yet to hear of
			select {
			case l.dirty <- struct{}{}:
			default:
			}
		}
		l.hurry()
		return
	}
	u.seen = now
	if !slices.Equal(u.learnt.Hosts, s.Hosts) {
		more := *u.learnt
		more.Hosts = slices.Clone(s.Hosts)
		u.learnt = &more
	}
	for _, c := range s.Signers {
		if !slices.ContainsFunc(u.learnt.Signers, func(h *x509.Certificate) bool { return h == c || h.Equal(c) }) &&
			len(u.learnt.Signers) < maxSigners {
			more := *u.learnt
			more.Signers = append(slices.Clip(more.Signers), c)
			u.learnt = &more
			if u.again = true; u.code != "" {
				u.due = now
				l.hurry()
			}
		}
	}
}

// Restrict forgets the learnt URLs whose host is not among hosts. Call it when a configuration came into force that allows
// other hosts than the one before.
func (l *Lists) Restrict(hosts []string) {
	if hosts == nil {
		hosts = []string{} // none, where nil would stand for all
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, u := range l.urls {
		if u.learnt != nil && outbound.Check(u.url, hosts) != nil {
			if u.learnt, u.live = nil, false; u.want == nil {
				delete(l.urls, u.url)
			}
		}
	}
}

// url returns the entry of a URL, with mu held.
func (l *Lists) url(url string) *listURL {
	u := l.urls[url]
	if u == nil {
		u = &listURL{url: url, row: l.restored[url]}
		delete(l.restored, url)
		l.urls[url] = u
	}
	return u
}

// merge makes one Source of two of the same URL.
func merge(a, b Source) Source {
	if b.Every > 0 && (a.Every <= 0 || b.Every < a.Every) {
		a.Every = b.Every
	}
	if a.Hosts == nil || b.Hosts == nil {
		a.Hosts = nil
	} else {
		a.Hosts = slices.Concat(a.Hosts, b.Hosts)
	}
	if len(a.Signers) == 0 || len(b.Signers) == 0 {
		a.Signers = nil
	} else {
		a.Signers = slices.Concat(a.Signers, b.Signers)
	}
	a.Others = a.Others || b.Others
	if a.MaxBytes > 0 && b.MaxBytes > 0 {
		a.MaxBytes = max(a.MaxBytes, b.MaxBytes)
	} else {
		a.MaxBytes = 0
	}
	return a
}

// source says how to fetch a URL; nil if it is not to be fetched now.
func (u *listURL) source() *Source {
	switch {
	case u.want != nil && u.learnt != nil && u.live:
		s := merge(*u.want, *u.learnt)
		return &s
	case u.want != nil:
		return u.want
	case u.live:
		return u.learnt
	}
	return nil
}

// Fetched returns the newest good list of a URL: of this start, or of an earlier one. An error says why there is none.
func (l *Lists) Fetched(url string) (*trust.CRL, error) {
	l.keep.Lock()
	defer l.keep.Unlock()
	l.mu.Lock()
	u := l.urls[url]
	l.mu.Unlock()
	if u == nil {
		return nil, fmt.Errorf("%s: not among the URLs that are fetched", shown(url))
	}
	if crl := l.newest(u); crl != nil {
		return crl, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if u.problem != "" {
		return nil, fmt.Errorf("%s: no list yet: %s", shown(url), u.problem)
	}
	return nil, fmt.Errorf("%s: no list yet: it is being fetched for the first time", shown(url))
}

// Learnt returns the lists of the distribution points that certificates named, those of before a restart too.
func (l *Lists) Learnt(hosts []string) []*trust.CRL {
	l.keep.Lock()
	defer l.keep.Unlock()
	l.mu.Lock()
	var urls []*listURL
	for _, u := range l.urls {
		if u.learnt != nil && outbound.Check(u.url, hosts) == nil {
			urls = append(urls, u)
		}
	}
	l.mu.Unlock()
	slices.SortFunc(urls, func(a, b *listURL) int { return cmp.Compare(a.url, b.url) })
	var lists []*trust.CRL
	for _, u := range urls {
		if crl := l.newest(u); crl != nil && !slices.Contains(lists, crl) {
			lists = append(lists, crl)
		}
	}
	return lists
}

// newest returns the list of a URL, or the newer one of its scope that came from elsewhere. It needs keep.
func (l *Lists) newest(u *listURL) *trust.CRL {
	h := l.current(u)
	if h == nil {
		return nil
	}
	if f := l.floorOf(h.crl); f != nil && f.Sum != h.sum && f.before(h.number, h.crl.ThisUpdate()) {
		return l.load(f) // nil where it is gone: the older one is not in force any more
	}
	return h.crl
}

// Admit takes a list of the configuration. It returns the list to use: crl, or the newest of its issuer and scope that
// was ever in force if that is newer (threats C05), with a sentence for the operator. use is nil if the newer one is not
// kept any more: then there is no list of that scope that may be believed. Lists of the same date and number are as new
// as each other. raw is the file that crl was read from, as DER or PEM; without it the list is not kept on disk. A list whose
// signer is not known yet is remembered when a chain has shown it.
func (l *Lists) Admit(crl *trust.CRL, raw []byte) (use *trust.CRL, older string) {
	der := derOf(crl, raw)
	h := &held{crl: crl, number: numberOf(der), sum: hexSum(crl.Sum())}
	l.keep.Lock()
	defer l.keep.Unlock()
	signer := crl.Signer()
	f := l.floorOf(crl)
	if f != nil {
		if f.Sum != h.sum && f.before(h.number, crl.ThisUpdate()) {
			use = l.load(f)
			older = fmt.Sprintf("revocation list %s is older than one that was in force (%s)", crl, f)
			if use != nil {
				older += ", which stays in force; put the CA's current list in its place"
			} else {
				older += ", and that one is not kept any more; put the CA's current list in its place"
			}
			if l.dir != nil {
				older += fmt.Sprintf(" (or, if the CA began anew, stop and remove %s)", l.dir.path)
			}
			return use, older
		}
		signer = f.signer
	}
	if !l.remember(h, signer, der) {
		return crl, ""
	}
	l.save()
	return crl, ""
}

// Ready waits until every configured URL was tried once, or ctx ends.
func (l *Lists) Ready(ctx context.Context) {
	for {
		l.mu.Lock()
		waiting, tried := false, l.tried
		for _, u := range l.urls {
			waiting = waiting || u.want != nil && !u.tried
		}
		l.mu.Unlock()
		if !waiting {
			return
		}
		select {
		case <-tried:
		case <-ctx.Done():
			return
		case <-l.ctx.Done():
			return
		}
	}
}

// Conditions returns what is wrong now, ordered by code and text. Codes of a URL can be there more than once.
func (l *Lists) Conditions() []Condition {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []Condition
	for _, c := range l.conds {
		list = append(list, c)
	}
	for _, u := range l.urls {
		if u.code != "" {
			text := shown(u.url) + ": " + u.problem
			if u.list != nil {
				text += fmt.Sprintf("; the last good list, %s old, stays in force", now.Sub(u.list.crl.ThisUpdate()).Round(time.Second))
			} else {
				text += "; there is no list of it yet, which revocation.missing decides on"
			}
			list = append(list, Condition{Code: u.code, Text: cut(text), Since: u.since})
		}
		if u.list != nil {
			if text, since := StaleSoon(u.list.crl, now); text != "" {
				list = append(list, Condition{Code: ListStale, Text: cut(shown(u.url) + ": " + text), Since: since})
			}
		}
	}
	slices.SortFunc(list, func(a, b Condition) int { return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(a.Text, b.Text)) })
	return list
}

// StaleSoon tells that a quarter or less of a list's lifetime is left, or none, and since when (threats C04). The text is
// empty for a list that is fresh.
func StaleSoon(crl *trust.CRL, now time.Time) (text string, since time.Time) {
	life := crl.NextUpdate().Sub(crl.ThisUpdate())
	left := crl.NextUpdate().Sub(now)
	if left > life/4 {
		return "", time.Time{}
	}
	since = crl.NextUpdate().Add(-life / 4)
	if left <= 0 {
		return fmt.Sprintf("revocation list %s expired %s ago, which revocation.stale decides on; ask the CA for a newer one", crl, (-left).Round(time.Second)), since
	}
	return fmt.Sprintf("revocation list %s expires in %s; ask the CA for a newer one", crl, left.Round(time.Second)), since
}

// ListStatus is what is known of a URL, for metrics and people.
type ListStatus struct {
	URL                    string // without its query
	Learnt                 bool   // named by certificates
	ThisUpdate, NextUpdate time.Time
	Entries                int
	Checked                time.Time // when it last gave a good list or said that it has no other
	Problem                string
}

// Status returns what is known of each URL, ordered by URL.
func (l *Lists) Status() []ListStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []ListStatus
	for _, u := range l.urls {
		s := ListStatus{URL: shown(u.url), Learnt: u.learnt != nil, Checked: u.row.Checked, Problem: u.problem}
		if u.list != nil {
			s.ThisUpdate, s.NextUpdate, s.Entries = u.list.crl.ThisUpdate(), u.list.crl.NextUpdate(), u.list.crl.Len()
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b ListStatus) int { return cmp.Compare(a.URL, b.URL) })
	return list
}

// Close ends fetching. Changed is not called afterwards, and a call under way is waited for, up to five seconds; so Close
// must not be called from it.
func (l *Lists) Close() {
	l.cancel()
	done := make(chan struct{})
	go func() { l.work.Wait(); close(done) }()
	timeout := time.NewTimer(5 * time.Second)
	defer timeout.Stop()
	select {
	case <-done:
		if l.dir != nil {
			l.dir.root.Close()
		}
	case <-timeout.C:
		l.c.Log.Warn("revocation lists: a reload or a file system does not come back; not waiting for it")
	}
}

// run starts fetches as they fall due.
func (l *Lists) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-l.poke:
		case <-timer.C:
		}
		now := time.Now()
		next := now.Add(time.Hour)
		if at := l.sweep(now); at.Before(next) {
			next = at
		}
		if at := l.begin(now); at.Before(next) {
			next = at
		}
		timer.Reset(time.Until(next))
	}
}

// begin starts the fetches that are due, and returns when the next one is.
func (l *Lists) begin(now time.Time) (next time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next = now.Add(time.Hour)
	var due []*listURL
	for _, u := range l.urls {
		if u.learnt != nil && now.Sub(u.seen) >= learntFor {
			if u.learnt, u.live = nil, false; u.want == nil {
				delete(l.urls, u.url)
				continue
			}
		}
		if u.busy || u.source() == nil {
			continue
		}
		if u.due.After(now) {
			if u.due.Before(next) {
				next = u.due
			}
			continue
		}
		due = append(due, u)
	}
	if c, ok := l.conds[ListsTooMany]; ok && now.Sub(c.Since) >= learntFor {
		l.clear(ListsTooMany) // it comes back if it is still so
	}
	slices.SortFunc(due, func(a, b *listURL) int { return cmp.Or(a.due.Compare(b.due), cmp.Compare(a.url, b.url)) })
	for _, u := range due {
		if l.active == fetchers {
			break // the end of a fetch comes back here
		}
		l.active++
		u.busy, u.again = true, false
		s := *u.source()
		l.work.Go(func() { l.fetch(u, s) })
	}
	return next
}

// notify calls Changed, once for lists that come together.
func (l *Lists) notify() {
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-l.dirty:
		}
		select {
		case <-l.ctx.Done():
			return
		case <-time.After(together):
		}
		select {
		case <-l.dirty:
		default:
		}
		func() {
			defer func() {
				if p := recover(); p != nil {
					l.c.Log.Error("revocation lists: bug in a reload", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				}
			}()
			l.c.Changed()
		}()
	}
}

func (l *Lists) hurry() {
	select {
	case l.poke <- struct{}{}:
	default:
	}
}

// raise and clear need mu.
func (l *Lists) raise(code, text string) {
	c, known := l.conds[code]
	if !known {
		c = Condition{Code: code, Since: time.Now()}
		l.c.Log.Warn("revocation lists", "condition", code, "problem", cut(text))
	}
	c.Text = cut(text)
	l.conds[code] = c
}

func (l *Lists) clear(code string) { delete(l.conds, code) }

func hexSum(s Sum) string { return hex.EncodeToString(s[:]) }

// shown is a URL for people: without the query, which can hold secrets, and bounded.
func shown(url string) string {
	url, _, query := strings.Cut(url, "?")
	url, _, _ = strings.Cut(url, "#")
	if scheme, rest, ok := strings.Cut(url, "//"); ok {
		if at := strings.LastIndexByte(rest, '@'); at >= 0 {
			url = scheme + "//…@" + rest[at+1:]
		}
	}
	url = people(url, 200)
	if query {
		url += "?…"
	}
	return url
}

// people makes text of strangers safe to print, and cuts it.
func people(s string, limit int) string {
	q := strconv.QuoteToASCII(s)
	q = q[1 : len(q)-1]
	if len(q) > limit {
		q = q[:limit] + "…"
	}
	return q
}

func cut(text string) string {
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}
