package main

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"countersign/internal/config"
	"countersign/internal/daemon"
	"countersign/internal/hostname"
	"countersign/internal/journal"
	"countersign/internal/policy"
	"countersign/internal/snapshot"
	"countersign/internal/trust"
)

// change is what impact is asked about in place of a file: changes of the configuration in force, together. The zero value
// is none.
type change struct {
	removeCA, addCRL, allow        []string
	requireEKU, clientAuth, minTLS string
	// host and listener narrow all of them; empty for every one that asks clients for certificates.
	host, listener string
}

// changeFlags are the flags that say what is changed.
var changeFlags = []string{"remove-ca", "add-crl", "require-eku", "client-auth", "min-tls", "allow"}

// oneChange is the last thing to do about a change that these flags cannot say.
const oneChange = "write it into a copy of the configuration, and ask about that with --proposed"

// refusal is an error of the command line.
func refusal(next, format string, args ...any) error {
	return usageError{fmt.Errorf("%w\nhint: %s", fmt.Errorf(format, args...), next)}
}

// check says what is wrong with the values alone.
func (c *change) check() error {
	switch {
	case c.clientAuth != "" && c.clientAuth != "require":
		return refusal(oneChange, "--client-auth: expected require, found %q", c.clientAuth)
	case c.minTLS != "" && c.minTLS != "1.3":
		return refusal("TLS 1.2 is the oldest version that is ever spoken", "--min-tls: expected 1.3, found %q", c.minTLS)
	}
	if _, err := x509.ParseOID(c.requireEKU); c.requireEKU != "" && c.requireEKU != "clientAuth" && err != nil {
		return refusal("--require-eku 1.3.6.1.4.1.99999.7", "--require-eku: expected clientAuth or an object identifier, found %q", c.requireEKU)
	}
	return nil
}

// propose makes the change in look, which has the configuration in force, and returns it in words.
func (c *change) propose(look *daemon.Look) (told []string, err error) {
	e := &edits{change: c, snapshot: look.Snapshot, without: make(map[string]map[[sha256.Size]byte]bool)}
	err = look.Change(e.make, func(store string, ca *x509.Certificate) bool { return e.without[store][sha256.Sum256(ca.Raw)] })
	var conf *daemon.ConfigError
	if errors.As(err, &conf) {
		err = fmt.Errorf("with this change, made in memory, %w\nhint: %s", err, oneChange)
	}
	return e.told, err
}

// edits are the work on one change.
type edits struct {
	*change
	snapshot *snapshot.Snapshot // in force
	conf     *config.Config     // that is changed
	places   []place
	without  map[string]map[[sha256.Size]byte]bool // CAs, by trust store
	told     []string
}

// place is a host that is changed.
type place struct {
	listener *snapshot.Listener
	host     *snapshot.Host
	conf     *config.Host
}

func (p *place) String() string { return p.host.Name + " on listener " + p.listener.Name }

func (e *edits) tell(format string, args ...any) {
	e.told = append(e.told, fmt.Sprintf(format, args...))
}

func (e *edits) make(conf *config.Config) error {
	e.conf = conf
	for _, step := range []func() error{e.choose, e.stores, e.modes, e.versions, e.rules} {
		if err := step(); err != nil {
			return err
		}
	}
	if e.narrowed() {
		var names []string
		for _, p := range e.places {
			names = append(names, p.String())
		}
		e.tell("only at %s", few(names))
	}
	return nil
}

// narrowed reports whether the change is made in some places only.
func (e *edits) narrowed() bool { return e.host != "" || e.listener != "" }

// choose finds the hosts.
func (e *edits) choose() error {
	s, names := e.snapshot, slices.Sorted(maps.Keys(e.snapshot.Listeners))
	if l := s.Listeners[e.listener]; e.listener != "" {
		switch {
		case l == nil:
			return refusal(there(e.listener, names), "--listener: no listener is named %q", e.listener)
		case !l.Protocol.Terminates():
			return refusal("name a listener of protocol https or tls", "--listener: %s is of protocol %s, and asks nobody for a certificate", l.Name, l.Protocol)
		}
		names = []string{e.listener}
	}
	canonical, _, _ := hostname.AppendCanonicalHost(nil, []byte(e.host))
	var known []string
	for _, name := range names {
		l := s.Listeners[name]
		if !l.Protocol.Terminates() {
			continue
		}
		for i, h := range l.Hosts {
			known = append(known, h.Names...)
			if e.host == "" && h.Auth.Mode != policy.Off || slices.ContainsFunc(h.Names, func(n string) bool { return strings.EqualFold(n, e.host) }) || l.Named(canonical) && l.Host(canonical) == h {
				e.places = append(e.places, place{l, h, e.conf.Listeners[name].Hosts[i]})
			}
		}
	}
	switch {
	case len(e.places) > 0:
		return nil
	case len(known) == 0:
		return refusal(oneChange, "no listener of this configuration asks clients for certificates")
	}
	return refusal(there(e.host, known), "--host: no host that asks clients for certificates is named %q", e.host)
}

