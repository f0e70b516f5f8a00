package daemon_test

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"countersign/internal/testpki"
)

// session is a connection of HTTP/2 that things are done over, each on a strand of its own.
type session struct {
	conn  *tls.Conn
	ended chan struct{} // closed when the connection has ended

	out    sync.Mutex // guards writing
	buf    bytes.Buffer
	fr     *http2.Framer
	enc    *hpack.Encoder
	fields bytes.Buffer
	next   uint32

	mu      sync.Mutex // guards what was heard
	strands map[uint32]*strand
	away    []http2.GoAwayFrame
	at      time.Time // of the end
	last    error     // the end
}

// strand is a stream of a session.
type strand struct {
	*session
	id         uint32
	host, path string
	busy       bool          // has 3 s to end by itself
	over       chan struct{} // closed when it has ended, in whatever way

	// Guarded by the session's mu.
	status   string
	trailer  string // grpc-status
	data     []byte
	complete bool // it ended as it should
	reset    bool
	code     http2.ErrCode // of the reset
	at       time.Time     // of the end
}

// strandPaths are what is done on strands: by way of targets of both versions, but for WebSockets, which have one way only.
var strandPaths = []string{"/down", "/up", "/grpc", "/ws", "/h2/down", "/h2/up", "/h2/grpc"}

// session makes a connection of HTTP/2.
func (w *world) session(t testing.TB, listener string, conf *tls.Config, settings ...http2.Setting) *session {
	t.Helper()
	s := w.mute(t, listener, conf, settings...)
	go s.hear()
	return s
}

// mute makes one on which nothing is read yet.
func (w *world) mute(t testing.TB, listener string, conf *tls.Config, settings ...http2.Setting) *session {
	t.Helper()
	conf = conf.Clone()
	conf.NextProtos = []string{"h2"}
	raw := must(dialFrom(w.addr(listener)))(t)
	t.Cleanup(func() { raw.Close() })
	_ = raw.SetDeadline(time.Now().Add(90 * time.Second))
	s := &session{conn: tls.Client(raw, conf), ended: make(chan struct{}), next: 1, strands: map[uint32]*strand{}}
	s.fr, s.enc = http2.NewFramer(&s.buf, s.conn), hpack.NewEncoder(&s.fields)
	s.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	s.buf.WriteString(http2.ClientPreface)
	if err := s.write(func() error { return s.fr.WriteSettings(settings...) }); err != nil {
		t.Fatalf("%s: %v", conf.ServerName, err)
	}
	return s
}

// name is the client's address, as records have it.
func (s *session) name() string { return s.conn.LocalAddr().String() }

// write sends the frames that f writes.
func (s *session) write(f func() error) error {
	s.out.Lock()
	defer s.out.Unlock()
	return s.flush(f())
}

func (s *session) flush(err error) error {
	defer s.buf.Reset()
	if err == nil {
		_, err = s.conn.Write(s.buf.Bytes())
	}
	return err
}

// hear takes in what comes until the connection ends.
func (s *session) hear() {
	defer close(s.ended)
	for {
		f, err := s.fr.ReadFrame()
		s.mu.Lock()
		if err != nil {
			s.at, s.last = time.Now(), err
			for _, x := range s.strands {
				x.end(s.at)
			}
			s.mu.Unlock()
			return
		}
		reply := s.take(f)
		s.mu.Unlock()
		if reply != nil {
			_ = s.write(reply)
		}
	}
}

// take notes a frame, and returns what has to be said to it.
func (s *session) take(f http2.Frame) (reply func() error) {
	x := s.strands[f.Header().StreamID] // nil for the connection's frames
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			reply = s.fr.WriteSettingsAck
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			data := f.Data
			reply = func() error { return s.fr.WritePing(true, data) }
		}
	case *http2.GoAwayFrame:
		s.away = append(s.away, *f)
	case *http2.MetaHeadersFrame:
		if v := f.PseudoValue("status"); v != "" {
			x.status = v
		}
		for _, f := range f.RegularFields() {
			if f.Name == "grpc-status" {
				x.trailer = f.Value
			}
		}
		x.complete = f.StreamEnded()
	case *http2.DataFrame:
		x.data = append(x.data, f.Data()...)
		x.complete = f.StreamEnded()
	case *http2.RSTStreamFrame:
		x.reset, x.code = true, f.ErrCode
	}
	if x != nil && (x.complete || x.reset) {
		x.end(time.Now())
	}
	return reply
}

