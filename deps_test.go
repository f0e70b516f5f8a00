// Package countersign_test holds the rules about the repository as a whole: which package may import which, what must be
// documented and what must be tested.
package countersign_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"countersign/internal/policy"
	"countersign/internal/reason"
)

// law lists the packages of internal/. A package may import only what stands before it; so the list, read from the top,
// is also the order in which to read the code.
var law = []struct{ name, owns string }{
	{"reason", "the table of ways a connection or request ends"},
	{"hostname", "canonical server names and wildcard matching"},
	{"socket", "the connection beneath TLS: bytes counted, peeked at, reset or muted"},
	{"tls13", "records of TLS 1.3 behind a handshake that crypto/tls has done: an experiment"},
	{"eventloop", "connections that wait without a goroutine: an experiment"},
	{"limit", "how much a client, a certificate, a route or the whole may use"},
	{"message", "a protocol-neutral HTTP head"},
	{"identity", "who the client is, and the headers that say so"},
	{"origin", "where a connection comes from: the PROXY header in and out, and the forwarding headers"},
	{"config", "the file format, no behaviour"},
	{"store", "durable state in files: how they are opened, checked, migrated and set aside"},
	{"certs", "certificates with keys that may be presented"},
	{"trust", "may this chain be believed now"},
	{"route", "host and path to a route, no I/O"},
	{"edit", "changes to heads on the way: header edits, rewrites, redirects, fixed answers"},
	{"policy", "the only maker of a permit"},
	{"h1", "strict HTTP/1.1 on the wire"},
	{"h2", "strict HTTP/2 on the wire"},
	{"upstream", "pools of targets"},
	{"stepup", "what is remembered of browsers that show a certificate elsewhere"},
	{"record", "the record of a connection or request, its log line and metrics"},
	{"tracing", "trace context, and which requests are traced"},
	{"forward", "moving requests and bytes, with a permit"},
	{"snapshot", "a configuration compiled into one immutable value"},
	{"ticket", "TLS sessions that resume under their own policy only"},
	{"frontend", "listeners and the life of a connection"},
	{"journal", "what ended badly, kept and searched, and the inventory of clients seen"},
	{"outbound", "the one way out: HTTP to addresses that configuration or certificates name"},
	{"refresh", "what expires or changes: files, revocation lists, OCSP answers, CA bundles"},
	{"tracing/otlp", "spans on their way to a collector of OpenTelemetry"},
	{"probe", "what a TLS server offers and asks of clients, asked from outside"},
	{"top", "what a running instance does, shown in a terminal"},
	{"diagnose", "why a client is let in or refused, check by check"},
	{"control", "the socket for the operator of a running program"},
	{"daemon", "start, reload, signals, drain"},
	{"quickstart", "a PKI, demo backends and a configuration, to try it all"},
}

// forTests are imported by _test files only, and import nothing of ours but reason.
var forTests = []string{"memnet", "testalloc", "testpki"}

// readsConfig are the packages that may know the file format, and cmd.
var readsConfig = []string{"snapshot", "daemon", "quickstart"}

// controlPlane is what the data plane, frontend and everything it stands on, never reaches.
var controlPlane = []string{"store", "journal", "ca", "enroll", "refresh", "cluster", "admin", "probe", "diagnose", "control", "daemon", "quickstart", "tracing/otlp", "top"}

// vague are names under which anything could be kept.
var vague = []string{"util", "utils", "common", "helper", "helpers", "manager", "misc", "shared"}

// untested are the reasons that no test outside package reason can bring about, and why.
var untested = map[string]string{}

// needed says what each direct run-time dependency is for; one without a sentence here is not wanted.
var needed = map[string]string{
	"cel.dev/cel-go":                        "expressions in allow: typed, bounded, known from Kubernetes and Envoy",
	"github.com/spiffe/go-spiffe/v2":        "the syntax of SPIFFE IDs",
	"github.com/KimMachineGun/automemlimit": "the memory limit of the container, for the garbage collector",
	"github.com/cespare/xxhash/v2":          "hashing keys to targets, the same on every node",
	"github.com/fsnotify/fsnotify":          "hearing of changed files at once",
	"github.com/pires/go-proxyproto":        "reading and writing headers of the PROXY protocol",
	"github.com/prometheus/client_golang":   "metrics in the format every monitor reads",
	"github.com/spf13/cobra":                "subcommands, flags, help and completion",
	"github.com/youmark/pkcs8":              "private keys under a password (PKCS#8)",
	"go.yaml.in/yaml/v4":                    "YAML with positions",
	"charm.land/bubbletea/v2":               "the terminal of countersign top",
	"github.com/prometheus/client_model":    "metrics as values: the type that expfmt reads into",
	"github.com/prometheus/common":          "expfmt: reading metrics, for countersign top",
	"golang.org/x/crypto":                   "cryptobyte: reading DER without reflection; ChaCha20-Poly1305 for the experiment event_loop",
	"golang.org/x/net":                      "frames and header compression of HTTP/2 (http2.Framer, hpack)",
	"golang.org/x/sys":                      "socket options and poll",
	"modernc.org/sqlite":                    "SQLite without cgo: the journal and the inventory, in one file",
	"software.sslmate.com/src/go-pkcs12":    "quickstart's clients as files a browser can read",

	"go.opentelemetry.io/otel":                                        "the vocabulary of spans",
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace":               "spans in OTLP",
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp": "OTLP over HTTP",
	"go.opentelemetry.io/otel/sdk":                                    "spans as the exporter takes them; off the data plane",
	"go.opentelemetry.io/otel/trace":                                  "ids of spans",
}

