package diagnose

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"countersign/internal/certs"
	"countersign/internal/hostname"
	"countersign/internal/identity"
	"countersign/internal/message"
	"countersign/internal/policy"
	"countersign/internal/reason"
	"countersign/internal/route"
	"countersign/internal/snapshot"
	"countersign/internal/trust"
)

// Question is a client and what it asks for.
type Question struct {
	// Presented is what the client sends, its own certificate first; nothing for a client without one. File is the name of
	// the file it is of.
	Presented []*x509.Certificate
	File      string
	// Unparsable is why what the client sends cannot be read; nil if it can.
	Unparsable error
	// Listener may be empty where one listener has the host.
	Listener string
	// Host is asked for, with a port or without; ServerName is in the ClientHello, empty for Host.
	Host, ServerName string
	// Path is that of the request, with its query; empty to judge the handshake alone. Method is GET if empty.
	Method, Path string
	// Header are lines "Name: value" of the request.
	Header []string
	// Client is the address of the client, for rules about it. With the zero value nobody knows it: what rests on it is
	// undecided.
	Client netip.Addr
	// Version is that of TLS; 0 is TLS 1.3.
	Version uint16

	// unknown are variables of rules of which nobody knows what the client would have, besides its address.
	unknown []string
}

// AskError is a question that cannot be asked.
type AskError struct {
	Text, Next string
}

func (e *AskError) Error() string { return e.Text + "\nhint: " + e.Next }

const maxFile = 1 << 20

// ReadChain reads what a client would send from files: its own certificate first, and those of the chain file behind. An
// error of type *certs.Problem says what is wrong with a file; any other comes from a certificate that cannot be read, which
// a server would refuse.
func ReadChain(cert, chain []byte) (presented []*x509.Certificate, err error) {
	entries, err := certs.Entries(certs.CertFile, cert, maxFile, false)
	if err != nil {
		return nil, err
	}
	if chain != nil {
		more, err := certs.Entries("chain file", chain, maxFile, false)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(more, func(e certs.Entry) bool { return string(e.DER) == string(entries[0].DER) }) {
			entries = entries[:0] // the chain file is the whole of it
		}
		entries = append(entries, more...)
	}
	for i, e := range entries {
		c, err := x509.ParseCertificate(e.DER)
		if err != nil {
			at := e.Where
			if at == "" {
				at = "certificate " + strconv.Itoa(i+1)
			}
			return presented, fmt.Errorf("%s: %s", at, show(err.Error()))
		}
		presented = append(presented, c)
	}
	return presented, nil
}

// inquiry is the work on one question.
type inquiry struct {
	*Report
	s        *Setup
	q        *Question
	listener *snapshot.Listener
	host     *snapshot.Host // by server name
	asked    *snapshot.Host // by Host
	name     []byte         // canonical, asked for
	sni      []byte         // canonical, in the ClientHello
	client   identity.Client

	// assume goes on where an answer is wanted that only a running program has, as if that were good; waiting is for which.
	assume  bool
	waiting waiting
	rests   [sha256.Size]byte // as in ending

	unknown []string // variables of rules that the question does not tell
	lacks   []string // those of them that the verdict rests on; then it is undecided
	lacking string   // what is asked of the client with them: equal text, equal verdict
}

// Explain answers a question as the configuration would decide it now. The error is an *AskError.
func Explain(s *Setup, q *Question) (*Report, error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	x, err := inquire(s, q, false)
	if err != nil {
		return nil, err
	}
	return x.Report, nil
}

// check says what is wrong with the request alone: no client is refused for what nobody could have sent.
func (q *Question) check() error {
	switch {
	case q.Path == "" && q.Method != "":
		return &AskError{"--method is of a request, and no path is given", "give --path too, as --path /"}
	case q.Path == "" && len(q.Header) > 0:
		return &AskError{"--header is of a request, and no path is given", "give --path too, as --path /"}
	case q.Path == "":
		return nil
	case q.Path[0] != '/' && q.Path != "*":
		return &AskError{fmt.Sprintf("--path: expected a path that begins with /, found %s", quoted(q.Path)), "write it as --path /admin"}
	}
	if q.Method != "" {
		if err := route.CheckMethod(q.Method); err != nil {
			return &AskError{fmt.Sprintf("--method: %s", show(err.Error())), "write it as --method POST"}
		}
	}
	for _, line := range q.Header {
		if name, value, ok := strings.Cut(line, ":"); !ok || !isToken(name) || strings.ContainsAny(value, "\r\n\x00") {
			return &AskError{fmt.Sprintf("--header: expected Name: value, found %s", quoted(line)), "write it as --header 'X-Team: a'"}
		}
	}
	if len(q.Header) > maxHeader {
		return &AskError{fmt.Sprintf("--header: expected %d at most, found %d", maxHeader, len(q.Header)), "leave out those that no rule reads"}
	}
	return nil
}

// isToken reports whether text can be the name of a header (RFC 9110 section 5.6.2).
func isToken(text string) bool {
	return text != "" && !strings.ContainsFunc(text, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune("\"(),/:;<=>?@[\\]{}", r)
	})
}

// maxHeader bounds the headers of a question.
const maxHeader = 100

