package daemon_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// floodConfig has limits that a test can wait for.
const floodConfig = `
ops: {listen: 127.0.0.1:0}
trust_stores: {clients: {ca_bundle: {file: clients.pem}}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    limits: {handshake: 4s, header: 1s, idle: 5s, body_idle: 1s, write_idle: 1s}
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes:
          - {match: {path: /h1/ws/*}, upgrade: [websocket], upstream: h1}
          - {match: {path: /h1/*}, upstream: h1}
          - {match: {path: /h2/*}, upstream: h2}
          - {match: {path: /few/*}, upstream: few}
          - {match: {path: /deaf/*}, upstream: deaf}
upstreams:
  h1: {targets: ["http://BACKEND"], timeouts: {keepalive: 500ms}}
  h2: {targets: ["http://BACKEND"], protocol_version: http2, timeouts: {keepalive: 500ms}}
  few: {targets: ["http://BACKEND"], max_connections: 8, max_pending: 16, queue_timeout: 300ms, retries: {attempts: 3}, timeouts: {keepalive: 500ms}}
  deaf: {targets: ["http://DEAF"], timeouts: {connect: 1s}}
`

// hostile is a client of HTTP/2 that says what it likes.
type hostile struct {
	*tls.Conn
	w    *bufio.Writer
	fr   *http2.Framer
	peer string // as records name it

	mu      sync.Mutex
	goAway  http2.ErrCode
	away    bool
	resets  map[http2.ErrCode]int
	answers map[string]int // by status
	over    chan struct{}  // reading has ended
	ended   atomic.Bool
}

// hostile connects. It reads all that comes, unless it is deaf.
func (s *apart) hostile(t testing.TB, hears bool, settings ...http2.Setting) *hostile {
	t.Helper()
	c := s.dial(t, s.from, "h2")
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	h := &hostile{Conn: c, w: bufio.NewWriterSize(c, 16<<10), peer: c.LocalAddr().String(), resets: map[http2.ErrCode]int{}, answers: map[string]int{}, over: make(chan struct{})}
	h.fr = http2.NewFramer(h.w, c)
	h.fr.AllowIllegalWrites = true
	_, _ = io.WriteString(h.w, http2.ClientPreface)
	_ = h.fr.WriteSettings(settings...)
	if err := h.w.Flush(); err != nil {
		t.Fatal(err)
	}
	if hears {
		go h.hear()
	}
	return h
}

func (h *hostile) hear() {
	defer close(h.over)
	defer h.ended.Store(true)
	h.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	h.fr.SetMaxReadFrameSize(1 << 20)
	for {
		f, err := h.fr.ReadFrame()
		if err != nil {
			return
		}
		h.mu.Lock()
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			if f.ErrCode != http2.ErrCodeNo || !h.away {
				h.goAway, h.away = f.ErrCode, true
			}
			if f.ErrCode != http2.ErrCodeNo {
				h.ended.Store(true)
			}
		case *http2.RSTStreamFrame:
			h.resets[f.ErrCode]++
		case *http2.MetaHeadersFrame:
			h.answers[f.PseudoValue("status")]++
		}
		h.mu.Unlock()
	}
}

// field appends a literal field that is not indexed (RFC 7541 section 6.2.2).
func field(b []byte, name, value string) []byte { return literal(b, 0, name, value) }

// indexed appends one that enters the dynamic table.
func indexed(b []byte, name, value string) []byte { return literal(b, 0x40, name, value) }

func literal(b []byte, kind byte, name, value string) []byte {
	b = append(b, kind)
	for _, s := range []string{name, value} {
		if n := len(s); n < 127 {
			b = append(b, byte(n))
		} else {
			b = append(b, 127)
			for n -= 127; n >= 128; n /= 128 {
				b = append(b, byte(n%128)|128)
			}
			b = append(b, byte(n))
		}
		b = append(b, s...)
	}
	return b
}

// request is a field block for a path; further fields in turns of name and value.
func request(method, path string, fields ...string) []byte {
	b := field(nil, ":method", method)
	b = append(b, 0x87) // :scheme https
	b = field(b, ":authority", "a.test")
	b = field(b, ":path", path)
	for i := 0; i < len(fields); i += 2 {
		b = field(b, fields[i], fields[i+1])
	}
	return b
}

func (h *hostile) headers(id uint32, block []byte, end bool) error {
	return h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndStream: end, EndHeaders: true})
}

// flood does one thing n times, or until the connection ends.
func (h *hostile) flood(n int, do func(i int) error) {
	for i := range n {
		if h.ended.Load() || do(i) != nil {
			return
		}
	}
	_ = h.w.Flush()
}

