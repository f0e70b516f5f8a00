package policy

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
)

// linter reads a parsed expression for what the type checker cannot know: which names there are and where they may be
// used, which functions, and which comparisons do not say what they seem to say (B08, B11).
type linter struct {
	lines    []string
	info     *ast.SourceInfo
	mode     Mode
	problems []RuleProblem
	reported map[int64]bool // nodes that CEL need not complain about again
	reads    map[string]bool
	scope    []bound
}

// bound is a variable of a macro, and what its values come from.
type bound struct {
	name string
	from origin
}

// origin is where a value comes from, as far as it matters for how it may be compared.
type origin uint8

const (
	fromClient origin = 1 << iota
	fromCommonName
	fromHost
	fromPath
)

// functions are those of the language beside the operators: those that are bounded, need no I/O and always give the same.
var functions = func() map[string]bool {
	m := make(map[string]bool)
	for _, name := range strings.Fields(`size contains startsWith endsWith matches lowerAscii only
		spiffe_matches dns_matches email_matches ip_in
		int uint double string bool duration timestamp
		getFullYear getMonth getDate getDayOfMonth getDayOfWeek getDayOfYear getHours getMinutes getSeconds`) {
		m[name] = true
	}
	for _, name := range []string{operators.Conditional, operators.LogicalAnd, operators.LogicalOr, operators.LogicalNot, operators.Equals,
		operators.NotEquals, operators.Less, operators.LessEquals, operators.Greater, operators.GreaterEquals, operators.Add, operators.Subtract,
		operators.Multiply, operators.Divide, operators.Modulo, operators.Negate, operators.Index, operators.In, operators.NotStrictlyFalse} {
		m[name] = true
	}
	return m
}()

// patterns are the functions whose last argument is a pattern, which must be written out so that it can be checked.
var patterns = map[string]func(string) error{
	"matches":        checkRegexp,
	"spiffe_matches": checkSPIFFEPattern,
	"dns_matches":    checkDNSPattern,
	"email_matches":  checkEmailPattern,
	"ip_in":          checkNetwork,
}

func isRoot(name string) bool { return name == "client" || name == "request" || name == "connection" }

func (l *linter) problem(e ast.Expr, message, next string) {
	l.reported[e.ID()] = true
	if len(l.problems) < maxProblems {
		line, column := l.place(e)
		l.problems = append(l.problems, RuleProblem{line, column, message, next})
	}
}

// place returns where a node begins: for a selection at its first name, for a call at the name of the function, which CEL
// puts at the parenthesis.
func (l *linter) place(e ast.Expr) (line, column int) {
	for e.Kind() == ast.SelectKind { // whose node is at the dot
		e = e.AsSelect().Operand()
	}
	at := l.info.GetStartLocation(e.ID())
	line, column = max(at.Line(), 1), max(at.Column()+1, 1)
	if e.Kind() == ast.CallKind && line <= len(l.lines) {
		name := e.AsCall().FunctionName() // in ASCII: characters are bytes
		before := string([]rune(l.lines[line-1])[:min(column-1, utf8.RuneCountInString(l.lines[line-1]))])
		if strings.HasSuffix(before, name) {
			column -= len(name)
		}
	}
	return line, column
}

func (l *linter) walk(e ast.Expr) {
	switch e.Kind() {
	case ast.IdentKind:
		if name := strings.TrimPrefix(e.AsIdent(), "."); isRoot(name) {
			l.problem(e, fmt.Sprintf("expected a field of %s, found %s by itself", name, name), "write for example "+example(name))
		}
	case ast.SelectKind:
		l.selected(e)
	case ast.CallKind:
		l.call(e)
	case ast.ListKind:
		for _, entry := range e.AsList().Elements() {
			l.walk(entry)
		}
	case ast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			l.walk(entry.AsMapEntry().Key())
			l.walk(entry.AsMapEntry().Value())
		}
	case ast.StructKind:
		l.problem(e, "expected a value, found a message of type "+quote(e.AsStruct().TypeName()), "compare fields one by one")
	case ast.ComprehensionKind:
		l.comprehension(e)
	}
}

func example(root string) string {
	switch root {
	case "client":
		return "client.spiffe_id"
	case "request":
		return "request.method"
	}
	return "connection.client_ip"
}

func (l *linter) comprehension(e ast.Expr) {
	c := e.AsComprehension()
	for _, name := range []string{c.IterVar(), c.IterVar2()} {
		if isRoot(name) || strings.Contains(name, ".") {
			l.problem(e, fmt.Sprintf("expected a name of its own for the variable, found %s", quote(name)), "call it by a single letter")
		}
	}
	l.walk(c.IterRange())
	l.walk(c.AccuInit())
	from := l.origin(c.IterRange())
	l.scope = append(l.scope, bound{c.IterVar(), from}, bound{c.IterVar2(), from}, bound{c.AccuVar(), 0})
	l.walk(c.LoopCondition())
	l.walk(c.LoopStep())
	l.scope = l.scope[:len(l.scope)-2]
	l.scope[len(l.scope)-1] = bound{c.AccuVar(), 0}
	l.walk(c.Result())
	l.scope = l.scope[:len(l.scope)-1]
}

