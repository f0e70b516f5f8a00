package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/internal/reason"
)

// golden is the certificate of reference/alb.md section 2.3; its values below were made with OpenSSL, not with us.
func golden(t testing.TB) *x509.Certificate {
	t.Helper()
	text, err := os.ReadFile("testdata/golden.pem")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	return parse(t, block.Bytes)
}

const goldenLeaf = `-----BEGIN%20CERTIFICATE-----%0AMIIBwzCCAWmgAwIBAgIDA6WxMAoGCCqGSM49BAMCMDIxCzAJBgNVBAYTAlVTMRAw%0ADgYDVQQKDAdFeGFtcGxlMREwDwYDVQQDDAh2ZWMgcm9vdDAeFw0yNjExMjAyMTA0%0AMzZaFw0yNzExMjAyMTA0MzZaMDsxCzAJBgNVBAYTAkVFMQ0wCwYDVQQKDARBLCBC%0AMRAwDgYDVQQDDAdNw4ROTklLMQswCQYDVQQFEwI0MjBZMBMGByqGSM49AgEGCCqG%0ASM49AwEHA0IABBSkpsTSB6HH23xbvFqS0FlSTfAgmTWmXAwXbkM1xXlQ4ghvNBuk%0Ab42lapDYCpF4l0zwLGWQI4qeizyRosmuxNWjZTBjMAwGA1UdEwEB/wQCMAAwEwYD%0AVR0lBAwwCgYIKwYBBQUHAwIwHQYDVR0OBBYEFF0p17aN1dn4he7qqPqIVduf4FQp%0AMB8GA1UdIwQYMBaAFJ2Rha3EtrSon+I9kyunwqDQjzHAMAoGCCqGSM49BAMCA0gA%0AMEUCIQDeB9iPCoM/vSvcodIEGlydlh5fg7lRmMNxdUEGeKF6AgIgSiRCAFukTCXT%0Afu1RZJGxtVYKMsAb0m9IvgvfKd2caV0=%0A-----END%20CERTIFICATE-----%0A`

