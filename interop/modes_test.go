package interop_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// modes is a configuration with one host for every mode and kind of refusal. The names are wildcards, so that every call
// has a server name of its own, by which its records and its request at the backend are found.
const modes = `
listeners:
  public:
    listen: $public
    protocol: https
    hosts:
      - {names: ["*.off.test"], certificates: $certs, identity_headers: $headers, routes: [{upstream: api}],
         client_auth: {mode: off}}
      - {names: ["*.request.test"], certificates: $certs, identity_headers: $headers, routes: [{upstream: api}],
         client_auth: {mode: request, trust_store: clients}}
      - {names: ["*.request-reset.test"], certificates: $certs, identity_headers: $headers, routes: [{upstream: api}],
         client_auth: {mode: request, trust_store: clients, on_failure: reset}}
      - {names: ["*.request-page.test"], certificates: $certs, identity_headers: $headers, routes: [{upstream: api}],
         client_auth: {mode: request, trust_store: clients, on_failure: page}}
      - {names: ["*.require.test"], certificates: $certs, identity_headers: $headers, routes: [{upstream: api}],
         client_auth: {mode: require, trust_store: clients, on_failure: alert}}
      - {names: ["*.reset.test"], certificates: $certs, identity_headers: $headers, routes: [{upstream: api}],
         client_auth: {mode: require, trust_store: clients, on_failure: reset}}
      - {names: ["*.page.test"], certificates: $certs, identity_headers: $headers, routes: [{upstream: api}],
         client_auth: {mode: require, trust_store: clients, on_failure: page}}
      - {names: ["*.unverified.test"], certificates: $certs, identity_headers: $headers, routes: [{upstream: api}],
         client_auth: {mode: request_unverified, trust_store: clients}}
      - {names: ["*.chain.test"], certificates: $certs, identity_headers: $headers, routes: [{upstream: api}],
         client_auth: {mode: passthrough_chain}}
upstreams:
  api: {targets: ["http://$api"]}
`

// modeHost is a host of modes: who is refused there, and how.
type modeHost struct {
	name, mode string
	// anonymous says that a client without a certificate is let in, strangers that one with a bad certificate is.
	anonymous, strangers bool
	onFailure            string
}

var modeHosts = []modeHost{
	{"off", "off", true, true, ""},
	{"request", "request", true, false, "alert"},
	{"request-reset", "request", true, false, "reset"},
	{"request-page", "request", true, false, "page"},
	{"require", "require", false, false, "alert"},
	{"reset", "require", false, false, "reset"},
	{"page", "require", false, false, "page"},
	{"unverified", "request_unverified", true, true, ""},
	{"chain", "passthrough_chain", true, true, ""},
}

// call is one request of one client to one host, and answer what the client says became of it.
type call struct {
	n       int
	version string // of TLS
	who     caller
	host    modeHost
}

// name is the call's own server name.
func (c *call) name() string { return fmt.Sprintf("c%d.%s.test", c.n, c.host.name) }

type answer struct {
	N      int    `json:"n"`
	Status int    `json:"status"`
	Body   string `json:"body"`
	Error  string `json:"error"` // what the client says that went wrong
}

// forged are header lines every call sends; none may reach the backend.
var forged = []string{"X-SSL-Client-Verify: SUCCESS", "X_SSL_Client_Verify: SUCCESS", "X-Amzn-Mtls-Clientcert-Subject: CN=forged", "X-Amzn-Mtls-Clientcert: forged"}

// raw is the request of a call for clients that take bytes.
func (c *call) raw() string {
	return "GET / HTTP/1.1\r\nHost: " + c.name() + "\r\nAccept: application/json\r\nConnection: close\r\n" + strings.Join(forged, "\r\n") + "\r\n\r\n"
}

// witness is a backend that remembers with which headers each host was asked for.
type witness struct {
	addr string

	mu   sync.Mutex
	seen map[string]http.Header
}

