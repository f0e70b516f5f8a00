//go:build !linux

package refresh

import "io/fs"

func stampOf(st fs.FileInfo) stamp {
	t := st.ModTime().UnixNano()
	return stamp{size: st.Size(), mtime: t, ctime: t}
}
