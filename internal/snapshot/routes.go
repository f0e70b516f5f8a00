package snapshot

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"countersign/internal/config"
	"countersign/internal/edit"
	"countersign/internal/message"
	"countersign/internal/policy"
	"countersign/internal/route"
)

// Action is what a route does with a request that it has let in.
type Action struct {
	// Groups are the pools to choose from by weight; nil where Route.Upstream is the only one. To chooses.
	Groups []Group
	// Redirect and Answer, of which one may be set, answer without a target.
	Redirect *edit.Redirect
	Answer   *edit.Answer
	// Request and Response are edits of heads on the way, and Response of the route's own answer too; nil for none.
	Request  *edit.Request
	Response *edit.Headers
	// Mirror is where copies go; nil for nowhere.
	Mirror *Mirror

	// Sticky says that To is to be given a number that stays the same for a client.
	Sticky bool

	weights uint64 // of all groups together
}

// Group is one of several pools.
type Group struct {
	Upstream string
	Weight   uint64
}

// Mirror is where copies of requests go.
type Mirror struct {
	Upstream string
	Percent  int
}

// Takes reports whether a request is copied; n is a random number.
func (m *Mirror) Takes(n uint64) bool { return m != nil && int(n%100) < m.Percent }

// AnswersHere reports whether the route answers by itself: nothing is forwarded, whoever asks.
func (r *Route) AnswersHere() bool { return r.Redirect != nil || r.Answer != nil }

// To chooses the pool of a request by weight; n is a random number, or one that stays the same for a client.
func (r *Route) To(n uint64) string {
	if r.Groups == nil {
		return r.Upstream
	}
	n %= r.weights
	for i := range r.Groups {
		if n < r.Groups[i].Weight {
			return r.Groups[i].Upstream
		}
		n -= r.Groups[i].Weight
	}
	return "" // not reached: the weights add up
}

// Upstreams are all pools that requests of the route go to, copies left out.
func (r *Route) Upstreams() []string {
	if r.Groups == nil && r.Upstream != "" {
		return []string{r.Upstream}
	}
	var all []string
	for _, g := range r.Groups {
		if g.Weight > 0 {
			all = append(all, g.Upstream)
		}
	}
	return all
}

// upstreamsOf are the names of all pools that a route leads to, copies included.
func upstreamsOf(r *config.Route) (names []string) {
	if r.Upstream != "" {
		names = append(names, r.Upstream)
	}
	for _, w := range r.Forward {
		names = append(names, w.Upstream)
	}
	if r.Mirror != nil {
		names = append(names, r.Mirror.Upstream)
	}
	return names
}

// matchText tells conditions apart: the path alone, where there is nothing else.
func matchText(m *config.Match) string {
	if m == nil {
		return ""
	}
	rest := *m
	if rest.Path = ""; isZero(rest) {
		return m.Path
	}
	text, err := json.Marshal(m)
	if err != nil {
		return m.Path // not reached: there are only texts and lists in it
	}
	return string(text)
}

func isZero(m config.Match) bool {
	return m.Path == "" && len(m.Paths)+len(m.PathGlob)+len(m.PathRegex)+len(m.Method)+len(m.Header)+len(m.Query)+len(m.Source) == 0 && m.Identity == nil
}

// refused reports whether the decoder told an error about the setting at path or about something in it: what looks left
// out may then be what was refused.
func (c *compiler) refused(path string) bool {
	if c.file.Config != nil {
		return false
	}
	return slices.ContainsFunc(c.problems, func(p config.Problem) bool {
		rest, in := strings.CutPrefix(p.Path, path)
		return in && !p.Warning && (rest == "" || rest[0] == '.' || rest[0] == '[')
	})
}

