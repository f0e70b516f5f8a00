// Package policy decides whether an identity may use a route, and is the only maker of a Permit. It does no I/O and knows
// no HTTP beyond what it is told.
//
// What a route allows may be said in an expression ([Rule]): the Common Expression Language (CEL), type-checked when the
// configuration is loaded, bounded in what it costs, and without a way to be true because of a client that is not there.
package policy

import (
	"countersign/internal/identity"
	"countersign/internal/reason"
)

// Mode says what a host asks of clients. The zero value is not a mode, and everything is refused under it.
type Mode uint8

// The modes of DESIGN section 1.
const (
	Off     Mode = iota + 1 // nobody is asked
	Request                 // asked; a certificate that is sent must verify
	Require                 // a certificate that verifies must be sent

	// RequestUnverified asks and lets in whoever comes: the verdict is recorded and told, never enforced.
	RequestUnverified
	// PassthroughChain asks and hands on what was sent, without a verdict.
	PassthroughChain
)

// String returns the mode's name in the configuration.
func (m Mode) String() string {
	switch m {
	case Off:
		return "off"
	case Request:
		return "request"
	case Require:
		return "require"
	case RequestUnverified:
		return "request_unverified"
	case PassthroughChain:
		return "passthrough_chain"
	}
	return "none"
}

// ID names a client-auth policy: a listener and a client-auth setting by name. A connection made under one ID never
// serves a host of another (A11, A43). The zero value belongs to no host.
type ID string

// Question is one request to be decided.
type Question struct {
	// Serial is the number of the request; the permit is good for this one only.
	Serial uint64
	// Connection is the policy the connection stands under now, by the server name it was made with; Asked is that of
	// the host the request names.
	Connection, Asked ID
	// Mode is the mode of the asked host.
	Mode Mode
	// Client is who the connection's client is now: verified under the policy in force, or absent.
	Client identity.Client
	// Upstream is where the matched route leads.
	Upstream string
	// Allow is the route's allow expression, nil for none. It reads Facts, whose client must be Client.
	Allow *Rule
	Facts *Facts
}

type maker struct{ _ byte }

var self = new(maker)

// Permit is the proof that a request was decided. Only Decide makes one that is worth something: the zero value, and
// one made for another request, are refused by Upstream.
type Permit struct {
	by       *maker
	serial   uint64
	upstream string
}

// Upstream returns where request serial may be forwarded to, and false if this permit does not say so.
func (p Permit) Upstream(serial uint64) (string, bool) {
	return p.upstream, p.by == self && p.serial == serial && p.upstream != ""
}

// Decide answers q with a permit and Unset, or with the zero permit and the reason why not.
func Decide(q *Question) (Permit, reason.Reason) {
	if q.Asked == "" || q.Connection != q.Asked {
		return Permit{}, reason.PolicyMismatch
	}
	switch q.Mode {
	case Request:
		// Absent because none was sent, or present: a certificate that was refused is neither (A38).
		if _, verified := q.Client.Identity(); !verified && q.Client.Why() != reason.ClientCertMissing {
			return Permit{}, reason.ClientNoLongerTrusted
		}
	case Off, RequestUnverified, PassthroughChain:
	case Require:
		if _, verified := q.Client.Identity(); !verified {
			return Permit{}, reason.ClientNoLongerTrusted
		}
	default:
		return Permit{}, reason.PermitRefused
	}
	if q.Allow != nil {
		if q.Facts == nil || !same(q.Facts.Client, q.Client) {
			return Permit{}, reason.PolicyFailed
		}
		if why := q.Allow.judge(q.Facts, q.Mode); why != reason.Unset {
			return Permit{}, why
		}
	}
	return Permit{by: self, serial: q.Serial, upstream: q.Upstream}, reason.Unset
}

// same reports whether two clients have the same identity, or neither has one.
func same(a, b identity.Client) bool {
	x, _ := a.Identity()
	y, _ := b.Identity()
	return x == y
}
