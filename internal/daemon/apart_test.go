package daemon_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"countersign/internal/daemon"
	"countersign/internal/testpki"
)

// weight is what the program takes.
type weight struct {
	Goroutines, Files int
	Heap              uint64 // in use, after a collection if that was asked for
	Resident, Peak    uint64 // bytes; Peak since the last weighing that asked for a collection
	CPU               time.Duration
}

func (w weight) String() string {
	return fmt.Sprintf("%d goroutines, %d files, heap %.1f MiB, resident %.1f MiB (peak %.1f), CPU %v", w.Goroutines, w.Files,
		mib(w.Heap), mib(w.Resident), mib(w.Peak), w.CPU.Round(time.Millisecond))
}

func mib(n uint64) float64 { return float64(n) / (1 << 20) }

// TestApart is no test: it is the program in a process of its own that can be weighed, for tests of floods and decay.
func TestApart(t *testing.T) {
	conf := os.Getenv("COUNTERSIGN_TEST_APART")
	if conf == "" {
		return // nobody has asked for the program
	}
	records, err := os.OpenFile(filepath.Join(filepath.Dir(conf), "records"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	m, err := daemon.Start(daemon.Options{Config: conf, Records: records, Log: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	control := http.NewServeMux()
	control.HandleFunc("/weigh", func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery == "rest" {
			runtime.GC() // twice, for what pools keep
			debug.FreeOSMemory()
		}
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		w := weight{Goroutines: runtime.NumGoroutine(), Heap: mem.HeapInuse, Resident: status("VmRSS:"), Peak: status("VmHWM:"), CPU: cpu()}
		if files, err := os.ReadDir("/proc/self/fd"); err == nil {
			w.Files = len(files) - 1
		}
		if r.URL.RawQuery == "rest" {
			_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) // the peak begins anew
		}
		_ = json.NewEncoder(rw).Encode(w)
	})
	control.HandleFunc("/reload", func(rw http.ResponseWriter, _ *http.Request) {
		if err := m.Reload(); err != nil {
			http.Error(rw, err.Error(), 500)
		}
	})
	control.HandleFunc("/stacks", func(rw http.ResponseWriter, _ *http.Request) {
		b := make([]byte, 4<<20)
		_, _ = rw.Write(b[:runtime.Stack(b, true)])
	})
	go func() { _ = http.Serve(l, control) }()
	fmt.Printf("\npublic=%s ops=%s control=%s\n", m.Addr("public"), m.Addr("ops"), l.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// status reads one line of /proc/self/status, which is in KiB.
func status(key string) uint64 {
	text, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, key); ok {
			n, _ := strconv.ParseUint(strings.Fields(v)[0], 10, 64)
			return n << 10
		}
	}
	return 0
}

// apart is the program in a process of its own, so that what it takes is not mixed with what its clients take.
type apart struct {
	*world
	public, ops, url string
	log              *lines
	control          *http.Client
	cert             *testpki.Cert
	from, full       *tls.Config // of alice; full makes no session and remembers none
	base             weight
}

// apart starts the program. Its clients are alice's.
func (w *world) apart(conf string) *apart {
	t := w.t
	t.Helper()
	w.file("countersign.yaml", []byte(conf))
	s := &apart{world: w, log: &lines{}, control: &http.Client{Timeout: 30 * time.Second}, cert: w.ca.Client("alice")}
	s.from = w.client("a.test", s.cert, func(c *tls.Config) { c.ClientSessionCache = tls.NewLRUClientSessionCache(8) })
	s.full = w.client("a.test", s.cert)
	cmd := exec.Command(os.Args[0], "-test.run=^TestApart$")
	cmd.Env = append(os.Environ(), "COUNTERSIGN_TEST_APART="+filepath.Join(w.dir, "countersign.yaml"))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = s.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the program ended with %v", err)
		}
		for _, bad := range []string{"DATA RACE", "panic"} {
			if strings.Contains(s.log.String(), bad) {
				t.Errorf("the program's log has %q: %s", bad, s.log)
			}
		}
	})
	for r := bufio.NewScanner(out); s.public == ""; {
		if !r.Scan() {
			t.Fatalf("the program did not start: %s", s.log)
		}
		var control string
		if n, _ := fmt.Sscanf(r.Text(), "public=%s ops=%s control=%s", &s.public, &s.ops, &control); n == 3 {
			s.url = "http://" + control
		}
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	return s
}

func (s *apart) call(path string) ([]byte, error) {
	resp, err := s.control.Get(s.url + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != 200 {
		err = fmt.Errorf("%s", body)
	}
	return body, err
}

// weigh weighs the program; rest collects what is garbage before.
func (s *apart) weigh(t testing.TB, rest bool) (w weight) {
	t.Helper()
	path := "/weigh"
	if rest {
		path += "?rest"
	}
	body, err := s.call(path)
	if err == nil {
		err = json.Unmarshal(body, &w)
	}
	if err != nil {
		t.Fatalf("weighing: %v; %s", err, s.log)
	}
	return w
}

// settled waits until the program is as light as it was, but for a few goroutines and files.
func (s *apart) settled(t testing.TB, patience time.Duration) weight {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		w := s.weigh(t, false)
		if w.Goroutines <= s.base.Goroutines+12 && w.Files <= s.base.Files+8 {
			return w
		}
		if time.Now().After(end) {
			stacks, _ := s.call("/stacks")
			t.Errorf("F15/after %v there are %v; before %v\n%.6000s", patience, w, s.base, stacks)
			return w
		}
	}
}

