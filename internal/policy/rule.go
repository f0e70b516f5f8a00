package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/decls"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"countersign/internal/reason"
	"countersign/internal/route"
)

// Bounds of a rule. Cost is CEL's: about one unit for each operation, and one for ten bytes that are looked at.
const (
	maxExpression = 4 << 10
	maxNodes      = 500 // after macros
	maxDepth      = 40
	maxRegexp     = 1000 // instructions
	maxCost       = 250_000
	maxProblems   = 20

	// A rule that may cost more than longCost also has a time to end in.
	longCost = 150_000
	maxTime  = 50 * time.Millisecond
)

// Rule is a compiled allow expression. It is immutable and serves any number of goroutines.
type Rule struct {
	source  string
	mode    Mode
	reads   []string
	cost    uint64 // the most it can cost
	path    bool   // it reads request.path
	program cel.Program
}

// CompileOptions say where a rule stands.
type CompileOptions struct {
	// Mode is the mode of the host. Where it verifies nobody, which is all but Request and Require, a rule may not mention
	// the client.
	Mode Mode
}

// RuleError is why a text is no rule. It has all problems that were found, in the order of the text.
type RuleError struct {
	Problems []RuleProblem
}

// RuleProblem is one of them. Line and Column count from 1, columns in characters, from the beginning of the expression.
type RuleProblem struct {
	Line, Column  int
	Message, Next string
}

func (e *RuleError) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%d:%d: %s; %s", p.Line, p.Column, p.Message, p.Next)
	}
	return b.String()
}

// String returns the text of the rule.
func (r *Rule) String() string { return r.source }

// Reads returns the names of the variables that the rule mentions, in alphabetical order.
func (r *Rule) Reads() []string { return slices.Clone(r.reads) }

// environment is the language: types, variables and functions. It is made once, and is read only from then on.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	str, yes := cel.StringType, cel.BoolType
	// The checker has seen to the types, and nothing is dynamic in this language: no need to look again at each call.
	unguarded := decls.DisableTypeGuards(true)
	compare := func(name string, matches func(string, string) bool) cel.EnvOption {
		return cel.Function(name, unguarded, cel.Overload(name+"_string_string", []*cel.Type{str, str}, yes,
			cel.BinaryBinding(func(a, b ref.Val) ref.Val {
				return types.Bool(matches(string(a.(types.String)), string(b.(types.String))))
			})))
	}
	options := []cel.EnvOption{
		cel.StdLib(),
		cel.HomogeneousAggregateLiterals(),
		cel.ASTValidators(cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals(),
			cel.ValidateComprehensionNestingLimit(4)),
		cel.DefaultUTCTimeZone(true),
		cel.EnableHiddenAccumulatorName(true),
		cel.ParserRecursionLimit(maxDepth),
		cel.ParserErrorRecoveryLimit(maxProblems),
		cel.ParserExpressionSizeLimit(maxExpression),
		cel.ExpressionNodeLimit(maxNodes),
		cel.RegexProgramSizeLimit(maxRegexp),

		compare("spiffe_matches", spiffeMatches),
		compare("dns_matches", dnsMatches),
		compare("email_matches", emailMatches),
		cel.Function("ip_in", unguarded, cel.Overload("ip_in_string_string", []*cel.Type{str, str}, yes,
			cel.BinaryBinding(func(a, b ref.Val) ref.Val {
				in, err := ipIn(string(a.(types.String)), string(b.(types.String)))
				if err != nil {
					return types.WrapErr(err)
				}
				return types.Bool(in)
			}))),
		cel.Function("only", unguarded, cel.MemberOverload("headers_only_string",
			[]*cel.Type{cel.MapType(str, strs), str}, str, cel.BinaryBinding(only))),
		cel.Function("lowerAscii", unguarded, cel.MemberOverload("string_lower_ascii", []*cel.Type{str}, str, cel.UnaryBinding(lowerASCII))),

		cel.Variable(present, yes),
	}
	for i := range clientVariables {
		options = append(options, cel.Variable(clientVariables[i].name, clientVariables[i].kind))
	}
	for i := range requestVariables {
		options = append(options, cel.Variable(requestVariables[i].name, requestVariables[i].kind))
	}
	return cel.NewCustomEnv(options...)
})

func lowerASCII(v ref.Val) ref.Val {
	lower := []byte(v.(types.String))
	for i, c := range lower {
		if c-'A' < 26 {
			lower[i] = c | 0x20
		}
	}
	return types.String(lower)
}

// Compile type-checks a text. Every error is a *RuleError.
func Compile(text string, o CompileOptions) (*Rule, error) { return compile(text, o, maxCost) }

