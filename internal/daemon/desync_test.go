package daemon_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// attempt is a row of the smuggling table: what is sent, and what must come of it.
type attempt struct {
	// id is the threat and what is special; it is the name of the subtest.
	id string
	// bytes are what an HTTP/1 client sends. Empty for rows that exist in HTTP/2 only.
	bytes string
	// frames are what an HTTP/2 client sends on one stream, nil for rows that send bytes. h2 is what comes of it, see
	// [answers], and mux the same where the target speaks HTTP/2 as well; empty means as h2.
	frames  []frame
	h2, mux string
	// trailers are what passes behind the body to a target of HTTP/2, as lines of name: value.
	trailers string
	// want is what comes of it in the modes strictest, defensive and monitor, see [answers].
	want [3]string
	// reached is what the target gets for each answer of its own, see [atTarget]. Empty means: exactly bytes, or the request
	// that the frames make. Rows with frames leave its framing out unless they declare a length.
	reached []string
	// partial says that a head may have reached the target, whose connection ends then without the end of a body.
	partial bool
	// own says that the target reads the body as a request of its own. Its answer may come before the client's next one
	// and be taken for that: a connection that carried a body stays with its client, who has then fooled nobody else.
	own bool
}

// outcome is one response of an attempt: "400 bad_header" is a refusal with its reason, after which the connection is
// closed; "200 keep", "200 close" and "200 both" say what becomes of the connections behind an answer of the target: kept,
// the client's closed, or also the target's; "end" is a close without an answer. Several stand with commas between. In
// HTTP/2 the connection lives on behind a refusal, and there are also "RST PROTOCOL_ERROR bad_header" for one stream,
// "GOAWAY PROTOCOL_ERROR h2_protocol_error" for all of them, and "none client_aborted" where the client took it back.
type outcome struct {
	status int
	frame  string // RST, GOAWAY or none
	code   string // of the frame
	reason string // of a refusal
	after  string // keep, close or both
}

func answers(t testing.TB, want string) (all []outcome) {
	for one := range strings.SplitSeq(want, ", ") {
		if one == "end" {
			return append(all, outcome{after: "close"})
		}
		status, rest, _ := strings.Cut(one, " ")
		if status == "RST" || status == "GOAWAY" || status == "none" {
			a := outcome{frame: status, reason: rest}
			if status != "none" {
				a.code, a.reason, _ = strings.Cut(rest, " ")
			}
			all = append(all, a)
			continue
		}
		n, err := strconv.Atoi(status)
		if err != nil {
			t.Fatalf("bad row: %q", want)
		}
		a := outcome{status: n, after: rest}
		if !slices.Contains([]string{"keep", "close", "both"}, rest) {
			a.reason, a.after = rest, "close"
		}
		all = append(all, a)
	}
	return all
}

// sender is a way to make an attempt: a front end and a mode of it.
type sender struct {
	name, listener string
	mode           int  // index into attempt.want
	h2             bool // it sends attempt.frames, and expects attempt.h2
	mux            bool // and its target speaks HTTP/2 as well
	// send makes the attempt, and checks the answers and what the target got by then. Behind it the client asks for
	// something of its own, or sees the end of the connection, as the row says.
	send func(t *testing.T, g *muxRig, s *sender, a *attempt)
}

var senders = []sender{
	{name: "strictest", listener: "strictest", mode: 0, send: sendBytes}, {name: "defensive", listener: "defensive", mode: 1, send: sendBytes},
	{name: "monitor", listener: "monitor", mode: 2, send: sendBytes}, {name: "tls", listener: "tls", mode: 0, send: sendBytes},
	{name: "h2 to h1", listener: "tls", h2: true, send: sendFrames}, {name: "h2 to h2", listener: "multiplexed", h2: true, mux: true, send: sendFrames},
}

// takes reports whether s has a way to make the attempt.
func (s *sender) takes(a *attempt) bool { return s.h2 && a.frames != nil || !s.h2 && a.bytes != "" }

func (s *sender) want(a *attempt) string {
	switch {
	case s.mux && a.mux != "":
		return a.mux
	case s.h2:
		return a.h2
	}
	return a.want[s.mode]
}

const desyncConf = `
ops: {listen: 127.0.0.1:0}
trust_stores:
  clients: {ca_bundle: {file: clients.pem}}
listeners:
  strictest: {listen: 127.0.0.1:0, protocol: http, limits: {header_bytes: 16KiB}, hosts: [{names: [a.test], routes: [{upstream: api}]}]}
  defensive: {listen: 127.0.0.1:0, protocol: http, desync_mitigation: defensive, limits: {header_bytes: 16KiB}, hosts: [{names: [a.test], routes: [{upstream: api}]}]}
  monitor: {listen: 127.0.0.1:0, protocol: http, desync_mitigation: monitor, limits: {header_bytes: 16KiB}, hosts: [{names: [a.test], routes: [{upstream: api}]}]}
  tls:
    listen: 127.0.0.2:0
    protocol: https
    desync_mitigation: strictest
    limits: {header_bytes: 16KiB}
    hosts: [{names: [a.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, routes: [{match: {path: /ws/*}, upgrade: [websocket], upstream: api}, {upstream: api}]}]
upstreams:
  api: {targets: ["http://BACKEND"], timeouts: {connect: 5s}}
`

func newDesyncRig(t testing.TB) *rig {
	g := &rig{world: newWorld(t)}
	g.alice = g.ca.Client("alice")
	g.b = newRecorder(t, nil)
	g.start(desyncConf, g.b.addr)
	return g
}

