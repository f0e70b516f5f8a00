package h1

import (
	"bytes"
	"errors"
	"io"

	"countersign/internal/identity"
	"countersign/internal/message"
	"countersign/internal/reason"
)

// ReadRequest reads the next request head into req. A *reason.Refusal says what was wrong with it; any other error is
// the connection's. After a refusal nothing more may be read: where the next message begins is not known. req.ClassReason
// is set in any case.
func (d *Reader) ReadRequest(req *message.Request) error {
	req.Reset()
	if err := d.Wait(); err != nil {
		return err
	}
	if !message.IsToken((*d.buf)[d.r : d.r+1]) {
		// Refused at once: what is not text may never send a line end.
		req.ClassReason = message.BadMethod
		return refuse(reason.BadRequestLine, "a method", "a byte that no method starts with")
	}
	head, err := d.head(reason.HeaderTooLarge, reason.BadHeader)
	if err != nil {
		req.ClassReason = d.unfinished(err)
		return err
	}
	req.Bytes = len(head)
	line, rest := cutLine(head)
	if err := requestLine(req, line); err != nil {
		req.ClassReason = lineReason(line)
		if r, ok := err.(*reason.Refusal); ok && r.Reason == reason.BadRequestLine && req.ClassReason == message.NoDeviation {
			req.ClassReason = message.AmbiguousUri // a form of the target that ALB passes and we do not
		}
		return err
	}
	mode := d.limits.Mitigation
	if mode != message.Strictest {
		if d.bare {
			req.ClassReason = message.NonCrLfLineTermination
		}
		if unfold(rest) {
			req.ClassReason = message.MultilineHeader
		}
	}
	if req.Fields, err = fields(req.Fields, rest, d.limits.Fields, reason.BadHeader); err != nil {
		req.ClassReason = req.ClassReason.Worse(fieldsReason(rest))
		return err
	}
	if err := requestFacts(req, mode); err != nil {
		return err
	}
	if req.ClassReason != message.NoDeviation && mode != message.Monitor && req.ClassReason.Class() >= message.Ambiguous {
		req.CloseAfter, req.KeepAlive = true, false
	}
	if d.limits.BodyBytes > 0 && req.ContentLength > d.limits.BodyBytes {
		return refuse(reason.BodyTooLarge, "", "") // before anything of it is passed on
	}
	return nil
}

// requestLine parses METHOD SP target SP HTTP/1.x (RFC 9112 section 3) with exactly one space each.
func requestLine(req *message.Request, line []byte) error {
	bad := func(found string) error {
		return refuse(reason.BadRequestLine, "METHOD target HTTP/1.1", found)
	}
	i := bytes.IndexByte(line, ' ')
	if i < 0 {
		return bad("a line without spaces")
	}
	j := bytes.LastIndexByte(line, ' ')
	if i == j {
		return bad("a line with one space (HTTP/0.9 is not spoken)")
	}
	method, target, version := line[:i], line[i+1:j], line[j+1:]
	if !message.IsToken(method) || len(method) > maxMethod {
		return bad("a method that is not a token of at most 32 characters")
	}
	switch string(version) {
	case "HTTP/1.1":
		req.Minor = 1
	case "HTTP/1.0":
		req.Minor = 0
	default:
		if len(version) == 8 && bytes.HasPrefix(version, []byte("HTTP/")) {
			return refuse(reason.VersionUnsupported, "HTTP/1.0 or HTTP/1.1", "another version")
		}
		return bad("another version text")
	}
	for _, c := range target {
		if c <= ' ' || c >= 0x7f || c == '#' {
			return bad("a space, control character, fragment or non-ASCII byte in the target")
		}
	}
	req.Method = method
	if string(method) == "CONNECT" || string(method) == "TRACE" {
		return refuse(reason.MethodRefused, "", "")
	}
	if len(target) == 0 {
		return bad("an empty target")
	}
	if target[0] != '/' {
		if string(target) == "*" {
			if string(method) != "OPTIONS" {
				return bad("target * with a method other than OPTIONS")
			}
			req.Path = target
			return nil
		}
		// absolute-form (RFC 9112 section 3.2.2): its authority must be that of Host, see requestFacts.
		k := bytes.Index(target, []byte("://"))
		if k < 0 || !(message.EqualFold(target[:k], "http") || message.EqualFold(target[:k], "https")) {
			return bad("a target that neither starts with / nor is an http URL")
		}
		rest := target[k+3:]
		end := bytes.IndexAny(rest, "/?")
		if end < 0 {
			req.Host, target = rest, slash
		} else if rest[end] == '?' {
			return bad("an absolute target without a path")
		} else {
			req.Host, target = rest[:end], rest[end:]
		}
		if len(req.Host) == 0 {
			return refuse(reason.HostInvalid, "a host", "an absolute target without one")
		}
	}
	if q := bytes.IndexByte(target, '?'); q >= 0 {
		req.Path, req.Query, req.HasQuery = target[:q], target[q+1:], true
	} else {
		req.Path = target
	}
	return nil
}