func TestAppendHeaders(t *testing.T) {
	t.Run("refuses an unknown dialect", func(t *testing.T) {
		for _, d := range []Dialect{0, dialects, 255} {
			out, err := client(t, golden(t)).AppendHeaders([]byte("x"), []Dialect{RFC9440, d})
			if string(out) != "x" || reasonOf(err) != reason.Internal {
				t.Errorf("%v: got %q, %v", d, out, err)
			}
		}
	})

	t.Run("D04/a dialect named twice is rendered once", func(t *testing.T) {
		out, err := client(t, golden(t)).AppendHeaders(nil, []Dialect{ALB, RFC9440, ALB, RFC9440})
		if err != nil {
			t.Fatal(err)
		}
		if names, _ := lines(t, out); len(names) != 6 {
			t.Errorf("got %v", names)
		}
	})

	t.Run("D07/hostile names stay in their line", func(t *testing.T) {
		hostile := "\r\nX-Admin: 1\x00\"; Subject=\"CN=root\",\u202eegap\u2028\x7f\t\u00e4"
		leaf := parse(t, certDER(t, rawName([]attr{utf8Attr(oidCN, hostile)}), 0))
		out, err := client(t, leaf).AppendHeaders(nil, []Dialect{RFC9440, ALB})
		if err != nil {
			t.Fatal(err)
		}
		names, values := lines(t, out)
		if len(names) != 6 {
			t.Errorf("got header names %q", names)
		}
		want := `CN=\0D\0AX-Admin: 1\00\"\; Subject=\"CN=root\"\,\E2\80\AEegap\E2\80\A8\7F\09\C3\A4`
		for _, name := range []string{"X-Amzn-Mtls-Clientcert-Subject", "X-Amzn-Mtls-Clientcert-Issuer"} {
			if values[name] != want {
				t.Errorf("%s\n got %s\nwant %s", name, values[name], want)
			}
		}
	})

	t.Run("D08/Client-Cert is one byte sequence of the leaf", func(t *testing.T) {
		for padding := range 4 { // every amount of base64 padding
			leaf := parse(t, certDER(t, rawName([]attr{utf8Attr(oidCN, "a")}), 100+padding))
			out, err := client(t, leaf).AppendHeaders([]byte("Host: a\r\n"), []Dialect{RFC9440})
			if err != nil {
				t.Fatal(err)
			}
			names, values := lines(t, out)
			if !slices.Equal(names, []string{"Host", "Client-Cert"}) {
				t.Errorf("got names %q", names)
			}
			if der, err := byteSequence(values["Client-Cert"]); err != nil || !bytes.Equal(der, leaf.Raw) {
				t.Errorf("got %x, %v", der, err)
			}
		}
	})

	t.Run("D09/golden certificate", func(t *testing.T) {
		out, err := client(t, golden(t)).AppendHeaders(nil, []Dialect{ALB})
		if err != nil {
			t.Fatal(err)
		}
		want := "X-Amzn-Mtls-Clientcert-Serial-Number: 03A5B1\r\n" +
			"X-Amzn-Mtls-Clientcert-Issuer: CN=vec root,O=Example,C=US\r\n" +
			`X-Amzn-Mtls-Clientcert-Subject: serialNumber=42,CN=M\C3\84NNIK,O=A\, B,C=EE` + "\r\n" +
			"X-Amzn-Mtls-Clientcert-Validity: NotBefore=2026-11-20T21:04:36Z;NotAfter=2027-11-20T21:04:36Z\r\n" +
			"X-Amzn-Mtls-Clientcert-Leaf: " + goldenLeaf + "\r\n"
		if string(out) != want {
			t.Errorf("\n got %q\nwant %q", out, want)
		}
		if strings.Contains(string(out), "X-Amzn-Mtls-Clientcert: ") {
			t.Error("verify mode sent the header of passthrough mode")
		}
	})

	for _, kib := range []int{3, 7, 15, 60} {
		for _, want := range [][]Dialect{{RFC9440}, {ALB}, {RFC9440, ALB}} {
			t.Run(fmt.Sprintf("D11/%d KiB/%v", kib, want), func(t *testing.T) {
				leaf := parse(t, certDER(t, rawName([]attr{utf8Attr(oidCN, "big")}), kib<<10))
				checkWholeOrRefused(t, client(t, leaf), want)
			})
		}
	}
	t.Run("D11/to the byte", func(t *testing.T) {
		largest := 0
		for padding := 12000; padding < 12300; padding++ {
			leaf := parse(t, certDER(t, rawName([]attr{utf8Attr(oidCN, "edge")}), padding))
			if checkWholeOrRefused(t, client(t, leaf), []Dialect{RFC9440}) {
				largest = len(leaf.Raw)
			}
		}
		// "Client-Cert: :" and ":\r\n" take 17 of 16384 bytes, which leaves 4091 groups of base64.
		if want := 4091 * 3; largest != want {
			t.Errorf("largest certificate is %d octets, want %d", largest, want)
		}
	})
}

// checkWholeOrRefused reports whether c was rendered, and fails if it was rendered cut off or over the limit.
func checkWholeOrRefused(t *testing.T, c Client, want []Dialect) bool {
	t.Helper()
	dst := []byte("Host: a\r\n")
	out, err := c.AppendHeaders(dst, want)
	if err != nil {
		if reasonOf(err) != reason.IdentityTooLarge || !bytes.Equal(out, dst) {
			t.Errorf("got %q, %v; want dst as it was and identity_too_large", out, err)
		}
		if !strings.Contains(err.Error(), "16384") {
			t.Errorf("the error does not name the cap: %v", err)
		}
		return false
	}
	if len(out)-len(dst) > MaxHeaders {
		t.Errorf("rendered %d bytes", len(out)-len(dst))
	}
	id, _ := c.Identity()
	checkHeaders(t, out[len(dst):], id.Leaf(), want)
	return true
}

func TestDialects(t *testing.T) {
	for d := RFC9440; d < dialects; d++ {
		if got, ok := ParseDialect(d.String()); !ok || got != d {
			t.Errorf("%v does not parse back", d)
		}
	}
	for _, name := range []string{"", "RFC9440", "x-ssl-client", "alb "} {
		if d, ok := ParseDialect(name); ok || d != 0 {
			t.Errorf("%q parsed as %v", name, d)
		}
	}
}

