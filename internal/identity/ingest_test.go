package identity

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"countersign/internal/message"
	"countersign/internal/reason"
)

func TestIngest(t *testing.T) {
	s := specimenOf(t, "a")
	sf := func(der []byte) string { return ":" + base64.StdEncoding.EncodeToString(der) + ":" }
	pem := func(ders ...[]byte) (text string) {
		for _, der := range ders {
			text += string(pemStrict.append(nil, der))
		}
		return text
	}
	leaf, other := s.leaf.Raw, s.chain[0].Raw
	hash := fmt.Sprintf("%x", sha256.Sum256(leaf))
	const h, hc, x = "Client-Cert", "Client-Cert-Chain", "X-Forwarded-Client-Cert"
	big := sf(certDER(t, rawName(), 13000))

	for _, c := range []struct {
		name    string
		dialect Dialect
		fields  []string
	}{
		{"D04/two", RFC9440, []string{h, sf(leaf), h, sf(leaf)}},
		{"D04/two, the second empty", RFC9440, []string{h, sf(leaf), "client-cert", ""}},
		{"D04/two items", RFC9440, []string{h, sf(leaf) + ", " + sf(other)}},
		{"D04/two chains", RFC9440, []string{h, sf(leaf), hc, sf(other), hc, sf(other)}},
		{"D03/underscore twin", RFC9440, []string{"Client_Cert", sf(leaf)}},
		{"D03/twin beside it", RFC9440, []string{h, sf(leaf), "Client.Cert", sf(other)}},
		{"D03/twin of the chain", RFC9440, []string{h, sf(leaf), "client-cert_chain", sf(other)}},
		{"D08/empty", RFC9440, []string{h, ""}},
		{"D08/chain alone", RFC9440, []string{hc, sf(leaf)}},
		{"D08/no colons", RFC9440, []string{h, strings.Trim(sf(leaf), ":")}},
		{"D08/one colon", RFC9440, []string{h, ":"}},
		{"D08/empty sequence", RFC9440, []string{h, "::"}},
		{"D08/no padding", RFC9440, []string{h, ":" + base64.RawStdEncoding.EncodeToString(append(leaf, 1)[:len(leaf)-len(leaf)%3+1]) + ":"}},
		{"D08/pad bits", RFC9440, []string{h, padBits(t)}},
		{"D08/URL alphabet", RFC9440, []string{h, ":" + base64.URLEncoding.EncodeToString(leaf) + ":"}},
		{"D08/line end within", RFC9440, []string{h, ":MII\nA:"}},
		{"D08/parameter", RFC9440, []string{h, sf(leaf) + ";a"}},
		{"D08/PEM", RFC9440, []string{h, pem(leaf)}},
		{"D08/trailing octet", RFC9440, []string{h, sf(append(leaf[:len(leaf):len(leaf)], 0))}},
		{"D08/not a certificate", RFC9440, []string{h, ":YQ==:"}},
		{"D08/trailing comma", RFC9440, []string{h, sf(leaf), hc, sf(other) + ","}},
		{"D08/empty member", RFC9440, []string{h, sf(leaf), hc, sf(other) + ",," + sf(other)}},
		{"D11/over the cap", RFC9440, []string{h, big}},
		{"D11/together over the cap", RFC9440, []string{h, sf(certDER(t, rawName(), 8000)), hc, sf(certDER(t, rawName(), 8000))}},

		{"D04/two", XFCC, []string{x, `Cert="` + pem(leaf) + `"`, x, `Cert="` + pem(leaf) + `"`}},
		{"D04/two elements", XFCC, []string{x, `Cert="` + pem(leaf) + `",Cert="` + pem(leaf) + `"`}},
		{"D04/two Certs", XFCC, []string{x, `Cert="` + pem(leaf) + `";cert="` + pem(leaf) + `"`}},
		{"D03/twin", XFCC, []string{"X_Forwarded_Client_Cert", `Cert="` + pem(leaf) + `"`}},
		{"no certificate", XFCC, []string{x, "Hash=" + hash + `;Subject="CN=admin"`}},
		{"B07/another Hash", XFCC, []string{x, "Hash=00" + hash[2:] + `;Cert="` + pem(leaf) + `"`}},
		{"B07/short Hash", XFCC, []string{x, `Hash=;Cert="` + pem(leaf) + `"`}},
		{"B07/Chain of another", XFCC, []string{x, `Cert="` + pem(leaf) + `";Chain="` + pem(other, leaf) + `"`}},
		{"B07/two in Cert", XFCC, []string{x, `Cert="` + pem(leaf, other) + `"`}},
		{"D07/text before PEM", XFCC, []string{x, `Cert="a%0A` + pem(leaf) + `"`}},
		{"D07/text behind PEM", XFCC, []string{x, `Cert="` + pem(leaf) + `a"`}},
		{"D07/PEM header", XFCC, []string{x, `Cert="` + strings.Replace(pem(leaf), "%0A", "%0AA:%20b%0A%0A", 1) + `"`}},
		{"D07/another PEM", XFCC, []string{x, `Cert="` + strings.ReplaceAll(pem(leaf), "CERTIFICATE", "X509%20CRL") + `"`}},
		{"D07/CR LF", XFCC, []string{x, `Cert="` + strings.ReplaceAll(pem(leaf), "%0A", "%0D%0A") + `"`}},
		{"D07/bad escape", XFCC, []string{x, `Cert="%zz"`}},
		{"D07/empty PEM", XFCC, []string{x, `Cert=""`}},
		{"D07/unknown key", XFCC, []string{x, `Cert="` + pem(leaf) + `";SAN=a`}},
		{"D07/no pair", XFCC, []string{x, "a"}},
		{"D07/open quote", XFCC, []string{x, `Cert="` + pem(leaf)}},
		{"D07/text behind the quote", XFCC, []string{x, `Cert="` + pem(leaf) + `"a`}},
		{"D07/quote within", XFCC, []string{x, `URI=a"b;Cert="` + pem(leaf) + `"`}},
		{"D07/ambiguous end", XFCC, []string{x, `Subject="CN=a\\";Cert="` + pem(leaf) + `"`}},
		{"D07/control character", XFCC, []string{x, "URI=a\x01;Cert=\"" + pem(leaf) + `"`}},
		{"D07/trailing separator", XFCC, []string{x, `Cert="` + pem(leaf) + `";`}},
		{"D07/space", XFCC, []string{x, `URI=a, Cert="` + pem(leaf) + `"`}},
		{"D11/over the cap", XFCC, []string{x, "URI=" + strings.Repeat("a", MaxHeaders)}},
	} {
		t.Run(c.dialect.String()+"/"+c.name, func(t *testing.T) {
			in, err := NewIngest(c.dialect, false)
			if err != nil {
				t.Fatal(err)
			}
			certs, err := in.Presented(fieldsOf(c.fields...))
			if certs != nil || reasonOf(err) != reason.BadHeader {
				t.Errorf("got %d certificates, %v; want bad_header", len(certs), err)
			}
		})
	}
	for _, c := range []struct {
		dialect Dialect
		fields  []string
		found   string
	}{
		{RFC9440, []string{h, sf(leaf), h, sf(leaf)}, "two"},
		{RFC9440, []string{hc, sf(leaf)}, "none"},
		{RFC9440, []string{h, ":" + strings.Repeat("A", MaxHeaders) + ":"}, fmt.Sprintf("%d bytes", MaxHeaders+2)},
		{RFC9440, []string{h, "two"}, `"two"`}, // which is what was sent
		{XFCC, []string{x, "a", x, "a"}, "two"},
		{XFCC, []string{x, "Hash=a;Hash=b"}, "two"},
		{XFCC, []string{x, "Hash=a,Hash=b"}, "2 elements"},
		{XFCC, []string{x, "Hash=a"}, "neither"},
	} {
		in, err := NewIngest(c.dialect, false)
		if err != nil {
			t.Fatal(err)
		}
		_, err = in.Presented(fieldsOf(c.fields...))
		var r *reason.Refusal
		if !errors.As(err, &r) || r.Found != c.found {
			t.Errorf("%v: %v, want what was found as %s", c.dialect, err, c.found)
		}
	}
	for _, d := range []Dialect{0, ALB, XSSLClient, Traefik, GCP, dialects} {
		if _, err := NewIngest(d, false); err == nil {
			t.Errorf("%v was accepted", d)
		}
	}
	if _, err := NewIngest(RFC9440, true); err == nil {
		t.Error("RFC 9440 with elements of earlier hops was accepted")
	}
	if _, err := (Ingest{}).Presented(fieldsOf(h, sf(leaf))); reasonOf(err) != reason.Internal {
		t.Errorf("the zero Ingest: %v", err)
	}

	for _, c := range []struct {
		name    string
		dialect Dialect
		fields  []string
		want    [][]byte
	}{
		{"none", RFC9440, []string{"Host", "a", x, "rubbish"}, nil},
		{"leaf", RFC9440, []string{"client-CERT", sf(leaf)}, [][]byte{leaf}},
		{"chain", RFC9440, []string{h, sf(leaf), hc, sf(other) + " ,  " + sf(leaf)}, [][]byte{leaf, other, leaf}},
		{"none", XFCC, []string{"Host", "a", h, "rubbish"}, nil},
		{"Cert", XFCC, []string{x, `By=;Hash=` + strings.ToUpper(hash) + `;cert="` + pem(leaf) + `";Subject="CN=\"a\",b;c=d\,e";URI=`}, [][]byte{leaf}},
		{"Cert as ALB escapes", XFCC, []string{x, `Cert="` + string(pemLoose.append(nil, leaf)) + `"`}, [][]byte{leaf}},
		{"Cert without last line end", XFCC, []string{x, `Cert="` + strings.TrimSuffix(pem(leaf), "%0A") + `"`}, [][]byte{leaf}},
		{"Chain", XFCC, []string{x, `Chain="` + pem(leaf, other) + `"`}, [][]byte{leaf, other}},
		{"Cert and Chain", XFCC, []string{x, `Cert="` + pem(leaf) + `";Chain="` + pem(leaf, other) + `"`}, [][]byte{leaf, other}},
	} {
		t.Run(c.dialect.String()+"/accepts/"+c.name, func(t *testing.T) {
			in, _ := NewIngest(c.dialect, false)
			certs, err := in.Presented(fieldsOf(c.fields...))
			if err != nil || !reflect.DeepEqual(ders(certs), c.want) {
				t.Errorf("got %x, %v", ders(certs), err)
			}
		})
	}

	for _, d := range []Dialect{RFC9440, XFCC} {
		t.Run("B07/what we render we take in/"+d.String(), func(t *testing.T) {
			for _, s := range hostileSpecimens(t) {
				var pairs []string
				for name, value := range render(t, whole(t, d), s.client) {
					pairs = append(pairs, name, value)
				}
				in, _ := NewIngest(d, false)
				certs, err := in.Presented(fieldsOf(pairs...))
				if err != nil || !reflect.DeepEqual(ders(certs), [][]byte{s.leaf.Raw, s.chain[0].Raw}) {
					t.Errorf("%q: got %d certificates, %v", s.text, len(certs), err)
				}
			}
		})
	}
}

