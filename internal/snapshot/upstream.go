package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"countersign/internal/config"
	"countersign/internal/hostname"
	"countersign/internal/upstream"
)

func (c *compiler) upstream(path, name string, u *config.Upstream) *upstream.Settings {
	s := &upstream.Settings{Name: name, MaxConnections: u.MaxConnections, HeadBytes: defaultHeaderBytes, Fields: defaultHeaderFields}
	if s.MaxConnections == 0 {
		s.MaxConnections = defaultPerTarget
	}
	t := u.Timeouts
	if t == nil {
		t = new(config.UpstreamTimeouts)
	}
	s.Connect, s.Response = t.Connect.Or(defaultConnect), t.Response.Or(defaultResponse)
	s.Idle, s.Keepalive, s.Total = t.Idle.Or(defaultTargetIdle), t.Keepalive.Or(defaultKeepalive), time.Duration(t.Total)

	scheme := ""
	taking := 0 // targets that take new requests
	for i, conf := range u.Targets {
		at, raw := config.Path(path, "targets", i), conf.URL
		if raw == "" {
			continue // reported as missing already
		}
		v, err := url.Parse(raw)
		if err != nil || v.Host == "" || v.Path != "" && v.Path != "/" || v.RawQuery != "" || v.User != nil || v.Fragment != "" ||
			!slices.Contains([]string{"http", "https", "tcp", "tls"}, v.Scheme) {
			c.problem(at, "write http://host:port or https://host:port, or tcp://host:port or tls://host:port for bytes", "%q is not the address of a target", raw)
			continue
		}
		if scheme == "" {
			scheme = v.Scheme
		} else if v.Scheme != scheme {
			c.problem(at, "make two upstreams", "targets of one upstream have one scheme; expected %s, found %s", scheme, v.Scheme)
		}
		port := v.Port()
		if port == "" {
			port = map[string]string{"http": "80", "https": "443"}[v.Scheme]
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			c.problem(at, "add the port, for example "+raw+":8080", "%q has no port from 1 to 65535", raw)
			continue
		}
		out := upstream.TargetSettings{Address: net.JoinHostPort(v.Hostname(), port), Weight: 1, Priority: conf.Priority}
		if slices.ContainsFunc(s.Targets, func(t upstream.TargetSettings) bool { return t.Address == out.Address }) {
			c.problem(at, "remove one", "the target %s is there twice", out.Address)
		}
		if conf.Weight != nil {
			out.Weight = *conf.Weight
		}
		if out.Weight > maxWeight {
			c.problem(config.Path(path, "targets", i, "weight"), "use at most 999: only the ratio counts", "the weight %d is too large", out.Weight)
		}
		if out.Priority > maxPriority {
			c.problem(config.Path(path, "targets", i, "priority"), "use 0 to 9", "the priority %d is too large", out.Priority)
		}
		switch conf.State {
		case "draining":
			out.State = upstream.Draining
		case "disabled":
			out.State = upstream.Disabled
		}
		if out.State == upstream.Active && out.Weight > 0 {
			taking++
		}
		s.Targets = append(s.Targets, out)
	}
	if len(s.Targets) == len(u.Targets) && taking == 0 {
		c.warn(config.Path(path, "targets"), "leave one with state active and a weight", "no target takes new requests, so all are answered 503")
	}
	if len(u.Targets) > maxConfigured {
		c.problem(config.Path(path, "targets"), "put a balancer between", "the upstream has %d targets, expected at most %d", len(u.Targets), maxConfigured)
	}
	c.balance(path, s, u)
	c.sticky(path, s, u)
	c.resilience(path, s, u)
	s.Bytes = scheme == "tcp" || scheme == "tls"
	c.onlyRequests(path, s.Bytes, u)
	s.Health = c.health(config.Path(path, "health"), u, scheme, s.Targets)
	wire := scheme
	secure := scheme == "https" || scheme == "tls"
	switch {
	case secure && u.TLS == nil:
		c.problem(path, "add tls: {server_name: NAME, trust_store: STORE}", "%s targets need tls: a target is always verified", scheme)
		return nil
	case !secure && u.TLS != nil:
		c.problem(config.Path(path, "tls"), "write https:// or tls:// targets, or remove tls", "tls has no meaning for %s targets", scheme)
	case u.TLS != nil:
		s.TLS = c.upstreamTLS(config.Path(path, "tls"), u.TLS)
		if s.TLS == nil {
			return nil
		}
		wire += fmt.Sprintf("|%q|%s|", s.TLS.ServerName, s.TLS.Store.Version())
		for _, p := range s.TLS.Certificates {
			for _, der := range p.Certificate {
				sum := sha256.Sum256(der)
				wire += hex.EncodeToString(sum[:])
			}
			wire += "|"
		}
	}
	if s.Announce = c.announcement(config.Path(path, "proxy_protocol"), u.ProxyProtocol); s.Announce != nil {
		wire += fmt.Sprintf("|announce %+v", *s.Announce)
	}
	if s.HTTP2 = u.ProtocolVersion == "http2"; s.HTTP2 {
		wire += "|http2"
		at := config.Path(path, "protocol_version")
		switch {
		case s.Bytes:
			c.problem(at, "write http:// or https:// targets, or remove protocol_version", "protocol_version has no meaning for %s targets", scheme)
		case u.ProxyProtocol != nil:
			c.problem(at, "remove one of the two", "a PROXY header announces one client, and a connection of HTTP/2 is shared by many")
		}
	}
	s.Wire = hash(wire)
	s.ID = hash(identify(s))
	return s
}

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// identify writes out every setting of s: of pointers what they point to, and of TLS what Wire says.
func identify(s *upstream.Settings) string {
	plain := *s
	plain.TLS, plain.Health, plain.Outlier, plain.Sticky, plain.Announce = nil, nil, nil, nil, nil
	id := fmt.Sprintf("%+v", plain)
	if s.Health != nil {
		id += fmt.Sprintf("|health%+v", *s.Health)
	}
	if x := s.Outlier; x != nil {
		flat := *x
		flat.Rate = nil
		id += fmt.Sprintf("|outlier%+v", flat)
		if x.Rate != nil {
			id += fmt.Sprintf("|rate%+v", *x.Rate)
		}
	}
	if s.Sticky != nil {
		id += fmt.Sprintf("|sticky%+v", *s.Sticky) // its key too: only the hash of all this is kept
	}
	return id
}

