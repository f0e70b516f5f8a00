package record

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"countersign/internal/reason"
)

// messages is what a syslog server has received.
type messages struct {
	mu   sync.Mutex
	list []string
}

func (m *messages) add(s string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = append(m.list, s)
}

func (m *messages) all() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.list...)
}

// datagrams receives messages that are one packet each.
func datagrams(t *testing.T, c net.PacketConn, m *messages) {
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			m.add(string(buf[:n]))
		}
	}()
}

// octets receives messages with their length before them, strictly as RFC 6587 section 3.4.1 has it.
func octets(c net.Conn, m *messages) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		length, err := r.ReadString(' ')
		if err != nil {
			return
		}
		n, err := strconv.Atoi(length[:len(length)-1])
		if err != nil || n <= 0 || length[0] == '0' {
			m.add("bad length " + length)
			return
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return
		}
		m.add(string(b))
	}
}

// rfc5424 is the grammar of a message, as far as we use it: PRI, VERSION, TIMESTAMP, HOSTNAME, APP-NAME, PROCID, MSGID, no
// STRUCTURED-DATA, and text.
var rfc5424 = regexp.MustCompile(`^<(\d{1,3})>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) ([!-~]{1,255}) countersign (\d+) ([!-~]{1,32}) - ([ -~]+)$`)

func syslogOutput(network, address string) Settings {
	return Settings{Name: "syslog", Place: ToSyslog, Syslog: SyslogSettings{Network: network, Address: address, Facility: 16}}
}

func TestSyslog(t *testing.T) {
	for _, network := range []string{"udp", "tcp", "unixgram", "unix"} {
		t.Run(network, func(t *testing.T) {
			var got messages
			s := syslogOutput(network, filepath.Join(t.TempDir(), "log"))
			switch network {
			case "udp":
				c, err := net.ListenPacket("udp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				datagrams(t, c, &got)
				s.Syslog.Address = c.LocalAddr().String()
			case "unixgram":
				c, err := net.ListenPacket("unixgram", s.Syslog.Address)
				if err != nil {
					t.Fatal(err)
				}
				datagrams(t, c, &got)
				s.Syslog.Network = "unix"
			default:
				if network == "tcp" {
					s.Syslog.Address = "127.0.0.1:0"
				}
				l, err := net.Listen(network, s.Syslog.Address)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { l.Close() })
				s.Syslog.Address = l.Addr().String()
				go func() {
					c, err := l.Accept()
					if err != nil {
						return
					}
					if network == "tcp" {
						octets(c, &got)
						return
					}
					defer c.Close()
					for lines := bufio.NewScanner(c); lines.Scan(); {
						got.add(lines.Text())
					}
				}()
			}
			b := NewBook(io.Discard)
			use(t, b, Streams{}, s)
			l := b.Listener("public")
			for i := range 30 {
				numbered(l, i)
			}
			l.Handshake(&Handshake{Ref: "abcd", Reason: reason.ClientCertExpired, SNI: "\n<0>1 forged\x00"})
			r := Request{Reason: reason.UpstreamTimeout}
			l.Request(&r, "abcd", nil)
			r.Reason = reason.Internal
			l.Request(&r, "abcd", nil)
			eventually(t, "33 messages", func() bool { return len(got.all()) == 33 })
			b.Close()
			pri := map[string]int{}
			for _, text := range got.all() {
				m := rfc5424.FindStringSubmatch(text)
				if m == nil {
					t.Fatalf("not RFC 5424: %q", text)
				}
				if !json.Valid([]byte(m[6])) {
					t.Errorf("not JSON: %q", m[6])
				}
				pri[m[1]+" "+m[5]]++
			}
			// local0 is 16: 134 info, 133 notice (the client), 132 warning (the target), 131 error (we ourselves).
			if pri["134 request"] != 30 || pri["133 connection"] != 1 || pri["132 request"] != 1 || pri["131 request"] != 1 {
				t.Errorf("%v", pri)
			}
		})
	}
}

