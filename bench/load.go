package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// patience is how long one step of a load may take; a target that is slower has failed.
const patience = 20 * time.Second

// lasting is how long a connection that a load keeps may last: longer than any round, so that a target that answers no
// more ends the round and not the night.
const lasting = 90 * time.Second

// sample is what one cell, a target in one round of a workload, gave.
type sample struct {
	CPU  float64 // microseconds of CPU per unit
	Rate float64 // units per second of wall time
	Util float64 // share of the wall time in which the target used a core
	P50  float64 // milliseconds of one step, where a step is one unit
	P99  float64
	// H50 and H99 are those of handshakes, where steps are something else.
	H50, H99 float64
	// Rest is the part of CPU that was used behind the cell.
	Rest float64
	// units were done when the cell ended; the clock of the target's processes pids was at clock when all was closed.
	units float64
	pids  []int
	clock time.Duration
	ended time.Time
}

// rest waits until the target has had so much time since the cell ended, and counts what it has done since all was closed,
// such as collecting garbage, with what it did in the cell.
func (s *sample) rest(ctx context.Context, d time.Duration) error {
	if err := sleep(ctx, time.Until(s.ended.Add(d))); err != nil {
		return err
	}
	now, err := cpuTime(s.pids)
	if err != nil {
		return err
	}
	more := float64((now - s.clock).Nanoseconds()) / 1e3 / s.units
	s.CPU, s.Rest, s.clock = s.CPU+more, s.Rest+more, now
	return nil
}

// step does some work and writes down what it has done.
type step func(t *tally) error

// tally is what one worker has done. A unit that has a beginning and an end has a time; a part of a stream of bytes has
// none.
type tally struct {
	units float64
	took  []time.Duration
}

// one is a unit that is done, begun at a time.
func (t *tally) one(began time.Time) {
	t.units++
	t.timed(began)
}

// timed notes the time of what is a unit, or a part of one.
func (t *tally) timed(began time.Time) {
	if len(t.took) < 100_000 {
		t.took = append(t.took, time.Since(began))
	}
}

// moved counts bytes; a unit is a MB (10^6 bytes).
func (t *tally) moved(n int) { t.units += float64(n) / 1e6 }

// opener sets up what worker k uses and returns its step and its end.
type opener func(k int) (step, func(), error)

// drive lets workers step for a while and reads the target's CPU clock around it. Opening and closing are not counted,
// the last step of each worker is. ready, if not nil, is called between opening and the first step.
func drive(ctx context.Context, i *instance, workers int, d time.Duration, open opener, ready func() error) (sample, error) {
	steps, ends := make([]step, workers), make([]func(), 0, workers)
	end := func() {
		for _, end := range ends {
			end()
		}
		ends = nil
	}
	defer func() { end() }()
	opening := time.Now()
	for k := range steps {
		s, end, err := open(k)
		if err != nil {
			return sample{}, err
		}
		steps[k], ends = s, append(ends, end)
	}
	// What opening has left to do, such as collecting garbage, is no part of the work.
	settle := min(time.Since(opening)/10, time.Second)
	if err := sleep(ctx, settle); err != nil {
		return sample{}, err
	}
	if ready != nil {
		if err := ready(); err != nil {
			return sample{}, err
		}
	}
	pids := tree(i.proc.pid)
	var stop atomic.Bool
	var wg sync.WaitGroup
	errs, tallies := make([]error, workers), make([]*tally, workers)
	for k := range tallies {
		tallies[k] = &tally{}
	}
	cpu, err := cpuTime(pids)
	if err != nil {
		return sample{}, errors.Join(err, i.alive())
	}
	begin := time.Now()
	for k, s := range steps {
		wg.Go(func() {
			for !stop.Load() {
				if errs[k] = s(tallies[k]); errs[k] != nil {
					return
				}
			}
		})
	}
	err = sleep(ctx, d)
	stop.Store(true)
	wg.Wait()
	wall := time.Since(begin)
	after, cpuErr := cpuTime(pids)
	if err := errors.Join(append(errs, err, cpuErr)...); err != nil {
		return sample{}, errors.Join(firstLine(err), i.alive())
	}
	sum, all := 0.0, []time.Duration(nil)
	for _, t := range tallies {
		sum, all = sum+t.units, append(all, t.took...)
	}
	if sum == 0 {
		return sample{}, fmt.Errorf("nothing was done in %v", wall)
	}
	s := sample{CPU: float64((after - cpu).Nanoseconds()) / 1e3 / sum, Rate: sum / wall.Seconds(), Util: (after - cpu).Seconds() / wall.Seconds(),
		units: sum, pids: pids, ended: begin.Add(wall)}
	slices.Sort(all)
	s.P50, s.P99 = percentile(all, 50), percentile(all, 99)
	end()
	if err := sleep(ctx, settle+20*time.Millisecond); err != nil { // until the target has closed all, too
		return sample{}, err
	}
	if s.clock, err = cpuTime(pids); err != nil {
		return sample{}, errors.Join(err, i.alive())
	}
	return s, nil
}

