package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"countersign/internal/reason"
)

// Options say how a host tells its backends who the client is.
type Options struct {
	// Dialects are rendered in this order.
	Dialects []Dialect
	// Chain adds the verified intermediates, without the leaf where the dialect keeps it apart and always without the
	// anchor, in the dialects that have a place for them: rfc9440, xfcc, traefik, gcp. A chain too large for [MaxHeaders]
	// is left out, in all of them (D11).
	Chain bool
	// Rename gives headers of dialect alb other names, as a listener attribute of AWS ALB does. The keys are those of
	// [ALBAttributes].
	Rename map[string]string
	// XFCCCert adds the leaf to xfcc, as Envoy's set_current_client_cert_details.cert does.
	XFCCCert bool
	// XFCCAppend puts our element behind those of a listed, authenticated proxy (Envoy's APPEND_FORWARD). Without it
	// ours is the only one (SANITIZE_SET).
	XFCCAppend bool
}

// Style is how a host renders identity. It is immutable. The zero value renders nothing.
type Style struct {
	dialects                    []Dialect
	chain, xfccCert, xfccAppend bool
	alb                         [len(albHeaders)]string // new names, empty where the default holds
	renamed                     []member                // the new names, folded
}

// NewStyle checks o and compiles it. The error names everything that is wrong.
func NewStyle(o Options) (*Style, error) {
	s := &Style{chain: o.Chain, xfccCert: o.XFCCCert, xfccAppend: o.XFCCAppend}
	var wrong []error
	for _, d := range o.Dialects {
		switch {
		case d == 0 || d >= dialects:
			wrong = append(wrong, fmt.Errorf("%s is not an identity dialect", d))
		case slices.Contains(s.dialects, d):
			wrong = append(wrong, fmt.Errorf("identity dialect %s is named twice", d))
		default:
			s.dialects = append(s.dialects, d)
		}
	}
	needs := func(what string, some ...Dialect) {
		for _, d := range some {
			if slices.Contains(s.dialects, d) {
				return
			}
		}
		wrong = append(wrong, fmt.Errorf("%s needs one of the identity dialects %v", what, some))
	}
	if o.Chain {
		needs("the chain", RFC9440, XFCC, Traefik, GCP)
	}
	if o.XFCCCert || o.XFCCAppend {
		needs("an option of xfcc", XFCC)
	}
	if len(o.Rename) > 0 {
		needs("renaming headers", ALB)
	}
	keys := make([]string, 0, len(o.Rename))
	for key := range o.Rename {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		if err := s.rename(key, o.Rename[key]); err != nil {
			wrong = append(wrong, fmt.Errorf("rename %s to %.80q: %w", key, o.Rename[key], err))
		}
	}
	if len(wrong) > 0 {
		return nil, errors.Join(wrong...)
	}
	return s, nil
}

func (s *Style) rename(key, name string) error {
	i := slices.Index(albAttributes[:], key)
	if i < 0 {
		return fmt.Errorf("there is no such header; there are %s", strings.Join(albAttributes[:], ", "))
	}
	folded := foldName(name)
	switch {
	case name == "":
		return errors.New("the name is empty; leave it out to keep the default name")
	case len(name) > maxHeaderName:
		return fmt.Errorf("the name is longer than %d characters", maxHeaderName)
	case strings.IndexFunc(name, notToken) >= 0:
		return errors.New("a header name has letters, digits and !#$%&'*+-.^`|~ only (RFC 9110 section 5.1)")
	case strings.Contains(name, "_"):
		return errors.New("many servers drop or rewrite header names with an underscore; use a hyphen")
	case strings.Trim(folded, "-") == "":
		return errors.New("the name has no letter or digit")
	case folded == foldName(albHeaders[i]):
		return nil // its own name
	}
	for d := RFC9440; d < dialects; d++ {
		if slices.ContainsFunc(dialectHeaders[d], func(h string) bool { return foldName(h) == folded }) {
			return fmt.Errorf("that is a header of identity dialect %s", d)
		}
	}
	for _, m := range takenNames {
		if m.matches([]byte(name)) {
			return errors.New("that header has a meaning of its own")
		}
	}
	if slices.ContainsFunc(s.renamed, func(m member) bool { return m.name == folded }) {
		return errors.New("another header has that name already")
	}
	s.alb[i] = name
	s.renamed = append(s.renamed, member{name: folded})
	return nil
}

const maxHeaderName = 128

func notToken(r rune) bool {
	return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
}

func foldName(name string) string {
	folded := []byte(name)
	for i, b := range folded {
		folded[i] = fold[b]
	}
	return string(folded)
}

// takenNames are the request headers that a certificate must not be put into, because we, HTTP, or nearly every
// application gives them another meaning. A name in here would also be removed from what every client sends.
var takenNames = func() (taken []member) {
	const names = `host connection keep-alive proxy* te trailer transfer-encoding upgrade http2-settings content-* via expect
		max-forwards forwarded x-forwarded* x-real-ip x-client-ip x-cluster-client-ip true-client-ip x-original-* cookie*
		set-cookie* authorization www-authenticate accept* if-* range user-agent referer origin date cache-control pragma
		from priority alt-* sec-* access-control-* traceparent tracestate baggage x-request-id x-amzn-* x-countersign*
		x-http-method* x-method-override x-rewrite-* soapaction grpc-* dpop early-data link last-event-id
		server status`
	for _, name := range strings.Fields(names) {
		stem, prefix := strings.CutSuffix(name, "*")
		taken = append(taken, member{stem, prefix})
	}
	return taken
}()

