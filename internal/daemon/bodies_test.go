package daemon_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// sum answers with the length and hash of the body.
func sum(c *recorded, r *http.Request) bool {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return false
	}
	say := sumOf(body)
	_, err = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(say), say)
	return err == nil
}

func sumOf(body []byte) string { return fmt.Sprintf("%d %x", len(body), sha256.Sum256(body)) }

func noise(n int) []byte {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

// inChunks frames body in chunks of n bytes.
func inChunks(body []byte, n int) string {
	var b strings.Builder
	for len(body) > 0 {
		k := min(n, len(body))
		fmt.Fprintf(&b, "%x\r\n%s\r\n", k, body[:k])
		body = body[k:]
	}
	return b.String() + "0\r\n\r\n"
}

func TestBodies(t *testing.T) {
	for _, secure := range []bool{false, true} {
		g := newRig(t, "", "", secure)
		g.b.on("/sum", sum)
		for _, l := range listeners {
			for _, n := range []int{1, 3000, 4096, 4097, 50000, 1 << 20} {
				body := noise(n)
				for name, request := range map[string]string{
					"length": postTo("/sum", fmt.Sprintf("Content-Length: %d\r\n", n), string(body)), "chunked-7": postTo("/sum", "Transfer-Encoding: chunked\r\n", inChunks(body[:min(n, 5000)], 7)),
					"chunked-5000": postTo("/sum", "Transfer-Encoding: chunked\r\n", inChunks(body, 5000)), "chunked-1M": postTo("/sum", "Transfer-Encoding: chunked\r\n", inChunks(body, 1<<20)),
				} {
					want := sumOf(body)
					if name == "chunked-7" {
						want = sumOf(body[:min(n, 5000)])
					}
					c := g.connect(t, l)
					r := bufio.NewReader(c)
					for range 2 { // one connection, and one to the target, for both
						go io.WriteString(c, request)
						if got, err := readReply(r, "POST"); err != nil || got.body != want {
							t.Errorf("%s %s %d: %v %v, expected %s", l, name, n, got, err, want)
						} else if got.Close {
							break // on a busy machine the answer may come before we know that the body was sent
						}
					}
					c.Close()
				}
			}
			// In pieces, with a pause at every kind of place.
			for _, request := range []string{postTo("/sum", "Content-Length: 5\r\n", "hello"), postTo("/sum", "Transfer-Encoding: chunked\r\n", "2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nT: v\r\n\r\n")} {
				c := g.connect(t, l)
				for i := range len(request) {
					io.WriteString(c, request[i:i+1])
					time.Sleep(200 * time.Microsecond)
				}
				if got, err := readReply(bufio.NewReader(c), "POST"); err != nil || got.body != sumOf([]byte("hello")) {
					t.Errorf("%s: byte by byte: %v %v", l, got, err)
				}
			}
		}
	}
}

func TestAnswers(t *testing.T) {
	big := noise(300 << 10)
	g := newRig(t, "", "", false)
	g.b.on("/chunked", raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"+inChunks(big, 10000), true))
	g.b.on("/length", raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(big), big), true))
	g.b.on("/close", raw("HTTP/1.1 200 OK\r\n\r\n"+string(big), false))
	g.b.on("/204", raw("HTTP/1.1 204 No Content\r\n\r\n", true))
	g.b.on("/304", raw("HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nETag: x\r\n\r\n", true))
	g.b.on("/head", raw("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", true))
	for _, l := range listeners {
		for _, path := range []string{"/chunked", "/length", "/close"} {
			for _, version := range []string{"1.0", "1.1"} {
				for _, connection := range []string{"close", "keep-alive"} {
					c := g.connect(t, l)
					io.WriteString(c, "GET "+path+" HTTP/"+version+"\r\n"+hostLine+"Connection: "+connection+"\r\n\r\n")
					got, err := readReply(bufio.NewReader(c), "GET")
					if err != nil || got.err != nil || got.body != string(big) {
						t.Errorf("%s %s %s %s: %v %v, %d bytes", l, path, version, connection, err, got.err, len(got.body))
						continue
					}
					keep := connection == "keep-alive" && (version == "1.1" || path == "/length")
					if got.Close == keep || version == "1.0" && got.TransferEncoding != nil {
						t.Errorf("%s %s %s %s: close=%v %v", l, path, version, connection, got.Close, got.TransferEncoding)
					}
					c.Close()
				}
			}
		}
		c := g.connect(t, l)
		r := bufio.NewReader(c)
		for _, a := range []struct {
			method, path string
			status       int
			length       string
		}{{"GET", "/204", 204, ""}, {"GET", "/304", 304, "99"}, {"HEAD", "/head", 200, "99"}, {"HEAD", "/204", 204, ""}, {"GET", "/x", 200, "8"}} {
			io.WriteString(c, a.method+" "+a.path+" HTTP/1.1\r\n"+hostLine+"\r\n")
			got, err := readReply(r, a.method)
			if err != nil || got.StatusCode != a.status || got.Header.Get("Content-Length") != a.length || got.Close || got.TransferEncoding != nil {
				t.Errorf("%s %s %s: %v %v", l, a.method, a.path, got, err)
			}
		}
	}
}

