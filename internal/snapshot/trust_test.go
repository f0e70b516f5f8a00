package snapshot

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/internal/config"
	"countersign/internal/policy"
	"countersign/internal/reason"
	"countersign/internal/testpki"
	"countersign/internal/trust"
)

const (
	goodBundle     = "    ca_bundle: {file: ca.pem}\n    rev"
	goodRevocation = "    revocation: {crls: [{file: ca.crl}]}\n"
	goodRoutes     = "        routes: [{upstream: api}]\n      - names"
	goodAuth       = "client_auth: {mode: require, trust_store: clients}"
	revocationPath = "trust_stores.clients.revocation"
	bundlePath     = "trust_stores.clients.ca_bundle"
	acceptPath     = "trust_stores.clients.accept"
	host0Path      = "listeners.public.hosts[0]"
)

func revocation(settings string) [2]string {
	return [2]string{goodRevocation, "    revocation: {" + settings + "}\n"}
}

func bundled(settings string) [2]string {
	return [2]string{goodBundle, "    ca_bundle: {" + settings + "}\n    rev"}
}

func accepting(settings string) [2]string {
	return [2]string{goodRevocation, goodRevocation + "    accept: {" + settings + "}\n"}
}

func routed(settings string) [2]string {
	return [2]string{goodRoutes, "        routes: [{upstream: api, " + settings + "}]\n      - names"}
}

// wrong is a setting that differs from the good configuration, and what is said about it.
type wrong struct {
	id, name      string
	change        [2]string // this, by that
	path, message string
	more          [][2]string
}

func (c *wrong) yaml(t *testing.T) string {
	yaml := good
	for _, change := range append([][2]string{c.change}, c.more...) {
		next := strings.Replace(yaml, change[0], change[1], 1)
		if next == yaml && change[0] != change[1] {
			t.Fatalf("%q is not in the configuration", change[0])
		}
		yaml = next
	}
	return yaml
}

// told fails unless there is a problem, or a warning, of exactly this place with this text.
func (c *wrong) told(t *testing.T, problems config.Problems, warning bool) {
	t.Helper()
	for _, p := range problems {
		if p.Path == c.path && p.Warning == warning && p.Pos.Line > 0 && (strings.Contains(p.Message, c.message) || strings.Contains(p.Next, c.message)) {
			return
		}
	}
	t.Errorf("nothing at %s with %q; got:\n%v", c.path, c.message, problems)
}

// folders makes the folders that rows name.
func (b *bench) folders() {
	for _, dir := range []string{"none", "some/sub", "hidden", "mixed", "linked"} {
		if err := os.MkdirAll(filepath.Join(b.dir, dir), 0o700); err != nil {
			b.t.Fatal(err)
		}
	}
	b.write("hidden/.ca.pem", b.ca.PEM())
	b.write("some/ca.pem", b.ca.PEM())
	b.write("some/.swp", []byte("an editor's"))
	b.write("some/sub/text.pem", []byte("not read"))
	b.write("mixed/a.pem", b.ca.PEM())
	b.write("mixed/b.txt", []byte("hello\n"))
	b.write("linked/a.pem", b.ca.PEM())
	for link, to := range map[string]string{"linked/folder": "../some", "linked/dead.pem": "nowhere"} {
		if err := os.Symlink(to, filepath.Join(b.dir, link)); err != nil {
			b.t.Fatal(err)
		}
	}
}

