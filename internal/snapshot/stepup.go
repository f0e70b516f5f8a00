package snapshot

import (
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"countersign/internal/config"
	"countersign/internal/hostname"
	"countersign/internal/policy"
	"countersign/internal/stepup"
	"countersign/internal/trust"
)

// StepUp is how browsers without a certificate become verified clients of a route: they are sent to a host that asks for
// one, and come back with proof.
type StepUp struct {
	// To is the URL they are sent to, which an ask is appended to.
	To string
	// At is the host there.
	At *Host
	// Lifetime is how long the proof is good for.
	Lifetime time.Duration
	// Store is what the chain has to verify against, there and again on each request.
	Store *trust.Store
	// Sites are the route's by authority: name, colon and port, which is 443 where the origin has none.
	Sites map[string]*Site

	route   *Route
	path    string // of the setting, for problems
	to      webOrigin
	pattern string
	store   string
}

// Site is a route with a step-up as one origin serves it. What a browser has shown is good for one site, and for those
// it showed the same for.
type Site struct {
	Key    stepup.Key
	Origin string
	Host   *Host
	StepUp *StepUp
}

// maxStepUp is also the default: who holds the cookie needs no key, so it is not good for long.
const maxStepUp = stepup.MaxLifetime

// minStepUp is less than anybody could mean.
const minStepUp = 10 * time.Second

// stepUp compiles what a route does for browsers without a certificate, and returns the host as the route's own policy
// sees it: behind a step-up clients are verified although the host asks nobody.
func (c *compiler) stepUp(path string, out *Route, r *config.Route, l *Listener, host *Host, h *config.Host) *Host {
	s := r.StepUp
	if s == nil {
		return host
	}
	at := config.Path(path, "step_up")
	if l.Protocol == 0 {
		return host // reported
	}
	if l.Protocol != HTTPS {
		c.problem(at, "use protocol https", "step_up has no meaning on a listener of protocol %s: its cookies need TLS", l.Protocol)
		return host
	}
	if host.Auth.Mode != policy.Off && host.Auth.Mode != policy.Request {
		c.problem(at, "remove it, or set the host's client_auth to mode request or off", "step_up is for browsers that connect without a certificate and are let in, and the host has mode %s", host.Auth.Mode)
		return host
	}
	if len(h.TrustedProxies) > 0 {
		c.problem(at, "give the route a host of its own", "a route cannot have step_up where trusted_proxies say who the client is")
	}
	for _, name := range h.Names {
		if strings.HasPrefix(name, "*") {
			c.problem(at, "give the host exact names", "%s is no origin that a browser could be sent back to", name)
		}
	}
	seen := *host
	seen.Auth.Mode = policy.Request
	switch {
	case r.ClientAuth == nil:
		c.problem(at, "add client_auth: {mode: require, trust_store: NAME} to the route, or remove step_up", "the route asks for no certificate, so nobody would be sent anywhere")
	case r.ClientAuth.TrustStore == "" && host.Auth.Mode == policy.Off:
		c.problem(config.Path(path, "client_auth"), "add trust_store: NAME", "the certificate of a step-up has to verify against something, and the host has no trust_store")
	}
	out.StepUp = &StepUp{Lifetime: s.Lifetime.Or(maxStepUp), Sites: make(map[string]*Site), route: out, path: at}
	if d := out.StepUp.Lifetime; d > maxStepUp || d < minStepUp {
		c.problem(config.Path(at, "lifetime"), "use at most 15m", "lifetime is %s; expected from %s to %s", d, minStepUp, maxStepUp)
	}
	out.StepUp.pattern = matchText(r.Match)
	if r.ClientAuth != nil {
		out.StepUp.store = r.ClientAuth.TrustStore
	}
	if out.StepUp.to = c.webOrigin(config.Path(at, "to"), s.To); out.StepUp.to.text != "" {
		out.StepUp.To = out.StepUp.to.text + stepup.AskPath + "?ask="
		host.steps = append(host.steps, out.StepUp)
	}
	return &seen
}

// webOrigin is scheme, name and port as browsers write them (RFC 6454 section 6.2); the scheme is https.
type webOrigin struct {
	text, name string
	port       uint16
}

func (o webOrigin) authority() string { return o.name + ":" + strconv.Itoa(int(o.port)) }

// webOrigin reads one. It is strict, because what is written goes into Location headers.
func (c *compiler) webOrigin(path, text string) webOrigin {
	if text == "" {
		return webOrigin{} // reported as missing already
	}
	u, err := url.Parse(text)
	if err == nil && u.Scheme == "https" && u.Host != "" && "https://"+u.Host == text && !strings.HasSuffix(u.Host, ":443") {
		name, port, err := hostname.AppendCanonicalHost(nil, []byte(u.Host))
		if err == nil && string(name) == strings.TrimSuffix(u.Host, ":"+u.Port()) && (port == 0) == (u.Port() == "") {
			if port == 0 {
				port = 443
			}
			return webOrigin{text, string(name), port}
		}
	}
	c.problem(path, "write https://app.test or https://app.test:8443: lower case, no path, and no port 443", "%q is not an https origin", text)
	return webOrigin{}
}

