package daemon_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/internal/testpki"
)

const through = `
listeners:
  through:
    listen: 127.0.0.1:0
    protocol: passthrough
    limits: {handshake: 600ms, tunnel_idle: 700ms}
    hosts:
      - {names: [p.test], upstream: one}
      - {names: ["*.p.test"], upstream: two}
      - {names: [down.test], upstream: down}
      - {names: [raw.test], upstream: raw}
upstreams:
  one: {targets: ["tcp://ONE"]}
  two: {targets: ["tcp://TWO"]}
  raw: {targets: ["tcp://BACKEND"]}
  down: {targets: ["tcp://127.0.0.1:1"], timeouts: {connect: 1s}}
`

// throughWorld runs through. Connections to the raw target are handed out.
func throughWorld(t *testing.T) (*world, <-chan *net.TCPConn) {
	w := newWorld(t)
	target := func(name string) *backend {
		cert := w.servers.Server("p.test", testpki.DNS("x.p.test"))
		return echo(t, name, &tls.Config{Certificates: []tls.Certificate{cert.TLS()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.root.Pool()})
	}
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	conns := make(chan *net.TCPConn, 16)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c.(*net.TCPConn)
		}
	}()
	t.Cleanup(func() { l.Close() })
	conf := strings.NewReplacer("ONE", target("one").addr, "TWO", target("two").addr).Replace(through)
	w.start(conf, l.Addr().String())
	return w, conns
}

var pairing sync.Mutex