// end notes that the strand has ended. Called with mu held.
func (x *strand) end(at time.Time) {
	if x.at.IsZero() {
		x.at = at
		close(x.over)
	}
}

// open begins a strand with a request; fields in turns of name and value.
func (s *session) open(t testing.TB, method, host, path string, fields ...string) *strand {
	t.Helper()
	x, err := s.ask(method, host, path, fields...)
	if err != nil {
		t.Fatalf("%s: %v", x, err)
	}
	return x
}

func (s *session) ask(method, host, path string, fields ...string) (*strand, error) {
	x := &strand{session: s, host: host, path: path, over: make(chan struct{})}
	x.busy = method != "CONNECT"
	s.out.Lock()
	defer s.out.Unlock()
	x.id = s.next
	s.next += 2
	s.mu.Lock()
	s.strands[x.id] = x
	s.mu.Unlock()
	s.fields.Reset()
	fields = append([]string{":method", method, ":scheme", "https", ":authority", host, ":path", path}, fields...)
	for i := 0; i < len(fields); i += 2 {
		_ = s.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return x, s.flush(s.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: x.id, BlockFragment: s.fields.Bytes(), EndHeaders: true, EndStream: method == "GET"}))
}

func (x *strand) String() string {
	return fmt.Sprintf("%s: stream %d, %s%s", x.name(), x.id, x.host, x.path)
}

// act is the last part of the path.
func (x *strand) act() string { return strings.TrimPrefix(x.path, "/h2") }

// do begins what path says, and returns when it is under way.
func (s *session) do(t testing.TB, host, path string, fields ...string) *strand {
	t.Helper()
	var x *strand
	switch strings.TrimPrefix(path, "/h2") {
	case "/ws":
		x = s.open(t, "CONNECT", host, path, append([]string{":protocol", "websocket", "sec-websocket-version", "13"}, fields...)...)
	case "/grpc":
		x = s.open(t, "POST", host, path, append([]string{"content-type", "application/grpc", "te", "trailers"}, fields...)...)
	case "/up":
		x = s.open(t, "POST", host, path, fields...)
		go func() {
			for x.send("x") == nil {
				select {
				case <-x.over:
					return
				case <-time.After(100 * time.Millisecond):
				}
			}
		}()
		return x
	default:
		x = s.open(t, "GET", host, path, fields...)
	}
	x.shows(t, 1)
	return x
}

// send sends data on the strand.
func (x *strand) send(data string) error {
	return x.write(func() error { return x.fr.WriteData(x.id, false, []byte(data)) })
}

// heard is what came on the strand.
func (x *strand) heard() (status, data string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.status, string(x.data)
}

// gone reports whether the strand has ended.
func (x *strand) gone() bool { return happens(x.over, time.Time{}) }

// happens waits until limit for c to be closed, and reports whether it is.
func happens(c chan struct{}, limit time.Time) bool {
	select {
	case <-c:
		return true
	default:
	}
	select {
	case <-c:
		return true
	case <-time.After(time.Until(limit)):
	}
	select {
	case <-c: // both, when the machine stood still
		return true
	default:
		return false
	}
}

// serves shows that what the strand does goes on.
func (x *strand) serves(t testing.TB) {
	t.Helper()
	x.shows(t, 3)
}

// shows is serves with the number of things to come of a download.
func (x *strand) shows(t testing.TB, ticks int) {
	t.Helper()
	_, before := x.heard()
	want, got := ticks*len("tick\n"), "" // downloads
	switch x.act() {
	case "/up": // it is neither answered nor ended
		time.Sleep(200 * time.Millisecond)
		if status, data := x.heard(); x.gone() || status != "" {
			t.Errorf("%s: %s %q, ended %v", x, status, data, x.gone())
		}
		return
	case "/ws":
		got = "hello"
	case "/grpc":
		got = string(binary.BigEndian.AppendUint32([]byte{0}, 5)) + "hello"
	}
	if got != "" {
		want = len(got)
		if err := x.send(got); err != nil {
			t.Errorf("%s: %v", x, err)
			return
		}
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		status, data := x.heard()
		if data = data[len(before):]; len(data) >= want {
			if status != "200" || got != "" && data != got {
				t.Errorf("%s: %s %q", x, status, data)
			}
			return
		}
		if x.gone() || time.Now().After(deadline) {
			t.Errorf("%s: %s %q, ended %v", x, status, data, x.gone())
			return
		}
	}
}

