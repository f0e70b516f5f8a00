package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// plane is a Server with its surroundings.
type plane struct {
	*Server
	address string
	log     *buffer
	metrics *prometheus.Registry

	mu    sync.Mutex
	w     io.Writer // of the key log that is open
	name  string
	notes []string
	ended int
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// over reports whether a key log has ended.
func (p *plane) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended > 0
}

func newPlane(t *testing.T, change func(*Config)) *plane {
	p := &plane{address: "unix:" + filepath.Join(t.TempDir(), "control.sock"), log: &buffer{}, metrics: prometheus.NewRegistry()}
	c := Config{
		Status: func() *Status {
			return &Status{Version: "v1", Listeners: []Listener{{Name: "main", Protocol: "https", Terminates: true}, {Name: "bytes", Protocol: "tls", Terminates: true},
				{Name: "plain", Protocol: "http"}}}
		},
		LogKeys: func(listener string, w io.Writer) func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.name, p.w = listener, w
			return func() {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.ended++
			}
		},
		Note: func(kind string, texts ...[2]string) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.notes = append(p.notes, fmt.Sprint(kind, texts))
		},
		Listen: listen, Log: slog.New(slog.NewTextHandler(p.log, nil)), Metrics: p.metrics,
	}
	if change != nil {
		change(&c)
	}
	p.Server = New(c)
	if err := p.Bind(p.address); err != nil {
		t.Fatal(err)
	}
	p.Settle(true)
	t.Cleanup(p.Close)
	return p
}

func listen(address string) (net.Listener, error) {
	l, err := net.Listen("unix", strings.TrimPrefix(address, "unix:"))
	if err == nil {
		err = os.Chmod(strings.TrimPrefix(address, "unix:"), 0o600)
	}
	return l, err
}

// writer is where handshakes write to while a key log is open.
func (p *plane) writer(t *testing.T) io.Writer {
	t.Helper()
	var w io.Writer
	await(t, "the key log is open", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		w = p.w
		return w != nil
	})
	return w
}

// shut waits until no key log is open.
func (p *plane) shut(t *testing.T) {
	t.Helper()
	await(t, "the key log is closed", func() bool { return len(p.Conditions()) == 0 })
}

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// call makes one request and returns the status and the error that the answer tells.
func (p *plane) call(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	status, text := p.raw(t, method, path, body)
	var f failure
	if status != http.StatusOK && json.Unmarshal([]byte(text), &f) == nil {
		text = f.Error
	}
	return status, text
}

func (p *plane) raw(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := NewClient(p.address).http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestRefusals(t *testing.T) {
	p := newPlane(t, nil)
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		text                     string
	}{
		{"unknown path", "GET", "/", "", 404, ""},
		{"metrics are elsewhere", "GET", "/metrics", "", 404, ""},
		{"GET of the key log", "GET", "/keylog", "", 405, ""},
		{"POST of the status", "POST", "/status", "{}", 405, ""},
		{"no body", "POST", "/keylog", "", 400, `expected {"listener"`},
		{"not JSON", "POST", "/keylog", "listener=main", 400, `expected {"listener"`},
		{"unknown key", "POST", "/keylog", `{"listener":"main","seconds":1,"file":"/tmp/x"}`, 400, "unknown field"},
		{"two values", "POST", "/keylog", `{"listener":"main","seconds":1}{}`, 400, "found more"},
		{"too much", "POST", "/keylog", `{"listener":"` + strings.Repeat("x", maxBody) + `"}`, 400, "too large"},
		{"no seconds", "POST", "/keylog", `{"listener":"main"}`, 400, "expected 1 to 600, found 0"},
		{"negative", "POST", "/keylog", `{"listener":"main","seconds":-1}`, 400, "expected 1 to 600, found -1"},
		{"too long", "POST", "/keylog", `{"listener":"main","seconds":601}`, 400, "expected 1 to 600, found 601"},
		{"overflow", "POST", "/keylog", `{"listener":"main","seconds":99999999999999999999}`, 400, "cannot unmarshal"},
		{"no listener", "POST", "/keylog", `{"seconds":1}`, 404, `no listener is named ""; expected one of: bytes, main`},
		{"unknown listener", "POST", "/keylog", `{"listener":"mian","seconds":1}`, 404, `no listener is named "mian"; expected one of: bytes, main`},
		{"long listener", "POST", "/keylog", `{"listener":"` + strings.Repeat("x", 3000) + `","seconds":1}`, 404, `xxx..."; expected`},
		{"plain listener", "POST", "/keylog", `{"listener":"plain","seconds":1}`, 400, `listener "plain" speaks http, where no TLS ends`},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, text := p.call(t, c.method, c.path, c.body)
			if status != c.status || !strings.Contains(text, c.text) || len(text) > 500 {
				t.Errorf("%d %q", status, text)
			}
		})
	}
	if p.w != nil || len(p.notes) > 0 || strings.Contains(p.log.String(), "secrets") {
		t.Errorf("something was opened: %v %s", p.notes, p.log)
	}
}

