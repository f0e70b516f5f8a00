package snapshot

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"countersign/internal/config"
	"countersign/internal/identity"
	"countersign/internal/reason"
	"countersign/internal/testpki"
)

const (
	someSum  = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	oneProxy = `trusted_proxies: [{match: {sans: ["dns:edge.test"]}, identity: rfc9440, trust_store: internal}]`
)

// TestProxyProblems has a row for each way in which trusted_proxies can be wrong. Each must be an error: an entry that is
// half understood would let somebody say who he is.
func TestProxyProblems(t *testing.T) {
	b := newBench(t)
	const host, auth = "listeners.public.hosts[0].trusted_proxies", "client_auth: {mode: require, trust_store: clients}"
	entry := func(match, rest string) string {
		return "\n        trusted_proxies: [{match: {" + match + "}, " + rest + "}]"
	}
	good9440 := "identity: rfc9440, trust_store: internal"
	for _, c := range []struct{ id, name, old, new, path, message string }{
		{"A24", "store unknown", auth, auth + entry(`sans: ["dns:a.test"]`, "identity: rfc9440, trust_store: intern"), host + "[0].trust_store", `no trust store is named "intern"`},
		{"A24", "no store", auth, auth + entry(`sans: ["dns:a.test"]`, "identity: rfc9440"), host + "[0]", "trust_store"},
		{"A24", "no identity", auth, auth + entry(`sans: ["dns:a.test"]`, "trust_store: internal"), host + "[0]", "identity"},
		{"A24", "identity that says no certificate", auth, auth + entry(`sans: ["dns:a.test"]`, "identity: x_ssl_client, trust_store: internal"), host + "[0].identity", "x_ssl_client"},
		{"A24", "missing unknown", auth, auth + entry(`sans: ["dns:a.test"]`, good9440+", missing: allow"), host + "[0].missing", "allow"},
		{"A24", "no match", auth, auth + "\n        trusted_proxies: [{" + good9440 + "}]", host + "[0]", "match"},
		{"A24", "empty match", auth, auth + entry("", good9440), host + "[0].match", "has no value"},
		{"A24", "no entries", auth, auth + "\n        trusted_proxies: []", host, "has no value"},
		{"B26", "SHA-1", auth, auth + entry(`sha256: ["`+someSum[:40]+`"]`, good9440), host + "[0].match.sha256[0]", "not a SHA-256"},
		{"B26", "prefix", auth, auth + entry(`sha256: ["`+someSum[:62]+`"]`, good9440), host + "[0].match.sha256[0]", "not a SHA-256"},
		{"B26", "half an octet", auth, auth + entry(`sha256: ["`+someSum[:63]+`"]`, good9440), host + "[0].match.sha256[0]", "not a SHA-256"},
		{"B26", "an octet more", auth, auth + entry(`sha256: ["`+someSum+`00"]`, good9440), host + "[0].match.sha256[0]", "not a SHA-256"},
		{"B26", "no digit", auth, auth + entry(`sha256: ["`+someSum[:63]+`g"]`, good9440), host + "[0].match.sha256[0]", "not a SHA-256"},
		{"B26", "colons at odd places", auth, auth + entry(`sha256: ["0:01`+strings.Repeat(":00", 30)+`0"]`, good9440), host + "[0].match.sha256[0]", "a colon between all octets"},
		{"B26", "some colons", auth, auth + entry(`sha256: ["00:`+someSum[2:]+`"]`, good9440), host + "[0].match.sha256[0]", "not a SHA-256"},
		{"B26", "as openssl prints it, label and all", auth, auth + entry(`sha256: ["sha256 Fingerprint=`+someSum+`"]`, good9440), host + "[0].match.sha256[0]", "not a SHA-256"},
		{"B11", "name without type", auth, auth + entry(`sans: ["edge.test"]`, good9440), host + "[0].match.sans[0]", "begin with dns: or uri:"},
		{"B11", "common name", auth, auth + entry(`sans: ["cn:edge"]`, good9440), host + "[0].match.sans[0]", "begin with dns: or uri:"},
		{"B11", "type in capitals", auth, auth + entry(`sans: ["DNS:edge.test"]`, good9440), host + "[0].match.sans[0]", "begin with dns: or uri:"},
		{"B11", "wildcard", auth, auth + entry(`sans: ["dns:*.edge.test"]`, good9440), host + "[0].match.sans[0]", "wildcard"},
		{"B11", "wildcard in a URI", auth, auth + entry(`sans: ["uri:spiffe://corp.test/*"]`, good9440), host + "[0].match.sans[0]", "wildcard"},
		{"B11", "address", auth, auth + entry(`sans: ["dns:10.0.0.1"]`, good9440), host + "[0].match.sans[0]", "10.0.0.1"},
		{"B11", "no name", auth, auth + entry(`sans: ["dns:"]`, good9440), host + "[0].match.sans[0]", "dns:"},
		{"B11", "no URI", auth, auth + entry(`sans: ["uri:edge.test"]`, good9440), host + "[0].match.sans[0]", "not name a URI"},
		{"B26", "hash twice", auth, auth + entry(`sha256: ["`+someSum+`", "`+strings.ToUpper(someSum)+`"]`, good9440), host + "[0].match.sha256[1]", "already"},
		{"B26", "name twice, in two entries", auth, auth + "\n        trusted_proxies:\n          - {match: {sans: [\"dns:edge.test\"]}, " + good9440 + "}\n          - {match: {sans: [\"dns:EDGE.test.\"]}, " + good9440 + "}", host + "[1].match.sans[0]", "already"},
		{"D07", "append without XFCC", auth, auth + "\n        identity_headers: [xfcc]" + entry(`sans: ["dns:a.test"]`, good9440+", append: true"), host + "[0].append", "no meaning with identity rfc9440"},
		{"D07", "append where nothing is sent", auth, auth + entry(`sans: ["dns:a.test"]`, "identity: xfcc, trust_store: internal, append: true"), host + "[0].append", "sends no X-Forwarded-Client-Cert"},
		{"A39", "mode off", "client_auth: {mode: off}", "client_auth: {mode: off}\n        " + oneProxy, "listeners.public.hosts[1].trusted_proxies", "with mode off"},
		{"A39", "mode request_unverified", auth, "client_auth: {mode: request_unverified, trust_store: clients}\n        " + oneProxy, host, "with mode request_unverified"},
		{"A39", "mode passthrough_chain", "client_auth: {mode: off}", "client_auth: {mode: passthrough_chain}\n        " + oneProxy, "listeners.public.hosts[1].trusted_proxies", "with mode passthrough_chain"},
		{"A25", "http", "[{names: [p.test],", "[{names: [p.test], " + oneProxy + ",", "listeners.plain.hosts[0].trusted_proxies", "no meaning on a listener of protocol http"},
		{"A25", "passthrough", "{names: [t.test],", "{names: [t.test], " + oneProxy + ",", "listeners.through.hosts[0].trusted_proxies", "no meaning on a listener of protocol passthrough"},
		{"A25", "tls", "  through:", "  bytes: {listen: 127.0.0.1:8445, protocol: tls, hosts: [{names: [a.test], certificate: {cert: server.pem, key: server.key}, " + auth + ", upstream: bytes, " + oneProxy + "}]}\n  through:", "listeners.bytes.hosts[0].trusted_proxies", "no meaning on a listener of protocol tls"},
	} {
		t.Run(c.id+"/"+c.name, func(t *testing.T) {
			yaml := strings.Replace(good, c.old, c.new, 1)
			if yaml == good {
				t.Fatalf("%q is not in the good configuration", c.old)
			}
			s, problems := b.compile(yaml)
			if s != nil {
				t.Error("there is a snapshot")
			}
			problems = slices.DeleteFunc(problems, func(p config.Problem) bool { return p.Warning })
			if len(problems) != 1 || problems[0].Path != c.path || problems[0].Pos.Line == 0 || !strings.Contains(problems[0].Message, c.message) {
				t.Errorf("expected one problem at %s with %q, found %v", c.path, c.message, problems)
			}
		})
	}
}

