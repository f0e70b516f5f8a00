package diagnose

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"countersign/internal/certs"
	"countersign/internal/probe"
	"countersign/internal/reason"
	"countersign/internal/trust"
)

// LiveOptions say whom to ask and with what.
type LiveOptions struct {
	// Address is host:port.
	Address string
	// ServerName is in the ClientHello; empty for the host of Address.
	ServerName string
	// Cert, Chain and Key are contents of files; no Cert asks as a client without one. File is the certificate's name.
	Cert, Chain, Key []byte
	File             string
	// ServerCAs are what the server's certificate is judged by, PEM; nil for the system's.
	ServerCAs []byte
	// Path is that of a request to make when the handshake is over, Method its method, GET if empty. Without a path one for /
	// is made of a server that says that it speaks HTTP.
	Path, Method string
	// Timeout bounds each connection; 0 is ten seconds.
	Timeout time.Duration
	// Now is the time that certificates are judged for; the zero value is now.
	Now time.Time
	// Dial opens connections; nil means the ordinary way.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// LiveReport is what a server makes of a client certificate. Its form as JSON is kept: fields may be added.
type LiveReport struct {
	Outcome Outcome `json:"outcome"`
	// Sentence says what happened, Fault who has to act as far as can be told: client, server, network or unknown.
	Sentence string `json:"sentence"`
	Fault    string `json:"fault,omitempty"`
	// Next is the one thing to do.
	Next string `json:"next,omitempty"`

	Address      string        `json:"address"`
	ServerName   string        `json:"server_name,omitempty"`
	Certificates []Certificate `json:"certificates,omitempty"`
	// Steps are what can be said of the certificate without the server.
	Steps    []Step    `json:"steps"`
	Attempts []Attempt `json:"attempts"`
}

// Attempt is one connection.
type Attempt struct {
	Version string `json:"version"`
	// Spoken says that the server speaks the version.
	Spoken  bool    `json:"spoken"`
	Outcome Outcome `json:"outcome"`
	// Requested says that the server asked for a certificate; Hints are the CA names it gave, of which there are HintCount,
	// and SignatureAlgorithms those it takes.
	Requested           bool     `json:"requested"`
	Hints               []string `json:"hints,omitempty"`
	HintCount           int      `json:"hint_count"`
	SignatureAlgorithms []string `json:"signature_algorithms,omitempty"`
	// Fits says whether the certificate is one that was asked for, and Unfit why not.
	Fits  bool   `json:"fits"`
	Unfit string `json:"unfit,omitempty"`
	// Sent is the number of certificates that were sent.
	Sent int `json:"sent"`
	// Server is the server's certificate, and ServerProblem what is wrong with it.
	Server        *Certificate `json:"server,omitempty"`
	ServerProblem string       `json:"server_problem,omitempty"`
	// Alert is the number of the TLS alert that came, and AlertName its name; When says at which moment.
	Alert     *int   `json:"alert,omitempty"`
	AlertName string `json:"alert_name,omitempty"`
	When      string `json:"when,omitempty"`
	// Status and Answer are those of HTTP.
	Status int    `json:"status,omitempty"`
	Answer string `json:"answer,omitempty"`
	// Found says in words how it ended.
	Found string `json:"found"`

	fault, next string
}

// Bounds of what is read of a server.
const (
	maxBody      = 64 << 10
	maxHintsTold = 10
	// quiet is how long a server that is asked nothing may take to say that it refuses.
	quiet = 2 * time.Second
)

// Connect asks a server. An error is a question that cannot be asked: an *AskError, or a *certs.Problem of a file.
func Connect(ctx context.Context, o *LiveOptions) (*LiveReport, error) {
	host, port, err := net.SplitHostPort(o.Address)
	if err != nil || port == "" {
		return nil, &AskError{fmt.Sprintf("--connect %s is no host:port", quoted(o.Address)),
			"write both, as --connect api.example.com:443"}
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return nil, &AskError{fmt.Sprintf("--connect %s has no port number", quoted(o.Address)),
			"write it as --connect api.example.com:443"}
	}
	c := &caller{o: *o, host: host, port: port, report: &LiveReport{Address: show(o.Address), Steps: []Step{}}}
	if c.o.Timeout <= 0 {
		c.o.Timeout = 10 * time.Second
	}
	if c.o.Now.IsZero() {
		c.o.Now = time.Now()
	}
	if c.o.Dial == nil {
		c.o.Dial = new(net.Dialer).DialContext
	}
	if c.name = o.ServerName; c.name == "" {
		c.name = host
	}
	c.report.ServerName = show(c.name)
	if p := c.o.Path; p != "" && (!strings.HasPrefix(p, "/") || strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r >= 0x7f })) {
		return nil, &AskError{fmt.Sprintf("--path %s is no path of a request", quoted(p)),
			"write it as /status, with what is not ASCII percent-encoded"}
	}
	if m := c.o.Method; m != "" && strings.ContainsFunc(m, func(r rune) bool { return r < 'A' || r > 'Z' }) {
		return nil, &AskError{fmt.Sprintf("--method %s is no method", quoted(m)), "write it in capitals, as POST"}
	}
	if o.Cert != nil {
		pair, warnings, err := certs.Parse(certs.Source{Cert: join(o.Cert, o.Chain), Key: o.Key})
		if err != nil {
			return nil, err
		}
		c.pair = pair
		for _, w := range warnings {
			c.report.Steps = append(c.report.Steps, Step{Section: SectionCertificate, Check: "files", Result: Odd, Found: show(w)})
		}
		c.own()
	}
	if o.ServerCAs != nil {
		list, err := trust.LoadCertificates(o.ServerCAs)
		if err != nil {
			return nil, &AskError{"--servername-ca: " + show(err.Error()), "name a file of CA certificates in PEM"}
		}
		c.roots = x509.NewCertPool()
		for _, ca := range list {
			c.roots.AddCert(ca)
		}
	}
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		a := c.attempt(ctx, version, true)
		if a.Alert != nil && *a.Alert == alertNoProtocol { // it speaks another protocol than HTTP
			a = c.attempt(ctx, version, false)
		}
		c.report.Attempts = append(c.report.Attempts, *a)
		if a.fault == faultNetwork || ctx.Err() != nil {
			break
		}
	}
	c.conclude()
	return c.report, nil
}

