package daemon_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/internal/identity"
	"countersign/internal/message"
	"countersign/internal/testalloc"
	"countersign/internal/testpki"
)

// relayed has one policy for four hosts, so that one connection may ask for all of them: a takes RFC 9440 and denies what
// has no assertion, b takes XFCC that is appended to and lets the proxy speak for itself, c lists nobody, d takes XFCC.
const relayed = `
ops: {listen: 127.0.0.1:0}
trust_stores:
  edge:
    ca_bundle: {file: proxies.pem}
    revocation: {crls: [{file: proxies.crl}]}
  partners:
    ca_bundle: {file: clients.pem}
    revocation: {crls: [{file: clients.crl}]}
listeners:
  public:
    listen: 127.0.0.1:0
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: edge}
        identity_headers: [rfc9440, alb, x_ssl_client]
        trusted_proxies:
          - match: {sha256: ["SUM"], sans: ["dns:edge1.cdn.test", "uri:spiffe://corp.test/edge"]}
            identity: rfc9440
            trust_store: partners
        routes: [{upstream: api}]
      - names: [b.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: edge}
        identity_headers: [xfcc]
        trusted_proxies:
          - {match: {sans: ["dns:edge1.cdn.test"]}, identity: xfcc, trust_store: partners, missing: proxy, append: true}
        routes: [{upstream: api}]
      - names: [c.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: edge}
        identity_headers: [rfc9440]
        routes: [{upstream: api}]
      - names: [d.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: edge}
        identity_headers: [xfcc, rfc9440]
        trusted_proxies:
          - {match: {sans: ["dns:edge1.cdn.test"]}, identity: xfcc, trust_store: partners}
        routes: [{upstream: api}]
upstreams:
  api: {targets: ["http://BACKEND"]}
`

// hop is a request as a target got it.
type hop struct {
	header http.Header
	from   string // the connection
}

// relays is a world with proxies in front.
type relays struct {
	*world
	proxies *testpki.Cert // their CA
	edge    *testpki.Cert // a listed proxy
	conf    string
	backend string

	mu   sync.Mutex
	hops []hop
}

func newRelays(t testing.TB) *relays {
	r := &relays{world: newWorld(t), proxies: testpki.New(t)}
	r.edge = r.proxies.Client("edge", testpki.DNS("edge1.cdn.test"))
	r.file("proxies.pem", r.proxies.PEM())
	r.file("proxies.crl", r.proxies.CRL())
	r.conf = relayed
	return r
}

// run starts the program, with pinned as the certificate that is listed by its hash, and a target.
func (r *relays) run(pinned *testpki.Cert) {
	target := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		r.mu.Lock()
		r.hops = append(r.hops, hop{req.Header.Clone(), req.RemoteAddr})
		r.mu.Unlock()
		fmt.Fprint(rw, "ok")
	}))
	r.t.Cleanup(target.Close)
	r.backend = strings.TrimPrefix(target.URL, "http://")
	sum := sha256.Sum256(pinned.DER())
	r.conf = strings.Replace(r.conf, "SUM", colons(sum[:]), 1)
	r.start(r.conf, r.backend)
}

// colons prints a hash as openssl does.
func colons(sum []byte) string {
	var parts []string
	for _, b := range sum {
		parts = append(parts, fmt.Sprintf("%02X", b))
	}
	return strings.Join(parts, ":")
}

// taken returns what the target got since the last time.
func (r *relays) taken() []hop {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.hops
	r.hops = nil
	return out
}

// link is a connection of a proxy to us.
type link struct {
	r    *relays
	conn *tls.Conn
	in   *bufio.Reader
	from string
}

var paths int

func (r *relays) link(t testing.TB, cert *testpki.Cert, change ...func(*tls.Config)) *link {
	t.Helper()
	raw, err := dialFrom(r.addr("public"))
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, r.client("a.test", cert, change...))
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	t.Cleanup(func() { conn.Close() })
	return &link{r, conn, bufio.NewReader(conn), conn.LocalAddr().String()}
}

// send makes one request with these header lines, and returns its status, the name it has in the log, and what the target
// got, nil if nothing.
func (l *link) send(t testing.TB, host string, body string, lines ...string) (status int, path string, got http.Header, from string) {
	t.Helper()
	paths++
	path = "/q" + strconv.Itoa(paths)
	method, rest := "GET", "\r\n"
	if body != "" {
		method, rest = "POST", "Content-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"+body
	}
	var head strings.Builder
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, path, host)
	for _, line := range lines {
		head.WriteString(line + "\r\n")
	}
	status, _, err := roundTrip(l.conn, l.in, head.String()+rest)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	switch hops := l.r.taken(); len(hops) {
	case 0:
	case 1:
		got, from = hops[0].header, hops[0].from
	default:
		t.Fatalf("%s: the target got %d requests", path, len(hops))
	}
	return status, path, got, from
}