// TestProxyMatch: a certificate is listed by its own hash or by one of its names, whole and of the same type.
func TestProxyMatch(t *testing.T) {
	b := newBench(t)
	pinned := b.ca.Client("pinned")
	sum := sha256.Sum256(pinned.DER())
	yaml := strings.Replace(good, "client_auth: {mode: require, trust_store: clients}", `client_auth: {mode: require, trust_store: clients}
        identity_headers: [xfcc]
        trusted_proxies:
          - match: {sha256: ["`+strings.ToUpper(hex.EncodeToString(sum[:]))+`"]}
            identity: rfc9440
            trust_store: elsewhere
          - {match: {sans: ["dns:Edge.Test.", "uri:spiffe://corp.test/edge"]}, identity: xfcc, trust_store: internal, missing: proxy, append: true}`, 1)
	yaml = strings.Replace(yaml, "trust_stores:\n", "trust_stores:\n  elsewhere: {ca_bundle: {file: ca.pem}}\n", 1)
	s, problems := b.compile(yaml)
	if s == nil || slices.ContainsFunc(problems, func(p config.Problem) bool { return strings.HasSuffix(p.Message, "is not used") }) {
		t.Fatalf("problems: %v", problems)
	}
	host := s.Listeners["public"].Hosts[0]
	if len(host.Proxies) != 2 || host.Proxies[0].Own || host.Proxies[0].Append || !host.Proxies[1].Own || !host.Proxies[1].Append ||
		host.Proxies[0].Store.Name() != "elsewhere" || host.Proxies[1].Store.Name() != "internal" || host.Proxies[1].Ingest.Header() != "X-Forwarded-Client-Cert" {
		t.Fatalf("%+v", host.Proxies)
	}
	for _, c := range []struct {
		name string
		cert *testpki.Cert
		want int // entry, -1 for none
	}{
		{"no name", b.ca.Client("x"), -1},
		{"common name", b.ca.Client("edge.test"), -1},
		{"common name is the URI", b.ca.Client("spiffe://corp.test/edge"), -1},
		{"wildcard", b.ca.Client("x", testpki.DNS("*.test")), -1},
		{"part of the name", b.ca.Client("x", testpki.DNS("ge.test", "edge.test.x", "xedge.test", "edge")), -1},
		{"mail address", b.ca.Client("x", testpki.Email("edge.test", "spiffe://corp.test/edge")), -1},
		{"DNS name in a URI", b.ca.Client("x", testpki.URI("edge.test", "dns:edge.test", "//edge.test")), -1},
		{"URI in a DNS name", b.ca.Client("x", testpki.DNS("spiffe://corp.test/edge", "uri:spiffe://corp.test/edge")), -1},
		{"URI in another case", b.ca.Client("x", testpki.URI("spiffe://corp.test/Edge", "spiffe://corp.test/edge/", "spiffe://corp.test/edge?", "spiffe://corp.test/%65dge")), -1},
		{"the pinned key under another certificate", b.ca.Client("pinned", testpki.KeyOf(pinned)), -1},
		{"B26/hash", pinned, 0},
		{"DNS name", b.ca.Client("x", testpki.DNS("other.test", "EDGE.test")), 1},
		{"URI", b.ca.Client("x", testpki.URI("https://a.test", "spiffe://corp.test/edge")), 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			id, err := identity.FromChain([]*x509.Certificate{c.cert.Cert, b.ca.Cert})
			if err != nil {
				t.Fatal(err)
			}
			var want *Proxy
			if c.want >= 0 {
				want = host.Proxies[c.want]
			}
			if got := host.Proxy(identity.Present(id)); got != want {
				t.Errorf("got %+v", got)
			}
			for _, c := range []identity.Client{{}, identity.Absent(reason.ClientCertMissing), identity.Unverified([]*x509.Certificate{c.cert.Cert}, reason.ClientCertUntrusted)} {
				if got := host.Proxy(c); got != nil {
					t.Errorf("A39/a client that is not verified got %+v", got)
				}
			}
			if got := s.Listeners["public"].Hosts[1].Proxy(identity.Present(id)); got != nil {
				t.Errorf("a host without proxies has %+v", got)
			}
		})
	}
}