// get makes a request that is answered at once.
func (s *session) get(t testing.TB, host, path string) (status, body string) {
	t.Helper()
	x := s.open(t, "GET", host, path)
	if !happens(x.over, time.Now().Add(20*time.Second)) {
		t.Fatalf("%s: no answer", x)
	}
	return x.heard()
}

// serves shows that everything on the session goes on.
func (s *session) serves(t testing.TB, host string) {
	t.Helper()
	var wg sync.WaitGroup
	for _, x := range s.all() {
		if !x.gone() {
			wg.Go(func() { x.serves(t) })
		} else if x.path != "/" {
			t.Errorf("%s has ended", x)
		}
	}
	wg.Wait()
	if status, _ := s.get(t, host, "/"); status != "200" {
		t.Errorf("%s: status %q", s.name(), status)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.away) > 0 {
		t.Errorf("%s: %v", s.name(), s.away)
	}
}

// all are the strands.
func (s *session) all() (all []*strand) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := uint32(1); int(id) < 2*len(s.strands); id += 2 {
		all = append(all, s.strands[id])
	}
	return all
}

// sessions opens connections that have nothing, one WebSocket, and one of everything under way.
func (w *world) sessions(t testing.TB, conf *tls.Config) (all []*session) {
	t.Helper()
	for _, what := range [][]string{nil, {"/ws"}, strandPaths} {
		s := w.session(t, "public", conf)
		if status, body := s.get(t, conf.ServerName, "/"); status != "200" {
			t.Fatalf("%s: %s %q", conf.ServerName, status, body)
		}
		for _, path := range what {
			s.do(t, conf.ServerName, path)
		}
		all = append(all, s)
	}
	return all
}

// ends waits for the end of a strand whose client is not trusted any more since start.
func (x *strand) ends(t testing.TB, w *world, start time.Time, found string) {
	t.Helper()
	if !happens(x.over, start.Add(within()+10*time.Second)) {
		t.Errorf("%s: still open after %v", x, time.Since(start))
		return
	}
	x.mu.Lock()
	took, complete, reset, code := x.at.Sub(start), x.complete, x.reset, x.code
	x.mu.Unlock()
	if took > allowed(start) || x.busy && took < 3*time.Second || !x.busy && took > 3*time.Second+stood(start) && !raceEnabled || took < 0 {
		t.Errorf("%s: ended after %v", x, took)
	}
	// What was cut must not look complete.
	if complete || reset && code != http2.ErrCodeCancel {
		t.Errorf("%s: complete %v, reset %v %v", x, complete, reset, code)
	}
	x.recorded(t, w, found)
}

// recorded shows that the record says why the strand was ended.
func (x *strand) recorded(t testing.TB, w *world, found string) {
	t.Helper()
	r := w.find(t, "client="+x.name(), "kind=request", "path="+x.path, "host="+x.host, "reason=client_no_longer_trusted")
	if !strings.HasPrefix(fmt.Sprint(r["found"]), found) {
		t.Errorf("%s: record %v", x, r)
	}
}

// ends waits for the end of a session whose client is not trusted any more since start: nothing new, what is under way has
// a moment, then the connection ends.
func (s *session) ends(t testing.TB, w *world, start time.Time, found string) {
	t.Helper()
	if !happens(s.ended, start.Add(within()+10*time.Second)) {
		t.Fatalf("%s: still open after %v", s.name(), time.Since(start))
	}
	busy, highest := false, uint32(0)
	for _, x := range s.all() {
		highest = x.id
		if x.path != "/" {
			x.ends(t, w, start, found)
			busy = busy || x.busy
		}
	}
	took := s.at.Sub(start)
	if took > allowed(start) || busy && took < 3*time.Second || !busy && took > 3*time.Second+stood(start) && !raceEnabled || took < 0 {
		t.Errorf("%s: ended after %v", s.name(), took)
	}
	if errors.Is(s.last, os.ErrDeadlineExceeded) {
		t.Errorf("%s: %v", s.name(), s.last)
	}
	if n := len(s.away); n == 0 || s.away[n-1].ErrCode != http2.ErrCodeNo || s.away[n-1].LastStreamID != highest {
		t.Errorf("%s: GOAWAY %v; the last stream is %d", s.name(), s.away, highest)
	}
	r := w.find(t, "client="+s.name(), "kind=ended", "reason=client_no_longer_trusted")
	if !strings.HasPrefix(fmt.Sprint(r["found"]), found) {
		t.Errorf("%s: record %v", s.name(), r)
	}
}

