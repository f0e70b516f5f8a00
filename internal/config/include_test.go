package config

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestInclude(t *testing.T) {
	main, problems := Parse("main.yaml", []byte("include: [a.yaml, b.yaml]\nlisteners:\n  here: {listen: ':1', protocol: http}\n"))
	if problems.HasErrors() {
		t.Fatal(problems)
	}
	part, problems := ParsePart("a.yaml", []byte("upstreams:\n  api: {targets: ['http://x:1']}\nlisteners:\n  there: {listen: ':2', protocol: http}\n"))
	if problems = append(problems, main.Include(part)...); problems.HasErrors() {
		t.Fatal(problems)
	}
	if c := main.Config; len(c.Listeners) != 2 || len(c.Upstreams) != 1 {
		t.Errorf("%+v", c)
	}
	bad, problems := ParsePart("b.yaml", []byte("ops: {listen: ':3'}\ndrain: 1s\nlisteners:\n  there: {listen: ':4', protocol: http}\nupstream: {}\n"))
	problems = append(problems, main.Include(bad)...)
	// A problem that is found later points into the file it is in.
	problems = append(problems, main.Problem("upstreams.api.targets[0]", "", "no"), main.Problem("listeners.here.listen", "", "no"))
	problems.Sort()
	if main.Config != nil {
		t.Error("the configuration can be run although an included file has an error")
	}
	var b strings.Builder
	if err := main.Render(&b, problems); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"main.yaml:3:18: listeners.here.listen: no\n",
		"a.yaml:2:19: upstreams.api.targets[0]: no\n   2 |   api: {targets: ['http://x:1']}\n",
		"b.yaml:1:1: ops: an included file has trust_stores, listeners and upstreams only, found ops\n",
		"b.yaml:2:8: drain: an included file has",
		"b.yaml:4:3: listeners.there: \"there\" is there already, in a.yaml line 4\n",
		"b.yaml:5:1: upstream: unknown key \"upstream\"",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, b.String())
		}
	}
}

// Every section but the three is refused in an included file, also those that are yet to come.
func TestIncludeRefuses(t *testing.T) {
	texts := map[string]string{"include": "['x.yaml']", "ops": "{listen: ':3'}", "control": "unix:/x", "log": "{requests: none}",
		"limits": "{handshakes_at_once: 5}", "outbound": "{stapling: off}", "tracing": "{otlp: 'https://x'}", "state": "./x", "journal": "{enabled: true}",
		"drain": "1s", "experimental": "{event_loop: on}"}
	for i := range reflect.TypeFor[Config]().NumField() {
		key := reflect.TypeFor[Config]().Field(i).Tag.Get("yaml")
		if slices.Contains([]string{"trust_stores", "listeners", "upstreams"}, key) {
			continue
		}
		text, known := texts[key]
		if !known {
			t.Errorf("%s: no text here for it", key)
			continue
		}
		main, _ := Parse("main.yaml", []byte("listeners:\n  here: {listen: ':1', protocol: http}\n"))
		part, problems := ParsePart("part.yaml", []byte(key+": "+text+"\n"))
		problems = append(problems, main.Include(part)...)
		if len(problems) != 1 || !strings.Contains(problems[0].Message, "an included file has") {
			t.Errorf("%s: %v", key, problems)
		}
	}
}
