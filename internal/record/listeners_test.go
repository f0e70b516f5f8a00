package record

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"countersign/internal/message"
	"countersign/internal/reason"
)

// TestListenersComeAndGo: a listener that a configuration does not name any more leaves no series behind, also when its
// last connections end later, and one of the same name begins anew.
func TestListenersComeAndGo(t *testing.T) {
	b := NewBook(io.Discard)
	defer b.Close()
	// all has every kind of metric that listeners have.
	all := func(l *Listener, why reason.Reason) {
		l.Opened()
		l.Handshake(&Handshake{Kind: Begun, Reason: reason.Completed, Resumed: true, Shadow: why})
		l.Handshake(&Handshake{Kind: Tunnel, Reason: why})
		r := Request{Reason: why, Status: 200, Shadow: why}
		r.Classify(message.ClassReason(1))
		l.Request(&r, "ref", nil)
		l.Ended(why)
		l.Closed(1, 2)
	}
	of := func(name string) (n int) {
		for series := range gathered(t, b.Registry) {
			if strings.HasSuffix(series, " "+name) || strings.Contains(series, " "+name+" ") {
				n++
			}
		}
		return n
	}
	stays := b.Listener("stays")
	all(stays, reason.ClientCertExpired)
	one := of("stays")
	if one < 100 {
		t.Fatalf("%d series of a listener", one)
	}
	for i := range 20 {
		name := fmt.Sprint("lane", i)
		l := b.Listener(name)
		if b.Listener(name) != l {
			t.Fatal("two shares of one listener: the end of one would not be that of the other")
		}
		all(l, reason.ClientCertExpired)
		b.Listeners([]string{"stays", name})
		if n := of(name); n != one {
			t.Fatalf("%s has %d series, expected %d", name, n, one)
		}
		b.Listeners([]string{"stays"})
		all(l, reason.ClientCertExpired)
		all(l, reason.ClientCertRevoked) // of which there was none while it had series
		if n := of(name); n != 0 {
			t.Fatalf("%s has %d series after its end", name, n)
		}
	}
	if n := of("stays"); n != one {
		t.Errorf("the one that stays has %d series, expected %d", n, one)
	}
	all(b.Listener("lane0"), reason.ClientCertExpired)
	if n := of("lane0"); n != one {
		t.Errorf("one that comes back has %d series, expected %d", n, one)
	}
	if n := gathered(t, b.Registry)["countersign_requests_total lane0 client_cert_expired"]; n != 2 {
		t.Errorf("%v requests of one that came back, expected its own two", n)
	}
	t.Run("under traffic", func(t *testing.T) {
		l := b.Listener("busy")
		var hands sync.WaitGroup
		for _, why := range reason.All() {
			hands.Go(func() { all(l, why) })
		}
		b.Listeners([]string{"stays"})
		hands.Wait()
		if n := of("busy"); n != 0 {
			t.Errorf("%d series", n)
		}
	})
}
