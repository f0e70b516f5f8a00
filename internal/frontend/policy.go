package frontend

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"countersign/internal/forward"
	"countersign/internal/identity"
	"countersign/internal/message"
	"countersign/internal/policy"
	"countersign/internal/reason"
	"countersign/internal/route"
	"countersign/internal/snapshot"
	"countersign/internal/trust"
)

// routed is who the client is for a route with a trust store of its own (A42): the chain that this store believes may be
// another one than the host's, and the last answer is remembered, as one client mostly asks for one route.
type routed struct {
	route   *snapshot.Route // of one configuration; nil for no answer
	client  identity.Client
	belief  trust.Belief
	answers uint64
	until   time.Time
}

// clientFor returns who the client is for a route, and renders its headers: the host's client, or what the route's own
// trust store says of the same certificates. It is asked on every request, whatever connections have been allowed before.
func (c *lane) clientFor(to *snapshot.Route, host *snapshot.Host, client identity.Client) (identity.Client, reason.Reason) {
	if !to.Required {
		return client, c.renderAgain(host, nil, client)
	}
	if _, verified := client.Identity(); !verified {
		c.rec.Expected, c.rec.Found = wantsCert, "none"
		return client, reason.RouteCertMissing
	}
	if to.Store == nil {
		return client, c.renderAgain(host, nil, client)
	}
	r := &c.routed
	if r.route != to || r.answers != to.Store.Answers() || !r.until.IsZero() && c.rec.Start.After(r.until) {
		*r = routed{answers: to.Store.Answers()}
		v := c.f.verify(to.Store, c.presented, c.rec.Start)
		if !v.Accepted {
			c.rec.Expected, c.rec.Found = v.Expected, v.Reason.String()+": "+v.Found
			return client, reason.RouteCertRefused
		}
		who, err := believed(&v)
		if err != nil {
			c.rec.Fail(reason.IdentityTooLarge, err)
			return client, c.rec.Reason
		}
		r.route, r.client, r.belief, r.until = to, who, v.Belief(), to.Store.GoodUntil(&v)
		c.drawn = nil
	}
	return r.client, c.renderAgain(host, to, r.client)
}

// renderAgain renders the headers about client if those that are there are of another route's client.
func (c *lane) renderAgain(host *snapshot.Host, as *snapshot.Route, client identity.Client) reason.Reason {
	if c.drawn == as || c.via.by != nil { // the headers of a trusted proxy's client are rendered with its assertion
		return reason.Unset
	}
	c.drawn = as
	if err := c.render(host, client, identity.ForwardedCerts{}); err != nil {
		c.asked = nil
		c.rec.Fail(reason.IdentityTooLarge, err)
		return c.rec.Reason
	}
	return reason.Unset
}

// factsOf gathers what expressions may read about the request.
func (c *lane) factsOf(req *message.Request, read route.Path, host *snapshot.Host, client identity.Client) *policy.Facts {
	if c.facts == nil {
		at := &policy.Connection{Listener: c.listener.Name, ServerName: string(c.name), Port: c.listener.port}
		at.ClientIP = c.address()
		if c.secure != nil {
			state := c.secure.ConnectionState()
			at.TLSVersion, at.Resumed = state.Version, state.DidResume
		}
		c.facts = &policy.Facts{Connection: at}
	}
	f := c.facts
	f.Client, f.Request, f.Path, f.Now = client, req, read, c.rec.Start
	f.Host = host.Name
	if len(c.askedName) > 0 {
		f.Host = c.askedName
	}
	return f
}

// explainPolicy notes in the record what an expression was and whom it did not allow. Of an expression that does not ask
// who the client is, that is the request.
func (c *lane) explainPolicy(why reason.Reason, rule *policy.Rule, client identity.Client) {
	if why != reason.PolicyDenied && why != reason.PolicyFailed {
		return
	}
	c.rec.Expected, c.rec.Found = "allow: "+rule.String(), "no verified client"
	if !slices.ContainsFunc(rule.Reads(), func(name string) bool { return strings.HasPrefix(name, "client.") }) {
		c.rec.Found = fmt.Sprintf("%.16s %.120q from %s", c.rec.Method, c.rec.Path, c.address())
	} else if id, ok := client.Identity(); ok {
		c.rec.Found = id.Subject()
	}
	if err := c.facts.Cause(); err != nil {
		c.rec.Detail = bounded(err)
	}
}

// shown is what was presented for the client of the request at hand: by a trusted proxy, in a step-up, or in the
// connection's own handshake.
func (c *lane) shown() []*x509.Certificate {
	switch {
	case c.via.used:
		return c.via.presented
	case c.step.used:
		return c.step.presented
	}
	return c.presented
}

// shadow notes what a stricter setting of the route would have refused. It decides nothing.
func (c *lane) shadow(to *snapshot.Route, req *message.Request, read route.Path, host *snapshot.Host, client identity.Client) {
	if s := to.ShadowStore; s != nil {
		if v := s.Verify(c.shown(), c.rec.Start); !v.Accepted {
			c.rec.Shadow = v.Reason
			return
		}
	}
	if rule := to.ShadowAllow; rule != nil {
		if allowed, err := rule.Would(c.factsOf(req, read, host, client)); err != nil {
			c.rec.Shadow = reason.PolicyFailed
		} else if !allowed {
			c.rec.Shadow = reason.PolicyDenied
		}
	}
}

// exempted answers a request of a client without a certificate that the host answers itself, and reports whether it was
// one. What a client says about itself does not matter (A37): only the path, in its one reading, and for a preflight the
// origin that is allowed to ask.
func (c *lane) exempted(x *snapshot.Exempt, req *message.Request, read route.Path, client identity.Client) bool {
	if _, verified := client.Identity(); verified || client.Why() != reason.ClientCertMissing {
		return false
	}
	if local, ok := x.Health[string(read.Literal())]; ok && read.Used() == 0 && (req.IsHead() || string(req.Method) == http.MethodGet) {
		c.reply = ours(local.Status, []byte(local.Body), field("Content-Type", "text/plain; charset=utf-8"))
		c.rec.Status = local.Status
		return true
	}
	if len(x.Origins) == 0 || string(req.Method) != http.MethodOptions {
		return false
	}
	var origin []byte
	var asks bool
	for i := range req.Fields {
		switch f := &req.Fields[i]; {
		case message.EqualFold(f.Name, "origin"):
			if origin != nil {
				return false
			}
			origin = f.Value
		case message.EqualFold(f.Name, "access-control-request-method"):
			asks = true
		}
	}
	if !asks || !slices.Contains(x.Origins, string(origin)) {
		return false
	}
	c.reply = ours(http.StatusNoContent, nil, field("Access-Control-Allow-Origin", string(origin)), field("Vary", "Origin"))
	c.reply.Fields = forward.AppendFields(c.reply.Fields, []byte(x.Preflight))
	c.rec.Status = http.StatusNoContent
	return true
}

// shadowed says what a stricter setting would have made of a client that was accepted.
func shadowed(auth *snapshot.ClientAuth, presented []*x509.Certificate, now time.Time) (v trust.Verdict, refused bool) {
	if auth.Shadow == nil {
		return v, false
	}
	v = judge(auth.Shadow, presented, trust.Belief{}, now)
	return v, !v.Accepted
}
