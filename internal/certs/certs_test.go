package certs

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/internal/memnet"
)

// node is a certificate with its key, and the way up.
type node struct {
	*x509.Certificate
	key    crypto.Signer
	issuer *node
}

var serial int64

// issue makes a certificate for key, by issuer, or self-signed if that is nil.
func issue(t testing.TB, issuer *node, key crypto.Signer, edit func(*x509.Certificate)) *node {
	t.Helper()
	serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: fmt.Sprintf("c%d", serial)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(365 * 24 * time.Hour), BasicConstraintsValid: true,
	}
	if edit != nil {
		edit(template)
	}
	parent, signer := template, key
	if issuer != nil {
		parent, signer = issuer.Certificate, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &node{c, key, issuer}
}

func ca(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.Subject.CommonName, c.IsCA = name, true }
}

func leafFor(names ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.Subject.CommonName, c.DNSNames = names[0], names }
}

func ecKey(curve elliptic.Curve) crypto.Signer {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

func edKey() crypto.Signer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

var rsaTestKey = sync.OnceValue(func() crypto.Signer { // once: it takes a while
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func certPEM(nodes ...*node) []byte {
	var out []byte
	for _, n := range nodes {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: n.Raw})...)
	}
	return out
}

func keyPEM(key crypto.Signer) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func pair(t *testing.T, leaf *node) *tls.Certificate {
	t.Helper()
	nodes := []*node{leaf}
	for n := leaf.issuer; n != nil && n.issuer != nil; n = n.issuer {
		nodes = append(nodes, n)
	}
	p, err := ParsePair(certPEM(nodes...), keyPEM(leaf.key))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func cat(parts ...[]byte) []byte { return slices.Concat(parts...) }

func TestH03(t *testing.T) {
	root := issue(t, nil, ecKey(elliptic.P256()), ca("root"))
	inter := issue(t, root, ecKey(elliptic.P256()), ca("inter"))
	twin := issue(t, root, ecKey(elliptic.P256()), ca("inter")) // the same name with another key
	leaf := issue(t, inter, ecKey(elliptic.P256()), leafFor("a.test"))
	notCA := issue(t, inter, ecKey(elliptic.P256()), leafFor("b.test"))
	underLeaf := issue(t, notCA, ecKey(elliptic.P256()), leafFor("c.test"))
	p224 := issue(t, inter, ecKey(elliptic.P224()), leafFor("a.test"))
	small := func() crypto.Signer {
		t.Setenv("GODEBUG", "rsa1024min=0")
		key, err := rsa.GenerateKey(rand.Reader, 1024)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}()
	smallLeaf := issue(t, inter, small, leafFor("a.test"))

	good, key := certPEM(leaf, inter), keyPEM(leaf.key)
	legacy := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}, Bytes: []byte("x")})
	for name, tc := range map[string]struct {
		cert, key []byte
		want      error
		text      string
	}{
		"new certificate, old key":   {good, keyPEM(ecKey(elliptic.P256())), ErrKeyMismatch, "still the old one"},
		"key of another algorithm":   {good, keyPEM(edKey()), ErrKeyMismatch, "expected the ECDSA key"},
		"key of the intermediate":    {good, keyPEM(inter.key), ErrKeyMismatch, "belongs to certificate 2"},
		"new leaf, old chain":        {certPEM(leaf, twin), key, ErrChain, "did not sign certificate 1"},
		"chain out of order":         {certPEM(leaf, root, inter), key, ErrChain, "issued by \"CN=inter\""},
		"gap in the chain":           {certPEM(leaf, root), key, ErrChain, "found \"CN=root\" as number 2"},
		"issuer is no CA":            {certPEM(underLeaf, notCA), keyPEM(underLeaf.key), ErrChain, "did not sign"},
		"swapped":                    {key, good, ErrSwapped, "exchange"},
		"key in certificate file":    {cat(good, key), key, ErrKeyInCertFile, "file of its own"},
		"certificate in key file":    {good, cat(key, good), ErrCertInKeyFile, "found 2 certificates"},
		"certificates twice":         {good, good, ErrCertInKeyFile, "private key"},
		"two keys":                   {good, cat(key, keyPEM(inter.key)), ErrMalformed, "found 2"},
		"encrypted":                  {good, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}), ErrKeyEncrypted, "decrypt with openssl pkey"},
		"encrypted, old form":        {good, legacy, ErrKeyEncrypted, "decrypt with openssl pkey"},
		"OpenSSH key":                {good, pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: []byte("x")}), ErrKeyUnsupported, "OPENSSH"},
		"P-224":                      {certPEM(p224), keyPEM(p224.key), ErrKeyUnsupported, "found ECDSA on P-224"},
		"RSA-1024":                   {certPEM(smallLeaf), keyPEM(small), ErrKeyUnsupported, "found RSA of 1024"},
		"garbage key":                {good, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), ErrMalformed, "cannot be parsed"},
		"garbage certificate":        {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), key, ErrMalformed, "certificate 1"},
		"empty certificate file":     {nil, key, ErrNoCertificate, "an empty file"},
		"empty key file":             {good, []byte("\n"), ErrNoKey, "an empty file"},
		"certificate half written":   {good[:len(good)-40], key, ErrMalformed, "expected an END line"},
		"key half written":           {good, key[:len(key)-40], ErrMalformed, "key file"},
		"public key in place of key": {good, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte("x")}), ErrNoKey, "BEGIN PUBLIC KEY"},
		"CRL among certificates":     {cat(good, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: []byte("x")})), key, ErrMalformed, "X509 CRL"},
	} {
		t.Run("H03/"+name, func(t *testing.T) {
			p, err := ParsePair(tc.cert, tc.key)
			if p != nil || !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v; want %v with %q", err, tc.want, tc.text)
			}
		})
	}
	t.Run("H03/good", func(t *testing.T) {
		sec1, _ := x509.MarshalECPrivateKey(leaf.key.(*ecdsa.PrivateKey))
		ecFile := cat(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte("x")}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}))
		for _, key := range [][]byte{key, ecFile, cat([]byte("Bag Attributes\n"), key)} {
			p, err := ParsePair(cat([]byte("# leaf\n"), certPEM(leaf, inter, root)), key)
			if err != nil || len(p.Certificate) != 3 || !p.Leaf.Equal(leaf.Certificate) {
				t.Errorf("%v, %v", p, err)
			}
		}
		r := issue(t, inter, rsaTestKey(), leafFor("a.test"))
		pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(r.key.(*rsa.PrivateKey))})
		if _, err := ParsePair(certPEM(r, inter), pkcs1); err != nil {
			t.Error(err)
		}
	})
}