// TestIngestAppended: of a proxy that appends, the last element is its word, whatever stands in those before it.
func TestIngestAppended(t *testing.T) {
	s := specimenOf(t, "a")
	pem := func(der []byte) string { return string(pemStrict.append(nil, der)) }
	leaf, other := s.leaf.Raw, s.chain[0].Raw
	in, err := NewIngest(XFCC, true)
	if err != nil {
		t.Fatal(err)
	}
	const x = "X-Forwarded-Client-Cert"
	for _, c := range []struct {
		name   string
		fields []string
		want   [][]byte // nil for a refusal
	}{
		{"D04/two headers", []string{x, `Cert="` + pem(other) + `"`, x, `Cert="` + pem(leaf) + `"`}, nil},
		{"B07/nothing in the last", []string{x, `Cert="` + pem(leaf) + `",Subject="CN=a"`}, nil},
		{"B07/Hash of the one before", []string{x, fmt.Sprintf(`Cert="%s",Hash=%x;Cert="%s"`, pem(other), sha256.Sum256(other), pem(leaf))}, nil},
		{"D07/quote left open by the one before", []string{x, `Subject="a,Cert="` + pem(leaf) + `"`}, nil},
		{"D07/quote closed by the last", []string{x, `Subject="a,Cert=` + pem(leaf) + `;Subject="CN=b"`}, nil},
		{"D07/backslash before the separator", []string{x, `URI=a\,Cert="` + pem(leaf) + `"`}, nil},
		{"D07/empty element in front", []string{x, `,Cert="` + pem(leaf) + `"`}, nil},
		{"one", []string{x, `Cert="` + pem(leaf) + `"`}, [][]byte{leaf}},
		{"two", []string{x, `Cert="` + pem(other) + `",Cert="` + pem(leaf) + `"`}, [][]byte{leaf}},
		{"a comma in quotes is no separator", []string{x, `Subject="CN=a,Cert=b",Cert="` + pem(leaf) + `";Subject="CN=c,Cert=d"`}, [][]byte{leaf}},
	} {
		t.Run(c.name, func(t *testing.T) {
			certs, err := in.Presented(fieldsOf(c.fields...))
			if c.want == nil && (certs != nil || reasonOf(err) != reason.BadHeader) || c.want != nil && (err != nil || !reflect.DeepEqual(ders(certs), c.want)) {
				t.Errorf("got %x, %v", ders(certs), err)
			}
		})
	}
}

