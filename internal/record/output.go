package record

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Place is where an output leads.
type Place uint8

// The places.
const (
	Stdout Place = iota
	Stderr
	ToFile
	ToSyslog
)

// Settings are those of one output. Equal settings are the same output, which a reload leaves alone. The zero value but
// for its name is the output that is there when none is configured: JSON lines of everything on standard output.
type Settings struct {
	// Name is the label in metrics and messages.
	Name   string
	Place  Place
	Format Format
	// NoRequests and NoConnections leave one kind of records out.
	NoRequests, NoConnections bool
	// Own says that Which holds for this output, and not what Book.Log says.
	Own   bool
	Which Which
	// Queue is how many bytes of lines may wait; 0 means 4 MiB. As many again may be on their way.
	Queue  int
	File   FileSettings
	Syslog SyslogSettings
}

// Streams are the standard outputs of the program.
type Streams struct{ Stdout, Stderr io.Writer }

// Trouble is what the operator should know about an output.
type Trouble struct {
	Output string
	// Dropped is how many lines were lost since it was last said.
	Dropped int64
	// Err is why nothing can be written now; nil when it can again.
	Err error
}

// sink is where an output's lines go. It is used by one goroutine, except for reopen.
type sink interface {
	// write takes lines, of which there may be a part only the first time after an error, and returns how many bytes it is
	// done with and how many lines of those it had to give up. An error says why it cannot go on now.
	write(lines []byte) (done, lost int, err error)
	// reopen has the next write look whether it still leads where it should.
	reopen()
	close()
}

// The pauses of a writer: lines of one moment leave in one write, and what failed is tried again, less and less often.
const (
	gather     = 2 * time.Millisecond
	firstPause = 100 * time.Millisecond
	lastPause  = 10 * time.Second
	lastWrites = time.Second // that Close waits for
	retell     = 10 * time.Second
)

const defaultQueue = 4 << 20

// output is a queue of lines and the goroutine that writes them. Who adds a line never waits for a sink.
type output struct {
	Settings
	book  *Book
	sink  sink
	limit int

	mu      sync.Mutex
	pending []byte // lines not yet taken
	spare   []byte
	missed  int64 // lines dropped since the last that was taken
	untold  int64 // lines dropped or lost that the operator was not told of
	closed  bool

	wake    chan struct{}
	retry   chan struct{}
	done    chan struct{}
	abandon chan struct{} // nobody waits for the rest
	dropped prometheus.Counter
	errors  prometheus.Counter

	// Of the writer.
	toldLost, toldFailing time.Time
	failing               bool // and the operator was told
	telling               atomic.Bool
}

func (b *Book) newOutput(s Settings, to sink) *output {
	o := &output{Settings: s, book: b, sink: to, limit: s.Queue,
		pending: make([]byte, 0, 64<<10), spare: make([]byte, 0, 64<<10),
		wake: make(chan struct{}, 1), retry: make(chan struct{}, 1), done: make(chan struct{}), abandon: make(chan struct{}),
		dropped: b.dropped.WithLabelValues(s.Name), errors: b.failures.WithLabelValues(s.Name)}
	if o.limit == 0 {
		o.limit = defaultQueue
	}
	go o.run()
	return o
}

// line adds what add appends to the pending lines, or drops it.
func (o *output) line(add func([]byte) []byte) {
	first, kept := o.keep(add)
	switch {
	case !kept:
		o.dropped.Inc()
	case first:
		o.signal()
	}
}

func (o *output) keep(add func([]byte) []byte) (first, kept bool) {
	o.mu.Lock()
	defer o.mu.Unlock() // also when add panics: others must be able to write on
	if len(o.pending) > o.limit || o.closed {
		o.missed++
		o.untold++
		return false, false
	}
	first = len(o.pending) == 0
	o.pending = add(o.pending)
	return first, true
}

func (o *output) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// run is the goroutine that empties the queue.
func (o *output) run() {
	defer close(o.done)
	defer o.sink.close()
	for range o.wake {
		if o.empty() {
			return
		}
	}
}

// empty delivers what waits until nothing does, and reports whether that was the end.
func (o *output) empty() (ended bool) {
	defer func() {
		if recover() != nil {
			o.book.Panicked() // a bug; it costs the lines at hand
		}
	}()
	for {
		time.Sleep(gather)
		lines, closed := o.take()
		if len(lines) == 0 {
			o.giveBack(lines)
			return closed
		}
		o.deliver(lines)
		o.giveBack(lines)
	}
}

// take takes what waits. If lines were dropped behind it, that is said in its place.
func (o *output) take() (lines []byte, closed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	lines, closed = o.pending, o.closed
	o.pending, o.spare = o.spare[:0], nil
	if o.missed > 0 && len(lines) > 0 {
		lines = o.gap(lines, time.Now())
		o.missed = 0
	}
	return lines, closed
}

// gap appends the line that says how many are missing here. Formats without a place for it have none; metrics and the
// operator's log tell of it too.
func (o *output) gap(b []byte, now time.Time) []byte {
	if o.Format != JSON {
		return b
	}
	if o.Place == ToSyslog {
		b = o.Syslog.header(b, now, severityWarning, "dropped")
	}
	b = append(b, `{"time":"`...)
	b = now.UTC().AppendFormat(b, albTime)
	b = append(b, `","kind":"dropped","lines":`...)
	b = strconv.AppendInt(b, o.missed, 10)
	return append(b, '}', '\n')
}

func (o *output) giveBack(lines []byte) {
	if cap(lines) > 1<<20 {
		lines = make([]byte, 0, 64<<10) // give back what a burst needed
	}
	o.mu.Lock()
	o.spare = lines[:0]
	o.mu.Unlock()
}

