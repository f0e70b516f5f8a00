package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"countersign/internal/config"
	"countersign/internal/daemon"
	"countersign/internal/journal"
	"countersign/internal/snapshot"
	"countersign/internal/top"
)

func topCommand() *cobra.Command {
	var (
		o                  top.Options
		file, ops, order   string
		once, asJSON       bool
		width              int
		orders             = map[string]top.Order{"rate": top.ByRate, "total": top.ByTotal, "name": top.ByName}
		minimum, maximum   = 100 * time.Millisecond, time.Hour
		errNothingToAskFor = errors.New("top: expected ops: in the configuration or --ops, found neither\nhint: add ops: {listen: 127.0.0.1:9901} to the configuration")
	)
	c := &cobra.Command{
		Use:   "top",
		Short: "show live what a running instance does",
		Long: "Show in the terminal what a running instance does: handshakes, refusals by reason, requests, latency, connections,\n" +
			"targets, conditions and the freshest refusals. It reads the metrics of the ops listener that the configuration has, and\n" +
			"the journal if there is one; with --ops the metrics alone, also those of another machine.\n\n" +
			"\tcountersign top -c countersign.yaml\n\tcountersign top --ops http://127.0.0.1:9901\n\n" +
			"Keys: tab, s, f, p, ?, q. With --once or --json it prints what the instance does within the interval, and ends.\n\n" +
			"Exit status: 0, 1 if the instance cannot be reached with --once or --json, 2 the command line is wrong.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var ok bool
			if o.Order, ok = orders[order]; !ok {
				return usageError{fmt.Errorf("--sort: expected rate, total or name, found %q", order)}
			}
			if o.Interval < minimum || o.Interval > maximum {
				return usageError{fmt.Errorf("--interval: expected %s to %s, found %s", minimum, maximum, o.Interval)}
			}
			if ops == "" || c.Flags().Changed("config") {
				src, err := snapshot.ReadFile(file)
				if err != nil {
					return usageError{fmt.Errorf("cannot read the configuration: %w\nhint: name it with -c, or the ops listener with --ops http://127.0.0.1:9901", err)}
				}
				if f, _ := config.Parse(file, src); ops == "" && f.Partial != nil && f.Partial.Ops != nil {
					ops = f.Partial.Ops.Listen
				}
				if ops == "" {
					return usageError{errNothingToAskFor}
				}
				if r, err := daemon.OpenJournal(c.Context(), file); err == nil {
					defer r.Close()
					o.Freshest = func(ctx context.Context) []string { return freshest(ctx, r) }
				}
			}
			var err error
			if o.Source, err = top.NewSource(ops); err != nil {
				return usageError{fmt.Errorf("top: %w", err)}
			}
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			if !once && !asJSON {
				if !terminal(os.Stdout) || !terminal(os.Stdin) {
					return usageError{errors.New("top: expected a terminal, found none\nhint: --once prints one picture, --json one for programs")}
				}
				o.Input, o.Output = os.Stdin, os.Stdout
				return top.Run(ctx, o)
			}
			s, err := o.Source.Once(ctx, o.Interval)
			if err != nil {
				return err
			}
			if o.Freshest != nil {
				s.Freshest = o.Freshest(ctx)
			}
			if asJSON {
				return top.PrintJSON(c.OutOrStdout(), s)
			}
			return top.Print(c.OutOrStdout(), s, top.Screen{Width: width, Order: o.Order, Filter: o.Filter})
		},
	}
	f := c.Flags()
	f.StringVarP(&file, "config", "c", "countersign.yaml", "configuration `file`")
	f.StringVar(&ops, "ops", "", "`URL` or address of the ops listener, in place of the configuration's")
	f.DurationVar(&o.Interval, "interval", 2*time.Second, "`time` between two readings")
	f.StringVar(&order, "sort", "rate", "`order` of rows: rate, total or name")
	f.StringVar(&o.Filter, "filter", "", "show only rows with this `text`")
	f.BoolVar(&once, "once", false, "print one picture as text")
	f.BoolVar(&asJSON, "json", false, "print one picture as JSON")
	f.IntVar(&width, "width", 0, "cut the lines of --once to this `number` of characters")
	must(c.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions([]string{"rate", "total", "name"}, cobra.ShellCompDirectiveNoFileComp)))
	return c
}

// freshest are lines about the newest entries of the journal. A journal that cannot be read just now has none.
func freshest(ctx context.Context, r *journal.Reader) []string {
	list, _, err := r.Search(ctx, journal.Query{Limit: 100})
	if err != nil {
		return []string{"the journal cannot be read: " + strings.TrimSpace(err.Error())}
	}
	lines := make([]string, 0, len(list))
	for i := range list {
		e := &list[i]
		who := e.Asserted
		if who == "" && len(e.Presented) > 0 {
			who = e.Presented[0].Subject
		}
		lines = append(lines, fmt.Sprintf("%s  %-24s  %s  %s  %s  %s", e.Time.UTC().Format(time.TimeOnly), e.Reason, cmp.Or(who, "-"), cmp.Or(e.Host, e.SNI, e.Listener), e.Client, e.Ref))
	}
	return lines
}

// terminal reports whether f is one.
func terminal(f *os.File) bool {
	st, err := f.Stat()
	null, nerr := os.Stat(os.DevNull)
	return err == nil && st.Mode()&os.ModeCharDevice != 0 && !(nerr == nil && os.SameFile(st, null))
}
