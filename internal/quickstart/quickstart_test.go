package quickstart

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/api"
	"countersign/internal/daemon"
	"countersign/internal/snapshot"
	"countersign/internal/trust"
)

// prepare makes the PKI in dir as of now.
func prepare(t *testing.T, dir string, now time.Time) (map[string]*entity, map[string]string, error) {
	t.Helper()
	f, err := openFolder(dir)
	if err != nil {
		return nil, nil, err
	}
	defer f.close()
	pki, steps, err := makePKI(f, now)
	did := make(map[string]string)
	for _, s := range steps {
		did[s.name] = s.did
	}
	return pki, did, err
}

// whole is a folder with a PKI, made once: an RSA key takes long with the race detector on.
var whole = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "countersign-quickstart-test-")
	if err != nil {
		return "", err
	}
	f, err := openFolder(dir)
	if err != nil {
		return "", err
	}
	defer f.close()
	_, _, err = makePKI(f, time.Now())
	return dir, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := whole(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// used returns a folder in which quickstart has run before.
func used(t *testing.T) string {
	t.Helper()
	origin, err := whole()
	dir := filepath.Join(t.TempDir(), "D")
	if err == nil {
		err = os.CopyFS(dir, os.DirFS(origin))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		out[name] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestFresh(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "new", "D")
	var out strings.Builder
	if err := Run(context.Background(), Options{Dir: dir, Check: true, Out: &out}); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	names := []string{"countersign.yaml", "countersign.schema.json", "pki/root-ca.pem", "pki/intermediate-ca.pem", "pki/clients.pem", "pki/clients.crl",
		"pki/server.pem", "pki/server.key", "pki/internal-ca.pem", "pki/edge.pem", "pki/edge.key",
		"pki/root-ca.key", "pki/intermediate-ca.key", "pki/internal-ca.key"}
	for _, who := range []string{"alice", "dave", "bob", "carol", "mallory", "server-only"} {
		names = append(names, "pki/"+who+".pem", "pki/"+who+".key", "pki/"+who+".p12")
	}
	all := contents(t, dir)
	for _, n := range names {
		if all[n] == "" {
			t.Errorf("%s is not there", n)
		}
	}
	if len(all["pki/dave.key"]) < 3*len(all["pki/alice.key"]) {
		t.Error("dave has no RSA key")
	}
	for n := range all {
		st, err := os.Stat(filepath.Join(dir, n))
		if err != nil {
			t.Fatal(err)
		}
		if ext := filepath.Ext(n); (ext == ".key" || ext == ".p12") && st.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, expected 0600", n, st.Mode().Perm())
		}
		if strings.HasSuffix(n, ".tmp") {
			t.Errorf("%s was left behind", n)
		}
	}
	if others, _ := os.ReadDir(parent); len(others) != 1 {
		t.Errorf("something was written outside D: %v", others)
	}
	for _, who := range []string{"alice", "mallory"} {
		if n := strings.Count(all["pki/"+who+".pem"], "BEGIN CERTIFICATE"); n != 2 {
			t.Errorf("%s.pem has %d certificates, expected leaf and intermediate", who, n)
		}
	}
	// The configuration is accepted as it is, without a warning.
	l, err := daemon.Load(filepath.Join(dir, configFile), snapshot.Env{Now: time.Now()})
	if err != nil || len(l.Problems) > 0 {
		var b strings.Builder
		_ = l.File.Render(&b, l.Problems)
		t.Errorf("check: %v\n%s", err, b.String())
	}
	if line, _, _ := strings.Cut(all[configFile], "\n"); line != "# yaml-language-server: $schema=./countersign.schema.json" {
		t.Errorf("editors do not find the schema: the first line is %q", line)
	}
	if all[schemaFile] != api.ConfigSchema {
		t.Error("the schema beside the configuration is another than the program's")
	}
	if strings.Contains(all[configFile], dir) {
		t.Error("the configuration holds absolute paths")
	}
	if n := strings.Count(out.String(), " ok\n"); n < 80 {
		t.Errorf("the table has %d lines that say ok:\n%s", n, out.String())
	}
}

func TestAgain(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	if _, did, err := prepare(t, dir, now); err != nil || did["alice"] != made || did["clients.crl"] != made {
		t.Fatal(err, did)
	}
	first := contents(t, dir)
	if err := os.Chmod(filepath.Join(dir, "pki/alice.key"), 0o644); err != nil {
		t.Fatal(err)
	}

	t.Run("soon", func(t *testing.T) {
		if _, did, err := prepare(t, dir, now.Add(time.Minute)); err != nil || did["alice"] != kept || did["clients.crl"] != reissued {
			t.Fatal(err, did)
		}
		for n, data := range contents(t, dir) {
			if same := data == first[n]; same != (n != crlFile) {
				t.Errorf("%s: the same is %v", n, same)
			}
		}
		if st, err := os.Stat(filepath.Join(dir, "pki/alice.key")); err != nil || st.Mode().Perm() != 0o600 {
			t.Error("a key that others could read was left so", err)
		}
		older, newer := list(t, first[crlFile]), list(t, contents(t, dir)[crlFile])
		if newer.Number.Cmp(older.Number) <= 0 || len(newer.RevokedCertificateEntries) != 1 || !newer.NextUpdate.After(older.NextUpdate) {
			t.Errorf("lists: %v %v, then %v %v", older.Number, older.NextUpdate, newer.Number, newer.NextUpdate)
		}
	})
	t.Run("clock set back", func(t *testing.T) {
		before := list(t, contents(t, dir)[crlFile])
		if _, _, err := prepare(t, dir, now); err != nil {
			t.Fatal(err)
		}
		if after := list(t, contents(t, dir)[crlFile]); after.Number.Cmp(before.Number) <= 0 {
			t.Errorf("number %v after %v", after.Number, before.Number)
		}
	})
	t.Run("near expiry", func(t *testing.T) {
		later := now.Add(leafLife - leafLife/4)
		pki, did, err := prepare(t, dir, later)
		if err != nil || did["alice"] != reissued || did["root-ca"] != kept || did["carol"] != kept {
			t.Fatal(err, did)
		}
		second := contents(t, dir)
		for n := range first {
			changed := second[n] != first[n]
			want := strings.HasSuffix(n, ".pem") || strings.HasSuffix(n, ".p12") || n == crlFile
			if strings.Contains(n, "-ca.") || strings.Contains(n, "carol") || n == bundleFile {
				want = false
			}
			if changed != want {
				t.Errorf("%s: changed is %v, expected %v", n, changed, want)
			}
		}
		if left := pki["alice"].cert.NotAfter.Sub(later); left < leafLife-2*time.Minute {
			t.Errorf("alice has %v left", left)
		}
		// bob's old and new certificate are both revoked; what was revoked is not forgotten.
		if l := list(t, second[crlFile]); len(l.RevokedCertificateEntries) != 2 {
			t.Errorf("%d entries", len(l.RevokedCertificateEntries))
		}
		if _, err := trust.ParseCRL([]byte(second[crlFile])); err != nil {
			t.Error(err)
		}
	})
}

func list(t *testing.T, data string) *x509.RevocationList {
	t.Helper()
	block, _ := pem.Decode([]byte(data))
	l, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestDamaged(t *testing.T) {
	tests := []struct {
		name   string
		damage func(dir string) error
		want   []string // in the error; none: it heals
	}{
		{"certificate cut", write("pki/alice.pem", "-----BEGIN CERTIFICATE-----\nMIIB"), []string{"pki/alice.pem", "delete"}},
		{"certificate empty", write("pki/alice.pem", ""), []string{"pki/alice.pem", "empty", "delete"}},
		{"key cut", write("pki/alice.key", "-----BEGIN PRIVATE KEY-----\nMIIB"), []string{"pki/alice.key", "delete"}},
		{"CA key gone", remove("pki/root-ca.key"), []string{"pki/root-ca.key", "no such file", "delete", "pki/root-ca.pem"}},
		{"another's key", copied("pki/bob.key", "pki/alice.key"), []string{"pki/alice.pem", "another key", "delete"}},
		{"list cut", write("pki/clients.crl", "-----BEGIN X509 CRL-----\nMIIB"), []string{"pki/clients.crl", "delete"}},
		{"p12 cut", write("pki/alice.p12", "0"), []string{"pki/alice.p12", "delete"}},
		{"configuration of somebody else", write("countersign.yaml", "listeners: {}\n"), []string{"countersign.yaml", "--dir"}},
		{"way out of D", func(dir string) error {
			outside := filepath.Join(filepath.Dir(dir), "outside.pem")
			if err := os.Remove(filepath.Join(dir, "pki/alice.pem")); err != nil {
				return err
			}
			return os.Symlink(outside, filepath.Join(dir, "pki/alice.pem"))
		}, []string{"pki/alice.pem", "escapes"}},
		{"certificate gone", remove("pki/alice.pem"), nil},
		{"both gone", both(remove("pki/alice.pem"), remove("pki/alice.key")), nil},
		{"CA begun anew", both(remove("pki/intermediate-ca.pem"), remove("pki/intermediate-ca.key")), nil},
		{"root begun anew", both(remove("pki/root-ca.pem"), remove("pki/root-ca.key")), nil},
		{"list gone", remove("pki/clients.crl"), nil},
		{"half-written file of a crash", write("pki/alice.key.tmp", "x"), nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := used(t)
			if err := test.damage(dir); err != nil {
				t.Fatal(err)
			}
			pki, _, err := prepare(t, dir, time.Now())
			if len(test.want) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range profiles {
					if p.issuer != "" && pki[p.name].cert.CheckSignatureFrom(pki[p.issuer].cert) != nil {
						t.Errorf("%s is not of %s", p.name, p.issuer)
					}
				}
				return
			}
			for _, want := range test.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("expected an error with %q, got %v", want, err)
				}
			}
		})
	}
}

