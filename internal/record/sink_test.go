package record

import (
	"crypto/x509"
	"io"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"countersign/internal/identity"
	"countersign/internal/reason"
	"countersign/internal/testpki"
)

// kept is a sink.
type kept struct {
	refused []*Handshake
	denied  []*Request
	frags   [][]byte
	seen    []Sighting
	panics  bool
	full    bool
}

func (k *kept) Room(reason.Reason, time.Time) bool { return !k.full }

func (k *kept) Refused(h *Handshake, _ time.Time) {
	if k.panics {
		panic("sink")
	}
	k.refused = append(k.refused, h)
}

func (k *kept) Denied(r *Request, _ string, fragment []byte, _ time.Time) {
	if k.panics {
		panic("sink")
	}
	k.denied, k.frags = append(k.denied, r), append(k.frags, fragment)
}

func (k *kept) Seen(s Sighting) { k.seen = append(k.seen, s) }

func TestSink(t *testing.T) {
	pki := testpki.New(t)
	alice := pki.Client("alice")
	id, _ := identity.FromChain([]*x509.Certificate{alice.Cert, pki.Cert})
	b := NewBook(io.Discard)
	defer b.Close()
	l := b.Listener("public")
	k := &kept{}
	if l.Handshake(&Handshake{Reason: reason.ClientCertExpired}); l.Keeps() {
		t.Error("nothing keeps records yet")
	}
	b.Feed(k)
	if !l.Keeps() {
		t.Error("records are kept now")
	}
	l.Handshake(&Handshake{Reason: reason.ClientCertExpired, Presented: alice.Presented()})
	if len(k.refused) != 1 || len(k.seen) != 0 || k.refused[0].Listener != "public" {
		t.Errorf("possession is not proven: %d refused, %d seen", len(k.refused), len(k.seen))
	}
	l.Handshake(&Handshake{Reason: reason.Completed, Identity: identity.Present(id), Presented: alice.Presented(), Host: "a.test"})
	if len(k.refused) != 1 || len(k.seen) != 1 || k.seen[0].Verdict != reason.Completed || k.seen[0].Host != "a.test" || k.seen[0].Listener != "public" || k.seen[0].Again || k.seen[0].Identity != id {
		t.Errorf("accepted: %+v", k.seen)
	}
	if !k.seen[0].Unnamed {
		t.Error("the host stood in, and that is not told")
	}
	l.Handshake(&Handshake{Reason: reason.Completed, Identity: identity.Present(id), Presented: alice.Presented(), Host: "a.test", Name: "b.test"})
	if s := k.seen[1]; s.Unnamed || s.Host != "b.test" {
		t.Errorf("by name: %+v", s)
	}
	k.seen = k.seen[:1]
	l.Handshake(&Handshake{Reason: reason.Completed, Verdict: reason.ClientCertExpired, Proven: true, Presented: alice.Presented()})
	if len(k.refused) != 1 || len(k.seen) != 2 || k.seen[1].Verdict != reason.ClientCertExpired || k.seen[1].Identity != nil {
		t.Errorf("let in unverified: %+v", k.seen)
	}
	l.Handshake(&Handshake{Kind: Ended, Reason: reason.ClientNoLongerTrusted, Identity: identity.Present(id), Presented: alice.Presented()})
	if len(k.refused) != 2 || len(k.seen) != 3 || !k.seen[2].Again || k.seen[2].Verdict != reason.ClientNoLongerTrusted {
		t.Errorf("no longer trusted: %+v", k.seen)
	}
	l.Handshake(&Handshake{Kind: Tunnel, Reason: reason.UpstreamTimeout, Identity: identity.Present(id), Presented: alice.Presented()})
	if len(k.refused) != 3 || len(k.seen) != 3 {
		t.Error("the end of a tunnel is no verdict on the client")
	}

	r := Request{}
	r.Begin(1, time.Now())
	r.Keep([]byte("GET"), []byte("a.test"), []byte("/secret"))
	fragment := []byte(`,"listener":"public"`)
	r.Reason = reason.Completed
	l.Request(&r, "ref", fragment)
	r.Reason = reason.PolicyDenied
	l.Request(&r, "ref", fragment)
	r.Keep([]byte("PUT"), []byte("b.test"), []byte("/public"))
	fragment[2] = 'X'
	if len(k.denied) != 1 || string(k.denied[0].Method) != "GET" || string(k.denied[0].Path) != "/secret" || string(k.frags[0]) != `,"listener":"public"` {
		t.Errorf("what a sink got has changed, or is not what was refused: %+v", k.denied)
	}
	r.Reason, r.Presented, r.Conn = reason.ClientNoLongerTrusted, alice.Presented(), &Conn{Client: "10.0.0.1:1"}
	if l.Request(&r, "ref", fragment); len(k.seen) != 4 || !k.seen[3].Again || k.seen[3].Client != "10.0.0.1:1" {
		t.Errorf("no longer trusted at a request: %+v", k.seen)
	}

	k.full = true
	l.Handshake(&Handshake{Reason: reason.ClientCertExpired})
	r.Reason = reason.PolicyDenied
	n := len(k.denied)
	if l.Request(&r, "ref", fragment); len(k.refused) != 3 || len(k.denied) != n {
		t.Error("H13/what is full was given more")
	}
	if n := testing.AllocsPerRun(100, func() { l.Request(&r, "ref", fragment) }); n > 0 {
		t.Errorf("H13/%v allocations for what is dropped", n)
	}
	k.full = false
	k.panics = true
	l.Handshake(&Handshake{Reason: reason.ClientCertExpired})
	l.Request(&r, "ref", fragment)
	if n := testutil.ToFloat64(b.panics); n != 2 {
		t.Errorf("F16/%v panics are counted", n)
	}
	b.Feed(nil)
	if l.Handshake(&Handshake{Reason: reason.ClientCertExpired}); l.Keeps() {
		t.Error("it goes on after its end")
	}
}

// TestSinkUnused shows that who keeps no journal pays nothing for it.
func TestSinkUnused(t *testing.T) {
	b := NewBook(io.Discard)
	defer b.Close()
	b.Log(None)
	l := b.Listener("public")
	r := Request{}
	r.Begin(1, time.Now())
	r.Keep([]byte("GET"), []byte("a.test"), []byte("/"))
	r.Reason = reason.PolicyDenied
	if n := testing.AllocsPerRun(200, func() { l.Request(&r, "ref", nil) }); n != 0 {
		t.Errorf("%v allocations for a refused request", n)
	}
	b.Feed(&kept{})
	r.Reason = reason.Completed
	if n := testing.AllocsPerRun(200, func() { l.Request(&r, "ref", nil) }); n != 0 {
		t.Errorf("%v allocations for a good request with a journal", n)
	}
}