func sf(der []byte) string { return ":" + base64.StdEncoding.EncodeToString(der) + ":" }

func clientCert(c *testpki.Cert) string { return "Client-Cert: " + sf(c.DER()) }

func escapedPEM(ders ...[]byte) (text string) {
	for _, der := range ders {
		text += strings.ReplaceAll(url.QueryEscape(string(testpki.PEM("CERTIFICATE", der))), "+", "%20")
	}
	return text
}

func xfccElement(c *testpki.Cert) string {
	return fmt.Sprintf(`By=spiffe://corp.test/edge;Hash=%x;Cert="%s";Subject="CN=whoever"`, sha256.Sum256(c.DER()), escapedPEM(c.DER()))
}

func xfccHeader(elements ...string) string {
	return "X-Forwarded-Client-Cert: " + strings.Join(elements, ",")
}

// TestAssertedRefusals: what a listed proxy asserts is believed only if it is in one form and verifies.
func TestAssertedRefusals(t *testing.T) {
	r := newRelays(t)
	alice, bob := r.ca.Client("alice"), r.ca.Client("bob")
	impostor := testpki.New(t, testpki.Like(r.ca), testpki.KeyOf(testpki.New(t)))
	middle := r.ca.Intermediate("Deep CA")
	r.file("clients.crl", r.ca.CRL(bob))
	r.run(r.edge)
	const invalid, missing = "asserted_identity_invalid", "asserted_identity_missing"
	for _, c := range []struct {
		name, host, why, found string
		lines                  []string
	}{
		{"A39/none", "a.test", missing, "none", nil},
		{"A39/none, but of another dialect", "a.test", missing, "none", []string{xfccHeader(xfccElement(alice))}},
		{"A39/none, but of another dialect, XFCC", "d.test", missing, "none", []string{clientCert(alice)}},
		{"B07/of a stranger", "a.test", invalid, "client_cert_untrusted: ", []string{clientCert(testpki.New(t).Client("alice"))}},
		{"B07/forged in our CA's name", "a.test", invalid, "client_cert_untrusted: ", []string{clientCert(impostor.Client("alice"))}},
		{"B07/of the proxies' CA", "a.test", invalid, "client_cert_untrusted: ", []string{clientCert(r.proxies.Client("alice"))}},
		{"B07/the proxy's own", "a.test", invalid, "client_cert_untrusted: ", []string{clientCert(r.edge)}},
		{"B07/the CA itself", "a.test", invalid, "client_cert_is_anchor: ", []string{clientCert(r.ca)}},
		{"B03/a CA below it", "a.test", invalid, "client_cert_is_ca: ", []string{clientCert(middle)}},
		{"B01/of a server", "a.test", invalid, "client_cert_eku: ", []string{clientCert(r.ca.Server("alice.test"))}},
		{"expired", "a.test", invalid, "client_cert_expired: ", []string{clientCert(r.ca.Client("alice", testpki.Expired()))}},
		{"not yet valid", "a.test", invalid, "client_cert_not_yet_valid: ", []string{clientCert(r.ca.Client("alice", testpki.NotYetValid()))}},
		{"revoked", "a.test", invalid, "client_cert_revoked: ", []string{clientCert(bob)}},
		{"B18/too many", "a.test", invalid, "client_cert_too_many: ", []string{clientCert(alice), "Client-Cert-Chain: " + strings.Repeat(sf(r.ca.DER())+", ", 4) + sf(r.root.DER())}},
		{"B07/its issuer is not there", "a.test", invalid, "client_cert_untrusted: ", []string{clientCert(middle.Client("alice"))}},
		{"D04/two", "a.test", invalid, "bad_header: ", []string{clientCert(alice), clientCert(alice)}},
		{"D04/two of two", "a.test", invalid, "bad_header: ", []string{clientCert(alice), clientCert(bob)}},
		{"D04/a list", "a.test", invalid, "bad_header: ", []string{clientCert(alice) + ", " + sf(bob.DER())}},
		{"D03/underscore", "a.test", invalid, "bad_header: ", []string{"Client_Cert: " + sf(alice.DER())}},
		{"D03/underscore twin", "a.test", invalid, "bad_header: ", []string{clientCert(alice), "client_cert: " + sf(bob.DER())}},
		{"D03/dot twin of the chain", "a.test", invalid, "bad_header: ", []string{clientCert(alice), "Client.Cert.Chain: " + sf(r.ca.DER())}},
		{"D08/chain without leaf", "a.test", invalid, "bad_header: ", []string{"Client-Cert-Chain: " + sf(alice.DER())}},
		{"D08/empty", "a.test", invalid, "bad_header: ", []string{"Client-Cert:"}},
		{"D08/rubbish", "a.test", invalid, "bad_header: ", []string{"Client-Cert: rubbish"}},
		{"D08/no certificate", "a.test", invalid, "bad_header: ", []string{"Client-Cert: :YQ==:"}},
		{"D08/PEM", "a.test", invalid, "bad_header: ", []string{"Client-Cert: " + escapedPEM(alice.DER())}},
		{"D11/oversized", "a.test", invalid, "bad_header: ", []string{"Client-Cert: " + sf(bytes.Repeat([]byte{0x30}, 13000))}},
		{"D11/oversized together", "a.test", invalid, "bad_header: ", []string{clientCert(alice), "Client-Cert-Chain: " + strings.Repeat(sf(r.ca.DER())+", ", 30) + sf(r.ca.DER())}},
		{"D04/XFCC, two elements", "d.test", invalid, "bad_header: ", []string{xfccHeader(xfccElement(alice), xfccElement(alice))}},
		{"D04/XFCC, two headers", "d.test", invalid, "bad_header: ", []string{xfccHeader(xfccElement(alice)), xfccHeader(xfccElement(alice))}},
		{"D04/XFCC, two headers, appended", "b.test", invalid, "bad_header: ", []string{xfccHeader(xfccElement(alice)), xfccHeader(xfccElement(alice))}},
		{"D07/XFCC, another Hash", "d.test", invalid, "bad_header: ", []string{xfccHeader(strings.Replace(xfccElement(alice), "Hash=", "Hash=00", 1))}},
		{"D07/XFCC, no certificate", "d.test", invalid, "bad_header: ", []string{xfccHeader(`Subject="CN=alice"`)}},
		{"D07/XFCC, no certificate in the last", "b.test", invalid, "bad_header: ", []string{xfccHeader(xfccElement(alice), `Subject="CN=alice"`)}},
		{"D07/XFCC, an open quote in front", "b.test", invalid, "bad_header: ", []string{xfccHeader(`Subject="a`, xfccElement(alice))}},
		{"D07/XFCC, of a stranger", "d.test", invalid, "client_cert_untrusted: ", []string{xfccHeader(xfccElement(testpki.New(t).Client("alice")))}},
		{"B07/XFCC, of a stranger, behind a good one", "b.test", invalid, "client_cert_untrusted: ", []string{xfccHeader(xfccElement(alice), xfccElement(testpki.New(t).Client("alice")))}},
		{"D03/XFCC twin", "d.test", invalid, "bad_header: ", []string{xfccHeader(xfccElement(alice)), "X_Forwarded_Client_Cert: " + xfccElement(bob)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := r.link(t, r.edge)
			for range 2 { // the second is no better than the first
				status, path, got, _ := l.send(t, c.host, "", c.lines...)
				if status != 403 || got != nil {
					t.Fatalf("%d, the target got %v", status, got)
				}
				rec := r.find(t, "path="+path, "reason="+c.why, "client="+l.from)
				if found := fmt.Sprint(rec["found"]); !strings.HasPrefix(found, c.found) || rec["expected"] == nil {
					t.Errorf("expected %v, found %q; want %q", rec["expected"], found, c.found)
				}
				if rec["client_subject"] != nil || fmt.Sprint(rec["via"]) != "map[sha256:"+hexSum(r.edge)+" subject:CN=edge]" {
					t.Errorf("the record names %v via %v", rec["client_subject"], rec["via"])
				}
			}
			// The connection is not worse off, and a good one is not believed less for it.
			if status, path, got, _ := l.send(t, "a.test", "", clientCert(alice)); status != 200 || got.Get("Client-Cert") != sf(alice.DER()) {
				t.Errorf("%s: %d %v", path, status, got)
			}
		})
	}
}

