//go:build !linux

package daemon

// CoarseTimers does nothing where there is no timer slack.
func CoarseTimers() {}
