package h2

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestIdleMemory: a connection that has served a request and is idle holds no buffers and one goroutine.
func TestIdleMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("opens 500 connections")
	}
	const n = 500
	conns := make(chan *Conn, n)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			c := Server(nc, Settings{}, answer)
			conns <- c
			go func() { defer nc.Close(); _ = c.Serve() }()
		}
	}()
	measure := func() (heap, stacks uint64, goroutines int) {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc, m.StackInuse, runtime.NumGoroutine()
	}
	heap, stacks, routines := measure()
	var clients []net.Conn
	var block []byte
	enc := hpack.NewEncoder((*sink)(&block))
	for i := 0; i < len(get()); i += 2 {
		must(t, enc.WriteField(hpack.HeaderField{Name: get()[i], Value: get()[i+1]}))
	}
	var out []byte
	fr := http2.NewFramer((*sink)(&out), nil)
	out = append(out, http2.ClientPreface...)
	must(t, fr.WriteSettings())
	must(t, fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true, BlockFragment: block}))
	in := make([]byte, 4096)
	for range n {
		nc, err := net.Dial("tcp", l.Addr().String())
		must(t, err)
		defer nc.Close()
		clients = append(clients, nc)
		_, err = nc.Write(out)
		must(t, err)
		c := <-conns
		_, err = io.ReadAtLeast(nc, in, 100)
		must(t, err)
		for c.Streams() > 0 {
			time.Sleep(time.Millisecond)
		}
		c.Tidy()
		c.Tidy()
	}
	time.Sleep(50 * time.Millisecond)
	heap2, stacks2, routines2 := measure()
	per := int64(heap2-heap) / n
	t.Logf("%d bytes of heap, %d of stacks and %.1f goroutines for each connection", per, int64(stacks2-stacks)/n, float64(routines2-routines)/n)
	if per > 12<<10 || routines2-routines > n+20 {
		t.Errorf("%d bytes, %d goroutines for %d connections", per, routines2-routines, n)
	}
	_ = clients
}
