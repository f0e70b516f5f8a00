package edit

import (
	"bytes"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"countersign/internal/hostname"
	"countersign/internal/message"
	"countersign/internal/reason"
)

// Redirect sends clients to another URL, which is made of the request's own by placeholders as AWS ALB has them.
type Redirect struct {
	// Status is that of the answer.
	Status int

	secure, insecure bool // which scheme; neither for the request's
	host             []part
	port             []part
	path, query      []part
}

// RedirectOptions are a redirect as the configuration has it; empty means as in the request.
type RedirectOptions struct {
	Scheme, Host, Port, Path, Query string
	Status                          int
	// DropQuery leaves the query out.
	DropQuery bool
	// FromTLS says that the requests came by TLS, Downgrade that they may be sent to a place without it.
	FromTLS, Downgrade bool
}

// MaxLocation is the longest URL that clients are sent to, as AWS ALB has it.
const MaxLocation = 8 << 10

const defaultRedirect = http.StatusFound

var urlPlaceholders = map[string]placeholder{"protocol": scheme, "host": host, "port": port, "path": path, "query": query}

// NewRedirect compiles a redirect. Problems are reported under the keys of the configuration.
func NewRedirect(o RedirectOptions, report Report) *Redirect {
	r := &Redirect{Status: o.Status}
	if r.Status == 0 {
		r.Status = defaultRedirect
	}
	if !slices.Contains([]int{301, 302, 303, 307, 308}, r.Status) {
		report("status", "use one of 301, 302, 303, 307, 308", "%d is no status of a redirect", r.Status)
	}
	switch o.Scheme {
	case "", "#{protocol}":
	case "https":
		r.secure = true
	case "http":
		r.insecure = true
		if o.FromTLS && !o.Downgrade {
			report("scheme", "use https, or add allow_downgrade_to_http_insecure: true", "clients that came by TLS would be sent to a place without it")
		}
	default:
		report("scheme", "use https, http or #{protocol}", "%q is no scheme", bounded(o.Scheme))
	}
	if o.Downgrade && !(o.FromTLS && r.insecure) {
		report("allow_downgrade_to_http_insecure", "remove it", "the redirect does not lead from https to http")
	}
	// part is nil where it has reported something.
	part := func(key, text, otherwise string, allowed ...placeholder) []part {
		if text == "" {
			text = otherwise
		}
		const next = "remove it, or use one that is expected"
		known := make(map[string]placeholder)
		for name, kind := range urlPlaceholders {
			if slices.Contains(allowed, kind) {
				known[name] = kind
			}
		}
		expected := names(known, "#{")
		for _, p := range names(urlPlaceholders, "#{") {
			if strings.Contains(text, p) && !slices.Contains(expected, p) {
				report(key, next, "%s has no place in %s; expected %s", p, key, strings.Join(expected, ", "))
				return nil
			}
		}
		parts, err := parse(text, '#', known)
		if err != nil {
			report(key, next, "%s", err)
			return nil
		}
		return parts
	}
	r.host = part("host", o.Host, "#{host}", host)
	if o.Host != "" && r.host != nil {
		example := strings.ReplaceAll(o.Host, "#{host}", "x.test")
		if name, port, err := hostname.AppendCanonicalHost(nil, []byte(example)); err != nil || port != 0 || string(name) != example {
			report("host", "write a name in lower case, without port", "%q is no host that clients could be sent to", bounded(o.Host))
		}
	}
	if o.Port != "" {
		if r.port = part("port", o.Port, "", port); len(r.port) > 1 {
			report("port", "write a number or #{port}", "%q is no port", bounded(o.Port))
		} else if r.port != nil && r.port[0].kind == literal {
			if n, err := strconv.ParseUint(r.port[0].text, 10, 16); err != nil || n == 0 || r.port[0].text[0] == '0' {
				report("port", "write a number from 1 to 65535, or #{port}", "%q is no port", bounded(o.Port))
			}
		}
	}
	r.path = part("path", o.Path, "/#{path}", host, port, path)
	if len(r.path) > 0 && (r.path[0].kind != literal || r.path[0].text[0] != '/') {
		report("path", "write /#{path} or /new/#{path}", "%q does not begin with /", bounded(o.Path))
	}
	r.query = part("query", o.Query, "#{query}", scheme, host, port, path, query)
	if o.DropQuery {
		if r.query = nil; o.Query != "" {
			report("drop_query", "remove one of them", "both query and drop_query are set")
		}
	}
	checkURL("path", r.path, report)
	checkURL("query", r.query, report)
	same := func(text string, defaults ...string) bool { return text == "" || slices.Contains(defaults, text) }
	if same(o.Scheme, "#{protocol}") && same(o.Host, "#{host}") && same(o.Port, "#{port}") && same(o.Path, "/#{path}") {
		report("", "change scheme, host, port or path", "clients would be sent where they are, for ever")
	}
	return r
}

