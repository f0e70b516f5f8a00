// Package daemon owns the order of things in a running program: start, reload, signals, drain. The whole program can be
// run in a test with it.
package daemon

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"countersign/internal/config"
	"countersign/internal/control"
	"countersign/internal/frontend"
	"countersign/internal/journal"
	"countersign/internal/record"
	"countersign/internal/refresh"
	"countersign/internal/snapshot"
	"countersign/internal/tracing/otlp"
	"countersign/internal/upstream"
)

// Options say what to run. Nil functions mean the ordinary ones.
type Options struct {
	// Config is the configuration file.
	Config string
	// Records is standard output for the log, which gets one JSON line for each handshake and request if the configuration says
	// nothing else; Log gets what concerns the operator.
	Records, Log io.Writer
	// Listen and Dial open sockets.
	Listen func(address string) (net.Listener, error)
	Dial   upstream.Dialer
	// Quiet and Poll are how long files must have stopped changing before they are loaded, and how often they are looked
	// at where the system tells nothing; zero means package refresh's own.
	Quiet, Poll time.Duration
	// Now is the time certificates are compared with when a configuration is loaded; nil means time.Now.
	Now func() time.Time
}

// Main is the program: made by Start, ended by Shutdown.
type Main struct {
	o     Options
	book  *record.Book
	log   *slog.Logger
	relay *record.Relay // before the operator's log
	front *frontend.Frontend
	ops   *ops
	// control answers the operator.
	control *control.Server
	// traces sends spans of requests that are traced.
	traces *otlp.Exporter
	// journal keeps what ended badly, if the configuration has a place for it.
	journal *journal.Journal
	files   *refresh.Watcher
	// outside is what is fetched.
	outside *outside
	// signatures checks what a start has no time for.
	signatures signatures
	telling    telling

	started time.Time

	mu       sync.Mutex                // one reload at a time
	loads    atomic.Int64              // how many have ended
	accepted *Loaded                   // what is in force
	since    atomic.Pointer[time.Time] // when it was loaded
}

// ConfigError is a configuration that was not accepted, with everything that is wrong with it.
type ConfigError struct {
	File     *config.File
	Problems config.Problems
}

func (e *ConfigError) Error() string {
	var b strings.Builder
	b.WriteString("the configuration is not accepted\n")
	// What is wrong first: this may stand in a log line, in which nobody looks for it behind warnings.
	list := slices.Clone(e.Problems)
	slices.SortStableFunc(list, func(a, b config.Problem) int { return cmp.Compare(warned(a), warned(b)) })
	_ = e.File.Render(&b, list)
	return strings.TrimRight(b.String(), "\n")
}

func warned(p config.Problem) int {
	if p.Warning {
		return 1
	}
	return 0
}

// Load reads and compiles a configuration file in env, whose Dir it sets. The error is a *ConfigError.
func Load(name string, env snapshot.Env) (*Loaded, error) {
	path, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	src, err := snapshot.ReadFile(name)
	if err != nil {
		l := &Loaded{Sums: map[string]snapshot.Sum{path: {}}, Problems: config.Problems{{
			Message: fmt.Sprintf("cannot read the configuration: %v", err), Next: "name it with -c FILE, or make one with: countersign quickstart"}}}
		l.File, _ = env.Parser.Next().Parse(name, nil)
		return l, &ConfigError{l.File, l.Problems}
	}
	l := &Loaded{Parser: env.Parser.Next()}
	l.File, l.Problems = l.Parser.Parse(name, src)
	sums := map[string]snapshot.Sum{path: sha256.Sum256(src)}
	for i, included := range l.File.Partial.Include {
		l.Problems = append(l.Problems, l.include(config.Path("include", i), included, filepath.Dir(path), sums)...)
	}
	env.Dir, l.Parsed = filepath.Dir(path), slices.Clone(l.Problems)
	var read *snapshot.Read
	l.Snapshot, read, l.Problems = snapshot.Compile(l.File, l.Problems, env)
	l.Sums, l.Outside, l.Unchecked = read.Sums, read.Outside, read.Unchecked
	maps.Copy(l.Sums, sums)
	if l.Snapshot == nil {
		return l, &ConfigError{l.File, l.Problems}
	}
	return l, nil
}