// few lists names, of many some.
func few(names []string) string {
	const most = 10
	text := strings.Join(names[:min(len(names), most)], ", ")
	if more := len(names) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// there says what there is in place of a name that is not known.
func there(name string, known []string) string {
	text := "there are: " + few(known)
	if s := config.Suggest(name, known); s != "" {
		text = fmt.Sprintf("did you mean %q? %s", s, text)
	}
	return text
}

// stored is a trust store that is changed.
type stored struct {
	name string // after the change
	of   *trust.Store
	conf *config.TrustStore
}

// own returns the trust stores of the hosts that are changed. Where not all hosts are, they get copies of them for
// themselves.
func (e *edits) own() []*stored {
	stores := make(map[string]*stored)
	take := func(name *string) {
		if *name == "" {
			return
		}
		s := stores[*name]
		if s == nil {
			conf := *e.conf.TrustStores[*name]
			s = &stored{*name, e.snapshot.Stores()[*name], &conf}
			if stores[*name] = s; e.narrowed() {
				s.name += " (changed)"
			}
			e.conf.TrustStores[s.name] = &conf
		}
		*name = s.name
	}
	for _, p := range e.places {
		if p.conf.ClientAuth == nil || p.host.Auth.Store == nil {
			continue
		}
		take(&p.conf.ClientAuth.TrustStore)
		for _, r := range p.conf.Routes {
			if r.ClientAuth != nil {
				take(&r.ClientAuth.TrustStore)
			}
		}
	}
	return slices.SortedFunc(maps.Values(stores), func(a, b *stored) int { return strings.Compare(a.name, b.name) })
}

// stores changes CAs, lists and purposes.
func (e *edits) stores() error {
	if len(e.removeCA)+len(e.addCRL) == 0 && e.requireEKU == "" {
		return nil
	}
	stores := e.own()
	if len(stores) == 0 {
		return refusal(oneChange, "no host that is meant verifies clients: none has a trust store")
	}
	for _, text := range e.removeCA {
		if err := e.remove(text, stores); err != nil {
			return err
		}
	}
	for _, file := range e.addCRL {
		if err := e.revoke(file, stores); err != nil {
			return err
		}
	}
	for _, s := range stores {
		if e.requireEKU == "" {
			break
		}
		accept, was := config.Accept{}, (*config.EKU)(nil)
		if s.conf.Accept != nil {
			accept, was = *s.conf.Accept, s.conf.Accept.EKU
		}
		if accept.EKU = (&config.EKU{OIDs: []string{e.requireEKU}}); e.requireEKU == "clientAuth" {
			accept.EKU = &config.EKU{Mode: "strict"}
		}
		s.conf.Accept = &accept
		e.tell("trust store %s wants extendedKeyUsage %s, in place of what it wants now (accept.eku: %s)", s.of.Name(), e.requireEKU, wants(was))
	}
	return nil
}

// wants is accept.eku as it is written.
func wants(e *config.EKU) string {
	switch {
	case e == nil:
		return "strict"
	case e.AllowServerAuthUntil != "":
		return "{allow_server_auth_until: " + e.AllowServerAuthUntil + "}"
	case e.OIDs != nil:
		return "{oids: [" + few(e.OIDs) + "]}"
	}
	return e.Mode
}

// remove takes CAs out of the stores that have them.
func (e *edits) remove(text string, stores []*stored) error {
	cas, err := find(text, stores)
	if err != nil {
		return err
	}
	for _, s := range stores {
		if e.without[s.name] == nil {
			e.without[s.name] = make(map[[sha256.Size]byte]bool)
		}
		for _, ca := range s.of.Anchors() {
			if slices.ContainsFunc(cas, ca.Equal) {
				e.without[s.name][sha256.Sum256(ca.Raw)] = true
				e.tell("trust store %s without CA %s", s.of.Name(), printed(ca))
			}
		}
		if len(e.without[s.name]) == len(s.of.Anchors()) {
			return refusal("countersign clients lists those who come, and all of that trust store would be refused",
				"--remove-ca %s: trust store %s would have no CA left, and a configuration with such a store is refused", text, s.of.Name())
		}
	}
	return nil
}

// find returns the CAs that a file, a fingerprint or a subject stands for. Only a file may hold several.
func find(text string, stores []*stored) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for _, s := range stores {
		for _, ca := range s.of.Anchors() {
			if !slices.ContainsFunc(all, ca.Equal) {
				all = append(all, ca)
			}
		}
	}
	slices.SortFunc(all, func(a, b *x509.Certificate) int { return strings.Compare(printed(a), printed(b)) })
	list := func(cas []*x509.Certificate) string {
		var names []string
		for _, ca := range cas {
			names = append(names, printed(ca))
		}
		return "there are: " + few(names)
	}
	data, unread := snapshot.ReadFile(text)
	if unread == nil {
		cas, err := trust.LoadCertificates(data)
		if err != nil {
			return nil, refusal("name a file of the CA's certificate, in PEM or DER", "--remove-ca %s: %w", text, err)
		}
		for _, ca := range cas {
			if !slices.ContainsFunc(all, ca.Equal) {
				return nil, refusal(list(all), "--remove-ca %s: no trust store of clients has %s", text, printed(ca))
			}
		}
		return cas, nil
	}
	var found []*x509.Certificate
	for _, is := range []func(*x509.Certificate) bool{
		func(ca *x509.Certificate) bool { return fingerprinted(ca, text) },
		func(ca *x509.Certificate) bool { return strings.EqualFold(journal.NameOf(ca.RawSubject), text) },
		func(ca *x509.Certificate) bool { return strings.EqualFold(ca.Subject.CommonName, text) },
		func(ca *x509.Certificate) bool {
			return text != "" && strings.Contains(strings.ToLower(journal.NameOf(ca.RawSubject)), strings.ToLower(text))
		},
	} {
		for _, ca := range all {
			if is(ca) {
				found = append(found, ca)
			}
		}
		switch len(found) {
		case 0:
			continue
		case 1:
			return found, nil
		}
		return nil, refusal("name one by its fingerprint; "+list(found), "--remove-ca: %q is %d CAs", text, len(found))
	}
	if strings.ContainsRune(text, filepath.Separator) || slices.Contains([]string{".pem", ".crt", ".cer", ".der"}, filepath.Ext(text)) {
		return nil, refusal("name a file of the CA's certificate; "+list(all), "--remove-ca %s: it cannot be read (%w), and no CA of a trust store of clients has such a subject", text, cause(unread))
	}
	return nil, refusal(list(all), "--remove-ca: no trust store of clients has a CA with fingerprint, file or subject %q", text)
}

