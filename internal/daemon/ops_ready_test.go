package daemon

import (
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"countersign/internal/frontend"
	"countersign/internal/journal"
	"countersign/internal/record"
	"countersign/internal/refresh"
)

// TestNotReady: before the first configuration is in force, which nobody can see from outside, and while draining.
func TestNotReady(t *testing.T) {
	m := &Main{log: slog.New(slog.DiscardHandler), book: record.NewBook(io.Discard)}
	m.front = frontend.New(frontend.Config{Book: m.book, Log: m.log})
	m.files = refresh.Watch(refresh.Config{Reload: func() error { return nil }, Log: m.log})
	defer m.files.Close()
	m.outside = newOutside(m.log, func() {}, func() {})
	defer m.outside.close()
	m.control, m.journal = m.newControl(), journal.New(m.log)
	m.ops = newOps(m)
	ask := func(path string) (int, string) {
		w := httptest.NewRecorder()
		m.ops.handler.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code, w.Body.String()
	}
	if code, body := ask("/readyz"); code != 503 || !strings.Contains(body, "no configuration") {
		t.Errorf("before the first configuration: %d %q", code, body)
	}
	if code, _ := ask("/livez"); code != 200 {
		t.Errorf("livez: %d", code)
	}
	if code, body := ask("/metrics"); code != 200 {
		t.Errorf("metrics: %d %s", code, body)
	}
	m.front.Drain(canceled())
	m.book.Close()
}
