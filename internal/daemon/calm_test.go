package daemon_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"countersign/internal/daemon"
)

// cpu is the processor time this process has used.
func cpu() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// TestRecordFloods are clients with a certificate that send records with nothing in them.
func TestRecordFloods(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	conf := func(idle string) string {
		return strings.Replace(basic, "protocol: https", "protocol: https\n    limits: {idle: "+idle+"}", 1)
	}
	w.start(conf("20s"), b.addr) // making the records takes a loaded machine a second
	alice := w.ca.Client("alice")
	base := runtime.NumGoroutine()

	flood := func(t *testing.T, bytes func(*rawTLS) []byte) {
		t.Helper()
		r := w.rawTLS("public", "a.test", alice)
		out := bytes(r)
		start := cpu()
		go func() { _, _ = r.Write(out) }()
		took := r.ended()
		limit := time.Second
		if raceEnabled { // each KeyUpdate costs the race detector far more
			limit *= 4
		}
		if used := cpu() - start; used > limit {
			t.Errorf("%v of processor time, expected less than %v", used, limit)
		} else {
			t.Logf("%d bytes: closed after %v, %v of processor time", len(out), took, used)
		}
		w.awaitMetric(`countersign_connections{listener="public"}`, "0")
	}
	request := func(n int) string {
		return fmt.Sprintf("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n", n)
	}
	const n = 10_000
	t.Run("F05/10,000 KeyUpdates", func(t *testing.T) {
		flood(t, func(r *rawTLS) (out []byte) {
			for range n {
				out = r.keyUpdate(out, true)
			}
			return out
		})
	})
	t.Run("F05/10,000 KeyUpdates in one record", func(t *testing.T) {
		flood(t, func(r *rawTLS) []byte {
			return r.seal(nil, handshakeRecord, bytes.Repeat([]byte{keyUpdate, 0, 0, 1, 1}, 3000))
		})
	})
	for name, request1 := range map[string]bool{"asking for one in return": true, "asking for nothing": false} {
		t.Run("F05/KeyUpdates between the bytes of a body, "+name, func(t *testing.T) {
			flood(t, func(r *rawTLS) []byte {
				out := r.data(nil, request(1_000_000))
				for range n / 10 {
					for range 16 {
						out = r.keyUpdate(out, request1)
					}
					out = r.data(out, "x")
				}
				return out
			})
			// Each KeyUpdate costs the race detector far more.
			await(t, 30*time.Second, "the end of the request", func() bool { return strings.Contains(w.log.String(), `"reason":"record_flood"`) })
			w.record("kind=request", "reason=record_flood")
		})
	}
	t.Run("F06/empty records", func(t *testing.T) {
		flood(t, func(r *rawTLS) (out []byte) {
			for range n {
				out = r.data(out, "")
			}
			return out
		})
	})
	t.Run("F06/empty records between the bytes of a body", func(t *testing.T) {
		flood(t, func(r *rawTLS) []byte {
			out := r.data(nil, request(1_000_000))
			for range n / 10 {
				for range 16 {
					out = r.data(out, "")
				}
				out = r.data(out, "x")
			}
			return out
		})
	})
	t.Run("F06/warning alerts", func(t *testing.T) {
		flood(t, func(r *rawTLS) (out []byte) {
			for range n {
				out = r.seal(out, alertRecord, []byte{1, 90}) // user_canceled
			}
			return out
		})
	})
	t.Run("F06/empty records are no progress", func(t *testing.T) {
		w.reload(conf("1s"), b.addr)
		defer w.reload(conf("20s"), b.addr)
		start := time.Now()
		r := w.rawTLS("public", "a.test", alice)
		done := make(chan time.Duration, 1)
		go func() {
			r.ended()
			done <- time.Since(start)
		}()
		for range 60 {
			if _, err := r.Write(r.data(nil, "")); err != nil {
				break
			}
			time.Sleep(150 * time.Millisecond)
		}
		if took := <-done; took < 900*time.Millisecond || took > 8*time.Second {
			t.Errorf("closed after %v, expected limits.idle of 1s", took)
		}
		w.awaitMetric(`countersign_connections{listener="public"}`, "0")
	})
	t.Run("F06/who sends them sparingly is served", func(t *testing.T) {
		r := w.rawTLS("public", "a.test", alice)
		const size = 6000
		out := r.data(nil, request(size))
		for i := range size {
			if i%3 == 0 {
				out = r.keyUpdate(out, false)
			} else {
				out = r.data(out, "") // as TLS 1.2 clients do before each record
			}
			out = r.data(out, "x")
		}
		go func() { _, _ = r.Write(out) }()
		await(t, 30*time.Second, "the end of the request", func() bool { return strings.Contains(w.log.String(), `"reason":"completed"`) })
		w.record("kind=request", "reason=completed", "method=POST")
		r.Close()
	})
	for deadline := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > base+5; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("F05/%d goroutines, %d before", runtime.NumGoroutine(), base)
		}
	}
}

