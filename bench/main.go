// Command bench measures Countersign side by side with HAProxy, nginx, Caddy and Traefik: CPU time for each unit of work, throughput,
// latency and memory. docs/performance.md says what is measured and how to repeat it. Everything is on 127.0.0.1, in a
// temporary folder, and ends with the program.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "backends" {
		if err := runBackends(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// logMode is a flag.
var logMode = map[string]bool{"on": true, "off": false}

// quick are the values that -quick gives to flags which are not set: two minutes for a look. Differences of less than a
// third mean nothing there.
var quick = map[string]string{"rounds": "2", "secs": "0.3", "hosts": "300", "revoked": "100000", "idle": "200", "strangers": "4000"}

func run(ctx context.Context) (err error) {
	b := &bench{launch: newLauncher(), used: map[*target]*atomic.Int64{}, random: newRandom(), say: func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }}
	only := flag.String("only", "", "run these workloads only, `names` with commas; list prints them; mixed is what default.pgo is made of")
	targets := flag.String("targets", "", "measure these targets only, `names` with commas, as the output has them")
	flag.IntVar(&b.rounds, "rounds", 25, "rounds; 0 measures nothing and takes profiles only")
	seconds := flag.Float64("secs", 0.35, "seconds of one target in one round, at most 30")
	logs := flag.String("log", "on", "access logs of all targets: on or off")
	flag.IntVar(&b.hosts, "hosts", 10_000, "hosts with a certificate of their own in workload start-many")
	flag.IntVar(&b.revoked, "revoked", 1_000_000, "entries of the revocation list")
	flag.IntVar(&b.idle, "idle", 1000, "idle connections")
	flag.DurationVar(&b.settle, "settle", 6*time.Second, "how long idle connections are idle before memory is read (after 60s all targets close them), and a process has after its start with many hosts")
	strangers := flag.Int("strangers", 40_000, "clients for the handshakes with chains never seen, of which a target sees each once")
	out := flag.String("out", "", "write table.txt, results.json and summary.svg to this `folder`, whatever the run")
	keep := flag.String("keep", "", "without -out, write them to a folder DATE of this `folder`, or to DATE-TIME-partial if the run ended early or had other flags than -profile")
	flag.StringVar(&b.profiles, "profile", "", "write a profile of countersign in each workload to this `folder`, from another run of it, and with mixed merged.pprof")
	fast := flag.Bool("quick", false, "two minutes for a look: short rounds, small sizes, newer peers only, and Caddy and Traefik only if they are built already")
	flag.Parse()
	set := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { set[f.Name] = true })
	if *fast {
		for name, value := range quick {
			if set[name] {
				continue
			}
			if err := flag.Set(name, value); err != nil {
				return err
			}
		}
	}
	todo, err := b.choose(*only)
	if err != nil || todo == nil {
		return err
	}
	on, known := logMode[*logs]
	if b.log = on; !known || flag.NArg() > 0 || b.rounds < 0 || b.rounds == 0 && b.profiles == "" || b.rounds > 100 ||
		*seconds <= 0 || *seconds > 30 {
		flag.Usage()
		return errors.New("bad flags")
	}
	b.seconds = time.Duration(*seconds * float64(time.Second))
	if err := b.cores(); err != nil {
		return err
	}
	root, err := repository()
	if err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "countersign-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	defer b.launch.stopAll()

	start := time.Now().UTC()
	r := &report{Date: start.Format("2006-01-02 15:04 UTC"), Machine: thisMachine(ctx), Inspected: map[string]string{}}
	b.say("building countersign and a PKI")
	mine, err := ours(ctx, root, b.dir, len(b.proxyCores))
	if err != nil {
		return err
	}
	if b.profiles != "" {
		// Processes have working folders of their own.
		if b.profiles, err = filepath.Abs(b.profiles); err == nil {
			err = os.MkdirAll(b.profiles, 0o755)
		}
		if err == nil {
			b.spy, err = profiled(ctx, root, b.dir, mine)
		}
		if err != nil {
			return err
		}
	}
	if err := b.find(ctx, r, mine, *targets, *fast, len(b.proxyCores)); err != nil {
		return err
	}
	for _, m := range r.Missing {
		b.say("skipped: %s", m)
	}
	if err := b.prepare(todo, *strangers); err != nil {
		return err
	}
	if err := pinSelf(b.loadCores); err != nil {
		return err
	}
	if err := b.startBackends(ctx); err != nil {
		return err
	}
	r.Targets = b.targets
	r.Setting = setting{Rounds: b.rounds, Seconds: b.seconds.Seconds(), ProxyCores: b.proxyCores, LoadCores: b.loadCores, Log: b.log,
		Hosts: b.hosts, Revoked: b.revoked, Idle: b.idle}
	if slices.Contains(b.targets, mine) {
		if r.Setting.GOGC, r.Setting.MemoryLimit, err = b.collector(ctx, mine); err != nil {
			return err
		}
	}
	err = b.measure(ctx, todo, r)
	r.Machine.LoadAfter = load()
	if err == nil && *only == mixedGroup && b.profiles != "" {
		err = b.merge(ctx, r)
	}
	return b.finish(r, err, os.Stdout, folder(*out, *keep, start, err != nil || partial(set)))
}