// untouched shows that no record says of the sessions that trust in their clients ended.
func (w *world) untouched(t testing.TB, all ...*session) {
	t.Helper()
	for line := range strings.Lines(w.log.String()) {
		for _, s := range all {
			if strings.Contains(line, "client_no_longer_trusted") && strings.Contains(line, `"client":"`+s.name()+`"`) {
				t.Errorf("of another client: %s", line)
			}
		}
	}
}

// TestEnforceStreams: each thing that a stream can be busy with, alone on its connection; many at once; and a client that
// takes nothing.
func TestEnforceStreams(t *testing.T) {
	t.Parallel()
	w, conf, _, _ := enforceWorld(t)
	alice, victim := w.client("a.test", w.ca.Client("alice")), w.ca.Client("victim")
	var alone, others []*session
	for _, path := range strandPaths {
		s := w.session(t, "public", w.client("a.test", victim))
		s.do(t, "a.test", path)
		alone = append(alone, s)
		o := w.session(t, "public", alice)
		o.do(t, "a.test", path)
		others = append(others, o)
	}
	many := w.session(t, "public", w.client("a.test", victim))
	for i := range 90 {
		many.open(t, []string{"GET", "POST", "POST"}[i%3], "a.test", []string{"/down", "/grpc", "/h2/grpc"}[i%3])
	}
	for _, x := range many.all() {
		await(t, 20*time.Second, "an answer", func() bool { status, _ := x.heard(); return status == "200" })
	}
	// This one takes whatever is sent to it, so that nothing stays in our buffers but what fills the socket's.
	deaf := w.mute(t, "public", w.client("a.test", victim), http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	if err := deaf.write(func() error { return deaf.fr.WriteWindowUpdate(0, 1<<30) }); err != nil {
		t.Fatal(err)
	}
	deaf.open(t, "GET", "a.test", "/flood")
	// Nobody has looked at the client's certificate here but the target.
	through := w.session(t, "through", w.client("a.test", victim))
	for _, path := range []string{"/down", "/up", "/grpc"} {
		through.do(t, "a.test", path)
	}
	others = append(others, through)

	w.file("clients.crl", w.ca.CRL(victim, testpki.Number(2)))
	start := time.Now()
	w.reload(conf, "")
	const found = "client_cert_revoked: "
	for i, s := range alone {
		t.Run("A32/C01"+strandPaths[i], func(t *testing.T) { s.ends(t, w, start, found) })
	}
	t.Run("A32/deaf", func(t *testing.T) {
		r := w.find(t, "client="+deaf.name(), "path=/flood", "reason=client_no_longer_trusted")
		if took := time.Since(start); took > allowed(start) || !strings.HasPrefix(fmt.Sprint(r["found"]), found) {
			t.Errorf("after %v: %v", took, r)
		}
		w.find(t, "client="+deaf.name(), "kind=ended", "reason=client_no_longer_trusted")
		await(t, time.Until(start.Add(within()+2*time.Second)), "the end of the connection", func() bool {
			_, err := deaf.conn.NetConn().Write([]byte{0})
			return err != nil
		})
	})
	t.Run("A32/many", func(t *testing.T) {
		many.ends(t, w, start, found)
		n := 0
		for line := range strings.Lines(w.log.String()) {
			if strings.Contains(line, `"client":"`+many.name()+`"`) && strings.Contains(line, `"kind":"request"`) {
				if n++; !strings.Contains(line, `"reason":"client_no_longer_trusted"`) {
					t.Errorf("%s", line)
				}
			}
		}
		if n != 90 {
			t.Errorf("%d records", n)
		}
	})
	t.Run("others", func(t *testing.T) {
		for _, s := range others {
			s.serves(t, "a.test")
		}
		w.untouched(t, others...)
	})
	t.Run("C01/new stream", func(t *testing.T) {
		if s := w.call("public", w.client("a.test", victim), "a.test", "/"); s.err == nil {
			t.Errorf("%d", s.status)
		}
	})
}

// endsAlone is ends for a strand whose session goes on.
func (x *strand) endsAlone(t testing.TB, w *world, start time.Time, found string) {
	t.Helper()
	x.ends(t, w, start, found)
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.reset || len(x.away) > 0 {
		t.Errorf("%s: reset %v, GOAWAY %v", x, x.reset, x.away)
	}
}

// TestEnforceStreamsApart: on one connection those streams end that a change concerns, and no others. Each of them is for
// a host, by a route, and perhaps for a client of a trusted proxy.
func TestEnforceStreamsApart(t *testing.T) {
	t.Parallel()
	const c = "{names: [c.test], certificate: *c, client_auth: {mode: require, trust_store: clients}, routes"
	type change struct{ name, to, found, status string }
	changes := []change{
		{"the other host has another policy", strings.Replace(c, "mode: require", "mode: request", 1), "policy_mismatch", "421"},
		{"the other host is gone", strings.Replace(c, "c.test", "z.test", 1), "a host that is no longer configured", "421"},
	}
	together(t, changes, func(c change) string { return "A34/" + c.name }, func(t *testing.T, change change) {
		w, conf, _, _ := enforceWorld(t)
		s := w.session(t, "public", w.client("a.test", w.ca.Client("alice")))
		var gone, stay []*strand
		for _, path := range strandPaths {
			stay = append(stay, s.do(t, "a.test", path))
			gone = append(gone, s.do(t, "c.test", path))
		}
		next := strings.Replace(conf, c, change.to, 1)
		if next == conf {
			t.Fatal("nothing changed")
		}
		start := time.Now()
		w.reload(next, "")
		for _, x := range gone {
			x.endsAlone(t, w, start, change.found)
		}
		for _, x := range stay {
			x.serves(t)
		}
		if status, _ := s.get(t, "a.test", "/"); status != "200" {
			t.Errorf("a.test: %s", status)
		}
		if status, _ := s.get(t, "c.test", "/"); status != change.status {
			t.Errorf("c.test: %s, expected %s", status, change.status)
		}
	})
}

// TestEnforceStreamsApartRevoked is the same for a trusted proxy's clients and for a route's own trust store (A32).
func TestEnforceStreamsApartRevoked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	target := streams(t)
	w.start(underwayConf, target)
	alice, bob := w.ca.Client("alice"), w.ca.Client("bob")
	edge := w.session(t, "public", w.client("a.test", w.ca.Client("edge", testpki.DNS("edge.test"))))
	own := w.session(t, "public", w.client("b.test", alice))
	var gone, stay []*strand
	for _, path := range []string{"/down", "/up", "/grpc", "/ws"} {
		gone = append(gone, edge.do(t, "a.test", path, asserts(alice)...))
		stay = append(stay, edge.do(t, "a.test", path, asserts(bob)...))
	}
	gone = append(gone, own.do(t, "b.test", "/ws"), own.do(t, "b.test", "/down"))
	stay = append(stay, own.do(t, "b.test", "/up"), own.do(t, "b.test", "/grpc"))
	w.file("clients.crl", w.ca.CRL(alice, testpki.Number(9)))
	start := time.Now()
	w.reload(underwayConf, target)
	for _, x := range gone {
		t.Run("A32"+x.path, func(t *testing.T) { x.endsAlone(t, w, start, "client_cert_revoked: ") })
	}
	for _, x := range stay {
		x.serves(t)
	}
	if status, _ := own.get(t, "b.test", "/"); status != "200" {
		t.Errorf("a route that asks no more than its host: %s", status)
	}
}

