package identity

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"

	"golang.org/x/crypto/cryptobyte/asn1"

	"countersign/internal/reason"
)

func TestAppendNameRefuses(t *testing.T) {
	good := rawName([]attr{utf8Attr(oidCN, "a")})
	for name, raw := range map[string][]byte{
		"nothing":          {},
		"trailing octets":  append(slices.Clone(good), 0),
		"cut off":          good[:len(good)-1],
		"not a sequence":   append([]byte{0x31}, good[1:]...),
		"rdn not a set":    {0x30, 0x02, 0x30, 0x00},
		"pair not a pair":  {0x30, 0x04, 0x31, 0x02, 0x31, 0x00},
		"no value":         {0x30, 0x09, 0x31, 0x07, 0x30, 0x05, 0x06, 0x03, 0x55, 0x04, 0x03},
		"third in pair":    {0x30, 0x0d, 0x31, 0x0b, 0x30, 0x09, 0x06, 0x03, 0x55, 0x04, 0x03, 0x0c, 0x00, 0x0c, 0x00},
		"empty oid":        {0x30, 0x08, 0x31, 0x06, 0x30, 0x04, 0x06, 0x00, 0x0c, 0x00},
		"non-minimal oid":  {0x30, 0x0a, 0x31, 0x08, 0x30, 0x06, 0x06, 0x02, 0x80, 0x01, 0x0c, 0x00},
		"unfinished oid":   {0x30, 0x0a, 0x31, 0x08, 0x30, 0x06, 0x06, 0x02, 0x55, 0x84, 0x0c, 0x00},
		"BER length":       append([]byte{0x30, 0x81, byte(len(good) - 2)}, good[2:]...),
		"indefinite":       append(append([]byte{0x30, 0x80}, good[2:]...), 0, 0),
		"oid over maxOID":  rawName([]attr{utf8Attr("1.2"+strings.Repeat(".3", maxOID), "a")}),
		"value of no type": {0x30, 0x09, 0x31, 0x07, 0x30, 0x05, 0x06, 0x03, 0x55, 0x04, 0x03, 0x0c},
	} {
		t.Run("D10/malformed/"+name, func(t *testing.T) {
			out, err := AppendName([]byte("x"), raw)
			if string(out) != "x" || reasonOf(err) != reason.ClientCertUnparsable {
				t.Errorf("got %q, %v; want client_cert_unparsable", out, err)
			}
		})
	}
	t.Run("D11/longest name", func(t *testing.T) {
		longest := maxName - len("CN=")
		if got := printName(t, rawName([]attr{utf8Attr(oidCN, strings.Repeat("a", longest))})); len(got) != maxName {
			t.Errorf("got %d bytes", len(got))
		}
		out, err := AppendName([]byte("x"), rawName([]attr{utf8Attr(oidCN, strings.Repeat("a", longest+1))}))
		if string(out) != "x" || reasonOf(err) != reason.IdentityTooLarge {
			t.Errorf("got %d bytes, %v; want identity_too_large", len(out), err)
		}
	})
}

