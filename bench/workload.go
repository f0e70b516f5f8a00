package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2/hpack"
)

// bench is one run.
type bench struct {
	dir                   string
	pki                   *pki
	launch                *launcher
	backends              backends
	proxyCores, loadCores []int
	log                   bool
	hosts, revoked, idle  int
	seconds, settle       time.Duration
	rounds                int
	targets               []*target
	// profiles is a folder for profiles, empty for none; spy is Countersign with the agent; profiling is what a workload
	// with instances of its own writes while it is not nil.
	profiles  string
	spy       *target
	profiling *recording
	// crowd are clients of their own; used says how many of them each target has seen.
	crowd []*tls.Certificate
	used  map[*target]*atomic.Int64
	// random draws the order of targets in each round.
	random *rand.Rand
	say    func(format string, args ...any)
}

// line is one line of the result.
type line struct {
	name, title string
	// of is what is compared, per unit.
	of, unit string
	// goal is the largest ratio to the better peer; 0 is none.
	goal float64
}

// workload gives one line, measured by a load on an instance that serves other workloads too; or several, by alone.
type workload struct {
	lines []line
	// kind is the instance's, "main" if empty.
	kind    string
	workers int
	// main says that peers are measured that run the main workloads only; few that only we are and those that goals speak
	// of; mixed that default.pgo is made of it too.
	main, few, mixed bool
	// choosing says that it is seen before which certificate each kind of client gets.
	choosing bool
	// stream says that nginx needs its stream module.
	stream bool
	open   func(b *bench, i *instance) opener
	// alone measures a target with instances of its own, once, and returns a value for each line.
	alone func(ctx context.Context, b *bench, t *target) ([]float64, error)
	// slow says that older peers need minutes.
	slow bool
	// sinks says that our logs and our journal are measured, beside themselves: no peer is.
	sinks bool
}

func (w *workload) name() string { return w.lines[0].name }

// client calls a listener with the good certificate.
func (b *bench) client(i *instance, listener string) call {
	return call{addr: i.addr[listener], cert: b.pki.good}
}

// stranger is a client certificate that this target has not seen yet; when there is none left that is an error, as one that
// was seen is cheaper.
func (b *bench) stranger(i *instance) (*tls.Certificate, error) {
	n := int(b.used[i.target].Add(1))
	if n > len(b.crowd) {
		return nil, fmt.Errorf("it has seen all %d clients; -strangers makes more", len(b.crowd))
	}
	return b.crowd[n-1], nil
}

