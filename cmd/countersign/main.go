// Command countersign is a mutual-TLS load balancer.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"countersign/internal/daemon"
)

// Exit statuses: what a script can tell apart.
const (
	exitFailure = 1 // it did not work
	exitConfig  = 2 // the command line or the configuration is wrong
)

// The first thread is what the system calls the process by, and daemon.CoarseTimers wants it. A command that does not run
// loses nothing by staying on it.
func init() { runtime.LockOSThread() }

func main() { os.Exit(run()) }

func run() int {
	root := &cobra.Command{
		Use:           "countersign",
		Short:         "a mutual-TLS load balancer that explains itself",
		Long:          "Countersign stands in front of services, proves who every client is by certificate, tells the backend in a way\nthat cannot be forged, and explains every refusal.\n\nStart with: countersign quickstart",
		SilenceErrors: true, SilenceUsage: true,
	}
	root.AddCommand(quickstartCommand(), runCommand(), checkCommand(), explainCommand(), journalCommand(), clientsCommand(), impactCommand(), keylogCommand(), probeCommand(), topCommand(), versionCommand(), reasonsCommand(), schemaCommand(), manCommand())
	prepareCompletion(root)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w\nhint: %s --help lists what there is", err, c.CommandPath())}
	})
	err := root.Execute()
	if err == nil {
		return 0
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(os.Stderr, "countersign: "+strings.TrimRight(text, "\n"))
	}
	var conf *daemon.ConfigError
	var usage usageError
	var status statusError
	if errors.As(err, &status) {
		return int(status)
	}
	if errors.As(err, &conf) || errors.As(err, &usage) || strings.HasPrefix(err.Error(), "unknown command") {
		return exitConfig
	}
	return exitFailure
}

// usageError is a command line that cannot be understood.
type usageError struct{ error }
