package record

import (
	"crypto/x509"
	"strconv"
	"strings"
	"time"

	"countersign/internal/identity"
	"countersign/internal/reason"
)

// Format is how a record is written as a line.
type Format uint8

// The formats. The zero value is JSON, the only one that says everything.
const (
	JSON          Format = iota
	ALBAccess            // the access log of AWS Application Load Balancer: requests
	ALBConnection        // its connection log: handshakes
	Combined             // Apache's and nginx's "combined": requests
)

// Requests and Connections report which records the format has lines for.
func (f Format) Requests() bool { return f != ALBConnection }

// Connections reports whether the format has lines for handshakes and tunnels.
func (f Format) Connections() bool { return f == JSON || f == ALBConnection }

// The longest texts in the formats other than JSON, in bytes, escapes included. A longer one is cut and ends in "...".
const (
	maxURL      = 1024 // with scheme, host and query
	maxAgent    = 512  // also of Referer
	maxTrace    = 128
	maxLabel    = 128 // names from the configuration, addresses
	maxRedirect = 256
	maxSubject  = 1024
)

// appendPlain appends s as printable ASCII without quotes and backslashes, which become \x22 and \x5c, cut to limit bytes:
// nothing in it can end a quoted field. Where blanks is false a space becomes \x20, for fields that end with one. AWS's own
// patterns for these lines have no escaped quotes, so \" would break them. Empty is "-".
func appendPlain[T string | []byte](b []byte, s T, limit int, blanks bool) []byte {
	if len(s) == 0 {
		return append(b, '-')
	}
	end := len(b) + limit
	stays := &inPlain
	if blanks {
		stays = &inText
	}
	for i := 0; i < len(s); i++ {
		from := i
		for i < len(s) && stays[s[i]] {
			i++
		}
		if room := end - len(b); i-from > room {
			b = append(b, s[from:from+room]...)
			return append(b, "..."...)
		}
		if b = append(b, s[from:i]...); i == len(s) {
			break
		}
		if c := s[i]; len(b)+4 > end {
			return append(b, "..."...)
		} else {
			b = append(b, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return b
}

func quoted[T string | []byte](b []byte, s T, limit int, blanks bool) []byte {
	b = append(b, ' ', '"')
	b = appendPlain(b, s, limit, blanks)
	return append(b, '"')
}

func bare[T string | []byte](b []byte, s T, limit int) []byte {
	return appendPlain(append(b, ' '), s, limit, false)
}

// seconds appends d with three decimals, -1 for a negative one.
func seconds(b []byte, d time.Duration) []byte {
	if d < 0 {
		return append(b, " -1"...)
	}
	ms := d.Milliseconds()
	b = strconv.AppendInt(append(b, ' '), ms/1000, 10)
	ms %= 1000
	return append(b, '.', byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10))
}

const albTime = "2006-01-02T15:04:05.000000Z07:00"

// status appends an HTTP status, "-" for none.
func status(b []byte, code int) []byte {
	if code == 0 {
		return append(b, " -"...)
	}
	return strconv.AppendInt(append(b, ' '), int64(code), 10)
}

// endpoint appends an address with its port as ALB has it. What has no port, a Unix socket, gets port 0: the patterns for
// these lines want a number.
func endpoint(b []byte, address string) []byte {
	b = bare(b, address, maxLabel)
	if colon := strings.LastIndexByte(address, ':'); colon < 0 || !digits(address[colon+1:]) {
		b = append(b, ":0"...)
	}
	return b
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// split cuts an address into host and port without allocating; what has no port is all host.
func split(address string) (host, port string) {
	colon := strings.LastIndexByte(address, ':')
	if colon < 0 || !digits(address[colon+1:]) {
		return address, ""
	}
	return strings.TrimSuffix(strings.TrimPrefix(address[:colon], "["), "]"), address[colon+1:]
}

// appendTrace appends what joins the two logs of ALB: TID_ and 32 hexadecimal digits, of which the last are ref.
func appendTrace(b []byte, ref string) []byte {
	b = append(b, "TID_"...)
	for range 32 - min(len(ref), 32) {
		b = append(b, '0')
	}
	for i := range min(len(ref), 32) {
		c := ref[i]
		if strings.IndexByte(hexDigits, c) < 0 {
			c = '0'
		}
		b = append(b, c)
	}
	return b
}

var unknownConn Conn

// appendALB appends the line of ALB's access log: 34 fields, those of its documentation in their order. load is the name
// of the listener. See docs/logs.md for what each one is here.
func (r *Request) appendALB(b []byte, now time.Time, load, ref string) []byte {
	c := r.Conn
	if c == nil {
		c = &unknownConn
	}
	kind := "http"
	switch {
	case r.WebSocket && (r.Status == 101 || r.Major == 2 && r.Status == 200): // RFC 8441 section 5
		if kind = "ws"; c.Secure {
			kind = "wss"
		}
	case r.Major == 2 && r.GRPC && c.Secure:
		kind = "grpcs"
	case r.Major == 2:
		kind = "h2"
	case c.Secure:
		kind = "https"
	}
	b = append(b, kind...)
	b = now.UTC().AppendFormat(append(b, ' '), albTime)
	b = append(b, " app/countersign/"...)
	b = appendPlain(b, load, maxLabel, false)
	b = endpoint(b, r.client())
	if r.Target == "" {
		b = append(b, " -"...)
	} else {
		b = endpoint(b, r.Target)
	}
	b = r.times(b)
	code, target := r.Status, r.TargetStatus
	if target == 0 && r.TargetTime > 0 {
		target = r.Status
	}
	if code == 0 && r.Reason == reason.ClientAborted {
		code = 460 // ALB's for a client that closed before it was answered
	}
	b = status(b, code)
	b = status(b, target)
	b = strconv.AppendInt(append(b, ' '), r.HeadIn+r.BytesIn, 10)
	b = strconv.AppendInt(append(b, ' '), r.HeadOut+r.BytesOut, 10)
	b = append(b, ' ', '"')
	b = r.line(b, c)
	b = append(b, '"')
	b = quoted(b, r.Agent, maxAgent, true)
	b = bare(b, opensslName(c.Cipher), maxLabel)
	b = bare(b, albVersion(c.Version), maxLabel)
	b = bare(b, r.Upstream, maxLabel)
	b = quoted(b, r.Trace, maxTrace, true)
	b = quoted(b, c.SNI, maxHost, true)
	if c.Resumed {
		b = append(b, ` "session-reused"`...)
	} else {
		b = quoted(b, c.Certificate, maxLabel, true)
	}
	switch r.Rule {
	case 0:
		b = append(b, " -"...)
	case DefaultRule:
		b = append(b, " 0"...)
	default:
		b = strconv.AppendInt(append(b, ' '), int64(max(r.Rule, FailedRule)), 10)
	}
	b = r.Start.UTC().AppendFormat(append(b, ' '), albTime)
	b = quoted(b, r.actions(), 64, false)
	b = quoted(b, r.RedirectURL, maxRedirect, false)
	cause := ""
	if !r.Reason.Good() {
		row := r.Reason.Row()
		if cause = row.ALB; cause == "" {
			cause = row.Code
		}
	}
	b = quoted(b, cause, maxLabel, false)
	b = append(b, ' ', '"')
	if r.Target == "" {
		b = append(b, '-')
	} else {
		b = endpoint(b[:len(b)-1], r.Target) // its blank
		quote := len(b) - 1
		for ; b[quote] != ' '; quote-- {
		}
		b[quote] = '"'
	}
	b = append(b, '"', ' ', '"')
	if target == 0 {
		b = append(b, '-')
	} else {
		b = strconv.AppendInt(b, int64(target), 10)
	}
	b = append(b, '"')
	b = quoted(b, r.Classification, 64, false)
	b = quoted(b, r.ClassificationReason, 64, false)
	b = appendTrace(append(b, ' '), ref)
	b = quoted(b, r.RewrittenHost, maxHost, false)
	b = quoted(b, r.RewrittenURI, maxTrace, false)
	if len(r.RewrittenHost)+len(r.RewrittenURI) > 0 {
		b = append(b, ` "TransformSuccess"`...)
	} else {
		b = append(b, ` "-"`...)
	}
	local, _ := split(c.Local)
	b = bare(b, local, 64)
	return append(b, '\n')
}

// client is the address that the request came from, as far as is known.
func (r *Request) client() string {
	if r.Client == "" && r.Conn != nil {
		return r.Conn.Client
	}
	return r.Client
}

// times appends the three parts of the time an exchange took: until the target was asked, until it answered, until the
// client got the first of it. -1 stands for what did not happen.
func (r *Request) times(b []byte) []byte {
	asked, answered, sent := time.Duration(-1), time.Duration(-1), time.Duration(-1)
	if r.Target != "" {
		asked = r.SentTime
		if r.TargetTime > 0 {
			answered = max(r.TargetTime-r.SentTime, 0)
			sent = max(r.AnswerTime-r.TargetTime, 0)
		}
	}
	b = seconds(b, asked)
	b = seconds(b, answered)
	return seconds(b, sent)
}

// line appends the request line as ALB shows it, with the whole URL, or "- URL- -" where none was understood.
func (r *Request) line(b []byte, c *Conn) []byte {
	if len(r.Method) == 0 {
		b = append(b, '-')
	} else {
		b = appendPlain(b, r.Method, maxMethod, false)
	}
	begin := len(b)
	if b = append(b, " http"...); c.Secure {
		b = append(b, 's')
	}
	b = append(b, "://"...)
	_, port := split(c.Local)
	host := r.Host
	if colon := lastColon(host); colon >= 0 {
		host = host[:colon] // the port shown is ours
	}
	b = appendPlain(b, host, maxHost, false)
	b = append(b, ':')
	if port == "" {
		if port = "80"; c.Secure {
			port = "443"
		}
	}
	b = append(b, port...)
	if len(r.Method) == 0 {
		return append(b, "- -"...)
	}
	room := max(maxURL-(len(b)-begin), 0)
	before := len(b)
	b = appendPlain(b, r.Path, room, false)
	if room -= len(b) - before; len(r.Query) > 0 && room > 0 {
		b = appendPlain(b, r.Query, room, false)
	}
	return r.protocol(append(b, ' '))
}

func lastColon(host []byte) int {
	for i := len(host) - 1; i >= 0; i-- {
		switch c := host[i]; {
		case c == ':':
			return i
		case c < '0' || c > '9':
			return -1
		}
	}
	return -1
}

// protocol appends HTTP/1.1 or what it was.
func (r *Request) protocol(b []byte) []byte {
	major, minor := r.Major, r.Minor
	if major == 0 {
		if major = 1; r.Conn == nil {
			minor = 1
		}
	} else if major > 1 {
		minor = 0
	}
	return append(b, 'H', 'T', 'T', 'P', '/', '0'+major%10, '.', '0'+minor%10)
}

// actions is what was done with the request, in ALB's words.
func (r *Request) actions() string {
	switch {
	case r.Actions != "":
		return r.Actions
	case r.RedirectURL != "":
		return "redirect"
	case r.Upstream != "":
		return "forward"
	case r.Reason == reason.AnsweredHere:
		return "fixed-response"
	}
	return ""
}

// appendCombined appends the line of Apache's combined format. The user is the subject of the verified client's
// certificate, its blanks escaped: parsers take the field to end with one.
func (r *Request) appendCombined(b []byte) []byte {
	client, _ := split(r.client())
	b = appendPlain(b, client, maxLabel, false)
	b = append(b, " -"...)
	b = bare(b, r.User, maxAgent)
	b = r.Start.UTC().AppendFormat(append(b, ' '), "[02/Jan/2006:15:04:05 -0700]")
	b = append(b, ' ', '"')
	if len(r.Method) == 0 {
		b = append(b, '-')
	} else {
		b = appendPlain(b, r.Method, maxMethod, false)
		before := len(b) + 1
		b = bare(b, r.Path, maxURL)
		if room := maxURL - (len(b) - before); len(r.Query) > 0 && room > 0 {
			b = appendPlain(b, r.Query, room, false)
		}
		b = r.protocol(append(b, ' '))
	}
	b = append(b, '"')
	switch {
	case r.Status != 0:
		b = status(b, r.Status)
	case r.Reason == reason.ClientAborted:
		b = append(b, " 499"...) // nginx's for a client that closed before it was answered
	default:
		b = append(b, " 000"...) // parsers want three digits
	}
	if r.BytesOut == 0 {
		b = append(b, " -"...)
	} else {
		b = strconv.AppendInt(append(b, ' '), r.BytesOut, 10)
	}
	b = quoted(b, r.Referer, maxAgent, true)
	b = quoted(b, r.Agent, maxAgent, true)
	return append(b, '\n')
}

// appendALB appends the line of ALB's connection log: 15 fields, those of its documentation in their order.
func (h *Handshake) appendALB(b []byte, now time.Time) []byte {
	b = now.UTC().AppendFormat(b, albTime)
	host, port := split(h.Client)
	b = bare(b, host, maxLabel)
	if port == "" {
		port = "0"
	}
	b = append(append(b, ' '), port...)
	local, port := split(h.Local)
	if port == "" {
		port = "0"
	}
	b = append(append(b, ' '), port...)
	b = bare(b, albVersion(h.Version), maxLabel)
	b = bare(b, opensslName(h.Cipher), maxLabel)
	if h.Reason.Good() {
		b = seconds(b, h.Duration)
	} else {
		b = append(b, " -"...)
	}
	var leaf *x509.Certificate
	if who, ok := h.Identity.Identity(); ok {
		leaf = who.Leaf()
	} else if leaf = h.Leaf; leaf == nil && h.Depth == 0 {
		leaf = h.At
	}
	if leaf == nil {
		b = append(b, ` "-" - -`...)
	} else {
		b = append(b, ' ', '"')
		b = appendSubject(b, leaf)
		b = append(b, `" NotBefore=`...)
		b = leaf.NotBefore.UTC().AppendFormat(b, time.RFC3339)
		b = append(b, ";NotAfter="...)
		b = leaf.NotAfter.UTC().AppendFormat(b, time.RFC3339)
		b = bare(b, identity.SerialHex(leaf.SerialNumber), maxLabel)
	}
	if h.Reason.Good() {
		b = append(b, " Success "...)
	} else {
		b = append(b, " Failed:"...)
		b = append(b, albVerify(h.Reason)...)
		b = append(b, ' ')
	}
	b = appendTrace(b, h.Ref)
	b = bare(b, albGroup(h.Group), maxLabel)
	b = append(b, " app/countersign/"...)
	b = appendPlain(b, h.Listener, maxLabel, false)
	b = bare(b, local, maxLabel)
	return append(b, '\n')
}

// appendSubject appends the subject of cert as RFC 2253 has it. Backslashes stay, because they belong to that form and come
// in pairs with what they escape; quotes become \22, which it has for them as well.
func appendSubject(b []byte, cert *x509.Certificate) []byte {
	name, err := identity.AppendName(nil, cert.RawSubject)
	if err != nil || len(name) == 0 {
		return append(b, '-')
	}
	end := len(b) + maxSubject
	for i := 0; i < len(name); i++ {
		last, n := len(b), 1
		if name[i] == '\\' && i+1 < len(name) {
			n = 2
		}
		switch c := name[i+n-1]; {
		case c == '"' || c <= ' ' && n == 2 || c < ' ' || c >= 0x7f:
			b = append(b, '\\', hexDigits[c>>4], hexDigits[c&15])
		default:
			b = append(b, name[i:i+n]...)
		}
		i += n - 1
		if len(b) > end {
			return append(b[:last], "..."...)
		}
	}
	return b
}

// albCodes are the codes of tls_verify_status that ALB documents. Others would be unknown to what reads the lines.
var albCodes = map[string]bool{
	"ClientCertMaxChainDepthExceeded": true, "ClientCertMaxSizeExceeded": true, "ClientCertCrlHit": true,
	"ClientCertCrlProcessingError": true, "ClientCertUntrusted": true, "ClientCertNotYetValid": true, "ClientCertExpired": true,
	"ClientCertTypeUnsupported": true, "ClientCertInvalid": true, "ClientCertPurposeInvalid": true, "ClientCertRejected": true,
	"ClientCertIncompatible": true,
}

// albVerify is ALB's code for a refused handshake.
func albVerify(why reason.Reason) string {
	if code := why.Row().ALB; albCodes[code] {
		return code
	}
	return "UnmappedConnectionError"
}

// albVersion turns the name that crypto/tls has for a version into OpenSSL's: TLSv1.3.
func albVersion(name string) string {
	switch name {
	case "TLS 1.3":
		return "TLSv1.3"
	case "TLS 1.2":
		return "TLSv1.2"
	case "TLS 1.1":
		return "TLSv1.1"
	case "TLS 1.0":
		return "TLSv1"
	}
	return ""
}

// albGroup turns the name that crypto/tls has for a group into the one of TLS's registry.
func albGroup(name string) string {
	switch name {
	case "CurveP256":
		return "secp256r1"
	case "CurveP384":
		return "secp384r1"
	case "CurveP521":
		return "secp521r1"
	case "X25519":
		return "x25519"
	case "CurveID(0)":
		return "" // RSA key exchange has none
	}
	return name
}

// opensslNames are the TLS 1.2 suites of crypto/tls by OpenSSL's names, which ALB logs. Those of TLS 1.3 are the same in both.
var opensslNames = map[string]string{
	"TLS_RSA_WITH_RC4_128_SHA":                      "RC4-SHA",
	"TLS_RSA_WITH_3DES_EDE_CBC_SHA":                 "DES-CBC3-SHA",
	"TLS_RSA_WITH_AES_128_CBC_SHA":                  "AES128-SHA",
	"TLS_RSA_WITH_AES_256_CBC_SHA":                  "AES256-SHA",
	"TLS_RSA_WITH_AES_128_CBC_SHA256":               "AES128-SHA256",
	"TLS_RSA_WITH_AES_128_GCM_SHA256":               "AES128-GCM-SHA256",
	"TLS_RSA_WITH_AES_256_GCM_SHA384":               "AES256-GCM-SHA384",
	"TLS_ECDHE_ECDSA_WITH_RC4_128_SHA":              "ECDHE-ECDSA-RC4-SHA",
	"TLS_ECDHE_RSA_WITH_RC4_128_SHA":                "ECDHE-RSA-RC4-SHA",
	"TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA":           "ECDHE-RSA-DES-CBC3-SHA",
	"TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA":          "ECDHE-ECDSA-AES128-SHA",
	"TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA":          "ECDHE-ECDSA-AES256-SHA",
	"TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA":            "ECDHE-RSA-AES128-SHA",
	"TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA":            "ECDHE-RSA-AES256-SHA",
	"TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256":       "ECDHE-ECDSA-AES128-SHA256",
	"TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256":         "ECDHE-RSA-AES128-SHA256",
	"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256":       "ECDHE-ECDSA-AES128-GCM-SHA256",
	"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256":         "ECDHE-RSA-AES128-GCM-SHA256",
	"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384":       "ECDHE-ECDSA-AES256-GCM-SHA384",
	"TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384":         "ECDHE-RSA-AES256-GCM-SHA384",
	"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
	"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256":   "ECDHE-RSA-CHACHA20-POLY1305",
}

func opensslName(iana string) string {
	if name := opensslNames[iana]; name != "" {
		return name
	}
	return iana
}
