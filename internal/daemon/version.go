package daemon

import "runtime/debug"

// version is that of the program, as spans say it; empty for one that was not built from a release.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return ""
}
