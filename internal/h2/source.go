package h2

import (
	"io"
	"sync"
)

// source buffers what the peer sends. While nothing is under way it holds no large buffer: a read that may wait long
// goes into the small one, and a pooled one is taken for the rest of what is there.
type source struct {
	conn   *Conn
	store  *[]byte
	unread []byte // in small or *store
	full   bool   // the last read left no room, so there is more
	small  [512]byte

	between bool // nothing of a frame was read yet
	stirred bool // Doze came in the middle of a frame, and nothing has come since
}

const bigBuffer = 32 << 10

var bigBuffers = sync.Pool{New: func() any { b := make([]byte, bigBuffer); return &b }}

func (s *source) release() {
	if s.store != nil {
		bigBuffers.Put(s.store)
		s.store = nil
	}
	s.unread, s.full = nil, false
}

// fill reads what the peer sends next, of which want is known to come. Nothing is unread when it is called. The error is
// errDozed when nothing came for a while, and no part of a frame before.
func (s *source) fill(want int) error {
	s.conn.beforeRead()
	b := s.small[:]
	if s.full || want > len(s.small) {
		if s.store == nil {
			s.store = bigBuffers.Get().(*[]byte)
		}
		b = *s.store
	} else {
		s.release()
	}
	for empty := 0; empty < 16; { // a connection that returns nothing and no error is broken
		n, err := s.conn.nc.Read(b)
		if n > 0 {
			s.unread, s.full, s.between = b[:n], n == len(b), false
			if s.stirred {
				s.stirred = false
				s.conn.awake()
			}
			return nil
		}
		switch {
		case err == nil:
			empty++
		case !s.conn.woken(err):
			return err
		case s.between:
			return errDozed
		default:
			s.stirred = true // the rest of the frame is waited for here
		}
	}
	return io.ErrNoProgress
}

// Read is for the framer, which reads frame headers and short payloads.
func (s *source) Read(p []byte) (int, error) {
	if len(s.unread) == 0 {
		if err := s.fill(0); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.unread)
	s.unread = s.unread[n:]
	return n, nil
}

// some returns between 1 and n bytes, valid until the next call.
func (s *source) some(n int) ([]byte, error) {
	if len(s.unread) == 0 {
		if err := s.fill(n); err != nil {
			return nil, unexpected(err)
		}
	}
	p := s.unread[:min(n, len(s.unread))]
	s.unread = s.unread[len(p):]
	return p, nil
}

// skip reads n bytes and forgets them.
func (s *source) skip(n int) error {
	for n > 0 {
		p, err := s.some(n)
		if err != nil {
			return err
		}
		n -= len(p)
	}
	return nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
