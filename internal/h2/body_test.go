package h2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"countersign/internal/reason"
)

func isRefusal(t *testing.T, err error, want reason.Reason) {
	t.Helper()
	var r *reason.Refusal
	if !errors.As(err, &r) || r.Reason != want {
		t.Errorf("got %v, want %v", err, want)
	}
}

// TestBodies that are not what was said.
func TestBodies(t *testing.T) {
	for _, test := range []struct {
		name     string
		settings Settings
		send     func(p *raw)
		frame    string // what the client gets, empty for nothing but the end of the handler
		why      reason.Reason
	}{
		{"E12/more than content-length", Settings{}, func(p *raw) {
			p.headers(1, false, post("content-length", "3")...)
			synctest.Wait()
			p.send(1, true, "abcdGET /admin")
		}, "RST_STREAM 1 PROTOCOL_ERROR", reason.FramingAmbiguous},
		{"E12/more in a second frame", Settings{}, func(p *raw) {
			p.headers(1, false, post("content-length", "3")...)
			synctest.Wait()
			p.send(1, false, "abc")
			p.send(1, true, "d")
		}, "RST_STREAM 1 PROTOCOL_ERROR", reason.FramingAmbiguous},
		{"E12/less than content-length", Settings{}, func(p *raw) {
			p.headers(1, false, post("content-length", "10")...)
			synctest.Wait()
			p.send(1, true, "abc")
		}, "RST_STREAM 1 PROTOCOL_ERROR", reason.BodyTruncated},
		{"E12/less, ended by trailers", Settings{}, func(p *raw) {
			p.headers(1, false, post("content-length", "10")...)
			synctest.Wait()
			p.send(1, false, "abc")
			p.headers(1, true, "x-a", "b")
		}, "RST_STREAM 1 PROTOCOL_ERROR", reason.BodyTruncated},
		{"E12/data where content-length is 0", Settings{}, func(p *raw) {
			p.headers(1, false, post("content-length", "0")...)
			synctest.Wait()
			p.send(1, true, "a")
		}, "RST_STREAM 1 PROTOCOL_ERROR", reason.FramingAmbiguous},
		{"E12/reset in the middle", Settings{}, func(p *raw) {
			p.headers(1, false, post("content-length", "10")...)
			synctest.Wait()
			p.send(1, false, "abc")
			synctest.Wait()
			_ = p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
		}, "", reason.ClientAborted},
		{"E12/connection ends in the middle", Settings{}, func(p *raw) {
			p.headers(1, false, post()...)
			synctest.Wait()
			p.send(1, false, "abc")
			synctest.Wait()
			_ = p.nc.CloseWrite()
		}, "", reason.ClientAborted},
		{"E12/connection ends in a frame", Settings{}, func(p *raw) {
			p.headers(1, false, post()...)
			synctest.Wait()
			_, _ = p.nc.Write([]byte{0, 0, 9, 0, 1, 0, 0, 0, 1, 'a'})
			synctest.Wait()
			_ = p.nc.CloseWrite()
		}, "", reason.ClientAborted},
		{"E12/more than the limit", Settings{BodyBytes: 4}, func(p *raw) {
			p.headers(1, false, post()...)
			synctest.Wait()
			p.send(1, false, "abc")
			p.send(1, true, "de")
		}, "", reason.BodyTooLarge},
		{"F07/beyond the stream's window", Settings{StreamWindow: 65535}, func(p *raw) {
			p.headers(1, false, post()...)
			synctest.Wait()
			for range 5 {
				p.send(1, false, strings.Repeat("x", 16<<10))
			}
		}, "RST_STREAM 1 FLOW_CONTROL_ERROR", reason.H2ProtocolError},
	} {
		t.Run(test.name, func(t *testing.T) {
			var err error
			stop := make(chan struct{})
			bubble(t, test.settings, func(s *Stream) {
				if strings.HasPrefix(test.name, "F07") {
					<-stop
				}
				_, err = io.Copy(io.Discard, s)
			}, func(p *raw) {
				stop = make(chan struct{})
				test.send(p)
				if test.frame != "" {
					p.want(test.frame)
				}
				close(stop)
				p.seen()
				isRefusal(t, err, test.why)
			})
		})
	}
}

// TestBackpressure: a stream's window is granted as the handler reads, the connection's as data arrives.
func TestBackpressure(t *testing.T) {
	step := make(chan int)
	handler := func(s *Stream) {
		for n := range step {
			if _, err := io.ReadFull(s, make([]byte, n)); err != nil {
				t.Error(err)
			}
		}
	}
	bubble(t, Settings{StreamWindow: 65535, ConnWindow: 65535}, handler, func(p *raw) {
		step = make(chan int)
		p.headers(1, false, post()...)
		for range 3 {
			p.send(1, false, strings.Repeat("x", 16<<10))
		}
		p.want("WINDOW_UPDATE 0 32768")
		p.never("WINDOW_UPDATE 1")
		step <- 32 << 10
		p.want("WINDOW_UPDATE 1 32768")
		p.forget()
		p.send(1, false, strings.Repeat("x", 16<<10))
		p.want("WINDOW_UPDATE 0 32768")
		p.never("WINDOW_UPDATE 1")
		close(step)
	})
}

func TestReadDeadline(t *testing.T) {
	var first, second, third error
	bubble(t, Settings{}, func(s *Stream) {
		buf := make([]byte, 10)
		must(t, s.SetReadDeadline(time.Now().Add(time.Minute)))
		_, first = s.Read(buf)
		must(t, s.SetReadDeadline(time.Unix(1, 0)))
		_, second = s.Read(buf)
		must(t, s.SetReadDeadline(time.Time{}))
		_, third = s.Read(buf)
		go func() { _ = s.SetDeadline(time.Unix(1, 0)) }()
		_, err := s.Read(buf)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a wait was not ended: %v", err)
		}
	}, func(p *raw) {
		p.headers(1, false, post()...)
		time.Sleep(2 * time.Minute)
		p.send(1, false, "abc")
		p.want("RST_STREAM 1 INTERNAL_ERROR")
		if !errors.Is(first, os.ErrDeadlineExceeded) || !errors.Is(second, os.ErrDeadlineExceeded) || third != nil {
			t.Error(first, second, third)
		}
	})
}

