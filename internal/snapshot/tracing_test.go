package snapshot

import (
	"crypto/sha256"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"countersign/internal/config"
	"countersign/internal/tracing"
)

// compileTracing compiles a tracing section alone.
func compileTracing(t *testing.T, text string) (*tracing.Settings, config.Problems) {
	t.Helper()
	dir := t.TempDir()
	f, problems := config.Parse(filepath.Join(dir, "countersign.yaml"), []byte("tracing: "+text+"\n"))
	_, _, compiled := Compile(f, problems, Env{Dir: dir})
	c := &compiler{file: f, sums: map[string]Sum{}, files: map[string]*loaded{}, digest: sha256.New()}
	c.conf = f.Partial
	s := c.tracing("tracing", f.Partial.Tracing)
	return s, compiled
}

func TestTracingRefuses(t *testing.T) {
	t.Setenv("TWO_LINES", "Bearer x\r\nX-Other: y")
	for name, c := range map[string]struct{ text, path, want string }{
		"no collector":            {"{sample: 0.1}", "tracing", `missing required key "otlp"`},
		"unknown key":             {"{otlp: 'https://c.test', endpoint: x}", "tracing.endpoint", "unknown key"},
		"no URL":                  {"{otlp: c.test}", "tracing.otlp", `"c.test" is not the URL of a collector`},
		"gRPC":                    {"{otlp: 'grpc://c.test:4317'}", "tracing.otlp", "is not the URL of a collector"},
		"credentials in the URL":  {"{otlp: 'https://a:b@c.test'}", "tracing.otlp", "is not the URL of a collector"},
		"a query":                 {"{otlp: 'https://c.test/?key=1'}", "tracing.otlp", "is not the URL of a collector"},
		"unencrypted":             {"{otlp: 'http://c.test:4318'}", "tracing.otlp", "would go to c.test unencrypted"},
		"unencrypted address":     {"{otlp: 'http://10.0.0.1:4318'}", "tracing.otlp", "would go to 10.0.0.1 unencrypted"},
		"tls for http":            {"{otlp: 'http://127.0.0.1:4318', tls: {server_name: c.test, trust_store: none}}", "tracing.tls", "tls has no meaning for http"},
		"unknown store":           {"{otlp: 'https://c.test', tls: {server_name: c.test, trust_store: none}}", "tracing.tls.trust_store", `no trust store is named "none"`},
		"tls without a store":     {"{otlp: 'https://c.test', tls: {server_name: c.test}}", "tracing.tls", `missing required key "trust_store"`},
		"a share above one":       {"{otlp: 'https://c.test', sample: 1.5}", "tracing.sample", `"1.5" is not a share from 0 to 1`},
		"a negative share":        {"{otlp: 'https://c.test', sample: -0.1}", "tracing.sample", "is not a share"},
		"a share in words":        {"{otlp: 'https://c.test', sample: always}", "tracing.sample", "is not a share"},
		"not a number":            {"{otlp: 'https://c.test', sample: NaN}", "tracing.sample", "is not a share"},
		"hexadecimal":             {"{otlp: 'https://c.test', sample: 0x1p-2}", "tracing.sample", "is not a share"},
		"percent":                 {"{otlp: 'https://c.test', sample: 1%}", "tracing.sample", "is not a share"},
		"whose parents":           {"{otlp: 'https://c.test', parent_sampled: honour}", "tracing.parent_sampled", "expected one of: trusted, ignore, honour_from_anybody"},
		"identity":                {"{otlp: 'https://c.test', identity: maybe}", "tracing.identity", "expected one of: on, off"},
		"authorization as text":   {"{otlp: 'https://c.test', authorization: Bearer}", "tracing.authorization", "expected"},
		"authorization, no value": {"{otlp: 'https://c.test', authorization: {env: NOT_SET_ANYWHERE}}", "tracing.authorization.env", "is not set, or empty"},
		"authorization, no file":  {"{otlp: 'https://c.test', authorization: {file: none}}", "tracing.authorization.file", "cannot read none"},
		"two lines":               {"{otlp: 'https://c.test', authorization: {env: TWO_LINES}}", "tracing.authorization", "expected one line of text"},
	} {
		t.Run(name, func(t *testing.T) {
			_, problems := compileTracing(t, c.text)
			if !slices.ContainsFunc(problems, func(p config.Problem) bool {
				return !p.Warning && p.Path == c.path && strings.Contains(p.Message, c.want)
			}) {
				t.Errorf("expected at %s: %s; found\n%v", c.path, c.want, problems.Error())
			}
		})
	}
}

func TestTracing(t *testing.T) {
	t.Setenv("TOKEN", "Bearer x")
	for name, row := range map[string]struct {
		text string
		want tracing.Settings
	}{
		"defaults":       {"{otlp: 'https://c.test:4318'}", tracing.Settings{Rate: 0.01, Identity: true, URL: "https://c.test:4318/v1/traces"}},
		"of its own":     {"{otlp: 'http://localhost:4318/x', sample: 1, parent_sampled: ignore, identity: off}", tracing.Settings{Rate: 1, Parents: tracing.Nobody, URL: "http://localhost:4318/x"}},
		"parents alone":  {"{otlp: 'https://c.test', sample: 0}", tracing.Settings{Identity: true, URL: "https://c.test/v1/traces"}},
		"everybody's":    {"{otlp: 'https://c.test', sample: '.5', parent_sampled: honour_from_anybody}", tracing.Settings{Rate: .5, Parents: tracing.Everybody, Identity: true, URL: "https://c.test/v1/traces"}},
		"with a secret":  {"{otlp: 'https://c.test', authorization: {env: TOKEN}}", tracing.Settings{Rate: 0.01, Identity: true, URL: "https://c.test/v1/traces", Authorization: "Bearer x"}},
		"loopback of v6": {"{otlp: 'http://[::1]:4318'}", tracing.Settings{Rate: 0.01, Identity: true, URL: "http://[::1]:4318/v1/traces"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, problems := compileTracing(t, row.text)
			for _, p := range problems {
				if strings.HasPrefix(p.Path, "tracing") && !(p.Warning && row.want.Parents == tracing.Everybody) {
					t.Error(p)
				}
			}
			if row.want.ID = s.ID; *s != row.want || s.ID == "" {
				t.Errorf("%+v\nexpected %+v", *s, row.want)
			}
		})
	}
	t.Run("settings that mean the same to a collector", func(t *testing.T) {
		id := func(text string) string { s, _ := compileTracing(t, text); return s.ID }
		one := id("{otlp: 'https://c.test'}")
		if one != id("{otlp: 'https://c.test/', sample: 1, identity: off}") || one == id("{otlp: 'https://d.test'}") || one == id("{otlp: 'https://c.test', authorization: {env: TOKEN}}") {
			t.Error("they differ, or others do not")
		}
	})
	if s, _ := compileTracing(t, "{otlp: 'https://c.test', parent_sampled: honour_from_anybody}"); s.Parents != tracing.Everybody {
		t.Error(s.Parents)
	}
}
