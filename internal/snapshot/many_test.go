package snapshot

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/internal/certs"
	"countersign/internal/config"
	"countersign/internal/message"
	"countersign/internal/testpki"
)

// crowd is a folder of many hosts, each with a certificate of its own from one intermediate, and their configuration.
type crowd struct {
	*bench
	n      int
	inter  *testpki.Cert
	parent *x509.Certificate
	serial int64
	parser *config.Parser
	env    Env
	texts  map[int][]byte
}

func manyHost(i int) string { return fmt.Sprintf("h%05d.many.test", i) }

// partHosts is how many hosts one file has: a file may have 100,000 nodes.
const partHosts = 4000

func newCrowd(t testing.TB, n int) *crowd {
	c := &crowd{bench: &bench{t, t.TempDir(), testpki.New(t)}, n: n, texts: make(map[int][]byte)}
	c.env = Env{Dir: c.dir, Staples: new(certs.Staples)}
	c.inter = c.ca.Intermediate("servers")
	parent, err := x509.ParseCertificate(c.inter.DER())
	if err != nil {
		t.Fatal(err)
	}
	c.parent = parent
	c.write("ca.pem", c.ca.PEM())
	for i := range n {
		c.renew(i)
	}
	return c
}

// renew gives a host another key and certificate, as deployments do: files renamed over those that were there.
func (c *crowd) renew(i int) {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	c.serial++
	leaf := &x509.Certificate{SerialNumber: big.NewInt(1<<40 + c.serial), Subject: pkix.Name{CommonName: manyHost(i)}, DNSNames: []string{manyHost(i)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, c.parent, key.Public(), c.inter.Key)
	if err != nil {
		c.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		c.t.Fatal(err)
	}
	c.replace(manyHost(i)+".key", testpki.PEM("PRIVATE KEY", secret))
	c.replace(manyHost(i)+".pem", append(testpki.PEM("CERTIFICATE", der), testpki.PEM("CERTIFICATE", c.parent.Raw)...))
}

func (c *crowd) replace(name string, data []byte) {
	c.t.Helper()
	c.write(name+".new", data)
	if err := os.Rename(filepath.Join(c.dir, name+".new"), filepath.Join(c.dir, name)); err != nil {
		c.t.Fatal(err)
	}
}

// text is one of the files of the configuration.
func (c *crowd) text(part int) []byte {
	if c.texts[part] != nil {
		return c.texts[part]
	}
	var b strings.Builder
	if part == 0 {
		b.WriteString("trust_stores:\n  clients:\n    ca_bundle: {file: ca.pem}\nupstreams:\n  api: {targets: [\"http://127.0.0.1:9\"]}\n")
	}
	fmt.Fprintf(&b, "listeners:\n  https%d:\n    listen: 127.0.0.1:%d\n    protocol: https\n    hosts:\n", part, 8443+part)
	for i := part * partHosts; i < min(c.n, (part+1)*partHosts); i++ {
		fmt.Fprintf(&b, "      - names: [%[1]s]\n        certificate: {cert: %[1]s.pem, key: %[1]s.key}\n        client_auth: {mode: require, trust_store: clients}\n"+
			"        identity_headers: [x_ssl_client]\n        routes: [{upstream: api}]\n", manyHost(i))
	}
	c.texts[part] = []byte(b.String())
	return c.texts[part]
}

// load does what package daemon does: it parses and compiles.
func (c *crowd) load(previous *Snapshot) (*Snapshot, *Read, config.Problems) {
	c.t.Helper()
	c.parser = c.parser.Next()
	main, problems := c.parser.Parse("countersign.yaml", c.text(0))
	for part := 1; part*partHosts < c.n; part++ {
		more, found := c.parser.ParsePart(fmt.Sprintf("part%d.yaml", part), c.text(part))
		problems = append(append(problems, found...), main.Include(more)...)
	}
	env := c.env
	env.Now, env.Previous = time.Now(), previous
	return Compile(main, problems, env)
}

func (c *crowd) mustLoad(previous *Snapshot) (*Snapshot, *Read) {
	c.t.Helper()
	s, read, problems := c.load(previous)
	if s == nil || len(problems) > 0 {
		c.t.Fatalf("problems: %v", problems)
	}
	return s, read
}

// served is the serial number that a host presents.
func served(t testing.TB, s *Snapshot, i int) int64 {
	t.Helper()
	h := s.Listeners[fmt.Sprintf("https%d", i/partHosts)].Host([]byte(manyHost(i)))
	if h == nil {
		t.Fatalf("no host %s", manyHost(i))
	}
	pair := h.Keys.For(nil)
	return pair.Leaf.SerialNumber.Int64() - 1<<40
}

// What did not change is neither decoded nor parsed again.
func TestReloadParsesWhatChanged(t *testing.T) {
	const n = 40
	c := newCrowd(t, n)
	first, _ := c.mustLoad(nil)
	if first.memory.parsed != n || c.parser.Fresh() != 1 {
		t.Fatalf("the first load parsed %d pairs and %d files, expected %d and 1", first.memory.parsed, c.parser.Fresh(), n)
	}
	last := first
	reload := func(t *testing.T, parsed, fresh int) *Snapshot {
		t.Helper()
		s, _ := c.mustLoad(last)
		if s.memory.parsed != parsed || c.parser.Fresh() != fresh {
			t.Errorf("parsed %d pairs and %d files, expected %d and %d", s.memory.parsed, c.parser.Fresh(), parsed, fresh)
		}
		if len(s.memory.pairs) != len(last.memory.pairs) {
			t.Errorf("%d pairs remembered, expected %d", len(s.memory.pairs), len(last.memory.pairs))
		}
		last = s
		return s
	}
	t.Run("nothing changed", func(t *testing.T) {
		if s := reload(t, 0, 0); s.Hash != first.Hash {
			t.Errorf("hash %s, expected %s", s.Hash, first.Hash)
		}
	})
	t.Run("one renewed", func(t *testing.T) {
		c.renew(7)
		s := reload(t, 1, 0)
		if s.Hash == first.Hash || served(t, s, 7) != n+1 || served(t, s, 8) != 9 || served(t, first, 7) != 8 {
			t.Errorf("hash %s, serial numbers %d, %d, and before %d", s.Hash, served(t, s, 7), served(t, s, 8), served(t, first, 7))
		}
	})
	t.Run("H03/one half renewed", func(t *testing.T) {
		old, err := os.ReadFile(filepath.Join(c.dir, manyHost(3)+".pem"))
		if err != nil {
			t.Fatal(err)
		}
		c.renew(3)
		whole, err := os.ReadFile(filepath.Join(c.dir, manyHost(3)+".pem"))
		if err != nil {
			t.Fatal(err)
		}
		c.replace(manyHost(3)+".pem", old)
		s, read, problems := c.load(last)
		if s != nil || !strings.Contains(problems.Error(), "does not belong to the certificate") {
			t.Errorf("problems: %v", problems)
		}
		if len(read.Sums) != 2*n+1 {
			t.Errorf("%d files are watched, expected %d", len(read.Sums), 2*n+1)
		}
		c.replace(manyHost(3)+".pem", whole)
		if s := reload(t, 1, 0); served(t, s, 3) != n+2 {
			t.Errorf("serial number %d", served(t, s, 3))
		}
	})
	t.Run("a pair under the name of another host", func(t *testing.T) {
		for _, ext := range []string{".pem", ".key"} {
			data, err := os.ReadFile(filepath.Join(c.dir, manyHost(5)+ext))
			if err != nil {
				t.Fatal(err)
			}
			c.replace(manyHost(6)+ext, data)
		}
		s, _, problems := c.load(last)
		if s == nil || s.memory.parsed != 0 || len(problems) != 1 || !strings.Contains(problems.Error(), "does not cover the name \"h00006.many.test\"") {
			t.Errorf("problems: %v", problems)
		}
		c.renew(6)
		c.mustLoad(last)
	})
	t.Run("dates are looked at each time", func(t *testing.T) {
		main, problems := c.parser.Parse("countersign.yaml", c.text(0))
		s, _, problems := Compile(main, problems, Env{Dir: c.dir, Now: time.Now().Add(91 * 24 * time.Hour), Previous: last})
		if s == nil || len(problems) != n || !strings.Contains(problems.Error(), "expired at") {
			t.Errorf("%d problems, expected %d: %.300v", len(problems), n, problems)
		}
	})
	t.Run("a remembered certificate whose file is gone", func(t *testing.T) {
		if err := os.Remove(filepath.Join(c.dir, manyHost(9)+".key")); err != nil {
			t.Fatal(err)
		}
		if s, read, problems := c.load(last); s != nil || !strings.Contains(problems.Error(), "cannot read h00009.many.test.key") || read.Sums[filepath.Join(c.dir, manyHost(9)+".key")] != (Sum{}) {
			t.Errorf("problems: %v", problems)
		}
	})
}

// Of a first configuration most signatures are checked behind the start; of all others none are.
func TestFirstSignatures(t *testing.T) {
	const n = promptChecks + 3
	c := newCrowd(t, n)
	damage := func(i int) {
		name := manyHost(i) + ".pem"
		data, err := os.ReadFile(filepath.Join(c.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		block, rest := pem.Decode(data)
		block.Bytes[len(block.Bytes)-1] ^= 1 // in its signature
		c.replace(name, append(pem.EncodeToMemory(block), rest...))
	}
	damage(n - 1)
	if s, _, problems := c.load(nil); s != nil || !strings.Contains(problems.Error(), "did not sign certificate 1") {
		t.Errorf("H03/not the first: %v", problems)
	}
	c.env.First = true
	first, read := c.mustLoad(nil)
	unchecked := read.Unchecked
	if len(unchecked) != 3 {
		t.Fatalf("%d are left unchecked, expected 3", len(unchecked))
	}
	for i, u := range unchecked {
		if err := u.Check(); (err != nil) != (i == 2) || u.Subject.Subject.CommonName != manyHost(promptChecks+i) ||
			!strings.Contains(u.Pair, manyHost(promptChecks+i)+".pem") || !first.Serves(&u) {
			t.Errorf("%d: %v, %s of %s", i, err, u.Subject.Subject, u.Pair)
		}
	}
	c.env.First = false
	c.renew(n - 1)
	later, read := c.mustLoad(first)
	if len(read.Unchecked) != 0 || later.Serves(&unchecked[2]) || !later.Serves(&unchecked[1]) {
		t.Errorf("%d are left unchecked after a reload; the damaged one is served: %v", len(read.Unchecked), later.Serves(&unchecked[2]))
	}
	under := unchecked[1]
	under.Issuer = under.Subject // as if another certificate had stood there
	if later.Serves(&under) {
		t.Error("a chain whose issuer was replaced counts as served")
	}
	damage(0)
	c.env.First = true
	if s, _, problems := c.load(nil); s != nil || !strings.Contains(problems.Error(), "did not sign certificate 1") {
		t.Errorf("H03/the first one of the first: %v", problems)
	}
}

// Files of pairs are not read again if their stat says that they are the same, and are if it could be wrong.
func TestReloadBelievesStat(t *testing.T) {
	const n, racy = 3, 20 * time.Millisecond
	c := newCrowd(t, n)
	file := func(i int) string { return filepath.Join(c.dir, manyHost(i)+".pem") }
	var probe fileReader
	if _, err := probe.read(file(0)); err != nil {
		t.Fatal(err)
	}
	if probe.stamp == (stamp{}) {
		t.Skip("the stat of this file system is not believed")
	}
	c.env.racy = racy
	// settle waits until the stat of every file stands for its content.
	settle := func() { time.Sleep(10 * racy) }
	load := func(t *testing.T, previous *Snapshot, reads, parsed int) *Snapshot {
		t.Helper()
		s, read := c.mustLoad(previous)
		if s.memory.reads != reads || s.memory.parsed != parsed {
			t.Errorf("read %d files and parsed %d pairs, expected %d and %d", s.memory.reads, s.memory.parsed, reads, parsed)
		}
		for full, sum := range read.Sums {
			if data, err := os.ReadFile(full); err != nil || sum != sha256.Sum256(data) {
				t.Errorf("%s: the hash is not that of its content (%v)", full, err)
			}
		}
		if len(read.Sums) != 2*n+1 {
			t.Errorf("%d files are watched, expected %d", len(read.Sums), 2*n+1)
		}
		return s
	}
	settle()
	first := load(t, nil, 2*n+1, n)
	second := load(t, first, 1, 0) // the CA bundle is read each time
	third := load(t, second, 1, 0)
	if first.Hash != third.Hash {
		t.Errorf("hash %s, expected %s", third.Hash, first.Hash)
	}
	t.Run("all are read when asked", func(t *testing.T) {
		c.env.Reread = true
		defer func() { c.env.Reread = false }()
		load(t, third, 2*n+1, 0)
	})
	// Each writes another text of the same size, and gives the file the modification time it had.
	for how, write := range map[string]func(name string, data []byte) error{
		"into the file": func(name string, data []byte) error {
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt(data, 0)
			return err
		},
		"truncated first": func(name string, data []byte) error { return os.WriteFile(name, data, 0o600) },
		"renamed over it": func(name string, data []byte) error {
			if err := os.WriteFile(name+".new", data, 0o600); err != nil {
				return err
			}
			return os.Rename(name+".new", name)
		},
		"a link to it": func(name string, data []byte) error {
			if err := os.WriteFile(name+"."+string(data[2]), data, 0o600); err != nil {
				return err
			}
			os.Remove(name)
			return os.Symlink(name+"."+string(data[2]), name)
		},
	} {
		t.Run("changed "+how, func(t *testing.T) {
			whole, err := os.ReadFile(file(0))
			if err != nil {
				t.Fatal(err)
			}
			last := third
			for i, comment := range []string{"# 1\n", "# 2\n", "# 3\n"} {
				st, err := os.Stat(file(0))
				if err == nil {
					err = write(file(0), append([]byte(comment), whole...))
				}
				if err == nil {
					err = os.Chtimes(file(0), st.ModTime(), st.ModTime())
				}
				if err != nil {
					t.Fatal(err)
				}
				if i > 0 {
					settle() // or it is read for being new
				}
				last = load(t, last, 2*1+1, 1)
				settle()
				last, _ = c.mustLoad(last) // reads what was new
			}
			if err := os.Remove(file(0)); err != nil {
				t.Fatal(err)
			}
			c.write(manyHost(0)+".pem", whole)
			settle()
		})
	}
	t.Run("changed a moment ago", func(t *testing.T) {
		c.env.racy = time.Hour
		defer func() { c.env.racy = racy }()
		s, _ := c.mustLoad(nil)
		load(t, s, 2*n+1, 0)
	})
	t.Run("read for another setting too", func(t *testing.T) {
		s, _ := c.mustLoad(nil)
		yaml := strings.Replace(string(c.text(0)), "routes: [{upstream: api}]", "routes: [{respond: {status: 200, body_file: h00000.many.test.pem}}]", 1)
		for range 2 {
			main, problems := config.Parse("countersign.yaml", []byte(yaml))
			env := c.env
			env.Now, env.Previous = time.Now(), s
			again, read, problems := Compile(main, problems, env)
			if again == nil {
				t.Fatal(problems)
			}
			if again.memory.parsed != 0 || again.memory.reads != 2 || len(read.Sums) != 2*n+1 {
				t.Errorf("%d parsed, %d read, %d watched", again.memory.parsed, again.memory.reads, len(read.Sums))
			}
			whole, err := os.ReadFile(file(0))
			if err != nil {
				t.Fatal(err)
			}
			answer := again.Listeners["https0"].Host([]byte(manyHost(0))).Routes.Rules()[0].Value.Answer
			if _, _, body := answer.For(new(message.Request)); !bytes.Equal(body, whole) {
				t.Errorf("the body is %.40q", body)
			}
			s = again
		}
	})
	t.Run("gone", func(t *testing.T) {
		if err := os.Remove(file(1)); err != nil {
			t.Fatal(err)
		}
		if s, _, problems := c.load(third); s != nil || !strings.Contains(problems.Error(), "cannot read "+manyHost(1)+".pem") {
			t.Error(problems)
		}
	})
}

func BenchmarkLoad10000(b *testing.B) {
	c := newCrowd(b, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		c.parser = nil
		if s, _ := c.mustLoad(nil); s.memory.parsed != c.n {
			b.Fatal(s.memory.parsed)
		}
	}
}

func BenchmarkReloadOneChanged(b *testing.B) {
	c := newCrowd(b, 10_000)
	s, _ := c.mustLoad(nil)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		c.renew(0)
		b.StartTimer()
		if s, _ = c.mustLoad(s); s.memory.parsed != 1 || c.parser.Fresh() != 0 {
			b.Fatalf("%d pairs and %d files parsed", s.memory.parsed, c.parser.Fresh())
		}
	}
}

// TestPairOfAChangeInBetween: a file that changes between the stat of one pair and the reading of another is remembered as
// what was read.
func TestPairOfAChangeInBetween(t *testing.T) {
	c := newCrowd(t, 2)
	c.env.racy = time.Millisecond
	time.Sleep(30 * time.Millisecond)
	first, _ := c.mustLoad(nil)
	f, _ := config.Parse("countersign.yaml", c.text(0))
	k := &compiler{Env: c.env, file: f, files: map[string]*loaded{}, sums: map[string]Sum{}, digest: sha256.New(), before: first.memory, memory: newMemory(nil), pairs: map[pairNames]*tls.Certificate{}, warned: map[string]bool{}}
	k.Now = time.Now()
	name := manyHost(0)
	if k.readPair("a", config.KeyPair{Cert: name + ".pem", Key: name + ".key"}, nil) == nil || len(k.files) != 2 {
		t.Fatal(k.problems)
	}
	full, _ := k.full("a", name+".pem")
	if !k.files[full].unread {
		t.Fatal("the stat is not believed")
	}
	old := k.files[full].sum
	c.renew(0) // between the stat and the second pair that names the file
	data, _ := os.ReadFile(full)
	key2 := full + ".k2"
	kd, _ := os.ReadFile(full[:len(full)-4] + ".key")
	_ = os.WriteFile(key2, kd, 0o600)
	p := k.readPair("b", config.KeyPair{Cert: name + ".pem", Key: key2}, nil)
	if p == nil {
		t.Fatal(k.problems)
	}
	lf := k.files[full]
	if lf.sum != sha256.Sum256(lf.data) {
		t.Errorf("the content read is not that of its sum")
	}
	if sha256.Sum256(lf.data) != sha256.Sum256(data) {
		t.Error("the old content was read")
	}
	if m, ok := k.memory.pairs[pairSum(old, sha256.Sum256(kd), Sum{}, Sum{})]; ok {
		t.Errorf("remembered under the hash of the old certificate: serial %v (old %d)", m.cert.Leaf.SerialNumber.Int64()-1<<40, served(t, first, 0))
	}
}
