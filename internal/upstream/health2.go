package upstream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"countersign/internal/h2"
	"countersign/internal/message"
)

// checkHTTP2 is the part of check behind the connection for a pool that speaks HTTP/2.
func (p *Pool) checkHTTP2(c *Conn, deadline time.Time) (err error) {
	mux := h2.Client(c.Conn, h2.Settings{HeaderBytes: p.HeadBytes, Fields: 4 * p.Fields, StreamWindow: checkWindow, ConnWindow: checkWindow,
		Panicked: func(v any, _ []byte) { p.caught("panic in a health check", c.Target.Address, v) }})
	served := make(chan struct{})
	go func() {
		defer close(served)
		defer func() {
			if v := recover(); v != nil { // the check fails for want of an answer
				p.log.Error("panic in a health check", "upstream", p.Name, "target", c.Target.Address, "panic", fmt.Sprint(v))
			}
		}()
		_ = mux.Serve()
	}()
	defer func() {
		mux.Abort()
		c.Wire.Close()
		<-served
	}()
	s, err := mux.Open()
	if err != nil {
		return err
	}
	defer s.Release()
	_ = s.SetDeadline(deadline)
	if p.Health.GRPC {
		return p.checkGRPC(s)
	}
	var resp message.Response
	if err := ask(s, p.head("GET", p.Health.Path), nil, &resp); err != nil {
		return err
	}
	if !p.Health.good(resp.Status) {
		return fmt.Errorf("GET %s answers %d, expected %s", p.Health.Path, resp.Status, p.Health.want())
	}
	return nil
}

// checkWindow is what a target may send us unread in a check.
const checkWindow = 64 << 10

// head makes the fields of a check's request.
func (p *Pool) head(method, path string) []message.Field {
	scheme := "http"
	if p.Secure() {
		scheme = "https"
	}
	return fields(":method", method, ":scheme", scheme, ":authority", p.Health.Host, ":path", path, "user-agent", "countersign-health")
}

func fields(pairs ...string) (out []message.Field) {
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, message.Field{Name: []byte(pairs[i]), Value: []byte(pairs[i+1])})
	}
	return out
}

// ask sends a whole request and reads the head of the final response.
func ask(s *h2.Stream, head []message.Field, body []byte, resp *message.Response) error {
	if err := s.WriteHead(head, body, true); err != nil {
		return err
	}
	for range 5 {
		if err := s.ReadResponse(resp); err != nil {
			return err
		}
		if resp.Status >= 200 {
			break
		}
	}
	return nil
}

// checkGRPC makes one call of the gRPC health checking protocol (grpc.health.v1).
func (p *Pool) checkGRPC(s *h2.Stream) error {
	const method = "/grpc.health.v1.Health/Check"
	head := append(p.head("POST", method), fields("content-type", "application/grpc", "te", "trailers")...)
	var resp message.Response
	if err := ask(s, head, healthRequest(p.Health.Service), &resp); err != nil {
		return err
	}
	if resp.Status != 200 {
		return fmt.Errorf("%s answers status %d, expected 200 and gRPC", method, resp.Status)
	}
	code, there := grpcStatus(resp.Fields)
	body, err := io.ReadAll(io.LimitReader(s, maxReply+1))
	switch {
	case err != nil:
		return err
	case len(body) > maxReply:
		return fmt.Errorf("%s answers more than %d bytes", method, maxReply)
	}
	if !there { // not an answer of trailers only
		code, _ = grpcStatus(s.Trailers())
	}
	if code != "0" {
		if len(code) > 2 || code == "" {
			code = "none"
		}
		return fmt.Errorf("%s answers grpc-status %s, expected 0", method, code)
	}
	serving, err := servingStatus(body)
	if err == nil && serving != 1 {
		err = fmt.Errorf("the service is not SERVING, its status is %d", serving)
	}
	return err
}

// maxReply is far more than the answer to a check needs.
const maxReply = 1024

func grpcStatus(fields []message.Field) (string, bool) {
	for i := range fields {
		if message.EqualFold(fields[i].Name, "grpc-status") {
			return string(fields[i].Value), true
		}
	}
	return "", false
}

// healthRequest is a message of gRPC (a byte that says that it is not compressed, four of length) with a
// HealthCheckRequest, whose field 1 is the service's name.
func healthRequest(service string) []byte {
	var request []byte
	if service != "" {
		request = binary.AppendUvarint([]byte{1<<3 | 2}, uint64(len(service)))
		request = append(request, service...)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(request))), request...)
}

// servingStatus reads a message of gRPC with a HealthCheckResponse, whose field 1 is a number: 1 is SERVING.
func servingStatus(body []byte) (status uint64, err error) {
	bad := errors.New("the answer is not a message of grpc.health.v1")
	if len(body) < 5 || body[0] != 0 || uint64(binary.BigEndian.Uint32(body[1:5])) != uint64(len(body)-5) {
		return 0, bad
	}
	for b := body[5:]; len(b) > 0; {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return 0, bad
		}
		b = b[n:]
		skip := uint64(0)
		switch tag & 7 {
		case 0:
			v, n := binary.Uvarint(b)
			if n <= 0 {
				return 0, bad
			}
			if tag>>3 == 1 {
				status = v
			}
			skip = uint64(n)
		case 1:
			skip = 8
		case 2:
			v, n := binary.Uvarint(b)
			if n <= 0 || v > uint64(len(b)) {
				return 0, bad
			}
			skip = uint64(n) + v
		case 5:
			skip = 4
		default:
			return 0, bad
		}
		if skip > uint64(len(b)) {
			return 0, bad
		}
		b = b[skip:]
	}
	return status, nil
}