// join puts a chain file behind a certificate file. What is not PEM cannot be joined and is left to the parser to tell.
func join(cert, chain []byte) []byte {
	if chain == nil {
		return cert
	}
	return slices.Concat(cert, []byte("\n"), chain)
}

// Alerts that are told apart here (RFC 8446 section 6).
const (
	alertBadCertificate     = 42
	alertCertificateUnknown = 46
	alertUnknownCA          = 48
	alertVersion            = 70
	alertUnrecognizedName   = 112
	alertNoProtocol         = 120
)

// The sides that may have to act.
const (
	faultClient  = "client"
	faultServer  = "server"
	faultNetwork = "network"
	faultUnknown = "unknown"
)

// caller asks one server.
type caller struct {
	o          LiveOptions
	host, port string
	name       string
	pair       *tls.Certificate
	roots      *x509.CertPool
	report     *LiveReport
	bad        *Step // the first check of our certificate that fails
}

// own judges the certificate as any server would, before one is asked.
func (c *caller) own() {
	for i, der := range c.pair.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			continue
		}
		c.report.Certificates = append(c.report.Certificates, describe(cert))
		add := func(check string, bad bool, expected, found string) {
			s := Step{Section: SectionCertificate, Check: check, Result: Good, About: subject(cert), Depth: i,
				Expected: expected, Found: found}
			if bad {
				s.Result = Bad
			}
			c.report.Steps = append(c.report.Steps, s)
			if bad && c.bad == nil {
				c.bad = &s
			}
		}
		now := c.o.Now
		add("dates", now.Before(cert.NotBefore) || now.After(cert.NotAfter), "validity at "+stamp(now),
			stamp(cert.NotBefore)+" to "+stamp(cert.NotAfter))
		if i > 0 {
			continue
		}
		var has []string
		for _, u := range cert.ExtKeyUsage {
			has = append(has, usage(u))
		}
		fits := slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || slices.Contains(cert.ExtKeyUsage,
			x509.ExtKeyUsageAny) ||
			len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) == 0
		found := strings.Join(has[:min(len(has), 6)], ", ")
		if found == "" {
			found = "no extendedKeyUsage"
		}
		add("purpose", !fits, "extendedKeyUsage clientAuth", found)
		add("end_entity", cert.IsCA, "CA:FALSE", map[bool]string{true: "CA:TRUE", false: "CA:FALSE"}[cert.IsCA])
	}
	last, err := x509.ParseCertificate(c.pair.Certificate[len(c.pair.Certificate)-1])
	if err == nil && !bytes.Equal(last.RawSubject, last.RawIssuer) {
		c.report.Steps = append(c.report.Steps, Step{Section: SectionCertificate, Check: "chain", Result: Note,
			About: subject(last), Depth: len(c.pair.Certificate) - 1,
			Found: fmt.Sprintf("%d certificates are sent; the server has to have CA %s", len(c.pair.Certificate),
				dn(last.RawIssuer))})
	}
}