// TestStrangers: whoever is neither the program's user nor root gets nothing, whatever the mode of the socket.
func TestStrangers(t *testing.T) {
	own := uint32(os.Geteuid())
	peer := Peer{UID: own}
	var peerErr error
	var mu sync.Mutex
	p := newPlane(t, func(c *Config) {
		c.Peer = func(net.Conn) (Peer, error) {
			mu.Lock()
			defer mu.Unlock()
			return peer, peerErr
		}
	})
	set := func(who Peer, err error) {
		mu.Lock()
		defer mu.Unlock()
		peer, peerErr = who, err
	}
	for _, path := range []string{"GET /status", "POST /keylog", "GET /nothing"} {
		method, path, _ := strings.Cut(path, " ")
		set(Peer{UID: own + 4711, PID: 99}, nil)
		if status, text := p.call(t, method, path, `{"listener":"main","seconds":1}`); status != 403 || !strings.Contains(text, fmt.Sprintf("found user %d", own+4711)) {
			t.Errorf("another user, %s: %d %q", path, status, text)
		}
		set(Peer{}, errors.New("no such option"))
		if status, text := p.call(t, method, path, `{"listener":"main","seconds":1}`); status != 403 || !strings.Contains(text, "not known who asks: no such option") {
			t.Errorf("somebody, %s: %d %q", path, status, text)
		}
	}
	if !strings.Contains(p.log.String(), fmt.Sprintf("uid %d, pid 99", own+4711)) {
		t.Errorf("the log says nothing of it: %s", p.log)
	}
	for _, uid := range []uint32{own, 0} {
		set(Peer{UID: uid}, nil)
		if status, text := p.call(t, "GET", "/status", ""); status != 200 {
			t.Errorf("user %d: %d %q", uid, status, text)
		}
	}
}

// TestSystemSaysWho: the word of the system is asked for each connection.
func TestSystemSaysWho(t *testing.T) {
	p := newPlane(t, nil)
	if st, err := os.Stat(pathOf(p.address)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	if _, err := peerOf(&net.TCPConn{}); err == nil {
		t.Error("a TCP connection has no user")
	}
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		t.Skip("only root can be somebody else: the other user is not tried")
	}
	// The folder and the socket let everybody in: the check behind them has to hold by itself.
	if err := errors.Join(os.Chmod(filepath.Dir(filepath.Dir(pathOf(p.address))), 0o755), os.Chmod(filepath.Dir(pathOf(p.address)), 0o755), os.Chmod(pathOf(p.address), 0o666)); err != nil {
		t.Fatal(err)
	}
	type result struct {
		answer string
		err    error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with this goroutine, and nobody else gets it
		const nobody = 65534
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			done <- result{err: errno}
			return
		}
		c, err := net.Dial("unix", pathOf(p.address))
		if err != nil {
			done <- result{err: err}
			return
		}
		defer c.Close()
		fmt.Fprint(c, "GET /status HTTP/1.1\r\nHost: control\r\nConnection: close\r\n\r\n")
		text, err := io.ReadAll(c)
		done <- result{string(text), err}
	}()
	if r := <-done; r.err != nil || !strings.HasPrefix(r.answer, "HTTP/1.1 403 ") || !strings.Contains(r.answer, "found user 65534") {
		t.Errorf("%v %q", r.err, r.answer)
	}
	if status, text := p.call(t, "GET", "/status", ""); status != 200 {
		t.Errorf("root: %d %q", status, text)
	}
}

func TestStatus(t *testing.T) {
	p := newPlane(t, nil)
	s, err := NewClient(p.address).Status(t.Context())
	if err != nil || s.Version != "v1" || len(s.Listeners) != 3 || s.Listeners[0].Name != "main" {
		t.Errorf("%+v %v", s, err)
	}
	t.Run("nobody there", func(t *testing.T) {
		p.Close()
		for _, address := range []string{p.address, "unix:/nonexistent/control.sock"} {
			if _, err := NewClient(address).Status(t.Context()); err == nil || !strings.Contains(err.Error(), "is the program running") {
				t.Errorf("%s: %v", address, err)
			}
		}
	})
}