// await waits for the end of the connection.
func (h *hostile) await(t testing.TB, patience time.Duration) {
	t.Helper()
	select {
	case <-h.over:
	case <-time.After(patience):
		t.Errorf("%s is still open after %v", h.peer, patience)
	}
	h.Close()
}

// flooded is the rig of one test of floods.
type flooded struct {
	*apart
	*stage
	good     *good
	patience time.Duration
	room     uint64 // in memory for an attack
}

func newFlooded(t *testing.T) *flooded {
	stood(time.Now())
	w := newWorld(t)
	s := newStage(t)
	f := &flooded{stage: s, room: 64 << 20}
	conf := strings.NewReplacer("BACKEND", s.addr, "DEAF", deaf(t)).Replace(floodConfig)
	f.apart = w.apart(conf)
	f.good = f.newGood(t, 5*time.Millisecond)
	time.Sleep(700 * time.Millisecond)
	n, before, errs := f.good.lately()
	if f.patience = patienceOf(before); raceEnabled {
		f.patience *= 4
	}
	f.base = f.weigh(t, true)
	t.Logf("%d requests of good clients before, p99 %v, errors %v; the program has %v", n, before, errs, f.base)
	return f
}

// under runs an attack and tells how good clients and the program fare. It may take bounded memory while it lasts, and
// leaves nothing behind.
func (f *flooded) under(t *testing.T, attack func(t *testing.T)) {
	t.Helper()
	before := f.weigh(t, true)
	f.good.lately()
	start := time.Now()
	attack(t)
	took := time.Since(start)
	n, p99, errs := f.good.lately()
	after := f.weigh(t, false)
	f.settled(t, 8*time.Second)
	rest := f.weigh(t, true)
	for end := time.Now().Add(8 * time.Second); rest.Heap > f.base.Heap+6<<20 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		rest = f.weigh(t, true) // a request's goroutine may end after its connection
	}
	t.Logf("%v: %d good requests, p99 %v; CPU %v, peak %+.1f MiB, %+.1f MiB of heap left", took.Round(time.Millisecond), n, p99.Round(time.Millisecond/10),
		(after.CPU - before.CPU).Round(time.Millisecond), mib(after.Peak)-mib(before.Resident), mib(rest.Heap)-mib(before.Heap))
	if patience := f.patience + stood(start); len(errs) > 0 || p99 > patience {
		t.Errorf("good clients: p99 %v, expected less than %v; errors %v", p99, patience, errs)
		for _, err := range errs {
			if _, ref, ok := strings.Cut(err.Error(), "reference: "); ok {
				t.Logf("%s", bytes.Join(f.records(t, strings.Split(ref, "\\n")[0]), nil))
			}
		}
	}
	if used, limit := after.CPU-before.CPU, took+time.Second; used > limit {
		t.Errorf("F07/%v of processor time in %v", used, took)
	}
	if raceEnabled {
		return
	}
	if after.Peak > before.Resident+f.room {
		t.Errorf("F07/%.1f MiB at the peak, %.1f before", mib(after.Peak), mib(before.Resident))
	}
	if rest.Heap > f.base.Heap+6<<20 {
		t.Errorf("F15/%.1f MiB of heap are left, %.1f before all", mib(rest.Heap), mib(f.base.Heap))
	}
}

const maxID = 1<<31 - 1