// TestBuffered: a body that came with its head is there at once.
func TestBuffered(t *testing.T) {
	var whole, ready string
	var ok, done bool
	var total int64
	bubble(t, Settings{}, func(s *Stream) {
		b, is := s.Buffered()
		whole, ok, done, total = string(b), is, s.Done(), s.Total()
		if !is {
			ready = string(s.Ready(2))
			ready += "|" + string(s.Ready(100))
		}
	}, func(p *raw) {
		var one strings.Builder
		fr := http2.NewFramer(&one, nil)
		must(t, fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: p.block(post()...)}))
		must(t, fr.WriteData(1, false, []byte("ab")))
		must(t, fr.WriteData(1, true, []byte("cd")))
		_, err := io.WriteString(p.nc, one.String())
		must(t, err)
		p.seen()
		if whole != "abcd" || !ok || !done || total != 4 {
			t.Errorf("%q %v %v %d", whole, ok, done, total)
		}
		one.Reset()
		must(t, fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, EndHeaders: true, BlockFragment: p.block(post()...)}))
		must(t, fr.WriteData(3, false, []byte("abcd")))
		_, err = io.WriteString(p.nc, one.String())
		must(t, err)
		p.seen()
		if ok || ready != "ab|cd" {
			t.Errorf("%v %q", ok, ready)
		}
	})
}

// TestLent: what Buffered and Ready gave out stays as it is when the peer resets the stream meanwhile.
func TestLent(t *testing.T) {
	for _, n := range []int{2, 100} {
		step := make(chan struct{})
		var got string
		bubble(t, Settings{}, func(s *Stream) {
			if s.ID() > 1 {
				_, _ = io.Copy(io.Discard, s)
				return
			}
			p := s.Ready(n)
			<-step
			got = string(p)
		}, func(p *raw) {
			step = make(chan struct{})
			var one strings.Builder
			fr := http2.NewFramer(&one, nil)
			must(t, fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: p.block(post()...)}))
			must(t, fr.WriteData(1, false, []byte("mine")))
			_, err := io.WriteString(p.nc, one.String())
			must(t, err)
			synctest.Wait()
			must(t, p.fr.WriteRSTStream(1, http2.ErrCodeCancel))
			for id := uint32(3); id < 40; id += 2 {
				p.headers(id, false, post()...)
				p.send(id, true, "YOURS")
			}
			synctest.Wait()
			close(step)
			synctest.Wait()
			if want := "mine"[:min(n, 4)]; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// TestDone: a body is done when whoever reads it knows, not as soon as its end has come: what is written behind a head
// must not depend on when that was.
func TestDone(t *testing.T) {
	for _, data := range []string{"", "hello"} {
		for _, length := range [][]string{nil, {"content-length", fmt.Sprint(len(data))}} {
			for _, buffered := range []bool{false, true} {
				t.Run(fmt.Sprintf("E12/%d bytes, %d fields, buffered=%v", len(data), len(length), buffered), func(t *testing.T) {
					var before, after bool
					var got []byte
					bubble(t, Settings{}, func(s *Stream) {
						time.Sleep(time.Second) // all of it comes
						if before = s.Done(); buffered {
							text, _ := s.Buffered()
							got = bytes.Clone(text)
						} else {
							got, _ = io.ReadAll(s)
						}
						after = s.Done()
					}, func(p *raw) {
						p.headers(1, false, post(length...)...)
						p.send(1, true, data)
						time.Sleep(2 * time.Second)
						synctest.Wait()
						if before || !after || string(got) != data {
							t.Errorf("done %v, then %q, done %v", before, got, after)
						}
					})
				})
			}
		}
	}
}

// TestBodyEndsWithItsLastBytes: where the end is here, whoever reads learns so with the last bytes, and not before.
func TestBodyEndsWithItsLastBytes(t *testing.T) {
	for name, test := range map[string]struct {
		send  func(p *raw)
		first error
	}{
		"here":           {func(p *raw) { p.send(1, true, "abc") }, io.EOF},
		"here, trailers": {func(p *raw) { p.send(1, false, "abc"); p.headers(1, true, "x-a", "b") }, io.EOF},
		"not yet":        {func(p *raw) { p.send(1, false, "abc"); time.Sleep(2 * time.Second); p.send(1, true, "") }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Settings{}, func(s *Stream) {
				time.Sleep(time.Second)
				buf := make([]byte, 10)
				if n, err := s.Read(buf[:2]); n != 2 || err != nil || s.Done() {
					t.Errorf("some: %d, %v, done=%t", n, err, s.Done())
				}
				if n, err := s.Read(buf); n != 1 || err != test.first || s.Done() != (err == io.EOF) {
					t.Errorf("the rest: %d, %v, done=%t; want %v", n, err, s.Done(), test.first)
				}
				if n, err := s.Read(buf); n != 0 || err != io.EOF || !s.Done() {
					t.Errorf("behind it: %d, %v, done=%t", n, err, s.Done())
				}
				answer(s)
			}, func(p *raw) {
				p.headers(1, false, post()...)
				synctest.Wait()
				test.send(p)
				time.Sleep(3 * time.Second)
				synctest.Wait()
				if p.head(1) == "" {
					t.Error("no answer")
				}
			})
		})
	}
}
