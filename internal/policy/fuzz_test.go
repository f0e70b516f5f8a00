package policy

import (
	"errors"
	"testing"
	"time"
	"unicode/utf8"

	"countersign/internal/reason"
)

// FuzzCompile: any text compiles or gives problems with places in it, and whatever compiles is evaluated in bounded time,
// and denied to nobody as soon as it looks at the client.
func FuzzCompile(f *testing.F) {
	for _, c := range rules {
		f.Add(c.text)
	}
	for _, text := range []string{`!client.present || client.subject != ""`, "true &&\n client.sbject == 1", `[client].exists(client, {"a": client})`, "\x00", `"` + "\u202e" + `"`,
		`has(request.headers.a) ? 1 : 2`, `client.?a[?"b"]`, `(((((((((`, `request.query.matches("^(a*)*$")`, `[1,2].map(x, [x].map(y, y + x)) == [[2],[4]]`} {
		f.Add(text)
	}
	known, absent := facts(f, ops(f), "/v1/a", "Accept: */*", "X-A: b"), facts(f, nobody(), "/v1/a", "Accept: */*", "X-A: b")
	f.Fuzz(func(t *testing.T, text string) {
		start := time.Now()
		r, err := Compile(text, CompileOptions{Mode: Request})
		if err != nil {
			var refused *RuleError
			if !errors.As(err, &refused) || len(refused.Problems) == 0 || len(refused.Problems) > maxProblems || r != nil {
				t.Fatalf("%v", err)
			}
			for _, p := range refused.Problems {
				if p.Line < 1 || p.Column < 1 || p.Column > len(text)+2 || p.Message == "" || p.Next == "" || len(p.Message)+len(p.Next) > 2000 || !utf8.ValidString(p.Message) {
					t.Fatalf("%+v", p)
				}
			}
		} else {
			if r.String() != text {
				t.Fatal("another text")
			}
			decide(t, r, known)
			why := decide(t, r, absent)
			if absent.absent != "" && why != reason.PolicyDenied {
				t.Fatalf("%q reads the client and is %v for nobody", text, why)
			}
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Fatalf("took %v", took)
		}
	})
}