// TestAppendAsserted: what differs in anything that Presented looks at differs here too.
func TestAppendAsserted(t *testing.T) {
	requests := [][]string{
		{"Client-Cert", ""}, {"Client-Cert", "a"}, {"client-cert", "a"}, {"Client_Cert", "a"}, {"Client-Cert", "a", "Client-Cert", "a"}, {"Client-Cert", "aa"},
		{"Client-Cert", "a", "Client-Cert-Chain", "b"}, {"Client-Cert-Chain", "b", "Client-Cert", "a"}, {"Client-Cert", "a", "Client.Cert.Chain", "b"},
		{"Client-Cert-Chain", "b"}, {"Client-Cert", "a\x11Client-Cert-Chain\x01b"},
	}
	in, _ := NewIngest(RFC9440, false)
	seen := map[string]int{"": -1}
	for i, r := range requests {
		got := string(in.AppendAsserted(nil, fieldsOf(append([]string{"Host", "a", "X-Forwarded-Client-Cert", "c", "Client-Certs", "d"}, r...)...)))
		if j, twice := seen[got]; twice {
			t.Errorf("%q and %d look the same", r, j)
		}
		seen[got] = i
		if again := string(in.AppendAsserted(nil, fieldsOf(append(r[:len(r):len(r)], "X-Other", "e")...))); again != got {
			t.Errorf("%q: other fields make a difference", r)
		}
	}
	if got := in.AppendAsserted(nil, fieldsOf("Host", "a", "X-Forwarded-Client-Cert", "c")); len(got) != 0 {
		t.Errorf("nothing asserted, got %q", got)
	}
	x, _ := NewIngest(XFCC, false)
	if a, b := x.AppendAsserted(nil, fieldsOf("X-Forwarded-Client-Cert", "c")), x.AppendAsserted(nil, fieldsOf("X-Forwarded-Client_Cert", "c")); len(a) == 0 || string(a) == string(b) {
		t.Errorf("XFCC: %q and %q", a, b)
	}
	room, fields := make([]byte, 0, 1024), fieldsOf(requests[6]...)
	if n := testing.AllocsPerRun(100, func() { in.AppendAsserted(room, fields) }); n != 0 {
		t.Errorf("it allocates %v objects", n)
	}
}

