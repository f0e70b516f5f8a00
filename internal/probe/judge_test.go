package probe

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"countersign/internal/testpki"
)

// TestChainProblems: everything that can be wrong with what a server shows has a code and a next step.
func TestChainProblems(t *testing.T) {
	root := testpki.New(t)
	inter := root.Intermediate("Servers CA")
	other := testpki.New(t)
	good := inter.Server("a.test")
	mustStaple := pkix.Extension{Id: []int{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: []byte{0x30, 3, 2, 1, 5}}
	stapler := inter.Server("a.test", testpki.ExtraExt(mustStaple))
	long := inter.Server("a.test", testpki.NotBefore(time.Now().AddDate(0, -6, 0)), testpki.Lifetime(5*24*time.Hour))
	expiredCA := root.Intermediate("Old CA", testpki.Expired())
	evil := inter.Server("a.test", testpki.Subject(pkix.Name{CommonName: "evil\x1b[31m\nCN=good" + strings.Repeat("x", 1000)}))
	join := func(chains ...[]byte) [][]byte { return chains }
	for _, c := range []struct {
		name    string
		ders    [][]byte
		staple  []byte
		code    string // empty: nothing is wrong
		found   string
		trusted bool
	}{
		{"good", good.Chain, nil, "", "", true},
		{"issuer missing", join(good.DER()), nil, "missing_issuer", "Servers CA", false},
		{"order", join(good.DER(), other.DER(), inter.DER()), nil, "order", "number 3", true},
		{"gap", join(good.DER(), other.DER()), nil, "gap", "which is not sent", false},
		{"twice", join(good.DER(), inter.DER(), inter.DER()), nil, "duplicate", "certificate 3 is the same as certificate 2", true},
		{"root sent", join(good.DER(), inter.DER(), root.DER()), nil, "root_sent", "is a root", true},
		{"expired", inter.Server("a.test", testpki.Expired()).Chain, nil, "expired", "expired at", false},
		{"not yet valid", inter.Server("a.test", testpki.NotYetValid()).Chain, nil, "not_yet_valid", "not valid before", false},
		{"expires soon", long.Chain, nil, "expires_soon", "days", true},
		{"issuer expired", expiredCA.Server("a.test").Chain, nil, "issuer_expired", "Old CA", false},
		{"other name", inter.Server("b.test").Chain, nil, "name", `"b.test"`, false},
		{"no name", inter.Client("a.test", testpki.EKU(x509.ExtKeyUsageServerAuth)).Chain, nil, "name", "no names", false},
		{"other name and CA", other.Server("b.test").Chain, nil, "missing_issuer", "Test Root", false},
		{"weak key", inter.Server("a.test", testpki.RSA(1024)).Chain, nil, "weak_key", "RSA 1024", false},
		{"weak signature", inter.Server("a.test", testpki.SHA1()).Chain, nil, "weak_signature", "SHA1", false},
		{"for clients", inter.Server("a.test", testpki.EKU(x509.ExtKeyUsageClientAuth)).Chain, nil, "purpose", "lacks serverAuth", false},
		{"no purpose", inter.Server("a.test", testpki.NoEKU()).Chain, nil, "no_purpose", "no purpose", true},
		{"a CA", inter.Server("a.test", testpki.CA(), testpki.KeyUsage(x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature)).Chain, nil, "ca_as_leaf", "CA certificate", false},
		{"own root", other.Server("a.test").Chain, nil, "missing_issuer", "Test Root", false},
		{"own root, sent", join(other.Server("a.test").DER(), other.DER()), nil, "untrusted_root", "ends at", false},
		{"critical", inter.Server("a.test", testpki.UnknownCritical()).Chain, nil, "refused", "critical extension", false},
		{"no certificate", join([]byte("\x30\x03\x02\x01\x01")), nil, "unparsable", "certificate 1", false},
		{"too many", append(join(good.DER()), make([][]byte, 40)...), nil, "too_many", "41 certificates", false},
		{"must staple", stapler.Chain, nil, "must_staple", "none came", true},
		{"staple of nobody", good.Chain, []byte("no"), "staple_unusable", "OCSP response", true},
		{"staple of another", good.Chain, inter.OCSP(stapler), "staple_unusable", "", true},
		{"revoked", good.Chain, inter.OCSP(good, testpki.OCSPRevoked(1)), "revoked", "revoked", true},
		{"stapled", stapler.Chain, inter.OCSP(stapler), "", "", true},
		{"F13/hostile names", evil.Chain, nil, "", "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &prober{o: Options{Roots: []*x509.Certificate{root.Cert}, RootsName: "roots.pem"}, verify: "a.test", sni: "a.test", report: &Report{}}
			p.addChain(shown{tls.VersionTLS13, c.ders, c.staple})
			p.judgeChains()
			if len(p.report.Chains) != 1 {
				t.Fatalf("%d chains", len(p.report.Chains))
			}
			chain := p.report.Chains[0]
			var codes []string
			for _, f := range chain.Problems {
				codes = append(codes, f.Code)
				if f.Next == "" || f.Severity == "" {
					t.Errorf("%+v", f)
				}
				if f.Code == c.code && !strings.Contains(f.Found, c.found) {
					t.Errorf("found %q, expected %q", f.Found, c.found)
				}
			}
			all := strings.Join(codes, " ")
			if c.code == "" && all != "" || !strings.Contains(" "+all+" ", " "+c.code+" ") && c.code != "" {
				t.Errorf("problems %q, expected %q", all, c.code)
			}
			if chain.Trusted != nil && *chain.Trusted != c.trusted || chain.Trusted == nil && c.trusted {
				t.Errorf("trusted %v: %s, found %s", chain.Trusted, chain.Reason, chain.Found)
			}
			if c.staple != nil && !chain.Staple.Present || c.name == "stapled" && (chain.Staple.Status != "good" || chain.Staple.NextUpdate == nil) {
				t.Errorf("staple %+v", chain.Staple)
			}
			var text strings.Builder
			p.report.Outcome = OutcomeTLS
			if err := p.report.WriteText(&text); err != nil || strings.ContainsAny(text.String(), "\x1b\x00\r") || strings.Contains(text.String(), "\nCN=good") || text.Len() > 20000 {
				t.Errorf("%v, %d bytes: %q", err, text.Len(), text.String())
			}
		})
	}
}