func TestSetRefused(t *testing.T) {
	if _, err := NewSet(nil); err == nil {
		t.Error("an empty set was made")
	}
	if _, err := NewSet([]*tls.Certificate{{}}); err == nil {
		t.Error("a pair without leaf was taken")
	}
	var zero Set
	if zero.For(&tls.ClientHelloInfo{}) != nil {
		t.Error("the zero set has a certificate")
	}
}

// What a client offers decides, seen through the real handshake.
func TestChoiceByOffer(t *testing.T) {
	root := issue(t, nil, ecKey(elliptic.P256()), ca("root"))
	roots := x509.NewCertPool()
	roots.AddCert(root.Certificate)
	ec := pair(t, issue(t, root, ecKey(elliptic.P256()), leafFor("a.test")))
	ed := pair(t, issue(t, root, edKey(), leafFor("a.test")))
	rs := pair(t, issue(t, root, rsaTestKey(), leafFor("a.test")))
	name := map[*tls.Certificate]string{ec: "ECDSA", ed: "Ed25519", rs: "RSA"}

	handshake := func(t *testing.T, set *Set, client *tls.Config) (chosen string, hello *tls.ClientHelloInfo, err error) {
		c, s := memnet.Pipe("client", "server")
		defer c.Close()
		defer s.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = tls.Server(s, &tls.Config{MinVersion: tls.VersionTLS10, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
				hello, chosen = h, name[set.For(h)]
				return set.For(h), nil
			}}).HandshakeContext(ctx)
			_ = s.CloseWrite()
		}()
		client.ServerName, client.RootCAs = "a.test", roots
		err = tls.Client(c, client).HandshakeContext(ctx)
		if err == nil {
			err = c.CloseWrite()
		}
		<-done
		return chosen, hello, err
	}
	newSet := func(pairs ...*tls.Certificate) *Set {
		s, err := NewSet(pairs)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ecSuites := []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}
	rsaSuites := []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
	for label, tc := range map[string]struct {
		set    *Set
		client *tls.Config
		want   string
	}{
		"1.3":                       {newSet(rs, ed, ec), &tls.Config{MinVersion: tls.VersionTLS13}, "ECDSA"},
		"1.3 without ECDSA":         {newSet(rs, ed), &tls.Config{MinVersion: tls.VersionTLS13}, "Ed25519"},
		"1.2 both":                  {newSet(rs, ed, ec), &tls.Config{MaxVersion: tls.VersionTLS12}, "ECDSA"},
		"1.2 ECDSA suites":          {newSet(rs, ec), &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: ecSuites}, "ECDSA"},
		"1.2 RSA suites":            {newSet(rs, ed, ec), &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: rsaSuites}, "RSA"},
		"1.2 ECDSA with CBC only":   {newSet(rs, ec), &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, rsaSuites[0]}}, "RSA"},
		"1.2 without the curve":     {newSet(rs, ec), &tls.Config{MaxVersion: tls.VersionTLS12, CurvePreferences: []tls.CurveID{tls.X25519}}, "RSA"},
		"1.3 without the curve":     {newSet(rs, ec), &tls.Config{MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519}}, "ECDSA"},
		"one, fitting":              {newSet(rs), &tls.Config{}, "RSA"},
		"1.0":                       {newSet(ed, rs), &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA}}, "RSA"},
		"1.2 and 1.3 on both sides": {newSet(rs, ec), &tls.Config{MinVersion: tls.VersionTLS12, CipherSuites: rsaSuites}, "ECDSA"},
	} {
		t.Run(label, func(t *testing.T) {
			got, hello, err := handshake(t, tc.set, tc.client)
			if got != tc.want || err != nil {
				t.Errorf("chose %q, %v; want %q", got, err, tc.want)
			}
			if n := testing.AllocsPerRun(10, func() { tc.set.For(hello) }); n != 0 {
				t.Errorf("%v allocations, want none", n)
			}
		})
	}
	t.Run("none fits", func(t *testing.T) {
		got, _, err := handshake(t, newSet(ec, ed), &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: rsaSuites})
		if got != "ECDSA" || err == nil {
			t.Errorf("chose %q, %v; want the first and an error of crypto/tls", got, err)
		}
	})
	t.Run("dates", func(t *testing.T) {
		at := func(from, to time.Duration) *tls.Certificate {
			return pair(t, issue(t, root, ecKey(elliptic.P256()), func(c *x509.Certificate) {
				c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(to)
			}))
		}
		const day = 24 * time.Hour
		old, newer, expired, future := at(-9*day, day), at(-day, day), at(-2*day, -day), at(day, 2*day)
		hello := &tls.ClientHelloInfo{SupportedVersions: []uint16{tls.VersionTLS13}, SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256, tls.PSSWithSHA256}}
		for label, tc := range map[string]struct {
			set  *Set
			want *tls.Certificate
		}{
			"newest valid":               {newSet(old, expired, future, newer), newer},
			"valid RSA over stale ECDSA": {newSet(expired, future, rs), rs},
			"stale rather than none":     {newSet(expired, ed), expired},
		} {
			if got := tc.set.For(hello); got != tc.want {
				t.Errorf("%s: got %v", label, got.Leaf.NotBefore)
			}
		}
	})
	t.Run("P-384 only", func(t *testing.T) {
		p384 := pair(t, issue(t, root, ecKey(elliptic.P384()), leafFor("a.test")))
		hello := &tls.ClientHelloInfo{SupportedVersions: []uint16{tls.VersionTLS13}, SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP384AndSHA384}}
		if got := newSet(ec, p384, rs).For(hello); got != p384 {
			t.Errorf("got the %s certificate", name[got])
		}
	})
}

