package edit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/internal/message"
	"countersign/internal/reason"
	"countersign/internal/route"
)

// problems collects what is reported.
type problems []string

func (p *problems) report(key, next, format string, args ...any) {
	*p = append(*p, key+": "+fmt.Sprintf(format, args...)+"; "+next)
}

// none fails if something was reported.
func (p *problems) none(t testing.TB) {
	t.Helper()
	if len(*p) > 0 {
		t.Fatalf("problems: %q", *p)
	}
}

// one fails unless key was reported with text.
func (p *problems) one(t *testing.T, key, text string) {
	t.Helper()
	for _, s := range *p {
		if strings.HasPrefix(s, key+": ") && strings.Contains(s, text) {
			return
		}
	}
	t.Errorf("nothing under %q with %q; got %q", key, text, *p)
}

func request(target string, headers ...string) *message.Request {
	path, query, has := strings.Cut(target, "?")
	req := &message.Request{Method: []byte("GET"), Path: []byte(path), Query: []byte(query), HasQuery: has}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Fields = append(req.Fields, message.Field{Name: []byte(name), Value: []byte(value)})
	}
	return req
}

func facts() *Facts {
	return &Facts{Secure: true, Host: []byte("a.test"), Port: 8443, Client: netip.MustParseAddr("::ffff:192.0.2.1"), RequestID: []byte("id-1"),
		Now: time.Unix(0x5759e988, 0), Random: [2]uint64{0x1111111122222222, 0x3333333344444444}}
}

func TestHeadersRefused(t *testing.T) {
	long := strings.Repeat("x", maxValue+1)
	many := map[string]string{}
	for i := range maxEdits + 1 {
		many[fmt.Sprint("X-", i)] = "x"
	}
	set := func(name, value string) HeaderOptions { return HeaderOptions{Set: map[string]string{name: value}} }
	for _, c := range []struct {
		name      string
		o         HeaderOptions
		key, text string
	}{
		{"nothing", HeaderOptions{}, "", "no header"},
		{"too many", HeaderOptions{Set: many}, "", "at most 64"},
		{"E01/content-length", set("Content-Length", "5"), "set.Content-Length", "length of a body"},
		{"E01/transfer-encoding", set("transfer-encoding", "chunked"), "set.transfer-encoding", "length of a body"},
		{"E01/connection", HeaderOptions{Add: map[string]string{"Connection": "X-Foo"}}, "add.Connection", "one connection"},
		{"E01/upgrade of a response", HeaderOptions{Response: true, Set: map[string]string{"Upgrade": "h2c"}}, "set.Upgrade", "one connection"},
		{"E01/te", HeaderOptions{Remove: []string{"TE"}}, "remove[0]", "one connection"},
		{"E01/trailer", HeaderOptions{Remove: []string{"a", "Trailer"}}, "remove[1]", "one connection"},
		{"host", set("Host", "b.test"), "set.Host", "rewrite"},
		{"D01/identity", set("X-Client-Cert", "x"), "set.X-Client-Cert", "who or where"},
		{"D01/identity with dots", set("Client.Cert", "x"), "set.Client.Cert", "who or where"},
		{"D01/identity added", HeaderOptions{Add: map[string]string{"X-SSL-Client-Verify": "SUCCESS"}}, "add.X-SSL-Client-Verify", "who or where"},
		{"D01/identity removed", HeaderOptions{Remove: []string{"X-Forwarded-Client-Cert"}}, "remove[0]", "who or where"},
		{"D15/origin", set("X-Forwarded-For", "x"), "set.X-Forwarded-For", "who or where"},
		{"D15/forwarded", set("Forwarded", "x"), "set.Forwarded", "who or where"},
		{"D03/underscore", set("X_Foo", "x"), "set.X_Foo", "underscore"},
		{"via", set("Via", "x"), "set.Via", "own"},
		{"traceparent", set("Traceparent", "x"), "set.Traceparent", "use tracing"},
		{"traceparent added", HeaderOptions{Add: map[string]string{"traceparent": "x"}}, "add.traceparent", "each request has its own"},
		{"websocket", set("Sec-WebSocket-Key", "x"), "set.Sec-WebSocket-Key", "own"},
		{"date of a response", HeaderOptions{Response: true, Remove: []string{"Date"}}, "remove[0]", "belongs to the target"},
		{"line end", set("A", "x\r\nB: y"), "set.A", "line end"},
		{"LF", set("A", "x\ny"), "set.A", "line end"},
		{"NUL", set("A", "x\x00"), "set.A", "control"},
		{"DEL", set("A", "x\x7f"), "set.A", "control"},
		{"beyond ASCII", set("A", "é"), "set.A", "beyond ASCII"},
		{"name with a line end", set("A\r\nB", "x"), "set.A\r\nB", "not the name"},
		{"name with a colon", set("A:", "x"), "set.A:", "not the name"},
		{"pseudo header", set(":path", "x"), "set.:path", "not the name"},
		{"placeholder in a name", set("X-%{host}", "x"), "set.X-%{host}", "not the name"},
		{"empty", set("A", ""), "set.A", "empty"},
		{"space around", set("A", " x"), "set.A", "space"},
		{"long", set("A", long), "set.A", "at most 4096"},
		{"unknown placeholder", set("A", "%{path}"), "set.A", "no placeholder"},
		{"open placeholder", set("A", "%{host"), "set.A", "no placeholder"},
		{"twice", HeaderOptions{Set: map[string]string{"A": "x", "a": "y"}}, "set.a", "twice"},
		{"set and removed", HeaderOptions{Set: map[string]string{"A": "x"}, Remove: []string{"a"}}, "set.A", "twice"},
		{"removed twice", HeaderOptions{Remove: []string{"A", "a"}}, "remove[1]", "twice"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p problems
			NewHeaders(c.o, p.report)
			p.one(t, c.key, c.text)
		})
	}
}

