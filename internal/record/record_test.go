package record

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"countersign/internal/identity"
	"countersign/internal/reason"
	"countersign/internal/testpki"
)

var hostile = []string{
	"\"}\n{\"level\":\"fatal\"}", "\x1b[31mred\x1b[0m", "nul\x00byte", strings.Repeat("\"", 64<<10), "\xff\xfe", "\u202eright to left", "back\\slash",
}

// buffer is a writer that may be used by several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *buffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *buffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func TestTimes(t *testing.T) {
	east := time.FixedZone("east", 2*3600)
	for _, at := range []time.Time{{}, time.Unix(0, 0), time.Unix(1795354200, 999_999_999), time.Unix(1795354200, 1000), time.Unix(1795354200, 999),
		time.Date(2026, 2, 28, 23, 59, 59, 120_034_567, east), time.Date(9999, 12, 31, 23, 59, 59, 5_000, time.UTC)} {
		want := at.UTC().Format("2006-01-02T15:04:05.000000Z07:00")
		if got := string(appendTime([]byte("at "), at)); got != "at "+want {
			t.Errorf("%q, expected %q", got, want)
		}
	}
}

// TestHostileText shows that whatever strangers send makes one valid line of bounded length (F13).
func TestHostileText(t *testing.T) {
	pki := testpki.New(t)
	for i, text := range hostile {
		t.Run(fmt.Sprintf("F13/%d", i), func(t *testing.T) {
			cert := pki.Client(strings.ToValidUTF8(text[:min(len(text), 60)], "?")).Cert
			r := Request{}
			r.Begin(7, time.Now())
			r.Keep([]byte(text), []byte(text), []byte(text))
			r.Fail(reason.UpstreamClosed, errors.New(text))
			r.Found, r.Expected = text, text
			h := Handshake{Ref: "r", SNI: text, Host: text, Reason: reason.ClientCertExpired, Found: text, Detail: text, At: cert}
			id, _ := identity.FromChain([]*x509.Certificate{cert, pki.Cert})
			for _, line := range [][]byte{
				r.append(nil, time.Now(), "ref", Fragment("public", "127.0.0.1:1", identity.Present(id))),
				r.append(nil, time.Now(), "ref", FragmentVia("public", "127.0.0.1:1", identity.Present(id), id)),
				h.append(nil, time.Now()),
			} {
				var v map[string]any
				if err := json.Unmarshal(line, &v); err != nil {
					t.Fatalf("not JSON: %v\n%s", err, line)
				}
				if bytes.Count(line, []byte("\n")) != 1 || len(line) > maxLine {
					t.Errorf("%d bytes, %d line ends", len(line), bytes.Count(line, []byte("\n")))
				}
				for _, c := range line[:len(line)-1] {
					if c < ' ' || c > '~' {
						t.Fatalf("byte %#x in %q", c, line)
					}
				}
			}
		})
	}
}

