package probe

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// maxShownNames are the CA names that the text shows; JSON has more.
const maxShownNames = 20

// WriteText writes the report for people.
func (r *Report) WriteText(w io.Writer) error {
	t := &textWriter{w: w}
	t.head(r)
	if r.Problem != nil {
		t.line("")
		t.finding(*r.Problem)
		return t.err
	}
	t.protocol(r)
	for i := range r.Chains {
		t.chain(&r.Chains[i])
	}
	t.client(r)
	t.candidates(r.Candidates)
	if len(r.Findings) > 0 {
		t.line("")
		t.line("Findings")
		for _, severity := range []string{severityError, severityWarning, severityNote} {
			for _, f := range r.Findings {
				if f.Severity == severity {
					t.finding(f)
				}
			}
		}
	}
	t.line("")
	t.line("%d connections were made; the server's log has them.", r.Connections)
	return t.err
}

// textWriter writes lines and keeps the first error.
type textWriter struct {
	w   io.Writer
	err error
}

func (t *textWriter) line(format string, args ...any) {
	if t.err == nil {
		_, t.err = fmt.Fprintf(t.w, format+"\n", args...)
	}
}

func (t *textWriter) finding(f Finding) {
	t.line("  %-8s %s", f.Severity, f.Found)
	if f.Next != "" {
		t.line("           next: %s", f.Next)
	}
}

func (t *textWriter) head(r *Report) {
	what := quote(r.Target)
	what = strings.Trim(what, `"`)
	if r.Address != "" && r.Address != r.Target {
		what += " (" + r.Address + ")"
	}
	var how []string
	if r.ServerName != "" {
		how = append(how, "server name "+r.ServerName)
	} else {
		how = append(how, "no server name")
	}
	if r.StartTLS != "" {
		how = append(how, "TLS begun within "+r.StartTLS)
	}
	if r.ProxyProtocol != 0 {
		how = append(how, fmt.Sprintf("after a PROXY header of version %d", r.ProxyProtocol))
	}
	t.line("%s, %s", what, strings.Join(how, ", "))
}