func hexSum(c *testpki.Cert) string {
	sum := sha256.Sum256(c.DER())
	return hex.EncodeToString(sum[:])
}

// TestAssertedByOthers: from whoever is not listed the headers are removed unread, good and bad.
func TestAssertedByOthers(t *testing.T) {
	r := newRelays(t)
	alice := r.ca.Client("alice")
	r.run(r.proxies.Client("pinned"))
	for _, c := range []struct {
		name string
		cert *testpki.Cert
	}{
		{"D01/not listed", r.proxies.Client("nobody")},
		{"D01/by common name only", r.proxies.Client("edge1.cdn.test")},
		{"D01/wildcard", r.proxies.Client("wild", testpki.DNS("*.cdn.test"))},
		{"D01/below the name", r.proxies.Client("below", testpki.DNS("x.edge1.cdn.test", "edge1.cdn.test.evil.test"))},
		{"D01/name of another type", r.proxies.Client("kind", testpki.URI("https://edge1.cdn.test"), testpki.Email("edge@edge1.cdn.test"))},
		{"D01/more of the URI", r.proxies.Client("more", testpki.URI("spiffe://corp.test/edge/2"))},
		{"D01/less of the URI", r.proxies.Client("less", testpki.URI("spiffe://corp.test/"))},
		{"D01/the same names under another key than the pinned", r.proxies.Client("pinned")},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := r.link(t, c.cert)
			name := c.cert.Cert.Subject.CommonName
			for _, line := range []string{clientCert(alice), "Client-Cert: rubbish", "Client_Cert: " + sf(alice.DER()), xfccHeader(xfccElement(alice)), "X-SSL-Client-S-DN: CN=alice", "X-Kept: yes"} {
				status, path, got, _ := l.send(t, "a.test", "", line)
				if status != 200 || len(got.Values("Client-Cert")) != 1 || got.Get("Client-Cert") != sf(c.cert.DER()) || got.Get("X-SSL-Client-S-DN") != "CN="+name || got.Get("X-Forwarded-Client-Cert") != "" {
					t.Errorf("%.40s: %d %v", line, status, got)
				}
				if rec := r.find(t, "path="+path, "reason=completed"); rec["client_subject"] != "CN="+name || rec["via"] != nil {
					t.Errorf("the record names %v via %v", rec["client_subject"], rec["via"])
				}
			}
		})
	}
	t.Run("A39/a stranger with a listed name", func(t *testing.T) {
		l := r.link(t, testpki.New(t).Client("edge", testpki.DNS("edge1.cdn.test")))
		if _, err := io.WriteString(l.conn, "GET / HTTP/1.1\r\nHost: a.test\r\n"+clientCert(alice)+"\r\n\r\n"); err == nil {
			_, err = l.in.ReadByte()
			if err == nil {
				t.Error("answered")
			}
		}
		r.find(t, "client="+l.from, "kind=handshake", "reason=client_cert_untrusted")
	})
}