// compile takes the cost at which an evaluation is broken off.
func compile(text string, o CompileOptions, limit uint64) (r *Rule, err error) {
	whole := func(message, next string) error {
		return &RuleError{[]RuleProblem{{Line: 1, Column: 1, Message: message, Next: next}}}
	}
	defer func() {
		if p := recover(); p != nil {
			r, err = nil, whole("the expression brought its compiler down: "+bounded(fmt.Sprint(p)),
				"write it in another way, and report this as a bug")
		}
	}()
	if strings.TrimSpace(text) == "" {
		return nil, whole("expected an expression, found nothing", "write a condition, or remove the setting to allow everybody")
	}
	if len(text) > maxExpression {
		return nil, whole(fmt.Sprintf("expected at most %d bytes, found %d", maxExpression, len(text)),
			"write a shorter expression, or split it over several routes")
	}
	if p := hidden(text); p != nil {
		return nil, &RuleError{[]RuleProblem{*p}}
	}
	env, err := environment()
	if err != nil {
		return nil, whole("the language could not be set up: "+bounded(err.Error()), "report this as a bug")
	}

	parsed, issues := env.Parse(text)
	if issues.Err() != nil {
		return nil, ruleError(nil, issues, nil)
	}
	l := &linter{lines: strings.Split(text, "\n"), info: parsed.NativeRep().SourceInfo(), mode: o.Mode,
		reported: make(map[int64]bool), reads: make(map[string]bool)}
	l.walk(parsed.NativeRep().Expr())
	checked, issues := env.Check(parsed)
	if err := ruleError(l.problems, issues, l.reported); err != nil {
		return nil, err
	}
	if t := checked.OutputType(); !t.IsExactType(cel.BoolType) {
		return nil, whole(fmt.Sprintf("expected a condition, which is true or false, found an expression of type %s", bounded(t.String())),
			"compare it with something")
	}

	r = &Rule{source: text, mode: o.Mode}
	for id, reference := range checked.NativeRep().ReferenceMap() {
		name := strings.TrimPrefix(reference.Name, ".")
		if root, _, dotted := strings.Cut(name, "."); dotted && isRoot(root) && !l.reads[name] {
			// The checker has found a variable where linter has not: then linter has not judged it either.
			at := l.info.GetStartLocation(id)
			return nil, &RuleError{[]RuleProblem{{max(at.Line(), 1), max(at.Column()+1, 1),
				"expected a plain use of " + quote(name), "write it without tricks"}}}
		}
	}
	for name := range l.reads {
		r.reads = append(r.reads, name)
	}
	slices.Sort(r.reads)
	r.path = l.reads[path]

	estimate, err := env.EstimateCost(checked, sizes{}, cost.PresenceTestHasCost(true))
	if err != nil {
		return nil, whole("the cost of the expression could not be estimated: "+bounded(err.Error()), "write it in another way")
	}
	if estimate.Max > maxCost {
		return nil, whole(fmt.Sprintf("expected an expression that costs at most %d steps, found one that may cost %s",
			maxCost, steps(estimate.Max)),
			"go through one list at a time, and compare with == or *_matches instead of matches")
	}
	r.cost = estimate.Max
	r.program, err = env.Program(checked, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(limit), cel.InterruptCheckFrequency(100))
	if err != nil {
		return nil, whole("the expression could not be prepared: "+bounded(err.Error()), "write it in another way")
	}
	return r, nil
}

func steps(n uint64) string {
	if n > 1e12 {
		return "without bound"
	}
	return fmt.Sprint(n)
}

