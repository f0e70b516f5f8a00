package trust

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"countersign/internal/testpki"
)

func TestLoadBundle(t *testing.T) {
	a, b := testpki.New(t), testpki.New(t)
	two := string(a.PEM()) + string(b.PEM())
	pem := string(a.PEM())
	body := strings.SplitAfter(pem, "\n")

	for _, c := range []struct{ name, data, says string }{
		{"A22/empty", "", "found none"},
		{"A22/comments only", "nothing here\n", "found none"},
		{"A22/two in DER", string(a.DER()) + string(b.DER()), "bytes behind a certificate"},
		{"A22/DER cut off", string(a.DER()[:200]), "DER that is cut off"},
		{"A22/truncated", two[:len(two)-200], "block 2 (line 11): expected an END line, found that the file ends"},
		{"A22/key", string(a.KeyPEM()), "private key"},
		{"B24/second block broken", pem + strings.Replace(string(b.PEM()), "\nM", "\n*", 1), "block 2"},
		{"B24/damaged base64", strings.Replace(pem, body[3], "", 1), "cannot be read"},
		{"B24/cut base64", strings.Replace(pem, body[3], body[3][:10]+"\n", 1), "block 1 (line 1)"},
		{"B24/header in block", strings.Replace(pem, "\nM", "\nProc-Type: 4,ENCRYPTED\n\nM", 1), "text header"},
		{"B24/other type", strings.ReplaceAll(pem, "CERTIFICATE", "TRUSTED CERTIFICATE"), "TRUSTED CERTIFICATE"},
		{"B24/BEGIN in block", strings.Replace(pem, "-----END CERTIFICATE-----\n", pem, 1), "found a BEGIN line"},
		{"B24/END without BEGIN", "-----END CERTIFICATE-----\n" + pem, "END line without"},
		{"B24/BEGIN lost", strings.TrimPrefix(pem, body[0]), "base64 outside of a block"},
		{"B24/BEGIN and END lost", pem + strings.Join(body[1:len(body)-2], ""), "base64 outside of a block"},
		{"B24/END of another type", strings.Replace(pem, "END CERTIFICATE", "END X509 CRL", 1), "expected END"},
		{"B24/four hyphens", strings.Replace(pem, "-----BEGIN", "----BEGIN", 1), "damaged"},
		{"B24/dashes", strings.Replace(pem, "-----BEGIN CERTIFICATE-----", "–––––BEGIN CERTIFICATE–––––", 1), "damaged"},
		{"B24/leaf", string(a.Client("alice").PEM()), "CA:TRUE"},
		{"B24/CA that may not sign", string(testpki.New(t, testpki.KeyUsage(x509.KeyUsageCRLSign)).PEM()), "keyCertSign"},
		{"B24/weak key", string(testpki.New(t, testpki.RSA(1024)).PEM()), "RSA of 1024"},
		{"B24/critical extension", string(testpki.New(t, testpki.UnknownCritical()).PEM()), "1.3.6.1.4.1.99999.1"},
		{"B28/version 1", string(testpki.New(t, testpki.V1()).PEM()), "version 1"},
		{"B28/trailing bytes", string(testpki.PEM("CERTIFICATE", append(bytes.Clone(a.DER()), 0))), "trailing"},
		{"B24/empty block", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "cut or damaged"},
		{"B24/key among certificates", pem + string(b.KeyPEM()), "): expected CERTIFICATE and nothing else, found a private key (BEGIN PRIVATE KEY); a key must never stand here"},
		{"B24/encrypted key among certificates", pem + string(testpki.PEM("ENCRYPTED PRIVATE KEY", []byte{1})), "found an encrypted private key"},
		{"B24/unknown key among certificates", pem + string(testpki.PEM("TSS2 PRIVATE KEY", []byte{1})), "found a private key (BEGIN TSS2 PRIVATE KEY)"},
		{"B24/request", string(testpki.PEM("CERTIFICATE REQUEST", []byte{1})), "found a certificate request (CSR)"},
		{"B24/public key", string(testpki.PEM("PUBLIC KEY", []byte{1})), "found a public key"},
		{"B24/key in one line with its BEGIN", pem + strings.ReplaceAll(string(b.KeyPEM()), "\n", " "), "the line breaks were lost"},
		{"B24/UTF-16", "\xff\xfe-\x00-\x00", "iconv -f UTF-16"},
		{"B24/HTML", "<html><pre>" + pem + "</pre>", "an HTML or XML page"},
		{"B24/NUL", strings.Replace(pem, "\nM", "\n\x00M", 1), "a NUL byte at column 1"},
		{"B24/PKCS#7 that is signed", string(p7(nil, []byte{0x30, 0}, a)), "a signed message"},
		{"B24/PKCS#7 with lists", string(p7(a.CRL(), nil, a)), "revocation lists beside them"},
		{"B24/PKCS#7 with a leaf", string(p7(nil, nil, a, a.Client("alice"))), "CA:TRUE"},
		{"F21/PKCS#7, nested", string(testpki.PEM("PKCS7", bytes.Repeat([]byte{0x30, 0x80}, 1<<20))), "PKCS#7 that is damaged"},
		{"A22/PKCS#12", "\x30\x81\x86\x02\x01\x03\x30\x81\x80" + strings.Repeat("\x00", 128), "found what looks like a PKCS#12 file; convert it: openssl pkcs12"},
		{"F21/too large", strings.Repeat("#\n", maxBundleBytes/2+1), "at most 16 MiB"},
	} {
		t.Run(c.name, func(t *testing.T) {
			certs, _, err := LoadBundle([]byte(c.data), false)
			if err == nil || certs != nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%d certificates, %v; want %q", len(certs), err, c.says)
			}
		})
	}
	t.Run("B24/good", func(t *testing.T) {
		for name, data := range map[string]string{
			"plain": two, "comments": "# Vendor -- send certificates to us\n" + pem + "\nsubject=CN = B\n\n" + string(b.PEM()) + "trailer",
			"CRLF": strings.ReplaceAll(two, "\n", "\r\n"), "no last newline": strings.TrimSpace(two), "byte order mark": "\ufeff" + two,
			"trailing spaces": strings.ReplaceAll(two, "\n", " \t\n"), "one line": oneLine(pem) + oneLine(string(b.PEM())),
			"indented": "ca: |\n  " + strings.ReplaceAll(two, "\n", "\n  "), "CR": strings.ReplaceAll(two, "\n", "\r"), "joined with marks": "\ufeff" + pem + "\ufeff" + string(b.PEM()),
			"X509 CERTIFICATE": strings.ReplaceAll(two, "CERTIFICATE", "X509 CERTIFICATE"), "PKCS#7": string(p7(nil, nil, a, b)),
			"PKCS#7 in PEM": string(testpki.PEM("PKCS7", p7(nil, nil, a, b))), "PKCS#7 and PEM": pem + string(testpki.PEM("CMS", p7(nil, nil, b))),
		} {
			certs, warnings, err := LoadBundle([]byte(data), false)
			if err != nil || len(certs) != 2 || len(warnings) != 0 || !certs[0].Equal(a.Cert) || !certs[1].Equal(b.Cert) {
				t.Errorf("%s: %d certificates, %v, %v", name, len(certs), warnings, err)
			}
		}
	})
	t.Run("A22/DER", func(t *testing.T) {
		if list, _, err := LoadBundle(a.DER(), false); err != nil || len(list) != 1 || !list[0].Equal(a.Cert) {
			t.Error(len(list), err)
		}
	})
	t.Run("B24/no key in messages", func(t *testing.T) {
		key := string(b.KeyPEM())
		for _, data := range []string{key, strings.ReplaceAll(key, "\n", " "), strings.ReplaceAll(key, "\n", `\n`), strings.ReplaceAll(key, "-----", "–"), strings.Replace(key, "-----\n", "", 1)} {
			_, _, err := LoadBundle([]byte(pem+data), false)
			if err == nil {
				t.Error("a key was taken")
			} else if secret := strings.Split(key, "\n")[2][:10]; strings.Contains(err.Error(), secret) {
				t.Error(err)
			}
		}
	})
	t.Run("B24/warnings", func(t *testing.T) {
		old, young := testpki.New(t, testpki.Expired()), testpki.New(t, testpki.NotYetValid())
		certs, warnings, err := LoadBundle([]byte(two+pem+string(old.PEM())+string(young.PEM())), false)
		if err != nil || len(certs) != 4 || len(warnings) != 3 {
			t.Fatal(len(certs), warnings, err)
		}
		for i, says := range []string{"same as block 1", "expired", "not valid before"} {
			if !strings.Contains(warnings[i], says) {
				t.Error(warnings[i])
			}
		}
	})
	t.Run("F21/linear", func(t *testing.T) {
		for name, data := range map[string]string{
			"begins":    strings.Repeat("-----BEGIN \n", 1<<20),
			"one line":  strings.Repeat("-", 4<<20),
			"words":     strings.Repeat("END BEGIN ", 1<<18),
			"boundary":  "-----BEGIN CERTIFICATE-----\n" + strings.Repeat("A", 4<<20),
			"long type": "-----BEGIN " + strings.Repeat("A", 4<<20) + "-----\n",
		} {
			t.Run(name, func(t *testing.T) {
				quickly(t, 2*time.Second, func() {
					if _, _, err := LoadBundle([]byte(data), false); err == nil || len(err.Error()) > 1024 {
						t.Error(err)
					}
				})
			})
		}
	})
	t.Run("alb", func(t *testing.T) {
		for data, ok := range map[string]bool{
			two: true, "# comments\n" + two: true, pem + "# comments\n" + string(b.PEM()) + "# end\n": true,
			"\n" + two: false, pem + "\n" + string(b.PEM()): false, "Certificate:\n" + two: false, "# a-b\n" + two: false, two + "\n": false,
			string(a.DER()): false, string(p7(nil, nil, a)): false, string(testpki.PEM("PKCS7", p7(nil, nil, a))): false, "  " + pem: false,
			strings.ReplaceAll(pem, "CERTIFICATE", "X509 CERTIFICATE"): false, strings.ReplaceAll(pem, "\n", "\r"): false, strings.ReplaceAll(pem, "\n", "\r\n"): true,
		} {
			if _, _, err := LoadBundle([]byte(data), true); (err == nil) != ok {
				t.Errorf("%.20q: %v", data, err)
			}
		}
		var many []byte
		for i := range 26 {
			many = append(many, testpki.New(t, testpki.Subject(pkix.Name{CommonName: fmt.Sprint(i), Organization: []string{strings.Repeat("o", 500)}})).PEM()...)
		}
		if _, warnings, err := LoadBundle(many, true); err != nil || len(warnings) != 2 {
			t.Error(warnings, err)
		}
		big := testpki.New(t, testpki.ExtraExt(pkix.Extension{Id: []int{1, 2, 3}, Value: make([]byte, 16<<10)}))
		if _, _, err := LoadBundle(big.PEM(), true); err == nil {
			t.Error("a certificate of more than 16 KiB")
		}
	})
}

