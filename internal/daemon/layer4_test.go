package daemon_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"countersign/internal/daemon"
	"countersign/internal/testpki"
)

// bytesKinds are the kinds of listeners that move bytes.
var bytesKinds = []string{"tls", "tcp", "passthrough"}

// l4World is a running program whose listeners are all of one kind.
type l4World struct {
	*world
	kind    string
	targets []*l4Target
	dials   chan string // the addresses that are dialled of blackHole
}

// l4Case is a listener and the upstream of the same name that it leads to: what they have besides that. In upstream, N1 to
// N3 stand for the targets, which it has when it names none.
type l4Case struct{ listener, upstream string }

// Addresses of targets that are not there: nobody answers, and the answer is no.
const (
	blackHole = "192.0.2.1:9" // TEST-NET-1, RFC 5737
	refusing  = "127.0.0.1:1"
)

// l4Target is a target that answers each line with its own name and the line, and does what a line "echo" or "end" says.
type l4Target struct {
	name, addr string
	conf       *tls.Config // nil for no TLS
	header     bool        // connections begin with a PROXY header

	ends  chan error              // of connections over which something was said
	rest  chan string             // what came after "end"
	heads chan *proxyproto.Header // of such connections
	mu    sync.Mutex
	l     net.Listener
	said  int // lines that were answered
}

func newL4Target(t testing.TB, name string, conf *tls.Config, header bool) *l4Target {
	n := &l4Target{name: name, addr: "127.0.0.1:0", conf: conf, header: header,
		ends: make(chan error, 1000), rest: make(chan string, 1000), heads: make(chan *proxyproto.Header, 1000)}
	n.begin(t)
	n.addr = n.l.Addr().String()
	t.Cleanup(n.stop)
	return n
}

// begin listens, again at the same address after stop.
func (n *l4Target) begin(t testing.TB) {
	t.Helper()
	var l net.Listener
	await(t, 10*time.Second, "the port of a target", func() bool {
		var err error
		l, err = net.Listen("tcp", n.addr)
		return err == nil
	})
	n.mu.Lock()
	n.l = l
	n.mu.Unlock()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go n.serve(c)
		}
	}()
}

// stop refuses new connections; those that are open go on.
func (n *l4Target) stop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.l.Close()
}

// behind is a connection of which something was read already.
type behind struct {
	net.Conn
	r *bufio.Reader
}

func (b behind) Read(p []byte) (int, error) { return b.r.Read(p) }
func (b behind) CloseWrite() error          { return b.Conn.(*net.TCPConn).CloseWrite() }

func (n *l4Target) serve(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
	if n.header {
		r := bufio.NewReader(c)
		h, err := proxyproto.Read(r)
		if err != nil || h.Command.IsLocal() {
			return
		}
		n.heads <- h
		c = behind{c, r}
	}
	if n.conf != nil {
		c = tls.Server(c, n.conf)
	}
	r := bufio.NewReader(c)
	for said := false; ; said = true {
		line, err := r.ReadString('\n')
		switch {
		case err != nil:
			if said {
				n.ends <- err
			}
			return
		case line == "echo\n":
			_, _ = io.Copy(c, r)
			_ = c.(interface{ CloseWrite() error }).CloseWrite()
			return
		case line == "end\n":
			fmt.Fprint(c, "bye\n")
			_ = c.(interface{ CloseWrite() error }).CloseWrite()
			rest, _ := io.ReadAll(r)
			n.rest <- string(rest)
			return
		}
		n.mu.Lock()
		n.said++
		n.mu.Unlock()
		fmt.Fprintf(c, "%s %s", n.name, line)
	}
}

func (n *l4Target) answered() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.said
}

// newL4 starts a program with three targets and a listener for each case.
func newL4(t *testing.T, kind string, header bool, cases map[string]l4Case) *l4World {
	stood(time.Now())
	w := &l4World{world: newWorld(t), kind: kind, dials: make(chan string, 100)}
	var conf *tls.Config
	if kind == "passthrough" {
		conf = &tls.Config{Certificates: []tls.Certificate{w.server.TLS()}}
	}
	for _, name := range []string{"one", "two", "three"} {
		w.targets = append(w.targets, newL4Target(t, name, conf, header))
	}
	w.startWith(w.conf(cases), "", func(o *daemon.Options) {
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == blackHole {
				w.dials <- address
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		}
	})
	return w
}

