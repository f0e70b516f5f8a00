// Package daemon owns the order of things in a running program: start, reload, signals, drain. The whole program can be
// run in a test with it.
package daemon

import (
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
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"countersign/internal/config"
	"countersign/internal/frontend"
	"countersign/internal/record"
	"countersign/internal/refresh"
	"countersign/internal/snapshot"
	"countersign/internal/upstream"
)

// Options say what to run. Nil functions mean the ordinary ones.
type Options struct {
	// Config is the configuration file.
	Config string
	// Records gets one JSON line for each handshake and request; Log gets what concerns the operator.
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
	front *frontend.Frontend
	ops   *ops
	files *refresh.Watcher

	mu sync.Mutex // one reload at a time
}

// ConfigError is a configuration that was not accepted, with everything that is wrong with it.
type ConfigError struct {
	File     *config.File
	Problems config.Problems
}

func (e *ConfigError) Error() string {
	var b strings.Builder
	b.WriteString("the configuration is not accepted\n")
	_ = e.File.Render(&b, e.Problems)
	return strings.TrimRight(b.String(), "\n")
}

// Load reads and compiles a configuration file. The error is a *ConfigError unless the file cannot be read.
func Load(name string, now time.Time) (*Loaded, error) {
	path, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	src, err := os.ReadFile(name)
	if err != nil {
		return &Loaded{Sums: map[string]snapshot.Sum{path: {}}},
			fmt.Errorf("cannot read the configuration: %w; name it with -c FILE, or make one with: countersign quickstart", err)
	}
	l := new(Loaded)
	l.File, l.Problems = config.Parse(name, src)
	sums := map[string]snapshot.Sum{path: sha256.Sum256(src)}
	for i, included := range l.File.Partial.Include {
		l.Problems = append(l.Problems, include(l.File, config.Path("include", i), included, filepath.Dir(path), sums)...)
	}
	l.Snapshot, l.Sums, l.Problems = snapshot.Compile(l.File, l.Problems, filepath.Dir(path), now)
	maps.Copy(l.Sums, sums)
	if l.Snapshot == nil {
		return l, &ConfigError{l.File, l.Problems}
	}
	return l, nil
}

// include reads one included file into f.
func include(f *config.File, at, name, dir string, sums map[string]snapshot.Sum) config.Problems {
	path := name
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	if _, twice := sums[path]; twice {
		return config.Problems{f.Problem(at, "remove one", "%s is included twice", name)}
	}
	src, err := os.ReadFile(path)
	if err != nil {
		sums[path] = snapshot.Sum{}
		return config.Problems{f.Problem(at, "check the path, which is relative to "+dir, "cannot read %s: %s", name, err)}
	}
	sums[path] = sha256.Sum256(src)
	part, problems := config.ParsePart(name, src)
	return append(problems, f.Include(part)...)
}

// Loaded is what was read of a configuration.
type Loaded struct {
	// Snapshot is nil when the configuration is not accepted.
	Snapshot *snapshot.Snapshot
	// File and Problems say what is wrong or questionable, and where.
	File     *config.File
	Problems config.Problems
	// Sums are the hashes of every file that was read.
	Sums map[string]snapshot.Sum
}

// Start loads the configuration and serves it. When it returns without error every listener accepts.
func Start(o Options) (*Main, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	m := &Main{o: o, log: slog.New(slog.NewTextHandler(o.Log, nil))}
	m.book = record.NewBook(o.Records)
	m.front = frontend.New(frontend.Config{Book: m.book, Log: m.log, Listen: o.Listen, Dial: o.Dial})
	m.ops = newOps(m)
	m.files = refresh.Watch(refresh.Config{Reload: m.Reload, Log: m.log, Quiet: o.Quiet, Poll: o.Poll})
	if err := m.Reload(); err != nil {
		m.files.Close()
		m.front.Drain(canceled())
		m.book.Close()
		return nil, err
	}
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
	start := time.Now()
	l, err := Load(m.o.Config, m.o.Now())
	if err == nil {
		if err = m.ops.bind(l.Snapshot.Ops); err == nil {
			err = m.front.Apply(l.Snapshot)
		}
		m.ops.settle(err == nil)
	}
	m.ops.reloaded(err == nil)
	if err != nil {
		if l != nil {
			m.files.NotLoaded(l.Sums, err)
		}
		m.log.Error("configuration refused; what was in force stays", "file", m.o.Config, "error", err.Error())
		return err
	}
	m.files.Loaded(l.Sums)
	snap := l.Snapshot
	for _, p := range l.Problems {
		m.log.Warn("configuration", "at", fmt.Sprintf("%s:%d:%d", l.File.Name, p.Pos.Line, p.Pos.Column), "setting", p.Path, "problem", p.Message, "next", p.Next)
	}
	m.log.Info("configuration in force", "file", m.o.Config, "hash", snap.Hash, "listeners", len(snap.Listeners), "took", time.Since(start).String())
	return nil
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
	drain := 30 * time.Second
	if s := m.front.Current(); s != nil {
		drain = s.Drain
	}
	ctx, cancel := context.WithTimeout(ctx, drain)
	defer cancel()
	m.front.Drain(ctx)
	m.ops.close()
	m.book.Close()
}

// Run runs the program until SIGTERM or SIGINT; SIGHUP reloads. A second SIGTERM or SIGINT ends the drain.
func Run(o Options) error {
	tune()
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
			_ = m.Reload() // logged there
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
		m.log.Info("ended")
		return nil
	}
	return errors.New("unreachable: the signal channel is never closed")
}

// tune sets the garbage collector from the machine: a larger heap between collections costs little here, where live
// data is small (reference: about 6 % of a handshake's CPU), and the limit keeps it inside the container.
func tune() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	_, _ = memlimit.Set(memlimit.WithRatio(0.9), memlimit.WithProvider(memlimit.ApplyFallback(memlimit.FromCgroup, memlimit.FromSystem)))
}
