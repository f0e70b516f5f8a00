package forward

import (
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"countersign/internal/message"
	"countersign/internal/reason"
	"countersign/internal/upstream"
)

// slowly is a target that takes what is written, after a while.
type slowly struct {
	net.Conn
	written chan []byte
	after   time.Duration
}

func (c *slowly) Write(p []byte) (int, error) {
	c.written <- append([]byte(nil), p...) // the target has it, and may answer
	time.Sleep(c.after)
	return len(p), nil
}

// parts is a body whose end comes with its last bytes, or after a pause.
type parts struct {
	Body
	text  string
	pause time.Duration
}

func (b *parts) Read(p []byte) (int, error) {
	if b.text == "" {
		time.Sleep(b.pause)
		return 0, io.EOF
	}
	n := copy(p, b.text)
	if b.text = b.text[n:]; b.text == "" && b.pause == 0 {
		return n, io.EOF
	}
	return n, nil
}

// TestAnsweredBeforeThePumpSaysSo: a target answers as soon as it has all of the body; the goroutine that has sent it may be a
// while in coming to say so. Connections are only given up where the rest of the body is still to come (E22, E32).
func TestAnsweredBeforeThePumpSaysSo(t *testing.T) {
	for _, c := range []struct {
		name         string
		write, pause time.Duration
		settled      bool
	}{
		{"at once", 0, 0, true},
		{"the target has all", 50 * time.Millisecond, 0, true},
		{"E22/the end is still to come", 0, 50 * time.Millisecond, false},
		{"E22/the target does not take the end", time.Second, 0, false},
	} {
		for _, framing := range []message.Framing{message.Length, message.Chunked} {
			t.Run(c.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					x := &Exchange{Watch: &Watch{Clock: at(1000), Client: new(line)}}
					far := &slowly{written: make(chan []byte, 10), after: c.write}
					p := x.startPump(&parts{text: "hello", pause: c.pause}, framing, &upstream.Conn{Conn: far}, &upstream.Pool{Settings: &upstream.Settings{}})
					<-far.written
					start := time.Now()
					got := p.settled(5 * time.Millisecond)
					if got != c.settled || time.Since(start) > turn {
						t.Errorf("settled %v after %v", got, time.Since(start))
					}
					p.early = !got // as relay has it
					var stopped time.Duration
					x.Watch.OnStop(func() { stopped = time.Since(start) })
					if err := p.finish(); c.settled && err != nil || !c.settled && c.pause == 0 && !errors.Is(err, errStopped) {
						t.Error(err)
					}
					if stopped > turn+20*time.Millisecond {
						t.Errorf("stopped after %v", stopped)
					}
				})
			})
		}
	}
}

// TestWhatThePumpSaysIsHeard: what is wrong with a body is told, however long the goroutine that found it takes to say so once
// it has ended the wait for an answer.
func TestWhatThePumpSaysIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &Exchange{Watch: &Watch{Clock: at(1000), Client: new(line)}}
		woken := make(chan struct{})
		x.Watch.OnStop(func() {
			close(woken)
			time.Sleep(time.Second)
		})
		p := x.startPump(new(tooLarge), message.Chunked, &upstream.Conn{}, &upstream.Pool{Settings: &upstream.Settings{}})
		<-woken
		var refusal *reason.Refusal
		if err := p.finish(); !errors.As(err, &refusal) || refusal.Reason != reason.BodyTooLarge {
			t.Error(err)
		}
	})
}

type tooLarge struct{ Body }

func (*tooLarge) Read([]byte) (int, error) { return 0, &reason.Refusal{Reason: reason.BodyTooLarge} }
