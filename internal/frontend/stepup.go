package frontend

import (
	"bytes"
	"crypto/x509"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"countersign/internal/hostname"
	"countersign/internal/identity"
	"countersign/internal/message"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/route"
	"countersign/internal/snapshot"
	"countersign/internal/stepup"
)

// A browser that connected without a certificate cannot be asked for one later: TLS 1.3 has no renegotiation, and no
// browser takes part in what came in its place (docs/step-up.md). So a route with a step-up sends it to another host,
// whose handshake asks (begin), that host sends it back with a code (sendBack), the code becomes a session (welcomeBack),
// and from then on the session's cookie stands for the certificate, which is verified on each request (steppedUp).

// step is what the request at hand has to do with a step-up. The zero value is nothing.
type step struct {
	cookies   stepup.Cookies
	used      bool // the client is the session's, and not the connection's own
	site      *snapshot.Site
	presented []*x509.Certificate // of the session
	fragment  []byte
}

// stepped stands in lane.drawn for a client by step-up: the next request may be of another, so its headers are never used
// twice.
var stepped snapshot.Route

// takeCookies takes our cookies out of the request, on every host: browsers do not keep them apart by port, and no target
// shall learn a session that is good elsewhere.
func (c *lane) takeCookies(req *message.Request) {
	c.step = step{fragment: c.step.fragment[:0]}
	if c.pub.Sites == nil {
		return
	}
	for i := 0; i < len(req.Fields); i++ {
		f := &req.Fields[i]
		if len(f.Name) != len("cookie") || !message.EqualFold(f.Name, "cookie") {
			continue
		}
		rest, none := c.step.cookies.Read(f.Value)
		if f.Value = rest; none {
			req.Fields = slices.Delete(req.Fields, i, i+1)
			i--
		}
	}
}

// heard is what the record of the request at hand says of its client.
func (c *lane) heard() []byte {
	if c.step.used {
		return c.step.fragment
	}
	return c.told()
}

// reserved answers the paths of a host with a part in a step-up, which are never forwarded. It reports whether the request
// is for one of them.
func (c *lane) reserved(req *message.Request, read route.Path, host *snapshot.Host, client identity.Client) (reason.Reason, bool) {
	const prefix = stepup.Reserved
	path := read.Literal()
	switch {
	case !bytes.HasPrefix(path, []byte(prefix)) && !bytes.HasPrefix(read.Normal(), []byte(prefix)):
		return reason.Unset, false
	case read.Used() != 0 || !bytes.Equal(path, req.Path):
		return reason.PathUnsafe, true
	case string(path) == stepup.AskPath:
		return c.sendBack(req, host, client), true
	case string(path) == stepup.ReturnPath:
		return c.welcomeBack(req, host), true
	}
	return reason.RouteNotFound, true
}

// steppedUp returns who the client is for a route with a step-up: whom the connection's own certificate says, else whom
// the session says, whose chain is verified again. A browser without either is sent away with AnsweredHere.
func (c *lane) steppedUp(to *snapshot.Route, host *snapshot.Host, req *message.Request, client identity.Client) (identity.Client, reason.Reason) {
	cookie := c.step.cookies.Session
	if c.step.cookies.Bad {
		return client, c.refuseStep("each cookie of a step-up once, as it was set", "one twice, or changed")
	}
	session := c.f.steps.Session(cookie)
	if id, verified := client.Identity(); verified {
		if session != nil && session.Certificate != id.Fingerprint() { // B06
			return client, c.refuseStep("the certificate that the session was made with", "another one on the connection")
		}
		return c.clientFor(to, host, client)
	}
	site := c.siteOf(to.StepUp, req)
	if site == nil || session == nil || !session.Good(site.Key, to.StepUp.Lifetime, c.rec.Start) {
		if site != nil && navigates(req) {
			return client, c.begin(site, req)
		}
		if cookie != "" {
			return client, c.refuseStep("a session of this route", "one of another route or host, or one that is over")
		}
		c.rec.Expected, c.rec.Found = "a client certificate, or a browser that can be sent to "+to.StepUp.At.Name+" for it", "neither"
		return client, reason.RouteCertMissing
	}
	v := c.f.verify(to.StepUp.Store, session.Presented, c.rec.Start)
	if !v.Accepted {
		c.f.steps.End(cookie)
		c.rec.Expected, c.rec.Found = v.Expected, v.Reason.String()+": "+v.Found
		return client, reason.RouteCertRefused
	}
	who, err := believed(&v)
	if err == nil {
		client = who
		c.drawn = &stepped
		err = c.render(host, client, identity.ForwardedCerts{})
	}
	if err != nil {
		c.asked = nil // what is rendered is not whole
		c.rec.Fail(reason.IdentityTooLarge, err)
		return client, c.rec.Reason
	}
	c.step.used, c.step.site, c.step.presented = true, site, session.Presented
	c.step.fragment = append(record.Fragment(c.listener.Name, c.peer, client), `,"step_up":true`...)
	return client, reason.Unset
}

