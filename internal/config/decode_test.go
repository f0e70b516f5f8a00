package config

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// whole is a file that uses most of the format and has no problem.
const whole = `state: ./state
ops: {listen: 127.0.0.1:9901}
log: {requests: refused}
drain: 45s
trust_stores:
  partners:
    ca_bundle: {file: partners-ca.pem}
    hints: auto
    accept: {max_depth: 4, eku: strict, expired_leaf: deny}
    revocation:
      crls: [{file: partners.crl}]
      missing: leaf
      stale: {policy: fail_closed, grace: 0s}
      ocsp: off
  internal:
    ca_bundle: &bundle {file: internal-ca.pem}
    hints: {file: names.pem}
listeners:
  public:
    listen: ":8443"
    protocol: https
    tls: {policy: modern, min_version: 1.2}
    hosts:
      - names: [api.test, "*.partners.test"]
        certificate: {cert: api.pem, key: api.key}
        client_auth: {mode: require, trust_store: partners, on_failure: alert}
        identity_headers: [rfc9440, alb]
        routes:
          - match: {path: /admin/*}
            upstream: api
          - upstream: api
      - names: [open.test]
        client_auth:
          mode: off
    limits: {header_bytes: 32KiB, body_bytes: 0, connections: 500}
upstreams:
  api:
    targets: [https://10.0.0.11:9443]
    balance: round_robin
    tls:
      server_name: api.internal
      trust_store: internal
      client_certificates: [{cert: edge.pem, key: edge.key}]
`

// listeners is the smallest file without a problem; cases put their lines before it.
const listeners = "listeners: {a: {listen: ':1', protocol: http, hosts: [{names: [a.test]}]}}\n"

// listener gives a file whose only listener has one more line, the fifth.
func listener(line string) string {
	return "listeners:\n  a:\n    listen: ':1'\n    protocol: http\n    " + line + "\n    hosts: [{names: [a.test]}]\n"
}

// host gives a file whose only host has one more line, the seventh.
func host(line string) string {
	return "listeners:\n  a:\n    listen: ':1'\n    protocol: https\n    hosts:\n    - names: [a.test]\n      " + line + "\n"
}

// store gives a file with a trust store of one more line, the fourth.
func store(line string) string {
	return "trust_stores:\n  s:\n    ca_bundle: {file: ca.pem}\n    " + line + "\n" + listeners
}

// bomb gives aliases of aliases: width to the power of levels nodes.
func bomb(levels, width int) string {
	var b strings.Builder
	b.WriteString("x0: &x0 [v, v]\n")
	for i := 1; i <= levels; i++ {
		fmt.Fprintf(&b, "x%d: &x%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*x%d,", i-1), width), ","))
	}
	return b.String()
}

