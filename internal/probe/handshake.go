package probe

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	maxAnswer  = 16 << 10 // bytes of an HTTP answer that are read
	maxCANames = 200      // that are told
)

// quiet is how long a server may take to say something by itself after the handshake: in TLS 1.3 it refuses a client
// after the client believes that all went well, and some protocols begin with the server's word. A request that is
// sent before could make the machine throw away the alert. A variable for tests.
var quiet = 400 * time.Millisecond

// handshakes completes the handshake in the versions that matter, without a certificate and with the one given.
func (p *prober) handshakes() {
	for i, id := range p.accepted() {
		if i == 0 || id == tls.VersionTLS12 {
			p.report.ClientAuth = append(p.report.ClientAuth, p.clientAuth(id))
		}
	}
	all := p.report.ClientAuth
	if len(all) == 0 {
		p.report.ClientCertificate = certUnknown
		return
	}
	p.report.ClientCertificate = all[0].Verdict
	for _, a := range all[1:] {
		if a.Verdict != all[0].Verdict && a.Verdict != certUnknown && all[0].Verdict != certUnknown {
			p.note(severityWarning, "versions_differ", "let one rule hold for all versions; a client may choose the older one",
				"client certificates are %s in %s and %s in %s", words(all[0].Verdict), all[0].Version, words(a.Verdict), a.Version)
		}
	}
	for i := range all {
		p.hints(&all[i])
	}
}

// words are a verdict in a sentence.
func words(verdict string) string { return strings.ReplaceAll(verdict, "_", " ") }

// clientAuth finds out what is asked of clients in a version.
func (p *prober) clientAuth(id uint16) ClientAuth {
	v := p.version(id)
	a := ClientAuth{Version: v.Version, Verdict: certUnknown, CANames: []string{}, id: id}
	reached := false // it is known whether a certificate is requested
	if f := v.ok; id != tls.VersionTLS13 && f.done {
		reached = true
		if f.asked != nil {
			a.Requested, a.names, a.schemes = true, f.asked.names, f.asked.schemes
			for _, t := range f.asked.types {
				a.Types = append(a.Types, certificateTypeName(t))
			}
		}
	}
	sessions := &session{}
	if !completable(v) {
		p.note(severityNote, "not_completed", "", "no handshake of %s was completed: none of its suites can be used here", v.Version)
	} else {
		w := p.attempt(id, nil, sessions)
		a.Without = &w.Attempt
		if w.asked != nil {
			a.Requested, a.schemes, a.names = true, w.asked.SignatureSchemes, w.asked.AcceptableCAs
		}
		reached = reached || w.asked != nil || w.Handshake == "completed"
		if p.o.Certificate != nil && a.Requested {
			own := &session{}
			with := p.attempt(id, p.o.Certificate, own)
			if a.With = &with.Attempt; with.Result == "accepted" {
				sessions = own
			}
		}
		p.resumption(v, &a, sessions)
	}
	a.CANameCount = len(a.names)
	for i, der := range a.names {
		if a.CANameBytes += len(der); i < maxCANames {
			name, _ := printedDER(der)
			a.CANames = append(a.CANames, name)
		}
	}
	for _, s := range a.schemes[:min(len(a.schemes), 64)] {
		a.Signatures = append(a.Signatures, schemeName(s))
	}
	switch {
	case !reached:
	case !a.Requested:
		a.Verdict = certNotRequested
	case a.Without == nil || a.Without.Result == "unknown":
		a.Verdict = certRequested
	case a.Without.Result == "refused":
		a.Verdict = certRequired
	default:
		a.Verdict = certOptional
	}
	return a
}

// completable says whether crypto/tls can complete a handshake of the version with one of its suites.
func completable(v *Version) bool {
	if v.id == tls.VersionTLS13 {
		return true
	}
	for _, s := range v.Suites {
		for _, id := range allSuites() {
			if s.id == id {
				return true
			}
		}
	}
	return false
}

// allSuites are those of TLS 1.2 and older that crypto/tls has, good or not.
func allSuites() (ids []uint16) {
	for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		ids = append(ids, s.ID)
	}
	return ids
}

// attempted is an Attempt with what only this package looks at.
type attempted struct {
	Attempt
	asked *tls.CertificateRequestInfo // nil if no certificate was asked for
	state tls.ConnectionState
	seen  bool // state is there: the server has shown its certificate
}

// attempt completes a handshake and finds out what comes after it. Without a certificate it sends none.
func (p *prober) attempt(id uint16, cert *tls.Certificate, sessions *session) attempted {
	var protocols []string
	if p.speaksHTTP() {
		protocols = []string{"http/1.1"}
	}
	a := p.attemptWith(id, cert, sessions, protocols)
	if a.Alert != nil && Alert(a.Alert.Code) == alertNoProtocol && !a.seen {
		a = p.attemptWith(id, cert, sessions, nil)
	}
	return a
}

