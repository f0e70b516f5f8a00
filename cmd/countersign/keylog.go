package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"countersign/internal/config"
	"countersign/internal/control"
)

func keylogCommand() *cobra.Command {
	var file, listener string
	var d time.Duration
	c := &cobra.Command{
		Use:   "keylog --listener NAME",
		Short: "print the TLS secrets of a listener's new connections, for reading a capture",
		Long: "Have the running program hand out the TLS secrets of new connections of one listener, for a while, and print them in\n" +
			"the format that Wireshark reads. Whoever has them and a capture can read these connections: keep the file as safe as\n" +
			"what is in them, and delete it. The program writes them to this command alone, and says so in its log, in a record,\n" +
			"as a condition and as a metric. It needs control: in the configuration, and the user of the program, or root.\n\n" +
			"\tcountersign keylog --listener public --for 60s > keys.txt\n\n" +
			"It ends when the time is over, or with Ctrl-C.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case listener == "":
				return usageError{errors.New("keylog: expected --listener NAME, found none\nhint: countersign keylog --help")}
			case d < time.Second || d > control.MaxKeyLog || d%time.Second != 0:
				return usageError{fmt.Errorf("keylog: --for: expected whole seconds from 1s to %s, found %s", control.MaxKeyLog, d)}
			}
			address, err := controlOf(file)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			if err := control.NewClient(address).LogKeys(ctx, listener, d, c.OutOrStdout()); err != nil {
				return fmt.Errorf("keylog: %w", err)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVarP(&file, "config", "c", "countersign.yaml", "configuration `file` of the running program")
	f.StringVar(&listener, "listener", "", "`name` of the listener")
	f.DurationVar(&d, "for", time.Minute, "`time` after which it ends by itself, at most 10m")
	return c
}

// controlOf reads from a configuration file where the control socket is. What else is wrong with the file does not matter:
// the program that is running may have an older one in force.
func controlOf(file string) (address string, err error) {
	src, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("cannot read the configuration: %w; name that of the running program with -c FILE", err)
	}
	f, problems := new(config.Parser).Parse(file, src)
	if f.Partial.Control != "" {
		return f.Partial.Control, nil
	}
	for _, p := range problems {
		if p.Path == "control" {
			return "", usageError{fmt.Errorf("%s:%d: control: %s", file, p.Pos.Line, p.Message)}
		}
	}
	return "", usageError{fmt.Errorf("%s has no control socket; add control: unix:/run/countersign/control.sock, and have the program load it again", file)}
}
