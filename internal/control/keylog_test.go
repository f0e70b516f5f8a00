package control

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"countersign/internal/memnet"
)

// inMemory makes a plane whose socket is in memory, for bubbles, and returns a way to it.
func inMemory(t *testing.T) (p *plane, dial func() net.Conn) {
	l := memnet.Listen("control")
	p = newPlane(t, func(c *Config) {
		c.Listen = func(string) (net.Listener, error) { return l, nil }
		c.Peer = func(net.Conn) (Peer, error) { return Peer{}, nil } // root
	})
	return p, func() net.Conn {
		c, err := l.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
}

func ask(c net.Conn, seconds int) {
	body := fmt.Sprintf(`{"listener":"main","seconds":%d}`, seconds)
	fmt.Fprintf(c, "POST /keylog HTTP/1.1\r\nHost: control\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// TestKeyLogOfWhoStalls: a key log ends when its time is over, and what was not sent is not counted as sent, whatever its
// caller does.
func TestKeyLogOfWhoStalls(t *testing.T) {
	const lines, size = 3 * memnet.Buffer / 1024, 1024
	line := bytes.Repeat([]byte("x"), size)
	// stall opens a key log and fills it until what is sent to the caller, who reads nothing, is stuck.
	stall := func(t *testing.T, seconds int) (p *plane, c net.Conn, w io.Writer) {
		p, dial := inMemory(t)
		c = dial()
		ask(c, seconds)
		synctest.Wait()
		w = p.writer(t)
		for range lines {
			if n, err := w.Write(line); n != size || err != nil {
				t.Fatal(n, err)
			}
		}
		synctest.Wait()
		return p, c, w
	}
	counted := func(t *testing.T, p *plane) {
		t.Helper()
		sent, dropped := labelled(t, p, "sent"), labelled(t, p, "dropped")
		if sent*size > memnet.Buffer || sent+dropped != lines {
			t.Errorf("%v lines sent, %v dropped; expected that no more are sent than the caller's %d bytes hold, and %d in all", sent, dropped, memnet.Buffer, lines)
		}
		if text := fmt.Sprintf("lines=%v dropped=%v", sent, dropped); !strings.Contains(p.log.String(), text) {
			t.Errorf("the log does not say %s: %s", text, p.log)
		}
	}
	t.Run("its time is over", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, c, w := stall(t, 2)
			defer p.Close()
			defer c.Close()
			if p.over() {
				t.Fatal("it has ended before its time")
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if !p.over() {
				t.Error("handshakes go on writing when the time is over")
			}
			_, _ = w.Write(line)
			if q := w.(*queue); q.lines != lines {
				t.Error("a line is taken when the time is over")
			}
			time.Sleep(lastTime)
			synctest.Wait()
			if list := p.Conditions(); len(list) > 0 {
				t.Errorf("the caller keeps it open: %v", list)
			}
			counted(t, p)
			if !strings.Contains(p.log.String(), `because="the time is over"`) {
				t.Error(p.log)
			}
		})
	})
	t.Run("the caller leaves", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, c, _ := stall(t, 600)
			defer p.Close()
			c.Close()
			synctest.Wait()
			if !p.over() || len(p.Conditions()) > 0 {
				t.Error("it outlasts its caller")
			}
			counted(t, p)
			if !strings.Contains(p.log.String(), `because="the caller left"`) {
				t.Error(p.log)
			}
		})
	})
	t.Run("the caller takes nothing more", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, c, _ := stall(t, 600)
			defer p.Close()
			defer c.Close()
			time.Sleep(writeTime)
			synctest.Wait()
			if !p.over() || len(p.Conditions()) > 0 {
				t.Error("it goes on for whoever does not read")
			}
			counted(t, p)
			if !strings.Contains(p.log.String(), `because="the caller does not read"`) {
				t.Error(p.log)
			}
		})
	})
	t.Run("the caller reads late", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, c, _ := stall(t, 2)
			defer p.Close()
			defer c.Close()
			time.Sleep(2*time.Second + lastTime/2)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(resp.Body)
			if want := fmt.Sprintf("# closed: the time is over; %d lines, 0 dropped\n", lines); err != nil || !bytes.HasSuffix(text, []byte(want)) {
				t.Errorf("%v; %d bytes that do not end with %q", err, len(text), want)
			}
			synctest.Wait()
			if sent := labelled(t, p, "sent"); sent != lines {
				t.Errorf("%v lines counted as sent", sent)
			}
		})
	})
}

// labelled is how many lines of key logs there were by outcome.
func labelled(t *testing.T, p *plane, outcome string) float64 {
	t.Helper()
	families, err := p.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "countersign_key_log_lines_total" && m.GetLabel()[0].GetValue() == outcome {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no lines by outcome %s", outcome)
	return 0
}