// byteSequence reads an RFC 8941 item that is a byte sequence, strictly: section 4.2.7, without parameters.
func byteSequence(item string) ([]byte, error) {
	if len(item) < 2 || item[0] != ':' || item[len(item)-1] != ':' {
		return nil, fmt.Errorf("not between colons: %q", item)
	}
	return base64.StdEncoding.Strict().DecodeString(item[1 : len(item)-1])
}

var validity = regexp.MustCompile(`^NotBefore=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ);NotAfter=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)$`)

// checkHeaders reads rendered headers as a backend would, with nothing of this package, and compares with leaf.
func checkHeaders(t *testing.T, rendered []byte, leaf *x509.Certificate, want []Dialect) {
	t.Helper()
	_, values := lines(t, rendered)
	if slices.Contains(want, RFC9440) {
		if der, err := byteSequence(values["Client-Cert"]); err != nil || !bytes.Equal(der, leaf.Raw) {
			t.Errorf("Client-Cert: got %x, %v", der, err)
		}
	}
	if !slices.Contains(want, ALB) {
		return
	}
	const p = "X-Amzn-Mtls-Clientcert-"
	escaped := values[p+"Leaf"]
	if strings.ContainsAny(escaped, " \n") {
		t.Errorf("leaf is not percent-encoded: %q", escaped)
	}
	text, err := url.PathUnescape(escaped)
	if err != nil {
		t.Fatal(err)
	}
	if encoded := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}); text != string(encoded) {
		t.Errorf("leaf\n got %q\nwant %q", text, encoded)
	}
	serial, ok := new(big.Int).SetString(values[p+"Serial-Number"], 16)
	if !ok || serial.Cmp(leaf.SerialNumber) != 0 {
		t.Errorf("serial: got %q", values[p+"Serial-Number"])
	}
	dates := validity.FindStringSubmatch(values[p+"Validity"])
	if dates == nil {
		t.Fatalf("validity: got %q", values[p+"Validity"])
	}
	for i, want := range []time.Time{leaf.NotBefore, leaf.NotAfter} {
		if got, err := time.Parse(time.RFC3339, dates[i+1]); err != nil || !got.Equal(want.Truncate(time.Second)) {
			t.Errorf("validity: got %v, %v, want %v", got, err, want)
		}
	}
}

func FuzzAppendHeaders(f *testing.F) {
	f.Add(rawName([]attr{utf8Attr(oidCN, "a\r\nb: c")}), []byte("der"), []byte{0xfe, 0xf2}, int64(1<<31))
	f.Add(rawName(), bytes.Repeat([]byte{0xff, 0xef}, 9000), []byte{}, int64(0))
	f.Fuzz(func(t *testing.T, name, der, serial []byte, seconds int64) {
		seconds = int64(uint64(seconds) % (8000 * 365 * 86400)) // years of four digits: GeneralizedTime has no others
		leaf := &x509.Certificate{
			Raw: der, RawSubject: name, RawIssuer: name, SerialNumber: new(big.Int).SetBytes(serial),
			NotBefore: time.Unix(seconds, 0), NotAfter: time.Unix(seconds, 0).Add(time.Hour),
		}
		id, err := FromChain([]*x509.Certificate{leaf, leaf})
		if err != nil {
			return
		}
		for _, want := range [][]Dialect{{RFC9440}, {ALB}, {ALB, RFC9440}} {
			checkWholeOrRefused(t, Present(id), want)
		}
	})
}

// AppendHeaders renders c in the dialects of want, each with its defaults, for tests that need no style.
func (c Client) AppendHeaders(dst []byte, want []Dialect) ([]byte, error) {
	var s Style
	for _, d := range want {
		if d == 0 || d >= dialects {
			return dst, &reason.Refusal{Reason: reason.Internal, Expected: "an identity dialect", Found: d.String()}
		}
		if !slices.Contains(s.dialects, d) {
			s.dialects = append(s.dialects, d)
		}
	}
	out, _, err := s.Append(dst, c, ForwardedCerts{})
	return out, err
}
