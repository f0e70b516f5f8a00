package snapshot

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"countersign/internal/certs"
	"countersign/internal/config"
	"countersign/internal/h1"
	"countersign/internal/hostname"
	"countersign/internal/identity"
	"countersign/internal/policy"
	"countersign/internal/trust"
)

// address checks host:port.
func (c *compiler) address(path, addr string) {
	if addr == "" {
		return
	}
	if socket, ok := strings.CutPrefix(addr, "unix:"); ok {
		if !filepath.IsAbs(socket) || len(socket) > 100 {
			c.problem(path, "write unix:/run/countersign/name.sock", "%q is not the absolute path of a socket, of at most 100 characters", addr)
		}
		return
	}
	_, port, err := net.SplitHostPort(addr)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 && port != "0" {
		c.problem(path, `write host:port, for example "127.0.0.1:8443", or ":8443" for every address`, "%q is not an address to listen on", addr)
	}
}

// sharedNames warns where one name is passed through on one listener and terminated on another (A44).
func (c *compiler) sharedNames(s *Snapshot) {
	for _, l := range s.Listeners {
		if l.Protocol != Passthrough {
			continue
		}
		for _, h := range l.Hosts {
			for _, name := range h.Names {
				for _, other := range s.Listeners {
					if other.Protocol != HTTPS {
						continue
					}
					if canonical, wild, err := hostname.Pattern(name); err == nil && !wild {
						if _, ok := other.table.Lookup([]byte(canonical)); ok {
							c.warn(config.Path("listeners", l.Name), "use different names, so that no client reuses a connection for the wrong one",
								"the name %s is passed through here and terminated on listener %q", name, other.Name)
						}
					}
				}
			}
		}
	}
}

func (c *compiler) listener(path, name string, l *config.Listener, conf *config.Config) *Listener {
	out := &Listener{Name: name, Address: l.Listen}
	c.address(config.Path(path, "listen"), l.Listen)
	switch l.Protocol {
	case "https":
		out.Protocol = HTTPS
	case "http":
		out.Protocol = HTTP
	case "tls":
		out.Protocol = TLSBytes
	case "passthrough":
		out.Protocol = Passthrough
	case "tcp":
		out.Protocol = TCP
	}
	if l.TLS != nil && !out.Protocol.Terminates() && l.Protocol != "" {
		c.problem(config.Path(path, "tls"), "use protocol https or tls, or remove tls", "tls has no meaning on a listener of protocol %s", l.Protocol)
	}
	switch {
	case out.Protocol == TCP:
		if len(l.Hosts) > 0 || l.DefaultHost != "" {
			c.problem(config.Path(path, "hosts"), "write upstream: NAME at the listener", "a tcp listener has no hosts: nothing in its bytes names one")
		}
		if l.Upstream == "" {
			c.problem(path, "add upstream: NAME", "a tcp listener needs an upstream")
		}
		c.pool(config.Path(path, "upstream"), l.Upstream, out.Protocol, conf)
		out.Upstream = l.Upstream
	case l.Upstream != "":
		c.problem(config.Path(path, "upstream"), "name the upstream at a host or route", "upstream has no meaning on a listener of protocol %s", l.Protocol)
	}
	if len(l.Hosts) == 0 && out.Protocol != TCP {
		c.problem(path, "add hosts: [...]", "missing required key \"hosts\"")
	}
	c.sources(config.Path(path, "sources"), out, l, conf)
	c.origin(path, out, l)
	out.TLS = c.negotiation(config.Path(path, "tls"), l.TLS)
	c.alpn(config.Path(path, "tls", "alpn"), out, l.TLS)
	out.Limits = limits(l.Limits)
	out.Limits.Message.Mitigation = c.mitigation(config.Path(path, "desync_mitigation"), out, l)
	c.door(config.Path(path, "limits"), out, l.Limits)
	out.Gate = c.gate(path, "listener", "listener "+name, out.Protocol, l.RateLimits, l.Concurrency)
	if n := out.Limits.Streams; n < 1 || n > maxStreams {
		c.problem(config.Path(path, "limits", "streams"), "choose a number from 1 to "+strconv.Itoa(maxStreams), "limits.streams is %d", n)
	}
	if n := out.Limits.Message.HeadBytes; n > maxHeaderBytes {
		c.problem(config.Path(path, "limits.header_bytes"), "use at most 1MiB", "header_bytes is %d; a head is kept in memory whole", n)
	}
	for i, h := range l.Hosts {
		at := config.Path(path, "hosts", i)
		host := c.host(at, out, h, conf)
		for j, n := range h.Names {
			if err := out.table.Add(n, host); err != nil {
				c.problem(config.Path(at, "names", j), "", "%s", err)
			}
		}
		out.Hosts = append(out.Hosts, host)
	}
	if l.DefaultHost != "" {
		for _, h := range out.Hosts {
			if slices.Contains(h.Names, l.DefaultHost) {
				out.fallback = h
			}
		}
		if out.fallback == nil {
			var all []string
			for _, h := range out.Hosts {
				all = append(all, h.Names...)
			}
			c.unresolved(config.Path(path, "default_host"), "host of this listener", l.DefaultHost, all)
		}
	}
	c.sharedCertificates(path, out)
	return out
}

