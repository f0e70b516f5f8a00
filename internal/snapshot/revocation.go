package snapshot

import (
	"crypto/x509"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"countersign/internal/config"
	"countersign/internal/hostname"
	"countersign/internal/identity"
	"countersign/internal/trust"
)

// revocation compiles how a store finds out that certificates were revoked.
func (c *compiler) revocation(path, name string, opts *trust.Options, r *config.Revocation, anchors []*x509.Certificate) (crls []*trust.CRL) {
	if len(r.CRLs)+len(r.DistributionPoints)+len(r.Deny) == 0 && (r.OCSP == nil || r.OCSP.Mode == "off") {
		c.problem(path, "add crls, distribution_points, ocsp or deny, or remove revocation", "revocation names no source, so nothing would ever be revoked")
	}
	opts.CheckRevocation = len(r.CRLs)+len(r.DistributionPoints) > 0
	if !opts.CheckRevocation && (r.Missing != "" || r.Stale != nil || r.ByCA != nil) {
		c.problem(path, "add crls or distribution_points, or remove missing, stale and by_ca", "missing, stale and by_ca are about lists, and there are none")
	}
	switch r.Missing {
	case "chain":
		opts.Missing = trust.MissingChain
	case "if_present":
		opts.Missing = trust.MissingIfPresent
	}
	opts.Stale, opts.Grace = c.stale(config.Path(path, "stale"), r.Stale, trust.StaleFailClosed, 0)
	for _, subject := range keys(r.ByCA) {
		at, rules := config.Path(path, "by_ca", subject), r.ByCA[subject]
		printed, err := trust.PrintedName(subject)
		if err != nil {
			c.problem(at, "", "%s", err)
			continue
		}
		if rules == nil || rules.Missing == "" && rules.Stale == nil {
			c.problem(at, "add missing or stale, or remove it", "nothing is different for this CA")
			continue
		}
		if len(anchors) > 0 && !slices.ContainsFunc(anchors, func(a *x509.Certificate) bool {
			text, err := identity.AppendName(nil, a.RawSubject)
			return err == nil && string(text) == printed
		}) {
			c.warn(at, "compare it with issuer in log lines, letter by letter", "no CA of the bundle is named %q; these rules count only where a chain shows a CA of exactly this name", subject)
		}
		out := trust.ListRules{Missing: opts.Missing}
		switch rules.Missing {
		case "required":
			out.Missing = trust.MissingChain
		case "if_present":
			out.Missing = trust.MissingIfPresent
		}
		out.Stale, out.Grace = c.stale(config.Path(at, "stale"), rules.Stale, opts.Stale, opts.Grace)
		if opts.ByCA == nil {
			opts.ByCA = make(map[string]trust.ListRules)
		}
		opts.ByCA[printed] = out
	}
	for i, src := range r.CRLs {
		crls = append(crls, c.crl(config.Path(path, "crls", i), src, anchors)...)
	}
	for i, host := range r.DistributionPoints {
		if host = c.remote(config.Path(path, "distribution_points", i), host); host != "" {
			opts.Points = append(opts.Points, host)
			c.outside.Points = append(c.outside.Points, host)
		}
	}
	if len(opts.Points) > 0 && c.Lists != nil {
		opts.Learnt = c.Lists.Learnt(opts.Points)
		for _, l := range opts.Learnt {
			c.sumList(l)
		}
	}
	c.ocsp(config.Path(path, "ocsp"), &opts.OCSP, r.OCSP)
	var entries []trust.DenyEntry
	for i, d := range r.Deny {
		e := trust.DenyEntry(d)
		if _, err := trust.NewDenyList([]trust.DenyEntry{e}); err != nil {
			c.problem(config.Path(path, "deny", i), "", "%s", strings.TrimPrefix(err.Error(), "deny entry 1: "))
			continue
		}
		entries = append(entries, e)
	}
	if len(entries) > 0 {
		opts.Deny, _ = trust.NewDenyList(entries)
	}
	return crls
}

