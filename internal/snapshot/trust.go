package snapshot

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"slices"
	"time"

	"countersign/internal/certs"
	"countersign/internal/config"
	"countersign/internal/trust"
)

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
	if s := p.Password; s != nil {
		id += fmt.Sprint("|", s.File, "|", s.Env)
	}
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