func (w *l4World) conf(cases map[string]l4Case) string {
	listeners, upstreams := "", ""
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		c := cases[name]
		to := "upstream: " + name
		switch w.kind {
		case "tls":
			to = "hosts: [{names: [a.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, " + to + "}]"
		case "passthrough":
			to = "hosts: [{names: [a.test], " + to + "}]"
		}
		listeners += "  " + name + ": {" + strings.Join(kept("listen: 127.0.0.1:0", "protocol: "+w.kind, to, c.listener), ", ") + "}\n"
		targets := ""
		if !strings.Contains(c.upstream, "targets:") {
			targets = "targets: [N1, N2, N3]"
		}
		upstreams += "  " + name + ": {" + strings.Join(kept(targets, c.upstream), ", ") + "}\n"
	}
	for i, n := range w.targets {
		upstreams = strings.ReplaceAll(upstreams, fmt.Sprintf("N%d", i+1), `"tcp://`+n.addr+`"`)
	}
	return `
ops: {listen: 127.0.0.1:0}
trust_stores:
  clients:
    ca_bundle: {file: clients.pem}
    revocation: {crls: [{file: clients.crl}]}
  internal: {ca_bundle: {file: clients.pem}}
listeners:
` + listeners + "upstreams:\n" + upstreams
}

// kept are those that are not empty.
func kept(texts ...string) []string {
	return slices.DeleteFunc(texts, func(s string) bool { return s == "" })
}

// l4Client is a client's connection. What TLS there is begins with the first line.
type l4Client struct {
	net.Conn
	r    *bufio.Reader
	wire *counted
}

// counted counts what goes over a connection.
type counted struct {
	*net.TCPConn
	in, out int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	c.in += int64(n)
	return n, err
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.TCPConn.Write(p)
	c.out += int64(n)
	return n, err
}

// open connects to a listener from 127.9.9.last, with Alice's certificate where no other is given. Before what is said in
// TLS it sends lead.
func (w *l4World) open(t testing.TB, listener string, last byte, lead string, certs ...*testpki.Cert) *l4Client {
	t.Helper()
	var raw net.Conn
	await(t, 10*time.Second, "a connection", func() (connected bool) {
		var err error
		raw, err = from(last, w.addr(listener))
		return err == nil // one that is refused at once may be reset before it is made
	})
	t.Cleanup(func() { raw.Close() })
	_ = raw.SetDeadline(time.Now().Add(30 * time.Second))
	if lead != "" {
		_, _ = io.WriteString(raw, lead)
	}
	return w.speak(&counted{TCPConn: raw.(*net.TCPConn)}, nil, certs...)
}

// speak makes a client of a connection. Through, if not nil, is what its bytes go through.
func (w *l4World) speak(wire *counted, through net.Conn, certs ...*testpki.Cert) *l4Client {
	c := &l4Client{Conn: wire, wire: wire}
	if through != nil {
		c.Conn = through
	}
	if w.kind != "tcp" {
		cert := alice(w.world)
		if len(certs) > 0 {
			cert = certs[0]
		}
		c.Conn = tls.Client(c.Conn, w.client("a.test", cert))
	}
	c.r = bufio.NewReader(c.Conn)
	return c
}

var alices sync.Map // by world

// alice is the ordinary client of a world.
func alice(w *world) *testpki.Cert {
	c, ok := alices.Load(w)
	if !ok {
		c, _ = alices.LoadOrStore(w, w.ca.Client("alice"))
		w.t.Cleanup(func() { alices.Delete(w) })
	}
	return c.(*testpki.Cert)
}

// knock says nothing, and in TLS no more than that.
func (c *l4Client) knock() {
	if tc, ok := c.Conn.(*tls.Conn); ok {
		_ = tc.Handshake()
	}
}

// vanish is the end of a client that says nothing about it.
func (c *l4Client) vanish() {
	_ = c.wire.SetLinger(0)
	c.wire.Close()
}

// say says a line and returns who answered it.
func (c *l4Client) say(line string) (who string, err error) {
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return "", err
	}
	got, err := c.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	who, back, _ := strings.Cut(got, " ")
	if back != line+"\n" {
		return "", fmt.Errorf("%q came back for %q", got, line)
	}
	return who, nil
}