// TestStreaming: what a target has sent, a client sees, and both may talk at once.
func TestStreaming(t *testing.T) {
	for _, secure := range []bool{false, true} {
		g := newRig(t, "", "", secure)
		next := make(chan bool)
		g.b.on("/events", func(c *recorded, r *http.Request) bool {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			for range 3 {
				<-next
				io.WriteString(c, "6\r\nevent\n\r\n")
			}
			io.WriteString(c, "0\r\n\r\n")
			return true
		})
		g.b.on("/first", func(c *recorded, r *http.Request) bool {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
			<-next
			io.WriteString(c, "other")
			return true
		})
		g.b.on("/echo", func(c *recorded, r *http.Request) bool {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			p := make([]byte, 10000)
			for {
				n, err := r.Body.Read(p)
				if n > 0 {
					fmt.Fprintf(c, "%x\r\n%s\r\n", n, p[:n])
				}
				if err != nil {
					io.WriteString(c, "0\r\n\r\n")
					return err == io.EOF
				}
			}
		})
		for _, l := range listeners {
			c := g.connect(t, l)
			r := bufio.NewReader(c)
			io.WriteString(c, "GET /events HTTP/1.1\r\n"+hostLine+"\r\n")
			resp, err := http.ReadResponse(r, nil) // before any event
			if err != nil {
				t.Fatal(err)
			}
			events := bufio.NewReader(resp.Body)
			for range 3 {
				next <- true
				if line, err := events.ReadString('\n'); line != "event\n" || err != nil {
					t.Errorf("%q %v", line, err)
				}
			}
			if rest, err := io.ReadAll(events); len(rest) > 0 || err != nil {
				t.Errorf("%q %v", rest, err)
			}
			io.WriteString(c, "GET /first HTTP/1.1\r\n"+hostLine+"\r\n")
			if resp, err = http.ReadResponse(r, nil); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 5)
			if _, err := io.ReadFull(resp.Body, p); string(p) != "first" || err != nil {
				t.Errorf("%q %v", p, err)
			}
			next <- true
			if rest, err := io.ReadAll(resp.Body); string(rest) != "other" || err != nil {
				t.Errorf("%q %v", rest, err)
			}

			body := noise(4 << 20)
			for _, request := range []string{postTo("/echo", fmt.Sprintf("Content-Length: %d\r\n", len(body)), string(body)), postTo("/echo", "Transfer-Encoding: chunked\r\n", inChunks(body, 30000))} {
				c := g.connect(t, l)
				go io.WriteString(c, request)
				got, err := readReply(bufio.NewReader(c), "POST")
				if err != nil || got.err != nil || !bytes.Equal([]byte(got.body), body) {
					t.Errorf("%s secure=%v: echo: %v %v, %d bytes", l, secure, err, got.err, len(got.body))
				}
			}
		}
	}
}