// The bounds of what a pool is told about its targets.
const (
	maxWeight     = 999
	maxPriority   = 9
	maxConfigured = 1000
)

var balances = map[string]upstream.Balance{
	"": upstream.RoundRobin, "round_robin": upstream.RoundRobin, "weighted_round_robin": upstream.RoundRobin,
	"least_requests": upstream.LeastRequests, "least_outstanding_requests": upstream.LeastRequests,
	"p2c": upstream.P2C, "random": upstream.Random, "weighted_random": upstream.Random,
	"maglev": upstream.Maglev, "ring_hash": upstream.RingHash,
}

// balance compiles how a target is chosen.
func (c *compiler) balance(path string, s *upstream.Settings, u *config.Upstream) {
	s.Balance = balances[u.Balance]
	hashes := s.Balance == upstream.Maglev || s.Balance == upstream.RingHash
	switch {
	case hashes && u.Hash == nil && !c.refused(config.Path(path, "hash")):
		c.problem(config.Path(path, "balance"), "add hash: source, client_certificate or path, or hash: {on: header, name: NAME}", "%s needs to know what to hash", u.Balance)
	case !hashes && u.Hash != nil && !c.refused(config.Path(path, "balance")):
		c.problem(config.Path(path, "hash"), "set balance: maglev or ring_hash, or remove hash", "hash has no meaning without such a balance")
	}
	if k := u.Hash; k != nil {
		at := config.Path(path, "hash", "name")
		s.Key.On = map[string]upstream.KeySource{"source": upstream.KeyAddress, "client_certificate": upstream.KeyCertificate,
			"header": upstream.KeyHeader, "cookie": upstream.KeyCookie, "path": upstream.KeyPath}[k.On]
		named := s.Key.On == upstream.KeyHeader || s.Key.On == upstream.KeyCookie
		switch {
		case k.On == "": // reported as refused or missing already
		case named && k.Name == "":
			c.problem(config.Path(path, "hash"), "add name", "hash on %s needs the name of the %s", k.On, k.On)
		case !named && k.Name != "":
			c.problem(at, "remove it", "name has no meaning for hash on %s", k.On)
		case named && !token(k.Name):
			c.problem(at, "use letters, digits and hyphens", "%q cannot be the name of a %s", k.Name, k.On)
		}
		s.Key.Name = k.Name
		if s.Key.On == upstream.KeyHeader {
			s.Key.Name = strings.ToLower(k.Name)
		}
	}
	s.SlowStart = time.Duration(u.SlowStart)
	if hashes && s.SlowStart > 0 {
		c.problem(config.Path(path, "slow_start"), "remove it, or use another balance", "slow_start has no meaning for %s: keys would move with every step", u.Balance)
	}
	if s.SlowStart > time.Hour {
		c.problem(config.Path(path, "slow_start"), "use at most 1h", "a slow start of %s is not one", s.SlowStart)
	}
	for key, n := range map[string]int{"failover_threshold": u.FailoverThreshold, "panic_threshold": u.PanicThreshold} {
		if n > 100 {
			c.problem(config.Path(path, key), "use 1 to 100", "%s is in percent, found %d", key, n)
		}
	}
	s.Failover, s.Panic = u.FailoverThreshold, u.PanicThreshold
}