func TestHeaders(t *testing.T) {
	var p problems
	h := NewHeaders(HeaderOptions{
		Set:    map[string]string{"X-Real": "%{client_ip}:%{port} %{scheme}://%{host} %{request_id} 100%", "B": "fixed"},
		Add:    map[string]string{"Link": "</x>; rel=preload"},
		Remove: []string{"Authorization"},
	}, p.report)
	p.none(t)
	const want = "B: fixed\r\nX-Real: 192.0.2.1:8443 https://a.test id-1 100%\r\nLink: </x>; rel=preload\r\n"
	if got := string(h.AppendLines(nil, facts())); got != want {
		t.Errorf("%q", got)
	}
	fields, _ := h.AppendFields(nil, nil, facts())
	var lines string
	for _, f := range fields {
		lines += string(f.Name) + ": " + string(f.Value) + "\r\n"
	}
	if lines != want {
		t.Errorf("as fields: %q", lines)
	}
	for name, want := range map[string]bool{"authorization": true, "AUTHORIZATION": true, "x-real": true, "b": true, "link": false, "authorizations": false, "": false} {
		if h.Drops([]byte(name)) != want {
			t.Errorf("%q is dropped: %v", name, !want)
		}
	}
	t.Run("D03/names that fold", func(t *testing.T) {
		for name, want := range map[string]bool{"X.Real": true, "x_real": true, "X_REAL": true, "X--Real": false, "XReal": false, "X.Rea": false} {
			if h.Drops([]byte(name)) != want {
				t.Errorf("%q is dropped: %v", name, !want)
			}
			if left := len(h.Apply([]message.Field{field(name, "old")}, facts())) - h.Len(); (left == 0) != want {
				t.Errorf("%q is left in an answer: %v", name, want)
			}
		}
	})
	own := []message.Field{field("b", "old"), field("Keep", "1"), field("authorization", "x")}
	lines = ""
	for _, f := range h.Apply(own, facts()) {
		lines += string(f.Name) + ": " + string(f.Value) + "\r\n"
	}
	if lines != "Keep: 1\r\n"+want || string(own[0].Value) != "old" {
		t.Errorf("applied: %q; it had %q", lines, own[0].Value)
	}
	var none *Headers
	if len(none.Apply(own, nil)) != 3 {
		t.Error("nil edits an answer")
	}
	if none.Drops([]byte("a")) || none.Len() != 0 || none.AppendLines(nil, nil) != nil {
		t.Error("nil edits something")
	}
	f, buf := facts(), make([]byte, 0, 512)
	dst := make([]message.Field, 0, 8)
	if n := testing.AllocsPerRun(100, func() { h.AppendLines(buf, f); h.AppendFields(dst, buf, f); h.Drops([]byte("b")) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestRewriteRefused(t *testing.T) {
	for _, c := range []struct {
		name      string
		o         RewriteOptions
		key, text string
	}{
		{"E30/host of the request", RewriteOptions{Host: "#{host}"}, "host", "not a host"},
		{"E30/host with a path", RewriteOptions{Host: "a.test/x"}, "host", "not a host"},
		{"E30/host with a line end", RewriteOptions{Host: "a.test\r\nX: y"}, "host", "not a host"},
		{"both", RewriteOptions{From: "/a", To: "/b", Regexp: "/a", Replace: "/b"}, "path", "both"},
		{"from without slash", RewriteOptions{From: "a", To: "/b"}, "path.prefix.from", "start with /"},
		{"from encoded", RewriteOptions{From: "/%61", To: "/b"}, "path.prefix.from", "percent-encoded"},
		{"from with slash", RewriteOptions{From: "/a/", To: "/b"}, "path.prefix.from", "does not end in a slash"},
		{"to without slash", RewriteOptions{From: "/a", To: "b"}, "path.prefix.to", "start with /"},
		{"to with slash", RewriteOptions{From: "/a", To: "/b/"}, "path.prefix.to", "does not end in a slash"},
		{"A27/to with dots", RewriteOptions{From: "/a", To: "/b/.."}, "path.prefix.to", "more than one way"},
		{"A27/to with an encoded slash", RewriteOptions{From: "/a", To: "/b%2fc"}, "path.prefix.to", "more than one way"},
		{"to with a query", RewriteOptions{From: "/a", To: "/b?c"}, "path.prefix.to", "bare ?"},
		{"to empty", RewriteOptions{From: "/a"}, "path.prefix.to", "empty"},
		{"F24/expression", RewriteOptions{Regexp: "(x{30}){30}", Replace: "/x"}, "path.regex", "instructions"},
		{"expression", RewriteOptions{Regexp: "(", Replace: "/x"}, "path.regex", "regular expression"},
		{"replacement without slash", RewriteOptions{Regexp: "/(.*)", Replace: "$1"}, "path.replace", "begin with /"},
		{"replacement with a query", RewriteOptions{Regexp: "/(.*)", Replace: "/?x"}, "path.replace", "cannot have"},
		{"replacement with a line end", RewriteOptions{Regexp: "/(.*)", Replace: "/\r\n"}, "path.replace", "cannot have"},
		{"no such group", RewriteOptions{Regexp: "/(.*)", Replace: "/$2"}, "path.replace", "group 2"},
		{"bare dollar", RewriteOptions{Regexp: "/(.*)", Replace: "/$"}, "path.replace", "$ that is not"},
		{"named group", RewriteOptions{Regexp: "/(?P<a>.*)", Replace: "/${a}"}, "path.replace", "$ that is not"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p problems
			NewRequest(nil, c.o, p.report)
			p.one(t, c.key, c.text)
		})
	}
}

func TestRewritePath(t *testing.T) {
	strip := RewriteOptions{From: "/api", To: "/"}
	move := RewriteOptions{From: "/api", To: "/v2/x"}
	user := RewriteOptions{Regexp: "/u/([^/]+)(/.*)?", Replace: "/users/$1$2/$$"}
	open := RewriteOptions{Regexp: "/x/(.*)/(.*)", Replace: "/$2/$1"}
	for _, c := range []struct {
		o         RewriteOptions
		raw, want string
		why       reason.Reason
	}{
		{o: strip, raw: "/api", want: "/"}, {o: strip, raw: "/api/", want: "/"}, {o: strip, raw: "/api/a%20b/", want: "/a%20b/"}, {o: strip, raw: "/apis/x", want: "/apis/x"}, {o: strip, raw: "/x/api", want: "/x/api"},
		{o: strip, raw: "/%61pi/x", want: "/x"}, {o: strip, raw: "/a%70%69", want: "/"}, {o: strip, raw: "*", want: "*"},
		{o: move, raw: "/api/%C3%A9", want: "/v2/x/%C3%A9"}, {o: move, raw: "/api", want: "/v2/x"}, {o: move, raw: "/api/a;b=c", want: "/v2/x/a;b=c"}, {o: move, raw: "/%61%70%69/%61", want: "/v2/x/%61"},
		{o: move, raw: "/api;b/c", why: reason.PathUnsafe}, {o: move, raw: "/api/../admin", why: reason.PathUnsafe}, {o: move, raw: "/api%2fx", why: reason.PathUnsafe}, {o: move, raw: "/z;/api", want: "/z;/api"},
		{o: move, raw: "/api/a%2fb", why: reason.PathUnsafe},
		{o: user, raw: "/u/42", want: "/users/42/$"}, {o: user, raw: "/u/%34%32/x", want: "/users/%34%32/x/$"}, {o: user, raw: "/%75/a%20b", want: "/users/a%20b/$"}, {o: user, raw: "/v/42", want: "/v/42"},
		{o: user, raw: "/u/42/", why: reason.RewriteFailed}, {o: user, raw: "/u/a;b", why: reason.PathUnsafe}, {o: user, raw: "/u/../u/x", why: reason.PathUnsafe},
		{o: RewriteOptions{Regexp: `/y/(.*\.)b`, Replace: "/$1"}, raw: "/y/a.b", why: reason.RewriteFailed}, // ends in a dot, which some backends cut
		{o: open, raw: "/x/a/b", want: "/b/a"}, {o: open, raw: "/x//b", why: reason.PathUnsafe}, {o: open, raw: "/x/a/", why: reason.RewriteFailed}, {o: open, raw: "/x/a.b/c", want: "/c/a.b"},
		{o: open, raw: "/x/a/%C3%A9b", want: "/%C3%A9b/a"},
	} {
		t.Run("A27/"+c.raw, func(t *testing.T) {
			var p problems
			e := NewRequest(nil, c.o, p.report)
			p.none(t)
			raw := []byte(c.raw)
			if c.raw == "*" {
				raw = []byte("/")
			}
			read, err := route.Analyze(raw, nil)
			if err != nil {
				t.Fatal(err)
			}
			got, why := e.Path(make([]byte, 0, 100), []byte(c.raw), read)
			if string(got) != c.want || why != c.why {
				t.Errorf("%q, %v; want %q, %v", got, why, c.want, c.why)
			}
		})
	}
	var none *Request
	if got, why := none.Path(nil, []byte("/x"), route.Path{}); string(got) != "/x" || why != reason.Unset {
		t.Error("nil rewrites")
	}
	if query, has := none.Query(nil, []byte("a"), true); string(query) != "a" || !has {
		t.Error("nil rewrites the query")
	}
	if string(none.Host([]byte("h"))) != "h" || none.RequestID(nil, nil, nil) != nil || none.Drops([]byte("a")) || none.AppendLines(nil, nil, nil) != nil {
		t.Error("nil edits")
	}
	if fields, _ := none.AppendFields(nil, nil, nil, nil); fields != nil {
		t.Error("nil edits fields")
	}
	var p problems
	long := NewRequest(nil, RewriteOptions{Regexp: "/(.*)", Replace: "/" + strings.Repeat("$1/", 20) + "x"}, p.report)
	p.none(t)
	raw := []byte("/" + strings.Repeat("a", 1000))
	read, err := route.Analyze(raw, nil)
	if got, why := long.Path(nil, raw, read); got != nil || why != reason.RewriteFailed || err != nil {
		t.Errorf("F24/%d bytes, %v", len(got), why)
	}
}

// Whatever path comes, what it is rewritten to is a plain path under the new prefix whose rest is that which came.
func FuzzRewrite(f *testing.F) {
	for _, raw := range []string{"/api/x", "/%61pi/x%2e", "/api/..;/x", "/api//x", "/api/%252e", "/api/;x"} {
		f.Add(raw)
	}
	var p problems
	move := NewRequest(nil, RewriteOptions{From: "/api", To: "/v2"}, p.report)
	swap := NewRequest(nil, RewriteOptions{Regexp: "/api/([^/]*)/(.*)", Replace: "/v2/$2/$1"}, p.report)
	p.none(f)
	f.Fuzz(func(t *testing.T, raw string) {
		read, err := route.Analyze([]byte(raw), nil)
		if err != nil {
			return
		}
		for _, e := range []*Request{move, swap} {
			got, why := e.Path(nil, []byte(raw), read)
			if why != reason.Unset || string(got) == raw {
				continue
			}
			again, err := route.Analyze(got, nil)
			if err != nil || again.Used() != 0 {
				t.Fatalf("%q became %q: %v %v", raw, got, err, again.Used())
			}
			if all, _ := again.Under("/v2"); !all {
				t.Fatalf("%q became %q", raw, got)
			}
			if e == move {
				if want := "/v2" + strings.TrimPrefix(string(read.Literal()), "/api"); string(again.Literal()) != want {
					t.Fatalf("%q became %q, which decodes to %q, want %q", raw, got, again.Literal(), want)
				}
			}
		}
	})
}

func TestQuery(t *testing.T) {
	for _, c := range []struct {
		set       map[string]string
		remove    []string
		raw, want string
	}{
		{remove: []string{"a"}, raw: "?a=1", want: ""}, {remove: []string{"a"}, raw: "?b=1&a=2&c", want: "?b=1&c"}, {remove: []string{"a"}, raw: "?%61=1&b", want: "?b"}, {remove: []string{"a b"}, raw: "?a+b=1&a%20b", want: ""},
		{remove: []string{"a"}, raw: "", want: ""}, {remove: []string{"a"}, raw: "?", want: "?"},
		// What is not touched goes octet for octet (E26).
		{remove: []string{"z"}, raw: "?a=1;b=2&c=%zz&&d=%2F&a=", want: "?a=1;b=2&c=%zz&&d=%2F&a="},
		{set: map[string]string{"k": "v w", "j": "é"}, raw: "?x=1&k=2", want: "?x=1&j=%C3%A9&k=v%20w"}, {set: map[string]string{"k": "v"}, raw: "", want: "?k=v"}, {set: map[string]string{"k": "a&b=c#"}, raw: "?k", want: "?k=a%26b%3Dc%23"},
	} {
		t.Run("E26/"+c.raw, func(t *testing.T) {
			var p problems
			e := NewRequest(nil, RewriteOptions{SetQuery: c.set, RemoveQuery: c.remove}, p.report)
			p.none(t)
			req := request(c.raw)
			got, has := e.Query([]byte("kept"), req.Query, req.HasQuery)
			if want, wantHas := strings.CutPrefix(c.want, "?"); string(got) != want || has != wantHas {
				t.Errorf("%q %v; want %q", got, has, c.want)
			}
		})
	}
	if host := NewRequest(nil, RewriteOptions{Host: "API.internal:8080"}, nil).Host([]byte("a.test")); string(host) != "api.internal:8080" {
		t.Errorf("E30/%s", host)
	}
}

func TestRedirectRefused(t *testing.T) {
	for _, c := range []struct {
		name      string
		o         RedirectOptions
		key, text string
	}{
		{"nothing", RedirectOptions{}, "", "for ever"},
		{"the same", RedirectOptions{Scheme: "#{protocol}", Host: "#{host}", Port: "#{port}", Path: "/#{path}", Query: "x=1"}, "", "for ever"},
		{"to http", RedirectOptions{Scheme: "http", FromTLS: true}, "scheme", "without it"},
		{"downgrade without need", RedirectOptions{Scheme: "https", Downgrade: true, FromTLS: true}, "allow_downgrade_to_http_insecure", "does not lead"},
		{"downgrade from http", RedirectOptions{Scheme: "http", Port: "81", Downgrade: true}, "allow_downgrade_to_http_insecure", "does not lead"},
		{"scheme", RedirectOptions{Scheme: "javascript"}, "scheme", "no scheme"},
		{"status", RedirectOptions{Host: "b.test", Status: 304}, "status", "no status"},
		{"status 200", RedirectOptions{Host: "b.test", Status: 200}, "status", "no status"},
		{"host with port", RedirectOptions{Host: "b.test:80"}, "host", "no host"},
		{"host with path", RedirectOptions{Host: "b.test/x"}, "host", "no host"},
		{"host with user", RedirectOptions{Host: "a@b.test"}, "host", "no host"},
		{"host with a line end", RedirectOptions{Host: "b.test\r\nX: y"}, "host", "no host"},
		{"host of the path", RedirectOptions{Host: "#{path}"}, "host", "#{path} has no place in host; expected #{host}; remove it"},
		{"port", RedirectOptions{Port: "0"}, "port", "no port"}, {"long port", RedirectOptions{Port: "65536"}, "port", "no port"}, {"port with zero", RedirectOptions{Port: "080"}, "port", "no port"},
		{"port text", RedirectOptions{Port: "https"}, "port", "no port"}, {"two ports", RedirectOptions{Port: "#{port}1"}, "port", "no port"}, {"port of the host", RedirectOptions{Port: "#{host}"}, "port", "#{host} has no place in port; expected #{port}; remove it"},
		{"path without slash", RedirectOptions{Path: "#{path}"}, "path", "begin with /"}, {"path text", RedirectOptions{Path: "x"}, "path", "begin with /"},
		{"unknown placeholder", RedirectOptions{Path: "/#{user}"}, "path", "#{user} is no placeholder; expected one of: #{host}, #{port}, #{path}; remove it"},
		{"unknown placeholder in the query", RedirectOptions{Path: "/x", Query: "q=#{query}&p=#{port}&s=#{x}"}, "query", "#{x} is no placeholder; expected one of: #{protocol}, #{host}, #{port}, #{path}, #{query}; remove it"}, {"unknown placeholder in the host", RedirectOptions{Host: "www.#{Host}"}, "host", "#{Host} is no placeholder; expected one of: #{host}; remove it"},
		{"scheme in the path", RedirectOptions{Path: "/#{protocol}/#{path}"}, "path", "#{protocol} has no place in path; expected #{host}, #{port}, #{path}; remove it"}, {"query in the path", RedirectOptions{Path: "/x?y"}, "path", "cannot have"}, {"query placeholder in the path", RedirectOptions{Path: "/#{query}"}, "path", "#{query} has no place in path; expected #{host}, #{port}, #{path}; remove it"},
		{"path with a line end", RedirectOptions{Path: "/x\r\nSet-Cookie: a=b"}, "path", "cannot have"}, {"path with a space", RedirectOptions{Path: "/a b"}, "path", "cannot have"}, {"path with a bad escape", RedirectOptions{Path: "/%zz"}, "path", "cannot have"},
		{"query with a quotation mark", RedirectOptions{Path: "/x", Query: `a="b"`}, "query", "cannot have"}, {"query with a fragment", RedirectOptions{Path: "/x", Query: "a#b"}, "query", "cannot have"},
		{"query twice", RedirectOptions{Path: "/x", Query: "a", DropQuery: true}, "drop_query", "both"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p problems
			NewRedirect(c.o, p.report)
			p.one(t, c.key, c.text)
			if len(p) > 1 {
				t.Errorf("more than one problem: %q", p)
			}
		})
	}
}

func TestRedirect(t *testing.T) {
	secure, plain := facts(), facts()
	plain.Secure, plain.Port = false, 80
	for _, c := range []struct {
		name   string
		o      RedirectOptions
		f      *Facts
		target string
		want   string
		why    reason.Reason
	}{
		{name: "to https", o: RedirectOptions{Scheme: "https"}, f: plain, target: "/a%20b?x=1", want: "https://a.test/a%20b?x=1"},
		{name: "to https elsewhere", o: RedirectOptions{Scheme: "https", Port: "8443"}, f: plain, target: "/", want: "https://a.test:8443/"},
		{name: "port of the request kept", o: RedirectOptions{Host: "www.#{host}"}, f: secure, target: "/x?", want: "https://www.a.test:8443/x"},
		{name: "standard port left out", o: RedirectOptions{Port: "443"}, f: secure, target: "/x", want: "https://a.test/x"},
		{name: "alb form", o: RedirectOptions{Scheme: "#{protocol}", Host: "#{host}", Port: "#{port}", Path: "/new/#{path}", Query: "from=#{path}&#{query}"}, f: secure, target: "/a/b?c=d", want: "https://a.test:8443/new/a/b?from=a/b&c=d"},
		{name: "every placeholder in the query", o: RedirectOptions{Path: "/x", Query: "s=#{protocol}&h=#{host}&p=#{port}&t=#{path}&#{query}"}, f: secure, target: "/a?b", want: "https://a.test:8443/x?s=https&h=a.test&p=8443&t=a&b"},
		{name: "scheme of a request without TLS", o: RedirectOptions{Scheme: "https", Query: "from=#{protocol}"}, f: plain, target: "/a", want: "https://a.test/a?from=http"},
		{name: "query dropped", o: RedirectOptions{Path: "/x", DropQuery: true}, f: secure, target: "/a?b", want: "https://a.test:8443/x"},
		{name: "OPTIONS *", o: RedirectOptions{Host: "b.test"}, f: secure, target: "*", want: "https://b.test:8443/"},
		{name: "downgrade", o: RedirectOptions{Scheme: "http", FromTLS: true, Downgrade: true}, f: secure, target: "/", want: "http://a.test/"},
		{name: "loop", o: RedirectOptions{Path: "/x"}, f: secure, target: "/x?q", why: reason.RedirectLoop},
		{name: "loop of schemes", o: RedirectOptions{Scheme: "https"}, f: secure, target: "/x?q", why: reason.RedirectLoop},
		{name: "no loop: query", o: RedirectOptions{Path: "/x", Query: "r"}, f: secure, target: "/x?q", want: "https://a.test:8443/x?r"},
		{name: "line end in the query", o: RedirectOptions{Host: "b.test"}, f: secure, target: "/x?a\r\nSet-Cookie: b=c", want: "https://b.test:8443/x?a%0D%0ASet-Cookie:%20b=c"},
		{name: "markup in the query", o: RedirectOptions{Host: "b.test"}, f: secure, target: "/x?\"><script>", want: "https://b.test:8443/x?%22%3E%3Cscript%3E"},
		{name: "encoded line end stays encoded", o: RedirectOptions{Host: "b.test"}, f: secure, target: "/x?%0d%0a", want: "https://b.test:8443/x?%0d%0a"},
		{name: "backslash", o: RedirectOptions{Path: "/#{path}", Host: "b.test"}, f: secure, target: `/\evil.test`, want: "https://b.test:8443/%5Cevil.test"},
		{name: "two slashes", o: RedirectOptions{Path: "/#{path}", Host: "b.test"}, f: secure, target: `//evil.test`, want: "https://b.test:8443//evil.test"},
		{name: "bad escape", o: RedirectOptions{Host: "b.test"}, f: secure, target: "/x?%zz%", want: "https://b.test:8443/x?%25zz%25"},
		{name: "too long", o: RedirectOptions{Host: "b.test"}, f: secure, target: "/" + strings.Repeat("a", MaxLocation), why: reason.RedirectTooLong},
		{name: "too long by encoding", o: RedirectOptions{Host: "b.test"}, f: secure, target: "/?" + strings.Repeat("\"", MaxLocation/2), why: reason.RedirectTooLong},
		{name: "multiplied", o: RedirectOptions{Path: "/" + strings.Repeat("#{path}", 500)}, f: secure, target: "/" + strings.Repeat("a", 8000), why: reason.RedirectTooLong},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p problems
			r := NewRedirect(c.o, p.report)
			p.none(t)
			got, why := r.Location([]byte("Location: "), request(c.target), c.f)
			if string(got) != "Location: "+c.want || why != c.why || r.Status != 302 {
				t.Errorf("%q, %v, %d; want %q", got, why, r.Status, c.want)
			}
		})
	}
	t.Run("redirect_too_long is 507 and redirect_loop 508", func(t *testing.T) {
		if reason.RedirectTooLong.Row().Status != 507 || reason.RedirectLoop.Row().Status != 508 || reason.RewriteFailed.Row().Status != 500 {
			t.Error("status")
		}
	})
}