// routes compiles the routes of a host. Where a condition is wrong, nobody knows which requests the route is for, and nothing
// is said about what the routes leave to each other.
func (c *compiler) routes(path string, l *Listener, out *Host, h *config.Host, conf *config.Config) {
	unclear := c.refused(path)
	wrong := make(map[int]bool) // the routes, by number, of which it is not known where they lead
	var rules []route.Rule[*Route]
	for i, r := range h.Routes {
		at := config.Path(path, i)
		value := &Route{Number: i + 1, Upstream: r.Upstream, WebSocket: slices.Contains(r.Upgrade, "websocket")}
		mark := len(c.problems)
		c.action(at, value, r, l, conf)
		if c.problems[mark:].HasErrors() {
			wrong[i+1] = true
		}
		c.routePolicy(at, value, r, c.stepUp(at, value, r, l, out, h), h)
		if len(r.RateLimits)+len(r.Concurrency) > 0 {
			value.Gate = c.gate(at, "route", routeGate(l, out, r), l.Protocol, r.RateLimits, r.Concurrency)
		}
		rule := route.Rule[*Route]{Value: value, Number: i + 1}
		for _, name := range r.AllowPath {
			s, _ := route.ParseSpelling(name)
			rule.Allow |= s
		}
		mark = len(c.problems)
		rules = append(rules, c.matchers(config.Path(at, "match"), r.Match, rule, out)...)
		unclear = unclear || c.problems[mark:].HasErrors()
	}
	if unclear {
		return
	}
	table, err := route.NewTable(rules)
	if err != nil {
		c.problem(path, "", "%s", err)
		return
	}
	out.Routes = table
	c.bypassed(path, rules)
	c.loops(path, l, out, wrong)
}

// matchers makes the rules of one route: one for each of its paths, with the same conditions.
func (c *compiler) matchers(path string, m *config.Match, rule route.Rule[*Route], host *Host) []route.Rule[*Route] {
	if m == nil {
		return []route.Rule[*Route]{rule}
	}
	rule.When = c.when(path, m, host)
	var rules []route.Rule[*Route]
	add := func(kind route.Kind, patterns ...string) {
		for _, p := range patterns {
			rule.Pattern, rule.Kind = p, kind
			rules = append(rules, rule)
		}
	}
	if m.Path != "" {
		add(route.Plain, m.Path)
	}
	add(route.Plain, m.Paths...)
	add(route.Wild, m.PathGlob...)
	add(route.Expression, m.PathRegex...)
	if len(rules) == 0 {
		add(route.Plain, "")
	}
	return rules
}

// when compiles the conditions besides the path, nil for none.
func (c *compiler) when(path string, m *config.Match, host *Host) *route.When {
	w := new(route.When)
	for i, method := range m.Method {
		if err := route.CheckMethod(method); err != nil {
			c.problem(config.Path(path, "method", i), "write it in capital letters", "%s", err)
		}
		w.Methods = append(w.Methods, method)
	}
	for i, h := range m.Header {
		at := config.Path(path, "header", i)
		if h.Name == "" {
			continue // reported as missing already
		}
		is, err := route.NewHeader(h.Name, c.globs(config.Path(at, "values"), h.Values), c.regexps(config.Path(at, "regex"), h.Regex), h.Present)
		if err != nil {
			c.problem(at, "", "%s", err)
		}
		w.Headers = append(w.Headers, is)
	}
	for i, q := range m.Query {
		at := config.Path(path, "query", i)
		var is route.QueryIs
		if q.Key != "" {
			is.Key = &c.globs(config.Path(at, "key"), []string{q.Key})[0]
		}
		is.Values = c.globs(config.Path(at, "values"), q.Values)
		w.Queries = append(w.Queries, is)
	}
	for i, text := range m.Source {
		if prefix, ok := c.prefix(config.Path(path, "source", i), text); ok {
			w.Sources = append(w.Sources, prefix)
		}
	}
	if m.Identity != nil {
		w.Client = c.clientIs(config.Path(path, "identity"), m.Identity, host)
	}
	if len(m.Method)+len(m.Header)+len(m.Query)+len(m.Source) == 0 && m.Identity == nil {
		return nil
	}
	return w
}

// globs compiles texts with wildcards that are compared without regard to case. What is wrong stays, empty.
func (c *compiler) globs(path string, texts []string) []route.Glob {
	out := make([]route.Glob, len(texts))
	for i, text := range texts {
		var err error
		if out[i], err = route.CompileGlob(text, true); err != nil {
			at := config.Path(path, i)
			if strings.HasSuffix(path, ".key") {
				at = path
			}
			c.problem(at, "", "%q %s", text, err)
		}
	}
	return out
}

