//go:build countersign_profile

// This file is no part of Countersign. The benchmark lays it over cmd/countersign (go build -overlay) when it wants to
// know where the CPU goes, because the program itself has no listener for profiles and no switch for one. What is
// measured is built without it.
package main

import (
	"bufio"
	"net"
	"os"
	"runtime"
	"runtime/pprof"

	"golang.org/x/sys/unix"
)

// init serves profiles on a socket in the working folder: "cpu" until the caller has no more to say, "heap" at once.
func init() {
	if slack, _ := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); slack == 50_000 && os.Getenv("COUNTERSIGN_STARTED_AGAIN") == "" {
		return // the program is about to start itself again (daemon.CoarseTimers)
	}
	runtime.MemProfileRate = 64 << 10 // fine enough for a thousand connections, and of no weight in CPU profiles
	l, err := net.Listen("unix", "profile.sock")
	if err != nil {
		return // countersign check and others, run where there is such a socket already
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			benchProfile(c)
			c.Close()
		}
	}()
}

func benchProfile(c net.Conn) {
	r := bufio.NewReader(c)
	switch what, _ := r.ReadString('\n'); what {
	case "heap\n":
		runtime.GC()
		_ = pprof.Lookup("heap").WriteTo(c, 0)
	case "cpu\n":
		if pprof.StartCPUProfile(c) == nil {
			_, _ = r.ReadByte()
			pprof.StopCPUProfile()
		}
	}
}
