package countersign_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// guarded are the packages in which no goroutine may end the program by a panic (F16). Go recovers handlers of net/http
// and nothing else.
var guarded = []string{"frontend", "eventloop", "forward", "upstream", "h2", "refresh", "record", "limit", "journal", "control", "tracing/otlp", "top", "daemon"}

// unguarded are roots of goroutines that need no recover, as package.function-that-starts-them:what-they-run, and why.
var unguarded = map[string]string{
	"frontend.New:sweep":    "moves the clock; what it does at each tick is in sweepOnce, which is guarded",
	"refresh.Watch:run":     "waits; what it does is in step, which is guarded",
	"daemon.settle:func":    "http.Server.Serve: the loop of net/http, which recovers what handlers do",
	"frontend.Apply:accept": "takes connections and waits; what it does with one is in admit, which is guarded",
	"eventloop.Open:run":    "waits; what it wakes is in wake, which is guarded",
	"frontend.hand:work":    "calls serve, which defers end, which recovers; the test cannot tell it from others of that name",
	"record.connect:listen": "reads a connection until its end, and does nothing with what it reads",
}

// TestNoPanicEndsTheProgram wants a deferred recover at the root of each goroutine: in the function itself, or in every
// function that it does nothing but call.
func TestNoPanicEndsTheProgram(t *testing.T) {
	excused := map[string]bool{}
	for _, name := range guarded {
		p := readRoots(t, filepath.Join("internal", name))
		for _, root := range p.roots {
			key := name + "." + root.in + ":" + root.what
			switch safe := p.safe(root.body, root.call, 0); {
			case safe && unguarded[key] == "":
			case !safe && unguarded[key] != "":
				excused[key] = true
			case !safe:
				t.Errorf("F16/%s: the goroutine that %s starts (%s) has no deferred recover; one panic in it ends the program", root.at, root.in, root.what)
			}
		}
		if len(p.roots) == 0 && slices.Contains([]string{"frontend", "refresh", "daemon"}, name) {
			t.Errorf("found no goroutine in %s; the test looks at the wrong place", name)
		}
	}
	for key, why := range unguarded {
		if !excused[key] {
			t.Errorf("F16/%s needs no excuse any more (%s); take it off the list", key, why)
		}
	}
}

// goroot is where a goroutine begins: a function literal, or a call of a function of the package.
type goroot struct {
	at       token.Position
	in, what string
	body     *ast.BlockStmt // nil if it is
	call     string         // a function by name
}

type roots struct {
	funcs map[string][]*ast.FuncDecl // by name, whatever the receiver
	roots []goroot
}

// readRoots finds the goroutines of a package: go statements, WaitGroup.Go, and functions that timers and contexts run.
func readRoots(t *testing.T, dir string) *roots {
	t.Helper()
	p := &roots{funcs: map[string][]*ast.FuncDecl{}}
	set := token.NewFileSet()
	var files []*ast.File
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != dir:
			return filepath.SkipDir
		case d.IsDir(), !strings.HasSuffix(path, ".go"), strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(set, path, nil, 0)
		files = append(files, file)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
				p.funcs[f.Name.Name] = append(p.funcs[f.Name.Name], f)
			}
		}
	}
	for _, all := range p.funcs {
		for _, f := range all {
			ast.Inspect(f.Body, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.GoStmt:
					p.add(set.Position(n.Pos()), f.Name.Name, "", n.Call.Fun)
				case *ast.CallExpr:
					switch name := called(n.Fun); {
					case name == "Go" && len(n.Args) == 1:
						p.add(set.Position(n.Pos()), f.Name.Name, "", n.Args[0])
					case name == "AfterFunc" && len(n.Args) == 2:
						p.add(set.Position(n.Pos()), f.Name.Name, name, n.Args[1])
					}
				}
				return true
			})
		}
	}
	return p
}

func (p *roots) add(at token.Position, in, what string, run ast.Expr) {
	r := goroot{at: at, in: in, what: what}
	if literal, ok := run.(*ast.FuncLit); ok {
		r.body = literal.Body
		if what == "" {
			r.what = "func"
		}
	} else {
		r.call = called(run)
		if what == "" {
			r.what = r.call
		}
	}
	p.roots = append(p.roots, r)
}

// called is the name of a function or method, without what stands before it.
func called(fun ast.Expr) string {
	switch f := fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		return f.Sel.Name
	}
	return ""
}

// harmless are functions that wait, count and clean up. What they do is no reason for a panic.
var harmless = []string{"Add", "After", "Before", "Broadcast", "Close", "Done", "Err", "Load", "Lock", "NewTicker", "NewTimer", "Now", "Reset",
	"Signal", "Stop", "Store", "Sub", "Unlock", "Until", "Values", "Wait", "append", "cancel", "close", "len", "make", "max", "min", "new"}

// safe reports whether a panic in a body, or in a function by name, stays inside it: because it defers a recover, or
// because it calls nothing but what is safe. A panic without a call, an index out of range say, is not seen here.
func (p *roots) safe(body *ast.BlockStmt, name string, depth int) bool {
	if depth > 4 {
		return false
	}
	if body == nil {
		all := p.funcs[name]
		for _, f := range all {
			if !p.safe(f.Body, "", depth+1) {
				return false
			}
		}
		return len(all) > 0
	}
	for _, s := range body.List {
		if s, ok := s.(*ast.DeferStmt); ok {
			literal, ok := s.Call.Fun.(*ast.FuncLit)
			if ok && recovers(literal.Body) || !ok && p.isGuard(called(s.Call.Fun)) {
				return true
			}
		}
	}
	ok := true
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit, *ast.GoStmt:
			return false // by itself it does nothing; where it is called, see below; a goroutine has a root of its own
		case *ast.CallExpr:
			if literal, is := n.Fun.(*ast.FuncLit); is {
				ok = ok && p.safe(literal.Body, "", depth+1)
			} else if name := called(n.Fun); !slices.Contains(harmless, name) {
				ok = ok && name != "" && p.safe(nil, name, depth+1)
			}
		}
		return ok
	})
	return ok
}

// isGuard reports whether functions of a name recover what panics in whoever defers them.
func (p *roots) isGuard(name string) bool {
	all := p.funcs[name]
	for _, f := range all {
		if !recovers(f.Body) {
			return false
		}
	}
	return len(all) > 0
}

// recovers reports whether a body calls recover itself, and not in a function inside: there it would do nothing.
func recovers(body *ast.BlockStmt) (found bool) {
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false
		case *ast.CallExpr:
			found = found || called(n.Fun) == "recover"
		}
		return !found
	})
	return found
}
