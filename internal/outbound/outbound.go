// Package outbound is the one way out: HTTP and HTTPS requests to addresses that the configuration or verified
// certificates name. Whoever can choose such a URL must not be able to make this program reach what only it can reach
// (threats G07, C13), nor to keep it busy (C14). So the address is judged when it is connected to, after any DNS; there
// are no proxies, cookies or credentials; and time and bytes are bounded.
package outbound

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	defaultTimeout = 30 * time.Second
	defaultBytes   = 1 << 20

	connectTimeout = 10 * time.Second // of DNS and TCP and, once more, TLS
	maxHeaderBytes = 64 << 10
	maxURL         = 2048
	maxRedirects   = 3
	maxValidator   = 1024 // of an ETag
	maxText        = 256  // of what others put into our errors
)

// Options say what may be reached. The zero value reaches public addresses only.
type Options struct {
	// Allow lists networks that may be dialled although they are not public: private, loopback and link-local ones.
	// IPv4 networks are written as such; they hold for IPv4-mapped and NAT64 forms (RFC 6052) of their addresses too.
	Allow []netip.Prefix
	// Timeout is for one whole exchange with its redirects and body: 30 s by default.
	Timeout time.Duration
	// Roots verify servers; nil means the system's.
	Roots *x509.CertPool
	// Resolver finds addresses of names; nil means the system's.
	Resolver *net.Resolver

	dialing func(address string) // in tests: hears of each address that is connected to
}

// Client makes requests. It is made by New, keeps no connections, and may be used from any goroutine.
type Client struct {
	allow     atomic.Pointer[[]netip.Prefix]
	timeout   time.Duration
	transport *http.Transport
}

// New makes a Client.
func New(o Options) *Client {
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	c := &Client{timeout: o.Timeout}
	c.Allow(o.Allow)
	c.transport = &http.Transport{
		Proxy: nil, // not even from the environment
		DialContext: func(ctx context.Context, network, host string) (net.Conn, error) {
			d := &net.Dialer{Timeout: connectTimeout, Resolver: o.Resolver}
			d.SetMultipathTCP(false) // sandboxes that know TCP do not know MPTCP
			// Control runs for each address between socket and connect; so no answer of DNS after it can matter.
			d.Control = func(_, address string, _ syscall.RawConn) error {
				at, err := netip.ParseAddrPort(address)
				if err != nil {
					return err
				}
				if kind, no := refuse(at.Addr(), *c.allow.Load()); no {
					return &AddressError{Host: host, Address: at.Addr().String(), kind: kind}
				}
				if o.dialing != nil {
					o.dialing(address)
				}
				return nil
			}
			return d.DialContext(ctx, network, host)
		},
		TLSClientConfig:        &tls.Config{RootCAs: o.Roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    connectTimeout,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaderBytes,
		Protocols:              protocols,
	}
	return c
}

// Allow replaces the networks of Options.Allow. Exchanges under way keep the connections they have.
func (c *Client) Allow(networks []netip.Prefix) {
	networks = slices.Clone(networks)
	c.allow.Store(&networks)
}

// Request is one exchange: a GET, or a POST where there is a body.
type Request struct {
	// URL is absolute, http or https, without user info, at most 2048 bytes.
	URL string
	// Hosts, if not nil, are the only hosts that may be asked, as lower-case name:port, or as name for the scheme's own
	// port. An empty list allows none.
	Hosts []string
	// Body is sent as ContentType; a request with one is never redirected.
	Body                []byte
	ContentType, Accept string
	// MaxBytes bounds the body of the response: 1 MiB by default.
	MaxBytes int64
	// Timeout, if not zero, replaces that of the Client.
	Timeout time.Duration
	// ETag and LastModified of an earlier Response ask for the body only if it is another one (RFC 9110 section 13.1).
	ETag, LastModified string
}

// Response is an answer with status 200, or 304 where the Request was conditional.
type Response struct {
	NotModified        bool
	Body               []byte
	ETag, LastModified string // for the next Request
	Header             http.Header
}

// ContentType is the media type that the server gave, lower case and without parameters, bounded and escaped for
// messages; empty if there is none.
func (r *Response) ContentType() string {
	value := r.Header.Get("Content-Type")
	if kind, _, err := mime.ParseMediaType(value); err == nil {
		value = kind
	}
	return clean(value, 80)
}

// StatusError says that a server answered something else than 200.
type StatusError struct {
	Host   string
	Status int
}

func (e *StatusError) Error() string {
	text := fmt.Sprintf("%s: expected status 200, found %d", e.Host, e.Status)
	if name := http.StatusText(e.Status); name != "" {
		text += " " + name
	}
	return text + "; check the URL"
}

// Check says why a URL would be refused without asking for its address; nil if it would not. It is quick, and for deciding
// whether a URL of a certificate is worth remembering.
func Check(url string, hosts []string) error {
	_, _, err := parse(url, hosts)
	return err
}

// Do makes one exchange. Its errors name the host, never the rest of the URL, and hold no unbounded text of others. An
// address that may not be dialled is an *AddressError, a status an *StatusError; a deadline wraps
// context.DeadlineExceeded.
func (c *Client) Do(ctx context.Context, r *Request) (*Response, error) {
	u, host, err := parse(r.URL, r.Hosts)
	if err != nil {
		return nil, err
	}
	timeout := c.timeout
	if r.Timeout > 0 {
		timeout = r.Timeout
	}
	if end, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(end))
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for redirects := 0; ; redirects++ {
		response, err := c.ask(ctx, r, u)
		if err != nil {
			return nil, failure(ctx, host, timeout, err)
		}
		to, err := redirect(response, r, u)
		if err != nil || to == nil {
			var out *Response
			if err == nil {
				out, err = read(response, r, host)
			}
			response.Body.Close()
			if err != nil {
				return nil, failure(ctx, host, timeout, err)
			}
			return out, nil
		}
		response.Body.Close()
		if redirects == maxRedirects {
			return nil, fmt.Errorf("%s: expected at most %d redirects, found more; name the final URL", host, maxRedirects)
		}
		if u, host, err = parse(to.String(), r.Hosts); err != nil {
			return nil, fmt.Errorf("redirected: %w", err)
		}
	}
}

