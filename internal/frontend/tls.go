package frontend

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http2"

	"countersign/internal/forward"
	"countersign/internal/hostname"
	"countersign/internal/identity"
	"countersign/internal/policy"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/snapshot"
	"countersign/internal/socket"
	"countersign/internal/ticket"
	"countersign/internal/trust"
)

// errRefused is what crypto/tls is told; the verdict itself is kept in the connection.
var errRefused = errors.New("client certificate refused")

// handshake makes c a TLS connection, verifies the client under the host's policy, and records how it ended. It reports
// whether requests may be read.
//
//go:noinline
func (c *conn) handshake() bool {
	start := time.Now()
	var hs record.Handshake
	c.timeHandshake()
	c.prepareHandover()
	tc := tls.Server(wire{c.sock, c}, beforeHello)
	// A turn is held while the handshake computes: from the ClientHello to our flight, and from the client's to ours.
	c.turn = c.f.handshakes.Turn(&c.who)
	c.sock.Before = c.turn.End
	err := tc.Handshake()
	c.turn.End()
	c.sock.Before, c.sock.More = nil, false
	if _, late := c.watch.Main.Expired(); late && err == nil {
		err = os.ErrDeadlineExceeded // the sweep has ended the connection, whatever crypto/tls still finished
	}
	hs.Ref, hs.Client, hs.SNI, hs.Duration = c.ref, c.peer, c.sni, time.Since(start)
	hs.Local, hs.Presented = c.sock.LocalAddr().String(), c.presented
	if c.host != nil {
		hs.Host, hs.Policy = c.host.Name, c.host.Auth.Mode.String()
		if c.listener.Named(c.name) {
			if hs.Name = c.sni; hs.Name != string(c.name) {
				hs.Name = string(c.name)
			}
		}
		if s := c.host.Auth.Store; s != nil {
			hs.Store, hs.StoreVer = s.Name(), s.Version()
		}
	}
	state := tc.ConnectionState()
	if state.Version != 0 {
		hs.Version, hs.ALPN, hs.Resumed = tls.VersionName(state.Version), state.NegotiatedProtocol, state.DidResume
	}
	if state.CipherSuite != 0 {
		hs.Cipher = cipherNames[state.CipherSuite]
	}
	if state.CurveID != 0 {
		hs.Group = state.CurveID.String()
	}
	if err != nil {
		c.forgetHandover()
		c.explain(&hs, err)
		c.book.Handshake(&hs)
		c.refuseHandshake(tc, err)
		return false
	}
	hs.Reason = reason.Completed
	c.share()
	if !c.verdict.Accepted {
		hs.Verdict = c.verdict.Reason
		hs.Proven = true
		if len(c.presented) > 0 {
			hs.Leaf = c.presented[0]
		}
		if c.host.Auth.Page { // let in only to be told why
			c.describe(&hs)
		}
	}
	c.sock.Mute, c.sock.MuteOnRead = false, false
	// Only now has the client proven that it holds the key of the certificate it showed.
	if s := c.host.Auth.Store; s != nil {
		s.Remember(&c.verdict)
	}
	c.f.soon(c.verdict.Ask)
	c.identify(c.presented)
	c.hold(&c.standing)
	hs.Identity = c.client
	hs.Lenient = c.verdict.Lenient.String()
	if v, refused := shadowed(&c.host.Auth, c.presented, time.Now()); refused {
		hs.Shadow, hs.ShadowFound = v.Reason, v.Found
	}
	c.book.Handshake(&hs)
	c.secure, c.multiplexed = c.takeOver(tc), state.NegotiatedProtocol == http2.NextProtoTLS
	return true
}

// beforeHello is the configuration until the ClientHello is read. It has no keys for session tickets, which crypto/tls would
// use for every host whose own configuration has none (A04).
var beforeHello = &tls.Config{
	GetConfigForClient:     func(hello *tls.ClientHelloInfo) (*tls.Config, error) { return hello.Conn.(wire).of.configFor(hello) },
	MinVersion:             tls.VersionTLS12,
	SessionTicketsDisabled: true,
}

