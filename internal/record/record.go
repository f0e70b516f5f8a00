// Package record owns the one record of a connection or request, and what is made of it: a log line and the metrics.
// Writing never blocks the data plane and never grows without bound: what does not fit is dropped and counted.
package record

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"strconv"
	"sync/atomic"
	"time"

	"countersign/internal/identity"
	"countersign/internal/message"
	"countersign/internal/reason"
	"countersign/internal/trust"
)

// Kind is what a record of a connection is about.
type Kind uint8

// The kinds. The zero value is the end of a handshake.
const (
	Begun  Kind = iota // the handshake
	Tunnel             // a connection whose bytes were moved, at its end
	Ended              // a connection that was ended between requests because its client is not trusted any more
)

// Handshake is the record of a connection: of its handshake, or of its end where it has no requests.
type Handshake struct {
	Kind     Kind
	Ref      string
	Listener string
	Client   string // address and port
	Local    string // address and port that the client connected to; empty for unknown
	SNI      string
	Host     string
	Name     string // of Host, canonical, that the client asked for; empty for none
	Policy   string // mode of the host
	Reason   reason.Reason
	Verdict  reason.Reason // on the client's certificate, where it was not accepted and the client was let in all the same
	Proven   bool          // the client holds the key of the certificate at fault
	Version  string
	Cipher   string
	Group    string
	ALPN     string
	Resumed  bool
	// Shadow is why a stricter setting would have refused the client, which is not enforced; Unset for none.
	Shadow      reason.Reason
	ShadowFound string
	// Lenient names the leniency of accept.eku that let the client in; empty for none.
	Lenient    string
	Duration   time.Duration
	Store      string // trust store and the version of its content
	StoreVer   string
	Identity   identity.Client
	Leaf       *x509.Certificate // the client's own, of a client that was refused
	At         *x509.Certificate // the certificate at fault
	Depth      int
	Expected   string
	Found      string
	Detail     string // the cause, for the operator
	TargetAddr string // passthrough
	Upstream   string
	// Presented is what the client sent, its own certificate first.
	Presented []*x509.Certificate
	// Chain is the chain that came closest, Tried those that were tried, and Evidence the lists and answers that counted for
	// Chain; of a client that was refused only.
	Chain    []*x509.Certificate
	Tried    []trust.Tried
	Evidence []trust.Evidence
	BytesIn  int64
	BytesOut int64
}

// Fail notes err as the end of the connection; a *reason.Refusal brings its own reason.
func (h *Handshake) Fail(why reason.Reason, err error) {
	h.Reason = why
	if ref, ok := err.(*reason.Refusal); ok {
		h.Reason, h.Expected, h.Found, err = ref.Reason, ref.Expected, ref.Found, ref.Cause
	}
	if err != nil {
		h.Detail = err.Error()
	}
}

// Conn is what the requests of a connection share, for the formats that do not take a Fragment. It is made once per
// connection and not changed after that. Empty fields are unknown.
type Conn struct {
	Client      string // address and port
	Local       string // address and port that the client connected to
	Secure      bool   // TLS ends here
	SNI         string
	Version     string // as crypto/tls names it: TLS 1.3
	Cipher      string // as crypto/tls names it
	Resumed     bool
	Certificate string // name of the server certificate, as CertificateName makes it
}

