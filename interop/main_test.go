// Package interop_test runs the program as it is shipped against programs nobody here wrote: curl, OpenSSL, GnuTLS,
// Python, Node and Java as clients, nginx, HAProxy and OpenSSL as backends, a WebSocket library as both. It is a module of
// its own and knows nothing of the inside: it makes its own PKI, writes configuration files and reads log lines.
//
// A test whose program is missing is skipped, and says so; with COUNTERSIGN_CI=1 it fails. Everything is on 127.0.0.1.
package interop_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// binary is the program, built once.
var binary string

// eventLoop has the program run with the experiment of that name.
var eventLoop = flag.Bool("eventloop", false, "with experimental.event_loop")

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "countersign-interop-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "countersign")
	build := exec.Command("go", "build", "-pgo=off", "-o", binary, "./cmd/countersign")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		fmt.Fprintf(os.Stderr, "cannot build countersign: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// packages are the Debian packages that have the programs.
var packages = map[string]string{"nghttp": "nghttp2-client", "h2load": "nghttp2-client", "chromium": "chromium", "certutil": "libnss3-tools", "nginx": "nginx-light", "haproxy": "haproxy", "gnutls-cli": "gnutls-bin", "curl": "curl",
	"openssl": "openssl", "python3": "python3", "node": "nodejs", "java": "default-jdk-headless", "promtool": "prometheus"}

// need ends the test if a program is not installed.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, name := range programs {
		if _, err := exec.LookPath(name); err == nil {
			continue
		}
		if os.Getenv("COUNTERSIGN_CI") == "1" {
			t.Fatalf("%s is not installed, and CI skips nothing; apt-get install %s", name, packages[name])
		}
		t.Skipf("%s is not installed: not tested against it; apt-get install %s", name, packages[name])
	}
}

var nextPort atomic.Int32

func init() { nextPort.Store(20000 + rand.Int32N(10000)) }

// freeAddress returns an address nobody listens on, below the ports the kernel gives to outgoing connections.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 200 {
		addr := "127.0.0.1:" + strconv.Itoa(int(nextPort.Add(1)))
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatal("no free port on 127.0.0.1")
	return ""
}

func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// output collects what a program writes.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// start runs a program until the end of the test, in its own process group, and returns what it prints. When it listens
// on all of addrs it is taken to be ready.
func start(t *testing.T, cmd *exec.Cmd, addrs ...string) *output {
	t.Helper()
	out := &output{}
	if cmd.Stdout == nil {
		cmd.Stdout = out
	}
	cmd.Stderr = out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Errorf("%s did not end within 20 s of SIGTERM", cmd.Path)
		}
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // whatever it left behind in its group
		<-ended
		if t.Failed() {
			t.Logf("%s printed:\n%s", filepath.Base(cmd.Path), tail(out.String(), 4000))
		}
	})
	deadline := time.Now().Add(30 * time.Second)
	for _, addr := range addrs {
		for {
			c, err := net.DialTimeout("tcp", addr, time.Second)
			if err == nil {
				c.Close()
				break
			}
			select {
			case <-ended:
				t.Fatalf("%s ended at once:\n%s", cmd.Path, out)
			case <-time.After(20 * time.Millisecond):
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s does not listen on %s:\n%s", cmd.Path, addr, out)
			}
		}
	}
	return out
}

// await waits until ok, at most 15 seconds.
func await(t *testing.T, ok func() bool) {
	t.Helper()
	for range 750 {
		if ok() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("waited 15 s in vain")
}

func tail(s string, n int) string {
	if len(s) > n {
		return "..." + s[len(s)-n:]
	}
	return s
}

// result is how a command ended.
type result struct {
	code     int
	out, err string
}

func (r result) String() string {
	return fmt.Sprintf("exit status %d\n--- standard output\n%s\n--- standard error\n%s", r.code, tail(r.out, 2000), tail(r.err, 4000))
}

// run runs a command to its end, within 20 seconds. What it reads from standard input never ends before the command
// does, unless it is closed here.
func run(t *testing.T, stdin io.Reader, name string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if ctx.Err() != nil {
		t.Fatalf("%s %s did not end within 20 s:\n%s\n%s", name, strings.Join(args, " "), tail(out.String(), 2000), tail(errs.String(), 2000))
	}
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", name, err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// open is a standard input that says text and then stays open until the command has ended.
func open(t *testing.T, text string) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString(text); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r
}

func write(t *testing.T, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
