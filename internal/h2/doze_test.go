package h2

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"countersign/internal/reason"
)

// sleeper is a server whose waits are counted, and a client that writes frames to it.
type sleeper struct {
	t      *testing.T
	nc     net.Conn
	conn   *Conn
	served chan error
	awaits atomic.Int32 // how often it began to doze
	awake  atomic.Int32 // and how often that ended
	heads  chan uint32  // streams that were answered
	pings  chan string  // answers to pings, and "GOAWAY"
	enc    *hpack.Encoder
	block  bytes.Buffer
	next   uint32
}

func newSleeper(t *testing.T, handler func(*Stream)) *sleeper {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	p := &sleeper{t: t, served: make(chan error, 1), heads: make(chan uint32, 1000), pings: make(chan string, 1000), next: 1}
	p.enc = hpack.NewEncoder(&p.block)
	p.nc, err = net.Dial("tcp", l.Addr().String())
	must(t, err)
	nc, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { p.nc.Close(); nc.Close() })
	raw, err := nc.(*net.TCPConn).SyscallConn()
	must(t, err)
	p.conn = Server(nc, Settings{Await: func() error {
		p.awaits.Add(1)
		defer p.awake.Add(1)
		return raw.Read(func(fd uintptr) bool {
			_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
			return err != unix.EAGAIN
		})
	}}, handler)
	go func() { p.served <- p.conn.Serve() }()
	go func() {
		fr := http2.NewFramer(nil, p.nc)
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				return
			}
			switch f := f.(type) {
			case *http2.HeadersFrame:
				p.heads <- f.StreamID
			case *http2.PingFrame:
				p.pings <- string(f.Data[:])
			case *http2.GoAwayFrame:
				p.pings <- "GOAWAY"
			}
		}
	}()
	p.send([]byte(http2.ClientPreface))
	p.send(p.frame(func(fr *http2.Framer) error { return fr.WriteSettings() }))
	return p
}

func (p *sleeper) send(b []byte) {
	p.t.Helper()
	if _, err := p.nc.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

func (p *sleeper) frame(write func(*http2.Framer) error) []byte {
	var out bytes.Buffer
	must(p.t, write(http2.NewFramer(&out, nil)))
	return out.Bytes()
}

// request is the frame of a new request.
func (p *sleeper) request() (id uint32, frame []byte) {
	id = p.next
	p.next += 2
	p.block.Reset()
	for i := 0; i < len(get()); i += 2 {
		must(p.t, p.enc.WriteField(hpack.HeaderField{Name: get()[i], Value: get()[i+1]}))
	}
	return id, p.frame(func(fr *http2.Framer) error {
		return fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: true, EndHeaders: true, BlockFragment: p.block.Bytes()})
	})
}

func (p *sleeper) answered(id uint32) {
	p.t.Helper()
	select {
	case got := <-p.heads:
		if got != id {
			p.t.Fatalf("stream %d is answered, expected %d", got, id)
		}
	case <-time.After(20 * time.Second):
		p.t.Fatalf("stream %d is not answered", id)
	}
	p.until("the stream to end", func() bool { return p.conn.Streams() == 0 })
}

func (p *sleeper) ask() {
	p.t.Helper()
	id, frame := p.request()
	p.send(frame)
	p.answered(id)
}

func (p *sleeper) until(what string, is func() bool) {
	p.t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatal("waited in vain for " + what)
		}
	}
}

// doze waits until it dozes for the nth time.
func (p *sleeper) doze(n int32) {
	p.t.Helper()
	p.until("the server to doze", func() bool { p.conn.Doze(); return p.awaits.Load() == n && p.awake.Load() == n-1 })
}

func (p *sleeper) ended(want reason.Reason) {
	p.t.Helper()
	select {
	case err := <-p.served:
		var why *reason.Refusal
		if want == reason.Unset && err != nil || want != reason.Unset && (!errors.As(err, &why) || why.Reason != want) {
			p.t.Errorf("ended with %v, expected %v", err, want)
		}
	case <-time.After(20 * time.Second):
		p.t.Fatal("Serve does not return")
	}
}

