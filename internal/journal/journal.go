// Package journal keeps what ended badly, and which clients were seen, in a file of the state folder, and finds it again. It
// is fed by package record and never keeps traffic waiting: what cannot be written in time is dropped and counted.
package journal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/store"
)

// FileIn is where the journal of a state folder is.
func FileIn(state string) string { return filepath.Join(state, "journal.db") }

// Defaults of the settings.
const (
	DefaultRecords  = 100_000
	DefaultBytes    = 256 << 20
	DefaultAge      = 7 * 24 * time.Hour
	DefaultNetworks = 8
	MinBytes        = 1 << 20
)

// Settings say what is kept and where. The zero value of a number means its default.
type Settings struct {
	// File is the file. Its folder is made if it is not there.
	File string
	// Records, Bytes and Age bound the entries. Bytes is the size of the file with everything in it.
	Records int
	Bytes   int64
	Age     time.Duration
	// Networks is from how many networks at a time one certificate raises a condition; at most 16.
	Networks int
}

func (s Settings) filled() Settings {
	if s.Records == 0 {
		s.Records = DefaultRecords
	}
	if s.Bytes == 0 {
		s.Bytes = DefaultBytes
	}
	if s.Age == 0 {
		s.Age = DefaultAge
	}
	if s.Networks == 0 {
		s.Networks = DefaultNetworks
	}
	return s
}

// Bounds of what waits for the writer, and its times.
const (
	maxWaiting      = 4096             // entries
	maxWaitingBytes = 12 << 20         // of memory for them
	maxSeenBytes    = 4 << 20          // of memory for clients
	maxGuestBytes   = maxSeenBytes / 4 // of that, for those that were not verified
	every           = 500 * time.Millisecond
	hurry           = 512              // entries that wait no longer
	perReason       = 500              // entries per second
	tidyEvery       = 30 * time.Second // removing what is too old or too much
	firstPause      = time.Second      // before a file that could not be opened or written to is tried again
	lastPause       = time.Minute
	writeTime       = 30 * time.Second
	closeTime       = 3 * time.Second
	maxPending      = 64 << 20 // bytes that were written and cannot be moved into the file
)

// Codes of conditions.
const (
	// Unavailable: the file cannot be opened. Nothing is kept.
	Unavailable = "journal_unavailable"
	// Failing: the file cannot be written to. What ended since is not kept.
	Failing = "journal_failing"
	// SetAside: the file was damaged, and a new one was made.
	SetAside = "journal_set_aside"
	// ManyNetworks: one certificate is used from many networks at once.
	ManyNetworks = "client_many_networks"
)

// Condition is something that needs the operator.
type Condition struct {
	Code, Text string
	Since      time.Time
}

// event is an entry that waits to be written: what is searched for, and the story.
type event struct {
	at                                                                            time.Time
	ref, kind, reason, address, sni, subject, issuer, serial, sha256, faultSHA256 string
	story                                                                         []byte
	stranger                                                                      *stranger // nil for none
}

func eventOf(e *Entry) event {
	out := event{at: e.Time, ref: e.Ref, kind: e.Kind, reason: e.Reason, address: address(e.Client), sni: strings.ToLower(e.SNI)}
	if len(e.Presented) > 0 {
		leaf := &e.Presented[0]
		out.subject, out.issuer, out.serial, out.sha256 = leaf.Subject, leaf.Issuer, leaf.Serial, leaf.SHA256
	}
	if e.AtFault != nil {
		out.faultSHA256 = e.AtFault.SHA256
	}
	out.story = e.story()
	return out
}

// size is how much memory e takes.
func (e *event) size() int {
	n := 384 + len(e.ref) + len(e.address) + len(e.sni) + len(e.subject) + len(e.issuer) + len(e.serial) + len(e.sha256) + len(e.faultSHA256) + len(e.story)
	if s := e.stranger; s != nil {
		n += 128 + len(s.listener) + len(s.host) + len(s.chain)
	}
	return n
}

// batch is what waits to be written.
type batch struct {
	events []event
	bytes  int // of events
	seen   map[[sha256.Size]byte]*sighted
	// seenBytes are those of seen, guestBytes the part of them that belongs to clients that were not verified.
	seenBytes, guestBytes int
}