// CertificateName names a server certificate: sha256: and its fingerprint in hexadecimal.
func CertificateName(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Request is the record of one request. Its byte slices keep their storage from request to request, and Conn stays. In
// what follows Status, zero means unknown: formats that have a field for it show "-" or what comes nearest.
type Request struct {
	Serial     uint64
	Start      time.Time
	Method     []byte
	Host       []byte
	Path       []byte
	Status     int
	Reason     reason.Reason
	Upstream   string
	Target     string
	Reused     bool          // of the connection to the target
	Shadow     reason.Reason // why a stricter setting would have refused it, which is not enforced
	Retried    bool          // a used connection turned out to be closed, and another was tried
	BytesIn    int64         // request body
	BytesOut   int64         // response body
	TargetTime time.Duration // until the target's response head
	Expected   string
	Found      string
	Detail     string

	// Conn is the connection the request came on; nil for unknown.
	Conn *Conn
	// Client is the client's address and port where it is not Conn's, by the word of a proxy; empty for none.
	Client string
	// User is the subject of the verified client, as identity.Identity.Subject renders it; empty for none.
	User string
	// Major and Minor are the HTTP version of the request; Major 0 means 1 when a method is known.
	Major, Minor uint8
	// GRPC and WebSocket say what else than plain HTTP the exchange was.
	GRPC, WebSocket bool
	// Query, Agent, Referer and Trace are what KeepMore copies; Trace is X-Amzn-Trace-Id.
	Query, Agent, Referer, Trace []byte
	// HeadIn and HeadOut are the bytes of the request's and the response's head.
	HeadIn, HeadOut int64
	// SentTime is how long after Start the request went to the target, AnswerTime when the answer began to go to the client.
	SentTime, AnswerTime time.Duration
	// TargetStatus is what the target answered. When it is 0 and TargetTime is not, it is Status.
	TargetStatus int
	// Rule is the number of the route that was taken, from 1 in the order of the configuration, or DefaultRule or FailedRule.
	Rule int
	// Actions are what was done, in ALB's words, joined by commas (forward, redirect, fixed-response). Empty: concluded from
	// the other fields.
	Actions string
	// RedirectURL is where the client was sent.
	RedirectURL string
	// RewrittenHost and RewrittenURI are what the target was asked for in place of Host and Path.
	RewrittenHost, RewrittenURI []byte
	// Classification and ClassificationReason say how the request deviates from RFC 9112, in ALB's words; empty for one that
	// does not. Classify sets them.
	Classification, ClassificationReason string
	// Presented is what the client sent in its handshake. It is set for bad ends, where Listener.Keeps says that it is needed.
	Presented []*x509.Certificate
}

// Classify notes how the request deviates from RFC 9112.
func (r *Request) Classify(why message.ClassReason) {
	if why != message.NoDeviation {
		r.Classification, r.ClassificationReason = why.Class().String(), why.String()
	}
}

// What Request.Rule may be besides a number.
const (
	FailedRule  = -1 // the rules could not be evaluated
	DefaultRule = -2 // the route that takes what no other does
)

// Begin empties r for the next request.
func (r *Request) Begin(serial uint64, start time.Time) {
	*r = Request{Serial: serial, Start: start, Method: r.Method[:0], Host: r.Host[:0], Path: r.Path[:0], Conn: r.Conn,
		Query: r.Query[:0], Agent: r.Agent[:0], Referer: r.Referer[:0], Trace: r.Trace[:0],
		RewrittenHost: r.RewrittenHost[:0], RewrittenURI: r.RewrittenURI[:0]}
}

// The longest texts of a record, in bytes, escapes included, so that no line is longer than maxLine.
const (
	maxMethod = 32
	maxPath   = 512
	maxHost   = 253
	maxText   = 256
	maxName   = 192  // of a certificate
	maxLine   = 4096 // TestLongestLine
)

// Keep copies what the head says, cut to bounded lengths, because the head's buffer is used again while the body streams.
func (r *Request) Keep(method, host, path []byte) {
	r.Method = append(r.Method[:0], method[:min(len(method), maxMethod)]...)
	r.Host = append(r.Host[:0], host[:min(len(host), maxHost)]...)
	r.Path = append(r.Path[:0], path[:min(len(path), maxPath)]...)
}

// KeepMore copies from a whole head what only some formats show, cut to bounded lengths. Listener.More says whether it is
// needed; it goes through all fields.
func (r *Request) KeepMore(req *message.Request) {
	r.Minor, r.WebSocket = req.Minor, req.WebSocketKey != nil
	r.Path = append(r.Path[:0], req.Path[:min(len(req.Path), maxURL)]...)
	if r.Query = r.Query[:0]; req.HasQuery {
		r.Query = append(append(r.Query, '?'), req.Query[:min(len(req.Query), maxURL)]...)
	}
	for i := range req.Fields {
		f := &req.Fields[i]
		switch {
		case message.EqualFold(f.Name, "user-agent"):
			r.Agent = append(r.Agent[:0], f.Value[:min(len(f.Value), maxAgent)]...)
		case message.EqualFold(f.Name, "referer"):
			r.Referer = append(r.Referer[:0], f.Value[:min(len(f.Value), maxAgent)]...)
		case message.EqualFold(f.Name, "x-amzn-trace-id"):
			r.Trace = append(r.Trace[:0], f.Value[:min(len(f.Value), maxTrace)]...)
		case message.EqualFold(f.Name, "content-type"):
			r.GRPC = len(f.Value) >= len(grpc) && message.EqualFold(f.Value[:len(grpc)], grpc)
		}
	}
}

const grpc = "application/grpc"

// Fail notes err as the end of the request; a *reason.Refusal brings its own reason.
func (r *Request) Fail(why reason.Reason, err error) {
	r.Reason = why
	if ref, ok := err.(*reason.Refusal); ok {
		r.Reason, r.Expected, r.Found, err = ref.Reason, ref.Expected, ref.Found, ref.Cause
	}
	if err != nil {
		r.Detail = err.Error()
	}
}

const hexDigits = "0123456789abcdef"

// appendText appends s as a JSON string of printable ASCII, cut to limit bytes, escapes included: what strangers sent can
// neither break the line nor the terminal it is read on.
func appendText[T string | []byte](b []byte, s T, limit int) []byte {
	b = append(b, '"')
	end := len(b) + limit
	for i := 0; i < len(s); i++ {
		from := i
		for i < len(s) && inText[s[i]] {
			i++
		}
		if room := end - len(b); i-from > room {
			b = append(b, s[from:from+room]...)
			b = append(b, "..."...)
			break
		}
		if b = append(b, s[from:i]...); i == len(s) {
			break
		}
		last := len(b)
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c >= 0x80:
			b = append(b, `\\x`...)
			b = append(b, hexDigits[c>>4], hexDigits[c&15])
		default:
			b = append(b, `\u00`...)
			b = append(b, hexDigits[c>>4], hexDigits[c&15])
		}
		if len(b) > end {
			b = append(b[:last], "..."...)
			break
		}
	}
	return append(b, '"')
}

