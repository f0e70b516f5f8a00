package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"countersign/internal/quickstart"
)

func quickstartCommand() *cobra.Command {
	var o quickstart.Options
	c := &cobra.Command{
		Use:   "quickstart",
		Short: "make a PKI, demo backends and a configuration, run it all, and print calls to try",
		Long: "Make a PKI with good and bad clients, three backends that tell whom they saw, and a configuration that shows TLS\n" +
			"passthrough, offload and bridging, and front-end, back-end and chained mutual TLS. Run it all on 127.0.0.1 and\n" +
			"print curl lines to try, with what each answers. Run again, it keeps CAs and keys. Nothing is written outside\n" +
			"the folder.\n\n" +
			"With --check all calls are made by a TLS client in here, over TLS 1.2 and 1.3, and compared with what is expected:\n" +
			"in a temporary folder and on free ports, unless --dir and --port-base say otherwise. Exit status 1 if one differs.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("port-base") && o.PortBase == 0 {
				o.PortBase = -1 // 0 is the zero value, not a port
			}
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			context.AfterFunc(ctx, stop) // a second signal ends the program at once
			o.Out = c.OutOrStdout()
			return quickstart.Run(ctx, o)
		},
	}
	c.Flags().StringVar(&o.Dir, "dir", "", "`folder` to work in (default "+quickstart.DefaultDir+"; with --check a temporary one)")
	c.Flags().BoolVar(&o.Check, "check", false, "make all calls, compare, and end")
	c.Flags().IntVar(&o.PortBase, "port-base", 0, "first of six `port`s (default 8443; with --check free ones)")
	return c
}
