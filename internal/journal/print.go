package journal

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// printer stops at the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func (p *printer) field(name, value string) {
	if value != "" {
		p.line("  %-12s %s", name, value)
	}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Line is the entry in one line, for lists.
func (e *Entry) Line() string {
	who := ""
	if len(e.Presented) > 0 {
		who = e.Presented[0].Subject
	}
	if e.Asserted != "" {
		who = e.Asserted
	}
	if who == "" {
		who = "-"
	}
	where := e.Host
	if where == "" {
		where = e.SNI
	}
	if e.Kind == "request" {
		where = strings.TrimSpace(fmt.Sprintf("%s %s%s", e.Method, e.Host, e.Path))
	}
	if where == "" {
		where = e.Listener
	}
	return fmt.Sprintf("%s  %-22s %-28s %-22s %s  %s", stamp(e.Time), e.Ref, e.Reason, e.Client, where, who)
}

// Print writes the whole story for people.
func (e *Entry) Print(w io.Writer) error {
	p := &printer{w: w}
	p.line("%s %s, at %s", e.Kind, e.Ref, stamp(e.Time))
	p.field("listener", e.Listener)
	p.field("client", e.Client)
	if e.Asserted != "" {
		p.field("speaks for", e.Asserted)
	}
	p.field("server name", e.SNI)
	host := e.Host
	if e.ClientAuth != "" {
		host += " (client_auth " + e.ClientAuth + ")"
	}
	p.field("host", strings.TrimSpace(host))
	if e.Method != "" || e.Path != "" {
		p.field("request", fmt.Sprintf("%s %s, status %d", e.Method, e.Path, e.Status))
	}
	if e.TLS != "" {
		text := strings.Join(strings.Fields(e.TLS+" "+e.Cipher+" "+e.Group+" "+e.ALPN), ", ")
		text = strings.Replace(text, "TLS, ", "TLS ", 1)
		if e.Resumed {
			text += ", resumed"
		}
		p.field("tls", text)
	}
	if e.Store != "" {
		p.field("trust store", e.Store+"@"+e.StoreVersion)
	}
	if e.Upstream != "" {
		p.field("upstream", strings.TrimSpace(e.Upstream+" "+e.Target))
	}
	p.field("took", (time.Duration(e.Microsec) * time.Microsecond).String())

	if len(e.Presented) > 0 {
		p.line("\nPRESENTED")
		for i := range e.Presented {
			p.certificate(&e.Presented[i])
		}
		if e.More > 0 {
			p.line("  and %d more", e.More)
		}
		if e.Possession == "not_proven" {
			p.line("  The handshake ended before the client had to prove that it holds the key: anybody could have sent this.")
		}
	}
	if e.AtFault != nil && (len(e.Presented) == 0 || e.AtFault.SHA256 != e.Presented[0].SHA256) {
		p.line("\nAT FAULT")
		p.certificate(e.AtFault)
	}
	if len(e.Tried) > 0 {
		p.line("\nCHAINS TRIED")
		for _, t := range e.Tried {
			end := " -> no CA of the trust store"
			if t.Anchored {
				end = ", which is trusted"
			}
			p.line("  %s%s", strings.Join(t.Subjects, " -> "), end)
			if t.Reason != "" {
				p.line("     %s at depth %d: %s", t.Reason, t.Depth, t.Found)
			}
		}
	}
	if len(e.Evidence) > 0 {
		p.line("\nREVOCATION")
		for _, v := range e.Evidence {
			text := v.Kind + " for depth " + fmt.Sprint(v.Depth) + ": " + v.Source
			if v.Status != "" {
				text += ", answer " + v.Status
			}
			if v.ThisUpdate != nil {
				text += fmt.Sprintf(", %s old", (time.Duration(v.Seconds) * time.Second).String())
			}
			if v.NextUpdate != nil {
				text += ", next due " + stamp(*v.NextUpdate)
			}
			p.line("  %s", text)
		}
	}
	p.line("\n%s: %s", e.Reason, e.Sentence)
	if e.Fault != "" {
		p.field("fault", fmt.Sprintf("%s, stage %s (%s)", e.Fault, e.Stage, e.Docs))
	}
	p.field("expected", e.Expected)
	p.field("found", e.Found)
	p.field("detail", e.Detail)
	p.field("verdict", e.Verdict)
	p.field("shadow", e.Shadow)
	p.field("next", e.Next)
	return p.err
}

func (p *printer) certificate(c *Certificate) {
	p.line("  %d  %s", c.Depth, c.Subject)
	p.line("     issuer %s, serial %s", c.Issuer, c.Serial)
	p.line("     %s to %s, SHA-256 %s", stamp(c.NotBefore), stamp(c.NotAfter), c.SHA256)
	if len(c.Names) > 0 {
		p.line("     %s", strings.Join(c.Names, ", "))
	}
}
