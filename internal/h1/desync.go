package h1

import (
	"bytes"
	"io"

	"countersign/internal/message"
	"countersign/internal/reason"
)

// The classification of requests by how far they are from RFC 9112, with the classes and reasons of AWS ALB. What the
// parser takes in passing is classified by it; the functions here look again at what is refused, to say what it was, so
// that a compliant request costs nothing.
//
// A refused request is in the gravest class that anything of it is in; of two the one that stands first.

// unfinished classifies what was read of a head that did not come to its end, or was refused before it did.
func (d *Reader) unfinished(err error) message.ClassReason {
	switch r, refused := err.(*reason.Refusal); {
	case refused && r.Reason == reason.BadHeader:
		return message.NonCrLfLineTermination
	case refused || err != io.EOF && err != io.ErrUnexpectedEOF || d.Buffered() == 0:
		return message.NoDeviation // too large, too slow, or not begun
	case (*d.buf)[d.w-1] == '\n':
		return message.MissingLastEmptyLine
	default:
		return message.PartialHeaderLine
	}
}

// lineReason classifies a request line that is refused.
func lineReason(line []byte) message.ClassReason {
	method, rest, _ := bytes.Cut(line, []byte(" "))
	found := message.NoDeviation
	if !message.IsToken(method) || len(method) > maxMethod {
		found = message.BadMethod
	}
	trimmed := bytes.TrimRight(rest, " \t")
	target, version := trimmed, []byte(nil) // HTTP/0.9 has none
	if i := bytes.LastIndexByte(trimmed, ' '); i >= 0 {
		target, version = trimmed[:i], bytes.Trim(trimmed[i+1:], "\t")
	} else if bytes.HasPrefix(trimmed, []byte("HTTP/")) {
		target, version = nil, trimmed
	}
	if len(bytes.Trim(target, " \t")) == 0 {
		found = found.Worse(message.MissingUri)
	}
	switch {
	case len(version) == 0:
		found = found.Worse(message.NonCompliantVersion)
	case string(version) == "HTTP/1.1" || string(version) == "HTTP/1.0":
		if !bytes.HasSuffix(rest, version) || bytes.HasSuffix(rest, append([]byte("\t"), version...)) {
			found = found.Worse(message.NonCompliantVersion)
		}
	case string(version) == "HTTP/0.9" || len(version) == 8 && string(version[:7]) == "HTTP/1." && version[7]-'0' < 10:
		found = found.Worse(message.NonCompliantVersion)
	default:
		found = found.Worse(message.BadVersion)
	}
	for _, c := range target {
		switch {
		case c == 0 || c == '\r' || c == '\n':
			found = found.Worse(message.BadUri)
		case c == ' ':
			found = found.Worse(message.SpaceInUri)
		case c < ' ' || c >= 0x7f || c == '#':
			found = found.Worse(message.AmbiguousUri)
		}
	}
	return found
}

// fieldsReason classifies header lines of which one at least is refused.
func fieldsReason(head []byte) message.ClassReason {
	found := message.NoDeviation
	for {
		line, rest := cutLine(head)
		if len(line) == 0 {
			return found
		}
		found, head = found.Worse(fieldReason(line)), rest
	}
}

func fieldReason(line []byte) message.ClassReason {
	name, val, colon := bytes.Cut(line, []byte(":"))
	val = bytes.Trim(val, " \t")
	switch {
	case bytes.IndexByte(line, 0) >= 0 || bytes.IndexByte(line, '\r') >= 0:
		return message.BadHeader
	case line[0] == ' ' || line[0] == '\t':
		return message.MultilineHeader
	case !colon:
		return message.MissingHeaderColon
	case len(name) == 0:
		return message.EmptyHeader
	case message.EqualFold(name, "transfer-encoding"):
		return codingReason(val)
	case message.EqualFold(name, "content-length"):
		if _, ok := message.Decimal(val); !ok {
			return message.BadContentLength
		}
	case resembles(name):
		return message.SuspiciousHeader
	case !message.IsToken(name):
		return message.NonCompliantHeader
	}
	if !message.IsValue(val) {
		return message.NonCompliantHeader
	}
	return message.NoDeviation
}

// codingReason classifies the value of one Transfer-Encoding. Codings other than chunked are none that we read, and so
// are bad here, also those that ALB knows.
func codingReason(list []byte) message.ClassReason {
	chunked := 0
	for item := range bytes.SplitSeq(list, []byte(",")) {
		if !message.EqualFold(bytes.Trim(item, " \t"), "chunked") {
			return message.BadTransferEncoding
		}
		chunked++
	}
	if chunked > 1 {
		return message.MultipleTransferEncodingChunked
	}
	return message.NoDeviation
}

// framingReason classifies fields that say in a refused way where the body ends.
func framingReason(req *message.Request) message.ClassReason {
	found := message.NoDeviation
	codings, lengths := 0, 0
	var first []byte
	for i := range req.Fields {
		switch f := &req.Fields[i]; {
		case message.EqualFold(f.Name, "transfer-encoding"):
			found = found.Worse(codingReason(f.Value))
			if codings++; codings > 1 {
				found = found.Worse(message.MultipleTransferEncodingChunked)
			}
		case message.EqualFold(f.Name, "content-length"):
			_, ok := message.Decimal(f.Value)
			switch lengths++; {
			case !ok:
				found = found.Worse(message.BadContentLength)
			case lengths == 1:
				first = f.Value
			case bytes.Equal(first, f.Value):
				found = found.Worse(message.DuplicateContentLength)
			default:
				found = found.Worse(message.MultipleContentLength)
			}
		}
	}
	if codings > 0 && req.Minor == 0 {
		found = found.Worse(message.UndefinedTransferEncodingSemantics)
	}
	if codings > 0 && lengths > 0 {
		found = found.Worse(message.BothTeClPresent)
	}
	return found
}