// checkURL reports a literal that could not stand in a URL.
func checkURL(key string, parts []part, report Report) {
	for _, p := range parts {
		for i := range len(p.text) {
			if c := p.text[i]; !inPath(c) && !(key == "query" && c == '?') || c == '%' && !escaped(p.text, i) {
				report(key, "percent-encode it", "%q has a character that a URL cannot have there", bounded(p.text))
				break
			}
		}
	}
}

// Location appends the URL. A reason means that there is none: it would be too long, or the one that was asked for.
func (r *Redirect) Location(dst []byte, req *message.Request, f *Facts) ([]byte, reason.Reason) {
	start := len(dst)
	secure := r.secure || !r.insecure && f.Secure
	if secure {
		dst = append(dst, "https://"...)
	} else {
		dst = append(dst, "http://"...)
	}
	nameStart := len(dst)
	dst = r.append(dst, r.host, req, f, false)
	elsewhere := secure != f.Secure || !bytes.Equal(dst[nameStart:], f.Host)
	number := f.Port
	switch {
	case r.port != nil && r.port[0].kind == literal:
		n, _ := strconv.ParseUint(r.port[0].text, 10, 16) // seen by NewRedirect
		number = uint16(n)
	case r.port == nil && secure != f.Secure: // another scheme's server listens elsewhere
		number = standardPort(secure)
	}
	elsewhere = elsewhere || number != f.Port
	if number != standardPort(secure) {
		dst = append(dst, ':')
		dst = strconv.AppendUint(dst, uint64(number), 10)
	}
	at := len(dst)
	dst = r.append(dst, r.path, req, f, false)
	elsewhere = elsewhere || string(dst[at+1:]) != string(pathOf(req))
	at = len(dst)
	dst = r.append(append(dst, '?'), r.query, req, f, true)
	elsewhere = elsewhere || string(dst[at+1:]) != string(req.Query)
	if len(dst) == at+1 {
		dst = dst[:at]
	}
	switch {
	case len(dst)-start > MaxLocation:
		return dst[:start], reason.RedirectTooLong
	case !elsewhere:
		return dst[:start], reason.RedirectLoop
	}
	return dst, reason.Unset
}

func standardPort(secure bool) uint16 {
	if secure {
		return 443
	}
	return 80
}

// pathOf is the path of a request without its leading slash, empty for "*".
func pathOf(req *message.Request) []byte {
	if len(req.Path) == 0 || req.Path[0] != '/' {
		return nil
	}
	return req.Path[1:]
}

// append appends parts, with what is of the request encoded.
func (r *Redirect) append(dst []byte, parts []part, req *message.Request, f *Facts, isQuery bool) []byte {
	for i := range parts {
		if len(dst) > 2*MaxLocation {
			return dst // too long already
		}
		switch p := &parts[i]; p.kind {
		case literal:
			dst = append(dst, p.text...)
		case scheme:
			dst = append(dst, f.scheme()...)
		case host:
			dst = append(dst, f.Host...)
		case port:
			dst = strconv.AppendUint(dst, uint64(f.Port), 10)
		case path:
			dst = appendEncoded(dst, pathOf(req), false)
		case query:
			dst = appendEncoded(dst, req.Query, true)
		}
	}
	return dst
}

// appendEncoded appends what a client sent, percent-encoding each octet that has no place in a URL: line ends, spaces,
// quotation marks, backslashes, octets beyond ASCII, and a "%" that begins no escape.
func appendEncoded(dst, raw []byte, isQuery bool) []byte {
	const digits = "0123456789ABCDEF"
	for i, c := range raw {
		switch {
		case c == '%' && !escaped(raw, i), !inPath(c) && !(isQuery && c == '?'):
			dst = append(dst, '%', digits[c>>4], digits[c&15])
		default:
			dst = append(dst, c)
		}
	}
	return dst
}

// inPath reports whether c may stand in a path (RFC 3986 section 3.3), or is a bracket, which browsers send in queries.
func inPath(c byte) bool {
	return isAlphanumeric(c) || strings.IndexByte("-._~!$&'()*+,;=:@/%[]", c) >= 0
}

func escaped[T string | []byte](text T, i int) bool {
	return i+2 < len(text) && unhex(text[i+1]) < 16 && unhex(text[i+2]) < 16
}

// encodeParameter percent-encodes the name or value of a parameter.
func encodeParameter(s string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(s) {
		if isAlphanumeric(c) || strings.IndexByte("-._~", c) >= 0 {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		}
	}
	return b.String()
}

func sorted(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
