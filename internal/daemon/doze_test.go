package daemon_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/fips140"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"countersign/internal/testpki"
)

// doze is longer than a connection stays awake for its next request.
const doze = 1500 * time.Millisecond

// parts sends what TLS writes in parts, with a pause between, where it is told to.
type parts struct {
	net.Conn
	cut   int // bytes of the next write that go ahead; 0 for all
	pause time.Duration
}

func (p *parts) Write(b []byte) (int, error) {
	if p.cut == 0 || p.cut >= len(b) {
		return p.Conn.Write(b)
	}
	n, err := p.Conn.Write(b[:p.cut])
	p.cut = 0
	if err != nil {
		return n, err
	}
	time.Sleep(p.pause)
	rest, err := p.Conn.Write(b[n:])
	return n + rest, err
}

// calling is a connection that makes requests, now and then.
type calling struct {
	net.Conn
	r    *bufio.Reader
	wire *parts
}

// calling opens one: in clear if conf is nil.
func (w *world) calling(t *testing.T, listener string, conf *tls.Config) *calling {
	t.Helper()
	c := &calling{wire: &parts{Conn: must(dialFrom(w.addr(listener)))(t)}}
	c.Conn = c.wire
	if conf != nil {
		c.Conn = tls.Client(c.wire, conf)
	}
	c.r = bufio.NewReader(c.Conn)
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	t.Cleanup(func() { c.wire.Close() })
	return c
}

func (c *calling) get(t *testing.T, path string) {
	t.Helper()
	if status, body, err := roundTrip(c, c.r, "GET "+path+" HTTP/1.1\r\nHost: a.test\r\n\r\n"); status != 200 || err != nil {
		t.Fatalf("%s: %d %q, %v", path, status, body, err)
	}
}

// ended waits for the connection's end, and returns how long it took.
func (c *calling) ended(t *testing.T) time.Duration {
	t.Helper()
	start := time.Now()
	if b, err := c.r.ReadByte(); err == nil {
		t.Fatalf("%q, expected an end", b)
	} else if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		t.Fatal("still open")
	}
	return time.Since(start)
}

// asleep waits until some connection dozes: in frontend, of HTTP/1.1, or in h2.
func asleep(t *testing.T, of string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var stacks strings.Builder
		if err := pprof.Lookup("goroutine").WriteTo(&stacks, 1); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(stacks.String(), of+".doze") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no connection dozes")
		}
	}
}

// TestDoze: a connection that has waited for its next request for a while lets go of what it held, and nobody can tell.
func TestDoze(t *testing.T) { dozes(t, *eventLoop) }

// TestEventLoop: neither can anybody tell with the event loop, where such a connection has no goroutine.
func TestEventLoop(t *testing.T) { dozes(t, true) }

