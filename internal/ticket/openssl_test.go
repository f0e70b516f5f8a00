package ticket

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestOpenSSL resumes with a client that is not Go's, which keeps its session in a file.
func TestOpenSSL(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("COUNTERSIGN_CI") == "1" {
			t.Fatal("openssl is not installed, and CI skips nothing; apt-get install openssl")
		}
		t.Skip("openssl is not installed: not tested against it; apt-get install openssl")
	}
	w := newWorld(t)
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, w.root.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	// call makes a connection with a session from the file in, if any, and keeps the one it is given in out.
	call := func(t *testing.T, v visit, in, out string) (*seen, string) {
		t.Helper()
		who := t.TempDir()
		cert, key := v.client.WriteFiles(who)
		args := []string{"s_client", "-connect", l.Addr().String(), "-servername", v.name, "-CAfile", ca, "-verify_return_error",
			"-cert", cert, "-cert_chain", cert, "-key", key, "-sess_out", out, "-ign_eof", "-tls1_2"}
		if v.version == tls.VersionTLS13 {
			args[len(args)-1] = "-tls1_3"
		}
		if in != "" {
			args = append(args, "-sess_in", in)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		done := make(chan *seen, 1)
		_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(10 * time.Second))
		go func() {
			conn, err := l.Accept()
			if err != nil {
				done <- &seen{err: err, session: new(Session)}
				return
			}
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			done <- w.serve(conn, &v)
		}()
		text, err := exec.CommandContext(ctx, "openssl", args...).CombinedOutput()
		s := <-done
		if s.err != nil {
			t.Logf("openssl: %v\n%s", err, text)
		}
		s.clientErr = err
		return s, string(text)
	}
	for _, version := range versions {
		t.Run(version.name, func(t *testing.T) {
			file := func(name string) string { return filepath.Join(dir, version.name+name) }
			v := w.newVisit(version.id, nil)
			first, text := call(t, v, "", file("1"))
			if first.full(t, nil); !strings.Contains(text, "New, TLS") {
				t.Fatalf("openssl does not speak of a new session:\n%s", text)
			}
			w.clock.pass(20 * time.Minute)
			again, text := call(t, v, file("1"), file("2"))
			if again.resumed(t); !strings.Contains(text, "Reused, TLS") {
				t.Errorf("openssl does not speak of a reused session:\n%s", text)
			}
			if got, want := chain(again.state.PeerCertificates), chain(first.state.PeerCertificates); got != want || len(again.state.PeerCertificates) < 2 {
				t.Errorf("A10: certificates differ: %d bytes, want %d", len(got), len(want))
			}
			if again.at().Unix() != first.at().Unix() {
				t.Errorf("A05: authenticated at %v, want %v", again.at(), first.at())
			}
			last := file("2")
			if version.id == tls.VersionTLS12 {
				last = file("1") // a renewed TLS 1.2 ticket is not written to the file
			}
			v.scope = scopeB
			s, _ := call(t, v, last, file("x"))
			s.full(t, errSeal)
			v.scope = scopeA
			w.clock.pass(41 * time.Minute)
			s, _ = call(t, v, last, file("x"))
			s.full(t, errAge)

			t.Run("B22/not sealed", func(t *testing.T) {
				v := v
				v.client = large(w, 20000)
				s, text := call(t, v, "", file("3"))
				s.full(t, nil)
				if !strings.Contains(text, "New, TLS") {
					t.Errorf("openssl: %s", text)
				}
				if _, err := os.Stat(file("3")); err == nil {
					s, _ = call(t, v, file("3"), file("x"))
					if s.err != nil || s.clientErr != nil || s.state.DidResume {
						t.Errorf("server %v, client %v, resumed %v; want a full handshake", s.err, s.clientErr, s.state.DidResume)
					}
				}
			})
		})
	}
}
