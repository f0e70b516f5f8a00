package daemon

import (
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"countersign/internal/refresh"
	"countersign/internal/snapshot"
)

// Damaged is the code of a condition: a certificate of ours is in force that its issuer did not sign. Who verifies it, as
// clients do, refuses it.
const Damaged = "certificate_damaged"

// signatures checks what a first configuration left unchecked, behind the start.
type signatures struct {
	stop chan struct{}
	busy atomic.Bool // something is loaded, which comes first

	mu     sync.Mutex
	done   chan struct{} // nil before the first check
	closed bool
	wrong  []wrong
	beyond int // wrong ones that are not in it
}

type wrong struct {
	snapshot.Unchecked
	condition refresh.Condition
}

// checkSignatures begins to check what the first configuration left unchecked. It takes a tenth of a processor.
func (m *Main) checkSignatures(list []snapshot.Unchecked) {
	s := &m.signatures
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(list) == 0 || s.closed || s.done != nil {
		return
	}
	s.done = make(chan struct{})
	go func() {
		defer close(s.done)
		defer func() {
			if v := recover(); v != nil {
				m.book.Panicked()
				m.log.Error("checking signatures: bug", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			}
		}()
		for i := range list {
			start := time.Now()
			if err := list[i].Check(); err != nil {
				if now := m.front.Current(); now != nil && now.Serves(&list[i]) {
					m.log.Error("a certificate of ours is damaged", "pair", list[i].Pair, "problem", err.Error())
				}
				s.found(list[i], err)
			}
			for rest := 9 * time.Since(start); ; rest = 20 * time.Millisecond {
				select {
				case <-time.After(rest):
				case <-s.stop:
					return
				}
				if !s.busy.Load() {
					break
				}
			}
		}
		m.log.Info("signatures on certificates of ours are checked", "certificates", len(list))
	}()
}

func (s *signatures) found(u snapshot.Unchecked, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	const most = 1000 // each is looked for among all pairs whenever conditions are asked for
	if len(s.wrong) == most {
		s.beyond++
		return
	}
	s.wrong = append(s.wrong, wrong{u, refresh.Condition{Code: Damaged, Text: u.Pair + ": " + err.Error(), Since: time.Now()}})
}

// conditions are about what is still in force: the first ones, and how many there are besides.
func (s *signatures) conditions(now *snapshot.Snapshot) (list []refresh.Condition) {
	const most = 20
	s.mu.Lock()
	defer s.mu.Unlock()
	more := s.beyond
	for i := range s.wrong {
		switch w := &s.wrong[i]; {
		case !now.Serves(&w.Unchecked):
		case len(list) < most:
			list = append(list, w.condition)
		default:
			more++
		}
	}
	if more > 0 {
		list = append(list, refresh.Condition{Code: Damaged, Text: fmt.Sprintf("%d more certificates were damaged at the start, which the log names", more), Since: s.wrong[0].condition.Since})
	}
	return list
}

// close ends checking.
func (s *signatures) close() {
	s.mu.Lock()
	done := s.done
	if !s.closed {
		s.closed = true
		close(s.stop)
	}
	s.mu.Unlock()
	if done != nil {
		<-done
	}
}
