package interop_test

import (
	"bufio"
	"cmp"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Netflix/bettertls/test-suites/certutil"
	"github.com/Netflix/bettertls/test-suites/nameconstraints"
	"github.com/Netflix/bettertls/test-suites/pathbuilding"
	testcase "github.com/Netflix/bettertls/test-suites/test-case"
)

// corpus asks everybody for a certificate under the corpus's root. Its bounds are as wide as they can be set, and it takes
// serverAuth for clientAuth, because the corpus was made for servers.
const corpus = `
include: [corpus.yaml]
listeners:
  public:
    listen: $public
    protocol: https
    hosts:
      - names: ["*.corpus.test"]
        certificate: {cert: corpus.pem, key: corpus.key}
        client_auth: {mode: require, trust_store: corpus}
        identity_headers: [xfcc]
        routes: [{upstream: api}]
upstreams:
  api: {targets: ["http://$api"]}
`

const corpusStore = `
trust_stores:
  corpus:
    ca_bundle: {file: corpus-root.pem}
    accept: {max_depth: 10, max_presented: 10, eku: {allow_server_auth_until: %s}}
`

// maxPresented is the most certificates that a client may be allowed to send.
const maxPresented = 10

// expectation is what the corpus says about a chain, and nothing about the name of a server.
type expectation string

const (
	right expectation = "right"
	wrong expectation = "wrong"
	// either is a chain that is right but for a name that may be malformed: to refuse it is as right.
	either expectation = "either"
)

// chainCase is a chain of the corpus and what is known about it before it is presented.
type chainCase struct {
	suite  string
	index  uint
	says   testcase.ExpectedResult // to a client of the server whose chain it would be
	want   expectation
	why    []string // if it is wrong, the reasons one of which must be recorded
	twelve bool     // also presented over TLS 1.2
	cert   func() (*tls.Certificate, error)
}

// outcome is what became of a chain.
type outcome struct {
	*chainCase
	version  uint16
	name     string // the server name it was presented to, by which its record is found
	goErr    error  // of Go's verifier
	sent     int    // certificates presented
	accepted bool
	err      error // what the client met otherwise
	took     time.Duration
	reason   string // recorded
}

func (o *outcome) String() string {
	return fmt.Sprintf("%s case %d over %s, a chain that is %s (the corpus says %s)", o.suite, o.index, tls.VersionName(o.version), o.want, o.says)
}

