package config

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestParser(t *testing.T) {
	const main = "include: [a.yaml]\nlisteners:\n  here: {listen: ':1', protocol: http}\n"
	const part = "upstreams:\n  api: {targets: ['http://x:1']}\n"
	load := func(before *Parser, main, part string) (*Parser, *File, Problems) {
		p := before.Next()
		f, problems := p.Parse("main.yaml", []byte(main))
		included, more := p.ParsePart("a.yaml", []byte(part))
		problems = append(problems, more...)
		return p, f, append(problems, f.Include(included)...)
	}
	first, f, problems := load(nil, main, part)
	if problems.HasErrors() || first.Fresh() != 2 {
		t.Fatalf("%v, %d parsed", problems, first.Fresh())
	}
	for what, c := range map[string]struct {
		main, part string
		fresh      int
	}{
		"nothing":                {main, part, 0},
		"the main file":          {main + "drain: 3s\n", part, 1},
		"a character of a value": {main, strings.Replace(part, "x:1", "x:2", 1), 1},
		"a comment":              {main, part + "# here\n", 1},
	} {
		t.Run(what+" changed", func(t *testing.T) {
			second, got, problems := load(first, c.main, c.part)
			if second.Fresh() != c.fresh {
				t.Errorf("parsed %d files, expected %d", second.Fresh(), c.fresh)
			}
			_, want, _ := load(nil, c.main, c.part)
			if problems.HasErrors() || !reflect.DeepEqual(got.Config, want.Config) {
				t.Errorf("remembered:\n%+v\nparsed:\n%+v\n%v", got.Config, want.Config, problems)
			}
			if got, want := got.Problem("upstreams.api.targets[0]", "", "no"), want.Problem("upstreams.api.targets[0]", "", "no"); got.Pos != want.Pos || got.In.Name != want.In.Name {
				t.Errorf("%+v, expected %+v", got, want)
			}
		})
	}
	t.Run("what is included in one load is not in the next", func(t *testing.T) {
		p := first.Next()
		again, problems := p.Parse("main.yaml", []byte(main))
		if problems.HasErrors() || p.Fresh() != 0 || len(again.Config.Upstreams) != 0 || len(again.Sources()) != 1 {
			t.Errorf("%+v, %d sources, %v", again.Config, len(again.Sources()), problems)
		}
		other, _ := p.ParsePart("a.yaml", []byte("listeners:\n  there: {listen: ':2', protocol: http}\n"))
		if again.Include(other); len(again.Config.Listeners) != 2 || len(f.Config.Listeners) != 1 {
			t.Errorf("%d listeners, and %d in the file of before", len(again.Config.Listeners), len(f.Config.Listeners))
		}
	})
	t.Run("another name", func(t *testing.T) {
		p := first.Next()
		if f, _ := p.ParsePart("b.yaml", []byte(part)); f.Name != "b.yaml" || p.Fresh() != 1 {
			t.Errorf("%q, %d parsed", f.Name, p.Fresh())
		}
	})
	t.Run("a main file is no part", func(t *testing.T) {
		p := first.Next()
		_, problems := p.ParsePart("main.yaml", []byte(main+"drain: 0s\n"))
		_, again := p.Parse("main.yaml", []byte(main+"drain: 0s\n"))
		if len(problems) != 1 || problems[0].In == nil || len(again) != 1 || again[0].In != nil {
			t.Errorf("%+v\n%+v", problems, again)
		}
		problems[0].Message = "changed"
		if _, third := p.ParsePart("main.yaml", []byte(main+"drain: 0s\n")); third[0].Message == "changed" {
			t.Error("the problems of a part are those of the next load")
		}
	})
	t.Run("problems", func(t *testing.T) {
		bad := "upstreams:\n  api: {targets: 3}\n  api: {}\n"
		p, f, problems := load(first, main, bad)
		q, again, same := load(p, main, bad)
		if q.Fresh() != 0 || problems.Error() != same.Error() || len(same) != 2 || f.Config != nil || again.Config != nil {
			t.Errorf("%d parsed, %v, %v", q.Fresh(), problems, same)
		}
		same[0].Message = "changed"
		if _, _, third := load(q, main, bad); third[0].Message == "changed" {
			t.Error("the problems of one load are those of the next")
		}
	})
	t.Run("what was not used is forgotten", func(t *testing.T) {
		p := first.Next().Next()
		p.Parse("main.yaml", []byte(main))
		if p.Fresh() != 1 {
			t.Error("still remembered")
		}
	})
}

// Settings whose paths look the same are still two.
func TestDotsInNames(t *testing.T) {
	f, problems := Parse("x.yaml", []byte("upstreams:\n  a: {targets: ['http://x:1']}\n  a.targets: {targets: ['http://x:2'], most: 3}\n"))
	if len(problems) != 1 || problems[0].Path != "upstreams.a.targets.most" || problems[0].Pos != (Pos{3, 40}) {
		t.Errorf("%+v", problems)
	}
	if got := f.At("upstreams.a.targets"); got != (Pos{2, 7}) {
		t.Errorf("%v, expected the first", got)
	}
}

// hosts is a file of n hosts.
func hosts(n int) []byte {
	var b strings.Builder
	b.WriteString("listeners:\n  https:\n    listen: 127.0.0.1:8443\n    protocol: https\n    hosts:\n")
	for i := range n {
		fmt.Fprintf(&b, "      - names: [h%05d.many.test]\n        certificate: {cert: /etc/many/h%05d.pem, key: /etc/many/h%05d.key}\n"+
			"        client_auth: {mode: require, trust_store: clients}\n        identity_headers: [x_ssl_client]\n        routes: [{upstream: api}]\n", i, i, i)
	}
	return []byte(b.String())
}

func BenchmarkParse4000Hosts(b *testing.B) {
	src := hosts(4000)
	b.SetBytes(int64(len(src)))
	b.ReportAllocs()
	for b.Loop() {
		if _, problems := Parse("x.yaml", src); len(problems) > 0 {
			b.Fatal(problems)
		}
	}
}