func newWitness(t *testing.T) *witness {
	t.Helper()
	w := &witness{seen: map[string]http.Header{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		host, _, _ := strings.Cut(r.Host, ":")
		w.mu.Lock()
		w.seen[host] = r.Header
		w.mu.Unlock()
		io.WriteString(rw, "seen "+host)
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return w
}

// told is what the backend was told about the client of a call, or nil if the call did not reach it.
func (w *witness) told(name string) map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	h, ok := w.seen[name]
	if !ok {
		return nil
	}
	out := map[string]string{}
	for k, v := range h {
		if low := strings.ReplaceAll(strings.ToLower(k), "_", "-"); strings.HasPrefix(low, "x-ssl") || strings.HasPrefix(low, "x-amzn") || strings.Contains(low, "client-cert") {
			out[k] = strings.Join(v, "|")
		}
	}
	return out
}

// journal is the records of a balancer by server name, read once all calls are made.
type journal map[string][]map[string]any

func (j journal) find(name, kind string) map[string]any {
	for _, r := range j[name] {
		if r["kind"] == kind {
			return r
		}
	}
	return nil
}

// refusal is what a client says about the end of a refused handshake, in the words of no client: "alert 42", "reset", or
// its own words.
func refusal(text string) string {
	plain := regexp.MustCompile(`[^a-z0-9=\[\]]`).ReplaceAllString(strings.ToLower(text), "")
	for number, words := range map[string][]string{
		"42":  {"badcertificate", "alert[42]", "alertnumber42"},
		"116": {"certificaterequired", "alert[116]", "alertnumber116"},
		"40":  {"handshakefailure", "alert[40]", "alertnumber40"},
	} {
		for _, w := range words {
			if strings.Contains(plain, w) {
				return "alert " + number
			}
		}
	}
	// A reset is reported once. A client that wrote when it came may then read an end without a word; and Go's, whose
	// writer met it, closes the connection under its own reader, which may be the first to tell.
	for _, w := range []string{"resetbypeer", "connectionreset", "econnreset", "errno=104", "pullfunction", "brokenpipe", "epipe", "socketclosed",
		"remotedisconnected", "ssleoferror", "errno107", "sockethangup", "useofclosednetworkconnection"} {
		if strings.Contains(plain, w) {
			return "reset"
		}
	}
	if strings.HasSuffix(text, ": EOF") { // Go's
		return "reset"
	}
	return text
}

// modeClient is a program that makes calls. It answers in the order of calls.
type modeClient struct {
	name, program string // program is empty for one that is always there
	calls         func(t *testing.T, b *balancer, version string, calls []*call) []answer
}

var modeClients = []modeClient{
	{"curl", "curl", each(curlCall)},
	{"openssl s_client", "openssl", each(opensslCall)},
	{"gnutls-cli", "gnutls-cli", each(gnutlsCall)},
	{"Go", "", each(goCall)},
	{"Python", "python3", listed("modes.py", modesPython, "python3")},
	{"Node", "node", listed("modes.js", modesNode, "node")},
	{"Java", "java", listed("Modes.java", modesJava, "java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")},
}

// TestModes makes every client call every host with every certificate, over both versions of TLS. All seven clients can do
// all of it. What they would not do by themselves: Java's and Go's own choice leaves out a certificate whose issuer is not
// among the names the server gives, so both are told which to send (TestHintsDecide shows the difference).
func TestModes(t *testing.T) {
	p, backend := newPKI(t), newWitness(t)
	var wildcards []string
	for _, h := range modeHosts {
		wildcards = append(wildcards, "*."+h.name+".test")
	}
	issue(t, p.dir, "modes", p.internal, newECDSA(t), forServer(wildcards...))
	issue(t, p.dir, "modes-rsa", p.internal, newRSA(t), forServer(wildcards...))
	b := serve(t, p, modes, map[string]string{"api": backend.addr, "headers": "[alb, x_ssl_client]",
		"certs": "[{cert: modes.pem, key: modes.key}, {cert: modes-rsa.pem, key: modes-rsa.key}]"})

	type batch struct {
		client  modeClient
		version string
		calls   []*call
		answers []answer
	}
	var batches []*batch
	n := 0
	for _, client := range modeClients {
		for _, version := range []string{"1.2", "1.3"} {
			s := &batch{client: client, version: version}
			for _, host := range modeHosts {
				for _, who := range callers(p) {
					n++
					s.calls = append(s.calls, &call{n, version, who, host})
				}
			}
			batches = append(batches, s)
		}
	}
	t.Run("calls", func(t *testing.T) {
		for _, s := range batches {
			t.Run(s.client.name+"/TLS "+s.version, func(t *testing.T) {
				t.Parallel()
				if s.client.program != "" {
					need(t, s.client.program)
				}
				s.answers = s.client.calls(t, b, s.version, s.calls)
				if len(s.answers) != len(s.calls) {
					t.Fatalf("%d answers to %d calls", len(s.answers), len(s.calls))
				}
			})
		}
	})
	done := b.mark()
	b.curl(t, "public", nil, "--resolve", "last.off.test:"+portOf(b.addr["public"])+":127.0.0.1", b.url("public", "last.off.test", "/"))
	b.record(t, done, "kind=request", "reason=completed") // what was done before is recorded by now
	records := journal{}
	for _, r := range b.since(t, 0) {
		name, ok := r["sni"].(string)
		if !ok {
			name, _, _ = strings.Cut(fmt.Sprint(r["host"]), ":")
		}
		records[name] = append(records[name], r)
	}
	made := 0
	for _, s := range batches {
		t.Run(s.client.name+"/TLS "+s.version, func(t *testing.T) {
			if s.answers == nil {
				t.Skip("not called")
			}
			for i, c := range s.calls {
				made++
				if err := c.check(s.answers[i], records, backend.told(c.name())); err != nil {
					t.Errorf("%s, %s (call %d): %v\n  the client says %+v\n  records %v", c.host.name, c.who.name, c.n, err, s.answers[i], records[c.name()])
				}
			}
		})
	}
	t.Logf("%d calls", made)
}

// check compares what the client says, what was recorded and what the backend was told with what the mode promises.
func (c *call) check(a answer, records journal, told map[string]string) error {
	handshake, request := records.find(c.name(), "handshake"), records.find(c.name(), "request")
	if handshake == nil {
		return errors.New("no record of the handshake")
	}
	if handshake["client_auth"] != c.host.mode || handshake["tls"] != "TLS "+c.version {
		return errors.New("the record has another mode or version of TLS")
	}
	if c.who.good() || c.who.cert == nil && c.host.anonymous || c.who.cert != nil && c.host.strangers {
		return c.checkAccepted(a, handshake, request, told)
	}
	// Refused.
	if handshake["reason"] != c.who.reason {
		return fmt.Errorf("recorded as %v; want %s", handshake["reason"], c.who.reason)
	}
	if at, _ := handshake["certificate_at_fault"].(map[string]any); c.who.cert != nil && (at == nil || at["subject"] != "CN="+c.who.cert.Subject.CommonName) {
		return fmt.Errorf("at fault is %v", at)
	}
	if told != nil {
		return errors.New("the backend was reached")
	}
	if c.host.onFailure == "page" {
		why := "client_cert_refused"
		if c.who.cert == nil {
			why = "client_cert_missing"
		}
		var page struct{ Reason, Reference string }
		if a.Status != 403 || json.Unmarshal([]byte(a.Body), &page) != nil || page.Reason != why {
			return fmt.Errorf("no page that says %s", why)
		}
		if request == nil || request["reason"] != c.who.reason || request["status"] != 403.0 || request["ref"] != page.Reference {
			return fmt.Errorf("the request is recorded as %v", request)
		}
		return nil
	}
	if a.Status != 0 || request != nil {
		return errors.New("a request got through")
	}
	want := "reset"
	if c.host.onFailure == "alert" {
		number, _ := c.who.alert(c.version)
		want = "alert " + number
	}
	if got := refusal(a.Error); got != want {
		return fmt.Errorf("the client met %q; want %s", got, want)
	}
	return nil
}

func (c *call) checkAccepted(a answer, handshake, request map[string]any, told map[string]string) error {
	if a.Status != 200 || strings.TrimSpace(a.Body) != "seen "+c.name() {
		return errors.New("want 200 from the backend")
	}
	if handshake["reason"] != "completed" || request == nil || request["status"] != 200.0 || request["reason"] != "completed" {
		return fmt.Errorf("recorded as %v, %v", handshake["reason"], request)
	}
	verified := c.who.good() && (c.host.mode == "request" || c.host.mode == "require" || c.host.mode == "request_unverified")
	want := map[string]string{"X-Ssl-Client-Verify": "NONE"}
	headers, verdict, subject := 1, any(nil), any(nil)
	switch {
	case c.host.mode == "off" || c.who.cert == nil && c.host.mode != "request_unverified":
	case c.who.cert == nil:
		verdict = "client_cert_missing"
	case verified:
		subject = "CN=" + c.who.cert.Subject.CommonName
		want = map[string]string{"X-Ssl-Client-Verify": "SUCCESS", "X-Ssl-Client-S-Dn": subject.(string), "X-Amzn-Mtls-Clientcert-Subject": subject.(string)}
		headers = 13
	case c.host.mode == "passthrough_chain":
		want["X-Ssl-Client-Verify"] = "FAILED:not_verified"
		headers = 2
		if err := samePEM(told["X-Amzn-Mtls-Clientcert"], c.who.cert.chain); err != nil {
			return err
		}
	default:
		verdict = c.who.reason
		want["X-Ssl-Client-Verify"] = "FAILED:" + c.who.reason
	}
	if len(told) != headers {
		return fmt.Errorf("the backend was told %d headers of identity, %v; want %d", len(told), told, headers)
	}
	for k, v := range want {
		if told[k] != v {
			return fmt.Errorf("the backend was told %s: %q; want %q", k, told[k], v)
		}
	}
	if c.host.mode != "passthrough_chain" && handshake["verdict"] != verdict {
		return fmt.Errorf("the verdict is recorded as %v; want %v", handshake["verdict"], verdict)
	}
	if request["client_subject"] != subject {
		return fmt.Errorf("the subject is recorded as %v; want %v", request["client_subject"], subject)
	}
	return nil
}

// samePEM wants text to be the percent-encoded PEM of exactly these certificates.
func samePEM(text string, chain [][]byte) error {
	plain, err := url.PathUnescape(text)
	if err != nil {
		return err
	}
	rest := []byte(plain)
	for i, der := range chain {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || !bytes.Equal(block.Bytes, der) {
			return fmt.Errorf("certificate %d of the chain is not what was presented: %q", i, plain)
		}
	}
	if len(rest) != 0 {
		return fmt.Errorf("more than was presented: %q", rest)
	}
	return nil
}

// each makes the calls one after the other.
func each(one func(t *testing.T, b *balancer, c *call) answer) func(*testing.T, *balancer, string, []*call) []answer {
	return func(t *testing.T, b *balancer, _ string, calls []*call) []answer {
		var out []answer
		for _, c := range calls {
			out = append(out, one(t, b, c))
		}
		return out
	}
}

// parsed is the response in what a client printed, which may have other text around it, or else the error.
func parsed(c *call, out, errs string) answer {
	_, text, found := strings.Cut(out, "HTTP/1.1 ")
	if !found {
		return answer{N: c.n, Error: out + errs}
	}
	resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader("HTTP/1.1 "+text)), nil)
	if err != nil {
		return answer{N: c.n, Error: err.Error() + out}
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{N: c.n, Error: err.Error() + out}
	}
	return answer{N: c.n, Status: resp.StatusCode, Body: string(body)}
}

