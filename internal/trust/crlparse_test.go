package trust

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/internal/reason"
	"countersign/internal/testpki"
)

// items makes one item of several.
func items(all ...testpki.CRLItem) testpki.CRLItem { return testpki.Items(all...) }

// longName is a DN in DER of somewhat more than size bytes.
func longName(size int) []byte {
	value, _ := asn1.Marshal(strings.Repeat("x", size))
	oid := []byte{6, 3, 0x55, 4, 3}
	sequence := func(tag int, body []byte) []byte {
		out, _ := asn1.Marshal(asn1.RawValue{Class: 0, Tag: tag, IsCompound: true, Bytes: body})
		return out
	}
	return sequence(16, sequence(17, sequence(16, slices.Concat(oid, value))))
}

func TestParseCRLs(t *testing.T) {
	root, other := testpki.New(t), testpki.New(t)
	carol := root.Client("carol")
	first, second, third := testpki.PEM("X509 CRL", other.CRL()), testpki.PEM("X509 CRL", root.CRL(testpki.Number(2))), testpki.PEM("X509 CRL", root.CRL(testpki.Number(3), carol))
	store := func(t *testing.T, data []byte) *Store {
		t.Helper()
		lists, err := ParseCRLs(data)
		if err != nil {
			t.Fatal(err)
		}
		s, err := NewStore("partners", []*x509.Certificate{root.Cert, other.Cert}, lists, nil, Options{CheckRevocation: true})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	t.Run("C22/every list of a file counts", func(t *testing.T) {
		s := store(t, slices.Concat([]byte("# three lists\n"), first, second, third))
		refused(t, verify(s, carol), reason.ClientCertRevoked, 0)
		accepted(t, verify(s, root.Client("dave")))
		accepted(t, verify(s, other.Client("erin")))
		refused(t, verify(store(t, root.CRL(carol)), carol), reason.ClientCertRevoked, 0)
	})
	t.Run("C22/all or nothing", func(t *testing.T) {
		broken := root.CRL(testpki.CRLExt(testpki.Unknown))
		lines := bytes.Count(first, []byte("\n")) + 1
		for name, c := range map[string]struct {
			data []byte
			says string
		}{
			"bad second": {slices.Concat(first, testpki.PEM("X509 CRL", broken), third), fmt.Sprintf("PEM block 2 (line %d): ", lines)},
			"cut second": {slices.Concat(first, testpki.PEM("X509 CRL", root.CRL()[:60]), third), fmt.Sprintf("PEM block 2 (line %d): ", lines)},
			"CA second":  {slices.Concat(first, root.PEM(), third), fmt.Sprintf("PEM block 2 (line %d): expected X509 CRL, found CERTIFICATE; this file is a CA bundle", lines)},
			"key second": {slices.Concat(first, root.KeyPEM()), "PRIVATE KEY"},
			"torn third": {slices.Concat(first, second, third[:len(third)-20]), "block 3 (line"},
			"too many":   {bytes.Repeat(first, maxCRLs+1), "at most 1024"},
			"none":       {nil, "neither"},
		} {
			if lists, err := ParseCRLs(c.data); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %d lists, %v", name, len(lists), err)
			}
		}
	})
}

