package daemon

import (
	"cmp"
	"crypto/x509"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/internal/identity"
	"countersign/internal/reason"
	"countersign/internal/trust"
	"countersign/internal/upstream"
)

// state collects what stands somewhere else already when it is asked for. All labels come from the configuration, but for
// the URLs of revocation lists, which certificates may name; those are bounded too.
type state struct{ m *Main }

var descs []*prometheus.Desc

// desc makes the description of a metric that state collects.
func desc(name, help string, labels ...string) *prometheus.Desc {
	d := prometheus.NewDesc("countersign_"+name, help, labels, nil)
	descs = append(descs, d)
	return d
}

var (
	openDesc     = desc("upstream_connections", "Open connections to a target.", "upstream", "target")
	idleDesc     = desc("upstream_idle_connections", "Connections to a target that wait to be used again.", "upstream", "target")
	busyDesc     = desc("upstream_exchanges", "Requests under way to a target.", "upstream", "target")
	healthDesc   = desc("upstream_healthy", "1 if the target's health checks pass or it has none, else 0.", "upstream", "target")
	ejectedDesc  = desc("upstream_ejected", "1 if the target is out for what it answered, else 0.", "upstream", "target")
	statesDesc   = desc("upstream_targets", "Targets of an upstream by state: ready, unhealthy, ejected, and, by configuration, draining and disabled.", "upstream", "state")
	pendingDesc  = desc("upstream_pending", "Requests that wait for a connection because a limit is reached.", "upstream")
	failOpenDesc = desc("upstream_fail_open", "1 if health is ignored because too few targets are healthy, else 0.", "upstream")
	lookupDesc   = desc("upstream_unresolved_names", "Names of targets whose last lookup failed.", "upstream")
	eventsDesc   = desc("upstream_events_total", "What limits of an upstream did: queue_full, queue_timeout, circuit_open, ejection, retry, retry_refused.", "upstream", "event")

	conditionDesc = desc("condition", "How many things of this kind need the operator: reload_refused, list_fetch_failed, ocsp_responder_failing and others; the log says what they are.", "code")
	memoryDesc    = desc("memory_pressure", "0 while there is memory, 1 while addresses with many connections get no more, 2 while nobody does.")
	turnsDesc     = desc("handshake_turns", "TLS handshakes that compute (running), and that wait for their turn to (waiting).", "state")
	waitingDesc   = desc("event_loop_connections", "Connections that wait for a request in the event loop; 0 without experimental.event_loop.")
	layersDesc    = desc("event_loop_handshakes_total", "Handshakes with experimental.event_loop: records behind them are read and written by ours (own), or by crypto/tls (library), as all those of TLS 1.2 are.", "layer")
	ticketDesc    = desc("ticket_key_age_seconds", "Age of the key that session tickets are sealed with; it is replaced every hour.")

	thisDesc    = desc("revocation_list_this_update_seconds", "When the revocation list in force was made, in Unix time; 0 if there is no list yet. Fetched lists have their URL, those from files their issuer, of which the oldest counts.", "url", "issuer")
	nextDesc    = desc("revocation_list_next_update_seconds", "When the next revocation list is due, in Unix time; 0 if there is no list yet.", "url", "issuer")
	entriesDesc = desc("revocation_list_entries", "Revoked certificates on the list of a URL, or on all lists of an issuer from files.", "url", "issuer")

	ocspDesc       = desc("ocsp_exchanges_total", "Exchanges with OCSP responders by outcome, and questions that were turned away.", "outcome")
	ocspCacheDesc  = desc("ocsp_lookups_total", "OCSP answers that verdicts on certificates needed and that were known (hit), or not (miss).", "result")
	chainCacheDesc = desc("chain_lookups_total", "Verdicts on certificates whose chains were known from an earlier handshake (hit), or had to be built (miss).", "result")
	chainsDesc     = desc("chains", "Sets of client certificates whose chains are remembered.")

	serverDesc  = desc("certificate_not_after_seconds", "When the first of a host's own certificates with a key of this kind is over, in Unix time.", "listener", "host", "key")
	lentDesc    = desc("upstream_certificate_not_after_seconds", "When the first of the client certificates for targets of an upstream is over, in Unix time.", "upstream")
	caDesc      = desc("ca_not_after_seconds", "When the next CA certificate of a trust store is over, in Unix time; those that are over already are not counted.", "trust_store")
	anchorsDesc = desc("ca_certificates", "CA certificates of a trust store that are valid now, and that are not.", "trust_store", "state")
)

func (s state) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descs {
		ch <- d
	}
}

