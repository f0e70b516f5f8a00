package edit

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"countersign/internal/hostname"
	"countersign/internal/identity"
	"countersign/internal/message"
	"countersign/internal/reason"
	"countersign/internal/route"
)

// Request are the edits of a request on its way to a target. Nil edits nothing, and every method is safe to call on it.
type Request struct {
	headers *Headers
	host    []byte
	path    *pathEdit
	query   *queryEdit
	id      *RequestID
	amzn    bool
}

// pathEdit replaces a prefix by segments, or the whole path by what an expression found in it.
type pathEdit struct {
	from, to string
	regexp   route.Regexp
	replace  []piece
}

// piece is a literal or, if text is empty, a group of the expression.
type piece struct {
	text  string
	group int
}

// RewriteOptions are rewrites as the configuration has them; empty means as it came.
type RewriteOptions struct {
	Host            string
	From, To        string
	Regexp, Replace string
	SetQuery        map[string]string
	RemoveQuery     []string
	// RequestID and Trace make ids that requests are followed by; nil and false for none.
	RequestID *RequestID
	Trace     bool
}

// maxPath bounds what a rewrite makes.
const maxPath = 16 << 10

// NewRequest compiles the edits of a request; headers may be nil. Problems are reported under host, path.prefix, path.regex
// and query.
func NewRequest(headers *Headers, o RewriteOptions, report Report) *Request {
	e := &Request{headers: headers, id: o.RequestID, amzn: o.Trace}
	if o.Host != "" {
		name, _, err := hostname.AppendCanonicalHost(nil, []byte(o.Host))
		if err != nil || len(name) == 0 || !strings.EqualFold(o.Host, string(name)) && !strings.HasPrefix(strings.ToLower(o.Host), string(name)+":") {
			report("host", "write the name the target knows itself by, such as api.internal", "%q is not a host: %v", bounded(o.Host), err)
		}
		e.host = []byte(strings.ToLower(o.Host))
	}
	switch {
	case o.From != "" && o.Regexp != "":
		report("path", "use one of them", "both prefix and regex are set")
	case o.From != "":
		e.path = newPrefix(o, report)
	case o.Regexp != "":
		e.path = newExpression(o, report)
	}
	if len(o.SetQuery)+len(o.RemoveQuery) > 0 {
		e.query = newQuery(o, report)
	}
	return e
}

func newPrefix(o RewriteOptions, report Report) *pathEdit {
	if err := route.CheckPath(o.From); err != nil {
		report("path.prefix.from", "", "%q %s", bounded(o.From), err)
	} else if strings.HasSuffix(o.From, "/") {
		report("path.prefix.from", "write "+strings.TrimSuffix(o.From, "/"), "a prefix stands for whole segments and does not end in a slash")
	}
	if err := checkTarget(o.To); err != nil {
		report("path.prefix.to", "write / or a path such as /v2", "%q %s", bounded(o.To), err)
	} else if o.To != "/" && strings.HasSuffix(o.To, "/") {
		report("path.prefix.to", "write "+strings.TrimSuffix(o.To, "/"), "a prefix stands for whole segments and does not end in a slash")
	}
	return &pathEdit{from: o.From, to: strings.TrimSuffix(o.To, "/")}
}

// checkTarget wants a raw path with one reading.
func checkTarget(path string) error {
	if path == "" {
		return errors.New("is empty")
	}
	read, err := route.Analyze([]byte(path), nil)
	if err != nil {
		return err
	}
	if !read.Single() {
		return errors.New("can be read in more than one way")
	}
	return nil
}

func newExpression(o RewriteOptions, report Report) *pathEdit {
	re, err := route.CompileRegexp(o.Regexp)
	if err != nil {
		report("path.regex", "", "the expression %s", err)
		return nil
	}
	pieces, err := parseReplacement(o.Replace, re.Groups())
	if err != nil {
		report("path.replace", "write a path with $1 to $9 for groups and $$ for a dollar", "%s", err)
	}
	return &pathEdit{regexp: re, replace: pieces}
}