func TestAppendName(t *testing.T) {
	one := func(a ...attr) []attr { return a }
	ucs2 := func(units ...uint16) (s string) {
		for _, u := range units {
			s += string([]byte{byte(u >> 8), byte(u)})
		}
		return s
	}
	cn := func(text string) [][]attr { return [][]attr{one(utf8Attr(oidCN, text))} }
	for _, test := range []struct {
		name string
		rdns [][]attr
		want string
	}{
		{"D07/CR LF NUL", cn("a\r\nb\x00c"), `CN=a\0D\0Ab\00c`},
		{"D07/quote", cn(`"a"`), `CN=\"a\"`},
		{"D07/bidi override", cn("a\u202eb"), `CN=a\E2\80\AEb`},
		{"D07/delete", cn("\x7f"), `CN=\7F`},
		{"D07/hash is not a hex value", cn("#0C0161"), `CN=\#0C0161`},
		{"D07/lone hash", cn("#"), `CN=#`},
		{"D07/backslash", cn(`\2C`), `CN=\\2C`},
		{"D07/separators", cn("a,O=b+C=d;e<f>"), `CN=a\,O=b\+C=d\;e\<f\>`},
		{"D07/spaces", cn("  "), `CN=\ \ `},
		{"D07/one space", cn(" "), `CN=\ `},
		{"D07/lone surrogate is not dropped", [][]attr{one(attr{oidCN, bmpString, ucs2('a', 0xd800, 'b')})}, "CN=#1E060061D8000062"},
		{"D07/surrogate pair", [][]attr{one(attr{oidCN, bmpString, ucs2(utf16.Encode([]rune("😀"))...)})}, "CN=#1E04D83DDE00"},
		{"D07/half a code unit", [][]attr{one(attr{oidCN, bmpString, "\x00ab"})}, "CN=#1E03006162"},
		{"D07/beyond Unicode", [][]attr{one(attr{oidCN, universalString, "\x00\x11\x00\x00"})}, "CN=#1C0400110000"},
		{"D07/far beyond Unicode", [][]attr{one(attr{oidCN, universalString, "\xff\xff\xff\xff"})}, "CN=#1C04FFFFFFFF"},
		{"D07/not UTF-8", cn("\xc3"), "CN=#0C01C3"},
		{"D07/overlong UTF-8", cn("\xc0\xaf"), "CN=#0C02C0AF"},
		{"B10/NUL does not end a name", cn("victim.test\x00.evil"), `CN=victim.test\00.evil`},
		{"B09/both CNs", [][]attr{one(utf8Attr(oidCN, "victim")), one(utf8Attr(oidO, "x")), one(utf8Attr(oidCN, "attacker"))},
			"CN=attacker,O=x,CN=victim"},
		{"B09/multi-valued is not two", [][]attr{one(utf8Attr(oidOU, "admin"), utf8Attr(oidCN, "bob"))}, "CN=bob+OU=admin"},
		{"D10/empty", nil, ""},
		{"D10/empty value", cn(""), "CN="},
		{"D10/no string", [][]attr{one(attr{oidCN, asn1.INTEGER, "\x01"})}, "CN=#020101"},
		{"D10/all widths", [][]attr{one(attr{oidCN, bmpString, ucs2('A', 0xc4, 0x20ac)}, attr{oidO, universalString, "\x00\x01\xf6\x00"},
			attr{oidOU, asn1.T61String, "\xc4"})}, `OU=\C3\84+O=\F0\9F\98\80+CN=A\C3\84\E2\82\AC`},

		// Captured from live ALBs, and made with OpenSSL 3.0.19 (reference/alb.md section 2.3).
		{"D09/live EE", [][]attr{one(utf8Attr(oidC, "EE")), one(utf8Attr(oidCN, "MÄNNIK,MARILIIS,47101010033")),
			one(utf8Attr("2.5.4.4", "MÄNNIK")), one(utf8Attr("2.5.4.42", "MARILIIS")),
			one(attr{"2.5.4.5", asn1.PrintableString, "PNOEE-47101010033"})},
			`serialNumber=PNOEE-47101010033,GN=MARILIIS,SN=M\C3\84NNIK,CN=M\C3\84NNIK\,MARILIIS\,47101010033,C=EE`},
		{"D09/live EE issuer", [][]attr{one(utf8Attr(oidC, "EE")), one(utf8Attr(oidO, "SK ID Solutions AS")),
			one(utf8Attr("2.5.4.97", "NTREE-10747013")), one(utf8Attr(oidCN, "ESTEID2018"))},
			"CN=ESTEID2018,organizationIdentifier=NTREE-10747013,O=SK ID Solutions AS,C=EE"},
		{"D09/multi-valued", [][]attr{one(utf8Attr(oidC, "US")), one(utf8Attr(oidO, "A"), utf8Attr(oidOU, "B")), one(utf8Attr(oidCN, "multi"))},
			"CN=multi,OU=B+O=A,C=US"},
		{"D09/unknown type", [][]attr{one(utf8Attr(oidC, "US")), one(utf8Attr("1.2.3.4.5", "foo")), one(utf8Attr(oidCN, "unk"))},
			"CN=unk,1.2.3.4.5=#0C03666F6F,C=US"},
		{"D09/every escape", [][]attr{one(utf8Attr(oidC, "EE")), one(utf8Attr(oidO, `SK ID, Solutions "AS" + Co; <x>\y`)),
			one(utf8Attr(oidOU, "#lead")), one(utf8Attr("0.9.2342.19200300.100.1.1", "u1")), one(utf8Attr("0.9.2342.19200300.100.1.25", "example")),
			one(utf8Attr("1.2.840.113549.1.9.1", "a@b.c")), one(utf8Attr("2.5.4.7", " lead and trail ")), one(utf8Attr("2.5.4.8", "a=b"))},
			`ST=a=b,L=\ lead and trail\ ,emailAddress=a@b.c,DC=example,UID=u1,OU=\#lead,O=SK ID\, Solutions \"AS\" \+ Co\; \<x\>\\y,C=EE`},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := printName(t, rawName(test.rdns...)); got != test.want {
				t.Errorf("\n got %s\nwant %s", got, test.want)
			}
		})
	}
	t.Run("keeps dst", func(t *testing.T) {
		if out, err := AppendName([]byte("a"), rawName(cn("b")...)); string(out) != "aCN=b" || err != nil {
			t.Errorf("got %q, %v", out, err)
		}
	})
}

