package h1

import (
	"bytes"
	"io"

	"countersign/internal/message"
	"countersign/internal/reason"
)

// Body reads the body that follows a head. Read returns io.EOF only when the body is complete; a body that ends early is
// io.ErrUnexpectedEOF. Trailers are checked and dropped (RFC 9110 section 6.5 lets an intermediary discard them), unless
// [Body.CollectTrailers] asked for them.
type Body struct {
	d        *Reader
	left     int64 // of the Content-Length, or of the current chunk
	total    int64 // decoded so far
	limit    int64 // of total; 0 means none
	overhead int   // bytes of chunk extensions and trailers so far
	err      error
	framing  message.Framing
	state    chunkState
	bad      reason.Reason
	request  bool
	collect  bool // trailers, see CollectTrailers
}

type chunkState uint8

const (
	chunkSize  chunkState = iota // before a chunk-size line
	chunkData                    // inside chunk data
	chunkEnd                     // before the CR LF behind chunk data
	chunkTrail                   // in the trailer section
)

// maxOverhead bounds what a chunked body may spend on extensions and trailers (CVE-2023-39326).
const maxOverhead = 16 << 10

// Body returns the body of the head that was read last. It is the reader's own and valid until the next head.
func (d *Reader) Body(h *message.Head, request bool) *Body {
	d.body = Body{d: d, framing: h.Framing, left: h.ContentLength, bad: reason.UpstreamBadResponse, request: request}
	if request {
		d.body.bad, d.body.limit = reason.ChunkInvalid, d.limits.BodyBytes
	}
	return &d.body
}

// Done reports whether the body was read to its end.
func (b *Body) Done() bool { return b.framing == message.NoBody || b.err == io.EOF }

// Buffered returns the whole rest of the body if its length is known and all of it is buffered, and consumes it.
func (b *Body) Buffered() ([]byte, bool) {
	if b.framing != message.Length || b.err != nil || int64(b.d.Buffered()) < b.left {
		return nil, false
	}
	p := (*b.d.buf)[b.d.r : b.d.r+int(b.left)]
	b.d.r += int(b.left)
	b.total += b.left
	b.left, b.err = 0, io.EOF
	return p, true
}

// BufferedBehind is Buffered with head in front of the body, if that is longer and there is room: what has been read goes
// without being copied. The head of the message is overwritten.
func (b *Body) BufferedBehind(head []byte) ([]byte, bool) {
	if int64(len(head)) > b.left || len(head) > b.d.r {
		return nil, false
	}
	p, ok := b.Buffered()
	if !ok {
		return nil, false
	}
	start := b.d.r - len(p) - len(head)
	copy((*b.d.buf)[start:], head)
	return (*b.d.buf)[start:b.d.r], true
}

// Ready returns up to n decoded bytes that are buffered already, without reading from the connection, and consumes them;
// only for bodies that are not chunked.
func (b *Body) Ready(n int) []byte {
	if b.err != nil || b.framing == message.NoBody || b.framing == message.Chunked {
		return nil
	}
	n = min(n, b.d.Buffered())
	if b.framing == message.Length {
		n = int(min(int64(n), b.left))
		if b.left -= int64(n); b.left == 0 {
			b.err = io.EOF
		}
	}
	p := (*b.d.buf)[b.d.r : b.d.r+n]
	b.d.r += n
	b.total += int64(n)
	return p
}

// Total is the number of decoded bytes that were read.
func (b *Body) Total() int64 { return b.total }

// Read reads decoded bytes.
func (b *Body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.read(p)
	b.total += int64(n)
	if (err == nil || err == io.EOF) && b.limit > 0 && b.total > b.limit {
		err = refuse(reason.BodyTooLarge, "", "")
	}
	b.err = err
	return n, err
}