func inquire(s *Setup, q *Question, assume bool) (*inquiry, error) {
	x := &inquiry{Report: &Report{Asked: Asked{At: s.Now.UTC(), Host: show(q.Host), Method: show(q.Method),
		Path: show(q.Path)}}, s: s, q: q, assume: assume, unknown: slices.Clone(q.unknown)}
	if !q.Client.IsValid() {
		x.unknown = append(x.unknown, clientIP)
	}
	for _, c := range q.Presented {
		x.Certificates = append(x.Certificates, describe(c))
	}
	done, err := x.connection()
	if err != nil {
		return nil, err
	}
	if !done {
		done = x.certificate()
	}
	if !done && q.Path != "" {
		done = x.request()
	}
	if !done {
		x.end(reason.Unset, "", "", "")
		x.whole()
	}
	return x, nil
}

// whole says what the acceptance of a handshake leaves open.
func (x *inquiry) whole() {
	if x.q.Path == "" && x.listener.Protocol.Requests() {
		var demands []string
		for _, r := range x.asked.Routes.Rules() {
			if r.Value.Required || r.Value.Allow != nil || r.Value.Store != nil {
				demands = append(demands, show(pattern(r)))
			}
		}
		x.Sentence = "the connection is accepted"
		if len(demands) > 0 {
			x.Next = fmt.Sprintf("routes ask for more (%s): give --path to judge a request too",
				strings.Join(demands[:min(len(demands), 5)], ", "))
		}
	}
}

// connection finds listener and host. True is the end.
func (x *inquiry) connection() (done bool, err error) {
	q := x.q
	name, port, err := hostname.AppendCanonicalHost(nil, []byte(q.Host))
	if err != nil {
		return false, &AskError{fmt.Sprintf("--host %s is no host: %s", quoted(q.Host), show(err.Error())),
			"write a name, as --host api.example.com"}
	}
	x.name = name
	sni := name
	if q.ServerName != "" {
		if sni, err = hostname.AppendCanonicalSNI(nil, []byte(q.ServerName)); err != nil {
			x.step(Step{Section: SectionConnection, Check: "server_name", Result: Bad,
				Reason: reason.SNIInvalid.String(), Found: quoted(q.ServerName)})
			x.end(reason.SNIInvalid, "a host name", quoted(q.ServerName), "")
			return true, nil
		}
	} else if _, err := hostname.AppendCanonicalSNI(nil, name); err != nil {
		sni = nil // addresses are not sent (RFC 6066 section 3)
	}
	x.sni = sni
	if err := x.findListener(sni, port); err != nil {
		return false, err
	}
	l := x.listener
	x.Asked.Listener, x.Asked.Address = l.Name, l.Address
	x.step(Step{Section: SectionConnection, Check: "listener", Result: Note, Found: fmt.Sprintf("%s on %s, protocol %s",
		show(l.Name), show(l.Address), l.Protocol)})
	if x.sources() {
		return true, nil
	}
	if l.Protocol == snapshot.TCP {
		x.step(Step{Section: SectionConnection, Check: "mode", Result: Note,
			Found: "bytes are moved; nothing in them is looked at"})
		x.undecided("the target decides: this listener moves bytes", "ask the target itself: countersign explain --connect")
		return true, nil
	}
	x.host = l.Host(sni)
	if l.Protocol == snapshot.HTTP {
		x.host = l.Host(name)
	}
	if x.host == nil {
		return true, x.unknownHost(sni)
	}
	if x.asked = x.host; l.Protocol.Requests() {
		x.asked = l.Host(name)
	}
	st := Step{Section: SectionConnection, Check: "host", Result: Good, Found: show(x.host.Name)}
	if len(sni) == 0 && l.Protocol != snapshot.HTTP {
		st.Found += ", the default_host: a client that connects by address names no server"
	}
	x.step(st)
	switch {
	case l.Protocol == snapshot.Passthrough:
		x.step(Step{Section: SectionConnection, Check: "mode", Result: Note, Found: "passthrough: nothing is decrypted here"})
		x.undecided("the target decides: nothing is decrypted on this listener",
			"ask the target itself: countersign explain --connect")
		return true, nil
	case l.Protocol == snapshot.HTTP:
		x.client = identity.Absent(reason.Unset)
		x.step(Step{Section: SectionConnection, Check: "mode", Result: Note,
			Found: "plain HTTP: nobody is asked for a certificate, and none can be sent"})
	default:
		x.mode()
	}
	return false, nil
}

// sources judges the client's address. True is the end.
func (x *inquiry) sources() (done bool) {
	l := x.listener
	if !l.LocalOnly && l.Sources == nil {
		return false
	}
	st := Step{Section: SectionConnection, Check: "sources", Result: Good, Expected: "a loopback address", Found: x.q.Client.String()}
	if !l.LocalOnly {
		st.Expected = fmt.Sprintf("an address of %v", l.Sources)
	}
	ip := x.q.Client.Unmap()
	switch {
	case !ip.IsValid():
		st.Result, st.Found = Note, "others are refused; --from asks for an address"
	case !(l.LocalOnly && ip.IsLoopback()) && !slices.ContainsFunc(l.Sources, func(p netip.Prefix) bool { return p.Contains(ip) }):
		st.Result, st.Reason = Bad, reason.SourceRefused.String()
		next := ""
		if l.LocalOnly {
			next = "connect from this machine, or set sources: whoever connects here borrows our certificate for the target"
		}
		x.end(reason.SourceRefused, st.Expected, st.Found, next)
		done = true
	}
	x.step(st)
	return done
}