// finish prints what has been measured and writes it to a folder, also when an error ended the run early, which it returns.
// When a stranger was let in nothing is worth printing.
func (b *bench) finish(r *report, err error, w io.Writer, dir string) error {
	if errors.Is(err, errStranger) || err != nil && len(r.Results) == 0 {
		return err
	}
	if err != nil {
		r.Error = err.Error()
	}
	r.print(w)
	if dir == "" || b.rounds == 0 {
		return err
	}
	b.say("writing to %s", dir)
	return errors.Join(err, r.write(dir))
}

// partial says whether flags that are set make a run another one than that of everything.
func partial(set map[string]bool) bool {
	for name := range set {
		if name != "keep" && name != "out" && name != "profile" {
			return true
		}
	}
	return false
}

// folder is where the results of a run go: to out if there is one, else below keep, where one that is partial leaves that of
// everything alone; empty for none.
func folder(out, keep string, start time.Time, partial bool) string {
	switch {
	case out != "" || keep == "":
		return out
	case partial:
		return filepath.Join(keep, start.Format("2006-01-02-1504")+"-partial")
	}
	return filepath.Join(keep, start.Format(time.DateOnly))
}

// newRandom draws the orders of targets, the same in each run.
func newRandom() *rand.Rand { return rand.New(rand.NewPCG(6, 7)) }

// experiment is ours with experimental.event_loop, a target for who names it.
const experiment = "countersign-event-loop"

// find sets the targets: ours, and the peers there are, or those of both that are wanted by name.
func (b *bench) find(ctx context.Context, r *report, mine *target, names string, fast bool, cores int) error {
	wanted := strings.Split(names, ",")
	found, missing := peers(ctx)
	b.targets, r.Missing = append([]*target{mine}, found...), missing
	if slices.Contains(wanted, experiment) {
		t := *mine
		t.Name, t.eventLoop = experiment, true
		b.targets = append(b.targets, &t)
	}
	// None is built that nobody named.
	found, missing = b.goTargets(ctx, func(kind string) bool {
		return names == "" || slices.ContainsFunc(wanted, func(name string) bool { return strings.HasPrefix(name, kind) })
	}, !fast, cores)
	b.targets, r.Missing = append(b.targets, found...), append(r.Missing, missing...)
	b.targets = slices.DeleteFunc(b.targets, func(t *target) bool {
		if names != "" {
			return !slices.Contains(wanted, t.Name)
		}
		return fast && (t.kind == "haproxy" || t.kind == "nginx") && !t.modern
	})
	if len(b.targets) == 0 {
		return fmt.Errorf("there is no target of the names %s", names)
	}
	return ctx.Err()
}