func TestParseRefuses(t *testing.T) {
	const later = "known, but not supported by this version"
	cases := []struct {
		name, yaml, path, pos, message, next string
	}{
		// Empty: nothing that says nothing is accepted, because products disagree about what it means.
		{"B25/empty file", "", "", "1:1", "the file has no settings", "listeners"},
		{"B25/only a comment", "# nothing\n", "", "1:1", "the file has no settings", ""},
		{"B25/null file", "~\n", "", "1:1", "the file has no settings", ""},
		{"B25/empty mapping file", "{}\n", "", "1:1", "the file has no settings", ""},
		{"B25/null section", "trust_stores:\n" + listeners, "trust_stores", "1:1", "empty setting: trust_stores has no value", "remove it"},
		{"B25/null spelled out", host("client_auth: null"), "listeners.a.hosts[0].client_auth", "7:7", "empty setting: client_auth", ""},
		{"B25/empty mapping", host("client_auth: {}"), "listeners.a.hosts[0].client_auth", "7:7", "empty setting: client_auth", ""},
		{"B25/empty list", host("identity_headers: []"), "listeners.a.hosts[0].identity_headers", "7:7", "empty setting: identity_headers", ""},
		{"B25/empty text", host(`upstream: ""`), "listeners.a.hosts[0].upstream", "7:7", "empty setting: upstream", ""},
		{"B25/blank text", host(`upstream: "  "`), "listeners.a.hosts[0].upstream", "7:7", "empty setting: upstream", ""},
		{"B25/empty list item", host("identity_headers: [alb, '']"), "listeners.a.hosts[0].identity_headers[1]", "7:31", "empty setting: identity_headers[1]", ""},
		{"B25/null trust store", "trust_stores:\n  s:\n" + listeners, "trust_stores.s", "2:3", "empty setting: s", ""},
		{"B25/no CRL in revocation", store("revocation: {crls: []}"), "trust_stores.s.revocation.crls", "4:18", "empty setting: crls", ""},
		{"B25/empty match", host("routes: [{match: {}, upstream: u}]"), "listeners.a.hosts[0].routes[0].match", "7:17", "empty setting: match", ""},
		{"B25/alias of nothing", "state: &e ''\nlog: *e\n" + listeners, "log", "2:1", "empty setting: log", ""},
		{"B25/zero limit", listener("limits: {connections: 0}"), "listeners.a.limits.connections", "5:27", "zero is neither", "default"},
		{"B25/zero duration", "drain: 0s\n" + listeners, "drain", "1:8", "zero is neither", ""},
		{"B25/zero size", listener("limits: {header_bytes: 0}"), "listeners.a.limits.header_bytes", "5:28", "zero is neither", ""},

		// References to trust: a missing or odd one never becomes "no client auth".
		{"A22/no CA bundle", "trust_stores: {s: {hints: auto}}\n" + listeners, "trust_stores.s", "1:16", `missing required key "ca_bundle"`, "add ca_bundle:"},
		{"A22/CA bundle as list", "trust_stores: {s: {ca_bundle: [a.pem]}}\n" + listeners, "trust_stores.s.ca_bundle", "1:20", "expected a mapping with the keys file, directory, url, refresh, system, stores, found a list", ""},
		{"A22/CA bundle by pki", "trust_stores: {s: {ca_bundle: {pki: x, file: f}}}\n" + listeners, "trust_stores.s.ca_bundle.pki", "1:32", later, ""},
		{"A22/trust store as list", host("client_auth: {mode: require, trust_store: [s]}"), "listeners.a.hosts[0].client_auth.trust_store", "7:36", "expected text, found a list", ""},
		{"A22/no mode", host("client_auth: {trust_store: s}"), "listeners.a.hosts[0].client_auth", "7:7", `missing required key "mode"`, ""},
		{"A22/client auth as word", host("client_auth: off"), "listeners.a.hosts[0].client_auth", "7:20", `expected a mapping with the keys mode, trust_store, on_failure, shadow, found "off"`, ""},
		{"A22/CRL as word", store("revocation: {crls: [a.crl]}"), "trust_stores.s.revocation.crls[0]", "4:25", "expected a mapping", ""},
		{"A22/no CRLs", store("revocation: {crls: []}"), "trust_stores.s.revocation.crls", "4:18", "empty setting", ""},

		// Bombs.
		{"F19/alias bomb", bomb(10, 10), "", "1:", "more than 100000 nodes", "aliases"},
		{"F19/aliases into depth", bomb(40, 1), "", "1:", "nested deeper than 64 levels", ""},
		{"F19/alias to itself", "state: &a [*a]\n", "", "1:", "nested deeper than 64", ""},
		{"F19/deep brackets", "state: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000), "", "1:", "nested deeper than 64", ""},
		{"F19/deep indents", func() (s string) {
			for i := range 200 {
				s += strings.Repeat(" ", i) + "a:\n"
			}
			return s
		}(), "", "6", "nested deeper than 64", ""},
		{"F19/too many nodes", "state: [" + strings.Repeat("a,", maxNodes) + "]", "", "1:", "more than 100000 nodes", ""},
		{"F19/too large", strings.Repeat("#", maxSource+1), "", "1:1", "expected at most 4194304", ""},
		{"F19/long text", "state: " + strings.Repeat("a", maxScalar+1), "", "1:8", "expected at most 4096", ""},
		{"F19/long key", strings.Repeat("a", maxName+1) + ": 1\n" + listeners, "", "1:1", "has 129 bytes", ""},

		// YAML itself.
		{"syntax", "listeners:\n\t- a\n", "", "2:1", "not valid YAML", "nothing after it was read"},
		{"unknown anchor", "state: *nope\n", "", "1:8", "not valid YAML: unknown anchor 'nope'", ""},
		{"second document", listeners + "---\nstate: a\n", "", "2:1", "found a second document", "---"},
		{"broken second document", listeners + "---\nstate: [\n", "", "4:1", "not valid YAML", ""},
		{"merge key", "log: &l {requests: all}\nops: {<<: *l, listen: a}\n" + listeners, "ops", "2:7", "merge keys", "write the keys out"},
		{"tag", "state: !!binary aGk=\n" + listeners, "state", "1:8", `found the YAML tag "!!binary"`, "remove the tag"},
		{"own tag", "state: !include x\n" + listeners, "state", "1:8", `YAML tag "!include"`, ""},
		{"list as key", "? [a]\n: b\n" + listeners, "", "1:3", "expected a name as key, found a list", ""},
		{"alias as key", "state: &s state\n*s : b\n" + listeners, "", "2:1", `expected a name as key, found the alias "*s"`, ""},
		{"null key", "~: b\n" + listeners, "", "1:1", "expected a name as key, found nothing", ""},
		{"control in key", `"a\u0007": b` + "\n" + listeners, "", "1:1", "control character", ""},
		{"control in text", `state: "a\0b"` + "\n" + listeners, "state", "1:8", `control character in "a\x00b"`, ""},
		{"not UTF-8", "state: \xff\n", "", "1:8", "found byte 0xff, expected UTF-8", "UTF-8"},
		{"UTF-16", "\xff\xfes\x00", "", "1:1", "found byte 0xff", ""},
		{"invisible line break", "# fine\u2028drain: 1s\n" + listeners, "", "1:7", "invisible character U+2028", ""},
		{"lone carriage return", "# fine\rdrain: 1s\n" + listeners, "", "1:7", "invisible character U+000D", ""},
		{"reversed text", "# fine\r\nstate: a\u202eb\n" + listeners, "", "2:9", "invisible character U+202E", ""},

		// Keys.
		{"unknown key", "stat: x\n" + listeners, "stat", "1:1", `unknown key "stat", expected one of: state, ops, log`, `did you mean "state"?`},
		{"unknown key, nothing near", "zebra: x\n" + listeners, "zebra", "1:1", `unknown key "zebra"`, "remove it"},
		{"unknown key inside", host("client_auth: {mod: off}"), "listeners.a.hosts[0].client_auth.mod", "7:21", `unknown key "mod"`, `"mode"`},
		{"duplicate key", "state: a\nstate: b\n" + listeners, "state", "2:1", `duplicate key "state", first given in line 1`, "keep one"},
		{"duplicate name", "listeners:\n  a: {listen: x, protocol: http, hosts: [{names: [a]}]}\n  a: {}\n", "listeners.a", "3:3", "first given in line 2", ""},
		{"empty listener list", "listeners: {}\n", "listeners", "1:1", "empty setting: listeners", ""},
		{"no ops address", "ops: {lisen: x}\n" + listeners, "ops.lisen", "1:7", "unknown key", `"listen"`},
		{"key later", "admin: {listen: x}\n" + listeners, "admin", "1:1", `the key "admin" is ` + later, "only if"},
		{"retry later", host("routes: [{upstream: u, retry: 'true'}]"), "listeners.a.hosts[0].routes[0].retry", "7:30", `"retry" is ` + later, "only if"},
		{"match later", host("routes: [{upstream: u, match: {host: a}}]"), "listeners.a.hosts[0].routes[0].match.host", "7:38", later, ""},

		// Values.
		{"text for a mapping", "listeners: public\n", "listeners", "1:12", `expected a mapping from names to settings, found "public"`, ""},
		{"text for a list", host("routes: api"), "listeners.a.hosts[0].routes", "7:15", `expected a list, such as [a, b], found "api"`, ""},
		{"list for the file", "- a\n", "", "1:1", "expected a mapping with the keys state", ""},
		{"enum", listener("tls: {policy: modren}"), "listeners.a.tls.policy", "5:19", `found "modren", expected one of: modern, tls13, compatible`, `"modern"`},
		{"enum boolean", host("client_auth: {mode: true}"), "listeners.a.hosts[0].client_auth.mode", "7:27", `found "true", expected one of: off, request, require`, ""},
		{"enum case", host("client_auth: {mode: Require}"), "listeners.a.hosts[0].client_auth.mode", "7:27", `found "Require"`, `"require"`},
		{"enum later", listener("tls: {policy: fips}"), "listeners.a.tls.policy", "5:19", `"fips" is ` + later + ", expected one of: modern, tls13, compatible", ""},
		{"enum later by prefix", listener("tls: {policy: ELBSecurityPolicy-TLS13-1-2-2021-06}"), "listeners.a.tls.policy", "5:19", later, ""},
		{"long form with unknown key", store("accept: {eku: {oid: [1.2.3]}}"), "trust_stores.s.accept.eku.oid", "4:20", "unknown key", "oids"},
		{"enum as mapping", store("accept: {expired_leaf: {until: x}}"), "trust_stores.s.accept.expired_leaf", "4:14", "found a mapping", ""},
		{"enum in a list", host("identity_headers: [alb, xfc]"), "listeners.a.hosts[0].identity_headers[1]", "7:31", `found "xfc"`, "xfcc"},
		{"boolean", host("identity_options: {chain: yes}"), "listeners.a.hosts[0].identity_options.chain", "7:33", `found "yes", expected true or false`, ""},
		{"old version", listener("tls: {min_version: 1.1}"), "listeners.a.tls.min_version", "5:24", `found "1.1", expected one of: 1.2, 1.3`, ""},
		{"hints word", store("hints: some"), "trust_stores.s.hints", "4:12", "expected one of: auto, none", ""},
		{"hints without file", store("hints: {fil: x}"), "trust_stores.s.hints.fil", "4:13", "unknown key", `"file"`},
		{"duration without unit", "drain: 10\n" + listeners, "drain", "1:8", `found "10", expected a duration`, `"10s"`},
		{"duration word", "drain: soon\n" + listeners, "drain", "1:8", `found "soon", expected a duration`, ""},
		{"negative duration", "drain: -1s\n" + listeners, "drain", "1:8", "expected nothing negative", ""},
		{"negative grace", store("revocation: {crls: [{file: f}], stale: {grace: -1h}}"), "trust_stores.s.revocation.stale.grace", "4:52", "expected nothing negative", ""},
		{"negative number", store("accept: {max_depth: -1}"), "trust_stores.s.accept.max_depth", "4:25", "expected nothing negative", ""},
		{"octal number", store("accept: {max_depth: 010}"), "trust_stores.s.accept.max_depth", "4:25", `found "010", expected a whole number`, ""},
		{"number with fraction", store("accept: {max_depth: 4.5}"), "trust_stores.s.accept.max_depth", "4:25", "expected a whole number", ""},
		{"number too large", store("accept: {max_depth: 99999999999999999999}"), "trust_stores.s.accept.max_depth", "4:25", "expected a whole number", ""},
		{"size unit", listener("limits: {body_bytes: 5MB}"), "listeners.a.limits.body_bytes", "5:26", `found "5MB", expected a number of bytes, such as 4096 or 32KiB`, ""},
		{"size too large", listener("limits: {body_bytes: 9999999999GiB}"), "listeners.a.limits.body_bytes", "5:26", "expected a number of bytes", ""},
		{"negative size", listener("limits: {body_bytes: -1KiB}"), "listeners.a.limits.body_bytes", "5:26", "nothing negative", ""},
		{"column after wide characters", "ops: {listen: äöü€, x: y}\n" + listeners, "ops.x", "1:21", "unknown key", ""},
		{"column after a byte order mark", "\ufeffstat: x\n" + listeners, "stat", "1:1", "unknown key", ""},
		{"line after CRLF", "state: x\r\ndrain: x\r\n" + listeners, "drain", "2:8", "duration", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			file, problems := Parse("test.yaml", []byte(c.yaml))
			if file.Config != nil {
				t.Error("Config is set beside an error")
			}
			for _, p := range problems {
				pos := fmt.Sprintf("%d:%d", p.Pos.Line, p.Pos.Column)
				// A position without a column, or without all digits, stands for what begins with it.
				if p.Path == c.path && strings.HasPrefix(pos, c.pos) && strings.Contains(p.Message, c.message) && strings.Contains(p.Next, c.next) {
					return
				}
			}
			t.Errorf("no problem %s at %s with %q, next %q; got:\n%v", c.path, c.pos, c.message, c.next, problems)
			for _, p := range problems {
				t.Logf("next: %s", p.Next)
			}
		})
	}
}