// TestFloods are clients with a good certificate that make work without use, one kind at a time.
func TestFloods(t *testing.T) {
	f := newFlooded(t)
	id := func(i int) uint32 { return uint32(2*i + 1) }
	get := request("GET", "/h1/ok")

	// Each is one connection that does one thing over and over. It ends with a word why.
	opened := func(h *hostile) error { // one stream that stays open
		return h.headers(1, request("POST", "/h1/hang/one"), false)
	}
	for _, c := range []struct {
		name    string
		n       int
		path    string // at the target, if the attack names one
		reaches int    // requests that the target may see at most
		reason  string
		before  func(*hostile) error
		do      func(h *hostile, i int) error
	}{
		{"F07/rapid reset", 10_000, "/h1/hang/reset", 400, "h2_enhance_your_calm", nil, func(h *hostile, i int) error {
			_ = h.headers(id(i), request("GET", "/h1/hang/reset"), true)
			return h.fr.WriteRSTStream(id(i), http2.ErrCodeCancel)
		}},
		{"F07/rapid reset before HTTP2 targets", 10_000, "/h2/hang/reset", 400, "h2_enhance_your_calm", nil, func(h *hostile, i int) error {
			_ = h.headers(id(i), request("GET", "/h2/hang/reset"), true)
			return h.fr.WriteRSTStream(id(i), http2.ErrCodeCancel)
		}},
		{"F07/MadeYouReset, window of nothing", 2000, "/h1/hang/made1", 200, "h2_enhance_your_calm", nil, func(h *hostile, i int) error {
			_ = h.headers(id(i), request("GET", "/h1/hang/made1"), true)
			return h.fr.WriteWindowUpdate(id(i), 0)
		}},
		{"F07/MadeYouReset, window too large", 2000, "/h1/hang/made2", 200, "h2_enhance_your_calm", nil, func(h *hostile, i int) error {
			_ = h.headers(id(i), request("GET", "/h1/hang/made2"), true)
			return h.fr.WriteWindowUpdate(id(i), maxID)
		}},
		{"F07/MadeYouReset, data behind the end", 2000, "/h1/hang/made3", 200, "h2_enhance_your_calm", nil, func(h *hostile, i int) error {
			_ = h.headers(id(i), request("GET", "/h1/hang/made3"), true)
			return h.fr.WriteData(id(i), true, []byte("more"))
		}},
		{"F07/MadeYouReset, more than content-length", 2000, "/h2/hang/made4", 200, "h2_enhance_your_calm", nil, func(h *hostile, i int) error {
			_ = h.headers(id(i), request("POST", "/h2/hang/made4", "content-length", "1"), false)
			return h.fr.WriteData(id(i), false, []byte("more"))
		}},
		{"F07/MadeYouReset, a stream that depends on itself", 2000, "/h1/hang/made5", 200, "h2_enhance_your_calm", nil, func(h *hostile, i int) error {
			_ = h.headers(id(i), request("GET", "/h1/hang/made5"), true)
			return h.fr.WritePriority(id(i), http2.PriorityParam{StreamDep: id(i)})
		}},
		{"F07/MadeYouReset, trailers without an end", 2000, "/h1/hang/made6", 200, "h2_enhance_your_calm", nil, func(h *hostile, i int) error {
			_ = h.headers(id(i), request("POST", "/h1/hang/made6"), false)
			return h.headers(id(i), field(nil, "x", "y"), false)
		}},
		{"F07/malformed requests", 2000, "/h1/hang/bad", 0, "h2_enhance_your_calm", nil, func(h *hostile, i int) error {
			return h.headers(id(i), request("GET", "/h1/hang/bad", "Upper", "x"), true)
		}},
		{"F07/CONTINUATION", 10_000, "", 0, "h2_enhance_your_calm", func(h *hostile) error {
			return h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: get})
		}, func(h *hostile, i int) error {
			return h.fr.WriteContinuation(1, false, field(nil, "x", "y"))
		}},
		{"F07/empty CONTINUATION", 10_000, "", 0, "h2_enhance_your_calm", func(h *hostile) error {
			return h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: get})
		}, func(h *hostile, i int) error { return h.fr.WriteContinuation(1, false, nil) }},
		{"F07/CONTINUATION of 16 KiB each", 1000, "", 0, "h2_enhance_your_calm", func(h *hostile) error {
			return h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: get})
		}, func(h *hostile, i int) error {
			return h.fr.WriteContinuation(1, false, field(nil, "x", strings.Repeat("y", 16000)))
		}},
		{"F07/PING", 50_000, "", 0, "h2_enhance_your_calm", nil, func(h *hostile, i int) error { return h.fr.WritePing(false, [8]byte{}) }},
		{"F07/answers to no PING", 50_000, "", 0, "h2_enhance_your_calm", nil, func(h *hostile, i int) error { return h.fr.WritePing(true, [8]byte{}) }},
		{"F07/SETTINGS", 10_000, "", 0, "h2_enhance_your_calm", nil, func(h *hostile, i int) error {
			return h.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i)})
		}},
		{"F07/SETTINGS of 64 each", 2000, "", 0, "h2_enhance_your_calm", nil, func(h *hostile, i int) error {
			return h.fr.WriteSettings(slices.Repeat([]http2.Setting{{ID: http2.SettingHeaderTableSize, Val: uint32(i % 2 * 4096)}}, 64)...)
		}},
		{"F07/empty DATA", 50_000, "", 0, "h2_enhance_your_calm", opened, func(h *hostile, i int) error { return h.fr.WriteData(1, false, nil) }},
		{"F07/DATA of padding", 10_000, "", 0, "h2_enhance_your_calm", opened, func(h *hostile, i int) error {
			return h.fr.WriteDataPadded(1, false, nil, make([]byte, 20))
		}},
		{"F07/PRIORITY", 50_000, "", 0, "h2_enhance_your_calm", nil, func(h *hostile, i int) error {
			return h.fr.WritePriority(id(i), http2.PriorityParam{StreamDep: 0, Weight: 3})
		}},
		{"F07/WINDOW_UPDATE", 50_000, "", 0, "h2_enhance_your_calm", opened, func(h *hostile, i int) error { return h.fr.WriteWindowUpdate(1, 1) }},
		{"F07/WINDOW_UPDATE of the connection", 50_000, "", 0, "h2_enhance_your_calm", nil, func(h *hostile, i int) error { return h.fr.WriteWindowUpdate(0, 1) }},
		{"F07/frames of unknown types", 50_000, "", 0, "h2_enhance_your_calm", nil, func(h *hostile, i int) error { return h.fr.WriteRawFrame(0xb7, 0, 0, nil) }},
		{"F07/frames of unknown types, 16 KiB each", 5000, "", 0, "h2_enhance_your_calm", nil, func(h *hostile, i int) error {
			return h.fr.WriteRawFrame(0xb7, 0xff, 0, make([]byte, 16<<10))
		}},
		{"F07/frames on closed streams", 50_000, "", 0, "h2_enhance_your_calm", func(h *hostile) error {
			_ = h.headers(1, request("GET", "/h1/hang/closed"), true)
			return h.fr.WriteRSTStream(1, http2.ErrCodeCancel)
		}, func(h *hostile, i int) error { return h.fr.WriteRSTStream(1, http2.ErrCodeCancel) }},
		{"F07/1000 streams at once", 1000, "/h1/hang/many", 100, "h2_enhance_your_calm", nil, func(h *hostile, i int) error {
			return h.headers(id(i), request("GET", "/h1/hang/many"), true)
		}},
		{"F07/1000 streams at once before HTTP2 targets", 1000, "/h2/hang/many", 100, "h2_enhance_your_calm", nil, func(h *hostile, i int) error {
			return h.headers(id(i), request("GET", "/h2/hang/many"), true)
		}},
		{"F07/GOAWAY", 10_000, "", 0, "h2_enhance_your_calm", nil, func(h *hostile, i int) error { return h.fr.WriteGoAway(0, 0, nil) }},
		{"F08/a block beyond all limits", 100, "", 0, "h2_enhance_your_calm", nil, func(h *hostile, i int) error {
			_ = h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id(i), BlockFragment: get})
			for range 8 {
				_ = h.fr.WriteContinuation(id(i), false, field(nil, "x", strings.Repeat("y", 16000)))
			}
			return h.fr.WriteContinuation(id(i), true, nil)
		}},
		{"F08/a table of no size", 10, "", 0, "h2_protocol_error", nil, func(h *hostile, i int) error {
			return h.headers(id(i), append(append([]byte{0x3f, 0xe1, 0xff, 0x7f}, get...), 0x80), true) // a size update to 2 MiB
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.under(t, func(t *testing.T) {
				h := f.hostile(t, true)
				if c.before != nil {
					_ = c.before(h)
				}
				h.flood(c.n, func(i int) error { return c.do(h, i) })
				h.await(t, 5*time.Second)
				h.mu.Lock()
				defer h.mu.Unlock()
				want := http2.ErrCodeEnhanceYourCalm
				if c.reason == "h2_protocol_error" {
					want = http2.ErrCodeCompression
				}
				if h.away && h.goAway != want {
					t.Errorf("GOAWAY %v, expected %v", h.goAway, want)
				}
				f.records(t, h.peer, `"reason":"`+c.reason+`"`)
				if n := f.count(c.path); c.path != "" && n > c.reaches {
					t.Errorf("%d requests reached the target, expected at most %d", n, c.reaches)
				}
				await(t, 5*time.Second, "requests at the target are ended", func() bool { return f.underway("hang") == 0 })
			})
		})
	}
}

