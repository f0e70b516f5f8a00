package forward

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"strconv"

	"countersign/internal/edit"
	"countersign/internal/h1"
	"countersign/internal/h2"
	"countersign/internal/message"
	"countersign/internal/reason"
	"countersign/internal/record"
	"countersign/internal/socket"
	"countersign/internal/stepup"
	"countersign/internal/upstream"
)

// Body is the body of a message as its codec reads it, h1.Body or h2.Stream.
type Body interface {
	io.Reader
	// Buffered returns the whole body if it is there already, and consumes it.
	Buffered() ([]byte, bool)
	// Ready returns at most n bytes of it that are there already, and consumes them.
	Ready(n int) []byte
	// Done reports whether it was read to its end, and Total how many bytes that were so far.
	Done() bool
	Total() int64
	// Trailers are the fields behind the body, once Read has returned io.EOF.
	Trailers() []message.Field
}

// StreamLine is a stream of HTTP/2 as what waits are ended by.
type StreamLine struct{ *h2.Stream }

// Peek says whether the stream is still there.
func (l StreamLine) Peek() socket.State {
	if l.Gone() {
		return socket.Broken
	}
	return socket.Quiet
}

// MayBeAlert says nothing: streams end in frames.
func (StreamLine) MayBeAlert() bool { return true }

// requestBody is the body of req, with its trailers if whoever gets it reads them.
func (x *Exchange) requestBody(req *message.Request, trailers bool) Body {
	switch {
	case x.Stream == nil:
		body := x.Reader.Body(&req.Head, true)
		if trailers {
			body.CollectTrailers()
		}
		return body
	case req.WebSocketKey != nil: // what follows on the stream is the tunnel's
		return nothing{}
	}
	return x.Stream
}

// sayContinue tells a client that waits for it to send its body.
func (x *Exchange) sayContinue() (err error) {
	if x.Stream != nil {
		return x.Stream.WriteHead([]message.Field{{Name: statusName, Value: []byte("100")}}, nil, false)
	}
	_, err = io.WriteString(x.Client, "HTTP/1.1 100 Continue\r\n\r\n")
	return err
}

// write writes bytes of the answer to the client: of its connection in HTTP/1.1, of the body in HTTP/2.
func (x *Exchange) write(p []byte) (err error) {
	switch {
	case x.Stream == nil:
		_, err = x.Client.Write(p)
	case len(p) > 0:
		_, err = x.Stream.Write(p)
	}
	return err
}

// readResponse reads the next response head. forHead says that it answers a request with method HEAD.
func readResponse(target *upstream.Conn, resp *message.Response, forHead bool) error {
	if target.Stream != nil {
		return target.Stream.ReadResponse(resp)
	}
	return target.R.ReadResponse(resp, forHead)
}

func responseBody(target *upstream.Conn, resp *message.Response, trailers bool) Body {
	if target.Stream != nil {
		return target.Stream
	}
	body := target.R.Body(&resp.Head, false)
	if trailers {
		body.CollectTrailers()
	}
	return body
}

// buffered reports whether a part of the response's body is there already.
func buffered(target *upstream.Conn) bool {
	return target.Stream == nil && target.R.Buffered() > 0
}

// requestFields is appendRequest for a target of HTTP/2. They point into req, and are valid until its body is read.
func (x *Exchange) requestFields(req *message.Request, secure bool) []message.Field {
	scheme := schemeHTTP
	if secure {
		scheme = schemeHTTPS
	}
	host, path, query, hasQuery := x.Edits.target(req)
	if hasQuery {
		x.path = append(append(append(x.path[:0], path...), '?'), query...)
		path = x.path
	}
	fields := append(x.sent[:0], message.Field{Name: methodName, Value: req.Method}, message.Field{Name: schemeName, Value: scheme},
		message.Field{Name: authorityName, Value: host}, message.Field{Name: pathName, Value: path})
	for i := range req.Fields {
		f := &req.Fields[i]
		if f.Hop || bytes.IndexByte(f.Name, '_') >= 0 || x.Guard.Protected(f.Name) || x.Edits.Request != nil && x.Edits.Request.Drops(f.Name) || x.Trace.Drops(f.Name) {
			continue
		}
		fields = append(fields, *f)
	}
	if x.Edits.Request != nil {
		fields, _ = x.Edits.Request.AppendFields(fields, nil, req, &x.Edits.Facts)
	}
	fields = x.Trace.AppendField(fields)
	if req.Framing != message.Chunked && req.ContentLength >= 0 {
		fields = append(fields, message.Field{Name: lengthName, Value: strconv.AppendInt(x.length[:0], req.ContentLength, 10)})
	}
	if req.TrailersWanted {
		fields = append(fields, wantsTrailers)
	}
	received := via1
	if x.Stream != nil {
		received = via2
	}
	fields = append(fields, message.Field{Name: viaName, Value: received})
	x.sent = append(fields, x.ownFields()...)
	return x.sent
}

