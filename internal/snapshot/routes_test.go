package snapshot

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"countersign/internal/config"
	"countersign/internal/edit"
	"countersign/internal/identity"
	"countersign/internal/message"
	"countersign/internal/reason"
	"countersign/internal/route"
	"countersign/internal/testpki"
)

const (
	plainRoutes     = "hosts: [{names: [p.test], routes: [{upstream: api}]}]"
	plainRoutesPath = "listeners.plain.hosts[0].routes"
	oneMore         = "  more: {targets: [\"http://127.0.0.1:5\"]}\n"
	lastPool        = "  bytes: {targets: [\"tcp://127.0.0.1:4\"]}\n"
)

// plain puts routes into the host of a plain listener.
func plain(routes string) [2]string {
	return [2]string{plainRoutes, "hosts: [{names: [p.test], routes: [" + routes + "]}]"}
}

// TestRouteProblems has a row for each way in which a route can be wrong.
func TestRouteProblems(t *testing.T) {
	b := newBench(t)
	b.write("large.txt", bytes.Repeat([]byte("x"), edit.MaxBody+1))
	const r0 = plainRoutesPath + "[0]"
	https := func(settings string) [2]string {
		return [2]string{goodRoutes, "        routes: [{" + settings + "}]\n      - names"}
	}
	const secure = host0Path + ".routes[0]"
	request := [2]string{goodAuth, "client_auth: {mode: request, trust_store: clients}"}
	pools := [2]string{lastPool, lastPool + oneMore}
	for _, c := range []wrong{
		{name: "nothing done", change: plain("{match: {path: /x}}"), path: r0, message: "does nothing"},
		{name: "two actions", change: plain("{upstream: api, redirect: {host: b.test}}"), path: r0, message: "redirect and upstream; expected one"},
		{name: "forward and redirect", change: plain("{forward: [{upstream: api, weight: 1}], redirect: {host: b.test}}"), path: r0, message: "forward and redirect; expected one"},
		{name: "sticky without forward", change: plain("{upstream: api, forward_sticky: client}"), path: r0 + ".forward_sticky", message: "no meaning without forward"},
		{name: "respond and maintenance", change: plain("{respond: {body: x}, maintenance: {title: x}}"), path: r0, message: "maintenance and respond; expected one"},

		{id: "A26", name: "path twice", change: plain("{match: {paths: [/x, /x]}, upstream: api}, {upstream: api}"), path: plainRoutesPath, message: "never reached"},
		{id: "A26", name: "glob that is a path", change: plain("{match: {path_glob: [/x/*]}, upstream: api}"), path: plainRoutesPath, message: "leaves out /x itself"},
		{id: "A26", name: "glob and spellings", change: plain("{match: {path_glob: [/x*y]}, allow_path: [encoded_slash], upstream: api}"), path: plainRoutesPath, message: "no other spelling"},
		{id: "A26", name: "glob taken by a prefix", change: plain("{match: {path: /x/*}, upstream: api}, {match: {path_glob: ['/x/*.png']}, upstream: api}"), path: plainRoutesPath, message: "route 2: path \"/x/*.png\" is never reached: route 1"},
		{id: "F24", name: "large expression", change: plain("{match: {path_regex: ['/(x{30}){30}']}, upstream: api}"), path: plainRoutesPath, message: "instructions"},
		{id: "F24", name: "backreference", change: plain(`{match: {path_regex: ['/(x)\1']}, upstream: api}`), path: plainRoutesPath, message: "not a regular expression"},
		{name: "method", change: plain("{match: {method: [GET, post]}, upstream: api}"), path: r0 + ".match.method[1]", message: "not a method"},
		{name: "header without condition", change: plain("{match: {header: [{name: A}]}, upstream: api}"), path: r0 + ".match.header[0]", message: "no condition"},
		{id: "D15", name: "header that a client may not send", change: plain("{match: {header: [{name: X-Forwarded-For, values: [10.0.0.1]}]}, upstream: api}"), path: r0 + ".match.header[0]", message: "identity or source"},
		{name: "header value", change: plain(`{match: {header: [{name: A, values: ['a\b']}]}, upstream: api}`), path: r0 + ".match.header[0].values[0]", message: "not followed"},
		{id: "F24", name: "header expression", change: plain("{match: {header: [{name: A, regex: ['(']}]}, upstream: api}"), path: r0 + ".match.header[0].regex[0]", message: "not a regular expression"},
		{name: "query key", change: plain(`{match: {query: [{key: 'a\b'}]}, upstream: api}`), path: r0 + ".match.query[0].key", message: "not followed"},
		{name: "query value", change: plain(`{match: {query: [{values: [x, 'a\b']}]}, upstream: api}`), path: r0 + ".match.query[0].values[1]", message: "not followed"},
		{name: "source", change: plain("{match: {source: [10.0.0.0/8, 10.1.2.3/16]}, upstream: api}"), path: r0 + ".match.source[1]", message: "bits behind its prefix"},
		{id: "A39", name: "identity on a plain listener", change: plain("{match: {identity: {present: true}}, upstream: api}"), path: r0 + ".match.identity", message: "nobody is verified under the host's mode off"},
		{id: "A39", name: "identity and request_unverified", change: https("match: {identity: {san: ['dns:a.test']}}, upstream: api"), more: [][2]string{{goodAuth, "client_auth: {mode: request_unverified, trust_store: clients}"}}, path: secure + ".match.identity", message: "nobody is verified"},
		{name: "nobody where everybody is verified", change: https("match: {identity: {present: false}}, upstream: api"), path: secure + ".match.identity", message: "requires a verified client"},
		{id: "A39", name: "nobody with a name", change: https("match: {identity: {present: false, subject: [CN=a]}}, upstream: api"), more: [][2]string{request}, path: secure + ".match.identity", message: "has no name"},
		{id: "B11", name: "half a label", change: https("match: {identity: {san: ['dns:a*.test']}}, upstream: api"), path: secure + ".match.identity.san[0]", message: "whole label"},
		{id: "B11", name: "fingerprint", change: https("match: {identity: {fingerprint_sha256: [aa]}}, upstream: api"), path: secure + ".match.identity.fingerprint_sha256[0]", message: "not a SHA-256"},
		{id: "B11", name: "trust domain", change: https("match: {identity: {spiffe_trust_domain: ['spiffe://x']}}, upstream: api"), path: secure + ".match.identity.spiffe_trust_domain[0]", message: "not a SPIFFE trust domain"},

		{name: "no such upstream", change: plain("{forward: [{upstream: apy, weight: 1}]}"), path: r0 + ".forward[0].upstream", message: "no upstream is named"},
		{name: "targets of bytes", change: plain("{forward: [{upstream: bytes, weight: 1}]}"), path: r0 + ".forward[0].upstream", message: "tcp targets"},
		{name: "no weight", change: plain("{forward: [{upstream: api, weight: 0}]}"), path: r0 + ".forward", message: "no request could go anywhere"},
		{name: "weight", change: plain("{forward: [{upstream: api, weight: 1000}]}"), path: r0 + ".forward[0].weight", message: "at most 999"},
		{name: "upstream twice", change: plain("{forward: [{upstream: api, weight: 1}, {upstream: api, weight: 1}]}"), path: r0 + ".forward[1].upstream", message: "there twice"},

		{name: "redirect to nowhere else", change: plain("{redirect: {query: x}}"), path: r0 + ".redirect", message: "for ever"},
		{name: "redirect to http", change: https("redirect: {scheme: http}"), path: secure + ".redirect.scheme", message: "allow_downgrade_to_http_insecure"},
		{name: "redirect loop", change: plain("{match: {path: /old/*}, redirect: {path: /old/new}}, {upstream: api}"), path: r0 + ".redirect", message: "same route redirects again"},
		{name: "redirect that grows", change: plain("{redirect: {path: '/new/#{path}'}}"), path: r0 + ".redirect", message: "same route redirects again"},
		{name: "redirect of an unknown placeholder", change: plain("{redirect: {path: '/#{user}'}}"), path: r0 + ".redirect.path", message: "no placeholder"},
		{name: "redirect with a space", change: plain("{redirect: {path: '/a b'}}"), path: r0 + ".redirect.path", message: "cannot have"},
		{name: "upgrade of a redirect", change: plain("{redirect: {host: b.test}, upgrade: [websocket]}"), path: r0 + ".upgrade", message: "forwards nothing"},
		{name: "rewrite of a response", change: plain("{respond: {body: x}, rewrite: {host: b.test}}"), path: r0 + ".rewrite", message: "forwards nothing"},
		{name: "headers of a maintenance", change: plain("{maintenance: {title: x}, request_headers: {set: {A: b}}}"), path: r0 + ".request_headers", message: "forwards nothing"},
		{name: "location of a redirect", change: plain("{redirect: {host: b.test}, response_headers: {set: {Location: 'https://c.test/'}}}"), path: r0 + ".response_headers", message: "location"},
		{name: "mirror by HTTP/2", change: plain("{upstream: api, mirror: {upstream: more}}"), more: [][2]string{{lastPool, lastPool + "  more: {targets: [\"http://127.0.0.1:5\"], protocol_version: http2}\n"}}, path: r0 + ".mirror.upstream", message: "by HTTP/1.1"},
		{name: "mirror of a response", change: plain("{respond: {body: x}, mirror: {upstream: api}}"), path: r0 + ".mirror", message: "forwards nothing"},

		{name: "no file", change: plain("{respond: {body_file: none.txt}}"), path: r0 + ".respond.body_file", message: "cannot read"},
		{name: "body twice", change: plain("{respond: {body: x, body_file: text.pem}}"), path: r0 + ".respond.body_file", message: "both"},
		{name: "large file", change: plain("{respond: {body_file: large.txt}}"), path: r0 + ".respond.body", message: "at most"},
		{id: "E01", name: "response length", change: plain("{respond: {headers: {Content-Length: '1'}}}"), path: r0 + ".respond.headers.Content-Length", message: "length of a body"},
		{name: "no JSON", change: plain("{maintenance: {json_file: text.pem}}"), path: r0 + ".maintenance.json_file", message: "not JSON"},
		{name: "retry after", change: plain("{maintenance: {retry_after: 1ms}}"), path: r0 + ".maintenance.retry_after", message: "expected from"},

		{id: "A27", name: "rewrite of nothing", change: plain("{upstream: api, rewrite: {path: {replace: /x}}}"), path: r0 + ".rewrite.path", message: "nothing to replace"},
		{id: "A27", name: "expression alone", change: plain("{upstream: api, rewrite: {path: {regex: /x}}}"), path: r0 + ".rewrite.path", message: "go together"},
		{id: "A27", name: "prefix with replace", change: plain("{upstream: api, rewrite: {path: {prefix: {from: /a, to: /b}, replace: /x}}}"), path: r0 + ".rewrite.path", message: "go together"},
		{id: "A27", name: "prefix and expression", change: plain("{upstream: api, rewrite: {path: {prefix: {from: /a, to: /b}, regex: /x, replace: /x}}}"), path: r0 + ".rewrite.path", message: "both"},
		{id: "A27", name: "rewrite and spellings", change: plain("{upstream: api, rewrite: {path: {prefix: {from: /a, to: /b}}}, allow_path: [dot_segments]}"), path: r0 + ".allow_path", message: "cannot be rewritten"},
		{id: "E30", name: "host", change: plain("{upstream: api, rewrite: {host: '#{host}'}}"), path: r0 + ".rewrite.host", message: "not a host"},
		{id: "D01", name: "identity header", change: plain("{upstream: api, request_headers: {set: {X-Client-Cert: x}}}"), path: r0 + ".request_headers.set.X-Client-Cert", message: "who or where"},
		{id: "E01", name: "framing header", change: plain("{upstream: api, response_headers: {remove: [Transfer-Encoding]}}"), path: r0 + ".response_headers.remove[0]", message: "length of a body"},

		{name: "mirror to the same", change: plain("{upstream: api, mirror: {upstream: api}}"), path: r0 + ".mirror.upstream", message: "go to upstream \"api\" anyway"},
		{name: "mirror percent", change: plain("{upstream: api, mirror: {upstream: more, percent: 101}}"), more: [][2]string{pools}, path: r0 + ".mirror.percent", message: "at most 100"},
		{name: "mirror to nowhere", change: plain("{upstream: api, mirror: {upstream: mor}}"), more: [][2]string{pools}, path: r0 + ".mirror.upstream", message: "no upstream is named"},
		{name: "id trusted from nobody", change: plain("{upstream: api, request_id: {trust: from_listed_sources}}"), path: r0 + ".request_id", message: "go together"},
		{name: "id sources not trusted", change: plain("{upstream: api, request_id: {sources: [10.0.0.1]}}"), path: r0 + ".request_id", message: "go together"},
		{name: "id in an identity header", change: plain("{upstream: api, request_id: {header: X-Real-IP}}"), path: r0 + ".request_id.header", message: "who or where"},
	} {
		t.Run(strings.TrimPrefix(c.id+"/"+c.name, "/"), func(t *testing.T) {
			s, problems := b.compile(c.yaml(t))
			if s != nil {
				t.Error("compiled")
			}
			c.told(t, problems, false)
		})
	}
	for _, c := range []wrong{
		{name: "allow by a header of the client", change: plain("{match: {header: [{name: X-Admin, present: true}]}, allow: 'request.method == \"GET\"', upstream: api}, {upstream: api}"), path: r0 + ".match", message: "asks less"},
		{id: "A29", name: "certificate by method", change: https("match: {path: /x/*, method: [POST]}, client_auth: {mode: require}, upstream: api}, {upstream: api"), more: [][2]string{request}, path: secure + ".match", message: "asks less"},
		{id: "A29", name: "behind the head of the prefix", change: https("match: {path: /x/*, method: [POST]}, client_auth: {mode: require}, upstream: api}, {match: {path: /x}, upstream: tls}, {upstream: api"), more: [][2]string{request}, path: secure + ".match", message: "goes to route 3"},
		{id: "A29", name: "certificate by a group", change: https("match: {path: /x/*, method: [POST]}, client_auth: {mode: require}, upstream: api}, {match: {path: /x}, forward: [{upstream: api, weight: 1}, {upstream: tls, weight: 0}]"), more: [][2]string{request}, path: secure + ".match", message: "asks less"},
	} {
		t.Run(strings.TrimPrefix(c.id+"/"+c.name, "/"), func(t *testing.T) {
			_, problems := b.compile(c.yaml(t))
			c.told(t, problems, true)
		})
	}
	for name, routes := range map[string]string{
		"another upstream":   "match: {path: /x/*, method: [POST]}, client_auth: {mode: require}, upstream: tls}, {upstream: api",
		"as strict":          "match: {path: /x/*, method: [POST]}, client_auth: {mode: require}, upstream: api}, {match: {path: /x/*}, client_auth: {mode: require}, upstream: api}, {upstream: api",
		"other paths":        "match: {path: /x/*, method: [POST]}, client_auth: {mode: require}, upstream: api}, {match: {path: /y/*}, upstream: api",
		"what is open":       "match: {path: /x/*, method: [GET, HEAD]}, upstream: api}, {match: {path: /x/*}, client_auth: {mode: require}, upstream: api",
		"redirect of others": "match: {path: /x/*, identity: {present: true}}, client_auth: {mode: require}, upstream: api}, {match: {path: /x/*}, redirect: {host: b.test}",
	} {
		c := wrong{change: https(routes), more: [][2]string{request}}
		if _, problems := b.compile(c.yaml(t)); strings.Contains(fmt.Sprint(problems), "asks less") {
			t.Errorf("%s: %v", name, problems)
		}
	}
}