// Journal is the writer of one file: a sink of package record, made by New and ended by Close. Its methods may be called
// from any goroutine.
type Journal struct {
	log                       *slog.Logger
	records, clients, dropped prometheus.Counter
	lost, panics              prometheus.Counter

	using sync.Mutex // one Use at a time

	mu      sync.Mutex
	writer  *writer // the one that has what waits from now on; nil for none
	waiting batch

	wake chan struct{}
	on   atomic.Bool
	full atomic.Bool // nothing more can wait
	// floods count the entries of each reason in one second.
	floods [reason.Count]struct{ second, entries atomic.Int64 }

	condMu sync.Mutex // before mu
	conds  map[string]Condition
	many   []Condition

	closing   time.Duration // how long the end may take: closeTime, and longer in tests
	writeHook func()        // in tests: stands still like a disk that does not answer
}

// New makes a journal that keeps nothing until Use says where.
func New(log *slog.Logger) *Journal {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	return &Journal{log: log, closing: closeTime, wake: make(chan struct{}, 1), conds: make(map[string]Condition),
		records: counter("countersign_journal_records_total", "Bad ends of handshakes, connections and requests that were written to the journal."),
		clients: counter("countersign_journal_clients_total", "Updates of the inventory of clients, one for each certificate and half a second in which it was seen."),
		dropped: counter("countersign_journal_dropped_total", "Bad ends that are not in the journal because it was too slow or could not be written."),
		lost:    counter("countersign_journal_clients_dropped_total", "Sightings of clients that are not in the inventory because the journal was too slow or could not be written."),
		panics:  counter("countersign_journal_panics_total", "Panics caught in the journal's writer; each is a bug, and cost one batch."),
	}
}

// Collectors are the journal's metrics.
func (j *Journal) Collectors() []prometheus.Collector {
	return []prometheus.Collector{j.records, j.clients, j.dropped, j.lost, j.panics}
}

// Use has the journal keep what s says from now on; nil ends that, with what waits written. The same file goes on.
func (j *Journal) Use(s *Settings) {
	j.using.Lock()
	defer j.using.Unlock()
	var next *writer
	if s != nil {
		next = &writer{j: j, settings: s.filled(), done: make(chan struct{})}
		next.life, next.stop = context.WithCancel(context.Background())
	}
	j.mu.Lock()
	was := j.writer
	if was != nil && next != nil && was.settings.File == next.settings.File && was.settings.Bytes == next.settings.Bytes {
		was.settings = next.settings
		j.mu.Unlock()
		return
	}
	if was != nil { // what waits is its last; what comes from now on it never touches, however long its disk keeps it
		was.rest, j.waiting = j.waiting, batch{}
	}
	j.writer = next
	j.on.Store(next != nil)
	j.full.Store(false)
	j.mu.Unlock()
	if was != nil {
		j.end(was)
	}
	if next != nil {
		go next.run()
	}
}

// Close writes what waits, for three seconds at most, and ends the writer.
func (j *Journal) Close() { j.Use(nil) }

// end ends a writer that was replaced, and the conditions that were about it.
func (j *Journal) end(w *writer) {
	w.stop()
	t := time.NewTimer(j.closing)
	defer t.Stop()
	select {
	case <-w.done:
	case <-t.C:
		j.log.Warn("the journal's file does not take what is left; unless the disk answers yet, it is lost")
	}
	j.condMu.Lock()
	delete(j.conds, Unavailable)
	delete(j.conds, Failing)
	j.many = nil
	j.condMu.Unlock()
}

// Refused, Denied and Seen are record.Sink.

// Refused takes a handshake or connection. It is told at once: what it was made of can be much larger, and is not held.
func (j *Journal) Refused(h *record.Handshake, now time.Time) {
	if !j.on.Load() {
		return
	}
	e := eventOf(ofHandshake(h, now))
	e.stranger = strangerOf(h)
	j.put(e)
}

// Room is part of record.Sink: it spares those who would be dropped the making of what is dropped. A flood of one kind has
// the writer work no more than a little: what it says is in the first entries.
func (j *Journal) Room(why reason.Reason, now time.Time) bool {
	f, second := &j.floods[min(int(why), reason.Count-1)], now.Unix()
	if before := f.second.Load(); before != second && f.second.CompareAndSwap(before, second) {
		f.entries.Store(0)
	}
	if f.entries.Add(1) > perReason || j.full.Load() {
		j.dropped.Inc()
		return false
	}
	return true
}

