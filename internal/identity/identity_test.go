package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"math/big"
	"testing"

	"countersign/internal/reason"
)

func TestFromChain(t *testing.T) {
	root := parse(t, certDER(t, rawName([]attr{utf8Attr(oidCN, "root")}), 0))
	mallory := parse(t, certDER(t, rawName([]attr{utf8Attr(oidCN, "mallory")}), 0))
	bob := parse(t, certDER(t, rawName([]attr{utf8Attr(oidCN, "bob")}), 0))
	// FromChain looks at names only, so a name is all that has to be issued here.
	issuedBy := func(cert, issuer *x509.Certificate) *x509.Certificate {
		c := *cert
		c.RawIssuer = issuer.RawSubject
		return &c
	}

	for name, chain := range map[string][]*x509.Certificate{
		"nothing":        nil,
		"leaf alone":     {bob},
		"nil":            {bob, nil},
		"unparsed":       {bob, {}},
		"strangers":      {bob, mallory},
		"wrong order":    {root, issuedBy(bob, root)},
		"extra stranger": {issuedBy(bob, root), root, mallory},
	} {
		t.Run("B07/not a verified chain/"+name, func(t *testing.T) {
			id, err := FromChain(chain)
			if got := reasonOf(err); id != nil || got != reason.Internal {
				t.Errorf("got %v, %v; want refusal internal", id, err)
			}
		})
	}

	t.Run("B07/identity is the first of the verified chain", func(t *testing.T) {
		leaf, middle := issuedBy(bob, mallory), issuedBy(mallory, root)
		chain := []*x509.Certificate{leaf, middle, root}
		id, err := FromChain(chain)
		if err != nil {
			t.Fatal(err)
		}
		chain[0] = mallory // the caller's slice is the caller's
		id.Chain()[0] = mallory
		if id.Leaf() != leaf || id.Subject() != "CN=bob" || id.Issuer() != "CN=mallory" || id.SerialHex() != "03A5B1" ||
			id.Fingerprint() != sha256.Sum256(bob.Raw) {
			t.Errorf("not the leaf's identity: %+v", id)
		}
		if between := id.Intermediates(); len(between) != 1 || between[0] != middle {
			t.Errorf("intermediates %v, want the one between leaf and anchor", between)
		}
		if got := id.Chain(); len(got) != 3 || got[2] != root {
			t.Errorf("chain %v", got)
		}
	})

	t.Run("D11/name over the limit", func(t *testing.T) {
		long := rawName([]attr{utf8Attr(oidCN, string(make([]byte, maxName/3+1)))})
		leaf := parse(t, certDER(t, long, 0))
		if _, err := FromChain([]*x509.Certificate{leaf, leaf}); reasonOf(err) != reason.IdentityTooLarge {
			t.Errorf("got %v, want identity_too_large", err)
		}
	})
}

func TestClient(t *testing.T) {
	var zero Client
	if _, ok := zero.Identity(); ok || zero.Why() != reason.Unset {
		t.Error("the zero Client is not absent with reason unset")
	}
	if _, ok := Present(nil).Identity(); ok {
		t.Error("Present(nil) has an identity")
	}
	absent := Absent(reason.ClientCertMissing)
	if _, ok := absent.Identity(); ok || absent.Why() != reason.ClientCertMissing {
		t.Error("an absent client lost its reason")
	}
	for _, c := range []Client{zero, Present(nil), absent} {
		if out, err := c.AppendHeaders([]byte("x"), []Dialect{RFC9440, ALB}); string(out) != "x" || err != nil {
			t.Errorf("D01: an absent client rendered %q, %v", out, err)
		}
	}
}

func TestSerialHex(t *testing.T) {
	for in, want := range map[string]string{
		"0": "0", "2": "02", "3a5b1": "03A5B1", "80": "80", "-1": "-01",
		"fef257372d5c14d4":                 "FEF257372D5C14D4",
		"12db3f24bffd390a5caf1a8f2712dfb4": "12DB3F24BFFD390A5CAF1A8F2712DFB4",
	} {
		n, _ := new(big.Int).SetString(in, 16)
		if got := SerialHex(n); got != want {
			t.Errorf("D09/serial %s: got %s, want %s", in, got, want)
		}
	}
}

func reasonOf(err error) reason.Reason {
	var refusal *reason.Refusal
	if errors.As(err, &refusal) {
		return refusal.Reason
	}
	return reason.Unset
}
