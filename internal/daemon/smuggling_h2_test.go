package daemon_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"countersign/internal/identity"
)

// frame is an HTTP/2 frame of the request's stream, written as it is, right or wrong. Between a HEADERS frame and the
// CONTINUATION behind it there is one field section.
type frame struct {
	kind   string // HEADERS, CONTINUATION, DATA, RST_STREAM; or await, for the target to have got the head
	fields []string
	data   string
	pad    string
	end    bool // the flag END_STREAM
	open   bool // no flag END_HEADERS, whatever follows
}

// muxRecorder is a target of HTTP/2 with prior knowledge that keeps every request it is sent. Its reader is that of
// golang.org/x/net, which refuses what is malformed.
type muxRecorder struct {
	addr string

	mu       sync.Mutex
	conns    []net.Conn
	requests []*muxRequest
	faults   []string
}

// muxRequest is one stream of a muxRecorder.
type muxRequest struct {
	fields, trailers []hpack.HeaderField
	body             []byte
	ended, reset     bool
}

func (r *muxRequest) value(name string) (found string) {
	for _, f := range r.fields {
		if f.Name == name {
			found = f.Value
		}
	}
	return found
}

func newMuxRecorder(t testing.TB) *muxRecorder {
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	b := &muxRecorder{addr: l.Addr().String()}
	t.Cleanup(func() {
		l.Close()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, c := range b.conns {
			c.Close()
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b.mu.Lock()
			b.conns = append(b.conns, c)
			b.mu.Unlock()
			go b.serve(c)
		}
	}()
	return b
}

func (b *muxRecorder) fault(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = append(b.faults, fmt.Sprintf(format, args...))
}

func (b *muxRecorder) serve(c net.Conn) {
	defer c.Close()
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c, preface); err != nil || string(preface) != http2.ClientPreface {
		b.fault("the preface %q, %v", preface, err)
		return
	}
	w := bufio.NewWriter(c)
	fr := http2.NewFramer(w, bufio.NewReader(c))
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = fr.WriteSettings()
	streams := make(map[uint32]*muxRequest)
	for w.Flush() == nil {
		f, err := fr.ReadFrame()
		if err != nil {
			if errors.As(err, new(http2.StreamError)) || errors.As(err, new(http2.ConnectionError)) {
				b.fault("a frame that is %v, %v", err, fr.ErrorDetail())
			}
			return
		}
		id := f.Header().StreamID
		b.mu.Lock()
		r := streams[id]
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = fr.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				_ = fr.WritePing(true, f.Data)
			}
		case *http2.MetaHeadersFrame:
			if r != nil {
				r.trailers, r.ended = slices.Clone(f.Fields), f.StreamEnded()
				break
			}
			r = &muxRequest{fields: slices.Clone(f.Fields), ended: f.StreamEnded()}
			streams[id] = r
			b.requests = append(b.requests, r)
		case *http2.DataFrame:
			r.body = append(r.body, f.Data()...)
			r.ended = f.StreamEnded()
			if n := len(f.Data()); n > 0 {
				_ = fr.WriteWindowUpdate(0, uint32(n))
			}
		case *http2.RSTStreamFrame:
			r.reset = true
		}
		if r != nil && r.ended && streams[id] != nil {
			delete(streams, id)
			say := fmt.Sprintf("%s %s %d", r.value(":method"), r.value(":path"), len(r.body))
			head := r.value(":method") == "HEAD"
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: field(nil, ":status", "200"), EndHeaders: true, EndStream: head})
			if !head {
				_ = fr.WriteData(id, true, []byte(say))
			}
		}
		b.mu.Unlock()
	}
}

func (b *muxRecorder) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests, b.faults = nil, nil
}

func (b *muxRecorder) asked() (all []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.requests {
		all = append(all, r.value(":method")+" "+r.value(":path"))
	}
	return all
}

// find returns the first request for path, nil if there is none.
func (b *muxRecorder) find(path string) *muxRequest {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.requests {
		if r.value(":path") == path {
			return r
		}
	}
	return nil
}

// cut reports whether the request's stream was reset, and not ended.
func (b *muxRecorder) cut(r *muxRequest) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return r.reset && !r.ended
}

// compliant returns the ended requests as text that can be compared with those of atTarget, without what we add; the
// trailers stand behind the body. It fails on what RFC 9113 does not allow and on names that a target could take for
// others.
func (b *muxRecorder) compliant(t testing.TB) (all []string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.faults {
		t.Errorf("the target got %s", f)
	}
	for _, r := range b.requests {
		seen := make(map[string]int)
		var out strings.Builder
		fmt.Fprintf(&out, "%s %s HTTP/1.1\r\nHost: %s\r\n", r.value(":method"), r.value(":path"), r.value(":authority"))
		for _, f := range slices.Concat(r.fields, r.trailers) {
			seen[f.Name]++
			switch {
			case strings.Contains(f.Value, "spoof"), strings.Contains(f.Name, "_"), f.Name != "content-length" && slices.Contains([]string{"contentlength", "transferencoding"}, strings.Map(letters, f.Name)),
				slices.Contains([]string{"connection", "host", "expect", "trailer", "upgrade", "http2-settings", "proxy-authorization"}, f.Name), f.Name == "te" && f.Value != "trailers",
				strings.TrimSpace(f.Value) != f.Value:
				t.Errorf("the target got %v", f)
			case f.Name == "content-length" && f.Value != strconv.Itoa(len(r.body)):
				t.Errorf("the target got %v and %d bytes", f, len(r.body))
			}
		}
		for _, name := range []string{":method", ":scheme", ":authority", ":path"} {
			if seen[name] != 1 {
				t.Errorf("the target got %s %d times", name, seen[name])
			}
		}
		if seen["content-length"] > 1 || r.value(":scheme") != "http" {
			t.Errorf("the target got %v", r.fields)
		}
		for _, f := range r.fields {
			if line := f.Name + ": " + f.Value + "\r\n"; f.Name[0] != ':' && !slices.ContainsFunc(ours, func(p string) bool { return strings.HasPrefix(line, p) }) {
				out.WriteString(line)
			}
		}
		out.WriteString("\r\n")
		out.Write(r.body)
		for _, f := range r.trailers {
			out.WriteString("\r\n" + f.Name + ": " + f.Value)
		}
		all = append(all, out.String())
	}
	return all
}