// stop ends a client's side in one of the ways there are.
func stop(c net.Conn, how string) {
	tcp, _ := c.(*net.TCPConn)
	if tc, ok := c.(*tls.Conn); ok {
		tcp = tc.NetConn().(*net.TCPConn)
		if how == "half" {
			_ = tc.CloseWrite()
		}
	}
	switch how {
	case "half", "fin":
		_ = tcp.CloseWrite()
	case "reset":
		_ = tcp.SetLinger(0)
		tcp.Close()
	}
}

// TestHalfClose: a client that ends its side after its request still wants the answer.
func TestHalfClose(t *testing.T) {
	g := newRig(t, "", "", false)
	g.b.on("/slow", func(c *recorded, r *http.Request) bool {
		io.Copy(io.Discard, r.Body)
		time.Sleep(1500 * time.Millisecond)
		return plain(c, r)
	})
	for _, l := range listeners {
		for name, request := range map[string]string{"get": "GET /slow HTTP/1.1\r\n" + hostLine + "\r\n", "post": postTo("/slow", "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n")} {
			t.Run(l+"/"+name, func(t *testing.T) {
				t.Parallel()
				c := g.connect(t, l)
				io.WriteString(c, request)
				stop(c, "half")
				if got, err := readReply(bufio.NewReader(c), "GET"); err != nil || got.StatusCode != 200 {
					t.Errorf("%v %v", got, err)
				}
			})
		}
	}
}

// TestClientGone: a client that was killed is noticed, and its target is not kept busy for it.
func TestClientGone(t *testing.T) {
	g := newRig(t, "", "", false)
	wait := func(c *recorded, r *http.Request) bool {
		io.Copy(io.Discard, r.Body)
		io.Copy(io.Discard, c.r)
		return false
	}
	for _, l := range listeners {
		for _, how := range []string{"reset", "fin"} {
			if l == "plain" && how == "fin" {
				continue // not told apart from a client that waits
			}
			for name, request := range map[string]string{"get": "GET %s HTTP/1.1\r\n" + hostLine + "\r\n", "post": "POST %s HTTP/1.1\r\n" + hostLine + "Transfer-Encoding: chunked\r\n\r\n400\r\n" + strings.Repeat("x", 1024) + "\r\n0\r\n\r\n",
				"upload": "POST %s HTTP/1.1\r\n" + hostLine + "Content-Length: 100\r\n\r\nhello"} {
				t.Run(l+"/"+how+"/"+name, func(t *testing.T) {
					t.Parallel()
					path := "/gone-" + l + how + name
					g.b.on(path, wait)
					c := g.connect(t, l)
					fmt.Fprintf(c, request, path)
					rc := g.b.conn(t, path)
					time.Sleep(50 * time.Millisecond) // the exchange waits for the answer
					stop(c, how)
					if took := rc.closed(t, 9*time.Second); took > 8*time.Second {
						t.Errorf("noticed after %s", took)
					}
					why := "client_aborted"
					if name == "upload" {
						why = "body_truncated"
					}
					g.since(t, 0, "path="+path, "reason="+why)
				})
			}
		}
	}
}

