package frontend

import (
	"fmt"
	"net"
	"testing"
	"time"

	"countersign/internal/policy"
	"countersign/internal/snapshot"
	"countersign/internal/socket"
	"countersign/internal/ticket"
)

// TestKeysBeforeHello: crypto/tls has no keys of its own for a host whose configuration has none.
func TestKeysBeforeHello(t *testing.T) {
	t.Run("A04/no keys before the ClientHello", func(t *testing.T) {
		if !beforeHello.SessionTicketsDisabled {
			t.Error("the configuration of all connections has session tickets of its own")
		}
	})
}

// TestScope: what is known of one host is not taken for another's, nor for the same host's under another configuration.
func TestScope(t *testing.T) {
	host := func(p policy.ID, mode policy.Mode) *snapshot.Host {
		return &snapshot.Host{Policy: p, Auth: snapshot.ClientAuth{Mode: mode}}
	}
	hosts := []*snapshot.Host{host("a", policy.Require), host("b", policy.Require), host("a", policy.Request)}
	listeners := []*active{{Listener: &snapshot.Listener{Name: "public"}}, {Listener: &snapshot.Listener{Name: "partners"}}}
	seen := map[ticket.Scope]string{}
	for range 2 {
		for _, l := range listeners {
			for i, h := range hosts {
				where := fmt.Sprint(l.Name, " ", i)
				s := l.scope(h)
				if was, known := seen[s]; known && was != where {
					t.Errorf("A04: a session of %s is one of %s", was, where)
				}
				seen[s] = where
			}
		}
	}
	if len(seen) != len(hosts)*len(listeners) {
		t.Errorf("%d scopes of %d hosts and %d listeners", len(seen), len(hosts), len(listeners))
	}
	again := &active{Listener: listeners[0].Listener}
	if again.scope(hosts[0]) != listeners[0].scope(hosts[0]) {
		t.Error("the same configuration loaded again has other scopes")
	}
}

// TestGoodbye: no deadline is set for what is held back, and any other is.
func TestGoodbye(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	w := wire{Conn: socket.New(near, true), of: new(conn)}
	past := time.Unix(1, 0)
	w.More = true
	if err := w.SetWriteDeadline(past); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("held")); err != nil {
		t.Errorf("held back: %v", err)
	}
	w.More = false
	if _, err := w.Write([]byte("sent")); err != nil {
		t.Errorf("a deadline was set for what is held back: %v", err)
	}
	if err := w.SetWriteDeadline(past); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("late")); err == nil {
		t.Error("there is no deadline")
	}
}