// to connects to a listener of desyncConf.
func (g *rig) to(t testing.TB, listener string) net.Conn {
	t.Helper()
	if listener == "tls" || listener == "multiplexed" {
		return g.connect(t, listener)
	}
	c, err := net.Dial("tcp", g.addr(listener))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// ours are the beginnings of the names of fields that we add.
var ours = []string{"via:", "x-forwarded-", "forwarded:", "client-cert", "traceparent:", "tracestate:", "x-amzn-", "x-request-id:"}

// atTarget cuts what a target got into requests that can be compared: without what we add, and with chunked bodies
// decoded. It fails on everything that RFC 9112 does not allow, whoever sent it: what we forward is written by us.
func atTarget(t testing.TB, got string) (all []string) {
	t.Helper()
	for r := bufio.NewReader(strings.NewReader(got)); ; {
		var out strings.Builder
		length, chunked, framings := 0, false, 0
		for i := 0; ; i++ {
			line, err := r.ReadString('\n')
			if err == io.EOF && line == "" && i == 0 {
				return all
			}
			text, ok := strings.CutSuffix(line, "\r\n")
			if !ok || strings.ContainsAny(text, "\r\n\x00") {
				t.Errorf("the target got a line that does not end, or holds a control character: %q (%v) in %q", line, err, got)
				return append(all, out.String()+line)
			}
			if text == "" {
				break
			}
			low := strings.ToLower(text)
			name, val, _ := strings.Cut(low, ":")
			switch {
			case strings.Contains(low, "spoof"):
				t.Errorf("the target got %q", text)
			case i == 0:
				if f := strings.Split(text, " "); len(f) != 3 || f[2] != "HTTP/1.1" || f[1] == "" {
					t.Errorf("the target got the request line %q", text)
				}
			case name == "content-length":
				n, err := strconv.Atoi(strings.TrimPrefix(val, " "))
				if err != nil || val != fmt.Sprintf(" %d", n) {
					t.Errorf("the target got %q", text)
				}
				length = n
				framings++
			case name == "transfer-encoding":
				if val != " chunked" {
					t.Errorf("the target got %q", text)
				}
				chunked = true
				framings++
			case strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^`|~") != "" || strings.Contains(name, "_"):
				t.Errorf("the target got the name %q", text)
			case slices.ContainsFunc([]string{"contentlength", "transferencoding"}, func(s string) bool { return strings.Map(letters, name) == s }):
				t.Errorf("the target got %q", text)
			}
			if !slices.ContainsFunc(ours, func(p string) bool { return strings.HasPrefix(low, p) }) {
				out.WriteString(text + "\r\n")
			}
		}
		out.WriteString("\r\n")
		if framings > 1 {
			t.Errorf("the target got several framings: %q", got)
		}
		body := make([]byte, length)
		_, err := io.ReadFull(r, body)
		if chunked {
			if body, err = io.ReadAll(httputil.NewChunkedReader(r)); err == nil {
				_, err = io.ReadFull(r, make([]byte, 2)) // the empty line
			}
		}
		if err != nil {
			t.Errorf("the target got a body that does not end: %q", got)
		}
		out.Write(body)
		all = append(all, out.String())
	}
}

func letters(r rune) rune {
	if r >= 'a' && r <= 'z' {
		return r
	}
	return -1
}

// sendBytes makes an attempt over HTTP/1.
func sendBytes(t *testing.T, g *muxRig, s *sender, a *attempt) {
	c := g.to(t, s.listener)
	mark := g.log.size()
	want := answers(t, s.want(a))
	go func() { // a refusal may come before all of it was taken
		_, _ = io.WriteString(c, a.bytes)
		if want[0].status == 0 {
			_ = c.(interface{ CloseWrite() error }).CloseWrite()
		}
	}()
	r := bufio.NewReader(c)
	method, _, _ := strings.Cut(a.bytes, " ")
	for i, w := range want {
		if w.status == 0 {
			break
		}
		got, err := readReply(r, method)
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		if got.StatusCode != w.status {
			t.Errorf("answer %d: expected %d, found %d", i, w.status, got.StatusCode)
		}
		if w.reason != "" && method != "HEAD" {
			_, ref, _ := strings.Cut(got.body, "reference: ")
			if why := g.since(t, mark, "ref="+strings.TrimSpace(ref))["reason"]; why != w.reason {
				t.Errorf("answer %d: expected %s, found %v", i, w.reason, why)
			}
		}
		if closes := w.after != "keep"; got.Close != closes {
			t.Errorf("answer %d: expected close %v, found %v", i, closes, got.Close)
		}
		method = "GET"
	}
	if want[len(want)-1].after != "keep" {
		ended(t, r)
		g.checkTarget(t, a, want, g.b.got())
		return
	}
	target := g.b.got()
	if status, body, err := roundTrip(c, r, "GET /mine HTTP/1.1\r\n"+hostLine+"\r\n"); !a.own && (status != 200 || body != "GET /mine 0") {
		t.Errorf("the next request of the client: %d %q %v", status, body, err)
	}
	g.checkTarget(t, a, want, target)
}

// TestSmuggling is the smuggling table: what two readers could take for different requests, sent to each front end in
// each of its modes. It says how it is answered, what of it reached the target, what becomes of the connections, and that
// the next client gets its own answers (E01 to E16, E23, E24, E32, E33; h1 and h2 have the same and more for their parsers).
func TestSmuggling(t *testing.T) {
	table, frames := smuggling(), smugglingFrames()
	if len(table) < 200 || len(frames) < 200 {
		t.Errorf("%d rows of bytes, %d of frames", len(table), len(frames))
	}
	table = append(table, frames...)
	g := newMuxRig(t)
	g.b.on("/static", func(c *recorded, r *http.Request) bool { // answers, and takes the body for a request
		_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstatic")
		return err == nil
	})
	victims := make(map[string]net.Conn) // of each listener, with a connection of its own that stays
	readers := make(map[string]*bufio.Reader)
	served := 0
	ids := make(map[string]bool)
	for i := range table {
		a := &table[i]
		if ids[a.id] {
			t.Errorf("two rows %s", a.id)
		}
		ids[a.id] = true
		for j := range senders {
			s := &senders[j]
			if !s.takes(a) {
				continue
			}
			if victims[s.listener] == nil { // and not before: until it is asked for something it may idle for too long
				victims[s.listener] = g.to(t, s.listener)
				readers[s.listener] = bufio.NewReader(victims[s.listener])
			}
			t.Run(a.id+"/"+s.name, func(t *testing.T) {
				g.b.reset()
				g.mux.reset()
				s.send(t, g, s, a)
				v := victims[s.listener]
				_ = v.SetDeadline(time.Now().Add(10 * time.Second))
				served++
				path := fmt.Sprintf("/victim-%d", served)
				if status, body, err := roundTrip(v, readers[s.listener], "GET "+path+" HTTP/1.1\r\n"+hostLine+"\r\n"); status != 200 || body != "GET "+path+" 0" {
					t.Fatalf("the next client: %d %q %v", status, body, err)
				}
				for _, asked := range append(g.b.asked(), g.mux.asked()...) {
					// In mode monitor, what is behind a length that is not one is the client's next request.
					if strings.HasSuffix(asked, " /admin") && !a.own && !slices.Contains(a.reached, smuggled) {
						t.Errorf("the target was asked %q", asked)
					}
				}
			})
		}
	}
}

// quiet waits until the target has seen the end of every connection that is closed, so that nothing of one attempt is
// taken for a part of the next.
func (g *rig) quiet(t *testing.T) {
	t.Helper()
	await(t, 5*time.Second, "the target to see what was closed", func() bool {
		open := 0
		for name, n := range g.scrape(t) {
			if strings.HasPrefix(name, "countersign_upstream_connections{") && strings.Contains(name, g.b.addr) {
				m, _ := strconv.Atoi(n)
				open += m
			}
		}
		return g.b.open() == open
	})
}

// checkTarget compares what the target got, and what became of the connection that carried it.
func (g *rig) checkTarget(t *testing.T, a *attempt, want []outcome, got string) {
	t.Helper()
	first := want[0]
	switch {
	case a.partial:
		if strings.Contains(got, "0\r\n\r\n") || strings.Contains(got, "/admin") {
			t.Errorf("reached the target: %q", got)
		}
		if c := g.b.carrier("/x"); c != nil {
			c.closed(t, 8*time.Second)
		} else {
			g.quiet(t) // the fault was seen before anything was sent, or the target has not read it yet
		}
	case first.status == 0 || first.reason != "":
		if got != "" {
			t.Errorf("reached the target: %q", got)
		}
	case a.own:
		// It gets two requests, or one with a body; what counts is what the next client gets.
	default:
		expected := a.reached
		if expected == nil {
			expected = []string{a.bytes}
		}
		passed := 0
		for _, w := range want {
			if w.reason == "" {
				passed++
			}
		}
		expected = slices.Sorted(slices.Values(expected[:min(passed, len(expected))]))
		if all := slices.Sorted(slices.Values(atTarget(t, got))); !slices.Equal(all, expected) {
			t.Errorf("the target got %q\nexpected %q", all, expected)
		}
		if first.after == "both" {
			g.b.carrier("/x").closed(t, 8*time.Second)
		}
	}
}

const smuggled = "GET /admin HTTP/1.1\r\n" + hostLine + "\r\n"

// What is refused in Transfer-Encoding, Content-Length and Expect.
var (
	badCodings = []string{"xchunked", "chunked, identity", ",chunked", "chunked,", "chunked;q=1", "chunked, chunked", "identity", "gzip, chunked", "gzip", "chunked gzip", "\"chunked\"",
		"'chunked'", "", "chunke", "chunkedd", "identity, chunked", "\xa0chunked", "chun\u212aed", "cow", "chunked\xa0"}
	badLengths = []string{"", "+5", "-5", "-0", "0x5", "5,5", "5, 5", "5 5", "5_0", "_", "5.", "5e0", "\"5\"", "9223372036854775808", "18446744073709551616", "18446744073709551621", "00000000000000000005",
		"\u0665", "5;", "five"}
	badExpectations = []string{"200-maybe", "100-continued", "100-continue, x", "", "y100-continue", "100-continue;a=b", "100 -continue"}
)

// smuggling makes the table.
func smuggling() (table []attempt) {
	const get = "GET /x HTTP/1.1\r\n"
	post := func(fields, body string) string { return postTo("/x", fields, body) }
	chunked := func(body string) string { return post("Transfer-Encoding: chunked\r\n", body) }
	// each adds rows that come out alike, numbered if there are several.
	each := func(id string, want [3]string, reached string, bytes ...string) {
		for i, b := range bytes {
			name := id
			if len(bytes) > 1 {
				name = fmt.Sprintf("%s-%d", id, i)
			}
			row := attempt{id: name, bytes: b, want: want}
			if reached != "" {
				row.reached = []string{reached}
			}
			table = append(table, row)
		}
	}
	// refused adds rows that every mode refuses: what has no single meaning.
	refused := func(id, want string, bytes ...string) { each(id, [3]string{want, want, want}, "", bytes...) }
	// loose adds rows that only the strictest mode refuses; the others pass on reached.
	loose := func(id, strict, defensive, reached string, bytes ...string) {
		each(id, [3]string{strict, defensive, "200 keep"}, reached, bytes...)
	}
	passed := func(id, after, reached string, bytes ...string) {
		each(id, [3]string{after, after, after}, reached, bytes...)
	}

	// CL and TE.
	refused("E01/both", "400 framing_ambiguous",
		post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+smuggled), post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"+smuggled),
		post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+smuggled), post("Transfer-Encoding: chunked\r\nContent-Length: x\r\n", "0\r\n\r\n"+smuggled),
		post("Transfer-Encoding: identity\r\nContent-Length: 5\r\n", "hello"+smuggled), post("Transfer-Encoding:\r\nContent-Length: 5\r\n", "hello"+smuggled),
		get+hostLine+"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"+smuggled, post("Content-Length: 5\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+smuggled))
	for i, v := range badCodings {
		refused(fmt.Sprintf("E02/value-%d", i), "501 transfer_encoding_unsupported", post("Transfer-Encoding: "+v+"\r\n", "0\r\n\r\n"+smuggled))
	}
	refused("E02/control", "400 bad_header", post("Transfer-Encoding: \x0bchunked\r\n", smuggled), post("Transfer-Encoding: chunked\x0c\r\n", smuggled), post("Transfer-Encoding: chun\x00ked\r\n", smuggled),
		post("Transfer-Encoding:\r\n chunked\r\n", smuggled), post("Transfer-Encoding : chunked\r\n", smuggled), post("Transfer-Encoding\t: chunked\r\n", smuggled), post("X: y\r\n Transfer-Encoding: chunked\r\n", smuggled),
		post("X: y\rTransfer-Encoding: chunked\r\n", smuggled), post("X: y\nTransfer-Encoding: chunked\r\n", smuggled), post("Transfer-Encod\u0131ng: chunked\r\n", smuggled))
	refused("E02/twice", "400 framing_ambiguous", post("Transfer-Encoding: chunked\r\nTransfer-encoding: chunked\r\n", "0\r\n\r\n"+smuggled), post("Transfer-Encoding: chunked\r\nTransfer-encoding: identity\r\n", "0\r\n\r\n"+smuggled),
		post("Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n", smuggled))
	refused("E03/http10", "400 framing_ambiguous", "POST /x HTTP/1.0\r\n"+hostLine+"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"+smuggled,
		"POST /x HTTP/1.0\r\n"+hostLine+"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"+smuggled)
	for i, v := range badLengths {
		refused(fmt.Sprintf("E04/value-%d", i), "400 content_length_invalid", post("Content-Length: "+v+"\r\n", "hello"+smuggled))
	}
	refused("E04/control", "400 bad_header", post("Content-Length: 5\x0b\r\n", "hello"+smuggled), post("Content-Length: 5\x00\r\n", "hello"), post("Content-Length:\x0c5\r\n", "hello"), post("Content-Length : 5\r\n", "hello"+smuggled),
		post("Content-Length:\r\n 5\r\n", "hello"+smuggled), post("Content-Length: 5\r\n 0\r\n", "hello"+smuggled), post("\x01Content-Length: 5\r\n", "hello"+smuggled), post("Content-Length: 5\r5\r\n", "hello"+smuggled))
	refused("E04/differ", "400 content_length_invalid", post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"+smuggled), post("Content-Length: 5\r\ncontent-length: 05\r\n", "hello"+smuggled), post("Content-Length: x\r\nContent-Length: x\r\n", smuggled),
		post("Content-Length: 5\r\nContent-Length:\r\n", "hello"+smuggled))
	loose("E04/duplicate", "400 content_length_invalid", "200 both", post("Content-Length: 5\r\n", "hello"), post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), post("content-length: 5\r\nContent-Length: 5\r\nCONTENT-LENGTH: 5\r\n", "hello"))
	loose("E04/duplicate zero", "400 content_length_invalid", "200 both", post("Content-Length: 0\r\n", ""), post("Content-Length: 0\r\nContent-Length: 0\r\n", ""))
	loose("E04/resembles", "400 bad_header", "200 both", post("X-A: b\r\n", ""), post("X-A: b\r\nContent_Length: 5\r\n", ""), post("Content--Length: 5\r\nX-A: b\r\n", ""), post("X-A: b\r\nCONTENT.LENGTH: 5\r\n", ""),
		post("X-A: b\r\nContent-Length-: 5\r\n", ""), post("X-A: b\r\n_content-length: 5\r\n", ""))
	loose("E04/resembles, beside the real one", "400 bad_header", "200 both", post("Content-Length: 5\r\n", "hello"), post("Content_Length: 50\r\nContent-Length: 5\r\n", "hello"), post("Content-Length: 5\r\nTransfer_Encoding: chunked\r\n", "hello"))
	loose("E02/resembles", "400 bad_header", "200 both", post("X-A: b\r\n", ""), post("X-A: b\r\nTransfer_Encoding: chunked\r\n", ""), post("X-A: b\r\nTransfer--Encoding: chunked\r\n", ""), post("'Transfer-Encoding': chunked\r\nX-A: b\r\n", ""))
	passed("E04/zeros", "200 keep", post("Content-Length: 5\r\n", "hello"), post("Content-Length: 005\r\n", "hello"), post("Content-Length:\t5 \r\n", "hello"))
	passed("E04/zero", "200 keep", "", post("Content-Length: 0\r\n", ""))

	// Chunk syntax. The head may be on its way already.
	first := len(table)
	for i, size := range []string{"0x5", "+5", "-5", "5_", "_5", " 5", "5 ", "\t5", "5\t", "5 ;x", "", ";x", "g", "5,", "0000000000000005", "ffffffffffffffff", "10000000000000005", "5\x00", "5;\x00", "5;x\x7f", "5;\x0b"} {
		refused(fmt.Sprintf("E05/size-%d", i), "400 chunk_invalid", chunked(size+"\r\nhello\r\n0\r\n\r\n"+smuggled))
	}
	refused("E05/line-ends", "400 chunk_invalid", chunked("5\nhello\r\n0\r\n\r\n"+smuggled), chunked("5\r\nhello\n0\r\n\r\n"), chunked("5\r\nhello\r\n0\n\r\n"+smuggled), chunked("5\r\nhello\r\n0\r\n\n"+smuggled),
		chunked("5;a\nb\r\nhello\r\n0\r\n\r\n"), chunked("5;a\rb\r\nhello\r\n0\r\n\r\n"), chunked("5\r;\r\nhello\r\n0\r\n\r\n"), chunked("5\r\r\nhello\r\n0\r\n\r\n"), chunked("\r\n5\r\nhello\r\n0\r\n\r\n"))
	refused("E05/data", "400 chunk_invalid", chunked("5\r\nhello0\r\n\r\n"+smuggled), chunked("5\r\nhelloXX0\r\n\r\n"), chunked("5\r\nhello!\r\n0\r\n\r\n"), chunked("4\r\nhello\r\n0\r\n\r\n"), chunked("5\r\nhello\r0\r\n\r\n"), chunked("5\r\nhello\r\r\n0\r\n\r\n"))
	refused("E05/flood", "400 chunk_invalid", chunked("1;"+strings.Repeat("x", 5000)+"\r\na\r\n0\r\n\r\n"), chunked(strings.Repeat("1;"+strings.Repeat("x", 1000)+"\r\na\r\n", 17)+"0\r\n\r\n"))
	refused("E05/bare LF head and chunks", "400 bad_header", "POST /x HTTP/1.1\r\nHost: a.test\nTransfer-Encoding: chunked\n\n5\nhello\n0\n\n")
	for i, tr := range []string{"no colon\r\n", ": empty\r\n", "X : y\r\n", " X: folded\r\n", "X: a\r\n b\r\n", "X: \x00\r\n", "X: a\rb\r\n", "X: a\nY: b\r\n", "X\x80: a\r\n", "X: " + strings.Repeat("y", 5000) + "\r\n"} {
		refused(fmt.Sprintf("E06/syntax-%d", i), "400 chunk_invalid", chunked("0\r\n"+tr+"\r\n"+smuggled))
	}
	for i := range table[first:] {
		table[first+i].partial = table[first+i].want[0] == "400 chunk_invalid"
	}
	each("E05/bare LF chunks behind a head of bare LF", [3]string{"400 bad_header", "400 chunk_invalid", "400 chunk_invalid"}, "", "POST /x HTTP/1.1\nHost: a.test\nTransfer-Encoding: chunked\n\n5\nhello\n0\n\n")
	table[len(table)-1].partial = true
	for _, name := range []string{"Content-Length", "Transfer-Encoding", "Host", "Authorization", "X-Client-Cert", "X-Forwarded-For", "Connection", "Cookie", "X-Harmless"} {
		passed("E06/"+name, "200 keep", chunked("hello"), post("Trailer: "+name+"\r\nTransfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n"+name+": 77\r\n\r\n"))
	}
	passed("E05/extension", "200 keep", chunked("hello"), chunked("5;a=\"b\"\r\nhello\r\n0;z\r\n\r\n"), chunked("00005\r\nhello\r\n000\r\n\r\n"), chunked("2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"))
	passed("E05/a request inside", "200 keep", chunked("\r\n0\r\n\r\n"+smuggled), chunked(fmt.Sprintf("%x\r\n\r\n0\r\n\r\n%s\r\n0\r\n\r\n", 7+len(smuggled), smuggled)))

	// Header syntax.
	for i, l := range []string{"X-A : b", ": b", ":", "X-A", "X A: b", "X-A\x00: b", "X-A: b\x00", "X-A: b\rc", "X-\xff: b", "X-A\t: b", "X(A): b", "X-A: b\x7f", "X-A: \x1b[31m", "\x00", "X-A: b\x01", "X-A: b\r\r", "[X]: y"} {
		refused(fmt.Sprintf("E07/line-%d", i), "400 bad_header", get+hostLine+l+"\r\n\r\n"+smuggled)
	}
	refused("E07/first line", "400 bad_header", get+" X: y\r\n"+hostLine+"\r\n"+smuggled, get+"\tX: y\r\n"+hostLine+"\r\n", get+" "+hostLine+"\r\n", get+"\r"+hostLine+"\r\n")
	refused("E08/mixed line ends", "400 bad_header", "GET /x HTTP/1.1\nHost: a.test\r\n\r\n"+smuggled, get+"Host: a.test\n\r\n"+smuggled, get+hostLine+"\n"+smuggled, get+hostLine+"X: a\nY: b\r\n\r\n",
		"GET /x HTTP/1.1\nHost: a.test\n\r\n"+smuggled, get+hostLine+"X: a\n\nGET /admin HTTP/1.1\r\n"+hostLine+"\r\n")
	loose("E08/bare LF", "400 bad_header", "200 keep", get+hostLine+"X-A: b\r\n\r\n", "GET /x HTTP/1.1\nHost: a.test\nX-A: b\n\n")
	loose("E08/bare LF with a body", "400 bad_header", "200 keep", post("Content-Length: 5\r\n", "hello"), "POST /x HTTP/1.1\nHost: a.test\nContent-Length: 5\n\nhello")
	loose("E08/bare LF, chunked", "400 bad_header", "200 keep", chunked("hello"), "POST /x HTTP/1.1\nHost: a.test\nTransfer-Encoding: chunked\n\n5\r\nhello\r\n0\r\n\r\n")
	loose("E08/fold", "400 bad_header", "200 both", get+hostLine+"X-A: b   c\r\nX-B: d\r\n\r\n", get+hostLine+"X-A: b\r\n c\r\nX-B: d\r\n\r\n")
	loose("E08/fold with tab", "400 bad_header", "200 both", get+hostLine+"X-A: b  \tc\r\n\r\n", get+hostLine+"X-A: b\r\n\tc\r\n\r\n")
	loose("E08/fold of nothing", "400 bad_header", "200 both", get+hostLine+"X-A: c\r\n\r\n", get+hostLine+"X-A:\r\n c\r\n\r\n", get+hostLine+"X-A: \r\n \tc\t \r\n\r\n")
	refused("E08/fold like a field", "400 bad_header", get+hostLine+"X-A: b\r\n Content-Length: 50\r\n\r\n"+smuggled, get+hostLine+"X-A: b\r\n\tTransfer-Encoding: chunked\r\n\r\n"+smuggled, get+hostLine+"X-A: b\r\n : c\r\n\r\n",
		get+hostLine+"X-A: b\r\n c\r\n Host: b.test\r\n\r\n")
	refused("E08/fold of white space", "400 bad_header", get+hostLine+"X-A: b\r\n \r\n\r\n", get+hostLine+"X-A: b\r\n\t\r\n"+smuggled, get+hostLine+"X-A:\r\n \r\n b\r\n\r\n")
	refused("E08/fold of what decides", "400 bad_header", get+"Host:\r\n a.test\r\n\r\n", get+"Host: a.test\r\n b.test\r\n\r\n", get+hostLine+"Connection: close\r\n ,x\r\n\r\n", get+hostLine+"Expect:\r\n 100-continue\r\n\r\n", get+hostLine+"Upgrade:\r\n h2c\r\n\r\n",
		get+hostLine+"Content_Length:\r\n 5\r\n\r\n")
	passed("E07/white space around a value", "200 keep", get+hostLine+"X-A: b c\r\nX-B: \r\n\r\n", get+"Host:\ta.test \r\nX-A: \t b c\t\r\nX-B:\r\n\r\n")

	// Request line.
	for i, l := range []string{"GET /x", "GET", "GET  /x HTTP/1.1", "GET /x HTTP/1.1 ", "GET /x  HTTP/1.1", "GET\t/x\tHTTP/1.1", "GET\t/x HTTP/1.1", "GET /x\tHTTP/1.1", "GET /x b HTTP/1.1", "GET /x#f HTTP/1.1", "GET /x?b#c HTTP/1.1", "GET /\xff HTTP/1.1", "GET /\x00 HTTP/1.1",
		"GET /\x7f HTTP/1.1", "GET /x http/1.1", "GET /x HTTP/1.11", "GET /x HTTP/1", "GET /x HTTP/01.1", "GET /x HTTPS/1.1", "GET /x \tHTTP/1.1", "GET /x HTTP/1.1\r", "GET a.test HTTP/1.1", "GET a.test:80 HTTP/1.1", "GET * HTTP/1.1", "GET ftp://a.test/ HTTP/1.1",
		"GET http:/a.test/ HTTP/1.1", "GET http://a.test?q HTTP/1.1", "GET ?q HTTP/1.1", "G(T /x HTTP/1.1", "GET: /x HTTP/1.1", "G\xc3\x89T /x HTTP/1.1", "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG /x HTTP/1.1", "/x GET HTTP/1.1", "GET HTTP/1.1", "GET  HTTP/1.1", " GET /x HTTP/1.1", "\r\nGET /x HTTP/1.1",
		"GET /x HTTP/1.1 HTTP/1.1", "GET /x HTTP/1.1 /admin HTTP/1.1"} {
		refused(fmt.Sprintf("E10/line-%d", i), "400 bad_request_line", l+"\r\n"+hostLine+"\r\n"+smuggled)
	}
	for i, v := range []string{"HTTP/1.2", "HTTP/0.9", "HTTP/2.0", "HTTP/3.0", "HTTP/9.9", "HTTP/1,1"} {
		refused(fmt.Sprintf("E10/version-%d", i), "505 version_unsupported", "GET /x "+v+"\r\n"+hostLine+"\r\n"+smuggled)
	}
	refused("E10/preface", "505 version_unsupported", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	refused("E10/cut", "end", "GET /x HT", get+"Host: a.te", get+hostLine, get+hostLine+"\r", "GET /x HTTP/1.1\r\nHost: a.test\r")
	passed("E10/http10", "200 close", get+hostLine+"\r\n", "GET /x HTTP/1.0\r\n"+hostLine+"\r\n"+smuggled)

	// Host.
	refused("E09/missing", "400 host_missing", get+"\r\n"+smuggled, get+"Host:\r\n\r\n", "GET /x HTTP/1.0\r\n\r\n", "GET http://a.test/x HTTP/1.1\r\n\r\n")
	refused("E09/ambiguous", "400 host_ambiguous", get+hostLine+hostLine+"\r\n", get+hostLine+"Host: b.test\r\n\r\n", get+"Host: b.test\r\nhost: a.test\r\n\r\n", "GET http://b.test/x HTTP/1.1\r\n"+hostLine+"\r\n", "GET http://u@a.test/x HTTP/1.1\r\n"+hostLine+"\r\n",
		"GET http://a.test:80/x HTTP/1.1\r\n"+hostLine+"\r\n", "GET http://a.test./x HTTP/1.1\r\n"+hostLine+"\r\n")
	refused("E09/invalid", "400 host_invalid", get+"Host: a.test,b.test\r\n\r\n", get+"Host: u@a.test\r\n\r\n", get+"Host: a.test/x\r\n\r\n", get+"Host: a.test:\r\n\r\n", get+"Host: a.test:0\r\n\r\n", get+"Host: a..test\r\n\r\n", get+"Host: a.t\xc3\xa9st\r\n\r\n",
		get+"Host: a.test b\r\n\r\n", get+"Host: a.test\\b\r\n\r\n", "GET http:///x HTTP/1.1\r\n"+hostLine+"\r\n", "GET http://u@a.test/x HTTP/1.1\r\nHost: u@a.test\r\n\r\n")
	passed("E09/absolute", "200 keep", get+hostLine+"\r\n", "GET http://a.test/x HTTP/1.1\r\n"+hostLine+"\r\n", "GET HTTPS://A.TEST/x HTTP/1.1\r\n"+hostLine+"\r\n")

	// What frames a body where none is expected.
	for _, method := range []string{"GET", "HEAD"} {
		each("E11/"+method+" with length", [3]string{"200 both", "200 both", "200 keep"}, "", method+" /x HTTP/1.1\r\n"+hostLine+"Content-Length: 10\r\n\r\n0123456789")
		each("E11/"+method+" chunked", [3]string{"200 both", "200 both", "200 keep"}, method+" /x HTTP/1.1\r\n"+hostLine+"Transfer-Encoding: chunked\r\n\r\nhello",
			method+" /x HTTP/1.1\r\n"+hostLine+"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
		passed("E11/"+method+" with zero", "200 keep", method+" /x HTTP/1.1\r\n"+hostLine+"\r\n", method+" /x HTTP/1.1\r\n"+hostLine+"Content-Length: 0\r\n\r\n")
	}
	for _, method := range []string{"DELETE", "OPTIONS", "PATCH", "PROPFIND", "get"} {
		passed("E11/"+method, "200 keep", "", method+" /x HTTP/1.1\r\n"+hostLine+"Content-Length: 10\r\n\r\n0123456789")
	}

	// Upgrades, tunnels, expectations and hop-by-hop fields.
	refused("E15/upgrade", "501 upgrade_refused", get+hostLine+"Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n\r\n"+smuggled, get+hostLine+"Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n\r\n"+smuggled, get+hostLine+"Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n\r\n")
	passed("E15/h2c", "200 keep", get+hostLine+"\r\n", get+hostLine+"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
	refused("E16/connect", "405 method_refused", "CONNECT a.test:443 HTTP/1.1\r\n"+hostLine+"\r\n"+smuggled, "CONNECT / HTTP/1.1\r\n"+hostLine+"\r\n"+smuggled, "TRACE /x HTTP/1.1\r\n"+hostLine+"\r\n")
	for i, v := range badExpectations {
		refused(fmt.Sprintf("E23/expect-%d", i), "417 expectation_unsupported", post("Content-Length: 5\r\nExpect: "+v+"\r\n", "hello"+smuggled))
	}
	refused("E23/twice", "417 expectation_unsupported", post("Content-Length: 5\r\nExpect: 100-continue\r\nExpect: 100-continue\r\n", "hello"+smuggled))
	passed("E23/with the body", "200 keep", post("Content-Length: 5\r\n", "hello"), post("Content-Length: 5\r\nExpect: 100-continue\r\n", "hello"))
	passed("E23/without a body", "200 keep", get+hostLine+"\r\n", get+hostLine+"Expect: 100-continue\r\n\r\n")
	each("E23/get with a body", [3]string{"200 both", "200 both", "200 keep"}, get+hostLine+"Content-Length: 5\r\n\r\nhello", get+hostLine+"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello")
	refused("D02/connection", "400 protected_connection_token", get+hostLine+"Connection: X-Forwarded-For\r\n\r\n", get+hostLine+"Connection: close, x_client_cert\r\n\r\n", post("Connection: content-length\r\nContent-Length: 5\r\n", "hello"), post("Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"))

	// Pipelining.
	one, five, twice := get+hostLine+"\r\n", post("Content-Length: 5\r\n", "hello"), post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello")
	withBody := get + hostLine + "Content-Length: 5\r\n\r\nhello"
	pipelined := func(id string, want [3]string, bytes string, reached ...string) {
		table = append(table, attempt{id: id, bytes: bytes, want: want, reached: reached})
	}
	alike := func(want string) [3]string { return [3]string{want, want, want} }
	pipelined("E24/refused second", alike("200 keep, 400 bad_header"), one+get+hostLine+"X : y\r\n\r\n"+smuggled, one)
	pipelined("E24/refused third", alike("200 keep, 200 keep, 400 framing_ambiguous"), one+five+post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"+smuggled), one, five)
	pipelined("E24/three", alike("200 keep, 200 keep, 200 keep"), one+five+one, one, five, one)
	pipelined("E24/behind close", alike("200 close"), get+hostLine+"Connection: close\r\n\r\n"+smuggled, one)
	pipelined("E24/behind http10", alike("200 close"), "GET /x HTTP/1.0\r\n"+hostLine+"\r\n"+smuggled, one)
	pipelined("E24/behind a duplicate", [3]string{"400 content_length_invalid", "200 both", "200 keep, 200 keep"}, twice+one, five, one)
	pipelined("E24/behind a get with a body", [3]string{"200 both", "200 both", "200 keep, 200 keep"}, withBody+one, withBody, one)

	// CL.0: the target does not read the body. 0.CL: a length that only one side sees.
	inner := fmt.Sprintf("Content-Length: %d\r\n", len(smuggled))
	static := func(method, fields, body string) string {
		return method + " /static HTTP/1.1\r\n" + hostLine + fields + "\r\n" + body
	}
	own := len(table)
	passed("E32/read by the target", "200 keep", "", static("POST", inner, smuggled), static("PUT", inner, smuggled), static("DELETE", inner, smuggled),
		static("POST", "Transfer-Encoding: chunked\r\n", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(smuggled), smuggled)))
	each("E32/get read by the target", [3]string{"200 both", "200 both", "200 keep"}, "", static("GET", inner, smuggled))
	for i := range table[own:] {
		table[own+i].own = true
	}
	for i, l := range []string{"Content_Length: ", "Content-Length-: ", "Content--Length: "} {
		n := strconv.Itoa(len(smuggled))
		pipelined(fmt.Sprintf("E32/hidden length-%d", i), [3]string{"400 bad_header", "200 both", "200 keep, 200 keep"}, post(l+n+"\r\n", smuggled), post("", ""), smuggled)
	}
	for i, l := range []string{"Content-Length : ", "Content-Length\x0b: ", "Content-Length:\x0b", "\x0cContent-Length: ", "Content\xadLength: "} {
		refused(fmt.Sprintf("E32/hidden control-%d", i), "400 bad_header", post(l+strconv.Itoa(len(smuggled))+"\r\n", smuggled))
	}
	return table
}

// seen is a target that says who it is and what it was asked.
func seen(who string) script {
	return func(c *recorded, r *http.Request) bool {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return false
		}
		say := fmt.Sprintf("%s %s %s %s %d", who, r.Method, r.RequestURI, r.Host, len(body))
		_, err = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(say), say)
		return err == nil
	}
}

// TestDifferential: whatever is sent, the log, the router and the target mean the same request (E34, E26, E14). The
// requests are rows of the smuggling table and ordinary ones, mutated; the target is a parser that we did not write.
func TestDifferential(t *testing.T) { t.Run("E34/mutated", mutated) }

func mutated(t *testing.T) {
	const wanted, budget = 20000, 4 * time.Second
	g := &rig{world: newWorld(t)}
	g.alice = g.ca.Client("alice")
	g.b = newRecorder(t, nil)
	admin := newRecorder(t, nil)
	conf := strings.ReplaceAll(desyncConf, "{upstream: api}", "{match: {path: /admin/*}, upstream: admin}, {upstream: api}")
	g.start(conf+fmt.Sprintf("  admin: {targets: [\"http://%s\"], timeouts: {connect: 5s}}\n", admin.addr), g.b.addr)
	g.b.otherwise(seen("api"))
	admin.otherwise(seen("admin"))

	seeds := []string{
		"GET /a/b?c=d;e=%zz&f HTTP/1.1\r\n" + hostLine + "Accept: */*\r\nUser-Agent: x\r\n\r\n", "GET /admin/x HTTP/1.1\r\n" + hostLine + "\r\n", "GET http://a.test/admin/x?y HTTP/1.1\r\n" + hostLine + "\r\n",
		"GET /admin/../x HTTP/1.1\r\n" + hostLine + "\r\n", "GET /x/%2e%2e/admin/y HTTP/1.1\r\n" + hostLine + "\r\n", "GET /%61dmin/x HTTP/1.1\r\n" + hostLine + "\r\n", "GET //admin/x HTTP/1.1\r\n" + hostLine + "\r\n",
		postTo("/admin/x", "Content-Length: 5\r\nX-Original-URL: /y\r\nX-HTTP-Method-Override: DELETE\r\n", "hello"), postTo("/x", "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"), "OPTIONS * HTTP/1.1\r\n" + hostLine + "\r\n",
		"HEAD /x HTTP/1.0\r\n" + hostLine + "Connection: keep-alive\r\n\r\n", "PUT /x HTTP/1.1\nHost: a.test\nX: y\n z\nContent-Length: 2\n\nhi", "GET /x HTTP/1.1\r\nHost: A.TEST.:80\r\n\r\n",
	}
	for _, a := range smuggling() {
		if len(a.bytes) < 1000 {
			seeds = append(seeds, a.bytes)
		}
	}
	parts := []string{"\r", "\n", "\r\n", "\r\n\r\n", "\x00", " ", "\t", ":", ",", ";", "#", "?", "/", "//", "/./", "/../", "\\", "%2f", "%2e", "%00", "@", "\xff", "_", "-", "0", "9", "Host: b.test\r\n", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n",
		"Connection: close\r\n", "/admin/", "http://b.test", "HTTP/1.0", "X-Forwarded-Host: b.test\r\n", "Content_Length: 1\r\n"}

	type said struct {
		status int
		text   string
	}
	var mu sync.Mutex
	heard := make(map[string][]said) // by client address
	sent := 0
	end := time.Now().Add(budget)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(34, uint64(w)))
			for {
				mu.Lock()
				if sent++; sent > wanted || sent > 1000 && time.Now().After(end) {
					mu.Unlock()
					return
				}
				mu.Unlock()
				in := []byte(seeds[rnd.IntN(len(seeds))])
				for range rnd.IntN(4) {
					at := rnd.IntN(len(in) + 1)
					switch to := min(at+1+rnd.IntN(8), len(in)); rnd.IntN(5) {
					case 0:
						in = slices.Insert(in, at, []byte(parts[rnd.IntN(len(parts))])...)
					case 1:
						in = slices.Delete(in, at, to)
					case 2:
						in = slices.Insert(in, at, in[at:to]...)
					case 3:
						if at < len(in) {
							in[at] ^= 1 << rnd.IntN(8)
						}
					default:
						other := seeds[rnd.IntN(len(seeds))]
						in = append(in[:at:at], other[min(at, len(other)):]...)
					}
					if len(in) == 0 {
						in = []byte("G")
					}
				}
				c, err := dialFrom(g.addr(senders[w%3].listener))
				if err != nil {
					t.Error(err)
					return
				}
				_ = c.SetDeadline(time.Now().Add(100 * time.Millisecond)) // many wait for the rest of what they announced
				_, _ = c.Write(in)
				var all []said
				r := bufio.NewReader(c)
				method, _, _ := strings.Cut(string(in), " ")
				for {
					resp, err := http.ReadResponse(r, &http.Request{Method: method})
					if err != nil {
						break
					}
					body, err := io.ReadAll(resp.Body)
					if err != nil {
						break
					}
					if resp.StatusCode != 100 {
						all = append(all, said{resp.StatusCode, string(body)})
						method = "GET"
					}
					if resp.Close || r.Buffered() == 0 && len(all) > 0 && rnd.IntN(4) > 0 {
						break // the rest of the time: wait whether more comes
					}
				}
				addr := c.LocalAddr().String()
				c.Close()
				mu.Lock()
				heard[addr] = all
				mu.Unlock()
			}
		})
	}
	wg.Wait()

	compared, answered := 0, 0
	next := make(map[string]int)
	time.Sleep(50 * time.Millisecond) // the last records
	for line := range strings.Lines(g.log.String()) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) != nil || m["kind"] != "request" {
			continue
		}
		client := fmt.Sprint(m["client"])
		i := next[client]
		next[client]++
		if i >= len(heard[client]) {
			continue // the client did not wait for it
		}
		got := heard[client][i]
		answered++
		if fmt.Sprint(m["status"]) != strconv.Itoa(got.status) {
			t.Fatalf("request %d of %s: the log has status %v, the client got %d: %s", i, client, m["status"], got.status, line)
		}
		if got.status != 200 || m["method"] == "HEAD" {
			continue
		}
		f := strings.Split(got.text, " ")
		if len(f) != 5 {
			t.Fatalf("the target says %q", got.text)
		}
		compared++
		path, _, _ := strings.Cut(f[2], "?")
		if m["upstream"] != f[0] || m["method"] != f[1] || m["path"] != path || m["host"] != f[3] {
			t.Errorf("the log has %v %v of %v at %v; the target says %q", m["method"], m["path"], m["host"], m["upstream"], got.text)
		}
		if clean, err := url.PathUnescape(path); err != nil || (f[0] == "admin") != strings.HasPrefix(clean+"/", "/admin/") {
			t.Errorf("the path that the target reads leads elsewhere: %q", got.text)
		}
	}
	t.Logf("%d sent, %d answered, %d compared with what the target was asked", min(sent, wanted), answered, compared)
	if compared < 50 {
		t.Errorf("only %d requests were compared", compared)
	}
}

// TestDesyncRecorded: every request that deviates is recorded with its class and reason, passed or refused, and a
// compliant one without.
func TestDesyncRecorded(t *testing.T) {
	g := newDesyncRig(t)
	get := "GET /x HTTP/1.1\r\n"
	for i, c := range []struct{ bytes, class, reason string }{
		{get + hostLine + "Content-Length: 0\r\n\r\n", "Acceptable", "GetHeadZeroContentLength"},
		{"GET /x HTTP/1.1\nHost: a.test\n\n", "Acceptable", "NonCrLfLineTermination"},
		{postTo("/x", "Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), "Ambiguous", "DuplicateContentLength"},
		{postTo("/x", "Content_Length: 5\r\n", ""), "Ambiguous", "SuspiciousHeader"},
		{get + hostLine + "Content-Length: 5\r\n\r\nhello", "Ambiguous", "UndefinedContentLengthSemantics"},
		{postTo("/x", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"), "Ambiguous", "BothTeClPresent"},
		{get + "Host: a.t", "Ambiguous", "PartialHeaderLine"},
		{get + hostLine, "Ambiguous", "MissingLastEmptyLine"},
		{postTo("/x", "Content-Length: x\r\n", ""), "Severe", "BadContentLength"},
		{"\x16\x03\x01", "Severe", "BadMethod"},
		{get + hostLine + "\r\n", "<nil>", "<nil>"},
		{get + hostLine + hostLine + "\r\n", "<nil>", "<nil>"},
	} {
		for _, s := range senders {
			if s.h2 {
				continue
			}
			conn := g.to(t, s.listener)
			mark := g.log.size()
			_, _ = io.WriteString(conn, c.bytes)
			_ = conn.(interface{ CloseWrite() error }).CloseWrite()
			m := g.since(t, mark, "kind=request")
			if fmt.Sprint(m["classification"]) != c.class || fmt.Sprint(m["classification_reason"]) != c.reason {
				t.Errorf("%d/%s: %.60q: expected %s %s, found %v", i, s.name, c.bytes, c.class, c.reason, m)
			}
			conn.Close()
		}
	}
}