func firstLine(err error) error {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return errors.New(line)
}

// call says how a client calls.
type call struct {
	addr, name string
	cert       *tls.Certificate
	max        uint16
	groups     []tls.CurveID
	suites     []uint16 // of TLS 1.2; crypto/tls orders them itself
	sessions   tls.ClientSessionCache
	alpn       []string
}

// config is the client's. It shows its certificate whatever CA names the server sent, and does not verify the server,
// which would be work of the load only.
func (c call) config() *tls.Config {
	conf := &tls.Config{InsecureSkipVerify: true, ServerName: c.name, MaxVersion: c.max, CurvePreferences: c.groups, ClientSessionCache: c.sessions,
		NextProtos: c.alpn, CipherSuites: c.suites,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if c.cert == nil {
				return &tls.Certificate{}, nil
			}
			return c.cert, nil
		}}
	if conf.CurvePreferences == nil {
		conf.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256} // TLS 1.2 wants the curve of ECDSA certificates too
	}
	if conf.ServerName == "" {
		conf.ServerName = host
	}
	return conf
}

func dial(addr string, conf *tls.Config) (*tls.Conn, error) {
	raw, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	_ = raw.SetDeadline(time.Now().Add(patience))
	c := tls.Client(raw, conf)
	if err := c.Handshake(); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

func get(path string) []byte { return getFrom(host, path) }

func getFrom(name, path string) []byte {
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\nAccept-Encoding: gzip\r\n\r\n", path, name)
}

// exchange sends a request and reads the whole answer: its head and its body.
func exchange(c net.Conn, request, buf []byte) (head, body []byte, err error) {
	if _, err := c.Write(request); err != nil {
		return nil, nil, err
	}
	return answer(c, buf)
}

// answer reads one, whole.
func answer(c net.Conn, buf []byte) (head, body []byte, err error) {
	n := 0
	for {
		m, err := c.Read(buf[n:])
		n += m
		if end := bytes.Index(buf[:n], []byte("\r\n\r\n")); end >= 0 {
			length, err := contentLength(buf[:end])
			if err != nil {
				return nil, nil, err
			}
			if end+4+length > len(buf) {
				return nil, nil, fmt.Errorf("an answer of %d bytes; expected at most %d", end+4+length, len(buf))
			}
			if n < end+4+length {
				if _, err := io.ReadFull(c, buf[n:end+4+length]); err != nil {
					return nil, nil, err
				}
			}
			return buf[:end], buf[end+4 : end+4+length], nil
		}
		if err != nil {
			return nil, nil, err
		}
		if n == len(buf) {
			return nil, nil, fmt.Errorf("a head of more than %d bytes", n)
		}
	}
}

func contentLength(head []byte) (int, error) {
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		if name, value, ok := bytes.Cut(line, []byte(":")); ok && bytes.EqualFold(name, []byte("content-length")) {
			return strconv.Atoi(string(bytes.TrimSpace(value)))
		}
	}
	return 0, fmt.Errorf("an answer without Content-Length: %.80q", head)
}

var ok = []byte("HTTP/1.1 200")