// greeting is the first flight of a client of a.test, to be sent as often as one likes.
func (w *world) greeting() []byte {
	near, far := net.Pipe()
	go func() { _ = tls.Client(near, w.client("a.test", nil)).Handshake() }()
	defer near.Close()
	header := make([]byte, 5)
	_, _ = io.ReadFull(far, header)
	rest := make([]byte, int(header[3])<<8|int(header[4]))
	_, _ = io.ReadFull(far, rest)
	far.Close()
	return append(header, rest...)
}

// from connects from one loopback address.
func from(last byte, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 9, 9, last)}}
	return d.Dial("tcp", addr)
}

// fetch makes a connection from one address and one request over it.
func (w *world) fetch(last byte, conf *tls.Config) (time.Duration, error) {
	start := time.Now()
	raw, err := from(last, w.addr("public"))
	if err != nil {
		return 0, err
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
	c := tls.Client(raw, conf)
	status, _, err := roundTrip(c, bufio.NewReader(c), "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
	if err == nil && status != 200 {
		err = fmt.Errorf("status %d", status)
	}
	return time.Since(start), err
}

func TestHandshakeFloods(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	limits := func(s string) string {
		return strings.Replace(basic, "protocol: https", "protocol: https\n    limits: {"+s+"}", 1)
	}
	w.start(limits("handshakes_per_address: {rate: 1, burst: 20}"), b.addr)
	alice := w.client("a.test", w.ca.Client("alice"))
	hello := w.greeting()

	t.Run("F04/faster than one address may", func(t *testing.T) {
		refused, began := 0, time.Now()
		for range 60 {
			c, err := from(1, w.addr("public"))
			if errors.Is(err, syscall.ECONNRESET) {
				refused++
				continue
			} else if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write(hello)
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			if n, err := c.Read(make([]byte, 1)); n == 0 && (errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF)) {
				refused++
			}
			c.Close()
		}
		if refused < 38-int(time.Since(began)/time.Second) || refused > 40 { // one more may each second
			t.Errorf("%d of 60 refused, expected all but the burst of 20", refused)
		}
		w.record("kind=handshake", "reason=address_handshakes", "fault=client")
		if _, err := w.fetch(2, alice); err != nil {
			t.Errorf("another address: %v", err)
		}
	})
	t.Run("F04/more than one address may hold", func(t *testing.T) {
		w.reload(limits("connections_per_address: 3"), b.addr)
		w.awaitMetric(`countersign_connections{listener="public"}`, "0")
		var open []net.Conn
		for range 3 {
			c, err := from(3, w.addr("public"))
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
		}
		w.awaitMetric(`countersign_connections{listener="public"}`, "3")
		time.Sleep(100 * time.Millisecond) // until all three are counted for their address too
		if _, err := w.fetch(3, alice); err == nil {
			t.Error("a fourth connection was served")
		}
		w.record("kind=handshake", "reason=address_connections", "fault=client")
		if _, err := w.fetch(4, alice); err != nil {
			t.Errorf("another address: %v", err)
		}
		for _, c := range open {
			c.Close()
		}
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, err := w.fetch(3, alice); err == nil {
				break
			} else if time.Now().After(deadline) {
				t.Fatalf("room again, but: %v", err)
			}
		}
	})
	t.Run("F01/silent after the hello", func(t *testing.T) {
		w.reload("limits: {handshakes_at_once: 1}\n"+basic, b.addr)
		var open []net.Conn
		for i := range 300 {
			c, err := from(5, w.addr("public"))
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
			if i%3 == 0 {
				_, _ = c.Write(hello[:len(hello)/2])
			} else {
				_, _ = c.Write(hello)
			}
		}
		if took, err := w.fetch(6, alice); err != nil || took > 8*time.Second {
			t.Errorf("a good client took %v: %v", took, err)
		}
		for _, c := range open {
			c.Close()
		}
	})
	t.Run("F04/longer in the queue than anybody waits", func(t *testing.T) {
		w.reload("limits: {handshakes_at_once: 1, handshake_wait: 1ms}\n"+basic, b.addr)
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 50 {
					if c, err := from(7, w.addr("public")); err == nil {
						_, _ = c.Write(hello)
						_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
						_, _ = c.Read(make([]byte, 1))
						c.Close()
					}
				}
			})
		}
		all.Wait()
		w.record("kind=handshake", "reason=handshake_overload", "fault=operator")
	})
	t.Run("F04/one source floods and one client is good", func(t *testing.T) {
		if testing.Short() || raceEnabled {
			t.Skip("needs its processor time")
		}
		w.reload(limits("handshakes_per_address: {rate: 1000000, burst: 1000000}"), b.addr)
		keep, err := w.dial("public", alice)
		if err != nil {
			t.Fatal(err)
		}
		_ = keep.SetDeadline(time.Now().Add(time.Minute))
		reader := bufio.NewReader(keep)
		slowest := time.Duration(0) // while nobody floods: this machine may have other things to do
		for range 20 {
			took, err := w.fetch(9, alice)
			if err != nil {
				t.Fatal(err)
			}
			slowest = max(slowest, took)
		}
		patience := max(time.Second, 20*slowest)
		stop := make(chan struct{})
		var floods atomic.Int64
		var all sync.WaitGroup
		for range 32 {
			all.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					c, err := from(8, w.addr("public"))
					if err != nil {
						continue
					}
					_ = c.(*net.TCPConn).SetLinger(0)
					_, _ = c.Write(hello)
					_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
					if _, err := c.Read(make([]byte, 1)); err == nil {
						floods.Add(1)
					}
					c.Close()
				}
			})
		}
		stood(time.Now())
		began := time.Now()
		var handshakes, requests []time.Duration
		for end := began.Add(3 * time.Second); time.Now().Before(end); {
			took, err := w.fetch(9, alice)
			if err != nil {
				t.Error(err)
			}
			handshakes = append(handshakes, took)
			start := time.Now()
			if status, _, err := roundTrip(keep, reader, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"); status != 200 {
				t.Fatalf("on a connection that was there before: %d %v", status, err)
			}
			requests = append(requests, time.Since(start))
		}
		patience += stood(began)
		close(stop)
		all.Wait()
		p99 := func(d []time.Duration) time.Duration {
			slices.Sort(d)
			return d[len(d)*99/100]
		}
		t.Logf("%d handshakes of the flood in 3 s; %d good ones, p99 %v (before: %v); requests on an open connection p99 %v",
			floods.Load(), len(handshakes), p99(handshakes), slowest, p99(requests))
		if p := p99(handshakes); p > patience {
			t.Errorf("p99 of a good client's connection and request is %v, expected less than %v", p, patience)
		}
		if p := p99(requests); p > patience {
			t.Errorf("p99 on an open connection is %v, expected less than %v", p, patience)
		}
	})
}

