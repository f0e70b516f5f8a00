package identity

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"countersign/internal/testpki"
)

// Pieces of DER for statements under construction, in any shape.
func tlv(tag cbasn1.Tag, parts ...[]byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(bytes.Join(parts, nil)) })
	return b.BytesOrPanic()
}

func seq(parts ...[]byte) []byte { return tlv(cbasn1.SEQUENCE, parts...) }
func text(s string) []byte       { return tlv(cbasn1.UTF8String, []byte(s)) }
func oid(dotted string) []byte   { return tlv(cbasn1.OBJECT_IDENTIFIER, mustOID(dotted)) }

func role(id, name string) []byte { return seq(oid(id), text(name)) }

func psd2Statement(roles []byte, rest ...[]byte) []byte {
	return seq(oid("0.4.0.19495.2"), seq(append([][]byte{roles}, rest...)...))
}

const roleAI, roleAS, rolePI, roleIC = "0.4.0.19495.1.3", "0.4.0.19495.1.1", "0.4.0.19495.1.2", "0.4.0.19495.1.4"

var (
	compliance  = seq(oid("0.4.0.1862.1.1"))
	webType     = seq(oid("0.4.0.1862.1.6"), seq(oid("0.4.0.1862.1.6.3")))
	sealType    = seq(oid("0.4.0.1862.1.6"), seq(oid("0.4.0.1862.1.6.2")))
	legislation = seq(oid("0.4.0.1862.1.7"), seq(tlv(cbasn1.PrintableString, []byte("GB"))))
	disclosure  = seq(oid("0.4.0.1862.1.5"), seq(seq(tlv(cbasn1.IA5String, []byte("https://ca.test/pds")), tlv(cbasn1.PrintableString, []byte("en")))))
	authority   = [][]byte{text("Federal Financial Supervisory Authority"), text("DE-BAFIN")}
	oneRole     = psd2Statement(seq(role(roleAI, "PSP_AI")), authority...)
)

func qcCert(subject []byte, values ...[]byte) *x509.Certificate {
	c := &x509.Certificate{RawSubject: subject}
	for _, v := range values {
		c.Extensions = append(c.Extensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 3}, Value: v})
	}
	return c
}

var plainSubject = rawName([]attr{utf8Attr(oidCN, "tpp")})