// wire is a connection as crypto/tls has it.
type wire struct {
	*socket.Conn
	of *conn
}

// Write writes to the connection.
func (w wire) Write(p []byte) (int, error) {
	if h := w.of.handover(); h != nil {
		h.Sent(p)
	}
	return w.Conn.Write(p)
}

// SetWriteDeadline sets none while what is written is held back, which waits only for a client that has stopped to read:
// crypto/tls sets one for its goodbye, and one in the past behind it, two timers for each connection. What bounds that wait is
// the time for Draining, and the sweep, which does not go through here.
func (w wire) SetWriteDeadline(t time.Time) error {
	if w.More && w.HasDescriptor() {
		return nil
	}
	return w.Conn.SetWriteDeadline(t)
}

// cipherNames are those of the standard library, which makes all of its list anew to find one.
var cipherNames = func() map[uint16]string {
	m := make(map[uint16]string)
	for _, c := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		m[c.ID] = c.Name
	}
	return m
}()

// configFor is the one constructor of TLS configurations: it finds the host by server name and returns what that host
// presents and asks for. Its closures write into this connection, so there is no table by address. Where no host is
// found the configuration has no certificate, which makes crypto/tls send unrecognized_name.
func (c *conn) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	c.sni = hello.ServerName
	l := c.listener.Listener
	if !c.takeTurn() {
		return nil, errRefused
	}
	conf := &tls.Config{
		MinVersion: l.TLS.MinVersion, CipherSuites: l.TLS.Ciphers, CurvePreferences: l.TLS.Groups,
		NextProtos: protocols(l.TLS.ALPN, hello),
		// Until a host is found; keys of the library's own there are none, here or before the ClientHello (A04).
		SessionTicketsDisabled: true,
		Renegotiation:          tls.RenegotiateNever,
	}
	told := false
	if k := c.f.keyLog.Load(); k != nil && k.listener == l.Name {
		told, conf.KeyLogWriter = true, k
	}
	if h := c.handover(); h != nil {
		h.Tee, conf.KeyLogWriter = conf.KeyLogWriter, h
	}
	if len(hello.ServerName) > 0 {
		name, err := hostname.AppendCanonicalSNI(c.name[:0], []byte(hello.ServerName))
		if err != nil {
			c.early = reason.SNIInvalid
			return conf, nil
		}
		c.name = name
	}
	c.host = l.Host(c.name)
	if c.host == nil {
		c.early = reason.SNIUnknown
		if len(c.name) == 0 {
			c.early = reason.SNIMissing
		}
		return conf, nil
	}
	host := c.host
	c.version = host.Auth.Version()
	conf.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		// Called right before our flight; what we write after the next read, and before the client is verified, can only be
		// an alert.
		c.sock.MuteOnRead = host.Auth.Reset
		if !c.takeTurn() { // again: a HelloRetryRequest gave it back
			return nil, errRefused
		}
		pair := host.Keys.For(h)
		if pair != nil {
			c.ours = pair.Leaf
		}
		return pair, nil
	}
	// The last word on conf: it goes around VerifyConnection.
	session := c.f.tickets.Session(c.listener.scope(host))
	session.CertificateOnly, session.Only13 = host.Auth.Mode != policy.Off, told
	defer func() {
		session.Install(conf)
		if wrap := conf.WrapSession; wrap != nil {
			conf.WrapSession = func(cs tls.ConnectionState, state *tls.SessionState) ([]byte, error) {
				// crypto/tls is about to write a ticket: in a full handshake the client has proven itself.
				c.sock.Mute, c.sock.MuteOnRead = false, false
				if h := c.handover(); h != nil {
					h.Tickets++
				}
				// In TLS 1.3, where a certificate was asked for, the ticket is all there is left to say. It goes with the answer
				// to a request that is there already.
				c.sock.More = cs.Version == tls.VersionTLS13 && !cs.DidResume && conf.ClientAuth != tls.NoClientCert
				return wrap(cs, state)
			}
		}
	}()
	if host.Auth.Mode == policy.Off {
		return conf, nil
	}
	// No mode lets crypto/tls verify: one verifier decides, with reasons, on full and on resumed handshakes.
	conf.ClientAuth = tls.RequestClientCert
	if host.Auth.Mode == policy.Require && !host.Auth.Reset && !host.Auth.Page {
		conf.ClientAuth = tls.RequireAnyClientCert // so that a missing certificate gets the alert made for it
	}
	conf.ClientCAs = host.Auth.Hints
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		if !c.takeTurn() {
			return errRefused
		}
		c.presented = cs.PeerCertificates
		// Before the verdict: what is learnt after it, until the client has proven itself, makes another version.
		c.version = host.Auth.Version()
		c.verdict = judge(&host.Auth, c.presented, trust.Belief{}, time.Now())
		if c.verdict.Reason == reason.OCSPUnavailable && c.f.outside != nil {
			c.turn.End() // others need not wait for the responder
			c.f.ask(c.verdict.Ask)
			c.version = host.Auth.Version()
			c.verdict = judge(&host.Auth, c.presented, trust.Belief{}, time.Now())
		}
		if host.Auth.Store != nil {
			c.f.learn(host.Auth.Store.Points(&c.verdict))
		}
		if !c.verdict.Accepted && host.Auth.Enforced() && !host.Auth.Page {
			// On a resumed connection nobody asked for our certificate, where MuteOnRead is set.
			c.sock.Mute = c.sock.Mute || host.Auth.Reset
			return errRefused
		}
		return nil
	}
	return conf, nil
}

