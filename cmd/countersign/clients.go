package main

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"countersign/internal/daemon"
	"countersign/internal/journal"
)

func clientsCommand() *cobra.Command {
	var (
		config, expiring, unused string
		networks                 int
		asJSON                   bool
	)
	c := &cobra.Command{
		Use:   "clients",
		Short: "list the client certificates that were seen",
		Long: "List the certificates of clients that have proven to hold the key, those seen last first: since when and how often they\n" +
			"come, from where, to which hosts, how they were judged the last time. It reads the journal of the configuration's state\n" +
			"folder, whether the program runs or not. Without further flags all are listed.\n\n" +
			"\tcountersign clients --expiring 30d          # who must renew now: ends within 30 days, and came in the last 30\n" +
			"\tcountersign clients --issuers-unused 90d    # which CAs could be removed\n" +
			"\tcountersign clients --many-networks 4       # whose key may have been copied: 4 networks within a day",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			now := time.Now()
			given := 0
			for _, name := range []string{"expiring", "issuers-unused", "many-networks"} {
				if c.Flags().Changed(name) {
					given++
				}
			}
			if given > 1 {
				return usageError{errors.New("clients: --expiring, --issuers-unused and --many-networks are three reports\nhint: ask for one at a time")}
			}
			if c.Flags().Changed("many-networks") && (networks < 2 || networks > journal.MaxNetworks) {
				return usageError{fmt.Errorf("--many-networks: expected 2 to %d, found %d\nhint: so many networks of a client are kept", journal.MaxNetworks, networks)}
			}
			within, err := flagSpan("expiring", expiring)
			if err != nil {
				return err
			}
			idle, err := flagSpan("issuers-unused", unused)
			if err != nil {
				return err
			}
			r, err := daemon.OpenJournal(c.Context(), config)
			if err != nil {
				return asUsage(err)
			}
			defer r.Close()
			if unused != "" {
				return unusedIssuers(c, r, config, now.Add(-idle), now, asJSON)
			}
			out := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
			if !asJSON {
				fmt.Fprintln(out, "LAST SEEN\tENDS\tCOUNT\tNETWORKS\tVERDICT\tSUBJECT\tISSUER\tHOSTS\tSHA-256")
			}
			var failed error
			err = r.Clients(c.Context(), func(k *journal.Client) bool {
				switch {
				case expiring != "" && !k.Expiring(within, now):
					return true
				case networks > 0 && k.Spread() < networks:
					return true
				case asJSON:
					failed = line(c.OutOrStdout(), k)
				default:
					var hosts []string
					for _, h := range k.Hosts[:min(len(k.Hosts), 3)] {
						hosts = append(hosts, h.Host)
					}
					if more := len(k.Hosts) - len(hosts); more > 0 {
						hosts = append(hosts, fmt.Sprintf("and %d more", more))
					}
					_, failed = fmt.Fprintf(out, "%s\t%s\t%d\t%d\t%s\t%s\t%s\t%s\t%s\n", k.Last.Format(time.RFC3339), k.NotAfter.Format(time.DateOnly), k.Count, k.Spread(),
						k.Verdict, k.Subject, k.Issuer, strings.Join(hosts, ", "), k.SHA256[:min(len(k.SHA256), 16)])
				}
				return failed == nil
			})
			tellUnread(c, r)
			return errors.Join(err, failed, out.Flush())
		},
	}
	f := c.Flags()
	f.StringVarP(&config, "config", "c", "countersign.yaml", "configuration `file`")
	f.StringVar(&expiring, "expiring", "", "only those still in use that end within this `time` (30d)")
	f.StringVar(&unused, "issuers-unused", "", "list the CAs of which no client came for this `time` (90d), and those of trust stores of which none ever came")
	f.IntVar(&networks, "many-networks", 0, "only those used from this `number` of networks (/24, /48) or more within a day")
	f.BoolVar(&asJSON, "json", false, "print lines of JSON")
	return c
}

func flagSpan(flag, text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := span(text)
	if err != nil {
		return 0, usageError{fmt.Errorf("--%s: %w, found %q\nhint: countersign clients --help", flag, err, text)}
	}
	return d, nil
}

// unusedIssuers lists CAs that nobody uses.
func unusedIssuers(c *cobra.Command, r *journal.Reader, config string, since, now time.Time, asJSON bool) error {
	anchors, err := daemon.ClientCAs(config, now)
	if err != nil {
		return asUsage(err)
	}
	list, from, err := r.Issuers(c.Context(), since, anchors)
	if err != nil {
		return err
	}
	tellUnread(c, r)
	out := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
	if !asJSON {
		fmt.Fprintln(out, "LAST USED\tCLIENTS\tISSUER\tTRUST STORES\tLAST CLIENT")
	}
	for i := range list {
		if asJSON {
			if err := line(c.OutOrStdout(), &list[i]); err != nil {
				return err
			}
			continue
		}
		last := "never"
		if !list[i].Last.IsZero() {
			last = list[i].Last.Format(time.RFC3339)
		}
		fmt.Fprintf(out, "%s\t%d\t%s\t%s\t%s\n", last, list[i].Clients, list[i].Name, strings.Join(list[i].Stores, ", "), list[i].LastClient)
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if from.IsZero() || from.After(since) {
		known := "nobody was seen yet"
		if !from.IsZero() {
			known = "clients are known since " + from.Format(time.RFC3339) + " only"
		}
		fmt.Fprintf(c.ErrOrStderr(), "countersign: %s: a CA may be in use all the same\n", known)
	}
	return nil
}