func TestClientFor(t *testing.T) {
	rootA, rootB := issue(t, nil, ecKey(elliptic.P256()), ca("A")), issue(t, nil, ecKey(elliptic.P256()), ca("B"))
	inter := issue(t, rootA, ecKey(elliptic.P256()), ca("inter"))
	now := time.Now()
	shift := func(d time.Duration) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(d-time.Hour), now.Add(d+time.Hour) }
	}
	a := pair(t, issue(t, inter, ecKey(elliptic.P256()), nil))
	newer := pair(t, issue(t, inter, ecKey(elliptic.P256()), shift(30*time.Minute)))
	b := pair(t, issue(t, rootB, ecKey(elliptic.P256()), nil))
	expired, future := pair(t, issue(t, inter, ecKey(elliptic.P256()), shift(-2*time.Hour))), pair(t, issue(t, inter, ecKey(elliptic.P256()), shift(2*time.Hour)))
	all := []*tls.Certificate{expired, a, newer, b, future}
	ask := func(cas ...[]byte) *tls.CertificateRequestInfo {
		return &tls.CertificateRequestInfo{AcceptableCAs: cas, SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}, Version: tls.VersionTLS13}
	}
	many := make([][]byte, 1000)
	for i := range many {
		many[i] = issueName(strings.Repeat("very long ", 100))
	}
	for label, tc := range map[string]struct {
		req   *tls.CertificateRequestInfo
		pairs []*tls.Certificate
		want  *tls.Certificate
		why   string
	}{
		"no pair":                      {ask(rootA.RawSubject), nil, nil, `accepts the CAs "CN=A" with ECDSAWithP256AndSHA256`},
		"none valid":                   {ask(), []*tls.Certificate{expired, future}, nil, "all 2"},
		"other CA":                     {ask(rootB.RawSubject), []*tls.Certificate{a, expired}, nil, `(1 outdated, 1 not acceptable`},
		"other key":                    {&tls.CertificateRequestInfo{SignatureSchemes: []tls.SignatureScheme{tls.PSSWithSHA256}, Version: tls.VersionTLS13}, all, nil, "any CA with PSSWithSHA256"},
		"unreadable name":              {ask([]byte("x\r\n")), all, nil, "cannot be parsed"},
		"many names":                   {ask(many...), all, nil, "995 more"},
		"line break in a name":         {ask(issueName("x\r\ny")), all, nil, `x\r\ny`},
		"the CA above our issuer":      {ask(rootA.RawSubject), []*tls.Certificate{b, a}, a, ""},
		"our issuer":                   {ask(inter.RawSubject), []*tls.Certificate{b, a}, a, ""},
		"one of several CAs":           {ask([]byte("?"), rootB.RawSubject), all, b, ""},
		"any CA, the newest one valid": {ask(), all, newer, ""},
	} {
		t.Run(label, func(t *testing.T) {
			got, why := ClientFor(tc.req, tc.pairs, now)
			if got != tc.want || !strings.Contains(why, tc.why) || (why == "") != (tc.want != nil) {
				t.Errorf("got %v, %q; want %q", got != nil, why, tc.why)
			}
			if len(why) > 2000 || strings.ContainsAny(why, "\r\n") {
				t.Errorf("%d bytes, %q", len(why), why)
			}
		})
	}
}