// TestEnforceStreamsApartRoute is the same for what a route asks, and for routes that are not there any more (A34).
func TestEnforceStreamsApartRoute(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	target := streams(t)
	w.start(underwayConf, target)
	bob := w.session(t, "public", w.client("b.test", w.ca.Client("bob")))
	carol := w.session(t, "public", w.client("b.test", w.ca.Client("carol")))
	var stay []*strand
	for _, s := range []*session{bob, carol} {
		stay = append(stay, s.do(t, "b.test", "/down"), s.do(t, "b.test", "/up"), s.do(t, "b.test", "/grpc"))
	}
	ofBob, ofCarol := bob.do(t, "b.test", "/ws"), carol.do(t, "b.test", "/ws")
	conf := strings.Replace(underwayConf, `!= "nobody"`, `!= "bob"`, 1)
	start := time.Now()
	w.reload(conf, target)
	t.Run("A34/not allowed any more", func(t *testing.T) {
		ofBob.endsAlone(t, w, start, "policy_denied")
		for _, x := range append(stay, ofCarol) {
			x.serves(t)
		}
	})
	start = time.Now()
	w.reload(strings.Replace(conf, "match: {path: /down}", "match: {path: /nowhere}", 1), target)
	time.Sleep(time.Second) // the sweep has seen it
	t.Run("A34/another route serves it as well", func(t *testing.T) {
		for _, x := range append(stay, ofCarol) {
			x.serves(t)
		}
	})
	start = time.Now()
	w.reload(strings.Replace(conf, "          - match: {path: /ws}\n            client_auth", "          - match: {path: /wss}\n            client_auth", 1), target)
	t.Run("A34/the route is gone", func(t *testing.T) {
		ofCarol.endsAlone(t, w, start, "a route that is no longer configured")
		for _, x := range stay {
			x.serves(t)
		}
	})
}

