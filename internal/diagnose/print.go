package diagnose

import (
	"cmp"
	"fmt"
	"io"
	"strings"
)

// Print writes the report for people. Checks that pass are one line each.
func (r *Report) Print(w io.Writer) error {
	p := &printer{w: w}
	a := r.Asked
	what := a.Host
	if a.Path != "" {
		what = cmp.Or(a.Method, "GET") + " " + a.Host + a.Path
	}
	p.line("%s, at %s", what, stamp(a.At))
	if len(r.Certificates) > 0 {
		p.line("\nPRESENTED")
	}
	for i, c := range r.Certificates {
		kind := ""
		if c.CA {
			kind = ", a CA"
		}
		p.line("  %d  %s%s", i, c.Subject, kind)
		p.line("     issuer %s, serial %s", c.Issuer, c.Serial)
		p.line("     %s to %s, %s, SHA-256 %s", stamp(c.NotBefore), stamp(c.NotAfter), c.Key, c.SHA256)
		if len(c.Names) > 0 {
			p.line("     %s", strings.Join(c.Names, ", "))
		}
	}
	section := ""
	for i := range r.Steps {
		s := &r.Steps[i]
		if s.Section != section {
			if section == SectionPath || section == "route "+SectionPath {
				r.printPaths(p, r.Steps[i-1].Store)
			}
			section = s.Section
			p.line("\n%s", title(s))
		}
		p.step(s)
	}
	if section == SectionPath || section == "route "+SectionPath {
		r.printPaths(p, r.Steps[len(r.Steps)-1].Store)
	}
	p.line("\n%s: %s", strings.ToUpper(string(r.Outcome)), r.Sentence)
	if r.Reason != "" {
		status := ""
		if r.Status != 0 {
			status = fmt.Sprintf(", status %d", r.Status)
		}
		fault := ""
		if r.Fault != "" {
			fault = ", fault: " + r.Fault
		}
		p.line("  reason:   %s (%s)%s%s", r.Reason, r.Docs, fault, status)
	}
	if r.Expected != "" {
		p.line("  expected: %s", r.Expected)
	}
	if r.Found != "" {
		p.line("  found:    %s", r.Found)
	}
	if r.Next != "" {
		p.line("  next:     %s", r.Next)
	}
	return p.err
}

func title(s *Step) string {
	text := strings.ToUpper(s.Section)
	if strings.HasSuffix(s.Section, SectionPath) {
		text += " to trust store " + s.Store
	}
	return text
}

// printPaths lists the paths to a trust store when there is more to tell than the one above.
func (r *Report) printPaths(p *printer, store string) {
	var paths []Path
	for _, path := range r.Paths {
		if path.Store == store {
			paths = append(paths, path)
		}
	}
	if len(paths) == 0 || len(paths) == 1 && !paths[0].Anchored && !r.MorePaths {
		return // all of it stands above
	}
	more := ""
	if r.MorePaths {
		more = " and more that were not looked at"
	}
	p.line("\nPATHS TRIED: %d%s", len(paths), more)
	for i, path := range paths {
		end := "leads nowhere"
		if path.Anchored {
			end = "reaches the trust store"
			if path.Anchor != "" {
				end += " (" + path.Anchor + ")"
			}
		}
		p.line("  %d  %s: %s", i+1, strings.Join(path.Subjects, " <- "), end)
		for j := range path.Fails {
			if path.Used {
				break // they stand above
			}
			f := &path.Fails[j]
			p.line("     fails: %s: expected %s; found %s", f.Check, f.Expected, f.Found)
		}
	}
}

type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func (p *printer) step(s *Step) {
	about := ""
	if s.About != "" {
		about = " of " + s.About
	}
	if s.Check == "value" {
		p.line("  %-4s  %s = %s", s.Result, s.About, s.Found)
		return
	}
	from := ""
	if s.Source != "" {
		from = " (" + s.Source + ")"
	}
	if s.Result == Good || s.Result == Note {
		text := s.Found
		if text == "so it is" || text == "so they are" {
			text = s.Expected
		}
		if s.Check == "allow" {
			text = s.Expected + " is " + s.Found
		}
		p.line("  %-4s  %s%s: %s%s", s.Result, s.Check, about, text, from)
		return
	}
	p.line("  %-4s  %s%s", strings.ToUpper(string(s.Result)), s.Check, about)
	if s.Expected != "" {
		p.line("          expected %s", s.Expected)
	}
	p.line("          found    %s%s", s.Found, from)
}