// One mistake gives one problem: in a table of single mistakes more would be noise.
func TestParseOneProblemPerMistake(t *testing.T) {
	for _, src := range []string{
		"listners: {}\n",
		listener("tls: {policy: modren}"),
		host("client_auth: {mod: off}"),
		store("hints: {fil: x}"),
		"state: !!str a\n" + listeners,
	} {
		if _, problems := Parse("test.yaml", []byte(src)); len(problems) != 1 {
			t.Errorf("%s\ngave %d problems, expected 1:\n%v", src, len(problems), problems)
		}
	}
}

func TestParseRequired(t *testing.T) {
	_, problems := Parse("test.yaml", []byte(`ops: {x: y}
trust_stores:
  s: {ca_bundle: {x: y}, revocation: {crls: [{x: y}]}}
listeners:
  a: {limits: {idle: 1s}}
  b: {listen: x, protocol: http, hosts: [{upstream: u, client_auth: {x: y}, routes: [{x: y}]}]}
upstreams:
  u: {tls: {x: y}}
`))
	got := map[string]bool{}
	for _, p := range problems {
		if _, key, ok := strings.Cut(p.Message, "missing required key "); ok {
			got[p.Path+" "+strings.Trim(key, `"`)] = true
		}
	}
	for _, want := range []string{
		"ops listen",
		"listeners.a listen", "listeners.a protocol", "listeners.b.hosts[0] names",
		"listeners.b.hosts[0].client_auth mode",
		"upstreams.u targets", "upstreams.u.tls server_name", "upstreams.u.tls trust_store",
	} {
		if !got[want] {
			t.Errorf("%s is not reported as missing", want)
		}
		delete(got, want)
	}
	if len(got) != 0 {
		t.Errorf("reported as missing without need: %v", got)
	}
}