func (c *compiler) regexps(path string, texts []string) []route.Regexp {
	out := make([]route.Regexp, len(texts))
	for i, text := range texts {
		var err error
		if out[i], err = route.CompileRegexp(text); err != nil {
			c.problem(config.Path(path, i), "", "%q %s", text, err)
		}
	}
	return out
}

// clientIs compiles a condition on the verified client.
func (c *compiler) clientIs(path string, m *config.MatchIdentity, host *Host) *route.ClientIs {
	out := &route.ClientIs{Subjects: m.Subject, Issuers: m.Issuer, TrustDomains: m.SPIFFETrustDomain}
	for i, text := range m.SAN {
		name, err := route.ParseName(text)
		if err != nil {
			c.problem(config.Path(path, "san", i), "write dns:edge.test or uri:spiffe://corp.test/ns/*/sa/api", "%s", err)
		}
		out.Names = append(out.Names, name)
	}
	for i, text := range m.FingerprintSHA256 {
		sum, err := route.ParseFingerprint(text)
		if err != nil {
			c.problem(config.Path(path, "fingerprint_sha256", i), "", "%s", err)
		}
		out.Fingerprints = append(out.Fingerprints, sum)
	}
	for i, domain := range m.SPIFFETrustDomain {
		if domain == "" || strings.Trim(domain, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" {
			c.problem(config.Path(path, "spiffe_trust_domain", i), "write corp.test", "%q is not a SPIFFE trust domain", domain)
		}
	}
	out.Nobody = m.Present != nil && !*m.Present
	some := len(m.Subject)+len(m.Issuer)+len(m.SAN)+len(m.FingerprintSHA256)+len(m.SPIFFETrustDomain) > 0
	switch {
	case out.Nobody && some:
		c.problem(path, "remove present: false, or the rest", "who is nobody has no name")
	case m.Present == nil && !some:
		c.problem(path, "add present: true, or a name", "identity has no condition")
	case !out.Nobody && host.Auth.Mode != policy.Request && host.Auth.Mode != policy.Require:
		c.problem(path, "set the host's client_auth to mode request or require", "nobody is verified under the host's mode %s, so that no request would meet the condition", host.Auth.Mode)
	case out.Nobody && host.Auth.Mode == policy.Require:
		c.problem(path, "remove the condition, or set the host's client_auth to mode request", "the host requires a verified client, so that no request would meet the condition")
	}
	return out
}

