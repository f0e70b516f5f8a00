package snapshot

import (
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/internal/config"
)

// stepGood is a configuration with a step-up that every wrong one differs from in one place.
const stepGood = `trust_stores:
  clients: {ca_bundle: {file: ca.pem}}
  others: {ca_bundle: {file: other.pem}}
listeners:
  public:
    listen: 127.0.0.1:8443
    protocol: https
    hosts:
      - names: [off.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: off}
        routes:
          - match: {path: /admin/*}
            client_auth: {mode: require, trust_store: clients}
            step_up: {to: "https://a.test:9443"}
            allow: client.common_name == "alice"
            upstream: api
          - upstream: api
  certs:
    listen: 127.0.0.1:9443
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        step_up_for: ["https://off.test:8443", "https://off.test"]
        routes: [{upstream: api}]
      - names: ["*.w.test"]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: others}
        routes: [{upstream: api}]
upstreams:
  api: {targets: ["http://127.0.0.1:1"]}
`

func TestStepUp(t *testing.T) {
	b := newBench(t)
	s, problems := b.compile(stepGood)
	if s == nil {
		t.Fatalf("problems: %v", problems)
	}
	app, asks := s.Listeners["public"].Hosts[0], s.Listeners["certs"].Hosts[0]
	step := app.steps[0]
	if step.To != "https://a.test:9443/.well-known/countersign/step-up?ask=" || step.At != asks || step.Lifetime != 15*time.Minute || step.Store == nil || step.Store.Name() != "clients" {
		t.Errorf("step %+v", step)
	}
	if !app.StepsUp || !asks.StepsUp || s.Listeners["certs"].Hosts[1].StepsUp {
		t.Error("which hosts take part")
	}
	if len(s.Sites) != 2 || len(step.Sites) != 2 {
		t.Fatalf("sites %v", step.Sites)
	}
	for authority, origin := range map[string]string{"off.test:443": "https://off.test", "off.test:8443": "https://off.test:8443"} {
		site := step.Sites[authority]
		if site == nil || site.Origin != origin || site.Host != app || site.StepUp != step || s.Sites[site.Key] != site {
			t.Errorf("%s: %+v", authority, site)
		}
	}
	t.Run("keys change with what they stand for, and with nothing else", func(t *testing.T) {
		key := func(old, new string) string {
			t.Helper()
			text := strings.ReplaceAll(stepGood, old, new)
			s, problems := b.compile(text)
			if s == nil || text == stepGood && old != "" {
				t.Fatalf("%s: %v", new, problems)
			}
			for k, site := range s.Sites {
				if site.Origin == "https://off.test" {
					return string(k[:])
				}
			}
			t.Fatalf("%s: no site", new)
			return ""
		}
		base := key("", "")
		if key("upstreams:", "drain: 7s\nupstreams:") != base || key(`"alice"`, `"bob"`) != base {
			t.Error("another key without need")
		}
		for _, c := range [][2]string{{"/admin/*", "/admins/*"}, {"trust_store: clients}\n            step_up", "trust_store: others}\n            step_up"}, {"  public:", "  front:"},
			{`step_up: {to: "https://a.test:9443"}`, `step_up: {to: "https://a.test"}`}} {
			if key(c[0], c[1]) == base {
				t.Errorf("%s: the same key", c[1])
			}
		}
	})
	t.Run("a host of mode request", func(t *testing.T) {
		text := strings.Replace(strings.Replace(stepGood, "{mode: off}", "{mode: request, trust_store: others}", 1), "{mode: require, trust_store: clients}\n            step_up", "{mode: require}\n            step_up", 1)
		s, problems := b.compile(text)
		if s == nil {
			t.Fatal(problems)
		}
		if step := s.Listeners["public"].Hosts[0].steps[0]; step.Store.Name() != "others" {
			t.Errorf("store %s", step.Store.Name())
		}
	})
	t.Run("the same name on two ports", func(t *testing.T) {
		text := strings.NewReplacer("names: [a.test]", "names: [off.test]", "https://a.test:9443", "https://off.test:9443").Replace(stepGood)
		s, problems := b.compile(text)
		if s == nil {
			t.Fatal(problems)
		}
		if step := s.Listeners["public"].Hosts[0].steps[0]; step.At != s.Listeners["certs"].Hosts[0] {
			t.Error("not the host on the other port")
		}
	})
}