func (x *inquiry) undecided(sentence, next string) {
	x.Outcome, x.Sentence, x.Next = Undecided, sentence, next
}

// findListener chooses the listener that has the host.
func (x *inquiry) findListener(sni []byte, port uint16) error {
	all := x.s.Snapshot.Listeners
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	if want := x.q.Listener; want != "" {
		if x.listener = all[want]; x.listener == nil {
			return &AskError{fmt.Sprintf("no listener is named %s", quoted(want)), "use one of: " + strings.Join(names, ", ")}
		}
		return nil
	}
	rank := func(l *snapshot.Listener) int {
		_, p, _ := net.SplitHostPort(l.Address)
		there := l.Host(sni) != nil
		switch {
		case port != 0 && p != strconv.Itoa(int(port)):
			return 0
		case l.Protocol == snapshot.TCP:
			return 1
		case !there && !l.Protocol.Terminates():
			return 2
		case !there:
			return 3
		case l.Protocol == snapshot.HTTP:
			return 4
		case l.Protocol == snapshot.Passthrough:
			return 5
		}
		return 6
	}
	best := 0
	var fit []string
	for _, name := range names {
		switch r := rank(all[name]); {
		case r > best:
			best, fit = r, []string{name}
		case r == best:
			fit = append(fit, name)
		}
	}
	if best == 0 {
		return &AskError{fmt.Sprintf("no listener has port %d", port),
			"leave the port out, or name the listener: --listener " + strings.Join(names, "|")}
	}
	if len(fit) > 1 {
		return &AskError{fmt.Sprintf("%d listeners could be meant: %s", len(fit), strings.Join(fit, ", ")),
			"name one: --listener " + fit[0]}
	}
	x.listener = all[fit[0]]
	return nil
}

// unknownHost ends with a name that no host has.
func (x *inquiry) unknownHost(sni []byte) error {
	var names []string
	for _, h := range x.listener.Hosts {
		names = append(names, h.Names...)
	}
	why := reason.SNIUnknown
	switch {
	case x.listener.Protocol == snapshot.HTTP:
		why = reason.HostUnknown
	case len(sni) == 0:
		why = reason.SNIMissing
	}
	expected := "one of " + show(strings.Join(names, ", "))
	found := quoted(string(sni))
	next := fmt.Sprintf("ask for a name of this listener, or add %s to names of a host", quoted(string(sni)))
	if why == reason.SNIMissing {
		found, next = "no server name, as a client that connects by address sends none", "connect by name, or set default_host on listener "+x.listener.Name
	}
	x.step(Step{Section: SectionConnection, Check: "host", Result: Bad, Reason: why.String(), Expected: expected, Found: found})
	x.end(why, expected, found, next)
	return nil
}

// mode tells what the host asks of clients.
func (x *inquiry) mode() {
	a := &x.host.Auth
	found := map[policy.Mode]string{
		policy.Off:               "nobody is asked for a certificate",
		policy.Request:           "clients without a certificate are let in; one that is sent must verify",
		policy.Require:           "only clients whose certificate verifies",
		policy.RequestUnverified: "everybody is let in; the verdict is told to the target",
		policy.PassthroughChain:  "everybody is let in; the certificate goes to the target unverified",
	}[a.Mode]
	if a.Enforced() {
		switch {
		case a.Page:
			found += "; others get a page (on_failure: page)"
		case a.Reset:
			found += "; others get a TCP reset (on_failure: reset)"
		default:
			found += "; others get a TLS alert"
		}
	}
	st := Step{Section: SectionConnection, Check: "mode", Result: Note, Found: "client_auth " + a.Mode.String() + ": " + found}
	if a.Store != nil {
		st.Store = a.Store.Name()
		x.Asked.Store = a.Store.Name() + "@" + a.Store.Version()
		x.step(st)
		st = Step{Section: SectionConnection, Check: "trust_store", Result: Note, Store: a.Store.Name(),
			Found: a.Store.Name() + "@" + a.Store.Version() + ": " + a.Store.Rules()}
	}
	x.step(st)
}