// field finds the variable in a selection: client.subject in client.subject, and in what is selected from it.
func field(e ast.Expr) (root ast.Expr, name string, ok bool) {
	sel := e.AsSelect()
	root = sel.Operand()
	if root.Kind() != ast.IdentKind {
		return nil, "", false
	}
	first := strings.TrimPrefix(root.AsIdent(), ".")
	return root, first + "." + sel.FieldName(), isRoot(first)
}

func (l *linter) selected(e ast.Expr) {
	sel := e.AsSelect()
	root, name, ok := field(e)
	if !ok {
		l.walk(sel.Operand())
		if inner := sel.Operand(); inner.Kind() == ast.SelectKind {
			if _, of, ok := field(inner); ok && of == headerMap {
				l.pattern(e, checkHeader(sel.FieldName()))
			}
		}
		return
	}
	_, known := index[name]
	switch {
	case strings.HasPrefix(name, clientRoot) && !verifies(l.mode):
		l.problem(root, fmt.Sprintf("expected nothing about the client where mode %s verifies nobody, found %s",
			l.mode, quote(name)),
			"set mode: request or mode: require on the host, or remove it")
	case !known && name != present:
		next := "use one of " + fields(root.AsIdent())
		if like := nearest(name); like != "" {
			next = "did you mean " + like + "?"
		}
		l.problem(root, fmt.Sprintf("expected a field of %s, found %s", strings.TrimPrefix(root.AsIdent(), "."), quote(name)), next)
	case sel.IsTestOnly():
		l.problem(root, fmt.Sprintf("expected a header in has(), found %s, which is always there", name),
			"compare it with \"\", or its size() with 0")
	default:
		l.reads[name] = true
		return
	}
	l.reported[e.ID()] = true
}