// inText are the bytes that stand for themselves in a JSON string of ours, and inPlain those in a field of the other formats.
var inText, inPlain = func() (text, plain [256]bool) {
	for c := ' '; c < 0x7f; c++ {
		text[c] = c != '"' && c != '\\'
		plain[c] = text[c] && c != ' '
	}
	return
}()

func key(b []byte, k string) []byte {
	b = append(b, ',', '"')
	b = append(b, k...)
	return append(b, '"', ':')
}

func text(b []byte, k, v string) []byte {
	if v == "" {
		return b
	}
	return appendText(key(b, k), v, maxText)
}

func number(b []byte, k string, v int64) []byte { return strconv.AppendInt(key(b, k), v, 10) }

// lastSecond is the second that was printed last, of which busy machines print many lines.
var lastSecond atomic.Pointer[second]

type second struct {
	unix int64
	text []byte // up to the point behind it
}

// appendTime appends t in UTC with microseconds.
func appendTime(b []byte, t time.Time) []byte {
	s := lastSecond.Load()
	if unix := t.Unix(); s == nil || s.unix != unix {
		// Package time has a way of its own for RFC 3339 with whole seconds, which takes a third of the time of any other layout.
		s = &second{unix, t.UTC().AppendFormat(nil, time.RFC3339)}
		s.text[len(s.text)-1] = '.' // in place of Z
		lastSecond.Store(s)
	}
	b = append(b, s.text...)
	micros := t.Nanosecond() / 1000
	for unit := 100_000; unit > 0; unit /= 10 {
		b = append(b, byte('0'+micros/unit%10))
	}
	return append(b, 'Z')
}

func begin(b []byte, now time.Time, kind, ref string) []byte {
	b = append(b, `{"time":"`...)
	b = appendTime(b, now)
	b = append(b, `","kind":"`...)
	b = append(b, kind...)
	b = append(b, `","ref":"`...)
	b = append(b, ref...)
	return append(b, '"')
}

func end(b []byte, why reason.Reason, expected, found, detail string) []byte {
	row := why.Row()
	b = append(key(b, "reason"), '"')
	b = append(b, row.Code...)
	b = append(b, '"')
	if why.Good() {
		return append(b, '}', '\n')
	}
	b = text(b, "stage", string(row.Stage))
	b = text(b, "fault", string(row.Fault))
	b = text(b, "sentence", row.Sentence)
	b = text(b, "expected", expected)
	b = text(b, "found", found)
	b = text(b, "detail", detail)
	b = text(b, "next", row.Next)
	return append(b, '}', '\n')
}

// Fragment renders what every request line of a connection repeats; it is made once per connection.
func Fragment(listener, client string, id identity.Client) []byte {
	who, ok := id.Identity()
	size := 64 + len(listener) + len(client)
	if ok {
		size += 160 + len(who.Subject()) // more for letters that are escaped
	}
	b := text(make([]byte, 0, size), "listener", listener)
	b = text(b, "client", client)
	if ok {
		sum := who.Fingerprint()
		b = appendText(key(b, "client_subject"), who.Subject(), maxName)
		b = text(b, "client_serial", who.SerialHex())
		b = text(b, "client_sha256", hex.EncodeToString(sum[:]))
	}
	return b
}

// FragmentVia is the fragment of a request whose client is known by the word of a proxy; id is that client, or why there is
// none, and via is the proxy, whose connection it is.
func FragmentVia(listener, client string, id identity.Client, via *identity.Identity) []byte {
	b := Fragment(listener, client, id)
	sum := via.Fingerprint()
	b = append(key(b, "via"), `{"subject":`...)
	b = appendText(b, via.Subject(), maxName)
	b = text(b, "sha256", hex.EncodeToString(sum[:]))
	return append(b, '}')
}

