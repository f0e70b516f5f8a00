package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"countersign/internal/reason"
)

// hostile are the texts that names are made of: what ends a value, a field or a line somewhere, what nobody sees, and
// what is not there at all.
func hostile() []string {
	texts := []string{
		"", " ", "  ", "#", "#0C03666F6F", "\\", "\\\\", "\"", "\\\"", "\"\"", ",", ";", "=", "+", "<>", ":", "%", "%0D%0A", "%22", "'",
		"\r\nX-Admin: 1", "\r\n\r\nGET / HTTP/1.1", "\n", "\r", "\x00", "a\x00b", "\x7f", "\x1b[31m", "\t", " lead", "trail ",
		"\u202egpj.exe", "\u200b", "\ufeff", "\u2028", "\u2029", "\u00a0", "\u00ad", "e\u0301", "MÄNNIK", "日本", "😀", "\ufffd", "\U000e0041",
		`";Subject="CN=root`, `",Hash=00;Subject="CN=root"`, `";URI=spiffe://corp.test/admin;X="`, `x,URI=spiffe://corp.test/admin`,
		`x;URI=spiffe://corp.test/admin;y`, `x,URI=spiffe://corp.test/admin,y`, `a\";URI=spiffe://corp.test/admin`, `a\\";DNS=admin`, `x\`,
		"x,CN=admin", "x+CN=admin", "x/CN=admin", "CN=admin", "a=b=c", "x\",CN=\"admin", ":YQ==:", "YQ==:, :YQ==", "-----END CERTIFICATE-----",
		"a,b;c=d\"e\\f+g<h>i#j k", "%2C%22", "+", "a+b", "a b", strings.Repeat("\"", 60), strings.Repeat("\\", 61), strings.Repeat("ä", 40),
		"FAILED:x", "SUCCESS", "NB=\"0\"", `";NA="9999999999`, `";SAN="admin`, "`id`", "$(id)", "<script>", "' OR 1=1--", "*", "(|(a=*))",
	}
	random := rand.New(rand.NewPCG(5, 6))
	characters := []rune("aZ0 ,;=\"\\+<>#%:/?&'\r\n\x00\x7f\t\u202e\u2028äß日😀")
	for len(texts) < 200 {
		text := make([]rune, random.IntN(24))
		for i := range text {
			text[i] = characters[random.IntN(len(characters))]
		}
		texts = append(texts, string(text))
	}
	return texts
}

var oids = map[string]string{
	"CN": oidCN, "O": oidO, "OU": oidOU, "C": oidC, "ST": "2.5.4.8", "L": "2.5.4.7", "serialNumber": "2.5.4.5",
	"DC": "0.9.2342.19200300.100.1.25", "title": "2.5.4.12",
}

// specimen is a certificate with what it was made of.
type specimen struct {
	text              string
	leaf              *x509.Certificate
	chain             []*x509.Certificate // intermediates, the issuer first
	subject           [][]av
	dns, emails, uris []string
	spiffe            string
	client            Client
}

func encodeName(rdns [][]av) []byte {
	raw := make([][]attr, len(rdns))
	for i, rdn := range rdns {
		for _, a := range rdn {
			raw[i] = append(raw[i], utf8Attr(oids[a.name], a.text))
		}
	}
	return rawName(raw...)
}

// hostileSpecimens has one specimen of each hostile text. They are shared: nobody changes them.
func hostileSpecimens(t testing.TB) []*specimen {
	madeSpecimens.Do(func() {
		for _, text := range hostile() {
			specimens = append(specimens, specimenOf(t, text))
		}
	})
	return specimens
}

var (
	madeSpecimens sync.Once
	specimens     []*specimen
)

// specimenOf is a leaf with text wherever a name can have it, under an intermediate of the same name.
func specimenOf(t testing.TB, text string) *specimen {
	s := &specimen{
		text:    text,
		subject: [][]av{{{"DC", text}}, {{"C", "EE"}}, {{"O", text}, {"OU", text}}, {{"title", "t"}}, {{"serialNumber", text}}, {{"CN", "first"}}, {{"CN", text}}},
		dns:     []string{"a.test", text, "*.b.test"},
		emails:  []string{text},
		uris:    []string{"https://a.test/x?y=1,2;z", "x:" + text},
	}
	raw := encodeName(s.subject)
	root := parse(t, certDER(t, rawName([]attr{utf8Attr(oidCN, "root")}), 0))
	middle := *parse(t, certDER(t, raw, 0))
	middle.RawIssuer = root.RawSubject
	leaf := *parse(t, certDER(t, raw, 3))
	leaf.Extensions = []pkix.Extension{sanExtension(s)}
	s.leaf, s.chain = &leaf, []*x509.Certificate{&middle}
	id, err := FromChain([]*x509.Certificate{&leaf, &middle, root})
	if err != nil {
		t.Fatal(err)
	}
	s.client = Present(id)
	return s
}

func sanExtension(s *specimen) pkix.Extension {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for tag, names := range [][]string{1: s.emails, 2: s.dns, 6: s.uris, 7: {"\x0a\x00\x00\x01"}} {
			for _, name := range names {
				b.AddASN1(cbasn1.Tag(tag|0x80), func(b *cryptobyte.Builder) { b.AddBytes([]byte(name)) })
			}
		}
	})
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: b.BytesOrPanic()}
}

// styleOf compiles options that a test relies on.
func styleOf(t testing.TB, o Options) *Style {
	t.Helper()
	s, err := NewStyle(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// whole renders one dialect with all that it has.
func whole(t testing.TB, d Dialect) *Style {
	return styleOf(t, Options{Dialects: []Dialect{d}, Chain: d != ALB && d != XSSLClient && d != PSD2Headers, XFCCCert: d == XFCC})
}

func render(t testing.TB, s *Style, c Client) map[string]string {
	t.Helper()
	out, dropped, err := s.Append(nil, c, ForwardedCerts{})
	if err != nil || dropped {
		t.Fatalf("dropped %v, %v", dropped, err)
	}
	_, values := lines(t, out)
	return values
}

// checks read a dialect's headers back and say what does not agree with the specimen.
var checks = map[Dialect]func(s *specimen, got map[string]string) error{
	RFC9440: checkRFC9440, ALB: checkALB, XFCC: checkXFCC, XSSLClient: checkXSSLClient, Traefik: checkTraefik, GCP: checkGCP,
	PSD2Headers: func(_ *specimen, got map[string]string) error { return equal("headers of no QWAC", len(got), 0) },
}

func equal(what string, got, want any) error {
	if !reflect.DeepEqual(got, want) {
		return fmt.Errorf("%s\n got %q\nwant %q", what, got, want)
	}
	return nil
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func checkRFC9440(s *specimen, got map[string]string) error {
	leaf, err := sfList(got["Client-Cert"])
	chain, err2 := sfList(got["Client-Cert-Chain"])
	return first(err, err2, equal("leaf", leaf, [][]byte{s.leaf.Raw}), equal("chain", chain, ders(s.chain)))
}

func checkALB(s *specimen, got map[string]string) error {
	const p = "X-Amzn-Mtls-Clientcert-"
	subject, err := rfc2253(got[p+"Subject"])
	issuer, err2 := rfc2253(got[p+"Issuer"])
	leaf, err3 := pemList(got[p+"Leaf"])
	return first(err, err2, err3, equal("subject", subject, s.subject), equal("issuer", issuer, s.subject),
		equal("leaf", leaf, [][]byte{s.leaf.Raw}), equal("headers", len(got), 5))
}

func checkXFCC(s *specimen, got map[string]string) error {
	value := got["X-Forwarded-Client-Cert"]
	elements, err := xfcc(value, false)
	if err != nil {
		return err
	}
	generic, err := xfcc(value, true)
	if err != nil {
		return fmt.Errorf("read with backslash as general escape: %w", err)
	}
	if len(elements) != 1 || len(generic) != 1 || len(elements[0]) != len(generic[0]) {
		return fmt.Errorf("%d and %d elements, want one, read alike", len(elements), len(generic))
	}
	var keys, uris, dns []string
	values := map[string]string{}
	for i, pair := range elements[0] {
		keys = append(keys, pair.name)
		if generic[0][i].name != pair.name {
			return fmt.Errorf("keys differ: %q", keys)
		}
		values[pair.name] = pair.text
		text, err := unhex(pair.text)
		switch pair.name {
		case "URI":
			uris = append(uris, text)
		case "DNS":
			dns = append(dns, text)
		}
		if err != nil && pair.name != "Subject" {
			return err
		}
	}
	// Parsers that split at separators first, whatever the quotes say, must not find more in Subject than we put there.
	naive := 0
	for part := range strings.FieldsFuncSeq(values["Subject"], func(r rune) bool { return r == ';' || r == ',' }) {
		key, _, _ := strings.Cut(part, "=")
		if slices.Contains([]string{"by", "hash", "cert", "chain", "uri", "dns", "subject"}, strings.ToLower(key)) {
			naive++
		}
	}
	sum := sha256.Sum256(s.leaf.Raw)
	subject, err := rfc2253(values["Subject"])
	cert, err2 := pemList(values["Cert"])
	chain, err3 := pemList(values["Chain"])
	wantKeys := []string{"Hash", "Cert", "Chain", "Subject"}
	for range s.uris {
		wantKeys = append(wantKeys, "URI")
	}
	for range s.dns {
		wantKeys = append(wantKeys, "DNS")
	}
	return first(err, err2, err3, equal("keys", keys, wantKeys), equal("hash", values["Hash"], hex.EncodeToString(sum[:])),
		equal("cert", cert, [][]byte{s.leaf.Raw}), equal("chain", chain, append([][]byte{s.leaf.Raw}, ders(s.chain)...)),
		equal("subject", subject, s.subject), equal("uris", uris, s.uris), equal("dns", dns, s.dns), equal("keys in Subject", naive, 0))
}

func checkXSSLClient(s *specimen, got map[string]string) error {
	const p = "X-SSL-Client-"
	subject, err := rfc2253(got[p+"S-DN"])
	issuer, err2 := rfc2253(got[p+"I-DN"])
	cert, err3 := pemList(got[p+"Cert"])
	from, err4 := time.Parse("Jan _2 15:04:05 2006 MST", got[p+"Not-Before"])
	to, err5 := time.Parse("Jan _2 15:04:05 2006 MST", got[p+"Not-After"])
	serial, _ := new(big.Int).SetString(got[p+"Serial"], 16)
	sum := sha256.Sum256(s.leaf.Raw)
	return first(err, err2, err3, err4, err5, equal("subject", subject, s.subject), equal("issuer", issuer, s.subject),
		equal("cert", cert, [][]byte{s.leaf.Raw}), equal("verify", got[p+"Verify"], "SUCCESS"), equal("from", from.UTC(), s.leaf.NotBefore.UTC()),
		equal("to", to.UTC(), s.leaf.NotAfter.UTC()), equal("sum", got[p+"SHA256"], hex.EncodeToString(sum[:])),
		equal("serial", fmt.Sprint(serial), s.leaf.SerialNumber.String()), equal("headers", len(got), 8))
}

func checkTraefik(s *specimen, got map[string]string) error {
	want := append([]*x509.Certificate{s.leaf}, s.chain...)
	var raws [][]byte
	for text := range strings.SplitSeq(got["X-Forwarded-Tls-Client-Cert"], ",") {
		der, err := base64.StdEncoding.Strict().DecodeString(text)
		if err != nil {
			return err
		}
		raws = append(raws, der)
	}
	infos, err := traefik(got["X-Forwarded-Tls-Client-Cert-Info"])
	if err != nil {
		return err
	}
	if len(infos) != len(want) {
		return fmt.Errorf("%d infos for %d certificates", len(infos), len(want))
	}
	if err := equal("certificates", raws, ders(want)); err != nil {
		return err
	}
	for i, info := range infos {
		subject, err := traefikList(info["Subject"], true)
		san, err2 := traefikList(info["SAN"], false)
		serial, err3 := unhex(info["SerialNumber"])
		wantSAN := []av(nil)
		if i == 0 {
			for _, name := range slices.Concat(s.dns, s.emails, []string{net.IPv4(10, 0, 0, 1).String()}, s.uris) {
				wantSAN = append(wantSAN, av{"", name})
			}
		}
		if err := first(err, err2, err3, equal("subject", subject, traefikOrder(s.subject, true)), equal("SAN", san, wantSAN),
			equal("serial", serial, want[i].SerialNumber.String()), equal("NB", info["NB"], strconv.FormatInt(want[i].NotBefore.Unix(), 10)),
			equal("NA", info["NA"], strconv.FormatInt(want[i].NotAfter.Unix(), 10))); err != nil {
			return fmt.Errorf("certificate %d: %w", i, err)
		}
	}
	issuer, err := traefikList(infos[0]["Issuer"], true)
	return first(err, equal("issuer", issuer, traefikOrder(s.subject, false)))
}

func checkGCP(s *specimen, got map[string]string) error {
	const p = "X-Client-Cert-"
	leaf, err := sfList(got[p+"Leaf"])
	chain, err2 := sfList(got[p+"Chain"])
	hash, err3 := base64.RawStdEncoding.Strict().DecodeString(got[p+"Hash"])
	from, err4 := time.Parse(time.RFC3339, got[p+"Valid-Not-Before"])
	to, err5 := time.Parse(time.RFC3339, got[p+"Valid-Not-After"])
	serial, err6 := hex.DecodeString(strings.ReplaceAll(got[p+"Serial-Number"], ":", ""))
	errs := []string{}
	if got[p+"Error"] != "" {
		errs = strings.Split(got[p+"Error"], ",")
	}
	limited := func(what, header, variable string, want ...string) error {
		encoded := make([]string, len(want))
		for i := range want {
			encoded[i] = base64.StdEncoding.EncodeToString([]byte(want[i]))
		}
		over := len(strings.Join(encoded, ",")) > 512
		if over != slices.Contains(errs, "client_cert_"+variable+"_exceeded_size_limit") || over && got[p+header] != "" {
			return fmt.Errorf("%s over the limit: %v, error %q", what, over, errs)
		}
		if over {
			return nil
		}
		return equal(what, got[p+header], strings.Join(encoded, ","))
	}
	sum := sha256.Sum256(s.leaf.Raw)
	uris := s.uris
	if s.spiffe != "" {
		uris = slices.DeleteFunc(slices.Clone(uris), func(u string) bool { return u == s.spiffe })
	}
	return first(err, err2, err3, err4, err5, err6, equal("leaf", leaf, [][]byte{s.leaf.Raw}), equal("chain", chain, ders(s.chain)),
		equal("hash", hash, sum[:]), equal("from", from.UTC(), s.leaf.NotBefore.UTC()), equal("to", to.UTC(), s.leaf.NotAfter.UTC()),
		equal("serial", new(big.Int).SetBytes(serial).String(), s.leaf.SerialNumber.String()),
		equal("verified", got[p+"Present"]+got[p+"Chain-Verified"], "truetrue"), equal("spiffe", got[p+"SPIFFE"], s.spiffe),
		limited("dns", "DNSName-SANs", "dnsname_sans", s.dns...), limited("uris", "URI-SANs", "uri_sans", uris...),
		limited("subject", "Subject-DN", "subject_dn", string(s.leaf.RawSubject)), limited("issuer", "Issuer-DN", "issuer_dn", string(s.leaf.RawIssuer)))
}

// TestHostileNames sends every hostile name through every dialect and reads it back.
func TestHostileNames(t *testing.T) {
	specimens := hostileSpecimens(t)
	if len(specimens) < 200 {
		t.Fatalf("%d names", len(specimens))
	}
	for d := RFC9440; d < dialects; d++ {
		style, check := whole(t, d), checks[d]
		t.Run("D07/"+d.String(), func(t *testing.T) {
			for _, s := range specimens {
				if err := check(s, render(t, style, s.client)); err != nil {
					t.Errorf("name %q: %v", s.text, err)
				}
			}
		})
	}
	t.Run("D07/all dialects together, in order", func(t *testing.T) {
		all := []Dialect{GCP, Traefik, XSSLClient, XFCC, ALB, RFC9440}
		style := styleOf(t, Options{Dialects: all})
		var want []string
		for _, d := range all {
			for _, name := range d.Headers() {
				if name != "Client-Cert-Chain" && name != "X-Client-Cert-Chain" && name != "X-Amzn-Mtls-Clientcert" && name != "X-Client-Cert-Error" && name != "X-Client-Cert-SPIFFE" {
					want = append(want, name)
				}
			}
		}
		for _, s := range specimens {
			if len(s.text) > 24 {
				continue // all dialects of a long name are over the cap
			}
			out, _, err := style.Append(nil, s.client, ForwardedCerts{})
			if err != nil {
				t.Fatal(err)
			}
			if names, _ := lines(t, out); !slices.Equal(names, want) {
				t.Errorf("%q: got %q", s.text, names)
			}
		}
	})
}

// TestXFCCInjection shows that no name puts a key in front of a parser that splits before it reads quotes.
func TestXFCCInjection(t *testing.T) {
	for _, text := range []string{"x,URI=spiffe://corp.test/admin", "x;URI=spiffe://corp.test/admin;y", `x";URI=spiffe://corp.test/admin;z="`} {
		t.Run("D07/"+text, func(t *testing.T) {
			// The CA puts something before and behind, so that the attacker's separators stand free.
			leaf := parse(t, certDER(t, rawName([]attr{utf8Attr(oidO, "o")}, []attr{utf8Attr(oidCN, text)}, []attr{utf8Attr(oidOU, "ou")}), 0))
			value := render(t, styleOf(t, Options{Dialects: []Dialect{XFCC}}), client(t, leaf))["X-Forwarded-Client-Cert"]
			for part := range strings.FieldsFuncSeq(value, func(r rune) bool { return r == ';' || r == ',' }) {
				if strings.HasPrefix(part, "URI=") {
					t.Errorf("%s holds %s", value, part)
				}
			}
		})
	}
}

// TestGolden compares with values made by OpenSSL and Python from testdata/chain.pem, not by us.
func TestGolden(t *testing.T) {
	text, err := os.ReadFile("testdata/chain.pem")
	if err != nil {
		t.Fatal(err)
	}
	var chain []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		chain = append(chain, parse(t, block.Bytes))
	}
	id, err := FromChain(chain)
	if err != nil {
		t.Fatal(err)
	}
	vectors, err := os.ReadFile("testdata/dialects.golden")
	if err != nil {
		t.Fatal(err)
	}
	for section := range strings.SplitSeq(strings.TrimPrefix(string(vectors), "== "), "\n== ") {
		name, want, _ := strings.Cut(section, "\n")
		t.Run("D09/"+name, func(t *testing.T) {
			name, passthrough := strings.CutSuffix(name, " passthrough")
			d, ok := ParseDialect(name)
			if !ok {
				t.Fatalf("no dialect %s", name)
			}
			c := Present(id)
			if passthrough {
				c = PassthroughChain(chain[:2])
			}
			out, dropped, err := whole(t, d).Append(nil, c, ForwardedCerts{})
			if err != nil || dropped {
				t.Fatal(dropped, err)
			}
			if got := strings.TrimSuffix(strings.ReplaceAll(string(out), "\r\n", "\n"), "\n"); got != strings.TrimSuffix(want, "\n") {
				t.Errorf("\n got %s\nwant %s", got, want)
			}
		})
	}
}

// TestGCP checks the limits of Google's page, and which SPIFFE ID counts.
func TestGCP(t *testing.T) {
	style := whole(t, GCP)
	for _, c := range []struct {
		name, spiffe string
		uris         []string
	}{
		{"none", "", nil},
		{"one", "spiffe://corp.test/a", []string{"x:y", "spiffe://corp.test/a", "x:z"}},
		{"two", "", []string{"spiffe://corp.test/a", "spiffe://corp.test/b"}},
		{"two, one shouted", "", []string{"spiffe://corp.test/a", "SPIFFE://corp.test/b"}},
		{"shouted", "", []string{"SPIFFE://corp.test/a"}},
		{"no domain", "", []string{"spiffe:///a"}},
		{"port", "", []string{"spiffe://corp.test:1/a"}},
		{"user", "", []string{"spiffe://corp@corp.test/a"}},
		{"escape", "", []string{"spiffe://corp.test/%61"}},
		{"query", "", []string{"spiffe://corp.test/a?b"}},
		{"CR LF", "", []string{"spiffe://corp.test/\r\nX: y"}},
		{"in the middle", "", []string{"x:y", "spiffe://corp.test/a\"b"}},
	} {
		t.Run("D07/spiffe/"+c.name, func(t *testing.T) {
			s := specimenOf(t, "a")
			s.uris, s.spiffe = c.uris, c.spiffe
			s.leaf.Extensions = []pkix.Extension{sanExtension(s)}
			if err := checkGCP(s, render(t, style, s.client)); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("D11/over its limits", func(t *testing.T) {
		s := specimenOf(t, strings.Repeat("x", 200))
		s.dns, s.uris = []string{strings.Repeat("d", 390)}, []string{"spiffe://a/" + strings.Repeat("s", 2048), "x:" + strings.Repeat("u", 390)}
		s.leaf.Extensions = []pkix.Extension{sanExtension(s)}
		got := render(t, style, s.client)
		const want = "client_cert_spiffe_id_exceeded_size_limit,client_cert_uri_sans_exceeded_size_limit,client_cert_dnsname_sans_exceeded_size_limit," +
			"client_cert_issuer_dn_exceeded_size_limit,client_cert_subject_dn_exceeded_size_limit"
		if got["X-Client-Cert-Error"] != want {
			t.Errorf("got %s", got["X-Client-Cert-Error"])
		}
		for _, name := range []string{"SPIFFE", "URI-SANs", "DNSName-SANs", "Issuer-DN", "Subject-DN"} {
			if value, ok := got["X-Client-Cert-"+name]; ok {
				t.Errorf("%s is %q", name, value)
			}
		}
	})
}

// TestUnverified holds every dialect to say nothing of a client that is not verified.
func TestUnverified(t *testing.T) {
	s := specimenOf(t, "admin")
	all := Options{Chain: true, XFCCCert: true, XFCCAppend: true}
	for d := RFC9440; d < dialects; d++ {
		all.Dialects = append(all.Dialects, d)
	}
	style := styleOf(t, all)
	prior, err := ParseForwardedCerts(fieldsOf("X-Forwarded-Client-Cert", "Hash=00"))
	if err != nil {
		t.Fatal(err)
	}
	const verify = "X-SSL-Client-Verify: "
	shown := []*x509.Certificate{s.leaf, s.chain[0]}
	passed := "X-Amzn-Mtls-Clientcert: " + string(pemLoose.append(pemLoose.append(nil, s.leaf.Raw), s.chain[0].Raw)) + "\r\n"
	for _, c := range []struct {
		name   string
		client Client
		want   string
	}{
		{"A39/zero", Client{}, verify + "NONE\r\n"},
		{"A39/no certificate", Absent(reason.ClientCertMissing), verify + "NONE\r\n"},
		{"A39/absent for another reason", Absent(reason.Internal), verify + "FAILED:internal\r\n"},
		{"A39/untrusted", Unverified(shown, reason.ClientCertUntrusted), verify + "FAILED:client_cert_untrusted\r\n"},
		{"A39/no verdict", Unverified(shown, reason.Unset), verify + "FAILED:not_verified\r\n"},
		{"A39/a good reason is no success", Unverified(shown, reason.Completed), verify + "FAILED:not_verified\r\n"},
		{"A39/unverified without certificates", Unverified(nil, reason.ClientCertUntrusted), verify + "NONE\r\n"},
		{"A39/unverified with none that is one", Unverified([]*x509.Certificate{nil}, reason.Unset), verify + "FAILED:internal\r\n"},
		{"A39/passthrough", PassthroughChain(shown), passed + verify + "FAILED:not_verified\r\n"},
		{"A39/passthrough without certificates", PassthroughChain(nil), verify + "NONE\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, dropped, err := style.Append([]byte("a"), c.client, prior)
			if err != nil || dropped || string(out) != "a"+c.want {
				t.Errorf("got %q, %v, %v, want %q", out, dropped, err, c.want)
			}
			if id, ok := c.client.Identity(); id != nil || ok {
				t.Error("it has an identity")
			}
		})
	}
	t.Run("B07/shown is no identity, and a copy", func(t *testing.T) {
		list := slices.Clone(shown)
		c := Unverified(list, reason.ClientCertExpired)
		list[0] = nil
		c.Shown()[0] = nil
		if got := c.Shown(); !slices.Equal(got, shown) || c.Why() != reason.ClientCertExpired {
			t.Errorf("got %v", got)
		}
		if Present(nil).Shown() != nil || s.client.Shown() != nil {
			t.Error("a client shows certificates apart from its identity")
		}
	})
	t.Run("B07/the chain is the verified one", func(t *testing.T) {
		got := render(t, whole(t, RFC9440), s.client)
		if chain, err := sfList(got["Client-Cert-Chain"]); err != nil || !reflect.DeepEqual(chain, ders(s.chain)) {
			t.Errorf("got %x, %v", chain, err)
		}
		for value := range strings.SplitSeq(got["Client-Cert-Chain"], ",") {
			if bytes.Contains([]byte(value), []byte(base64.StdEncoding.EncodeToString(s.leaf.Raw))) {
				t.Error("the leaf is in the chain")
			}
		}
	})
}

// fuzzSpecimen is a leaf from a fuzzer's octets, or nil if no parser would have let them through.
func fuzzSpecimen(name []byte, text string, padding uint16, seconds int64) *specimen {
	seconds = int64(uint64(seconds) % (8000 * 365 * 86400)) // years of four digits
	s := &specimen{dns: []string{text, "a"}, emails: []string{text}, uris: []string{"x:" + text}}
	s.subject = [][]av{{{"O", string(name)}, {"CN", text}}, {{"CN", string(name)}}}
	if !utf8.Valid(name) || !utf8.ValidString(text) || len(name)+len(text) > 500 {
		return nil
	}
	raw := encodeName(s.subject)
	leaf := &x509.Certificate{
		Raw: append([]byte{1}, make([]byte, padding%2000)...), RawSubject: raw, RawIssuer: raw, SerialNumber: big.NewInt(seconds),
		NotBefore: time.Unix(seconds, 0), NotAfter: time.Unix(seconds, 0).Add(time.Hour), Extensions: []pkix.Extension{sanExtension(s)},
	}
	middle := *leaf
	middle.Extensions = nil
	s.leaf, s.chain = leaf, []*x509.Certificate{&middle}
	id, err := FromChain([]*x509.Certificate{leaf, &middle, &middle})
	if err != nil {
		return nil
	}
	s.client = Present(id)
	return s
}

func fuzzDialect(f *testing.F, d Dialect) {
	for i, text := range hostile() {
		f.Add([]byte(text), text, uint16(i), int64(i)<<27)
	}
	f.Fuzz(func(t *testing.T, name []byte, text string, padding uint16, seconds int64) {
		s := fuzzSpecimen(name, text, padding, seconds)
		if s == nil {
			return
		}
		if err := checks[d](s, render(t, whole(t, d), s.client)); err != nil {
			t.Error(err)
		}
	})
}

func FuzzRFC9440(f *testing.F)    { fuzzDialect(f, RFC9440) }
func FuzzALB(f *testing.F)        { fuzzDialect(f, ALB) }
func FuzzXFCC(f *testing.F)       { fuzzDialect(f, XFCC) }
func FuzzXSSLClient(f *testing.F) { fuzzDialect(f, XSSLClient) }
func FuzzTraefik(f *testing.F)    { fuzzDialect(f, Traefik) }
func FuzzGCP(f *testing.F)        { fuzzDialect(f, GCP) }
