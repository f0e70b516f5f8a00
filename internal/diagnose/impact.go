package diagnose

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"countersign/internal/hostname"
	"countersign/internal/policy"
	"countersign/internal/reason"
	"countersign/internal/snapshot"
	"countersign/internal/trust"
)

// Seen is a client of the past that a changed configuration is asked about.
type Seen struct {
	// Presented is what it sent, its own certificate first: of one that is Unproven at once, of others at one time or another.
	Presented []*x509.Certificate
	// Uses are where it was let in.
	Uses []Use
	// Unproven says that it was refused before it had to prove that it holds the key.
	Unproven bool
	// LeafOnly says that it may have sent certificates that are not in Presented.
	LeafOnly bool
	// Refused is why it was refused the last time; Unset for let in. It stands for what cannot be judged here of the
	// configuration in force.
	Refused reason.Reason
	// Path and Method are of a request that it made, empty for none.
	Method, Path string
	// Address is where that request came from; the zero value where no record says it.
	Address netip.Addr
	// OtherHosts is how many uses are not in Uses, because there was no room for their hosts.
	OtherHosts int
}

// Use is a host that a client used.
type Use struct {
	Listener, Host string
	// Unnamed says that it asked for no name that a host has, and the listener's default_host stood in.
	Unnamed bool
	// Version is the newest of TLS that it was seen with, as crypto/tls names it.
	Version string
	Count   int64
	Last    time.Time
	// CountTLS12 of them were with TLS 1.2, LastTLS12 the last of those: one certificate may be that of several programs.
	CountTLS12 int64
	LastTLS12  time.Time
}

// old is the part of u that was with TLS 1.2, where newer ones are what u tells of.
func (u Use) old() (Use, bool) {
	version := tls.VersionName(tls.VersionTLS12)
	if u.CountTLS12 == 0 || u.Version == version {
		return Use{}, false
	}
	u.Version, u.Count, u.Last = version, u.CountTLS12, u.LastTLS12
	return u, true
}

// Change is a client for which the two configurations differ.
type Change struct {
	Subject  string    `json:"subject"`
	Issuer   string    `json:"issuer"`
	SHA256   string    `json:"sha256"`
	Listener string    `json:"listener"`
	Host     string    `json:"host"`
	Method   string    `json:"method,omitempty"`
	Path     string    `json:"path,omitempty"`
	Count    int64     `json:"count"`
	Last     time.Time `json:"last_seen"`
	// Reason is why it is refused: by the proposed configuration where it would newly be refused, by the present one where
	// it would newly be admitted.
	Reason   string `json:"reason"`
	Expected string `json:"expected,omitempty"`
	Found    string `json:"found,omitempty"`
	Next     string `json:"next,omitempty"`
	// Possession is not_proven for a certificate that was refused before anybody had to show its key.
	Possession string `json:"possession,omitempty"`
}

// Impact is what a change of the configuration would mean for clients that were seen.
type Impact struct {
	// Asked is how many pairs of a client and a host were judged under both configurations.
	Asked int `json:"asked"`
	// Refused would newly be refused, Admitted newly be let in; those seen last first.
	Refused  []Change `json:"newly_refused"`
	Admitted []Change `json:"newly_admitted"`
	// Undecided are those whose answer rests on something that is not known here, such as an answer of an OCSP responder,
	// which certificates they sent, or a header that a rule reads.
	Undecided []Change `json:"undecided,omitempty"`
	// Recorded is how many rest on such an answer under the configuration in force, so that the record of how they ended
	// the last time stands for it. Where both configurations want the same answers, they end alike.
	Recorded int `json:"judged_by_record,omitempty"`
	// Unread is how many rows of the journal could not be judged.
	Unread int `json:"unread,omitempty"`
	// Open says for whom else the change could mean something that cannot be judged here: as long as it says anything, nobody
	// knows that no client is concerned.
	Open []string `json:"open,omitempty"`
	// Changes are what is proposed, in words, where there is no file that says it.
	Changes []string `json:"changes,omitempty"`
	// Notes are what else the lists above do not say.
	Notes []string `json:"notes,omitempty"`
}