// sharedCertificates warns of a wildcard certificate that covers names of another policy: browsers reuse a connection for
// every name that its certificate covers, and get 421 for the others (A13, A44).
func (c *compiler) sharedCertificates(path string, l *Listener) {
	type named struct {
		name string
		host *Host
	}
	under := make(map[string][]named) // by parent domain
	for _, h := range l.Hosts {
		for _, n := range h.Names {
			if _, parent, ok := strings.Cut(strings.ToLower(n), "."); ok {
				under[parent] = append(under[parent], named{n, h})
			}
		}
	}
	for i, h := range l.Hosts {
		if h.Keys == nil {
			continue
		}
		for _, wild := range h.Keys.Wildcards() {
			for _, other := range under[wild] {
				if other.host != h && other.host.Policy != h.Policy {
					c.warn(config.Path(path, "hosts", i), "use certificates that cover one policy each, so that no browser reuses a connection for the wrong host",
						"its certificate for *.%s covers %s too, whose client-auth policy is another one: requests for it over such a connection get 421", wild, other.name)
					break
				}
			}
		}
	}
}

func limits(l *config.Limits) Limits {
	if l == nil {
		l = new(config.Limits)
	}
	out := Limits{
		Connections: l.Connections, Streams: l.Streams,
		Handshake: l.Handshake.Or(defaultHandshake), Header: l.Header.Or(defaultHeader), Idle: l.Idle.Or(defaultIdle),
		TunnelIdle: l.TunnelIdle.Or(defaultTunnelIdle), Lifetime: time.Duration(l.Lifetime),
		BodyIdle: l.BodyIdle.Or(defaultBodyIdle), WriteIdle: l.WriteIdle.Or(defaultWriteIdle),
		Message: h1.Limits{HeadBytes: int(l.HeaderBytes.Or(defaultHeaderBytes)), Fields: l.HeaderFields, BodyBytes: int64(l.BodyBytes)},
	}
	if out.Connections == 0 {
		out.Connections = defaultConnections
	}
	if out.Message.Fields == 0 {
		out.Message.Fields = defaultHeaderFields
	}
	if out.Streams == 0 {
		out.Streams = defaultStreams
	}
	return out
}

