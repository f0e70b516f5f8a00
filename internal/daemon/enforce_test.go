package daemon_test

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/internal/testpki"
)

const enforceConfig = `
ops: {listen: 127.0.0.1:0}
outbound: {allow: [127.0.0.0/8]}
trust_stores:
  clients:
    ca_bundle: {file: clients.pem}
    revocation: {crls: [{file: clients.crl}, {file: brief.crl}, {file: other.crl}] # deny
      }
  strict: {ca_bundle: {file: servers.pem}}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - {names: [a.test], certificate: &c {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, routes: &r [{match: {path: /ws}, upgrade: [websocket], upstream: web}, {match: {path: /h2/*}, upstream: h2}, {upstream: web}]}
      - {names: [b.test], certificate: *c, client_auth: {mode: request, trust_store: clients}, routes: *r}
      - {names: [c.test], certificate: *c, client_auth: {mode: require, trust_store: clients}, routes: *r}
      - {names: [d.test], certificate: *c, client_auth: {mode: require, trust_store: clients, on_failure: page}, routes: *r}
      - {names: [off.test], certificate: *c, client_auth: {mode: off}, routes: *r}
  secure:
    listen: 127.0.0.1:0
    protocol: tls
    hosts:
      - {names: [a.test], certificate: *c, client_auth: {mode: require, trust_store: clients}, upstream: bytes}
      - {names: [b.test], certificate: *c, client_auth: {mode: request, trust_store: clients}, upstream: bytes}
      - {names: [c.test], certificate: *c, client_auth: {mode: require, trust_store: clients}, upstream: bytes}
  raw: {listen: 127.0.0.1:0, protocol: tcp, upstream: bytes}
  through: {listen: 127.0.0.1:0, protocol: passthrough, hosts: [{names: [a.test], upstream: tls}]}
upstreams:
  web: {targets: ["http://BACKEND"]}
  h2: {targets: ["http://BACKEND"], protocol_version: http2}
  bytes: {targets: ["tcp://BYTES"]}
  tls: {targets: ["tcp://TLS"]}
`

// streams is a target whose answers and requests take as long as one likes. It speaks HTTP/1.1 and HTTP/2.
func streams(t testing.TB) string { return streamsOver(t, nil) }

// streamsOver is streams over TLS, if conf is not nil.
func streamsOver(t testing.TB, conf *tls.Config) string {
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	srv := &http.Server{TLSConfig: conf, Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(rw)
		switch path := strings.TrimPrefix(r.URL.Path, "/h2"); path {
		case "/down", "/short":
			pause := 100 * time.Millisecond
			if path == "/short" {
				pause = 30 * time.Millisecond
			}
			for i := range 600 {
				if _, err := io.WriteString(rw, "tick\n"); err != nil || path == "/short" && i == 20 {
					return
				}
				_ = rc.Flush()
				select {
				case <-r.Context().Done():
					return
				case <-time.After(pause):
				}
			}
		case "/flood":
			for b := make([]byte, 64<<10); ; {
				if _, err := rw.Write(b); err != nil {
					return
				}
			}
		case "/grpc": // echoes
			_ = rc.EnableFullDuplex()
			rw.Header().Set("Content-Type", "application/grpc")
			rw.Header().Set("Trailer", "Grpc-Status")
			_ = rc.Flush()
			for b := make([]byte, 1024); ; {
				n, err := r.Body.Read(b)
				_, _ = rw.Write(b[:n])
				_ = rc.Flush()
				if err == io.EOF {
					rw.Header().Set("Grpc-Status", "0")
				}
				if err != nil {
					return
				}
			}
		case "/ws":
			c, buf, err := rc.Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			fmt.Fprint(c, switching(acceptOf(r.Header.Get("Sec-Websocket-Key"))))
			_, _ = io.Copy(c, buf)
		default:
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprintf(rw, "got %d", n)
		}
	})}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetHTTP2(conf != nil)
	srv.Protocols.SetUnencryptedHTTP2(conf == nil)
	t.Cleanup(func() { srv.Close() })
	if conf == nil {
		go srv.Serve(l)
	} else {
		go srv.ServeTLS(l, "", "")
	}
	return l.Addr().String()
}