// serves has the connection answered, and returns by whom.
func (c *l4Client) serves(t testing.TB) string {
	t.Helper()
	who, err := c.say("hello")
	if err != nil {
		t.Errorf("%s: %v, expected an answer", c.wire.LocalAddr(), err)
	}
	return who
}

// ask makes one connection and returns who answered.
func (w *l4World) ask(t testing.TB, listener string, last byte, certs ...*testpki.Cert) string {
	t.Helper()
	c := w.open(t, listener, last, "", certs...)
	defer c.wire.Close()
	return c.serves(t)
}

// spread makes n connections and counts who answered.
func (w *l4World) spread(t testing.TB, n int, listener string) string {
	t.Helper()
	by := map[string]int{}
	for range n {
		by[w.ask(t, listener, 1)]++
	}
	return fmt.Sprint(by)
}

// refused makes a connection that must not be served, and returns its record.
func (w *l4World) refused(t testing.TB, listener string, last byte, why string) map[string]any {
	t.Helper()
	c := w.open(t, listener, last, "")
	defer c.wire.Close()
	return w.turnedAway(t, c, why)
}

// turnedAway is the record of a connection that must not be served.
func (w *l4World) turnedAway(t testing.TB, c *l4Client, why string) map[string]any {
	t.Helper()
	who, err := c.say("hello")
	if n, ok := err.(net.Error); err == nil || ok && n.Timeout() {
		t.Fatalf("answered by %q, %v; expected the end of the connection, %s", who, err, why)
	}
	return w.recorded(t, c, why)
}

// recorded is the record of a connection that ended with a reason.
func (w *l4World) recorded(t testing.TB, c *l4Client, why string) map[string]any {
	t.Helper()
	return w.find(t, "client="+c.wire.LocalAddr().String(), "reason="+why)
}

// left waits until a listener has n connections.
func (w *l4World) left(listener string, n int) {
	w.t.Helper()
	w.awaitMetric(fmt.Sprintf(`countersign_connections{listener="%s"}`, listener), fmt.Sprint(n))
}

// gauge is a metric of an upstream's target.
func gauge(name, upstream, target string) string {
	return fmt.Sprintf(`countersign_upstream_%s{target="%s",upstream="%s"}`, name, target, upstream)
}

func pendingOf(upstream string) string {
	return fmt.Sprintf(`countersign_upstream_pending{upstream="%s"}`, upstream)
}

const quickChecks = "health: {interval: 100ms, timeout: 5s, healthy: 1, unhealthy: 1}"