// TestHeadFloods are heads that want more memory than they are long.
func TestHeadFloods(t *testing.T) {
	f := newFlooded(t)
	big := strings.Repeat("b", 4000) // in the dynamic table with its name and 32 bytes more (RFC 7541 section 4.1)
	bomb := func(path string, n int, first bool) []byte {
		b := request("GET", path)
		if first {
			b = indexed(b, "x-bomb", big)
			n--
		}
		return append(b, bytes.Repeat([]byte{0x80 | 62}, n)...)
	}
	expect := func(t *testing.T, h *hostile, status string, n int) {
		t.Helper()
		await(t, 5*time.Second, fmt.Sprintf("%d answers of %s", n, status), func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.answers[status] >= n || h.ended.Load()
		})
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.answers[status] < n && !h.away {
			t.Errorf("answers %v, resets %v, GOAWAY %v", h.answers, h.resets, h.goAway)
		}
	}
	t.Run("F08/one byte for 4 KiB", func(t *testing.T) {
		f.under(t, func(t *testing.T) {
			h := f.hostile(t, true, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			h.flood(500, func(i int) error { return h.headers(uint32(2*i+1), bomb("/h1/ok/bomb", 12_000, i == 0), true) })
			expect(t, h, "431", 1)
			h.mu.Lock()
			t.Logf("answers %v, resets %v, GOAWAY %v %v", h.answers, h.resets, h.away, h.goAway)
			h.mu.Unlock()
			h.Close()
			if n := f.count("/h1/ok/bomb"); n > 0 {
				t.Errorf("%d requests reached the target", n)
			}
			f.records(t, "/h1/ok/bomb", `"reason":"header_too_large"`)
		})
	})
	t.Run("F08/as much as is allowed, on all streams, and nothing read", func(t *testing.T) {
		f.under(t, func(t *testing.T) {
			var all []*hostile
			for range 5 {
				h := f.hostile(t, true, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
				h.flood(100, func(i int) error { return h.headers(uint32(2*i+1), bomb("/h2/hang/full", 7, i == 0), true) })
				all = append(all, h)
			}
			await(t, 8*time.Second, "all requests are under way", func() bool { return f.underway("hang") == 500 })
			for _, h := range all {
				h.Close()
			}
			await(t, 8*time.Second, "requests at the target are ended", func() bool { return f.underway("hang") == 0 })
		})
	})
	t.Run("F11/10,000 cookies", func(t *testing.T) {
		f.under(t, func(t *testing.T) {
			for name, head := range map[string]string{
				"in one line": "Cookie: " + strings.Repeat("a=b; ", 10_000) + "\r\n", "in lines": strings.Repeat("Cookie: a=b\r\n", 10_000),
				"10,000 fields": strings.Repeat("X: y\r\n", 10_000), "one long": "X: " + strings.Repeat("y", 100_000) + "\r\n",
			} {
				c := f.dial(t, f.from, "http/1.1")
				r := bufio.NewReader(c)
				start := time.Now()
				go func() { _, _ = io.WriteString(c, "GET /h1/ok/cookies HTTP/1.1\r\nHost: a.test\r\n"+head+"\r\n") }()
				resp, err := http.ReadResponse(r, nil)
				if err != nil || resp.StatusCode != 431 {
					t.Errorf("%s: %v %v, expected 431", name, resp, err)
				} else if took := time.Since(start); took > f.patience/2+stood(start) {
					t.Errorf("%s: after %v", name, took)
				} else {
					t.Logf("HTTP/1.1, %s: 431 after %v", name, took)
				}
				c.Close()
			}
			c := f.dial(t, f.from, "http/1.1")
			if status, _, err := roundTrip(c, bufio.NewReader(c), "GET /h1/ok/"+strings.Repeat("long", 10_000)+" HTTP/1.1\r\nHost: a.test\r\n\r\n"); status != 414 && status != 431 {
				t.Errorf("a long path: %d %v", status, err)
			}
			c.Close()
			for name, fields := range map[string][]string{
				"crumbs": slices.Repeat([]string{"cookie", "a=b"}, 3000), "in one": {"cookie", strings.Repeat("a=b; ", 10_000)},
				"fields": slices.Repeat([]string{"x", "y"}, 101), "one long": {"x", strings.Repeat("y", 40_000)}, "path": {":path", strings.Repeat("y", 40_000)},
			} {
				h := f.hostile(t, true)
				block := request("GET", "/h1/ok/cookies", fields...)
				if name == "path" {
					block = request("GET", "/h1/ok/"+strings.Repeat("y", 40_000))
				}
				start := time.Now()
				first := block[:min(len(block), 16<<10)]
				_ = h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndStream: true, EndHeaders: len(first) == len(block)})
				for rest := block[len(first):]; len(rest) > 0; {
					n := min(len(rest), 16<<10)
					_ = h.fr.WriteContinuation(1, n == len(rest), rest[:n])
					rest = rest[n:]
				}
				_ = h.w.Flush()
				expect(t, h, "431", 1)
				t.Logf("HTTP/2, %s: after %v", name, time.Since(start))
				h.Close()
			}
			if n := f.count("/h1/ok/cookies"); n > 0 {
				t.Errorf("%d requests reached the target", n)
			}
		})
	})
}