// TestTrustProblems has a row for each way in which sources of trust and of revocation can be wrong.
func TestTrustProblems(t *testing.T) {
	b := newBench(t)
	b.folders()
	empty, missing := filepath.Join(b.dir, "empty.pem"), filepath.Join(b.dir, "nowhere.pem")
	for _, c := range []wrong{
		{id: "B25", name: "no source", change: revocation("missing: leaf"), path: revocationPath, message: "names no source"},
		{id: "B25", name: "OCSP off is no source", change: revocation("ocsp: off"), path: revocationPath, message: "names no source"},
		{id: "A22", name: "neither file nor URL", change: revocation("crls: [{refresh: 1h}]"), path: revocationPath + ".crls[0]", message: "one of them"},
		{id: "A22", name: "file and URL", change: revocation("crls: [{file: ca.crl}, {file: ca.crl, url: 'http://crl.test/a'}]"), path: revocationPath + ".crls[1]", message: "one of them"},
		{id: "B25", name: "refresh of a file", change: revocation("crls: [{file: ca.crl, refresh: 1h}]"), path: revocationPath + ".crls[0].refresh", message: "no meaning with file"},
		{id: "C13", name: "list by ldap", change: revocation("crls: [{url: 'ldap://crl.test/cn=ca'}]"), path: revocationPath + ".crls[0].url", message: "not a URL of scheme http or https"},
		{id: "C13", name: "list by file URL", change: revocation("crls: [{url: 'file:///etc/passwd'}]"), path: revocationPath + ".crls[0].url", message: "not a URL of scheme http or https"},
		{id: "C13", name: "list with a password", change: revocation("crls: [{url: 'http://u:p@crl.test/'}]"), path: revocationPath + ".crls[0].url", message: "without user"},
		{id: "C13", name: "list without host", change: revocation("crls: [{url: 'http:///ca.crl'}]"), path: revocationPath + ".crls[0].url", message: "not a URL"},
		{id: "C13", name: "point a URL", change: revocation("distribution_points: ['http://crl.test/']"), path: revocationPath + ".distribution_points[0]", message: "is not a host"},
		{id: "C13", name: "point a wildcard", change: revocation("distribution_points: ['*.partner.test']"), path: revocationPath + ".distribution_points[0]", message: "is not a host"},
		{id: "C13", name: "point with a path", change: revocation("distribution_points: [crl.test/ca.crl]"), path: revocationPath + ".distribution_points[0]", message: "is not a host"},
		{id: "C13", name: "point with a user", change: revocation("distribution_points: [a@crl.test]"), path: revocationPath + ".distribution_points[0]", message: "is not a host"},
		{id: "B25", name: "points empty", change: revocation("distribution_points: []"), path: revocationPath + ".distribution_points", message: "has no value"},
		{id: "B25", name: "missing without lists", change: revocation("ocsp: {mode: require, hosts: [ocsp.test]}, missing: if_present"), path: revocationPath, message: "there are none"},
		{id: "B25", name: "stale without lists", change: revocation("ocsp: {mode: require, hosts: [ocsp.test]}, stale: {policy: ignore}"), path: revocationPath, message: "there are none"},
		{id: "B25", name: "by_ca without lists", change: revocation("deny: [{san: 'dns:a.test'}], by_ca: {CN=x: {missing: required}}"), path: revocationPath, message: "there are none"},
		{id: "B25", name: "by_ca empty", change: revocation("crls: [{file: ca.crl}], by_ca: {CN=x: {}}"), path: revocationPath + ".by_ca.CN=x", message: "has no value"},
		{id: "C04", name: "by_ca grace without time", change: revocation("crls: [{file: ca.crl}], by_ca: {CN=x: {stale: {policy: grace}}}"), path: revocationPath + ".by_ca.CN=x.stale", message: "without a grace time"},
		{id: "C18", name: "nobody to ask", change: revocation("ocsp: require"), path: revocationPath + ".ocsp", message: "nobody to ask"},
		{id: "C18", name: "nobody to ask, how", change: revocation("ocsp: require"), path: revocationPath + ".ocsp", message: `write ocsp: {mode: require, responder: "http://ocsp.partner.test"}, or`},
		{id: "C18", name: "somebody to ask as the hint says, elsewhere wrong", change: revocation(`ocsp: {mode: require, responder: "http://ocsp.partner.test"}, missing: leaf`), path: revocationPath, message: "there are none"},
		{id: "C18", name: "nobody to ask, long", change: revocation("crls: [{file: ca.crl}], ocsp: {mode: prefer, nonce: require}"), path: revocationPath + ".ocsp", message: "nobody to ask"},
		{id: "B25", name: "OCSP off with hosts", change: revocation("crls: [{file: ca.crl}], ocsp: {mode: off, hosts: [ocsp.test]}"), path: revocationPath + ".ocsp", message: "no meaning with mode off"},
		{id: "B25", name: "OCSP off with chain", change: revocation("crls: [{file: ca.crl}], ocsp: {mode: off, chain: true}"), path: revocationPath + ".ocsp", message: "no meaning with mode off"},
		{id: "C13", name: "responder by ldap", change: revocation("ocsp: {mode: require, responder: 'ldap://ocsp.test'}"), path: revocationPath + ".ocsp.responder", message: "not a URL"},
		{id: "C13", name: "OCSP host a URL", change: revocation("ocsp: {mode: require, hosts: ['http://ocsp.test']}"), path: revocationPath + ".ocsp.hosts[0]", message: "is not a host"},
		{id: "C16", name: "signers missing", change: revocation("ocsp: {mode: require, hosts: [ocsp.test], signers: no.pem}"), path: revocationPath + ".ocsp.signers", message: "cannot read no.pem"},
		{id: "C16", name: "signers empty", change: revocation("ocsp: {mode: require, hosts: [ocsp.test], signers: empty.pem}"), path: revocationPath + ".ocsp.signers", message: "is empty"},
		{id: "C16", name: "signers are text", change: revocation("ocsp: {mode: require, hosts: [ocsp.test], signers: text.pem}"), path: revocationPath + ".ocsp.signers", message: "text.pem"},
		{id: "C16", name: "signers are a key", change: revocation("ocsp: {mode: require, hosts: [ocsp.test], signers: server.key}"), path: revocationPath + ".ocsp.signers", message: "server.key"},
		{id: "C11", name: "deny nothing", change: revocation("deny: [{issuer: CN=x}]"), path: revocationPath + ".deny[0]", message: "expected one of serial"},
		{id: "C11", name: "deny two things", change: revocation("deny: [{san: 'dns:a.test'}, {san: 'dns:a.test', serial: '1', issuer: CN=x}]"), path: revocationPath + ".deny[1]", message: "expected one of serial"},
		{id: "C02", name: "deny serial without issuer", change: revocation("deny: [{serial: '0A:FF'}]"), path: revocationPath + ".deny[0]", message: "add issuer"},
		{id: "C11", name: "deny serial 0", change: revocation("deny: [{serial: '0', issuer: CN=x}]"), path: revocationPath + ".deny[0]", message: "positive number"},
		{id: "C11", name: "deny serial negative", change: revocation("deny: [{serial: '-5', issuer: CN=x}]"), path: revocationPath + ".deny[0]", message: "positive number"},
		{id: "C11", name: "deny half a key", change: revocation("deny: [{spki: abcd}]"), path: revocationPath + ".deny[0]", message: "64 hexadecimal digits"},
		{id: "C11", name: "deny name without kind", change: revocation("deny: [{san: a.test}]"), path: revocationPath + ".deny[0]", message: "expected dns:"},

		{id: "A22", name: "bundle of nothing", change: bundled("refresh: 1h"), path: bundlePath, message: "names no source"},
		{id: "A22", name: "system off is no source", change: bundled("system: false"), path: bundlePath, message: "names no source"},
		{id: "B25", name: "bundle empty", change: bundled(""), path: bundlePath, message: "has no value"},
		{id: "B25", name: "bundle refresh without URL", change: bundled("file: ca.pem, refresh: 1h"), path: bundlePath + ".refresh", message: "without url"},
		{id: "G07", name: "bundle by http", change: bundled("url: 'http://ca.test/ca.pem'"), path: bundlePath + ".url", message: "not a URL of scheme https"},
		{id: "G07", name: "bundle with a password", change: bundled("url: 'https://u:p@ca.test/ca.pem'"), path: bundlePath + ".url", message: "without user"},
		{id: "A22", name: "bundle URL, connecting to nowhere", change: bundled("url: 'https://ca.test/ca.pem'"), path: bundlePath + ".url", message: "connects to nowhere"},
		{id: "A22", name: "folder missing", change: bundled("directory: nowhere"), path: bundlePath + ".directory", message: "cannot read the folder nowhere: no such file"},
		{id: "A22", name: "folder is a file", change: bundled("directory: ca.pem"), path: bundlePath + ".directory", message: "cannot read the folder ca.pem"},
		{id: "A22", name: "folder empty", change: bundled("directory: none"), path: bundlePath + ".directory", message: "holds no file"},
		{id: "A22", name: "folder of hidden files", change: bundled("directory: hidden"), path: bundlePath + ".directory", message: "holds no file"},
		{id: "B24", name: "folder with something else", change: bundled("directory: mixed"), path: bundlePath + ".directory", message: "mixed/b.txt"},
		{id: "A22", name: "folder with a dangling link", change: bundled("directory: linked"), path: bundlePath + ".directory", message: "cannot read linked/dead.pem"},
		{id: "A22", name: "good file beside a bad folder", change: bundled("file: ca.pem, directory: none"), path: bundlePath + ".directory", message: "holds no file"},
		{id: "A23", name: "store unknown", change: bundled("stores: [internals]"), path: bundlePath + ".stores[0]", message: `did you mean "internal"?`},
		{id: "A23", name: "store of itself", change: bundled("file: ca.pem, stores: [clients]"), path: bundlePath + ".stores[0]", message: `"clients" is combined from itself`},
		{id: "A23", name: "two of each other", change: bundled("stores: [internal]"), path: "trust_stores.internal.ca_bundle.stores[0]", message: "combined from itself",
			more: [][2]string{{"internal: {ca_bundle: {file: ca.pem}}", "internal: {ca_bundle: {stores: [clients]}}"}}},
		{id: "A23", name: "circle of three", change: bundled("stores: [internal]"), path: "trust_stores.third.ca_bundle.stores[0]", message: "combined from itself",
			more: [][2]string{{"internal: {ca_bundle: {file: ca.pem}}", "internal: {ca_bundle: {stores: [third]}}\n  third: {ca_bundle: {stores: [clients]}}"}}},
		{id: "A22", name: "combined from a broken one", change: bundled("stores: [internal]"), path: "trust_stores.internal.ca_bundle.file", message: "is empty",
			more: [][2]string{{"internal: {ca_bundle: {file: ca.pem}}", "internal: {ca_bundle: {file: empty.pem}}"}}},

		{id: "B01", name: "eku both", change: accepting("eku: {allow_server_auth_until: 2099-01-01, oids: [1.2.3]}"), path: acceptPath + ".eku", message: "both"},
		{id: "B01", name: "eku no date", change: accepting("eku: {allow_server_auth_until: 01.03.2099}"), path: acceptPath + ".eku.allow_server_auth_until", message: `"01.03.2099" is not a date`},
		{id: "B01", name: "eku impossible date", change: accepting("eku: {allow_server_auth_until: 2099-02-30}"), path: acceptPath + ".eku.allow_server_auth_until", message: "is not a date"},
		{id: "B25", name: "eku empty", change: accepting("eku: {}"), path: acceptPath + ".eku", message: "has no value"},
		{id: "B25", name: "eku no OIDs", change: accepting("eku: {oids: []}"), path: acceptPath + ".eku.oids", message: "has no value"},
		{id: "B01", name: "eku mode unknown", change: accepting("eku: lenient"), path: acceptPath + ".eku", message: "lenient"},
		{id: "B01", name: "eku by name", change: accepting("eku: {oids: [clientAuth]}"), path: acceptPath + ".eku.oids[0]", message: "not an object identifier"},
		{id: "B01", name: "eku OID impossible", change: accepting("eku: {oids: [1.2.3, 3.1.2]}"), path: acceptPath + ".eku.oids[1]", message: "not an object identifier"},
		{id: "B01", name: "eku OID too large", change: accepting("eku: {oids: ['1.2.99999999999999999999']}"), path: acceptPath + ".eku.oids[0]", message: "too large"},
		{id: "B11", name: "SPIFFE URI", change: accepting("spiffe_trust_domain: 'spiffe://corp.test'"), path: acceptPath + ".spiffe_trust_domain", message: "not a SPIFFE trust domain"},
		{id: "B11", name: "SPIFFE path", change: accepting("spiffe_trust_domain: corp.test/ops"), path: acceptPath + ".spiffe_trust_domain", message: "not a SPIFFE trust domain"},
		{id: "B11", name: "SPIFFE capitals", change: accepting("spiffe_trust_domain: Corp.test"), path: acceptPath + ".spiffe_trust_domain", message: "not a SPIFFE trust domain"},

		{id: "G07", name: "outbound network with bits", change: [2]string{"trust_stores:", "outbound: {allow: [10.0.0.1/8]}\ntrust_stores:"}, path: "outbound.allow[0]", message: "write 10.0.0.0/8"},
		{id: "G07", name: "outbound name", change: [2]string{"trust_stores:", "outbound: {allow: [crl.test]}\ntrust_stores:"}, path: "outbound.allow[0]", message: "neither an address nor a prefix"},
		{id: "A22", name: "state of a variable", change: [2]string{"trust_stores:", "state: '${COUNTERSIGN_NOT_SET}/x'\ntrust_stores:"}, path: "state", message: "is not set"},
	} {
		t.Run(c.id+"/"+c.name, func(t *testing.T) {
			s, problems := b.compile(c.yaml(t))
			if s != nil {
				t.Error("there is a snapshot")
			}
			c.told(t, problems, false)
		})
	}
	for name, file := range map[string]string{"empty": empty, "missing": missing, "text": filepath.Join(b.dir, "text.pem")} {
		t.Run("A22/system bundle "+name, func(t *testing.T) {
			t.Setenv("SSL_CERT_FILE", file)
			c := wrong{change: bundled("system: true"), path: bundlePath + ".system", message: file}
			s, problems := b.compile(c.yaml(t))
			if s != nil {
				t.Error("there is a snapshot")
			}
			c.told(t, problems, false)
		})
	}
}

