package snapshot

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"countersign/internal/certs"
	"countersign/internal/config"
	"countersign/internal/trust"
)

// makeStore compiles a trust store, after those it is combined from.
func (c *compiler) makeStore(name string) {
	if _, made := c.stores[name]; made {
		return
	}
	c.stores[name] = nil // while it is being made, so that a circle ends
	t := c.conf.TrustStores[name]
	if t != nil && t.CABundle != nil {
		c.stores[name] = c.trustStore(config.Path("trust_stores", name), name, t)
	}
}

func (c *compiler) trustStore(path, name string, t *config.TrustStore) *trust.Store {
	bundle := config.Path(path, "ca_bundle")
	anchors, complete := fixed(c, bundle, func() ([]*x509.Certificate, bool) { return c.anchors(bundle, name, t) })
	if c.Without != nil {
		anchors = slices.DeleteFunc(anchors, func(a *x509.Certificate) bool { return c.Without(name, a) })
	}
	opts := trust.Options{Chains: c.Chains, Alike: slices.Collect(maps.Values(c.stores))}
	if c.Previous != nil {
		opts.Alike = slices.AppendSeq(opts.Alike, maps.Values(c.Previous.stores))
	}
	c.acceptance(config.Path(path, "accept"), &opts, t.Accept)
	var crls []*trust.CRL
	if t.Revocation != nil {
		crls = c.revocation(config.Path(path, "revocation"), name, &opts, t.Revocation, anchors)
	}
	if !complete {
		return nil
	}
	store, err := trust.NewStore(name, anchors, crls, c.hints(path, t.Hints, anchors), opts)
	if err != nil {
		c.problem(path, "", "%s", err)
		return nil
	}
	for _, w := range store.Warnings() {
		c.warn(path, "compare issuer and key with the certificates of the bundle", "%s", w)
	}
	return store
}

// anchors collects the CA certificates of a store from wherever it names. False means that a problem was told.
func (c *compiler) anchors(path, name string, t *config.TrustStore) (all []*x509.Certificate, complete bool) {
	b := t.CABundle
	complete = true
	take := func(at, what string, data []byte) {
		made, err := recall(c.memory.bundles, c.before.bundles, sumOf([]byte(t.Compat), data), func() (bundle, error) {
			certs, warnings, err := trust.LoadBundle(data, t.Compat == "alb")
			return bundle{certs, warnings}, err
		})
		if err != nil {
			c.problem(at, "a trust store holds CA certificates and nothing else", "%s: %s", what, err)
			complete = false
			return
		}
		for _, w := range made.warnings {
			c.warn(at, "", "%s: %s", what, w)
		}
		all = append(all, made.certs...)
	}
	if b.File == "" && b.Directory == "" && b.URL == "" && !b.System && len(b.Stores) == 0 {
		c.problem(path, "add file: ca.pem, or directory, url, system or stores", "ca_bundle names no source of CA certificates")
		return nil, false
	}
	if b.File != "" {
		if data, ok := c.read(config.Path(path, "file"), b.File); ok {
			take(config.Path(path, "file"), b.File, data)
		} else {
			complete = false
		}
	}
	if b.Directory != "" {
		names, ok := c.list(config.Path(path, "directory"), b.Directory)
		complete = complete && ok
		for _, file := range names {
			if data, ok := c.read(config.Path(path, "directory"), file); ok {
				take(config.Path(path, "directory"), file, data)
			} else {
				complete = false
			}
		}
	}
	if b.URL != "" {
		at := config.Path(path, "url")
		data, ok := c.fetched(at, b)
		if complete = complete && ok; ok {
			take(at, b.URL, data)
		}
	} else if b.Refresh != 0 {
		c.problem(config.Path(path, "refresh"), "remove it, or add url", "refresh has no meaning without url")
	}
	if b.System {
		data, ok := c.systemBundle(config.Path(path, "system"))
		if complete = complete && ok; ok {
			all = append(all, data...)
		}
	}
	for i, other := range b.Stores {
		at := config.Path(path, "stores", i)
		if _, known := c.conf.TrustStores[other]; !known {
			c.unresolved(at, "trust store", other, keys(c.conf.TrustStores))
			complete = false
			continue
		}
		c.makeStore(other)
		if s := c.stores[other]; s != nil {
			all = append(all, s.Anchors()...)
			continue
		}
		complete = false
		if other == name || c.circular(name, other) {
			c.problem(at, "name only stores that do not lead back here", "trust store %q is combined from itself", name)
		}
	}
	return all, complete
}

// circular reports whether the store from is combined from name.
func (c *compiler) circular(name, from string) bool {
	seen := map[string]bool{}
	var leads func(string) bool
	leads = func(at string) bool {
		if at == name {
			return true
		}
		t := c.conf.TrustStores[at]
		if seen[at] || t == nil || t.CABundle == nil {
			return false
		}
		seen[at] = true
		return slices.ContainsFunc(t.CABundle.Stores, leads)
	}
	return leads(from)
}

