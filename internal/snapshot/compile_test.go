package snapshot

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/internal/config"
	"countersign/internal/policy"
	"countersign/internal/testpki"
)

// The good configuration that every wrong one differs from in one place.
const good = `trust_stores:
  clients:
    ca_bundle: {file: ca.pem}
    revocation: {crls: [{file: ca.crl}]}
  internal: {ca_bundle: {file: ca.pem}}
listeners:
  public:
    listen: 127.0.0.1:8443
    protocol: https
    hosts:
      - names: [a.test, "*.w.test"]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes: [{upstream: api}]
      - names: [off.test]
        certificate: {cert: off.pem, key: off.key}
        client_auth: {mode: off}
        routes: [{match: {path: /x}, upstream: api}, {upstream: tls}]
  plain:
    listen: 127.0.0.1:8080
    protocol: http
    hosts: [{names: [p.test], routes: [{upstream: api}]}]
  through:
    listen: 127.0.0.1:8444
    protocol: passthrough
    hosts: [{names: [t.test], upstream: bytes}]
upstreams:
  api: {targets: ["http://127.0.0.1:1", "http://127.0.0.1:2"]}
  tls:
    targets: ["https://127.0.0.1:3"]
    tls: {server_name: api.test, trust_store: internal, client_certificates: [{cert: edge.pem, key: edge.key}]}
  bytes: {targets: ["tcp://127.0.0.1:4"]}
`

// bench is a folder with what good names, and what wrong ones name.
type bench struct {
	t   testing.TB
	dir string
	ca  *testpki.Cert
}

func newBench(t testing.TB) *bench {
	b := &bench{t, t.TempDir(), testpki.New(t)}
	server := b.ca.Server("a.test", testpki.DNS("*.w.test", "off.test"), testpki.Lifetime(90*24*time.Hour))
	off := b.ca.Server("off.test", testpki.Lifetime(90*24*time.Hour))
	edge := b.ca.Client("edge", testpki.Lifetime(90*24*time.Hour))
	other := testpki.New(t)
	weak := b.ca.Server("a.test", testpki.RSA(1024))
	expired := b.ca.Server("a.test", testpki.DNS("*.w.test"), testpki.Expired())
	purpose := b.ca.Server("a.test", testpki.DNS("*.w.test"), testpki.Lifetime(90*24*time.Hour), testpki.EKU(x509.ExtKeyUsageClientAuth))
	old := testpki.New(t, testpki.Expired())
	for name, data := range map[string][]byte{
		"ca.pem": b.ca.PEM(), "ca.crl": b.ca.CRL(), "other.pem": other.PEM(), "other.crl": other.CRL(),
		"off.pem": off.PEM(), "off.key": off.KeyPEM(), "server.pem": server.PEM(), "server.key": server.KeyPEM(), "edge.pem": edge.PEM(), "edge.key": edge.KeyPEM(),
		"weak.pem": weak.PEM(), "weak.key": weak.KeyPEM(), "expired.pem": expired.PEM(), "expired.key": expired.KeyPEM(), "purpose.pem": purpose.PEM(), "purpose.key": purpose.KeyPEM(),
		"empty.pem": nil, "cut.der": b.ca.DER()[:200], "half.pem": b.ca.PEM()[:300], "twice.pem": append(b.ca.PEM(), b.ca.PEM()...),
		"forged.crl": b.ca.CRL(testpki.SignedBy(other), testpki.NoAKI()), "delta.crl": b.ca.CRL(testpki.CRLExt(testpki.DeltaIndicator())), "oldca.pem": append(old.PEM(), b.ca.PEM()...),
		"text.pem": []byte("hello\n"), "old.crl": b.ca.CRL(testpki.ThisUpdate(time.Now().Add(-48*time.Hour)), testpki.NextUpdate(time.Now().Add(-time.Hour))),
	} {
		b.write(name, data)
	}
	if err := os.Symlink("nowhere", filepath.Join(b.dir, "dangling.pem")); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) write(name string, data []byte) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), data, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) compile(yaml string) (*Snapshot, config.Problems) {
	file, problems := config.Parse("countersign.yaml", []byte(yaml))
	s, _, problems := Compile(file, problems, Env{Dir: b.dir, Now: time.Now()})
	return s, problems
}