func TestPSD2Refuses(t *testing.T) {
	roles := func(list ...[]byte) []byte { return psd2Statement(seq(list...), authority...) }
	of := func(statements ...[]byte) []byte { return seq(statements...) }
	good := of(compliance, webType, oneRole)
	long := strings.Repeat("ä", 257)
	many := func(n int, one []byte) (list [][]byte) {
		for range n {
			list = append(list, one)
		}
		return list
	}
	var foreign [][]byte
	for i := range 17 {
		foreign = append(foreign, seq(tlv(cbasn1.OBJECT_IDENTIFIER, []byte{0x2a, byte(i)}), text("x")))
	}
	for name, value := range map[string][]byte{
		"nothing":                       {},
		"no statement":                  of(),
		"not a sequence":                tlv(cbasn1.SET, oneRole),
		"trailing octets":               append(bytes.Clone(good), 0),
		"cut off":                       good[:len(good)-1],
		"BER length":                    append([]byte{0x30, 0x82, 0, byte(len(good) - 2)}, good[2:]...),
		"indefinite length":             append(append([]byte{0x30, 0x80}, good[2:]...), 0, 0),
		"statement is not a sequence":   of(oid("0.4.0.19495.2"), oneRole),
		"statement without identifier":  of(seq(), oneRole),
		"two values":                    of(seq(oid("1.2.3"), text("a"), text("b")), oneRole),
		"statement cut off":             of(oneRole, []byte{0x30, 0x05, 0x06}),
		"identifier not minimal":        of(seq([]byte{0x06, 0x02, 0x80, 0x01}), oneRole),
		"identifier empty":              of(seq([]byte{0x06, 0x00})),
		"identifier unfinished":         of(seq([]byte{0x06, 0x02, 0x2a, 0x83})),
		"identifier too long":           of(seq(oid("1.2"+strings.Repeat(".3", maxOID))), oneRole),
		"too large":                     of(oneRole, seq(oid("1.2.3"), text(strings.Repeat("a", maxQCStatements)))),
		"too many statements":           of(append(many(maxQCStatementCount, disclosure), oneRole)...),
		"PSD2 twice":                    of(oneRole, compliance, oneRole),
		"compliance twice":              of(compliance, compliance, oneRole),
		"type twice":                    of(sealType, webType, oneRole),
		"legislation twice":             of(legislation, legislation, oneRole),
		"compliance with a value":       of(seq(oid("0.4.0.1862.1.1"), tlv(cbasn1.NULL)), oneRole),
		"type without value":            of(seq(oid("0.4.0.1862.1.6")), oneRole),
		"type without types":            of(seq(oid("0.4.0.1862.1.6"), seq()), oneRole),
		"type of text":                  of(seq(oid("0.4.0.1862.1.6"), seq(text("web"))), oneRole),
		"types and more":                of(seq(oid("0.4.0.1862.1.6"), append(seq(oid("1.2.3")), 5, 0)), oneRole),
		"too many types":                of(seq(oid("0.4.0.1862.1.6"), seq(many(maxQCTypes+1, oid("1.2.3"))...)), oneRole),
		"PSD2 without value":            of(seq(oid("0.4.0.19495.2"))),
		"PSD2 is text":                  of(seq(oid("0.4.0.19495.2"), text("PSP_AI"))),
		"PSD2 is empty":                 of(psd2Statement(nil)),
		"no roles":                      of(roles()),
		"roles are a set":               of(psd2Statement(tlv(cbasn1.SET, role(roleAI, "PSP_AI")), authority...)),
		"role is text":                  of(roles(text("PSP_AI"))),
		"role without name":             of(roles(seq(oid(roleAI)))),
		"role without identifier":       of(roles(seq(text("PSP_AI")))),
		"role and more":                 of(roles(seq(oid(roleAI), text("PSP_AI"), text("PSP_PI")))),
		"role name empty":               of(roles(role("1.2.3", ""))),
		"role name printable":           of(roles(seq(oid(roleAI), tlv(cbasn1.PrintableString, []byte("PSP_AI"))))),
		"role name too long":            of(roles(role("1.2.3", long))),
		"role name not UTF-8":           of(roles(role("1.2.3", "\xff"))),
		"role twice":                    of(roles(role(roleAI, "PSP_AI"), role(roleAI, "PSP_AI"))),
		"foreign role twice":            of(roles(role("1.2.3", "a"), role("1.2.3", "b"))),
		"too many roles":                of(roles(foreign...)),
		"AI named PI":                   of(roles(role(roleAI, "PSP_PI"))),
		"AI in small letters":           of(roles(role(roleAI, "psp_ai"))),
		"AI with a space":               of(roles(role(roleAI, "PSP_AI "))),
		"AI named in words":             of(roles(role(roleAI, "account information"))),
		"a good one, then a wrong name": of(roles(role(roleAI, "PSP_AI"), role(rolePI, "PSP_AI"))),
		"foreign role named AI":         of(roles(role("1.2.3", "PSP_AI"))),
		"foreign role named so":         of(roles(role("1.2.3", "Unspecified"))),
		"unspecified named AI":          of(roles(role("0.4.0.19495.1.0", "PSP_AI"))),
		"unspecified under any name":    of(roles(role("0.4.0.19495.1.0", "none"))),
		"unspecified and another":       of(roles(role("0.4.0.19495.1.0", "Unspecified"), role(roleAI, "PSP_AI"))),
		"no authority":                  of(psd2Statement(seq(role(roleAI, "PSP_AI")))),
		"no authority code":             of(psd2Statement(seq(role(roleAI, "PSP_AI")), text("BaFin"))),
		"three authorities":             of(psd2Statement(seq(role(roleAI, "PSP_AI")), text("a"), text("b"), text("c"))),
		"authority empty":               of(psd2Statement(seq(role(roleAI, "PSP_AI")), text(""), text("DE-BAFIN"))),
		"authority code empty":          of(psd2Statement(seq(role(roleAI, "PSP_AI")), text("BaFin"), text(""))),
		"authority too long":            of(psd2Statement(seq(role(roleAI, "PSP_AI")), text(long), text("DE-BAFIN"))),
		"authority with CR LF":          of(psd2Statement(seq(role(roleAI, "PSP_AI")), text("a\r\nX: y"), text("DE-BAFIN"))),
		"authority turned round":        of(psd2Statement(seq(role(roleAI, "PSP_AI")), text("a\u202eb"), text("DE-BAFIN"))),
		"authority code with NUL":       of(psd2Statement(seq(role(roleAI, "PSP_AI")), text("BaFin"), text("DE-BAFIN\x00"))),
		"authority is not UTF-8":        of(psd2Statement(seq(role(roleAI, "PSP_AI")), text("\xc3"), text("DE-BAFIN"))),
	} {
		t.Run("D10/malformed/"+name, func(t *testing.T) {
			refusesPSD2(t, qcCert(plainSubject, value))
		})
	}
	t.Run("D10/two extensions", func(t *testing.T) { refusesPSD2(t, qcCert(plainSubject, good, good)) })
	t.Run("D10/subject cut off", func(t *testing.T) { refusesPSD2(t, qcCert(plainSubject[:len(plainSubject)-1], good)) })
	t.Run("D10/two organization identifiers", func(t *testing.T) {
		refusesPSD2(t, qcCert(rawName([]attr{utf8Attr("2.5.4.97", "PSDDE-BAFIN-1")}, []attr{utf8Attr("2.5.4.97", "PSDDE-BAFIN-2")}), good))
	})
}