// Whatever is asked for, Location is one URL that leads where the configuration says, and has no octet that could end it.
func FuzzLocation(f *testing.F) {
	f.Add("/x", "a=b")
	f.Add("/\\evil.test", "\r\nX: y")
	f.Add("//evil.test/%2f", "%")
	f.Add("/@evil.test", "#")
	var p problems
	rules := []*Redirect{
		NewRedirect(RedirectOptions{Host: "b.test"}, p.report),
		NewRedirect(RedirectOptions{Path: "/new/#{path}", Query: "u=#{path}&q=#{query}&h=#{host}:#{port}"}, p.report),
		NewRedirect(RedirectOptions{Host: "x.#{host}", Path: "/#{path}", Port: "99"}, p.report),
	}
	p.none(f)
	hosts := []string{"b.test:8443", "a.test:8443", "x.a.test:99"}
	f.Fuzz(func(t *testing.T, path, query string) {
		req := &message.Request{Path: []byte("/" + path), Query: []byte(query), HasQuery: true}
		for i, r := range rules {
			got, why := r.Location(nil, req, facts())
			if why != reason.Unset {
				continue
			}
			if len(got) > MaxLocation || bytes.ContainsFunc(got, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("\"<>\\#`{}|^", r) }) {
				t.Fatalf("%q", got)
			}
			u, err := url.Parse(string(got))
			if err != nil || u.Scheme != "https" || u.Host != hosts[i] || u.User != nil || u.Fragment != "" {
				t.Fatalf("%q: %v, %+v", got, err, u)
			}
		}
	})
}