func issueName(cn string) []byte {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}, edKey())
	if err != nil {
		panic(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		panic(err)
	}
	return csr.RawSubject
}

func TestCheck(t *testing.T) {
	// What a certificate says it is for matters where it is shown to clients.
	for label, uses := range map[string][]x509.ExtKeyUsage{
		"none": {}, "any": {x509.ExtKeyUsageAny}, "both": {x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		"client": {x509.ExtKeyUsageClientAuth},
	} {
		p := pair(t, issue(t, nil, ecKey(elliptic.P256()), func(c *x509.Certificate) { c.DNSNames, c.ExtKeyUsage = []string{"a.test"}, uses }))
		now := p.Leaf.NotBefore.Add(time.Minute)
		if got := strings.Join(Check(p, []string{"a.test"}, now), "|"); strings.Contains(got, "without serverAuth") != (label == "client") {
			t.Errorf("extendedKeyUsage %s: %s", label, got)
		}
		if got := strings.Join(Check(p, nil, now), "|"); strings.Contains(got, "serverAuth") {
			t.Errorf("extendedKeyUsage %s, for backends: %s", label, got)
		}
	}
	nameless := pair(t, issue(t, nil, ecKey(elliptic.P256()), func(c *x509.Certificate) { c.Subject.CommonName = "a.test" }))
	if got := strings.Join(Check(nameless, []string{"a.test"}, nameless.Leaf.NotBefore.Add(time.Minute)), "|"); !strings.Contains(got, `does not cover the name "a.test": it has no DNS names;`) {
		t.Errorf("without names: %s", got)
	}

	leaf := pair(t, issue(t, nil, ecKey(elliptic.P256()), leafFor("a.test", "*.W.test")))
	end := leaf.Leaf.NotAfter
	for label, tc := range map[string]struct {
		names []string
		now   time.Time
		want  []string
	}{
		"expired":       {nil, end.Add(time.Second), []string{"expired at"}},
		"not yet valid": {nil, leaf.Leaf.NotBefore.Add(-time.Second), []string{"not valid before"}},
		"soon":          {nil, end.Add(-13*24*time.Hour - time.Hour), []string{"expires in 13 days"}},
		"names":         {[]string{"b.test", "*.a.test", "x.y.w.test", "10.0.0.1"}, end.Add(-100 * 24 * time.Hour), []string{`"b.test"`, `"*.a.test"`, `"x.y.w.test"`, `"10.0.0.1"`}},
		"good":          {[]string{"A.test.", "x.w.test", "*.w.test"}, end.Add(-15 * 24 * time.Hour), nil},
	} {
		t.Run(label, func(t *testing.T) {
			got := Check(leaf, tc.names, tc.now)
			if !slices.EqualFunc(got, tc.want, strings.Contains) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// A Reader answers as one that has seen nothing, and parses and checks the certificates of issuers once.
func TestReader(t *testing.T) {
	root := issue(t, nil, ecKey(elliptic.P256()), ca("root"))
	inter := issue(t, root, ecKey(elliptic.P256()), ca("inter"))
	twin := issue(t, root, ecKey(elliptic.P256()), ca("inter")) // the same name with another key
	leaf := issue(t, inter, ecKey(elliptic.P256()), leafFor("a.test"))
	other := issue(t, inter, ecKey(elliptic.P256()), leafFor("b.test"))
	stranger := issue(t, nil, ecKey(elliptic.P256()), ca("root"))
	forged := *leaf.Certificate
	forged.Raw = slices.Clone(forged.Raw)
	forged.Raw[len(forged.Raw)-1] ^= 1 // in its signature
	key, otherKey := keyPEM(leaf.key), keyPEM(other.key)
	damaged := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: forged.Raw})
	var r Reader
	for range 2 {
		for name, c := range map[string]struct {
			cert, key []byte
			want      error
		}{
			"new leaf, old chain":       {certPEM(leaf, twin), key, ErrChain},
			"another root":              {certPEM(leaf, inter, stranger), key, ErrChain},
			"signature that is damaged": {cat(damaged, certPEM(inter)), key, ErrChain},
			"key of another":            {certPEM(leaf, inter), otherKey, ErrKeyMismatch},
			"the wrong order":           {certPEM(inter, leaf), key, ErrChain},
			"cut off":                   {certPEM(leaf, inter)[:700], key, ErrMalformed},
			"good":                      {certPEM(leaf, inter, root), key, nil},
			"another good one":          {certPEM(other, inter, root), otherKey, nil},
		} {
			pair, warnings, err := r.Parse(Source{Cert: c.cert, Key: c.key})
			fresh, sameWarnings, sameErr := Parse(Source{Cert: c.cert, Key: c.key})
			if !errors.Is(err, c.want) || fmt.Sprint(err, warnings) != fmt.Sprint(sameErr, sameWarnings) || !reflect.DeepEqual(pair, fresh) {
				t.Errorf("H03/%s: %v, %v; one that has seen nothing: %v, %v", name, err, warnings, sameErr, sameWarnings)
			}
		}
	}
	one, _, _ := r.Parse(Source{Cert: certPEM(leaf, inter), Key: key})
	two, _, _ := r.Parse(Source{Cert: certPEM(other, inter), Key: otherKey})
	if &one.Certificate[1][0] != &two.Certificate[1][0] {
		t.Error("an issuer is kept once for each of its certificates")
	}
	if n := len(r.issuers); n != 5 { // leaf too, from the wrong order
		t.Errorf("%d certificates are kept, expected inter, twin, root, stranger and leaf", n)
	}
}

// A Reader leaves to Later what only a signature can tell, and nothing else.
func TestReaderLater(t *testing.T) {
	root := issue(t, nil, ecKey(elliptic.P256()), ca("root"))
	inter := issue(t, root, ecKey(elliptic.P256()), ca("inter"))
	twin := issue(t, root, ecKey(elliptic.P256()), ca("inter"))
	leaf := issue(t, inter, ecKey(elliptic.P256()), leafFor("a.test"))
	other := issue(t, inter, ecKey(elliptic.P256()), leafFor("b.test"))
	notCA := issue(t, root, ecKey(elliptic.P256()), func(c *x509.Certificate) { leafFor("no CA")(c); c.SubjectKeyId = []byte("key") })
	underLeaf := issue(t, notCA, ecKey(elliptic.P256()), leafFor("c.test"))
	lists := issue(t, root, ecKey(elliptic.P256()), func(c *x509.Certificate) { ca("lists")(c); c.KeyUsage = x509.KeyUsageCRLSign })
	underLists := issue(t, lists, ecKey(elliptic.P256()), leafFor("d.test"))
	same := issue(t, root, edKey(), func(c *x509.Certificate) { ca("inter")(c); c.SubjectKeyId = inter.SubjectKeyId })
	bytes := slices.Clone(leaf.Raw)
	bytes[len(bytes)-1] ^= 1
	damaged := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: bytes})
	var taken []Signature
	takes := true
	r := Reader{Later: func(s Signature) bool {
		if takes {
			taken = append(taken, s)
		}
		return takes
	}}
	for name, c := range map[string]struct{ cert, key []byte }{
		"another CA of the same name": {certPEM(leaf, twin), keyPEM(leaf.key)},
		"no issuer":                   {certPEM(leaf, root), keyPEM(leaf.key)},
		"an issuer that is no CA":     {certPEM(underLeaf, notCA), keyPEM(underLeaf.key)},
		"the wrong order":             {certPEM(inter, leaf), keyPEM(leaf.key)},
		"an issuer of lists only":     {certPEM(underLists, lists), keyPEM(underLists.key)},
		"a key of another kind":       {certPEM(leaf, same), keyPEM(leaf.key)},
	} {
		if _, _, err := r.Parse(Source{Cert: c.cert, Key: c.key}); !errors.Is(err, ErrChain) || len(taken) > 0 {
			t.Errorf("%s: %v, and %d signatures were left", name, err, len(taken))
		}
	}
	if _, _, err := r.Parse(Source{Cert: cat(damaged, certPEM(inter, root)), Key: keyPEM(leaf.key)}); err != nil || len(taken) != 1 {
		t.Fatalf("damaged: %v, and %d signatures were left", err, len(taken))
	}
	if err := taken[0].Check(); !errors.Is(err, ErrChain) || !strings.Contains(err.Error(), "did not sign certificate 1") || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("the signature that was left: %v", err)
	}
	if _, _, err := r.Parse(Source{Cert: certPEM(other, inter, root), Key: keyPEM(other.key)}); err != nil || len(taken) != 2 || taken[1].Check() != nil {
		t.Errorf("%v, and %d signatures were left, expected a good one", err, len(taken)-1)
	}
	takes = false
	if _, _, err := r.Parse(Source{Cert: cat(damaged, certPEM(inter)), Key: keyPEM(leaf.key)}); !errors.Is(err, ErrChain) {
		t.Errorf("damaged, and not taken: %v", err)
	}
}

// BenchmarkParse is one pair as a public CA issues them: a leaf and an intermediate.
func BenchmarkParse(b *testing.B) {
	inter := issue(b, issue(b, nil, ecKey(elliptic.P256()), ca("root")), ecKey(elliptic.P256()), ca("inter"))
	leaf := issue(b, inter, ecKey(elliptic.P256()), leafFor("a.test"))
	src := Source{Cert: certPEM(leaf, inter), Key: keyPEM(leaf.key)}
	var r Reader
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := r.Parse(src); err != nil {
			b.Fatal(err)
		}
	}
}