func (c *compiler) stale(path string, s *config.Stale, policy trust.StalePolicy, grace time.Duration) (trust.StalePolicy, time.Duration) {
	if s == nil {
		return policy, grace
	}
	policy, grace = trust.StaleFailClosed, time.Duration(s.Grace)
	switch s.Policy {
	case "grace":
		policy = trust.StaleGrace
		if grace == 0 {
			c.problem(path, "add grace: 24h, or use policy fail_closed", "policy grace without a grace time")
		}
	case "ignore":
		policy = trust.StaleIgnore
	}
	if grace != 0 && s.Policy != "grace" {
		c.problem(config.Path(path, "grace"), "set policy: grace, or remove grace", "grace has no meaning under this policy")
	}
	return policy, grace
}

// crl returns the lists of one source. Those that are older than what was in force before are not taken again.
func (c *compiler) crl(path string, src config.CRL, anchors []*x509.Certificate) (lists []*trust.CRL) {
	switch {
	case (src.File == "") == (src.URL == ""):
		c.problem(path, "write {file: partners.crl} or {url: http://crl.partner.test/ca.crl}", "a list comes from a file or from a URL, one of them")
		return nil
	case src.URL != "":
		at := config.Path(path, "url")
		if !c.web(at, src.URL, "http", "https") {
			return nil
		}
		c.outside.Fetches = append(c.outside.Fetches, Fetch{URL: src.URL, Every: time.Duration(src.Refresh), Signers: anchors})
		if c.Lists == nil {
			return nil
		}
		l, err := c.Lists.Fetched(src.URL)
		if err != nil {
			c.warn(at, "until there is one, what revocation.missing says holds", "there is no list of %s yet: %s", src.URL, err)
			return nil
		}
		c.sumList(l)
		return []*trust.CRL{l}
	case src.Refresh != 0:
		c.problem(config.Path(path, "refresh"), "remove it: files are watched", "refresh has no meaning with file")
	}
	at, mark := config.Path(path, "file"), len(c.problems)
	var parsed []*trust.CRL
	data, ok := c.read(at, src.File)
	if ok {
		var err error
		parsed, err = recall(c.memory.crls, c.before.crls, sumOf(data), func() ([]*trust.CRL, error) { return trust.ParseCRLs(data) })
		if ok = err == nil; !ok {
			c.problem(at, "fetch the list from the CA again", "%s: %s", src.File, err)
		}
	}
	if !ok {
		before, _ := kept[[]*trust.CRL](c, at, mark)
		for _, l := range before {
			c.sumList(l)
		}
		return before
	}
	c.memory.at[at] = parsed
	for _, l := range parsed {
		if until := l.NextUpdate(); until.Before(c.Now) {
			c.warn(at, "ask the CA for a newer one; until there is one, what revocation.stale says holds", "%s: %s expired at %s", src.File, l, until.UTC().Format(time.RFC3339))
		}
	}
	if c.Lists == nil {
		return parsed
	}
	defer func() { c.crls = append(c.crls, lists...) }()
	for _, l := range parsed {
		use, older := c.Lists.Admit(l, data)
		if older != "" {
			c.older = append(c.older, src.File+": "+older)
			c.warn(at, "fetch the list from the CA again", "%s: %s", src.File, older)
		}
		if use == nil {
			continue // the newer one is gone: what revocation.missing says holds
		}
		lists = append(lists, use)
		if use.Sum() != l.Sum() {
			c.sumList(use)
		}
	}
	return lists
}

// sumList adds a list that did not come from a named file to the snapshot's hash.
func (c *compiler) sumList(l *trust.CRL) {
	sum := l.Sum()
	c.sum(sum[:])
}

