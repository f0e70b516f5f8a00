package journal

import (
	"context"
	"database/sql"
	"fmt"
	"testing"
	"time"

	"countersign/internal/store"
	"countersign/internal/testpki"
)

// BenchmarkFull is a journal with as many entries as it keeps: how fast they are written, checked and searched.
func BenchmarkFull(b *testing.B) {
	name := file(b)
	db, err := store.Open(context.Background(), store.Options{Path: name, Schema: schema, MaxBytes: DefaultBytes})
	if err != nil {
		b.Fatal(err)
	}
	pki := testpki.New(b)
	alice, bob := pki.Client("alice"), pki.Client("bob")
	start := time.Now()
	for i := 0; i < DefaultRecords; i += 1000 {
		var batch []event
		for k := range 1000 {
			h := refusal(alice, fmt.Sprintf("%016x", i+k))
			if i+k == 50_000 {
				h = refusal(bob, "bob")
			}
			batch = append(batch, eventOf(ofHandshake(h, start)))
		}
		if err := db.Write(context.Background(), func(tx *sql.Tx) error { return insert(context.Background(), tx, batch) }); err != nil {
			b.Fatal(err)
		}
	}
	took := time.Since(start)
	used, _ := db.Used(context.Background())
	b.Logf("%d entries in %s, %.0f per second, %d bytes each", DefaultRecords, took, DefaultRecords/took.Seconds(), used/DefaultRecords)
	db.Close()
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			db, err := store.Open(context.Background(), store.Options{Path: name, Schema: schema, MaxBytes: DefaultBytes})
			if err != nil {
				b.Fatal(err)
			}
			db.Close()
		}
	})
	r := reader(b, name)
	for what, q := range map[string]Query{"reference": {Ref: "000000000000ffff"}, "subject": {Subject: "bob"}, "fingerprint": {Fingerprint: fingerprint(bob.Cert)}, "page": {}} {
		b.Run(what, func(b *testing.B) {
			for b.Loop() {
				if len(search(b, r, q)) == 0 {
					b.Fatal("nothing found")
				}
			}
		})
	}
}