// Denied takes a request.
func (j *Journal) Denied(r *record.Request, ref string, fragment []byte, now time.Time) {
	if j.on.Load() {
		j.put(eventOf(ofRequest(r, ref, fragment, now)))
	}
}

func (j *Journal) put(e event) {
	if taken, urgent := j.queue(e); !taken {
		j.dropped.Inc()
	} else if urgent {
		j.hurry()
	}
}

func (j *Journal) queue(e event) (taken, urgent bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	b, size := &j.waiting, e.size()
	if j.writer == nil || len(b.events) >= maxWaiting || b.bytes+size > maxWaitingBytes {
		j.full.Store(j.writer != nil)
		return false, false
	}
	b.events, b.bytes = append(b.events, e), b.bytes+size
	j.full.Store(len(b.events) == maxWaiting)
	return true, len(b.events) == hurry
}

// hurry has the writer come now.
func (j *Journal) hurry() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// Seen takes a client that has proven to hold its key. It is counted in memory, and written with others.
func (j *Journal) Seen(s record.Sighting) {
	if !j.on.Load() || len(s.Presented) == 0 {
		return
	}
	var sum [sha256.Size]byte
	if s.Identity != nil {
		sum = s.Identity.Fingerprint()
	} else {
		sum = sha256.Sum256(s.Presented[0].Raw)
	}
	if taken, urgent := j.see(sum, &s); !taken {
		j.lost.Inc()
	} else if urgent {
		j.hurry()
	}
}

func (j *Journal) see(sum [sha256.Size]byte, s *record.Sighting) (taken, urgent bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.writer == nil {
		return false, false
	}
	b := &j.waiting
	c, before := b.seen[sum], b.seenBytes
	if c == nil {
		// The bytes of a certificate are a part of all that the client sent: they are copied, and the rest is let go.
		size := sightedBytes + len(s.Presented[0].Raw)
		if b.seenBytes+size > maxSeenBytes || s.Identity == nil && b.guestBytes+size > maxGuestBytes {
			return false, false
		}
		c = &sighted{sum: sum, leaf: bytes.Clone(s.Presented[0].Raw), first: s.Time}
		size += c.believe(s)
		if b.seen == nil {
			b.seen = make(map[[sha256.Size]byte]*sighted)
		}
		b.seen[sum] = c
		b.seenBytes += size
		if s.Identity == nil {
			b.guestBytes += size
		}
	} else if b.seenBytes < maxSeenBytes {
		b.seenBytes += c.believe(s)
	}
	b.seenBytes += c.note(s, b.seenBytes < maxSeenBytes)
	urgent = before < maxSeenBytes/2 && b.seenBytes >= maxSeenBytes/2
	return true, urgent
}

// take returns what w is to write.
func (j *Journal) take(w *writer) (b batch) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.writer != w {
		b, w.rest = w.rest, batch{}
		return b
	}
	b, j.waiting = j.waiting, batch{}
	j.full.Store(false)
	return b
}

// Conditions is what needs the operator, ordered by code.
func (j *Journal) Conditions() []Condition {
	j.condMu.Lock()
	defer j.condMu.Unlock()
	list := slices.Clone(j.many)
	for _, c := range j.conds {
		list = append(list, c)
	}
	slices.SortStableFunc(list, func(a, b Condition) int { return strings.Compare(a.Code, b.Code) })
	return list
}

// condition raises a condition, or ends it where text is empty. A writer that was replaced has none.
func (w *writer) condition(code, text string) {
	j := w.j
	before, was, current := j.set(w, code, text)
	switch {
	case !current && text == "":
	case text == "" && was:
		j.log.Info("condition over", "code", code)
	case text != "" && before.Text != text:
		j.log.Warn("condition", "code", code, "text", text)
	}
}

func (j *Journal) set(w *writer, code, text string) (before Condition, was, current bool) {
	j.condMu.Lock()
	defer j.condMu.Unlock()
	if before, was = j.conds[code]; !j.current(w) {
		return before, was, false
	}
	switch {
	case text == "":
		delete(j.conds, code)
	case was:
		j.conds[code] = Condition{code, text, before.Since}
	default:
		j.conds[code] = Condition{code, text, time.Now()}
	}
	return before, was, true
}