// refusesPSD2 checks that there is an error, that nothing is left beside it, and that it can be printed.
func refusesPSD2(t *testing.T, c *x509.Certificate) {
	t.Helper()
	p, ok, err := ParsePSD2(c)
	if err == nil || ok || !reflect.DeepEqual(p, PSD2{}) {
		t.Fatalf("got %+v, %t, %v; want an error alone", p, ok, err)
	}
	if s := err.Error(); !printable(s) || len(s) > 400 || !strings.Contains(s, "expected") {
		t.Errorf("not a message for people: %q", s)
	}
	if p, ok := (&Identity{chain: []*x509.Certificate{c}}).PSD2(); ok || !reflect.DeepEqual(p, PSD2{}) {
		t.Errorf("the identity has %+v, %t", p, ok)
	}
}

func TestPSD2(t *testing.T) {
	allRoles := seq(role(rolePI, "PSP_PI"), role(roleAS, "PSP_AS"), role(roleIC, "PSP_IC"), role(roleAI, "PSP_AI"))
	organized := func(id string) []byte {
		return rawName([]attr{utf8Attr(oidC, "DE")}, []attr{{"2.5.4.97", cbasn1.PrintableString, id}}, []attr{utf8Attr(oidCN, "tpp")})
	}
	bafin := PSD2{Roles: []string{"PSP_AI"}, AuthorityName: "Federal Financial Supervisory Authority", AuthorityID: "DE-BAFIN"}
	with := func(change func(*PSD2)) PSD2 {
		p := bafin
		change(&p)
		return p
	}
	for _, c := range []struct {
		name    string
		subject []byte
		value   []byte
		want    PSD2
	}{
		{"alone", plainSubject, seq(oneRole), bafin},
		{"QWAC", plainSubject, seq(compliance, disclosure, webType, oneRole), with(func(p *PSD2) { p.Qualified, p.Web = true, true })},
		{"QSealC", plainSubject, seq(oneRole, sealType, compliance), with(func(p *PSD2) { p.Qualified = true })},
		{"not qualified", plainSubject, seq(webType, oneRole), with(func(p *PSD2) { p.Web = true })},
		{"qualified elsewhere", plainSubject, seq(compliance, legislation, webType, oneRole), with(func(p *PSD2) { p.Web = true })},
		{"statements of others", plainSubject, seq(disclosure, disclosure, seq(oid("1.2.3")), oneRole), bafin},
		{"all roles, in their order", plainSubject, seq(psd2Statement(allRoles, authority...)),
			with(func(p *PSD2) { p.Roles = []string{"PSP_PI", "PSP_AS", "PSP_IC", "PSP_AI"} })},
		{"a national role beside", plainSubject, seq(psd2Statement(seq(role("1.2.3", "TPP"), role(roleAI, "PSP_AI")), authority...)), bafin},
		{"no role", plainSubject, seq(psd2Statement(seq(role("0.4.0.19495.1.0", "Unspecified")), authority...)), with(func(p *PSD2) { p.Roles = nil })},
		{"national roles", plainSubject, seq(psd2Statement(seq(role("1.2.3", "TPP")), authority...)), with(func(p *PSD2) { p.Roles = nil })},
		{"longest authority", plainSubject, seq(psd2Statement(seq(role(roleAI, "PSP_AI")), text(strings.Repeat("ä", 256)), text("AT-FMA"))),
			with(func(p *PSD2) { p.AuthorityName, p.AuthorityID = strings.Repeat("ä", 256), "AT-FMA" })},
		{"authorisation", organized("PSDDE-BAFIN-123456"), seq(oneRole), with(func(p *PSD2) { p.Organization = "PSDDE-BAFIN-123456" })},
		{"authorisation with punctuation", organized("PSDBE-NBB-1234.567.890"), seq(oneRole), with(func(p *PSD2) { p.Organization = "PSDBE-NBB-1234.567.890" })},
		{"authorisation with hyphens", organized("PSDPL-PFSA-1/2-3"), seq(oneRole), with(func(p *PSD2) { p.Organization = "PSDPL-PFSA-1/2-3" })},
		{"VAT number", organized("VATDE-123456789"), seq(oneRole), bafin},
		{"no scheme in it", organized("DE-BAFIN-1"), seq(oneRole), bafin},
		{"no authority in it", organized("PSDDE-123456"), seq(oneRole), bafin},
		{"no number in it", organized("PSDDE-BAFIN-"), seq(oneRole), bafin},
		{"no country in it", organized("PSD-BAFIN-1"), seq(oneRole), bafin},
		{"small letters in it", organized("PSDde-BAFIN-1"), seq(oneRole), bafin},
		{"authority too short in it", organized("PSDDE-B-1"), seq(oneRole), bafin},
		{"authority too long in it", organized("PSDDE-ABCDEFGHI-1"), seq(oneRole), bafin},
		{"not ASCII in it", organized("PSDDE-BAFIN-\xe4"), seq(oneRole), bafin},
		{"too long in it", organized("PSDDE-BAFIN-" + strings.Repeat("1", 256)), seq(oneRole), bafin},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok, err := ParsePSD2(qcCert(c.subject, c.value))
			if err != nil || !ok || !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, %t, %v; want %+v", got, ok, err, c.want)
			}
		})
	}
	for name, c := range map[string]*x509.Certificate{
		"no extension":    qcCert(plainSubject),
		"qualified alone": qcCert(organized("PSDDE-BAFIN-1"), seq(compliance, webType)),
	} {
		t.Run("none/"+name, func(t *testing.T) {
			if p, ok, err := ParsePSD2(c); err != nil || ok || !reflect.DeepEqual(p, PSD2{}) {
				t.Errorf("got %+v, %t, %v; want nothing", p, ok, err)
			}
		})
	}
}

