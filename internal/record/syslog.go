package record

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"countersign/internal/reason"
)

// SyslogSettings are those of an output that is a syslog server (RFC 5424).
type SyslogSettings struct {
	// Network is unix (a local socket, datagram or stream, as it turns out), udp (RFC 5426) or tcp (RFC 6587, octet
	// counting).
	Network string
	// Address is a path or host:port.
	Address string
	// Facility is the number of RFC 5424 section 6.2.1.
	Facility int
}

// The severities in use.
const (
	severityError   = 3
	severityWarning = 4
	severityNotice  = 5
	severityInfo    = 6
)

// severity is how bad an end is for whoever reads the log of this machine: what clients do wrong is only worth noting.
func severity(why reason.Reason) int {
	if why.Good() {
		return severityInfo
	}
	switch why.Row().Fault {
	case reason.FaultClient:
		return severityNotice
	case reason.FaultSelf:
		return severityError
	}
	return severityWarning
}

// appName is APP-NAME in every message.
const appName = "countersign"

// machine is HOSTNAME and PROCID in every message.
var machine = sync.OnceValues(func() (host, pid string) {
	host, _ = os.Hostname()
	b := []byte(nil)
	for i := range min(len(host), 255) {
		if c := host[i]; c > ' ' && c < 0x7f {
			b = append(b, c)
		}
	}
	if len(b) == 0 {
		b = append(b, '-')
	}
	return string(b), strconv.Itoa(os.Getpid())
})

const syslogTime = "2006-01-02T15:04:05.000000Z07:00"

// header appends what stands before the message: <PRI>1 TIME HOST APP PID MSGID and no structured data.
func (s *SyslogSettings) header(b []byte, now time.Time, severity int, id string) []byte {
	host, pid := machine()
	b = append(b, '<')
	b = strconv.AppendInt(b, int64(s.Facility*8+severity), 10)
	b = append(b, ">1 "...)
	b = now.UTC().AppendFormat(b, syslogTime)
	b = append(b, ' ')
	b = append(b, host...)
	b = append(b, ' ')
	b = append(b, appName...)
	b = append(b, ' ')
	b = append(b, pid...)
	b = append(b, ' ')
	b = append(b, id...)
	return append(b, " - "...)
}

// syslogTimeout bounds a connect and each write.
const syslogTimeout = 5 * time.Second

// maxFrames is how much goes into one write of a stream.
const maxFrames = 64 << 10

// syslog is a sink that is a syslog server.
type syslog struct {
	SyslogSettings
	conn    *syslogConn // nil while there is none
	frames  []byte
	ends    []int // of each message: its end in frames, and in the lines it was made of
	renew   atomic.Bool
	timeout time.Duration
}

type syslogConn struct {
	net.Conn
	network string
	gone    atomic.Bool // the server has closed it
}

func newSyslog(s SyslogSettings) *syslog { return &syslog{SyslogSettings: s, timeout: syslogTimeout} }

// connect opens a connection. Its end is noticed by reading: a first write to a server that has gone succeeds.
func (s *syslog) connect() error {
	networks := []string{s.Network}
	if s.Network == "unix" {
		networks = []string{"unixgram", "unix"}
	}
	var err error
	for _, network := range networks {
		var c net.Conn
		if c, err = net.DialTimeout(network, s.Address, s.timeout); err != nil {
			continue
		}
		s.conn = &syslogConn{Conn: c, network: network}
		if network == "tcp" || network == "unix" {
			go s.conn.listen()
		}
		return nil
	}
	return err
}

func (c *syslogConn) listen() {
	_, _ = io.Copy(io.Discard, c.Conn)
	c.gone.Store(true)
}

func (s *syslog) drop() {
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}

// reopen has the next write connect again: the server behind a name or a path may be another one.
func (s *syslog) reopen() { s.renew.Store(true) }
func (s *syslog) close()  { s.drop() }

func (s *syslog) write(lines []byte) (done, lost int, err error) {
	if s.renew.Swap(false) || s.conn != nil && s.conn.gone.Load() {
		s.drop()
	}
	if s.conn == nil {
		if err := s.connect(); err != nil {
			return 0, 0, err
		}
	}
	_ = s.conn.SetWriteDeadline(time.Now().Add(s.timeout))
	if s.conn.network == "udp" || s.conn.network == "unixgram" {
		done, lost, err = s.datagrams(lines)
	} else {
		done, err = s.stream(lines)
	}
	if err != nil {
		s.drop()
	}
	return done, lost, err
}

// datagrams sends each line as a message. One that is too large for the socket is given up.
func (s *syslog) datagrams(lines []byte) (done, lost int, err error) {
	for done < len(lines) {
		n := bytes.IndexByte(lines[done:], '\n')
		if n < 0 {
			n = len(lines) - done - 1
		}
		if _, err := s.conn.Write(lines[done : done+n]); errors.Is(err, syscall.EMSGSIZE) {
			lost++
		} else if err != nil {
			return done, lost, err
		}
		done += n + 1
	}
	return done, lost, nil
}

// stream sends lines over a connection: with their length before them by tcp (RFC 6587 section 3.4.1), with a line feed
// behind them to a local socket. A message that was sent in part is sent again as a whole, on the next connection.
func (s *syslog) stream(lines []byte) (done int, err error) {
	s.frames, s.ends = s.frames[:0], s.ends[:0]
	for at := 0; at < len(lines) && len(s.frames) < maxFrames; {
		n := bytes.IndexByte(lines[at:], '\n')
		if n < 0 {
			n = len(lines) - at - 1
		}
		if s.conn.network == "tcp" {
			s.frames = strconv.AppendInt(s.frames, int64(n), 10)
			s.frames = append(s.frames, ' ')
			s.frames = append(s.frames, lines[at:at+n]...)
		} else {
			s.frames = append(s.frames, lines[at:at+n+1]...)
		}
		at += n + 1
		s.ends = append(s.ends, len(s.frames), at)
	}
	n, err := s.conn.Write(s.frames)
	for i := 0; i < len(s.ends) && s.ends[i] <= n; i += 2 {
		done = s.ends[i+1]
	}
	return done, err
}