// TestAgainstOpenSSL compares with the printer AWS ALB uses, on names nobody would issue.
func TestAgainstOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed: names were not compared with its printer")
	}

	t.Run("D10/attribute types", func(t *testing.T) {
		list, err := exec.Command(openssl, "list", "-objects").Output()
		if err != nil {
			t.Skipf("openssl list -objects: %v", err)
		}
		version, _ := exec.Command(openssl, "version").Output()
		theirs := map[string]string{}
		for _, m := range regexp.MustCompile(`(?m)^(\S+) = (?:.*, )?([0-9.]+)$`).FindAllStringSubmatch(string(list), -1) {
			dot := strings.LastIndexByte(m[2], '.')
			if dot > 0 && slices.ContainsFunc(attributeTypes, func(g struct{ arc, names string }) bool { return g.arc == m[2][:dot] }) {
				theirs[m[2]] = m[1]
			}
		}
		for _, group := range attributeTypes {
			fields := strings.Fields(group.names)
			for i := 0; i < len(fields); i += 2 {
				oid := group.arc + "." + fields[i]
				if theirs[oid] != fields[i+1] {
					t.Errorf("%s: openssl says %q, we say %q", oid, theirs[oid], fields[i+1])
				}
				delete(theirs, oid)
			}
		}
		if len(theirs) > 0 && strings.HasPrefix(string(version), "OpenSSL 3.0.") {
			t.Errorf("names we lack: %v", theirs) // later versions add some; then the table's comment is to be updated
		}
	})

	t.Run("D10/generated names", func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 2))
		var names [][]byte
		for _, group := range attributeTypes { // each type once
			fields := strings.Fields(group.names)
			for i := 0; i < len(fields); i += 2 {
				names = append(names, rawName([]attr{utf8Attr(group.arc+"."+fields[i], fields[i])}))
			}
		}
		for b := range 256 { // each octet first, within and last, and alone
			c := string([]byte{byte(b)})
			for _, tag := range []asn1.Tag{asn1.PrintableString, asn1.T61String} {
				names = append(names, rawName([]attr{{oidCN, tag, c + "a" + c + "a" + c}}, []attr{{oidO, tag, c}}))
			}
		}
		for range 300 {
			names = append(names, randomName(random))
		}
		compared := 0
		for i, theirs := range opensslNames(t, openssl, names) {
			compared++
			if ours := printName(t, names[i]); ours != theirs {
				t.Errorf("%x\n   ours %s\nopenssl %s", names[i], ours, theirs)
			}
		}
		if compared != len(names) {
			t.Errorf("openssl printed %d of %d names", compared, len(names))
		}
	})
}

// randomName makes a name of any structure, types and characters that OpenSSL parses.
func randomName(random *rand.Rand) []byte {
	types := []string{oidCN, oidCN, oidO, oidOU, oidC, "2.5.4.5", "2.5.4.97", "0.9.2342.19200300.100.1.25", "1.2.840.113549.1.9.1",
		"1.2.3.4.5", "2.999.1", "1.3.6.1.4.1.99999.4294967295.1", "2.5.4.200"}
	characters := []rune("aZ09 ,,+\"\\<>;=##  '()/:-\x00\x01\t\r\n\x1f\x7f\u0080\u00a0äÿ\u0100\u202e\u2028€\ufeff\ufffd日")
	rdns := make([][]attr, 1+random.IntN(5))
	for i := range rdns {
		rdns[i] = make([]attr, 1+random.IntN(3))
		for j := range rdns[i] {
			text := make([]rune, random.IntN(9))
			for k := range text {
				text[k] = characters[random.IntN(len(characters))]
			}
			rdns[i][j] = attr{oid: types[random.IntN(len(types))]}
			rdns[i][j].tag, rdns[i][j].text = encodeText(random, text)
		}
	}
	return rawName(rdns...)
}