// TestTimes: each wait has its own time and its own reason. The sweep comes four times a second.
func TestTimes(t *testing.T) {
	g := newRig(t, ", header: 1s, body_idle: 1s, write_idle: 1s", ", response: 1s, idle: 1s", false)
	hang := func(c *recorded, r *http.Request) bool {
		io.Copy(io.Discard, r.Body)
		io.Copy(io.Discard, c.r)
		return false
	}
	big := noise(1 << 20)
	g.b.on("/large", func(c *recorded, r *http.Request) bool {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		for {
			if _, err := fmt.Fprintf(c, "%x\r\n%s\r\n", len(big), big); err != nil {
				return false
			}
		}
	})
	g.b.on("/pauses", func(c *recorded, r *http.Request) bool {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
		io.Copy(io.Discard, c.r)
		return false
	})
	g.b.on("/drip", func(c *recorded, r *http.Request) bool {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
		for range 6 {
			time.Sleep(500 * time.Millisecond)
			io.WriteString(c, "x")
		}
		return true
	})
	g.b.on("/answers-early", func(c *recorded, r *http.Request) bool {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		body, _ := io.ReadAll(r.Body)
		io.WriteString(c, inChunks(body, 100))
		return true
	})
	soon := func(t *testing.T, start time.Time) { // the machine may stand still for a while; other limits are at least 10 s
		t.Helper()
		if took := time.Since(start); took < 700*time.Millisecond || took > 8*time.Second {
			t.Errorf("after %s", took)
		}
	}
	for _, l := range listeners {
		for name, head := range map[string]string{"nothing-more": "G", "line": "GET /x HTTP/1.1\r\n", "field": "GET /x HTTP/1.1\r\nHost: a.te"} {
			t.Run("F02/header/"+name+"/"+l, func(t *testing.T) {
				t.Parallel()
				c := g.connect(t, l)
				start := time.Now()
				io.WriteString(c, head)
				go func() { // a byte now and then is not progress: the head has one time as a whole
					for range 25 {
						time.Sleep(400 * time.Millisecond)
						if _, err := io.WriteString(c, "x"); err != nil {
							return
						}
					}
				}()
				got, err := readReply(bufio.NewReader(c), "GET")
				if err != nil || got.StatusCode != 408 {
					t.Fatalf("%v %v", got, err)
				}
				soon(t, start)
				if why := g.reasonOf(t, got); why != "header_timeout" {
					t.Error(why)
				}
			})
		}
		for name, request := range map[string]string{"length": postTo("/body-length-"+l, "Content-Length: 100\r\n", "hello"), "chunked": postTo("/body-chunked-"+l, "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n"), "inside": postTo("/body-inside-"+l, "Transfer-Encoding: chunked\r\n", "500\r\nhello")} {
			t.Run("F02/body/"+name+"/"+l, func(t *testing.T) {
				t.Parallel()
				start := time.Now()
				got, _, r := g.ask(t, l, request)
				if why := g.reasonOf(t, got); got.StatusCode != 408 || why != "body_timeout" || !got.Close {
					t.Errorf("%d %s", got.StatusCode, why)
				}
				soon(t, start)
				ended(t, r)
				g.b.conn(t, "/body-"+name+"-"+l).closed(t, 5*time.Second)
			})
		}
		for name, request := range map[string]string{"get": "GET /hang-get-" + l + " HTTP/1.1\r\n" + hostLine + "\r\n", "post": postTo("/hang-post-"+l, "Transfer-Encoding: chunked\r\n", inChunks(big, 10000))} {
			g.b.on("/hang-"+name+"-"+l, hang)
			t.Run("response/"+name+"/"+l, func(t *testing.T) {
				t.Parallel()
				start := time.Now()
				got, _, _ := g.ask(t, l, request)
				if why := g.reasonOf(t, got); got.StatusCode != 504 || why != "upstream_timeout" {
					t.Errorf("%d %s", got.StatusCode, why)
				}
				soon(t, start)
				g.b.conn(t, "/hang-"+name+"-"+l).closed(t, 5*time.Second)
			})
		}
		t.Run("response/pauses/"+l, func(t *testing.T) {
			t.Parallel()
			c := g.connect(t, l)
			start := time.Now()
			io.WriteString(c, "GET /pauses HTTP/1.1\r\n"+hostLine+"\r\n")
			if got, err := readReply(bufio.NewReader(c), "GET"); err != nil || got.err == nil {
				t.Errorf("looks complete: %v %v", got, err)
			}
			soon(t, start)
			g.since(t, 0, "path=/pauses", "listener="+l, "reason=upstream_timeout")
		})
		t.Run("F02/read/"+l, func(t *testing.T) {
			t.Parallel()
			c := g.connect(t, l)
			io.WriteString(c, "GET /large?"+l+" HTTP/1.1\r\n"+hostLine+"\r\n")
			g.b.conn(t, "/large?"+l).closed(t, 9*time.Second)
			g.since(t, 0, "path=/large", "listener="+l, "reason=write_timeout")
		})
		// F23: what makes progress lives, however long it takes.
		for name, framing := range map[string]string{"length": "Content-Length: 8", "chunked": "Transfer-Encoding: chunked"} {
			for _, path := range []string{"/slow-upload", "/answers-early"} {
				t.Run("F23/upload/"+name+path+"/"+l, func(t *testing.T) {
					t.Parallel()
					c := g.connect(t, l)
					io.WriteString(c, "POST "+path+" HTTP/1.1\r\n"+hostLine+framing+"\r\n\r\n")
					for range 8 {
						time.Sleep(450 * time.Millisecond)
						if s := "x"; name == "chunked" {
							io.WriteString(c, "1\r\n"+s+"\r\n")
						} else {
							io.WriteString(c, s)
						}
					}
					if name == "chunked" {
						io.WriteString(c, "0\r\n\r\n")
					}
					if got, err := readReply(bufio.NewReader(c), "POST"); err != nil || got.StatusCode != 200 || got.err != nil || got.body != "POST /slow-upload 8" && got.body != "xxxxxxxx" {
						t.Errorf("%v %v", got, err)
					}
				})
			}
		}
		t.Run("F23/download/"+l, func(t *testing.T) {
			t.Parallel()
			if got, _, _ := g.ask(t, l, "GET /drip HTTP/1.1\r\n"+hostLine+"\r\n"); got.body != "xxxxxx" || got.err != nil {
				t.Errorf("%q %v", got.body, got.err)
			}
		})
	}
}