// TestSlowClients are clients that take all the time there is, all kinds at once.
func TestSlowClients(t *testing.T) {
	f := newFlooded(t)
	f.room = 160 << 20        // for 1,300 requests and connections at once
	const limit = time.Second // of all but these, for which good clients may be slow too
	const handshake, idle = 4 * time.Second, 5 * time.Second
	silent, streams, readers := 500, 100, 20
	if raceEnabled {
		silent, streams, readers = 100, 30, 5
	}
	f.under(t, func(t *testing.T) {
		var all sync.WaitGroup
		at := func(name string, test func(*testing.T)) { all.Go(func() { t.Run(name, test) }) }
		// drip writes a byte now and then until somebody ends it, and says how long that was after start.
		drip := func(start time.Time, c net.Conn, bytes string) time.Duration {
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			over := make(chan struct{})
			go func() {
				_, _ = io.Copy(io.Discard, c)
				close(over)
			}()
			for i := 0; ; i++ {
				select {
				case <-over:
					return time.Since(start)
				case <-time.After(100 * time.Millisecond):
					if i < len(bytes) {
						_, _ = io.WriteString(c, bytes[i:i+1])
					}
				}
			}
		}
		ends := func(t *testing.T, what string, took, limit time.Duration) {
			t.Helper()
			if took < limit-100*time.Millisecond || took > limit+3*time.Second+f.patience+stood(time.Now().Add(-took)) {
				t.Errorf("%s: ended after %v, the limit is %v", what, took, limit)
			}
		}
		at("F01/silent clients", func(t *testing.T) {
			var all []net.Conn
			start := time.Now()
			for range silent {
				all = append(all, must(dialFrom(f.public))(t))
			}
			for _, c := range all {
				_ = c.SetReadDeadline(time.Now().Add(15 * time.Second))
				_, _ = io.Copy(io.Discard, c)
				c.Close()
			}
			ends(t, "the last one", time.Since(start), handshake)
			f.records(t, all[0].LocalAddr().String(), `"reason":"hello_timeout"`)
			f.records(t, all[silent-1].LocalAddr().String(), `"reason":"hello_timeout"`)
		})
		at("F01/ClientHello byte by byte", func(t *testing.T) {
			var all sync.WaitGroup
			for range 50 {
				all.Go(func() {
					start := time.Now()
					c, err := dialFrom(f.public)
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					ends(t, "slow hello", drip(start, c, string(records(hello{sni: []byte("a.test")}.message(), 16<<10))), handshake)
					f.records(t, c.LocalAddr().String(), `"reason":"hello_timeout"`)
				})
			}
			all.Wait()
		})
		at("F02/head byte by byte, HTTP1", func(t *testing.T) {
			c := f.dial(t, f.from, "http/1.1")
			ends(t, "slow head", drip(time.Now(), c, "GET /h1/ok HTTP/1.1\r\nHost: a.test\r\nX: "+strings.Repeat("x", 1000)), limit)
			f.records(t, c.LocalAddr().String(), `"reason":"header_timeout"`)
		})
		at("F02/HEADERS without an end", func(t *testing.T) {
			h := f.hostile(t, true)
			start := time.Now()
			_ = h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: request("GET", "/h1/ok")})
			_ = h.w.Flush()
			h.await(t, 15*time.Second)
			ends(t, "open head", time.Since(start), limit)
			f.records(t, h.peer, `"reason":"header_timeout"`)
		})
		at("F02/HEADERS byte by byte", func(t *testing.T) {
			h, start := f.hostile(t, false), time.Now()
			var frame bytes.Buffer
			_ = http2.NewFramer(&frame, nil).WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: request("GET", "/h1/ok", "x", strings.Repeat("x", 1000)), EndHeaders: true})
			_, _ = h.Write(frame.Next(9)) // before that nobody knows what it is
			ends(t, "slow HEADERS", drip(start, h.Conn, frame.String()), limit)
			f.records(t, h.peer, `"reason":"header_timeout"`)
		})
		at("F02/CONTINUATION now and then", func(t *testing.T) {
			h, start := f.hostile(t, false), time.Now()
			var frames bytes.Buffer
			fr := http2.NewFramer(&frames, nil)
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: request("GET", "/h1/ok")})
			_, _ = h.Write(frames.Bytes())
			frames.Reset()
			for range 50 {
				_ = fr.WriteContinuation(1, false, field(nil, "x", "y"))
			}
			ends(t, "slow CONTINUATION", drip(start, h.Conn, frames.String()), limit)
			f.records(t, h.peer, `"reason":"header_timeout"`)
		})
		at("F02/frames that say nothing, byte by byte", func(t *testing.T) {
			start := time.Now()
			h := f.hostile(t, false)
			ends(t, "slow PING", drip(start, h.Conn, strings.Repeat("\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678", 30)), idle)
			if took := f.counted(t, `countersign_connection_ends_total{listener="public",reason="idle_closed"}`); took == 0 {
				t.Error("not counted as idle_closed")
			}
		})
		at("F02/body that stops, HTTP1", func(t *testing.T) {
			c, start := f.dial(t, f.from, "http/1.1"), time.Now()
			_, _ = io.WriteString(c, "POST /h1/read/slow HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100000\r\n\r\n"+strings.Repeat("x", 1000))
			ends(t, "stopped body", drip(start, c, ""), limit)
			f.records(t, c.LocalAddr().String(), `"reason":"body_timeout"`)
		})
		for _, to := range []string{"h1", "h2"} {
			at("F02/body that stops, HTTP2 to "+to, func(t *testing.T) {
				h := f.hostile(t, true)
				start := time.Now()
				for i := range 20 {
					_ = h.headers(uint32(2*i+1), request("POST", "/"+to+"/read/slow", "content-length", "100000"), false)
					_ = h.fr.WriteData(uint32(2*i+1), false, make([]byte, 1000))
				}
				_ = h.w.Flush()
				await(t, 8*time.Second, "all 20 end", func() bool {
					h.mu.Lock()
					defer h.mu.Unlock()
					return h.answers["408"] == 20
				})
				ends(t, "stopped bodies", time.Since(start), limit)
				h.Close()
				await(t, 8*time.Second, "20 records of body_timeout", func() bool { return len(f.records(t, h.peer, `"reason":"body_timeout"`)) == 20 })
			})
		}
		at("F09/response that nobody reads, HTTP1", func(t *testing.T) {
			start := time.Now()
			var all []net.Conn
			for range readers {
				c := f.dial(t, f.from, "http/1.1")
				_, _ = io.WriteString(c, "GET /h1/big/http1 HTTP/1.1\r\nHost: a.test\r\n\r\n")
				all = append(all, c)
			}
			for _, c := range all {
				f.records(t, c.LocalAddr().String(), `"reason":"write_timeout"`)
			}
			ends(t, "writes", time.Since(start), limit)
			if n := f.count("/h1/big/http1"); n != readers {
				t.Errorf("%d requests", n)
			}
		})
		for _, to := range []string{"h1", "h2"} {
			for _, c := range []struct {
				name     string
				hears    bool
				settings []http2.Setting
			}{
				{"stream's window of 0", true, []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}},
				{"connection's window used up", true, []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: maxID}}},
				{"nothing read", false, []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: maxID}}},
			} {
				at("F09/"+c.name+", to "+to, func(t *testing.T) {
					h := f.hostile(t, c.hears, c.settings...)
					path := "/" + to + "/big/" + strings.ReplaceAll(c.name, " ", "-")
					start := time.Now()
					if !c.hears {
						_ = h.fr.WriteWindowUpdate(0, maxID-65535)
					}
					for i := range streams {
						_ = h.headers(uint32(2*i+1), request("GET", path), true)
					}
					_ = h.w.Flush()
					await(t, 12*time.Second, "all are asked for", func() bool { return f.count(path) > 0 })
					await(t, 12*time.Second, "records of all", func() bool { return len(f.records(t, h.peer, `"reason":"write_timeout"`)) >= 1 })
					ends(t, "writes", time.Since(start), limit)
					n := 0
					await(t, 8*time.Second, "records of all", func() bool {
						n = len(f.records(t, h.peer, `"kind":"request"`))
						return n == streams
					})
					h.Close()
				})
			}
		}
		all.Wait()
		await(t, 8*time.Second, "requests at the target are ended", func() bool { return f.underway("big")+f.underway("read") == 0 })
	})
}