// encodeText puts text into a random string type that can hold it, or something that is no string at all.
func encodeText(random *rand.Rand, text []rune) (asn1.Tag, string) {
	narrow := []asn1.Tag{numericString, asn1.PrintableString, asn1.T61String, asn1.IA5String}
	var b []byte
	switch n := random.IntN(9); n {
	case 0, 1, 2, 3:
		for _, r := range text {
			b = append(b, byte(r))
		}
		return narrow[n], string(b)
	case 4:
		for _, r := range text {
			b = append(b, byte(r>>8), byte(r))
		}
		return bmpString, string(b)
	case 5:
		if len(text) > 0 {
			text[0] = '😀'
		}
		for _, r := range text {
			b = append(b, 0, byte(r>>16), byte(r>>8), byte(r))
		}
		return universalString, string(b)
	case 6:
		return asn1.BIT_STRING, "\x04\xf0"
	default:
		return asn1.UTF8String, string(text)
	}
}

// opensslNames lets one openssl process print the subject of a certificate per name: "openssl verify" takes many files,
// refuses each as self-signed, and on the way prints its subject as "openssl x509 -subject" does. The latter, which takes
// one file, is asked for the last few names, to see that both agree.
func opensslNames(t *testing.T, openssl string, names [][]byte) map[int]string {
	t.Helper()
	dir := t.TempDir()
	files := make([]string, len(names))
	for i, name := range names {
		files[i] = filepath.Join(dir, strconv.Itoa(i))
		encoded := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certDER(t, name, 0)})
		if err := os.WriteFile(files[i], encoded, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var stderr bytes.Buffer
	verify := exec.Command(openssl, append([]string{"verify", "-no-CAfile", "-no-CApath", "-no-CAstore", "-nameopt", "RFC2253"}, files...)...)
	verify.Stderr = &stderr
	var exit *exec.ExitError
	if err := verify.Run(); !errors.As(err, &exit) {
		t.Fatalf("openssl verify: %v", err)
	}
	printed := map[int]string{}
	var name string
	for line := range strings.Lines(stderr.String()) {
		line = strings.TrimSuffix(line, "\n")
		var i int
		switch file, ok := strings.CutSuffix(line, ": verification failed"); {
		case ok:
			if _, err := fmt.Sscan(filepath.Base(file), &i); err != nil {
				t.Fatalf("openssl verify says %q", line)
			}
			printed[i] = name
		case !strings.HasPrefix(line, "error "):
			name = line
		}
	}
	for i := max(0, len(names)-5); i < len(names); i++ {
		out, err := exec.Command(openssl, "x509", "-in", files[i], "-noout", "-subject", "-nameopt", "RFC2253").Output()
		if err != nil {
			t.Fatalf("openssl x509: %v", err)
		}
		if got := strings.TrimSuffix(strings.TrimPrefix(string(out), "subject="), "\n"); got != printed[i] {
			t.Errorf("openssl x509 prints %q, openssl verify %q", got, printed[i])
		}
	}
	return printed
}

func FuzzAppendName(f *testing.F) {
	f.Add(rawName([]attr{utf8Attr(oidCN, "a,b"), {oidO, bmpString, "\x00a\xd8\x00"}}, []attr{{"1.2.3", asn1.INTEGER, "\x01"}}))
	random := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		f.Add(randomName(random))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		out, err := AppendName([]byte("x"), raw)
		if err != nil && string(out) != "x" {
			t.Errorf("error and output: %q, %v", out, err)
		}
		if out[0] != 'x' || len(out) > 1+maxName || !printable(string(out)) {
			t.Errorf("not printable or too long: %q", out)
		}
	})
}

func BenchmarkAppendName(b *testing.B) {
	raw := rawName([]attr{utf8Attr(oidC, "EE")}, []attr{utf8Attr(oidO, "Example, Inc.")}, []attr{utf8Attr(oidCN, "MÄNNIK")})
	buf := make([]byte, 0, 256)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := AppendName(buf, raw); err != nil {
			b.Fatal(err)
		}
	}
}