// pair opens a connection to the raw target through the listener and returns both ends, the ClientHello being read.
func (w *world) pair(t *testing.T, conns <-chan *net.TCPConn) (client, target *net.TCPConn) {
	t.Helper()
	pairing.Lock() // the target's connections come in the order of the clients'
	defer pairing.Unlock()
	client = must(dialFrom(w.addr("through")))(t).(*net.TCPConn)
	t.Cleanup(func() { client.Close() })
	out := records(hello{sni: []byte("raw.test"), versions: []uint16{tls.VersionTLS13}}.message(), 16<<10)
	if _, err := client.Write(out); err != nil {
		t.Fatal(err)
	}
	select {
	case target = <-conns:
	case <-time.After(5 * time.Second):
		t.Fatal("the target was not connected to")
	}
	t.Cleanup(func() { target.Close() })
	for _, c := range []net.Conn{client, target} {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	got := make([]byte, len(out))
	if _, err := io.ReadFull(target, got); err != nil || !bytes.Equal(got, out) {
		t.Fatalf("the target got another ClientHello: % x %v", got, err)
	}
	return client, target
}

func TestPassthrough(t *testing.T) {
	w, _ := throughWorld(t)
	alice := w.ca.Client("alice")
	for _, v := range tlsVersions {
		for sni, want := range map[string]string{"p.test": "one", "x.p.test": "two"} {
			t.Run("A17/"+v.name+"/"+sni, func(t *testing.T) {
				a := w.call("through", pin(w.client(sni, alice), v.id), sni, "/")
				if a.status != 200 || !strings.HasPrefix(a.body, want+" GET") || !strings.Contains(a.body, "peer=alice") {
					t.Errorf("%d %q %v", a.status, a.body, a.err)
				}
				r := w.find(t, "client="+a.client, "kind=tunnel")
				if r["upstream"] != want || r["reason"] != "tunnel_closed" || r["bytes_in"] == float64(0) || r["bytes_out"] == float64(0) || r["client_certificate"] != nil {
					t.Errorf("record: %v", r)
				}
				// The target asks for the certificate, and its own refusal arrives. A request might meet the reset behind it.
				c, err := w.dial("through", pin(w.client(sni, nil), v.id))
				if err == nil {
					_, err = c.Read(make([]byte, 1))
				}
				if (answer{err: err}).alert() == "" {
					t.Errorf("without a certificate: %v", err)
				}
			})
		}
	}
	t.Run("A18/target down", func(t *testing.T) {
		a := w.call("through", w.client("down.test", nil), "down.test", "/")
		if a.err == nil {
			t.Errorf("%d %q", a.status, a.body)
		}
		if r := w.find(t, "client="+a.client, "kind=tunnel"); r["reason"] != "upstream_connect_failed" || r["host"] != "down.test" {
			t.Errorf("record: %v", r)
		}
	})
	good := records(hello{sni: []byte("p.test")}.message(), 16<<10)
	for _, c := range []struct {
		name, out, reason string
		back              string
	}{
		{"not TLS", "\x00\x01\x02\x03\x04\x05\x06\x07", "not_tls", ""},
		{"SSH", "SSH-2.0-OpenSSH_9.9\r\n", "not_tls", ""},
		{"HTTP", "GET / HTTP/1.1\r\nHost: p.test\r\n\r\n", "plain_http_on_tls", ""},
		{"nothing", "", "handshake_aborted", ""},
		{"half a hello", string(good[:50]), "handshake_aborted", ""},
		{"no name", string(records(hello{}.message(), 100)), "sni_missing", "\x15\x03\x01\x00\x02\x02\x70"},
		{"unknown name", string(records(hello{sni: []byte("q.test")}.message(), 100)), "sni_unknown", "\x15\x03\x01\x00\x02\x02\x70"},
		{"65000 bytes", string(records(hello{sni: []byte("q.test"), padding: 65000}.message(), 16<<10)), "sni_unknown", "\x15\x03\x01\x00\x02\x02\x70"},
		{"66000 bytes in records of one", string(records(append([]byte{1, 1, 1, 0xd0}, make([]byte, 66000)...), 1)[:6*66000]), "hello_too_large|hello_malformed", ""},
	} {
		t.Run("A17/"+c.name, func(t *testing.T) {
			conn := must(dialFrom(w.addr("through")))(t)
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			go func() { // a large one may be refused before it is all written
				_, _ = io.WriteString(conn, c.out)
				_ = conn.(*net.TCPConn).CloseWrite()
			}()
			back, err := io.ReadAll(conn)
			if string(back) != c.back && !(c.name == "HTTP") {
				t.Errorf("% x %v", back, err)
			}
			r := w.find(t, "client="+conn.LocalAddr().String(), "kind=handshake")
			if !strings.Contains(c.reason, fmt.Sprint(r["reason"])) {
				t.Errorf("reason %v, expected %s: %v", r["reason"], c.reason, r["detail"])
			}
		})
	}
	for name, out := range map[string][]byte{"silent": nil, "half a hello": good[:len(good)/2], "a record header": good[:5]} {
		t.Run("F01/hello timeout/"+name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			conn := must(dialFrom(w.addr("through")))(t)
			defer conn.Close()
			_ = conn.SetDeadline(start.Add(20 * time.Second))
			_, _ = conn.Write(out)
			if back, err := io.ReadAll(conn); err != nil || len(back) != 0 {
				t.Errorf("% x %v", back, err)
			}
			if d := time.Since(start); d < 400*time.Millisecond || d > 8*time.Second { // by default it is 10 s
				t.Errorf("ended after %v", d)
			}
			w.find(t, "client="+conn.LocalAddr().String(), "reason=hello_timeout")
		})
	}
	t.Run("F01/hello timeout/a byte at a time", func(t *testing.T) {
		t.Parallel()
		conn := must(dialFrom(w.addr("through")))(t)
		defer conn.Close()
		for i := range good {
			if _, err := conn.Write(good[i : i+1]); err != nil {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		w.find(t, "client="+conn.LocalAddr().String(), "reason=hello_timeout")
	})
}

// TestPassthroughEnds: each side's end is passed on, and what nobody uses ends after the idle time, whoever still owes
// bytes.
func TestPassthroughEnds(t *testing.T) {
	w, conns := throughWorld(t)
	over := func(t *testing.T, c net.Conn, want time.Duration) {
		t.Helper()
		start := time.Now()
		if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("still open after %v", time.Since(start))
		}
		if d := time.Since(start); d < want {
			t.Errorf("ended after %v, expected at least %v", d, want)
		}
	}
	t.Run("H08/client ends first", func(t *testing.T) {
		client, target := w.pair(t, conns)
		_, _ = io.WriteString(client, "question")
		_ = client.CloseWrite()
		got, err := io.ReadAll(target)
		if string(got) != "question" || err != nil {
			t.Errorf("%q %v", got, err)
		}
		time.Sleep(400 * time.Millisecond) // less than the idle time
		_, _ = io.WriteString(target, "answer")
		target.Close()
		if got, err := io.ReadAll(client); string(got) != "answer" || err != nil {
			t.Errorf("%q %v", got, err)
		}
		w.find(t, "client="+client.LocalAddr().String(), "reason=tunnel_closed")
	})
	t.Run("H08/target ends first", func(t *testing.T) {
		client, target := w.pair(t, conns)
		_, _ = io.WriteString(target, "banner")
		_ = target.CloseWrite()
		if got, err := io.ReadAll(client); string(got) != "banner" || err != nil {
			t.Errorf("%q %v", got, err)
		}
		_, _ = io.WriteString(client, "more")
		_ = client.CloseWrite()
		if got, err := io.ReadAll(target); string(got) != "more" || err != nil {
			t.Errorf("%q %v", got, err)
		}
		w.find(t, "client="+client.LocalAddr().String(), "reason=tunnel_closed")
	})
	t.Run("H08/large both ways", func(t *testing.T) {
		client, target := w.pair(t, conns)
		big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
		send := func(c *net.TCPConn) { _, _ = c.Write(big); _ = c.CloseWrite() }
		go send(client)
		go send(target)
		result := make(chan error, 2)
		for _, c := range []net.Conn{client, target} {
			go func() {
				got, err := io.ReadAll(c)
				if err == nil && !bytes.Equal(got, big) {
					err = fmt.Errorf("%d bytes, expected %d", len(got), len(big))
				}
				result <- err
			}()
		}
		for range 2 {
			if err := <-result; err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("F02/idle", func(t *testing.T) {
		t.Parallel()
		client, target := w.pair(t, conns)
		go io.Copy(io.Discard, target)
		over(t, client, 500*time.Millisecond)
		w.find(t, "client="+client.LocalAddr().String(), "reason=idle_closed")
	})
	t.Run("F02/one way is not idle", func(t *testing.T) {
		t.Parallel()
		client, target := w.pair(t, conns)
		go io.Copy(io.Discard, client)
		for range 8 {
			time.Sleep(200 * time.Millisecond)
			if _, err := io.WriteString(target, "tick"); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = io.WriteString(client, "still there")
		got := make([]byte, 11)
		if _, err := io.ReadFull(target, got); err != nil || string(got) != "still there" {
			t.Errorf("%q %v", got, err)
		}
	})
	t.Run("F02/client ended, target silent", func(t *testing.T) {
		t.Parallel()
		client, target := w.pair(t, conns)
		_ = client.CloseWrite()
		_, _ = io.Copy(io.Discard, target)
		over(t, client, 500*time.Millisecond)
		w.find(t, "client="+client.LocalAddr().String(), "reason=idle_closed")
	})
	t.Run("F02/target ended, client silent", func(t *testing.T) {
		t.Parallel()
		client, target := w.pair(t, conns)
		_ = target.CloseWrite()
		_, _ = io.Copy(io.Discard, client)
		over(t, target, 500*time.Millisecond)
		w.find(t, "client="+client.LocalAddr().String(), "reason=idle_closed")
	})
	t.Run("F09/client ended and does not read", func(t *testing.T) {
		t.Parallel()
		client, target := w.pair(t, conns)
		_ = client.CloseWrite()
		_ = target.SetWriteDeadline(time.Now().Add(20 * time.Second))
		for err := error(nil); err == nil; { // until somebody gives up
			_, err = target.Write(make([]byte, 64<<10))
			if err != nil && strings.Contains(err.Error(), "timeout") {
				t.Error("the target's connection is stuck")
			}
		}
		w.find(t, "client="+client.LocalAddr().String(), "reason=idle_closed")
	})
	t.Run("F02/half-closed one way is not idle", func(t *testing.T) {
		t.Parallel()
		client, target := w.pair(t, conns)
		_ = client.CloseWrite()
		go func() {
			for range 8 {
				time.Sleep(200 * time.Millisecond)
				_, _ = io.WriteString(target, "tick")
			}
			target.Close()
		}()
		if got, err := io.ReadAll(client); len(got) != 32 || err != nil {
			t.Errorf("%q %v", got, err)
		}
	})
	t.Run("F15/client reset", func(t *testing.T) {
		client, target := w.pair(t, conns)
		_ = client.SetLinger(0)
		client.Close()
		if _, err := io.Copy(io.Discard, target); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Error("the target's connection is still open")
		}
	})
}