// TestAborts: clients that go away at every stage, 2,000 requests in all.
func TestAborts(t *testing.T) {
	f := newFlooded(t)
	t.Run("F15/during dial, body and response", func(t *testing.T) {
		f.under(t, func(t *testing.T) {
			var all sync.WaitGroup
			var aborted atomic.Int64
			for worker := range 6 {
				all.Go(func() {
					rnd := rand.New(rand.NewPCG(1, uint64(worker)))
					for range 30 { // connections of HTTP/1.1
						c, err := f.open(f.from, "http/1.1")
						if err != nil {
							t.Error(err)
							return
						}
						switch rnd.IntN(4) {
						case 0:
							_, _ = io.WriteString(c, "GET /deaf/x HTTP/1.1\r\nHost: a.test\r\n\r\n")
						case 1:
							_, _ = io.WriteString(c, "POST /h1/read/x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100000\r\n\r\n"+strings.Repeat("x", rnd.IntN(20_000)))
						case 2:
							_, _ = io.WriteString(c, "GET /h1/big/x HTTP/1.1\r\nHost: a.test\r\n\r\n")
							_, _ = io.ReadFull(c, make([]byte, rnd.IntN(100_000)))
						case 3:
							_, _ = io.WriteString(c, wsRequest("/h1/ws/x"))
							_, _ = io.ReadFull(c, make([]byte, 10))
						}
						time.Sleep(time.Duration(rnd.IntN(5)) * time.Millisecond)
						aborted.Add(1)
						if rnd.IntN(2) == 0 {
							_ = c.NetConn().(*net.TCPConn).SetLinger(0)
							c.NetConn().Close()
						} else {
							c.Close()
						}
					}
				})
				all.Go(func() {
					rnd := rand.New(rand.NewPCG(2, uint64(worker)))
					for range 8 { // connections of HTTP/2
						h := f.hostile(t, true, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100_000})
						for i := range 40 {
							id := uint32(2*i + 1)
							to := []string{"/h1", "/h2"}[rnd.IntN(2)]
							switch rnd.IntN(3) {
							case 0:
								_ = h.headers(id, request("GET", "/deaf/x"), true)
							case 1:
								_ = h.headers(id, request("POST", to+"/read/x"), false)
								_ = h.fr.WriteData(id, false, make([]byte, rnd.IntN(1000)))
							case 2:
								_ = h.headers(id, request("GET", to+"/big/x"), true)
							}
							_ = h.w.Flush()
							aborted.Add(1)
							if rnd.IntN(2) == 0 { // the others end with the connection
								time.Sleep(time.Duration(rnd.IntN(3)) * time.Millisecond)
								_ = h.fr.WriteRSTStream(id, http2.ErrCodeCancel)
							}
						}
						_ = h.w.Flush()
						if rnd.IntN(2) == 0 {
							_ = h.NetConn().(*net.TCPConn).SetLinger(0)
							h.NetConn().Close()
						}
						h.Close()
					}
				})
			}
			all.Wait()
			if n := aborted.Load(); n < 2000 {
				t.Errorf("%d aborts", n)
			}
			await(t, 8*time.Second, "requests at the target are ended", func() bool { return f.underway("big")+f.underway("read")+f.underway("ws") == 0 })
		})
		if n := f.counted(t, "countersign_panics_total"); n != 0 {
			t.Errorf("F16/%d panics", n)
		}
	})
}