func dozes(t *testing.T, eventLoop bool) {
	w := newWorld(t)
	w.eventLoop = eventLoop
	api := echo(t, "api", nil)
	plain := strings.Replace(basic, "upstreams:", "  plain: {listen: 127.0.0.1:0, protocol: http, hosts: [{names: [a.test], routes: [{upstream: api}]}]}\nupstreams:", 1)
	plain = strings.Replace(plain, "protocol: https", "protocol: https\n    limits: {idle: IDLE}", 1)
	w.start(strings.Replace(plain, "IDLE", "1m", 1), api.addr)
	alice := w.ca.Client("alice")
	t.Run("it does", func(t *testing.T) {
		conf := w.client("a.test", alice)
		conf.ClientSessionCache = tls.NewLRUClientSessionCache(1) // or it would ask for no ticket
		c := w.calling(t, "public", conf)
		c.get(t, "/")
		if eventLoop {
			w.awaitMetric("countersign_event_loop_connections", "1")
			layer := "own"
			if fips140.Enabled() { // where it must not be
				layer = "library"
			}
			w.awaitMetric(fmt.Sprintf("countersign_event_loop_handshakes_total{layer=%q}", layer), "1")
		} else {
			asleep(t, "frontend.(*conn)")
		}
		c.get(t, "/")
		time.Sleep(doze)
		c.wire.Close() // asleep, it is heard of too
		w.awaitMetric(`countersign_connections{listener="public"}`, "0")
	})
	t.Run("again", func(t *testing.T) {
		for name, open := range map[string]func(*testing.T, *world) *calling{
			"TLS 1.3": func(t *testing.T, w *world) *calling {
				return w.calling(t, "public", w.client("a.test", w.ca.Client("alice")))
			},
			"TLS 1.2": func(t *testing.T, w *world) *calling {
				return w.calling(t, "public", w.client("a.test", w.ca.Client("alice"), tls12))
			},
			"plain": func(t *testing.T, w *world) *calling { return w.calling(t, "plain", nil) },
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				w.eventLoop = eventLoop
				api := echo(t, "api", nil)
				w.start(strings.Replace(plain, "IDLE", "1m", 1), api.addr)
				c := open(t, w)
				c.get(t, "/first")
				first := fmt.Sprint(api.last())
				time.Sleep(doze)
				c.get(t, "/second")
				c.get(t, "/third")
				if got := fmt.Sprint(api.last()); got != first {
					t.Errorf("the target is told %v; before it was %v", got, first)
				}
				time.Sleep(doze)
				c.wire.cut, c.wire.pause = 3, 300*time.Millisecond // of a TLS record's header, or of the method
				c.get(t, "/fourth")
				c.wire.cut, c.wire.pause = 3, doze // dozes with part of a record in its hands
				c.get(t, "/fifth")
				one, two := w.record("path=/first"), w.record("path=/fifth")
				a, _, _ := strings.Cut(fmt.Sprint(one["ref"]), "-")
				if b, serial, _ := strings.Cut(fmt.Sprint(two["ref"]), "-"); a != b || serial != "5" {
					t.Errorf("references %v and %v, expected 1 and 5 of one connection", one["ref"], two["ref"])
				}
			})
		}
	})
	t.Run("at the moment of falling asleep", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 60 {
			c := w.calling(t, []string{"public", "plain"}[i%2], []*tls.Config{w.client("a.test", alice), nil}[i%2])
			wg.Go(func() {
				for range 4 {
					if status, body, err := roundTrip(c, c.r, "GET /moment HTTP/1.1\r\nHost: a.test\r\n\r\n"); status != 200 || err != nil {
						t.Errorf("%d %q, %v", status, body, err)
						return
					}
					time.Sleep(time.Second + rand.N(500*time.Millisecond))
				}
			})
		}
		wg.Wait()
	})
	t.Run("the time for the next request goes on", func(t *testing.T) {
		w.reload(strings.Replace(plain, "IDLE", "3s", 1), api.addr)
		var wg sync.WaitGroup
		stood(time.Now())
		for _, trickle := range []bool{false, true} {
			c := w.calling(t, "public", w.client("a.test", alice))
			start := time.Now()
			c.get(t, "/")
			wg.Go(func() {
				if trickle {
					time.Sleep(2 * time.Second)
					_, _ = c.wire.Write([]byte{23, 3, 3}) // the beginning of a record
				}
				c.ended(t)
				if d := time.Since(start); d < 2900*time.Millisecond || d > 4500*time.Millisecond+stood(start) {
					t.Errorf("trickle %v: ended after %v, expected 3 s and a little", trickle, d)
				}
			})
		}
		wg.Wait()
	})
	t.Run("another policy", func(t *testing.T) {
		w.reload(strings.Replace(plain, "IDLE", "1m", 1), api.addr)
		c := w.calling(t, "public", w.client("a.test", alice))
		c.get(t, "/")
		time.Sleep(doze)
		w.reload(strings.Replace(strings.Replace(plain, "IDLE", "1m", 1), "routes: [{upstream: api}]",
			`routes: [{upstream: api, allow: 'client.common_name == "bob"'}]`, 1), api.addr)
		status, _, err := roundTrip(c, c.r, "GET /denied HTTP/1.1\r\nHost: a.test\r\n\r\n")
		if status != 403 || err != nil {
			t.Error(status, err)
		}
	})
	t.Run("revoked", func(t *testing.T) {
		w.reload(strings.Replace(plain, "IDLE", "1m", 1), api.addr)
		carol := w.ca.Client("carol")
		c := w.calling(t, "public", w.client("a.test", carol))
		other := w.calling(t, "public", w.client("a.test", alice))
		c.get(t, "/")
		other.get(t, "/")
		time.Sleep(doze)
		w.file("clients.crl", w.ca.CRL(carol, testpki.Number(2)))
		w.reload(strings.Replace(plain, "IDLE", "1m", 1), api.addr)
		if d := c.ended(t); d > 15*time.Second {
			t.Error("ended after", d)
		}
		w.record("reason=client_no_longer_trusted")
		other.get(t, "/")
	})
	t.Run("drain", func(t *testing.T) {
		c := w.calling(t, "public", w.client("a.test", alice))
		c.get(t, "/")
		time.Sleep(doze)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		start := time.Now()
		w.main.Shutdown(ctx)
		if d := time.Since(start); d > 10*time.Second {
			t.Error("took", d)
		}
		if rest, err := io.ReadAll(c.r); len(rest) > 0 || err != nil {
			t.Errorf("%q, %v; expected a proper end", rest, err)
		}
	})
}