func TestCompileGood(t *testing.T) {
	b := newBench(t)
	s, problems := b.compile(good)
	if s == nil || len(problems) != 0 {
		t.Fatalf("problems: %v", problems)
	}
	if s, problems := b.compile(strings.NewReplacer("127.0.0.1:8443", "127.0.0.1:0", "127.0.0.1:8080", "127.0.0.1:0").Replace(good)); s == nil {
		t.Errorf("two listeners whose port the system chooses: %v", problems)
	}
	public := s.Listeners["public"]
	for name, want := range map[string]string{"a.test": "a.test", "x.w.test": "a.test", "off.test": "off.test", "x.y.w.test": "", "w.test": "", "b.test": "", "": "", "*.w.test": ""} {
		got := ""
		if h := public.Host([]byte(name)); h != nil {
			got = h.Name
		}
		if got != want {
			t.Errorf("A20/%q leads to %q, expected %q", name, got, want)
		}
	}
	a, off := public.Hosts[0], public.Hosts[1]
	if a.Auth.Mode != policy.Require || a.Auth.Store == nil || a.Auth.Hints == nil || off.Auth.Mode != policy.Off || off.Auth.Store != nil || off.Auth.Hints != nil {
		t.Errorf("client auth: %+v %+v", a.Auth, off.Auth)
	}
	if a.Policy == off.Policy || a.Policy == "" || off.Policy == "" || s.Listeners["plain"].Hosts[0].Policy == off.Policy {
		t.Errorf("A43/policy ids: %q %q %q", a.Policy, off.Policy, s.Listeners["plain"].Hosts[0].Policy)
	}
	if public.TLS.MinVersion != tls.VersionTLS12 || public.Limits.Handshake != 10*time.Second || public.Limits.Connections != 20000 || s.Drain != 30*time.Second {
		t.Errorf("defaults: %+v %+v %v", public.TLS, public.Limits, s.Drain)
	}
	var text bytes.Buffer
	if err := s.Describe(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a.test *.w.test", "only clients whose certificate verifies, else alert", "nobody is asked", "nobody: unrecognized_name", "nothing is decrypted"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is not in the description:\n%s", want, text.String())
		}
	}
}