func TestAnswerRefused(t *testing.T) {
	header := func(name, value string) AnswerOptions { return AnswerOptions{Headers: map[string]string{name: value}} }
	for _, c := range []struct {
		name      string
		o         AnswerOptions
		key, text string
	}{
		{"status 100", AnswerOptions{Status: 101}, "status", "no status"}, {"status 304", AnswerOptions{Status: 304}, "status", "no status"}, {"status 600", AnswerOptions{Status: 600}, "status", "no status"},
		{"status 302", AnswerOptions{Status: 302}, "status", "leads elsewhere"}, {"body of 204", AnswerOptions{Status: 204, Body: []byte("x")}, "body", "no body"},
		{"large", AnswerOptions{Body: make([]byte, MaxBody+1)}, "body", "at most"}, {"type", AnswerOptions{Body: []byte("x"), ContentType: "a\r\nb"}, "content_type", "line end"},
		{"E01/length", header("Content-Length", "1"), "headers.Content-Length", "length of a body"}, {"value", header("A", "b\nc"), "headers.A", "line end"}, {"type", header("content-type", "x"), "headers.content-type", "key of its own"},
		{"location", header("Location", "x"), "headers.Location", "redirect"}, {"name", header("a b", "x"), "headers.a b", "not the name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p problems
			NewAnswer(c.o, p.report)
			p.one(t, c.key, c.text)
		})
	}
	var p problems
	NewMaintenance(MaintenanceOptions{RetryAfter: time.Millisecond}, p.report)
	p.one(t, "retry_after", "expected from")
	NewMaintenance(MaintenanceOptions{HTML: make([]byte, MaxBody+1)}, p.report)
	p.one(t, "html_file", "at most")
	NewMaintenance(MaintenanceOptions{JSON: make([]byte, MaxBody+1)}, p.report)
	p.one(t, "json_file", "at most")
}