// Replay judges clients under two configurations.
type Replay struct {
	now, proposed *Setup
	// Path and Method are of the request that every client is asked about; empty for none.
	Path, Method string
	// partly counts clients of whom not all hosts are kept.
	partly int
	others map[[2]*snapshot.Host]bool // whether the routes of two hosts ask different things
	Impact
}

// NewReplay begins a replay.
func NewReplay(now, proposed *Setup) *Replay {
	return &Replay{now: now, proposed: proposed, others: make(map[[2]*snapshot.Host]bool), Impact: Impact{Refused: []Change{}, Admitted: []Change{}}}
}

// ReadsAddress reports whether a route of either configuration asks for the address of the client.
func (r *Replay) ReadsAddress() bool {
	for _, s := range []*snapshot.Snapshot{r.now.Snapshot, r.proposed.Snapshot} {
		for _, l := range s.Listeners {
			for _, h := range l.Hosts {
				for _, rule := range h.Routes.Rules() {
					if rule.When != nil && len(rule.When.Sources) > 0 || rule.Value.Allow != nil && slices.Contains(rule.Value.Allow.Reads(), clientIP) {
						return true
					}
				}
			}
		}
	}
	return false
}

// note notes what changes for clients without a certificate, and what else is not judged.
func (r *Replay) note() {
	for _, l := range r.now.Snapshot.Listeners {
		if !l.Protocol.Terminates() {
			continue
		}
		at, on := r.proposed.Snapshot.Listeners[l.Name], "listener "+show(l.Name)
		proposed := make(map[string]*snapshot.Host)
		if at != nil {
			for _, h := range at.Hosts {
				for _, name := range h.Names {
					proposed[name] = h
				}
			}
		}
		anonymous := false // some of its hosts are for clients without a certificate too
		for _, h := range l.Hosts {
			anonymous = anonymous || h.Auth.Mode != policy.Require
			becomes := make(map[*snapshot.Host][]string)
			for _, name := range h.Names {
				to := proposed[name]
				if to == nil {
					to, _ = counterpart(r.proposed.Snapshot, l.Name, name)
				}
				becomes[to] = append(becomes[to], name)
			}
			for to, names := range becomes {
				where := show(names[0])
				if more := len(names) - 1; more > 0 {
					where += fmt.Sprintf(" and %d more names", more)
				}
				where += " on " + on
				r.noteAnonymous(h, to, where)
				if to != nil && at.Protocol.Terminates() && r.differ(h, to) {
					r.noteDemands(where)
					r.noteNobody(h, to, Use{Listener: l.Name, Host: names[0]}, where)
				}
			}
		}
		if h := l.Host(nil); h != nil && at != nil {
			to, where := at.Host(nil), on+" without the name of one of its hosts"
			r.noteAnonymous(h, to, where)
			if to != nil && at.Protocol.Terminates() && r.differ(h, to) {
				r.noteDemands(where)
				r.noteNobody(h, to, Use{Listener: l.Name, Unnamed: true}, where)
			}
		}
		if at == nil || !at.Protocol.Terminates() {
			continue
		}
		r.noteNew(l, at, on)
		if at.TLS.MinVersion > l.TLS.MinVersion && anonymous {
			r.Open = append(r.Open, "clients without a certificate that speak nothing newer than "+tls.VersionName(at.TLS.MinVersion-1)+" would be refused on "+on+
				"; they leave nothing to be counted by")
		}
		if at.TLS.MinVersion < tls.VersionTLS13 && !slices.Equal(l.TLS.Ciphers, at.TLS.Ciphers) || !slices.Equal(l.TLS.Groups, at.TLS.Groups) {
			r.Open = append(r.Open, on+" would offer other cipher suites or groups than now: which ones clients have is not kept")
		}
		if l.LocalOnly != at.LocalOnly || !slices.Equal(l.Sources, at.Sources) {
			r.Open = append(r.Open, on+" would take connections from other addresses than now (sources): by address nobody is judged")
		}
	}
	for _, list := range []*[]string{&r.Open, &r.Notes} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
}

