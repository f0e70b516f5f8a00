// Package top shows in a terminal what a running instance does: rates, refusals by reason, latency, targets, conditions and
// the freshest refusals. All but the last comes from the metrics of its ops listener, so that it works wherever those can be
// reached; what an instance does not tell is shown as "-".
package top

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Bounds of what is read of an instance.
const (
	maxMetrics = 16 << 20
	timeout    = 5 * time.Second
)

// Source is where metrics are read. It is made by NewSource.
type Source struct {
	// Name is how the source is shown.
	Name   string
	url    string
	client *http.Client
	now    func() time.Time
}

// NewSource makes a source of an address, as the setting ops.listen has it (127.0.0.1:9901, unix:/path), or of a URL such
// as http://127.0.0.1:9901.
func NewSource(at string) (*Source, error) {
	dialer := &net.Dialer{Timeout: timeout}
	t := &http.Transport{DialContext: dialer.DialContext, DisableCompression: true, ResponseHeaderTimeout: timeout, MaxResponseHeaderBytes: 64 << 10, MaxIdleConns: 1}
	s := &Source{Name: at, client: &http.Client{Transport: t, Timeout: timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, now: time.Now}
	const expected = "expected http://HOST:PORT, HOST:PORT or unix:/PATH of the ops listener, found %q"
	if path, ok := strings.CutPrefix(at, "unix:"); ok {
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "unix", path) }
		s.url = "http://ops/metrics"
		return s, nil
	}
	if !strings.Contains(at, "://") {
		host, port, err := net.SplitHostPort(at)
		if err != nil || port == "" || port == "0" {
			return nil, fmt.Errorf(expected, at)
		}
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() { // it listens on all of them
			if host = "127.0.0.1"; ip != nil && ip.To4() == nil {
				host = "::1"
			}
		}
		at = "http://" + net.JoinHostPort(host, port)
		s.Name = at
	}
	u, err := url.Parse(at)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf(expected, at)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/metrics"
	}
	s.url = u.String()
	return s, nil
}

// Sample is what an instance told at one time.
type Sample struct {
	At       time.Time
	families map[string]*dto.MetricFamily
}

// Read asks the instance once.
func (s *Source) Read(ctx context.Context) (*Sample, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, fmt.Errorf("cannot reach %s: %w", s.Name, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: expected status 200, found %d; name the ops listener", s.Name, resp.StatusCode)
	}
	return Parse(io.LimitReader(resp.Body, maxMetrics), s.now())
}

// Parse reads metrics in Prometheus' text format.
func Parse(r io.Reader, at time.Time) (*Sample, error) {
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(r)
	if err != nil {
		return nil, fmt.Errorf("expected metrics in text format, found something else: %s", clean(err.Error(), 200))
	}
	return &Sample{at, families}, nil
}

// Once reads the instance twice, interval apart, and tells what it did meanwhile.
func (s *Source) Once(ctx context.Context, interval time.Duration) (*Status, error) {
	before, err := s.Read(ctx)
	if err != nil {
		return nil, err
	}
	select {
	case <-time.After(interval):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	now, err := s.Read(ctx)
	if err != nil {
		return nil, err
	}
	return Compare(s.Name, before, now), nil
}

// clean makes every text printable ASCII of one line and at most limit bytes: names come from configurations, and what the
// journal tells comes from clients.
func clean(s string, limit int) string {
	const digits = "0123456789abcdef"
	b := make([]byte, 0, min(len(s), limit)+4)
	for i := 0; i < len(s); i++ {
		if len(b) >= limit {
			return string(b[:limit-3]) + "..."
		}
		switch c := s[i]; {
		case c >= ' ' && c < 0x7f:
			b = append(b, c)
		default:
			b = append(b, '\\', 'x', digits[c>>4], digits[c&15])
		}
	}
	if len(b) > limit {
		return string(b[:limit-3]) + "..."
	}
	return string(b)
}
