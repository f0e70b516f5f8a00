package snapshot

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"countersign/internal/config"
	"countersign/internal/identity"
	"countersign/internal/record"
	"countersign/internal/trust"
)

// Defaults, each with its reason in docs/defaults.md.
const (
	defaultDrain        = 30 * time.Second
	defaultConnections  = 20000
	defaultHandshake    = 10 * time.Second
	defaultHeader       = 10 * time.Second
	defaultIdle         = 60 * time.Second
	defaultBodyIdle     = 30 * time.Second
	defaultWriteIdle    = 30 * time.Second
	defaultTunnelIdle   = time.Hour
	defaultHeaderBytes  = 32 << 10
	defaultHeaderFields = 100

	defaultConnect    = 5 * time.Second
	defaultResponse   = 60 * time.Second
	defaultTargetIdle = 60 * time.Second
	defaultKeepalive  = 30 * time.Second
	defaultPerTarget  = 1024

	maxHeaderBytes = 1 << 20

	maxFile = 128 << 20 // a revocation list of about four million entries
)

// Sum is the hash of a file as it was read; zero for one that could not be.
type Sum = [sha256.Size]byte

// Compile turns a parsed file into a snapshot. Paths in it are relative to dir. The problems are all there are, warnings
// included, in the order of the file; the snapshot is nil if one of them is an error. now is the time that dates of
// certificates are compared with. The sums are those of every file that was named, by absolute path, also when the
// configuration is refused.
func Compile(f *config.File, parsed config.Problems, dir string, now time.Time) (*Snapshot, map[string]Sum, config.Problems) {
	c := &compiler{sums: make(map[string]Sum), file: f, dir: dir, now: now, problems: parsed, files: make(map[string]loaded), stores: make(map[string]*trust.Store),
		pairs: make(map[string]*tls.Certificate)}
	for _, src := range f.Sources() {
		c.sum(src)
	}
	s := c.compile(f.Partial)
	c.problems.Sort()
	if c.problems.HasErrors() {
		return nil, c.sums, c.problems
	}
	s.Hash = hex.EncodeToString(c.hash())[:16]
	return s, c.sums, c.problems
}

type compiler struct {
	file     *config.File
	dir      string
	now      time.Time
	problems config.Problems
	files    map[string]loaded // each file is read once, so that all who name it see the same content
	stores   map[string]*trust.Store
	pairs    map[string]*tls.Certificate
	digest   []byte
	sums     map[string]Sum
}

type loaded struct {
	data []byte
	err  error
}

// sum adds data to the snapshot's hash.
func (c *compiler) sum(data []byte) {
	h := sha256.Sum256(data)
	d := sha256.Sum256(append(c.digest, h[:]...))
	c.digest = d[:]
}

func (c *compiler) hash() []byte { return c.digest }

func (c *compiler) problem(path, next, format string, args ...any) {
	c.problems = append(c.problems, c.file.Problem(path, next, format, args...))
}

func (c *compiler) warn(path, next, format string, args ...any) {
	p := c.file.Problem(path, next, format, args...)
	p.Warning = true
	c.problems = append(c.problems, p)
}

// read returns a file named in the configuration, or reports why it cannot.
func (c *compiler) read(path, name string) ([]byte, bool) {
	if name == "" {
		return nil, false // reported as missing already
	}
	full, ok := c.expand(path, name)
	if !ok {
		return nil, false
	}
	if !filepath.IsAbs(full) {
		full = filepath.Join(c.dir, full)
	}
	f, seen := c.files[full]
	if !seen {
		f.data, f.err = readFile(full)
		c.files[full] = f
		if c.sums[full] = (Sum{}); f.err == nil {
			c.sums[full] = sha256.Sum256(f.data)
		}
		c.sum([]byte(name))
		c.sum(f.data)
	}
	if f.err != nil {
		c.problem(path, "check the path, which is relative to the configuration file's folder ("+c.dir+"), and its permissions", "cannot read %s: %s", name, cause(f.err))
		return nil, false
	}
	if len(f.data) == 0 {
		c.problem(path, "write the file's content, or name another file", "%s is empty", name)
		return nil, false
	}
	return f.data, true
}