// include reads one included file into l.File.
func (l *Loaded) include(at, name, dir string, sums map[string]snapshot.Sum) config.Problems {
	f, path := l.File, name
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	if _, twice := sums[path]; twice {
		return config.Problems{f.Problem(at, "remove one", "%s is included twice", name)}
	}
	src, err := snapshot.ReadFile(path)
	if err != nil {
		sums[path] = snapshot.Sum{}
		return config.Problems{f.Problem(at, "check the path, which is relative to "+dir, "cannot read %s: %s", name, err)}
	}
	sums[path] = sha256.Sum256(src)
	part, problems := l.Parser.ParsePart(name, src)
	return append(problems, f.Include(part)...)
}

// Loaded is what was read of a configuration.
type Loaded struct {
	// Snapshot is nil when the configuration is not accepted.
	Snapshot *snapshot.Snapshot
	// File and Problems say what is wrong or questionable, and where.
	File     *config.File
	Problems config.Problems
	// Parsed are the problems of reading alone, before anything was compiled.
	Parsed config.Problems
	// Parser remembers what was parsed, for the next load.
	Parser *config.Parser
	// Sums are the hashes of every file that was read.
	Sums map[string]snapshot.Sum
	// Outside is what is to be fetched.
	Outside snapshot.Outside
	// Unchecked is what remains to be checked of a first configuration.
	Unchecked []snapshot.Unchecked
}

// Start loads the configuration and serves it. When it returns without error every listener accepts.
func Start(o Options) (*Main, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	m := &Main{o: o, book: record.NewBook(o.Records), signatures: signatures{stop: make(chan struct{})}, started: time.Now()}
	m.relay = m.book.Relay(o.Log) // a reader that has stopped must not stop connections (H13)
	m.log = slog.New(slog.NewTextHandler(m.relay, nil))
	m.book.Tell(m.logTrouble)
	m.outside = newOutside(m.log, func() { _ = m.Reload() }, func() { m.front.Recheck() })
	m.traces = otlp.New(otlp.Config{Log: m.log, Panicked: m.book.Panicked, Version: version()})
	m.book.Registry.MustRegister(m.traces)
	m.journal = journal.New(m.log)
	m.book.Registry.MustRegister(m.journal.Collectors()...)
	m.front = frontend.New(frontend.Config{Book: m.book, Log: m.log, Listen: o.Listen, Dial: o.Dial, Outside: m.outside, Traces: m.traces})
	m.ops = newOps(m)
	m.control = m.newControl()
	m.files = refresh.Watch(refresh.Config{Reload: m.reread, Log: m.log, Quiet: o.Quiet, Poll: o.Poll})
	if err := m.Reload(); err != nil {
		m.signatures.close()
		m.control.Close()
		m.journal.Close()
		m.files.Close()
		m.front.Drain(canceled())
		m.outside.close()
		m.book.Close()
		m.relay.Close()
		return nil, err
	}
	m.tell()
	return m, nil
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// Reload loads the configuration again and puts it in force as a whole, or changes nothing.
func (m *Main) Reload() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.loadAgain(false)
}

// reread is Reload for who has seen in a file that it changed: no stat is believed to say otherwise. Who changed it often
// asks for a reload as well, by SIGHUP; one of the two is enough.
func (m *Main) reread() error { return m.rereadAfter(m.loads.Load()) }

// rereadAfter is reread for who knew of so many loads.
func (m *Main) rereadAfter(known int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.loads.Load() != known {
		return refresh.ErrOvertaken
	}
	return m.loadAgain(true)
}

