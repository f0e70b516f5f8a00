package snapshot

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"countersign/internal/certs"
	"countersign/internal/config"
	"countersign/internal/h1"
	"countersign/internal/hostname"
	"countersign/internal/identity"
	"countersign/internal/policy"
	"countersign/internal/record"
	"countersign/internal/route"
	"countersign/internal/trust"
	"countersign/internal/upstream"
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
// certificates are compared with. The sums are those of every file that was
// named, by absolute path, also when the configuration is refused.
func Compile(f *config.File, parsed config.Problems, dir string, now time.Time) (*Snapshot, map[string]Sum, config.Problems) {
	c := &compiler{sums: make(map[string]Sum), file: f, dir: dir, now: now, problems: parsed, files: make(map[string]loaded), stores: make(map[string]*trust.Store),
		pairs: make(map[string]*tls.Certificate)}
	c.sum(f.Source)
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
	c.unused(conf)
	c.sharedNames(s)
	return s
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// address checks host:port.
func (c *compiler) address(path, addr string) {
	if addr == "" {
		return
	}
	if socket, ok := strings.CutPrefix(addr, "unix:"); ok {
		if !filepath.IsAbs(socket) || len(socket) > 100 {
			c.problem(path, "write unix:/run/countersign/name.sock", "%q is not the absolute path of a socket, of at most 100 characters", addr)
		}
		return
	}
	_, port, err := net.SplitHostPort(addr)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 && port != "0" {
		c.problem(path, `write host:port, for example "127.0.0.1:8443", or ":8443" for every address`, "%q is not an address to listen on", addr)
	}
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

// sharedNames warns where one name is passed through on one listener and terminated on another (A44).
func (c *compiler) sharedNames(s *Snapshot) {
	for _, l := range s.Listeners {
		if l.Protocol != Passthrough {
			continue
		}
		for _, h := range l.Hosts {
			for _, name := range h.Names {
				for _, other := range s.Listeners {
					if other.Protocol != HTTPS {
						continue
					}
					if canonical, wild, err := hostname.Pattern(name); err == nil && !wild {
						if _, ok := other.table.Lookup([]byte(canonical)); ok {
							c.warn(config.Path("listeners", l.Name), "use different names, so that no client reuses a connection for the wrong one",
								"the name %s is passed through here and terminated on listener %q", name, other.Name)
						}
					}
				}
			}
		}
	}
}

func (c *compiler) trustStore(path, name string, t *config.TrustStore) *trust.Store {
	if t.CABundle == nil {
		return nil
	}
	data, ok := c.read(config.Path(path, "ca_bundle.file"), t.CABundle.File)
	if !ok {
		return nil
	}
	anchors, warnings, err := trust.LoadBundle(data, t.Compat == "alb")
	if err != nil {
		c.problem(config.Path(path, "ca_bundle.file"), "a trust store holds CA certificates in PEM and nothing else", "%s: %s", t.CABundle.File, err)
		return nil
	}
	for _, w := range warnings {
		c.warn(config.Path(path, "ca_bundle.file"), "", "%s: %s", t.CABundle.File, w)
	}
	hints := c.hints(path, t.Hints, anchors)
	opts := trust.Options{}
	if a := t.Accept; a != nil {
		opts.MaxDepth, opts.MaxPresented = a.MaxDepth, a.MaxPresented
		if opts.MaxPresented > 10 {
			c.problem(config.Path(path, "accept.max_presented"), "use at most 10", "max_presented is %d; more than 10 certificates are never accepted", opts.MaxPresented)
		}
		if opts.MaxDepth > 10 {
			c.problem(config.Path(path, "accept.max_depth"), "use at most 10", "max_depth is %d; chains of more than 10 certificates are never accepted", opts.MaxDepth)
		}
		if a.EKU == "allow_absent" {
			opts.EKU = trust.EKUAllowAbsent
		}
		opts.AllowExpiredLeaf = a.ExpiredLeaf == "allow"
	}
	var crls []*trust.CRL
	if r := t.Revocation; r != nil {
		opts.CheckRevocation = true
		switch r.Missing {
		case "chain":
			opts.Missing = trust.MissingChain
		case "if_present":
			opts.Missing = trust.MissingIfPresent
		}
		if s := r.Stale; s != nil {
			opts.Grace = time.Duration(s.Grace)
			switch s.Policy {
			case "grace":
				opts.Stale = trust.StaleGrace
				if opts.Grace == 0 {
					c.problem(config.Path(path, "revocation.stale"), "add grace: 24h, or use policy fail_closed", "policy grace without a grace time")
				}
			case "ignore":
				opts.Stale = trust.StaleIgnore
			}
			if opts.Grace != 0 && s.Policy != "grace" {
				c.problem(config.Path(path, "revocation.stale.grace"), "set policy: grace, or remove grace", "grace has no meaning under this policy")
			}
		}
		for i, src := range r.CRLs {
			at := config.Path(path, "revocation.crls", i, "file")
			data, ok := c.read(at, src.File)
			if !ok {
				continue
			}
			crl, err := trust.ParseCRL(data)
			if err != nil {
				c.problem(at, "fetch the list from the CA again; one file holds one list, PEM or DER", "%s: %s", src.File, err)
				continue
			}
			crls = append(crls, crl)
		}
	}
	store, err := trust.NewStore(name, anchors, crls, hints, opts)
	if err != nil {
		c.problem(path, "", "trust store %q: %s", name, err)
		return nil
	}
	for _, w := range store.Warnings() {
		c.warn(path, "compare the CRL's issuer and key with the certificates of the bundle", "%s", w)
	}
	return store
}

func (c *compiler) hints(path string, h *config.Hints, anchors []*x509.Certificate) [][]byte {
	at := config.Path(path, "hints")
	if h != nil && h.Mode == "none" {
		return nil
	}
	explicit := h != nil && h.File != ""
	if explicit {
		data, ok := c.read(config.Path(at, "file"), h.File)
		if !ok {
			return nil
		}
		list, _, err := trust.LoadBundle(data, false)
		if err != nil {
			c.problem(config.Path(at, "file"), "list CA certificates in PEM; their subjects are sent", "%s: %s", h.File, err)
			return nil
		}
		anchors = list
	}
	hints, warning, err := trust.HintsFor(anchors, explicit)
	if err != nil {
		c.problem(at, "list fewer names, or set hints: none", "%s", err)
	} else if warning != "" {
		c.warn(at, "set hints: none to agree, or list the few that clients need in hints.file", "%s", warning)
	}
	return hints
}

func (c *compiler) pair(path string, p config.KeyPair, names []string) *tls.Certificate {
	id := fmt.Sprint(p.Cert, "|", p.Key, "|", p.PKCS12)
	if pair, ok := c.pairs[id]; ok {
		c.check(path, p, pair, names)
		return pair
	}
	var src certs.Source
	ok1, ok2, ok3 := true, true, true
	switch {
	case p.PKCS12 != "" && (p.Cert != "" || p.Key != ""):
		c.problem(path, "remove cert and key, or pkcs12", "pkcs12 holds both certificate and key, and cert or key is set too")
		return nil
	case p.PKCS12 != "":
		src.PKCS12, ok1 = c.read(config.Path(path, "pkcs12"), p.PKCS12)
	case p.Cert == "" || p.Key == "":
		c.problem(path, "add cert: FILE and key: FILE, or pkcs12: FILE", "a certificate and its key are needed")
		return nil
	default:
		src.Cert, ok1 = c.read(config.Path(path, "cert"), p.Cert)
		src.Key, ok2 = c.read(config.Path(path, "key"), p.Key)
	}
	src.Password, ok3 = c.secret(config.Path(path, "password"), p.Password)
	if !ok1 || !ok2 || !ok3 {
		return nil
	}
	pair, warnings, err := certs.Parse(src)
	if err != nil {
		c.problem(path, "", "%s: %s", p.String(), err)
		return nil
	}
	for _, w := range warnings {
		c.warn(path, "", "%s: %s", p.String(), w)
	}
	c.check(path, p, pair, names)
	c.pairs[id] = pair
	return pair
}

// secret reads what opens a key. Nil without a problem means that none is configured.
func (c *compiler) secret(path string, s *config.Secret) ([]byte, bool) {
	switch {
	case s == nil:
		return nil, true
	case s.File != "" && s.Env != "" || s.File == "" && s.Env == "":
		c.problem(path, "write password: {file: FILE} or password: {env: NAME}", "a password comes from a file or from an environment variable, one of them")
		return nil, false
	case s.File != "":
		return c.read(config.Path(path, "file"), s.File)
	}
	value := os.Getenv(s.Env)
	if value == "" {
		c.problem(config.Path(path, "env"), "set it in the environment of the program", "the environment variable %s is not set, or empty", s.Env)
		return nil, false
	}
	c.sum([]byte(value))
	return []byte(value), true
}

// check warns of what is odd about a pair, once: hosts often share one, and its dates are the same for all.
func (c *compiler) check(path string, p config.KeyPair, pair *tls.Certificate, names []string) {
	for _, w := range certs.Check(pair, names, c.now) {
		message := p.String() + ": " + w
		if !slices.ContainsFunc(c.problems, func(other config.Problem) bool { return other.Warning && other.Message == message }) {
			c.warn(path, "", "%s", message)
		}
	}
}

func (c *compiler) upstream(path, name string, u *config.Upstream) *upstream.Settings {
	s := &upstream.Settings{Name: name, MaxConnections: u.MaxConnections, HeadBytes: defaultHeaderBytes, Fields: defaultHeaderFields}
	if s.MaxConnections == 0 {
		s.MaxConnections = defaultPerTarget
	}
	t := u.Timeouts
	if t == nil {
		t = new(config.UpstreamTimeouts)
	}
	s.Connect, s.Response = t.Connect.Or(defaultConnect), t.Response.Or(defaultResponse)
	s.Idle, s.Keepalive = t.Idle.Or(defaultTargetIdle), t.Keepalive.Or(defaultKeepalive)

	scheme := ""
	for i, raw := range u.Targets {
		at := config.Path(path, "targets", i)
		v, err := url.Parse(raw)
		if err != nil || v.Host == "" || v.Path != "" && v.Path != "/" || v.RawQuery != "" || v.User != nil || v.Fragment != "" ||
			!slices.Contains([]string{"http", "https", "tcp", "tls"}, v.Scheme) {
			c.problem(at, "write http://host:port or https://host:port, or tcp://host:port or tls://host:port for bytes", "%q is not the address of a target", raw)
			continue
		}
		if scheme == "" {
			scheme = v.Scheme
		} else if v.Scheme != scheme {
			c.problem(at, "make two upstreams", "targets of one upstream have one scheme; expected %s, found %s", scheme, v.Scheme)
		}
		port := v.Port()
		if port == "" {
			port = map[string]string{"http": "80", "https": "443"}[v.Scheme]
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			c.problem(at, "add the port, for example "+raw+":8080", "%q has no port from 1 to 65535", raw)
			continue
		}
		addr := net.JoinHostPort(v.Hostname(), port)
		if slices.Contains(s.Targets, addr) {
			c.problem(at, "remove one", "the target %s is there twice", addr)
		}
		s.Targets = append(s.Targets, addr)
	}
	id := fmt.Sprint(s.Targets, scheme, s.Connect, s.Response, s.Idle, s.Keepalive, s.MaxConnections)
	if u.Balance == "least_requests" {
		s.Balance = upstream.LeastRequests
	}
	s.Health = c.health(config.Path(path, "health"), u, scheme, s.Targets)
	id += fmt.Sprint(s.Balance)
	if s.Health != nil {
		id += fmt.Sprintf("%+v", *s.Health)
	}
	secure := scheme == "https" || scheme == "tls"
	switch {
	case secure && u.TLS == nil:
		c.problem(path, "add tls: {server_name: NAME, trust_store: STORE}", "%s targets need tls: a target is always verified", scheme)
		return nil
	case !secure && u.TLS != nil:
		c.problem(config.Path(path, "tls"), "write https:// or tls:// targets, or remove tls", "tls has no meaning for %s targets", scheme)
	case u.TLS != nil:
		s.TLS = c.upstreamTLS(config.Path(path, "tls"), u.TLS)
		if s.TLS == nil {
			return nil
		}
		id += s.TLS.ServerName + s.TLS.Store.Version()
		for _, p := range s.TLS.Certificates {
			sum := sha256.Sum256(p.Certificate[0])
			id += hex.EncodeToString(sum[:])
		}
	}
	s.Bytes = scheme == "tcp" || scheme == "tls"
	sum := sha256.Sum256([]byte(id))
	s.ID = hex.EncodeToString(sum[:])
	return s
}

// health compiles the check of an upstream's targets.
func (c *compiler) health(path string, u *config.Upstream, scheme string, targets []string) *upstream.Health {
	h := u.Health
	if h == nil || len(targets) == 0 {
		return nil
	}
	out := &upstream.Health{Path: h.Path, Host: h.Host, MinStatus: 200, MaxStatus: 399, Interval: h.Interval.Or(5 * time.Second),
		Timeout: h.Timeout.Or(2 * time.Second), Healthy: h.Healthy, Unhealthy: h.Unhealthy}
	if out.Healthy == 0 {
		out.Healthy = 2
	}
	if out.Unhealthy == 0 {
		out.Unhealthy = 3
	}
	if out.Interval < 100*time.Millisecond {
		c.problem(config.Path(path, "interval"), "use 100ms or more", "an interval of %s would keep the targets busy with checks", out.Interval)
	}
	if h.Path != "" && (scheme == "tcp" || scheme == "tls") {
		c.problem(config.Path(path, "path"), "remove path: a connection is the check", "path has no meaning for %s targets", scheme)
	}
	if h.Path != "" && (h.Path[0] != '/' || strings.ContainsFunc(h.Path, func(r rune) bool { return r <= ' ' || r >= 0x7f })) {
		c.problem(config.Path(path, "path"), "write a path such as /healthz", "%q is not a path", h.Path)
	}
	if h.Host != "" {
		if _, _, err := hostname.AppendCanonicalHost(nil, []byte(h.Host)); err != nil {
			c.problem(config.Path(path, "host"), "write a host name", "%q: %s", h.Host, err)
		}
	} else if u.TLS != nil {
		out.Host = u.TLS.ServerName
	} else {
		out.Host = targets[0]
	}
	if h.Status != "" {
		low, high, ranged := strings.Cut(h.Status, "-")
		if !ranged {
			high = low
		}
		var err1, err2 error
		out.MinStatus, err1 = strconv.Atoi(low)
		out.MaxStatus, err2 = strconv.Atoi(high)
		if err1 != nil || err2 != nil || out.MinStatus < 200 || out.MaxStatus > 599 || out.MinStatus > out.MaxStatus {
			c.problem(config.Path(path, "status"), "write 200 or 200-399", "%q is not a status or a range of them", h.Status)
		}
	} else if h.Path == "" && (h.Host != "") {
		c.problem(config.Path(path, "host"), "add path, or remove host", "host has no meaning without path")
	}
	return out
}

func (c *compiler) upstreamTLS(path string, t *config.UpstreamTLS) *upstream.TLS {
	out := &upstream.TLS{ServerName: t.ServerName, Store: c.store(config.Path(path, "trust_store"), t.TrustStore)}
	if _, wild, err := hostname.Pattern(t.ServerName); (err != nil || wild) && t.ServerName != "" {
		c.problem(config.Path(path, "server_name"), "write the name that the target's certificate has", "%q is not a host name", t.ServerName)
	}
	for i, p := range t.ClientCertificates {
		if pair := c.pair(config.Path(path, "client_certificates", i), p, nil); pair != nil {
			out.Certificates = append(out.Certificates, pair)
		}
	}
	if out.Store == nil {
		return nil
	}
	return out
}

// store resolves the name of a trust store.
func (c *compiler) store(path, name string) *trust.Store {
	if name == "" {
		return nil
	}
	s, known := c.stores[name]
	if !known {
		c.unresolved(path, "trust store", name, keys(c.stores))
	}
	return s
}

func (c *compiler) unresolved(path, kind, name string, among []string) {
	next := "define it"
	if s := config.Suggest(name, among); s != "" {
		next = fmt.Sprintf("did you mean %q?", s)
	}
	c.problem(path, next, "no %s is named %q; expected one of: %s", kind, name, strings.Join(among, ", "))
}

func (c *compiler) listener(path, name string, l *config.Listener, conf *config.Config) *Listener {
	out := &Listener{Name: name, Address: l.Listen}
	c.address(config.Path(path, "listen"), l.Listen)
	switch l.Protocol {
	case "https":
		out.Protocol = HTTPS
	case "http":
		out.Protocol = HTTP
	case "tls":
		out.Protocol = TLSBytes
	case "passthrough":
		out.Protocol = Passthrough
	case "tcp":
		out.Protocol = TCP
	}
	if l.TLS != nil && !out.Protocol.Terminates() && l.Protocol != "" {
		c.problem(config.Path(path, "tls"), "use protocol https or tls, or remove tls", "tls has no meaning on a listener of protocol %s", l.Protocol)
	}
	switch {
	case out.Protocol == TCP:
		if len(l.Hosts) > 0 || l.DefaultHost != "" {
			c.problem(config.Path(path, "hosts"), "write upstream: NAME at the listener", "a tcp listener has no hosts: nothing in its bytes names one")
		}
		if l.Upstream == "" {
			c.problem(path, "add upstream: NAME", "a tcp listener needs an upstream")
		}
		c.pool(config.Path(path, "upstream"), l.Upstream, out.Protocol, conf)
		out.Upstream = l.Upstream
	case l.Upstream != "":
		c.problem(config.Path(path, "upstream"), "name the upstream at a host or route", "upstream has no meaning on a listener of protocol %s", l.Protocol)
	}
	if len(l.Hosts) == 0 && out.Protocol != TCP {
		c.problem(path, "add hosts: [...]", "missing required key \"hosts\"")
	}
	c.sources(config.Path(path, "sources"), out, l, conf)
	out.TLS = c.negotiation(config.Path(path, "tls"), l.TLS)
	out.Limits = limits(l.Limits)
	if n := out.Limits.Message.HeadBytes; n > maxHeaderBytes {
		c.problem(config.Path(path, "limits.header_bytes"), "use at most 1MiB", "header_bytes is %d; a head is kept in memory whole", n)
	}
	for i, h := range l.Hosts {
		at := config.Path(path, "hosts", i)
		host := c.host(at, out, h, conf)
		for j, n := range h.Names {
			if err := out.table.Add(n, host); err != nil {
				c.problem(config.Path(at, "names", j), "", "%s", err)
			}
		}
		out.Hosts = append(out.Hosts, host)
	}
	if l.DefaultHost != "" {
		for _, h := range out.Hosts {
			if slices.Contains(h.Names, l.DefaultHost) {
				out.fallback = h
			}
		}
		if out.fallback == nil {
			var all []string
			for _, h := range out.Hosts {
				all = append(all, h.Names...)
			}
			c.unresolved(config.Path(path, "default_host"), "host of this listener", l.DefaultHost, all)
		}
	}
	return out
}

func limits(l *config.Limits) Limits {
	if l == nil {
		l = new(config.Limits)
	}
	out := Limits{
		Connections: l.Connections,
		Handshake:   l.Handshake.Or(defaultHandshake), Header: l.Header.Or(defaultHeader), Idle: l.Idle.Or(defaultIdle),
		TunnelIdle: l.TunnelIdle.Or(defaultTunnelIdle), Lifetime: time.Duration(l.Lifetime),
		BodyIdle: l.BodyIdle.Or(defaultBodyIdle), WriteIdle: l.WriteIdle.Or(defaultWriteIdle),
		Message: h1.Limits{HeadBytes: int(l.HeaderBytes.Or(defaultHeaderBytes)), Fields: l.HeaderFields, BodyBytes: int64(l.BodyBytes)},
	}
	if out.Connections == 0 {
		out.Connections = defaultConnections
	}
	if out.Message.Fields == 0 {
		out.Message.Fields = defaultHeaderFields
	}
	return out
}

func (c *compiler) host(path string, l *Listener, h *config.Host, conf *config.Config) *Host {
	out := &Host{Names: h.Names, Upstream: h.Upstream, Auth: ClientAuth{Mode: policy.Off}}
	if len(h.Names) > 0 {
		out.Name = h.Names[0]
	}
	no := func(present bool, key string) {
		if present {
			c.problem(config.Path(path, key), "remove it, or use another protocol", "%s has no meaning on a listener of protocol %s", key, l.Protocol)
		}
	}
	pool := func(at, name string) { c.pool(at, name, l.Protocol, conf) }
	if l.Protocol == TLSBytes {
		no(len(h.IdentityHeaders) > 0, "identity_headers")
		no(h.IdentityOptions != nil, "identity_options")
		no(len(h.Routes) > 0, "routes")
		c.hostKeys(path, out, h)
		c.clientAuth(path, out, h, l)
		out.Policy = policyID(l, out, h)
		if h.Upstream == "" {
			c.problem(path, "add upstream: NAME", "a host of a tls listener needs an upstream")
		}
		pool(config.Path(path, "upstream"), h.Upstream)
		return out
	}
	if l.Protocol == Passthrough {
		no(h.Certificate != nil, "certificate")
		no(len(h.Certificates) > 0, "certificates")
		no(h.ClientAuth != nil, "client_auth")
		no(len(h.IdentityHeaders) > 0, "identity_headers")
		no(h.IdentityOptions != nil, "identity_options")
		no(len(h.Routes) > 0, "routes")
		if h.Upstream == "" {
			c.problem(path, "add upstream: NAME", "a passthrough host needs an upstream")
		}
		pool(config.Path(path, "upstream"), h.Upstream)
		return out
	}
	no(h.Upstream != "", "upstream")
	if l.Protocol == HTTPS {
		c.hostKeys(path, out, h)
		c.clientAuth(path, out, h, l)
	} else if l.Protocol == HTTP {
		no(h.Certificate != nil, "certificate")
		no(len(h.Certificates) > 0, "certificates")
		no(h.ClientAuth != nil && h.ClientAuth.Mode != "off", "client_auth")
		no(len(h.IdentityHeaders) > 0, "identity_headers")
		no(h.IdentityOptions != nil, "identity_options")
	}
	out.Policy = policyID(l, out, h)

	out.Style = c.style(path, out, h)
	if len(h.Routes) == 0 {
		c.problem(path, "add routes: [{upstream: NAME}]", "the host has no routes")
		return out
	}
	var rules []route.Rule[*Route]
	for i, r := range h.Routes {
		at := config.Path(path, "routes", i)
		pool(config.Path(at, "upstream"), r.Upstream)
		rule := route.Rule[*Route]{Value: &Route{Upstream: r.Upstream, WebSocket: slices.Contains(r.Upgrade, "websocket")}}
		if r.Match != nil {
			rule.Pattern = r.Match.Path
		}
		for _, name := range r.AllowPath {
			s, _ := route.ParseSpelling(name)
			rule.Allow |= s
		}
		rules = append(rules, rule)
	}
	table, err := route.NewTable(rules)
	if err != nil {
		c.problem(config.Path(path, "routes"), "", "%s", err)
	}
	out.Routes = table
	return out
}

// style compiles how a host tells its targets who the client is.
func (c *compiler) style(path string, out *Host, h *config.Host) *identity.Style {
	var o identity.Options
	names := h.IdentityHeaders
	if len(names) == 0 && out.Auth.Mode == policy.PassthroughChain {
		names = []string{"alb"} // the one dialect that has a header for a chain that was not verified
	} else if len(names) == 0 {
		names = []string{"rfc9440"}
	}
	for i, n := range names {
		d, ok := identity.ParseDialect(n)
		if ok && slices.Contains(o.Dialects, d) {
			c.problem(config.Path(path, "identity_headers", i), "remove one", "dialect %s is there twice", n)
		} else if ok {
			o.Dialects = append(o.Dialects, d)
		}
	}
	if out.Auth.Mode == policy.PassthroughChain && !slices.Contains(names, "alb") && !slices.Contains(names, "x_ssl_client") {
		c.problem(config.Path(path, "identity_headers"), "use [alb]", "with mode passthrough_chain nothing is verified, and of these dialects none has a header for that")
	}
	if x := h.IdentityOptions; x != nil {
		o.Chain, o.XFCCCert, o.Rename = x.Chain, x.XFCCCert, x.ALBNames
	}
	s, err := identity.NewStyle(o)
	if err != nil {
		c.problem(config.Path(path, "identity_options"), "see docs/headers.md", "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return s
}

// policyID names the client-auth policy of a host: the listener and what the setting says by name. Hosts whose settings
// say the same share it; the content of the trust store is not part of it.
func policyID(l *Listener, out *Host, h *config.Host) policy.ID {
	store := ""
	if out.Auth.Store != nil {
		store = h.ClientAuth.TrustStore
	}
	return policy.ID(l.Name + "/" + out.Auth.Mode.String() + "/" + store)
}

// pool resolves the name of an upstream and checks that its targets fit the protocol.
func (c *compiler) pool(at, name string, p Protocol, conf *config.Config) {
	u, ok := conf.Upstreams[name]
	if name != "" && !ok {
		c.unresolved(at, "upstream", name, keys(conf.Upstreams))
	}
	if !ok || len(u.Targets) == 0 {
		return
	}
	switch scheme, _, _ := strings.Cut(u.Targets[0], ":"); scheme {
	case "http", "https":
		if !p.Requests() && p != 0 {
			c.problem(at, "write tcp:// or tls:// targets", "upstream %q has %s targets, and a listener of protocol %s moves bytes", name, scheme, p)
		}
	case "tcp", "tls":
		if p.Requests() {
			c.problem(at, "write http:// or https:// targets", "upstream %q has %s targets, and a listener of protocol %s makes requests", name, scheme, p)
		} else if p == Passthrough && scheme == "tls" {
			c.problem(at, "write tcp:// targets: the client's own TLS goes through", "upstream %q has tls targets, and nothing is decrypted here", name)
		}
	}
}

// sources compiles who may connect.
func (c *compiler) sources(path string, out *Listener, l *config.Listener, conf *config.Config) {
	for i, text := range l.Sources {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			addr, aerr := netip.ParseAddr(text)
			if aerr != nil || addr.Zone() != "" {
				c.problem(config.Path(path, i), "write 10.1.0.0/16 or 10.1.2.3", "%q is neither an address nor a prefix", text)
				continue
			}
			prefix = netip.PrefixFrom(addr, addr.BitLen())
		}
		if prefix.Addr().Is4In6() {
			prefix = netip.PrefixFrom(prefix.Addr().Unmap(), max(prefix.Bits()-96, 0))
		}
		if prefix != prefix.Masked() {
			c.problem(config.Path(path, i), "write "+prefix.Masked().String(), "%q has bits behind its prefix", text)
			continue
		}
		out.Sources = append(out.Sources, prefix)
	}
	if out.Protocol != HTTP && out.Protocol != TCP || len(l.Sources) > 0 {
		return
	}
	names := []string{l.Upstream}
	for _, h := range l.Hosts {
		for _, r := range h.Routes {
			names = append(names, r.Upstream)
		}
	}
	for _, name := range names {
		if u := conf.Upstreams[name]; u != nil && u.TLS != nil && len(u.TLS.ClientCertificates) > 0 {
			out.LocalOnly = true
		}
	}
}

func (c *compiler) hostKeys(path string, out *Host, h *config.Host) {
	list, at := h.Certificates, func(i int) string { return config.Path(path, "certificates", i) }
	switch {
	case h.Certificate != nil && len(list) > 0:
		c.problem(config.Path(path, "certificate"), "move it into certificates", "both certificate and certificates are set")
		return
	case h.Certificate != nil:
		list, at = []config.KeyPair{*h.Certificate}, func(int) string { return config.Path(path, "certificate") }
	case len(list) == 0:
		c.problem(path, "add certificate: {cert: FILE, key: FILE}", "a host that ends TLS needs a certificate")
		return
	}
	var pairs []*tls.Certificate
	for i, p := range list {
		if pair := c.pair(at(i), p, h.Names); pair != nil {
			pairs = append(pairs, pair)
		}
	}
	if len(pairs) < len(list) {
		return
	}
	set, err := certs.NewSet(pairs)
	if err != nil {
		c.problem(path, "", "%s", err)
	}
	out.Keys = set
}

func (c *compiler) clientAuth(path string, out *Host, h *config.Host, l *Listener) {
	a := h.ClientAuth
	if a == nil {
		c.problem(path, "add client_auth: {mode: require, trust_store: NAME}, or client_auth: {mode: off} to ask nobody", "a host of protocol %s needs client_auth", l.Protocol)
		return
	}
	at := config.Path(path, "client_auth")
	switch a.Mode {
	case "off":
		if a.TrustStore != "" {
			c.problem(config.Path(at, "trust_store"), "set mode: request or require, or remove trust_store", "trust_store has no meaning with mode off")
		}
		return
	case "request":
		out.Auth.Mode = policy.Request
	case "require":
		out.Auth.Mode = policy.Require
	case "request_unverified":
		out.Auth.Mode = policy.RequestUnverified
	case "passthrough_chain":
		out.Auth.Mode = policy.PassthroughChain
		if a.TrustStore != "" {
			c.problem(config.Path(at, "trust_store"), "use mode request_unverified to have a verdict, or remove trust_store", "trust_store has no meaning with mode passthrough_chain: nothing is verified")
		}
	default:
		return
	}
	if out.Auth.Mode == policy.RequestUnverified || out.Auth.Mode == policy.PassthroughChain {
		if a.OnFailure != "" {
			c.problem(config.Path(at, "on_failure"), "remove on_failure, or use mode request or require", "on_failure has no meaning with mode %s: nobody is refused", a.Mode)
		}
		if l.Protocol == TLSBytes {
			c.problem(config.Path(at, "mode"), "use mode off, request or require", "mode %s has no meaning on a tls listener: its backend is not told who the client is", a.Mode)
		}
	}
	if a.OnFailure == "page" && l.Protocol != HTTPS {
		c.problem(config.Path(at, "on_failure"), "use alert or reset", "on_failure page needs HTTP, and this listener moves bytes")
	}
	if out.Auth.Mode == policy.PassthroughChain {
		return
	}
	if a.TrustStore == "" {
		c.problem(at, "add trust_store: NAME", "mode %s needs a trust_store", a.Mode)
		return
	}
	out.Auth.Store = c.store(config.Path(at, "trust_store"), a.TrustStore)
	out.Auth.Reset, out.Auth.Page = a.OnFailure == "reset", a.OnFailure == "page"
	if out.Auth.Store != nil {
		out.Auth.Hints = hintPool(out.Auth.Store.Hints())
	}
}

// hintPool makes a pool that has nothing but subjects: it is advertised, never verified against.
func hintPool(subjects [][]byte) *x509.CertPool {
	if len(subjects) == 0 {
		return nil
	}
	pool := x509.NewCertPool()
	for _, s := range subjects {
		pool.AddCert(&x509.Certificate{Raw: s, RawSubject: s})
	}
	return pool
}