func (c *compiler) ocsp(path string, out *trust.OCSP, o *config.OCSP) {
	if o == nil || o.Mode == "off" {
		if o != nil && (o.Responder != "" || o.Hosts != nil || o.Signers != "" || o.Nonce != "" || o.Chain) {
			c.problem(path, "set mode: prefer or require, or write ocsp: off", "the other settings have no meaning with mode off")
		}
		return
	}
	if out.Mode = trust.OCSPPrefer; o.Mode == "require" {
		out.Mode = trust.OCSPRequire
	}
	out.Answers, out.Responder, out.Chain, out.RequireNonce = c.Answers, o.Responder, o.Chain, o.Nonce == "require"
	if out.Answers == nil {
		out.Answers = trust.NewAnswers(1)
	}
	if o.Responder != "" {
		c.web(config.Path(path, "responder"), o.Responder, "http", "https")
	}
	for i, host := range o.Hosts {
		if host = c.remote(config.Path(path, "hosts", i), host); host != "" {
			out.Hosts = append(out.Hosts, host)
		}
	}
	if o.Responder == "" && len(o.Hosts) == 0 {
		c.problem(path, "write ocsp: {mode: "+o.Mode+`, responder: "http://ocsp.partner.test"}, or hosts: [ocsp.partner.test] in place of responder to ask the ones that certificates name`, "ocsp has nobody to ask")
	}
	c.outside.Responders = append(append(c.outside.Responders, out.Hosts...), o.Responder)
	if o.Signers != "" {
		at := config.Path(path, "signers")
		out.Signers, _ = fixed(c, at, func() ([]*x509.Certificate, bool) {
			data, ok := c.read(at, o.Signers)
			if !ok {
				return nil, false
			}
			list, err := trust.LoadCertificates(data)
			if err != nil {
				c.problem(at, "list certificates that sign OCSP answers, in PEM", "%s: %s", o.Signers, err)
			}
			return list, err == nil
		})
	}
}

// remote checks a host that may be named in certificates: a name or address, with a port if it is not the scheme's.
func (c *compiler) remote(path, host string) string {
	u, err := url.Parse("http://" + host)
	if err == nil && u.Host == host && u.Hostname() != "" {
		if u.Port() == "" {
			host = u.Hostname() // without the brackets of IPv6
		}
		if _, wild, err := hostname.Pattern(u.Hostname()); err == nil && !wild {
			return strings.ToLower(host)
		}
		if _, err := netip.ParseAddr(u.Hostname()); err == nil {
			return strings.ToLower(host)
		}
	}
	c.problem(path, "write crl.partner.test or crl.partner.test:8080", "%q is not a host", host)
	return ""
}

// web checks a URL that is to be fetched.
func (c *compiler) web(path, text string, schemes ...string) bool {
	u, err := url.Parse(text)
	if err != nil || !slices.Contains(schemes, u.Scheme) || u.Host == "" || u.User != nil || u.Fragment != "" {
		c.problem(path, "write "+schemes[len(schemes)-1]+"://host/path", "%q is not a URL of scheme %s without user and fragment", text, strings.Join(schemes, " or "))
		return false
	}
	return true
}

// elsewhere compiles what the configuration says about the world outside.
func (c *compiler) elsewhere(conf *config.Config) {
	state := conf.State
	if state == "" {
		state = "state"
	}
	if full, ok := c.expand("state", state); ok {
		if !filepath.IsAbs(full) {
			full = filepath.Join(c.Dir, full)
		}
		full = filepath.Clean(full)
		c.outside.State = full
		if c.Open != nil && fetches(conf) {
			var warning string
			var err error
			c.Lists, c.Bundles, warning, err = c.Open(full)
			if err != nil {
				c.problem("state", "", "%s", err)
			} else if warning != "" {
				c.warn("state", "choose a folder that this program may write to: until then an older list could come back with a restart", "%s", warning)
			}
		}
	}
	if conf.Outbound != nil {
		for i, text := range conf.Outbound.Allow {
			if prefix, ok := c.prefix(config.Path("outbound", "allow", i), text); ok {
				c.outside.Allow = append(c.outside.Allow, prefix)
			}
		}
	}
}

