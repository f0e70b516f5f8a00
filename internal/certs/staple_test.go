package certs

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509/pkix"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"countersign/internal/testpki"
)

var responder = testpki.OCSPServer("http://ocsp.test/")

// Ten thousand certificates that name no responder cost nothing.
func TestNothingToStaple(t *testing.T) {
	root := testpki.New(t)
	plain, named := root.Server("one.test").TLS(), root.Server("one.test", responder).TLS()
	s, err := NewSet([]*tls.Certificate{&plain})
	if err != nil {
		t.Fatal(err)
	}
	staples := new(Staples)
	if s.WithStaples(staples) != s || len(staples.slots) != 0 {
		t.Error(len(staples.slots), "slots")
	}
	if _, staples := stapledSet(t, plain, named); len(staples.slots) != 1 {
		t.Error(len(staples.slots), "slots for one of two")
	}
}

func stapledSet(t testing.TB, pairs ...tls.Certificate) (*Set, *Staples) {
	t.Helper()
	var list []*tls.Certificate
	for i := range pairs {
		list = append(list, &pairs[i])
	}
	s, err := NewSet(list)
	if err != nil {
		t.Fatal(err)
	}
	staples := new(Staples)
	return s.WithStaples(staples), staples
}

func TestStaples(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := testpki.New(t)
		one, two := root.Server("one.test", responder), root.Server("two.test", responder, testpki.RSA(2048))
		sum := sha256.Sum256(one.DER())
		for name, pairs := range map[string][]tls.Certificate{"single": {one.TLS()}, "of two": {two.TLS(), one.TLS()}} {
			t.Log(name)
			s, staples := stapledSet(t, pairs...)
			hello := &tls.ClientHelloInfo{SupportedVersions: []uint16{tls.VersionTLS13}, SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}}
			expect := func(want string) {
				t.Helper()
				got := s.For(hello)
				if string(got.OCSPStaple) != want || string(staples.For(sum)) != want || got.Leaf != one.Cert {
					t.Errorf("%q, %q; want %q", got.OCSPStaple, staples.For(sum), want)
				}
				if again := s.For(hello); again != got {
					t.Error("another copy")
				}
			}
			expect("")
			until := time.Now().Add(time.Hour)
			staples.Set(sum, []byte("first"), until)
			expect("first")
			staples.Set(sha256.Sum256(two.DER()), []byte("other"), until)
			expect("first")
			staples.Set(sum, []byte("second"), until)
			expect("second")
			time.Sleep(time.Hour - time.Second)
			expect("second")
			time.Sleep(time.Second) // clients would refuse it
			expect("")
			staples.Set(sum, []byte("third"), time.Now().Add(time.Hour))
			expect("third")
			staples.Keep(map[[sha256.Size]byte]bool{sum: true})
			expect("third")
			staples.Set(sum, nil, until)
			expect("")
			staples.Set(sum, []byte("fourth"), time.Now().Add(time.Hour))
			staples.Keep(nil)
			expect("")
			if len(staples.slots) != 0 {
				t.Error(len(staples.slots), "slots")
			}
		}
		plain, err := NewSet([]*tls.Certificate{{Leaf: one.Cert, Certificate: one.Chain, PrivateKey: one.Key}})
		if err != nil || plain.For(&tls.ClientHelloInfo{}).OCSPStaple != nil {
			t.Error(err)
		}
	})
}

// What a client gets, in both versions of TLS; and only if it asks, which crypto/tls always does.
func TestStapleInHandshake(t *testing.T) {
	root := testpki.New(t)
	server := root.Server("one.test", responder)
	s, staples := stapledSet(t, server.TLS())
	der := root.OCSP(server)
	for _, want := range []string{"", string(der)} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			a, b := net.Pipe()
			go func() {
				c := tls.Server(b, &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return s.For(h), nil }})
				c.Handshake()
			}()
			c := tls.Client(a, &tls.Config{RootCAs: root.Pool(), ServerName: "one.test", MaxVersion: version})
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			if got := string(c.ConnectionState().OCSPResponse); got != want || c.ConnectionState().Version != version {
				t.Errorf("version %x: %d bytes", version, len(got))
			}
			a.Close()
			b.Close()
		}
		staples.Set(sha256.Sum256(server.DER()), der, time.Now().Add(time.Hour))
	}
}

func TestStaplesConcurrently(t *testing.T) {
	root := testpki.New(t)
	s, staples := stapledSet(t, root.Server("one.test", responder).TLS())
	sum := sha256.Sum256(s.offers[0].pair.Leaf.Raw)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range 200 {
				if i == 0 {
					staples.Set(sum, []byte{1}, time.Now().Add(time.Hour))
				}
				s.For(&tls.ClientHelloInfo{})
			}
		})
	}
	all.Wait()
}

func TestMustStaple(t *testing.T) {
	root := testpki.New(t)
	for name, c := range map[string]struct {
		value []byte
		want  bool
	}{"status_request": {[]byte{0x30, 3, 2, 1, 5}, true}, "both": {[]byte{0x30, 6, 2, 1, 17, 2, 1, 5}, true}, "another": {[]byte{0x30, 3, 2, 1, 17}, false}, "malformed": {[]byte{5}, false}} {
		pair := root.Server("x.test", testpki.ExtraExt(pkix.Extension{Id: []int{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: c.value})).TLS()
		if MustStaple(&pair) != c.want {
			t.Error(name)
		}
	}
	if pair := root.Server("x.test").TLS(); MustStaple(&pair) {
		t.Error("without the extension")
	}
}

func BenchmarkStapledFor(b *testing.B) {
	root := testpki.New(b)
	s, staples := stapledSet(b, root.Server("one.test", responder).TLS())
	staples.Set(sha256.Sum256(s.offers[0].pair.Leaf.Raw), []byte{1}, time.Now().Add(time.Hour))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			s.For(&tls.ClientHelloInfo{})
		}
	})
}