func (j *Journal) current(w *writer) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.writer == w
}

// writer is the one goroutine that has the file.
type writer struct {
	j        *Journal
	settings Settings        // of this file; guarded by j.mu
	rest     batch           // of one that was replaced, all that it has to write yet; guarded by j.mu
	life     context.Context // ends when nothing more is to come
	stop     func()          // ends life
	done     chan struct{}

	db      *store.DB
	pause   time.Duration
	retry   time.Time // of a file that could not be opened
	tidied  time.Time
	opened  time.Time
	clock   clock // runs since opened
	rows    int   // verdicts
	strange int   // rows written of strangers since they were last counted
	most    int   // strangers that are kept
	guests  int   // bytes written of guests since they were last counted, about
	apart   int64 // bytes of the file that neither verdicts nor clients use, when that was last counted
	spread  spread
}

func (w *writer) run() {
	defer close(w.done)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		last := false
		select {
		case <-tick.C:
		case <-w.j.wake:
		case <-w.life.Done():
			last = true
		}
		if w.step(last); last {
			return
		}
	}
}

// leave counts what could not be written any more, and closes the file.
func (w *writer) leave() {
	b := w.j.take(w)
	w.j.dropped.Add(float64(len(b.events)))
	w.j.lost.Add(float64(len(b.seen)))
	w.shut()
}

func (w *writer) shut() {
	if w.db != nil {
		_ = w.db.Close()
		w.db = nil
	}
}