// TestLayer4Targets: what becomes of connections when targets are not there, for a reason or another.
func TestLayer4Targets(t *testing.T) {
	for _, kind := range bytesKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			cases := map[string]l4Case{
				"none":    {"", "targets: [{url: N1, state: draining}, {url: N2, state: disabled}, {url: N3, weight: 0}]"},
				"refuses": {"", `targets: ["tcp://` + refusing + `"]`},
				"silent":  {"", `targets: ["tcp://` + blackHole + `"], timeouts: {connect: 300ms}`},
				"leaving": {"", `targets: ["tcp://` + blackHole + `"], timeouts: {connect: 1m}`},
				"next":    {"", `targets: ["tcp://` + refusing + `", N1, N2]`},
				"health":  {"", quickChecks},
				"prio":    {"", "targets: [N1, {url: N2, priority: 1}, {url: N3, priority: 1}], " + quickChecks},
				"ejected": {"", `targets: ["tcp://` + refusing + `", N1], outlier: {consecutive_local_origin_failure: 2, max_ejection_percent: 50, base_ejection_time: 1h, max_ejection_time: 1h, interval: 1h}`},
			}
			if kind != "passthrough" { // which cannot have TLS targets
				cases["foreign"] = l4Case{"", `targets: ["tls://FOREIGN"], tls: {server_name: a.test, trust_store: internal}`}
			}
			foreign := newL4Target(t, "foreign", &tls.Config{Certificates: []tls.Certificate{testpki.New(t).Server("a.test", testpki.DNS("a.test")).TLS()}}, false)
			for name, c := range cases {
				cases[name] = l4Case{c.listener, strings.ReplaceAll(c.upstream, "FOREIGN", foreign.addr)}
			}
			w := newL4(t, kind, false, cases)
			for name, why := range map[string]string{"none": "upstream_no_target", "refuses": "upstream_connect_failed", "silent": "upstream_connect_timeout", "foreign": "upstream_cert_refused"} {
				if cases[name].upstream == "" {
					continue
				}
				t.Run(name, func(t *testing.T) {
					rec := w.refused(t, name, 1, why)
					if rec["kind"] != "tunnel" || rec["listener"] != name || rec["upstream"] != name || rec["target"] != nil || rec["bytes_in"] != 0.0 || rec["bytes_out"] != 0.0 {
						t.Errorf("record: %v", rec)
					}
					w.left(name, 0)
					for _, target := range []string{w.targets[0].addr, refusing, blackHole, foreign.addr} {
						if n := w.metric(gauge("connections", name, target)); n != "" && n != "0" {
							t.Errorf("%s connections to %s are kept", n, target)
						}
					}
				})
			}
			for _, n := range append(w.targets, foreign) {
				if n.answered() != 0 {
					t.Errorf("%s was spoken to", n.name)
				}
			}
			t.Run("client leaves while a target is dialled", func(t *testing.T) {
				for len(w.dials) > 0 { // of those before
					<-w.dials
				}
				c := w.open(t, "leaving", 1, "")
				go c.knock()
				<-w.dials
				c.vanish()
				w.recorded(t, c, "client_aborted")
				w.left("leaving", 0)
			})
			t.Run("the next target is tried", func(t *testing.T) {
				by := map[string]int{}
				for range 12 {
					c := w.open(t, "next", 1, "")
					who := c.serves(t)
					c.wire.Close()
					rec := w.find(t, "client="+c.wire.LocalAddr().String(), "kind=tunnel", "listener=next")
					if want := w.targets[slices.Index([]string{"one", "two"}, who)].addr; rec["target"] != want {
						t.Errorf("record: %v, expected target %s", rec, want)
					}
					by[who]++
				}
				if len(by) != 2 {
					t.Errorf("%v", by)
				}
			})
			t.Run("ejection", func(t *testing.T) {
				for range 6 {
					w.ask(t, "ejected", 1)
				}
				if got := w.metric(gauge("ejected", "ejected", refusing)); got != "1" {
					t.Errorf("ejected: %q", got)
				}
				if got := w.spread(t, 6, "ejected"); got != "map[one:6]" {
					t.Error(got)
				}
			})
			healthy := func(pool, values string) {
				t.Helper()
				for i, v := range strings.Fields(values) {
					w.awaitMetric(gauge("healthy", pool, w.targets[i].addr), v)
				}
			}
			t.Run("health", func(t *testing.T) {
				healthy("health", "1 1 1")
				if got := w.spread(t, 12, "health"); got != "map[one:4 three:4 two:4]" {
					t.Error(got)
				}
				// Of each target there is a tunnel, which goes on whatever checks say.
				var open []*l4Client
				for range w.targets {
					open = append(open, w.open(t, "health", 1, ""))
					open[len(open)-1].serves(t)
				}
				w.targets[1].stop()
				healthy("health", "1 0 1")
				if got := w.spread(t, 12, "health"); strings.Contains(got, "two") || !strings.Contains(got, "three") {
					t.Error(got)
				}
				w.targets[0].stop()
				w.targets[2].stop()
				healthy("health", "0 0 0")
				w.refused(t, "health", 1, "upstream_connect_failed")
				for _, c := range open {
					c.serves(t)
				}
				for _, n := range w.targets {
					n.begin(t)
				}
				healthy("health", "1 1 1")
				if got := w.spread(t, 12, "health"); got != "map[one:4 three:4 two:4]" {
					t.Errorf("all are back: %s", got)
				}
				for _, c := range open {
					c.serves(t)
				}
			})
			t.Run("priorities", func(t *testing.T) {
				healthy("prio", "1 1 1")
				first := w.open(t, "prio", 1, "")
				if got := w.spread(t, 6, "prio"); got != "map[one:6]" || first.serves(t) != "one" {
					t.Error(got)
				}
				w.targets[0].stop()
				healthy("prio", "0 1 1")
				second := w.open(t, "prio", 1, "")
				second.serves(t)
				if got := w.spread(t, 6, "prio"); got != "map[three:3 two:3]" {
					t.Error(got)
				}
				w.targets[0].begin(t)
				healthy("prio", "1 1 1")
				if got := w.spread(t, 6, "prio"); got != "map[one:6]" {
					t.Error(got)
				}
				if a, b := first.serves(t), second.serves(t); a != "one" || b == "one" {
					t.Errorf("tunnels that were open are at %s and %s", a, b)
				}
			})
		})
	}
}