// ownFields are the lines of Trailer as fields, cut once for all requests for which it stays the same.
func (x *Exchange) ownFields() []message.Field {
	if !bytes.Equal(x.lines, x.Trailer) {
		x.lines = append(x.lines[:0], x.Trailer...)
		x.own = AppendFields(x.own[:0], x.lines)
	}
	return x.own
}

// Names and values that are always the same. Nothing writes to them.
var (
	statusName, lengthName, viaName                 = []byte(":status"), []byte("content-length"), []byte("via")
	methodName, schemeName, authorityName, pathName = []byte(":method"), []byte(":scheme"), []byte(":authority"), []byte(":path")
	schemeHTTP, schemeHTTPS                         = []byte("http"), []byte("https")
	via1, via2                                      = []byte("1.1" + via), []byte("2.0" + via)
	wantsTrailers                                   = message.Field{Name: []byte("te"), Value: []byte("trailers")}
)

// passes reports whether a field of a response goes on to the client.
func (x *Exchange) passes(f *message.Field) bool {
	return !f.Hop && !x.Guard.Protected(f.Name) && !(x.Edits.Response != nil && x.Edits.Response.Drops(f.Name)) && !(len(f.Name) == len("set-cookie") && message.EqualFold(f.Name, "set-cookie") && stepup.Sets(f.Value))
}

// passed are the trailer fields that go on, of a request or of a response: none that a recipient could act on as if it had
// stood in the header (E06, D05).
func (x *Exchange) passed(trailers []message.Field, request bool) []message.Field {
	stays := func(f message.Field) bool {
		e := &x.Edits
		return f.Hop || h1.ForbiddenTrailer(f.Name, request) || x.Guard.Protected(f.Name) ||
			request && e.Request != nil && e.Request.Drops(f.Name) || !request && e.Response != nil && e.Response.Drops(f.Name)
	}
	if slices.ContainsFunc(trailers, stays) {
		return slices.DeleteFunc(slices.Clone(trailers), stays)
	}
	return trailers
}

// relayStream writes a response whose head has been read to a client of HTTP/2.
func (x *Exchange) relayStream(rec *record.Request, body Body, target *upstream.Conn, pool *upstream.Pool, buf *[]byte) Result {
	resp, w := &x.resp, x.Watch
	fields := append(x.fields[:0], message.Field{Name: statusName, Value: strconv.AppendInt(x.digits[:0:3], int64(resp.Status), 10)})
	for i := range resp.Fields {
		if f := &resp.Fields[i]; x.passes(f) {
			fields = append(fields, *f)
		}
	}
	if resp.ContentLength >= 0 && resp.Status != http.StatusNoContent && resp.Framing != message.Chunked {
		fields = append(fields, message.Field{Name: lengthName, Value: strconv.AppendInt(x.digits[3:3], resp.ContentLength, 10)})
	}
	fields = x.appendOurFields(fields)
	x.fields = fields[:0]
	ready := body.Ready(outSize)
	whole := body.Done()
	var trailers []message.Field
	if whole {
		trailers = x.passed(body.Trailers(), false)
	}
	rec.HeadOut = sizeOf(fields)
	w.Main.Set(w.Clock, WritingClient, x.Limits.WriteIdle)
	if err := x.Stream.WriteHead(fields, ready, whole && len(trailers) == 0); err != nil {
		return x.lost(rec, err)
	}
	if !whole {
		return x.stream(rec, body, target, pool, (*buf)[:0], false, true)
	}
	if len(trailers) > 0 {
		if err := x.Stream.End(trailers); err != nil {
			return x.lost(rec, err)
		}
	}
	rec.BytesOut = body.Total()
	rec.Reason = reason.Completed
	return Result{Reason: reason.Completed, Answered: true, Keep: true}
}