func (r *Request) append(b []byte, now time.Time, ref string, fragment []byte) []byte {
	b = begin(b, now, "request", ref)
	b[len(b)-1] = '-' // the request's reference is the connection's and its number
	b = strconv.AppendUint(b, r.Serial, 10)
	b = append(b, '"')
	b = append(b, fragment...)
	b = appendText(key(b, "method"), r.Method, maxMethod)
	b = appendText(key(b, "host"), r.Host, maxHost)
	b = appendText(key(b, "path"), r.Path, maxPath)
	b = number(b, "status", int64(r.Status))
	if r.Upstream != "" {
		b = text(b, "upstream", r.Upstream)
		b = text(b, "target", r.Target)
		if r.Reused {
			b = append(b, `,"target_reused":true`...)
		}
		if r.Retried {
			b = append(b, `,"retried":true`...)
		}
		b = number(b, "target_us", r.TargetTime.Microseconds())
	}
	if r.Shadow != reason.Unset {
		b = text(b, "shadow", r.Shadow.String())
	}
	b = text(b, "classification", r.Classification)
	b = text(b, "classification_reason", r.ClassificationReason)
	b = number(b, "bytes_in", r.BytesIn)
	b = number(b, "bytes_out", r.BytesOut)
	b = number(b, "duration_us", now.Sub(r.Start).Microseconds())
	return end(b, r.Reason, r.Expected, r.Found, r.Detail)
}

func (h *Handshake) append(b []byte, now time.Time) []byte {
	kind := "handshake"
	switch h.Kind {
	case Tunnel:
		kind = "tunnel"
	case Ended:
		kind = "ended"
	}
	b = begin(b, now, kind, h.Ref)
	b = text(b, "listener", h.Listener)
	b = text(b, "client", h.Client)
	if h.SNI != "" {
		b = appendText(key(b, "sni"), h.SNI, maxHost)
	}
	b = text(b, "host", h.Host)
	b = text(b, "client_auth", h.Policy)
	if h.Verdict != reason.Unset {
		b = text(b, "verdict", h.Verdict.String())
	}
	b = text(b, "tls", h.Version)
	b = text(b, "cipher", h.Cipher)
	b = text(b, "group", h.Group)
	b = text(b, "alpn", h.ALPN)
	if h.Resumed {
		b = append(b, `,"resumed":true`...)
	}
	if h.Shadow != reason.Unset {
		b = text(b, "shadow", h.Shadow.String())
		b = text(b, "shadow_found", h.ShadowFound)
	}
	b = text(b, "lenient", h.Lenient)
	b = text(b, "trust_store", h.Store)
	b = text(b, "trust_store_version", h.StoreVer)
	b = text(b, "upstream", h.Upstream)
	b = text(b, "target", h.TargetAddr)
	if h.Kind == Tunnel {
		b = number(b, "bytes_in", h.BytesIn)
		b = number(b, "bytes_out", h.BytesOut)
	}
	b = number(b, "duration_us", h.Duration.Microseconds())
	if who, ok := h.Identity.Identity(); ok {
		b = described(key(b, "client_certificate"), who.Leaf(), 0, who.Subject(), who.Issuer(), who.SerialHex(), who.Fingerprint())
	} else if h.Leaf != nil && h.Leaf != h.At {
		b = certificate(key(b, "client_certificate"), h.Leaf, 0)
	}
	if h.At != nil {
		b = certificate(key(b, "certificate_at_fault"), h.At, h.Depth)
	}
	// A refused handshake ends before the client had to prove that it holds the key (crypto/tls calls us first).
	if (h.Leaf != nil || h.At != nil) && !h.Proven {
		b = text(b, "possession", "not proven")
	}
	return end(b, h.Reason, h.Expected, h.Found, h.Detail)
}

// certificate describes cert as a JSON object; depth is its place in the chain, 0 the client's own.
func certificate(b []byte, cert *x509.Certificate, depth int) []byte {
	subject, _ := identity.AppendName(nil, cert.RawSubject)
	issuer, _ := identity.AppendName(nil, cert.RawIssuer)
	return described(b, cert, depth, string(subject), string(issuer), identity.SerialHex(cert.SerialNumber), sha256.Sum256(cert.Raw))
}

// described is certificate where its names, serial number and hash are known already.
func described(b []byte, cert *x509.Certificate, depth int, subject, issuer, serial string, sum [sha256.Size]byte) []byte {
	b = append(b, `{"depth":`...)
	b = strconv.AppendInt(b, int64(depth), 10)
	b = appendText(key(b, "subject"), subject, maxName)
	b = appendText(key(b, "issuer"), issuer, maxName)
	b = appendText(key(b, "serial"), serial, 64)
	b = append(key(b, "sha256"), '"')
	b = hex.AppendEncode(b, sum[:])
	b = append(b, `","not_before":"`...)
	b = cert.NotBefore.UTC().AppendFormat(b, time.RFC3339)
	b = append(b, `","not_after":"`...)
	b = cert.NotAfter.UTC().AppendFormat(b, time.RFC3339)
	return append(b, `"}`...)
}