// TestTrustWarnings: what is served although it may not be meant.
func TestTrustWarnings(t *testing.T) {
	b := newBench(t)
	t.Setenv("SSL_CERT_FILE", filepath.Join(b.dir, "ca.pem"))
	for _, c := range []wrong{
		{id: "B01", name: "date over", change: accepting("eku: {allow_server_auth_until: 2020-01-01}"), path: acceptPath + ".eku.allow_server_auth_until", message: "the date is over"},
		{id: "A23", name: "system for clients", change: bundled("system: true"), path: host0Path + ".client_auth.trust_store", message: "whoever buys a certificate"},
		{id: "C11", name: "denied issuer a stranger", change: revocation("deny: [{serial: '7', issuer: CN=Nobody}]"), path: "trust_stores.clients", message: "CN=Nobody"},
		{id: "C09", name: "rules for a stranger", change: revocation("crls: [{file: ca.crl}], by_ca: {CN=Nobody: {missing: required}}"), path: revocationPath + ".by_ca.CN=Nobody", message: `no CA of the bundle is named "CN=Nobody"`},
	} {
		t.Run(c.id+"/"+c.name, func(t *testing.T) {
			s, problems := b.compile(c.yaml(t))
			if s == nil {
				t.Fatalf("refused: %v", problems)
			}
			c.told(t, problems, true)
		})
	}
	t.Run("A23/system for targets", func(t *testing.T) {
		c := wrong{change: [2]string{"internal: {ca_bundle: {file: ca.pem}}", "internal: {ca_bundle: {system: true}}"}}
		if s, problems := b.compile(c.yaml(t)); s == nil || len(problems) != 0 {
			t.Errorf("problems: %v", problems)
		}
	})
}

