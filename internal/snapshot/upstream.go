package snapshot

import (
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
	s.Idle, s.Keepalive = t.Idle.Or(defaultTargetIdle), t.Keepalive.Or(defaultKeepalive)

	scheme := ""
	for i, raw := range u.Targets {
		at := config.Path(path, "targets", i)
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
		addr := net.JoinHostPort(v.Hostname(), port)
		if slices.Contains(s.Targets, addr) {
			c.problem(at, "remove one", "the target %s is there twice", addr)
		}
		s.Targets = append(s.Targets, addr)
	}
	id := fmt.Sprint(s.Targets, scheme, s.Connect, s.Response, s.Idle, s.Keepalive, s.MaxConnections)
	if u.Balance == "least_requests" {
		s.Balance = upstream.LeastRequests
	}
	s.Health = c.health(config.Path(path, "health"), u, scheme, s.Targets)
	id += fmt.Sprintf("|%d|", s.Balance)
	if s.Health != nil {
		id += fmt.Sprintf("%+v", *s.Health)
	}
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
		id += fmt.Sprintf("|%s|%s|", s.TLS.ServerName, s.TLS.Store.Version())
		for _, p := range s.TLS.Certificates {
			for _, der := range p.Certificate {
				sum := sha256.Sum256(der)
				id += hex.EncodeToString(sum[:])
			}
			id += "|"
		}
	}
	s.Bytes = scheme == "tcp" || scheme == "tls"
	sum := sha256.Sum256([]byte(id))
	s.ID = hex.EncodeToString(sum[:])
	return s
}

// health compiles the check of an upstream's targets.
func (c *compiler) health(path string, u *config.Upstream, scheme string, targets []string) *upstream.Health {
	h := u.Health
	if h == nil || len(targets) == 0 {
		return nil
	}
	out := &upstream.Health{Path: h.Path, Host: h.Host, MinStatus: 200, MaxStatus: 399, Interval: h.Interval.Or(5 * time.Second),
		Timeout: h.Timeout.Or(2 * time.Second), Healthy: h.Healthy, Unhealthy: h.Unhealthy}
	if out.Healthy == 0 {
		out.Healthy = 2
	}
	if out.Unhealthy == 0 {
		out.Unhealthy = 3
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
		out.Host = targets[0]
	}
	if h.Status != "" {
		low, high, ranged := strings.Cut(h.Status, "-")
		if !ranged {
			high = low
		}
		var err1, err2 error
		out.MinStatus, err1 = strconv.Atoi(low)
		out.MaxStatus, err2 = strconv.Atoi(high)
		if err1 != nil || err2 != nil || out.MinStatus < 200 || out.MaxStatus > 599 || out.MinStatus > out.MaxStatus {
			c.problem(config.Path(path, "status"), "write 200 or 200-399", "%q is not a status or a range of them", h.Status)
		}
	}
	for key, present := range map[string]bool{"host": h.Host != "", "status": h.Status != ""} {
		if present && h.Path == "" {
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
	return out
}