// inHTTP2 is the text of a request of HTTP/1.1, as compliant gives it for the same one.
func inHTTP2(text string) string {
	head, body, _ := strings.Cut(text, "\r\n\r\n")
	var out strings.Builder
	for i, line := range strings.Split(head, "\r\n") {
		name, value, ok := strings.Cut(line, ": ")
		switch {
		case i < 2 || !ok: // the request line, and Host
			out.WriteString(line + "\r\n")
		case name != "Transfer-Encoding" && name != "Connection":
			out.WriteString(strings.ToLower(name) + ": " + value + "\r\n")
		}
	}
	return out.String() + "\r\n" + body
}

// unframed is a request without the fields that frame its body: they are the forwarder's choice where the client said
// nothing, and were compared with the body before.
func unframed(text string) string {
	head, body, _ := strings.Cut(text, "\r\n\r\n")
	lines := slices.DeleteFunc(strings.Split(head, "\r\n"), func(l string) bool {
		low := strings.ToLower(l)
		return strings.HasPrefix(low, "content-length: ") || strings.HasPrefix(low, "transfer-encoding: ")
	})
	return strings.Join(lines, "\r\n") + "\r\n\r\n" + body
}

// asSent is the request of frames as text of HTTP/1.1, nothing left out and nothing changed but the place of
// content-length.
func asSent(frames []frame) (text string, declares bool) {
	var line [2]string
	var host, fields, length, body string
	first := true
	for _, f := range frames {
		body += f.data
		if f.kind == "HEADERS" && !first {
			continue // trailers
		}
		first = first && f.kind != "HEADERS"
		for i := 0; i < len(f.fields); i += 2 {
			switch name, value := f.fields[i], f.fields[i+1]; name {
			case ":method":
				line[0] = value
			case ":path":
				line[1] = value
			case ":authority", "host":
				host = value
			case "content-length":
				length, declares = "Content-Length: "+value+"\r\n", true
			case "te":
				length += "Connection: TE\r\nTE: " + value + "\r\n"
			case ":scheme":
			default:
				fields += name + ": " + value + "\r\n"
			}
		}
	}
	return line[0] + " " + line[1] + " HTTP/1.1\r\nHost: " + host + "\r\n" + fields + length + "\r\n" + body, declares
}

// muxRig is a rig with a second target, which speaks HTTP/2, behind a listener of its own.
type muxRig struct {
	*rig
	mux     *muxRecorder
	clients map[string]*muxClient // of each listener, one whose connection lives on behind the last row
}

// newMuxRig is newDesyncRig with that.
func newMuxRig(t testing.TB) *muxRig {
	g := &muxRig{rig: &rig{world: newWorld(t)}, mux: newMuxRecorder(t), clients: make(map[string]*muxClient)}
	g.alice = g.ca.Client("alice")
	g.b = newRecorder(t, nil)
	_, listener, _ := strings.Cut(desyncConf, "  tls:\n")
	listener, _, _ = strings.Cut(listener, "upstreams:\n")
	listener = strings.Replace(listener, "{match: {path: /ws/*}, upgrade: [websocket], upstream: api}, ", "", 1) // such targets are not asked for it
	conf := strings.Replace(desyncConf, "upstreams:\n", "  multiplexed:\n"+strings.ReplaceAll(listener, "upstream: api", "upstream: mux")+"upstreams:\n", 1)
	g.start(conf+fmt.Sprintf("  mux: {targets: [\"http://%s\"], protocol_version: http2, timeouts: {connect: 5s}}\n", g.mux.addr), g.b.addr)
	return g
}

// size is how much was written so far.
func (l *lines) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Len()
}

// muxAnswer is what came back on one stream.
type muxAnswer struct {
	status  string // of the final response
	interim int
	body    string
	over    bool // by END_STREAM, or by RST_STREAM with code
	code    string
}

// muxClient is a connection that sends frames.
type muxClient struct {
	net.Conn
	fr      *http2.Framer
	out     bytes.Buffer // what is written at once, so that the server finds all of it
	next    uint32       // stream
	answers map[uint32]*muxAnswer
	goAway  string // code
}