// held is an open connection that something is done over.
type held struct {
	kind string
	conn net.Conn
	r    *bufio.Reader
	host string
	// ended is closed when the connection has ended; last says how.
	ended chan struct{}
	at    time.Time
	last  error
	text  string
}

// kinds are what a connection may be busy with when trust in its client ends, and how that is recorded.
var kinds = []struct {
	name, listener string
	record         []string // besides client and reason
	busy           bool     // has 3 s to end by itself; the others have nothing to lose
}{
	{"idle", "public", []string{"kind=ended"}, false},
	{"download", "public", []string{"kind=request", "path=/down"}, true},
	{"upload", "public", []string{"kind=request", "path=/up"}, true},
	{"WebSocket", "public", []string{"kind=request", "path=/ws", "status=101"}, false},
	{"TCP", "secure", []string{"kind=tunnel", "listener=secure"}, false},
}

// hold opens a connection and begins what kind says.
func (w *world) hold(t testing.TB, kind string, conf *tls.Config) *held {
	t.Helper()
	listener := "public"
	if kind == "TCP" {
		listener = "secure"
	}
	raw := must(dialFrom(w.addr(listener)))(t)
	t.Cleanup(func() { raw.Close() })
	_ = raw.SetDeadline(time.Now().Add(60 * time.Second))
	c := tls.Client(raw, conf)
	if err := c.Handshake(); err != nil {
		t.Fatalf("%s, %s: %v", kind, conf.ServerName, err)
	}
	h := &held{kind: kind, conn: c, r: bufio.NewReader(c), host: conf.ServerName, ended: make(chan struct{})}
	h.begin(t)
	return h
}

func (h *held) begin(t testing.TB) {
	t.Helper()
	host := "Host: " + h.host + "\r\n"
	switch h.kind {
	case "idle":
		if status, _, err := roundTrip(h.conn, h.r, "GET / HTTP/1.1\r\n"+host+"\r\n"); status != 200 {
			t.Fatalf("%s: %d %v", h.kind, status, err)
		}
	case "download":
		fmt.Fprint(h.conn, "GET /down HTTP/1.1\r\n"+host+"\r\n")
		h.expect(t, "HTTP/1.1 200")
	case "upload":
		fmt.Fprint(h.conn, "POST /up HTTP/1.1\r\n"+host+"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
		go func() {
			for range 2000 {
				if _, err := io.WriteString(h.conn, "1\r\nx\r\n"); err != nil {
					return
				}
				time.Sleep(30 * time.Millisecond)
				select {
				case <-h.ended:
					return
				default:
				}
			}
		}()
	case "WebSocket":
		fmt.Fprint(h.conn, wsRequest("/ws", "a.test", h.host))
		resp, err := http.ReadResponse(h.r, nil)
		if err != nil || resp.StatusCode != 101 {
			t.Fatalf("%s: %v %v", h.kind, resp, err)
		}
		h.echoes(t)
	case "TCP":
		h.echoes(t)
	}
}

func (h *held) expect(t testing.TB, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(h.r, got); err != nil || string(got) != want {
		t.Fatalf("%s: %q %v, expected %q", h.kind, got, err, want)
	}
}

func (h *held) echoes(t testing.TB) {
	t.Helper()
	if _, err := io.WriteString(h.conn, "hello\n"); err != nil {
		t.Errorf("%s: %v", h.kind, err)
		return
	}
	if got, err := h.r.ReadString('\n'); !strings.EqualFold(got, "hello\n") {
		t.Errorf("%s: %q %v", h.kind, got, err)
	}
}

// follow reads until the connection ends.
func (h *held) follow() {
	go func() {
		b, err := io.ReadAll(h.r)
		h.at, h.last, h.text = time.Now(), err, string(b)
		close(h.ended)
	}()
}

// serves shows that a connection works as if nothing had happened.
func (h *held) serves(t testing.TB) {
	t.Helper()
	_ = h.conn.SetDeadline(time.Now().Add(10 * time.Second))
	switch h.kind {
	case "idle":
		h.begin(t)
	case "download":
		for range h.r.Buffered() { // what came before
			_, _ = h.r.ReadByte()
		}
		for range 3 {
			for line := ""; line != "tick\n"; {
				var err error
				if line, err = h.r.ReadString('\n'); err != nil {
					t.Errorf("%s: %v", h.kind, err)
					return
				}
			}
		}
	case "upload":
		_ = h.conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if _, err := h.r.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) { // it is neither answered nor ended
			t.Errorf("%s: %v", h.kind, err)
		}
	default:
		h.echoes(t)
	}
}