func (s state) Collect(ch chan<- prometheus.Metric) {
	c := collection{ch}
	conditions := make(map[string]int)
	for _, found := range s.m.Conditions() {
		conditions[found.Code]++
	}
	for code, n := range conditions {
		c.gauge(conditionDesc, float64(n), code)
	}
	c.gauge(memoryDesc, float64(s.m.front.Pressure()))
	c.gauge(ticketDesc, s.m.front.TicketAge().Seconds())
	running, waiting := s.m.front.Handshakes()
	c.gauge(turnsDesc, float64(running), "running")
	c.gauge(turnsDesc, float64(waiting), "waiting")
	c.gauge(waitingDesc, float64(s.m.front.Parked()))
	own, library := s.m.front.Layers()
	c.count(layersDesc, own, "own")
	c.count(layersDesc, library, "library")
	s.upstreams(c)
	s.lists(c)
	s.checks(c)
	s.certificates(c)
}

// upstreams collects how targets are.
func (s state) upstreams(c collection) {
	states := make(map[[2]string]int)
	seen := make(map[[2]string]bool) // one target may be in a pool twice
	for _, t := range s.m.front.Pools().Stats() {
		states[[2]string{t.Upstream, stateOf(&t)}]++
		if at := [2]string{t.Upstream, t.Target}; seen[at] {
			continue
		} else {
			seen[at] = true
		}
		c.gauge(openDesc, float64(t.Open), t.Upstream, t.Target)
		c.gauge(idleDesc, float64(t.Idle), t.Upstream, t.Target)
		c.gauge(busyDesc, float64(t.Busy), t.Upstream, t.Target)
		c.gauge(healthDesc, one(t.Healthy), t.Upstream, t.Target)
		c.gauge(ejectedDesc, one(t.Ejected), t.Upstream, t.Target)
	}
	for _, p := range s.m.front.Pools().PoolStats() {
		for _, name := range targetStates {
			c.gauge(statesDesc, float64(states[[2]string{p.Upstream, name}]), p.Upstream, name)
		}
		c.gauge(pendingDesc, float64(p.Pending), p.Upstream)
		c.gauge(failOpenDesc, one(p.FailOpen), p.Upstream)
		c.gauge(lookupDesc, float64(len(p.Unresolved)), p.Upstream)
		c.count(eventsDesc, p.QueueFull, p.Upstream, "queue_full")
		c.count(eventsDesc, p.QueueTimeouts, p.Upstream, "queue_timeout")
		c.count(eventsDesc, p.CircuitOpen, p.Upstream, "circuit_open")
		c.count(eventsDesc, p.Ejections, p.Upstream, "ejection")
		c.count(eventsDesc, p.Retries, p.Upstream, "retry")
		c.count(eventsDesc, p.RetriesRefused, p.Upstream, "retry_refused")
	}
}

// targetStates are what a target can be, each target one of them.
var targetStates = [...]string{"ready", "unhealthy", "ejected", "draining", "disabled"}

// stateOf is the one word for how a target is. What the operator wants comes first.
func stateOf(t *upstream.Stats) string {
	switch {
	case t.State != upstream.Active:
		return t.State.String()
	case !t.Healthy:
		return "unhealthy"
	case t.Ejected:
		return "ejected"
	}
	return "ready"
}

// lists collects how old revocation lists are.
func (s state) lists(c collection) {
	seen := make(map[string]bool) // URLs that differ in their query only look the same
	for _, l := range s.m.outside.status() {
		if seen[l.URL] {
			continue
		}
		seen[l.URL] = true
		c.gauge(thisDesc, epoch(l.ThisUpdate), l.URL, "")
		c.gauge(nextDesc, epoch(l.NextUpdate), l.URL, "")
		c.gauge(entriesDesc, float64(l.Entries), l.URL, "")
	}
	snap := s.m.front.Current()
	if snap == nil {
		return
	}
	type ofIssuer struct {
		this, next time.Time
		entries    int
		counted    map[[32]byte]bool
	}
	issuers := make(map[string]*ofIssuer)
	for _, l := range snap.CRLs {
		name := issuerOf(l)
		o := issuers[name]
		if o == nil {
			o = &ofIssuer{this: l.ThisUpdate(), next: l.NextUpdate(), counted: make(map[[32]byte]bool)}
			issuers[name] = o
		}
		if o.counted[l.Sum()] {
			continue // several stores have it
		}
		o.counted[l.Sum()] = true
		o.this, o.next, o.entries = earlier(o.this, l.ThisUpdate()), earlier(o.next, l.NextUpdate()), o.entries+l.Len()
	}
	for issuer, o := range issuers {
		c.gauge(thisDesc, epoch(o.this), "", issuer)
		c.gauge(nextDesc, epoch(o.next), "", issuer)
		c.gauge(entriesDesc, float64(o.entries), "", issuer)
	}
}

