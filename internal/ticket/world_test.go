package ticket

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"countersign/internal/memnet"
	"countersign/internal/testpki"
)

// clock is a wall clock that tests set.
type clock struct{ nanos atomic.Int64 }

func (c *clock) now() time.Time       { return time.Unix(0, c.nanos.Load()) }
func (c *clock) pass(d time.Duration) { c.nanos.Add(int64(d)) }

// world is a PKI, a server that installs tickets as package frontend does, and what its clients keep.
type world struct {
	t      testing.TB
	clock  *clock
	keys   *Keys
	root   *testpki.Cert
	server *testpki.Cert
	alice  *testpki.Cert // under an intermediate
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, clock: new(clock), root: testpki.New(t)}
	w.clock.nanos.Store(time.Now().UnixNano())
	w.keys = newKeys(w.clock.now)
	w.server = w.root.Server("a.test", testpki.DNS("a.test", "b.test"), testpki.Lifetime(1000*time.Hour))
	w.alice = w.root.Intermediate("Partners CA").Client("alice", testpki.Lifetime(1000*time.Hour))
	return w
}

var versions = []struct {
	name string
	id   uint16
}{{"TLS 1.2", tls.VersionTLS12}, {"TLS 1.3", tls.VersionTLS13}}

// modes are the modes of client auth that frontend asks crypto/tls for.
var modes = []struct {
	name string
	auth tls.ClientAuthType
}{{"request", tls.RequestClientCert}, {"require", tls.RequireAnyClientCert}}

var scopeA, scopeB = ScopeOf("public", "a.test", "1"), ScopeOf("public", "b.test", "1")

// visit is one connection; see newVisit.
type visit struct {
	scope   Scope
	auth    tls.ClientAuthType
	version uint16
	name    string
	client  *testpki.Cert // nil for none
	cache   tls.ClientSessionCache
	verify  func(tls.ConnectionState) error
	host    func(*tls.Config) // changes the host's configuration before Install
	lost    bool              // the functions that Install sets
	browser func(*tls.Config) // changes the client's
}

func (w *world) newVisit(version uint16, cache tls.ClientSessionCache) visit {
	return visit{scope: scopeA, auth: tls.RequireAnyClientCert, version: version, name: "a.test", client: w.alice, cache: cache}
}

// seen is how a visit went.
type seen struct {
	state      tls.ConnectionState // the server's
	err        error               // the server's
	clientErr  error
	session    *Session
	verified   []tls.ConnectionState // calls of VerifyConnection
	unwrapped  int                   // calls of UnwrapSession
	wrapResume []bool                // calls of WrapSession: whether for a resumed session
}

func (s *seen) at() time.Time   { return s.session.Authenticated(s.state) }
func (s *seen) declined() error { return s.session.Declined(s.state) }

// serve is the server's half. It writes a byte after the handshake, so that a client reads its TLS 1.3 ticket.
func (w *world) serve(conn net.Conn, v *visit) *seen {
	s := new(seen)
	host := func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := &tls.Config{Certificates: []tls.Certificate{w.server.TLS()}, ClientAuth: v.auth, MinVersion: tls.VersionTLS12, Time: w.clock.now}
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			s.verified = append(s.verified, cs)
			if v.verify != nil {
				return v.verify(cs)
			}
			return nil
		}
		if v.host != nil {
			v.host(c)
		}
		s.session = w.keys.Session(v.scope)
		s.session.Install(c)
		if wrap, unwrap := c.WrapSession, c.UnwrapSession; wrap != nil {
			c.WrapSession = func(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
				s.wrapResume = append(s.wrapResume, cs.DidResume)
				return wrap(cs, ss)
			}
			c.UnwrapSession = func(id []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
				s.unwrapped++
				return unwrap(id, cs)
			}
		}
		if v.lost {
			c.WrapSession, c.UnwrapSession = nil, nil
		}
		return c, nil
	}
	tc := tls.Server(conn, &tls.Config{GetConfigForClient: host, MinVersion: tls.VersionTLS12, Time: w.clock.now, SessionTicketsDisabled: true})
	s.err = tc.Handshake()
	s.state = tc.ConnectionState()
	if s.err == nil {
		_, _ = io.WriteString(tc, "k")
	}
	_ = tc.Close()
	return s
}

func (w *world) visit(v visit) *seen {
	w.t.Helper()
	sc, cc := memnet.Pipe("192.0.2.80:443", "192.0.2.7:1111")
	done := make(chan *seen)
	go func() { done <- w.serve(sc, &v) }()
	c := &tls.Config{ServerName: v.name, RootCAs: w.root.Pool(), MinVersion: v.version, MaxVersion: v.version, ClientSessionCache: v.cache, Time: w.clock.now}
	if v.client != nil {
		own := v.client.TLS()
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
	}
	if v.browser != nil {
		v.browser(c)
	}
	tc := tls.Client(cc, c)
	got, err := io.ReadAll(tc)
	_ = tc.Close()
	s := <-done
	if s.clientErr = err; err == nil && string(got) != "k" {
		s.clientErr = errors.New("client read nothing")
	}
	return s
}

// full ends the test unless s is a full handshake that succeeded, and the ticket offered was declined for this reason.
func (s *seen) full(t testing.TB, declined error) {
	t.Helper()
	if s.err != nil || s.clientErr != nil || s.state.DidResume || s.declined() != declined {
		t.Fatalf("got %v, client %v, resumed %v, declined %v; want a full handshake, declined %v",
			s.err, s.clientErr, s.state.DidResume, s.declined(), declined)
	}
	s.verifiedOnce(t)
}

// resumed ends the test unless s is a resumed handshake that succeeded.
func (s *seen) resumed(t testing.TB) {
	t.Helper()
	if s.err != nil || s.clientErr != nil || !s.state.DidResume || s.declined() != nil {
		t.Fatalf("got %v, client %v, resumed %v, declined %v; want a resumed handshake",
			s.err, s.clientErr, s.state.DidResume, s.declined())
	}
	s.verifiedOnce(t)
}

func (s *seen) verifiedOnce(t testing.TB) {
	t.Helper()
	if len(s.verified) != 1 || s.verified[0].DidResume != s.state.DidResume {
		t.Fatalf("VerifyConnection was called %d times, want once", len(s.verified))
	}
}

// wallet is a client's session cache that keeps one ticket for whatever server.
type wallet struct{ cs *tls.ClientSessionState }

func (w *wallet) Get(string) (*tls.ClientSessionState, bool) { return w.cs, w.cs != nil }
func (w *wallet) Put(_ string, cs *tls.ClientSessionState)   { w.cs = cs }

// ticket is what the server gave.
func (w *wallet) ticket(t testing.TB) []byte {
	t.Helper()
	if w.cs == nil {
		t.Fatal("the client was given no ticket")
	}
	b, _, err := w.cs.ResumptionState()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// with is the wallet's session with another ticket in place of its own.
func (w *wallet) with(t testing.TB, ticket []byte) *wallet {
	t.Helper()
	_, state, err := w.cs.ResumptionState()
	if err != nil {
		t.Fatal(err)
	}
	b, err := state.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	state, err = tls.ParseSessionState(b)
	if err != nil {
		t.Fatal(err)
	}
	cs, err := tls.NewResumptionState(ticket, state)
	if err != nil {
		t.Fatal(err)
	}
	return &wallet{cs}
}

// chain is what VerifyConnection is given, byte by byte.
func chain(certs []*x509.Certificate) (all string) {
	for _, c := range certs {
		all += string(c.Raw) + "|"
	}
	return all
}