// TestAsserted: a listed proxy, by whichever item, speaks for clients that verify.
func TestAsserted(t *testing.T) {
	r := newRelays(t)
	deep := r.ca.Intermediate("Deep CA")
	r.file("clients.crl", r.ca.CRL())
	r.file("deep.crl", deep.CRL())
	r.conf = strings.Replace(r.conf, "crls: [{file: clients.crl}]", "crls: [{file: clients.crl}, {file: deep.crl}]", 1)
	alice, dora := r.ca.Client("alice"), deep.Client("dora")
	pinned := r.proxies.Client("pinned")
	r.run(pinned)
	for name, proxy := range map[string]*testpki.Cert{
		"B26/by hash": pinned, "by DNS name": r.edge, "by DNS name in capitals": r.proxies.Client("caps", testpki.DNS("x.test", "EDGE1.cdn.TEST")),
		"by URI": r.proxies.Client("svid", testpki.URI("spiffe://corp.test/edge")),
	} {
		for version, change := range map[string]func(*tls.Config){"1.2": tls12, "1.3": func(*tls.Config) {}} {
			t.Run(name+"/TLS "+version, func(t *testing.T) {
				l := r.link(t, proxy, change)
				for _, body := range []string{"", "", "hello"} {
					status, path, got, _ := l.send(t, "a.test", body, clientCert(alice), "X-Amzn-Mtls-Clientcert-Subject: CN=mallory")
					want := map[string]string{"Client-Cert": sf(alice.DER()), "X-Amzn-Mtls-Clientcert-Subject": "CN=alice", "X-Ssl-Client-Verify": "SUCCESS", "X-Ssl-Client-S-Dn": "CN=alice", "X-Ssl-Client-Sha256": hexSum(alice)}
					for k, v := range want {
						if vs := got.Values(k); len(vs) != 1 || vs[0] != v {
							t.Errorf("%d, %s: %q", status, k, vs)
						}
					}
					rec := r.find(t, "path="+path, "reason=completed", "client="+l.from)
					if rec["client_subject"] != "CN=alice" || rec["client_sha256"] != hexSum(alice) ||
						fmt.Sprint(rec["via"]) != "map[sha256:"+hexSum(proxy)+" subject:CN="+proxy.Cert.Subject.CommonName+"]" {
						t.Errorf("the record names %v via %v", rec["client_subject"], rec["via"])
					}
				}
				hs := r.find(t, "client="+l.from, "kind=handshake")
				if m, _ := hs["client_certificate"].(map[string]any); m["sha256"] != hexSum(proxy) {
					t.Errorf("the handshake names %v", hs["client_certificate"])
				}
			})
		}
	}
	t.Run("with a chain", func(t *testing.T) {
		l := r.link(t, r.edge)
		status, path, got, _ := l.send(t, "a.test", "", clientCert(dora), "Client-Cert-Chain: "+sf(deep.DER())+", "+sf(r.ca.DER()))
		if status != 200 || got.Get("Client-Cert") != sf(dora.DER()) || got.Get("Client-Cert-Chain") != "" {
			t.Errorf("%d %v %v", status, got, r.find(t, "path="+path))
		}
	})
	t.Run("XFCC, set", func(t *testing.T) {
		l := r.link(t, r.edge)
		for _, element := range []string{
			xfccElement(alice), `Chain="` + escapedPEM(alice.DER()) + `"`,
		} {
			status, path, got, _ := l.send(t, "d.test", "", xfccHeader(element), clientCert(dora))
			if x := got.Values("X-Forwarded-Client-Cert"); status != 200 || len(x) != 1 || x[0] != "Hash="+hexSum(alice)+`;Subject="CN=alice"` || got.Get("Client-Cert") != sf(alice.DER()) {
				t.Errorf("%d %q %q", status, x, got.Get("Client-Cert"))
			}
			r.find(t, "path="+path, "reason=completed", "client_subject=CN=alice")
		}
	})
	t.Run("XFCC, appended", func(t *testing.T) {
		l := r.link(t, r.edge)
		ours := "Hash=" + hexSum(alice) + `;Subject="CN=alice"`
		earlier := `By=spiffe://far.test/edge;Hash=00;Subject="CN=\"far\",O=x";URI=https://far.test/?a%2Cb`
		for _, sent := range []string{xfccElement(alice), earlier + "," + xfccElement(alice), xfccElement(dora) + "," + earlier + "," + xfccElement(alice)} {
			status, path, got, _ := l.send(t, "b.test", "", xfccHeader(sent))
			x := got.Values("X-Forwarded-Client-Cert")
			if status != 200 || len(x) != 1 || x[0] != sent+","+ours {
				t.Fatalf("%d %q", status, x)
			}
			if _, err := identity.ParseForwardedCerts([]message.Field{{Name: []byte("X-Forwarded-Client-Cert"), Value: []byte(x[0])}}); err != nil {
				t.Errorf("%q: %v", x[0], err)
			}
			r.find(t, "path="+path, "reason=completed", "client_subject=CN=alice")
		}
		status, path, got, _ := l.send(t, "b.test", "")
		if x := got.Values("X-Forwarded-Client-Cert"); status != 200 || len(x) != 1 || !strings.HasPrefix(x[0], "Hash="+hexSum(r.edge)+";") {
			t.Errorf("the proxy's own: %d %q", status, x)
		}
		if rec := r.find(t, "path="+path, "reason=completed"); rec["client_subject"] != "CN=edge" || rec["via"] != nil {
			t.Errorf("the proxy's own: the record names %v via %v", rec["client_subject"], rec["via"])
		}
	})
	t.Run("D11/too large to tell", func(t *testing.T) {
		l := r.link(t, r.edge)
		sent := `URI=` + strings.Repeat("a", identity.MaxHeaders-len(xfccElement(alice))-20) + "," + xfccElement(alice)
		status, path, got, _ := l.send(t, "b.test", "", xfccHeader(sent))
		if status != 431 || got != nil {
			t.Errorf("%d, the target got %d fields", status, len(got))
		}
		r.find(t, "path="+path, "reason=identity_too_large")
	})
}