// TestDoze: a server that waits with less in its hands serves what comes, and ends like any other.
func TestDoze(t *testing.T) {
	t.Run("requests before and after", func(t *testing.T) {
		p := newSleeper(t, answer)
		for n := range int32(3) {
			p.ask()
			p.doze(n + 1)
			p.conn.mu.Lock()
			if p.conn.names.sets != nil || p.conn.src.store != nil {
				t.Error("it holds what it can do without")
			}
			p.conn.mu.Unlock()
			for range 100 {
				p.conn.Doze() // once is enough
			}
		}
		p.ask()
		if n := p.awaits.Load(); n != 3 {
			t.Errorf("dozed %d times, expected 3", n)
		}
		_ = p.nc.(*net.TCPConn).CloseWrite()
		p.ended(reason.Unset)
	})
	t.Run("with part of a frame in its hands", func(t *testing.T) {
		p := newSleeper(t, answer)
		p.ask()
		for cut := range 13 { // the frames are that long once the table has all fields
			id, frame := p.request()
			before := p.awaits.Load()
			if cut == 0 {
				p.doze(before + 1)
			} else {
				p.send(frame[:cut])
				time.Sleep(5 * time.Millisecond)
				for range 50 { // it may find the part not read yet
					p.conn.Doze()
					time.Sleep(time.Millisecond)
				}
			}
			p.send(frame[cut:])
			p.answered(id)
		}
	})
	t.Run("with a stream", func(t *testing.T) {
		goOn := make(chan struct{})
		p := newSleeper(t, func(s *Stream) { <-goOn; answer(s) })
		id, frame := p.request()
		p.send(frame)
		p.until("the stream", func() bool { return p.conn.Streams() == 1 })
		for range 20 {
			p.conn.Doze()
			time.Sleep(time.Millisecond)
		}
		if n := p.awaits.Load(); n != 0 {
			t.Errorf("dozed %d times with a stream open", n)
		}
		close(goOn)
		p.answered(id)
		p.doze(1)
	})
	t.Run("pings", func(t *testing.T) {
		p := newSleeper(t, answer)
		p.ask() // what begins a connection is over
		for n := range int32(5) {
			p.doze(n + 1)
			p.send(p.frame(func(fr *http2.Framer) error { return fr.WritePing(false, [8]byte{'p', byte('0' + n)}) }))
			select {
			case got := <-p.pings:
				if !strings.HasPrefix(got, "p"+string(byte('0'+n))) {
					t.Errorf("%q", got)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("no answer to a ping")
			}
		}
	})
	t.Run("F16/it is aborted", func(t *testing.T) {
		p := newSleeper(t, answer)
		p.ask()
		p.doze(1)
		p.conn.AbortFor(reason.ClientNoLongerTrusted)
		p.ended(reason.ClientNoLongerTrusted)
		p.conn.Doze()
	})
	t.Run("it goes away", func(t *testing.T) {
		p := newSleeper(t, answer)
		p.ask()
		p.doze(1)
		p.conn.GoAway()
		p.conn.GoAway()
		for range 10 {
			p.conn.Doze()
		}
		p.ended(reason.Unset)
	})
	t.Run("the client is gone", func(t *testing.T) {
		p := newSleeper(t, answer)
		p.ask()
		p.doze(1)
		_ = p.nc.(*net.TCPConn).SetLinger(0)
		p.nc.Close()
		p.ended(reason.Unset) // the wait was told of the reset, and the read finds an end
	})
	t.Run("again and again", func(t *testing.T) {
		p := newSleeper(t, answer)
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				default:
					p.conn.Doze()
					runtime.Gosched()
				}
			}
		}()
		for n := range 500 {
			p.ask()
			if n%50 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		p.until("the server to doze", func() bool { return p.awaits.Load() > 0 })
		close(stop)
		<-stopped
		t.Logf("dozed %d times", p.awaits.Load())
		_ = p.nc.(*net.TCPConn).CloseWrite()
		p.ended(reason.Unset)
	})
	t.Run("without a way to wait", func(t *testing.T) {
		a, b := net.Pipe()
		go io.Copy(io.Discard, b)
		c := Client(a, Settings{})
		served := make(chan error, 1)
		go func() { served <- c.Serve() }()
		for range 10 {
			c.Doze()
			time.Sleep(time.Millisecond)
		}
		select {
		case err := <-served:
			t.Errorf("it ended: %v", err)
		default:
		}
		c.Abort()
		<-served
		b.Close()
	})
}