// TestBetterTLS presents every chain of the bettertls corpus, made for clients of TLS servers, as a client certificate:
// path building after RFC 4158 and name constraints after RFC 5280. docs/conformance.md says how its expectations are read.
//
// The verdict must be right, agree with Go's verifier but for what is listed in testdata/bettertls-known.txt, and take less
// than a second.
func TestBetterTLS(t *testing.T) {
	root, key, err := certutil.GenerateSelfSignedCert("bettertls_trust_root")
	if err != nil {
		t.Fatal(err)
	}
	p := newPKI(t)
	write(t, p.dir, "corpus-root.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}))
	write(t, p.dir, "corpus.yaml", fmt.Appendf(nil, corpusStore, time.Now().AddDate(0, 0, 30).Format(time.DateOnly)))
	issue(t, p.dir, "corpus", p.internal, newECDSA(t), forServer("*.corpus.test"))
	backend := &http.Server{}
	var reached atomic.Int64
	var told sync.Map // XFCC by host
	backend.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		told.Store(r.Host, strings.Join(r.Header.Values("X-Forwarded-Client-Cert"), ","))
		w.WriteHeader(http.StatusNoContent)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go backend.Serve(l)
	t.Cleanup(func() { backend.Close() })
	b := serve(t, p, corpus, map[string]string{"api": l.Addr().String()})

	cases := corpusCases(t, root, key)
	outcomes := presentAll(t, b, root, cases)
	accepted := int64(0)
	for _, o := range outcomes {
		if o.accepted {
			accepted++
		}
	}
	if accepted == 0 || reached.Load() != accepted {
		t.Errorf("the backend was reached %d times, by %d clients that were accepted", reached.Load(), accepted)
	}
	t.Run("a chain is right or wrong", func(t *testing.T) { checkOutcomes(t, outcomes) })
	t.Run("a hidden name is not told as a DNS name", func(t *testing.T) {
		for _, o := range outcomes {
			xfcc, ok := told.Load(o.name)
			if ok != o.accepted {
				t.Errorf("%v: the backend was reached: %t", o, ok)
			}
			if o.want != either || !o.accepted {
				continue
			}
			for _, pair := range regexp.MustCompile(`([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^;,"]*)`).FindAllStringSubmatch(xfcc.(string), -1) {
				if pair[1] == "DNS" && strings.Contains(pair[2], nameconstraints.VALID_DNS_NAME) {
					t.Errorf("%v: the backend was told %s", o, xfcc)
				}
			}
		}
	})
	t.Run("what is refused and Go accepts is known", func(t *testing.T) { checkKnown(t, outcomes) })
	t.Run("none is slow", func(t *testing.T) { checkSpeed(t, b, root, outcomes) })
}

// corpusCases is every case of both suites, and again those of path building whose servers send more certificates than a
// client may, with as many as it may.
func corpusCases(t *testing.T, root *x509.Certificate, key crypto.Signer) []*chainCase {
	t.Helper()
	var cases []*chainCase
	for _, suite := range []testcase.TestCaseProvider{pathbuilding.NewTestCaseProvider(), nameconstraints.NewTestCaseProvider()} {
		n, err := suite.GetTestCaseCount()
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			tc, err := suite.GetTestCase(i)
			if err != nil {
				t.Fatal(err)
			}
			c := &chainCase{suite: suite.Name(), index: i, says: tc.ExpectedResult(), twelve: true}
			c.cert = func() (*tls.Certificate, error) { return tc.GetCertificates(root, key) }
			cases = append(cases, c)
			switch tc := tc.(type) {
			case nameconstraints.NameConstraintsTestCase:
				c.want, c.twelve = expectNames(t, tc), i%40 == 0
				c.why = []string{"client_cert_constraint", "client_cert_unparsable", "client_cert_san_invalid"}
			case *pathbuilding.TestCaseImpl:
				// The leaves of this suite all have the name that is asked for.
				if c.want = wrong; c.says == testcase.EXPECTED_RESULT_PASS {
					c.want = right
				}
				c.why = []string{brokenPath[tc.InvalidReason]}
				if tc.ExplicitTestCase.TrustGraph.EdgeCount() > maxPresented {
					short := *c
					short.suite += ", fewer sent"
					short.cert = func() (*tls.Certificate, error) {
						cert, err := tc.GetCertificates(root, key)
						if err == nil {
							err = shorten(cert, root)
						}
						return cert, err
					}
					cases = append(cases, &short)
				}
			default:
				t.Fatalf("a case of unknown type %T", tc)
			}
		}
	}
	return cases
}

// brokenPath is the reason that each way to break a path must lead to.
var brokenPath = map[pathbuilding.InvalidReason]string{
	pathbuilding.INVALID_REASON_EXPIRED:                   "client_cert_issuer_expired",
	pathbuilding.INVALID_REASON_NAME_CONSTRAINTS:          "client_cert_constraint",
	pathbuilding.INVALID_REASON_BAD_EKU:                   "client_cert_eku",
	pathbuilding.INVALID_REASON_MISSING_BASIC_CONSTRAINTS: "client_cert_constraint",
	pathbuilding.INVALID_REASON_NOT_A_CA:                  "client_cert_constraint",
	pathbuilding.INVALID_REASON_DEPRECATED_CRYPTO:         "client_cert_weak_signature",
}

// expectNames reads a case of name constraints. The corpus expects a client to refuse a server whose name is not in the
// certificate; a client's own certificate has no name to be compared, so what counts is whether each of its names is
// permitted (RFC 5280 section 4.2.1.10). A common name is no such name.
func expectNames(t *testing.T, n nameconstraints.NameConstraintsTestCase) expectation {
	t.Helper()
	violates := func(name, permitted, excluded nameconstraints.TrinaryValue) bool {
		return name != nameconstraints.EXTVAL_NONE && (permitted != nameconstraints.EXTVAL_NONE && permitted != name || excluded == name)
	}
	if violates(n.DnsSan, n.NameConstraintsDnsWhitelist, n.NameConstraintsDnsBlacklist) ||
		violates(n.IpSan, n.NameConstraintsIpWhitelist, n.NameConstraintsIpBlacklist) {
		return wrong
	}
	if n.ExtraSan == nil {
		return right
	}
	var extra struct {
		Tag   int    `json:"tag"`
		Value []byte `json:"value"`
	}
	text, err := json.Marshal(n.ExtraSan)
	if err == nil {
		err = json.Unmarshal(text, &extra)
	}
	if err != nil {
		t.Fatal(err)
	}
	// The extra name is the forbidden one in many guises. As a dNSName it is forbidden; as an iPAddress it is, or has a
	// length that no address has. In other forms, and an address as dNSName, it is a name of another kind, which nothing
	// here constrains, and often malformed.
	const dNSName, iPAddress = 2, 7
	if extra.Tag == iPAddress || extra.Tag == dNSName && n.ClientHostnameType == nameconstraints.CLIENT_HOSTNAME_TYPE_DNS {
		return wrong
	}
	return either
}