// fields lists what a root has.
func fields(root string) string {
	var names []string
	for _, v := range Variables() {
		if name, ok := strings.CutPrefix(v.Name, strings.TrimPrefix(root, ".")+"."); ok {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// nearest returns the variable or function that somebody may have meant, or nothing.
func nearest(name string) string {
	best, least := "", 4
	root, own, dotted := strings.Cut(name, ".")
	try := func(candidate string) {
		if dotted {
			under, ok := strings.CutPrefix(candidate, root+".")
			if d := distance(own, under); ok && d < least && d*3 <= len(under) {
				best, least = candidate, d
			}
		} else if d := distance(name, candidate); d < least && d*3 <= len(candidate) {
			best, least = candidate, d
		}
	}
	for _, v := range Variables() {
		try(v.Name)
	}
	known := make([]string, 0, len(functions))
	for f := range functions {
		if f[0] >= 'a' && f[0] <= 'z' {
			known = append(known, f)
		}
	}
	slices.Sort(known)
	for _, f := range known {
		try(f)
	}
	return best
}

// distance is that of Levenshtein, in bytes, and a large number for texts that are far apart by their length alone.
func distance(a, b string) int {
	if len(a)-len(b) > 4 || len(b)-len(a) > 4 {
		return 100
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

func (l *linter) call(e ast.Expr) {
	call := e.AsCall()
	name, args := call.FunctionName(), call.Args()
	if !functions[name] {
		next := "see the documentation of allow for the functions there are"
		if like := nearest(name); like != "" {
			next = "did you mean " + like + "?"
		}
		l.problem(e, fmt.Sprintf("expected a function of this language, found %s", quote(name)), next)
	}
	if call.IsMemberFunction() {
		l.walk(call.Target())
		args = append([]ast.Expr{call.Target()}, args...)
		for _, arg := range args[1:] {
			l.walk(arg)
		}
	} else {
		for _, arg := range args {
			l.walk(arg)
		}
	}
	if len(args) == 0 {
		return
	}
	subject, last := args[0], args[len(args)-1]

	if strings.HasPrefix(name, "get") && len(args) > 1 {
		l.problem(e, "expected no time zone, found one: looking it up would read a file for each request", "compare times in UTC")
	}
	if check := patterns[name]; check != nil && len(args) == 2 {
		if s, ok := literal(last); ok {
			l.pattern(last, check(s))
		} else {
			l.problem(last, "expected the pattern of "+name+" as a text in quotation marks, found something that is computed",
				"write the pattern out")
		}
	}
	from := l.origin(subject)
	switch name {
	case "dns_matches":
		if from&fromCommonName != 0 {
			l.problem(e, "expected a DNS name of the certificate, found its common name, to which the constraints of its CA do not apply",
				"write client.dns_sans.exists(d, dns_matches(d, ...))")
		}
	case "startsWith", "endsWith", "contains":
		switch {
		case len(args) != 2:
		case from&(fromClient|fromCommonName) != 0:
			l.problem(e, fmt.Sprintf("expected a comparison of whole names, found %s, which names that nobody thought of meet as well", name),
				"use ==, in, spiffe_matches, dns_matches, email_matches, or matches with ^ and $")
		case from&fromHost != 0:
			l.problem(e, fmt.Sprintf("expected a comparison of whole host names, found %s", name),
				"use ==, in or dns_matches(name, \"*.example.test\")")
		case from&fromPath != 0 && name == "startsWith":
			if !endsInSlash(last) {
				l.problem(e, "expected whole segments of the path, found a beginning that other segments have as well",
					"let the text end in a slash, as in request.path == \"/admin\" || request.path.startsWith(\"/admin/\")")
			}
		}
	case "only":
		if s, ok := literal(last); ok {
			l.pattern(last, checkHeader(s))
		}
	case operators.Index:
		if s, ok := literal(last); ok && isHeaders(subject) {
			l.pattern(last, checkHeader(s))
		}
	case operators.In:
		if s, ok := literal(subject); ok && isHeaders(last) {
			l.pattern(subject, checkHeader(s))
		}
	case operators.Equals, operators.NotEquals:
		if isHeaders(subject) || isHeaders(last) {
			l.problem(e, "expected one header, found all of them", "compare request.headers[\"name\"] or request.headers.only(\"name\")")
		}
	}
}

func (l *linter) pattern(e ast.Expr, err error) {
	if err == nil {
		return
	}
	message, next := err.Error(), "correct it"
	if at := strings.LastIndex(message, "; "); at >= 0 {
		message, next = message[:at], message[at+2:]
	}
	l.problem(e, message, next)
}

// endsInSlash reports whether a text, perhaps put together, is known to end in a slash.
func endsInSlash(e ast.Expr) bool {
	if e.Kind() == ast.CallKind && e.AsCall().FunctionName() == operators.Add {
		args := e.AsCall().Args()
		return endsInSlash(args[len(args)-1])
	}
	s, ok := literal(e)
	return ok && strings.HasSuffix(s, "/")
}

func isHeaders(e ast.Expr) bool {
	if e.Kind() != ast.SelectKind {
		return false
	}
	_, name, ok := field(e)
	return ok && name == headerMap
}

func literal(e ast.Expr) (string, bool) {
	if e.Kind() != ast.LiteralKind {
		return "", false
	}
	s, ok := e.AsLiteral().(types.String)
	return string(s), ok
}

// origin says what the value of an expression is made of.
func (l *linter) origin(e ast.Expr) (from origin) {
	switch e.Kind() {
	case ast.IdentKind:
		for _, b := range slices.Backward(l.scope) {
			if b.name == e.AsIdent() {
				return b.from
			}
		}
	case ast.SelectKind:
		_, name, ok := field(e)
		switch {
		case !ok:
			return l.origin(e.AsSelect().Operand())
		case name == "client.common_name":
			return fromCommonName
		case strings.HasPrefix(name, clientRoot):
			return fromClient
		case name == "request.host", name == "connection.server_name":
			return fromHost
		case name == path:
			return fromPath
		}
	case ast.CallKind:
		call := e.AsCall()
		if call.IsMemberFunction() {
			from = l.origin(call.Target())
		}
		for _, arg := range call.Args() {
			from |= l.origin(arg)
		}
	case ast.ListKind:
		for _, entry := range e.AsList().Elements() {
			from |= l.origin(entry)
		}
	case ast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			from |= l.origin(entry.AsMapEntry().Key()) | l.origin(entry.AsMapEntry().Value())
		}
	case ast.ComprehensionKind:
		c := e.AsComprehension()
		from = l.origin(c.IterRange())
		l.scope = append(l.scope, bound{c.IterVar(), from}, bound{c.IterVar2(), from}, bound{c.AccuVar(), 0})
		from |= l.origin(c.LoopStep())
		l.scope = l.scope[:len(l.scope)-3]
	}
	return from
}

// hidden finds what readers of the text would not see, or see in another order: control and format characters, and what is
// not UTF-8.
func hidden(text string) *RuleProblem {
	line, column := 1, 1
	for i, r := range text {
		switch {
		case r == '\n':
			line, column = line+1, 1
			continue
		case r == '\t', r == '\r':
		case r == utf8.RuneError && !strings.HasPrefix(text[i:], "\ufffd"), !unicode.IsPrint(r):
			return &RuleProblem{line, column, fmt.Sprintf("expected visible text, found %s", quote(text[i:i+runeLen(text[i:])])),
				"remove it, or write it as an escape such as \\u200e"}
		}
		column++
	}
	return nil
}

func runeLen(s string) int {
	_, n := utf8.DecodeRuneInString(s)
	return n
}