// takeTurn waits for the handshake's turn to compute, and reports whether it came. One that is turned away ends with a
// reset: what there is too much of is not spent on last words.
func (c *conn) takeTurn() bool {
	why := c.turn.Begin()
	if why != reason.Unset {
		c.early, c.sock.Mute = why, true
	}
	return why == reason.Unset
}

// scope is what a session may be resumed under: this listener, the policy of h, which is one of its hosts, and the content of
// its trust store. What can change without a new configuration, dates and OCSP answers, is asked on every resumption, like
// all the rest.
func (l *active) scope(h *snapshot.Host) ticket.Scope {
	if s, known := l.scopes.Load(h); known {
		return s.(ticket.Scope)
	}
	store := ""
	if h.Auth.Store != nil {
		sum := h.Auth.Store.Sum()
		store = string(sum[:])
	}
	s := ticket.ScopeOf(l.Name, l.Address, string(h.Policy), h.Auth.Mode.String(), store, fmt.Sprint(h.Auth.Page, h.Auth.Reset, l.TLS.MinVersion))
	l.scopes.Store(h, s)
	return s
}

// askTime bounds how long a handshake waits for OCSP responders.
const askTime = 3 * time.Second

// ask gets answers that a handshake cannot do without, and reports whether there may be new ones.
func (f *Frontend) ask(questions []*trust.Query) bool {
	if f.outside == nil || len(questions) == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	for _, q := range questions {
		if f.outside.Ask(ctx, q) != nil {
			break // the verdict says what is missing, and the condition why
		}
	}
	return true
}

// soon gets answers that are wanted, and not waited for.
func (f *Frontend) soon(questions []*trust.Query) {
	if f.outside != nil {
		for _, q := range questions {
			f.outside.Soon(q)
		}
	}
}

// learn notes where lists are published. The chain was verified; that the client holds its key is not proven yet, but the
// address is its CA's word, and of use to others.
func (f *Frontend) learn(points []trust.Point) {
	if f.outside != nil {
		for _, p := range points {
			f.outside.Learn(p)
		}
	}
}

