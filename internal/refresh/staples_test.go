package refresh

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"countersign/internal/certs"
	"countersign/internal/outbound"
	"countersign/internal/testpki"
)

var mustStaple = testpki.ExtraExt(pkix.Extension{Id: []int{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: []byte{0x30, 3, 2, 1, 5}})

func staples(t *testing.T, o *office) (*Staples, *certs.Staples) {
	into := new(certs.Staples)
	s := NewStaples(StaplesConfig{Into: into, do: o.do})
	t.Cleanup(s.Close)
	return s, into
}

// full is a certificate with its issuer in the file.
func full(c *testpki.Cert, issuer *testpki.Cert) *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{c.DER(), issuer.DER()}, Leaf: c.Cert, PrivateKey: c.Key}
}

func stapleCodes(s *Staples) string {
	var codes []string
	for _, c := range s.Conditions() {
		codes = append(codes, c.Code)
		if c.Since.IsZero() || c.Text == "" {
			codes = append(codes, "incomplete")
		}
	}
	return strings.Join(codes, " ")
}

func TestStaples(t *testing.T) {
	bubble := func(name string, f func(t *testing.T, root *testpki.Cert, o *office)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, testpki.New(t), new(office)) })
		})
	}
	aia := testpki.OCSPServer("ldap://x/", "http://ocsp.test/")
	bubble("fetched, renewed and never sent after its end", func(t *testing.T, root *testpki.Cert, o *office) {
		s, into := staples(t, o)
		c := root.Server("a.test", aia, testpki.Lifetime(1000*time.Hour))
		sum := sha256.Sum256(c.DER())
		var mu sync.Mutex
		var last []byte
		o.say(func(q *outbound.Request) ([]byte, error) {
			if q.URL != "http://ocsp.test/" || len(q.Body) > 120 {
				return nil, errors.New("another responder, or a nonce")
			}
			mu.Lock()
			defer mu.Unlock()
			last = root.OCSP(c, testpki.OCSPNext(time.Now().Add(24*time.Hour)))
			return last, nil
		})
		current := func() bool {
			mu.Lock()
			defer mu.Unlock()
			der := into.For(sum)
			return der != nil && string(der) == string(last)
		}
		pair := full(c, root)
		s.Track([]*tls.Certificate{pair})
		synctest.Wait()
		if !current() || stapleCodes(s) != "" {
			t.Fatal("no staple", s.Conditions())
		}
		s.Track([]*tls.Certificate{pair}) // a reload asks for nothing
		time.Sleep(9 * time.Hour)
		if o.asked.Load() != 1 {
			t.Error("asked", o.asked.Load(), "times")
		}
		time.Sleep(4 * time.Hour)
		if o.asked.Load() != 2 || !current() {
			t.Error("asked", o.asked.Load(), "times")
		}
		for name, bad := range map[string][]byte{ // what is there stays, until its end
			"other":    root.OCSP(root.Server("b.test")),
			"tampered": append(root.OCSP(c), 0),
			"stranger": root.OCSP(c, testpki.OCSPKeyOf(testpki.New(t))),
			"unknown":  root.OCSP(c, testpki.OCSPUnknown()),
			"declined": testpki.OCSPError(6),
			"old":      root.OCSP(c, testpki.OCSPThis(time.Now().Add(-10*time.Hour)), testpki.OCSPNext(time.Now().Add(23*time.Hour))),
		} {
			o.say(answering(bad))
			s.mu.Lock()
			s.own[sum].next = time.Now()
			s.mu.Unlock()
			s.nudge()
			time.Sleep(time.Hour)
			if !current() || stapleCodes(s) != "" {
				t.Error(name, "staple lost", s.Conditions())
			}
		}
		time.Sleep(20 * time.Hour)
		if into.For(sum) != nil || stapleCodes(s) != StapleMissing {
			t.Error("a staple past its end", s.Conditions())
		}
		o.say(func(*outbound.Request) ([]byte, error) { return root.OCSP(c), nil })
		time.Sleep(stapleLast)
		if into.For(sum) == nil || stapleCodes(s) != "" {
			t.Error("no staple again", s.Conditions())
		}
		s.Track(nil)
		synctest.Wait()
		before := o.asked.Load()
		time.Sleep(100 * time.Hour)
		if into.For(sum) != nil || o.asked.Load() != before || len(s.own) != 0 {
			t.Error("not forgotten")
		}
	})
	bubble("revoked", func(t *testing.T, root *testpki.Cert, o *office) {
		s, into := staples(t, o)
		c := root.Server("a.test", aia)
		o.say(answering(root.OCSP(c)))
		s.Track([]*tls.Certificate{full(c, root)})
		synctest.Wait()
		if into.For(sha256.Sum256(c.DER())) == nil {
			t.Error("no staple")
		}
		o.say(func(*outbound.Request) ([]byte, error) { return root.OCSP(c, testpki.OCSPRevoked(1)), nil })
		time.Sleep(30 * time.Minute)
		if into.For(sha256.Sum256(c.DER())) != nil || stapleCodes(s) != CertificateRevoked {
			t.Error(s.Conditions())
		}
	})
	bubble("nobody to ask", func(t *testing.T, root *testpki.Cert, o *office) {
		s, _ := staples(t, o)
		stranger := testpki.New(t)
		alone := root.Server("a.test", aia)
		pair := alone.TLS()
		s.Track([]*tls.Certificate{
			&pair, full(root.Server("b.test"), root), full(root.Server("c.test", testpki.OCSPServer("ldap://x/")), root), full(root.Server("d.test", aia), stranger),
		})
		synctest.Wait()
		if o.asked.Load() != 0 || stapleCodes(s) != "" {
			t.Error(o.asked.Load(), s.Conditions())
		}
		must := root.Server("m.test", mustStaple)
		s.Track([]*tls.Certificate{full(must, root)})
		if c := s.Conditions(); len(c) != 1 || c[0].Code != StapleMissing || !strings.Contains(c[0].Text, "must-staple") || !strings.Contains(c[0].Text, "m.test") {
			t.Error(c)
		}
	})
	bubble("a responder that hangs", func(t *testing.T, root *testpki.Cert, o *office) {
		s, _ := staples(t, o)
		var pairs []*tls.Certificate
		for i := range 40 {
			pairs = append(pairs, full(root.Server(fmt.Sprintf("h%d.test", i), aia, mustStaple), root))
		}
		start := time.Now()
		s.Track(pairs)
		if time.Since(start) != 0 {
			t.Error("blocked")
		}
		time.Sleep(40 / maxStapling * defaultStapleTimeout)
		synctest.Wait()
		if o.most.Load() != maxStapling || o.asked.Load() < 40 {
			t.Error(o.most.Load(), "at once;", o.asked.Load(), "in all")
		}
		if n := len(s.Conditions()); n != 40 {
			t.Error(n, "conditions")
		}
		start = time.Now()
		s.Close()
		if time.Since(start) != 0 {
			t.Error("the end took", time.Since(start))
		}
	})
	bubble("back-off", func(t *testing.T, root *testpki.Cert, o *office) {
		s, _ := staples(t, o)
		o.say(func(*outbound.Request) ([]byte, error) { return nil, errors.New("refused") })
		s.Track([]*tls.Certificate{full(root.Server("a.test", aia, testpki.Lifetime(1000*time.Hour)), root)})
		time.Sleep(24 * time.Hour)
		if n := o.asked.Load(); n < 24 || n > 40 {
			t.Error("asked", n, "times in a day")
		}
	})
}

func TestStaplesOverHTTP(t *testing.T) {
	root := testpki.New(t)
	var c *testpki.Cert
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Content-Type") != "application/ocsp-request" || r.Method != http.MethodPost {
			t.Error(r.Method, r.Header)
		}
		w.Write(root.OCSP(c, testpki.OCSPBy(root.Responder("r"))))
	}))
	defer server.Close()
	c = root.Server("a.test", testpki.OCSPServer(server.URL))
	into := new(certs.Staples)
	s := NewStaples(StaplesConfig{Into: into, Client: outbound.New(outbound.Options{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})})
	defer s.Close()
	s.Track([]*tls.Certificate{full(c, root)})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for into.For(sha256.Sum256(c.DER())) == nil {
		select {
		case <-ctx.Done():
			t.Fatal(s.Conditions())
		case <-time.After(5 * time.Millisecond):
		}
	}
}