// workloads are all there are, in the order in which they run.
func (b *bench) workloads() []*workload {
	cpu := func(name, title, unit string, goal float64) []line {
		return []line{{name, title, "CPU µs", unit, goal}}
	}
	handshake := func(lines []line, listener string, change func(*call)) *workload {
		return &workload{lines: lines, workers: 16, open: func(b *bench, i *instance) opener {
			c := b.client(i, listener)
			change(&c)
			return handshakes(c, nil, false)
		}}
	}
	resumed := func(lines []line, version uint16) *workload {
		return &workload{lines: lines, workers: 16, open: func(b *bench, i *instance) opener {
			c := b.client(i, "https")
			c.max = version
			return handshakes(c, nil, true)
		}}
	}
	requested := func(lines []line, listener, path string, length int) *workload {
		return &workload{lines: lines, workers: 64, open: func(b *bench, i *instance) opener {
			return requests(b.client(i, listener), path, length)
		}}
	}
	asIs := func(*call) {}
	// sized is a goal of issue 6, which speaks of a size; a smaller one has no goal.
	sized := func(size, want int, goal float64) float64 {
		if size < want {
			return 0
		}
		return goal
	}
	// main, mixed and choosing mark a workload.
	main := func(w *workload) *workload {
		w.main = true
		return w
	}
	mixed := func(w *workload) *workload {
		w.mixed = true
		return w
	}
	choosing := func(w *workload) *workload {
		w.choosing = true
		return w
	}
	return []*workload{
		mixed(main(handshake(cpu("handshake", "full handshake, ECDSA P-256, chain seen before", "handshake", 0.50), "https", asIs))),
		mixed(&workload{lines: cpu("handshake-cold", "full handshake, ECDSA P-256, chain never seen", "handshake", 0.70), workers: 16,
			open: func(b *bench, i *instance) opener {
				return handshakes(b.client(i, "https"), func() (*tls.Certificate, error) { return b.stranger(i) }, false)
			}}),
		mixed(handshake(cpu("handshake-mlkem", "full handshake, X25519MLKEM768", "handshake", 0), "https", func(c *call) {
			c.groups = []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256}
		})),
		choosing(handshake(cpu("handshake-rsa", "full handshake, RSA-2048 server key", "handshake", 1.30), "rsa", asIs)),
		mixed(main(resumed(cpu("resumed", "resumed handshake, TLS 1.3", "handshake", 0.75), tls.VersionTLS13))),
		main(resumed(cpu("resumed-tls12", "resumed handshake, TLS 1.2", "handshake", 0.75), tls.VersionTLS12)),
		mixed(main(requested(cpu("keepalive", "keep-alive GET 128 B, HTTP/1.1", "request", 0.75), "https", "/128", smallBody))),
		requested(cpu("keepalive-bare", "the same, peers without identity headers", "request", 0), "bare", "/128", smallBody),
		mixed(main(requested(cpu("keepalive-16k", "keep-alive GET 16 KiB, HTTP/1.1", "request", 0.80), "https", "/16k", mediumBody))),
		mixed(main(&workload{lines: cpu("http2", "GET 128 B, HTTP/2, 8 connections of 8 streams", "request", 0.70), workers: 8,
			open: func(b *bench, i *instance) opener {
				return multiplexed(b.client(i, "https"), "/128", 8, smallBody)
			}})),
		mixed(&workload{lines: cpu("download", "download of 100 MB", "MB", 1.00), workers: 4, open: func(b *bench, i *instance) opener {
			return download(b.client(i, "https"))
		}}),
		mixed(&workload{lines: cpu("upload", "upload of 100 MB", "MB", 1.00), workers: 4, open: func(b *bench, i *instance) opener {
			return upload(b.client(i, "https"))
		}}),
		{lines: cpu("tls", "TLS termination to TCP, bytes down", "MB", 0), workers: 4, stream: true, open: func(b *bench, i *instance) opener {
			c := b.client(i, "tls")
			return stream(func() (net.Conn, error) { return greet(dial(c.addr, c.config())) })
		}},
		{lines: cpu("passthrough", "SNI passthrough, bytes down", "MB", 1.00), workers: 4, stream: true, open: func(b *bench, i *instance) opener {
			return stream(func() (net.Conn, error) {
				c, err := net.DialTimeout("tcp", i.addr["passthrough"], patience)
				if err != nil {
					return nil, err
				}
				_ = c.SetDeadline(time.Now().Add(patience))
				_, err = c.Write(hello())
				return c, err
			})
		}},
		{lines: cpu("handshake-crl", "full handshake, revocation list of "+thousands(b.revoked)+" entries", "handshake", sized(b.revoked, 1_000_000, 0.02)),
			kind: "crl", workers: 2,
			open: func(b *bench, i *instance) opener { return handshakes(b.client(i, "https"), nil, false) }},
		mixed(&workload{lines: cpu("routes", "keep-alive GET 128 B, "+thousands(routeHosts)+" hosts of "+thousands(routesOfHost)+" routes", "request", 0),
			kind: "routes", workers: 64, few: true,
			open: func(b *bench, i *instance) opener { return spreadOver(b.client(i, "https"), 64, routeHosts) }}),
		{lines: []line{{"idle", "idle mTLS connection, 1 GET each before", "KB", "connection", 1.00}}, alone: idle(asksH1)},
		{lines: []line{{"idle-http2", "idle mTLS connection, HTTP/2, 1 GET each before", "KB", "connection", 0}}, alone: idle(asksH2)},
		{lines: []line{
			{"start-many", "start with " + thousands(b.hosts) + " server certificates", "s", "start", sized(b.hosts, 10_000, 0.50)},
			{"reload-many", "reload of them after one changed, by its signal", "s", "reload", sized(b.hosts, 10_000, 0.10)},
			{"replace-many", "the same, but HAProxy is told it through its socket", "s", "change", 0},
			{"memory-many", "memory with them", "MB", "process", 0},
		}, alone: many, slow: true},
		{lines: []line{
			{"sinks", "mixed load, all logs and the journal stalled", "CPU µs", "1.25 handshakes and 20 requests", sinksGoal},
			{"sinks-request", "p99 of requests, all logs and the journal stalled", "ms", "request", sinksGoal},
			{"sinks-handshake", "p99 of handshakes, all logs and the journal stalled", "ms", "handshake", 0},
		}, sinks: true},
	}
}