// TestCompileErrors has a row for each rule of the compiler: what stands instead of what, where the problem is told, and
// a part of how. Each must be an error, so that nothing half understood is served.
func TestCompileErrors(t *testing.T) {
	b := newBench(t)
	const (
		auth  = "client_auth: {mode: require, trust_store: clients}"
		pair  = "certificate: {cert: server.pem, key: server.key}"
		host0 = "listeners.public.hosts[0]"
		store = "trust_stores.clients"
	)
	for _, c := range []struct{ id, name, old, new, path, message string }{
		{"A22", "CA missing", "{file: ca.pem}\n    rev", "{file: no.pem}\n    rev", store + ".ca_bundle.file", "cannot read no.pem: no such file"},
		{"A22", "CA empty", "{file: ca.pem}\n    rev", "{file: empty.pem}\n    rev", store + ".ca_bundle.file", "empty.pem is empty"},
		{"A22", "CA a folder", "{file: ca.pem}\n    rev", "{file: .}\n    rev", store + ".ca_bundle.file", "not a regular file"},
		{"A22", "CA a dangling link", "{file: ca.pem}\n    rev", "{file: dangling.pem}\n    rev", store + ".ca_bundle.file", "cannot read dangling.pem"},
		{"A22", "CA a device", "{file: ca.pem}\n    rev", "{file: /dev/zero}\n    rev", store + ".ca_bundle.file", "not a regular file"},
		{"A22", "CA in DER, cut", "{file: ca.pem}\n    rev", "{file: cut.der}\n    rev", store + ".ca_bundle.file", "CA bundle"},
		{"A22", "CA cut", "{file: ca.pem}\n    rev", "{file: half.pem}\n    rev", store + ".ca_bundle.file", "END line"},
		{"B24", "CA is text", "{file: ca.pem}\n    rev", "{file: text.pem}\n    rev", store + ".ca_bundle.file", "found none"},
		{"B05", "CA is a leaf", "{file: ca.pem}\n    rev", "{file: server.pem}\n    rev", store + ".ca_bundle.file", "expected a CA certificate"},
		{"B24", "CA is a list", "{file: ca.pem}\n    rev", "{file: ca.crl}\n    rev", store + ".ca_bundle.file", "CA bundle"},
		{"B25", "no CA bundle", "    ca_bundle: {file: ca.pem}\n    rev", "    rev", store, "ca_bundle"},
		{"C03", "list forged", "ca.crl", "forged.crl", store, "did not sign"},
		{"C07", "list a delta", "ca.crl", "delta.crl", store + ".revocation.crls[0].file", "delta"},
		{"A22", "list missing", "ca.crl", "no.crl", store + ".revocation.crls[0].file", "cannot read no.crl"},
		{"A22", "list empty", "ca.crl", "empty.pem", store + ".revocation.crls[0].file", "is empty"},
		{"A22", "list a certificate", "ca.crl", "ca.pem", store + ".revocation.crls[0].file", "CERTIFICATE"},
		{"B25", "no lists", "crls: [{file: ca.crl}]", "crls: []", store + ".revocation.crls", "has no value"},
		{"C04", "grace without time", "[{file: ca.crl}]", "[{file: ca.crl}], stale: {policy: grace}", store + ".revocation.stale", "without a grace time"},
		{"C04", "time without grace", "[{file: ca.crl}]", "[{file: ca.crl}], stale: {policy: ignore, grace: 1h}", store + ".revocation.stale.grace", "no meaning"},
		{"B20", "depth", "    revocation", "    accept: {max_depth: 11}\n    revocation", store + ".accept.max_depth", "never accepted"},
		{"B20", "depth negative", "    revocation", "    accept: {max_depth: -1}\n    revocation", store + ".accept.max_depth", "nothing negative"},
		{"B18", "presented", "    revocation", "    accept: {max_presented: 11}\n    revocation", store + ".accept.max_presented", "never accepted"},
		{"B23", "hints missing", "    revocation", "    hints: {file: no.pem}\n    revocation", store + ".hints.file", "cannot read"},
		{"B23", "hints are no certificates", "    revocation", "    hints: {file: text.pem}\n    revocation", store + ".hints.file", "found none"},

		{"A23", "require without store", auth, "client_auth: {mode: require}", host0 + ".client_auth", "needs a trust_store"},
		{"A23", "request without store", auth, "client_auth: {mode: request}", host0 + ".client_auth", "needs a trust_store"},
		{"A23", "store unknown", auth, "client_auth: {mode: require, trust_store: client}", host0 + ".client_auth.trust_store", `no trust store is named "client"`},
		{"A24", "off with a store", auth, "client_auth: {mode: off, trust_store: clients}", host0 + ".client_auth.trust_store", "no meaning with mode off"},
		{"A24", "no client_auth", "        " + auth + "\n", "", host0, "needs client_auth"},
		{"B25", "empty client_auth", auth, "client_auth: {}", host0 + ".client_auth", "has no value"},
		{"A24", "mode unknown", auth, "client_auth: {mode: required, trust_store: clients}", host0 + ".client_auth.mode", "required"},

		{"H02", "certificate missing", pair, "certificate: {cert: no.pem, key: server.key}", host0 + ".certificate.cert", "cannot read no.pem"},
		{"H02", "key missing", pair, "certificate: {cert: server.pem, key: no.key}", host0 + ".certificate.key", "cannot read no.key"},
		{"H03", "mismatch", pair, "certificate: {cert: server.pem, key: edge.key}", host0 + ".certificate", "server.pem and edge.key"},
		{"H03", "swapped", pair, "certificate: {cert: server.key, key: server.pem}", host0 + ".certificate", "server.key and server.pem"},
		{"H05", "certificate empty", pair, "certificate: {cert: empty.pem, key: server.key}", host0 + ".certificate.cert", "is empty"},
		{"B16", "weak key", pair, "certificate: {cert: weak.pem, key: weak.key}", host0 + ".certificate", "RSA of 1024"},
		{"H03", "no certificate", "        " + pair + "\n        " + auth, "        " + auth, host0, "needs a certificate"},
		{"H03", "both kinds", pair, pair + "\n        certificates: [{cert: server.pem, key: server.key}]", host0 + ".certificate", "both certificate and certificates"},

		{"A20", "name twice in a host", "names: [off.test]", "names: [off.test, off.test]", "listeners.public.hosts[1].names[1]", "twice"},
		{"A20", "name in two hosts", "names: [off.test]", "names: [A.TEST.]", "listeners.public.hosts[1].names[0]", "twice"},
		{"A20", "wildcard in two hosts", "names: [off.test]", "names: ['*.W.test']", "listeners.public.hosts[1].names[0]", "twice"},
		{"A14", "name with a port", "names: [off.test]", "names: ['off.test:443']", "listeners.public.hosts[1].names[0]", "port"},
		{"A14", "name with Unicode", "names: [off.test]", "names: [öff.test]", "listeners.public.hosts[1].names[0]", "ASCII"},
		{"A21", "name is a star", "names: [off.test]", "names: ['*']", "listeners.public.hosts[1].names[0]", "wildcard"},
		{"A21", "wildcard of a top-level domain", "names: [off.test]", "names: ['*.test']", "listeners.public.hosts[1].names[0]", "top-level"},
		{"A21", "wildcard inside", "names: [off.test]", "names: ['a*.w.test']", "listeners.public.hosts[1].names[0]", "wildcard"},
		{"B25", "no names", "names: [off.test]", "names: []", "listeners.public.hosts[1].names", "has no value"},
		{"A18", "default_host unknown", "    hosts:\n      - names: [a.test", "    default_host: b.test\n    hosts:\n      - names: [a.test", "listeners.public.default_host", "named \"b.test\""},

		{"H02", "address", "127.0.0.1:8443", "localhost", "listeners.public.listen", "not an address"},
		{"H02", "port", "127.0.0.1:8443", "127.0.0.1:99999", "listeners.public.listen", "not an address"},
		{"H02", "port by name", "127.0.0.1:8443", "127.0.0.1:https", "listeners.public.listen", "not an address"},
		{"H02", "address twice", "127.0.0.1:8444", "127.0.0.1:8443", "listeners.through.listen", "already listens"},
		{"H02", "ops address", "trust_stores:", "ops: {listen: nowhere}\ntrust_stores:", "ops.listen", "not an address"},
		{"A25", "client auth on http", "[{names: [p.test],", "[{names: [p.test], client_auth: {mode: require, trust_store: clients},", "listeners.plain.hosts[0].client_auth", "no meaning"},
		{"A25", "certificate on http", "[{names: [p.test],", "[{names: [p.test], certificate: {cert: server.pem, key: server.key},", "listeners.plain.hosts[0].certificate", "no meaning"},
		{"A25", "identity on http", "[{names: [p.test],", "[{names: [p.test], identity_headers: [alb],", "listeners.plain.hosts[0].identity_headers", "no meaning"},
		{"A25", "tls on http", "    protocol: http\n", "    protocol: http\n    tls: {policy: modern}\n", "listeners.plain.tls", "no meaning"},
		{"A25", "upstream on an http host", "[{names: [p.test],", "[{names: [p.test], upstream: api,", "listeners.plain.hosts[0].upstream", "no meaning"},
		{"A25", "client auth on passthrough", "{names: [t.test],", "{names: [t.test], client_auth: {mode: require, trust_store: clients},", "listeners.through.hosts[0].client_auth", "no meaning"},
		{"A25", "client auth off on passthrough", "{names: [t.test],", "{names: [t.test], client_auth: {mode: off},", "listeners.through.hosts[0].client_auth", "no meaning"},
		{"A25", "routes on passthrough", "{names: [t.test],", "{names: [t.test], routes: [{upstream: api}],", "listeners.through.hosts[0].routes", "no meaning"},
		{"A25", "passthrough without upstream", "{names: [t.test], upstream: bytes}", "{names: [t.test]}", "listeners.through.hosts[0]", "needs an upstream"},
		{"A25", "passthrough to http", "upstream: bytes}", "upstream: api}", "listeners.through.hosts[0].upstream", "has http targets"},
		{"A25", "http to tcp", "routes: [{upstream: api}]}]", "routes: [{upstream: bytes}]}]", "listeners.plain.hosts[0].routes[0].upstream", "has tcp targets"},

		{"A21", "no routes", "        routes: [{upstream: api}]\n      - names", "      - names", host0, "no routes"},
		{"B25", "empty routes", "        routes: [{upstream: api}]\n      - names", "        routes: []\n      - names", host0 + ".routes", "has no value"},
		{"A21", "upstream unknown", "routes: [{upstream: api}]\n      - names", "routes: [{upstream: apl}]\n      - names", host0 + ".routes[0].upstream", `no upstream is named "apl"`},
		{"A21", "route never reached", "[{match: {path: /x}, upstream: api}, {upstream: tls}]", "[{upstream: tls}, {match: {path: /x}, upstream: api}]", "listeners.public.hosts[1].routes", "never reached"},
		{"A26", "route encoded", "path: /x}", "path: /%61dmin}", "listeners.public.hosts[1].routes", "percent-encoded"},
		{"A26", "route with dots", "path: /x}", "path: /a/../b}", "listeners.public.hosts[1].routes", "dot segment"},
		{"A26", "route without slash", "path: /x}", "path: x}", "listeners.public.hosts[1].routes", "start with /"},

		{"A41", "1.2 under tls13", "    protocol: https\n", "    protocol: https\n    tls: {policy: tls13, min_version: '1.2'}\n", "listeners.public.tls.min_version", "contradicts"},
		{"A41", "cipher unknown", "    protocol: https\n", "    protocol: https\n    tls: {ciphers: [ECDHE-RSA-AES128-GCM-SHA256]}\n", "listeners.public.tls.ciphers[0]", "no TLS 1.2 cipher suite is named"},
		{"A41", "cipher broken", "    protocol: https\n", "    protocol: https\n    tls: {ciphers: [TLS_RSA_WITH_RC4_128_SHA]}\n", "listeners.public.tls.ciphers[0]", "broken or weak"},
		{"A41", "cipher 3DES", "    protocol: https\n", "    protocol: https\n    tls: {ciphers: [TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA]}\n", "listeners.public.tls.ciphers[0]", "broken or weak"},
		{"A41", "cipher of TLS 1.3", "    protocol: https\n", "    protocol: https\n    tls: {ciphers: [TLS_AES_128_GCM_SHA256]}\n", "listeners.public.tls.ciphers[0]", "cannot be chosen"},
		{"A41", "ciphers under tls13", "    protocol: https\n", "    protocol: https\n    tls: {min_version: '1.3', ciphers: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]}\n", "listeners.public.tls.ciphers", "TLS 1.3 only"},
		{"A41", "group unknown", "    protocol: https\n", "    protocol: https\n    tls: {groups: [P-255]}\n", "listeners.public.tls.groups[0]", "no key exchange group"},

		{"A24", "https without tls", "    tls: {server_name: api.test, trust_store: internal, client_certificates: [{cert: edge.pem, key: edge.key}]}\n", "", "upstreams.tls", "need tls"},
		{"A24", "http with tls", `["http://127.0.0.1:1", "http://127.0.0.1:2"]}`, `["http://127.0.0.1:1"], tls: {server_name: x.test, trust_store: internal}}`, "upstreams.api.tls", "no meaning for http"},
		{"A24", "target's store unknown", "trust_store: internal", "trust_store: interval", "upstreams.tls.tls.trust_store", "did you mean|no trust store is named"},
		{"B11", "server name a wildcard", "server_name: api.test", "server_name: '*.w.test'", "upstreams.tls.tls.server_name", "not a host name"},
		{"B11", "server name not one", "server_name: api.test", "server_name: 'api test'", "upstreams.tls.tls.server_name", "not a host name"},
		{"H03", "edge mismatch", "{cert: edge.pem, key: edge.key}", "{cert: edge.pem, key: server.key}", "upstreams.tls.tls.client_certificates[0]", "edge.pem and server.key"},
		{"E30", "target with a path", `"http://127.0.0.1:2"`, `"http://127.0.0.1:2/x"`, "upstreams.api.targets[1]", "not the address of a target"},
		{"E30", "target with a user", `"http://127.0.0.1:2"`, `"http://u@127.0.0.1:2"`, "upstreams.api.targets[1]", "not the address of a target"},
		{"E30", "target without scheme", `"http://127.0.0.1:2"`, `"127.0.0.1:2"`, "upstreams.api.targets[1]", "not the address of a target"},
		{"E30", "target of another kind", `"http://127.0.0.1:2"`, `"file:///etc/passwd"`, "upstreams.api.targets[1]", "not the address of a target"},
		{"E30", "target with port 0", `"http://127.0.0.1:2"`, `"http://127.0.0.1:0"`, "upstreams.api.targets[1]", "no port from 1"},
		{"E30", "tcp target without port", `"tcp://127.0.0.1:4"`, `"tcp://127.0.0.1"`, "upstreams.bytes.targets[0]", "no port from 1"},
		{"E30", "two schemes", `"http://127.0.0.1:2"`, `"https://127.0.0.1:2"`, "upstreams.api.targets[1]", "have one scheme"},
		{"E30", "target twice", `"http://127.0.0.1:2"`, `"http://127.0.0.1:1/"`, "upstreams.api.targets[1]", "twice"},
		{"F08", "header bytes", "    protocol: http\n", "    protocol: http\n    limits: {header_bytes: 2MiB}\n", "listeners.plain.limits.header_bytes", "header_bytes"},
		{"F02", "negative connections", "    protocol: http\n", "    protocol: http\n    limits: {connections: -1}\n", "listeners.plain.limits.connections", "nothing negative"},
	} {
		t.Run(c.id+"/"+c.name, func(t *testing.T) {
			yaml := strings.Replace(good, c.old, c.new, 1)
			if yaml == good {
				t.Fatalf("%q is not in the good configuration", c.old)
			}
			s, problems := b.compile(yaml)
			if s != nil {
				t.Errorf("there is a snapshot")
			}
			for _, p := range problems {
				if p.Path != c.path || p.Warning || p.Pos.Line == 0 {
					continue
				}
				for want := range strings.SplitSeq(c.message, "|") {
					if strings.Contains(p.Message, want) || strings.Contains(p.Next, want) {
						return
					}
				}
			}
			t.Errorf("no error at %s with %q; got:\n%v", c.path, c.message, problems)
		})
	}
}