// within is how long a connection may go on whose client is not trusted any more.
func within() time.Duration {
	if raceEnabled {
		return 8 * time.Second
	}
	return 5 * time.Second
}

// still notes when the machine stood still: nothing of the program ran then either.
var still struct {
	once sync.Once
	mu   sync.Mutex
	seen time.Time // when it last ran
	gaps []gap
}

type gap struct {
	end    time.Time
	length time.Duration
}

// stood is how long the machine has stood still since start. The first call begins to watch it.
func stood(start time.Time) (d time.Duration) {
	look := func() {
		still.mu.Lock()
		defer still.mu.Unlock()
		now := time.Now()
		if length := now.Sub(still.seen); length > 100*time.Millisecond {
			still.gaps = append(still.gaps, gap{now, length})
		}
		still.seen = now
	}
	still.once.Do(func() {
		still.seen = time.Now()
		go func() {
			for {
				time.Sleep(20 * time.Millisecond)
				look()
			}
		}()
	})
	look()
	still.mu.Lock()
	defer still.mu.Unlock()
	for _, g := range still.gaps {
		if g.end.After(start) {
			d += min(g.length, g.end.Sub(start))
		}
	}
	return d
}

// allowed is within for what began at start: while the machine stands still, nobody's time runs.
func allowed(start time.Time) time.Duration { return within() + stood(start) }

// soon is when a certificate expires that is first to be used a few times, in whole seconds as in certificates.
func soon() time.Time { return time.Now().Add(within() - 500*time.Millisecond).Truncate(time.Second) }

// enforceWorld starts enforceConfig. Other is a CA that can be removed, brief one of which there can be another that ends.
func enforceWorld(t *testing.T) (w *world, conf string, other, brief *testpki.Cert) {
	stood(time.Now())
	w = newWorld(t)
	other = testpki.New(t)
	brief = w.root.Intermediate("Brief CA")
	w.file("clients.pem", append(append(w.root.PEM(), w.ca.PEM()...), other.PEM()...))
	w.file("brief.crl", brief.CRL())
	w.file("other.crl", other.CRL())
	tlsTarget := streamsOver(t, &tls.Config{Certificates: []tls.Certificate{w.server.TLS()}})
	conf = strings.NewReplacer("BYTES", shout(t, nil), "TLS", tlsTarget, "BACKEND", streams(t)).Replace(enforceConfig)
	w.start(conf, "")
	return w, conf, other, brief
}

// together runs a test for each row, a few of them at the same time: more than the processors, for they mostly wait.
func together[T any](t *testing.T, rows []T, name func(T) string, test func(*testing.T, T)) {
	places := make(chan struct{}, 5)
	var wg sync.WaitGroup
	for _, row := range rows {
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			t.Run(name(row), func(t *testing.T) { test(t, row) })
		})
	}
	wg.Wait()
}