// parse checks a URL and returns it with its host and port.
func parse(raw string, hosts []string) (u *url.URL, host string, err error) {
	if len(raw) > maxURL {
		return nil, "", fmt.Errorf("URL: expected at most %d bytes, found %d", maxURL, len(raw))
	}
	u, err = url.Parse(raw)
	if err != nil {
		return nil, "", errors.New("URL: expected http://host/path or https://host/path, found what is not a URL; check its characters")
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return nil, "", fmt.Errorf("URL: expected scheme http or https, found %q; revocation data is fetched by HTTP only", clean(u.Scheme, 32))
	}
	name := strings.ToLower(u.Hostname())
	if u.Opaque != "" || name == "" {
		return nil, "", errors.New("URL: expected a host after http:// or https://, found none")
	}
	if u.User != nil {
		return nil, "", fmt.Errorf("URL of %s: expected no user or password, found one; nothing is sent that proves who asks", clean(name, maxText))
	}
	if name, err = canonical(name); err != nil {
		return nil, "", err
	}
	port := u.Port()
	standard := map[string]string{"http": "80", "https": "443"}[u.Scheme]
	if port == "" {
		port = standard
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return nil, "", fmt.Errorf("URL of %s: expected a port from 1 to 65535, found %q", name, clean(port, 32))
	}
	host = net.JoinHostPort(name, port)
	if hosts != nil && !slices.Contains(hosts, host) && (port != standard || !slices.Contains(hosts, name)) {
		next := host
		if port == standard {
			next = name
		}
		return nil, "", fmt.Errorf("%s: expected one of the hosts that are allowed, found another; add %q to them", host, next)
	}
	u.Host, u.Fragment, u.RawFragment = host, "", ""
	if u.Port() == standard {
		u.Host = strings.TrimSuffix(host, ":"+standard)
	}
	return u, host, nil
}

// canonical refuses what is neither an address nor a name of letters, digits, hyphens, underscores and dots. Numbers that
// some resolvers take for an address (127.1, 2130706433, 0x7f000001) are no names: the last label of a name is not a
// number, of which the WHATWG URL standard tells the forms.
func canonical(name string) (string, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		if a.Zone() != "" {
			return "", fmt.Errorf("URL: expected an IPv6 address without zone, found %q", clean(name, maxText))
		}
		return a.String(), nil
	}
	bad := len(name) > 253
	for _, c := range []byte(name) {
		bad = bad || (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.'
	}
	if bad || strings.HasPrefix(name, ".") || strings.Contains(name, "..") {
		return "", fmt.Errorf("URL: expected a host name of ASCII letters, digits, hyphens and dots, or an address, found %q", clean(name, 80))
	}
	last := strings.TrimSuffix(name, ".")
	last = last[strings.LastIndexByte(last, '.')+1:]
	if strings.HasPrefix(last, "0x") || strings.Trim(last, "0123456789") == "" {
		return "", fmt.Errorf("URL: expected a host name or an address in its full form, found %q; write IPv4 addresses as four decimal numbers", clean(name, 80))
	}
	return name, nil
}