// TestOneMistake: what follows from a mistake only is not told as another one.
func TestOneMistake(t *testing.T) {
	const r0 = plainRoutesPath + "[0]"
	for _, c := range []struct{ name, routes, path string }{
		{"glob that is no list", "{match: {path_glob: '/img/*'}, upstream: api}, {upstream: api}", r0 + ".match.path_glob"},
		{"expression that is no list", "{match: {path_regex: '/img/.*'}, upstream: api}, {match: {path: /x}, upstream: api}", r0 + ".match.path_regex"},
		{"method that is no list", "{match: {path: /x, method: GET}, upstream: api}, {match: {path: /x}, upstream: api}", r0 + ".match.method"},
		{"empty path", "{match: {paths: ['']}, upstream: api}, {upstream: api}", r0 + ".match.paths[0]"},
		{"unknown condition", "{match: {paht: /x}, upstream: api}, {upstream: api}", r0 + ".match.paht"},
		{"unknown key", "{mtach: {path: /x}, upstream: api}, {upstream: api}", r0 + ".mtach"},
		{"source", "{match: {path: /x/*, source: [10.1.2.3/16]}, upstream: api}, {upstream: api}, {upstream: api}", r0 + ".match.source[0]"},
		{"in the last one", "{upstream: api}, {match: {path: /x, method: [get]}, upstream: api}", plainRoutesPath + "[1].match.method[0]"},
		{"scheme of a redirect", "{redirect: {scheme: htps}}", r0 + ".redirect.scheme"},
		{"host of a redirect", "{redirect: {host: 'www.#{user}'}}", r0 + ".redirect.host"},
		{"path of a redirect", "{redirect: {path: '/#{user}'}}", r0 + ".redirect.path"},
		{"port of a redirect", "{redirect: {port: '#{user}'}}", r0 + ".redirect.port"},
		{"key of a redirect", "{redirect: {port: [1], path: '/x/#{path}'}}", r0 + ".redirect.port"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, problems := newBench(t).compile(strings.Replace(good, plainRoutes, plain(c.routes)[1], 1))
			if len(problems) != 1 || problems[0].Path != c.path || problems[0].Warning {
				t.Errorf("expected one at %s; got:\n%v", c.path, problems)
			}
		})
	}
	// What is wrong elsewhere in a route hides nothing.
	_, problems := newBench(t).compile(strings.Replace(good, plainRoutes, plain("{upstream: apy}, {upstream: api}")[1], 1))
	if !strings.Contains(problems.Error(), "no upstream is named") || !strings.Contains(problems.Error(), "never reached") {
		t.Error(problems)
	}
}

