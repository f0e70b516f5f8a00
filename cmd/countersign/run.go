package main

import (
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"countersign/internal/daemon"
)

func runCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "run",
		Short: "serve a configuration",
		Long: "Serve a configuration until SIGTERM or SIGINT. SIGHUP loads it again: as a whole, or not at all.\n" +
			"Records of handshakes and requests go to standard output, one JSON line each; everything else to standard error.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			daemon.CoarseTimers()
			runtime.UnlockOSThread()
			return daemon.Run(daemon.Options{Config: file, Records: os.Stdout, Log: os.Stderr})
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "countersign.yaml", "configuration `file`")
	return c
}
