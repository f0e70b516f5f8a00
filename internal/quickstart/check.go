package quickstart

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"countersign/internal/reason"
)

// result is what came of a call.
type result struct {
	status int
	alert  string
	echo   echo
	reason string // of Countersign's record
	// backend is what backend 3 decided about the client's certificate, where it was asked.
	backend reason.Reason
	err     error // what went wrong besides a refusal
}

// check makes all calls and prints what came of each. The error counts the differences.
func (s *site) check(w io.Writer) error {
	roots := x509.NewCertPool()
	roots.AddCert(s.pki["root-ca"].cert)
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "CALL\tSERVER NAME\tCLIENT\tTLS\tEXPECTED\tGOT\tOK")
	total, wrong := 0, 0
	start := time.Now()
	for _, c := range calls() {
		for _, v := range c.versions() {
			r := s.perform(c, v, roots)
			total++
			expected, got, ok := c.expect.text(v), r.text(), "ok"
			if r.err != nil || expected != got {
				ok = "WRONG"
				wrong++
			}
			if r.err != nil {
				got += " (" + r.err.Error() + ")"
			}
			name := c.name
			if c.host != "" {
				name += ", Host " + c.host
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.title, name, c.certificateOf(), versionName(v), expected, printable(got), ok)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d calls ended otherwise than expected; their lines say WRONG", wrong, total)
	}
	fmt.Fprintf(w, "\nall %d calls ended as expected, in %s\n", total, time.Since(start).Round(10*time.Millisecond))
	return nil
}

func versionName(v uint16) string {
	switch v {
	case tls.VersionTLS12:
		return "1.2"
	case tls.VersionTLS13:
		return "1.3"
	}
	return "-"
}

// text puts an expectation as result.text puts what happened, so that the two can be compared and read.
func (e expectation) text(version uint16) string {
	r := result{status: e.status, alert: e.alert(version), backend: e.backend, echo: echo{Backend: e.from, Who: e.who, TLSClient: e.tlsClient}}
	if e.reason != reason.Unset {
		r.reason = e.reason.String()
	}
	return r.text()
}

func (r result) text() string {
	var parts []string
	switch {
	case r.status != 0:
		parts = append(parts, fmt.Sprint(r.status))
	case r.alert != "":
		parts = append(parts, "refused, alert "+r.alert)
	default:
		parts = append(parts, "no answer, no alert")
	}
	if r.reason != "" {
		parts = append(parts, r.reason)
	}
	if r.echo.Backend != "" {
		saw := "backend " + r.echo.Backend + " sees " + r.echo.Who
		if r.echo.TLSClient != "" {
			saw += ", in TLS " + r.echo.TLSClient
		}
		parts = append(parts, saw)
	}
	if r.backend != reason.Unset && r.backend != reason.Completed {
		parts = append(parts, "backend: "+r.backend.String())
	}
	return strings.Join(parts, "; ")
}

// waits of a call; on loopback nothing comes near them.
const (
	callLimit   = 10 * time.Second
	recordLimit = 5 * time.Second
)

// perform makes one call on a connection of its own, and finds out what both sides say about it.
func (s *site) perform(c call, version uint16, roots *x509.CertPool) (r result) {
	verdicts, records := s.backends.verdicts.mark(), s.records.mark()
	raw, err := net.DialTimeout("tcp", address(c.port(s.sockets.ports)), callLimit)
	if err != nil {
		r.err = err
		return r
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(callLimit))
	local := raw.LocalAddr().String()
	conn := raw
	if !c.plain {
		conf, err := s.client(c, version, roots)
		if err != nil {
			r.err = err
			return r
		}
		conn = tls.Client(raw, conf)
	}
	if err := r.exchange(c, conn); err != nil {
		r.refused(err)
	}
	raw.Close() // a passed-through connection is recorded when it ends

	if c.expect.reason != reason.Unset {
		e, ok := s.records.await(records, local, recordLimit)
		if r.reason = e.Reason; !ok {
			r.reason = "no record"
		}
	}
	if c.expect.backend != reason.Unset {
		if v, ok := s.backends.verdicts.await(verdicts, recordLimit); ok {
			r.backend = v.reason
		}
	}
	return r
}

// client is the TLS configuration of a caller. It shows its certificate whatever the server asks for: what is refused has
// to be refused by the server, not held back by the client.
func (s *site) client(c call, version uint16, roots *x509.CertPool) (*tls.Config, error) {
	conf := &tls.Config{ServerName: c.name, RootCAs: roots, MinVersion: version, MaxVersion: version, NextProtos: []string{"http/1.1"}}
	if c.client == "" {
		return conf, nil
	}
	cert, err := s.folder.read("pki/" + c.client + ".pem")
	if err != nil {
		return nil, err
	}
	key, err := s.folder.read("pki/" + c.client + ".key")
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	return conf, err
}

// exchange sends one request and reads its answer.
func (r *result) exchange(c call, conn net.Conn) error {
	host := c.host
	if host == "" {
		host = c.name
	}
	head := "GET /hello HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n"
	for _, h := range c.headers {
		head += h + "\r\n"
	}
	_, err := io.WriteString(conn, head+"\r\n")
	if err != nil && !isTLS13(conn) {
		return err
	}
	// In TLS 1.3 the refusal can arrive while we write; the alert is then still there to be read.
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	r.status = resp.StatusCode
	if resp.Header.Get("Content-Type") == "application/json" {
		return json.Unmarshal(body, &r.echo)
	}
	return nil
}

func isTLS13(conn net.Conn) bool {
	c, ok := conn.(*tls.Conn)
	return ok && c.ConnectionState().Version == tls.VersionTLS13
}

// refused notes the alert that ended a call, or the error if there was none.
func (r *result) refused(err error) {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		r.alert = strings.TrimPrefix(op.Err.Error(), "tls: ") // crypto/tls does not export the number
		return
	}
	r.err = err
}