// attempt makes one connection.
func (c *caller) attempt(ctx context.Context, version uint16, http1 bool) *Attempt {
	a := &Attempt{Version: tls.VersionName(version), Fits: true}
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	conn, err := c.o.Dial(ctx, "tcp", c.o.Address)
	if err != nil {
		a.Outcome, a.fault, a.Found = Undecided, faultNetwork, "no connection: "+show(err.Error())
		a.next = "check address and port, that the server runs, and firewalls on the way"
		return a
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	conf := &tls.Config{
		MinVersion: version, MaxVersion: version,
		InsecureSkipVerify: true, // judged in verifyServer, and told: a server that is not trusted is still to be explained
		GetClientCertificate: func(req *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return c.asked(a, req), nil
		},
	}
	if net.ParseIP(c.name) == nil {
		conf.ServerName = c.name
	}
	if http1 {
		conf.NextProtos = []string{"http/1.1"}
	}
	tc := tls.Client(conn, conf)
	err = tc.HandshakeContext(ctx)
	state := tc.ConnectionState()
	if len(state.PeerCertificates) > 0 {
		d := describe(state.PeerCertificates[0])
		a.Server, a.ServerProblem = &d, c.verifyServer(state.PeerCertificates)
	}
	if err != nil {
		a.When = "in the handshake"
		c.ended(a, err)
		return a
	}
	a.Spoken = true
	path := c.o.Path
	if path == "" && state.NegotiatedProtocol == "http/1.1" {
		path = "/"
	}
	if path == "" {
		_ = conn.SetReadDeadline(earlier(deadline, time.Now().Add(quiet)))
		var one [1]byte
		if _, err = tc.Read(one[:]); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			a.Outcome, a.Found = Accepted, "the handshake was accepted, and no alert came after it"
			return a
		}
		a.When = "after the handshake"
		if errors.Is(err, io.EOF) {
			a.Outcome, a.Found, a.fault = Undecided, "the server ended the connection in an orderly way and said nothing", faultUnknown
			a.next = "give --path / if it speaks HTTP, so that there is an answer to see"
			return a
		}
		c.ended(a, err)
		return a
	}
	c.exchange(a, tc, path)
	return a
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// asked notes what the server asks for, and returns what to send. It is sent even if the server does not name its CA, as
// some clients do and others do not.
func (c *caller) asked(a *Attempt, req *tls.CertificateRequestInfo) *tls.Certificate {
	a.Requested, a.HintCount = true, len(req.AcceptableCAs)
	for _, raw := range req.AcceptableCAs[:min(len(req.AcceptableCAs), maxHintsTold)] {
		a.Hints = append(a.Hints, dn(raw))
	}
	for _, s := range req.SignatureSchemes[:min(len(req.SignatureSchemes), 32)] {
		name := s.String()
		if s == 0x0808 { // which crypto/tls does not have, and so has no name for
			name = "ed448"
		}
		a.SignatureAlgorithms = append(a.SignatureAlgorithms, name)
	}
	if c.pair == nil {
		a.Fits, a.Unfit = false, "there is no certificate to send"
		return new(tls.Certificate)
	}
	if len(req.AcceptableCAs) > 0 && !slices.ContainsFunc(c.pair.Certificate, func(der []byte) bool {
		cert, err := x509.ParseCertificate(der)
		return err == nil && slices.ContainsFunc(req.AcceptableCAs, func(ca []byte) bool { return bytes.Equal(ca, cert.RawIssuer) })
	}) {
		a.Fits, a.Unfit = false, fmt.Sprintf("none of the %d CA names that the server gives is an issuer of what is sent",
			len(req.AcceptableCAs))
	}
	open := *req
	open.AcceptableCAs = nil
	if err := open.SupportsCertificate(c.pair); err != nil {
		a.Fits, a.Unfit = false, fmt.Sprintf("a key of kind %s cannot sign with any algorithm that the server takes",
			keyText(c.pair.Leaf.PublicKey))
		return new(tls.Certificate)
	}
	a.Sent = len(c.pair.Certificate)
	return c.pair
}

// verifyServer says what is wrong with the server's certificate; empty for nothing.
func (c *caller) verifyServer(chain []*x509.Certificate) string {
	inter := x509.NewCertPool()
	for _, cert := range chain[1:min(len(chain), 16)] {
		inter.AddCert(cert)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: c.roots, Intermediates: inter, DNSName: c.name, CurrentTime: c.o.Now})
	if err == nil {
		return ""
	}
	return show(err.Error())
}