// padBits is a byte sequence of a certificate with a bit set where base64 has none to say.
func padBits(t *testing.T) string {
	for n := range 3 {
		text := base64.StdEncoding.EncodeToString(certDER(t, rawName(), n+1))
		if body := strings.TrimRight(text, "="); body != text {
			return ":" + body[:len(body)-1] + string(body[len(body)-1]+1) + text[len(body):] + ":"
		}
	}
	t.Fatal("no certificate with padding")
	return ""
}

// FuzzIngest looks for panics, and for certificates that do not stand in the header.
func FuzzIngest(f *testing.F) {
	s := specimenOf(f, "a")
	for _, d := range []Dialect{RFC9440, XFCC} {
		for _, value := range render(f, whole(f, d), s.client) {
			f.Add(value, value)
		}
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, c := range []struct {
			d      Dialect
			fields []string
		}{{RFC9440, []string{"Client-Cert", a, "Client-Cert-Chain", b}}, {XFCC, []string{"X-Forwarded-Client-Cert", a}}} {
			in, _ := NewIngest(c.d, false)
			certs, err := in.Presented(fieldsOf(c.fields...))
			if err != nil {
				if certs != nil || reasonOf(err) != reason.BadHeader {
					t.Errorf("%d certificates and %v", len(certs), err)
				}
				continue
			}
			var want [][]byte
			if c.d == RFC9440 {
				leaf, err := sfList(a)
				chain, err2 := sfList(b)
				if want = append(leaf, chain...); err != nil || err2 != nil || len(leaf) != 1 {
					t.Errorf("accepted %q, %q", a, b)
				}
			} else {
				elements, err := xfcc(a, false)
				if err != nil || len(elements) != 1 {
					continue // = without quotes, which Envoy sends itself
				}
				for _, pair := range elements[0] {
					if key := strings.ToLower(pair.name); key == "chain" || key == "cert" && want == nil {
						want, _ = pemList(pair.text)
					}
				}
			}
			if !reflect.DeepEqual(ders(certs), want) {
				t.Errorf("got %x, want %x", ders(certs), want)
			}
		}
		// What is accepted of one element is accepted of the last of several, and nothing of the others.
		one, _ := NewIngest(XFCC, false)
		last, _ := NewIngest(XFCC, true)
		alone, err := one.Presented(fieldsOf("X-Forwarded-Client-Cert", a))
		if behind, err2 := last.Presented(fieldsOf("X-Forwarded-Client-Cert", `Subject="b",`+a)); err == nil && alone != nil && len(a) < MaxHeaders-100 && (err2 != nil || !reflect.DeepEqual(ders(alone), ders(behind))) {
			t.Errorf("%q: %x alone, %x behind another, %v", a, ders(alone), ders(behind), err2)
		}
	})
}