func (p *prober) speaksHTTP() bool { return p.o.Path != "" && p.o.StartTLS == "" }

// conf is how crypto/tls is used here. Whom the server's certificate is from does not matter for what it asks.
func (p *prober) conf(id uint16, cert *tls.Certificate, sessions tls.ClientSessionCache, protocols []string, a *attempted) *tls.Config {
	return &tls.Config{
		MinVersion: id, MaxVersion: id, ServerName: p.sni, NextProtos: protocols, CipherSuites: allSuites(), ClientSessionCache: sessions,
		InsecureSkipVerify: true, // what it shows is judged later, and nothing secret is sent
		GetClientCertificate: func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			a.asked = asked
			if cert == nil {
				return &tls.Certificate{}, nil
			}
			return cert, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			a.state, a.seen = state, true
			return nil
		},
	}
}

func (p *prober) attemptWith(id uint16, cert *tls.Certificate, sessions *session, protocols []string) (a attempted) {
	a.Handshake, a.Result = "failed", "unknown"
	conn, err := p.connect()
	if err != nil {
		a.Problem = p.answered(err)
		return a
	}
	defer conn.Close()
	tc := tls.Client(conn, p.conf(id, cert, sessions, protocols, &a))
	err = tc.HandshakeContext(p.ctx)
	if a.seen {
		var ders [][]byte
		for _, c := range a.state.PeerCertificates {
			ders = append(ders, c.Raw)
		}
		p.addChain(shown{id, ders, a.state.OCSPResponse})
		a.Suite, a.ALPN = suiteName(a.state.CipherSuite), escape(a.state.NegotiatedProtocol, maxQuoted)
		if g := a.state.CurveID; g != 0 {
			a.Group = groupName(g)
		}
	}
	if err != nil {
		p.ended(&a, err, cert != nil)
		return a
	}
	a.Handshake = "completed"
	p.after(&a, tc, conn, cert != nil, sessions)
	return a
}

// ended says how an attempt ended with err. If a certificate was asked for, an alert or the end of the connection is
// taken for a refusal of what was sent.
func (p *prober) ended(a *attempted, err error, with bool) {
	if alert, ok := AlertIn(err); ok {
		a.Alert = alertInfo(alert)
		if a.asked != nil {
			a.Result = "refused"
		}
		if _, known := alerts[alert]; known && a.asked != nil && !with && alert != alertCertificateRequired {
			a.Alert.Means = "no certificate was sent, so most likely one is required, for which TLS 1.2 has no alert of its own. Else: " + a.Alert.Means
			a.Alert.Next = alertCertificateRequired.Next()
		}
		return
	}
	var record tls.RecordHeaderError
	if errors.As(err, &record) {
		err = &notTLSError{record.RecordHeader[:]}
	}
	a.Problem = p.answered(err)
	switch {
	case strings.Contains(err.Error(), "exceeds maximum of"):
		a.Problem = failed("message_too_large", "let the server name fewer CAs, or none: trust does not depend on the names", "the server sent %s; clients refuse that, above all when it names very many CAs", text(err))
	case a.state.Version == 0 && (strings.Contains(err.Error(), "error decoding message") || strings.Contains(err.Error(), "unexpected message")):
		a.Problem = failed("unreadable", "name at least one CA, or leave the extension out; clients written in Go, this program's connections to backends among them, fail in the same way",
			"what the server sent in the handshake cannot be read by Go's TLS (%s). A known cause is a CertificateRequest of TLS 1.3 with an empty list of CA names, which RFC 8446 section 4.2.4 forbids (OpenSSL's -no_ca_names)", text(err))
	case strings.Contains(err.Error(), "no renegotiation"):
		a.Problem = failed("renegotiation", "ask for the certificate in the handshake, on a name or port of its own; TLS 1.3 has no renegotiation, and HTTP/2 forbids it",
			"the server asked to renegotiate, which is how it asks for a client certificate after it has seen the request; not attempted here")
	case strings.Contains(err.Error(), "signature algorithms"), strings.Contains(err.Error(), "doesn't support"):
		a.Problem = failed("signature_algorithms", "use a client certificate with another kind of key", "the server takes none of the signatures that the client's key can make: %s", text(err))
	case a.asked != nil && (a.Problem.Code == "closed" || a.Problem.Code == "reset"):
		a.Result = "refused"
		a.Problem.Next = "the server's own log says why; without a certificate this most likely means that one is required"
	}
}

