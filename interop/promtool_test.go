package interop_test

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// TestPromtool: Prometheus takes the alert rules, and they fire when they should.
func TestPromtool(t *testing.T) {
	need(t, "promtool")
	dir, err := filepath.Abs("../deploy/prometheus")
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		cmd := exec.Command("promtool", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}