// TestDozeHTTP2 is TestDoze for connections of HTTP/2.
func TestDozeHTTP2(t *testing.T) {
	w := newWorld(t)
	api := echo(t, "api", nil)
	conf := strings.Replace(basic, "protocol: https", "protocol: https\n    limits: {idle: 1m}", 1)
	w.start(conf, api.addr)
	open := func(t *testing.T, conf *tls.Config) *h2Client {
		t.Helper()
		c := w.h2(t, conf)
		_ = c.conn.SetDeadline(time.Time{}) // what ends it is to be the server
		return c
	}
	get := func(t *testing.T, c *h2Client, path string) {
		t.Helper()
		if status, body, _, err := c.do("GET", "a.test", path, nil); status != 200 || err != nil {
			t.Fatalf("%s: %d %q, %v", path, status, body, err)
		}
	}
	gone := func(t *testing.T, c *h2Client, within time.Duration) {
		t.Helper()
		for start := time.Now(); c.Err() == nil; time.Sleep(10 * time.Millisecond) {
			if time.Since(start) > within {
				t.Fatal("the connection goes on")
			}
		}
	}
	alice := w.client("a.test", w.ca.Client("alice"))
	t.Run("it does", func(t *testing.T) {
		c := open(t, alice)
		get(t, c, "/first")
		first := fmt.Sprint(api.last())
		for range 2 {
			asleep(t, "h2.(*Conn)")
			get(t, c, "/again")
		}
		get(t, c, "/first")
		if got := fmt.Sprint(api.last()); got != first {
			t.Errorf("the target is told %v; before it was %v", got, first)
		}
		one, two := w.record("path=/first"), w.record("path=/again")
		a, _, _ := strings.Cut(fmt.Sprint(one["ref"]), "-")
		if b, _, _ := strings.Cut(fmt.Sprint(two["ref"]), "-"); a != b {
			t.Errorf("references %v and %v, expected those of one connection", one["ref"], two["ref"])
		}
	})
	t.Run("at the moment of falling asleep", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 40 {
			c := open(t, alice)
			wg.Go(func() {
				for range 4 {
					if status, body, _, err := c.do("GET", "a.test", "/moment", nil); status != 200 || err != nil {
						t.Errorf("%d %q, %v", status, body, err)
						return
					}
					time.Sleep(time.Second + rand.N(500*time.Millisecond))
				}
			})
		}
		wg.Wait()
	})
	t.Run("revoked", func(t *testing.T) {
		carol := w.ca.Client("carol")
		c, other := open(t, w.client("a.test", carol)), open(t, alice)
		get(t, c, "/")
		get(t, other, "/")
		time.Sleep(doze)
		w.file("clients.crl", w.ca.CRL(carol, testpki.Number(2)))
		w.reload(conf, api.addr)
		gone(t, c, 20*time.Second)
		w.record("reason=client_no_longer_trusted")
		get(t, other, "/")
	})
	t.Run("idle for too long", func(t *testing.T) {
		w.reload(strings.Replace(conf, "idle: 1m", "idle: 3s", 1), api.addr)
		c := open(t, alice)
		start := time.Now()
		get(t, c, "/")
		gone(t, c, 20*time.Second)
		if d := time.Since(start); d < 2700*time.Millisecond { // the clock stands still for up to 250 ms
			t.Errorf("ended after %v, expected 3 s", d)
		}
	})
	t.Run("F02/a head that stops", func(t *testing.T) {
		w.reload(strings.Replace(conf, "idle: 1m", "idle: 1m, header: 6s", 1), api.addr)
		over := alice.Clone()
		over.NextProtos = []string{"h2"}
		c := must(w.dial("public", over))(t)
		_ = c.SetDeadline(time.Now().Add(40 * time.Second))
		var out bytes.Buffer
		fr := http2.NewFramer(&out, nil)
		out.WriteString(http2.ClientPreface)
		must(0, fr.WriteSettings())(t)
		start := out.Len()
		must(0, fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true, BlockFragment: make([]byte, 100)}))(t)
		began := time.Now()
		must(c.Write(out.Bytes()[:start+30]))(t)
		_, _ = io.Copy(io.Discard, c)
		w.find(t, "client="+c.LocalAddr().String(), "kind=ended", "reason=header_timeout")
		if d := time.Since(began); d < 5700*time.Millisecond {
			t.Errorf("ended after %v, expected 6 s", d)
		}
		w.reload(conf, api.addr)
	})
	t.Run("drain", func(t *testing.T) {
		c := open(t, alice)
		get(t, c, "/")
		asleep(t, "h2.(*Conn)")
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		start := time.Now()
		w.main.Shutdown(ctx)
		if d := time.Since(start); d > 10*time.Second {
			t.Error("took", d)
		}
		gone(t, c, 10*time.Second)
	})
}