// TestAssertedMixed: on one connection every request has the identity that it asserts under the host that it asks for, and
// nothing of the request before, whatever that was (D14).
func TestAssertedMixed(t *testing.T) { t.Run("D14/keep-alive", assertedMixed) }

func assertedMixed(t *testing.T) {
	r := newRelays(t)
	alice, bob := r.ca.Client("alice"), r.ca.Client("bob")
	foreign := testpki.New(t).Client("alice")
	r.run(r.edge)
	// What can be sent: as RFC 9440 and as XFCC, and whose it is under either.
	type said struct {
		lines     []string
		rfc, xfcc string // client, "" for none, "-" for invalid
	}
	kinds := []said{
		{},
		{lines: []string{clientCert(alice)}, rfc: "alice"},
		{lines: []string{clientCert(bob)}, rfc: "bob"},
		{lines: []string{xfccHeader(xfccElement(alice))}, xfcc: "alice"},
		{lines: []string{xfccHeader(xfccElement(bob))}, xfcc: "bob"},
		{lines: []string{clientCert(alice), xfccHeader(xfccElement(bob))}, rfc: "alice", xfcc: "bob"},
		{lines: []string{clientCert(foreign), xfccHeader(xfccElement(bob))}, rfc: "-", xfcc: "bob"},
		{lines: []string{clientCert(alice), xfccHeader(xfccElement(foreign))}, rfc: "alice", xfcc: "-"},
		{lines: []string{clientCert(alice), clientCert(alice), "X_Forwarded_Client_Cert: x"}, rfc: "-", xfcc: "-"},
		{lines: []string{"Client-Cert: rubbish", "X-Forwarded-Client-Cert: rubbish"}, rfc: "-", xfcc: "-"},
	}
	certs := map[string]*testpki.Cert{"alice": alice, "bob": bob, "edge": r.edge}
	random := rand.New(rand.NewPCG(1, 2))
	for range 4 {
		l := r.link(t, r.edge)
		targets := map[string]string{} // connection that carried a body, to the client it belongs to
		var trace []string
		for range 150 {
			kind := kinds[random.IntN(len(kinds))]
			if random.IntN(3) == 0 {
				kind = kinds[1] // the same again more often
			}
			host := []string{"a.test", "b.test", "c.test", "d.test"}[random.IntN(4)]
			body := []string{"", "", "hello"}[random.IntN(3)]
			client, why := "", "completed"
			switch host {
			case "a.test":
				client = kind.rfc
			case "b.test", "d.test":
				client = kind.xfcc
			case "c.test":
				client = "edge"
			}
			via := client != "edge"
			switch {
			case client == "" && host == "b.test":
				client, via = "edge", false
			case client == "":
				why = "asserted_identity_missing"
			case client == "-":
				client, why = "", "asserted_identity_invalid"
			}
			if why != "completed" {
				body = "" // the connection ends otherwise: the body is not read
			}
			status, path, got, from := l.send(t, host, body, kind.lines...)
			trace = append(trace, fmt.Sprintf("%s%s %q %.60q: %d", host, path, body, kind.lines, status))
			rec := r.find(t, "path="+path, "reason="+why)
			subject := "<nil>"
			if client != "" {
				subject = "CN=" + client
			}
			if fmt.Sprint(rec["client_subject"]) != subject || (rec["via"] != nil) != via {
				t.Fatalf("the record names %v via %v\n%s", rec["client_subject"], rec["via"], strings.Join(trace, "\n"))
			}
			if why != "completed" {
				if status != 403 || got != nil {
					t.Fatalf("%d, the target got %v\n%s", status, got, strings.Join(trace, "\n"))
				}
				continue
			}
			want := map[string][]string{"Client-Cert": nil, "X-Forwarded-Client-Cert": nil, "X-Amzn-Mtls-Clientcert-Subject": nil, "X-Ssl-Client-S-Dn": nil}
			cert := certs[client]
			ours := "Hash=" + hexSum(cert) + `;Subject="CN=` + client + `"`
			if client == "edge" {
				ours += ";DNS=edge1.cdn.test"
			}
			switch host {
			case "a.test":
				want["Client-Cert"], want["X-Amzn-Mtls-Clientcert-Subject"], want["X-Ssl-Client-S-Dn"] = []string{sf(cert.DER())}, []string{subject}, []string{subject}
			case "b.test":
				if via {
					ours = xfccElement(cert) + "," + ours
				}
				want["X-Forwarded-Client-Cert"] = []string{ours}
			case "c.test":
				want["Client-Cert"] = []string{sf(cert.DER())}
			case "d.test":
				want["Client-Cert"], want["X-Forwarded-Client-Cert"] = []string{sf(cert.DER())}, []string{ours}
			}
			for k, vs := range want {
				if status != 200 || fmt.Sprint(got.Values(k)) != fmt.Sprint(vs) {
					t.Fatalf("%d, %s: %q, want %q\n%s", status, k, got.Values(k), vs, strings.Join(trace, "\n"))
				}
			}
			// Where one client's body went, no other client's request goes (E32).
			if owner := targets[from]; owner != "" && owner != client {
				t.Fatalf("E32: a request of %s on the connection that carried a body of %s\n%s", client, owner, strings.Join(trace, "\n"))
			}
			if body != "" {
				targets[from] = client
			}
		}
		l.conn.Close()
	}
}