// FuzzForwardedCerts holds whatever is passed on to be read the same way by every parser we know of.
func FuzzForwardedCerts(f *testing.F) {
	for _, text := range hostile() {
		f.Add(`Hash=00;Subject="` + text + `";URI=a,By=b`)
		f.Add(`URI="` + text + `"`)
	}
	f.Fuzz(func(t *testing.T, value string) {
		prior, err := ParseForwardedCerts(fieldsOf("X-Forwarded-Client-Cert", value))
		if err != nil {
			if prior != (ForwardedCerts{}) || reasonOf(err) != reason.BadHeader {
				t.Errorf("%v and %v", prior, err)
			}
			return
		}
		if prior.value != value || !printable(value) {
			t.Errorf("%q became %q", value, prior.value)
		}
		one, err := xfcc(value, false)
		two, err2 := xfcc(value, true)
		if (err == nil) != (err2 == nil) {
			t.Fatalf("%q: %v, but %v", value, err, err2)
		}
		if err != nil {
			if strings.Contains(err.Error(), "'=' needs quotes") {
				return
			}
			t.Fatalf("%q: %v", value, err)
		}
		if len(one) != len(two) {
			t.Fatalf("%q: %q and %q", value, one, two)
		}
		for i := range one {
			if len(one[i]) != len(two[i]) {
				t.Errorf("%q: %q and %q", value, one, two)
			}
		}
	})
}

// A value of nothing but escaped quotes is work in proportion to its length.
func TestXFCCQuotes(t *testing.T) {
	value := []byte(`Subject="` + strings.Repeat(`\"`, 8150) + `"`)
	fields := []message.Field{{Name: []byte("X-Forwarded-Client-Cert"), Value: value}}
	got := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			if _, err := ParseForwardedCerts(fields); err != nil {
				b.Fatal(err)
			}
		}
	})
	if n := got.AllocedBytesPerOp(); n > 20*int64(len(value)) {
		t.Errorf("%d bytes of value cost %d of memory", len(value), n)
	}
}