var slash = []byte("/")

const maxMethod = 32

// requestFacts reads Host, framing and connection handling out of the fields and marks the hop-by-hop ones.
func requestFacts(req *message.Request, mode message.Mitigation) error {
	var host, length, coding, connection, upgrade, expect, odd int
	var lengthValue, codingValue, expectValue, upgradeValue []byte
	absolute := req.Host
	for i := range req.Fields {
		f := &req.Fields[i]
		switch len(f.Name) {
		case 2:
			if message.EqualFold(f.Name, "te") {
				f.Hop = true
				req.TrailersWanted = req.TrailersWanted || HasToken(f.Value, "trailers")
			}
		case 4:
			if message.EqualFold(f.Name, "host") {
				host++
				req.Host = f.Value
				f.Hop = true // forward writes its own Host line
			}
		case 6:
			if message.EqualFold(f.Name, "expect") {
				expect++
				expectValue = f.Value
				f.Hop = true
			}
		case 7:
			if message.EqualFold(f.Name, "upgrade") {
				upgrade++
				upgradeValue = f.Value
				f.Hop = true
			} else if message.EqualFold(f.Name, "trailer") {
				f.Hop = true
			}
		case 10:
			if message.EqualFold(f.Name, "connection") {
				connection++
				f.Hop = true
			} else if message.EqualFold(f.Name, "keep-alive") {
				f.Hop = true
			}
		case 14:
			if message.EqualFold(f.Name, "content-length") {
				length++
				lengthValue = f.Value
				f.Hop = true
			} else if message.EqualFold(f.Name, "http2-settings") {
				f.Hop = true
			}
		case 16:
			if message.EqualFold(f.Name, "proxy-connection") {
				f.Hop = true
			}
		case 17:
			if message.EqualFold(f.Name, "transfer-encoding") {
				coding++
				codingValue = f.Value
				f.Hop = true
			}
		case 19:
			f.Hop = message.EqualFold(f.Name, "proxy-authorization")
		}
		if len(f.Name) >= minResembling && mayResemble[f.Name[0]] && !f.Hop {
			odd++
		}
	}
	if odd > 0 {
		if err := suspicious(req, mode); err != nil {
			return err
		}
	}

	switch {
	case host > 1:
		return refuse(reason.HostAmbiguous, "one Host", "several")
	case host == 0 || len(req.Host) == 0:
		return refuse(reason.HostMissing, "", "")
	case absolute != nil && !bytes.EqualFold(absolute, req.Host):
		return refuse(reason.HostAmbiguous, "the target's host in Host", "another one")
	}

	// RFC 9112 section 6.1 permits to refuse everything that two readers could frame differently, and so it is.
	switch {
	case coding > 0 && (length > 0 || req.Minor == 0 || coding > 1):
		req.ClassReason = req.ClassReason.Worse(framingReason(req))
		return refuse(reason.FramingAmbiguous, "one way to find the end of the body",
			"Transfer-Encoding with Content-Length, twice, or in HTTP/1.0")
	case coding > 0 && !message.EqualFold(codingValue, "chunked"):
		req.ClassReason = req.ClassReason.Worse(framingReason(req))
		return refuse(reason.TransferEncodingUnsupported, "", "")
	case coding > 0:
		req.Framing, req.ContentLength = message.Chunked, -1
	case length > 1 && (mode == message.Strictest || !sameLengths(req, lengthValue)):
		req.ClassReason = req.ClassReason.Worse(framingReason(req))
		return refuse(reason.ContentLengthInvalid, "one Content-Length", "several")
	case length > 0:
		n, ok := message.Decimal(lengthValue)
		if !ok {
			req.ClassReason = req.ClassReason.Worse(message.BadContentLength)
			return refuse(reason.ContentLengthInvalid, "1 to 18 decimal digits", "something else")
		}
		if length > 1 {
			req.ClassReason = req.ClassReason.Worse(message.DuplicateContentLength)
		}
		if n > 0 {
			req.Framing = message.Length
		}
		req.ContentLength = n
	default:
		req.ContentLength = -1
	}

	if length+coding > 0 && (string(req.Method) == "GET" || req.IsHead()) {
		undefined(req)
	}

	req.KeepAlive = req.Minor == 1
	if connection > 0 {
		if err := connectionTokens(&req.Head, true); err != nil {
			return err
		}
	}
	// An offer of h2c may be ignored (RFC 9110 section 7.8); other upgrades would leave the client waiting.
	switch {
	case upgrade == 0 || upgrade == 1 && message.EqualFold(upgradeValue, "h2c"):
	case upgrade == 1 && message.EqualFold(upgradeValue, "websocket"):
		if req.WebSocketKey = webSocketKey(req); req.WebSocketKey == nil {
			return refuse(reason.UpgradeRefused, "a WebSocket request as in RFC 6455 section 4.1", "one that differs")
		}
	default:
		return refuse(reason.UpgradeRefused, "", "")
	}
	if expect > 0 {
		if expect > 1 || !message.EqualFold(expectValue, "100-continue") {
			return refuse(reason.ExpectationUnsupported, "100-continue", "something else")
		}
		req.Expect100 = req.Framing != message.NoBody && req.Minor == 1
	}
	return nil
}