// asserts are the fields by which a trusted proxy speaks for a client (RFC 9440).
func asserts(cert *testpki.Cert) []string {
	b := func(der []byte) string { return ":" + base64.StdEncoding.EncodeToString(der) + ":" }
	return []string{"client-cert", b(cert.Chain[0]), "client-cert-chain", b(cert.Chain[1])}
}

// TestEnforceStreamsPage: where a refused client gets a page, an idle connection stays for that, and no other does.
func TestEnforceStreamsPage(t *testing.T) {
	t.Parallel()
	w, conf, _, _ := enforceWorld(t)
	cert := w.ca.Client("victim")
	victim := w.client("d.test", cert)
	idle, busy := w.session(t, "public", victim), w.session(t, "public", victim)
	for _, path := range strandPaths {
		busy.do(t, "d.test", path)
	}
	for _, s := range []*session{idle, busy} {
		if status, _ := s.get(t, "d.test", "/"); status != "200" {
			t.Fatal(status)
		}
	}
	time.Sleep(500 * time.Millisecond) // a request is under way until its goroutine ends, a moment after the answer
	w.file("clients.crl", w.ca.CRL(cert, testpki.Number(2)))
	start := time.Now()
	w.reload(conf, "")
	t.Run("A32/busy", func(t *testing.T) { busy.ends(t, w, start, "client_cert_revoked: ") })
	t.Run("A32/idle", func(t *testing.T) {
		status, body := idle.get(t, "d.test", "/x")
		if status != "403" || !strings.Contains(body, `"reason":"client_cert_refused"`) {
			t.Errorf("%s %q, expected the page", status, body)
		}
		if r := w.find(t, "client="+idle.name(), "kind=request", "path=/x"); r["reason"] != "client_cert_revoked" {
			t.Errorf("record: %v", r)
		}
		if !happens(idle.ended, time.Now().Add(20*time.Second)) { // and then it goes
			t.Fatal("it goes on")
		}
		if len(idle.away) == 0 {
			t.Error("no GOAWAY")
		}
	})
}

// TestEnforceStreamsLast: what can be answered soon still is, whole, and only then the connection ends. A stream that is
// opened meanwhile is refused.
func TestEnforceStreamsLast(t *testing.T) {
	t.Parallel()
	w, conf, _, _ := enforceWorld(t)
	victim := w.ca.Client("victim")
	s := w.session(t, "public", w.client("a.test", victim))
	rpc, short := s.do(t, "a.test", "/grpc"), s.do(t, "a.test", "/short")
	over2 := s.do(t, "a.test", "/h2/short")
	w.file("clients.crl", w.ca.CRL(victim, testpki.Number(2)))
	start := time.Now()
	w.reload(conf, "")
	late := s.open(t, "GET", "a.test", "/late")
	if err := rpc.write(func() error { return rpc.fr.WriteData(rpc.id, true, nil) }); err != nil {
		t.Fatal(err)
	}
	if !happens(s.ended, start.Add(20*time.Second)) {
		t.Fatal("still open")
	}
	if took := s.at.Sub(start); took > allowed(start) {
		t.Errorf("ended after %v", took)
	}
	tardy := raceEnabled || stood(start) > time.Second // what is short is not short any more
	for _, x := range []*strand{short, over2, rpc} {
		if !x.complete && !tardy {
			t.Errorf("%s: %q, expected all of it", x, x.data)
		}
	}
	if rpc.trailer != "0" && !tardy {
		t.Errorf("grpc-status %q", rpc.trailer)
	}
	if n := len(s.away); late.status == "" && n > 0 && s.away[n-1].LastStreamID < late.id {
		t.Log("it came behind the last one that is served")
	} else if late.status == "" && tardy {
		t.Log("the end of the connection was faster")
	} else if late.status != "403" {
		t.Errorf("%s: %q %q", late, late.status, late.data)
	} else {
		late.recorded(t, w, "client_cert_revoked: ")
	}
	w.find(t, "client="+s.name(), "kind=ended", "reason=client_no_longer_trusted")
}

