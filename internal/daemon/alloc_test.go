//go:build !race

package daemon_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"countersign/internal/testalloc"
)

// The tests of this file are not built with the race detector, which allocates. What they count is what the whole process
// allocates, clients and targets included; those here allocate nothing but what crypto/tls does.

// caller2 makes the same request of HTTP/2 again and again, without allocating.
type caller2 struct {
	t       *testing.T
	conn    net.Conn
	request []byte // HEADERS, all of whose fields the server knows
	id      uint32
	in      [64 << 10]byte
	have    int
}

func newCaller2(t *testing.T, conn net.Conn) *caller2 {
	c := &caller2{t: t, conn: conn, id: 1}
	var out, block bytes.Buffer
	out.WriteString(http2.ClientPreface)
	fr, enc := http2.NewFramer(&out, nil), hpack.NewEncoder(&block)
	head := func(id uint32) {
		block.Reset()
		for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "a.test"}, {":path", "/status"}, {"user-agent", "bench/1.0"}, {"accept", "*/*"}} {
			must(0, enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))(t)
		}
		must(0, fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: true, EndHeaders: true, BlockFragment: block.Bytes()}))(t)
	}
	must(0, fr.WriteSettings())(t)
	must(0, fr.WriteSettingsAck())(t)
	must(0, fr.WriteWindowUpdate(0, 1<<30))(t)
	head(1)
	must(conn.Write(out.Bytes()))(t)
	c.answer()
	out.Reset()
	head(3)
	c.request = bytes.Clone(out.Bytes())
	return c
}

func (c *caller2) call() {
	c.id += 2
	binary.BigEndian.PutUint32(c.request[5:], c.id)
	if _, err := c.conn.Write(c.request); err != nil {
		c.t.Fatal(err)
	}
	c.answer()
}

// answer reads until the stream has ended.
func (c *caller2) answer() {
	for {
		n, err := c.conn.Read(c.in[c.have:])
		if err != nil {
			c.t.Fatal(err)
		}
		c.have += n
		at, ended := 0, false
		for c.have-at >= 9 {
			size := 9 + int(binary.BigEndian.Uint32(c.in[at:])>>8)
			if c.have-at < size {
				break
			}
			id, kind, flags := binary.BigEndian.Uint32(c.in[at+5:]), http2.FrameType(c.in[at+3]), http2.Flags(c.in[at+4])
			if kind == http2.FrameRSTStream || kind == http2.FrameGoAway {
				c.t.Fatalf("frame %v on stream %d", kind, id)
			}
			ended = ended || id == c.id && (kind == http2.FrameData || kind == http2.FrameHeaders) && flags.Has(http2.FlagDataEndStream)
			at += size
		}
		c.have = copy(c.in[:], c.in[at:c.have])
		if ended {
			return
		}
	}
}