// appendOurFields is appendOurs for HTTP/2.
func (x *Exchange) appendOurFields(fields []message.Field) []message.Field {
	if x.Edits.Response != nil {
		fields, _ = x.Edits.Response.AppendFields(fields, nil, &x.Edits.Facts)
	}
	if x.sticky != nil {
		fields = append(fields, message.Field{Name: []byte("set-cookie"), Value: x.sticky})
	}
	return fields
}

// Edits are what a route changes in the heads of one exchange. The zero value changes nothing.
type Edits struct {
	// Request is nil where the request goes on as it came; else the target is asked for what follows.
	Request     *edit.Request
	Host        []byte
	Path, Query []byte
	HasQuery    bool
	Response    *edit.Headers
	Facts       edit.Facts
	Mirror      string // the pool that gets a copy; empty for none
}

// target is what a target is asked for.
func (e *Edits) target(req *message.Request) (host, path, query []byte, hasQuery bool) {
	if e.Request != nil {
		return e.Host, e.Path, e.Query, e.HasQuery
	}
	return req.Host, req.Path, req.Query, req.HasQuery
}

// sizeOf is how long a head of HTTP/2 is in records: its names and values, before they are made small.
func sizeOf(fields []message.Field) (n int64) {
	for i := range fields {
		n += int64(len(fields[i].Name) + len(fields[i].Value))
	}
	return n
}

// Answer is a response of ours.
type Answer struct {
	Status int
	// Fields are without framing.
	Fields []message.Field
	Body   []byte
	// Bare says that there is no body, and no length of one either.
	Bare bool
}

// Say writes an answer of ours to the client, and notes in rec how long it is. head says that the request's method is HEAD,
// keep that another request may follow.
func (x *Exchange) Say(rec *record.Request, a *Answer, head, keep bool) error {
	w := x.Watch
	w.Main.Set(w.Clock, WritingClient, x.Limits.WriteIdle)
	bare := a.Bare || a.Status == http.StatusNoContent
	body := a.Body
	if head || bare {
		body = nil
	}
	if x.Stream != nil {
		fields := append(x.fields[:0], message.Field{Name: statusName, Value: strconv.AppendInt(nil, int64(a.Status), 10)})
		fields = append(fields, a.Fields...)
		if !bare {
			fields = append(fields, message.Field{Name: lengthName, Value: strconv.AppendInt(nil, int64(len(a.Body)), 10)})
		}
		x.fields = fields[:0]
		rec.HeadOut, rec.BytesOut = sizeOf(fields), int64(len(body))
		return x.Stream.WriteHead(fields, body, true)
	}
	b := append(make([]byte, 0, 512+len(body)), "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(a.Status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(a.Status)...)
	b = append(b, '\r', '\n')
	for i := range a.Fields {
		b = appendField(b, &a.Fields[i])
	}
	if !bare {
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, int64(len(a.Body)), 10)
		b = append(b, '\r', '\n')
	} else if a.Status != http.StatusNoContent {
		b = append(b, "Content-Length: 0\r\n"...)
	}
	if !keep {
		b = append(b, "Connection: close\r\n"...)
	}
	b = append(b, '\r', '\n')
	rec.HeadOut, rec.BytesOut = int64(len(b)), int64(len(body))
	_, err := x.Client.Write(append(b, body...))
	return err
}

// AppendFields appends the fields of lines, each of which ends with CR LF, as they are written for HTTP/1.1. They point
// into lines.
func AppendFields(fields []message.Field, lines []byte) []message.Field {
	for line := range bytes.SplitSeq(lines, []byte("\r\n")) {
		if name, value, ok := bytes.Cut(line, []byte(": ")); ok {
			fields = append(fields, message.Field{Name: name, Value: value})
		}
	}
	return fields
}
