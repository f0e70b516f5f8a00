package probe

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
)

// Finding is one thing that is worth telling: what was found, and the next step. Code is stable, for machines.
type Finding struct {
	// Severity is error, warning or note.
	Severity string `json:"severity"`
	Code     string `json:"code"`
	Found    string `json:"found"`
	Next     string `json:"next,omitempty"`
}

// The severities of findings.
const (
	severityError   = "error"
	severityWarning = "warning"
	severityNote    = "note"
)

func (f *Finding) Error() string {
	if f.Next == "" {
		return f.Found
	}
	return f.Found + "; " + f.Next
}

// failed is an error of the given kind.
func failed(code, next, format string, args ...any) *Finding {
	return &Finding{severityError, code, fmt.Sprintf(format, args...), next}
}

// unreached explains an error of a connection that was not made.
func unreached(address string, err error) *Finding {
	at := quote(address)
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return failed("name_not_found", "check the spelling, and which resolver this machine asks", "no address is known for %s", at)
	case errors.As(err, &dns):
		return failed("name_not_resolved", "check the resolvers in /etc/resolv.conf", "the name %s could not be looked up: %s", at, text(err))
	case errors.Is(err, syscall.ECONNREFUSED):
		return failed("connection_refused", "check the port and whether the server runs; a firewall may also refuse", "nobody listens at %s: the connection was refused", at)
	case timedOut(err):
		return failed("connect_timeout", "a firewall that drops packets looks so; check the address, the route and the rules on the way", "%s did not answer the connection in time", at)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return failed("no_route", "check the address, and the routes of this machine", "there is no way to %s: %s", at, text(err))
	}
	return failed("not_connected", "check address and port", "no connection to %s: %s", at, text(err))
}

func timedOut(err error) bool {
	var n net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &n) && n.Timeout()
}

// answered explains an error that was met after the ClientHello was sent, or while TLS was spoken.
func (p *prober) answered(err error) *Finding {
	var known *Finding
	var strange *notTLSError
	var alert *alertError
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, errEnough), errors.Is(err, net.ErrClosed) && p.ctx.Err() != nil:
		return failed("incomplete", "allow more time with --timeout", "not asked to the end: %s", errEnough)
	case errors.As(err, &alert):
		return alertFinding(alert.alert)
	case errors.As(err, &strange):
		return p.speaks(strange.first)
	case errors.Is(err, errMalformed):
		return failed("malformed", "try the other versions; update the server's TLS library, or look for a device in between", "what came back breaks the rules of TLS: %s", text(err))
	}
	if a, ok := AlertIn(err); ok {
		return alertFinding(a)
	}
	next := "check the port"
	if p.o.StartTLS == "" {
		next += "; if the server speaks something else before TLS, name it with --starttls"
		if name := wellKnown[p.port]; name != "" {
			next += ", on this port probably " + name
		}
	}
	if p.o.ProxyProtocol == 0 {
		next += "; if it expects the header of a load balancer, try --proxy-protocol v1 or v2"
	} else {
		next += "; if it expects no PROXY header, leave --proxy-protocol out, and check that this address may send one"
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return failed("closed", next, "the server closed the connection without an answer")
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return failed("reset", next, "the server reset the connection without an answer")
	case timedOut(err):
		return failed("silent", next, "the server took the connection and did not answer within %s", p.o.Timeout)
	}
	return failed("tls_failed", "try openssl s_client -connect to see the bytes", "%s", text(err))
}

func alertFinding(a Alert) *Finding {
	return failed("alert", a.Next(), "TLS alert %s: %s", a, a.Means())
}

// wellKnown are the ports on which a protocol with STARTTLS is usual.
var wellKnown = map[string]string{"25": "smtp", "587": "smtp", "143": "imap", "389": "ldap", "5432": "postgres"}

// speaks recognises what is not TLS by its first bytes.
func (p *prober) speaks(first []byte) *Finding {
	const code = "not_tls"
	has := func(prefix string) bool { return bytes.HasPrefix(first, []byte(prefix)) }
	line, _, _ := strings.Cut(string(first), "\n")
	shown := quote(strings.TrimRight(line, "\r"))
	starttls := func(name string) string {
		if p.o.StartTLS != "" {
			return "the server went on without TLS; look in its configuration for TLS"
		}
		return "TLS begins within that protocol: try --starttls " + name
	}
	switch {
	case has("HTTP/"), has("<!DOC"), has("<html"):
		return failed("plain_http", "use the port that speaks https, often 443 or 8443, or switch TLS on for this one",
			"the server speaks plain HTTP on this port: it answered %s", shown)
	case has("SSH-"):
		return failed("ssh", "this is a port for ssh; check host and port", "an SSH server answered: %s", shown)
	case has("220"):
		return failed("smtp_or_ftp", starttls("smtp")+", if this is a mail server; FTP is not supported here", "a server of SMTP or FTP greeted: %s", shown)
	case has("* OK"), has("* PREAUTH"), has("* BYE"):
		return failed("imap", starttls("imap"), "an IMAP server greeted: %s", shown)
	case has("+OK"):
		return failed("pop3", "use its port with TLS from the first byte, often 995", "a POP3 server greeted: %s", shown)
	case has("-ERR"), has("-DENIED"):
		return failed(code, "it is Redis or POP3 without TLS; switch TLS on there, or use its TLS port", "the server answered in clear: %s", shown)
	case has("PROXY "), has("\r\n\r\n\x00\r\nQUIT\n"):
		return failed(code, "check that the port is not that of a load balancer's target", "the server sent a PROXY header itself")
	case len(first) > 5 && first[3] == 0 && (first[4] == 0x0a || first[4] == 0xff):
		return failed("mysql", "TLS begins within the protocol of MySQL, which is not supported here; its own client tells: \\s after mysql --ssl-mode=REQUIRED", "a MySQL or MariaDB server greeted")
	case len(first) >= 5 && first[0] == 0 && first[3] == 4 && first[4] == 0:
		return failed("plain_http", "use the port that speaks https, or switch TLS on for this one", "the server speaks HTTP/2 without TLS on this port")
	case first[0] == 'E' && bytes.Contains(first, []byte("FATAL")), len(first) == 1 && (first[0] == 'N' || first[0] == 'E'):
		return failed("postgres", starttls("postgres"), "a PostgreSQL server answered")
	case first[0] == 0x30:
		return failed("ldap", starttls("ldap"), "a server that may be LDAP answered in clear")
	case first[0] == 0x80 || first[0]&0x80 != 0 && len(first) > 2 && first[2] <= 4:
		return failed(code, "the server is too old for TLS; replace it", "the server answered as SSL 2.0 did")
	}
	return failed(code, "check the port, and what is meant to run there", "what came back is no TLS: %s", shown)
}
