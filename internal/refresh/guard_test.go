package refresh

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestPersist(t *testing.T) {
	t.Run("F16/a panic is not the end of the loop", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var log bytes.Buffer
			runs, start := 0, time.Now()
			persist(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), "lists", func() {
				if runs++; runs < 4 {
					panic("as if")
				}
			})
			if took := time.Since(start); runs != 4 || took != 3*restart {
				t.Errorf("%d runs in %v, expected 4 in three seconds", runs, took)
			}
			if n := strings.Count(log.String(), `msg="lists: bug" panic="as if"`); n != 3 {
				t.Errorf("%d lines in the log, expected 3: %s", n, &log)
			}
		})
	})
	t.Run("F16/it ends with its context all the same", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			persist(ctx, nil, "lists", func() { panic("as if") })
		})
	})
}
