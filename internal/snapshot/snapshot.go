// Package snapshot compiles a configuration and the files it names into one immutable value, and reports all problems at
// once. A snapshot holds no sockets, timers or goroutines: what needs those looks its settings up here by name.
package snapshot

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"time"

	"countersign/internal/certs"
	"countersign/internal/h1"
	"countersign/internal/hostname"
	"countersign/internal/identity"
	"countersign/internal/policy"
	"countersign/internal/record"
	"countersign/internal/route"
	"countersign/internal/trust"
	"countersign/internal/upstream"
)

// Snapshot is the compiled whole of one configuration. Nothing in it changes after Compile.
type Snapshot struct {
	// Hash is a hash of the configuration file and of every file it names: equal hashes, equal behaviour.
	Hash string
	// Listeners by name.
	Listeners map[string]*Listener
	// Upstreams are the settings of every pool.
	Upstreams []*upstream.Settings
	// Ops is the address of the ops listener, or empty.
	Ops string
	// Guard is what no client may send, on any listener.
	Guard *identity.Guard
	// Log says which requests get a line.
	Log record.Which
	// Drain is how long open connections may go on after SIGTERM.
	Drain time.Duration
}

// Protocol is what a listener speaks with its clients.
type Protocol uint8

// The protocols.
const (
	HTTPS Protocol = iota + 1
	HTTP
	TLSBytes
	Passthrough
	TCP
)

// Terminates reports whether the protocol ends the client's TLS here.
func (p Protocol) Terminates() bool { return p == HTTPS || p == TLSBytes }

// Requests reports whether the protocol is HTTP.
func (p Protocol) Requests() bool { return p == HTTPS || p == HTTP }

// String returns the protocol's name in the configuration.
func (p Protocol) String() string {
	return [...]string{"none", "https", "http", "tls", "passthrough", "tcp"}[p]
}

// Listener is one address and what is served there.
type Listener struct {
	Name, Address string
	Protocol      Protocol
	TLS           TLS
	Limits        Limits
	// Hosts in the order of the configuration.
	Hosts []*Host
	// Upstream is where a tcp listener leads.
	Upstream string
	// Sources are who may connect; nil means everybody. LocalOnly stands for this machine.
	Sources   []netip.Prefix
	LocalOnly bool

	table    hostname.Table[*Host]
	fallback *Host
}

// Host finds the host of a canonical name, or of an absent one (empty). It is the only way from a name to a host, for
// server names and for Host headers alike, so that the two cannot disagree (A14, A15, A20).
func (l *Listener) Host(canonical []byte) *Host {
	if len(canonical) > 0 {
		if h, ok := l.table.Lookup(canonical); ok {
			return h
		}
	}
	return l.fallback
}

// TLS is what an https listener negotiates.
type TLS struct {
	MinVersion uint16
	Ciphers    []uint16      // TLS 1.2; nil means the library's
	Groups     []tls.CurveID // nil means the library's
}

// Limits bound one connection; see config.Limits for what each means.
type Limits struct {
	Connections                                  int
	Handshake, Header, Idle, BodyIdle, WriteIdle time.Duration
	TunnelIdle, Lifetime                         time.Duration
	Message                                      h1.Limits
}

// Host is a set of names with one certificate choice, one client-auth policy and its routes.
type Host struct {
	// Name is the first of Names; records show it.
	Name  string
	Names []string
	// Keys are the server certificates; nil for plain listeners and passthrough.
	Keys *certs.Set
	Auth ClientAuth
	// Policy is the id under which connections may serve this host.
	Policy policy.ID
	// Style is how targets are told who the client is.
	Style *identity.Style
	// Routes lead from paths to upstreams.
	Routes *route.Table[*Route]
	// Upstream is where a passthrough or tls host leads.
	Upstream string
}

// ClientAuth is a compiled client-auth policy.
type ClientAuth struct {
	Mode policy.Mode
	// Store is nil when the mode is off.
	Store *trust.Store
	// Hints are the CA names sent to clients; nil means none. crypto/tls takes them as a pool and sends its subjects.
	Hints *x509.CertPool
	// Reset says that a refused handshake ends with a TCP reset in place of an alert, Page that it ends well and every
	// request is refused.
	Reset, Page bool
}

// Enforced reports whether a client that is refused is kept out.
func (a *ClientAuth) Enforced() bool { return a.Mode == policy.Request || a.Mode == policy.Require }

// Version changes when the verdict on a chain that was accepted before might.
func (a *ClientAuth) Version() string {
	version := a.Mode.String()
	if a.Page {
		version += "+page" // under which a client that is refused may be connected
	}
	if a.Store != nil {
		version += ":" + a.Store.Version()
	}
	return version
}

// Route is where a matched request goes.
type Route struct {
	Upstream string
	// WebSocket says that requests may upgrade to it.
	WebSocket bool
}