// records are the lines of the log that have all of the given texts. It waits until there is one.
func (s *apart) records(t testing.TB, has ...string) [][]byte {
	t.Helper()
	for end := time.Now().Add(8 * time.Second); ; time.Sleep(25 * time.Millisecond) {
		text, _ := os.ReadFile(filepath.Join(s.dir, "records"))
		var found, near [][]byte
		for line := range bytes.Lines(text) {
			n := 0
			for _, one := range has {
				if bytes.Contains(line, []byte(one)) {
					n++
				}
			}
			if n == len(has) {
				found = append(found, line)
			} else if n > 0 && len(near) < 5 && bytes.Contains(line, []byte(has[0])) {
				near = append(near, line)
			}
		}
		if len(found) > 0 {
			return found
		}
		if time.Now().After(end) {
			t.Errorf("no record has %q; the first with %q:\n%s", has, has[0], bytes.Join(near, nil))
			return nil
		}
	}
}

// counted reads a metric.
func (s *apart) counted(t testing.TB, line string) int {
	t.Helper()
	resp, err := s.control.Get("http://" + s.ops + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	for l := range strings.Lines(string(body)) {
		if v, ok := strings.CutPrefix(l, line+" "); ok {
			n, _ := strconv.ParseFloat(strings.TrimSpace(v), 64)
			return int(n)
		}
	}
	return 0
}

// dial opens a TLS connection with a protocol. It closes with the test.
func (s *apart) dial(t testing.TB, conf *tls.Config, protocol string) *tls.Conn {
	t.Helper()
	c, err := s.open(conf, protocol)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (s *apart) open(conf *tls.Config, protocol string) (*tls.Conn, error) {
	conf = conf.Clone()
	conf.NextProtos = []string{protocol}
	raw, err := dialFrom(s.public)
	if err != nil {
		return nil, err
	}
	_ = raw.SetDeadline(time.Now().Add(30 * time.Second))
	c := tls.Client(raw, conf)
	if err := c.Handshake(); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// multiplexed opens a connection of HTTP/2 for an honest client.
func (s *apart) multiplexed() (*http.ClientConn, error) {
	c, err := s.open(s.from, "h2")
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Time{})
	return overHTTP2(c)
}

// stage is where the requests of these tests go: the targets, which count.
type stage struct {
	addr     string // HTTP/1.1 and h2c
	mu       sync.Mutex
	asked    map[string]int // by the first part of the path
	under    map[string]int // under way
	most     map[string]int
	patience atomic.Int64 // of /slow, in nanoseconds
}

// newStage starts targets: / answers at once, /big with far more than anybody buffers, /hang never, /slow after a while,
// /read when it has the body, /grpc as gRPC does, and /ws with an echo.
func newStage(t testing.TB) *stage {
	s := &stage{asked: map[string]int{}, under: map[string]int{}, most: map[string]int{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	filler := make([]byte, 64<<10)
	server := &http.Server{Protocols: protocols, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 1000}, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, rest, _ := strings.Cut(r.URL.Path[1:], "/") // the first part of the path chose the upstream
		kind, _, _ := strings.Cut(rest, "/")
		tag := r.URL.Path
		s.mu.Lock()
		s.asked[tag]++
		s.under[kind]++
		s.most[kind] = max(s.most[kind], s.under[kind])
		s.mu.Unlock()
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.under[kind]--
		}()
		switch kind {
		case "big":
			rw.Header().Set("Content-Length", strconv.Itoa(1600*len(filler)))
			for range 1600 {
				if _, err := rw.Write(filler); err != nil {
					return
				}
			}
		case "hang":
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		case "slow":
			time.Sleep(time.Duration(s.patience.Load()))
			fmt.Fprint(rw, "slow")
		case "read":
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprint(rw, n)
		case "grpc":
			rw.Header().Set("Content-Type", "application/grpc")
			rw.Header().Set("Trailer", "Grpc-Status")
			var message [4096]byte
			for {
				n, err := r.Body.Read(message[:])
				if n > 0 {
					_, _ = rw.Write(message[:n])
					rw.(http.Flusher).Flush()
				}
				if err != nil {
					break
				}
			}
			rw.Header().Set("Grpc-Status", "0")
		case "ws":
			c, b, err := http.NewResponseController(rw).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", acceptOf(r.Header.Get("Sec-WebSocket-Key")))
			_, _ = io.Copy(c, b)
		default:
			fmt.Fprint(rw, "ok")
		}
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return s
}

// asked is how often a path was asked for, underway how many requests of a kind are not answered yet.
func (s *stage) count(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[path]
}

func (s *stage) underway(kind string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.under[kind]
}

// deaf is a target that never accepts, so that connections to it take until somebody loses patience.
func deaf(t testing.TB) string {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	for range 4 { // until its queue is full
		if c, err := net.DialTimeout("tcp", addr, 50*time.Millisecond); err == nil {
			t.Cleanup(func() { c.Close() })
		}
	}
	return addr
}

// good are clients that make one request after the other and want each answered, and soon.
type good struct {
	stop chan struct{}
	all  sync.WaitGroup
	mu   sync.Mutex
	took []time.Duration
	errs []error
}

// newGood starts one client of each protocol.
func (s *apart) newGood(t testing.TB, pause time.Duration) *good {
	t.Helper()
	g := &good{stop: make(chan struct{})}
	c := s.dial(t, s.full, "http/1.1")
	_ = c.SetDeadline(time.Time{})
	r := bufio.NewReader(c)
	g.run(pause, func() error {
		status, body, err := roundTrip(c, r, "GET /h1/ok HTTP/1.1\r\nHost: a.test\r\n\r\n")
		if err == nil && (status != 200 || body != "ok") {
			err = fmt.Errorf("%d %q", status, body)
		}
		return err
	})
	cc, err := s.multiplexed()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	for _, path := range []string{"/h1/ok", "/h2/ok"} {
		g.run(pause, func() error {
			status, body, err := get2(cc, path)
			if err == nil && (status != 200 || body != "ok") {
				err = fmt.Errorf("%s: %d %q", path, status, body)
			}
			return err
		})
	}
	t.Cleanup(g.end)
	return g
}

func (g *good) run(pause time.Duration, ask func() error) {
	g.all.Go(func() {
		for tick := time.NewTicker(pause); ; {
			select {
			case <-g.stop:
				return
			case <-tick.C:
			}
			start := time.Now()
			err := ask()
			g.mu.Lock()
			g.took = append(g.took, time.Since(start))
			if err != nil {
				g.errs = append(g.errs, err)
			}
			enough := len(g.errs) > 10
			g.mu.Unlock()
			if enough {
				return
			}
		}
	})
}

func (g *good) end() {
	select {
	case <-g.stop:
	default:
		close(g.stop)
	}
	g.all.Wait()
}

// lately is how the requests since the last call fared.
func (g *good) lately() (n int, p99 time.Duration, errs []error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	took := g.took
	errs = g.errs
	g.took, g.errs = nil, nil
	if len(took) > 0 {
		slices.Sort(took)
		p99 = took[len(took)*99/100]
	}
	return len(took), p99, errs
}

// patienceOf is how slow a good client may become, given how slow it was: this machine may have other things to do.
func patienceOf(before time.Duration) time.Duration { return max(time.Second, 20*before) }

// ask1 makes one request of HTTP/1.1.
func ask1(c net.Conn) error {
	status, body, err := roundTrip(c, bufio.NewReader(c), "GET /h1/ok HTTP/1.1\r\nHost: a.test\r\n\r\n")
	if err == nil && (status != 200 || body != "ok") {
		err = fmt.Errorf("%d %q", status, body)
	}
	return err
}

// get2 makes one request of HTTP/2.
func get2(cc *http.ClientConn, path string) (int, string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "https://a.test"+path, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := cc.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// acceptOf is the answer to a Sec-WebSocket-Key (RFC 6455 section 4.2.2).
func acceptOf(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// tunnel is a WebSocket of an honest client, over either protocol. The echo is told from what was sent.
type tunnel struct {
	io.Reader
	io.Writer
	io.Closer
}

func (s *apart) webSocket(protocol string) (*tunnel, error) {
	if protocol == "http/1.1" {
		c, err := s.open(s.full, protocol)
		if err != nil {
			return nil, err
		}
		_ = c.SetDeadline(time.Time{})
		fmt.Fprint(c, wsRequest("/h1/ws/x"))
		r := bufio.NewReader(c)
		resp, err := http.ReadResponse(r, nil)
		if err == nil && resp.StatusCode != 101 {
			err = fmt.Errorf("status %d", resp.StatusCode)
		}
		return &tunnel{r, c, c}, err
	}
	c, err := s.open(s.from, "h2")
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Time{})
	cc, err := overExtended(c)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	req, err := http.NewRequest("CONNECT", "https://a.test/h1/ws/x", r)
	if err != nil {
		return nil, err
	}
	req.Header[":protocol"] = []string{"websocket"}
	req.Header.Set("Sec-Websocket-Version", "13")
	resp, err := cc.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != 200 {
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	return &tunnel{resp.Body, w, closers{w, c}}, nil
}

type closers []io.Closer

func (all closers) Close() error {
	for _, c := range all {
		_ = c.Close()
	}
	return nil
}

// echo sends a message and wants it back.
func (w *tunnel) echo(message string) error {
	if _, err := io.WriteString(w, message); err != nil {
		return err
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(w, got); err != nil {
		return err
	}
	if string(got) != message {
		return fmt.Errorf("got %q, expected %q", got, message)
	}
	return nil
}