// parseReplacement cuts text at $1 to $9. It begins with a slash, so that what a client sent never is the beginning.
func parseReplacement(text string, groups int) (pieces []piece, err error) {
	if !strings.HasPrefix(text, "/") {
		return nil, fmt.Errorf("%q does not begin with /", bounded(text))
	}
	plain := func(s string) {
		if n := len(pieces); n > 0 && pieces[n-1].group == 0 {
			pieces[n-1].text += s
		} else {
			pieces = append(pieces, piece{text: s})
		}
	}
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c != '$':
			if !inPath(c) {
				return nil, fmt.Errorf("%q has a character that a path cannot have", bounded(text))
			}
			plain(text[i : i+1])
		case i+1 < len(text) && text[i+1] == '$':
			i++
			plain("$")
		case i+1 < len(text) && text[i+1] >= '1' && text[i+1] <= '9':
			i++
			group := int(text[i] - '0')
			if group > groups {
				return nil, fmt.Errorf("%q names group %d, and the expression has %d", bounded(text), group, groups)
			}
			pieces = append(pieces, piece{group: group})
		default:
			return nil, fmt.Errorf("%q has a $ that is not followed by 1 to 9 or $", bounded(text))
		}
	}
	return pieces, nil
}

// Host returns the value of Host for the target; host is what the client asked for.
func (e *Request) Host(host []byte) []byte {
	if e == nil || e.host == nil {
		return host
	}
	return e.host
}

// Path returns the path for the target: rawPath itself, or what it is rewritten to, appended to dst. read is the analysis of
// rawPath. What is kept of the path is kept octet for octet (A27), and the result has to be a path that backends read in one
// way wherever the one that came was.
func (e *Request) Path(dst, rawPath []byte, read route.Path) ([]byte, reason.Reason) {
	if e == nil || e.path == nil || len(rawPath) == 0 || rawPath[0] != '/' {
		return rawPath, reason.Unset
	}
	start := len(dst)
	p := e.path
	if p.from != "" {
		all, some := read.Under(p.from)
		switch {
		case !some:
			return rawPath, reason.Unset
		case !all || read.Used() != 0:
			return nil, reason.PathUnsafe
		}
		rest := rawPath[rawOffset(rawPath, len(p.from)):]
		dst = append(append(dst, p.to...), rest...)
		if len(dst) == start {
			dst = append(dst, '/')
		}
	} else {
		if !read.Single() {
			return nil, reason.PathUnsafe // nobody can say what the expression finds in it
		}
		groups := p.regexp.Submatch(read.Literal())
		if groups == nil {
			return rawPath, reason.Unset
		}
		for _, piece := range p.replace {
			if piece.group == 0 {
				dst = append(dst, piece.text...)
			} else if from, to := groups[2*piece.group], groups[2*piece.group+1]; from >= 0 {
				dst = append(dst, rawPath[rawOffset(rawPath, from):rawOffset(rawPath, to)]...)
			}
		}
	}
	made := dst[start:len(dst):len(dst)]
	if len(made) > maxPath {
		return nil, reason.RewriteFailed
	}
	again, err := route.Analyze(made, nil)
	if err != nil || again.Used() != 0 || read.Single() && !again.Single() {
		return nil, reason.RewriteFailed
	}
	return made, reason.Unset
}

// rawOffset is where the first n octets of the decoded path end in the raw one, which has good escapes.
func rawOffset(raw []byte, n int) int {
	i := 0
	for ; n > 0 && i < len(raw); n-- {
		if raw[i] == '%' {
			i += 2
		}
		i++
	}
	return min(i, len(raw))
}

// queryEdit removes parameters and appends others.
type queryEdit struct {
	drops []string
	added string
}

func newQuery(o RewriteOptions, report Report) *queryEdit {
	q := new(queryEdit)
	const most = 32
	if len(o.SetQuery)+len(o.RemoveQuery) > most {
		report("query", "use fewer", "%d parameters; expected at most %d", len(o.SetQuery)+len(o.RemoveQuery), most)
	}
	for _, name := range sorted(o.SetQuery) {
		q.drops = append(q.drops, name)
		if q.added != "" {
			q.added += "&"
		}
		q.added += encodeParameter(name) + "=" + encodeParameter(o.SetQuery[name])
	}
	q.drops = append(q.drops, o.RemoveQuery...)
	return q
}

