package trust

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"strings"
	"testing"
	"time"

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
		{"A22/DER", string(a.DER()), "DER"},
		{"A22/truncated", two[:len(two)-200], "block 2 (line 11): the file ends"},
		{"A22/key", string(a.KeyPEM()), "private key"},
		{"B24/second block broken", pem + strings.Replace(string(b.PEM()), "\nM", "\n*", 1), "block 2"},
		{"B24/damaged base64", strings.Replace(pem, body[3], "", 1), "cannot be read"},
		{"B24/cut base64", strings.Replace(pem, body[3], body[3][:10]+"\n", 1), "block 1 (line 1)"},
		{"B24/header in block", strings.Replace(pem, "\nM", "\nProc-Type: 4,ENCRYPTED\n\nM", 1), "text header"},
		{"B24/other type", strings.ReplaceAll(pem, "CERTIFICATE", "TRUSTED CERTIFICATE"), "TRUSTED CERTIFICATE"},
		{"B24/BEGIN in block", strings.Replace(pem, "-----END CERTIFICATE-----\n", pem, 1), "found a BEGIN line"},
		{"B24/END without BEGIN", strings.TrimPrefix(pem, body[0]), "END line without"},
		{"B24/END of another type", strings.Replace(pem, "END CERTIFICATE", "END X509 CRL", 1), "expected END"},
		{"B24/four hyphens", strings.Replace(pem, "-----BEGIN", "----BEGIN", 1), "damaged"},
		{"B24/indented", "  " + pem, "damaged"},
		{"B24/dashes", strings.Replace(pem, "-----BEGIN CERTIFICATE-----", "–––––BEGIN CERTIFICATE–––––", 1), "damaged"},
		{"B24/leaf", string(a.Client("alice").PEM()), "CA:TRUE"},
		{"B24/CA that may not sign", string(testpki.New(t, testpki.KeyUsage(x509.KeyUsageCRLSign)).PEM()), "keyCertSign"},
		{"B24/weak key", string(testpki.New(t, testpki.RSA(1024)).PEM()), "RSA of 1024"},
		{"B24/critical extension", string(testpki.New(t, testpki.UnknownCritical()).PEM()), "1.3.6.1.4.1.99999.1"},
		{"B28/version 1", string(testpki.New(t, testpki.V1()).PEM()), "version 1"},
		{"B28/trailing bytes", string(testpki.PEM("CERTIFICATE", append(bytes.Clone(a.DER()), 0))), "trailing"},
		{"B24/empty block", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "cut or damaged"},
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
		} {
			certs, warnings, err := LoadBundle([]byte(data), false)
			if err != nil || len(certs) != 2 || len(warnings) != 0 || !certs[0].Equal(a.Cert) || !certs[1].Equal(b.Cert) {
				t.Errorf("%s: %d certificates, %v, %v", name, len(certs), warnings, err)
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
			start := time.Now()
			if _, _, err := LoadBundle([]byte(data), false); err == nil || len(err.Error()) > 1024 {
				t.Errorf("%s: %v", name, err)
			}
			if d := time.Since(start); d > 2*time.Second {
				t.Errorf("%s: took %v", name, d)
			}
		}
	})
	t.Run("alb", func(t *testing.T) {
		for data, ok := range map[string]bool{
			two: true, "# comments\n" + two: true, pem + "# comments\n" + string(b.PEM()) + "# end\n": true,
			"\n" + two: false, pem + "\n" + string(b.PEM()): false, "Certificate:\n" + two: false, "# a-b\n" + two: false, two + "\n": false,
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
