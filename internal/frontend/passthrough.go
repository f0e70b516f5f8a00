package frontend

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"countersign/internal/forward"
	"countersign/internal/hostname"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/upstream"
)

// passthrough finds the server name in the ClientHello, and moves bytes between the client and the host's upstream
// without decrypting any.
//
//go:noinline
func (c *conn) passthrough() {
	start := time.Now()
	hs := record.Handshake{Ref: c.ref, Client: c.peer}
	defer func() {
		hs.SNI, hs.Duration = c.sni, time.Since(start)
		c.book.Handshake(&hs)
	}()
	fail := func(why reason.Reason, err error) {
		hs.Fail(why, err)
		c.linger()
	}

	// unrecognized_name, fatal (RFC 6066 section 3): the client learns why, and nothing else.
	unrecognized := func() { _, _ = c.sock.Write([]byte{21, 3, 1, 0, 2, 2, 112}) }

	c.timeHandshake()
	hello, sni, err := peek(c.sock)
	c.sni = sni
	if err != nil {
		why := reason.HelloMalformed
		var header tls.RecordHeaderError
		var op *net.OpError
		switch {
		case errors.Is(err, errHelloTooLarge):
			why = reason.HelloTooLarge
		case errors.As(err, &header):
			if why = reason.NotTLS; looksLikeHTTP(header.RecordHeader[:]) {
				why = reason.PlainHTTPOnTLS
			}
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &op) && op.Op == "read":
			why = reason.HandshakeAborted
		}
		if _, timeout := c.watch.Main.Expired(); timeout {
			why, err = reason.HelloTimeout, nil
		}
		fail(why, err)
		return
	}
	if sni != "" {
		if c.name, err = hostname.AppendCanonicalSNI(nil, []byte(sni)); err != nil {
			unrecognized()
			fail(reason.SNIInvalid, nil)
			return
		}
	}
	host := c.listener.Host(c.name)
	if host == nil {
		why := reason.SNIUnknown
		if sni == "" {
			why = reason.SNIMissing
		}
		unrecognized()
		fail(why, nil)
		return
	}
	hs.Kind, hs.Host, hs.Upstream = record.Tunnel, host.Name, host.Upstream
	c.join(&hs, forward.Side{Ahead: hello, Conn: c.sock, Wire: c.sock})
}

// bytes moves bytes between a client that has been let in and an upstream.
//
//go:noinline
func (c *conn) bytes(upstream string) {
	start := time.Now()
	hs := record.Handshake{Kind: record.Tunnel, Ref: c.ref, Client: c.peer, SNI: c.sni, Upstream: upstream, Identity: c.client, Presented: c.presented}
	client := forward.Side{From: c.sock, Conn: c.sock, Wire: c.sock}
	if c.secure != nil {
		client.From, client.Conn, client.TLS, hs.Host = c.secure, c.secure, true, c.host.Name
	}
	if c.doom.Load() == nil {
		c.join(&hs, client)
	} else {
		c.linger()
	}
	if d := c.doom.Load(); d != nil {
		d.connection(&hs)
	}
	hs.Duration = time.Since(start)
	c.book.Handshake(&hs)
}

// join connects client to a target of the upstream that hs names, and notes there how it ended.
func (c *conn) join(hs *record.Handshake, client forward.Side) {
	pool := c.pool(hs.Upstream)
	if pool == nil {
		hs.Fail(reason.UpstreamUnknown, nil)
		c.linger()
		return
	}
	c.watch.Main.Set(c.watch.Clock, forward.Connecting, 0)
	start := time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c.watch.OnStop(cancel) // a client that leaves gives up its place in a queue
	target, err := pool.AcquireFor(ctx, c.choice(pool))
	c.watch.OnStop(nil)
	if err != nil {
		switch { // an attempt that we ended says nothing about the target
		case c.watch.Forced():
			hs.Fail(reason.ShutdownForced, nil)
		case c.watch.Gone():
			hs.Fail(reason.ClientAborted, nil)
		default:
			hs.Fail(reason.UpstreamConnectFailed, err)
			c.linger()
		}
		return
	}
	defer target.Discard()
	hs.TargetAddr = target.Target.Address
	target.Target.Report(upstream.Answered, time.Since(start))
	limits := &c.listener.Limits
	hs.Reason, hs.BytesIn, hs.BytesOut = forward.Join(&c.watch, client, forward.Side{From: target, Conn: target.Conn, Wire: target.Wire, TLS: target.Secure()},
		limits.TunnelIdle, limits.Lifetime)
}

// pool finds an upstream as it is now, and as it was when the connection was accepted if it is no more, for a handshake
// can outlast a configuration. One that has become one for requests is no more: bytes that nobody looks at must not get
// there.
func (c *conn) pool(name string) *upstream.Pool {
	if p := c.f.pools.Pool(name); p != nil && p.Bytes {
		return p
	}
	return c.listener.pools.Pool(name)
}

// choice is what is known of a client whose bytes nobody reads.
func (c *conn) choice(pool *upstream.Pool) upstream.Choice {
	choice := upstream.Choice{Fresh: true, Announce: c.announce}
	if id, verified := c.client.Identity(); verified {
		sum := id.Fingerprint()
		choice.Client = max(1, upstream.Hash(sum[:]))
	}
	switch pool.Key.On {
	case upstream.KeyAddress:
		choice.Hash, choice.HasHash = upstream.Hash([]byte(c.ip())), true
	case upstream.KeyCertificate:
		choice.Hash, choice.HasHash = choice.Client, choice.Client != 0
	}
	return choice
}

// maxHello bounds what is read before the server name is known.
const maxHello = 64 << 10

var (
	errPeeked        = errors.New("hello read")
	errHelloTooLarge = errors.New("ClientHello larger than 64 KiB")
)

// peek reads a ClientHello, however it is cut into records and packets, and returns the bytes that were read and the
// server name. crypto/tls does the reading, on a connection that it cannot write to.
func peek(c net.Conn) (read []byte, sni string, err error) {
	p := &peeked{Conn: c}
	err = tls.Server(p, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		sni = h.ServerName
		return nil, errPeeked
	}}).Handshake()
	if errors.Is(err, errPeeked) {
		err = nil
	} else if err == nil {
		err = errors.New("no ClientHello")
	}
	return p.read, sni, err
}

type peeked struct {
	net.Conn
	read []byte
}

func (p *peeked) Read(b []byte) (int, error) {
	if len(p.read) >= maxHello {
		return 0, errHelloTooLarge
	}
	n, err := p.Conn.Read(b)
	p.read = append(p.read, b[:n]...)
	return n, err
}

func (p *peeked) Write(b []byte) (int, error) { return len(b), nil }
