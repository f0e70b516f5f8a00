package tracing

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"countersign/internal/message"
)

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func fields(lines ...string) (list []message.Field) {
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		list = append(list, message.Field{Name: []byte(name), Value: []byte(value)})
	}
	return list
}

// TestBeginRefuses: what is no traceparent, or is not to be believed, begins a trace of our own.
func TestBeginRefuses(t *testing.T) {
	one := func(value string) []string { return []string{"traceparent: " + value, "tracestate: a=b"} }
	for name, row := range map[string]struct {
		parents  Parents
		believed bool
		lines    []string
	}{
		"a stranger's":             {Trusted, false, one(parent)},
		"a trusted one's, ignored": {Nobody, true, one(parent)},
		"none":                     {Everybody, true, []string{"tracestate: a=b"}},
		"two":                      {Everybody, true, []string{"traceparent: " + parent, "Traceparent: " + parent}},
		"empty":                    {Everybody, true, one("")},
		"short":                    {Everybody, true, one(parent[:54])},
		"long for version 00":      {Everybody, true, one(parent + "-00")},
		"longer without a dash":    {Everybody, true, one("cc" + parent[2:] + "00")},
		"version ff":               {Everybody, true, one("ff" + parent[2:])},
		"version without hex":      {Everybody, true, one("0x" + parent[2:])},
		"upper case":               {Everybody, true, one(strings.ToUpper(parent))},
		"no trace id":              {Everybody, true, one("00-" + strings.Repeat("0", 32) + parent[35:])},
		"no parent id":             {Everybody, true, one(parent[:36] + strings.Repeat("0", 16) + "-01")},
		"flags without hex":        {Everybody, true, one(parent[:53] + "0g")},
		"other separators":         {Everybody, true, one(strings.ReplaceAll(parent, "-", "_"))},
		"spaces":                   {Everybody, true, one(" " + parent[1:])},
		"not ASCII":                {Everybody, true, one("00-\xff" + parent[4:])},
	} {
		t.Run(name, func(t *testing.T) {
			for _, rate := range []float64{0, 1} {
				var s Span
				if !s.Begin(&Settings{Rate: rate, Parents: row.parents}, fields(row.lines...), row.believed) {
					t.Fatal("the fields would pass as they came")
				}
				if s.Continued || s.Sampled != (rate == 1) || s.Parent != [8]byte{} || len(s.State) != 0 {
					t.Errorf("rate %v: %+v", rate, s)
				}
				if got := string(s.AppendLine(nil)); strings.Contains(got, "0af7651916cd43dd8448eb211c80319c") || !line.MatchString(got) || strings.HasSuffix(got, "01\r\n") != s.Sampled {
					t.Errorf("rate %v: told %q", rate, got)
				}
				if !s.Drops([]byte("TraceParent")) || !s.Drops([]byte("tracestate")) {
					t.Error("what came would go on")
				}
			}
		})
	}
}

// TestBeginOfHopByHop: fields that the sender's Connection names do not go on, and so no trace goes on by them.
func TestBeginOfHopByHop(t *testing.T) {
	list := fields("traceparent: "+parent, "traceparent: "+parent[:53]+"00", "tracestate: a=b")
	for i := range list {
		list[i].Hop = true
	}
	for _, list := range [][]message.Field{list[:1], list[1:], list} {
		var s Span
		if !s.Begin(&Settings{Parents: Everybody}, list, true) || s.Continued || s.Sampled || len(s.State) != 0 {
			t.Errorf("%v: %+v, expected a trace of our own", list, s)
		}
	}
	list = append(list, fields("traceparent: "+parent)...)
	var s Span
	if !s.Begin(&Settings{Parents: Everybody}, list, true) || !s.Continued || len(s.State) != 0 {
		t.Errorf("%+v, expected the one that goes on", s)
	}
}

var line = regexp.MustCompile(`^traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]\r\n$`)

