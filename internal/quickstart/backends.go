package quickstart

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"countersign/internal/identity"
	"countersign/internal/reason"
	"countersign/internal/trust"
)

// echo is what a backend answers: whom it saw, and how it knows.
type echo struct {
	Backend string `json:"backend"`
	// Who is the client as this backend understands it, and How is why it believes that.
	Who string `json:"who"`
	How string `json:"how"`
	// TLSClient is the certificate that the backend itself was shown; empty for none.
	TLSClient string            `json:"tls_client,omitempty"`
	Method    string            `json:"method"`
	Host      string            `json:"host"`
	Path      string            `json:"path"`
	Headers   map[string]string `json:"headers,omitempty"`
}

const nobody = "no client"

// backends are the three demo services.
type backends struct {
	servers  []*http.Server
	done     sync.WaitGroup
	verdicts verdicts
}

// startBackends serves the three backends on their sockets.
func startBackends(s *sockets, f *folder, pki map[string]*entity) (*backends, error) {
	clients, edge, err := stores(f, pki)
	if err != nil {
		return nil, err
	}
	b := new(backends)
	var sock [3]net.Listener
	for i, port := range []int{s.http, s.https, s.mtls} {
		if sock[i], err = s.take(address(port)); err != nil {
			return nil, portError(port, "a backend", err)
		}
	}
	keys := func(names ...string) []tls.Certificate {
		var out []tls.Certificate
		for _, n := range names {
			e := pki[n]
			pair := tls.Certificate{Certificate: [][]byte{e.cert.Raw}, PrivateKey: e.key, Leaf: e.cert}
			if n == "passthrough" {
				pair.Certificate = append(pair.Certificate, pki["intermediate-ca"].cert.Raw)
			}
			out = append(out, pair)
		}
		return out
	}
	server := func() *tls.Config {
		return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, SessionTicketsDisabled: true}
	}
	b.serve(sock[0], nil, answer{name: "http"})

	conf := server()
	conf.Certificates = keys("backend")
	b.serve(sock[1], conf, answer{name: "https"})

	conf = server()
	conf.Certificates = keys("backend", "passthrough") // crypto/tls chooses by server name
	conf.ClientAuth = tls.RequireAnyClientCert
	conf.ClientCAs = hintsOf(pki["internal-ca"], pki["intermediate-ca"], pki["root-ca"])
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		if v := edge.Verify(cs.PeerCertificates, time.Now()); v.Accepted {
			return nil
		}
		return clients.Verify(cs.PeerCertificates, time.Now()).Err()
	}
	b.serve(sock[2], conf, answer{name: "mtls", edge: edge})
	return b, nil
}

// hintsOf are the CA names that a backend asks for; whom it believes, VerifyConnection says.
func hintsOf(cas ...*entity) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, ca := range cas {
		pool.AddCert(ca.cert)
	}
	return pool
}

// stores are whom backend 3 believes: clients by Countersign's own rules with the same files, and Countersign itself.
func stores(f *folder, pki map[string]*entity) (clients, edge *trust.Store, err error) {
	bundle, err := f.read(bundleFile)
	if err != nil {
		return nil, nil, err
	}
	anchors, _, err := trust.LoadBundle(bundle, false)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", f.path(bundleFile), err)
	}
	data, err := f.read(crlFile)
	if err != nil {
		return nil, nil, err
	}
	crl, err := trust.ParseCRL(data)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", f.path(crlFile), err)
	}
	if clients, err = trust.NewStore("clients", anchors, []*trust.CRL{crl}, nil, trust.Options{CheckRevocation: true}); err != nil {
		return nil, nil, err
	}
	edge, err = trust.NewStore("edge", []*x509.Certificate{pki["internal-ca"].cert}, nil, nil, trust.Options{})
	return clients, edge, err
}

// serve serves one backend until close; conf is nil for plain HTTP.
func (b *backends) serve(sock net.Listener, conf *tls.Config, h http.Handler) {
	l := sock
	if conf != nil {
		greeted := &greeter{Listener: sock, ready: make(chan net.Conn), done: make(chan struct{})}
		go greeted.run(conf, &b.verdicts)
		l = greeted
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: log.New(io.Discard, "", 0)}
	b.servers = append(b.servers, srv)
	b.done.Go(func() { _ = srv.Serve(l) })
}

func (b *backends) close() {
	for _, s := range b.servers {
		_ = s.Close()
	}
	b.done.Wait()
}

// verdict is how a TLS handshake with a backend ended.
type verdict struct {
	who    string // subject CN of the certificate shown
	reason reason.Reason
	err    error
}

// verdicts are the last ones, for --check and for the printed lines.
type verdicts struct {
	mu    sync.Mutex
	total int
	last  []verdict     // the newest of them
	more  chan struct{} // closed and replaced when one is added; nil while nobody waits
	told  func(verdict)
}

const keepVerdicts = 64

func (v *verdicts) add(one verdict) {
	v.mu.Lock()
	v.total++
	v.last = append(v.last, one)
	if len(v.last) > keepVerdicts {
		v.last = append(v.last[:0], v.last[1:]...)
	}
	if v.more != nil {
		close(v.more)
		v.more = nil
	}
	told := v.told
	v.mu.Unlock()
	if told != nil {
		told(one)
	}
}

// tell hands every later verdict to told.
func (v *verdicts) tell(told func(verdict)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.told = told
}

// mark is the number of verdicts so far.
func (v *verdicts) mark() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.total
}