// stepUps brings both ends of every step-up together: the route that sends browsers away, and the host that asks for a
// certificate and sends them back. Both have to name the other, so that neither can be used without its owner's word.
func (c *compiler) stepUps(s *Snapshot) {
	back := make(map[*Host]map[webOrigin]bool) // the origins of step_up_for, and whether a route uses them
	for _, name := range keys(s.Listeners) {
		l := s.Listeners[name]
		for i, host := range l.Hosts {
			path := config.Path("listeners", name, "hosts", i)
			conf := c.conf.Listeners[name].Hosts[i]
			if len(conf.StepUpFor) > 0 {
				back[host] = c.stepUpFor(config.Path(path, "step_up_for"), l, host, conf)
			}
			if len(conf.StepUpFor) > 0 || len(host.steps) > 0 {
				host.StepsUp = true
				c.reserved(path, conf)
			}
		}
	}
	for _, name := range keys(s.Listeners) {
		l := s.Listeners[name]
		for _, host := range l.Hosts {
			for _, step := range host.steps {
				c.sites(s, l, host, step, back)
			}
		}
	}
	for _, name := range keys(s.Listeners) {
		for i, host := range s.Listeners[name].Hosts {
			for j, text := range c.conf.Listeners[name].Hosts[i].StepUpFor {
				for o, used := range back[host] {
					if o.text == text && !used {
						c.problem(config.Path("listeners", name, "hosts", i, "step_up_for", j), "remove it, or add step_up to a route of that host", "no route of %s has a step_up that leads here", text)
					}
				}
			}
		}
	}
}

// stepUpFor reads the origins that a host sends browsers back to.
func (c *compiler) stepUpFor(path string, l *Listener, host *Host, conf *config.Host) map[webOrigin]bool {
	switch {
	case l.Protocol != HTTPS:
		c.problem(path, "use protocol https", "step_up_for has no meaning on a listener of protocol %s", l.Protocol)
		return nil
	case host.Auth.Mode != policy.Require:
		c.problem(path, "set client_auth.mode: require", "step_up_for is for a host that lets nobody in without a certificate, and this one has mode %s", host.Auth.Mode)
		return nil
	case len(conf.TrustedProxies) > 0:
		c.problem(path, "give step_up_for a host of its own", "browsers have to connect to the host of a step-up themselves, and trusted_proxies connect for others")
		return nil
	}
	out := make(map[webOrigin]bool)
	for i, text := range conf.StepUpFor {
		o := c.webOrigin(config.Path(path, i), text)
		if _, twice := out[o]; twice && o.text != "" {
			c.problem(config.Path(path, i), "remove one", "%s is there twice", text)
		}
		out[o] = false
	}
	return out
}

// reserved reports routes that nobody could reach.
func (c *compiler) reserved(path string, conf *config.Host) {
	for i, r := range conf.Routes {
		if r.Match != nil && strings.HasPrefix(r.Match.Path+"/", stepup.Reserved) {
			c.problem(config.Path(path, "routes", i, "match.path"), "use another path", "paths under %s are answered by this program on a host with a part in a step-up", stepup.Reserved)
		}
	}
}

// sites makes the sites of one step-up of host.
func (c *compiler) sites(s *Snapshot, l *Listener, host *Host, step *StepUp, back map[*Host]map[webOrigin]bool) {
	step.Store = host.Auth.Store
	if step.route.Store != nil {
		step.Store = step.route.Store
	}
	if step.At = c.askingHost(s, host, step, back); step.At == nil {
		return
	}
	for _, text := range host.Names {
		name, _, err := hostname.Pattern(text)
		if err != nil {
			continue // reported
		}
		found := false
		for o := range back[step.At] {
			if o.name != name {
				continue
			}
			found, back[step.At][o] = true, true
			site := &Site{Origin: o.text, Host: host, StepUp: step,
				Key: stepup.KeyOf(l.Name, host.Name, o.text, step.pattern, step.store, step.to.text)}
			step.Sites[o.authority()] = site
			if s.Sites == nil {
				s.Sites = make(map[stepup.Key]*Site)
			}
			s.Sites[site.Key] = site
		}
		if !found {
			c.problem(config.Path(step.path, "to"), "add https://"+name+" to step_up_for of that host", "%s sends nobody back to %s: its step_up_for has no origin of that name", step.to.text, name)
		}
	}
}

// askingHost finds the host that to names: of https listeners that have the name, the one on that port, or the only one,
// for ports may be mapped on the way.
func (c *compiler) askingHost(s *Snapshot, host *Host, step *StepUp, back map[*Host]map[webOrigin]bool) *Host {
	at := config.Path(step.path, "to")
	var found []*Host
	var where []string
	for _, name := range keys(s.Listeners) {
		l := s.Listeners[name]
		h, ok := l.table.Lookup([]byte(step.to.name))
		if l.Protocol != HTTPS || !ok {
			continue
		}
		_, port, _ := net.SplitHostPort(l.Address)
		if port == strconv.Itoa(int(step.to.port)) {
			found, where = []*Host{h}, []string{name}
			break
		}
		if h != host {
			found, where = append(found, h), append(where, name)
		}
	}
	if len(found) > 1 { // one of them may be the only one that takes part
		if some := slices.DeleteFunc(slices.Clone(found), func(h *Host) bool { return back[h] == nil }); len(some) == 1 {
			found = some
		}
	}
	switch {
	case len(found) == 0:
		c.problem(at, "add a host of that name with client_auth.mode: require and step_up_for", "no other https host of this configuration has the name %s", step.to.name)
	case len(found) > 1:
		c.problem(at, "let one of them listen on port "+strconv.Itoa(int(step.to.port)), "%s is a host of the listeners %s", step.to.name, strings.Join(where, ", "))
	case back[found[0]] == nil:
		c.problem(at, "add step_up_for with the origin of this route, and client_auth.mode: require, to that host", "the host %s takes no part in a step-up", step.to.text)
	default:
		return found[0]
	}
	return nil
}