// certificate judges what is presented under the host's mode. True is the end.
func (x *inquiry) certificate() (done bool) {
	if !x.listener.Protocol.Terminates() {
		return false
	}
	a := &x.host.Auth
	if x.q.Unparsable != nil && a.Mode != policy.Off {
		found := show(x.q.Unparsable.Error())
		x.step(Step{Section: SectionCertificate, Check: "parse", Result: Bad,
			Reason: reason.ClientCertUnparsable.String(), Expected: "certificates that can be read", Found: found})
		x.end(reason.ClientCertUnparsable, "certificates that can be read", found,
			"let the CA issue the certificate again: it breaks RFC 5280, and strict readers refuse it")
		return true
	}
	switch {
	case a.Mode == policy.Off:
		if len(x.q.Presented) > 0 {
			x.step(Step{Section: SectionCertificate, Check: "presented", Result: Note,
				Found: "the certificate is never sent: this host does not ask for one"})
		}
		x.client = identity.Absent(reason.Unset)
		return false
	case a.Mode == policy.PassthroughChain:
		x.client = identity.PassthroughChain(x.q.Presented)
		x.step(Step{Section: SectionCertificate, Check: "presented", Result: Note,
			Found: "nothing is verified here: the target decides"})
		return false
	case len(x.q.Presented) == 0:
		st := Step{Section: SectionCertificate, Check: trust.CheckPresented, Result: Note, Found: "no certificate"}
		if x.client = identity.Absent(reason.ClientCertMissing); a.Mode == policy.Require {
			st.Result, st.Reason, st.Expected = Bad, reason.ClientCertMissing.String(), "a client certificate"
			x.step(st)
			x.end(reason.ClientCertMissing, "a client certificate", "none",
				fmt.Sprintf("give the client a certificate of a CA of trust store %s: %s", a.Store.Name(), x.anchorNames(a.Store)))
			x.answered(a)
			return true
		}
		x.step(st)
		return false
	}
	x.hints(a)
	e := x.examine(a.Store, "")
	v := &e.Verdict
	if s := a.Shadow; s != nil && s.Store != nil {
		if sv := s.Store.Verify(x.q.Presented, x.s.Now); !sv.Accepted {
			x.step(Step{Section: SectionCertificate, Store: s.Store.Name(), Check: "shadow", Result: Odd,
				Reason: sv.Reason.String(), Expected: sv.Expected, Found: sv.Found})
		}
	}
	if !v.Accepted && !(a.Enforced() && x.assumes(a.Store, v)) {
		x.client = identity.Unverified(x.q.Presented, v.Reason)
		if a.Enforced() {
			x.refuse(a.Store, e)
			x.answered(a)
			return true
		}
		x.step(Step{Section: SectionCertificate, Check: "verdict", Result: Odd, Reason: v.Reason.String(),
			Expected: v.Expected, Found: v.Found, Store: a.Store.Name()})
		return false
	}
	id, err := identity.FromChain(v.Chain)
	if err != nil {
		x.step(Step{Section: SectionCertificate, Check: "identity", Result: Bad,
			Reason: reason.IdentityTooLarge.String(), Found: show(err.Error())})
		x.end(reason.IdentityTooLarge, "", show(err.Error()), "")
		return true
	}
	x.client = identity.Present(id)
	x.soon(v)
	return false
}

// answered says what a client gets whose certificate was refused: a page, or nothing over HTTP.
func (x *inquiry) answered(a *snapshot.ClientAuth) {
	if x.Status = 0; a.Page {
		x.Status = http.StatusForbidden
	}
}

// soonExpires is how long before its end an accepted certificate is warned of.
const soonExpires = certs.ExpiresSoon

func (x *inquiry) soon(v *trust.Verdict) {
	for d, c := range v.Chain {
		if left := c.NotAfter.Sub(x.s.Now); left > 0 && left < soonExpires && d > 0 {
			x.step(Step{Section: SectionCertificate, Check: "expires_soon", Result: Odd, About: subject(c), Depth: d,
				Found: "expires in " + span(left) + ", at " + stamp(c.NotAfter)})
		}
	}
	if v.Lenient != trust.LenientNot {
		x.step(Step{Section: SectionCertificate, Check: "lenient", Result: Odd, Store: v.Store,
			About: subject(v.Chain[0]), Found: "let in by accept.eku only (" + v.Lenient.String() + ")"})
	}
	if p := x.host.Proxy(x.client); p != nil {
		x.step(Step{Section: SectionCertificate, Check: "trusted_proxy", Result: Note,
			Found: "this client is listed in trusted_proxies: its requests are judged by whom it speaks for"})
	}
}

// refuse ends with the verdict of a trust store.
func (x *inquiry) refuse(store *trust.Store, e *trust.Examination) {
	v := &e.Verdict
	found := v.Found
	if v.Cause != nil && !strings.Contains(found, v.Cause.Error()) {
		found += " (" + show(v.Cause.Error()) + ")"
	}
	x.end(v.Reason, v.Expected, found, x.next(store, e))
	if restsOnChain(e) {
		x.rests = store.Sum()
	}
	if x.s.waits(v, x.Points) {
		x.Outcome = Undecided
	}
}

// waits reports whether a refusal comes from something that a running program would have asked for. points are the places
// of lists that could have helped.
func (s *Setup) waits(v *trust.Verdict, points []trust.Point) bool {
	if s.Fetched {
		return false
	}
	switch v.Rule {
	case reason.OCSPUnavailable:
		return len(v.Ask) > 0
	case reason.CRLMissing:
		return len(points) > 0 || slices.ContainsFunc(s.URLs, func(u URL) bool { return u.List == nil })
	}
	return false
}

// assumes reports whether a refusal is taken for an acceptance, because it waits for an answer.
func (x *inquiry) assumes(store *trust.Store, v *trust.Verdict) bool {
	if !x.assume || !x.s.waits(v, x.Points) {
		return false
	}
	x.waiting.add(store, v)
	return true
}