// take returns a connection to a listener that nobody else uses.
func (g *muxRig) take(t testing.TB, listener string) *muxClient {
	t.Helper()
	c := g.clients[listener]
	delete(g.clients, listener)
	if c == nil {
		conf := g.client("a.test", g.alice)
		conf.NextProtos = []string{http2.NextProtoTLS}
		c = &muxClient{Conn: must(g.dial(listener, conf))(t), next: 1, answers: make(map[uint32]*muxAnswer)}
		c.fr = http2.NewFramer(&c.out, bufio.NewReader(c.Conn))
		c.fr.AllowIllegalWrites = true
		c.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		c.out.WriteString(http2.ClientPreface)
		_ = c.fr.WriteSettings()
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// leave keeps the connection for the next row, unless it has carried many: what is provoked is counted.
func (g *muxRig) leave(c *muxClient, listener string) {
	if c.next > 100 {
		c.Close()
		return
	}
	g.clients[listener] = c
}

func (c *muxClient) flush(t testing.TB) {
	t.Helper()
	if _, err := c.Write(c.out.Bytes()); err != nil {
		t.Fatal(err)
	}
	c.out.Reset()
}

// send writes the frames on stream id; head is called for the target to have got the head.
func (c *muxClient) send(t testing.TB, id uint32, frames []frame, head func()) {
	t.Helper()
	for i, f := range frames {
		var block []byte
		for j := 0; j < len(f.fields); j += 2 {
			block = field(block, f.fields[j], f.fields[j+1])
		}
		whole := !f.open && (i+1 == len(frames) || frames[i+1].kind != "CONTINUATION")
		switch f.kind {
		case "HEADERS":
			_ = c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndStream: f.end, EndHeaders: whole})
		case "CONTINUATION":
			_ = c.fr.WriteContinuation(id, whole, block)
		case "DATA":
			if f.pad != "" {
				_ = c.fr.WriteDataPadded(id, f.end, []byte(f.data), []byte(f.pad))
			} else {
				_ = c.fr.WriteData(id, f.end, []byte(f.data))
			}
		case "RST_STREAM":
			_ = c.fr.WriteRSTStream(id, http2.ErrCodeCancel)
		case "await":
			c.flush(t)
			head()
		default:
			t.Fatalf("bad row: frame %q", f.kind)
		}
	}
	c.flush(t)
}

// await reads until stream id is over or the connection is about to end.
func (c *muxClient) await(t testing.TB, id uint32) *muxAnswer {
	t.Helper()
	for {
		a := c.answers[id]
		if a == nil {
			a = new(muxAnswer)
			c.answers[id] = a
		}
		if a.over || c.goAway != "" {
			return a
		}
		f, err := c.fr.ReadFrame()
		if err != nil {
			t.Fatalf("stream %d: %v; so far %+v", id, err, *a)
		}
		on := c.answers[f.Header().StreamID]
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = c.fr.WriteSettingsAck()
			}
		case *http2.GoAwayFrame:
			c.goAway = f.ErrCode.String()
		case *http2.RSTStreamFrame:
			if on != nil && !on.over {
				on.over, on.code = true, f.ErrCode.String()
			}
		case *http2.MetaHeadersFrame:
			if status := f.PseudoValue("status"); on != nil && status != "" {
				if status[0] == '1' {
					on.interim++
				} else {
					on.status = status
				}
			}
			if on != nil && f.StreamEnded() {
				on.over = true
			}
		case *http2.DataFrame:
			if on != nil {
				on.body += string(f.Data())
				on.over = on.over || f.StreamEnded()
			}
		}
	}
}

// sendFrames makes an attempt over HTTP/2.
func sendFrames(t *testing.T, g *muxRig, s *sender, a *attempt) {
	c := g.take(t, s.listener)
	mark := g.log.size()
	want := answers(t, s.want(a))[0]
	id := c.next
	c.next += 4
	awaited := false
	c.send(t, id, a.frames, func() {
		awaited = true
		await(t, 5*time.Second, "the head at the target", func() bool {
			return s.mux && g.mux.find("/x") != nil || !s.mux && slices.ContainsFunc(g.b.asked(), func(r string) bool { return strings.HasSuffix(r, " /x") })
		})
	})
	var got *muxAnswer
	if want.frame != "none" {
		got = c.await(t, id)
	}
	switch want.frame {
	case "GOAWAY":
		if c.goAway != want.code {
			t.Errorf("expected GOAWAY %s, found %q and %+v", want.code, c.goAway, *got)
		}
	case "RST":
		if got.status != "" || got.code != want.code || c.goAway != "" {
			t.Errorf("expected RST_STREAM %s, found %+v and GOAWAY %q", want.code, *got, c.goAway)
		}
	case "":
		if got.status != strconv.Itoa(want.status) || got.code != "" || c.goAway != "" || got.interim > 1 {
			t.Errorf("expected %d, found %+v and GOAWAY %q", want.status, *got, c.goAway)
		}
	}
	if want.reason != "" {
		m := g.since(t, mark, "client="+c.LocalAddr().String(), "reason="+want.reason)
		if want.status != 0 && m["status"] != float64(want.status) {
			t.Errorf("the record has %v", m)
		}
	}
	checkFrames(t, g, s, a, want, awaited)
	if want.frame == "GOAWAY" {
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("expected the end of the connection")
		}
		return
	}
	c.send(t, id+2, []frame{{kind: "HEADERS", fields: []string{":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/mine"}, end: true}}, nil)
	if mine := c.await(t, id+2); !a.own && (mine.status != "200" || mine.body != "GET /mine 0") {
		t.Errorf("the next request of the client: %+v", *mine)
	}
	if t.Failed() || a.own { // it may have fooled itself
		c.Close()
		return
	}
	g.leave(c, s.listener)
}

// checkFrames compares what the target got, and what became of the stream or connection that carried it. awaited says
// that it had the head.
func checkFrames(t *testing.T, g *muxRig, s *sender, a *attempt, want outcome, awaited bool) {
	t.Helper()
	switch {
	case awaited && want.reason != "":
		if s.mux {
			r := g.mux.find("/x")
			await(t, 10*time.Second, "the reset of the target's stream", func() bool { return g.mux.cut(r) })
			break
		}
		g.b.conn(t, "/x").closed(t, 2*time.Second)
		if got := g.b.got(); strings.HasSuffix(got, "0\r\n\r\n") || strings.Count(got, " HTTP/1.1\r\n") != 1 {
			t.Errorf("reached the target: %q", got)
		}
	case want.reason != "":
		if asked := append(g.b.asked(), g.mux.asked()...); len(asked) > 0 || g.b.got() != "" {
			t.Errorf("reached the target: %q %q", asked, g.b.got())
		}
	case a.own && !s.mux:
	default:
		text, declares := asSent(a.frames)
		if a.reached != nil {
			text = a.reached[0]
		}
		var all []string
		if s.mux {
			text = inHTTP2(text)
			if a.trailers != "" {
				text += "\r\n" + a.trailers
			}
			all = g.mux.compliant(t)
		} else {
			all = atTarget(t, g.b.got())
		}
		if !declares {
			text = unframed(text)
			for i := range all {
				all[i] = unframed(all[i])
			}
		}
		if len(all) != 1 || all[0] != text {
			t.Errorf("the target got %q\nexpected %q", all, text)
		}
	}
}