// p7 makes a SignedData of certificates, and perhaps a list and a signer.
func p7(crl, signer []byte, list ...*testpki.Cert) []byte {
	var b cryptobyte.Builder
	seq, explicit := cbasn1.SEQUENCE, cbasn1.Tag(0).ContextSpecific().Constructed()
	b.AddASN1(seq, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier([]int{1, 2, 840, 113549, 1, 7, 2})
		b.AddASN1(explicit, func(b *cryptobyte.Builder) {
			b.AddASN1(seq, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(cbasn1.SET, func(*cryptobyte.Builder) {})
				b.AddASN1(seq, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier([]int{1, 2, 840, 113549, 1, 7, 1}) })
				b.AddASN1(explicit, func(b *cryptobyte.Builder) {
					for _, c := range list {
						b.AddBytes(c.DER())
					}
				})
				if crl != nil {
					b.AddASN1(explicit|1, func(b *cryptobyte.Builder) { b.AddBytes(crl) })
				}
				b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(signer) })
			})
		})
	})
	return b.BytesOrPanic()
}

// oneLine puts the base64 of a block on one line, as some secret stores do.
func oneLine(pem string) string {
	lines := strings.Split(strings.TrimSpace(pem), "\n")
	return lines[0] + "\n" + strings.Join(lines[1:len(lines)-1], "") + "\n" + lines[len(lines)-1] + "\n"
}

