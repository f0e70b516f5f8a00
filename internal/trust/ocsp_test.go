package trust

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	xocsp "golang.org/x/crypto/ocsp"

	"countersign/internal/reason"
	"countersign/internal/testpki"
)

const ocspURL = "http://ocsp.test/"

func ocspQuery(c, ca *testpki.Cert) *Query {
	return &Query{Cert: c.Cert, Issuer: ca.Cert, Responder: ocspURL}
}

var ocspNonce = bytes.Repeat([]byte{7}, 32)

// Each case is a response about alice of root, and words of the error; none for a response that is believed.
func TestOCSPCheck(t *testing.T) {
	now := time.Now()
	root, other := testpki.New(t), testpki.New(t)
	sub := root.Intermediate("Sub CA")
	alice, bob := root.Client("alice"), root.Client("bob")
	twin := testpki.New(t, testpki.RawSubject(root.Cert.RawSubject))
	same := other.Client("same", testpki.Serial(alice.Cert.SerialNumber))
	delegate := root.Responder("delegate")
	week := 7 * 24 * time.Hour
	for _, c := range []struct {
		name     string
		response []byte
		want     string
	}{
		{"C16/by the issuer", root.OCSP(alice), ""},
		{"C16/by the issuer, named by key", root.OCSP(alice, testpki.OCSPByKey()), ""},
		{"C16/by the issuer, CertID with SHA-256", root.OCSP(alice, testpki.OCSPHash(crypto.SHA256)), ""},
		{"C16/by a delegate", root.OCSP(alice, testpki.OCSPBy(delegate)), ""},
		{"C16/by a delegate, named by key", root.OCSP(alice, testpki.OCSPBy(delegate), testpki.OCSPByKey()), ""},
		{"C16/by a delegate, its chain embedded", root.OCSP(alice, testpki.OCSPEmbed(root), testpki.OCSPBy(delegate)), ""},
		{"C16/by a delegate without nocheck", root.OCSP(alice, testpki.OCSPBy(root.Client("r", testpki.EKU(x509.ExtKeyUsageOCSPSigning)))), ""},
		{"C16/several answers, ours last", root.OCSP(alice, testpki.OCSPAlso(root, bob), testpki.OCSPAlso(other, same)), ""},
		{"C16/other serial", root.OCSP(bob), "expected an answer about serial"},
		{"C16/other issuer, same serial", root.OCSP(alice, testpki.OCSPIssuerHash(ocspSHA1(other.Cert.RawSubject), ocspSHA1(ocspKeyBits(t, other)))), "expected an answer about serial"},
		{"C16/other issuer's name", root.OCSP(alice, testpki.OCSPIssuerHash(ocspSHA1(other.Cert.RawSubject), nil)), "expected an answer about serial"},
		{"C16/other issuer's key", root.OCSP(alice, testpki.OCSPIssuerHash(nil, ocspSHA1(ocspKeyBits(t, other)))), "expected an answer about serial"},
		{"C16/CertID with SHA-384", root.OCSP(alice, testpki.OCSPHash(crypto.SHA384)), "expected an answer about serial"},
		{"C16/two answers", root.OCSP(alice, testpki.OCSPAlso(root, alice)), "found two"},
		{"C16/by another CA", root.OCSP(alice, testpki.OCSPBy(other)), "extendedKeyUsage OCSPSigning"},
		{"C16/by another CA's answer", other.OCSP(alice), "expected an answer about serial"},
		{"C16/by another key under the issuer's name", root.OCSP(alice, testpki.OCSPKeyOf(other)), "did not sign it"},
		{"C16/by a CA of the same name", root.OCSP(alice, testpki.OCSPBy(twin)), "did not sign it"},
		{"C16/by the client's own key", root.OCSP(alice, testpki.OCSPBy(alice)), "expected a key other than"},
		{"C16/by the client's own key, with the purpose", root.OCSP(alice, testpki.OCSPBy(root.Responder("x", testpki.KeyOf(alice)))), "expected a key other than"},
		{"C16/by another client", root.OCSP(alice, testpki.OCSPBy(bob)), "extendedKeyUsage OCSPSigning"},
		{"C16/delegate with any purpose", root.OCSP(alice, testpki.OCSPBy(root.Responder("r", testpki.EKU(x509.ExtKeyUsageAny)))), "extendedKeyUsage OCSPSigning"},
		{"C16/delegate without purpose", root.OCSP(alice, testpki.OCSPBy(root.Responder("r", testpki.NoEKU()))), "extendedKeyUsage OCSPSigning"},
		{"C16/delegate expired", root.OCSP(alice, testpki.OCSPBy(root.Responder("r", testpki.Expired()))), "expected validity at"},
		{"C16/delegate not yet valid", root.OCSP(alice, testpki.OCSPBy(root.Responder("r", testpki.NotYetValid()))), "expected validity at"},
		{"C16/delegate of another CA", root.OCSP(alice, testpki.OCSPBy(other.Responder("r"))), "issued by CA"},
		{"C16/delegate of a CA of the same name", root.OCSP(alice, testpki.OCSPBy(twin.Responder("r"))), "did not sign its certificate"},
		{"C16/delegate of a CA below", root.OCSP(alice, testpki.OCSPEmbed(sub), testpki.OCSPBy(sub.Responder("r"))), "issued by CA"},
		{"C16/delegate is a CA", root.OCSP(alice, testpki.OCSPBy(root.Responder("r", testpki.CA()))), "CA:TRUE"},
		{"C16/delegate without digitalSignature", root.OCSP(alice, testpki.OCSPBy(root.Responder("r", testpki.KeyUsage(x509.KeyUsageKeyEncipherment)))), "digitalSignature"},
		{"C16/delegate with a weak key", root.OCSP(alice, testpki.OCSPBy(root.Responder("r", testpki.P224()))), "P-224"},
		{"C16/delegate signed with SHA-1", root.OCSP(alice, testpki.OCSPBy(root.Responder("r", testpki.SHA1()))), "SHA1"},
		{"C16/delegate with an unknown critical extension", root.OCSP(alice, testpki.OCSPBy(root.Responder("r", testpki.UnknownCritical()))), "critical extension"},
		{"C16/delegate not embedded", root.OCSP(alice, testpki.OCSPBy(delegate), testpki.OCSPNoCerts()), "found neither"},
		{"C16/responder ID of another", root.OCSP(alice, testpki.OCSPBy(delegate), testpki.OCSPAs(bob)), "another responder's name"},
		{"C16/responder ID of another key", root.OCSP(alice, testpki.OCSPBy(delegate), testpki.OCSPAs(bob), testpki.OCSPByKey()), "another responder's name"},
		{"C16/nine certificates", root.OCSP(alice, testpki.OCSPEmbed(slices.Repeat([]*testpki.Cert{bob}, 9)...)), "at most 8 certificates"},
		{"C16/SHA-1", root.OCSP(alice, testpki.OCSPSHA1()), "SHA-1"},
		{"C16/unknown critical extension", root.OCSP(alice, testpki.OCSPExt(testpki.Unknown)), "not understood"},
		{"C16/unknown critical extension of the answer", root.OCSP(alice, testpki.OCSPSingleExt(testpki.Unknown)), "not understood"},
		{"C16/critical extension of another answer", root.OCSP(bob, testpki.OCSPSingleExt(testpki.Unknown), testpki.OCSPAlso(root, alice)), ""},
		{"C16/other response type", root.OCSP(alice, testpki.OCSPKind(1, 3, 6, 1, 5, 5, 7, 48, 1, 99)), "response type"},
		{"C16/trailing byte", append(root.OCSP(alice), 0), "1 bytes follow"},
		{"C16/malformedRequest", testpki.OCSPError(1), "malformedRequest"},
		{"C16/internalError", testpki.OCSPError(2), "internalError"},
		{"C16/tryLater", testpki.OCSPError(3), "tryLater"},
		{"C16/sigRequired", testpki.OCSPError(5), "sigRequired"},
		{"C16/unauthorized", testpki.OCSPError(6), "unauthorized"},
		{"C16/status 4", testpki.OCSPError(4), "status 4"},
		{"C16/successful without an answer", testpki.OCSPError(0), "RFC 6960"},
		{"C16/empty", nil, "RFC 6960"},
		{"C16/HTML", []byte("<html>it works</html>"), "RFC 6960"},
		{"C16/too large", make([]byte, maxOCSPResponse+1), "at most 64 KiB"},

		{"C17/expired", root.OCSP(alice, testpki.OCSPThis(now.Add(-2*time.Hour)), testpki.OCSPNext(now.Add(-time.Hour))), "that was until"},
		{"C17/just expired", root.OCSP(alice, testpki.OCSPThis(now.Add(-2*time.Hour)), testpki.OCSPNext(now.Add(-4*time.Minute))), ""},
		{"C17/replay of last week's", root.OCSP(alice, testpki.OCSPThis(now.Add(-week)), testpki.OCSPNext(now.Add(time.Hour-week))), "that was until"},
		{"C17/replay, without nextUpdate", root.OCSP(alice, testpki.OCSPThis(now.Add(-2*time.Hour)), testpki.OCSPNext(time.Time{})), "that was until"},
		{"C17/without nextUpdate", root.OCSP(alice, testpki.OCSPNext(time.Time{})), ""},
		{"C17/nextUpdate in 50 years", root.OCSP(alice, testpki.OCSPThis(now.Add(-5*week)), testpki.OCSPNext(now.AddDate(50, 0, 0))), "that was until"},
		{"C17/future thisUpdate", root.OCSP(alice, testpki.OCSPThis(now.Add(6*time.Minute))), "found thisUpdate"},
		{"C17/thisUpdate within the skew", root.OCSP(alice, testpki.OCSPThis(now.Add(4*time.Minute))), ""},
		{"C17/nextUpdate before thisUpdate", root.OCSP(alice, testpki.OCSPThis(now), testpki.OCSPNext(now.Add(-time.Minute))), "before thisUpdate"},
		{"C17/future producedAt", root.OCSP(alice, testpki.OCSPProduced(now.Add(6*time.Minute))), "producedAt"},
		{"C17/produced before thisUpdate", root.OCSP(alice, testpki.OCSPProduced(now.Add(-time.Hour))), "was produced"},
		{"C17/nonce repeated", root.OCSP(alice, testpki.OCSPNonce(ocspNonce)), ""},
		{"C17/nonce of another", root.OCSP(alice, testpki.OCSPNonce(ocspNonce[1:])), "found another"},
		{"C17/nonce twice", root.OCSP(alice, testpki.OCSPNonce(ocspNonce), testpki.OCSPNonce(ocspNonce)), "RFC 6960"},
		{"C17/no nonce", root.OCSP(alice), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, err := ocspQuery(alice, root).Check(c.response, ocspNonce, now)
			if c.want == "" {
				if err != nil || a.Status != Good || a.Responder != ocspURL || a.ThisUpdate.IsZero() || a.ProducedAt.IsZero() {
					t.Fatalf("%+v, %v", a, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%+v, %v; want %q", a, err, c.want)
			}
			if a != (Answer{}) || len(err.Error()) > 1024 || strings.ContainsFunc(err.Error(), control) {
				t.Errorf("%+v, %q", a, err)
			}
		})
	}
	t.Run("C17/nonce required", func(t *testing.T) {
		q := ocspQuery(alice, root)
		q.RequireNonce = true
		if _, err := q.Check(root.OCSP(alice), ocspNonce, now); err == nil || !strings.Contains(err.Error(), "found none") {
			t.Error(err)
		}
		if _, err := q.Check(root.OCSP(alice, testpki.OCSPNonce(nil)), nil, now); err == nil {
			t.Error("without a nonce of ours")
		}
		if _, err := q.Check(root.OCSP(alice, testpki.OCSPNonce(ocspNonce)), ocspNonce, now); err != nil {
			t.Error(err)
		}
	})
	t.Run("C16/tampered", func(t *testing.T) {
		good := root.OCSP(alice, testpki.OCSPBy(delegate))
		for i := range good {
			bad := slices.Clone(good)
			bad[i] ^= 1
			if a, err := ocspQuery(alice, root).Check(bad, nil, now); err == nil {
				// What is not signed may differ as long as nothing rests on it: bits of the embedded certificate's encoding do not.
				t.Errorf("byte %d of %d: %+v", i, len(good), a)
			}
		}
	})
	t.Run("C16/configured signer", func(t *testing.T) {
		stranger := other.Client("stranger")
		q := ocspQuery(alice, root)
		response := root.OCSP(alice, testpki.OCSPBy(stranger))
		if _, err := q.Check(response, nil, now); err == nil {
			t.Error("a stranger was believed")
		}
		q.Signers = []*x509.Certificate{stranger.Cert}
		for _, r := range [][]byte{response, root.OCSP(alice, testpki.OCSPBy(stranger), testpki.OCSPNoCerts(), testpki.OCSPByKey())} {
			if a, err := q.Check(r, nil, now); err != nil || a.Delegate != "" {
				t.Error(a, err)
			}
		}
		again := other.Client("again", testpki.Like(stranger))
		if _, err := q.Check(root.OCSP(alice, testpki.OCSPBy(testpki.New(t, testpki.RawSubject(stranger.Cert.RawSubject)))), nil, now); err == nil {
			t.Error("another certificate of the signer's name was believed")
		}
		q.Signers = []*x509.Certificate{other.Client("late", testpki.Expired(), testpki.Like(again)).Cert}
		if _, err := q.Check(response, nil, now); err == nil || !strings.Contains(err.Error(), "expected validity") {
			t.Error("an expired signer:", err)
		}
	})
	t.Run("statuses", func(t *testing.T) {
		for code, want := range map[int]int8{-1: 0, 0: 0, 1: 1, 6: 6, 8: 8, 10: 10, 127: 127} {
			a, err := ocspQuery(alice, root).Check(root.OCSP(alice, testpki.OCSPRevoked(code)), nil, now)
			if err != nil || a.Status != Revoked || a.Code != want || a.RevokedAt.IsZero() {
				t.Error(code, a, err)
			}
		}
		a, err := ocspQuery(alice, root).Check(root.OCSP(alice, testpki.OCSPUnknown()), nil, now)
		if err != nil || a.Status != Unknown {
			t.Error(a, err)
		}
	})
	t.Run("delegates are told", func(t *testing.T) {
		a, err := ocspQuery(alice, root).Check(root.OCSP(alice, testpki.OCSPBy(delegate)), nil, now)
		if err != nil || a.Delegate != string(delegate.Cert.SerialNumber.Bytes()) || !a.NoCheck {
			t.Error(a, err)
		}
		a, err = ocspQuery(alice, root).Check(root.OCSP(alice, testpki.OCSPBy(root.Client("r", testpki.EKU(x509.ExtKeyUsageOCSPSigning)))), nil, now)
		if err != nil || a.Delegate == "" || a.NoCheck {
			t.Error(a, err)
		}
	})
	t.Run("keys of every kind", func(t *testing.T) {
		for name, opt := range map[string]testpki.Option{"P-384": testpki.P384(), "P-521": testpki.P521(), "Ed25519": testpki.Ed25519(), "RSA": testpki.RSA(2048)} {
			ca := testpki.New(t, opt)
			c := ca.Client("c")
			if _, err := ocspQuery(c, ca).Check(ca.OCSP(c), nil, now); err != nil {
				t.Error(name, err)
			}
		}
		ca := testpki.New(t, testpki.RSA(2048))
		c := ca.Client("c")
		if _, err := ocspQuery(c, ca).Check(ca.OCSP(c, testpki.OCSPSHA1()), nil, now); err == nil || !strings.Contains(err.Error(), "SHA-1") {
			t.Error(err)
		}
	})
}

func TestOCSPRequest(t *testing.T) {
	root := testpki.New(t)
	alice := root.Client("alice")
	q := ocspQuery(alice, root)
	for _, n := range []int{1, 15, 33, 128} {
		if _, err := q.Request(make([]byte, n)); err == nil {
			t.Errorf("a nonce of %d octets", n)
		}
	}
	want, err := xocsp.CreateRequest(alice.Cert, root.Cert, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := q.Request(nil)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%x\nwant %x (%v)", got, want, err)
	}
	q.RequireNonce = true
	if _, err := q.Request(nil); err == nil {
		t.Error("without the nonce that answers must repeat")
	}
	for _, n := range []int{16, 32} {
		nonce := bytes.Repeat([]byte{0xab}, n)
		der, err := q.Request(nonce)
		if err != nil || !bytes.Contains(der, append([]byte{4, byte(n + 2), 4, byte(n)}, nonce...)) {
			t.Errorf("%x, %v", der, err)
		}
		if r, err := xocsp.ParseRequest(der); err != nil || r.SerialNumber.Cmp(alice.Cert.SerialNumber) != 0 {
			t.Error(r, err)
		}
	}
}

// golang.org/x/crypto/ocsp, which others use, makes what we take; and takes what we do not.
func TestOCSPAgainstOtherImplementation(t *testing.T) {
	root := testpki.New(t)
	alice, delegate := root.Client("alice"), root.Responder("delegate")
	now := time.Now()
	template := xocsp.Response{Status: xocsp.Good, SerialNumber: alice.Cert.SerialNumber, ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour), Certificate: delegate.Cert}
	der, err := xocsp.CreateResponse(root.Cert, delegate.Cert, template, delegate.Key)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := ocspQuery(alice, root).Check(der, nil, now); err != nil || a.Status != Good {
		t.Error(a, err)
	}
	template.Certificate = alice.Cert
	der, err = xocsp.CreateResponse(root.Cert, alice.Cert, template, alice.Key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := xocsp.ParseResponseForCert(der, alice.Cert, root.Cert); err != nil {
		t.Log("x/crypto/ocsp refuses now what it took when this was written:", err)
	}
	if _, err := ocspQuery(alice, root).Check(der, nil, now); err == nil {
		t.Error("signed by the client itself")
	}
}

func TestOCSPKeys(t *testing.T) {
	root, other := testpki.New(t), testpki.New(t)
	twin := testpki.New(t, testpki.KeyOf(root))
	alice := root.Client("alice")
	same := other.Client("same", testpki.Serial(alice.Cert.SerialNumber))
	q := func(change func(*Query)) *Query {
		q := ocspQuery(alice, root)
		change(q)
		return q
	}
	base := ocspQuery(alice, root).Key()
	if base != ocspQuery(alice, root).Key() || base != ocspQuery(alice, root).Keep().Key() {
		t.Error("a key is not equal to itself")
	}
	for name, other := range map[string]*Query{
		"C19/other issuer, same serial": ocspQuery(same, other),
		"C19/same key, other name":      q(func(q *Query) { q.Issuer = twin.Cert }),
		"C19/other serial":              ocspQuery(root.Client("bob"), root),
		"C19/other responder":           q(func(q *Query) { q.Responder += "x" }),
		"C19/other signers":             q(func(q *Query) { q.Signers = []*x509.Certificate{other.Cert} }),
		"C19/nonce":                     q(func(q *Query) { q.RequireNonce = true }),
		"C19/long serial":               q(func(q *Query) { q.Cert = &x509.Certificate{SerialNumber: new(big.Int).Lsh(big.NewInt(1), 300)} }),
		"C19/negative serial":           q(func(q *Query) { q.Cert = &x509.Certificate{SerialNumber: new(big.Int).Neg(alice.Cert.SerialNumber)} }),
	} {
		t.Run(name, func(t *testing.T) {
			if other.Key() == base {
				t.Error("the same key")
			}
		})
	}
	for _, pair := range [][2]int64{{1, 256}, {1, 1 << 40}} { // leading zeros are not significant, trailing ones are
		a, b := &x509.Certificate{SerialNumber: big.NewInt(pair[0])}, &x509.Certificate{SerialNumber: big.NewInt(pair[1])}
		if serialKey(a) == serialKey(b) {
			t.Error(pair)
		}
	}
	o := OCSP{Mode: OCSPRequire, Responder: ocspURL, Signers: []*x509.Certificate{other.Cert}, Answers: NewAnswers(0)}
	for range 2 { // before and after check
		if want := (&Query{Cert: alice.Cert, Issuer: root.Cert, Responder: ocspURL, Signers: o.Signers}).Key(); o.key(alice.Cert, root.Cert, ocspURL) != want {
			t.Error("judge and who asks do not mean the same key")
		}
		if err := o.check(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAnswers(t *testing.T) {
	root := testpki.New(t)
	key := func(serial int64) QueryKey {
		return (&Query{Cert: &x509.Certificate{SerialNumber: big.NewInt(serial)}, Issuer: root.Cert, Responder: ocspURL}).Key()
	}
	at := time.Now()
	answer := func(s Status, minutes int) Answer {
		this := at.Add(time.Duration(minutes) * time.Minute)
		return Answer{Status: s, ThisUpdate: this, ProducedAt: this, NextUpdate: this.Add(time.Hour)}
	}
	// Put first, put second; what is there then, and whether the second was a change.
	for _, c := range []struct {
		name          string
		first, second Answer
		want          Answer
		changed       bool
	}{
		{"C20/newer good after good", answer(Good, 0), answer(Good, 1), answer(Good, 1), false},
		{"C20/older good after good", answer(Good, 1), answer(Good, 0), answer(Good, 1), false},
		{"C20/revoked after good", answer(Good, 0), answer(Revoked, 1), answer(Revoked, 1), true},
		{"C20/revoked of the same second", answer(Good, 0), answer(Revoked, 0), answer(Revoked, 0), true},
		{"C20/older revoked after good", answer(Good, 1), answer(Revoked, 0), answer(Good, 1), false},
		{"C20/good of the same second after revoked", answer(Revoked, 0), answer(Good, 0), answer(Revoked, 0), false},
		{"C20/older good after revoked", answer(Revoked, 1), answer(Good, 0), answer(Revoked, 1), false},
		{"C20/released", answer(Revoked, 0), answer(Good, 1), answer(Good, 1), true},
		{"C20/unknown after revoked", answer(Revoked, 0), answer(Unknown, 1), answer(Revoked, 0), false},
		{"C20/unknown after good", answer(Good, 0), answer(Unknown, 1), answer(Unknown, 1), true},
		{"C20/good after unknown", answer(Unknown, 0), answer(Good, 1), answer(Good, 1), true},
		{"C20/good of the same second after unknown", answer(Unknown, 0), answer(Good, 0), answer(Unknown, 0), false},
		{"C20/no status", answer(Good, 0), answer(0, 1), answer(Good, 0), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := NewAnswers(0)
			a.Put(key(1), c.first)
			before := a.Changes()
			if changed := a.Put(key(1), c.second); changed != c.changed || (a.Changes() > before) != c.changed {
				t.Errorf("changed=%t, %d then %d", changed, before, a.Changes())
			}
			if got, ok := a.Lookup(key(1)); !ok || got != c.want {
				t.Errorf("%+v", got)
			}
		})
	}
	t.Run("first answers", func(t *testing.T) {
		a := NewAnswers(0)
		if a.Put(key(1), answer(Good, 0)) || !a.Put(key(2), answer(Revoked, 0)) || !a.Put(key(3), answer(Unknown, 0)) || a.Changes() != 2 {
			t.Error(a.Changes())
		}
		var none *Answers
		if _, ok := none.Lookup(key(1)); ok || none.Put(key(1), answer(Good, 0)) || none.Changes() != 0 {
			t.Error("nil")
		}
	})
	t.Run("C18/revoked ones are not crowded out", func(t *testing.T) {
		a := NewAnswers(1000)
		count := func(from, to int64) (n int) {
			for i := from; i < to; i++ {
				if _, ok := a.Lookup(key(i)); ok {
					n++
				}
			}
			return n
		}
		for i := range int64(300) {
			a.Put(key(i), answer(Revoked, 0))
		}
		for i := int64(300); i < 20000; i++ {
			a.Put(key(i), answer(Good, int(i)))
		}
		if n := count(0, 300); n != 300 {
			t.Errorf("%d of 300 revoked ones left", n)
		}
		if n := count(300, 20000); n > 1024-300 || n < 500 {
			t.Errorf("%d good ones", n)
		}
		for i := int64(20000); i < 40000; i++ {
			a.Put(key(i), answer(Revoked, int(i)))
		}
		if n := count(300, 20000); n != 0 {
			t.Errorf("%d good ones left", n)
		}
		if n := count(0, 40000); n > 1024 {
			t.Errorf("%d answers", n)
		}
		if a.Put(key(50000), answer(Good, 0)); count(50000, 50001) != 0 {
			t.Error("a good one took the place of a revoked one")
		}
	})
}

func TestOCSPJudge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := testpki.New(t)
		inter := root.Intermediate("Inter", testpki.OCSPServer("http://ocsp.test/ca"))
		alice := inter.Client("alice", testpki.OCSPServer("ldap://x", "http://ocsp.test/"), testpki.Lifetime(1000*time.Hour))
		mute := inter.Client("mute")
		answers := NewAnswers(0)
		prefer := &OCSP{Mode: OCSPPrefer, Hosts: []string{"ocsp.test"}, Answers: answers}
		require := &OCSP{Mode: OCSPRequire, Hosts: []string{"ocsp.test"}, Answers: answers}
		chain := &OCSP{Mode: OCSPRequire, Hosts: []string{"ocsp.test"}, Answers: answers, Chain: true}
		put := func(response []byte) {
			t.Helper()
			a, err := ocspQuery(alice, inter).Check(response, nil, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			answers.Put(ocspQuery(alice, inter).Key(), a)
		}
		expect := func(o *OCSP, c, ca *testpki.Cert, leaf bool, want reason.Reason, asks bool) {
			t.Helper()
			f, ask := o.judge(c.Cert, ca.Cert, leaf, time.Now())
			got := reason.Unset
			if f != nil {
				got = f.rule
				if f.expected == "" || f.found == "" {
					t.Errorf("no evidence: %+v", f)
				}
			}
			if got != want || (ask != nil) != asks {
				t.Errorf("%v (%+v), ask %v; want %v, %t", got, f, ask, want, asks)
			}
			if ask != nil && (ask.Key() != o.key(c.Cert, ca.Cert, ask.Responder) || !slices.Equal(ask.Hosts, o.Hosts)) {
				t.Errorf("%+v", ask)
			}
		}
		off := new(OCSP)
		expect(off, alice, inter, true, reason.Unset, false)
		// C18: no answer.
		expect(prefer, alice, inter, true, reason.Unset, true)
		expect(require, alice, inter, true, reason.OCSPUnavailable, true)
		expect(require, mute, inter, true, reason.OCSPUnavailable, false)
		expect(prefer, mute, inter, true, reason.Unset, false)
		expect(require, inter, root, false, reason.Unset, false)
		expect(chain, inter, root, false, reason.OCSPUnavailable, true)

		put(inter.OCSP(alice))
		expect(require, alice, inter, true, reason.Unset, false)
		if at := require.goodUntil(alice.Cert, inter.Cert, true, time.Now()); time.Until(at) > 30*time.Minute || at.Before(time.Now().Add(25*time.Minute)) {
			t.Error("good until", at)
		}
		if answers.Used(ocspQuery(alice, inter).Key()).IsZero() {
			t.Error("use was not noted")
		}
		time.Sleep(35 * time.Minute) // past half of its life
		expect(require, alice, inter, true, reason.Unset, true)
		time.Sleep(29 * time.Minute) // past nextUpdate, within the skew
		expect(require, alice, inter, true, reason.Unset, true)
		time.Sleep(2 * time.Minute)
		expect(require, alice, inter, true, reason.OCSPUnavailable, true)
		expect(prefer, alice, inter, true, reason.Unset, true)

		put(inter.OCSP(alice, testpki.OCSPUnknown()))
		expect(require, alice, inter, true, reason.OCSPUnknown, true)
		expect(prefer, alice, inter, true, reason.Unset, true)

		time.Sleep(time.Minute)
		put(inter.OCSP(alice, testpki.OCSPRevoked(1)))
		expect(require, alice, inter, true, reason.ClientCertRevoked, false)
		expect(prefer, alice, inter, true, reason.ClientCertRevoked, false)
		time.Sleep(500 * time.Hour) // the last that is known stays in force
		expect(require, alice, inter, true, reason.ClientCertRevoked, true)
		expect(prefer, alice, inter, true, reason.ClientCertRevoked, true)
		put(inter.OCSP(alice))
		expect(prefer, alice, inter, true, reason.Unset, false)

		q := &Query{Cert: inter.Cert, Issuer: root.Cert, Responder: "http://ocsp.test/ca"}
		a, err := q.Check(root.OCSP(inter, testpki.OCSPRevoked(2)), nil, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		answers.Put(q.Key(), a)
		expect(chain, inter, root, false, reason.ClientIssuerRevoked, false)
		expect(require, inter, root, false, reason.Unset, false)
	})
}

// A clock that went back leaves answers of the future.
func TestOCSPAnswerOfTheFuture(t *testing.T) {
	root := testpki.New(t)
	alice := root.Client("alice")
	now := time.Now()
	o := &OCSP{Mode: OCSPRequire, Responder: ocspURL, Answers: NewAnswers(0)}
	o.Answers.Put(ocspQuery(alice, root).Key(), Answer{Status: Good, ThisUpdate: now, ProducedAt: now, NextUpdate: now.Add(time.Hour)})
	f, ask := o.judge(alice.Cert, root.Cert, true, now.Add(-time.Hour))
	if f == nil || f.rule != reason.OCSPUnavailable || ask == nil {
		t.Errorf("%+v %+v", f, ask)
	}
}

func TestOCSPMayAsk(t *testing.T) {
	o := &OCSP{Hosts: []string{"ocsp.test", "port.test:8080", "tls.test:443", "[::1]:8080"}}
	for url, want := range map[string]bool{
		"http://ocsp.test": true, "http://ocsp.test/": true, "https://ocsp.test/x?y": true, "HTTP://OCSP.Test:80/": true, "http://ocsp.test?x": true,
		"http://port.test:8080/": true, "https://tls.test/": true, "https://tls.test:443/": true, "http://[::1]:8080/": true,
		"http://ocsp.test:8080/": false, "http://port.test/": false, "http://tls.test/": false, "http://ocsp.test:443/": false, "https://ocsp.test:80/": false,
		"http://169.254.169.254/": false, "ldap://ocsp.test/": false, "file:///etc/passwd": false, "ocsp.test": false, "": false, "http://": false, "http:///": false,
		"http://x@ocsp.test/": false, "http://ocsp.test@evil.test/": false, "http://ocsp.test\\@evil.test/": false, "http://ocsp.test.evil.test/": false,
		"http://evil.test#ocsp.test": false, "http://ocsp.test%2eevil/": false, "http://ocsp.test./": false, "http://ocsp.test\r\nHost: x/": false,
		"http://ocsp.test/" + strings.Repeat("a", maxResponder): false, "//ocsp.test/": false, "http://ocsp.test /": false,
	} {
		t.Run("C13/"+url[:min(len(url), 40)], func(t *testing.T) {
			if got := o.mayAsk(url); got != want {
				t.Errorf("%q: %t", url, got)
			}
		})
	}
	if new(OCSP).mayAsk("http://ocsp.test/") {
		t.Error("without hosts")
	}
}

func TestOCSPOptions(t *testing.T) {
	root := testpki.New(t)
	answers := NewAnswers(0)
	signer := []*x509.Certificate{root.Responder("r").Cert}
	for name, o := range map[string]OCSP{
		"unknown mode":          {Mode: 9, Answers: answers, Responder: ocspURL},
		"settings without mode": {Responder: ocspURL},
		"no memory":             {Mode: OCSPPrefer, Responder: ocspURL},
		"nobody to ask":         {Mode: OCSPRequire, Answers: answers},
		"responder's scheme":    {Mode: OCSPRequire, Answers: answers, Responder: "ldap://x/"},
		"responder's user":      {Mode: OCSPRequire, Answers: answers, Responder: "http://a@x/"},
		"host is a URL":         {Mode: OCSPRequire, Answers: answers, Hosts: []string{"http://x/"}},
		"host is a wildcard":    {Mode: OCSPRequire, Answers: answers, Hosts: []string{"*.test"}},
		"host in upper case":    {Mode: OCSPRequire, Answers: answers, Hosts: []string{"X.test"}},
		"too many hosts":        {Mode: OCSPRequire, Answers: answers, Hosts: slices.Repeat([]string{"x"}, 65)},
		"weak signer":           {Mode: OCSPRequire, Answers: answers, Responder: ocspURL, Signers: []*x509.Certificate{root.Responder("r", testpki.SHA1()).Cert}},
		"no signer":             {Mode: OCSPRequire, Answers: answers, Responder: ocspURL, Signers: []*x509.Certificate{nil}},
	} {
		if err := o.check(); err == nil {
			t.Error(name, "was taken")
		}
	}
	good := OCSP{Mode: OCSPRequire, Answers: answers, Responder: ocspURL, Hosts: []string{"a", "b"}, Signers: signer}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	if err := new(OCSP).check(); err != nil {
		t.Error(err)
	}
	seen := map[string]string{}
	for name, change := range map[string]func(*OCSP){
		"": func(*OCSP) {}, "mode": func(o *OCSP) { o.Mode = OCSPPrefer }, "responder": func(o *OCSP) { o.Responder += "x" }, "hosts": func(o *OCSP) { o.Hosts = nil },
		"signers": func(o *OCSP) { o.Signers = nil }, "nonce": func(o *OCSP) { o.RequireNonce = true }, "chain": func(o *OCSP) { o.Chain = true },
	} {
		o := good
		change(&o)
		d := string(o.digest())
		if twin, twice := seen[d]; twice {
			t.Errorf("digest is the same for %q and %q", name, twin)
		}
		seen[d] = name
	}
	o := good
	o.Hosts, o.Answers = []string{"b", "a"}, NewAnswers(1)
	if !bytes.Equal(o.digest(), good.digest()) {
		t.Error("the order of hosts, or the memory, is part of the digest")
	}
}

// Two CAs, one serial number, one of them revoked, asked and judged in parallel.
func TestOCSPNoCrossAnswers(t *testing.T) {
	t.Run("C19/parallel", func(t *testing.T) {
		a, b := testpki.New(t), testpki.New(t)
		good := a.Client("good")
		bad := b.Client("bad", testpki.Serial(good.Cert.SerialNumber))
		o := &OCSP{Mode: OCSPRequire, Responder: ocspURL, Answers: NewAnswers(0)}
		goodDER, badDER := a.OCSP(good), b.OCSP(bad, testpki.OCSPRevoked(1))
		var all sync.WaitGroup
		for i := range 1000 {
			all.Go(func() {
				c, ca, der, want := good, a, goodDER, reason.Unset
				if i%2 == 1 {
					c, ca, der, want = bad, b, badDER, reason.ClientCertRevoked
				}
				_, ask := o.judge(c.Cert, ca.Cert, true, time.Now())
				if ask != nil {
					answer, err := ask.Check(der, nil, time.Now())
					if err != nil {
						t.Error(err)
					}
					o.Answers.Put(ask.Key(), answer)
				}
				f, _ := o.judge(c.Cert, ca.Cert, true, time.Now())
				if (f == nil) != (want == reason.Unset) || f != nil && f.rule != want {
					t.Errorf("%v, want %v", f, want)
				}
			})
		}
		all.Wait()
	})
}

func TestDeclined(t *testing.T) {
	root := testpki.New(t)
	_, err := ocspQuery(root.Client("alice"), root).Check(testpki.OCSPError(6), nil, time.Now())
	if declined, ok := errors.AsType[Declined](err); !ok || declined != DeclinedUnauthorized {
		t.Error(err)
	}
}

func FuzzOCSPResponse(f *testing.F) {
	root := testpki.New(f)
	alice, delegate := root.Client("alice"), root.Responder("r")
	signer := testpki.New(f).Client("signer")
	for _, der := range [][]byte{
		root.OCSP(alice), root.OCSP(alice, testpki.OCSPBy(delegate), testpki.OCSPByKey(), testpki.OCSPNonce(ocspNonce), testpki.OCSPExt(testpki.Unknown)),
		root.OCSP(alice, testpki.OCSPRevoked(1), testpki.OCSPAlso(root, signer), testpki.OCSPSingleExt(testpki.Unknown)), root.OCSP(alice, testpki.OCSPUnknown(), testpki.OCSPBy(signer)),
		testpki.OCSPError(6), nil,
	} {
		f.Add(der)
	}
	q := ocspQuery(alice, root)
	q.Signers = []*x509.Certificate{signer.Cert}
	now := time.Now()
	f.Fuzz(func(t *testing.T, der []byte) {
		a, err := q.Check(der, ocspNonce, now)
		if err != nil {
			if text := err.Error(); len(text) > 1024 || strings.ContainsFunc(text, control) {
				t.Errorf("%q", text)
			}
			if a != (Answer{}) {
				t.Errorf("%+v with an error", a)
			}
			return
		}
		if !a.Current(now) || a.Status < Good || a.Status > Unknown {
			t.Errorf("%+v", a)
		}
		NewAnswers(1).Put(q.Key(), a)
	})
}

func BenchmarkOCSPHit(b *testing.B) {
	root := testpki.New(b)
	rsa := testpki.New(b, testpki.RSA(2048))
	for name, ca := range map[string]*testpki.Cert{"ecdsa": root, "rsa": rsa} {
		for aia, o := range map[string]*OCSP{"override": {Mode: OCSPRequire, Responder: ocspURL}, "aia": {Mode: OCSPRequire, Hosts: []string{"ocsp.test"}}} {
			b.Run(fmt.Sprint(name, "/", aia), func(b *testing.B) {
				alice := ca.Client("alice", testpki.OCSPServer(ocspURL))
				o.Answers = NewAnswers(0)
				now := time.Now()
				for i := range 10000 {
					c := *alice.Cert
					c.SerialNumber = new(big.Int).Add(alice.Cert.SerialNumber, big.NewInt(int64(i+1)))
					o.Answers.Put((&Query{Cert: &c, Issuer: ca.Cert, Responder: ocspURL}).Key(), Answer{Status: Good, ThisUpdate: now, NextUpdate: now.Add(time.Hour)})
				}
				o.Answers.Put(ocspQuery(alice, ca).Key(), Answer{Status: Good, ThisUpdate: now, NextUpdate: now.Add(time.Hour)})
				b.ReportAllocs()
				for b.Loop() {
					if f, ask := o.judge(alice.Cert, ca.Cert, true, now); f != nil || ask != nil {
						b.Fatal(f, ask)
					}
				}
			})
		}
	}
}

func ocspSHA1(b []byte) []byte {
	h := crypto.SHA1.New()
	h.Write(b)
	return h.Sum(nil)
}

func ocspKeyBits(t *testing.T, c *testpki.Cert) []byte {
	bits, err := keyBits(c.Cert)
	if err != nil {
		t.Fatal(err)
	}
	return bits
}