// TestPSD2OfCertificate reads a whole certificate, and compares the statement with the octets of ETSI's ASN.1 module,
// written out by hand.
func TestPSD2OfCertificate(t *testing.T) {
	byHand := "\x30\x62" +
		"\x30\x08\x06\x06\x04\x00\x8e\x46\x01\x01" + // QcCompliance
		"\x30\x13\x06\x06\x04\x00\x8e\x46\x01\x06\x30\x09\x06\x07\x04\x00\x8e\x46\x01\x06\x03" + // QcType, web
		"\x30\x41\x06\x06\x04\x00\x81\x98\x27\x02" + // id-etsi-psd2-qcStatement
		"\x30\x37\x30\x26" +
		"\x30\x11\x06\x07\x04\x00\x81\x98\x27\x01\x01\x0c\x06PSP_AS" +
		"\x30\x11\x06\x07\x04\x00\x81\x98\x27\x01\x03\x0c\x06PSP_AI" +
		"\x0c\x05BaFin\x0c\x06DE-BAF"
	if built := seq(compliance, webType, psd2Statement(seq(role(roleAS, "PSP_AS"), role(roleAI, "PSP_AI")), text("BaFin"), text("DE-BAF"))); string(built) != byHand {
		t.Fatalf("the pieces of this test make\n%x, by hand it is\n%x", built, byHand)
	}
	root := testpki.New(t)
	leaf := root.Client("tpp",
		testpki.RawSubject(rawName([]attr{utf8Attr(oidC, "DE")}, []attr{utf8Attr("2.5.4.97", "PSDDE-BAF-1")}, []attr{utf8Attr(oidCN, "tpp")})),
		testpki.ExtraExt(pkix.Extension{Id: []int{1, 3, 6, 1, 5, 5, 7, 1, 3}, Value: []byte(byHand)}))
	id, err := FromChain([]*x509.Certificate{leaf.Cert, root.Cert})
	if err != nil {
		t.Fatal(err)
	}
	want := PSD2{Roles: []string{"PSP_AS", "PSP_AI"}, AuthorityName: "BaFin", AuthorityID: "DE-BAF", Organization: "PSDDE-BAF-1", Qualified: true, Web: true}
	if got, ok := id.PSD2(); !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %t; want %+v", got, ok, want)
	}
}