const (
	module   = "countersign"
	internal = module + "/internal/"
)

var update = flag.Bool("update", false, "rewrite docs/dependencies.md")

// pack is what the go command tells about a package.
type pack struct {
	ImportPath, Doc                    string
	Imports, TestImports, XTestImports []string
	GoFiles                            []string
	Standard                           bool
	Module                             *struct {
		Path, Version string
		Main          bool
	}
}

func (p *pack) ours() bool { return p.Module != nil && p.Module.Main }

// name is the package's name in the law, empty for packages outside internal/.
func (p *pack) name() string {
	name, ok := strings.CutPrefix(p.ImportPath, internal)
	if !ok {
		return ""
	}
	return name
}

// packages asks the go command once about the module and all it depends on.
var packages = sync.OnceValues(func() (map[string]*pack, error) {
	cmd := exec.Command("go", "list", "-pgo=off", "-deps", "-json=ImportPath,Doc,Imports,TestImports,XTestImports,GoFiles,Standard,Module", "./...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, stderr.String())
	}
	all := map[string]*pack{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(pack)
		switch err := d.Decode(p); {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, err
		}
		all[p.ImportPath] = p
	}
})

func list(t *testing.T) map[string]*pack {
	t.Helper()
	all, err := packages()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// reach returns the import paths that from needs, itself included.
func reach(all map[string]*pack, from string) map[string]bool {
	seen := map[string]bool{}
	for todo := []string{from}; len(todo) > 0; {
		path := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if p := all[path]; p != nil && !seen[path] {
			seen[path] = true
			todo = append(todo, p.Imports...)
		}
	}
	return seen
}

func TestImportLaw(t *testing.T) {
	all := list(t)
	place := map[string]int{}
	for i, row := range law {
		place[row.name] = i
		if all[internal+row.name] == nil {
			t.Errorf("%s stands in the law, but is no package", row.name)
		}
	}
	for _, p := range all {
		if !p.ours() {
			continue
		}
		name := p.name()
		own, lawful := place[name]
		if name != "" && !lawful && !slices.Contains(forTests, name) {
			t.Errorf("%s has no place in the law: add it in deps_test.go, with what it owns", p.ImportPath)
			continue
		}
		for _, imported := range p.Imports {
			other, ok := strings.CutPrefix(imported, internal)
			if !ok {
				continue
			}
			at, known := place[other]
			switch {
			case slices.Contains(forTests, other):
				t.Errorf("%s imports %s, which serves _test files only", p.ImportPath, other)
			case slices.Contains(forTests, name) && other != "reason":
				t.Errorf("%s imports %s; a package for tests imports nothing of ours but reason, so that every package can use it", name, other)
			case lawful && known && at >= own:
				t.Errorf("%s imports %s, which stands after it", name, other)
			case other == "config" && name != "" && !slices.Contains(readsConfig, name):
				t.Errorf("%s imports config; only %v know the file format", name, readsConfig)
			}
		}
	}
	for path := range reach(all, internal+"frontend") {
		if name := strings.TrimPrefix(path, internal); path != name && slices.Contains(controlPlane, name) {
			t.Errorf("the data plane reaches %s", name)
		}
		if strings.HasPrefix(path, "go.opentelemetry.io/") {
			t.Errorf("the data plane reaches %s: requests are told to a tracing.Sink, and nothing more", path)
		}
	}
	for path := range reach(all, internal+"config") {
		if path != internal+"config" && strings.HasPrefix(path, internal) {
			t.Errorf("config reaches %s; it imports nothing of ours", path)
		}
	}
}

func TestPackagesAreDocumentedAndNamed(t *testing.T) {
	for _, p := range list(t) {
		if !p.ours() || len(p.GoFiles) == 0 {
			continue
		}
		if p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
		for _, word := range strings.Split(p.ImportPath, "/") {
			if slices.Contains(vague, word) {
				t.Errorf("%s: %q says nothing about what belongs there", p.ImportPath, word)
			}
		}
	}
}

func TestNothingIsReplaced(t *testing.T) {
	files, err := filepath.Glob("*/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	replace := regexp.MustCompile(`(?m)^\s*replace\b|=>`)
	for _, name := range append(files, "go.mod") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if found := replace.Find(text); found != nil {
			t.Errorf("%s has a replace directive", name)
		}
	}
}

// TestEveryReasonIsTested wants each reason in a test or script outside package reason: by its Go name, or by its code. A
// code that is also an ordinary word counts only where it stands as a reason.
func TestEveryReasonIsTested(t *testing.T) {
	words := map[string]bool{}
	word := regexp.MustCompile(`reason\.[A-Z]\w+|reason(="?|": ?")[a-z]+\b|[a-z0-9]+_[a-z0-9_]+`)
	prefix := regexp.MustCompile(`^reason\W+`)
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (path == filepath.Join("internal", "reason") || path != "." && strings.HasPrefix(d.Name(), ".")):
			return filepath.SkipDir
		case d.IsDir(), path == "deps_test.go", !strings.HasSuffix(path, "_test.go") && !strings.HasSuffix(path, ".txtar"):
			return nil
		}
		text, err := os.ReadFile(path)
		for _, w := range word.FindAll(text, -1) {
			words[prefix.ReplaceAllString(string(w), "")] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	names := reasonNames(t)
	for _, r := range reason.All() {
		code := r.String()
		tested := words[code] || words[names[r]]
		if why, excused := untested[code]; excused && tested {
			t.Errorf("%s has a test now; take it off the list of those without (%s)", code, why)
		} else if !excused && !tested {
			t.Errorf("no test shows %s (reason.%s)", code, names[r])
		}
	}
}

// reasonNames are the Go names of the reasons, in order, from the source: the first block of constants in table.go.
func reasonNames(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "internal/reason/table.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range file.Decls {
		if block, ok := d.(*ast.GenDecl); ok && block.Tok == token.CONST {
			for _, s := range block.Specs {
				names = append(names, s.(*ast.ValueSpec).Names[0].Name)
			}
			break
		}
	}
	if len(names) != reason.Count+1 || names[reason.Count] != "count" {
		t.Fatalf("found %d names for %d reasons in internal/reason/table.go", len(names), reason.Count)
	}
	return names
}

