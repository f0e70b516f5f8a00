package snapshot

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"countersign/internal/policy"
)

// Describe prints what is in force: for each listener and host, who is asked for a certificate and what happens to whom.
func (s *Snapshot) Describe(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "LISTENER\tADDRESS\tPROTOCOL\tHOST\tCLIENT AUTH\tTRUST STORE\tWHO GETS IN")
	for _, name := range keys(s.Listeners) {
		l := s.Listeners[name]
		if l.Protocol == TCP {
			fmt.Fprintf(t, "%s\t%s\t%s\t-\t-\t-\t%s\n", name, l.Address, l.Protocol, l.who())
		}
		for _, h := range l.Hosts {
			names := strings.Join(h.Names, " ")
			if l.fallback == h {
				names += " (default)"
			}
			mode, store := h.Auth.Mode.String(), "-"
			if h.Auth.Store != nil {
				store = h.Auth.Store.Name() + "@" + h.Auth.Store.Version()[:8]
			}
			if l.Protocol == Passthrough {
				mode = "-"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", name, l.Address, l.Protocol, names, mode, store, h.admits(l))
		}
		if l.Protocol != HTTP && l.Protocol != TCP && l.fallback == nil {
			fmt.Fprintf(t, "%s\t\t\t(no or another name)\t-\t-\tnobody: unrecognized_name\n", name)
		}
	}
	return t.Flush()
}

// admits says in words who may use the host.
func (h *Host) admits(l *Listener) string {
	end := "alert"
	switch {
	case h.Auth.Reset:
		end = "reset"
	case h.Auth.Page:
		end = "page"
	}
	switch {
	case l.Protocol == Passthrough:
		return l.who() + ": the target decides, nothing is decrypted here"
	case h.Auth.Mode == policy.RequestUnverified:
		return l.who() + "; a certificate is judged, and the verdict told, but nobody is refused"
	case h.Auth.Mode == policy.PassthroughChain:
		return l.who() + "; a certificate is handed to the target unverified"
	case h.Auth.Mode == policy.Request:
		return "everybody without a certificate; with one, only if it verifies, else " + end
	case h.Auth.Mode == policy.Require:
		return "only clients whose certificate verifies, else " + end
	}
	return l.who() + ", nobody is asked"
}

// who says which addresses may connect.
func (l *Listener) who() string {
	switch {
	case l.LocalOnly:
		return "everybody from loopback addresses"
	case len(l.Sources) > 0:
		return fmt.Sprintf("everybody from %v", l.Sources)
	}
	return "everybody"
}