// protocols are what a listener speaks inside TLS, of which alpn is the configured choice. HTTP/2 is not offered to a client
// that has none of the cipher suites it may be spoken with (RFC 9113 section 9.2.2).
func protocols(alpn []string, hello *tls.ClientHelloInfo) []string {
	if slices.Contains(alpn, http2.NextProtoTLS) && !slices.ContainsFunc(hello.CipherSuites, fitForHTTP2) {
		return slices.DeleteFunc(slices.Clone(alpn), func(p string) bool { return p == http2.NextProtoTLS })
	}
	return alpn
}

func fitForHTTP2(suite uint16) bool {
	switch suite {
	case tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256:
		return true
	}
	return false
}

// judge is the only place where a client is verified: at the handshake, and again when the policy it was accepted under
// has changed.
func judge(auth *snapshot.ClientAuth, presented []*x509.Certificate, was trust.Belief, now time.Time) trust.Verdict {
	switch {
	case auth.Mode == policy.Off:
		return trust.Verdict{Accepted: true}
	case auth.Mode == policy.PassthroughChain:
		return trust.Verdict{Reason: reason.NotVerified}
	case len(presented) > 0:
		return auth.Store.VerifyAgain(presented, was, now)
	case auth.Mode == policy.Request:
		return trust.Verdict{Accepted: true, Reason: reason.ClientCertMissing}
	}
	return trust.Verdict{Reason: reason.ClientCertMissing, Expected: wantsCert, Found: "none"}
}

// wantsCert is what is expected where no certificate was sent.
const wantsCert = "a client certificate"

// describe notes in hs why the client was refused.
func (c *conn) describe(hs *record.Handshake) {
	v := &c.verdict
	if len(c.presented) > 0 {
		hs.Leaf = c.presented[0]
	}
	hs.Reason, hs.At, hs.Depth, hs.Expected, hs.Found, hs.Detail = v.Reason, v.At, v.Depth, v.Expected, v.Found, ""
	if v.Cause != nil {
		hs.Detail = bounded(v.Cause)
	}
	hs.Chain, hs.Tried = v.Chain, v.Tried
	if c.host != nil && c.book.Keeps() {
		hs.Evidence = c.host.Auth.Store.Evidence(v.Chain, time.Now())
	}
}

// believed is the client of a verdict that was accepted, whose names are printed once for as long as its chain is remembered.
func believed(v *trust.Verdict) (identity.Client, error) {
	if id, known := v.Kept().(*identity.Identity); known {
		return identity.Present(id), nil
	}
	id, err := identity.FromChain(v.Chain)
	if err != nil {
		return identity.Client{}, err
	}
	v.Keep(id)
	return identity.Present(id), nil
}

// identify derives the client from the verdict in force.
func (c *standing) identify(presented []*x509.Certificate) {
	c.identityErr = nil
	c.validUntil = time.Time{}
	switch {
	case c.host != nil && c.host.Auth.Mode == policy.PassthroughChain:
		c.client = identity.PassthroughChain(presented)
	case !c.verdict.Accepted:
		c.client = identity.Unverified(presented, c.verdict.Reason)
	case len(c.verdict.Chain) > 0:
		client, err := believed(&c.verdict)
		if err != nil {
			c.client, c.identityErr = identity.Absent(reason.IdentityTooLarge), err
			return
		}
		c.client = client
		c.validUntil = c.host.Auth.Store.GoodUntil(&c.verdict)
	case c.host != nil && c.host.Auth.Mode == policy.Request:
		c.client = identity.Absent(reason.ClientCertMissing)
	default:
		c.client = identity.Absent(reason.Unset)
	}
}