// TestPSD2Headers sends authorities of any name and reads the headers back.
func TestPSD2Headers(t *testing.T) {
	root := testpki.New(t)
	style := styleOf(t, Options{Dialects: []Dialect{PSD2Headers}})
	headers := func(t *testing.T, opts ...testpki.Option) map[string]string {
		t.Helper()
		id, err := FromChain([]*x509.Certificate{root.Client("tpp", opts...).Cert, root.Cert})
		if err != nil {
			t.Fatal(err)
		}
		return render(t, style, Present(id))
	}
	statement := func(name, id string) testpki.Option {
		return testpki.ExtraExt(pkix.Extension{Id: []int{1, 3, 6, 1, 5, 5, 7, 1, 3},
			Value: seq(compliance, webType, psd2Statement(seq(role(roleAS, "PSP_AS"), role(roleAI, "PSP_AI")), text(name), text(id)))})
	}
	t.Run("D07/no statement, no headers", func(t *testing.T) {
		if got := headers(t); len(got) != 0 {
			t.Errorf("%v", got)
		}
	})
	t.Run("D07/malformed statement, no headers", func(t *testing.T) {
		if got := headers(t, statement("", "DE-BAF")); len(got) != 0 {
			t.Errorf("%v", got)
		}
	})
	for _, s := range hostileSpecimens(t) {
		if len(s.text) == 0 || len(s.text) > 200 {
			continue
		}
		got := headers(t, statement(s.text, "DE-BAF"))
		if len(got) == 0 {
			continue // control characters: the whole statement is refused
		}
		if name, err := url.PathUnescape(got["X-Countersign-PSD2-Authority-Name"]); err != nil || name != s.text {
			t.Errorf("D07/%q came back as %q, %v", s.text, name, err)
		}
		if got["X-Countersign-PSD2-Roles"] != "PSP_AS,PSP_AI" || got["X-Countersign-PSD2-Authority-Id"] != "DE-BAF" {
			t.Errorf("%v", got)
		}
	}
	for _, name := range PSD2Headers.Headers() {
		if !Protected([]byte(name)) {
			t.Errorf("D01/%s is not protected", name)
		}
	}
}

