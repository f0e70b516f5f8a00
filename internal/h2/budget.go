package h2

// What a peer may cost without use. Costs are in points; a connection may run up capacity of them at once and gets
// refill back each second, and more for what it uses: whoever uploads, downloads or asks as intended never runs out.
const (
	capacity = 1000
	refill   = 50
	// debt is what a target may cost beyond its capacity before its connection ends.
	debt = 4 * capacity

	costReset        = 4  // a stream opened and reset by the peer (CVE-2023-44487)
	costRefused      = 4  // a stream beyond the limit
	costProvoked     = 10 // a stream that we had to reset because of what came on it (CVE-2025-8671)
	costSettings     = 10
	costPing         = 1
	costPriority     = 1
	costUnknown      = 2
	costWindow       = 1 // WINDOW_UPDATE
	costClosed       = 1 // a frame on a stream that is closed
	costContinuation = 1
	costEmptyBlock   = 20 // CONTINUATION without anything
	costEmptyData    = 5  // DATA with neither bytes nor an end (CVE-2019-9518)
	costTinyData     = 1  // DATA of less than tiny bytes while others wait to be read

	earnMessage  = 6 // a stream that both sides ended properly
	earnSent     = 3 // a frame of data sent that was worth it: the peer may answer with two WINDOW_UPDATE and a PING
	earnReceived = 1 // a frame of data received that was worth it

	tiny  = 5   // a gRPC message is never shorter than its prefix
	worth = 256 // bytes in a frame of data
	// worthSent is less: a peer that grants its window byte by byte earns nothing (CVE-2019-9511).
	worthSent = 64
	// worthGrant is the least that a WINDOW_UPDATE must grant to cost nothing while it grants what was used. Some clients
	// grant every 4 KiB again, on the stream and on the connection.
	worthGrant = 1 << 10
)

// late takes the cost of a frame on a stream that is closed, with size bytes of data. A target pays nothing for what it
// sent before it knew that we had reset the stream: else a client that aborts many requests would end the connection for
// all that share it. Called with mu held.
func (c *Conn) late(size int32) error {
	switch {
	case size > 0 && c.lateBytes >= int64(size):
		c.lateBytes -= int64(size)
		return nil
	case size == 0 && c.lateFrames > 0:
		c.lateFrames--
		return nil
	}
	return c.spend(costClosed, "frames on closed streams")
}

// expectLate notes what the target may have sent on s before it reads our reset.
func (c *Conn) expectLate(s *Stream) {
	if c.client {
		c.lateBytes += int64(max(s.recvWindow, 0))
		c.lateFrames += lateFrames
	}
}

// lateFrames is how many frames without data may come on a stream: its head, trailers, RST_STREAM, WINDOW_UPDATE.
const lateFrames = 6

// budget is what is left. Guarded by the connection's lock.
type budget struct {
	points int
	since  int64 // of the last refill, Unix milliseconds
}

func (b *budget) earn(n int) { b.points = min(b.points+n, capacity) }

// spend reports whether the peer may still go on.
func (b *budget) spend(n int, now func() int64) bool {
	if b.points -= n; b.points >= 0 {
		return true
	}
	t := now()
	if got := (t - b.since) * refill / 1000; got > 0 {
		b.earn(int(min(got, 2*capacity)))
		b.since = t
	}
	return b.points >= 0
}
