package daemon

import (
	"countersign/internal/record"
	"countersign/internal/snapshot"
)

// openLog opens the outputs of s that are not open yet. What comes of it is settled by the caller.
func (m *Main) openLog(s *snapshot.Snapshot) (*record.Plan, error) {
	return m.book.Prepare(s.Outputs, s.PerReason, record.Streams{Stdout: m.o.Records, Stderr: m.o.Log})
}

// logTrouble tells the operator what is wrong with an output of the log.
func (m *Main) logTrouble(t record.Trouble) {
	switch {
	case t.Err != nil:
		m.log.Error("a log output fails; lines wait while there is room, then they are dropped and counted", "output", t.Output, "dropped", t.Dropped, "error", t.Err)
	case t.Dropped > 0:
		m.log.Warn("a log output was too slow or failed; it is written again, but lines are missing", "output", t.Output, "dropped", t.Dropped)
	default:
		m.log.Info("a log output is written again", "output", t.Output)
	}
}