// TestAssertedTargets: the connection to a target that carried a body stays with its client, and only that.
func TestAssertedTargets(t *testing.T) {
	t.Run("E32/asserted clients", func(t *testing.T) {
		r := newRelays(t)
		alice, bob := r.ca.Client("alice"), r.ca.Client("bob")
		r.run(r.edge)
		l := r.link(t, r.edge)
		_, _, _, first := l.send(t, "a.test", "hello", clientCert(alice))
		if _, _, _, again := l.send(t, "a.test", "", clientCert(alice)); again != first {
			t.Errorf("alice went over %s and then over %s", first, again)
		}
		l.send(t, "a.test", "", clientCert(testpki.New(t).Client("mallory")))
		if _, _, _, again := l.send(t, "a.test", "hello", clientCert(alice)); again != first {
			t.Errorf("alice, after a refusal, went over %s and then over %s", first, again)
		}
		if _, _, _, other := l.send(t, "a.test", "", clientCert(bob)); other == first || other == "" {
			t.Errorf("bob went over the connection of alice, %s", other)
		}
	})
}

// TestAssertedTime: an assertion that was good is asked for again when it may not be any more (A34, D20).
func TestAssertedTime(t *testing.T) {
	r := newRelays(t)
	alice := r.ca.Client("alice")
	r.run(r.edge)
	t.Run("D20/expires on the connection", func(t *testing.T) {
		l := r.link(t, r.edge)
		if status, _, _, _ := l.send(t, "a.test", "", clientCert(alice)); status != 200 { // what takes long comes before
			t.Fatal(status)
		}
		brief := r.ca.Client("brief", testpki.NotAfter(time.Now().Add(4*time.Second)))
		if status, _, _, _ := l.send(t, "a.test", "", clientCert(brief)); status != 200 {
			t.Fatal(status)
		}
		time.Sleep(time.Until(brief.Cert.NotAfter.Add(100 * time.Millisecond)))
		status, path, got, _ := l.send(t, "a.test", "", clientCert(brief))
		rec := r.find(t, "path="+path, "reason=asserted_identity_invalid")
		if status != 403 || got != nil || !strings.HasPrefix(fmt.Sprint(rec["found"]), "client_cert_expired") {
			t.Errorf("%d %v", status, rec)
		}
	})
	t.Run("A34/revoked by a reload", func(t *testing.T) {
		l := r.link(t, r.edge)
		for i, c := range []struct {
			crl    []byte
			status int
		}{{r.ca.CRL(), 200}, {r.ca.CRL(alice, testpki.Number(10)), 403}, {r.ca.CRL(testpki.Number(11)), 200}} {
			r.file("clients.crl", c.crl)
			r.reload(r.conf, r.backend)
			for range 2 {
				status, path, _, _ := l.send(t, "a.test", "", clientCert(alice))
				if status != c.status {
					t.Errorf("reload %d: %d", i, status)
				}
				if c.status == 403 {
					rec := r.find(t, "path="+path, "reason=asserted_identity_invalid")
					if !strings.HasPrefix(fmt.Sprint(rec["found"]), "client_cert_revoked") {
						t.Errorf("found %v", rec["found"])
					}
				}
			}
		}
	})
	t.Run("A34/entries follow the configuration", func(t *testing.T) {
		l := r.link(t, r.edge)
		for i, c := range []struct {
			old, new string
			status   int
			client   string
			none     int // status without an assertion
		}{
			{"", "", 200, "CN=alice", 403},
			{`"dns:edge1.cdn.test", "uri`, `"uri`, 200, "CN=alice", 403}, // still listed by its hash
			{`sha256: ["` + colons(rawSum(r.edge)) + `"], sans: ["dns:edge1.cdn.test", "uri`, `sans: ["uri`, 200, "CN=edge", 200},
			{"", "", 200, "CN=alice", 403},
			{"identity: rfc9440", "identity: rfc9440\n            missing: proxy", 200, "CN=alice", 200},
			{"trust_store: partners", "trust_store: edge", 403, "", 403},
			{"", "", 200, "CN=alice", 403},
		} {
			conf := strings.Replace(r.conf, c.old, c.new, 1)
			if c.old != "" && conf == r.conf {
				t.Fatalf("change %d changes nothing", i)
			}
			r.reload(conf, r.backend)
			status, path, got, _ := l.send(t, "a.test", "", clientCert(alice))
			if status != c.status || got != nil && got.Get("X-SSL-Client-S-DN") != c.client {
				t.Errorf("change %d: %d %q %v", i, status, got.Get("X-SSL-Client-S-DN"), r.find(t, "path="+path))
			}
			if status, _, _, _ := l.send(t, "a.test", ""); status != c.none {
				t.Errorf("change %d, without an assertion: %d", i, status)
			}
		}
	})
	t.Run("A34/the proxy itself is revoked", func(t *testing.T) {
		r.reload(r.conf, r.backend)
		l := r.link(t, r.edge)
		if status, _, _, _ := l.send(t, "a.test", "", clientCert(alice)); status != 200 {
			t.Fatal(status)
		}
		_, _ = io.WriteString(l.conn, "GET /half HTTP/1.1\r\n") // or the connection, being idle, may end first
		time.Sleep(300 * time.Millisecond)
		r.file("proxies.crl", r.proxies.CRL(r.edge, testpki.Number(10)))
		r.reload(r.conf, r.backend)
		if status, _, err := roundTrip(l.conn, l.in, "Host: a.test\r\n"+clientCert(alice)+"\r\n\r\n"); status != 403 {
			t.Errorf("%d %v", status, err)
		}
		if rec := r.find(t, "path=/half", "reason=client_no_longer_trusted"); rec["client_subject"] != "CN=edge" || rec["via"] != nil {
			t.Errorf("the record names %v via %v", rec["client_subject"], rec["via"])
		}
		r.file("proxies.crl", r.proxies.CRL(testpki.Number(11)))
	})
}