// TestLayer4Balance: the shares of each algorithm in connections, and what keeps a client at its target.
func TestLayer4Balance(t *testing.T) {
	for _, kind := range bytesKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			cases := map[string]l4Case{
				"rr": {}, "wrr": {"", "targets: [{url: N1, weight: 3}, {url: N2, weight: 2}, N3]"}, "least": {"", "balance: least_requests"},
				"p2c": {"", "balance: p2c"}, "random": {"", "balance: random"},
				"maglev": {"", "balance: maglev, hash: source"}, "ring": {"", "balance: ring_hash, hash: source"},
				"cert": {"", "balance: ring_hash, hash: client_certificate"}, "certs": {"", "balance: maglev, hash: client_certificate"},
				"sticky": {"", "sticky: {client_certificate: true}"},
			}
			if kind != "tls" {
				for _, name := range []string{"cert", "certs", "sticky"} {
					delete(cases, name)
				}
			}
			w := newL4(t, kind, false, cases)
			for name, want := range map[string]string{"rr": "map[one:4 three:4 two:4]", "wrr": "map[one:6 three:2 two:4]"} {
				if got := w.spread(t, 12, name); got != want {
					t.Errorf("%s: %s, expected %s", name, got, want)
				}
			}
			for _, name := range []string{"random", "p2c"} {
				if got := w.spread(t, 40, name); !strings.Contains(got, " ") {
					t.Errorf("%s: %s", name, got)
				}
			}
			t.Run("least", func(t *testing.T) {
				open := map[string][]*l4Client{}
				for range 9 {
					c := w.open(t, "least", 1, "")
					who := c.serves(t)
					open[who] = append(open[who], c)
				}
				for _, n := range w.targets {
					if len(open[n.name]) != 3 {
						t.Errorf("%d tunnels to %s, expected 3", len(open[n.name]), n.name)
					}
				}
				for _, c := range open["two"] {
					c.wire.Close()
				}
				w.awaitMetric(gauge("exchanges", "least", w.targets[1].addr), "0")
				for range 3 {
					if who := w.open(t, "least", 1, "").serves(t); who != "two" {
						t.Errorf("%s, which has more than two", who)
					}
				}
			})
			for _, name := range []string{"maglev", "ring"} {
				t.Run("hash of the address, "+name, func(t *testing.T) {
					by, at := map[string]int{}, map[byte]string{}
					const n = 40
					for i := byte(1); i <= n; i++ {
						at[i] = w.ask(t, name, i)
						if again := w.ask(t, name, i, w.ca.Client("another")); again != at[i] {
							t.Errorf("address %d: %s and %s", i, at[i], again)
						}
						by[at[i]]++
					}
					if len(by) != 3 {
						t.Errorf("%d addresses are at %v", n, by)
					}
					w.targets[1].stop()
					defer w.targets[1].begin(t)
					for i := byte(1); i <= n; i++ {
						if who := w.ask(t, name, i); who != at[i] && at[i] != "two" || who == "two" {
							t.Errorf("address %d: %s, before two went %s", i, who, at[i])
						}
					}
				})
			}
			if kind != "tls" {
				return
			}
			for _, name := range []string{"cert", "certs", "sticky"} {
				t.Run("hash of the certificate, "+name, func(t *testing.T) {
					by := map[string]int{}
					for i := range byte(24) {
						cert := w.ca.Client(fmt.Sprint("c", i))
						here, there := w.ask(t, name, 1, cert), w.ask(t, name, 100+i, cert)
						if here != there {
							t.Errorf("certificate %d: %s and %s", i, here, there)
						}
						by[here]++
					}
					if len(by) < 2 {
						t.Errorf("24 certificates are at %v", by)
					}
				})
			}
		})
	}
}