// Every algorithm that is accepted has to be checked right, and an altered list refused.
func TestCRLSignatures(t *testing.T) {
	for _, c := range []struct {
		key  testpki.Option
		algs []x509.SignatureAlgorithm
	}{
		{testpki.RSA(2048), []x509.SignatureAlgorithm{x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA, x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS}},
		{testpki.P384(), []x509.SignatureAlgorithm{x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512}},
		{testpki.Ed25519(), []x509.SignatureAlgorithm{x509.PureEd25519}},
	} {
		root := testpki.New(t, c.key)
		others := []*testpki.Cert{
			testpki.New(t, testpki.RawSubject(root.Cert.RawSubject), testpki.RSA(2048)),
			testpki.New(t, testpki.RawSubject(root.Cert.RawSubject)),
			testpki.New(t, testpki.RawSubject(root.Cert.RawSubject), testpki.Ed25519()),
		}
		for _, alg := range c.algs {
			t.Run("C03/"+alg.String(), func(t *testing.T) {
				der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
					SignatureAlgorithm: alg, Number: big.NewInt(5), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour),
					RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(5), RevocationTime: time.Now()}},
				}, root.Cert, root.Key)
				if err != nil {
					t.Fatal(err)
				}
				l, err := ParseCRL(der)
				if err != nil {
					t.Fatal(err)
				}
				l.keyID = nil // so that the signature alone decides
				if l.Signer() != nil {
					t.Error("it has a signer before any check")
				}
				for range 2 {
					for _, o := range others {
						if err := l.SignedBy(o.Cert); err == nil {
							t.Errorf("another key, %v, was taken", o.Cert.PublicKeyAlgorithm)
						}
					}
					if err := l.SignedBy(root.Cert); err != nil || l.Signer() != root.Cert {
						t.Error(err, l.Signer())
					}
				}
				for _, at := range []int{20, 60, len(der) - 5} {
					bad := slices.Clone(der)
					bad[at] ^= 1
					if l, err := ParseCRL(bad); err == nil && l.SignedBy(root.Cert) == nil {
						t.Errorf("taken with byte %d changed", at)
					}
				}
			})
		}
	}
	t.Run("C03/keys that are none do not crowd out the signer", func(t *testing.T) {
		root := testpki.New(t)
		l, _ := ParseCRL(root.CRL(testpki.NoAKI()))
		for range 2 * maxSigners {
			if l.SignedBy(testpki.New(t, testpki.RawSubject(root.Cert.RawSubject)).Cert) == nil {
				t.Fatal("a stranger was taken")
			}
		}
		if len(*l.judged.Load()) != maxSigners {
			t.Errorf("%d judgements are kept", len(*l.judged.Load()))
		}
		if err := l.SignedBy(root.Cert); err != nil || l.Signer() != root.Cert {
			t.Error(err)
		}
	})
	t.Run("C03/Ed25519 keeps the list only until it is checked", func(t *testing.T) {
		root := testpki.New(t, testpki.Ed25519())
		l, _ := ParseCRL(root.CRL())
		if l.message == nil || l.SignedBy(root.Cert) != nil || l.message != nil {
			t.Error(len(l.message))
		}
	})
	t.Run("C03/name and key identifier count beside the signature", func(t *testing.T) {
		root := testpki.New(t)
		l, _ := ParseCRL(root.CRL())
		renamed := testpki.New(t, testpki.KeyOf(root)).Cert
		other := *root.Cert
		other.SubjectKeyId = []byte{1, 2, 3}
		for range 2 { // before and after the key is known
			if err := l.SignedBy(renamed); err == nil || !strings.Contains(err.Error(), "name") {
				t.Error(err)
			}
			if err := l.SignedBy(&other); err == nil || !strings.Contains(err.Error(), "authorityKeyIdentifier") {
				t.Error(err)
			}
			if err := l.SignedBy(root.Cert); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("C03/weak", func(t *testing.T) {
		for _, key := range []testpki.Option{testpki.RSA(2048), testpki.P384()} {
			if _, err := ParseCRL(testpki.New(t, key).CRL(testpki.CRLSHA1())); err == nil || !strings.Contains(err.Error(), "SHA-1") {
				t.Error(err)
			}
		}
	})
}

func TestCRLScope(t *testing.T) {
	root, other := testpki.New(t), testpki.New(t)
	parse := func(c *testpki.Cert, items ...testpki.CRLItem) *CRL {
		t.Helper()
		l, err := ParseCRL(c.CRL(items...))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	a, b := testpki.CRLExt(testpki.IDP("http://crl.test/a")), testpki.CRLExt(testpki.IDP("http://crl.test/b"))
	full := parse(root, testpki.Number(4))
	if full.Scope() != parse(root, testpki.Number(5), testpki.Entry(big.NewInt(1))).Scope() || len(full.Scope()) != 64 {
		t.Error("a newer list has another scope")
	}
	if again := parse(root, a).Scope(); parse(root, a).Scope() != again {
		t.Error("the same point is another scope")
	}
	seen := map[string]string{full.Scope(): "full"}
	for name, l := range map[string]*CRL{
		"issuer": parse(other), "key": parse(root, testpki.SignedBy(other)), "no key": parse(root, testpki.NoAKI()), "delta": parse(root, testpki.Delta(1), testpki.Number(5)),
		"a": parse(root, a), "b": parse(root, b), "users": parse(root, testpki.CRLExt(testpki.IDP("", 1))), "CAs": parse(root, testpki.CRLExt(testpki.IDP("", 2))),
		"users of a": parse(root, testpki.CRLExt(testpki.IDP("http://crl.test/a", 1))),
	} {
		if also := seen[l.Scope()]; also != "" {
			t.Errorf("%s and %s have the same scope", name, also)
		}
		seen[l.Scope()] = name
	}
	t.Run("C05/age", func(t *testing.T) {
		now := time.Now()
		order := []*CRL{
			parse(root, testpki.NoNumber()), parse(root, testpki.Number(0)),
			parse(root, testpki.Number(3), testpki.ThisUpdate(now)), parse(root, testpki.Number(4), testpki.ThisUpdate(now.Add(-time.Hour))),
			parse(root, testpki.Number(4), testpki.ThisUpdate(now)),
		}
		for i, x := range order {
			for j, y := range order {
				if got := x.Compare(y); (got < 0) != (i < j) || (got == 0) != (i == j) {
					t.Errorf("%d and %d compare as %d", i, j, got)
				}
			}
		}
	})
	d := parse(root, testpki.Delta(1), testpki.Number(5))
	if full.Delta() || !d.Delta() || !strings.Contains(d.String(), "delta on 1, number 5 of") || full.Issuer() != string(root.Cert.RawSubject) {
		t.Error(full, d)
	}
}

// oracle compares with crypto/x509, which keeps everything: what we accept it accepts too, and reads the same from it.
func oracle(t *testing.T, der []byte) {
	t.Helper()
	l, err := readCRL(der)
	if err != nil {
		if text := err.Error(); len(text) > 2048 || strings.ContainsFunc(text, control) {
			t.Fatalf("error is not fit for a log line: %q", text)
		}
		return
	}
	if text := l.String(); len(text) > 1024 || strings.ContainsFunc(text, control) {
		t.Fatalf("name is not fit for a log line: %q", text)
	}
	want, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatalf("crypto/x509 refuses it: %v", err)
	}
	due := want.NextUpdate
	if due.IsZero() {
		due = want.ThisUpdate.Add(maxCRLAge)
	}
	same := func(a, b *big.Int) bool { return (a == nil) == (b == nil) && (a == nil || a.Cmp(b) == 0) }
	if l.issuer != string(want.RawIssuer) || !l.thisUpdate.Equal(want.ThisUpdate) || !l.nextUpdate.Equal(due) ||
		!same(l.number, want.Number) || !bytes.Equal(l.keyID, want.AuthorityKeyId) || l.algorithm != want.SignatureAlgorithm ||
		!bytes.Equal(l.signature, want.Signature) || len(want.Raw) != len(der) || l.name != name(want.Issuer) {
		t.Fatalf("%v is not what crypto/x509 reads: %+v", l, want)
	}
	message := want.RawTBSRevocationList
	if l.hash() != 0 {
		h := l.hash().New()
		h.Write(message)
		message = h.Sum(nil)
	}
	if !bytes.Equal(l.message, message) {
		t.Fatal("another message")
	}
	expect := make(map[string]revocation)
	for _, e := range want.RevokedCertificateEntries {
		at := e.RevocationTime.Unix() + yearOne
		if e.SerialNumber.Sign() <= 0 || e.SerialNumber.BitLen() > 8*maxSerial {
			if _, found := l.entries.find(e.SerialNumber); found {
				t.Fatalf("serial number %v was kept", e.SerialNumber)
			}
			continue
		}
		if old, twice := expect[e.SerialNumber.String()]; !twice || old.reason == removeFromCRL {
			expect[e.SerialNumber.String()] = revocation{at, int8(min(e.ReasonCode, 127))}
		}
	}
	if l.Len() != len(expect) {
		t.Fatalf("%d entries, crypto/x509 has %d", l.Len(), len(expect))
	}
	for serial, r := range expect {
		n, _ := new(big.Int).SetString(serial, 10)
		if got, found := l.entries.find(n); !found || got != r {
			t.Fatalf("%s: %v %+v, crypto/x509 has %+v", serial, found, got, r)
		}
		n.Add(n, big.NewInt(1))
		if _, found := l.entries.find(n); found && expect[n.String()] == (revocation{}) {
			t.Fatalf("%v is not on the list", n)
		}
	}
}

func vectors(tb testing.TB) [][]byte {
	root, ed := testpki.New(tb), testpki.New(tb, testpki.Ed25519())
	long := new(big.Int).Lsh(big.NewInt(1), 158)
	date := func(tag, text string) testpki.CRLItem {
		body := "\x02\x01\x07" + tag + string(rune(len(text))) + text
		return testpki.RawEntries([]byte("\x30" + string(rune(len(body))) + body))
	}
	out := [][]byte{
		root.CRL(), ed.CRL(root), root.CRL(testpki.NoAKI(), testpki.NoNumber(), testpki.NextUpdate(time.Time{})),
		root.CRL(testpki.Many(100), testpki.Entry(long), testpki.Entry(long.Lsh(long, 1)), testpki.Entry(long.Lsh(long, 8)), testpki.Entry(big.NewInt(-5)), testpki.Entry(new(big.Int))),
		root.CRL(testpki.Entry(big.NewInt(128), testpki.ReasonCode(1)), testpki.Entry(big.NewInt(128), testpki.ReasonCode(6)), testpki.Entry(big.NewInt(5), testpki.ReasonCode(126))),
		root.CRL(testpki.Number(9), testpki.Delta(3), testpki.Entry(big.NewInt(5), testpki.ReasonCode(8)), testpki.Entry(big.NewInt(5), testpki.ReasonCode(1)), testpki.Entry(big.NewInt(6), testpki.ReasonCode(8))),
		root.CRL(testpki.CRLExt(testpki.IDP("http://crl.test/a", 1))),
		root.CRL(testpki.CRLExt(testpki.RawIDP(testpki.FullName(testpki.URIName("ldap://x"), testpki.DirectoryName(root.Cert.RawSubject))))),
		root.CRL(testpki.ThisUpdate(time.Date(2060, 2, 29, 1, 2, 3, 0, time.UTC)), testpki.NextUpdate(time.Date(2061, 1, 1, 0, 0, 0, 0, time.UTC))),
	}
	for _, d := range []string{"500101000000Z", "491231235959Z", "000229000000Z", "010229000000Z", "261131000000Z", "260001000000Z", "261120240000Z", "261120126000Z", "261120123460Z", "2611201234Z", "261120123456+0100", "2611201234+0100", "261120123456", "26112012345:Z", ""} {
		out = append(out, root.CRL(date("\x17", d)))
	}
	for _, d := range []string{"20261120123456Z", "00010101000000Z", "00000101000000Z", "99991231235959Z", "19000229000000Z", "20000229000000Z", "20261120123456+0100", "20261120123456.5Z", "202611201234Z"} {
		out = append(out, root.CRL(date("\x18", d)))
	}
	return out
}

func TestCRLLikeX509(t *testing.T) {
	for i, der := range vectors(t) {
		t.Run(fmt.Sprint(i), func(t *testing.T) { oracle(t, der) })
		// Each byte wrong, three ways; what is then accepted has to be the same in both.
		if len(der) > 1000 {
			continue
		}
		for at := range der {
			for _, x := range []byte{1, 0x80, 0xff} {
				bad := slices.Clone(der)
				bad[at] ^= x
				oracle(t, bad)
			}
		}
	}
	t.Run("accepted dates", func(t *testing.T) {
		for text, want := range map[string]string{"\x17\x0d500101000000Z": "1950-01-01T00:00:00Z", "\x17\x0d491231235959Z": "2049-12-31T23:59:59Z",
			"\x17\x0d000229000000Z": "2000-02-29T00:00:00Z", "\x18\x0f99991231235959Z": "9999-12-31T23:59:59Z"} {
			root := testpki.New(t)
			body := "\x02\x01\x07" + text
			l, err := ParseCRL(root.CRL(testpki.RawEntries([]byte("\x30" + string(rune(len(body))) + body))))
			if err != nil {
				t.Error(want, err)
				continue
			}
			if r, _ := l.entries.find(big.NewInt(7)); stamp(time.Unix(r.at-yearOne, 0)) != want {
				t.Errorf("%s, want %s", stamp(time.Unix(r.at-yearOne, 0)), want)
			}
		}
	})
}

func FuzzCRL(f *testing.F) {
	root := testpki.New(f)
	for _, der := range vectors(f) {
		f.Add(der)
	}
	f.Add(testpki.PEM("X509 CRL", root.CRL(root)))
	f.Add(root.PEM())
	f.Add(root.DER())
	f.Fuzz(func(t *testing.T, data []byte) {
		oracle(t, data)
		lists, err := ParseCRLs(data)
		if (lists == nil) == (err == nil) {
			t.Fatal("neither or both")
		}
		if err != nil && (len(err.Error()) > 2048 || strings.ContainsFunc(err.Error(), control)) {
			t.Fatalf("error is not fit for a log line: %q", err)
		}
		for _, l := range lists {
			if l.NextUpdate().Before(l.ThisUpdate()) || l.SignedBy(root.Cert) == nil && l.issuer != string(root.Cert.RawSubject) {
				t.Fatal(l)
			}
		}
	})
}