// refuseStep notes why a code, cookie or ask is not accepted.
func (c *lane) refuseStep(expected, found string) reason.Reason {
	c.rec.Expected, c.rec.Found = expected, found
	return reason.StepUpRefused
}

// siteOf finds the site of a route that a request is for, nil if it came under a name or port that nobody is sent back to.
func (c *lane) siteOf(s *snapshot.StepUp, req *message.Request) *snapshot.Site {
	name, port, err := hostname.AppendCanonicalHost(make([]byte, 0, hostname.MaxLen+6), req.Host)
	if err != nil {
		return nil
	}
	if port == 0 {
		port = 443
	}
	return s.Sites[string(strconv.AppendUint(append(name, ':'), uint64(port), 10))]
}

// navigates reports whether a request is a person's browser going to a page, which can be sent elsewhere and come back:
// nothing is lost with it, and what follows is shown to the person. A script or program gets a refusal that it can read.
func navigates(req *message.Request) bool {
	if string(req.Method) != http.MethodGet && !req.IsHead() || req.Framing != message.NoBody || req.WebSocketKey != nil || req.Expect100 {
		return false
	}
	page := false
	for i := range req.Fields {
		switch f := &req.Fields[i]; {
		case message.EqualFold(f.Name, "accept"):
			page = page || bytes.Contains(f.Value, []byte("text/html"))
		case message.EqualFold(f.Name, "sec-fetch-mode") && string(f.Value) != "navigate",
			// A frame could be anybody's, around a page that asks for a certificate.
			message.EqualFold(f.Name, "sec-fetch-dest") && string(f.Value) != "document",
			// Fetched in advance, without anybody there to choose a certificate.
			message.EqualFold(f.Name, "sec-purpose"), message.EqualFold(f.Name, "purpose"),
			message.EqualFold(f.Name, "x-requested-with"):
			return false
		}
	}
	return page
}

// redirect answers 303 to a location that is made of configured values and our own texts. cookies are Set-Cookie values.
func (c *lane) redirect(location string, cookies ...string) reason.Reason {
	// No-referrer, because codes stand in URLs; no-store comes with every answer of ours.
	c.reply = ours(http.StatusSeeOther, nil, field("Referrer-Policy", "no-referrer"), field("Location", location))
	for _, s := range cookies {
		c.reply.Fields = append(c.reply.Fields, field("Set-Cookie", s))
	}
	c.rec.Status = c.reply.Status
	return reason.AnsweredHere
}

// cookie is a Set-Cookie value. Lax, because the way back from the other host is a navigation from another site, which
// Strict would leave the cookie out of.
func cookie(name, value string, age time.Duration) string {
	return name + "=" + value + "; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=" + strconv.Itoa(int(age/time.Second))
}

// begin sends a browser to the host that asks for a certificate, and has it remember where it wanted to go.
func (c *lane) begin(site *snapshot.Site, req *message.Request) reason.Reason {
	target := string(req.Path)
	if req.HasQuery {
		target += "?" + string(req.Query)
	}
	if len(target) > stepup.MaxTarget || strings.ContainsFunc(target, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		c.rec.Expected, c.rec.Found = "a URL that can be come back to: "+strconv.Itoa(stepup.MaxTarget)+" bytes of plain ASCII", strconv.Itoa(len(target))+" bytes"
		return reason.RouteCertMissing
	}
	ask, remembered := c.f.steps.Begin(site.Key, target)
	return c.redirect(site.StepUp.To+ask, cookie(stepup.StepCookie, remembered, stepup.AskTime))
}

// value returns what a query of exactly key=value says.
func value(req *message.Request, key string) (string, bool) {
	v, ok := bytes.CutPrefix(req.Query, []byte(key+"="))
	return string(v), ok && string(req.Method) == http.MethodGet && navigates(req)
}

