package forward

import (
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/internal/message"
	"countersign/internal/reason"
	"countersign/internal/socket"
)

func at(ms int64) *Clock {
	c := new(Clock)
	c.Set(time.UnixMilli(ms))
	return c
}

// tick is what a deadline may be late, in milliseconds: the clock is that coarse.
const tick = int64(Tick / time.Millisecond)

func TestWait(t *testing.T) {
	clock := at(1000)
	var w Wait
	if _, ok := w.expire(1 << 40); ok {
		t.Error("a wait that was never set expired")
	}
	w.Set(clock, ReadingBody, time.Second)
	if _, ok := w.expire(1999 + tick); ok {
		t.Error("expired too early")
	}
	// Progress moves the deadline, and the phase.
	clock.waits.Store(1900)
	w.Set(clock, AwaitTarget, time.Second)
	if _, ok := w.expire(2899 + tick); ok || w.Phase() != AwaitTarget {
		t.Error("progress did not count")
	}
	w.Set(clock, AwaitTarget, 0)
	if _, ok := w.expire(1 << 40); ok || w.Phase() != AwaitTarget {
		t.Error("a wait without a deadline expired")
	}
	w.Set(clock, Free, time.Second)
	if _, ok := w.expire(1 << 40); ok {
		t.Error("Free expired")
	}
	if why, ok := w.Expired(); ok || why != reason.Unset {
		t.Error(why)
	}
}

// Whoever sets a wait while the machine stands still has all of its time when it goes on.
func TestClockOfStandstill(t *testing.T) {
	clock := at(1000)
	var w Wait
	w.Set(clock, Exchanging, time.Millisecond) // by the real clock it is 60,999 now
	clock.Set(time.UnixMilli(61000))
	if _, ok := w.expire(clock.Waited().UnixMilli()); ok {
		t.Error("expired within a millisecond of being set")
	}
	if got := clock.Now().UnixMilli(); got != 61000 {
		t.Errorf("the time of day is %d", got)
	}
	clock.Set(time.UnixMilli(61200))
	if _, ok := w.expire(clock.Waited().UnixMilli()); !ok {
		t.Error("not expired 200 ms later")
	}
	clock.Set(time.UnixMilli(61000)) // clocks are set back
	if got := clock.Waited().UnixMilli(); got != 1450 {
		t.Errorf("waits are at %d, expected 1450", got)
	}
}

// What a step leaves below a millisecond is not lost.
func TestClockRests(t *testing.T) {
	now := time.UnixMilli(1000)
	clock := new(Clock)
	clock.Set(now)
	for range 1000 {
		now = now.Add(1700 * time.Microsecond)
		clock.Set(now)
	}
	if got := clock.Waited().UnixMilli(); got != 2700 {
		t.Errorf("waits are at %d after 1.7 s, expected 2700", got)
	}
}

// Once expired a wait stays so: the sweep has made the blocked call fail, or is about to, and nobody may go on as if not.
func TestExpiredStays(t *testing.T) {
	for p := Handshaking; p <= Draining; p++ {
		clock := at(1000)
		var w Wait
		w.Set(clock, p, time.Second)
		if got, ok := w.expire(2000 + tick); !ok || got != p {
			t.Fatalf("phase %d: expire says %d, %v", p, got, ok)
		}
		if _, ok := w.expire(3000 + tick); ok {
			t.Errorf("phase %d: expired twice", p)
		}
		w.Set(clock, Free, 0)
		w.Set(clock, Idle, time.Hour)
		w.extend(clock, p, time.Hour)
		if why, ok := w.Expired(); !ok || why != p.Reason() || w.Phase() != p {
			t.Errorf("phase %d: Set after the end changed it to %d, %v", p, w.Phase(), why)
		}
		if p.Reason() == reason.Internal || p.Reason() == reason.Unset {
			t.Errorf("phase %d has no reason", p)
		}
	}
	if Free.Reason() != reason.Internal || Phase(99).Reason() != reason.Internal {
		t.Error("phases that cannot end have reasons")
	}
}

func TestExtend(t *testing.T) {
	clock := at(1000)
	var w Wait
	w.Set(clock, AwaitTarget, 0)
	w.extend(clock, ReadingTarget, time.Second)
	if _, ok := w.expire(1 << 40); ok {
		t.Error("extended in another phase")
	}
	w.extend(clock, AwaitTarget, time.Second)
	if _, ok := w.expire(1999 + tick); ok {
		t.Error("too early")
	}
	if p, ok := w.expire(2000 + tick); !ok || p != AwaitTarget {
		t.Error("not extended")
	}
}

// The owner and the sweep agree about who was first, whatever the order.
func TestWaitRace(t *testing.T) {
	for range 500 {
		clock := at(1000)
		var w Wait
		w.Set(clock, AwaitTarget, time.Second)
		var wg sync.WaitGroup
		var swept bool
		wg.Add(2)
		go func() { defer wg.Done(); _, swept = w.expire(2000 + tick) }()
		go func() {
			defer wg.Done()
			clock.waits.Store(2000 + tick)
			w.Set(clock, WritingClient, time.Second)
		}()
		wg.Wait()
		if _, ended := w.Expired(); ended != swept {
			t.Fatalf("the sweep says %v, the owner sees %v", swept, ended)
		}
		if swept != (w.Phase() == AwaitTarget) {
			t.Fatalf("swept=%v, and the phase is %d", swept, w.Phase())
		}
	}
}

