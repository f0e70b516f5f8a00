package frontend

import (
	"bytes"
	"crypto/x509"
	"errors"
	"time"

	"countersign/internal/identity"
	"countersign/internal/message"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/snapshot"
	"countersign/internal/trust"
	"countersign/internal/upstream"
)

// asserted is the client for whom the connection of a trusted proxy spoke last, under the entry of the host asked for. A
// proxy sends the requests of many clients over one connection, often several of one client in a row, so the last one is
// remembered: for the same octets, under the same configuration (stand forgets everything under another one), for as long
// as the verdict holds.
//
// The zero value is a connection that speaks for nobody but its own client.
type asserted struct {
	by *snapshot.Proxy // nil unless the host asked for lists the connection's certificate
	// used says that the request at hand is of by, and not of the connection's own client.
	used bool
	// known says that the rest, and the headers of the exchange, belong to the octets in said.
	known     bool
	said      []byte
	client    identity.Client
	presented []*x509.Certificate // what the proxy asserted, leaf first; nil for a request of its own
	belief    trust.Belief        // of presented
	answers   uint64              // of the trust store that was asked; another one may mean another verdict
	until     time.Time           // when to ask again; zero for never, as with a request of the proxy's own

	now      []byte // what the request at hand says
	fragment []byte
	warned   bool // that a chain was left out
}

// listed forgets what was asserted before and goes on under the entry by, or none.
func (a *asserted) listed(by *snapshot.Proxy) {
	*a = asserted{by: by, said: a.said[:0], now: a.now[:0], warned: a.warned}
}

// told is what the record of the request at hand says of its client.
func (c *lane) told() []byte {
	if c.via.used {
		return c.via.fragment
	}
	return c.fragment
}

// sends notes whose request goes on to a target. A connection to a target that carried a request body is used by no other
// client (E32), and on a proxy's connection the client changes.
func (c *lane) sends(client identity.Client) {
	id, _ := client.Identity()
	if id == c.sender {
		return
	}
	if id == nil || c.sender == nil || id.Fingerprint() != c.sender.Fingerprint() {
		if c.exchange.Stream == nil {
			c.own.Tidy(true, c.watch.Clock.Now())
		}
	}
	c.sender, c.exchange.ClientHash = id, 0
	if id != nil {
		sum := id.Fingerprint()
		c.exchange.ClientHash = max(1, upstream.Hash(sum[:]))
	}
}

// assertedClient finds out whose request this is on the connection of a trusted proxy, and renders who that is. It reads
// what the proxy asserts before it is removed with everything else of its kind, and believes a certificate only after the
// entry's trust store does: as if it came out of a handshake, in which the proxy vouches for the possession of the key
// (B07, A39).
func (c *lane) assertedClient(req *message.Request, host *snapshot.Host) (identity.Client, reason.Reason) {
	a := &c.via
	a.now = a.by.Ingest.AppendAsserted(a.now[:0], req.Fields)
	if a.known && bytes.Equal(a.now, a.said) && a.answers == a.by.Store.Answers() && (a.until.IsZero() || !c.rec.Start.After(a.until)) {
		a.used = a.presented != nil
		return a.client, reason.Unset
	}
	// From here to the end nothing of the client before is left to be used.
	a.known, a.used, a.client, a.presented, a.belief, a.until = false, true, identity.Client{}, nil, trust.Belief{}, time.Time{}
	a.answers = a.by.Store.Answers() // before the verdict, so that no news between the two is lost
	c.exchange.Trailer = c.exchange.Trailer[:0]
	proxy, _ := c.client.Identity()
	a.fragment = record.FragmentVia(c.listener.Name, c.peer, identity.Client{}, proxy)

	certs, err := a.by.Ingest.Presented(req.Fields)
	var prior identity.ForwardedCerts
	if err == nil && a.by.Append {
		prior, err = identity.ParseForwardedCerts(req.Fields)
	}
	switch {
	case err != nil:
		return identity.Client{}, c.disbelieve(err)
	case certs == nil && !a.by.Own:
		c.rec.Expected, c.rec.Found = "a certificate in "+a.by.Ingest.Header(), "none"
		return identity.Client{}, reason.AssertedIdentityMissing
	case certs == nil:
		a.client, a.used = c.client, false
	default:
		verdict := c.f.verify(a.by.Store, certs, c.rec.Start)
		if !verdict.Accepted {
			return identity.Client{}, c.disbelieve(verdict.Err())
		}
		client, err := believed(&verdict)
		if err != nil {
			return identity.Client{}, c.disbelieve(err)
		}
		a.client, a.presented, a.belief, a.until = client, certs, verdict.Belief(), a.by.Store.GoodUntil(&verdict)
		a.fragment = record.FragmentVia(c.listener.Name, c.peer, a.client, proxy)
	}
	if err := c.render(host, a.client, prior); err != nil {
		c.rec.Fail(reason.IdentityTooLarge, err)
		return identity.Client{}, c.rec.Reason
	}
	a.said, a.now = a.now, a.said
	a.known = true
	return a.client, reason.Unset
}

// verify asks store about certificates that came in a request, as a handshake does.
func (f *Frontend) verify(store *trust.Store, presented []*x509.Certificate, now time.Time) trust.Verdict {
	v := store.Verify(presented, now)
	if v.Reason == reason.OCSPUnavailable && f.ask(v.Ask) {
		v = store.Verify(presented, time.Now())
	}
	f.learn(store.Points(&v))
	f.soon(v.Ask)
	store.Remember(&v)
	return v
}

// disbelieve notes why an assertion is not accepted.
func (c *lane) disbelieve(err error) reason.Reason {
	c.via.now = nil // it may be as long as a head; it is not kept for what will not come again
	var refusal *reason.Refusal
	if errors.As(err, &refusal) {
		c.rec.Expected, c.rec.Found = refusal.Expected, refusal.Reason.String()+": "+refusal.Found
		err = refusal.Cause
	}
	if err != nil {
		c.rec.Detail = bounded(err)
	}
	return reason.AssertedIdentityInvalid
}
