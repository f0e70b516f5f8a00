package origin

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/netip"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"

	"countersign/internal/identity"
	"countersign/internal/testpki"
)

const everything = ALPN | Authority | Checksum | UniqueID | TLS | CommonName | ClientCert | ServerCert

// announced appends a header for f behind other bytes, and reads it as the library does and as this package does.
func announced(t *testing.T, a Announcement, f *Facts) (h *proxyproto.Header, tls tlvparse.PP2SSL, dropped bool) {
	t.Helper()
	out, dropped := a.Append([]byte("before"), f)
	whole, ok := bytes.CutPrefix(out, []byte("before"))
	if !ok || len(whole) > fixed+maxBlock {
		t.Fatalf("%d bytes: %q", len(whole), out[:min(len(out), 100)])
	}
	r := bytes.NewReader(append(whole[:len(whole):len(whole)], hello...))
	o := Origin{Peer: peer, Client: peer}
	if err := ReadProxy(r, &o); err != nil || r.Len() != len(hello) {
		t.Fatalf("%q is read with error %v and %d bytes left", whole, err, r.Len())
	}
	if want := plain(f.Client); f.Client.IsValid() && f.Local.IsValid() && (o.Client != want || o.Local != plain(f.Local)) {
		t.Errorf("%s to %s is read, expected %s to %s", o.Client, o.Local, f.Client, f.Local)
	}
	h, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(whole), 8<<10))
	if err != nil {
		t.Fatal(err)
	}
	list, err := h.TLVs()
	if err != nil {
		t.Fatal(err)
	}
	tls, _ = tlvparse.FindSSL(list)
	return h, tls, dropped
}

func value(t *testing.T, h *proxyproto.Header, kind proxyproto.PP2Type) string {
	list, err := h.TLVs()
	if err != nil {
		t.Fatal(err)
	}
	found := "none"
	for _, v := range list {
		if v.Type == kind {
			if found != "none" {
				t.Errorf("TLV %#x is there twice", kind)
			}
			found = string(v.Value)
		}
	}
	return found
}

// verified is a client as verification makes it.
func verified(t *testing.T, ca, c *testpki.Cert) *identity.Identity {
	t.Helper()
	id, err := identity.FromChain([]*x509.Certificate{c.Cert, ca.Cert})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func state(c *testpki.Cert) *tls.ConnectionState {
	s := &tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256, NegotiatedProtocol: "http/1.1", ServerName: "a.test"}
	if c != nil {
		s.PeerCertificates = []*x509.Certificate{c.Cert}
	}
	return s
}

var (
	client = netip.MustParseAddrPort("192.0.2.1:12345")
	here   = netip.MustParseAddrPort("198.51.100.2:443")
)

// TestAnnounceUnverified: nothing says "verified" or names a client but a verified identity, whatever was presented.
func TestAnnounceUnverified(t *testing.T) {
	ca := testpki.New(t)
	c := ca.Client("alice")
	resumed := state(c)
	resumed.DidResume = true
	for _, row := range []struct {
		name  string
		facts Facts
		flags uint8
	}{
		{"no certificate", Facts{TLS: state(nil)}, 1},
		{"presented and not verified", Facts{TLS: state(c)}, 1 | 2 | 4},
		{"presented before and not verified", Facts{TLS: resumed}, 1 | 4},
		{"an identity that did not come over this connection", Facts{TLS: state(nil), Identity: verified(t, ca, c)}, 1},
	} {
		t.Run("D01/"+row.name, func(t *testing.T) {
			row.facts.Client, row.facts.Local = client, here
			_, s, _ := announced(t, Announcement{Version: 2, Parts: everything}, &row.facts)
			if s.Verify == 0 || s.Verified() || s.Client != row.flags {
				t.Errorf("verify %d, flags %d; expected flags %d", s.Verify, s.Client, row.flags)
			}
			if cn, ok := s.ClientCN(); ok {
				t.Errorf("the common name %q is told", cn)
			}
			if _, ok := s.ClientCert(); ok {
				t.Error("the certificate is told")
			}
		})
	}
	t.Run("no TLS", func(t *testing.T) {
		h, s, _ := announced(t, Announcement{Version: 2, Parts: everything}, &Facts{Client: client, Local: here, Identity: verified(t, ca, c)})
		if s.Client != 0 || value(t, h, proxyproto.PP2_TYPE_SSL) != "none" || value(t, h, proxyproto.PP2_TYPE_ALPN) != "none" {
			t.Errorf("%+v", s)
		}
	})
	t.Run("not asked for", func(t *testing.T) {
		h, _, _ := announced(t, Announcement{Version: 2}, &Facts{Client: client, Local: here, Ref: "1", ServerName: "a.test", TLS: state(c), Identity: verified(t, ca, c)})
		if list, _ := h.TLVs(); len(list) > 0 {
			t.Errorf("%+v", list)
		}
		h, s, _ := announced(t, Announcement{Version: 2, Parts: TLS}, &Facts{Client: client, Local: here, TLS: state(c), Identity: verified(t, ca, c)})
		if list, _ := h.TLVs(); len(list) != 1 || len(s.TLV) != 2 {
			t.Errorf("%+v %+v", list, s)
		}
	})
}