// TestNoneNamed: where there is nothing that could have been meant, that is said, and no list without entries.
func TestNoneNamed(t *testing.T) {
	b := newBench(t)
	_, problems := b.compile(`listeners:
  public:
    listen: 127.0.0.1:8443
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: s}
        routes: [{upstream: u}]
`)
	for _, want := range []string{`no trust store is named "s"; there is none`, `no upstream is named "u"; there is none`} {
		if !slices.ContainsFunc(problems, func(p config.Problem) bool { return p.Message == want && !p.Warning }) {
			t.Errorf("nobody says %q:\n%v", want, problems)
		}
	}
}

// TestCompileWarnings: what is odd and served nevertheless is told.
func TestCompileWarnings(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct{ id, name, old, new, path, message string }{
		{"B24", "CA twice", "{file: ca.pem}\n    rev", "{file: twice.pem}\n    rev", "trust_stores.clients.ca_bundle.file", "same as block 1"},
		{"B14", "CA expired", "{file: ca.pem}\n    rev", "{file: oldca.pem}\n    rev", "trust_stores.clients.ca_bundle.file", "expired"},
		{"C10", "list of a stranger", "[{file: ca.crl}]", "[{file: ca.crl}, {file: other.crl}]", "trust_stores.clients", "is of no CA in this trust store"},
		{"C04", "list expired", "[{file: ca.crl}]", "[{file: old.crl}]", "trust_stores.clients.revocation.crls[0].file", "expired at"},
		{"G01", "ops for everybody", "trust_stores:", "ops: {listen: ':9901'}\ntrust_stores:", "ops.listen", "not a loopback address"},
		{"A44", "name on both", "names: [t.test]", "names: [a.test]", "listeners.through", "passed through here and terminated"},
		{"B25", "store unused", "  internal:", "  spare: {ca_bundle: {file: ca.pem}}\n  internal:", "trust_stores.spare", "not used"},
		{"B25", "upstream unused", "  bytes:", "  spare: {targets: ['http://127.0.0.1:9']}\n  bytes:", "upstreams.spare", "not used"},
		{"H03", "certificate expired", "certificate: {cert: server.pem, key: server.key}", "certificate: {cert: expired.pem, key: expired.key}", "listeners.public.hosts[0].certificate", "expired at"},
		{"H03", "certificate of another name", "names: [off.test]", "names: [elsewhere.test]", "listeners.public.hosts[1].certificate", "does not cover"},
		{"H03", "certificate for clients", "certificate: {cert: server.pem, key: server.key}", "certificate: {cert: purpose.pem, key: purpose.key}", "listeners.public.hosts[0].certificate", "extendedKeyUsage without serverAuth"},
	} {
		t.Run(c.id+"/"+c.name, func(t *testing.T) {
			yaml := strings.Replace(good, c.old, c.new, 1)
			if yaml == good {
				t.Fatalf("%q is not in the good configuration", c.old)
			}
			s, problems := b.compile(yaml)
			if s == nil {
				t.Fatalf("refused: %v", problems)
			}
			for _, p := range problems {
				if p.Path == c.path && p.Warning && strings.Contains(p.Message, c.message) {
					return
				}
			}
			t.Errorf("no warning at %s with %q; got:\n%v", c.path, c.message, problems)
		})
	}
}