func TestKeyLog(t *testing.T) {
	p := newPlane(t, nil)
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		err := NewClient(p.address).LogKeys(ctx, "main", 600*time.Second, pw)
		pw.CloseWithError(err)
		done <- err
	}()
	lines := bufio.NewReader(pr)
	if line, err := lines.ReadString('\n'); !strings.HasPrefix(line, `# TLS secrets of new connections of listener "main" until 20`) {
		t.Fatalf("%q %v", line, err)
	}
	w := p.writer(t)
	const secret = "CLIENT_RANDOM 00 11\n"
	if n, err := io.WriteString(w, secret); n != len(secret) || err != nil {
		t.Fatal(n, err)
	}
	if line, err := lines.ReadString('\n'); line != secret {
		t.Fatalf("%q %v", line, err)
	}
	t.Run("it is told", func(t *testing.T) {
		list := p.Conditions()
		if len(list) != 1 || list[0].Code != KeyLogOpen || list[0].Since.IsZero() || !strings.Contains(list[0].Text, fmt.Sprintf(`listener "main" are handed out to uid %d, pid %d until`, os.Geteuid(), os.Getpid())) {
			t.Errorf("%v", list)
		}
		if text := p.log.String(); !strings.Contains(text, "level=WARN") || !strings.Contains(text, "TLS secrets are handed out\" listener=main") {
			t.Error(text)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.notes) != 1 || !strings.HasPrefix(p.notes[0], "key_log[[event opened] [listener main] [to uid") || p.name != "main" {
			t.Errorf("%v", p.notes)
		}
		if got := value(t, p.metrics, "countersign_key_log_open"); got != 1 {
			t.Errorf("countersign_key_log_open %v", got)
		}
	})
	t.Run("one at a time", func(t *testing.T) {
		for _, listener := range []string{"main", "bytes"} {
			status, text := p.call(t, "POST", "/keylog", `{"listener":"`+listener+`","seconds":1}`)
			if status != 409 || !strings.Contains(text, `one key log at a time: that of listener "main" is open for uid`) {
				t.Errorf("%d %q", status, text)
			}
		}
		if status, _ := p.call(t, "GET", "/status", ""); status != 200 {
			t.Error("the status is not answered meanwhile")
		}
	})
	t.Run("the caller leaves", func(t *testing.T) {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		p.shut(t)
		if !p.over() {
			t.Error("handshakes go on writing")
		}
		if n, err := io.WriteString(w, secret); n != len(secret) || err != nil || len(w.(*queue).waiting) != 0 {
			t.Error("a handshake that had begun fails, or its line is kept", n, err)
		}
		if text := p.log.String(); !strings.Contains(text, "handed out no more") || !strings.Contains(text, `because="the caller left" lines=1 dropped=0`) {
			t.Error(text)
		}
		if got := value(t, p.metrics, "countersign_key_log_open"); got != 0 {
			t.Errorf("countersign_key_log_open %v", got)
		}
		if got := value(t, p.metrics, "countersign_key_logs_total"); got != 1 {
			t.Errorf("countersign_key_logs_total %v", got)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.notes) != 2 || !strings.Contains(p.notes[1], "[because the caller left] [lines 1] [dropped 0]") {
			t.Errorf("%v", p.notes)
		}
	})
}

// TestKeyLogEnds: by itself when its time is over, with the program, and with its socket.
func TestKeyLogEnds(t *testing.T) {
	for name, c := range map[string]struct {
		seconds int
		end     func(*plane)
		last    string
	}{
		"time":   {3, func(*plane) {}, "# closed: the time is over; 1 lines, 0 dropped\n"},
		"close":  {600, func(p *plane) { p.Close() }, "# closed: the program ends; 1 lines, 0 dropped\n"},
		"reload": {600, func(p *plane) { _ = p.Bind(""); p.Settle(true) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlane(t, nil)
			var out buffer
			done := make(chan error, 1)
			go func() {
				done <- NewClient(p.address).LogKeys(t.Context(), "bytes", time.Duration(c.seconds)*time.Second, &out)
			}()
			w := p.writer(t)
			_, _ = io.WriteString(w, "CLIENT_RANDOM 00 11\n")
			await(t, "the line is there", func() bool { return strings.Contains(out.String(), "CLIENT_RANDOM 00 11\n") })
			c.end(p)
			err := <-done
			p.shut(t)
			_, _ = io.WriteString(w, "CLIENT_RANDOM 22 33\n")
			if strings.Contains(out.String(), "22 33") || len(w.(*queue).waiting) != 0 || !p.over() {
				t.Errorf("later lines are taken: %q", out.String())
			}
			if (err == nil) != (c.last != "") || !strings.HasSuffix(out.String(), c.last) {
				t.Errorf("%v %q", err, out.String())
			}
		})
	}
}

