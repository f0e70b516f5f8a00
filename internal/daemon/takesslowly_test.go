package daemon_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"countersign/internal/daemon"
)

// TestTargetTakesSlowly: a target that is slow to take a request gets it whole, and the time for its answer begins then.
func TestTargetTakesSlowly(t *testing.T) {
	w := newWorld(t)
	const pause = 1600 * time.Millisecond
	over := make(chan struct{})
	small := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 1) })
	}}
	l := must(small.Listen(t.Context(), "tcp", "127.0.0.1:0"))(t)
	target := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/never" {
			<-over
		}
		fmt.Fprint(rw, len(r.Header.Get("X-Long")))
	}))
	target.Listener.Close()
	target.Listener = lazy{l, pause}
	target.Start()
	defer target.Close()
	defer close(over)
	w.startWith(clearOf("", "", `targets: ["http://BACKEND"], timeouts: {response: 1s}`),
		l.Addr().String(), func(o *daemon.Options) {
			o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				c, err := new(net.Dialer).DialContext(ctx, network, address)
				if err == nil {
					err = c.(*net.TCPConn).SetWriteBuffer(1)
				}
				return c, err
			}
		})
	long := strings.Repeat("x", 30000)
	for path, status := range map[string]int{"/": 200, "/never": 504} {
		c, r := w.connect(t, "plain")
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: a.test\r\nX-Long: "+long+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		got, err := readReply(r, "GET")
		if err != nil || got.StatusCode != status || status == 200 && got.body != "30000" {
			t.Errorf("%s: %v, %v; expected status %d", path, got, err, status)
		}
	}
}

// lazy is a listener whose connections are read from after a while.
type lazy struct {
	net.Listener
	pause time.Duration
}

func (l lazy) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		time.Sleep(l.pause)
	}
	return c, err
}