// shorten leaves out what a client would not send: the chain to root, if there is one, else the leaf's issuers, nearest
// first, as many as it may send.
func shorten(c *tls.Certificate, root *x509.Certificate) error {
	certs, err := parseAll(c.Certificate)
	if err != nil {
		return err
	}
	keep := certs[:1]
	if chains, err := verifyByGo(certs, root, x509.ExtKeyUsageServerAuth); err == nil {
		keep = chains[0][:len(chains[0])-1]
	} else {
		for at := 0; at < len(keep); at++ {
			for _, c := range certs {
				if len(keep) < maxPresented && string(c.RawSubject) == string(keep[at].RawIssuer) && !slices.ContainsFunc(keep, c.Equal) {
					keep = append(slices.Clip(keep), c)
				}
			}
		}
	}
	c.Certificate = nil
	for _, cert := range keep {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return nil
}

func parseAll(ders [][]byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// verifyByGo is what a program gets that asks crypto/x509 and nothing else.
func verifyByGo(certs []*x509.Certificate, root *x509.Certificate, use x509.ExtKeyUsage) ([][]*x509.Certificate, error) {
	roots, others := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for _, c := range certs[1:] {
		others.AddCert(c)
	}
	return certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, KeyUsages: []x509.ExtKeyUsage{use}})
}