// examine asks the one verifier, and tells every check. kind is put before sections of a route's own trust store.
func (x *inquiry) examine(store *trust.Store, kind string) *trust.Examination {
	e := store.Examine(x.q.Presented, x.s.Now)
	x.Queries = append(x.Queries, e.Verdict.Ask...)
	x.Points = append(x.Points, store.Points(&e.Verdict)...)
	x.MorePaths = x.MorePaths || e.More
	add := func(section string, checks []trust.Check) {
		for i := range checks {
			x.step(x.stepOf(section, store, &checks[i]))
		}
	}
	add(kind+SectionCertificate, e.Checks)
	told := false
	for i := range e.Paths {
		p := &e.Paths[i]
		used := !told && slices.EqualFunc(p.Chain, e.Verdict.Chain, func(a, b *x509.Certificate) bool { return a.Equal(b) })
		out := Path{Store: store.Name(), Anchored: p.Anchored, Good: p.Good(), Used: used}
		for _, c := range p.Chain {
			out.Subjects = append(out.Subjects, subject(c))
		}
		if p.Anchored {
			out.Anchor = x.s.place(p.Chain[len(p.Chain)-1])
		}
		for j := range p.Checks {
			if p.Checks[j].Rule != reason.Unset {
				out.Fails = append(out.Fails, x.stepOf(kind+SectionPath, store, &p.Checks[j]))
			}
		}
		x.Paths = append(x.Paths, out)
		if told = told || used; used {
			add(kind+SectionPath, p.Checks)
		}
	}
	if !told && len(e.Paths) > 0 {
		add(kind+SectionPath, e.Paths[0].Checks)
	}
	return e
}

func (x *inquiry) stepOf(section string, store *trust.Store, c *trust.Check) Step {
	s := Step{Section: section, Store: store.Name(), Check: c.Kind, Result: Good, Depth: c.Depth, Expected: c.Expected,
		Found: c.Found}
	if c.Cert != nil {
		s.About = subject(c.Cert)
	}
	if c.Rule != reason.Unset {
		s.Result, s.Reason = Bad, c.Rule.String()
	} else if c.Kind == trust.CheckLists && c.Cert == nil {
		s.Result = Note
	}
	var from []string
	for _, l := range c.Lists {
		if age := x.s.Now.Sub(l.ThisUpdate()); age > 0 {
			s.Found += "; that list was made " + span(age) + " ago"
		}
		if place := x.s.Places[l.Sum()]; place != "" && !slices.Contains(from, show(place)) {
			from = append(from, show(place))
		}
	}
	if c.Responder != "" {
		from = append(from, show(c.Responder))
	}
	s.Source = strings.Join(from, ", ")
	if c.Kind == trust.CheckOCSP && c.Ask != nil && c.Rule == reason.Unset {
		s.Result = Odd
		if !x.s.Fetched {
			s.Found += "; --fetch asks"
		}
	}
	return s
}

// hints tells whether a client that goes by the list of CA names would send this certificate.
func (x *inquiry) hints(a *snapshot.ClientAuth) {
	hints := a.Store.Hints()
	st := Step{Section: SectionCertificate, Check: "hints", Result: Note, Store: a.Store.Name(),
		Found: "no CA names are sent to clients: they choose by themselves"}
	if _, why, err := trust.HintsFor(a.Store.Anchors(), false); err == nil && why != "" && len(hints) == 0 {
		st.Found += " (if hints is not set to none: " + show(why) + ")"
	}
	if len(hints) > 0 && a.Hints != nil {
		st.Expected = fmt.Sprintf("an issuer among the %d CA names that are sent to clients", len(hints))
		st.Result, st.Found = Odd, "none: clients that go by these names, such as browsers and Java, send no certificate"
		for _, c := range x.q.Presented {
			if slices.ContainsFunc(hints, func(h []byte) bool { return string(h) == string(c.RawIssuer) }) {
				st.Result, st.Found = Good, dn(c.RawIssuer)
				break
			}
		}
	}
	x.step(st)
}

