package h2

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"countersign/internal/message"
)

// BenchmarkServer: tiny requests over loopback from a client that costs little, by streams at once.
func BenchmarkServer(b *testing.B) {
	body := make([]byte, 128)
	head := []message.Field{field(":status", "200"), field("Content-Type", "text/plain"), field("Content-Length", "128"), field("Server", "x"), field("Date", "Sat, 21 Nov 2026 16:00:00 GMT")}
	addr := listen(b, Settings{}, func(s *Stream) { _ = s.WriteHead(head, body, true) })
	for _, streams := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			nc, err := net.Dial("tcp", addr)
			must(b, err)
			defer nc.Close()
			var out []byte
			w := (*sink)(&out)
			_, _ = io.WriteString(w, http2.ClientPreface)
			fr := http2.NewFramer(w, nil)
			must(b, fr.WriteSettings())
			must(b, fr.WriteWindowUpdate(0, 1<<30))
			enc := hpack.NewEncoder(w)
			var block []byte
			encode := func() []byte {
				n := len(out)
				for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "www.a.test"}, {":path", "/"}, {"user-agent", "bench/1.0"}, {"accept", "*/*"}} {
					must(b, enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
				}
				block = append([]byte(nil), out[n:]...)
				out = out[:n]
				return block
			}
			id := uint32(1)
			send := func(block []byte) {
				must(b, fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: true, EndHeaders: true, BlockFragment: block}))
				id += 2
			}
			send(encode())
			encode() // now indexed
			_, err = nc.Write(out)
			must(b, err)
			out = out[:0]

			in := make([]byte, 64<<10)
			have := 0
			done := func() int { // responses that ended
				n, err := nc.Read(in[have:])
				must(b, err)
				have += n
				ended, at := 0, 0
				for have-at >= 9 {
					size := 9 + int(binary.BigEndian.Uint32(in[at:])>>8)
					if have-at < size {
						break
					}
					if in[at+3] == 0 && in[at+4]&1 != 0 {
						ended++
					}
					if in[at+3] == 3 || in[at+3] == 7 {
						b.Fatal("reset")
					}
					at += size
				}
				have = copy(in, in[at:have])
				return ended
			}
			for done() == 0 {
			}
			b.ReportAllocs()
			b.ResetTimer()
			before := cpu()
			sent, got := 0, 0
			for got < b.N {
				out = out[:0]
				for sent < b.N && sent-got < streams {
					send(block)
					sent++
				}
				if len(out) > 0 {
					_, err := nc.Write(out)
					must(b, err)
				}
				got += done()
			}
			b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op") // of both sides; the wall clock is others' too
		})
	}
}

// BenchmarkClient: tiny requests over our client to our server.
func BenchmarkClient(b *testing.B) {
	body := make([]byte, 128)
	head := []message.Field{field(":status", "200"), field("Content-Type", "text/plain"), field("Content-Length", "128")}
	addr := listen(b, Settings{}, func(s *Stream) { _ = s.WriteHead(head, body, true) })
	for _, streams := range []int{1, 50} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			nc, err := net.Dial("tcp", addr)
			must(b, err)
			c := Client(nc, Settings{})
			go func() { _ = c.Serve() }()
			defer c.Abort()
			<-c.Ready()
			ask := []message.Field{field(":method", "GET"), field(":scheme", "http"), field(":authority", "www.a.test"), field(":path", "/"), field("accept", "*/*")}
			b.ReportAllocs()
			b.ResetTimer()
			before := cpu()
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			for range streams {
				wg.Go(func() {
					var resp message.Response
					for left.Add(-1) >= 0 {
						s, err := c.Open()
						if err == nil {
							err = s.WriteHead(ask, nil, true)
						}
						if err == nil {
							err = s.ReadResponse(&resp)
						}
						for err == nil && !s.Done() {
							if _, ok := s.Buffered(); !ok {
								_, err = s.Read(make([]byte, 256))
							}
						}
						if err != nil && err != io.EOF {
							b.Error(err)
							return
						}
						s.Release()
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

type sink []byte

func (s *sink) Write(p []byte) (int, error) { *s = append(*s, p...); return len(p), nil }

// cpu is what the process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