// quick2 is quick for HTTP/2 without TLS: it reads no more of a request than where it ends.
func quick2(t *testing.T) string {
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { l.Close() })
	var hello, answer bytes.Buffer
	fr := http2.NewFramer(&hello, nil)
	must(0, fr.WriteSettings())(t)
	must(0, fr.WriteSettingsAck())(t)
	fr = http2.NewFramer(&answer, nil)
	must(0, fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: []byte{0x88}}))(t) // :status 200
	second := answer.Len()
	must(0, fr.WriteData(1, true, make([]byte, 128)))(t)
	serve := func(c net.Conn) {
		defer c.Close()
		answer, in := bytes.Clone(answer.Bytes()), make([]byte, 64<<10)
		if _, err := io.ReadFull(c, in[:len(http2.ClientPreface)]); err != nil {
			return
		}
		_, _ = c.Write(hello.Bytes())
		for have := 0; ; {
			n, err := c.Read(in[have:])
			if err != nil {
				return
			}
			have += n
			for have >= 9 {
				size := 9 + int(binary.BigEndian.Uint32(in)>>8)
				if have < size {
					break
				}
				if http2.FrameType(in[3]) == http2.FrameHeaders && http2.Flags(in[4]).Has(http2.FlagHeadersEndStream) {
					copy(answer[5:], in[5:9])
					copy(answer[second+5:], in[5:9])
					_, _ = c.Write(answer)
				}
				have = copy(in, in[size:have])
			}
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return l.Addr().String()
}

// TestHTTP2RequestAllocations bounds what a request of HTTP/2 allocates beyond what crypto/tls does for its two messages.
func TestHTTP2RequestAllocations(t *testing.T) {
	bare := bareTLS(t)
	for _, to := range []struct {
		name, upstream string
		target         func() string
		most           float64
	}{
		{"to HTTP1", "", func() string { return quick(t, smallResponse) }, 0},
		// The context of the wait for a stream (2, forward.wait), and upstream.Conn.
		{"to HTTP2", ", protocol_version: http2", func() string { return quick2(t) }, 3},
	} {
		t.Run(to.name, func(t *testing.T) {
			w := newWorld(t)
			w.start(strings.Replace(basic, `["http://BACKEND"]`, `["http://BACKEND"]`+to.upstream, 1), to.target())
			conn := must(w.dial("public", w.client("a.test", w.ca.Client("alice"), func(c *tls.Config) { c.NextProtos = []string{"h2"} })))(t)
			_ = conn.SetDeadline(time.Now().Add(time.Minute))
			c := newCaller2(t, conn)
			limit := bare + to.most + 0.4
			got := testalloc.AtMost(limit, 1000, c.call)
			t.Logf("allocations per request: %.3f, of them crypto/tls: %.3f", got, bare)
			if got > limit {
				t.Errorf("a request of HTTP/2 allocates %.3f objects; expected at most %v and the %.3f of crypto/tls itself", got, to.most, bare)
			}
		})
	}
}

// bareServer is crypto/tls alone: it makes a handshake, answers one request, and closes. It asks for a client's certificate
// as Countersign does, and verifies it no more than Countersign has crypto/tls do.
func bareServer(t *testing.T, w *world) string {
	own := w.server.TLS()
	hints := x509.NewCertPool()
	hints.AddCert(w.root.Cert)
	hints.AddCert(w.ca.Cert)
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { l.Close() })
	conf := &tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAnyClientCert, ClientCAs: hints, NextProtos: []string{"http/1.1"},
		MinVersion: tls.VersionTLS12}
	answer, buf := []byte(smallResponse), make([]byte, 4096)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tc := tls.Server(c, conf)
			if _, err := tc.Read(buf); err == nil {
				_, _ = tc.Write(answer)
			}
			_ = tc.Close()
		}
	}()
	return l.Addr().String()
}

// forgetful takes tickets and has none: its client makes full handshakes only.
type forgetful struct{}

func (forgetful) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (forgetful) Put(string, *tls.ClientSessionState)        {}

// TestHandshakeAllocations bounds what a connection with one request allocates beyond what crypto/tls does for one: a full
// handshake of a client that has been here before, and a resumed one. The client is the same, and so are the certificates.
// There are 95 and 87: the connection and its lane, what it gives crypto/tls, its ticket, who the client is and the lines
// that say so to targets, and the texts of its record.
func TestHandshakeAllocations(t *testing.T) {
	if *eventLoop {
		t.Skip("of the plain path")
	}
	for _, version := range tlsVersions {
		for _, h := range []struct {
			name    string
			resumed bool
			most    float64
		}{{"full", false, 100}, {"resumed", true, 92}} {
			t.Run(version.name+"/"+h.name, func(t *testing.T) {
				w := newWorld(t)
				w.start(basic, quick(t, smallResponse))
				conf := pin(w.client("a.test", w.ca.Client("alice")), version.id)
				request, buf := []byte("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"), make([]byte, 4096)
				resumed := false
				visit := func(addr string) {
					c, err := net.Dial("tcp", addr)
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					_ = c.SetDeadline(time.Now().Add(30 * time.Second))
					tc := tls.Client(c, conf)
					if _, err := tc.Write(request); err != nil {
						t.Fatal(err)
					}
					for n := 0; ; {
						m, err := tc.Read(buf[n:])
						if n += m; err == io.EOF && bytes.HasPrefix(buf[:n], []byte("HTTP/1.1 200 ")) {
							break
						} else if err != nil {
							t.Fatalf("%q, %v", buf[:n], err)
						}
					}
					resumed = tc.ConnectionState().DidResume
				}
				count := func(addr string) float64 {
					conf.ClientSessionCache = forgetful{}
					if h.resumed {
						conf.ClientSessionCache = tls.NewLRUClientSessionCache(1)
					}
					visit(addr)
					n := testalloc.PerCall(25, func() { visit(addr) })
					if resumed != h.resumed {
						t.Fatalf("resumed=%t, expected %t", resumed, h.resumed)
					}
					return n
				}
				bare := count(bareServer(t, w))
				got := count(w.addr("public")) - bare
				t.Logf("allocations per connection: %.1f, and %.1f of a bare one of crypto/tls", got, bare)
				if got > h.most {
					t.Errorf("a connection allocates %.1f objects beside the %.1f of a bare one of crypto/tls; expected at most %v", got, bare, h.most)
				}
			})
		}
	}
}