// ended explains an error of the connection.
func (c *caller) ended(a *Attempt, err error) {
	a.Outcome, a.fault = Undecided, faultUnknown
	var header tls.RecordHeaderError
	if alert, ok := probe.AlertIn(err); ok {
		n := int(alert)
		a.Alert, a.AlertName = &n, alert.Name()
		a.Found = fmt.Sprintf("TLS alert %s %s: %s", alert, a.When, alert.Means())
		a.next = alert.Next()
		c.blame(a, n)
		return
	}
	switch {
	case errors.As(err, &header):
		a.Found, a.next, a.fault = "the server does not speak TLS on this port", "check the port: use the one that speaks TLS", faultClient
		if first := string(header.RecordHeader[:]); strings.HasPrefix(first, "HTTP/") || strings.HasPrefix(first, "<") {
			a.Found, a.next = "the server speaks plain HTTP on this port", "use the port that speaks https, or switch TLS on for this one"
		} else if strings.HasPrefix(first, "SSH-") {
			a.Found = "an SSH server answered"
		}
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		a.Found, a.fault = "no answer "+a.When+" within "+c.o.Timeout.String(), faultNetwork
		a.next = "check the port, and whether the server waits for something before TLS (a PROXY header, STARTTLS): countersign probe tries them"
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.ErrUnexpectedEOF):
		a.Found = "the server closed the connection " + a.When + " without a word"
		a.next = "look in the server's log for this moment: some servers refuse clients so (on_failure: reset), and some expect a PROXY header first"
		if a.Requested || a.Server != nil {
			a.Outcome = Refused
		}
	default:
		a.Found, a.next = "the handshake failed here: "+show(err.Error()), "try the other version of TLS; countersign probe shows what the server offers"
		if a.Requested || a.Server != nil {
			a.Outcome = Refused
		}
	}
}

// blame says of an alert whose the fault is, as far as can be told, and what the next step is.
func (c *caller) blame(a *Attempt, alert int) {
	// About the certificate, or what a server that wants one says.
	aboutCert := slices.Contains([]int{41, 42, 43, 44, 45, 46, 48, 49, 51, 116}, alert) || alert == 40 && a.Requested
	switch {
	case alert == alertVersion || alert == 40 && !a.Requested && a.Server == nil:
		return // not spoken, or nothing in common
	case alert == alertUnrecognizedName:
		a.Outcome, a.fault = Refused, faultClient
		return
	case !aboutCert:
		a.fault = faultServer
		if a.Requested {
			a.Outcome = Refused
		}
		return
	}
	a.Spoken, a.Outcome, a.fault = true, Refused, faultClient
	switch {
	case c.pair == nil:
		a.next = c.send(a)
	case a.Sent == 0:
		a.next = "use a certificate with another kind of key: " + a.Unfit + " (" + a.algorithms() + ")"
	case c.bad != nil:
		a.next = c.mend()
	case !a.Fits:
		a.next = "use a certificate of one of the CAs that the server names" + c.ofHints(a)
	case alert == alertUnknownCA:
		a.fault = faultUnknown
		a.next = c.append("it does not trust it: let its operator add that CA")
	case alert == alertBadCertificate || alert == alertCertificateUnknown:
		a.fault = faultUnknown
		a.next = "look in the server's log for this moment: nothing is wrong with the certificate that can be seen from here"
	}
}

