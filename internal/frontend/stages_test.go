package frontend

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestStagesStayApart: what is below an idle connection's wait on the stack is kept by each of them. Tests are compiled
// without the compiler's profile, which is what would put the stages there, so this reads the source.
func TestStagesStayApart(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("../h2/*.go")
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, more...)
	apart, bodies := make(map[string]bool), make(map[string]*ast.FuncDecl)
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv == nil {
				continue
			}
			if star, ok := f.Recv.List[0].Type.(*ast.StarExpr); ok {
				if of, ok := star.X.(*ast.Ident); ok {
					bodies[of.Name+"."+f.Name.Name] = f
				}
			}
			if f.Doc != nil && slices.ContainsFunc(f.Doc.List, func(c *ast.Comment) bool { return c.Text == "//go:noinline" }) {
				apart[f.Name.Name] = true
			}
		}
	}
	for name, small := range map[string][]string{
		"Frontend.serve": {"end", "requests"}, // the first recovers, so it has a frame of its own anyway
		"conn.requests":  {"awaitRequest", "doomed"},
		"conn.streams":   {"settings"},
		// What comes behind the end of a connection, or once before it, is nothing that a profile puts together.
		"Conn.Serve": {"read", "meet", "fail", "goAway", "write", "release"},
		"Conn.read":  {"start", "letGo", "gone"},
		"Conn.doze":  {"awake"},
	} {
		if bodies[name] == nil {
			t.Fatalf("there is no %s any more", name)
		}
		ast.Inspect(bodies[name], func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if s, ok := call.Fun.(*ast.SelectorExpr); ok {
				called := s.Sel.Name
				if x, ok := s.X.(*ast.Ident); ok && strings.Contains("f c l", x.Name) && !apart[called] && !slices.Contains(small, called) {
					t.Errorf("%s calls %s: write //go:noinline over it", name, called)
				}
			}
			return true
		})
	}
}