// acceptance compiles the rules that a chain has to meet.
func (c *compiler) acceptance(path string, opts *trust.Options, a *config.Accept) {
	if a == nil {
		return
	}
	opts.MaxDepth, opts.MaxPresented = a.MaxDepth, a.MaxPresented
	if opts.MaxPresented > 10 {
		c.problem(config.Path(path, "max_presented"), "use at most 10", "max_presented is %d; more than 10 certificates are never accepted", opts.MaxPresented)
	}
	if opts.MaxDepth > 10 {
		c.problem(config.Path(path, "max_depth"), "use at most 10", "max_depth is %d; chains of more than 10 certificates are never accepted", opts.MaxDepth)
	}
	opts.AllowExpiredLeaf = a.ExpiredLeaf == "allow"
	if d := a.SPIFFETrustDomain; d != "" {
		if _, err := spiffeid.TrustDomainFromString(d); err != nil || strings.Contains(d, "/") {
			c.problem(config.Path(path, "spiffe_trust_domain"), "write the name alone, as corp.test", "%q is not a SPIFFE trust domain", d)
		}
		opts.TrustDomain = d
	}
	e := a.EKU
	switch at := config.Path(path, "eku"); {
	case e == nil || e.Mode == "strict":
	case e.Mode == "allow_absent":
		opts.EKU = trust.EKUAllowAbsent
	case e.AllowServerAuthUntil != "" && e.OIDs != nil:
		c.problem(at, "keep one of the two", "both allow_server_auth_until and oids are set")
	case e.AllowServerAuthUntil != "":
		until, err := time.Parse(time.DateOnly, e.AllowServerAuthUntil)
		if err != nil {
			c.problem(config.Path(at, "allow_server_auth_until"), "write 2027-03-01", "%q is not a date", e.AllowServerAuthUntil)
			return
		}
		if opts.EKU, opts.EKUUntil = trust.EKUAllowServerAuth, until; !c.Now.Before(until) {
			c.warn(config.Path(at, "allow_server_auth_until"), "set eku: strict", "the date is over: clients need clientAuth now")
		}
	case len(e.OIDs) == 0:
		c.problem(at, "write strict, allow_absent, {allow_server_auth_until: DATE} or {oids: [...]}", "eku accepts nothing")
	default:
		opts.EKU = trust.EKUCustom
		for i, text := range e.OIDs {
			oid, err := x509.ParseOID(text)
			if err != nil {
				c.problem(config.Path(at, "oids", i), "write numbers and dots, as 1.3.6.1.5.5.7.3.2", "%q is not an object identifier", text)
				continue
			}
			var numbers asn1.ObjectIdentifier
			if der, err := oid.MarshalBinary(); err == nil {
				if _, err = asn1.Unmarshal(append([]byte{6, byte(len(der))}, der...), &numbers); err != nil || len(der) > 127 {
					c.problem(config.Path(at, "oids", i), "use an object identifier with smaller numbers", "%q is too large to be compared", text)
					continue
				}
			}
			opts.EKUOIDs = append(opts.EKUOIDs, numbers)
		}
	}
}

