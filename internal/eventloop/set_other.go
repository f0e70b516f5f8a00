//go:build !linux

package eventloop

type set struct{}

func openSet() (set, error) { return set{}, ErrUnsupported }

func (set) await(uintptr, uint64, bool) error { return ErrUnsupported }

func (set) wait([]uint64) (int, error) { return 0, ErrUnsupported }

func (set) close() {}