// action compiles what a route does.
func (c *compiler) action(path string, out *Route, r *config.Route, l *Listener, conf *config.Config) {
	var kinds []string
	for kind, set := range map[string]bool{"upstream": r.Upstream != "", "forward": len(r.Forward) > 0, "redirect": r.Redirect != nil,
		"respond": r.Respond != nil, "maintenance": r.Maintenance != nil} {
		if set {
			kinds = append(kinds, kind)
		}
	}
	slices.Sort(kinds)
	switch len(kinds) {
	case 0:
		c.problem(path, "add upstream: NAME, or forward, redirect, respond or maintenance", "the route does nothing")
	case 1:
	default:
		c.problem(path, "keep one of them", "the route has %s; expected one", strings.Join(kinds, " and "))
	}
	if r.Upstream != "" {
		c.pool(config.Path(path, "upstream"), r.Upstream, l.Protocol, conf)
	}
	c.forwards(config.Path(path, "forward"), out, r, l, conf)
	over2 := func(name string) bool {
		u := conf.Upstreams[name]
		return u != nil && u.ProtocolVersion == "http2"
	}
	if len(r.Upgrade) > 0 {
		for _, name := range upstreamsOf(r) {
			if over2(name) && (r.Mirror == nil || r.Mirror.Upstream != name) {
				c.problem(config.Path(path, "upgrade"), "lead the route to an upstream of protocol_version http1", "upstream %q speaks HTTP/2, over which targets are not asked for WebSockets", name)
			}
		}
	}
	if r.Mirror != nil && over2(r.Mirror.Upstream) {
		c.problem(config.Path(path, "mirror"), "use an upstream of protocol_version http1 for copies", "upstream %q speaks HTTP/2, and copies are sent over HTTP/1.1", r.Mirror.Upstream)
	}
	if r.Redirect != nil {
		d := r.Redirect
		out.Redirect = edit.NewRedirect(edit.RedirectOptions{Scheme: d.Scheme, Host: d.Host, Port: d.Port, Path: d.Path, Query: d.Query, Status: d.Status,
			DropQuery: d.DropQuery, FromTLS: l.Protocol == HTTPS, Downgrade: d.AllowDowngradeToHTTPInsecure}, c.report(config.Path(path, "redirect")))
	}
	if r.Respond != nil {
		out.Answer = c.respond(config.Path(path, "respond"), r.Respond)
	}
	if r.Maintenance != nil {
		out.Answer = c.maintenance(config.Path(path, "maintenance"), r.Maintenance)
	}
	if out.AnswersHere() && len(upstreamsOf(&config.Route{Upstream: r.Upstream, Forward: r.Forward})) == 0 {
		c.nothingForwarded(path, r)
		if h := r.ResponseHeaders; h != nil {
			out.Response = c.headers(config.Path(path, "response_headers"), h, true)
			if out.Response.Drops([]byte("location")) {
				c.problem(config.Path(path, "response_headers"), "use redirect", "location cannot be edited in an answer of the program")
			}
		}
		return
	}
	c.edits(path, out, r)
	if r.Mirror != nil {
		at := config.Path(path, "mirror")
		c.pool(config.Path(at, "upstream"), r.Mirror.Upstream, l.Protocol, conf)
		out.Mirror = &Mirror{r.Mirror.Upstream, r.Mirror.Percent}
		if out.Mirror.Percent == 0 {
			out.Mirror.Percent = 100
		}
		if u := conf.Upstreams[r.Mirror.Upstream]; u != nil && u.ProtocolVersion == "http2" {
			c.problem(config.Path(at, "upstream"), "name an upstream of HTTP/1.1", "copies are made by HTTP/1.1, and upstream %q speaks HTTP/2", r.Mirror.Upstream)
		}
		if out.Mirror.Percent > 100 {
			c.problem(config.Path(at, "percent"), "use at most 100", "percent is %d", r.Mirror.Percent)
		}
		if slices.Contains(out.Upstreams(), r.Mirror.Upstream) {
			c.problem(config.Path(at, "upstream"), "name another upstream", "requests go to upstream %q anyway", r.Mirror.Upstream)
		}
	}
}

// report makes an edit.Report for the setting at path.
func (c *compiler) report(path string) edit.Report {
	return func(key, next, format string, args ...any) { c.problem(config.Path(path, key), next, format, args...) }
}

// nothingForwarded reports settings that have no meaning on a route that answers by itself.
func (c *compiler) nothingForwarded(path string, r *config.Route) {
	for key, set := range map[string]bool{"rewrite": r.Rewrite != nil, "request_headers": r.RequestHeaders != nil,
		"mirror": r.Mirror != nil, "request_id": r.RequestID != nil, "trace": r.Trace != "", "upgrade": len(r.Upgrade) > 0} {
		if set {
			c.problem(config.Path(path, key), "remove it, or give the route an upstream", "%s has no meaning on a route that forwards nothing", key)
		}
	}
}

const maxRouteWeight = 999 // as AWS ALB has it

func (c *compiler) forwards(path string, out *Route, r *config.Route, l *Listener, conf *config.Config) {
	seen := make(map[string]bool)
	for i, w := range r.Forward {
		at := config.Path(path, i)
		c.pool(config.Path(at, "upstream"), w.Upstream, l.Protocol, conf)
		if seen[w.Upstream] && w.Upstream != "" {
			c.problem(config.Path(at, "upstream"), "remove one, and add its weight to the other", "upstream %q is there twice", w.Upstream)
		}
		seen[w.Upstream] = true
		if w.Weight > maxRouteWeight {
			c.problem(config.Path(at, "weight"), "use at most 999", "weight is %d", w.Weight)
		}
		out.Groups = append(out.Groups, Group{w.Upstream, uint64(w.Weight)})
		out.weights += uint64(w.Weight)
	}
	if out.Sticky = r.ForwardSticky != ""; out.Sticky && len(r.Forward) == 0 {
		c.problem(strings.TrimSuffix(path, "forward")+"forward_sticky", "remove it, or use forward", "forward_sticky has no meaning without forward")
	}
	if len(r.Forward) > 0 && out.weights == 0 {
		c.problem(path, "give one of them a weight", "no upstream has a weight above 0, so that no request could go anywhere")
	}
}

