package refresh

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"
)

// guard keeps a panic from ending more than the goroutine it is in (F16). It is deferred.
func guard(log *slog.Logger, what string) {
	if p := recover(); p != nil && log != nil {
		log.Error(what+": bug", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	}
}

// restart is the pause after a loop that ended in a panic.
const restart = time.Second

// persist runs a loop until it returns by itself or ctx ends. After a panic it is begun anew: one bug must not be the end
// of all that the loop would have fetched (F16).
func persist(ctx context.Context, log *slog.Logger, what string, loop func()) {
	for {
		ended := false
		func() {
			defer guard(log, what)
			loop()
			ended = true
		}()
		if ended {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(restart):
		}
	}
}