// step opens the file if it is not open, and writes what waits.
func (w *writer) step(last bool) {
	defer func() {
		if v := recover(); v != nil { // a bug; it costs the batch at hand (F16)
			w.j.panics.Inc()
			w.j.log.Error("journal: bug", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
	}()
	if last {
		defer w.leave()
	}
	// Checking a large file takes long, and nobody waits for it.
	opening, limit := w.life, writeTime
	if last {
		var cancel context.CancelFunc
		opening, cancel = context.WithTimeout(context.Background(), w.j.closing)
		defer cancel()
		limit = w.j.closing
	}
	w.j.mu.Lock()
	s := w.settings
	w.j.mu.Unlock()
	if w.db == nil && !w.open(opening, &s, last) {
		return // what waits goes on waiting, and what finds no room is dropped
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	b := w.j.take(w)
	if len(b.events)+len(b.seen) > 0 {
		if hook := w.j.writeHook; hook != nil {
			hook()
		}
		if err := w.write(ctx, &s, &b); err != nil {
			w.failed(ctx, err, &s)
			return
		}
		w.pause = 0
		w.condition(Failing, "")
	}
	w.crowds(w.spread.look(b.seen, s.Networks, time.Now()))
	if since := time.Since(w.tidied); since >= tidyEvery || w.rows > s.Records+s.Records/10 && since >= 2*time.Second {
		if err := w.tidy(ctx, &s, time.Now()); err != nil {
			w.failed(ctx, err, &s)
		}
	}
}

// open opens the file and reports whether that worked. A damaged one is set aside.
func (w *writer) open(ctx context.Context, s *Settings, last bool) bool {
	if time.Now().Before(w.retry) && !last {
		return false
	}
	o := store.Options{Path: s.File, Schema: schema, MaxBytes: s.Bytes}
	db, err := store.Open(ctx, o)
	if store.Full(err) { // bringing it up to date needs some room; what is too much then is removed as ever
		unbound := o
		unbound.MaxBytes = 0
		if db, err = store.Open(ctx, unbound); err == nil {
			db.Close()
			db, err = store.Open(ctx, o)
		}
	}
	var damaged *store.DamagedError
	if errors.As(err, &damaged) {
		db, err = w.anew(ctx, o, err)
	}
	if err == nil {
		w.db, w.pause = db, 0
		if err = w.begin(ctx, s); err == nil {
			w.condition(Unavailable, "")
			return true
		}
		w.shut()
	}
	w.pause = min(max(2*w.pause, firstPause), lastPause)
	w.retry = time.Now().Add(w.pause)
	w.condition(Unavailable, "nothing is kept of refusals and clients: "+plain(err.Error(), 2*maxText))
	return false
}

// begin learns what it has to know of a file that was opened.
func (w *writer) begin(ctx context.Context, s *Settings) (err error) {
	w.tidied, w.opened, w.clock = time.Time{}, time.Now(), clock{}
	w.strange, w.most = 0, int(min(maxStrangers, s.Bytes/10/maxStranger))
	w.guests, w.apart = 0, 0
	if w.rows, err = count(ctx, w.db, "verdicts"); err != nil {
		return err
	}
	// A clock that is far ahead of the time that was believed last may be wrong. A file of before that was kept has but its rows.
	var last int64
	err = one(ctx, w.db, &last, `SELECT coalesce((SELECT believed FROM clock),
		max(coalesce((SELECT max(time) FROM verdicts), 0), coalesce((SELECT max(last) FROM clients), 0)))`)
	if last > 0 {
		w.clock.now(time.UnixMicro(last), 0)
	}
	return err
}

// anew sets a damaged file aside and makes another.
func (w *writer) anew(ctx context.Context, o store.Options, why error) (*store.DB, error) {
	to, err := store.SetAside(o.Path, time.Now())
	if err != nil {
		return nil, err
	}
	w.condition(SetAside, fmt.Sprintf("%s; it was set aside as %s, and a new one was made. Look at the disk; delete the old file when it is of no more use",
		plain(why.Error(), maxText), plain(to, maxText)))
	return store.Open(ctx, o)
}

// failed notes that something was not written. It is lost: waiting longer for a disk would fill memory.
func (w *writer) failed(ctx context.Context, err error, s *Settings) {
	var damaged *store.DamagedError
	if errors.As(err, &damaged) {
		w.shut()
		if w.db, err = w.anew(ctx, store.Options{Path: s.File, Schema: schema, MaxBytes: s.Bytes}, err); err == nil {
			if err = w.begin(ctx, s); err == nil {
				return
			}
			w.shut()
		}
		w.db = nil
	}
	w.condition(Failing, "what ends badly now is not kept: "+plain(err.Error(), 2*maxText))
}

// crowds sets the conditions about certificates that are used from many networks.
func (w *writer) crowds(now []Condition) {
	j := w.j
	j.condMu.Lock()
	before := j.many
	if !j.current(w) {
		j.condMu.Unlock()
		return
	}
	for i := range now {
		for _, c := range before {
			if about(c.Text) == about(now[i].Text) {
				now[i].Since = c.Since
			}
		}
	}
	j.many = now
	j.condMu.Unlock()
	for _, c := range now {
		if !slices.ContainsFunc(before, func(b Condition) bool { return about(b.Text) == about(c.Text) }) {
			j.log.Warn("condition", "code", c.Code, "text", c.Text)
		}
	}
}

// about is the part of a condition's text that stays the same.
func about(text string) string {
	head, _, _ := strings.Cut(text, " is used from ")
	return head
}

// one reads one number.
func one(ctx context.Context, db *store.DB, n *int64, statement string) error {
	rows, err := db.Query(ctx, statement)
	if err != nil {
		return err
	}
	defer rows.Close()
	if rows.Next() {
		err = rows.Scan(n)
	}
	return errors.Join(err, rows.Err())
}

func count(ctx context.Context, db *store.DB, table string) (int, error) {
	var n int64
	err := one(ctx, db, &n, "SELECT count(*) FROM "+table)
	return int(n), err
}

// write puts a batch into the file in parts, each all or nothing, and counts what became of it. What comes after a part that
// could not be written is not tried.
func (w *writer) write(ctx context.Context, s *Settings, b *batch) error {
	part := int(s.Bytes / 32) // for which there is always room
	events := b.events
	for len(events) > 0 {
		n, size := 1, events[0].size()
		for n < len(events) && size+events[n].size() <= part {
			size += events[n].size()
			n++
		}
		err := w.transact(ctx, s, size, func(tx *sql.Tx) error {
			if err := insert(ctx, tx, events[:n]); err != nil {
				return err
			}
			return w.remember(ctx, tx, events[:n])
		})
		if err != nil {
			w.j.dropped.Add(float64(len(events)))
			w.j.lost.Add(float64(len(b.seen)))
			return err
		}
		w.rows += n
		w.j.records.Add(float64(n))
		events = events[n:]
	}
	seen := slices.Collect(maps.Values(b.seen))
	for len(seen) > 0 {
		n, size := 1, seen[0].size()
		for n < len(seen) && size+seen[n].size() <= part {
			size += seen[n].size()
			n++
		}
		if err := w.transact(ctx, s, size, func(tx *sql.Tx) error { return w.update(ctx, tx, seen[:n]) }); err != nil {
			w.j.lost.Add(float64(len(seen)))
			return err
		}
		w.j.clients.Add(float64(n))
		seen = seen[n:]
		if w.guests > int(s.Bytes/100) {
			if err := w.tidyGuests(ctx, s); err != nil {
				w.j.lost.Add(float64(len(seen)))
				return err
			}
		}
	}
	return nil
}

// transact runs a transaction that needs about size bytes, with room made for it.
func (w *writer) transact(ctx context.Context, s *Settings, size int, f func(*sql.Tx) error) error {
	if w.db.Pending() > maxPending {
		return fmt.Errorf("more than %d MiB that were written cannot be moved into the file; a program that reads it, and has stopped, holds them up", maxPending>>20)
	}
	if err := w.room(ctx, s, int64(size)); err != nil {
		return err
	}
	err := w.db.Write(ctx, f)
	if store.Full(err) { // it took more than was thought, and those who were not verified give way first
		if err := w.fewGuests(ctx); err != nil {
			return err
		}
		if err := w.room(ctx, s, 4*int64(size)+s.Bytes/10); err != nil {
			return err
		}
		err = w.db.Write(ctx, f)
	}
	return err
}

func insert(ctx context.Context, tx *sql.Tx, events []event) error {
	row, err := tx.PrepareContext(ctx, "INSERT INTO verdicts (time, ref, kind, reason, address, sni, subject, issuer, serial, sha256, at_sha256) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
	if err != nil {
		return err
	}
	defer row.Close()
	story, err := tx.PrepareContext(ctx, "INSERT INTO stories (id, story) VALUES (?, ?)")
	if err != nil {
		return err
	}
	defer story.Close()
	for i := range events {
		e := &events[i]
		done, err := row.ExecContext(ctx, e.at.UnixMicro(), e.ref, e.kind, e.reason, e.address, e.sni, e.subject, e.issuer, e.serial, e.sha256, e.faultSHA256)
		if err != nil {
			return err
		}
		id, err := done.LastInsertId()
		if err != nil {
			return err
		}
		if _, err := story.ExecContext(ctx, id, e.story); err != nil {
			return err
		}
	}
	return nil
}

// tidy removes what is too old or too much.
func (w *writer) tidy(ctx context.Context, s *Settings, wall time.Time) error {
	w.tidied = time.Now()
	now := w.clock.now(wall, w.tidied.Sub(w.opened))
	err := w.db.Write(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "INSERT INTO clock (id, believed) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET believed = excluded.believed", now.UnixMicro()); err != nil {
			return err
		}
		old := now.Add(-s.Age).UnixMicro()
		if _, err := tx.ExecContext(ctx, "DELETE FROM verdicts WHERE id IN (SELECT id FROM verdicts WHERE time < ? ORDER BY time LIMIT ?)", old, maxAtOnce); err != nil {
			return err
		}
		if err := w.tidyStrangers(ctx, tx, s, now); err != nil {
			return err
		}
		return tidyClients(ctx, tx, now)
	})
	if err != nil {
		return err
	}
	if err := w.tidyGuests(ctx, s); err != nil {
		return err
	}
	if w.rows, err = count(ctx, w.db, "verdicts"); err != nil {
		return err
	}
	for range maxRounds {
		if w.rows <= s.Records {
			break
		}
		if err := w.fewerVerdicts(ctx, w.rows-s.Records); err != nil {
			return err
		}
	}
	if err := w.room(ctx, s, 0); err != nil {
		return err
	}
	return w.db.Shrink(ctx, 1000)
}

// maxAtOnce is how many entries are removed in one transaction: it has to end within a step, and its pages wait beside the
// file. The rest goes with the next tidy.
const maxAtOnce = 20_000

// maxRounds bounds how often something is removed before it is seen whether that was enough.
const maxRounds = 50

// fewerVerdicts removes about n: the oldest of the reason with the most of them. A flood of one kind does not take the room
// of what is rare.
func (w *writer) fewerVerdicts(ctx context.Context, n int) error {
	return w.fewerOf(ctx, "SELECT reason, ? FROM verdicts GROUP BY reason ORDER BY count(*) DESC LIMIT 1", n)
}

// lighterVerdicts removes about so many bytes: the oldest of the reason with the most of them.
func (w *writer) lighterVerdicts(ctx context.Context, bytes int64) error {
	return w.fewerOf(ctx, `SELECT reason, ? * count(*) / sum(512 + coalesce(length(story), 0)) + 1 FROM verdicts LEFT JOIN stories USING (id)
		GROUP BY reason ORDER BY sum(512 + coalesce(length(story), 0)) DESC LIMIT 1`, bytes)
}

// fewerOf removes the oldest of a reason: which and how many, a statement says.
func (w *writer) fewerOf(ctx context.Context, statement string, arg any) error {
	err := w.db.Write(ctx, func(tx *sql.Tx) error {
		var why string
		var n int64
		switch err := tx.QueryRowContext(ctx, statement, arg).Scan(&why, &n); {
		case errors.Is(err, sql.ErrNoRows):
			return nil // there is none
		case err != nil:
			return err
		}
		_, err := tx.ExecContext(ctx, "DELETE FROM verdicts WHERE id IN (SELECT id FROM verdicts WHERE reason = ? ORDER BY id LIMIT ?)", why, min(n, maxAtOnce))
		return err
	})
	if err == nil {
		w.rows, err = count(ctx, w.db, "verdicts")
	}
	return err
}

// fewer removes those rows of an inventory that were seen longest ago.
func (w *writer) fewer(ctx context.Context, table string, n int) error {
	return w.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM "+table+" WHERE rowid IN (SELECT rowid FROM "+table+" ORDER BY last, rowid LIMIT ?)", n)
		return err
	})
}