// noteNew notes what changes for who asks for names that get a host of their own: a wildcard or the default host has them now.
func (r *Replay) noteNew(l, at *snapshot.Listener, on string) {
	has := make(map[string]bool)
	for _, h := range l.Hosts {
		for _, name := range h.Names {
			has[name] = true
		}
	}
	for _, to := range at.Hosts {
		for _, name := range to.Names {
			if has[name] {
				continue
			}
			h, _ := counterpart(r.now.Snapshot, l.Name, name)
			if h == nil {
				continue
			}
			where := show(name) + " on " + on
			r.noteAnonymous(h, to, where)
			if r.differ(h, to) {
				r.noteDemands(where)
				r.noteNobody(h, to, Use{Listener: l.Name, Host: name}, where)
			}
			if h == l.Host(nil) && (h.Auth.Enforced() != to.Auth.Enforced() || to.Auth.Enforced() && h.Auth.Store.Sum() != to.Auth.Store.Sum()) {
				r.Open = append(r.Open, "clients that ask for "+where+" come to the default host now: which of them do is not kept")
			}
		}
	}
}

// noteAnonymous notes what changes for clients without a certificate where h becomes to, nil for nothing.
func (r *Replay) noteAnonymous(h, to *snapshot.Host, where string) {
	becomes := "there is no host for them any more"
	if to != nil {
		becomes = h.Auth.Mode.String() + " becomes " + to.Auth.Mode.String()
	}
	switch before, after := h.Auth.Mode == policy.Require, to == nil || to.Auth.Mode == policy.Require; {
	case after && !before:
		r.Open = append(r.Open, "clients without a certificate would be refused at "+where+" ("+becomes+"); they leave nothing to be counted by")
	case before && !after:
		r.Notes = append(r.Notes, "clients without a certificate would be let in at "+where+" ("+becomes+")")
	}
}

// noteDemands notes that the routes of a host would ask other things than now.
func (r *Replay) noteDemands(where string) {
	text := "routes of " + where + " would ask other things of clients than now: "
	if r.Path != "" {
		r.Notes = append(r.Notes, text+"judged are requests that rules denied, and one for the path that is given, of every client")
		return
	}
	r.Open = append(r.Open, text+"of requests only those that rules denied are judged; with --path one of every client is")
}

// noteNobody notes what becomes of the request that is asked about without a certificate, where h becomes to.
func (r *Replay) noteNobody(h, to *snapshot.Host, u Use, where string) {
	if r.Path == "" || h.Auth.Mode == policy.Require || to.Auth.Mode == policy.Require { // noteAnonymous tells of those
		return
	}
	c := &Seen{Path: r.Path, Method: r.Method}
	before, err := meet(r.now, c, &u, nil)
	if err != nil {
		return
	}
	after, err := meet(r.proposed, c, &u, nil)
	switch {
	case err != nil || after.why == reason.Unset || before.why != reason.Unset && !before.undecided(): // nobody is refused who was let in
	case before.undecided() && after.undecided() && before.alike(&after):
	case before.undecided() || after.undecided():
		r.Open = append(r.Open, "clients without a certificate may be refused "+show(r.Path)+" of "+where+", which rests on what is not known of them; they leave nothing to be counted by")
	default:
		r.Open = append(r.Open, "clients without a certificate would be refused "+show(r.Path)+" of "+where+" ("+after.why.String()+"); they leave nothing to be counted by")
	}
}

// differ reports whether the routes of two hosts ask different things of clients.
func (r *Replay) differ(h, to *snapshot.Host) bool {
	key := [2]*snapshot.Host{h, to}
	other, known := r.others[key]
	if !known {
		other = demands(h) != demands(to)
		r.others[key] = other
	}
	return other
}

