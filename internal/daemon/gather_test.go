package daemon_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// chokes is a connection of which only the first bytes get through, until it is let go.
type chokes struct {
	net.Conn
	room int
	late []byte
}

func (c *chokes) Write(p []byte) (int, error) {
	n := min(len(p), max(c.room, 0))
	c.room -= n
	c.late = append(c.late, p[n:]...)
	if _, err := c.Conn.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// TestGatheredUpload: records of a body that are there go to the target together, and none waits for one that is not.
func TestGatheredUpload(t *testing.T) {
	w := newWorld(t)
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { l.Close() })
	var arrived atomic.Int64
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				buf := make([]byte, 64<<10)
				for {
					n, err := c.Read(buf)
					if arrived.Add(int64(n)); err != nil {
						c.Close()
						return
					}
				}
			}()
		}
	}()
	w.start(routes(l.Addr().String(), "", "", ""), "")
	raw := must(dialFrom(w.addr("public")))(t)
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(30 * time.Second))
	cut := &chokes{Conn: raw, room: 1 << 30}
	conf := w.client("a.test", w.ca.Client("alice"))
	conf.DynamicRecordSizingDisabled = true
	c := tls.Client(cut, conf)
	const record, records = 16 << 10, 8
	if _, err := fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n", records*record); err != nil {
		t.Fatal(err)
	}
	await(t, 10*time.Second, "head at the target", func() bool { return arrived.Load() > 0 })
	cut.room = (records-1)*(record+22) + 5000 // of the last record less than a third
	if _, err := c.Write(make([]byte, records*record)); err != nil {
		t.Fatal(err)
	}
	await(t, 10*time.Second, "whole records at the target", func() bool { return arrived.Load() > (records-1)*record })
	if n := arrived.Load(); n >= records*record {
		t.Errorf("%d bytes have arrived, with a record that was never sent", n)
	}
	if _, err := raw.Write(cut.late); err != nil {
		t.Fatal(err)
	}
	await(t, 10*time.Second, "the rest", func() bool { return arrived.Load() > records*record })
}