// after finds out what the server says when the handshake is over for the client.
func (p *prober) after(a *attempted, tc *tls.Conn, conn net.Conn, with bool, sessions *session) {
	whole := time.Now().Add(p.o.Timeout)
	if end, _ := p.ctx.Deadline(); end.Before(whole) {
		whole = end
	}
	buf := make([]byte, maxAnswer)
	_ = conn.SetReadDeadline(time.Now().Add(min(quiet, p.o.Timeout/4)))
	n, err := tc.Read(buf)
	_ = conn.SetDeadline(whole)
	switch {
	case n > 0:
		a.Spoke, a.Result = firstLine(buf[:n]), "accepted"
		return
	case err != nil && !timedOut(err):
		p.ended(a, err, with)
		return
	}
	question := ""
	switch {
	case p.speaksHTTP():
		question = "GET " + p.o.Path + " HTTP/1.1\r\nHost: " + p.authority() + "\r\nUser-Agent: countersign-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
	case p.o.StartTLS == "smtp":
		question = "EHLO probe.invalid\r\n"
	case p.o.StartTLS == "imap":
		question = "p2 NOOP\r\n"
	}
	if question == "" {
		// A version before 1.3 ends only when the server has agreed; in 1.3 it sends sessions after that.
		if a.state.Version != tls.VersionTLS13 || sessions.got() {
			a.Result = "accepted"
		}
		return
	}
	_, werr := io.WriteString(tc, question)
	answer, err := readAnswer(tc, buf)
	switch {
	case len(answer) > 0:
		a.Result = "accepted"
		if a.HTTP = parseHTTP(answer); a.HTTP == nil {
			a.Spoke = firstLine(answer)
		} else if a.asked != nil && refusesByHTTP(a.HTTP, answer) {
			a.Result = "refused"
		}
	case err != nil && timedOut(err):
		if a.state.Version != tls.VersionTLS13 || sessions.got() {
			a.Result = "accepted"
		}
		a.Problem = failed("no_answer", "if this is no server of HTTP, give --path \"\"", "the handshake was completed, and the request was not answered within %s", p.o.Timeout)
	case err != nil:
		p.ended(a, err, with)
	case werr != nil:
		p.ended(a, werr, with)
	}
}

func (p *prober) authority() string {
	name := p.verify
	if strings.Contains(name, ":") {
		name = "[" + name + "]"
	}
	if p.port != "443" {
		name += ":" + p.port
	}
	return name
}

// readAnswer reads the head of an answer and the beginning of its body, as far as it comes.
func readAnswer(r io.Reader, buf []byte) (answer []byte, err error) {
	n := 0
	for range 64 {
		m, err := r.Read(buf[n:])
		n += m
		if err != nil || n == len(buf) {
			if n > 0 {
				err = nil
			}
			return buf[:n], err
		}
		if !bytes.HasPrefix(buf[:n], []byte("HTTP/")) && n >= 5 {
			break
		}
		if _, body, ok := bytes.Cut(buf[:n], []byte("\r\n\r\n")); ok && len(body) >= 1024 {
			break
		}
	}
	return buf[:n], nil
}

var (
	statusLine = regexp.MustCompile(`^HTTP/1\.[01] ([1-5][0-9][0-9])(?: |\r|\n)`)
	title      = regexp.MustCompile(`(?is)<title>(.{0,200}?)</title>`)
)

func parseHTTP(answer []byte) *HTTPAnswer {
	m := statusLine.FindSubmatch(answer)
	if m == nil {
		return nil
	}
	a := &HTTPAnswer{}
	a.Status, _ = strconv.Atoi(string(m[1]))
	head, body, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
	for line := range bytes.Lines(head) {
		if name, value, ok := bytes.Cut(line, []byte(":")); ok && strings.EqualFold(string(name), "server") {
			a.Server = escape(string(bytes.TrimSpace(value)), maxQuoted)
		}
	}
	if m := title.FindSubmatch(body); m != nil {
		a.Text = escape(strings.TrimSpace(string(m[1])), maxQuoted)
	} else {
		a.Text = firstLine(bytes.TrimLeft(body, "\r\n\t "))
	}
	return a
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(string(b[:min(len(b), maxBanner)]), "\n")
	return escape(strings.TrimRight(line, "\r"), maxQuoted)
}

// refusesByHTTP reports whether an answer says in so many words that it is about the certificate. nginx has numbers of
// its own for it, which it shows as 400.
func refusesByHTTP(a *HTTPAnswer, answer []byte) bool {
	if a.Status == 495 || a.Status == 496 {
		return true
	}
	_, body, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
	return a.Status >= 400 && a.Status < 500 && bytes.Contains(bytes.ToLower(body), []byte("certificate"))
}

