package frontend

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"net"
	"strings"
	"testing"
	"time"

	"countersign/internal/reason"
	"countersign/internal/testpki"
)

// rewriting changes what a client writes.
type rewriting struct {
	net.Conn
	change func([]byte)
}

func (c rewriting) Write(p []byte) (int, error) {
	p = bytes.Clone(p)
	c.change(p)
	return c.Conn.Write(p)
}

// foreignSchemes makes every scheme of the ClientHello's signature_algorithms one that nobody knows.
func foreignSchemes(p []byte) {
	if len(p) < 6 || p[0] != 22 || p[5] != 1 {
		return
	}
	// Type 13, then the extension's length and the list's, which is two less.
	for i := 40; i+6 < len(p); i++ {
		n := int(binary.BigEndian.Uint16(p[i+2:]))
		if p[i] == 0 && p[i+1] == 13 && n > 8 && n < 80 && int(binary.BigEndian.Uint16(p[i+4:])) == n-2 {
			for j := i + 6; j < i+4+n; j++ {
				p[j] = 0x7a
			}
			return
		}
	}
}

// otherScheme makes the scheme of a TLS 1.2 CertificateVerify ECDSA with SHA-1.
func otherScheme(p []byte) {
	for len(p) >= 11 && p[0] == 22 {
		size := 5 + int(binary.BigEndian.Uint16(p[3:]))
		if p[5] == 15 {
			p[9], p[10] = 2, 3
		}
		p = p[min(size, len(p)):]
	}
}

// damaged changes the last byte of every encrypted record, as if it had another key, or none.
func damaged(p []byte) {
	for len(p) >= 5 {
		size := min(5+int(binary.BigEndian.Uint16(p[3:])), len(p))
		if p[0] == 23 {
			p[size-1] ^= 1
		}
		p = p[size:]
	}
}

// TestErrorTexts provokes every text of alerts in the crypto/tls that is built in: its errors have no types, so a new
// version that words one differently would otherwise be noticed by a wrong reason in somebody's log.
func TestErrorTexts(t *testing.T) {
	root := testpki.New(t)
	server := root.Server("a.test")
	alice := root.Client("alice")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(x.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	odd := root.Client("x25519", testpki.Edit(func(tbs *testpki.TBS) { tbs.PublicKey = asn1.RawValue{FullBytes: spki} }))

	show := func(k any, chain ...[]byte) func(*tls.Config) {
		return func(c *tls.Config) {
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return &tls.Certificate{Certificate: chain, PrivateKey: k}, nil
			}
		}
	}
	none := func(*tls.Config) {}
	only12, only13 := uint16(tls.VersionTLS12), uint16(tls.VersionTLS13)
	rows := []struct {
		text     string
		versions []uint16
		client   func(*tls.Config)
		server   func(*tls.Config)
		change   func([]byte)
	}{
		{text: "client didn't provide a certificate"},
		{text: "failed to parse client certificate", client: show(key, []byte("garbage"))},
		{text: "client certificate contains an unsupported public key", client: show(key, odd.DER())},
		{text: "client sent certificate containing RSA key larger than", client: show(key, root.Client("rsa", testpki.RSA(8200)).DER())},
		{text: "invalid signature by the client certificate", client: show(key, alice.DER())},
		{text: "client certificate used with invalid signature algorithm", versions: []uint16{only12}, client: show(alice.Key, alice.DER()), change: otherScheme},
		{text: "bad record MAC", versions: []uint16{only13}, client: show(alice.Key, alice.DER()), change: damaged},
		{text: "client offered only unsupported versions", versions: []uint16{only12}, client: func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }},
		{text: "client offered only unsupported versions", versions: []uint16{only12}, server: func(c *tls.Config) { c.MinVersion = tls.VersionTLS13 }},
		{text: "no cipher suite supported by both", versions: []uint16{only12}, client: func(c *tls.Config) { c.CipherSuites = []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA} }},
		{text: "peer doesn't support any of the certificate's signature algorithms", versions: []uint16{only13}, change: foreignSchemes},
		{text: "no key exchanges supported by both", versions: []uint16{only13},
			client: func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP256} },
			server: func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP384} }},
		{text: "client requested unsupported application protocols", client: func(c *tls.Config) { c.NextProtos = []string{"h2"} }},
	}
	provoked := map[string]bool{}
	for _, r := range rows {
		if r.versions == nil {
			r.versions = []uint16{only12, only13}
		}
		for _, v := range r.versions {
			t.Run(tls.VersionName(v)+"/"+r.text, func(t *testing.T) {
				cc := &tls.Config{ServerName: "a.test", RootCAs: root.Pool(), MinVersion: v, MaxVersion: v, NextProtos: []string{"http/1.1"}}
				sc := &tls.Config{Certificates: []tls.Certificate{server.TLS()}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, SessionTicketsDisabled: true}
				orNone(r.client, none)(cc)
				orNone(r.server, none)(sc)
				near, far := net.Pipe()
				_ = near.SetDeadline(time.Now().Add(5 * time.Second))
				_ = far.SetDeadline(time.Now().Add(5 * time.Second))
				var wire net.Conn = far
				if r.change != nil {
					wire = rewriting{far, r.change}
				}
				done := make(chan struct{})
				go func() {
					defer close(done)
					c := tls.Client(wire, cc)
					_ = c.Handshake()
					_, _ = c.Read(make([]byte, 1))
				}()
				err := tls.Server(near, sc).Handshake()
				near.Close()
				<-done
				if err == nil || !strings.Contains(err.Error(), r.text) {
					t.Fatalf("crypto/tls says %v", err)
				}
				provoked[r.text] = true
			})
		}
	}
	for _, a := range alerts {
		if !provoked[a.text] {
			t.Errorf("%q (%s) is not provoked", a.text, a.reason)
		}
		delete(provoked, a.text)
		if a.reason == reason.Unset || a.reason == reason.HandshakeFailed {
			t.Errorf("%q has no reason of its own", a.text)
		}
	}
	for text := range provoked {
		t.Errorf("%q is not in alerts", text)
	}
}

func orNone(f, none func(*tls.Config)) func(*tls.Config) {
	if f == nil {
		return none
	}
	return f
}
