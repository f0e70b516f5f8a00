package snapshot

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"countersign/internal/policy"
	"countersign/internal/route"
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
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", name, l.Address, l.Protocol, names, mode, store, h.admits(l)+h.besides())
			rules := h.Routes.Rules()
			asks := slices.ContainsFunc(rules, func(r route.Rule[*Route]) bool { return r.Value.demands() != "" })
			for _, r := range rules {
				if asks { // else every route is as its host
					mode, store := r.Value.columns()
					fmt.Fprintf(t, "\t\t\t  %s\t%s\t%s\t%s\n", pathOf(r), mode, store, cmp.Or(r.Value.demands(), "as the host"))
				}
			}
		}
		if l.Protocol != HTTP && l.Protocol != TCP && l.fallback == nil {
			fmt.Fprintf(t, "%s\t\t\t(no or another name)\t-\t-\tnobody: unrecognized_name\n", name)
		}
	}
	if err := t.Flush(); err != nil || len(s.stores) == 0 {
		return err
	}
	fmt.Fprintln(t, "\nTRUST STORE\tRULES")
	for _, name := range keys(s.stores) {
		fmt.Fprintf(t, "%s@%s\t%s\n", name, s.stores[name].Version()[:8], s.stores[name].Rules())
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

// besides says in words what else decides on the clients of the host.
func (h *Host) besides() string {
	text := ""
	if len(h.Proxies) > 0 {
		text += fmt.Sprintf("; %d trusted_proxies speak for their clients", len(h.Proxies))
	}
	if h.Exempt != nil {
		text += "; health checks or preflights without a certificate are answered here"
	}
	if h.Auth.Shadow != nil {
		text += "; a stricter shadow is recorded"
	}
	return text
}

// pathOf is the pattern of a route for people, with its conditions.
func pathOf(r route.Rule[*Route]) string {
	pattern := cmp.Or(r.Pattern, "/*")
	if r.When != nil {
		pattern += " (" + r.When.String() + ")"
	}
	return pattern
}

// columns are those of a route that may differ from its host's.
func (r *Route) columns() (mode, store string) {
	mode, store = "-", "-"
	if r.Required {
		mode = "require"
	}
	if r.Store != nil {
		store = r.Store.Name() + "@" + r.Store.Version()[:8]
	}
	return mode, store
}

// demands says in words what a route asks beyond its host; empty for nothing.
func (r *Route) demands() string {
	var all []string
	if r.Required {
		end := "403"
		if r.StepUp != nil {
			end = "browsers are sent to " + r.StepUp.At.Name + ", others get 403"
		}
		all = append(all, "only clients with a verified certificate, else "+end)
	}
	if r.Allow != nil {
		all = append(all, "only if "+strings.Join(strings.Fields(r.Allow.String()), " "))
	}
	if r.ShadowAllow != nil || r.ShadowStore != nil {
		all = append(all, "a stricter shadow is recorded")
	}
	return strings.Join(all, "; ")
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
