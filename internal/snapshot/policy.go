package snapshot

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"countersign/internal/config"
	"countersign/internal/policy"
	"countersign/internal/trust"
)

// routePolicy compiles what a route asks of clients beyond its host.
func (c *compiler) routePolicy(path string, out *Route, r *config.Route, host *Host, h *config.Host) {
	verifies := host.Auth.Mode == policy.Request || host.Auth.Mode == policy.Require
	if a := r.ClientAuth; a != nil {
		at := config.Path(path, "client_auth")
		switch {
		case !verifies:
			// TLS 1.3 and HTTP/2 have no way to ask for a certificate later (A29).
			c.problem(at, "set the host's client_auth to mode request or require", "the route wants a certificate, and the host's mode %s lets nobody be verified in the handshake", host.Auth.Mode)
		case host.Auth.Mode == policy.Require && h.ClientAuth != nil && (a.TrustStore == "" || a.TrustStore == h.ClientAuth.TrustStore):
			c.warn(at, "remove it, or set another trust_store", "the host requires a verified client already")
		}
		out.Required = true
		out.Store = c.routeStore(config.Path(at, "trust_store"), a.TrustStore, host, h)
	}
	out.Allow = c.rule(config.Path(path, "allow"), r.Allow, host)
	if s := r.Shadow; s != nil {
		at := config.Path(path, "shadow")
		if s.Allow == "" && s.TrustStore == "" {
			c.problem(at, "add allow or trust_store", "shadow names nothing to be looked at")
		}
		if s.TrustStore != "" && !verifies {
			c.problem(config.Path(at, "trust_store"), "set the host's client_auth to mode request or require", "with the host's mode %s there is no verified client to look at", host.Auth.Mode)
		}
		out.ShadowAllow = c.rule(config.Path(at, "allow"), s.Allow, host)
		out.ShadowStore = c.store(config.Path(at, "trust_store"), s.TrustStore)
	}
}

// routeStore resolves the trust store of a route; nil where it is the host's own.
func (c *compiler) routeStore(path, name string, host *Host, h *config.Host) *trust.Store {
	if name == "" || h.ClientAuth == nil || name == h.ClientAuth.TrustStore {
		return nil
	}
	if len(h.TrustedProxies) > 0 {
		c.problem(path, "give the route a host of its own", "a route cannot have another trust store where trusted_proxies say who the client is, and have their own")
	}
	return c.store(path, name)
}

// rule compiles an expression; its problems are shown where they stand in it.
func (c *compiler) rule(path, text string, host *Host) *policy.Rule {
	if text == "" {
		return nil
	}
	r, err := policy.Compile(text, policy.CompileOptions{Mode: host.Auth.Mode})
	var bad *policy.RuleError
	switch {
	case errors.As(err, &bad):
		for _, p := range bad.Problems {
			c.problem(path, p.Next, "%s (line %d, column %d of the expression)", p.Message, p.Line, p.Column)
		}
	case err != nil:
		c.problem(path, "", "%s", err)
	}
	return r
}

const (
	defaultPreflight = 10 * time.Minute
	maxLocalBody     = 4 << 10
)

// exempt compiles what is answered here to clients without a certificate.
func (c *compiler) exempt(path string, out *Host, h *config.Host) {
	e := h.Exempt
	if e == nil {
		return
	}
	if out.Auth.Mode != policy.Request {
		c.problem(path, "set client_auth.mode: request and client_auth: {mode: require} on the routes, or remove exempt",
			"exempt needs mode request: with mode %s there is nothing to be exempt from, or nobody without a certificate gets so far", out.Auth.Mode)
	}
	x := &Exempt{Health: make(map[string]Local)}
	for i, p := range e.Health {
		at := config.Path(path, "health", i)
		local := Local{Status: p.Status, Body: p.Body}
		if local.Status == 0 {
			local.Status = http.StatusOK
		}
		if local.Body == "" {
			local.Body = "ok\n"
		}
		switch _, twice := x.Health[p.Path]; {
		case twice:
			c.problem(config.Path(at, "path"), "remove one", "%s is there twice", p.Path)
		case !plainPath(p.Path):
			c.problem(config.Path(at, "path"), "write /healthz", "%q is not an exact, decoded path", p.Path)
		case local.Status < 200 || local.Status > 599 || http.StatusText(local.Status) == "":
			c.problem(config.Path(at, "status"), "use 200", "%d is not a status to end a request with", local.Status)
		case len(local.Body) > maxLocalBody:
			c.problem(config.Path(at, "body"), "use a shorter one", "body has %d bytes; at most %d", len(local.Body), maxLocalBody)
		}
		x.Health[p.Path] = local
	}
	if p := e.Preflight; p != nil {
		at := config.Path(path, "preflight")
		for i, origin := range p.Origins {
			if u, err := url.Parse(origin); err != nil || u.Scheme+"://"+u.Host != origin || u.Host == "" || origin != strings.ToLower(origin) {
				c.problem(config.Path(at, "origins", i), "write https://app.test", "%q is not an origin", origin)
			}
		}
		tokens := func(key string, list []string) string {
			for i, name := range list {
				if name == "" || strings.ContainsFunc(name, func(r rune) bool {
					return r <= ' ' || r >= 0x7f || strings.ContainsRune("()<>@,;:\\\"/[]?={}*", r)
				}) {
					c.problem(config.Path(at, key, i), "write one name", "%q is not a name", name)
				}
			}
			return strings.Join(list, ", ")
		}
		x.Origins = slices.Clone(p.Origins)
		x.Preflight = "Access-Control-Allow-Methods: " + tokens("methods", p.Methods) + "\r\n"
		if len(p.Headers) > 0 {
			x.Preflight += "Access-Control-Allow-Headers: " + tokens("headers", p.Headers) + "\r\n"
		}
		if p.Credentials {
			x.Preflight += "Access-Control-Allow-Credentials: true\r\n"
		}
		x.Preflight += fmt.Sprintf("Access-Control-Max-Age: %d\r\n", int(p.MaxAge.Or(defaultPreflight).Seconds()))
	}
	if len(x.Health) == 0 && e.Preflight == nil {
		c.problem(path, "add health or preflight, or remove exempt", "exempt names nothing")
	}
	out.Exempt = x
}

// plainPath reports whether p is a path in which nothing is left to decode, merge or resolve.
func plainPath(p string) bool {
	u, err := url.Parse(p)
	return err == nil && strings.HasPrefix(p, "/") && u.Path == p && !strings.ContainsAny(p, "*%;\\?#") && !strings.Contains(p, "//") &&
		!strings.Contains(p, "/.") && !strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}
