package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"countersign/internal/config"
	"countersign/internal/hostname"
	"countersign/internal/identity"
	"countersign/internal/policy"
	"countersign/internal/trust"
)

// Proxy is an entry of trusted_proxies: a proxy in front of us, known by its own client certificate, and what its word on
// its client is worth. It never changes.
type Proxy struct {
	// Ingest reads what the proxy asserts.
	Ingest identity.Ingest
	// Store is what the asserted certificate is verified against; it does not have to be the host's.
	Store *trust.Store
	// Own says that a request without an assertion is the proxy's own. Without it such a request is refused.
	Own bool
	// Append keeps the elements of X-Forwarded-Client-Cert that the proxy sent in front of ours.
	Append bool

	sums      [][sha256.Size]byte
	dns, uris []string
}

// Proxy returns the first entry that lists the certificate of client, which has to be a verified one; nil for none, which
// means that client speaks for nobody but itself.
func (h *Host) Proxy(client identity.Client) *Proxy {
	id, verified := client.Identity()
	if !verified {
		return nil
	}
	for _, p := range h.Proxies {
		if slices.Contains(p.sums, id.Fingerprint()) || slices.ContainsFunc(p.dns, id.HasDNS) || slices.ContainsFunc(p.uris, id.HasURI) {
			return p
		}
	}
	return nil
}

// proxies compiles the trusted proxies of an https host, whose client auth is compiled already.
func (c *compiler) proxies(path string, out *Host, h *config.Host) {
	if len(h.TrustedProxies) == 0 {
		return
	}
	path = config.Path(path, "trusted_proxies")
	if a := h.ClientAuth; a != nil && a.Mode != "" && out.Auth.Mode != policy.Request && out.Auth.Mode != policy.Require {
		c.problem(path, "use mode request or require, or remove trusted_proxies", "with mode %s no proxy's certificate is verified, so none could be told from a client", a.Mode)
	}
	seen := make(map[string]string) // item, in its one form, to where it stands
	for i, p := range h.TrustedProxies {
		at := config.Path(path, i)
		proxy := &Proxy{Store: c.store(config.Path(at, "trust_store"), p.TrustStore), Own: p.Missing == "proxy", Append: p.Append}
		if d, ok := identity.ParseDialect(p.Identity); ok {
			switch in, err := identity.NewIngest(d, p.Append); {
			case err == nil:
				proxy.Ingest = in
			case p.Append:
				c.problem(config.Path(at, "append"), "remove append, or use identity: xfcc", "append has no meaning with identity %s", p.Identity)
			default:
				c.problem(config.Path(at, "identity"), "use rfc9440 or xfcc", "%s", err)
			}
		}
		if p.Append && !slices.Contains(h.IdentityHeaders, "xfcc") {
			c.problem(config.Path(at, "append"), "add xfcc to identity_headers, or remove append", "the host sends no X-Forwarded-Client-Cert that could be appended to")
		}
		if p.Match != nil {
			c.listed(config.Path(at, "match"), proxy, p.Match, seen)
		}
		out.Proxies = append(out.Proxies, proxy)
	}
}

// listed compiles which certificates an entry lists.
func (c *compiler) listed(path string, p *Proxy, m *config.ProxyMatch, seen map[string]string) {
	if len(m.SHA256) == 0 && len(m.SANs) == 0 {
		c.problem(path, "add sha256: [...] or sans: [...]", "no certificate is listed")
	}
	once := func(at, item string) {
		if first, twice := seen[item]; twice {
			c.problem(at, "remove one", "%s stands at %s already", item, first)
			return
		}
		seen[item] = at
	}
	for i, text := range m.SHA256 {
		at := config.Path(path, "sha256", i)
		sum, err := parseSum(text)
		if err != nil {
			c.problem(at, "openssl x509 -in proxy.pem -noout -fingerprint -sha256 prints it", "%s", err)
			continue
		}
		once(at, hex.EncodeToString(sum[:]))
		p.sums = append(p.sums, sum)
	}
	for i, text := range m.SANs {
		at := config.Path(path, "sans", i)
		kind, name, err := parseSAN(text)
		if err != nil {
			c.problem(at, `write "dns:edge1.cdn.test" or "uri:spiffe://corp.test/edge"`, "%s", err)
			continue
		}
		once(at, kind+":"+name)
		if kind == "dns" {
			p.dns = append(p.dns, name)
		} else {
			p.uris = append(p.uris, name)
		}
	}
}

// parseSum reads a whole SHA-256 as tools print it: hexadecimal in either case, with a colon between all octets or none. A
// part of one, or a hash of another kind, is an error: it would never fit, or fit too much (B26).
func parseSum(text string) (sum [sha256.Size]byte, err error) {
	digits := text
	if len(text) == 3*len(sum)-1 {
		for i := 2; i < len(text); i += 3 {
			if text[i] != ':' {
				return sum, fmt.Errorf("%.100q is not a SHA-256 with a colon between all octets", text)
			}
		}
		digits = strings.ReplaceAll(text, ":", "")
	}
	if n, err := hex.Decode(sum[:], []byte(digits[:min(len(digits), 2*len(sum))])); err != nil || n != len(sum) || len(digits) != 2*len(sum) {
		return sum, fmt.Errorf("%.100q is not a SHA-256, which has 64 hexadecimal digits", text)
	}
	return sum, nil
}

// parseSAN reads a name with its type, in the one form that names are compared in.
func parseSAN(text string) (kind, name string, err error) {
	kind, name, _ = strings.Cut(text, ":")
	switch {
	case strings.Contains(name, "*"):
		return "", "", fmt.Errorf("%.100q has a wildcard, and proxies are listed one by one", text)
	case kind == "dns":
		canonical, err := hostname.AppendCanonicalSNI(nil, []byte(name))
		if err != nil {
			return "", "", fmt.Errorf("%.100q: %w", text, err)
		}
		return kind, string(canonical), nil
	case kind == "uri":
		if u, err := url.Parse(name); err != nil || u.Scheme == "" || u.Host == "" && u.Opaque == "" {
			return "", "", fmt.Errorf("%.100q does not name a URI", text)
		}
		return kind, name, nil
	}
	return "", "", fmt.Errorf("%.100q does not begin with dns: or uri: as it has to", text)
}