func TestParseProblemsAreBounded(t *testing.T) {
	_, problems := Parse("test.yaml", []byte(host("identity_headers: ["+strings.Repeat("x,", 5000)+"]")))
	if n := len(problems); n != maxProblems+1 {
		t.Errorf("%d problems, expected %d", n, maxProblems+1)
	}
}

func TestParseWhole(t *testing.T) {
	file, problems := Parse("test.yaml", []byte(whole))
	if problems != nil {
		t.Fatalf("unexpected problems:\n%v", problems)
	}
	c := file.Config
	public := c.Listeners["public"]
	for _, v := range []struct{ what, got, want any }{
		{"drain", time.Duration(c.Drain), 45 * time.Second},
		{"ocsp", *c.TrustStores["partners"].Revocation.OCSP, OCSP{Mode: "off"}},
		{"eku", *c.TrustStores["partners"].Accept.EKU, EKU{Mode: "strict"}},
		{"hints", *c.TrustStores["partners"].Hints, Hints{Mode: "auto"}},
		{"hints file", *c.TrustStores["internal"].Hints, Hints{File: "names.pem"}},
		{"max_depth", c.TrustStores["partners"].Accept.MaxDepth, 4},
		{"crls", c.TrustStores["partners"].Revocation.CRLs, []CRL{{File: "partners.crl"}}},
		{"min_version", public.TLS.MinVersion, "1.2"},
		{"names", public.Hosts[0].Names, []string{"api.test", "*.partners.test"}},
		{"mode", public.Hosts[1].ClientAuth.Mode, "off"},
		{"header_bytes", public.Limits.HeaderBytes, Size(32 << 10)},
		{"routes", len(public.Hosts[0].Routes), 2},
		{"keys", c.Upstreams["api"].TLS.ClientCertificates, []KeyPair{{Cert: "edge.pem", Key: "edge.key"}}},
	} {
		if !reflect.DeepEqual(v.got, v.want) {
			t.Errorf("%v: found %v, expected %v", v.what, v.got, v.want)
		}
	}
}

