package frontend

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"countersign/internal/forward"
	"countersign/internal/hostname"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/socket"
)

// passthrough finds the server name in the ClientHello, and moves bytes between the client and the host's upstream
// without decrypting any.
func (c *conn) passthrough() {
	start := time.Now()
	hs := record.Handshake{Ref: c.ref, Client: c.peer}
	defer func() {
		hs.SNI, hs.Duration = c.sni, time.Since(start)
		c.book.Handshake(&hs)
	}()
	fail := func(why reason.Reason, err error) {
		hs.Reason = why
		var r *reason.Refusal
		if errors.As(err, &r) {
			hs.Reason, hs.Expected, hs.Found, err = r.Reason, r.Expected, r.Found, r.Cause
		}
		if err != nil {
			hs.Detail = bounded(err)
		}
		c.linger()
	}

	c.watch.Main.Set(c.watch.Clock, forward.Handshaking, c.listener.Limits.Handshake)
	hello, sni, err := peek(c.sock)
	c.sni = sni
	if err != nil {
		why := reason.HelloMalformed
		var header tls.RecordHeaderError
		switch {
		case errors.Is(err, errHelloTooLarge):
			why = reason.HelloTooLarge
		case errors.As(err, &header):
			if why = reason.NotTLS; looksLikeHTTP(header.RecordHeader[:]) {
				why = reason.PlainHTTPOnTLS
			}
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
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
		// unrecognized_name, fatal (RFC 6066 section 3): the client learns why, and nothing else.
		_, _ = c.sock.Write([]byte{21, 3, 1, 0, 2, 2, 112})
		fail(why, nil)
		return
	}
	hs.Host, hs.Upstream = host.Name, host.Upstream

	pool := c.f.pools.Pool(host.Upstream)
	if pool == nil {
		fail(reason.UpstreamUnknown, nil)
		return
	}
	c.watch.Main.Set(c.watch.Clock, forward.Connecting, 0)
	target, err := pool.Acquire(context.Background())
	if err != nil {
		fail(reason.UpstreamConnectFailed, err)
		return
	}
	defer target.Discard()
	hs.TargetAddr = target.Target.Address
	if _, err := target.Write(hello); err != nil {
		fail(reason.UpstreamClosed, err)
		return
	}
	c.tunnel(target.Wire)
	hs.Reason, hs.BytesIn, hs.BytesOut = reason.PassthroughClosed, c.sock.In, c.sock.Out
	if why, ok := c.watch.Main.Expired(); ok {
		hs.Reason = why
	}
}

// tunnel copies both ways until both sides have ended, passing on the end of each side, or until nothing has moved for
// the idle time.
func (c *conn) tunnel(target *socket.Conn) {
	idle := c.listener.Limits.Idle
	c.watch.Main.Set(c.watch.Clock, forward.Idle, idle)
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		defer c.f.guard()
		c.copy(c.sock, target, idle)
	}()
	c.copy(target, c.sock, idle)
	wg.Wait()
}

var copies = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// copy moves bytes from src to dst and then ends dst's write side. An error on either side ends both.
func (c *conn) copy(dst, src *socket.Conn, idle time.Duration) {
	buf := copies.Get().(*[]byte)
	defer copies.Put(buf)
	for {
		n, err := src.Read(*buf)
		if n > 0 {
			c.watch.Main.Set(c.watch.Clock, forward.Idle, idle)
			if _, werr := dst.Write((*buf)[:n]); werr != nil {
				err = werr
			}
		}
		switch {
		case err == nil:
		case err == io.EOF:
			_ = dst.CloseWrite()
			return
		default:
			past := time.Unix(1, 0)
			_ = dst.SetDeadline(past)
			_ = src.SetDeadline(past)
			return
		}
	}
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