// line notes its read deadline.
type line struct{ read time.Time }

func (l *line) SetDeadline(t time.Time) error     { l.read = t; return nil }
func (l *line) SetReadDeadline(t time.Time) error { l.read = t; return nil }
func (*line) SetWriteDeadline(time.Time) error    { return nil }
func (*line) Peek() socket.State                  { return socket.Quiet }
func (*line) MayBeAlert() bool                    { return false }

// A request that begins when Doze comes is read all the same, whoever was first.
func TestDozeAtTheBeginning(t *testing.T) {
	clock, l := at(1000), new(line)
	w := &Watch{Clock: clock, Client: l}
	doze := func() bool { w.Doze(); return !l.read.IsZero() }
	w.Main.Set(clock, Idle, time.Minute)
	if !doze() {
		t.Fatal("does not doze")
	}
	w.Begun(ReadingHead, time.Second)
	if !l.read.IsZero() || w.Main.Phase() != ReadingHead {
		t.Errorf("phase %d; reads fail since %v", w.Main.Phase(), l.read)
	}
	if doze() {
		t.Error("dozes in the middle of a request")
	}
	w.Main.Set(clock, Idle, time.Minute)
	if w.Dozing() || !doze() || !w.Dozing() || !l.read.IsZero() {
		t.Error("does not doze, or does not go on reading")
	}
	// Who is ended stays ended.
	w.end(&w.Main, 1<<40)
	ended := l.read
	if w.Begun(ReadingHead, time.Second); ended.IsZero() || l.read != ended {
		t.Errorf("reads go on after the end, deadline %v", l.read)
	}
}

func TestAppendChunk(t *testing.T) {
	for _, n := range []int{1, 9, 15, 16, 255, 4096, outSize - chunkRoom - chunkEnd} {
		head := "head"
		out := append(make([]byte, 0, outSize+8), head...)
		data := out[len(out)+chunkRoom : len(out)+chunkRoom+n]
		for i := range data {
			data[i] = 'x'
		}
		got := string(appendChunk(out, n))
		size, rest, _ := strings.Cut(strings.TrimPrefix(got, head), "\r\n")
		if len(size) != 8 || rest != strings.Repeat("x", n)+"\r\n" || strings.Trim(size, "0123456789abcdef") != "" {
			t.Fatalf("%d: size %q, %d bytes behind it", n, size, len(rest))
		}
		v := 0
		for _, c := range size {
			v = v<<4 | strings.IndexRune("0123456789abcdef", c)
		}
		if v != n {
			t.Errorf("%d is written %q", n, size)
		}
	}
	// Framing never outgrows the room that was left for it.
	out := make([]byte, 0, outSize)
	n := outSize - chunkRoom - chunkEnd
	whole := append(appendChunk(out, n), "0\r\n\r\n"...)
	if &whole[0] != &out[:1][0] {
		t.Error("the largest chunk and the last one do not fit the buffer")
	}
}

func TestAppendRequest(t *testing.T) {
	field := func(name, value string, hop bool) message.Field {
		return message.Field{Name: []byte(name), Value: []byte(value), Hop: hop}
	}
	x := &Exchange{Trailer: []byte("X-Forwarded-For: 1.2.3.4\r\nClient-Cert: :ours:\r\n")}
	req := &message.Request{Method: []byte("GET"), Path: []byte("/a"), Query: []byte("b;c=%zz"), HasQuery: true, Host: []byte("a.test"), Head: message.Head{ContentLength: -1, Fields: []message.Field{
		field("Host", "a.test", true), field("X-A", "1", false), field("X_B", "2", false), field("client.cert", "spoof", false), field("Connection", "x", true), field("Via", "1.1 front", false), field("X-A", "", false)}}}
	out := x.appendRequest(nil, req, x.Trailer)
	want := "GET /a?b;c=%zz HTTP/1.1\r\nHost: a.test\r\nX-A: 1\r\nVia: 1.1 front\r\nX-A: \r\nVia: 1.1 countersign\r\nX-Forwarded-For: 1.2.3.4\r\nClient-Cert: :ours:\r\n\r\n"
	if string(out) != want {
		t.Errorf("%q\n%q", out, want)
	}
	for hops, want := range map[int]bool{7: false, 8: true, 100: true} {
		for _, sep := range []string{", ", "\x00"} { // in one line, in several
			req.Fields = req.Fields[:0]
			for v := range strings.SplitSeq(strings.TrimSuffix(strings.Repeat("1.1"+via+sep, hops), sep), "\x00") {
				req.Fields = append(req.Fields, field("vIA", v, false))
			}
			if got := looped(req); got != want {
				t.Errorf("%d hops: %v", hops, got)
			}
		}
	}
	buf := make([]byte, 0, 4096)
	req.Fields = []message.Field{field("X-A", "1", false)}
	if n := testing.AllocsPerRun(100, func() { _ = x.appendRequest(buf, req, x.Trailer) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