func byName(fields []message.Field) map[string]string {
	m := map[string]string{}
	for _, f := range fields {
		m[string(f.Name)] = string(f.Value)
	}
	return m
}

func TestAnswer(t *testing.T) {
	var p problems
	a := NewAnswer(AnswerOptions{Body: []byte("hello\n"), Headers: map[string]string{"X-A": "b"}}, p.report)
	status, fields, body := a.For(request("/"))
	if want := map[string]string{"Content-Type": "text/plain; charset=utf-8", "X-A": "b", "Cache-Control": "no-store"}; status != 200 || string(body) != "hello\n" || !maps.Equal(byName(fields), want) {
		t.Error(status, byName(fields), string(body))
	}
	a = NewAnswer(AnswerOptions{Status: 204, Headers: map[string]string{"cache-control": "max-age=60"}}, p.report)
	status, fields, body = a.For(request("/"))
	if want := map[string]string{"cache-control": "max-age=60"}; status != 204 || len(body) != 0 || !maps.Equal(byName(fields), want) {
		t.Error(status, byName(fields), string(body))
	}
	m := NewMaintenance(MaintenanceOptions{Title: `<"&'\`, Text: "line\nend"}, p.report)
	p.none(t)
	for accept, want := range map[string]string{
		"": "text/html; charset=utf-8", "application/json": "application/json", "text/html": "text/html; charset=utf-8", "*/*": "text/html; charset=utf-8", "application/*": "application/json",
		"text/html;q=0.5, application/json;q=0.9": "application/json", "text/html, application/json": "text/html; charset=utf-8", "application/json;q=0": "text/html; charset=utf-8",
		"text/html;q=0.1,*/*": "application/json", "image/png": "text/html; charset=utf-8", "APPLICATION/JSON ; Q=0.7": "application/json", "application/json;q=x": "application/json", "text/*;q=0.4, */*;q=0.3": "text/html; charset=utf-8",
	} {
		req := request("/")
		if accept != "" {
			req = request("/", "Accept: "+accept)
		}
		status, fields, body := m.For(req)
		got := byName(fields)
		if status != http.StatusServiceUnavailable || got["Content-Type"] != want || got["Retry-After"] != "300" || got["Cache-Control"] != "no-store" || got["Vary"] != "Accept" {
			t.Errorf("%q: %d %v", accept, status, got)
		}
		if isJSON := strings.HasPrefix(want, "application"); isJSON != json.Valid(body) {
			t.Errorf("%q: %s", accept, body)
		} else if !isJSON && bytes.Contains(body, []byte(`<"`)) {
			t.Errorf("%s", body)
		}
	}
	custom := NewMaintenance(MaintenanceOptions{HTML: []byte("H"), JSON: []byte("{}"), RetryAfter: time.Minute}, p.report)
	if _, fields, body := custom.For(request("/", "Accept: text/html", "Accept: application/json;q=0.5")); string(body) != "H" || byName(fields)["Retry-After"] != "60" {
		t.Errorf("%s", body)
	}
	req := request("/", "Accept: application/json")
	if n := testing.AllocsPerRun(100, func() { m.For(req) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestRequestID(t *testing.T) {
	for header, text := range map[string]string{"X_Id": "underscore", "Host": "rewrite", "X-Forwarded-For": "who or where", "traceparent": "something else", "Cookie": "something else", "Content-Length": "length of a body", "a b": "not the name"} {
		var p problems
		NewRequestID(header, nil, p.report)
		p.one(t, "header", text)
	}
	var p problems
	untrusting := NewRequestID("", nil, p.report)
	trusting := NewRequestID("X-Request-Id", []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, p.report)
	p.none(t)
	const made = "11111111-2222-4222-b333-333344444444"
	for _, c := range []struct {
		name    string
		r       *RequestID
		from    string
		headers []string
		want    string
	}{
		{"made", untrusting, "10.0.0.1", nil, made},
		{"never trusted", untrusting, "10.0.0.1", []string{"X-Request-Id: abc"}, made},
		{"not listed", trusting, "192.0.2.1", []string{"X-Request-Id: abc"}, made},
		{"none", trusting, "10.0.0.1", nil, made},
		{"two", trusting, "10.0.0.1", []string{"X-Request-Id: abc", "x-request-id: abd"}, made},
		{"empty", trusting, "10.0.0.1", []string{"X-Request-Id: "}, made},
		{"quotation mark", trusting, "10.0.0.1", []string{`X-Request-Id: a"b`}, made},
		{"log4j", trusting, "10.0.0.1", []string{"X-Request-Id: ${jndi:ldap://x}"}, made},
		{"long", trusting, "10.0.0.1", []string{"X-Request-Id: " + strings.Repeat("a", 129)}, made},
		{"taken over", trusting, "::ffff:10.0.0.1", []string{"x-request-id: Ab-1.2_3"}, "Ab-1.2_3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := facts()
			f.Client = netip.MustParseAddr(c.from)
			e := NewRequest(nil, RewriteOptions{RequestID: c.r}, p.report)
			fields := request("/", c.headers...).Fields
			got := e.RequestID(nil, fields, f)
			for i := range fields { // what came is overwritten by the body before the response is written
				copy(fields[i].Value, "\r\n\r\n")
			}
			if string(got) != c.want {
				t.Errorf("%q; want %q", got, c.want)
			}
		})
	}
	e := NewRequest(NewHeaders(HeaderOptions{Set: map[string]string{"A": "%{request_id}"}, Remove: []string{"B"}}, p.report), RewriteOptions{RequestID: untrusting, Trace: true}, p.report)
	p.none(t)
	for _, name := range []string{"x-request-id", "X-AMZN-TRACE-ID", "a", "b"} {
		if !e.Drops([]byte(name)) {
			t.Errorf("%s is passed on", name)
		}
	}
	if e.Drops([]byte("traceparent")) || e.Drops([]byte("tracestate")) {
		t.Error("traceparent is not passed through")
	}
	req := request("/", "X-Amzn-Trace-Id: Root=1-x")
	const want = "X-Request-Id: id-1\r\nX-Amzn-Trace-Id: Self=1-5759e988-222222223333333344444444;Root=1-x\r\nA: id-1\r\n"
	if got := string(e.AppendLines(nil, req, facts())); got != want {
		t.Errorf("%q", got)
	}
	fields, _ := e.AppendFields(nil, nil, req, facts())
	var lines string
	for _, f := range fields {
		lines += string(f.Name) + ": " + string(f.Value) + "\r\n"
	}
	if lines != want {
		t.Errorf("%q", lines)
	}
}

func TestTrace(t *testing.T) {
	const root, self = "Root=1-5759e988-222222223333333344444444", "Self=1-5759e988-222222223333333344444444"
	for came, want := range map[string]string{
		"":                               root,
		"Root=1-67891233-abcdef":         self + ";Root=1-67891233-abcdef",
		"Self=1-1;Root=1-2":              self + ";Root=1-2",
		"self=1-1;root=1-2;CalledFrom=x": self + ";root=1-2;CalledFrom=x",
		"CalledFrom=x":                   root + ";CalledFrom=x",
		"Self=1-1":                       root,
		";;Root=1-2;":                    self + ";Root=1-2",
		"Root=1-2\r\nX: y":               root,
		"Root":                           root,
		"Root=":                          root,
		"Root=1 2":                       root,
		strings.Repeat("a", 1025):        root,
	} {
		if got := AppendTrace([]byte("x"), []byte(came), time.Unix(0x5759e988, 0), 0x1111111122222222, 0x3333333344444444); string(got) != "x"+want {
			t.Errorf("%.40q: %q; want %q", came, got, want)
		}
	}
	t.Run("two lines count as none", func(t *testing.T) {
		if got := appendTrace(nil, request("/", "X-Amzn-Trace-Id: Root=1-2", "X-Amzn-Trace-Id: Root=1-3").Fields, facts()); string(got) != root {
			t.Errorf("%q", got)
		}
	})
	buf := make([]byte, 0, 256)
	if n := testing.AllocsPerRun(100, func() { AppendTrace(buf, []byte("Self=1-1;Root=1-2"), time.Unix(1, 0), 1, 2) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestPlaceholdersAreKnown(t *testing.T) {
	for name := range headerPlaceholders {
		if !slices.Contains(names(headerPlaceholders, "%{"), "%{"+name+"}") {
			t.Errorf("%s is not listed", name)
		}
	}
	for name := range urlPlaceholders {
		if !slices.Contains(names(urlPlaceholders, "#{"), "#{"+name+"}") {
			t.Errorf("%s is not listed", name)
		}
	}
}
