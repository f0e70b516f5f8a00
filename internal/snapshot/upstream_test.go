package snapshot

import (
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/internal/config"
	"countersign/internal/upstream"
)

// pool is good with other settings of upstream api.
func pool(settings string) string {
	return strings.Replace(good, `  api: {targets: ["http://127.0.0.1:1", "http://127.0.0.1:2"]}`, "  api: {"+settings+"}", 1)
}

const twoTargets = `targets: ["http://127.0.0.1:1", "http://127.0.0.1:2"]`

func TestUpstreamErrors(t *testing.T) {
	b := newBench(t)
	b.write("short.txt", []byte("0123456789\n"))
	b.write("key.txt", []byte(strings.Repeat("k", 32)+"\n"))
	with := func(s string) string { return pool(twoTargets + ", " + s) }
	bytes := func(s string) string {
		return strings.Replace(good, `"tcp://127.0.0.1:4"]`, `"tcp://127.0.0.1:4"], `+s, 1)
	}
	for _, tt := range []struct{ name, yaml, path, message string }{
		{"target without url", pool(`targets: [{weight: 3}]`), "targets[0]", `missing required key "url"`},
		{"target with two words", pool(`targets: [{url: "http://127.0.0.1:1", wait: 3}]`), "targets[0].wait", "unknown key"},
		{"negative weight", pool(`targets: [{url: "http://127.0.0.1:1", weight: -1}]`), "targets[0].weight", "nothing negative"},
		{"weight too large", pool(`targets: [{url: "http://127.0.0.1:1", weight: 1000}]`), "targets[0].weight", "too large"},
		{"priority too large", pool(`targets: [{url: "http://127.0.0.1:1", priority: 10}]`), "targets[0].priority", "too large"},
		{"unknown state", pool(`targets: [{url: "http://127.0.0.1:1", state: drain}]`), "targets[0].state", "expected one of: active, draining, disabled"},
		{"E30/target in a mapping", pool(`targets: [{url: "http://127.0.0.1:1/x"}]`), "targets[0]", "not the address of a target"},
		{"F24/too many targets", pool(`targets: [` + strings.Repeat(`"http://127.0.0.1:1", `, 1001) + `]`), "targets", "at most 1000"},
		{"unknown balance", with("balance: roundrobin"), "balance", "expected one of"},
		{"maglev without hash", with("balance: maglev"), "balance", "needs to know what to hash"},
		{"hash without maglev", with("hash: source"), "hash", "no meaning without"},
		{"hash on a header without name", with("balance: maglev, hash: {on: header}"), "hash", "needs the name"},
		{"hash on a header, short", with("balance: ring_hash, hash: header"), "hash", "needs the name"},
		{"hash on source with a name", with("balance: ring_hash, hash: {on: source, name: x}"), "hash.name", "no meaning"},
		{"hash on a name that cannot be", with(`balance: ring_hash, hash: {on: header, name: "a b"}`), "hash.name", "cannot be the name"},
		{"slow start with keys", with("balance: maglev, hash: source, slow_start: 10s"), "slow_start", "no meaning"},
		{"slow start too slow", with("slow_start: 2h"), "slow_start", "is not one"},
		{"failover over 100", with("failover_threshold: 101"), "failover_threshold", "in percent"},
		{"panic over 100", with("panic_threshold: 101"), "panic_threshold", "in percent"},
		{"sticky without a way", with("sticky: {client_certificate: false}"), "sticky", "expected one of them"},
		{"sticky in two ways", with("sticky: {client_certificate: true, cookie: {name: x}}"), "sticky", "expected one of them"},
		{"cookie name", with(`sticky: {cookie: {name: "a=b"}}`), "sticky.cookie.name", "cannot be the name"},
		{"cookie lifetime", with("sticky: {cookie: {lifetime: 169h}}"), "sticky.cookie.lifetime", "out of bounds"},
		{"cookie lifetime below a second", with("sticky: {cookie: {lifetime: 1ms}}"), "sticky.cookie.lifetime", "out of bounds"},
		{"cookie domain", with("sticky: {cookie: {domain: 'a.test; Secure'}}"), "sticky.cookie.domain", "not a host name"},
		{"cookie domain with a wildcard", with("sticky: {cookie: {domain: '*.test'}}"), "sticky.cookie.domain", "not a host name"},
		{"__Host- with domain", with("sticky: {cookie: {name: __Host-s, domain: a.test}}"), "sticky.cookie.domain", "__Host-"},
		{"same_site", with("sticky: {cookie: {same_site: never}}"), "sticky.cookie.same_site", "expected one of"},
		{"short key", with("sticky: {cookie: {key: {file: short.txt}}}"), "sticky.cookie.key", "has 10 bytes, expected at least 32"},
		{"two keys", with("sticky: {cookie: {key: {file: key.txt, env: X}}}"), "sticky.cookie.key", "one of them"},
		{"key that is not there", with("sticky: {cookie: {key: {file: nowhere}}}"), "sticky.cookie.key.file", "cannot read"},
		{"key variable that is not set", with("sticky: {cookie: {key: {env: COUNTERSIGN_NO_SUCH}}}"), "sticky.cookie.key.env", "not set"},
		{"queue_timeout without a queue", with("queue_timeout: 2s"), "queue_timeout", "no meaning without max_pending"},
		{"F17/endless queue", with("max_pending: 100001"), "max_pending", "holds a connection"},
		{"max_pending 0", with("max_pending: 0"), "max_pending", "zero is neither"},
		{"F17/too many attempts", with("retries: {attempts: 6}"), "retries.attempts", "sixth"},
		{"F17/budget over 100", with("retries: {budget_percent: 101}"), "retries.budget_percent", "budget_percent is 101"},
		{"H17/refresh below the floor", with("dns: {refresh: 4s}"), "dns.refresh", "keep the resolver busy"},
		{"outlier off", with("outlier: off"), "outlier", "expected one of: on"},
		{"H15/everybody out", with("outlier: {max_ejection_percent: 51}"), "outlier.max_ejection_percent", "would not bear"},
		{"ejection times", with("outlier: {base_ejection_time: 10m}"), "outlier.max_ejection_time", "shorter than"},
		{"status", with("health: {path: /h, status: '200,abc'}"), "health.status", "not a list of statuses"},
		{"status backwards", with("health: {path: /h, status: '299-200'}"), "health.status", "not a list of statuses"},
		{"status of interim answers", with("health: {path: /h, status: '100-299'}"), "health.status", "not a list of statuses"},
		{"status with a hole", with("health: {path: /h, status: '200,,301'}"), "health.status", "not a list of statuses"},
		{"bytes by path", bytes("balance: maglev, hash: path"), "hash", "passed on unread"},
		{"bytes by cookie", bytes("sticky: {cookie: {name: x}}"), "sticky.cookie", "passed on unread"},
		{"bytes again", bytes("retries: {attempts: 1}"), "retries", "passed on unread"},
		{"bytes with a total", bytes("timeouts: {total: 10s}"), "timeouts.total", "passed on unread"},
		{"bytes with 5xx", bytes("outlier: {consecutive_5xx: 3}"), "outlier.consecutive_5xx", "passed on unread"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, problems := b.compile(tt.yaml)
			if s != nil {
				t.Error("a snapshot was made")
			}
			for _, p := range problems {
				path, _ := strings.CutPrefix(p.Path, "upstreams.api.")
				path, _ = strings.CutPrefix(path, "upstreams.bytes.")
				if path == tt.path && strings.Contains(p.Message, tt.message) {
					return
				}
			}
			t.Errorf("no problem at %s with %q: %v", tt.path, tt.message, problems)
		})
	}
}