// A plain listener lends our identity only to this machine, by whatever kind of route it leads to a target that asks
// for it.
func TestLocalOnlyByForward(t *testing.T) {
	b := newBench(t)
	for _, routes := range []string{"{forward: [{upstream: api, weight: 1}, {upstream: tls, weight: 0}]}", "{upstream: api, mirror: {upstream: tls}}"} {
		c := wrong{change: plain(routes)}
		s, problems := b.compile(c.yaml(t))
		if s == nil {
			t.Fatal(problems)
		}
		if !s.Listeners["plain"].LocalOnly {
			t.Errorf("%s: everybody may connect", routes)
		}
		if strings.Contains(fmt.Sprint(problems), "not used") {
			t.Error(problems)
		}
	}
}

// everything has each setting of a route once.
const everything = `{match: {path: /legacy, query: [{key: id}]}, redirect: {path: /legacy, drop_query: true}},
      {match: {path: /old/*}, redirect: {path: '/new/#{path}', status: 308}},
      {match: {path: /robots.txt}, respond: {body: "none\n", headers: {X-A: b}}},
      {match: {path: /page}, respond: {status: 410, content_type: text/html, body_file: text.pem}},
      {match: {path: /down}, maintenance: {retry_after: 2m}, response_headers: {set: {Strict-Transport-Security: max-age=1}}},
      {match: {paths: [/a, /b/*], path_glob: ['/img/*.png'], path_regex: ['/u/[0-9]+'], method: [GET, HEAD], header: [{name: X-Tenant, values: ['acme*'], regex: ['b+']}],
               query: [{key: v, values: ['1', '2']}], source: [10.0.0.0/8]}, forward: [{upstream: api, weight: 3}, {upstream: more, weight: 1}, {upstream: tls, weight: 0}]},
      {match: {path: /z/*}, upstream: api, rewrite: {host: z.internal, path: {prefix: {from: /z, to: /}}, query: {set: {k: v}, remove: [d]}},
       request_headers: {set: {X-Ip: '%{client_ip}'}, add: {X-B: c}, remove: [Cookie]}, response_headers: {set: {Strict-Transport-Security: max-age=63072000}, remove: [Server]},
       mirror: {upstream: more, percent: 10}, request_id: {trust: from_listed_sources, sources: [10.0.0.0/8]}, trace: amzn},
      {upstream: more}`