func (c *Client) ask(ctx context.Context, r *Request, u *url.URL) (*http.Response, error) {
	method, body := http.MethodGet, io.Reader(nil)
	if r.Body != nil {
		method, body = http.MethodPost, bytes.NewReader(r.Body)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	set := func(name, value string) {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	set("User-Agent", "countersign")
	set("Accept-Encoding", "identity")
	set("Accept", r.Accept)
	set("If-None-Match", r.ETag)
	set("If-Modified-Since", r.LastModified)
	if r.Body != nil {
		set("Content-Type", r.ContentType)
	}
	return c.transport.RoundTrip(req) // not http.Client: no cookies, no Referer, no redirects but ours
}

// redirect returns where a response leads, nil if it is an answer.
func redirect(response *http.Response, r *Request, from *url.URL) (*url.URL, error) {
	switch response.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil
	}
	if r.Body != nil {
		return nil, errors.New("expected an answer to a POST, found a redirect; name the final URL")
	}
	to, err := from.Parse(response.Header.Get("Location"))
	if err != nil || response.Header.Get("Location") == "" {
		return nil, fmt.Errorf("expected a redirect with a Location, found status %d without one that is a URL", response.StatusCode)
	}
	sameName := strings.EqualFold(to.Hostname(), from.Hostname())
	upgrade := from.Scheme == "http" && to.Scheme == "https"
	if !sameName || !upgrade && (to.Scheme != from.Scheme || to.Port() != from.Port()) {
		return nil, fmt.Errorf("expected an answer or a redirect within the host, found one to %s://%s; name that URL if it may be asked",
			clean(to.Scheme, 16), clean(to.Host, 80))
	}
	return to, nil
}

func read(response *http.Response, r *Request, host string) (*Response, error) {
	conditional := r.ETag != "" || r.LastModified != ""
	out := &Response{Header: response.Header, ETag: validator(response, "Etag")}
	// A date says that content is the same only if it could not change again within its second, nor by a clock that is a
	// little off (RFC 9110 section 8.8.2.2).
	modified, merr := http.ParseTime(response.Header.Get("Last-Modified"))
	if date, err := http.ParseTime(response.Header.Get("Date")); err == nil && merr == nil && date.Sub(modified) >= time.Minute {
		out.LastModified = validator(response, "Last-Modified")
	}
	switch {
	case response.StatusCode == http.StatusNotModified && conditional:
		out.NotModified = true
		return out, nil
	case response.StatusCode != http.StatusOK:
		return nil, &StatusError{Host: host, Status: response.StatusCode}
	}
	if e := response.Header.Values("Content-Encoding"); len(e) > 0 && (len(e) > 1 || !strings.EqualFold(e[0], "identity")) {
		return nil, fmt.Errorf("expected a body as it is, found Content-Encoding %q, which was not asked for; let the server not compress it",
			clean(strings.Join(e, ", "), 80))
	}
	limit := r.MaxBytes
	if limit <= 0 {
		limit = defaultBytes
	}
	tooLarge := fmt.Errorf("expected a body of at most %d bytes, found more; raise the limit if the URL is right", limit)
	if response.ContentLength > limit {
		return nil, tooLarge
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, limit))
	if err != nil {
		return nil, err
	}
	if int64(len(body)) == limit {
		switch _, err := io.ReadFull(response.Body, make([]byte, 1)); {
		case err == nil:
			return nil, tooLarge
		case err != io.EOF:
			return nil, err
		}
	}
	out.Body = body
	return out, nil
}

// validator returns a header to send back with the next request; one that is absurdly long is not worth keeping.
func validator(response *http.Response, name string) string {
	if v := response.Header.Get(name); len(v) <= maxValidator {
		return v
	}
	return ""
}

// failure names the host once, and bounds texts that hold what the other side sent.
func failure(ctx context.Context, host string, timeout time.Duration, err error) error {
	var address *AddressError
	var status *StatusError
	var wait net.Error
	switch {
	case errors.As(err, &address):
		return address
	case errors.As(err, &status):
		return status
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%s: %w", host, context.Canceled)
	case ctx.Err() != nil:
		return fmt.Errorf("%s: expected a whole answer within %s, found none (%w); check that the server is up and quick",
			host, timeout.Round(time.Millisecond), context.DeadlineExceeded)
	case errors.As(err, &wait) && wait.Timeout():
		return fmt.Errorf("%s: expected a connection within %s, found none (%w); check that the server is up",
			host, connectTimeout, context.DeadlineExceeded)
	}
	return fmt.Errorf("%s: %s", host, clean(err.Error(), maxText))
}

// clean makes control, format and invalid characters visible, and cuts.
func clean(s string, limit int) string {
	var b strings.Builder
	for _, r := range s {
		q := string(r)
		if !strconv.IsPrint(r) || r == '\uFFFD' {
			q = strconv.QuoteToASCII(q)
			q = q[1 : len(q)-1]
		}
		if b.Len()+len(q) > limit {
			return b.String() + "…"
		}
		b.WriteString(q)
	}
	return b.String()
}