func (c *compiler) hints(path string, h *config.Hints, anchors []*x509.Certificate) [][]byte {
	at := config.Path(path, "hints")
	if h != nil && h.Mode == "none" {
		return nil
	}
	explicit := h != nil && h.File != ""
	if explicit {
		list, ok := fixed(c, at, func() ([]*x509.Certificate, bool) {
			data, ok := c.read(config.Path(at, "file"), h.File)
			if !ok {
				return nil, false
			}
			list, _, err := trust.LoadBundle(data, false)
			if err != nil {
				c.problem(config.Path(at, "file"), "list CA certificates in PEM; their subjects are sent", "%s: %s", h.File, err)
			}
			return list, err == nil
		})
		if !ok {
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
	pair, _ := fixed(c, path, func() (*tls.Certificate, bool) {
		pair := c.readPair(path, p, names)
		return pair, pair != nil
	})
	return pair
}

// pairNames are what a pair is read from, as the configuration names it.
type pairNames struct {
	cert, key, pkcs12 string
	password          config.Secret
}

func (c *compiler) readPair(path string, p config.KeyPair, names []string) *tls.Certificate {
	id := pairNames{cert: p.Cert, key: p.Key, pkcs12: p.PKCS12}
	if s := p.Password; s != nil {
		id.password = *s
	}
	if pair, ok := c.pairs[id]; ok {
		c.check(path, p, pair, names)
		return pair
	}
	if made, ok := c.samePair(path, p); ok {
		return c.usePair(path, p, id, made, names)
	}
	var cert, key, pkcs12 loaded
	read := func(setting, name string, into *loaded) bool {
		if setting != "cert" {
			defer c.unneeded(len(c.problems))
		}
		f, ok := c.load(config.Path(path, setting), name)
		if ok {
			*into = *f
		}
		return ok
	}
	ok1, ok2, ok3 := true, true, true
	switch {
	case p.PKCS12 != "" && (p.Cert != "" || p.Key != ""):
		c.problem(path, "remove cert and key, or pkcs12", "pkcs12 holds both certificate and key, and cert or key is set too")
		return nil
	case p.PKCS12 != "":
		ok1 = read("pkcs12", p.PKCS12, &pkcs12)
	case p.Cert == "" || p.Key == "":
		c.problem(path, "add cert: FILE and key: FILE, or pkcs12: FILE", "a certificate and its key are needed")
		return nil
	default:
		ok1 = read("cert", p.Cert, &cert)
		ok2 = read("key", p.Key, &key)
	}
	password, ok3 := c.secret(config.Path(path, "password"), p.Password)
	if !ok1 || !ok2 || !ok3 {
		return nil
	}
	var secret Sum
	if password != nil { // an empty one is told from none
		secret = sha256.Sum256(password)
	}
	made, err := recall(c.memory.pairs, c.before.pairs, pairSum(cert.sum, key.sum, pkcs12.sum, secret), func() (pair, error) {
		c.memory.parsed++
		defer func(from int) {
			for i := range c.unchecked[from:] {
				c.unchecked[from+i].Pair = p.String()
			}
		}(len(c.unchecked))
		cert, warnings, err := c.certs.Parse(certs.Source{Cert: cert.data, Key: key.data, PKCS12: pkcs12.data, Password: password})
		return pair{cert, warnings}, err
	})
	if err != nil {
		c.problem(path, "", "%s: %s", p.String(), err)
		return nil
	}
	return c.usePair(path, p, id, made, names)
}

func (c *compiler) usePair(path string, p config.KeyPair, id pairNames, made pair, names []string) *tls.Certificate {
	for _, w := range made.warnings {
		c.warn(path, "", "%s: %s", p.String(), w)
	}
	c.check(path, p, made.cert, names)
	c.pairs[id] = made.cert
	return made.cert
}

// samePair finds a pair of the previous snapshot whose files are the same by their stat. Those with a password are read:
// they are few, and their key is not worth more trust.
func (c *compiler) samePair(path string, p config.KeyPair) (made pair, ok bool) {
	if p.Cert == "" || p.Key == "" || p.PKCS12 != "" || p.Password != nil {
		return made, false
	}
	cert, certFile, ok := c.glance(config.Path(path, "cert"), p.Cert)
	if !ok {
		return made, false
	}
	key, keyFile, ok := c.glance(config.Path(path, "key"), p.Key)
	if !ok {
		return made, false
	}
	sum := pairSum(certFile.sum, keyFile.sum, Sum{}, Sum{})
	if made, ok = c.memory.pairs[sum]; !ok {
		if made, ok = c.before.pairs[sum]; !ok {
			return made, false
		}
		c.memory.pairs[sum] = made
	}
	c.useUnread(cert, p.Cert, certFile)
	c.useUnread(key, p.Key, keyFile)
	return made, true
}

// useUnread notes a file of glance that is not read.
func (c *compiler) useUnread(full, name string, f *loaded) {
	if c.files[full] == nil {
		c.note(full, name, f)
		c.memory.seen[full] = c.before.seen[full]
	}
}

// secret reads what opens a key. Nil without a problem means that none is configured.
func (c *compiler) secret(path string, s *config.Secret) ([]byte, bool) {
	switch {
	case s == nil:
		return nil, true
	case s.File != "" && s.Env != "" || s.File == "" && s.Env == "":
		c.problem(path, "write password: {file: FILE} or password: {env: NAME}", "a password comes from a file or from an environment variable, one of them")
		return nil, false
	}
	defer c.unneeded(len(c.problems))
	if s.File != "" {
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

// unneeded makes warnings of the problems since mark where nobody needs what they are about. They are of what cannot be had;
// a mistake in the configuration stays one.
func (c *compiler) unneeded(mark int) {
	for i := mark; c.Asking && i < len(c.problems); i++ {
		c.problems[i].Warning = true
	}
}

// check warns of what is odd about a pair, once: hosts often share one, and its dates are the same for all.
func (c *compiler) check(path string, p config.KeyPair, pair *tls.Certificate, names []string) {
	for _, w := range certs.Check(pair, names, c.Now) {
		message := p.String() + ": " + w
		if !c.warned[message] {
			c.warned[message] = true
			c.warn(path, "", "%s", message)
		}
	}
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
