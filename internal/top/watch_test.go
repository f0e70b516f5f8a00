package top

import (
	"strings"
	"sync"
)

// screenWatch is a terminal that tells once it has shown a text.
type screenWatch struct {
	mu   sync.Mutex
	b    strings.Builder
	want string
	seen chan struct{}
}

func (w *screenWatch) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b.Write(p)
	if w.want != "" && strings.Contains(w.b.String(), w.want) {
		w.want = ""
		w.seen <- struct{}{}
	}
	return len(p), nil
}

func (w *screenWatch) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}