func TestRequestLimits(t *testing.T) {
	w := newWorld(t)
	came, release := make(chan struct{}), make(chan struct{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	slow := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow/x" {
			close(came)
			<-release
		}
		fmt.Fprint(rw, "done")
	})}
	go slow.Serve(l)
	t.Cleanup(func() { slow.Close() })
	w.start(strings.Replace(basic, "routes: [{upstream: api}]", `
        rate_limits: [{per: client_certificate, requests: 1, every: 1h, burst: 8}]
        routes:
          - {match: {path: /rated/*}, upstream: api, rate_limits: [{per: client_address, requests: 2, every: 1h}]}
          - {match: {path: /slow/*}, upstream: api, concurrency: [{per: route, requests: 1}]}
          - {match: {path: /closed/*}, allow: "false", upstream: api, rate_limits: [{per: route, requests: 1, every: 1h}]}
          - {upstream: api}`, 1), l.Addr().String())
	clients := make(map[string]*tls.Config)
	call := func(name, path string) (int, string) {
		t.Helper()
		if clients[name] == nil {
			clients[name] = w.client("a.test", w.ca.Client(name))
		}
		c, err := w.dial("public", clients[name])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a.test\r\n\r\n", path)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode, resp.Header.Get("Retry-After")
	}
	t.Run("F17/rate_limited", func(t *testing.T) {
		for i := range 4 {
			status, retry := call(fmt.Sprint("client", i), "/rated/x") // other certificates, the same address
			n, _ := strconv.Atoi(retry)
			if i < 2 && status != 200 || i >= 2 && (status != 429 || n < 1790 || n > 1800) {
				t.Errorf("call %d: %d, Retry-After %q", i, status, retry)
			}
		}
		w.record("kind=request", "reason=rate_limited", "status=429", "fault=client")
	})
	t.Run("F17/by certificate", func(t *testing.T) {
		for range 8 {
			if status, _ := call("bob", "/"); status != 200 {
				t.Errorf("%d within the burst", status)
			}
		}
		if status, retry := call("bob", "/"); status != 429 {
			t.Errorf("%d beyond the burst", status)
		} else if n, _ := strconv.Atoi(retry); n < 3590 || n > 3600 {
			t.Errorf("Retry-After %q, expected about an hour", retry)
		}
		if status, _ := call("carol", "/"); status != 200 {
			t.Errorf("%d for another certificate", status)
		}
	})
	t.Run("F17/who is refused takes nothing from others", func(t *testing.T) {
		for range 3 {
			if status, _ := call("dave", "/closed/x"); status != 403 {
				t.Errorf("%d, expected that policy decides first", status)
			}
		}
	})
	t.Run("F17/concurrency_limited", func(t *testing.T) {
		c, err := w.dial("public", w.client("a.test", w.ca.Client("erin")))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, "GET /slow/x HTTP/1.1\r\nHost: a.test\r\n\r\n")
		<-came
		if status, retry := call("frank", "/slow/y"); status != 429 || retry != "1" {
			t.Errorf("%d, Retry-After %q", status, retry)
		}
		w.record("kind=request", "reason=concurrency_limited", "status=429")
		close(release)
		r := bufio.NewReader(c)
		if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 200 {
			t.Fatal(err)
		}
		n := 0
		await(t, 10*time.Second, "room again", func() bool { // it is given back when the answer has been seen
			n++
			status, _ := call(fmt.Sprint("frank", n), "/slow/y")
			return status == 200
		})
	})
	t.Run("the connection goes on", func(t *testing.T) {
		c, err := w.dial("public", w.client("a.test", w.ca.Client("grace")))
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(c)
		if status, _, err := roundTrip(c, r, "GET /rated/x HTTP/1.1\r\nHost: a.test\r\n\r\n"); status != 429 {
			t.Fatal(status, err)
		}
		if status, _, err := roundTrip(c, r, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"); status != 200 {
			t.Fatal(status, err)
		}
	})
}