// loadAgain needs the lock.
func (m *Main) loadAgain(reread bool) error {
	m.signatures.busy.Store(true)
	defer m.signatures.busy.Store(false)
	defer m.loads.Add(1)
	start := time.Now()
	m.book.Reopen() // whatever comes of the configuration
	l, err := m.load(reread)
	var logs *record.Plan
	if err == nil {
		logs, err = m.openLog(l.Snapshot)
	}
	if err == nil {
		if err = m.ops.bind(l.Snapshot.Ops); err == nil {
			if err = m.control.Bind(l.Snapshot.Control); err == nil {
				err = m.front.Apply(l.Snapshot)
			}
			m.control.Settle(err == nil)
		}
		m.ops.settle(err == nil)
		if err == nil {
			m.traces.Use(l.Snapshot.Tracing)
			m.keep(l.Snapshot.Journal)
			logs.Use()
		} else {
			logs.Drop()
		}
	}
	m.ops.reloaded(err == nil)
	if err != nil {
		if l != nil {
			m.files.NotLoaded(l.Sums, err)
		}
		if s := m.front.Current(); s != nil {
			m.outside.follow(&s.Outside)
		}
		if m.front.Current() != nil { // else the program ends with this error
			m.log.Error("configuration refused; what was in force stays", "file", m.o.Config, "error", err.Error())
		}
		m.renew()
		return err
	}
	now := time.Now()
	m.accepted = l
	m.since.Store(&now)
	m.outside.follow(&l.Outside)
	m.files.Loaded(l.Sums)
	snap := l.Snapshot
	m.checkSignatures(l.Unchecked) // of the first; there are none later
	l.Unchecked = nil
	for _, p := range l.Problems {
		m.log.Warn("configuration", "at", fmt.Sprintf("%s:%d:%d", l.File.Name, p.Pos.Line, p.Pos.Column), "setting", p.Path, "problem", p.Message, "next", p.Next)
	}
	m.log.Info("configuration in force", "file", m.o.Config, "hash", snap.Hash, "listeners", len(snap.Listeners), "took", time.Since(start).String())
	giveBack()
	return nil
}