func curlCall(t *testing.T, b *balancer, c *call) answer {
	args := []string{"--http1.1", "-sS", "-i", "--max-time", "15", "--noproxy", "*", "--cacert", b.pki.internal.file, "--tlsv" + c.version, "--tls-max", c.version,
		"--connect-to", "::" + b.addr["public"], "-H", "Accept: application/json", "-H", "Connection: close"}
	for _, h := range forged {
		args = append(args, "-H", h)
	}
	if c.who.cert != nil {
		args = append(args, "--cert", c.who.cert.file, "--key", c.who.cert.keyFile)
	}
	r := run(t, nil, "curl", append(args, "https://"+c.name()+"/")...)
	return parsed(c, r.out, r.err)
}

func opensslCall(t *testing.T, b *balancer, c *call) answer {
	args := []string{"s_client", "-quiet", "-connect", b.addr["public"], "-servername", c.name(), "-verify_hostname", c.name(),
		"-CAfile", b.pki.internal.file, "-verify_return_error", "-tls" + strings.ReplaceAll(c.version, ".", "_")}
	if c.who.cert != nil {
		args = append(args, "-cert", c.who.cert.file, "-key", c.who.cert.keyFile)
		if c.who.cert.issuer.issuer != nil { // -cert_chain takes the intermediates; -cert reads one certificate only
			args = append(args, "-cert_chain", c.who.cert.issuer.file)
		}
	}
	r := run(t, open(t, c.raw()), "openssl", args...)
	return parsed(c, r.out, r.err)
}