// request judges a request over the connection. True is the end.
func (x *inquiry) request() (done bool) {
	q := x.q
	if !x.listener.Protocol.Requests() {
		x.step(Step{Section: SectionRequest, Check: "path", Result: Note,
			Found: "this listener moves bytes: paths are not looked at"})
		return false
	}
	fail := func(check string, why reason.Reason, expected, found, next string) bool {
		x.step(Step{Section: SectionRequest, Check: check, Result: Bad, Reason: why.String(), Expected: expected, Found: found})
		x.end(why, expected, found, next)
		return true
	}
	good := func(check, expected, found string) {
		x.step(Step{Section: SectionRequest, Check: check, Result: Good, Expected: expected, Found: found})
	}
	req, err := x.head()
	if err != nil {
		return fail("request", reason.BadHeader, "lines of the form Name: value", show(err.Error()), "")
	}
	switch string(req.Method) {
	case "CONNECT", "TRACE":
		return fail("method", reason.MethodRefused, "a method that is forwarded", string(req.Method), "")
	}
	host := x.asked
	if host == nil {
		return fail("host", reason.HostUnknown, "a host of the listener", quoted(string(x.name)), "")
	}
	connection := host.Policy
	if x.listener.Protocol != snapshot.HTTP {
		connection = x.host.Policy
	}
	ask := policy.Question{Serial: 1, Connection: connection, Asked: host.Policy, Mode: host.Auth.Mode, Client: x.client}
	if _, why := policy.Decide(&ask); why != reason.Unset {
		next := ""
		if why == reason.PolicyMismatch {
			next = fmt.Sprintf("connect with the server name %s: the connection was made under the policy of %s",
				quoted(string(x.name)), quoted(x.host.Name))
		}
		return fail("connection_policy", why, string(host.Policy), string(connection), next)
	}
	good("connection_policy", "", string(host.Policy))
	raw := req.Path
	if string(raw) == "*" {
		raw = []byte("/")
	}
	read, err := route.Analyze(raw, nil)
	if err != nil {
		return fail("path", reason.PathUnsafe, "a path that can be read in one way", show(err.Error()), "")
	}
	if x.exempted(host, req, read) {
		return true
	}
	if x.forks(host, req, read) {
		return true
	}
	to, index, verdict := host.Routes.Find(read, &route.Ask{Request: req, Source: q.Client, Client: x.client})
	switch verdict {
	case route.Matched:
	case route.NotFound:
		var all []string
		for _, r := range host.Routes.Rules() {
			all = append(all, pattern(r))
		}
		return fail("route", reason.RouteNotFound, "one of "+show(strings.Join(all, ", ")), quoted(string(read.Literal())), "")
	default:
		return fail("route", reason.PathUnsafe, "a spelling that the route allows", read.Used().String(), "")
	}
	rule := host.Routes.Rules()[index]
	leads := show(strings.Join(to.Upstreams(), ", "))
	if to.AnswersHere() {
		leads = "an answer of its own"
	}
	good("route", "", fmt.Sprintf("route %d of %s, %s, leads to %s", to.Number, show(host.Name), show(pattern(rule)), leads))
	client := x.client
	if to.Required || to.StepUp != nil {
		_, verified := client.Identity()
		if !verified {
			next := ""
			if to.StepUp != nil {
				next = "open the page in a browser, which is sent to " + show(to.StepUp.At.Name) + " to show its certificate; other clients connect there"
			}
			return fail("route_client_auth", reason.RouteCertMissing, "a client certificate", "none", next)
		}
		good("route_client_auth", "a client certificate", subject(x.q.Presented[0]))
		if to.Store != nil {
			e := x.examine(to.Store, "route ")
			if !e.Verdict.Accepted && !x.assumes(to.Store, &e.Verdict) {
				why := e.Verdict.Reason
				x.refuse(to.Store, e)
				next, outcome := x.Next, x.Outcome
				fail("route_trust_store", reason.RouteCertRefused, e.Verdict.Expected, why.String()+": "+e.Verdict.Found, next)
				x.Outcome = outcome
				return true
			}
			id, err := identity.FromChain(e.Verdict.Chain)
			if err != nil {
				return fail("identity", reason.IdentityTooLarge, "", show(err.Error()), "")
			}
			client = identity.Present(id)
			good("route_trust_store", "", to.Store.Name()+"@"+to.Store.Version())
		}
	}
	ask.Client, ask.Upstream = client, to.Upstream
	if to.Groups != nil {
		ask.Upstream = to.To(0)
	}
	if to.StepUp != nil {
		ask.Mode = policy.Require
	}
	_, why := policy.Decide(&ask)
	if ask.Allow = to.Allow; ask.Allow != nil {
		ask.Facts = x.facts(req, read, host, client)
		if lacks := x.open(ask.Allow, ask.Facts); why == reason.Unset && len(lacks) > 0 {
			x.expression(ask.Allow, ask.Facts, reason.Unset, lacks)
			where := fmt.Sprintf("allow of route %d of host %s reads %s", to.Number, show(host.Name), strings.Join(lacks, ", "))
			x.lack(lacks, "allow: "+oneLine(ask.Allow), where, demanded(to)+chainOf(client))
			return true
		}
	}
	_, why = policy.Decide(&ask)
	if ask.Allow != nil {
		x.expression(ask.Allow, ask.Facts, why, nil)
	}
	if why != reason.Unset {
		who := "no verified client"
		if id, ok := client.Identity(); ok {
			who = show(id.Subject())
		}
		next := ""
		if why == reason.PolicyDenied && ask.Allow != nil {
			next = fmt.Sprintf("use a client that the expression allows, or change allow of route %d of host %s", to.Number, show(host.Name))
			if !x.assume {
				next += ": the values above are what it saw"
			}
		}
		x.end(why, "allow: "+oneLine(ask.Allow), who, next)
		return true
	}
	if to.ShadowAllow != nil {
		facts := x.facts(req, read, host, client)
		if lacks := x.open(to.ShadowAllow, facts); len(lacks) > 0 {
			x.step(Step{Section: SectionRequest, Check: "shadow_allow", Result: Note,
				Found: fmt.Sprintf("a stricter expression reads %s, which is not known here", strings.Join(lacks, ", "))})
		} else if allowed, err := to.ShadowAllow.Would(facts); err != nil || !allowed {
			x.step(Step{Section: SectionRequest, Check: "shadow_allow", Result: Odd,
				Reason: reason.PolicyDenied.String(), Expected: oneLine(to.ShadowAllow), Found: "a stricter expression would deny"})
		}
	}
	return false
}