// Query returns the query for the target: query itself, or what it is rewritten to, appended to dst. What is kept is kept
// octet for octet (E26). has tells an empty query from none.
func (e *Request) Query(dst, query []byte, has bool) (out []byte, hasQuery bool) {
	if e == nil || e.query == nil {
		return query, has
	}
	start, removed := len(dst), false
	rest := query
	for more := has; more; {
		var pair []byte
		pair, rest, more = bytes.Cut(rest, []byte("&"))
		name, _, _ := bytes.Cut(pair, []byte("="))
		if e.query.dropped(name) {
			removed = true
			continue
		}
		if len(dst) > start {
			dst = append(dst, '&')
		}
		dst = append(dst, pair...)
	}
	if e.query.added != "" {
		if len(dst) > start {
			dst = append(dst, '&')
		}
		dst = append(dst, e.query.added...)
	} else if !removed {
		return query, has
	}
	return dst[start:len(dst):len(dst)], len(dst) > start
}

// dropped compares the decoded name of a parameter.
func (q *queryEdit) dropped(name []byte) bool {
	for _, drop := range q.drops {
		if decodesTo(name, drop) {
			return true
		}
	}
	return false
}

func decodesTo(encoded []byte, text string) bool {
	n := 0
	for i := 0; i < len(encoded); i++ {
		c := encoded[i]
		switch {
		case c == '+':
			c = ' '
		case c == '%' && i+2 < len(encoded) && unhex(encoded[i+1]) < 16 && unhex(encoded[i+2]) < 16:
			c = unhex(encoded[i+1])<<4 | unhex(encoded[i+2])
			i += 2
		}
		if n == len(text) || text[n] != c {
			return false
		}
		n++
	}
	return n == len(text)
}

func unhex(c byte) byte {
	switch {
	case c-'0' < 10:
		return c - '0'
	case c|0x20-'a' < 6:
		return c | 0x20 - 'a' + 10
	}
	return 0xff
}

// RequestID appends the id of a request to dst: the one it came with, or a new one; nil if none is asked for. It belongs into
// f for what else is asked of e, and into the record.
func (e *Request) RequestID(dst []byte, fields []message.Field, f *Facts) []byte {
	if e == nil || e.id == nil {
		return nil
	}
	return e.id.Append(dst, fields, f.Client, f.Random[0], f.Random[1])
}

// Drops reports whether a field of the client is not passed on: one that is removed or set, or one whose place an id takes.
// It allocates nothing.
func (e *Request) Drops(name []byte) bool {
	return e != nil && (e.headers.Drops(name) || e.id != nil && identity.SameFolded(name, e.id.folded) || e.amzn && identity.SameFolded(name, traceLower))
}

// AppendFields appends what is put in as fields: ids, then headers. Values that differ from request to request are appended
// to buf, which is returned.
func (e *Request) AppendFields(dst []message.Field, buf []byte, req *message.Request, f *Facts) ([]message.Field, []byte) {
	if e == nil {
		return dst, buf
	}
	if e.id != nil && len(f.RequestID) > 0 {
		dst = append(dst, message.Field{Name: e.id.name, Value: f.RequestID})
	}
	if e.amzn {
		start := len(buf)
		buf = appendTrace(buf, req.Fields, f)
		dst = append(dst, message.Field{Name: traceName, Value: buf[start:len(buf):len(buf)]})
	}
	return e.headers.AppendFields(dst, buf, f)
}

// AppendLines appends what is put in as lines of HTTP/1.1, in the same order.
func (e *Request) AppendLines(dst []byte, req *message.Request, f *Facts) []byte {
	if e == nil {
		return dst
	}
	if e.id != nil && len(f.RequestID) > 0 {
		dst = append(append(append(append(dst, e.id.name...), ": "...), f.RequestID...), "\r\n"...)
	}
	if e.amzn {
		dst = append(append(dst, traceName...), ": "...)
		dst = append(appendTrace(dst, req.Fields, f), "\r\n"...)
	}
	return e.headers.AppendLines(dst, f)
}
