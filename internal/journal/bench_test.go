package journal

import (
	"crypto/x509"
	"io"
	"log/slog"
	"testing"
	"time"

	"countersign/internal/identity"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/testpki"
)

// BenchmarkDataPlane is what a record costs its connection: without a journal, with one, and with one whose disk has stopped.
func BenchmarkDataPlane(b *testing.B) {
	pki := testpki.New(b)
	alice := pki.Client("alice")
	id, err := identity.FromChain([]*x509.Certificate{alice.Cert, pki.Cert})
	if err != nil {
		b.Fatal(err)
	}
	for _, with := range []string{"none", "journal", "stalled"} {
		setup := func(b *testing.B) *record.Listener {
			book := record.NewBook(io.Discard)
			book.Log(record.None)
			b.Cleanup(book.Close)
			if with != "none" {
				j := New(slog.New(slog.DiscardHandler))
				if with == "stalled" {
					stuck := make(chan struct{})
					j.writeHook = func() { <-stuck }
					b.Cleanup(j.Close)
					b.Cleanup(func() { close(stuck) })
				} else {
					b.Cleanup(j.Close)
				}
				j.Use(&Settings{File: file(b)})
				if with == "stalled" { // and the queue is full
					for range 2 * maxWaiting {
						j.Refused(refusal(alice, "r"), time.Now())
					}
				}
				book.Feed(j)
			}
			return book.Listener("public")
		}
		presented := alice.Presented()
		b.Run("accepted handshake/"+with, func(b *testing.B) {
			l := setup(b)
			b.ReportAllocs()
			for b.Loop() {
				h := record.Handshake{Ref: "r", Client: "192.0.2.1:5000", Host: "a.test", Reason: reason.Completed, Identity: identity.Present(id), Presented: presented}
				l.Handshake(&h)
			}
		})
		b.Run("refused handshake/"+with, func(b *testing.B) {
			l := setup(b)
			b.ReportAllocs()
			for b.Loop() {
				h := record.Handshake{Ref: "r", Client: "192.0.2.1:5000", Host: "a.test", Reason: reason.ClientCertExpired, Presented: presented, At: alice.Cert}
				l.Handshake(&h)
			}
		})
		b.Run("good request/"+with, func(b *testing.B) {
			l := setup(b)
			r := record.Request{Start: time.Now(), Reason: reason.Completed}
			b.ReportAllocs()
			for b.Loop() {
				l.Request(&r, "ref", nil)
			}
		})
		b.Run("denied request/"+with, func(b *testing.B) {
			l := setup(b)
			r := record.Request{Start: time.Now(), Reason: reason.PolicyDenied, Host: []byte("a.test"), Path: []byte("/x"), Presented: presented}
			fragment := record.Fragment("public", "192.0.2.1:5000", identity.Present(id))
			b.ReportAllocs()
			for b.Loop() {
				l.Request(&r, "ref", fragment)
			}
		})
	}
}

// BenchmarkTaken is what a bad end costs its connection when it is not dropped, as 500 of one reason in a second are.
func BenchmarkTaken(b *testing.B) {
	alice := testpki.New(b).Intermediate("CA").Client("alice")
	j := New(slog.New(slog.DiscardHandler))
	j.on.Store(true)
	h := refusal(alice, "r")
	r := &record.Request{Start: time.Now(), Reason: reason.PolicyDenied, Host: []byte("a.test"), Path: []byte("/x"), Presented: alice.Presented()}
	fragment := record.Fragment("public", "192.0.2.1:5000", identity.Client{})
	b.Run("refused handshake", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			j.Refused(h, r.Start)
		}
	})
	b.Run("denied request", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			j.Denied(r, "r", fragment, r.Start)
		}
	})
}