// TestTrustSources: every source of CA certificates, alone and together.
func TestTrustSources(t *testing.T) {
	b := newBench(t)
	b.folders()
	other := testpki.New(t)
	b.write("some/other.pem", other.PEM())
	anchors := func(t *testing.T, change ...[2]string) []string {
		t.Helper()
		c := wrong{change: change[0], more: change[1:]}
		s, problems := b.compile(c.yaml(t))
		if s == nil {
			t.Fatalf("refused: %v", problems)
		}
		var names []string
		for _, a := range s.Listeners["public"].Hosts[0].Auth.Store.Anchors() {
			names = append(names, a.Subject.CommonName)
		}
		slices.Sort(names)
		return names
	}
	first, second := b.ca.Cert.Subject.CommonName, other.Cert.Subject.CommonName
	both := []string{first, second}
	slices.Sort(both)
	t.Run("A22/folder", func(t *testing.T) { // hidden files and folders in it are not read
		if got := anchors(t, bundled("directory: some")); !slices.Equal(got, both) {
			t.Errorf("%v, expected %v", got, both)
		}
	})
	t.Run("A22/file and store", func(t *testing.T) {
		if got := anchors(t, bundled("file: other.pem, stores: [internal]"), [2]string{"revocation: {crls: [{file: ca.crl}]}", "hints: none"}); len(got) != 2 || !slices.Contains(got, first) {
			t.Errorf("%v", got)
		}
	})
	t.Run("A22/store of a store", func(t *testing.T) {
		got := anchors(t, bundled("stores: [third]"), [2]string{"  internal:", "  third: {ca_bundle: {stores: [internal, fourth]}}\n  fourth: {ca_bundle: {file: ca.pem}}\n  internal:"})
		if !slices.Equal(got, []string{first}) {
			t.Errorf("%v", got)
		}
	})
	t.Run("A22/system", func(t *testing.T) {
		t.Setenv("SSL_CERT_FILE", filepath.Join(b.dir, "ca.pem"))
		if got := anchors(t, bundled("system: true")); !slices.Equal(got, []string{first}) {
			t.Errorf("%v", got)
		}
		if got := anchors(t, bundled("system: true, file: ca.pem, directory: some")); !slices.Equal(got, both) {
			t.Errorf("%v", got)
		}
	})
	t.Run("A22/this machine", func(t *testing.T) {
		t.Setenv("SSL_CERT_FILE", "")
		if !slices.ContainsFunc(systemBundles, func(f string) bool { _, err := os.Stat(f); return err == nil }) {
			t.Skip("this machine has no CA bundle")
		}
		if got := anchors(t, bundled("system: true"), [2]string{"revocation: {crls: [{file: ca.crl}]}", "hints: none"}); len(got) < 20 {
			t.Errorf("%d CAs", len(got))
		}
	})
	t.Run("H01/a new file in a folder counts", func(t *testing.T) {
		c := wrong{change: bundled("directory: some")}
		compile := func() (string, map[string]Sum) {
			file, problems := config.Parse("countersign.yaml", []byte(c.yaml(t)))
			s, read, problems := Compile(file, problems, Env{Dir: b.dir, Now: time.Now()})
			if s == nil {
				t.Fatalf("refused: %v", problems)
			}
			return s.Hash, read.Sums
		}
		hash, sums := compile()
		b.write("some/.hidden", []byte("x"))
		if same, _ := compile(); same != hash {
			t.Error("a hidden file counts")
		}
		b.write("some/more.pem", testpki.New(t).PEM())
		changed, after := compile()
		folder := filepath.Join(b.dir, "some")
		if changed == hash || sums[folder] == after[folder] || sums[folder] == (Sum{}) {
			t.Errorf("hash %s then %s, folder %x then %x", hash, changed, sums[folder], after[folder])
		}
	})
}

// known is what was fetched, in tests.
type known struct {
	lists   map[string]*trust.CRL
	bundles map[string][]byte
	learnt  []*trust.CRL
	admit   func(*trust.CRL) (*trust.CRL, string)
	warning string
	err     error
}

func (k *known) Learnt([]string) []*trust.CRL { return k.learnt }

func (k *known) Admit(crl *trust.CRL, _ []byte) (*trust.CRL, string) {
	if k.admit != nil {
		return k.admit(crl)
	}
	return crl, ""
}

func (k *known) Fetched(url string) (*trust.CRL, error) {
	if l := k.lists[url]; l != nil {
		return l, nil
	}
	return nil, errors.New("the server is asleep")
}

type knownBundles struct{ *known }

func (k knownBundles) Fetched(url string) ([]byte, error) {
	if data := k.bundles[url]; data != nil {
		return data, nil
	}
	return nil, errors.New("the server is asleep")
}

func (b *bench) with(k *known, yaml string) (*Snapshot, *Read, config.Problems) {
	file, problems := config.Parse("countersign.yaml", []byte(yaml))
	return Compile(file, problems, Env{Dir: b.dir, Now: time.Now(), Open: func(string) (Lists, Bundles, string, error) {
		return k, knownBundles{k}, k.warning, k.err
	}})
}