// deliver writes lines, however long that takes: meanwhile others wait, and what finds no room is dropped.
func (o *output) deliver(lines []byte) {
	var pause time.Duration
	for len(lines) > 0 {
		done, lost, err := o.sink.write(lines)
		lines = lines[done:]
		o.lose(int64(lost))
		if err == nil && done > 0 {
			pause = 0
			continue
		}
		if err == nil {
			err = io.ErrNoProgress
		}
		o.errors.Inc()
		o.trouble(err)
		pause = min(max(2*pause, firstPause), lastPause)
		wait := time.NewTimer(pause)
		select {
		case <-wait.C:
		case <-o.retry:
		case <-o.abandon:
			o.lose(int64(bytes.Count(lines, []byte{'\n'})))
			wait.Stop()
			return
		}
		wait.Stop()
	}
	o.trouble(nil)
}

func (o *output) lose(lines int64) {
	if lines > 0 {
		o.dropped.Add(float64(lines))
		o.mu.Lock()
		o.untold += lines
		o.mu.Unlock()
	}
}

// trouble tells the operator of an output that cannot be written to (err), that can again, or that lost lines: without
// waiting for whoever listens, and about each of them no more often than every ten seconds.
func (o *output) trouble(err error) {
	told := &o.toldLost
	if err != nil || o.failing {
		told = &o.toldFailing
	}
	quiet := !told.IsZero() && time.Since(*told) < retell
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case err != nil && (o.failing || quiet), err == nil && !o.failing && (o.untold == 0 || quiet):
		return
	}
	tell := o.book.tell.Load()
	if tell == nil || !o.telling.CompareAndSwap(false, true) {
		return
	}
	t := Trouble{Output: o.Name, Dropped: o.untold, Err: err}
	*told, o.untold, o.failing = time.Now(), 0, err != nil
	go func() {
		defer o.telling.Store(false)
		defer func() {
			if recover() != nil { // nobody knows of the lines yet
				o.book.Panicked()
				o.mu.Lock()
				o.untold += t.Dropped
				o.mu.Unlock()
			}
		}()
		(*tell)(t)
	}()
}

// stop has the writer write what waits, for a second at most, and end.
func (o *output) stop() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.signal()
	if !o.wait(lastWrites) {
		close(o.abandon) // a writer in a pause ends now, one in a call of the system when that returns
		o.wait(gather)
	}
}

func (o *output) wait(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-o.done:
		return true
	case <-t.C:
		return false
	}
}

// again has an output look where it leads, and try at once if it is in a pause.
func (o *output) again() {
	o.sink.reopen()
	select {
	case o.retry <- struct{}{}:
	default:
	}
}

// stream is a sink for a standard output, or whatever is given for one.
type stream struct{ w io.Writer }

func (s stream) write(lines []byte) (done, lost int, err error) {
	done, err = s.w.Write(lines)
	return min(max(done, 0), len(lines)), 0, err
}

func (stream) reopen() {}
func (stream) close()  {}

// Plan is the set of outputs of a configuration, opened before anything changes. Exactly one of Use and Drop is called.
type Plan struct {
	book      *Book
	all       []*output
	fresh     []*output
	perReason int64
}

// Prepare opens the outputs that want names and that are not there yet. On an error nothing has changed. A full or
// read-only disk, or a syslog server that does not answer, is no error: they may be well later, and traffic does not depend
// on them. perReason is the most lines per second about requests and handshakes that end for one and the same reason
// which is not a good one; 0 means 1000.
func (b *Book) Prepare(want []Settings, perReason int, s Streams) (*Plan, error) {
	p := &Plan{book: b, perReason: int64(perReason)}
	if perReason == 0 {
		p.perReason = defaultPerReason
	}
	if len(want) == 0 {
		want = []Settings{{Name: "stdout"}}
	}
	for _, settings := range want {
		if o := b.find(settings); o != nil {
			p.all = append(p.all, o)
			continue
		}
		to, err := open(&settings, s)
		if err != nil {
			p.Drop()
			return nil, fmt.Errorf("log output %s: %w", settings.Name, err)
		}
		o := b.newOutput(settings, to)
		p.all, p.fresh = append(p.all, o), append(p.fresh, o)
	}
	return p, nil
}

func (b *Book) find(s Settings) *output {
	for _, o := range *b.outputs.Load() {
		if o.Settings == s {
			return o
		}
	}
	return nil
}

func open(s *Settings, streams Streams) (sink, error) {
	var w io.Writer
	switch s.Place {
	case Stdout:
		w = streams.Stdout
	case Stderr:
		w = streams.Stderr
	case ToFile:
		return openFile(s.File)
	case ToSyslog:
		return newSyslog(s.Syslog), nil
	}
	if w == nil {
		return nil, errors.New("the program has no such stream")
	}
	return stream{w}, nil
}

// Use has records go to the plan's outputs. Those that are not among them write what waits and end, behind our back.
func (p *Plan) Use() {
	old := *p.book.outputs.Swap(&p.all)
	p.book.perReason.Store(p.perReason)
	p.book.settle()
	for _, o := range old {
		if p.book.find(o.Settings) != o {
			go o.stop()
		}
	}
}

// Drop closes what Prepare opened.
func (p *Plan) Drop() {
	for _, o := range p.fresh {
		go o.stop()
	}
}

// Reopen has all outputs look where they lead: logrotate may have moved a file.
func (b *Book) Reopen() {
	for _, o := range *b.outputs.Load() {
		o.again()
	}
}

// Tell sets who is told of trouble with outputs. It may be called from several goroutines at a time.
func (b *Book) Tell(f func(Trouble)) { b.tell.Store(&f) }