func gnutlsCall(t *testing.T, b *balancer, c *call) answer {
	args := []string{"--x509cafile", b.pki.internal.file, "--sni-hostname", c.name(), "--verify-hostname", c.name(), "--port", portOf(b.addr["public"]),
		"--priority", "NORMAL:-VERS-ALL:+VERS-TLS" + c.version}
	if c.who.cert != nil {
		args = append(args, "--x509certfile", c.who.cert.file, "--x509keyfile", c.who.cert.keyFile)
	}
	r := run(t, open(t, c.raw()), "gnutls-cli", append(args, "127.0.0.1")...)
	return parsed(c, r.out, r.err)
}

func goCall(t *testing.T, b *balancer, c *call) answer {
	conf := goConfig(b.pki, c.name(), c.who.cert)
	conf.MinVersion = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}[c.version]
	conf.MaxVersion = conf.MinVersion
	transport := &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, b.addr["public"])
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+c.name()+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/json")
	for _, h := range forged {
		k, v, _ := strings.Cut(h, ": ")
		req.Header[k] = []string{v}
	}
	resp, err := (&http.Client{Transport: transport, Timeout: 15 * time.Second}).Do(req)
	if err != nil {
		return answer{N: c.n, Error: err.Error()}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{N: c.n, Error: err.Error()}
	}
	return answer{N: c.n, Status: resp.StatusCode, Body: string(body)}
}