// TestServed is no test: it is the program in a process of its own, with limits of its own, for the tests below.
func TestServed(t *testing.T) {
	conf := os.Getenv("COUNTERSIGN_TEST_CONFIG")
	if conf == "" {
		return // nobody has asked for the program
	}
	if n, _ := strconv.ParseUint(os.Getenv("COUNTERSIGN_TEST_FILES"), 10, 64); n > 0 {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
			t.Fatal(err)
		}
	}
	records, err := os.Create(filepath.Join(filepath.Dir(conf), "records"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := daemon.Start(daemon.Options{Config: conf, Records: records, Log: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("\npublic=%s ops=%s\n", m.Addr("public"), m.Addr("ops"))
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// served is the program in another process.
type served struct {
	*world
	cmd         *exec.Cmd
	public, ops string
	log         *lines
}

// serve starts the program in a process of its own.
func (w *world) serve(conf, backend string, env ...string) *served {
	w.t.Helper()
	w.file("countersign.yaml", []byte(strings.ReplaceAll(conf, "BACKEND", backend)))
	s := &served{world: w, cmd: exec.Command(os.Args[0], "-test.run=^TestServed$"), log: &lines{}}
	s.cmd.Env = append(append(os.Environ(), "COUNTERSIGN_TEST_CONFIG="+filepath.Join(w.dir, "countersign.yaml")), env...)
	stdin, err := s.cmd.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	s.cmd.Stderr = s.log
	if err := s.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		stdin.Close()
		_ = s.cmd.Wait()
	})
	for r := bufio.NewScanner(out); s.public == ""; {
		if !r.Scan() {
			w.t.Fatalf("the program did not start: %s", s.log)
		}
		_, _ = fmt.Sscanf(r.Text(), "public=%s ops=%s", &s.public, &s.ops)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	return s
}

// records are what the process has recorded.
func (s *served) records() string {
	text, _ := os.ReadFile(filepath.Join(s.dir, "records"))
	return string(text)
}

// connect makes a connection and one request over it, and leaves it open.
func (s *served) connect(conf *tls.Config) (net.Conn, error) {
	raw, err := net.DialTimeout("tcp", s.public, 5*time.Second)
	if err != nil {
		return nil, err
	}
	_ = raw.SetDeadline(time.Now().Add(5 * time.Second))
	c := tls.Client(raw, conf)
	if status, _, err := roundTrip(c, bufio.NewReader(c), "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"); status != 200 {
		raw.Close()
		return nil, fmt.Errorf("status %d, %w", status, err)
	}
	_ = raw.SetDeadline(time.Time{})
	return c, nil
}

func ask(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	status, _, err := roundTrip(c, bufio.NewReader(c), "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
	if err == nil && status != 200 {
		err = fmt.Errorf("status %d", status)
	}
	return err
}

// resident is the memory of the process in bytes.
func (s *served) resident() int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.cmd.Process.Pid))
	f := strings.Fields(string(text))
	if len(f) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(f[1])
	return n * os.Getpagesize()
}

func TestOutOfDescriptors(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	s := w.serve(basic, b.addr, "COUNTERSIGN_TEST_FILES=128")
	alice := w.client("a.test", w.ca.Client("alice"))
	var open []net.Conn
	for len(open) < 200 {
		c, err := s.connect(alice)
		if err != nil {
			break
		}
		open = append(open, c)
	}
	t.Logf("%d connections with 128 descriptors", len(open))
	if len(open) < 40 || len(open) > 96 {
		t.Fatalf("%d connections, expected some, and a quarter of the descriptors kept free", len(open))
	}
	t.Run("F14/who comes then learns it at once", func(t *testing.T) {
		for range 50 {
			start := time.Now()
			if c, err := s.connect(alice); err == nil {
				c.Close()
				t.Fatal("served")
			} else if took := time.Since(start); took > 4*time.Second {
				t.Fatalf("%v after %v", err, took)
			}
		}
		await(t, 10*time.Second, "a record that says why", func() bool { return strings.Contains(s.records(), `"reason":"overloaded"`) })
	})
	t.Run("F14/what is open goes on", func(t *testing.T) {
		for i, c := range open {
			if err := ask(c); err != nil {
				t.Fatalf("connection %d of %d: %v", i, len(open), err)
			}
		}
	})
	t.Run("F14/ops and reload have descriptors", func(t *testing.T) {
		resp, err := http.Get("http://" + s.ops + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		w.file("countersign.yaml", []byte(strings.ReplaceAll(basic, "BACKEND", b.addr)+"drain: 7s\n"))
		for deadline := time.Now().Add(10 * time.Second); strings.Count(s.log.String(), "configuration in force") < 2; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not reloaded: %s", s.log)
			}
		}
	})
	t.Run("F14/room again", func(t *testing.T) {
		for _, c := range open {
			c.Close()
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if c, err := s.connect(alice); err == nil {
				c.Close()
				break
			} else if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	})
	if n := strings.Count(s.log.String(), "cannot accept"); n > 3 {
		t.Errorf("F14/%d lines in the log about one condition", n)
	}
}

func TestOutOfMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector needs its own memory")
	}
	w := newWorld(t)
	b := echo(t, "api", nil)
	s := w.serve(basic, b.addr, "GOMEMLIMIT=40MiB", "GOGC=400")
	alice := w.client("a.test", w.ca.Client("alice"))
	busy, err := s.connect(alice)
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	refused, most := 0, 0
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end) && refused < 200 && len(open) < 8000; {
		c, err := s.connect(alice)
		if err != nil {
			refused++
			time.Sleep(5 * time.Millisecond)
			continue
		}
		open = append(open, c)
		if most = max(most, s.resident()); len(open)%20 == 0 {
			if err := ask(busy); err != nil {
				t.Fatalf("F20/a connection that is in use: %v", err)
			}
		}
	}
	t.Logf("%d connections, %d refused, at most %d MiB resident", len(open), refused, most>>20)
	if refused < 200 {
		t.Fatalf("F20/%d of %d refused", refused, len(open))
	}
	for _, code := range []string{`"reason":"memory_shed"`} {
		if !strings.Contains(s.records(), code) {
			t.Errorf("H23/no record has %s", code)
		}
	}
	if !strings.Contains(s.log.String(), "memory pressure") {
		t.Errorf("H23/nothing in the log: %s", s.log)
	}
	if most > 110<<20 { // the limit is 40; the test's program and what is no heap come on top
		t.Errorf("H23/%d MiB resident", most>>20)
	}
	if err := ask(busy); err != nil {
		t.Errorf("F20/what was open and in use: %v", err)
	}
	for _, c := range open {
		c.Close()
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if c, err := s.connect(alice); err == nil {
			c.Close()
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("F20/room again, but: %v; %s", err, s.log)
		}
	}
}