func TestBegin(t *testing.T) {
	t.Run("a parent that is sampled", func(t *testing.T) {
		for name, row := range map[string]struct {
			value    string
			parents  Parents
			believed bool
		}{
			"of a trusted proxy":          {parent, Trusted, true},
			"of anybody":                  {parent, Everybody, false},
			"with flags we do not know":   {parent[:53] + "ff", Everybody, false},
			"of a version we do not know": {"cc" + parent[2:] + "-more", Everybody, false},
		} {
			t.Run(name, func(t *testing.T) {
				var s Span
				if !s.Begin(&Settings{Parents: row.parents, Identity: true}, fields("TraceParent: "+row.value, "TRACESTATE: a=1", "tracestate: b=2"), row.believed) {
					t.Fatal("targets are not told our span")
				}
				if !s.Sampled || !s.Continued || !s.Identity || string(s.State) != "a=1" {
					t.Errorf("%+v", s)
				}
				got := string(s.AppendLine(nil))
				if !strings.HasPrefix(got, "traceparent: 00-0af7651916cd43dd8448eb211c80319c-") || !strings.HasSuffix(got, "-01\r\n") || strings.Contains(got, "b7ad6b7169203331") {
					t.Errorf("told %q", got)
				}
				if s.Drops([]byte("tracestate")) || !s.Drops([]byte("traceparent")) || s.Drops([]byte("tracepatent")) {
					t.Error("drops the wrong fields")
				}
				if f := s.AppendField(nil); len(f) != 1 || "traceparent: "+string(f[0].Value)+"\r\n" != got {
					t.Errorf("fields %v, line %q", f, got)
				}
			})
		}
	})
	t.Run("a parent that is not sampled decides too", func(t *testing.T) {
		var s Span
		if s.Begin(&Settings{Rate: 1, Parents: Everybody}, fields("traceparent: "+parent[:53]+"00"), false) || s.Sampled {
			t.Errorf("%+v", s)
		}
	})
	t.Run("a tracestate that is too long is not kept", func(t *testing.T) {
		var s Span
		s.Begin(&Settings{Parents: Everybody}, fields("traceparent: "+parent, "tracestate: a="+strings.Repeat("x", 600)), false)
		if len(s.State) != 0 || s.Drops([]byte("tracestate")) {
			t.Errorf("%+v", s)
		}
	})
	t.Run("nothing stays from one request to the next", func(t *testing.T) {
		var s Span
		s.Begin(&Settings{Parents: Everybody, Identity: true}, fields("traceparent: "+parent, "tracestate: a=1"), false)
		before := s
		s.Begin(&Settings{Rate: 1}, nil, false)
		if s.Trace == before.Trace || s.ID == before.ID || s.Target == before.Target || s.Continued || s.Identity || len(s.State) != 0 || s.Parent != [8]byte{} {
			t.Errorf("%+v", s)
		}
	})
	t.Run("the share", func(t *testing.T) {
		var s Span
		n := 0
		for range 20000 {
			if s.Begin(&Settings{Rate: 0.1}, nil, false); s.Sampled {
				n++
			}
		}
		if n < 1600 || n > 2400 { // ten standard deviations
			t.Errorf("%d of 20000 are sampled, expected some 2000", n)
		}
	})
	t.Run("a nil span changes nothing", func(t *testing.T) {
		var s *Span
		if s.Drops([]byte("traceparent")) || len(s.AppendLine(nil)) != 0 || len(s.AppendField(nil)) != 0 {
			t.Error("it does")
		}
	})
}

func TestBeginAllocatesNothing(t *testing.T) {
	s, set, list := new(Span), &Settings{Rate: 0.5, Parents: Everybody}, fields("traceparent: "+parent, "tracestate: a=1", "a: b")
	none := list[2:]
	dst, out := make([]byte, 0, 128), make([]message.Field, 0, 4)
	s.Begin(set, list, false)
	if n := testing.AllocsPerRun(200, func() {
		s.Begin(set, list, false)
		s.AppendLine(dst)
		s.Begin(set, none, false)
		s.AppendField(out)
		s.Drops(none[0].Name)
	}); n != 0 {
		t.Errorf("%v allocations, expected none", n)
	}
}

func FuzzBegin(f *testing.F) {
	f.Add([]byte(parent), []byte("a=b"))
	f.Add([]byte("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x"), []byte(""))
	f.Fuzz(func(t *testing.T, value, state []byte) {
		var s Span
		list := []message.Field{{Name: []byte("traceparent"), Value: value}, {Name: []byte("tracestate"), Value: state}}
		tell := s.Begin(&Settings{Parents: Everybody}, list, false)
		if !tell && (s.Sampled || s.Continued) || tell && s.Sampled != s.Continued || len(s.State) > maxState {
			t.Fatalf("%q: %v %+v", value, tell, s)
		}
		if tell && !line.Match(s.AppendLine(nil)) {
			t.Fatalf("told %q", s.AppendLine(nil))
		}
		if s.Continued && !bytes.Equal(value[3:35], s.AppendLine(nil)[16:48]) {
			t.Fatalf("%q became %q", value, s.AppendLine(nil))
		}
	})
}

func BenchmarkBegin(b *testing.B) {
	list := fields("Host: a.test", "User-Agent: bench/1.0", "Accept: */*", "Accept-Encoding: gzip", "Cookie: a=b", "traceparent: "+parent, "tracestate: a=1")
	for name, believed := range map[string]bool{"not sampled": false, "parent": true} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var s Span
			set, out := &Settings{}, make([]byte, 0, 128)
			for b.Loop() {
				s.Begin(set, list, believed)
				s.AppendLine(out)
			}
		})
	}
}