// webSocketKey returns the key of a request that meets every condition of RFC 6455 section 4.2.1, and nil of any other.
func webSocketKey(req *message.Request) (key []byte) {
	keys, versions, upgrades := 0, 0, false
	version13 := false
	for i := range req.Fields {
		f := &req.Fields[i]
		switch {
		case message.EqualFold(f.Name, "sec-websocket-key"):
			keys++
			key = f.Value
		case message.EqualFold(f.Name, "sec-websocket-version"):
			versions++
			version13 = string(f.Value) == "13"
		case message.EqualFold(f.Name, "connection"):
			upgrades = upgrades || HasToken(f.Value, "upgrade")
		}
	}
	// The key is the base64 of 16 bytes: 22 characters and two of padding.
	if string(req.Method) != "GET" || req.Minor != 1 || req.Framing != message.NoBody || keys != 1 || versions != 1 || !version13 || !upgrades ||
		len(key) != 24 || string(key[22:]) != "==" {
		return nil
	}
	for _, c := range key[:22] {
		if !(c-'a' < 26 || c-'A' < 26 || c-'0' < 10 || c == '+' || c == '/') {
			return nil
		}
	}
	return key
}

// HasToken reports whether a comma-separated list has a token, which is given in lower case.
func HasToken(list []byte, token string) bool {
	for len(list) > 0 {
		var tok []byte
		if c := bytes.IndexByte(list, ','); c >= 0 {
			tok, list = list[:c], list[c+1:]
		} else {
			tok, list = list, nil
		}
		if message.EqualFold(bytes.Trim(tok, " \t"), token) {
			return true
		}
	}
	return false
}

// connectionTokens applies the Connection field: close and keep-alive, and marks the fields it names as hop-by-hop.
// A client must not use it to have fields removed that carry identity, routing or framing (D02).
func connectionTokens(h *message.Head, client bool) error {
	closes, tokens := false, 0
	for i := range h.Fields {
		if !message.EqualFold(h.Fields[i].Name, "connection") {
			continue
		}
		for rest := h.Fields[i].Value; len(rest) > 0; {
			var tok []byte
			if c := bytes.IndexByte(rest, ','); c >= 0 {
				tok, rest = rest[:c], rest[c+1:]
			} else {
				tok, rest = rest, nil
			}
			tok = bytes.Trim(tok, " \t")
			if tokens++; tokens > maxConnectionTokens { // each costs a look at every field
				return refuse(reason.ProtectedConnectionToken, "at most 32 options in Connection", "more")
			}
			switch {
			case !message.IsToken(tok): // names no field; EqualFold below would also match beyond ASCII
			case message.EqualFold(tok, "close"):
				closes = true
			case message.EqualFold(tok, "keep-alive"):
				if h.Minor == 0 {
					h.KeepAlive = true
				}
			case client && (identity.Protected(tok) || endToEnd(tok) || len(tok) > len(webSocketPrefix) && bytes.EqualFold(tok[:len(webSocketPrefix)], webSocketPrefix)):
				return refuse(reason.ProtectedConnectionToken, "", "")
			default:
				for j := range h.Fields {
					if bytes.EqualFold(h.Fields[j].Name, tok) {
						h.Fields[j].Hop = true
					}
				}
			}
		}
	}
	if closes { // whatever else is said (RFC 9112 section 9.3)
		h.KeepAlive = false
	}
	return nil
}

const maxConnectionTokens = 32

// webSocketPrefix begins the fields of a WebSocket's opening handshake (RFC 6455 section 11.3), which belong together.
var webSocketPrefix = []byte("sec-websocket-")

