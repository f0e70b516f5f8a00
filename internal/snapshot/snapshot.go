// Package snapshot compiles a configuration and the files it names into one immutable value, and reports all problems at
// once. A snapshot holds no sockets, timers or goroutines: what needs those looks its settings up here by name.
package snapshot

import (
	"crypto/tls"
	"crypto/x509"
	"maps"
	"net/netip"
	"strconv"
	"time"

	"countersign/internal/certs"
	"countersign/internal/h1"
	"countersign/internal/hostname"
	"countersign/internal/identity"
	"countersign/internal/limit"
	"countersign/internal/origin"
	"countersign/internal/policy"
	"countersign/internal/record"
	"countersign/internal/route"
	"countersign/internal/stepup"
	"countersign/internal/tracing"
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
	// Control is the address of the control socket, or empty.
	Control string
	// Guard is what no client may send, on any listener.
	Guard *identity.Guard
	// Log says which requests get a line, in outputs that do not say so themselves.
	Log record.Which
	// Outputs are where lines go, at least one; PerReason is how many about one bad end in a second, 0 for the default.
	Outputs   []record.Settings
	PerReason int
	// Tracing says which requests are traced; nil for none.
	Tracing *tracing.Settings
	// Journal is where bad ends and clients seen are kept; nil for nowhere.
	Journal *Journal
	// Drain is how long open connections may go on after SIGTERM.
	Drain time.Duration
	// Gates are the limits by client and by scope; Listener.Door, and Gate of listeners, hosts and routes, name them.
	Gates []*limit.Settings
	// EventLoop is the experiment of that name.
	EventLoop bool
	// Handshakes bound those that compute at once.
	Handshakes limit.HandshakeSettings
	// CRLs are the revocation lists that came from files.
	CRLs []*trust.CRL
	// Older are sentences about files whose list is older than one that was in force before, which is used in its place.
	Older []string
	// Outside is what is fetched and kept beside the configuration.
	Outside Outside
	// Sites are the routes with a step-up, each as one origin serves it, by the key that is sealed into what browsers carry;
	// nil when there are none.
	Sites map[stepup.Key]*Site

	memory *memory
	stores map[string]*trust.Store
}

// UpstreamNames are the names of the pools.
func (s *Snapshot) UpstreamNames() []string {
	names := make([]string, len(s.Upstreams))
	for i, u := range s.Upstreams {
		names[i] = u.Name
	}
	return names
}

// Stores are the trust stores, by name; for metrics.
func (s *Snapshot) Stores() map[string]*trust.Store { return maps.Clone(s.stores) }

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
	// Door names the limits of connections by address, Gate those of requests; empty for none.
	Door, Gate string
	// Hosts in the order of the configuration.
	Hosts []*Host
	// Upstream is where a tcp listener leads.
	Upstream string
	// Sources are who may connect; nil means everybody. LocalOnly stands for this machine.
	Sources   []netip.Prefix
	LocalOnly bool
	// Inbound says whose PROXY headers are read, nil for none; Forwarding what becomes of X-Forwarded-* and Forwarded, nil
	// for replacing them.
	Inbound    *origin.Inbound
	Forwarding *origin.Forwarding

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

// Named reports whether a host has the canonical name, and does not only stand in for unknown ones.
func (l *Listener) Named(canonical []byte) bool {
	_, ok := l.table.Lookup(canonical)
	return ok
}

// TLS is what an https listener negotiates.
type TLS struct {
	MinVersion uint16
	Ciphers    []uint16      // TLS 1.2; nil means the library's
	Groups     []tls.CurveID // nil means the library's
	ALPN       []string      // nil takes whatever the client offers
}

// Limits bound one connection; see config.Limits for what each means.
type Limits struct {
	Connections, Streams                         int
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
	// Proxies are those in front of us that may say who their client is; see Proxy.
	Proxies []*Proxy
	// Style is how targets are told who the client is.
	Style *identity.Style
	// Gate names the limits of requests for the host; empty for none.
	Gate string
	// Routes lead from paths to upstreams.
	Routes *route.Table[*Route]
	// Exempt are requests without a certificate that are answered here.
	Exempt *Exempt
	// StepsUp says that the host has a part in a step-up, as the one that browsers begin at or the one that they are sent
	// to, and answers the paths of package stepup itself.
	StepsUp bool
	steps   []*StepUp // of its routes
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
	// Shadow is a stricter setting that is only recorded; nil for none.
	Shadow *ClientAuth
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
		if n := a.Store.Answers(); n > 0 {
			version += "#" + strconv.FormatUint(n, 10)
		}
	}
	return version
}

// Route is where a matched request goes.
type Route struct {
	// Number is its place among the routes of its host, from 1.
	Number int
	// Upstream is where requests go; empty for a route that answers by itself, or that has several.
	Upstream string
	Action
	// WebSocket says that requests may upgrade to it.
	WebSocket bool
	// Required says that the client must be verified, whatever the host's mode.
	Required bool
	// Store, if not nil, has to accept the client's chain too, and says who the client is.
	Store *trust.Store
	// StepUp is how a browser without a certificate may become a verified client; nil for not at all.
	StepUp *StepUp
	// Allow, if not nil, has to allow the request.
	Allow *policy.Rule
	// ShadowAllow and ShadowStore would have to, and are only recorded; nil for none.
	ShadowAllow *policy.Rule
	ShadowStore *trust.Store
	// Gate names the limits of its requests; empty for none.
	Gate string
}

// Local is a request that is answered without being forwarded.
type Local struct {
	Status int
	Body   string
}

// Exempt are requests of clients without a certificate that are answered here. Nil exempts nothing.
type Exempt struct {
	// Health are answers by exact path.
	Health map[string]Local
	// Origins may ask for a preflight answer; Preflight is the rest of its head, line by line.
	Origins   []string
	Preflight string
}
