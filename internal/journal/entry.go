package journal

import (
	"crypto/x509"
	"encoding/json"
	"net"
	"strconv"
	"strings"
	"time"

	"countersign/internal/identity"
	"countersign/internal/reason"
	"countersign/internal/record"
)

// Bounds of one entry.
const (
	maxPresented = 10
	maxTried     = 8
	maxEvidence  = 16
	maxStory     = 32 << 10 // bytes of JSON; TestHostileText
)

// Entry is a handshake, a connection or a request that ended badly, as it is kept. All text in it is printable ASCII and of
// bounded length, whatever certificates and clients said. Its form as JSON is kept: fields may be added.
type Entry struct {
	// ID numbers the entries of a file in the order of their arrival.
	ID   int64     `json:"id"`
	Time time.Time `json:"time"`
	// Kind is handshake, tunnel, ended or request, as in the log.
	Kind string `json:"kind"`
	// Ref is the reference that the log and the client's error page show.
	Ref string `json:"ref"`

	// Reason is a code of docs/reasons.md. Stage, Fault, Sentence, Next and Docs are what that table says of it.
	Reason   string `json:"reason"`
	Stage    string `json:"stage,omitempty"`
	Fault    string `json:"fault,omitempty"`
	Sentence string `json:"sentence,omitempty"`
	Next     string `json:"next,omitempty"`
	Docs     string `json:"docs,omitempty"`
	Expected string `json:"expected,omitempty"`
	Found    string `json:"found,omitempty"`
	Detail   string `json:"detail,omitempty"`
	// Verdict is why the client's certificate was not accepted where it was let in all the same.
	Verdict string `json:"verdict,omitempty"`
	// Shadow is why a stricter setting, not in force, would have refused.
	Shadow string `json:"shadow,omitempty"`

	Listener   string `json:"listener,omitempty"`
	Client     string `json:"client,omitempty"` // address and port
	Local      string `json:"local,omitempty"`
	SNI        string `json:"sni,omitempty"`
	Host       string `json:"host,omitempty"`
	ClientAuth string `json:"client_auth,omitempty"`
	TLS        string `json:"tls,omitempty"`
	Cipher     string `json:"cipher,omitempty"`
	Group      string `json:"group,omitempty"`
	ALPN       string `json:"alpn,omitempty"`
	Resumed    bool   `json:"resumed,omitempty"`
	Microsec   int64  `json:"duration_us"`

	// Method, Path and Status are of a request.
	Method   string `json:"method,omitempty"`
	Path     string `json:"path,omitempty"`
	Status   int    `json:"status,omitempty"`
	Upstream string `json:"upstream,omitempty"`
	Target   string `json:"target,omitempty"`

	Store        string `json:"trust_store,omitempty"`
	StoreVersion string `json:"trust_store_version,omitempty"`
	// Possession says whether the client has proven that it holds the key: proven, or not_proven for a handshake that ended
	// before. Empty for a client without a certificate.
	Possession string `json:"possession,omitempty"`
	// Asserted is the client that a trusted proxy spoke for.
	Asserted string `json:"asserted,omitempty"`

	// AtFault is the certificate at fault.
	AtFault *Certificate `json:"certificate_at_fault,omitempty"`
	// Presented is what the client sent, its own certificate first, and More how many there were beyond those.
	Presented []Certificate `json:"presented,omitempty"`
	More      int           `json:"presented_more,omitempty"`
	Tried     []Tried       `json:"tried,omitempty"`
	Evidence  []Evidence    `json:"evidence,omitempty"`
}

