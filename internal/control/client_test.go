package control

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestClientEscapes: what answers at the socket cannot write to the terminal of whoever asks, and not without end.
func TestClientEscapes(t *testing.T) {
	const evil = "\x1b]0;gone\x07\x9b2J\rfine"
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	answer := make(chan string, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				_, _ = io.WriteString(c, <-answer)
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close() })
	client := NewClient("unix:" + path)
	whole := func(status, body string) string {
		return fmt.Sprintf("HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
	}
	for name, text := range map[string]string{
		"error":       whole("400 Bad", `{"error": "no \u001b]0;gone\u0007\u009b2J\rfine"}`),
		"all escapes": whole("400 Bad", `{"error": "`+strings.Repeat(`\u001b`, 3<<10)+`"}`),
		"long error":  whole("400 Bad", `{"error": "`+strings.Repeat("x", 60<<10)+`"}`),
		"status line": whole("400 "+evil, "not JSON"),
		"head":        "HTTP/1.1 200 OK\r\n" + evil + "\r\n\r\n",
		"no HTTP":     evil + strings.Repeat("x", 10<<10) + "\r\n\r\n",
		"status":      whole("200 OK", evil),
		"broken off":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + evil + "\r\n",
	} {
		t.Run("F13/"+name, func(t *testing.T) {
			for _, call := range []func() error{
				func() error { _, err := client.Status(t.Context()); return err },
				func() error { return client.LogKeys(t.Context(), "main", time.Second, io.Discard) },
			} {
				answer <- text
				err := call()
				if err == nil {
					if name == "status" {
						continue // as a key log it is one, of one line
					}
					t.Fatal("no error")
				}
				if s := err.Error(); strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) || len(s) > maxTold+300 {
					t.Errorf("%d bytes: %.200q", len(s), s)
				}
			}
		})
	}
	t.Run("F13/lines", func(t *testing.T) {
		var out bytes.Buffer
		answer <- whole("200 OK", "# begin\n"+evil+"\nCLIENT_RANDOM 00 11\n")
		if err := client.LogKeys(t.Context(), "main", time.Second, &out); err != nil {
			t.Fatal(err)
		}
		if want := "# begin\n" + `\x1b]0;gone\x07\x9b2J\x0dfine` + "\nCLIENT_RANDOM 00 11\n"; out.String() != want {
			t.Errorf("%q, expected %q", out.String(), want)
		}
	})
}