// thousands writes a number with commas.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for at := len(s) - 3; at > 0; at -= 3 {
		s = s[:at] + "," + s[at:]
	}
	return s
}

// greet sends what makes the source of bytes begin.
func greet(c *tls.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	_, err = c.Write([]byte("go"))
	return c, err
}

// asker makes a connection and returns it with a request that can be made on it again and again.
type asker func(c call) (*tls.Conn, func() error, error)

// asksH1 is that of HTTP/1.1.
func asksH1(c call) (*tls.Conn, func() error, error) {
	conn, err := dial(c.addr, c.config())
	if err != nil {
		return nil, nil, err
	}
	return conn, func() error {
		head, body, err := exchange(conn, get("/128"), make([]byte, 8<<10))
		return whole(head, len(body), smallBody, err)
	}, nil
}

// asksH2 is that of HTTP/2: with the answer the stream is closed.
func asksH2(c call) (*tls.Conn, func() error, error) {
	h, err := dialH2(c)
	if err != nil {
		return nil, nil, err
	}
	return h.conn, func() error {
		body, err := h.get("/128")
		if err == nil && len(body) != smallBody {
			err = fmt.Errorf("an answer with a body of %d bytes; expected %d", len(body), smallBody)
		}
		return err
	}, nil
}

// idle is how much more memory a target has for each of many connections that have made one request and wait.
func idle(open asker) func(context.Context, *bench, *target) ([]float64, error) {
	return func(ctx context.Context, b *bench, t *target) ([]float64, error) {
		i, err := b.run(t, "main")
		if err != nil {
			return nil, err
		}
		defer i.stop()
		if err := b.waitFor(ctx, i); err != nil {
			return nil, err
		}
		each, err := b.weigh(ctx, i, open)
		if err != nil {
			return nil, err
		}
		// Earlier, what it leaves behind would count as memory that was there before the connections.
		_, err = b.inspect(i)
		return []float64{each}, err
	}
}

// weigh is the same for an instance, in KB. That each connection still waited when memory was read is seen from a second
// request on it: there is no figure for fewer.
func (b *bench) weigh(ctx context.Context, i *instance, open asker) (float64, error) {
	c := b.client(i, "https")
	for range 50 { // what is there once is not counted
		conn, ask, err := open(c)
		if err != nil {
			return 0, err
		}
		err = ask()
		conn.Close()
		if err != nil {
			return 0, err
		}
	}
	if err := sleep(ctx, b.settle); err != nil {
		return 0, err
	}
	before := memory(tree(i.proc.pid))
	var conns []*tls.Conn
	var asks []func() error
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for n := range b.idle {
		conn, ask, err := open(c)
		if err == nil {
			conns, asks = append(conns, conn), append(asks, ask)
			err = ask()
		}
		if err != nil {
			return 0, fmt.Errorf("connection %d: %w", n+1, err)
		}
	}
	if err := sleep(ctx, b.settle); err != nil {
		return 0, err
	}
	each := float64(memory(tree(i.proc.pid))-before) / float64(b.idle) / 1024
	if err := b.held(ctx, i); err != nil {
		return 0, err
	}
	for n, ask := range asks {
		_ = conns[n].SetDeadline(time.Now().Add(patience))
		if err := ask(); err != nil {
			return 0, fmt.Errorf("connection %d of %d has ended while it was idle, so there is no figure: %w", n+1, b.idle, err)
		}
	}
	if each <= 0 {
		return 0, errors.New("with the connections it has less memory than before; does another process begin to share its pages?")
	}
	return each, nil
}