// hammers makes requests one after the other until the session ends or stop is called.
func (s *session) hammers(host string) (stop func()) {
	quit, idle := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(idle)
		for !happens(quit, time.Time{}) {
			x, err := s.ask("GET", host, "/")
			if err != nil || !happens(x.over, time.Now().Add(20*time.Second)) || s.leaving() {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	return sync.OnceFunc(func() { close(quit); <-idle })
}

// leaving reports whether the other side wants no more requests.
func (s *session) leaving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.away) > 0 || !s.at.IsZero()
}

// TestEnforceStreamsAmid: a connection that makes requests all the time finds out about a change by them, before the sweep
// comes. The streams that were there before end all the same.
func TestEnforceStreamsAmid(t *testing.T) {
	t.Parallel()
	const c = "{names: [c.test], certificate: *c, client_auth: {mode: require, trust_store: clients}, routes"
	type row struct {
		id, name, host, of, found string
		change                    func(w *world, conf string, victim *testpki.Cert) string
	}
	rows := []row{
		{"A34", "policy of another host", "a.test", "c.test", "policy_mismatch", func(_ *world, conf string, _ *testpki.Cert) string {
			return strings.Replace(conf, c, strings.Replace(c, "mode: require", "mode: request", 1), 1)
		}},
		{"A32", "page", "d.test", "d.test", "client_cert_revoked: ", func(w *world, conf string, victim *testpki.Cert) string {
			w.file("clients.crl", w.ca.CRL(victim, testpki.Number(2)))
			return conf
		}},
		{"A32", "revoked", "a.test", "a.test", "client_cert_revoked: ", func(w *world, conf string, victim *testpki.Cert) string {
			w.file("clients.crl", w.ca.CRL(victim, testpki.Number(2)))
			return conf
		}},
	}
	together(t, rows, func(r row) string { return r.id + "/" + r.name }, func(t *testing.T, row row) {
		w, conf, _, _ := enforceWorld(t)
		victim := w.ca.Client("victim")
		s := w.session(t, "public", w.client(row.host, victim))
		var gone []*strand
		for _, path := range strandPaths {
			gone = append(gone, s.do(t, row.of, path))
		}
		next := row.change(w, conf, victim)
		stop := s.hammers(row.host)
		defer stop()
		start := time.Now()
		w.reload(next, "")
		for _, x := range gone {
			x.ends(t, w, start, row.found)
		}
		stop()
		if row.of != row.host {
			if status, _ := s.get(t, row.host, "/"); status != "200" {
				t.Errorf("%s: %s", row.host, status)
			}
		}
	})
}

// TestEnforceStreamsAmidRoute is the same for what only the route's own trust store knows.
func TestEnforceStreamsAmidRoute(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	target := streams(t)
	w.start(underwayConf, target)
	alice := w.ca.Client("alice")
	s := w.session(t, "public", w.client("b.test", alice))
	gone, stay := []*strand{s.do(t, "b.test", "/ws"), s.do(t, "b.test", "/down")}, s.do(t, "b.test", "/up")
	w.file("clients.crl", w.ca.CRL(alice, testpki.Number(9)))
	stop := s.hammers("b.test")
	defer stop()
	start := time.Now()
	w.reload(underwayConf, target)
	for _, x := range gone {
		t.Run("A32"+x.path, func(t *testing.T) { x.endsAlone(t, w, start, "client_cert_revoked: ") })
	}
	stop()
	stay.serves(t)
}
