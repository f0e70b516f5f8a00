// Package tools holds what needs modules that must not come near the program: staticcheck, and this test, which gives the
// JSON Schema of the configuration to a validator that is not ours.
package tools

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"
)

// compile reads a schema file; one that is no JSON Schema itself is an error.
func compile(t *testing.T, file string) *jsonschema.Schema {
	t.Helper()
	s, err := jsonschema.NewCompiler().Compile(file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// validate reads YAML as an editor does: 1.2 is a number, off is a word.
func validate(s *jsonschema.Schema, text string) error {
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		return fmt.Errorf("not YAML: %w", err)
	}
	return s.Validate(plain(v))
}

// plain turns the keys of mappings into text, which is how editors see them.
func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = plain(v[k])
		}
	case map[any]any:
		out := map[string]any{}
		for k := range v {
			out[fmt.Sprint(k)] = plain(v[k])
		}
		return out
	case []any:
		for i := range v {
			v[i] = plain(v[i])
		}
	}
	return v
}

// The examples of the documents are valid.
func TestDocuments(t *testing.T) {
	s := compile(t, "../api/config.schema.json")
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	recipes, _ := filepath.Glob("../docs/*/*.md")
	block := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")
	n := 0
	for _, page := range append(append(pages, recipes...), "../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range block.FindAllSubmatch(text, -1) {
			n++
			if err := validate(s, string(m[1])); err != nil {
				t.Errorf("%s: %v in\n%s", page, err, m[1])
			}
		}
	}
	if n < 2 {
		t.Errorf("found %d examples, expected that of the README and that of docs/configuration.md at least", n)
	}
}

// The configurations of the program's test scripts are valid, but for those whose mistake a schema can see.
func TestScripts(t *testing.T) {
	broken := map[string]string{
		"check.txtar/bad.yaml":           "revokation", // among others
		"files.txtar/twopasswords.yaml":  "password",
		"impact-secrets.txtar/both.yaml": "password",
		"reload.txtar/broken.yaml":       "ca_bundel",
	}
	s := compile(t, "../api/config.schema.json")
	scripts, err := filepath.Glob("../cmd/countersign/testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, script := range scripts {
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		header := regexp.MustCompile(`(?m)^-- (\S+) --\n`)
		at := header.FindAllSubmatchIndex(text, -1)
		for i, m := range at {
			end := len(text)
			if i+1 < len(at) {
				end = at[i+1][0]
			}
			file, body := string(text[m[2]:m[3]]), string(text[m[1]:end])
			if !strings.HasSuffix(file, ".yaml") {
				continue
			}
			n++
			name := filepath.Base(script) + "/" + file
			err := validate(s, body)
			if word := broken[name]; word == "" && err != nil || word != "" && (err == nil || !strings.Contains(err.Error(), word)) {
				t.Errorf("%s: %v, expected %q", name, err, word)
			}
			delete(broken, name)
		}
	}
	if n < 5 || len(broken) > 0 {
		t.Errorf("found %d configurations, and not %v", n, broken)
	}
}

// full has every form that a value can take, besides those in docs/configuration.md.
const full = `
trust_stores:
  clients:
    ca_bundle: {file: ca.pem}
    hints: none
    revocation: {crls: [{file: a.crl}], stale: {policy: grace, grace: 0s}, ocsp: off}
  2024:
    ca_bundle: {file: ca.pem}
    hints: {file: names.pem}
listeners:
  public:
    listen: ":8443"
    protocol: https
    tls: {policy: modern, min_version: 1.2}
    hosts:
      - names: [a.test]
        certificate: {cert: a.pem, key: a.key}
        client_auth: {mode: off}
        identity_options: {chain: true}
        routes: [{upstream: api, upgrade: [websocket]}]
    limits: {idle: 1h30m, handshake: 1.5s, lifetime: 0, body_bytes: 0, header_bytes: 32KiB, header_fields: 50}
  quoted:
    listen: ":8444"
    protocol: tls
    tls: {min_version: "1.3"}
    limits: {lifetime: 24h, body_bytes: 10MiB, header_bytes: 4096}
upstreams:
  api:
    targets: ["http://127.0.0.1:1"]
    health: {path: /, status: 200, interval: 500ms}
  other:
    targets: ["http://127.0.0.1:1"]
    health: {status: 200-399}
`