// cause is what is wrong with a file, without its name.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// minPrint is how many digits a fingerprint may be cut to.
const minPrint = 8

// fingerprinted reports whether text is the SHA-256 of ca, as people write it, or its beginning.
func fingerprinted(ca *x509.Certificate, text string) bool {
	digits := strings.NewReplacer(":", "", " ", "").Replace(strings.TrimPrefix(strings.ToLower(text), "sha256:"))
	sum := sha256.Sum256(ca.Raw)
	return len(digits) >= minPrint && strings.HasPrefix(hex.EncodeToString(sum[:]), digits)
}

// printed names a CA for people.
func printed(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.Raw)
	return fmt.Sprintf("%s (sha256:%s)", cmp.Or(journal.NameOf(ca.RawSubject), "no name"), hex.EncodeToString(sum[:8]))
}

// revoke adds the lists of a file to the stores that have their CA.
func (e *edits) revoke(file string, stores []*stored) error {
	data, err := snapshot.ReadFile(file)
	if err != nil {
		return refusal("name a file with revocation lists, in PEM or DER", "--add-crl %s: cannot read it: %w", file, cause(err))
	}
	lists, err := trust.ParseCRLs(data)
	if err != nil {
		return refusal("openssl crl -in FILE -noout -text shows what is in it", "--add-crl %s: %w", file, err)
	}
	full, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	signed := func(s *stored) bool {
		return slices.ContainsFunc(lists, func(l *trust.CRL) bool {
			return slices.ContainsFunc(s.of.Anchors(), func(ca *x509.Certificate) bool {
				return string(ca.RawSubject) == l.Issuer() && l.SignedBy(ca) == nil
			})
		})
	}
	fit := slices.DeleteFunc(slices.Clone(stores), func(s *stored) bool { return !signed(s) })
	if len(fit) == 0 {
		// Of a CA that stands below one of the store, which a chain shows.
		if fit = stores; len(stores) > 1 {
			var names []string
			for _, s := range stores {
				names = append(names, s.of.Name())
			}
			next := oneChange
			if !e.narrowed() {
				next = "say with --host or --listener where, or " + oneChange
			}
			return refusal(next, "--add-crl %s: %s is of no CA in any of %d trust stores (%s), and which of them has the CA above is not known here", file, lists[0], len(stores), few(names))
		}
	}
	for _, s := range fit {
		var r config.Revocation
		checked := s.conf.Revocation != nil && len(s.conf.Revocation.CRLs)+len(s.conf.Revocation.DistributionPoints) > 0
		if s.conf.Revocation != nil {
			r = *s.conf.Revocation
		}
		r.CRLs = append(slices.Clip(r.CRLs), config.CRL{File: full})
		s.conf.Revocation = &r
		e.tell("trust store %s with revocation list %s", s.of.Name(), lists[0])
		if !checked {
			e.tell("trust store %s checks lists from then on: clients of its other CAs need one too, unless revocation.missing says otherwise", s.of.Name())
		}
	}
	return nil
}

