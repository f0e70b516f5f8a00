package daemon_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"countersign/internal/daemon"
)

// logged is a configuration with logs in the folder logs.
func logged(outputs string) string { return basic + "log: {outputs: [" + outputs + "]}\n" }

// until waits for a file to have n lines and returns them.
func (w *world) until(name string, n int) []string {
	w.t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		data, _ := os.ReadFile(filepath.Join(w.dir, name))
		if lines := strings.SplitAfter(string(data), "\n"); len(lines) > n {
			return lines[:len(lines)-1]
		}
		if time.Now().After(end) {
			w.t.Fatalf("%s has not %d lines:\n%s\n%s", name, n, data, w.ops)
		}
	}
}

const everyFormat = "{to: stdout}, {to: file, path: logs/access.log, format: alb_access}, {to: file, path: logs/connection.log, format: alb_connection}, " +
	"{to: file, path: logs/combined.log, format: combined}"

// TestLogOutputs: one request over one connection, in every format, and what a reload makes of the outputs.
func TestLogOutputs(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	if err := os.Mkdir(filepath.Join(w.dir, "logs"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.start(logged(everyFormat), b.addr)
	alice := w.client("a.test", w.ca.Client("Alice Smith"))
	if status, _, err := w.get("public", alice, "a.test", "/x?y=1"); status != 200 {
		t.Fatal(status, err)
	}
	ref := w.record("kind=handshake", "reason=completed")["ref"].(string)
	access, connection, combined := w.until("logs/access.log", 1)[0], w.until("logs/connection.log", 1)[0], w.until("logs/combined.log", 1)[0]
	t.Log(access, connection, combined)
	trace := "TID_0000000000000000" + ref
	if !strings.Contains(access, trace) || !strings.Contains(connection, trace) {
		t.Errorf("the lines are not joined by %s", trace)
	}
	if !strings.Contains(connection, ` "CN=Alice Smith" NotBefore=`) || !strings.Contains(connection, " Success TID_") {
		t.Errorf("%s", connection)
	}
	for _, c := range []struct{ line, want string }{
		{access, `^https \S+Z app/countersign/public 127\.0\.0\.1:\d+ ` + regexp.QuoteMeta(b.addr) + ` \d\.\d{3} \d\.\d{3} \d\.\d{3} 200 200 \d+ \d+ ` +
			`"GET https://a\.test:\d+/x\?y=1 HTTP/1\.1" "-" TLS_AES_128_GCM_SHA256 TLSv1\.3 api "-" "a\.test" "sha256:[0-9a-f]{64}" \S+ \S+Z "forward" "-" "-" "` +
			regexp.QuoteMeta(b.addr) + `" "200" "-" "-" ` + trace + ` "-" "-" "-" 127\.0\.0\.1\n$`},
		{connection, `^\S+Z 127\.0\.0\.1 \d+ \d+ TLSv1\.3 TLS_AES_128_GCM_SHA256 \d\.\d{3} "CN=Alice Smith" NotBefore=\S+Z;NotAfter=\S+Z [0-9A-F]+ Success ` + trace +
			` X25519MLKEM768 app/countersign/public 127\.0\.0\.1\n$`},
		{combined, `^127\.0\.0\.1 - CN=Alice\\x20Smith \[\S+ \+0000\] "GET /x\?y=1 HTTP/1\.1" 200 \d+ "-" "-"\n$`},
	} {
		if !regexp.MustCompile(c.want).MatchString(c.line) {
			t.Errorf("got\n%sexpected\n%s", c.line, c.want)
		}
	}
}

// TestLogBytes: what lines say of bytes and of who asked is what went over the wire, whoever answered.
func TestLogBytes(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	if err := os.Mkdir(filepath.Join(w.dir, "logs"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.start(logged(everyFormat), b.addr)
	alice := w.client("a.test", w.ca.Client("alice"))
	for i, c := range []struct{ name, request, protocol string }{
		{"forwarded", "GET /x HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n", "HTTP/1.1"},
		{"forwarded, with a body", "POST /x HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.1"},
		{"HTTP/1.0", "GET /x HTTP/1.0\r\nHost: a.test\r\n\r\n", "HTTP/1.0"},
		{"refused", "GET /x HTTP/1.1\r\nHost: nobody.test\r\nConnection: close\r\n\r\n", "HTTP/1.1"},
		{"refused, HEAD", "HEAD /x HTTP/1.1\r\nHost: nobody.test\r\nConnection: close\r\n\r\n", "HTTP/1.1"},
		{"not understood", "GET  /x HTTP/1.1\r\nHost: a.test\r\n\r\n", "-"},
		{"a bad field", "GET /x HTTP/1.1\r\nbad\r\n\r\n", "HTTP/1.1"},
	} {
		conn := must(w.dial("public", alice))(t)
		fmt.Fprint(conn, c.request)
		answer, err := io.ReadAll(conn)
		conn.Close()
		_, body, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
		if err != nil || len(answer) == 0 {
			t.Fatalf("%s: %q %v", c.name, answer, err)
		}
		access, combined := w.until("logs/access.log", i+1)[i], w.until("logs/combined.log", i+1)[i]
		if want := fmt.Sprintf(" %d %d \"", len(c.request), len(answer)); !strings.Contains(access, want) || !strings.Contains(access, c.protocol+`"`) {
			t.Errorf("%s: expected%s and %s in %s", c.name, want, c.protocol, access)
		}
		want := fmt.Sprintf(" %d \"-\" \"-\"\n", len(body))
		if len(body) == 0 {
			want = " - \"-\" \"-\"\n"
		}
		if !strings.HasSuffix(combined, want) {
			t.Errorf("%s: expected%s in %s", c.name, want, combined)
		}
	}
}

// TestLogReload: outputs come and go with reloads, refused ones change nothing, and files are looked at again in any case.
func TestLogReload(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.start(basic, b.addr)
	alice := w.client("a.test", w.ca.Client("alice"))
	get := func() {
		t.Helper()
		if status, _, err := w.get("public", alice, "a.test", "/"); status != 200 {
			t.Fatal(status, err)
		}
	}
	get()
	w.record("kind=request") // a line is written behind the answer
	w.reload(logged("{to: file, path: a.log, what: [requests]}"), b.addr)
	before := strings.Count(w.log.String(), "\n")
	get()
	w.until("a.log", 1)
	if n := strings.Count(w.log.String(), "\n"); n != before {
		t.Errorf("standard output got %d lines more", n-before)
	}
	if err := os.Rename(filepath.Join(w.dir, "a.log"), filepath.Join(w.dir, "a.log.1")); err != nil {
		t.Fatal(err)
	}
	w.file("countersign.yaml", []byte("listeners: {}\n"))
	if err := w.main.Reload(); err == nil {
		t.Fatal("accepted")
	}
	get()
	if got := w.until("a.log", 1); len(got) != 1 {
		t.Errorf("%q", got)
	}
	// An output that cannot be opened refuses the whole configuration; the listener that it adds is not there either.
	if err := exec.Command("mkfifo", filepath.Join(w.dir, "fifo")).Run(); err != nil {
		t.Skip("mkfifo is missing")
	}
	w.file("countersign.yaml", []byte(strings.ReplaceAll(logged("{to: file, path: fifo}"), "BACKEND", b.addr)))
	if err := w.main.Reload(); err == nil || !strings.Contains(err.Error(), "fifo is not a regular file") {
		t.Errorf("%v", err)
	}
	get()
	w.until("a.log", 2)
	w.reload(basic, b.addr)
	get()
	w.record("kind=request", "path=/")
}

// TestLogDoesNotStall: a program that does not read our standard output, and one that has ended, cost clients nothing.
func TestLogDoesNotStall(t *testing.T) {
	b := echo(t, "api", nil)
	worst := func(t *testing.T, records io.Writer) (time.Duration, map[string]string) {
		w := newWorld(t)
		w.startWith(logged("{to: stdout, queue: 64KiB}"), b.addr, func(o *daemon.Options) { o.Records = records })
		conf := w.client("a.test", w.ca.Client("alice"))
		c, err := w.dial("public", conf)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		const n = 1500
		took := make([]time.Duration, n)
		path := "/" + strings.Repeat("x", 200)
		for i := range took {
			begin := time.Now()
			if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a.test\r\n\r\n", path); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 0, 4096)
			for !bytes.Contains(got, []byte("body=0")) {
				k, err := c.Read(got[len(got):cap(got)])
				if got = got[:len(got)+k]; err != nil {
					t.Fatal(err)
				}
			}
			took[i] = time.Since(begin)
		}
		slices.Sort(took)
		return took[n*99/100], w.scrape(t)
	}
	t.Run("H13/sleep", func(t *testing.T) {
		r, stuck, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer stuck.Close()
		sleep := exec.Command("sleep", "600")
		sleep.Stdin = r
		if err := sleep.Start(); err != nil {
			t.Skip("sleep is missing")
		}
		defer sleep.Process.Kill()
		for try := 1; ; try++ { // whatever else the machine does may come in only one of the two
			free, _ := worst(t, io.Discard)
			slow, metrics := worst(t, stuck)
			dropped := metrics[`countersign_log_dropped_total{output="stdout"}`]
			t.Logf("p99 %v with a reader, %v without; %s lines dropped", free, slow, dropped)
			if dropped == "0" || dropped == "" {
				t.Errorf("%q lines dropped", dropped)
			}
			if slow <= 3*free+5*time.Millisecond {
				break
			}
			if try == 3 {
				t.Errorf("p99 %v instead of %v, three times", slow, free)
				break
			}
		}
		r.Close() // sleep has it too; it ends what is stuck when it is killed
	})
	t.Run("H13/reader has gone", func(t *testing.T) {
		r, gone, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer gone.Close()
		r.Close()
		slow, metrics := worst(t, gone)
		if n := metrics[`countersign_log_errors_total{output="stdout"}`]; n == "0" || n == "" {
			t.Errorf("%q errors; p99 %v", n, slow)
		}
	})
}

// TestRunWithoutReader: the end of the program that reads our standard output, or our standard error, is not ours.
func TestRunWithoutReader(t *testing.T) {
	if conf := os.Getenv("COUNTERSIGN_TEST_RUN"); conf != "" {
		if err := daemon.Run(daemon.Options{Config: conf, Records: os.Stdout, Log: os.Stderr}); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	t.Run("H13/SIGPIPE", func(t *testing.T) {
		addr := freeAddr(t)
		conf := filepath.Join(t.TempDir(), "countersign.yaml")
		if err := os.WriteFile(conf, []byte("listeners: {web: {listen: '"+addr+"', protocol: http, hosts: [{names: [a.test], client_auth: {mode: off}, routes: [{upstream: api}]}]}}\n"+
			"upstreams: {api: {targets: ['http://127.0.0.1:1']}}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestRunWithoutReader$")
		cmd.Env = append(os.Environ(), "COUNTERSIGN_TEST_RUN="+conf)
		cmd.Stdout, cmd.Stderr = w, w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		r.Close()
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		for i, end := 0, time.Now().Add(10*time.Second); i < 10; time.Sleep(20 * time.Millisecond) {
			resp, err := http.DefaultClient.Do(&http.Request{Method: "GET", URL: &url.URL{Scheme: "http", Host: addr, Path: "/"}, Host: "a.test"})
			if err == nil {
				resp.Body.Close()
				i++
			} else if time.Now().After(end) {
				t.Error(err)
				break
			}
		}
		select {
		case err := <-ended:
			t.Fatalf("it ended: %v", err)
		default:
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := <-ended; err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
	})
}