// Certificate describes one.
type Certificate struct {
	// Depth is its place in the chain, 0 the client's own.
	Depth     int       `json:"depth"`
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Serial    string    `json:"serial"`
	SHA256    string    `json:"sha256"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	// Names are its alternative names, told of the client's own and of the one at fault.
	Names []string `json:"names,omitempty"`
}

// Tried is a chain that was tried.
type Tried struct {
	// Subjects are leaf first. Anchored says that the last is a CA of the trust store.
	Subjects []string `json:"subjects"`
	Anchored bool     `json:"anchored"`
	Depth    int      `json:"depth"`
	Reason   string   `json:"reason,omitempty"`
	Found    string   `json:"found,omitempty"`
}

// Evidence is a revocation list or an OCSP answer that counted, and how old it was.
type Evidence struct {
	Kind       string     `json:"kind"`
	Depth      int        `json:"depth"`
	Source     string     `json:"source"`
	Number     string     `json:"number,omitempty"`
	Status     string     `json:"status,omitempty"`
	ThisUpdate *time.Time `json:"this_update,omitempty"`
	NextUpdate *time.Time `json:"next_update,omitempty"`
	// Seconds is its age at the time of the verdict.
	Seconds int64 `json:"age_s,omitempty"`
}

func certificate(c *x509.Certificate, depth int, full bool) Certificate {
	out := Certificate{Depth: depth, Subject: name(c.RawSubject), Issuer: name(c.RawIssuer), Serial: plain(identity.SerialHex(c.SerialNumber), 64),
		SHA256: fingerprint(c), NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC()}
	if full {
		out.Names = names(c)
	}
	return out
}

func (e *Entry) present(certs []*x509.Certificate) {
	e.More = max(len(certs)-maxPresented, 0)
	for i, c := range certs[:len(certs)-e.More] {
		e.Presented = append(e.Presented, certificate(c, i, i == 0))
	}
}

// ofHandshake is the entry of a handshake, or of a connection.
func ofHandshake(h *record.Handshake, now time.Time) *Entry {
	e := &Entry{Time: now.UTC(), Kind: "handshake", Ref: h.Ref, Reason: h.Reason.String(), Listener: plain(h.Listener, maxText),
		Client: plain(h.Client, maxText), Local: plain(h.Local, maxText), SNI: plain(h.SNI, maxHost), Host: plain(h.Host, maxHost), ClientAuth: h.Policy,
		TLS: h.Version, Cipher: h.Cipher, Group: h.Group, ALPN: plain(h.ALPN, maxText), Resumed: h.Resumed, Microsec: h.Duration.Microseconds(),
		Upstream: plain(h.Upstream, maxText), Target: plain(h.TargetAddr, maxText), Store: plain(h.Store, maxText), StoreVersion: h.StoreVer,
		Expected: plain(h.Expected, maxText), Found: plain(h.Found, maxText), Detail: plain(h.Detail, maxText)}
	switch h.Kind {
	case record.Tunnel:
		e.Kind = "tunnel"
	case record.Ended:
		e.Kind = "ended"
	}
	if h.Verdict != reason.Unset {
		e.Verdict = h.Verdict.String()
	}
	if h.Shadow != reason.Unset {
		e.Shadow = h.Shadow.String()
	}
	presented := h.Presented
	if len(presented) == 0 && h.Leaf != nil {
		presented = []*x509.Certificate{h.Leaf}
	}
	e.present(presented)
	if len(presented) > 0 {
		// A refused handshake ends before the client had to prove that it holds the key (crypto/tls calls us first).
		e.Possession = "not_proven"
		if _, known := h.Identity.Identity(); known || h.Proven {
			e.Possession = "proven"
		}
	}
	if h.At != nil {
		at := certificate(h.At, h.Depth, true)
		e.AtFault = &at
	}
	for _, t := range h.Tried[:min(len(h.Tried), maxTried)] {
		out := Tried{Anchored: t.Anchored, Depth: t.Depth, Found: plain(t.Found, maxText)}
		if t.Rule != reason.Unset {
			out.Reason = t.Rule.String()
		}
		for _, c := range t.Chain[:min(len(t.Chain), maxPresented)] {
			out.Subjects = append(out.Subjects, name(c.RawSubject))
		}
		e.Tried = append(e.Tried, out)
	}
	for _, v := range h.Evidence[:min(len(h.Evidence), maxEvidence)] {
		out := Evidence{Kind: v.Kind, Depth: v.Depth, Source: plain(v.Source, maxText), Number: plain(v.Number, 64), Status: v.Status,
			ThisUpdate: moment(v.ThisUpdate), NextUpdate: moment(v.NextUpdate)}
		if out.ThisUpdate != nil {
			out.Seconds = int64(now.Sub(v.ThisUpdate).Seconds())
		}
		e.Evidence = append(e.Evidence, out)
	}
	return e
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// ofRequest is the entry of a request. What is the same for all requests of a connection is in its fragment.
func ofRequest(r *record.Request, ref string, fragment []byte, now time.Time) *Entry {
	var shared struct {
		Listener string          `json:"listener"`
		Client   string          `json:"client"`
		Subject  string          `json:"client_subject"`
		Via      json.RawMessage `json:"via"`
	}
	if len(fragment) > 0 {
		// A fragment is of this program's making; one that is not as expected leaves these fields out.
		_ = json.Unmarshal(append(append([]byte{'{'}, fragment[1:]...), '}'), &shared)
	}
	e := &Entry{Time: now.UTC(), Kind: "request", Ref: ref + "-" + strconv.FormatUint(r.Serial, 10), Reason: r.Reason.String(),
		Listener: plain(shared.Listener, maxText), Client: plain(shared.Client, maxText), Host: plain(r.Host, maxHost),
		Method: plain(r.Method, 32), Path: plain(r.Path, maxPath), Status: r.Status, Upstream: plain(r.Upstream, maxText), Target: plain(r.Target, maxText),
		Microsec: now.Sub(r.Start).Microseconds(), Expected: plain(r.Expected, maxText), Found: plain(r.Found, maxText), Detail: plain(r.Detail, maxText)}
	if r.Client != "" {
		e.Client = plain(r.Client, maxText)
	}
	if shared.Via != nil {
		e.Asserted = plain(shared.Subject, maxName)
	}
	if r.Shadow != reason.Unset {
		e.Shadow = r.Shadow.String()
	}
	if c := r.Conn; c != nil {
		e.Local, e.SNI, e.TLS, e.Cipher, e.Resumed = plain(c.Local, maxText), plain(c.SNI, maxHost), c.Version, c.Cipher, c.Resumed
		if e.Client == "" {
			e.Client = plain(c.Client, maxText)
		}
	}
	if e.present(r.Presented); len(r.Presented) > 0 {
		e.Possession = "proven" // there are no requests before that
	}
	return e
}

// story is the entry as it is kept.
func (e *Entry) story() []byte {
	b, err := json.Marshal(e)
	for cut := 0; err == nil && len(b) > maxStory && cut < 3; cut++ { // what says least goes first
		switch cut {
		case 0:
			e.Tried = e.Tried[:min(len(e.Tried), 3)]
		case 1:
			e.More += len(e.Presented) - min(len(e.Presented), 4)
			e.Presented = e.Presented[:min(len(e.Presented), 4)]
		default:
			e.Tried, e.Evidence = nil, nil
		}
		b, err = json.Marshal(e)
	}
	if err != nil {
		return nil // every field can be marshalled
	}
	return b
}

// tell fills in what the table of reasons says.
func (e *Entry) tell() {
	r, known := reason.Parse(e.Reason)
	if !known {
		return // of a version with other reasons
	}
	row := r.Row()
	e.Stage, e.Fault, e.Sentence, e.Next, e.Docs = string(row.Stage), string(row.Fault), row.Sentence, row.Next, "docs/reasons.md#"+string(row.Stage)
}

// address is the client's address without its port.
func address(client string) string {
	host, _, err := net.SplitHostPort(client)
	if err != nil {
		return client
	}
	host, _, _ = strings.Cut(host, "%") // the zone is of this machine
	return host
}