func (t *textWriter) protocol(r *Report) {
	t.line("")
	if c := r.Chosen; c != nil {
		chosen := c.Version + ", " + c.Suite
		if c.Group != "" {
			chosen += ", " + c.Group
		}
		t.line("Offered everything, the server chose %s.", chosen)
	} else if a := r.Refusal; a != nil {
		t.line("Offered everything, the server refused: TLS alert %s (%d): %s", a.Name, a.Code, a.Means)
		t.line("  next: %s", a.Next)
	}
	for _, v := range r.Versions {
		if !v.Accepted {
			t.line("%s  no: %s", v.Version, v.Refused)
			continue
		}
		order := ""
		switch v.Order {
		case "server":
			order = ", the server's order counts"
		case "client":
			order = ", the client's order counts"
		}
		t.line("%s  yes, %s%s", v.Version, plural(len(v.Suites), "suite"), order)
		for _, s := range v.Suites {
			weak := ""
			if s.Weak != "" {
				weak = "  (" + s.Weak + ")"
			}
			t.line("           %s %s%s", s.ID, s.Name, weak)
		}
		if len(v.Groups) > 0 {
			prefers := ""
			if v.Group != "" {
				prefers = "; left the choice, it asks for " + v.Group
			}
			t.line("         groups: %s%s", strings.Join(v.Groups, ", "), prefers)
		}
		if v.DHBits > 0 {
			t.line("         Diffie-Hellman: %d bits", v.DHBits)
		}
		if v.Resumption != "" {
			t.line("         resumption: %s", map[string]string{"none": "no session is offered", "offered": "a session is offered", "resumed": "yes",
				"refused": "a session is offered and not taken back", "unknown": "not known"}[v.Resumption])
		}
		if v.Incomplete != "" {
			t.line("         suites may be missing: %s", v.Incomplete)
		}
	}
	for _, p := range r.ALPN {
		t.line("ALPN %s: %s", p.Name, p.Result)
	}
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func (t *textWriter) chain(c *Chain) {
	t.line("")
	t.line("Certificate (%s, seen with %s)", c.Key, c.Version)
	for i, x := range c.Certificates {
		t.line("  %d  %s", i+1, x.Subject)
		t.line("     issued by %s", x.Issuer)
		t.line("     %s to %s, %s, signed with %s", x.NotBefore.Format(time.DateOnly), x.NotAfter.Format(time.DateOnly), x.Key, x.Signature)
		if i == 0 && len(x.Names) > 0 {
			names := x.Names[:min(len(x.Names), 10)]
			more := ""
			if len(x.Names) > len(names) {
				more = fmt.Sprintf(" and %d more", len(x.Names)-len(names))
			}
			t.line("     for %s%s", strings.Join(names, ", "), more)
			t.line("     SHA-256 %s", x.SHA256)
		}
	}
	switch {
	case c.Trusted == nil:
		t.line("  not judged: there are no CAs to judge it by")
	case *c.Trusted:
		t.line("  trusted by %s, through %s", c.Roots, c.Anchor)
	default:
		t.line("  not trusted by %s: expected %s, found %s", c.Roots, c.Expected, c.Found)
	}
	switch s := c.Staple; {
	case !s.Present:
		t.line("  no OCSP response is stapled")
	case s.Problem != "":
		t.line("  an OCSP response is stapled and cannot be used: %s", s.Problem)
	default:
		until := ""
		if s.NextUpdate != nil {
			until = ", until " + stamp(*s.NextUpdate)
		}
		t.line("  an OCSP response is stapled: %s, as of %s%s", s.Status, stamp(*s.ThisUpdate), until)
	}
	for _, f := range c.Problems {
		t.finding(f)
	}
}

func (t *textWriter) client(r *Report) {
	t.line("")
	t.line("Client certificate: %s", words(r.ClientCertificate))
	for i := range r.ClientAuth {
		a := &r.ClientAuth[i]
		t.line("  %s: %s", a.Version, words(a.Verdict))
		if a.Requested {
			switch {
			case a.CANameCount == 0:
				t.line("    names no CA, so clients choose by themselves; some send nothing then")
			default:
				t.line("    names %s (%d bytes):", plural(a.CANameCount, "CA"), a.CANameBytes)
				shown := a.CANames[:min(len(a.CANames), maxShownNames)]
				for _, n := range shown {
					t.line("      %s", n)
				}
				if more := a.CANameCount - len(shown); more > 0 {
					t.line("      and %d more", more)
				}
			}
			if len(a.Signatures) > 0 {
				t.line("    signatures: %s", strings.Join(a.Signatures, ", "))
			}
			if len(a.Types) > 0 {
				t.line("    kinds: %s", strings.Join(a.Types, ", "))
			}
		}
		t.attempt("without a certificate", a.Without)
		t.attempt("with the one given", a.With)
	}
}

func (t *textWriter) attempt(how string, a *Attempt) {
	if a == nil {
		return
	}
	what := map[string]string{"accepted": "let in", "refused": "refused", "unknown": "no clear answer"}[a.Result]
	t.line("    %s: %s", how, what)
	switch {
	case a.Alert != nil:
		t.line("      TLS alert %s (%d): %s", a.Alert.Name, a.Alert.Code, a.Alert.Means)
		t.line("      next: %s", a.Alert.Next)
	case a.Problem != nil:
		t.line("      %s", a.Problem.Found)
		t.line("      next: %s", a.Problem.Next)
	case a.HTTP != nil:
		by := ""
		if a.HTTP.Server != "" {
			by = " by " + a.HTTP.Server
		}
		t.line("      HTTP %d%s: %s", a.HTTP.Status, by, a.HTTP.Text)
	case a.Spoke != "":
		t.line("      the server said: %s", a.Spoke)
	}
}

func (t *textWriter) candidates(list []Fit) {
	if len(list) == 0 {
		return
	}
	t.line("")
	t.line("Which certificates fit")
	for _, f := range list {
		yes := "no "
		if f.Fits {
			yes = "yes"
		}
		t.line("  %s  %s  %s", yes, f.File, f.Subject)
		for _, c := range f.Checks {
			if c.OK && f.Fits {
				t.line("         %s: %s", c.Name, c.Found)
			} else if !c.OK {
				t.line("         %s: expected %s, found %s", c.Name, c.Expected, c.Found)
				t.line("           next: %s", c.Next)
			}
		}
	}
}
