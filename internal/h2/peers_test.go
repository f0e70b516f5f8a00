package h2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/internal/message"
)

func field(name, value string) message.Field {
	return message.Field{Name: []byte(name), Value: []byte(value)}
}

// answer is what the handlers of these tests do: it reads the body and says how long it was; /big/n sends n bytes.
func answer(s *Stream) {
	if s.Refusal != nil {
		_ = s.WriteHead([]message.Field{field(":status", strconv.Itoa(s.Refusal.Reason.Status())), field("x-reason", s.Refusal.Reason.String())}, nil, true)
		return
	}
	if rest, ok := strings.CutPrefix(string(s.Request.Path), "/big/"); ok {
		n, _ := strconv.Atoi(rest)
		if s.WriteHead([]message.Field{field(":status", "200")}, nil, false) != nil {
			return
		}
		part := make([]byte, 48<<10)
		for n > 0 {
			m, err := s.Write(part[:min(n, len(part))])
			if err != nil {
				return
			}
			n -= m
		}
		_ = s.End([]message.Field{field("x-trailer", "yes")})
		return
	}
	sum := sha256.New()
	n, err := io.Copy(sum, s)
	if err != nil {
		return
	}
	body := fmt.Sprintf("%d %x\n", n, sum.Sum(nil))
	head := []message.Field{field(":status", "200"), field("Content-Type", "text/plain"), field("content-length", strconv.Itoa(len(body)))}
	if s.Request.IsHead() {
		body = ""
	}
	_ = s.WriteHead(head, []byte(body), true)
}

// listen serves handler on loopback without TLS and returns the address.
func listen(t testing.TB, s Settings, handler func(*Stream)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()
				_ = Server(nc, s, handler).Serve()
			}()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// TestH2spec runs h2spec, which must be on the path or named by H2SPEC.
func TestH2spec(t *testing.T) {
	program := os.Getenv("H2SPEC")
	if program == "" {
		program = "h2spec"
	}
	program, err := exec.LookPath(program)
	if err != nil {
		t.Skip("no h2spec: put it on the path or name it in H2SPEC")
	}
	_, port, _ := net.SplitHostPort(listen(t, Settings{}, answer))
	ctx, cancel := context.WithTimeout(t.Context(), 250*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "--strict", "-h", "127.0.0.1", "-p", port, "-o", "2").CombinedOutput()
	if err != nil || !strings.Contains(string(out), " 0 failed") {
		t.Errorf("%v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	t.Log(lines[len(lines)-1])
}

// h2c is net/http's client over HTTP/2 without TLS.
func h2c(t testing.TB) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: protocols}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

// TestGoClient: net/http against our server.
func TestGoClient(t *testing.T) {
	url := "http://" + listen(t, Settings{}, answer)
	client := h2c(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			body := bytes.Repeat([]byte{byte(i)}, i*100_000)
			resp, err := client.Post(url+"/x?y", "text/plain", bytes.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if want := fmt.Sprintf("%d %x\n", len(body), sha256.Sum256(body)); err != nil || string(got) != want || resp.ProtoMajor != 2 {
				t.Errorf("%v %s: %q, want %q", err, resp.Proto, got, want)
			}
			resp, err = client.Get(fmt.Sprintf("%s/big/%d", url, i*500_000))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			n, err := io.Copy(io.Discard, resp.Body)
			if err != nil || n != int64(i*500_000) || resp.Trailer.Get("X-Trailer") != "yes" {
				t.Errorf("%d of %d bytes, %v, trailers %v", n, i*500_000, err, resp.Trailer)
			}
		})
	}
	wg.Wait()
}

// TestCurl: curl against our server.
func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("no curl on the path")
	}
	url := "http://" + listen(t, Settings{}, answer)
	body := t.TempDir() + "/body"
	must(t, os.WriteFile(body, make([]byte, 3_000_000), 0o600))
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"-w", "%{http_code} %{http_version}", "-o", os.DevNull, url}, "200 2"},
		{[]string{"-w", "%{http_code} %{size_download}", "-o", os.DevNull, url + "/big/5000000"}, "200 5000000"},
		{[]string{"-T", body, url}, fmt.Sprintf("3000000 %x\n", sha256.Sum256(make([]byte, 3_000_000)))},
		{[]string{"-I", url}, "HTTP/2 200 "},
		{[]string{"-w", "%{http_code}", "-o", os.DevNull, "-X", "TRACE", url}, "405"},
		{[]string{"-w", "%{http_code}", "-o", os.DevNull, "-H", "x: " + strings.Repeat("y", 40_000), url}, "431"},
	} {
		args := append([]string{"-s", "--http2-prior-knowledge", "--max-time", "20"}, test.args...)
		out, err := exec.Command(curl, args...).CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), test.want) {
			t.Errorf("curl %.200v: %v %q, want %q", test.args, err, out, test.want)
		}
	}
}

// TestGoServer: our client against net/http.
func TestGoServer(t *testing.T) {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/interim" {
			w.Header().Set("Link", "</a>")
			w.WriteHeader(http.StatusEarlyHints)
		}
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("X-Trailer-Seen", r.Trailer.Get("X-Sum"))
		w.Header().Set("Trailer", "X-End")
		fmt.Fprintf(w, "%d %x %s %s\n", n, sum.Sum(nil), r.Host, r.URL)
		w.Header().Set("X-End", "yes")
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	nc, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	c := Client(nc, Settings{})
	served := make(chan error, 1)
	go func() { served <- c.Serve() }()
	<-c.Ready()

	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			s, err := c.Open()
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Release()
			head := []message.Field{field(":method", "POST"), field(":scheme", "http"), field(":authority", "a.test"), field(":path", "/interim"), field("Trailer", "x-sum")}
			body := bytes.Repeat([]byte{byte(i)}, i*100_000)
			if err := s.WriteHead(head, body, false); err != nil {
				t.Error(err)
			}
			if err := s.End([]message.Field{field("X-Sum", "9")}); err != nil {
				t.Error(err)
			}
			var resp message.Response
			if err := s.ReadResponse(&resp); err != nil {
				t.Error(err)
				return
			}
			if resp.Status != 103 || string(resp.Fields[0].Name) != "link" {
				t.Errorf("no interim response: %d", resp.Status)
			}
			if err := s.ReadResponse(&resp); err != nil {
				t.Error(err)
				return
			}
			got, err := io.ReadAll(s)
			want := fmt.Sprintf("%d %x a.test /interim\n", len(body), sha256.Sum256(body))
			if err != nil || string(got) != want || resp.Status != 200 || !s.Done() {
				t.Errorf("%v %d %q, want %q", err, resp.Status, got, want)
			}
			if tr := s.Trailers(); len(tr) != 1 || string(tr[0].Name) != "x-end" {
				t.Errorf("trailers %v", tr)
			}
		})
	}
	wg.Wait()
	c.GoAway()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := c.Open(); err != ErrGoingAway || c.Streams() != 0 {
		t.Errorf("Open after the end: %v, %d streams", err, c.Streams())
	}
}