// bulk is a target that takes the body of each request and answers with down bytes. It reads heads as Countersign writes
// them, and allocates nothing for a request.
type bulk struct {
	addr string
	down atomic.Int64
}

func newBulk(t *testing.T) *bulk {
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { l.Close() })
	b := &bulk{addr: l.Addr().String()}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go b.serve(c)
		}
	}()
	return b
}

func (b *bulk) serve(c net.Conn) {
	defer c.Close()
	in, out, head := make([]byte, 64<<10), make([]byte, 64<<10), make([]byte, 0, 128)
	end, length, last := []byte("\r\n\r\n"), []byte("Content-Length: "), []byte("\r\n0\r\n\r\n")
	for n := 0; ; n = 0 {
		at := -1
		for at < 0 {
			m, err := c.Read(in[n:])
			if err != nil {
				return
			}
			n += m
			at = bytes.Index(in[:n], end)
		}
		if i := bytes.Index(in[:at], length); i >= 0 {
			left := 0
			for _, d := range in[i+len(length) : at] {
				if d < '0' {
					break
				}
				left = 10*left + int(d-'0')
			}
			for left -= n - at - len(end); left > 0; {
				m, err := c.Read(in)
				if err != nil {
					return
				}
				left -= m
			}
		} else if bytes.Contains(in[:at], []byte("chunked")) {
			for !bytes.HasSuffix(in[:n], last) {
				keep := copy(in, in[max(0, n-len(last)):n])
				m, err := c.Read(in[keep:])
				if err != nil {
					return
				}
				n = keep + m
			}
		}
		down := int(b.down.Load())
		head = append(strconv.AppendInt(append(head[:0], "HTTP/1.1 200 OK\r\nContent-Length: "...), int64(down), 10), end...)
		if _, err := c.Write(head); err != nil {
			return
		}
		for down > 0 {
			m, err := c.Write(out[:min(down, len(out))])
			if err != nil {
				return
			}
			down -= m
		}
	}
}

// mover makes requests of HTTP/1.1 with large bodies, and reads large answers, without allocating.
type mover struct {
	t       *testing.T
	conn    net.Conn
	chunked bool
	head    []byte
	part    []byte
	in      []byte
}

func newMover(t *testing.T, conn net.Conn, chunked bool) *mover {
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	m := &mover{t: t, conn: conn, chunked: chunked, head: make([]byte, 0, 256), in: make([]byte, 64<<10)}
	m.part = bytes.Repeat([]byte("x"), 64<<10)
	if chunked {
		m.part = append(append([]byte("10000\r\n"), m.part...), "\r\n"...)
	}
	return m
}

func (m *mover) write(p []byte) {
	if _, err := m.conn.Write(p); err != nil {
		m.t.Fatal(err)
	}
}

// move sends a body of up bytes, a multiple of 64 KiB, and reads an answer of down bytes.
func (m *mover) move(up, down int) {
	m.head = append(m.head[:0], "POST /x HTTP/1.1\r\nHost: a.test\r\n"...)
	if m.chunked {
		m.head = append(m.head, "Transfer-Encoding: chunked\r\n\r\n"...)
	} else {
		m.head = append(strconv.AppendInt(append(m.head, "Content-Length: "...), int64(up), 10), "\r\n\r\n"...)
	}
	m.write(m.head)
	for n := 0; n < up; n += 64 << 10 {
		m.write(m.part)
	}
	if m.chunked {
		m.head = append(m.head[:0], "0\r\n\r\n"...)
		m.write(m.head)
	}
	n, at := 0, -1
	for at < 0 {
		k, err := m.conn.Read(m.in[n:])
		if err != nil {
			m.t.Fatal(err)
		}
		n += k
		at = bytes.Index(m.in[:n], []byte("\r\n\r\n"))
	}
	if !bytes.HasPrefix(m.in, []byte("HTTP/1.1 200 ")) {
		m.t.Fatalf("%q", m.in[:at])
	}
	for left := down - (n - at - 4); left > 0; {
		k, err := m.conn.Read(m.in)
		if err != nil {
			m.t.Fatal(err)
		}
		left -= k
	}
}