// shape is all of a configuration that clients are judged by here.
func shape(s *snapshot.Snapshot) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.Listeners)) {
		l := s.Listeners[name]
		fmt.Fprintf(&b, "%q %s %d\n", name, l.Protocol, l.TLS.MinVersion)
		for _, h := range l.Hosts {
			fmt.Fprintf(&b, "%q %s %t", h.Names, h.Auth.Mode, h == l.Host(nil))
			if h.Auth.Store != nil {
				fmt.Fprintf(&b, " %x", h.Auth.Store.Sum())
			}
			b.WriteString(demands(h))
		}
	}
	return b.String()
}

// demands is what the routes of a host ask of clients.
func demands(h *snapshot.Host) string {
	var b strings.Builder
	for _, rule := range h.Routes.Rules() {
		to := rule.Value
		fmt.Fprintf(&b, "%q %t", pattern(rule), to.Required || to.StepUp != nil)
		if to.Allow != nil {
			fmt.Fprintf(&b, " %q", to.Allow.String())
		}
		if to.Store != nil {
			fmt.Fprintf(&b, " %x", to.Store.Sum())
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// counterpart finds a host of the one configuration in the other: by names, for these are what clients ask for.
func counterpart(s *snapshot.Snapshot, listener, host string) (*snapshot.Host, *snapshot.Listener) {
	l := s.Listeners[listener]
	if l == nil {
		return nil, nil
	}
	name, _, err := hostname.AppendCanonicalHost(nil, []byte(host))
	if err == nil {
		return l.Host(name), l
	}
	for _, h := range l.Hosts { // by a pattern
		if slices.Contains(h.Names, host) {
			return h, l
		}
	}
	return l.Host([]byte(host)), l
}

// ending is how a configuration meets a client.
type ending struct {
	why                   reason.Reason // Unset for let in
	expected, found, next string
	waiting               waiting // if it is for anything, the client would be let in if the answers are good
	host                  *snapshot.Host
	// rests is the content of the trust store that refused for something that rests on which certificates were sent; zero
	// where nothing does.
	rests [sha256.Size]byte
	// lacking is what is asked of the client with values that no record has, and then nobody knows how it ends; empty for
	// none. Equal text, equal ending.
	lacking string
	doubt   bool // whether it ends so rests on what the client sends here, or on how it ended here the last time
}

// restsOnChain reports whether other certificates than those that are kept might have led to another verdict: it is not about
// the client's own, and nothing is wrong with that.
func restsOnChain(e *trust.Examination) bool {
	v := &e.Verdict
	if v.Rule == reason.ClientCertTooMany || v.Rule == reason.ClientCertTooLarge {
		return true
	}
	return (v.Depth > 0 || v.Rule == reason.ClientCertUntrusted || v.Rule == reason.ClientCertConstraint || v.Rule == reason.ClientCertDepth) &&
		!slices.ContainsFunc(e.Checks, func(c trust.Check) bool { return c.Depth == 0 && c.Rule != reason.Unset })
}

// waiting is what a verdict rests on that only a running program has.
type waiting struct {
	asks   []trust.QueryKey    // answers of OCSP responders
	stores [][sha256.Size]byte // lists that trust stores, by content, would have fetched, or issuers for them that a client sent
	// The first refusal that would be none with a good answer.
	why             reason.Reason
	expected, found string
}

func (w *waiting) add(store *trust.Store, v *trust.Verdict) {
	if w.why == reason.Unset {
		w.why, w.expected, w.found = v.Reason, v.Expected, v.Found
	}
	if v.Rule != reason.OCSPUnavailable {
		w.stores = append(w.stores, store.Sum())
	}
	for _, q := range v.Ask {
		w.asks = append(w.asks, q.Key())
	}
}

// undecided is the ending of who waits.
func (w *waiting) undecided() ending {
	return ending{why: w.why, expected: w.expected, found: w.found, waiting: *w}
}

func (e *ending) undecided() bool { return e.waiting.why != reason.Unset || e.lacking != "" }

// alike reports whether two undecided endings are the same, whatever is not known here.
func (e *ending) alike(o *ending) bool {
	return e.lacking == o.lacking && e.waiting.alike(&o.waiting)
}

// alike reports whether the same answers let in, or refuse, under both.
func (w *waiting) alike(o *waiting) bool {
	return slices.Equal(w.asks, o.asks) && slices.Equal(w.stores, o.stores)
}

// Ask judges one client under both configurations, at each host that it used. An error is of a host that could not be asked
// about; the others were.
func (r *Replay) Ask(c *Seen) (failed error) {
	sent := []attempt{{*c, make(map[[sha256.Size]byte]*trust.Verdict)}}
	if !c.Unproven {
		for _, way := range ways(c.Presented) {
			sent = append(sent, attempt{*c, make(map[[sha256.Size]byte]*trust.Verdict)})
			sent[len(sent)-1].Presented = way
		}
	}
	both := func(u *Use) (before, after ending, err error) { return r.both(sent, u) }
	for _, u := range c.Uses {
		before, after, err := both(&u)
		if err != nil {
			failed = err
			continue
		}
		if r.Asked++; before.waiting.why != reason.Unset {
			r.Recorded++
		}
		r.compare(c, &u, before, after)
		old, ok := u.old()
		if !ok {
			continue
		}
		older, later, err := both(&old)
		if err == nil && (older.why != before.why || later.why != after.why || older.lacking != before.lacking || later.lacking != after.lacking) {
			r.compare(c, &old, older, later) // for anything else it is as with the newer version
		}
	}
	if c.OtherHosts > 0 {
		r.partly++
	}
	return failed
}

// attempt is a client with what it may have sent, and the verdicts on that as meet wants them.
type attempt struct {
	Seen
	verdicts map[[sha256.Size]byte]*trust.Verdict
}

// both judges a client under both configurations. The first attempt is with all that is kept of what it sent, others are with
// less: nobody knows at which host it sent which. What the configuration in force may have let it in with has to do under the
// other too: where some would and some would not, the ending is in doubt.
func (r *Replay) both(sent []attempt, u *Use) (before, after ending, err error) {
	let := 0 // attempts with which it may have been let in
	var same, open, lost []ending
	for i := range sent {
		b, err := meet(r.now, &sent[i].Seen, u, sent[i].verdicts)
		if err != nil {
			return before, after, err
		}
		a, err := meet(r.proposed, &sent[i].Seen, u, sent[i].verdicts)
		if err != nil {
			return before, after, err
		}
		if i == 0 {
			before, after = b, a
		}
		if b.why != reason.Unset && !b.undecided() {
			if i == 0 && r.alike(u) {
				return before, after, nil // with less it would fare the same under both
			}
			continue
		}
		if let++; let == 1 {
			before = b
		}
		switch {
		case a.why == reason.Unset, a.undecided() && b.undecided() && b.alike(&a):
			same = append(same, a)
		case a.undecided():
			open = append(open, a)
		default:
			lost = append(lost, a)
		}
		if i == 0 && len(same) == 1 && r.alike(u) {
			return before, after, nil
		}
	}
	switch {
	case let == 0:
	case len(same) == let:
		after = same[0]
	case len(lost) > 0:
		after = lost[0]
		after.doubt = len(lost) < let
	default:
		after = open[0]
		after.doubt = len(open) < let
	}
	return before, after, nil
}

// alike reports whether both configurations judge clients of a use by the same: then it does not matter what they sent.
func (r *Replay) alike(u *Use) bool {
	h, _ := counterpart(r.now.Snapshot, u.Listener, u.Host)
	to, _ := counterpart(r.proposed.Snapshot, u.Listener, u.Host)
	if h == nil || to == nil || u.Unnamed || h.Auth.Enforced() != to.Auth.Enforced() || r.differ(h, to) {
		return false
	}
	return !h.Auth.Enforced() || h.Auth.Store.Sum() == to.Auth.Store.Sum()
}

// maxWays bounds the chains that are tried of one client.
const maxWays = 32

// ways are the chains in what a client sent, each as far as it goes and with less, but for all of it.
func ways(presented []*x509.Certificate) (all [][]*x509.Certificate) {
	var climb func([]*x509.Certificate)
	climb = func(chain []*x509.Certificate) {
		if len(all) == maxWays {
			return
		}
		if len(chain) < len(presented) {
			all = append(all, chain)
		}
		top := chain[len(chain)-1]
		for _, ca := range presented[1:] {
			if bytes.Equal(ca.RawSubject, top.RawIssuer) && !slices.ContainsFunc(chain, ca.Equal) {
				climb(append(slices.Clip(chain), ca))
			}
		}
	}
	climb(presented[:1])
	return all
}

// compare lists a client for which the two configurations differ.
func (r *Replay) compare(c *Seen, u *Use, before, after ending) {
	if before.undecided() && after.undecided() && before.alike(&after) && !after.doubt {
		return
	}
	if before.lacking != "" && !after.doubt {
		if c.Path == "" || c.Refused != reason.PolicyDenied {
			e := after
			if e.why == reason.Unset {
				e = before
			}
			e.next = before.next
			r.Undecided = append(r.Undecided, changed(c, u, &e))
			return
		}
		before = ending{why: c.Refused, expected: before.expected, found: "that rules denied it"}
	}
	if before.undecided() && !after.doubt {
		switch {
		case after.why != reason.Unset && !after.undecided() && c.Refused != reason.Unset && (len(c.Uses) > 1 || c.Refused != reason.ClientCertRevoked):
			after.doubt = true // it may have been refused at another host only
		case c.Refused != reason.Unset:
			before = ending{why: c.Refused, expected: before.expected, found: "that it was refused the last time it came"}
		case c.Unproven: // refused, nobody knows any more why
			before.waiting = waiting{}
		default:
			before = ending{}
		}
	}
	if after.doubt || !after.undecided() && r.doubtful(c, &before, &after) {
		after.next = "see which certificates it sends here, for what is kept of them does not tell, and whether it is let in now: countersign explain --cert FILE, with all of them"
		r.Undecided = append(r.Undecided, changed(c, u, &after))
		return
	}
	switch {
	case after.undecided():
		r.Undecided = append(r.Undecided, changed(c, u, &after))
	case before.why == reason.Unset && after.why != reason.Unset:
		r.Refused = append(r.Refused, changed(c, u, &after))
	case before.why != reason.Unset && after.why == reason.Unset:
		in := changed(c, u, &before)
		in.Next = "" // there is nothing to mend
		r.Admitted = append(r.Admitted, in)
	}
}

// doubtful reports whether a client that both configurations refuse may be let in by the one in force: it was let in, once at
// least, and no part of what is kept of its certificates leads to that. Others may not be kept; or what is in force has changed
// since, and it is refused. Where both refuse by the same trust
// store and ask the same, nothing changes for it in either case. What its own certificate is refused for (it has expired, was
// revoked, has another purpose), and names and versions that are not served, are so whatever it sent.
//
// Of a request that rules denied nothing is open: it was refused, and its client is asked about too. One that the proposed
// configuration lets in is listed as admitted, though it may be let in now.
func (r *Replay) doubtful(c *Seen, before, after *ending) bool {
	if before.rests == ([sha256.Size]byte{}) || after.why == reason.Unset || c.Unproven || c.Refused == reason.PolicyDenied {
		return false
	}
	alike := before.rests == after.rests && before.why == after.why && (c.Path == "" || !r.differ(before.host, after.host))
	return !alike
}

// changed is a client that ends as e says.
func changed(c *Seen, u *Use, e *ending) Change {
	d := describe(c.Presented[0])
	sum := sha256.Sum256(c.Presented[0].Raw)
	out := Change{Subject: d.Subject, Issuer: d.Issuer, SHA256: hex.EncodeToString(sum[:]), Listener: show(u.Listener), Host: show(u.Host),
		Method: show(c.Method), Path: show(c.Path), Count: u.Count, Last: u.Last, Expected: e.expected, Found: e.found, Next: e.next}
	if c.Unproven {
		out.Possession = "not_proven"
	}
	if e.why != reason.Unset {
		out.Reason = e.why.String()
		if out.Next == "" {
			out.Next = e.why.Row().Next
		}
	}
	return out
}

// meet says how a configuration would end a handshake, and a request where there is one. The verdicts are those of package
// trust and, for a request, of Explain. verdicts are those on c by the content of the trust store: equal stores, equal verdicts.
func meet(s *Setup, c *Seen, u *Use, verdicts map[[sha256.Size]byte]*trust.Verdict) (e ending, err error) {
	name := u.Host
	if canonical, _, err := hostname.AppendCanonicalHost(nil, []byte(u.Host)); err == nil {
		name = string(canonical) // requests may name a port
	}
	h, l := counterpart(s.Snapshot, u.Listener, name)
	if u.Unnamed && l != nil {
		if h = l.Host(nil); h == nil {
			return ending{why: reason.SNIMissing, expected: "the name of a host, or a default_host on listener " + show(u.Listener), found: "neither"}, nil
		}
		name = h.Name
	}
	switch {
	case l == nil:
		return ending{why: reason.SNIUnknown, expected: "a listener " + show(u.Listener), found: "none", next: "a listener of another name is not looked for: compare the names"}, nil
	case h == nil:
		return ending{why: reason.SNIUnknown, expected: "a host " + show(u.Host) + " on listener " + show(u.Listener), found: "none"}, nil
	case !l.Protocol.Terminates():
		return ending{}, nil
	}
	if v := versionOf(u.Version); v != 0 && v < l.TLS.MinVersion {
		return ending{why: reason.TLSVersionUnsupported, expected: "at least " + tls.VersionName(l.TLS.MinVersion), found: u.Version + " at most, as far as it was seen"}, nil
	}
	var waits waiting
	a := &h.Auth
	if a.Enforced() && len(c.Presented) > 0 {
		sum := a.Store.Sum()
		v := verdicts[sum]
		if v == nil {
			now := a.Store.Verify(c.Presented, s.Now)
			v, verdicts[sum] = &now, &now
		}
		if !v.Accepted {
			if !s.waits(v, a.Store.Points(v)) && !(c.LeafOnly && v.Rule == reason.ClientCertUntrusted) {
				e := ending{why: v.Reason, expected: v.Expected, found: v.Found, host: h}
				if x := a.Store.Examine(c.Presented, s.Now); restsOnChain(x) {
					e.rests = sum
				}
				if v.Rule == reason.ClientCertEKU || v.Rule == reason.ClientCertEKUMissing {
					e.next = purpose(a.Store, v)
				}
				return e, nil
			}
			waits.add(a.Store, v)
		}
	}
	if c.Path == "" || !l.Protocol.Requests() || c.LeafOnly && waits.why != reason.Unset {
		return waits.undecided(), nil
	}
	// What a request is refused for is certain, whatever the answers are that a handshake waits for.
	x, err := inquire(s, &Question{Presented: c.Presented, Listener: l.Name, Host: strings.Replace(name, "*", "any", 1), Method: c.Method, Path: c.Path,
		Version: versionOf(u.Version), Client: c.Address, unknown: unrecorded(c, u)}, true)
	if err != nil {
		return ending{}, err
	}
	if x.lacks != nil {
		return ending{why: reason.PolicyDenied, expected: x.Expected, found: x.Found, next: x.Next, host: h, lacking: x.lacking, waiting: x.waiting}, nil
	}
	if x.Outcome == Refused {
		why, _ := reason.Parse(x.Reason)
		return ending{why: why, expected: x.Expected, found: x.Found, next: x.Next, host: h, rests: x.rests}, nil
	}
	return x.waiting.undecided(), nil
}

// unrecorded are variables of rules that no record has of a use, besides the address. What will be is not known of the time
// either.
func unrecorded(c *Seen, u *Use) []string {
	names := []string{headers, "connection.resumed", "connection.time"}
	if !strings.Contains(c.Path, "?") {
		names = append(names, query)
	}
	if versionOf(u.Version) == 0 {
		names = append(names, "connection.tls_version")
	}
	if u.Unnamed || strings.Contains(u.Host, "*") {
		names = append(names, "connection.server_name", "request.host")
	}
	return names
}

func versionOf(name string) uint16 {
	for v := uint16(tls.VersionTLS10); v <= tls.VersionTLS13; v++ {
		if tls.VersionName(v) == name {
			return v
		}
	}
	return 0
}

// Done ends the replay.
func (r *Replay) Done() *Impact {
	r.note()
	if r.partly > 0 && shape(r.now.Snapshot) != shape(r.proposed.Snapshot) {
		r.Open = append(r.Open, fmt.Sprintf("%d clients used more hosts than are kept of one: at the others nobody has judged them", r.partly))
	}
	for _, list := range [][]Change{r.Refused, r.Admitted, r.Undecided} {
		slices.SortStableFunc(list, func(a, b Change) int { return b.Last.Compare(a.Last) })
	}
	if r.Recorded > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("%d uses rest on what is not here (OCSP answers and lists of the running program, issuers that an unverified client sent): "+
			"for the configuration in force it counts how they ended the last time, and where the proposed one wants the same answers they end alike", r.Recorded))
	}
	return &r.Impact
}

// Print writes the impact for people, of each list at most limit lines.
func (i *Impact) Print(w io.Writer, limit int) error {
	p := &printer{w: w}
	for _, c := range i.Changes {
		p.line("change: %s", c)
	}
	p.line("%d uses of hosts by clients that were seen were judged under both configurations", i.Asked)
	list := func(title string, all []Change) {
		if len(all) == 0 {
			return
		}
		reasons := make(map[string]int)
		for _, c := range all {
			reasons[c.Reason]++
		}
		var counts []string
		for why, n := range reasons {
			if why != "" {
				counts = append(counts, fmt.Sprintf("%d %s", n, why))
			}
		}
		slices.Sort(counts)
		p.line("\n%s: %d (%s)", title, len(all), strings.Join(counts, ", "))
		for _, c := range all[:min(len(all), limit)] {
			where := c.Host
			if c.Path != "" {
				where = strings.TrimSpace(c.Method + " " + c.Host + c.Path)
			}
			unproven := ""
			if c.Possession != "" {
				unproven = ", key not proven"
			}
			p.line("  %s at %s on %s, %d times, last %s%s", c.Subject, where, c.Listener, c.Count, stamp(c.Last), unproven)
			p.line("     %s: expected %s, found %s", c.Reason, c.Expected, c.Found)
			if c.Next != "" {
				p.line("     next: %s", c.Next)
			}
		}
		if more := len(all) - limit; more > 0 {
			p.line("  and %d more", more)
		}
	}
	list("NEWLY REFUSED", i.Refused)
	list("NEWLY ADMITTED", i.Admitted)
	list("NOT KNOWN HERE", i.Undecided)
	for _, n := range slices.Concat(i.Open, i.Notes) {
		p.line("\nnote: %s", n)
	}
	switch {
	case len(i.Refused)+len(i.Admitted)+len(i.Undecided) > 0:
	case i.Unread+len(i.Open) > 0:
		p.line("no client is known here that would be treated in another way; not all could be judged (see the notes)")
	default:
		p.line("no client that was seen would be treated in another way")
	}
	return p.err
}
