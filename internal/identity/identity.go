// Package identity says who a client is, and tells it to a backend.
//
// An [Identity] comes from a verified chain and from nothing else; a [Client] is an identity or the reason why there is
// none, so that "nobody" can never be mistaken for "not asked yet". Names are printed as RFC 2253 asks, headers are
// rendered in the dialects backends understand, and [Protected] lists the header names that no client may send past us.
//
// The package decides nothing about trust: it prints what package trust has believed.
package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"
	"sync/atomic"

	"countersign/internal/reason"
)

// Identity is who a client is. It does not change and may be shared between goroutines; the certificates it hands out are
// read-only.
type Identity struct {
	chain           []*x509.Certificate
	subject, issuer string
	serial          string
	fingerprint     [sha256.Size]byte

	lines atomic.Pointer[rendered]
}

// rendered are the headers of an identity in the style in which they were rendered last: an identity is remembered from
// connection to connection, and most hosts that a client comes to have one style. There is no text until they were rendered
// in that style twice in a row, since most who come once do not come again, and stay.
type rendered struct {
	style *Style
	text  string
}

// keepsLines bounds them by the DER of the leaf, so that what an identity takes follows from what was presented.
const keepsLines = 3

// FromChain takes the identity of the first certificate of a verified chain: leaf first, anchor last.
//
// A list that cannot have come out of a verifier is refused with [reason.Internal]: one that is shorter than a leaf and
// its anchor, or whose certificates do not name each other as issuer. That is no substitute for verification. It catches
// the presented list being passed where the verified chain belongs, the mistake of CVE-2023-2422 (B07).
func FromChain(chain []*x509.Certificate) (*Identity, error) {
	if err := checkShape(chain); err != nil {
		return nil, &reason.Refusal{Reason: reason.Internal, Cause: err}
	}
	leaf := chain[0]
	subject, err := AppendName(nil, leaf.RawSubject)
	if err != nil {
		return nil, err
	}
	issuer, err := AppendName(nil, leaf.RawIssuer)
	if err != nil {
		return nil, err
	}
	return &Identity{
		chain:       slices.Clone(chain),
		subject:     string(subject),
		issuer:      string(issuer),
		serial:      SerialHex(leaf.SerialNumber),
		fingerprint: sha256.Sum256(leaf.Raw),
	}, nil
}

func checkShape(chain []*x509.Certificate) error {
	if len(chain) < 2 {
		return fmt.Errorf("a verified chain has a leaf and an anchor, got %d certificates", len(chain))
	}
	for i, cert := range chain {
		switch {
		case cert == nil || len(cert.Raw) == 0 || cert.SerialNumber == nil:
			return fmt.Errorf("certificate %d of the chain was not parsed from DER", i)
		case i > 0 && string(chain[i-1].RawIssuer) != string(cert.RawSubject):
			return fmt.Errorf("certificate %d of the chain is not named as the issuer of the one before it", i)
		}
	}
	return nil
}

// Leaf returns the client's own certificate.
func (id *Identity) Leaf() *x509.Certificate { return id.chain[0] }

// Chain returns the verified chain, leaf first, anchor last.
func (id *Identity) Chain() []*x509.Certificate { return slices.Clone(id.chain) }

// Intermediates returns what lies between leaf and anchor, towards the anchor: the part of the chain that is forwarded
// beside the leaf. The anchor is left out because whoever believes the chain has it (RFC 9440 section 2.3).
func (id *Identity) Intermediates() []*x509.Certificate {
	return slices.Clone(id.chain[1 : len(id.chain)-1])
}

// Subject returns the leaf's subject as [AppendName] prints it. It is for people and for headers, not for comparing:
// rules about names compare the structure of RawSubject (B09).
func (id *Identity) Subject() string { return id.subject }

// Issuer returns the leaf's issuer as [AppendName] prints it.
func (id *Identity) Issuer() string { return id.issuer }

// SerialHex returns the leaf's serial number in upper-case hexadecimal of whole octets, as AWS ALB sends it: 03A5B1.
func (id *Identity) SerialHex() string { return id.serial }

// Fingerprint returns SHA-256 over the leaf's DER.
func (id *Identity) Fingerprint() [sha256.Size]byte { return id.fingerprint }

// Client is who a connection belongs to: an identity, or the reason why there is none. A client without an identity may
// still have shown certificates; they are kept apart from identity, so that nothing unverified can be taken for verified
// (A39). The zero value is absent with [reason.Unset], which every consumer treats as a refusal.
type Client struct {
	id    *Identity
	shown *shown
	why   reason.Reason
}

// shown are certificates whose key the client has proven to hold, and of which nobody has said that they are trusted.
type shown struct {
	certs   []*x509.Certificate
	forward bool // the backend asked for them (mode passthrough_chain)
}

// Present is the client that id describes. Present(nil) is the zero Client.
func Present(id *Identity) Client { return Client{id: id} }

// Absent is a client without identity, and why.
func Absent(why reason.Reason) Client { return Client{why: why} }

// Unverified is a client of mode request_unverified whose certificates, leaf first, did not verify, and why. It fills no
// identity header; X-SSL-Client-Verify alone tells that a certificate was there (A39).
func Unverified(presented []*x509.Certificate, why reason.Reason) Client {
	return unverified(presented, why, false)
}

// PassthroughChain is a client of mode passthrough_chain: its certificates, leaf first, go to the backend as they were
// presented, in the one header that AWS ALB has for that, and the backend verifies them.
func PassthroughChain(presented []*x509.Certificate) Client {
	return unverified(presented, reason.Unset, true)
}

// unverified keeps a copy of presented. A list that cannot have come out of a handshake is nobody's.
func unverified(presented []*x509.Certificate, why reason.Reason, forward bool) Client {
	if len(presented) == 0 {
		return Absent(reason.ClientCertMissing)
	}
	for _, cert := range presented {
		if cert == nil || len(cert.Raw) == 0 {
			return Absent(reason.Internal)
		}
	}
	return Client{shown: &shown{slices.Clone(presented), forward}, why: why}
}

// Identity returns the client's identity and whether there is one.
func (c Client) Identity() (*Identity, bool) { return c.id, c.id != nil }

// Why returns the reason of an absence, or why the certificates shown did not verify. It means nothing for a client that
// is present.
func (c Client) Why() reason.Reason { return c.why }

// Shown returns the certificates of a client that showed some and has no identity, leaf first. They serve records and
// explanations; no decision may be built on them.
func (c Client) Shown() []*x509.Certificate {
	if c.shown == nil {
		return nil
	}
	return slices.Clone(c.shown.certs)
}