// answered is nil for an answer of status 200.
func answered(head []byte, err error) error {
	if err == nil && !bytes.HasPrefix(head, ok) {
		err = fmt.Errorf("answer %.60q", head)
	}
	return err
}

// The lengths of the bodies that loads ask for; bulk is that of the largest.
const (
	smallBody  = 128
	mediumBody = 16 << 10
)

// whole is nil for an answer of status 200 with a body of a length.
func whole(head []byte, got, want int, err error) error {
	if err := answered(head, err); err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("an answer with a body of %d bytes; expected %d", got, want)
	}
	return nil
}

// once makes one connection and one request, for 128 B, and is one unit.
func once(addr string, conf *tls.Config, request, buf []byte) (*tls.ConnectionState, error) {
	c, err := dial(addr, conf)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	head, body, err := exchange(c, request, buf)
	if err := whole(head, len(body), smallBody, err); err != nil {
		return nil, err
	}
	state := c.ConnectionState()
	return &state, nil
}

// handshakes is a new connection with one request of 128 B for each unit. resumed wants every one but the first of a
// worker to resume a session.
func handshakes(c call, next func() (*tls.Certificate, error), resumed bool) opener {
	return func(int) (step, func(), error) {
		c, buf, request := c, make([]byte, 8<<10), get("/128")
		if resumed {
			c.sessions = tls.NewLRUClientSessionCache(4)
		}
		conf := c.config()
		check := func() (*tls.ConnectionState, error) {
			if next != nil {
				cert, err := next()
				if err != nil {
					return nil, err
				}
				conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
			}
			return once(c.addr, conf, request, buf)
		}
		state, err := check()
		if err != nil {
			return nil, nil, err
		}
		if c.groups != nil && state.CurveID != c.groups[0] {
			return nil, nil, fmt.Errorf("it does not know the group %v, and chose %v", c.groups[0], state.CurveID)
		}
		return func(t *tally) error {
			at := time.Now()
			state, err := check()
			if err == nil && state.DidResume != resumed {
				err = fmt.Errorf("session resumed: %t; expected %t", state.DidResume, resumed)
			}
			if err == nil {
				t.one(at)
			}
			return err
		}, func() {}, nil
	}
}

// stays makes a connection for a load to keep until it ends.
func stays(c call) (*tls.Conn, error) {
	conn, err := dial(c.addr, c.config())
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(lasting))
	}
	return conn, err
}

// steady is a connection that asks the same things again and again, one after the other, and knows how long each answer
// is.
type steady struct {
	conn *tls.Conn
	asks [][]byte
	want int
	next int
}

// steadily connects and asks the first thing once; all answers are as long as that, and have a body of length.
func steadily(c call, asks [][]byte, length int, buf []byte) (*steady, error) {
	conn, err := stays(c)
	if err != nil {
		return nil, err
	}
	head, body, err := exchange(conn, asks[0], buf)
	if err := whole(head, len(body), length, err); err != nil {
		conn.Close()
		return nil, err
	}
	return &steady{conn: conn, asks: asks, want: len(head) + 4 + len(body)}, nil
}

// once makes one request and is one unit.
func (s *steady) once(t *tally, buf []byte) error {
	at, k := time.Now(), s.next
	if s.next++; s.next == len(s.asks) {
		s.next = 0
	}
	if _, err := s.conn.Write(s.asks[k]); err != nil {
		return err
	}
	if _, err := io.ReadFull(s.conn, buf[:s.want]); err != nil {
		return err
	}
	if err := answered(buf[:s.want], nil); err != nil {
		return err
	}
	t.one(at)
	return nil
}

// requests is one request for each unit, over connections that stay.
func requests(c call, path string, length int) opener {
	return func(int) (step, func(), error) {
		buf := make([]byte, 32<<10)
		s, err := steadily(c, [][]byte{get(path)}, length, buf)
		if err != nil {
			return nil, nil, err
		}
		return func(t *tally) error { return s.once(t, buf) }, func() { s.conn.Close() }, nil
	}
}