// mixedGroup is the name of all workloads that default.pgo is made of.
const mixedGroup = "mixed"

// choose picks workloads by name; nil means that there is nothing to run.
func (b *bench) choose(only string) ([]*workload, error) {
	all := b.workloads()
	switch only {
	case "":
		return all, nil
	case mixedGroup:
		return slices.DeleteFunc(all, func(w *workload) bool { return !w.mixed }), nil
	}
	var todo []*workload
	for _, name := range strings.Split(only, ",") {
		n := slices.IndexFunc(all, func(w *workload) bool { return w.name() == name })
		if name == "list" {
			for _, w := range all {
				fmt.Printf("%-16s %s\n", w.name(), w.lines[0].title)
			}
			return nil, nil
		}
		if n < 0 {
			return nil, fmt.Errorf("there is no workload %q; -only list prints all", name)
		}
		todo = append(todo, all[n])
	}
	return todo, nil
}

// repository is the folder of the main module, this one or one above.
func repository() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if text, _ := os.ReadFile(filepath.Join(dir, "go.mod")); strings.HasPrefix(string(text), "module countersign\n") {
			return dir, nil
		}
		if filepath.Dir(dir) == dir {
			return "", errors.New("run this inside the repository: there is no go.mod of countersign here or above")
		}
		dir = filepath.Dir(dir)
	}
	return "", err
}

// prepare makes what the workloads need, with all cores, before anything is measured.
func (b *bench) prepare(todo []*workload, strangers int) (err error) {
	needs := func(name string) bool {
		return slices.ContainsFunc(todo, func(w *workload) bool { return w.name() == name })
	}
	dir := filepath.Join(b.dir, "pki")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if b.pki, err = newPKI(dir); err != nil {
		return err
	}
	if needs("handshake-cold") {
		b.say("making %d clients", strangers)
		if b.crowd, err = b.pki.crowd(max(1, strangers)); err != nil {
			return err
		}
	}
	if needs("handshake-crl") {
		b.say("making a revocation list of %d entries", b.revoked)
		if err := b.pki.revocationLists(b.revoked); err != nil {
			return err
		}
	}
	if needs("start-many") {
		b.say("making %d server certificates", b.hosts)
		if err := b.pki.many(b.hosts); err != nil {
			return err
		}
	}
	for _, t := range append(slices.Clone(b.targets), b.spy) {
		b.used[t] = &atomic.Int64{}
	}
	runtime.GC()
	return nil
}

// cores gives the lower half to the targets and the upper half to load and backends, of which nobody is put there yet; a
// machine with one core cannot tell them apart.
func (b *bench) cores() error {
	all, err := allowed()
	if err != nil {
		return err
	}
	if len(all) < 2 {
		return fmt.Errorf("this may run on the cores %v; expected two or more, so that the load does not run where the target does", all)
	}
	b.proxyCores, b.loadCores = all[:len(all)/2], all[len(all)/2:]
	return nil
}

func (b *bench) startBackends(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "backends")
	in, err := cmd.StdinPipe() // it ends when we do, whatever the reason
	if err != nil {
		return err
	}
	_ = in
	out, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stdout = w
	p, err := b.launch.start(cmd, b.loadCores)
	w.Close()
	if err != nil {
		return err
	}
	if err := json.NewDecoder(bufio.NewReader(out)).Decode(&b.backends); err != nil {
		return fmt.Errorf("the backends did not start: %w: %s", err, p.out)
	}
	return ctx.Err()
}

// collector says what the garbage collector of a Countersign that is started as the measured ones are really runs with, as
// its metrics tell it.
func (b *bench) collector(ctx context.Context, t *target) (gogc, limit string, err error) {
	i, err := b.run(t, "main")
	if err != nil {
		return "", "", err
	}
	defer i.stop()
	if err := b.waitFor(ctx, i); err != nil {
		return "", "", err
	}
	all, err := (&stage{instance: i}).metrics(ctx)
	if err != nil {
		return "", "", err
	}
	gogc, limit = collectorOf(all)
	return gogc, limit, nil
}

