//go:build !race

package ticket

import (
	"bytes"
	"crypto/tls"
	"testing"
)

// TestAllocations bounds what a handshake allocates for tickets beyond what crypto/tls takes to write and to read the
// session in them, which is measured beside it. It is not built with the race detector, which allocates.
func TestAllocations(t *testing.T) {
	w := newWorld(t)
	wal := new(wallet)
	w.visit(w.newVisit(tls.VersionTLS13, wal)).full(t, nil)
	own := wal.ticket(t)
	cs := tls.ConnectionState{Version: tls.VersionTLS13, ServerName: "a.test"}
	state, err := w.keys.Session(scopeA).unwrap(own, cs)
	if state == nil || err != nil {
		t.Fatal(err)
	}
	cs.PeerCertificates = w.alice.Presented()
	plain, err := state.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	foreign := bytes.Clone(own)
	foreign[3] ^= 1
	forged := bytes.Clone(own)
	forged[len(forged)-1] ^= 1
	s := w.keys.Session(scopeA)
	conf := new(tls.Config) // what it costs is not ours
	write := func() {
		if _, err := state.Bytes(); err != nil {
			t.Fatal(err)
		}
	}
	read := func() {
		if _, err := tls.ParseSessionState(plain); err != nil {
			t.Fatal(err)
		}
	}
	open := func(ticket []byte, good bool) func() {
		return func() {
			if got, _ := s.unwrap(ticket, cs); (got != nil) != good {
				t.Fatalf("opened=%t, expected %t", got != nil, good)
			}
		}
	}
	for _, c := range []struct {
		name string
		of   func() // ours and crypto/tls
		bare func() // crypto/tls alone; nil for nothing
		most float64
	}{
		// The hash over the chain, our entry, the list of entries with it, what the ticket is bound to, and the ticket.
		{"seal", func() {
			state.Extra = nil
			if b, _ := s.wrap(cs, state); len(b) <= overhead {
				t.Fatal("not sealed")
			}
		}, write, 5},
		// What the ticket is bound to, the session's bytes, and what our entry in them says.
		{"open", open(own, true), read, 3},
		{"refuse a forged one", open(forged, false), nil, 3},
		{"refuse one whose key is gone", open(foreign, false), nil, 1},
		{"no ticket", open(nil, false), nil, 0},
		{"cipher of a scope", func() { w.keys.current().aead(scopeA) }, nil, 0},
		// The Session, three functions bound to it, and the key that is not used in the form of crypto/tls.
		{"begin", func() { w.keys.Session(scopeA).Install(conf) }, nil, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			bare := 0.0
			if c.bare != nil {
				bare = testing.AllocsPerRun(200, c.bare)
			}
			n := testing.AllocsPerRun(200, c.of) - bare
			if t.Logf("%v allocations, and %v of crypto/tls", n, bare); n > c.most {
				t.Errorf("%v allocations beside the %v of crypto/tls; expected at most %v", n, bare, c.most)
			}
		})
	}
}
