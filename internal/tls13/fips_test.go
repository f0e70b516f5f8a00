package tls13

import (
	"crypto/fips140"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestFIPS: in FIPS mode, which is decided at the start of a process, crypto/tls goes on.
func TestFIPS(t *testing.T) {
	if fips140.Enabled() {
		tc, wire, h, _ := newRig(t).shake(t)
		if Take(tc, wire, h, nil) != nil {
			t.Error("it was taken over")
		}
		return
	}
	again := exec.Command(os.Args[0], "-test.run=^TestFIPS$", "-test.v")
	again.Env = append(os.Environ(), "GODEBUG=fips140=on")
	if out, err := again.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestFIPS") {
		t.Errorf("%v\n%s", err, out)
	}
}
