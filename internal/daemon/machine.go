package daemon

import (
	"os"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// tune sets the garbage collector from the machine: a larger heap between collections costs little here, where live
// data is small (reference: about 6 % of a handshake's CPU), and the limit keeps it inside the container. A heap that is
// larger still costs what it saves, in pages that are touched for the first time.
func tune() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	_, _ = memlimit.Set(memlimit.WithRatio(0.9), memlimit.WithProvider(memlimit.ApplyFallback(memlimit.FromCgroup, memlimit.FromSystem)))
}
