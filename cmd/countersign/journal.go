package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"countersign/internal/daemon"
	"countersign/internal/journal"
	"countersign/internal/reason"
)

func journalCommand() *cobra.Command {
	var (
		q                    journal.Query
		config, since, until string
		asJSON               bool
	)
	c := &cobra.Command{
		Use:   "journal",
		Short: "list what ended badly: handshakes, connections and requests",
		Long: "List what the program has kept of handshakes, connections and requests that ended badly, newest first. It reads the\n" +
			"journal of the configuration's state folder, whether the program runs or not.\n\n" +
			"\tcountersign journal -c countersign.yaml --since 2h --reason 'client_cert_*' --subject alice\n\n" +
			"With --json each is one line of JSON. The whole story of one: countersign explain --ref REFERENCE.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var err error
			if q.Since, err = ago("since", since, time.Now()); err != nil {
				return err
			}
			if q.Until, err = ago("until", until, time.Now()); err != nil {
				return err
			}
			if q.Limit < 1 || q.Limit > 1000 {
				return usageError{fmt.Errorf("-n: expected 1 to 1000, found %d\nhint: the next page begins with --before", q.Limit)}
			}
			r, err := daemon.OpenJournal(c.Context(), config)
			if err != nil {
				return asUsage(err)
			}
			defer r.Close()
			list, next, err := r.Search(c.Context(), q)
			var wrong *journal.QueryError
			if errors.As(err, &wrong) {
				return usageError{fmt.Errorf("%w\nhint: countersign journal --help", err)}
			}
			if err != nil {
				return err
			}
			tellUnread(c, r)
			out := c.OutOrStdout()
			for i := range list {
				if asJSON {
					err = line(out, &list[i])
				} else {
					_, err = fmt.Fprintln(out, list[i].Line())
				}
				if err != nil {
					return err
				}
			}
			if len(list) == 0 && !known(q.Reason) {
				fmt.Fprintf(c.ErrOrStderr(), "countersign: no reason has the code %q; countersign reasons lists those there are\n", q.Reason)
			}
			if next != 0 {
				fmt.Fprintf(c.ErrOrStderr(), "there is more: --before %d\n", next)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVarP(&config, "config", "c", "countersign.yaml", "configuration `file`")
	f.StringVar(&since, "since", "", "not older than this: `time`, or how long ago (2h, 7d)")
	f.StringVar(&until, "until", "", "older than this: `time`, or how long ago")
	f.StringVar(&q.Ref, "ref", "", "`reference` of a request or a connection")
	f.StringVar(&q.Reason, "reason", "", "`code` of docs/reasons.md; client_cert_* is all that begin like it")
	f.StringVar(&q.Subject, "subject", "", "`part` of the subject of the client's certificate")
	f.StringVar(&q.Issuer, "issuer", "", "`part` of its issuer's name")
	f.StringVar(&q.Serial, "serial", "", "its serial `number`, hexadecimal")
	f.StringVar(&q.Fingerprint, "fingerprint", "", "its SHA-256, or that of the certificate at fault; the first `digits` are enough")
	f.StringVar(&q.SNI, "sni", "", "server `name` that the client asked for")
	f.StringVar(&q.Address, "address", "", "the client's `address`, or a network")
	f.Int64Var(&q.Before, "before", 0, "`id` before which the page begins")
	f.IntVarP(&q.Limit, "limit", "n", 50, "`number` of entries")
	f.BoolVar(&asJSON, "json", false, "print lines of JSON")
	return c
}

// known reports whether a reason has the code, or begins like it where that ends in *. Empty is any.
func known(code string) bool {
	begin, several := strings.CutSuffix(code, "*")
	return code == "" || slices.ContainsFunc(reason.All(), func(r reason.Reason) bool {
		return r.String() == code || several && strings.HasPrefix(r.String(), begin)
	})
}

// tellUnread says that rows were left out.
func tellUnread(c *cobra.Command, r *journal.Reader) {
	if n, first := r.Unread(); n > 0 {
		fmt.Fprintf(c.ErrOrStderr(), "countersign: %d rows of the journal cannot be read and were left out, the first: %s\n", n, plainly(first))
	}
}

// line prints v as one line of JSON.
func line(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// ago reads a time, or how long before now it is. Empty is the zero time.
func ago(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := span(text); err == nil {
		return now.Add(-d), nil
	}
	t, err := moment(text)
	if err != nil {
		return t, usageError{fmt.Errorf("--%s: expected a time like 2026-12-31 or 2026-12-31T23:59:00Z, or how long ago, like 90m or 7d; found %q\nhint: leave it out for all", flag, text)}
	}
	return t, nil
}

var errSpan = errors.New("expected a time span such as 90m, 12h or 30d")

// span reads a time span, in which d is 24 hours.
func span(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return 0, errSpan
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, errSpan
	}
	return d, nil
}