// TestSlowTarget: a target that becomes ten times slower under a load that it could bear before.
func TestSlowTarget(t *testing.T) {
	f := newFlooded(t)
	t.Run("F17/ten times slower", func(t *testing.T) {
		f.under(t, func(t *testing.T) {
			for _, phase := range []struct {
				name  string
				delay time.Duration
			}{{"before", 20 * time.Millisecond}, {"ten times slower", 200 * time.Millisecond}, {"after", 20 * time.Millisecond}} {
				f.stage.patience.Store(int64(phase.delay))
				clients := 8
				if phase.delay > 100*time.Millisecond {
					clients = 48
				}
				before := f.count("/few/slow")
				var mu sync.Mutex
				took := map[int][]time.Duration{}
				var all sync.WaitGroup
				begun := time.Now()
				end := begun.Add(1200 * time.Millisecond)
				for range 2 {
					cc, err := f.multiplexed()
					if err != nil {
						t.Fatal(err)
					}
					defer cc.Close()
					for range clients / 2 {
						all.Go(func() {
							for time.Now().Before(end) {
								start := time.Now()
								status, _, err := get2(cc, "/few/slow")
								if err != nil {
									t.Error(err)
									return
								}
								mu.Lock()
								took[status] = append(took[status], time.Since(start))
								mu.Unlock()
								if status != 200 {
									time.Sleep(20 * time.Millisecond)
								}
							}
						})
					}
				}
				all.Wait()
				reached := f.count("/few/slow") - before
				say := ""
				for status, d := range took {
					slices.Sort(d)
					say += fmt.Sprintf(" %d answers of %d, p99 %v;", len(d), status, d[len(d)*99/100].Round(time.Millisecond))
					if p := d[len(d)*99/100]; status == 503 && p > 300*time.Millisecond+f.patience/2+stood(begun) {
						t.Errorf("p99 of 503 is %v, expected queue_timeout of 300ms", p)
					}
					if status != 200 && (status != 503 || clients == 8 && len(d) > reached/10) {
						t.Errorf("%s: %d answers of %d", phase.name, len(d), status)
					}
				}
				t.Logf("%s:%s %d reached the target", phase.name, say, reached)
				if reached > len(took[200])+8 {
					t.Errorf("%s: %d requests reached the target for %d answers: retries", phase.name, reached, len(took[200]))
				}
				if phase.delay > 100*time.Millisecond && len(took[503]) == 0 {
					t.Errorf("%s: nobody was refused", phase.name)
				}
			}
			f.mu().Lock()
			most := f.most["slow"]
			f.mu().Unlock()
			if most > 8 {
				t.Errorf("%d requests at the target at once, expected max_connections of 8", most)
			}
			for _, why := range []string{"upstream_queue_timeout", "upstream_busy"} {
				f.records(t, "/few/slow", why)
			}
		})
	})
}

func (f *flooded) mu() *sync.Mutex { return &f.stage.mu }