// token reports whether s is a token of RFC 9110 section 5.6.2, as names of headers and cookies are.
func token(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

// sticky compiles how clients are kept.
func (c *compiler) sticky(path string, s *upstream.Settings, u *config.Upstream) {
	k := u.Sticky
	if k == nil {
		return
	}
	path = config.Path(path, "sticky")
	if (k.Cookie != nil) == k.ClientCertificate {
		c.problem(path, "write cookie: {...} or client_certificate: true", "sticky is by a cookie or by the client's certificate; expected one of them")
	}
	s.Sticky = &upstream.Sticky{Client: k.ClientCertificate}
	conf := k.Cookie
	if conf == nil {
		return
	}
	path = config.Path(path, "cookie")
	out := s.Sticky
	out.Cookie, out.Lifetime, out.Session, out.Domain = conf.Name, conf.Lifetime.Or(24*time.Hour), conf.Session, strings.ToLower(conf.Domain)
	if out.Cookie == "" {
		out.Cookie = "countersign_" + strings.Map(func(r rune) rune {
			if r >= 0x7f || !token(string(r)) {
				return '_'
			}
			return r
		}, s.Name)
	}
	if !token(out.Cookie) {
		c.problem(config.Path(path, "name"), "use letters, digits, hyphens and underscores", "%q cannot be the name of a cookie", out.Cookie)
	}
	if strings.HasPrefix(out.Cookie, "__Host-") && out.Domain != "" {
		c.problem(config.Path(path, "domain"), "remove it, or use another name", "browsers refuse a cookie whose name begins with __Host- and that has a domain")
	}
	if out.Lifetime > 168*time.Hour || out.Lifetime < time.Second {
		c.problem(config.Path(path, "lifetime"), "use 1s to 168h", "a lifetime of %s is out of bounds", out.Lifetime)
	}
	if out.Domain != "" {
		if canonical, wild, err := hostname.Pattern(out.Domain); err != nil || wild || canonical != out.Domain {
			c.problem(config.Path(path, "domain"), "write a domain such as app.test", "%q is not a host name", conf.Domain)
		}
	}
	out.SameSite = map[string]string{"": "Lax", "lax": "Lax", "strict": "Strict", "none": "None"}[conf.SameSite]
	if conf.Key == nil {
		out.Key = upstream.ProcessKey()
		return
	}
	if (conf.Key.File == "") == (conf.Key.Env == "") {
		c.problem(config.Path(path, "key"), "write key: {file: FILE} or key: {env: NAME}", "the key comes from a file or from an environment variable, one of them")
		return
	}
	key, ok := c.secret(config.Path(path, "key"), conf.Key)
	key = bytes.TrimSuffix(bytes.TrimSuffix(key, []byte("\n")), []byte("\r"))
	if ok && len(key) < 32 {
		c.problem(config.Path(path, "key"), "make one, for example with: openssl rand -hex 32", "the key has %d bytes, expected at least 32", len(key))
	}
	out.Key = key
}

// resilience compiles the limits of a pool, what it retries, and how it judges and finds its targets.
func (c *compiler) resilience(path string, s *upstream.Settings, u *config.Upstream) {
	s.MaxRequests, s.MaxPending = u.MaxRequests, u.MaxPending
	s.QueueTimeout = u.QueueTimeout.Or(time.Second)
	if u.QueueTimeout != 0 && u.MaxPending == 0 {
		c.problem(config.Path(path, "queue_timeout"), "add max_pending, or remove queue_timeout", "queue_timeout has no meaning without max_pending: nothing waits")
	}
	if u.MaxPending > maxPending {
		c.problem(config.Path(path, "max_pending"), "use at most 100000", "max_pending is %d; every one that waits holds a connection and its memory", u.MaxPending)
	}
	if s.Total > 0 && s.Total < s.Connect {
		c.warn(config.Path(path, "timeouts", "total"), "make it longer than connect", "timeouts.total (%s) ends before timeouts.connect (%s)", s.Total, s.Connect)
	}
	if r := u.Retries; r != nil {
		at := config.Path(path, "retries")
		s.Retries = upstream.Retries{Attempts: max(r.Attempts, 1), PerTry: time.Duration(r.PerTryTimeout), Budget: r.BudgetPercent}
		if s.Retries.Budget == 0 {
			s.Retries.Budget = 20
		}
		if s.Retries.Attempts > 5 {
			c.problem(config.Path(at, "attempts"), "use at most 5", "attempts is %d; where five fail a sixth does too", r.Attempts)
		}
		if s.Retries.Budget > 100 {
			c.problem(config.Path(at, "budget_percent"), "use 1 to 100", "budget_percent is %d", s.Retries.Budget)
		}
	}
	if d := u.DNS; d != nil {
		s.DNS = upstream.DNS{All: d.Mode == "all", Refresh: time.Duration(d.Refresh)}
		if d.Refresh != 0 && s.DNS.Refresh < 5*time.Second {
			c.problem(config.Path(path, "dns", "refresh"), "use 5s or more", "a refresh of %s would keep the resolver busy", s.DNS.Refresh)
		}
	}
	if s.DNS.Refresh == 0 {
		s.DNS.Refresh = 30 * time.Second
	}
	s.Outlier = c.outlier(config.Path(path, "outlier"), u.Outlier)
}

// maxPending bounds max_pending.
const maxPending = 100_000

// outlier compiles when targets are ejected.
func (c *compiler) outlier(path string, o *config.Outlier) *upstream.Outlier {
	if o == nil {
		return nil
	}
	or := func(p *int, def int) int {
		if p == nil {
			return def
		}
		return *p
	}
	out := &upstream.Outlier{Consecutive5xx: or(o.Consecutive5xx, 5), ConsecutiveGateway: or(o.ConsecutiveGatewayFailure, 0),
		ConsecutiveLocal: or(o.ConsecutiveLocalOriginFailure, 5), Interval: o.Interval.Or(10 * time.Second), BaseTime: o.BaseEjectionTime.Or(30 * time.Second),
		MaxTime: o.MaxEjectionTime.Or(300 * time.Second), MaxPercent: o.MaxEjectionPercent}
	if out.MaxPercent == 0 {
		out.MaxPercent = 50
	}
	if out.MaxPercent > 50 {
		c.problem(config.Path(path, "max_ejection_percent"), "use at most 50", "with %d percent out the rest would not bear the load", out.MaxPercent)
	}
	if out.MaxTime < out.BaseTime {
		c.problem(config.Path(path, "max_ejection_time"), "make it at least base_ejection_time", "max_ejection_time (%s) is shorter than base_ejection_time (%s)", out.MaxTime, out.BaseTime)
	}
	if r := o.SuccessRate; r != nil {
		out.Rate = &upstream.SuccessRate{Hosts: r.MinimumHosts, Requests: r.RequestVolume, Factor: r.StdevFactor}
		for field, def := range map[*int]int{&out.Rate.Hosts: 5, &out.Rate.Requests: 100, &out.Rate.Factor: 1900} {
			if *field == 0 {
				*field = def
			}
		}
	}
	return out
}

// onlyRequests refuses what has no meaning where bytes are passed on: nothing in them is read.
func (c *compiler) onlyRequests(path string, bytes bool, u *config.Upstream) {
	if !bytes {
		return
	}
	no := func(present bool, what string, keys ...any) {
		if present {
			c.problem(config.Path(append([]any{path}, keys...)...), "remove it", "%s has no meaning for tcp and tls targets: bytes are passed on unread", what)
		}
	}
	if k := u.Hash; k != nil {
		no(k.On == "header" || k.On == "cookie" || k.On == "path", "hash on "+k.On, "hash")
	}
	no(u.Sticky != nil && u.Sticky.Cookie != nil, "a sticky cookie", "sticky", "cookie")
	no(u.Retries != nil, "retries", "retries")
	no(u.Timeouts != nil && u.Timeouts.Total != 0, "timeouts.total", "timeouts", "total")
	if o := u.Outlier; o != nil {
		no(o.Consecutive5xx != nil, "consecutive_5xx", "outlier", "consecutive_5xx")
		no(o.ConsecutiveGatewayFailure != nil, "consecutive_gateway_failure", "outlier", "consecutive_gateway_failure")
	}
}

// health compiles the check of an upstream's targets.
func (c *compiler) health(path string, u *config.Upstream, scheme string, targets []upstream.TargetSettings) *upstream.Health {
	h := u.Health
	if h == nil || len(targets) == 0 {
		return nil
	}
	out := &upstream.Health{Path: h.Path, Host: h.Host, Status: []upstream.StatusRange{{Min: 200, Max: 399}}, Interval: h.Interval.Or(5 * time.Second),
		Timeout: h.Timeout.Or(2 * time.Second), Healthy: h.Healthy, Unhealthy: h.Unhealthy}
	if out.Healthy == 0 {
		out.Healthy = 2
	}
	if out.Unhealthy == 0 {
		out.Unhealthy = 3
	}
	if g := h.GRPC; g != nil {
		at := config.Path(path, "grpc")
		out.GRPC, out.Service = true, g.Service
		switch {
		case h.Path != "":
			c.problem(at, "remove path or grpc", "a check is a GET or a call of gRPC, not both")
		case u.ProtocolVersion != "http2":
			c.problem(at, "add protocol_version: http2 to the upstream", "gRPC is spoken over HTTP/2")
		}
	}
	if out.Interval < 100*time.Millisecond {
		c.problem(config.Path(path, "interval"), "use 100ms or more", "an interval of %s would keep the targets busy with checks", out.Interval)
	}
	if h.Path != "" && (scheme == "tcp" || scheme == "tls") {
		c.problem(config.Path(path, "path"), "remove path: a connection is the check", "path has no meaning for %s targets", scheme)
	}
	if h.Path != "" && (h.Path[0] != '/' || strings.ContainsFunc(h.Path, func(r rune) bool { return r <= ' ' || r >= 0x7f })) {
		c.problem(config.Path(path, "path"), "write a path such as /healthz", "%q is not a path", h.Path)
	}
	if h.Host != "" {
		if _, _, err := hostname.AppendCanonicalHost(nil, []byte(h.Host)); err != nil {
			c.problem(config.Path(path, "host"), "write a host name", "%q: %s", h.Host, err)
		}
	} else if u.TLS != nil {
		out.Host = u.TLS.ServerName
	} else {
		out.Host = targets[0].Address
	}
	if h.Status != "" {
		out.Status = nil
		for part := range strings.SplitSeq(h.Status, ",") {
			low, high, ranged := strings.Cut(part, "-")
			if !ranged {
				high = low
			}
			from, err1 := strconv.Atoi(low)
			to, err2 := strconv.Atoi(high)
			if err1 != nil || err2 != nil || from < 200 || to > 599 || from > to {
				c.problem(config.Path(path, "status"), "write 200, 200-399 or 200-299,301", "%q is not a list of statuses and ranges of them", h.Status)
				break
			}
			out.Status = append(out.Status, upstream.StatusRange{Min: from, Max: to})
		}
	}
	for key, present := range map[string]bool{"host": h.Host != "", "status": h.Status != ""} {
		if present && h.Path == "" && (h.GRPC == nil || key == "status") {
			c.problem(config.Path(path, key), "add path, or remove "+key, "%s has no meaning without path", key)
		}
	}
	return out
}

func (c *compiler) upstreamTLS(path string, t *config.UpstreamTLS) *upstream.TLS {
	out := &upstream.TLS{ServerName: t.ServerName, Store: c.store(config.Path(path, "trust_store"), t.TrustStore)}
	if _, wild, err := hostname.Pattern(t.ServerName); (err != nil || wild) && t.ServerName != "" {
		c.problem(config.Path(path, "server_name"), "write the name that the target's certificate has", "%q is not a host name", t.ServerName)
	}
	for i, p := range t.ClientCertificates {
		if pair := c.pair(config.Path(path, "client_certificates", i), p, nil); pair != nil {
			out.Certificates = append(out.Certificates, pair)
		}
	}
	if out.Store == nil {
		return nil
	}
	if r := c.conf.TrustStores[t.TrustStore].Revocation; r != nil {
		switch {
		case r.OCSP != nil && r.OCSP.Mode != "off":
			c.problem(config.Path(path, "trust_store"), "give targets a trust store of their own, with crls", "trust store %q asks OCSP responders, and this version asks them about clients only", t.TrustStore)
		case len(r.DistributionPoints) > 0 && len(r.CRLs) == 0 && r.Missing != "if_present":
			c.problem(config.Path(path, "trust_store"), "give targets a trust store of their own, with crls", "trust store %q learns of lists from the certificates of clients, so there would be none about targets", t.TrustStore)
		}
	}
	return out
}