// goConfig is for a client of host that trusts our listeners and sends who, whatever the server hints at.
func goConfig(p *pki, host string, who *cert) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(p.internal.Certificate)
	conf := &tls.Config{RootCAs: pool, ServerName: host}
	if who != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: who.chain, PrivateKey: who.key}, nil
		}
	}
	return conf
}

// listed runs a program once that reads calls from standard input, a line with number, name, certificate and key each, and
// prints an answer in JSON for each. It is told the port, the file with our CA and the version of TLS.
func listed(file, source, program string, args ...string) func(*testing.T, *balancer, string, []*call) []answer {
	return func(t *testing.T, b *balancer, version string, calls []*call) []answer {
		var in strings.Builder
		for _, c := range calls {
			who, key := "-", "-"
			if c.who.cert != nil {
				who, key = c.who.cert.file, c.who.cert.keyFile
			}
			fmt.Fprintln(&in, c.n, c.name(), who, key)
		}
		path := write(t, t.TempDir(), file, []byte(source))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, program, append(args, path, portOf(b.addr["public"]), b.pki.internal.file, version)...)
		var errs bytes.Buffer
		cmd.Stdin, cmd.Stderr, cmd.WaitDelay = strings.NewReader(in.String()), &errs, time.Second
		cmd.Env = append(os.Environ(), "JDK_JAVA_OPTIONS=", "FORGED="+strings.Join(forged, "\n"))
		printed, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", program, err, tail(errs.String(), 4000))
		}
		var out []answer
		for line := range strings.Lines(string(printed)) {
			var a answer
			if err := json.Unmarshal([]byte(line), &a); err != nil || a.N != calls[min(len(out), len(calls)-1)].n {
				t.Fatalf("%s printed %q, %v\n%s", program, line, err, tail(errs.String(), 4000))
			}
			out = append(out, a)
		}
		return out
	}
}

const modesPython = `
import http.client, json, os, socket, ssl, sys
port, ca, version = int(sys.argv[1]), sys.argv[2], {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[sys.argv[3]]
forged = dict(line.split(": ", 1) for line in os.environ["FORGED"].split("\n"))
class Connection(http.client.HTTPSConnection):
    def connect(self):
        self.sock = self._context.wrap_socket(socket.create_connection(("127.0.0.1", port), 15), server_hostname=self.host)
for line in sys.stdin:
    n, name, cert, key = line.split()
    out = {"n": int(n)}
    try:
        context = ssl.create_default_context(cafile=ca)
        context.minimum_version = context.maximum_version = version
        if cert != "-": context.load_cert_chain(cert, key)
        c = Connection(name, 443, timeout=15, context=context)
        c.request("GET", "/", headers={"Accept": "application/json", "Connection": "close", **forged})
        r = c.getresponse()
        out["status"], out["body"] = r.status, r.read().decode()
        c.close()
    except OSError as e:
        out["error"] = repr(e)
    print(json.dumps(out), flush=True)
`