// endToEnd names fields that Connection must never remove because they say whom the request is for and what it carries.
func endToEnd(name []byte) bool {
	for _, n := range [...]string{"host", "content-length", "transfer-encoding", "authorization", "cookie", "content-type", "content-encoding", "via"} {
		if message.EqualFold(name, n) {
			return true
		}
	}
	return false
}

// ReadResponse reads the next response head; forHead says that the request was HEAD. A *reason.Refusal means that the
// response cannot be trusted and that the connection must not be used again. io.EOF means that the target closed before
// the first byte.
func (d *Reader) ReadResponse(resp *message.Response, forHead bool) error {
	resp.Reset()
	head, err := d.head(reason.UpstreamBadResponse, reason.UpstreamBadResponse)
	if err != nil {
		if err == io.EOF && d.Buffered() > 0 {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	line, rest := cutLine(head)
	if err := statusLine(resp, line); err != nil {
		return err
	}
	if resp.Fields, err = fields(resp.Fields, rest, 4*d.limits.Fields, reason.UpstreamBadResponse); err != nil {
		var r *reason.Refusal
		if errors.As(err, &r) {
			r.Reason = reason.UpstreamBadResponse
		}
		return err
	}
	return responseFacts(resp, forHead)
}

func badResponse(expected, found string) error {
	return refuse(reason.UpstreamBadResponse, expected, found)
}

// statusLine parses HTTP/1.x SP 3DIGIT [SP phrase] (RFC 9112 section 4).
func statusLine(resp *message.Response, line []byte) error {
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[7] != '0' && line[7] != '1' || line[8] != ' ' {
		return badResponse("HTTP/1.1 and a status", "another status line")
	}
	resp.Minor = line[7] - '0'
	n, ok := message.Decimal(line[9:12])
	if !ok || n < 100 || n > 599 || len(line) > 12 && line[12] != ' ' {
		return badResponse("a status from 100 to 599", "another one")
	}
	resp.Status = int(n)
	if len(line) > 13 {
		resp.Phrase = line[13:]
		if !message.IsValue(resp.Phrase) {
			return badResponse("a reason phrase without control characters", "a control character")
		}
	}
	return nil
}

func responseFacts(resp *message.Response, forHead bool) error {
	var length, coding, connection int
	var lengthValue, codingValue []byte
	for i := range resp.Fields {
		f := &resp.Fields[i]
		switch len(f.Name) {
		case 7:
			f.Hop = message.EqualFold(f.Name, "upgrade") || message.EqualFold(f.Name, "trailer")
		case 10:
			if message.EqualFold(f.Name, "connection") {
				connection++
				f.Hop = true
			} else if message.EqualFold(f.Name, "keep-alive") {
				f.Hop = true
			}
		case 14:
			if message.EqualFold(f.Name, "content-length") {
				length++
				lengthValue = f.Value
				f.Hop = true
			}
		case 16:
			f.Hop = message.EqualFold(f.Name, "proxy-connection")
		case 17:
			if message.EqualFold(f.Name, "transfer-encoding") {
				coding++
				codingValue = f.Value
				f.Hop = true
			}
		case 18:
			f.Hop = message.EqualFold(f.Name, "proxy-authenticate")
		}
	}
	switch {
	case coding > 0 && (length > 0 || coding > 1 || resp.Minor == 0):
		return badResponse("one way to find the end of the body", "Transfer-Encoding with Content-Length, twice, or in HTTP/1.0")
	case coding > 0 && !message.EqualFold(codingValue, "chunked"):
		return badResponse("Transfer-Encoding: chunked", "another coding")
	case length > 1:
		return badResponse("one Content-Length", "several")
	}
	resp.ContentLength = -1
	if length == 1 {
		n, ok := message.Decimal(lengthValue)
		if !ok {
			return badResponse("a decimal Content-Length", "something else")
		}
		resp.ContentLength = n
	}
	resp.KeepAlive = resp.Minor == 1
	if connection > 0 {
		_ = connectionTokens(&resp.Head, false)
	}
	bodiless := forHead || resp.Status < 200 || resp.Status == 204 || resp.Status == 304
	switch {
	case bodiless:
		resp.Framing = message.NoBody
		if resp.Status == 204 && (coding > 0 || resp.ContentLength > 0) {
			resp.KeepAlive = false // it may send a body all the same; not a connection to use again
		}
	case coding > 0:
		resp.Framing = message.Chunked
	case length == 1:
		if resp.ContentLength > 0 {
			resp.Framing = message.Length
		}
	default:
		resp.Framing = message.UntilClose
		resp.KeepAlive = false
	}
	return nil
}
