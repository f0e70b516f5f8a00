// Package quickstart shows Countersign at work on one machine: it makes a PKI with good and bad clients, three backends
// that tell whom they saw, and a configuration with every way of combining TLS at the front and at the back; runs it all
// in one process; and prints calls to try, or makes them itself and compares (--check).
//
// It writes into one folder and nowhere else, and listens on 127.0.0.1 only.
package quickstart

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"text/tabwriter"
	"time"

	"countersign/internal/daemon"
	"countersign/internal/reason"
)

// Options say what to do. Out gets what a user is to read.
type Options struct {
	// Dir is the folder D. Empty means ./quickstart, or with Check a temporary one that is removed afterwards.
	Dir string
	// Check makes all calls, compares what comes of them, and ends.
	Check bool
	// PortBase is the first of six ports; 0 means 8443, or with Check ports that are free.
	PortBase int
	// Out is where to print.
	Out io.Writer

	// prepared is called between making the files and starting on them; tests break something there.
	prepared func(f *folder) error
}

// DefaultDir is where quickstart works unless it is told otherwise.
const DefaultDir = "./quickstart"

// site is everything that runs.
type site struct {
	folder   *folder
	sockets  *sockets
	pki      map[string]*entity
	steps    []step
	backends *backends
	records  *recorder
	log      *logbook
	main     *daemon.Main
}

// Run does what o says, until ctx ends or, with Check, all calls are made.
func Run(ctx context.Context, o Options) error {
	base := o.PortBase
	switch {
	case o.Check && o.Dir == "":
		dir, err := os.MkdirTemp("", "countersign-quickstart-")
		if err != nil {
			return fmt.Errorf("cannot make a temporary folder: %w; name one with --dir", err)
		}
		defer os.RemoveAll(dir)
		o.Dir = dir
	case o.Dir == "":
		o.Dir = DefaultDir
	}
	if base == 0 && !o.Check {
		base = defaultBase
	}
	s, err := start(o, base)
	if err != nil {
		return err
	}
	defer s.stop()
	if o.Check {
		err := s.check(o.Out)
		if err != nil {
			fmt.Fprintf(o.Out, "\nlog of Countersign:\n%s", s.log)
		}
		return err
	}
	if err := s.introduce(o.Out); err != nil {
		return err
	}
	s.log.follow(s.records)
	<-ctx.Done()
	fmt.Fprintln(o.Out, "\nending; run it again to go on with the same CAs and keys")
	return nil
}

// start binds the ports, makes the files and starts backends and Countersign. What it began it ends on an error.
func start(o Options, base int) (*site, error) {
	p, err := portsFrom(base)
	if err != nil {
		return nil, err
	}
	s := &site{log: new(logbook)}
	if err := s.begin(o, p); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

func (s *site) begin(o Options, p ports) (err error) {
	if s.sockets, err = bind(p); err != nil {
		return err
	}
	if s.folder, err = openFolder(o.Dir); err != nil {
		return err
	}
	if s.pki, s.steps, err = makePKI(s.folder, time.Now()); err != nil {
		return err
	}
	if err = writeConfig(s.folder, s.sockets.ports); err != nil {
		return err
	}
	if o.prepared != nil {
		if err = o.prepared(s.folder); err != nil {
			return err
		}
	}
	if s.backends, err = startBackends(s.sockets, s.folder, s.pki); err != nil {
		return err
	}
	var show io.Writer
	if !o.Check {
		show = o.Out
	}
	if s.records, err = newRecorder(s.folder, show); err != nil {
		return err
	}
	s.backends.verdicts.tell(s.tell)
	s.sockets.release(s.sockets.ops)
	s.main, err = daemon.Start(daemon.Options{
		Config: filepath.Join(o.Dir, configFile), Records: s.records, Log: s.log, Listen: s.sockets.take,
	})
	return err
}

// tell shows what backend 3 decided about a client that it refused: Countersign cannot see it in TLS passthrough.
func (s *site) tell(v verdict) {
	if v.reason != reason.Completed {
		s.records.say(printable(fmt.Sprintf("%s  %-12s TLS handshake with backend 3  %v", time.Now().Format(time.TimeOnly), or(v.who, nobody), v.err)))
	}
}

// stop ends everything that runs.
func (s *site) stop() {
	if s.main != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		s.main.Shutdown(ctx)
	}
	if s.backends != nil {
		s.backends.close()
	}
	if s.records != nil {
		s.records.close()
	}
	if s.sockets != nil {
		s.sockets.close()
	}
	if s.folder != nil {
		s.folder.close()
	}
}

// introduce prints what was made and what can be tried.
func (s *site) introduce(w io.Writer) error {
	var all bytes.Buffer
	fmt.Fprintf(&all, "# Run these in %s while quickstart runs. With --tls-max 1.2 the answer is that for TLS 1.2.\n", s.folder.dir)
	printCalls(&all, s.sockets.ports, calls())
	if err := s.folder.write(callsFile, all.Bytes(), public); err != nil {
		return err
	}

	fmt.Fprintf(w, "The PKI, in %s (CAs and keys are kept when you run this again; delete the folder to begin anew):\n", s.folder.path("pki"))
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, st := range s.steps {
		fmt.Fprintf(t, "  %s\t%s\t%s\n", st.name, st.did, st.note)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "For a browser, each client also has a NAME.p12 with the password %q.\n", password)
	p := s.sockets.ports
	fmt.Fprintf(w, `
Running on 127.0.0.1, configuration %s:
  %d  https        offload.test, bridging.test, chained.test, backend.test
  %d  passthrough  passthrough.test
  %d  ops          /livez /readyz /metrics
  %d  backend 1    HTTP
  %d  backend 2    HTTPS
  %d  backend 3    HTTPS, requires a certificate of Countersign's CA or of the clients' CA
`, s.folder.path(configFile), p.public, p.passthrough, p.ops, p.http, p.https, p.mtls)
	fmt.Fprintf(w, "\nTry it from another shell. Add --tls-max 1.2 to see TLS 1.2. All calls are in %s.\n\ncd %s\n", s.folder.path(callsFile), s.folder.dir)
	printCalls(w, p, introduction())
	fmt.Fprintf(w, `
Every end has a reason. Here they come; in full in %s. Ctrl-C ends.
What went wrong, later on:  countersign journal -c %[2]s
and one of those, whole:    countersign explain -c %[2]s --ref REF

`, s.folder.path(recordsFile), s.folder.path(configFile))
	return nil
}

// logbook takes Countersign's own log: kept while it starts, shown between the records once it runs.
type logbook struct {
	mu   sync.Mutex
	kept bytes.Buffer
	to   *recorder
}

const maxLog = 64 << 10

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.to != nil {
		l.to.say(printable(string(bytes.TrimRight(p, "\n"))))
	} else if l.kept.Len() < maxLog {
		l.kept.Write(p)
	}
	return len(p), nil
}

func (l *logbook) follow(r *recorder) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.to = r
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kept.String()
}