func write(name, data string) func(string) error {
	return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600) }
}

func remove(name string) func(string) error {
	return func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
}

func copied(from, to string) func(string) error {
	return func(dir string) error {
		data, err := os.ReadFile(filepath.Join(dir, from))
		if err != nil {
			return err
		}
		return write(to, string(data))(dir)
	}
}

func both(a, b func(string) error) func(string) error {
	return func(dir string) error { return errors.Join(a(dir), b(dir)) }
}

func TestBusy(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "D")
	s, err := bind(ports{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	p := s.ports
	_, err = bind(p)
	for _, want := range []string{"port ", "is busy", `listener "public" (https)`, `"ops"`, "backend 3", "--port-base"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("expected an error with %q, got %v", want, err)
		}
	}
	if base := p.public; base <= 65535-5 {
		err = Run(context.Background(), Options{Dir: dir, PortBase: base, Out: io.Discard})
		if err == nil || !strings.Contains(err.Error(), "is busy") {
			t.Error(err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Error("a busy port left something behind", err)
		}
	}
	for _, base := range []int{-1, 65531, 1 << 20} {
		if _, err := portsFrom(base); err == nil || !strings.Contains(err.Error(), "--port-base") {
			t.Errorf("port base %d: %v", base, err)
		}
	}
}

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	f, err := openFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	if _, err := openFolder(dir); err == nil || !strings.Contains(err.Error(), "another quickstart") {
		t.Error(err)
	}
}