func TestParseAlias(t *testing.T) {
	file, problems := Parse("test.yaml", []byte("trust_stores:\n  a: &s\n    ca_bundle: {file: x}\n  b: *s\n"+listeners))
	if problems != nil || file.Config.TrustStores["b"].CABundle.File != "x" {
		t.Fatalf("an alias is not followed: %v", problems)
	}
	if got := file.At("trust_stores.b"); got != (Pos{4, 3}) {
		t.Errorf("found %v, expected the key in line 4", got)
	}
}

func TestPartial(t *testing.T) {
	file, _ := Parse("test.yaml", []byte("trust_stores:\n  s:\nlisteners:\n  a:\n    hosts: [~, {names: [a.test]}]\n"))
	if file.Partial.TrustStores["s"] == nil || len(file.Partial.Listeners["a"].Hosts) != 2 || file.Partial.Listeners["a"].Hosts[0] == nil {
		t.Errorf("a refused item is nil or missing, expected it empty: %+v", file.Partial)
	}
}

// Every type in the structs can be decoded, every key has a rule about zero that fits, and no key is both there and
// "not supported".
func TestFieldKinds(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var walk func(rt reflect.Type)
	walk = func(rt reflect.Type) {
		switch rt.Kind() {
		case reflect.Pointer, reflect.Map, reflect.Slice:
			if rt.Kind() == reflect.Map && rt.Elem().Kind() != reflect.Pointer && rt.Elem().Kind() != reflect.String {
				t.Errorf("%v: expected a map of pointers or of strings", rt)
			}
			walk(rt.Elem())
		case reflect.Struct:
			if seen[rt] {
				return
			}
			seen[rt] = true
			for _, f := range fieldsOf(rt) {
				if f.key == "" || f.key == "-" && !f.short {
					t.Errorf("%v field %d has no key", rt, f.index)
				}
				for _, key := range laterKeys[rt] {
					if key == f.key {
						t.Errorf("%v has the key %s, which is listed as not supported", rt, key)
					}
				}
				walk(rt.Field(f.index).Type)
			}
		case reflect.String, reflect.Int, reflect.Bool:
		default:
			if rt != durationType && rt != sizeType {
				t.Errorf("no decoding for %v", rt)
			}
		}
	}
	walk(reflect.TypeFor[Config]())
	for rt := range laterKeys {
		if !seen[rt] {
			t.Errorf("laterKeys names %v, which is not in Config", rt)
		}
	}
}