func oneLine(r *policy.Rule) string {
	if r == nil {
		return "everybody"
	}
	return show(strings.Join(strings.Fields(r.String()), " "))
}

// exempted ends with a request that the host answers itself to clients without a certificate.
func (x *inquiry) exempted(host *snapshot.Host, req *message.Request, read route.Path) bool {
	if _, verified := x.client.Identity(); host.Exempt == nil || verified || x.client.Why() != reason.ClientCertMissing {
		return false
	}
	local, ok := host.Exempt.Health[string(read.Literal())]
	if !ok || read.Used() != 0 || !req.IsHead() && string(req.Method) != "GET" {
		return false
	}
	x.step(Step{Section: SectionRequest, Check: "exempt", Result: Good,
		Found: fmt.Sprintf("answered here with status %d", local.Status)})
	x.end(reason.Unset, "", "", "")
	x.Sentence = "the request is answered here: it is exempt"
	return true
}

// head makes the request.
func (x *inquiry) head() (*message.Request, error) {
	method := x.q.Method
	if method == "" {
		method = "GET"
	}
	path, query, has := strings.Cut(x.q.Path, "?")
	if !strings.HasPrefix(path, "/") && path != "*" {
		return nil, fmt.Errorf("the path %s, which does not start with /", quoted(path))
	}
	if err := route.CheckMethod(method); err != nil {
		return nil, err
	}
	req := &message.Request{Method: []byte(method), Path: []byte(path), Query: []byte(query), HasQuery: has, Host: []byte(x.q.Host)}
	for _, line := range x.q.Header {
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || strings.ContainsAny(line, "\r\n\x00") || len(req.Fields) == maxHeader {
			return nil, errors.New(quoted(line))
		}
		req.Fields = append(req.Fields, message.Field{Name: []byte(name), Value: []byte(strings.TrimSpace(value))})
	}
	return req, nil
}

// facts are what expressions may read, as on a new connection.
func (x *inquiry) facts(req *message.Request, read route.Path, host *snapshot.Host, client identity.Client) *policy.Facts {
	at := &policy.Connection{Listener: x.listener.Name, ClientIP: x.q.Client}
	if x.listener.Protocol.Terminates() {
		if at.TLSVersion = x.q.Version; at.TLSVersion == 0 {
			at.TLSVersion = 0x0304
		}
		at.ServerName = string(x.sni)
	}
	if _, port, err := net.SplitHostPort(x.listener.Address); err == nil {
		n, _ := strconv.ParseUint(port, 10, 16)
		at.Port = uint16(n)
	}
	f := &policy.Facts{Client: client, Request: req, Path: read, Host: host.Name, Connection: at, Now: x.s.Now}
	if len(x.name) > 0 {
		f.Host = string(x.name)
	}
	return f
}

// Variables of rules that a question may not tell.
const (
	clientIP = "connection.client_ip"
	headers  = "request.headers"
	query    = "request.query"
)

