package forward

import (
	"crypto/sha1"
	"encoding/base64"
	"time"

	"countersign/internal/h1"
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
	out := append((*buf)[:0], "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"...)
	for i := range x.resp.Fields {
		if f := &x.resp.Fields[i]; !f.Hop && !x.Guard.Protected(f.Name) {
			out = appendField(out, f)
		}
	}
	out = append(out, '\r', '\n')
	w := x.Watch
	w.Main.Set(w.Clock, WritingClient, x.Limits.WriteIdle)
	if _, err := x.Client.Write(out); err != nil {
		return x.lost(rec, err)
	}
	rec.Reason, rec.BytesIn, rec.BytesOut = Join(w, Side{From: x.Reader, Conn: x.Client, Wire: w.Client},
		Side{From: &target.R, Conn: target.Conn, Wire: target.Wire}, x.Limits.TunnelIdle, x.Limits.Lifetime)
	return Result{Reason: rec.Reason, Answered: true}
}