// issuerOf is the name of a list's issuer as records show it, of bounded length.
func issuerOf(l *trust.CRL) string {
	name, err := identity.AppendName(nil, []byte(l.Issuer()))
	if err != nil {
		return "unreadable"
	}
	return strings.ToValidUTF8(string(name[:min(len(name), 256)]), "?") // or there would be no metrics at all
}

// checks collects what verifying clients could do without.
func (s state) checks(c collection) {
	counts := s.m.outside.responders.Counts()
	c.count(ocspDesc, counts.Answered, "answered")
	c.count(ocspDesc, counts.Failed, "failed")
	c.count(ocspDesc, counts.Unusable, "unusable")
	c.count(ocspDesc, counts.Turned, "turned_away")
	hits, misses := s.m.outside.answers.Counts()
	c.count(ocspCacheDesc, hits, "hit")
	c.count(ocspCacheDesc, misses, "miss")
	hits, misses = s.m.outside.chains.Counts()
	c.count(chainCacheDesc, hits, "hit")
	c.count(chainCacheDesc, misses, "miss")
	c.gauge(chainsDesc, float64(s.m.outside.chains.Len()))
}

// certificates collects when those of the configuration are over.
func (s state) certificates(c collection) {
	snap := s.m.front.Current()
	if snap == nil {
		return
	}
	for _, l := range snap.Listeners {
		for _, h := range l.Hosts {
			if h.Keys == nil {
				continue
			}
			for kind, end := range h.Keys.Expiry() {
				c.gauge(serverDesc, epoch(end), l.Name, h.Name, kind)
			}
		}
	}
	for _, u := range snap.Upstreams {
		if u.TLS == nil {
			continue
		}
		var first *x509.Certificate
		for _, pair := range u.TLS.Certificates {
			if first == nil || pair.Leaf.NotAfter.Before(first.NotAfter) {
				first = pair.Leaf
			}
		}
		if first != nil {
			c.gauge(lentDesc, epoch(first.NotAfter), u.Name)
		}
	}
	now := s.m.o.Now()
	for name, store := range snap.Stores() {
		if store == nil {
			continue
		}
		valid, over, next := anchorsOf(store, now)
		c.gauge(anchorsDesc, float64(valid), name, "valid")
		c.gauge(anchorsDesc, float64(over), name, "not_valid")
		if next != nil {
			c.gauge(caDesc, epoch(next.NotAfter), name)
		}
	}
}

// anchorsOf counts the anchors of a store that are valid at now and those that are not, and finds the one that will be over
// next, nil for none.
func anchorsOf(store *trust.Store, now time.Time) (valid, not int, next *x509.Certificate) {
	for _, ca := range store.Anchors() {
		if now.After(ca.NotAfter) || now.Before(ca.NotBefore) {
			not++
		} else {
			valid++
		}
		if !now.After(ca.NotAfter) && (next == nil || ca.NotAfter.Before(next.NotAfter)) {
			next = ca
		}
	}
	return valid, not, next
}

// collection is where metrics go that are made when they are asked for.
type collection struct{ ch chan<- prometheus.Metric }

func (c collection) gauge(d *prometheus.Desc, v float64, labels ...string) {
	c.ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (c collection) count(d *prometheus.Desc, n uint64, labels ...string) {
	c.ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// epoch is t in Unix time, 0 for none.
func epoch(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.Unix())
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// facts are metrics that never change: what the program is, and what its reasons mean.
type facts struct{ all []prometheus.Metric }

func newFacts() facts {
	var f facts
	build := prometheus.NewDesc("countersign_build_info", "1; the labels say what was built.", []string{"version", "revision", "go"}, nil)
	f.all = append(f.all, prometheus.MustNewConstMetric(build, prometheus.GaugeValue, 1, cmp.Or(version(), "development"), revision(), runtime.Version()))
	means := prometheus.NewDesc("countersign_reason_info", "1; the labels say at which stage a reason is found, which side has to act, and which status a client gets, 0 for none. To be joined with other metrics by reason.",
		[]string{"reason", "stage", "fault", "status"}, nil)
	for _, r := range reason.All() {
		row := r.Row()
		f.all = append(f.all, prometheus.MustNewConstMetric(means, prometheus.GaugeValue, 1, row.Code, string(row.Stage), string(row.Fault), strconv.Itoa(row.Status)))
	}
	return f
}

func (f facts) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range f.all {
		ch <- m.Desc()
	}
}

func (f facts) Collect(ch chan<- prometheus.Metric) {
	for _, m := range f.all {
		ch <- m
	}
}

// revision is what the program was built from, empty if unknown.
func revision() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value[:min(len(s.Value), 12)]
			}
		}
	}
	return ""
}