const modesNode = `
const https = require('https'), fs = require('fs');
const [port, ca, version] = process.argv.slice(2);
const headers = Object.fromEntries(process.env.FORGED.split('\n').map(l => l.split(': ')));
function call(n, name, cert, key) {
  const options = {host: '127.0.0.1', port, servername: name, ca: fs.readFileSync(ca), agent: false, timeout: 15000,
    headers: {Host: name, Accept: 'application/json', Connection: 'close', ...headers}, minVersion: 'TLSv' + version, maxVersion: 'TLSv' + version};
  if (cert !== '-') { options.cert = fs.readFileSync(cert); options.key = fs.readFileSync(key); }
  return new Promise(resolve => {
    const failed = e => resolve({n, error: e.code + ' ' + e.message});
    const req = https.request(options, res => {
      let body = '';
      res.on('data', d => { body += d; });
      res.on('end', () => resolve({n, status: res.statusCode, body}));
      res.on('error', failed);
    });
    req.on('error', failed);
    req.end();
  });
}
(async () => {
  for (const line of fs.readFileSync(0, 'utf8').trim().split('\n')) {
    const [n, name, cert, key] = line.split(' ');
    console.log(JSON.stringify(await call(Number(n), name, cert, key)));
  }
})();
`

const modesJava = `
import java.io.*;
import java.net.*;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.security.*;
import java.security.cert.*;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.*;
import javax.net.ssl.*;

public class Modes {
    // Sends its certificate whatever the server hints at.
    static class Stubborn extends X509ExtendedKeyManager {
        final X509Certificate[] chain; final PrivateKey key;
        Stubborn(X509Certificate[] chain, PrivateKey key) { this.chain = chain; this.key = key; }
        public String chooseClientAlias(String[] types, Principal[] issuers, Socket s) {
            return Arrays.asList(types).contains(chain[0].getPublicKey().getAlgorithm()) ? "mine" : null;
        }
        public String[] getClientAliases(String type, Principal[] issuers) { return new String[] {"mine"}; }
        public String chooseServerAlias(String type, Principal[] issuers, Socket s) { return null; }
        public String[] getServerAliases(String type, Principal[] issuers) { return null; }
        public X509Certificate[] getCertificateChain(String alias) { return chain; }
        public PrivateKey getPrivateKey(String alias) { return key; }
    }
    static X509Certificate[] read(String file) throws Exception {
        try (InputStream in = Files.newInputStream(Path.of(file))) {
            return CertificateFactory.getInstance("X.509").generateCertificates(in).toArray(new X509Certificate[0]);
        }
    }
    static String quote(String s) {
        StringBuilder b = new StringBuilder("\"");
        for (char c : s.toCharArray()) b.append(c < 32 || c > 126 || c == '"' || c == '\\' ? String.format("\\u%04x", (int) c) : "" + c);
        return b.append('"').toString();
    }
    public static void main(String[] args) throws Exception {
        int port = Integer.parseInt(args[0]);
        String version = "TLSv" + args[2];
        KeyStore trusted = KeyStore.getInstance(KeyStore.getDefaultType());
        trusted.load(null, null);
        trusted.setCertificateEntry("ca", read(args[1])[0]);
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(trusted);
        String forged = System.getenv("FORGED").replace("\n", "\r\n") + "\r\n";
        boolean byHints = System.getenv("BY_HINTS") != null; // the key manager of javax.net.ssl, which chooses by the server's hints
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = in.readLine()) != null; ) {
            String[] call = line.split(" ");
            String out;
            try {
                KeyManager[] keys = null;
                if (!call[2].equals("-")) {
                    X509Certificate[] chain = read(call[2]);
                    String pem = Files.readString(Path.of(call[3])).replaceAll("-----[A-Z ]+-----", "").replaceAll("\\s", "");
                    PrivateKey key = KeyFactory.getInstance(chain[0].getPublicKey().getAlgorithm()).generatePrivate(new PKCS8EncodedKeySpec(Base64.getDecoder().decode(pem)));
                    keys = new KeyManager[] {new Stubborn(chain, key)};
                    if (byHints) {
                        KeyStore own = KeyStore.getInstance(KeyStore.getDefaultType());
                        own.load(null, null);
                        own.setKeyEntry("own", key, new char[0], chain);
                        KeyManagerFactory f = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
                        f.init(own, new char[0]);
                        keys = f.getKeyManagers();
                    }
                }
                SSLContext context = SSLContext.getInstance("TLS");
                context.init(keys, trust.getTrustManagers(), null);
                Socket plain = new Socket("127.0.0.1", port);
                plain.setSoTimeout(15000);
                try (SSLSocket s = (SSLSocket) context.getSocketFactory().createSocket(plain, call[1], port, true)) {
                    SSLParameters p = s.getSSLParameters();
                    p.setProtocols(new String[] {version});
                    p.setEndpointIdentificationAlgorithm("HTTPS");
                    s.setSSLParameters(p);
                    s.startHandshake();
                    s.getOutputStream().write(("GET / HTTP/1.1\r\nHost: " + call[1] + "\r\nAccept: application/json\r\nConnection: close\r\n" + forged + "\r\n").getBytes(StandardCharsets.US_ASCII));
                    String[] response = new String(s.getInputStream().readAllBytes(), StandardCharsets.UTF_8).split("\r\n\r\n", 2);
                    out = response.length < 2 ? "\"error\":\"no response\"" : "\"status\":" + response[0].split(" ")[1] + ",\"body\":" + quote(response[1]);
                }
            } catch (IOException e) {
                out = "\"error\":" + quote(e.toString());
            }
            System.out.println("{\"n\":" + call[0] + "," + out + "}");
        }
    }
}
`