// Guard is the protected set of a whole configuration: that of [Protected], and the new names of every style, because a
// backend may be reached through hosts that rename headers and through others that do not (D01). Nil is the protected
// set alone.
type Guard struct{ renamed []member }

// NewGuard joins the new names of styles.
func NewGuard(styles []*Style) *Guard {
	g := new(Guard)
	for _, s := range styles {
		for _, m := range s.renamed {
			if !slices.Contains(g.renamed, m) {
				g.renamed = append(g.renamed, m)
			}
		}
	}
	return g
}

// Protected reports whether a header of this name must be removed from what any client sends. It allocates nothing.
func (g *Guard) Protected(name []byte) bool {
	if Protected(name) {
		return true
	}
	if g != nil {
		for i := range g.renamed {
			if g.renamed[i].matches(name) {
				return true
			}
		}
	}
	return false
}

// Append appends the client's identity as complete header lines, "Name: value\r\n", in the order of the dialects. It is
// called once per connection; for requests of a listed, authenticated proxy, whose elements of X-Forwarded-Client-Cert
// differ, once per request with these in prior. Everybody else's prior is the zero value.
//
// A client that is not present has no identity headers: a dialect's missing header is the statement, and whatever the
// client sent under its name was removed (D01). The exceptions are X-SSL-Client-Verify, which says so in words, and the
// chain of [PassthroughChain].
//
// All or nothing: over [MaxHeaders] the chain is left out, which dropped reports for the log; and if that does not help,
// dst is returned as it was, with a [reason.Refusal] of [reason.IdentityTooLarge]. No value is ever cut off (D11).
func (s *Style) Append(dst []byte, c Client, prior ForwardedCerts) (out []byte, dropped bool, err error) {
	if !s.xfccAppend {
		prior = ForwardedCerts{}
	}
	keeps := c.id != nil && !s.xfccAppend
	var last *rendered
	if keeps {
		if last = c.id.lines.Load(); last != nil && !last.style.same(s) {
			last = nil
		}
		if last != nil && last.text != "" {
			return append(dst, last.text...), false, nil
		}
	}
	r := rendering{style: s, id: c.id, prior: prior}
	if s.chain && c.id != nil {
		r.chain = c.id.chain[1 : len(c.id.chain)-1]
	}
	out, err = r.append(dst, c)
	if text := out[len(dst):]; err == nil && keeps && len(text) <= keepsLines*len(c.id.Leaf().Raw) {
		next := &rendered{style: s}
		if last != nil {
			next.text = string(text)
		}
		c.id.lines.Store(next)
	}
	if err != nil && len(r.chain) > 0 {
		r.chain, r.dropped = nil, true
		if out, err = r.append(dst, c); err == nil {
			return out, true, nil
		}
	}
	return out, false, err
}

// same reports whether s renders what o does. Hosts, and the same host of another configuration, have styles of their own.
func (s *Style) same(o *Style) bool {
	return s == o || s.chain == o.chain && s.xfccCert == o.xfccCert && s.xfccAppend == o.xfccAppend && s.alb == o.alb && slices.Equal(s.dialects, o.dialects)
}

// rendering is one identity on its way into headers.
type rendering struct {
	style   *Style
	id      *Identity
	chain   []*x509.Certificate // intermediates to show
	dropped bool                // there were some, and they were too large
	prior   ForwardedCerts
}

func (r *rendering) append(dst []byte, c Client) (_ []byte, err error) {
	out := dst
	for _, d := range r.style.dialects {
		switch {
		case d == XSSLClient:
			out = r.appendXSSLClient(out, c)
		case d == ALB && c.shown != nil && c.shown.forward:
			out = r.style.appendALBPassthrough(out, c.shown.certs)
		case c.id == nil:
			// No verified client, no identity (A39).
		case d == RFC9440:
			out = r.appendRFC9440(out)
		case d == ALB:
			out = r.appendALB(out)
		case d == XFCC:
			out, err = r.appendXFCC(out)
		case d == Traefik:
			out, err = r.appendTraefik(out)
		case d == GCP:
			out = r.appendGCP(out)
		case d == PSD2Headers:
			out = r.appendPSD2(out)
		}
		if err != nil {
			return dst, err
		}
		if n := len(out) - len(dst); n > MaxHeaders {
			return dst, tooLarge(fmt.Sprintf("%d bytes with dialect %s", n, d))
		}
	}
	return out, nil
}

// verdict is the client in one word and a reason, as nginx's $ssl_client_verify has it.
func (c Client) verdict() string {
	switch {
	case c.id != nil:
		return "SUCCESS"
	case c.shown == nil && (c.why == reason.Unset || c.why == reason.ClientCertMissing):
		return "NONE"
	case c.why == reason.Unset || c.why.Good():
		return "FAILED:not_verified"
	}
	return "FAILED:" + c.why.String()
}
