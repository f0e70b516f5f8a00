package daemon_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func killer(t *testing.T, conf *tls.Config, rst bool) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				var c net.Conn = raw
				if conf != nil {
					c = tls.Server(raw, conf)
				}
				r := bufio.NewReader(c)
				_, _ = r.ReadString('\n')
				c.Write([]byte("abc"))
				time.Sleep(200 * time.Millisecond)
				if rst {
					raw.(*net.TCPConn).SetLinger(0)
				}
				raw.Close() // no close_notify
			}()
		}
	}()
	return l.Addr().String()
}

// E21: bytes that end in the middle must not look complete to who reads them: a reset of one side is one of the other, and
// TLS that ends without saying so has not ended.
func TestTruncatedBytes(t *testing.T) {
	w := newWorld(t)
	edge := w.servers.Client("edge")
	w.file("edge.pem", edge.PEM())
	w.file("edge.key", edge.KeyPEM())
	mutual := &tls.Config{Certificates: []tls.Certificate{w.server.TLS()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.servers.Pool()}
	web := echo(t, "web", mutual)
	conf := strings.NewReplacer("MUTUALHTTP", web.addr, "MUTUAL", killer(t, mutual, false), "SOCKET", filepath.Join(w.dir, "legacy.sock"),
		"lifetime: 1s", "lifetime: 100s").Replace(bytesConfig)
	w.start(conf, killer(t, nil, true))
	for listener, what := range map[string]string{"raw": "a target that resets", "lend": "a TLS target that ends without close_notify"} {
		t.Run("E21/"+what, func(t *testing.T) {
			c := must(net.Dial("tcp", w.addr(listener)))(t)
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			fmt.Fprint(c, "hi\n")
			if b, err := io.ReadAll(c); err == nil {
				t.Errorf("%q and a clean end", b)
			}
		})
	}
	t.Run("E21/a client that ends without close_notify", func(t *testing.T) {
		const half = "half of the order"
		arrived, got := make(chan struct{}), make(chan error, 1)
		l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
		defer l.Close()
		go func() {
			c, err := l.Accept()
			if err == nil {
				_, err = io.ReadFull(c, make([]byte, len(half)))
			}
			if err == nil {
				close(arrived)
				_, err = io.ReadAll(c)
			}
			got <- err
		}()
		w.reload(conf, l.Addr().String())
		raw := must(net.Dial("tcp", w.addr("secure")))(t)
		c := tls.Client(raw, w.client("a.test", w.ca.Client("alice")))
		fmt.Fprint(c, half)
		select {
		case <-arrived:
		case err := <-got:
			t.Fatalf("what the client sent did not arrive: %v", err)
		}
		raw.Close()
		if err := <-got; err == nil {
			t.Error("the target saw a clean end")
		}
	})
}