// TestHintsDecide shows what Java and Go do when they choose for themselves: a certificate whose issuer is not among the
// CA names the server sent is not sent at all, so the refusal is for a missing one. With hints: none they send it.
func TestHintsDecide(t *testing.T) {
	p, backend := newPKI(t), newWitness(t)
	issue(t, p.dir, "modes", p.internal, newECDSA(t), forServer("*.require.test", "*.silent.test"))
	b := serve(t, p, `
  silent: {ca_bundle: {file: root-ca.pem}, hints: none}
listeners:
  public:
    listen: $public
    protocol: https
    hosts:
      - {names: ["*.require.test"], certificate: {cert: modes.pem, key: modes.key}, routes: [{upstream: api}], client_auth: {mode: require, trust_store: clients}}
      - {names: ["*.silent.test"], certificate: {cert: modes.pem, key: modes.key}, routes: [{upstream: api}], client_auth: {mode: require, trust_store: silent}}
upstreams:
  api: {targets: ["http://$api"]}
`, map[string]string{"api": backend.addr})
	who := caller{"foreign", p.mallory, "client_cert_untrusted"}
	good := caller{"ECDSA", p.alice, "completed"}
	for _, version := range []string{"1.2", "1.3"} {
		calls := []*call{{1, version, who, modeHost{name: "require"}}, {2, version, who, modeHost{name: "silent"}}, {3, version, good, modeHost{name: "require"}}}
		want := []string{"client_cert_missing", "client_cert_untrusted", "completed"}
		t.Run("Java/TLS "+version, func(t *testing.T) {
			need(t, "java")
			t.Setenv("BY_HINTS", "1")
			mark := b.mark()
			listed("Modes.java", modesJava, "java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")(t, b, version, calls)
			for i, c := range calls {
				b.record(t, mark, "kind=handshake", "sni="+c.name(), "reason="+want[i])
			}
		})
		t.Run("Go/TLS "+version, func(t *testing.T) {
			mark := b.mark()
			for i, c := range calls {
				conf := goConfig(p, c.name(), nil)
				conf.Certificates = []tls.Certificate{{Certificate: c.who.cert.chain, PrivateKey: c.who.cert.key}}
				conf.MaxVersion = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}[version]
				conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", b.addr["public"], conf)
				if err == nil {
					fmt.Fprint(conn, c.raw())
					_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
					_, _ = io.Copy(io.Discard, conn)
					conn.Close()
				}
				b.record(t, mark, "kind=handshake", "sni="+c.name(), "reason="+want[i])
			}
		})
	}
}
