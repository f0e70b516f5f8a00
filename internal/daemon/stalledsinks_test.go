package daemon_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign/internal/daemon"
	"countersign/internal/journal"
	"countersign/internal/store"
	"countersign/internal/testpki"
)

// stalledSinks has every kind of sink that can stand still: standard output, standard error, a syslog that is connected to, and the
// journal. A file cannot: it takes what it is given, or fails.
const stalledSinks = `
state: kept
ops: {listen: 127.0.0.1:0}
log:
  outputs:
    - {to: stdout, queue: 64KiB}
    - {to: stderr, requests: refused, queue: 64KiB}
    - {to: syslog, address: "unix:SOCKET", queue: 64KiB}
trust_stores: {clients: {ca_bundle: {file: clients.pem}}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes:
          - {match: {path: /denied/*}, allow: 'client.common_name == "nobody"', upstream: api}
          - {upstream: api}
upstreams: {api: {targets: ["http://BACKEND"]}}
`

// TestStalledSinks: with every log and the journal stalled all clients get the answers that they get without, what is lost
// is counted, no more is kept in memory than there is room for, and the program ends all the same.
func TestStalledSinks(t *testing.T) {
	w, b := newWorld(t), echo(t, "api", nil)
	alice, mallory := w.client("a.test", w.ca.Client("alice")), w.client("a.test", testpki.New(t).Client("mallory"))
	dir, err := os.MkdirTemp("", "sinks") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	syslog, err := net.Listen("unix", filepath.Join(dir, "syslog"))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var held []net.Conn // by a reader that does not read
	go func() {
		for {
			c, err := syslog.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			held = append(held, c)
			mu.Unlock()
		}
	}()
	stdout, stderr := stuffed(t), stuffed(t)
	w.startWith(strings.ReplaceAll(stalledSinks, "SOCKET", syslog.Addr().String()), b.addr, func(o *daemon.Options) { o.Records, o.Log = stdout, stderr })

	// The journal is locked when it is there, with one entry.
	if a := w.call("public", mallory, "a.test", "/"); a.alert() != "bad certificate" {
		t.Fatalf("a stranger: %d %v", a.status, a.err)
	}
	w.awaitMetric("countersign_journal_records_total", "1")
	file := filepath.Join(w.dir, "kept", "journal.db")
	other, err := sql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(20000)")
	if err != nil {
		t.Fatal(err)
	}
	lock, err := other.Conn(context.Background())
	if err == nil {
		_, err = lock.ExecContext(context.Background(), "BEGIN EXCLUSIVE")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // behind the end of the program, whatever becomes of the test
		lock.Close()
		other.Close()
		released(t, file)
		syslog.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range held {
			c.Close()
		}
	})
	t.Cleanup(w.stop)
	before := runtime.NumGoroutine()

	const handshakes, strangers, each = 500, 5, 5 // every fifth is a stranger's; the last request of each connection is denied
	path := strings.Repeat("x", 400)
	visit := func(n int) error {
		if n%strangers == 0 {
			if a := w.call("public", mallory, "a.test", "/"+path); a.alert() != "bad certificate" {
				return fmt.Errorf("stranger %d: status %d, %v", n, a.status, a.err)
			}
			return nil
		}
		c, err := w.dial("public", alice)
		if err != nil {
			return fmt.Errorf("client %d: %w", n, err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		r := bufio.NewReader(c)
		for k := range each {
			at, want, text := fmt.Sprintf("/%s/%d", path, n), 200, fmt.Sprintf("/%d host=a.test", n)
			if k == each-1 {
				at, want, text = "/denied/"+path, 403, "policy_denied"
			}
			if status, body, err := roundTrip(c, r, "GET "+at+" HTTP/1.1\r\nHost: a.test\r\n\r\n"); status != want || !strings.Contains(body, text) {
				return fmt.Errorf("client %d, request %d: status %d, %.200q, %v; expected %d", n, k, status, body, err, want)
			}
		}
		return nil
	}
	var next atomic.Int64
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for n := next.Add(1) - 1; n < handshakes; n = next.Add(1) - 1 {
				if err := visit(int(n)); err != nil {
					t.Error(err)
					return // the others would wait as long
				}
			}
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	const good = handshakes - handshakes/strangers
	for series, want := range map[string]int{
		`countersign_handshakes_total{listener="public",reason="completed"}`:             good,
		`countersign_handshakes_total{listener="public",reason="client_cert_untrusted"}`: handshakes/strangers + 1,
		`countersign_requests_total{listener="public",reason="completed"}`:               good * (each - 1),
		`countersign_requests_total{listener="public",reason="policy_denied"}`:           good,
	} {
		w.awaitMetric(series, strconv.Itoa(want))
	}
	if n := b.seen(); n != good*(each-1) {
		t.Errorf("the target saw %d requests, expected %d: none of those that were denied", n, good*(each-1))
	}
	w.awaitMetric(`countersign_connections{listener="public"}`, "0")

	t.Run("H12/what is lost is counted", func(t *testing.T) {
		sinks := []string{`countersign_log_dropped_total{output="stdout"}`, `countersign_log_dropped_total{output="stderr"}`,
			`countersign_log_dropped_total{output="syslog:unix:` + syslog.Addr().String() + `"}`, "countersign_journal_dropped_total"}
		for n, end := 1, time.Now().Add(60*time.Second); ; n++ {
			now, missing := w.scrape(t), ""
			for _, s := range sinks {
				if v, err := strconv.ParseFloat(now[s], 64); err != nil || v == 0 {
					missing += " " + s
				}
			}
			if missing == "" {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("nothing was lost by%s", missing)
			}
			for range 4 { // a syslog that is connected to again takes what a socket holds
				if err := visit(n); err != nil {
					t.Fatal(err)
				}
			}
		}
		if n := w.metric("countersign_journal_records_total"); n != "1" {
			t.Errorf("the journal counts %s records, though another process has it locked", n)
		}
		if list := w.keptIn(t, journal.Query{}); len(list) != 1 {
			t.Errorf("%d entries are in the journal", len(list))
		}
	})
	t.Run("H13/what waits is bounded", func(t *testing.T) {
		outputs := 0
		for series, value := range w.scrape(t) {
			if !strings.HasPrefix(series, "countersign_log_queue_bytes{") {
				continue
			}
			outputs++
			// A line that finds room is taken whole.
			if n, err := strconv.ParseFloat(value, 64); err != nil || n > 64<<10+8<<10 {
				t.Errorf("%s is %s, expected 64 KiB and a line at most", series, value)
			}
		}
		if outputs != 3 {
			t.Errorf("%d outputs have a queue, expected 3", outputs)
		}
		await(t, 30*time.Second, "the end of what a record left behind", func() bool { return runtime.NumGoroutine() <= before+10 })
	})
	t.Run("H13/the end", func(t *testing.T) {
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			w.main.Shutdown(ctx)
		}()
		select {
		case <-ended:
		case <-time.After(45 * time.Second): // it may take a second for connections, three for the journal, one for each log
			t.Fatal("the program does not end while its sinks stand still")
		}
	})
}

// stuffed is a pipe that is full and that nobody reads before the test is over.
func stuffed(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close() // ends who is writing
		w.Close()
	})
	_ = w.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	for page := make([]byte, 4096); err == nil; {
		_, err = w.Write(page)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	_ = w.SetWriteDeadline(time.Time{})
	return w
}

// released waits until nobody has a file of package store open.
func released(t *testing.T, file string) {
	t.Helper()
	await(t, 30*time.Second, "the journal's file is let go", func() bool {
		db, err := store.Open(context.Background(), store.Options{Path: file})
		if err == nil {
			db.Close()
		}
		return !errors.Is(err, store.ErrInUse)
	})
}
