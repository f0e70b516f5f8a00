package trust

import (
	"encoding/binary"
	"hash/maphash"
	"math/big"
	"math/bits"
)

const (
	maxSerial = 20 // octets; certificates with more are never accepted (RFC 5280 section 4.1.2.2)

	perBucket = 4 // entries, on average
	dateBytes = 5 // of seconds since the year 1, which is enough for the year 9999
	entryTail = dateBytes + 1
)

// seed differs from process to process, so that nobody can choose serial numbers that fall into one bucket.
var seed = maphash.MakeSeed()

// entries are the serial numbers of a list with date and reason. Records that hash to the same bucket lie side by side
//
//	length of the serial number (1), serial number, date (5), reason (1)
//
// so a lookup reads one number and, mostly, two neighbouring cache lines, and there is no pointer for the garbage
// collector to follow. A length of 0 ends a bucket early: serial numbers that came twice left room.
type entries struct {
	start   []uint32 // of each bucket in records, and the end
	records []byte
	n       int
}

// revocation is what is kept of an entry, for the evidence.
type revocation struct {
	at     int64 // seconds since the year 1
	reason int8  // RFC 5280 section 5.3.1; 127 stands for all that are greater
}

const removeFromCRL = 8

// find looks for a serial number without allocating.
func (e *entries) find(serial *big.Int) (revocation, bool) {
	var buf [maxSerial]byte
	size := (serial.BitLen() + 7) / 8
	if e.n == 0 || serial.Sign() <= 0 || size > maxSerial {
		return revocation{}, false
	}
	key := serial.FillBytes(buf[:size])
	if at := e.seek(e.bucket(key), key); len(at) > 0 && at[0] != 0 {
		return decode(at[1+size:]), true
	}
	return revocation{}, false
}

func decode(tail []byte) revocation {
	return revocation{at: int64(tail[0])<<32 | int64(binary.BigEndian.Uint32(tail[1:])), reason: int8(tail[dateBytes])}
}

// bucket is the number of the bucket that serial belongs to.
func (e *entries) bucket(serial []byte) uint32 {
	b, _ := bits.Mul64(maphash.Bytes(seed, serial), uint64(len(e.start)-1))
	return uint32(b)
}

// seek returns the records of a bucket from that of serial on. Without one they begin with the first free byte, or there
// are none when the bucket is full.
func (e *entries) seek(bucket uint32, serial []byte) []byte {
	r := e.records[e.start[bucket]:e.start[bucket+1]]
	for len(r) > 0 && r[0] != 0 {
		if n := int(r[0]); n == len(serial) && string(r[1:1+n]) == string(serial) {
			break
		}
		r = r[1+int(r[0])+entryTail:]
	}
	return r
}

// filler makes entries: newFiller, reserve for each, settle, add for each, flush.
type filler struct {
	*entries
	waiting [256]waiting
	n       int
	touched byte // keeps the compiler from leaving reads out
}

// waiting is an entry that has not been put into its bucket yet.
type waiting struct {
	serial []byte
	revocation
	bucket uint32
}

// newFiller begins a set of about n serial numbers.
func newFiller(n int) *filler {
	return &filler{entries: &entries{start: make([]uint32, n/perBucket+2)}}
}

// reserve makes room for serial.
func (f *filler) reserve(serial []byte) {
	f.start[f.bucket(serial)+1] += uint32(1 + len(serial) + entryTail)
}

// settle ends the reservations. What is reserved is less than was read, so 32 bits are enough.
func (f *filler) settle() {
	total := uint32(0)
	for i := range f.start {
		total += f.start[i]
		f.start[i] = total
	}
	f.records = make([]byte, total)
}

// add enters a serial number that has room. Of several entries of one number the first stays, but one that revokes takes
// the place of one that releases.
func (f *filler) add(serial []byte, r revocation) {
	f.waiting[f.n] = waiting{serial, r, f.bucket(serial)}
	if f.n++; f.n == len(f.waiting) {
		f.flush()
	}
}

// flush puts what waits into its buckets. The places are read before, all together, because they are all over the memory:
// so the processor waits for many of them at once, which halves the time that a large list takes.
func (f *filler) flush() {
	all := f.waiting[:f.n]
	f.n = 0
	var touched byte
	for i := range all {
		touched += f.records[f.start[all[i].bucket]]
	}
	f.touched = touched
	for i := range all {
		w := &all[i]
		at := f.seek(w.bucket, w.serial)
		tail := at[1+len(w.serial):]
		if at[0] == 0 {
			f.entries.n++
			at[0] = byte(len(w.serial))
			copy(at[1:], w.serial)
		} else if decode(tail).reason != removeFromCRL {
			continue
		}
		tail[0] = byte(w.at >> 32)
		binary.BigEndian.PutUint32(tail[1:], uint32(w.at))
		tail[dateBytes] = byte(w.reason)
	}
}