func TestAt(t *testing.T) {
	file, _ := Parse("test.yaml", []byte(host("client_auth:\n        mode: require\n        trust_store: partners")))
	for _, c := range []struct {
		path       string
		value, key Pos
	}{
		{Path("listeners", "a", "hosts", 0, "client_auth", "trust_store"), Pos{9, 22}, Pos{9, 9}},
		{"listeners.a.hosts[0].client_auth", Pos{7, 7}, Pos{7, 7}},
		{"listeners.a.hosts[0].client_auth.on_failure", Pos{7, 7}, Pos{7, 7}},
		{"listeners.a.hosts[0]", Pos{6, 7}, Pos{6, 7}},
		{"listeners.a.hosts[3].names[7]", Pos{5, 5}, Pos{5, 5}},
		{"listeners.a", Pos{2, 3}, Pos{2, 3}},
		{"nothing.like.this", Pos{1, 1}, Pos{1, 1}},
		{"", Pos{1, 1}, Pos{1, 1}},
	} {
		if got := file.At(c.path); got != c.value {
			t.Errorf("At(%s): found %v, expected %v", c.path, got, c.value)
		}
		if got := file.KeyAt(c.path); got != c.key {
			t.Errorf("KeyAt(%s): found %v, expected %v", c.path, got, c.key)
		}
	}
	if got := Path("", "a.b", "", "c", 2, 3); got != "a.b.c[2][3]" {
		t.Errorf("found the path %s", got)
	}
}