// modes requires a certificate of whoever is asked for one.
func (e *edits) modes() error {
	if e.clientAuth == "" {
		return nil
	}
	asks := false
	for _, p := range e.places {
		switch p.host.Auth.Mode {
		case policy.Request, policy.RequestUnverified:
			p.conf.ClientAuth.Mode = "require"
			e.tell("client_auth of %s: %s becomes require", &p, p.host.Auth.Mode)
		case policy.Require:
			e.tell("client_auth of %s: require, as it is", &p)
		default:
			if e.host != "" {
				return refusal(oneChange, "--client-auth: %s has mode %s, and so no trust store to verify clients with", &p, p.host.Auth.Mode)
			}
			continue
		}
		asks = true
	}
	if !asks {
		return refusal(oneChange, "--client-auth: no host that is meant has client_auth mode request")
	}
	return nil
}

// versions raises the oldest version of TLS, which is that of a whole listener.
func (e *edits) versions() error {
	if e.minTLS == "" {
		return nil
	}
	seen := make(map[string]bool)
	for _, p := range e.places {
		l := p.listener
		if seen[l.Name] {
			continue
		}
		seen[l.Name] = true
		if l.TLS.MinVersion >= tls.VersionTLS13 {
			e.tell("listener %s: TLS 1.3 or newer, as it is", l.Name)
			continue
		}
		conf := config.TLS{}
		if t := e.conf.Listeners[l.Name].TLS; t != nil {
			conf = *t
		}
		conf.MinVersion, conf.Ciphers = e.minTLS, nil // which are of TLS 1.2
		e.conf.Listeners[l.Name].TLS = &conf
		all := ""
		if e.host != "" && len(l.Hosts) > 1 {
			all = ", for all its hosts: the version is the listener's"
		}
		e.tell("listener %s: TLS 1.3 or newer%s", l.Name, all)
	}
	return nil
}

// rules adds expressions to those of routes.
func (e *edits) rules() error {
	for _, text := range e.allow {
		routes := 0
		for _, p := range e.places {
			mode := p.host.Auth.Mode
			if e.clientAuth != "" {
				mode = policy.Require
			}
			if len(p.conf.Routes) == 0 {
				continue
			}
			var bad *policy.RuleError
			if _, err := policy.Compile(text, policy.CompileOptions{Mode: mode}); errors.As(err, &bad) {
				b := bad.Problems[0]
				return refusal(b.Next, "--allow: %s (line %d, column %d of the expression; client_auth of %s is %s)", b.Message, b.Line, b.Column, &p, mode)
			} else if err != nil {
				return refusal("see docs/policy.md", "--allow: %w", err)
			}
			for _, r := range p.conf.Routes {
				if r.Allow == "" {
					r.Allow = text
				} else {
					r.Allow = "(" + r.Allow + "\n) && (" + text + "\n)"
				}
				routes++
			}
			e.tell("allow of every route of %s: %s too", &p, strings.Join(strings.Fields(text), " "))
		}
		if routes == 0 {
			return refusal("name a host of an https listener", "--allow: no host that is meant has routes")
		}
	}
	return nil
}
