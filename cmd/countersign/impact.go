package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"countersign/internal/daemon"
	"countersign/internal/diagnose"
	"countersign/internal/journal"
	"countersign/internal/reason"
)

func impactCommand() *cobra.Command {
	var (
		a      impactAsked
		since  string
		limit  int
		asJSON bool
	)
	c := &cobra.Command{
		Use:   "impact",
		Short: "tell which clients a changed configuration would refuse or let in",
		Long: "Judge every client that was seen under two configurations, at each host that it used, and list those for which they\n" +
			"differ. What is known of clients comes from the journal of the first one's state folder; nothing is fetched.\n\n" +
			"\tcountersign impact --config countersign.yaml --proposed new.yaml --since 30d\n\n" +
			"In place of a file, changes can be named; they are made in memory, all of them together, at every host that asks\n" +
			"clients for certificates, or only where --host and --listener say:\n\n" +
			"\tcountersign impact --remove-ca \"CN=Partners CA\"        # or a file of it, or its SHA-256, or the beginning of that\n" +
			"\tcountersign impact --add-crl partners.crl\n" +
			"\tcountersign impact --require-eku clientAuth --host api.example.com\n" +
			"\tcountersign impact --client-auth require --listener public\n" +
			"\tcountersign impact --min-tls 1.3\n" +
			"\tcountersign impact --allow 'client.issuer == \"CN=Partners CA\"' --path /admin\n\n" +
			"Requests that rules (allow) denied are judged again too, from the journal. Which paths a client asked for with success is\n" +
			"not kept: with --path every client is asked about that one.\n\n" +
			"Exit status: 0 nobody would newly be refused, 1 somebody would, 2 a configuration or a change is wrong, or there is no\n" +
			"journal, 3 nobody is known who would, and some could not be judged here: clients without a certificate, or rules about\n" +
			"headers, for example.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			a.now = time.Now()
			var err error
			if limit < 1 || limit > 1000 {
				return usageError{fmt.Errorf("-n: expected 1 to 1000, found %d\nhint: --json prints all", limit)}
			}
			if a.from, err = ago("since", since, a.now); err != nil {
				return err
			}
			if err := a.check(c.Flags().Changed); err != nil {
				return err
			}
			i, err := impactOf(c.Context(), &a)
			if err != nil {
				return asUsage(err) // 1 would say that somebody would be refused
			}
			if asJSON {
				enc := json.NewEncoder(c.OutOrStdout())
				enc.SetEscapeHTML(false)
				enc.SetIndent("", "  ")
				err = enc.Encode(i)
			} else {
				err = i.Print(c.OutOrStdout(), limit)
			}
			switch {
			case err != nil:
				return err
			case len(i.Refused) > 0:
				return statusError(exitFailure)
			case len(i.Undecided)+i.Unread+len(i.Open) > 0:
				return statusError(exitUndecided)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVarP(&a.config, "config", "c", "countersign.yaml", "configuration `file` in force, whose journal is used")
	f.StringVar(&a.proposed, "proposed", "", "configuration `file` that is asked about")
	f.StringArrayVar(&a.change.removeCA, "remove-ca", nil, "without this `CA`: its fingerprint, file or subject; can be given again")
	f.StringArrayVar(&a.change.addCRL, "add-crl", nil, "with the revocation lists of this `file`; can be given again")
	f.StringVar(&a.change.requireEKU, "require-eku", "", "with this `purpose` of clients required: clientAuth or an object identifier")
	f.StringVar(&a.change.clientAuth, "client-auth", "", "with this `mode` where certificates are requested: require")
	f.StringVar(&a.change.minTLS, "min-tls", "", "with this oldest `version` of TLS: 1.3")
	f.StringArrayVar(&a.change.allow, "allow", nil, "with this `expression` too in allow of every route; can be given again")
	f.StringVar(&a.change.host, "host", "", "change only the host of this `name`")
	f.StringVar(&a.change.listener, "listener", "", "change only the listener of this `name`")
	f.StringVar(&since, "since", "", "only clients seen since this `time`, or so long ago (30d)")
	f.StringVar(&a.path, "path", "", "judge a request for this `path` too")
	f.StringVar(&a.method, "method", "", "its `method` (default GET)")
	f.IntVarP(&limit, "limit", "n", 50, "`number` of clients that are listed for each difference")
	f.BoolVar(&asJSON, "json", false, "print the report as JSON, with all clients")
	must(c.MarkFlagFilename("proposed", "yaml", "yml"))
	must(c.MarkFlagFilename("remove-ca", "pem", "crt", "cer", "der"))
	must(c.MarkFlagFilename("add-crl", "crl", "pem", "der"))
	for flag, value := range map[string]string{"require-eku": "clientAuth", "client-auth": "require", "min-tls": "1.3"} {
		must(c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions([]string{value}, cobra.ShellCompDirectiveNoFileComp)))
	}
	return c
}

// impactAsked is what impact is asked.
type impactAsked struct {
	config string // in force
	// One of them says what is proposed.
	proposed string
	change   change

	from, now    time.Time
	method, path string
}

// check says what is wrong with the question alone. given reports whether a flag was.
func (a *impactAsked) check(given func(flag string) bool) error {
	changed := ""
	for _, name := range changeFlags {
		if given(name) && changed == "" {
			changed = name
		}
	}
	switch {
	case a.proposed == "" && changed == "":
		return usageError{errors.New("impact: expected --proposed FILE, or a change such as --remove-ca CA, found none\nhint: countersign impact --help")}
	case a.proposed != "" && changed != "":
		return usageError{fmt.Errorf("impact: --proposed and --%s both say what is changed\nhint: give one of them", changed)}
	case a.proposed != "" && (given("host") || given("listener")):
		return usageError{errors.New("impact: --host and --listener say where a change such as --remove-ca is made, and --proposed says that itself\nhint: leave them out")}
	case a.path != "" && a.path[0] != '/':
		return usageError{fmt.Errorf("--path: expected a path that begins with /, found %q\nhint: --path /admin", a.path)}
	case given("allow") && a.path == "":
		return usageError{errors.New("--allow: expected --path too, found none: which paths clients asked for with success is not kept\nhint: --path /")}
	}
	for _, name := range append([]string{"proposed", "host", "listener"}, changeFlags...) {
		if given(name) && a.empty(name) {
			return usageError{fmt.Errorf("--%s: expected a value, found none\nhint: countersign impact --help", name)}
		}
	}
	return a.change.check()
}

// empty reports whether a flag has no value, or one that is empty.
func (a *impactAsked) empty(flag string) bool {
	c := &a.change
	if list, several := map[string][]string{"remove-ca": c.removeCA, "add-crl": c.addCRL, "allow": c.allow}[flag]; several {
		return slices.Contains(list, "")
	}
	return map[string]string{"proposed": a.proposed, "host": c.host, "listener": c.listener, "require-eku": c.requireEKU, "client-auth": c.clientAuth, "min-tls": c.minTLS}[flag] == ""
}

// maxReplayed bounds the denied requests that are judged again; 10,000, but in tests.
var maxReplayed = 10_000

func impactOf(ctx context.Context, a *impactAsked) (*diagnose.Impact, error) {
	before, err := daemon.NewLook(a.config, a.now, false)
	if err != nil {
		return nil, err
	}
	defer before.Close()
	file := a.proposed
	if file == "" {
		file = a.config
	}
	after, err := daemon.NewLook(file, a.now, false)
	if err != nil {
		return nil, err
	}
	defer after.Close()
	var told []string
	if a.proposed == "" {
		if told, err = a.change.propose(after); err != nil {
			return nil, err
		}
	}
	r, err := daemon.OpenJournal(ctx, a.config)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	chain, err := r.Certificates(ctx)
	if err != nil {
		return nil, err
	}
	replay := diagnose.NewReplay(before.Setup(), after.Setup())
	replay.Changes, replay.Path, replay.Method = told, a.path, a.method
	// What denied requests are of, for they say only which certificate.
	denied, more, err := deniedBy(ctx, r, a.from, replay.ReadsAddress())
	var m missed
	m.end("denied requests", err)
	m.end("clients", r.Clients(ctx, func(k *journal.Client) bool {
		if k.Last.Before(a.from) {
			return false // they are in that order
		}
		presented, err := chain(k)
		if err != nil {
			m.add(err)
			return true
		}
		seen := diagnose.Seen{Presented: presented, LeafOnly: !k.Verified, Method: a.method, Path: a.path, OtherHosts: k.OtherHosts}
		if k.Verdict != "accepted" {
			seen.Refused, _ = reason.Parse(k.Verdict)
		}
		for _, h := range k.Hosts {
			u := diagnose.Use{Listener: h.Listener, Host: h.Host, Unnamed: h.Unnamed, Version: h.TLS, Count: h.Count, Last: h.Last}
			if !h.LastTLS12.Before(a.from) {
				u.CountTLS12, u.LastTLS12 = h.CountTLS12, h.LastTLS12
			}
			seen.Uses = append(seen.Uses, u)
		}
		m.add(replay.Ask(&seen))
		for _, d := range denied[k.SHA256] {
			m.add(replay.Ask(&diagnose.Seen{Presented: presented, LeafOnly: !k.Verified, Method: d.method, Path: d.path, Refused: reason.PolicyDenied, Address: d.address,
				Uses: []diagnose.Use{{Listener: d.listener, Host: d.host, Version: d.version, Count: d.count, Last: d.last}}}))
		}
		return ctx.Err() == nil
	}))
	m.end("refused certificates", r.Strangers(ctx, func(s *journal.Stranger) bool {
		if s.Last.Before(a.from) {
			return false
		}
		m.add(replay.Ask(&diagnose.Seen{Presented: s.Presented, Unproven: true,
			Uses: []diagnose.Use{{Listener: s.Listener, Host: s.Host, Unnamed: s.Unnamed, Version: s.Version, Count: s.Count, Last: s.Last}}}))
		return ctx.Err() == nil
	}))
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n, first := r.Unread()
	for range n {
		m.add(first)
	}
	i := replay.Done()
	if m.n > 0 {
		i.Notes = append(i.Notes, fmt.Sprintf("%d rows of the journal could not be judged, the first of them: %s", m.n, m.first))
	}
	i.Unread, i.Notes = m.n+len(m.ends), append(i.Notes, m.ends...)
	if more {
		i.Open = append(i.Open, fmt.Sprintf("of the requests that rules denied the last %d were judged, and there are more: --since leaves out old ones", maxReplayed))
	}
	return i, nil
}

// missed are rows of the journal that could not be made use of: one of them must not end the work on all others.
type missed struct {
	n     int
	first string
	ends  []string // of what could not be read to its end
}

// add counts a row.
func (m *missed) add(err error) {
	if err == nil {
		return
	}
	if m.n++; m.n == 1 {
		m.first = plainly(err)
	}
}

// end notes what ended the reading of rows of one kind.
func (m *missed) end(what string, err error) {
	if err != nil {
		m.ends = append(m.ends, fmt.Sprintf("the %s of the journal were not read to their end: %s", what, plainly(err)))
	}
}

// plainly is an error, which may have text of clients, for a terminal.
func plainly(err error) string {
	text := strconv.QuoteToASCII(err.Error())
	return text[1:min(len(text)-1, 300)]
}

// deniedRequest is what rules denied to a client.
type deniedRequest struct {
	listener, host, method, path, version string

	address netip.Addr // the zero value where nobody asks for it
	count   int64
	last    time.Time
}

// deniedBy returns the last requests that rules denied, by certificate, and whether there are more. With an error they are not
// all either. Those that differ by the client's address only are one, but where addresses is true.
func deniedBy(ctx context.Context, r *journal.Reader, from time.Time, addresses bool) (all map[string][]*deniedRequest, more bool, err error) {
	all = make(map[string][]*deniedRequest)
	q := journal.Query{Since: from, Reason: "policy_denied", Limit: min(1000, maxReplayed)}
	for n := 0; n < maxReplayed; n += q.Limit {
		list, next, err := r.Search(ctx, q)
		if err != nil {
			return all, false, err
		}
	entries:
		for i := range list {
			e := &list[i]
			if e.Kind != "request" || len(e.Presented) == 0 || e.Asserted != "" || e.Path == "" {
				continue
			}
			var address netip.Addr
			if addresses {
				at, _ := netip.ParseAddrPort(e.Client)
				address = at.Addr().Unmap()
			}
			sum := e.Presented[0].SHA256
			for _, d := range all[sum] {
				if d.listener == e.Listener && d.host == e.Host && d.method == e.Method && d.path == e.Path && d.version == e.TLS && d.address == address {
					d.count++
					continue entries
				}
			}
			all[sum] = append(all[sum], &deniedRequest{e.Listener, e.Host, e.Method, e.Path, e.TLS, address, 1, e.Time})
		}
		if next == 0 {
			return all, false, nil
		}
		q.Before = next
	}
	return all, true, nil
}
