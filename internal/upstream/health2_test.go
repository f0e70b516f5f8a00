package upstream

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"countersign/internal/reason"
	"countersign/internal/testpki"
	"countersign/internal/trust"
)

// grpcAnswer writes body as one message of gRPC, with a status behind it.
func grpcAnswer(w http.ResponseWriter, status string, body ...byte) {
	w.Header().Set("Content-Type", "application/grpc")
	_, _ = w.Write(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...))
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", status)
}

// TestHealthHTTP2 checks a server of net/http, over TLS's own choice of protocol left out.
func TestHealthHTTP2(t *testing.T) {
	get := func(h *Health) { h.Path, h.Status = "/healthz", []StatusRange{{200, 299}} }
	grpc := func(h *Health) { h.Path, h.GRPC, h.Service = "", true, "shop.Cart" }
	for name, tt := range map[string]struct {
		set  func(*Health)
		f    http.HandlerFunc
		want bool
	}{
		"GET": {get, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != "GET" || r.URL.Path != "/healthz" || r.Host != "api.internal" {
				w.WriteHeader(500)
			}
		}, true},
		"GET 503":                {get, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, false},
		"GET, the handler fails": {get, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, false},
		"SERVING": {grpc, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if r.Method != "POST" || r.URL.Path != "/grpc.health.v1.Health/Check" || r.Header.Get("Content-Type") != "application/grpc" || r.Header.Get("Te") != "trailers" ||
				string(body) != "\x00\x00\x00\x00\x0b\x0a\x09shop.Cart" {
				w.WriteHeader(400)
				return
			}
			grpcAnswer(w, "0", 8, 1)
		}, true},
		"SERVING behind a field of another version": {grpc, func(w http.ResponseWriter, _ *http.Request) { grpcAnswer(w, "0", 18, 2, 'h', 'i', 8, 1) }, true},
		"NOT_SERVING":             {grpc, func(w http.ResponseWriter, _ *http.Request) { grpcAnswer(w, "0", 8, 2) }, false},
		"UNKNOWN":                 {grpc, func(w http.ResponseWriter, _ *http.Request) { grpcAnswer(w, "0") }, false},
		"an error behind SERVING": {grpc, func(w http.ResponseWriter, _ *http.Request) { grpcAnswer(w, "14", 8, 1) }, false},
		"trailers only": {grpc, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Grpc-Status", "12")
		}, false},
		"no status": {grpc, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte{0, 0, 0, 0, 2, 8, 1}) }, false},
		"compressed": {grpc, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Grpc-Status", "0")
			_, _ = w.Write([]byte{1, 0, 0, 0, 2, 8, 1})
		}, false},
		"cut": {grpc, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Grpc-Status", "0")
			_, _ = w.Write([]byte{0, 0, 0, 0, 2, 8})
		}, false},
		"status 404":   {grpc, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, false},
		"says nothing": {grpc, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, false},
		"F18/endless": {grpc, func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 10000)); err != nil {
					return
				}
			}
		}, false},
		"F18/long header": {get, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("a", 100000)) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewUnstartedServer(tt.f)
			srv.Config.Protocols = new(http.Protocols)
			srv.Config.Protocols.SetUnencryptedHTTP2(true)
			srv.Start()
			defer srv.Close()
			addr := strings.TrimPrefix(srv.URL, "http://")
			s := checked(settings("p", addr))
			s.HTTP2, s.Health.Timeout, s.Health.Healthy, s.Health.Unhealthy = true, 200*time.Millisecond, 2, 2
			tt.set(s.Health)
			r, log := registry(t, s)
			if tt.want {
				r.Pool("p").members[0].down.Store(true) // until a check says otherwise
			}
			health(t, r, addr, tt.want)
			r.Apply(nil)()
			if !tt.want && !strings.Contains(log.String(), "target is unhealthy") {
				t.Errorf("the log does not say why: %s", log.String())
			}
		})
	}
	t.Run("a target that does not speak it", func(t *testing.T) {
		addr := serve(t, answering("HTTP/1.1 200 OK\r\n\r\n"))
		s := checked(settings("p", addr))
		s.HTTP2 = true
		r, _ := registry(t, s)
		health(t, r, addr, false)
	})
}

func TestServingStatus(t *testing.T) {
	for in, want := range map[string]uint64{"\x00\x00\x00\x00\x02\x08\x01": 1, "\x00\x00\x00\x00\x00": 0, "\x00\x00\x00\x00\x04\x08\x01\x08\x02": 2, "\x00\x00\x00\x00\x07\x15abcd\x08\x01": 1} {
		if got, err := servingStatus([]byte(in)); err != nil || got != want {
			t.Errorf("%q: %d, %v, expected %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "\x00", "\x01\x00\x00\x00\x02\x08\x01", "\x00\x00\x00\x00\x03\x08\x01", "\x00\xff\xff\xff\xff\x08\x01", "\x00\x00\x00\x00\x01\x08", "\x00\x00\x00\x00\x01\x80",
		"\x00\x00\x00\x00\x02\x0a\x7f", "\x00\x00\x00\x00\x02\x0d\x01", "\x00\x00\x00\x00\x02\x09\x01", "\x00\x00\x00\x00\x02\x0b\x01", "\x00\x00\x00\x00\x0b\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"} {
		if got, err := servingStatus([]byte(in)); err == nil {
			t.Errorf("%q is taken for status %d", in, got)
		}
	}
}

func FuzzServingStatus(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x02\x08\x01"))
	f.Fuzz(func(_ *testing.T, body []byte) { _, _ = servingStatus(body) })
}

// TestNoHTTP2 shows what is said of a target that was to choose HTTP/2 and did not.
func TestNoHTTP2(t *testing.T) {
	pki := testpki.New(t)
	store, err := trust.NewStore("internal", []*x509.Certificate{pki.Cert}, nil, nil, trust.Options{})
	if err != nil {
		t.Fatal(err)
	}
	cert := pki.Server("api.internal").TLS()
	for name, tt := range map[string]struct {
		offer []string
		want  reason.Reason
	}{
		"chooses nothing":       {nil, reason.UpstreamNoHTTP2},
		"knows only http/1.1":   {[]string{"http/1.1"}, reason.UpstreamTLSFailed},
		"chooses it among both": {[]string{"h2", "http/1.1"}, reason.Unset},
	} {
		t.Run(name, func(t *testing.T) {
			s := settings("p", serve(t, func(c net.Conn) {
				tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: tt.offer})
				if tc.Handshake() == nil {
					_, _ = tc.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}) // SETTINGS
					_, _ = io.Copy(io.Discard, tc)
				}
			}))
			s.HTTP2, s.TLS = true, &TLS{ServerName: "api.internal", Store: store}
			r, _ := registry(t, s)
			c, err := r.Pool("p").Acquire(t.Context())
			if got := reasonOf(err); got != tt.want {
				t.Errorf("%v, expected %s", err, tt.want)
			}
			if err == nil {
				c.Release(false, time.Now())
			}
		})
	}
}