// room makes room for more bytes. Verdicts and clients have seven tenths of the file together, and where those do not suffice,
// the larger of the two gives way: each has half of them for sure, and what the other does not use. The rest of the file is
// for strangers and guests, who have bounds of their own, and for what pages leave empty.
func (w *writer) room(ctx context.Context, s *Settings, more int64) error {
	limit := s.Bytes / 10 * 7
	for round := range maxRounds {
		used, err := w.db.Used(ctx)
		if err != nil {
			return err
		}
		over := used - w.apart + more - limit
		if round == 0 && over <= 0 {
			return nil
		}
		sizes, err := w.sizes(ctx)
		if err != nil {
			return err
		}
		verdicts, clients := sizes["verdicts"]+sizes["stories"], sizes["clients"]+sizes["chains"]
		w.apart = used - verdicts - clients
		if over = verdicts + clients + more - limit; round > 0 {
			over += s.Bytes / 20 // or it would have to be done again soon
		}
		if over <= 0 {
			return nil
		}
		// A large part of the difference at once, and of what is the same a little of each.
		over = min(over, max(verdicts-clients, clients-verdicts, max(verdicts, clients)/8))
		if verdicts >= clients {
			if w.rows == 0 {
				return nil // what is left are empty pages
			}
			err = w.lighterVerdicts(ctx, over)
		} else {
			var n int
			if n, err = count(ctx, w.db, "clients"); err == nil && n > 0 {
				err = w.fewer(ctx, "clients", n*int(over)/int(clients)+1)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sizes are the bytes of the file that each table has, with its indexes. Asking for it reads the whole file.
func (w *writer) sizes(ctx context.Context) (map[string]int64, error) {
	rows, err := w.db.Query(ctx, "SELECT t.tbl_name, sum(d.pgsize) FROM dbstat d JOIN sqlite_schema t ON t.name = d.name WHERE d.aggregate = TRUE GROUP BY 1")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := make(map[string]int64)
	for rows.Next() {
		var table string
		var n int64
		if err := rows.Scan(&table, &n); err != nil {
			return nil, err
		}
		all[table] = n
	}
	return all, rows.Err()
}

// verdictOf is how a sighting's verdict is kept.
func verdictOf(r reason.Reason) string {
	if r.Good() || r == reason.Unset {
		return Accepted
	}
	return r.String()
}

// Accepted stands in an inventory for a client that was let in.
const Accepted = "accepted"