// open returns the variables that the verdict of a rule rests on and that nobody knows: none where the rule says the same
// whatever they are. f is not used up.
func (x *inquiry) open(rule *policy.Rule, f *policy.Facts) (lacks []string) {
	for _, name := range rule.Reads() {
		if slices.Contains(x.unknown, name) {
			lacks = append(lacks, name)
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	// Without them a rule that comes to read one fails, whatever else it says.
	probe := policy.Facts{Client: f.Client, Request: f.Request, Path: f.Path, Host: f.Host, Connection: f.Connection, Now: f.Now}
	for _, name := range lacks {
		if strings.HasPrefix(name, "request.") {
			probe.Request = nil
		} else {
			probe.Connection = nil
		}
	}
	if _, err := rule.Would(&probe); err == nil && probe.Cause() == nil {
		return nil
	}
	return lacks
}

// lack ends with a question that has no answer without what is not known. asked is what is asked of the client with it.
func (x *inquiry) lack(lacks []string, expected, where, asked string) {
	x.lacks, x.lacking = lacks, asked
	x.undecided("it rests on what is not known here: "+where, "")
	x.Expected, x.Found = expected, strings.Join(lacks, ", ")+": not known"
	switch flags := lackFlags(lacks); {
	case !x.assume:
		x.Sentence, x.Next = "it rests on the address of the client, which is not given", "give --from with the client's address: "+where
	case flags != "":
		x.Next = "ask for one client at a time what the record does not say, with countersign explain" + flags + ": " + where
	default:
		x.Next = "compare by hand, for no record says it: " + where
	}
}

// lackFlags are those of explain that say what lacks.
func lackFlags(lacks []string) (flags string) {
	for _, f := range [][2]string{{clientIP, " --from ADDRESS"}, {headers, " --header 'NAME: VALUE'"}, {query, " --path '/PATH?QUERY'"}} {
		if slices.Contains(lacks, f[0]) {
			flags += f[1]
		}
	}
	return flags
}

// demanded is what a route asks of clients.
func demanded(to *snapshot.Route) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%t", to.Required || to.StepUp != nil)
	if to.Allow != nil {
		fmt.Fprintf(&b, " %q", to.Allow.String())
	}
	if to.Store != nil {
		fmt.Fprintf(&b, " %x", to.Store.Sum())
	}
	return b.String()
}

// chainOf is the verified chain of a client, as text.
func chainOf(client identity.Client) string {
	id, ok := client.Identity()
	if !ok {
		return " nobody"
	}
	h := sha256.New()
	for _, c := range id.Chain() {
		h.Write(c.Raw)
	}
	return fmt.Sprintf(" %x", h.Sum(nil))
}

// forks ends with a request of which nobody knows the route, because conditions of routes are about what is not known. For
// impact it is enough that all routes which it may take ask the same.
func (x *inquiry) forks(host *snapshot.Host, req *message.Request, read route.Path) (done bool) {
	about := map[int][]string{}
	rules := host.Routes.Rules()
	for i, r := range rules {
		if w := r.When; w != nil {
			for name, there := range map[string]bool{clientIP: len(w.Sources) > 0, headers: len(w.Headers) > 0, query: len(w.Queries) > 0} {
				if there && slices.Contains(x.unknown, name) {
					about[i] = append(about[i], name)
				}
			}
		}
	}
	if len(about) == 0 {
		return false
	}
	// The routes that it may take are found one after the other: with all that is not known as the first of them wants it,
	// then without that one. Each keeps conditions, so that none hides another.
	anywhere := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	may := slices.Clone(rules)
	for i, names := range about {
		w := *rules[i].When
		for _, name := range names {
			switch name {
			case clientIP:
				w.Sources = anywhere
			case headers:
				w.Headers = nil
			case query:
				w.Queries = nil
			}
		}
		may[i].When = &w
	}
	source := x.q.Client
	if slices.Contains(x.unknown, clientIP) {
		source = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	var lacks, patterns, asks []string
	unsure := func() { // which of them it may take
		for _, names := range about {
			lacks = append(lacks, names...)
		}
		patterns, asks = append(patterns, "others"), append(asks, "others "+demands(host))
	}
	for {
		table, err := route.NewTable(may)
		if err != nil {
			unsure()
			break
		}
		to, i, verdict := table.Find(read, &route.Ask{Request: req, Source: source, Client: x.client})
		if verdict != route.Matched {
			_, _, certain := host.Routes.Find(read, &route.Ask{Request: req, Source: x.q.Client, Client: x.client})
			if verdict == route.Unsafe && certain != route.Unsafe {
				unsure()
			} else {
				patterns, asks = append(patterns, "none"), append(asks, verdict.String())
			}
			break
		}
		patterns, asks = append(patterns, show(pattern(rules[i]))), append(asks, demanded(to))
		if about[i] == nil {
			break
		}
		lacks = append(lacks, about[i]...)
		never := *may[i].When
		never.Methods = []string{"\x00"}
		may[i].When = &never
	}
	if len(lacks) == 0 {
		return false // those that ask for it are of other paths
	}
	slices.Sort(lacks)
	lacks = slices.Compact(lacks)
	if x.assume && len(slices.Compact(slices.Clone(asks))) == 1 {
		return false
	}
	where := fmt.Sprintf("match of routes of host %s asks for %s", show(host.Name), strings.Join(lacks, ", "))
	x.step(Step{Section: SectionRequest, Check: "route", Result: Note, Found: "not known, one of: " + strings.Join(patterns, "; ")})
	x.lack(lacks, "one of the routes "+strings.Join(patterns, "; "), where, strings.Join(asks, "\n")+chainOf(x.client))
	return true
}

// expression tells what an allow expression saw. With lacks it saw too little.
func (x *inquiry) expression(rule *policy.Rule, facts *policy.Facts, why reason.Reason, lacks []string) {
	cause := facts.Cause()
	st := Step{Section: SectionRequest, Check: "allow", Result: Good, Expected: oneLine(rule), Found: "true"}
	if why != reason.Unset {
		if st.Result, st.Reason, st.Found = Bad, why.String(), "false"; cause != nil {
			st.Found = show(cause.Error())
		}
	}
	if len(lacks) > 0 {
		st.Result, st.Found = Note, "not known without "+strings.Join(lacks, ", ")
	}
	for _, name := range rule.Reads() {
		found := "not known, and not needed"
		switch {
		case slices.Contains(lacks, name):
			found = "not known"
		case !slices.Contains(x.unknown, name):
			found = rule.Shown(facts, name)
		}
		x.step(Step{Section: SectionRequest, Check: "value", Result: Note, About: name, Found: found})
	}
	x.step(st)
}

// pattern is the path of a route for people, with its conditions.
func pattern(r route.Rule[*snapshot.Route]) string {
	text := r.Pattern
	if text == "" {
		text = "/*"
	}
	if r.When != nil {
		text += " (" + r.When.String() + ")"
	}
	return text
}

func (x *inquiry) anchorNames(store *trust.Store) string {
	var names []string
	for _, a := range store.Anchors() {
		if len(names) == 3 {
			names = append(names, fmt.Sprintf("%d more", len(store.Anchors())-3))
			break
		}
		names = append(names, dn(a.RawSubject))
	}
	return strings.Join(names, "; ")
}