// TestCheckFinds breaks something and wants --check to see it.
func TestCheckFinds(t *testing.T) {
	tests := []struct {
		name  string
		wreck func(f *folder) error
		lines []string // each has to be in a line that says WRONG
	}{
		{"bob is not on the list", func(f *folder) error {
			pki, _, err := makePKI(f, time.Now())
			if err != nil {
				return err
			}
			ca := pki["intermediate-ca"]
			der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(time.Now().Unix() + 9),
				ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}, ca.cert, ca.key)
			if err != nil {
				return err
			}
			return f.write(crlFile, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), public)
		}, []string{"offload.test", "passthrough.test", "bob"}},
		{"no certificate to the backend", func(f *folder) error {
			conf, err := f.read(configFile)
			if err != nil {
				return err
			}
			at := bytes.Index(conf, []byte("      client_certificates"))
			end := at + bytes.IndexByte(conf[at:], '\n')
			return f.write(configFile, append(conf[:at:at], conf[end:]...), public)
		}, []string{"chained.test", "backend.test", "upstream_client_cert_none"}},
		{"expired ones are let in", func(f *folder) error {
			conf, err := f.read(configFile)
			if err != nil {
				return err
			}
			conf = bytes.Replace(conf, []byte("    revocation:"), []byte("    accept: {expired_leaf: allow}\n    revocation:"), 1)
			return f.write(configFile, conf, public)
		}, []string{"offload.test", "carol"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out strings.Builder
			err := Run(context.Background(), Options{Dir: used(t), Check: true, Out: &out, prepared: test.wreck})
			if err == nil || !strings.Contains(err.Error(), "otherwise than expected") {
				t.Fatalf("%v\n%s", err, out.String())
			}
			for _, want := range test.lines {
				found := false
				for line := range strings.Lines(out.String()) {
					found = found || strings.Contains(line, "WRONG") && strings.Contains(line, want)
				}
				if !found {
					t.Errorf("no line with WRONG and %q:\n%s", want, out.String())
				}
			}
		})
	}
}