// TestStepUpProblems has a row for each way in which a step-up can be wrong.
func TestStepUpProblems(t *testing.T) {
	b := newBench(t)
	const (
		route   = "listeners.public.hosts[0].routes[0]"
		to      = route + ".step_up.to"
		back    = "listeners.certs.hosts[0].step_up_for"
		setting = `step_up: {to: "https://a.test:9443"}`
		origins = `step_up_for: ["https://off.test:8443", "https://off.test"]`
		auth    = "client_auth: {mode: require, trust_store: clients}\n            step_up"
		asks    = "names: [a.test]\n        certificate: {cert: server.pem, key: server.key}\n        client_auth: {mode: require, trust_store: clients}"
	)
	for _, c := range []struct{ name, old, new, path, message string }{
		{"no to", setting, "step_up: {lifetime: 5m}", route + ".step_up", "to"},
		{"empty", setting, "step_up: {}", route + ".step_up", "no value"},
		{"by http", setting, `step_up: {to: "http://a.test:9443"}`, to, "not an https origin"},
		{"with a path", setting, `step_up: {to: "https://a.test:9443/x"}`, to, "not an https origin"},
		{"with a slash", setting, `step_up: {to: "https://a.test:9443/"}`, to, "not an https origin"},
		{"with a query", setting, `step_up: {to: "https://a.test:9443?x"}`, to, "not an https origin"},
		{"with a user", setting, `step_up: {to: "https://a.test@b.test"}`, to, "not an https origin"},
		{"with a line end", setting, `step_up: {to: "https://a.test\r\nX: y"}`, to, "control character"},
		{"in capitals", setting, `step_up: {to: "https://A.test:9443"}`, to, "not an https origin"},
		{"port 443 written out", setting, `step_up: {to: "https://a.test:443"}`, to, "not an https origin"},
		{"an empty port", setting, `step_up: {to: "https://a.test:"}`, to, "not an https origin"},
		{"port 0", setting, `step_up: {to: "https://a.test:0"}`, to, "not an https origin"},
		{"without a scheme", setting, `step_up: {to: "//a.test:9443"}`, to, "not an https origin"},
		{"a backslash", setting, `step_up: {to: "https:\\\\a.test"}`, to, "not an https origin"},
		{"nobody there", setting, `step_up: {to: "https://nowhere.test"}`, to, "no other https host"},
		{"itself", setting, `step_up: {to: "https://off.test"}`, to, "no other https host"},
		{"itself by port", setting, `step_up: {to: "https://off.test:8443"}`, to, "takes no part"},
		{"a host that takes no part", setting, `step_up: {to: "https://x.w.test:9443"}`, to, "takes no part"},
		{"a host that asks nobody", asks, strings.Replace(asks, "mode: require", "mode: request", 1), back, "mode request"},
		{"another origin only", origins, `step_up_for: ["https://x.w.test"]`, to, "no origin of that name"},
		{"not listed", "        " + origins + "\n", "", to, "takes no part"},
		{"an empty list", origins, "step_up_for: []", back, "no value"},
		{"listed by http", origins, `step_up_for: ["http://off.test", "https://off.test"]`, back + "[0]", "not an https origin"},
		{"listed with a wildcard", origins, `step_up_for: ["https://*.test", "https://off.test"]`, back + "[0]", "not an https origin"},
		{"listed twice", origins, `step_up_for: ["https://off.test", "https://off.test"]`, back + "[1]", "twice"},
		{"listed for nobody", origins, `step_up_for: ["https://off.test", "https://x.w.test"]`, back + "[1]", "no route of https://x.w.test"},
		{"too long", setting, `step_up: {to: "https://a.test:9443", lifetime: 16m}`, route + ".step_up.lifetime", "16m"},
		{"too short", setting, `step_up: {to: "https://a.test:9443", lifetime: 1s}`, route + ".step_up.lifetime", "1s"},
		{"no client_auth", "client_auth: {mode: require, trust_store: clients}\n            step_up", "step_up", route + ".step_up", "asks for no certificate"},
		{"no trust store", auth, strings.Replace(auth, ", trust_store: clients", "", 1), route + ".client_auth", "has no trust_store"},
		{"host of mode require", "{mode: off}", "{mode: require, trust_store: clients}", route + ".step_up", "mode require"},
		{"host of mode request_unverified", "{mode: off}", "{mode: request_unverified, trust_store: clients}", route + ".step_up", "mode request_unverified"},
		{"host of mode passthrough_chain", "{mode: off}", "{mode: passthrough_chain}", route + ".step_up", "mode passthrough_chain"},
		{"host without client_auth", "        client_auth: {mode: off}\n", "", "listeners.public.hosts[0]", "needs client_auth"},
		{"wildcard host", "names: [off.test]", `names: [off.test, "*.w.test"]`, route + ".step_up", "no origin"},
		{"trusted proxies", "{mode: off}", "{mode: request, trust_store: clients}\n        trusted_proxies: [{match: {sans: [\"dns:e.test\"]}, identity: rfc9440, trust_store: clients}]", route + ".step_up", "trusted_proxies"},
		{"trusted proxies there", origins, origins + "\n        trusted_proxies: [{match: {sans: [\"dns:e.test\"]}, identity: rfc9440, trust_store: clients}]", back, "trusted_proxies"},
		{"plain listener", "listen: 127.0.0.1:8443\n    protocol: https", "listen: 127.0.0.1:8443\n    protocol: http", route + ".step_up", "no meaning on a listener of protocol http"},
		{"plain listener there", "listen: 127.0.0.1:9443\n    protocol: https", "listen: 127.0.0.1:9443\n    protocol: http", back, "no meaning on a listener of protocol http"},
		{"route on a reserved path", "path: /admin/*", "path: /.well-known/countersign/*", route + ".match.path", "answered by this program"},
		{"route on our path there", "client_auth: {mode: require, trust_store: clients}\n        " + origins + "\n        routes: [{upstream: api}]",
			"client_auth: {mode: require, trust_store: clients}\n        " + origins + "\n        routes: [{match: {path: /.well-known/countersign/step-up}, upstream: api}]", "listeners.certs.hosts[0].routes[0].match.path", "answered by this program"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(stepGood, c.old, c.new, 1)
			if text == stepGood {
				t.Fatal("nothing was replaced")
			}
			s, problems := b.compile(text)
			if s != nil {
				t.Fatal("accepted")
			}
			for _, p := range problems {
				if p.Path == c.path && strings.Contains(p.Message, c.message) && !p.Warning {
					return
				}
			}
			t.Errorf("no problem at %s with %q, but %v", c.path, c.message, problems)
		})
	}
	t.Run("two listeners with the name", func(t *testing.T) {
		more := "\n  more:\n    listen: 127.0.0.1:9444\n    protocol: https\n    hosts:\n      - names: [a.test]\n        certificate: {cert: server.pem, key: server.key}\n        client_auth: {mode: require, trust_store: clients}\n        step_up_for: [\"https://off.test\"]\n        routes: [{upstream: api}]\nupstreams:"
		text := strings.Replace(strings.Replace(stepGood, "\nupstreams:", more, 1), setting, `step_up: {to: "https://a.test"}`, 1)
		if s, problems := b.compile(text); s != nil || !slices.ContainsFunc(problems, func(p config.Problem) bool { return strings.Contains(p.Message, "listeners certs, more") }) {
			t.Errorf("%v", problems)
		}
	})
}