func (c *compiler) host(path string, l *Listener, h *config.Host, conf *config.Config) *Host {
	out := &Host{Names: h.Names, Upstream: h.Upstream, Auth: ClientAuth{Mode: policy.Off}}
	if len(h.Names) > 0 {
		out.Name = h.Names[0]
	}
	out.Gate = c.gate(path, "host", "host "+l.Name+"/"+out.Name, l.Protocol, h.RateLimits, h.Concurrency)
	no := func(present bool, key string) {
		if present {
			c.problem(config.Path(path, key), "remove it, or use another protocol", "%s has no meaning on a listener of protocol %s", key, l.Protocol)
		}
	}
	pool := func(at, name string) { c.pool(at, name, l.Protocol, conf) }
	no(l.Protocol != HTTPS && l.Protocol != 0 && len(h.TrustedProxies) > 0, "trusted_proxies")
	if l.Protocol == TLSBytes {
		no(len(h.IdentityHeaders) > 0, "identity_headers")
		no(h.IdentityOptions != nil, "identity_options")
		no(len(h.Routes) > 0, "routes")
		c.hostKeys(path, out, h)
		c.clientAuth(path, out, h, l)
		out.Policy = policyID(l, out, h)
		if h.Upstream == "" {
			c.problem(path, "add upstream: NAME", "a host of a tls listener needs an upstream")
		}
		pool(config.Path(path, "upstream"), h.Upstream)
		return out
	}
	if l.Protocol == Passthrough {
		no(h.Certificate != nil, "certificate")
		no(len(h.Certificates) > 0, "certificates")
		no(h.ClientAuth != nil, "client_auth")
		no(len(h.IdentityHeaders) > 0, "identity_headers")
		no(h.IdentityOptions != nil, "identity_options")
		no(len(h.Routes) > 0, "routes")
		if h.Upstream == "" {
			c.problem(path, "add upstream: NAME", "a passthrough host needs an upstream")
		}
		pool(config.Path(path, "upstream"), h.Upstream)
		return out
	}
	no(h.Upstream != "", "upstream")
	if l.Protocol == HTTPS {
		c.hostKeys(path, out, h)
		c.clientAuth(path, out, h, l)
		c.proxies(path, out, h)
	} else if l.Protocol == HTTP {
		no(h.Certificate != nil, "certificate")
		no(len(h.Certificates) > 0, "certificates")
		no(h.ClientAuth != nil && h.ClientAuth.Mode != "off", "client_auth")
		no(len(h.IdentityHeaders) > 0, "identity_headers")
		no(h.IdentityOptions != nil, "identity_options")
	}
	out.Policy = policyID(l, out, h)

	out.Style = c.style(path, out, h)
	if len(h.Routes) == 0 {
		c.problem(path, "add routes: [{upstream: NAME}]", "the host has no routes")
		return out
	}
	c.exempt(config.Path(path, "exempt"), out, h)
	c.routes(config.Path(path, "routes"), l, out, h, conf)
	return out
}

