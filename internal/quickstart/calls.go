package quickstart

import (
	"crypto/tls"
	"fmt"
	"io"
	"strings"

	"countersign/internal/reason"
)

// place is where a call goes.
type place uint8

const (
	toPublic place = iota
	toPassthrough
	toHTTP // backend 1, around Countersign
	toMTLS // backend 3, around Countersign
)

// call is one thing to try, with what has to happen. It is run by --check, and printed as a curl line otherwise.
type call struct {
	title   string
	place   place
	name    string // server name (SNI), and Host unless host is set
	host    string
	client  string // whose certificate is shown; empty for none
	headers []string
	plain   bool // http:// to a TLS port
	expect  expectation
}

// expectation is how a call ends.
type expectation struct {
	// status is the HTTP status; 0 for a connection that is refused.
	status int
	// reason is what Countersign's record says; Unset for calls that go around it.
	reason reason.Reason
	// backend is what the TLS handshake with backend 3 came to, where the client speaks with it directly or passed through.
	backend reason.Reason
	// who, tlsClient and from are what the answering backend saw: the client, the certificate shown to itself, its name.
	who, tlsClient, from string
}

// alert is what the client is told when it is refused: the name of the TLS alert (RFC 8446 section 6).
func (e expectation) alert(version uint16) string {
	if e.status != 0 {
		return ""
	}
	why := e.reason
	if e.backend != reason.Unset {
		why = e.backend
	}
	switch {
	case why == reason.SNIUnknown:
		return "unrecognized name"
	case why != reason.ClientCertMissing:
		return "bad certificate"
	case version == tls.VersionTLS12:
		return "handshake failure" // certificate_required is new in TLS 1.3
	}
	return "certificate required"
}

// clients are who calls, and what a host that requires a certificate makes of them.
var clients = []struct {
	name   string // empty: without a certificate
	reason reason.Reason
}{
	{"alice", reason.Completed},
	{"dave", reason.Completed},
	{"", reason.ClientCertMissing},
	{"bob", reason.ClientCertRevoked},
	{"carol", reason.ClientCertExpired},
	{"mallory", reason.ClientCertUntrusted},
	{"server-only", reason.ClientCertEKU},
}

// terms are the field's words, each with the host that shows it.
var terms = []struct {
	term, name, from, tlsClient string
	optional                    bool // a certificate may be left out
}{
	{"TLS offload, front-end mTLS", "offload.test", "http", "", false},
	{"TLS bridging, front-end mTLS", "bridging.test", "https", "", false},
	{"chained mTLS", "chained.test", "mtls", edgeName, false},
	{"back-end mTLS", "backend.test", "mtls", edgeName, true},
	{"TLS passthrough", "passthrough.test", "mtls", "", false},
}

// calls are all calls.
func calls() []call {
	var all []call
	for _, t := range terms {
		for _, who := range clients {
			c := call{title: t.term, name: t.name, client: who.name, expect: expectation{reason: who.reason}}
			good := expectation{status: 200, reason: who.reason, who: who.name, from: t.from, tlsClient: t.tlsClient}
			switch {
			case t.optional && who.name == "":
				c.expect = good
				c.expect.reason, c.expect.who = reason.Completed, nobody
			case who.reason == reason.Completed:
				c.expect = good
			}
			if t.name == "passthrough.test" { // there the backend decides, by the same rules
				c.place, c.expect.reason, c.expect.backend, c.expect.tlsClient = toPassthrough, reason.TunnelClosed, who.reason, ""
				if c.expect.status != 0 {
					c.expect.tlsClient = who.name
				}
			}
			all = append(all, c)
		}
	}
	forged := "X-Amzn-Mtls-Clientcert-Subject: CN=alice"
	return append(all,
		call{title: "forged header is removed", name: "offload.test", client: "dave", headers: []string{forged},
			expect: expectation{status: 200, reason: reason.Completed, who: "dave", from: "http"}},
		call{title: "forged header is removed", name: "backend.test", headers: []string{forged},
			expect: expectation{status: 200, reason: reason.Completed, who: nobody, from: "mtls", tlsClient: edgeName}},
		call{title: "unknown server name", name: "unknown.test", client: "alice", expect: expectation{reason: reason.SNIUnknown}},
		call{title: "unknown name, passthrough", place: toPassthrough, name: "unknown.test", client: "alice", expect: expectation{reason: reason.SNIUnknown}},
		call{title: "server name and Host differ", name: "offload.test", host: "backend.test", client: "alice",
			expect: expectation{status: 421, reason: reason.PolicyMismatch}},
		call{title: "plain HTTP to the TLS port", name: "offload.test", plain: true,
			expect: expectation{status: 400, reason: reason.PlainHTTPOnTLS}},
		call{title: "past Countersign: forgery believed", place: toHTTP, name: "offload.test", plain: true, headers: []string{forged},
			expect: expectation{status: 200, who: "alice", from: "http"}},
		call{title: "past Countersign: refused", place: toMTLS, name: "passthrough.test", headers: []string{forged},
			expect: expectation{backend: reason.ClientCertMissing}},
	)
}

