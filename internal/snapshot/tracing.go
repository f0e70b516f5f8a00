package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"countersign/internal/config"
	"countersign/internal/tracing"
)

// Defaults of tracing, each with its reason in docs/defaults.md.
const (
	defaultSample = 0.01
	defaultTraces = "/v1/traces"
)

var parents = map[string]tracing.Parents{"trusted": tracing.Trusted, "ignore": tracing.Nobody, "honour_from_anybody": tracing.Everybody}

// tracing compiles which requests are traced and where their spans go.
func (c *compiler) tracing(path string, t *config.Tracing) *tracing.Settings {
	if t == nil {
		return nil
	}
	s := &tracing.Settings{Rate: defaultSample, Parents: parents[t.ParentSampled], Identity: t.Identity != "off"}
	if t.Sample != "" {
		rate, err := strconv.ParseFloat(t.Sample, 64)
		if err != nil || strings.Trim(t.Sample, "0123456789.") != "" || rate < 0 || rate > 1 {
			c.problem(config.Path(path, "sample"), "write a number such as 0.01, which is one request of a hundred", "%q is not a share from 0 to 1", t.Sample)
		}
		s.Rate = rate
	}
	if t.ParentSampled == "honour_from_anybody" {
		c.warn(config.Path(path, "parent_sampled"), "leave it out, so that the parents of trusted proxies alone are honoured",
			"every client can have each of its requests traced, and write into the traces of others")
	}
	at := config.Path(path, "otlp")
	u, err := url.Parse(t.OTLP)
	switch {
	case t.OTLP == "":
		return nil // reported as missing already
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		c.problem(at, "write https://host:4318, and credentials under authorization", "%q is not the URL of a collector", t.OTLP)
		return nil
	case u.Scheme == "http" && !loopback(u.Hostname()):
		c.problem(at, "write https://, or run a collector on this machine", "spans say who the clients are, and would go to %s unencrypted", u.Hostname())
	case u.Scheme == "http" && t.TLS != nil:
		c.problem(config.Path(path, "tls"), "write https:// in otlp, or remove tls", "tls has no meaning for http")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = defaultTraces
	}
	s.URL = u.String()
	id := s.URL
	if t.TLS != nil {
		if s.TLS = c.upstreamTLS(config.Path(path, "tls"), t.TLS); s.TLS == nil {
			return nil
		}
		id += fmt.Sprintf("|%q|%s", s.TLS.ServerName, s.TLS.Store.Version())
		for _, p := range s.TLS.Certificates {
			for _, der := range p.Certificate {
				sum := sha256.Sum256(der)
				id += "|" + hex.EncodeToString(sum[:])
			}
		}
	}
	if t.Authorization != nil {
		secret, ok := c.secret(config.Path(path, "authorization"), t.Authorization)
		if s.Authorization = strings.TrimRight(string(secret), "\r\n"); ok &&
			(s.Authorization == "" || strings.ContainsFunc(s.Authorization, func(r rune) bool { return r < ' ' || r >= 0x7f })) {
			c.problem(config.Path(path, "authorization"), "", "expected one line of text, such as Bearer and a token, found something else")
		}
		id += "|" + hash(s.Authorization)
	}
	s.ID = hash(id)
	return s
}