func FuzzQCStatements(f *testing.F) {
	f.Add(seq(compliance, webType, legislation, disclosure, oneRole))
	f.Add(seq(psd2Statement(seq(role("0.4.0.19495.1.0", "Unspecified")), authority...)))
	f.Add(seq(psd2Statement(seq(role(roleAS, "PSP_AS"), role(roleIC, "PSP_IC"), role("1.2.3", "x")), authority...), oneRole))
	f.Fuzz(func(t *testing.T, value []byte) {
		p, ok, err := ParsePSD2(qcCert(plainSubject, value))
		if err != nil {
			if ok || !reflect.DeepEqual(p, PSD2{}) || !printable(err.Error()) || len(err.Error()) > 400 {
				t.Errorf("%+v, %t, %q", p, ok, err)
			}
			return
		}
		if !ok {
			return
		}
		// What is believed can be made again from what was read, and says the same to a reader of another make.
		var list []struct {
			ID   asn1.ObjectIdentifier
			Info asn1.RawValue `asn1:"optional"`
		}
		if rest, err := asn1.Unmarshal(value, &list); err != nil && strings.Contains(err.Error(), "base 128 integer too large") {
			return // a long arc, which encoding/asn1 cannot hold
		} else if err != nil || len(rest) > 0 {
			t.Fatalf("encoding/asn1: %v", err)
		}
		found := 0
		for _, s := range list {
			if !s.ID.Equal(asn1.ObjectIdentifier{0, 4, 0, 19495, 2}) {
				continue
			}
			found++
			var statement struct {
				Roles []struct {
					ID   asn1.ObjectIdentifier
					Name string `asn1:"utf8"`
				}
				Name string `asn1:"utf8"`
				ID   string `asn1:"utf8"`
			}
			if rest, err := asn1.Unmarshal(s.Info.FullBytes, &statement); err != nil && strings.Contains(err.Error(), "base 128 integer too large") {
				return
			} else if err != nil || len(rest) > 0 {
				t.Fatalf("encoding/asn1: %v", err)
			}
			var roles []string
			for _, r := range statement.Roles {
				if n := len(r.ID) - 1; r.ID[:n].Equal(asn1.ObjectIdentifier{0, 4, 0, 19495, 1}) && r.ID[n] > 0 && r.ID[n] < 5 {
					roles = append(roles, r.Name)
				}
			}
			if !reflect.DeepEqual(roles, p.Roles) || statement.Name != p.AuthorityName || statement.ID != p.AuthorityID {
				t.Errorf("encoding/asn1 reads %+v, we %+v", statement, p)
			}
		}
		if found != 1 {
			t.Errorf("%d PSD2 statements", found)
		}
	})
}

func BenchmarkPSD2(b *testing.B) {
	for name, c := range map[string]*x509.Certificate{
		"none": qcCert(plainSubject),
		"QWAC": qcCert(rawName([]attr{utf8Attr("2.5.4.97", "PSDDE-BAFIN-1")}), seq(compliance, webType, oneRole)),
	} {
		id := &Identity{chain: []*x509.Certificate{c}}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				id.PSD2()
			}
		})
	}
}
