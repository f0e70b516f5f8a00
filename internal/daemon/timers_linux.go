package daemon

import (
	"bytes"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// timerSlack is how late a sleep or a timeout of this process may end, so that the system can let several end at once.
// Nothing but the gathering of log lines is timed as finely here, and under load Go's monitor looks every 10 ms anyway.
const timerSlack = 2 * time.Millisecond

// startedAgain in the environment says that CoarseTimers has been here, whatever came of it, and what the process was
// called before: in ps, in systemd, and for killall.
const startedAgain = "COUNTERSIGN_STARTED_AGAIN"

// CoarseTimers gives all threads of the process timerSlack, in place of the 50 µs that are the kernel's default. Call it on
// the first thread of the process, before anything else.
//
// Go's monitor thread sleeps for 20 µs at a time when the process was idle just before, as one that waits for its clients
// mostly was, and setting a timer is dear in a virtual machine: that was an eighth of the CPU of a handshake. A thread has
// the slack of the one that started it, and the monitor is there before any code of ours. But a slack outlives execve(2)
// (prctl(2), PR_SET_TIMERSLACK), so the program starts itself again, once: the same process, with the same arguments and
// descriptors. It returns if there is nothing to do, or if that was not to be had; then timers are as they were. A slack
// that is not the default was chosen by somebody, and stays.
func CoarseTimers() {
	runtime.LockOSThread() // it is the calling thread's slack that survives
	defer runtime.UnlockOSThread()
	if name, again := os.LookupEnv(startedAgain); again {
		_ = os.Unsetenv(startedAgain)
		if name != "" {
			called(unix.PR_SET_NAME, append([]byte(name), 0))
		}
		return
	}
	const byDefault = 50 * time.Microsecond
	if slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err != nil || time.Duration(slack) != byDefault {
		return
	}
	if unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0) != nil {
		return
	}
	name := make([]byte, 16) // TASK_COMM_LEN
	called(unix.PR_GET_NAME, name)
	name, _, _ = bytes.Cut(name, []byte{0})
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, startedAgain+"=") })
	_ = syscall.Exec("/proc/self/exe", os.Args, append(env, startedAgain+"="+string(name)))
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // back to the default: one thread alone would be of no use
}

// called gets or sets the name of the thread, which ends with a zero.
func called(option int, name []byte) {
	_ = unix.Prctl(option, uintptr(unsafe.Pointer(unsafe.SliceData(name))), 0, 0, 0)
	runtime.KeepAlive(name)
}