// TestKeyLogOutlastsRequests: the time that a request may take is not that of a key log.
func TestKeyLogOutlastsRequests(t *testing.T) {
	p := newPlane(t, nil)
	if err := p.Bind(p.address + "2"); err != nil {
		t.Fatal(err)
	}
	p.next.server.ReadTimeout, p.next.server.WriteTimeout = time.Second, time.Second
	p.Settle(true)
	var out buffer
	if err := NewClient(p.address+"2").LogKeys(t.Context(), "main", 2*time.Second, &out); err != nil || !strings.HasSuffix(out.String(), "the time is over; 0 lines, 0 dropped\n") {
		t.Errorf("%v %q", err, out.String())
	}
}

// TestKeyLogNeverWaits: a caller that does not read costs lines, and neither memory nor a handshake.
func TestKeyLogNeverWaits(t *testing.T) {
	p := newPlane(t, nil)
	c, err := net.Dial("unix", pathOf(p.address))
	if err != nil {
		t.Fatal(err)
	}
	body := `{"listener":"main","seconds":600}`
	fmt.Fprintf(c, "POST /keylog HTTP/1.1\r\nHost: control\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	w, line := p.writer(t), bytes.Repeat([]byte("x"), 1<<10)
	for range 10 * maxWaiting / len(line) {
		if n, err := w.Write(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	q := w.(*queue)
	q.mu.Lock()
	if q.lines != 10*maxWaiting/len(line) || len(q.waiting) == 0 || len(q.waiting) > maxWaiting {
		t.Errorf("%d lines counted, %d bytes wait", q.lines, len(q.waiting))
	}
	q.mu.Unlock()
	c.Close()
	p.shut(t)
}

// TestBind: a reload that is refused changes nothing.
func TestBind(t *testing.T) {
	p := newPlane(t, nil)
	other := p.address + "2"
	there := func(address string) bool {
		_, err := NewClient(address).Status(t.Context())
		return err == nil
	}
	if err := p.Bind("unix:/nonexistent/folder/control.sock"); err == nil || !strings.Contains(err.Error(), "make its folder") {
		t.Errorf("%v", err)
	}
	p.Settle(false)
	if err := p.Bind(other); err != nil {
		t.Fatal(err)
	}
	p.Settle(false)
	if !there(p.address) || there(other) {
		t.Error("a refused configuration has moved the socket")
	}
	if err := p.Bind(other); err != nil {
		t.Fatal(err)
	}
	p.Settle(true)
	if there(p.address) || !there(other) {
		t.Error("the socket has not moved")
	}
	if err := p.Bind(other); err != nil { // the same again
		t.Fatal(err)
	}
	p.Settle(true)
	if !there(other) {
		t.Error("the same address: gone")
	}
	if err := p.Bind(""); err != nil {
		t.Fatal(err)
	}
	p.Settle(true)
	if there(other) {
		t.Error("no control: still there")
	}
}

// TestPanic: a bug in an answer is counted and ends that answer alone (F16).
func TestPanic(t *testing.T) {
	var n atomic.Int32
	p := newPlane(t, func(c *Config) {
		c.Status = func() *Status { panic("bug") }
		c.Panicked = func() { n.Add(1) }
	})
	if _, err := NewClient(p.address).Status(t.Context()); err == nil {
		t.Error("there was an answer")
	}
	await(t, "it is told", func() bool { return n.Load() == 1 && strings.Contains(p.log.String(), "panic=bug") })
}

// TestFew: more connections than there is room for wait, and the socket can be closed meanwhile.
func TestFew(t *testing.T) {
	p := newPlane(t, nil)
	var all []net.Conn
	for range maxConnections + 4 {
		c, err := net.Dial("unix", pathOf(p.address))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	answered := func(c net.Conn) bool {
		fmt.Fprint(c, "GET /status HTTP/1.1\r\nHost: control\r\n\r\n")
		_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		n, _ := c.Read(make([]byte, 1))
		return n == 1
	}
	if answered(all[len(all)-1]) {
		t.Error("there is no bound")
	}
	for _, c := range all[:8] {
		c.Close()
	}
	await(t, "the last one has its turn", func() bool {
		_ = all[len(all)-1].SetReadDeadline(time.Now().Add(time.Second))
		n, _ := all[len(all)-1].Read(make([]byte, 1))
		return n == 1
	})
	for _, c := range all {
		c.Close()
	}
}

// value is that of a metric without labels.
func value(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
