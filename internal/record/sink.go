package record

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"time"

	"countersign/internal/identity"
	"countersign/internal/reason"
)

// Sink takes records besides the outputs of the log, to keep them. Its methods are called on the path of connections and
// requests: they must return at once and may drop what they are given. What they get is theirs.
type Sink interface {
	// Room reports whether there is room for a bad end for this reason, and counts it as dropped if not. It is asked before each.
	Room(why reason.Reason, now time.Time) bool
	// Refused takes a handshake or connection that ended badly.
	Refused(h *Handshake, now time.Time)
	// Denied takes a request that ended badly, with the reference of its connection and the connection's fragment.
	Denied(r *Request, ref string, fragment []byte, now time.Time)
	// Seen takes the certificate of a client that has proven to hold its key, whatever became of it.
	Seen(s Sighting)
}

// Sighting is a client that was seen.
type Sighting struct {
	Time time.Time
	// Presented is what it sent, its own certificate first. Anything may be in the rest of it.
	Presented []*x509.Certificate
	// Identity is who it is; nil for one that was not verified, and for one that comes Again with a request.
	Identity *identity.Identity
	// Client is its address and port, Listener and Host where it was let in, Host by the name that it asked for, Version that
	// of TLS.
	Client, Listener, Host, Version string
	// Unnamed says that it asked for no name that Host has: Host stood in, and is told by its first name.
	Unnamed bool
	// Verdict is why it was refused, or not believed; Completed for an acceptance.
	Verdict reason.Reason
	// Again says that it was counted before: it is the end of a connection.
	Again bool
}

// Feed has s take records from now on; nil ends that.
func (b *Book) Feed(s Sink) {
	if s == nil {
		b.sink.Store(nil)
		return
	}
	b.sink.Store(&s)
}

// Keeps reports whether something takes records besides the log, and so whether Request.Presented and Request.Conn are of
// use for a bad end.
func (l *Listener) Keeps() bool { return l.book.sink.Load() != nil }

// feedHandshake gives h to the sink.
func (b *Book) feedHandshake(h *Handshake, now time.Time) {
	p := b.sink.Load()
	if p == nil {
		return
	}
	sink := *p
	defer b.contain() // F16: a record must not end the connection it is about
	if len(h.Presented) > 0 && (h.Kind == Begun || h.Reason == reason.ClientNoLongerTrusted) {
		verdict := h.Verdict
		if verdict == reason.Unset {
			verdict = h.Reason
		}
		if id, known := h.Identity.Identity(); known || h.Proven {
			sink.Seen(Sighting{Time: now, Presented: h.Presented, Identity: id, Client: h.Client, Listener: h.Listener, Host: cmp.Or(h.Name, h.Host),
				Unnamed: h.Name == "", Version: h.Version, Verdict: verdict, Again: h.Kind != Begun})
		}
	}
	if !h.Reason.Good() && sink.Room(h.Reason, now) {
		own := *h
		sink.Refused(&own, now)
	}
}

// feedRequest gives r to the sink.
func (b *Book) feedRequest(r *Request, ref string, fragment []byte, now time.Time) {
	p := b.sink.Load()
	if p == nil || r.Reason.Good() {
		return
	}
	sink := *p
	defer b.contain()
	if r.Reason == reason.ClientNoLongerTrusted && len(r.Presented) > 0 {
		seen := Sighting{Time: now, Presented: r.Presented, Verdict: r.Reason, Again: true}
		if r.Conn != nil {
			seen.Client = r.Conn.Client
		}
		sink.Seen(seen)
	}
	if !sink.Room(r.Reason, now) {
		return
	}
	own := *r
	own.Method, own.Host, own.Path = bytes.Clone(r.Method), bytes.Clone(r.Host), bytes.Clone(r.Path)
	own.Query, own.Agent, own.Referer, own.Trace, own.RewrittenHost, own.RewrittenURI = nil, nil, nil, nil, nil, nil
	sink.Denied(&own, ref, bytes.Clone(fragment), now)
}

// contain counts a panic of a sink.
func (b *Book) contain() {
	if recover() != nil {
		b.Panicked()
	}
}
