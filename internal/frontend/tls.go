package frontend

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"time"

	"countersign/internal/forward"
	"countersign/internal/hostname"
	"countersign/internal/identity"
	"countersign/internal/policy"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/snapshot"
	"countersign/internal/trust"
)

// errRefused is what crypto/tls is told; the verdict itself is kept in the connection.
var errRefused = errors.New("client certificate refused")

// handshake makes c a TLS connection, verifies the client under the host's policy, and records how it ended. It reports
// whether requests may be read.
func (c *conn) handshake() bool {
	start := time.Now()
	var hs record.Handshake
	c.watch.Main.Set(c.watch.Clock, forward.Handshaking, c.listener.Limits.Handshake)
	tc := tls.Server(c.sock, &tls.Config{GetConfigForClient: c.configFor, MinVersion: tls.VersionTLS12})
	err := tc.Handshake()
	hs.Ref, hs.Client, hs.SNI, hs.Duration = c.ref, c.peer, c.sni, time.Since(start)
	if c.host != nil {
		hs.Host, hs.Policy = c.host.Name, c.host.Auth.Mode.String()
		if s := c.host.Auth.Store; s != nil {
			hs.Store, hs.StoreVer = s.Name(), s.Version()
		}
	}
	state := tc.ConnectionState()
	if state.Version != 0 {
		hs.Version, hs.ALPN = tls.VersionName(state.Version), state.NegotiatedProtocol
	}
	if err != nil {
		c.explain(&hs, err)
		c.book.Handshake(&hs)
		c.refuseHandshake(tc, err)
		return false
	}
	hs.Cipher, hs.Group, hs.Resumed = tls.CipherSuiteName(state.CipherSuite), state.CurveID.String(), state.DidResume
	hs.Reason = reason.Completed
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
	c.identify()
	hs.Identity = c.client
	c.book.Handshake(&hs)
	c.secure = tc
	return true
}

// configFor is the one constructor of TLS configurations: it finds the host by server name and returns what that host
// presents and asks for. Its closures write into this connection, so there is no table by address. Where no host is
// found the configuration has no certificate, which makes crypto/tls send unrecognized_name.
func (c *conn) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	c.sni = hello.ServerName
	l := c.listener.Listener
	conf := &tls.Config{
		MinVersion: l.TLS.MinVersion, CipherSuites: l.TLS.Ciphers, CurvePreferences: l.TLS.Groups,
		NextProtos: protocols(c.listener.Protocol),
		// Explicit, and for every host: a configuration without keys of its own would use the parent's, which are the
		// same for all hosts (A04).
		SessionTicketsDisabled: true,
		Renegotiation:          tls.RenegotiateNever,
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
	conf.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		// Called right before our flight; what we write after the next read, and before the client is verified, can only be
		// an alert.
		c.sock.MuteOnRead = host.Auth.Reset
		return host.Keys.For(h), nil
	}
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
		c.presented = cs.PeerCertificates
		c.verdict = judge(&host.Auth, c.presented, time.Now())
		if !c.verdict.Accepted && host.Auth.Enforced() && !host.Auth.Page {
			return errRefused
		}
		return nil
	}
	return conf, nil
}

// protocols are what a listener speaks inside TLS (ALPN); nil takes whatever the client offers.
func protocols(p snapshot.Protocol) []string {
	if p == snapshot.HTTPS {
		return []string{"http/1.1", "http/1.0"}
	}
	return nil
}

// judge is the only place where a client is verified: at the handshake, and again when the policy it was accepted under
// has changed.
func judge(auth *snapshot.ClientAuth, presented []*x509.Certificate, now time.Time) trust.Verdict {
	switch {
	case auth.Mode == policy.Off:
		return trust.Verdict{Accepted: true}
	case auth.Mode == policy.PassthroughChain:
		return trust.Verdict{Reason: reason.NotVerified}
	case len(presented) > 0:
		return auth.Store.Verify(presented, now)
	case auth.Mode == policy.Request:
		return trust.Verdict{Accepted: true, Reason: reason.ClientCertMissing}
	}
	return trust.Verdict{Reason: reason.ClientCertMissing, Expected: "a client certificate", Found: "none"}
}

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
}

// identify derives the client from the verdict in force.
func (c *conn) identify() {
	c.identityErr = nil
	c.validUntil = time.Time{}
	switch {
	case c.host != nil && c.host.Auth.Mode == policy.PassthroughChain:
		c.client = identity.PassthroughChain(c.presented)
	case !c.verdict.Accepted:
		c.client = identity.Unverified(c.presented, c.verdict.Reason)
	case len(c.verdict.Chain) > 0:
		id, err := identity.FromChain(c.verdict.Chain)
		if err != nil {
			c.client, c.identityErr = identity.Absent(reason.IdentityTooLarge), err
			return
		}
		c.client = identity.Present(id)
		c.validUntil = c.host.Auth.Store.GoodUntil(c.verdict.Chain, time.Now())
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