// many is how long a target takes to start with many hosts, and to load them again after one certificate changed. It is
// ready when the last host is served with a certificate of its own.
func many(ctx context.Context, b *bench, t *target) ([]float64, error) {
	if _, err := b.pki.recall(); err != nil {
		return nil, err
	}
	i, err := b.run(t, "many")
	if err != nil {
		return nil, err
	}
	defer func() { i.stop() }()
	end, err := b.started(ctx, i)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 8<<10)
	at := func(n int, cert *tls.Certificate) (call, []byte) {
		c := call{addr: i.addr["https"], name: manyName(n), cert: cert}
		if parts := i.fill.Parts; parts != nil {
			c.addr = parts[n/partHosts]
		}
		return c, bytes.Replace(get("/128"), []byte(host), []byte(manyName(n)), 1)
	}
	served := func(n int) (string, error) {
		c, request := at(n, b.pki.good)
		state, err := once(c.addr, c.config(), request, buf)
		if err != nil {
			return "", err
		}
		leaf := state.PeerCertificates[0]
		if leaf.Subject.CommonName != manyName(n) {
			return "", fmt.Errorf("%s is served with the certificate of %q", manyName(n), leaf.Subject.CommonName)
		}
		return leaf.SerialNumber.String(), nil
	}
	started, err := i.ready(ctx, time.Minute, func() error {
		_, err := served(b.hosts - 1)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, n := range []int{0, b.hosts / 3, b.hosts / 2} {
		if _, err := served(n); err != nil {
			return nil, err
		}
		for name, cert := range map[string]*tls.Certificate{"foreign": b.pki.foreign, "none": nil} {
			c, request := at(n, cert)
			if _, err := refused(c, request, buf); err != nil {
				return nil, fmt.Errorf("client certificate %s: %w", name, err)
			}
		}
	}
	// A reload seldom comes right behind a start. What a target does behind it is over then, or the reload bears with it.
	if err := sleep(ctx, b.settle); err != nil {
		return nil, err
	}
	size := float64(memory(tree(i.proc.pid))) / (1 << 20)
	// changed replaces the certificate of host 0, tells the target, and waits until the new one is served.
	changed := func(tell func(*bench) error) (time.Duration, error) {
		want, err := b.pki.manyHost(0)
		if err != nil {
			return 0, err
		}
		begin := time.Now()
		if err := tell(b); err != nil {
			return 0, err
		}
		_, err = i.ready(ctx, time.Minute, func() error {
			got, err := served(0)
			if err == nil && got != want {
				err = errors.New("the old certificate is still served")
			}
			return err
		})
		return time.Since(begin), err
	}
	old := i.proc
	reloaded, err := changed(i.reload)
	if old != i.proc {
		old.stop()
	}
	replaced := reloaded
	if err == nil && i.kind == "haproxy" {
		replaced, err = changed(i.replaceHost)
	}
	return []float64{started.Seconds(), reloaded.Seconds(), replaced.Seconds(), size}, errors.Join(err, end())
}

// waitFor waits until the HTTPS listener answers the good client.
func (b *bench) waitFor(ctx context.Context, i *instance) error {
	conf, buf := b.client(i, "https").config(), make([]byte, 8<<10)
	_, err := i.ready(ctx, time.Minute, func() error {
		_, err := once(i.addr["https"], conf, get("/128"), buf)
		return err
	})
	return err
}

// inspect asserts what makes a comparison fair: strangers and clients without a certificate get nothing, whatever a
// client claims about itself is overwritten, and the backend learns who it is, with HTTP/1.1 and HTTP/2. It returns what it saw.
func (b *bench) inspect(i *instance) (string, error) {
	buf := make([]byte, 32<<10)
	var how []string
	for _, at := range b.doors(i) {
		for name, cert := range map[string]*tls.Certificate{"foreign": b.pki.foreign, "none": nil} {
			at.cert = cert
			got, err := refused(at.call, getFrom(at.config().ServerName, "/128"), buf)
			if err != nil {
				return "", fmt.Errorf("%s, %s, client certificate %s: %w", i.Name, at.what, name, err)
			}
			if at.first {
				how = append(how, name+": "+got)
			}
		}
	}
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		c := b.client(i, "https")
		c.max = version
		suite, err := b.introduced(i.kind, c, buf)
		if err != nil {
			return "", fmt.Errorf("%s, %s: %w", i.Name, tls.VersionName(version), err)
		}
		how = append(how, suite)
	}
	if i.fill.Kind == "main" {
		if err := b.introducedH2(i.kind, b.client(i, "https")); err != nil {
			return "", fmt.Errorf("%s, HTTP/2: %w", i.Name, err)
		}
		how = append(how, "h2")
	}
	if i.fill.Kind == "routes" {
		if err := b.routed(i, buf); err != nil {
			return "", fmt.Errorf("%s: %w", i.Name, err)
		}
	}
	return strings.Join(how, "; "), nil
}

// door is a way in that strangers must not find open.
type door struct {
	call
	what  string
	first bool
}