// TestAnnounceBounds: what is too long or ambiguous is left out whole, and never cut.
func TestAnnounceBounds(t *testing.T) {
	ca := testpki.New(t)
	cn := func(names ...string) pkix.Name {
		var n pkix.Name
		for _, name := range names {
			n.ExtraNames = append(n.ExtraNames, pkix.AttributeTypeAndValue{Type: oidCommonName, Value: name})
		}
		return n
	}
	a := Announcement{Version: 2, Parts: everything}
	for _, row := range []struct {
		name    string
		cert    *testpki.Cert
		dropped bool
		certOK  bool
		cn      string
	}{
		{"D11/certificate of 5 KiB", ca.Client("alice", testpki.DNS(many(250)...)), true, false, "alice"},
		{"D11/certificate that just fits", ca.Client("alice", testpki.DNS(many(170)...)), false, true, "alice"},
		{"common name of 257 bytes", ca.Client("x", testpki.Subject(cn(strings.Repeat("a", 257)))), true, true, ""},
		{"common name of 256 bytes", ca.Client("x", testpki.Subject(cn(strings.Repeat("a", 256)))), false, true, strings.Repeat("a", 256)},
		{"D10/two common names", ca.Client("x", testpki.Subject(cn("alice", "bob"))), false, true, ""},
		{"D07/control characters", ca.Client("x", testpki.Subject(cn("alice\r\nbob"))), false, true, ""},
		{"no common name", ca.Client("x", testpki.Subject(pkix.Name{Organization: []string{"o"}})), false, true, ""},
		{"beyond ASCII", ca.Client("x", testpki.Subject(cn("Zoë"))), false, true, "Zoë"},
	} {
		t.Run(row.name, func(t *testing.T) {
			f := &Facts{Client: client, Local: here, Ref: "0011223344556677", ServerName: "a.test", TLS: state(row.cert), Identity: verified(t, ca, row.cert), Server: ca.Server("a.test").Cert}
			h, s, dropped := announced(t, a, f)
			der, ok := s.ClientCert()
			if name, _ := s.ClientCN(); name != row.cn || dropped != row.dropped || ok != row.certOK || ok && !bytes.Equal(der, row.cert.Cert.Raw) {
				t.Errorf("common name %q, certificate %v of %d bytes, dropped %v", name, ok, len(row.cert.Cert.Raw), dropped)
			}
			if !s.Verified() || value(t, h, proxyproto.PP2_TYPE_CRC32C) == "none" {
				t.Error("what is left is not whole")
			}
		})
	}
	t.Run("texts", func(t *testing.T) {
		f := &Facts{Client: client, Local: here, Ref: strings.Repeat("r", 129), ServerName: strings.Repeat("s", 256), TLS: state(nil)}
		h, _, dropped := announced(t, Announcement{Version: 2, Parts: everything}, f)
		if !dropped || value(t, h, proxyproto.PP2_TYPE_AUTHORITY) != "none" || value(t, h, proxyproto.PP2_TYPE_UNIQUE_ID) != "none" {
			t.Errorf("%+v", h)
		}
	})
}

func many(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = strings.Repeat("h", 3+i%20) + ".test"
	}
	return out
}