// TestLayer4Limits: who is turned away, why, and that it ends.
func TestLayer4Limits(t *testing.T) {
	for _, kind := range bytesKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newL4(t, kind, false, map[string]l4Case{
				"listener": {"limits: {connections: 2}", ""},
				"address":  {"limits: {connections_per_address: 2}", ""},
				"rate":     {"limits: {handshakes_per_address: {rate: 1, burst: 2}}", ""},
				"busy":     {"", "targets: [N1], max_connections: 1"},
				"circuit":  {"", "max_requests: 1"},
				"queue":    {"", "targets: [N1], max_connections: 1, max_pending: 1, queue_timeout: 1m"},
				"patience": {"", "targets: [N1], max_connections: 1, max_pending: 5, queue_timeout: 300ms"},
			})
			// again is for somebody who may come when somebody else has left.
			again := func(t *testing.T, listener string, last byte) {
				t.Helper()
				await(t, 20*time.Second, "room for another connection", func() bool {
					c := w.open(t, listener, last, "")
					defer c.wire.Close()
					_, err := c.say("hello")
					return err == nil
				})
			}
			for _, c := range []struct {
				id, listener, why string
				other             byte // an address that is served all the same; 0 for none
				n                 int  // connections that may be
			}{
				{"F20", "listener", "connection_limit", 0, 2},
				{"F20", "address", "address_connections", 2, 2},
				{"F17", "busy", "upstream_busy", 0, 1},
				{"F17", "circuit", "upstream_circuit_open", 0, 1},
			} {
				t.Run(c.id+"/"+c.why, func(t *testing.T) {
					var open []*l4Client
					for range c.n {
						open = append(open, w.open(t, c.listener, 1, ""))
						open[len(open)-1].serves(t)
					}
					rec := w.refused(t, c.listener, 1, c.why)
					if rec["listener"] != c.listener || rec["target"] != nil {
						t.Errorf("record: %v", rec)
					}
					if c.other != 0 {
						w.ask(t, c.listener, c.other)
					}
					for _, o := range open {
						o.serves(t)
					}
					open[0].wire.Close()
					again(t, c.listener, 1)
				})
			}
			t.Run("F04/address_handshakes", func(t *testing.T) {
				await(t, 20*time.Second, "a refusal", func() bool {
					c := w.open(t, "rate", 1, "")
					defer c.wire.Close()
					if _, err := c.say("hello"); err == nil {
						return false
					}
					w.recorded(t, c, "address_handshakes")
					return true
				})
				w.ask(t, "rate", 2)
				again(t, "rate", 1)
			})
			t.Run("F17/upstream_queue_timeout", func(t *testing.T) {
				first := w.open(t, "patience", 1, "")
				first.serves(t)
				w.refused(t, "patience", 2, "upstream_queue_timeout")
				first.serves(t)
				first.wire.Close()
				again(t, "patience", 2)
			})
			// wait has a client stand in the queue.
			wait := func(t *testing.T) *l4Client {
				t.Helper()
				c := w.open(t, "queue", 2, "")
				go c.knock()
				w.awaitMetric(pendingOf("queue"), "1")
				return c
			}
			t.Run("F17/queue", func(t *testing.T) {
				first := w.open(t, "queue", 1, "")
				first.serves(t)
				second, result := w.open(t, "queue", 2, ""), make(chan error, 1)
				go func() { _, err := second.say("hello"); result <- err }()
				w.awaitMetric(pendingOf("queue"), "1")
				w.refused(t, "queue", 3, "upstream_busy")
				first.serves(t)
				select {
				case err := <-result:
					t.Fatalf("did not wait: %v", err)
				default:
				}
				first.wire.Close()
				if err := <-result; err != nil {
					t.Errorf("who waited: %v", err)
				}
			})
			t.Run("F17/who leaves the queue makes room in it", func(t *testing.T) {
				w.left("queue", 0)
				first := w.open(t, "queue", 1, "")
				first.serves(t)
				gone := wait(t)
				gone.vanish()
				w.recorded(t, gone, "client_aborted")
				w.awaitMetric(pendingOf("queue"), "0")
				if kind == "tls" { // where an end has to be announced, a client without a word is one that was killed
					killed := wait(t)
					_ = killed.wire.CloseWrite()
					w.recorded(t, killed, "client_aborted")
					w.awaitMetric(pendingOf("queue"), "0")
				}
				first.serves(t)
			})
		})
	}
}
