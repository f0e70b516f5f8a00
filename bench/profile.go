package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// agent is laid over cmd/countersign for profiles only.
//
//go:embed agent/agent.go
var agent []byte

// profiledTag is the build tag of agent.
const profiledTag = "countersign_profile"

// profiled builds the program once more, with the agent in it. Nothing that is compared comes from this one.
func profiled(ctx context.Context, root, dir string, plain *target) (*target, error) {
	file, overlay := filepath.Join(dir, "agent.go"), filepath.Join(dir, "overlay.json")
	text, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, "cmd/countersign/zz_bench_agent.go"): file}})
	if err == nil {
		err = errors.Join(os.WriteFile(file, agent, 0o600), os.WriteFile(overlay, text, 0o600))
	}
	if err != nil {
		return nil, err
	}
	t := *plain
	t.argv, t.profiled = []string{filepath.Join(dir, "countersign-profiled")}, true
	return &t, build(ctx, root, t.argv[0], "-overlay", overlay, "-tags", profiledTag)
}

// record takes a profile of one kind, "cpu" or "heap", from an instance with the agent. A CPU profile lasts until the function
// that is returned is called; that function writes the file.
func (i *instance) record(ctx context.Context, kind, file string) (func() error, error) {
	var c net.Conn
	_, err := i.ready(ctx, patience, func() (err error) {
		c, err = net.Dial("unix", i.dir+"/profile.sock")
		return err
	})
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(c, kind+"\n"); err != nil {
		c.Close()
		return nil, err
	}
	return func() error {
		defer c.Close()
		if err := c.(*net.UnixConn).CloseWrite(); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(patience))
		content, err := io.ReadAll(io.LimitReader(c, 64<<20))
		if err == nil && len(content) == 0 {
			err = fmt.Errorf("%s gave no %s profile: %s", i.Name, kind, tail(i.proc.out.String(), 600))
		}
		if err != nil {
			return err
		}
		return os.WriteFile(file, content, 0o644)
	}, nil
}

// profileTime is how long at least: some hundred samples.
const profileTime = 4 * time.Second

// profile runs one workload once more against Countersign with the agent and writes NAME.pprof and NAME.txt to the
// folder. It returns what costs most, in one line.
func (b *bench) profile(ctx context.Context, w *workload, kind string) (string, error) {
	file, sample := filepath.Join(b.profiles, w.name()+".pprof"), "cpu"
	if w.alone != nil {
		b.profiling = &recording{file: file}
		defer func() { b.profiling = nil }()
		if _, err := w.alone(ctx, b, b.spy); err != nil {
			return "", err
		}
		sample = b.profiling.kind
	} else {
		i, err := b.run(b.spy, kind)
		if err != nil {
			return "", err
		}
		defer i.stop()
		if err := b.waitFor(ctx, i); err != nil {
			return "", err
		}
		var end func() error
		open := func() error { end, err = i.record(ctx, "cpu", file); return err }
		if _, err := drive(ctx, i, w.workers, max(2*b.seconds, profileTime), w.open(b, i), open); err != nil {
			return "", err
		}
		if err := end(); err != nil {
			return "", err
		}
	}
	return b.explain(ctx, file, sample)
}

// recording is a profile that a workload with instances of its own takes.
type recording struct{ file, kind string }

// started is called by such a workload when its instance has started, and the function that is returned when it is
// done with it: a CPU profile of all the time between.
func (b *bench) started(ctx context.Context, i *instance) (func() error, error) {
	if b.profiling == nil || !i.profiled {
		return func() error { return nil }, nil
	}
	b.profiling.kind = "cpu"
	return i.record(ctx, "cpu", b.profiling.file)
}

// held is called when memory is to be looked at.
func (b *bench) held(ctx context.Context, i *instance) error {
	if b.profiling == nil || !i.profiled {
		return nil
	}
	b.profiling.kind = "heap"
	end, err := i.record(ctx, "heap", b.profiling.file)
	if err != nil {
		return err
	}
	return end()
}

// topLine is a line of go tool pprof -top: flat, flat%, sum%, cum, cum%, name.
var topLine = regexp.MustCompile(`^\s*\S+\s+(\S+)%\s+\S+%\s+\S+\s+\S+%\s+(.+)$`)

// explain writes the table of a profile beside it and returns its first lines as one.
func (b *bench) explain(ctx context.Context, file, kind string) (string, error) {
	args := []string{"tool", "pprof", "-top", "-nodecount=60"}
	if kind == "heap" {
		args = append(args, "-sample_index=inuse_space")
	}
	out, err := pprofTool(ctx, append(args, file)...)
	if err != nil {
		return "", err
	}
	return most(string(out), 6), os.WriteFile(strings.TrimSuffix(file, ".pprof")+".txt", out, 0o644)
}

// most is the first n entries of a table of pprof, in one line.
func most(table string, n int) string {
	var all []string
	for line := range strings.Lines(table) {
		if m := topLine.FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil && len(all) < n {
			all = append(all, m[1]+"% "+strings.TrimSuffix(m[2], " (inline)"))
		}
	}
	return strings.Join(all, ", ")
}

func pprofTool(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute) // the first time it is built
	defer cancel()
	var said output
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, tail(said.String(), 300))
	}
	return out, nil
}

// merge adds up the CPU profiles of the mixed workloads: what default.pgo is made of. One that is missing is an error, as
// the program would be built for the others only.
func (b *bench) merge(ctx context.Context, r *report) error {
	var files []string
	for _, l := range r.Results {
		if l.Profile == "" {
			return fmt.Errorf("there is no profile of %q, so none is merged", l.Title)
		}
		files = append(files, filepath.Join(b.profiles, l.Name+".pprof"))
	}
	out, err := pprofTool(ctx, append([]string{"tool", "pprof", "-proto"}, files...)...)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.profiles, "merged.pprof"), out, 0o644)
}
