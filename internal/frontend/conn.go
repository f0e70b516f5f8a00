package frontend

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"countersign/internal/forward"
	"countersign/internal/h2"
	"countersign/internal/identity"
	"countersign/internal/limit"
	"countersign/internal/origin"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/snapshot"
	"countersign/internal/socket"
	"countersign/internal/trust"
)

// conn is one client connection, from accept to close. Its requests are in lanes.
type conn struct {
	f     *Frontend
	entry *entry
	sock  *socket.Conn
	watch forward.Watch
	ref   string
	peer  string // the client's address for records
	from  origin.Origin
	who   limit.Client
	door  limit.Pass
	turn  limit.Turn // to compute in the handshake

	// Fixed at accept: one configuration for the whole handshake.
	listener *active
	book     *record.Listener

	// What the handshake found.
	sni   string
	name  []byte // canonical server name, empty for none
	early reason.Reason
	// multiplexed says that the client chose HTTP/2, and ending is the reason for which the sweep ended that.
	multiplexed bool
	ending      atomic.Uint32
	presented   []*x509.Certificate
	ours        *x509.Certificate // what was presented to the client
	secure      secured           // nil on plain listeners
	standing                      // at the end of the handshake; lanes go on from there

	held atomic.Pointer[held] // how the client stands, for the sweep; nil until it has been let in
	doom atomic.Pointer[doom] // why the connection has to end
	// waiting is since when the sweep waits for an OCSP answer, in Unix milliseconds; 0 while it does not.
	waiting atomic.Int64

	mux     atomic.Pointer[h2.Conn] // HTTP/2; nil for anything else
	serial  atomic.Uint64           // of its last request
	lanes   lanes
	own     forward.Own // connections to targets
	parking *parking    // nil without the experiment
}

// secured is a connection inside TLS, of which the handshake is over.
type secured interface {
	net.Conn
	CloseWrite() error
	ConnectionState() tls.ConnectionState
	// Over reports whether the client has sent records without end and nothing in them.
	Over() bool
}

// standing is how a client is judged under one configuration.
type standing struct {
	pub         *published
	host        *snapshot.Host // by server name
	version     string
	verdict     trust.Verdict
	client      identity.Client
	identityErr error
	validUntil  time.Time // when the acceptance has to be looked at again; zero for never
}

// serve is the life of a connection, from accept to close. The order of its stages is the security model: each hands the
// next what only it can make, and every way out is recorded with one reason. docs/life-of-a-connection.md tells it in words.
//
// No stage may be compiled into this function or into requests, as the compiler's profile would have it: an idle connection
// waits below both of them, and with frames of 3 KB its goroutine keeps a stack of 16 KB where 4 are enough.
//
// With the event loop it ends where the connection has no request, and over is false; it goes on from there when one comes.
func (f *Frontend) serve(c *conn) (over bool) {
	over = true
	defer f.end(c, &over)
	if c.parking != nil && c.parking.parked {
		return !c.requests()
	}
	if !c.arrive() || !c.welcome() { // by address: what a PROXY header says first, then who may come, and how many
		return
	}
	switch c.listener.Protocol {
	case snapshot.Passthrough:
		c.passthrough()
		return
	case snapshot.TCP:
		c.bytes(c.listener.Upstream)
		return
	case snapshot.HTTPS, snapshot.TLSBytes:
		if !c.handshake() { // verifies the client, every time
			return
		}
		if c.listener.Protocol == snapshot.TLSBytes {
			c.bytes(c.host.Upstream)
			return
		}
	}
	if c.multiplexed {
		c.streams()
		return
	}
	return !c.requests()
}

// requests serves a connection whose requests come one after the other: HTTP/1.1. It reports whether the connection waits for
// the next one in the event loop; then it is not this goroutine's any more.
func (c *conn) requests() (parked bool) {
	l := c.firstLane()
	again := c.parking.resumes()
	for {
		ok, why := l.awaitRequest(again)
		if !ok && !again && c.dozing() {
			if c.park() {
				return true
			}
			l, ok, why = c.doze()
		}
		if !ok {
			c.hangUp(why, l.doomed())
			return false
		}
		if !l.serve(c.serial.Add(1)) {
			return false
		}
		again = false
	}
}

// doze waits on for a request that does not come soon, and holds nothing for it but the connection: the lane, and what is
// remembered in it of the client and of earlier requests, are made again when there is something to read. The time for the
// request goes on.
//
//go:noinline
func (c *conn) doze() (*lane, bool, reason.Reason) {
	c.lanes.drop()
	_ = c.sock.Await() // the read that follows meets the same
	l := c.firstLane()
	ok, why := l.awaitByte()
	return l, ok, why
}

// arrive finds out where the connection comes from. It reports whether that could be believed, and records it if not.
//
//go:noinline
func (c *conn) arrive() bool {
	c.from = origin.Of(c.sock)
	if in := c.listener.Inbound; in != nil {
		c.timeHandshake()
		from, err := in.Accept(c.sock.Conn) // beneath the records of TLS, which begin behind it
		if err != nil {
			hs := record.Handshake{Ref: c.ref, Client: c.peer}
			hs.Fail(reason.ProxyHeaderInvalid, err)
			c.book.Handshake(&hs)
			return false
		}
		if c.from = from; from.Header != 0 {
			c.peer = origin.Text(from.Client)
		}
	}
	addr := c.from.Client.Addr()
	c.who = limit.Client{Address: limit.AddressKey(addr), Local: addr.IsLoopback() || !addr.IsValid()}
	return true
}