// style compiles how a host tells its targets who the client is.
func (c *compiler) style(path string, out *Host, h *config.Host) *identity.Style {
	var o identity.Options
	names := h.IdentityHeaders
	if len(names) == 0 && out.Auth.Mode == policy.PassthroughChain {
		names = []string{"alb"} // the one dialect that has a header for a chain that was not verified
	} else if len(names) == 0 {
		names = []string{"rfc9440"}
	}
	for i, n := range names {
		d, ok := identity.ParseDialect(n)
		if ok && slices.Contains(o.Dialects, d) {
			c.problem(config.Path(path, "identity_headers", i), "remove one", "dialect %s is there twice", n)
		} else if ok {
			o.Dialects = append(o.Dialects, d)
		}
	}
	if out.Auth.Mode == policy.PassthroughChain && !slices.Contains(names, "alb") && !slices.Contains(names, "x_ssl_client") {
		c.problem(config.Path(path, "identity_headers"), "use [alb]", "with mode passthrough_chain nothing is verified, and of these dialects none has a header for that")
	}
	if x := h.IdentityOptions; x != nil {
		o.Chain, o.XFCCCert, o.Rename = x.Chain, x.XFCCCert, x.ALBNames
	}
	// The other requests of the host have nothing to append to. Without the dialect, proxies has told the problem.
	o.XFCCAppend = slices.Contains(o.Dialects, identity.XFCC) && slices.ContainsFunc(out.Proxies, func(p *Proxy) bool { return p.Append })
	s, err := identity.NewStyle(o)
	if err != nil {
		c.problem(config.Path(path, "identity_options"), "see docs/headers.md", "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return s
}

// policyID names the client-auth policy of a host: the listener and what the setting says by name. Hosts whose settings
// say the same share it; the content of the trust store is not part of it.
func policyID(l *Listener, out *Host, h *config.Host) policy.ID {
	store := ""
	if out.Auth.Store != nil {
		store = h.ClientAuth.TrustStore
	}
	return policy.ID(l.Name + "/" + out.Auth.Mode.String() + "/" + store)
}

// pool resolves the name of an upstream and checks that its targets fit the protocol.
func (c *compiler) pool(at, name string, p Protocol, conf *config.Config) {
	u, ok := conf.Upstreams[name]
	if name != "" && !ok {
		c.unresolved(at, "upstream", name, keys(conf.Upstreams))
	}
	if !ok || len(u.Targets) == 0 {
		return
	}
	switch scheme, _, _ := strings.Cut(u.Targets[0].URL, ":"); scheme {
	case "http", "https":
		if !p.Requests() && p != 0 {
			c.problem(at, "write tcp:// or tls:// targets", "upstream %q has %s targets, and a listener of protocol %s moves bytes", name, scheme, p)
		}
	case "tcp", "tls":
		if p.Requests() {
			c.problem(at, "write http:// or https:// targets", "upstream %q has %s targets, and a listener of protocol %s makes requests", name, scheme, p)
		} else if p == Passthrough && scheme == "tls" {
			c.problem(at, "write tcp:// targets: the client's own TLS goes through", "upstream %q has tls targets, and nothing is decrypted here", name)
		}
	}
}

// prefix reads a network, or an address as a network of one.
func (c *compiler) prefix(path, text string) (netip.Prefix, bool) {
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		addr, aerr := netip.ParseAddr(text)
		if aerr != nil || addr.Zone() != "" {
			c.problem(path, "write 10.1.0.0/16 or 10.1.2.3", "%q is neither an address nor a prefix", text)
			return prefix, false
		}
		prefix = netip.PrefixFrom(addr, addr.BitLen())
	}
	if prefix.Addr().Is4In6() {
		prefix = netip.PrefixFrom(prefix.Addr().Unmap(), max(prefix.Bits()-96, 0))
	}
	if prefix != prefix.Masked() {
		c.problem(path, "write "+prefix.Masked().String(), "%q has bits behind its prefix", text)
		return prefix, false
	}
	return prefix, true
}

// sources compiles who may connect.
func (c *compiler) sources(path string, out *Listener, l *config.Listener, conf *config.Config) {
	if len(l.Sources) > 0 && strings.HasPrefix(l.Listen, "unix:") && l.ProxyProtocol == nil {
		c.problem(path, "remove sources: the permissions of the socket and its folder decide who may connect", "a Unix socket has no addresses")
	}
	for i, text := range l.Sources {
		prefix, ok := c.prefix(config.Path(path, i), text)
		if !ok {
			continue
		}
		out.Sources = append(out.Sources, prefix)
	}
	if out.Protocol != HTTP && out.Protocol != TCP || len(l.Sources) > 0 {
		return
	}
	names := []string{l.Upstream}
	for _, h := range l.Hosts {
		for _, r := range h.Routes {
			names = append(names, upstreamsOf(r)...)
		}
	}
	for _, name := range names {
		if u := conf.Upstreams[name]; u != nil && u.TLS != nil && len(u.TLS.ClientCertificates) > 0 {
			out.LocalOnly = true
		}
	}
}

func (c *compiler) hostKeys(path string, out *Host, h *config.Host) {
	list, at := h.Certificates, func(i int) string { return config.Path(path, "certificates", i) }
	switch {
	case h.Certificate != nil && len(list) > 0:
		c.problem(config.Path(path, "certificate"), "move it into certificates", "both certificate and certificates are set")
		return
	case h.Certificate != nil:
		list, at = []config.KeyPair{*h.Certificate}, func(int) string { return config.Path(path, "certificate") }
	case len(list) == 0:
		c.problem(path, "add certificate: {cert: FILE, key: FILE}", "a host that ends TLS needs a certificate")
		return
	}
	var pairs []*tls.Certificate
	for i, p := range list {
		if pair := c.pair(at(i), p, h.Names); pair != nil {
			pairs = append(pairs, pair)
		}
	}
	if len(pairs) < len(list) {
		return
	}
	set, err := certs.NewSet(pairs)
	if err != nil {
		c.problem(path, "", "%s", err)
	} else if c.Staples != nil && (c.conf.Outbound == nil || c.conf.Outbound.Stapling != "off") {
		set = set.WithStaples(c.Staples)
		c.outside.Stapled = append(c.outside.Stapled, pairs...)
	}
	out.Keys = set
}

func (c *compiler) clientAuth(path string, out *Host, h *config.Host, l *Listener) {
	a := h.ClientAuth
	if a == nil {
		c.problem(path, "add client_auth: {mode: require, trust_store: NAME}, or client_auth: {mode: off} to ask nobody", "a host of protocol %s needs client_auth", l.Protocol)
		return
	}
	at := config.Path(path, "client_auth")
	switch a.Mode {
	case "off":
		if a.TrustStore != "" {
			c.problem(config.Path(at, "trust_store"), "set mode: request or require, or remove trust_store", "trust_store has no meaning with mode off")
		}
		return
	case "request":
		out.Auth.Mode = policy.Request
	case "require":
		out.Auth.Mode = policy.Require
	case "request_unverified":
		out.Auth.Mode = policy.RequestUnverified
	case "passthrough_chain":
		out.Auth.Mode = policy.PassthroughChain
		if a.TrustStore != "" {
			c.problem(config.Path(at, "trust_store"), "use mode request_unverified to have a verdict, or remove trust_store", "trust_store has no meaning with mode passthrough_chain: nothing is verified")
		}
	default:
		return
	}
	if out.Auth.Mode == policy.RequestUnverified || out.Auth.Mode == policy.PassthroughChain {
		if a.OnFailure != "" {
			c.problem(config.Path(at, "on_failure"), "remove on_failure, or use mode request or require", "on_failure has no meaning with mode %s: nobody is refused", a.Mode)
		}
		if l.Protocol == TLSBytes {
			c.problem(config.Path(at, "mode"), "use mode off, request or require", "mode %s has no meaning on a tls listener: its backend is not told who the client is", a.Mode)
		}
	}
	if a.OnFailure == "page" && l.Protocol != HTTPS {
		c.problem(config.Path(at, "on_failure"), "use alert or reset", "on_failure page needs HTTP, and this listener moves bytes")
	}
	if out.Auth.Mode == policy.PassthroughChain {
		if a.Shadow != nil {
			c.problem(config.Path(at, "shadow"), "remove it", "shadow has no meaning with mode passthrough_chain: nothing is verified")
		}
		return
	}
	if a.TrustStore == "" {
		c.problem(at, "add trust_store: NAME", "mode %s needs a trust_store", a.Mode)
		return
	}
	out.Auth.Store = c.store(config.Path(at, "trust_store"), a.TrustStore)
	out.Auth.Reset, out.Auth.Page = a.OnFailure == "reset", a.OnFailure == "page"
	if out.Auth.Store != nil {
		out.Auth.Hints = c.hintPool(out.Auth.Store)
	}
	if b := c.conf.TrustStores[a.TrustStore]; b != nil && b.CABundle != nil && b.CABundle.System && out.Auth.Mode != policy.RequestUnverified {
		c.warn(config.Path(at, "trust_store"), "name the CAs you trust in a file, or name the clients in allow of every route",
			"trust store %q trusts every public CA: whoever buys a certificate for client authentication is let in", a.TrustStore)
	}
	if s := a.Shadow; s != nil {
		shadow := &ClientAuth{Mode: policy.Request, Store: out.Auth.Store}
		if s.Mode == "require" {
			shadow.Mode = policy.Require
		}
		if s.TrustStore != "" {
			shadow.Store = c.store(config.Path(at, "shadow.trust_store"), s.TrustStore)
		}
		if shadow.Store == out.Auth.Store && (shadow.Mode == out.Auth.Mode || out.Auth.Mode == policy.Require) {
			c.problem(config.Path(at, "shadow"), "set a stricter mode or another trust store, or remove it", "shadow is not stricter than what is in force")
		}
		out.Auth.Shadow = shadow
	}
}

// hintPool makes a pool that has nothing but subjects: it is advertised, never verified against. Hosts share that of their
// trust store.
func (c *compiler) hintPool(store *trust.Store) *x509.CertPool {
	if pool, made := c.pools[store]; made {
		return pool
	}
	subjects := store.Hints()
	if len(subjects) == 0 {
		return nil
	}
	pool := x509.NewCertPool()
	c.pools[store] = pool
	for _, s := range subjects {
		pool.AddCert(&x509.Certificate{Raw: s, RawSubject: s})
	}
	return pool
}