// algorithms are some of those that the server takes.
func (a *Attempt) algorithms() string {
	return strings.Join(a.SignatureAlgorithms[:min(len(a.SignatureAlgorithms), 6)], ", ")
}

// append is the next step where the chain may be too short; otherwise says what it is if the server has the rest.
func (c *caller) append(otherwise string) string {
	if len(c.report.Certificates) == 0 {
		return "look in the server's log for this moment"
	}
	last, file := c.report.Certificates[len(c.report.Certificates)-1], "the certificate file"
	if c.o.File != "" {
		file = show(c.o.File)
	}
	if last.Subject == last.Issuer {
		return fmt.Sprintf("let the server's operator add CA %s, or use a certificate of a CA that the server has: the chain is sent whole", quoted(last.Subject))
	}
	return fmt.Sprintf("append the intermediate %s that issued %s to %s; if the server has it already, %s",
		quoted(last.Issuer), quoted(last.Subject), file, otherwise)
}

// ofHints names some of the CAs that the server names.
func (c *caller) ofHints(a *Attempt) string {
	if len(a.Hints) == 0 {
		return ""
	}
	return ": " + strings.Join(a.Hints[:min(len(a.Hints), 3)], "; ")
}

// send is the next step where no certificate was sent.
func (c *caller) send(a *Attempt) string {
	if len(a.Hints) == 0 {
		return "send a certificate: give --cert and --key"
	}
	return "send a certificate of one of the CAs that the server names, with --cert and --key" + c.ofHints(a)
}

// mend says what to do about what is wrong with our certificate.
func (c *caller) mend() string {
	switch c.bad.Check {
	case "dates":
		return fmt.Sprintf("renew %s: it is valid %s only; or compare the clocks, it is %s here", quoted(c.bad.About),
			c.bad.Found, stamp(c.o.Now))
	case "purpose":
		return fmt.Sprintf("this certificate has only %s; the CA must issue one with clientAuth", c.bad.Found)
	}
	return "use the client's own certificate: this is that of a CA"
}