func (c *compiler) respond(path string, r *config.Respond) *edit.Answer {
	body := []byte(r.Body)
	if r.BodyFile != "" {
		if r.Body != "" {
			c.problem(config.Path(path, "body_file"), "remove one of them", "both body and body_file are set")
		}
		body = c.content(config.Path(path, "body_file"), r.BodyFile)
	}
	return edit.NewAnswer(edit.AnswerOptions{Status: r.Status, ContentType: r.ContentType, Body: body, Headers: r.Headers}, c.report(path))
}

func (c *compiler) maintenance(path string, m *config.Maintenance) *edit.Answer {
	o := edit.MaintenanceOptions{RetryAfter: m.RetryAfter.Or(0), Title: m.Title, Text: m.Message}
	if m.HTMLFile != "" {
		o.HTML = c.content(config.Path(path, "html_file"), m.HTMLFile)
	}
	if m.JSONFile != "" {
		o.JSON = c.content(config.Path(path, "json_file"), m.JSONFile)
		if o.JSON != nil && !json.Valid(o.JSON) {
			c.problem(config.Path(path, "json_file"), "correct the file", "%s is not JSON", m.JSONFile)
		}
	}
	return edit.NewMaintenance(o, c.report(path))
}

// content is what a file holds that is sent as it is.
func (c *compiler) content(path, name string) []byte {
	data, _ := fixed(c, path, func() ([]byte, bool) { return c.read(path, name) })
	return data
}

// edits compiles the edits of heads on the way.
func (c *compiler) edits(path string, out *Route, r *config.Route) {
	out.Response = c.headers(config.Path(path, "response_headers"), r.ResponseHeaders, true)
	o := edit.RewriteOptions{Trace: r.Trace == "amzn"}
	if r.RequestID != nil {
		o.RequestID = c.requestID(config.Path(path, "request_id"), r.RequestID)
	}
	if w := r.Rewrite; w != nil {
		at := config.Path(path, "rewrite")
		o.Host = w.Host
		if p := w.Path; p != nil {
			if p.Prefix != nil {
				o.From, o.To = p.Prefix.From, p.Prefix.To
			}
			o.Regexp, o.Replace = p.Regex, p.Replace
			switch {
			case p.Prefix == nil && p.Regex == "":
				c.problem(config.Path(at, "path"), "add prefix, or regex and replace", "path has nothing to replace")
			case p.Prefix == nil && p.Replace == "", p.Prefix != nil && p.Replace != "":
				c.problem(config.Path(at, "path"), "write prefix: {from: /api, to: /v2}, or regex and replace", "regex and replace go together")
			}
			if len(r.AllowPath) > 0 {
				c.problem(config.Path(path, "allow_path"), "remove it, or do not rewrite the path", "a path that targets read in several ways cannot be rewritten: nobody knows which of them was meant")
			}
		}
		if q := w.Query; q != nil {
			o.SetQuery, o.RemoveQuery = q.Set, q.Remove
		}
		if w.Host == "" && w.Path == nil && w.Query == nil {
			c.problem(at, "add host, path or query, or remove it", "rewrite changes nothing")
		}
	}
	set := c.headers(config.Path(path, "request_headers"), r.RequestHeaders, false)
	if set != nil || r.RequestID != nil || r.Trace != "" || r.Rewrite != nil {
		out.Request = edit.NewRequest(set, o, c.report(config.Path(path, "rewrite")))
	}
}

func (c *compiler) headers(path string, h *config.HeaderEdits, response bool) *edit.Headers {
	if h == nil {
		return nil
	}
	return edit.NewHeaders(edit.HeaderOptions{Set: h.Set, Add: h.Add, Remove: h.Remove, Response: response}, c.report(path))
}

