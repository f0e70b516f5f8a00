package probe

import (
	"crypto/tls"
	"time"
)

// Report is what was found out about a server. Its JSON is documented in docs/probe.md; within a Format, fields are
// added and never change their meaning. Every text from the server is escaped and bounded.
type Report struct {
	Format        int       `json:"format"` // 1
	Target        string    `json:"target"`
	Address       string    `json:"address,omitempty"`     // the one that answered; empty if none did
	ServerName    string    `json:"server_name,omitempty"` // that was sent
	StartTLS      string    `json:"starttls,omitempty"`
	ProxyProtocol uint8     `json:"proxy_protocol,omitempty"`
	Started       time.Time `json:"started"`
	// Outcome is tls, not_tls or unreachable; of the latter two Problem says more, and all else is empty.
	Outcome string   `json:"outcome"`
	Problem *Finding `json:"problem,omitempty"`
	// Refusal is the alert with which a hello was refused that offered everything.
	Refusal *AlertInfo `json:"refusal,omitempty"`
	// Chosen is what came of offering everything.
	Chosen   *Chosen   `json:"chosen,omitempty"`
	Versions []Version `json:"versions"`
	// ALPN has an entry for each application protocol that was offered alone.
	ALPN   []Protocol `json:"alpn,omitempty"`
	Chains []Chain    `json:"chains"`
	// ClientCertificate is what the server wants of clients in the newest version it speaks: not_requested, optional,
	// required, requested (it is not known whether it is required) or unknown.
	ClientCertificate string       `json:"client_certificate,omitempty"`
	ClientAuth        []ClientAuth `json:"client_auth"`
	// Candidates are the certificates that were compared with what the server asks for.
	Candidates  []Fit     `json:"candidates,omitempty"`
	Findings    []Finding `json:"findings"`
	Connections int       `json:"connections"`
}

// The outcomes of a probe.
const (
	OutcomeTLS         = "tls"
	OutcomeNotTLS      = "not_tls"
	OutcomeUnreachable = "unreachable"
)

// What a server wants of clients.
const (
	certNotRequested = "not_requested"
	certOptional     = "optional"
	certRequired     = "required"
	certRequested    = "requested"
	certUnknown      = "unknown"
)

// AlertInfo is an alert that was received, in words.
type AlertInfo struct {
	Code  uint8  `json:"code"`
	Name  string `json:"name"`
	Means string `json:"means"`
	Next  string `json:"next"`
}

func alertInfo(a Alert) *AlertInfo { return &AlertInfo{uint8(a), a.Name(), a.Means(), a.Next()} }

// Chosen is what a server chose.
type Chosen struct {
	Version string `json:"version"`
	Suite   string `json:"suite"`
	Group   string `json:"group,omitempty"`
}

// Version is what a server does when one version alone is offered.
type Version struct {
	Version  string `json:"version"`
	Accepted bool   `json:"accepted"`
	// Refused says how, where it was not accepted.
	Refused string `json:"refused,omitempty"`
	// Suites are in the order in which the server chose them, when all that were left were offered.
	Suites []Suite `json:"suites,omitempty"`
	// Order is server if it chose by its own preference, client if by that of the client; empty if not known.
	Order  string   `json:"order,omitempty"`
	Groups []string `json:"groups,omitempty"`
	// Group is the one it asks for when the client sends no key share (TLS 1.3).
	Group  string `json:"group,omitempty"`
	DHBits int    `json:"dh_bits,omitempty"`
	// Resumption is none, offered (a session was, and was not tried), resumed, refused (offered, and not resumed) or
	// unknown.
	Resumption string `json:"resumption,omitempty"`
	// Incomplete says why the list of suites may lack some.
	Incomplete string `json:"incomplete,omitempty"`

	id uint16
	ok *flight // what came of offering this version alone
}

// Suite is a cipher suite that a server accepts.
type Suite struct {
	ID   string `json:"id"` // hexadecimal, as in the registry
	Name string `json:"name"`
	Weak string `json:"weak,omitempty"` // why it should not be accepted any more

	id uint16
}

// Protocol is an application protocol and what a server does when it is offered alone.
type Protocol struct {
	Name string `json:"name"`
	// Result is accepted, ignored (no protocol was chosen), refused or unknown.
	Result string `json:"result"`
}