// doors are all ways into an instance that a workload uses.
func (b *bench) doors(i *instance) []door {
	all := []door{{call{addr: i.addr["https"]}, "listener https", true}}
	switch i.fill.Kind {
	case "main":
		all = append(all, door{call{addr: i.addr["https"], alpn: []string{"h2"}}, "listener https, HTTP/2", false})
		if i.main {
			break
		}
		all = append(all, door{call{addr: i.addr["rsa"]}, "listener rsa", false}, door{call{addr: i.addr["both"]}, "listener both", false})
		if i.addr["bare"] != i.addr["https"] {
			all = append(all, door{call{addr: i.addr["bare"]}, "listener bare", false})
		}
		if i.stream {
			all = append(all, door{call{addr: i.addr["tls"]}, "listener tls", false})
		}
	case "routes":
		for _, n := range []int{0, routeHosts / 2, routeHosts - 1} {
			all = append(all, door{call{addr: i.addr["https"], name: routeHost(n)}, "host " + routeHost(n), false})
		}
	}
	return all
}

// routed asserts that routes are what decides: a path of none of them is not served.
func (b *bench) routed(i *instance, buf []byte) error {
	for _, n := range []int{0, routeHosts - 1} {
		c := b.client(i, "https")
		c.name = routeHost(n)
		for path, want := range map[string]bool{routePath(0) + "128": true, routePath(routesOfHost-1) + "128": true, "/other": false} {
			_, err := once(c.addr, c.config(), getFrom(c.name, path), buf)
			if (err == nil) != want {
				return fmt.Errorf("%s%s is served: %t (%w); expected %t", c.name, path, err == nil, err, want)
			}
		}
	}
	return nil
}

// errStranger ends the run at once: what lets strangers in does other work.
var errStranger = errors.New("a stranger was let in")

// refused says how a client was refused; an error means that it was not, and is errStranger.
func refused(c call, request, buf []byte) (string, error) {
	if c.alpn != nil {
		return refusedH2(c)
	}
	conn, err := dial(c.addr, c.config())
	if err != nil {
		return alert(err), nil
	}
	defer conn.Close()
	if _, err := conn.Write(request); err != nil {
		return alert(err), nil
	}
	n, err := conn.Read(buf)
	if err != nil {
		return alert(err), nil
	}
	status, _, _ := bytes.Cut(buf[:n], []byte("\r\n"))
	if bytes.HasPrefix(status, []byte("HTTP/1.1 4")) {
		return fmt.Sprintf("%.40s", status), nil
	}
	return "", fmt.Errorf("%w: expected to be refused, found %.40q", errStranger, buf[:n])
}

// refusedH2 is the same for HTTP/2, where a server may speak first and refuse then.
func refusedH2(c call) (string, error) {
	h, err := dialH2(c)
	if err != nil {
		return alert(err), nil
	}
	defer h.conn.Close()
	if err := h.send(host, "/128", false); err != nil {
		return alert(err), nil
	}
	f, err := h.wait()
	if err != nil {
		return alert(err), nil
	}
	if strings.HasPrefix(f.status, "4") {
		return "HTTP/2 " + f.status, nil
	}
	return "", fmt.Errorf("%w: expected to be refused, found status %.20q", errStranger, f.status)
}

func alert(err error) string {
	var told tls.AlertError
	if errors.As(err, &told) {
		return told.Error()
	}
	text := err.Error()
	return strings.TrimSpace(text[strings.LastIndex(text, ":")+1:])
}

// forged is what a client claims about itself, in the headers of all dialects.
var forged = [][2]string{{"X-SSL-Client-Verify", "FORGED"}, {"X-SSL-Client-S-DN", "CN=forged"}, {"X-Forwarded-Tls-Client-Cert", "forged"},
	{"X-Forwarded-Tls-Client-Cert-Info", "forged"}}

// introduced asserts that the backend was told who the client is, and not what the client wrote; it returns the cipher.
func (b *bench) introduced(kind string, c call, buf []byte) (string, error) {
	conn, err := dial(c.addr, c.config())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	claims := ""
	for _, f := range forged {
		claims += f[0] + ": " + f[1] + "\r\n"
	}
	head, body, err := exchange(conn, []byte(strings.Replace(string(get("/headers")), "Accept: ", claims+"Accept: ", 1)), buf)
	if err := answered(head, err); err != nil {
		return "", err
	}
	if err := b.told(kind, body); err != nil {
		return "", err
	}
	state := conn.ConnectionState()
	suite := tls.CipherSuiteName(state.CipherSuite)
	if !strings.Contains(suite, "AES_128_GCM_SHA256") {
		return "", fmt.Errorf("cipher %s; expected AES-128-GCM as everywhere", suite)
	}
	return suite, nil
}