// presentAll plays all cases, four at a time, and reads the reasons from the records.
func presentAll(t *testing.T, b *balancer, root *x509.Certificate, cases []*chainCase) []*outcome {
	t.Helper()
	started := time.Now()
	var (
		mu       sync.Mutex
		outcomes []*outcome
		next     atomic.Int64
		wg       sync.WaitGroup
	)
	for range 4 {
		wg.Go(func() {
			for i := next.Add(1) - 1; int(i) < len(cases); i = next.Add(1) - 1 {
				done, err := presentOne(b, root, cases[i], int(i))
				mu.Lock()
				outcomes = append(outcomes, done...)
				mu.Unlock()
				if err != nil {
					t.Errorf("%s case %d cannot be presented: %v", cases[i].suite, cases[i].index, err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d cases, %d handshakes in %v", len(cases), len(outcomes), time.Since(started).Round(time.Millisecond))
	readReasons(t, b, outcomes)
	return outcomes
}

// presentOne makes the certificates of a case and presents them over TLS 1.3, and over 1.2 where that is wanted.
func presentOne(b *balancer, root *x509.Certificate, c *chainCase, n int) ([]*outcome, error) {
	cert, err := c.cert()
	if err != nil {
		return nil, err
	}
	certs, goErr := parseAll(cert.Certificate)
	if goErr == nil {
		_, goErr = verifyByGo(certs, root, x509.ExtKeyUsageServerAuth)
	}
	versions := []uint16{tls.VersionTLS13}
	if c.twelve {
		versions = append(versions, tls.VersionTLS12)
	}
	var done []*outcome
	for _, v := range versions {
		o := &outcome{chainCase: c, version: v, name: fmt.Sprintf("n%d-%x.corpus.test", n, v), goErr: goErr, sent: len(cert.Certificate)}
		o.present(b, cert, http.StatusNoContent)
		done = append(done, o)
	}
	return done, nil
}

// present makes one connection and one request, which the backend answers with the status good.
func (o *outcome) present(b *balancer, cert *tls.Certificate, good int) {
	started := time.Now()
	o.err = func() error {
		pool := x509.NewCertPool()
		pool.AddCert(b.pki.internal.Certificate)
		conn, err := net.DialTimeout("tcp", b.addr["public"], 10*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(started.Add(20 * time.Second))
		tc := tls.Client(conn, &tls.Config{ServerName: o.name, RootCAs: pool, MinVersion: o.version, MaxVersion: o.version,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }})
		if err := tc.Handshake(); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(tc, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", o.name); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(tc), nil)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if o.accepted = resp.StatusCode == good; !o.accepted {
			return fmt.Errorf("status %d", resp.StatusCode)
		}
		return nil
	}()
	o.took = time.Since(started)
}

// readReasons waits for the record of each handshake.
func readReasons(t *testing.T, b *balancer, outcomes []*outcome) {
	t.Helper()
	reasons := map[string]string{}
	await(t, func() bool {
		if strings.Count(b.records.String(), `"kind":"handshake"`) < len(outcomes) {
			return false
		}
		for _, r := range b.since(t, 0) {
			if r["kind"] == "handshake" {
				reasons[fmt.Sprint(r["sni"])] = fmt.Sprint(r["reason"])
			}
		}
		return true
	})
	for _, o := range outcomes {
		o.reason = reasons[o.name]
	}
}

// checkOutcomes compares each verdict with the corpus, and with Go's verifier.
func checkOutcomes(t *testing.T, outcomes []*outcome) {
	counts := map[string]int{}
	for _, o := range outcomes {
		counts[fmt.Sprintf("%s, %s: %s, %s", o.suite, tls.VersionName(o.version), o.want, o.reason)]++
		tooMany := o.reason == "client_cert_too_many"
		switch {
		case o.accepted != (o.reason == "completed"):
			t.Errorf("%v: the client saw %t, %v, but the record says %q", o, o.accepted, o.err, o.reason)
		case tooMany != (o.sent > maxPresented):
			t.Errorf("%v: %s, of %d certificates", o, o.reason, o.sent)
		case o.accepted && o.goErr != nil:
			t.Errorf("%v: accepted, but Go refuses it: %v", o, o.goErr)
		case o.accepted && o.want == wrong:
			t.Errorf("%v: accepted", o)
		case o.want == right && o.goErr != nil, o.want == wrong && o.goErr == nil:
			t.Errorf("%v: Go's verifier says otherwise: %v; this test reads the case wrongly", o, o.goErr)
		case o.want == right && !o.accepted && !tooMany:
			t.Errorf("%v: refused with %s", o, o.reason)
		case o.want != right && !o.accepted && !tooMany && !slices.Contains(o.why, o.reason):
			t.Errorf("%v: refused with %s, want %s", o, o.reason, strings.Join(o.why, " or "))
		}
	}
	for _, line := range slices.Sorted(maps.Keys(counts)) {
		t.Logf("%s: %d", line, counts[line])
	}
}

// checkKnown compares what is refused, and accepted by Go, with the list. Only TLS 1.3 is counted, which has every case
// once.
func checkKnown(t *testing.T, outcomes []*outcome) {
	counts := map[string]int{}
	for _, o := range outcomes {
		if !o.accepted && o.goErr == nil && o.version == tls.VersionTLS13 {
			counts[o.suite+"\t"+o.reason]++
		}
	}
	var got []string
	for _, line := range slices.Sorted(maps.Keys(counts)) {
		got = append(got, fmt.Sprintf("%s\t%d", line, counts[line]))
	}
	file := filepath.Join("testdata", "bettertls-known.txt")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			want = append(want, line)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s has\n%s\nfound\n%s\neach line is a promise of docs/conformance.md; change both or neither",
			file, strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
}

// checkSpeed wants every verdict within a second. What was slow while other handshakes were under way is tried again alone.
func checkSpeed(t *testing.T, b *balancer, root *x509.Certificate, outcomes []*outcome) {
	slowest := &outcome{}
	for i, o := range outcomes {
		if o.took > time.Second {
			t.Logf("%v: %v; once more, alone", o, o.took)
			again, err := presentOne(b, root, o.chainCase, len(outcomes)+i)
			if err != nil {
				t.Fatal(err)
			}
			o = slices.MaxFunc(again, func(a, b *outcome) int { return cmp.Compare(a.took, b.took) })
		}
		if o.took > slowest.took {
			slowest = o
		}
		if o.took > time.Second {
			t.Errorf("%v: %v, want less than 1s", o, o.took)
		}
	}
	t.Logf("slowest: %v, %v", slowest.took, slowest)
}