// TestEnforce: when trust in a client ends, each of its open connections ends within 5 s, with the reason, and those of
// others go on.
func TestEnforce(t *testing.T) {
	t.Parallel()
	type cause struct {
		id, name, host, found string
		// client makes one whose trust ends; nil for none.
		client func(w *world, other, brief *testpki.Cert, end time.Time) *testpki.Cert
		// change ends it, at once or at end.
		change func(w *world, conf string, victim *testpki.Cert)
	}
	fresh := func(w *world, _, _ *testpki.Cert, _ time.Time) *testpki.Cert { return w.ca.Client("victim") }
	edit := func(replace ...string) func(*world, string, *testpki.Cert) {
		return func(w *world, conf string, _ *testpki.Cert) {
			next := strings.NewReplacer(replace...).Replace(conf)
			if next == conf {
				t.Error("nothing is changed")
			}
			w.reload(next, "")
		}
	}
	causes := []cause{
		{"A32/C01", "revoked", "a.test", "client_cert_revoked: ", fresh, func(w *world, conf string, victim *testpki.Cert) {
			w.file("clients.crl", w.ca.CRL(victim, testpki.Number(2)))
			w.reload(conf, "")
		}},
		{"A32", "revoked, a certificate being optional", "b.test", "client_cert_revoked: ", fresh, func(w *world, conf string, victim *testpki.Cert) {
			w.file("clients.crl", w.ca.CRL(victim, testpki.Number(2)))
			w.reload(conf, "")
		}},
		{"A32", "denied", "a.test", "client_cert_denied: ", fresh, func(w *world, conf string, victim *testpki.Cert) {
			sum := sha256.Sum256(victim.DER())
			w.reload(strings.Replace(conf, " # deny", ", deny: [{certificate: "+hex.EncodeToString(sum[:])+"}]", 1), "")
		}},
		{"A32/A07", "CA removed", "a.test", "client_cert_untrusted: ", func(_ *world, other, _ *testpki.Cert, _ time.Time) *testpki.Cert {
			return other.Client("victim")
		}, func(w *world, conf string, _ *testpki.Cert) {
			w.file("clients.pem", append(w.root.PEM(), w.ca.PEM()...))
			w.reload(conf, "")
		}},
		{"A33", "leaf expires", "a.test", "client_cert_expired: ", func(w *world, _, _ *testpki.Cert, end time.Time) *testpki.Cert {
			return w.ca.Client("victim", testpki.NotAfter(end))
		}, nil},
		{"A33", "intermediate expires", "a.test", "client_cert_issuer_expired: ", func(w *world, _, brief *testpki.Cert, end time.Time) *testpki.Cert {
			return w.root.Intermediate("Brief CA", testpki.Like(brief), testpki.NotAfter(end)).Client("victim")
		}, nil},
		{"A34", "certificate required from now on", "b.test", "client_cert_missing: ", nil, edit("names: [b.test], certificate: *c, client_auth: {mode: request", "names: [b.test], certificate: *c, client_auth: {mode: require")},
		{"A34", "another trust store", "c.test", "client_cert_untrusted: ", fresh, edit("names: [c.test], certificate: *c, client_auth: {mode: require, trust_store: clients", "names: [c.test], certificate: *c, client_auth: {mode: require, trust_store: strict")},
		{"A34", "host removed", "c.test", "a server name that is no longer configured", fresh, edit("names: [c.test]", "names: [x.w.test]")},
	}
	together(t, causes, func(c cause) string { return c.id + "/" + c.name }, func(t *testing.T, c cause) {
		w, conf, other, brief := enforceWorld(t)
		begun := time.Now()
		alice := w.ca.Client("alice")
		beside := c.host // others, on the same host where there are any left
		if c.host == "c.test" {
			beside = "a.test"
		}
		var victims, others []*held
		var victimSessions, otherSessions []*session
		for _, v := range tlsVersions {
			for _, k := range kinds {
				others = append(others, w.hold(t, k.name, pin(w.client(beside, alice), v.id)))
				if c.client != nil { // nobody is asked to have what was revoked
					others = append(others, w.hold(t, k.name, pin(w.client("b.test", nil), v.id)))
				}
			}
			others = append(others, w.hold(t, "idle", pin(w.client("off.test", nil), v.id)))
			otherSessions = append(otherSessions, w.sessions(t, pin(w.client(beside, alice), v.id))...)
		}
		// Where nothing is verified, nothing is ended (passthrough, plain TCP).
		raw := must(dialFrom(w.addr("raw")))(t)
		defer raw.Close()
		_ = raw.SetDeadline(time.Now().Add(30 * time.Second))
		others = append(others, &held{kind: "raw", conn: raw, r: bufio.NewReader(raw)})
		through := must(dialFrom(w.addr("through")))(t)
		defer through.Close()
		_ = through.SetDeadline(time.Now().Add(30 * time.Second))
		inner := tls.Client(through, w.client("a.test", alice))
		others = append(others, &held{kind: "idle", conn: inner, r: bufio.NewReader(inner), host: "a.test"})
		for _, h := range others[len(others)-2:] {
			h.serves(t)
		}
		end := soon().Add(2*time.Second + time.Since(begun).Truncate(time.Second)) // on a slow machine there is more to wait for
		var victim *testpki.Cert
		if c.client != nil {
			victim = c.client(w, other, brief, end)
		}
		for _, v := range tlsVersions {
			victimSessions = append(victimSessions, w.sessions(t, pin(w.client(c.host, victim), v.id))...)
			for _, k := range kinds {
				victims = append(victims, w.hold(t, k.name, pin(w.client(c.host, victim), v.id)))
			}
		}
		for _, h := range victims {
			h.follow()
		}
		start := time.Now()
		if c.change == nil {
			if start.After(end) {
				t.Fatal("the machine is too slow: the certificate has expired before the test could begin")
			}
			start = end
		} else {
			c.change(w, conf, victim)
		}
		for i, h := range victims {
			k := kinds[i%len(kinds)]
			name := tlsVersions[i/len(kinds)].name + "/" + k.name
			if !happens(h.ended, start.Add(within()+10*time.Second)) {
				t.Fatalf("%s: still open after %v", name, time.Since(start))
			}
			took := h.at.Sub(start)
			if took > allowed(start) || k.busy && took < 3*time.Second || !k.busy && took > 3*time.Second+stood(start) && !raceEnabled || took < 0 {
				t.Errorf("%s: ended after %v", name, took)
			}
			if h.last != nil && errors.Is(h.last, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %v", name, h.last)
			}
			// What was cut must not look complete.
			if k.name == "download" && (h.last == nil || strings.HasSuffix(h.text, "\r\n0\r\n\r\n")) {
				t.Errorf("%s: the answer looks complete: %v", name, h.last)
			}
			r := w.find(t, append([]string{"client=" + h.conn.LocalAddr().String(), "reason=client_no_longer_trusted"}, k.record...)...)
			if !strings.HasPrefix(fmt.Sprint(r["found"]), c.found) || k.name != "idle" && r["kind"] == "ended" {
				t.Errorf("%s: record %v", name, r)
			}
		}
		for _, s := range victimSessions {
			s.ends(t, w, start, c.found)
		}
		// Others, when all that could happen to them has.
		time.Sleep(600 * time.Millisecond)
		var wg sync.WaitGroup
		for _, h := range others {
			wg.Go(func() { h.serves(t) })
		}
		for _, s := range otherSessions {
			wg.Go(func() { s.serves(t, beside) })
		}
		wg.Wait()
		w.untouched(t, otherSessions...)
		for line := range strings.Lines(w.log.String()) {
			for _, h := range others {
				if strings.Contains(line, "client_no_longer_trusted") && strings.Contains(line, `"client":"`+h.conn.LocalAddr().String()+`"`) {
					t.Errorf("of another client, %s: %s", h.kind, line)
				}
			}
		}
	})
}

