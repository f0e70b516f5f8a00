package daemon

import (
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"countersign/internal/certs"
	"countersign/internal/frontend"
	"countersign/internal/record"
	"countersign/internal/refresh"
	"countersign/internal/snapshot"
	"countersign/internal/testpki"
)

// TestRereadAfter: files that changed are not read again because of it when another load has ended since that was seen.
func TestRereadAfter(t *testing.T) {
	file := filepath.Join(t.TempDir(), "countersign.yaml")
	if err := os.WriteFile(file, []byte("upstreams: {api: {targets: [\"tcp://127.0.0.1:9\"]}}\nlisteners: {raw: {listen: 127.0.0.1:0, protocol: tcp, upstream: api}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := Start(Options{Config: file, Records: io.Discard, Log: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Shutdown(canceled())
	known := m.loads.Load()
	if err := m.rereadAfter(known); err != nil {
		t.Errorf("after no other load: %v", err)
	}
	if err := m.rereadAfter(known); !errors.Is(err, refresh.ErrOvertaken) {
		t.Errorf("after another load: %v", err)
	}
	known = m.loads.Load()
	if err := os.WriteFile(file, []byte("no: configuration"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Reload(); err == nil {
		t.Error("accepted")
	}
	if err := m.rereadAfter(known); !errors.Is(err, refresh.ErrOvertaken) {
		t.Errorf("after a load that was refused: %v", err)
	}
}

// TestSignaturesRest: while something is loaded, signatures are not checked.
func TestSignaturesRest(t *testing.T) {
	ca := testpki.New(t)
	var list []snapshot.Unchecked
	reader := certs.Reader{Later: func(s certs.Signature) bool { list = append(list, snapshot.Unchecked{Signature: s}); return true }}
	for range 3 {
		c := ca.Intermediate("servers").Server("one.test")
		block, rest := pem.Decode(c.PEM())
		block.Bytes[len(block.Bytes)-1] ^= 1
		if _, _, err := reader.Parse(certs.Source{Cert: append(pem.EncodeToMemory(block), rest...), Key: c.KeyPEM()}); err != nil {
			t.Fatal(err)
		}
	}
	m := &Main{log: slog.New(slog.DiscardHandler), book: record.NewBook(io.Discard)}
	m.front = frontend.New(frontend.Config{Book: m.book, Log: m.log})
	defer m.book.Close()
	defer m.front.Drain(canceled())
	found := func() int {
		m.signatures.mu.Lock()
		defer m.signatures.mu.Unlock()
		return len(m.signatures.wrong)
	}
	synctest.Test(t, func(t *testing.T) {
		m.signatures.stop = make(chan struct{})
		m.signatures.busy.Store(true)
		m.checkSignatures(list)
		time.Sleep(time.Second)
		if n := found(); n != 1 { // the one under way
			t.Errorf("%d checked during a load", n)
		}
		m.signatures.busy.Store(false)
		time.Sleep(time.Second)
		if n := found(); n != len(list) {
			t.Errorf("%d of %d checked after it", n, len(list))
		}
		m.signatures.close()
	})
}