// timeHandshake begins the time that a client has for it, of which a PROXY header may have taken some.
func (c *conn) timeHandshake() {
	if c.watch.Main.Phase() != forward.Handshaking {
		c.watch.Main.Set(c.watch.Clock, forward.Handshaking, c.listener.Limits.Handshake)
	}
}

// announce tells a target whose connection this is, in a PROXY header.
func (c *conn) announce(a *origin.Announcement) []byte {
	f := origin.Facts{Client: c.from.Client, Local: c.from.Local, Ref: c.ref, ServerName: c.sni, Server: c.ours}
	if c.secure != nil {
		state := c.secure.ConnectionState()
		f.TLS = &state
	}
	f.Identity, _ = c.client.Identity()
	head, dropped := a.Append(nil, &f)
	if dropped {
		c.f.log.Warn("a value is too large for a PROXY header and was left out", "ref", c.ref)
	}
	return head
}

// welcome reports whether the listener serves the client's address, and has room for it, and records it if not.
//
//go:noinline
func (c *conn) welcome() bool {
	l := c.listener
	if c.listed(l) {
		gate := c.f.gates.Gate(l.Door)
		why, held := reason.Unset, gate.Count(&c.who)
		if c.f.memory.Refuse(held, int(l.open.Load())) {
			why = reason.MemoryShed
		} else {
			_, why = c.door.Enter(gate, &c.who, time.Now())
		}
		if why != reason.Unset {
			c.book.Handshake(&record.Handshake{Ref: c.ref, Client: c.peer, Reason: why})
			c.sock.Reset() // no memory of it is left here
		}
		return why == reason.Unset
	}
	expected := "a loopback address"
	if !l.LocalOnly {
		expected = fmt.Sprint(l.Sources)
	}
	c.book.Handshake(&record.Handshake{Ref: c.ref, Client: c.peer, Reason: reason.SourceRefused, Expected: expected, Found: c.ip()})
	return false
}

// ip is the client's address without its port.
func (c *conn) ip() string {
	if addr := c.from.Client.Addr(); addr.IsValid() {
		return addr.String()
	}
	return "unknown" // RFC 7239 section 6: a Unix socket, or a test in memory
}

// listed reports whether the client's address is one that l serves.
func (c *conn) listed(l *active) bool {
	if !l.LocalOnly && l.Sources == nil {
		return true
	}
	ip := c.from.Client.Addr()
	if !ip.IsValid() {
		return true // a Unix socket: its permissions decide
	}
	return l.LocalOnly && ip.IsLoopback() || slices.ContainsFunc(l.Sources, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// end closes a connection whatever happened to it, if it is over.
func (f *Frontend) end(c *conn, over *bool) {
	if v := recover(); v != nil {
		f.book.Panicked()
		f.log.Error("panic in a connection", "ref", c.ref, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		*over = true
	}
	if !*over {
		return
	}
	c.sock.Close()
	c.lanes.close()
	c.own.Tidy(true, c.watch.Clock.Now())
	c.turn.End()
	c.door.Leave()
	f.table.remove(c.entry)
	c.book.Closed(c.sock.In, c.sock.Out)
	c.listener.open.Add(-1)
}

// facts are what records of requests say about their connection, where some output asks.
func (c *conn) facts() *record.Conn {
	f := &record.Conn{Client: c.peer, Local: c.sock.LocalAddr().String(), Secure: c.secure != nil, SNI: c.sni}
	if c.secure != nil {
		s := c.secure.ConnectionState()
		f.Version, f.Cipher, f.Resumed = tls.VersionName(s.Version), cipherNames[s.CipherSuite], s.DidResume
		if c.ours != nil {
			f.Certificate = record.CertificateName(c.ours)
		}
	}
	return f
}

// hangUp ends a connection between requests. That is no line in the log, but it is counted.
//
//go:noinline
func (c *conn) hangUp(why reason.Reason, d *doom) {
	if c.secure != nil {
		c.watch.Main.Set(c.watch.Clock, forward.Draining, time.Second)
		// close_notify goes with our FIN, if no bytes of the client can make that a reset.
		c.sock.More = why == reason.ClientClosed && c.mux.Load() == nil
		_ = c.secure.CloseWrite()
	}
	if c.f.draining.Load() {
		why = reason.Drained
	}
	if d != nil {
		hs := record.Handshake{Kind: record.Ended, Ref: c.ref, Client: c.peer, SNI: c.sni, Identity: c.client, Presented: c.presented}
		if c.host != nil {
			hs.Host = c.host.Name
		}
		d.connection(&hs)
		c.book.Handshake(&hs)
		why = hs.Reason
	}
	c.book.Ended(why)
}

// cut ends a connection so that what was sent last does not look complete.
func (c *conn) cut() {
	c.sock.Reset()
	c.sock.Close()
}

// Bounds of linger, see there.
const (
	lingerTime  = time.Second
	lingerBytes = 64 << 10
)

// linger ends our side and reads on for a moment: closing at once, with bytes of the client unread, would reset the
// connection, and the client might lose the answer or the alert that says why.
func (c *conn) linger() {
	c.watch.Main.Set(c.watch.Clock, forward.Draining, lingerTime)
	if c.secure != nil {
		_ = c.secure.CloseWrite()
	}
	if c.sock.CloseWrite() != nil {
		return
	}
	_ = c.sock.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.CopyN(io.Discard, c.sock, lingerBytes)
}