// TestEnforcePage: where a refused client gets a page, its connection stays for that.
func TestEnforcePage(t *testing.T) {
	t.Parallel()
	for _, v := range tlsVersions {
		t.Run("A32/"+v.name, func(t *testing.T) {
			t.Parallel()
			w, conf, _, _ := enforceWorld(t)
			victim := w.ca.Client("victim")
			h := w.hold(t, "idle", pin(w.client("d.test", victim), v.id))
			// What is under way has nobody to show a page to.
			busy := []*held{w.hold(t, "WebSocket", pin(w.client("d.test", victim), v.id)), w.hold(t, "download", pin(w.client("d.test", victim), v.id))}
			for _, b := range busy {
				b.follow()
			}
			w.file("clients.crl", w.ca.CRL(victim, testpki.Number(2)))
			w.reload(conf, "")
			start := time.Now()
			time.Sleep(1500 * time.Millisecond) // the sweep has seen it
			status, body, err := roundTrip(h.conn, h.r, "GET /x HTTP/1.1\r\nHost: d.test\r\n\r\n")
			if status != 403 || !strings.Contains(body, `"reason":"client_cert_refused"`) {
				t.Errorf("%d %q %v, expected the page", status, body, err)
			}
			if r := w.find(t, "client="+h.conn.LocalAddr().String(), "kind=request", "path=/x"); r["reason"] != "client_cert_revoked" {
				t.Errorf("record: %v", r)
			}
			for _, b := range busy {
				if !happens(b.ended, start.Add(within()+10*time.Second)) {
					t.Fatalf("%s goes on", b.kind)
				}
				if took := b.at.Sub(start); took > 1500*time.Millisecond+allowed(start) {
					t.Errorf("%s: ended after %v", b.kind, took)
				}
				w.find(t, "client="+b.conn.LocalAddr().String(), "kind=request", "reason=client_no_longer_trusted")
			}
		})
	}
}