// hints says what an answer of HTTP tells about certificates that are asked for later, or by other means.
func (p *prober) hints(a *ClientAuth) {
	if a.Without == nil {
		return
	}
	if f := a.Without.Problem; f != nil && f.Code == "renegotiation" {
		p.note(severityWarning, f.Code, f.Next, "in %s %s", a.Version, f.Found)
	}
	h := a.Without.HTTP
	if h == nil {
		return
	}
	switch {
	case a.Without.Result == "refused":
		p.note(severityNote, "required_by_http", "send a certificate that the server accepts: --cert and --key try one",
			"the handshake of %s is completed without a certificate, and the request is refused by HTTP: %d %s", a.Version, h.Status, quote(h.Text))
	case (h.Status == http.StatusUnauthorized || h.Status == http.StatusForbidden) && a.Requested:
		p.note(severityNote, "maybe_required_by_http", "try with --cert and --key, and with another --path",
			"without a certificate %s is answered %d: it may be required there", quote(p.o.Path), h.Status)
	case h.Status == http.StatusUnauthorized || h.Status == http.StatusForbidden:
		p.note(severityNote, "maybe_asked_later", "let the server ask in the handshake, on a name or port of its own",
			"%s is answered %d and no certificate was asked for in the handshake of %s. Some servers ask only after they have seen the path (Apache's SSLVerifyClient in a Location, IIS): by renegotiation in TLS 1.2, by post-handshake authentication in TLS 1.3. That is not attempted here", quote(p.o.Path), h.Status, a.Version)
	}
}

// applicationProtocols offers those of HTTP, each alone.
func (p *prober) applicationProtocols() {
	all := p.accepted()
	if p.o.StartTLS != "" || len(all) == 0 || all[0] < tls.VersionTLS12 {
		return
	}
	for _, name := range []string{"h2", "http/1.1"} {
		result := "unknown"
		chose := func(protocol string) {
			switch protocol {
			case name:
				result = "accepted"
			case "":
				result = "ignored"
			}
		}
		if all[0] == tls.VersionTLS12 { // in clear
			h := alone(all[0])
			h.alpn = []string{name}
			f, err := p.ask(h, false)
			if alert := (*alertError)(nil); errors.As(err, &alert) && alert.alert == alertNoProtocol {
				result = "refused"
			} else if f != nil {
				chose(f.hello.alpn)
			}
		} else if conn, err := p.connect(); err == nil {
			var a attempted
			err := tls.Client(conn, p.conf(all[0], nil, nil, []string{name}, &a)).HandshakeContext(p.ctx)
			conn.Close()
			if alert, ok := AlertIn(err); ok && alert == alertNoProtocol {
				result = "refused"
			} else if a.seen {
				chose(a.state.NegotiatedProtocol)
			}
		}
		p.report.ALPN = append(p.report.ALPN, Protocol{name, result})
	}
}

// session remembers the latest session of one server.
type session struct {
	latest *tls.ClientSessionState
	count  int
}

func (s *session) got() bool { return s.count > 0 }

// Get is of tls.ClientSessionCache.
func (s *session) Get(string) (*tls.ClientSessionState, bool) { return s.latest, s.latest != nil }

// Put is of tls.ClientSessionCache; nil takes the session away.
func (s *session) Put(_ string, latest *tls.ClientSessionState) {
	if s.latest = latest; latest != nil {
		s.count++
	}
}

// resumption comes back with the session of an attempt that was accepted.
func (p *prober) resumption(v *Version, a *ClientAuth, sessions *session) {
	last := a.Without
	if a.With != nil && a.With.Result == "accepted" {
		last = a.With
	}
	v.Resumption = "unknown"
	switch {
	case !sessions.got() && last.Result == "accepted":
		v.Resumption = "none"
	case !sessions.got():
		if f := v.ok.hello; f.version != tls.VersionTLS13 && (f.ticket || f.session) {
			v.Resumption = "offered"
		}
	default:
		v.Resumption = "offered"
		conn, err := p.connect()
		if err != nil {
			return
		}
		defer conn.Close()
		var cert *tls.Certificate
		if last == a.With {
			cert = p.o.Certificate
		}
		var again attempted
		tc := tls.Client(conn, p.conf(v.id, cert, sessions, nil, &again))
		if err := tc.HandshakeContext(p.ctx); err == nil {
			if v.Resumption = "refused"; tc.ConnectionState().DidResume {
				v.Resumption = "resumed"
			} else if state := tc.ConnectionState(); len(state.PeerCertificates) > 0 && time.Now().After(state.PeerCertificates[0].NotAfter) {
				v.Resumption = "offered" // crypto/tls does not come back to an expired certificate
			}
		}
	}
}