// TestBalanceOneMistake: a word that is not known does not make the key beside it another mistake.
func TestBalanceOneMistake(t *testing.T) {
	b := newBench(t)
	for _, tt := range []struct{ settings, path string }{
		{"balance: magle, hash: source", "balance"},
		{"balance: maglev, hash: sauce", "hash"},
		{"balance: maglev, hash:", "hash"},
		{"balance: maglev, hash: {on: haeder, name: X-Tenant}", "hash.on"},
		{"balance: maglev, hash: {name: X-Tenant}", "hash"},
	} {
		_, problems := b.compile(pool(twoTargets + ", " + tt.settings))
		if len(problems) != 1 || problems[0].Path != "upstreams.api."+tt.path {
			t.Errorf("%s: expected one problem at %s; got:\n%v", tt.settings, tt.path, problems)
		}
	}
}

func TestUpstreamSettings(t *testing.T) {
	b := newBench(t)
	b.write("key.txt", []byte(strings.Repeat("k", 32)+"\n"))
	settings := func(yaml string) *upstream.Settings {
		t.Helper()
		s, problems := b.compile(yaml)
		if problems.HasErrors() {
			t.Fatalf("%v in %s", problems, yaml)
		}
		for _, u := range s.Upstreams {
			if u.Name == "api" {
				return u
			}
		}
		t.Fatal("no upstream api")
		return nil
	}
	t.Run("defaults", func(t *testing.T) {
		s := settings(good)
		if s.Balance != upstream.RoundRobin || s.Targets[1] != (upstream.TargetSettings{Address: "127.0.0.1:2", Weight: 1}) || s.Sticky != nil || s.Outlier != nil ||
			s.Retries.Attempts != 0 || s.MaxPending != 0 || s.MaxRequests != 0 || s.Total != 0 || s.DNS.All || s.DNS.Refresh != 30*time.Second || s.Panic != 0 || s.Failover != 0 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("everything", func(t *testing.T) {
		s := settings(pool(`targets: [{url: "http://127.0.0.1:1", weight: 0, state: draining}, {url: "http://a.test", weight: 5, priority: 1}, {url: "http://[::1]:3", state: disabled}, "http://127.0.0.1:4"],
    balance: least_outstanding_requests, sticky: {cookie: {lifetime: 1h, domain: App.test, same_site: strict, session: true, key: {file: key.txt}}},
    slow_start: 30s, failover_threshold: 40, panic_threshold: 30, outlier: {consecutive_5xx: 0, consecutive_gateway_failure: 3, success_rate: on},
    dns: {mode: all, refresh: 5s}, max_requests: 100, max_pending: 50, queue_timeout: 2s, timeouts: {total: 1m},
    retries: {attempts: 2, per_try_timeout: 3s}, health: {path: /h, status: "200-299,301"}`))
		if got := s.Targets; got[0] != (upstream.TargetSettings{Address: "127.0.0.1:1", State: upstream.Draining}) || got[1] != (upstream.TargetSettings{Address: "a.test:80", Weight: 5, Priority: 1}) ||
			got[2] != (upstream.TargetSettings{Address: "[::1]:3", Weight: 1, State: upstream.Disabled}) || got[3].Weight != 1 {
			t.Errorf("targets: %+v", got)
		}
		if k := s.Sticky; k.Cookie != "countersign_api" || k.Lifetime != time.Hour || k.Domain != "app.test" || k.SameSite != "Strict" || !k.Session || string(k.Key) != strings.Repeat("k", 32) || k.Client {
			t.Errorf("sticky: %+v", k)
		}
		if x := s.Outlier; x.Consecutive5xx != 0 || x.ConsecutiveGateway != 3 || x.ConsecutiveLocal != 5 || x.Interval != 10*time.Second || x.BaseTime != 30*time.Second || x.MaxTime != 300*time.Second || x.MaxPercent != 50 ||
			*x.Rate != (upstream.SuccessRate{Hosts: 5, Requests: 100, Factor: 1900}) {
			t.Errorf("outlier: %+v", x)
		}
		if s.Balance != upstream.LeastRequests || s.SlowStart != 30*time.Second || s.Failover != 40 || s.Panic != 30 || s.DNS != (upstream.DNS{All: true, Refresh: 5 * time.Second}) ||
			s.MaxRequests != 100 || s.MaxPending != 50 || s.QueueTimeout != 2*time.Second || s.Total != time.Minute ||
			s.Retries != (upstream.Retries{Attempts: 2, PerTry: 3 * time.Second, Budget: 20}) || len(s.Health.Status) != 2 || s.Health.Status[1] != (upstream.StatusRange{Min: 301, Max: 301}) {
			t.Errorf("%+v", s)
		}
	})
	t.Run("hash", func(t *testing.T) {
		s := settings(pool(twoTargets + ", balance: maglev, hash: {on: header, name: X-Tenant}"))
		if s.Key != (upstream.Key{On: upstream.KeyHeader, Name: "x-tenant"}) {
			t.Errorf("%+v", s.Key)
		}
		s = settings(pool(twoTargets + ", balance: ring_hash, hash: client_certificate, outlier: on"))
		if s.Key.On != upstream.KeyCertificate || s.Balance != upstream.RingHash || s.Outlier.ConsecutiveLocal != 5 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("nobody is left", func(t *testing.T) {
		s, problems := b.compile(pool(`targets: [{url: "http://127.0.0.1:1", weight: 0}]`))
		if s == nil || len(problems) != 1 || !problems[0].Warning || !strings.Contains(problems[0].Message, "no target takes new requests") {
			t.Errorf("%v", problems)
		}
	})
	t.Run("what is the same", func(t *testing.T) {
		first := settings(good)
		if again := settings(good); again.ID != first.ID || again.Wire != first.Wire {
			t.Error("the same settings have another ID")
		}
		seen := map[string]string{first.ID: "none"}
		for _, more := range []string{"balance: p2c", "max_requests: 5", "max_pending: 5", "outlier: on", "outlier: {consecutive_5xx: 6}", "outlier: {success_rate: on}", "outlier: {success_rate: {minimum_hosts: 3}}",
			"sticky: {client_certificate: true}", "sticky: {cookie: {name: a}}", "sticky: {cookie: {name: b}}", "sticky: {cookie: {name: b, key: {file: key.txt}}}", "health: {path: /a}", "health: {path: /a, status: 200}",
			"retries: {attempts: 1}", "dns: {mode: all}", "timeouts: {total: 1m}", "slow_start: 5s", "panic_threshold: 50", "failover_threshold: 50", "balance: maglev, hash: source", "balance: maglev, hash: path", "max_connections: 7"} {
			s := settings(pool(twoTargets + ", " + more))
			if other := seen[s.ID]; other != "" {
				t.Errorf("%s has the ID of %s", more, other)
			}
			seen[s.ID] = more
			if s.Wire != first.Wire {
				t.Errorf("%s: connections would not be kept", more)
			}
		}
		if s := settings(strings.Replace(good, `"http://127.0.0.1:2"`, `{url: "http://127.0.0.1:2", weight: 2}`, 1)); s.ID == first.ID || s.Wire != first.Wire {
			t.Error("a weight changes the ID, and keeps connections")
		}
	})
	t.Run("A09/what is not", func(t *testing.T) {
		wire := func(yaml string) string {
			s, problems := b.compile(yaml)
			if s == nil {
				t.Fatal(problems)
			}
			for _, u := range s.Upstreams {
				if u.Name == "tls" {
					return u.Wire
				}
			}
			return ""
		}
		first := wire(good)
		for name, yaml := range map[string]string{
			"server_name":         strings.Replace(good, "server_name: api.test", "server_name: b.test", 1),
			"trust store":         strings.Replace(good, "internal: {ca_bundle: {file: ca.pem}}", "internal: {ca_bundle: {file: other.pem}}", 1),
			"client certificates": strings.Replace(good, ", client_certificates: [{cert: edge.pem, key: edge.key}]", "", 1),
		} {
			if wire(yaml) == first {
				t.Errorf("%s: connections would be kept", name)
			}
		}
	})
}

// The forms that the decoder takes for a target.
func TestTargetForms(t *testing.T) {
	f, problems := config.Parse("x.yaml", []byte("listeners: {a: {listen: ':1', protocol: tcp, upstream: u}}\nupstreams:\n  u:\n    targets: [http://a.test, {url: http://b.test, weight: 0}]\n"))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	u := f.Config.Upstreams["u"]
	if u.Targets[0].URL != "http://a.test" || u.Targets[0].Weight != nil || *u.Targets[1].Weight != 0 {
		t.Errorf("%+v %+v", u.Targets[0], u.Targets[1])
	}
}

// TestPoolID: a pool outlasts a reload that does not change it, whatever it is configured with, and no other.
func TestPoolID(t *testing.T) {
	b := newBench(t)
	seen := make(map[string]string)
	for name, more := range map[string]string{
		"plain":             "",
		"PROXY 1":           ", proxy_protocol: {version: v1}",
		"PROXY 2":           ", proxy_protocol: {version: v2}",
		"health":            ", health: {path: /up}",
		"health and PROXY":  ", health: {path: /up}, proxy_protocol: {version: v2}",
		"outlier":           ", outlier: on",
		"outlier and rates": ", outlier: {success_rate: {minimum_hosts: 3}}",
		"sticky":            ", sticky: {cookie: {name: at}}",
		"HTTP/2":            ", protocol_version: http2",
	} {
		var first *upstream.Settings
		for range 3 {
			s, problems := b.compile(pool(twoTargets + more))
			if problems.HasErrors() {
				t.Fatalf("%s: %v", name, problems)
			}
			i := slices.IndexFunc(s.Upstreams, func(u *upstream.Settings) bool { return u.Name == "api" })
			switch u := s.Upstreams[i]; {
			case first == nil:
				first = u
			case u.ID != first.ID || u.Wire != first.Wire:
				t.Errorf("%s: the same configuration makes another pool each time it is compiled", name)
			}
		}
		if other, found := seen[first.ID]; found {
			t.Errorf("%s and %s make the same pool", name, other)
		}
		seen[first.ID] = name
	}
}
