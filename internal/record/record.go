// Package record owns the one record of a connection or request, and what is made of it: a log line and the metrics.
// Writing never blocks the data plane and never grows without bound: what does not fit is dropped and counted.
package record

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"strconv"
	"time"

	"countersign/internal/identity"
	"countersign/internal/reason"
)

// Kind is what a record of a connection is about.
type Kind uint8

// The kinds. The zero value is the end of a handshake.
const (
	Begun  Kind = iota // the handshake
	Tunnel             // a connection whose bytes were moved, at its end
)

// Handshake is the record of a connection: of its handshake, or of its end where it has no requests.
type Handshake struct {
	Kind       Kind
	Ref        string
	Listener   string
	Client     string
	SNI        string
	Host       string
	Policy     string // mode of the host
	Reason     reason.Reason
	Verdict    reason.Reason // on the client's certificate, where it was not accepted and the client was let in all the same
	Proven     bool          // the client holds the key of the certificate at fault
	Version    string
	Cipher     string
	Group      string
	ALPN       string
	Resumed    bool
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
	BytesIn    int64
	BytesOut   int64
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

// Request is the record of one request. Its byte slices keep their storage from request to request.
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
	Retried    bool          // a used connection turned out to be closed, and another was tried
	BytesIn    int64         // request body
	BytesOut   int64         // response body
	TargetTime time.Duration // until the target's response head
	Expected   string
	Found      string
	Detail     string
}

// Begin empties r for the next request.
func (r *Request) Begin(serial uint64, start time.Time) {
	*r = Request{Serial: serial, Start: start, Method: r.Method[:0], Host: r.Host[:0], Path: r.Path[:0]}
}

// The longest texts of a record, in bytes, before escaping.
const (
	maxPath = 512
	maxHost = 253
	maxText = 256
)

// Keep copies what the head says, cut to bounded lengths, because the head's buffer is used again while the body streams.
func (r *Request) Keep(method, host, path []byte) {
	r.Method = append(r.Method[:0], method[:min(len(method), 32)]...)
	r.Host = append(r.Host[:0], host[:min(len(host), maxHost)]...)
	r.Path = append(r.Path[:0], path[:min(len(path), maxPath)]...)
}

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

// appendText appends s as a JSON string of printable ASCII, cut to limit bytes: what strangers sent can neither break the
// line nor the terminal it is read on.
func appendText[T string | []byte](b []byte, s T, limit int) []byte {
	cut := len(s) > limit
	if cut {
		s = s[:limit]
	}
	b = append(b, '"')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c >= 0x20 && c < 0x7f:
			b = append(b, c)
		case c >= 0x80:
			b = append(b, `\\x`...)
			b = append(b, hexDigits[c>>4], hexDigits[c&15])
		default:
			b = append(b, `\u00`...)
			b = append(b, hexDigits[c>>4], hexDigits[c&15])
		}
	}
	if cut {
		b = append(b, "..."...)
	}
	return append(b, '"')
}

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

func begin(b []byte, now time.Time, kind, ref string) []byte {
	b = append(b, `{"time":"`...)
	b = now.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z07:00")
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
	b := text(nil, "listener", listener)
	b = text(b, "client", client)
	if who, ok := id.Identity(); ok {
		sum := who.Fingerprint()
		b = text(b, "client_subject", who.Subject())
		b = text(b, "client_serial", who.SerialHex())
		b = text(b, "client_sha256", hex.EncodeToString(sum[:]))
	}
	return b
}

func (r *Request) append(b []byte, now time.Time, ref string, fragment []byte) []byte {
	b = begin(b, now, "request", ref)
	b[len(b)-1] = '-' // the request's reference is the connection's and its number
	b = strconv.AppendUint(b, r.Serial, 10)
	b = append(b, '"')
	b = append(b, fragment...)
	b = appendText(key(b, "method"), r.Method, 32)
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
	b = number(b, "bytes_in", r.BytesIn)
	b = number(b, "bytes_out", r.BytesOut)
	b = number(b, "duration_us", now.Sub(r.Start).Microseconds())
	return end(b, r.Reason, r.Expected, r.Found, r.Detail)
}

func (h *Handshake) append(b []byte, now time.Time) []byte {
	kind := "handshake"
	if h.Kind == Tunnel {
		kind = "tunnel"
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
		b = certificate(key(b, "client_certificate"), who.Leaf(), 0)
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
	b = append(b, `{"depth":`...)
	b = strconv.AppendInt(b, int64(depth), 10)
	subject, _ := identity.AppendName(nil, cert.RawSubject)
	issuer, _ := identity.AppendName(nil, cert.RawIssuer)
	b = appendText(key(b, "subject"), subject, maxText)
	b = appendText(key(b, "issuer"), issuer, maxText)
	b = appendText(key(b, "serial"), identity.SerialHex(cert.SerialNumber), 64)
	sum := sha256.Sum256(cert.Raw)
	b = appendText(key(b, "sha256"), hex.EncodeToString(sum[:]), 64)
	b = appendText(key(b, "not_before"), cert.NotBefore.UTC().Format(time.RFC3339), 32)
	b = appendText(key(b, "not_after"), cert.NotAfter.UTC().Format(time.RFC3339), 32)
	return append(b, '}')
}