func (c *compiler) requestID(path string, r *config.RequestID) *edit.RequestID {
	listed := r.Trust == "from_listed_sources"
	if listed != (len(r.Sources) > 0) {
		c.problem(path, "write trust: from_listed_sources and sources: [10.0.0.0/8], or neither", "trust: from_listed_sources and sources go together")
	}
	var trusted []netip.Prefix
	for i, text := range r.Sources {
		if prefix, ok := c.prefix(config.Path(path, "sources", i), text); ok {
			trusted = append(trusted, prefix)
		}
	}
	return edit.NewRequestID(r.Header, trusted, c.report(path))
}

// bypassed warns of routes that ask something of clients, and whose conditions a client need only not meet to get to the
// same target by a route that does not ask.
func (c *compiler) bypassed(path string, rules []route.Rule[*Route]) {
	at := make(map[string][]int) // of plain paths
	for i, r := range rules {
		if r.Kind == route.Plain {
			at[r.Pattern] = append(at[r.Pattern], i)
		}
	}
	warned := make(map[int]bool)
	for i, r := range rules {
		if r.When == nil || warned[r.Number] || r.Value.demands() == "" || r.Value.AnswersHere() {
			continue
		}
		for _, j := range reaching(at, r.Pattern) {
			later := rules[j]
			if j <= i || later.Value == r.Value {
				continue
			}
			v := later.Value
			less := r.Value.Required && !v.Required || r.Value.Allow != nil && v.Allow == nil
			shared := slices.ContainsFunc(v.Upstreams(), func(name string) bool { return slices.Contains(r.Value.Upstreams(), name) })
			if less && shared && !v.AnswersHere() {
				c.warn(config.Path(path, r.Number-1, "match"), "give conditions to the route that asks less, so that what meets none of them is asked",
					"a request that does not meet the conditions goes to route %d, which leads to the same upstream and asks less of its client", later.Number)
				warned[r.Number] = true
			}
			whole := !strings.HasSuffix(r.Pattern, "/*") || later.Pattern+"/*" != r.Pattern // and not only the head of the prefix
			if warned[r.Number] || later.When == nil && whole {
				break
			}
		}
	}
}

// reaching returns, in order, the places at which a path that pattern is for may be met again: where the same path is, a
// prefix of it, or everything.
func reaching(at map[string][]int, pattern string) (places []int) {
	base := strings.TrimSuffix(pattern, "/*")
	places = append(append(places, at[""]...), at["/*"]...)
	if base != "" {
		places = append(places, at[base]...)
	}
	for end := 1; end < len(base); end++ {
		if base[end] == '/' {
			places = append(places, at[base[:end]+"/*"]...)
		}
	}
	if base != "" {
		places = append(places, at[base+"/*"]...)
	}
	slices.Sort(places)
	return places
}

// loops reports redirects that lead to the route itself, by following one from an example of its paths. Those of routes that
// are done are left out.
func (c *compiler) loops(path string, l *Listener, host *Host, done map[int]bool) {
	for _, r := range host.Routes.Rules() {
		if r.Value.Redirect == nil || r.Kind == route.Expression || done[r.Number] || r.When != nil && len(r.When.Queries) > 0 {
			continue // of those that ask for a query, it may be what changes
		}
		example := strings.NewReplacer("*", "x", "?", "x").Replace(r.Pattern)
		if example == "" || example[0] != '/' {
			example = "/" + example + "x"
		}
		req := &message.Request{Path: []byte(example)}
		facts := &edit.Facts{Secure: l.Protocol == HTTPS, Host: []byte(strings.Replace(strings.ToLower(host.Name), "*", "x", 1)), Port: 80}
		own := "http://" + string(facts.Host) + "/"
		if facts.Secure {
			facts.Port, own = 443, "https://"+string(facts.Host)+"/"
		}
		to, why := r.Value.Redirect.Location(nil, req, facts)
		there, here := strings.CutPrefix(string(to), own)
		if why == 0 && !here {
			continue
		}
		there, _, _ = strings.Cut("/"+there, "?")
		read, err := route.Analyze([]byte(there), nil)
		if err != nil && why == 0 {
			continue
		}
		if found, _, _ := host.Routes.Match(read); why != 0 || found == r.Value {
			c.problem(config.Path(path, r.Number-1, "redirect"), "lead to another host or port, or limit match so that it leaves out where the redirect leads",
				"%s would be sent to %s, which the same route redirects again", example, fmt.Sprintf("%.100s", there))
			done[r.Number] = true
		}
	}
}