// reload is Reload for a goroutine of its own: a panic in it is a bug, and not the end of the program (F16).
func (m *Main) reload() {
	defer func() {
		if v := recover(); v != nil {
			m.book.Panicked()
			m.log.Error("reload: bug; what was in force stays", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
	}()
	_ = m.Reload() // logged there
}

// giveBack returns to the system what loading took: a list of a million entries is read whole, and with the collector set
// for little live data that garbage would stay for long.
func giveBack() {
	var m runtime.MemStats
	if runtime.ReadMemStats(&m); m.HeapAlloc > 32<<20 {
		debug.FreeOSMemory()
	}
}

// renew compiles the configuration that is in force again when another one was refused. That one may be refused for a
// slip of the pen, and meanwhile the lists that the one in force names go on revoking.
func (m *Main) renew() {
	l, current := m.accepted, m.front.Current()
	if l == nil || current == nil {
		return
	}
	path, err := filepath.Abs(m.o.Config)
	if err != nil {
		return
	}
	env := m.env(current)
	env.Dir, env.Keep = filepath.Dir(path), true
	snap, _, problems := snapshot.Compile(l.File, slices.Clone(l.Parsed), env)
	switch {
	case snap == nil:
		m.log.Error("what the configuration in force names cannot be renewed", "problems", problems.Error())
		return
	case snap == current:
		return
	}
	if err := m.front.Apply(snap); err != nil {
		m.log.Error("what the configuration in force names cannot be renewed", "error", err.Error())
		return
	}
	m.traces.Use(snap.Tracing) // whose collector is verified by the newer lists
	m.log.Info("revocation lists that the configuration in force names are newer, and in force", "hash", snap.Hash)
}

// env is what configurations are compiled with.
func (m *Main) env(current *snapshot.Snapshot) snapshot.Env {
	env := snapshot.Env{Now: m.o.Now(), Previous: current, Open: m.outside.open, Answers: m.outside.answers, Chains: m.outside.chains,
		Staples: m.outside.staples}
	if m.accepted != nil {
		env.Parser = m.accepted.Parser
	}
	return env
}

// firstFetch is how long a configuration with new URLs waits for what they give.
const firstFetch = 10 * time.Second

// load reads the configuration. URLs that are new in it are tried before it is judged: a list or bundle that is only a
// moment away should not make the difference between who gets in and who does not.
func (m *Main) load(reread bool) (*Loaded, error) {
	current := m.front.Current()
	env := m.env(current)
	env.Reread, env.First = reread, current == nil
	l, err := Load(m.o.Config, env)
	fresh := func(f snapshot.Fetch) bool {
		return current == nil || !slices.ContainsFunc(current.Outside.Fetches, func(known snapshot.Fetch) bool { return known.URL == f.URL })
	}
	if !slices.ContainsFunc(l.Outside.Fetches, fresh) {
		return l, err
	}
	both := l.Outside
	if current != nil {
		both.Fetches = append(slices.Clip(both.Fetches), current.Outside.Fetches...)
		both.Points = append(slices.Clip(both.Points), current.Outside.Points...)
	}
	m.outside.follow(&both)
	ctx, cancel := context.WithTimeout(context.Background(), firstFetch)
	defer cancel()
	m.outside.ready(ctx)
	return Load(m.o.Config, env)
}

// Conditions is everything that needs the operator now.
func (m *Main) Conditions() []refresh.Condition {
	list := append(append(m.files.Conditions(), m.outside.conditions()...), m.control.Conditions()...)
	list = append(list, m.kept()...)
	if s := m.front.Current(); s != nil {
		list = append(list, m.signatures.conditions(s)...)
		for _, text := range s.Older {
			list = append(list, refresh.Condition{Code: refresh.ListRollback, Text: text, Since: *m.since.Load()})
		}
		for _, crl := range s.CRLs {
			if text, since := refresh.StaleSoon(crl, m.o.Now()); text != "" {
				list = append(list, refresh.Condition{Code: refresh.ListStale, Text: text, Since: since})
			}
		}
	}
	return list
}

// Hash is the hash of the configuration in force.
func (m *Main) Hash() string {
	if s := m.front.Current(); s != nil {
		return s.Hash
	}
	return ""
}

// Addr returns the address of a listener, or of ops under the name "ops"; nil if it is not there.
func (m *Main) Addr(name string) net.Addr {
	if name == "ops" {
		return m.ops.addr()
	}
	return m.front.Addr(name)
}

// Shutdown stops accepting, waits for open exchanges until ctx ends or the configured drain time is over, and ends
// everything.
func (m *Main) Shutdown(ctx context.Context) {
	if m.ops.draining.Swap(true) {
		return // somebody else is at it
	}
	m.files.Close()
	m.telling.close()
	m.signatures.close()
	drain := 30 * time.Second
	if s := m.front.Current(); s != nil {
		drain = s.Drain
	}
	ctx, cancel := context.WithTimeout(ctx, drain)
	defer cancel()
	m.front.Drain(ctx)
	m.traces.Close(context.Background()) // it has a deadline of its own: drain may have used up that of ctx
	m.journal.Close()
	m.outside.close()
	m.control.Close()
	m.ops.close()
	m.book.Close()
	m.log.Info("ended")
	m.relay.Close()
}

// Run runs the program until SIGTERM or SIGINT; SIGHUP reloads. A second SIGTERM or SIGINT ends the drain.
func Run(o Options) error {
	tune()
	signal.Ignore(syscall.SIGPIPE) // or the end of whoever reads our standard output would be ours (H13)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	m, err := Start(o)
	if err != nil {
		return err
	}
	hangups := make(chan struct{}, 1) // hang-ups that come during a reload become one more
	go func() {
		for range hangups {
			m.reload()
		}
	}()
	for s := range signals {
		if s == syscall.SIGHUP {
			select {
			case hangups <- struct{}{}:
			default:
			}
			continue
		}
		m.log.Info("draining", "signal", s.String())
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			for s := range signals {
				if s != syscall.SIGHUP {
					cancel()
				}
			}
		}()
		m.Shutdown(ctx)
		cancel()
		return nil
	}
	return errors.New("unreachable: the signal channel is never closed")
}

// tune sets the garbage collector from the machine: a larger heap between collections costs little here, where live
// data is small (reference: about 6 % of a handshake's CPU), and the limit keeps it inside the container. A heap that is
// larger still costs what it saves, in pages that are touched for the first time.
func tune() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	_, _ = memlimit.Set(memlimit.WithRatio(0.9), memlimit.WithProvider(memlimit.ApplyFallback(memlimit.FromCgroup, memlimit.FromSystem)))
}