func TestRequestLine(t *testing.T) {
	out := &buffer{}
	b := NewBook(out)
	l := b.Listener("public")
	r := Request{}
	r.Begin(3, time.Now())
	r.Keep([]byte("GET"), []byte("a.test"), []byte("/x"))
	r.Status, r.Reason, r.Upstream, r.Target, r.BytesOut = 200, reason.Completed, "api", "127.0.0.1:1", 5
	l.Request(&r, "abcd", Fragment("public", "127.0.0.1:9", identity.Client{}))
	r.Reason = reason.UpstreamTimeout
	l.Request(&r, "abcd", nil)
	b.Log(Refused)
	r.Reason = reason.Completed
	l.Request(&r, "abcd", nil)
	b.Log(None)
	r.Reason = reason.UpstreamTimeout
	l.Request(&r, "abcd", nil)
	b.Close()

	lines := strings.Split(strings.TrimSpace(out.b.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("expected two lines: the completed one under all and the refused one; got %d\n%s", len(lines), out.b.String())
	}
	var first, second map[string]any
	if json.Unmarshal([]byte(lines[0]), &first) != nil || json.Unmarshal([]byte(lines[1]), &second) != nil {
		t.Fatal(out.b.String())
	}
	if first["ref"] != "abcd-3" || first["status"] != 200.0 || first["reason"] != "completed" || first["fault"] != nil || first["client"] != "127.0.0.1:9" {
		t.Errorf("%s", lines[0])
	}
	if second["fault"] != "upstream" || second["next"] == nil {
		t.Errorf("%s", lines[1])
	}
	if n := testutil.ToFloat64(l.requests[reason.UpstreamTimeout]); n != 2 {
		t.Errorf("counted %v, expected 2 whatever the log shows", n)
	}
}

// TestFragmentVia: who spoke for the client is told beside the client, and also where there is none.
func TestFragmentVia(t *testing.T) {
	pki := testpki.New(t)
	of := func(name string) *identity.Identity {
		id, err := identity.FromChain([]*x509.Certificate{pki.Client(name).Cert, pki.Cert})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	edge := of("edge")
	for subject, client := range map[any]identity.Client{"CN=alice": identity.Present(of("alice")), nil: {}} {
		r := Request{Reason: reason.Completed}
		var line struct {
			Subject any `json:"client_subject"`
			Via     struct{ Subject, SHA256 string }
		}
		if err := json.Unmarshal(r.append(nil, time.Now(), "abcd", FragmentVia("public", "127.0.0.1:9", client, edge)), &line); err != nil {
			t.Fatal(err)
		}
		if sum := edge.Fingerprint(); line.Subject != subject || line.Via.Subject != "CN=edge" || line.Via.SHA256 != fmt.Sprintf("%x", sum) {
			t.Errorf("%+v", line)
		}
	}
}

// stuck is a sink whose reader has stopped.
type stuck struct{ release chan struct{} }

func (s stuck) Write(p []byte) (int, error) {
	<-s.release
	return len(p), nil
}

// TestStuckSink shows that a stopped sink costs lines, never time or memory (H13).
func TestStuckSink(t *testing.T) {
	t.Run("H13/stuck", func(t *testing.T) {
		out := stuck{make(chan struct{})}
		b := NewBook(out)
		l := b.Listener("public")
		r := Request{}
		r.Begin(1, time.Now())
		r.Keep([]byte("GET"), []byte("a.test"), bytes.Repeat([]byte("x"), maxPath))
		r.Reason = reason.Completed
		start := time.Now()
		for range 20000 {
			l.Request(&r, "abcd", nil)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("20,000 records took %v", took)
		}
		if n := testutil.ToFloat64(b.dropped.WithLabelValues("stdout")); n == 0 {
			t.Error("nothing was counted as dropped")
		}
		o := (*b.outputs.Load())[0]
		o.mu.Lock()
		if len(o.pending) > defaultQueue+maxLine {
			t.Errorf("%d bytes wait", len(o.pending))
		}
		o.mu.Unlock()
		close(out.release)
		b.Close()
	})
}

func TestRequestAllocatesNothing(t *testing.T) {
	b := NewBook(&buffer{})
	defer b.Close()
	b.Log(None)
	l := b.Listener("public")
	r := Request{}
	line := make([]byte, 0, 4096)
	fragment := Fragment("public", "127.0.0.1:9", identity.Client{})
	if n := testing.AllocsPerRun(1000, func() {
		r.Begin(3, time.Now())
		r.Keep([]byte("GET"), []byte("a.test"), []byte("/x"))
		r.Reason = reason.Completed
		l.Request(&r, "abcd", fragment)
		line = r.append(line[:0], time.Now(), "abcd", fragment)
	}); n != 0 {
		t.Errorf("a record allocates %v objects", n)
	}
}

func BenchmarkLine(b *testing.B) {
	r := Request{}
	line := make([]byte, 0, 4096)
	fragment := Fragment("public", "127.0.0.1:9", identity.Client{})
	r.Begin(3, time.Now())
	r.Keep([]byte("GET"), []byte("a.test"), []byte("/status"))
	r.Reason, r.Status, r.Upstream, r.Target = reason.Completed, 200, "api", "127.0.0.1:9000"
	now := time.Now()
	for b.Loop() {
		line = r.append(line[:0], now, "abcd", fragment)
	}
}