func TestHints(t *testing.T) {
	certs := func(n, size int) (out []*x509.Certificate) {
		for i := range n {
			out = append(out, &x509.Certificate{RawSubject: append(make([]byte, size-3), byte(i), byte(i>>8), byte(i>>16))})
		}
		return out
	}
	root := testpki.New(t)
	t.Run("B23/deduplicated", func(t *testing.T) {
		hints, warning, err := HintsFor([]*x509.Certificate{root.Cert, root.Cert, testpki.New(t, testpki.Like(root)).Cert}, false)
		if len(hints) != 1 || !bytes.Equal(hints[0], root.Cert.RawSubject) || warning != "" || err != nil {
			t.Error(len(hints), warning, err)
		}
	})
	for _, c := range []struct {
		name     string
		n        int
		explicit bool
		hints    int
		warns    bool
		fails    bool
	}{
		{"B23/under 16 KiB", 160, false, 160, false, false},
		{"B23/over 16 KiB", 165, false, 0, true, false},
		{"B23/1201 CAs", 1201, false, 0, true, false},
		{"B23/over 16 KiB, listed", 165, true, 165, true, false},
		{"B23/over 64 KiB, listed", 700, true, 0, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			hints, warning, err := HintsFor(certs(c.n, 100), c.explicit)
			if len(hints) != c.hints || (warning != "") != c.warns || (err != nil) != c.fails {
				t.Error(len(hints), warning, err)
			}
		})
	}
}

func FuzzLoadBundle(f *testing.F) {
	root := testpki.New(f)
	f.Add(root.PEM(), false)
	f.Add(append([]byte("# x\n"), root.PEM()...), true)
	f.Add(testpki.PEM("X509 CRL", root.CRL()), false)
	f.Add([]byte("-----BEGIN A-----\n-----END A-----"), false)
	f.Add(p7(nil, nil, root), false)
	f.Add(testpki.PEM("CMS", p7(root.CRL(), nil, root)), false)
	f.Add(root.DER(), false)
	f.Fuzz(func(t *testing.T, data []byte, alb bool) {
		certs, _, err := LoadBundle(data, alb)
		if (len(certs) == 0) == (err == nil) {
			t.Fatal("neither or both")
		}
		if err != nil && (len(err.Error()) > 2048 || strings.ContainsFunc(err.Error(), control)) {
			t.Fatalf("error is not fit for a log line: %q", err)
		}
		for _, c := range certs {
			if checkAnchor(c) != nil {
				t.Fatal("an unusable anchor")
			}
		}
	})
}
