package frontend

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"countersign/internal/forward"
	"countersign/internal/limit"
	"countersign/internal/message"
	"countersign/internal/reason"
)

// field makes a header field of texts of ours.
func field(name, value string) message.Field {
	return message.Field{Name: []byte(name), Value: []byte(value)}
}

// answer writes the response for a request that was not forwarded, and reports whether the connection can go on; keep
// says whether it may.
func (c *lane) answer(why reason.Reason, keep bool) bool {
	row := why.Row()
	if row.Status == 0 {
		return false
	}
	c.rec.Status = row.Status
	ref := c.ref + "-" + strconv.FormatUint(c.rec.Serial, 10)
	if c.paged() {
		return c.page(ref)
	}
	// What the client did wrong it is told; what is wrong behind us is not its business.
	sentence := http.StatusText(row.Status)
	if row.Fault == reason.FaultClient {
		sentence = row.Code + ": " + row.Sentence
	}
	a := ours(row.Status, fmt.Appendf(nil, "%d %s\nreference: %s\n", row.Status, sentence, ref), field("Content-Type", "text/plain; charset=utf-8"))
	if c.grpc {
		a = inGRPC(row.Status, sentence+" (reference: "+ref+")")
		// The target may have been a moment faster than our clock.
		if t := c.exchange.Timeout; t > 0 && time.Since(c.rec.Start) >= t && row.Fault == reason.FaultUpstream {
			a.Fields[1] = field("Grpc-Status", "4") // deadline exceeded
		}
	}
	switch row.Status {
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		a.Fields = append(a.Fields, field("Retry-After", strconv.Itoa(limit.RetryAfter(c.retry))))
	case http.StatusMethodNotAllowed:
		a.Fields = append(a.Fields, field("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"))
	}
	return c.say(&a, keep)
}

// ours makes an answer that nobody may keep.
func ours(status int, body []byte, fields ...message.Field) forward.Answer {
	return forward.Answer{Status: status, Body: body, Fields: append(fields, field("Cache-Control", "no-store"))}
}

// say writes an answer of ours, and reports whether the connection can go on; keep says whether it may.
func (c *lane) say(a *forward.Answer, keep bool) bool {
	return c.exchange.Say(&c.rec, a, c.head, keep) == nil && keep
}

// inGRPC is an error as clients of gRPC understand it: status 200, the error in fields, and no message ("Trailers-Only").
// The codes are those that gRPC clients would make of an HTTP status themselves, save that what was refused for want of
// permission says so.
func inGRPC(status int, sentence string) forward.Answer {
	code := 2 // unknown
	switch status {
	case http.StatusBadRequest, http.StatusRequestHeaderFieldsTooLarge:
		code = 13 // internal
	case http.StatusUnauthorized:
		code = 16 // unauthenticated
	case http.StatusForbidden, http.StatusMisdirectedRequest:
		code = 7 // permission denied
	case http.StatusNotFound:
		code = 12 // unimplemented
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		code = 14 // unavailable
	}
	return forward.Answer{Status: http.StatusOK, Bare: true, Fields: []message.Field{field("Content-Type", "application/grpc"),
		field("Grpc-Status", strconv.Itoa(code)), field("Grpc-Message", strings.ReplaceAll(sentence, "%", "%25"))}}
}

// isGRPC reports whether a request is one of gRPC, by its content type.
func isGRPC(req *message.Request) bool {
	for i := range req.Fields {
		if f := &req.Fields[i]; len(f.Name) == len("content-type") && message.EqualFold(f.Name, "content-type") {
			kind, _, _ := bytes.Cut(f.Value, []byte(";"))
			return string(kind) == "application/grpc" || bytes.HasPrefix(kind, []byte("application/grpc+"))
		}
	}
	return false
}

// grpcTimeout is the time a request of gRPC says that its client will wait; 0 for none, or for what is no such time.
func grpcTimeout(req *message.Request) time.Duration {
	for i := range req.Fields {
		f := &req.Fields[i]
		if !message.EqualFold(f.Name, "grpc-timeout") {
			continue
		}
		n := len(f.Value)
		if n < 2 || n > 9 { // at most eight digits
			return 0
		}
		unit, ok := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': 1}[f.Value[n-1]]
		count, err := strconv.ParseUint(string(f.Value[:n-1]), 10, 32)
		if !ok || err != nil {
			return 0
		}
		const most = 24 * time.Hour
		if count > uint64(most/unit) {
			return most
		}
		return time.Duration(count)*unit + 1 // for 0 is no limit
	}
	return 0
}

// paged reports whether the client was let in only to be told that it is refused (on_failure: page).
func (c *lane) paged() bool { return c.host != nil && c.host.Auth.Page && !c.verdict.Accepted }

// page answers 403 in the form the client prefers: whether its certificate is missing or refused, a reference for whoever
// can look it up, and nothing else.
func (c *lane) page(ref string) bool {
	code, sentence := "client_cert_refused", "The client certificate was refused."
	if c.verdict.Reason == reason.ClientCertMissing {
		code, sentence = "client_cert_missing", "A client certificate is required."
	}
	kind, body := "application/json", fmt.Appendf(nil, "{\"status\":403,\"reason\":%q,\"reference\":%q}\n", code, ref)
	for i := range c.req.Fields {
		if f := &c.req.Fields[i]; message.EqualFold(f.Name, "accept") && acceptsHTML(f.Value) {
			kind, body = "text/html; charset=utf-8", fmt.Appendf(nil, "<!doctype html>\n<html lang=\"en\"><title>403</title>\n<h1>%s</h1>\n<p>Reference: <code>%s</code></p>\n</html>\n", sentence, ref)
		}
	}
	c.rec.Status = http.StatusForbidden
	a := ours(http.StatusForbidden, body, field("Content-Type", kind))
	if c.grpc {
		a = inGRPC(http.StatusForbidden, sentence+" (reference: "+ref+")")
	}
	c.say(&a, false)
	return false
}

// acceptsHTML reports whether an Accept header names text/html (RFC 9110 section 12.5.1).
func acceptsHTML(value []byte) bool {
	for item := range bytes.SplitSeq(value, []byte(",")) {
		kind, params, _ := bytes.Cut(item, []byte(";"))
		if message.EqualFold(bytes.TrimSpace(kind), "text/html") {
			weight := strings.ToLower(strings.ReplaceAll(string(params), " ", ""))
			return !strings.HasPrefix(weight, "q=0") || strings.Trim(weight, "q=0.") != ""
		}
	}
	return false
}

// local writes the answer that is in c.reply.
func (c *lane) local() forward.Result {
	keep := c.say(&c.reply, c.mayGoOn(reason.AnsweredHere))
	c.reply = forward.Answer{}
	return forward.Result{Reason: reason.AnsweredHere, Answered: true, Keep: keep}
}