// suspicious takes fields that resemble those that frame the body.
func suspicious(req *message.Request, mode message.Mitigation) error {
	for i := range req.Fields {
		f := &req.Fields[i]
		if f.Hop || !resembles(f.Name) { // the very ones are marked
			continue
		}
		req.ClassReason = req.ClassReason.Worse(message.SuspiciousHeader)
		if mode == message.Strictest {
			req.ClassReason = req.ClassReason.Worse(framingReason(req))
			return refuse(reason.BadHeader, "a header name that cannot be taken for Content-Length or Transfer-Encoding", "one that can")
		}
		f.Hop = true // whoever is behind us never sees it
	}
	return nil
}

// undefined takes a GET or HEAD with fields that frame a body. Content of these has no meaning (RFC 9110 sections 9.3.1
// and 9.3.2), so that targets ignore it, or read it as a request.
func undefined(req *message.Request) {
	switch {
	case req.Framing == message.Chunked:
		req.ClassReason = req.ClassReason.Worse(message.UndefinedTransferEncodingSemantics)
	case req.ContentLength > 0:
		req.ClassReason = req.ClassReason.Worse(message.UndefinedContentLengthSemantics)
	default:
		req.ClassReason = req.ClassReason.Worse(message.GetHeadZeroContentLength)
		req.ContentLength = -1 // passed on without the field
	}
}

// sameLengths reports whether every Content-Length of req is the same text.
func sameLengths(req *message.Request, text []byte) bool {
	for i := range req.Fields {
		if f := &req.Fields[i]; message.EqualFold(f.Name, "content-length") && !bytes.Equal(f.Value, text) {
			return false
		}
	}
	return true
}

// minResembling is the length of the shortest name that frames a body.
const minResembling = len("content-length")

// mayResemble are the bytes with which a name begins that resembles one that frames a body.
var mayResemble [256]bool

func init() {
	for c := range 256 {
		mayResemble[c] = !alphanumeric(byte(c)) || c|0x20 == 'c' || c|0x20 == 't'
	}
}

func alphanumeric(c byte) bool { return c-'0' < 10 || c-'A' < 26 || c-'a' < 26 }

// Resembles reports whether a name other than the two could be taken for Content-Length or Transfer-Encoding by a target
// that folds names. It is for heads that came by another protocol.
func Resembles(name []byte) bool {
	return len(name) >= minResembling && mayResemble[name[0]] && resembles(name) && !message.EqualFold(name, "content-length") && !message.EqualFold(name, "transfer-encoding")
}

// resembles reports whether name has the letters of Transfer-Encoding or Content-Length and no others: Content_Length,
// Transfer--Encoding, and with a long s or a dotless i in it, which become ASCII in upper case. Backends that fold names,
// or cut them, may take one for the other. It is also true of the two themselves.
func resembles(name []byte) bool {
	return sameLetters(name, "contentlength") || sameLetters(name, "transferencoding")
}

func sameLetters(name []byte, letters string) bool {
	if len(name) <= len(letters) { // ContentLength is a name of its own, as it is to ALB
		return false
	}
	n := 0
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case i+1 < len(name) && c == 0xc5 && name[i+1] == 0xbf:
			c = 's'
			i++
		case i+1 < len(name) && c == 0xc4 && name[i+1] == 0xb1:
			c = 'i'
			i++
		case !alphanumeric(c):
			continue
		}
		if n == len(letters) || c|0x20 != letters[n] {
			return false
		}
		n++
	}
	return n == len(letters)
}

// unfold joins folded header lines as RFC 9112 section 5.2 says, by white space in the place of the line end, and reports
// whether there were any. It leaves those that could also be read in another way, which are refused behind it: a line
// that could be a field or the end of the head by itself, and the fold of a field that says where the body ends or whom
// the request is for.
func unfold(head []byte) bool {
	found := false
	field := -1 // where the field begins that may be continued
	for at := 0; at < len(head); {
		end := at + bytes.IndexByte(head[at:], '\n')
		line := head[at : end-1]
		switch {
		case len(line) == 0:
			return found
		case line[0] != ' ' && line[0] != '\t':
			if field = at; !mayFold(line) {
				field = -1
			}
		case field < 0 || len(bytes.Trim(line, " \t")) == 0 || bytes.IndexByte(line, ':') >= 0:
			field = -1
		default:
			head[at-2], head[at-1] = ' ', ' '
			found = true
		}
		at = end + 1
	}
	return found
}

func mayFold(line []byte) bool {
	name, _, colon := bytes.Cut(line, []byte(":"))
	return colon && !resembles(name) && !hopByHop(name) && !endToEnd(name)
}

// hopByHop names the fields that are about one connection.
func hopByHop(name []byte) bool {
	for _, n := range [...]string{"connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade", "http2-settings", "expect", "host",
		"content-length", "transfer-encoding"} {
		if message.EqualFold(name, n) {
			return true
		}
	}
	return len(name) > len(webSocketPrefix) && bytes.EqualFold(name[:len(webSocketPrefix)], webSocketPrefix)
}
