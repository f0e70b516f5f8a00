package record

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestRelay: the operator's log waits for a reader that reads, so that what was said has been written, and not for one that
// has stopped.
func TestRelay(t *testing.T) {
	t.Run("reads", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { // where no stall of the machine uses up the patience
			b := NewBook(io.Discard)
			defer b.Close()
			out := &buffer{}
			r := b.Relay(out)
			log := slog.New(slog.NewTextHandler(r, nil))
			for i := range 1000 {
				log.Info("said", "n", i)
				if text := out.String(); !strings.HasSuffix(text, fmt.Sprintf("n=%d\n", i)) {
					t.Fatalf("not written when Info returns: %d", i)
				}
			}
			r.Close()
			r.Close()
			log.Info("after the end") // costs nobody anything
		})
	})
	t.Run("H13/has stopped", func(t *testing.T) {
		b := NewBook(io.Discard)
		defer b.Close()
		pr, pw, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer pw.Close()
		r := b.Relay(pw)
		log := slog.New(slog.NewTextHandler(r, nil))
		begin := time.Now()
		text := strings.Repeat("x", 1000)
		for range 1000 {
			log.Info(text)
		}
		if took := time.Since(begin); took > 20*time.Second { // of the patience for each it would be 50 s
			t.Errorf("1000 lines took %v", took)
		}
		dropped := testutil.ToFloat64(b.dropped.WithLabelValues("operator"))
		if dropped == 0 {
			t.Error("nothing was counted as dropped")
		}
		all := make(chan string)
		go func() {
			data, _ := io.ReadAll(pr)
			all <- string(data)
		}()
		eventually(t, "it reads again", func() bool { return len(r.lines) == 0 })
		log.Info("last")
		r.Close()
		pw.Close()
		got := <-all
		if n := strings.Count(got, text); n+int(dropped) != 1000 {
			t.Errorf("%d lines, %v dropped", n, dropped)
		}
		if !strings.Contains(got, fmt.Sprintf("lines=%d\n", int(dropped))) || !strings.HasSuffix(got, "msg=last\n") {
			t.Errorf("the gap is not told, or the end is missing: %.300q", got[max(0, len(got)-300):])
		}
	})
}
