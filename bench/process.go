package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// launcher starts processes from one thread that lives as long as the program: the kernel kills a child with the thread
// that started it (Pdeathsig), and a child inherits that thread's cores.
type launcher struct {
	jobs chan func()
	mu   sync.Mutex
	all  map[*process]bool
}

func newLauncher() *launcher {
	l := &launcher{jobs: make(chan func()), all: map[*process]bool{}}
	go func() {
		runtime.LockOSThread()
		for f := range l.jobs {
			f()
		}
	}()
	return l
}

// process is one that was started here, with whatever it started in turn.
type process struct {
	cmd   *exec.Cmd
	pid   int
	out   *output
	ended chan struct{}
	owner *launcher
}

// output keeps the last of what a program says.
type output struct {
	mu  sync.Mutex
	buf []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.buf = append(o.buf, p...); len(o.buf) > 16<<10 {
		o.buf = bytes.Clone(o.buf[len(o.buf)-8<<10:])
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.TrimSpace(string(o.buf))
}

// start runs cmd on the cores given. Its standard output and standard error are kept, unless they are set.
func (l *launcher) start(cmd *exec.Cmd, cores []int) (*process, error) {
	p := &process{cmd: cmd, out: &output{}, ended: make(chan struct{}), owner: l}
	if cmd.Stdout == nil {
		cmd.Stdout = p.out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.out
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	done := make(chan error)
	l.jobs <- func() {
		err := pin(0, cores)
		if err == nil {
			err = cmd.Start()
		}
		done <- err
	}
	if err := <-done; err != nil {
		return nil, err
	}
	p.pid = cmd.Process.Pid
	l.mu.Lock()
	l.all[p] = true
	l.mu.Unlock()
	go func() {
		_ = cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// stop ends p and all it has started, politely for a second.
func (p *process) stop() {
	_ = syscall.Kill(p.pid, syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(time.Second):
	}
	_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	<-p.ended
	p.owner.mu.Lock()
	delete(p.owner.all, p)
	p.owner.mu.Unlock()
}

func (l *launcher) stopAll() {
	l.mu.Lock()
	var all []*process
	for p := range l.all {
		all = append(all, p)
	}
	l.mu.Unlock()
	for _, p := range all {
		p.stop()
	}
}

// allowed are the cores that this program may run on; in a container they need not begin with 0.
func allowed() (cores []int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("the cores of this program: %w", err)
	}
	for c := range 64 * len(set) {
		if set.IsSet(c) {
			cores = append(cores, c)
		}
	}
	return cores, nil
}

// pin puts a thread (0: this one) on some cores only.
func pin(tid int, cores []int) error {
	var set unix.CPUSet
	for _, c := range cores {
		set.Set(c)
	}
	return unix.SchedSetaffinity(tid, &set)
}

// pinSelf puts all threads of this program on some cores; threads that start later inherit it.
func pinSelf(cores []int) error {
	for range 2 { // the second time gets those that were started meanwhile
		tasks, err := filepath.Glob("/proc/self/task/*")
		if err != nil {
			return err
		}
		for _, t := range tasks {
			tid, _ := strconv.Atoi(filepath.Base(t))
			if err := pin(tid, cores); err != nil && err != unix.ESRCH {
				return err
			}
		}
	}
	runtime.GOMAXPROCS(len(cores))
	return nil
}

// tree is pid and all its descendants.
func tree(pid int) []int {
	all := []int{pid}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, l := range lists {
		text, _ := os.ReadFile(l)
		for _, f := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(f); err == nil {
				all = append(all, tree(child)...)
			}
		}
	}
	return all
}

// cpuTime is what the processes have used until now, user and system, of all their threads, also those that have ended:
// the kernel's clock of a process (clock_getcpuclockid(3)), in nanoseconds and not in ticks.
func cpuTime(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		var ts unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
			return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
		}
		sum += time.Duration(ts.Nano())
	}
	return sum, nil
}

// memory is the resident memory in bytes: the proportional set size, so that pages shared by master and worker count
// once. Without the right to read that it is the resident set.
func memory(pids []int) int64 {
	var sum int64
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		key := "Pss:"
		if err != nil {
			text, _ = os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			key = "VmRSS:"
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) >= 2 && f[0] == key {
				kb, _ := strconv.ParseInt(f[1], 10, 64)
				sum += kb << 10
			}
		}
	}
	return sum
}

// say runs a program and returns all it prints, for versions.
func say(ctx context.Context, argv ...string) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	return string(out)
}

// sleep is time.Sleep that ends with ctx.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