func TestRender(t *testing.T) {
	src, err := os.ReadFile("testdata/problems.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file, problems := Parse("problems.yaml", src)
	// What package snapshot adds.
	reference := file.Problem("listeners.public.hosts[0].client_auth.trust_store", `did you mean "partners"?`, "no trust store is named %q; expected one of: %s", "partnerz", "partners")
	warning := file.Problem("listeners.public.limits", "", "made by\n\x1b[31mhand")
	warning.Warning = true
	problems = append(problems, reference, warning)
	problems.Sort()
	var got bytes.Buffer
	if err := file.Render(&got, problems); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/problems.golden"
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("rendered:\n%s\nexpected:\n%s", got.Bytes(), want)
	}
	if !problems.HasErrors() || (Problems{warning}).HasErrors() || Problems(nil).HasErrors() {
		t.Error("HasErrors is wrong")
	}
	if got := (Problems{warning}).Error(); got != `15:5: warning: listeners.public.limits: made by\n\x1b[31mhand` {
		t.Errorf("Error gives %s", got)
	}
}

func TestExcerpt(t *testing.T) {
	long := strings.Repeat("x", 100) + "HERE" + strings.Repeat("y", 200) + "THERE" + strings.Repeat("z", 200)
	for _, c := range []struct {
		line   string
		column int
		under  string
	}{
		{"abc", 2, "b"}, {"\tabc", 2, "a"}, {"a\x1bbc", 3, "b"}, {"äöü", 3, "ü"}, {long, 101, "H"}, {long, 305, "T"}, {"", 1, ""}, {"abc", 99, ""},
	} {
		text, caret := excerpt(c.line, c.column)
		if got := string([]rune(text)[caret-1:]); !strings.HasPrefix(got, c.under) || c.under == "" && got != "" {
			t.Errorf("%q:%d: the caret stands under %q, expected %q", c.line, c.column, got, c.under)
		}
		if n := len([]rune(text)); n > maxShown+2 || strings.ContainsAny(text, "\x1b\t") {
			t.Errorf("%q: shown as %q, %d characters", c.line, text, n)
		}
	}
}

func TestSuggest(t *testing.T) {
	names := []string{"partners", "internal", "url", "pki"}
	for name, want := range map[string]string{
		"partnerz": "partners", "partner": "partners", "INTERNAL": "internal", "intrenal": "internal", "uri": "url",
		"partn": "", "xy": "", "": "", "zebra": "", strings.Repeat("p", 5000): "",
	} {
		if got := Suggest(name, names); got != want {
			t.Errorf("Suggest(%.20q) = %q, expected %q", name, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte("a: &a [*a]\nb: {<<: *a}\n---\n"))
	f.Add([]byte("? [a]\n: !!str b\n\"\\u0000\": |\n  text\n"))
	if src, err := os.ReadFile("testdata/problems.yaml"); err == nil {
		f.Add(src)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		file, problems := Parse("fuzz.yaml", src)
		if (file.Config == nil) != problems.HasErrors() {
			t.Fatalf("Config and problems contradict each other: %v", problems)
		}
		lines := strings.Split(strings.TrimPrefix(string(file.Source), string(bom)), "\n")
		for _, p := range problems {
			if p.Pos.Line < 1 || p.Pos.Line > len(lines) || p.Pos.Column < 1 || p.Pos.Column > len([]rune(lines[p.Pos.Line-1]))+1 {
				t.Fatalf("the position %v is outside of the source: %v", p.Pos, p)
			}
			if p.Message == "" {
				t.Fatal("a problem without a message")
			}
		}
		var out bytes.Buffer
		if err := file.Render(&out, problems); err != nil {
			t.Fatal(err)
		}
		if strings.ContainsFunc(out.String(), func(r rune) bool { return r < ' ' && r != '\n' }) {
			t.Fatalf("a control character reached the terminal: %q", out.String())
		}
	})
}
