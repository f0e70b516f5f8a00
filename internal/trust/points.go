package trust

import (
	"crypto/x509"
	"net/url"
	"slices"
	"strings"

	"countersign/internal/reason"
)

// Point is a place where a verified certificate says that its issuer publishes revocation lists (RFC 5280 section
// 4.2.1.13), on a host that the operator allows.
type Point struct {
	URL string
	// Host is the host of URL as it was allowed.
	Host string
	// Issuer has to have signed what is found there.
	Issuer *x509.Certificate
}

// maxPoints is how many places of one certificate are looked at, and how long they may be.
const (
	maxPoints   = 4
	maxPointURL = 512
)

// Points are the places that the chain of v names. Only of a chain that leads to an anchor, and only on allowed hosts:
// anybody can make a certificate that names any address (threats C13).
func (s *Store) Points(v *Verdict) (points []Point) {
	if len(s.opts.Points) == 0 || !v.Accepted && v.Reason != reason.CRLMissing && v.Reason != reason.CRLStale {
		return nil
	}
	for i, c := range v.Chain[:max(len(v.Chain)-1, 0)] {
		for _, text := range c.CRLDistributionPoints[:min(len(c.CRLDistributionPoints), maxPoints)] {
			if len(text) > maxPointURL || !strings.HasPrefix(text, "http://") && !strings.HasPrefix(text, "https://") {
				continue
			}
			u, err := url.Parse(text)
			if err != nil || u.User != nil || u.Fragment != "" {
				continue
			}
			host := strings.ToLower(u.Host)
			if u.Port() == "" {
				host = strings.ToLower(u.Hostname())
			}
			if slices.Contains(s.opts.Points, host) {
				points = append(points, Point{text, host, v.Chain[i+1]})
			}
		}
	}
	return points
}