// fetches reports whether anything in the configuration is fetched or has to be kept.
func fetches(conf *config.Config) bool {
	for _, t := range conf.TrustStores {
		if t != nil && (t.CABundle != nil && t.CABundle.URL != "" || t.Revocation != nil && len(t.Revocation.CRLs)+len(t.Revocation.DistributionPoints) > 0) {
			return true
		}
	}
	return false
}

// fetched returns the newest good bundle of a URL.
func (c *compiler) fetched(path string, b *config.Bundle) ([]byte, bool) {
	if !c.web(path, b.URL, "https") {
		return nil, false
	}
	c.outside.Fetches = append(c.outside.Fetches, Fetch{URL: b.URL, Every: time.Duration(b.Refresh), Bundle: true})
	if c.Bundles == nil {
		c.problem(path, "start the program, which fetches it", "%s was not fetched: this command connects to nowhere", b.URL)
		return nil, false
	}
	data, err := c.Bundles.Fetched(b.URL)
	if err != nil {
		c.problem(path, "see that the URL can be reached from here, or use a file", "there is no CA bundle of %s yet: %s", b.URL, err)
		return nil, false
	}
	c.sum(data)
	return data, true
}

// systemBundles are where Linux distributions and the BSDs keep the CAs that the machine trusts.
var systemBundles = []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem", "/usr/local/share/certs/ca-root-nss.crt"}

// systemBundle reads the CAs of this machine. Those that could not be used in any chain are left out: nobody here can mend
// them.
func (c *compiler) systemBundle(path string) ([]*x509.Certificate, bool) {
	places := systemBundles
	if file := os.Getenv("SSL_CERT_FILE"); file != "" {
		places = []string{file}
	}
	for _, file := range places {
		if _, err := os.Stat(file); err != nil {
			continue
		}
		data, ok := c.read(path, file)
		if !ok {
			return nil, false
		}
		certs, left, err := trust.LoadSystem(data)
		if err != nil {
			c.problem(path, "install the package ca-certificates again", "%s: %s", file, err)
			return nil, false
		}
		if left > 0 {
			c.warn(path, "", "%d of the %d CAs in %s cannot be used (too old, too weak or not CAs) and were left out", left, left+len(certs), file)
		}
		return certs, true
	}
	c.problem(path, "install the package ca-certificates, or set SSL_CERT_FILE", "this machine has no CA bundle in any of: %s", strings.Join(places, ", "))
	return nil, false
}

// list returns the files of a folder in order, hidden ones left out.
func (c *compiler) list(path, name string) ([]string, bool) {
	full, ok := c.expand(path, name)
	if !ok {
		return nil, false
	}
	if !filepath.IsAbs(full) {
		full = filepath.Join(c.Dir, full)
	}
	entries, err := os.ReadDir(full)
	if err != nil {
		c.problem(path, "check the path, which is relative to the configuration file's folder ("+c.Dir+"), and its permissions", "cannot read the folder %s: %s", name, cause(err))
		return nil, false
	}
	var files []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || e.IsDir() {
			continue
		}
		if info, err := os.Stat(filepath.Join(full, e.Name())); err == nil && info.IsDir() {
			continue // a link to a folder
		}
		files = append(files, filepath.Join(name, e.Name()))
	}
	c.sums[full] = FolderSum(entries)
	if len(files) == 0 {
		c.problem(path, "put CA certificates into it", "the folder %s holds no file", name)
		return nil, false
	}
	return files, true
}

// FolderSum stands for which files a folder holds, so that a new one is noticed.
func FolderSum(entries []os.DirEntry) Sum {
	var parts [][]byte
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			parts = append(parts, []byte(e.Name()))
		}
	}
	return sumOf(parts...)
}