// spreadOver is one request for each unit, each to another host and route than the one before it: worker k of workers has a
// connection to every host whose number is k, k+workers and so on.
func spreadOver(c call, workers, hosts int) opener {
	return func(k int) (step, func(), error) {
		buf := make([]byte, 32<<10)
		var all []*steady
		end := func() {
			for _, s := range all {
				s.conn.Close()
			}
		}
		for n := k; n < hosts; n += workers {
			c := c
			c.name = routeHost(n)
			var asks [][]byte
			for r := range routesOfHost {
				asks = append(asks, getFrom(c.name, routePath((r+n)%routesOfHost)+"128"))
			}
			s, err := steadily(c, asks, smallBody, buf)
			if err != nil {
				end()
				return nil, nil, fmt.Errorf("%s: %w", c.name, err)
			}
			all = append(all, s)
		}
		next := 0
		return func(t *tally) error {
			s := all[next]
			if next++; next == len(all) {
				next = 0
			}
			return s.once(t, buf)
		}, end, nil
	}
}

// download reads bodies of 100 MB, one after the other.
func download(c call) opener {
	return func(int) (step, func(), error) {
		conn, err := stays(c)
		if err != nil {
			return nil, nil, err
		}
		buf, request, left := make([]byte, 256<<10), get("/bulk"), 0
		return func(t *tally) error {
			if left == 0 {
				if _, err := conn.Write(request); err != nil {
					return err
				}
				n := 0
				for left == 0 {
					m, err := conn.Read(buf[n:])
					if err != nil {
						return err
					}
					n += m
					if end := bytes.Index(buf[:n], []byte("\r\n\r\n")); end >= 0 {
						length, err := contentLength(buf[:end])
						if err := whole(buf[:n], length, bulk, err); err != nil {
							return err
						}
						left = bulk - (n - end - 4)
					}
				}
				t.moved(n)
				return nil
			}
			n, err := conn.Read(buf[:min(left, len(buf))])
			left -= n
			t.moved(n)
			return err
		}, func() { conn.Close() }, nil
	}
}

// upload sends bodies of 100 MB.
func upload(c call) opener {
	return func(int) (step, func(), error) {
		conn, err := stays(c)
		if err != nil {
			return nil, nil, err
		}
		request := fmt.Appendf(nil, "POST /upload HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench/1.0\r\nContent-Length: %d\r\n\r\n", host, bulk)
		buf, left, sent := make([]byte, 8<<10), 0, false
		return func(t *tally) error {
			if left == 0 {
				if sent {
					head, body, err := answer(conn, buf)
					if err := whole(head, len(body), smallBody, err); err != nil {
						return err
					}
				}
				if _, err := conn.Write(request); err != nil {
					return err
				}
				left, sent = bulk, true
			}
			n, err := conn.Write(zeros[:min(left, len(zeros))])
			left -= n
			t.moved(n)
			return err
		}, func() { conn.Close() }, nil
	}
}

// stream sends a few bytes and then reads whatever comes.
func stream(connect func() (net.Conn, error)) opener {
	return func(int) (step, func(), error) {
		conn, err := connect()
		if err != nil {
			return nil, nil, err
		}
		_ = conn.SetDeadline(time.Now().Add(lasting))
		buf := make([]byte, 256<<10)
		return func(t *tally) error {
			n, err := conn.Read(buf)
			t.moved(n)
			return err
		}, func() { conn.Close() }, nil
	}
}

// hello is what a TLS client sends first.
func hello() []byte {
	var c helloConn
	_ = tls.Client(&c, call{}.config()).Handshake()
	return c.written
}

// helloConn keeps what is written and has nothing to read.
type helloConn struct {
	net.Conn
	written []byte
}

func (c *helloConn) Write(p []byte) (int, error) {
	c.written = append(c.written, p...)
	return len(p), nil
}

func (c *helloConn) Read([]byte) (int, error)         { return 0, io.EOF }
func (c *helloConn) Close() error                     { return nil }
func (c *helloConn) SetDeadline(time.Time) error      { return nil }
func (c *helloConn) SetWriteDeadline(time.Time) error { return nil }