// TestEnforceLast: an answer that is under way and short is still given, whole, and then the connection ends.
func TestEnforceLast(t *testing.T) {
	t.Parallel()
	w, conf, _, _ := enforceWorld(t)
	victim := w.ca.Client("victim")
	for i, v := range tlsVersions {
		t.Run("A32/"+v.name, func(t *testing.T) {
			h := w.hold(t, "idle", pin(w.client("a.test", victim), v.id))
			fmt.Fprint(h.conn, "GET /short HTTP/1.1\r\nHost: a.test\r\n\r\n")
			h.expect(t, "HTTP/1.1 200")
			w.file("clients.crl", w.ca.CRL(victim, testpki.Number(int64(2+2*i))))
			w.reload(conf, "")
			defer func() {
				w.file("clients.crl", w.ca.CRL(testpki.Number(int64(3+2*i))))
				w.reload(conf, "")
			}()
			start := time.Now()
			rest, err := io.ReadAll(h.r)
			late := raceEnabled || stood(start) > time.Second // what is short is not short any more
			if took := time.Since(start); took > allowed(start) || !strings.HasSuffix(string(rest), "tick\n\r\n0\r\n\r\n") && !late {
				t.Errorf("%q %v after %v", rest[max(0, len(rest)-20):], err, took)
			}
			client := "client=" + h.conn.LocalAddr().String()
			w.find(t, client, "path=/short", "status=200")
			w.find(t, client, "reason=client_no_longer_trusted")
		})
	}
}

// TestEnforceOCSP: what a responder says while a client is connected ends its connections, and no others.
func TestEnforceOCSP(t *testing.T) {
	t.Parallel()
	stood(time.Now())
	w := newWorld(t)
	alice, victim := w.ca.Client("alice"), w.ca.Client("victim")
	said := make(chan struct{})
	url := responder(t, w.ca, func(serial string) []testpki.OCSPOption {
		if serial != victim.Cert.SerialNumber.String() {
			return nil
		}
		<-said // it takes its time
		return []testpki.OCSPOption{testpki.OCSPRevoked(1)}
	})
	conf := strings.NewReplacer("BYTES", shout(t, nil), "TLS", "127.0.0.1:1", "BACKEND", streams(t), " # deny", ", ocsp: {mode: prefer, responder: \""+url+"\"}",
		", {file: brief.crl}, {file: other.crl}", "").Replace(enforceConfig)
	w.start(conf, "")
	sessions, otherSessions := w.sessions(t, w.client("a.test", victim)), w.sessions(t, w.client("a.test", alice))
	type pair struct{ victim, other *held }
	var all []pair
	for _, k := range kinds {
		all = append(all, pair{w.hold(t, k.name, w.client("a.test", victim)), w.hold(t, k.name, w.client("a.test", alice))})
	}
	for _, p := range all {
		p.victim.follow()
	}
	start := time.Now()
	close(said)
	await(t, 40*time.Second, "the answer", func() bool { // a question that waited too long is asked again when the client comes
		before := time.Now()
		if w.call("public", w.client("a.test", victim), "a.test", "/").status != 200 {
			return true
		}
		start = before
		return false
	})
	for i, p := range all {
		t.Run("A32/C01/"+kinds[i].name, func(t *testing.T) {
			if !happens(p.victim.ended, start.Add(within()+10*time.Second)) {
				t.Fatal("still open")
			}
			if took := p.victim.at.Sub(start); took > allowed(start) {
				t.Errorf("ended after %v", took)
			}
			r := w.find(t, append([]string{"client=" + p.victim.conn.LocalAddr().String(), "reason=client_no_longer_trusted"}, kinds[i].record...)...)
			if !strings.HasPrefix(fmt.Sprint(r["found"]), "client_cert_revoked: ") {
				t.Errorf("record: %v", r)
			}
			p.other.serves(t)
		})
	}
	for i, s := range sessions {
		t.Run(fmt.Sprint("A32/C01/HTTP2/", i), func(t *testing.T) {
			s.ends(t, w, start, "client_cert_revoked: ")
			otherSessions[i].serves(t, "a.test")
		})
	}
	w.untouched(t, otherSessions...)
}
