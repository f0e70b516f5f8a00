package forward

import (
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"io"
	"net"
	"time"

	"countersign/internal/h1"
	"countersign/internal/h2"
	"countersign/internal/message"
	"countersign/internal/record"
	"countersign/internal/upstream"
)

// acceptKey is what a target must answer to a WebSocket key (RFC 6455 section 4.2.2).
func acceptKey(key []byte) string {
	sum := sha1.Sum(append(key[:len(key):len(key)], "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// switches reports whether resp switches to the WebSocket that was asked for, and to nothing else (E17).
func switches(resp *message.Response, accept string) bool {
	var upgrade, connection, accepted int
	for i := range resp.Fields {
		f := &resp.Fields[i]
		switch {
		case message.EqualFold(f.Name, "upgrade"):
			upgrade++
			if !message.EqualFold(f.Value, "websocket") {
				return false
			}
		case message.EqualFold(f.Name, "connection"):
			if h1.HasToken(f.Value, "upgrade") {
				connection++
			}
		case message.EqualFold(f.Name, "sec-websocket-accept"):
			accepted++
			if string(f.Value) != accept {
				return false
			}
		}
	}
	return upgrade == 1 && connection > 0 && accepted == 1
}

// switched passes the target's 101 on and joins the two connections, bytes that came along with request and response
// included.
func (x *Exchange) switched(rec *record.Request, target *upstream.Conn, buf *[]byte) Result {
	rec.TargetTime = time.Since(rec.Start)
	rec.Status = 101
	x.report(target, upstream.Answered, rec.TargetTime)
	if x.Stream != nil {
		return x.switchedStream(rec, target)
	}
	out := append((*buf)[:0], "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"...)
	for i := range x.resp.Fields {
		if f := &x.resp.Fields[i]; x.passes(f) {
			out = appendField(out, f)
		}
	}
	out = x.appendOurs(out)
	out = append(out, '\r', '\n')
	w := x.Watch
	w.Whole.Set(w.Clock, Free, 0)
	w.Main.Set(w.Clock, WritingClient, x.Limits.WriteIdle)
	if _, err := x.Client.Write(out); err != nil {
		return x.lost(rec, err)
	}
	_, secure := x.Client.(interface{ ConnectionState() tls.ConnectionState })
	rec.Reason, rec.BytesIn, rec.BytesOut = Join(w, Side{From: x.Reader, Conn: x.Client, Wire: x.Wire, TLS: secure},
		Side{From: &target.R, Conn: target.Conn, Wire: target.Wire, TLS: target.Secure()}, x.Limits.TunnelIdle, x.Limits.Lifetime)
	return Result{Reason: rec.Reason, Answered: true}
}

// AsUpgrade makes the request of a stream that asks for a WebSocket (RFC 8441 section 5) the one that would ask for it in
// HTTP/1.1, with a key of ours, and reports whether it can be: it has to name the one version that there is.
func AsUpgrade(req *message.Request) bool {
	versions := 0
	for i := range req.Fields {
		switch f := &req.Fields[i]; {
		case message.EqualFold(f.Name, "sec-websocket-version"):
			if versions++; string(f.Value) != "13" {
				return false
			}
		case message.EqualFold(f.Name, "sec-websocket-key"), message.EqualFold(f.Name, "sec-websocket-accept"):
			f.Hop = true // they have no meaning there
		}
	}
	if versions != 1 || req.Framing == message.Length {
		return false
	}
	var key [16]byte
	_, _ = rand.Read(key[:])
	req.WebSocketKey = base64.StdEncoding.AppendEncode(nil, key[:])
	req.Fields = append(req.Fields, message.Field{Name: []byte("Sec-WebSocket-Key"), Value: req.WebSocketKey})
	req.Method, req.Framing, req.ContentLength = []byte("GET"), message.NoBody, -1
	return true
}

// switchedStream answers the stream that asked for a WebSocket, and joins it with the target.
func (x *Exchange) switchedStream(rec *record.Request, target *upstream.Conn) Result {
	fields := append(x.fields[:0], message.Field{Name: statusName, Value: []byte("200")})
	for i := range x.resp.Fields {
		f := &x.resp.Fields[i]
		if x.passes(f) && !message.EqualFold(f.Name, "sec-websocket-accept") && !message.EqualFold(f.Name, "upgrade") {
			fields = append(fields, *f)
		}
	}
	fields = x.appendOurFields(fields)
	x.fields = fields[:0]
	w := x.Watch
	w.Whole.Set(w.Clock, Free, 0)
	w.Main.Set(w.Clock, WritingClient, x.Limits.WriteIdle)
	if err := x.Stream.WriteHead(fields, nil, false); err != nil {
		return x.lost(rec, err)
	}
	rec.Reason, rec.BytesIn, rec.BytesOut = Join(w, Side{Conn: streamConn{Stream: x.Stream}, Stream: x.Stream},
		Side{From: &target.R, Conn: target.Conn, Wire: target.Wire, TLS: target.Secure()}, x.Limits.TunnelIdle, x.Limits.Lifetime)
	return Result{Reason: rec.Reason, Answered: true}
}

// streamConn is a stream as a side of a tunnel. What a tunnel does not use, it does not have.
type streamConn struct {
	net.Conn
	*h2.Stream
}

func (c streamConn) Read(p []byte) (int, error)         { return c.Stream.Read(p) }
func (c streamConn) Write(p []byte) (int, error)        { return c.Stream.Write(p) }
func (c streamConn) SetDeadline(t time.Time) error      { return c.Stream.SetDeadline(t) }
func (c streamConn) SetReadDeadline(t time.Time) error  { return c.Stream.SetReadDeadline(t) }
func (c streamConn) SetWriteDeadline(t time.Time) error { return c.Stream.SetWriteDeadline(t) }

// CloseWrite says that no more comes.
func (c streamConn) CloseWrite() error { return c.Stream.End(nil) }

// nothing is the body of a request that has none.
type nothing struct{}

func (nothing) Read([]byte) (int, error)  { return 0, io.EOF }
func (nothing) Buffered() ([]byte, bool)  { return nil, true }
func (nothing) Ready(int) []byte          { return nil }
func (nothing) Done() bool                { return true }
func (nothing) Total() int64              { return 0 }
func (nothing) Trailers() []message.Field { return nil }
