package snapshot

import (
	"strings"
	"testing"

	"countersign/internal/message"
)

// desync_mitigation reaches the reader of each listener by its own name, and is the strictest where nothing is said.
func TestMitigation(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct{ old, line, want string }{
		{"    protocol: passthrough\n", "desync_mitigation: monitor", "no meaning on a listener of protocol passthrough"},
		{"    protocol: http\n", "desync_mitigation: off", "strictest"},
		{"    protocol: http\n", "desync_mitigation: Defensive", "defensive"},
	} {
		s, problems := b.compile(strings.Replace(good, c.old, c.old+"    "+c.line+"\n", 1))
		if s != nil || !strings.Contains(problems.Error(), c.want) {
			t.Errorf("%s: %v", c.line, problems)
		}
	}
	for _, line := range []string{"", "desync_mitigation: strictest", "desync_mitigation: defensive", "desync_mitigation: monitor"} {
		s, problems := b.compile(strings.Replace(good, "    protocol: http\n", "    protocol: http\n    "+line+"\n", 1))
		if s == nil {
			t.Fatal(problems)
		}
		want, _ := message.ParseMitigation(strings.TrimPrefix(line, "desync_mitigation: "))
		for name, mode := range map[string]message.Mitigation{"plain": want, "public": message.Strictest} {
			if got := s.Listeners[name].Limits.Message.Mitigation; got != mode {
				t.Errorf("%q: listener %s: %s", line, name, got)
			}
		}
	}
}
