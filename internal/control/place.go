package control

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// checkPlace reports why the socket at path may be somebody else's, or become so: its folder is another user's, everybody
// may put files into it, or what is there belongs to another user. own is the user who asks; asks says that he is not the
// program but asks it. Root may ask the program of any user, if that user alone decides what is in the folder.
// A path that is not there is fine: whoever listens or connects is told so by the system.
func checkPlace(path string, own uint32, asks bool) error {
	folder := filepath.Dir(path)
	in, err := os.Stat(folder)
	if err != nil {
		return nil
	}
	trusted := func(uid uint32) bool { return uid == own || uid == 0 }
	keeper := ownerOf(in)
	switch mode := in.Mode(); {
	case mode.Perm()&0o002 != 0 && mode&fs.ModeSticky == 0:
		return fmt.Errorf("everybody may put another socket into its folder %s (mode %04o); take that right away: chmod o-w %s", folder, mode.Perm(), folder)
	case !trusted(keeper) && !(asks && own == 0):
		return fmt.Errorf("its folder %s belongs to user %d, expected user %d or root; give the folder to that user, or choose another", folder, keeper, own)
	}
	st, err := os.Lstat(path)
	if err != nil {
		return nil
	}
	switch owner := ownerOf(st); {
	case st.Mode()&fs.ModeSocket == 0:
		return fmt.Errorf("%s is not a socket (%s); remove it, or choose another path", path, st.Mode().Type())
	case trusted(owner), asks && own == 0 && owner == keeper:
		return nil
	case asks:
		return fmt.Errorf("it belongs to user %d, expected user %d or root; run this as the user of the program", owner, own)
	default:
		return fmt.Errorf("it belongs to user %d, expected user %d or root; remove it if nobody uses it", owner, own)
	}
}

// ownerOf is the user a file belongs to.
func ownerOf(st fs.FileInfo) uint32 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Uid
	}
	return ^uint32(0) // nobody: what is not known is not trusted
}
