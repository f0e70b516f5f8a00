package refresh

import (
	"io/fs"
	"syscall"
)

func stampOf(st fs.FileInfo) stamp {
	s := stamp{size: st.Size(), mtime: st.ModTime().UnixNano()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		s.dev, s.ino, s.ctime = sys.Dev, sys.Ino, sys.Ctim.Nano()
	}
	return s
}