func TestRoutes(t *testing.T) {
	b := newBench(t)
	c := wrong{change: plain(everything), more: [][2]string{{lastPool, lastPool + oneMore}}}
	s, problems := b.compile(c.yaml(t))
	if s == nil || len(problems) > 0 {
		t.Fatal(problems)
	}
	host := s.Listeners["plain"].Hosts[0]
	find := func(method, target string, fields ...message.Field) (*Route, int, route.Verdict) {
		t.Helper()
		path, query, has := strings.Cut(target, "?")
		read, err := route.Analyze([]byte(path), nil)
		if err != nil {
			t.Fatal(err)
		}
		return host.Routes.Find(read, &route.Ask{Request: &message.Request{Method: []byte(method), Query: []byte(query), HasQuery: has, Head: message.Head{Fields: fields}},
			Source: netip.MustParseAddr("10.1.1.1"), Client: identity.Absent(reason.ClientCertMissing)})
	}
	tenant := message.Field{Name: []byte("x-tenant"), Value: []byte("ACME-1")}
	for target, want := range map[string]string{
		"/old/x": "redirect", "/robots.txt": "answer", "/down": "answer", "/a?v=2": "groups", "/b?v=1": "groups", "/b/x?v=1": "groups", "/img/x/y.png?v=1": "groups", "/u/12?v=1": "groups",
		"/a?v=3": "more", "/a": "more", "/img/x.jpg?v=1": "more", "/u/x?v=1": "more", "/z/x": "api", "/z": "api", "/": "more",
	} {
		to, _, verdict := find("GET", target, tenant)
		if verdict != route.Matched {
			t.Fatal(target, verdict)
		}
		got := to.Upstream
		switch {
		case to.Redirect != nil:
			got = "redirect"
		case to.Answer != nil:
			got = "answer"
		case to.Groups != nil:
			got = "groups"
		}
		if got != want || to.AnswersHere() != (want == "redirect" || want == "answer") {
			t.Errorf("%s: %s; want %s", target, got, want)
		}
	}
	if to, _, _ := find("POST", "/a?v=1", tenant); to.Upstream != "more" {
		t.Error("POST")
	}
	if to, _, _ := find("GET", "/a?v=1"); to.Upstream != "more" {
		t.Error("no tenant")
	}
	groups, _, _ := find("GET", "/a?v=1", tenant)
	count := map[string]int{}
	for n := range uint64(4000) {
		count[groups.To(n)]++
	}
	if count["api"] != 3000 || count["more"] != 1000 || len(count) != 2 {
		t.Errorf("by weight: %v", count)
	}
	z, _, _ := find("GET", "/z/x")
	if z.To(7) != "api" || z.Mirror.Upstream != "more" || z.Request == nil || z.Response == nil || !z.Response.Drops([]byte("server")) || !z.Request.Drops([]byte("cookie")) {
		t.Errorf("%+v", z)
	}
	copied := 0
	for n := range uint64(1000) {
		if z.Mirror.Takes(n) {
			copied++
		}
	}
	if copied != 100 || groups.Mirror.Takes(0) {
		t.Errorf("%d of 1000 are copied", copied)
	}
	page, _, _ := find("GET", "/page")
	if status, _, body := page.Answer.For(&message.Request{}); status != 410 || string(body) != "hello\n" {
		t.Error(status, string(body))
	}
	old, _, _ := find("GET", "/old/x")
	f := &edit.Facts{Host: []byte("p.test"), Port: 80, Now: time.Now()}
	if to, why := old.Redirect.Location(nil, &message.Request{Path: []byte("/old/x")}, f); string(to) != "http://p.test/new/old/x" || why != reason.Unset || old.Redirect.Status != 308 {
		t.Errorf("%s %v", to, why)
	}
	var text strings.Builder
	if err := s.Describe(&text); err != nil {
		t.Fatal(err)
	}
}