// certificateOf names the client for people.
func (c call) certificateOf() string {
	if c.client == "" {
		return "no certificate"
	}
	return c.client
}

func (c call) port(p ports) int {
	switch c.place {
	case toPassthrough:
		return p.passthrough
	case toHTTP:
		return p.http
	case toMTLS:
		return p.mtls
	}
	return p.public
}

// versions are the TLS versions a call is made with; one that is not TLS is made once.
func (c call) versions() []uint16 {
	if c.plain {
		return []uint16{0}
	}
	return []uint16{tls.VersionTLS12, tls.VersionTLS13}
}

// curl is the call as a line for a shell that stands in D.
func (c call) curl(p ports, version uint16) string {
	port := c.port(p)
	line := "curl -sS"
	if version == tls.VersionTLS12 {
		line += " --tls-max 1.2"
	}
	line += fmt.Sprintf(" --resolve %s:%d:127.0.0.1", c.name, port)
	scheme := "http"
	if !c.plain {
		scheme = "https"
		line += " --cacert pki/root-ca.pem"
	}
	if c.client != "" {
		line += fmt.Sprintf(" --cert pki/%s.pem --key pki/%[1]s.key", c.client)
	}
	if c.host != "" {
		line += " -H 'Host: " + c.host + "'"
	}
	for _, h := range c.headers {
		line += " -H '" + h + "'"
	}
	return line + fmt.Sprintf(" %s://%s:%d/hello", scheme, c.name, port)
}

// curlAnswer is what curl makes of it: its exit code, and texts that stand in what it prints, on standard output where
// the code is 0 and on standard error otherwise. The words are OpenSSL's.
func (c call) curlAnswer(version uint16) (code int, texts []string) {
	e := c.expect
	if e.status == 200 {
		texts = []string{fmt.Sprintf("%q: %q", "backend", e.from), fmt.Sprintf("%q: %q", "who", e.who)}
		if e.tlsClient != "" {
			texts = append(texts, fmt.Sprintf("%q: %q", "tls_client", e.tlsClient))
		}
		return 0, texts
	}
	switch e.reason {
	case reason.PolicyMismatch:
		return 0, []string{"421 policy_mismatch"}
	case reason.PlainHTTPOnTLS:
		return 0, []string{"400 this port speaks TLS: use https://"}
	}
	// TLS 1.3 has ended for the client when its certificate is looked at, so curl meets the alert while reading (56);
	// in TLS 1.2 it is part of the handshake (35).
	alert := e.alert(version)
	code = 56
	if version == tls.VersionTLS12 || alert == "unrecognized name" {
		code = 35
	}
	switch alert {
	case "bad certificate", "handshake failure":
		return code, []string{"sslv3 alert " + alert}
	case "certificate required":
		return code, []string{"tlsv13 alert " + alert}
	}
	return code, []string{"tlsv1 " + alert}
}

// printCalls prints calls as lines to paste, each with its answer per TLS version.
func printCalls(w io.Writer, p ports, list []call) {
	title := ""
	for _, c := range list {
		if c.title != title {
			title = c.title
			fmt.Fprintf(w, "\n# %s\n", title)
		}
		fmt.Fprintf(w, "# %s: %s\n", c.certificateOf(), c.outcome())
		if c.plain {
			fmt.Fprintf(w, "%s\n%s", c.curl(p, 0), answerLine(c, 0, ""))
			continue
		}
		fmt.Fprintln(w, c.curl(p, tls.VersionTLS13))
		v12, v13 := answerLine(c, tls.VersionTLS12, "TLS 1.2: "), answerLine(c, tls.VersionTLS13, "TLS 1.3: ")
		if c.expect.status != 0 {
			fmt.Fprint(w, answerLine(c, tls.VersionTLS13, ""))
			continue
		}
		fmt.Fprint(w, v13, v12)
	}
}

func answerLine(c call, version uint16, prefix string) string {
	code, texts := c.curlAnswer(version)
	return fmt.Sprintf("#   %sexit %d, %s\n", prefix, code, strings.Join(texts, ", "))
}

// outcome says in a few words how the call ends.
func (c call) outcome() string {
	e := c.expect
	switch {
	case e.status == 200:
		return "answered"
	case e.status != 0:
		return fmt.Sprintf("status %d, %s", e.status, e.reason)
	case e.backend != reason.Unset:
		return "refused by the backend, " + e.backend.String()
	}
	return "refused, " + e.reason.String()
}

// introduction are the calls that are printed at the start: every client at the first host, and of the others who shows
// the difference. The rest is in callsFile.
func introduction() []call {
	var out []call
	for _, c := range calls() {
		switch {
		case c.title == terms[0].term, c.client == "alice", c.client == "", len(c.headers) > 0:
			out = append(out, c)
		}
	}
	return out
}

const callsFile = "calls.txt"
