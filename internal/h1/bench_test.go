package h1

import (
	"bytes"
	"io"
	"testing"

	"countersign/internal/message"
)

// BenchmarkReadRequest is what one head costs: as curl sends it, as a browser does, and with a body.
func BenchmarkReadRequest(b *testing.B) {
	for _, c := range []struct{ name, in string }{
		{"curl", "GET /v1/items?page=2 HTTP/1.1\r\n" + host + "User-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"},
		{"browser", "GET /v1/items?page=2 HTTP/1.1\r\n" + host + "Connection: keep-alive\r\nsec-ch-ua: \"Chromium\";v=\"130\", \"Not?A_Brand\";v=\"99\"\r\n" +
			"sec-ch-ua-mobile: ?0\r\nsec-ch-ua-platform: \"Linux\"\r\nUpgrade-Insecure-Requests: 1\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\n" +
			"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nSec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-User: ?1\r\nSec-Fetch-Dest: document\r\n" +
			"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\nCache-Control: max-age=0\r\nCookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n\r\n"},
		{"post", post("Content-Type: application/json\r\nContent-Length: 5\r\n", "hello")},
		{"chunked", chunked("5\r\nhello\r\n0\r\n\r\n")},
	} {
		b.Run(c.name, func(b *testing.B) {
			src := bytes.NewReader([]byte(c.in))
			var d Reader
			var req message.Request
			d.Reset(src, Limits{HeadBytes: 32 << 10, Fields: 100}, false)
			sink := make([]byte, 64)
			b.ReportAllocs()
			for b.Loop() {
				src.Seek(0, io.SeekStart)
				if err := d.ReadRequest(&req); err != nil {
					b.Fatal(err)
				}
				for body := d.Body(&req.Head, true); !body.Done(); {
					if _, err := body.Read(sink); err != nil && err != io.EOF {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