// TestFits: why a certificate would do, or would not.
func TestFits(t *testing.T) {
	root := testpki.New(t)
	ca := root.Intermediate("Clients CA")
	stranger := testpki.New(t)
	dir := t.TempDir()
	put := func(name string, parts ...[]byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.Join(asStrings(parts), "")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	alone := func(c *testpki.Cert) []byte { return testpki.PEM("CERTIFICATE", c.DER()) }
	alice := ca.Client("alice")
	put("alice.pem", alice.PEM())
	put("both.pem", alice.KeyPEM(), alice.PEM())
	put("alone.pem", alone(alice))
	put("der.cer", root.Client("der").DER())
	put("ed25519.pem", root.Client("ed", testpki.Ed25519()).PEM())
	put("rsa.pem", root.Client("rsa", testpki.RSA(2048)).PEM())
	put("expired.pem", root.Client("old", testpki.Expired()).PEM())
	put("early.pem", root.Client("early", testpki.NotYetValid()).PEM())
	put("server.crt", root.Server("a.test").PEM())
	put("any.pem", root.Client("any", testpki.NoEKU()).PEM())
	put("stranger.pem", stranger.Client("mallory").PEM())
	put("ca.pem", alone(ca))
	put("broken.pem", []byte("-----BEGIN CERTIFICATE-----\nMIIB\n"))
	put("key.pem", alice.KeyPEM())
	put("notes.txt", []byte("not looked at"))
	put(".hidden.pem", []byte("not looked at"))
	if err := os.Mkdir(filepath.Join(dir, "dir.pem"), 0o700); err != nil {
		t.Fatal(err)
	}
	list, err := LoadCandidates(dir)
	if err != nil {
		t.Fatal(err)
	}
	compare := func(asked *ClientAuth) map[string]string {
		p := &prober{o: Options{Candidates: list}, report: &Report{ClientAuth: []ClientAuth{*asked}}}
		p.fits()
		out := map[string]string{}
		misfit := false
		for _, f := range p.report.Candidates {
			if f.Fits && misfit {
				t.Error("those that fit do not come first")
			}
			misfit = misfit || !f.Fits
			var failed []string
			for _, c := range f.Checks {
				if !c.OK {
					failed = append(failed, c.Name)
				}
				if !c.OK && c.Next == "" || c.Expected == "" || c.Found == "" {
					t.Errorf("%s: %+v", f.File, c)
				}
			}
			if f.Fits != (len(failed) == 0) {
				t.Errorf("%s: fits %t, failed %q", f.File, f.Fits, failed)
			}
			out[filepath.Base(f.File)] = strings.Join(failed, " ")
		}
		return out
	}
	ecdsaOnly := []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}
	asked := &ClientAuth{Version: "TLS 1.3", Requested: true, id: tls.VersionTLS13, schemes: ecdsaOnly, Signatures: []string{"ecdsa_secp256r1_sha256"}, names: [][]byte{root.Cert.RawSubject}}
	for file, want := range map[string]string{
		"alice.pem": "", "both.pem": "", "alone.pem": "issuer", "der.cer": "", "ed25519.pem": "key", "rsa.pem": "key", "expired.pem": "dates", "early.pem": "dates",
		"server.crt": "purpose", "any.pem": "", "stranger.pem": "issuer", "ca.pem": "kind", "broken.pem": "file", "dir.pem": "file",
	} {
		if got, there := compare(asked)[file]; !there || got != want {
			t.Errorf("%s (there: %t) fails for %q, expected %q", file, there, got, want)
		}
	}
	if got := compare(asked); len(got) != 14 {
		t.Errorf("%d files were compared: %v", len(got), got)
	}
	// Without names any CA does; without algorithms any key.
	asked.names, asked.schemes = nil, nil
	for _, file := range []string{"alice.pem", "alone.pem", "rsa.pem", "ed25519.pem", "stranger.pem"} {
		if got := compare(asked)[file]; got != "" {
			t.Errorf("%s fails for %q", file, got)
		}
	}
	t.Run("the missing intermediate is named", func(t *testing.T) {
		asked.names = [][]byte{root.Cert.RawSubject}
		for _, c := range list {
			if filepath.Base(c.File) == "alone.pem" {
				f := fit(c, list, asked, time.Now())
				if last := f.Checks[len(f.Checks)-1]; !strings.Contains(last.Next, "ca.pem") {
					t.Errorf("%+v", last)
				}
			}
		}
	})
	t.Run("folders", func(t *testing.T) {
		if _, err := LoadCandidates(t.TempDir()); err == nil || !strings.Contains(err.Error(), "found none") {
			t.Error(err)
		}
		if _, err := LoadCandidates(filepath.Join(dir, "nowhere")); err == nil {
			t.Error("a folder that is not there")
		}
	})
}

