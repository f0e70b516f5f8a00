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
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", name, l.Address, l.Protocol, names, mode, store, h.admits(l.Protocol))
		}
		if l.Protocol != HTTP && l.fallback == nil {
			fmt.Fprintf(t, "%s\t\t\t(no or another name)\t-\t-\tnobody: unrecognized_name\n", name)
		}
	}
	return t.Flush()
}

// admits says in words who may use the host.
func (h *Host) admits(p Protocol) string {
	end := "alert"
	if h.Auth.Reset {
		end = "reset"
	}
	switch {
	case p == Passthrough:
		return "everybody: the target decides, nothing is decrypted here"
	case h.Auth.Mode == policy.Request:
		return "everybody without a certificate; with one, only if it verifies, else " + end
	case h.Auth.Mode == policy.Require:
		return "only clients whose certificate verifies, else " + end
	}
	return "everybody, nobody is asked"
}