// TestCompileTellsAll: one run tells every problem, in the order of the file.
func TestCompileTellsAll(t *testing.T) {
	b := newBench(t)
	yaml := strings.NewReplacer("ca.crl", "no.crl", "mode: off", "mode: require", "path: /x", "path: x", "server_name: api.test", "server_name: '*'").Replace(good)
	_, problems := b.compile(yaml)
	var paths []string
	line := 0
	for _, p := range problems {
		if p.Pos.Line < line {
			t.Errorf("line %d after line %d", p.Pos.Line, line)
		}
		line = p.Pos.Line
		paths = append(paths, p.Path)
	}
	all := strings.Join(paths, " ")
	for _, want := range []string{"trust_stores.clients.revocation.crls[0].file", "listeners.public.hosts[1].client_auth", "listeners.public.hosts[1].routes", "upstreams.tls.tls.server_name"} {
		if !strings.Contains(all, want) {
			t.Errorf("%s is not among %s", want, all)
		}
	}
}

// TestHash: it changes with the file and every file it names, and with nothing else.
func TestHash(t *testing.T) {
	b := newBench(t)
	hash := func(yaml string) string {
		t.Helper()
		s, problems := b.compile(yaml)
		if s == nil {
			t.Fatalf("refused: %v", problems)
		}
		return s.Hash
	}
	first := hash(good)
	for range 20 { // maps have no order
		if hash(good) != first {
			t.Fatal("H01/the hash of the same configuration differs")
		}
	}
	b.write("unrelated.pem", []byte("x"))
	if hash(good) != first {
		t.Error("H01/a file that is not named counts")
	}
	if hash(good+"# a remark\n") == first {
		t.Error("H01/the text of the configuration does not count")
	}
	for _, name := range []string{"ca.pem", "ca.crl", "server.pem", "server.key", "edge.pem", "edge.key"} {
		full := filepath.Join(b.dir, name)
		old, err := os.ReadFile(full)
		if err != nil {
			t.Fatal(err)
		}
		changed := append([]byte("# renewed\n"), old...)
		if name == "ca.crl" {
			changed = b.ca.CRL(testpki.Number(2))
		}
		b.write(name, changed)
		if hash(good) == first {
			t.Errorf("H01/%s does not count", name)
		}
		b.write(name, old)
		if hash(good) != first {
			t.Errorf("H01/%s is back, the hash is not", name)
		}
	}
}

// TestVersion: a client-auth policy has another version exactly when a verdict might differ.
func TestVersion(t *testing.T) {
	b := newBench(t)
	version := func(yaml string) string {
		t.Helper()
		s, problems := b.compile(yaml)
		if s == nil {
			t.Fatalf("refused: %v", problems)
		}
		return s.Listeners["public"].Hosts[0].Auth.Version()
	}
	first := version(good)
	if version(good+"drain: 5s\n") != first {
		t.Error("D20/another setting changes the version")
	}
	if version(strings.Replace(good, "mode: require", "mode: request", 1)) == first {
		t.Error("A34/the mode does not count")
	}
	if version(strings.Replace(good, "    revocation", "    accept: {eku: allow_absent}\n    revocation", 1)) == first {
		t.Error("D20/the acceptance rules do not count")
	}
	b.write("ca.crl", b.ca.CRL(testpki.Number(2)))
	if version(good) == first {
		t.Error("D20/the list does not count")
	}
}