// ruleError collects what linter and CEL have found, each place once, or returns nil.
func ruleError(problems []RuleProblem, issues *cel.Issues, reported map[int64]bool) error {
	problems = slices.Clone(problems)
	for _, e := range issues.Errors() {
		if reported[e.ExprID] {
			continue
		}
		line, column := 1, 1
		if e.Location != common.NoLocation {
			line, column = max(e.Location.Line(), 1), max(e.Location.Column()+1, 1)
		}
		message, _, _ := strings.Cut(e.Message, "\n")
		problems = append(problems, RuleProblem{line, column, bounded(message), nextFor(message)})
	}
	if len(problems) == 0 {
		return nil
	}
	slices.SortStableFunc(problems, func(a, b RuleProblem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	problems = slices.Compact(problems)
	return &RuleError{problems[:min(len(problems), maxProblems)]}
}

func nextFor(message string) string {
	switch {
	case strings.HasPrefix(message, "Syntax error"):
		return "correct the syntax: this is CEL, as in client.uri_sans.exists(u, u == \"spiffe://corp.test/ops\")"
	case strings.HasPrefix(message, "found no matching overload"):
		return "compare values of one type: a text with a text, an entry of a list with exists or in"
	case strings.HasPrefix(message, "undeclared reference"):
		return "put texts in quotation marks; names begin with client., request. or connection."
	}
	return "correct the expression"
}

// sizes bound what a rule may read, for the estimate of its cost.
type sizes struct{}

func (sizes) EstimateSize(node cost.AstNode) *cost.SizeEstimate {
	at := node.Path()
	if len(at) == 0 {
		return nil
	}
	most := uint64(maxEntry)
	switch last := at[len(at)-1]; {
	case node.Type().Kind() == types.ListKind, node.Type().Kind() == types.MapKind:
		most = maxEntries
	case node.Type().Kind() != types.StringKind:
		return nil
	case len(at) == 1, last == "@items" && at[0] == headerMap:
		most = maxValue
	}
	return &cost.SizeEstimate{Min: 0, Max: most}
}

func (sizes) EstimateCallCost(function, overload string, target *cost.AstNode, args []cost.AstNode) *cost.CallEstimate {
	var most uint64
	var size *cost.SizeEstimate
	switch function {
	case "spiffe_matches", "dns_matches", "email_matches", "ip_in":
		most = maxEntry / 10
	case "lowerAscii":
		size = &cost.SizeEstimate{Max: maxValue}
		most = maxValue / 10
	case "only":
		size = &cost.SizeEstimate{Max: maxValue}
		most = maxEntries
	default:
		return nil
	}
	return &cost.CallEstimate{CostEstimate: cost.Estimate{Min: 1, Max: most}, ResultSize: size}
}

var _ cost.Estimator = sizes{}

// Would reports whether the rule would allow the request that f tells of, for a record: it decides nothing. An error
// means that it could not be evaluated, which would deny.
func (r *Rule) Would(f *Facts) (bool, error) {
	if f == nil {
		return false, errors.New("expected the facts of a request, found none")
	}
	switch why := r.judge(f, r.mode); why {
	case reason.Unset:
		return true, nil
	case reason.PolicyDenied:
		return false, nil
	default:
		return false, f.Cause()
	}
}

// judge returns Unset if the rule allows what f tells of, under a mode that may differ from the one it was compiled for.
func (r *Rule) judge(f *Facts, mode Mode) reason.Reason {
	f.verified, f.path, f.absent, f.unusable, f.failure = nil, f.Path.Literal(), "", nil, nil
	if id, ok := f.Client.Identity(); ok && verifies(mode) && verifies(r.mode) {
		f.verified = id
	}
	why := r.once(f)
	if r.path && why == reason.Unset {
		// Backends may read more than one path in this request, and the rule has to allow each of them (A26).
		if normal := f.Path.Normal(); string(normal) != string(f.path) {
			if strings.ContainsAny(string(f.path), ";?#") || f.Path.Used()&route.DoubleEncoded != 0 {
				// A third reading, which ends at the parameter, is not to be had here.
				f.path, f.failure = nil, errors.New("the rule reads request.path, and this one has parameters, which backends read differently")
				return reason.PathUnsafe
			}
			f.path = normal
			why = r.once(f)
		}
	}
	f.path = nil
	return why
}

// once evaluates the rule for one reading of the path.
func (r *Rule) once(f *Facts) (why reason.Reason) {
	defer func() {
		if p := recover(); p != nil {
			f.failure, why = fmt.Errorf("the rule panicked: %s", bounded(fmt.Sprint(p))), reason.PolicyFailed
		}
	}()
	var out ref.Val
	var err error
	if r.cost > longCost {
		ctx, cancel := context.WithTimeout(context.Background(), maxTime)
		out, _, err = r.program.ContextEval(ctx, (*activation)(f))
		cancel()
	} else {
		out, _, err = r.program.Eval((*activation)(f))
	}
	switch allowed, isBool := out.(types.Bool); {
	case f.absent != "":
		return reason.PolicyDenied // whatever became of it
	case f.unusable != nil:
		return reason.PolicyFailed
	case err != nil:
		f.failure = errors.New(bounded(err.Error()))
		return reason.PolicyFailed
	case !isBool:
		f.failure = errors.New("expected true or false, found something else")
		return reason.PolicyFailed
	case !bool(allowed):
		return reason.PolicyDenied
	}
	return reason.Unset
}

// Cause returns why the last rule that was evaluated could not allow, beyond saying no: for the operator's log, bounded.
// It is nil if it allowed or said no.
func (f *Facts) Cause() error {
	switch {
	case f.absent != "":
		return fmt.Errorf("the rule reads %s, and there is no verified client", f.absent)
	case f.unusable != nil:
		return f.unusable
	}
	return f.failure
}

func verifies(m Mode) bool { return m == Request || m == Require }
