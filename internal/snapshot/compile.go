package snapshot

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	stdhash "hash"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"countersign/internal/certs"
	"countersign/internal/config"
	"countersign/internal/identity"
	"countersign/internal/limit"
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
	defaultStreams      = 100

	defaultConnect    = 5 * time.Second
	defaultResponse   = 60 * time.Second
	defaultTargetIdle = 60 * time.Second
	defaultKeepalive  = 30 * time.Second
	defaultPerTarget  = 1024

	maxHeaderBytes = 1 << 20
	maxStreams     = 1000
)

// promptChecks is how many signatures on certificates of ours are checked before a first configuration is in force: some
// 10 ms. Ten thousand would take a second, and with issuers on P-384, as public CAs have them, five.
const promptChecks = 100

// Sum is the hash of a file as it was read; zero for one that could not be.
type Sum = [sha256.Size]byte

// Compile turns a parsed file into a snapshot. The problems are all there are, warnings included, in the order of the
// file; the snapshot is nil if one of them is an error.
func Compile(f *config.File, parsed config.Problems, env Env) (*Snapshot, *Read, config.Problems) {
	c := &compiler{Env: env, file: f, problems: parsed, stores: make(map[string]*trust.Store), pairs: make(map[pairNames]*tls.Certificate),
		digest: sha256.New(), before: newMemory(nil), gated: make(map[string]bool), pools: make(map[*trust.Store]*x509.CertPool), warned: make(map[string]bool)}
	if env.Previous != nil {
		c.before = env.Previous.memory
	}
	if c.memory = newMemory(c.before); c.Keep { // whose pairs and bundles are not read, and are to be known after it
		c.memory.pairs, c.memory.bundles = maps.Clone(c.before.pairs), maps.Clone(c.before.bundles)
	}
	c.reader.racy = env.racy
	if prompt := promptChecks; env.First {
		c.certs.Later = func(s certs.Signature) bool {
			if prompt--; prompt >= 0 {
				return false
			}
			c.unchecked = append(c.unchecked, Unchecked{Signature: s})
			return true
		}
	}
	c.sums, c.files = make(map[string]Sum, c.before.files), make(map[string]*loaded, c.before.files)
	for _, src := range f.Sources() {
		c.sum(src)
	}
	s := c.compile(f.Partial)
	c.problems.Sort()
	if c.problems.HasErrors() {
		return nil, &Read{c.sums, c.outside, c.unchecked}, c.problems
	}
	s.stores, c.memory.files, c.memory.reads = c.stores, len(c.files), c.reader.reads
	if c.Keep && c.sameTrust(c.Previous) {
		return c.Previous, &Read{c.sums, c.outside, c.unchecked}, c.problems
	}
	if c.Keep {
		c.renewed()
	}
	s.Hash, s.memory, s.Outside, s.CRLs, s.Older = hex.EncodeToString(c.hash())[:16], c.memory, c.outside, c.crls, c.older
	return s, &Read{c.sums, c.outside, c.unchecked}, c.problems
}

type compiler struct {
	Env
	Lists   Lists
	Bundles Bundles
	file    *config.File
	outside Outside
	crls    []*trust.CRL
	older   []string
	// unchecked is that of Read.
	unchecked []Unchecked
	conf      *config.Config
	memory    *memory // of this compilation
	before    *memory // of the previous one
	problems  config.Problems
	files     map[string]*loaded // each file is read once, so that all who name it see the same content
	reader    fileReader
	stores    map[string]*trust.Store
	pools     map[*trust.Store]*x509.CertPool // what stores advertise
	pairs     map[pairNames]*tls.Certificate
	certs     certs.Reader
	digest    stdhash.Hash
	sums      map[string]Sum
	gates     []*limit.Settings
	gated     map[string]bool // names of gates
	warned    map[string]bool // what was said about certificates
}

type loaded struct {
	data   []byte
	sum    Sum
	err    error
	unread bool // the sum is known, and nobody has needed the data
}

// sameTrust reports whether every trust store says what it says in s.
func (c *compiler) sameTrust(s *Snapshot) bool {
	for name, store := range c.stores {
		if before := s.stores[name]; before == nil || store == nil || before.Sum() != store.Sum() {
			return false
		}
	}
	return true
}

// renewed makes the hash and the outside of a snapshot under Keep: those of the previous one, and the new lists.
func (c *compiler) renewed() {
	c.digest.Reset()
	c.digest.Write([]byte(c.Previous.Hash))
	for _, name := range keys(c.stores) {
		sum := c.stores[name].Sum()
		c.sum(sum[:])
	}
	c.outside = c.Previous.Outside
}

// sum adds data to the snapshot's hash.
func (c *compiler) sum(data []byte) {
	c.sumOf(sha256.Sum256(data))
}

// sumOf is sum for data whose own hash is known.
func (c *compiler) sumOf(data Sum) { c.digest.Write(data[:]) }

func (c *compiler) hash() []byte { return c.digest.Sum(nil) }

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
	f, ok := c.load(path, name)
	if !ok {
		return nil, false
	}
	return f.data, true
}