// introducedH2 is the same for HTTP/2.
func (b *bench) introducedH2(kind string, c call) error {
	h, err := dialH2(c)
	if err != nil {
		return err
	}
	defer h.conn.Close()
	var claims []hpack.HeaderField
	for _, f := range forged {
		claims = append(claims, hpack.HeaderField{Name: strings.ToLower(f[0]), Value: f[1]})
	}
	body, err := h.get("/headers", claims...)
	if err != nil {
		return err
	}
	return b.told(kind, body)
}

// told asserts that a request's head, as it came to the backend, says who the good client is.
func (b *bench) told(kind string, head []byte) error {
	_, fields, _ := bytes.Cut(head, []byte("\r\n"))
	told, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(fields))).ReadMIMEHeader()
	if err != nil {
		return fmt.Errorf("what the backend saw: %w", err)
	}
	leaf := b.pki.good.Leaf
	for name, good := range expected(kind, leaf) {
		if got := told.Values(name); len(got) != 1 || !good(got[0]) {
			return fmt.Errorf("the backend was told %s: %.100q; expected one of the client %q", name, got, leaf.Subject.CommonName)
		}
	}
	return nil
}

// expected are the headers in which a kind of target tells the backend of a client, with what they have to be. Traefik has
// its own and no other; Caddy knows no dates.
func expected(kind string, leaf *x509.Certificate) map[string]func(string) bool {
	something := func(v string) bool { return v != "" }
	all := map[string]func(string) bool{
		"X-Forwarded-For":   func(v string) bool { return v == "127.0.0.1" },
		"X-Forwarded-Proto": func(v string) bool { return v == "https" },
		"X-Forwarded-Host":  func(v string) bool { return v == host },
		"X-Forwarded-Port":  something,
	}
	serial := func(v string) bool {
		return strings.EqualFold(v, fmt.Sprintf("%X", leaf.SerialNumber)) || strings.EqualFold(v, fmt.Sprintf("%X", leaf.SerialNumber.Bytes())) ||
			kind == "caddy" && v == leaf.SerialNumber.String()
	}
	if kind == "traefik" {
		all["X-Forwarded-Tls-Client-Cert"] = func(v string) bool {
			v, _, _ = strings.Cut(v, ",") // the chain
			return bytes.Equal(certificate(v), leaf.Raw)
		}
		all["X-Forwarded-Tls-Client-Cert-Info"] = func(v string) bool {
			v, err := url.QueryUnescape(v)
			for _, part := range []string{"CN=" + leaf.Subject.CommonName, "CN=" + leaf.Issuer.CommonName, "SerialNumber=", "NB=", "NA="} {
				if err != nil || !strings.Contains(v, part) {
					return false
				}
			}
			return true
		}
		return all
	}
	all["X-SSL-Client-Verify"] = func(v string) bool { return v == "SUCCESS" }
	all["X-SSL-Client-S-DN"] = func(v string) bool { return strings.Contains(v, "CN="+leaf.Subject.CommonName) }
	all["X-SSL-Client-I-DN"] = func(v string) bool { return strings.Contains(v, "CN="+leaf.Issuer.CommonName) }
	all["X-SSL-Client-Serial"] = serial
	fingerprint := fmt.Sprintf("%x", sha256.Sum256(leaf.Raw))
	if kind == "nginx" {
		fingerprint = fmt.Sprintf("%x", sha1.Sum(leaf.Raw)) // it has no other
	}
	all["X-SSL-Client-SHA256"] = func(v string) bool { return strings.EqualFold(v, fingerprint) }
	all["X-SSL-Client-Cert"] = func(v string) bool { return bytes.Equal(certificate(v), leaf.Raw) }
	if kind != "caddy" {
		all["X-SSL-Client-Not-Before"], all["X-SSL-Client-Not-After"] = something, something
	}
	return all
}

// certificate reads a header with a certificate: escaped PEM, or base64.
func certificate(v string) []byte {
	if der, err := base64.StdEncoding.DecodeString(v); err == nil {
		return der
	}
	text, err := url.PathUnescape(v)
	if err != nil {
		return nil
	}
	if der, err := base64.StdEncoding.DecodeString(text); err == nil {
		return der
	}
	if p, _ := pem.Decode([]byte(text)); p != nil {
		return p.Bytes
	}
	return nil
}