// await returns the first verdict after mark: that of a call which was made since, while nobody else calls. The client
// can hear of its refusal before we do.
func (v *verdicts) await(mark int, limit time.Duration) (verdict, bool) {
	timeout := time.After(limit)
	for {
		v.mu.Lock()
		if n := v.total - mark; n > 0 && n <= len(v.last) {
			defer v.mu.Unlock()
			return v.last[len(v.last)-n], true
		}
		if v.more == nil {
			v.more = make(chan struct{})
		}
		more := v.more
		v.mu.Unlock()
		select {
		case <-more:
		case <-timeout:
			return verdict{}, false
		}
	}
}

// greeter makes the TLS handshake of a backend before net/http sees the connection, because net/http closes one whose
// handshake failed at once: with bytes of the client unread that is a TCP reset, and the alert can be lost to it.
type greeter struct {
	net.Listener
	ready chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (g *greeter) run(conf *tls.Config, v *verdicts) {
	for {
		raw, err := g.Listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(50 * time.Millisecond) // out of descriptors, for one
			continue
		}
		go g.greet(raw, conf, v)
	}
}

func (g *greeter) greet(raw net.Conn, conf *tls.Config, v *verdicts) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c := tls.Server(raw, conf)
	err := c.HandshakeContext(ctx)
	if conf.ClientAuth != tls.NoClientCert {
		v.add(verdictOf(c, err))
	}
	if err != nil {
		if t, ok := raw.(*net.TCPConn); ok && t.CloseWrite() == nil {
			_ = raw.SetReadDeadline(time.Now().Add(time.Second))
			_, _ = io.CopyN(io.Discard, raw, 64<<10)
		}
		raw.Close()
		return
	}
	select {
	case g.ready <- c:
	case <-g.done:
		raw.Close()
	}
}

// verdictOf finds out why a handshake with a backend failed.
func verdictOf(c *tls.Conn, err error) verdict {
	v := verdict{reason: reason.Completed, err: err}
	if certs := c.ConnectionState().PeerCertificates; len(certs) > 0 {
		v.who = certs[0].Subject.CommonName
	}
	var refusal *reason.Refusal
	switch {
	case err == nil:
	case errors.As(err, &refusal):
		v.reason = refusal.Reason
	case strings.Contains(err.Error(), "client didn't provide a certificate"): // crypto/tls has no type for it
		v.reason = reason.ClientCertMissing
	default:
		v.reason = reason.HandshakeFailed
	}
	return v
}

func (g *greeter) Accept() (net.Conn, error) {
	select {
	case c := <-g.ready:
		return c, nil
	case <-g.done:
		return nil, net.ErrClosed
	}
}

func (g *greeter) Close() error {
	g.once.Do(func() { close(g.done) })
	return g.Listener.Close()
}

// answer is the handler of a backend.
type answer struct {
	name string
	edge *trust.Store // backend 3: who Countersign is
}

const (
	howTLS    = "proved itself to this backend in TLS; identity headers are ignored"
	howEdge   = "identity headers, believed because " + edgeName + " proved itself in TLS"
	howHeader = "identity headers; but anyone who reaches this port could send them"
)

func (a answer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e := echo{Backend: a.name, Method: r.Method, Host: r.Host, Path: r.URL.Path, How: howHeader, Headers: identityHeaders(r.Header)}
	e.Who = headerClient(r.Header)
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		e.TLSClient = r.TLS.PeerCertificates[0].Subject.CommonName
		if a.edge != nil && a.edge.Verify(r.TLS.PeerCertificates, time.Now()).Accepted {
			e.How = howEdge
		} else {
			e.Who, e.How = e.TLSClient, howTLS
		}
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, 1<<20))
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	_ = enc.Encode(e)
}

const (
	headerCert    = "Client-Cert"
	headerSubject = "X-Amzn-Mtls-Clientcert-Subject"
)

// identityHeaders are the headers that say who and where from, Client-Cert as the subject of the certificate in it.
func identityHeaders(h http.Header) map[string]string {
	out := make(map[string]string)
	for name, values := range h {
		if strings.HasPrefix(name, "X-Forwarded") || name == headerSubject {
			out[name] = strings.Join(values, ", ")
		}
	}
	if values := h.Values(headerCert); len(values) > 0 {
		out[headerCert] = "not one certificate"
		if cert := headerCertificate(values); cert != nil {
			if subject, err := identity.AppendName(nil, cert.RawSubject); err == nil {
				out[headerCert] = "certificate of " + string(subject)
			}
		}
	}
	return out
}

// headerCertificate reads Client-Cert (RFC 9440: base64 of the DER between colons).
func headerCertificate(values []string) *x509.Certificate {
	if len(values) != 1 {
		return nil
	}
	text, ok1 := strings.CutPrefix(values[0], ":")
	text, ok2 := strings.CutSuffix(text, ":")
	der, err := base64.StdEncoding.DecodeString(text)
	if !ok1 || !ok2 || err != nil {
		return nil
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil
	}
	return cert
}

// headerClient is the client that the headers name. A backend behind Countersign needs no more than this.
func headerClient(h http.Header) string {
	if cert := headerCertificate(h.Values(headerCert)); cert != nil {
		return cert.Subject.CommonName
	}
	for part := range strings.SplitSeq(h.Get(headerSubject), ",") {
		if cn, ok := strings.CutPrefix(part, "CN="); ok {
			return cn
		}
	}
	return nobody
}