func (b *Body) read(p []byte) (int, error) {
	switch b.framing {
	case message.NoBody:
		return 0, io.EOF
	case message.UntilClose:
		return b.d.read(p)
	case message.Length:
		if b.left == 0 {
			return 0, io.EOF
		}
		if int64(len(p)) > b.left {
			p = p[:b.left]
		}
		n, err := b.d.read(p)
		b.left -= int64(n)
		if b.left == 0 {
			err = io.EOF
		} else if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return n, err
	}
	n, err := b.chunked(p)
	if err == io.EOF && b.state != chunkTrail {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Read reads what is buffered and then the connection itself, for connections that stop being HTTP. It gives the buffer
// back when that is empty.
func (d *Reader) Read(p []byte) (int, error) {
	if d.Buffered() == 0 {
		d.Release()
	}
	return d.read(p)
}

// read takes buffered bytes first and then reads directly into p.
func (d *Reader) read(p []byte) (int, error) {
	if d.Buffered() > 0 {
		n := copy(p, (*d.buf)[d.r:d.w])
		d.r += n
		return n, nil
	}
	return d.src.Read(p)
}

// chunked decodes the chunked coding (RFC 9112 section 7.1) strictly: 1 to 15 hexadecimal digits, an optional extension,
// CR LF, the data, CR LF. It returns io.EOF in state chunkTrail only.
func (b *Body) chunked(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		switch b.state {
		case chunkData:
			q := p[n:]
			if int64(len(q)) > b.left {
				q = q[:b.left]
			}
			if n > 0 && b.d.Buffered() == 0 {
				return n, nil // give what there is before blocking
			}
			m, err := b.d.read(q)
			n += m
			b.left -= int64(m)
			if b.left == 0 {
				b.state = chunkEnd
			} else if err != nil {
				return n, err
			}
		default:
			if n > 0 && (b.d.Buffered() == 0 || bytes.IndexByte((*b.d.buf)[b.d.r:b.d.w], '\n') < 0) {
				return n, nil
			}
			line, err := b.d.chunkLine(b.bad)
			if err != nil {
				if err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return n, err
			}
			if err := b.step(line); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// step handles one line of the chunked coding that is not data.
func (b *Body) step(line []byte) error {
	switch b.state {
	case chunkEnd:
		if len(line) != 0 {
			return refuse(b.bad, "CR LF behind the chunk", "other bytes")
		}
		b.state = chunkSize
	case chunkSize:
		var size int64
		i := 0
		for ; i < len(line); i++ {
			x := hex(line[i])
			if x < 0 {
				break
			}
			if i == 15 {
				return refuse(b.bad, "a chunk size of at most 15 digits", "a longer one")
			}
			size = size<<4 | int64(x)
		}
		if i == 0 || i < len(line) && line[i] != ';' {
			return refuse(b.bad, "hexadecimal digits, then ';' or CR LF", "something else in the chunk size")
		}
		if !message.IsValue(line[i:]) {
			return refuse(b.bad, "a chunk extension without control characters", "a control character")
		}
		if b.overhead += len(line) - i; b.overhead > maxOverhead {
			return refuse(b.bad, "chunk extensions of at most 16 KiB together", "more")
		}
		b.left, b.state = size, chunkData
		if size == 0 {
			b.state = chunkTrail
		}
	case chunkTrail:
		if len(line) == 0 {
			return io.EOF
		}
		if b.overhead += len(line); b.overhead > maxOverhead {
			return refuse(b.bad, "trailers of at most 16 KiB together", "more")
		}
		colon := bytes.IndexByte(line, ':')
		if colon < 0 || !message.IsToken(line[:colon]) {
			return refuse(b.bad, "name: value in a trailer", "something else")
		}
		if !message.IsValue(line[colon+1:]) {
			return refuse(b.bad, "a trailer value without control characters", "a control character")
		}
		if b.collect && !ForbiddenTrailer(line[:colon], b.request) {
			return b.keep(line, colon)
		}
	}
	return nil
}

// maxChunkLine bounds a line of the chunked coding, without its line end.
const maxChunkLine = smallBuffer - 64

// chunkLine reads one CR LF line of at most maxChunkLine bytes and consumes it.
func (d *Reader) chunkLine(bad reason.Reason) ([]byte, error) {
	seen := 0
	for {
		if d.buf != nil {
			b := (*d.buf)[d.r:d.w]
			if i := bytes.IndexByte(b[seen:], '\n'); i >= 0 {
				end := seen + i
				if end > maxChunkLine {
					return nil, refuse(bad, "a chunk line of at most 4 KiB", "a longer one")
				}
				if end == 0 || b[end-1] != '\r' {
					return nil, refuse(bad, "line ends of CR LF", "a bare LF")
				}
				line := b[:end-1]
				if bytes.IndexByte(line, '\r') >= 0 {
					return nil, refuse(bad, "line ends of CR LF", "a bare CR")
				}
				d.r += end + 1
				return line, nil
			}
			if seen = len(b); seen > maxChunkLine {
				return nil, refuse(bad, "a chunk line of at most 4 KiB", "a longer one")
			}
		}
		if err := d.fill(); err != nil {
			if err == errFull {
				err = refuse(bad, "a chunk line of at most 4 KiB", "a longer one")
			}
			return nil, err
		}
	}
}

func hex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