func rawSum(c *testpki.Cert) []byte {
	sum := sha256.Sum256(c.DER())
	return sum[:]
}

// TestAssertedPolicy: under mode request who has no certificate speaks for nobody, and a host of another policy is not
// opened by an assertion.
func TestAssertedPolicy(t *testing.T) {
	r := newRelays(t)
	alice := r.ca.Client("alice")
	r.conf = strings.Replace(strings.ReplaceAll(r.conf, "mode: require", "mode: request"), "listeners:\n  public:\n    listen: 127.0.0.1:0\n    protocol: https\n    hosts:\n",
		"listeners:\n  public:\n    listen: 127.0.0.1:0\n    protocol: https\n    hosts:\n      - {names: [off.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: off}, routes: [{upstream: api}]}\n", 1)
	r.run(r.edge)
	l := r.link(t, nil)
	status, _, got, _ := l.send(t, "a.test", "", clientCert(alice))
	if status != 200 || len(got.Values("Client-Cert")) != 0 || got.Get("X-SSL-Client-Verify") != "NONE" {
		t.Errorf("D01/no certificate: %d %v", status, got)
	}
	l = r.link(t, r.edge)
	for _, line := range []string{clientCert(alice), "X-Kept: yes"} {
		status, path, got, _ := l.send(t, "off.test", "", line)
		if status != 421 || got != nil {
			t.Errorf("A43/another policy: %d %v", status, got)
		}
		r.find(t, "path="+path, "reason=policy_mismatch")
	}
	if status, _, got, _ := l.send(t, "a.test", "", clientCert(alice)); status != 200 || got.Get("X-SSL-Client-S-DN") != "CN=alice" {
		t.Errorf("mode request: %d %v", status, got)
	}
	if status, _, _, _ := l.send(t, "a.test", ""); status != 403 {
		t.Errorf("mode request, without an assertion: %d", status)
	}
}