func TestBodyBytes(t *testing.T) {
	g := newRig(t, ", body_bytes: 10", "", false)
	for _, l := range listeners {
		for _, request := range []string{postTo("/big", "Content-Length: 11\r\n", "hello world"), postTo("/big", "Content-Length: 999999\r\n", "hello"), postTo("/big", "Transfer-Encoding: chunked\r\n", "b\r\nhello world\r\n0\r\n\r\n"),
			postTo("/big", "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")} {
			g.b.reset()
			got, _, r := g.ask(t, l, request)
			if why := g.reasonOf(t, got); got.StatusCode != 413 || why != "body_too_large" {
				t.Errorf("%s: %q: %d %s", l, request, got.StatusCode, why)
			}
			ended(t, r)
			if s := g.b.got(); strings.Contains(s, "world") || strings.Contains(s, "0\r\n\r\n") || strings.Contains(request, "Content-Length") && s != "" {
				t.Errorf("%s: the target got %q", l, s)
			}
		}
		if got, _, _ := g.ask(t, l, postTo("/fits", "Content-Length: 10\r\n", "0123456789")); got.StatusCode != 200 {
			t.Errorf("%s: %d", l, got.StatusCode)
		}
	}
}

// TestTrailerNamedHEAD: the body of a request comes into the buffer that its head lies in. A trailer that lands on the
// method must not turn the request into another, whose answer has no body.
func TestTrailerNamedHEAD(t *testing.T) {
	g := newRig(t, "", "", false)
	g.b.on("/interim", func(c *recorded, r *http.Request) bool {
		io.Copy(io.Discard, r.Body)
		io.WriteString(c, "HTTP/1.1 103 Early Hints\r\n\r\n")
		return plain(c, r)
	})
	for _, l := range listeners {
		c := g.connect(t, l)
		request := postTo("/interim", "Transfer-Encoding: chunked\r\n", "1\r\nx\r\n0\r\nHEAD: "+strings.Repeat("a", 4020)+"\r\n\r\n")
		io.WriteString(c, request[:4096])
		time.Sleep(50 * time.Millisecond)
		io.WriteString(c, request[4096:])
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if got, err := readReply(bufio.NewReader(c), "POST"); err != nil || got.body != "POST /interim 0" {
			t.Errorf("%s: %v %v", l, got, err)
		}
		g.victim(t, l)
	}
}