// sendBack gives a browser that has shown its certificate here a code, and sends it back to where the configuration says
// that it came from.
func (c *lane) sendBack(req *message.Request, host *snapshot.Host, client identity.Client) reason.Reason {
	text, ok := value(req, "ask")
	if !ok {
		return c.refuseStep("a browser that was sent here by a route with step_up", "another request")
	}
	if _, verified := client.Identity(); !verified || len(c.presented) == 0 || c.via.by != nil {
		c.rec.Expected, c.rec.Found = "a client certificate", "none"
		return reason.RouteCertMissing
	}
	ask, err := c.f.steps.Asked(text)
	if err != nil {
		return c.refuseStep("", err.Error())
	}
	site := c.pub.Sites[ask.Site]
	switch {
	case site == nil:
		return c.refuseStep("a route with step_up", "one that is no longer configured so")
	case site.StepUp.At != host:
		return c.refuseStep("the host that the route sends browsers to", "another one")
	}
	// Said here, where it can be seen which certificate was chosen, and not only after the way back.
	if v := c.f.verify(site.StepUp.Store, c.presented, c.rec.Start); !v.Accepted {
		c.rec.Expected, c.rec.Found = v.Expected, v.Reason.String()+": "+v.Found
		return reason.RouteCertRefused
	}
	return c.redirect(site.Origin + stepup.ReturnPath + "?code=" + c.f.steps.Issue(ask, c.presented))
}

// welcomeBack makes a session for a browser that comes back, and sends it to where it wanted to go.
func (c *lane) welcomeBack(req *message.Request, host *snapshot.Host) reason.Reason {
	code, ok := value(req, "code")
	if !ok {
		return c.refuseStep("a browser that was sent back by the host of a step-up", "another request")
	}
	back, err := c.f.steps.Redeem(code, c.step.cookies.Step) // before all else: whoever brings a code has used it up
	switch {
	case c.step.cookies.Bad:
		return c.refuseStep("each cookie of a step-up once, as it was set", "one twice, or changed")
	case err != nil:
		return c.refuseStep("", err.Error())
	}
	site := c.pub.Sites[back.Site]
	if site == nil || site.Host != host || c.siteOf(site.StepUp, req) != site {
		return c.refuseStep("the host that the step-up was begun at, as it is configured now", "another one")
	}
	if v := c.f.verify(site.StepUp.Store, back.Presented, c.rec.Start); !v.Accepted {
		c.rec.Expected, c.rec.Found = v.Expected, v.Reason.String()+": "+v.Found
		return reason.RouteCertRefused
	}
	id := c.f.steps.Open(back, c.step.cookies.Session)
	return c.redirect(site.Origin+back.Target, cookie(stepup.SessionCookie, id, site.StepUp.Lifetime), cookie(stepup.StepCookie, "", 0))
}

// restep is how often a client by step-up is looked at again while its request is under way: often enough that with
// lastExchange its end comes within 5 s.
const restep = time.Second

// overseer ends the exchange of a client by step-up whose session or trust ends meanwhile: no handshake stands for it, so
// the sweep knows nothing of it.
type overseer struct {
	c      *lane
	site   stepup.Key
	cookie string

	mu    sync.Mutex
	done  bool
	timer *time.Timer
}

// oversee begins to watch over the request at hand if its client is one by step-up. Call what it returns when the
// exchange is over.
func (c *lane) oversee() (done func()) {
	if !c.step.used {
		return func() {}
	}
	o := &overseer{c: c, site: c.step.site.Key, cookie: c.step.cookies.Session}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.timer = time.AfterFunc(restep, o.look)
	return o.end
}

func (o *overseer) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.done = true
	o.timer.Stop()
}

func (o *overseer) look() {
	defer o.c.f.guard()
	d := o.judge(time.Now())
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.done:
	case d != nil:
		o.c.end.CompareAndSwap(nil, d) // which the sweep executes
	default:
		o.timer.Reset(restep)
	}
}

// judge returns why the exchange has to end, nil if it may go on.
func (o *overseer) judge(now time.Time) *doom {
	site, session := o.c.f.current.Load().Sites[o.site], o.c.f.steps.Session(o.cookie)
	if site == nil || session == nil || !session.Good(o.site, site.StepUp.Lifetime, now) {
		return &doom{expected: "a session of this route", found: "one that is over", at: now}
	}
	if v := o.c.f.verify(site.StepUp.Store, session.Presented, now); !v.Accepted {
		o.c.f.steps.End(o.cookie)
		return &doom{expected: v.Expected, found: v.Reason.String() + ": " + v.Found, at: now}
	}
	return nil
}