// Chain is a chain of certificates that a server showed.
type Chain struct {
	// Version is the one with which it was seen first, Key the kind of the server's key.
	Version      string        `json:"version"`
	Key          string        `json:"key"`
	Certificates []Certificate `json:"certificates"`
	// Trusted is judged by Roots as a target of our own would be; nil without any.
	Trusted  *bool  `json:"trusted,omitempty"`
	Roots    string `json:"roots,omitempty"`
	Anchor   string `json:"anchor,omitempty"`
	Reason   string `json:"reason,omitempty"` // a code of docs/reasons.md
	Expected string `json:"expected,omitempty"`
	Found    string `json:"found,omitempty"`
	// Problems are of the chain itself, whoever judges it.
	Problems []Finding `json:"problems"`
	Staple   Staple    `json:"ocsp_staple"`
}

// Certificate is one of a chain.
type Certificate struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Serial    string    `json:"serial"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Names     []string  `json:"names,omitempty"` // alternative names, at most 50
	Key       string    `json:"key"`
	Signature string    `json:"signature"`
	SHA256    string    `json:"sha256"`
	CA        bool      `json:"ca"`
}

// Staple is the OCSP response that came with a chain.
type Staple struct {
	Present bool `json:"present"`
	// Status is good, revoked or unknown, and empty if the response could not be believed, of which Problem tells.
	Status     string     `json:"status,omitempty"`
	ThisUpdate *time.Time `json:"this_update,omitempty"`
	NextUpdate *time.Time `json:"next_update,omitempty"`
	Problem    string     `json:"problem,omitempty"`
}

// ClientAuth is what a server asks of clients in one version.
type ClientAuth struct {
	Version   string `json:"version"`
	Requested bool   `json:"requested"`
	// Verdict is one of those of Report.ClientCertificate.
	Verdict string `json:"verdict"`
	// Types are the kinds of certificates that TLS 1.2 and older name.
	Types      []string `json:"types,omitempty"`
	Signatures []string `json:"signatures,omitempty"`
	// CANames are the distinguished names that are hinted at, at most 200; CANameCount and CANameBytes are of all.
	CANames     []string `json:"ca_names"`
	CANameCount int      `json:"ca_name_count"`
	CANameBytes int      `json:"ca_name_bytes"`
	// Without is what happened without a certificate, With what happened with the one given.
	Without *Attempt `json:"without,omitempty"`
	With    *Attempt `json:"with,omitempty"`

	id      uint16
	names   [][]byte
	schemes []tls.SignatureScheme
}

// Attempt is one handshake to its end, and what came after.
type Attempt struct {
	// Handshake is completed or failed, as the client sees it. In TLS 1.3 it is completed before the server has looked at
	// the certificate.
	Handshake string `json:"handshake"`
	// Result is accepted, refused, or unknown.
	Result string     `json:"result"`
	Alert  *AlertInfo `json:"alert,omitempty"`
	// Problem is how it failed without an alert.
	Problem *Finding `json:"problem,omitempty"`
	// HTTP is the answer to the request, if one was sent and answered.
	HTTP *HTTPAnswer `json:"http,omitempty"`
	// Spoke is what the server said by itself, if it did.
	Spoke string `json:"spoke,omitempty"`
	Suite string `json:"suite,omitempty"`
	Group string `json:"group,omitempty"`
	ALPN  string `json:"alpn,omitempty"`
}

// HTTPAnswer is the beginning of an HTTP response.
type HTTPAnswer struct {
	Status int    `json:"status"`
	Server string `json:"server,omitempty"`
	Text   string `json:"text,omitempty"` // the title, or the first line, of the body
}

// Fit is a certificate compared with what the server asks for.
type Fit struct {
	File    string `json:"file"`
	Subject string `json:"subject,omitempty"`
	Issuer  string `json:"issuer,omitempty"`
	Fits    bool   `json:"fits"`
	// Checks has one line for each thing that was compared.
	Checks []Check `json:"checks"`
}

// Check is one thing about a certificate that decides whether a server can take it.
type Check struct {
	Name     string `json:"name"` // issuer, purpose, key, dates, kind, file
	OK       bool   `json:"ok"`
	Expected string `json:"expected"`
	Found    string `json:"found"`
	Next     string `json:"next,omitempty"`
}