// exchange makes one request.
func (c *caller) exchange(a *Attempt, tc *tls.Conn, path string) {
	a.When = "after the handshake"
	method := c.o.Method
	if method == "" {
		method = http.MethodGet
	}
	host := c.name
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if c.port != "443" {
		host += ":" + c.port
	}
	_, werr := fmt.Fprintf(tc, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: countersign-explain\r\nAccept: */*\r\nConnection: close\r\n\r\n",
		method, path, host)
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(tc, maxBody)), &http.Request{Method: method})
	if err != nil {
		if _, ok := probe.AlertIn(err); !ok && werr != nil {
			err = werr
		}
		if _, ok := probe.AlertIn(err); !ok && (strings.Contains(err.Error(), "malformed HTTP")) {
			a.Outcome, a.Found = Accepted, "the handshake was accepted; what came after is not HTTP/1.1"
			a.next = "leave --path out: this server does not speak HTTP/1.1"
			return
		}
		c.ended(a, err)
		return
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	a.Status, a.Answer = resp.StatusCode, show(resp.Status)
	c.judge(a, resp, string(body))
}

// judge reads an answer of HTTP for what it says about the certificate.
func (c *caller) judge(a *Attempt, resp *http.Response, body string) {
	says := func(texts ...string) string {
		for _, t := range texts {
			if strings.Contains(body, t) {
				return t
			}
		}
		return ""
	}
	a.Outcome, a.fault = Refused, faultUnknown
	status := fmt.Sprintf("HTTP status %s", a.Answer)
	mended := func(otherwise string) string {
		switch {
		case c.pair == nil:
			return c.send(a)
		case c.bad != nil:
			a.fault = faultClient
			return c.mend()
		case a.Requested && !a.Fits:
			a.fault = faultClient
			return "use a certificate of one of the CAs that the server names" + c.ofHints(a)
		}
		return otherwise
	}
	if c.told(a, status, body, mended) {
		return
	}
	switch code := resp.StatusCode; {
	case says("No required SSL certificate was sent") != "" || code == 496:
		a.Found = status + ": the server wants a client certificate and got none"
		a.fault = faultClient
		switch {
		case !a.Requested:
			a.fault = faultServer
			a.next = "let the server ask for a certificate in the handshake for this name: it required one without asking (in nginx ssl_verify_client of the server block that the SNI name leads to)"
		case a.Sent == 0 && c.pair != nil:
			a.next = "use a certificate with another kind of key: " + a.Unfit
		default:
			a.next = mended("look in the server's log: a certificate was sent, and the server says that none came")
		}
	case says("The SSL certificate error", "SSL certificate error") != "" || code == 495:
		a.Found = status + ": the server got the certificate and could not verify it"
		a.next = mended(c.unverified())
	case code == http.StatusMisdirectedRequest:
		a.Found = status + ": the request is for another host than the connection"
		a.next = "connect with the server name of the host that is asked for: --sni"
		a.fault = faultClient
	case code == http.StatusForbidden || code == http.StatusUnauthorized:
		a.Found = status + ": the handshake was accepted, and the request is not allowed"
		a.next = mended("ask whoever runs the server which clients may ask for this path: TLS took the certificate, the decision came after")
		if !a.Requested {
			a.next = "let the server ask for a certificate for this name, or sign in as it wants: the handshake did not ask for one"
			a.fault = faultServer
		}
	case code == http.StatusBadRequest && says("plain HTTP request was sent to HTTPS", "speaks TLS") == "" && strings.Contains(strings.ToLower(body), "certificate"):
		a.Found = status + ": the answer speaks of a certificate"
		a.next = mended("read the answer's body: curl --cert ... shows it")
	default:
		a.Outcome, a.fault = Accepted, ""
		a.Found = status
		if !a.Requested {
			a.Found += "; the server did not ask for a certificate"
		}
	}
}

// What answers of Countersign itself say: a code and a reference.
var (
	ourReference = regexp.MustCompile(`(?i)reference"?: ?(?:<code>)?"?([0-9A-Za-z-]{6,64})`)
	ourCode      = regexp.MustCompile(`^[0-9]{3} ([a-z0-9_]{3,40}): |"reason":"([a-z0-9_]{3,40})"`)
)

// told reads an answer of Countersign's own about the client's certificate, and reports whether it is one.
func (c *caller) told(a *Attempt, status, body string, mended func(string) string) bool {
	ref, code := ourReference.FindStringSubmatch(body), ourCode.FindStringSubmatch(body)
	if ref == nil || a.Status < 400 || a.Status >= 500 {
		return false
	}
	said := ""
	switch {
	case code != nil:
		said = code[1] + code[2]
	case strings.Contains(body, "A client certificate is required."):
		said = "client_cert_missing"
	case strings.Contains(body, "The client certificate was refused."):
		said = "client_cert_refused"
	}
	why, known := reason.Parse(said)
	lookUp := fmt.Sprintf("give the reference %s to whoever runs the server: its log line has what was expected and found", ref[1])
	switch row := why.Row(); {
	case said == "client_cert_refused":
		a.Found, a.fault, a.next = status+": the certificate was refused, reference "+ref[1], faultClient, mended(lookUp)
	case said == "client_cert_missing":
		a.Found, a.fault, a.next = status+": a certificate is required, and none came, reference "+ref[1], faultClient, mended(lookUp)
	case known && (row.Stage == reason.StageHandshake || row.Status == http.StatusForbidden || row.Status == http.StatusMisdirectedRequest):
		a.Found, a.fault = fmt.Sprintf("%s: %s: %s, reference %s", status, row.Code, row.Sentence, ref[1]), faultClient
		if a.next = row.Next; !strings.Contains(row.Next, "found") {
			break
		}
		a.next = lookUp // the next step of the row is for who sees the log
	default:
		return false
	}
	return true
}

// unverified is the next step where a server could not verify what it got.
func (c *caller) unverified() string {
	return c.append("look in its log: revocation lists and depth limits (ssl_verify_depth in nginx) are seen there only")
}

// conclude takes the verdict from the attempts.
func (c *caller) conclude() {
	r := c.report
	// The verdict is that of the first version that tells most: one that was spoken, else one that was met with more than
	// the word that it is not spoken.
	says := func(a *Attempt) int {
		switch {
		case a.Spoken && a.Outcome != Undecided:
			return 3
		case a.Spoken, a.Outcome != Undecided:
			return 2
		case a.Alert == nil || *a.Alert != alertVersion:
			return 1
		}
		return 0
	}
	first := &r.Attempts[0]
	for i := range r.Attempts {
		if a := &r.Attempts[i]; says(a) > says(first) {
			first = a
		}
	}
	r.Outcome, r.Sentence, r.Fault, r.Next = first.Outcome, first.Version+": "+first.Found, first.fault, first.next
	if r.Outcome != Accepted {
		return
	}
	for i := range r.Attempts {
		a := &r.Attempts[i]
		if a.Spoken && a.Outcome != Accepted {
			r.Sentence += "; " + a.Version + " ends otherwise: " + a.Found
			r.Next = a.next
			return
		}
	}
	switch {
	case !first.Requested && c.pair != nil:
		r.Next = "let the server ask for client certificates for this name if it should: it did not ask, so nobody was verified"
	case c.pair == nil && first.Requested:
		r.Next = "nothing has to be done: the server asks for a certificate and lets clients in without one; give --cert and --key to try one"
	case c.bad != nil && first.Requested:
		r.Next = "tell whoever runs the server that it took a certificate that it should not have: " + c.mend()
	case first.Requested && !first.Fits:
		r.Next = "let the server name the CA of this certificate: " + first.Unfit + ", and clients that go by these names send none"
	case first.ServerProblem != "":
		r.Next = "see to the server's own certificate, which clients will refuse: " + first.ServerProblem
	}
}

// Print writes the report for people.
func (r *LiveReport) Print(w io.Writer) error {
	p := &printer{w: w}
	p.line("%s, server name %s", r.Address, r.ServerName)
	for i := range r.Steps {
		if i == 0 {
			p.line("\nCERTIFICATE")
		}
		p.step(&r.Steps[i])
	}
	for i := range r.Attempts {
		a := &r.Attempts[i]
		p.line("\n%s", a.Version)
		if a.Server != nil {
			p.line("  server certificate %s, issuer %s, until %s", a.Server.Subject, a.Server.Issuer, stamp(a.Server.NotAfter))
			if a.ServerProblem != "" {
				p.line("    which clients may refuse: %s", a.ServerProblem)
			}
		}
		switch {
		case a.Requested:
			hints := "any CA"
			if a.HintCount > 0 {
				hints = strings.Join(a.Hints, "; ")
				if more := a.HintCount - len(a.Hints); more > 0 {
					hints += fmt.Sprintf("; %d more", more)
				}
			}
			p.line("  asks for a certificate of %s", hints)
			p.line("  with %s", strings.Join(a.SignatureAlgorithms, ", "))
			if !a.Fits {
				p.line("  ours does not fit: %s", a.Unfit)
			}
			p.line("  sent %d certificates", a.Sent)
		case a.Spoken:
			p.line("  does not ask for a certificate")
		}
		p.line("  %s: %s", a.Outcome, a.Found)
	}
	p.line("\n%s: %s", strings.ToUpper(string(r.Outcome)), r.Sentence)
	if r.Fault != "" {
		p.line("  fault:    %s", r.Fault)
	}
	if r.Next != "" {
		p.line("  next:     %s", r.Next)
	}
	return p.err
}