// TestBroken changes one thing in full at a time. The program refuses each of them too.
func TestBroken(t *testing.T) {
	s, binary, dir := compile(t, "../api/config.schema.json"), build(t), t.TempDir()
	if err := validate(s, full); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, old, new, where string }{
		{"unknown key", "revocation:", "revokation:", "revokation"},
		{"key of a later version", "ca_bundle: {file: ca.pem}\n    hints: none", "ca_bundle: {file: ca.pem}\n    shadow: {hints: none}", "shadow"},
		{"missing required key", "    protocol: https\n", "", "protocol"},
		{"word that is none", "mode: off", "mode: of", "client_auth/mode"},
		{"word of a later version", "policy: modern", "policy: fips", "tls/policy"},
		{"other short form", "hints: none", "hints: all", "hints"},
		{"long form without its key", "hints: {file: names.pem}", "hints: {mode: auto}", "hints"},
		{"item of a list that is none", "upgrade: [websocket]", "upgrade: [h2c]", "upgrade/0"},
		{"text in place of a list", "names: [a.test]", "names: a.test", "names"},
		{"empty list", "upgrade: [websocket]", "upgrade: []", "upgrade"},
		{"empty text", "path: /,", "path: '',", "path"},
		{"empty setting", "client_auth: {mode: off}", "client_auth:", "client_auth"},
		{"duration without unit", "idle: 1h30m", "idle: 60", "limits/idle"},
		{"duration with a unit that is none", "idle: 1h30m", "idle: 1d", "limits/idle"},
		{"zero duration", "handshake: 1.5s", "handshake: 0s", "limits/handshake"},
		{"number where only zero has no unit", "lifetime: 0", "lifetime: 5", "limits/lifetime"},
		{"size with a unit that is none", "header_bytes: 32KiB", "header_bytes: 32KB", "limits/header_bytes"},
		{"zero size", "header_bytes: 32KiB", "header_bytes: 0", "limits/header_bytes"},
		{"fraction", "header_fields: 50", "header_fields: 1.5", "limits/header_fields"},
		{"zero number", "header_fields: 50", "header_fields: 0", "limits/header_fields"},
		{"text in place of a truth value", "chain: true", "chain: yes", "identity_options/chain"},
		{"version that is none", "min_version: 1.2", "min_version: 1.1", "tls/min_version"},
		{"status that is none", "status: 200,", "status: 20,", "health/status"},
		{"key without certificate", "{cert: a.pem, key: a.key}", "{key: a.key}", "certificate"},
	} {
		text := strings.Replace(full, c.old, c.new, 1)
		if text == full {
			t.Fatalf("%s: %q is not in the file", c.name, c.old)
		}
		if err := validate(s, text); err == nil || !strings.Contains(err.Error(), c.where) {
			t.Errorf("%s: found %v, expected a problem at %s", c.name, err, c.where)
		}
		file := filepath.Join(dir, "countersign.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		word := c.where[strings.LastIndexByte(c.where, '/')+1:]
		if word == "0" {
			word = "upgrade[0]"
		}
		out, err := exec.Command(binary, "check", "-c", file).CombinedOutput()
		if err == nil || !regexp.MustCompile(`(?m)^\S+:\d+:\d+: .*`+regexp.QuoteMeta(word)).Match(out) {
			t.Errorf("%s: check says nothing about %s: %v\n%s", c.name, word, err, out)
		}
	}
}

// An editor that opens what quickstart made finds the schema by the first line, and nothing to complain about.
func TestQuickstart(t *testing.T) {
	binary, dir := build(t), t.TempDir()
	if out, err := exec.Command(binary, "quickstart", "--check", "--dir", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	conf, err := os.ReadFile(filepath.Join(dir, "countersign.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := bytes.Cut(conf, []byte("\n"))
	name, ok := strings.CutPrefix(string(line), "# yaml-language-server: $schema=")
	if !ok {
		t.Fatalf("the first line is %q", line)
	}
	if err := validate(compile(t, filepath.Join(dir, name)), string(conf)); err != nil {
		t.Error(err)
	}
	if out, err := exec.Command(binary, "check", "-c", filepath.Join(dir, "countersign.yaml")).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

var built string

// build makes the program once.
func build(t *testing.T) string {
	t.Helper()
	if built == "" {
		cmd := exec.CommandContext(context.Background(), "go", "build", "-pgo=off", "-o", filepath.Join(folder, "countersign"), "./cmd/countersign")
		cmd.Dir = ".."
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		built = filepath.Join(folder, "countersign")
	}
	return built
}

var folder string

func TestMain(m *testing.M) {
	var err error
	if folder, err = os.MkdirTemp("", "countersign-tools-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status := m.Run()
	os.RemoveAll(folder)
	os.Exit(status)
}
