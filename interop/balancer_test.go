package interop_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// balancer is a running countersign.
type balancer struct {
	t       *testing.T
	pki     *pki
	addr    map[string]string // of listeners, by name
	records *output
	log     *output
}

// stores is the part of every configuration that says who is trusted.
const stores = `
ops: {listen: $ops}
drain: 1s
trust_stores:
  clients:
    ca_bundle: {file: root-ca.pem}
    revocation: {crls: [{file: clients.crl}]}
  internal:
    ca_bundle: {file: internal-ca.pem}
`

// serve runs countersign with stores and conf, in which $NAME stands for the address vars has under that name, and
// otherwise for an address of its own that no one listens on yet. The drain of vars stands for that of stores.
func serve(t *testing.T, p *pki, conf string, vars map[string]string) *balancer {
	t.Helper()
	b := &balancer{t: t, pki: p, addr: map[string]string{}, records: &output{}}
	text := os.Expand(stores+conf, func(name string) string {
		if addr, ok := vars[name]; ok {
			return addr
		}
		if b.addr[name] == "" {
			b.addr[name] = freeAddress(t)
		}
		return b.addr[name]
	})
	if drain, ok := vars["drain"]; ok {
		text = strings.Replace(text, "drain: 1s", "drain: "+drain, 1)
	}
	if *eventLoop && !strings.Contains(text, "event_loop") {
		text += "\nexperimental: {event_loop: on}\n"
	}
	file := write(t, p.dir, "countersign.yaml", []byte(text))
	cmd := exec.Command(binary, "run", "-c", file)
	cmd.Stdout = b.records
	b.log = start(t, cmd, b.addr["ops"])
	for range 750 {
		if resp, err := http.Get("http://" + b.addr["ops"] + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return b
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("countersign is not ready:\n%s", b.log)
	return nil
}

// mark is a place in the records; what comes after it belongs to what is done next.
func (b *balancer) mark() int { return len(b.records.String()) }

// since returns the records written after mark.
func (b *balancer) since(t *testing.T, mark int) []map[string]any {
	t.Helper()
	var out []map[string]any
	text := b.records.String()[mark:]
	for line := range strings.Lines(text) {
		if !strings.HasSuffix(line, "\n") {
			break // being written
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("a record that is not JSON: %v\n%s", err, line)
		}
		out = append(out, m)
	}
	return out
}

// record waits for a record after mark that has all the fields, written as key=value.
func (b *balancer) record(t *testing.T, mark int, want ...string) map[string]any {
	t.Helper()
	var seen []map[string]any
	for range 750 {
		seen = b.since(t, mark)
		for _, m := range seen {
			if !slices.ContainsFunc(want, func(kv string) bool {
				k, v, _ := strings.Cut(kv, "=")
				return fmt.Sprint(m[k]) != v
			}) {
				return m
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	var all strings.Builder
	for _, m := range seen {
		text, _ := json.Marshal(m)
		all.Write(append(text, '\n'))
	}
	t.Fatalf("no record has %s; there are:\n%s", strings.Join(want, " "), &all)
	return nil
}

// noRequest checks that no request was recorded on the connection of a handshake's record.
func (b *balancer) noRequest(t *testing.T, handshake map[string]any) {
	t.Helper()
	for _, m := range b.since(t, 0) {
		if ref := fmt.Sprint(m["ref"]); m["kind"] == "request" && strings.HasPrefix(ref, fmt.Sprint(handshake["ref"])) {
			t.Errorf("a request got through: %v", m)
		}
	}
}

// url is where a client asks for path of host on listener.
func (b *balancer) url(listener, host, path string) string {
	scheme := "https://"
	if listener == "plain" {
		scheme = "http://"
	}
	return scheme + host + ":" + portOf(b.addr[listener]) + path
}

// curl runs curl, which takes all of names to be 127.0.0.1 and trusts the internal CA. who may be nil.
func (b *balancer) curl(t *testing.T, listener string, who *cert, args ...string) result {
	t.Helper()
	all := []string{"--http1.1", "--silent", "--show-error", "--verbose", "--max-time", "15", "--noproxy", "*", "--cacert", b.pki.internal.file}
	for _, name := range names {
		all = append(all, "--resolve", name+":"+portOf(b.addr[listener])+":127.0.0.1")
	}
	if who != nil {
		all = append(all, "--cert", who.file, "--key", who.keyFile)
	}
	return run(t, nil, "curl", append(all, args...)...)
}

// echo is a backend that answers with the head it was sent, as JSON, and counts.
type echo struct {
	addr string

	mu                    sync.Mutex
	connections, requests int
}

type seen struct {
	Method, Target, Proto, Host string
	Header                      http.Header
	Body                        int
}

func newEcho(t *testing.T) *echo {
	t.Helper()
	e := &echo{}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			e.mu.Lock()
			e.requests++
			e.mu.Unlock()
			n, _ := io.Copy(io.Discard, r.Body)
			_ = json.NewEncoder(w).Encode(seen{r.Method, r.RequestURI, r.Proto, r.Host, r.Header, int(n)})
		}),
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew {
				e.mu.Lock()
				e.connections++
				e.mu.Unlock()
			}
		},
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e.addr = l.Addr().String()
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return e
}

// touched is how often anybody connected or asked.
func (e *echo) touched() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.connections + e.requests
}

func (e *echo) parse(t *testing.T, body string) seen {
	t.Helper()
	var s seen
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatalf("not what the backend answers: %v\n%s", err, tail(body, 1000))
	}
	return s
}
