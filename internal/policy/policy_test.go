package policy

import (
	"testing"

	"countersign/internal/identity"
	"countersign/internal/reason"
	"countersign/internal/testpki"
)

func alice(t *testing.T) identity.Client {
	root := testpki.New(t)
	leaf := root.Client("alice")
	id, err := identity.FromChain(append(leaf.Presented(), root.Cert))
	if err != nil {
		t.Fatal(err)
	}
	return identity.Present(id)
}

// TestPermit: nothing but Decide makes a permit, and it is good for one request.
func TestPermit(t *testing.T) {
	permit, why := Decide(&Question{Serial: 7, Connection: "l/off/", Asked: "l/off/", Mode: Off, Upstream: "api"})
	if why != reason.Unset {
		t.Fatal(why)
	}
	forged := permit
	forged.by = new(maker)
	nobody := permit
	nobody.by = nil
	empty, why := Decide(&Question{Serial: 7, Connection: "l/off/", Asked: "l/off/", Mode: Off})
	if why != reason.Unset {
		t.Fatal(why)
	}
	for name, c := range map[string]struct {
		permit Permit
		serial uint64
		ok     bool
	}{
		"its own request":    {permit, 7, true},
		"the next request":   {permit, 8, false},
		"the one before":     {permit, 6, false},
		"request 0":          {permit, 0, false},
		"zero value":         {Permit{}, 0, false},
		"zero value, serial": {Permit{}, 7, false},
		"another maker":      {forged, 7, false},
		"no maker":           {nobody, 7, false},
		"no upstream":        {empty, 7, false},
		"serial only":        {Permit{serial: 7, upstream: "api"}, 7, false},
	} {
		if upstream, ok := c.permit.Upstream(c.serial); ok != c.ok || ok && upstream != "api" {
			t.Errorf("%s: %q %v", name, upstream, ok)
		}
	}
}

// TestDecide has every way to be refused, and the few not to be.
func TestDecide(t *testing.T) {
	known, missing := alice(t), identity.Absent(reason.ClientCertMissing)
	for _, c := range []struct {
		name   string
		q      Question
		refuse reason.Reason
	}{
		{"A11/another policy", Question{Connection: "l/off/", Asked: "l/require/A", Mode: Require, Client: known}, reason.PolicyMismatch},
		{"A11/another store", Question{Connection: "l/require/A", Asked: "l/require/B", Mode: Require, Client: known}, reason.PolicyMismatch},
		{"A11/stricter to laxer", Question{Connection: "l/require/A", Asked: "l/off/", Mode: Off, Client: known}, reason.PolicyMismatch},
		{"A43/another listener", Question{Connection: "m/off/", Asked: "l/off/", Mode: Off}, reason.PolicyMismatch},
		{"A11/no policy", Question{Mode: Off}, reason.PolicyMismatch},
		{"A11/no policy of the connection", Question{Asked: "l/off/", Mode: Off}, reason.PolicyMismatch},
		{"A11/no policy of the host", Question{Connection: "l/off/", Mode: Off}, reason.PolicyMismatch},
		{"A34/require, nobody", Question{Connection: "p", Asked: "p", Mode: Require, Client: missing}, reason.ClientNoLongerTrusted},
		{"A34/require, zero client", Question{Connection: "p", Asked: "p", Mode: Require}, reason.ClientNoLongerTrusted},
		{"A34/require, Present(nil)", Question{Connection: "p", Asked: "p", Mode: Require, Client: identity.Present(nil)}, reason.ClientNoLongerTrusted},
		{"B25/zero mode", Question{Connection: "p", Asked: "p", Client: known}, reason.PermitRefused},
		{"B25/unknown mode", Question{Connection: "p", Asked: "p", Mode: 100, Client: known}, reason.PermitRefused},
		{"B25/last mode", Question{Connection: "p", Asked: "p", Mode: 255, Client: known}, reason.PermitRefused},
		{"require, alice", Question{Connection: "p", Asked: "p", Mode: Require, Client: known}, reason.Unset},
		{"request, alice", Question{Connection: "p", Asked: "p", Mode: Request, Client: known}, reason.Unset},
		{"request, nobody", Question{Connection: "p", Asked: "p", Mode: Request, Client: missing}, reason.Unset},
		{"off", Question{Connection: "p", Asked: "p", Mode: Off}, reason.Unset},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.q.Serial, c.q.Upstream = 3, "api"
			permit, why := Decide(&c.q)
			if why != c.refuse {
				t.Errorf("%v, expected %v", why, c.refuse)
			}
			if _, ok := permit.Upstream(3); ok != (c.refuse == reason.Unset) {
				t.Errorf("permit: %v", ok)
			}
			if c.refuse != reason.Unset && permit != (Permit{}) {
				t.Error("a refusal came with something of a permit")
			}
		})
	}
}

func TestModeNames(t *testing.T) {
	for m, want := range map[Mode]string{0: "none", Off: "off", Request: "request", Require: "require", 200: "none"} {
		if m.String() != want {
			t.Errorf("%d is %q", m, m)
		}
	}
}
