package daemon

import (
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"countersign/internal/refresh"
)

// telling writes conditions to the log that come to be by themselves, as time goes on or answers stay out, so that nobody is
// there to log them when they do. All others are logged where they arise.
type telling struct {
	stop, done chan struct{}
	once       sync.Once
	told       []refresh.Condition
}

// tellEvery is how often it is looked.
const tellEvery = 2 * time.Second

// tell begins it.
func (m *Main) tell() {
	t := &m.telling
	t.stop, t.done = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(t.done)
		defer func() {
			if v := recover(); v != nil {
				m.book.Panicked()
				m.log.Error("telling conditions: bug", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			}
		}()
		tick := time.NewTicker(tellEvery)
		defer tick.Stop()
		for {
			m.tellOnce()
			select {
			case <-tick.C:
			case <-t.stop:
				return
			}
		}
	}()
}

func (t *telling) close() {
	if t.stop == nil {
		return
	}
	t.once.Do(func() { close(t.stop) })
	<-t.done
}

// tellOnce logs what has come and what has gone. Texts hold ages, which change, so a condition is known by what it is and
// since when.
func (m *Main) tellOnce() {
	expired := func(c refresh.Condition) bool { return strings.Contains(c.Text, " expired ") } // which was to expire before
	among := func(list []refresh.Condition, c refresh.Condition) bool {
		return slices.ContainsFunc(list, func(o refresh.Condition) bool {
			return o.Code == c.Code && o.Since.Equal(c.Since) && expired(o) == expired(c)
		})
	}
	var now []refresh.Condition
	for _, c := range m.Conditions() {
		if (c.Code == refresh.ListStale || c.Code == refresh.ResponderUnusable || c.Code == refresh.ResponderBusy) && !among(now, c) {
			now = append(now, c)
		}
	}
	for _, c := range now {
		if !among(m.telling.told, c) {
			m.log.Warn("condition", "condition", c.Code, "problem", c.Text)
		}
	}
	for _, c := range m.telling.told {
		if !slices.ContainsFunc(now, func(o refresh.Condition) bool { return o.Code == c.Code && o.Since.Equal(c.Since) }) {
			m.log.Info("condition: put right", "condition", c.Code, "was", c.Text)
		}
	}
	m.telling.told = now
}