// output collects what is printed by another goroutine.
type output struct {
	mu sync.Mutex
	b  strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// await waits until want was printed.
func (o *output) await(t *testing.T, want string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !strings.Contains(o.String(), want); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%q was not printed:\n%s", want, o.String())
		}
	}
}

// freeBase finds six ports in a row that are free now, below those that the kernel gives to others.
func freeBase(t *testing.T) int {
	t.Helper()
	for range 50 {
		base := 20000 + mathrand.IntN(10000)
		p, err := portsFrom(base)
		if err != nil {
			continue
		}
		if s, err := bind(p); err == nil {
			s.close()
			return base
		}
	}
	t.Skip("no six free ports in a row")
	return 0
}

// TestCurl runs quickstart as a user does, and every line it prints: exit code and text have to be those it announces.
func TestCurl(t *testing.T) {
	version, err := exec.Command("curl", "--version").Output()
	if err != nil || !bytes.Contains(version, []byte("OpenSSL/3")) {
		t.Skip("no curl with OpenSSL 3; its texts are what quickstart announces")
	}
	dir := used(t)
	base := freeBase(t)
	out := new(output)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, Options{Dir: dir, PortBase: base, Out: out}) }()
	defer cancel()
	out.await(t, "Ctrl-C")
	p, err := portsFrom(base)
	if err != nil {
		t.Fatal(err)
	}
	listed := contents(t, dir)[callsFile]
	for _, c := range calls() {
		for _, v := range c.versions() {
			line := c.curl(p, v)
			if versionName(v) != "1.2" && !strings.Contains(listed, line+"\n") {
				t.Errorf("%s does not list: %s", callsFile, line)
			}
			code, texts := c.curlAnswer(v)
			cmd := exec.Command("sh", "-c", line)
			cmd.Dir = dir
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err := cmd.Run()
			got, exit := stdout.String(), (*exec.ExitError)(nil)
			if errors.As(err, &exit) {
				got = stderr.String()
			} else if err != nil {
				t.Fatal(err)
			}
			if cmd.ProcessState.ExitCode() != code {
				t.Errorf("%s\nexit %d, expected %d: %s", line, cmd.ProcessState.ExitCode(), code, got)
			}
			for _, want := range texts {
				if !strings.Contains(got, want) {
					t.Errorf("%s\nexpected %q, got %s", line, want, got)
				}
			}
		}
	}
	// What happened is told as it happens.
	out.await(t, fmt.Sprintf("alice        GET offload.test:%d/hello -> 200  completed by upstream http in", base))
	out.await(t, "bob?         TLS handshake with offload.test  client_cert_revoked: expected")
	out.await(t, "one of Some Other CA? TLS handshake with offload.test  client_cert_untrusted: expected")
	out.await(t, "bob          TLS handshake with backend 3  client_cert_revoked")
	if st, err := os.Stat(filepath.Join(dir, recordsFile)); err != nil || st.Size() == 0 {
		t.Error("no records are kept", err)
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it does not end")
	}
}

