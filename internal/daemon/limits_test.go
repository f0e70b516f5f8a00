package daemon_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// metric reads the value of one line of /metrics.
func (w *world) metric(line string) string {
	w.t.Helper()
	resp, err := http.Get("http://" + w.addr("ops") + "/metrics")
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	for l := range strings.Lines(string(body)) {
		if v, ok := strings.CutPrefix(l, line+" "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func (w *world) awaitMetric(line, want string) {
	w.t.Helper()
	for deadline := time.Now().Add(15 * time.Second); w.metric(line) != want; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("%s is %q, expected %q", line, w.metric(line), want)
		}
	}
}

func TestConnectionLimits(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.start(strings.Replace(basic, "protocol: https", "protocol: https\n    limits: {connections: 2, handshake: 1s, idle: 1s}", 1), b.addr)
	alice := w.client("a.test", w.ca.Client("alice"))

	t.Run("F20/more connections than allowed", func(t *testing.T) {
		var open []net.Conn
		for range 2 {
			c, err := w.dial("public", alice)
			if err != nil {
				t.Fatal(err)
			}
			if status, _, err := roundTrip(c, bufio.NewReader(c), "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"); status != 200 {
				t.Fatal(status, err)
			}
			open = append(open, c)
		}
		if _, err := w.dial("public", alice); err == nil {
			t.Error("a third connection was served")
		}
		w.record("kind=handshake", "reason=connection_limit", "fault=operator")
		for _, c := range open {
			c.Close()
		}
		w.awaitMetric(`countersign_connections{listener="public"}`, "0")
		w.awaitMetric(`countersign_connection_ends_total{listener="public",reason="client_closed"}`, "2")
		if status, _, err := w.get("public", alice, "a.test", "/"); status != 200 {
			t.Errorf("room again, but: %d %v", status, err)
		}
	})
	t.Run("F01/stalled handshake", func(t *testing.T) {
		start := time.Now()
		c, err := net.Dial("tcp", w.addr("public"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(start.Add(20 * time.Second))
		_, _ = io.ReadAll(c)
		if took := time.Since(start); took < time.Second || took > 8*time.Second { // by default it is 10 s
			t.Errorf("ended after %v, expected limits.handshake of 1s", took)
		}
		w.record("kind=handshake", "reason=hello_timeout")
		w.awaitMetric(`countersign_connections{listener="public"}`, "0")

		// After the hello: the client reads our flight and says nothing more.
		c, err = net.Dial("tcp", w.addr("public"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write(records(hello{sni: []byte("a.test")}.message(), 16<<10))
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.ReadAll(c)
		w.record("kind=handshake", "reason=handshake_timeout")
	})
	t.Run("F02/idle between requests", func(t *testing.T) {
		const closed = `countersign_connection_ends_total{listener="public",reason="idle_closed"}`
		before, _ := strconv.Atoi(w.metric(closed))
		start := time.Now()
		c, err := w.dial("public", alice)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%d %v, expected a proper end", n, err)
		}
		if took := time.Since(start); took < time.Second || took > 8*time.Second { // dial would give up after 10 s
			t.Errorf("ended after %v, expected limits.idle of 1s", took)
		}
		w.awaitMetric(closed, strconv.Itoa(before+1)) // it is counted behind the end
	})
}

// TestDrain shows that what is under way may finish and what is idle ends (H08).
func TestDrain(t *testing.T) {
	w := newWorld(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	slow := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(arrived)
			<-release
		}
		fmt.Fprint(rw, "done")
	})}
	go slow.Serve(l)
	t.Cleanup(func() { slow.Close() })
	w.start(basic, l.Addr().String())
	alice := w.client("a.test", w.ca.Client("alice"))
	idle, err := w.dial("public", alice)
	if err != nil {
		t.Fatal(err)
	}
	if status, _, err := roundTrip(idle, bufio.NewReader(idle), "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"); status != 200 {
		t.Fatal(status, err)
	}
	busy, err := w.dial("public", alice)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(busy, "GET /slow HTTP/1.1\r\nHost: a.test\r\n\r\n")
	addr := w.addr("public")
	<-arrived
	done := make(chan struct{})
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		w.main.Shutdown(ctx)
		close(done)
	}()
	t.Run("H08/idle ends, new ones are refused", func(t *testing.T) {
		if n, err := idle.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%d %v", n, err)
		}
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			t.Error("still accepting")
		}
		w.awaitMetric(`countersign_connection_ends_total{listener="public",reason="drained"}`, "1")
	})
	t.Run("H08/busy finishes", func(t *testing.T) {
		close(release)
		resp, err := http.ReadResponse(bufio.NewReader(busy), nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != "done" || !resp.Close {
			t.Errorf("%q, close %v", body, resp.Close)
		}
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			t.Error("the drain does not end")
		}
		w.record("kind=request", "path=/slow", "reason=completed")
	})
}
