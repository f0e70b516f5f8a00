package snapshot

import (
	"crypto/tls"
	"slices"
	"strings"

	"countersign/internal/config"
)

// The TLS 1.2 suites of the policies. crypto/tls orders them itself; TLS 1.3 suites are fixed.
var (
	modernCiphers = []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	}
	compatibleCiphers = append(slices.Clone(modernCiphers),
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA)
)

var groups = map[string]tls.CurveID{
	"X25519MLKEM768": tls.X25519MLKEM768, "SecP256r1MLKEM768": tls.SecP256r1MLKEM768, "SecP384r1MLKEM1024": tls.SecP384r1MLKEM1024,
	"X25519": tls.X25519, "P-256": tls.CurveP256, "P-384": tls.CurveP384, "P-521": tls.CurveP521,
}

// negotiation compiles a listener's tls section; nil means every default.
func (c *compiler) negotiation(path string, t *config.TLS) TLS {
	out := TLS{MinVersion: tls.VersionTLS12, Ciphers: modernCiphers}
	if t == nil {
		return out
	}
	switch t.Policy {
	case "tls13":
		out = TLS{MinVersion: tls.VersionTLS13}
	case "compatible":
		out.Ciphers = compatibleCiphers
	}
	switch t.MinVersion {
	case "1.2":
		if t.Policy == "tls13" {
			c.problem(config.Path(path, "min_version"), "remove min_version, or use policy modern",
				"min_version 1.2 contradicts policy tls13, which is TLS 1.3 only")
		}
	case "1.3":
		out.MinVersion, out.Ciphers = tls.VersionTLS13, nil
	}
	if len(t.Ciphers) > 0 {
		out.Ciphers = nil
		for i, name := range t.Ciphers {
			if id, ok := c.cipher(config.Path(path, "ciphers", i), name); ok {
				out.Ciphers = append(out.Ciphers, id)
			}
		}
		if out.MinVersion == tls.VersionTLS13 {
			c.problem(config.Path(path, "ciphers"), "remove ciphers, or allow TLS 1.2", "ciphers concern TLS 1.2 only, and this listener speaks TLS 1.3 only")
		}
	}
	for i, name := range t.Groups {
		id, ok := groups[name]
		if !ok {
			c.problem(config.Path(path, "groups", i), suggestion(name, keys(groups)), "no key exchange group is named %q; expected one of: %s", name, strings.Join(keys(groups), ", "))
			continue
		}
		out.Groups = append(out.Groups, id)
	}
	return out
}

// alpn compiles the versions of HTTP that a listener offers.
func (c *compiler) alpn(path string, l *Listener, t *config.TLS) {
	given := t != nil && len(t.ALPN) > 0
	if l.Protocol != HTTPS {
		if given {
			c.problem(path, "remove alpn, or use protocol https", "alpn has no meaning on a listener of protocol %s", l.Protocol)
		}
		return
	}
	l.TLS.ALPN = []string{"h2", "http/1.1", "http/1.0"}
	if !given {
		return
	}
	l.TLS.ALPN = nil
	for i, name := range t.ALPN {
		if slices.Contains(l.TLS.ALPN, name) {
			c.problem(config.Path(path, i), "remove one of them", "alpn names %s twice", name)
			continue
		}
		if l.TLS.ALPN = append(l.TLS.ALPN, name); name == "http/1.1" {
			l.TLS.ALPN = append(l.TLS.ALPN, "http/1.0") // what speaks 1.0 is served by 1.1
		}
	}
}

// cipher finds a TLS 1.2 suite by its IANA name among those that this program is willing to speak.
func (c *compiler) cipher(path, name string) (uint16, bool) {
	for _, s := range tls.CipherSuites() {
		if s.Name == name {
			if slices.Contains(s.SupportedVersions, uint16(tls.VersionTLS12)) {
				return s.ID, true
			}
			c.problem(path, "remove it: TLS 1.3 suites are always on", "%s is a TLS 1.3 suite, and those cannot be chosen", name)
			return 0, false
		}
	}
	var known []string
	for _, s := range tls.CipherSuites() {
		if slices.Contains(s.SupportedVersions, uint16(tls.VersionTLS12)) {
			known = append(known, s.Name)
		}
	}
	for _, s := range tls.InsecureCipherSuites() {
		if s.Name == name {
			c.problem(path, "choose one of: "+strings.Join(known, ", "), "%s is broken or weak and is not spoken", name)
			return 0, false
		}
	}
	c.problem(path, suggestion(name, known), "no TLS 1.2 cipher suite is named %q (IANA names, such as %s)", name, known[0])
	return 0, false
}

func suggestion(name string, among []string) string {
	if s := config.Suggest(name, among); s != "" {
		return "did you mean " + s + "?"
	}
	return ""
}

func keys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