// TestAssertedWebSocket: a WebSocket has the identity of the request that it began with.
func TestAssertedWebSocket(t *testing.T) {
	r := newRelays(t)
	alice := r.ca.Client("alice")
	target, heads := wsBackend(t, func(head string) string {
		if strings.HasPrefix(head, "GET /ws") {
			return switching(wsAccept())
		}
		return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	})
	r.conf = strings.Replace(strings.Replace(r.conf, "SUM", strings.Repeat("00", 32), 1), "routes: [{upstream: api}]", "routes: [{upgrade: [websocket], upstream: api}]", 1)
	r.start(r.conf, target)
	for _, c := range []struct {
		id, line string
		status   int
	}{{"D12/asserted", clientCert(alice), 101}, {"D12/none", "X-None: x", 403}, {"D12/invalid", "Client-Cert: x", 403}} {
		t.Run(c.id, func(t *testing.T) {
			l := r.link(t, r.edge)
			l.send(t, "a.test", "", clientCert(r.ca.Client("bob")))
			<-heads
			if _, err := io.WriteString(l.conn, wsRequest("/ws", "Sec-WebSocket-Version", c.line+"\r\nSec-WebSocket-Version")); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(l.in, nil)
			if err != nil || resp.StatusCode != c.status {
				t.Fatalf("%+v %v", resp, err)
			}
			if c.status != 101 {
				if len(heads) != 0 {
					t.Errorf("the target got %q", <-heads)
				}
				return
			}
			if head := <-heads; strings.Count(head, "\nClient-Cert:") != 1 || !strings.Contains(head, clientCert(alice)+"\r\n") || !strings.Contains(head, "X-SSL-Client-S-DN: CN=alice\r\n") {
				t.Errorf("the target got %q", head)
			}
			fmt.Fprint(l.conn, "ping")
			echo := make([]byte, 4)
			if _, err := io.ReadFull(l.in, echo); err != nil || string(echo) != "ping" {
				t.Errorf("%q %v", echo, err)
			}
			l.conn.Close()
			r.find(t, "client="+l.from, "path=/ws", "client_subject=CN=alice")
		})
	}
}

// TestAssertedAllocations: a proxy that asserts the same client again costs no allocation more than any request.
func TestAssertedAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	bare := bareTLS(t)
	r := newRelays(t)
	r.conf = strings.Replace(r.conf, "SUM", strings.Repeat("00", 32), 1)
	r.start(r.conf, quick(t, smallResponse))
	conn := r.link(t, r.edge).conn
	_ = conn.SetDeadline(time.Time{})
	c := &caller{conn: conn, buf: make([]byte, 32<<10), request: []byte("GET /x HTTP/1.1\r\nHost: a.test\r\n" + clientCert(r.ca.Client("alice")) + "\r\n\r\n")}
	if _, err := conn.Write(c.request); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	n, err := conn.Read(c.buf)
	if err != nil || !bytes.HasPrefix(c.buf, []byte("HTTP/1.1 200")) {
		t.Fatalf("%q %v", c.buf[:n], err)
	}
	c.want = n
	got := testalloc.AtMost(bare+0.05, 1000, func() { c.call(t) })
	t.Logf("allocations per request: %.3f, of them crypto/tls: %.3f", got, bare)
	if got > bare+0.05 {
		t.Errorf("a request with the same assertion allocates %.3f objects; expected at most the %.3f of crypto/tls itself", got, bare)
	}
}