// smugglingFrames makes the rows that are sent in HTTP/2.
func smugglingFrames() (table []attempt) {
	row := func(id, want string, frames ...frame) *attempt {
		table = append(table, attempt{id: "h2/" + id, h2: want, frames: frames})
		return &table[len(table)-1]
	}
	// head is a head with these fields behind the usual ones; end says that it ends the stream.
	with := func(method, path string, fields ...string) []string {
		return append([]string{":method", method, ":scheme", "https", ":authority", "a.test", ":path", path}, fields...)
	}
	head := func(end bool, fields ...string) frame { return frame{kind: "HEADERS", fields: fields, end: end} }
	get := func(fields ...string) frame { return head(true, with("GET", "/x", fields...)...) }
	post := func(fields ...string) frame { return head(false, with("POST", "/x", fields...)...) }
	data := func(s string) frame { return frame{kind: "DATA", data: s} }
	last := func(s string) frame { return frame{kind: "DATA", data: s, end: true} }
	trailers := func(fields ...string) frame { return head(true, fields...) }
	wait := frame{kind: "await"}
	hello := "Content-Length: 5\r\n\r\nhello"
	text := func(line, fields string) string { return line + " HTTP/1.1\r\n" + hostLine + fields }
	bare := text("GET /x", "\r\n")
	length := strconv.Itoa(len(smuggled))
	const malformed, malformedLine = "RST PROTOCOL_ERROR bad_header", "RST PROTOCOL_ERROR bad_request_line"
	numbered := func(id string, values []string, do func(id, value string)) {
		for i, v := range values {
			do(fmt.Sprintf("%s-%d", id, i), v)
		}
	}

	// The length that is said, and the one that is.
	const more, less = "RST PROTOCOL_ERROR framing_ambiguous", "RST PROTOCOL_ERROR body_truncated"
	row("E12/more", more, post("content-length", "5"), last("hello"+smuggled))
	row("E12/more, in another frame", more, post("content-length", "5"), data("hello"), last(smuggled))
	row("E12/more, at the target", more, post("content-length", "5"), wait, data("hel"), last("lo"+smuggled))
	row("E12/more, behind all of it", more, post("content-length", "5"), wait, data("hello"), data(smuggled))
	row("E12/more than 0", more, post("content-length", "0"), last(smuggled))
	row("E12/more than 0, in a get", more, head(false, with("GET", "/x", "content-length", "0")...), last(smuggled))
	row("E12/less", less, post("content-length", "10"), last("hello"))
	row("E12/less, at the target", less, post("content-length", "10"), wait, last("hello"))
	row("E12/less, by an empty frame", less, post("content-length", "10"), wait, data("hello"), last(""))
	row("E12/nothing but an empty frame", less, post("content-length", "10"), last(""))
	row("E12/less, ended by trailers", less, post("content-length", "10"), data("hello"), trailers("x-a", "b"))
	row("E12/less, ended by trailers at the target", less, post("content-length", "10"), wait, data("hello"), trailers("x-a", "b"))
	row("E12/end in the head", less, head(true, with("POST", "/x", "content-length", "10")...))
	row("E12/end in the head of a get", less, get("content-length", length))
	row("E12/end in the head of a length with zeros", less, get("content-length", "010"))
	row("E12/data before the head", "GOAWAY PROTOCOL_ERROR h2_protocol_error", data(smuggled), post("content-length", "5"), last("hello"))
	row("E12/continuation before the head", "GOAWAY PROTOCOL_ERROR h2_protocol_error", frame{kind: "CONTINUATION", fields: with("GET", "/x")})
	row("E12/data inside the head", "GOAWAY PROTOCOL_ERROR h2_protocol_error", frame{kind: "HEADERS", fields: with("POST", "/x"), open: true}, last(smuggled))
	row("E12/reset", "none client_aborted", post("content-length", "10"), wait, data("hello"), frame{kind: "RST_STREAM"})
	row("E12/reset without a length", "none client_aborted", post(), wait, data("hello"), frame{kind: "RST_STREAM"})
	row("E12/exact", "200 keep", post("content-length", "5"), last("hello"))
	row("E12/exact, at the target", "200 keep", post("content-length", "5"), wait, last("hello"))
	row("E12/exact, in pieces", "200 keep", post("content-length", "5"), data("he"), wait, data(""), data("llo"), last(""))
	row("E12/exact, with zeros", "200 keep", post("content-length", "005"), last("hello")).reached = []string{text("POST /x", hello)}
	row("E12/padding is no body", "200 keep", post("content-length", "5"), frame{kind: "DATA", data: "hello", pad: smuggled, end: true})
	row("E12/0 in the head", "200 keep", head(true, with("POST", "/x", "content-length", "0")...))
	row("E12/0 and an empty frame", "200 keep", post("content-length", "0"), last(""))
	row("E12/0 and an empty frame, at the target", "200 keep", head(false, with("PUT", "/x", "content-length", "0")...), wait, last(""))
	row("E12/no length", "200 keep", post(), last("hello"))
	row("E12/no length, at the target", "200 keep", post(), data("he"), wait, last("llo"))
	row("E12/no length, an empty frame", "200 keep", head(false, with("GET", "/x")...), last(""))
	row("E12/no length, an empty frame at the target", "200 keep", post(), wait, last(""))
	row("E12/no length, trailers at once", "200 keep", post(), trailers("x-a", "b")).trailers = "x-a: b"
	row("E12/trailers", "200 keep", post("content-length", "5"), data("hello"), trailers("x-a", "b")).trailers = "x-a: b"
	row("E12/trailers at the target", "200 keep", post(), data("hello"), wait, trailers("x-a", "b")).trailers = "x-a: b"
	row("E12/trailers that do not end", malformed, post(), data("hello"), head(false, "x-a", "b"))
	row("E12/a head in the place of trailers", malformed, post(), data("hello"), head(true, with("GET", "/admin")...))
	row("E12/a request inside", "200 keep", post(), last(smuggled))
	row("E12/a request inside, with a length", "200 keep", post("content-length", length), last(smuggled))
	row("E12/the end of chunks inside", "200 keep", post(), last("0\r\n\r\n"+smuggled))
	row("E12/the end of chunks inside, at the target", "200 keep", post(), wait, data("0\r\n\r\n"), last(smuggled))
	row("E12/chunks inside", "200 keep", post(), last("5\r\nhello\r\n0\r\n\r\n"+smuggled))
	row("E12/the end of chunks inside, trailers", "200 keep", post(), data("0\r\n\r\n"+smuggled), trailers("x-a", "b")).trailers = "x-a: b"
	for _, method := range []string{"GET", "HEAD", "DELETE", "OPTIONS", "PATCH", "PROPFIND", "get"} {
		row("E11/"+method, "200 keep", head(false, with(method, "/x", "content-length", "10")...), last("0123456789"))
		row("E11/"+method+" without a length", "200 keep", head(false, with(method, "/x")...), last("0\r\n\r\n"+smuggled))
		row("E11/"+method+" with zero", "200 keep", head(true, with(method, "/x", "content-length", "0")...))
	}
	numbered("E04/value", badLengths, func(id, v string) {
		row(id, "400 content_length_invalid", post("content-length", v), last("hello"+smuggled))
	})
	row("E04/duplicate", "400 content_length_invalid", post("content-length", "5", "content-length", "5"), last("hello"))
	row("E04/differ", "400 content_length_invalid", post("content-length", "5", "content-length", "6"), last("hello!"))
	row("E04/duplicate, 0 in the head", "400 content_length_invalid", get("content-length", "0", "content-length", "0"))
	numbered("E04/control", []string{" 5", "5 ", "\t5", "5\x00", "5\x0b", "5\r\n", "5\r\ntransfer-encoding: chunked"}, func(id, v string) {
		row(id, malformed, post("content-length", v), last("hello"+smuggled))
	})
	numbered("E04/resembles", []string{"content_length", "content--length", "content.length", "content-length-", "_content-length", "content-length_", "'content-length'", "c-ontentlength", "transfer_encoding", "transfer--encoding",
		"'transfer-encoding'", "transfer.encoding", "transfer-encoding~", "transfer-encodin-g"}, func(id, n string) {
		row(id, "400 bad_header", get(n, length))
		row(id+", with a body", "400 bad_header", post(n, "5", "content-length", length), last(smuggled))
	})

	// Fields that are about a connection of HTTP/1.1.
	numbered("E02/value", append([]string{"chunked", "Chunked", " chunked", "\x0bchunked"}, badCodings...), func(id, v string) {
		row(id, malformed, post("transfer-encoding", v), last("0\r\n\r\n"+smuggled))
	})
	row("E01/both", malformed, post("content-length", "5", "transfer-encoding", "chunked"), last("hello"))
	row("E01/in a continuation", malformed, head(false, with("POST", "/x")...), frame{kind: "CONTINUATION", fields: []string{"transfer-encoding", "chunked"}}, last("0\r\n\r\n"+smuggled))
	for _, f := range [][2]string{{"connection", "close"}, {"connection", "keep-alive"}, {"connection", "content-length"}, {"connection", "x-forwarded-for"}, {"connection", ""}, {"connection", "upgrade"}, {"proxy-connection", "close"},
		{"proxy-connection", "keep-alive"}, {"keep-alive", "timeout=5"}, {"upgrade", "h2c"}, {"upgrade", "websocket"}, {"upgrade", "TLS/1.0"}, {"te", "gzip"}, {"te", "trailers, gzip"}, {"te", "trailers;q=0.5"}, {"te", "chunked"}, {"te", ""}} {
		row("E13/"+f[0]+" "+f[1], malformed, get(f[0], f[1]))
	}
	row("E15/h2c", malformed, get("connection", "Upgrade, HTTP2-Settings", "upgrade", "h2c", "http2-settings", "AAMAAABkAAQAAP__"))
	row("E15/settings", "200 keep", get("http2-settings", "AAMAAABkAAQAAP__")).reached = []string{bare}
	row("E13/te trailers", "200 keep", get("x-a", "b", "te", "trailers"))
	row("E13/te trailers with a body", "200 keep", post("te", "trailers", "content-length", "5"), last("hello")).reached = []string{text("POST /x", "Content-Length: 5\r\nConnection: TE\r\nTE: trailers\r\n\r\nhello")}
	row("E13/te twice", "200 keep", get("te", "trailers", "te", "trailers")).reached = []string{text("GET /x", "Connection: TE\r\nTE: trailers\r\n\r\n")}
	row("E13/proxy-authorization", "200 keep", get("proxy-authorization", "Basic spoof", "x-a", "b")).reached = []string{text("GET /x", "x-a: b\r\n\r\n")}
	row("E06/announced", "200 keep", post("trailer", "x-client-cert, x-a", "content-length", "5"), last("hello")).reached = []string{text("POST /x", hello)}

	// The syntax of names and values.
	numbered("E13/name", []string{"X-A", "x-A", "Content-Length", "Transfer-Encoding", "Host", "", " ", "a b", " a", "a ", "a\tb", "a:b", "a:", "x-a: b\r\ncontent-length", "a\r\nb", "a\n", "\rhost", "a\x00", "a\xff", "a\x7f", "a(b)", "[x]", "a/b",
		"content-length ", "content-length:", "transfer-encoding ", "transfer-encod\u0131ng", "\tcontent-length", "host ", "te ", "\"a\"", "a,b", "a;b", "a=b", "a@b", "a\\b"}, func(id, n string) {
		row(id, malformed, get(n, "5"))
	})
	numbered("E13/value", []string{"b\rc", "b\nc", "b\r\ncontent-length: 5", "b\r\n\r\n" + smuggled, "b\x00", "\x00", "b\x01", "b\x1b[31m", "b\x7f", " b", "b ", "\tb", "b\t", " ", "b\x0b", "b\r\n c"}, func(id, v string) {
		row(id, malformed, get("x-a", v))
		if len(v) < 10 {
			row(id+" in a cookie", malformed, get("cookie", "a=1", "cookie", v))
		}
	})
	row("E13/tab inside", "200 keep", get("x-a", "b\tc"))
	row("E13/spaces inside", "200 keep", get("x-a", "b  c", "x-a", "d"))
	row("E13/8 bit", "200 keep", get("x-a", "b\xff\x80\xc3\xa9c"))
	row("E13/empty value", "200 keep", get("x-a", "", "x-b", "c"))
	row("E13/token characters", "200 keep", get("!#$%&'*+-.^`|~09az", "b"))
	row("E13/a field like a request", "200 keep", get("x-a", "GET /admin HTTP/1.1"))

	// Pseudo-fields.
	for i, name := range []string{":method", ":scheme", ":authority", ":path"} {
		usual := with("GET", "/x")
		row("E13/twice "+name, malformed, head(true, append([]string{name, usual[2*i+1]}, usual...)...))
		row("E13/twice and different "+name, malformed, head(true, append(slices.Clone(usual), name, "admin")...))
		without := slices.Delete(slices.Clone(usual), 2*i, 2*i+2)
		row("E13/late "+name, malformed, head(true, append(slices.Clone(without), "x-a", "b", name, usual[2*i+1])...))
		numbered("E13/control in "+name, []string{"\r\n", "\x00", " ", "\t", "\r\nx-a: b", "\r\n\r\n" + smuggled}, func(id, v string) {
			row(id, malformed, head(true, append(slices.Clone(without), name, usual[2*i+1]+v)...))
		})
		row("E13/a space in front of "+name, malformed, head(true, append(slices.Clone(without), name, " "+usual[2*i+1])...))
		if name == ":authority" {
			row("E09/missing", "400 host_missing", head(true, without...))
			continue
		}
		row("E13/no "+name, malformedLine, head(true, without...))
	}
	numbered("E13/unknown", []string{":user", ":status", ":host", ":", ":Method", ":path ", "::path", ":content-length", ":transfer-encoding"}, func(id, n string) {
		row(id, malformed, head(true, append([]string{n, "5"}, with("GET", "/x")...)...))
	})
	numbered("E13/method", []string{"", "G ET", "GET /admin HTTP/1.1", "G\xc3\x89T", "GET:", "GET/", "(GET)", strings.Repeat("M", 33), "GET,POST"}, func(id, m string) {
		row(id, malformedLine, head(true, with(m, "/x")...))
	})
	row("E13/empty path", malformedLine, head(true, with("GET", "")...))
	numbered("E13/path", []string{"x", "admin", "https://a.test/x", "http://b.test/admin", "*", "/x#y", "/x#", "#", "/x y", "/x HTTP/1.1", "/x\ty", "/x\x80", "/\xff", "?x", "\\x", "@b.test/", ".", "a.test:443"}, func(id, p string) {
		row(id, "400 bad_request_line", head(true, with("GET", p)...))
	})
	numbered("E13/path of OPTIONS", []string{"x", "**", "*/", "*?x", "https://a.test"}, func(id, p string) {
		row(id, "400 bad_request_line", head(true, with("OPTIONS", p)...))
	})
	row("E10/preface", "400 bad_request_line", head(true, with("PRI", "*")...))
	row("E10/options *", "200 keep", head(true, with("OPTIONS", "*")...))
	row("E26/query", "200 keep", head(true, with("GET", "/x?a=1;b=2&c=%zz&d=%0d%0a?[]{}|\\^`\"<>")...))
	row("E26/empty query", "200 keep", head(true, with("GET", "/x?")...))
	row("E10/method in lower case", "200 keep", head(true, with("connect", "/x")...))
	numbered("E13/scheme", []string{"", "ftp", "HTTPS", "https:", "https://", "http/1.1", "ht tps", "javascript", "wss"}, func(id, v string) {
		row(id, "400 bad_request_line", head(true, ":method", "GET", ":scheme", v, ":authority", "a.test", ":path", "/x"))
	})
	row("E13/scheme http", "200 keep", head(true, ":method", "GET", ":scheme", "http", ":authority", "a.test", ":path", "/x"))

	// Host and :authority.
	asks := func(authority string, fields ...string) frame {
		return head(true, append([]string{":method", "GET", ":scheme", "https", ":authority", authority, ":path", "/x"}, fields...)...)
	}
	hostOnly := func(fields ...string) frame {
		return head(true, append([]string{":method", "GET", ":scheme", "https", ":path", "/x"}, fields...)...)
	}
	row("E14/differ", "400 host_ambiguous", get("host", "b.test"))
	row("E14/differ the other way", "400 host_ambiguous", asks("b.test", "host", "a.test"))
	row("E14/other case", "400 host_ambiguous", get("host", "A.test"))
	row("E14/dot", "400 host_ambiguous", get("host", "a.test."))
	row("E14/port", "400 host_ambiguous", get("host", "a.test:443"))
	row("E14/empty host", "400 host_ambiguous", get("host", ""))
	row("E14/empty authority", "400 host_ambiguous", asks("", "host", "a.test"))
	row("E14/two hosts", "400 host_ambiguous", get("host", "a.test", "host", "a.test"))
	row("E14/two hosts that differ", "400 host_ambiguous", get("host", "a.test", "host", "b.test"))
	row("E14/two hosts, no authority", "400 host_ambiguous", hostOnly("host", "a.test", "host", "a.test"))
	row("E14/a name like host", "200 keep", get("x-host", "b.test"))
	row("E14/hidden host", "200 keep", get("host_", "b.test", "_host", "b.test")).reached = []string{bare}
	row("E14/the same", "200 keep", get("host", "a.test"))
	row("E14/host alone", "200 keep", hostOnly("host", "a.test"))
	row("E09/empty authority", "400 host_missing", asks(""))
	row("E09/empty host", "400 host_missing", hostOnly("host", ""))
	numbered("E09/invalid", []string{"a.test,b.test", "u@a.test", "a.test/x", "a.test/", "a.test:", "a.test:0", "a.test:x", "a..test", "a.t\xc3\xa9st", "a.test b", "a.test\tb", "a.test\\b", "a.test?x", "a.test#x", "https://a.test", "[a.test]", "a.test:443:80"},
		func(id, v string) {
			row(id, "400 host_invalid", asks(v))
			row(id+" in host", "400 host_invalid", hostOnly("host", v))
		})
	row("E09/as written", "200 keep", asks("A.TEST."))

	// Tunnels, expectations.
	row("E16/connect", "405 method_refused", head(false, ":method", "CONNECT", ":authority", "a.test:443"), last(smuggled))
	row("E16/connect without a body", "405 method_refused", head(true, ":method", "CONNECT", ":authority", "a.test"))
	row("E16/connect with a length", "405 method_refused", head(false, ":method", "CONNECT", ":authority", "a.test:443", "content-length", "5"), last("hello"))
	row("E16/connect to a path", malformedLine, head(false, with("CONNECT", "/x")...), last(smuggled))
	row("E16/connect to nobody", malformedLine, head(false, ":method", "CONNECT"), last(smuggled))
	row("E16/connect with a scheme", malformedLine, head(false, ":method", "CONNECT", ":scheme", "https", ":authority", "a.test:443"), last(smuggled))
	row("E16/trace", "405 method_refused", head(true, with("TRACE", "/x")...))
	row("E16/trace with a body", "405 method_refused", head(false, with("TRACE", "/x")...), last(smuggled))
	socket := func(protocol, path string, fields ...string) frame {
		return head(false, append([]string{":method", "CONNECT", ":protocol", protocol, ":scheme", "https", ":authority", "a.test", ":path", path}, fields...)...)
	}
	const refused = "501 upgrade_refused"
	numbered("E33/protocol", []string{"connect-udp", "WebSocket", "websocket, h2c", "h2c", "", "tls"}, func(id, p string) {
		row(id, refused, socket(p, "/ws/x", "sec-websocket-version", "13"), data(smuggled))
	})
	row("E33/no version", refused, socket("websocket", "/ws/x"), data(smuggled))
	row("E33/other version", refused, socket("websocket", "/ws/x", "sec-websocket-version", "12"))
	row("E33/two versions", refused, socket("websocket", "/ws/x", "sec-websocket-version", "13", "sec-websocket-version", "13"))
	row("E33/with a length", refused, socket("websocket", "/ws/x", "sec-websocket-version", "13", "content-length", length), data(smuggled))
	row("E33/route without it", refused, socket("websocket", "/x", "sec-websocket-version", "13"), data(smuggled))
	row("E33/twice", malformed, head(false, append([]string{":protocol", "websocket"}, socket("websocket", "/ws/x", "sec-websocket-version", "13").fields...)...))
	row("E33/late", malformed, head(false, append(slices.Clone(with("CONNECT", "/ws/x", "sec-websocket-version", "13")), ":protocol", "websocket")...))
	row("E33/with get", malformedLine, head(false, append([]string{":protocol", "websocket"}, with("GET", "/ws/x", "sec-websocket-version", "13")...)...))
	row("E33/no path", malformedLine, head(false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "a.test"))
	row("E33/no authority", malformedLine, head(false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":path", "/ws/x", "host", "a.test"))
	row("E33/control in the protocol", malformed, socket("websocket\r\nx-a: b", "/ws/x", "sec-websocket-version", "13"))
	row("E33/upgrade in it", malformed, socket("websocket", "/ws/x", "sec-websocket-version", "13", "upgrade", "websocket"))
	row("E33/another host", "400 host_ambiguous", socket("websocket", "/ws/x", "sec-websocket-version", "13", "host", "b.test"))
	row("E33/path of no kind", "400 bad_request_line", socket("websocket", "https://b.test/ws/x", "sec-websocket-version", "13"))
	numbered("E23/expect", badExpectations, func(id, v string) {
		row(id, "417 expectation_unsupported", post("expect", v, "content-length", "5"), last("hello"))
	})
	row("E23/twice", "417 expectation_unsupported", post("expect", "100-continue", "expect", "100-continue", "content-length", "5"), last("hello"))
	row("E23/with the body", "200 keep", post("expect", "100-continue", "content-length", "5"), last("hello")).reached = []string{text("POST /x", hello)}
	row("E23/at the target", "200 keep", post("expect", "100-continue", "content-length", "5"), wait, last("hello")).reached = []string{text("POST /x", hello)}
	row("E23/in capitals, no length", "200 keep", post("expect", "100-CONTINUE"), wait, last("0\r\n\r\n"+smuggled)).reached = []string{text("POST /x", "\r\n0\r\n\r\n"+smuggled)}
	row("E23/without a body", "200 keep", get("expect", "100-continue")).reached = []string{bare}
	row("E23/get with a body", "200 keep", head(false, with("GET", "/x", "expect", "100-continue", "content-length", "5")...), last("hello")).reached = []string{text("GET /x", hello)}
	row("E23/more than was said", more, post("expect", "100-continue", "content-length", "5"), wait, last("hello"+smuggled))

	// What a target could believe to come from us.
	var names, twins []string
	for _, n := range identity.ProtectedNames() {
		if n, prefix := strings.CutSuffix(n, "*"); !prefix {
			names = append(names, n)
		} else if names = append(names, n+"x"); !strings.HasSuffix(n, "-") {
			names = append(names, n)
		}
	}
	spoofed := func(mapping func(string) string) (fields []string) {
		for _, n := range names {
			fields = append(fields, mapping(n), "spoof")
		}
		return fields
	}
	row("D01/identity", "200 keep", get(append(spoofed(func(n string) string { return n }), "x-a", "b")...)).reached = []string{text("GET /x", "x-a: b\r\n\r\n")}
	row("D03/identity with dots", "200 keep", get(append(spoofed(func(n string) string { return strings.ReplaceAll(n, "-", ".") }), "x-a", "b")...)).reached = []string{text("GET /x", "x-a: b\r\n\r\n")}
	row("D03/identity with underscores", "200 keep", get(append(spoofed(func(n string) string { return strings.ReplaceAll(n, "-", "_") }), "x-a", "b")...)).reached = []string{text("GET /x", "x-a: b\r\n\r\n")}
	for _, n := range []string{"x_a", "_x", "x_", "_", "host_", "_host", "content_type", "x_user", "authorization_", "cookie_", "x-a_b", "x_forwarded_for", "http_host", "remote_user", "te_", "accept_", "x__y", "upgrade_", "connection_", "expect_", "via_"} {
		twins = append(twins, n, "spoof")
	}
	row("D03/underscores", "200 keep", get(append(twins, "x-a", "b")...)).reached = []string{text("GET /x", "x-a: b\r\n\r\n")}
	for _, n := range names {
		row("D05/"+n, "200 keep", post("content-length", "5"), data("hello"), trailers(n, "spoof", "x-a", "b")).trailers = "x-a: b"
	}
	row("D05/underscores", "200 keep", post(), data("hello"), trailers(append(twins, "x-a", "b")...)).trailers = "x-a: b"
	row("D05/at the target", "200 keep", post(), wait, data("hello"), trailers("client-cert", "spoof", "x-a", "b")).trailers = "x-a: b"
	for _, n := range []string{"content-length", "transfer-encoding", "host", "authorization", "proxy-authorization", "cookie", "set-cookie", "connection", "keep-alive", "proxy-connection", "upgrade", "te", "trailer", "expect",
		"content-encoding", "content-type", "content-range", "range", "cache-control", "max-forwards", "http2-settings"} {
		row("E06/"+n, malformed, post(), data("hello"), trailers(n, "5"))
		row("E06/"+n+" at the target", malformed, post(), wait, data("hello"), trailers(n, "5"))
	}
	for _, n := range []string{"content_length", "content--length", "transfer.encoding", "transfer-encoding-", "via", "x-original-url", "x-http-method-override", "if-match", "location", "age"} {
		row("E06/"+n, "200 keep", post("content-length", "5"), data("hello"), trailers(n, "spoof", "x-a", "b")).trailers = "x-a: b"
	}
	numbered("E06/pseudo", []string{":path", ":method", ":status", ":authority"}, func(id, n string) { row(id, malformed, post(), data("hello"), trailers(n, "/admin")) })
	numbered("E06/syntax", []string{"X-A", "", "a b", "a:b", "a\r\nb", "a\x00"}, func(id, n string) { row(id, malformed, post(), data("hello"), trailers(n, "b")) })
	numbered("E06/value", []string{"b\r\n\r\n" + smuggled, "b\x00", " b", "b "}, func(id, v string) { row(id, malformed, post(), data("hello"), trailers("x-a", v)) })

	// Cookies come in crumbs.
	joined := func(c string) []string { return []string{text("GET /x", "cookie: "+c+"\r\nx-a: b\r\n\r\n")} }
	row("E13/crumbs", "200 keep", get("cookie", "a=1", "x-a", "b", "cookie", "c=2", "cookie", "d=3")).reached = joined("a=1; c=2; d=3")
	row("E13/crumbs with separators", "200 keep", get("cookie", "a=1; b=2;", "cookie", "c=2", "x-a", "b")).reached = joined("a=1; b=2;; c=2")
	row("E13/crumbs like a field", "200 keep", get("cookie", "a=1", "cookie", "content-length: 5", "x-a", "b")).reached = joined("a=1; content-length: 5")
	row("E13/crumbs with a name like theirs", "200 keep", get("cookie", "a=1", "cookie2", "d", "cookie", "c=2")).reached = []string{text("GET /x", "cookie: a=1; c=2\r\ncookie2: d\r\n\r\n")}
	row("E13/many crumbs", "200 keep", get(append(slices.Repeat([]string{"cookie", "a=1"}, 150), "x-a", "b")...)).reached = joined(strings.TrimSuffix(strings.Repeat("a=1; ", 150), "; "))

	// CL.0: a target of HTTP/1.1 that does not read the body.
	static := func(method string, fields ...string) frame { return head(false, with(method, "/static", fields...)...) }
	own := len(table)
	for _, method := range []string{"POST", "PUT", "DELETE", "GET"} {
		row("E32/"+method, "200 keep", static(method, "content-length", length), last(smuggled))
	}
	row("E32/no length", "200 keep", static("POST"), last(smuggled))
	for i := range table[own:] {
		table[own+i].own = true
	}
	return table
}