func list(t *testing.T, der []byte) *trust.CRL {
	t.Helper()
	l, err := trust.ParseCRL(der)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// verdict is what the store of the first host says about a client now.
func verdict(s *Snapshot, c *testpki.Cert) reason.Reason {
	store := s.Listeners["public"].Hosts[0].Auth.Store
	v := store.Verify(c.Presented(), time.Now())
	return v.Reason
}

// TestFetched: what was fetched is used, and what is to be fetched is told.
func TestFetched(t *testing.T) {
	b := newBench(t)
	alice, bob := b.ca.Client("alice"), b.ca.Client("bob")
	const url = "http://crl.test/ca.crl"
	byURL := wrong{change: revocation("crls: [{url: '" + url + "', refresh: 5m}]")}
	t.Run("C14/no list yet", func(t *testing.T) {
		s, read, problems := b.with(&known{}, byURL.yaml(t))
		if s == nil {
			t.Fatalf("refused: %v", problems)
		}
		(&wrong{path: revocationPath + ".crls[0].url", message: "the server is asleep"}).told(t, problems, true)
		if got := verdict(s, alice); got != reason.CRLMissing {
			t.Errorf("alice: %v", got)
		}
		f := read.Outside.Fetches
		if len(f) != 1 || f[0].URL != url || f[0].Every != 5*time.Minute || f[0].Bundle || len(f[0].Signers) != 1 || !f[0].Signers[0].Equal(b.ca.Cert) {
			t.Errorf("%+v", f)
		}
		if read.Outside.State != filepath.Join(b.dir, "state") {
			t.Errorf("state is %s", read.Outside.State)
		}
	})
	t.Run("C01/list by URL", func(t *testing.T) {
		k := &known{lists: map[string]*trust.CRL{url: list(t, b.ca.CRL(bob))}}
		s, _, problems := b.with(k, byURL.yaml(t))
		if s == nil || len(problems) != 0 {
			t.Fatalf("problems: %v", problems)
		}
		if verdict(s, alice) != reason.Unset || verdict(s, bob) != reason.ClientCertRevoked {
			t.Errorf("alice %v, bob %v", verdict(s, alice), verdict(s, bob))
		}
		k.lists[url] = list(t, b.ca.CRL(bob, testpki.Number(2)))
		if other, _, _ := b.with(k, byURL.yaml(t)); other.Hash == s.Hash {
			t.Error("H01/a list that was fetched does not count")
		}
	})
	points := wrong{change: revocation("distribution_points: [CRL.test, 'crl.test:8080', '127.0.0.1:80', '[::1]:80']")}
	t.Run("C13/learnt", func(t *testing.T) {
		k := &known{learnt: []*trust.CRL{list(t, b.ca.CRL(bob)), list(t, testpki.New(t).CRL())}}
		s, read, problems := b.with(k, points.yaml(t))
		if s == nil || len(problems) != 0 {
			t.Fatalf("problems: %v", problems)
		}
		if verdict(s, alice) != reason.Unset || verdict(s, bob) != reason.ClientCertRevoked {
			t.Errorf("alice %v, bob %v", verdict(s, alice), verdict(s, bob))
		}
		if want := []string{"crl.test", "crl.test:8080", "127.0.0.1:80", "[::1]:80"}; !slices.Equal(read.Outside.Points, want) {
			t.Errorf("points %v", read.Outside.Points)
		}
		// A store that allows no points must not use what another one has learnt.
		s, _, _ = b.with(k, byURL.yaml(t))
		if got := verdict(s, bob); got != reason.CRLMissing {
			t.Errorf("bob where no points are allowed: %v", got)
		}
	})
	t.Run("C05/older file", func(t *testing.T) {
		newer := list(t, b.ca.CRL(bob, testpki.Number(2)))
		k := &known{admit: func(*trust.CRL) (*trust.CRL, string) { return newer, "older than what was in force" }}
		s, _, problems := b.with(k, good)
		if s == nil {
			t.Fatalf("refused: %v", problems)
		}
		(&wrong{path: revocationPath + ".crls[0].file", message: "older than what was in force"}).told(t, problems, true)
		if got := verdict(s, bob); got != reason.ClientCertRevoked {
			t.Errorf("bob: %v", got)
		}
		if len(s.CRLs) != 1 || s.CRLs[0] != newer {
			t.Errorf("lists %v", s.CRLs)
		}
		s2, _, _ := b.with(&known{}, good)
		if s.Hash == s2.Hash {
			t.Error("H01/the list in force does not count")
		}
	})
	t.Run("C05/older file, newer one gone", func(t *testing.T) {
		k := &known{admit: func(*trust.CRL) (*trust.CRL, string) { return nil, "older, and that one is not kept any more" }}
		s, _, problems := b.with(k, good)
		if s == nil {
			t.Fatalf("refused: %v", problems)
		}
		(&wrong{path: revocationPath + ".crls[0].file", message: "not kept any more"}).told(t, problems, true)
		if got := verdict(s, alice); got != reason.CRLMissing {
			t.Errorf("alice: %v", got)
		}
		if len(s.CRLs) != 0 {
			t.Errorf("lists %v", s.CRLs)
		}
	})
	t.Run("C14/nothing can be kept", func(t *testing.T) {
		s, _, problems := b.with(&known{warning: "the disk is full"}, "state: /var/x\n"+good)
		if s == nil {
			t.Fatalf("refused: %v", problems)
		}
		(&wrong{path: "state", message: "the disk is full"}).told(t, problems, true)
		if s, _, problems = b.with(&known{err: errors.New("another folder")}, "state: /var/x\n"+good); s != nil {
			t.Error("there is a snapshot")
		}
		(&wrong{path: "state", message: "another folder"}).told(t, problems, false)
	})
	const caURL = "https://ca.test/ca.pem"
	bundle := wrong{change: bundled("url: '" + caURL + "', refresh: 2h")}
	t.Run("A22/no bundle yet", func(t *testing.T) {
		s, read, problems := b.with(&known{}, bundle.yaml(t))
		if s != nil {
			t.Error("there is a snapshot")
		}
		(&wrong{path: bundlePath + ".url", message: "the server is asleep"}).told(t, problems, false)
		if f := read.Outside.Fetches; len(f) != 1 || !f[0].Bundle || f[0].URL != caURL || f[0].Every != 2*time.Hour {
			t.Errorf("%+v", f)
		}
	})
	t.Run("A22/bundle", func(t *testing.T) {
		k := &known{bundles: map[string][]byte{caURL: b.ca.PEM()}}
		s, _, problems := b.with(k, bundle.yaml(t))
		if s == nil || len(problems) != 0 {
			t.Fatalf("problems: %v", problems)
		}
		if got := verdict(s, alice); got != reason.Unset {
			t.Errorf("alice: %v", got)
		}
		k.bundles[caURL] = append([]byte("# renewed\n"), b.ca.PEM()...)
		if other, _, _ := b.with(k, bundle.yaml(t)); other.Hash == s.Hash {
			t.Error("H01/a bundle that was fetched does not count")
		}
	})
	t.Run("G07/allowed networks", func(t *testing.T) {
		s, problems := b.compile("outbound: {allow: [10.0.0.0/8, 192.168.1.1, '::ffff:127.0.0.0/104']}\n" + good)
		want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.168.1.1/32"), netip.MustParsePrefix("127.0.0.0/8")}
		if s == nil || !slices.Equal(s.Outside.Allow, want) {
			t.Errorf("%v %v", s.Outside.Allow, problems)
		}
	})
}

// TestRevocationRules: lists, rules by CA and the deny list as the configuration has them.
func TestRevocationRules(t *testing.T) {
	b := newBench(t)
	inter := b.ca.Intermediate("Inter")
	alice, bob, carol := b.ca.Client("alice"), b.ca.Client("bob"), inter.Client("carol")
	verdicts := func(t *testing.T, settings string) string {
		t.Helper()
		c := wrong{change: revocation(settings)}
		s, problems := b.compile(c.yaml(t))
		if s == nil {
			t.Fatalf("refused: %v", problems)
		}
		return fmt.Sprint(verdict(s, alice), " ", verdict(s, bob), " ", verdict(s, carol))
	}
	var ok reason.Reason
	three := slices.Concat(testpki.PEM("X509 CRL", testpki.New(t).CRL()), testpki.PEM("X509 CRL", inter.CRL()), testpki.PEM("X509 CRL", b.ca.CRL(bob)))
	b.write("three.pem", three)
	b.write("inter.crl", inter.CRL())
	b.write("stale.crl", b.ca.CRL(testpki.ThisUpdate(time.Now().Add(-48*time.Hour)), testpki.NextUpdate(time.Now().Add(-time.Hour))))
	root := "CN=" + b.ca.Cert.Subject.CommonName
	key, whole := sha256.Sum256(bob.Cert.RawSubjectPublicKeyInfo), sha256.Sum256(bob.DER())
	caKey := sha256.Sum256(inter.Cert.RawSubjectPublicKeyInfo)
	for _, c := range []struct{ id, name, settings, want string }{
		{"C22", "three lists in one file", "crls: [{file: three.pem}]", fmt.Sprint(ok, " ", reason.ClientCertRevoked, " ", ok)},
		{"C09", "no list of the intermediate", "crls: [{file: ca.crl}]", fmt.Sprint(ok, " ", ok, " ", reason.CRLMissing)},
		{"C09", "if present", "crls: [{file: ca.crl}], missing: if_present", fmt.Sprint(ok, " ", ok, " ", ok)},
		{"C09", "chain, root's list missing", "crls: [{file: inter.crl}], missing: chain", fmt.Sprint(reason.CRLMissing, " ", reason.CRLMissing, " ", reason.CRLMissing)},
		{"C09", "if present, but of the root", "crls: [{file: inter.crl}], missing: if_present, by_ca: {" + root + ": {missing: required}}",
			fmt.Sprint(reason.CRLMissing, " ", reason.CRLMissing, " ", reason.CRLMissing)},
		{"C09", "leaf, but not of the intermediate", "crls: [{file: ca.crl}], by_ca: {CN=Inter: {missing: if_present}}", fmt.Sprint(ok, " ", ok, " ", ok)},
		{"C04", "stale", "crls: [{file: stale.crl}, {file: inter.crl}]", fmt.Sprint(reason.CRLStale, " ", reason.CRLStale, " ", reason.CRLStale)},
		{"C04", "grace", "crls: [{file: stale.crl}, {file: inter.crl}], stale: {policy: grace, grace: 2h}", fmt.Sprint(ok, " ", ok, " ", ok)},
		{"C04", "grace over", "crls: [{file: stale.crl}, {file: inter.crl}], stale: {policy: grace, grace: 30m}", fmt.Sprint(reason.CRLStale, " ", reason.CRLStale, " ", reason.CRLStale)},
		{"C04", "ignore", "crls: [{file: stale.crl}, {file: inter.crl}], stale: {policy: ignore}", fmt.Sprint(ok, " ", ok, " ", ok)},
		{"C04", "ignored for one CA", "crls: [{file: stale.crl}, {file: inter.crl}], by_ca: {" + root + ": {stale: {policy: ignore}}}", fmt.Sprint(ok, " ", ok, " ", ok)},
		{"C04", "ignored but for one CA", "crls: [{file: stale.crl}, {file: inter.crl}], stale: {policy: ignore}, by_ca: {" + root + ": {stale: {policy: fail_closed}}}",
			fmt.Sprint(reason.CRLStale, " ", reason.CRLStale, " ", reason.CRLStale)},
		{"C20", "denied by serial, decimal", "deny: [{serial: '" + bob.Cert.SerialNumber.String() + "', issuer: " + root + "}]", fmt.Sprint(ok, " ", reason.ClientCertDenied, " ", ok)},
		{"C11", "denied by serial, hexadecimal", "deny: [{serial: '0x" + strings.ToUpper(bob.Cert.SerialNumber.Text(16)) + "', issuer: " + root + "}]", fmt.Sprint(ok, " ", reason.ClientCertDenied, " ", ok)},
		{"C02", "denied by serial of another issuer", "deny: [{serial: '" + bob.Cert.SerialNumber.String() + "', issuer: CN=Inter}]", fmt.Sprint(ok, " ", ok, " ", ok)},
		{"C20", "denied by key", "deny: [{spki: '" + hex.EncodeToString(key[:]) + "'}]", fmt.Sprint(ok, " ", reason.ClientCertDenied, " ", ok)},
		{"C20", "denied by certificate", "deny: [{certificate: '" + hex.EncodeToString(whole[:]) + "'}]", fmt.Sprint(ok, " ", reason.ClientCertDenied, " ", ok)},
		{"C20", "denied by the CA's key", "deny: [{spki: '" + hex.EncodeToString(caKey[:]) + "'}]", fmt.Sprint(ok, " ", ok, " ", reason.ClientCertDenied)},
	} {
		t.Run(c.id+"/"+c.name, func(t *testing.T) {
			if got := verdicts(t, c.settings); got != c.want {
				t.Errorf("%s, expected %s", got, c.want)
			}
		})
	}
}

// TestEKURules: each form of accept.eku lets in whom it says.
func TestEKURules(t *testing.T) {
	b := newBench(t)
	strict, absent, server := b.ca.Client("strict"), b.ca.Client("absent", testpki.NoEKU()), b.ca.Client("server", testpki.EKU(x509.ExtKeyUsageServerAuth))
	mail := b.ca.Client("mail", testpki.EKU(x509.ExtKeyUsageEmailProtection))
	svid, other := b.ca.Client("svid", testpki.URI("spiffe://corp.test/a")), b.ca.Client("other", testpki.URI("spiffe://evil.test/a"))
	for _, c := range []struct {
		id, name, settings string
		in, out            []*testpki.Cert
	}{
		{"B01", "strict", "eku: strict", []*testpki.Cert{strict}, []*testpki.Cert{absent, server, mail}},
		{"B02", "absent", "eku: allow_absent", []*testpki.Cert{strict, absent}, []*testpki.Cert{server, mail}},
		{"B01", "server until", "eku: {allow_server_auth_until: 2099-01-01}", []*testpki.Cert{strict, server}, []*testpki.Cert{absent, mail}},
		{"B01", "server until, over", "eku: {allow_server_auth_until: 2020-01-01}", []*testpki.Cert{strict}, []*testpki.Cert{absent, server, mail}},
		{"B01", "mail", "eku: {oids: [1.3.6.1.5.5.7.3.4]}", []*testpki.Cert{mail}, []*testpki.Cert{strict, absent, server}},
		{"B11", "SPIFFE", "spiffe_trust_domain: corp.test", []*testpki.Cert{svid}, []*testpki.Cert{other, strict}},
	} {
		t.Run(c.id+"/"+c.name, func(t *testing.T) {
			w := wrong{change: accepting(c.settings)}
			s, problems := b.compile(w.yaml(t))
			if s == nil {
				t.Fatalf("refused: %v", problems)
			}
			for _, in := range c.in {
				if got := verdict(s, in); got != reason.Unset {
					t.Errorf("%s: %v", in.Cert.Subject.CommonName, got)
				}
			}
			for _, out := range c.out {
				if got := verdict(s, out); got == reason.Unset {
					t.Errorf("%s was let in", out.Cert.Subject.CommonName)
				}
			}
		})
	}
}

// TestPolicyProblems has a row for each way in which the policy of a route can be wrong.
func TestPolicyProblems(t *testing.T) {
	b := newBench(t)
	mode := func(auth string) [][2]string { return [][2]string{{goodAuth, "client_auth: {" + auth + "}"}} }
	request := mode("mode: request, trust_store: clients")
	exempt := func(settings string) [2]string {
		return [2]string{goodRoutes, "        exempt: {" + settings + "}\n" + goodRoutes}
	}
	const route, at = host0Path + ".routes[0]", host0Path + ".exempt"
	for _, c := range []wrong{
		{id: "A29", name: "host off", change: routed("client_auth: {mode: require}"), more: mode("mode: off"), path: route + ".client_auth", message: "mode off lets nobody be verified"},
		{id: "A29", name: "host unverified", change: routed("client_auth: {mode: require}"), more: mode("mode: request_unverified, trust_store: clients"), path: route + ".client_auth", message: "request_unverified"},
		{id: "A29", name: "host passes through", change: routed("client_auth: {mode: require}"), more: mode("mode: passthrough_chain"), path: route + ".client_auth", message: "passthrough_chain"},
		{id: "A29", name: "plain host", change: [2]string{"[{names: [p.test], routes: [{upstream: api}]}]", "[{names: [p.test], routes: [{upstream: api, client_auth: {mode: require}}]}]"},
			path: "listeners.plain.hosts[0].routes[0].client_auth", message: "lets nobody be verified"},
		{id: "A24", name: "route mode unknown", change: routed("client_auth: {mode: request}"), more: request, path: route + ".client_auth.mode", message: "request"},
		{id: "A23", name: "route store unknown", change: routed("client_auth: {mode: require, trust_store: interna}"), more: request, path: route + ".client_auth.trust_store", message: `did you mean "internal"?`},
		{id: "A24", name: "route store beside proxies", change: routed("client_auth: {mode: require, trust_store: internal}"), path: route + ".client_auth.trust_store", message: "trusted_proxies",
			more: [][2]string{{goodAuth, goodAuth + "\n        " + oneProxy}}},
		{id: "A29", name: "allow of a client nobody asks", change: routed(`allow: "client.subject == 'CN=a'"`), more: mode("mode: off"), path: route + ".allow", message: "(line 1, column "},
		{id: "A24", name: "allow cut", change: routed(`allow: "client.present &&"`), path: route + ".allow", message: "(line 1, column "},
		{id: "A24", name: "allow of another type", change: routed(`allow: "client.common_name"`), path: route + ".allow", message: "(line 1, column 1 of the expression)"},
		{id: "A24", name: "allow misspelt", change: routed(`allow: "client.presnt"`), path: route + ".allow", message: "(line 1, column "},
		{id: "B25", name: "allow empty", change: routed(`allow: ""`), path: route + ".allow", message: "has no value"},
		{id: "B25", name: "shadow empty", change: routed(`shadow: {}`), path: route + ".shadow", message: "has no value"},
		{id: "A23", name: "shadow store unknown", change: routed(`shadow: {trust_store: nobody}`), path: route + ".shadow.trust_store", message: `no trust store is named "nobody"`},
		{id: "A29", name: "shadow store of a host that is off", change: routed(`shadow: {trust_store: clients}`), more: mode("mode: off"), path: route + ".shadow.trust_store", message: "no verified client"},
		{id: "A24", name: "shadow cut", change: routed(`shadow: {allow: "client.present ||"}`), path: route + ".shadow.allow", message: "(line 1, column "},
		{id: "B25", name: "shadow of the same", change: [2]string{goodAuth, "client_auth: {mode: require, trust_store: clients, shadow: {mode: require}}"}, path: host0Path + ".client_auth.shadow", message: "not stricter"},
		{id: "B25", name: "shadow less strict", change: [2]string{goodAuth, "client_auth: {mode: require, trust_store: clients, shadow: {mode: request}}"}, path: host0Path + ".client_auth.shadow", message: "not stricter"},

		{id: "A30", name: "exempt under require", change: exempt("health: [{path: /healthz}]"), path: at, message: "exempt needs mode request"},
		{id: "A30", name: "exempt under off", change: exempt("health: [{path: /healthz}]"), more: mode("mode: off"), path: at, message: "exempt needs mode request"},
		{id: "B25", name: "exempt empty", change: exempt(""), more: request, path: at, message: "has no value"},
		{id: "A26", name: "exempt pattern", change: exempt("health: [{path: /h/*}]"), more: request, path: at + ".health[0].path", message: "not an exact"},
		{id: "A26", name: "exempt encoded", change: exempt("health: [{path: /h%61}]"), more: request, path: at + ".health[0].path", message: "not an exact"},
		{id: "A26", name: "exempt dots", change: exempt("health: [{path: /a/../b}]"), more: request, path: at + ".health[0].path", message: "not an exact"},
		{id: "A26", name: "exempt relative", change: exempt("health: [{path: healthz}]"), more: request, path: at + ".health[0].path", message: "not an exact"},
		{id: "A26", name: "exempt query", change: exempt("health: [{path: '/h?x=1'}]"), more: request, path: at + ".health[0].path", message: "not an exact"},
		{id: "B25", name: "exempt twice", change: exempt("health: [{path: /h}, {path: /h}]"), more: request, path: at + ".health[1].path", message: "there twice"},
		{id: "A30", name: "exempt status 100", change: exempt("health: [{path: /h, status: 100}]"), more: request, path: at + ".health[0].status", message: "not a status"},
		{id: "A30", name: "exempt status 299", change: exempt("health: [{path: /h, status: 299}]"), more: request, path: at + ".health[0].status", message: "not a status"},
		{id: "A30", name: "origin with a path", change: exempt("preflight: {origins: ['https://app.test/'], methods: [GET]}"), more: request, path: at + ".preflight.origins[0]", message: "not an origin"},
		{id: "A30", name: "origin null", change: exempt("preflight: {origins: ['https://app.test', 'null'], methods: [GET]}"), more: request, path: at + ".preflight.origins[1]", message: "origin"},
		{id: "A30", name: "origin any", change: exempt("preflight: {origins: ['*'], methods: [GET]}"), more: request, path: at + ".preflight.origins[0]", message: "not an origin"},
		{id: "A30", name: "method with a line end", change: exempt(`preflight: {origins: ['https://app.test'], methods: ["GET\r\nX: y"]}`), more: request, path: at + ".preflight.methods[0]", message: "not a name"},
		{id: "A30", name: "header any", change: exempt("preflight: {origins: ['https://app.test'], methods: [GET], headers: ['*']}"), more: request, path: at + ".preflight.headers[0]", message: "not a name"},
	} {
		t.Run(c.id+"/"+c.name, func(t *testing.T) {
			s, problems := b.compile(c.yaml(t))
			if s != nil {
				t.Error("there is a snapshot")
			}
			c.told(t, problems, false)
		})
	}
	t.Run("A29/nothing to add", func(t *testing.T) {
		c := wrong{change: routed("client_auth: {mode: require}"), path: route + ".client_auth", message: "requires a verified client already"}
		s, problems := b.compile(c.yaml(t))
		if s == nil {
			t.Fatalf("refused: %v", problems)
		}
		c.told(t, problems, true)
	})
	t.Run("A29/good", func(t *testing.T) {
		c := wrong{change: routed(`client_auth: {mode: require, trust_store: internal}, allow: "client.present", shadow: {allow: "client.present", trust_store: internal}`), more: request}
		s, problems := b.compile(c.yaml(t))
		if s == nil || len(problems) != 0 {
			t.Fatalf("problems: %v", problems)
		}
		h := s.Listeners["public"].Hosts[0]
		if h.Auth.Mode != policy.Request || h.Exempt != nil {
			t.Errorf("%+v", h)
		}
	})
}

// TestSharedCertificates: a wildcard certificate that covers a host of another policy leads browsers astray.
func TestSharedCertificates(t *testing.T) {
	b := newBench(t)
	const first, second = `names: [a.test, "*.w.test"]`, "names: [off.test]"
	for _, c := range []struct {
		id, name, other string
		auth            string
		warns           bool
	}{
		{"A13", "covered, other policy", "x.w.test", "mode: off", true},
		{"A13", "covered, same policy", "x.w.test", "mode: require, trust_store: clients", false},
		{"A13", "two labels", "x.y.w.test", "mode: off", false},
		{"A13", "another domain", "off.test", "mode: off", false},
	} {
		t.Run(c.id+"/"+c.name, func(t *testing.T) {
			w := wrong{change: [2]string{second, "names: [" + c.other + "]"}, path: host0Path, message: "covers " + c.other + " too",
				more: [][2]string{{"client_auth: {mode: off}", "client_auth: {" + c.auth + "}"}}}
			s, problems := b.compile(w.yaml(t))
			if s == nil {
				t.Fatalf("refused: %v", problems)
			}
			if c.warns {
				w.told(t, problems, true)
				return
			}
			for _, p := range problems {
				if strings.Contains(p.Message, "421") {
					t.Errorf("warned: %v", p)
				}
			}
		})
	}
}