// collectorOf is the same from metrics; what they do not tell is unknown.
func collectorOf(all map[string]float64) (gogc, limit string) {
	gogc, limit = "unknown", "unknown"
	if v, known := all["go_gc_gogc_percent"]; known {
		gogc = strconv.FormatFloat(v, 'f', -1, 64)
	}
	if v, known := all["go_gc_gomemlimit_bytes"]; known {
		if limit = "none"; v < math.MaxInt64 {
			limit = fmt.Sprintf("%.0f MiB", v/(1<<20))
		}
	}
	return gogc, limit
}

// measure runs the workloads; what goes wrong with one target is written into its cell and does not stop the rest. With an
// error the report has the workloads that are complete.
func (b *bench) measure(ctx context.Context, todo []*workload, r *report) error {
	running := map[string][]*instance{}
	stopAll := func() {
		for _, all := range running {
			for _, i := range all {
				if i != nil {
					i.stop()
				}
			}
		}
		clear(running)
	}
	defer stopAll()
	for _, w := range todo {
		if w.sinks {
			stopAll()
			complete := len(r.Results)
			if err := b.sunk(ctx, w, r); err != nil {
				r.Results = r.Results[:complete]
				return err
			}
			continue
		}
		kind := w.kind
		if kind == "" {
			kind = "main"
		}
		if w.alone == nil && running[kind] == nil {
			if kind != "main" {
				stopAll()
			}
			all, err := b.startAll(ctx, kind, r)
			running[kind] = all
			if err != nil {
				return err
			}
		} else if w.alone != nil {
			stopAll()
		}
		b.say("%s", w.lines[0].title)
		var chosen *choice
		if w.choosing {
			if chosen = b.chosen(ctx, w, running[kind]); ctx.Err() != nil {
				return ctx.Err()
			}
		}
		if err := b.rounded(ctx, w, running[kind], r); err != nil {
			return err
		}
		r.Results[len(r.Results)-len(w.lines)].Choice = chosen
		if b.spy == nil {
			continue
		}
		top, err := b.profile(ctx, w, kind)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			b.say("  no profile: %v", err)
		}
		for _, l := range r.Results[len(r.Results)-len(w.lines):] {
			l.Profile = top
		}
	}
	return nil
}

// runs says whether a target has a workload at all.
func (w *workload) runs(t *target) bool {
	switch {
	case t.kind == "countersign":
		return true
	case t.main:
		return w.main
	}
	return t.modern || !w.few
}

// startAll starts every target and inspects it. One that does not start has a nil instance; one that lets strangers in
// ends the run.
func (b *bench) startAll(ctx context.Context, kind string, r *report) ([]*instance, error) {
	all := make([]*instance, len(b.targets))
	for n, t := range b.targets {
		if kind != "main" && t.main || kind == "routes" && !t.modern && t.kind != "countersign" {
			continue // no workload needs it
		}
		i, err := b.run(t, kind)
		if err != nil {
			return all, err
		}
		all[n] = i
		if err := b.waitFor(ctx, i); err != nil {
			if ctx.Err() != nil {
				return all, ctx.Err()
			}
			b.say("%s", err)
			i.stop()
			all[n] = nil
			continue
		}
		how, err := b.inspect(i)
		if err != nil {
			return all, err
		}
		r.Inspected[t.Name] = how
	}
	return all, nil
}