// alerts maps what crypto/tls says to reasons. Its errors have no types; TestErrorTexts holds these texts against the
// library that is built in.
var alerts = []struct {
	text   string
	reason reason.Reason
}{
	{"client didn't provide a certificate", reason.ClientCertMissing},
	{"failed to parse client certificate", reason.ClientCertUnparsable},
	{"client certificate contains an unsupported public key", reason.ClientCertWeakKey},
	{"client sent certificate containing RSA key larger than", reason.ClientCertWeakKey},
	{"invalid signature by the client certificate", reason.PossessionNotProven},
	{"client certificate used with invalid signature algorithm", reason.PossessionNotProven},
	// OpenSSL sends its alert about our certificate in clear, where crypto/tls expects an encrypted record.
	{"bad record MAC", reason.ClientAlert},
	{"client offered only unsupported versions", reason.TLSVersionUnsupported},
	{"no cipher suite supported by both", reason.NoCommonCipher},
	{"peer doesn't support any of the certificate's signature algorithms", reason.NoCommonSignature},
	{"no key exchanges supported by both", reason.NoCommonGroup},
	{"client requested unsupported application protocols", reason.NoCommonProtocol},
}

// explain finds the reason of a failed handshake.
func (c *conn) explain(hs *record.Handshake, err error) {
	hs.Reason, hs.Detail = reason.HandshakeFailed, bounded(err)
	why, timeout := c.watch.Main.Expired()
	var op *net.OpError
	var header tls.RecordHeaderError
	switch {
	case timeout:
		if hs.Reason = why; !c.greeted() {
			hs.Reason = reason.HelloTimeout
		}
		hs.Detail = ""
	case !c.verdict.Accepted && c.verdict.Reason != reason.Unset:
		c.describe(hs)
	case c.early != reason.Unset:
		hs.Reason, hs.Detail = c.early, ""
	case errors.As(err, &header):
		hs.Reason = reason.NotTLS
		if looksLikeHTTP(header.RecordHeader[:]) {
			hs.Reason = reason.PlainHTTPOnTLS
		}
	case errors.As(err, &op) && op.Op == "remote error":
		hs.Reason = reason.ClientAlert
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || op != nil && op.Op != "local error":
		hs.Reason = reason.HandshakeAborted // a local error is our own alert: the client did something wrong, but not that
	default:
		for _, a := range alerts {
			if strings.Contains(err.Error(), a.text) {
				hs.Reason = a.reason
				break
			}
		}
		if hs.Reason == reason.ClientCertMissing { // the same words as where judge finds it
			hs.Expected, hs.Found = wantsCert, "none"
		}
		if hs.Reason == reason.HandshakeFailed && !c.greeted() {
			hs.Reason = reason.HelloMalformed
		}
	}
}

// greeted reports whether a whole ClientHello was read.
func (c *conn) greeted() bool { return c.host != nil || c.early != reason.Unset }

func looksLikeHTTP(b []byte) bool {
	for _, m := range [...]string{"GET ", "HEAD ", "POST ", "PUT ", "DELET", "OPTIO", "PATCH", "CONNE", "TRACE"} {
		if strings.HasPrefix(string(b), m[:min(len(m), 5)]) {
			return true
		}
	}
	return false
}

// refuseHandshake ends a connection whose handshake failed: with what crypto/tls has sent already, or with a reset.
func (c *conn) refuseHandshake(tc *tls.Conn, err error) {
	var header tls.RecordHeaderError
	switch {
	case c.sock.Mute:
		c.sock.Reset()
		c.sock.Close()
		return
	case errors.As(err, &header) && looksLikeHTTP(header.RecordHeader[:]):
		c.watch.Main.Set(c.watch.Clock, forward.WritingClient, c.listener.Limits.WriteIdle)
		_, _ = io.WriteString(c.sock, "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n400 this port speaks TLS: use https://\n")
	}
	c.linger()
}

// bounded cuts an error's text: those of certificates can be as long as whoever made them liked (B21).
func bounded(err error) string {
	const limit = 256
	if s := err.Error(); len(s) > limit {
		return s[:limit] + "..."
	} else {
		return s
	}
}
