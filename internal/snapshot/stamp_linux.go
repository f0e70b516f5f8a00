package snapshot

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// local are the file systems whose kernel code gives a file another ctime with every write, by whatever name and into
// whatever place, and lets nobody set it. Others, as those of other machines, may answer from a cache; tmpfs does not note a
// write through a mapping.
var local = map[int64]bool{unix.EXT4_SUPER_MAGIC: true, unix.XFS_SUPER_MAGIC: true, unix.BTRFS_SUPER_MAGIC: true,
	unix.F2FS_SUPER_MAGIC: true}

// stampOf returns what a stat says; ok is false where that cannot be believed.
func (r *fileReader) stampOf(st *syscall.Stat_t, name string) (s stamp, ok bool) {
	tells, known := r.devices[st.Dev]
	if !known {
		var fs unix.Statfs_t
		tells = unix.Statfs(name, &fs) == nil && local[int64(fs.Type)]
		if r.devices == nil {
			r.devices = make(map[uint64]bool)
		}
		r.devices[st.Dev] = tells
	}
	return stamp{st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}, tells
}
