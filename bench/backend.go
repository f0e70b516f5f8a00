package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
)

// bulk is the size of the large download and upload.
const bulk = 100 << 20

// backends is where the child process listens.
type backends struct{ HTTP, Bytes string }

// runBackends serves in a process of its own until its standard input ends: HTTP that costs as little as it can, and a
// source of bytes. It says where on standard output.
func runBackends() error {
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	source, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go serveAll(web, answerHTTP)
	go serveAll(source, pour)
	if err := json.NewEncoder(os.Stdout).Encode(backends{web.Addr().String(), source.Addr().String()}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func serveAll(l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			serve(c)
		}()
	}
}

// zeros is written and never changed.
var zeros = make([]byte, 256<<10)

// pour waits for the first bytes of a client and then sends without end.
func pour(c net.Conn) {
	var buf [16 << 10]byte
	if _, err := c.Read(buf[:]); err != nil {
		return
	}
	for {
		if _, err := c.Write(zeros); err != nil {
			return
		}
	}
}

func response(body string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

var (
	small  = response(strings.Repeat("x", 128))
	medium = response(strings.Repeat("x", 16<<10))
)

// answerHTTP serves one connection. /headers answers with the request's head, so that a test sees what came through.
func answerHTTP(c net.Conn) {
	r := bufio.NewReaderSize(c, 32<<10)
	var head []byte
	for {
		head = head[:0]
		length := 0
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return
			}
			head = append(head, line...)
			if len(line) <= 2 {
				break
			}
			if name, value, _ := bytes.Cut(line, []byte(":")); len(name) == 14 && strings.EqualFold(string(name), "content-length") {
				if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
					return
				}
			}
		}
		if length > 0 {
			if _, err := r.Discard(length); err != nil {
				return
			}
		}
		var err error
		switch _, path, _ := bytes.Cut(head, []byte(" ")); {
		case bytes.HasPrefix(path, []byte("/16k ")):
			_, err = c.Write(medium)
		case bytes.HasPrefix(path, []byte("/bulk ")):
			_, err = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", bulk)
			for n := 0; n < bulk && err == nil; n += len(zeros) {
				_, err = c.Write(zeros)
			}
		case bytes.HasPrefix(path, []byte("/headers ")):
			_, err = c.Write(response(string(head)))
		default:
			_, err = c.Write(small)
		}
		if err != nil {
			return
		}
	}
}