func TestP12(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	dir := used(t)
	for _, who := range []string{"alice", "dave"} {
		out, err := exec.Command("openssl", "pkcs12", "-in", filepath.Join(dir, "pki", who+".p12"), "-passin", "pass:"+password, "-nodes").CombinedOutput()
		if err != nil || bytes.Count(out, []byte("BEGIN CERTIFICATE")) != 2 || !bytes.Contains(out, []byte("BEGIN PRIVATE KEY")) {
			t.Errorf("%s: %v\n%s", who, err, out)
		}
	}
}

func TestConfigKept(t *testing.T) {
	dir := t.TempDir()
	f, err := openFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	p1, _ := portsFrom(20000)
	p2, _ := portsFrom(30000)
	for _, p := range []ports{p1, p2} {
		if err := writeConfig(f, p); err != nil {
			t.Fatal(err)
		}
	}
	if old, _ := f.read(configFile + ".old"); old != nil {
		t.Error("other ports alone are no change to keep")
	}
	// Before there was a schema, and when somebody removes the line that names it, the mark is enough.
	if conf := configFor(p2); !madeHere(conf) || !madeHere(bytes.TrimPrefix(conf, []byte(schemaLine))) || madeHere([]byte(schemaLine+"listeners: {}\n")) {
		t.Error("a configuration made here is not told from another")
	}
	mine := append(configFor(p2), "# mine\n"...)
	if err := f.write(configFile, mine, public); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := writeConfig(f, p1); err != nil {
			t.Fatal(err)
		}
		if old, _ := f.read(configFile + ".old"); !bytes.Equal(old, mine) {
			t.Error("what the user wrote is gone")
		}
	}
}

func TestRecorder(t *testing.T) {
	f, err := openFolder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	var shown strings.Builder
	r, err := newRecorder(f, &shown)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	line := `{"time":"2026-01-02T03:04:05Z","kind":"request","client":"c","method":"GET","host":"a\u001b[2J","path":"/","status":200,"reason":"completed","client_subject":"CN=x\u0007"}` + "\n"
	_, _ = io.WriteString(r, line[:50])
	_, _ = io.WriteString(r, line[50:])
	if _, ok := r.await(0, "c", time.Second); !ok {
		t.Error("a record in two parts was not found")
	}
	if s := strings.TrimSuffix(shown.String(), "\n"); s == "" || strings.ContainsFunc(s, func(c rune) bool { return c < ' ' }) {
		t.Errorf("control characters reach the terminal: %q", s)
	}
	ended := `{"time":"2026-01-02T03:04:05Z","kind":"ended","sni":"a.test","client_certificate":{"depth":0,"subject":"CN=alice,O=X"},` +
		`"reason":"client_no_longer_trusted","expected":"a certificate that is not on the deny list","found":"client_cert_denied"}` + "\n"
	shown.Reset()
	_, _ = io.WriteString(r, ended)
	if s := shown.String(); !strings.Contains(s, "  alice        open connection to a.test ended  client_no_longer_trusted: expected a certificate that") {
		t.Errorf("an open connection that was ended is shown as %q", s)
	}
	r.limit = 64 << 10
	block := []byte(strings.Repeat(line, 20))
	for range 3 * int(r.limit) / len(block) {
		_, _ = r.Write(block)
	}
	for _, n := range []string{recordsFile, recordsFile + ".old"} {
		if st, err := f.root.Stat(n); err != nil || st.Size() > r.limit {
			t.Error(n, err, st)
		}
	}
}