// expand replaces ${NAME} in a path by the environment variable. A variable that is not set is an error: half a path
// would name another file.
func (c *compiler) expand(path, name string) (string, bool) {
	ok := true
	full := reference.ReplaceAllStringFunc(name, func(ref string) string {
		value := os.Getenv(ref[2 : len(ref)-1])
		if value == "" {
			c.problem(path, "set it in the environment of the program", "the environment variable in %s is not set, or empty", ref)
			ok = false
		}
		return value
	})
	return full, ok
}

var reference = regexp.MustCompile(`\$\{[A-Za-z_][A-Za-z0-9_]*\}`)

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && !st.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("it is larger than %d MiB", maxFile>>20)
	}
	return data, err
}

// cause drops the operation and path that os errors repeat.
func cause(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

func (c *compiler) compile(conf *config.Config) *Snapshot {
	s := &Snapshot{Listeners: make(map[string]*Listener), Drain: conf.Drain.Or(defaultDrain)}
	if conf.Ops != nil {
		s.Ops = conf.Ops.Listen
		c.address("ops.listen", s.Ops)
		if host, _, err := net.SplitHostPort(s.Ops); err == nil && !loopback(host) {
			c.warn("ops.listen", "listen on 127.0.0.1, or see that only your monitoring can reach it", "the ops listener asks for no authentication and %s is not a loopback address", s.Ops)
		}
	}
	if conf.Log != nil {
		switch conf.Log.Requests {
		case "refused":
			s.Log = record.Refused
		case "none":
			s.Log = record.None
		}
	}
	for _, name := range keys(conf.TrustStores) {
		c.stores[name] = c.trustStore(config.Path("trust_stores", name), name, conf.TrustStores[name])
	}
	for _, name := range keys(conf.Upstreams) {
		if u := c.upstream(config.Path("upstreams", name), name, conf.Upstreams[name]); u != nil {
			s.Upstreams = append(s.Upstreams, u)
		}
	}
	if len(conf.Listeners) == 0 && !c.problems.HasErrors() {
		c.problem("", "add listeners: {NAME: {listen: ..., protocol: ...}}", "no listener is configured")
	}
	addresses := make(map[string]string)
	for _, name := range keys(conf.Listeners) {
		path := config.Path("listeners", name)
		l := c.listener(path, name, conf.Listeners[name], conf)
		if other, taken := addresses[l.Address]; taken && l.Address != "" && !strings.HasSuffix(l.Address, ":0") {
			c.problem(config.Path(path, "listen"), "give it another port, or merge the two listeners", "listener %q already listens on %s", other, l.Address)
		}
		addresses[l.Address] = name
		s.Listeners[name] = l
	}
	var styles []*identity.Style
	for _, l := range s.Listeners {
		for _, h := range l.Hosts {
			if h.Style != nil {
				styles = append(styles, h.Style)
			}
		}
	}
	s.Guard = identity.NewGuard(styles)
	c.unused(conf)
	c.sharedNames(s)
	return s
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// unused warns of what nothing refers to: most often a misspelling elsewhere.
func (c *compiler) unused(conf *config.Config) {
	stores, pools := map[string]bool{}, map[string]bool{}
	for _, l := range conf.Listeners {
		pools[l.Upstream] = true
		for _, h := range l.Hosts {
			pools[h.Upstream] = true
			if h.ClientAuth != nil {
				stores[h.ClientAuth.TrustStore] = true
			}
			for _, r := range h.Routes {
				pools[r.Upstream] = true
			}
		}
	}
	for _, u := range conf.Upstreams {
		if u.TLS != nil {
			stores[u.TLS.TrustStore] = true
		}
	}
	for _, name := range keys(conf.TrustStores) {
		if !stores[name] {
			c.warn(config.Path("trust_stores", name), "use it, or remove it", "trust store %q is not used", name)
		}
	}
	for _, name := range keys(conf.Upstreams) {
		if !pools[name] {
			c.warn(config.Path("upstreams", name), "use it, or remove it", "upstream %q is not used", name)
		}
	}
}

func (c *compiler) unresolved(path, kind, name string, among []string) {
	next := "define it"
	if s := config.Suggest(name, among); s != "" {
		next = fmt.Sprintf("did you mean %q?", s)
	}
	c.problem(path, next, "no %s is named %q; expected one of: %s", kind, name, strings.Join(among, ", "))
}