func asStrings(parts [][]byte) (out []string) {
	for _, p := range parts {
		out = append(out, string(p))
	}
	return out
}

// TestHints: a server that names thousands of CAs, some of them with hostile names, makes a report of bounded size.
func TestHints(t *testing.T) {
	t.Parallel()
	root := testpki.New(t)
	pool := x509.NewCertPool()
	for range 400 {
		pool.AddCert(testpki.New(t, testpki.Subject(pkix.Name{CommonName: "x\x1b[2J\r\n" + strings.Repeat("y", 60)})).Cert)
	}
	conf := serverOf(root.Server("a.test"))
	conf.ClientAuth, conf.ClientCAs = tls.VerifyClientCertIfGiven, pool
	r := run(t, Options{Target: web(t, conf, okay), Path: "/"})
	for _, a := range r.ClientAuth {
		if a.CANameCount != 400 || len(a.CANames) != maxCANames || a.CANameBytes < 400*60 || strings.ContainsAny(a.CANames[0], "\x1b\r\n") {
			t.Errorf("%s: %d names, %d told: %q", a.Version, a.CANameCount, len(a.CANames), a.CANames[0])
		}
	}
	var text strings.Builder
	if err := r.WriteText(&text); err != nil || text.Len() > 20000 {
		t.Errorf("%v, %d bytes", err, text.Len())
	}
	data, err := json.Marshal(r)
	if err != nil || len(data) > 200000 {
		t.Errorf("%v, %d bytes", err, len(data))
	}
}

