// Package diagnose tells why a client is let in or refused, check by check: from a certificate and a configuration, or
// from a connection to a server of anybody's. It decides nothing. Verdicts about certificates are those of package
// trust, permits those of package policy; what is told beside them is for people.
package diagnose

import (
	"crypto/sha256"
	"crypto/x509"
	"time"

	"countersign/internal/reason"
	"countersign/internal/snapshot"
	"countersign/internal/trust"
)

// Outcome is what became of a question.
type Outcome string

// The outcomes.
const (
	Accepted Outcome = "accepted"
	Refused  Outcome = "refused"
	// Undecided is a question whose answer depends on something that is not known here: a list or an answer that only a
	// running program has, or a decision that another program makes.
	Undecided Outcome = "undecided"
)

// Result is how a check ended.
type Result string

// The results.
const (
	Good Result = "ok"
	Bad  Result = "fail"
	// Odd is a check that fails and has no influence here, or something that will matter soon.
	Odd Result = "warn"
	// Note is no check but a fact that the verdict rests on.
	Note Result = "info"
)

// Sections of a report, in their order.
const (
	SectionConnection  = "connection"
	SectionCertificate = "certificate"
	SectionPath        = "path"
	SectionRequest     = "request"
	SectionServer      = "server"
)

// Step is one check as a report tells it. All text in it is escaped and of bounded length.
type Step struct {
	Section string `json:"section"`
	// Store is the trust store that asks, where one does.
	Store string `json:"store,omitempty"`
	// Check is the name of the check: those of package trust, and mode, listener, host, hints, route and others of this one.
	Check  string `json:"check"`
	Result Result `json:"result"`
	// About is the certificate's subject and Depth its place in the chain, the client's own being 0.
	About    string `json:"about,omitempty"`
	Depth    int    `json:"depth"`
	Reason   string `json:"reason,omitempty"`
	Expected string `json:"expected,omitempty"`
	Found    string `json:"found,omitempty"`
	// Source is the file or URL that the evidence came from.
	Source string `json:"source,omitempty"`
}

// Certificate is one of those that the client presents.
type Certificate struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Serial    string    `json:"serial"`
	SHA256    string    `json:"sha256"`
	Key       string    `json:"key"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Names     []string  `json:"names,omitempty"`
	CA        bool      `json:"ca"`
}

// Path is one way from the client's certificate upwards that was tried.
type Path struct {
	Store    string   `json:"store"`
	Subjects []string `json:"subjects"`
	// Anchored says that it leads to a CA of the trust store, and Anchor which file or URL that CA is of.
	Anchored bool   `json:"anchored"`
	Anchor   string `json:"anchor,omitempty"`
	Good     bool   `json:"good"`
	// Used says that the verdict is about this path.
	Used bool `json:"used"`
	// Fails are the checks of it that fail.
	Fails []Step `json:"fails,omitempty"`
}

// Report is the answer to a question. Its form as JSON is kept: fields may be added.
type Report struct {
	Outcome Outcome `json:"outcome"`
	// Reason is a code of docs/reasons.md, empty for an acceptance, and Docs where it stands there.
	Reason string `json:"reason,omitempty"`
	Docs   string `json:"docs,omitempty"`
	Stage  string `json:"stage,omitempty"`
	Fault  string `json:"fault,omitempty"`
	// Status is what the client gets over HTTP, 0 for nothing.
	Status int `json:"status,omitempty"`
	// Sentence says what happened, and Expected and Found the evidence.
	Sentence string `json:"sentence"`
	Expected string `json:"expected,omitempty"`
	Found    string `json:"found,omitempty"`
	// Next is the one thing to do about it.
	Next string `json:"next,omitempty"`

	Asked        Asked         `json:"asked"`
	Certificates []Certificate `json:"certificates,omitempty"`
	Steps        []Step        `json:"steps"`
	Paths        []Path        `json:"paths,omitempty"`
	// MorePaths says that there are more paths than were looked at.
	MorePaths bool `json:"more_paths,omitempty"`

	// Queries are questions to OCSP responders, and Points places of revocation lists, whose answers could change the
	// report.
	Queries []*trust.Query `json:"-"`
	Points  []trust.Point  `json:"-"`
}

// Asked is what the report is about.
type Asked struct {
	At       time.Time `json:"at"`
	Listener string    `json:"listener,omitempty"`
	Address  string    `json:"address,omitempty"`
	Host     string    `json:"host,omitempty"`
	Method   string    `json:"method,omitempty"`
	Path     string    `json:"path,omitempty"`
	// Store is the trust store of the host with its version.
	Store string `json:"store,omitempty"`
}

// Setup is the configuration that a question is about, and what is known beside it.
type Setup struct {
	Snapshot *snapshot.Snapshot
	Now      time.Time
	// Places says of which file or URL CAs and revocation lists are, by SHA-256 of their DER.
	Places map[[sha256.Size]byte]string
	// URLs are those of revocation lists.
	URLs []URL
	// Fetched says that URLs were asked, and OCSPProblems what went wrong with responders.
	Fetched      bool
	OCSPProblems []string
}

// URL is where a revocation list is fetched from.
type URL struct {
	URL string
	// Checked is when it last gave a list, Problem what it gives now, and List the SHA-256 of its list; zero for none.
	Checked time.Time
	Problem string
	List    *[sha256.Size]byte
}

// place is where a certificate comes from; empty if that is not known.
func (s *Setup) place(c *x509.Certificate) string { return show(s.Places[sha256.Sum256(c.Raw)]) }

func (r *Report) step(s Step) { r.Steps = append(r.Steps, s) }

// end gives the report its verdict; Unset is an acceptance.
func (r *Report) end(why reason.Reason, expected, found, next string) {
	if why == reason.Unset {
		r.Outcome, r.Sentence = Accepted, "the client is let in"
		return
	}
	row := why.Row()
	r.Outcome, r.Reason, r.Stage, r.Fault, r.Status = Refused, row.Code, string(row.Stage), string(row.Fault), row.Status
	r.Docs = "docs/reasons.md#" + string(row.Stage)
	r.Sentence, r.Expected, r.Found = row.Sentence, expected, found
	if r.Next = next; next == "" {
		r.Next = row.Next
	}
}
