package daemon_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"countersign/internal/daemon"
)

// slack is the timer slack of the thread that runs f, and of every thread that is started from it.
func slack(t *testing.T) time.Duration {
	t.Helper()
	n, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(n)
}

// TestCoarseTimers starts this program, which starts itself again if it has to.
func TestCoarseTimers(t *testing.T) {
	type told struct {
		PID          int
		Slack, Other time.Duration // of the first thread, and of one that was started later
		Args, Env    []string
	}
	const started = "COUNTERSIGN_TIMERS_TEST"
	if file := os.Getenv(started); file != "" {
		starts, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = starts.WriteString("started\n")
		daemon.CoarseTimers()
		runtime.LockOSThread() // so that the other goroutine has another thread
		x := told{PID: os.Getpid(), Slack: slack(t), Args: os.Args, Env: os.Environ()}
		done := make(chan bool)
		go func() {
			defer close(done)
			runtime.LockOSThread()
			x.Other = slack(t)
		}()
		<-done
		_ = json.NewEncoder(os.Stdout).Encode(x)
		return
	}
	const byDefault, coarse = 50 * time.Microsecond, 2 * time.Millisecond
	for _, c := range []struct {
		name         string
		before, want time.Duration
		starts       int
		env          []string
	}{
		{"the default becomes coarse", byDefault, coarse, 2, nil},
		{"what somebody chose stays", time.Millisecond, time.Millisecond, 1, nil},
		{"a precise one as well", 1, 1, 1, nil},
		{"it never starts itself twice", byDefault, byDefault, 1, []string{"COUNTERSIGN_STARTED_AGAIN=1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			runtime.LockOSThread() // for good: the child begins with this thread's slack, and the thread ends with the subtest
			starts := t.TempDir() + "/starts"
			if err := os.WriteFile(starts, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(c.before), 0, 0, 0); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(os.Args[0], "-test.run=^TestCoarseTimers$", "an argument")
			cmd.Env = append(append(os.Environ(), started+"="+starts, "GOCOVERDIR="+t.TempDir()), c.env...)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, os.Stderr
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v: %s", err, out.String())
			}
			var x told
			if err := json.NewDecoder(&out).Decode(&x); err != nil {
				t.Fatal(err)
			}
			count, _ := os.ReadFile(starts)
			if n := bytes.Count(count, []byte("started\n")); n != c.starts {
				t.Errorf("started %d times, expected %d", n, c.starts)
			}
			if x.Slack != c.want || x.Other != c.want {
				t.Errorf("timer slack %v and %v, expected %v", x.Slack, x.Other, c.want)
			}
			if x.PID != cmd.Process.Pid || !slices.Equal(x.Args, cmd.Args) {
				t.Errorf("process %d with %q, expected %d with %q", x.PID, x.Args, cmd.Process.Pid, cmd.Args)
			}
			if slices.ContainsFunc(x.Env, func(v string) bool { return strings.HasPrefix(v, "COUNTERSIGN_STARTED_AGAIN") }) {
				t.Error("it leaves a trace in the environment")
			}
		})
	}
}