// TestBodyAllocations: what an exchange allocates does not grow with the bytes of its bodies, but for what crypto/tls does
// for each record that it reads.
func TestBodyAllocations(t *testing.T) {
	const small, large = 128 << 10, 8<<20 + 128<<10
	b := newBulk(t)
	w := newWorld(t)
	w.start(strings.Replace(basic, "\nupstreams:", `
  plain: {listen: 127.0.0.1:0, protocol: http, hosts: [{names: [a.test], routes: [{upstream: api}]}]}
upstreams:`, 1), b.addr)
	conf := w.client("a.test", w.ca.Client("alice"), func(c *tls.Config) { c.DynamicRecordSizingDisabled = true })
	for _, row := range []struct {
		name         string
		tls, chunked bool
		upload       bool
		few          float64 // whatever the bytes
	}{
		{"upload", false, false, true, 4}, // forward.pump
		{"upload in chunks", false, true, true, 4},
		{"download", false, false, false, 0},
		{"upload by TLS", true, false, true, 4},
		{"download by TLS", true, false, false, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			var conn net.Conn
			if row.tls {
				conn = must(w.dial("public", conf))(t)
			} else {
				conn = must(net.Dial("tcp", w.addr("plain")))(t)
				defer conn.Close()
			}
			m := newMover(t, conn, row.chunked)
			count := func(size int) float64 {
				up, down := 0, size
				if row.upload {
					up, down = size, 128
				}
				b.down.Store(int64(down))
				return testalloc.PerCall(3, func() { m.move(up, down) })
			}
			few, many := count(small), count(large)
			// A record of 16 KiB comes in one read as a rule, by us or by the client here, which is an object of crypto/tls;
			// measured, two share one.
			records := func(size int) float64 {
				if !row.tls {
					return 0
				}
				return float64(size/(16<<10) + 2)
			}
			t.Logf("%d KiB: %.1f allocations; %d KiB: %.1f", small>>10, few, large>>10, many)
			// Fewer than one more for each MiB: a buffer now and then.
			if few > row.few+records(small)+3 || many > row.few+records(large)+6 {
				t.Errorf("%d KiB allocate %.1f objects, and %d KiB %.1f; expected %v, and at most the %v and %v of crypto/tls",
					small>>10, few, large>>10, many, row.few, records(small), records(large))
			}
		})
	}
}

// TestPassthroughAllocations: bytes that pass through allocate nothing.
func TestPassthroughAllocations(t *testing.T) {
	w, conns := throughWorld(t)
	conf := string(must(os.ReadFile(filepath.Join(w.dir, "countersign.yaml")))(t))
	w.reload(strings.Replace(conf, "tunnel_idle: 700ms", "tunnel_idle: 1m", 1), "") // however busy the machine
	client, target := w.pair(t, conns)
	out, in := make([]byte, 64<<10), make([]byte, 64<<10)
	for _, dir := range []struct {
		name     string
		from, to *net.TCPConn
	}{{"to the target", client, target}, {"to the client", target, client}} {
		_ = dir.from.SetDeadline(time.Now().Add(time.Minute))
		_ = dir.to.SetDeadline(time.Now().Add(time.Minute))
		n := testalloc.PerCall(4, func() {
			for range 16 {
				if _, err := dir.from.Write(out); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(dir.to, in); err != nil {
					t.Fatal(err)
				}
			}
		})
		if t.Logf("1 MiB %s: %.1f allocations", dir.name, n); n > 1 {
			t.Errorf("1 MiB %s allocates %.1f objects; expected none", dir.name, n)
		}
	}
}