func TestReasonsPage(t *testing.T) {
	var want bytes.Buffer
	if err := reason.WriteMarkdown(&want); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("docs/reasons.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Error("docs/reasons.md is not what internal/reason says; run: make docs")
	}
}

// TestPolicyPage: the table of what expressions can read is that of the code.
func TestPolicyPage(t *testing.T) {
	const page, begin, end = "docs/policy.md", "<!-- variables -->\n", "<!-- end -->"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", page)
	}
	var b strings.Builder
	b.WriteString(before + begin + "| variable | type | what |\n|---|---|---|\n")
	for _, v := range policy.Variables() {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", v.Name, v.Type, v.Text)
	}
	b.WriteString(end + after)
	if *update {
		if err := os.WriteFile(page, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if b.String() != string(text) {
		t.Errorf("%s is not what package policy says; run: make docs", page)
	}
}

func TestDependenciesPage(t *testing.T) {
	all := list(t)
	direct, indirect := map[string]string{}, map[string]string{}
	program := reach(all, module+"/cmd/countersign")
	for path := range program {
		if !all[path].ours() {
			continue
		}
		for _, imported := range all[path].Imports {
			if m := all[imported].Module; m != nil && !m.Main {
				direct[m.Path] = m.Version
			}
		}
	}
	for path := range program {
		if m := all[path].Module; m != nil && !m.Main && direct[m.Path] == "" {
			indirect[m.Path] = m.Version
		}
	}
	var want strings.Builder
	want.WriteString("# Dependencies\n\nThe modules that are compiled into the program besides Go's standard library. This page is generated (`make docs`)\n" +
		"and a test holds it; modules for tests and tools are not on it.\n\n## Ours to choose\n\n| module | version | for |\n|---|---|---|\n")
	for _, path := range sorted(direct) {
		if needed[path] == "" {
			t.Errorf("%s: say in deps_test.go what it is needed for", path)
		}
		fmt.Fprintf(&want, "| `%s` | %s | %s |\n", path, direct[path], needed[path])
	}
	require, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for path := range needed {
		if !bytes.Contains(require, []byte("\t"+path+" v")) {
			t.Errorf("%s is not needed any more; take it off the list in deps_test.go", path)
		}
	}
	want.WriteString("\n## What those bring along\n\n| module | version |\n|---|---|\n")
	for _, path := range sorted(indirect) {
		fmt.Fprintf(&want, "| `%s` | %s |\n", path, indirect[path])
	}
	const page = "docs/dependencies.md"
	if *update {
		if err := os.WriteFile(page, []byte(want.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want.String() {
		t.Errorf("%s is not what go list says; run: make docs", page)
	}
}

func sorted(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