func TestAnnounce(t *testing.T) {
	ca := testpki.New(t)
	alice := ca.Client("alice")
	server := ca.Server("a.test")
	h, s, dropped := announced(t, Announcement{Version: 2, Parts: everything},
		&Facts{Client: client, Local: here, Ref: "0011223344556677", ServerName: "a.test", TLS: state(alice), Identity: verified(t, ca, alice), Server: server.Cert})
	if dropped || h.Version != 2 || !h.Command.IsProxy() || h.TransportProtocol != proxyproto.TCPv4 {
		t.Errorf("%+v", h)
	}
	for kind, want := range map[proxyproto.PP2Type]string{proxyproto.PP2_TYPE_ALPN: "http/1.1", proxyproto.PP2_TYPE_AUTHORITY: "a.test", proxyproto.PP2_TYPE_UNIQUE_ID: "0011223344556677"} {
		if got := value(t, h, kind); got != want {
			t.Errorf("TLV %#x is %q, expected %q", kind, got, want)
		}
	}
	got := map[proxyproto.PP2Type]string{}
	for _, v := range s.TLV {
		got[v.Type] = string(v.Value)
	}
	for kind, want := range map[proxyproto.PP2Type]string{
		proxyproto.PP2_SUBTYPE_SSL_VERSION: "TLSv1.3", proxyproto.PP2_SUBTYPE_SSL_CIPHER: "TLS_AES_128_GCM_SHA256", proxyproto.PP2_SUBTYPE_SSL_CN: "alice",
		proxyproto.PP2_SUBTYPE_SSL_SIG_ALG: "ecdsa-with-SHA256", proxyproto.PP2_SUBTYPE_SSL_KEY_ALG: "EC256", proxyproto.PP2_SUBTYPE_SSL_CLIENT_CERT: string(alice.Cert.Raw),
	} {
		if got[kind] != want {
			t.Errorf("TLV %#x is %q, expected %q", kind, got[kind], want)
		}
	}
	if !s.Verified() || s.Client != clientTLS|clientCertHere|clientCertSession {
		t.Errorf("verify %d, flags %d", s.Verify, s.Client)
	}

	for _, row := range []struct {
		name          string
		client, local string
		line          string
		family        proxyproto.AddressFamilyAndProtocol
	}{
		{"IPv4", "192.0.2.1:12345", "198.51.100.2:443", "PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\r\n", proxyproto.TCPv4},
		{"IPv6", "[2001:db8::1]:12345", "[2001:db8::2]:443", "PROXY TCP6 2001:db8::1 2001:db8::2 12345 443\r\n", proxyproto.TCPv6},
		{"D15/IPv4 in IPv6", "[::ffff:192.0.2.1]:1", "[::ffff:198.51.100.2]:2", "PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r\n", proxyproto.TCPv4},
		{"both families", "192.0.2.1:1", "[2001:db8::2]:2", "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1 2\r\n", proxyproto.TCPv6},
		{"with a zone", "[fe80::1%eth0]:1", "[fe80::2%eth0]:2", "PROXY TCP6 fe80::1 fe80::2 1 2\r\n", proxyproto.TCPv6},
		{"no address", "", "198.51.100.2:443", "PROXY UNKNOWN\r\n", proxyproto.UNSPEC},
		{"no address of ours", "192.0.2.1:1", "", "PROXY UNKNOWN\r\n", proxyproto.UNSPEC},
	} {
		t.Run(row.name, func(t *testing.T) {
			f := &Facts{ServerName: "a.test", TLS: state(alice), Identity: verified(t, ca, alice)}
			if row.client != "" {
				f.Client = netip.MustParseAddrPort(row.client)
			}
			if row.local != "" {
				f.Local = netip.MustParseAddrPort(row.local)
			}
			if line, _ := (Announcement{Version: 1, Parts: everything}).Append(nil, f); string(line) != row.line {
				t.Errorf("%q, expected %q", line, row.line)
			}
			h, _, _ := announced(t, Announcement{Version: 2, Parts: Checksum}, f)
			if h.TransportProtocol != row.family {
				t.Errorf("family %#x, expected %#x", h.TransportProtocol, row.family)
			}
		})
	}
	t.Run("our own", func(t *testing.T) {
		if got := string((Announcement{Version: 1}).AppendOwn(nil)); got != "PROXY UNKNOWN\r\n" {
			t.Errorf("%q", got)
		}
		if got := string((Announcement{Version: 2, Parts: everything}).AppendOwn(nil)); got != v2(0x20, 0, "") {
			t.Errorf("%q", got)
		}
	})
}

// TestNames: the names of algorithms are those that HAProxy, and so OpenSSL, gives them.
func TestNames(t *testing.T) {
	for id, want := range map[uint16]string{
		tls.TLS_CHACHA20_POLY1305_SHA256:                "TLS_CHACHA20_POLY1305_SHA256",
		tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256:       "ECDHE-RSA-AES128-GCM-SHA256",
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384:     "ECDHE-ECDSA-AES256-GCM-SHA384",
		tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256: "ECDHE-RSA-CHACHA20-POLY1305",
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA:        "ECDHE-ECDSA-AES128-SHA",
		tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA:          "ECDHE-RSA-AES256-SHA",
		tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256:       "ECDHE-RSA-AES128-SHA256",
		tls.TLS_RSA_WITH_AES_128_GCM_SHA256:             "AES128-GCM-SHA256",
	} {
		if got := cipherName(id); got != want {
			t.Errorf("%s is %q, expected %q", tls.CipherSuiteName(id), got, want)
		}
	}
	ca := testpki.New(t)
	for _, row := range []struct {
		cert      *testpki.Cert
		sign, key string
	}{
		{ca.Server("a.test", testpki.RSA(2048)), "ecdsa-with-SHA256", "RSA2048"},
		{ca.Server("a.test", testpki.P384()), "ecdsa-with-SHA256", "EC384"},
		{ca.Server("a.test", testpki.Ed25519()), "ecdsa-with-SHA256", "ED25519"},
		{testpki.New(t, testpki.RSA(2048)).Server("a.test"), "RSA-SHA256", "EC256"},
		{testpki.New(t, testpki.Ed25519()).Server("a.test"), "ED25519", "EC256"},
	} {
		if sign, key := signatureName(row.cert.Cert.SignatureAlgorithm), keyName(row.cert.Cert.PublicKey); sign != row.sign || key != row.key {
			t.Errorf("%q and %q, expected %q and %q", sign, key, row.sign, row.key)
		}
	}
	if _, ok := ParsePart("ssl"); ok {
		t.Error("a part that is none")
	}
	for i, name := range partNames {
		if p, ok := ParsePart(name); !ok || p != 1<<i || p&everything == 0 {
			t.Errorf("part %s is %d", name, p)
		}
	}
}
