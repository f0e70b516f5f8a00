// Package probe asks a TLS server from outside what it offers and what it asks of clients, and says in plain words what
// it found: versions, suites, groups, certificates, and above all whether and how it wants a client certificate.
//
// It makes many short connections, one question each. Hand-made ClientHellos ask what crypto/tls cannot offer, and of
// the answers only fields that are in clear are read; everything behind is crypto/tls. Whether a chain may be believed
// is asked of package trust, as everywhere.
package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"countersign/internal/hostname"
	"countersign/internal/origin"
)

const (
	// DefaultTimeout is for one connection, from its beginning to its end.
	DefaultTimeout = 5 * time.Second
	// MaxConnections are all that one probe makes.
	MaxConnections = 150

	// maxUnanswered are the timeouts in a row after which no more is asked.
	maxUnanswered = 4

	// patience is how many timeouts the whole may take.
	patience = 12
)

// Options say whom to ask, and how. The zero value of each but Target is the default.
type Options struct {
	// Target is host:port.
	Target string
	// ServerName is the name that is asked for (SNI) and compared with the certificate; empty is the host of Target.
	ServerName string
	// NoServerName sends no server name.
	NoServerName bool
	// StartTLS is the protocol that is spoken before TLS, one of the list of that name; empty for none.
	StartTLS string
	// ProxyProtocol is the version of the PROXY header that is sent first, 1 or 2; 0 sends none.
	ProxyProtocol uint8
	// Timeout bounds each connection; 0 is DefaultTimeout. The whole takes at most twelve times as long.
	Timeout time.Duration
	// Roots are the CAs by which the server's chain is judged; nil judges nothing but the chain itself.
	Roots []*x509.Certificate
	// RootsName says in messages where Roots came from.
	RootsName string
	// Certificate is a client certificate to try with.
	Certificate *tls.Certificate
	// Candidates are certificates that might fit what the server asks for.
	Candidates []Candidate
	// Path is asked for by an HTTP request after the handshake; empty sends none.
	Path string
	// Dial makes connections; nil is that of package net.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Run asks a server everything. The report is complete as far as it goes: what could not be found out is a finding. The
// error is for options that make no sense, and nothing was asked then.
func Run(ctx context.Context, o Options) (*Report, error) {
	host, port, err := net.SplitHostPort(o.Target)
	if err != nil || host == "" || port == "" {
		return nil, fmt.Errorf("target: expected HOST:PORT, found %s", quote(o.Target))
	}
	switch {
	case o.StartTLS != "" && !slices.Contains(StartTLS, o.StartTLS):
		return nil, fmt.Errorf("starttls: expected one of %s, found %s", strings.Join(StartTLS, ", "), quote(o.StartTLS))
	case o.ProxyProtocol > 2:
		return nil, fmt.Errorf("proxy protocol: expected version 1 or 2, found %d", o.ProxyProtocol)
	case o.Timeout < 0:
		return nil, fmt.Errorf("timeout: expected a positive time, found %s", o.Timeout)
	case o.Path != "" && (o.Path[0] != '/' || strings.ContainsFunc(o.Path, func(r rune) bool { return r <= ' ' || r > '~' })):
		return nil, fmt.Errorf("path: expected one that begins with / and has neither blanks nor characters beyond ASCII, found %s", quote(o.Path))
	case o.Timeout == 0:
		o.Timeout = DefaultTimeout
	}
	if o.RootsName == "" {
		o.RootsName = "the CAs given"
	}
	p := &prober{o: o, host: host, port: port}
	if p.o.Dial == nil {
		p.o.Dial = new(net.Dialer).DialContext
	}
	if err := p.chooseName(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience*o.Timeout)
	defer cancel()
	p.ctx = ctx
	p.report = &Report{
		Format: 1, Target: o.Target, ServerName: p.sni, StartTLS: o.StartTLS, ProxyProtocol: o.ProxyProtocol,
		Started: time.Now().UTC().Truncate(time.Second), Findings: []Finding{}, Versions: []Version{}, Chains: []Chain{}, ClientAuth: []ClientAuth{},
	}
	p.run()
	p.report.Connections = p.connections
	return p.report, nil
}

// chooseName finds the name to be sent and the name that the certificate has to be for.
func (p *prober) chooseName() error {
	name := p.o.ServerName
	if name == "" {
		name = p.host
	}
	p.verify = name
	if ip, err := netip.ParseAddr(name); err == nil {
		p.verify = ip.WithZone("").String() // an address is never sent (RFC 6066 section 3)
		return nil
	}
	canonical, err := hostname.AppendCanonicalSNI(nil, []byte(name))
	if err != nil {
		return fmt.Errorf("server name: %w, found %s", err, quote(name))
	}
	p.verify = string(canonical)
	if !p.o.NoServerName {
		p.sni = p.verify
	}
	return nil
}

// prober is one probe at work.
type prober struct {
	o           Options
	ctx         context.Context
	host, port  string
	sni, verify string
	address     string // the one that answered first; all further connections go there
	connections int
	unanswered  int // connections in a row that ended with a timeout
	shown       []shown
	report      *Report
}

// errEnough ends what would need more connections or time than there are.
var errEnough = fmt.Errorf("%d connections were made, the time was over, or the server stopped to answer", MaxConnections)

// connect opens a connection and leads it to the point where TLS begins. It closes by itself when its time is over, or
// that of the whole.
func (p *prober) connect() (net.Conn, error) {
	if p.over() {
		return nil, errEnough
	}
	p.connections++
	ctx, cancel := context.WithTimeout(p.ctx, p.o.Timeout)
	defer cancel()
	to := p.address
	if to == "" {
		to = p.o.Target
	}
	conn, err := p.o.Dial(ctx, "tcp", to)
	if err != nil {
		return nil, unreached(to, err)
	}
	conn = &ending{conn, context.AfterFunc(p.ctx, func() { conn.Close() })}
	if p.address == "" {
		p.address = conn.RemoteAddr().String()
		p.report.Address = p.address
	}
	deadline := time.Now().Add(p.o.Timeout)
	if whole, _ := p.ctx.Deadline(); whole.Before(deadline) {
		deadline = whole
	}
	if err = conn.SetDeadline(deadline); err == nil {
		err = p.precede(conn)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// over says whether no more is asked. A server that has stopped to answer is left alone.
func (p *prober) over() bool {
	return p.connections >= MaxConnections || p.ctx.Err() != nil || p.unanswered >= maxUnanswered
}

// ending is a connection that ends with the probe.
type ending struct {
	net.Conn
	stop func() bool
}

// Close closes the connection.
func (e *ending) Close() error {
	e.stop()
	return e.Conn.Close()
}

// precede sends and reads what comes before TLS.
func (p *prober) precede(conn net.Conn) error {
	if v := p.o.ProxyProtocol; v != 0 {
		facts := &origin.Facts{Client: addrPort(conn.LocalAddr()), Local: addrPort(conn.RemoteAddr())}
		header, _ := origin.Announcement{Version: v}.Append(nil, facts)
		if _, err := conn.Write(header); err != nil {
			return err
		}
	}
	err := startTLS(conn, p.o.StartTLS)
	if known := (*Finding)(nil); err != nil && !errors.As(err, &known) {
		f := p.answered(err)
		f.Found = "before TLS (" + p.o.StartTLS + "): " + f.Found
		return f
	}
	return err
}

func addrPort(a net.Addr) netip.AddrPort {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// ask sends a ClientHello and reads the answer.
func (p *prober) ask(h hello, whole bool) (*flight, error) {
	h.name = p.sni
	record, err := h.record()
	if err != nil {
		return nil, err
	}
	conn, err := p.connect()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := conn.Write(record); err != nil {
		if f, rerr := readFlight(conn, false); f == nil && rerr != nil && !errors.Is(rerr, io.EOF) {
			err = rerr // what the server said before it closed
		}
		return nil, err
	}
	f, err := readFlight(conn, whole)
	if p.unanswered++; err == nil || !timedOut(err) {
		p.unanswered = 0
	}
	return f, err
}

// note adds a finding to the report, once.
func (p *prober) note(severity, code, next, format string, args ...any) {
	f := Finding{severity, code, fmt.Sprintf(format, args...), next}
	for _, have := range p.report.Findings {
		if have == f {
			return
		}
	}
	p.report.Findings = append(p.report.Findings, f)
}

// run asks in an order in which each answer helps with the next question.
func (p *prober) run() {
	r := p.report
	first, err := p.greet()
	if err != nil {
		f := p.answered(err)
		r.Problem = f
		switch {
		case r.Address == "":
			r.Outcome = OutcomeUnreachable
		default:
			r.Outcome = OutcomeNotTLS
		}
		return
	}
	r.Outcome = OutcomeTLS
	p.versions(first)
	p.chains()
	p.handshakes()
	p.applicationProtocols()
	p.judgeChains()
	p.fits()
	if p.over() {
		p.note(severityWarning, "incomplete", "allow more time with --timeout, and look for a limit of connections on the server", "not everything was asked: %s", errEnough)
	}
}

// greet offers everything at once and finds out whether there is a TLS server at all. An alert is an answer of one; the
// flight is nil then.
func (p *prober) greet() (*flight, error) {
	everything := hello{version: tls.VersionTLS13, oldest: tls.VersionTLS10, groups: groupIDs(), share: tls.X25519,
		suites: append(suitesOf(tls.VersionTLS13), suitesOf(tls.VersionTLS12)...)}
	f, err := p.ask(everything, false)
	var known *Finding
	var strange *notTLSError
	var alert *alertError
	switch {
	case err == nil:
		return f, nil
	case errors.As(err, &alert):
		p.report.Refusal = alertInfo(alert.alert)
		return nil, nil
	case errors.As(err, &known), errors.As(err, &strange), timedOut(err):
		return nil, err
	}
	// Some old servers close when they see what they do not know.
	if f, again := p.ask(hello{version: tls.VersionTLS12, groups: groupIDs()[1:], suites: suitesOf(tls.VersionTLS12)}, false); again == nil {
		p.note(severityWarning, "intolerant", "update the server's TLS library", "the server fails when TLS 1.3 is offered (%s), and answers when TLS 1.2 is the newest", strings.TrimSuffix(p.answered(err).Found, "."))
		return f, nil
	} else if errors.As(again, &alert) {
		p.report.Refusal = alertInfo(alert.alert)
		return nil, nil
	}
	return nil, err
}