// A file of an answer that changes while another configuration is refused stays as it was.
func TestKeptBody(t *testing.T) {
	b := newBench(t)
	b.write("body.txt", []byte("before"))
	c := wrong{change: plain("{respond: {body_file: body.txt}}")}
	yaml := c.yaml(t)
	s, problems := b.compile(yaml)
	if s == nil {
		t.Fatal(problems)
	}
	b.write("body.txt", []byte("after"))
	b.write("ca.crl", b.ca.CRL())
	file, parsed := config.Parse("countersign.yaml", []byte(yaml))
	kept, _, problems := Compile(file, parsed, Env{Dir: b.dir, Now: time.Now(), Previous: s, Keep: true})
	if kept == nil {
		t.Fatal(problems)
	}
	read, _ := route.Analyze([]byte("/"), nil)
	to, _, _ := kept.Listeners["plain"].Hosts[0].Routes.Match(read)
	if _, _, body := to.Answer.For(&message.Request{}); string(body) != "before" {
		t.Errorf("%s", body)
	}
}

func TestMatchText(t *testing.T) {
	if got := matchText(nil) + matchText(&config.Match{Path: "/x/*"}); got != "/x/*" {
		t.Errorf("%q", got)
	}
	a, b := matchText(&config.Match{Path: "/x", Method: []string{"GET"}}), matchText(&config.Match{Path: "/x", Method: []string{"PUT"}})
	if a == b || a == "/x" {
		t.Errorf("%q and %q", a, b)
	}
}

// The example of the page on routing is one that runs.
func TestRoutingPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/routing.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```yaml\n")
	example, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("no example")
	}
	example += "trust_stores: {partners: {ca_bundle: {file: ca.pem}}}\nupstreams:\n"
	for _, name := range []string{"tenants", "api", "next", "static", "batch", "web"} {
		example += "  " + name + ": {targets: [\"http://127.0.0.1:1\"]}\n"
	}
	b := newBench(t)
	server := b.ca.Server("app.test", testpki.Lifetime(90*24*time.Hour))
	b.write("app.pem", server.PEM())
	b.write("app.key", server.KeyPEM())
	if s, problems := b.compile(example); s == nil || len(problems) > 0 {
		t.Error(problems)
	}
}