// rounded measures one workload in rounds, every target in each, in another order each time. What needs instances of
// its own has three rounds at most; older peers have one of them, and none of what is slow, if there are newer ones. Beside
// newer ones, those of which no goal speaks have the first third of the rounds. The report has it when it is complete.
func (b *bench) rounded(ctx context.Context, w *workload, instances []*instance, r *report) error {
	rounds := b.rounds
	if w.alone != nil {
		rounds = min(rounds, 3)
	}
	cells, results := make([][]*cell, len(w.lines)), []*result(nil)
	for l, li := range w.lines {
		res := &result{Name: li.name, Title: li.title, Of: li.of, Unit: li.unit, Goal: li.goal}
		for _, t := range b.targets {
			res.Cells = append(res.Cells, &cell{Target: t.Name, modern: t.modern})
		}
		cells[l] = res.Cells
		results = append(results, res)
	}
	modern := slices.ContainsFunc(b.targets, func(t *target) bool { return t.modern })
	samples := make([][]sample, len(b.targets))
	// rested counts what a target does behind its latest cell with that cell.
	rested := func(n int) error {
		if len(samples[n]) == 0 {
			return nil
		}
		latest := len(samples[n]) - 1
		err := samples[n][latest].rest(ctx, min(b.settle, 2*b.seconds))
		if err == nil {
			cells[0][n].Rounds[latest] = samples[n][latest].CPU
		}
		return err
	}
	problem := func(n int, err error) {
		for l := range cells {
			cells[l][n].Problem, cells[l][n].Rounds = err.Error(), nil
		}
		b.say("  %s: %v", b.targets[n].Name, err)
	}
	for round := range rounds {
		for _, n := range b.random.Perm(len(b.targets)) {
			t := b.targets[n]
			if cells[0][n].Problem != "" || !w.runs(t) {
				continue
			}
			if !t.modern && t.kind != "countersign" && (w.alone != nil && (round > 0 || w.slow && modern) || modern && round >= (rounds+2)/3) {
				continue // no goal speaks of them
			}
			switch {
			case w.stream && !t.stream:
				problem(n, errors.New("it has no stream module (Debian: apt-get install libnginx-mod-stream)"))
			case w.alone != nil:
				values, err := w.alone(ctx, b, t)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if errors.Is(err, errStranger) {
					return fmt.Errorf("%s: %w", t.Name, err)
				}
				if err != nil {
					problem(n, err)
					continue
				}
				for l, v := range values {
					cells[l][n].Rounds = append(cells[l][n].Rounds, v)
				}
			case instances[n] == nil:
				problem(n, errors.New("it did not start"))
			default:
				err := rested(n)
				if err != nil && ctx.Err() == nil {
					problem(n, err)
					continue
				}
				s, err := drive(ctx, instances[n], w.workers, b.seconds, w.open(b, instances[n]), nil)
				if err != nil && ctx.Err() == nil {
					b.say("  %s, once more: %v", t.Name, err)
					cells[0][n].Repeated++
					s, err = drive(ctx, instances[n], w.workers, b.seconds, w.open(b, instances[n]), nil)
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err != nil {
					problem(n, err)
					continue
				}
				samples[n] = append(samples[n], s)
				cells[0][n].Rounds = append(cells[0][n].Rounds, s.CPU)
				cells[0][n].Memory = float64(memory(tree(instances[n].proc.pid))) / (1 << 20)
			}
		}
	}
	for n := range samples {
		if cells[0][n].Problem != "" {
			continue
		}
		err := rested(n)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			problem(n, err)
		}
	}
	for n, all := range samples {
		pick := func(f func(sample) float64) *spread {
			var v []float64
			for _, s := range all {
				v = append(v, f(s))
			}
			s := spreadOf(v)
			return &s
		}
		if c := cells[0][n]; c.Problem == "" && len(all) > 0 {
			c.Rate, c.Util = pick(func(s sample) float64 { return s.Rate }), pick(func(s sample) float64 { return s.Util })
			if all[0].P99 > 0 {
				c.P50, c.P99 = pick(func(s sample) float64 { return s.P50 }), pick(func(s sample) float64 { return s.P99 })
			}
			c.Rest = pick(func(s sample) float64 { return s.Rest })
			c.Memory = math.Round(c.Memory*10) / 10
		}
	}
	for _, res := range results {
		res.judge()
	}
	r.Results = append(r.Results, results...)
	return nil
}