func TestNames(t *testing.T) {
	for _, c := range []struct {
		der, want string
		ok        bool
	}{
		{"", "a name that cannot be decoded, of 0 bytes", false},
		{"\x30\x00", "an empty name", true},
		{"\x30\x00x", "a name that cannot be decoded, of 3 bytes", false},
		{"\x30\x0f\x31\x0d\x30\x0b\x06\x03\x55\x04\x0a\x0c\x04A, B", `O=A\, B`, true},
		{"\x30\x0f\x31\x0d\x30\x0b\x06\x03\x55\x04\x03\x0c\x04a\nb\\", `CN=a\nb\\`, true},
	} {
		if got, ok := printedDER([]byte(c.der)); got != c.want || ok != c.ok {
			t.Errorf("%q: %q, %t, expected %q", c.der, got, ok, c.want)
		}
	}
	if got := quote(strings.Repeat("\x00", 1000)); len(got) > maxQuoted+8 {
		t.Errorf("%d bytes", len(got))
	}
}

// codePattern finds the codes of findings where they are made.
var codePattern = regexp.MustCompile(`(?:failed\("|severity\w+, ")([a-z0-9_]+)"|code = "([a-z_]+)"`)

// TestDocumented: docs/probe.md has every field of the JSON, every code of a finding and every value of an outcome.
func TestDocumented(t *testing.T) {
	data, err := os.ReadFile("../../docs/probe.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(rt reflect.Type) {
		for rt.Kind() == reflect.Pointer || rt.Kind() == reflect.Slice {
			rt = rt.Elem()
		}
		if rt.Kind() != reflect.Struct || rt == reflect.TypeFor[time.Time]() || seen[rt] {
			return
		}
		seen[rt] = true
		for i := range rt.NumField() {
			f := rt.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !f.IsExported() {
				continue
			}
			if !strings.Contains(page, "`"+name+"`") {
				t.Errorf("docs/probe.md has no `%s` (%s.%s)", name, rt.Name(), f.Name)
			}
			walk(f.Type)
		}
	}
	walk(reflect.TypeFor[Report]())
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	codes := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range codePattern.FindAllStringSubmatch(string(source), -1) {
			codes[m[1]+m[2]] = true
		}
	}
	if len(codes) < 40 {
		t.Errorf("found only %d codes; the test looks for the wrong thing", len(codes))
	}
	for code := range codes {
		if !strings.Contains(page, "`"+code+"`") {
			t.Errorf("docs/probe.md has no `%s`", code)
		}
	}
	for _, value := range []string{OutcomeTLS, OutcomeNotTLS, OutcomeUnreachable, certNotRequested, certOptional, certRequired, certRequested, certUnknown} {
		if !strings.Contains(page, "`"+value+"`") {
			t.Errorf("docs/probe.md has no `%s`", value)
		}
	}
}

var update = flag.Bool("update", false, "rewrite the table of alerts in docs/probe.md")

// TestAlertsPage: the table of alerts in docs/probe.md is that of the code.
func TestAlertsPage(t *testing.T) {
	const page, begin, end = "../../docs/probe.md", "<!-- alerts -->\n", "<!-- end -->"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", page)
	}
	var b strings.Builder
	b.WriteString(before + begin + "| alert | what the server says with it | next step |\n|---|---|---|\n")
	for i := range 256 {
		if a := Alert(i); alerts[a].name != "" {
			fmt.Fprintf(&b, "| %d `%s` | %s | %s |\n", a, a.Name(), a.Means(), a.Next())
		}
	}
	b.WriteString(end + after)
	if *update {
		if err := os.WriteFile(page, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if b.String() != string(text) {
		t.Errorf("%s is not what alert.go says; run: go test -run TestAlertsPage ./internal/probe -args -update", page)
	}
}