// load is read with the hash of the content.
func (c *compiler) load(path, name string) (*loaded, bool) {
	if name == "" {
		return nil, false // reported as missing already
	}
	full, ok := c.full(path, name)
	if !ok {
		return nil, false
	}
	f, known := c.files[full]
	switch {
	case !known:
		f = new(loaded)
		if f.data, f.err = c.reader.read(full); f.err == nil {
			if f.sum = sha256.Sum256(f.data); c.reader.sure {
				c.memory.seen[full] = seen{c.reader.stamp, f.sum}
			}
		}
		c.note(full, name, f)
	case f.unread: // should it have changed just now, its sum in c.sums is the old one, and that is noticed
		f.unread = false
		if f.data, f.err = c.reader.read(full); f.err == nil {
			f.sum = sha256.Sum256(f.data)
		}
	}
	if f.err != nil {
		c.problem(path, "check the path, which is relative to the configuration file's folder ("+c.Dir+"), and its permissions", "cannot read %s: %s", name, cause(f.err))
		return nil, false
	}
	if len(f.data) == 0 {
		c.problem(path, "write the file's content, or name another file", "%s is empty", name)
		return nil, false
	}
	return f, true
}

// note adds a file to what was read.
func (c *compiler) note(full, name string, f *loaded) {
	c.files[full], c.sums[full] = f, f.sum
	c.sum([]byte(name))
	c.sumOf(f.sum)
}

// glance is load for a file whose content may not be needed: if a stat says that it is the one of the previous snapshot,
// it is not read. False says that it has to be. Nothing is noted.
func (c *compiler) glance(path, name string) (full string, f *loaded, ok bool) {
	if c.Reread || name == "" || strings.Contains(name, "${") { // load tells what is wrong with variables
		return "", nil, false
	}
	full, _ = c.full(path, name)
	if f, ok = c.files[full]; ok {
		return full, f, f.err == nil
	}
	before, ok := c.before.seen[full]
	if !ok || !c.reader.unchanged(full, before) {
		return "", nil, false
	}
	return full, &loaded{sum: before.sum, unread: true}, true
}

// full is the absolute path of a file.
func (c *compiler) full(path, name string) (string, bool) {
	full, ok := c.expand(path, name)
	if ok && !filepath.IsAbs(full) {
		full = filepath.Join(c.Dir, full)
	}
	return full, ok
}

// expand replaces ${NAME} in a path by the environment variable. A variable that is not set is an error: half a path
// would name another file.
func (c *compiler) expand(path, name string) (string, bool) {
	ok := true
	if !strings.Contains(name, "${") {
		return name, true
	}
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
	c.conf = conf
	c.elsewhere(conf)
	if conf.Ops != nil {
		s.Ops = conf.Ops.Listen
		c.address("ops.listen", s.Ops)
		if host, _, err := net.SplitHostPort(s.Ops); err == nil && !loopback(host) {
			c.warn("ops.listen", "listen on 127.0.0.1, or see that only your monitoring can reach it", "the ops listener asks for no authentication and %s is not a loopback address", s.Ops)
		}
	}
	if s.Control = conf.Control; s.Control != "" && !strings.HasPrefix(s.Control, "unix:") {
		c.problem("control", "write unix:/run/countersign/control.sock", "%q is not a Unix socket; what is asked for there is for the operator of this machine alone", s.Control)
	} else {
		c.address("control", s.Control)
	}
	for _, name := range keys(conf.TrustStores) {
		c.makeStore(name)
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
		if address := conf.Listeners[name].Listen; address != "" && address == s.Control {
			c.problem("control", "give it another path", "listener %q already listens on %s", name, address)
		}
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
	s.Gates = c.gates
	c.processLimits(s, conf.Limits)
	c.experiments(s, conf.Experimental)
	c.unused(conf)
	c.sharedNames(s)
	c.stepUps(s)
	s.Tracing = c.tracing("tracing", conf.Tracing)
	s.Journal = c.journal("journal", conf)
	c.logs(s, conf.Log)
	return s
}

// experiments switches on what is asked for.
func (c *compiler) experiments(s *Snapshot, e *config.Experimental) {
	if e == nil || e.EventLoop != "on" {
		return
	}
	const path = "experimental.event_loop"
	if runtime.GOOS != "linux" {
		c.problem(path, "leave it out", "expected Linux, whose epoll it needs, found %s", runtime.GOOS)
		return
	}
	c.warn(path, "leave it out unless you want to help try it; docs/performance.md says what it gives", "an experiment: TLS 1.3 has a record layer of our own behind the handshake")
	s.EventLoop = true
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
				if s := h.ClientAuth.Shadow; s != nil {
					stores[s.TrustStore] = true
				}
			}
			for _, p := range h.TrustedProxies {
				stores[p.TrustStore] = true
			}
			for _, r := range h.Routes {
				for _, name := range upstreamsOf(r) {
					pools[name] = true
				}
				if r.ClientAuth != nil {
					stores[r.ClientAuth.TrustStore] = true
				}
				if r.Shadow != nil {
					stores[r.Shadow.TrustStore] = true
				}
			}
		}
	}
	for _, u := range conf.Upstreams {
		if u.TLS != nil {
			stores[u.TLS.TrustStore] = true
		}
	}
	if t := conf.Tracing; t != nil && t.TLS != nil {
		stores[t.TLS.TrustStore] = true
	}
	for _, t := range conf.TrustStores {
		if t != nil && t.CABundle != nil {
			for _, other := range t.CABundle.Stores {
				stores[other] = true
			}
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
	if len(among) == 0 {
		c.problem(path, next, "no %s is named %q; there is none", kind, name)
		return
	}
	c.problem(path, next, "no %s is named %q; expected one of: %s", kind, name, strings.Join(among, ", "))
}