// TestSyslogComesBack: a server that is not there yet, that ends in the middle, and that is there again: no message is
// broken, none is lost that it had not been given, and nobody waits.
func TestSyslogComesBack(t *testing.T) {
	t.Run("H13/tcp", func(t *testing.T) {
		hold, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := hold.Addr().String()
		hold.Close()
		b := NewBook(io.Discard)
		use(t, b, Streams{}, syslogOutput("tcp", address))
		l := b.Listener("public")
		begin := time.Now()
		for i := range 100 {
			numbered(l, i)
		}
		if took := time.Since(begin); took > 10*time.Second { // there is no server before that
			t.Errorf("100 records took %v", took)
		}
		eventually(t, "an error", func() bool { return testutil.ToFloat64(b.failures.WithLabelValues("syslog")) > 0 })

		var got messages
		serve := func() (net.Listener, chan net.Conn) {
			var s net.Listener
			eventually(t, "the port", func() bool { s, err = net.Listen("tcp", address); return err == nil })
			conns := make(chan net.Conn, 4)
			go func() {
				for {
					c, err := s.Accept()
					if err != nil {
						return
					}
					conns <- c
					go octets(c, &got)
				}
			}()
			return s, conns
		}
		s, conns := serve()
		eventually(t, "what waited", func() bool { return len(got.all()) == 100 })
		failures := testutil.ToFloat64(b.failures.WithLabelValues("syslog"))
		s.Close()
		(<-conns).Close()
		eventually(t, "its end is noticed", func() bool {
			numbered(l, 100)
			return testutil.ToFloat64(b.failures.WithLabelValues("syslog")) > failures+1
		})
		s, _ = serve()
		defer s.Close()
		numbered(l, 101)
		eventually(t, "the last", func() bool {
			all := got.all()
			return strings.Contains(all[len(all)-1], `"/101"`)
		})
		b.Close()
		for _, text := range got.all() {
			if rfc5424.FindStringSubmatch(text) == nil {
				t.Errorf("%q", text)
			}
		}
	})
	t.Run("H13/a server that does not read", func(t *testing.T) {
		s, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		b := NewBook(io.Discard)
		settings := syslogOutput("tcp", s.Addr().String())
		settings.Queue = 64 << 10
		use(t, b, Streams{}, settings)
		(*b.outputs.Load())[0].sink.(*syslog).timeout = time.Minute // far from the second that Close waits
		l := b.Listener("public")
		slow := p99(l, 50000)
		if n := testutil.ToFloat64(b.dropped.WithLabelValues("syslog")); n == 0 || slow > time.Millisecond {
			t.Errorf("p99 %v, %v dropped", slow, n)
		}
		begin := time.Now()
		b.Close()
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("Close took %v", took)
		}
	})
}

// TestSyslogNoticesTheEnd: what is said after a server has closed an idle connection is not lost, although a first write to
// it would succeed.
func TestSyslogNoticesTheEnd(t *testing.T) {
	s, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var got messages
	conns := make(chan net.Conn, 4)
	go func() {
		for {
			c, err := s.Accept()
			if err != nil {
				return
			}
			conns <- c
			go octets(c, &got)
		}
	}()
	b := NewBook(io.Discard)
	defer b.Close()
	use(t, b, Streams{}, syslogOutput("tcp", s.Addr().String()))
	l, o := b.Listener("public"), (*b.outputs.Load())[0]
	for i := range 3 {
		numbered(l, i)
		eventually(t, "the message", func() bool { return len(got.all()) == i+1 })
		(<-conns).Close()
		eventually(t, "its end is noticed", func() bool {
			o.mu.Lock()
			defer o.mu.Unlock()
			return o.spare != nil && o.sink.(*syslog).conn.gone.Load() // the writer is through, and leaves it alone
		})
	}
	if n := testutil.ToFloat64(b.failures.WithLabelValues("syslog")); n != 0 {
		t.Errorf("%v errors", n)
	}
}

// short is a connection that takes a few bytes of each write and fails.
type short struct {
	net.Conn
	room int
	got  bytes.Buffer
}

func (s *short) Write(p []byte) (int, error) {
	n := min(len(p), s.room)
	s.got.Write(p[:n])
	if s.room -= n; n < len(p) {
		return n, syscall.EPIPE
	}
	return n, nil
}

func (s *short) Close() error                     { return nil }
func (s *short) SetWriteDeadline(time.Time) error { return nil }

// TestSyslogPart: a message that was sent in part is sent again, whole; one before it is not.
func TestSyslogPart(t *testing.T) {
	lines := []byte("<134>1 a\n<134>1 b\n<134>1 c\n")
	for room, want := range map[int]int{0: 0, 5: 0, 10: 9, 11: 9, 20: 18, 29: 18} {
		s := newSyslog(SyslogSettings{Network: "tcp"})
		s.conn = &syslogConn{Conn: &short{room: room}, network: "tcp"}
		done, lost, err := s.write(lines)
		if done != want || lost != 0 || err == nil || s.conn != nil {
			t.Errorf("room for %d: %d done, %d lost, %v", room, done, lost, err)
		}
	}
	s := newSyslog(SyslogSettings{Network: "tcp"})
	c := &short{room: 100}
	s.conn = &syslogConn{Conn: c, network: "tcp"}
	if done, _, err := s.write(lines); done != len(lines) || err != nil || c.got.String() != "8 <134>1 a8 <134>1 b8 <134>1 c" {
		t.Errorf("%d %v %q", done, err, c.got.String())
	}
}

// TestSyslogTooLarge: a message that a local socket does not take is given up, and those behind it are not.
func TestSyslogTooLarge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	c, err := net.ListenPacket("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	var got messages
	datagrams(t, c, &got)
	s := newSyslog(SyslogSettings{Network: "unix", Address: path})
	defer s.close()
	lines := []byte("a\n" + strings.Repeat("b", 4<<20) + "\nc\n")
	done, lost, err := s.write(lines)
	if done != len(lines) || lost != 1 || err != nil {
		t.Errorf("%d done, %d lost, %v", done, lost, err)
	}
	eventually(t, "the others", func() bool { return strings.Join(got.all(), "") == "ac" })
	_ = os.Remove(path)
}
